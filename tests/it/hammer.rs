//! The hammer makes threads race, loses nothing of what they do, and tells in which orders they came.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rusqlite_fixtures::hammer::{
    COMMITTED, Failure, Hammer, Pause, REGISTRY_ASKED, REGISTRY_CREATED, REGISTRY_CREATING, Report, SLOT_ASKED,
    SLOT_GIVEN_BACK, SLOT_TAKEN, Span, reached,
};
use rusqlite_fixtures::rusqlite::TransactionBehavior;
use rusqlite_fixtures::{Engine, MEMORY_ENGINES};

use crate::support::{engine_with_entries, entries, unique_url};

const FOR_EVER: Duration = Duration::from_secs(60);

fn hammer(threads: usize, rounds: usize) -> Hammer {
    Hammer::new().threads(threads).rounds(rounds)
}

/// The number of an engine that spans and marks have.
fn number_of(engine: &Engine) -> u64 {
    let (_, number) = engine.uri().split_once("/engine-").unwrap();
    number.split_once('?').unwrap().0.parse().unwrap()
}

/// What a report prints, but for times.
fn without_times<T>(report: &Report<T>) -> String {
    let is_time = |line: &&str| ["median", "p99", "longest"].iter().any(|what| line.starts_with(what));
    report.to_string().lines().filter(|line| !is_time(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn no_result_error_or_panic_is_lost() {
    let report = hammer(4, 10).seed(7).run(|worker| match (worker.number(), worker.round()) {
        (2, round) if round % 5 == 1 => Err("the third worker's error".into()),
        (3, 4) => std::panic::resume_unwind(Box::new("the fourth worker's panic")),
        (number, round) => Ok((number, round)),
    });
    let places: Vec<(usize, usize)> = report.outcomes().iter().map(|outcome| (outcome.round, outcome.worker)).collect();
    let all: Vec<(usize, usize)> = (0..10).flat_map(|round| (0..4).map(move |worker| (round, worker))).collect();
    assert_eq!(places, all);
    for outcome in report.outcomes() {
        if let Ok(value) = &outcome.result {
            assert_eq!(*value, (outcome.worker, outcome.round));
        }
    }
    let failures: Vec<_> =
        report.failures().map(|(outcome, failure)| (outcome.worker, outcome.round, failure.to_string())).collect();
    let expected = [
        (2, 1, "error: the third worker's error".to_owned()),
        (3, 4, "panic: the fourth worker's panic".to_owned()),
        (2, 6, "error: the third worker's error".to_owned()),
    ];
    assert_eq!(failures, expected);
    assert_eq!((report.values().count(), report.distinct(), report.rounds()), (37, 37 + 3, 10));
    assert_eq!(
        without_times(&report),
        "4 threads, 10 rounds; seed 7\n\n\
         results                40\n  \
           distinct             40\n  \
           errors                2\n  \
           panics                1\n\n\
         worker 2, round 1: error: the third worker's error\n\
         worker 3, round 4: panic: the fourth worker's panic\n\
         worker 2, round 6: error: the third worker's error\n"
    );
    let panic = catch_unwind(AssertUnwindSafe(|| report.assert_no_failures())).unwrap_err();
    assert_eq!(*panic.downcast::<String>().unwrap(), report.to_string());
}

/// A panic may come with something that panics when it is dropped.
#[test]
fn a_panic_that_panics_again_is_one() {
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("again"));
        }
    }
    let report = hammer(2, 3).run(|_| -> Result<(), _> { std::panic::resume_unwind(Box::new(Again)) });
    assert_eq!((report.rounds(), report.failures().count()), (3, 6));
    assert!(report.failures().all(|(_, failure)| matches!(failure, Failure::Panic(_))), "{report}");
}

/// Only an error of a lock is told in words of the crate's own.
#[test]
fn errors_of_sqlite_stay_what_they_are() {
    let engine = Engine::new();
    let report = hammer(1, 1).run(move |_| Ok(engine.connect()?.execute_batch("SELEC 1")?));
    let (_, failure) = report.failures().next().unwrap();
    let Failure::Error(error) = failure else { panic!("{failure}") };
    assert!(error.is::<rusqlite_fixtures::rusqlite::Error>(), "{error:?}");
}

#[test]
fn many_failures_are_counted_and_some_are_shown() {
    let report = hammer(2, 20).run(|_| Err::<(), _>("no".into()));
    assert_eq!((report.distinct(), report.failures().count()), (40, 40));
    assert!(report.to_string().ends_with("worker 1, round 7: error: no\nand 24 failures more\n"), "{report}");
}

#[test]
fn a_round_that_hangs_ends_at_the_deadline_and_says_who_stood_where() {
    let (is_over, entered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (until, count) = (is_over.clone(), entered.clone());
    let start = Instant::now();
    let report = hammer(3, 5).deadline(Duration::from_secs(1)).run(move |worker| {
        count.fetch_add(1, Ordering::Relaxed);
        if worker.number() == 1 {
            worker.reached("door");
        }
        while worker.round() == 1 && worker.number() > 0 && !until.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(worker.number())
    });
    assert!(start.elapsed() < FOR_EVER / 2);
    let hung: Vec<(usize, &str)> = report
        .failures()
        .map(|(outcome, failure)| match failure {
            Failure::Hung(place) => (outcome.worker, place.split_once(',').map_or(&**place, |(place, _)| place)),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(hung, [(1, "after the mark `door`"), (2, "and has reached no mark")]);
    assert_eq!((report.values().count(), report.distinct(), report.rounds()), (4, 3 + 2, 2));
    let printed = report.to_string();
    assert!(printed.contains("3 threads, 2 of 5 rounds"), "{printed}");
    assert!(printed.contains("  hung                  2"), "{printed}");
    assert!(printed.contains("worker 2, round 1: hung, and has reached no mark"), "{printed}");
    assert_eq!(report.timeline().lanes().len(), 3);
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(entered.load(Ordering::Relaxed), 6, "no round is begun after it");
}

#[test]
fn all_threads_are_in_a_round_at_once() {
    let barrier = Arc::new(Barrier::new(6));
    let report = hammer(6, 30).run(move |worker| {
        barrier.wait(); // which lets nobody through until all have come
        Ok(worker.threads())
    });
    assert_eq!(report.values().filter(|threads| **threads == 6).count(), 180);
}

#[test]
fn what_is_random_is_drawn_again_from_the_seed() {
    let draw = |seed| {
        let report = hammer(3, 4).seed(seed).run(|worker| Ok((worker.random().u64(..), worker.random().u64(..))));
        assert_eq!((report.distinct(), report.seed()), (12, seed), "each worker draws others in each round");
        report.values().copied().collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn what_the_work_has_captured_is_dropped_when_the_run_is_over() {
    let captured = Arc::new(());
    let weak = Arc::downgrade(&captured);
    hammer(4, 3).run(move |_| Ok(Arc::strong_count(&captured) > 0)).assert_no_failures();
    assert_eq!(weak.strong_count(), 0);
}

#[test]
fn a_run_may_have_no_rounds_but_not_no_threads() {
    let report = hammer(2, 0).run(|_| Ok(()));
    assert_eq!((report.distinct(), report.rounds(), report.percentile(50.0)), (0, 0, Duration::ZERO));
    assert!(report.to_string().starts_with("2 threads, 0 rounds"), "{report}");
    assert_eq!(report.timeline().to_string(), "round 0, 0.0ns: · runs, - waits for a writer slot, # holds it\n");
    assert!(report.timeline().to_svg().starts_with("<svg"));
    assert!(catch_unwind(|| Hammer::default().threads(0)).is_err());
}

#[test]
fn latencies_are_ranked() {
    let report = hammer(2, 50).run(|worker| {
        if (worker.number(), worker.round()) == (1, 20) {
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    });
    let [least, median, p99, longest] = [0.0, 50.0, 99.0, 100.0].map(|hundredths| report.percentile(hundredths));
    assert!(least <= median && median <= p99 && p99 < longest, "{report}");
    assert!(longest >= Duration::from_millis(300) && median < longest / 2, "{report}");
    assert_eq!(report.timeline().round(), 20, "the longest");
}

mod orders {
    use super::*;

    fn permutations(threads: usize) -> Vec<Vec<usize>> {
        let longer = |shorter: Vec<Vec<usize>>, number: usize| {
            let insert = |order: &Vec<usize>| {
                let at = |place| [&order[..place], &[number], &order[place..]].concat();
                (0..=order.len()).map(at).collect::<Vec<_>>()
            };
            shorter.iter().flat_map(insert).collect()
        };
        (0..threads).fold(vec![vec![]], longer)
    }

    fn pass(hammer: Hammer) -> Report<()> {
        hammer.run(|worker| {
            worker.reached("mark");
            worker.reached("mark"); // that is no second arrival
            Ok(())
        })
    }

    #[test]
    fn each_of_them_can_be_brought_about() {
        let all = permutations(4);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 24);
        for order in &all {
            let report = pass(hammer(4, 2).pause_at("mark", Pause::in_order(order.clone()).patience(FOR_EVER)));
            let orders = report.orders("mark");
            assert_eq!((orders.seen(), orders.contains(order)), (1, true), "{order:?}\n{report}");
            assert_eq!(orders.to_string(), "1 of 24 orders of 4 threads");
        }
    }

    #[test]
    fn pauses_of_random_length_bring_about_all_of_them() {
        let report = pass(hammer(3, 400).pause_at("mark", Pause::up_to(Duration::from_micros(500))));
        assert_eq!(report.orders("mark").to_string(), "6 of 6 orders of 3 threads", "{report}");
        assert!(report.to_string().contains("\n\nmark  6 of 6 orders of 3 threads"), "{report}");
        assert!(!report.to_string().contains("nobody came there"), "{report}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_property_chooses_one(order in Just(vec![0, 1, 2, 3, 4]).prop_shuffle(), slow in 0..5usize) {
            let order_of = |pause| pass(hammer(5, 1).pause_at("mark", pause));
            let report = order_of(Pause::in_order(order.clone()).patience(FOR_EVER));
            prop_assert!(report.orders("mark").contains(&order));
            let report = order_of(Pause::for_all().patience(FOR_EVER));
            prop_assert_eq!(report.orders("mark").seen(), 1);
            let report = order_of(Pause::in_order([slow, (slow + 1) % 5]).patience(FOR_EVER).of_worker((slow + 1) % 5));
            let orders: Vec<Vec<usize>> = permutations(5);
            let order = orders.iter().find(|order| report.orders("mark").contains(order)).unwrap();
            let place = |number| order.iter().position(|other| *other == number).unwrap();
            prop_assert!(place(slow) < place((slow + 1) % 5));
        }
    }

    #[test]
    fn of_more_threads_than_can_be_counted() {
        let report = pass(hammer(40, 1));
        assert_eq!(report.orders("mark").possible(), u128::MAX);
        assert_eq!(report.orders("mark").to_string(), "1 of 3.4e38 orders of 40 threads");
    }

    #[test]
    fn rounds_in_which_not_all_came_are_counted_apart() {
        let report = hammer(4, 6).run(|worker| {
            if worker.round() % 3 == 0 || worker.round() % 3 > worker.number() {
                worker.reached("mark");
            }
            Ok(())
        });
        let printed = report.to_string();
        assert!(printed.contains("mark  1 of 4 threads, each alone\n"), "{printed}");
        assert!(printed.contains(" of 12 orders of 2 threads\n"), "{printed}");
        assert!((1..=2).contains(&report.orders("mark").seen()), "{printed}");
        assert_eq!((report.orders("unknown").seen(), report.orders("unknown").contains(&[0, 1, 2, 3])), (0, false));
    }

    /// Nobody waits for one that has ended its round, nor without end for one that has not.
    #[test]
    fn pauses_end() {
        let start = Instant::now();
        let without_first = |pause| {
            hammer(3, 2).pause_at("mark", pause).run(|worker| {
                if worker.number() > 0 {
                    worker.reached("mark");
                }
                Ok(())
            })
        };
        for pause in [Pause::for_all(), Pause::in_order([0, 2, 1])] {
            let report = without_first(pause.patience(FOR_EVER));
            assert!(!report.to_string().contains("patience"), "{report}");
        }
        assert!(start.elapsed() < FOR_EVER / 2);

        let came = Arc::new(AtomicUsize::new(0));
        let pause = Pause::for_all().patience(Duration::from_millis(20));
        let report = hammer(2, 1).pause_at("mark", pause).run(move |worker| {
            if worker.number() == 0 {
                while came.load(Ordering::Relaxed) == 0 {
                    thread::yield_now(); // the other comes only when it has given up to wait for this one
                }
            }
            worker.reached("mark");
            came.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        assert!(report.to_string().contains("mark  1 times a worker paused there ran out of patience"), "{report}");
        assert!(report.orders("mark").contains(&[1, 0]), "{report}");
    }

    /// A worker is held up the first time in each round that it comes to the mark, and only by the pauses that are for
    /// it and that mark. Where it waits in vain, that is counted.
    #[test]
    fn each_pause_holds_up_once_a_round_where_it_is_to() {
        let pause = || Pause::for_all().patience(Duration::from_millis(1));
        let hammer =
            hammer(2, 3).pause_at("one", pause()).pause_at("one", pause().of_worker(1)).pause_at("two", pause());
        let done = Arc::new(AtomicUsize::new(0));
        let report = hammer.run(move |worker| {
            if worker.number() == 0 {
                ["one", "one", "two"].iter().for_each(|mark| worker.reached(mark));
                done.fetch_add(1, Ordering::SeqCst);
            }
            while done.load(Ordering::SeqCst) <= worker.round() {
                thread::yield_now(); // nobody waits for a worker that has ended its round
            }
            Ok(())
        });
        let printed = report.to_string();
        assert!(printed.contains("one  3 times a worker paused there ran out of patience\n"), "{printed}");
        assert!(printed.contains("two  3 times a worker paused there ran out of patience\n"), "{printed}");
    }

    #[test]
    fn who_has_passed_is_not_waited_for_though_its_round_goes_on() {
        let barrier = Arc::new(Barrier::new(2));
        let report = hammer(2, 2).pause_at("mark", Pause::in_order([0, 1]).patience(FOR_EVER)).run(move |worker| {
            worker.reached("mark");
            barrier.wait();
            Ok(())
        });
        assert!(!report.to_string().contains("patience"), "{report}");
    }

    /// What is known of the pauses is told of a round that hangs, too.
    #[test]
    fn patience_that_ran_out_in_a_round_that_hangs_is_told() {
        let pause = Pause::for_all().patience(Duration::from_millis(1));
        let (is_over, hangs) = (Arc::new(AtomicBool::new(false)), Duration::from_secs(1));
        let until = is_over.clone();
        let report = hammer(2, 1).deadline(hangs).pause_at("mark", pause).run(move |worker| {
            if worker.number() == 0 {
                worker.reached("mark");
            }
            while worker.number() == 1 && !until.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(report.to_string().contains("mark  1 times a worker paused there ran out of patience\n"), "{report}");
    }

    #[test]
    fn a_pause_where_nobody_comes_is_told() {
        let report = pass(hammer(2, 1).pause_at("misspelt", Pause::time(Duration::ZERO)));
        assert!(report.to_string().contains("misspelt  has a pause, and nobody came there\n"), "{report}");
    }

    /// Between a check and what is done about it, all meet: so each of them acts on what is out of date.
    #[test]
    fn a_pause_makes_a_race_certain() {
        let seats_taken = |hammer: Hammer| {
            let seats = Arc::new(Mutex::new(BTreeMap::new()));
            let report = hammer.run(move |worker| {
                let is_free = !seats.lock().unwrap().contains_key(&worker.round());
                reached("checked");
                if is_free {
                    seats.lock().unwrap().insert(worker.round(), worker.number());
                }
                Ok(is_free)
            });
            report.values().filter(|has_seat| **has_seat).count()
        };
        let all = Pause::for_all().patience(FOR_EVER);
        let one_by_one = Pause::in_order([3, 2, 1, 0]).patience(FOR_EVER);
        let hammer = hammer(4, 20).pause_at("checked", all);
        assert_eq!(seats_taken(hammer.clone()), 80);
        assert_eq!(seats_taken(hammer.pause_at("checked", one_by_one)), 80, "all meet, then go on in this order");
    }

    #[test]
    fn marks_of_other_threads_are_nothing() {
        let report = hammer(2, 5).run(|_| Ok(thread::spawn(|| reached("mark")).join().is_ok()));
        assert_eq!((report.distinct(), report.orders("mark").seen()), (1, 0));
    }

    /// All come there, and one of them waits for that.
    #[test]
    fn one_worker_may_wait_for_all() {
        let report = pass(hammer(3, 20).pause_at("mark", Pause::for_all().of_worker(1).patience(FOR_EVER)));
        assert!(!report.to_string().contains("patience") && report.percentile(100.0) < FOR_EVER / 2, "{report}");
    }

    #[test]
    fn who_is_held_up_when_a_round_hangs_is_told() {
        let pause = Pause::time(FOR_EVER);
        let report = pass(hammer(1, 1).deadline(Duration::from_secs(1)).pause_at("mark", pause));
        assert!(report.to_string().ends_with("worker 0, round 0: hung, in a pause at the mark `mark`\n"), "{report}");
    }
}

#[test]
fn the_registry_and_the_store_are_marked() {
    let url = unique_url("hammered");
    let hammer = hammer(4, 10).pause_at(REGISTRY_CREATING, Pause::time(Duration::from_millis(1)));
    let report = hammer.run(move |worker| {
        let engine = Engine::shared(url.replace("hammered", &format!("hammered-{}", worker.round())))?;
        engine
            .try_transaction(|work| work.execute_batch("CREATE TABLE IF NOT EXISTS t (a); INSERT INTO t VALUES (1)"))?;
        MEMORY_ENGINES.remove(&"file:nothing?mode=memory".parse()?);
        Ok(worker.round())
    });
    report.assert_no_failures();
    for mark in [REGISTRY_ASKED, SLOT_ASKED, SLOT_TAKEN, COMMITTED, SLOT_GIVEN_BACK] {
        assert!(report.orders(mark).seen() > 0, "{mark}\n{report}");
    }
    for mark in [REGISTRY_CREATING, REGISTRY_CREATED] {
        assert_eq!(report.orders(mark).seen(), 0, "one thread in each round creates it:\n{report}");
        let line = report.to_string().lines().find(|line| line.starts_with(mark)).map(str::to_owned);
        assert!(line.is_some_and(|line| line.ends_with("of 4 threads, each alone")), "{report}");
    }
}

#[test]
fn the_timeline_shows_who_waited_for_the_slot_and_who_held_it() {
    let engine = engine_with_entries(&[(1, 0)]);
    let hammered = engine.clone();
    let hammer = hammer(4, 3).timeline_of(1).pause_at(SLOT_GIVEN_BACK, Pause::time(Duration::from_millis(2)));
    let report = hammer
        .run(move |_| Ok(hammered.try_transaction(|work| work.execute("UPDATE entry SET value = value + 1", []))?));
    assert_eq!((report.distinct(), entries(&engine.connect().unwrap())), (1, vec![(1, 12)]));
    let timeline = report.timeline();
    assert_eq!((timeline.round(), timeline.lanes().len()), (1, 4));

    let mut held: Vec<Span> = timeline.lanes().iter().flat_map(|lane| lane.held.clone()).collect();
    held.sort_by_key(|span| span.start);
    assert_eq!(held.len(), 4);
    assert!(held.windows(2).all(|pair| pair[0].end <= pair[1].start), "one at a time: {held:?}");
    assert!(held.iter().all(|span| span.end - span.start >= Duration::from_millis(2)), "{held:?}");
    for lane in timeline.lanes() {
        let inside = |span: &Span| lane.ran.start <= span.start && span.end <= lane.ran.end;
        assert!(lane.held.iter().chain(&lane.waited).all(inside), "{lane:?}");
        assert!(lane.marks.iter().any(|arrival| arrival.mark == COMMITTED), "{lane:?}");
    }
    let waited = timeline.lanes().iter().flat_map(|lane| &lane.waited).map(|span| span.end - span.start);
    assert!(waited.max().unwrap() >= Duration::from_millis(2), "{timeline}");

    let text = timeline.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 5 && lines[1..].iter().all(|line| line.contains('#')), "{text}");
    assert!(lines[1..].iter().any(|line| line.contains('-')), "{text}");
    let svg = timeline.to_svg();
    let count = |color: &str| svg.matches(color).count();
    assert_eq!(
        (count("<circle"), count("#235AA5")),
        (4, 4 + 1),
        "each commits once, and holds once; the legend\n{svg}"
    );
    assert!(count("#F5AA3C") > 1 && svg.contains("worker 3"), "{svg}");
}

/// The worker that holds one engine's slot while it waits for another's gives the first one back first.
#[test]
fn the_timeline_tells_engines_apart() {
    let engines = [(); 2].map(|()| engine_with_entries(&[(1, 0)]));
    let numbers = engines.each_ref().map(number_of);
    let both_hold = Barrier::new(2);
    let pause = Pause::time(Duration::from_millis(5)).of_worker(0);
    let report = hammer(2, 1).pause_at(SLOT_GIVEN_BACK, pause).run(move |worker| {
        let begin = |engine: &Engine| engine.begin(TransactionBehavior::Immediate);
        let [first, second] = &engines;
        if worker.number() == 0 {
            let work = begin(second)?;
            both_hold.wait();
            return Ok(work.commit()?);
        }
        let of_first = begin(first)?;
        worker.reached("has the first");
        both_hold.wait();
        let of_second = begin(second)?;
        worker.reached("has both");
        of_first.execute("DELETE FROM entry", [])?;
        of_first.commit()?;
        worker.reached("has the second");
        Ok(of_second.commit()?)
    });
    report.assert_no_failures();
    let timeline = report.timeline();
    let [first, second] = numbers;
    let [alone, with_both] = timeline.lanes() else { panic!("{timeline}") };
    let at = |mark: &str| with_both.marks.iter().find(|its| its.mark == mark).unwrap().at;
    let of = |spans: &[Span], engine| spans.iter().copied().filter(|span| span.engine == engine).collect::<Vec<_>>();

    assert_eq!((alone.held.len(), of(&alone.held, second).len()), (1, 1), "{alone:?}");
    let [[held_first], [held_second]] = [first, second].map(|engine| of(&with_both.held, engine).try_into().unwrap());
    assert!(held_first.start < at("has the first") && held_second.start > at("has the first"), "{with_both:?}");
    assert!((at("has both")..at("has the second")).contains(&held_first.end), "{with_both:?}");
    assert!(held_second.end > at("has the second"), "{with_both:?}");
    let [[_], [waited]] = [first, second].map(|engine| <[Span; 1]>::try_from(of(&with_both.waited, engine)).unwrap());
    assert!(held_first.start < waited.start && waited.end < held_first.end, "it waits and holds: {with_both:?}");
    assert!(waited.end >= alone.held[0].end, "it waits for the other worker: {timeline:?}");
    let committed: Vec<_> = with_both.marks.iter().filter(|its| its.mark == COMMITTED).map(|its| its.engine).collect();
    assert_eq!(committed, [Some(first)]);
    assert_eq!(with_both.marks.iter().find(|its| its.mark == "has both").unwrap().engine, None);

    let rows = [("worker 0", second), ("worker 1", first), ("", second)];
    let text = timeline.to_string();
    assert_eq!(text.lines().count(), 1 + rows.len(), "{text}");
    for (line, (worker, engine)) in text.lines().skip(1).zip(rows) {
        let label = format!("{:>4} engine {engine} ", worker.trim_start_matches("worker "));
        assert!(line.starts_with(&label) && line.contains(['#', '-']), "{text}");
    }
    let svg = timeline.to_svg();
    let count = |text: &str| svg.matches(text).count();
    assert_eq!((count("<circle"), count("#235AA5")), (1, 3 + 1), "one commit, three holds; the legend\n{svg}");
    for (worker, engine) in rows {
        let label = if worker.is_empty() { format!("engine {engine}") } else { format!("{worker}, engine {engine}") };
        assert!(svg.lines().any(|line| line.trim() == label), "{label}\n{svg}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let lane = &json["timeline"]["lanes"][1];
    let engines = |what: &str| -> Vec<u64> {
        lane[what].as_array().unwrap().iter().map(|span| span["engine"].as_u64().unwrap()).collect()
    };
    assert_eq!([engines("waited"), engines("held")], [[first, second]; 2]);
    assert_eq!(lane["held"][0]["to"].as_u64().map(Duration::from_nanos), Some(held_first.end));
}

/// A wait that is given up ends where the slot was asked for last; what is never given back is held to the end.
#[test]
fn the_timeline_shows_waits_in_vain() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::from_millis(5));
    let writer = engine.begin(TransactionBehavior::Immediate).unwrap();
    let hammered = engine.clone();
    let report = hammer(2, 1).run(move |worker| {
        if worker.number() == 0 {
            let work = hammered.unit_of_work()?;
            return Ok(work.execute("DELETE FROM entry", [])?); // SQLite's own error
        }
        let other = engine_with_entries(&[]);
        std::mem::forget(other.begin(TransactionBehavior::Immediate)?);
        Ok(0)
    });
    drop(writer);
    let [refused, forgetful] = report.timeline().lanes() else { panic!("{}", report.timeline()) };
    assert!(refused.held.is_empty() && !refused.waited.is_empty(), "{refused:?}");
    assert!(refused.waited.iter().map(|wait| wait.end - wait.start).sum::<Duration>() >= Duration::from_millis(5));
    assert_eq!(forgetful.held.last().map(|span| span.end), Some(forgetful.ran.end));
    let (_, failure) = report.failures().next().unwrap();
    assert!(failure.to_string().contains("taken by thread"), "not only that the database is locked: {failure}");
}

/// A wait that ended in a refusal is not a part of the next one.
#[test]
fn a_wait_that_was_refused_ends_in_the_timeline() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::from_millis(5));
    let writer = Mutex::new(Some(engine.begin(TransactionBehavior::Immediate).unwrap()));
    let hammered = engine.clone();
    let report = hammer(1, 1).run(move |worker| {
        let nothing = hammered.snapshot();
        assert!(hammered.restore(&nothing).is_err(), "the slot is taken");
        worker.reached("refused");
        drop(writer.lock().unwrap().take());
        worker.reached("free again");
        hammered.restore(&nothing)?;
        Ok(hammered.try_transaction(|work| work.execute("DELETE FROM entry", [])).map(drop)?)
    });
    report.assert_no_failures();
    let lane = &report.timeline().lanes()[0];
    let at = |mark: &str| lane.marks.iter().find(|its| its.mark == mark).unwrap().at;
    let [in_vain, after @ ..] = &lane.waited[..] else { panic!("no wait is told: {lane:?}") };
    assert!(in_vain.end - in_vain.start >= Duration::from_millis(5) && in_vain.end <= at("refused"), "{lane:?}");
    assert_eq!(after.len(), 2, "{lane:?}");
    assert!(after.iter().all(|wait| wait.start >= at("free again")), "{lane:?}");
    assert_eq!(lane.held.len(), 2, "{lane:?}");
}

#[test]
fn a_report_can_be_read_as_json() {
    let hammer = hammer(2, 3).seed(11).pause_at("nowhere", Pause::time(Duration::ZERO));
    let report = hammer.run(|worker| {
        worker.reached("mark");
        if worker.number() == 1 && worker.round() == 2 { Err("no".into()) } else { Ok(worker.number()) }
    });
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let expected = serde_json::json!({
        "threads": 2, "rounds": 3, "rounds_asked_for": 3, "seed": 11, "results": 6, "distinct": 3,
        "errors": 1, "panics": 0, "hung": 0, "pauses_given_up": [], "marks_unreached": ["nowhere"],
        "failures": [{ "worker": 1, "round": 2, "failure": "error: no" }],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(json[key], *value, "{key}");
    }
    assert_eq!((&json["orders"][0]["mark"], &json["orders"][0]["possible"]), (&"mark".into(), &2.into()));
    let nanoseconds = |value: &serde_json::Value| Duration::from_nanos(value.as_u64().unwrap());
    assert_eq!(nanoseconds(&json["latency_ns"]["longest"]), report.percentile(100.0));
    let lane = &json["timeline"]["lanes"][1];
    assert_eq!(nanoseconds(&lane["ran"][1]), report.timeline().lanes()[1].ran.end);
    assert_eq!((&lane["marks"][0]["mark"], &lane["held"]), (&"mark".into(), &serde_json::json!([])));
}
