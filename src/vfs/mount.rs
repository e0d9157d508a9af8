//! The file names by which SQLite finds engines.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use super::clock::{Clock, Time};
use super::observation::Observation;
use super::random::Random;
use crate::content::Snapshot;
use crate::content::store::Store;
use crate::statements::Recorder;
use crate::sync::Recovered;

/// The start of the file names of engines; the engine's number follows. No other file is likely to have such a name,
/// and every other name goes to SQLite's default VFS.
const PREFIX: &str = "/rusqlite-fixtures/engine-";

/// A store with a file name. It lives as long as an engine's handle or a connection.
pub(crate) struct Mount {
    pub(crate) store: Store,
    name: Name,
    /// The time that SQL gets, if it is not the system's.
    pub(crate) clock: Option<Arc<Clock>>,
    /// The random numbers that SQL gets, if they are not SQLite's.
    pub(crate) random: Option<Arc<Random>>,
    pub(crate) recorder: Arc<Recorder>,
    /// The engine's connections, if they are observed.
    observation: OnceLock<Observation>,
}

/// What SQL gets from outside of the database, for each new engine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Surroundings {
    /// The time at which the clock stands. `None`: there is no clock, and SQL gets the system's time.
    pub(crate) clock: Option<Time>,
    /// The seed of the random numbers. `None`: SQL gets SQLite's.
    pub(crate) random_seed: Option<u64>,
}

impl Surroundings {
    pub(super) fn new_clock(&self) -> Option<Arc<Clock>> {
        self.clock.map(|time| Arc::new(Clock::at(Some(time))))
    }

    pub(super) fn new_random(&self) -> Option<Arc<Random>> {
        self.random_seed.map(|seed| Arc::new(Random::with_seed(seed)))
    }
}

/// The name of an engine in messages.
pub(crate) enum Name {
    Given(String),
    /// By its number.
    Numbered,
    /// By its number and its template.
    OfTemplate(Arc<str>),
}

impl Name {
    /// Returns the name of the engine with this number.
    pub(super) fn of(&self, number: u64) -> String {
        match self {
            Name::Given(name) => name.clone(),
            Name::Numbered => format!("engine {number}"),
            Name::OfTemplate(template) => format!("engine {number} of {template}"),
        }
    }
}

/// The engines that exist, by number. Keeps none of them alive.
static MOUNTS: Mutex<BTreeMap<u64, Weak<Mount>>> = Mutex::new(BTreeMap::new());

/// The number of the next engine.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Returns the name by which SQLite opens the engine with this number.
pub(super) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number}")
}

/// Returns a number that no other engine of the process has.
pub(super) fn next_number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The engines that were reported as gone.
static REPORTED_GONE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

impl Mount {
    #[cfg(test)]
    pub(crate) fn new(snapshot: Snapshot, name: Name) -> Arc<Mount> {
        Mount::in_surroundings(snapshot, name, Surroundings::default())
    }

    /// Creates a store in these surroundings, and registers its file name.
    pub(crate) fn in_surroundings(snapshot: Snapshot, name: Name, surroundings: Surroundings) -> Arc<Mount> {
        if surroundings.random_seed.is_some() {
            super::auto_extension::register();
        }
        let mount = Arc::new(Mount {
            store: Store::new(snapshot),
            name,
            clock: surroundings.new_clock(),
            random: surroundings.new_random(),
            recorder: Recorder::new(),
            observation: OnceLock::new(),
        });
        mount.register_name();
        mount
    }

    /// Sets the clock and the random numbers to those at the beginning.
    pub(crate) fn restart(&self, surroundings: Surroundings) {
        if let Some(clock) = &self.clock {
            clock.set(surroundings.clock);
        }
        if let Some((random, seed)) = self.random.as_ref().zip(surroundings.random_seed) {
            random.restart(seed);
        }
    }

    /// Gives the store a file name that no other store has had, by which it can be opened.
    pub(crate) fn register_name(self: &Arc<Mount>) {
        let id = next_number();
        self.store.set_number(id);
        mounts().insert(id, Arc::downgrade(self));
    }

    /// Removes the file name if there are exactly `references` references. Then no other code has the store, and no
    /// connection can open it. Returns whether the name was removed.
    pub(crate) fn unregister_name(self: &Arc<Mount>, references: usize) -> bool {
        let mut mounts = mounts(); // under which `find` makes new references
        let is_alone = Arc::strong_count(self) == references;
        if is_alone {
            mounts.remove(&self.id());
        }
        is_alone
    }

    /// Begins the observation of the connections that are opened from now on.
    pub(super) fn begin_observation(&self) {
        self.observation.get_or_init(Observation::default);
    }

    pub(crate) fn observation(&self) -> Option<&Observation> {
        self.observation.get()
    }

    /// Returns the engine's name for messages.
    pub(crate) fn name(&self) -> String {
        self.name.of(self.id())
    }

    /// Returns the name of the VFS by which its connections are opened.
    pub(super) fn vfs_name(&self) -> &str {
        self.clock.as_ref().map_or(super::vfs_name(), |clock| clock.vfs_name())
    }

    /// Returns the name of the database file, as SQLite knows it.
    pub(super) fn file_name(&self) -> String {
        file_name(self.id())
    }

    /// Returns the number, which is never used twice in a process: the name of a dropped engine never refers to another
    /// engine. The number changes when the store begins to serve another engine.
    pub(crate) fn id(&self) -> u64 {
        self.store.number()
    }

    pub(super) fn find(id: u64) -> Option<Arc<Mount>> {
        mounts().get(&id)?.upgrade()
    }
}

/// Prints once that the engine with this number is gone, if there was one. SQLite says only "unable to open database
/// file", and some connection pools retry for half a minute before they report that.
pub(super) fn report_gone(id: u64) {
    if is_news(&mut REPORTED_GONE.lock().recovered(), id, NEXT.load(Ordering::Relaxed)) {
        eprintln!(
            "rusqlite-fixtures: can't connect to engine {id}: it no longer exists; keep an Engine as long as code connects to it"
        );
    }
}

/// Prints once that no engine has this file name, though the URI names this crate's VFS.
pub(super) fn report_no_engine(name: &CStr) {
    static REPORTED: Mutex<BTreeSet<CString>> = Mutex::new(BTreeSet::new());
    let mut reported = REPORTED.lock().recovered();
    if reported.len() < 100 && reported.insert(name.to_owned()) {
        eprintln!(
            "rusqlite-fixtures: can't connect to {name:?}: no engine has this file name (any more); for code that takes a URL (sqlx, \
             sea-orm), use Engine::sqlite_url, and for code that takes a file name, Engine::uri"
        );
    }
}

/// Notes that an engine is gone. Returns whether that is worth a message: not if it was reported before, or if no engine
/// before `next` has had this number.
fn is_news(reported: &mut BTreeSet<u64>, id: u64, next: u64) -> bool {
    (1..next).contains(&id) && reported.insert(id)
}

impl Drop for Mount {
    fn drop(&mut self) {
        mounts().remove(&self.id());
    }
}

fn mounts() -> MutexGuard<'static, BTreeMap<u64, Weak<Mount>>> {
    MOUNTS.lock().recovered()
}

/// The super-journals that exist, with their content when they were closed. SQLite names them after the main database,
/// so they have an engine's name. (After a crash, the attached files have no super-journal. Each file is intact, but
/// they may be from different transactions.)
static SUPER_JOURNALS: Mutex<BTreeMap<CString, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// Creates an empty super-journal. Returns `false` if one of this name exists.
pub(super) fn create_super_journal(name: &CStr) -> bool {
    match super_journals().entry(name.to_owned()) {
        Entry::Vacant(place) => {
            place.insert(Vec::new());
            true
        }
        Entry::Occupied(_) => false,
    }
}

/// Stores what was written to a super-journal, unless it was deleted.
pub(super) fn keep_super_journal(name: &CStr, content: Vec<u8>) {
    if let Some(kept) = super_journals().get_mut(name) {
        *kept = content;
    }
}

pub(super) fn super_journal(name: &CStr) -> Option<Vec<u8>> {
    super_journals().get(name).cloned()
}

pub(super) fn remove_super_journal(name: &CStr) {
    super_journals().remove(name);
}

pub(super) fn is_super_journal(name: &CStr) -> bool {
    super_journals().contains_key(name)
}

fn super_journals() -> MutexGuard<'static, BTreeMap<CString, Vec<u8>>> {
    SUPER_JOURNALS.lock().recovered()
}

/// The meaning of a file name to the VFS.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileName {
    /// The database file of the engine with this number, which may exist or not.
    Database(u64),
    /// The super-journal of a commit to several databases, with an engine as the main one.
    SuperJournal,
    /// Any other file beside an engine's, for example its journal.
    Beside,
    /// A file of the file system.
    Other,
}

impl FileName {
    /// Parses a file name. For a journal's name, which SQLite asks for in each transaction, it allocates nothing and
    /// takes no lock.
    pub(super) fn parse(name: &[u8]) -> FileName {
        let Some(rest) = name.strip_prefix(PREFIX.as_bytes()) else { return FileName::Other };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, suffix) = rest.split_at(digits);
        if suffix.starts_with(b"-mj") {
            return FileName::SuperJournal;
        }
        if !suffix.is_empty() {
            return FileName::Beside;
        }
        let number: Option<u64> = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        // Each engine has exactly one name. Otherwise SQLite's shared cache would take one engine for two databases.
        number.filter(|id| id.to_string().as_bytes() == rest).map_or(FileName::Beside, FileName::Database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::faults::Fault;

    #[test]
    fn file_names_are_distinguished() {
        let parse = |name: &str| FileName::parse(format!("{PREFIX}{name}").as_bytes());
        assert_eq!(parse("17"), FileName::Database(17));
        assert_eq!(parse("17-mj0A1B2C9DE"), FileName::SuperJournal);
        for name in ["17-journal", "17-wal", "", "017", "+17", "17x", "99999999999999999999999"] {
            assert_eq!(parse(name), FileName::Beside, "{name}");
        }
        assert_eq!(FileName::parse(b"/tmp/file.sqlite3"), FileName::Other);
    }

    #[test]
    fn an_engine_is_reported_as_gone_once_it_has_existed() {
        let reported = &mut BTreeSet::new();
        let is_news = |reported: &mut _, next| super::is_news(reported, 5, next);
        assert!(!is_news(reported, 5), "its number is the next one");
        assert!(is_news(reported, 6));
        assert!(!is_news(reported, 7), "it was reported");
        assert!(!super::is_news(reported, 0, 7), "numbers begin at 1");
    }

    /// SQLite deletes the super-journal when the last of the files is rolled back. It decides this by the content of
    /// the super-journal.
    #[test]
    fn no_super_journal_is_left_when_attached_files_are_rolled_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut rolled_back = 0;
        for call in 1..=30 {
            let (main, other) = (Engine::new(), Engine::new());
            let connection = main.connect().unwrap();
            for name in ["one", "two"] {
                let path = folder.path().join(format!("{name}{call}"));
                connection.execute(&format!("ATTACH ?1 AS {name}"), [path.to_str().unwrap()]).unwrap();
            }
            connection.execute("ATTACH ?1 AS three", [other.uri()]).unwrap();
            let change = ["one", "two", "three"].map(|name| format!("CREATE TABLE {name}.t (a);")).concat();
            connection.execute_batch(&format!("BEGIN; {change}")).unwrap();
            let plan = Fault::Io.at(call);
            rolled_back += u32::from(plan.during(|| connection.execute_batch("COMMIT")).is_err());
            drop(connection);
            let path = main.uri().trim_start_matches("file:").split_once('?').unwrap().0;
            let is_left = |name: &CString| name.to_str().is_ok_and(|name| name.starts_with(&format!("{path}-mj")));
            assert!(!super_journals().keys().any(is_left), "{plan:?}");
        }
        assert!((4..30).contains(&rolled_back), "{rolled_back} of 30");
    }

    #[test]
    fn a_dropped_store_leaves_no_name_behind() {
        let mount = Mount::new(Snapshot::empty(), Name::Numbered);
        let id = mount.id();
        assert!(mounts().contains_key(&id));
        drop(mount);
        assert!(!mounts().contains_key(&id));
    }
}
