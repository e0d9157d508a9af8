//! Strict mode: what a test has left open or undecided.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Database, Engine, Inner};
use crate::environment::Strict;
use crate::statements::{Log, conduct};
use crate::vfs::{analysis, trace};

/// The time for which a transaction may hold the writer slot.
const HELD: Duration = Duration::from_secs(1);

/// A recording of everything, for strict mode.
pub(super) struct Strictness {
    /// Whether the test fails, and not only prints what was found.
    fails: AtomicBool,
    pub(super) log: Arc<Log>,
}

impl Engine {
    /// Turns strict mode on, in which a test fails for what it leaves open or undecided. The engine is checked when its last
    /// handle is dropped, with a panic if there is any of these since this call, unless the thread is panicking already:
    ///
    /// * a unit of work, a pooled connection or another connection that had written in a transaction and was dropped without
    ///   a commit or a rollback ([`UnitOfWork::rollback`](crate::UnitOfWork::rollback)). A `Transaction` of rusqlite runs
    ///   ROLLBACK when it is dropped, so it can't be told from one that was rolled back.
    /// * a connection that is still open;
    /// * a transaction that held the writer slot for more than a second.
    ///
    /// These are only printed, because they can be meant so: several writes in a row on one connection outside of a
    /// transaction, and a write to a table that the connection has read before, both outside of a transaction.
    /// [`unwatched`](Engine::unwatched) exempts a part of a test.
    ///
    /// With `RUSQLITE_FIXTURES_STRICT=fail` in the environment, all engines are strict. With `warn`, all findings are printed,
    /// and no test fails by them. For an engine in a file, connections that are dropped or open are not known.
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
    pub fn strict(&self) {
        self.0.be_strict(Strict::Fail);
    }

    /// Returns this engine of a test, strict if the environment asks for it.
    pub(crate) fn as_strict_as_asked(self) -> Engine {
        self.0.be_strict(Strict::of_tests());
        self
    }
}

impl Inner {
    /// Begins the recording, unless there is one.
    fn be_strict(&self, mode: Strict) {
        if mode == Strict::Off {
            return;
        }
        let begin = || {
            let log = Log::new();
            trace::hear_errors();
            self.database().recorder().add(log.clone());
            Strictness { fails: AtomicBool::new(false), log }
        };
        self.strictness.get_or_init(begin).fails.fetch_or(mode == Strict::Fail, Ordering::Relaxed);
    }

    /// Ends strict mode. Returns the message of the panic for what was found, if there is one to be.
    pub(super) fn end_strict(&mut self, idle: &[u64]) -> Option<String> {
        let Strictness { fails, log } = self.strictness.take()?;
        let fails = fails.into_inner();
        let recorder = self.database().recorder();
        recorder.remove(&log);
        if thread::panicking() {
            return None;
        }
        let kept = log.kept();
        let mut found = conduct::dropped(&recorder.dropped(), &kept);
        found.extend(conduct::held_longer_than(HELD, &kept));
        if let Database::InMemory(_) = self.database() {
            let open = trace::open_connections(recorder, idle).into_iter();
            found.extend(open.map(|purpose| format!("{purpose} is still open, and no handle on the engine is left")));
        }
        let doubtful = {
            let copy = self.copy_in_memory().connect().ok();
            let tables = |sql: &str| analysis::tables_of(copy.as_ref()?, sql);
            conduct::outside_of_transactions(&kept, |sql| tables(sql).unwrap_or_default().into_iter().collect())
        };
        let name = self.database().name();
        for finding in doubtful.iter().chain(found.iter().filter(|_| !fails)) {
            eprintln!("rusqlite-fixtures: strict: {name}: {finding}");
        }
        (fails && !found.is_empty())
            .then(|| format!("strict mode: {name} is not left as it should be:\n  {}", found.join("\n  ")))
    }
}
