//! Holders whose container is gone, with a real engine: found by asking it, shown, let go of after a time of grace; and
//! never while a container lives, nor on silence.

use dunnage_tests::docker::Bench;
use dunnage_tests::{BOUND, eventually, is_mounted, kernel};

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];
const SOCKET: &str = "/run/docker/engine-of-the-test.sock";

/// A daemon that asks the engine, and an engine with these flags.
fn bench(reconcile: &str, flags: &[&str]) -> Option<Bench> {
    let bench = Bench::configured(&format!("holders: {{ reconcile: {reconcile}, grace: 2s, docker: [ {SOCKET} ] }}\n"), flags)?;
    let _ = std::fs::remove_file(SOCKET);
    std::os::unix::fs::symlink(bench.docker.socket(), SOCKET).expect("symlink");
    Some(bench)
}

/// The IDs of those who hold pg.
fn ids(bench: &Bench) -> Vec<String> {
    bench.node.holders("pg").into_iter().filter_map(|holder| holder.0).collect()
}

/// A container ends while dockerd is dead, so that its volume is never given back (by Docker 20.10; newer ones remember).
fn forgotten(bench: &mut Bench, name: &str) {
    bench.docker.begin(name, &PG, &format!("until test -e /data/end-{name}; do sleep 0.01; done"));
    bench.docker.kill_dockerd();
    std::fs::write(bench.node.mountpoint("pg").join(format!("end-{name}")), "").expect("told");
    bench.docker.start();
    eventually("dockerd has noticed", BOUND, || !bench.docker.is_running(name));
    bench.docker.end(name);
}

#[test]
fn what_dockerd_has_forgotten_is_let_go_of_after_the_time_of_grace() {
    let Some(mut bench) = bench("act", &["--live-restore"]) else { return };
    forgotten(&mut bench, "c1");
    bench.wait_until_released("pg");
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

#[test]
fn what_dockerd_has_forgotten_is_shown_and_kept_where_it_is_only_to_be_reported() {
    let Some(mut bench) = bench("report", &["--live-restore"]) else { return };
    forgotten(&mut bench, "c1");
    let held = ids(&bench);
    let [id] = held.as_slice() else { return bench.finish() };
    eventually("it is shown", BOUND, || bench.node.cli(&["holder", "ls", "--gone"]).ok().contains(SOCKET));
    let shown = bench.node.cli(&["holder", "ls"]).ok();
    let row = shown.lines().nth(1).expect("a row");
    assert!(row.starts_with("pg ") && row.contains(&id[..12]) && row.contains("says docker at"), "{shown}");
    assert!(bench.node.cli(&["volume", "inspect", "pg"]).ok().contains("its container is gone since"));
    bench.node.wait_for_witnesses();
    assert_eq!(ids(&bench), held);
    bench.node.cli(&["holder", "release", "pg", "--id", &id[..12]]).ok();
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn of_two_containers_the_forgotten_one_is_let_go_of_and_the_other_writes_on() {
    let Some(mut bench) = bench("act", &["--live-restore"]) else { return };
    let writer = bench.writer("c2", "pg");
    let [alive] = ids(&bench).try_into().expect("one holder");
    let mount = kernel::mount_id(&bench.node.mountpoint("pg"));
    forgotten(&mut bench, "c1");
    eventually("only the one that lives holds it", BOUND, || ids(&bench) == [alive.clone()]);
    writer.assert_goes_on();
    assert_eq!(kernel::mount_id(&bench.node.mountpoint("pg")), mount);
    bench.docker.end("c2");
    bench.finish();
}

#[test]
fn a_container_that_lives_is_never_let_go_of_whether_it_runs_or_is_paused_or_dockerd_is_away() {
    let Some(mut bench) = bench("act", &["--live-restore"]) else { return };
    let writer = bench.writer("c1", "pg");
    let held = ids(&bench);
    bench.node.wait_for_witnesses();
    bench.docker.cli(&["pause", "c1"]).ok();
    bench.node.wait_for_witnesses();
    bench.docker.cli(&["unpause", "c1"]).ok();
    bench.docker.kill_dockerd();
    let refused = || bench.node.log().matches("does not say who lives").count();
    eventually("it is asked and does not answer", BOUND, || refused() > 3);
    bench.docker.start();
    bench.node.wait_for_witnesses();
    assert_eq!(ids(&bench), held);
    assert!(is_mounted(&bench.node.mountpoint("pg")) && !bench.node.log().contains("its container is gone"), "{}", bench.node.log());
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn an_engine_that_is_silent_is_no_proof() {
    let Some(mut bench) = bench("act", &[]) else { return };
    bench.writer("c1", "pg");
    let held = ids(&bench);
    bench.docker.kill_everything();
    let refused = || bench.node.log().matches("does not say who lives").count();
    eventually("it is asked and does not answer", BOUND, || refused() > 4);
    assert_eq!(ids(&bench), held);
    bench.docker.start();
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_process_that_has_the_volume_mounted_keeps_it_whatever_the_engine_says() {
    let Some(mut bench) = bench("act", &["--live-restore"]) else { return };
    bench.docker.begin("c1", &PG, "until test -e /data/end; do sleep 0.01; done");
    // Another engine's container, or whoever: in a mount namespace of its own.
    let path = bench.node.mountpoint("pg");
    let line = format!("cd {} && exec sleep 600", path.display());
    let mut other = std::process::Command::new("unshare");
    let mut other = other.args(["--mount", "--propagation", "private", "sh", "-c", &line]).spawn().expect("unshare");
    eventually("it is in there", BOUND, || std::fs::read_link(format!("/proc/{}/cwd", other.id())).is_ok_and(|cwd| cwd == path));
    bench.docker.kill_dockerd();
    std::fs::write(path.join("end"), "").expect("told");
    bench.docker.start();
    eventually("dockerd has noticed", BOUND, || !bench.docker.is_running("c1"));
    bench.docker.end("c1");
    if !ids(&bench).is_empty() {
        eventually("it is kept", BOUND, || bench.node.cli(&["holder", "ls"]).ok().contains("; kept: in_use{n1}"));
        let refused = bench.node.cli(&["holder", "release", "pg"]).fails(5);
        assert!(refused.contains("sleep") && refused.contains("end them"), "{refused}");
        assert!(is_mounted(&path));
    }
    other.kill().and_then(|()| other.wait()).expect("killed");
    bench.node.wait_until_released("pg");
    bench.finish();
}
