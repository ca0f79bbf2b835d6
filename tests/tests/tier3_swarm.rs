//! Docker Swarm over three machines that share a Ceph cluster: whatever becomes of the machine that writes, no acknowledged record
//! is lost, and nobody writes after who came later.
//!
//! A test begins where a service writes, and ends where it writes again and every machine is well. Three share a bench: the time of
//! a failover is Ceph's, which sees a client for half a minute that has died.

use std::time::{Duration, Instant};

use dunnage_driver::SILENCE;
use dunnage_tests::machine::{Machine, SWITCH};
use dunnage_tests::swarm::{FAILOVER, Swarm};
use dunnage_tests::{BOUND, eventually};

/// The service writes somewhere else than it did.
fn moves(swarm: &Swarm, round: &str, from: &str) {
    let took = swarm.wait_for(round, |owner| owner.is_some_and(|owner| owner != from));
    println!("{round}: {took:.1?} until another machine acknowledged a record");
}

/// A machine is gone for the others: how long it takes until the swarm sees that, another one has the volume, and writes.
fn fails_over(swarm: &Swarm, round: &str, from: &str) {
    let begun = Instant::now();
    eventually("the swarm misses the machine", BOUND, || !swarm.is_ready(from));
    let missed = begun.elapsed();
    eventually("another machine has the volume", FAILOVER, || swarm.mounted_at().iter().any(|name| *name != from));
    let mounted = begun.elapsed();
    swarm.wait_for(round, |owner| owner.is_some_and(|owner| owner != from));
    println!("{round}: missed after {missed:.1?}, mounted elsewhere after {mounted:.1?}, first record after {:.1?}", begun.elapsed());
    swarm.goes_on(&swarm.owner().expect("somebody writes"));
}

/// A machine that was gone is back: the swarm has it again, and whatever it has left of the volume goes.
fn comes_back(swarm: Swarm, round: &str) {
    swarm.wait_until_ready();
    swarm.check(round);
    swarm.finish();
}

#[test]
fn law_3_swarm_a_killed_daemon_moves_nothing_and_the_service_goes_on() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.machine(first).kill_daemon();
    swarm.goes_on(first);
    assert!(swarm.is_ready(first));
    swarm.machine(first).start_daemon();
    swarm.goes_on(first);
    assert_eq!(swarm.mounted_at(), [first], "a dead daemon moved something");
    swarm.check("daemon killed");
    swarm.finish();
}

#[test]
fn law_6_swarm_a_drained_or_rebooted_node_hands_its_volume_over_and_nobody_is_fenced() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.drain(first);
    moves(&swarm, "drained", first);
    swarm.activate(first);
    swarm.check("drained");

    let second = swarm.writer();
    swarm.machine(second).shut_down();
    fails_over(&swarm, "shut down", second);
    swarm.machine(second).boot();
    assert!(!swarm.fenced(), "nobody had to be");
    comes_back(swarm, "shut down");
}

#[test]
fn law_6_swarm_a_power_cut_loses_no_acknowledged_record() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.goes_on(first);
    swarm.machine(first).cut_power();
    fails_over(&swarm, "power cut", first);
    assert!(swarm.fenced());
    swarm.machine(first).boot();
    comes_back(swarm, "power cut");
}

/// The others do not hear a machine for a while; what it writes meanwhile is for nothing, and it is never told otherwise.
fn is_not_heard(round: &str, cut: fn(&Machine), heal: fn(&Machine)) {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    cut(swarm.machine(first));
    fails_over(&swarm, round, first);
    let written = swarm.acknowledged_by(first);
    heal(swarm.machine(first));
    swarm.wait_until_ready();
    swarm.check(round);
    assert_eq!(swarm.acknowledged_by(first), written, "it was told that a write had gone well");
    println!("{round}: {} writes were refused", swarm.refused_by(first));
    swarm.finish();
}

#[test]
fn law_6_swarm_a_node_that_was_cut_off_writes_nothing_after_its_volume_was_taken() {
    is_not_heard("cut off", Machine::cut, Machine::heal);
}

#[test]
fn law_6_swarm_a_node_that_hears_and_is_not_heard_writes_nothing_after_its_volume_was_taken() {
    is_not_heard("not heard", Machine::silence, Machine::unsilence);
}

#[test]
fn law_6_swarm_a_frozen_node_that_thaws_finds_its_volume_taken_and_writes_nothing() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.machine(first).freeze();
    fails_over(&swarm, "frozen", first);
    swarm.machine(first).thaw();
    swarm.wait_until_ready();
    swarm.check("frozen");
    println!("frozen: {} writes were refused", swarm.refused_by(first));
    swarm.finish();
}

/// The swarm has given a node up that lives and writes: a new task is told who has the volume, and the old one loses nothing.
fn new_task_is_refused(swarm: &Swarm, round: &str, first: &str) {
    eventually("the swarm misses the machine", BOUND, || !swarm.is_ready(first));
    let refusal = format!("node {first} has it, and lives");
    eventually("the new task is told who has the volume", FAILOVER, || swarm.tasks().contains(&refusal));
    assert_eq!(swarm.mounted_at(), [first]);
    swarm.goes_on(first);
    println!("{round}: {first} has written {} records, and a new task was refused", swarm.acknowledged_by(first));
}

#[test]
fn law_6_swarm_a_dead_engine_s_container_keeps_its_volume_as_long_as_it_writes() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.machine(first).kill_dockerd();
    new_task_is_refused(&swarm, "engine killed", first);
    swarm.machine(first).start_dockerd();
    // It stops the container that it finds, and unmounts nothing.
    moves(&swarm, "engine killed and started", first);
    assert!(!swarm.fenced(), "nobody had to be");
    comes_back(swarm, "engine killed");
}

#[test]
fn law_6_swarm_a_node_that_only_its_manager_does_not_hear_keeps_its_volume() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.silence_towards_the_manager(first);
    new_task_is_refused(&swarm, "manager hears nothing", first);
    swarm.machine(first).unsilence();
    moves(&swarm, "manager hears it again", first);
    assert!(!swarm.fenced(), "nobody had to be");
    comes_back(swarm, "manager hears nothing");
}

#[test]
fn law_6_swarm_a_node_that_only_ceph_does_not_hear_keeps_what_nobody_asks_for_and_loses_what_somebody_does() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.machine(first).silence_towards(SWITCH);
    // It is silent, and then unseen; nobody wants what it has.
    std::thread::sleep(SILENCE + Duration::from_secs(5));
    assert!(swarm.is_ready(first) && swarm.mounted_at() == [first]);
    swarm.machine(first).unsilence();
    swarm.goes_on(first);
    assert!(!swarm.fenced(), "nobody had to be");
    swarm.check("heard by Ceph again");

    swarm.machine(first).silence_towards(SWITCH);
    swarm.drain(first);
    moves(&swarm, "not heard by Ceph, and drained", first);
    assert!(swarm.fenced());
    swarm.machine(first).unsilence();
    swarm.activate(first);
    comes_back(swarm, "not heard by Ceph, and drained");
}

#[test]
fn law_6_swarm_with_always_the_new_task_of_a_node_that_was_given_up_wins_and_the_old_one_is_refused() {
    let Some(mut swarm) = Swarm::start_with("always") else { return };
    let first = swarm.writer();
    swarm.silence_towards_the_manager(first);
    fails_over(&swarm, "given up", first);
    assert!(swarm.fenced());
    let written = swarm.acknowledged_by(first);
    swarm.machine(first).unsilence();
    swarm.wait_until_ready();
    swarm.check("given up");
    assert_eq!(swarm.acknowledged_by(first), written, "it was told that a write had gone well");
    // Its container went on all the time.
    let refused = swarm.refused_by(first);
    println!("given up: {refused} writes were refused");
    assert!(refused > 0, "nothing was refused that the old one wrote");
    swarm.finish();
}

#[test]
fn law_6_swarm_three_replicas_have_a_volume_each_and_one_whose_machine_loses_power_finds_its_own() {
    let Some(mut swarm) = Swarm::start() else { return };
    swarm.serve_replicas();
    let first = swarm.writer();
    let lost = (1..=3).find(|slot| swarm.writer_of(*slot).as_deref() == Some(first)).expect("a replica there");
    swarm.machine(first).cut_power();
    eventually("the replica writes elsewhere", FAILOVER, || swarm.writer_of(lost).is_some_and(|node| node != first));
    (1..=3).for_each(|slot| swarm.check_replica(slot));
    swarm.machine(first).boot();
    swarm.wait_until_ready();
    swarm.end_replicas();
    comes_back(swarm, "replicas");
}
