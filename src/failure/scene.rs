use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use rusqlite::ffi;

use crate::content::Snapshot;
use crate::content::origin::Purpose;
#[cfg(feature = "report")]
use crate::difference::schema;
use crate::difference::{Differing, compare};
use crate::panics::Panic;
use crate::statements::recent::{self, Noted, Recent};
use crate::statements::{Lost, Recorded, Unwound};
use crate::vfs::Setup;

/// What is known of an engine.
pub(crate) struct Scene {
    /// The number of the engine.
    pub(crate) number: u64,
    /// Its name in messages.
    pub(crate) engine: String,
    /// The name of the test.
    pub(crate) test: String,
    /// The content that the engine was created with.
    pub(crate) before: Snapshot,
    /// The content that is committed, or why it could not be read.
    pub(crate) content: Result<Snapshot, String>,
    /// How connections are set up.
    pub(crate) setup: Setup,
    pub(crate) unwound: Vec<Unwound>,
    /// What a recording of the engine has kept.
    pub(crate) recorded: Option<Recorded>,
    /// The newest statements without a recording, of the threads that are running.
    pub(crate) recent: Vec<Noted>,
    /// The number of the latest statement before the engine was created.
    pub(crate) since: u64,
    /// The units of work and connections that were dropped in a transaction, without a panic.
    pub(crate) dropped: Vec<String>,
    /// Who holds the writer slot, or has held it, as "is held by …".
    pub(crate) writer: Option<String>,
    pub(crate) panic: Option<Arc<Panic>>,
    pub(crate) compared: Compared,
}

/// What differs, or why it is not known: found once, when it is asked for.
#[derive(Default)]
pub(crate) struct Compared {
    committed: OnceLock<Differing>,
    uncommitted: OnceLock<Differing>,
}

impl Scene {
    /// Returns the size of the committed content in bytes.
    pub(super) fn size(&self) -> usize {
        self.content.as_ref().map_or(0, Snapshot::size)
    }

    /// Returns the content of the connection that had written and not committed.
    pub(super) fn uncommitted(&self) -> Option<&Snapshot> {
        self.uncommitted_one().map(|(_, seen)| seen)
    }

    fn uncommitted_one(&self) -> Option<(&Unwound, &Snapshot)> {
        let panic = self.panic.as_ref().map(|panic| panic.number);
        let is_of_panic = |unwound: &Unwound| Some(unwound.panic) == panic;
        // An earlier panic may be another thread's, one that was caught, or another test's.
        let is_current = |unwound: &Unwound| match (&unwound.committed, &self.content) {
            (Some(then), Ok(now)) => then.ptr_eq(now),
            _ => true, // that is not known of an engine in a file
        };
        let unwound = self.unwound.iter().filter(|unwound| is_of_panic(unwound) || is_current(unwound));
        let seen = unwound.filter_map(|unwound| Some((unwound, unwound.uncommitted.as_ref()?)));
        seen.max_by_key(|(unwound, _)| is_of_panic(unwound))
    }

    /// Returns whose content, of this panic, is not kept, and why. (In a property test, large content may be left out.)
    pub(super) fn lost(&self) -> impl Iterator<Item = (Purpose, Lost)> {
        let panic = self.panic.as_ref().map(|panic| panic.number);
        let of_panic = self.unwound.iter().filter(move |unwound| Some(unwound.panic) == panic);
        of_panic.filter_map(|unwound| Some((unwound.purpose, unwound.lost?)))
    }

    /// Returns what was committed since the engine was created.
    pub(super) fn committed_changes(&self) -> &Differing {
        self.compared.committed.get_or_init(|| match &self.content {
            Ok(content) => self.compare(&self.before, content),
            Err(cause) => Arc::new(Err(cause.clone())),
        })
    }

    /// Returns who had written and not committed, and what that changes.
    pub(super) fn uncommitted_changes(&self) -> Option<(String, &Differing)> {
        let (unwound, seen) = self.uncommitted_one()?;
        let is_earlier = self.panic.as_ref().is_some_and(|panic| panic.number != unwound.panic);
        let of_earlier = if is_earlier { ", rolled back by an earlier panic" } else { "" };
        let committed = unwound.committed.as_ref().or(self.content.as_ref().ok()).unwrap_or(&self.before);
        let differing = self.compared.uncommitted.get_or_init(|| self.compare(committed, seen));
        Some((format!("{}{of_earlier}", unwound.purpose), differing))
    }

    fn compare(&self, before: &Snapshot, after: &Snapshot) -> Differing {
        Arc::new(read(|| compare(before, after, &self.setup)))
    }

    /// Returns the SQL of each object of the committed schema.
    #[cfg(feature = "report")]
    pub(super) fn schema(&self) -> Result<Vec<String>, String> {
        let content = self.content.as_ref().map_err(Clone::clone)?;
        read(|| schema(content, &self.setup))
    }

    /// Returns the newest statements without a recording, with what is known of errors.
    pub(super) fn newest(&self) -> Vec<Recent> {
        let of_unwound = self.unwound.iter().filter_map(|unwound| unwound.recent.as_ref());
        let mut newest = recent::read(self.recent.iter().chain(of_unwound), self.since);
        for unwound in &self.unwound {
            let Some((code, message)) = &unwound.error else { continue };
            // The connection may have been used again since.
            let latest = unwound.recent.as_ref().and_then(Noted::latest);
            let Some(index) = newest.iter().rposition(|recent| Some(recent.number) == latest) else { continue };
            // With this code, SQLite could perhaps not compile another one after it.
            if *code == ffi::SQLITE_ERROR {
                let next = Recent { sql: String::new(), error: Some(message.clone()), ..newest[index].clone() };
                newest.insert(index + 1, next);
            } else {
                newest[index].error = Some(message.clone());
            }
        }
        newest
    }
}

/// Returns what is read by a connection with the template's setup, or why it is not known.
fn read<T, E: ToString>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    let panicked = |_| "not known, because a function given to Template::on_connect has panicked".to_owned();
    let result = catch_unwind(AssertUnwindSafe(read)).map_err(panicked)?;
    result.map_err(|cause| cause.to_string())
}
