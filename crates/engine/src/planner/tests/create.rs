//! The plan of the goal `create`.

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
    let goal = Goal::Create { asked: asked.into(), spec: spec().into(), endpoint: endpoint("dunnage"), source: None };
    assert_eq!(World::ready().run(&goal), Step::Done(Outcome::Created(CreateAction::AlreadyThere)));
}

#[test]
fn another_size_than_the_existing_one_s_is_incompatible_and_says_both() {
    let asked = PartialSpec { size: Some(Bytes::gib(2)), ..PartialSpec::default() };
    let goal = Goal::Create { asked: asked.into(), spec: spec().into(), endpoint: endpoint("dunnage"), source: None };
    let last = World::ready().run(&goal);
    assert_eq!(refused(&last).word(), "exists_incompatible");
    assert!(refused(&last).detail.contains("size (asked 2GiB, is 1GiB)"), "{}", refused(&last));
}

#[test]
fn a_volume_of_another_endpoint_is_incompatible_and_names_that_endpoint() {
    let goal = Goal::Create { asked: Box::default(), spec: spec().into(), endpoint: endpoint("rexray"), source: None };
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
