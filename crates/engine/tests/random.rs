//! Two thousand random verbs with random faults, hangs, restarts and reboots, against a model that only counts.
//!
//! The seed is printed; `DUNNAGE_SEED=N cargo test -p dunnage-engine --test random` runs it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use dunnage_engine::{Call, Claim, Engine, Unmounted};
use dunnage_host::fake::Fault;
use dunnage_model::{Caller, CallerKind, Holder, HolderKey, Result, UnmountAction, VolumeState};
use tokio::sync::Notify;

const VERBS: usize = 2000;
const VOLUMES: [&str; 4] = ["v0", "v1", "v2", "v3"];
/// Callers wait so long, by a clock that stands still while anything can happen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether calls fail or hang.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Faults {
    /// None does: every verb has its one right answer.
    None,
    /// Any may.
    All,
}

const HOST: [&str; 8] = ["at", "attach", "probe", "mount", "unmount", "detach", "format", "users"];
const TASKS: [&str; 7] =
    ["local.inspect", "local.record", "local.allocate", "local.formatting", "local.publish", "local.remove", "local.list"];

fn keys() -> Vec<HolderKey> {
    let other_endpoint = HolderKey { endpoint: "rexray".parse().expect("endpoint"), ..docker("a") };
    let person = HolderKey { caller: Caller { kind: CallerKind::Cli, id: Some("a".to_owned()) }, ..docker("a") };
    vec![docker("a"), docker("b"), other_endpoint, person, anonymous()]
}

/// What one key holds of one volume.
#[derive(Default)]
struct Holds {
    count: u32,
    undecided: u32,
    /// Answers on their way, and whether they took over one that was undecided.
    pending: Vec<(Claim, bool)>,
    /// Answers whose hold was given back before anybody knew that they were read.
    void: Vec<Claim>,
}

impl Holds {
    fn total(&self) -> u32 {
        self.count + self.undecided + self.provisional()
    }

    fn provisional(&self) -> u32 {
        u32::try_from(self.pending.len()).expect("few")
    }

    fn numbers(&self) -> (u32, u32, u32) {
        (self.count, self.provisional(), self.undecided)
    }

    /// An unmount; says whether there was anything to give back.
    fn give_back(&mut self, with_id: bool) -> bool {
        let held = self.total() > 0;
        if !with_id {
            (self.count, self.undecided) = (0, 0);
            self.void.extend(self.pending.drain(..).map(|(claim, _)| claim));
        } else if self.count > 0 {
            self.count -= 1;
        } else if self.undecided > 0 {
            self.undecided -= 1;
        } else if held {
            self.void.push(self.pending.remove(0).0);
        }
        held
    }

    /// The caller has read an answer.
    fn read(&mut self, claim: Claim, with_id: bool) {
        claim.delivered();
        self.count = if with_id { self.count + 1 } else { 1 };
    }
}

enum Verb {
    Create(usize),
    Remove(usize),
    Mount(usize, usize),
    Unmount(usize, usize),
}

enum Answer {
    Create(Result<()>),
    Remove(Result<()>),
    Mount(Result<Claim>),
    Unmount(Result<Unmounted>),
}

struct Run {
    machine: Machine,
    engine: Engine,
    chance: FakeRandom,
    faults: Faults,
    keys: Vec<HolderKey>,
    /// By volume and key.
    holds: BTreeMap<(usize, usize), Holds>,
    exists: BTreeSet<usize>,
    bells: Vec<Arc<Notify>>,
    story: Vec<String>,
}

impl Run {
    fn with_id(&self, key: usize) -> bool {
        self.keys[key].caller.id.is_some()
    }

    fn held(&self, volume: usize) -> bool {
        self.holds.iter().any(|((of, _), holds)| *of == volume && holds.total() > 0)
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    /// The last things that happened, for the message of a failure.
    fn tail(&self) -> String {
        self.story[self.story.len().saturating_sub(60)..].join("\n")
    }

    fn plan_fault(&mut self) {
        if self.faults == Faults::None || self.chance.below(4) > 0 {
            return;
        }
        let kernel = self.chance.below(2) == 0;
        let call = if kernel { HOST[self.chance.below(HOST.len())] } else { TASKS[self.chance.below(TASKS.len())] };
        let bell = Arc::new(Notify::new());
        let how = match self.chance.below(5) {
            0 | 1 => "before",
            2 | 3 => "after",
            _ => "hang",
        };
        let host = |fault| self.machine.fake.plan(call, fault);
        let task = |fault| self.machine.tasks.plan(call, 0, fault);
        match (kernel, how) {
            (true, "before") => host(Fault::Error(injected())),
            (true, "after") => host(Fault::ErrorAfter(injected())),
            (true, _) => host(Fault::Hang(bell.clone())),
            (false, "before") => task(TaskFault::Error),
            (false, "after") => task(TaskFault::ErrorAfter),
            (false, _) => task(TaskFault::Hang(bell.clone())),
        }
        self.bells.push(bell);
        self.tell(format!("    fault: {call} {how}"));
    }

    fn some_verb(&self) -> Verb {
        let (volume, key) = (self.chance.below(VOLUMES.len()), self.chance.below(self.keys.len()));
        match self.chance.below(100) {
            0..14 => Verb::Create(volume),
            14..20 => Verb::Remove(volume),
            20..54 => Verb::Mount(volume, key),
            54..62 => Verb::Unmount(volume, key),
            // Mostly by who holds it.
            _ => {
                let held: Vec<_> = self.holds.iter().filter(|(_, holds)| holds.total() > 0).map(|(place, _)| *place).collect();
                let (volume, key) = if held.is_empty() { (volume, key) } else { held[self.chance.below(held.len())] };
                Verb::Unmount(volume, key)
            }
        }
    }

    /// Says what was asked, and asks it.
    async fn ask(engine: Engine, keys: Vec<HolderKey>, verb: &Verb) -> Answer {
        let call = Call { operation: engine.operation(), patience: PATIENCE };
        match *verb {
            Verb::Create(v) => Answer::Create(engine.create(&call, request(VOLUMES[v])).await.map(|_| ())),
            Verb::Remove(v) => Answer::Remove(engine.remove(&call, &volume(VOLUMES[v])).await.map(|_| ())),
            Verb::Mount(v, k) => {
                Answer::Mount(engine.mount(&call, &volume(VOLUMES[v]), keys[k].clone()).await.map(|mounted| mounted.claim))
            }
            Verb::Unmount(v, k) => Answer::Unmount(engine.unmount(&call, &volume(VOLUMES[v]), &keys[k]).await),
        }
    }

    fn describe(&self, verb: &Verb) -> String {
        match *verb {
            Verb::Create(v) => format!("create {}", VOLUMES[v]),
            Verb::Remove(v) => format!("remove {}", VOLUMES[v]),
            Verb::Mount(v, k) => format!("mount {} for {}", VOLUMES[v], self.keys[k]),
            Verb::Unmount(v, k) => format!("unmount {} for {}", VOLUMES[v], self.keys[k]),
        }
    }

    /// One to three verbs at once, of different callers.
    async fn verbs(&mut self) -> usize {
        let wanted = if self.chance.below(6) == 0 { 3 } else { 1 };
        let mut batch: Vec<Verb> = Vec::new();
        for _ in 0..wanted {
            let verb = self.some_verb();
            let same = |other: &Verb| match (other, &verb) {
                (Verb::Mount(v, k) | Verb::Unmount(v, k), Verb::Mount(w, l) | Verb::Unmount(w, l)) => (v, k) == (w, l),
                _ => false,
            };
            if !batch.iter().any(same) {
                batch.push(verb);
            }
        }
        self.plan_fault();
        let alone = batch.len() == 1;
        if !alone {
            self.tell(format!("at once: {}", batch.iter().map(|verb| self.describe(verb)).collect::<Vec<_>>().join(", ")));
        }
        let uncertain: BTreeSet<usize> =
            batch.iter().filter_map(|verb| if let Verb::Create(v) | Verb::Remove(v) = verb { Some(*v) } else { None }).collect();
        let asked: Vec<_> = batch
            .into_iter()
            .map(|verb| {
                let (engine, keys) = (self.engine.clone(), self.keys.clone());
                tokio::spawn(async move { (Self::ask(engine, keys, &verb).await, verb) })
            })
            .collect();
        let count = asked.len();
        for asked in asked {
            let (answer, verb) = asked.await.expect("no panic");
            self.take(&verb, answer, alone).await;
        }
        for bell in self.bells.drain(..) {
            bell.notify_one();
        }
        for v in uncertain {
            rest(&self.engine).await;
            let there = self.look(VOLUMES[v]).await.is_some_and(|view| view.info.state == VolumeState::Ready);
            assert!(there || !self.held(v), "{} is held, and is not there\n{}", VOLUMES[v], self.tail());
            if there {
                self.exists.insert(v)
            } else {
                self.exists.remove(&v)
            };
        }
        count
    }

    /// What an answer means to the model, and whether it may be.
    async fn take(&mut self, verb: &Verb, answer: Answer, alone: bool) {
        let asked = self.describe(verb);
        match (verb, answer) {
            (Verb::Create(v), Answer::Create(outcome)) => {
                self.tell(format!("{asked}: {}", word(&outcome)));
                let may_fail = self.faults != Faults::None;
                assert!(outcome.is_ok() || may_fail, "{asked} failed without a fault: {}\n{}", word(&outcome), self.tail());
                if outcome.is_ok() && alone {
                    let there = self.look(VOLUMES[*v]).await.is_some_and(|view| view.info.state == VolumeState::Ready);
                    assert!(there, "{asked} worked, and it is not there\n{}", self.tail());
                }
            }
            (Verb::Remove(v), Answer::Remove(outcome)) => {
                self.tell(format!("{asked}: {}", word(&outcome)));
                assert!(outcome.is_err() || !alone || !self.held(*v), "a held volume was removed\n{}", self.tail());
                if outcome.is_ok() && alone {
                    assert!(self.look(VOLUMES[*v]).await.is_none(), "{asked} worked, and it is there\n{}", self.tail());
                }
            }
            (Verb::Mount(v, k), Answer::Mount(outcome)) => {
                self.tell(format!("{asked}: {}", word(&outcome)));
                let holds = self.holds.entry((*v, *k)).or_default();
                match outcome {
                    Ok(claim) => {
                        let took_over = holds.undecided > 0;
                        holds.undecided = holds.undecided.saturating_sub(1);
                        holds.pending.push((claim, took_over));
                    }
                    Err(e) => {
                        let absent = e.word() == "not_found" && (!alone || !self.exists.contains(v));
                        assert!(absent || self.faults != Faults::None, "{asked} failed without a fault: {e}\n{}", self.tail());
                    }
                }
            }
            (Verb::Unmount(v, k), Answer::Unmount(outcome)) => {
                self.tell(format!("{asked}: {}", word(&outcome)));
                let with_id = self.with_id(*k);
                let held = self.holds.entry((*v, *k)).or_default().give_back(with_id);
                let right = match (held, self.held(*v)) {
                    (false, _) => UnmountAction::NotHeld,
                    (true, true) => UnmountAction::StillHeld,
                    (true, false) => UnmountAction::Unmounted,
                };
                match outcome {
                    Ok(answer) => {
                        let as_it_should = answer.action == right || !alone;
                        assert!(as_it_should, "{asked} answered {answer:?} and not {right:?}\n{}", self.tail());
                    }
                    Err(e) => assert!(self.faults != Faults::None, "{asked} failed without a fault: {e}\n{}", self.tail()),
                }
            }
            _ => panic!("an answer to another question"),
        }
    }

    /// The late word about holds that were given back: it must not count.
    fn settle_void(&mut self, volume: usize, key: usize) {
        let void = std::mem::take(&mut self.holds.entry((volume, key)).or_default().void);
        for claim in void {
            if self.chance.below(2) == 0 { claim.delivered() } else { drop(claim) }
        }
    }

    /// Some answers are read, and some callers have gone.
    fn settle_some_claims(&mut self) {
        let places: Vec<(usize, usize)> = self.holds.keys().copied().collect();
        for (v, k) in places {
            let with_id = self.with_id(k);
            if self.chance.below(4) == 0 {
                self.settle_void(v, k);
            }
            let (read, gone) = (self.chance.below(3) == 0, self.chance.below(12) == 0);
            let holds = self.holds.entry((v, k)).or_default();
            if holds.pending.is_empty() || !(read || gone) {
                continue;
            }
            let (claim, took_over) = holds.pending.remove(0);
            if read {
                holds.read(claim, with_id);
            } else {
                drop(claim);
                holds.undecided += u32::from(took_over);
            }
            let what = if read { "has read" } else { "has gone" };
            self.tell(format!("  {} {what} the answer about {}", self.keys[k], VOLUMES[v]));
        }
    }

    /// Waits until nothing is under way or left to be done, and compares.
    async fn quiet(&mut self) {
        self.machine.fake.set_busy(false);
        self.machine.fake.copy_mounts(false);
        let held: BTreeSet<usize> = (0..VOLUMES.len()).filter(|v| self.held(*v)).collect();
        let wanted: Vec<_> = held.iter().map(|v| volume(VOLUMES[*v])).collect();
        rest(&self.engine).await;
        if self.faults != Faults::None {
            // Each sweep uses up faults that were planned and have not come. Without faults nothing is left to be swept.
            for _ in 0..60 {
                if self.engine.active() == wanted {
                    break;
                }
                self.engine.sweep();
                rest(&self.engine).await;
            }
        }
        self.tell("  quiet".to_owned());
        let tail = self.tail();
        assert_eq!(self.engine.active(), wanted, "something is left to be done, and is not\n{tail}");
        let paths: Vec<_> = held.iter().map(|v| self.machine.path(VOLUMES[*v])).collect();
        assert_eq!(self.machine.fake.mounted(), paths, "mounted and held differ\n{tail}");
        assert_eq!(self.machine.attached(), held.len(), "attached and held differ\n{tail}");
        let ledger = self.machine.in_ledger();
        for (v, name) in VOLUMES.iter().enumerate() {
            let model: BTreeMap<HolderKey, (u32, u32, u32)> = (0..self.keys.len())
                .filter_map(|k| Some((self.keys[k].clone(), self.holds.get(&(v, k)).filter(|holds| holds.total() > 0)?.numbers())))
                .collect();
            let numbers = |holders: &[Holder]| {
                holders
                    .iter()
                    .map(|holder| (holder.key.clone(), (holder.count, holder.provisional, holder.undecided)))
                    .collect::<BTreeMap<_, _>>()
            };
            let known = self.look(name).await;
            assert_eq!(known.as_ref().map(|view| numbers(&view.holders)).unwrap_or_default(), model, "the holders of {name}\n{tail}");
            let written = ledger.get(*name);
            assert_eq!(
                written.map(|entry| numbers(&entry.holders)).unwrap_or_default(),
                model,
                "the holders of {name} in the ledger\n{tail}"
            );
            assert!(written.is_none_or(|entry| entry.intent.is_none() || held.contains(&v)), "an intent for {name} is left\n{tail}");
            let ready = known.is_some_and(|view| view.info.state == VolumeState::Ready);
            assert_eq!(ready, self.exists.contains(&v), "{name} was lost, or came from nowhere\n{tail}");
        }
    }

    /// A volume as an inspection shows it; tried again while planned faults come.
    async fn look(&self, name: &str) -> Option<dunnage_engine::VolumeView> {
        for _ in 0..60 {
            match self.engine.inspect(&volume(name)).await {
                Ok(inspection) if inspection.notes.is_empty() => return Some(inspection.volume),
                Err(e) if e.word() == "not_found" => return None,
                _ => {}
            }
        }
        panic!("{name} cannot be inspected\n{}", self.tail());
    }

    /// After every half-done thing was taken up, the pool has the volumes and nothing else.
    async fn settled(&mut self) {
        for _ in 0..60 {
            self.engine.settle().await;
            rest(&self.engine).await;
            let there: BTreeSet<String> = self.exists.iter().map(|v| VOLUMES[*v].to_owned()).collect();
            if self.machine.in_pool() == there {
                return;
            }
        }
        panic!("the pool has {:?} and not {:?}\n{}", self.machine.in_pool(), self.exists, self.tail());
    }

    /// The daemon dies at rest, and another one starts; or the machine does.
    async fn start_again(&mut self, reboot: bool) {
        for holds in self.holds.values_mut() {
            // A daemon that is dead says nothing about its claims any more.
            holds.undecided += holds.provisional();
            holds.pending.drain(..).map(|(claim, _)| claim).chain(holds.void.drain(..)).for_each(std::mem::forget);
        }
        if reboot {
            self.holds.clear();
            self.machine.reboot();
        }
        self.tell(if reboot { "  REBOOT" } else { "  RESTART" }.to_owned());
        self.engine = self.machine.start().await;
        self.quiet().await;
    }
}

fn word<T>(outcome: &Result<T>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(e) => e.to_string(),
    }
}

async fn run(seed: u64, faults: Faults) {
    println!("DUNNAGE_SEED={seed}");
    let machine = Machine::new();
    let engine = machine.start().await;
    let (chance, keys) = (FakeRandom::new(seed), keys());
    let (holds, exists, bells, story) = Default::default();
    let mut run = Run { machine, engine, chance, faults, keys, holds, exists, bells, story };
    let mut verbs = 0;
    while verbs < VERBS {
        verbs += run.verbs().await;
        run.settle_some_claims();
        if faults != Faults::None && run.chance.below(25) == 0 {
            match run.chance.below(2) {
                0 => run.machine.fake.copy_mounts(true),
                _ => run.machine.fake.set_busy(true),
            }
            run.tell("    what is mounted is used elsewhere".to_owned());
        }
        if run.chance.below(15) == 0 {
            run.quiet().await;
            match run.chance.below(12) {
                0 | 1 => run.settled().await,
                2 | 3 => run.start_again(false).await,
                4 => run.start_again(true).await,
                _ => {}
            }
        }
    }
    run.quiet().await;
    run.settled().await;
    let given: usize = run.machine.fake.calls().iter().filter(|call| call.starts_with("mount ")).count();
    assert!(given > VERBS / 20, "only {given} mounts: this tests nothing");
}

/// The seed to run again, or a new one.
fn seed() -> u64 {
    match std::env::var("DUNNAGE_SEED") {
        Ok(seed) => seed.parse().expect("DUNNAGE_SEED is a number"),
        Err(_) => RandomState::new().hash_one("seed") % 1_000_000_000,
    }
}

#[tokio::test(start_paused = true)]
async fn without_faults_every_verb_has_its_one_right_answer_and_everything_agrees_with_the_model() {
    run(seed(), Faults::None).await;
}

#[tokio::test(start_paused = true)]
async fn with_faults_holders_mounts_loops_and_ledger_agree_with_the_model_at_every_quiet_point() {
    run(seed(), Faults::All).await;
}
