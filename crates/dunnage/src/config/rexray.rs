//! A REX-Ray configuration, of either generation, as it stands: what it asks for becomes our [`Config`].
//!
//! Keys are read in any letter case and wherever REX-Ray looked for them: in a module, in a service, at the root, in the
//! environment. Of every key that is there it is told what becomes of it: mapped, tightened, ignored or unknown. What
//! REX-Ray did not know it passed over, and so do we, but not without a word.

mod flat;
mod keys;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use dunnage_driver_local::Store;
use dunnage_engine::Layout;
use dunnage_model::{Bytes, DriverName, EndpointName, FsKind, HintPolicy, PartialSpec, parse_options};

use self::flat::{Flat, Item};
use super::flaws::{At, Flaws, did_you_mean, quoted};
use super::tree::{Node, Value};
use super::{Adopt, CephConfig, Config, CreatePolicy, DockerEndpoint, DriverConfig, LocalConfig, Places, Preempt, RemovePolicy};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It means here what it meant.
    Mapped,
    /// It means less than it did, for safety.
    Tightened,
    /// Nothing comes of it.
    Ignored,
    /// REX-Ray did not know it either.
    Unknown,
}

impl Fate {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Fate::Mapped => "mapped",
            Fate::Tightened => "tightened",
            Fate::Ignored => "ignored",
            Fate::Unknown => "unknown",
        }
    }
}

/// One key that was there, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The key, as REX-Ray's documentation spells it where it is known.
    pub key: String,
    /// Its value; `***` where that is a secret.
    pub value: String,
    /// Where it stands: `line 12`, or `environment`.
    pub place: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Into what, or why.
    pub what: String,
}

/// Sections of REX-Ray's at the root of a file that none of ours has.
const ROOTS: &[&str] = &["rexray", "libstorage", "integration", "linux", "docker", "csi"];
/// Sections of ours.
const OURS: &[&str] = &["admin", "volumes", "holders", "drivers", "endpoints"];
/// The operations of volumes, in REX-Ray's words.
pub const OPS: &str = "integration.volume.operations.";
/// What REX-Ray called its one endpoint.
const ENDPOINT: &str = "rexray";

/// Whether this is one of REX-Ray's: it has sections of REX-Ray's and none of ours.
pub(super) fn is_one(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else { return false };
    let is = |known: &[&str], key: &str| known.iter().any(|word| word.eq_ignore_ascii_case(key));
    let theirs = |key: &str| is(ROOTS, key) || keys::kind_of(key).is_some_and(|kind| kind != "local");
    let section = |key: &str| theirs(key.split('.').next().unwrap_or_default());
    entries.iter().any(|entry| section(&entry.key) && !matches!(entry.node.value, Value::List(_)))
        && !entries.iter().any(|entry| is(OURS, &entry.key))
}

/// REX-Ray's own folders, which `REXRAY_HOME` and its kin put elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Where its configuration is.
    pub etc: PathBuf,
    /// Where its volumes appear.
    pub lib: PathBuf,
}

impl Home {
    /// As the environment has it.
    pub fn of(environment: &dyn Fn(&str) -> Option<String>) -> Home {
        let set = |name: &str| environment(name).filter(|value| value.starts_with('/')).map(PathBuf::from);
        let root = set("REXRAY_HOME").unwrap_or_else(|| PathBuf::from("/"));
        Home {
            etc: set("REXRAY_HOME_ETC").unwrap_or_else(|| root.join("etc/rexray")),
            lib: set("REXRAY_HOME_LIB").unwrap_or_else(|| root.join("var/lib/rexray")),
        }
    }

    /// The configuration files that REX-Ray looked for, the first that is there counting.
    pub fn files(&self) -> [PathBuf; 2] {
        [self.etc.join("rexray.yml"), self.etc.join("config.yml")]
    }

    /// The variables that REX-Ray's unit read.
    pub fn variables(&self) -> PathBuf {
        self.etc.join("rexray.env")
    }
}

/// Reads the file's tree into `config`, whose places are set already.
pub(super) fn read(root: &Node, environment: &dyn Fn(&str) -> Option<String>, places: &Places, config: &mut Config, flaws: &mut Flaws) {
    let home = Home::of(environment);
    let mut flat = Flat::of(root, flaws);
    flat.overlay(keys::all(), environment);
    config.drivers.clear();
    config.docker.clear();
    config.volumes.path = home.lib.join("volumes");
    config.volumes.layout = Layout::Flat;
    config.volumes.hints = HintPolicy::Warn;
    config.volumes.adopt = Adopt::WhenNamed;
    config.volumes.defaults = PartialSpec { size: Some(Bytes::gib(16)), fs: Some(FsKind::Ext4), ..PartialSpec::default() };
    let mut reader = Reader { flat: &flat, places, lib: home.lib, config, flaws, notes: BTreeMap::new(), used: RefCell::default() };
    reader.remote();
    reader.services();
    reader.mounts();
    reader.endpoints();
    let (notes, used) = (reader.notes, reader.used.into_inner());
    config.told = flat.items().map(|item| told(item, notes.get(&item.path), used.contains(&item.path))).collect();
}

/// What becomes of an item; `note` is what is to be said of just this one. What the table has a use for and nobody has read comes
/// to nothing.
fn told(item: &Item, note: Option<&(Fate, String)>, used: bool) -> Told {
    let place = item.at.map_or("environment".to_owned(), |at| format!("line {}", at.line));
    let (key, fate, what) = keys::find(&item.path).unwrap_or_else(|| {
        let known: Vec<String> = keys::all().collect();
        let words: Vec<&str> = known.iter().map(String::as_str).collect();
        let bare = keys::SCOPES.iter().find_map(|scope| keys::strip(scope, &item.path)).unwrap_or(&item.path);
        let hint = did_you_mean(bare, &words);
        let hint = if hint.starts_with("did you mean") { format!("; {hint}") } else { String::new() };
        (item.shown.clone(), Fate::Unknown, format!("REX-Ray has no such key, and passed it over{hint}"))
    });
    // A key in a section is told of by its whole path.
    let key = if key.len() < item.shown.len() { item.shown.clone() } else { key };
    // What nobody knows may be a secret with a slip in its name.
    let hidden = fate == Fate::Unknown || keys::is_secret(&item.path);
    let value = if hidden { "***".to_owned() } else { item.values.join(" ") };
    let (fate, what) = match (note, fate) {
        (Some(note), _) => note.clone(),
        (None, Fate::Mapped | Fate::Tightened) if !used => {
            (Fate::Ignored, "another key stands above it, or nothing looks for it in this place".to_owned())
        }
        (None, fate) => (fate, what),
    };
    Told { key, value, place, fate, what }
}

/// The environment's name of a key.
pub fn variable(key: &str) -> String {
    flat::variable(key)
}

struct Reader<'a> {
    flat: &'a Flat,
    places: &'a Places,
    /// `/var/lib/rexray`, or where that is.
    lib: PathBuf,
    config: &'a mut Config,
    flaws: &'a mut Flaws,
    /// What is to be told of single keys instead of what the table says.
    notes: BTreeMap<String, (Fate, String)>,
    /// The items that something came of.
    used: RefCell<BTreeSet<String>>,
}

/// Where a key is looked for: the prefixes before it, the nearest first.
type Scopes = Vec<String>;

impl<'a> Reader<'a> {
    /// The item of the first of the names (later ones are older names for the same), in the nearest scope; an empty value is none.
    fn get(&self, scopes: &Scopes, names: &[&str]) -> Option<&'a Item> {
        let flat = self.flat;
        let found = names
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .flat_map(|name| scopes.iter().flat_map(move |scope| [format!("{scope}{name}"), format!("{scope}libstorage.{name}")]));
        let mut found = found.filter_map(|path| flat.get(&path));
        let found = found.find(|item| item.values.iter().any(|value| !value.is_empty()));
        self.used.borrow_mut().extend(found.map(|item| item.path.clone()));
        found
    }

    fn flaw(&mut self, item: &Item, what: impl AsRef<str>, next: impl AsRef<str>) {
        self.flaws.add(item.at, &item.shown, what, next);
    }

    fn note(&mut self, item: &Item, fate: Fate, what: impl Into<String>) {
        self.notes.insert(item.path.clone(), (fate, what.into()));
    }

    fn text(&mut self, item: &Item) -> String {
        item.values.first().cloned().unwrap_or_default()
    }

    /// What Go's strconv takes for a truth, and what people write.
    fn truth(&mut self, item: &Item) -> Option<bool> {
        match self.text(item).to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "on" => Some(true),
            "false" | "f" | "0" | "no" | "off" => Some(false),
            other => {
                let what = format!("{} is {}, and must be true or false", item.shown, quoted(other));
                self.flaw(item, what, "write true or false");
                None
            }
        }
    }

    fn everywhere() -> Scopes {
        ["libstorage.integration.", "libstorage.server.", "libstorage.client.", "libstorage.", "rexray.", ""].map(str::to_owned).to_vec()
    }

    /// A server elsewhere would have to be spoken to in its own tongue, which nobody speaks any more.
    fn remote(&mut self) {
        for name in ["libstorage.host", "rexray.host"] {
            let Some(item) = self.get(&vec![String::new()], &[name]) else { continue };
            let host = self.text(item);
            let bare = host.split_once("://").map_or(host.as_str(), |(_, rest)| rest);
            let here = host.starts_with("unix:")
                || bare.starts_with('/')
                || ["127.", "localhost", "[::1]", ":", "0.0.0.0"].iter().any(|h| bare.starts_with(h));
            if !here {
                let what = format!("{} is {}: there is no server elsewhere, for every node has its own daemon", item.shown, quoted(&host));
                let next =
                    "remove it, and give each node what the server has: 'libstorage: { service: DRIVER }' and the driver's own section";
                self.flaw(item, what, next);
            }
        }
    }

    /// `libstorage.server.services`: each is a driver of ours.
    fn services(&mut self) {
        for (name, at) in self.flat.children("libstorage.server.services") {
            let scope = format!("libstorage.server.services.{name}.");
            let kind = self.get(&vec![scope], &["driver", "libstorage.storage.driver", "libstorage.driver"]);
            let word = kind.map_or(name.clone(), |item| self.text(item));
            self.driver(&name, &word, kind.and_then(|item| item.at).or(at));
        }
    }

    /// Adds a driver of that name, whose platform REX-Ray knew by `word`; gives its name.
    fn driver(&mut self, name: &str, word: &str, at: Option<At>) -> Option<DriverName> {
        let parsed: DriverName = match name.to_ascii_lowercase().parse() {
            Ok(parsed) => parsed,
            Err(error) => {
                self.flaws.add(at, "libstorage.service", error.detail, error.next);
                return None;
            }
        };
        let Some(kind) = keys::kind_of(word) else {
            let known: Vec<&str> = keys::DRIVERS.iter().flat_map(|(names, ..)| names.iter().copied()).collect();
            self.flaws.add(at, "libstorage.service", format!("{} is no storage driver", quoted(word)), did_you_mean(word, &known));
            return None;
        };
        let driver = match kind {
            "local" => DriverConfig::Local(self.local(&parsed)),
            "vfs" => DriverConfig::Local(self.vfs(&parsed)),
            "ceph" => DriverConfig::Ceph(self.ceph(&parsed)),
            kind => DriverConfig::Unavailable { kind: kind.to_owned() },
        };
        self.config.drivers.insert(parsed.clone(), driver);
        Some(parsed)
    }

    fn local(&mut self, name: &DriverName) -> LocalConfig {
        let mut local = LocalConfig::builtin(name.as_str(), self.places);
        if let Some(item) = self.get(&vec![format!("libstorage.server.services.{name}."), String::new()], &["local.pool"])
            && let Some(path) = self.folder(item)
        {
            local.pool = path;
        }
        local
    }

    /// Its volumes are folders in the folder of mounts; ours are in a pool beside them, on the same filesystem.
    fn vfs(&mut self, name: &DriverName) -> LocalConfig {
        let root = self.get(&vec![format!("libstorage.server.services.{name}."), String::new()], &["vfs.root"]);
        let vfs = root.and_then(|item| self.folder(item)).unwrap_or_else(|| self.lib.join("vfs"));
        LocalConfig { pool: vfs.join("dunnage"), store: Store::Folders, vfs: Some(vfs), ..LocalConfig::builtin(name.as_str(), self.places) }
    }

    /// It ran `rbd` as the operator, or as its arguments say.
    fn ceph(&mut self, name: &DriverName) -> CephConfig {
        let mut ceph = CephConfig { user: "admin".to_owned(), named_pools: true, ..CephConfig::default() };
        let places = vec![format!("libstorage.server.services.{name}."), String::new()];
        if let Some(item) = self.get(&places, &["rbd.defaultPool"]) {
            ceph.pool = self.text(item);
        }
        let item = self.get(&places, &["rbd.cephArgs"]);
        let args = item.map(|item| self.text(item)).unwrap_or_default();
        let mut unread = Vec::new();
        let mut words = args.split_whitespace();
        while let Some(word) = words.next() {
            let (flag, value) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
            let mut value = || value.or_else(|| words.next()).unwrap_or_default().to_owned();
            match flag {
                "--id" | "-i" | "--user" => ceph.user = value(),
                "--name" | "-n" => ceph.user = value().trim_start_matches("client.").to_owned(),
                "--conf" | "-c" => ceph.conf = value().into(),
                "--keyring" | "-k" => ceph.keyring = Some(value().into()),
                "--cluster" => ceph.conf = format!("/etc/ceph/{}.conf", value()).into(),
                _ => unread.push(word),
            }
        }
        if let Some(item) = item.filter(|_| !unread.is_empty()) {
            self.note(
                item,
                Fate::Mapped,
                format!("but for {}, which is not read: write it into the cluster's own configuration", unread.join(" ")),
            );
        }
        ceph
    }

    fn folder(&mut self, item: &Item) -> Option<PathBuf> {
        let text = self.text(item);
        let path = PathBuf::from(&text);
        let odd = path.components().any(|part| part == std::path::Component::ParentDir) || text.chars().any(char::is_control);
        if !path.is_absolute() || path.parent().is_none() || odd {
            self.flaw(
                item,
                format!("{} is {}, which is no folder of its own", item.shown, quoted(&text)),
                "give an absolute path without '..'",
            );
            return None;
        }
        Some(path.components().collect())
    }

    fn mounts(&mut self) {
        let names = [format!("{OPS}mount.path"), "docker.mountDirPath".to_owned()];
        if let Some(item) = self.get(&Self::everywhere(), &[&names[0], &names[1]])
            && let Some(path) = self.folder(item)
        {
            self.config.volumes.path = path;
        }
        // Of one daemon there is one folder.
        let flat = self.flat;
        for item in flat.items().filter(|item| item.path.starts_with("rexray.modules.") && item.path.ends_with("mount.path")) {
            self.note(item, Fate::Ignored, "all modules mount in one folder: set it outside of the module");
        }
    }

    /// The modules, each with what holds for it; without any, and beside them, REX-Ray's own one.
    fn endpoints(&mut self) {
        let modules = self.flat.children("rexray.modules");
        let usual = |name: &str| matches!(name, "default-docker" | "default-csi" | "default-admin");
        let mut names = BTreeSet::new();
        let mut default = true;
        for (module, at) in &modules {
            let scope = format!("rexray.modules.{module}.");
            let disabled = self.get(&vec![scope.clone()], &["disabled"]).is_some_and(|item| self.truth(item).unwrap_or(false));
            let kind = self.get(&vec![scope.clone()], &["type"]);
            let serves = kind.is_none_or(|item| match self.text(item).to_ascii_lowercase().as_str() {
                "docker" | "csi" => true,
                "admin" => false,
                other => {
                    let what = format!("{} is {}, and must be docker or csi", item.shown, quoted(other));
                    self.flaw(item, what, "write docker: it is the volume plugin API");
                    false
                }
            });
            if module == "default-docker" || module == "default-csi" {
                default &= !disabled;
            }
            if disabled || !serves || usual(module) {
                continue;
            }
            let host = self.get(&vec![scope], &["host"]);
            let name = host.map(|item| self.text(item)).and_then(|host| socket_name(&host)).unwrap_or_else(|| plain(module));
            if names.insert(name.clone()) {
                self.endpoint(&name, Some(module), host.and_then(|item| item.at).or(*at));
            } else {
                let what = format!("module {module} has the endpoint {name}, and another module has it too");
                self.flaws.add(
                    *at,
                    &format!("rexray.modules.{module}"),
                    what,
                    "give each a host of its own, as unix:///run/docker/plugins/NAME.sock",
                );
            }
        }
        if default && !names.contains(ENDPOINT) {
            let endpoint =
                self.get(&vec![String::new()], &["csi.endpoint", "rexray.modules.default-docker.host", "rexray.modules.default-csi.host"]);
            let name = endpoint.map(|item| self.text(item)).and_then(|host| socket_name(&host)).unwrap_or_else(|| ENDPOINT.to_owned());
            // Modules with services of their own need no default one.
            if names.is_empty() || self.service(None).is_some() {
                self.endpoint(&name, None, endpoint.and_then(|item| item.at));
            }
        }
    }

    /// Which service is asked for, by the name in the file.
    fn service(&self, module: Option<&str>) -> Option<&'a Item> {
        let mut scopes: Scopes = module.map(|module| format!("rexray.modules.{module}.")).into_iter().collect();
        scopes.push(String::new());
        self.get(
            &scopes,
            &["libstorage.service", "rexray.service", "rexray.storageDrivers", "libstorage.storage.driver", "libstorage.driver"],
        )
    }

    /// The driver behind a module's endpoint.
    fn driver_of(&mut self, module: Option<&str>) -> Option<DriverName> {
        let services: Vec<String> = self.flat.children("libstorage.server.services").into_iter().map(|(name, _)| name).collect();
        let Some(item) = self.service(module) else {
            return match services.as_slice() {
                // Nothing is said: our own driver, which needs nothing.
                [] => self.driver("local", "local", None),
                [only] => only.parse().ok(),
                _ => {
                    let next = format!("add 'libstorage: {{ service: {} }}'", services[0]);
                    self.flaws.add(
                        None,
                        "libstorage.service",
                        format!("there are the services {}, and none is chosen", services.join(", ")),
                        next,
                    );
                    None
                }
            };
        };
        if item.values.len() > 1 {
            let rest = item.values.get(1..).unwrap_or_default().join(", ");
            self.note(
                item,
                Fate::Mapped,
                format!("the first is the driver of endpoint rexray; for {rest} add modules with a service each"),
            );
        }
        let word = self.text(item);
        if services.is_empty() {
            return self.driver(&word, &word, item.at);
        }
        if let Some(name) = services.iter().find(|name| name.eq_ignore_ascii_case(&word)) {
            return name.parse().ok();
        }
        let known: Vec<&str> = services.iter().map(String::as_str).collect();
        self.flaw(item, format!("{} is {}, and there is no such service", item.shown, quoted(&word)), did_you_mean(&word, &known));
        None
    }

    fn endpoint(&mut self, name: &str, module: Option<&str>, at: Option<At>) {
        let name: EndpointName = match name.parse() {
            Ok(name) => name,
            Err(error) => return self.flaws.add(at, "rexray.modules", error.detail, error.next),
        };
        let Some(driver) = self.driver_of(module) else { return };
        let mut scopes: Scopes = module.map(|module| format!("rexray.modules.{module}.")).into_iter().collect();
        scopes.push(format!("libstorage.server.services.{driver}."));
        scopes.extend(Self::everywhere());
        let op = |key: &str| format!("{OPS}{key}");
        let said = |reader: &mut Self, names: &[&str]| reader.get(&scopes, names).and_then(|item| reader.truth(item));
        let preempt = match said(self, &[&op("mount.preempt"), "volume.mount.preempt"]) {
            Some(false) => Preempt::Never,
            _ => Preempt::IfDead,
        };
        let create = match said(self, &[&op("create.disable"), "volume.create.disable"]) {
            Some(true) => CreatePolicy::Explicit,
            _ => CreatePolicy::OnMount,
        };
        let remove = match said(self, &[&op("remove.disable"), "volume.remove.disable"]) {
            Some(true) => RemovePolicy::Refuse,
            _ => RemovePolicy::Allow,
        };
        let defaults = self.defaults(&scopes, &driver);
        self.config.docker.push(DockerEndpoint { name, driver, shared: None, hints: HintPolicy::Warn, defaults, create, remove, preempt });
    }

    /// What new volumes are where the caller does not say.
    fn defaults(&mut self, scopes: &Scopes, driver: &DriverName) -> PartialSpec {
        let default = |key: &str| format!("{OPS}create.default.{key}");
        let sources: [(&str, Vec<String>); 7] = [
            ("size", vec![default("size"), "docker.size".to_owned()]),
            ("fs", vec![default("fsType"), "docker.fsType".to_owned()]),
            ("type", vec![default("type"), "docker.volumeType".to_owned()]),
            ("iops", vec![default("IOPS"), "docker.iops".to_owned()]),
            ("availabilityZone", vec![default("availabilityZone"), "docker.availabilityZone".to_owned()]),
            ("mode", vec!["linux.volume.filemode".to_owned()]),
            ("rootPath", vec![format!("{OPS}mount.rootPath"), "linux.volume.rootpath".to_owned()]),
        ];
        // REX-Ray's own: a folder in the volume; and, so that a task that is not root's can write (rexray/rexray#731), a root
        // as open as /tmp.
        let mut spec = PartialSpec { root_path: "/data".parse().ok(), mode: "1777".parse().ok(), ..PartialSpec::default() };
        for (option, names) in sources {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            // An empty rootPath says something: the volume's root.
            let empty = option == "rootPath"
                && scopes.iter().any(|s| names.iter().any(|n| self.flat.says_empty(&format!("{s}{}", n.to_ascii_lowercase()))));
            let Some(item) = self.get(scopes, &names) else {
                if empty {
                    spec.root_path = "/".parse().ok();
                }
                continue;
            };
            let value = self.text(item);
            if option == "iops" && value == "0" {
                continue; // what Go has where nothing was written
            }
            match parse_options([(option, value.as_str())], HintPolicy::Warn, driver.as_str()) {
                Ok(parsed) => spec = parsed.spec.over(&spec),
                Err(error) => self.flaw(item, format!("{}: {}", item.shown, error.detail), error.next),
            }
        }
        let whole = spec.clone().over(&self.config.volumes.defaults).complete();
        if let Err(error) = whole {
            let size = self.get(scopes, &[&default("size"), "docker.size"]);
            self.flaws.add(size.and_then(|item| item.at), "size", error.detail, error.next);
        }
        spec
    }
}

/// The name that Docker knows a socket by: `unix:///run/docker/plugins/NAME.sock`.
fn socket_name(host: &str) -> Option<String> {
    let path = host.strip_prefix("unix://").unwrap_or(host);
    let file = path.starts_with('/').then(|| path.rsplit('/').next())??;
    file.strip_suffix(".sock").or_else(|| file.strip_suffix(".spec")).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// A module's name as REX-Ray made a socket's of it: in lower case, with a `-` for each thing between words.
fn plain(module: &str) -> String {
    module.to_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}
