//! The swap from REX-Ray and back, with volumes mounted and containers alive. The old service's part is played by a shell:
//! what it leaves is mounts at PATH/NAME, of devices with a filesystem, whose `data` its containers were given.

use std::path::{Path, PathBuf};
use std::process::Command;

use dunnage_tests::container::Container;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel, sh};
use serde_json::json;

/// A node with REX-Ray's configuration and places.
struct Bench {
    node: Node,
    volumes: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let mut node = Node::new();
        node.endpoint = "rexray";
        let volumes = node.state().join("volumes");
        std::fs::create_dir_all(&volumes).expect("folder");
        node.configure(&format!(
            "libstorage:\n  service: local\nlocal:\n  pool: {}\nintegration: {{ volume: {{ operations: {{ mount: {{ path: {} }} }} }} }}\n",
            node.pool().display(),
            volumes.display()
        ));
        Bench { node, volumes }
    }

    /// What the old service does for a volume: a device, mounted, with `data` in it.
    fn old_mount(&self, name: &str) {
        let image = self.node.image(name);
        if !image.exists() {
            std::fs::create_dir_all(image.parent().expect("folder")).expect("folder");
            sh(&format!("truncate -s 64M {0} && mke2fs -q -t ext4 {0}", image.display()));
        }
        let place = self.volumes.join(name);
        let (image, place) = (image.display(), place.display());
        sh(&format!("mkdir -p {place} && mount $(losetup -f --show {image}) {place} && mkdir -p -m 0700 {place}/data"));
    }

    fn container(&self, name: &str) -> Container {
        Container::with(&self.volumes.join(name).join("data"))
    }

    fn line_of(&self, name: &str) -> Option<String> {
        let path = self.volumes.join(name).display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let fields = |line: &str| line.split(" - ").nth(1).map(str::to_owned);
        table.lines().rfind(|line| line.split(' ').nth(4) == Some(&path)).and_then(fields)
    }

    fn kinds(&self, name: &str) -> Vec<String> {
        let text = self.node.cli(&["volume", "inspect", name, "-o", "json"]).ok();
        let shown: serde_json::Value = serde_json::from_str(&text).expect("json");
        shown["holders"].as_array().expect("holders").iter().map(|h| h["kind"].as_str().expect("kind").to_owned()).collect()
    }
}

#[test]
fn a_container_of_the_old_service_lives_through_the_swap_and_its_unmount_releases_the_volume() {
    let mut bench = Bench::new();
    bench.old_mount("pg");
    bench.old_mount("idle");
    let container = bench.container("pg");
    let before = bench.line_of("pg");
    bench.node.start();
    container.goes_on();
    assert_eq!(bench.line_of("pg"), before, "the same filesystem on the same device");
    assert_eq!(kernel::mounts_beneath(&bench.volumes).len(), 3, "ours and the two, and nothing hidden beneath");
    // Nobody could write beside a volume from now on.
    assert!(std::fs::write(bench.volumes.join("x"), "x").is_err());
    // Named, it is a volume, with the folder that the old service gave.
    let got = bench.node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }));
    assert_eq!(got["Volume"]["Mountpoint"], bench.volumes.join("pg/data").display().to_string());
    assert_eq!(bench.kinds("pg"), ["unknown"]);
    // The old container's unmount, by an ID that we never saw: not while the container lives.
    bench.node.unmount("pg", "of-the-old-times");
    assert!(is_mounted(&bench.volumes.join("pg")));
    container.goes_on();
    // A new one shares it meanwhile.
    assert_eq!(bench.node.mount("pg", "new"), bench.volumes.join("pg/data"));
    container.end();
    bench.node.unmount("pg", "of-the-old-times");
    assert!(is_mounted(&bench.volumes.join("pg")), "the new one holds it");
    // With the last one who has a name the nameless one goes, whose unmount has come before.
    bench.node.unmount("pg", "new");
    eventually("it is released", BOUND, || bench.line_of("pg").is_none());
    // What nobody ever unmounts is released by a person.
    bench.node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "idle" }));
    eventually("it is released", BOUND, || bench.node.cli(&["holder", "release", "idle"]).code == 0);
    assert!(!is_mounted(&bench.volumes.join("idle")));
    assert!(kernel::loops_beneath(&bench.node.folder).is_empty());
    bench.node.finish();
}

#[test]
fn a_kill_at_any_moment_of_the_swap_loses_no_mount_and_the_next_start_goes_on() {
    let mut bench = Bench::new();
    for name in ["a", "b"] {
        bench.old_mount(name);
    }
    let container = bench.container("a");
    bench.node.allow_crashes();
    let points = ["not-private", "beside", "copied", "detached", "covered"];
    for point in points {
        let point = format!("helper/mount.prepare/{point}");
        bench.node.die_at(&point);
        bench.node.spawn();
        bench.node.somebody_died(&point);
        bench.node.kill();
        container.goes_on();
        bench.node.start();
        for name in ["a", "b"] {
            assert!(is_mounted(&bench.volumes.join(name)), "{point}: {name}");
            assert_eq!(bench.line_of(name).map(|line| line.starts_with("ext4 /dev/loop")), Some(true), "{point}");
        }
        assert_eq!(kernel::mounts_beneath(&bench.node.state()).len(), 3, "{point}: {:?}", kernel::mounts_beneath(&bench.node.state()));
        container.goes_on();
        // And back, for the next point.
        bench.node.cli(&["stop", "--hand-over"]).ok();
        bench.node.wait_until_dead();
        assert_eq!(kernel::mounts_beneath(&bench.node.state()).len(), 2, "{point}");
    }
    container.end();
    sh(&format!(
        "for v in a b; do umount {0}/$v; done; for l in $(losetup -n -O NAME -j {1}/a/image) $(losetup -n -O NAME -j {1}/b/image); do losetup -d $l; done",
        bench.volumes.display(),
        bench.node.pool().display()
    ));
    bench.node.assert_nothing_left();
}

#[test]
fn going_back_the_old_service_finds_its_volumes_as_they_were() {
    let mut bench = Bench::new();
    bench.old_mount("pg");
    let container = bench.container("pg");
    let before = bench.line_of("pg");
    bench.node.start();
    bench.node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }));
    bench.node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "new", "Opts": { "size": "1" } }));
    let path = bench.node.mount("new", "h");
    std::fs::write(path.join("x"), "made by us").expect("write");
    let said = bench.node.cli(&["stop", "--hand-over"]).ok();
    assert!(said.contains("2 mounts"), "{said}");
    bench.node.wait_until_dead();
    // The folder is as it was, the mounts are at their places, and the container has noticed nothing.
    container.goes_on();
    assert_eq!(bench.line_of("pg"), before);
    assert!(bench.volumes.join("pg/data/log").exists());
    assert_eq!(std::fs::read_to_string(bench.volumes.join("new/data/x")).expect("x"), "made by us");
    bench.old_mount_is_possible();
    container.end();
    for name in ["pg", "new", "third"] {
        sh(&format!("umount {}/{name}", bench.volumes.display()));
    }
    // What we made is an ext4 like any other, with REX-Ray's folder in it.
    let image = bench.node.image("pg");
    assert_eq!(sh(&format!("e2fsck -fn {} >/dev/null; echo $?", image.display())), "0");
    for name in ["pg", "new", "third"] {
        sh(&format!("for l in $(losetup -n -O NAME -j {}); do losetup -d $l; done", bench.node.image(name).display()));
    }
    bench.node.assert_nothing_left();
}

impl Bench {
    /// The old service makes a mountpoint and mounts there: the folder is writable again.
    fn old_mount_is_possible(&self) {
        self.old_mount("third");
        assert!(is_mounted(&self.volumes.join("third")));
    }
}

#[test]
fn a_file_in_the_folder_of_mounts_is_never_hidden() {
    let mut bench = Bench::new();
    bench.old_mount("pg");
    std::fs::create_dir_all(bench.volumes.join("empty/data")).expect("folder");
    std::fs::create_dir_all(bench.volumes.join("stray/data")).expect("folder");
    std::fs::write(bench.volumes.join("stray/data/file"), "somebody's").expect("file");
    let ran = bench.node.cli(&["start", "-f"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("stray/data/file") && ran.err.contains("move it away"), "{}", ran.err);
    assert_eq!(kernel::mounts_beneath(&bench.volumes), [bench.volumes.join("pg")], "nothing was done");
    std::fs::remove_dir_all(bench.volumes.join("stray")).expect("moved away");
    bench.node.start();
    assert!(is_mounted(&bench.volumes.join("pg")));
    // A process of another test may have a copy of every mount for a moment.
    eventually("it is released", BOUND, || bench.node.cli(&["holder", "release", "pg"]).code == 0);
    assert!(!Path::new(&bench.volumes.join("pg")).exists());
    bench.node.finish();
}

#[test]
fn what_is_mounted_inside_of_a_volume_comes_along_and_goes_back() {
    let mut bench = Bench::new();
    bench.old_mount("pg");
    let inner = bench.volumes.join("pg/data/wal");
    sh(&format!("mkdir {0} && mount -t tmpfs inner {0} && echo x >{0}/file", inner.display()));
    bench.node.start();
    assert_eq!(std::fs::read_to_string(inner.join("file")).expect("file"), "x\n");
    bench.node.cli(&["stop", "--hand-over"]).ok();
    bench.node.wait_until_dead();
    assert_eq!(std::fs::read_to_string(inner.join("file")).expect("file"), "x\n");
    sh(&format!("umount {}; umount {}", inner.display(), bench.volumes.join("pg").display()));
    sh(&format!("for l in $(losetup -n -O NAME -j {}); do losetup -d $l; done", bench.node.image("pg").display()));
    bench.node.assert_nothing_left();
}

#[test]
fn two_filesystems_over_each_other_are_not_taken_over_and_named() {
    let bench = Bench::new();
    bench.old_mount("pg");
    let place = bench.volumes.join("pg");
    sh(&format!("mount -t tmpfs upper {}", place.display()));
    let ran = bench.node.cli(&["start", "-f"]);
    assert!(ran.code == 5 && ran.err.contains("over each other") && ran.err.contains("volumes/pg"), "{} {}", ran.code, ran.err);
    sh(&format!("umount {0}; umount {0}", place.display()));
    sh(&format!("for l in $(losetup -n -O NAME -j {}); do losetup -d $l; done", bench.node.image("pg").display()));
    bench.node.assert_nothing_left();
}

#[test]
fn while_the_old_service_answers_on_its_socket_nothing_of_it_is_touched() {
    let bench = Bench::new();
    bench.old_mount("pg");
    std::fs::create_dir_all(&bench.node.plugins).expect("folder");
    let _old = std::os::unix::net::UnixListener::bind(bench.node.socket()).expect("bind");
    let ran = bench.node.cli(&["start", "-f"]);
    assert!(ran.code == 5 && ran.err.contains("something answers on this socket"), "{}", ran.err);
    assert_eq!(kernel::mounts_beneath(&bench.volumes), [bench.volumes.join("pg")], "as it was");
    bench.old_mount("another");
    sh(&format!("umount {0}/pg {0}/another", bench.volumes.display()));
    for name in ["pg", "another"] {
        sh(&format!("for l in $(losetup -n -O NAME -j {}); do losetup -d $l; done", bench.node.image(name).display()));
    }
    bench.node.assert_nothing_left();
}

#[test]
fn a_hand_over_that_was_refused_in_the_middle_loses_no_mount() {
    let mut bench = Bench::new();
    bench.old_mount("pg");
    let container = bench.container("pg");
    bench.node.start();
    // Somebody works in the folder of mounts itself: it cannot be uncovered.
    let mut shell = Command::new("sleep").arg("1000").current_dir(&bench.volumes).spawn().expect("sleep");
    let ran = bench.node.cli(&["stop", "--hand-over"]);
    assert_ne!(ran.code, 0, "{}", ran.out);
    bench.node.wait_until_dead();
    bench.node.start();
    container.goes_on();
    assert!(is_mounted(&bench.volumes.join("pg")), "it is back on ours");
    assert_eq!(bench.kinds_when_named("pg"), ["unknown"], "and held");
    shell.kill().and_then(|()| shell.wait()).expect("it ends");
    container.end();
    bench.node.unmount("pg", "of-the-old-times");
    eventually("it is released", BOUND, || !is_mounted(&bench.volumes.join("pg")));
    bench.node.finish();
}

impl Bench {
    fn kinds_when_named(&self, name: &str) -> Vec<String> {
        self.node.plugin_ok("VolumeDriver.Get", &json!({ "Name": name }));
        self.kinds(name)
    }
}
