//! Which lines of code run statements of one text again and again, and which ones open connections.

use std::backtrace::Backtrace;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often each text ran.
#[derive(Default)]
pub(super) struct Runs {
    counts: HashMap<u64, u64>,
    /// The number of backtraces, and the time that they took.
    backtraces: usize,
    spent: Duration,
}

/// The number of backtraces of a recording that are captured however long they take. (The first one of a process takes longest.)
const FIRST: usize = 16;

impl Runs {
    /// Counts a run of the text with this hash. `at` returns the time since the beginning. Returns whether its
    /// backtrace is wanted.
    ///
    /// It is for the 2nd run, the 4th, the 8th and so on, so the latest one is of the newer half of the runs. A backtrace takes six
    /// to eight times as long as the rest of a recording. After the first ones, all of them take at most a tenth of the time.
    pub(super) fn add(&mut self, text: u64, at: impl FnOnce() -> Duration) -> bool {
        let runs = self.counts.entry(text).or_default();
        *runs += 1;
        *runs > 1 && runs.is_power_of_two() && (self.backtraces < FIRST || self.spent * 10 <= at())
    }

    /// Notes the time that a backtrace took.
    pub(super) fn spend(&mut self, time: Duration) {
        self.backtraces += 1;
        self.spent += time;
    }

    /// Forgets the texts if there are more than so many.
    pub(super) fn keep_at_most(&mut self, texts: usize) {
        if self.counts.len() > texts {
            self.counts.clear();
        }
    }
}

/// The opening of a connection by code that gives no place.
#[derive(Debug)]
pub(crate) struct Opening {
    backtrace: Backtrace,
    line: OnceLock<Option<String>>,
}

impl Opening {
    /// Captures where this thread opens a connection. That takes 6 to 8 µs.
    pub(super) fn here() -> Arc<Opening> {
        Arc::new(Opening { backtrace: Backtrace::force_capture(), line: OnceLock::new() })
    }

    /// Returns the line of the program's own code, if there is one.
    pub(super) fn line(&self) -> Option<&str> {
        self.line.get_or_init(|| lines_of_code(&self.backtrace).into_iter().next()).as_deref()
    }
}

/// The number of lines that are shown.
const LINES: usize = 3;

/// Where this crate's own code is.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");

/// Returns the innermost lines of the program's own code, as `file:line:column`. There are none if the program has no debug
/// information, or on a thread that a library has started.
pub(super) fn lines_of_code(backtrace: &Backtrace) -> Vec<String> {
    let folder = std::env::current_dir().unwrap_or_default();
    lines_in(&format!("{backtrace:#}"), &folder.to_string_lossy())
}

/// Returns those lines of a backtrace's text. Paths in this folder are relative to it.
fn lines_in(backtrace: &str, folder: &str) -> Vec<String> {
    let lines = backtrace.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
    let folder = (!folder.is_empty()).then(|| folder.replace('\\', "/") + "/");
    let mut found: Vec<String> = Vec::new();
    for line in lines.map(|line| line.replace('\\', "/")).filter(|line| is_of_program(line)) {
        let relative = folder.as_ref().and_then(|folder| line.strip_prefix(folder)).unwrap_or(&line);
        // A closure and the call that runs it may be in one line.
        let without_column = |line: &str| line.rsplit_once(':').map(|(line, _)| line.to_owned());
        if found.last().is_none_or(|last| without_column(last) != without_column(relative)) {
            found.push(relative.to_owned());
        }
    }
    found.truncate(LINES);
    found
}

/// Returns whether a line is not of Rust's library, of a package from a registry or from Git, or of this crate.
fn is_of_program(line: &str) -> bool {
    const OTHERS: [&str; 5] = ["/rustc/", "/rustlib/src/", "/registry/src/", "/git/checkouts/", "/vendor/"];
    let own = OWN.replace('\\', "/");
    line.contains(".rs:") && !line.starts_with(&own) && !OTHERS.iter().any(|other| line.contains(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_wanted_of_runs_that_are_powers_of_two() {
        let mut runs = Runs::default();
        let wanted: Vec<u64> = (1..=20).filter(|_| runs.add(7, || Duration::ZERO)).collect();
        assert_eq!(wanted, [2, 4, 8, 16]);
        assert!(!runs.add(8, || Duration::ZERO), "another text");
        runs.keep_at_most(2);
        assert!(runs.add(8, || Duration::ZERO) && !runs.add(9, || Duration::ZERO));
        runs.keep_at_most(2);
        assert!(!runs.add(9, || Duration::ZERO), "it was forgotten");
    }

    #[test]
    fn backtraces_take_a_tenth_of_the_time() {
        let mut runs = Runs::default();
        let ms = Duration::from_millis;
        let wanted = |backtraces, spent, at| {
            let mut runs = Runs { backtraces, spent, ..Runs::default() };
            runs.add(7, || at);
            runs.add(7, || at)
        };
        assert!(wanted(FIRST - 1, ms(9), ms(0)) && !wanted(FIRST, ms(9), ms(0)));
        assert!(wanted(FIRST, ms(1), ms(10)) && !wanted(FIRST, ms(1), Duration::from_micros(9999)));
        (0..2).for_each(|_| runs.spend(ms(1)));
        assert_eq!((runs.backtraces, runs.spent), (2, ms(2)));
    }

    #[test]
    fn the_lines_of_the_program_are_found() {
        let backtrace = format!(
            "   0:     0x559f - std::backtrace::Backtrace::force_capture
                               at /rustc/59807616/library/std/src/backtrace.rs:312:9
   1:     0x559f - rusqlite_fixtures::statements::log::Log::begin
                               at {OWN}statements/log.rs:104:13
   2:     0x559f - sqlite3_step
                               at /home/a/.cargo/registry/src/index/libsqlite3-sys-0.38.1/sqlite3/sqlite3.c:94190:16
   3:     0x559f - rusqlite::statement::Statement::query
                               at /home/a/.cargo/registry/src/index/rusqlite-0.40.1/src/statement.rs:1:2
   4:     0x559f - std::thread::current
                               at /home/a/.rustup/toolchains/stable/lib/rustlib/src/rust/library/std/src/lib.rs:1:2
   5:     0x559f - shop::price
                               at /home/a/shop/src/lib.rs:41:20
   6:     0x559f - shop::price::{{closure}}
                               at /home/a/shop/src/lib.rs:41:5
   7:     0x559f - prices::of
                               at /home/a/git/checkouts/prices-0c1d/src/lib.rs:1:2
   8:     0x559f - patched
                               at /home/a/shop/vendor/patched/src/lib.rs:1:2
   9:     0x559f - other::total
                               at /home/a/shop2/src/lib.rs:9:1
  10:     0x559f - a::total
                               at C:\\a\\src\\lib.rs:7:1
  11:     0x559f - a::main
                               at /home/a/shop/src/main.rs:2:5
  12:     0x559f - __libc_start_call_main
                               at ./csu/../sysdeps/nptl/libc_start_call_main.h:58:16
  13:     0x559f - <unknown>
"
        );
        let lines = lines_in(&backtrace, "/home/a/shop");
        assert_eq!(lines, ["src/lib.rs:41:20", "/home/a/shop2/src/lib.rs:9:1", "C:/a/src/lib.rs:7:1"]);
        assert_eq!(lines_in(&backtrace, "C:\\a")[2], "src/lib.rs:7:1");
        assert_eq!(lines_in("  0: main\n", ""), [""; 0]);
        assert_eq!(lines_in(&backtrace, "")[0], "/home/a/shop/src/lib.rs:41:20", "the current folder is not known");
    }
}
