//! Reads: answered from memory, with the answer's age. Only an unknown name asks the platform, and not for long.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use dunnage_driver::{Capacity, Reach};
use dunnage_host::{DeviceNumber, Space};
use dunnage_model::{
    DriverName, EndpointName, Error, Holder, OperationId, OwnerRecord, Preempt, Result, Usage, VolumeId, VolumeInfo, VolumeName,
    VolumeState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::{Call, Engine};
use crate::lane::lock;
use crate::nodes::OwnerView;
use crate::planner::last_copy;

/// How long a read waits for a platform about a name that memory does not have (law 7).
const DOUBT: Duration = Duration::from_secs(2);
/// A list that is older than this is read anew, behind the answer.
const STALE_SECONDS: i64 = 30;

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The request that wants it.
    pub operation: OperationId,
    /// What for.
    pub goal: String,
    /// Where it is.
    pub step: String,
    /// Since when.
    pub since: Timestamp,
}

/// A volume as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// What the platform said of it.
    #[serde(flatten)]
    pub info: Arc<VolumeInfo>,
    /// How old that is, in seconds.
    pub age: u64,
    /// Where it is mounted on this node.
    pub mountpoint: Option<String>,
    /// Its device on this node, while it is attached for somebody.
    #[serde(default)]
    pub device: Option<DeviceNumber>,
    /// Who holds it.
    pub holders: Vec<Holder>,
    /// The holders whose container is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<crate::witness::Missing>,
    /// What is being done to it.
    pub jobs: Vec<JobView>,
}

impl VolumeView {
    /// In one word: what it is doing, else where it stands.
    pub fn state(&self) -> String {
        match (self.jobs.first(), self.info.state) {
            (Some(job), _) => format!("{} ({})", busy_word(&job.goal), job.step),
            (None, VolumeState::Ready) if self.mountpoint.is_some() && self.holders.is_empty() => "mounted, to be let go".to_owned(),
            (None, VolumeState::Ready) if self.mountpoint.is_some() => "mounted".to_owned(),
            (None, VolumeState::Ready) if self.device.is_some() => "attached".to_owned(),
            (None, state) => state.to_string(),
        }
    }
}

fn busy_word(goal: &str) -> &str {
    match goal {
        "create" => "creating",
        "stage" => "mounting",
        "attach" => "attaching",
        "unstage" => "unmounting",
        "remove" => "removing",
        "adopt" => "adopting",
        other => other,
    }
}

/// All that can be said of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The volume.
    #[serde(flatten)]
    pub volume: VolumeView,
    /// The node that says so.
    pub node: String,
    /// What its filesystem says of its space, when it is mounted here.
    pub space: Option<Space>,
    /// Whose it is, where other nodes can have it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<OwnerRecord>,
    /// How its owner stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerView>,
    /// Whether this node takes it from another, where others can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempt: Option<Preempt>,
    /// What could not be found out, and why.
    pub notes: Vec<String>,
}

/// A driver as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverView {
    /// Its name.
    pub name: DriverName,
    /// Its type.
    pub kind: String,
    /// From where its volumes can be reached.
    pub reach: Option<Reach>,
    /// How full it is.
    pub capacity: Option<Capacity>,
    /// Why it cannot serve.
    pub error: Option<Error>,
}

impl Engine {
    fn view(&self, info: Arc<VolumeInfo>, seen: Timestamp) -> VolumeView {
        let now = self.0.settings.clock.now();
        let age = u64::try_from(now.as_second() - seen.as_second()).unwrap_or(0);
        let missing = self.missing(&info.id);
        let mut view = VolumeView { info, age, mountpoint: None, device: None, holders: Vec::new(), missing, jobs: Vec::new() };
        // A look must not make a lane.
        let lane = read(&self.0.lanes).get(&view.info.id).cloned();
        if let Some(lane) = lane {
            let state = lock(&lane.state);
            view.mountpoint = state.entry.staged.map(|_| self.shown_at(&view.info.id, Some(&view.info)).display().to_string());
            view.device = state.entry.staged.map(|staged| staged.device).or(state.entry.kept);
            view.holders = state.entry.holders.clone();
            view.jobs = state
                .jobs
                .iter()
                .map(|job| JobView {
                    operation: job.operation.clone(),
                    goal: job.goal.word().to_owned(),
                    step: job.step().to_owned(),
                    since: job.since,
                })
                .collect();
        }
        view
    }

    /// A volume from memory; if memory does not have it, the platform is asked, for two seconds. "No" is always the
    /// platform's own word.
    pub async fn get(&self, volume: &VolumeId) -> Result<VolumeView> {
        let remembered = read(&self.0.known).get(volume).cloned();
        if let Some(known) = remembered {
            return Ok(self.view(known.info, known.seen));
        }
        match self.ask(volume).await? {
            Some(info) if info.state != VolumeState::Creating => Ok(self.view(info.into(), self.0.settings.clock.now())),
            _ => Err(self.absent(volume)),
        }
    }

    /// Whether memory or the ledger knows a volume. Asks nobody, and `false` says nothing.
    pub fn remembers(&self, volume: &VolumeId) -> bool {
        let lane = || read(&self.0.lanes).get(volume).is_some_and(|lane| !lock(&lane.state).entry.is_empty());
        read(&self.0.known).contains_key(volume) || lane()
    }

    /// The platform does not have it as a volume of ours; what is mounted may be the last copy.
    fn absent(&self, volume: &VolumeId) -> Error {
        let lane = read(&self.0.lanes).get(volume).cloned();
        let Some(staged) = lane.and_then(|lane| lock(&lane.state).entry.staged) else { return Error::no_volume(&volume.name) };
        let in_place = self.driver(&volume.driver).is_ok_and(|driver| driver.has_in_place(&volume.name, staged.device));
        if in_place {
            let next = format!("'dunnage volume adopt {}' takes it with its data", volume.name);
            return Error::not_found("it is mounted, and was not made by Dunnage", next).of(&volume.name);
        }
        last_copy(staged.device).of(&volume.name)
    }

    /// Asks the platform about a volume, not for long, and remembers a yes.
    async fn ask(&self, volume: &VolumeId) -> Result<Option<VolumeInfo>> {
        let driver = self.driver(&volume.driver).map_err(|e| e.of(&volume.name))?.clone();
        let before = self.0.changes.load(Ordering::Acquire);
        let asking = {
            let name = volume.name.clone();
            // On its own: a platform that hangs is asked once, and not cut off in the middle.
            tokio::spawn(async move { driver.inspect(&name).await })
        };
        let answer = match tokio::time::timeout(DOUBT, asking).await {
            Ok(Ok(answer)) => answer.map_err(|e| e.of(&volume.name))?,
            Ok(Err(e)) => return Err(Error::internal(format!("asking driver {} ended early: {e}", volume.driver)).of(&volume.name)),
            Err(_) => {
                let detail = format!("driver {} did not answer within {} s", volume.driver, DOUBT.as_secs());
                return Err(Error::unavailable(detail, "look at its disk, and ask again").of(&volume.name));
            }
        };
        if let Some(info) = answer.as_ref().filter(|info| info.state == VolumeState::Ready) {
            let known = crate::engine::Known { info: Arc::new(info.clone()), seen: self.0.settings.clock.now() };
            let mut all = write(&self.0.known);
            if self.0.changes.load(Ordering::Acquire) == before {
                all.insert(volume.clone(), known);
            }
        }
        Ok(answer)
    }

    /// Where a volume is mounted for its holders. What memory has is held against the kernel's table, which never waits: somebody
    /// may have unmounted it behind our back.
    pub async fn path(&self, view: &VolumeView) -> Result<Option<String>> {
        let Some(path) = &view.mountpoint else { return Ok(None) };
        let there = self.0.settings.host.mounts.at(&self.target(&view.info.id)).await?;
        Ok(there.is_some_and(|there| Some(there.device) == view.device).then(|| path.clone()))
    }

    /// All volumes of a driver that an endpoint lists, or all of them.
    pub async fn list(&self, driver: &DriverName, endpoint: Option<&EndpointName>) -> Result<Vec<VolumeView>> {
        self.driver(driver)?;
        self.listed(driver).await?;
        let known: Vec<_> = read(&self.0.known)
            .values()
            .filter(|known| known.info.id.driver == *driver && endpoint.is_none_or(|endpoint| known.info.endpoint == *endpoint))
            .cloned()
            .collect();
        Ok(known.into_iter().map(|known| self.view(known.info, known.seen)).collect())
    }

    /// Waits, not for long, until the driver's list was read once; has it read anew behind the answer when it is old.
    async fn listed(&self, driver: &DriverName) -> Result<()> {
        let when = || read(&self.0.listed).get(driver).copied();
        if let Some(when) = when() {
            if self.0.settings.clock.now().as_second() - when.as_second() > STALE_SECONDS && self.listing_lock(driver).try_lock().is_ok() {
                let (engine, driver) = (self.clone(), driver.clone());
                tokio::spawn(async move {
                    if let Err(e) = engine.refresh(&driver).await {
                        tracing::warn!(driver = %driver, "cannot be listed anew: {e}");
                    }
                });
            }
            return Ok(());
        }
        let first = async {
            loop {
                let bell = self.0.list_bell.notified();
                if when().is_some() {
                    return;
                }
                bell.await;
            }
        };
        tokio::time::timeout(DOUBT, first).await.map_err(|_| {
            let detail = format!("driver {driver} has not listed its volumes yet");
            Error::unavailable(detail, "ask again; the daemon's log says what it waits for")
        })
    }

    /// All that can be said of a volume, asked afresh where that does not take long.
    pub async fn inspect(&self, volume: &VolumeId) -> Result<Inspection> {
        let mut notes = Vec::new();
        let mut view = match self.ask(volume).await {
            Ok(Some(info)) => self.view(info.into(), self.0.settings.clock.now()),
            Ok(None) => return Err(self.absent(volume)),
            Err(e) => {
                notes.push(e.to_string());
                let remembered = read(&self.0.known).get(volume).cloned();
                match remembered {
                    Some(known) => self.view(known.info, known.seen),
                    None => return Err(e),
                }
            }
        };
        let mut space = None;
        if view.mountpoint.is_some() {
            let (host, target) = (self.0.settings.host.clone(), self.target(volume));
            let asking = tokio::spawn(async move { host.mounts.space(&target).await });
            match tokio::time::timeout(DOUBT, asking).await {
                Ok(Ok(Ok(answer))) => space = Some(answer),
                Ok(Ok(Err(e))) => notes.push(e.to_string()),
                _ => notes.push("its filesystem does not say how full it is".to_owned()),
            }
        }
        let (engine, id) = (self.clone(), volume.clone());
        let whose = tokio::spawn(async move { engine.ownership(&id).await });
        let (driver, name) = (self.driver(&volume.driver)?.clone(), volume.name.clone());
        let spent = tokio::spawn(async move { driver.spent(&name).await });
        let (mut ownership, mut owner) = (None, None);
        match tokio::time::timeout(DOUBT, whose).await {
            Ok(Ok(Ok(record))) => ownership = record,
            Ok(Ok(Err(e))) => notes.push(format!("whose it is cannot be said: {e}")),
            _ => notes.push("the platform does not say whose it is".to_owned()),
        }
        if let Some(record) = ownership.clone() {
            let (engine, id) = (self.clone(), volume.clone());
            // A node that does not answer is waited for.
            let standing = tokio::spawn(async move { engine.owner(&id, record).await });
            match tokio::time::timeout(DOUBT, standing).await {
                Ok(Ok(Ok(view))) => owner = view,
                Ok(Ok(Err(e))) => notes.push(format!("how its owner stands cannot be said: {e}")),
                _ => notes.push("the platform does not say how its owner stands".to_owned()),
            }
        }
        match tokio::time::timeout(DOUBT, spent).await {
            Ok(Ok(Ok(None))) => {}
            Ok(Ok(Ok(spent))) => view.info = Arc::new(VolumeInfo { usage: Usage { spent }, ..(*view.info).clone() }),
            Ok(Ok(Err(e))) => notes.push(format!("what is spent on it cannot be said: {e}")),
            _ => notes.push("the platform does not say what is spent on it".to_owned()),
        }
        let preempt = ownership.is_some().then(|| self.preempt_of(&view.info));
        Ok(Inspection { volume: view, node: self.node().to_string(), space, ownership, owner, preempt, notes })
    }

    /// The names of the drivers, those that cannot serve included.
    pub fn driver_names(&self) -> Vec<DriverName> {
        self.0.drivers.keys().chain(self.0.settings.unavailable.keys()).cloned().collect()
    }

    /// The drivers, those that cannot serve included.
    pub async fn drivers(&self) -> Vec<DriverView> {
        let mut views = Vec::new();
        for driver in self.0.drivers.values() {
            let asking = {
                let driver = driver.clone();
                tokio::spawn(async move { driver.capacity().await })
            };
            let (capacity, error) = match tokio::time::timeout(DOUBT, asking).await {
                Ok(Ok(Ok(capacity))) => (Some(capacity), None),
                Ok(Ok(Err(e))) => (None, Some(e)),
                _ => (None, Some(Error::unavailable("it does not answer", "look at its disk, and ask again"))),
            };
            let (name, kind) = (driver.name().clone(), driver.kind().to_owned());
            views.push(DriverView { name, kind, reach: Some(driver.reach()), capacity, error });
        }
        for (name, error) in &self.0.settings.unavailable {
            views.push(DriverView {
                name: name.clone(),
                kind: "unavailable".to_owned(),
                reach: None,
                capacity: None,
                error: Some(error.clone()),
            });
        }
        views
    }

    /// From where a driver's volumes can be reached; `Node` for one that cannot serve.
    pub fn reach(&self, driver: &DriverName) -> Reach {
        self.0.drivers.get(driver).map_or(Reach::Node, |driver| driver.reach())
    }

    /// The drivers that have a volume of this name, as far as memory or, failing that, the platforms know.
    pub async fn find(&self, name: &VolumeName) -> Result<Vec<VolumeId>> {
        let mut found = Vec::new();
        let mut doubt = None;
        for driver in self.0.drivers.keys() {
            let volume = VolumeId { driver: driver.clone(), name: name.clone() };
            match self.get(&volume).await {
                Ok(_) => found.push(volume),
                Err(e) if e.word() == "not_found" => {}
                Err(e) => doubt = Some(e),
            }
        }
        match (found.is_empty(), doubt) {
            (true, Some(e)) => Err(e),
            _ => Ok(found),
        }
    }

    /// Every volume that is mounted, held or worked on.
    pub fn active(&self) -> Vec<VolumeId> {
        read(&self.0.lanes)
            .iter()
            .filter(|(_, lane)| {
                let state = lock(&lane.state);
                !state.entry.is_empty() || !state.jobs.is_empty()
            })
            .map(|(volume, _)| volume.clone())
            .collect()
    }

    /// Waits until no job runs, no longer than `call`'s patience; says whether that is so.
    pub async fn drained(&self, call: &Call) -> bool {
        let all = async {
            loop {
                let job = read(&self.0.lanes).values().find_map(|lane| lane.running());
                match job {
                    Some(job) => drop(job.outcome().await),
                    None => return,
                }
            }
        };
        tokio::time::timeout(call.patience, all).await.is_ok()
    }

    /// Lets go of everything: for a machine that shuts down. Says what could not be let go.
    pub async fn release_all(&self, call: &Call) -> Vec<Error> {
        let mut failed = Vec::new();
        for volume in self.active() {
            if let Err(e) = self.drop_holders(&volume) {
                failed.push(e.of(&volume.name));
            }
            match self.unstage(call, &volume).await {
                Ok(crate::planner::Outcome::Lingering(users)) => {
                    let who = users.iter().map(ToString::to_string).collect();
                    failed.push(Error::in_use(who, self.node(), "a copy of its mount lives on", "end these processes").of(&volume.name));
                }
                Ok(_) => {}
                Err(e) => failed.push(e),
            }
        }
        for driver in self.0.drivers.values() {
            let closing = {
                let driver = driver.clone();
                tokio::spawn(async move { driver.close().await })
            };
            match tokio::time::timeout(call.patience, closing).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(e))) => failed.push(e),
                Ok(Err(e)) => failed.push(Error::internal(format!("the end of driver {} ended early: {e}", driver.name()))),
                Err(_) => failed.push(Error::timeout("close", "the platform did not answer in time")),
            }
        }
        failed
    }
}
