//! The daemon: everything is built and wired here, served until a signal comes, and left as it is: what is mounted stays.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use dunnage_driver::Driver;
use dunnage_driver_local::{Limits, Local};
use dunnage_engine::{Boot, Call, Engine, Settings, System};
use dunnage_frontend_admin::wire::{EndpointStatus, SOCKET, Status};
use dunnage_frontend_admin::{Admin, Choice};
use dunnage_frontend_docker::Endpoint;
use dunnage_frontend_unix::{Listening, SocketMode, bind, serve};
use dunnage_host::Host;
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_model::{DriverName, Error, Kind, NodeId, Result};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::StartArgs;
use crate::config::{Config, CreatePolicy, DriverConfig, LocalConfig, Places};
use crate::crash::CrashAt;
use crate::instance::Instance;
use crate::logging::Log;

/// How long a stop waits for the jobs that run, before it asks them to undo what they did.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a start waits for a driver's store to say that it is fit.
const OPEN: Duration = Duration::from_secs(2);
/// How often what could not be unmounted is tried again.
const SWEEP: Duration = Duration::from_secs(5);

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
    // Signals are heard from here on: one that comes while we start stops us when we have.
    let failed = |e: std::io::Error| Error::os("cannot listen for signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let helpers = Arc::new(Helpers::new(PathBuf::from("/proc/self/exe")));
    helpers.prefork(2)?;
    let tools = Tools::find();
    let missing = tools.missing();
    let host = dunnage_host::linux::host(helpers, tools);
    host.mounts.prepare(&config.volumes.path).await?;
    if !config.volumes.private_namespace {
        reaches_everybody(&config.volumes.path)?;
    }
    let (drivers, unavailable) = open_drivers(&config, &host).await;
    let mut degraded: Vec<String> = unavailable.iter().map(|(name, e)| format!("driver {name}: {e}")).collect();
    degraded.extend(missing.iter().map(|(tool, package)| format!("{tool} is missing: install the package {package}")));
    for sentence in &degraded {
        tracing::warn!("degraded: {sentence}");
    }
    let node = node(places)?;
    let system = Arc::new(System);
    let engine = Engine::start(Settings {
        node: node.clone(),
        boot: System.id()?,
        volumes: config.volumes.path.clone(),
        ledger: places.run_dir.join("ledger"),
        drivers,
        unavailable,
        host,
        clock: system.clone(),
        random: system,
        watcher: Arc::new(CrashAt::from_env()),
    })
    .await?;

    let (stop, stopped) = watch::channel(false);
    let mut serving = JoinSet::new();
    let mut inherited = inherited()?;
    let endpoints = endpoints(places, &config);
    for (endpoint, socket) in &endpoints {
        let listening = match inherited.remove(socket) {
            Some(listening) => listening,
            None => bind(socket, SocketMode::Owner).map_err(|e| {
                let next = format!("{} (endpoint {}; --plugin-dir chooses another folder)", e.next, endpoint.name);
                Error { next, ..e }
            })?,
        };
        tracing::info!(endpoint = %endpoint.name, driver = %endpoint.driver, socket = %socket.display(), "listens");
        serving.spawn(serve(listening, dunnage_frontend_docker::router(engine.clone(), endpoint.clone()), stopped.clone()));
    }
    let admin = Arc::new(Admin {
        engine: engine.clone(),
        choices: RwLock::new(endpoints.iter().map(|(endpoint, _)| choice(endpoint)).collect()),
        status: {
            let status = Status {
                pid: std::process::id(),
                version: version.to_owned(),
                node: node.to_string(),
                config: source(&config),
                endpoints: endpoints
                    .iter()
                    .map(|(e, socket)| EndpointStatus {
                        name: e.name.to_string(),
                        driver: e.driver.to_string(),
                        socket: socket.display().to_string(),
                    })
                    .collect(),
                degraded,
            };
            Box::new(move || status.clone())
        },
    });
    let mode = admin_mode(&config.admin.group)?;
    serving.spawn(serve(bind(&places.run_dir.join(SOCKET), mode)?, dunnage_frontend_admin::router(admin.clone()), stopped));

    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    tracing::info!(node = %node, "serving");
    let settling = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.settle().await })
    };
    let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);
    let mut heartbeat = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
    let mut sweep = tokio::time::interval(SWEEP);
    let told = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => reload(places, &config, log),
            _ = heartbeat.tick(), if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
            _ = sweep.tick() => engine.sweep(),
            ended = serving.join_next() => break match ended {
                Some(Ok(Err(e))) => Err(e),
                Some(Err(e)) => Err(Error::internal(format!("a socket's service ended: {e}"))),
                _ => Err(Error::internal("a socket's service ended")),
            },
        }
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; what is mounted stays mounted");
    settling.abort();
    stop.send_replace(true);
    let call = Call { operation: engine.operation(), patience: DRAIN };
    if !engine.drained(&call).await {
        tracing::warn!("jobs still run: they are asked to undo what they did");
        engine.cancel_all();
        engine.drained(&Call { patience: Duration::from_secs(5), ..call }).await;
    }
    // Answers that are on their way get out.
    let answered = async { while serving.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), answered).await;
    told
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

/// Mounts that only we can see are of no use to a container engine (rexray/rexray#548).
fn reaches_everybody(volumes: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/1/mountinfo").map_err(|e| Error::os("cannot read /proc/1/mountinfo", &e))?;
    let ours = volumes.display().to_string().replace(' ', "\\040");
    if table.lines().any(|line| line.split(' ').nth(4) == Some(ours.as_str()) && line.contains(" - tmpfs dunnage ")) {
        return Ok(());
    }
    Err(Error::invalid(
        "volumes.private_namespace",
        format!("mounts at {} do not reach the first process' mount namespace: no container engine would see them", volumes.display()),
        "run the daemon in the host's mount namespace (in a container: bind the folder with rshared propagation), or set volumes.private_namespace: true",
    ))
}

async fn open_drivers(config: &Config, host: &Host) -> (Vec<Arc<dyn Driver>>, BTreeMap<DriverName, Error>) {
    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    let mut unavailable = BTreeMap::new();
    for (name, driver) in &config.drivers {
        match driver {
            DriverConfig::Local(local) => {
                let driver = Local::new(name.clone(), local.pool.clone(), limits(local), host.clone());
                match tokio::time::timeout(OPEN, driver.open()).await {
                    Ok(Err(e)) => drop(unavailable.insert(name.clone(), e)),
                    Ok(Ok(())) => drivers.push(Arc::new(driver)),
                    Err(_) => {
                        tracing::error!(driver = %name, pool = %local.pool.display(), "the pool's disk does not answer; its volumes wait for it");
                        drivers.push(Arc::new(driver));
                    }
                }
            }
            DriverConfig::Unavailable { kind } => {
                let detail = format!("driver {name} is of type {kind}, which this version does not have");
                unavailable.insert(name.clone(), Error::unavailable(detail, "use another driver, or a version that has it"));
            }
        }
    }
    (drivers, unavailable)
}

fn limits(local: &LocalConfig) -> Limits {
    Limits {
        reserve_permille: local.reserve.per_mille(),
        warn_permille: local.warn.per_mille(),
        overcommit_permille: local.overcommit.map(|share| share.per_mille()),
    }
}

fn endpoints(places: &Places, config: &Config) -> Vec<(Endpoint, PathBuf)> {
    let endpoint = |e: &crate::config::DockerEndpoint| {
        let endpoint = Endpoint {
            name: e.name.clone(),
            driver: e.driver.clone(),
            hints: e.hints,
            defaults: e.defaults.clone().over(&config.volumes.defaults),
            creates: config.volumes.create == CreatePolicy::OnMount,
        };
        (endpoint, places.plugin_dir.join(format!("{}.sock", e.name)))
    };
    config.docker.iter().map(endpoint).collect()
}

fn choice(endpoint: &Endpoint) -> Choice {
    let Endpoint { name, driver, hints, defaults, .. } = endpoint.clone();
    Choice { endpoint: name, driver, hints, defaults }
}

/// Sockets that systemd holds for us, by their path.
fn inherited() -> Result<HashMap<PathBuf, Listening>> {
    let mut sockets = HashMap::new();
    let mut fds = listenfd::ListenFd::from_env();
    for index in 0..fds.len() {
        let listener: Option<UnixListener> =
            fds.take_unix_listener(index).map_err(|e| Error::os("cannot use a socket that was handed over", &e))?;
        if let Some(listener) = listener
            && let Some(path) = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned))
        {
            sockets.insert(path, Listening::inherited(listener));
        }
    }
    Ok(sockets)
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

/// HUP: the log is opened anew and the configuration is read again. What cannot change while it is served is said.
fn reload(places: &Places, running: &Config, log: &Log) {
    if let Err(e) = log.reopen() {
        tracing::error!("{e}");
    }
    match Config::load(places) {
        Err(e) => tracing::error!("the new configuration is bad, the old one stays in force: {e}"),
        Ok(new) if new.to_yaml() == running.to_yaml() => tracing::info!("the configuration is unchanged"),
        Ok(_) => tracing::warn!("the configuration has changed and is good: 'dunnage restart' puts it in force (mounts stay)"),
    }
}
