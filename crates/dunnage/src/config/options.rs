//! Maps of volume options: `defaults: { size: 16GiB, fs: ext4 }`.
//!
//! They are the same options that Docker's `-o` takes, and the model reads them; here they get their places in the file,
//! and what is accepted without being acted on is noted.

use std::borrow::Cow;
use std::collections::BTreeMap;

use dunnage_model::{DriverName, HintPolicy, KeyClass, KnownKey, PartialSpec, known_keys, parse_options};

use super::fields::Field;
use super::flaws::{Flaws, quoted};
use super::tree::Value;
use super::{DriverConfig, show};

/// The longest key that is looked at; the longest known one has 32 bytes.
const MAX_KEY: usize = 128;

/// Whose options they are.
pub(super) enum Giver<'a> {
    /// A driver that this build has: what it cannot give is refused.
    Here(&'a DriverName),
    /// The same, and one node at a time writes to what it has.
    OneWriter(&'a DriverName),
    /// The same, and it keeps one copy of everything.
    OneCopy(&'a DriverName),
    /// One that it has not: nobody can say what it could give.
    Elsewhere(&'a str),
    /// None, or one that has flaws itself.
    Unknown,
}

impl<'a> Giver<'a> {
    pub fn of(name: &'a DriverName, driver: &'a DriverConfig) -> Self {
        match driver {
            DriverConfig::Local(_) => Giver::OneCopy(name),
            DriverConfig::Ceph(_) => Giver::OneWriter(name),
            DriverConfig::Cephfs(_) => Giver::Here(name),
            DriverConfig::Unavailable { kind } => Giver::Elsewhere(kind),
        }
    }

    /// What the model's messages call the driver.
    fn name(&self) -> &str {
        match self {
            Giver::Here(name) | Giver::OneWriter(name) | Giver::OneCopy(name) => name.as_str(),
            Giver::Elsewhere(kind) => kind,
            Giver::Unknown => "(none)",
        }
    }
}

/// Where that is noted which is not acted on.
pub(super) struct Notes<'a> {
    pub not_served: &'a mut Vec<String>,
    pub as_written: &'a mut BTreeMap<String, String>,
}

/// Reads a map of options. `lower` is the layer below: together the two must make a volume.
pub(super) fn read_options(
    field: &Field<'_>,
    giver: &Giver<'_>,
    hints: HintPolicy,
    lower: &PartialSpec,
    notes: Notes<'_>,
    flaws: &mut Flaws,
) -> PartialSpec {
    let before = flaws.count();
    let Some(section) = field.section(flaws) else { return PartialSpec::default() };
    let mut good: Vec<(&str, Cow<'_, str>, Field<'_>)> = Vec::new();
    for (key, option) in section.all() {
        let Some(text) = text_of(key, &option, flaws) else { continue };
        let known = find(key);
        if let Some(why) = known.and_then(|known| not_acted_on(known, &text, giver, hints)) {
            notes.not_served.push(format!("{}: {why}", option.path));
            let told_with_each_volume = hints == HintPolicy::Warn && known.is_some_and(|known| known.class == KeyClass::Hint);
            if told_with_each_volume {
                good.push((key, text, option));
                continue;
            }
            if !known.is_some_and(is_secret) {
                notes.as_written.insert(option.path.clone(), show::node(option.node));
            }
            continue;
        }
        let alone = parse_options([(key, &*text)], hints, giver.name()).and_then(|parsed| match giver {
            Giver::OneWriter(name) => parsed.spec.has_one_writer(name.as_str()),
            Giver::OneCopy(name) => parsed.spec.keeps_one_copy(name.as_str()),
            _ => Ok(()),
        });
        match alone {
            Ok(()) => good.push((key, text, option)),
            // The model's message repeats the value.
            Err(_) if known.is_some_and(is_secret) => {
                option.flaw(flaws, format!("{}: driver {} cannot encrypt", option.path, giver.name()), "leave it out");
            }
            Err(error) => option.flaw(flaws, format!("{}: {}", option.path, error.detail), error.next),
        }
    }
    // All together once more: one option in two spellings is seen only so.
    match parse_options(good.iter().map(|(key, text, _)| (*key, &**text)), hints, giver.name()) {
        Ok(parsed) => {
            if flaws.count() == before
                && let Err(error) = parsed.spec.clone().over(lower).complete()
            {
                let size = good.iter().find(|(key, ..)| key.eq_ignore_ascii_case("size")).map_or(field, |(.., option)| option);
                size.flaw(flaws, format!("{}: {}", size.path, error.detail), error.next);
            }
            parsed.spec
        }
        Err(error) => {
            let at_fault = match &error.kind {
                dunnage_model::Kind::InvalidArgument { key } => {
                    good.iter().rev().find(|(k, ..)| k.trim() == key).map(|(.., option)| option)
                }
                _ => None,
            };
            at_fault.unwrap_or(field).flaw(flaws, format!("{}: {}", field.path, error.detail), error.next);
            PartialSpec::default()
        }
    }
}

/// The option's value as the text that `-o` would have. Labels may be a map, which is how YAML says it.
fn text_of<'t>(key: &str, option: &Field<'t>, flaws: &mut Flaws) -> Option<Cow<'t, str>> {
    if key.len() > MAX_KEY {
        option.flaw(flaws, format!("option {} is unknown", quoted(key)), "leave it out");
        return None;
    }
    if !(matches!(option.node.value, Value::Map(_)) && find(key).is_some_and(|known| known.name == "labels")) {
        return option.text(flaws).map(Cow::Borrowed);
    }
    let mut pairs = Vec::new();
    for (label, value) in option.section(flaws)?.all() {
        let text = value.text(flaws)?;
        if label.contains([',', ';', '=']) || text.contains([',', ';']) {
            value.flaw(flaws, format!("{} holds ',', ';' or '='", value.path), "labels cannot hold ',' or ';', and their keys no '='");
            return None;
        }
        pairs.push(format!("{label}={text}"));
    }
    Some(Cow::Owned(pairs.join(",")))
}

fn find(key: &str) -> Option<&'static KnownKey> {
    let key = key.trim();
    let is = |name: &&str| name.eq_ignore_ascii_case(key);
    known_keys().iter().find(|known| is(&known.name) || known.aliases.iter().any(is))
}

fn is_secret(known: &KnownKey) -> bool {
    known.name == "encryptionKey"
}

/// Why this option is accepted and nothing comes of it; nothing when it is acted on, or refused.
fn not_acted_on(known: &KnownKey, value: &str, giver: &Giver<'_>, hints: HintPolicy) -> Option<String> {
    let elsewhere = || match giver {
        Giver::Here(_) | Giver::OneWriter(_) | Giver::OneCopy(_) => None,
        Giver::Elsewhere(kind) => Some(format!("nothing comes of it, for this build has no {kind} driver")),
        Giver::Unknown => Some("nothing comes of it without a driver".to_owned()),
    };
    match known.class {
        KeyClass::Acted => None,
        KeyClass::Memento => Some("accepted, and has no effect".to_owned()),
        KeyClass::Guarantee(neutral) if neutral.iter().any(|n| n.eq_ignore_ascii_case(value.trim())) => None,
        KeyClass::Guarantee(_) => elsewhere(),
        KeyClass::Hint => {
            elsewhere().or_else(|| (hints == HintPolicy::Warn).then(|| "no driver of this build follows this hint".to_owned()))
        }
    }
}
