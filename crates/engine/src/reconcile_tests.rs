//! The table of what is done at start about what the ledger says and the kernel shows, row by row.

use dunnage_host::DeviceNumber;
use dunnage_model::{BootId, Caller, Holder, HolderKey, OperationId};
use jiff::Timestamp;

use super::*;
use crate::ledger::Intent;

const OURS: DeviceNumber = DeviceNumber::new(7, 3);
const OTHER: DeviceNumber = DeviceNumber::new(7, 4);

fn line(device: DeviceNumber) -> MountEntry {
    MountEntry { relative: "local/pg".into(), device, fs: "ext4".to_owned(), source: format!("/dev/loop{}", device.minor) }
}

fn holder(count: u32, provisional: u32, undecided: u32) -> Holder {
    let caller = Caller::of_plugin(Some("a".to_owned()));
    Holder {
        key: HolderKey { endpoint: "dunnage".parse().expect("endpoint"), caller },
        count,
        provisional,
        undecided,
        since: Timestamp::UNIX_EPOCH,
        mode: Default::default(),
        target: "/volumes/local/pg".to_owned(),
    }
}

fn intent(goal: &str) -> Option<Intent> {
    Some(Intent { operation: OperationId("op-1".to_owned()), goal: goal.to_owned() })
}

fn nothing() -> Entry {
    let volume = VolumeId { driver: "local".parse().expect("driver"), name: "pg".parse().expect("name") };
    Entry::new(volume, BootId("boot-1".to_owned()))
}

fn mounted(holders: Vec<Holder>) -> Entry {
    Entry { staged: Some(Staged { device: OURS, mount_id: 1 }), holders, ..nothing() }
}

/// Nothing of it is known, but that something of it may be here.
fn to_be_let_go_of() -> Entry {
    let intent = Some(Intent { operation: OperationId("op-at-start".to_owned()), goal: "unstage".to_owned() });
    Entry { intent, ..nothing() }
}

#[test]
fn what_is_mounted_as_the_ledger_says_is_kept_with_its_holders() {
    let mut entry = mounted(vec![holder(2, 0, 0)]);
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Keep);
    assert_eq!(entry, mounted(vec![holder(2, 0, 0)]));
}

#[test]
fn holders_of_a_mount_that_is_gone_are_dropped_and_the_device_is_let_go() {
    let mut entry = mounted(vec![holder(2, 0, 0)]);
    assert_eq!(judge(&mut entry, None), Verdict::Run(Goal::Unstage));
    assert_eq!(entry, to_be_let_go_of());
}

#[test]
fn holders_of_a_mount_that_another_device_took_the_place_of_are_dropped() {
    let mut entry = mounted(vec![holder(2, 0, 0)]);
    assert_eq!(judge(&mut entry, Some(&line(OTHER))), Verdict::Run(Goal::Unstage));
    assert_eq!(entry, to_be_let_go_of());
}

#[test]
fn a_provisional_holder_of_a_mount_becomes_undecided() {
    let mut entry = mounted(vec![holder(0, 1, 0)]);
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Keep);
    assert_eq!(entry.holders, [holder(0, 0, 1)]);
}

#[test]
fn provisional_holds_add_to_the_undecided_ones_of_the_crash_before_and_not_to_the_count() {
    let mut entry = mounted(vec![holder(3, 2, 1)]);
    judge(&mut entry, Some(&line(OURS)));
    assert_eq!(entry.holders, [holder(3, 0, 3)]);
}

#[test]
fn a_provisional_holder_of_nothing_that_is_mounted_is_dropped() {
    let mut entry = Entry { intent: intent("stage"), holders: vec![holder(0, 1, 0)], ..nothing() };
    assert_eq!(judge(&mut entry, None), Verdict::Run(Goal::Unstage));
    assert_eq!(entry.holders, []);
}

#[test]
fn a_mount_that_was_made_and_not_committed_is_undone_because_no_answer_had_left() {
    let mut entry = Entry { intent: intent("stage"), holders: vec![holder(0, 1, 0)], ..nothing() };
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Run(Goal::Unstage));
    assert_eq!(entry.holders, []);
}

#[test]
fn a_mount_that_had_not_got_anywhere_is_undone() {
    let mut entry = Entry { intent: intent("stage"), ..nothing() };
    assert_eq!(judge(&mut entry, None), Verdict::Run(Goal::Unstage));
}

#[test]
fn an_unmount_that_had_begun_and_that_nobody_stood_against_is_finished() {
    let mut entry = Entry { intent: intent("unstage"), ..mounted(Vec::new()) };
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Run(Goal::Unstage));
    assert_eq!(entry.staged, mounted(Vec::new()).staged, "what is mounted must be known to be unmounted");
}

#[test]
fn an_unmount_that_had_unmounted_is_finished() {
    let mut entry = Entry { intent: intent("unstage"), ..mounted(Vec::new()) };
    assert_eq!(judge(&mut entry, None), Verdict::Run(Goal::Unstage));
}

#[test]
fn an_unmount_that_had_begun_and_that_somebody_stood_against_is_off() {
    let mut entry = Entry { intent: intent("unstage"), ..mounted(vec![holder(1, 0, 0)]) };
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Keep);
    assert_eq!(entry, mounted(vec![holder(1, 0, 0)]));
}

#[test]
fn a_holder_whose_answer_was_on_its_way_stands_against_an_unmount_too() {
    let mut entry = Entry { intent: intent("unstage"), ..mounted(vec![holder(0, 1, 0)]) };
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Keep);
    assert_eq!(entry, mounted(vec![holder(0, 0, 1)]));
}

#[test]
fn a_mount_that_nobody_holds_is_unmounted() {
    let mut entry = mounted(Vec::new());
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Run(Goal::Unstage));
}

#[test]
fn a_holder_that_holds_nothing_any_more_is_dropped_and_the_others_are_kept() {
    let mut entry = mounted(vec![holder(0, 0, 0), holder(1, 0, 0)]);
    assert_eq!(judge(&mut entry, Some(&line(OURS))), Verdict::Keep);
    assert_eq!(entry.holders, [holder(1, 0, 0)]);
}

#[test]
fn a_mount_again_after_somebody_took_it_away_is_undone_when_the_crash_came_before_it() {
    let mut entry = Entry { intent: intent("stage"), ..mounted(vec![holder(1, 1, 0)]) };
    assert_eq!(judge(&mut entry, None), Verdict::Run(Goal::Unstage));
    assert_eq!(entry, to_be_let_go_of());
}

#[test]
fn a_holder_without_any_mount_is_dropped() {
    let mut entry = Entry { holders: vec![holder(1, 0, 0)], ..nothing() };
    judge(&mut entry, None);
    assert_eq!(entry.holders, []);
}
