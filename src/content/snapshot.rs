use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};

use super::pages::{Base, Pages};
use super::replace_file::replace_file;
use super::schema::Schema;
use crate::error::{Error, Result};

/// An immutable copy of a database's content at one moment.
///
/// Taking a snapshot ([`Engine::snapshot`]), restoring it ([`Engine::restore`]), creating an engine of it
/// ([`Snapshot::new_engine`]) and cloning it copy no page.
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
/// let other = empty.new_engine(); // the table is there, the row is not
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

/// The journal mode of a database (`PRAGMA journal_mode`). In a file, the format versions in the header hold it: two
/// bytes. Here it is separate from the pages, whose header always says rollback; otherwise SQLite would look for a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalMode {
    Rollback,
    Wal,
}

struct Image {
    pages: Pages,
    schema: Schema,
}

/// The two numbers in the header by which a connection detects a stale page cache or schema (SQLite's "Database File
/// Format", sections 1.3.7 and 1.3.9).
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
const LARGEST_ROOT: usize = 52; // not zero if the database has automatic vacuum
const TEXT_ENCODING: usize = 56;
const INCREMENTAL_VACUUM: usize = 64;
const VERSION_VALID_FOR: usize = 92;
const ROLLBACK_JOURNAL: [u8; 2] = [1, 1];
const WAL: u8 = 2;

/// What a connection keeps of the header until it reads another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    encoding: u32,
    page_size: [u8; 2],
    vacuum: [bool; 2],
}

/// SQLite's number of the encoding of a new database.
const UTF_8: u32 = 1;

impl Format {
    pub(crate) fn is_utf_8(self) -> bool {
        self.encoding == UTF_8
    }
}

impl Stamp {
    pub(crate) fn of(pages: &Pages) -> Stamp {
        Stamp { change_counter: number(pages, CHANGE_COUNTER), schema_cookie: number(pages, SCHEMA_COOKIE) }
    }

    /// Returns the later one of each number.
    pub(crate) fn max(self, other: Stamp) -> Stamp {
        let later = |one, other| if is_ahead(one, other) { one } else { other };
        Stamp {
            change_counter: later(self.change_counter, other.change_counter),
            schema_cookie: later(self.schema_cookie, other.schema_cookie),
        }
    }
}

impl Snapshot {
    /// Creates a snapshot of the content of a SQLite database file. A `Vec<u8>` is kept, not copied.
    ///
    /// If the database is in WAL mode, these bytes lack the content of the `-wal` file beside the database file.
    /// [`Snapshot::open`] reads that too.
    ///
    /// # Errors
    /// [`NotADatabase`](crate::ErrorKind::NotADatabase) if the bytes are empty, don't start with SQLite's header, or
    /// are fewer than the header says.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Snapshot> {
        let bytes = bytes.into();
        let len = bytes.len();
        Snapshot::from_base(Arc::new(bytes), len).map_err(|flaw| Error::not_a_database("these bytes", flaw))
    }

    /// Creates a snapshot of the first `len` of these bytes. The error describes what is wrong with them.
    pub(crate) fn from_base(base: Base, len: usize) -> std::result::Result<Snapshot, String> {
        check_header(&(*base).as_ref()[..len], len)?;
        let mut pages = Pages::from_base(base, len);
        let journal_mode = if take_wal_mark(&mut pages) { JournalMode::Wal } else { JournalMode::Rollback };
        if number(&pages, SCHEMA_COOKIE) == 0 {
            pages.write(SCHEMA_COOKIE, &1u32.to_be_bytes()); // zero marks an empty database
        }
        Ok(Snapshot(Snapshot::new(pages).0, journal_mode))
    }

    /// Reads a database file through SQLite, including the commits in its `-wal` file. Waits up to 5 s for another
    /// process that is writing to the file. Using the snapshot does not change the file.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the file is missing, is a folder or can't be read;
    /// [`NotADatabase`](crate::ErrorKind::NotADatabase) if it is no SQLite database or is cut short;
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite can't read it: because a crashed program left a journal that has
    /// to be rolled back (open the file once with the `sqlite3` program), or because it is larger than 2 GiB.
    pub fn open(path: impl AsRef<Path>) -> Result<Snapshot> {
        let path = path.as_ref();
        let io_error = |cause| Error::io("open a snapshot of", path, cause);
        let flawed = |flaw| Error::not_a_database(&format!("the file `{}`", path.display()), flaw);
        let file = fs::metadata(path).map_err(io_error)?;
        let len = saturating_len(file.len());
        if file.is_dir() {
            return Err(io_error(io::ErrorKind::IsADirectory.into()));
        }
        if len == 0 {
            check_start(&[], len).map_err(flawed)?;
        }
        match read_through_sqlite(path) {
            Ok(ReadFile { bytes, len }) if len < bytes.len() && bytes[FORMAT_VERSIONS] != WAL => {
                Err(flawed(format!("it is truncated: it has {len} bytes, and its header declares {}", bytes.len())))
            }
            Ok(ReadFile { bytes, .. }) => Snapshot::from_bytes(bytes),
            Err(cause) if is_of_an_intact_file(&cause) => Err(Error::open_snapshot(path, cause)),
            Err(cause) => {
                let header = read_header(path).map_err(io_error)?;
                Err(check_header(&header, len).err().map_or_else(|| Error::open_snapshot(path, cause), flawed))
            }
        }
    }

    /// Returns the content that the connection sees in its transaction.
    pub(crate) fn of_transaction(connection: &mut Connection) -> Result<Snapshot> {
        Snapshot::from_bytes(read_in_transaction(connection)?)
    }

    /// Writes the content to a file, an ordinary SQLite database. Once all of it is written, a rename replaces an
    /// existing file.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the file can't be written, or if there is a `-wal` or `-journal` file beside it:
    /// SQLite would take that for a part of the new database.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.write_aside(path).map_err(|cause| Error::io("save a snapshot as", path, cause))
    }

    /// Returns the content: the bytes of a SQLite database file. They are empty if nothing was ever written to
    /// the engine. If the engine is in WAL mode, the bytes have the mark of WAL mode: SQLite opens them as a file but
    /// does not deserialize them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.pages.to_vec();
        self.mark(&mut bytes);
        bytes
    }

    /// Writes the journal mode to the header, in these first bytes of the content.
    fn mark(&self, start: &mut [u8]) {
        if let (JournalMode::Wal, Some(versions)) = (self.1, start.get_mut(FORMAT_VERSIONS..FORMAT_VERSIONS + 2)) {
            versions.fill(WAL);
        }
    }

    pub(crate) fn journal_mode(&self) -> JournalMode {
        self.1
    }

    /// Returns the same content in this journal mode.
    pub(crate) fn in_journal_mode(&self, mode: JournalMode) -> Snapshot {
        Snapshot(self.0.clone(), mode)
    }

    /// Passes the bytes of the content to `write`, in chunks.
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

    /// Returns the size of the content in bytes.
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

    /// Returns whether both are clones of one snapshot.
    pub(crate) fn ptr_eq(&self, other: &Snapshot) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns whether both hold the same pages.
    pub(crate) fn same_content(&self, other: &Snapshot) -> bool {
        self.0.pages.same(&other.0.pages)
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::of(&self.0.pages)
    }

    /// Returns whether both are known to have the same schema and the same fields of the header that a connection reads
    /// with it. A connection that reads one after the other then keeps nothing of the first.
    pub(crate) fn has_schema_of(&self, other: &Snapshot) -> bool {
        self.0.schema.ptr_eq(&other.0.schema)
    }

    pub(crate) fn has_virtual_tables(&self) -> bool {
        self.0.schema.has_virtual_tables(&self.0.pages)
    }

    /// Returns SQLite's number of the text encoding; an empty database has none yet.
    pub(crate) fn text_encoding(&self) -> Option<u32> {
        Some(number(&self.0.pages, TEXT_ENCODING)).filter(|encoding| *encoding != 0)
    }

    /// Returns the format of the database; an empty one has none yet.
    pub(crate) fn format(&self) -> Option<Format> {
        let mut header = [0; HEADER];
        self.0.pages.read(0, &mut header);
        let is_set = |at: usize| header[at..at + 4] != [0; 4];
        (self.size() > 0).then(|| Format {
            encoding: u32::from(header[TEXT_ENCODING + 3]).max(UTF_8), // none is set before the first table
            page_size: [header[PAGE_SIZE], header[PAGE_SIZE + 1]],
            vacuum: [is_set(LARGEST_ROOT), is_set(INCREMENTAL_VACUUM)],
        })
    }

    /// Returns the snapshot that a connection commits over `self`. Replaces numbers of the connection that are not
    /// ahead of `highest`. (The connection increments the numbers that it read. After a restore, other connections have
    /// seen later numbers.) `cookie_before` is the schema cookie that the connection saw before its changes. It differs
    /// from `self`'s if the connection's latest commit was stamped with another cookie.
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
            // This differs from the committing connection's number too, so it detects that its page 1 was changed.
            new.change_counter = next(highest.max(new).change_counter);
            stamp(&mut pages, new);
        }
        let schema = if schema_changed { Schema::new() } else { self.0.schema.clone() };
        Snapshot(Arc::new(Image { pages, schema }), self.1)
    }

    /// Returns `self` with numbers that can follow `current`: a change counter ahead of `highest`, and a new schema
    /// cookie too, unless both have the same schema and it has no virtual tables.
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
        replace_file(
            path,
            &aside,
            |path| fs::File::create_new(path),
            |file| self.write_to(|chunk| file.write_all(chunk)),
        )
    }
}

thread_local! {
    /// The latest snapshot of this thread that was found to be unequal to another one, and what has changed from that one.
    static UNEQUAL: RefCell<Option<(Snapshot, String)>> = const { RefCell::new(None) };
}

impl Snapshot {
    /// Has the next `Debug` of this snapshot on this thread print these changes. `assert_eq!` prints its two sides one after the
    /// other, so the second one can say in what it differs from the first.
    pub(crate) fn explain_next(&self, changes: String) {
        let _ = UNEQUAL.try_with(|unequal| *unequal.borrow_mut() = Some((self.clone(), changes)));
    }

    fn explanation(&self) -> Option<String> {
        let is_it = |unequal: &(Snapshot, String)| unequal.0.ptr_eq(self);
        let taken = UNEQUAL.try_with(|unequal| unequal.borrow_mut().take_if(|unequal| is_it(unequal))).ok().flatten();
        taken.map(|(_, changes)| changes)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("size", &self.size()).field("stamp", &self.stamp()).finish()?;
        match self.explanation() {
            Some(changes) => write!(f, ", which differs by:\n{changes}"),
            None => Ok(()),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns whether the file may be a database that other connections use. It must not be opened then, except through SQLite:
/// "all locks held by the process on that file are dropped when it is closed" ("How To Corrupt An SQLite Database File").
fn is_of_an_intact_file(cause: &rusqlite::Error) -> bool {
    matches!(
        cause.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory | ErrorCode::SystemIoFailure)
    )
}

fn read_header(path: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    fs::File::open(path)?.take(HEADER as u64).read_to_end(&mut header)?;
    Ok(header)
}

struct ReadFile {
    bytes: Vec<u8>,
    /// The length of the file at that time. In WAL mode, the database may be longer.
    len: usize,
}

/// Reads the file through SQLite, which respects locks, journals and the WAL.
fn read_through_sqlite(path: &Path) -> rusqlite::Result<ReadFile> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The flags share no bit, so `^` gives the same result (exempted in mutants.toml).
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = &mut Connection::open_with_flags(&path, flags)?; // serialize takes &self in some versions
    connection.execute_batch("BEGIN")?; // keeps the file unchanged until its length is read
    let bytes = read_in_transaction(connection)?;
    let len = fs::metadata(&path).map_or(bytes.len(), |file| saturating_len(file.len()));
    Ok(ReadFile { bytes, len })
}

fn read_in_transaction(connection: &mut Connection) -> rusqlite::Result<Vec<u8>> {
    // This makes SQLite report its own error about the file; serialize reports only "out of memory".
    connection.execute_batch("SELECT 1 FROM sqlite_schema")?;
    Ok(connection.serialize(MAIN_DB)?.to_vec())
}

/// Checks that this is the start of a database of `len` bytes. The error describes what is wrong.
fn check_start(bytes: &[u8], len: usize) -> std::result::Result<(), String> {
    if bytes.is_empty() {
        return Err("it is empty (Engine::new() makes an empty database)".into());
    }
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start with SQLite's header string, \"SQLite format 3\"".into());
    }
    if bytes.len() < HEADER {
        return Err(format!("it is truncated: it has {len} bytes, fewer than the {HEADER} of SQLite's header"));
    }
    Ok(())
}

/// Checks that the header fits a database of `len` bytes. The error describes what is wrong.
fn check_header(bytes: &[u8], len: usize) -> std::result::Result<(), String> {
    check_start(bytes, len)?;
    let page_size = match u16::from_be_bytes([bytes[PAGE_SIZE], bytes[PAGE_SIZE + 1]]) {
        1 => 65_536,
        size if size >= 512 && size.is_power_of_two() => usize::from(size),
        size => return Err(format!("its header declares a page size of {size}, which SQLite does not support")),
    };
    if bytes[FORMAT_VERSIONS + 1] > WAL {
        return Err(format!("its header requires version {} of the file format", bytes[FORMAT_VERSIONS + 1]));
    }
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let counted = number(CHANGE_COUNTER) == number(VERSION_VALID_FOR);
    let pages = if counted { number(PAGE_COUNT) as usize } else { 1 };
    if !has_room(len, pages.max(1), page_size) {
        return Err(format!(
            "it is truncated: it has {len} bytes, and its header declares {pages} pages of {page_size}"
        ));
    }
    if !len.is_multiple_of(page_size) {
        return Err(format!("it has {len} bytes, which is not a multiple of its page size {page_size}"));
    }
    Ok(())
}

/// Returns whether this number of pages fits into `len` bytes; `false` if it exceeds even the address space.
fn has_room(len: usize, pages: usize, page_size: usize) -> bool {
    pages.checked_mul(page_size).is_some_and(|promised| promised <= len)
}

/// Converts a file's length. A length beyond the address space becomes `usize::MAX`.
fn saturating_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn number(pages: &Pages, at: usize) -> u32 {
    let mut bytes = [0; 4];
    pages.read(at, &mut bytes);
    u32::from_be_bytes(bytes)
}

/// Writes the numbers to the header of the content. Does nothing if that is empty.
fn stamp(pages: &mut Pages, stamp: Stamp) {
    if pages.len() == 0 {
        return;
    }
    // SQLite uses the page count in the header only if these two are equal. From now on, they are equal.
    if number(pages, CHANGE_COUNTER) != number(pages, VERSION_VALID_FOR) {
        let page_count = pages.len() / page_size(pages);
        pages.write(PAGE_COUNT, &(page_count as u32).to_be_bytes());
    }
    pages.write(CHANGE_COUNTER, &stamp.change_counter.to_be_bytes());
    pages.write(VERSION_VALID_FOR, &stamp.change_counter.to_be_bytes());
    pages.write(SCHEMA_COOKIE, &stamp.schema_cookie.to_be_bytes());
}

/// Removes the mark of WAL mode from the header, and returns whether it was there. An engine has no WAL, so a database
/// in WAL mode would not open. These two bytes are the only mark.
pub(crate) fn take_wal_mark(pages: &mut Pages) -> bool {
    let mut versions = [0; 2];
    pages.read(FORMAT_VERSIONS, &mut versions);
    if versions.contains(&WAL) {
        pages.write(FORMAT_VERSIONS, &ROLLBACK_JOURNAL);
    }
    versions.contains(&WAL)
}

/// Increments the change counter of the content.
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

/// Returns whether `number` comes after `other`. The numbers wrap around, as SQLite's do.
fn is_ahead(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).cast_signed() > 0
}

/// Returns the number after this one. It is never zero, the number of an empty database.
fn next(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In 32 bits, the size of 65,536 pages of 65,536 bytes wraps around to zero.
    #[test]
    fn more_pages_than_the_address_space_has_do_not_fit() {
        assert!(has_room(8192, 2, 4096));
        assert!(!has_room(8191, 2, 4096));
        assert!(has_room(usize::MAX, 1, usize::MAX));
        assert!(!has_room(usize::MAX, usize::MAX / 2 + 1, 2), "the product would wrap around to zero");
        assert_eq!(saturating_len(100), 100);
    }
}
