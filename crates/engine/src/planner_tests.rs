//! The planner alone, against a world of a few variables that does what a step says, or fails at it.

use std::collections::BTreeMap;

use dunnage_host::KnownFs;
use dunnage_model::{Access, Bytes, FsKind, Usage};
use jiff::Timestamp;
use uuid::Uuid;

use super::*;

const OURS: DeviceNumber = DeviceNumber { major: 7, minor: 3 };
const FOREIGN: DeviceNumber = DeviceNumber { major: 8, minor: 1 };
const UUID: Uuid = Uuid::from_u128(0xABCD);
const OTHER_UUID: Uuid = Uuid::from_u128(0xDCBA);
/// More than any plan needs; the longest road of all has half of it.
const BOUND: usize = 40;

fn endpoint(name: &str) -> EndpointName {
    name.parse().expect("endpoint")
}

fn spec() -> VolumeSpec {
    VolumeSpec {
        size: Bytes::gib(1),
        fs: FsKind::Ext4,
        uid: None,
        gid: None,
        mode: None,
        thick: false,
        access: Access::SingleWriter,
        labels: BTreeMap::new(),
    }
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
        usage: Usage::default(),
    }
}

fn create_goal() -> Goal {
    Goal::Create { asked: PartialSpec::default(), spec: spec(), endpoint: endpoint("dunnage") }
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
        let mut facts = Facts::default();
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
                return step;
            }
            facts.mount_tried |= step == Step::Mount;
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
            Step::Inspect => facts.volume = Some(self.info.clone()),
            Step::LookAtMount => {
                facts.at = Some(self.mounted);
                // A kernel that knows says so of nothing else.
                let whole = self.info.as_ref().is_some_and(|info| info.state != VolumeState::Damaged);
                facts.in_place = self.kernel_knows && whole && self.mounted.is_some_and(|there| Some(there.device) == self.attached);
            }
            Step::Record => {
                match goal {
                    Goal::Create { .. } => self.info = Some(volume(VolumeState::Creating)),
                    _ => self.intent = true,
                }
                (facts.removed, facts.recorded) = (None, true);
            }
            Step::Allocate => facts.allocated = true,
            Step::ProbeNew => facts.probed_new = Some(self.new_storage.clone()),
            Step::Formatting => facts.formatting = true,
            Step::Format => {
                assert_eq!(self.new_storage, Probe::Blank, "data was formatted: {:?}", self.words());
                facts.formatted = true;
            }
            Step::Publish => {
                self.info = Some(volume(VolumeState::Ready));
                facts.published = true;
            }
            Step::Attach => {
                let found = self.attached.is_some();
                let number = *self.attached.get_or_insert(OURS);
                facts.attached = Some(Attached { path: "/dev/loop3".into(), number, found });
            }
            Step::Check => {
                if let Probe::Known(known) = &mut self.on_device {
                    known.has_errors = self.unmendable;
                }
                (facts.checked, facts.probe) = (true, None);
            }
            Step::Mount => {
                assert_eq!(self.mounted, None, "mounted twice: {:?}", self.words());
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
                facts.removed = Some(if self.info.is_some() { RemoveAction::Removed } else { RemoveAction::NotThere });
                self.info = None;
            }
            Step::Recover => {
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

fn refused(step: &Step) -> &Error {
    match step {
        Step::Refuse(error) => error,
        other => panic!("it was not refused, but came to {other:?}"),
    }
}

mod create {
    use super::*;

    const WHOLE_ROAD: [&str; 9] = ["inspect", "look", "record", "allocate", "probe-new", "formatting", "format", "publish", "done"];

    #[test]
    fn a_new_volume_is_recorded_allocated_proven_blank_formatted_and_published_in_this_order() {
        let mut world = World::empty();
        assert_eq!(world.run(&create_goal()), Step::Done(Outcome::Created(CreateAction::Created)));
        assert_eq!(world.words(), WHOLE_ROAD);
    }

    #[test]
    fn law_5_storage_that_was_not_looked_at_is_not_formatted() {
        let facts = Facts { volume: Some(None), recorded: true, allocated: true, formatting: true, ..Facts::default() };
        assert_eq!(next(&create_goal(), &facts), Step::ProbeNew);
    }

    #[test]
    fn law_5_that_it_will_be_formatted_is_written_down_before_it_is() {
        let facts = Facts { volume: Some(None), recorded: true, allocated: true, probed_new: Some(Probe::Blank), ..Facts::default() };
        assert_eq!(next(&create_goal(), &facts), Step::Formatting);
    }

    #[test]
    fn law_5_new_storage_with_a_filesystem_on_it_is_refused_and_not_formatted() {
        let mut world = World { new_storage: known(UUID), ..World::empty() };
        assert_eq!(refused(&world.run(&create_goal())).word(), "not_blank");
        assert!(!world.did("formatting") && !world.did("format"), "{:?}", world.words());
    }

    #[test]
    fn law_5_new_storage_that_nobody_recognises_is_refused_by_its_signature() {
        let mut world = World { new_storage: unknown(), ..World::empty() };
        let last = world.run(&create_goal());
        assert_eq!(refused(&last).kind, Kind::NotBlank { signature: "LUKS".to_owned() });
        assert!(!world.did("formatting") && !world.did("format"), "{:?}", world.words());
    }

    #[test]
    fn a_create_that_is_refused_for_what_is_on_its_storage_leaves_no_record() {
        let mut world = World { new_storage: unknown(), ..World::empty() };
        refused(&world.run(&create_goal()));
        assert_eq!(world.info, None, "{:?}", world.words());
    }

    #[test]
    fn law_5_an_existing_volume_is_never_formatted() {
        let mut world = World::ready();
        world.run(&create_goal());
        assert_eq!(world.words(), ["inspect", "done"]);
    }

    #[test]
    fn a_half_made_volume_is_removed_and_made_anew() {
        let mut world = World::with(Some(volume(VolumeState::Creating)));
        assert_eq!(world.run(&create_goal()), Step::Done(Outcome::Created(CreateAction::Created)));
        assert_eq!(world.words()[..4], ["inspect", "look", "remove", "record"]);
        assert_eq!(world.words()[4..], WHOLE_ROAD[3..]);
    }

    #[test]
    fn a_half_removed_volume_is_removed_and_made_anew() {
        let mut world = World::with(Some(volume(VolumeState::Removing)));
        assert_eq!(world.run(&create_goal()), Step::Done(Outcome::Created(CreateAction::Created)));
        assert_eq!(world.words()[..4], ["inspect", "look", "remove", "record"]);
    }

    #[test]
    fn a_half_made_volume_that_cannot_be_removed_is_not_built_upon() {
        let mut world = World::with(Some(volume(VolumeState::Creating))).failing(2, Fail::Before);
        assert_eq!(refused(&world.run(&create_goal())), &step_failed(2));
        assert_eq!(world.words(), ["inspect", "look", "remove", "recover", "refuse"]);
    }

    #[test]
    fn what_is_mounted_may_be_the_last_copy_of_one_that_is_gone_and_no_other_is_made_in_its_place() {
        for found in [None, Some(volume(VolumeState::Creating)), Some(volume(VolumeState::Removing))] {
            let mut world = World { info: found, ..World::staged() };
            let last = world.run(&create_goal());
            assert!(refused(&last).detail.contains("the last copy"), "{last:?}");
            assert_eq!((world.words(), world.mounted), (vec!["inspect", "look", "refuse"], Some(at(OURS))));
        }
    }

    #[test]
    fn a_damaged_volume_is_neither_removed_nor_made_anew() {
        let mut world = World::with(Some(volume(VolumeState::Damaged)));
        assert_eq!(refused(&world.run(&create_goal())).word(), "platform_unavailable");
        assert_eq!(world.words(), ["inspect", "refuse"]);
    }

    #[test]
    fn a_compatible_volume_that_exists_is_already_there() {
        let asked = PartialSpec { size: Some(Bytes::gib(1)), ..PartialSpec::default() };
        let goal = Goal::Create { asked, spec: spec(), endpoint: endpoint("dunnage") };
        assert_eq!(World::ready().run(&goal), Step::Done(Outcome::Created(CreateAction::AlreadyThere)));
    }

    #[test]
    fn another_size_than_the_existing_one_s_is_incompatible_and_says_both() {
        let asked = PartialSpec { size: Some(Bytes::gib(2)), ..PartialSpec::default() };
        let goal = Goal::Create { asked, spec: spec(), endpoint: endpoint("dunnage") };
        let last = World::ready().run(&goal);
        assert_eq!(refused(&last).word(), "exists_incompatible");
        assert!(refused(&last).detail.contains("size (asked 2GiB, is 1GiB)"), "{}", refused(&last));
    }

    #[test]
    fn a_volume_of_another_endpoint_is_incompatible_and_names_that_endpoint() {
        let goal = Goal::Create { asked: PartialSpec::default(), spec: spec(), endpoint: endpoint("rexray") };
        let last = World::ready().run(&goal);
        assert_eq!(refused(&last).word(), "exists_incompatible");
        assert!(refused(&last).detail.contains("endpoint dunnage"), "{}", refused(&last));
    }

    #[test]
    fn whichever_step_fails_first_it_is_the_answer_and_nothing_of_the_volume_stays() {
        for failing in 0..WHOLE_ROAD.len() - 1 {
            let mut world = World::empty().failing(failing, Fail::Before);
            assert_eq!(refused(&world.run(&create_goal())), &step_failed(failing), "{:?}", world.words());
            assert_eq!(world.info, None, "{:?}", world.words());
        }
    }

    #[test]
    fn whichever_step_over_a_half_made_volume_fails_nothing_new_stays() {
        for failing in 3..WHOLE_ROAD.len() {
            let mut world = World::with(Some(volume(VolumeState::Creating))).failing(failing, Fail::Before);
            assert_eq!(refused(&world.run(&create_goal())), &step_failed(failing), "{:?}", world.words());
            assert_eq!(world.info, None, "{:?}", world.words());
        }
    }

    #[test]
    fn a_step_that_did_its_work_and_then_failed_is_undone_too_once_there_is_a_record() {
        for failing in 2..WHOLE_ROAD.len() - 1 {
            let mut world = World::empty().failing(failing, Fail::After);
            assert_eq!(refused(&world.run(&create_goal())), &step_failed(failing), "{:?}", world.words());
            assert_eq!(world.info, None, "{:?}", world.words());
        }
    }

    #[test]
    fn a_failed_undo_is_not_tried_for_ever_and_the_first_error_is_told() {
        for failing in 3..WHOLE_ROAD.len() - 1 {
            let mut world = World::empty().failing(failing, Fail::Before).failing(failing + 1, Fail::Before);
            assert_eq!(refused(&world.run(&create_goal())), &step_failed(failing), "{:?}", world.words());
            assert_eq!(world.info.as_ref().map(|info| info.state), Some(VolumeState::Creating), "a half-made one must be recognisable");
        }
    }

    #[test]
    fn a_create_that_is_not_wanted_any_more_is_undone() {
        for cancelled_at in 0..WHOLE_ROAD.len() - 1 {
            let mut world = World { cancelled_at, ..World::empty() };
            assert_eq!(refused(&world.run(&create_goal())).word(), "platform_unavailable");
            assert_eq!(world.info, None, "{:?}", world.words());
        }
    }
}

mod stage {
    use super::*;

    const WHOLE_ROAD: [&str; 7] = ["look", "inspect", "record", "attach", "mount", "commit", "done"];
    const MOUNT: usize = 4;

    fn marked(uuid: Uuid, dirty_journal: bool, has_errors: bool) -> Probe {
        Probe::Known(KnownFs { fs: FsKind::Ext4, uuid, dirty_journal, has_errors })
    }

    #[test]
    fn a_volume_is_recorded_attached_and_mounted_in_this_order() {
        let mut world = World::ready();
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
        assert_eq!(world.words(), WHOLE_ROAD);
    }

    #[test]
    fn law_5_a_blank_device_is_not_mounted() {
        let mut world = World { on_device: Probe::Blank, ..World::ready() };
        assert_eq!(refused(&world.run(&Goal::Stage)).kind, Kind::NotBlank { signature: "nothing".to_owned() });
        assert!(world.mounted.is_none() && !world.did("format"), "{:?}", world.words());
    }

    #[test]
    fn law_5_a_device_that_cannot_be_read_is_not_mounted() {
        let mut world = World { on_device: unknown(), ..World::ready() };
        assert_eq!(refused(&world.run(&Goal::Stage)).kind, Kind::NotBlank { signature: "LUKS".to_owned() });
        assert!(world.mounted.is_none() && !world.did("format"), "{:?}", world.words());
    }

    #[test]
    fn law_5_a_filesystem_with_another_uuid_is_not_mounted() {
        let mut world = World { on_device: known(OTHER_UUID), ..World::ready() };
        let last = world.run(&Goal::Stage);
        assert!(refused(&last).detail.contains(&OTHER_UUID.to_string()), "{}", refused(&last));
        assert_eq!(world.mounted, None, "{:?}", world.words());
    }

    #[test]
    fn law_5_what_a_mount_found_to_be_something_else_is_not_tried_again_and_not_checked() {
        for on_device in [Probe::Blank, unknown(), known(OTHER_UUID), marked(OTHER_UUID, false, true)] {
            let mut world = World { on_device, ..World::ready() };
            refused(&world.run(&Goal::Stage));
            assert_eq!(world.words().iter().filter(|word| **word == "mount").count(), 1, "{:?}", world.words());
            assert!(!world.did("check"), "{:?}", world.words());
        }
    }

    #[test]
    fn a_device_with_something_else_on_it_is_given_back() {
        for on_device in [Probe::Blank, unknown(), known(OTHER_UUID)] {
            let mut world = World { on_device, ..World::ready() };
            refused(&world.run(&Goal::Stage));
            assert!(world.nothing_here(), "{world:?}");
        }
    }

    #[test]
    fn law_5_the_error_flag_brings_a_check_and_then_the_mount() {
        let mut world = World { on_device: marked(UUID, false, true), ..World::ready() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
        assert_eq!(world.words()[MOUNT..], ["mount", "check", "mount", "commit", "done"]);
    }

    #[test]
    fn law_5_a_dirty_journal_brings_no_check() {
        let mut world = World { on_device: marked(UUID, true, false), ..World::ready() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
        assert!(!world.did("check"), "{:?}", world.words());
    }

    #[test]
    fn a_filesystem_whose_errors_a_check_does_not_mend_is_checked_once_and_refused() {
        let mut world = World { on_device: marked(UUID, false, true), unmendable: true, ..World::ready() };
        assert_eq!(refused(&world.run(&Goal::Stage)).word(), "platform_unavailable");
        assert_eq!(world.words().iter().filter(|word| **word == "check").count(), 1, "{:?}", world.words());
        assert!(world.nothing_here(), "{world:?}");
    }

    #[test]
    fn a_failed_check_is_not_followed_by_a_mount() {
        let mut world = World { on_device: marked(UUID, false, true), ..World::ready() }.failing(MOUNT + 1, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT + 1));
        assert_eq!(world.words()[MOUNT..MOUNT + 2], ["mount", "check"]);
        assert_eq!(world.words().iter().filter(|word| **word == "mount").count(), 1, "{:?}", world.words());
        assert!(world.nothing_here(), "{world:?}");
    }

    #[test]
    fn what_is_mounted_already_is_joined_without_asking_the_platform() {
        let mut world = World::staged();
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Joined)));
        assert_eq!(world.words(), ["look", "done"]);
    }

    #[test]
    fn law_1_a_mount_that_somebody_took_away_is_made_again() {
        let mut world = World { mounted: None, ..World::staged() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
        assert_eq!(world.mounted, Some(at(OURS)));
    }

    #[test]
    fn a_mount_of_our_device_that_the_ledger_does_not_know_is_taken_into_it() {
        let mut world = World { staged: None, ..World::staged() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Joined)));
        assert_eq!(world.words(), ["look", "inspect", "record", "attach", "commit", "done"]);
    }

    #[test]
    fn another_device_where_it_belongs_is_in_use_and_is_not_unmounted() {
        let mut world = World { mounted: Some(at(FOREIGN)), ..World::ready() };
        let last = world.run(&Goal::Stage);
        assert_eq!(refused(&last).word(), "in_use");
        assert!(refused(&last).to_string().contains("8:1"), "{}", refused(&last));
        assert_eq!(world.mounted, Some(at(FOREIGN)));
    }

    #[test]
    fn another_device_where_it_belongs_leaves_nothing_of_ours_behind() {
        let mut world = World { mounted: Some(at(FOREIGN)), ..World::ready() };
        refused(&world.run(&Goal::Stage));
        assert_eq!((world.attached, world.intent), (None, false), "{:?}", world.words());
    }

    #[test]
    fn a_volume_that_does_not_exist_is_not_found_and_nothing_is_recorded() {
        let mut world = World::empty();
        assert_eq!(refused(&world.run(&Goal::Stage)).word(), "not_found");
        assert_eq!(world.words(), ["look", "inspect", "refuse"]);
    }

    #[test]
    fn half_a_volume_is_not_found() {
        for state in [VolumeState::Creating, VolumeState::Removing] {
            let mut world = World::with(Some(volume(state)));
            assert_eq!(refused(&world.run(&Goal::Stage)).word(), "not_found");
            assert!(!world.did("attach"), "{:?}", world.words());
        }
    }

    #[test]
    fn a_damaged_volume_is_not_attached() {
        let mut world = World::with(Some(VolumeInfo { why: Some("its image is short".to_owned()), ..volume(VolumeState::Damaged) }));
        let last = world.run(&Goal::Stage);
        assert!(refused(&last).detail.contains("its image is short"), "{}", refused(&last));
        assert!(!world.did("attach"), "{:?}", world.words());
    }

    #[test]
    fn a_volume_without_a_recorded_filesystem_is_not_attached() {
        let mut world = World::with(Some(VolumeInfo { fs_uuid: None, ..volume(VolumeState::Ready) }));
        refused(&world.run(&Goal::Stage));
        assert!(!world.did("attach"), "{:?}", world.words());
    }

    #[test]
    fn whichever_step_fails_first_it_is_the_answer_and_nothing_stays_recorded_attached_or_mounted() {
        for failing in 0..WHOLE_ROAD.len() - 1 {
            let mut world = World::ready().failing(failing, Fail::Before);
            assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(failing), "{:?}", world.words());
            assert!(world.nothing_here(), "{world:?}");
        }
    }

    #[test]
    fn an_attach_that_worked_and_then_failed_is_undone() {
        let mut world = World::ready().failing(3, Fail::After);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(3));
        assert!(world.did("attach") && world.nothing_here(), "{world:?}");
    }

    #[test]
    fn a_mount_that_worked_and_then_failed_is_undone() {
        let mut world = World::ready().failing(MOUNT, Fail::After);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT));
        assert!(world.did("mount") && world.nothing_here(), "{world:?}");
    }

    #[test]
    fn a_commit_that_worked_and_then_failed_is_undone() {
        let mut world = World::ready().failing(MOUNT + 1, Fail::After);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT + 1));
        assert!(world.did("commit") && world.nothing_here(), "{world:?}");
    }

    #[test]
    fn law_4_when_the_undo_fails_too_what_is_left_is_still_written_down() {
        for failing in 3..WHOLE_ROAD.len() - 1 {
            for undo in failing + 1..failing + 4 {
                let mut world = World::ready().failing(failing, Fail::Before).failing(undo, Fail::Before);
                assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(failing), "{:?}", world.words());
                let left = world.attached.is_some() || world.mounted.is_some();
                assert!(!left || world.intent, "{world:?}");
            }
        }
    }

    #[test]
    fn a_loop_of_our_image_that_was_found_is_let_go_of_by_the_undo_too() {
        let mut world = World { attached: Some(OURS), ..World::ready() }.failing(MOUNT, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT));
        assert_eq!((world.attached, world.intent), (None, false));
    }

    #[test]
    fn law_4_a_device_that_lingers_after_the_undo_is_still_written_down() {
        let mut world = World { copied: true, ..World::ready() }.failing(MOUNT, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT));
        assert_eq!((world.attached, world.intent), (Some(OURS), true), "{:?}", world.words());
    }

    #[test]
    fn what_the_ledger_knew_as_ours_and_unmounted_is_detached_by_the_undo() {
        let mut world = World { mounted: None, ..World::staged() }.failing(MOUNT, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(MOUNT));
        assert!(world.nothing_here() || world.staged.is_some() || world.intent, "attached, and nobody knows: {world:?}");
    }

    #[test]
    fn a_mount_that_is_not_wanted_any_more_is_undone() {
        for cancelled_at in 0..WHOLE_ROAD.len() - 1 {
            let mut world = World { cancelled_at, ..World::ready() };
            assert_eq!(refused(&world.run(&Goal::Stage)).word(), "platform_unavailable");
            assert!(world.nothing_here(), "{world:?}");
        }
    }

    #[test]
    fn a_mount_that_is_committed_is_done_even_if_it_is_not_wanted_any_more() {
        let mut world = World { cancelled_at: WHOLE_ROAD.len() - 1, ..World::ready() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
    }

    #[test]
    fn an_undo_leaves_what_this_run_did_not_mount_as_it_was() {
        for failing in [3, 4] {
            let mut world = World { staged: None, ..World::staged() }.failing(failing, Fail::Before);
            assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(failing));
            assert_eq!(world.words()[failing], ["attach", "commit"][failing - 3]);
            assert!(!world.did("unmount") && !world.did("detach"), "{:?}", world.words());
            // And written down, so that the sweep sees to it.
            assert_eq!((world.mounted, world.attached, world.intent), (Some(at(OURS)), Some(OURS), true));
        }
    }

    #[test]
    fn law_4_an_undo_does_not_forget_a_mount_that_an_earlier_run_has_written_down() {
        for failing in [3, 4] {
            let mut world = World { staged: None, intent: true, ..World::staged() }.failing(failing, Fail::Before);
            assert_eq!(refused(&world.run(&Goal::Stage)), &step_failed(failing));
            assert_eq!((world.mounted, world.intent), (Some(at(OURS)), true), "{:?}", world.words());
        }
    }

    #[test]
    fn another_device_than_the_ledger_s_is_not_joined() {
        let mut world = World { mounted: Some(at(FOREIGN)), ..World::staged() };
        assert_eq!(refused(&world.run(&Goal::Stage)).word(), "in_use");
        assert_eq!(world.mounted, Some(at(FOREIGN)));
    }
}

mod unstage {
    use super::*;

    const WHOLE_ROAD: [&str; 7] = ["look", "inspect", "record", "unmount", "detach", "release", "done"];

    #[test]
    fn a_volume_is_unmounted_and_detached_and_then_forgotten() {
        let mut world = World::staged();
        assert_eq!(world.run(&Goal::Unstage), Step::Done(Outcome::Unstaged(ReleaseAction::Released)));
        assert_eq!(world.words(), WHOLE_ROAD);
        assert!(world.nothing_here(), "{world:?}");
    }

    #[test]
    fn what_is_not_mounted_is_not_there() {
        assert_eq!(World::ready().run(&Goal::Unstage), Step::Done(Outcome::Unstaged(ReleaseAction::NotThere)));
    }

    #[test]
    fn what_does_not_exist_is_not_there() {
        let mut world = World::empty();
        assert_eq!(world.run(&Goal::Unstage), Step::Done(Outcome::Unstaged(ReleaseAction::NotThere)));
        assert!(!world.did("detach"), "{:?}", world.words());
    }

    #[test]
    fn law_2_a_holder_that_comes_before_the_unmount_wins() {
        for looked in [None, Some(Some(at(OURS)))] {
            let facts = Facts { holders: 1, at: looked, recorded: looked.is_some(), ..Facts::default() };
            assert_eq!(next(&Goal::Unstage, &facts), Step::Done(Outcome::StillHeld));
        }
    }

    #[test]
    fn law_2_a_holder_that_comes_after_the_unmount_does_not_stop_the_detach() {
        let facts = Facts {
            holders: 1,
            staged: Some(staged(OURS)),
            volume: Some(Some(volume(VolumeState::Ready))),
            at: Some(Some(at(OURS))),
            recorded: true,
            unmounted: Some(Unmounted::Done),
            ..Facts::default()
        };
        assert_eq!(next(&Goal::Unstage, &facts), Step::Detach(Some(OURS)));
    }

    #[test]
    fn a_busy_volume_is_refused_with_the_names_of_the_processes_that_use_it() {
        let mut world = World { busy: true, ..World::staged() };
        let last = world.run(&Goal::Unstage);
        assert_eq!(world.words(), ["look", "inspect", "record", "unmount", "who-uses", "refuse"]);
        let Kind::InUse { holders, .. } = &refused(&last).kind else { panic!("{last:?}") };
        assert_eq!(holders, &["tail (pid 4711)"], "who only has a copy of the mount does not make it busy");
    }

    #[test]
    fn a_busy_volume_is_not_detached_and_stays_in_the_ledger() {
        let mut world = World { busy: true, ..World::staged() };
        world.run(&Goal::Unstage);
        assert_eq!((world.mounted, world.attached, world.staged), (Some(at(OURS)), Some(OURS), Some(staged(OURS))));
    }

    #[test]
    fn a_busy_volume_is_in_use_even_when_nobody_can_say_by_whom() {
        let mut world = World { busy: true, ..World::staged() }.failing(4, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Unstage)).word(), "in_use");
    }

    #[test]
    fn the_last_copy_is_neither_unmounted_nor_detached() {
        for info in [None, Some(volume(VolumeState::Damaged))] {
            let mut world = World { info, ..World::staged() };
            let last = world.run(&Goal::Unstage);
            assert!(refused(&last).next.contains("/dev/loop3"), "no rescue line: {}", refused(&last));
            assert!(!world.did("unmount") && !world.did("detach"), "{:?}", world.words());
        }
    }

    #[test]
    fn what_the_platform_cannot_be_asked_about_is_not_unmounted() {
        let mut world = World::staged().failing(1, Fail::Before);
        assert_eq!(refused(&world.run(&Goal::Unstage)), &step_failed(1));
        assert!(!world.did("unmount"), "{:?}", world.words());
    }

    #[test]
    fn a_device_that_is_not_the_volume_s_is_never_unmounted() {
        for known_to_ledger in [None, Some(staged(OURS))] {
            let mut world = World { mounted: Some(at(FOREIGN)), staged: known_to_ledger, ..World::staged() };
            let last = world.run(&Goal::Unstage);
            assert!(refused(&last).to_string().contains("8:1"), "{}", refused(&last));
            assert!(!world.did("unmount"), "{:?}", world.words());
        }
    }

    #[test]
    fn a_device_that_was_attached_only_to_compare_it_is_given_back() {
        let mut world = World { mounted: Some(at(FOREIGN)), ..World::ready() };
        refused(&world.run(&Goal::Unstage));
        assert_eq!(world.attached, None, "{:?}", world.words());
    }

    #[test]
    fn a_mount_that_the_ledger_does_not_know_is_unmounted_only_when_its_device_is_proven_ours() {
        let mut world = World { staged: None, ..World::staged() };
        assert_eq!(world.run(&Goal::Unstage), Step::Done(Outcome::Unstaged(ReleaseAction::Released)));
        assert_eq!(world.words()[..5], ["look", "inspect", "attach", "record", "unmount"]);
    }

    #[test]
    fn a_copy_of_the_mount_elsewhere_makes_it_linger_and_stay_in_the_ledger() {
        let mut world = World { copied: true, ..World::staged() };
        let Step::Done(Outcome::Lingering(users)) = world.run(&Goal::Unstage) else { panic!("{:?}", world.trace) };
        assert!(users.iter().any(|user| user.name == "sleep"), "{users:?}");
        assert!(!world.did("release") && world.staged.is_some(), "{world:?}");
    }

    #[test]
    fn whichever_step_fails_the_next_try_ends_it() {
        for how in [Fail::Before, Fail::After] {
            for failing in 0..WHOLE_ROAD.len() - 1 {
                let mut world = World::staged().failing(failing, how);
                assert_eq!(refused(&world.run(&Goal::Unstage)), &step_failed(failing), "{:?}", world.words());
                let left = world.attached.is_some() || world.mounted.is_some();
                assert!(!left || world.intent || world.staged.is_some(), "it is left and nobody knows: {world:?}");
                world.failing.clear();
                let last = world.run(&Goal::Unstage);
                assert!(matches!(last, Step::Done(Outcome::Unstaged(_))), "{last:?}");
                assert!(world.nothing_here(), "{world:?}");
            }
        }
    }
}

mod remove {
    use super::*;

    #[test]
    fn a_volume_that_is_not_mounted_is_removed() {
        let mut world = World::ready();
        assert_eq!(world.run(&Goal::Remove), Step::Done(Outcome::Removed(RemoveAction::Removed)));
        assert_eq!(world.words(), ["look", "inspect", "remove", "done"]);
    }

    #[test]
    fn a_volume_that_does_not_exist_was_not_there() {
        let mut world = World::empty();
        assert_eq!(world.run(&Goal::Remove), Step::Done(Outcome::Removed(RemoveAction::NotThere)));
        assert!(!world.did("remove"), "{:?}", world.words());
    }

    #[test]
    fn a_mounted_volume_is_not_removed_whoever_mounted_it() {
        for device in [OURS, FOREIGN] {
            let mut world = World { mounted: Some(at(device)), ..World::ready() };
            assert_eq!(refused(&world.run(&Goal::Remove)).word(), "in_use");
            assert!(!world.did("remove"), "{:?}", world.words());
        }
    }

    #[test]
    fn a_volume_that_somebody_is_about_to_mount_is_not_removed() {
        let facts = Facts { holders: 1, at: Some(None), volume: Some(Some(volume(VolumeState::Ready))), ..Facts::default() };
        assert_eq!(refused(&next(&Goal::Remove, &facts)).word(), "in_use");
    }

    #[test]
    fn a_damaged_volume_is_not_removed() {
        let mut world = World::with(Some(volume(VolumeState::Damaged)));
        refused(&world.run(&Goal::Remove));
        assert!(!world.did("remove"), "{:?}", world.words());
    }

    #[test]
    fn half_a_volume_is_removed() {
        for state in [VolumeState::Creating, VolumeState::Removing] {
            let mut world = World::with(Some(volume(state)));
            assert_eq!(world.run(&Goal::Remove), Step::Done(Outcome::Removed(RemoveAction::Removed)));
        }
    }
}

#[test]
fn recovery_says_what_it_did_and_what_stood_in_its_way() {
    let mut world = World::with(Some(volume(VolumeState::Creating)));
    assert_eq!(world.run(&Goal::Recover), Step::Done(Outcome::Recovered(Some("undid it".to_owned()))));
    assert_eq!(World::ready().run(&Goal::Recover), Step::Done(Outcome::Recovered(None)));
    assert_eq!(refused(&World::ready().failing(0, Fail::Before).run(&Goal::Recover)), &step_failed(0));
}

#[path = "planner_properties.rs"]
mod properties;
