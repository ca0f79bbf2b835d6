//! Many volumes at once, letting go of all of them, and a ledger that has no room.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::json;

const MANY: usize = 100;

fn name(n: usize) -> String {
    format!("v{n}")
}

/// The same for every volume at once.
fn in_parallel<T: Send>(work: impl Fn(String) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..MANY)
            .map(|n| {
                scope.spawn({
                    let work = &work;
                    move || work(name(n))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    })
}

/// A node with a hundred volumes, made at once.
fn with_many() -> Node {
    let node = Node::started();
    in_parallel(|volume| drop(node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }))));
    node
}

/// Whether a loop device on this disk can pass the page cache by.
fn allows_direct_io(node: &Node) -> bool {
    let probe = node.folder.join("probe").display().to_string();
    let direct = sh(&format!(
        "truncate --size 1M {probe}; loop=$(losetup --find --show --direct-io=on {probe}); \
         cat /sys/block/${{loop#/dev/}}/loop/dio; losetup -d $loop"
    ));
    direct == "1"
}

#[test]
fn a_hundred_volumes_are_mounted_and_unmounted_at_once_and_nothing_is_left() {
    let node = with_many();
    let direct = if allows_direct_io(&node) { "1" } else { "0" };
    let mut paths = in_parallel(|volume| node.mount(&volume, "c1"));
    assert!(paths.iter().all(|path| is_mounted(path)));
    paths.sort();
    paths.dedup();
    let loops = kernel::loops_beneath(&node.pool());
    assert_eq!((paths.len(), loops.len()), (MANY, MANY), "one mount and one device each");
    for device in loops {
        let name = device.file_name().expect("name").display().to_string();
        assert_eq!(sh(&format!("cat /sys/block/{name}/loop/dio")), direct, "{name}: direct I/O where the disk allows it");
    }
    in_parallel(|volume| node.unmount(&volume, "c1"));
    node.assert_nothing_left();
}

#[test]
fn a_hundred_calls_for_one_volume_are_one_mount_and_a_hundred_holds() {
    let node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    in_parallel(|id| node.mount("pg", &id));
    assert_eq!((kernel::mounts_beneath(&node.mountpoint("pg")).len(), kernel::loops_beneath(&node.pool()).len()), (1, 1));
    eventually("each of them holds", BOUND, || node.holders("pg").iter().map(|holder| holder.1).sum::<u64>() == MANY as u64);
    in_parallel(|id| node.unmount("pg", &id));
    node.assert_nothing_left();
}

#[test]
fn a_hundred_mounts_outlive_a_stop_and_a_start_untouched_and_with_their_holders() {
    let mut node = with_many();
    in_parallel(|volume| node.mount(&volume, "c1"));
    let mounts = || -> Vec<_> { (0..MANY).map(|n| kernel::mount_id(&node_path(&node, n))).collect() };
    let before = mounts();
    assert!(before.iter().all(Option::is_some));
    for n in 0..MANY {
        eventually("its holder is confirmed", BOUND, || node.holders(&name(n)) == [(Some("c1".to_owned()), 1, 0, 0)]);
    }
    node.stop();
    node.start();
    assert_eq!((0..MANY).map(|n| kernel::mount_id(&node_path(&node, n))).collect::<Vec<_>>(), before);
    for n in 0..MANY {
        assert_eq!(node.holders(&name(n)), [(Some("c1".to_owned()), 1, 0, 0)]);
    }
    node.cli(&["stop", "--release"]).ok();
    node.wait_until_dead();
    node.assert_nothing_left();
}

fn node_path(node: &Node, n: usize) -> PathBuf {
    node.mountpoint(&name(n))
}

#[test]
fn a_release_that_finds_one_volume_busy_names_it_lets_go_of_the_others_and_does_not_stop() {
    let node = Node::started();
    for volume in ["a", "b", "c"] {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }));
        node.mount(volume, "c1");
    }
    let path = node.mountpoint("b");
    let mut user = Command::new("sleep").arg("600").current_dir(&path).stdin(Stdio::null()).spawn().expect("sleep");
    let said = node.cli(&["stop", "--release"]).fails(5);
    assert!(said.contains("volume \"b\"") && said.contains(&format!("sleep (pid {})", user.id())), "{said}");
    assert!(is_mounted(&path) && !is_mounted(&node.mountpoint("a")) && !is_mounted(&node.mountpoint("c")));
    assert_eq!(node.cli(&["status"]).code, 0, "the daemon runs");
    user.kill().and_then(|()| user.wait()).expect("end");
    eventually("it is let go, unasked", BOUND, || !is_mounted(&path));
}

/// A run directory of its own size, full to the last byte but for what the daemon has there.
fn fill(node: &Node) {
    let _ = Command::new("sh").args(["-c", &format!("cat /dev/zero > {}/filler", node.run_dir().display())]).stderr(Stdio::null()).status();
    let free = sh(&format!("stat -f -c %a {}", node.run_dir().display()));
    assert_eq!(free, "0", "it is full");
}

fn with_a_small_run_dir() -> Node {
    let mut node = Node::new();
    let run = node.run_dir().display().to_string();
    sh(&format!("mkdir {run}; mount -t tmpfs -o size=256k,mode=700 tiny {run}"));
    node.start();
    for volume in ["a", "b"] {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }));
    }
    node
}

#[test]
fn an_unmount_works_when_the_ledger_has_no_room() {
    let node = with_a_small_run_dir();
    node.mount("a", "c1");
    node.mount("a", "c2");
    fill(&node);
    node.unmount("a", "c1");
    node.unmount("a", "c2");
    let run = node.run_dir().display().to_string();
    assert!(!is_mounted(&node.mountpoint("a")) && kernel::loops_beneath(&node.pool()).is_empty());
    drop(node);
    assert!(!is_mounted(run.as_ref()));
}

#[test]
fn a_mount_that_the_ledger_has_no_room_for_is_refused_and_undone() {
    let node = with_a_small_run_dir();
    fill(&node);
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "b", "ID": "c1" }));
    assert!(said.starts_with("limit_reached: volume \"b\"") && said.contains("ledger"), "{said}");
    eventually("it is undone", BOUND, || !is_mounted(&node.mountpoint("b")) && kernel::loops_beneath(&node.pool()).is_empty());
    eventually("nobody holds it", BOUND, || node.holders("b").is_empty());
    sh(&format!("rm {}/filler", node.run_dir().display()));
    node.mount("b", "c1");
    node.unmount("b", "c1");
}
