//! The daemon's end of the admin socket.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use dunnage_engine::{AdoptRequest, AttachedTo, Call, CreateRequest, Engine};
use dunnage_frontend_unix::{Connection, read_json, status};
use dunnage_model::{
    AdoptAction, Caller, CallerKind, DriverName, EndpointName, Error, HintPolicy, Holder, HolderKey, Kind, PartialSpec, Result, VolumeId,
    VolumeName, parse_options,
};
use serde::{Deserialize, Serialize};

use crate::wire::{
    AdoptBody, Adopted, Attached, CreateBody, Created, FenceBody, Mounted, Nodes, PATIENCE, ReleaseBody, Released, Removed, ResizeBody,
    Resized, Status, Strangers, Unmounted, Volumes,
};

/// How long a caller waits that does not say.
const USUAL: Duration = Duration::from_secs(110);
/// The longest that a caller may say.
const LONGEST: Duration = Duration::from_secs(3600);
/// What holders at the command line are listed under.
const ENDPOINT: &str = "admin";

/// What the command line may choose from, in the configuration's order.
#[derive(Debug, Clone)]
pub struct Choice {
    /// An endpoint.
    pub endpoint: EndpointName,
    /// Its driver.
    pub driver: DriverName,
    /// What happens to hints.
    pub hints: HintPolicy,
    /// Its defaults.
    pub defaults: PartialSpec,
}

/// What the admin socket needs to know besides the engine.
pub struct Admin {
    /// The engine.
    pub engine: Engine,
    /// The endpoints.
    pub choices: Arc<RwLock<Vec<Choice>>>,
    /// The daemon about itself.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
}

impl Admin {
    fn choices(&self) -> Vec<Choice> {
        self.choices.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// The API.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(admin): Shared| async move { reply(Ok((admin.status)())) }))
        .route("/v1/volumes", get(list).post(create))
        .route("/v1/volumes/{name}", get(inspect).delete(remove))
        .route("/v1/volumes/{name}/mount", post(mount))
        .route("/v1/volumes/{name}/unmount", post(unmount))
        .route("/v1/volumes/{name}/attach", post(attach))
        .route("/v1/volumes/{name}/detach", post(detach))
        .route("/v1/volumes/{name}/release", post(release_holder))
        .route("/v1/volumes/{name}/resize", post(resize))
        .route("/v1/volumes/{name}/adopt", post(adopt))
        .route("/v1/strangers", get(strangers))
        .route("/v1/holders", get(|State(admin): Shared| async move { reply(Ok(admin.engine.held())) }))
        .route("/v1/drivers", get(|State(admin): Shared| async move { reply(Ok(admin.engine.drivers().await)) }))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}/fence", post(fence))
        .route("/v1/nodes/{name}/unfence", post(unfence))
        .route("/v1/release", post(release))
        .fallback(|request: Request<Body>| async move {
            let detail = format!("there is no call {} {}", request.method(), request.uri().path());
            reply::<()>(Err(Error::not_found(detail, "use a command line of the daemon's version")))
        })
        .with_state(admin)
}

type Shared = State<Arc<Admin>>;

fn reply<T: Serialize>(outcome: Result<T>) -> Response {
    let written = |value: serde_json::Result<String>| value.unwrap_or_else(|e| format!("\"an answer that cannot be written: {e}\""));
    let (code, body) = match outcome {
        Ok(value) => (200, written(serde_json::to_string(&value))),
        Err(error) => (status(&error), written(serde_json::to_string(&error))),
    };
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[derive(Debug, Deserialize)]
struct Which {
    driver: Option<String>,
}

impl Admin {
    fn call(&self, headers: &HeaderMap, what: &str, name: &str) -> Call {
        let seconds = headers.get(PATIENCE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<f64>().ok());
        let patience = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(USUAL).min(LONGEST);
        let operation = self.engine.operation();
        tracing::info!(%operation, endpoint = ENDPOINT, call = what, volume = name, "asked");
        Call { operation, patience }
    }

    /// Which volume is meant: of the named driver, or of the only one that has the name.
    async fn meant(&self, name: &str, which: &Which) -> Result<VolumeId> {
        let name: VolumeName = name.parse()?;
        if let Some(driver) = &which.driver {
            return Ok(VolumeId { driver: driver.parse()?, name });
        }
        let mut found = self.engine.find(&name).await?;
        match (found.pop(), found.pop()) {
            (None, _) => Err(Error::no_volume(&name)),
            (Some(volume), None) => Ok(volume),
            (Some(a), Some(b)) => {
                let detail = format!("drivers {} and {} both have a volume of that name", b.driver, a.driver);
                Err(Error::invalid("driver", detail, format!("say which with --driver, for example --driver {}", b.driver)).of(&name))
            }
        }
    }

    /// The same, for what must work whether the volume is there or not.
    async fn meant_or_only(&self, name: &str, which: &Which) -> Result<VolumeId> {
        match self.meant(name, which).await {
            Err(e) if e.word() == "not_found" => {
                let name: VolumeName = name.parse()?;
                let choice = self.choices().into_iter().next().ok_or(e)?;
                Ok(VolumeId { driver: choice.driver, name })
            }
            other => other,
        }
    }

    fn choose(&self, driver: Option<&str>, endpoint: Option<&str>) -> Result<Choice> {
        let choices = self.choices();
        let fits = |c: &&Choice| driver.is_none_or(|d| d == c.driver.as_str()) && endpoint.is_none_or(|e| e == c.endpoint.as_str());
        choices.iter().find(fits).cloned().ok_or_else(|| {
            let known: Vec<String> = choices.iter().map(|c| format!("{} (driver {})", c.endpoint, c.driver)).collect();
            let asked = endpoint.or(driver).unwrap_or_default();
            Error::not_found(format!("no endpoint fits {asked:?}"), format!("there are: {}", known.join(", ")))
        })
    }

    /// The driver that has something of this name, ours or not; none if none has.
    async fn who_has(&self, call: &Call, name: &VolumeName) -> Result<Option<String>> {
        let mut having = BTreeSet::new();
        for driver in self.engine.driver_names() {
            // One that cannot be asked is not chosen; the one that is chosen says what is wrong.
            let strangers = self.engine.strangers(call, &driver).await.unwrap_or_default();
            let volume = VolumeId { driver: driver.clone(), name: name.clone() };
            if strangers.iter().any(|stranger| stranger.name == *name) || self.engine.get(&volume).await.is_ok() {
                having.insert(driver.to_string());
            }
        }
        if having.len() > 1 {
            let all: Vec<String> = having.into_iter().collect();
            let detail = format!("drivers {} have something of that name", all.join(" and "));
            return Err(Error::invalid("driver", detail, format!("say which with --driver, for example --driver {}", all[0])).of(name));
        }
        Ok(having.pop_first())
    }

    /// The holder of this ID, or else the only one whose ID begins so; without an ID, the only one.
    fn one_holder(&self, volume: &VolumeId, id: Option<&str>) -> Result<Holder> {
        let held = self.engine.held().into_iter().find(|held| held.volume == *volume).map(|held| held.holders).unwrap_or_default();
        let fits = |holder: &&Holder| id.is_none_or(|id| holder.key.caller.has_id(id));
        let mut fitting: Vec<&Holder> = held.iter().filter(fits).collect();
        // A container of Mesos is found beside those within it, whose IDs begin with its own.
        let is_it = |holder: &&&Holder| id.is_some() && holder.key.caller.id.as_deref().map(Caller::bare) == id.map(Caller::bare);
        if let Some(holder) = fitting.iter().find(is_it) {
            return Ok((*holder).clone());
        }
        match (fitting.pop(), fitting.is_empty()) {
            (Some(holder), true) => Ok(holder.clone()),
            (Some(_), false) => {
                let all: Vec<String> = held.iter().map(ToString::to_string).collect();
                let detail = format!("{} holders fit: {}", fitting.len() + 1, all.join("; "));
                Err(Error::invalid("id", detail, "say which with --id and the beginning of its ID").of(&volume.name))
            }
            (None, _) => {
                let detail = id.map_or("nobody holds it".to_owned(), |id| format!("no holder's ID begins with {id:?}"));
                Err(Error::not_found(detail, "look at 'dunnage holder ls'").of(&volume.name))
            }
        }
    }

    fn holder(&self, kind: CallerKind) -> Result<HolderKey> {
        Ok(HolderKey { endpoint: ENDPOINT.parse()?, caller: Caller { kind, id: None } })
    }
}

async fn list(State(admin): Shared, Query(which): Query<Which>) -> Response {
    let work = async {
        let mut all = Volumes { volumes: Vec::new(), notes: Vec::new() };
        let asked: Option<DriverName> = which.driver.as_deref().map(str::parse).transpose()?;
        for driver in admin.engine.driver_names() {
            if asked.as_ref().is_some_and(|asked| *asked != driver) {
                continue;
            }
            match admin.engine.list(&driver, None).await {
                Ok(mut volumes) => all.volumes.append(&mut volumes),
                Err(e) => all.notes.push(e.to_string()),
            }
        }
        Ok(all)
    };
    reply(work.await)
}

async fn inspect(State(admin): Shared, Path(name): Path<String>, Query(which): Query<Which>) -> Response {
    let work = async { admin.engine.inspect(&admin.meant(&name, &which).await?).await };
    reply(work.await)
}

async fn create(
    State(admin): Shared,
    ConnectInfo(connection): ConnectInfo<Connection>,
    headers: HeaderMap,
    request: Request<Body>,
) -> Response {
    let work = async {
        let body: CreateBody = read_json(request).await?;
        if body.image.is_some() && connection.caller_uid()? != 0 {
            // The daemon would read for a member of the admin group what only root may.
            return Err(Error::new(Kind::Permission, "only root may import an image: it is read as root", "use sudo"));
        }
        let call = admin.call(&headers, "create", &body.name);
        let choice = admin.choose(body.driver.as_deref(), body.endpoint.as_deref())?;
        let volume = VolumeId { driver: choice.driver, name: body.name.parse()? };
        let options = body.options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let parsed = parse_options(options, choice.hints, volume.driver.as_str()).map_err(|e| e.of(&volume.name))?;
        let Choice { endpoint, hints, defaults, .. } = choice;
        let request = CreateRequest { volume, endpoint, asked: parsed.spec, defaults, hints, source: body.image };
        let name = request.volume.name.clone();
        let (action, volume) = admin.engine.create(&call, request).await?;
        let volume = volume
            .ok_or_else(|| Error::not_found(format!("it was {action}, and removed by somebody since"), "create it again").of(&name))?;
        Ok(Created { action, volume, unheeded: parsed.unheeded })
    };
    reply(work.await)
}

async fn resize(
    State(admin): Shared,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    request: Request<Body>,
) -> Response {
    let work = async {
        let body: ResizeBody = read_json(request).await?;
        let call = admin.call(&headers, "resize", &name);
        let volume = admin.meant(&name, &which).await?;
        let size = body.size.parse().map_err(|e: Error| e.of(&volume.name))?;
        let action = admin.engine.resize(&call, &volume, size).await?;
        Ok(Resized { action, volume: admin.engine.get(&volume).await?.info })
    };
    reply(work.await)
}

async fn strangers(State(admin): Shared, headers: HeaderMap, Query(which): Query<Which>) -> Response {
    let work = async {
        let call = admin.call(&headers, "strangers", "*");
        let mut all = Strangers { strangers: Vec::new(), notes: Vec::new() };
        let asked: Option<DriverName> = which.driver.as_deref().map(str::parse).transpose()?;
        for driver in admin.engine.driver_names() {
            if asked.as_ref().is_some_and(|asked| *asked != driver) {
                continue;
            }
            match admin.engine.strangers(&call, &driver).await {
                Ok(found) => all.strangers.extend(found.into_iter().map(|stranger| (driver.clone(), stranger))),
                Err(e) => all.notes.push(e.to_string()),
            }
        }
        Ok(all)
    };
    reply(work.await)
}

async fn adopt(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>, request: Request<Body>) -> Response {
    let work = async {
        let body: AdoptBody = read_json(request).await?;
        let call = admin.call(&headers, "adopt", &name);
        let named: VolumeName = name.parse()?;
        let driver = match (&body.driver, &body.endpoint) {
            (None, None) => admin.who_has(&call, &named).await?,
            (driver, _) => driver.clone(),
        };
        let mut choice = admin.choose(driver.as_deref(), body.endpoint.as_deref())?;
        let volume = VolumeId { driver: choice.driver.clone(), name: named };
        if let (None, Ok(view)) = (&body.endpoint, admin.engine.get(&volume).await) {
            // One of ours goes to another endpoint only where that is named.
            choice.endpoint = view.info.endpoint.clone();
        }
        let root_path = body.root_path.as_deref().map(str::parse).transpose()?;
        let request = AdoptRequest { endpoint: choice.endpoint.clone(), root_path, moves: true, overwrite: body.overwrite };
        let size = match body.overwrite {
            true => admin.engine.strangers(&call, &volume.driver).await?.into_iter().find(|stranger| stranger.name == volume.name),
            false => None,
        };
        let mut action = admin.engine.adopt(&call, &volume, request).await?;
        if action == AdoptAction::Discarded {
            // An empty one in its place, of its size.
            let asked = PartialSpec { size: size.map(|stranger| stranger.size), ..PartialSpec::default() };
            let Choice { endpoint, hints, defaults, .. } = choice;
            let request = CreateRequest { volume: volume.clone(), endpoint, asked, defaults, hints, source: None };
            admin.engine.create(&call, request).await?;
            action = AdoptAction::Discarded;
        }
        let view = admin.engine.get(&volume).await?;
        Ok(Adopted { action, volume: view.info })
    };
    reply(work.await)
}

async fn remove(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>, Query(which): Query<Which>) -> Response {
    let work = async {
        let call = admin.call(&headers, "remove", &name);
        let volume = admin.meant(&name, &which).await?;
        Ok(Removed { action: admin.engine.remove(&call, &volume).await? })
    };
    reply(work.await)
}

async fn mount(
    State(admin): Shared,
    ConnectInfo(connection): ConnectInfo<Connection>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Response {
    let work = async {
        let call = admin.call(&headers, "mount", &name);
        let volume = admin.meant(&name, &which).await?;
        let mounted = admin.engine.mount(&call, &volume, admin.holder(CallerKind::Cli)?).await?;
        let claim = mounted.claim;
        connection.when_read(move || claim.delivered());
        Ok(Mounted { action: mounted.action, path: mounted.path.display().to_string() })
    };
    reply(work.await)
}

async fn unmount(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>, Query(which): Query<Which>) -> Response {
    let work = async {
        let call = admin.call(&headers, "unmount", &name);
        let volume = admin.meant_or_only(&name, &which).await?;
        let done = admin.engine.unmount(&call, &volume, &admin.holder(CallerKind::Cli)?).await?;
        Ok(Unmounted { action: done.action, lingering: done.lingering })
    };
    reply(work.await)
}

async fn attach(
    State(admin): Shared,
    ConnectInfo(connection): ConnectInfo<Connection>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Response {
    let work = async {
        let call = admin.call(&headers, "attach", &name);
        let volume = admin.meant(&name, &which).await?;
        let AttachedTo { device, action, claim } = admin.engine.attach(&call, &volume, admin.holder(CallerKind::CliDevice)?).await?;
        connection.when_read(move || claim.delivered());
        Ok(Attached { action, device: device.display().to_string() })
    };
    reply(work.await)
}

async fn detach(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>, Query(which): Query<Which>) -> Response {
    let work = async {
        let call = admin.call(&headers, "detach", &name);
        let volume = admin.meant_or_only(&name, &which).await?;
        let held = admin.engine.held().into_iter().find(|held| held.volume == volume).map(|held| held.holders).unwrap_or_default();
        let mounters: Vec<String> = held.iter().filter(|holder| holder.wants_mount()).map(ToString::to_string).collect();
        if !mounters.is_empty() {
            let next = "end what uses it, or take back 'volume mount' with 'volume unmount': then it is detached too";
            return Err(Error::in_use(mounters, admin.engine.node(), "it is mounted", next).of(&volume.name));
        }
        let done = admin.engine.unmount(&call, &volume, &admin.holder(CallerKind::CliDevice)?).await?;
        Ok(Unmounted { action: done.action, lingering: done.lingering })
    };
    reply(work.await)
}

async fn release_holder(
    State(admin): Shared,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    request: Request<Body>,
) -> Response {
    let work = async {
        let body: ReleaseBody = read_json(request).await?;
        let call = admin.call(&headers, "release a holder", &name);
        let volume = admin.meant_or_only(&name, &which).await?;
        let holder = admin.one_holder(&volume, body.id.as_deref())?;
        admin.engine.release_holder(&call, &volume, &holder).await?;
        Ok(holder)
    };
    reply(work.await)
}

async fn release(State(admin): Shared, headers: HeaderMap) -> Response {
    let call = admin.call(&headers, "release everything", "*");
    reply(Ok(Released { failed: admin.engine.release_all(&call).await }))
}

async fn nodes(State(admin): Shared, headers: HeaderMap, Query(which): Query<Which>) -> Response {
    let work = async {
        let driver = which.driver.as_deref().map(str::parse).transpose()?;
        let (nodes, notes) = admin.engine.nodes(&admin.call(&headers, "nodes", ""), driver.as_ref()).await?;
        Ok(Nodes { nodes, notes })
    };
    reply(work.await)
}

async fn fence(State(admin): Shared, Path(name): Path<String>, headers: HeaderMap, request: Request<Body>) -> Response {
    let work = async {
        let body: FenceBody = read_json(request).await?;
        let (node, driver) = (name.parse()?, body.driver.as_deref().map(str::parse).transpose()?);
        admin.engine.fence_node(&admin.call(&headers, "fence", &name), driver.as_ref(), &node, body.force).await
    };
    reply(work.await)
}

async fn unfence(State(admin): Shared, Path(name): Path<String>, request: Request<Body>) -> Response {
    let work = async {
        let body: FenceBody = read_json(request).await?;
        let (node, driver) = (name.parse()?, body.driver.as_deref().map(str::parse).transpose()?);
        admin.engine.unfence_node(driver.as_ref(), &node).await
    };
    reply(work.await)
}
