//! An engine's database file: the file methods that a journal does not have, and the connection that calls them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::{iter, ptr};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods};

use super::NAME;
use super::handle::{Extras, Handle, Lock, Pragma};
use super::io_methods::{Code, Content, File, content, guard, methods, place};
use super::trace::{self, Listed};
use super::waiting::Caller;
use crate::faults::Call;
use crate::statements::Recorder;

/// Since SQLite 3.38. The bindings of the oldest libsqlite3-sys don't have it.
const SQLITE_FCNTL_EXTERNAL_READER: c_int = 40;

/// The content of an engine's open file.
pub(super) struct Database {
    pub(super) handle: Handle,
    /// Where SQLite keeps the connection that uses the file (`SQLITE_FCNTL_PDB`). NULL until SQLite has set it.
    connection: *const *mut ffi::sqlite3,
    /// How to call that connection's busy handler (`SQLITE_FCNTL_BUSYHANDLER`).
    busy_handler: BusyHandler,
}

/// The argument of `SQLITE_FCNTL_BUSYHANDLER`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BusyHandler {
    call: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    argument: *mut c_void,
}

/// The size of an open file, in bytes.
pub(super) const SIZE: usize = size_of::<File<Database>>();

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 3,
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xFileControl: Some(file_control),
    // These methods map nothing. But SQLite passes `PRAGMA mmap_size` only to a file that has them.
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
    ..methods::<Database>()
};

/// Opens an engine's file.
///
/// # Safety
/// As for `place`.
pub(super) unsafe fn open(handle: Handle, file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) {
    let busy_handler = BusyHandler { call: None, argument: ptr::null_mut() };
    let database = Database { handle, connection: ptr::null(), busy_handler };
    // SAFETY: as the caller promises.
    unsafe { place(database, &METHODS, file, flags, out_flags) };
}

/// Returns the file as a `Database`, if it is one of this VFS.
///
/// # Safety
/// The file is open. The result is not kept beyond the use of the connection that this thread has.
pub(super) unsafe fn of<'a>(file: *mut sqlite3_file) -> Option<&'a mut Database> {
    // SAFETY: as the caller promises; a file with these methods is a `File<Database>`.
    unsafe { ptr::eq((*file).pMethods, &METHODS).then(|| content(file)) }
}

impl Content for Database {
    fn check_faults(&mut self, call: Call) -> Result<(), Code> {
        self.handle.check_faults(call)
    }

    fn read(&self, offset: usize, len: usize, take: impl FnMut(&[u8])) -> bool {
        self.handle.read(offset, len, take)
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code> {
        self.handle.write(offset, data)
    }

    fn truncate(&mut self, size: usize) -> Result<(), Code> {
        self.handle.resize(size)
    }

    fn size(&self) -> usize {
        self.handle.size()
    }

    fn close(self) {}
}

/// The connection that calls a method of a file. It is a copy, because the file's content is borrowed at the same time.
struct Connection {
    pointer: *mut ffi::sqlite3,
    file: *mut sqlite3_file,
    busy_handler: BusyHandler,
}

impl Connection {
    /// # Safety
    /// As for `content`, within a method of the file.
    unsafe fn calling(file: *mut sqlite3_file) -> Connection {
        // SAFETY: as the caller promises.
        let Database { connection, busy_handler, .. } = *unsafe { content::<Database>(file) };
        // SAFETY: what SQLite has set is valid as long as the file is open, and a method is called by that connection.
        let pointer = if connection.is_null() { ptr::null_mut() } else { unsafe { *connection } };
        Connection { pointer, file, busy_handler }
    }
}

impl Connection {
    /// Returns the connection's name for the database that this file is.
    fn name_of_database(&self) -> Option<*const c_char> {
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it; any number may be
        // asked for.
        let name = |number| unsafe { super::sqlite3_db_name(self.pointer, number) };
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
        // If the transaction has read only another database, SQLite comes back through its busy handler. Under a VFS
        // that is stacked above this one, the database is not found. Then NULL asks for all databases.
        let database = self.name_of_database().unwrap_or(ptr::null());
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it; the name is one of
        // its databases' or NULL.
        unsafe { ffi::sqlite3_txn_state(self.pointer, database) != ffi::SQLITE_TXN_NONE }
    }

    fn may_write(&self) -> bool {
        if self.pointer.is_null() {
            return true;
        }
        // SAFETY: the connection is the one that is calling, so it is open and this thread has it. After NULL comes the
        // first of its statements, after the last one NULL.
        let next = |statement| unsafe { ffi::sqlite3_next_stmt(self.pointer, statement) };
        let statements = iter::successors(Some(next(ptr::null_mut())), |last| Some(next(*last)));
        let mut running = statements
            .take_while(|statement| !statement.is_null())
            // SAFETY: a statement of this connection, which is not finalized meanwhile.
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
        // SAFETY: the connection is the one that is calling. With this verb, -1 changes nothing, and the last argument
        // is an int to write to.
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
/// As for `content`.
unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    // SAFETY: as the caller promises.
    &mut unsafe { content::<Database>(file) }.handle
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(ffi::SQLITE_IOERR_LOCK, || {
        // SAFETY: SQLite gives its methods files that are open.
        let connection = unsafe { Connection::calling(file) };
        if Recorder::any_is_on() {
            // SAFETY: as above.
            unsafe { check_trace(file, level, &connection) };
        }
        // SAFETY: as above. The busy handler may run meanwhile; it touches no file.
        unsafe { handle(file) }.lock(Lock::from_raw(level), &connection)?;
        if level == ffi::SQLITE_LOCK_RESERVED && !connection.pointer.is_null() {
            // SAFETY: as above; the connection is the one that is calling.
            unsafe { handle(file).all_traced().iter().for_each(|traced| traced.note_slot(connection.pointer)) };
        }
        Ok(())
    })
}

/// Checks that the trace has reported the statement that takes a lock.
///
/// # Safety
/// As for `Connection::calling`.
#[cold]
unsafe fn check_trace(file: *mut sqlite3_file, level: c_int, connection: &Connection) {
    // SAFETY: as the caller promises.
    let handle = unsafe { handle(file) };
    if handle.recorder().is_on() && handle.begins(Lock::from_raw(level)) {
        // SAFETY: as the caller promises.
        unsafe { trace::check_is_reported(connection.pointer, handle.all_traced(), handle.recorder()) };
    }
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(ffi::SQLITE_IOERR_UNLOCK, || {
        // SAFETY: as in `lock`.
        unsafe { handle(file) }.unlock(Lock::from_raw(level));
        Ok(())
    })
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    guard(ffi::SQLITE_IOERR, || {
        // SAFETY: as in `lock`.
        let database = unsafe { content::<Database>(file) };
        match op {
            ffi::SQLITE_FCNTL_COMMIT_PHASETWO => database.handle.commit(),
            // With this opcode the argument points to where SQLite keeps the connection, in what it frees after the
            // file is closed.
            ffi::SQLITE_FCNTL_PDB => database.connection = arg.cast(),
            // SAFETY: with this opcode the argument is an array of a function and its argument.
            ffi::SQLITE_FCNTL_BUSYHANDLER => database.busy_handler = unsafe { *arg.cast() },
            // SAFETY: with this opcode the argument is a char* to write a string of sqlite3_malloc's to.
            ffi::SQLITE_FCNTL_VFSNAME => unsafe { *arg.cast::<*mut c_char>() = to_sqlite(NAME) },
            // SAFETY: with this opcode the argument is that of `extras_of`.
            EXTRAS => unsafe { *arg.cast() = Some(database.handle.extras()) },
            TRACED => {
                // SAFETY: with this opcode the argument is that of `add_traced`.
                let traced = unsafe { &mut *arg.cast::<Option<Listed>>() };
                traced.take().into_iter().for_each(|traced| database.handle.add_traced(traced));
            }
            // SAFETY: with this opcode the argument is an array of three char*.
            ffi::SQLITE_FCNTL_PRAGMA => return unsafe { pragma(file, &mut *arg.cast::<[*mut c_char; 3]>()) },
            // SAFETY: as the opcode has it.
            _ => return unsafe { answer_as_a_file(&mut database.handle, op, arg) },
        }
        Ok(())
    })
}

/// File controls of this VFS alone. SQLite passes on the opcodes that it does not know.
const EXTRAS: c_int = 0x7266_7831;
const TRACED: c_int = EXTRAS + 1;

/// Returns what the new connection gets, if its main database is an engine. Several connections may share a cache and so the
/// file: SQLite calls xFileControl under the mutex of that cache.
///
/// # Safety
/// The connection is open, and this thread may use it.
pub(super) unsafe fn extras_of(db: *mut ffi::sqlite3) -> Option<Extras> {
    let mut extras: Option<Extras> = None;
    // SAFETY: as the caller promises; the argument is what `file_control` writes to. Another VFS does not know the opcode.
    unsafe { ffi::sqlite3_file_control(db, ptr::null(), EXTRAS, (&raw mut extras).cast()) };
    extras
}

/// Gives the connection's trace to the file of its main database, which is an engine.
///
/// # Safety
/// As for `extras_of`.
pub(super) unsafe fn add_traced(db: *mut ffi::sqlite3, traced: Listed) {
    let mut traced = Some(traced);
    // SAFETY: as the caller promises; the argument is what `file_control` takes.
    unsafe { ffi::sqlite3_file_control(db, ptr::null(), TRACED, (&raw mut traced).cast()) };
}

/// Answers a pragma. Its name and argument are the second and the third string; the first is for the answer.
///
/// # Safety
/// As for `content`, and the strings are those of `SQLITE_FCNTL_PRAGMA`.
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
    // SAFETY: as the caller promises: `int`s; a 64-bit integer for the size of the map; and for the name a char* to
    // write a string of sqlite3_malloc's to.
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
            // In memory, the steps in which a file grows make no difference.
            ffi::SQLITE_FCNTL_SIZE_HINT | ffi::SQLITE_FCNTL_CHUNK_SIZE => {}
            _ => return Err(ffi::SQLITE_NOTFOUND),
        }
    }
    handle.set_settings(settings);
    Ok(())
}

/// Sets a switch to 0 or 1. A negative number only asks for the value.
fn switch(setting: &mut bool, argument: &mut c_int) {
    match *argument {
        ..0 => *argument = c_int::from(*setting),
        value => *setting = value != 0,
    }
}

/// Sets the limit for mapping, unless the argument is negative. Returns the earlier value.
fn limit_map(limit: &mut sqlite3_int64, argument: &mut sqlite3_int64) {
    let asked = std::mem::replace(argument, *limit);
    if asked >= 0 {
        *limit = asked.min(MAX_MMAP_SIZE);
    }
}

/// SQLite's limit for `PRAGMA mmap_size`, unless it was compiled or configured otherwise.
const MAX_MMAP_SIZE: sqlite3_int64 = 0x7fff_0000;

/// Returns a name that no file has, which SQLite can free; NULL if memory runs out.
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

/// Returns a copy of the string that SQLite can free; NULL if memory runs out.
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
