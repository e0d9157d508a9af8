//! Draws a timeline as SVG.

use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::timeline::{Arrival, Row, Timeline};
use crate::marks::COMMITTED;

const WIDTH: u32 = 1200;

/// The height of a lane, and of the margins above and below all lanes, in pixels.
const LANE: u32 = 30;
const ABOVE: u32 = 56;
const BELOW: u32 = 56;
/// The width of the labels, in pixels: for workers, and for workers with engines.
const LABELS: [u32; 2] = [96, 160];

const RAN: RGBColor = RGBColor(198, 204, 214);
const WAITED: RGBColor = RGBColor(245, 170, 60);
const HELD: RGBColor = RGBColor(35, 90, 165);
const COMMIT: RGBColor = RGBColor(255, 255, 255);

/// The result of drawing.
type Drawn<'a> = Result<(), Box<dyn Error + 'a>>;

impl Timeline {
    /// Returns the timeline as SVG (with the feature `svg`). Each thread has a lane: a line while it ran, orange while
    /// it waited for a writer slot, blue while it held one, and a dot for each commit. If the threads used several
    /// engines, a thread has a lane for each engine that it used, with the engine's number.
    #[allow(clippy::missing_panics_doc, reason = "a string can always be drawn on")]
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg).expect("a string can be drawn on");
        svg
    }

    fn draw<'a>(&self, svg: &'a mut String) -> Drawn<'a> {
        let rows = self.rows();
        let has_several_engines = rows.iter().any(|row| row.engine.is_some());
        let height = ABOVE + LANE * rows.len() as u32 + BELOW;
        let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (unit, per_second) = unit(self.took());
        let at = |time: Duration| time.as_secs_f64() * per_second;
        let end = at(self.took()).max(f64::MIN_POSITIVE);
        let mut chart = ChartBuilder::on(&root)
            .margin_top(ABOVE)
            .margin_right(24)
            .x_label_area_size(BELOW)
            .y_label_area_size(LABELS[usize::from(has_several_engines)])
            .build_cartesian_2d(0.0..end, rows.len() as f64..0.0)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().disable_y_axis().y_labels(0).light_line_style(WHITE).bold_line_style(RAN.mix(0.5));
        mesh.x_labels(12).x_desc(unit).label_style(("sans-serif", 14)).draw()?;

        let name = TextStyle::from(("sans-serif", 14)).pos(Pos::new(HPos::Right, VPos::Center));
        for (number, row) in rows.iter().enumerate() {
            let middle = number as f64 + 0.5;
            let bar = |span: Range<Duration>, half: f64, color: RGBColor| {
                Rectangle::new([(at(span.start), middle - half), (at(span.end), middle + half)], color.filled())
            };
            chart.draw_series([bar(row.lane.ran.clone(), 0.06, RAN)])?;
            chart.draw_series(row.held().map(|span| bar(span, 0.36, HELD)))?;
            chart.draw_series(row.waited().map(|span| bar(span, 0.2, WAITED)))?;
            let dot = |time| Circle::new((at(time), middle), 3, COMMIT.filled());
            chart.draw_series(commits(row).map(dot))?;
            let label = Text::new(label_of(row), (-10, 0), name.clone());
            chart.draw_series([EmptyElement::at((0.0, middle)) + label])?;
        }
        root.draw(&Text::new(format!("round {}", self.round()), (24, 20), ("sans-serif", 16).into_font()))?;
        for (x, color, what) in
            [(230, RAN, "runs"), (330, WAITED, "waits for a writer slot"), (560, HELD, "holds it, • commits")]
        {
            root.draw(&Rectangle::new([(x, 20), (x + 18, 34)], color.filled()))?;
            root.draw(&Text::new(what, (x + 26, 20), ("sans-serif", 14).into_font()))?;
        }
        root.present()?;
        Ok(())
    }
}

fn commits(row: &Row<'_>) -> impl Iterator<Item = Duration> {
    let is_one = |mark: &&Arrival| mark.mark == COMMITTED && (row.engine.is_none() || row.engine == mark.engine);
    row.lane.marks.iter().filter(is_one).map(|mark| mark.at)
}

fn label_of(row: &Row<'_>) -> String {
    let worker = format!("worker {}", row.lane.worker);
    match row.engine {
        Some(engine) if row.is_first => format!("{worker}, engine {engine}"),
        Some(engine) => format!("engine {engine}"),
        None => worker,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hammer::Lane;
    use crate::hammer::timeline::tests::timeline;

    /// Returns each shape with this tag as its first attributes that are numbers: its place and size.
    fn shapes(svg: &str, tag: &str) -> Vec<Vec<u32>> {
        let shapes = svg.lines().filter(|line| line.starts_with(tag)).filter_map(|line| line.split(" opacity").next());
        let numbers = |shape: &str| shape.split('"').skip(1).step_by(2).map_while(|value| value.parse().ok()).collect();
        shapes.map(numbers).collect()
    }

    #[test]
    fn a_row_of_one_engine_shows_the_commits_to_that_engine() {
        let committed = |ms, engine| Arrival { at: Duration::from_millis(ms), mark: COMMITTED, engine: Some(engine) };
        let lane =
            Lane { marks: vec![committed(1, 7), committed(2, 8), committed(3, 7)], ..timeline().lanes()[0].clone() };
        let of =
            |engine| commits(&Row { lane: &lane, engine, is_first: true }).map(|at| at.as_millis()).collect::<Vec<_>>();
        assert_eq!((of(Some(7)), of(Some(8)), of(None)), (vec![1, 3], vec![2], vec![1, 2, 3]));
    }

    /// Lanes are 30 pixels high. Each of the 10 ms has 107.9 pixels, starting at pixel 96.
    #[test]
    fn a_timeline_is_drawn_as_svg() {
        let svg = timeline().to_svg();
        assert_eq!(shapes(&svg, "<svg"), [[1200, 56 + 2 * 30 + 56]]);
        let first = [[96, 69, 1079, 4], [311, 61, 432, 21], [203, 65, 108, 12]]; // ran, held, waited
        let second = [[311, 99, 864, 4], [527, 90, 0, 21], [1175, 90, 0, 21], [527, 95, 0, 12], [1175, 95, 0, 12]];
        let legend = [230, 330, 560].map(|x| [x, 20, 18, 14]);
        assert_eq!(shapes(&svg, "<rect")[1..], [&first[..], &second, &legend].concat());
        assert_eq!(shapes(&svg, "<circle"), [[419, 71, 3]]);
        let texts: Vec<&str> = svg.lines().filter(|line| !line.starts_with('<')).collect();
        let ticks = (0..=10).map(|tick| format!("{tick}.0"));
        assert!(ticks.into_iter().all(|tick| texts.contains(&&*tick)) && texts.contains(&"ms"), "{texts:?}");
        let places = shapes(&svg, "<text");
        let legend = [[24, 20], [256, 20], [356, 20], [586, 20]];
        assert_eq!(places[places.len() - 4..], legend);
        assert!([[86, 71], [86, 101]].iter().all(|name| places.contains(&name.to_vec())), "{places:?}");
    }

    #[test]
    fn times_have_a_legible_unit() {
        let unit = |micros| unit(Duration::from_micros(micros)).0;
        assert_eq!([unit(0), unit(999), unit(1_000), unit(999_999), unit(1_000_000)], ["µs", "µs", "ms", "ms", "s"]);
    }
}
