//! The test run that this process is part of. Within it, all processes of a program have the same functions.

use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, fs};

use twox_hash::XxHash3_128;

/// A run of a test runner that starts a process for each test, and the program of this process.
#[derive(Debug)]
pub(crate) struct TestRun {
    /// A part of the names of all images of the program's functions.
    of_program: String,
    /// The same, with the build of the program.
    pub(super) of_build: String,
    /// The identity of the run.
    pub(super) id: String,
}

impl TestRun {
    /// Returns the run, if there is one: cargo-nextest names it in environment variables.
    pub(crate) fn current() -> Option<&'static TestRun> {
        static CURRENT: OnceLock<Option<TestRun>> = OnceLock::new();
        let find = || {
            // A test that is repeated runs its functions again.
            let repeated = ["NEXTEST_ATTEMPT", "NEXTEST_STRESS_CURRENT"].map(|name| env::var(name).unwrap_or_default());
            let id = format!("{}, {repeated:?}", env::var("NEXTEST_RUN_ID").ok()?);
            let program = env::current_exe().ok()?;
            let metadata = fs::metadata(&program).ok()?;
            Some(TestRun::of(program, metadata.len(), metadata.modified().ok()?, &id))
        };
        CURRENT.get_or_init(find).as_ref()
    }

    /// Returns the run with this identity, of a program of this size in bytes that was built at this time.
    pub(crate) fn of(program: impl AsRef<Path>, size: u64, built: SystemTime, id: &str) -> TestRun {
        let built = built.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let hash = |text: &str| (XxHash3_128::oneshot(text.as_bytes()) >> 64) as u64;
        let of_program = format!("{OF_RUN}{:016x}-", hash(&program.as_ref().to_string_lossy()));
        let of_build = format!("{of_program}{:016x}-", hash(&format!("{built:?} {size}")));
        TestRun { of_program, of_build, id: id.to_owned() }
    }

    /// Returns whether this is the name of an image that an earlier build of the program has left.
    pub(super) fn supersedes(&self, name: &str) -> bool {
        name.contains(&self.of_program) && !name.contains(&self.of_build)
    }
}

/// The start of the part of an image's name that only images of a run have. A label has no underscore.
pub(super) const OF_RUN: &str = "_run-";
