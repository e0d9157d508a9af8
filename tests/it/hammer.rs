//! The hammer makes threads race, reports all that they do, and the orders in which they reached marks.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rusqlite_fixtures::hammer::{
    Arrival, Attempt, COMMITTED, Failure, Hammer, Lane, Orders, Pause, REGISTRY_ASKED, REGISTRY_CREATED,
    REGISTRY_CREATING, Random, Report, SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_TAKEN, Span, Timeline, Worker, reached,
};
use rusqlite_fixtures::rusqlite::{Connection, TransactionBehavior};
use rusqlite_fixtures::{Engine, MEMORY_ENGINES};

use crate::support::{engine_with_entries, entries, unique_url};

const FOREVER: Duration = Duration::from_secs(60);

fn hammer(threads: usize, rounds: usize) -> Hammer {
    Hammer::new().threads(threads).rounds(rounds)
}

/// The engine's number, which spans and marks have.
fn number_of(engine: &Engine) -> u64 {
    let (_, number) = engine.uri().split_once("/engine-").unwrap();
    number.split_once('?').unwrap().0.parse().unwrap()
}

/// What a report prints, without times.
fn without_times<T: Debug>(report: &Report<T>) -> String {
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
    let places: Vec<(usize, usize)> = report.attempts().iter().map(|attempt| (attempt.round, attempt.worker)).collect();
    let all: Vec<(usize, usize)> = (0..10).flat_map(|round| (0..4).map(move |worker| (round, worker))).collect();
    assert_eq!(places, all);
    for attempt in report.attempts() {
        if let Ok(value) = &attempt.result {
            assert_eq!(*value, (attempt.worker, attempt.round));
        }
    }
    let failures: Vec<_> =
        report.failures().map(|(attempt, failure)| (attempt.worker, attempt.round, failure.to_string())).collect();
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
         values\n\
         \x20                       1 × (0, 0)\n\
         \x20                       1 × (1, 0)\n\
         \x20                       1 × (2, 0)\n\
         \x20                       1 × (3, 0)\n\
         \x20                       1 × (0, 1)\n\
         \x20                       1 × (1, 1)\n\
         \x20                       1 × (3, 1)\n\
         \x20                       1 × (0, 2)\n\
         \x20                           and 29 more\n\n\
         worker 2, round 1: error: the third worker's error\n\
         worker 3, round 4: panic: the fourth worker's panic\n\
         worker 2, round 6: error: the third worker's error\n"
    );
    let panic = catch_unwind(AssertUnwindSafe(|| report.assert_no_failures())).unwrap_err();
    assert_eq!(*panic.downcast::<String>().unwrap(), report.to_string());
}

/// A panic's payload may panic when it is dropped.
#[test]
fn a_panic_whose_payload_panics_is_reported_once() {
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

/// Only an error about a lock is replaced by the crate's own, which explains it.
#[test]
fn other_errors_of_sqlite_are_not_replaced() {
    let engine = Engine::new();
    let report = hammer(1, 1).run(move |_| Ok(engine.connect()?.execute_batch("SELEC 1")?));
    let (_, failure) = report.failures().next().unwrap();
    let Failure::Error(error) = failure else { panic!("{failure}") };
    assert!(error.is::<rusqlite_fixtures::rusqlite::Error>(), "{error:?}");
}

#[test]
fn all_failures_are_counted_and_the_first_are_shown() {
    let report = hammer(2, 20).run(|_| Err::<(), _>("no".into()));
    assert_eq!((report.distinct(), report.failures().count()), (40, 40));
    assert!(report.to_string().ends_with("worker 1, round 7: error: no\nand 24 more failures\n"), "{report}");
}

#[test]
fn a_round_that_hangs_ends_at_the_deadline_and_reports_where_each_worker_is() {
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
    assert!(start.elapsed() < FOREVER / 2);
    let hung: Vec<(usize, &str)> = report
        .failures()
        .map(|(attempt, failure)| match failure {
            Failure::Hung(place) => (attempt.worker, place.split_once(',').map_or(&**place, |(place, _)| place)),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(hung, [(1, "after the mark `door`"), (2, "before it reached any mark")]);
    assert_eq!((report.values().count(), report.distinct(), report.rounds()), (4, 3 + 2, 2));
    let printed = report.to_string();
    assert!(printed.contains("3 threads, 2 of 5 rounds"), "{printed}");
    assert!(printed.contains("  hung                  2"), "{printed}");
    assert!(printed.contains("worker 2, round 1: hung before it reached any mark"), "{printed}");
    assert_eq!(report.timeline().lanes().len(), 3);
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(entered.load(Ordering::Relaxed), 6, "no round starts after it");
}

#[test]
fn all_threads_are_in_a_round_at_once() {
    let barrier = Arc::new(Barrier::new(6));
    let report = hammer(6, 30).run(move |worker| {
        barrier.wait(); // until all have arrived
        Ok(worker.threads())
    });
    assert_eq!(report.values().filter(|threads| **threads == 6).count(), 180);
}

#[test]
fn the_same_seed_draws_the_same_random_numbers() {
    let draw = |seed| {
        let report = hammer(3, 4).seed(seed).run(|worker| Ok((worker.random().u64(..), worker.random().u64(..))));
        assert_eq!((report.distinct(), report.seed()), (12, seed), "each worker draws other numbers in each round");
        report.values().copied().collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn what_the_work_captured_is_dropped_when_the_run_has_ended() {
    let captured = Arc::new(());
    let weak = Arc::downgrade(&captured);
    hammer(4, 3).run(move |_| Ok(Arc::strong_count(&captured) > 0)).assert_no_failures();
    assert_eq!(weak.strong_count(), 0);
}

#[test]
fn a_run_may_have_no_rounds_but_needs_a_thread() {
    let report = hammer(2, 0).run(|_| Ok(()));
    assert_eq!((report.distinct(), report.rounds(), report.percentile(50.0)), (0, 0, Duration::ZERO));
    assert!(report.to_string().starts_with("2 threads, 0 rounds"), "{report}");
    assert_eq!(report.timeline().to_string(), "round 0, 0.0ns: · runs, - waits for a writer slot, # holds it\n");
    assert!(report.timeline().to_svg().starts_with("<svg"));
    assert!(catch_unwind(|| Hammer::default().threads(0)).is_err());
}

#[test]
fn percentiles_are_in_order() {
    let report = hammer(2, 50).run(|worker| {
        if (worker.number(), worker.round()) == (1, 20) {
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    });
    let [least, median, p99, longest] = [0.0, 50.0, 99.0, 100.0].map(|percentage| report.percentile(percentage));
    assert!(least <= median && median <= p99 && p99 < longest, "{report}");
    assert!(longest >= Duration::from_millis(300) && median < longest / 2, "{report}");
    assert_eq!(report.timeline().round(), 20, "the longest round");
}

#[test]
fn distinct_values_are_counted_and_the_most_frequent_are_printed_first() {
    let report = hammer(4, 5).run(|worker| Ok(if worker.number() == 3 { worker.round() } else { 7 }));
    let counted: Vec<(usize, usize)> = report.distinct_values().map(|(value, times)| (*value, times)).collect();
    assert_eq!(counted, [(7, 15), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    let printed = report.to_string();
    let (_, values) = printed.split_once("\n\nvalues\n").unwrap();
    let lines: Vec<&str> = values.lines().map(str::trim).collect();
    assert_eq!(lines, ["15 × 7", "1 × 0", "1 × 1", "1 × 2", "1 × 3", "1 × 4"]);
}

#[test]
fn eight_values_are_printed_and_long_ones_are_cut() {
    let printed = hammer(1, 10).run(|worker| Ok(worker.round())).to_string();
    assert!(printed.ends_with("  1 × 7\n                            and 2 more\n"), "{printed}");
    let printed = hammer(1, 8).run(|worker| Ok("ä".repeat(worker.round() + 200))).to_string();
    let line = format!("  1 × \"{} …\n", "ä".repeat(99));
    assert!(printed.ends_with(&line), "{printed}");
    assert!(!hammer(1, 1).run(|_| Err::<(), _>("no".into())).to_string().contains("values"));
}

#[test]
fn a_failure_is_an_error_with_its_source() {
    let report = hammer(2, 1).run(|worker| match worker.number() {
        0 => Err::<(), _>("no".into()),
        _ => std::panic::resume_unwind(Box::new("a panic")),
    });
    let failures: Vec<&dyn Error> = report.failures().map(|(_, failure)| failure as &dyn Error).collect();
    let sources: Vec<Option<String>> =
        failures.iter().map(|failure| failure.source().map(ToString::to_string)).collect();
    assert_eq!(sources, [Some("no".to_owned()), None]);
}

/// All public types but `Worker`, which stays on its thread.
#[test]
fn types_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Hammer>();
    is_send_and_sync::<Pause>();
    is_send_and_sync::<Random>();
    is_send_and_sync::<Report<()>>();
    is_send_and_sync::<Attempt<()>>();
    is_send_and_sync::<Failure>();
    is_send_and_sync::<Orders<'_>>();
    is_send_and_sync::<Timeline>();
    is_send_and_sync::<Lane>();
    is_send_and_sync::<Span>();
    is_send_and_sync::<Arrival>();
    trait IfSend<Marker> {
        fn check() {}
    }
    impl<T> IfSend<()> for T {}
    impl<T: Send> IfSend<u8> for T {}
    <Worker as IfSend<_>>::check(); // is ambiguous, and so does not compile, if a worker is Send
}

#[test]
fn random_numbers_are_in_their_range() {
    let report = hammer(1, 200).seed(3).run(|worker| {
        let random = worker.random();
        let mut deck = [0, 1, 2, 3];
        random.shuffle(&mut deck);
        assert_eq!(deck.iter().collect::<BTreeSet<_>>().len(), 4);
        let fractions = [random.f64(), random.f64()];
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)) && fractions[0] != fractions[1]);
        Ok((random.u64(5..=6), random.bool(), deck))
    });
    report.assert_no_failures();
    let seen = |value: fn(&(u64, bool, [i32; 4])) -> u64| report.values().map(value).collect::<BTreeSet<_>>();
    assert_eq!(seen(|(number, _, _)| *number), BTreeSet::from([5, 6]));
    assert_eq!(seen(|(_, coin, _)| u64::from(*coin)), BTreeSet::from([0, 1]));
    assert_eq!(seen(|(_, _, deck)| deck[0] as u64), BTreeSet::from([0, 1, 2, 3]));
}

mod state_of_a_round {
    use super::*;

    /// Reads a number, and writes the next one: without a transaction around both, all workers may read the same number.
    fn count_up(connection: &Connection) -> rusqlite_fixtures::Result<i64> {
        let value: i64 = connection.query_row("SELECT value FROM entry WHERE key = 1", [], |row| row.get(0))?;
        connection.execute("UPDATE entry SET value = ?1 WHERE key = 1", [value + 1])?;
        Ok(value + 1)
    }

    fn counted(report: &Report<i64>) -> Vec<(i64, usize)> {
        report.assert_no_failures();
        let mut counted: Vec<_> = report.distinct_values().map(|(value, times)| (*value, times)).collect();
        counted.sort_unstable();
        counted
    }

    #[test]
    fn each_round_has_a_fresh_engine() {
        let report = hammer(4, 10)
            .run_each(|_| engine_with_entries(&[(1, 0)]), |_, engine| Ok(engine.transaction(|work| count_up(work))?));
        assert_eq!(counted(&report), [(1, 10), (2, 10), (3, 10), (4, 10)]);
    }

    /// The counterpart: without a transaction, updates are lost in every round.
    #[test]
    fn lost_updates_are_found() {
        let pause = Pause::for_all().patience(FOREVER);
        let report = hammer(4, 10)
            .pause_at(SLOT_ASKED, pause)
            .run_each(|_| engine_with_entries(&[(1, 0)]), |_, engine| Ok(count_up(&engine.connect()?)?));
        assert_eq!(counted(&report), [(1, 40)]);
    }

    #[test]
    fn the_state_is_made_for_each_round_and_dropped_at_its_end_on_the_thread_of_the_hammer() {
        struct State(usize, Arc<Mutex<Vec<usize>>>, thread::ThreadId);
        impl Drop for State {
            fn drop(&mut self) {
                assert_eq!(thread::current().id(), self.2);
                self.1.lock().unwrap().push(self.0);
            }
        }
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let prepare = |round| {
            assert_eq!(*dropped.lock().unwrap(), (0..round).collect::<Vec<_>>());
            State(round, dropped.clone(), thread::current().id())
        };
        let report = hammer(3, 5).run_each(prepare, |worker, state| Ok(worker.round() == state.0));
        assert_eq!((report.distinct(), report.rounds()), (1, 5));
        assert!(report.values().all(|has_own_state| *has_own_state));
        assert_eq!(*dropped.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_panic_in_the_preparation_ends_the_run() {
        let rounds = Arc::new(AtomicUsize::new(0));
        let count = rounds.clone();
        let prepare = |round| assert!(round < 2, "no state for round {round}");
        let run = AssertUnwindSafe(|| {
            hammer(2, 5).run_each(prepare, move |worker, ()| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(worker.number())
            })
        });
        let panic = catch_unwind(run).unwrap_err();
        assert_eq!(*panic.downcast::<String>().unwrap(), "no state for round 2");
        assert_eq!(rounds.load(Ordering::SeqCst), 4);
    }
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
            worker.reached("mark"); // is not counted again
            Ok(())
        })
    }

    #[test]
    fn a_pause_in_order_makes_each_order_certain() {
        let all = permutations(4);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 24);
        for order in &all {
            let report = pass(hammer(4, 2).pause_at("mark", Pause::in_order(order.clone()).patience(FOREVER)));
            let orders = report.orders("mark");
            assert_eq!((orders.seen(), orders.contains(order)), (1, true), "{order:?}\n{report}");
            assert_eq!(orders.to_string(), "1 of 24 orders of 4 threads");
        }
    }

    #[test]
    fn pauses_of_random_length_produce_all_orders() {
        let report = pass(hammer(3, 400).pause_at("mark", Pause::up_to(Duration::from_micros(500))));
        assert_eq!(report.orders("mark").to_string(), "6 of 6 orders of 3 threads", "{report}");
        assert!(report.to_string().contains("\n\nmark  6 of 6 orders of 3 threads"), "{report}");
        assert!(!report.to_string().contains("no worker reached it"), "{report}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_property_can_choose_the_order(order in Just(vec![0, 1, 2, 3, 4]).prop_shuffle(), slow in 0..5usize) {
            let order_of = |pause| pass(hammer(5, 1).pause_at("mark", pause));
            let report = order_of(Pause::in_order(order.clone()).patience(FOREVER));
            prop_assert!(report.orders("mark").contains(&order));
            let report = order_of(Pause::for_all().patience(FOREVER));
            prop_assert_eq!(report.orders("mark").seen(), 1);
            let report = order_of(Pause::in_order([slow, (slow + 1) % 5]).patience(FOREVER).of_worker((slow + 1) % 5));
            let orders: Vec<Vec<usize>> = permutations(5);
            let order = orders.iter().find(|order| report.orders("mark").contains(order)).unwrap();
            let place = |number| order.iter().position(|other| *other == number).unwrap();
            prop_assert!(place(slow) < place((slow + 1) % 5));
        }
    }

    #[test]
    fn the_number_of_possible_orders_saturates() {
        let report = pass(hammer(40, 1));
        assert_eq!(report.orders("mark").possible(), u128::MAX);
        assert_eq!(report.orders("mark").to_string(), "1 of 3.4e38 orders of 40 threads");
    }

    #[test]
    fn rounds_in_which_fewer_workers_reached_the_mark_are_counted_apart() {
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

    /// No worker waits for one that has ended its round, nor longer than its patience for any other.
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
            let report = without_first(pause.patience(FOREVER));
            assert!(!report.to_string().contains("patience"), "{report}");
        }
        assert!(start.elapsed() < FOREVER / 2);

        let passed = Arc::new(AtomicUsize::new(0));
        let pause = Pause::for_all().patience(Duration::from_millis(20));
        let report = hammer(2, 1).pause_at("mark", pause).run(move |worker| {
            if worker.number() == 0 {
                while passed.load(Ordering::Relaxed) == 0 {
                    thread::yield_now(); // the other passes only when its pause has run out of patience
                }
            }
            worker.reached("mark");
            passed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        assert!(report.to_string().contains("mark  pauses that ran out of patience: 1"), "{report}");
        assert!(report.orders("mark").contains(&[1, 0]), "{report}");
    }

    /// A worker pauses the first time in each round that it reaches the mark, and only for pauses at that mark that apply to
    /// it. Pauses that run out of patience are counted.
    #[test]
    fn each_pause_applies_once_a_round_to_its_worker_and_mark() {
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
                thread::yield_now(); // no pause waits for a worker that has ended its round
            }
            Ok(())
        });
        let printed = report.to_string();
        assert!(printed.contains("one  pauses that ran out of patience: 3\n"), "{printed}");
        assert!(printed.contains("two  pauses that ran out of patience: 3\n"), "{printed}");
    }

    #[test]
    fn a_worker_that_has_passed_is_not_waited_for() {
        let barrier = Arc::new(Barrier::new(2));
        let report = hammer(2, 2).pause_at("mark", Pause::in_order([0, 1]).patience(FOREVER)).run(move |worker| {
            worker.reached("mark");
            barrier.wait();
            Ok(())
        });
        assert!(!report.to_string().contains("patience"), "{report}");
    }

    #[test]
    fn pauses_that_ran_out_of_patience_are_reported_of_a_round_that_hangs() {
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
        assert!(report.to_string().contains("mark  pauses that ran out of patience: 1\n"), "{report}");
    }

    #[test]
    fn a_pause_at_a_mark_that_no_worker_reaches_is_reported() {
        let report = pass(hammer(2, 1).pause_at("misspelt", Pause::time(Duration::ZERO)));
        assert!(report.to_string().contains("misspelt  has a pause, but no worker reached it\n"), "{report}");
    }

    /// All workers wait between their check and their action, so each of them acts on a check that is out of date.
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
        let all = Pause::for_all().patience(FOREVER);
        let one_by_one = Pause::in_order([3, 2, 1, 0]).patience(FOREVER);
        let hammer = hammer(4, 20).pause_at("checked", all);
        assert_eq!(seats_taken(hammer.clone()), 80);
        assert_eq!(seats_taken(hammer.pause_at("checked", one_by_one)), 80, "all wait, then pass in this order");
    }

    #[test]
    fn marks_of_other_threads_are_not_observed() {
        let report = hammer(2, 5).run(|_| Ok(thread::spawn(|| reached("mark")).join().is_ok()));
        assert_eq!((report.distinct(), report.orders("mark").seen()), (1, 0));
    }

    /// All workers reach the mark, and one of them waits for that.
    #[test]
    fn one_worker_alone_may_wait_for_all() {
        let report = pass(hammer(3, 20).pause_at("mark", Pause::for_all().of_worker(1).patience(FOREVER)));
        assert!(!report.to_string().contains("patience") && report.percentile(100.0) < FOREVER / 2, "{report}");
    }

    #[test]
    fn a_worker_that_is_paused_when_a_round_hangs_is_reported() {
        let pause = Pause::time(FOREVER);
        let report = pass(hammer(1, 1).deadline(Duration::from_secs(1)).pause_at("mark", pause));
        assert!(report.to_string().ends_with("worker 0, round 0: hung in a pause at the mark `mark`\n"), "{report}");
    }
}

#[test]
fn the_registry_and_the_writer_slot_have_marks() {
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
fn the_timeline_shows_waits_and_holds_of_the_writer_slot() {
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
    let count = |text: &str| svg.matches(text).count();
    assert_eq!(
        (count("<circle"), count(r#"class="held""#)),
        (4, 4 + 1),
        "each commits once, and holds once; the legend\n{svg}"
    );
    assert!(count(r#"class="waited""#) > 1 && svg.contains("worker 3"), "{svg}");
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
    let at = |mark: &str| with_both.marks.iter().find(|arrival| arrival.mark == mark).unwrap().at;
    let of = |spans: &[Span], engine| spans.iter().copied().filter(|span| span.engine == engine).collect::<Vec<_>>();

    assert_eq!((alone.held.len(), of(&alone.held, second).len()), (1, 1), "{alone:?}");
    let [[held_first], [held_second]] = [first, second].map(|engine| of(&with_both.held, engine).try_into().unwrap());
    assert!(held_first.start < at("has the first") && held_second.start > at("has the first"), "{with_both:?}");
    assert!((at("has both")..at("has the second")).contains(&held_first.end), "{with_both:?}");
    assert!(held_second.end > at("has the second"), "{with_both:?}");
    let [[_], [waited]] = [first, second].map(|engine| <[Span; 1]>::try_from(of(&with_both.waited, engine)).unwrap());
    assert!(held_first.start < waited.start && waited.end < held_first.end, "it waits and holds: {with_both:?}");
    assert!(waited.end >= alone.held[0].end, "it waits for the other worker: {timeline:?}");
    let committed: Vec<_> =
        with_both.marks.iter().filter(|arrival| arrival.mark == COMMITTED).map(|arrival| arrival.engine).collect();
    assert_eq!(committed, [Some(first)]);
    assert_eq!(with_both.marks.iter().find(|arrival| arrival.mark == "has both").unwrap().engine, None);

    let rows = [("worker 0", second), ("worker 1", first), ("", second)];
    let text = timeline.to_string();
    assert_eq!(text.lines().count(), 1 + rows.len(), "{text}");
    for (line, (worker, engine)) in text.lines().skip(1).zip(rows) {
        let label = format!("{:>4} engine {engine} ", worker.trim_start_matches("worker "));
        assert!(line.starts_with(&label) && line.contains(['#', '-']), "{text}");
    }
    let svg = timeline.to_svg();
    let count = |text: &str| svg.matches(text).count();
    assert_eq!((count("<circle"), count(r#"class="held""#)), (1, 3 + 1), "one commit, three holds; the legend\n{svg}");
    for (worker, engine) in rows {
        let label = if worker.is_empty() { format!("engine {engine}") } else { format!("{worker}, engine {engine}") };
        assert!(svg.contains(&format!(">{label}<")), "{label}\n{svg}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let lane = &json["timeline"]["lanes"][1];
    let engines = |what: &str| -> Vec<u64> {
        lane[what].as_array().unwrap().iter().map(|span| span["engine"].as_u64().unwrap()).collect()
    };
    assert_eq!([engines("waited"), engines("held")], [[first, second]; 2]);
    assert_eq!(lane["held"][0]["to"].as_u64().map(Duration::from_nanos), Some(held_first.end));
}

/// Such a wait ends when the connection asked last. A slot that is never given back is held to the end.
#[test]
fn the_timeline_shows_waits_that_ended_without_the_slot() {
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
    assert!(failure.to_string().contains("taken by thread"), "the failure explains who holds the slot: {failure}");
}

/// The next wait does not include it.
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
    let at = |mark: &str| lane.marks.iter().find(|arrival| arrival.mark == mark).unwrap().at;
    let [refused, after @ ..] = &lane.waited[..] else { panic!("no wait is reported: {lane:?}") };
    assert!(refused.end - refused.start >= Duration::from_millis(5) && refused.end <= at("refused"), "{lane:?}");
    assert_eq!(after.len(), 2, "{lane:?}");
    assert!(after.iter().all(|wait| wait.start >= at("free again")), "{lane:?}");
    assert_eq!(lane.held.len(), 2, "{lane:?}");
}

#[test]
fn a_report_is_written_as_json() {
    let hammer = hammer(2, 3).seed(11).pause_at("nowhere", Pause::time(Duration::ZERO));
    let report = hammer.run(|worker| {
        worker.reached("mark");
        if worker.number() == 1 && worker.round() == 2 { Err("no".into()) } else { Ok(worker.number()) }
    });
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let expected = serde_json::json!({
        "threads": 2, "rounds": 3, "rounds_asked_for": 3, "seed": 11, "results": 6, "distinct": 3,
        "errors": 1, "panics": 0, "hung": 0, "pauses_timed_out": [], "marks_unreached": ["nowhere"],
        "values": [{ "value": "0", "times": 3 }, { "value": "1", "times": 2 }],
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

#[test]
fn a_worker_that_hangs_after_a_pause_is_not_reported_in_the_pause() {
    let release = Arc::new(AtomicBool::new(false));
    let is_released = release.clone();
    let hammer = Hammer::new().threads(1).rounds(1).deadline(Duration::from_millis(200));
    let report = hammer.pause_at("mark", Pause::up_to(Duration::from_micros(1))).run(move |worker| {
        worker.reached("mark");
        while !is_released.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Ok(())
    });
    release.store(true, Ordering::Relaxed);
    let failures: Vec<String> = report.failures().map(|(_, failure)| failure.to_string()).collect();
    assert!(failures[0].starts_with("hung after the mark `mark`"), "{failures:?}");
}
