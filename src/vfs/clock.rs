//! Clocks of engines, by which SQL asks for the time (`sqlite3_vfs`, xCurrentTimeInt64).
//!
//! SQLite asks the VFS of the connection's main database, and does not say which connection asks. So an engine with a
//! clock has a VFS for itself, in which only the time differs. SQLite keeps a pointer to it as long as a connection is
//! open. So it is never freed, and is reused for another engine when no connection of this one is left. (SQLite calls
//! xCurrentTime only if a VFS has no xCurrentTimeInt64.)

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_int};
use std::mem::offset_of;
use std::panic::RefUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use rusqlite::ffi::{self, sqlite3_int64, sqlite3_vfs};

use super::{NAME, default_vfs};
use crate::sync::Recovered;

/// A time between the years 0000 and 9999, in milliseconds from 1970 on, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(i64);

impl Time {
    const MIN: Time = Time(-62_167_219_200_000);
    const MAX: Time = Time(253_402_300_799_999);

    pub(crate) fn in_milliseconds(milliseconds: i128) -> Result<Time, &'static str> {
        let time = i64::try_from(milliseconds).map(Time).ok().filter(|time| (Time::MIN..=Time::MAX).contains(time));
        time.ok_or("SQLite has the years 0000 to 9999")
    }

    /// Parses a time as RFC 3339 has it, or a date alone, for its midnight. Without an offset the time is UTC.
    pub(crate) fn parse(text: &str) -> Result<Time, &'static str> {
        const FORM: &str = "it is no time of the years 0000 to 9999; write it like 2026-01-31T12:00:00Z";
        let (date, time) = (text.get(..10).ok_or(FORM)?, text.get(10..).unwrap_or_default());
        let is_date = date.bytes().zip(*b"dddd-dd-dd").all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            _ => byte == form,
        });
        if !is_date || time.len() == 1 || !(time.is_empty() || time.starts_with(['T', 't', ' '])) {
            return Err(FORM);
        }
        let time = time.to_ascii_uppercase();
        // SQLite takes the 31st of each month. Its unixepoch has fractions of a second.
        let sql = "SELECT CAST(round(1000 * unixepoch(?1 || ?2, 'subsec')) AS INTEGER) WHERE date(?1) = ?1";
        let milliseconds = Connection::open_in_memory()
            .and_then(|connection| connection.query_row(sql, [date, &time], |row| row.get::<_, Option<i64>>(0)));
        Time::in_milliseconds(milliseconds.ok().flatten().ok_or(FORM)?.into())
    }

    /// Returns the time in SQLite's unit: milliseconds of the Julian day.
    fn to_julian(self) -> sqlite3_int64 {
        self.0 + 210_866_760_000_000
    }
}

impl TryFrom<SystemTime> for Time {
    type Error = &'static str;

    fn try_from(time: SystemTime) -> Result<Time, &'static str> {
        let in_milliseconds = |since: Duration| since.as_millis() as i128; // below 2 to the power of 74
        Time::in_milliseconds(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => in_milliseconds(since),
            Err(before) => -in_milliseconds(before.duration() + Duration::from_nanos(999_999)),
        })
    }
}

impl From<Time> for SystemTime {
    fn from(Time(milliseconds): Time) -> SystemTime {
        let since = Duration::from_millis(milliseconds.unsigned_abs());
        if milliseconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
    }
}

/// The clock of an engine. Its VFS serves another engine when this is dropped.
#[derive(Debug)]
pub(crate) struct Clock(&'static TimedVfs);

/// A VFS with its time.
#[derive(Debug)]
#[repr(C)]
struct TimedVfs {
    /// SQLite links it into its list.
    vfs: UnsafeCell<sqlite3_vfs>,
    name: CString,
    /// Milliseconds from 1970 on, or `SYSTEM`.
    time: AtomicI64,
}

// SAFETY: only SQLite changes the VFS, under a lock of its own; the rest is Sync.
unsafe impl Sync for TimedVfs {}

impl RefUnwindSafe for TimedVfs {}

/// The time of the system.
const SYSTEM: i64 = i64::MIN;

/// The VFSs that no engine uses.
static FREE: Mutex<Vec<&'static TimedVfs>> = Mutex::new(Vec::new());

impl Clock {
    pub(crate) fn at(time: Option<Time>) -> Clock {
        let free = FREE.lock().recovered().pop();
        let clock = Clock(free.unwrap_or_else(register));
        clock.set(time);
        clock
    }

    /// Stops the clock at this time. `None` lets it show the system's time.
    pub(crate) fn set(&self, time: Option<Time>) {
        self.0.time.store(time.map_or(SYSTEM, |Time(milliseconds)| milliseconds), Ordering::Release);
    }

    /// Returns the time at which it stands. `None` is the system's time.
    pub(crate) fn time(&self) -> Option<Time> {
        Some(self.0.time.load(Ordering::Acquire)).filter(|time| *time != SYSTEM).map(Time)
    }

    pub(super) fn vfs_name(&self) -> &str {
        self.0.name.to_str().expect("the name is ASCII")
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        FREE.lock().recovered().push(self.0);
    }
}

fn register() -> &'static TimedVfs {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = NAME.to_str().map(|name| format!("{name}-clock-{number}")).expect("the version of a package is ASCII");
    let name = CString::new(name).expect("it has no NUL");
    let vfs = sqlite3_vfs {
        zName: name.as_ptr(), // the name's bytes stay in their place when it is moved
        xCurrentTimeInt64: Some(current_time_int64),
        ..super::new_vfs()
    };
    let timed: &TimedVfs = Box::leak(Box::new(TimedVfs { vfs: vfs.into(), name, time: AtomicI64::new(SYSTEM) }));
    // SAFETY: the structure is complete, and lives and stays in its place for ever, as sqlite3_vfs_register asks.
    let code = unsafe { ffi::sqlite3_vfs_register(timed.vfs.get(), 0) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite did not register the VFS of a clock");
    timed
}

/// Returns the time of the VFS's clock.
///
/// # Safety
/// `vfs` is that of a `TimedVfs`.
unsafe fn time_of(vfs: *mut sqlite3_vfs) -> Option<Time> {
    const { assert!(offset_of!(TimedVfs, vfs) == 0) };
    // SAFETY: as the caller promises; the VFS is its first field, and it is never freed.
    let time = unsafe { &(*vfs.cast::<TimedVfs>()).time }.load(Ordering::Acquire);
    (time != SYSTEM).then_some(Time(time))
}

unsafe extern "C" fn current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls the method of a `TimedVfs` with that, and with its own argument.
    unsafe { answer(time_of(vfs), vfs, out) }
}

/// Answers xCurrentTimeInt64 with this time, or with the system's.
///
/// # Safety
/// The others are the method's arguments.
pub(super) unsafe fn answer(time: Option<Time>, vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    let Some(time) = time else {
        // SAFETY: as the caller promises.
        return unsafe { default_vfs::current_time_int64(vfs, out) };
    };
    // SAFETY: the method has a number to write its answer to.
    unsafe { *out = time.to_julian() };
    ffi::SQLITE_OK
}

/// Returns whether this is the name of a VFS of this crate.
pub(super) fn is_vfs_name(name: &CStr) -> bool {
    let rest = name.to_bytes().strip_prefix(NAME.to_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-clock-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests may take a VFS meanwhile, and give it back.
    #[test]
    fn the_vfs_of_a_clock_serves_the_next_one() {
        crate::vfs::register();
        let names: std::collections::BTreeSet<String> =
            (0..50).map(|_| Clock::at(None).vfs_name().to_owned()).collect();
        assert!(names.len() < 50, "{names:?}");
    }

    #[test]
    fn times_are_parsed() {
        for (text, milliseconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-02", 86_400_000),
            ("2026-01-31T12:00:00Z", 1_769_860_800_000),
            ("2026-01-31t12:00:00.250z", 1_769_860_800_250),
            ("2026-01-31 12:00", 1_769_860_800_000),
            ("2026-01-31T14:00:00+02:00", 1_769_860_800_000),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
            ("0000-01-01T00:00:00Z", Time::MIN.0),
            ("9999-12-31T23:59:59.999Z", Time::MAX.0),
        ] {
            assert_eq!(Time::parse(text), Ok(Time(milliseconds)), "{text}");
        }
        for text in [
            "",
            "now",
            "12:00",
            "2460000.5",
            "2026",
            "2026-01-31T",
            "2026-1-31",
            "2026-02-30",
            "2023-02-29T00:00:00Z",
            "2026-01-31T25:00:00Z",
            "2026-01-31T12:00:00 Europe/Berlin",
            "2026-01-31x12:00",
            "2026-13-01",
            "9999-12-31T23:59:59-01:00",
            "äöü-01-01T00:00",
        ] {
            assert!(Time::parse(text).is_err_and(|flaw| flaw.starts_with("it is no time")), "{text}");
        }
        let before = Time::parse("0000-01-01T00:00:00+01:00");
        assert_eq!(before, Err("SQLite has the years 0000 to 9999"));
    }

    #[test]
    fn times_of_the_system_are_converted_and_back() {
        let system = |nanoseconds: i64| match nanoseconds {
            0.. => UNIX_EPOCH + Duration::from_nanos(nanoseconds as u64),
            _ => UNIX_EPOCH - Duration::from_nanos(nanoseconds.unsigned_abs()),
        };
        for (nanoseconds, milliseconds) in
            [(0, 0), (999_999, 0), (1_000_000, 1), (-1, -1), (-1_000_000, -1), (-1_000_001, -2)]
        {
            assert_eq!(Time::try_from(system(nanoseconds)), Ok(Time(milliseconds)), "{nanoseconds}");
        }
        for milliseconds in [Time::MIN.0, -1, 0, 1, Time::MAX.0] {
            assert_eq!(Time::try_from(SystemTime::from(Time(milliseconds))), Ok(Time(milliseconds)));
        }
        for milliseconds in [Time::MIN.0 - 1, Time::MAX.0 + 1] {
            assert!(Time::in_milliseconds(milliseconds.into()).is_err());
        }
        assert!(Time::in_milliseconds(i128::MAX).is_err());
    }

    #[test]
    fn clocks_at_the_same_time_have_a_vfs_each() {
        crate::vfs::register();
        let clocks = [(); 3].map(|()| Clock::at(None));
        let names: std::collections::BTreeSet<String> =
            clocks.iter().map(|clock| clock.vfs_name().to_owned()).collect();
        assert_eq!(names.len(), 3, "each has its own");
        assert!(names.iter().all(|name| is_vfs_name(&CString::new(&**name).unwrap())));
        assert!(is_vfs_name(NAME) && !is_vfs_name(c"unix") && !is_vfs_name(c"rusqlite-fixtures"));
        let time = Time::parse("2026-01-31");
        let clock = Clock::at(time.ok());
        assert_eq!(clock.time(), time.ok());
        clock.set(None);
        assert_eq!(clock.time(), None);
    }
}
