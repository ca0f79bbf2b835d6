//! A machine in memory for the engine: the fake host, the real `local` driver on a pool of files, and outside things
//! (clock, chance, boot, watcher) that do what a test says.
#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dunnage_driver::Driver;
use dunnage_driver_local::{Limits, Local, tasks};
use dunnage_engine::ledger::{Entry, Ledger};
use dunnage_engine::{Boot, Call, Clock, CreateRequest, Engine, Mounted, Preempting, Random, Settings, Unmounted, Watcher};
use dunnage_host::fake::FakeHost;
use dunnage_host::helpers::{Registry, Runner};
use dunnage_host::{Host, Mounts, Target};
use dunnage_model::{
    BootId, Bytes, Caller, CallerKind, CreateAction, EndpointName, Error, Holder, HolderKey, PartialSpec, Result, VolumeId, VolumeInfo,
};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::Notify;

const LIMITS: Limits = Limits { reserve_permille: 0, warn_permille: 1000, overcommit_permille: None };

/// How long a test waits for what must come.
const BOUND: Duration = Duration::from_secs(20);

/// A clock that goes on only when told.
pub struct FakeClock(AtomicI64);

impl FakeClock {
    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::Relaxed)).expect("a time")
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed).unsigned_abs())
    }
}

/// Numbers that nobody guesses, and that are the same in every run (splitmix64).
pub struct FakeRandom(AtomicU64);

impl FakeRandom {
    pub fn new(seed: u64) -> Self {
        FakeRandom(AtomicU64::new(seed))
    }

    fn next64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&self, end: usize) -> usize {
        usize::try_from(self.next64() % end as u64).expect("small")
    }
}

impl Random for FakeRandom {
    fn next(&self) -> u128 {
        u128::from(self.next64()) << 64 | u128::from(self.next64())
    }
}

/// Boots when told.
#[derive(Default)]
pub struct FakeBoot(AtomicU64);

impl FakeBoot {
    pub fn reboot(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Boot for FakeBoot {
    fn id(&self) -> Result<BootId> {
        Ok(BootId(format!("boot-{}", self.0.load(Ordering::Relaxed))))
    }
}

type Hook = Box<dyn Fn(&str, &str, bool) + Send + Sync>;

/// Remembers the steps that were begun, and may do something at each.
#[derive(Default)]
pub struct Recorder {
    steps: Mutex<Vec<String>>,
    hook: OnceLock<Hook>,
}

impl Recorder {
    /// `goal/step` of every step that was begun.
    pub fn steps(&self) -> Vec<String> {
        self.steps.lock().expect("steps").clone()
    }

    pub fn forget(&self) {
        self.steps.lock().expect("steps").clear();
    }

    /// What is done at each step, before it and after it.
    pub fn at_each(&self, hook: impl Fn(&str, &str, bool) + Send + Sync + 'static) {
        assert!(self.hook.set(Box::new(hook)).is_ok(), "one hook is enough");
    }
}

impl Watcher for Recorder {
    fn step(&self, goal: &str, step: &str, after: bool) {
        if !after {
            self.steps.lock().expect("steps").push(format!("{goal}/{step}"));
        }
        if let Some(hook) = self.hook.get() {
            hook(goal, step, after);
        }
    }
}

/// What a driver's task is made to do. (The fake host's faults are for the kernel's calls.)
#[derive(Clone)]
pub enum TaskFault {
    /// It fails, and has done nothing.
    Error,
    /// It does its work, and then fails.
    ErrorAfter,
    /// It does not begin before the bell is rung.
    Hang(Arc<Notify>),
    /// It does its work, and its answer does not come before the bell is rung.
    HangAfter(Arc<Notify>),
}

/// Runs the driver's tasks in this process, and fails where a plan says so.
pub struct Tasks {
    inner: Arc<dyn Runner>,
    plan: Mutex<Vec<(String, usize, TaskFault)>>,
    calls: Mutex<Vec<String>>,
}

impl Tasks {
    /// The task of this name does this the next time, after `skipped` times.
    pub fn plan(&self, task: &str, skipped: usize, fault: TaskFault) {
        self.plan.lock().expect("plan").push((task.to_owned(), skipped, fault));
    }

    /// The next task of this name hangs until the bell is rung.
    pub fn hang(&self, task: &str) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        self.plan(task, 0, TaskFault::Hang(bell.clone()));
        bell
    }

    /// The next task of this name is done, but its answer does not come until the bell is rung.
    pub fn hang_after(&self, task: &str) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        self.plan(task, 0, TaskFault::HangAfter(bell.clone()));
        bell
    }

    /// The names of the tasks so far; one that hangs with its work done adds `NAME is done`.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("calls").clone()
    }

    pub fn forget_calls(&self) {
        self.calls.lock().expect("calls").clear();
    }

    fn fault(&self, name: &str) -> Option<TaskFault> {
        let mut plan = self.plan.lock().expect("plan");
        let at = plan.iter().position(|(task, _, _)| task == name)?;
        if plan[at].1 > 0 {
            plan[at].1 -= 1;
            return None;
        }
        Some(plan.remove(at).2)
    }
}

/// The error that a test puts in.
pub fn injected() -> Error {
    Error::unavailable("injected", "try again")
}

#[async_trait]
impl Runner for Tasks {
    async fn run_frame(&self, frame: Vec<u8>) -> Result<Vec<u8>> {
        let name = String::from_utf8_lossy(frame.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        self.calls.lock().expect("calls").push(name.clone());
        match self.fault(&name) {
            None => self.inner.run_frame(frame).await,
            Some(TaskFault::Error) => Err(injected()),
            Some(TaskFault::ErrorAfter) => self.inner.run_frame(frame).await.and(Err(injected())),
            Some(TaskFault::Hang(bell)) => {
                bell.notified().await;
                self.inner.run_frame(frame).await
            }
            Some(TaskFault::HangAfter(bell)) => {
                let answer = self.inner.run_frame(frame).await;
                self.calls.lock().expect("calls").push(format!("{name} is done"));
                bell.notified().await;
                answer
            }
        }
    }
}

/// One machine.
pub struct Machine {
    pub folder: TempDir,
    pub fake: FakeHost,
    /// The tasks of driver `local`.
    pub tasks: Arc<Tasks>,
    /// The tasks of driver `other`, for tests that want two.
    pub other_tasks: Arc<Tasks>,
    pub boot: FakeBoot,
    pub clock: Arc<FakeClock>,
    pub random: Arc<FakeRandom>,
}

/// A machine whose daemons may have stopped for ever: they keep it, and its folder goes all the same.
pub struct Shared(pub Arc<Machine>);

impl std::ops::Deref for Shared {
    type Target = Arc<Machine>;
    fn deref(&self) -> &Arc<Machine> {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

impl Machine {
    /// One that was just installed. Its disk is memory where there is some: nobody waits for an fsync.
    pub fn new() -> Machine {
        let fake = FakeHost::default();
        let runner = || {
            let inner = fake.host(tasks(Registry::default())).runner;
            Arc::new(Tasks { inner, plan: Mutex::default(), calls: Mutex::default() })
        };
        let (tasks, other_tasks) = (runner(), runner());
        Machine {
            folder: TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a folder"),
            fake,
            tasks,
            other_tasks,
            boot: FakeBoot::default(),
            clock: Arc::new(FakeClock(AtomicI64::new(1_700_000_000))),
            random: Arc::new(FakeRandom::new(1)),
        }
    }

    pub fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    pub fn volumes(&self) -> PathBuf {
        self.folder.path().join("volumes")
    }

    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("run/ledger")
    }

    /// The image of a volume.
    pub fn image(&self, name: &str) -> PathBuf {
        self.pool().join(name).join("image")
    }

    /// Where a volume is when it is mounted.
    pub fn path(&self, name: &str) -> PathBuf {
        self.volumes().join("local").join(name)
    }

    fn host(&self, tasks: &Arc<Tasks>) -> Host {
        Host { runner: tasks.clone(), ..self.fake.host(Registry::default()) }
    }

    async fn driver(&self, name: &str, pool: &str, tasks: &Arc<Tasks>) -> Arc<dyn Driver> {
        let pool = self.folder.path().join(pool);
        let driver = Local::new(name.parse().expect("driver"), pool, LIMITS, self.host(tasks));
        driver.open().await.expect("a pool");
        Arc::new(driver)
    }

    /// Driver `local` on a pool that other machines have, too.
    pub async fn driver_on(&self, pool: &Path) -> Local {
        let driver = Local::new("local".parse().expect("driver"), pool.to_owned(), LIMITS, self.host(&self.tasks));
        driver.open().await.expect("a pool");
        driver
    }

    /// A daemon that has started, and has not asked any platform.
    pub async fn start_watched(&self, watcher: Arc<Recorder>) -> Result<Engine> {
        let drivers = vec![self.driver("local", "pool", &self.tasks).await];
        self.start_with(drivers, watcher).await
    }

    /// The same with two drivers, `local` and `other`.
    pub async fn start_two(&self) -> Engine {
        let drivers = vec![self.driver("local", "pool", &self.tasks).await, self.driver("other", "other", &self.other_tasks).await];
        self.start_with(drivers, Arc::default()).await.expect("it starts")
    }

    async fn start_with(&self, drivers: Vec<Arc<dyn Driver>>, watcher: Arc<Recorder>) -> Result<Engine> {
        self.start_as("n1", drivers, Preempting::default(), watcher).await
    }

    /// One node of several.
    pub async fn start_as(&self, node: &str, drivers: Vec<Arc<dyn Driver>>, preempt: Preempting, watcher: Arc<Recorder>) -> Result<Engine> {
        Engine::start(Settings {
            node: node.parse().expect("node"),
            boot: self.boot.id()?,
            volumes: self.volumes(),
            layout: dunnage_engine::Layout::default(),
            ledger: self.ledger(),
            drivers,
            unavailable: BTreeMap::new(),
            preempt: preempt.into(),
            host: self.host(&self.tasks),
            clock: self.clock.clone(),
            random: self.random.clone(),
            watcher,
        })
        .await
    }

    /// A daemon that serves: started, settled and at rest.
    pub async fn start(&self) -> Engine {
        let engine = self.start_watched(Arc::default()).await.expect("it starts");
        engine.settle().await;
        rest(&engine).await;
        engine
    }

    /// The same, with the steps that it makes from then on.
    pub async fn start_recorded(&self) -> (Engine, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let engine = self.start_watched(recorder.clone()).await.expect("it starts");
        engine.settle().await;
        rest(&engine).await;
        recorder.forget();
        (engine, recorder)
    }

    /// A daemon with one volume `pg`.
    pub async fn with_pg(&self) -> Engine {
        let engine = self.start().await;
        create(&engine, "pg").await.expect("created");
        self.fake.forget_calls();
        engine
    }

    /// The machine goes down and comes up again.
    pub fn reboot(&self) {
        self.fake.reboot();
        self.boot.reboot();
    }

    /// Somebody unmounts a volume by hand.
    pub async fn umount_by_hand(&self, name: &str) {
        let target = Target { root: self.volumes(), relative: Path::new("local").join(name), medium: dunnage_host::Medium::Device };
        let there = self.fake.at(&target).await.expect("looked").expect("it is mounted");
        self.fake.unmount(&target, there.device).await.expect("unmounted");
        self.fake.forget_calls();
    }

    /// How many loops there are on the images of the pool.
    pub fn attached(&self) -> usize {
        self.fake.attached()
    }

    /// How often a call was made, such as `mount`.
    pub fn count(&self, operation: &str) -> usize {
        self.fake.calls().iter().filter(|call| call.split(' ').next() == Some(operation)).count()
    }

    /// The names in the pool.
    pub fn in_pool(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.pool()).expect("the pool");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
    }

    /// The entries that a daemon which starts now would find.
    pub fn in_ledger(&self) -> BTreeMap<String, Entry> {
        // A copy: to open one is to tidy it.
        let copy = TempDir::new_in(self.folder.path()).expect("a folder");
        if let Ok(drivers) = std::fs::read_dir(self.ledger()) {
            for driver in drivers {
                let driver = driver.expect("an entry");
                std::fs::create_dir(copy.path().join(driver.file_name())).expect("mkdir");
                for file in std::fs::read_dir(driver.path()).expect("list") {
                    let file = file.expect("an entry");
                    std::fs::copy(file.path(), copy.path().join(driver.file_name()).join(file.file_name())).expect("copy");
                }
            }
        }
        let (_, loaded) = Ledger::open(copy.path().to_owned(), self.boot.id().expect("boot")).expect("a ledger");
        assert_eq!(loaded.notes, Vec::<String>::new());
        loaded.entries.into_iter().map(|entry| (entry.volume.name.to_string(), entry)).collect()
    }

    /// Nothing is mounted, attached or remembered.
    pub fn assert_clean(&self, when: &str) {
        assert_eq!(self.fake.mounted(), Vec::<PathBuf>::new(), "mounts are left {when}");
        assert_eq!(self.attached(), 0, "loops are left {when}");
        assert_eq!(self.in_ledger(), BTreeMap::new(), "the ledger is not empty {when}");
    }

    /// What is mounted is attached and held, and nothing else is.
    pub fn assert_consistent(&self, engine: &Engine, when: &str) {
        let ledger = self.in_ledger();
        let held: Vec<PathBuf> =
            ledger.values().filter(|entry| !entry.holders.is_empty()).map(|e| self.path(e.volume.name.as_str())).collect();
        assert_eq!(self.fake.mounted(), held, "mounted and held differ {when}: {ledger:?}");
        assert_eq!(self.attached(), held.len(), "attached and mounted differ {when}");
        assert_eq!(engine.active().len(), held.len(), "something is unfinished {when}: {:?}", engine.active());
    }
}

pub fn volume(name: &str) -> VolumeId {
    VolumeId { driver: "local".parse().expect("driver"), name: name.parse().expect("name") }
}

/// A volume of the second driver.
pub fn volume_of_other(name: &str) -> VolumeId {
    VolumeId { driver: "other".parse().expect("driver"), ..volume(name) }
}

pub fn endpoint() -> EndpointName {
    "dunnage".parse().expect("endpoint")
}

/// A dockerd's hold.
pub fn docker(id: &str) -> HolderKey {
    HolderKey { endpoint: endpoint(), caller: Caller::of_plugin(Some(id.to_owned())) }
}

/// The hold of a caller without an ID: dvdcli.
pub fn anonymous() -> HolderKey {
    HolderKey { endpoint: endpoint(), caller: Caller { kind: CallerKind::Plain, id: None } }
}

/// A request of a caller that waits so long.
pub fn patient(engine: &Engine, patience: Duration) -> Call {
    Call { operation: engine.operation(), patience }
}

/// A request of a caller that waits as long as it takes.
pub fn call(engine: &Engine) -> Call {
    patient(engine, BOUND)
}

pub fn request(name: &str) -> CreateRequest {
    let asked = PartialSpec { size: Some(Bytes::mib(64)), ..PartialSpec::default() };
    CreateRequest {
        volume: volume(name),
        endpoint: endpoint(),
        asked,
        defaults: PartialSpec::default(),
        hints: dunnage_model::HintPolicy::Refuse,
        source: None,
    }
}

pub async fn create(engine: &Engine, name: &str) -> Result<(CreateAction, Option<std::sync::Arc<VolumeInfo>>)> {
    engine.create(&call(engine), request(name)).await
}

pub fn mount(engine: &Engine, name: &str, key: &HolderKey) -> impl Future<Output = Result<Mounted>> + Send + use<> {
    let (engine, volume, key) = (engine.clone(), volume(name), key.clone());
    async move { engine.mount(&call(&engine), &volume, key).await }
}

/// Mounts, and the caller reads the answer.
pub async fn hold(engine: &Engine, name: &str, key: &HolderKey) {
    mount(engine, name, key).await.unwrap_or_else(|e| panic!("{name} is not mounted: {e}")).claim.delivered();
}

pub fn unmount(engine: &Engine, name: &str, key: &HolderKey) -> impl Future<Output = Result<Unmounted>> + Send + use<> {
    let (engine, volume, key) = (engine.clone(), volume(name), key.clone());
    async move { engine.unmount(&call(&engine), &volume, &key).await }
}

/// The error of what must fail (an answer with a claim in it has no `Debug`).
pub fn error<T>(outcome: Result<T>) -> Error {
    match outcome {
        Ok(_) => panic!("it worked"),
        Err(e) => e,
    }
}

pub async fn holders(engine: &Engine, name: &str) -> Vec<Holder> {
    engine.get(&volume(name)).await.expect("the volume is known").holders
}

/// (count, provisional, undecided) of one holder.
pub async fn counts(engine: &Engine, name: &str, key: &HolderKey) -> (u32, u32, u32) {
    let holder = holders(engine, name).await.into_iter().find(|holder| holder.key == *key);
    holder.map_or((0, 0, 0), |holder| (holder.count, holder.provisional, holder.undecided))
}

/// Waits until no job runs.
pub async fn rest(engine: &Engine) {
    assert!(engine.drained(&call(engine)).await, "jobs do not end");
}

/// Waits for a condition, giving way to everything else meanwhile.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < BOUND, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until a volume's running job has come to a step.
pub async fn until_at_step(engine: &Engine, name: &str, step: &str) {
    until(step, async || {
        let view = engine.get(&volume(name)).await;
        view.is_ok_and(|view| view.jobs.first().is_some_and(|job| job.step == step))
    })
    .await;
}
