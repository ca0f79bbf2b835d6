//! Volumes that several nodes can attach: engines that take them from each other, on one platform in memory.

#![allow(clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::{Machine, Recorder, call, create, docker, endpoint, hold, injected, mount, rest, unmount, volume};
use dunnage_driver::{Adopt, Attached, Attachment, Capacity, Driver, Listing, Provision, Reach, Share, Sign, Versioned, is_barred};
use dunnage_driver_local::Local;
use dunnage_engine::Engine;
use dunnage_host::{Detached, DeviceNumber};
use dunnage_model::{Client, DriverName, Error, Kind, NodeId, Owner, OwnerRecord, OwnerState, Preempt, Result, VolumeInfo, VolumeName};

/// What all nodes share: records, who has what open, who is fenced, who gave a sign.
#[derive(Default)]
struct Platform {
    owners: BTreeMap<VolumeName, Versioned>,
    open: BTreeMap<VolumeName, BTreeSet<Client>>,
    fenced: BTreeSet<Client>,
    signs: BTreeMap<NodeId, Sign>,
    barred: BTreeSet<NodeId>,
    attached: u64,
    /// What was changed, in order.
    story: Vec<String>,
    /// How many more calls work before one fails; whether that one does its work.
    fails_after: Option<(usize, bool)>,
}

/// One node's driver: the local one, on a pool that all have, and the platform.
struct Shared {
    local: Local,
    node: &'static str,
    platform: Arc<Mutex<Platform>>,
    mine: Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>,
}

impl Shared {
    /// Does something with the platform, if it answers.
    fn ask<T>(&self, act: impl FnOnce(&mut Platform) -> T) -> Result<T> {
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

    fn tell(&self, platform: &mut Platform, what: impl std::fmt::Display) {
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
        self.local.inspect(name).await
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
        self.local.provision()
    }
    fn adopt(&self) -> Option<&dyn Adopt> {
        None
    }
    fn share(&self) -> Option<&dyn Share> {
        Some(self)
    }
}

#[async_trait]
impl Share for Shared {
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

fn shown(state: &OwnerState) -> String {
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
struct Node {
    machine: Machine,
    engine: Engine,
    steps: Arc<Recorder>,
    mine: Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>,
}

/// The nodes, and what they share.
struct Cluster {
    folder: tempfile::TempDir,
    platform: Arc<Mutex<Platform>>,
}

impl Cluster {
    fn new() -> Cluster {
        let folder = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).expect("a folder");
        Cluster { folder, platform: Arc::default() }
    }

    fn driver(&self, local: Local, node: &'static str, mine: &Arc<Mutex<BTreeMap<VolumeName, BTreeSet<Client>>>>) -> Arc<dyn Driver> {
        Arc::new(Shared { local, node, platform: self.platform.clone(), mine: mine.clone() })
    }

    async fn node(&self, name: &'static str) -> Node {
        self.node_with(name, Preempt::IfDead).await
    }

    async fn node_with(&self, name: &'static str, preempt: Preempt) -> Node {
        let (machine, mine, steps) = (Machine::new(), Arc::default(), Arc::new(Recorder::default()));
        let driver = self.driver(machine.driver_on(&self.pool()).await, name, &mine);
        let policy = BTreeMap::from([(endpoint(), preempt)]);
        let engine = machine.start_as(name, vec![driver], policy, steps.clone()).await.expect("it starts");
        engine.settle().await;
        engine.give_signs().await;
        rest(&engine).await;
        Node { machine, engine, steps, mine }
    }

    fn pool(&self) -> std::path::PathBuf {
        self.folder.path().join("pool")
    }

    /// What was changed on the platform since the last call of this.
    fn story(&self) -> Vec<String> {
        std::mem::take(&mut self.platform.lock().expect("platform").story)
    }

    fn state(&self) -> String {
        shown(&self.platform.lock().expect("platform").owners[&volume("pg").name].record.state)
    }

    /// A node loses its power: its watch goes, and what it has open is seen no more.
    fn dies(&self, name: &str) {
        let mut platform = self.platform.lock().expect("platform");
        platform.signs.get_mut(&name.parse().expect("name")).expect("it gave a sign").watched = false;
        for open in platform.open.values_mut() {
            open.retain(|client| !client.0.starts_with(name));
        }
    }
}

/// Two nodes, and `pg`, which the first one holds.
async fn held_by_a(policy_of_b: Preempt) -> (Cluster, Node, Node) {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node_with("b", policy_of_b).await);
    create(&a.engine, "pg").await.expect("created");
    hold(&a.engine, "pg", &docker("c1")).await;
    cluster.story();
    (cluster, a, b)
}

impl Node {
    fn mounted(&self) -> bool {
        self.machine.fake.mounted().iter().any(|path| path.ends_with(Path::new("local/pg")))
    }

    /// Time goes on, and this node gives its signs of life meanwhile.
    async fn lives_for(&self, seconds: i64) {
        for _ in 0..seconds.div_euclid(3) {
            self.machine.clock.advance(3);
            self.engine.give_signs().await;
        }
    }
}

#[tokio::test]
async fn law_6_a_volume_is_owned_before_it_is_attached_named_before_it_is_read_and_given_up_last_of_all() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    a.steps.forget();
    hold(&a.engine, "pg", &docker("c1")).await;
    assert_eq!(cluster.story(), ["a: held by a", "a: attach as a-1", "a: held by a as a-1"]);
    let order: Vec<String> = a.steps.steps().into_iter().filter(|step| !step.contains("own-")).collect();
    // What was known of it before it was ours is asked for again.
    let wanted = ["record", "own", "inspect", "attach", "name", "mount", "commit", "done"].map(|step| format!("stage/{step}"));
    assert_eq!(order[2..10], wanted);
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    assert_eq!(cluster.story(), ["a: detach", "a: free"]);
    a.machine.assert_clean("after the last holder went");
}

#[tokio::test]
async fn law_6_what_a_node_that_lives_has_is_waited_for_and_mounted_when_it_lets_go() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished() && !b.mounted());
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    assert!(b.mounted() && !a.mounted());
    assert_eq!(cluster.state(), "held by b as b-2");
    assert_eq!(cluster.platform.lock().expect("platform").fenced, BTreeSet::new());
}

#[tokio::test]
async fn law_6_what_a_node_that_lives_keeps_is_in_use_there_and_the_error_says_so() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.lives_for(48).await;
    let error = waiting.await.expect("no panic").err().expect("refused").to_string();
    assert!(error.starts_with("in_use{a}") && error.contains("volume \"pg\"") && error.contains("node a"), "{error}");
    assert!(a.mounted() && !b.mounted());
    assert_eq!(cluster.state(), "held by a as a-1");
    b.machine.assert_clean("after the refusal");
}

#[tokio::test]
async fn law_9_nobody_waits_for_another_node_on_behalf_of_a_caller_that_has_gone() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    waiting.abort();
    rest(&b.engine).await;
    b.machine.assert_clean("after its caller had gone");
    assert_eq!(cluster.state(), "held by a as a-1");
    // A retry while it waits joins it, and both are answered when it comes.
    let first = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    let second = tokio::spawn(mount(&b.engine, "pg", &docker("c3")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    for waiting in [first, second] {
        waiting.await.expect("no panic").expect("mounted").claim.delivered();
    }
    assert_eq!(b.machine.count("mount"), 1);
}

#[tokio::test]
async fn law_6_what_a_late_change_has_made_this_node_s_is_given_up_when_it_looks_again() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    create(&a.engine, "pg").await.expect("created");
    {
        let mut platform = cluster.platform.lock().expect("platform");
        let owner = Owner { node: "a".parse().expect("name"), boot: dunnage_model::BootId("boot-0".to_owned()) };
        let record = OwnerRecord::new().with(OwnerState::Held { owner, clients: None, taken: false });
        platform.owners.insert(volume("pg").name, Versioned { revision: 7, record });
    }
    a.engine.settle().await;
    rest(&a.engine).await;
    assert_eq!(cluster.state(), "free");
    hold(&b.engine, "pg", &docker("c2")).await;
    // What is in use stays.
    b.engine.settle().await;
    rest(&b.engine).await;
    assert!(b.mounted());
    assert_eq!(cluster.state(), "held by b as b-1");
}

#[tokio::test]
async fn law_6_a_dead_node_s_volume_is_taken_with_its_clients_cut_off_and_the_barrier_passed_before_it_is_attached() {
    let (cluster, _a, b) = held_by_a(Preempt::IfDead).await;
    cluster.dies("a");
    cluster.story();
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    // Silence counts from when it was looked at, and for as long as it must.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(cluster.story().is_empty() && !waiting.is_finished());
    b.lives_for(18).await;
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    let expected = ["fencing by b of a-1", "fence a-1", "barrier", "held by b", "attach as b-2", "held by b as b-2"];
    assert_eq!(cluster.story(), expected.map(|what| format!("b: {what}")));
}

#[tokio::test]
async fn law_6_always_takes_it_from_a_node_that_lives_and_cuts_it_off_first() {
    let (cluster, a, b) = held_by_a(Preempt::Always).await;
    cluster.story();
    hold(&b.engine, "pg", &docker("c2")).await;
    assert_eq!(cluster.story()[..3], ["b: fencing by b of a-1", "b: fence a-1", "b: barrier"]);
    // The old owner lets go later, and takes nothing back.
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    assert_eq!(cluster.state(), "held by b as b-2");
}

#[tokio::test]
async fn law_6_who_loses_it_while_it_attaches_reads_nothing() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node_with("b", Preempt::Always).await);
    create(&a.engine, "pg").await.expect("created");
    let platform = cluster.platform.clone();
    a.steps.at_each(move |_, step, after| {
        if step == "attach" && after {
            // Between two steps of ours another has taken it, and has done with it.
            let mut platform = platform.lock().expect("platform");
            let found = platform.owners.get_mut(&volume("pg").name).expect("claimed");
            let by = Owner { node: "c".parse().expect("name"), boot: dunnage_model::BootId("1".to_owned()) };
            (found.revision, found.record.epoch) = (found.revision + 2, found.record.epoch + 1);
            found.record.state = OwnerState::Held { owner: by, clients: None, taken: true };
        }
    });
    let error = mount(&a.engine, "pg", &docker("c1")).await.err().expect("refused").to_string();
    assert!(error.contains("another node has taken it"), "{error}");
    a.machine.assert_clean("after it was lost");
    assert_eq!(a.machine.count("mount"), 0, "it was read");
    assert_eq!(cluster.state(), "held by c");
    assert_eq!(b.mine.lock().expect("mine").len(), 0);
}

#[tokio::test]
async fn law_6_what_nobody_could_cut_off_is_not_read() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    let mine = a.mine.clone();
    // A driver that does not know by which client it has attached.
    a.steps.at_each(move |_, step, after| {
        if step == "attach" && after {
            mine.lock().expect("mine").clear();
        }
    });
    let error = mount(&a.engine, "pg", &docker("c1")).await.err().expect("refused").to_string();
    assert!(error.contains("by which client"), "{error}");
    assert_eq!(a.machine.count("mount"), 0, "it was read");
    assert_eq!(cluster.state(), "free");
}

#[tokio::test]
async fn law_6_a_removal_of_what_another_node_has_is_refused_at_once() {
    let (cluster, a, b) = held_by_a(Preempt::Always).await;
    let error = b.engine.remove(&call(&b.engine), &volume("pg")).await.expect_err("refused").to_string();
    assert!(error.starts_with("in_use{a}"), "{error}");
    assert!(a.mounted() && cluster.pool().join("pg/image").exists());
}

#[tokio::test]
async fn law_6_two_machines_under_one_name_do_not_both_attach() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    // Another machine, which runs since another boot, has the lease of this name.
    cluster.platform.lock().expect("platform").signs.get_mut(&"a".parse().expect("name")).expect("a sign").boot =
        dunnage_model::BootId("of another machine".to_owned());
    a.machine.clock.advance(30);
    let waiting = tokio::spawn(mount(&a.engine, "pg", &docker("c1")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.machine.clock.advance(48);
    let error = waiting.await.expect("no panic").err().expect("refused").to_string();
    assert!(error.contains("another machine runs under this node's name"), "{error}");
    a.machine.assert_clean("after the refusal");
}

#[tokio::test]
async fn law_6_an_earlier_run_of_this_node_is_waited_for_until_the_platform_sees_it_no_more() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    let sign = |change: &dyn Fn(&mut Sign)| {
        change(cluster.platform.lock().expect("platform").signs.get_mut(&"a".parse().expect("name")).expect("a sign"))
    };
    sign(&|sign| sign.boot = dunnage_model::BootId("before this one".to_owned()));
    a.machine.clock.advance(30);
    let waiting = tokio::spawn(mount(&a.engine, "pg", &docker("c1")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished() && !a.mounted());
    sign(&|sign| sign.watched = false);
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    assert!(a.mounted());
}

#[tokio::test]
async fn law_6_a_platform_that_fails_at_any_call_leaves_a_volume_that_is_mounted_or_free_for_others() {
    for works in [false, true] {
        for calls in 0.. {
            let cluster = Cluster::new();
            let (a, b) = (cluster.node("a").await, cluster.node("b").await);
            create(&a.engine, "pg").await.expect("created");
            cluster.platform.lock().expect("platform").fails_after = Some((calls, works));
            let outcome = mount(&a.engine, "pg", &docker("c1")).await;
            let all_worked = cluster.platform.lock().expect("platform").fails_after.take().is_some();
            match outcome {
                Ok(mounted) => mounted.claim.delivered(),
                Err(e) => assert_eq!(e.word(), "platform_unavailable", "{e}"),
            }
            if !a.mounted() {
                // What could not be given up is, with a sweep.
                a.engine.sweep();
                rest(&a.engine).await;
                a.machine.assert_clean(&format!("after call {calls} failed"));
                hold(&b.engine, "pg", &docker("c2")).await;
                assert!(b.mounted());
            }
            if all_worked {
                assert!(a.mounted() && calls > 4, "{calls} calls");
                break;
            }
        }
    }
}
