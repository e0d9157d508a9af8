//! Which threads waited for the writer slot and which held it, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::finished::{Event, Finished};
use crate::marks::{SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_REFUSED, SLOT_TAKEN};

/// What each thread did in one round, and when.
///
/// It has a lane for each thread. It prints as text, and with the feature `report`, `to_svg` draws it. If the threads used
/// several engines, each thread has a line for each engine that it used. Times count from the start of the round.
///
/// SQLite does not report when a connection that polls gives up. If the connection later asks for the same engine's
/// slot again, the timeline shows one wait. Otherwise the wait ends at its last request. If another thread releases the
/// slot, the timeline shows it as held until this thread ends.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    round: usize,
    lanes: Vec<Lane>,
}

/// One thread of a [`Timeline`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Lane {
    /// The worker's number.
    pub worker: usize,
    /// From the start of the worker's round to its end.
    pub ran: Range<Duration>,
    /// When it waited for a writer slot, in order of the starts.
    pub waited: Vec<Span>,
    /// When it held a writer slot, in order of the starts.
    pub held: Vec<Span>,
    /// The marks that it passed, and when.
    pub marks: Vec<Arrival>,
}

/// A time during which a thread waited for an engine's writer slot, or held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// The engine's number, which is in its URI ([`Engine::uri`](crate::Engine::uri)).
    pub engine: u64,
    /// The start.
    pub start: Duration,
    /// The end.
    pub end: Duration,
}

/// A mark that a thread reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// When the thread passed the mark, after any pause.
    pub at: Duration,
    /// The mark.
    pub mark: &'static str,
    /// The engine's number, for a mark of an engine's writer slot.
    pub engine: Option<u64>,
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

    /// Returns the number of the round, counted from 0.
    pub fn round(&self) -> usize {
        self.round
    }

    /// Returns the lanes, one for each thread.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Returns the time from the first thread's start to the last thread's end.
    pub fn took(&self) -> Duration {
        self.lanes.iter().map(|lane| lane.ran.end).max().unwrap_or_default()
    }

    /// The engines whose slots the threads waited for or held.
    fn engines(&self) -> BTreeSet<u64> {
        self.lanes.iter().flat_map(Lane::engines).collect()
    }

    /// Returns the rows to draw: one for each thread, or for each engine that a thread used if there are several
    /// engines.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let has_several_engines = self.engines().len() > 1;
        let rows = |lane| Row::all_of(lane, has_several_engines);
        self.lanes.iter().flat_map(rows).collect()
    }

    #[cfg(feature = "json")]
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::json;

        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let span = |span: &Range<Duration>| json!([nanoseconds(span.start), nanoseconds(span.end)]);
        let of_slot = |span: &Span| json!({ "engine": span.engine, "from": nanoseconds(span.start), "to": nanoseconds(span.end) });
        let spans = |spans: &[Span]| spans.iter().map(of_slot).collect::<Vec<_>>();
        let mark = |arrival: &Arrival| json!({ "mark": arrival.mark, "engine": arrival.engine, "at": nanoseconds(arrival.at) });
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

    fn engines(&self) -> BTreeSet<u64> {
        self.waited.iter().chain(&self.held).map(|span| span.engine).collect()
    }

    fn fill(&mut self, events: &[Event], since: impl Fn(Instant) -> Duration) {
        let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
        for Event { mark, engine, at } in events {
            let at = since(*at);
            self.marks.push(Arrival { at, mark, engine: *engine });
            if let Some(engine) = *engine {
                self.follow(engine, slots.entry(engine).or_default(), mark, at);
            }
        }
        for (engine, Slot { asked, taken }) in slots {
            self.waited.extend(asked.map(|Range { start, end }| Span { engine, start, end })); // the wait had no result
            let end = self.ran.end;
            self.held.extend(taken.into_iter().map(|start| Span { engine, start, end }));
        }
        [&mut self.waited, &mut self.held].into_iter().for_each(|spans| spans.sort_by_key(|span| span.start));
    }

    fn follow(&mut self, engine: u64, slot: &mut Slot, mark: &str, at: Duration) {
        let until_now = |start| Span { engine, start, end: at };
        let waited = |asked: Range<Duration>| until_now(asked.start);
        match mark {
            // A connection that polls asks again, and this continues its wait.
            SLOT_ASKED => slot.asked = Some(slot.asked.take().map_or(at, |asked| asked.start)..at),
            SLOT_REFUSED => self.waited.extend(slot.asked.take().map(waited)),
            SLOT_TAKEN => {
                self.waited.extend(slot.asked.take().map(waited));
                slot.taken.push(at);
            }
            SLOT_GIVEN_BACK => self.held.extend(slot.taken.pop().map(until_now)),
            _ => {}
        }
    }
}

/// A thread's use of one engine's writer slot, up to some event.
#[derive(Default)]
struct Slot {
    /// When the thread asked first and last, since it took the slot or was refused.
    asked: Option<Range<Duration>>,
    /// When the thread took it. There are several times if another thread released it.
    taken: Vec<Duration>,
}

/// What is drawn beside one label.
pub(super) struct Row<'a> {
    pub(super) lane: &'a Lane,
    /// The engine whose slot is drawn; `None` for all engines.
    pub(super) engine: Option<u64>,
    /// Whether it is the lane's first row.
    pub(super) is_first: bool,
}

impl<'a> Row<'a> {
    fn all_of(lane: &'a Lane, has_several_engines: bool) -> Vec<Row<'a>> {
        let engines = if has_several_engines { lane.engines() } else { BTreeSet::new() };
        let row = |(number, engine)| Row { lane, engine: Some(engine), is_first: number == 0 };
        match engines.is_empty() {
            true => vec![Row { lane, engine: None, is_first: true }],
            false => engines.into_iter().enumerate().map(row).collect(),
        }
    }

    pub(super) fn waited(&self) -> impl Iterator<Item = Range<Duration>> {
        self.of_this_engine(&self.lane.waited)
    }

    pub(super) fn held(&self) -> impl Iterator<Item = Range<Duration>> {
        self.of_this_engine(&self.lane.held)
    }

    fn of_this_engine<'s>(&self, spans: &'s [Span]) -> impl Iterator<Item = Range<Duration>> + use<'s> {
        let engine = self.engine;
        let is_of_it = move |span: &&Span| engine.is_none_or(|engine| span.engine == engine);
        spans.iter().filter(is_of_it).map(|span| span.start..span.end)
    }
}

/// The width of a lane in text.
const COLUMNS: usize = 100;

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took();
        writeln!(f, "round {}, {took:.1?}: · runs, - waits for a writer slot, # holds it", self.round)?;
        let column = |at: Duration| (COLUMNS as f64 * at.as_secs_f64() / took.as_secs_f64().max(1e-9)) as usize;
        let rows = self.rows();
        let has_several_engines = rows.iter().any(|row| row.engine.is_some());
        for row in rows {
            let mut cells = [' '; COLUMNS];
            let mut draw = |span: Range<Duration>, with: char| {
                let start = column(span.start).min(COLUMNS - 1);
                cells[start..column(span.end).clamp(start + 1, COLUMNS)].fill(with);
            };
            draw(row.lane.ran.clone(), '·');
            row.held().for_each(|span| draw(span, '#'));
            row.waited().for_each(|span| draw(span, '-')); // on top: a thread that holds the slot may wait for itself
            let worker = if row.is_first { row.lane.worker.to_string() } else { String::new() };
            let engine = row.engine.map(|engine| format!("engine {engine}")).unwrap_or_default();
            let width = if has_several_engines { 14 } else { 0 };
            writeln!(f, "{worker:>4} {engine:width$}{}", cells.iter().collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::marks::COMMITTED;

    /// Two workers in a round of 10 ms. The first waits, holds the slot and commits. The second takes a slot as it
    /// ends, and keeps it.
    pub(in crate::hammer) fn timeline() -> Timeline {
        let first = [(SLOT_ASKED, 7, 1), (SLOT_TAKEN, 7, 2), (COMMITTED, 7, 3), (SLOT_GIVEN_BACK, 7, 6)];
        let second =
            [(SLOT_ASKED, 7, 4), (SLOT_TAKEN, 7, 4), (SLOT_GIVEN_BACK, 7, 4), (SLOT_ASKED, 7, 10), (SLOT_TAKEN, 7, 10)];
        of_workers(&[&first, &second])
    }

    /// Each worker begins 2 ms after the one before.
    fn of_workers(workers: &[&[(&'static str, u64, u64)]]) -> Timeline {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let event = |&(mark, engine, millis): &(_, u64, u64)| Event { mark, engine: Some(engine), at: at(millis) };
        let worker = |(number, events): (usize, &&[_])| Finished {
            number,
            begun: at(2 * number as u64),
            ended: at(10),
            result: Ok(()),
            events: events.iter().map(event).collect(),
        };
        Timeline::new(3, &workers.iter().enumerate().map(worker).collect::<Vec<_>>())
    }

    #[test]
    fn a_timeline_prints_as_text() {
        let cells = |parts: &[(&str, usize)]| parts.iter().map(|(cell, times)| cell.repeat(*times)).collect::<String>();
        let first = cells(&[("·", 10), ("-", 10), ("#", 40), ("·", 40)]);
        let second = cells(&[(" ", 20), ("·", 20), ("-", 1), ("·", 58), ("-", 1)]);
        let heading = "round 3, 10.0ms: · runs, - waits for a writer slot, # holds it";
        assert_eq!(timeline().to_string(), format!("{heading}\n   0 {first}\n   1 {second}\n"));
    }

    /// The first worker holds two slots and gives the first one back first. The second worker is refused one slot, and
    /// gets another.
    #[test]
    fn each_engine_has_its_own_line() {
        let first = [
            (SLOT_ASKED, 7, 1),
            (SLOT_TAKEN, 7, 1),
            (SLOT_ASKED, 8, 2),
            (SLOT_TAKEN, 8, 4),
            (SLOT_GIVEN_BACK, 7, 6),
            (SLOT_GIVEN_BACK, 8, 8),
        ];
        let second = [(SLOT_ASKED, 7, 3), (SLOT_ASKED, 9, 4), (SLOT_REFUSED, 9, 5), (SLOT_TAKEN, 7, 6)];
        let cells = |parts: &[(&str, usize)]| parts.iter().map(|(cell, times)| cell.repeat(*times)).collect::<String>();
        let lines = [
            ("   0 engine 7", cells(&[("·", 10), ("-", 1), ("#", 49), ("·", 40)])),
            ("     engine 8", cells(&[("·", 20), ("-", 20), ("#", 40), ("·", 20)])),
            ("   1 engine 7", cells(&[(" ", 20), ("·", 10), ("-", 30), ("#", 40)])),
            ("     engine 9", cells(&[(" ", 20), ("·", 20), ("-", 10), ("·", 50)])),
        ];
        let expected: String = lines.iter().map(|(label, cells)| format!("{label}      {cells}\n")).collect();
        let text = of_workers(&[&first, &second]).to_string();
        assert_eq!(text.split_once('\n').unwrap().1, expected);
    }
}
