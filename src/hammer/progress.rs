//! Shows the progress of a long run on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shorter runs show nothing.
const PATIENCE: Duration = Duration::from_secs(1);

const INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Progress {
    rounds: usize,
    start: Instant,
    shown: Option<Instant>,
    is_watched: bool,
}

impl Progress {
    pub(super) fn new(rounds: usize) -> Progress {
        let is_watched = std::io::stderr().is_terminal() && !is_captured();
        Progress { rounds, start: Instant::now(), shown: None, is_watched }
    }

    /// Shows that `done` rounds have ended, if the line is due for an update.
    pub(super) fn show(&mut self, done: usize) {
        if let Some(line) = self.line_if_due(done) {
            show(&line);
        }
    }

    fn line_if_due(&mut self, done: usize) -> Option<String> {
        let is_due = self.shown.map_or(self.start.elapsed() >= PATIENCE, |shown| shown.elapsed() >= INTERVAL);
        (self.is_watched && is_due).then(|| {
            self.shown = Some(Instant::now());
            line(done, self.rounds, self.start.elapsed())
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            show("");
        }
    }
}

/// Replaces the text of the line.
fn show(text: &str) {
    let _ = write!(std::io::stderr(), "\r\x1b[2K{text}"); // a closed terminal is no failure
}

fn line(done: usize, rounds: usize, elapsed: Duration) -> String {
    let left = elapsed.mul_f64((rounds - done) as f64 / done as f64);
    format!("hammer: round {done} of {rounds}, {:.0?}, {:.0?} to go", elapsed, left)
}

/// Whether the test harness captures the output. The harness prints it when a test fails, and control characters would
/// make it hard to read. Cargo ends the names of test executables with 16 hexadecimal digits.
fn is_captured() -> bool {
    let exe = std::env::current_exe().unwrap_or_default();
    let stem = exe.file_stem().unwrap_or_default().to_string_lossy();
    is_captured_by(&stem, std::env::var_os("RUST_TEST_NOCAPTURE").is_some(), std::env::args())
}

fn is_captured_by(stem: &str, has_variable: bool, mut arguments: impl Iterator<Item = String>) -> bool {
    is_test(stem) && !has_variable && !arguments.any(|argument| shows_all(&argument))
}

fn is_test(stem: &str) -> bool {
    let hash = stem.rsplit_once('-').map_or("", |(_, hash)| hash);
    hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn shows_all(argument: &str) -> bool {
    argument == "--nocapture" || argument == "--no-capture"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_of_tests_are_recognized_by_their_names() {
        assert!(is_test("it-0123456789abcdef"));
        assert!(!is_test("quickstart") && !is_test("bank-transfer") && !is_test("it-0123456789abcdeX"));
        let is_captured = |has_variable, argument: &str| {
            is_captured_by("it-0123456789abcdef", has_variable, ["it", argument].map(str::to_owned).into_iter())
        };
        assert!(is_captured(false, "--quiet"));
        assert!(
            !is_captured(true, "--quiet") && !is_captured(false, "--nocapture") && !is_captured(true, "--nocapture")
        );
        assert!(!is_captured_by("quickstart", false, std::iter::empty()));
        let is_shown = std::env::args().any(|arg| shows_all(&arg)) | std::env::var_os("RUST_TEST_NOCAPTURE").is_some();
        assert_ne!(super::is_captured(), is_shown, "this is a test");
        assert!(shows_all("--nocapture") && shows_all("--no-capture") && !shows_all("--quiet"));
    }

    #[test]
    fn the_line_has_the_round_and_the_time_left() {
        let line = line(250, 1000, Duration::from_secs(10));
        assert_eq!(line, "hammer: round 250 of 1000, 10s, 30s to go");
    }

    #[test]
    fn nothing_is_shown_early_or_without_a_terminal() {
        let mut progress = Progress { rounds: 10, start: Instant::now(), shown: None, is_watched: true };
        assert_eq!(progress.line_if_due(1), None, "the run is too short");
        progress.start = Instant::now() - 2 * PATIENCE;
        progress.is_watched = false;
        assert_eq!(progress.line_if_due(2), None);
        progress.is_watched = true;
        assert!(progress.line_if_due(3).is_some_and(|line| line.starts_with("hammer: round 3 of 10, ")));
        assert_eq!(progress.line_if_due(4), None, "it was shown just now");
        progress.shown = None; // or dropping it would clear a line of the test's output
    }
}
