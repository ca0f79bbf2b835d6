//! A tree of keys laid out flat, as REX-Ray saw it: `libstorage.server.services.ebs.driver`, in lower case.

use std::collections::BTreeMap;

use super::super::flaws::{At, Flaws, below, quoted};
use super::super::tree::{Node, Value};

/// A key with a value.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its whole path in lower case.
    pub path: String,
    /// The same as it was written.
    pub shown: String,
    /// Where it stands; nowhere if it came from the environment.
    pub at: Option<At>,
    /// Its value, or the values of a list.
    pub values: Vec<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Flat {
    items: BTreeMap<String, Item>,
    /// Every map, by its path: also those with nothing in them.
    groups: BTreeMap<String, At>,
    /// In the file's order.
    order: Vec<String>,
}

impl Flat {
    /// Lays a tree out.
    pub fn of(root: &Node, flaws: &mut Flaws) -> Flat {
        let mut flat = Flat::default();
        flat.add(root, root.at, "", "", flaws);
        flat
    }

    fn add(&mut self, node: &Node, at: At, path: &str, shown: &str, flaws: &mut Flaws) {
        match &node.value {
            Value::Map(entries) => {
                self.groups.insert(path.to_owned(), at);
                for entry in entries {
                    let lower = entry.key.to_lowercase();
                    let inner = if path.is_empty() { lower } else { format!("{path}.{lower}") };
                    self.add(&entry.node, entry.at, &inner, &below(shown, &entry.key), flaws);
                }
            }
            Value::Nothing => {
                self.groups.insert(path.to_owned(), at);
            }
            Value::Scalar { text, .. } => self.item(path, shown, at, vec![text.clone()], flaws),
            Value::List(items) => {
                let mut values = Vec::new();
                for item in items {
                    match &item.value {
                        Value::Scalar { text, .. } => values.push(text.clone()),
                        Value::Nothing | Value::Refused => {}
                        _ => flaws.add(
                            item.at,
                            shown,
                            format!("{} has a list of more than single values", quoted(shown)),
                            "write single values",
                        ),
                    }
                }
                self.item(path, shown, at, values, flaws);
            }
            Value::Refused => {}
        }
    }

    fn item(&mut self, path: &str, shown: &str, at: At, values: Vec<String>, flaws: &mut Flaws) {
        if let Some(first) = self.items.get(path) {
            let line = first.at.map_or(0, |at| at.line);
            flaws.add(at, shown, format!("{shown} is given twice, first on line {line}"), "keep one of the two");
            return;
        }
        self.order.push(path.to_owned());
        self.items.insert(path.to_owned(), Item { path: path.to_owned(), shown: shown.to_owned(), at: Some(at), values });
    }

    /// Puts what the environment has over the file: `libstorage.service` is LIBSTORAGE_SERVICE there.
    pub fn overlay(&mut self, known: impl Iterator<Item = String>, environment: &dyn Fn(&str) -> Option<String>) {
        // Those that REX-Ray knew only beneath a server or a client had longer names.
        let plain = |name: &String| !name.contains('*') && !name.starts_with("auth.") && !name.starts_with("tls");
        // The operations have a longer name yet.
        let longer = |name: String| if name.starts_with("integration.") { vec![format!("libstorage.{name}"), name] } else { vec![name] };
        for name in known.filter(plain).flat_map(longer) {
            let Some(value) = environment(&variable(&name)).filter(|value| !value.is_empty()) else { continue };
            let path = name.to_lowercase();
            let values = value.split([',', ' ']).map(str::to_owned).filter(|value| !value.is_empty()).collect();
            let values = if name == "rexray.storageDrivers" { values } else { vec![value] };
            if !self.items.contains_key(&path) {
                self.order.push(path.clone());
            }
            self.items.insert(path.clone(), Item { path, shown: name, at: None, values });
        }
    }

    /// The item of a path in lower case.
    pub fn get(&self, path: &str) -> Option<&Item> {
        self.items.get(path)
    }

    /// It is there, and its value is the empty text.
    pub fn says_empty(&self, path: &str) -> bool {
        self.items.get(path).is_some_and(|item| item.values.iter().all(String::is_empty))
    }

    /// All items in the file's order.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.order.iter().filter_map(|path| self.items.get(path))
    }

    /// The names directly beneath a path, each once, with where it stands.
    pub fn children(&self, path: &str) -> Vec<(String, Option<At>)> {
        let prefix = format!("{path}.");
        let mut names: BTreeMap<String, Option<At>> = BTreeMap::new();
        let all = self.groups.iter().map(|(path, at)| (path, Some(*at))).chain(self.items.values().map(|item| (&item.path, item.at)));
        for (whole, at) in all {
            if let Some(name) = whole.strip_prefix(&prefix).and_then(|rest| rest.split('.').next()) {
                let first = names.entry(name.to_owned()).or_insert(at);
                *first = (*first).min(at);
            }
        }
        names.into_iter().collect()
    }
}

/// The environment's name of a key.
pub(super) fn variable(key: &str) -> String {
    key.replace('.', "_").to_uppercase()
}
