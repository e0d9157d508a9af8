use std::panic::Location;
use std::path::Path;

use super::{Database, Engine};
use crate::error::{Error, Result};
use crate::vfs::{self, Refused, Scope};

/// A guard: an [`Engine`] stands in for a file until this is dropped ([`Engine::stand_in_for`]).
#[derive(Debug)]
#[must_use = "the engine stands in for the file only as long as this exists"]
pub struct StandIn {
    _registered: vfs::StandIn,
    /// Declared after the registration, which has its name.
    engine: Engine,
}

impl StandIn {
    /// Returns the engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Engine {
    /// Stands in for the database file at `path`, on this thread, as long as the result exists: code that opens the file
    /// gets this engine. The file does not have to exist, and is neither read nor created.
    ///
    /// This is for code that opens a path of its own: by rusqlite, diesel or any other library on the same SQLite, by a
    /// relative or absolute path or a `file:` URI, and by `ATTACH`. The worker threads of a
    /// [`Hammer`](crate::hammer::Hammer) get the engine too. Other threads open the file, so tests that run at the same
    /// time can each have an engine for the same path. Use [`stand_in_for_all`](Engine::stand_in_for_all) for libraries
    /// that open connections on threads of their own: sqlx, sea-orm, r2d2 and others.
    ///
    /// ```
    /// use rusqlite_fixtures::{Template, rusqlite};
    ///
    /// static APP: Template = Template::sql("CREATE TABLE note (text TEXT)");
    ///
    /// fn add_note(text: &str) -> rusqlite::Result<usize> {
    ///     let connection = rusqlite::Connection::open("data/app.db")?; // the code under test
    ///     connection.execute("INSERT INTO note VALUES (?1)", [text])
    /// }
    ///
    /// let engine = APP.new_engine()?;
    /// let _stand_in = engine.stand_in_for("data/app.db")?;
    /// assert_eq!(add_note("rain"), Ok(1));
    /// assert!(!std::fs::exists("data/app.db").unwrap());
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    ///
    /// A connection that is open when the result is dropped stays on the engine.
    ///
    /// The engine can't stand in for code that looks at the file itself, that names another VFS (`?vfs=unix`), or that is
    /// in another process; nor for `ATTACH` on a connection that was opened while no engine stood in for any file. The
    /// path of such a connection (`sqlite3_db_filename`, `PRAGMA database_list`) is the engine's name.
    ///
    /// # Errors
    /// [`NoStandIn`](crate::ErrorKind::NoStandIn) if the path can't be the name of a database file, if an engine stands in
    /// for it on this thread already, or if the program has made another VFS SQLite's default one.
    #[track_caller]
    pub fn stand_in_for(&self, path: impl AsRef<Path>) -> Result<StandIn> {
        self.stand_in(path.as_ref(), Scope::Thread, Location::caller())
    }

    /// Stands in for the database file at `path` like [`stand_in_for`](Engine::stand_in_for), on all threads of the
    /// process. A stand-in for one thread takes precedence on that thread.
    ///
    /// # Errors
    /// As [`stand_in_for`](Engine::stand_in_for). Only one engine can stand in for a path in the whole process. So tests
    /// that do this for the same path can't run at the same time: use serial_test's `#[serial]`, or cargo-nextest, which
    /// runs each test in a process.
    #[track_caller]
    pub fn stand_in_for_all(&self, path: impl AsRef<Path>) -> Result<StandIn> {
        self.stand_in(path.as_ref(), Scope::Process, Location::caller())
    }

    fn stand_in(&self, path: &Path, scope: Scope, at: &'static Location<'static>) -> Result<StandIn> {
        let target = match self.database() {
            Database::InMemory(mount) => (&**mount).into(),
            Database::OnFile(database) => (&*database.file).into(),
        };
        let registered = vfs::StandIn::new(target, path, scope, at);
        let registered = registered.map_err(|refused| no_stand_in(&self.name(), path, scope, &refused))?;
        Ok(StandIn { _registered: registered, engine: self.clone() })
    }
}

fn no_stand_in(engine: &str, path: &Path, scope: Scope, refused: &Refused) -> Error {
    let where_ = match scope {
        Scope::Thread => "on this thread",
        Scope::Process => "in this process",
    };
    let flaw = match refused {
        Refused::NoFile(reason) => (*reason).to_owned(),
        Refused::Taken(by) => format!(
            "{} stands in for it {where_} already, by thread `{}` at {}; drop that one first, or run the two tests one \
             after the other",
            by.engine,
            by.thread.name().unwrap_or("without a name"),
            by.at
        ),
        Refused::OtherDefault(name) => format!(
            "the program has made the VFS `{name}` SQLite's default one, whose files this crate does not know; do that \
             before the first engine is created"
        ),
    };
    Error::no_stand_in(engine, path, &flaw)
}
