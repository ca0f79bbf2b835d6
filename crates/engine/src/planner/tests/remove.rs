//! The plan of the goal `remove`.

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
