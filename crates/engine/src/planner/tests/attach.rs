//! What the planner does for who wants the device alone.

use dunnage_model::AttachAction;

use super::*;

fn ready() -> Facts {
    Facts { at: Some(None), volume: Some(Some(volume(VolumeState::Ready))), ..Facts::default() }
}

fn device(found: bool) -> Option<Attached> {
    Some(Attached { path: "/dev/loop3".into(), number: OURS, found })
}

fn step(facts: &Facts) -> Step {
    next(&Goal::Attach, facts)
}

#[test]
fn it_is_written_down_before_and_after() {
    let mut facts = Facts::default();
    assert_eq!(step(&facts), Step::LookAtMount);
    facts.at = Some(None);
    assert_eq!(step(&facts), Step::Inspect);
    facts = ready();
    assert_eq!(step(&facts), Step::Record);
    facts.recorded = true;
    assert_eq!(step(&facts), Step::Attach);
    facts.attached = device(false);
    assert_eq!(step(&facts), Step::Commit);
    facts.committed = true;
    assert_eq!(step(&facts), Step::Done(Outcome::Attached(AttachAction::Attached, "/dev/loop3".into())));
}

#[test]
fn a_failure_detaches_what_nobody_else_has() {
    let facts = Facts { recorded: true, attached: device(false), failure: Some(step_failed(0)), ..ready() };
    assert_eq!(step(&facts), Step::Detach(Some(OURS)));
    assert_eq!(step(&Facts { detached: Some(Detached::Done), ..facts.clone() }), Step::Release);
    for others in [Facts { at: Some(Some(at(OURS))), ..facts.clone() }, Facts { kept: Some(OURS), ..facts }] {
        assert!(matches!(step(&others), Step::Refuse(_)), "it is mounted or attached for others");
    }
}

#[test]
fn an_unmount_leaves_the_device_to_who_wants_it() {
    let mounted = Facts {
        attachers: 1,
        kept: Some(OURS),
        staged: Some(staged(OURS)),
        intended: true,
        at: Some(Some(at(OURS))),
        in_place: true,
        recorded: true,
        unmounted: Some(Unmounted::Done),
        ..Facts::default()
    };
    assert_eq!(next(&Goal::Unstage, &mounted), Step::Release);
    let released = Facts { released: true, staged: None, intended: false, ..mounted };
    assert_eq!(next(&Goal::Unstage, &released), Step::Done(Outcome::StillHeld));
}

#[test]
fn an_attached_volume_is_not_removed() {
    let facts = Facts { attachers: 1, ..ready() };
    assert!(matches!(next(&Goal::Remove, &facts), Step::Refuse(e) if e.word() == "in_use"));
}
