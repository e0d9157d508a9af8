//! Images: the contents of templates as files, which the processes of a test run share.
//!
//! An image is an ordinary SQLite database with a seal behind its last page. An image is never written in place: a
//! temporary file is written, sealed, made read-only and renamed. So a large image can be mapped into memory: its pages are
//! read when they are needed, and all processes share them.

mod lock;
mod os;
mod run;
mod seal;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, SystemTime};
use std::{env, process};

use rusqlite::Connection;
use twox_hash::XxHash3_128;

use self::lock::LockFile;
use self::run::OF_RUN;
pub(crate) use self::run::TestRun;
use self::seal::Seal;
use super::recipe::Content;
use crate::content::Snapshot;
use crate::content::pages::Base;
use crate::content::replace_file::replace_file;
use crate::environment::{FOLDER_VARIABLE, target_folder};
use crate::error::Result;

/// Hashes of everything that decides the content of a template.
pub(crate) struct Identity<'a> {
    content: XxHash3_128,
    /// The part that stays the same from one test run to the next. It names the file, so that the image of a run
    /// replaces the image of the run before.
    lasting: XxHash3_128,
    /// `None` if the content does not depend on the run.
    run: Option<&'a TestRun>,
}

impl<'a> Identity<'a> {
    /// Returns the identity of the software that builds the template.
    pub(crate) fn new() -> Identity<'a> {
        let hash = XxHash3_128::new;
        let mut identity = Identity { content: hash(), lasting: hash(), run: None };
        identity.add("rusqlite-fixtures", env!("CARGO_PKG_VERSION"));
        identity.add("SQLite", rusqlite::version());
        identity.add("compiled with", compile_options().unwrap_or_default());
        identity
    }

    pub(crate) fn number(&self) -> u128 {
        self.content.finish_128()
    }

    pub(crate) fn add(&mut self, kind: &str, content: impl AsRef<[u8]>) {
        add(&mut self.lasting, kind, content.as_ref());
        add(&mut self.content, kind, content.as_ref());
    }

    /// Adds functions, which are known only within a run of one program.
    pub(crate) fn add_run(&mut self, run: &'a TestRun, functions: &[usize]) {
        self.run = Some(run);
        self.add("build", &run.of_build);
        add(&mut self.content, "run", run.id.as_bytes());
        for function in functions {
            // The system loads the program at another address in each process.
            let offset = function.wrapping_sub(add as fn(_, _, _) as usize);
            self.add("function", offset.to_le_bytes());
        }
    }
}

fn add(hash: &mut XxHash3_128, kind: &str, content: &[u8]) {
    for part in [kind.as_bytes(), content] {
        hash.write(&(part.len() as u64).to_le_bytes());
        hash.write(part);
    }
}

/// Returns SQLite's compile options, which decide the page size and other defaults of a new database.
fn compile_options() -> rusqlite::Result<String> {
    let sql = "SELECT group_concat(compile_options) FROM pragma_compile_options";
    Connection::open_in_memory()?.query_row(sql, [], |row| row.get(0))
}

/// Returns the content of the template with this identity, from its image or from `build`. Exactly one process builds,
/// unless there is a failure; the others wait for it.
///
/// The only errors are those of `build`. If an image fails, the process builds the content itself.
pub(crate) fn get_or_build(
    label: &str,
    identity: &Identity<'_>,
    build: impl FnOnce() -> Result<Content>,
) -> Result<Content> {
    let Some(folder) = folder() else { return build() };
    let image = Image::new(folder, label, identity);
    if let Some(content) = image.load() {
        return Ok(content);
    }
    let _lock = match image.lock() {
        Ok(Lock::Built(content)) => return Ok(content),
        Ok(Lock::NotToBeShared) => return build(),
        Ok(Lock::ToBuild(lock)) => lock,
        Err(error) => {
            warn(&image.lock, &error);
            return build();
        }
    };
    let content = build()?;
    // A run is short.
    let is_forbidden = content.depends_on_time && identity.run.is_none();
    let kept = if is_forbidden { image.forbid() } else { image.save(&content.snapshot) };
    if let Err(error) = kept {
        warn(&image.path, &error);
    }
    prune(image.folder, identity.run);
    // A large image is mapped, so it takes no memory in addition.
    Ok(image.load().unwrap_or(content))
}

/// Prints once why the processes can't share templates.
fn warn(path: &Path, error: &io::Error) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        report(&format!("can't use `{}` to share templates: {error}; each process builds its own", path.display()));
    });
}

fn report(message: &str) {
    // Not by eprintln: test runners capture it, and show it for failing tests only.
    let _ = writeln!(io::stderr(), "rusqlite-fixtures: {message}");
}

/// Returns the folder of the images, if there is one.
fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = match env::var_os(FOLDER_VARIABLE) {
            Some(folder) if folder.is_empty() => return None,
            Some(folder) => PathBuf::from(folder),
            None => target_folder()?.join("rusqlite-fixtures"),
        };
        match os::private_folder(&folder) {
            Ok(()) => Some(folder),
            Err(error) => {
                warn(&folder, &error);
                None
            }
        }
    });
    folder.as_deref()
}

struct Image<'a> {
    folder: &'a Path,
    identity: u128,
    path: PathBuf,
    /// Locked by the process that builds it.
    lock: PathBuf,
    /// Exists if each process has to build the template itself.
    forbidden: PathBuf,
}

enum Lock {
    /// Another process has built the image meanwhile.
    Built(Content),
    NotToBeShared,
    /// This process has to build the image.
    ToBuild(LockFile),
}

impl Image<'_> {
    fn new<'a>(folder: &'a Path, label: &str, identity: &Identity<'_>) -> Image<'a> {
        let label: String = label.chars().take(40).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let lasting = identity.lasting.finish_128();
        let run = identity.run.map_or("-", |run| &run.of_build);
        let file = |extension: &str| folder.join(format!("{label}{run}{lasting:032x}.{extension}"));
        Image {
            folder,
            identity: identity.number(),
            path: file("sqlite3"),
            lock: file("lock"),
            forbidden: file("forbidden"),
        }
    }

    /// Returns the content, if there is an image and it is unchanged since it was sealed.
    fn load(&self) -> Option<Content> {
        let file = File::open(&self.path).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !os::is_private(&metadata) {
            return None;
        }
        let bytes = bytes_of(&file, metadata.len()).ok()?;
        let (content, seal) = Seal::split((*bytes).as_ref())?;
        let len = content.len();
        // This uses the metadata from after the read, because they show that nothing was written until then.
        if seal.identity != self.identity || !seal.is_whole(content, &file, &file.metadata().ok()?) {
            return None;
        }
        let snapshot = Snapshot::from_base(bytes, len).ok()?;
        // Only the image of a run may depend on the time, and a template that is based on it has one of the run too.
        Some(Content { snapshot, depends_on_time: false })
    }

    /// Waits until no other process builds the image. Gives up if that process waits for this one, or takes too long.
    fn lock(&self) -> io::Result<Lock> {
        if self.forbidden.exists() {
            return Ok(Lock::NotToBeShared);
        }
        let Some(file) = LockFile::acquire(&self.lock, lock::PATIENCE)? else { return Ok(Lock::NotToBeShared) };
        if let Some(content) = self.load() {
            return Ok(Lock::Built(content));
        }
        Ok(if self.forbidden.exists() { Lock::NotToBeShared } else { Lock::ToBuild(file) })
    }

    fn forbid(&self) -> io::Result<()> {
        os::open_private(&self.forbidden).map(drop)
    }

    fn save(&self, content: &Snapshot) -> io::Result<()> {
        if content.size() == 0 {
            return Ok(()); // there is nothing to share
        }
        let aside = self.path.with_extension(format!("{}.aside", process::id()));
        let _ = fs::remove_file(&aside); // an earlier process with the same id may have left it
        replace_file(&self.path, &aside, os::create_read_only, |file| self.write(content, file))
    }

    fn write(&self, content: &Snapshot, file: &mut File) -> io::Result<()> {
        let mut checksum = XxHash3_128::new();
        content.write_to(|chunk| {
            checksum.write(chunk);
            file.write_all(chunk)
        })?;
        let seal = Seal::new(self.identity, checksum.finish_128(), content.size());
        file.write_all(seal.to_string().as_bytes())?;
        file.set_modified(seal.modified())?;
        // The modification time will stand for the checksum, so it must not reach the disk before the content does.
        file.sync_all()
    }
}

/// The size of the largest image that is read into memory. Reading takes up to 0.1 ms longer than mapping (see DESIGN.md),
/// but is safe from truncation: access to a mapped part of a file that was truncated kills the process.
const READ_UP_TO: u64 = 256 << 10;

fn bytes_of(mut file: &File, len: u64) -> io::Result<Base> {
    if len > READ_UP_TO {
        return os::map(file);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Arc::new(bytes))
}

/// How long files are kept after their last modification.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// The number of newest files that are kept for that long. Others, and the images of a run, are kept for an hour.
const KEPT: usize = 200;

/// Removes old images and the files that belong to them. A process that has an image open can still use it.
fn prune(folder: &Path, run: Option<&TestRun>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let (of_runs, mut lasting): (Vec<_>, Vec<_>) = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            is_ours(&name).then_some((age(&entry)?, name))
        })
        .partition(|(_, name)| name.contains(OF_RUN));
    let remove = |name: &String| drop(fs::remove_file(folder.join(name))); // another process may have done it
    const HOUR: Duration = Duration::from_secs(3600);
    let is_superseded = |name: &str| run.is_some_and(|run| run.supersedes(name));
    of_runs.iter().filter(|(age, name)| *age > HOUR || is_superseded(name)).for_each(|(_, name)| remove(name));
    lasting.sort();
    for (rank, (age, name)) in lasting.iter().enumerate() {
        if *age > KEPT_FOR || (rank >= KEPT && *age > HOUR) {
            remove(name);
        }
    }
}

fn age(entry: &fs::DirEntry) -> Option<Duration> {
    let modified = entry.metadata().ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// Returns whether a file of this name is an image or belongs to one. The folder may contain other files.
fn is_ours(name: &str) -> bool {
    let Some((stem, extension)) = name.split_once('.') else { return false };
    let is_hash = |hash: &str| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_known = ["sqlite3", "lock", "forbidden"].contains(&extension) || extension.ends_with(".aside");
    is_known && stem.rsplit_once('-').is_some_and(|(_, hash)| is_hash(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_sqlite_was_compiled_is_known() {
        assert!(compile_options().unwrap().contains("THREADSAFE="), "{:?}", compile_options());
    }
}
