//! What is wrong with a file, collected so that one run tells all of it.

use std::path::Path;

use dunnage_model::{Error, nearest};

/// How many flaws are told; beyond it they are counted, so that a file of nothing but nonsense does not fill the log.
const MAX_TOLD: usize = 40;

/// A place in the file, both counted from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug)]
struct Flaw {
    at: Option<At>,
    key: String,
    what: String,
    next: String,
}

/// The flaws found so far.
#[derive(Debug, Default)]
pub(super) struct Flaws {
    told: Vec<Flaw>,
    more: usize,
}

impl Flaws {
    /// Notes a flaw of the key `key`; `next` is what to do about it.
    pub fn add(&mut self, at: impl Into<Option<At>>, key: &str, what: impl AsRef<str>, next: impl AsRef<str>) {
        if self.told.len() >= MAX_TOLD {
            self.more += 1;
            return;
        }
        // What concerns no single key concerns the file that --config names.
        let key = if key.is_empty() { "config" } else { key };
        self.told.push(Flaw { at: at.into(), key: key.to_owned(), what: printable(what.as_ref()), next: printable(next.as_ref()) });
    }

    /// Whether further flaws are only counted: the dear search for a nearest word can be left out.
    pub fn full(&self) -> bool {
        self.told.len() >= MAX_TOLD
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.told.len() + self.more
    }

    /// The error that tells them all, in the file's order; nothing when there are none.
    pub fn into_error(mut self, file: &Path) -> Option<Error> {
        self.told.sort_by_key(|flaw| flaw.at);
        let file = printable(&file.display().to_string());
        let count = self.count();
        let mut flaws = self.told.into_iter();
        let first = flaws.next()?;
        let place = |at: Option<At>| match at {
            Some(At { line, column }) => format!("{file}:{line}:{column}"),
            None => file.clone(),
        };
        if count == 1 {
            return Some(Error::invalid(first.key, format!("{}: {}", place(first.at), first.what), first.next));
        }
        let key = first.key.clone();
        let mut detail = format!("{count} things are wrong in {file}:\n");
        for flaw in std::iter::once(first).chain(flaws) {
            detail += &format!("{}: {}; {}\n", place(flaw.at), flaw.what, flaw.next);
        }
        if self.more > 0 {
            detail += &format!("… and {} more\n", self.more);
        }
        Some(Error::invalid(key, detail + "the file was not taken", "correct these, then run 'dunnage config check'"))
    }
}

/// The path of a key inside the map at `path`: `volumes.defaults`. What cannot be a name is quoted and cut, so
/// that a path is short and one line whatever the file holds.
pub(super) fn below(path: &str, key: &str) -> String {
    let plain = key.len() <= 128 && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    let key = if plain { key.to_owned() } else { quoted(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The path of an item of the list at `path`, counted from 0: `endpoints.docker[0]`.
pub(super) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// `did you mean "x"?`, or the words that would do.
pub(super) fn did_you_mean(word: &str, known: &[&str]) -> String {
    // A slip of the hand is short; comparing a megabyte with each word is not worth its time.
    let slip = if word.len() <= 64 { nearest(word, known.iter().copied()) } else { None };
    match slip {
        Some(right) => format!("did you mean {right:?}?"),
        None if known.is_empty() => "leave it out".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// What a user wrote, quoted and cut to a length that a message bears.
pub(super) fn quoted(text: &str) -> String {
    if text.chars().nth(60).is_none() { format!("{text:?}") } else { format!("{:?}…", text.chars().take(60).collect::<String>()) }
}

/// One line for a log or a terminal: no control characters, no line breaks, no endless length.
pub(super) fn printable(text: &str) -> String {
    let mut line = String::new();
    for (n, c) in text.chars().enumerate() {
        match c {
            _ if n == 400 => return line + "…",
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}
