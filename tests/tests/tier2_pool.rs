//! The pool's own disk: what it promises, what happens when it is full, and where it may not lie.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use dunnage_tests::fuse::{Disk, Store};
use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, kernel};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A node whose pool is on a small disk of its own. The disk goes last.
struct Bench {
    node: Node,
    disk: Disk,
}

impl Bench {
    fn new(size: u64, limits: &str) -> Bench {
        let mut node = Node::new();
        let disk = Disk::new(&node.folder.join("disk"), size);
        node.configure(&format!("drivers: {{ local: {{ type: local, pool: {}/pool, {limits} }} }}\n", disk.path.display()));
        node.start();
        Bench { node, disk }
    }

    #[track_caller]
    fn create(&self, volume: &str, options: serde_json::Value) {
        self.node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": options }));
    }

    /// A create that is refused for want of room: it says so, and nothing of the volume is there.
    #[track_caller]
    fn refused(&self, volume: &str, options: serde_json::Value) -> String {
        let said = self.node.plugin_err("VolumeDriver.Create", &json!({ "Name": volume, "Opts": options }));
        assert!(said.starts_with(&format!("limit_reached: volume \"{volume}\": ")) && said.contains("; "), "{said}");
        assert!(!self.disk.path.join("pool").join(volume).exists(), "half a volume is left");
        assert!(self.node.cli(&["volume", "ls", "-q"]).ok().lines().all(|name| name != volume));
        said
    }

    /// Takes space on the disk until about `left` remain.
    fn fill(&self, left: u64) {
        let path = self.disk.path.display();
        let free: u64 = sh(&format!("df --output=avail -B1 {path} | tail -1")).trim().parse().expect("df");
        sh(&format!("head -c {} /dev/zero > {path}/filler; sync -f {path}/filler", free - left));
    }

    /// Takes all of it, down to where not even a small file fits.
    fn fill_up(&self) {
        let path = self.disk.path.display();
        let large = format!("cat /dev/zero >> {path}/filler; sync -f {path}/filler");
        let small =
            format!("cd {path}; while head -c 1k /dev/zero > small.$(ls | wc -l); do :; done; sync -f .; head -c 1k /dev/zero > last");
        // Several times: what the filesystem holds back for itself while it writes is there again later.
        eventually("it is full", BOUND, || {
            let run = |line: &str| Command::new("sh").args(["-c", line]).stderr(Stdio::null()).status().expect("sh").success();
            run(&large);
            !run(&small)
        });
    }

    /// What a volume takes of the disk.
    fn spent(&self, volume: &str) -> u64 {
        std::fs::metadata(self.disk.path.join("pool").join(volume).join("image")).expect("image").blocks() * 512
    }
}

#[test]
fn a_pool_below_its_reserve_makes_no_new_volume_and_says_what_to_do() {
    let bench = Bench::new(128 * MIB, "reserve: 25%");
    bench.create("a", json!({ "size": "16M" }));
    bench.fill(20 * MIB);
    let said = bench.refused("b", json!({ "size": "16M" }));
    assert!(said.contains("reserve") && said.contains("remove volumes"), "{said}");
    bench.node.mount("a", "c1");
    bench.node.unmount("a", "c1");
}

#[test]
fn a_pool_that_is_full_to_the_last_byte_makes_no_half_volume() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.fill_up();
    bench.refused("a", json!({ "size": "16M" }));
}

#[test]
fn a_pool_that_gets_full_while_a_volume_is_made_leaves_nothing_of_it() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    // Enough for the folder and the record, not for the filesystem.
    bench.fill(64 << 10);
    bench.refused("a", json!({ "size": "1G" }));
    sh(&format!("rm {}/filler", bench.disk.path.display()));
    bench.create("a", json!({ "size": "16M" }));
}

#[test]
fn a_pool_with_an_overcommit_limit_promises_no_more_than_that() {
    let bench = Bench::new(128 * MIB, "reserve: 0%, overcommit: 200%");
    bench.create("a", json!({ "size": "128M" }));
    let said = bench.refused("b", json!({ "size": "160M" }));
    assert!(said.contains("promised now: 128MiB"), "{said}");
    bench.create("b", json!({ "size": "64M" }));
}

#[test]
fn without_an_overcommit_limit_more_is_promised_than_there_is() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "1G" }));
    assert!(bench.spent("a") < 8 * MIB, "it is thin");
}

#[test]
fn driver_ls_warns_from_85_percent_on_and_not_before() {
    let bench = Bench::new(128 * MIB, "reserve: 0%");
    let warning = || bench.node.cli(&["driver", "ls"]).err;
    assert_eq!(warning(), "");
    bench.fill(12 * MIB);
    assert!(warning().contains("% full") && warning().contains("/pool"), "{}", warning());
}

#[test]
fn a_thick_volume_has_its_blocks_from_the_start() {
    let bench = Bench::new(128 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "32M", "thick": "true" }));
    assert!(bench.spent("a") >= 32 * MIB, "it has {} bytes", bench.spent("a"));
}

#[test]
fn a_thick_volume_keeps_its_blocks_when_files_are_deleted() {
    let bench = Bench::new(128 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "32M", "thick": "true" }));
    let folder = bench.node.mount("a", "c1").display().to_string();
    sh(&format!("dd if=/dev/urandom of={folder}/big bs=1M count=8 conv=fsync status=none; rm {folder}/big; sync -f {folder}"));
    bench.node.unmount("a", "c1");
    assert!(bench.spent("a") >= 32 * MIB, "it has {} bytes", bench.spent("a"));
}

#[test]
fn a_thick_volume_that_does_not_fit_is_refused() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.refused("a", json!({ "size": "128M", "thick": "true" }));
    bench.create("a", json!({ "size": "32M", "thick": "true" }));
}

/// Writes numbered files of 1 MiB, each acknowledged by fsync, until one fails; gives how many were acknowledged and
/// what was said then.
fn write_until_it_fails(folder: &str) -> (u32, String) {
    for n in 0..256 {
        let write = format!("yes {n} | head -c 1M | dd of={folder}/f{n} bs=1M iflag=fullblock conv=fsync status=none");
        let output = Command::new("sh").args(["-c", &write]).stdin(Stdio::null()).output().expect("sh");
        if !output.status.success() {
            return (n, String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    panic!("the pool is smaller than what was written");
}

/// Every file that was acknowledged is there, whole.
#[track_caller]
fn acknowledged_is_there(folder: &str, count: u32) {
    for n in 0..count {
        sh(&format!("yes {n} | head -c 1M | cmp - {folder}/f{n}"));
    }
}

#[test]
fn a_volume_can_be_removed_from_a_pool_that_is_full() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "64M" }));
    bench.fill_up();
    bench.node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "a" }));
    assert!(!bench.disk.path.join("pool/a").exists());
}

#[test]
fn a_writer_on_a_full_pool_is_told_by_fsync_and_loses_nothing_that_was_acknowledged() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "128M" }));
    let path = bench.node.mount("a", "c1");
    bench.fill(24 * MIB);
    let folder = path.display().to_string();
    let (written, said) = write_until_it_fails(&folder);
    assert!(written > 8, "{written} MiB fitted");
    // Its own filesystem has room where the pool has none: write(2) says yes, and fsync(2) says what came of it.
    assert!(said.contains("fsync failed") && said.contains("No space left on device"), "{said}");
    acknowledged_is_there(&folder, written);
    sh(&format!("rm {}/filler", bench.disk.path.display()));
    bench.node.unmount("a", "c1");
    let folder = bench.node.mount("a", "c2").display().to_string();
    acknowledged_is_there(&folder, written);
    sh(&format!("echo again > {folder}/again; sync -f {folder}/again"));
    bench.node.unmount("a", "c2");
    assert_eq!(kernel::loops_beneath(&bench.disk.path).len(), 0);
}

#[test]
fn a_volume_that_was_unmounted_while_its_pool_was_full_is_whole_when_there_is_room_again() {
    let bench = Bench::new(64 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "128M" }));
    let folder = bench.node.mount("a", "c1").display().to_string();
    bench.fill(16 * MIB);
    let (written, _) = write_until_it_fails(&folder);
    acknowledged_is_there(&folder, written);
    bench.node.unmount("a", "c1");
    assert_eq!(kernel::loops_beneath(&bench.disk.path).len(), 0);
    // Its journal is to be replayed, and that needs room: not now, and nothing is made worse by trying.
    let said = bench.node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "a", "ID": "c2" }));
    assert!(said.starts_with("platform_unavailable: volume \"a\""), "{said}");
    sh(&format!("rm {}/filler", bench.disk.path.display()));
    let folder = bench.node.mount("a", "c2").display().to_string();
    acknowledged_is_there(&folder, written);
    bench.node.unmount("a", "c2");
}

#[test]
fn what_a_container_deletes_goes_back_to_the_pool() {
    let bench = Bench::new(128 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "64M" }));
    let folder = bench.node.mount("a", "c1").display().to_string();
    sh(&format!("dd if=/dev/urandom of={folder}/big bs=1M count=32 conv=fsync status=none"));
    assert!(bench.spent("a") >= 32 * MIB);
    sh(&format!("rm {folder}/big; sync -f {folder}"));
    eventually("the pool has it back", BOUND, || bench.spent("a") < 8 * MIB);
    bench.node.unmount("a", "c1");
}

#[test]
fn inspect_shows_what_the_pool_really_spends() {
    let bench = Bench::new(128 * MIB, "reserve: 0%");
    bench.create("a", json!({ "size": "64M" }));
    let folder = bench.node.mount("a", "c1").display().to_string();
    sh(&format!("dd if=/dev/urandom of={folder}/big bs=1M count=16 conv=fsync status=none"));
    let inspected: serde_json::Value = serde_json::from_str(&bench.node.cli(&["volume", "inspect", "a", "-o", "json"]).ok()).expect("json");
    assert_eq!(inspected["usage"]["spent"], bench.spent("a"));
    assert!(inspected["space"]["used"].as_u64().is_some_and(|used| used >= 16 * MIB));
    bench.node.unmount("a", "c1");
}

#[test]
fn a_pool_on_tmpfs_works() {
    let mut node = Node::new();
    let pool = node.folder.join("memory");
    std::fs::create_dir_all(&pool).expect("folder");
    sh(&format!("mount -t tmpfs -o size=64m memory {}", pool.display()));
    node.configure(&format!("drivers: {{ local: {{ type: local, pool: {}/pool }} }}\n", pool.display()));
    node.start();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "a", "Opts": { "size": "16M" } }));
    let path = node.mount("a", "c1");
    sh(&format!("echo written > {0}/x; sync -f {0}/x", path.display()));
    node.unmount("a", "c1");
    assert_eq!(sh(&format!("cat {}/x", node.mount("a", "c2").display())), "written");
    node.unmount("a", "c2");
    assert_eq!(kernel::loops_beneath(&pool).len(), 0);
}

#[test]
fn a_pool_on_fuse_is_refused_by_name_and_the_other_driver_serves() {
    let mut node = Node::new();
    let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &node.folder, 16 * MIB);
    node.configure(&format!(
        "drivers: {{ far: {{ type: local, pool: {} }}, local: {{ type: local }} }}\n\
         endpoints: {{ docker: [ {{ name: dunnage, driver: local }}, {{ name: far, driver: far }} ] }}\n",
        store.fuse.display()
    ));
    node.start();
    let status = node.cli(&["status"]);
    assert_eq!(status.code, 21, "degraded: {}", status.out);
    assert!(status.out.contains("driver far: invalid_argument{pool}") && status.out.contains("fuse"), "{}", status.out);
    let far = node.plugins.join("far.sock");
    let answer = dunnage_tests::http::post(&far, "/VolumeDriver.Create", br#"{"Name":"a","Opts":{"size":"16M"}}"#);
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status == 400 && said.contains("invalid_argument{pool}") && said.contains("volume \\\"a\\\""), "{said}");
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "a", "Opts": { "size": "16M" } }));
}
