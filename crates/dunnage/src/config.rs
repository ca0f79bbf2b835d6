//! The configuration: strict YAML in, typed values out.
//!
//! A file may leave out any key, and may hold no key that is not known: a slip of the hand is an error with its place
//! (FILE:LINE:COLUMN) and the nearest right word, and all of a file's errors are told at once. `tree` turns the text into
//! nodes that know where they stand, `flaws` collects what is wrong, `fields` reads single values and notices keys that
//! nobody asked for, `build` makes the [`Config`] and checks it as a whole, and `show` tells it to people.

mod build;
mod fields;
mod flaws;
mod options;
pub mod rexray;
mod share;
mod show;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunnage_driver_ceph::Way;
use dunnage_driver_local::Store;
use dunnage_engine::Layout;
use dunnage_model::{Bytes, DriverName, EndpointName, Error, FsKind, HintPolicy, NodeId, PartialSpec, Preempt, Result};

pub use share::Share;
pub use show::check_report;

/// Where the configuration is looked for when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dunnage/config.yml";

/// The largest file that is read: far above any that a person writes, far below what would hurt.
const MAX_FILE: usize = 1 << 20;

/// Where things live, as the command line and the environment have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `--config`/`DUNNAGE_CONFIG`: this file and no other.
    pub config: Option<PathBuf>,
    /// `--state-dir`/`DUNNAGE_STATE_DIR`: what survives a reboot.
    pub state_dir: PathBuf,
    /// `--run-dir`/`DUNNAGE_RUN_DIR`: what dies with the boot.
    pub run_dir: PathBuf,
    /// `--plugin-dir`/`DUNNAGE_PLUGIN_DIR`: where Docker looks for plugin sockets.
    pub plugin_dir: PathBuf,
    /// `--node`/`DUNNAGE_NODE`; the machine id when absent.
    pub node: Option<NodeId>,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            config: None,
            state_dir: "/var/lib/dunnage".into(),
            run_dir: "/run/dunnage".into(),
            plugin_dir: "/run/docker/plugins".into(),
            node: None,
        }
    }
}

/// The whole configuration, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from; `None` when it is the built-in one.
    pub source: Option<PathBuf>,
    /// The admin socket.
    pub admin: Admin,
    /// What holds for all volumes.
    pub volumes: Volumes,
    /// What happens to holders whose container is gone.
    pub holders: Holders,
    /// The drivers by name.
    pub drivers: BTreeMap<DriverName, DriverConfig>,
    /// The endpoints of the Docker volume plugin API, in the file's order.
    pub docker: Vec<DockerEndpoint>,
    /// A REX-Ray configuration's keys, and what became of each; nothing of one of our own.
    pub told: Vec<rexray::Told>,
    /// What the file asks for and this version accepts without acting on it: sentences for people, each of which begins
    /// with the key.
    pub not_served: Vec<String>,
    /// The same as it was written (key path to YAML), so that [`Config::to_yaml`] leaves nothing out. A driver that this
    /// build does not have and an encryption key are not here: they may hold secrets.
    pub as_written: BTreeMap<String, String>,
}

/// The admin socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The group, by name or number, that may use it beside root.
    pub group: String,
}

/// What holds for all volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volumes {
    /// Where mounts appear.
    pub path: PathBuf,
    /// How they lie there.
    pub layout: Layout,
    /// Whether a volume that another node has is taken from it.
    pub preempt: Preempt,
    /// Who may make volumes.
    pub create: CreatePolicy,
    /// What becomes of a volume that is there and was not made by us.
    pub adopt: Adopt,
    /// What happens to hints that a driver cannot follow, where the endpoint says nothing.
    pub hints: HintPolicy,
    /// The daemon may serve though its mounts do not reach PID 1's mount namespace: for tests and
    /// for containers whose parent is shared.
    pub private_namespace: bool,
    /// What a new volume gets where neither the call nor the endpoint says anything; size and filesystem are always set.
    pub defaults: PartialSpec,
}

/// Holders whose container is gone: who is asked, and what happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// What happens to them.
    pub reconcile: Reconcile,
    /// For how long they must have been gone before anything does.
    pub grace: Duration,
    /// Sockets of Docker Engines.
    pub docker: Vec<PathBuf>,
    /// Sockets of Podmans that serve Docker's API.
    pub podman: Vec<PathBuf>,
    /// Checkpoint folders of Mesos agents.
    pub mesos: Vec<PathBuf>,
}

impl Default for Holders {
    fn default() -> Self {
        Holders {
            reconcile: Reconcile::default(),
            grace: Duration::from_secs(600),
            docker: vec!["/var/run/docker.sock".into()],
            podman: vec!["/run/podman/podman.sock".into()],
            mesos: Vec::new(),
        }
    }
}

impl Holders {
    /// Who is asked, by key.
    fn asked(&self) -> [(&'static str, &Vec<PathBuf>); 3] {
        [("docker", &self.docker), ("podman", &self.podman), ("mesos", &self.mesos)]
    }
}

/// What happens to holders whose container is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reconcile {
    /// Nobody is asked.
    Off,
    /// They are shown.
    #[default]
    Report,
    /// They are let go of.
    Act,
}

impl Reconcile {
    const WORDS: &'static [(&'static str, Reconcile)] = &[("off", Reconcile::Off), ("report", Reconcile::Report), ("act", Reconcile::Act)];
}

impl fmt::Display for Reconcile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(*self, Self::WORDS))
    }
}

/// Who may make volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CreatePolicy {
    /// A mount by dvdcli or Mesos makes what is missing.
    #[default]
    OnMount,
    /// Only `dunnage volume create` does.
    Explicit,
}

impl CreatePolicy {
    const WORDS: &'static [(&'static str, CreatePolicy)] = &[("on-mount", CreatePolicy::OnMount), ("explicit", CreatePolicy::Explicit)];
}

impl fmt::Display for CreatePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(*self, Self::WORDS))
    }
}

/// What becomes of a volume that is on the platform and was not made by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adopt {
    /// It is not seen before somebody says `volume adopt`.
    #[default]
    Explicit,
    /// It is adopted by the endpoint at which it is first asked for by name.
    WhenNamed,
}

impl Adopt {
    const WORDS: &'static [(&'static str, Adopt)] = &[("explicit", Adopt::Explicit), ("when-named", Adopt::WhenNamed)];
}

impl fmt::Display for Adopt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(*self, Self::WORDS))
    }
}

/// Who may remove volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RemovePolicy {
    /// Whoever uses the endpoint.
    #[default]
    Allow,
    /// Only `dunnage volume rm` does.
    Refuse,
}

impl RemovePolicy {
    const WORDS: &'static [(&'static str, RemovePolicy)] = &[("allow", RemovePolicy::Allow), ("refuse", RemovePolicy::Refuse)];
}

impl fmt::Display for RemovePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(*self, Self::WORDS))
    }
}

/// [`Store`]'s words; the type is the driver's.
const STORE_WORDS: &[(&str, Store)] = &[("images", Store::Images), ("folders", Store::Folders)];

/// [`Way`]'s words; the type is the driver's.
const WAY_WORDS: &[(&str, Way)] = &[("auto", Way::Auto), ("kernel", Way::Kernel), ("nbd", Way::Nbd), ("process", Way::Process)];

/// [`Layout`]'s words; the type is the engine's.
const LAYOUT_WORDS: &[(&str, Layout)] = &[("by-driver", Layout::ByDriver), ("flat", Layout::Flat)];

/// [`HintPolicy`]'s words; the type is the model's.
const HINT_WORDS: &[(&str, HintPolicy)] = &[("refuse", HintPolicy::Refuse), ("warn", HintPolicy::Warn)];

/// The word that stands for `value` in the file; every value has one.
fn word_of<T: PartialEq>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word)
}

/// One configured driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverConfig {
    /// Image files in a pool on this node's disk.
    Local(LocalConfig),
    /// Images of Ceph's RBD.
    Ceph(CephConfig),
    /// Folders of CephFS.
    Cephfs(CephfsConfig),
    /// A type that is known, and not in this build: its endpoints answer `platform_unavailable` by name.
    Unavailable {
        /// The type, such as `ceph`.
        kind: String,
    },
}

/// A driver of type `local`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Where the volumes are: `POOL/NAME/{record.json,image}`.
    pub pool: PathBuf,
    /// What they are.
    pub store: Store,
    /// REX-Ray's `vfs`, whose volumes are taken into the pool at start; they are folders.
    pub vfs: Option<PathBuf>,
    /// How much of the pool's filesystem is left free, whatever is asked.
    pub reserve: Share,
    /// How full the pool may be before that is said.
    pub warn: Share,
    /// How much all volumes together may be promised, as a share of the pool; `None` (`none` in the file): anything.
    pub overcommit: Option<Share>,
}

impl LocalConfig {
    /// What a driver of that name has when the file says nothing.
    fn builtin(name: &str, places: &Places) -> Self {
        let pool = places.state_dir.join("pool").join(name);
        LocalConfig { pool, store: Store::default(), vfs: None, reserve: Share::percent(5), warn: Share::percent(85), overcommit: None }
    }
}

/// A driver of type `ceph`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephConfig {
    /// The cluster's own configuration.
    pub conf: PathBuf,
    /// The user, without `client.` before it.
    pub user: String,
    /// Its key, where it is not where `conf` says.
    pub keyring: Option<PathBuf>,
    /// The pool that has the records of all volumes, and the images of those that ask for no other.
    pub pool: String,
    /// Others, which are chosen by how many copies they keep.
    pub pools: Vec<String>,
    /// How many copies a new volume asks for where its caller does not say.
    pub repl: Option<u32>,
    /// A pool is made for a number of copies that none keeps.
    pub make_pools: bool,
    /// A new volume `POOL.IMAGE` is that image in that pool.
    pub named_pools: bool,
    /// How long the cluster may take for one answer.
    pub timeout: Duration,
    /// How long no sign of life of another node may be seen before it is silent.
    pub silence: Duration,
    /// By what images are attached.
    pub attach: Way,
}

impl Default for CephConfig {
    fn default() -> Self {
        CephConfig {
            conf: "/etc/ceph/ceph.conf".into(),
            user: "dunnage".to_owned(),
            keyring: None,
            pool: "rbd".to_owned(),
            pools: Vec::new(),
            repl: None,
            make_pools: false,
            named_pools: false,
            timeout: Duration::from_secs(10),
            silence: dunnage_driver::SILENCE,
            attach: Way::default(),
        }
    }
}

/// A driver of type `cephfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephfsConfig {
    /// The cluster's own configuration.
    pub conf: PathBuf,
    /// The user, without `client.` before it.
    pub user: String,
    /// Its key, where it is not where `conf` says.
    pub keyring: Option<PathBuf>,
    /// The filesystem's name; the cluster's first when absent.
    pub fs: Option<String>,
    /// The folder of it beneath which everything is.
    pub path: PathBuf,
    /// How many copies the filesystem's pool keeps, as the operator says: what `repl` may ask for.
    pub repl: Option<u32>,
    /// How long the cluster may take to let the node in.
    pub timeout: Duration,
}

impl Default for CephfsConfig {
    fn default() -> Self {
        let CephConfig { conf, user, keyring, timeout, .. } = CephConfig::default();
        CephfsConfig { conf, user, keyring, fs: None, path: "/".into(), repl: None, timeout }
    }
}

/// One endpoint of the Docker volume plugin API: one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerEndpoint {
    /// What Docker calls the driver.
    pub name: EndpointName,
    /// The driver behind it; it is configured.
    pub driver: DriverName,
    /// The driver of volumes that are made with `shared=true`, of type `cephfs`; none, where the first is all.
    pub shared: Option<DriverName>,
    /// What happens to hints that the driver cannot follow.
    pub hints: HintPolicy,
    /// What the endpoint itself says; [`Volumes::defaults`] lie below it.
    pub defaults: PartialSpec,
    /// Who may make volumes here.
    pub create: CreatePolicy,
    /// Who may remove them.
    pub remove: RemovePolicy,
    /// Whether a volume that another node has is taken from it.
    pub preempt: Preempt,
}

impl Config {
    /// What holds without any file: driver `local`, endpoint `dunnage`.
    pub fn builtin(places: &Places) -> Config {
        let mut config = Config {
            source: None,
            admin: Admin { group: "root".into() },
            volumes: Volumes {
                path: places.state_dir.join("volumes"),
                layout: Layout::default(),
                preempt: Preempt::default(),
                create: CreatePolicy::default(),
                adopt: Adopt::default(),
                hints: HintPolicy::default(),
                private_namespace: false,
                defaults: PartialSpec { size: Some(Bytes::gib(16)), fs: Some(FsKind::Ext4), ..PartialSpec::default() },
            },
            holders: Holders::default(),
            drivers: BTreeMap::new(),
            docker: Vec::new(),
            told: Vec::new(),
            not_served: Vec::new(),
            as_written: BTreeMap::new(),
        };
        // Both are valid names; the types have no way to be made without a check.
        if let (Ok(local), Ok(dunnage)) = ("local".parse::<DriverName>(), "dunnage".parse::<EndpointName>()) {
            config.drivers.insert(local.clone(), DriverConfig::Local(LocalConfig::builtin("local", places)));
            config.docker.push(DockerEndpoint {
                name: dunnage,
                driver: local,
                shared: None,
                hints: HintPolicy::default(),
                defaults: PartialSpec::default(),
                create: CreatePolicy::default(),
                remove: RemovePolicy::default(),
                preempt: Preempt::default(),
            });
        }
        config
    }

    /// Reads the file that `places` names, or [`DEFAULT_FILE`] if that exists, or REX-Ray's if one exists, or takes
    /// [`Config::builtin`].
    ///
    /// Errors: `not_found` when the named file is missing; `invalid_argument` with the first wrong key, and all that is
    /// wrong in the text, when the file is not good; what the system said when it cannot be read.
    pub fn load(places: &Places) -> Result<Config> {
        Self::load_or(places, Path::new(DEFAULT_FILE), &|name| std::env::var(name).ok())
    }

    /// [`Config::load`] with another default file and environment, so that a test need not touch those of the machine.
    fn load_or(places: &Places, default: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Config> {
        for (flag, dir) in [("state-dir", &places.state_dir), ("run-dir", &places.run_dir), ("plugin-dir", &places.plugin_dir)] {
            if !dir.is_absolute() {
                let next = format!("give --{flag} a path that begins with '/'");
                return Err(Error::invalid(flag, format!("{} is not an absolute path", dir.display()), next));
            }
        }
        // A link that leads nowhere is somebody's mistake, not the absence of a configuration.
        let there = |file: &PathBuf| !std::fs::symlink_metadata(file).is_err_and(|e| e.kind() == ErrorKind::NotFound);
        let home = rexray::Home::of(environment);
        let file = places.config.clone().or_else(|| std::iter::once(default.to_owned()).chain(home.files()).find(there));
        let Some(file) = file else { return Ok(Self::builtin(places)) };
        let variables = variables(&home.variables())?;
        let environment = |name: &str| environment(name).or_else(|| variables.get(name).cloned());
        let bytes = read_file(&file)?;
        let mut config = build::from_bytes(&bytes, &file, places, &environment)?;
        config.source = Some(file);
        Ok(config)
    }
}

/// The variables in a file of `KEY=VALUE` lines, as systemd reads them; none if there is no such file.
fn variables(file: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = match read_file(file) {
        Err(e) if e.word() == "not_found" => return Ok(BTreeMap::new()),
        bytes => bytes?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let bare = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    Ok(lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.trim().to_owned(), bare(value))).collect())
}

/// Reads a file of at most [`MAX_FILE`] bytes; a pipe will do too.
fn read_file(file: &Path) -> Result<Vec<u8>> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|open| open.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() > MAX_FILE => Err(Error::invalid(
            "config",
            format!("{shown} has more than {MAX_FILE} bytes, and is hardly a configuration"),
            "look at what --config or DUNNAGE_CONFIG names",
        )),
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::not_found(
            format!("there is no configuration file {shown}"),
            "name one that exists with --config or DUNNAGE_CONFIG, or name none to run with the defaults",
        )),
        Err(error) if error.kind() == ErrorKind::IsADirectory => {
            Err(Error::invalid("config", format!("{shown} is a folder"), format!("name a file, such as {shown}/config.yml")))
        }
        Err(error) => Err(Error::os(format!("cannot read the configuration file {shown}"), &error)),
    }
}
