//! Writes the files of a test, and prints where they are.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[cfg(feature = "report")]
use super::pages;
use super::scene::Scene;
use super::{files, folder, summary};
use crate::environment::Keep;
use crate::sync::Recovered;

/// Writes the files of a test, and prints where they are, with what is known of some of its engines. `scenes` returns the
/// engines that are kept of it.
pub(super) fn write(test: &str, scenes: impl FnOnce() -> Vec<Arc<Scene>>, is_printed: impl Fn(&Scene) -> bool) {
    /// Held while files are written, so that the last ones are of all engines.
    static WRITES: Mutex<()> = Mutex::new(());
    let writes = WRITES.lock().recovered();
    let scenes = scenes();
    let is_small = |scene: &&Arc<Scene>| scene.size() <= Keep::of_tests().max_size();
    let small: Vec<Arc<Scene>> = scenes.iter().filter(is_small).cloned().collect();
    let large = scenes.iter().filter(|scene| !is_small(scene) && is_printed(scene));
    let mut text = large.map(|scene| summary::too_large(scene)).collect::<String>();
    let printed: Vec<(usize, Arc<Scene>)> =
        small.iter().cloned().enumerate().filter(|(_, scene)| is_printed(scene)).collect();
    let folder = (!small.is_empty())
        .then(|| folder::of_failed().and_then(|failed| failed.replace(test, |folder| write_files(folder, &small))));
    drop(writes);
    match folder {
        None => {}
        Some(Err(cause)) => {
            text.push_str(&format!("rusqlite-fixtures: can't keep the databases of this test: {cause}\n"));
        }
        Some(Ok(folder)) => {
            let place = folder.clone();
            let summaries =
                move || printed.iter().map(|(index, scene)| summary::engine(&place, *index, scene)).collect();
            text.push_str(&in_own_thread(summaries).unwrap_or_else(|cause| not_compared(&folder, &cause)));
        }
    }
    print(text);
}

/// Prints to the test's captured output.
pub(super) fn print(text: String) {
    if text.is_empty() {
        return;
    }
    let copy = text.clone();
    // If it can't be printed, `eprint` panics. The output of a new thread is captured with that of the test.
    if in_own_thread(move || eprint!("{text}")).is_err() {
        let _ = io::stderr().write_all(copy.as_bytes());
    }
}

fn not_compared(folder: &Path, cause: &str) -> String {
    let folder = folder.display();
    format!("rusqlite-fixtures: the databases of this test are kept in {folder}, but can't be compared: {cause}\n")
}

/// Writes the files of engines. There is no report if a function given to `Template::on_connect` does not return.
pub(super) fn write_files(folder: &Path, scenes: &[Arc<Scene>]) -> Result<(), String> {
    files::write(folder, scenes)?;
    #[cfg(feature = "report")]
    {
        let scenes = scenes.to_vec();
        if let Ok(page) = in_own_thread(move || pages::html(&scenes)) {
            files::write_text(&folder.join("report.html"), &page)?;
        }
    }
    Ok(())
}

/// How long to wait for a thread of this crate. A function of a template may wait for a lock that the thread that
/// panics holds.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Runs something in a thread of its own, for some time at most. A panic there is an error.
fn in_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    in_own_thread_for(TIME_LIMIT, work)
}

fn in_own_thread_for<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = mpsc::channel();
    let thread = thread::Builder::new().name("rusqlite-fixtures".to_owned()).spawn(move || {
        let _ = send.send(work()); // nobody may wait any longer
    });
    thread.map_err(|cause| format!("no thread can be started: {cause}"))?;
    receive.recv_timeout(patience).map_err(|cause| match cause {
        RecvTimeoutError::Timeout => {
            format!("a function given to Template::on_connect did not return within {patience:?}")
        }
        RecvTimeoutError::Disconnected => {
            "a function given to Template::on_connect panicked, or this crate did".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// If two threads of a test fail, the one that writes last has to know the engines of both.
    #[test]
    fn threads_collect_and_write_one_after_the_other() {
        let (is_collected, is_writing) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let collect = || {
                scope.spawn(|| {
                    is_writing.store(true, Ordering::Relaxed);
                    let collect = || {
                        is_collected.store(true, Ordering::Relaxed);
                        Vec::new()
                    };
                    write("another thread", collect, |_| true);
                });
                while !is_writing.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(50));
                assert!(!is_collected.load(Ordering::Relaxed), "both collect at the same time");
                Vec::new()
            };
            write("a thread", collect, |_| true);
        });
        assert!(is_collected.into_inner());
    }

    #[test]
    fn a_thread_that_does_not_return_is_not_waited_for() {
        let (send, receive) = mpsc::channel::<()>();
        let waits = in_own_thread_for(Duration::from_millis(20), move || receive.recv());
        let cause = waits.unwrap_err();
        assert_eq!(cause, "a function given to Template::on_connect did not return within 20ms");
        drop(send);
        assert_eq!(in_own_thread_for(TIME_LIMIT, || 7), Ok(7));
        let message = not_compared(Path::new("/target/failed/test"), &cause);
        let expected = "rusqlite-fixtures: the databases of this test are kept in /target/failed/test, but can't be compared: a \
                        function given to Template::on_connect did not return within 20ms\n";
        assert_eq!(message, expected);
    }
}
