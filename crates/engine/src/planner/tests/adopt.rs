//! What the planner does with what somebody else has made.

use dunnage_driver::Stranger;
use dunnage_host::KnownFs;
use dunnage_model::AdoptAction;

use super::*;
use crate::planner::AdoptRequest;

fn wanted() -> AdoptRequest {
    AdoptRequest { endpoint: endpoint("dunnage"), root_path: None, moves: false, overwrite: false }
}

fn stranger(found: Probe) -> Stranger {
    Stranger { name: "pg".parse().expect("name"), place: "/pool/pg/image".to_owned(), size: Bytes::gib(1), found, copy_of: None }
}

fn with_fs() -> Stranger {
    stranger(Probe::Known(KnownFs { fs: FsKind::Ext4, uuid: UUID, dirty_journal: true, has_errors: false }))
}

/// Looked at the platform: it is not ours, and this is there.
fn seen(stranger: Stranger) -> Facts {
    Facts { volume: Some(None), stranger: Some(Some(stranger)), ..Facts::default() }
}

fn device(found: bool) -> Attached {
    Attached { path: "/dev/loop3".into(), number: OURS, found }
}

fn step(wanted: AdoptRequest, facts: &Facts) -> Step {
    next(&Goal::Adopt(wanted), facts)
}

#[test]
fn it_is_looked_at_and_into_and_let_go_of_before_it_is_adopted() {
    let mut facts = Facts::default();
    assert_eq!(step(wanted(), &facts), Step::Inspect);
    facts.volume = Some(None);
    assert_eq!(step(wanted(), &facts), Step::LookForStranger);
    facts.stranger = Some(Some(with_fs()));
    assert_eq!(step(wanted(), &facts), Step::Record);
    facts.recorded = true;
    assert_eq!(step(wanted(), &facts), Step::Attach);
    facts.attached = Some(device(false));
    assert_eq!(step(wanted(), &facts), Step::LookInside(FsKind::Ext4));
    facts.inside = Some(vec!["data".to_owned(), "lost+found".to_owned()]);
    assert_eq!(step(wanted(), &facts), Step::Detach(Some(OURS)));
    facts.detached = Some(Detached::Done);
    assert_eq!(step(wanted(), &facts), Step::Release);
    facts.released = true;
    assert_eq!(step(wanted(), &facts), Step::Adopt("data".parse().ok()));
    facts.adopted = true;
    assert_eq!(step(wanted(), &facts), Step::Done(Outcome::Adopted(AdoptAction::Adopted)));
}

#[test]
fn a_device_that_somebody_has_attached_already_is_left_to_them() {
    let facts =
        Facts { recorded: true, released: true, attached: Some(device(true)), inside: Some(vec!["x".to_owned()]), ..seen(with_fs()) };
    assert_eq!(step(wanted(), &facts), Step::Adopt(None));
    let failed = Facts { failure: Some(step_failed(0)), attached: Some(device(true)), ..seen(with_fs()) };
    assert!(matches!(step(wanted(), &failed), Step::Refuse(_)));
}

#[test]
fn what_was_attached_to_be_looked_into_is_detached_when_looking_fails() {
    let mut facts = Facts { failure: Some(step_failed(0)), attached: Some(device(false)), ..seen(with_fs()) };
    assert_eq!(step(wanted(), &facts), Step::Detach(Some(OURS)));
    facts.detached = Some(Detached::Done);
    assert!(matches!(step(wanted(), &facts), Step::Refuse(_)));
    let stuck = Facts { undo_failed: true, detached: None, ..facts };
    assert!(matches!(step(wanted(), &stuck), Step::Refuse(_)));
}

#[test]
fn a_copy_gets_a_uuid_of_its_own_before_anything_is_attached() {
    let copy = Stranger { copy_of: Some("old".parse().expect("name")), ..with_fs() };
    assert_eq!(step(wanted(), &seen(copy.clone())), Step::Renew);
    assert_eq!(step(wanted(), &Facts { renewed: true, recorded: true, ..seen(copy) }), Step::Attach);
}

#[test]
fn what_has_no_filesystem_is_refused_by_name_and_only_a_person_s_word_destroys_it() {
    for found in [Probe::Blank, Probe::Unknown { signature: "crypto_LUKS".to_owned() }] {
        let facts = seen(stranger(found));
        let Step::Refuse(error) = step(wanted(), &facts) else { panic!("it was not refused") };
        assert!(error.to_string().contains("adopt --overwrite pg") && error.word() == "not_blank", "{error}");
        let overwrite = AdoptRequest { overwrite: true, ..wanted() };
        assert_eq!(step(overwrite.clone(), &facts), Step::LookAtMount);
        assert_eq!(step(overwrite.clone(), &Facts { at: Some(None), ..facts.clone() }), Step::Discard);
        // What is mounted may be the last copy of something.
        assert!(matches!(step(overwrite, &Facts { at: Some(Some(at(OURS))), ..facts }), Step::Refuse(_)));
    }
}

#[test]
fn a_volume_of_ours_goes_to_another_endpoint_only_when_a_person_says_so_and_is_never_overwritten() {
    let ours = Facts { volume: Some(Some(volume(VolumeState::Ready))), ..Facts::default() };
    assert_eq!(step(wanted(), &ours), Step::Done(Outcome::Adopted(AdoptAction::AlreadyThere)));
    let other = AdoptRequest { endpoint: endpoint("rexray"), ..wanted() };
    let Step::Refuse(error) = step(other.clone(), &ours) else { panic!("it was not refused") };
    assert_eq!(error.word(), "not_found", "{error}");
    assert_eq!(step(AdoptRequest { moves: true, ..other }, &ours), Step::Adopt(None));
    let overwrite = AdoptRequest { overwrite: true, moves: true, ..wanted() };
    assert!(matches!(step(overwrite, &ours), Step::Refuse(e) if e.word() == "exists_incompatible"));
}

#[test]
fn only_data_alone_is_rex_ray_s_folder() {
    for (names, inside) in [
        (&["data"][..], Some("data")),
        (&["data", "lost+found"], Some("data")),
        (&["data", "x"], None),
        (&["lost+found"], None),
        (&[], None),
    ] {
        let facts = Facts {
            recorded: true,
            released: true,
            attached: Some(device(true)),
            inside: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..seen(with_fs())
        };
        assert_eq!(step(wanted(), &facts), Step::Adopt(inside.and_then(|inside| inside.parse().ok())), "{names:?}");
    }
}

/// All that can be known of an adoption of what others could take.
fn all_facts() -> impl Iterator<Item = (AdoptRequest, Facts)> {
    let attached = [None, Some(device(false)), Some(device(true))];
    let detached = [None, Some(Detached::Done), Some(Detached::NotThere), Some(Detached::Lingering)];
    (0..256_usize).flat_map(move |bits| {
        let bit = |n: usize| bits >> n & 1 == 1;
        let stranger = Stranger { copy_of: bit(0).then(|| "old".parse().expect("name")), ..with_fs() };
        let info = bit(1).then(|| volume(VolumeState::Creating));
        let (renewed, inside) = (bit(2), bit(3).then(Vec::new));
        let (recorded, owned, named) = (bit(4), bit(5), bit(6));
        let request = AdoptRequest { root_path: bit(7).then(|| "data".parse().expect("a path")), ..wanted() };
        let facts = Facts { shared: true, volume: Some(info), renewed, inside, recorded, owned, named, ..seen(stranger) };
        let facts = Facts { own_tried: owned, recovered: bit(1).then_some(None), ..facts };
        let (attached, detached) = (attached.clone(), detached.clone());
        attached.into_iter().flat_map(move |attached| {
            let (request, facts, detached) = (request.clone(), facts.clone(), detached.clone());
            detached.into_iter().map(move |detached| (request.clone(), Facts { attached: attached.clone(), detached, ..facts.clone() }))
        })
    })
}

#[test]
fn law_6_no_facts_lead_to_what_others_could_take_being_touched_before_we_can_be_cut_off() {
    let mut seen = std::collections::BTreeSet::new();
    for (request, facts) in all_facts() {
        let next = step(request, &facts);
        seen.insert(next.word());
        match next {
            Step::Attach => assert!(facts.recorded && facts.owned),
            Step::Renew | Step::LookInside(_) => assert!(facts.owned && facts.named && facts.attached.is_some(), "{facts:?}"),
            // What is read through a device that may be somebody's by now is not what is adopted.
            Step::Adopt(_) => assert!(facts.recorded && facts.owned && facts.detached != Some(Detached::Lingering)),
            _ => {}
        }
    }
    for word in ["attach", "name", "renew", "look-inside", "detach", "adopt", "own", "record"] {
        assert!(seen.contains(word), "{word} is not among {seen:?}");
    }
}
