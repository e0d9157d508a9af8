//! Draws a timeline as SVG.

use std::ops::Range;
use std::time::Duration;

use super::timeline::{Arrival, Row, Timeline};
use crate::drawing::{Bar, Drawing, Lane, Style};
use crate::marks::COMMITTED;

const LEGEND: &[(Style, &str)] =
    &[(Style::Ran, "runs"), (Style::Waited, "waits for a slot"), (Style::Held, "holds it, • commits")];

impl Timeline {
    /// Returns the timeline as SVG (with the feature `report`). Each thread has a lane: a line while it ran, orange while
    /// it waited for a writer slot, blue while it held one, and a dot for each commit. If the threads used several
    /// engines, a thread has a lane for each engine that it used, with the engine's number. The colours suit a light page
    /// and a dark one.
    pub fn to_svg(&self) -> String {
        let title = format!("round {}", self.round());
        let lanes = self.rows().iter().map(lane).collect();
        Drawing { title, took: self.took(), lanes, legend: LEGEND }.to_svg().into_string()
    }
}

fn lane(row: &Row<'_>) -> Lane {
    let bar = |span: Range<Duration>, style| Bar { title: format!("{:.1?}", span.end - span.start), span, style };
    let ran = bar(row.lane.ran.clone(), Style::Ran);
    let held = row.held().map(|span| bar(span, Style::Held));
    let waited = row.waited().map(|span| bar(span, Style::Waited));
    Lane {
        label: label_of(row),
        bars: [ran].into_iter().chain(held).chain(waited).collect(),
        dots: commits(row).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hammer;
    use crate::hammer::timeline::tests::timeline;

    #[test]
    fn a_row_of_one_engine_shows_the_commits_to_that_engine() {
        let committed = |ms, engine| Arrival { at: Duration::from_millis(ms), mark: COMMITTED, engine: Some(engine) };
        let marks = vec![committed(1, 7), committed(2, 8), committed(3, 7)];
        let lane = hammer::Lane { marks, ..timeline().lanes()[0].clone() };
        let of =
            |engine| commits(&Row { lane: &lane, engine, is_first: true }).map(|at| at.as_millis()).collect::<Vec<_>>();
        assert_eq!((of(Some(7)), of(Some(8)), of(None)), (vec![1, 3], vec![2], vec![1, 2, 3]));
    }

    #[test]
    fn a_worker_runs_waits_holds_and_commits() {
        let timeline = timeline();
        let millis = |duration: &Duration| duration.as_millis();
        let lanes: Vec<Lane> = timeline.rows().iter().map(lane).collect();
        let bars = |lane: &Lane| {
            lane.bars.iter().map(|bar| (bar.style, millis(&bar.span.start), millis(&bar.span.end))).collect::<Vec<_>>()
        };
        assert_eq!(bars(&lanes[0]), [(Style::Ran, 0, 10), (Style::Held, 2, 6), (Style::Waited, 1, 2)]);
        assert_eq!(lanes[0].dots.iter().map(millis).collect::<Vec<_>>(), [3]);
        assert_eq!(
            bars(&lanes[1]),
            [
                (Style::Ran, 2, 10),
                (Style::Held, 4, 4),
                (Style::Held, 10, 10),
                (Style::Waited, 4, 4),
                (Style::Waited, 10, 10)
            ]
        );
        assert_eq!((&*lanes[0].label, &*lanes[1].label), ("worker 0", "worker 1"));
        assert!(timeline.to_svg().starts_with("<svg"));
    }
}
