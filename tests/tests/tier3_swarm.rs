//! Docker Swarm over three machines that share a Ceph cluster: whatever becomes of the machine that writes, no acknowledged record
//! is lost, and nobody writes after who came later.

use dunnage_tests::swarm::Swarm;

#[test]
fn law_6_swarm_moves_a_volume_with_its_task_and_no_acknowledged_record_is_lost() {
    let Some(swarm) = Swarm::start() else { return };
    swarm.check("the beginning");
    let first = swarm.writer();
    let begun = std::time::Instant::now();
    swarm.drain(first);
    swarm.wait_for("a drained machine's task goes elsewhere", |owner| owner.is_some_and(|owner| owner != first));
    println!("drained: the first record elsewhere after {:.1?}", begun.elapsed());
    swarm.activate(first);
    swarm.check("drained");
    swarm.finish();
}
