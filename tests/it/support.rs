//! Functions that several tests use.

pub(crate) mod browser;

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use std::{io, thread};

use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::{self, Connection, ffi};

/// Evaluates an expression; returns its value and its line.
macro_rules! here {
    ($given:expr) => {
        ($given, line!())
    };
}

pub(crate) use here;

/// Returns a URL that no other test uses.
pub(crate) fn unique_url(label: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("file:{label}-{}?mode=memory&cache=shared", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns an engine with a table `entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)`.
pub(crate) fn engine_with_entries(entries: &[(i64, i64)]) -> Engine {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)").unwrap();
    for entry in entries {
        connection.execute("INSERT INTO entry VALUES (?1, ?2)", *entry).unwrap();
    }
    engine
}

pub(crate) fn entries(connection: &Connection) -> Vec<(i64, i64)> {
    let mut statement = connection.prepare_cached("SELECT key, value FROM entry ORDER BY key").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// Returns the number that a query selects.
pub(crate) fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Returns the text that a query selects.
pub(crate) fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

pub(crate) fn assert_integrity(connection: &Connection) {
    assert_eq!(text(connection, "PRAGMA integrity_check"), "ok");
}

/// A barrier with a timeout: a thread that never arrives does not block the others for long.
pub(crate) struct Rendezvous {
    expected: usize,
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Rendezvous {
    pub(crate) const fn of(expected: usize) -> Rendezvous {
        Rendezvous { expected, arrived: Mutex::new(0), changed: Condvar::new() }
    }

    /// Waits until all threads have arrived, or for `patience`; returns whether all have arrived.
    pub(crate) fn meet(&self, patience: Duration) -> bool {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        self.changed.notify_all();
        let missing = |arrived: &mut usize| *arrived < self.expected;
        !self.changed.wait_timeout_while(arrived, patience, missing).unwrap().1.timed_out()
    }
}

/// Runs `work` on a thread of this name and returns its result.
pub(crate) fn in_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

/// Makes a copy of the bytes the connection's main database, in place of the engine. rusqlite has a safe function for it
/// since version 0.34.
#[allow(unsafe_code, reason = "calls SQLite's C interface")]
pub(crate) fn deserialize(connection: &mut Connection, bytes: &[u8]) -> rusqlite::Result<()> {
    let len = i64::try_from(bytes.len()).unwrap();
    let flags = (ffi::SQLITE_DESERIALIZE_FREEONCLOSE | ffi::SQLITE_DESERIALIZE_RESIZEABLE) as std::ffi::c_uint;
    // SAFETY: SQLite takes over the buffer, which it has allocated for that many bytes.
    let code = unsafe {
        let buffer = ffi::sqlite3_malloc64(1 + bytes.len() as u64).cast::<u8>();
        assert!(!buffer.is_null(), "out of memory");
        buffer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        ffi::sqlite3_deserialize(connection.handle(), c"main".as_ptr(), buffer, len, len, flags)
    };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)) }
}

/// Sets a function that SQLite calls for each statement.
pub(crate) fn trace(connection: &mut Connection) {
    #[cfg(oldest_rusqlite)]
    connection.trace(Some(|_| ()));
    #[cfg(not(oldest_rusqlite))]
    {
        fn on_statement(_: rusqlite::trace::TraceEvent<'_>) {}
        let _ = connection.trace_v2(rusqlite::trace::TraceEventCodes::SQLITE_TRACE_STMT, Some(on_statement));
    }
}

/// Runs a copy of the program. A process that another test has just forked has the copy open for writing, until it
/// executes another program.
pub(crate) fn output_of_copy(command: &mut Command) -> Output {
    loop {
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
            output => return output.unwrap(),
        }
    }
}
