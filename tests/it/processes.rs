//! Processes share built templates by images in a folder.
//!
//! Each test runs `child` of this program in new processes, with its own folder.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{env, thread};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::hammer::Hammer;
use rusqlite_fixtures::rusqlite::{Connection, OpenFlags};
use rusqlite_fixtures::{BoxError, Engine, Snapshot, Template};
use tempfile::TempDir;

use crate::support::{assert_integrity, number, output_of_copy, text};

const ROLE: &str = "FIXTURES_TEST_ROLE";
const BUILDS: &str = "FIXTURES_TEST_BUILDS";
const SCHEMA: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT);
    WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 1000)
    INSERT INTO account SELECT id, 'owner of account ' || id FROM ids;";

/// Records that it was called, and takes long enough for other processes to arrive.
fn build(connection: &mut Connection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    OpenOptions::new().create(true).append(true).open(env::var(BUILDS)?)?.write_all(b"built\n")?;
    match env::var(ROLE)?.as_str() {
        "crash" => std::process::abort(),
        "fail" => return Err("no migrations".into()),
        _ => thread::sleep(Duration::from_millis(20)),
    }
    Ok(connection.execute_batch(SCHEMA)?)
}

static KEYED: Template = Template::build(build).key("processes");
static UNKNOWN_PARENT: Template = Template::based_on(&UNKNOWN).seed("DELETE FROM account WHERE id > 10").key("child");
static OTHER_KEY: Template = Template::build(build).key("processes-v2");
static DERIVED: Template = Template::based_on(&KEYED).seed("DELETE FROM account WHERE id > 10");
static UNKNOWN: Template = Template::build(build);
static SET_UP: Template = Template::sql(SCHEMA).on_connect(|_| Ok(()));
static TIME_DEPENDENT: Template = Template::sql(SCHEMA).seed(
    "CREATE TABLE visit (account INTEGER, at TEXT DEFAULT CURRENT_TIMESTAMP); INSERT INTO visit (account) VALUES (1)",
);
static ATTACHING: Template = Template::sql(
    "ATTACH 'outside.sqlite3' AS outside; CREATE TABLE account AS SELECT * FROM outside.account; DETACH outside",
);
static ZONED: Template =
    Template::sql("CREATE TABLE account AS SELECT datetime('2020-06-01 12:00', 'localtime') AS at");
static CLOCKED: Template = Template::sql("CREATE TABLE account AS SELECT datetime('now') AS id").clock("2026-01-31");
static CLOCKED_LATER: Template =
    Template::sql("CREATE TABLE account AS SELECT datetime('now') AS id").clock("2026-02-01");
static SEEDED: Template = Template::sql("CREATE TABLE account AS SELECT random() AS id").random_seed(1);
static SEEDED_OTHERWISE: Template = Template::sql("CREATE TABLE account AS SELECT random() AS id").random_seed(2);
static FROM_CLOCKED: Template = Template::based_on(&CLOCKED).seed("INSERT INTO account VALUES (datetime('now'))");
static FROM_TIME_DEPENDENT: Template = Template::based_on(&TIME_DEPENDENT).seed("DELETE FROM account WHERE id > 10");
static TIME_DEPENDENT_WITH_KEY: Template =
    Template::based_on(&TIME_DEPENDENT_PARENT).seed("INSERT INTO visit VALUES (2)").key("time-dependent");
static TIME_DEPENDENT_PARENT: Template =
    Template::sql("CREATE TABLE visit (at TEXT); INSERT INTO visit VALUES (datetime('now'))")
        .key("time-dependent parent");

/// Its image is larger than images that are read into memory.
static LARGE: Template = Template::sql(
    "CREATE TABLE account AS WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 1000)
    SELECT id, zeroblob(1000) AS padding FROM ids",
);

/// Each build asks for the other template, once both builds are running.
static ONE_OF_TWO: Template = Template::build(|_| ask("one", "other", &OTHER_OF_TWO)).key("one-of-two");
static OTHER_OF_TWO: Template = Template::build(|_| ask("other", "one", &ONE_OF_TWO)).key("other-of-two");

/// The first two are built by two threads of one process, the third by another process.
static FIRST_OF_THREE: Template = Template::build(|_| ask("first", "second", &SECOND_OF_THREE)).key("first-of-three");
static SECOND_OF_THREE: Template = Template::build(|_| ask("second", "third", &THIRD_OF_THREE)).key("second-of-three");
static THIRD_OF_THREE: Template = Template::build(|_| ask("third", "first", &FIRST_OF_THREE)).key("third-of-three");

fn ask(this: &str, other: &str, template: &Template) -> Result<(), BoxError> {
    let builds = PathBuf::from(env::var(BUILDS)?);
    File::create(builds.with_file_name(this))?;
    until("the other is being built", || builds.with_file_name(other).exists());
    Ok(template.new_engine().map(drop)?)
}

fn assert_refused(template: &Template) {
    let error = template.new_engine().unwrap_err();
    assert!(error.to_string().contains("its build needs the same template"), "{error}");
}

/// Waits until the condition holds; panics after `DEADLINE`.
fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?}, still waiting until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

const DEADLINE: Duration = Duration::from_secs(60);

/// Templates of different functions, with the same place and the same key.
macro_rules! namesakes {
    ($($name:ident makes $sql:literal;)*) => {$(
        static $name: Template = Template::build(|connection| Ok(connection.execute_batch($sql)?)).key("namesakes");
    )*};
}
namesakes! {
    TEN makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (10)";
    TWENTY makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (20)";
}

/// The same without a key.
macro_rules! nameless {
    ($($name:ident makes $sql:literal;)*) => {$(
        static $name: Template = Template::build(|connection| Ok(connection.execute_batch($sql)?));
    )*};
}
nameless! {
    NAMELESS_TEN makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (10)";
    NAMELESS_TWENTY makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (20)";
}

static DIRECTORY: Template = Template::directory("migrations");
static OF_DIRECTORY: Template = Template::based_on(&DIRECTORY).seed("CREATE TABLE extra (a)");
static KEYED_OF_DIRECTORY: Template = Template::based_on(&DIRECTORY).seed_with(|_| Ok(())).key("of-directory");

static TIME_DEPENDENT_FUNCTION: Template =
    Template::build(|connection| Ok(connection.execute_batch("CREATE TABLE account AS SELECT datetime('now') AS at")?));

#[test]
#[ignore = "the other tests run it in a new process"]
fn child() {
    let count = |template: &Template| number(&template.unit_of_work().unwrap(), "SELECT count(*) FROM account");
    let id = |template: &Template| number(&template.unit_of_work().unwrap(), "SELECT id FROM account");
    match env::var(ROLE).as_deref() {
        Ok("share" | "crash" | "fail") => assert_eq!(count(&KEYED), 1000),
        Ok("other key") => assert_eq!(count(&OTHER_KEY), 1000),
        Ok("derive") => assert_eq!((count(&DERIVED), count(&KEYED)), (10, 1000)),
        Ok("unknown") => assert_eq!((count(&UNKNOWN), count(&SET_UP), count(&UNKNOWN_PARENT)), (1000, 1000, 10)),
        Ok("time-dependent") => assert_eq!(count(&TIME_DEPENDENT), 1000),
        Ok("clocked") => {
            let ids = [&CLOCKED, &CLOCKED_LATER, &FROM_CLOCKED]
                .map(|template| text(&template.unit_of_work().unwrap(), "SELECT group_concat(date(id)) FROM account"));
            assert_eq!(ids, ["2026-01-31", "2026-02-01", "2026-01-31,2026-01-31"]);
            assert_ne!(id(&SEEDED), id(&SEEDED_OTHERWISE));
        }
        Ok("attach") => assert_eq!((count(&ATTACHING), count(&ZONED)), (1, 1)),
        Ok("from time-dependent") => assert_eq!(count(&FROM_TIME_DEPENDENT), 10),
        Ok("time-dependent with key") => {
            assert_eq!(number(&TIME_DEPENDENT_WITH_KEY.unit_of_work().unwrap(), "SELECT count(*) FROM visit"), 2);
        }
        Ok("namesakes") => assert_eq!((id(&TEN), id(&TWENTY)), (10, 20)),
        Ok("without a key: 10") => assert_eq!(id(&NAMELESS_TEN), 10),
        Ok("without a key: 20") => assert_eq!(id(&NAMELESS_TWENTY), 20),
        Ok("directory") => {
            let expected = fs::read_to_string(PathBuf::from(env::var(BUILDS).unwrap()).with_file_name("expected"));
            let expected: i64 = expected.unwrap().parse().unwrap();
            assert_eq!((id(&DIRECTORY), id(&OF_DIRECTORY), id(&KEYED_OF_DIRECTORY)), (expected, expected, expected));
        }
        Ok("impatient by a variable") => {
            let engine = Engine::new();
            let _writer = engine.begin(Immediate).unwrap();
            let (start, error) = (Instant::now(), engine.begin(Immediate).unwrap_err());
            assert!(start.elapsed() < Duration::from_secs(4), "the default is 5 s: {error}");
            assert!(format!("{:?}", Hammer::new()).contains("deadline: 250ms"), "{:?}", Hammer::new());
        }
        Ok("engine") => drop(Engine::new()),
        Ok("hammer") => drop(Hammer::new()),
        Ok("time-dependent function") => assert_eq!(count(&TIME_DEPENDENT_FUNCTION), 1),
        Ok(role @ ("one" | "other")) => {
            let template = if role == "one" { &ONE_OF_TWO } else { &OTHER_OF_TWO };
            assert_refused(template);
            assert_eq!(count(&KEYED), 1000, "other templates can still be built");
        }
        Ok("first and second") => thread::scope(|scope| {
            scope.spawn(|| assert_refused(&FIRST_OF_THREE));
            scope.spawn(|| assert_refused(&SECOND_OF_THREE));
        }),
        Ok("third") => assert_refused(&THIRD_OF_THREE),
        Ok("truncated") => {
            let engine = KEYED.new_engine().unwrap(); // only the header has been read so far
            let builds = PathBuf::from(env::var(BUILDS).unwrap());
            File::create(builds.with_file_name("loaded")).unwrap();
            until("the image is truncated", || builds.with_file_name("truncated").exists());
            assert_eq!(count(&KEYED), 1000);
            assert_integrity(&engine.connect().unwrap());
        }
        Ok("mapped") => {
            assert_eq!((count(&KEYED), count(&LARGE)), (1000, 1000));
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let images: Vec<&str> = maps.lines().filter(|line| line.ends_with(".sqlite3")).collect();
            assert_eq!(images.len(), 1, "{images:?}");
        }
        Ok("write") => {
            let engine = KEYED.new_engine().unwrap();
            engine.try_transaction(|work| work.execute("UPDATE account SET owner = 'me'", [])).unwrap();
            assert_integrity(&engine.connect().unwrap());
        }
        _ => {} // run by hand, with the ignored tests
    }
}

/// A folder for images, and a count of the calls of `build`.
struct Folder {
    folder: TempDir,
    images: PathBuf,
}

impl Folder {
    fn new() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        Folder { folder, images }
    }

    fn command(&self, role: &str, wrapper: Option<&str>) -> Command {
        self.command_of(&env::current_exe().unwrap(), role, wrapper)
    }

    fn command_of(&self, program: &Path, role: &str, wrapper: Option<&str>) -> Command {
        let mut command = match wrapper {
            Some(script) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{script}; exec \"$0\" \"$@\"")]).arg(program);
                shell
            }
            None => Command::new(program),
        };
        command
            .args(["--exact", "processes::child", "--ignored"])
            .env("CARGO_PKG_NAME", "one-package")
            .env_remove("RUSQLITE_FIXTURES_BACKEND")
            .env_remove("NEXTEST_RUN_ID")
            .env_remove("NEXTEST_ATTEMPT")
            .env_remove("NEXTEST_STRESS_CURRENT")
            .env(ROLE, role)
            .env(BUILDS, self.folder.path().join("builds"))
            .env("RUSQLITE_FIXTURES_DIR", &self.images);
        command
    }

    fn spawn(&self, role: &str) -> Child {
        self.command(role, None).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a child that must succeed; returns what it wrote to stderr.
    fn run(&self, role: &str) -> String {
        succeeded(self.command(role, None).output().unwrap())
    }

    /// Runs a child as cargo-nextest does in the run `id`.
    fn run_in(&self, id: &str, role: &str) {
        succeeded(self.command(role, None).env("NEXTEST_RUN_ID", id).output().unwrap());
    }

    fn builds(&self) -> usize {
        fs::read_to_string(self.folder.path().join("builds")).unwrap_or_default().lines().count()
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.images).into_iter().flatten().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|its| its == extension)).collect()
    }

    /// Returns the only image in the folder.
    fn image(&self) -> PathBuf {
        let [image] = self.files("sqlite3").try_into().expect("there is one image");
        image
    }
}

fn succeeded(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {stderr}", output.status);
    stderr
}

#[test]
fn exactly_one_process_builds_a_template() {
    let folder = Folder::new();
    let children: Vec<Child> = (0..6).map(|_| folder.spawn("share")).collect();
    for child in children {
        assert_eq!(succeeded(child.wait_with_output().unwrap()), "");
    }
    assert_eq!(folder.run("share"), "");
    assert_eq!(folder.builds(), 1);
    let name = folder.image().file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("processes-"), "{name}");
}

#[test]
fn an_image_is_an_ordinary_database() {
    let folder = Folder::new();
    folder.run("share");
    let connection = Connection::open_with_flags(folder.image(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_eq!(number(&connection, "SELECT count(*) FROM account"), 1000);
    assert_integrity(&connection);
    assert!(Snapshot::open(folder.image()).is_ok());
}

#[test]
fn writes_of_a_test_do_not_reach_the_image() {
    let folder = Folder::new();
    folder.run("share");
    let before = fs::read(folder.image()).unwrap();
    folder.run("write");
    assert!(fs::read(folder.image()).unwrap() == before);
}

#[test]
fn another_key_and_a_derived_template_have_their_own_images() {
    let folder = Folder::new();
    for _ in 0..2 {
        for role in ["share", "other key", "derive"] {
            folder.run(role);
        }
    }
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 3));
}

/// The template that is built first gets the image; here it is the same one in every process.
#[test]
fn a_key_shared_by_two_functions_at_one_place_is_not_trusted() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("namesakes");
    }
    assert_eq!(folder.files("sqlite3").len(), 1);
}

#[test]
fn templates_of_functions_without_a_key_are_shared_within_a_run_of_nextest() {
    let folder = Folder::new();
    folder.run_in("1", "unknown");
    folder.run_in("1", "unknown");
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (1, 3));
    folder.run_in("2", "unknown");
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 3), "its images replace those of the run before");
}

#[test]
fn templates_of_functions_without_a_key_are_not_shared_with_another_build_of_the_program() {
    let folder = Folder::new();
    let program = folder.folder.path().join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    for build in 1..=2 {
        let built = SystemTime::UNIX_EPOCH + Duration::from_secs(build);
        File::open(&program).unwrap().set_modified(built).unwrap();
        for _ in 0..2 {
            let mut command = folder.command_of(&program, "unknown", None);
            succeeded(output_of_copy(command.env("NEXTEST_RUN_ID", "1")));
        }
    }
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 3), "the images of the first build are gone");
}

/// A macro makes them at one place. Their functions distinguish them, also in a process that builds only one of them.
#[test]
fn functions_without_a_key_at_one_place_are_distinguished() {
    let folder = Folder::new();
    for role in ["without a key: 10", "without a key: 20", "without a key: 10", "without a key: 20"] {
        folder.run_in("1", role);
    }
    assert_eq!(folder.files("sqlite3").len(), 2);
}

#[test]
fn a_function_that_depends_on_the_time_is_shared_within_a_run_of_nextest() {
    let folder = Folder::new();
    folder.run_in("1", "time-dependent function");
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (1, 0));
}

#[test]
fn a_test_that_nextest_repeats_runs_the_functions_again() {
    let folder = Folder::new();
    for (attempt, iteration) in [("1", "0"), ("1", "0"), ("2", "0"), ("1", "1")] {
        let mut command = folder.command("unknown", None);
        command.env("NEXTEST_RUN_ID", "1").env("NEXTEST_ATTEMPT", attempt).env("NEXTEST_STRESS_CURRENT", iteration);
        succeeded(command.output().unwrap());
    }
    assert_eq!(folder.builds(), 3);
}

#[test]
fn a_changed_migration_is_noticed_also_by_templates_that_are_based_on_the_folder() {
    let folder = Folder::new();
    let migrations = folder.folder.path().join("migrations");
    fs::create_dir(&migrations).unwrap();
    let run = || {
        let mut command = folder.command("directory", None);
        succeeded(command.env("CARGO_MANIFEST_DIR", folder.folder.path()).output().unwrap())
    };
    let images = |count| assert_eq!(folder.files("sqlite3").len(), count);
    for (count, id) in [(3, 1), (6, 2)] {
        let sql = format!("CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES ({id})");
        fs::write(migrations.join("1_account.sql"), sql).unwrap();
        fs::write(folder.folder.path().join("expected"), id.to_string()).unwrap();
        run();
        run();
        images(count);
    }
    fs::write(migrations.join("2_another.sql"), "UPDATE account SET id = 3").unwrap();
    fs::write(folder.folder.path().join("expected"), "3").unwrap();
    run();
    images(9);
}

/// They are not kept as long as others, and do not use up the number of those.
#[test]
fn images_of_runs_are_kept_for_an_hour() {
    let folder = Folder::new();
    folder.run("share");
    let make = |name: String, hours: u64| {
        let path = folder.images.join(format!("{name}-0123456789abcdef0123456789abcdef.sqlite3"));
        File::create(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        path
    };
    let lasting = make("dry-run-of-a-key".to_owned(), 48);
    let of_runs: Vec<_> =
        (0..240).map(|n| make(format!("image{n}_run-0123456789abcdef-fedcba9876543210"), 0)).collect();
    let old = make("image_run-0123456789abcdef-fedcba9876543210".to_owned(), 2);
    folder.run("other key");
    assert!(lasting.exists() && !old.exists());
    assert_eq!(of_runs.iter().filter(|path| !path.exists()).count(), 0);
}

#[test]
fn templates_of_functions_without_a_key_are_not_shared_without_a_run() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("unknown");
    }
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 0));
}

#[test]
fn a_time_dependent_template_is_not_shared_unless_it_has_a_key() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("time-dependent");
    }
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 1));
    folder.run("from time-dependent");
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 2));
    folder.run("time-dependent with key");
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (2, 2));
}

#[test]
fn a_template_is_shared_by_its_time_and_its_seed() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("clocked");
        assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (5, 0));
    }
}

/// One template attaches a file; the other depends on the time zone.
#[test]
fn templates_that_depend_on_more_than_their_script_are_not_shared() {
    let folder = Folder::new();
    let outside = Connection::open(folder.folder.path().join("outside.sqlite3")).unwrap();
    outside.execute_batch("CREATE TABLE account (id); INSERT INTO account VALUES (1)").unwrap();
    succeeded(folder.command("attach", None).current_dir(folder.folder.path()).output().unwrap());
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 2));
}

#[test]
fn variables_set_the_default_of_durations() {
    const TIMEOUT: &str = "RUSQLITE_FIXTURES_LOCK_TIMEOUT";
    const DEADLINE: &str = "RUSQLITE_FIXTURES_DEADLINE";
    let folder = Folder::new();
    succeeded(
        folder.command("impatient by a variable", None).env(TIMEOUT, "0.005").env(DEADLINE, "0.25").output().unwrap(),
    );
    for (role, variable) in [("engine", TIMEOUT), ("hammer", DEADLINE)] {
        let output = folder.command(role, None).env(variable, "5s").output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let message = format!("can't use the environment variable {variable}=\"5s\": it is not a number of seconds");
        assert!(!output.status.success() && printed.contains(&message), "{printed}");
    }
}

/// Any damage of an image is detected, and the image is rebuilt.
#[test]
fn a_damaged_image_is_not_used() {
    type Damage = fn(&Path, &[u8]);
    let damages: [(&str, Damage); 8] = [
        ("emptied", |path, _| fs::write(path, []).unwrap()),
        ("cut short", |path, bytes| fs::write(path, &bytes[..bytes.len() - 4096]).unwrap()),
        ("without its seal", |path, bytes| fs::write(path, &bytes[..bytes.len() / 4096 * 4096]).unwrap()),
        ("longer", |path, bytes| fs::write(path, [bytes, &[0; 4096]].concat()).unwrap()),
        ("not a database", |path, bytes| fs::write(path, vec![7; bytes.len()]).unwrap()),
        ("one byte in the middle", |path, bytes| fs::write(path, flipped(bytes, bytes.len() / 2)).unwrap()),
        ("one byte in the seal", |path, bytes| fs::write(path, flipped(bytes, bytes.len() - 40)).unwrap()),
        ("a folder", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    let folder = Folder::new();
    folder.run("share");
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        let (image, builds) = (folder.image(), folder.builds());
        let bytes = fs::read(&image).unwrap();
        make_writable(&image);
        damage(&image, &bytes);
        let stderr = folder.run("share");
        assert_eq!(folder.builds(), builds + 1, "{what}");
        if what == "a folder" {
            assert!(stderr.contains("each process builds its own"), "{stderr}");
        } else {
            assert_eq!(stderr, "", "{what}, number {number}");
            assert!(fs::read(&image).unwrap().starts_with(&bytes[..4096 * 2]), "{what}: the image is there again");
        }
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

fn make_writable(path: &Path) {
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    #[cfg(not(unix))]
    let permissions = {
        let mut permissions = fs::metadata(path).unwrap().permissions();
        permissions.set_readonly(false);
        permissions
    };
    fs::set_permissions(path, permissions).unwrap();
}

/// `cp` truncates an existing file like this. If the image were mapped, the next read would kill the process (SIGBUS).
#[test]
fn a_small_image_may_be_truncated_while_a_process_uses_it() {
    let folder = Folder::new();
    folder.run("share");
    let child = folder.spawn("truncated");
    let beside = |name: &str| folder.folder.path().join(name);
    until("the child has the image", || beside("loaded").exists());
    make_writable(&folder.image());
    File::options().write(true).open(folder.image()).unwrap().set_len(0).unwrap();
    File::create(beside("truncated")).unwrap();
    succeeded(wait_for(child));
    assert_eq!(folder.builds(), 1, "the child continued with what it had read");
}

/// A process reads only the pages that it needs from a mapped image.
#[cfg(target_os = "linux")]
#[test]
fn only_a_large_image_is_mapped() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("mapped"); // the first run builds the images, the second finds them
    }
    let mut sizes: Vec<u64> = folder.files("sqlite3").iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    sizes.sort_unstable();
    assert!(matches!(*sizes, [small, large] if small < 256 << 10 && large > 256 << 10), "{sizes:?}");
}

/// Several packages may share a folder, and each may have a template with this key at this line.
#[test]
fn another_package_has_its_own_images() {
    let folder = Folder::new();
    folder.run("share");
    succeeded(folder.command("share", None).env("CARGO_PKG_NAME", "another-package").output().unwrap());
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 2));
}

/// The file has this template's name and another template's content.
#[test]
fn an_image_of_another_template_is_not_used() {
    let folder = Folder::new();
    folder.run("share");
    let image = folder.image();
    folder.run("other key");
    let other = folder.files("sqlite3").into_iter().find(|path| *path != image).unwrap();
    fs::rename(other, &image).unwrap();
    folder.run("share");
    assert_eq!(folder.builds(), 3);
}

/// Two machines that each run a part of the tests may share images: one builds an image, the other gets a copy.
#[test]
fn a_copied_image_is_used() {
    let (one, other) = (Folder::new(), Folder::new());
    one.run("share");
    other.run("other key"); // creates the folder, which this user then owns
    let copy = other.images.join(one.image().file_name().unwrap());
    fs::copy(one.image(), &copy).unwrap();
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_ne!(modified(&copy), modified(&one.image()), "a copy does not keep the modification time");
    let builds = other.builds();
    other.run("share");
    assert_eq!(other.builds(), builds);
    assert_eq!(modified(&copy), modified(&one.image()), "one process has verified the copy, so the next need not");
}

#[test]
fn a_builder_that_crashes_leaves_no_lock() {
    let folder = Folder::new();
    assert!(!folder.command("crash", None).output().unwrap().status.success());
    folder.run("share");
    assert_eq!(folder.builds(), 2);
    assert_eq!(fs::read_dir(&folder.images).unwrap().count(), 2, "the image and its lock");
}

/// Within one process this is detected at once; see `a_template_that_asks_for_itself_is_refused`.
#[test]
fn templates_that_ask_for_each_other_in_two_processes_are_refused() {
    let folder = Folder::new();
    let children: Vec<Child> = ["one", "other"].map(|role| folder.spawn(role)).into();
    let printed: String = children.into_iter().map(wait_for).map(succeeded).collect();
    assert!(
        printed.contains("-of-two-") && printed.contains("waits for a template that this process builds"),
        "{printed}"
    );
    assert_eq!(folder.files("sqlite3").len(), 1, "only the template that can be built has an image");
}

/// One of the waits is for a thread; the others are for lock files.
#[test]
fn a_circle_of_waits_through_threads_and_processes_is_refused() {
    let folder = Folder::new();
    let children: Vec<Child> = ["first and second", "third"].map(|role| folder.spawn(role)).into();
    children.into_iter().map(wait_for).for_each(|output| drop(succeeded(output)));
    assert_eq!(folder.files("sqlite3").len(), 0);
}

/// The other process may be stopped in a debugger.
#[test]
fn a_process_that_waits_long_prints_what_it_waits_for() {
    let folder = Folder::new();
    folder.run("share");
    fs::remove_file(folder.image()).unwrap();
    let [lock] = folder.files("lock").try_into().expect("there is one lock");
    let held = File::options().write(true).open(&lock).unwrap();
    held.lock().unwrap();
    let mut child = folder.spawn("share");
    let mut printed = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut printed).unwrap();
    let (lock, process) = (lock.display(), "process ");
    assert!(printed.starts_with(&format!("rusqlite-fixtures: waiting for {process}")), "{printed}");
    assert!(printed.ends_with(&format!(" (it has locked `{lock}`), which builds a template\n")), "{printed}");
    assert!(child.try_wait().unwrap().is_none() && folder.builds() == 1, "it is still waiting");
    held.unlock().unwrap();
    succeeded(wait_for(child));
    assert_eq!(folder.builds(), 2);
}

/// Waits until a child has ended, and returns its output; panics after `DEADLINE`.
fn wait_for(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the child has not ended: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_failing_build_leaves_nothing_and_is_reported() {
    let folder = Folder::new();
    let output = folder.command("fail", None).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(printed.contains("can't build the template `processes` at tests/it/processes.rs:"), "{printed}");
    assert!(folder.files("sqlite3").is_empty());
    folder.run("share");
}

#[test]
fn templates_work_without_a_folder() {
    let mut folder = Folder::new();
    let working = folder.folder.path().to_owned();
    let file = working.join("file");
    File::create(&file).unwrap();
    let relative = PathBuf::from("relative/folder");
    for images in [file.clone(), file.join("below"), PathBuf::from("/proc/no-folder-can-be-made-here"), relative] {
        folder.images = images;
        let printed = folder.run("derive");
        assert_eq!(printed.matches("rusqlite-fixtures: can't use").count(), 1, "it is printed once: {printed}");
        assert!(printed.contains(&*folder.images.to_string_lossy()), "{printed}");
    }
    folder.images = PathBuf::new(); // sharing is turned off
    assert_eq!(folder.run("share"), "");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn images_are_private() {
        let folder = Folder::new();
        folder.run("share");
        assert_eq!((mode(&folder.images), mode(&folder.image())), (0o700, 0o400));
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_not_used() {
        let folder = Folder::new();
        folder.run("share");
        for bits in [0o770, 0o702] {
            set_mode(&folder.images, bits);
            let printed = folder.run("share");
            assert!(printed.contains("other users can write to it") && printed.contains("chmod go-w"), "{printed}");
        }
        assert_eq!(folder.builds(), 3);
    }

    #[test]
    fn an_image_that_others_can_write_to_is_not_used() {
        let folder = Folder::new();
        folder.run("share");
        set_mode(&folder.image(), 0o666);
        folder.run("share");
        assert_eq!((folder.builds(), mode(&folder.image())), (2, 0o400));
    }

    /// No file may grow beyond 1 KB, which looks like a full disk to a program.
    #[test]
    fn on_a_full_disk_each_process_builds_its_own_template() {
        let folder = Folder::new();
        let limit = "trap '' XFSZ; ulimit -f 1";
        let mut command = folder.command("share", Some(limit));
        command.env("LLVM_PROFILE_FILE", "/dev/null"); // the limit would also truncate the coverage data and make it unreadable
        let printed = succeeded(command.output().unwrap());
        assert!(printed.contains("each process builds its own"), "{printed}");
        assert_eq!(fs::read_dir(&folder.images).unwrap().count(), 1, "the lock file, and no half-written image");
    }
}

#[test]
fn old_images_are_removed() {
    let folder = Folder::new();
    folder.run("share");
    let image = folder.image();
    let hash = "0123456789abcdef0123456789abcdef";
    let (week, hour) = (Duration::from_secs(8 * 24 * 3600), Duration::from_secs(2 * 3600));
    let make = |name: &str, age| {
        let path = folder.images.join(name);
        File::create(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let old = [".sqlite3", ".lock", ".forbidden", ".123.aside"].map(|end| make(&format!("old-{hash}{end}"), week));
    let others = ["mine.sqlite3", "notes-2024.lock"].map(|name| make(name, week));
    let many: Vec<PathBuf> = (0..230).map(|n| make(&format!("many{n}-{hash}.sqlite3"), hour)).collect();
    folder.run("other key");
    assert!(old.iter().all(|path| !path.exists()));
    assert!(others.iter().all(|path| path.exists()), "other files stay");
    assert!(image.exists());
    let left = many.iter().filter(|path| path.exists()).count();
    assert!((190..200).contains(&left), "{left} of 230 are left");
}

/// The current test run may be using images younger than an hour, so they stay, however many there are.
#[test]
fn images_younger_than_an_hour_stay() {
    let folder = Folder::new();
    folder.run("share");
    let hash = "0123456789abcdef0123456789abcdef";
    let make = |number: u64| {
        let path = folder.images.join(format!("young{number}-{hash}.sqlite3"));
        let age = Duration::from_secs(10 * number); // the oldest 40 minutes
        File::create(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let young: Vec<PathBuf> = (0..240).map(make).collect();
    folder.run("other key");
    assert_eq!(young.iter().filter(|path| !path.exists()).count(), 0, "of {}", young.len());
}

/// If there are only a few images, they stay until they are a week old.
#[test]
fn a_few_images_stay_for_a_week() {
    let folder = Folder::new();
    folder.run("share");
    let [younger, older] = [6, 8].map(|days| {
        let path = folder.images.join(format!("old{days}-0123456789abcdef0123456789abcdef.sqlite3"));
        File::create(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
        path
    });
    folder.run("other key");
    assert!(younger.exists() && !older.exists());
}

/// Without RUSQLITE_FIXTURES_DIR, images are in Cargo's target folder.
#[test]
fn images_are_in_the_target_folder_by_default() {
    let folder = Folder::new();
    let (target, program) = (folder.folder.path().join("target"), env::current_exe().unwrap());
    fs::create_dir_all(target.join("debug/deps")).unwrap();
    let copy = target.join("debug/deps/it");
    fs::copy(program, &copy).unwrap();
    let run = || {
        let mut command = Command::new(&copy);
        command.args(["--exact", "processes::child", "--ignored"]).env(ROLE, "share");
        command.env(BUILDS, folder.folder.path().join("builds")).env_remove("RUSQLITE_FIXTURES_DIR");
        assert_eq!(succeeded(output_of_copy(&mut command)), "");
    };
    run();
    assert!(!target.join("rusqlite-fixtures").exists(), "without CACHEDIR.TAG, the folder may not be Cargo's");
    fs::write(target.join("CACHEDIR.TAG"), "Signature: …\n# This file is a cache directory tag created by cargo.\n")
        .unwrap();
    run();
    run();
    assert!(target.join("rusqlite-fixtures").is_dir());
    assert_eq!(folder.builds(), 2);
}
