//! SQLite's VFS interface, translated to [`Handle`]. With `journal` and `session`, the only module with `unsafe`.
//!
//! What SQLite promises and asks for is in its documentation: "The SQLite OS Interface or VFS" and the interface pages
//! of `sqlite3_vfs`, `sqlite3_io_methods` and `sqlite3_file_control`. The SAFETY sentences refer to them by those names.
#![allow(unsafe_code, reason = "SQLite is a C library; this module and those in it are where that is crossed")]

pub(crate) mod external;
mod handle;
mod journal;
mod mount;
mod polling;
mod report;
pub(crate) mod script;
mod session;
mod waiting;
mod watch;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;
use std::{iter, ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use self::handle::{Caller, Code, Handle, Lock, Pragma};
use self::mount::FileName;
pub(crate) use self::mount::{Mount, Name};
#[cfg(feature = "proptest")]
pub(crate) use self::session::set_busy_handler;
pub(crate) use self::session::{OnConnect, Session, Setup, connect, is_connected};
use crate::faults::{self, Call};

/// Of SQLite 3.48, so that not all bindings have it. Older versions of SQLite don't look at it.
const SQLITE_IOCAP_SUBPAGE_READ: c_int = 0x8000;

/// Of SQLite 3.38, which the bindings of the oldest libsqlite3-sys don't have.
const SQLITE_FCNTL_EXTERNAL_READER: c_int = 40;

/// With the version, so that two versions of this crate in one program don't take each other's place.
const NAME: &CStr =
    match CStr::from_bytes_with_nul(concat!("rusqlite-fixtures-", env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(name) => name,
        Err(_) => unreachable!(),
    };

/// Registers the VFS with SQLite, once in a process.
///
/// # Panics
/// When SQLite refuses, which it does only when it is out of memory or was built to not initialise.
pub(crate) fn register() {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // SAFETY: sqlite3_vfs_find may be called at any time; NULL asks for the default VFS.
        let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!default.is_null(), "SQLite has no default VFS");
        let vfs = Box::leak(Box::new(new_vfs(default)));
        // SAFETY: the structure is complete, and lives and stays in its place for ever, as sqlite3_vfs_register asks.
        let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
        assert_eq!(code, ffi::SQLITE_OK, "SQLite did not register the VFS {NAME:?}");
    });
}

/// The URI by which SQLite opens the engine.
pub(crate) fn uri(mount: &Mount) -> String {
    format!("file:{}?vfs={}", mount.file_name(), NAME.to_string_lossy())
}

/// The VFS: engines by their names, and every other file by the default VFS, which `pAppData` points to.
fn new_vfs(default: *mut sqlite3_vfs) -> sqlite3_vfs {
    // SAFETY: `default` is registered, so it is valid, and what is read here is set before registration.
    let (version, os_file, max_pathname) = unsafe { ((*default).iVersion, (*default).szOsFile, (*default).mxPathname) };
    sqlite3_vfs {
        iVersion: version.min(2),
        szOsFile: os_file.max(size_of::<File>().max(journal::SIZE) as c_int),
        mxPathname: max_pathname,
        pNext: ptr::null_mut(),
        zName: NAME.as_ptr(),
        pAppData: default.cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: Some(dl_open),
        xDlError: Some(dl_error),
        xDlSym: Some(dl_sym),
        xDlClose: Some(dl_close),
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(get_last_error),
        xCurrentTimeInt64: Some(current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

/// # Safety
/// `vfs` is the one that `register` made.
unsafe fn default_vfs(vfs: *mut sqlite3_vfs) -> *mut sqlite3_vfs {
    // SAFETY: `new_vfs` put the default VFS there, and nobody changes it.
    unsafe { (*vfs).pAppData.cast() }
}

/// Methods that are the default VFS's, called with that VFS.
macro_rules! delegate {
    ($($name:ident is $method:ident($($arg:ident: $type:ty),*) -> $result:ty, or $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $arg: $type)*) -> $result {
            // SAFETY: SQLite calls a VFS's methods with that VFS.
            let default = unsafe { default_vfs(vfs) };
            // SAFETY: the default VFS is registered, so it is valid.
            match unsafe { (*default).$method } {
                // SAFETY: the arguments are those that SQLite gave for the same method.
                Some(method) => unsafe { method(default $(, $arg)*) },
                None => $otherwise,
            }
        }
    )*};
}

type Symbol = Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char)>;

delegate! {
    default_open is xOpen(name: *const c_char, file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int,
        or ffi::SQLITE_CANTOPEN;
    default_delete is xDelete(name: *const c_char, sync: c_int) -> c_int, or ffi::SQLITE_IOERR_DELETE;
    default_access is xAccess(name: *const c_char, flags: c_int, result: *mut c_int) -> c_int, or ffi::SQLITE_IOERR;
    default_full_pathname is xFullPathname(name: *const c_char, size: c_int, out: *mut c_char) -> c_int,
        or ffi::SQLITE_CANTOPEN;
    dl_open is xDlOpen(name: *const c_char) -> *mut c_void, or ptr::null_mut();
    dl_error is xDlError(size: c_int, message: *mut c_char) -> (), or ();
    dl_sym is xDlSym(library: *mut c_void, name: *const c_char) -> Symbol, or None;
    dl_close is xDlClose(library: *mut c_void) -> (), or ();
    randomness is xRandomness(size: c_int, out: *mut c_char) -> c_int, or 0;
    default_sleep is xSleep(microseconds: c_int) -> c_int, or 0;
    default_current_time is xCurrentTime(out: *mut f64) -> c_int, or ffi::SQLITE_ERROR;
    get_last_error is xGetLastError(size: c_int, out: *mut c_char) -> c_int, or 0;
    default_current_time_int64 is xCurrentTimeInt64(out: *mut sqlite3_int64) -> c_int, or ffi::SQLITE_ERROR;
}

/// What SQLite's own busy handler (`sqlite3_busy_timeout`) does between two looks. Where an engine's connection called it, that
/// waits in the engine's queue instead.
unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    let time = Duration::from_micros(u64::try_from(microseconds).unwrap_or_default());
    if catch_unwind(|| polling::sleep(time)).unwrap_or_default() {
        return microseconds;
    }
    // SAFETY: SQLite's own arguments.
    unsafe { default_sleep(vfs, microseconds) }
}

unsafe extern "C" fn current_time(vfs: *mut sqlite3_vfs, out: *mut f64) -> c_int {
    external::ask();
    // SAFETY: SQLite's own arguments.
    unsafe { default_current_time(vfs, out) }
}

unsafe extern "C" fn current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    external::ask();
    // SAFETY: SQLite's own arguments.
    unsafe { default_current_time_int64(vfs, out) }
}

/// Runs what a method does. A panic ends here, as `code`: it must not cross the C interface.
fn guard(code: Code, work: impl FnOnce() -> Result<(), Code>) -> c_int {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => ffi::SQLITE_OK,
        Ok(Err(code)) => code,
        Err(_) => code,
    }
}

/// What a file name means.
///
/// # Safety
/// `name` is NULL or a C string.
unsafe fn parse(name: *const c_char) -> FileName {
    if name.is_null() {
        return FileName::Other; // a temporary file
    }
    // SAFETY: as the caller promises.
    FileName::parse(unsafe { CStr::from_ptr(name) }.to_bytes())
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` is szOsFile bytes that are ours to initialise. Where opening fails, "xOpen should set pMethods to
    // NULL" so that SQLite does not call xClose.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: sqlite3_vfs says that the name is NULL or a C string.
    match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments, with the name of a database file if the flags say so.
        FileName::Database(id) => unsafe { open_engine(id, name, file, flags, out_flags) },
        FileName::SuperJournal if flags & ffi::SQLITE_OPEN_SUPER_JOURNAL != 0 => {
            // SAFETY: SQLite's own arguments; the name is a C string, as above.
            unsafe { journal::open_super(CStr::from_ptr(name), file, flags, out_flags) }
        }
        FileName::Beside if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => {
            // SAFETY: SQLite's own arguments.
            unsafe { journal::open(file, flags, out_flags) }
        }
        // A database or a WAL of such a name would be nobody's but the connection's.
        FileName::SuperJournal | FileName::Beside => ffi::SQLITE_CANTOPEN,
        // SAFETY: only a database file's name has URI parameters, and `flags` says that it is one.
        FileName::Other if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && unsafe { asks_for_an_engine(name) } => {
            ffi::SQLITE_CANTOPEN
        }
        FileName::Other => {
            if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
                external::ask(); // it is attached
            }
            // SAFETY: SQLite's own arguments; szOsFile is large enough for the default VFS's file.
            unsafe { default_open(vfs, name, file, flags, out_flags) }
        }
    }
}

/// # Safety
/// The arguments are xOpen's.
unsafe fn open_engine(
    id: u64,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    guard(ffi::SQLITE_CANTOPEN, || {
        // SAFETY: only for a database file does SQLite give a name with URI parameters, and only then are they read.
        let can_serve = flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && unsafe { takes_locks(name) };
        if !can_serve {
            return Err(ffi::SQLITE_CANTOPEN);
        }
        let mount = Mount::find(id).ok_or(ffi::SQLITE_CANTOPEN).inspect_err(|_| mount::report_gone(id))?;
        faults::check(Call::Open)?;
        let opened = File::new(Handle::new(mount, flags & ffi::SQLITE_OPEN_READONLY != 0));
        // SAFETY: szOsFile is at least the size of `File`, which SQLite aligns to 8 bytes.
        unsafe { file.cast::<File>().write(opened) };
        if !out_flags.is_null() {
            // SAFETY: not NULL, so it is an int of SQLite's.
            unsafe { *out_flags = flags };
        }
        Ok(())
    })
}

/// Whether the connection is going to lock the database as it should; without locks its reads would be of no one commit.
///
/// # Safety
/// `name` is what xOpen was given for a database file.
unsafe fn takes_locks(name: *const c_char) -> bool {
    // SAFETY: sqlite3_uri_boolean takes the name that xOpen was given.
    [c"nolock", c"immutable"].iter().all(|key| unsafe { ffi::sqlite3_uri_boolean(name, key.as_ptr(), 0) } == 0)
}

/// Whether the URI itself names this VFS, so that the name was meant to be an engine's. (An ATTACH without `vfs=` comes
/// here too, for it uses the VFS of the main database.)
///
/// # Safety
/// `name` is what xOpen was given for a database file.
unsafe fn asks_for_an_engine(name: *const c_char) -> bool {
    if name.is_null() {
        return false;
    }
    // SAFETY: sqlite3_uri_parameter takes the name that xOpen was given.
    let vfs = unsafe { ffi::sqlite3_uri_parameter(name, c"vfs".as_ptr()) };
    // SAFETY: not NULL, so it is a C string that lives as long as the name.
    !vfs.is_null() && unsafe { CStr::from_ptr(vfs) } == NAME
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments.
        FileName::Other => unsafe { default_delete(vfs, name, sync) },
        FileName::SuperJournal => guard(ffi::SQLITE_IOERR_DELETE, || {
            faults::check(Call::Delete)?;
            // SAFETY: as above.
            mount::remove_super_journal(unsafe { CStr::from_ptr(name) });
            faults::past_undoing();
            Ok(())
        }),
        // A journal is gone when it is closed.
        FileName::Database(_) | FileName::Beside => guard(ffi::SQLITE_IOERR_DELETE, || faults::check(Call::Delete)),
    }
}

unsafe extern "C" fn access(vfs: *mut sqlite3_vfs, name: *const c_char, flags: c_int, result: *mut c_int) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    let exists = match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments.
        FileName::Other => return unsafe { default_access(vfs, name, flags, result) },
        FileName::Database(id) => Mount::find(id).is_some(),
        // SAFETY: as above.
        FileName::SuperJournal => mount::is_super_journal(unsafe { CStr::from_ptr(name) }),
        FileName::Beside => false, // so that no journal is ever taken for one that a crash has left
    };
    // SAFETY: xAccess has an int to write its answer to.
    unsafe { *result = c_int::from(exists) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(vfs: *mut sqlite3_vfs, name: *const c_char, size: c_int, out: *mut c_char) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    if let FileName::Other = unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments.
        return unsafe { default_full_pathname(vfs, name, size, out) };
    }
    // SAFETY: as above; and not NULL, or it would have been `Other`.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if name.len() > size as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: the name with its NUL fits into the `size` bytes of `out`, which is SQLite's own buffer, not the name.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len()) };
    ffi::SQLITE_OK
}

/// An engine's database file as SQLite holds it: what it knows of, then what is ours.
#[repr(C)]
struct File {
    base: sqlite3_file,
    /// From `Box::into_raw`, until xClose.
    handle: *mut Handle,
    /// Where SQLite keeps the connection that is using the file (`SQLITE_FCNTL_PDB`), once it has told.
    connection: *const *mut ffi::sqlite3,
    /// How to call that connection's busy handler (`SQLITE_FCNTL_BUSYHANDLER`), once SQLite has told.
    busy_handler: BusyHandler,
}

/// What the argument of `SQLITE_FCNTL_BUSYHANDLER` points to.
#[repr(C)]
#[derive(Clone, Copy)]
struct BusyHandler {
    call: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    argument: *mut c_void,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: None, // not asked for where neighbouring bytes stay as they are
    xDeviceCharacteristics: Some(device_characteristics),
    // Without it, SQLite takes WAL for impossible.
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    // They map nothing. But SQLite tells only a file that has them what `PRAGMA mmap_size` says.
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};

impl File {
    fn new(handle: Handle) -> File {
        let base = sqlite3_file { pMethods: &METHODS };
        let busy_handler = BusyHandler { call: None, argument: ptr::null_mut() };
        File { base, handle: Box::into_raw(Box::new(handle)), connection: ptr::null(), busy_handler }
    }
}

/// The connection that calls a method of a file. Apart from the file's `handle`, for both are used at once.
struct Connection {
    pointer: *mut ffi::sqlite3,
    file: *mut sqlite3_file,
    busy_handler: BusyHandler,
}

impl Connection {
    /// # Safety
    /// As for `handle`, within a method of the file.
    unsafe fn calling(file: *mut sqlite3_file) -> Connection {
        let ours = file.cast::<File>();
        // SAFETY: as the caller promises.
        let (connection, busy_handler) = unsafe { ((*ours).connection, (*ours).busy_handler) };
        // SAFETY: what SQLite has told is valid as long as the file is open, and a method is called by that connection.
        let pointer = if connection.is_null() { ptr::null_mut() } else { unsafe { *connection } };
        Connection { pointer, file, busy_handler }
    }
}

impl Connection {
    /// What the connection calls the database that this file is.
    fn name_of_database(&self) -> Option<*const c_char> {
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it; any number may be asked for.
        let name = |number| unsafe { session::sqlite3_db_name(self.pointer, number) };
        (0..).map(name).take_while(|name| !name.is_null()).find(|name| self.file_of(*name) == self.file)
    }

    fn file_of(&self, database: *const c_char) -> *mut sqlite3_file {
        let mut file: *mut sqlite3_file = ptr::null_mut();
        let out: *mut *mut sqlite3_file = &mut file;
        // SAFETY: as above; with this opcode the argument is a sqlite3_file* to write to, which SQLite does by itself.
        unsafe { ffi::sqlite3_file_control(self.pointer, database, ffi::SQLITE_FCNTL_FILE_POINTER, out.cast()) };
        file
    }
}

impl Caller for Connection {
    fn id(&self) -> usize {
        self.pointer.addr()
    }

    fn is_mid_transaction(&self) -> bool {
        if self.pointer.is_null() {
            return false;
        }
        // When only another one of its databases has been read, SQLite comes back by way of its busy handler. Under a VFS
        // that is stacked above ours, the database is not found; then NULL asks for all of them.
        let database = self.name_of_database().unwrap_or(ptr::null());
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it; the name is one of its
        // databases' or NULL.
        unsafe { ffi::sqlite3_txn_state(self.pointer, database) != ffi::SQLITE_TXN_NONE }
    }

    fn may_write(&self) -> bool {
        if self.pointer.is_null() {
            return true;
        }
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it. After NULL comes the first
        // of its statements, after the last one NULL.
        let next = |statement| unsafe { ffi::sqlite3_next_stmt(self.pointer, statement) };
        let statements = iter::successors(Some(next(ptr::null_mut())), |last| Some(next(*last)));
        let mut running = statements
            .take_while(|statement| !statement.is_null())
            // SAFETY: a statement of this connection, which nobody finalizes meanwhile.
            .filter(|statement| unsafe { ffi::sqlite3_stmt_busy(*statement) } != 0)
            .peekable();
        // SAFETY: as above.
        running.peek().is_none() || running.any(|statement| unsafe { ffi::sqlite3_stmt_readonly(statement) } == 0)
    }

    fn is_in_transaction(&self) -> bool {
        // SAFETY: the connection is the one that is calling.
        let has_begun = !self.pointer.is_null() && unsafe { ffi::sqlite3_get_autocommit(self.pointer) } == 0;
        has_begun || self.is_mid_transaction()
    }

    fn is_defensive(&self) -> bool {
        let mut is_on: c_int = 0;
        // SAFETY: the connection is the one that is calling. With this verb, -1 changes nothing, and the last argument is
        // an int to write to.
        let code = unsafe { ffi::sqlite3_db_config(self.pointer, ffi::SQLITE_DBCONFIG_DEFENSIVE, -1, &raw mut is_on) };
        code == ffi::SQLITE_OK && is_on != 0
    }

    fn call_busy_handler(&self) -> bool {
        // SAFETY: "in order to invoke the connection's busy-handler, this function should be invoked with the second
        // (void *) in the array as the only argument" (SQLITE_FCNTL_BUSYHANDLER).
        self.busy_handler.call.is_some_and(|call| unsafe { call(self.busy_handler.argument) } != 0)
    }
}

/// # Safety
/// `file` is one that `open` has made a `File`, not closed yet. SQLite uses a file from one thread at a time, so no
/// other reference to its handle exists as long as the result is not kept beyond the method.
unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    // SAFETY: `File` is repr(C) and starts with the sqlite3_file; `handle` is valid until xClose.
    unsafe { &mut *(*file.cast::<File>()).handle }
}

/// Offsets and lengths that are never negative (sqlite3_io_methods gives none that is), nor beyond the address space.
fn unsigned(number: impl TryInto<usize>) -> Result<usize, Code> {
    number.try_into().map_err(|_| ffi::SQLITE_IOERR)
}

/// The bytes that a method reads or writes. None lies beyond the address space.
fn region(offset: impl TryInto<usize>, amount: c_int) -> Result<Range<usize>, Code> {
    let (start, len) = (unsigned(offset)?, unsigned(amount)?);
    Ok(start..start.checked_add(len).ok_or(ffi::SQLITE_IOERR)?)
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    guard(ffi::SQLITE_IOERR_CLOSE, || {
        // SAFETY: `open` put the handle there, and SQLite closes a file once.
        let handle = unsafe { Box::from_raw((*file.cast::<File>()).handle) };
        drop(handle);
        Ok(())
    })
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, amount: c_int, offset: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_READ, || {
        faults::check(Call::Read)?;
        let region = region(offset, amount)?;
        let mut out = out.cast::<u8>();
        // SAFETY: SQLite gives its methods files that `open` opened and `close` has not closed.
        let complete = unsafe { handle(file) }.read(region.start, region.len(), |part| {
            // SAFETY: xRead has a buffer of `amount` bytes, which is what the parts have together; it is SQLite's own.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), out, part.len());
                out = out.add(part.len());
            }
        });
        // "If xRead() returns SQLITE_IOERR_SHORT_READ it must also fill in the unread portions of the buffer with zeros."
        if complete { Ok(()) } else { Err(ffi::SQLITE_IOERR_SHORT_READ) }
    })
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    guard(ffi::SQLITE_IOERR_WRITE, || {
        faults::check(Call::Write)?;
        let region = region(offset, amount)?;
        // SAFETY: xWrite has `amount` bytes to write.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), region.len()) };
        // SAFETY: as in `read`.
        unsafe { handle(file) }.write(region.start, data)
    })
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_TRUNCATE, || {
        faults::check(Call::Truncate)?;
        // SAFETY: as in `read`.
        unsafe { handle(file) }.resize(unsigned(size)?)
    })
}

unsafe extern "C" fn sync(_: *mut sqlite3_file, _: c_int) -> c_int {
    guard(ffi::SQLITE_IOERR_FSYNC, || faults::check(Call::Sync)) // memory needs none
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_FSTAT, || {
        faults::check(Call::Size)?;
        // SAFETY: as in `read`.
        let bytes = unsafe { handle(file) }.size() as sqlite3_int64;
        // SAFETY: xFileSize has an integer to write its answer to.
        unsafe { *size = bytes };
        Ok(())
    })
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(ffi::SQLITE_IOERR_LOCK, || {
        // SAFETY: as in `read`.
        let connection = unsafe { Connection::calling(file) };
        // SAFETY: as in `read`. The busy handler may run meanwhile; it touches no file.
        unsafe { handle(file) }.lock(Lock::from_raw(level), &connection)
    })
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(ffi::SQLITE_IOERR_UNLOCK, || {
        // SAFETY: as in `read`.
        unsafe { handle(file) }.unlock(Lock::from_raw(level));
        Ok(())
    })
}

unsafe extern "C" fn check_reserved_lock(_: *mut sqlite3_file, result: *mut c_int) -> c_int {
    // SQLite asks in order to tell a journal in use from one that a crash has left. Neither is ever seen here.
    // SAFETY: xCheckReservedLock has an int to write its answer to.
    unsafe { *result = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    guard(ffi::SQLITE_IOERR, || {
        // SAFETY: as in `read`.
        let handle = unsafe { handle(file) };
        match op {
            ffi::SQLITE_FCNTL_COMMIT_PHASETWO => handle.commit(),
            // SAFETY: `file` is a `File`; with this opcode the argument points to where SQLite keeps the connection, in
            // what it frees after the file is closed.
            ffi::SQLITE_FCNTL_PDB => unsafe { (*file.cast::<File>()).connection = arg.cast() },
            // SAFETY: `file` is a `File`; with this opcode the argument is an array of a function and its argument.
            ffi::SQLITE_FCNTL_BUSYHANDLER => unsafe { (*file.cast::<File>()).busy_handler = *arg.cast() },
            // SAFETY: with this opcode the argument is a char* to write a string of sqlite3_malloc's to.
            ffi::SQLITE_FCNTL_VFSNAME => unsafe { *arg.cast::<*mut c_char>() = to_sqlite(NAME) },
            // SAFETY: with this opcode the argument is an array of three char*.
            ffi::SQLITE_FCNTL_PRAGMA => return unsafe { pragma(file, &mut *arg.cast::<[*mut c_char; 3]>()) },
            // SAFETY: as the opcode has it.
            _ => return unsafe { answer_as_a_file(handle, op, arg) },
        }
        Ok(())
    })
}

/// Sees to a pragma, the name and argument of which are the second and the third string; the first is for the answer.
///
/// # Safety
/// As for `handle`, and the strings are those of `SQLITE_FCNTL_PRAGMA`.
unsafe fn pragma(file: *mut sqlite3_file, [answer, name, argument]: &mut [*mut c_char; 3]) -> Result<(), Code> {
    // SAFETY: the strings live until the method returns.
    let (name, given) = unsafe { (text(*name).unwrap_or_default(), text(*argument)) };
    // SAFETY: as the caller promises.
    let (handle, caller) = unsafe { (handle(file), Connection::calling(file)) };
    match handle.pragma(&name, given.as_deref(), &caller) {
        Pragma::LeftToSqlite => {}
        // SAFETY: where there is an argument, it is a copy of the token in the SQL that SQLite made for this statement,
        // and goes on with if it carries out the pragma itself (`sqlite3Pragma`, in all versions since 3.39 alike). The
        // one that SQLite has as a literal is of `experimental_pragma_20251114`, to which this never comes.
        Pragma::MadeQuery => unsafe { **argument = 0 },
        Pragma::Answered(row) => {
            *answer = to_sqlite(row);
            return if answer.is_null() { Err(ffi::SQLITE_NOMEM) } else { Ok(()) };
        }
        Pragma::Refused(code, message) => {
            *answer = message.map_or(ptr::null_mut(), to_sqlite);
            return Err(code);
        }
    }
    Err(ffi::SQLITE_NOTFOUND) // so that SQLite carries it out
}

/// Answers a file control as an ordinary file does.
///
/// # Safety
/// The argument is as the opcode has it ("Standard File Control Opcodes").
unsafe fn answer_as_a_file(handle: &mut Handle, op: c_int, arg: *mut c_void) -> Result<(), Code> {
    let mut settings = handle.settings();
    // SAFETY: as the caller promises: `int`s; a 64-bit integer for the size of the map; and for the name a char* to write
    // a string of sqlite3_malloc's to.
    unsafe {
        match op {
            ffi::SQLITE_FCNTL_LOCKSTATE => *arg.cast() = handle.lock_level(),
            ffi::SQLITE_FCNTL_HAS_MOVED | ffi::SQLITE_FCNTL_LAST_ERRNO | SQLITE_FCNTL_EXTERNAL_READER => {
                *arg.cast::<c_int>() = 0;
            }
            ffi::SQLITE_FCNTL_PERSIST_WAL => switch(&mut settings.persist_wal, &mut *arg.cast()),
            ffi::SQLITE_FCNTL_POWERSAFE_OVERWRITE => switch(&mut settings.powersafe_overwrite, &mut *arg.cast()),
            ffi::SQLITE_FCNTL_MMAP_SIZE => limit_map(&mut settings.mmap_size, &mut *arg.cast()),
            ffi::SQLITE_FCNTL_TEMPFILENAME => *arg.cast() = temporary_name(),
            // In how large steps a file grows makes no difference to memory.
            ffi::SQLITE_FCNTL_SIZE_HINT | ffi::SQLITE_FCNTL_CHUNK_SIZE => {}
            _ => return Err(ffi::SQLITE_NOTFOUND),
        }
    }
    handle.set_settings(settings);
    Ok(())
}

/// Sets what is to be 0 or 1, and answers what a negative number asks for.
fn switch(setting: &mut bool, argument: &mut c_int) {
    match *argument {
        ..0 => *argument = c_int::from(*setting),
        value => *setting = value != 0,
    }
}

/// Sets the most that is to be mapped, unless the argument is negative; answers what it was before.
fn limit_map(limit: &mut sqlite3_int64, argument: &mut sqlite3_int64) {
    let asked = std::mem::replace(argument, *limit);
    if asked >= 0 {
        *limit = asked.min(MAX_MMAP_SIZE);
    }
}

/// What SQLite caps `PRAGMA mmap_size` at, unless it was compiled or configured otherwise.
const MAX_MMAP_SIZE: sqlite3_int64 = 0x7fff_0000;

/// A name that no file has, which SQLite can free; NULL when there is no memory for it.
fn temporary_name() -> *mut c_char {
    let mut chance = [0u8; 8];
    // SAFETY: there is room for as many random bytes.
    unsafe { ffi::sqlite3_randomness(chance.len() as c_int, chance.as_mut_ptr().cast()) };
    let path = std::env::temp_dir().join(format!("etilqs_{:016x}", u64::from_ne_bytes(chance)));
    CString::new(path.to_string_lossy().as_bytes()).map_or(ptr::null_mut(), |name| to_sqlite(&name))
}

/// Maps nothing, so that SQLite calls xRead.
unsafe extern "C" fn fetch(_: *mut sqlite3_file, _: sqlite3_int64, _: c_int, page: *mut *mut c_void) -> c_int {
    // SAFETY: xFetch has a pointer to write its answer to.
    unsafe { *page = ptr::null_mut() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn unfetch(_: *mut sqlite3_file, _: sqlite3_int64, _: *mut c_void) -> c_int {
    ffi::SQLITE_OK // nothing is mapped
}

/// A copy of the string that SQLite can free; NULL when there is no memory for it.
fn to_sqlite(text: &CStr) -> *mut c_char {
    // SAFETY: the format takes one C string, and gets one.
    unsafe { ffi::sqlite3_mprintf(c"%s".as_ptr(), text.as_ptr()) }
}

/// # Safety
/// `text` is NULL or a C string.
unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

unsafe extern "C" fn device_characteristics(_: *mut sqlite3_file) -> c_int {
    // What holds of memory: writes happen in order, neighbouring bytes stay as they are, and any part of a page can be
    // read. A write is atomic as well; but to say so changes the default page size where SQLite makes use of it.
    ffi::SQLITE_IOCAP_SAFE_APPEND
        | ffi::SQLITE_IOCAP_SEQUENTIAL
        | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | SQLITE_IOCAP_SUBPAGE_READ
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_result_code() {
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || panic!("in a method")), ffi::SQLITE_IOERR_READ);
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || Err(ffi::SQLITE_BUSY)), ffi::SQLITE_BUSY);
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || Ok(())), ffi::SQLITE_OK);
    }

    #[test]
    fn negative_offsets_are_errors() {
        assert_eq!(unsigned(-1), Err(ffi::SQLITE_IOERR));
        assert_eq!(unsigned(7), Ok(7));
    }

    #[test]
    fn no_region_wraps_around() {
        assert_eq!(region(usize::MAX - 7, 7), Ok(usize::MAX - 7..usize::MAX));
        assert_eq!(region(usize::MAX - 6, 7), Err(ffi::SQLITE_IOERR));
        assert_eq!(region(-1, 7), Err(ffi::SQLITE_IOERR));
        assert_eq!(region(0, -1), Err(ffi::SQLITE_IOERR));
    }
}
