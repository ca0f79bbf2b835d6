//! The driver `cephfs` on a real CephFS: many nodes write to one volume.

use std::path::Path;

use dunnage_driver::conformance::{Bench, CASES};
use dunnage_driver_cephfs::{CephFs, Filesystem};
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_model::{BootId, Owner};
use dunnage_tests::ceph::{Ceph, FILES};
use dunnage_tests::{BOUND, Node, binary, eventually, kernel, sh};
use serde_json::json;

fn create(node: &Node, volume: &str) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "shared": "true" } }));
}

fn remove(node: &Node, volume: &str) {
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": volume }));
}

fn write(path: &Path, text: &str) {
    sh(&format!("echo {text} >{0}/file && sync {0}/file", path.display()));
}

fn read(path: &Path) -> String {
    sh(&format!("cat {}/file", path.display()))
}

/// What the filesystem has of volumes, as a node sees it.
fn left(node: &Node) -> String {
    sh(&format!(
        "cd {}/devices/files/fs.*/dunnage 2>/dev/null || exit 0; find . -mindepth 1 ! -name .new ! -name .gone ! -path './.new/?' ! -path './.gone/?'",
        node.run_dir().display()
    ))
}

/// The machine shuts down: nothing of the driver is left, its mount of the filesystem neither.
fn release(node: &mut Node) {
    println!("{}", node.cli(&["stop", "--release"]).err);
    node.wait_until_dead();
    eventually("its process has ended", BOUND, || node.carriers().is_empty());
    node.assert_nothing_left();
}

#[test]
fn the_cephfs_driver_passes_the_conformance_suite_on_a_real_filesystem() {
    let Some(ceph) = Ceph::with_files() else { return };
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(async {
        let (brood, _) = Brood::begin(&ceph.folder.join("helpers")).expect("begin");
        let host = dunnage_host::linux::host(std::sync::Arc::new(Helpers::new(binary(), brood)), Tools::find());
        let fs = Filesystem {
            conf: ceph.conf(),
            user: FILES.to_owned(),
            keyring: Some(ceph.files_keyring()),
            name: Some(FILES.to_owned()),
            path: "/".into(),
            timeout: BOUND,
            folder: ceph.folder.join("mounted"),
        };
        let me = Owner { node: "n1".parse().expect("a name"), boot: BootId("1".to_owned()) };
        let driver = CephFs::new("files".parse().expect("a name"), fs, None, me, host.clone());
        for case in CASES {
            let bench = Bench { driver: &driver, host: &host, maker: None };
            case.run(&bench).await.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
        assert_eq!(sh(&format!("find {}/mounted/fs.*/dunnage -type f", ceph.folder.display())), "");
        dunnage_driver::Driver::close(&driver).await.expect("closed");
        assert!(kernel::mounts_beneath(&ceph.folder).is_empty());
    });
    eventually("its process has ended", BOUND, || kernel::processes_with(&ceph.folder.join("mounted").display().to_string()).is_empty());
}

#[test]
fn a_quota_grows_for_all_nodes_at_once_while_they_write() {
    let Some(ceph) = Ceph::with_files() else { return };
    let (mut a, mut b) = (ceph.files_node("a"), ceph.files_node("b"));
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "shared": "true", "size": "64M" } }));
    let (on_a, on_b) = (a.mount("pg", "c1"), b.mount("pg", "c2"));
    write(&on_a, "before");
    let said = b.cli(&["volume", "resize", "pg", "128M"]);
    assert!(said.err.contains(": grown (128MiB)"), "{}", said.err);
    let large = |path: &Path| format!("dd if=/dev/zero of={}/large bs=1M count=100 status=none conv=fsync", path.display());
    sh(&large(&on_b));
    sh(&format!("rm {}/large", on_b.display()));
    eventually("the other node hears of it", BOUND, || {
        std::process::Command::new("sh").args(["-c", &large(&on_a)]).stderr(std::process::Stdio::null()).status().is_ok_and(|s| s.success())
    });
    assert_eq!(read(&on_a), "before");
    let said = a.cli(&["volume", "resize", "pg", "64M"]).fails(2);
    assert!(said.contains("no volume becomes smaller"), "{said}");
    a.unmount("pg", "c1");
    b.unmount("pg", "c2");
    remove(&a, "pg");
    release(&mut a);
    release(&mut b);
}

#[test]
fn two_nodes_write_to_one_volume_and_it_is_removed_when_both_have_let_go() {
    let Some(ceph) = Ceph::with_files() else { return };
    let (mut a, mut b) = (ceph.files_node("a"), ceph.files_node("b"));
    create(&a, "pg");
    let (on_a, on_b) = (a.mount("pg", "c1"), b.mount("pg", "c2"));
    assert_eq!(sh(&format!("ls -A {}", on_a.display())), "", "a new volume is empty");
    write(&on_a, "of-a");
    assert_eq!(read(&on_b), "of-a");
    write(&on_b, "of-b");
    assert_eq!(read(&on_a), "of-b");
    println!("{}", a.cli(&["volume", "inspect", "pg"]).ok());
    println!("{}", a.cli(&["volume", "ls"]).ok());
    println!("{}", a.cli(&["driver", "ls"]).ok());
    // Its size is kept: a while after it was passed, as CephFS does it.
    let said = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=200", "conv=fsync"])
        .arg(format!("of={}/big", on_a.display()))
        .output();
    let said = String::from_utf8_lossy(&said.expect("dd").stderr).into_owned();
    assert!(said.contains("Disk quota exceeded"), "{said}");
    sh(&format!("rm {}/big", on_a.display()));
    // Who has it is known everywhere.
    a.unmount("pg", "c1");
    let said = a.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use{b}") && said.contains("pg/nodes/b"), "{said}");
    assert_eq!(read(&on_b), "of-b", "the refused removal left it alone");
    b.unmount("pg", "c2");
    remove(&a, "pg");
    assert_eq!(left(&a), "");
    release(&mut a);
    release(&mut b);
}

#[test]
fn law_3_a_volume_of_files_outlives_the_daemon_and_is_found_again() {
    let Some(ceph) = Ceph::with_files() else { return };
    let mut a = ceph.files_node("a");
    create(&a, "pg");
    let path = a.mount("pg", "c1");
    write(&path, "first");
    let carriers = a.carriers();
    assert_eq!(carriers.len(), 1, "one process carries all volumes");
    a.kill();
    write(&path, "second");
    a.start();
    assert_eq!(a.mount("pg", "c2"), path);
    assert_eq!((read(&path), a.carriers()), ("second".to_owned(), carriers));
    a.unmount("pg", "c1");
    assert_eq!(read(&path), "second");
    a.unmount("pg", "c2");
    remove(&a, "pg");
    release(&mut a);
}

#[test]
fn what_has_lost_its_way_to_the_filesystem_is_given_to_nobody_and_had_again_when_it_was_let_go() {
    let Some(ceph) = Ceph::with_files() else { return };
    let mut a = ceph.files_node("a");
    create(&a, "pg");
    let path = a.mount("pg", "c1");
    write(&path, "acknowledged");
    a.carriers().into_iter().for_each(kernel::kill);
    let said = a.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c2" }));
    assert!(said.contains("what led to its data has died"), "{said}");
    a.unmount("pg", "c1");
    let path = a.mount("pg", "c2");
    assert_eq!(read(&path), "acknowledged");
    a.unmount("pg", "c2");
    remove(&a, "pg");
    release(&mut a);
}

#[test]
fn a_node_that_died_keeps_nobody_from_writing_and_is_named_when_the_volume_is_to_go_until_it_is_back() {
    let Some(ceph) = Ceph::with_files() else { return };
    let (mut a, mut b) = (ceph.files_node("a"), ceph.files_node("b"));
    create(&a, "pg");
    let path = b.mount("pg", "c1");
    write(&a.mount("pg", "c1"), "acknowledged");
    a.cut_power();
    let begun = std::time::Instant::now();
    eventually("what the dead node had of it was taken from it", 4 * BOUND, || read(&path) == "acknowledged");
    println!("CephFS has let go of the dead node after {:?}", begun.elapsed());
    write(&path, "newer");
    b.unmount("pg", "c1");
    let said = b.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use{a}"), "{said}");
    a.start();
    eventually("it is back, and has nothing", BOUND, || b.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" })).0 == 200);
    assert_eq!(left(&b), "");
    release(&mut a);
    release(&mut b);
}

#[test]
fn what_the_filesystem_cannot_give_is_refused_by_name_and_so_is_a_wrong_way_to_it() {
    let Some(ceph) = Ceph::with_files() else { return };
    let mut a = ceph.files_node("a");
    for (key, value, parts) in [
        ("shared", "false", ["shared", "type ceph"]),
        ("repl", "3", ["repl", "the filesystem's pool"]),
        ("thick", "true", ["thick", "folders"]),
        ("fs", "xfs", ["fs=xfs", "folders"]),
    ] {
        let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { key: value } }));
        assert!(said.starts_with("invalid_argument") && parts.iter().all(|part| said.contains(part)), "{said}");
    }
    assert_eq!(left(&a), "");
    eventually("it has looked what there is", BOUND, || kernel::mounts_beneath(&a.run_dir()).len() == 1);
    release(&mut a);
    // A key that may read and write, and set no quota.
    let key = ceph.ceph(&["fs", "authorize", FILES, "client.poor", "/", "rw"]).ok();
    std::fs::write(ceph.folder.join("client.poor.keyring"), key + "\n").expect("keyring");
    let config = std::fs::read_to_string(a.folder.join("config.yml")).expect("configuration");
    let refused = |from: &str, to: &str, parts: &[&str]| {
        let mut b = ceph.files_node("b");
        b.stop();
        b.configure(&config.replace(from, to));
        b.start();
        let said = b.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": {} }));
        println!("{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        drop(b);
    };
    let poor = format!("keyring: {}, user: poor", ceph.folder.join("client.poor.keyring").display());
    let right = format!("keyring: {}, user: {FILES}", ceph.files_keyring().display());
    refused(&right, &poor, &["permission", "client.poor", "rwp"]);
    refused(
        &right,
        &format!("keyring: {}, user: {FILES}, path: /nowhere, timeout: 3s", ceph.files_keyring().display()),
        &["/nowhere", "ceph fs status"],
    );
    refused(&right, &format!("keyring: /nowhere, user: {FILES}, timeout: 3s"), &["platform_unavailable", "ceph fs authorize"]);
}

#[test]
fn one_endpoint_has_volumes_with_one_writer_and_with_many_as_portworx_had_them() {
    let Some(ceph) = Ceph::with_files() else { return };
    let mut a = ceph.both_node("a");
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "repl": "1", "io_priority": "high" } }));
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "size=64M,repl=1,sharedv4=true,name=uploads", "Opts": {} }));
    println!("{}", a.cli(&["volume", "ls"]).ok());
    let listed = a.plugin_ok("VolumeDriver.List", &json!({}));
    let names: Vec<&str> = listed["Volumes"].as_array().expect("a list").iter().map(|v| v["Name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["pg", "uploads"]);
    // Said once more, as dockerd does, it is the same one; and no second one of the name is made.
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "uploads", "Opts": {} }));
    let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "shared": "true" } }));
    assert!(said.contains("shared=true"), "{said}");
    let drivers = |volume: &str| a.plugin_ok("VolumeDriver.Get", &json!({ "Name": volume }))["Volume"]["Status"]["driver"].clone();
    assert_eq!((drivers("pg"), drivers("uploads")), (json!("images"), json!("files")));
    for volume in ["pg", "uploads"] {
        write(&a.mount(volume, "c1"), volume);
    }
    // Whose hold it is stands in the ledger, before any list was read.
    a.kill();
    a.start();
    for volume in ["uploads", "pg"] {
        a.unmount(volume, "c1");
        assert!(a.holders(volume).is_empty(), "{volume} is held still");
        assert_eq!(read(&a.mount(volume, "c2")), volume);
        a.unmount(volume, "c2");
        remove(&a, volume);
    }
    assert_eq!(left(&a), "");
    assert_eq!(ceph.command("rbd", &["ls"]).ok(), "");
    release(&mut a);
}

#[test]
fn what_an_interrupted_removal_left_is_not_destroyed_while_somebody_has_it_and_what_is_not_ours_is_left_alone() {
    let Some(ceph) = Ceph::with_files() else { return };
    let (mut a, mut b) = (ceph.files_node("a"), ceph.files_node("b"));
    create(&a, "pg");
    let path = b.mount("pg", "c1");
    write(&path, "in-use");
    // As a removal leaves it that dies before it has looked who has it; meanwhile another node has made a volume of the name.
    let volumes = format!("{}/devices/files/fs.*", a.run_dir().display());
    sh(&format!("cd {volumes}/dunnage; mkdir -p .gone/a; mv pg .gone/a/; cp -r .gone/a/pg pg; rm pg/nodes/b pg/data/file"));
    sh(&format!("cd {volumes}/dunnage; echo hello >README; mkdir -p theirs/nodes; echo x >theirs/nodes/a"));
    let said = a.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    println!("{said}");
    assert_eq!(read(&path), "in-use", "what somebody has was destroyed");
    a.kill();
    a.start();
    eventually("it has looked what there is", BOUND, || a.cli(&["volume", "ls"]).ok().contains("pg"));
    assert!(!a.log().contains("cannot say what is attached"), "what is not ours was in the way");
    assert_eq!(sh(&format!("cat {volumes}/dunnage/theirs/nodes/a")), "x");
    assert_eq!(read(&path), "in-use");
    b.unmount("pg", "c1");
    sh(&format!("cd {volumes}/dunnage; rm -r README theirs .gone/a/pg/nodes/b"));
    remove(&a, "pg");
    assert_eq!(left(&a), "");
    release(&mut a);
    release(&mut b);
}
