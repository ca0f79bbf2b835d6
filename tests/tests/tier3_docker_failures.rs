//! The engine and the daemon die, stop and come back under containers that run: who keeps what, and what is let go.

use dunnage_tests::docker::Bench;
use dunnage_tests::{BOUND, eventually, is_mounted, kernel};

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];

fn mount_id(bench: &Bench) -> Option<u64> {
    kernel::mount_id(&bench.node.mountpoint("pg"))
}

#[test]
fn a_dockerd_that_stops_lets_its_containers_volumes_go() {
    let Some(mut bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.docker.stop_dockerd();
    bench.wait_until_released("pg");
    bench.docker.start();
    bench.docker.cli(&["start", "c1"]).ok();
    assert!(bench.docker.cli(&["exec", "c1", "ls", "/data"]).ok().contains("log"), "the data is there again");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn a_container_that_dockerd_restarts_by_itself_has_its_volume_again() {
    let Some(mut bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    bench.docker.cli(&["update", "--restart=always", "c1"]).ok();
    bench.docker.stop_dockerd();
    bench.docker.start();
    writer.assert_goes_on();
    assert_eq!(bench.node.holders("pg").iter().map(|holder| holder.1).collect::<Vec<_>>(), [1]);
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// moby/moby#44422 and #45825: after a live restore no Mount follows, and dockerd counts from zero.
#[test]
fn with_live_restore_a_container_writes_on_while_dockerd_is_away() {
    let Some(mut bench) = Bench::configured("", &["--live-restore"]) else { return };
    let writer = bench.writer("c1", "pg");
    let (id, holders) = (mount_id(&bench), bench.node.holders("pg"));
    bench.docker.stop_dockerd();
    writer.assert_goes_on();
    bench.docker.start();
    writer.assert_goes_on();
    assert_eq!((mount_id(&bench), bench.node.holders("pg")), (id, holders));
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn with_live_restore_a_container_writes_on_when_dockerd_is_killed() {
    let Some(mut bench) = Bench::configured("", &["--live-restore"]) else { return };
    let writer = bench.writer("c1", "pg");
    let (id, holders) = (mount_id(&bench), bench.node.holders("pg"));
    bench.docker.kill_dockerd();
    writer.assert_goes_on();
    bench.docker.start();
    assert_eq!((mount_id(&bench), bench.node.holders("pg")), (id, holders));
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_daemon_that_is_killed_and_started_again_touches_nothing_under_a_running_container() {
    let Some(mut bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let (id, holders) = (mount_id(&bench), bench.node.holders("pg"));
    bench.node.kill();
    writer.assert_goes_on();
    bench.node.start();
    writer.assert_goes_on();
    assert_eq!((mount_id(&bench), bench.node.holders("pg")), (id, holders));
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_daemon_that_is_stopped_and_started_again_touches_nothing_under_a_running_container() {
    let Some(mut bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let (id, holders) = (mount_id(&bench), bench.node.holders("pg"));
    bench.node.stop();
    writer.assert_goes_on();
    bench.node.start();
    assert_eq!((mount_id(&bench), bench.node.holders("pg")), (id, holders));
    assert_eq!(bench.docker.run(&PG, "ls /data").ok(), "log");
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn daemon_and_dockerd_killed_together_touch_nothing_under_a_running_container() {
    let Some(mut bench) = Bench::configured("", &["--live-restore"]) else { return };
    let writer = bench.writer("c1", "pg");
    let id = mount_id(&bench);
    bench.node.kill();
    bench.docker.kill_dockerd();
    writer.assert_goes_on();
    bench.node.start();
    bench.docker.start();
    assert_eq!(mount_id(&bench), id);
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// dockerd tries again for a quarter of a minute: an upgrade goes by unnoticed.
#[test]
fn a_container_that_starts_while_the_daemon_is_away_waits_for_it() {
    let Some(mut bench) = Bench::started() else { return };
    bench.docker.run(&PG, "echo x >/data/x").ok();
    bench.node.kill();
    let running = bench.docker.spawn_run(&PG, "cat /data/x");
    eventually("dockerd tries again", BOUND, || bench.docker.log().contains("Unable to connect to plugin"));
    bench.node.start();
    assert_eq!(running.wait().ok(), "x");
    bench.finish();
}

#[test]
fn a_container_that_ends_while_the_daemon_is_away_is_let_go_when_it_is_back() {
    let Some(mut bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.node.kill();
    let ending = bench.docker.spawn(&["rm", "-f", "c1"]);
    eventually("dockerd tries again", BOUND, || bench.docker.log().contains("Unable to connect to plugin"));
    bench.node.start();
    ending.wait().ok();
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_container_that_starts_without_the_daemon_fails_and_docker_names_the_socket() {
    let Some(mut bench) = Bench::started() else { return };
    bench.docker.run(&PG, "echo x >/data/x").ok();
    bench.node.kill();
    let said = bench.docker.run(&PG, "cat /data/x").fails(125);
    assert!(said.contains("dunnage.sock") && said.contains("connect: connection refused"), "{said}");
    bench.node.start();
    assert_eq!(bench.docker.run(&PG, "cat /data/x").ok(), "x", "and it works again");
    bench.finish();
}

/// What an engine forgets to give back stays held: never unmounted on silence alone, usable, not removed, and free as
/// soon as somebody says so. (An engine that does not forget has nothing to be checked.)
#[track_caller]
fn assert_forgotten_holders_do_no_harm(bench: &Bench) {
    let holders = bench.node.holders("pg");
    if holders.is_empty() {
        return bench.wait_until_released("pg");
    }
    let [(Some(id), 1, 0, 0)] = holders.as_slice() else { panic!("{holders:?}") };
    assert!(is_mounted(&bench.node.mountpoint("pg")));
    bench.docker.run(&PG, "echo x >/data/x").ok();
    assert_eq!(bench.node.holders("pg"), holders, "a container came and went");
    let said = bench.docker.cli(&["volume", "rm", "pg"]).fails(1);
    assert!(said.contains("in_use{n1}") && said.contains(&id[..12]), "{said}");
    bench.node.unmount("pg", id);
    bench.wait_until_released("pg");
}

/// dockerd 20.10 notes its death as the end of its containers, and tells no driver.
#[test]
fn what_a_killed_dockerd_forgets_to_give_back_does_no_harm() {
    let Some(mut bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    bench.docker.kill_dockerd();
    writer.assert_goes_on();
    bench.docker.start();
    eventually("dockerd has ended it", BOUND, || !bench.docker.is_running("c1"));
    bench.docker.end("c1");
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}

#[test]
fn what_an_engine_forgets_that_was_killed_with_its_containers_does_no_harm() {
    let Some(mut bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.docker.kill_everything();
    bench.docker.start();
    bench.docker.end("c1");
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}

#[test]
fn what_dockerd_forgets_of_a_container_that_ended_while_it_was_away_does_no_harm() {
    let Some(mut bench) = Bench::configured("", &["--live-restore"]) else { return };
    bench.docker.begin("c1", &PG, "until test -e /data/end; do sleep 0.01; done");
    bench.docker.kill_dockerd();
    std::fs::write(bench.node.mountpoint("pg").join("end"), "").expect("told");
    bench.docker.start();
    eventually("dockerd has noticed", BOUND, || !bench.docker.is_running("c1"));
    bench.docker.end("c1");
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}

/// Restored live, dockerd 20.10 counts from zero: the copy's Unmount is the last one that it sends.
#[test]
fn what_dockerd_forgets_after_a_copy_into_a_container_that_was_restored_live_does_no_harm() {
    let Some(mut bench) = Bench::configured("", &["--live-restore"]) else { return };
    let writer = bench.writer("c1", "pg");
    bench.docker.stop_dockerd();
    bench.docker.start();
    let copy = bench.node.folder.join("copy");
    bench.docker.cli(&["cp", "c1:/data/log", &copy.display().to_string()]).ok();
    writer.assert_goes_on();
    bench.docker.end("c1");
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}

/// docker/for-linux#404: an Unmount that never comes.
#[test]
fn what_dockerd_forgets_when_it_is_killed_between_mount_and_start_does_no_harm() {
    let Some(mut bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    bench.docker.freeze_containerd();
    let running = bench.docker.spawn_run(&PG, "true");
    eventually("it is mounted", BOUND, || bench.node.holders("pg").iter().any(|holder| holder.1 == 1));
    bench.docker.kill_dockerd();
    running.wait();
    bench.docker.thaw_containerd();
    bench.docker.start();
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}

/// dockerd tries for a quarter of a minute to tell us, and then removes the container all the same.
#[test]
fn what_dockerd_gives_up_to_tell_a_daemon_that_is_away_does_no_harm() {
    let Some(mut bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.node.kill();
    bench.docker.end("c1");
    bench.node.start();
    assert_forgotten_holders_do_no_harm(&bench);
    bench.finish();
}
