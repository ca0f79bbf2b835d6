//! ext4, xfs and btrfs on the real kernel: the same volume, whatever is in it.
#![allow(clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::json;

/// Each filesystem with the smallest size that it is made with.
const ALL: [(&str, &str); 3] = [("ext4", "16M"), ("xfs", "300M"), ("btrfs", "128M")];

fn create(node: &Node, volume: &str, fs: &str, size: &str) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "fs": fs, "size": size } }));
}

/// A node with a volume that is called as its filesystem, for each of them, with a file in it.
fn node_with_all() -> Node {
    let node = Node::started();
    for (fs, size) in ALL {
        create(&node, fs, fs, size);
        let path = node.mount(fs, "first");
        sh(&format!("echo {fs} > {}/x", path.display()));
        node.unmount(fs, "first");
    }
    node
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path.join("x")).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

#[test]
fn what_was_written_is_there_again_and_nothing_stays_mounted_or_attached() {
    let node = node_with_all();
    for (fs, _) in ALL {
        node.assert_nothing_left();
        let path = node.mount(fs, "c1");
        assert_eq!(read(&path), fs);
        let shown = sh(&format!("findmnt -no FSTYPE,OPTIONS {}", path.display()));
        assert!(shown.starts_with(fs) && shown.contains("nosuid") && shown.contains("nodev") && shown.contains("discard"), "{shown}");
        node.unmount(fs, "c1");
        node.assert_nothing_left();
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": fs }));
    }
    assert_eq!(std::fs::read_dir(node.pool()).expect("pool").count(), 0);
}

#[test]
fn a_new_volume_is_an_empty_folder_with_the_owner_and_the_mode_that_were_asked_for() {
    let node = Node::started();
    for (fs, size) in ALL {
        let opts = json!({ "fs": fs, "size": size, "uid": "1000", "gid": "1001", "mode": "3770" });
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": fs, "Opts": opts }));
        node.assert_nothing_left();
        let path = node.mount(fs, "c1");
        let meta = std::fs::metadata(&path).expect("mounted");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 1001, 0o3770), "{fs}");
        assert_eq!(std::fs::read_dir(&path).expect("read").count(), 0, "{fs}");
        node.unmount(fs, "c1");
    }
}

#[test]
fn a_size_one_block_below_what_a_filesystem_is_made_with_is_refused_with_the_smallest_and_that_is_made() {
    let node = Node::started();
    for (fs, least) in [("ext4", 16), ("xfs", 300), ("btrfs", 128)] {
        let below = format!("{}K", least * 1024 - 4);
        let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": fs, "Opts": { "fs": fs, "size": below } }));
        assert!(said.starts_with("invalid_argument{size}") && said.contains(&format!("{fs}'s minimum of {least}MiB")), "{said}");
        assert_eq!(std::fs::read_dir(node.pool()).expect("pool").count(), 0, "{below} of {fs}");
        create(&node, fs, fs, &format!("{least}M"));
        let path = node.mount(fs, "c1");
        sh(&format!("echo {fs} > {}/x", path.display()));
        node.unmount(fs, "c1");
        assert_eq!(std::fs::metadata(node.image(fs)).expect("image").len(), least << 20);
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": fs }));
    }
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "v", "Opts": { "fs": "reiser4" } }));
    assert!(said.starts_with("invalid_argument{fs}") && said.contains("fs=xfs"), "{said}");
    assert_eq!(std::fs::read_dir(node.pool()).expect("pool").count(), 0);
}

#[test]
fn a_full_volume_says_so_and_has_about_the_size_that_was_asked_for() {
    let node = Node::started();
    for (fs, size, mib) in [("ext4", "320M", 320), ("xfs", "320M", 320), ("btrfs", "320M", 320)] {
        create(&node, fs, fs, size);
        let path = node.mount(fs, "c1");
        let said = sh(&format!("dd if=/dev/zero of={}/fill bs=1M 2>&1 || true", path.display()));
        assert!(said.contains("No space left on device"), "{fs}: {said}");
        let filled = std::fs::metadata(path.join("fill")).expect("fill").len() >> 20;
        assert!(filled * 10 > mib * 6 && filled < mib, "{fs}: {filled} MiB of {mib}");
        node.unmount(fs, "c1");
    }
}

#[test]
fn a_daemon_that_was_killed_finds_them_mounted_and_knows_whose_they_are() {
    let mut node = node_with_all();
    for (fs, _) in ALL {
        node.mount(fs, "c1");
        eventually("its holder is confirmed", BOUND, || node.holders(fs) == [(Some("c1".to_owned()), 1, 0, 0)]);
    }
    node.kill();
    node.start();
    for (fs, _) in ALL {
        assert_eq!(node.holders(fs), [(Some("c1".to_owned()), 1, 0, 0)], "{fs}");
        assert_eq!(read(&node.mount(fs, "c2")), fs);
        node.unmount(fs, "c1");
        assert!(is_mounted(&node.mountpoint(fs)), "{fs}: c2 has it");
        node.unmount(fs, "c2");
        assert!(!is_mounted(&node.mountpoint(fs)), "{fs}");
    }
    node.assert_nothing_left();
}

#[test]
fn without_a_ledger_they_are_kept_for_an_unknown_holder_and_unmounted_by_whoever_comes() {
    let mut node = node_with_all();
    for (fs, _) in ALL {
        node.mount(fs, "c1");
    }
    node.kill();
    std::fs::remove_dir_all(node.run_dir().join("ledger")).expect("wipe");
    node.start();
    for (fs, _) in ALL {
        assert_eq!(node.holders(fs), [(None, 1, 0, 0)], "{fs}");
        node.unmount(fs, "c1");
    }
    node.assert_nothing_left();
}

#[test]
fn an_umount_behind_our_back_is_noticed_by_the_next_mount() {
    let node = node_with_all();
    for (fs, _) in ALL {
        let path = node.mount(fs, "c1");
        sh(&format!("umount {}", path.display()));
        assert_eq!(read(&node.mount(fs, "c2")), fs);
        node.unmount(fs, "c1");
        node.unmount(fs, "c2");
    }
    node.assert_nothing_left();
}

#[test]
fn who_keeps_one_busy_is_named() {
    let node = node_with_all();
    for (fs, _) in ALL {
        let path = node.mount(fs, "c1");
        let mut inside = std::process::Command::new("sleep").arg("600").current_dir(&path).spawn().expect("sleep");
        let said = node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": fs, "ID": "c1" }));
        inside.kill().expect("kill");
        inside.wait().expect("wait");
        assert!(said.contains(&format!("sleep (pid {})", inside.id())), "{fs}: {said}");
        eventually("it is let go unasked", BOUND, || !is_mounted(&path));
    }
    eventually("nothing is attached", BOUND, || kernel::loops_beneath(&node.folder).is_empty());
}

#[test]
fn what_is_busy_for_a_moment_is_unmounted_by_the_call_that_found_it_busy() {
    let mut node = Node::new();
    node.allow_crashes();
    node.start();
    create(&node, "v", "ext4", "16M");
    let path = node.mount("v", "c1");
    let mut inside = std::process::Command::new("sleep").arg("600").current_dir(&path).spawn().expect("sleep");
    std::thread::scope(|scope| {
        let unmounting = scope.spawn(|| node.plugin_ok("VolumeDriver.Unmount", &json!({ "Name": "v", "ID": "c1" })));
        eventually("it is found busy", BOUND, || node.passed().iter().any(|point| point == "helper/mount.unmount/busy"));
        inside.kill().and_then(|()| inside.wait()).expect("end");
        unmounting.join().expect("it is unmounted");
    });
    node.finish();
}

#[test]
fn a_helper_that_is_killed_in_the_middle_of_a_format_leaves_no_mount_and_no_device() {
    let node = Node::started();
    for round in 0..12 {
        let (fs, size) = ALL[round % ALL.len()];
        let (socket, body) = (node.socket(), json!({ "Name": "v", "Opts": { "fs": fs, "size": size } }).to_string());
        let creating = std::thread::spawn(move || dunnage_tests::http::post(&socket, "/VolumeDriver.Create", body.as_bytes()));
        std::thread::sleep(std::time::Duration::from_millis(1 + 3 * round as u64));
        sh(&format!("kill -9 $(cat /proc/{0}/task/{0}/children) 2>/dev/null || true", node.pid()));
        creating.join().expect("answered");
        create(&node, "v", fs, size);
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "v" }));
        eventually("nothing is left", BOUND, || kernel::loops_beneath(&node.folder).is_empty());
        node.assert_nothing_left();
    }
}

/// The loop device beneath a mounted volume.
#[derive(Debug, PartialEq)]
struct LoopOf {
    direct_io: bool,
    sector: u32,
}

fn loop_of(mounted: &Path) -> LoopOf {
    let device = sh(&format!("basename $(findmnt -no SOURCE {})", mounted.display()));
    let said = |file: &str| sh(&format!("cat /sys/block/{device}/{file}"));
    LoopOf { direct_io: said("loop/dio") == "1", sector: said("queue/logical_block_size").parse().expect("bytes") }
}

/// A node whose pool is on a disk with sectors of so many bytes, and what takes both down.
fn on_sectors_of(bytes: u32) -> (Node, String) {
    let mut node = Node::new();
    let (disk, pool) = (node.folder.join("disk"), node.folder.join("pool"));
    std::fs::create_dir(&pool).expect("mkdir");
    let device = sh(&format!("truncate -s 2G {0}; losetup -f --show -b {bytes} {0}", disk.display()));
    sh(&format!("mkfs.ext4 -q {device}; mount {device} {}", pool.display()));
    node.configure(&format!("drivers: {{ local: {{ type: local, pool: {}/p }} }}\n", pool.display()));
    node.start();
    let down = format!("umount {}; umount {}; losetup -d {device}", node.state().join("volumes").display(), pool.display());
    (node, down)
}

#[test]
fn a_pool_on_sectors_of_half_a_kilobyte_gives_volumes_the_same_and_direct_io() {
    let (mut node, down) = on_sectors_of(512);
    for (fs, size) in ALL {
        create(&node, fs, fs, size);
        assert_eq!(loop_of(&node.mount(fs, "c1")), LoopOf { direct_io: true, sector: 512 }, "{fs}");
        node.unmount(fs, "c1");
    }
    node.stop();
    sh(&down);
}

#[test]
fn a_filesystem_whose_blocks_are_smaller_than_the_pool_s_sectors_is_refused_with_the_reason_and_what_to_do() {
    let (mut node, down) = on_sectors_of(4096);
    for (fs, mkfs, unit) in [("ext4", "mke2fs -q -F -t ext4 -b 1024", 1024), ("xfs", "mkfs.xfs -q -s size=512", 512)] {
        let image = node.folder.join("pool/p").join(fs).join("image");
        std::fs::create_dir(image.parent().expect("folder")).expect("mkdir");
        sh(&format!("truncate -s 320M {0}; {mkfs} {0}", image.display()));
        let clear = |said: &str, next: &str| {
            let why = format!("its {fs} is made of blocks of {unit} bytes, and the disk that it is on has sectors of 4096; {next}");
            assert!(said.contains("exists_incompatible") && said.contains(&why), "{said}");
        };
        let next = "mount it on a disk with smaller sectors, and copy its files into a new volume";
        clear(&node.cli(&["volume", "adopt", fs]).err, next);
        // Who says what is inside is not looked for, adopts it, and hears of it then.
        node.cli(&["volume", "adopt", fs, "--root-path", "/"]).ok();
        clear(&node.plugin_err("VolumeDriver.Mount", &json!({ "Name": fs, "ID": "c1" })), next);
    }
    eventually("nothing is attached", BOUND, || kernel::loops_beneath(&node.folder.join("pool")).is_empty());
    node.stop();
    sh(&down);
}

#[test]
fn a_pool_on_sectors_of_four_kilobytes_holds_all_of_them() {
    let (mut node, down) = on_sectors_of(4096);
    for (fs, size) in ALL {
        create(&node, fs, fs, size);
        let path = node.mount(fs, "c1");
        assert_eq!(loop_of(&path), LoopOf { direct_io: true, sector: 4096 }, "{fs}");
        sh(&format!("dd if=/dev/urandom of={0}/x bs=4k count=100 oflag=direct,sync 2>/dev/null; md5sum {0}/x > {0}/sum", path.display()));
        node.unmount(fs, "c1");
        let path = node.mount(fs, "c2");
        sh(&format!("md5sum --quiet -c {}/sum", path.display()));
        node.unmount(fs, "c2");
    }
    node.stop();
    sh(&down);
}

#[test]
fn a_volume_that_was_made_read_only_cannot_be_written_to() {
    let node = Node::started();
    for (fs, size) in ALL {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": fs, "Opts": { "fs": fs, "size": size, "ro": "true" } }));
        let path = node.mount(fs, "c1");
        let error = std::fs::write(path.join("x"), "x").expect_err("read only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{fs}");
        node.unmount(fs, "c1");
    }
    node.assert_nothing_left();
}
