//! The plan of the goal `unstage`.

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
    // What the platform does not call ours may be attached all the same.
    assert!(world.did("detach") && !world.did("unmount"), "{:?}", world.words());
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
