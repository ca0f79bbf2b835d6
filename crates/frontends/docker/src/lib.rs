//! The Docker volume plugin API v1.2: one socket, one driver name, for dockerd, Podman, dvdcli and whoever speaks it.
//!
//! Requests become the engine's verbs and their outcomes become answers; nothing is decided here. A mount's answer is
//! watched until its caller has read it: only then does the caller hold the volume.

mod wire;

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use dunnage_driver::Reach;
use dunnage_engine::{AdoptRequest, Call, CreateRequest, Engine, VolumeView};
use dunnage_frontend_unix::{Connection, read_json};
use dunnage_model::{
    Access, AskedName, Caller, DriverName, EndpointName, Error, Hint, HintPolicy, HolderKey, PartialSpec, RemoveAction, Result, VolumeId,
    parse_name, parse_wish,
};
use serde_json::json;

use wire::{Answer, CreateBody, Each, LeftOpen, MountBody, NameBody, Status, VolumeAnswer, VolumesAnswer, written};

/// dockerd waits two minutes for a Create or a Mount; it is answered before it gives up.
const LONG: Duration = Duration::from_secs(110);
/// dockerd waits one minute for the rest.
const SHORT: Duration = Duration::from_secs(55);

/// A volume that is first named is looked at, and its filesystem too, before anything is answered.
const ADOPTION: Duration = Duration::from_secs(30);
/// But a read waits no longer than reads do (law 7); the adoption goes on.
const READ: Duration = Duration::from_secs(2);

/// One endpoint: what a scheduler sees under one driver name.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its name: that of the socket.
    pub name: EndpointName,
    /// The driver behind it.
    pub driver: DriverName,
    /// The driver of volumes that are made with `shared=true`, where that is another one.
    pub shared: Option<DriverName>,
    /// What happens to hints.
    pub hints: HintPolicy,
    /// What its volumes are where the caller does not say.
    pub defaults: PartialSpec,
    /// Create makes volumes; false where only the command line does.
    pub creates: bool,
    /// Remove removes volumes; false where only the command line does.
    pub removes: bool,
    /// A volume that is there and was not made by us is adopted when it is named.
    pub adopts: bool,
}

/// An endpoint that may be configured anew while it is served.
pub type SharedEndpoint = Arc<RwLock<Endpoint>>;

/// What one request works with: the endpoint as it was when the request came.
struct Frontend {
    engine: Engine,
    endpoint: Endpoint,
}

impl FromRequestParts<(Engine, SharedEndpoint)> for Frontend {
    type Rejection = Infallible;
    async fn from_request_parts(_: &mut Parts, (engine, endpoint): &(Engine, SharedEndpoint)) -> Result<Self, Infallible> {
        let endpoint = endpoint.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Frontend { engine: engine.clone(), endpoint })
    }
}

/// The endpoint's API.
pub fn router(engine: Engine, endpoint: SharedEndpoint) -> Router {
    Router::new()
        .route("/Plugin.Activate", post(|| async { Answer::Activate.into_response() }))
        .route("/VolumeDriver.Capabilities", post(capabilities))
        .route("/VolumeDriver.Create", post(create))
        .route("/VolumeDriver.Remove", post(remove))
        .route("/VolumeDriver.Mount", post(mount))
        .route("/VolumeDriver.Unmount", post(unmount))
        .route("/VolumeDriver.Path", post(path))
        .route("/VolumeDriver.Get", post(get))
        .route("/VolumeDriver.List", post(list))
        .fallback(unknown)
        .with_state((engine, endpoint))
}

async fn unknown(request: Request<Body>) -> Response {
    let detail = format!("there is no call {} {}", request.method(), request.uri().path());
    Answer::Failed(Error::not_found(detail, "the calls are those of Docker's volume plugin API v1.2")).into_response()
}

fn answer(outcome: Result<Answer>) -> Response {
    outcome.unwrap_or_else(Answer::Failed).into_response()
}

impl Frontend {
    fn call(&self, what: &str, name: &str, patience: Duration) -> Call {
        let operation = self.engine.operation();
        // A name may have options in it, and those a secret.
        let volume = parse_name(name).map_or_else(|_| "(none)".to_owned(), |asked| asked.name.to_string());
        tracing::info!(%operation, endpoint = %self.endpoint.name, call = what, volume, "asked");
        Call { operation, patience }
    }

    /// What a name, which may have options in it, can mean: a volume of the one driver, or of the other. The likelier comes first.
    fn candidates(&self, name: &str) -> Result<Vec<VolumeId>> {
        let name = parse_name(name)?.name;
        let mut ids: Vec<VolumeId> = self.drivers().map(|driver| VolumeId { driver: driver.clone(), name: name.clone() }).collect();
        if ids.len() > 1 {
            ids.sort_by_key(|id| !self.engine.remembers(id));
        }
        Ok(ids)
    }

    fn drivers(&self) -> impl Iterator<Item = &DriverName> {
        std::iter::once(&self.endpoint.driver).chain(&self.endpoint.shared)
    }

    /// The volume of a name.
    async fn find(&self, name: &str, patience: Duration) -> Result<VolumeView> {
        let mut absent = None;
        for id in self.candidates(name)? {
            match self.owned(&id, patience).await {
                Err(e) if e.word() == "not_found" => absent = absent.or(Some(e)),
                outcome => return outcome,
            }
        }
        Err(absent.unwrap_or_else(|| Error::internal("an endpoint without a driver")))
    }

    /// The volume, if it is this endpoint's to show. One of another endpoint is not found here, and the answer says
    /// where it is.
    async fn owned(&self, volume: &VolumeId, patience: Duration) -> Result<VolumeView> {
        let view = match self.engine.get(volume).await {
            // Of what is not ours the platform is asked, and what it has is taken, where the configuration says so.
            Err(absent) if self.endpoint.adopts && absent.word() == "not_found" => {
                let call = Call { operation: self.engine.operation(), patience };
                let request = AdoptRequest { endpoint: self.endpoint.name.clone(), root_path: None, moves: false, overwrite: false };
                match self.engine.adopt(&call, volume, request).await {
                    Ok(_) => self.engine.get(volume).await?,
                    Err(e) if e.word() == "not_found" => return Err(absent),
                    Err(e) => return Err(e),
                }
            }
            outcome => outcome?,
        };
        if view.info.endpoint == self.endpoint.name {
            return Ok(view);
        }
        let detail = format!("there is no volume of that name here; endpoint {} has one", view.info.endpoint);
        Err(Error::not_found(detail, format!("ask endpoint {}", view.info.endpoint)).of(&volume.name))
    }

    fn holder(&self, id: Option<String>) -> Result<HolderKey> {
        if id.as_ref().is_some_and(|id| id.len() > Caller::MAX_ID) {
            let detail = format!("the ID is longer than {} bytes", Caller::MAX_ID);
            return Err(Error::invalid("ID", detail, "send a shorter one"));
        }
        Ok(HolderKey { endpoint: self.endpoint.name.clone(), caller: Caller::of_plugin(id) })
    }

    /// The volume as it is told. Whoever asks by a name with options in it is told that name: Docker knows it by no other.
    fn show<'a>(&'a self, view: &'a VolumeView, asked: Option<&'a str>) -> VolumeAnswer<'a> {
        let VolumeView { info, age, mountpoint, holders, .. } = view;
        let spec = &info.spec;
        let status = Status {
            driver: info.id.driver.as_str(),
            size: spec.shown_size(),
            fs: spec.fs.as_str(),
            state: view.state(),
            node: self.engine.node().as_str(),
            holders: holders.iter().map(ToString::to_string).collect(),
            age: format!("{age} s"),
            why: info.why.as_deref(),
            labels: &spec.labels,
            ro: spec.access == Access::ManyReaders,
            shared: spec.access == Access::ManyWriters,
            thick: spec.thick,
            repl: LeftOpen(spec.repl),
            uid: LeftOpen(spec.uid),
            gid: LeftOpen(spec.gid),
            mode: LeftOpen(spec.mode),
            preempt: LeftOpen(spec.preempt),
            root_path: LeftOpen(spec.root_path.as_ref()),
            mount_options: LeftOpen(Some(&spec.mount_options).filter(|options| !options.is_empty())),
            hints: &spec.hints,
        };
        VolumeAnswer {
            name: asked.unwrap_or(info.id.name.as_str()),
            mountpoint: mountpoint.as_deref().unwrap_or_default(),
            created_at: format!("{:.0}", info.created),
            status,
        }
    }
}

async fn capabilities(frontend: Frontend) -> Response {
    let scope = match frontend.engine.reach(&frontend.endpoint.driver) {
        Reach::Node => "local",
        Reach::Cluster => "global",
    };
    Answer::Scope(scope).into_response()
}

async fn create(frontend: Frontend, request: Request<Body>) -> Response {
    let work = async {
        let body: CreateBody = read_json(request).await?;
        let call = frontend.call("Create", &body.name, LONG);
        let AskedName { name, options } = parse_name(&body.name)?;
        if !frontend.endpoint.creates {
            // What is there already may be "created" again, as dockerd does before each use of a name.
            return match frontend.find(&body.name, ADOPTION).await {
                Ok(_) => Ok(Answer::Done),
                Err(_) => {
                    let detail = format!("endpoint {} makes no volumes (create: explicit)", frontend.endpoint.name);
                    let next = format!("make it with 'dunnage volume create {name}'");
                    Err(Error::new(dunnage_model::Kind::Permission, detail, next).of(&name))
                }
            };
        }
        let given = body.opts.unwrap_or_default();
        let beside = given.iter().map(|(key, value)| (key.as_str(), value.as_deref().unwrap_or("")));
        let Endpoint { hints, driver, .. } = &frontend.endpoint;
        let parsed = parse_wish(&options, beside, *hints, driver.as_str()).map_err(|e| e.of(&name))?;
        let shared = parsed.spec.shared.or(frontend.endpoint.defaults.shared) == Some(true);
        let driver = frontend.endpoint.shared.clone().filter(|_| shared).unwrap_or_else(|| frontend.endpoint.driver.clone());
        let mut volume = VolumeId { driver, name };
        if frontend.endpoint.shared.is_some()
            && let Ok(there) = frontend.find(&body.name, ADOPTION).await
        {
            // One endpoint has one volume of a name.
            volume = there.info.id.clone();
        }
        if frontend.endpoint.adopts
            && let Err(e) = frontend.owned(&volume, ADOPTION).await
            && e.word() != "not_found"
        {
            return Err(e);
        }
        let warnings: Vec<String> =
            parsed.unheeded.iter().map(|Hint { key, value }| format!("the hint {key}={value} is not followed")).collect();
        for warning in &warnings {
            tracing::warn!(operation = %call.operation, volume = %volume, "{warning}");
        }
        let (endpoint, defaults) = (frontend.endpoint.name.clone(), frontend.endpoint.defaults.clone());
        let request = CreateRequest { volume, endpoint, asked: parsed.spec, defaults, hints: frontend.endpoint.hints, source: None };
        frontend.engine.create(&call, request).await.map(|_| Answer::Created(warnings))
    };
    answer(work.await)
}

async fn remove(frontend: Frontend, request: Request<Body>) -> Response {
    let work = async {
        let body: NameBody = read_json(request).await?;
        let call = frontend.call("Remove", &body.name, SHORT);
        let volume = frontend.find(&body.name, ADOPTION).await?.info.id.clone();
        if !frontend.endpoint.removes {
            let detail = format!("endpoint {} removes no volumes (remove: refuse)", frontend.endpoint.name);
            let next = format!("remove it with 'dunnage volume rm {}'", volume.name);
            return Err(Error::new(dunnage_model::Kind::Permission, detail, next).of(&volume.name));
        }
        match frontend.engine.remove(&call, &volume).await? {
            RemoveAction::Removed => Ok(Answer::Done),
            RemoveAction::NotThere => Err(Error::no_volume(&volume.name)),
        }
    };
    answer(work.await)
}

async fn mount(frontend: Frontend, ConnectInfo(connection): ConnectInfo<Connection>, request: Request<Body>) -> Response {
    let work = async {
        let body: MountBody = read_json(request).await?;
        let call = frontend.call("Mount", &body.name, LONG);
        let holder = frontend.holder(body.id)?;
        let volume = frontend.find(&body.name, ADOPTION).await?.info.id.clone();
        let mounted = frontend.engine.mount(&call, &volume, holder).await?;
        let claim = mounted.claim;
        connection.when_read(move || claim.delivered());
        Ok(Answer::Mountpoint(mounted.path.display().to_string()))
    };
    answer(work.await)
}

async fn unmount(frontend: Frontend, request: Request<Body>) -> Response {
    let work = async {
        let body: MountBody = read_json(request).await?;
        let call = frontend.call("Unmount", &body.name, SHORT);
        let volume = frontend.candidates(&body.name)?.swap_remove(0);
        let holder = frontend.holder(body.id)?;
        let done = frontend.engine.unmount(&call, &volume, &holder).await?;
        if !done.lingering.is_empty() {
            tracing::warn!(operation = %call.operation, volume = %volume, "unmounted; a copy of the mount lives on in {}", done.lingering.join(", "));
        }
        Ok(Answer::Done)
    };
    answer(work.await)
}

async fn path(frontend: Frontend, request: Request<Body>) -> Response {
    let work = async {
        let body: NameBody = read_json(request).await?;
        let view = frontend.find(&body.name, READ).await?;
        Ok(Answer::Mountpoint(frontend.engine.path(&view).await?.unwrap_or_default()))
    };
    answer(work.await)
}

async fn get(frontend: Frontend, request: Request<Body>) -> Response {
    let work = async {
        let body: NameBody = read_json(request).await?;
        let view = frontend.find(&body.name, READ).await?;
        written(&json!({ "Volume": frontend.show(&view, Some(&body.name)), "Err": "" }))
    };
    answer(work.await)
}

async fn list(frontend: Frontend) -> Response {
    let work = async {
        let mut views = Vec::new();
        for driver in frontend.drivers() {
            views.extend(frontend.engine.list(driver, Some(&frontend.endpoint.name)).await?);
        }
        written(&VolumesAnswer { volumes: Each(|| views.iter().map(|view| frontend.show(view, None))), err: "" })
    };
    answer(work.await)
}
