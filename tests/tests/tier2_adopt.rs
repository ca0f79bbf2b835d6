//! Taking what somebody else has made: images in the pool, with the real tools and the real kernel.

use std::path::Path;

use dunnage_tests::{Node, sh};
use serde_json::json;

/// A file at the volume's place in the pool, made by hand: `mkfs` is run on it, and `fill` with its root at MNT.
fn image(node: &Node, name: &str, size: &str, mkfs: &str, fill: &str) {
    let path = node.image(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let (path, mnt) = (path.display(), node.folder.join("mnt"));
    std::fs::create_dir_all(&mnt).expect("a folder");
    sh(&format!("truncate -s {size} {path} && {mkfs} {path}"));
    if !fill.is_empty() {
        let mnt = mnt.display();
        sh(&format!("mount -o loop {path} {mnt} && cd {mnt} && {fill}; cd /; umount {mnt}"));
    }
}

fn inspect(node: &Node, name: &str) -> serde_json::Value {
    serde_json::from_str(&node.cli(&["volume", "inspect", "-o", "json", name]).ok()).expect("json")
}

#[test]
fn an_image_that_somebody_put_into_the_pool_is_not_seen_until_it_is_adopted_and_then_has_its_data() {
    let mut node = Node::started();
    image(&node, "pg", "64M", "mke2fs -q -t ext4", "echo mine >x");
    let before = sh(&format!("sha256sum {}", node.image("pg").display()));
    assert!(node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    let said = node.plugin_err("VolumeDriver.Get", &json!({ "Name": "pg" }));
    assert!(said.starts_with("not_found"), "{said}");
    // A second one of its name is not made either.
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg" }));
    assert!(said.starts_with("exists_incompatible") && said.contains("dunnage volume adopt pg"), "{said}");
    assert_eq!(node.cli(&["volume", "adopt", "pg"]).ok(), "pg");
    assert_eq!(node.cli(&["volume", "adopt", "pg"]).ok(), "pg", "once more is nothing");
    let shown = inspect(&node, "pg");
    assert_eq!((&shown["spec"]["fs"], &shown["spec"]["size"]), (&"ext4".into(), &(64 << 20).into()));
    assert_eq!(sh(&format!("sha256sum {}", node.image("pg").display())), before, "adopting wrote to it");
    let path = node.mount("pg", "a");
    assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), "mine\n");
    assert!(path.join("lost+found").exists(), "what was there stays");
    node.unmount("pg", "a");
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    node.finish();
}

#[test]
fn a_volume_that_holds_nothing_but_data_was_rex_ray_s_and_its_containers_are_given_that() {
    let mut node = Node::started();
    for (name, fs, fill, expected) in [
        ("a", "mke2fs -q -t ext4", "mkdir data; echo x >data/x", Some("data")),
        ("b", "mkfs.xfs -q", "mkdir data; echo x >data/x", Some("data")),
        ("c", "mkfs.btrfs -q", "mkdir data; echo x >data/x", Some("data")),
        ("d", "mke2fs -q -t ext4", "mkdir data other; echo x >x", None),
        ("e", "mke2fs -q -t ext4", "echo x >data; echo x >x", None),
    ] {
        image(&node, name, "320M", fs, fill);
        node.cli(&["volume", "adopt", name]).ok();
        let path = node.mount(name, "h");
        assert_eq!(path, expected.map_or(node.mountpoint(name), |inside| node.mountpoint(name).join(inside)), "{name}");
        assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), "x\n", "{name}");
        node.unmount(name, "h");
    }
    image(&node, "f", "64M", "mke2fs -q -t ext4", "mkdir data");
    node.cli(&["volume", "adopt", "f", "--root-path", "/"]).ok();
    assert_eq!(node.mount("f", "h"), node.mountpoint("f"));
    node.unmount("f", "h");
    node.finish();
}

#[test]
fn a_copy_gets_a_uuid_of_its_own_and_both_are_mounted_at_once() {
    let mut node = Node::started();
    for fs in ["ext4", "xfs", "btrfs"] {
        let copy = format!("{fs}-copy");
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": fs, "Opts": { "size": "320M", "fs": fs } }));
        let path = node.mount(fs, "h");
        std::fs::write(path.join("x"), "both").expect("write");
        sh(&format!("sync -f {}", path.display()));
        // While it is mounted: the copy's journal is dirty.
        sh(&format!("cp -r --sparse=always {pool}/{fs} {pool}/{copy}", pool = node.pool().display()));
        assert_eq!(inspect(&node, &copy)["state"], "damaged", "a copied folder is no second volume");
        let said = node.cli(&["volume", "adopt", &copy]);
        assert_eq!(said.code, 0, "{fs}: {}", said.err);
        assert_ne!(inspect(&node, fs)["fs_uuid"], inspect(&node, &copy)["fs_uuid"], "{fs}");
        let second = node.mount(&copy, "h");
        assert_eq!(std::fs::read_to_string(second.join("x")).expect("x"), "both", "{fs}");
        std::fs::write(second.join("x"), "one").expect("write");
        assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), "both", "{fs}");
        node.unmount(fs, "h");
        node.unmount(&copy, "h");
        let again = node.mount(&copy, "h");
        assert_eq!(std::fs::read_to_string(again.join("x")).expect("x"), "one", "{fs}");
        node.unmount(&copy, "h");
    }
    node.finish();
}

#[test]
fn a_folder_that_was_renamed_keeps_its_uuid_and_is_the_volume_of_its_new_name() {
    let mut node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "old", "Opts": { "size": "64M" } }));
    let uuid = inspect(&node, "old")["fs_uuid"].clone();
    std::fs::rename(node.pool().join("old"), node.pool().join("new")).expect("rename");
    node.cli(&["volume", "adopt", "new"]).ok();
    assert_eq!(inspect(&node, "new")["fs_uuid"], uuid);
    node.mount("new", "h");
    node.unmount("new", "h");
    node.finish();
}

#[test]
fn what_is_no_filesystem_is_refused_by_name_unchanged_and_only_overwrite_makes_room() {
    let mut node = Node::started();
    for (name, made, says) in [
        ("luks", "sh -c 'printf \"LUKS\\272\\276\\000\\001\" | dd conv=notrunc status=none of=$0'", "LUKS"),
        ("noise", "sh -c 'head -c 1M /dev/urandom | dd conv=notrunc status=none of=$0'", "data"),
        ("blank", "true", "nothing"),
    ] {
        image(&node, name, "64M", made, "");
        let before = sh(&format!("sha256sum {}", node.image(name).display()));
        let said = node.cli(&["volume", "adopt", name]).fails(10);
        assert!(said.contains(says) && said.contains(&format!("adopt --overwrite {name}")), "{said}");
        assert_eq!(sh(&format!("sha256sum {}", node.image(name).display())), before);
        node.cli(&["volume", "adopt", "--overwrite", name]).ok();
        let path = node.mount(name, "h");
        assert_eq!(std::fs::read_dir(&path).expect("a folder").count(), 0, "empty");
        assert_eq!(inspect(&node, name)["spec"]["size"], 64 << 20);
        node.unmount(name, "h");
        // Of a volume of ours nothing is overwritten.
        node.cli(&["volume", "adopt", "--overwrite", name]).fails(4);
    }
    node.finish();
}

#[test]
fn an_image_that_somebody_uses_is_not_overwritten() {
    let mut node = Node::started();
    image(&node, "pg", "64M", "mke2fs -q -t ext4", "");
    let device = sh(&format!("losetup -f --show {}", node.image("pg").display()));
    let said = node.cli(&["volume", "adopt", "--overwrite", "pg"]).fails(5);
    assert!(said.contains("in use"), "{said}");
    sh(&format!("losetup -d {device}"));
    assert!(node.image("pg").exists());
    node.finish();
}

#[test]
fn all_that_fit_are_adopted_and_a_dry_run_only_says_so() {
    let mut node = Node::started();
    for name in ["db-1", "db-2", "web"] {
        image(&node, name, "64M", "mke2fs -q -t ext4", "");
    }
    image(&node, "db-3", "64M", "true", "");
    let ran = node.cli(&["volume", "adopt", "--all", "--match", "db-.*", "--dry-run"]);
    let mut names: Vec<&str> = ran.out.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["db-1", "db-2", "db-3"], "{}", ran.err);
    assert!(ran.err.contains("would be adopted: 64MiB with ext4") && ran.err.contains("has nothing on it"), "{}", ran.err);
    assert!(node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    // One that cannot be adopted keeps no other from it.
    node.cli(&["volume", "adopt", "--all", "--match", "db-.*"]).fails(10);
    assert_eq!(node.cli(&["volume", "ls", "-q"]).ok(), "db-1\ndb-2");
    node.cli(&["volume", "adopt", "--all", "--match", "("]).fails(2);
    node.finish();
}

#[test]
fn a_volume_goes_from_one_endpoint_to_another_when_a_person_says_so() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local }, { name: second, driver: local } ] }\n");
    node.start();
    node.cli(&["volume", "create", "pg", "-o", "size=64M", "--endpoint", "second"]).ok();
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg" }));
    assert!(said.starts_with("exists_incompatible") && said.contains("endpoint second") && said.contains("dunnage volume adopt"), "{said}");
    node.cli(&["volume", "adopt", "pg", "--endpoint", "dunnage"]).ok();
    assert_eq!(node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }))["Volume"]["Name"], "pg");
    node.finish();
}

#[test]
fn under_a_rex_ray_configuration_what_is_there_is_adopted_when_it_is_first_named() {
    let mut node = Node::new();
    node.configure(&format!(
        "libstorage: {{ service: local }}\nlocal: {{ pool: {} }}\nintegration: {{ volume: {{ operations: {{ mount: {{ path: {} }} }} }} }}\n",
        node.pool().display(),
        node.state().join("volumes").display()
    ));
    node.endpoint = "rexray";
    node.start();
    image(&node, "pg", "64M", "mke2fs -q -t ext4", "mkdir data; echo old >data/x");
    image(&node, "other", "64M", "mke2fs -q -t ext4", "");
    let none: Vec<serde_json::Value> = Vec::new();
    assert_eq!(node.plugin_ok("VolumeDriver.List", &json!({}))["Volumes"], json!(none));
    // dockerd creates what it is asked to run with: nothing is made.
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": {} }));
    let path = node.mount("pg", "h");
    assert_eq!(path, node.state().join("volumes/pg/data"));
    assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), "old\n");
    node.unmount("pg", "h");
    assert_eq!(node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "other" }))["Volume"]["Name"], "other");
    let said = node.plugin_err("VolumeDriver.Get", &json!({ "Name": "nowhere" }));
    assert!(said.starts_with("not_found"), "{said}");
    assert!(!Path::new(&node.pool().join("nowhere")).exists());
    // What is new has REX-Ray's shape.
    node.plugin_ok(
        "VolumeDriver.Create",
        &json!({ "Name": "new", "Opts": { "size": "1", "volumetype": "io1", "iops": "150", "overwritefs": "true" } }),
    );
    let path = node.mount("new", "h");
    assert_eq!(path, node.state().join("volumes/new/data"));
    node.unmount("new", "h");
    node.finish();
}

#[test]
fn a_kill_at_any_moment_of_an_adoption_leaves_a_stranger_or_a_volume_and_the_retry_adopts_it() {
    let mut node = Node::new();
    node.allow_crashes();
    node.start();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M" } }));
    let path = node.mount("pg", "h");
    std::fs::write(path.join("x"), "both").expect("write");
    node.unmount("pg", "h");

    let copy = |node: &Node, name: &str| {
        sh(&format!("cp -r --sparse=always {pool}/pg {pool}/{name}", pool = node.pool().display()));
    };
    copy(&node, "first");
    node.passed();
    node.cli(&["volume", "adopt", "first"]).ok();
    let of_adopting = |point: &String| {
        ["adopt/", "helper/fs.", "helper/local.", "helper/record", "helper/loop", "tool/"].iter().any(|p| point.starts_with(p))
    };
    let mut points: Vec<String> = node.passed().into_iter().filter(of_adopting).collect();
    points.sort();
    points.dedup();
    assert!(points.len() > 12, "{points:?}");
    for (n, point) in points.iter().enumerate() {
        let name = format!("copy-{n}");
        copy(&node, &name);
        node.die_at(point);
        node.cli(&["volume", "adopt", &name]);
        node.somebody_died(point);
        if point.starts_with("adopt/") {
            node.wait_until_dead();
            node.start();
        }
        node.cli(&["volume", "adopt", &name]).ok();
        assert_ne!(inspect(&node, &name)["fs_uuid"], inspect(&node, "pg")["fs_uuid"], "{point}");
        let path = node.mount(&name, "h");
        assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), "both", "{point}");
        node.unmount(&name, "h");
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": name }));
    }
    node.finish();
}

#[test]
fn a_copy_that_somebody_uses_or_that_is_the_same_file_is_not_adopted_and_not_written_to() {
    let mut node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M" } }));
    sh(&format!("cd {}; cp -r --sparse=always pg used; mkdir same; ln pg/image same/image", node.pool().display()));
    let device = sh(&format!("losetup -f --show {}", node.image("used").display()));
    let sums = || sh(&format!("cd {}; sha256sum pg/image used/image", node.pool().display()));
    let before = sums();
    let said = node.cli(&["volume", "adopt", "used"]).fails(5);
    assert!(said.contains("in use"), "{said}");
    let said = node.cli(&["volume", "adopt", "same"]).fails(4);
    assert!(said.contains("the same file"), "{said}");
    assert_eq!(sums(), before);
    sh(&format!("losetup -d {device}"));
    node.cli(&["volume", "adopt", "used"]).ok();
    node.finish();
}

#[test]
fn adopting_does_not_even_replay_a_journal() {
    let mut node = Node::started();
    for fs in ["ext4", "xfs", "btrfs"] {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": fs, "Opts": { "size": "320M", "fs": fs } }));
        let path = node.mount(fs, "h");
        sh(&format!("echo x >{0}/x; sync -f {0}/x", path.display()));
        // As a power cut would leave it; the original goes, so that it is no copy.
        sh(&format!("cd {}; mkdir cut-{fs}; cp --sparse=always {fs}/image cut-{fs}/image", node.pool().display()));
        node.unmount(fs, "h");
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": fs }));
        let cut = format!("cut-{fs}");
        let sum = || sh(&format!("sha256sum {}", node.image(&cut).display()));
        let before = sum();
        node.cli(&["volume", "adopt", &cut]).ok();
        assert_eq!(sum(), before, "{fs}");
        assert_eq!(std::fs::read_to_string(node.mount(&cut, "h").join("x")).expect("x"), "x\n", "{fs}");
        node.unmount(&cut, "h");
    }
    node.finish();
}

#[test]
fn a_volume_of_another_endpoint_stays_there_when_no_endpoint_is_named() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local }, { name: second, driver: local } ] }\n");
    node.start();
    node.cli(&["volume", "create", "pg", "-o", "size=64M", "--endpoint", "second"]).ok();
    node.cli(&["volume", "adopt", "pg"]).ok();
    assert_eq!(inspect(&node, "pg")["endpoint"], "second");
    node.finish();
}
