//! Engines that are never freed. They have their own process, because they can make other engines close idle connections.

use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::functions::FunctionFlags;

/// A function that captures its engine makes a reference cycle that nothing can detect. It must not slow down other tests.
#[test]
fn engines_that_are_never_freed_do_not_prevent_the_reuse_of_connections() {
    let flags = FunctionFlags::SQLITE_UTF8;
    for _ in 0..600 {
        let engine = Engine::new();
        let work = engine.unit_of_work().unwrap();
        let captured = engine.clone();
        work.create_scalar_function("uri", 0, flags, move |_| Ok(captured.uri().to_owned())).unwrap();
    }
    let engine = Engine::new();
    let work = engine.unit_of_work().unwrap();
    work.create_scalar_function("id_of_connection", 0, flags, |_| Ok(7)).unwrap();
    drop(work);
    let work = engine.unit_of_work().unwrap();
    let id: i64 = work.query_row("SELECT id_of_connection()", [], |row| row.get(0)).unwrap();
    assert_eq!(id, 7, "the connection is reused");
}
