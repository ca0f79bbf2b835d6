//! The planner alone, against a world of a few variables that does what a step says, or fails at it.

use std::collections::BTreeMap;

use dunnage_host::KnownFs;
use dunnage_model::{Bytes, FsKind, Usage};
use jiff::Timestamp;
use uuid::Uuid;

use super::*;

const OURS: DeviceNumber = DeviceNumber::new(7, 3);
const FOREIGN: DeviceNumber = DeviceNumber::new(8, 1);
const UUID: Uuid = Uuid::from_u128(0xABCD);
const OTHER_UUID: Uuid = Uuid::from_u128(0xDCBA);
/// More than any plan needs; the longest road of all has half of it.
const BOUND: usize = 40;

fn endpoint(name: &str) -> EndpointName {
    name.parse().expect("endpoint")
}

fn spec() -> VolumeSpec {
    PartialSpec { size: Some(Bytes::gib(1)), ..PartialSpec::default() }.complete().expect("a spec")
}

fn volume(state: VolumeState) -> VolumeInfo {
    VolumeInfo {
        id: dunnage_model::VolumeId { driver: "local".parse().expect("driver"), name: "pg".parse().expect("name") },
        endpoint: endpoint("dunnage"),
        spec: spec(),
        created: Timestamp::UNIX_EPOCH,
        state,
        why: None,
        fs_uuid: (state == VolumeState::Ready).then_some(UUID),
        growing: false,
        usage: Usage::default(),
    }
}

fn create_goal() -> Goal {
    Goal::Create { asked: Box::default(), spec: spec().into(), endpoint: endpoint("dunnage"), source: None }
}

fn known(uuid: Uuid) -> Probe {
    Probe::Known(KnownFs { fs: FsKind::Ext4, uuid, dirty_journal: false, has_errors: false })
}

fn unknown() -> Probe {
    Probe::Unknown { signature: "LUKS".to_owned() }
}

fn at(device: DeviceNumber) -> MountedAt {
    MountedAt { device, mount_id: 1 }
}

fn staged(device: DeviceNumber) -> Staged {
    Staged { device, mount_id: 1 }
}

fn process(pid: u32, name: &str, namespace_only: bool) -> Process {
    Process { pid, name: name.to_owned(), namespace_only }
}

/// How a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fail {
    /// It has done nothing.
    Before,
    /// It has done its work, and nobody can tell.
    After,
}

/// A platform, a kernel and a ledger of one volume.
#[derive(Debug, Clone)]
struct World {
    info: Option<VolumeInfo>,
    new_storage: Probe,
    attached: Option<DeviceNumber>,
    on_device: Probe,
    unmendable: bool,
    mounted: Option<MountedAt>,
    busy: bool,
    copied: bool,
    holders: usize,
    staged: Option<Staged>,
    intent: bool,
    /// The kernel can tell that what is mounted is in its place.
    kernel_knows: bool,
    /// When its filesystem can grow, whether it then cannot all the same, and whether it has.
    growth: Growth,
    cannot_grow: bool,
    grew: bool,
    /// Other nodes can attach it; the platform says that it is this node's, and by whom this node writes.
    shared: bool,
    ours: bool,
    named: bool,
    /// To be given up by the next sweep, or to be finished or undone.
    owed: bool,
    half_done: bool,
    /// Which steps fail, counted from 0.
    failing: BTreeMap<usize, Fail>,
    /// From this step on the caller does not want it.
    cancelled_at: usize,
    trace: Vec<Step>,
}

impl World {
    fn with(info: Option<VolumeInfo>) -> Self {
        World {
            info,
            new_storage: Probe::Blank,
            attached: None,
            on_device: known(UUID),
            unmendable: false,
            mounted: None,
            busy: false,
            copied: false,
            holders: 0,
            staged: None,
            intent: false,
            kernel_knows: false,
            growth: Growth::Mounted,
            cannot_grow: false,
            grew: false,
            shared: false,
            ours: false,
            named: false,
            owed: false,
            half_done: false,
            failing: BTreeMap::new(),
            cancelled_at: usize::MAX,
            trace: Vec::new(),
        }
    }

    fn ready() -> Self {
        Self::with(Some(volume(VolumeState::Ready)))
    }

    fn empty() -> Self {
        Self::with(None)
    }

    /// As a mount leaves it.
    fn staged() -> Self {
        World { attached: Some(OURS), mounted: Some(at(OURS)), staged: Some(staged(OURS)), ..Self::ready() }
    }

    fn failing(mut self, step: usize, how: Fail) -> Self {
        self.failing.insert(step, how);
        self
    }

    /// Carries a plan out, as the engine's loop does; gives its last step.
    fn run(&mut self, goal: &Goal) -> Step {
        let mut facts = Facts { shared: self.shared, ..Facts::default() };
        for number in 0..BOUND {
            (facts.holders, facts.staged, facts.cancelled) = (self.holders, self.staged, number >= self.cancelled_at);
            let step = next(goal, &facts);
            self.trace.push(step.clone());
            if let Step::Done(_) | Step::Refuse(_) = step {
                let held = step == Step::Done(Outcome::StillHeld);
                let known = self.staged.is_some();
                if *goal == Goal::Unstage && facts.recorded && known && (held || facts.unmounted == Some(Unmounted::Busy)) {
                    self.intent = false;
                }
                self.half_done |= matches!(step, Step::Refuse(_)) && must_recover(goal, &facts);
                let made = step == Step::Done(Outcome::Created(CreateAction::Created));
                self.owed |= (made || matches!(step, Step::Refuse(_))) && must_give_up(&facts);
                return step;
            }
            facts.mount_tried |= step == Step::Mount;
            facts.own_tried |= step == Step::Own;
            facts.provision_tried |= step == Step::Remove || (step == Step::Record && matches!(goal, Goal::Create { .. }));
            let before = facts.clone();
            match self.failing.get(&number) {
                None => {
                    self.carry(goal, &step, &mut facts);
                    continue;
                }
                Some(Fail::Before) => {}
                Some(Fail::After) => {
                    self.carry(goal, &step, &mut facts);
                    facts = before;
                }
            }
            match facts.failure {
                None => facts.failure = Some(step_failed(number)),
                Some(_) => facts.undo_failed = true,
            }
        }
        panic!("no end after {BOUND} steps: {:?}", self.words());
    }

    fn carry(&mut self, goal: &Goal, step: &Step, facts: &mut Facts) {
        match step {
            Step::Done(_) | Step::Refuse(_) => {}
            Step::Inspect => (facts.volume, facts.growth) = (Some(self.info.clone()), Some(self.growth)),
            Step::LookAtMount => {
                facts.at = Some(self.mounted);
                // A kernel that knows says so of nothing else.
                let whole = self.info.as_ref().is_some_and(|info| info.state != VolumeState::Damaged);
                facts.in_place = self.kernel_knows && whole && self.mounted.is_some_and(|there| Some(there.device) == self.attached);
            }
            Step::Record => {
                match goal {
                    Goal::Create { .. } => {
                        self.info = Some(volume(VolumeState::Creating));
                        self.ours = self.shared;
                        (facts.own_tried, facts.owned) = (self.shared, self.shared);
                        (facts.detached, facts.given_up) = (None, false);
                    }
                    _ => self.intent = true,
                }
                (facts.removed, facts.recorded) = (None, true);
            }
            Step::Allocate => {
                assert!(
                    !self.shared || self.attached.is_none(),
                    "a device of an earlier volume was taken for the new one's: {:?}",
                    self.words()
                );
                self.attached = if self.shared { Some(OURS) } else { self.attached };
                (facts.allocated, facts.attached_new) = (true, self.shared);
            }
            Step::ProbeNew | Step::Formatting | Step::Format if self.shared && !(self.named && self.attached.is_some()) => {
                panic!("touched before it could be cut off: {:?}", self.words())
            }
            Step::ProbeNew => facts.probed_new = Some(self.new_storage.clone()),
            Step::Formatting => facts.formatting = true,
            Step::Format => {
                assert_eq!(self.new_storage, Probe::Blank, "data was formatted: {:?}", self.words());
                facts.formatted = true;
            }
            Step::Publish => {
                assert!(!self.shared || self.attached.is_none(), "published while it is attached: {:?}", self.words());
                self.info = Some(volume(VolumeState::Ready));
                facts.published = true;
            }
            Step::Own => {
                (self.ours, facts.owned, facts.volume) = (true, true, None);
                self.named &= self.attached.is_some();
            }
            Step::Confirm if self.shared && !self.ours => facts.failure = Some(Error::unavailable("it is another's", "end what uses it")),
            Step::Confirm => facts.confirmed = true,
            Step::Evict(_) => facts.evicted = true,
            Step::Name => (self.named, facts.named) = (true, true),
            Step::GiveUp => {
                assert_eq!(self.attached, None, "given up while it is attached: {:?}", self.words());
                (self.ours, self.named, facts.given_up) = (false, false, true);
            }
            Step::Attach => {
                assert!(!self.shared || self.ours, "attached while it is another's: {:?}", self.words());
                let found = self.attached.is_some();
                let number = *self.attached.get_or_insert(OURS);
                facts.attached = Some(Attached { path: "/dev/loop3".into(), number, found });
            }
            Step::Expand(size) => {
                assert!(!self.shared || self.ours, "made longer while it is another's: {:?}", self.words());
                let info = self.info.as_mut().expect("only what is there is made longer");
                assert!(*size >= info.spec.size, "made shorter");
                (info.spec.size, info.growing) = (*size, true);
                (facts.volume, facts.expanded) = (Some(self.info.clone()), true);
            }
            Step::Grow => {
                let now = if self.mounted.is_some() { Growth::Mounted } else { Growth::Unmounted };
                assert_eq!(self.growth, now, "grown at the wrong moment: {:?}", self.words());
                let here = self.attached.is_some() || self.mounted.is_some();
                assert!(here && (!self.shared || self.ours), "touched before it could be cut off: {:?}", self.words());
                self.grew = !self.cannot_grow;
                facts.grew = Some(if self.grew { Ok(()) } else { Err(stays_small()) });
            }
            Step::Grown => {
                assert!(self.grew || self.growth == Growth::Always, "said to be grown: {:?}", self.words());
                self.info.as_mut().expect("it is there").growing = false;
                (facts.volume, facts.grown) = (Some(self.info.clone()), Some(Ok(())));
            }
            Step::Check => {
                if let Probe::Known(known) = &mut self.on_device {
                    known.has_errors = self.unmendable;
                }
                (facts.checked, facts.probe) = (true, None);
            }
            Step::Mount => {
                assert_eq!(self.mounted, None, "mounted twice: {:?}", self.words());
                assert!(!self.shared || self.named, "read before it could be cut off: {:?}", self.words());
                // The host's one look: see `Mounts::mount`.
                let recorded = facts.volume.iter().flatten().next().and_then(|info| info.fs_uuid);
                if matches!(&self.on_device, Probe::Known(known) if Some(known.uuid) == recorded && !known.has_errors) {
                    self.mounted = self.attached.map(at);
                    facts.mounted = self.mounted;
                } else {
                    facts.probe = Some(self.on_device.clone());
                }
            }
            Step::Commit => {
                self.staged = self.mounted.map(|mounted| staged(mounted.device));
                self.intent = false;
                facts.committed = true;
            }
            Step::Unmount(device) => {
                facts.unmounted = Some(match self.mounted {
                    None => Unmounted::NotThere,
                    Some(there) if there.device != *device => Unmounted::Foreign(there.device),
                    Some(_) if self.busy => Unmounted::Busy,
                    Some(_) => {
                        self.mounted = None;
                        Unmounted::Done
                    }
                });
            }
            // What is adopted has a world of its own.
            Step::LookForStranger | Step::LookInside(_) | Step::Renew | Step::Adopt(_) | Step::Discard => panic!("nothing is adopted here"),
            Step::WhoUses(_) => facts.users = Some(vec![process(4711, "tail", false), process(4712, "sleep", true)]),
            Step::Detach(_) => {
                facts.detached = Some(match self.attached {
                    None => Detached::NotThere,
                    Some(device) if self.copied || self.mounted.is_some_and(|there| there.device == device) => Detached::Lingering,
                    Some(_) => {
                        self.attached = None;
                        Detached::Done
                    }
                });
            }
            Step::Release => {
                (self.staged, self.intent) = (None, false);
                facts.released = true;
            }
            Step::Remove => {
                assert!(!self.shared || self.ours || self.info.is_none(), "removed while it is another's: {:?}", self.words());
                assert!(!self.shared || self.attached.is_none(), "removed while it is attached: {:?}", self.words());
                (self.ours, self.named, facts.own_tried, facts.owned) = (false, false, false, false);
                facts.removed = Some(if self.info.is_some() { RemoveAction::Removed } else { RemoveAction::NotThere });
                self.info = None;
            }
            Step::Recover => {
                assert!(!self.shared || self.ours || self.info.is_none(), "undone while another may be making it: {:?}", self.words());
                let half = self.info.take_if(|info| matches!(info.state, VolumeState::Creating | VolumeState::Removing));
                facts.recovered = Some(half.map(|_| "undid it".to_owned()));
            }
        }
    }

    fn words(&self) -> Vec<&'static str> {
        self.trace.iter().map(Step::word).collect()
    }

    fn did(&self, word: &str) -> bool {
        self.words().contains(&word)
    }

    /// Nothing on this node, and nothing in the ledger.
    fn nothing_here(&self) -> bool {
        self.attached.is_none() && self.mounted.is_none() && self.staged.is_none() && !self.intent
    }
}

fn step_failed(number: usize) -> Error {
    Error::unavailable(format!("step {number} failed"), "ask again")
}

fn stays_small() -> Error {
    Error::unavailable("its filesystem stays as it is", "ask again")
}

fn refused(step: &Step) -> &Error {
    match step {
        Step::Refuse(error) => error,
        other => panic!("it was not refused, but came to {other:?}"),
    }
}

mod adopt;
mod attach;
mod create;
mod remove;
mod resize;
mod stage;
mod unstage;

#[test]
fn recovery_says_what_it_did_and_what_stood_in_its_way() {
    let mut world = World::with(Some(volume(VolumeState::Creating)));
    assert_eq!(world.run(&Goal::Recover), Step::Done(Outcome::Recovered(Some("undid it".to_owned()))));
    assert_eq!(World::ready().run(&Goal::Recover), Step::Done(Outcome::Recovered(None)));
    assert_eq!(refused(&World::ready().failing(0, Fail::Before).run(&Goal::Recover)), &step_failed(0));
}

mod properties;
