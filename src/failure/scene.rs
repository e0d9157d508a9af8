use std::sync::Arc;

use rusqlite::ffi;

use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::panics::Panic;
use crate::statements::recent::Recent;
use crate::statements::{Kept, Unwound};
use crate::vfs::Setup;

/// What is known of an engine.
#[derive(Clone)]
pub(crate) struct Scene {
    /// The number of the engine.
    pub(crate) number: u64,
    /// Its name in messages.
    pub(crate) engine: String,
    /// The name of the test.
    pub(crate) test: String,
    /// The content that the engine was created with.
    pub(crate) before: Snapshot,
    /// The content that is committed. `None`: it could not be read.
    pub(crate) content: Option<Snapshot>,
    /// How connections are set up.
    pub(crate) setup: Setup,
    pub(crate) unwound: Vec<Unwound>,
    /// What a recording of the engine has kept.
    pub(crate) recorded: Option<Kept>,
    /// The newest statements without a recording.
    pub(crate) recent: Vec<Recent>,
    /// What had transactions that were dropped without a panic.
    pub(crate) dropped: Vec<String>,
    /// Who holds the writer slot.
    pub(crate) writer: Option<String>,
    pub(crate) panic: Option<Arc<Panic>>,
}

impl Scene {
    /// Returns the size of the committed content in bytes.
    pub(super) fn size(&self) -> usize {
        self.content.as_ref().map_or(0, Snapshot::size)
    }

    /// Returns the purpose of the connection that had written and not committed, and the content that it saw.
    pub(super) fn uncommitted(&self) -> Option<(Purpose, &Snapshot)> {
        self.unwound.iter().find_map(|unwound| Some((unwound.purpose, unwound.uncommitted.as_ref()?)))
    }
}

/// Returns the newest statements after this number, with what is known of errors, and of threads that have ended.
pub(crate) fn with_errors(mut recent: Vec<Recent>, unwound: &[Unwound], since: u64) -> Vec<Recent> {
    let of_unwound = unwound.iter().flat_map(|unwound| &unwound.recent);
    recent.extend(of_unwound.filter(|recent| recent.number > since).cloned());
    recent.sort_by_key(|recent| recent.number);
    recent.dedup_by_key(|recent| recent.number);
    for unwound in unwound {
        let Some((code, message)) = &unwound.error else { continue };
        if let Some(last) = recent.iter_mut().rfind(|recent| recent.connection == unwound.connection) {
            // With this code, SQLite could perhaps not compile another one after it.
            if *code == ffi::SQLITE_ERROR {
                let next = Recent { sql: String::new(), error: Some(message.clone()), ..last.clone() };
                let index = recent.iter().rposition(|recent| recent.connection == unwound.connection);
                recent.insert(index.map_or(recent.len(), |index| index + 1), next);
            } else {
                last.error = Some(message.clone());
            }
        }
    }
    recent
}
