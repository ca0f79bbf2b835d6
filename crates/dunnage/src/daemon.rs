//! The daemon: everything is built and wired here, served until a signal comes, and left as it is: what is mounted stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunnage_driver::Driver;
use dunnage_driver_ceph::{Access, Ceph};
use dunnage_driver_cephfs::{CephFs, Filesystem};
use dunnage_driver_local::{Limits, Local, Store};
use dunnage_engine::{Boot, Call, Engine, Settings, System, Witness};
use dunnage_frontend_admin::Admin;
use dunnage_frontend_admin::wire::{SOCKET, Status};
use dunnage_frontend_unix::{SocketMode, bind, serve};
use dunnage_host::Host;
use dunnage_host::helpers::{Helpers, Runner};
use dunnage_host::linux::Tools;
use dunnage_host::orphans::{Brood, Orphans};
use dunnage_model::{DriverName, Error, Kind, NodeId, Owner, Result};
use dunnage_witnesses::{ContainerEngine, MesosAgent};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::StartArgs;
use crate::config::{CephConfig, CephfsConfig, Config, DriverConfig, Holders, LocalConfig, Places, Reconcile};
use crate::crash::CrashPoints;
use crate::endpoints::{self, Endpoints, inherited, lock, preempting};
use crate::instance::Instance;
use crate::logging::Log;

/// How long a stop waits for the jobs that run, before it asks them to undo what they did.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a start waits for a driver's store to say that it is fit, and for the helpers of a daemon that was killed.
const OPEN: Duration = Duration::from_secs(2);
/// How often what could not be unmounted is tried again.
const SWEEP: Duration = Duration::from_secs(5);
/// How often it is asked whose container is gone, at least.
const LOOK: Duration = Duration::from_secs(30);

/// Runs in the foreground until it is told to stop.
pub fn run(places: &Places, args: &StartArgs) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(need_root("start"));
    }
    // Names of ours are never open to others by accident.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let config = Config::load(places)?;
    let instance = Instance::claim(places)?;
    let log = Log::begin(args.detached.then_some(args.log_file.as_path()), &args.log_level, args.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    let outcome = runtime.block_on(serve_until_told(places, config, &log));
    if let Err(error) = &outcome {
        tracing::error!("{error}");
    }
    // Work that hangs in the kernel is its helper's; nothing of ours waits for it.
    runtime.shutdown_timeout(Duration::from_millis(100));
    drop(instance);
    outcome
}

/// The line that would work, for who has not the rights.
pub fn need_root(command: &str) -> Error {
    let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("dunnage"));
    Error::new(Kind::Permission, "mounting needs root", format!("run: sudo {} {command}", binary.display()))
}

async fn serve_until_told(places: &Places, config: Config, log: &Log) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, config = %source(&config), "starting");
    for sentence in &config.not_served {
        tracing::warn!("{sentence}");
    }
    for told in &config.told {
        tracing::info!(key = told.key, place = told.place, "{}: {}", told.fate.word(), told.what);
    }
    // Signals are heard from here on: one that comes while we start stops us when we have.
    let failed = |e: std::io::Error| Error::os("cannot listen for signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let inherited = inherited()?;
    let (brood, orphans) = Brood::begin(&places.run_dir.join("helpers"))?;
    let pools = Pools { brood, all: Mutex::default() };
    let helpers = pools.begin()?;
    helpers.prefork(2)?;
    let tools = Tools::find();
    let missing = tools.missing();
    let host = dunnage_host::linux::host(helpers.clone(), tools);
    // Before anything is moved: a service that runs still has its mounts and folders where it left them.
    endpoints::sockets_are_free(&config, places, &inherited)?;
    take_in(&config, &host).await?;
    host.mounts.prepare(&config.volumes.path).await?;
    if !config.volumes.private_namespace {
        reaches_everybody(&config.volumes.path)?;
    }
    let patience = tokio::time::Instant::now() + OPEN;
    let mut orphans = tokio::spawn(all_gone(orphans));
    let system = Arc::new(System);
    let me = Owner { node: node(places)?, boot: system.id()? };
    let (drivers, unavailable) = open_drivers(places, &config, &host, &me, &pools).await;
    let late = tokio::time::timeout_at(patience, &mut orphans).await.is_err();
    if late {
        tracing::warn!("helpers of a daemon that was killed hang still; what they did is looked at when they end");
    }
    let mut degraded: Vec<String> = unavailable.iter().map(|(name, e)| format!("driver {name}: {e}")).collect();
    degraded.extend(missing.iter().map(|(tool, package)| format!("{tool} is missing: install the package {package}")));
    for sentence in &degraded {
        tracing::warn!("degraded: {sentence}");
    }
    let node = me.node.clone();
    let engine = Engine::start(Settings {
        node: me.node,
        boot: me.boot,
        volumes: config.volumes.path.clone(),
        layout: config.volumes.layout,
        ledger: places.run_dir.join("ledger"),
        drivers,
        unavailable,
        preempt: preempting(&config).into(),
        host,
        clock: system.clone(),
        random: system,
        watcher: Arc::new(CrashPoints),
    })
    .await?;

    let mut endpoints = Endpoints::new(places, engine.clone(), inherited);
    endpoints.apply(&config)?;
    let (stop, stopped) = watch::channel(false);
    let status = {
        let (pid, node, config, served) = (std::process::id(), node.to_string(), source(&config), endpoints.served());
        move || Status {
            pid,
            version: version.to_owned(),
            node: node.clone(),
            config: config.clone(),
            endpoints: lock(&served).clone(),
            degraded: degraded.clone(),
        }
    };
    let admin = Arc::new(Admin { engine: engine.clone(), choices: endpoints.choices(), status: Box::new(status) });
    let mode = admin_mode(&config.admin.group)?;
    let mut admin_socket = tokio::spawn(serve(bind(&places.run_dir.join(SOCKET), mode)?, dunnage_frontend_admin::router(admin), stopped));

    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    tracing::info!(node = %node, "serving");
    let settling = {
        let engine = engine.clone();
        tokio::spawn(async move {
            settle(&engine).await;
            if late && orphans.await.is_ok() {
                settle(&engine).await;
            }
        })
    };
    let looking = tokio::spawn(look_for_missing(engine.clone(), config.holders.clone(), helpers.clone()));
    let signs = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.give_signs().await })
    };
    let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);
    let mut heartbeat = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
    let mut sweep = tokio::time::interval(SWEEP);
    let told = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => reload(places, &config, &mut endpoints, log),
            _ = heartbeat.tick(), if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
            _ = sweep.tick() => {
                engine.sweep();
                pools.trim();
            }
            ended = endpoints.ended() => break Err(ended),
            ended = &mut admin_socket => break Err(Error::internal(format!("the admin socket's service ended: {ended:?}"))),
        }
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!(mounted = engine.active().len(), "stopping; what is mounted stays mounted");
    settling.abort();
    looking.abort();
    signs.abort();
    endpoints.stop();
    stop.send_replace(true);
    let call = Call { operation: engine.operation(), patience: DRAIN };
    if !engine.drained(&call).await {
        tracing::warn!("jobs still run: they are asked to undo what they did");
        engine.cancel_all();
        engine.drained(&Call { patience: Duration::from_secs(5), ..call }).await;
    }
    // Answers that are on their way get out.
    let answered = async {
        tokio::join!(endpoints.answered(), async {
            if !admin_socket.is_finished() {
                let _ = admin_socket.await;
            }
        })
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), answered).await;
    told
}

/// All helpers of this daemon. Who keeps something in a helper from one call to the next has a pool of its own.
struct Pools {
    brood: Brood,
    all: Mutex<Vec<Arc<Helpers>>>,
}

impl Pools {
    /// A pool without a helper yet.
    fn begin(&self) -> Result<Arc<Helpers>> {
        Ok(self.has(Helpers::new(PathBuf::from("/proc/self/exe"), self.brood.share()?)))
    }

    /// The same for helpers with a connection each, which takes 33 MB.
    fn begin_large(&self) -> Result<Arc<Helpers>> {
        Ok(self.has(Helpers::new(PathBuf::from("/proc/self/exe"), self.brood.share()?).keeping_one()))
    }

    fn has(&self, pool: Helpers) -> Arc<Helpers> {
        let pool = Arc::new(pool);
        lock(&self.all).push(pool.clone());
        pool
    }

    fn trim(&self) {
        lock(&self.all).iter().for_each(|pool| pool.trim());
    }
}

/// Makes platforms and ledger agree. Those that cannot be asked are asked again, less and less often.
async fn settle(engine: &Engine) {
    let (mut left, mut pause) = (engine.settle().await, SWEEP);
    while !left.is_empty() {
        tokio::time::sleep(pause).await;
        left = engine.settle_these(left).await;
        pause = (2 * pause).min(12 * SWEEP);
    }
}

/// Asks who knows it which holders' containers are gone, for as long as the daemon runs.
async fn look_for_missing(engine: Engine, holders: Holders, runner: Arc<Helpers>) {
    let Holders { reconcile, grace, docker, podman, mesos } = holders;
    if reconcile == Reconcile::Off {
        return;
    }
    let runner = || -> Arc<dyn Runner> { runner.clone() };
    let docker = docker.into_iter().map(|socket| Arc::new(ContainerEngine::docker(socket, runner())) as Arc<dyn Witness>);
    let podman = podman.into_iter().map(|socket| Arc::new(ContainerEngine::podman(socket, runner())) as Arc<dyn Witness>);
    let mesos = mesos.into_iter().map(|folder| Arc::new(MesosAgent::new(folder, runner())) as Arc<dyn Witness>);
    let witnesses: Vec<_> = docker.chain(podman).chain(mesos).collect();
    let mut every = tokio::time::interval((grace / 4).clamp(Duration::from_secs(1), LOOK));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        engine.look_for_missing(&witnesses, grace, reconcile == Reconcile::Act).await;
    }
}

/// Waits for what helpers of dead daemons are in the middle of: it changes what a start has to look at.
async fn all_gone(orphans: Vec<Orphans>) {
    for of_one_daemon in orphans {
        of_one_daemon.gone().await;
    }
}

fn source(config: &Config) -> String {
    config.source.as_ref().map_or("built-in defaults".to_owned(), |path| path.display().to_string())
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot tell the service manager: {e}");
    }
}

/// The configured name of this node, else the machine's own.
fn node(places: &Places) -> Result<NodeId> {
    if let Some(node) = &places.node {
        return Ok(node.clone());
    }
    let path = "/etc/machine-id";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().map_err(|_| {
        Error::invalid("node", format!("{path} has no machine id"), "give the node a name with --node, or run 'systemd-machine-id-setup'")
    })
}

/// Mounts that only we can see are of no use to a container engine (rexray/rexray#548): the folder is to be the same mount
/// as that of the first process, or one of its peers, which hears of what is mounted on ours.
fn reaches_everybody(volumes: &Path) -> Result<()> {
    let peers = |of: &str| -> Result<Option<String>> {
        let path = format!("/proc/{of}/mountinfo");
        let table = std::fs::read_to_string(&path).map_err(|e| Error::os(format!("cannot read {path}"), &e))?;
        Ok(peer_group(&table, volumes))
    };
    if std::process::id() == 1 {
        return Err(Error::invalid(
            "volumes.private_namespace",
            "the daemon is the first process of its own: it cannot see whether its mounts reach the host's, nor who uses them",
            "give its container the host's processes (--pid=host), or set volumes.private_namespace: true",
        ));
    }
    let theirs = peers("1")?;
    if theirs.is_some() && theirs == peers("self")? {
        return Ok(());
    }
    Err(Error::invalid(
        "volumes.private_namespace",
        format!("mounts at {} do not reach the first process' mount namespace: no container engine would see them", volumes.display()),
        "run the daemon in the host's mount namespace (in a container: bind the folder with rshared propagation), or set volumes.private_namespace: true",
    ))
}

/// The peer group of our tmpfs at a path, by a table of mounts (proc_pid_mountinfo(5)).
fn peer_group(table: &str, volumes: &Path) -> Option<String> {
    let ours = volumes.display().to_string().replace(' ', "\\040");
    let is_ours = |line: &&str| line.split(' ').nth(4) == Some(ours.as_str()) && line.contains(" - tmpfs dunnage ");
    let fields = table.lines().rfind(is_ours)?.split(' ').skip(6);
    fields.take_while(|field| *field != "-").find(|field| field.starts_with("shared:")).map(str::to_owned)
}

/// Opens all drivers at once: one whose store hangs delays a start, and ten no more than one.
async fn open_drivers(
    places: &Places,
    config: &Config,
    host: &Host,
    me: &Owner,
    pools: &Pools,
) -> (Vec<Arc<dyn Driver>>, BTreeMap<DriverName, Error>) {
    let opening = config.drivers.iter().map(async |(name, driver)| match driver {
        DriverConfig::Local(local) => {
            let driver = local_driver(name, local, host);
            // Once more: somebody may have killed the helper that was at it.
            let opening = async { if driver.open().await.is_ok() { Ok(()) } else { driver.open().await } };
            match tokio::time::timeout(OPEN, opening).await {
                Ok(Err(e)) => Err((name.clone(), e)),
                Ok(Ok(())) => Ok(Arc::new(driver) as Arc<dyn Driver>),
                Err(_) => {
                    tracing::error!(driver = %name, pool = %local.pool.display(), "the pool's disk does not answer; its volumes wait for it");
                    Ok(Arc::new(driver) as Arc<dyn Driver>)
                }
            }
        }
        // Nothing is asked of a cluster yet: one that does not answer delays nobody.
        other => {
            let large = || pools.begin_large().map(|pool| pool as Arc<dyn Runner>);
            closed_driver(places, name, other, host, me, &large).map_err(|e| (name.clone(), e))
        }
    });
    let mut drivers = Vec::new();
    let mut unavailable = BTreeMap::new();
    for opened in futures_util::future::join_all(opening).await {
        match opened {
            Ok(driver) => drivers.push(driver),
            Err((name, error)) => drop(unavailable.insert(name, error)),
        }
    }
    (drivers, unavailable)
}

/// A driver that has asked nobody anything yet.
pub fn closed_driver(
    places: &Places,
    name: &DriverName,
    config: &DriverConfig,
    host: &Host,
    me: &Owner,
    large: &dyn Fn() -> Result<Arc<dyn Runner>>,
) -> Result<Arc<dyn Driver>> {
    let folder = places.run_dir.join("devices").join(name.as_str());
    Ok(match config.clone() {
        DriverConfig::Local(local) => Arc::new(local_driver(name, &local, host)),
        DriverConfig::Ceph(ceph) => {
            let CephConfig { conf, user, keyring, pool, pools: more, repl, make_pools, named_pools, timeout, silence, attach: way } = ceph;
            let (access, pools) = (Access { conf, user, keyring, timeout }, std::iter::once(pool).chain(more).collect());
            let (name, me) = (name.clone(), me.clone());
            let settings = dunnage_driver_ceph::Settings { name, access, pools, repl, make_pools, named_pools, silence, way, me, folder };
            Arc::new(Ceph::new(settings, host.clone(), large()?, large()?))
        }
        DriverConfig::Cephfs(CephfsConfig { conf, user, keyring, fs, path, repl, timeout }) => {
            let fs = Filesystem { conf, user, keyring, name: fs, path, timeout, folder };
            Arc::new(CephFs::new(name.clone(), fs, repl, me.clone(), host.clone()))
        }
        DriverConfig::Unavailable { kind } => {
            let detail = format!("driver {name} is of type {kind}, which this version does not have");
            return Err(Error::unavailable(detail, "use another driver, or a version that has it"));
        }
    })
}

fn local_driver(name: &DriverName, local: &LocalConfig, host: &Host) -> Local {
    let driver = Local::new(name.clone(), local.pool.clone(), limits(local), host.clone());
    match local.store {
        Store::Images => driver,
        Store::Folders => driver.of_folders(),
    }
}

/// What lies in the folder of mounts and is a volume goes into its pool, before our mounts would hide it.
async fn take_in(config: &Config, host: &Host) -> Result<()> {
    for (name, driver) in &config.drivers {
        let DriverConfig::Local(local @ LocalConfig { vfs: Some(vfs), .. }) = driver else { continue };
        for volume in local_driver(name, local, host).take_in(config.volumes.path.clone(), vfs.clone()).await? {
            tracing::info!(driver = %name, %volume, "REX-Ray's volume was taken into the pool");
        }
    }
    Ok(())
}

fn limits(local: &LocalConfig) -> Limits {
    Limits {
        reserve_permille: local.reserve.per_mille(),
        warn_permille: local.warn.per_mille(),
        overcommit_permille: local.overcommit.map(|share| share.per_mille()),
    }
}

/// Root's socket, or a group's too.
fn admin_mode(group: &str) -> Result<SocketMode> {
    if group == "root" {
        return Ok(SocketMode::Owner);
    }
    let groups = std::fs::read_to_string("/etc/group").map_err(|e| Error::os("cannot read /etc/group", &e))?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    });
    let unknown =
        || Error::invalid("admin.group", format!("there is no group {group:?} in /etc/group"), "make it with groupadd, or name another");
    id.map(SocketMode::Group).ok_or_else(unknown)
}

/// HUP: the log is opened anew and the configuration is read again. Endpoints change at once; what else has changed
/// waits for a restart, and is named. A bad configuration changes nothing.
fn reload(places: &Places, running: &Config, endpoints: &mut Endpoints, log: &Log) {
    if let Err(e) = log.reopen() {
        tracing::error!("{e}");
    }
    let new = match Config::load(places) {
        Ok(new) => new,
        Err(e) => return tracing::error!("the new configuration is bad, the old one stays in force: {e}"),
    };
    let waits = [
        ("admin", new.admin != running.admin),
        ("drivers", new.drivers != running.drivers),
        ("holders", new.holders != running.holders),
        ("volumes.path", new.volumes.path != running.volumes.path),
        ("volumes.private_namespace", new.volumes.private_namespace != running.volumes.private_namespace),
    ];
    for (key, _) in waits.iter().filter(|(_, changed)| *changed) {
        tracing::warn!("{key} has changed: 'dunnage restart' puts it in force (mounts stay)");
    }
    // An endpoint of a driver that does not run yet would answer nonsense.
    let known: Config = Config { docker: new.docker.iter().filter(|e| running.drivers.contains_key(&e.driver)).cloned().collect(), ..new };
    match endpoints.apply(&known) {
        Ok(()) => tracing::info!("the configuration was read again"),
        Err(e) => tracing::error!("not all of the new configuration is in force: {e}"),
    }
}
