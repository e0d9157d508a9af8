//! Settings that a developer makes by environment variables, for example while a test runs in a debugger.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fmt, fs};

/// Where the content of engines is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Memory,
    /// A SQLite file for each engine.
    File,
}

impl Backend {
    /// Returns the backend that the environment variable `RUSQLITE_FIXTURES_BACKEND` names; memory if it is not set, or
    /// empty.
    ///
    /// # Panics
    /// If there is no backend of that name.
    pub(crate) fn of_engines() -> Backend {
        static BACKEND: OnceLock<Backend> = OnceLock::new();
        *BACKEND.get_or_init(|| {
            setting(
                BACKEND_VARIABLE,
                Backend::named,
                "there is no such backend; set it to file for engines in real files, or to memory",
            )
        })
    }

    /// Returns whether engines are in files, where something does not work, and prints that.
    pub(crate) fn skips(what: impl fmt::Display) -> bool {
        let is_skipped = Backend::of_engines() == Backend::File;
        if is_skipped {
            eprintln!("rusqlite-fixtures: skipped: {what}, because engines are in files ({BACKEND_VARIABLE}=file)");
        }
        is_skipped
    }

    fn named(name: &str) -> Option<Backend> {
        match name {
            "" | "memory" => Some(Backend::Memory),
            "file" => Some(Backend::File),
            _ => None,
        }
    }
}

const BACKEND_VARIABLE: &str = "RUSQLITE_FIXTURES_BACKEND";

const ECHO_VARIABLE: &str = "RUSQLITE_FIXTURES_ECHO";

/// Returns whether each statement is printed: whether the environment variable `RUSQLITE_FIXTURES_ECHO` is `1`.
///
/// # Panics
/// If it is neither `1` nor `0`, nor empty.
pub(crate) fn echo() -> bool {
    static ECHO: OnceLock<bool> = OnceLock::new();
    *ECHO.get_or_init(|| setting(ECHO_VARIABLE, switch, "set it to 1 to print each statement, or to 0"))
}

/// Returns what `named` makes of the variable's value, which is empty if the variable is not set.
///
/// # Panics
/// If it makes nothing of it. `expected` says what to set it to.
fn setting<T>(variable: &str, named: fn(&str) -> Option<T>, expected: &str) -> T {
    let value = env::var_os(variable).unwrap_or_default();
    let value = value.to_string_lossy();
    named(&value).unwrap_or_else(|| panic!("can't use the environment variable {variable}={value:?}: {expected}"))
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "" | "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// What becomes of a test that leaves something open or undecided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strict {
    /// Engines are strict that code makes so.
    NotSet,
    /// No engine is.
    Off,
    Warn,
    Fail,
}

impl Strict {
    /// Returns what the environment variable `RUSQLITE_FIXTURES_STRICT` names; `NotSet` if it is not set, or empty.
    ///
    /// # Panics
    /// If the variable has another value.
    pub(crate) fn of_tests() -> Strict {
        static STRICT: OnceLock<Strict> = OnceLock::new();
        *STRICT.get_or_init(|| {
            setting(
                STRICT_VARIABLE,
                Strict::named,
                "set it to fail for tests that fail if they leave something open, to warn for messages, or to off",
            )
        })
    }

    fn named(name: &str) -> Option<Strict> {
        match name {
            "" => Some(Strict::NotSet),
            "off" => Some(Strict::Off),
            "warn" => Some(Strict::Warn),
            "fail" => Some(Strict::Fail),
            _ => None,
        }
    }
}

const STRICT_VARIABLE: &str = "RUSQLITE_FIXTURES_STRICT";

/// Of which tests the databases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Failed,
    Always,
    Never,
}

impl Keep {
    /// Returns what the environment variable `RUSQLITE_FIXTURES_KEEP` names; those that fail if it is not set, or empty.
    ///
    /// # Panics
    /// If the variable has another value.
    pub(crate) fn of_tests() -> Keep {
        static KEEP: OnceLock<Keep> = OnceLock::new();
        *KEEP.get_or_init(|| {
            setting(
                KEEP_VARIABLE,
                Keep::named,
                "set it to failed to keep the databases of tests that panic, to always, or to never",
            )
        })
    }

    /// Returns the size, in bytes, up to which databases are kept.
    pub(crate) fn max_size(self) -> usize {
        if self == Keep::Always { usize::MAX } else { 100_000_000 }
    }

    fn named(name: &str) -> Option<Keep> {
        match name {
            "" | "failed" => Some(Keep::Failed),
            "always" => Some(Keep::Always),
            "never" => Some(Keep::Never),
            _ => None,
        }
    }
}

pub(crate) const KEEP_VARIABLE: &str = "RUSQLITE_FIXTURES_KEEP";

/// The environment variable that names the folder in which files are. If it is empty, processes share no templates.
pub(crate) const FOLDER_VARIABLE: &str = "RUSQLITE_FIXTURES_DIR";

/// Returns Cargo's target folder, if this program is in one. Cargo marks it by a file.
pub(crate) fn target_folder() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let is_target = |folder: &&Path| {
        fs::read_to_string(folder.join("CACHEDIR.TAG")).is_ok_and(|tag| tag.contains("created by cargo"))
    };
    program.ancestors().skip(1).find(is_target).map(Path::to_owned)
}

/// Returns the duration that the environment variable sets in seconds, or `default` if the variable is not set, or empty.
///
/// # Panics
/// If the value is not a number of seconds.
pub(crate) fn duration(variable: &str, default: Duration) -> Duration {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else { return default };
    let value = value.to_string_lossy();
    seconds(&value).unwrap_or_else(|| {
        panic!(
            "can't use the environment variable {variable}={value:?}: it is not a number of seconds, such as 600 or 0.5"
        )
    })
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_has_a_name() {
        assert_eq!(
            ["", "memory", "file"].map(Backend::named),
            [Backend::Memory, Backend::Memory, Backend::File].map(Some)
        );
        assert_eq!(["File", "disk", "file "].map(Backend::named), [None; 3]);
    }

    #[test]
    fn which_databases_are_kept_has_a_name() {
        assert_eq!(
            ["", "failed", "always", "never"].map(Keep::named),
            [Keep::Failed, Keep::Failed, Keep::Always, Keep::Never].map(Some)
        );
        assert_eq!(["Failed", "yes", "1"].map(Keep::named), [None; 3]);
    }

    #[test]
    fn strictness_has_a_name() {
        assert_eq!(
            ["", "off", "warn", "fail"].map(Strict::named),
            [Strict::NotSet, Strict::Off, Strict::Warn, Strict::Fail].map(Some)
        );
        assert_eq!(["on", "1", "FAIL"].map(Strict::named), [None; 3]);
    }

    #[test]
    fn a_switch_is_one_or_zero() {
        assert_eq!(["", "0", "1"].map(switch), [Some(false), Some(false), Some(true)]);
        assert_eq!(["yes", "2", " 1"].map(switch), [None; 3]);
    }

    #[test]
    fn a_duration_is_a_number_of_seconds() {
        assert_eq!(seconds("600"), Some(Duration::from_secs(600)));
        assert_eq!(seconds(" 0.25 "), Some(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        for wrong in ["", "5s", "-1", "NaN", "inf", "1e99"] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }
}
