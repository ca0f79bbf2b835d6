//! What the planner does for who wants more room.

use super::*;

const LARGER: Bytes = Bytes::gib(2);

fn resized(action: ResizeAction) -> Step {
    Step::Done(Outcome::Resized(action))
}

fn growing() -> World {
    let mut world = World::ready();
    world.info.as_mut().expect("a volume").growing = true;
    world
}

#[test]
fn what_is_mounted_grows_as_it_is() {
    let mut world = World::staged();
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::Grown));
    assert_eq!(world.words(), ["look", "inspect", "expand", "grow", "grown", "done"]);
    let info = world.info.as_ref().expect("a volume");
    assert_eq!((info.spec.size, info.growing), (LARGER, false));
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::AlreadyThere));
}

#[test]
fn what_is_not_mounted_grows_with_the_next_mount() {
    let mut world = World::ready();
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::GrowsWithMount));
    assert!(world.nothing_here());
    world.trace.clear();
    assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
    assert_eq!(world.words(), ["look", "inspect", "record", "attach", "mount", "commit", "grow", "grown", "done"]);
    assert!(!world.info.expect("a volume").growing);
}

#[test]
fn what_cannot_grow_while_it_is_mounted_grows_before_the_next_mount() {
    let mut world = World { growth: Growth::Unmounted, ..World::staged() };
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::GrowsWithMount));
    assert!(!world.did("grow"));
    world.run(&Goal::Unstage);
    world.trace.clear();
    assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
    assert_eq!(world.words(), ["look", "inspect", "record", "attach", "grow", "grown", "mount", "commit", "done"]);
}

#[test]
fn what_has_no_filesystem_of_its_own_has_grown_at_once() {
    let mut world = World { growth: Growth::Always, ..World::ready() };
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::Grown));
}

#[test]
fn a_volume_that_cannot_grow_is_mounted_all_the_same() {
    for growth in [Growth::Mounted, Growth::Unmounted] {
        let mut world = World { growth, cannot_grow: true, ..growing() };
        assert_eq!(world.run(&Goal::Stage), Step::Done(Outcome::Staged(MountAction::Mounted)));
        assert!(world.info.as_ref().is_some_and(|info| info.growing), "the next mount tries again");
    }
    let mut world = World { cannot_grow: true, ..World::staged() };
    assert_eq!(refused(&world.run(&Goal::Resize(LARGER))), &stays_small());
}

#[test]
fn a_resize_that_was_interrupted_is_finished_by_the_same_words() {
    let mut world = World::staged();
    world.info.as_mut().expect("a volume").growing = true;
    assert_eq!(world.run(&Goal::Resize(Bytes::gib(1))), resized(ResizeAction::Grown));
}

#[test]
fn nothing_becomes_smaller() {
    let mut world = World::staged();
    let error = refused(&world.run(&Goal::Resize(Bytes::mib(512)))).clone();
    assert_eq!(error.word(), "invalid_argument");
    assert!(error.to_string().contains("no volume becomes smaller"), "{error}");
    assert_eq!(world.info, Some(volume(VolumeState::Ready)));
}

#[test]
fn law_6_what_others_could_have_is_this_node_s_while_it_is_made_longer_and_nobody_s_after_that() {
    let mut world = World { shared: true, ..World::ready() };
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::GrowsWithMount));
    assert_eq!(world.words(), ["look", "inspect", "own", "inspect", "expand", "detach", "give-up", "done"]);
    assert!(!world.ours);
    let mut world = World { shared: true, ours: true, named: true, ..World::staged() };
    assert_eq!(world.run(&Goal::Resize(LARGER)), resized(ResizeAction::Grown));
    assert_eq!(world.words(), ["look", "inspect", "confirm", "expand", "grow", "grown", "done"]);
    assert!(world.ours, "it is mounted here");
}

#[test]
fn law_6_a_failure_leaves_it_to_the_others() {
    let mut world = World { shared: true, ..World::ready() }.failing(4, Fail::Before);
    assert_eq!(refused(&world.run(&Goal::Resize(LARGER))), &step_failed(4));
    assert_eq!(world.words(), ["look", "inspect", "own", "inspect", "expand", "detach", "give-up", "refuse"]);
    assert!(!world.ours && !world.owed);
}
