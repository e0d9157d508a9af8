//! Who waited for the writer slot, and who held it, when.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::Event;
use super::report::Finished;
use crate::marks::{SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_REFUSED, SLOT_TAKEN};

/// What each thread did in one round, and when: with a lane per thread, it prints as text, and with the feature `svg` it is
/// drawn by `to_svg`. Times count from the start of the round.
///
/// The marks don't say which engine they are of. Who works on several has them in one lane, and what is held of two at once
/// can't be told apart. A wait that is given up goes on, here, to when a slot is asked for next.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    round: usize,
    lanes: Vec<Lane>,
}

/// One thread of a [`Timeline`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Lane {
    /// Which worker it is.
    pub worker: usize,
    /// From its start to its end.
    pub ran: Range<Duration>,
    /// When it waited for a writer slot.
    pub waited: Vec<Range<Duration>>,
    /// When it held a writer slot.
    pub held: Vec<Range<Duration>>,
    /// When it came to which mark.
    pub marks: Vec<(Duration, &'static str)>,
}

impl Timeline {
    pub(super) fn new<T>(round: usize, finished: &[Finished<T>]) -> Timeline {
        let Some(start) = finished.iter().map(|worker| worker.begun).min() else { return Timeline::default() };
        let lane = |worker: &Finished<T>| {
            let since = |at: Instant| at.saturating_duration_since(start);
            let mut lane = Lane::new(worker.number, since(worker.begun)..since(worker.ended));
            lane.fill(&worker.events, since);
            lane
        };
        Timeline { round, lanes: finished.iter().map(lane).collect() }
    }

    /// Which round it is of, counted from 0.
    pub fn round(&self) -> usize {
        self.round
    }

    /// A lane for each thread.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// From the first thread's start to the last one's end.
    pub fn took(&self) -> Duration {
        self.lanes.iter().map(|lane| lane.ran.end).max().unwrap_or_default()
    }

    #[cfg(feature = "json")]
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::json;

        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let span = |span: &Range<Duration>| json!([nanoseconds(span.start), nanoseconds(span.end)]);
        let spans = |spans: &[Range<Duration>]| spans.iter().map(span).collect::<Vec<_>>();
        let mark = |(at, mark): &(Duration, &str)| json!({ "mark": mark, "at": nanoseconds(*at) });
        let lane = |lane: &Lane| {
            json!({
                "worker": lane.worker,
                "ran": span(&lane.ran),
                "waited": spans(&lane.waited),
                "held": spans(&lane.held),
                "marks": lane.marks.iter().map(mark).collect::<Vec<_>>(),
            })
        };
        json!({ "round": self.round, "lanes": self.lanes.iter().map(lane).collect::<Vec<_>>() })
    }
}

impl Lane {
    fn new(worker: usize, ran: Range<Duration>) -> Lane {
        Lane { worker, ran, waited: Vec::new(), held: Vec::new(), marks: Vec::new() }
    }

    fn fill(&mut self, events: &[Event], since: impl Fn(Instant) -> Duration) {
        let mut waiting: Option<Range<Duration>> = None;
        let mut holding = Vec::new();
        for event in events {
            let at = since(event.at);
            self.marks.push((at, event.mark));
            match event.mark {
                // Who is refused and comes back goes on waiting.
                SLOT_ASKED => waiting = Some(waiting.map_or(at, |wait| wait.start)..at),
                SLOT_TAKEN => {
                    self.waited.extend(waiting.take().map(|wait| wait.start..at));
                    holding.push(at);
                }
                SLOT_REFUSED => self.waited.extend(waiting.take().map(|wait| wait.start..at)),
                SLOT_GIVEN_BACK => self.held.extend(holding.pop().map(|start| start..at)),
                _ => {}
            }
        }
        self.waited.extend(waiting); // it was given up when it was asked for last
        self.held.extend(holding.into_iter().map(|start| start..self.ran.end));
    }
}

/// How wide a lane is in text.
const COLUMNS: usize = 100;

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took();
        writeln!(f, "round {}, {took:.1?}: · runs, - waits for a writer slot, # holds it", self.round)?;
        let column = |at: Duration| (COLUMNS as f64 * at.as_secs_f64() / took.as_secs_f64().max(1e-9)) as usize;
        for lane in &self.lanes {
            let mut cells = [' '; COLUMNS];
            let mut draw = |span: &Range<Duration>, with: char| {
                let start = column(span.start).min(COLUMNS - 1);
                cells[start..column(span.end).clamp(start + 1, COLUMNS)].fill(with);
            };
            draw(&lane.ran, '·');
            lane.held.iter().for_each(|span| draw(span, '#'));
            lane.waited.iter().for_each(|span| draw(span, '-')); // over it: who holds one slot may wait for another
            writeln!(f, "{:>4} {}", lane.worker, cells.iter().collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::marks::COMMITTED;

    /// Two workers in a round of 10 ms: one waits, holds the slot and commits; one takes a slot as it ends, and keeps it.
    pub(in crate::hammer) fn timeline() -> Timeline {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let worker = |number, begun, events: &[(&'static str, u64)]| Finished {
            number,
            begun: at(begun),
            ended: at(10),
            result: Ok(()),
            events: events.iter().map(|&(mark, millis)| Event { mark, at: at(millis) }).collect(),
        };
        let first = [(SLOT_ASKED, 1), (SLOT_TAKEN, 2), (COMMITTED, 3), (SLOT_GIVEN_BACK, 6)];
        let second = [(SLOT_ASKED, 4), (SLOT_TAKEN, 4), (SLOT_GIVEN_BACK, 4), (SLOT_ASKED, 10), (SLOT_TAKEN, 10)];
        Timeline::new(3, &[worker(0, 0, &first), worker(1, 2, &second)])
    }

    #[test]
    fn a_timeline_as_text() {
        let cells = |parts: &[(&str, usize)]| parts.iter().map(|(cell, times)| cell.repeat(*times)).collect::<String>();
        let first = cells(&[("·", 10), ("-", 10), ("#", 40), ("·", 40)]);
        let second = cells(&[(" ", 20), ("·", 20), ("-", 1), ("·", 58), ("-", 1)]);
        let heading = "round 3, 10.0ms: · runs, - waits for a writer slot, # holds it";
        assert_eq!(timeline().to_string(), format!("{heading}\n   0 {first}\n   1 {second}\n"));
    }
}
