//! The random numbers that SQL gets from an engine with a seed: by `random()` and `randomblob()`.
//!
//! SQLite's own generator serves the whole process. So each connection gets other functions of these names, which take
//! their numbers from the engine.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use rusqlite::ffi::{self, sqlite3, sqlite3_context, sqlite3_value};

use crate::sync::Recovered;

/// The random numbers of an engine.
pub(crate) struct Random(Mutex<Rng>);

impl Random {
    pub(crate) fn with_seed(seed: u64) -> Random {
        Random(Mutex::new(Rng::with_seed(seed)))
    }

    /// Makes the numbers those that follow the seed.
    pub(crate) fn restart(&self, seed: u64) {
        self.set_state(Rng::with_seed(seed));
    }

    pub(crate) fn state(&self) -> Rng {
        self.lock().clone()
    }

    pub(crate) fn set_state(&self, state: Rng) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, Rng> {
        self.0.lock().recovered()
    }
}

/// Gives the connection the functions.
///
/// # Safety
/// The connection is open, and this thread may use it.
pub(super) unsafe fn define(db: *mut sqlite3, random: &Arc<Random>) -> c_int {
    // As SQLite's own functions, they may be used in triggers, views and defaults of any schema.
    let flags = ffi::SQLITE_UTF8 | ffi::SQLITE_INNOCUOUS;
    let functions: [(_, _, Function); 2] = [(c"random", 0, on_random), (c"randomblob", 1, on_randomblob)];
    for (name, arguments, function) in functions {
        let data = Arc::into_raw(random.clone()).cast_mut().cast::<c_void>();
        // SAFETY: as the caller promises. SQLite gives the data back once: when the function is replaced, when the
        // connection is closed, or now if this fails (sqlite3_create_function_v2).
        let code = unsafe {
            ffi::sqlite3_create_function_v2(
                db,
                name.as_ptr(),
                arguments,
                flags,
                data,
                Some(function),
                None,
                None,
                Some(forget),
            )
        };
        if code != ffi::SQLITE_OK {
            return code;
        }
    }
    ffi::SQLITE_OK
}

type Function = unsafe extern "C" fn(*mut sqlite3_context, c_int, *mut *mut sqlite3_value);

unsafe extern "C" fn forget(random: *mut c_void) {
    // SAFETY: it comes from `define`, and SQLite gives it back once.
    drop(unsafe { Arc::from_raw(random.cast_const().cast::<Random>()) });
}

/// # Safety
/// The context is that of a call of a function that `define` has given.
unsafe fn random_of<'a>(context: *mut sqlite3_context) -> &'a Random {
    // SAFETY: as the caller promises, so that SQLite keeps the data during the call.
    unsafe { &*ffi::sqlite3_user_data(context).cast::<Random>() }
}

unsafe extern "C" fn on_random(context: *mut sqlite3_context, _: c_int, _: *mut *mut sqlite3_value) {
    // SAFETY: SQLite's own argument.
    let number = unsafe { random_of(context) }.lock().i64(..);
    // As SQLite's own function, it never returns the number that has no absolute value.
    // SAFETY: as above.
    unsafe { ffi::sqlite3_result_int64(context, number.max(-i64::MAX)) };
}

unsafe extern "C" fn on_randomblob(context: *mut sqlite3_context, _: c_int, arguments: *mut *mut sqlite3_value) {
    // SAFETY: SQLite's own arguments, of which there is one. The blob is allocated with that length by SQLite, which
    // takes it over.
    unsafe {
        let len = ffi::sqlite3_value_int64(*arguments).max(1);
        let limit = ffi::sqlite3_limit(ffi::sqlite3_context_db_handle(context), ffi::SQLITE_LIMIT_LENGTH, -1);
        if len > i64::from(limit) {
            return ffi::sqlite3_result_error_toobig(context);
        }
        let blob = ffi::sqlite3_malloc64(len as u64).cast::<u8>();
        if blob.is_null() {
            return ffi::sqlite3_result_error_nomem(context);
        }
        ptr::write_bytes(blob, 0, len as usize);
        random_of(context).lock().fill(std::slice::from_raw_parts_mut(blob, len as usize));
        ffi::sqlite3_result_blob(context, blob.cast(), len as c_int, Some(ffi::sqlite3_free));
    }
}
