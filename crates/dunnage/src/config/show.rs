//! The configuration as people read it: YAML for `config show`, a report for `config check`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use dunnage_engine::Layout;
use dunnage_model::{Access, Bytes, PartialSpec};

use super::flaws::printable;
use super::tree::{Node, Value};
use super::{
    CephConfig, CephfsConfig, Config, DEFAULT_FILE, DockerEndpoint, DriverConfig, HINT_WORDS, LAYOUT_WORDS, LocalConfig, STORE_WORDS,
    Volumes, WAY_WORDS, word_of,
};
use crate::output;

impl Config {
    /// The configuration in effect, as a file that loads to the same. Comments say where it came from, and what of it is
    /// not acted on; the keys inside a driver that this build does not have are left out, for they may hold secrets.
    pub fn to_yaml(&self) -> String {
        let mut lines = vec!["# Dunnage's configuration in effect.".to_owned()];
        lines.push(match &self.source {
            Some(file) => format!("# From {}; what it leaves out has its default.", printable(&file.display().to_string())),
            None => format!("# Built in: there is no {DEFAULT_FILE}."),
        });
        lines.extend(self.not_served.iter().map(|what| format!("# Not acted on: {}", printable(what))));
        let volumes = &self.volumes;
        lines.push(format!("admin:\n  group: {}", scalar(&self.admin.group)));
        lines.push(format!("volumes:\n  path: {}", scalar(&volumes.path.to_string_lossy())));
        lines.push(format!("  layout: {}  # by-driver | flat", word_of(volumes.layout, LAYOUT_WORDS)));
        lines.push(format!("  preempt: {}  # never | if-dead | always", volumes.preempt));
        lines.push(format!("  create: {}  # on-mount | explicit", volumes.create));
        lines.push(format!("  adopt: {}  # explicit | when-named", volumes.adopt));
        lines.push(format!("  hints: {}  # refuse | warn", word_of(volumes.hints, HINT_WORDS)));
        lines.push(format!("  private_namespace: {}", volumes.private_namespace));
        lines.push(format!("  defaults: {}", self.options("volumes.defaults", &volumes.defaults)));
        let holders = &self.holders;
        lines.push(format!("holders:\n  reconcile: {}  # off | report | act", holders.reconcile));
        lines.push(format!("  grace: {}s", holders.grace.as_secs()));
        for (key, paths) in holders.asked() {
            let paths: Vec<String> = paths.iter().map(|path| scalar(&path.to_string_lossy())).collect();
            lines.push(format!("  {key}: [{}]", paths.join(", ")));
        }
        lines.push(if self.drivers.is_empty() { "drivers: {}" } else { "drivers:" }.to_owned());
        for (name, driver) in &self.drivers {
            let name = scalar(name.as_str());
            lines.push(match driver {
                DriverConfig::Local(LocalConfig { pool, store, vfs, reserve, warn, overcommit }) => format!(
                    "  {name}:\n    type: local\n    pool: {}\n    store: {}  # images | folders\n{}    reserve: {reserve}\n    warn: {warn}\n    overcommit: {}  # none | PERCENT",
                    scalar(&pool.to_string_lossy()),
                    word_of(*store, STORE_WORDS),
                    vfs.as_ref().map(|vfs| format!("    vfs: {}\n", scalar(&vfs.to_string_lossy()))).unwrap_or_default(),
                    overcommit.map_or_else(|| "none".to_owned(), |share| share.to_string()),
                ),
                DriverConfig::Ceph(ceph) => ceph_yaml(&name, ceph),
                DriverConfig::Cephfs(cephfs) => cephfs_yaml(&name, cephfs),
                DriverConfig::Unavailable { kind } => format!("  {name}:\n    type: {kind}  # not in this build; its other keys are not shown"),
            });
        }
        lines.push(format!("endpoints:\n  docker:{}", if self.docker.is_empty() { " []" } else { "" }));
        for (index, endpoint) in self.docker.iter().enumerate() {
            lines.push(format!(
                "    - name: {}\n      driver: {}\n{}      create: {}\n      remove: {}\n      preempt: {}\n      hints: {}\n      defaults: {}",
                scalar(endpoint.name.as_str()),
                scalar(endpoint.driver.as_str()),
                endpoint.shared.as_ref().map(|driver| format!("      shared: {}\n", scalar(driver.as_str()))).unwrap_or_default(),
                endpoint.create,
                endpoint.remove,
                endpoint.preempt,
                word_of(endpoint.hints, HINT_WORDS),
                self.options(&format!("endpoints.docker[{index}].defaults"), &endpoint.defaults),
            ));
        }
        if let Some(csi) = self.as_written.get("endpoints.csi") {
            lines.push(format!("  csi: {csi}  # not served"));
        }
        lines.join("\n") + "\n"
    }

    /// The options at `path`, those included that are not acted on.
    fn options(&self, path: &str, spec: &PartialSpec) -> String {
        let mut all = pairs(spec);
        let prefix = format!("{path}.");
        all.extend(self.as_written.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone()))));
        match all.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", ") {
            inner if inner.is_empty() => "{}".to_owned(),
            inner => format!("{{ {inner} }}"),
        }
    }
}

/// How Ceph is reached, as both of its drivers have it.
fn way_to_ceph(name: &str, kind: &str, conf: &Path, user: &str, keyring: Option<&PathBuf>) -> Vec<String> {
    let mut lines = vec![format!("  {name}:\n    type: {kind}\n    conf: {}\n    user: {}", scalar(&conf.to_string_lossy()), scalar(user))];
    lines.extend(keyring.map(|path| format!("    keyring: {}", scalar(&path.to_string_lossy()))));
    lines
}

fn ceph_yaml(name: &str, ceph: &CephConfig) -> String {
    let CephConfig { conf, user, keyring, pool, pools, repl, make_pools, named_pools, timeout, silence, attach } = ceph;
    let mut lines = way_to_ceph(name, "ceph", conf, user, keyring.as_ref());
    let pools: Vec<String> = pools.iter().map(|pool| scalar(pool)).collect();
    lines.push(format!("    pool: {}\n    pools: [{}]", scalar(pool), pools.join(", ")));
    lines.extend(repl.map(|repl| format!("    repl: {repl}")));
    lines.push(format!("    make_pools: {make_pools}\n    named_pools: {named_pools}"));
    lines.push(format!("    timeout: {}s\n    silence: {}s", timeout.as_secs(), silence.as_secs()));
    lines.push(format!("    attach: {}  # auto | kernel | nbd | process", word_of(*attach, WAY_WORDS)));
    lines.join("\n")
}

fn cephfs_yaml(name: &str, cephfs: &CephfsConfig) -> String {
    let CephfsConfig { conf, user, keyring, fs, path, repl, timeout } = cephfs;
    let mut lines = way_to_ceph(name, "cephfs", conf, user, keyring.as_ref());
    lines.extend(fs.as_ref().map(|fs| format!("    fs: {}", scalar(fs))));
    lines.extend(repl.map(|repl| format!("    repl: {repl}")));
    lines.push(format!("    path: {}\n    timeout: {}s", scalar(&path.to_string_lossy()), timeout.as_secs()));
    lines.join("\n")
}

/// What `dunnage config check` says of a good configuration.
pub fn check_report(config: &Config) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(printable(&text).trim_end());
        out.push('\n');
    };
    line(match &config.source {
        Some(file) => format!("{} is good", file.display()),
        None => format!("there is no {DEFAULT_FILE}: the built-in configuration holds"),
    });
    let volumes = &config.volumes;
    line(format!("admin socket: root and the group {}", config.admin.group));
    line(format!("volumes: mounted at {}", place(volumes)));
    line(format!(
        "  preempt {}, create {}, adopt {}, hints {}",
        volumes.preempt,
        volumes.create,
        volumes.adopt,
        word_of(volumes.hints, HINT_WORDS)
    ));
    if volumes.private_namespace {
        line("  mounts may stay in a private mount namespace".to_owned());
    }
    let holders = &config.holders;
    line(format!("holders whose container is gone: {}, after {} s", holders.reconcile, holders.grace.as_secs()));
    for (key, paths) in holders.asked().into_iter().filter(|(_, paths)| !paths.is_empty()) {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        line(format!("  {key}: {}", paths.join(", ")));
    }
    line(if config.drivers.is_empty() { "drivers: none".to_owned() } else { "drivers:".to_owned() });
    for (name, driver) in &config.drivers {
        line(match driver {
            DriverConfig::Local(LocalConfig { pool, store, vfs, reserve, warn, overcommit }) => {
                let overcommit = overcommit.map_or_else(|| "none".to_owned(), |share| share.to_string());
                let vfs = vfs.as_ref().map(|vfs| format!(", REX-Ray's vfs {} taken in", vfs.display())).unwrap_or_default();
                format!(
                    "  {name}: local, {} in the pool {}{vfs}, reserve {reserve}, warn {warn}, overcommit {overcommit}",
                    word_of(*store, STORE_WORDS),
                    pool.display()
                )
            }
            DriverConfig::Ceph(CephConfig { conf, user, pool, pools, .. }) => {
                let all: Vec<&str> = std::iter::once(pool.as_str()).chain(pools.iter().map(String::as_str)).collect();
                format!("  {name}: ceph, as client.{user} by {}, pools {}", conf.display(), all.join(", "))
            }
            DriverConfig::Cephfs(CephfsConfig { conf, user, fs, path, .. }) => {
                let fs = fs.as_deref().unwrap_or("the cluster's filesystem");
                format!("  {name}: cephfs, as client.{user} by {}, {} of {fs}", conf.display(), path.display())
            }
            DriverConfig::Unavailable { kind } => format!("  {name}: {kind}, which this build does not have"),
        });
    }
    line(if config.docker.is_empty() { "docker endpoints: none".to_owned() } else { "docker endpoints:".to_owned() });
    for endpoint in &config.docker {
        let defaults = endpoint.defaults.clone().over(&volumes.defaults);
        let mut said = String::new();
        for (key, value) in pairs(&defaults) {
            let _ = write!(said, " {key}={value}"); // writing to a String cannot fail
        }
        let hints = word_of(endpoint.hints, HINT_WORDS);
        let shared = endpoint.shared.as_ref().map(|driver| format!(" (shared=true: {driver})")).unwrap_or_default();
        line(format!("  {}: driver {}{shared}, hints {hints}, defaults{said}", endpoint.name, endpoint.driver));
        let DockerEndpoint { create, remove, preempt, .. } = endpoint;
        line(format!("    create {create}, remove {remove}, preempt {preempt}"));
    }
    if !config.not_served.is_empty() {
        line("not acted on:".to_owned());
    }
    for what in &config.not_served {
        line(format!("  {what}"));
    }
    if !config.told.is_empty() {
        let rows = config.told.iter().map(|told| [&*told.key, &*told.place, told.fate.word(), &*told.what].map(printable).to_vec());
        out += "\nREX-Ray's keys:\n";
        out += &output::table(&["KEY", "WHERE", "IS", "INTO WHAT, OR WHY"], rows);
    }
    out
}

/// Where a volume is mounted, as a pattern.
fn place(volumes: &Volumes) -> String {
    let rest = match volumes.layout {
        Layout::ByDriver => "DRIVER/NAME",
        Layout::Flat => "NAME",
    };
    volumes.path.join(rest).display().to_string()
}

/// What a layer says, as options and their YAML values.
fn pairs(spec: &PartialSpec) -> Vec<(String, String)> {
    let PartialSpec { size, fs, uid, gid, mode, thick, repl, preempt, access, shared, root_path, mount_options, labels, hints } = spec;
    let mut pairs: Vec<(&str, Option<String>)> = vec![
        ("size", size.map(exact)),
        ("fs", fs.map(|fs| fs.to_string())),
        ("uid", uid.map(|id| id.to_string())),
        ("gid", gid.map(|id| id.to_string())),
        // In quotes: to us 0755 is octal anyway, to other readers of YAML it is seven hundred and fifty-five.
        ("mode", mode.map(|mode| format!("\"{mode}\""))),
        ("repl", repl.map(|repl| repl.to_string())),
        ("preempt", preempt.map(|preempt| preempt.to_string())),
        ("thick", thick.map(|thick| thick.to_string())),
        ("rootPath", root_path.as_ref().map(|path| scalar(&path.to_string()))),
        ("mountOptions", mount_options.as_ref().map(|options| scalar(&options.to_string()))),
        ("shared", shared.map(|shared| shared.to_string())),
        ("ro", access.map(|access| (access == Access::ManyReaders).to_string())),
    ];
    if !labels.is_empty() {
        let inner: Vec<String> = labels.iter().map(|(key, value)| format!("{}: {}", scalar(key), scalar(value))).collect();
        pairs.push(("labels", Some(format!("{{ {} }}", inner.join(", ")))));
    }
    pairs.extend(hints.iter().map(|(key, value)| (key.as_str(), Some(scalar(value)))));
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// A size that reads back to the byte; its `Display` rounds.
fn exact(size: Bytes) -> String {
    let units = [(Bytes::GIB, "GiB"), (Bytes::MIB, "MiB"), (Bytes::KIB, "KiB")];
    match units.into_iter().find(|(unit, _)| size.0.is_multiple_of(*unit)) {
        Some((unit, word)) => format!("{}{word}", size.0 / unit),
        None => format!("{}B", size.0),
    }
}

/// A node as YAML on one line.
pub(super) fn node(node: &Node) -> String {
    match &node.value {
        Value::Nothing | Value::Refused => "null".to_owned(),
        // `true` stays a truth and "true" a text.
        Value::Scalar { text, plain: true } if is_bare(text) => text.clone(),
        Value::Scalar { text, .. } => double_quoted(text),
        Value::List(items) => format!("[{}]", items.iter().map(self::node).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let inner: Vec<String> = entries.iter().map(|entry| format!("{}: {}", scalar(&entry.key), self::node(&entry.node))).collect();
            format!("{{{}}}", inner.join(", "))
        }
    }
}

/// A text as a YAML scalar, in quotes where it could be taken for something else.
fn scalar(text: &str) -> String {
    let letter = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let word = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if letter && !word && is_bare(text) { text.to_owned() } else { double_quoted(text) }
}

/// Whether a text needs no quotes to be one scalar, in a list or anywhere.
fn is_bare(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'.' | b'-' | b'%' | b'+'))
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08X}", u32::from(c)); // writing to a String cannot fail
            }
        }
    }
    out + "\""
}
