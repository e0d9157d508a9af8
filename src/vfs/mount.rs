//! The names under which SQLite finds engines.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::content::Snapshot;
use crate::content::store::Store;
use crate::sync::Recovered;

/// What SQLite's file names of engines start with; the engine's number follows. Nothing else in a file system is likely
/// to be named so, and every other name is left to SQLite's default VFS.
const PREFIX: &str = "/rusqlite-fixtures/engine-";

/// A store with a name. It lives as long as an engine's handle or a connection does.
pub(crate) struct Mount {
    pub(crate) store: Store,
    name: Name,
}

/// What an engine is called in messages.
pub(crate) enum Name {
    Given(String),
    /// By its number.
    Numbered,
    /// By its number, and the template that it is of.
    OfTemplate(Arc<str>),
}

/// The engines that live, by number. Holds none of them alive.
static MOUNTS: Mutex<BTreeMap<u64, Weak<Mount>>> = Mutex::new(BTreeMap::new());

/// The number of the next store that gets a name.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The engines of which it has been printed that they are gone.
static TOLD_GONE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

impl Mount {
    /// Makes a store that can be opened by its file name.
    pub(crate) fn new(snapshot: Snapshot, name: Name) -> Arc<Mount> {
        let mount = Arc::new(Mount { store: Store::new(snapshot), name });
        mount.expose();
        mount
    }

    /// Gives the store a file name that there has never been, by which it can be opened.
    pub(crate) fn expose(self: &Arc<Mount>) {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        self.store.set_number(id);
        mounts().insert(id, Arc::downgrade(self));
    }

    /// Takes the file name away, if there are no more than so many references: nobody else has the store then, nor can
    /// anybody come to it.
    pub(crate) fn withdraw(self: &Arc<Mount>, references: usize) -> bool {
        let mut mounts = mounts(); // under which `find` makes new references
        let is_alone = Arc::strong_count(self) == references;
        if is_alone {
            mounts.remove(&self.id());
        }
        is_alone
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        match &self.name {
            Name::Given(name) => name.clone(),
            Name::Numbered => format!("engine {}", self.id()),
            Name::OfTemplate(template) => format!("engine {} of {template}", self.id()),
        }
    }

    /// The name of its database file, as SQLite knows it.
    pub(super) fn file_name(&self) -> String {
        format!("{PREFIX}{}", self.id())
    }

    /// Never used twice in a process, so that the name of an engine that is gone can't come to mean another one. It
    /// changes when the store begins to serve another engine.
    pub(super) fn id(&self) -> u64 {
        self.store.number()
    }

    pub(super) fn find(id: u64) -> Option<Arc<Mount>> {
        mounts().get(&id)?.upgrade()
    }
}

/// Prints that the engine with this number is gone, once, if there was one: SQLite says only that it is "unable to open
/// database file", and some connection pools try again for half a minute before they say that.
pub(super) fn report_gone(id: u64) {
    let has_been = (1..NEXT.load(Ordering::Relaxed)).contains(&id);
    let is_news = || TOLD_GONE.lock().recovered().insert(id);
    if has_been && is_news() {
        eprintln!("rusqlite-fixtures: engine {id} is gone; keep an Engine as long as code connects to it");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        mounts().remove(&self.id());
    }
}

fn mounts() -> MutexGuard<'static, BTreeMap<u64, Weak<Mount>>> {
    MOUNTS.lock().recovered()
}

/// The super-journals that exist, with their content as it was when they were closed. SQLite names them after the main
/// database, so that they come to be beside an engine.
/// (After a crash none is there for the files that were attached: each of them is whole, but they may not fit together.)
static SUPER_JOURNALS: Mutex<BTreeMap<CString, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// Makes one that is empty; says whether there was none of this name.
pub(super) fn create_super_journal(name: &CStr) -> bool {
    match super_journals().entry(name.to_owned()) {
        Entry::Vacant(place) => {
            place.insert(Vec::new());
            true
        }
        Entry::Occupied(_) => false,
    }
}

/// Keeps what was written to it, unless it is gone by now.
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

/// What a file name means to the VFS.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileName {
    /// The database file of the engine with this number, whether there is one or not.
    Database(u64),
    /// The super-journal of a commit to several databases, the main one of which is an engine.
    SuperJournal,
    /// Any other file beside an engine's, such as its journal.
    Beside,
    /// A file of the file system.
    Other,
}

impl FileName {
    /// Allocates nothing and takes no lock for a journal's name, which SQLite asks for with each transaction.
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
        // One name for each, or one engine would be two databases to SQLite's shared cache.
        number.filter(|id| id.to_string().as_bytes() == rest).map_or(FileName::Beside, FileName::Database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::faults::Fault;

    #[test]
    fn names_are_told_apart() {
        let parse = |name: &str| FileName::parse(format!("{PREFIX}{name}").as_bytes());
        assert_eq!(parse("17"), FileName::Database(17));
        assert_eq!(parse("17-mj0A1B2C9DE"), FileName::SuperJournal);
        for name in ["17-journal", "17-wal", "", "017", "+17", "17x", "99999999999999999999999"] {
            assert_eq!(parse(name), FileName::Beside, "{name}");
        }
        assert_eq!(FileName::parse(b"/tmp/file.sqlite3"), FileName::Other);
    }

    /// SQLite deletes it when the last of the files is undone, which it tells by what is in it.
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
}
