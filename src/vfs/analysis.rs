//! What SQLite says of a statement that it compiles.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use rusqlite::Connection;
use rusqlite::ffi;

use crate::statements::Tables;

/// Returns the tables of the main database that the statement uses, if SQLite can compile it.
pub(crate) fn tables_of(connection: &Connection, sql: &str) -> Option<Tables> {
    let sql = CString::new(sql).ok()?;
    let mut tables = Tables::default();
    let mut statement = ptr::null_mut();
    // SAFETY: the connection is open. The authorizer is set only while the statement is compiled, and its argument is used only then.
    // A statement is NULL or to be finalized.
    let code = unsafe {
        let db = connection.handle();
        ffi::sqlite3_set_authorizer(db, Some(on_authorize), (&raw mut tables).cast());
        let code = ffi::sqlite3_prepare_v2(db, sql.as_ptr(), -1, &raw mut statement, ptr::null_mut());
        ffi::sqlite3_finalize(statement);
        ffi::sqlite3_set_authorizer(db, None, ptr::null_mut());
        code
    };
    (code == ffi::SQLITE_OK).then_some(tables)
}

unsafe extern "C" fn on_authorize(
    tables: *mut c_void,
    action: c_int,
    table: *const c_char,
    _: *const c_char,
    database: *const c_char,
    _: *const c_char,
) -> c_int {
    let is_write = match action {
        ffi::SQLITE_READ => false,
        ffi::SQLITE_INSERT | ffi::SQLITE_UPDATE | ffi::SQLITE_DELETE => true,
        _ => return ffi::SQLITE_OK,
    };
    // SAFETY: a C string, if there is one; SQLite names none for `SELECT count(*) FROM t`.
    let is_main = database.is_null() || unsafe { CStr::from_ptr(database) } == c"main";
    if is_main && !table.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the argument is that of `tables_of`, and the name a C string.
            let (tables, table) = unsafe { (&mut *tables.cast::<Tables>(), CStr::from_ptr(table)) };
            let tables = if is_write { &mut tables.written } else { &mut tables.read };
            tables.insert(table.to_string_lossy().into_owned());
        }));
    }
    ffi::SQLITE_OK
}

/// Returns SQLite's plan for the statement, indented by level, if SQLite can compile it.
pub(crate) fn plan_of(connection: &Connection, sql: &str) -> Option<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).ok()?;
    let mut rows = statement.raw_query();
    let (mut above, mut plan) = (Vec::new(), String::new());
    while let Some(row) = rows.next().ok()? {
        let (id, parent, detail): (i64, i64, String) = (row.get(0).ok()?, row.get(1).ok()?, row.get(3).ok()?);
        while above.last().is_some_and(|step| *step != parent) {
            above.pop();
        }
        plan.push_str(&"  ".repeat(above.len()));
        plan.push_str(&detail);
        plan.push('\n');
        above.push(id);
    }
    Some(plan)
}
