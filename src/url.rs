use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The name of a shared in-memory database: what the many spellings of one database URL have in common.
///
/// | URL | database |
/// | --- | --- |
/// | `sqlite:///:memory:`, `sqlite://`, `sqlite::memory:`, `:memory:`, `file::memory:?cache=shared` | the default one |
/// | `sqlite:///file:NAME?mode=memory&cache=shared&uri=true`, `file:NAME?mode=memory`, `file:/NAME?vfs=memdb` | NAME |
///
/// NAME is percent-decoded and compared byte for byte. Its [`Display`](fmt::Display) is the normal form, which parses to
/// the same again.
///
/// ```
/// # use rusqlite_fixtures::DatabaseUrl;
/// let url: DatabaseUrl = "sqlite:///file:my%20orders?mode=memory&cache=shared&uri=true".parse()?;
/// assert_eq!(url, "file:/my orders?vfs=memdb".parse()?);
/// assert_eq!(url.to_string(), "file:my%20orders?mode=memory&cache=shared");
/// # Ok::<(), rusqlite_fixtures::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseUrl {
    /// `None` for the default database.
    name: Option<Box<str>>,
}

impl DatabaseUrl {
    /// The default shared database, `sqlite:///:memory:`.
    pub const MEMORY: DatabaseUrl = DatabaseUrl { name: None };

    /// The shared database of this name, taken as it is: no character of it has a meaning.
    ///
    /// # Errors
    /// [`InvalidUrl`](crate::ErrorKind::InvalidUrl) for a name that is empty or holds a NUL.
    pub fn named(name: &str) -> Result<DatabaseUrl> {
        check_name(name).map_err(|reason| Error::invalid_url(name, reason))?;
        Ok(DatabaseUrl { name: Some(name.into()) })
    }
}

impl FromStr for DatabaseUrl {
    type Err = Error;

    /// # Errors
    /// [`NotInMemory`](crate::ErrorKind::NotInMemory) for a file, [`InvalidUrl`](crate::ErrorKind::InvalidUrl) for
    /// anything else that names no shared in-memory database. The message says what would do.
    fn from_str(url: &str) -> Result<DatabaseUrl> {
        if url.contains('\0') {
            return Err(Error::invalid_url(url, "it holds a NUL character"));
        }
        match url {
            "" => Err(Error::invalid_url(url, "it is empty; \"sqlite:///:memory:\" is the default shared database")),
            ":memory:" => Ok(DatabaseUrl::MEMORY),
            _ => match scheme(url) {
                Some(("sqlite", rest)) => parse_sqlite(url, rest),
                Some(("file", rest)) => parse_file(url, rest),
                Some((other, _)) => Err(Error::invalid_url(url, &unknown_scheme(other))),
                None => Err(Error::not_in_memory(url, url)),
            },
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            None => f.write_str("sqlite:///:memory:"),
            Some(name) => write!(f, "file:{}?mode=memory&cache=shared", Encoded(name)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl(\"{self}\")")
    }
}

/// Splits off the scheme; a single letter is no scheme, but a drive.
fn scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme.then_some((scheme, rest))
}

fn unknown_scheme(scheme: &str) -> String {
    format!(
        "its scheme is {scheme:?}, and only SQLite in memory is served here: \"sqlite:///:memory:\", or \
         \"file:NAME?mode=memory\" for a shared database of that name"
    )
}

/// What follows `sqlite:`, as SQLAlchemy and sqlx write it.
fn parse_sqlite(url: &str, rest: &str) -> Result<DatabaseUrl> {
    let rest = rest.strip_prefix("///").or_else(|| rest.strip_prefix("//")).unwrap_or(rest);
    match rest.strip_prefix("file:") {
        Some(rest) => parse_file(url, rest),
        None => parse_path(url, rest, matches!(split_query(rest).0, "" | ":memory:")),
    }
}

/// What follows `file:`, as SQLite's "URI Filenames In SQLite" has it.
fn parse_file(url: &str, rest: &str) -> Result<DatabaseUrl> {
    let rest = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !matches!(authority, "" | "localhost") {
                let reason = format!("its authority is {authority:?}, where SQLite takes none or \"localhost\"");
                return Err(Error::invalid_url(url, &reason));
            }
            path
        }
    };
    parse_path(url, rest, split_query(rest).0 == ":memory:")
}

fn parse_path(url: &str, rest: &str, mut in_memory: bool) -> Result<DatabaseUrl> {
    let invalid = |reason: &str| Error::invalid_url(url, reason);
    let (path, query) = split_query(rest);
    let is_default = in_memory;
    let mut path = decode(path).map_err(invalid)?;
    for parameter in query.split('&') {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (key, decode(value).map_err(invalid)?.as_ref()) {
            ("mode", "memory") => in_memory = true,
            ("mode", "ro" | "rw" | "rwc") => return Err(Error::not_in_memory(url, &path)),
            ("mode", other) => {
                return Err(invalid(&format!("its mode is {other:?}; mode=memory is the one of a shared database")));
            }
            ("vfs", "memdb") => {
                in_memory = true;
                path = match path.strip_prefix('/') {
                    Some(path) => path.to_owned().into(),
                    None if is_default => path,
                    None => return Err(invalid(MEMDB_WITHOUT_SLASH)),
                };
            }
            ("vfs", other) => {
                return Err(invalid(&format!("its VFS is {other:?}; without vfs= and with mode=memory it would do")));
            }
            ("cache", "shared") => {}
            ("cache", "private") => return Err(invalid(PRIVATE_CACHE)),
            ("cache", other) => return Err(invalid(&format!("its cache is {other:?}, where cache=shared would do"))),
            // SQLite's "URI Filenames In SQLite": unknown parameters are passed to the VFS and ignored otherwise.
            _ => {}
        }
    }
    if !in_memory {
        return Err(Error::not_in_memory(url, &path));
    }
    if is_default {
        return Ok(DatabaseUrl::MEMORY);
    }
    check_name(&path).map_err(invalid)?;
    Ok(DatabaseUrl { name: Some(path.into()) })
}

const MEMDB_WITHOUT_SLASH: &str =
    "with vfs=memdb, only a name that starts with a slash is shared (\"file:/NAME?vfs=memdb\")";
const PRIVATE_CACHE: &str =
    "cache=private asks for a database of each connection's own; Engine::new() makes an engine of your own";

fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    match name {
        "" => Err("its name is empty; \"file:NAME?mode=memory\" has one"),
        _ if name.contains('\0') => Err("its name holds a NUL character"),
        _ => Ok(()),
    }
}

/// Path and query, without the fragment.
fn split_query(rest: &str) -> (&str, &str) {
    let rest = rest.split('#').next().unwrap_or(rest);
    rest.split_once('?').unwrap_or((rest, ""))
}

fn decode(text: &str) -> std::result::Result<Cow<'_, str>, &'static str> {
    if !text.contains('%') {
        return Ok(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                rest = tail;
                hex(*high)? << 4 | hex(*low)?
            }
            (b'%', _) => return Err(BAD_ENCODING),
            _ => *first,
        });
    }
    String::from_utf8(bytes).map(Cow::from).map_err(|_| "its percent-encoding does not decode to UTF-8")
}

const BAD_ENCODING: &str = "a % in it is not followed by two hexadecimal digits; %25 stands for a % itself";

fn hex(digit: u8) -> std::result::Result<u8, &'static str> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(BAD_ENCODING)
}

/// Percent-encoded but for the characters that RFC 3986 calls unreserved.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => write!(f, "{}", char::from(byte)),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}
