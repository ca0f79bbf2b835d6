//! The plan of the goal `stage`.

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
