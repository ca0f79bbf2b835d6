//! Volumes in containers of the real engine: shared, copied into, read only, and gone from the node when the last
//! container has gone.

use std::path::Path;

use dunnage_tests::docker::{Bench, IMAGE};
use dunnage_tests::{BOUND, eventually, is_mounted, kernel};

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];

#[test]
fn what_one_container_writes_the_next_one_reads() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.run(&PG, "echo written >/data/x").ok();
    bench.wait_until_released("pg");
    assert_eq!(bench.docker.run(&PG, "cat /data/x").ok(), "written");
    bench.finish();
}

#[test]
fn a_container_that_was_only_created_holds_nothing() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&[&["create", "--name=c1"], PG.as_slice(), &[IMAGE, "true"]].concat()).ok();
    bench.wait_until_released("pg");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn a_container_that_cannot_start_holds_nothing() {
    let Some(bench) = Bench::started() else { return };
    let said = bench.docker.cli(&[&["run", "--name=c1", "--network=none"], PG.as_slice(), &[IMAGE, "/no/such/program"]].concat());
    said.fails(127);
    bench.wait_until_released("pg");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn two_containers_see_one_volume_and_the_last_one_lets_it_go() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let id = kernel::mount_id(&bench.node.mountpoint("pg"));
    bench.docker.begin("c2", &PG, "cp /data/log /data/copy && sleep 1000");
    let copy = bench.node.mountpoint("pg").join("copy");
    eventually("the second one sees what the first one writes", BOUND, || copy.metadata().is_ok_and(|file| file.len() > 0));
    assert_eq!(bench.node.holders("pg").len(), 2);
    bench.docker.end("c2");
    assert_eq!(kernel::mount_id(&bench.node.mountpoint("pg")), id, "nobody touched the mount");
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn five_containers_that_start_at_once_share_one_mount() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    let running: Vec<_> = (0..5).map(|n| bench.docker.spawn_run(&PG, &format!("echo x >/data/{n}"))).collect();
    for run in running {
        run.wait().ok();
    }
    bench.wait_until_released("pg");
    assert_eq!(bench.docker.run(&PG, "ls /data").ok(), "0\n1\n2\n3\n4");
    bench.finish();
}

#[test]
fn volumes_from_gives_a_container_the_volumes_of_another() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    assert_eq!(bench.docker.run(&["--volumes-from", "c1"], "ls /data").ok(), "log");
    writer.assert_goes_on();
    bench.docker.cli(&["stop", "c1"]).ok();
    bench.wait_until_released("pg");
    assert_eq!(bench.docker.run(&["--volumes-from", "c1"], "ls /data").ok(), "log", "also when the other one is stopped");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn a_container_that_is_restarted_has_its_volume_again() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    bench.docker.cli(&["restart", "c1"]).ok();
    writer.assert_goes_on();
    assert_eq!(bench.node.holders("pg").iter().map(|holder| holder.1).collect::<Vec<_>>(), [1]);
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// moby/moby#47964: dockerd mounts a second time with the container's own ID for the copy, and unmounts with it.
#[test]
fn a_copy_into_a_running_container_does_not_unmount_it() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let (holders, id) = (bench.node.holders("pg"), kernel::mount_id(&bench.node.mountpoint("pg")));
    let file = bench.node.folder.join("file");
    std::fs::write(&file, "copied").expect("file");
    bench.docker.cli(&["cp", &file.display().to_string(), "c1:/data/file"]).ok();
    assert_eq!(bench.docker.cli(&["exec", "c1", "cat", "/data/file"]).ok(), "copied");
    assert_eq!(kernel::mount_id(&bench.node.mountpoint("pg")), id, "nobody touched the mount");
    assert_eq!(bench.node.holders("pg"), holders);
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// moby/moby#37314: the same the other way.
#[test]
fn a_copy_out_of_a_running_container_does_not_unmount_it() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let holders = bench.node.holders("pg");
    let copy = bench.node.folder.join("copy");
    bench.docker.cli(&["cp", "c1:/data/log", &copy.display().to_string()]).ok();
    assert!(std::fs::read_to_string(&copy).expect("copied").starts_with("x\n"));
    assert!(is_mounted(&bench.node.mountpoint("pg")));
    assert_eq!(bench.node.holders("pg"), holders);
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_copy_out_of_a_stopped_container_leaves_nothing_mounted() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.docker.cli(&["stop", "c1"]).ok();
    let copy = bench.node.folder.join("copy");
    bench.docker.cli(&["cp", "c1:/data/log", &copy.display().to_string()]).ok();
    assert!(copy.exists());
    bench.wait_until_released("pg");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn a_read_only_mount_is_read_only_in_its_container_alone() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let said = bench.docker.run(&["-v", "pg:/data:ro"], "ls /data && touch /data/x").fails(1);
    assert!(said.contains("Read-only file system"), "{said}");
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn nothing_can_be_written_to_a_volume_that_was_made_read_only() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "ro=true", "pg"]).ok();
    let said = bench.docker.run(&["-v", "pg:/data"], "ls /data && touch /data/x").fails(1);
    assert!(said.contains("Read-only file system"), "{said}");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_volume_is_detached_while_a_container_that_started_during_its_mount_runs_on() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    bench.docker.begin("bystander", &[], "sleep 1000");
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    assert!(bench.docker.is_running("bystander"));
    bench.docker.end("bystander");
    bench.finish();
}

#[test]
fn containers_that_start_and_end_during_a_mount_keep_no_copy_of_it() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let mut bystanders: Vec<_> = (0..3).map(|_| bench.docker.spawn_run(&[], "true")).collect();
    bystanders.push(bench.docker.spawn_run(&["-v", "other:/data", "--volume-driver", "dunnage"], "true"));
    writer.assert_goes_on();
    bench.docker.end("c1");
    for run in bystanders {
        run.wait().ok();
    }
    bench.wait_until_released("pg");
    bench.finish();
}

/// Whoever looks at a device, as udev does, delays its detach: it would come under the next container's mount.
#[test]
fn a_detach_that_somebody_delayed_is_called_off_by_the_next_container() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    let device = kernel::loops_beneath(&bench.node.folder).pop().expect("a loop device");
    let looked_at = std::fs::File::open(&device).expect("a loop device");
    bench.docker.end("c1");
    let writer = bench.writer("c2", "pg");
    let promise = Path::new("/sys/block").join(device.file_name().expect("a name")).join("loop/autoclear");
    assert_eq!(std::fs::read_to_string(promise).expect("attached").trim(), "0");
    drop(looked_at);
    writer.assert_goes_on();
    bench.docker.end("c2");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_container_that_has_the_hosts_root_keeps_no_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    // dockerd makes it follow the host's unmounts, because its own data root is in there (moby/moby#36096).
    bench.docker.begin("watcher", &["-v", "/:/host:ro"], "sleep 1000");
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.docker.end("watcher");
    bench.finish();
}

#[test]
fn a_container_that_has_our_folder_of_mounts_and_follows_it_keeps_no_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    let bind = format!("{}:/host:ro,rslave", bench.node.state().join("volumes").display());
    bench.docker.begin("watcher", &["-v", &bind], "sleep 1000");
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.docker.end("watcher");
    bench.finish();
}

/// Docker's default bind mount is a recursive copy that hears of nothing; but where the mountpoint goes, the kernel
/// takes what is mounted on it in every namespace.
#[test]
fn a_container_that_has_a_private_copy_of_our_folder_of_mounts_keeps_no_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    begin_in_a_private_copy(&bench, "/");
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.docker.end("watcher");
    bench.finish();
}

#[test]
fn a_process_that_works_in_a_private_copy_keeps_the_device_until_it_ends() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    begin_in_a_private_copy(&bench, "/host/volumes/local/pg");
    bench.docker.end("c1");
    let path = bench.node.mountpoint("pg");
    eventually("it is unmounted on the node", BOUND, || !is_mounted(&path));
    assert!(bench.node.holders("pg").is_empty());
    assert_eq!(kernel::loops_beneath(&bench.node.folder).len(), 1, "the copy keeps the device");
    bench.docker.end("watcher");
    eventually("the device goes with the copy", BOUND, || kernel::loops_beneath(&bench.node.folder).is_empty());
    bench.finish();
}

#[test]
fn a_volume_that_a_process_keeps_in_a_private_copy_can_be_used_and_not_removed() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    begin_in_a_private_copy(&bench, "/host/volumes/local/pg");
    bench.docker.end("c1");
    assert_eq!(bench.docker.run(&PG, "ls /data").ok(), "log");
    let said = bench.docker.cli(&["volume", "rm", "pg"]).fails(1);
    assert!(said.contains("in_use"), "{said}");
    assert!(bench.node.image("pg").exists());
    bench.docker.end("watcher");
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

/// Begins a container that has a copy of the node's state folder, and everything mounted in it, and works in `folder`.
fn begin_in_a_private_copy(bench: &Bench, folder: &str) {
    let bind = format!("{}:/host:ro", bench.node.state().display());
    bench.docker.begin("watcher", &["-v", &bind], &format!("cd {folder} && ls /host/volumes/local/pg && sleep 1000"));
    eventually("it is there", BOUND, || bench.docker.cli(&["logs", "watcher"]).ok().contains("log"));
}

#[test]
fn twenty_five_containers_in_a_row_leave_nothing() {
    let Some(bench) = Bench::started() else { return };
    for n in 1..=25 {
        let lines = bench.docker.run(&PG, "echo x >>/data/log && cat /data/log").ok();
        assert_eq!(lines.lines().count(), n);
        bench.wait_until_released("pg");
    }
    assert_eq!(bench.docker.volumes(), ["pg"]);
    bench.finish();
}
