use std::borrow::{Borrow, Cow};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::vfs;

/// The name of a shared database. Different spellings of its URL are equal as `DatabaseUrl`s.
///
/// | URL | database |
/// | --- | --- |
/// | `sqlite:///:memory:`, `sqlite://`, `sqlite::memory:`, `:memory:`, `file::memory:?cache=shared` | the default one |
/// | `sqlite:///file:NAME?mode=memory&cache=shared&uri=true`, `file:NAME?mode=memory`, `file:/NAME?vfs=memdb` | NAME |
/// | `sqlite:///PATH`, `sqlite://PATH`, `sqlite:PATH`, `file:PATH?mode=rwc` | the file PATH, as for [`Engine::file`](crate::Engine::file) |
///
/// NAME is percent-decoded and compared byte for byte. PATH is percent-decoded. After `sqlite:///` it is relative to the
/// current folder, as for SQLAlchemy; an absolute path has four slashes, `sqlite:////var/PATH`. Different paths of one file
/// are equal. The [`Display`](fmt::Display) of a URL is the normal form, which parses to an equal value.
///
/// ```
/// # use rusqlite_fixtures::DatabaseUrl;
/// let url: DatabaseUrl =
///     "sqlite:///file:my%20orders?mode=memory&cache=shared&uri=true".parse()?;
/// assert_eq!(url, "file:/my orders?vfs=memdb".parse()?);
/// assert_eq!(url.to_string(), "file:my%20orders?mode=memory&cache=shared");
/// # Ok::<(), rusqlite_fixtures::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseUrl {
    /// A name, or `FILE` and the full path of a file. No name begins like this.
    name: Cow<'static, str>,
}

const FILE: char = '\0';

impl DatabaseUrl {
    /// The default shared database, `sqlite:///:memory:`.
    pub const MEMORY: DatabaseUrl = DatabaseUrl { name: Cow::Borrowed(DEFAULT) };

    /// Returns the URL of the shared database with exactly this name. No character has a special meaning.
    ///
    /// # Errors
    /// [`InvalidUrl`](crate::ErrorKind::InvalidUrl) for a name that is empty or contains a NUL.
    pub fn named(name: &str) -> Result<DatabaseUrl> {
        check_name(name).map_err(|reason| Error::invalid_url(name, reason))?;
        Ok(DatabaseUrl { name: Cow::Owned(name.to_owned()) })
    }
}

impl DatabaseUrl {
    /// Returns the full path, if the URL names a file.
    pub(super) fn path(&self) -> Option<&Path> {
        self.name.strip_prefix(FILE).map(Path::new)
    }
}

/// SQLite's name for a database in memory. No other database can have this name.
const DEFAULT: &str = ":memory:";

/// Borrows the name, so that a map of URLs can be searched with the result of `parse`, without an allocation.
impl Borrow<str> for DatabaseUrl {
    fn borrow(&self) -> &str {
        &self.name
    }
}

impl FromStr for DatabaseUrl {
    type Err = Error;

    /// # Errors
    /// [`NotInMemory`](crate::ErrorKind::NotInMemory) for a path without `sqlite:` or `mode=rwc`, because it may be a
    /// mistake; [`InvalidUrl`](crate::ErrorKind::InvalidUrl) for anything else that names no shared database. The message
    /// says what to use instead.
    fn from_str(url: &str) -> Result<DatabaseUrl> {
        Ok(DatabaseUrl { name: Cow::Owned(parse(url)?.into_owned()) })
    }
}

/// Returns the name of the database that the URL refers to.
pub(crate) fn parse(url: &str) -> Result<Cow<'_, str>> {
    if matches!(url, "sqlite:///:memory:" | "sqlite://" | "sqlite::memory:" | ":memory:") {
        return Ok(DEFAULT.into()); // first, because nearly every call passes one of these
    }
    if let Some(rest) = url.strip_prefix("file:") {
        return parse_file(url, rest);
    }
    if let Some(rest) = url.strip_prefix("sqlite:") {
        return parse_sqlite(url, rest);
    }
    Err(match scheme(url) {
        _ if url.is_empty() => Error::invalid_url(url, EMPTY),
        _ if url.contains('\0') => Error::invalid_url(url, NUL),
        Some(scheme) => Error::invalid_url(url, &unknown_scheme(scheme)),
        None => Error::not_in_memory(url, url),
    })
}

const EMPTY: &str = "it is empty; \"sqlite:///:memory:\" is the default shared database";
const NUL: &str = "it contains a NUL character";

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.name.strip_prefix(FILE) {
            return write!(f, "sqlite:///{}", Encoded { text: path, keeps_slashes: true });
        }
        match &*self.name {
            DEFAULT => f.write_str("sqlite:///:memory:"),
            name => write!(f, "file:{}?mode=memory&cache=shared", Encoded { text: name, keeps_slashes: false }),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl(\"{self}\")")
    }
}

/// Returns the scheme, if there is one. A single letter is a drive, not a scheme.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme.then_some(scheme)
}

fn unknown_scheme(scheme: &str) -> String {
    format!(
        "its scheme is {scheme:?}, and only SQLite is supported: \"sqlite:///:memory:\", \"file:NAME?mode=memory\" for the \
         shared database NAME, or \"sqlite:///PATH\" for a file"
    )
}

/// Parses the part after `sqlite:`, as SQLAlchemy and sqlx write it.
fn parse_sqlite<'a>(url: &str, rest: &'a str) -> Result<Cow<'a, str>> {
    let rest = rest.strip_prefix("///").or_else(|| rest.strip_prefix("//")).unwrap_or(rest);
    if let Some(rest) = rest.strip_prefix("file:") {
        return parse_file(url, rest);
    }
    match split_query(rest) {
        ("", query) => match Query::parse(query).and_then(|query| query.place_of(DEFAULT, Place::Memory)) {
            Ok(_) => Ok(DEFAULT.into()),
            Err(reason) => Err(Error::invalid_url(url, &reason)),
        },
        _ => parse_path(url, rest, Place::OnFile),
    }
}

/// Parses the part after `file:`, according to SQLite's "URI Filenames In SQLite".
fn parse_file<'a>(url: &str, rest: &'a str) -> Result<Cow<'a, str>> {
    let rest = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !matches!(authority, "" | "localhost") {
                let reason = format!("its authority is {authority:?}; SQLite accepts none or \"localhost\"");
                return Err(Error::invalid_url(url, &reason));
            }
            path
        }
    };
    parse_path(url, rest, Place::Unknown)
}

/// Parses a path with a query. `default` is the place of a database for which the query has none.
fn parse_path<'a>(url: &str, rest: &'a str, default: Place) -> Result<Cow<'a, str>> {
    let invalid = |reason: &str| Error::invalid_url(url, reason);
    let (path, query) = split_query(rest);
    let mut name = decode(path).map_err(invalid)?;
    let place = match query {
        // Nearly all URLs have one of these. `Query::parse` gives the same result for them (exempted in mutants.toml).
        "mode=memory" | "mode=memory&cache=shared" | "mode=memory&cache=shared&uri=true" => Place::Memory,
        _ => Query::parse(query).and_then(|query| query.place_of(&name, default)).map_err(|reason| invalid(&reason))?,
    };
    match place {
        Place::Unknown if !name.is_empty() => return Err(Error::not_in_memory(url, &name)),
        Place::OnFile if !name.is_empty() => return full_path(&name).map_err(|flaw| invalid(&flaw)).map(Cow::Owned),
        Place::OnFile | Place::Unknown | Place::Memory => {}
        Place::Memdb if name.starts_with('/') => name = name[1..].to_owned().into(),
        Place::Memdb => return Err(invalid(MEMDB_WITHOUT_SLASH)),
    }
    check_name(&name).map_err(invalid)?;
    Ok(name)
}

/// Returns the full path of a file, as `DatabaseUrl` has it.
fn full_path(path: &str) -> std::result::Result<String, String> {
    let full_name =
        vfs::full_name(Path::new(path)).map_err(|flaw| format!("its path {path:?} can't be used: {flaw}"))?;
    let full_name = full_name.into_string().map_err(|_| "the current folder's name is not UTF-8".to_owned())?;
    Ok(format!("{FILE}{full_name}"))
}

/// Where a URL says that the database is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// In a file, as it seems.
    Unknown,
    OnFile,
    Memory,
    Memdb,
}

/// What the query of a URL says about the database.
#[derive(Default)]
struct Query<'a> {
    place: Option<Place>,
    has_private_cache: bool,
    /// A parameter by which SQLite takes no locks on a file.
    without_locks: Option<&'a str>,
}

impl<'a> Query<'a> {
    fn parse(query: &'a str) -> std::result::Result<Query<'a>, String> {
        let mut result = Query::default();
        let query = query.split('#').next().unwrap_or(query);
        for parameter in query.split('&') {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match (key, &*decode(value)?) {
                ("mode", "memory" | "rwc") if result.place == Some(Place::Memdb) => {}
                ("mode", "memory") => result.place = Some(Place::Memory),
                ("mode", "rwc") if result.place.is_none() => result.place = Some(Place::OnFile),
                ("mode", other) => {
                    return Err(format!("its mode is {other:?}; use mode=memory, or mode=rwc for a file"));
                }
                ("vfs", "memdb") => result.place = Some(Place::Memdb),
                ("vfs", other) if vfs::is_vfs_name(other) => return Err(OF_AN_ENGINE.to_owned()),
                ("vfs", other) => return Err(format!("its VFS is {other:?}; remove vfs=")),
                ("cache", "shared") => {}
                ("cache", "private") => result.has_private_cache = true,
                ("cache", other) => return Err(format!("its cache is {other:?}; use cache=shared")),
                ("nolock" | "immutable", value) if !matches!(value, "0" | "no" | "off" | "false") => {
                    result.without_locks = Some(parameter);
                }
                _ if parameter.contains('\0') => return Err(NUL.to_owned()),
                // SQLite's "URI Filenames In SQLite": unknown parameters are passed to the VFS and ignored otherwise.
                _ => {}
            }
        }
        Ok(result)
    }

    /// Returns the place of the database with this name. `default` is the place of one for which the query has none.
    fn place_of(&self, name: &str, default: Place) -> std::result::Result<Place, String> {
        let place = if name == DEFAULT { Place::Memory } else { self.place.unwrap_or(default) };
        match (place, self.without_locks) {
            (Place::OnFile, Some(parameter)) => Err(format!("connections share the file by locks; remove {parameter}")),
            (Place::Memory | Place::Memdb, _) if self.has_private_cache => Err(PRIVATE_CACHE.to_owned()),
            _ => Ok(place),
        }
    }
}

const OF_AN_ENGINE: &str =
    "it opens an engine that exists; clone that Engine, or give the URL to the library that connects to it";
const MEMDB_WITHOUT_SLASH: &str =
    "with vfs=memdb, only a name that starts with a slash is shared (\"file:/NAME?vfs=memdb\")";
const PRIVATE_CACHE: &str =
    "cache=private gives each connection its own database; Engine::new() creates a private engine";

fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    match name {
        "" => Err("its name is empty; use \"file:NAME?mode=memory\""),
        _ if name.as_bytes().contains(&0) => Err(NUL),
        _ => Ok(()),
    }
}

/// Returns path and query. The query includes the fragment.
fn split_query(rest: &str) -> (&str, &str) {
    let path_end = rest.bytes().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(rest.len());
    let (path, rest) = rest.split_at(path_end);
    (path, rest.strip_prefix('?').unwrap_or(""))
}

fn decode(text: &str) -> std::result::Result<Cow<'_, str>, &'static str> {
    if !text.as_bytes().contains(&b'%') {
        return Ok(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                rest = tail;
                hex(*high)? << 4 | hex(*low)? // no common bits, so `^` is equivalent (exempted in mutants.toml)
            }
            (b'%', _) => return Err(BAD_ENCODING),
            _ => *first,
        });
    }
    String::from_utf8(bytes).map(Cow::from).map_err(|_| "its percent-encoding does not decode to UTF-8")
}

const BAD_ENCODING: &str = "a % in it is not followed by two hexadecimal digits; write %25 for a %";

fn hex(digit: u8) -> std::result::Result<u8, &'static str> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(BAD_ENCODING)
}

/// A text that is displayed percent-encoded, except for the characters that RFC 3986 calls unreserved.
struct Encoded<'a> {
    text: &'a str,
    keeps_slashes: bool,
}

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => write!(f, "{}", char::from(byte)),
            b'/' if self.keeps_slashes => f.write_str("/"),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}
