//! The options that a volume may be asked with, from whatever caller, in any letter case.
//!
//! Parsing is strict: an unknown key is an error that names the nearest right one. A *guarantee* is kept or refused; a
//! *hint* may go unheeded, and is then named; a *memento* is what old apps send and nothing needs to be done for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Access, Error, PartialSpec, Result, nearest};

/// What happens to a hint that the driver cannot follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum HintPolicy {
    /// It is an error.
    #[default]
    Refuse,
    /// It is named in Status, events and the log, and the volume is made.
    Warn,
}

/// How a key is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyClass {
    /// Acted on.
    Acted,
    /// Known; refused unless it asks for what is so anyway (the neutral values given).
    Guarantee(&'static [&'static str]),
    /// Known; may go unheeded.
    Hint,
    /// Accepted and without effect, always.
    Memento,
}

/// A key that is known by name, with its other spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownKey {
    /// The spelling that we print.
    pub name: &'static str,
    /// Other spellings: documented and real ones of REX-Ray, dvdcli and Portworx.
    pub aliases: &'static [&'static str],
    /// How it is treated.
    pub class: KeyClass,
}

const NO: &[&str] = &["false", "no", "off", "0", ""];
const NONE: &[&str] = &["", "none"];
const ONE: &[&str] = &["1"];

const fn key(name: &'static str, aliases: &'static [&'static str], class: KeyClass) -> KnownKey {
    KnownKey { name, aliases, class }
}

use KeyClass::{Acted, Guarantee, Hint as HintKey, Memento};

const KEYS: &[KnownKey] = &[
    key("size", &[], Acted),
    key("fs", &["fsType", "newFsType", "filesystem"], Acted),
    key("uid", &[], Acted),
    key("gid", &[], Acted),
    key("mode", &[], Acted),
    key("thick", &[], Acted),
    key("repl", &["ha_level"], Acted),
    key("preempt", &[], Acted),
    key("ro", &["readonly"], Acted),
    key("shared", &["sharedv4"], Acted),
    key("labels", &["label"], Acted),
    key("mountOptions", &["mount_options"], Acted),
    key("rootPath", &[], Acted),
    key("overwriteFs", &["overwritefs"], Memento),
    // Guarantees of the platforms and issues to come.
    key("encrypted", &["secure"], Guarantee(NO)),
    key("encryptionKey", &["secret_key", "passphrase", "token", "token_secret", "token_secret_namespace"], Guarantee(NONE)),
    key("scale", &[], Guarantee(ONE)),
    key("sticky", &[], Guarantee(NO)),
    key("journal", &[], Guarantee(NO)),
    key("snap_interval", &["periodic"], Guarantee(NO)),
    key("snap_schedule", &["daily", "weekly", "monthly", "policy", "storagepolicy"], Guarantee(NONE)),
    key("parent", &["snapshot", "snapshotName", "snapshotID"], Guarantee(NONE)),
    key("volumeName", &[], Guarantee(NONE)),
    key("volumeID", &[], Guarantee(NONE)),
    key("fs_format_options", &[], Guarantee(NONE)),
    key("ephemeral", &[], Guarantee(NO)),
    key("compressed", &["dedupe"], Guarantee(NO)),
    key("export", &["export_options", "sharedv4_mount_options", "sharedv4_svc_type"], Guarantee(NONE)),
    key("proxy_endpoint", &["proxy_nfs_subpath", "proxy_nfs_exportpath", "proxy_s3_bucket"], Guarantee(NONE)),
    key("winshare", &[], Guarantee(NO)),
    // Hints.
    key("iops", &[], HintKey),
    key("type", &["volumeType"], HintKey),
    key("availabilityZone", &[], HintKey),
    key("io_priority", &["priority_io"], HintKey),
    key("io_profile", &[], HintKey),
    key("aggregation_level", &[], HintKey),
    key("nodes", &[], HintKey),
    key("block_size", &["bs"], HintKey),
    key("zones", &["zone", "regions", "racks", "rack", "group", "fg", "enforce_cg"], HintKey),
    key("queue_depth", &["readahead", "io_throttle_rd_iops", "io_throttle_wr_iops", "io_throttle_rd_bw", "io_throttle_wr_bw"], HintKey),
    key("cow_ondemand", &["direct_io", "fastpath", "early_ack", "async_io", "nearsync", "nodiscard", "auto_fstrim", "cascaded"], HintKey),
    key("best_effort_location_provisioning", &["force_unsupported_fs_type", "use_cluster_secret"], HintKey),
];

/// Every key that is known by name.
pub fn known_keys() -> &'static [KnownKey] {
    KEYS
}

/// Options whose values are texts of their own, in which other `word=` may stand.
const FREE: &[&str] = &["labels", "mountOptions", "snap_schedule", "encryptionKey", "export", "proxy_endpoint", "nodes"];

pub(crate) fn is_free(known: &KnownKey) -> bool {
    FREE.contains(&known.name)
}

pub(crate) fn find(key: &str) -> Option<&'static KnownKey> {
    KEYS.iter().find(|k| k.name.eq_ignore_ascii_case(key) || k.aliases.iter().any(|a| a.eq_ignore_ascii_case(key)))
}

/// Takes options apart that stand together, as `size=10,fs=ext4`. A comma or a semicolon begins another option before a
/// known `key=`; after a key whose values hold no `=`, or that nobody here knows (another's plugin has its own), before any
/// `word=`. So values may have commas.
pub fn split_options(text: &str) -> Vec<&str> {
    split_at_options(text).map(|(_, option)| option.trim()).collect()
}

/// The same with the byte at which each begins.
pub(crate) fn split_at_options(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let key_of = |text: &str| text.split_once('=').map_or("", |(key, _)| key.trim()).to_owned();
    let word = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c));
    let known = |key: &str| key.eq_ignore_ascii_case("name") || find(key).is_some();
    let (mut options, mut begin) = (Vec::new(), 0);
    for (at, _) in text.match_indices([',', ';']) {
        let (current, next) = (key_of(&text[begin..]), key_of(&text[at + 1..]));
        // A schedule's own words are known as options too.
        let inside = find(&current).is_some_and(|k| k.name == "snap_schedule")
            && find(&next).is_some_and(|k| k.name == "snap_schedule" || k.name == "snap_interval");
        if !inside && (known(&next) || (!find(&current).is_some_and(is_free) && word(&next))) {
            options.push((begin, &text[begin..at]));
            begin = at + 1;
        }
    }
    options.push((begin, &text[begin..]));
    options.into_iter()
}

/// A hint that was given and is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The key as it was written.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What a set of options asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedOptions {
    /// The guarantees.
    pub spec: PartialSpec,
    /// Hints that nobody here follows; only with [`HintPolicy::Warn`].
    pub unheeded: Vec<Hint>,
}

/// What is asked for, by the options in a name over those beside it.
pub fn parse_wish<'a>(
    inline: &'a [(String, String)],
    beside: impl IntoIterator<Item = (&'a str, &'a str)>,
    hints: HintPolicy,
    driver: &str,
) -> Result<ParsedOptions> {
    let above = parse_options(inline.iter().map(|(key, value)| (key.as_str(), value.as_str())), hints, driver)?;
    let below = parse_options(beside, hints, driver)?;
    Ok(ParsedOptions { spec: above.spec.over(&below.spec), unheeded: [above.unheeded, below.unheeded].concat() })
}

/// Reads options strictly. `driver` is named where it cannot give what is asked.
pub fn parse_options<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>, hints: HintPolicy, driver: &str) -> Result<ParsedOptions> {
    let mut parsed = ParsedOptions::default();
    let mut seen: BTreeMap<&'static str, &str> = BTreeMap::new();
    for (written, value) in options {
        let written = written.trim();
        let Some(known) = find(written) else {
            let all = KEYS.iter().flat_map(|k| std::iter::once(k.name).chain(k.aliases.iter().copied()));
            let next = match nearest(written, all) {
                Some(word) => format!("did you mean {word:?}?"),
                None => "known are size, fs, repl, uid, gid, mode, thick, ro, mountOptions and labels".to_owned(),
            };
            return Err(Error::invalid(short(written), format!("option {:?} is unknown", short(written)), next));
        };
        if known.name != "labels"
            && let Some(before) = seen.insert(known.name, value)
            && before != value
        {
            return Err(Error::invalid(
                written,
                format!("option {:?} is given twice, as {:?} and {:?}", known.name, shown(known, before), shown(known, value)),
                "give it once",
            ));
        }
        match known.class {
            Acted => act(&mut parsed.spec, known.name, value)?,
            Memento => {}
            Guarantee(neutral) if neutral.iter().any(|n| n.eq_ignore_ascii_case(value.trim())) => {}
            Guarantee(_) => {
                return Err(Error::invalid(
                    written,
                    format!("driver {driver} cannot give {written}={}", shown(known, value)),
                    "leave it out, or use a driver that can ('dunnage driver ls')",
                ));
            }
            HintKey => match hints {
                HintPolicy::Warn => {
                    parsed.spec.hints.insert(known.name.to_owned(), value.chars().take(256).collect());
                    parsed.unheeded.push(Hint { key: written.to_owned(), value: value.to_owned() });
                }
                HintPolicy::Refuse => {
                    return Err(Error::invalid(
                        written,
                        format!("driver {driver} has no use for the hint {written}={}", shown(known, value)),
                        "leave it out, or set 'hints: warn' in the configuration to have it named and passed over",
                    ));
                }
            },
        }
    }
    Ok(parsed)
}

/// A value as it may stand in a message: short, and never a secret.
fn shown(key: &KnownKey, value: &str) -> String {
    if key.name == "encryptionKey" {
        return "***".to_owned();
    }
    short(value)
}

/// At most forty characters of a text.
fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn act(spec: &mut PartialSpec, key: &str, value: &str) -> Result<()> {
    let value = value.trim();
    match key {
        "size" => spec.size = Some(value.parse()?),
        "fs" => spec.fs = Some(value.parse()?),
        "uid" => spec.uid = Some(number(key, value)?),
        "gid" => spec.gid = Some(number(key, value)?),
        "mode" => spec.mode = Some(value.parse()?),
        "mountOptions" => spec.mount_options = Some(value.parse()?),
        "rootPath" => spec.root_path = Some(value.parse()?),
        "preempt" => spec.preempt = Some(value.parse()?),
        "repl" => spec.repl = Some(copies(key, value)?),
        "thick" => spec.thick = Some(truth(key, value)?),
        "shared" => spec.shared = Some(truth(key, value)?),
        "ro" => spec.access = Some(if truth(key, value)? { Access::ManyReaders } else { Access::SingleWriter }),
        _ => labels(&mut spec.labels, value)?,
    }
    Ok(())
}

fn number(key: &str, value: &str) -> Result<u32> {
    match value.parse() {
        // The kernel keeps 4294967295 to mean "leave it as it is" (chown(2)).
        Ok(u32::MAX) | Err(_) => {
            Err(Error::invalid(key, format!("{key}={value:?} is not a numeric id"), format!("use a number, for example {key}=1000")))
        }
        Ok(id) => Ok(id),
    }
}

fn copies(key: &str, value: &str) -> Result<u32> {
    match value.parse() {
        Ok(copies @ 1..=10) => Ok(copies),
        _ => Err(Error::invalid(key, format!("{key}={value:?} is no number of copies"), "use a number from 1 to 10, for example repl=3")),
    }
}

fn truth(key: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(Error::invalid(key, format!("{key}={value:?} is neither true nor false"), format!("use {key}=true or {key}=false"))),
    }
}

fn labels(into: &mut BTreeMap<String, String>, value: &str) -> Result<()> {
    for pair in value.split([',', ';']).map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() || key.len() > 128 || value.len() > 1024 {
            return Err(Error::invalid(
                "labels",
                format!("label {:?} has no key, or is too long", pair.chars().take(40).collect::<String>()),
                "use labels=key=value,other=value; keys up to 128 and values up to 1,024 bytes",
            ));
        }
        into.insert(key.to_owned(), value.to_owned());
    }
    if into.len() > 64 {
        return Err(Error::invalid("labels", "there are more than 64 labels", "use fewer"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, FsKind, Preempt};

    fn parse(options: &[(&str, &str)]) -> Result<ParsedOptions> {
        parse_options(options.iter().copied(), HintPolicy::Refuse, "local")
    }

    #[test]
    fn options_are_read_in_any_letter_case_and_spelling() {
        let parsed =
            parse(&[("SIZE", "2G"), ("newfstype", "EXT4"), ("overwritefs", "true"), ("UID", "1000"), ("ro", "true")]).expect("good");
        assert_eq!(parsed.spec.size, Some(Bytes::gib(2)));
        assert_eq!(parsed.spec.fs, Some(FsKind::Ext4));
        assert_eq!(parsed.spec.uid, Some(1000));
        assert_eq!(parsed.spec.access, Some(Access::ManyReaders));
    }

    #[test]
    fn an_unknown_option_is_refused_and_the_nearest_right_one_is_named() {
        let message = parse(&[("siez", "10")]).expect_err("typo").to_string();
        assert!(message.contains("siez") && message.contains("did you mean \"size\"?"), "{message}");
    }

    #[test]
    fn a_guarantee_that_cannot_be_kept_is_refused_and_a_neutral_one_is_not() {
        assert!(parse(&[("repl", "1"), ("shared", "false"), ("secure", "off"), ("sticky", "off")]).is_ok());
        let message = parse(&[("scale", "3")]).expect_err("one volume only").to_string();
        assert!(message.starts_with("invalid_argument{scale}"), "{message}");
    }

    #[test]
    fn a_secret_never_stands_in_a_message() {
        let message = parse(&[("passphrase", "hunter2")]).expect_err("no encryption here").to_string();
        assert!(message.contains("passphrase") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn preempt_is_one_of_three_words_or_what_rex_ray_s_users_write() {
        let preempt = |value| parse(&[("preempt", value)]).map(|parsed| parsed.spec.preempt);
        assert_eq!(preempt("always"), Ok(Some(Preempt::Always)));
        assert_eq!(preempt("True"), Ok(Some(Preempt::IfDead)));
        assert_eq!(preempt("false"), Ok(Some(Preempt::Never)));
        let message = preempt("sometimes").expect_err("no such word").to_string();
        assert!(message.starts_with("invalid_argument{preempt}") && message.contains("if-dead"), "{message}");
    }

    #[test]
    fn a_hint_follows_the_policy() {
        assert!(parse(&[("iops", "150")]).is_err());
        let warned = parse_options([("iops", "150")], HintPolicy::Warn, "local").expect("warn");
        assert_eq!(warned.unheeded, [Hint { key: "iops".into(), value: "150".into() }]);
    }

    #[test]
    fn one_option_said_twice_in_two_ways_is_refused() {
        assert!(parse(&[("fs", "ext4"), ("fsType", "ext4")]).is_ok());
        assert!(parse(&[("size", "1"), ("SIZE", "2")]).is_err());
    }

    #[test]
    fn bad_values_name_their_key() {
        for (key, value) in [
            ("size", "-1"),
            ("fs", "vfat"),
            ("uid", "root"),
            ("uid", "4294967295"),
            ("gid", "-5"),
            ("mode", "999"),
            ("thick", "maybe"),
            ("labels", "=x"),
        ] {
            let error = parse(&[(key, value)]).expect_err(value);
            assert!(error.to_string().contains(&format!("{{{key}}}")), "{error}");
        }
    }

    #[test]
    fn labels_may_hold_an_equals_sign_and_come_several_at_a_time() {
        let parsed = parse(&[("labels", "a=b=c;tier=gold")]).expect("labels");
        assert_eq!(parsed.spec.labels.get("a").map(String::as_str), Some("b=c"));
        assert_eq!(parsed.spec.labels.get("tier").map(String::as_str), Some("gold"));
    }

    #[test]
    fn options_that_stand_together_are_taken_apart_before_known_keys() {
        for (text, expected) in [
            ("size=10,fs=ext4;uid=5", vec!["size=10", "fs=ext4", "uid=5"]),
            ("labels=a=1,b=2,size=5", vec!["labels=a=1,b=2", "size=5"]),
            ("mountOptions=noatime,nodev, size=5", vec!["mountOptions=noatime,nodev", "size=5"]),
            ("size=10,repll=3", vec!["size=10", "repll=3"]),
            ("snap_schedule=periodic=60,4;daily=12:00,3;size=5", vec!["snap_schedule=periodic=60,4;daily=12:00,3", "size=5"]),
            ("their=1,other=2,x", vec!["their=1", "other=2,x"]),
            ("size", vec!["size"]),
            ("", vec![""]),
        ] {
            assert_eq!(split_options(text), expected, "{text:?}");
        }
    }

    #[test]
    fn no_key_is_known_by_two_entries() {
        let mut all: Vec<String> =
            KEYS.iter().flat_map(|k| std::iter::once(k.name).chain(k.aliases.iter().copied())).map(str::to_lowercase).collect();
        all.sort();
        // overwriteFs stands with its lower-case spelling for the docs; letter case is folded anyway.
        all.dedup();
        let mut firsts: Vec<&str> = all.iter().map(String::as_str).filter_map(|k| find(k)).map(|k| k.name).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), KEYS.len());
    }
}
