//! Processes share what templates have been built to, by images in a folder.
//!
//! Each test runs `child` of this very program, as a process of its own, in a folder of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{env, thread};

use rusqlite_fixtures::rusqlite::{Connection, OpenFlags};
use rusqlite_fixtures::{BoxError, Snapshot, Template};
use tempfile::TempDir;

use crate::support::{assert_integrity, number};

const ROLE: &str = "FIXTURES_TEST_ROLE";
const BUILDS: &str = "FIXTURES_TEST_BUILDS";
const SCHEMA: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT);
    WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 1000)
    INSERT INTO account SELECT id, 'owner of account ' || id FROM ids;";

/// Notes that it was called, and takes long enough for others to come.
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
static TIMELY: Template = Template::sql(SCHEMA).seed(
    "CREATE TABLE visit (account INTEGER, at TEXT DEFAULT CURRENT_TIMESTAMP); INSERT INTO visit (account) VALUES (1)",
);
static ATTACHING: Template = Template::sql(
    "ATTACH 'outside.sqlite3' AS outside; CREATE TABLE account AS SELECT * FROM outside.account; DETACH outside",
);
static ZONED: Template =
    Template::sql("CREATE TABLE account AS SELECT datetime('2020-06-01 12:00', 'localtime') AS at");
static OF_TIMELY: Template = Template::based_on(&TIMELY).seed("DELETE FROM account WHERE id > 10");
static TIMELY_WITH_KEY: Template =
    Template::based_on(&TIMELY_PARENT).seed("INSERT INTO visit VALUES (2)").key("timely");
static TIMELY_PARENT: Template =
    Template::sql("CREATE TABLE visit (at TEXT); INSERT INTO visit VALUES (datetime('now'))").key("timely parent");

/// Its image is larger than those that are read into memory.
static LARGE: Template = Template::sql(
    "CREATE TABLE account AS WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 1000)
    SELECT id, zeroblob(1000) AS padding FROM ids",
);

/// Each asks for the other, once both are being built.
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
    assert!(error.to_string().contains("its build asks for the same template"), "{error}");
}

/// Waits until it is so, for which there is plenty of time.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?}, it is not so that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

const DEADLINE: Duration = Duration::from_secs(60);

/// Functions that are written at one place and have one key.
macro_rules! namesakes {
    ($($name:ident makes $sql:literal;)*) => {$(
        static $name: Template = Template::build(|connection| Ok(connection.execute_batch($sql)?)).key("namesakes");
    )*};
}
namesakes! {
    TEN makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (10)";
    TWENTY makes "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (20)";
}

#[test]
#[ignore = "is run by the others, as a process of its own"]
fn child() {
    let count = |template: &Template| number(&template.unit_of_work().unwrap(), "SELECT count(*) FROM account");
    match env::var(ROLE).as_deref() {
        Ok("share" | "crash" | "fail") => assert_eq!(count(&KEYED), 1000),
        Ok("other key") => assert_eq!(count(&OTHER_KEY), 1000),
        Ok("derive") => assert_eq!((count(&DERIVED), count(&KEYED)), (10, 1000)),
        Ok("unknown") => assert_eq!((count(&UNKNOWN), count(&SET_UP), count(&UNKNOWN_PARENT)), (1000, 1000, 10)),
        Ok("timely") => assert_eq!(count(&TIMELY), 1000),
        Ok("attach") => assert_eq!((count(&ATTACHING), count(&ZONED)), (1, 1)),
        Ok("of timely") => assert_eq!(count(&OF_TIMELY), 10),
        Ok("timely with key") => {
            assert_eq!(number(&TIMELY_WITH_KEY.unit_of_work().unwrap(), "SELECT count(*) FROM visit"), 2);
        }
        Ok("namesakes") => {
            let id = |template: &Template| number(&template.unit_of_work().unwrap(), "SELECT id FROM account");
            assert_eq!((id(&TEN), id(&TWENTY)), (10, 20));
        }
        Ok(role @ ("one" | "other")) => {
            let template = if role == "one" { &ONE_OF_TWO } else { &OTHER_OF_TWO };
            assert_refused(template);
            assert_eq!(count(&KEYED), 1000, "other templates are built as ever");
        }
        Ok("first and second") => thread::scope(|scope| {
            scope.spawn(|| assert_refused(&FIRST_OF_THREE));
            scope.spawn(|| assert_refused(&SECOND_OF_THREE));
        }),
        Ok("third") => assert_refused(&THIRD_OF_THREE),
        Ok("truncated") => {
            let engine = KEYED.new_engine().unwrap(); // nothing but the header has been looked at
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
        _ => {} // run by hand, among ignored tests
    }
}

/// A folder for images, and how often `build` was called.
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
        let program = env::current_exe().unwrap();
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

    fn builds(&self) -> usize {
        fs::read_to_string(self.folder.path().join("builds")).unwrap_or_default().lines().count()
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.images).into_iter().flatten().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|its| its == extension)).collect()
    }

    /// The one image that there is.
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
fn exactly_one_process_builds() {
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
fn what_a_test_writes_is_not_written_to_the_image() {
    let folder = Folder::new();
    folder.run("share");
    let before = fs::read(folder.image()).unwrap();
    folder.run("write");
    assert!(fs::read(folder.image()).unwrap() == before);
}

#[test]
fn another_key_and_a_derived_template_have_images_of_their_own() {
    let folder = Folder::new();
    for _ in 0..2 {
        for role in ["share", "other key", "derive"] {
            folder.run(role);
        }
    }
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 3));
}

/// The one that comes first has the image; in every process that is the same one here.
#[test]
fn one_key_for_two_functions_at_one_place_is_not_trusted() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("namesakes");
    }
    assert_eq!(folder.files("sqlite3").len(), 1);
}

#[test]
fn what_decides_the_content_has_to_be_known() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("unknown");
    }
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 0));
}

#[test]
fn what_is_of_its_time_is_not_shared_unless_it_has_a_key() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("timely");
    }
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 1));
    folder.run("of timely");
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 2));
    folder.run("timely with key");
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (2, 2));
}

/// Nor is what was read from another file, or depends on the time zone.
#[test]
fn what_is_not_of_the_script_alone_is_not_shared() {
    let folder = Folder::new();
    let outside = Connection::open(folder.folder.path().join("outside.sqlite3")).unwrap();
    outside.execute_batch("CREATE TABLE account (id); INSERT INTO account VALUES (1)").unwrap();
    succeeded(folder.command("attach", None).current_dir(folder.folder.path()).output().unwrap());
    assert_eq!((folder.files("sqlite3").len(), folder.files("forbidden").len()), (0, 2));
}

/// Whatever has happened to the image: it is noticed, and built anew.
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
            assert!(fs::read(&image).unwrap().starts_with(&bytes[..4096 * 2]), "{what}: it is there again");
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

/// As `cp` does to a file that is there. What is mapped would be gone: to look at it kills the process (SIGBUS).
#[test]
fn a_small_image_may_be_truncated_while_a_process_has_it() {
    let folder = Folder::new();
    folder.run("share");
    let child = folder.spawn("truncated");
    let beside = |name: &str| folder.folder.path().join(name);
    until("the child has the image", || beside("loaded").exists());
    make_writable(&folder.image());
    File::options().write(true).open(folder.image()).unwrap().set_len(0).unwrap();
    File::create(beside("truncated")).unwrap();
    succeeded(ended(child));
    assert_eq!(folder.builds(), 1, "it went on with what it had");
}

/// A large one costs a process only what it looks at.
#[cfg(target_os = "linux")]
#[test]
fn only_a_large_image_is_mapped() {
    let folder = Folder::new();
    for _ in 0..2 {
        folder.run("mapped"); // which has built them, or found them
    }
    let mut sizes: Vec<u64> = folder.files("sqlite3").iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    sizes.sort_unstable();
    assert!(matches!(*sizes, [small, large] if small < 256 << 10 && large > 256 << 10), "{sizes:?}");
}

/// One folder may serve several packages, and each may have a template of that key at that line.
#[test]
fn another_package_has_images_of_its_own() {
    let folder = Folder::new();
    folder.run("share");
    succeeded(folder.command("share", None).env("CARGO_PKG_NAME", "another-package").output().unwrap());
    assert_eq!((folder.builds(), folder.files("sqlite3").len()), (2, 2));
}

/// The image of another template under this one's name.
#[test]
fn a_foreign_image_is_not_used() {
    let folder = Folder::new();
    folder.run("share");
    let image = folder.image();
    folder.run("other key");
    let other = folder.files("sqlite3").into_iter().find(|path| *path != image).unwrap();
    fs::rename(other, &image).unwrap();
    folder.run("share");
    assert_eq!(folder.builds(), 3);
}

/// As between two machines that each run a part of the tests: what one has built, the other is given.
#[test]
fn a_copied_image_is_used() {
    let (one, other) = (Folder::new(), Folder::new());
    one.run("share");
    other.run("other key"); // so that there is a folder, this user's own
    let copy = other.images.join(one.image().file_name().unwrap());
    fs::copy(one.image(), &copy).unwrap();
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_ne!(modified(&copy), modified(&one.image()), "a copy does not keep the time");
    let builds = other.builds();
    other.run("share");
    assert_eq!(other.builds(), builds);
    assert_eq!(modified(&copy), modified(&one.image()), "it was read through once; the next process need not");
}

#[test]
fn a_crash_of_the_builder_leaves_no_lock() {
    let folder = Folder::new();
    assert!(!folder.command("crash", None).output().unwrap().status.success());
    folder.run("share");
    assert_eq!(folder.builds(), 2);
    assert_eq!(fs::read_dir(&folder.images).unwrap().count(), 2, "the image and its lock");
}

/// In one process the same is told at once; see `a_template_that_asks_for_itself_is_refused`.
#[test]
fn templates_that_ask_for_each_other_in_two_processes_are_refused() {
    let folder = Folder::new();
    let children: Vec<Child> = ["one", "other"].map(|role| folder.spawn(role)).into();
    let said: String = children.into_iter().map(ended).map(succeeded).collect();
    assert!(said.contains("-of-two-") && said.contains("waits for a template that this process builds"), "{said}");
    assert_eq!(folder.files("sqlite3").len(), 1, "no image but that of the template that can be built");
}

/// One of the waits is for a thread, and the others are for files.
#[test]
fn a_circle_by_way_of_threads_and_processes_is_refused() {
    let folder = Folder::new();
    let children: Vec<Child> = ["first and second", "third"].map(|role| folder.spawn(role)).into();
    children.into_iter().map(ended).for_each(|output| drop(succeeded(output)));
    assert_eq!(folder.files("sqlite3").len(), 0);
}

/// As when the other process is stopped in a debugger.
#[test]
fn a_process_that_waits_for_long_says_what_it_waits_for() {
    let folder = Folder::new();
    folder.run("share");
    fs::remove_file(folder.image()).unwrap();
    let [lock] = folder.files("lock").try_into().expect("there is one lock");
    let held = File::options().write(true).open(&lock).unwrap();
    held.lock().unwrap();
    let mut child = folder.spawn("share");
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let (lock, process) = (lock.display(), "process ");
    assert!(said.starts_with(&format!("rusqlite-fixtures: waiting for {process}")), "{said}");
    assert!(said.ends_with(&format!(" (it has locked `{lock}`), which builds a template\n")), "{said}");
    assert!(child.try_wait().unwrap().is_none() && folder.builds() == 1, "it goes on waiting");
    held.unlock().unwrap();
    succeeded(ended(child));
    assert_eq!(folder.builds(), 2);
}

/// What came of a child, which ends in time.
fn ended(mut child: Child) -> Output {
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
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("can't build the template `processes` at tests/it/processes.rs:"), "{said}");
    assert!(folder.files("sqlite3").is_empty());
    folder.run("share");
}

#[test]
fn no_folder_is_needed() {
    let mut folder = Folder::new();
    let working = folder.folder.path().to_owned();
    let file = working.join("file");
    File::create(&file).unwrap();
    let relative = PathBuf::from("relative/folder");
    for images in [file.clone(), file.join("below"), PathBuf::from("/proc/no-folder-can-be-made-here"), relative] {
        folder.images = images;
        let said = folder.run("derive");
        assert_eq!(said.matches("rusqlite-fixtures: can't use").count(), 1, "it is said once: {said}");
        assert!(said.contains(&*folder.images.to_string_lossy()), "{said}");
    }
    folder.images = PathBuf::new(); // none is wanted
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
            let said = folder.run("share");
            assert!(said.contains("others can write to it") && said.contains("chmod go-w"), "{said}");
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

    /// No file may grow beyond 1 KB: to a program, that is what a full disk is.
    #[test]
    fn a_full_disk_costs_the_sharing_only() {
        let folder = Folder::new();
        let limit = "trap '' XFSZ; ulimit -f 1";
        let mut command = folder.command("share", Some(limit));
        command.env("LLVM_PROFILE_FILE", "/dev/null"); // coverage would be cut short, too, and no longer be readable
        let said = succeeded(command.output().unwrap());
        assert!(said.contains("each process builds its own"), "{said}");
        assert_eq!(fs::read_dir(&folder.images).unwrap().count(), 1, "the lock, and nothing half written");
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
    assert!(others.iter().all(|path| path.exists()), "files that are not ours stay");
    assert!(image.exists());
    let left = many.iter().filter(|path| path.exists()).count();
    assert!((190..200).contains(&left), "{left} of 230 are left");
}

/// Those younger than an hour may be what this very run of tests is using, however many they are.
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

/// Nor do a few that are not a week old.
#[test]
fn a_few_images_stay_for_a_week() {
    let folder = Folder::new();
    folder.run("share");
    let path = folder.images.join("old-0123456789abcdef0123456789abcdef.sqlite3");
    File::create(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(6 * 24 * 3600)).unwrap();
    folder.run("other key");
    assert!(path.exists());
}

/// Without the variable, images are in Cargo's target folder.
#[test]
fn images_are_in_the_target_folder() {
    let folder = Folder::new();
    let (target, program) = (folder.folder.path().join("target"), env::current_exe().unwrap());
    fs::create_dir_all(target.join("debug/deps")).unwrap();
    let copy = target.join("debug/deps/it");
    fs::copy(program, &copy).unwrap();
    let run = || {
        let mut command = Command::new(&copy);
        command.args(["--exact", "processes::child", "--ignored"]).env(ROLE, "share");
        command.env(BUILDS, folder.folder.path().join("builds")).env_remove("RUSQLITE_FIXTURES_DIR");
        // A process that another test starts just now has the copy open for writing, until it becomes another program.
        let output = loop {
            match command.output() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
                output => break output.unwrap(),
            }
        };
        assert_eq!(succeeded(output), "");
    };
    run();
    assert!(!target.join("rusqlite-fixtures").exists(), "it is not known to be Cargo's");
    fs::write(target.join("CACHEDIR.TAG"), "Signature: …\n# This file is a cache directory tag created by cargo.\n")
        .unwrap();
    run();
    run();
    assert!(target.join("rusqlite-fixtures").is_dir());
    assert_eq!(folder.builds(), 2);
}
