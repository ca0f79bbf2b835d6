//! Docker Swarm over three machines that share a Ceph cluster: whatever becomes of the machine that writes, no acknowledged record
//! is lost, and nobody writes after who came later.
//!
//! A test begins where a service writes, and ends where it writes again and every machine is well. Three share a bench: the time of
//! a failover is Ceph's, which sees a client for half a minute that has died.

use std::time::Instant;

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
}

#[test]
fn law_6_swarm_a_drained_or_rebooted_node_hands_its_volume_over_and_a_dead_daemon_moves_nothing() {
    let Some(mut swarm) = Swarm::start() else { return };
    swarm.check("the beginning");

    let first = swarm.writer();
    swarm.machine(first).kill_daemon();
    swarm.goes_on(first);
    assert!(swarm.is_ready(first));
    swarm.machine(first).start_daemon();
    swarm.goes_on(first);
    assert_eq!(swarm.mounted_at(), [first], "a dead daemon moved something");
    swarm.check("the daemon was killed");

    swarm.drain(first);
    moves(&swarm, "drained", first);
    swarm.activate(first);
    swarm.check("drained");

    let second = swarm.writer();
    swarm.machine(second).shut_down();
    moves(&swarm, "shut down", second);
    swarm.machine(second).boot();
    swarm.wait_until_ready();
    swarm.check("shut down and booted");
    assert!(swarm.ceph().pool().cluster().blocklisted().expect("a list").is_empty(), "nobody had to be fenced");
    swarm.finish();
}

#[test]
fn law_6_swarm_a_power_cut_loses_no_acknowledged_record() {
    let Some(mut swarm) = Swarm::start() else { return };
    let first = swarm.writer();
    swarm.goes_on(first);
    swarm.machine(first).cut_power();
    fails_over(&swarm, "power cut", first);
    swarm.machine(first).boot();
    swarm.wait_until_ready();
    swarm.check("power cut");
    swarm.finish();
}
