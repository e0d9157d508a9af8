//! The folders in which files are kept: one for each test program, in Cargo's target folder.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};
use std::{env, fs, io, process};

use crate::environment::{FOLDER_VARIABLE, target_folder};
use crate::sync::Recovered;

/// A folder with a folder for each test.
pub(super) struct Folder {
    path: PathBuf,
    /// The maximum number of the tests that are kept in it, and of their bytes: the newest.
    bounds: Option<(usize, u64)>,
}

/// The tests of which files are kept in the folder of failed ones.
static TESTS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether there are any.
static HAS_ANY: AtomicBool = AtomicBool::new(false);

const FAILED_TESTS: usize = 50;
const FAILED_BYTES: u64 = 1_000_000_000;

/// Returns the folder of the tests of this program that failed.
pub(super) fn of_failed() -> Result<&'static Folder, String> {
    static FOLDER: OnceLock<Result<Folder, String>> = OnceLock::new();
    let folder = || Ok(Folder { path: of_program("failed")?, bounds: Some((FAILED_TESTS, FAILED_BYTES)) });
    FOLDER.get_or_init(folder).as_ref().map_err(Clone::clone)
}

/// Returns the folder for `Engine::keep`.
pub(super) fn of_kept() -> Result<Folder, String> {
    Ok(Folder { path: of_program("kept")?, bounds: None })
}

fn of_program(kind: &str) -> Result<PathBuf, String> {
    let set = env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let root = set.or_else(|| Some(target_folder()?.join("rusqlite-fixtures"))).ok_or_else(|| {
        format!("this program is not in Cargo's target folder; set {FOLDER_VARIABLE} to a folder for the files")
    })?;
    if !root.is_absolute() {
        return Err(format!("{FOLDER_VARIABLE} must be an absolute path")); // as for images
    }
    let program = env::current_exe().map_err(|cause| format!("this program's path is not known: {cause}"))?;
    Ok(root.join(kind).join(program_name(&program, env::var("CARGO_PKG_NAME").ok())))
}

/// Returns the name of a test program without Cargo's hash, and the package's if that is another one.
fn program_name(program: &Path, package: Option<String>) -> String {
    let stem = program.file_stem().unwrap_or_default().to_string_lossy();
    let is_hash = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = stem.rsplit_once('-').filter(|(_, end)| is_hash(end)).map_or(&*stem, |(name, _)| name);
    match package.filter(|package| package.replace('-', "_") != name.replace('-', "_")) {
        Some(package) => file_name(&format!("{package}::{name}")),
        None => file_name(name),
    }
}

/// Returns a name for the folder of a test. It ends in a hash if another test's name could give the same folder: if the name has
/// other characters than lowercase letters, digits, `_`, `-` and `::`, or is long.
fn file_name(test: &str) -> String {
    const LONGEST: usize = 120;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ['_', '-'].contains(&c);
    let parts: Vec<&str> = test.split("::").collect();
    if test.len() <= LONGEST && parts.iter().all(|part| !part.is_empty() && part.chars().all(is_plain)) {
        return parts.join(".");
    }
    let shown = |c: char| if c.is_ascii_alphanumeric() || ['_', '-'].contains(&c) { c } else { '_' };
    let name: String = test.chars().take(LONGEST).map(shown).collect();
    // FNV-1a, which stays the same.
    let hash = test
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{name}-{hash:016x}")
}

/// Notes which tests have files from earlier runs.
pub(super) fn load_names() {
    let Ok(entries) = of_failed().and_then(|folder| fs::read_dir(&folder.path).map_err(|cause| cause.to_string()))
    else {
        return; // there is no such folder
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut tests = TESTS.lock().recovered();
    tests.extend(names.filter(|name| !name.starts_with('.')));
    HAS_ANY.store(!tests.is_empty(), Ordering::Relaxed);
}

/// Returns whether files of any test of this program are kept.
#[inline]
pub(crate) fn has_any() -> bool {
    HAS_ANY.load(Ordering::Relaxed)
}

/// Removes the files of a test that went on after its panic, or passed.
pub(super) fn remove(test: &str) {
    let name = file_name(test);
    let mut tests = TESTS.lock().recovered();
    if tests.remove(&name) {
        HAS_ANY.store(!tests.is_empty(), Ordering::Relaxed);
        drop(tests);
        if let Ok(folder) = of_failed() {
            let _ = fs::remove_dir_all(folder.path.join(name)); // another process may have done it
        }
    }
}

impl Folder {
    /// Replaces the files of a test by those that `write` writes. If that fails, the old ones stay.
    pub(super) fn replace(
        &self,
        test: &str,
        write: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let name = file_name(test);
        let path = self.path.join(&name);
        let failed = |cause: io::Error| format!("can't write to `{}`: {cause}", self.path.display());
        if path.is_file() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let aside = self.create_aside().map_err(failed)?;
        let written = write(&aside).and_then(|()| self.move_into_place(&aside, &path).map_err(failed));
        if let Err(cause) = written {
            let _ = fs::remove_dir_all(&aside); // the first error is the one to report
            return Err(cause);
        }
        if let Some((tests, bytes)) = self.bounds {
            let mut known = TESTS.lock().recovered();
            known.insert(name);
            HAS_ANY.store(true, Ordering::Relaxed);
            prune(&self.path, tests, bytes);
        }
        Ok(path)
    }

    /// Creates a folder for files that are being written.
    fn create_aside(&self) -> io::Result<PathBuf> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        create(&self.path)?;
        loop {
            let aside = self.path.join(format!(".{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match private().create(&aside) {
                // An earlier process with this number has left it.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created.map(|()| aside),
            }
        }
    }

    /// Moves a folder to a path, where another one may be.
    fn move_into_place(&self, aside: &Path, path: &Path) -> io::Result<()> {
        let _tests = TESTS.lock().recovered();
        let old = aside.with_extension("old");
        // Another process may move one there meanwhile.
        for _ in 0..10 {
            let _ = fs::rename(path, &old); // if there is one
            if fs::rename(aside, path).is_ok() {
                let _ = fs::remove_dir_all(&old);
                return Ok(());
            }
            if fs::rename(&old, path).is_err() {
                let _ = fs::remove_dir_all(&old); // there is a newer one
            }
        }
        fs::rename(aside, path)
    }
}

/// Creates a folder, and those that it is in.
fn create(folder: &Path) -> io::Result<()> {
    private().recursive(true).create(folder)
}

/// Returns a builder of folders to which only this user can write. Images of templates, which are used only in such folders, may be
/// beside them.
fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

/// The age from which an unfinished folder counts as abandoned.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Removes the oldest folders until at most `tests` are left, of at most `bytes` in all. Never removes the newest one.
fn prune(folder: &Path, tests: usize, bytes: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        let Some(modified) = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()) else { continue };
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push((modified, entry.path()));
        } else if modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            let _ = fs::remove_dir_all(entry.path()); // another process may have done it
        }
    }
    found.sort_by(|one, other| other.cmp(one));
    let mut total = 0;
    for (rank, (_, path)) in found.iter().enumerate() {
        total += size_of(path);
        if rank >= tests || (rank > 0 && total > bytes) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn size_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_the_name_of_its_target() {
        let name = |program: &str, package: Option<&str>| program_name(Path::new(program), package.map(str::to_owned));
        assert_eq!(name("/target/debug/deps/it-0123456789abcdef", None), "it");
        assert_eq!(name("/target/debug/deps/it-0123456789abcdef", Some("shop")), "shop.it");
        assert_eq!(name("/target/debug/deps/web_shop-0123456789abcdef", Some("web-shop")), "web_shop");
        assert_eq!(name("/usr/bin/web-shop", None), "web-shop");
        assert_eq!(name("/usr/bin/it-0123456789abcdeg", None), "it-0123456789abcdeg");
        assert_eq!(name("/usr/bin/it-0123456789abcdef0", None), "it-0123456789abcdef0");
    }

    #[test]
    fn a_test_has_a_name_for_files() {
        assert_eq!(file_name("orders::tests::total"), "orders.tests.total");
        assert_eq!(file_name("case_1"), "case_1");
        let odd =
            ["a/b", "a\\b", "..", "", "a:b", ".hidden", "ä", &"long".repeat(100), "ends.", "a b", "a.b", "A", "a"];
        let names: BTreeSet<String> = odd.iter().map(|name| file_name(name).to_ascii_lowercase()).collect();
        assert_eq!(names.len(), odd.len(), "they differ: {names:?}");
        for name in &names {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            assert!(name.bytes().all(is_plain) && !name.starts_with('.') && name.len() < 150, "{name}");
        }
    }

    #[test]
    fn the_newest_tests_are_kept_and_a_failure_keeps_the_old_files() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder { path: root.path().join("failed"), bounds: Some((3, 1000)) };
        let write = |content: &'static [u8]| {
            move |folder: &Path| fs::write(folder.join("file"), content).map_err(|cause| cause.to_string())
        };
        let at = |test: &str| folder.path.join(test).join("file");
        let old = SystemTime::now() - Duration::from_secs(1000);
        for (age, test) in ["prune::a", "prune::b", "prune::c"].into_iter().enumerate() {
            let path = folder.replace(test, write(b"old")).unwrap();
            fs::File::open(path).unwrap().set_modified(old + Duration::from_secs(age as u64)).unwrap();
        }
        assert!(at("prune.a").exists());
        folder.replace("prune::d", write(b"new")).unwrap();
        assert_eq!(
            ["prune.a", "prune.b", "prune.c", "prune.d"].map(|test| at(test).exists()),
            [false, true, true, true]
        );

        let fails = |folder: &Path| {
            fs::write(folder.join("file"), b"half").unwrap();
            Err("the disk is full".to_owned())
        };
        assert_eq!(folder.replace("prune::d", fails).unwrap_err(), "the disk is full");
        assert_eq!(fs::read(at("prune.d")).unwrap(), b"new");
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 3, "nothing is left beside them");

        // Another process writes this one, and one that was ended had written the other one.
        let (aside, abandoned) = (folder.path.join(".1-2"), folder.path.join(".1-3"));
        for (path, age) in [(&aside, 3500), (&abandoned, 3700)] {
            fs::create_dir(path).unwrap();
            let modified = SystemTime::now() - Duration::from_secs(age);
            fs::File::open(path).unwrap().set_modified(modified).unwrap();
        }
        folder.replace("prune::e", write(&[0; 2000])).unwrap();
        assert!(aside.exists() && !abandoned.exists());
        fs::remove_dir(&aside).unwrap();
        let left: Vec<_> = fs::read_dir(&folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["prune.e"], "it has more bytes than all may have");
        ["prune::a", "prune::b", "prune::c", "prune::d", "prune::e"].iter().for_each(|test| remove(test));
    }

    #[test]
    fn what_an_ended_process_has_left_is_not_used_and_what_can_not_be_replaced_stays() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder { path: root.path().to_owned(), bounds: None };
        for number in 0..1000 {
            let left = root.path().join(format!(".{}-{number}", process::id()));
            fs::create_dir(&left).unwrap();
            fs::write(left.join("left"), b"").unwrap();
        }
        let write = |folder: &Path| fs::write(folder.join("file"), b"").map_err(|cause| cause.to_string());
        let path = folder.replace("test", write).unwrap();
        let names =
            |path: &Path| -> Vec<_> { fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
        assert_eq!(names(&path), ["file"]);
        assert!(folder.move_into_place(&root.path().join("missing"), &path).is_err());
        assert_eq!(names(&path), ["file"]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a file");
        fs::write(&path, b"").unwrap();
        let folder = Folder { path: path.clone(), bounds: None };
        let cause = folder.replace("test", |_| Ok(())).unwrap_err();
        assert!(cause.starts_with(&format!("can't write to `{}`: ", path.display())), "{cause}");
    }
}
