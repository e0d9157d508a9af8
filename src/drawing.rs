//! Draws what happened at the same time: a lane for each thread or connection, with bars and dots along the time.

use std::ops::Range;
use std::time::Duration;

use maud::{Markup, html};

/// A picture.
pub(crate) struct Drawing {
    pub(crate) title: String,
    pub(crate) took: Duration,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) legend: &'static [(Style, &'static str)],
}

pub(crate) struct Lane {
    pub(crate) label: String,
    /// In the order in which they are drawn: later ones cover earlier ones.
    pub(crate) bars: Vec<Bar>,
    pub(crate) dots: Vec<Duration>,
}

pub(crate) struct Bar {
    pub(crate) span: Range<Duration>,
    pub(crate) style: Style,
    /// What a browser shows when the pointer is on it.
    pub(crate) title: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Ran,
    Held,
    Waited,
    Read,
    Wrote,
    Failed,
}

/// In pixels.
const WIDTH: f64 = 1200.0;
const LABELS: f64 = 190.0;
const RIGHT: f64 = 24.0;
const ABOVE: f64 = 48.0;
const LANE: f64 = 30.0;
const BELOW: f64 = 48.0;

/// Bars closer to each other than this are drawn as one, in pixels.
const MERGED: f64 = 0.5;

/// The width of the widest bar that stands for several, in pixels.
const WIDEST_MERGED: f64 = 4.0;

/// The width of the narrowest bar, in pixels.
const NARROWEST: f64 = 1.0;

/// The characters of a label that fit beside a lane.
const LABEL: usize = 26;

/// Colours for a light and a dark page, by the browser's preference.
const STYLE: &str = include_str!("drawing.css");

impl Style {
    fn class(self) -> &'static str {
        match self {
            Style::Ran => "ran",
            Style::Held => "held",
            Style::Waited => "waited",
            Style::Read => "read",
            Style::Wrote => "wrote",
            Style::Failed => "failed",
        }
    }

    /// Returns half the height of a bar, in lanes.
    fn half(self) -> f64 {
        match self {
            Style::Ran => 0.06,
            Style::Held => 0.36,
            Style::Waited | Style::Read | Style::Wrote => 0.2,
            Style::Failed => 0.28,
        }
    }
}

impl Drawing {
    /// Returns the picture as SVG.
    pub(crate) fn to_svg(&self) -> Markup {
        let bottom = ABOVE + LANE * self.lanes.len() as f64;
        let height = bottom + BELOW;
        let (unit, per_second) = unit(self.took);
        let end = (self.took.as_secs_f64() * per_second).max(f64::MIN_POSITIVE);
        let x = |time: Duration| LABELS + (WIDTH - LABELS - RIGHT) * (time.as_secs_f64() * per_second / end).min(1.0);
        html! {
            svg class="timeline" xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label=(self.title) {
                style { (maud::PreEscaped(STYLE)) }
                rect class="page" width=(WIDTH) height=(height) {}
                text x="16" y="26" { (self.title) }
                @for (number, (style, what)) in self.legend.iter().enumerate() {
                    @let left = 300.0 + 170.0 * number as f64;
                    rect class=(style.class()) x=(left) y="14" width="18" height="14" {}
                    text x=(left + 26.0) y="26" { (what) }
                }
                @for tick in ticks(end) {
                    @let at = px(LABELS + (WIDTH - LABELS - RIGHT) * tick / end);
                    path class="tick" d={ "M" (at) " " (ABOVE) "V" (bottom + 6.0) } {}
                    text class="time" x=(at) y=(bottom + 22.0) { (shown(tick)) }
                }
                text class="time" x=((LABELS + WIDTH - RIGHT) / 2.0) y=(bottom + 42.0) { (unit) }
                @for (number, lane) in self.lanes.iter().enumerate() {
                    @let middle = ABOVE + LANE * (number as f64 + 0.5);
                    text class="label" x=(LABELS - 10.0) y=(middle + 5.0) { (shortened(&lane.label)) title { (lane.label) } }
                    @for (from, to, style, title) in merged(&lane.bars, x) {
                        rect class=(style.class()) x=(px(from)) y=(px(middle - LANE * style.half())) width=(px(to - from)) height=(px(2.0 * LANE * style.half())) {
                            @if !title.is_empty() { title { (title) } }
                        }
                    }
                    @for dot in &lane.dots { circle class="dot" cx=(px(x(*dot))) cy=(middle) r="3" {} }
                }
            }
        }
    }
}

/// Returns the bars in their order, with their ends in pixels. Neighbours of one style that can't be told from each other are one.
fn merged(bars: &[Bar], x: impl Fn(Duration) -> f64) -> Vec<(f64, f64, Style, String)> {
    let mut merged: Vec<(f64, f64, Style, String, usize)> = Vec::new();
    for bar in bars {
        let (from, to) = (x(bar.span.start), x(bar.span.end).max(x(bar.span.start) + NARROWEST));
        match merged.last_mut() {
            Some((first, last, style, _, count))
                if *style == bar.style && from >= *first && from <= *last + MERGED && to - *first < WIDEST_MERGED =>
            {
                *last = last.max(to);
                *count += 1;
            }
            _ => merged.push((from, to, bar.style, bar.title.clone(), 1)),
        }
    }
    let titled = |(from, to, style, title, count): (f64, f64, Style, String, usize)| match count {
        1 => (from, to, style, title),
        _ => (from, to, style, format!("{count} at nearly the same time, the first one: {title}")),
    };
    merged.into_iter().map(titled).collect()
}

/// Returns a number of pixels that needs few characters.
fn px(pixels: f64) -> f64 {
    (pixels * 10.0).round() / 10.0
}

fn shortened(label: &str) -> String {
    match label.char_indices().nth(LABEL) {
        Some((end, _)) => format!("{}…", &label[..end]),
        None => label.to_owned(),
    }
}

/// Returns a unit that suits the times, and the number of such units in a second.
fn unit(longest: Duration) -> (&'static str, f64) {
    match longest.as_secs_f64() {
        seconds if seconds < 1e-3 => ("µs", 1e6),
        seconds if seconds < 1.0 => ("ms", 1e3),
        _ => ("s", 1.0),
    }
}

/// Returns round numbers from 0 to the end: at most 11.
fn ticks(end: f64) -> impl Iterator<Item = f64> {
    let rough = end / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    (0..=(end / step) as usize).map(move |number| number as f64 * step)
}

fn shown(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn bar(from: u64, to: u64, style: Style) -> Bar {
        Bar { span: ms(from)..ms(to), style, title: String::new() }
    }

    /// A lane has 986 pixels.
    #[test]
    fn bars_and_dots_are_where_their_times_are() {
        let lane = |label: &str| Lane {
            label: label.to_owned(),
            bars: vec![bar(0, 986, Style::Ran), bar(100, 300, Style::Held)],
            dots: vec![ms(290)],
        };
        let drawing = Drawing {
            title: "two <lanes>".to_owned(),
            took: ms(986),
            lanes: vec![lane("one"), lane("another one with a very long name")],
            legend: &[(Style::Ran, "runs")],
        };
        let svg = drawing.to_svg().into_string();
        assert!(svg.contains(r#"viewBox="0 0 1200 156""#), "{svg}");
        assert!(svg.contains("two &lt;lanes&gt;") && !svg.contains("<lanes>"), "{svg}");
        for (middle, y) in [(63, "52.2"), (93, "82.2")] {
            assert!(
                svg.contains(&format!(r#"<rect class="held" x="290" y="{y}" width="200" height="21.6">"#)),
                "{svg}"
            );
            assert!(svg.contains(&format!(r#"<circle class="dot" cx="480" cy="{middle}" r="3">"#)), "{svg}");
        }
        assert!(svg.contains("another one with a very lo…<title>another one with a very long name</title>"), "{svg}");
        assert!(svg.contains(r#"<text class="time" x="190" y="130">0</text>"#) && svg.contains(">ms</text>"), "{svg}");
    }

    #[test]
    fn bars_that_are_too_narrow_to_be_told_apart_are_one() {
        let titled = |from: u64, title: &str| Bar { title: title.to_owned(), ..bar(from, from, Style::Read) };
        let bars = [
            titled(0, "a"),
            titled(0, "b"),
            titled(1, "c"),
            titled(9, "d"),
            bar(9, 9, Style::Wrote),
            bar(9, 30, Style::Wrote),
        ];
        let merged = merged(&bars, |time| time.as_secs_f64() * 1e3);
        let places: Vec<_> = merged.iter().map(|(from, to, style, _)| (*from, *to, *style)).collect();
        assert_eq!(
            places,
            [(0.0, 2.0, Style::Read), (9.0, 10.0, Style::Read), (9.0, 10.0, Style::Wrote), (9.0, 30.0, Style::Wrote)]
        );
        let wide = super::merged(&[0, 1, 2, 3].map(|from| titled(from, "")), |time| time.as_secs_f64() * 1e3);
        assert_eq!(wide.len(), 2, "they are less than 4 pixels wide");
        let titles: Vec<_> = merged.iter().map(|(.., title)| &**title).collect();
        assert_eq!(titles, ["3 at nearly the same time, the first one: a", "d", "", ""]);
    }

    #[test]
    fn ticks_are_round_numbers() {
        let all = |end| ticks(end).map(shown).collect::<Vec<_>>().join(" ");
        assert_eq!(all(10.0), "0 1 2 3 4 5 6 7 8 9 10");
        assert_eq!(all(11.0), "0 2 4 6 8 10");
        assert_eq!(all(0.45), "0 0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.45");
        assert_eq!(all(999.0), "0 100 200 300 400 500 600 700 800 900");
    }

    #[test]
    fn times_have_a_legible_unit() {
        let unit = |micros| unit(Duration::from_micros(micros)).0;
        assert_eq!([unit(0), unit(999), unit(1_000), unit(999_999), unit(1_000_000)], ["µs", "µs", "ms", "ms", "s"]);
    }
}
