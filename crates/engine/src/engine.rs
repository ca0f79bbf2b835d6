//! The verbs that frontends call.
//!
//! A verb puts a goal into its volume's lane, waits for it no longer than its caller would, and says what came of it.
//! The work goes on when the caller has gone; a caller that has gone leaves no holder behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use dunnage_driver::{Driver, Stranger};
use dunnage_host::{Host, Medium, Probe, Target};
use dunnage_model::{
    AdoptAction, AttachAction, BootId, Bytes, Caller, CallerKind, CreateAction, DriverName, EndpointName, Error, HintPolicy, Holder,
    HolderKey, MountAction, NodeId, OperationId, PartialSpec, Preempt, PublishMode, RemoveAction, ResizeAction, Result, UnmountAction,
    VolumeId, VolumeInfo, VolumeName,
};
use jiff::Timestamp;
use tracing::Instrument;

use crate::carry;
use crate::env::{Clock, Random, Watcher};
use crate::lane::{Job, Lane, lock};
use crate::ledger::{Entry, Ledger};
use crate::planner::{AdoptRequest, Goal, Outcome, no_filesystem_on};

/// What the engine is given.
pub struct Settings {
    /// Who we are.
    pub node: NodeId,
    /// Which run of the kernel this is.
    pub boot: BootId,
    /// Where mounts appear.
    pub volumes: PathBuf,
    /// How they lie there.
    pub layout: Layout,
    /// Where the ledger is.
    pub ledger: PathBuf,
    /// The configured drivers.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// Drivers that were configured and cannot serve, with the reason.
    pub unavailable: BTreeMap<DriverName, Error>,
    /// Whether volumes are taken from other nodes; it may change while the engine runs.
    pub preempt: RwLock<Preempting>,
    /// The kernel and the tools.
    pub host: Host,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// Is told of every step.
    pub watcher: Arc<dyn Watcher>,
}

/// Whether volumes that do not say so themselves are taken from other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preempting {
    /// As a rule.
    pub usual: Preempt,
    /// Those of these endpoints.
    pub endpoints: BTreeMap<EndpointName, Preempt>,
}

impl Preempting {
    /// What holds for the volumes of an endpoint; other nodes may have endpoints that this one does not have.
    pub fn of(&self, endpoint: &EndpointName) -> Preempt {
        self.endpoints.get(endpoint).copied().unwrap_or(self.usual)
    }
}

/// How mounts lie in the folder of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `PATH/DRIVER/NAME`.
    #[default]
    ByDriver,
    /// `PATH/NAME`, as REX-Ray has it. Two drivers cannot have volumes of one name mounted at a time.
    Flat,
}

/// One request: who may be told of it, and until when its caller waits.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name, from here to the last log line.
    pub operation: OperationId,
    /// How long the caller waits. The work is not bound by it.
    pub patience: Duration,
}

/// What a new volume is asked to be.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Driver and name.
    pub volume: VolumeId,
    /// Who will list it.
    pub endpoint: EndpointName,
    /// What the caller said.
    pub asked: PartialSpec,
    /// What the endpoint and the configuration say where the caller does not.
    pub defaults: PartialSpec,
    /// What happens to what the driver cannot follow.
    pub hints: HintPolicy,
    /// It is to be a copy of this image, a file or a device of this node.
    pub source: Option<PathBuf>,
}

/// What came of a mount.
pub struct Mounted {
    /// Where the filesystem is.
    pub path: PathBuf,
    /// What was done.
    pub action: MountAction,
    /// The caller's hold on it: to be confirmed when the answer has been read, given back when dropped.
    pub claim: Claim,
}

/// What came of an attach.
pub struct AttachedTo {
    /// The device node.
    pub device: PathBuf,
    /// What was done.
    pub action: AttachAction,
    /// The caller's hold on it.
    pub claim: Claim,
}

/// What came of an unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmounted {
    /// What was done.
    pub action: UnmountAction,
    /// The mount lives on in other namespaces, through these processes; the device stays until they go.
    pub lingering: Vec<String>,
}

/// A volume as it was last heard of.
#[derive(Clone)]
pub(crate) struct Known {
    pub info: Arc<VolumeInfo>,
    pub seen: Timestamp,
}

pub(crate) struct Inner {
    pub settings: Settings,
    pub drivers: BTreeMap<DriverName, Arc<dyn Driver>>,
    pub lanes: RwLock<BTreeMap<VolumeId, Arc<Lane>>>,
    pub ledger: Mutex<Ledger>,
    /// What the platforms said. Only a cache.
    pub known: RwLock<BTreeMap<VolumeId, Known>>,
    /// When each driver's whole list was last read; `None` while it never was.
    pub listed: RwLock<BTreeMap<DriverName, Timestamp>>,
    pub list_bell: tokio::sync::Notify,
    /// Held while a driver's list is read.
    pub listing: Mutex<BTreeMap<DriverName, Arc<tokio::sync::Mutex<()>>>>,
    /// Counts what jobs have changed: an answer that was asked for before the last change is not remembered.
    pub changes: AtomicU64,
    /// What has to be done without anybody asking, and could not be: tried again by every sweep.
    pub owed: Mutex<BTreeMap<(VolumeId, &'static str), Goal>>,
    /// Held while nameless holders are looked at.
    pub releasing: Arc<tokio::sync::Mutex<()>>,
    /// Holders whose container is gone.
    pub missed: Mutex<BTreeMap<(VolumeId, HolderKey), crate::witness::Missed>>,
    /// What was learned of single volumes since the list that is being read was begun.
    pub touched: Mutex<BTreeSet<VolumeId>>,
    /// The nodes that share each driver's volumes, as far as they were seen.
    pub seen: Mutex<BTreeMap<DriverName, crate::own::Seen>>,
}

/// The engine. Cloning it is cheap: there is one.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

impl Engine {
    /// The node that we are.
    pub fn node(&self) -> &NodeId {
        &self.0.settings.node
    }

    /// From now on volumes are taken from other nodes, or not, as this says.
    pub fn preempt(&self, preempting: Preempting) {
        *crate::view::write(&self.0.settings.preempt) = preempting;
    }

    /// Whether this node takes a volume from another.
    pub(crate) fn preempt_of(&self, info: &VolumeInfo) -> Preempt {
        info.spec.preempt.unwrap_or_else(|| crate::view::read(&self.0.settings.preempt).of(&info.endpoint))
    }

    /// A name for a new request.
    pub fn operation(&self) -> OperationId {
        self.0.settings.random.operation()
    }

    /// Where a volume is when it is mounted.
    pub(crate) fn target(&self, volume: &VolumeId) -> Target {
        let medium = self.0.drivers.get(&volume.driver).map(|driver| driver.medium()).unwrap_or_default();
        Target { root: self.0.settings.volumes.clone(), relative: self.0.settings.layout.place(volume), medium }
    }

    /// What those were told who have it mounted already.
    fn told_others(&self, volume: &VolumeId) -> Option<PathBuf> {
        let lane = crate::view::read(&self.0.lanes).get(volume).cloned()?;
        let state = lock(&lane.state);
        let told = |holder: &&Holder| holder.wants_mount() && holder.key.caller.kind != CallerKind::Unknown && holder.count > 0;
        let holder = state.entry.staged.and_then(|_| state.entry.holders.iter().find(told))?;
        Some(PathBuf::from(&holder.target))
    }

    /// Where its holders find it: the folder inside that it is to show, or its root.
    pub(crate) fn shown_at(&self, volume: &VolumeId, info: Option<&VolumeInfo>) -> PathBuf {
        let path = self.target(volume).path();
        info.and_then(|info| info.spec.root_path.as_ref()).map_or(path.clone(), |inside| path.join(inside.as_str()))
    }

    pub(crate) fn driver(&self, name: &DriverName) -> Result<&Arc<dyn Driver>> {
        self.0.drivers.get(name).ok_or_else(|| match self.0.settings.unavailable.get(name) {
            Some(error) => error.clone(),
            None => Error::not_found(format!("there is no driver {name}"), "look at 'dunnage driver ls'"),
        })
    }

    pub(crate) fn lane(&self, volume: &VolumeId) -> Arc<Lane> {
        if let Some(lane) = crate::view::read(&self.0.lanes).get(volume) {
            return lane.clone();
        }
        let entry = || Entry::new(volume.clone(), self.0.settings.boot.clone());
        crate::view::write(&self.0.lanes).entry(volume.clone()).or_insert_with(|| Arc::new(Lane::new(entry()))).clone()
    }

    /// Writes what is to be remembered of a lane. Called under its lock, so that the newest state is the one on file.
    pub(crate) fn persist(&self, entry: &Entry) -> Result<()> {
        lock(&self.0.ledger).write(entry)
    }

    /// Something that a verb does outside of any goal's steps: a crash point before and after it.
    fn watched<T>(&self, verb: &str, step: &str, act: impl FnOnce() -> T) -> T {
        self.0.settings.watcher.step(verb, step, false);
        let outcome = act();
        self.0.settings.watcher.step(verb, step, true);
        outcome
    }

    /// Makes sure that the volume exists as asked; says what it is, unless somebody was quick to remove it.
    pub async fn create(&self, call: &Call, request: CreateRequest) -> Result<(CreateAction, Option<Arc<VolumeInfo>>)> {
        let CreateRequest { volume, endpoint, mut asked, defaults, hints, source } = request;
        let driver = self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        if let Some(source) = &source {
            asked = self.like_image(call, asked, source).await.map_err(|e| e.of(&volume.name))?;
        }
        let spec = driver.complete(asked.clone(), &defaults, hints).map_err(|e| e.of(&volume.name))?;
        let job = self.submit(call, &volume, Goal::Create { asked: asked.into(), spec: spec.into(), endpoint, source });
        match self.wait(call, &volume, &job).await? {
            Outcome::Created(action) => Ok((action, self.known(&volume))),
            other => Err(unexpected(&other)),
        }
    }

    /// A copy of an image has its filesystem and its size.
    async fn like_image(&self, call: &Call, asked: PartialSpec, image: &Path) -> Result<PartialSpec> {
        for (key, given) in [("size", asked.size.is_some()), ("fs", asked.fs.is_some())] {
            if given {
                let detail = format!("a copy of an image has the {key} that the image has");
                return Err(Error::invalid(key, detail, "leave it out; 'dunnage volume resize' makes it larger afterwards"));
            }
        }
        if !image.is_absolute() {
            return Err(Error::invalid("image", format!("{} is no absolute path", image.display()), "give the whole path"));
        }
        let looking = tokio::time::timeout(call.patience, self.0.settings.host.filesystems.look_at_image(image));
        let (size, found) = looking.await.map_err(|_| Error::timeout("look", format!("{} cannot be read", image.display())))??;
        match found {
            Probe::Known(known) => Ok(PartialSpec { size: Some(size), fs: Some(known.fs), ..asked }),
            other => {
                Err(no_filesystem_on(&image.display().to_string(), &other, "give a raw image, or a device, with ext4, xfs or btrfs on it"))
            }
        }
    }

    /// Makes what somebody else has made of that name a volume of ours.
    pub async fn adopt(&self, call: &Call, volume: &VolumeId, request: AdoptRequest) -> Result<AdoptAction> {
        self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        let job = self.submit(call, volume, Goal::Adopt(request));
        match self.wait(call, volume, &job).await? {
            Outcome::Adopted(action) => Ok(action),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the volume larger.
    pub async fn resize(&self, call: &Call, volume: &VolumeId, size: Bytes) -> Result<ResizeAction> {
        self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        let job = self.submit(call, volume, Goal::Resize(size.round_up(4 * Bytes::KIB)));
        match self.wait(call, volume, &job).await? {
            Outcome::Resized(action) => Ok(action),
            other => Err(unexpected(&other)),
        }
    }

    /// What is on a driver's platform and could be adopted.
    pub async fn strangers(&self, call: &Call, driver: &DriverName) -> Result<Vec<Stranger>> {
        let driver = self.driver(driver)?.clone();
        let asking = tokio::spawn(async move {
            match driver.adopt() {
                Some(adopt) => adopt.strangers().await,
                None => Ok(Vec::new()),
            }
        });
        match tokio::time::timeout(call.patience, asking).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Err(Error::internal(format!("looking for what could be adopted ended early: {e}"))),
            Err(_) => Err(Error::timeout("strangers", "the platform did not answer in time").during(&call.operation)),
        }
    }

    /// Removes the volume, if nobody holds it.
    pub async fn remove(&self, call: &Call, volume: &VolumeId) -> Result<RemoveAction> {
        self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        let lane = self.lane(volume);
        let (holders, left) = {
            let state = lock(&lane.state);
            (state.entry.holders.clone(), !state.entry.is_empty())
        };
        if !holders.is_empty() {
            let who = holders.iter().map(ToString::to_string).collect();
            let only = |kind| holders.iter().all(|holder| holder.key.caller.kind == kind);
            let (detail, next) = if only(CallerKind::CliDevice) {
                ("it is attached", format!("give it back with 'dunnage volume detach {}', then remove it", volume.name))
            } else if only(CallerKind::Cli) {
                ("it is mounted", format!("give it back with 'dunnage volume unmount {}', then remove it", volume.name))
            } else {
                ("it is mounted", "stop the container or the task that uses it, then remove it".to_owned())
            };
            return Err(Error::in_use(who, self.node(), detail, next).of(&volume.name).during(&call.operation));
        }
        if left {
            // Nobody holds it, and it could not be let go of when the last holder went: try again first.
            let job = self.submit(call, volume, Goal::Unstage);
            self.wait(call, volume, &job).await?;
        }
        let job = self.submit(call, volume, Goal::Remove);
        match self.wait(call, volume, &job).await? {
            Outcome::Removed(action) => Ok(action),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes sure that the volume is mounted on this node, and publishes it to a caller at that place.
    pub async fn mount(&self, call: &Call, volume: &VolumeId, key: HolderKey) -> Result<Mounted> {
        self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        // Where it is shown depends on what it is: the others who hold it were told; else it is asked for, and never taken for one
        // without a folder inside.
        let path = match self.told_others(volume) {
            Some(path) => path,
            None => self.shown_at(volume, Some(&self.get(volume).await.map_err(|e| e.during(&call.operation))?.info)),
        };
        // The claim is there before the work begins: whoever unmounts meanwhile sees it.
        let claim = self.publish(volume, key, &path.display().to_string());
        let action = self.stage(call, volume).await?;
        claim.record().map_err(|e| e.of(&volume.name).during(&call.operation))?;
        // It may have become another one before its turn came.
        let path = self.known(volume).map_or(path, |info| self.shown_at(volume, Some(&info)));
        Ok(Mounted { path, action, claim })
    }

    /// Makes sure that the volume's device is on this node, for somebody who wants no mount.
    pub async fn attach(&self, call: &Call, volume: &VolumeId, key: HolderKey) -> Result<AttachedTo> {
        if self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?.medium() == Medium::Folder {
            let detail = format!("a volume of driver {} is a folder, and has no device", volume.driver);
            return Err(Error::invalid("driver", detail, "mount it").of(&volume.name));
        }
        let claim = self.publish_as(volume, key, PublishMode::Device, "");
        let job = self.submit(call, volume, Goal::Attach);
        match self.wait(call, volume, &job).await? {
            Outcome::Attached(action, device) => {
                claim.record().map_err(|e| e.of(&volume.name).during(&call.operation))?;
                Ok(AttachedTo { device, action, claim })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Device to node mount: the half of a mount that all holders share.
    pub async fn stage(&self, call: &Call, volume: &VolumeId) -> Result<MountAction> {
        let job = self.submit(call, volume, Goal::Stage);
        match self.wait(call, volume, &job).await? {
            Outcome::Staged(action) => Ok(action),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a caller's hold back; with the last one the volume is unmounted and detached.
    pub async fn unmount(&self, call: &Call, volume: &VolumeId, key: &HolderKey) -> Result<Unmounted> {
        self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?;
        let done = |action| Unmounted { action, lingering: Vec::new() };
        let mut action = self.unpublish(volume, key)?;
        // Nobody else can have meant the mount that was found without a name. (Others may hold it as well by now.)
        let meant =
            if action == UnmountAction::NotHeld { self.mark_unknown_holder(volume)? } else { self.unknown_holder_is_marked(volume) };
        if meant {
            let looking = tokio::time::timeout(call.patience, self.adopted_and_unused(volume)).await;
            let late =
                |_| Error::timeout("unmount/who-uses", "nobody could say in time who uses it").of(&volume.name).during(&call.operation);
            if looking.map_err(late)?? {
                // Nothing lives on it: whoever unmounted had it.
                action = self.drop_unknown_holder(volume)?;
            }
        }
        if action == UnmountAction::StillHeld {
            return Ok(done(action));
        }
        let lane = self.lane(volume);
        let (held, left) = {
            let state = lock(&lane.state);
            let held = if state.entry.staged.is_some() { state.entry.mounters() > 0 } else { !state.entry.holders.is_empty() };
            (held, !state.entry.is_empty() || !state.jobs.is_empty())
        };
        if held {
            return Ok(done(action));
        }
        if !left && action == UnmountAction::NotHeld {
            return Ok(done(action));
        }
        match self.unstage(call, volume).await? {
            Outcome::Unstaged(_) => Ok(done(action)),
            // Only the device is held still: the mount is gone.
            Outcome::StillHeld if lock(&self.lane(volume).state).entry.mounters() == 0 => Ok(done(action)),
            Outcome::StillHeld => Ok(done(UnmountAction::StillHeld)),
            Outcome::Lingering(users) => Ok(Unmounted { action, lingering: users.iter().map(ToString::to_string).collect() }),
            other => Err(unexpected(&other)),
        }
    }

    /// The half of an unmount that is one caller's.
    pub fn unpublish(&self, volume: &VolumeId, key: &HolderKey) -> Result<UnmountAction> {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        let without_id = key.caller.id.is_none();
        let action = match state.entry.holder(key) {
            None => UnmountAction::NotHeld,
            Some(holder) => {
                let mut ends_claim = false;
                if without_id {
                    (holder.count, holder.undecided, holder.provisional) = (0, 0, 0);
                    ends_claim = true;
                } else if holder.count > 0 {
                    holder.count -= 1;
                } else if holder.undecided > 0 {
                    holder.undecided -= 1;
                } else {
                    // It has read an answer that we do not know yet to be read.
                    holder.provisional = holder.provisional.saturating_sub(1);
                    ends_claim = true;
                }
                if ends_claim {
                    state.end_claims_of(key, without_id);
                }
                UnmountAction::Unmounted
            }
        };
        state.entry.sweep();
        if action == UnmountAction::NotHeld {
            return Ok(action);
        }
        self.watched("unmount", "give-back", || self.persist(&state.entry))?;
        // Who wants the device alone keeps no mount.
        let held = if key.caller.kind == CallerKind::CliDevice { state.entry.holders.len() } else { state.entry.mounters() };
        Ok(if held == 0 { UnmountAction::Unmounted } else { UnmountAction::StillHeld })
    }

    /// Its only holder is `unknown`, and no process in any namespace has it mounted or open.
    async fn adopted_and_unused(&self, volume: &VolumeId) -> Result<bool> {
        let lane = self.lane(volume);
        let device = {
            let state = lock(&lane.state);
            let unknown = |holder: &Holder| holder.key.caller.kind == CallerKind::Unknown;
            let adopted = !state.entry.holders.is_empty() && state.entry.holders.iter().all(unknown);
            state.entry.staged.filter(|_| adopted).map(|staged| staged.device)
        };
        match device {
            Some(device) => Ok(self.0.settings.host.mounts.users(device, &self.target(volume).path()).await?.is_empty()),
            None => Ok(false),
        }
    }

    /// Node mount to nothing, if nobody holds it: the half of an unmount that comes with the last holder.
    pub async fn unstage(&self, call: &Call, volume: &VolumeId) -> Result<Outcome> {
        let job = self.submit(call, volume, Goal::Unstage);
        self.wait(call, volume, &job).await
    }

    /// Notes that somebody has unmounted who holds nothing by name: it may be the nameless holder of an adopted mount. Says
    /// whether there is one.
    fn mark_unknown_holder(&self, volume: &VolumeId) -> Result<bool> {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        let unknown = |holder: &&mut Holder| holder.key.caller.kind == CallerKind::Unknown;
        let Some(holder) = state.entry.holders.iter_mut().find(unknown) else { return Ok(false) };
        (holder.count, holder.undecided) = (0, 1);
        self.persist(&state.entry)?;
        Ok(true)
    }

    fn unknown_holder_is_marked(&self, volume: &VolumeId) -> bool {
        let lane = crate::view::read(&self.0.lanes).get(volume).cloned();
        lane.is_some_and(|lane| lock(&lane.state).entry.is_to_be_released())
    }

    /// Lets the nameless holder go whose unmount has come, if nothing lives on the mount any more.
    pub(crate) async fn release_unknown(&self, volume: &VolumeId) -> Result<bool> {
        let unused = self.unknown_holder_is_marked(volume) && self.adopted_and_unused(volume).await?;
        if unused {
            self.drop_unknown_holder(volume)?;
        }
        Ok(unused)
    }

    /// Drops the nameless holder of an adopted mount, and nobody who came since.
    fn drop_unknown_holder(&self, volume: &VolumeId) -> Result<UnmountAction> {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        state.entry.holders.retain(|holder| holder.key.caller.kind != CallerKind::Unknown);
        self.persist(&state.entry)?;
        Ok(if state.entry.holders.is_empty() { UnmountAction::Unmounted } else { UnmountAction::StillHeld })
    }

    /// Drops every holder of a volume: for a machine that shuts down.
    pub fn drop_holders(&self, volume: &VolumeId) -> Result<()> {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        state.entry.holders.clear();
        self.persist(&state.entry)
    }

    /// Asks every running job to stop at its next step and undo what it did.
    pub fn cancel_all(&self) {
        for lane in crate::view::read(&self.0.lanes).values() {
            for job in &lock(&lane.state).jobs {
                job.cancel();
            }
        }
    }

    /// Puts a goal into a volume's lane, or joins the job that is last in it if that wants the same.
    pub(crate) fn submit(&self, call: &Call, volume: &VolumeId, goal: Goal) -> Arc<Job> {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        if let Some(last) = state.jobs.back()
            && last.goal == goal
        {
            tracing::debug!(operation = %call.operation, joined = %last.operation, volume = %volume, goal = goal.word(), "joins a running job");
            return last.clone();
        }
        let job = Arc::new(Job::new(goal, call.operation.clone(), self.0.settings.clock.now()));
        state.jobs.push_back(job.clone());
        drop(state);
        self.0.settings.host.runner.expect_one();
        let span = tracing::info_span!("job", operation = %job.operation, volume = %volume, goal = job.goal.word());
        let (engine, running, volume) = (self.clone(), job.clone(), volume.clone());
        tokio::spawn(
            async move {
                let _turn = lane.turn.lock().await;
                let outcome = carry::run(&engine, &volume, &lane, &running).await;
                // Done before anybody hears of it, so that nobody joins what is over.
                let left_over = {
                    let mut state = lock(&lane.state);
                    state.jobs.retain(|job| !Arc::ptr_eq(job, &running));
                    state.is_left_over()
                };
                if left_over && running.goal != Goal::Unstage {
                    // Everybody who wanted it has gone meanwhile.
                    engine.background(&volume, Goal::Unstage);
                }
                running.finish(outcome.map_err(|e| e.of(&volume.name).on(engine.node()).during(&running.operation)));
            }
            .instrument(span),
        );
        job
    }

    pub(crate) async fn wait(&self, call: &Call, volume: &VolumeId, job: &Job) -> Result<Outcome> {
        match tokio::time::timeout(call.patience, job.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let front = self.lane(volume).running();
                let (goal, step, operation) = front
                    .as_deref()
                    .map_or((job.goal.word(), job.step(), &job.operation), |front| (front.goal.word(), front.step(), &front.operation));
                let detail = format!("{goal} was at step {step} after {:.1} s, and goes on", call.patience.as_secs_f64());
                Err(Error::timeout(format!("{goal}/{step}"), detail).of(&volume.name).during(operation))
            }
        }
    }

    /// The half of a mount that is one caller's: its hold on the volume, at `target`. It counts when it was confirmed.
    pub fn publish(&self, volume: &VolumeId, key: HolderKey, target: &str) -> Claim {
        let mode = self.known(volume).map(|info| info.spec.access.publish_mode()).unwrap_or_default();
        self.publish_as(volume, key, mode, target)
    }

    fn publish_as(&self, volume: &VolumeId, key: HolderKey, mode: PublishMode, target: &str) -> Claim {
        let lane = self.lane(volume);
        let mut state = lock(&lane.state);
        let now = self.0.settings.clock.now();
        let mut took_over = false;
        match state.entry.holder(&key) {
            Some(holder) => {
                // A retry after a crash takes over what was on its way then, instead of counting twice.
                took_over = holder.undecided > 0;
                holder.undecided = holder.undecided.saturating_sub(1);
                holder.provisional += 1;
            }
            None => state.entry.holders.push(Holder {
                key: key.clone(),
                count: 0,
                provisional: 1,
                undecided: 0,
                since: now,
                mode,
                target: target.to_owned(),
            }),
        }
        let id = state.add_claim(&key, took_over);
        drop(state);
        Claim { engine: self.clone(), volume: volume.clone(), key, id }
    }

    /// What is remembered of a volume.
    pub(crate) fn known(&self, volume: &VolumeId) -> Option<Arc<VolumeInfo>> {
        crate::view::read(&self.0.known).get(volume).map(|known| known.info.clone())
    }
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::internal(format!("a job came to {outcome:?}, which is not what it was for"))
}

/// A caller's hold on a mounted volume while its answer is on the way.
///
/// Confirm it when the caller has read the answer. Dropped without that, it is given back, and with the last hold the
/// volume is unmounted.
#[must_use]
pub struct Claim {
    engine: Engine,
    volume: VolumeId,
    key: HolderKey,
    id: u64,
}

impl Claim {
    /// Makes it durable: before the answer leaves.
    fn record(&self) -> Result<()> {
        let lane = self.engine.lane(&self.volume);
        let state = lock(&lane.state);
        self.engine.watched("mount", "hold", || self.engine.persist(&state.entry))
    }

    /// The caller has the answer: from now on it holds the volume.
    pub fn delivered(self) {
        let lane = self.engine.lane(&self.volume);
        let mut state = lock(&lane.state);
        // Ended already: the caller was quick, and has unmounted before we knew that it had read.
        if state.end_claim(self.id).is_some()
            && let Some(holder) = state.entry.holder(&self.key)
        {
            holder.provisional = holder.provisional.saturating_sub(1);
            holder.count = if self.key.caller.id.is_none() { 1 } else { holder.count + 1 };
        }
        if let Err(e) = self.engine.watched("mount", "confirm", || self.engine.persist(&state.entry)) {
            tracing::error!(volume = %self.volume, "a holder could not be confirmed in the ledger: {e}");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let lane = self.engine.lane(&self.volume);
        let mut state = lock(&lane.state);
        let Some(claimed) = state.end_claim(self.id) else { return }; // delivered, or given back
        if let Some(holder) = state.entry.holder(&self.key) {
            holder.provisional = holder.provisional.saturating_sub(1);
            holder.undecided += u32::from(claimed.took_over);
        }
        state.entry.sweep();
        if let Err(e) = self.engine.persist(&state.entry) {
            tracing::error!(volume = %self.volume, "a holder that has gone could not be taken out of the ledger: {e}");
        }
        // While a job runs, its end sees to what is left.
        let left_over = state.is_left_over();
        drop(state);
        if left_over && tokio::runtime::Handle::try_current().is_ok() {
            tracing::info!(volume = %self.volume, holder = %self.key, "its caller has gone without the answer");
            self.engine.background(&self.volume, Goal::Unstage);
        }
    }
}

/// The holder that an adopted mount gets.
pub(crate) fn unknown_holder(endpoint: EndpointName, since: Timestamp, target: String) -> Holder {
    let caller = Caller { kind: CallerKind::Unknown, id: None };
    Holder { key: HolderKey { endpoint, caller }, count: 1, provisional: 0, undecided: 0, since, mode: Default::default(), target }
}

impl Layout {
    /// Where a volume is, beneath the folder of mounts.
    pub(crate) fn place(self, volume: &VolumeId) -> PathBuf {
        match self {
            Layout::ByDriver => PathBuf::from(volume.driver.as_str()).join(volume.name.as_str()),
            Layout::Flat => PathBuf::from(volume.name.as_str()),
        }
    }

    /// The other way round; `owner` says whose volume it is where the path does not.
    pub(crate) fn volume(self, relative: &std::path::Path, owner: impl FnOnce(&VolumeName) -> Option<DriverName>) -> Option<VolumeId> {
        let mut parts = relative.iter().map(|part| part.to_str());
        let driver = match self {
            Layout::ByDriver => Some(parts.next()??.parse().ok()?),
            Layout::Flat => None,
        };
        let name: VolumeName = parts.next()??.parse().ok()?;
        if parts.next().is_some() {
            return None;
        }
        Some(VolumeId { driver: driver.or_else(|| owner(&name))?, name })
    }
}
