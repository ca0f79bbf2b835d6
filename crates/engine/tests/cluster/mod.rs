//! Nodes that share a platform in memory: what they have in common, and each with an engine and a kernel of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Machine, Recorder, create, docker, endpoint, hold, injected, rest, volume};
use async_trait::async_trait;
use dunnage_driver::{
    Adopt, Adoption, Allocated, Attached, Attachment, Capacity, Driver, Listing, NewVolume, Provision, Reach, Share, Sign, Stranger,
    Versioned, is_barred,
};
use dunnage_driver_local::Local;
use dunnage_engine::{Engine, Preempting};
use dunnage_host::{Detached, DeviceNumber};
use dunnage_model::{
    Client, DriverName, Error, Kind, NodeId, Owner, OwnerRecord, OwnerState, PartialSpec, Preempt, RemoveAction, Result, Usage, VolumeId,
    VolumeInfo, VolumeName, VolumeState,
};
use uuid::Uuid;

/// What all nodes share: records, who has what open, who is fenced, who gave a sign.
#[derive(Default)]
pub struct Platform {
    pub owners: BTreeMap<VolumeName, Versioned>,
    pub open: BTreeMap<VolumeName, BTreeSet<Client>>,
    pub fenced: BTreeSet<Client>,
    pub signs: BTreeMap<NodeId, Sign>,
    pub barred: BTreeSet<NodeId>,
    pub attached: u64,
    /// What was changed, in order.
    pub story: Vec<String>,
    /// What is being adopted.
    pub adopting: BTreeMap<VolumeName, VolumeInfo>,
    /// How many more calls work before one fails; whether that one does its work.
    pub fails_after: Option<(usize, bool)>,
    /// How long a node may be silent, where it is not for the usual time.
    pub silence: Option<Duration>,
}

/// One node's driver: the local one, on a pool that all have, and the platform.
pub struct Shared {
    pub local: Local,
    pub node: &'static str,
    pub platform: Arc<Mutex<Platform>>,
    pub mine: Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>,
}

impl Shared {
    /// Does something with the platform, if it answers.
    pub fn ask<T>(&self, act: impl FnOnce(&mut Platform) -> T) -> Result<T> {
        let mut platform = self.platform.lock().expect("platform");
        match platform.fails_after {
            Some((0, works)) => {
                platform.fails_after = None;
                if works {
                    act(&mut platform);
                }
                return Err(injected());
            }
            Some((more, works)) => platform.fails_after = Some((more - 1, works)),
            None => {}
        }
        Ok(act(&mut platform))
    }

    pub fn tell(&self, platform: &mut Platform, what: impl std::fmt::Display) {
        platform.story.push(format!("{}: {what}", self.node));
    }
}

#[async_trait]
impl Driver for Shared {
    fn name(&self) -> &DriverName {
        self.local.name()
    }
    fn kind(&self) -> &'static str {
        "shared"
    }
    fn reach(&self) -> Reach {
        Reach::Cluster
    }
    async fn list(&self) -> Result<Listing> {
        self.local.list().await
    }
    async fn inspect(&self, name: &VolumeName) -> Result<Option<VolumeInfo>> {
        let adopting = self.platform.lock().expect("platform").adopting.get(name).cloned();
        if adopting.is_some() { Ok(adopting) } else { self.local.inspect(name).await }
    }
    async fn attach(&self, name: &VolumeName) -> Result<Attached> {
        let attached = self.local.attach(name).await?;
        if !attached.found {
            let mut platform = self.platform.lock().expect("platform");
            platform.attached += 1;
            let client = Client(format!("{}-{}", self.node, platform.attached));
            self.tell(&mut platform, format_args!("attach as {client}"));
            platform.open.entry(name.clone()).or_default().insert(client.clone());
            self.mine.lock().expect("mine").entry(name.clone()).or_default().insert(client);
        }
        Ok(attached)
    }
    async fn detach(&self, name: &VolumeName, device: Option<DeviceNumber>) -> Result<Detached> {
        let detached = self.local.detach(name, device).await?;
        let mine = self.mine.lock().expect("mine").remove(name).unwrap_or_default();
        let mut platform = self.platform.lock().expect("platform");
        if !mine.is_empty() {
            self.tell(&mut platform, "detach");
        }
        platform.open.entry(name.clone()).or_default().retain(|client| !mine.contains(client));
        Ok(detached)
    }
    fn has_in_place(&self, name: &VolumeName, device: DeviceNumber) -> bool {
        self.local.has_in_place(name, device)
    }
    async fn attachments(&self) -> Result<Vec<Attachment>> {
        self.local.attachments().await
    }
    async fn capacity(&self) -> Result<Capacity> {
        self.local.capacity().await
    }
    fn provision(&self) -> Option<&dyn Provision> {
        Some(self)
    }
    fn adopt(&self) -> Option<&dyn Adopt> {
        Some(self)
    }
    fn share(&self) -> Option<&dyn Share> {
        Some(self)
    }
}

impl Shared {
    pub fn making(&self) -> &dyn Provision {
        self.local.provision().expect("it makes volumes")
    }

    pub fn adopting(&self) -> &dyn Adopt {
        Driver::adopt(&self.local).expect("it adopts")
    }
}

#[async_trait]
impl Provision for Shared {
    async fn record(&self, new: &NewVolume) -> Result<()> {
        self.making().record(new).await
    }
    async fn allocate(&self, name: &VolumeName) -> Result<Allocated> {
        self.making().allocate(name).await
    }
    async fn formatting(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        self.making().formatting(name, uuid).await
    }
    async fn publish(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.making().publish(name).await
    }
    async fn remove(&self, name: &VolumeName) -> Result<RemoveAction> {
        self.making().remove(name).await
    }
    async fn recover(&self, name: &VolumeName) -> Result<Option<String>> {
        if self.platform.lock().expect("platform").adopting.contains_key(name) {
            return self.ask(|platform| {
                platform.adopting.remove(name);
                platform.owners.remove(name);
                Some("undid its adoption".to_owned())
            });
        }
        self.making().recover(name).await
    }
}

#[async_trait]
impl Adopt for Shared {
    async fn strangers(&self) -> Result<Vec<Stranger>> {
        self.adopting().strangers().await
    }
    async fn stranger(&self, name: &VolumeName) -> Result<Option<Stranger>> {
        self.adopting().stranger(name).await
    }
    async fn claim(&self, adoption: &Adoption, me: &Owner) -> Result<()> {
        let spec = PartialSpec::default().complete().expect("a spec");
        let id = VolumeId { driver: self.local.name().clone(), name: adoption.name.clone() };
        let endpoint = adoption.endpoint.clone();
        let (state, created, usage) = (VolumeState::Creating, adoption.adopted, Usage::default());
        let info = VolumeInfo { id, endpoint, spec, created, state, why: None, fs_uuid: None, growing: false, usage };
        let state = OwnerState::Held { owner: me.clone(), clients: None, taken: false };
        self.ask(|platform| {
            if platform.owners.contains_key(&adoption.name) {
                return Err(Error::unavailable("another node makes it", "ask again"));
            }
            self.tell(platform, "claim");
            let record = OwnerRecord { epoch: 1, ..OwnerRecord::new().with(state) };
            platform.owners.insert(adoption.name.clone(), Versioned { revision: 1, record });
            platform.adopting.insert(adoption.name.clone(), info);
            Ok(())
        })?
    }
    async fn renew(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        self.adopting().renew(name, uuid).await
    }
    async fn adopt(&self, adoption: &Adoption) -> Result<VolumeInfo> {
        let answer = self.ask(|platform| {
            self.tell(platform, "adopt");
            platform.adopting.remove(&adoption.name)
        });
        let done = !self.platform.lock().expect("platform").adopting.contains_key(&adoption.name);
        let info = if done { self.adopting().adopt(adoption).await } else { Err(injected()) };
        answer.and(info)
    }
    async fn discard(&self, name: &VolumeName) -> Result<()> {
        self.adopting().discard(name).await
    }
}

#[async_trait]
impl Share for Shared {
    fn silence(&self) -> Duration {
        self.platform.lock().expect("platform").silence.unwrap_or(dunnage_driver::SILENCE)
    }
    async fn owner(&self, name: &VolumeName) -> Result<Option<Versioned>> {
        self.ask(|platform| platform.owners.get(name).cloned())
    }
    async fn swap(&self, name: &VolumeName, expected: Option<u64>, record: &OwnerRecord) -> Result<Option<Versioned>> {
        self.ask(|platform| {
            let found = platform.owners.get(name).map(|found| found.revision);
            if found != expected {
                return None;
            }
            self.tell(platform, shown(&record.state));
            let written = Versioned { revision: found.unwrap_or(0) + 1, record: record.clone() };
            platform.owners.insert(name.clone(), written.clone());
            Some(written)
        })
    }
    async fn clients(&self, name: &VolumeName) -> Result<BTreeSet<Client>> {
        self.ask(|platform| platform.open.get(name).cloned().unwrap_or_default())
    }
    async fn mine(&self, name: &VolumeName) -> Result<BTreeSet<Client>> {
        Ok(self.mine.lock().expect("mine").get(name).cloned().unwrap_or_default())
    }
    async fn fence(&self, clients: &BTreeSet<Client>) -> Result<()> {
        self.ask(|platform| {
            for client in clients {
                self.tell(platform, format_args!("fence {client}"));
                platform.fenced.insert(client.clone());
            }
        })
    }
    async fn barrier(&self, _name: &VolumeName) -> Result<()> {
        self.ask(|platform| self.tell(platform, "barrier"))
    }
    async fn give_sign(&self, me: &Owner, counter: u64) -> Result<()> {
        self.ask(|platform| {
            if platform.barred.contains(&me.node) {
                return Err(is_barred(&me.node));
            }
            let other = platform.signs.get(&me.node).is_some_and(|sign| sign.watched && sign.boot != me.boot);
            if other {
                let kind = Kind::InUse { holders: vec![format!("node {}", me.node)], node: me.node.to_string() };
                return Err(Error::new(kind, "another machine runs under this node's name", "give each its own"));
            }
            platform.signs.insert(me.node.clone(), Sign { boot: me.boot.clone(), watched: true, counter });
            Ok(())
        })?
    }
    async fn sign(&self, of: &NodeId) -> Result<Option<Sign>> {
        self.ask(|platform| platform.signs.get(of).cloned())
    }
    async fn nodes(&self) -> Result<Vec<NodeId>> {
        self.ask(|platform| platform.signs.keys().cloned().collect())
    }
    async fn owners(&self) -> Result<Vec<(VolumeName, OwnerRecord)>> {
        self.ask(|platform| platform.owners.iter().map(|(name, found)| (name.clone(), found.record.clone())).collect())
    }
    async fn bar(&self, node: &NodeId, barred: bool) -> Result<()> {
        self.ask(|platform| {
            platform.barred.retain(|known| known != node);
            platform.barred.extend(barred.then(|| node.clone()));
        })
    }
    async fn barred(&self) -> Result<BTreeSet<NodeId>> {
        self.ask(|platform| platform.barred.clone())
    }
}

pub fn shown(state: &OwnerState) -> String {
    let names = |clients: &BTreeSet<Client>| clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    match state {
        OwnerState::Free => "free".to_owned(),
        OwnerState::Held { owner, clients: None, .. } => format!("held by {}", owner.node),
        OwnerState::Held { owner, clients: Some(clients), .. } => format!("held by {} as {}", owner.node, names(clients)),
        OwnerState::Fencing { by, victims, everybody } => {
            format!("fencing by {} of {}{}", by.node, names(victims), if *everybody { " and everybody" } else { "" })
        }
    }
}

/// A node: a kernel of its own, and a daemon.
pub struct Node {
    pub machine: Machine,
    pub engine: Engine,
    pub steps: Arc<Recorder>,
    pub mine: Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>,
}

/// The nodes, and what they share.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub platform: Arc<Mutex<Platform>>,
}

impl Cluster {
    pub fn new() -> Cluster {
        let folder = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).expect("a folder");
        Cluster { folder, platform: Arc::default() }
    }

    pub fn driver(&self, local: Local, node: &'static str, mine: &Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>) -> Arc<dyn Driver> {
        Arc::new(Shared { local, node, platform: self.platform.clone(), mine: mine.clone() })
    }

    pub async fn node(&self, name: &'static str) -> Node {
        self.node_with(name, Preempt::IfDead).await
    }

    pub async fn node_with(&self, name: &'static str, preempt: Preempt) -> Node {
        let (machine, mine, steps) = (Machine::new(), Arc::default(), Arc::new(Recorder::default()));
        let driver = self.driver(machine.driver_on(&self.pool()).await, name, &mine);
        let policy = Preempting { endpoints: BTreeMap::from([(endpoint(), preempt)]), ..Preempting::default() };
        let engine = machine.start_as(name, vec![driver], policy, steps.clone()).await.expect("it starts");
        engine.settle().await;
        engine.give_sign(&volume("pg").driver).await.expect("it lives");
        rest(&engine).await;
        Node { machine, engine, steps, mine }
    }

    pub fn pool(&self) -> std::path::PathBuf {
        self.folder.path().join("pool")
    }

    /// What was changed on the platform since the last call of this.
    pub fn story(&self) -> Vec<String> {
        std::mem::take(&mut self.platform.lock().expect("platform").story)
    }

    pub fn state(&self) -> String {
        shown(&self.platform.lock().expect("platform").owners[&volume("pg").name].record.state)
    }

    /// A node loses its power: its watch goes, and what it has open is seen no more.
    pub fn dies(&self, name: &str) {
        let mut platform = self.platform.lock().expect("platform");
        platform.signs.get_mut(&name.parse().expect("name")).expect("it gave a sign").watched = false;
        for open in platform.open.values_mut() {
            open.retain(|client| !client.0.starts_with(name));
        }
    }
}

/// Two nodes, and `pg`, which the first one holds.
pub async fn held_by_a(policy_of_b: Preempt) -> (Cluster, Node, Node) {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node_with("b", policy_of_b).await);
    create(&a.engine, "pg").await.expect("created");
    hold(&a.engine, "pg", &docker("c1")).await;
    cluster.story();
    (cluster, a, b)
}

impl Node {
    pub fn mounted(&self) -> bool {
        self.machine.fake.mounted().iter().any(|path| path.ends_with(Path::new("local/pg")))
    }

    /// That is done behind the back of the signs.
    pub async fn looks_for_what_was_lost(&self) {
        let begun = std::time::Instant::now();
        while self.machine.count("shut-down") == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it did not look for what it has lost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Time goes on, and this node gives its signs of life meanwhile.
    pub async fn lives_for(&self, seconds: i64) {
        for _ in 0..seconds.div_euclid(3) {
            self.machine.clock.advance(3);
            self.engine.give_sign(&volume("pg").driver).await.expect("it lives");
        }
    }
}
