//! The test run that this process is part of. Within it, all processes of a program have the same functions.

use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, fs};

/// A run of a test runner that starts a process for each test, and the program of this process.
#[derive(Debug)]
pub(crate) struct TestRun {
    /// The path of the program.
    pub(super) program: String,
    /// The identity of the run, and of the program's build.
    pub(super) id: String,
}

impl TestRun {
    /// Returns the run, if there is one: cargo-nextest names it in an environment variable.
    pub(crate) fn current() -> Option<&'static TestRun> {
        static CURRENT: OnceLock<Option<TestRun>> = OnceLock::new();
        let find = || {
            let id = env::var("NEXTEST_RUN_ID").ok()?;
            let program = env::current_exe().ok()?;
            let metadata = fs::metadata(&program).ok()?;
            Some(TestRun::of(program, metadata.len(), metadata.modified().ok()?, &id))
        };
        CURRENT.get_or_init(find).as_ref()
    }

    /// Returns the run with this identity, of a program of this size in bytes that was built at this time.
    pub(crate) fn of(program: impl AsRef<Path>, size: u64, built: SystemTime, id: &str) -> TestRun {
        let built = built.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id = format!("{id}, built {built:?} with {size} bytes");
        TestRun { program: program.as_ref().display().to_string(), id }
    }
}
