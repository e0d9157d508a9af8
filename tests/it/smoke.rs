use rusqlite_fixtures::*;
#[test]
fn works() {
    let e = Engine::new();
    e.transaction(|w| w.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")).unwrap();
    let c = rusqlite::Connection::open(e.uri()).unwrap();
    let n: i64 = c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(n, 1);
    let w = e.unit_of_work().unwrap();
    w.execute("INSERT INTO t VALUES(2)", []).unwrap();
    let err = {
        e.set_lock_timeout(std::time::Duration::from_millis(20));
        e.begin(rusqlite::TransactionBehavior::Immediate).unwrap_err()
    };
    println!("{err}");
    w.commit().unwrap();
    let n: i64 = c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(n, 2);
    e.reset().unwrap();
    let n: i64 = c.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
    assert_eq!(n, 0);
}
