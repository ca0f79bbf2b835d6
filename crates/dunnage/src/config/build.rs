//! From the tree to a [`Config`], and the checks that see more than one key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunnage_driver_local::Store;
use dunnage_model::{DriverName, EndpointName, HintPolicy, PartialSpec, Result};

use super::fields::{Field, Section};
use super::flaws::{At, Flaws, below, did_you_mean, quoted};
use super::options::{Giver, Notes, read_options};
use super::share::Share;
use super::tree::{self, Node};
use super::{
    Adopt, CephConfig, CephfsConfig, Config, CreatePolicy, DockerEndpoint, DriverConfig, HINT_WORDS, Holders, LAYOUT_WORDS, LocalConfig,
    Places, Preempt, Reconcile, RemovePolicy, STORE_WORDS, WAY_WORDS, rexray, show,
};

/// Every driver type of the field that is known by name; all but `local`, `ceph` and `cephfs` are not in this build.
const KINDS: &[&str] = &[
    "local",
    "ceph",
    "cephfs",
    "ebs",
    "virtualbox",
    "csi",
    "efs",
    "s3fs",
    "gcepd",
    "dobs",
    "cinder",
    "azureud",
    "scaleio",
    "isilon",
    "fittedcloud",
    "rackspace",
    "xtremio",
    "vmax",
];

/// The longest path of a unix socket, its closing zero included: `sun_path` of unix(7).
const SUN_PATH: usize = 108;

/// Reads the bytes of a file; `file` is what messages call it.
pub(super) fn from_bytes(bytes: &[u8], file: &Path, places: &Places, environment: &dyn Fn(&str) -> Option<String>) -> Result<Config> {
    let mut flaws = Flaws::default();
    let mut config = Config::builtin(places);
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            // Some editors begin a file with a byte order mark.
            let root = tree::parse(text.strip_prefix('\u{feff}').unwrap_or(text), &mut flaws);
            if let Some(root) = &root {
                let (written, named) = (BTreeMap::new(), BTreeSet::new());
                if rexray::is_one(root) {
                    rexray::read(root, environment, places, &mut config, &mut flaws);
                }
                let builder = Builder { places, config: &mut config, flaws: &mut flaws, written, named };
                if rexray::is_one(root) { builder.keep_apart() } else { builder.read(root) }
            }
        }
        Err(error) => not_utf8(bytes.get(..error.valid_up_to()).unwrap_or_default(), &mut flaws),
    }
    flaws.into_error(file).map_or(Ok(config), Err)
}

fn not_utf8(good: &[u8], flaws: &mut Flaws) {
    let before = String::from_utf8_lossy(good);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    flaws.add(At { line, column }, "config", "this is not UTF-8 text", "save the file as UTF-8");
}

struct Builder<'a> {
    places: &'a Places,
    config: &'a mut Config,
    flaws: &'a mut Flaws,
    /// Where the values stand that a later check may want to point to, by key path; a default stands nowhere.
    written: BTreeMap<String, At>,
    /// The drivers that the file names, those included that have flaws: an endpoint on such a one is not wrong.
    named: BTreeSet<String>,
}

impl Builder<'_> {
    fn read(mut self, root: &Node) {
        let Some(mut root) = Field::root(root).section(self.flaws) else { return };
        if let Some(section) = root.get_group("admin").and_then(|field| field.section(self.flaws)) {
            self.admin(section);
        }
        let volumes = root.get_group("volumes");
        // Drivers come first: what the volumes' defaults may ask depends on what the drivers can give.
        if let Some(field) = root.get_group("drivers") {
            self.drivers(&field);
        }
        if let Some(section) = volumes.and_then(|field| field.section(self.flaws)) {
            self.volumes(section);
        }
        if let Some(section) = root.get_group("holders").and_then(|field| field.section(self.flaws)) {
            self.holders(section);
        }
        match root.get_group("endpoints") {
            Some(field) => self.endpoints(&field),
            None => self.builtin_endpoint(),
        }
        root.end(self.flaws);
        self.config.not_served.sort();
        self.keep_apart();
    }

    fn admin(&mut self, mut section: Section<'_>) {
        if let Some(field) = section.get("group")
            && let Some(group) = field.text(self.flaws)
        {
            let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',' | '/');
            if group.is_empty() || group.len() > 256 || group.chars().any(odd) {
                let what = format!("{} is {}, which is not the name of a group", field.path, quoted(group));
                field.flaw(self.flaws, what, "name a group of this machine, such as root");
            } else {
                group.clone_into(&mut self.config.admin.group);
            }
        }
        section.end(self.flaws);
    }

    fn volumes(&mut self, mut section: Section<'_>) {
        if let Some(path) = self.file_path(&mut section, "path") {
            self.config.volumes.path = path;
        }
        if let Some(layout) = section.get("layout").and_then(|field| field.word(LAYOUT_WORDS, self.flaws)) {
            self.config.volumes.layout = layout;
        }
        if let Some(preempt) = section.get("preempt").and_then(|field| field.word(Preempt::WORDS, self.flaws)) {
            self.config.volumes.preempt = preempt;
        }
        if let Some(create) = section.get("create").and_then(|field| field.word(CreatePolicy::WORDS, self.flaws)) {
            self.config.volumes.create = create;
        }
        if let Some(adopt) = section.get("adopt").and_then(|field| field.word(Adopt::WORDS, self.flaws)) {
            self.config.volumes.adopt = adopt;
        }
        if let Some(hints) = section.get("hints").and_then(|field| field.word(HINT_WORDS, self.flaws)) {
            self.config.volumes.hints = hints;
        }
        if let Some(private) = section.get("private_namespace").and_then(|field| field.truth(self.flaws)) {
            self.config.volumes.private_namespace = private;
        }
        if let Some(field) = section.get_group("defaults") {
            // They hold for every driver, so the one that gives least decides.
            let mut drivers = self.config.drivers.iter();
            let local = drivers.clone().find(|(_, driver)| matches!(driver, DriverConfig::Local(_)));
            let giver = local.or(drivers.next()).map_or(Giver::Unknown, |(name, driver)| Giver::of(name, driver));
            let notes = Notes { not_served: &mut self.config.not_served, as_written: &mut self.config.as_written };
            let below = self.config.volumes.defaults.clone();
            self.config.volumes.defaults = read_options(&field, &giver, self.config.volumes.hints, &below, notes, self.flaws).over(&below);
        }
        section.end(self.flaws);
    }

    fn holders(&mut self, mut section: Section<'_>) {
        if let Some(reconcile) = section.get("reconcile").and_then(|field| field.word(Reconcile::WORDS, self.flaws)) {
            self.config.holders.reconcile = reconcile;
        }
        if let Some(grace) = section.get("grace").and_then(|field| field.duration(Duration::from_secs(1), self.flaws)) {
            self.config.holders.grace = grace;
        }
        let Holders { docker, podman, mesos, .. } = &mut self.config.holders;
        for (key, paths) in [("docker", docker), ("podman", podman), ("mesos", mesos)] {
            if let Some(items) = section.get_group(key).and_then(|field| field.items(self.flaws)) {
                *paths = items.iter().filter_map(|item| item.file_path(self.places, self.flaws)).collect();
            }
        }
        section.end(self.flaws);
    }

    /// The path below `key`, and a note of where it stands.
    fn file_path(&mut self, section: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
        let field = section.get(key)?;
        self.written.insert(field.path.clone(), field.node.at);
        field.file_path(self.places, self.flaws)
    }

    fn drivers(&mut self, field: &Field<'_>) {
        self.config.drivers.clear();
        self.written.insert("drivers".into(), field.at);
        let Some(section) = field.section(self.flaws) else { return };
        for (key, field) in section.all() {
            self.named.insert(key.to_owned());
            match key.parse::<DriverName>() {
                Ok(name) => {
                    if let Some(driver) = self.driver(&name, &field) {
                        self.config.drivers.insert(name, driver);
                    }
                }
                Err(error) => self.flaws.add(field.at, &field.path, error.detail, error.next),
            }
        }
    }

    fn driver(&mut self, name: &DriverName, field: &Field<'_>) -> Option<DriverConfig> {
        let mut section = field.section(self.flaws)?;
        let kind = match section.get("type") {
            Some(field) => {
                let kind = field.text(self.flaws)?;
                if !KINDS.contains(&kind) {
                    let what = format!("{} is {}, and there is no such type of driver", field.path, quoted(kind));
                    field.flaw(self.flaws, what, did_you_mean(kind, KINDS));
                    return None;
                }
                kind
            }
            // `local: { reserve: 10% }` leaves no doubt.
            None if KINDS.contains(&name.as_str()) => name.as_str(),
            None => {
                let next = format!("add 'type: local'; known types: {}", KINDS.join(", "));
                self.flaws.add(field.at, &field.path, format!("{} has no type", field.path), next);
                return None;
            }
        };
        if kind == "ceph" {
            return Some(DriverConfig::Ceph(self.ceph(section)));
        }
        if kind == "cephfs" {
            return Some(DriverConfig::Cephfs(self.cephfs(section)));
        }
        if kind != "local" {
            let said = format!("{}: this build has no {kind} driver; endpoints on {name} answer platform_unavailable", field.path);
            self.config.not_served.push(said);
            return Some(DriverConfig::Unavailable { kind: kind.to_owned() });
        }
        let mut local = LocalConfig::builtin(name.as_str(), self.places);
        if let Some(pool) = self.file_path(&mut section, "pool") {
            local.pool = pool;
        }
        if let Some(store) = section.get("store").and_then(|field| field.word(STORE_WORDS, self.flaws)) {
            local.store = store;
        }
        if let Some(field) = section.get("vfs") {
            if local.store != Store::Folders {
                field.flaw(self.flaws, format!("{} is given, and its volumes are folders", field.path), "add 'store: folders'");
            }
            local.vfs = field.file_path(self.places, self.flaws);
        }
        let below_all = Share::thousandths(999);
        if let Some(share) = section.get("reserve").and_then(|field| field.share(Share::percent(0), below_all, self.flaws)) {
            local.reserve = share;
        }
        if let Some(share) = section.get("warn").and_then(|field| field.share(Share::percent(1), Share::percent(100), self.flaws)) {
            local.warn = share;
        }
        let most = Share::percent(100_000);
        if let Some(share) = section.get("overcommit").and_then(|field| field.share_or_none(Share::percent(1), most, self.flaws)) {
            local.overcommit = share;
        }
        section.end(self.flaws);
        Some(DriverConfig::Local(local))
    }

    /// How Ceph is reached, for both of its drivers.
    fn way_to_ceph(&mut self, section: &mut Section<'_>, conf: &mut PathBuf, user: &mut String, timeout: &mut Duration) -> Option<PathBuf> {
        if let Some(path) = self.file_path(section, "conf") {
            *conf = path;
        }
        if let Some(field) = section.get("user")
            && let Some(name) = field.text(self.flaws)
        {
            match name.strip_prefix("client.").unwrap_or(name) {
                bare if bare.is_empty() || bare.chars().any(|c| c.is_whitespace() || c.is_control() || "[]".contains(c)) => {
                    field.flaw(
                        self.flaws,
                        format!("{} is {}, which is no user of Ceph", field.path, quoted(name)),
                        "name one, such as dunnage",
                    );
                }
                bare => bare.clone_into(user),
            }
        }
        if let Some(given) = section.get("timeout").and_then(|field| field.duration(Duration::from_secs(1), self.flaws)) {
            *timeout = given;
        }
        self.file_path(section, "keyring")
    }

    fn copies(&mut self, section: &mut Section<'_>) -> Option<u32> {
        let field = section.get("repl")?;
        match field.text(self.flaws)?.parse() {
            Ok(repl @ 1..=10) => Some(repl),
            _ => {
                field.flaw(self.flaws, format!("{} is no number of copies", field.path), "give it from 1 to 10");
                None
            }
        }
    }

    fn cephfs(&mut self, mut section: Section<'_>) -> CephfsConfig {
        let mut cephfs = CephfsConfig::default();
        cephfs.keyring = self.way_to_ceph(&mut section, &mut cephfs.conf, &mut cephfs.user, &mut cephfs.timeout);
        cephfs.repl = self.copies(&mut section);
        cephfs.fs = section.get("fs").and_then(|field| field.text(self.flaws)).map(str::to_owned);
        if let Some(field) = section.get("path")
            && let Some(path) = field.text(self.flaws)
        {
            if path.starts_with('/') && !path.split('/').any(|part| part == "..") {
                cephfs.path = path.into();
            } else {
                field.flaw(
                    self.flaws,
                    format!("{} is {}, which is no path from the filesystem's root", field.path, quoted(path)),
                    "begin it with /",
                );
            }
        }
        section.end(self.flaws);
        cephfs
    }

    fn ceph(&mut self, mut section: Section<'_>) -> CephConfig {
        let mut ceph = CephConfig::default();
        ceph.keyring = self.way_to_ceph(&mut section, &mut ceph.conf, &mut ceph.user, &mut ceph.timeout);
        if let Some(pool) = section.get("pool").and_then(|field| field.text(self.flaws)) {
            pool.clone_into(&mut ceph.pool);
        }
        for field in section.get_group("pools").and_then(|field| field.items(self.flaws)).unwrap_or_default() {
            ceph.pools.extend(field.text(self.flaws).map(str::to_owned).filter(|pool| *pool != ceph.pool));
        }
        ceph.repl = self.copies(&mut section);
        if let Some(given) = section.get("make_pools").and_then(|field| field.truth(self.flaws)) {
            ceph.make_pools = given;
        }
        if let Some(given) = section.get("named_pools").and_then(|field| field.truth(self.flaws)) {
            ceph.named_pools = given;
        }
        // A node is looked at once a second, and gives five signs in the time.
        if let Some(given) = section.get("silence").and_then(|field| field.duration(Duration::from_secs(5), self.flaws)) {
            ceph.silence = given;
        }
        if let Some(way) = section.get("attach").and_then(|field| field.word(WAY_WORDS, self.flaws)) {
            ceph.attach = way;
        }
        section.end(self.flaws);
        ceph
    }

    /// Whether the file has a driver of that name, good or not; without `drivers` there is the built-in one.
    fn has_driver(&self, name: &DriverName) -> bool {
        self.config.drivers.contains_key(name) || self.named.contains(name.as_str())
    }

    /// No `endpoints`: the built-in one on the driver `local`, if there is such a driver.
    fn builtin_endpoint(&mut self) {
        for endpoint in &mut self.config.docker {
            endpoint.hints = self.config.volumes.hints;
            endpoint.create = self.config.volumes.create;
            endpoint.preempt = self.config.volumes.preempt;
        }
        if let Some(missing) = self.config.docker.iter().find(|endpoint| !self.has_driver(&endpoint.driver)) {
            let (endpoint, driver) = (&missing.name, &missing.driver);
            let what = format!(
                "there is no 'endpoints', and the built-in endpoint {endpoint} wants a driver {driver}, which 'drivers' does not have"
            );
            let next = format!("add 'endpoints: {{ docker: [ {{ name: {endpoint}, driver: NAME }} ] }}', or a driver {driver}");
            self.flaws.add(self.written.get("drivers").copied(), "endpoints", what, next);
        }
    }

    fn endpoints(&mut self, field: &Field<'_>) {
        self.config.docker.clear();
        let Some(mut section) = field.section(self.flaws) else { return };
        for field in section.get_group("docker").and_then(|field| field.items(self.flaws)).unwrap_or_default() {
            if let Some(endpoint) = self.docker_endpoint(&field) {
                self.config.docker.push(endpoint);
            }
        }
        if let Some(field) = section.get_group("csi")
            && field.items(self.flaws).is_some_and(|items| !items.is_empty())
        {
            self.config.not_served.push(format!("{}: this version does not serve CSI", field.path));
            self.config.as_written.insert(field.path.clone(), show::node(field.node));
        }
        section.end(self.flaws);
    }

    fn docker_endpoint(&mut self, field: &Field<'_>) -> Option<DockerEndpoint> {
        let mut section = field.section(self.flaws)?;
        let name = self.endpoint_name(field, section.get("name"));
        let driver = self.endpoint_driver(field, section.get("driver"));
        // Portworx took what it did not know, and its users' options are full of hints.
        let usual = if name.as_ref().is_some_and(|name| name.as_str() == "pxd") { HintPolicy::Warn } else { self.config.volumes.hints };
        let hints = section.get("hints").and_then(|field| field.word(HINT_WORDS, self.flaws)).unwrap_or(usual);
        let defaults = section.get_group("defaults").map_or_else(PartialSpec::default, |field| {
            let known = driver.as_ref().and_then(|name| self.config.drivers.get_key_value(name));
            let giver = known.map_or(Giver::Unknown, |(name, driver)| Giver::of(name, driver));
            let notes = Notes { not_served: &mut self.config.not_served, as_written: &mut self.config.as_written };
            read_options(&field, &giver, hints, &self.config.volumes.defaults, notes, self.flaws)
        });
        let shared = section.get("shared").and_then(|field| self.shared_driver(&field));
        let create = section.get("create").and_then(|field| field.word(CreatePolicy::WORDS, self.flaws));
        let remove = section.get("remove").and_then(|field| field.word(RemovePolicy::WORDS, self.flaws));
        let preempt = section.get("preempt").and_then(|field| field.word(Preempt::WORDS, self.flaws));
        section.end(self.flaws);
        Some(DockerEndpoint {
            name: name?,
            driver: driver?,
            shared,
            hints,
            defaults,
            create: create.unwrap_or(self.config.volumes.create),
            remove: remove.unwrap_or_default(),
            preempt: preempt.unwrap_or(self.config.volumes.preempt),
        })
    }

    fn endpoint_name(&mut self, endpoint: &Field<'_>, name: Option<Field<'_>>) -> Option<EndpointName> {
        let Some(field) = name else {
            endpoint.flaw(self.flaws, format!("{} has no name", endpoint.path), "add 'name: NAME': what Docker is to call it");
            return None;
        };
        let name: EndpointName = field.parsed(self.flaws)?;
        let place = format!("endpoint {name}");
        if let Some(first) = self.written.get(&place) {
            let what = format!("{} is {name}, and so is the endpoint on line {}", field.path, first.line);
            field.flaw(self.flaws, what, "give each endpoint a name of its own");
        }
        self.written.entry(place).or_insert(field.node.at);
        let socket = self.places.plugin_dir.join(format!("{name}.sock"));
        if socket.as_os_str().len() >= SUN_PATH {
            let what = format!(
                "{} makes the socket {}, and the path of a socket has at most {} bytes",
                field.path,
                socket.display(),
                SUN_PATH - 1
            );
            field.flaw(self.flaws, what, "use a shorter name, or a shorter --plugin-dir");
        }
        Some(name)
    }

    fn shared_driver(&mut self, field: &Field<'_>) -> Option<DriverName> {
        let name: DriverName = field.parsed(self.flaws)?;
        let of_type = |driver: &DriverConfig| matches!(driver, DriverConfig::Cephfs(_));
        match self.config.drivers.get(&name) {
            Some(driver) if of_type(driver) => return Some(name),
            // Its own flaws were told.
            None if self.has_driver(&name) => return None,
            _ => {}
        }
        let fit = self.config.drivers.iter().filter(|(_, driver)| of_type(driver)).map(|(name, _)| name.as_str());
        let next = format!("name a driver of type cephfs; configured: {}", fit.collect::<Vec<_>>().join(", "));
        field.flaw(self.flaws, format!("{} is {name}, and many nodes cannot write to what that has", field.path), next);
        None
    }

    fn endpoint_driver(&mut self, endpoint: &Field<'_>, driver: Option<Field<'_>>) -> Option<DriverName> {
        let configured: Vec<&str> = self.config.drivers.keys().map(DriverName::as_str).collect();
        let Some(field) = driver else {
            // A single driver leaves no doubt.
            if let (1, Some(only)) = (configured.len(), self.config.drivers.keys().next()) {
                return Some(only.clone());
            }
            let next = format!("add 'driver: NAME'; configured: {}", configured.join(", "));
            endpoint.flaw(self.flaws, format!("{} has no driver", endpoint.path), next);
            return None;
        };
        let name: DriverName = field.parsed(self.flaws)?;
        if self.has_driver(&name) {
            return Some(name);
        }
        let drivers = match self.written.get("drivers") {
            Some(at) => format!("'drivers' (line {}) has none of that name", at.line),
            None => "without 'drivers' there is only the built-in local".to_owned(),
        };
        field.flaw(self.flaws, format!("{} is {name}, and {drivers}", field.path), did_you_mean(name.as_str(), &configured));
        None
    }

    /// Pools and the mounts' folder may not lie in each other: a mount would look like an image's folder, a volume named
    /// like another pool would be made inside it, and the daemon would count the one as the other's data.
    fn keep_apart(mut self) {
        let mut folders = vec![("volumes.path".to_owned(), self.config.volumes.path.clone())];
        for (name, driver) in &self.config.drivers {
            if let DriverConfig::Local(local) = driver {
                folders.push((below(&below("drivers", name.as_str()), "pool"), local.pool.clone()));
            }
        }
        // In the file's order, so that the later one is the one at fault; defaults stand nowhere and come first.
        folders.sort_by_key(|(key, _)| self.written.get(key).copied());
        let mut first: BTreeMap<&Path, usize> = BTreeMap::new();
        for (n, (_, path)) in folders.iter().enumerate() {
            first.entry(path).or_insert(n);
        }
        for (n, folder) in folders.iter().enumerate() {
            for around in folder.1.ancestors().filter_map(|above| first.get(above).copied()).filter(|around| *around != n) {
                let Some(other) = folders.get(around) else { continue };
                if other.1 == folder.1 {
                    self.clash(folder, "is the same folder as", other);
                } else if around < n {
                    self.clash(folder, "is inside", other);
                } else {
                    self.clash(other, "is around", folder);
                }
            }
        }
    }

    fn clash(&mut self, (key, path): &(String, PathBuf), relation: &str, (other, other_path): &(String, PathBuf)) {
        let whence = self.written.get(other).map_or_else(|| "by default".to_owned(), |at| format!("line {}", at.line));
        let what = format!("{key} ({}) {relation} {other} ({}, {whence})", path.display(), other_path.display());
        self.flaws.add(self.written.get(key).copied(), key, what, "give each a folder of its own, beside the other");
    }
}
