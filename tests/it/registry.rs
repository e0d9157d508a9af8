//! Each engine is created exactly once, and a creation that fails leaves nothing behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite_fixtures::hammer::{Hammer, REGISTRY_CREATED, REGISTRY_CREATING};
use rusqlite_fixtures::{DatabaseUrl, Engine, Error, ErrorKind, MEMORY_ENGINES, MemoryEngines, Result};

fn url(name: &str) -> DatabaseUrl {
    DatabaseUrl::named(name).unwrap()
}

/// Runs `work` on `threads` threads at once, and returns the results.
fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let (barrier, work) = (&barrier, &work);
        let start = |thread| {
            move || {
                barrier.wait();
                work(thread)
            }
        };
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(start(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn an_engine_is_created_once_while_other_threads_wait() {
    let (engines, creations) = (MemoryEngines::new(), AtomicUsize::new(0));
    let create = || {
        creations.fetch_add(1, Ordering::Relaxed);
        thread::yield_now(); // so that other threads arrive during the creation
        Ok(Engine::new())
    };
    let found = at_once(16, |_| engines.get_or_create_with(&url("orders"), create).unwrap());
    assert_eq!(creations.into_inner(), 1);
    assert!(found.iter().all(|engine| *engine == found[0]));
    assert_eq!(engines.len(), 1);
}

#[test]
fn a_creation_does_not_block_other_urls() {
    let engines = MemoryEngines::new();
    let (in_creation, has_begun) = mpsc::channel();
    thread::scope(|scope| {
        let engines = &engines;
        let (go_on, may_go_on) = mpsc::channel::<()>(); // in this scope, so that a failure ends the other thread's wait
        scope.spawn(move || {
            engines.get_or_create_with(&url("slow"), || {
                in_creation.send(()).unwrap();
                let _ = may_go_on.recv();
                Ok(Engine::new())
            })
        });
        has_begun.recv().unwrap();
        assert!(engines.get(&url("slow")).is_none(), "an engine is not in the registry during its creation");
        assert!(engines.remove(&url("slow")).is_none(), "nor can it be removed");
        assert!(engines.is_empty());
        engines.get_or_create(&url("other")).unwrap(); // would hang if a lock were held during a creation
        assert_eq!((engines.urls(), engines.is_empty()), (vec![url("other")], false));
        go_on.send(()).unwrap();
    });
    assert_eq!(engines.urls(), [url("other"), url("slow")]);
}

#[test]
fn waiting_threads_try_in_turn_when_creations_fail_or_panic() {
    let (engines, tries) = (MemoryEngines::new(), AtomicUsize::new(0));
    let create = || -> Result<Engine, String> {
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err("the first fails".to_owned()),
            1 => panic!("the second panics"),
            _ => Ok(Engine::new()),
        }
    };
    let results = at_once(8, |_| {
        catch_unwind(AssertUnwindSafe(|| {
            engines.get_or_create_with(&url("orders"), || create().map_err(|_| rusqlite_error()))
        }))
    });
    let panicked = results.iter().filter(|result| result.is_err()).count();
    let failed = results.iter().filter(|result| matches!(result, Ok(Err(_)))).count();
    let made: Vec<_> = results.into_iter().flatten().flatten().collect();
    assert_eq!((panicked, failed, made.len()), (1, 1, 6));
    assert!(made.iter().all(|engine| *engine == made[0]));
    assert_eq!(tries.into_inner(), 3);
}

fn rusqlite_error() -> Error {
    rusqlite_fixtures::rusqlite::Error::QueryReturnedNoRows.into()
}

#[test]
fn a_creation_that_asks_for_its_own_url_is_an_error() {
    let engines = MemoryEngines::new();
    let result = engines.get_or_create_with(&url("orders"), || engines.get_or_create(&url("orders")));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::RecursiveCreation);
    assert!(engines.get_or_create(&url("orders")).is_ok(), "a failed creation leaves nothing behind");
}

#[test]
fn a_creation_may_ask_for_other_engines() {
    let engines = MemoryEngines::new();
    let copy = || Ok(engines.get_or_create(&url("original"))?.fork());
    let copy = engines.get_or_create_with(&url("copy"), copy).unwrap();
    assert_ne!(Some(copy), engines.get(&url("original")));
}

#[test]
fn a_removed_engine_is_replaced_by_a_new_one() {
    let engines = MemoryEngines::default();
    let old = engines.get_or_create(&DatabaseUrl::MEMORY).unwrap();
    assert_eq!(engines.remove(&DatabaseUrl::MEMORY), Some(old.clone()));
    assert_eq!(engines.remove(&DatabaseUrl::MEMORY), None);
    assert_ne!(engines.get_or_create(&DatabaseUrl::MEMORY).unwrap(), old);
    assert_eq!(format!("{engines:?}"), r#"{DatabaseUrl("sqlite:///:memory:")}"#);
}

#[test]
fn shared_engines_come_from_the_registry_of_the_process() {
    let name = "file:the%20registry?mode=memory";
    let engine = Engine::shared(name).unwrap();
    assert_eq!(MEMORY_ENGINES.get(&url("the registry")), Some(engine.clone()));
    assert_eq!(Engine::shared("file:/the%20registry?vfs=memdb").unwrap(), engine);
    let described = format!("{engine:?}");
    assert!(described.contains("the shared engine `file:the%20registry?mode=memory&cache=shared`"), "{described}");
}

#[test]
fn a_creation_that_fails_does_not_reach_the_mark_of_one_that_succeeds() {
    let report = Hammer::new().threads(1).rounds(1).run(|_| {
        let created = MemoryEngines::new().get_or_create_with(&url("failing"), || Engine::shared("nonsense://"));
        Ok(created.is_err())
    });
    assert!(report.values().all(|failed| *failed));
    let seen = |mark: &str| report.orders(mark).seen();
    assert_eq!((seen(REGISTRY_CREATING), seen(REGISTRY_CREATED)), (1, 0));
}

#[test]
fn an_engine_that_is_being_created_is_not_removed() {
    let (engines, url) = (MemoryEngines::new(), url("orders"));
    let (created, creations) = mpsc::channel();
    thread::scope(|scope| {
        let create_again = || {
            engines.get_or_create_with(&url, || {
                created.send(()).unwrap();
                Ok(Engine::new())
            })
        };
        let first = engines.get_or_create_with(&url, || {
            assert!(engines.remove(&url).is_none());
            scope.spawn(create_again);
            // It waits. If it did not, it would create an engine at once.
            assert!(creations.recv_timeout(Duration::from_millis(200)).is_err(), "another engine was created");
            Ok(Engine::new())
        });
        assert_eq!(engines.get(&url), first.ok());
    });
}
