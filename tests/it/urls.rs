//! The database URLs that are accepted, and the errors for others.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use rusqlite_fixtures::{DatabaseUrl, Engine, ErrorKind};

fn parse(url: &str) -> DatabaseUrl {
    url.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn all_spellings_of_the_default_database_are_equal() {
    for url in [
        "sqlite:///:memory:",
        "sqlite://",
        "sqlite::memory:",
        ":memory:",
        "sqlite://:memory:",
        "sqlite:",
        "sqlite:///",
        "sqlite://?mode=memory",
        "sqlite:///:memory:?cache=shared#fragment",
        "sqlite:///:memory:?mode=rwc",
        "file::memory:",
        "file::memory:?cache=shared",
        "file::memory:?mode=memory&cache=shared",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "file:/:memory:?vfs=memdb",
    ] {
        assert_eq!(parse(url), DatabaseUrl::MEMORY, "{url}");
        assert_eq!(Engine::shared(url).unwrap(), Engine::shared(":memory:").unwrap(), "{url}");
    }
    assert_eq!(DatabaseUrl::MEMORY.to_string(), "sqlite:///:memory:");
    assert_eq!(DatabaseUrl::named(":memory:").unwrap(), DatabaseUrl::MEMORY);
}

#[test]
fn all_spellings_of_a_named_database_are_equal() {
    let orders = DatabaseUrl::named("orders").unwrap();
    for url in [
        "sqlite:///file:orders?mode=memory&cache=shared&uri=true",
        "file:orders?mode=memory&cache=shared",
        "file:orders?mode=memory",
        "file:/orders?vfs=memdb",
        "file:///orders?vfs=memdb",
        "file:/orders?vfs=memdb&mode=memory",
        "file:/orders?mode=memory&vfs=memdb",
        "file:/orders?vfs=memdb&mode=rwc",
        "file:/orders?mode=rwc&vfs=memdb",
        "file:orders?mode=memory&nolock=1",
        "file://localhost/orders?vfs=memdb",
        "file:%6frders?cache=shared&mode=memory",
        "file:orders?mode=memory&timeout=5#fragment",
        "sqlite:///orders?mode=memory",
        "sqlite:orders?mode=memory",
        "file:orders?mode=%6demory",
    ] {
        assert_eq!(parse(url), orders, "{url}");
    }
    assert_eq!(orders.to_string(), "file:orders?mode=memory&cache=shared");
    assert_eq!(format!("{orders:?}"), r#"DatabaseUrl("file:orders?mode=memory&cache=shared")"#);
    assert_ne!(parse("file:/orders?mode=memory"), orders, "to SQLite this is another name, too");
    assert_ne!(parse("file:Orders?mode=memory"), orders);
}

#[test]
fn paths_that_may_be_mistakes_are_refused_with_what_to_use() {
    for (url, path) in [
        ("file:path.db", "path.db"),
        ("file:path.db?cache=shared", "path.db"),
        ("file:path.db?cache=private", "path.db"),
        ("file:a%20b.db", "a b.db"),
        ("sqlite:///file:path.db?uri=true", "path.db"),
        ("path.db", "path.db"),
        ("./path.db", "./path.db"),
        (r"C:\path.db", r"C:\\path.db"),
    ] {
        let error = url.parse::<DatabaseUrl>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotInMemory, "{error}");
        for remedy in [format!("Engine::file(\"{path}\")"), format!("Snapshot::open(\"{path}\")")] {
            assert!(error.to_string().contains(&remedy), "{error}");
        }
    }
}

#[test]
fn all_spellings_of_a_file_are_equal() {
    let here = std::env::current_dir().unwrap();
    let here = here.to_str().unwrap();
    let file = parse("sqlite:///no/a%20file.db");
    for url in [
        "sqlite://no/a%20file.db",
        "sqlite:no/a file.db",
        "sqlite:///./no/../no/a file.db",
        "sqlite:///no/a%20file.db?mode=rwc",
        "sqlite:///no/a%20file.db?cache=shared#fragment",
        "sqlite:///no/a%20file.db?cache=private&nolock=0&immutable=false",
        "sqlite:///file:no/a%20file.db?mode=rwc",
        "file:no/a%20file.db?mode=rwc",
        &format!("sqlite:///{here}/no/a file.db"),
        &format!("file://{here}/no/a%20file.db?mode=rwc"),
    ] {
        assert_eq!(parse(url), file, "{url}");
    }
    assert_eq!(file.to_string(), format!("sqlite:///{here}/no/a%20file.db"));
    assert_eq!(parse(&file.to_string()), file);
    assert_ne!(parse("sqlite:///no/a%20file.db?mode=memory"), file, "that one is in memory");
    assert_ne!(DatabaseUrl::named("no/a file.db").unwrap(), file);
}

#[test]
fn unsupported_urls_are_refused_with_the_reason() {
    for (url, reason) in [
        ("", "it is empty"),
        ("postgresql://localhost/orders", "its scheme is \"postgresql\""),
        ("sqlite3://orders?mode=memory", "its scheme is \"sqlite3\""),
        ("file:orders\0?mode=memory", "NUL"),
        ("file:orders?mode=memory&\0", "NUL"),
        ("a\0b", "NUL"),
        ("file:orders%00?mode=memory", "NUL"),
        ("file:100%?mode=memory", "hexadecimal"),
        ("file:%zz?mode=memory", "hexadecimal"),
        ("file:%ff?mode=memory", "UTF-8"),
        ("file:orders?mode=%", "hexadecimal"),
        ("file:?mode=memory", "its name is empty"),
        ("file:?mode=rwc", "its name is empty"),
        ("file:", "its name is empty"),
        ("sqlite:///:memory:?mode=ro", "its mode is \"ro\""),
        ("file:/?vfs=memdb", "its name is empty"),
        ("file:orders?mode=shared", "its mode is \"shared\""),
        ("file:orders?mode=ro", "its mode is \"ro\"; use mode=memory, or mode=rwc for a file"),
        ("sqlite:///orders.db?mode=rw", "its mode is \"rw\""),
        ("sqlite:///:memory:?cache=private", "Engine::new()"),
        ("sqlite://?cache=private", "Engine::new()"),
        ("file:/orders?vfs=memdb&cache=private", "Engine::new()"),
        ("file:orders?mode=memory&mode=rwc", "its mode is \"rwc\""),
        ("sqlite:///orders.db?nolock=1", "connections share the file by locks; remove nolock=1"),
        ("file:orders.db?immutable=yes&mode=rwc", "remove immutable=yes"),
        ("sqlite:///orders.db?vfs=unix", "its VFS is \"unix\"; remove vfs="),
        (
            "sqlite:////rusqlite-fixtures/engine-1",
            "\"/rusqlite-fixtures/engine-1\" can't be used: it is the name of an engine",
        ),
        ("file:orders?vfs=memdb", "starts with a slash"),
        ("file:orders?vfs=unix", "its VFS is \"unix\""),
        (Engine::new().uri(), "it opens an engine that exists"),
        (Engine::new().sqlite_url(), "it opens an engine that exists"),
        ("file:orders?mode=memory&cache=private", "Engine::new()"),
        ("file:orders?mode=memory&cache=no", "its cache is \"no\""),
        ("file://elsewhere/orders?mode=memory", "its authority is \"elsewhere\""),
        ("sqlite://?mode=nothing", "its mode is \"nothing\""),
    ] {
        let error = url.parse::<DatabaseUrl>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url:?}: {error}");
        assert!(error.to_string().contains(reason), "{reason:?} is missing: {error}");
        assert!(error.to_string().contains(&format!("{url:?}")), "the URL is missing: {error}");
        assert_eq!(Engine::shared(url).unwrap_err().to_string(), error.to_string());
    }
    assert_eq!(DatabaseUrl::named("").unwrap_err().kind(), ErrorKind::InvalidUrl);
    assert_eq!(DatabaseUrl::named("a\0b").unwrap_err().kind(), ErrorKind::InvalidUrl);
}

#[test]
fn names_may_contain_anything() {
    for name in [
        "a b",
        "100%",
        "what?",
        "#1",
        "it's \"quoted\"",
        "Zürich/Straße",
        "数据库",
        "a&b=c",
        "/",
        "//elsewhere/a",
        "\u{1f980}",
    ] {
        let url = DatabaseUrl::named(name).unwrap();
        assert_eq!(parse(&url.to_string()), url, "{name}");
        assert!(url.to_string().is_ascii());
        let engine = Engine::shared(url.to_string()).unwrap();
        engine.connect().unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        assert_eq!(engine, Engine::shared(url.to_string()).unwrap());
    }
}

#[test]
fn a_map_of_urls_can_be_searched_by_name() {
    let urls = [DatabaseUrl::MEMORY, parse("file:orders?mode=memory"), parse("file:customers?mode=memory")];
    let sorted: BTreeMap<DatabaseUrl, usize> = urls.clone().into_iter().zip(0..).collect();
    let hashed: HashMap<DatabaseUrl, usize> = urls.into_iter().zip(0..).collect();
    for (number, name) in [":memory:", "orders", "customers"].into_iter().enumerate() {
        assert_eq!((sorted.get(name), hashed.get(name)), (Some(&number), Some(&number)), "{name}");
    }
}

proptest! {
    #[test]
    fn the_normal_form_parses_to_the_same_url(name in "[^\0]+") {
        let url = DatabaseUrl::named(&name).unwrap();
        prop_assert_eq!(parse(&url.to_string()), url);
    }

    #[test]
    fn no_text_causes_a_panic_and_a_parsed_url_has_a_normal_form(url in r#"(file:|sqlite:)?[/a%2#?&=]*(:memory:|mode=memory|vfs=memdb)?\PC*"#) {
        if let Ok(parsed) = url.parse::<DatabaseUrl>() {
            prop_assert_eq!(parse(&parsed.to_string()), parsed);
        }
    }
}
