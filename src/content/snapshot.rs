use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, OpenFlags};

use super::pages::{Base, Pages};
use super::schema::Schema;
use crate::error::{Error, Result};

/// An immutable image of a database at one moment.
///
/// Taking one ([`Engine::snapshot`]), going back to one ([`Engine::restore`]) and making an engine of one
/// ([`Snapshot::engine`]) copies no page, whatever the size; nor does cloning one.
///
/// ```
/// # use rusqlite_fixtures::{Engine, Result};
/// # fn main() -> Result<()> {
/// let engine = Engine::new();
/// let connection = engine.connect()?;
/// connection.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT)")?;
/// let empty = engine.snapshot();
/// connection.execute("INSERT INTO account VALUES (1, 100)", [])?;
///
/// let other = empty.engine(); // the table is there, the row is not
/// let sql = "SELECT count(*) FROM account";
/// let count: i64 = other.connect()?.query_row(sql, [], |row| row.get(0))?;
/// assert_eq!(count, 0);
/// # Ok(())
/// # }
/// ```
///
/// [`Engine::snapshot`]: crate::Engine::snapshot
/// [`Engine::restore`]: crate::Engine::restore
#[derive(Clone)]
pub struct Snapshot(Arc<Image>, JournalMode);

/// What `PRAGMA journal_mode` says of a database: in a file, the two bytes of the header that hold the format versions.
/// Here it is kept apart from the pages, in which those bytes always say rollback, or SQLite would look for a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalMode {
    Rollback,
    Wal,
}

struct Image {
    pages: Pages,
    schema: Schema,
}

/// The two numbers by which a connection tells whether what it keeps in memory is still what the database holds
/// (SQLite's "Database File Format", sections 1.3.7 and 1.3.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) change_counter: u32,
    pub(crate) schema_cookie: u32,
}

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER: usize = 100;
const PAGE_SIZE: usize = 16;
const FORMAT_VERSIONS: usize = 18;
const CHANGE_COUNTER: usize = 24;
const PAGE_COUNT: usize = 28;
const SCHEMA_COOKIE: usize = 40;
const TEXT_ENCODING: usize = 56;
const VERSION_VALID_FOR: usize = 92;
const ROLLBACK_JOURNAL: [u8; 2] = [1, 1];
const WAL: u8 = 2;

impl Stamp {
    pub(crate) fn of(pages: &Pages) -> Stamp {
        Stamp { change_counter: number(pages, CHANGE_COUNTER), schema_cookie: number(pages, SCHEMA_COOKIE) }
    }

    /// The farther one of each number.
    pub(crate) fn max(self, other: Stamp) -> Stamp {
        let farther = |one, other| if is_ahead(one, other) { one } else { other };
        Stamp {
            change_counter: farther(self.change_counter, other.change_counter),
            schema_cookie: farther(self.schema_cookie, other.schema_cookie),
        }
    }
}

impl Snapshot {
    /// The image that these bytes are: the content of a SQLite database file. They are kept, not copied, when they come
    /// as a `Vec<u8>`.
    ///
    /// A database in WAL mode is taken as it is in these bytes; what is still in a `-wal` file beside the database file
    /// is no part of them ([`Snapshot::open`] reads it too).
    ///
    /// # Errors
    /// [`NotADatabase`](crate::ErrorKind::NotADatabase) when the bytes are empty, don't start with SQLite's header, or
    /// are fewer than the header says.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Snapshot> {
        let bytes = bytes.into();
        let len = bytes.len();
        Snapshot::from_base(Arc::new(bytes), len).map_err(|flaw| Error::not_a_database("these bytes", flaw))
    }

    /// The image that the first `len` of these bytes are; the error says what is wrong with them.
    pub(crate) fn from_base(base: Base, len: usize) -> std::result::Result<Snapshot, String> {
        check_header(&(*base).as_ref()[..len], len)?;
        let mut pages = Pages::from_base(base, len);
        let journal_mode = if take_wal_mark(&mut pages) { JournalMode::Wal } else { JournalMode::Rollback };
        if number(&pages, SCHEMA_COOKIE) == 0 {
            pages.write(SCHEMA_COOKIE, &1u32.to_be_bytes()); // zero is an empty database's
        }
        Ok(Snapshot(Snapshot::new(pages).0, journal_mode))
    }

    /// The content of a database file, as SQLite reads it: with what is committed in its `-wal` file, and waiting up to
    /// 5 s for another process that is writing to it. The file is not changed by what is done with the snapshot.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when the file is missing, is a folder or can't be read;
    /// [`NotADatabase`](crate::ErrorKind::NotADatabase) when it is no SQLite database or cut short;
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't read it, as when a crashed program left a journal to be
    /// rolled back (open it once with the `sqlite3` program), or when it is larger than 2 GiB.
    pub fn open(path: impl AsRef<Path>) -> Result<Snapshot> {
        let path = path.as_ref();
        let io_error = |cause| Error::io("open a snapshot of", path, cause);
        let flawed = |flaw| Error::not_a_database(&format!("the file `{}`", path.display()), flaw);
        let mut header = Vec::new();
        let file = fs::File::open(path).map_err(io_error)?;
        let len = in_memory(file.metadata().map_err(io_error)?.len());
        file.take(HEADER as u64).read_to_end(&mut header).map_err(io_error)?;
        check_start(&header, len).map_err(flawed)?;
        match read_through_sqlite(path) {
            Ok(ReadFile { bytes, len }) if len < bytes.len() && bytes[FORMAT_VERSIONS] != WAL => {
                Err(flawed(format!("it is cut short: {len} bytes, where its header promises {}", bytes.len())))
            }
            Ok(ReadFile { bytes, .. }) => Snapshot::from_bytes(bytes),
            // What the header promises is known for sure only after SQLite has locked the file, and found it wanting.
            Err(cause) => {
                Err(check_header(&header, len).err().map_or_else(|| Error::open_snapshot(path, cause), flawed))
            }
        }
    }

    /// Writes the image to a file, an ordinary SQLite database. A file of that name is replaced, by a rename, once all
    /// of the image is written.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when the file can't be written, or when a `-wal` or `-journal` file stands beside
    /// it: SQLite would take that for a part of the new database.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.write_aside(path).map_err(|cause| Error::io("save a snapshot as", path, cause))
    }

    /// A copy of the image: the bytes of a SQLite database file. An engine to which nothing was ever written gives none.
    /// Of an engine in WAL mode, they are those of a database in WAL mode, which SQLite opens as a file but does not
    /// deserialize.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.pages.to_vec();
        self.mark(&mut bytes);
        bytes
    }

    /// Has the header, in these first bytes of the image, say the journal mode.
    fn mark(&self, start: &mut [u8]) {
        if let (JournalMode::Wal, Some(versions)) = (self.1, start.get_mut(FORMAT_VERSIONS..FORMAT_VERSIONS + 2)) {
            versions.fill(WAL);
        }
    }

    pub(crate) fn journal_mode(&self) -> JournalMode {
        self.1
    }

    /// The same image in this mode.
    pub(crate) fn in_journal_mode(&self, mode: JournalMode) -> Snapshot {
        Snapshot(self.0.clone(), mode)
    }

    /// Gives out the bytes of the image, in chunks.
    pub(crate) fn write_to(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; 1 << 16];
        (0..self.size()).step_by(chunk.len()).try_for_each(|at| {
            let len = self.0.pages.read(at, &mut chunk);
            if at == 0 {
                self.mark(&mut chunk[..len]);
            }
            write(&chunk[..len])
        })
    }

    /// Bytes of the image.
    pub fn size(&self) -> usize {
        self.0.pages.len()
    }

    pub(crate) fn empty() -> Snapshot {
        Snapshot::new(Pages::default())
    }

    fn new(pages: Pages) -> Snapshot {
        Snapshot(Arc::new(Image { pages, schema: Schema::new() }), JournalMode::Rollback)
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.0.pages
    }

    /// Whether both are clones of one snapshot.
    pub(crate) fn is(&self, other: &Snapshot) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether both hold the same pages.
    pub(crate) fn same_content(&self, other: &Snapshot) -> bool {
        self.0.pages.same(&other.0.pages)
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::of(&self.0.pages)
    }

    /// SQLite's number of the encoding that texts are stored in; an empty database has none yet.
    pub(crate) fn text_encoding(&self) -> Option<u32> {
        Some(number(&self.0.pages, TEXT_ENCODING)).filter(|encoding| *encoding != 0)
    }

    /// What a connection committed over `self`, with numbers that `highest` has not seen where those it chose have been
    /// used before. (It counts on from what it read, which after a restore is less than what others have seen.)
    /// `cookie_before` is the schema cookie that it saw before it changed anything; it differs from `self`'s where its
    /// own latest commit was given another.
    pub(crate) fn committed(&self, mut pages: Pages, cookie_before: u32, highest: Stamp) -> Snapshot {
        let written = Stamp::of(&pages);
        let mut new = written;
        let has_new_cookie = new.schema_cookie != cookie_before;
        let schema_changed = has_new_cookie || !self.0.schema.is_unchanged(&self.0.pages, &pages);
        if !schema_changed {
            new.schema_cookie = self.stamp().schema_cookie;
        } else if !has_new_cookie || !is_ahead(new.schema_cookie, highest.schema_cookie) {
            new.schema_cookie = next(highest.schema_cookie);
        }
        if new != written || !is_ahead(new.change_counter, highest.change_counter) {
            // Not the committing connection's own number either: it has to notice that its page 1 was changed.
            new.change_counter = next(highest.max(new).change_counter);
            stamp(&mut pages, new);
        }
        let schema = if schema_changed { Schema::new() } else { self.0.schema.clone() };
        Snapshot(Arc::new(Image { pages, schema }), self.1)
    }

    /// `self` as it can follow `current`: with a change counter that `highest` has not seen, and with a new schema
    /// cookie too unless both have the same schema, and that has no virtual tables.
    pub(crate) fn restamped(&self, current: &Snapshot, highest: Stamp) -> Snapshot {
        let (mut pages, schema) = (self.0.pages.clone(), self.0.schema.clone());
        let same_schema = schema.ptr_eq(&current.0.schema) && !schema.has_virtual_tables(&self.0.pages);
        let schema_cookie = if same_schema { current.stamp().schema_cookie } else { next(highest.schema_cookie) };
        stamp(&mut pages, Stamp { change_counter: next(highest.change_counter), schema_cookie });
        Snapshot(Arc::new(Image { pages, schema }), self.1)
    }

    fn write_aside(&self, path: &Path) -> io::Result<()> {
        for suffix in ["-wal", "-journal"] {
            let beside = with_suffix(path, suffix);
            if fs::metadata(&beside).is_ok_and(|file| file.len() > 0) {
                let reason =
                    format!("`{}` belongs to another database of that name; remove it first", beside.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
            }
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let aside = with_suffix(path, &format!("-{}-{number}", std::process::id()));
        let mut file = fs::File::create_new(&aside)?;
        let written = self.write_to(|chunk| file.write_all(chunk)).and_then(|()| fs::rename(&aside, path));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("size", &self.size()).field("stamp", &self.stamp()).finish()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

struct ReadFile {
    bytes: Vec<u8>,
    /// How long the file was then; in WAL mode the database may be longer.
    len: usize,
}

/// Lets SQLite read the file, so that locks, journals and WAL are honoured.
fn read_through_sqlite(path: &Path) -> rusqlite::Result<ReadFile> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // No bit is in both, so `^` would do (exempted in mutants.toml).
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = &mut Connection::open_with_flags(&path, flags)?; // serialize takes &self in some versions
    // So that what SQLite has to say of the file comes as its own error; serialize knows but "out of memory". And so that
    // the file stays as it is until its length is known.
    connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema")?;
    let bytes = connection.serialize("main")?.to_vec();
    let len = fs::metadata(&path).map_or(bytes.len(), |file| in_memory(file.len()));
    Ok(ReadFile { bytes, len })
}

/// Checks that this is the start of a database of `len` bytes; the error says what is wrong.
fn check_start(bytes: &[u8], len: usize) -> std::result::Result<(), String> {
    if bytes.is_empty() {
        return Err("it is empty (Engine::new() makes an empty database)".into());
    }
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start with SQLite's header string, \"SQLite format 3\"".into());
    }
    if bytes.len() < HEADER {
        return Err(format!("it is cut short: {len} bytes, fewer than the {HEADER} of SQLite's header"));
    }
    Ok(())
}

/// Checks that the header is one of a database of `len` bytes; the error says what is wrong.
fn check_header(bytes: &[u8], len: usize) -> std::result::Result<(), String> {
    check_start(bytes, len)?;
    let page_size = match u16::from_be_bytes([bytes[PAGE_SIZE], bytes[PAGE_SIZE + 1]]) {
        1 => 65_536,
        size if size >= 512 && size.is_power_of_two() => usize::from(size),
        size => return Err(format!("its header gives a page size of {size}, which SQLite does not have")),
    };
    if bytes[FORMAT_VERSIONS + 1] > WAL {
        return Err(format!("its header asks for version {} of the file format", bytes[FORMAT_VERSIONS + 1]));
    }
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let counted = number(CHANGE_COUNTER) == number(VERSION_VALID_FOR);
    let pages = if counted { number(PAGE_COUNT) as usize } else { 1 };
    if !has_room(len, pages.max(1), page_size) {
        return Err(format!("it is cut short: {len} bytes, where its header promises {pages} pages of {page_size}"));
    }
    if !len.is_multiple_of(page_size) {
        return Err(format!("it has {len} bytes, which is no whole number of its pages of {page_size}"));
    }
    Ok(())
}

/// Whether so many pages fit into `len` bytes; not if they would not even fit into the address space.
fn has_room(len: usize, pages: usize, page_size: usize) -> bool {
    pages.checked_mul(page_size).is_some_and(|promised| promised <= len)
}

/// A file's length; one that does not fit into the address space is as long as that.
fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn number(pages: &Pages, at: usize) -> u32 {
    let mut bytes = [0; 4];
    pages.read(at, &mut bytes);
    u32::from_be_bytes(bytes)
}

/// Writes the numbers into the header of an image; into one that is empty, nothing.
fn stamp(pages: &mut Pages, stamp: Stamp) {
    if pages.len() == 0 {
        return;
    }
    // SQLite believes the page count in the header only where these two are equal, which they will be from now on.
    if number(pages, CHANGE_COUNTER) != number(pages, VERSION_VALID_FOR) {
        let page_count = pages.len() / page_size(pages);
        pages.write(PAGE_COUNT, &(page_count as u32).to_be_bytes());
    }
    pages.write(CHANGE_COUNTER, &stamp.change_counter.to_be_bytes());
    pages.write(VERSION_VALID_FOR, &stamp.change_counter.to_be_bytes());
    pages.write(SCHEMA_COOKIE, &stamp.schema_cookie.to_be_bytes());
}

/// Has the header say that the database is in no WAL mode; says whether it was. An engine has no WAL, so a database in WAL
/// mode would not open; these two bytes are all that says so.
pub(crate) fn take_wal_mark(pages: &mut Pages) -> bool {
    let mut versions = [0; 2];
    pages.read(FORMAT_VERSIONS, &mut versions);
    if versions.contains(&WAL) {
        pages.write(FORMAT_VERSIONS, &ROLLBACK_JOURNAL);
    }
    versions.contains(&WAL)
}

/// Gives the image the next change counter.
pub(crate) fn count_on(pages: &mut Pages) {
    let Stamp { change_counter, schema_cookie } = Stamp::of(pages);
    stamp(pages, Stamp { change_counter: next(change_counter), schema_cookie });
}

fn page_size(pages: &Pages) -> usize {
    match number(pages, PAGE_SIZE) >> 16 {
        1 => 65_536,
        size => size as usize,
    }
}

/// Whether `number` comes after `other`, in numbers that wrap around as SQLite's do.
fn is_ahead(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).cast_signed() > 0
}

/// The number after this one; never zero, which is what an empty database has.
fn next(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 65,536 pages of 65,536 bytes are none in 32 bits.
    #[test]
    fn a_header_may_promise_more_than_the_address_space_has() {
        assert!(has_room(8192, 2, 4096));
        assert!(!has_room(8191, 2, 4096));
        assert!(has_room(usize::MAX, 1, usize::MAX));
        assert!(!has_room(usize::MAX, usize::MAX / 2 + 1, 2), "which would wrap around to zero");
        assert_eq!(in_memory(100), 100);
    }
}
