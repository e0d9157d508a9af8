//! Strict mode: what a test has left open or undecided.

use std::cell::LazyCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{Database, Engine, Inner};
use crate::content::origin::Purpose;
use crate::environment::Strict;
use crate::statements::{Findings, Log, counted};
use crate::sync::Recovered;
use crate::vfs::{analysis, trace};

/// The time for which a transaction may hold the writer slot if nothing else is set.
const SLOT_LIMIT: Duration = Duration::from_secs(1);

/// A recording of everything, for strict mode.
pub(super) struct StrictMode {
    /// Whether the test fails, and not only prints what was found.
    fails: AtomicBool,
    /// The time for which a transaction may hold the writer slot.
    slot_limit: Mutex<Duration>,
    pub(super) log: Arc<Log>,
    /// The number of transactions that were dropped before.
    dropped_before: usize,
}

impl Engine {
    /// Turns on strict mode, in which a test fails for what it leaves open or undecided. The engine is checked when its last
    /// handle is dropped. The test fails if there is any of these since this call:
    ///
    /// * a unit of work, a pooled connection or another connection that had changed rows (by INSERT, UPDATE or DELETE) or the
    ///   schema in a transaction, and was dropped without a commit or a rollback
    ///   ([`UnitOfWork::rollback`](crate::UnitOfWork::rollback)). Transactions of rusqlite, sqlx, sea-orm and diesel run ROLLBACK
    ///   when they are dropped, so they are not detected. A unit of work that is dropped with the last handle to its private
    ///   engine, such as that of a fixture, is not reported, because its database is discarded with it.
    /// * a connection of [`connect`](Engine::connect) that is still open;
    /// * a transaction that held the writer slot for more than a second ([`strict_slot_limit`](Engine::strict_slot_limit)).
    ///
    /// Other findings are only printed, because code may intend them: see the chapter
    /// [strict mode](crate::guide::failing_tests#strict-mode). [`unwatched`](Engine::unwatched) exempts a part of a test.
    ///
    /// `RUSQLITE_FIXTURES_STRICT=fail` in the environment makes the other engines of each test strict, too, `warn` prints their
    /// findings, and `off` turns strict mode off. For an engine in a file, open connections are not detected.
    ///
    /// ```should_panic
    /// # use rusqlite_fixtures::Engine;
    /// let engine = Engine::new();
    /// engine.strict();
    /// let work = engine.unit_of_work().unwrap();
    /// work.execute_batch("CREATE TABLE note (text)").unwrap();
    /// drop(work); // where is the commit?
    /// drop(engine);
    /// ```
    ///
    /// # Panics
    /// If the environment variable has an unknown value. Dropping the engine's last handle panics if there is any of the above,
    /// unless that thread is panicking already. If another thread drops it, only that thread panics. If the test returns an
    /// error, the panic replaces it. In a thread-local destructor, and in a closure that SQLite frees, a panic ends the program.
    pub fn strict(&self) {
        self.0.turn_on_strict(Strict::Fail);
    }

    /// Turns on [strict mode](Engine::strict), and sets how long a transaction may hold the writer slot: 1 s by default. A later
    /// call replaces the limit.
    ///
    /// # Panics
    /// As [`strict`](Engine::strict).
    pub fn strict_slot_limit(&self, limit: Duration) {
        self.strict();
        if let Some(strict_mode) = self.0.strict_mode.get() {
            *strict_mode.slot_limit.lock().recovered() = limit;
        }
    }

    /// Returns this engine of a test, strict if the environment asks for it.
    pub(crate) fn made_strict_if_asked(self) -> Engine {
        self.0.turn_on_strict(Strict::of_tests());
        self
    }
}

impl Inner {
    fn turn_on_strict(&self, mode: Strict) {
        if matches!(mode, Strict::NotSet | Strict::Off) || Strict::of_tests() == Strict::Off {
            return;
        }
        let begin = || {
            let (log, recorder) = (Log::new(), self.database().recorder());
            let dropped_before = recorder.dropped_so_far();
            self.begin_recording(&log);
            StrictMode { fails: AtomicBool::new(false), slot_limit: Mutex::new(SLOT_LIMIT), log, dropped_before }
        };
        self.strict_mode.get_or_init(begin).fails.fetch_or(mode == Strict::Fail, Ordering::Relaxed);
    }

    /// Ends strict mode. Returns a message if the test has to fail.
    pub(super) fn end_strict(&mut self) -> Option<String> {
        let strict_mode = self.strict_mode.take()?;
        if thread::panicking() {
            return None;
        }
        let fails = strict_mode.fails.load(Ordering::Relaxed);
        let Findings { failures, warnings } = self.findings(strict_mode);
        let name = self.database().name();
        for finding in warnings.iter().chain(failures.iter().filter(|_| !fails)) {
            eprintln!("rusqlite-fixtures: strict: {name}: {finding}");
        }
        (fails && !failures.is_empty()).then(|| format!("strict mode, {name}:\n  {}{REPLACES}", failures.join("\n  ")))
    }

    fn findings(&self, strict_mode: StrictMode) -> Findings {
        let (kept, recorder) = (strict_mode.log.recorded(), self.database().recorder());
        let mut findings = Findings::default();
        let dropped = recorder.dropped_after(strict_mode.dropped_before);
        let not_kept = recorder.dropped_so_far() - strict_mode.dropped_before - dropped.len();
        let copy = LazyCell::new(|| {
            let content = self.database().try_snapshot().ok()?; // the file of an engine may be gone
            // A function of the template may panic.
            let connect = || trace::exempt(|| Engine::for_reading(&content, self.template.as_ref()).connect().ok());
            catch_unwind(AssertUnwindSafe(connect)).ok().flatten()
        });
        let tables_of = |sql: &str| analysis::tables_of(copy.as_ref()?, sql);
        findings.add_dropped(&dropped, &kept, tables_of);
        findings.add_slow(strict_mode.slot_limit.into_inner().recovered(), &kept, &dropped);
        if not_kept > 0 {
            let older = counted(not_kept as u64, "older transaction");
            findings
                .warnings
                .push(format!("not checked: {older} that code has dropped, because only the newest are kept"));
        }
        if let Database::InMemory(_) = self.database() {
            for (purpose, by) in trace::open_connections(recorder) {
                let finding =
                    format!("{by} is still open after the last handle to the engine was dropped: drop it first");
                // A pool may be closing it on another thread, or in a task that the runtime drops.
                if purpose == Purpose::Uri { findings.warnings.push(finding) } else { findings.failures.push(finding) }
            }
        }
        findings.add_outside_of_transactions(&kept, |sql| tables_of(sql).unwrap_or_default());
        let missed = kept.missed.iter().map(|missed| format!("not all statements are checked: {missed}"));
        findings.warnings.extend(missed);
        if kept.discarded > 0 {
            let older = counted(kept.discarded, "older statement");
            findings.warnings.push(format!("not checked: {older}, because only the newest are kept"));
        }
        findings
    }
}

/// What follows the findings in the panic's message.
const REPLACES: &str =
    "\n(If the test returns an error, this panic replaces it. RUSQLITE_FIXTURES_STRICT=off shows the error.)";

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of a template may panic in it.
    #[test]
    fn all_recordings_end_if_a_check_panics() {
        let engine = Engine::new();
        let Database::InMemory(mount) = engine.0.database() else { return };
        let mount = mount.clone();
        engine.watch(|_, _, _| panic!("the check fails"));
        engine.strict();
        assert!(mount.recorder.is_on());
        assert!(catch_unwind(AssertUnwindSafe(|| drop(engine))).is_err());
        assert!(!mount.recorder.is_on());
    }
}
