use std::fmt;
use std::time::{Duration, SystemTime};

use super::Engine;
use crate::error::{Error, Result};
use crate::vfs::{self, Time};

/// The clock of an [`Engine`] ([`Engine::clock`]): the time that SQL asks for.
pub struct Clock<'a> {
    engine: &'a Engine,
}

impl Engine {
    /// Returns the clock, by which `CURRENT_TIMESTAMP`, `datetime('now')` and all other functions of SQL get the time.
    /// The engine has one if its template has a [`clock`](crate::Template::clock). Without one, every method of the result
    /// is an error.
    ///
    /// The clock is the same for all connections to the engine, of any library and on any thread. It stands still. A
    /// statement sees one time from its beginning to its end, as SQLite has it.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use rusqlite_fixtures::Template;
    ///
    /// static LOG: Template =
    ///     Template::sql("CREATE TABLE log (at TEXT DEFAULT CURRENT_TIMESTAMP, text TEXT)")
    ///         .clock("2026-01-31T12:00:00Z");
    ///
    /// let engine = LOG.new_engine()?;
    /// engine.clock().advance(Duration::from_secs(90))?;
    /// let connection = engine.pooled_connection()?;
    /// connection.execute("INSERT INTO log (text) VALUES ('rain')", [])?;
    /// let at = connection.query_row("SELECT at FROM log", [], |row| row.get(0));
    /// assert_eq!(at, Ok("2026-01-31 12:01:30".to_owned()));
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    pub fn clock(&self) -> Clock<'_> {
        Clock { engine: self }
    }
}

impl Clock<'_> {
    /// Stops the clock at this time: a `SystemTime`, a `Timestamp` of jiff, a `DateTime` of chrono. The part below a
    /// millisecond is cut off.
    ///
    /// # Errors
    /// [`NoTime`](crate::ErrorKind::NoTime) if the engine has no clock, or if the year is not 0000 to 9999.
    pub fn set(&self, time: impl Into<SystemTime>) -> Result<()> {
        self.stop(Time::try_from(time.into()), &"that time")
    }

    /// Stops the clock at this time, as RFC 3339 writes it: `2026-01-31T12:00:00Z`. Without an offset the time is UTC. A
    /// date alone is its midnight.
    ///
    /// # Errors
    /// [`NoTime`](crate::ErrorKind::NoTime) if the engine has no clock, or if the text is no time.
    pub fn set_text(&self, time: &str) -> Result<()> {
        self.stop(Time::parse(time), &format_args!("{time:?}"))
    }

    /// Moves the clock forward, and stops it there. If it shows the system's time, it moves from now.
    ///
    /// # Errors
    /// [`NoTime`](crate::ErrorKind::NoTime) if the engine has no clock, or if the time would be after the year 9999.
    pub fn advance(&self, by: Duration) -> Result<()> {
        let later = self.now()?.checked_add(by).ok_or("it is after the year 9999").and_then(Time::try_from);
        self.stop(later, &format_args!("{by:?} later"))
    }

    /// Lets the clock show the system's time, which does not stand still.
    ///
    /// # Errors
    /// [`NoTime`](crate::ErrorKind::NoTime) if the engine has no clock.
    pub fn system(&self) -> Result<()> {
        self.of_engine()?.set(None);
        Ok(())
    }

    /// Returns the time that it shows.
    ///
    /// # Errors
    /// [`NoTime`](crate::ErrorKind::NoTime) if the engine has no clock.
    pub fn now(&self) -> Result<SystemTime> {
        Ok(self.of_engine()?.time().map_or_else(SystemTime::now, SystemTime::from))
    }

    fn stop(&self, time: Result<Time, &'static str>, described: &dyn fmt::Display) -> Result<()> {
        let clock = self.of_engine()?;
        clock.set(Some(time.map_err(|flaw| Error::no_time(&self.engine.name(), described, flaw))?));
        Ok(())
    }

    fn of_engine(&self) -> Result<&vfs::Clock> {
        self.engine.vfs_clock().ok_or_else(|| Error::no_clock(&self.engine.name()))
    }
}

impl fmt::Debug for Clock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.of_engine().ok().map(|clock| clock.time().map(SystemTime::from));
        f.debug_struct("Clock").field("engine", &self.engine.name()).field("stands_at", &now).finish()
    }
}
