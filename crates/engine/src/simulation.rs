//! A million random steps of planner and ledger against a model of a kernel and a pool, with crashes in between.
//!
//! The planner, the table of reconciliation and the ledger (its files, torn writes included) are the real ones. The kernel and
//! the pool are a few variables; a step may fail before it does anything, in the middle, or after it has done all; and at any
//! of these places everything may die. What callers have been told is kept apart, and after every step it must be so: nobody
//! who was told of a mount loses it, nothing with data on it is formatted or lost, nothing is mounted or attached that the
//! ledger does not know of. Whenever everything is at rest, kernel, pool and ledger say the same.
//!
//! The seed is printed; `DUNNAGE_SEED=N cargo test -p dunnage-engine simulation` runs it again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use dunnage_driver::Attached;
use dunnage_host::{Detached, DeviceNumber, KnownFs, MountEntry, MountedAt, Probe, Process, Unmounted};
use dunnage_model::{
    BootId, Caller, EndpointName, Error, FsKind, Holder, HolderKey, OperationId, PartialSpec, RemoveAction, VolumeId, VolumeInfo,
    VolumeSpec, VolumeState,
};
use jiff::Timestamp;
use uuid::Uuid;

use crate::chance::{Chance, seed};
use crate::ledger::{Entry, Intent, Ledger};
use crate::planner::{self, Facts, Goal, Outcome, Staged, Step};
use crate::reconcile::{Verdict, judge};

/// Two worlds have so many each.
const STEPS: usize = 500_000;
const VOLUMES: usize = 4;
const KEYS: usize = 3;
/// More than any lane needs for one goal.
const BOUND: usize = 60;

/// What is in an image file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Image {
    Absent,
    Blank,
    Fs { uuid: Uuid, writes: u64 },
}

/// A volume in the pool.
#[derive(Debug, Clone)]
struct Stored {
    state: VolumeState,
    uuid: Option<Uuid>,
    image: Image,
    /// The finished image has its name; the record may not say so yet.
    named: bool,
}

/// One volume's part of the world, and of what is thought of it.
struct Lane {
    id: VolumeId,
    // The pool and the kernel.
    stored: Option<Stored>,
    device: Option<DeviceNumber>,
    mounted: Option<MountedAt>,
    busy: bool,
    copied: bool,
    // The daemon's memory.
    entry: Entry,
    jobs: VecDeque<Job>,
    // What callers know.
    told: [u32; KEYS],
    /// The mount that they were told of.
    promised: Option<u64>,
    /// Its caller has read an answer, and the daemon died before it knew: another mount of it would be taken for a retry.
    unsure: [bool; KEYS],
    written: u64,
}

struct Job {
    goal: Goal,
    /// Whose mount this is, and whether it took over an answer that was undecided.
    mounts_for: Option<(usize, bool)>,
    facts: Facts,
    uuid: Uuid,
    steps: usize,
}

/// How a step goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Well,
    FailsBefore,
    FailsInTheMiddle,
    FailsAfter,
}

/// Everything died.
struct Died;

struct World {
    chance: Chance,
    folder: PathBuf,
    boot: u32,
    ledger: Ledger,
    lanes: Vec<Lane>,
    next: u32,
    steps: usize,
    deaths: usize,
    formats: usize,
    story: VecDeque<String>,
}

fn boot_id(number: u32) -> BootId {
    BootId(format!("boot-{number}"))
}

fn key(number: usize) -> &'static HolderKey {
    static ALL: LazyLock<Vec<HolderKey>> = LazyLock::new(|| {
        // The last one sends no ID.
        let ids = (0..KEYS).map(|number| (number + 1 < KEYS).then(|| format!("c{number}")));
        ids.map(|id| HolderKey { endpoint: endpoint().clone(), caller: Caller::of_plugin(id) }).collect()
    });
    &ALL[number]
}

fn endpoint() -> &'static EndpointName {
    static ENDPOINT: LazyLock<EndpointName> = LazyLock::new(|| "dunnage".parse().expect("a name"));
    &ENDPOINT
}

fn spec() -> &'static VolumeSpec {
    static SPEC: LazyLock<VolumeSpec> = LazyLock::new(|| PartialSpec::default().complete().expect("defaults"));
    &SPEC
}

fn failed() -> Error {
    Error::unavailable("the simulation has it fail", "go on")
}

impl Lane {
    fn info(&self) -> Option<VolumeInfo> {
        let stored = self.stored.as_ref()?;
        Some(VolumeInfo {
            id: self.id.clone(),
            endpoint: endpoint().clone(),
            spec: spec().clone(),
            created: Timestamp::UNIX_EPOCH,
            state: stored.state,
            why: None,
            fs_uuid: stored.uuid,
            growing: false,
            usage: Default::default(),
        })
    }

    fn is_left_over(&self) -> bool {
        self.jobs.is_empty() && self.entry.holders.is_empty() && !self.entry.is_empty()
    }

    fn holder(&mut self, number: usize) -> &mut Holder {
        let key = key(number);
        if self.entry.holder(key).is_none() {
            let (since, target) = (Timestamp::UNIX_EPOCH, String::new());
            let new = Holder { key: key.clone(), count: 0, provisional: 0, undecided: 0, since, mode: Default::default(), target };
            self.entry.holders.push(new);
        }
        self.entry.holder(key).expect("it is there now")
    }

    /// As `Engine::unpublish` has it.
    fn give_back(&mut self, number: usize) {
        let without_id = key(number).caller.id.is_none();
        if let Some(holder) = self.entry.holder(key(number)) {
            if without_id {
                (holder.count, holder.undecided) = (0, 0);
            } else if holder.count > 0 {
                holder.count -= 1;
            } else {
                holder.undecided = holder.undecided.saturating_sub(1);
            }
        }
        self.entry.sweep();
    }
}

impl World {
    fn new(seed: u64, folder: PathBuf) -> World {
        let (ledger, _) = Ledger::open(folder.clone(), boot_id(0)).expect("a ledger");
        let lane = |number: usize| {
            let id = VolumeId { driver: "local".parse().expect("a name"), name: format!("v{number}").parse().expect("a name") };
            Lane {
                entry: Entry::new(id.clone(), boot_id(0)),
                id,
                stored: None,
                device: None,
                mounted: None,
                busy: false,
                copied: false,
                jobs: VecDeque::new(),
                told: [0; KEYS],
                promised: None,
                unsure: [false; KEYS],
                written: 0,
            }
        };
        World {
            chance: Chance(seed),
            folder,
            boot: 0,
            ledger,
            lanes: (0..VOLUMES).map(lane).collect(),
            next: 0,
            steps: 0,
            deaths: 0,
            formats: 0,
            story: VecDeque::new(),
        }
    }

    fn tell(&mut self, v: usize, what: impl std::fmt::Display) {
        if self.story.len() == 80 {
            self.story.pop_front();
        }
        self.story.push_back(format!("v{v} {what}"));
    }

    #[track_caller]
    fn must(&self, v: usize, so: bool, what: &str) {
        if !so {
            let lane = &self.lanes[v];
            let (stored, entry) = (&lane.stored, &lane.entry);
            let mut told = String::new();
            let _ = write!(told, "{:?} {:?} {:?} told {:?}", lane.mounted, lane.device, stored, lane.told);
            panic!("v{v}: {what}\n{}\n{told}\n{entry:?}", self.story.iter().cloned().collect::<Vec<_>>().join("\n"));
        }
    }

    /// Writes a lane's entry; everything may die at it, with the write not begun, torn, or done.
    fn persist(&mut self, v: usize) -> Result<(), Died> {
        let path = self.folder.join(self.lanes[v].id.driver.as_str()).join(self.lanes[v].id.name.as_str());
        let dies = self.chance.one_in(300);
        if dies && self.chance.one_in(3) {
            return Err(Died);
        }
        let before = if dies { std::fs::read(&path).ok() } else { None };
        self.ledger.write(&self.lanes[v].entry).expect("the ledger is written");
        if !dies {
            return Ok(());
        }
        if let (Some(before), Ok(after)) = (before, std::fs::read(&path))
            && before.len() == after.len()
            && self.chance.one_in(2)
        {
            // Torn: of what was to be changed, only the beginning was.
            let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
            let keep = self.chance.below(changed.len().max(1));
            let file = std::fs::File::options().write(true).open(&path).expect("the entry");
            for at in changed.into_iter().skip(keep) {
                file.write_all_at(&before[at..=at], at as u64).expect("torn");
            }
        }
        Err(Died)
    }

    fn submit(&mut self, v: usize, goal: Goal, mounts_for: Option<(usize, bool)>) {
        let joins = self.lanes[v].jobs.back().is_some_and(|last| last.goal == goal && last.mounts_for.is_none() && mounts_for.is_none());
        if !joins {
            let uuid = Uuid::from_u128(u128::from(self.fresh()));
            self.lanes[v].jobs.push_back(Job { goal, mounts_for, facts: Facts::default(), uuid, steps: 0 });
        }
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Somebody asks for something.
    fn some_verb(&mut self) -> Result<(), Died> {
        let (v, number) = (self.chance.below(VOLUMES), self.chance.below(KEYS));
        let lane = &self.lanes[v];
        if lane.jobs.len() > 3 {
            return Ok(());
        }
        let held = lane.told.iter().any(|told| *told > 0);
        match self.chance.below(100) {
            0..12 => {
                self.tell(v, "create");
                let (asked, spec, endpoint) = (PartialSpec::default(), spec().clone(), endpoint().clone());
                self.submit(v, Goal::Create { asked: asked.into(), spec: spec.into(), endpoint, source: None }, None);
            }
            12..16 if !held && lane.entry.holders.is_empty() => {
                self.tell(v, "remove");
                self.submit(v, Goal::Remove, None);
            }
            16..55 if !lane.unsure[number] => {
                self.tell(v, format_args!("mount for {number}"));
                self.claim(v, number);
            }
            55..60 if held && lane.mounted.is_some() => self.write(v),
            60..62 => self.lanes[v].busy = !self.lanes[v].busy,
            62..64 => self.lanes[v].copied = !self.lanes[v].copied && self.lanes[v].mounted.is_some(),
            64..90 => {
                let Some((v, number)) = self.some_holder() else { return Ok(()) };
                return self.unmount(v, number);
            }
            _ => {}
        }
        Ok(())
    }

    /// As `Engine::publish` has it.
    fn claim(&mut self, v: usize, number: usize) {
        let holder = self.lanes[v].holder(number);
        let took_over = holder.undecided > 0;
        holder.undecided = holder.undecided.saturating_sub(1);
        holder.provisional += 1;
        self.submit(v, Goal::Stage, Some((number, took_over)));
    }

    fn some_holder(&mut self) -> Option<(usize, usize)> {
        let all: Vec<(usize, usize)> =
            (0..VOLUMES).flat_map(|v| (0..KEYS).map(move |n| (v, n))).filter(|(v, n)| self.lanes[*v].told[*n] > 0).collect();
        if all.is_empty() { None } else { Some(all[self.chance.below(all.len())]) }
    }

    fn write(&mut self, v: usize) {
        let lane = &mut self.lanes[v];
        if let Some(Stored { image: Image::Fs { writes, .. }, .. }) = &mut lane.stored {
            *writes += 1;
            lane.written += 1;
        }
    }

    /// From the moment that it asks, the caller relies on the mount no more.
    fn unmount(&mut self, v: usize, number: usize) -> Result<(), Died> {
        self.tell(v, format_args!("unmount for {number}"));
        let without_id = key(number).caller.id.is_none();
        let lane = &mut self.lanes[v];
        lane.told[number] = if without_id { 0 } else { lane.told[number] - 1 };
        lane.give_back(number);
        let gone = lane.entry.holder(key(number)).is_none();
        if gone {
            lane.unsure[number] = false;
        }
        if self.persist(v).is_err() {
            // Not answered: to be asked again. (What is on file may or may not have it.)
            self.lanes[v].unsure[number] = true;
            self.lanes[v].told[number] = 0;
            return Err(Died);
        }
        if self.lanes[v].entry.holders.is_empty() {
            self.submit(v, Goal::Unstage, None);
        }
        Ok(())
    }

    /// One step of the first job of some lane.
    fn step(&mut self) -> Result<(), Died> {
        let busy: Vec<usize> = (0..VOLUMES).filter(|v| !self.lanes[*v].jobs.is_empty()).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let v = busy[self.chance.below(busy.len())];
        let mut job = self.lanes[v].jobs.pop_front().expect("a job");
        job.steps += 1;
        self.steps += 1;
        (job.facts.holders, job.facts.staged) = (self.lanes[v].entry.holders.len(), self.lanes[v].entry.staged);
        let step = planner::next(&job.goal, &job.facts);
        self.tell(v, format_args!("  {}/{}", job.goal.word(), step.word()));
        self.must(v, job.steps < BOUND, "a plan without an end");
        match step {
            Step::Done(outcome) => return self.done(v, &job, Ok(outcome)),
            Step::Refuse(error) => return self.done(v, &job, Err(error)),
            _ => {}
        }
        if self.chance.one_in(200) {
            return Err(Died);
        }
        let how = match self.chance.below(60) {
            // The driver does not remove what is attached.
            _ if step == Step::Remove && self.lanes[v].device.is_some() => How::FailsBefore,
            0 => How::FailsBefore,
            1 => How::FailsInTheMiddle,
            2 => How::FailsAfter,
            _ => How::Well,
        };
        job.facts.mount_tried |= step == Step::Mount;
        job.facts.provision_tried |= step == Step::Remove || (step == Step::Record && matches!(job.goal, Goal::Create { .. }));
        let before = job.facts.clone();
        if how != How::FailsBefore {
            self.carry(v, &step, &mut job, how)?;
        }
        if how != How::Well {
            self.tell(v, "    fails");
            job.facts = before;
            match job.facts.failure {
                None => job.facts.failure = Some(failed()),
                Some(_) => job.facts.undo_failed = true,
            }
        }
        if self.chance.one_in(200) {
            return Err(Died);
        }
        self.lanes[v].jobs.push_front(job);
        Ok(())
    }

    /// What a step does to the world, as the engine, the host and the local driver do it.
    fn carry(&mut self, v: usize, step: &Step, job: &mut Job, how: How) -> Result<(), Died> {
        let middle = how == How::FailsInTheMiddle;
        let facts = &mut job.facts;
        match step {
            Step::Done(_) | Step::Refuse(_) => {}
            Step::Inspect => facts.volume = Some(self.lanes[v].info()),
            Step::LookAtMount => {
                facts.at = Some(self.lanes[v].mounted);
                facts.in_place = self.lanes[v].mounted.is_some() && self.lanes[v].stored.is_some();
            }
            Step::Record => {
                if let Goal::Create { .. } = job.goal {
                    self.lanes[v].stored = Some(Stored { state: VolumeState::Creating, uuid: None, image: Image::Absent, named: false });
                } else {
                    self.lanes[v].entry.intent = Some(Intent { operation: OperationId("op".to_owned()), goal: job.goal.word().to_owned() });
                    self.persist(v)?;
                }
                (job.facts.removed, job.facts.recorded) = (None, true);
            }
            Step::Allocate => {
                self.stored(v).image = Image::Blank;
                facts.allocated = true;
            }
            Step::ProbeNew => {
                facts.probed_new = Some(match self.stored(v).image {
                    Image::Blank => Probe::Blank,
                    _ => Probe::Unknown { signature: "data".to_owned() },
                });
            }
            Step::Formatting => {
                self.stored(v).uuid = Some(job.uuid);
                facts.formatting = true;
            }
            Step::Format => {
                self.must(v, self.lanes[v].stored.as_ref().is_some_and(|s| s.image == Image::Blank), "data was formatted");
                self.formats += 1;
                self.stored(v).image = Image::Fs { uuid: job.uuid, writes: 0 };
                self.lanes[v].written = 0;
                facts.formatted = true;
            }
            Step::Publish => {
                self.stored(v).named = true;
                if !middle {
                    self.stored(v).state = VolumeState::Ready;
                }
                facts.published = true;
            }
            Step::Own | Step::Name | Step::Confirm | Step::GiveUp | Step::Evict(_) => {
                panic!("there are no other nodes here: see ownership::simulation")
            }
            Step::Attach => {
                let found = self.lanes[v].device.is_some();
                let minor = self.fresh();
                let number = *self.lanes[v].device.get_or_insert(DeviceNumber::new(7, minor));
                facts.attached = Some(Attached { path: "/dev/loop".into(), number, found });
            }
            Step::Check => (facts.checked, facts.probe) = (true, None),
            Step::Mount => {
                let mount_id = u64::from(self.fresh());
                let lane = &mut self.lanes[v];
                let recorded = facts.volume.iter().flatten().next().and_then(|info| info.fs_uuid);
                match lane.stored.as_ref().map(|stored| &stored.image) {
                    Some(Image::Fs { uuid, .. }) if Some(*uuid) == recorded => {
                        let at = lane.device.map(|device| MountedAt { device, mount_id });
                        self.must(v, at.is_some(), "mounted without a device");
                        self.must(v, self.lanes[v].mounted.is_none(), "mounted twice");
                        self.lanes[v].mounted = at;
                        facts.mounted = at;
                    }
                    Some(Image::Fs { uuid, .. }) => {
                        let known = KnownFs { fs: FsKind::Ext4, uuid: *uuid, dirty_journal: false, has_errors: false };
                        facts.probe = Some(Probe::Known(known));
                    }
                    _ => facts.probe = Some(Probe::Blank),
                }
            }
            Step::Commit => {
                let at = facts.mounted.or(facts.at.flatten()).expect("something to commit");
                facts.committed = true;
                let entry = &mut self.lanes[v].entry;
                (entry.staged, entry.intent) = (Some(Staged { device: at.device, mount_id: at.mount_id }), None);
                self.persist(v)?;
            }
            Step::Unmount(device) => {
                let lane = &mut self.lanes[v];
                facts.unmounted = Some(match lane.mounted {
                    None => Unmounted::NotThere,
                    Some(there) if there.device != *device => Unmounted::Foreign(there.device),
                    Some(_) if lane.busy => Unmounted::Busy,
                    Some(_) => {
                        lane.mounted = None;
                        Unmounted::Done
                    }
                });
            }
            Step::Expand(_) | Step::Grow | Step::Grown => panic!("nothing grows here"),
            Step::LookForStranger | Step::LookInside(_) | Step::Renew | Step::Adopt(_) | Step::Discard => panic!("nothing is adopted here"),
            Step::WhoUses(_) => facts.users = Some(vec![Process { pid: 1, name: "somebody".to_owned(), namespace_only: false }]),
            Step::Detach(_) => {
                let lane = &mut self.lanes[v];
                let lives = lane.mounted.is_some() || lane.copied;
                facts.detached = Some(match lane.device {
                    None => Detached::NotThere,
                    Some(_) if lives => Detached::Lingering,
                    Some(_) => {
                        lane.device = None;
                        Detached::Done
                    }
                });
            }
            Step::Release => {
                facts.released = true;
                let entry = &mut self.lanes[v].entry;
                (entry.staged, entry.intent) = (None, None);
                self.persist(v)?;
            }
            Step::Remove | Step::Recover => {
                let (outcome, what) = self.recover(v, *step == Step::Remove, job.goal == Goal::Remove, middle);
                if *step == Step::Remove {
                    facts.removed = Some(outcome);
                } else {
                    facts.recovered = Some(what);
                }
            }
        }
        Ok(())
    }

    fn stored(&mut self, v: usize) -> &mut Stored {
        self.must(v, self.lanes[v].stored.is_some(), "a step on a volume that is not there");
        self.lanes[v].stored.as_mut().expect("there")
    }

    /// Removes a volume, or finishes or undoes what is half done of it; perhaps only half.
    fn recover(&mut self, v: usize, remove: bool, asked: bool, middle: bool) -> (RemoveAction, Option<String>) {
        let Some(stored) = self.lanes[v].stored.clone() else { return (RemoveAction::NotThere, None) };
        if !remove && stored.state == VolumeState::Ready {
            return (RemoveAction::NotThere, None);
        }
        if !remove && stored.named && stored.state == VolumeState::Creating {
            self.stored(v).state = VolumeState::Ready;
            return (RemoveAction::NotThere, Some("finished".to_owned()));
        }
        let idle = self.lanes[v].told.iter().all(|told| *told == 0) && self.lanes[v].mounted.is_none();
        self.must(v, idle, "removed under somebody");
        let written = matches!(stored.image, Image::Fs { writes, .. } if writes > 0);
        self.must(v, !written || asked || stored.state == VolumeState::Removing, "data was removed unasked");
        if middle {
            let named = self.stored(v).named;
            *self.stored(v) = Stored { state: VolumeState::Removing, uuid: None, image: Image::Absent, named };
        } else {
            self.lanes[v].stored = None;
        }
        (RemoveAction::Removed, Some("removed".to_owned()))
    }

    /// A job is over, and whoever waited for it hears of it.
    fn done(&mut self, v: usize, job: &Job, outcome: Result<Outcome, Error>) -> Result<(), Died> {
        let nothing = matches!(job.facts.unmounted, Some(Unmounted::Busy)) || outcome == Ok(Outcome::StillHeld);
        if job.goal == Goal::Unstage && job.facts.staged.is_some() && nothing && self.lanes[v].entry.intent.is_some() {
            self.lanes[v].entry.intent = None;
            self.persist(v)?;
        }
        if let Err(error) = &outcome {
            let by_us = *error == failed();
            let explained = by_us || matches!(error.word(), "in_use" | "not_found" | "not_blank" | "exists_incompatible");
            self.must(v, explained, &format!("refused for no reason: {error}"));
        }
        if let Some((number, took_over)) = job.mounts_for {
            self.answer(v, number, took_over, outcome.is_ok())?;
        }
        let lane = &self.lanes[v];
        if lane.is_left_over() && job.goal != Goal::Unstage {
            self.submit(v, Goal::Unstage, None);
        }
        Ok(())
    }

    fn answer(&mut self, v: usize, number: usize, took_over: bool, mounted: bool) -> Result<(), Died> {
        if mounted {
            self.persist(v)?;
            // The answer leaves. Its caller may be gone.
            if !self.chance.one_in(10) {
                let without_id = key(number).caller.id.is_none();
                let lane = &mut self.lanes[v];
                lane.told[number] = if without_id { 1 } else { lane.told[number] + 1 };
                lane.promised = lane.mounted.map(|at| at.mount_id);
                self.must(v, self.lanes[v].mounted.is_some(), "told of a mount that is not there");
                // Until it is written down that this one has read, another mount of it would be taken for a retry.
                self.lanes[v].unsure[number] = true;
                if self.chance.one_in(100) {
                    return Err(Died);
                }
                let holder = self.lanes[v].holder(number);
                holder.provisional -= 1;
                holder.count = if without_id { 1 } else { holder.count + 1 };
                self.persist(v)?;
                self.lanes[v].unsure[number] = false;
                return Ok(());
            }
        }
        let holder = self.lanes[v].holder(number);
        holder.provisional -= 1;
        holder.undecided += u32::from(took_over);
        self.lanes[v].entry.sweep();
        self.persist(v)
    }

    /// Everything of the daemon is gone; another one starts. A reboot takes the mounts and the devices as well.
    fn start_again(&mut self, reboot: bool) {
        self.deaths += 1;
        self.tell(0, if reboot { "REBOOT" } else { "DEATH" });
        let mut asked_again = Vec::new();
        for (v, lane) in self.lanes.iter_mut().enumerate() {
            for job in lane.jobs.drain(..) {
                asked_again.extend(job.mounts_for.map(|(number, _)| (v, number)));
            }
            if reboot {
                (lane.mounted, lane.device, lane.busy, lane.copied) = (None, None, false, false);
                (lane.told, lane.promised, lane.unsure) = ([0; KEYS], None, [false; KEYS]);
            }
        }
        self.boot += u32::from(reboot);
        let (ledger, loaded) = Ledger::open(self.folder.clone(), boot_id(self.boot)).expect("the ledger is read");
        self.ledger = ledger;
        let mut found: BTreeMap<VolumeId, Entry> = loaded.entries.into_iter().map(|entry| (entry.volume.clone(), entry)).collect();
        for v in 0..VOLUMES {
            let id = self.lanes[v].id.clone();
            let known = found.remove(&id);
            let here = self.lanes[v].mounted.is_some() || self.lanes[v].device.is_some();
            self.must(v, !here || known.is_some(), "something is here that the ledger does not know of");
            let mut entry = known.unwrap_or_else(|| Entry::new(id, boot_id(self.boot)));
            let seen = self.lanes[v].mounted.map(|at| MountEntry {
                relative: PathBuf::new(),
                device: at.device,
                fs: "ext4".to_owned(),
                source: String::new(),
            });
            let verdict = if entry.is_empty() { Verdict::Keep } else { judge(&mut entry, seen.as_ref()) };
            self.ledger.write(&entry).expect("the ledger is written");
            self.lanes[v].entry = entry;
            if let Verdict::Run(goal) = verdict {
                self.submit(v, goal, None);
            }
        }
        self.recover_half_done();
        // A caller that was not answered asks again; or it gives up, and says nothing.
        for (v, number) in asked_again {
            if !reboot && self.chance.one_in(2) && !self.lanes[v].unsure[number] {
                self.tell(v, format_args!("mount for {number}, again"));
                self.claim(v, number);
            }
        }
    }

    fn recover_half_done(&mut self) {
        for v in 0..VOLUMES {
            if self.lanes[v].stored.as_ref().is_some_and(|stored| matches!(stored.state, VolumeState::Creating | VolumeState::Removing)) {
                self.submit(v, Goal::Recover, None);
            }
        }
    }

    /// What must be so at every moment.
    fn check(&self) {
        for (v, lane) in self.lanes.iter().enumerate() {
            if lane.told.iter().any(|told| *told > 0) {
                self.must(v, lane.mounted.map(|at| at.mount_id) == lane.promised, "unmounted under somebody who holds it");
                let data = lane.stored.as_ref().map(|stored| &stored.image);
                let whole = matches!(data, Some(Image::Fs { writes, .. }) if *writes == lane.written);
                self.must(v, whole, "what was written is not there");
            }
            for (number, told) in lane.told.iter().enumerate() {
                let held = lane.entry.holders.iter().find(|holder| holder.key == *key(number)).map_or(0, Holder::total);
                self.must(v, held >= *told, "a hold was lost");
            }
        }
    }

    /// Everything that was begun comes to its end, and kernel, pool and ledger say the same.
    fn rest(&mut self) -> Result<(), Died> {
        for lane in &mut self.lanes {
            (lane.busy, lane.copied) = (false, false);
        }
        self.finish_all()?;
        self.drop_what_nobody_has()?;
        self.finish_all()?;
        for (v, lane) in self.lanes.iter().enumerate() {
            let held = !lane.entry.holders.is_empty();
            self.must(v, lane.jobs.is_empty(), "it does not come to rest");
            self.must(v, lane.mounted.is_some() == held, "mounted and held differ");
            self.must(v, lane.device.is_some() == held, "attached and held differ");
            // (Of an unmount that failed and was joined by a mount, the intent stays until the next start passes over it.)
            self.must(v, lane.entry.is_empty() != held, "the ledger has something left");
            let whole = lane.stored.as_ref().is_none_or(|stored| stored.state == VolumeState::Ready && stored.uuid.is_some());
            self.must(v, whole, "half a volume is left");
        }
        Ok(())
    }

    /// What jobs, sweeps and recoveries have to do is done.
    fn finish_all(&mut self) -> Result<(), Died> {
        for _ in 0..200 {
            while self.lanes.iter().any(|lane| !lane.jobs.is_empty()) {
                self.step()?;
                self.check();
            }
            for v in 0..VOLUMES {
                if self.lanes[v].is_left_over() {
                    self.submit(v, Goal::Unstage, None);
                }
            }
            self.recover_half_done();
            if self.lanes.iter().all(|lane| lane.jobs.is_empty()) {
                break;
            }
        }
        Ok(())
    }

    /// As witnesses find it: only where an answer was lost may there be a hold that nobody has.
    fn drop_what_nobody_has(&mut self) -> Result<(), Died> {
        for v in 0..VOLUMES {
            for number in 0..KEYS {
                let (told, unsure) = (self.lanes[v].told[number], self.lanes[v].unsure[number]);
                let Some(holder) = self.lanes[v].entry.holder(key(number)) else {
                    self.lanes[v].unsure[number] = false;
                    continue;
                };
                let extra = holder.total() - told;
                let lost = unsure || holder.undecided >= extra;
                (holder.count, holder.undecided) = (told, 0);
                self.must(v, lost, "a hold that nobody has, and no answer was lost");
                self.lanes[v].entry.sweep();
                self.persist(v)?;
                self.lanes[v].unsure[number] = false;
            }
        }
        Ok(())
    }

    fn run(&mut self) {
        while self.steps < STEPS {
            let moment = match self.chance.below(400) {
                0 => self.rest(),
                1..100 => self.some_verb(),
                _ => self.step(),
            };
            if moment.is_err() {
                let reboot = self.chance.one_in(20);
                self.start_again(reboot);
            }
            self.check();
        }
    }
}

#[test]
fn a_million_steps_with_crashes_lose_nothing_and_leave_nothing() {
    let seed = seed();
    let worlds = [seed, seed.wrapping_mul(31)].map(|seed| std::thread::spawn(move || live(seed)));
    worlds.into_iter().for_each(|world| world.join().expect("see above"));
}

fn live(seed: u64) {
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a folder");
    let mut world = World::new(seed, folder.path().join("ledger"));
    world.run();
    println!("{} steps, {} deaths, {} formats", world.steps, world.deaths, world.formats);
    assert!(world.deaths > STEPS / 1000 && world.formats > STEPS / 10_000, "this tests nothing");
}
