//! The endpoints that are served now, and how they become those of a new configuration.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dunnage_engine::{Engine, Preempting};
use dunnage_frontend_admin::Choice;
use dunnage_frontend_admin::wire::EndpointStatus;
use dunnage_frontend_docker::{Endpoint, SharedEndpoint};
use dunnage_frontend_unix::{Listening, SocketMode, bind, free, serve};
use dunnage_model::{EndpointName, Error, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Adopt, Config, CreatePolicy, DockerEndpoint, Places, RemovePolicy};

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sockets that systemd holds for us, by their path.
pub fn inherited() -> Result<HashMap<PathBuf, Listening>> {
    let mut sockets = HashMap::new();
    let mut fds = listenfd::ListenFd::from_env();
    for index in 0..fds.len() {
        let failed = |e: std::io::Error| Error::os("cannot use a socket that was handed over", &e);
        let listener: Option<UnixListener> = fds.take_unix_listener(index).map_err(failed)?;
        if let Some(listener) = &listener {
            // It is ours, and not our helpers'.
            rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        }
        if let Some(listener) = listener
            && let Some(path) = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned))
        {
            sockets.insert(path, Listening::inherited(listener));
        }
    }
    Ok(sockets)
}

fn of_endpoint(e: Error, name: &EndpointName) -> Error {
    let next = format!("{} (endpoint {name}; --plugin-dir chooses another folder)", e.next);
    Error { next, ..e }
}

fn socket(plugin_dir: &Path, name: &EndpointName) -> PathBuf {
    plugin_dir.join(format!("{name}.sock"))
}

/// Refuses to start where another service answers on one of the endpoints' sockets.
pub fn sockets_are_free(config: &Config, places: &Places, inherited: &HashMap<PathBuf, Listening>) -> Result<()> {
    for endpoint in &config.docker {
        let socket = socket(&places.plugin_dir, &endpoint.name);
        if !inherited.contains_key(&socket) {
            free(&socket).map_err(|e| of_endpoint(e, &endpoint.name))?;
        }
    }
    Ok(())
}

struct Served {
    endpoint: SharedEndpoint,
    stop: watch::Sender<bool>,
}

/// The endpoints that are served now.
pub struct Endpoints {
    plugin_dir: PathBuf,
    engine: Engine,
    inherited: HashMap<PathBuf, Listening>,
    running: BTreeMap<EndpointName, Served>,
    serving: JoinSet<Result<()>>,
    /// Told to end: that its service ends is no surprise.
    ending: usize,
    served: Arc<Mutex<Vec<EndpointStatus>>>,
    choices: Arc<RwLock<Vec<Choice>>>,
}

impl Endpoints {
    /// None yet.
    pub fn new(places: &Places, engine: Engine, inherited: HashMap<PathBuf, Listening>) -> Self {
        Endpoints {
            plugin_dir: places.plugin_dir.clone(),
            engine,
            inherited,
            running: BTreeMap::new(),
            serving: JoinSet::new(),
            ending: 0,
            served: Arc::default(),
            choices: Arc::default(),
        }
    }

    /// For `status`, always as it is now.
    pub fn served(&self) -> Arc<Mutex<Vec<EndpointStatus>>> {
        self.served.clone()
    }

    /// For the command line, always as it is now.
    pub fn choices(&self) -> Arc<RwLock<Vec<Choice>>> {
        self.choices.clone()
    }

    /// Makes what is served what the configuration says: those that stay change in place, without a moment unserved.
    pub fn apply(&mut self, config: &Config) -> Result<()> {
        self.running.retain(|name, served| {
            let stays = config.docker.iter().any(|endpoint| endpoint.name == *name);
            if !stays {
                tracing::info!(endpoint = %name, "is not served any more");
                self.ending += 1;
                served.stop.send_replace(true);
            }
            stays
        });
        self.engine.preempt(preempting(config));
        for configured in &config.docker {
            let endpoint = endpoint(configured, config);
            match self.running.get(&endpoint.name) {
                Some(served) => *served.endpoint.write().unwrap_or_else(PoisonError::into_inner) = endpoint,
                None => self.begin(endpoint)?,
            }
        }
        let statuses = |e: &DockerEndpoint| EndpointStatus {
            name: e.name.to_string(),
            driver: e.driver.to_string(),
            socket: self.socket(&e.name).display().to_string(),
        };
        *lock(&self.served) = config.docker.iter().map(statuses).collect();
        let choices = config.docker.iter().flat_map(|e| choices(endpoint(e, config))).collect();
        *self.choices.write().unwrap_or_else(PoisonError::into_inner) = choices;
        Ok(())
    }

    fn socket(&self, name: &EndpointName) -> PathBuf {
        socket(&self.plugin_dir, name)
    }

    fn begin(&mut self, endpoint: Endpoint) -> Result<()> {
        let socket = self.socket(&endpoint.name);
        let listening = match self.inherited.remove(&socket) {
            Some(listening) => listening,
            None => bind(&socket, SocketMode::Owner).map_err(|e| of_endpoint(e, &endpoint.name))?,
        };
        tracing::info!(endpoint = %endpoint.name, driver = %endpoint.driver, socket = %socket.display(), "listens");
        let (stop, stopped) = watch::channel(false);
        let name = endpoint.name.clone();
        let endpoint = Arc::new(RwLock::new(endpoint));
        self.serving.spawn(serve(listening, dunnage_frontend_docker::router(self.engine.clone(), endpoint.clone()), stopped));
        self.running.insert(name, Served { endpoint, stop });
        Ok(())
    }

    /// Waits until a service ends that was not told to.
    pub async fn ended(&mut self) -> Error {
        loop {
            match self.serving.join_next().await {
                Some(Ok(Ok(()))) if self.ending > 0 => self.ending -= 1,
                Some(Ok(Err(e))) => return e,
                Some(other) => return Error::internal(format!("an endpoint's service ended: {other:?}")),
                // No endpoint is configured: nothing will ever end.
                None => std::future::pending().await,
            }
        }
    }

    /// Takes no more requests.
    pub fn stop(&mut self) {
        for served in self.running.values() {
            served.stop.send_replace(true);
        }
    }

    /// Waits until all answers are out.
    pub async fn answered(&mut self) {
        while self.serving.join_next().await.is_some() {}
    }
}

fn endpoint(e: &DockerEndpoint, config: &Config) -> Endpoint {
    Endpoint {
        name: e.name.clone(),
        driver: e.driver.clone(),
        shared: e.shared.clone(),
        hints: e.hints,
        defaults: e.defaults.clone().over(&config.volumes.defaults),
        creates: e.create == CreatePolicy::OnMount,
        removes: e.remove == RemovePolicy::Allow,
        adopts: config.volumes.adopt == Adopt::WhenNamed,
    }
}

/// Whose volumes are taken from other nodes.
pub fn preempting(config: &Config) -> Preempting {
    let endpoints = config.docker.iter().map(|endpoint| (endpoint.name.clone(), endpoint.preempt)).collect();
    Preempting { usual: config.volumes.preempt, endpoints }
}

fn choices(endpoint: Endpoint) -> impl Iterator<Item = Choice> {
    let Endpoint { name, driver, shared, hints, defaults, .. } = endpoint;
    let choice = move |driver| Choice { endpoint: name.clone(), driver, hints, defaults: defaults.clone() };
    std::iter::once(driver).chain(shared).map(choice)
}
