//! Reading single values, and noticing what nobody reads.
//!
//! A [`Section`] remembers which keys were asked for; at its end, whatever else is in it is unknown. So the list of known
//! keys is the code that reads them, and cannot go out of step with it. Each reader answers `None` when it noted a flaw,
//! and the caller goes on with the default, so that the next flaw is found too.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use dunnage_model::Error;

use super::Places;
use super::flaws::{At, Flaws, below, did_you_mean, item, quoted};
use super::share::Share;
use super::tree::{Entry, Node, Value};

/// A value with the path that leads to it.
#[derive(Debug, Clone)]
pub(super) struct Field<'t> {
    pub path: String,
    /// Where its key stands; for an item of a list, where it begins itself.
    pub at: At,
    pub node: &'t Node,
}

/// A map that is being read.
#[derive(Debug)]
pub(super) struct Section<'t> {
    path: String,
    entries: &'t [Entry],
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The value of `key`, which is known from now on.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'t>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(self.field(entry))
    }

    /// [`Section::get`] for a map or a list: nothing behind the key is as good as no key, because that is what is left
    /// when everything below it is commented out.
    pub fn get_group(&mut self, key: &'static str) -> Option<Field<'t>> {
        self.get(key).filter(|field| !matches!(field.node.value, Value::Nothing))
    }

    /// All entries: for maps whose keys are the user's own.
    pub fn all(&self) -> impl Iterator<Item = (&'t str, Field<'t>)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), self.field(entry)))
    }

    fn field(&self, entry: &'t Entry) -> Field<'t> {
        Field { path: below(&self.path, &entry.key), at: entry.at, node: &entry.node }
    }

    /// Notes every key that nobody asked for.
    pub fn end(self, flaws: &mut Flaws) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str())) {
            let key = &entry.key;
            let whose = if self.path.is_empty() { "the configuration" } else { &self.path };
            let next = if flaws.full() { String::new() } else { self.advice(key) };
            flaws.add(entry.at, &below(&self.path, key), format!("{} is not a key of {whose}", quoted(key)), next);
        }
    }

    fn advice(&self, key: &str) -> String {
        if self.path.is_empty() && ["rexray", "libstorage"].iter().any(|word| key.eq_ignore_ascii_case(word)) {
            return "sections of REX-Ray's and of ours do not go together: keep to one kind".to_owned();
        }
        match key.split_once(':') {
            Some((before, _)) if self.known.contains(&before) => "put a space behind the colon".to_owned(),
            _ => did_you_mean(key, &self.known),
        }
    }
}

impl<'t> Field<'t> {
    /// The whole configuration.
    pub fn root(node: &'t Node) -> Self {
        Field { path: String::new(), at: node.at, node }
    }

    /// Notes a flaw of this value.
    pub fn flaw(&self, flaws: &mut Flaws, what: impl AsRef<str>, next: impl AsRef<str>) {
        // An empty value has no place of its own: the parser gives that of whatever comes next.
        let at = if matches!(self.node.value, Value::Nothing) { self.at } else { self.node.at };
        flaws.add(at, &self.path, what, next);
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "the configuration" } else { &self.path }
    }

    fn wrong_kind(&self, flaws: &mut Flaws, want: &str, next: &str) {
        match &self.node.value {
            Value::Refused => {}
            Value::Nothing => self.flaw(flaws, format!("{} has no value", self.name()), format!("give it {want}, or leave the key out")),
            other => self.flaw(flaws, format!("{} is {} and must be {want}", self.name(), other.kind()), next),
        }
    }

    /// The value as a map.
    pub fn section(&self, flaws: &mut Flaws) -> Option<Section<'t>> {
        let entries: &'t [Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Nothing => &[],
            value => {
                let glued = matches!(value, Value::Scalar { text, plain: true } if text.contains(':') && !text.contains(": "));
                let next = if glued { "put a space behind the colon" } else { "write 'key: value' lines, or { key: value }" };
                self.wrong_kind(flaws, "a map", next);
                return None;
            }
        };
        Some(Section { path: self.path.clone(), entries, known: Vec::new() })
    }

    /// The value as a list.
    pub fn items(&self, flaws: &mut Flaws) -> Option<Vec<Field<'t>>> {
        if let Value::List(items) = &self.node.value {
            let field = |(index, node): (usize, &'t Node)| Field { path: item(&self.path, index), at: node.at, node };
            return Some(items.iter().enumerate().map(field).collect());
        }
        self.wrong_kind(flaws, "a list", "write '- item' lines, or [ item, item ]");
        None
    }

    /// The value as it was written, be it a number, a truth or a text.
    pub fn text(&self, flaws: &mut Flaws) -> Option<&'t str> {
        if let Value::Scalar { text, .. } = &self.node.value {
            return Some(text);
        }
        self.wrong_kind(flaws, "a single value", "write 'key: value'");
        None
    }

    /// The value as what its type reads.
    pub fn parsed<T: FromStr<Err = Error>>(&self, flaws: &mut Flaws) -> Option<T> {
        match self.text(flaws)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.flaw(flaws, format!("{}: {}", self.path, error.detail), error.next);
                None
            }
        }
    }

    /// The value as one of a few words.
    pub fn word<T: Copy>(&self, words: &[(&'static str, T)], flaws: &mut Flaws) -> Option<T> {
        let text = self.text(flaws)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let what = format!("{} is {}, and must be {}", self.path, quoted(text), names.join(" or "));
            self.flaw(flaws, what, did_you_mean(text, &names));
        }
        found
    }

    /// `true` or `false`. YAML 1.1's yes, no, on and off are refused: other readers of the file would see texts.
    pub fn truth(&self, flaws: &mut Flaws) -> Option<bool> {
        match (self.text(flaws)?, &self.node.value) {
            ("true", Value::Scalar { plain: true, .. }) => Some(true),
            ("false", Value::Scalar { plain: true, .. }) => Some(false),
            (text, _) => {
                self.flaw(
                    flaws,
                    format!("{} is {}, and must be true or false", self.path, quoted(text)),
                    "write true or false, without quotes",
                );
                None
            }
        }
    }

    /// A time of at least `least`: `90s`, `10m`, `1h 30m`.
    pub fn duration(&self, least: Duration, flaws: &mut Flaws) -> Option<Duration> {
        let text = self.text(flaws)?;
        let read = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        if read.is_some_and(|duration| duration >= least) {
            return read;
        }
        let what = format!("{} is {}, and must be a time of at least {} s", self.path, quoted(text), least.as_secs());
        self.flaw(flaws, what, "write it with its unit, such as 90s, 10m or 1h");
        None
    }

    /// A share between two bounds, both included.
    pub fn share(&self, least: Share, most: Share, flaws: &mut Flaws) -> Option<Share> {
        let share = self.parsed::<Share>(flaws)?;
        if (least..=most).contains(&share) {
            return Some(share);
        }
        self.flaw(flaws, format!("{} is {share}", self.path), format!("give it from {least} to {most}"));
        None
    }

    /// [`Field::share`], or `none`.
    pub fn share_or_none(&self, least: Share, most: Share, flaws: &mut Flaws) -> Option<Option<Share>> {
        match self.text(flaws)? {
            "none" => Some(None),
            text if text.ends_with('%') => self.share(least, most, flaws).map(Some),
            text => {
                let what = format!("{} is {}, and must be none or a percentage", self.path, quoted(text));
                self.flaw(flaws, what, "write none, or a percentage such as 200%");
                None
            }
        }
    }

    /// An absolute path, in which a leading `STATE_DIR` or `RUN_DIR` stands for the directory.
    pub fn file_path(&self, places: &Places, flaws: &mut Flaws) -> Option<PathBuf> {
        let text = self.text(flaws)?;
        let written = Path::new(text);
        let mut problem = |what: &str, next: &str| {
            self.flaw(flaws, format!("{} is {}, which {what}", self.path, quoted(text)), next);
            None
        };
        if text.chars().any(char::is_control) {
            return problem("holds a control character", "write it without");
        }
        if written.components().any(|part| part == Component::ParentDir) {
            return problem("goes up by '..'", "write where it leads");
        }
        let whole = if let Ok(rest) = written.strip_prefix("STATE_DIR") {
            places.state_dir.join(rest)
        } else if let Ok(rest) = written.strip_prefix("RUN_DIR") {
            places.run_dir.join(rest)
        } else {
            written.to_owned()
        };
        if !whole.is_absolute() {
            return problem("is relative", "begin it with '/', STATE_DIR or RUN_DIR");
        }
        if whole.parent().is_none() {
            return problem("is the root of all files", "give it a folder of its own");
        }
        // Spelled in one way only ('//' and '/./' gone), so that two paths can be compared.
        Some(whole.components().collect())
    }
}
