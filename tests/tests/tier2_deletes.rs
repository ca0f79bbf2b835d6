//! What deletes data and what does not (docs/deletes.md), as far as no container engine is needed: dvdcli, rexray, our own
//! command line, and configurations that refuse. Each test writes data, runs the command, and reads the data or sees it gone.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use dunnage_tests::sh;
use dunnage_tests::{Node, Ran, binary};
use serde_json::json;

/// A node with a volume `pg` that has data, and that nobody holds.
fn with_data() -> Node {
    let node = Node::started();
    node.fill("pg");
    node
}

/// The binary by another of its names, and a line of words for it.
fn face(node: &Node, name: &str, line: &str) -> Ran {
    let link = node.folder.join(name);
    if !link.exists() {
        symlink(binary(), &link).expect("link");
    }
    let mut command = Command::new(link);
    command.args(line.split_whitespace()).env("DUNNAGE_STATE_DIR", node.state()).env("DUNNAGE_RUN_DIR", node.run_dir());
    command.env("DUNNAGE_PLUGIN_DIR", &node.plugins).env("DUNNAGE_NODE", "n1").stdin(std::process::Stdio::null());
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

fn rexray(node: &Node, line: &str) -> Ran {
    face(node, "rexray", line)
}

fn dvdcli(node: &Node, command: &str, volume: &str, more: &str) -> Ran {
    face(node, "dvdcli", &format!("{command} --volumedriver={} --volumename={volume} {more}", node.endpoint))
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut named = 0;
    for row in include_str!("../../docs/deletes.md").lines().filter(|line| line.starts_with("| ") && !line.contains("| shown by |")) {
        let cell = row.trim_end().trim_end_matches('|').rsplit(" | ").next().expect("a cell");
        let words: Vec<&str> = cell.split('`').filter(|word| word.contains("::")).collect();
        assert!(!words.is_empty(), "a row names no test: {row}");
        for word in words {
            let (target, test) = word.split_once("::").expect("a target and a test");
            let source = std::fs::read_to_string(tests.join(format!("{target}.rs"))).unwrap_or_else(|e| panic!("{target}: {e}"));
            assert!(source.contains(&format!("\nfn {test}() {{")), "{target} has no test {test}");
            named += 1;
        }
    }
    assert!(named > 40, "only {named} were found");
}

#[test]
fn dunnage_volume_rm_deletes_what_nobody_holds_and_refuses_what_somebody_does() {
    let mut node = with_data();
    node.mount("pg", "c1");
    let said = node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}") && said.contains("c1") && said.contains("stop the container"), "{said}");
    node.assert_data("pg");
    node.unmount("pg", "c1");
    node.assert_data("pg");
    assert_eq!(node.cli(&["volume", "rm", "pg"]).ok(), "pg");
    node.assert_gone("pg");
    node.finish();
}

#[test]
fn a_volume_that_is_attached_is_not_removed() {
    let mut node = with_data();
    node.cli(&["volume", "attach", "pg"]).ok();
    let said = node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}") && said.contains("the device alone"), "{said}");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use{n1}"), "{said}");
    node.assert_data("pg");
    node.cli(&["volume", "detach", "pg"]).ok();
    node.assert_data("pg");
    node.cli(&["volume", "rm", "pg"]).ok();
    node.assert_gone("pg");
    node.finish();
}

#[test]
fn making_a_volume_that_is_there_keeps_its_data_whatever_it_is_to_be() {
    let mut node = with_data();
    let said = node.cli(&["volume", "create", "pg", "-o", "size=64M"]);
    assert!(said.code == 0 && said.err.contains("already"), "{}", said.err);
    for other in ["size=128M", "fs=xfs"] {
        let said = node.cli(&["volume", "create", "pg", "-o", "overwritefs=true", "-o", other]).fails(4);
        assert!(said.contains("exists_incompatible"), "{said}");
    }
    node.assert_data("pg");
    node.finish();
}

#[test]
fn letting_go_of_a_volume_in_any_way_keeps_its_data() {
    let mut node = with_data();
    node.mount("pg", "c1");
    node.cli(&["holder", "release", "pg"]).ok();
    node.wait_until_released("pg");
    node.assert_data("pg");
    node.cli(&["volume", "mount", "pg"]).ok();
    node.cli(&["volume", "unmount", "pg"]).ok();
    node.cli(&["volume", "attach", "pg"]).ok();
    node.cli(&["volume", "detach", "pg"]).ok();
    node.wait_until_released("pg");
    node.assert_data("pg");
    node.finish();
}

/// What somebody else has put into the pool.
fn image_of_others(node: &Node, name: &str) {
    let (image, at) = (node.image(name), node.folder.join("at"));
    std::fs::create_dir_all(image.parent().expect("a folder")).and_then(|()| std::fs::create_dir_all(&at)).expect("a folder");
    let (image, at) = (image.display(), at.display());
    sh(&format!("truncate -s 64M {image}; mke2fs -q -t ext4 {image}; mount -o loop {image} {at}"));
    sh(&format!("echo the data of {name} >{at}/data-of-a-test; umount {at}"));
}

#[test]
fn adopting_keeps_the_data_of_what_is_adopted() {
    let mut node = Node::started();
    image_of_others(&node, "theirs");
    node.cli(&["volume", "adopt", "theirs"]).ok();
    node.assert_data("theirs");
    node.cli(&["volume", "adopt", "theirs"]).ok();
    node.assert_data("theirs");
    node.finish();
}

#[test]
fn adopt_overwrite_deletes_what_is_no_volume_of_ours_and_nobody_uses() {
    let mut node = with_data();
    let said = node.cli(&["volume", "adopt", "--overwrite", "pg"]).fails(4);
    assert!(said.contains("dunnage volume rm"), "{said}");
    node.assert_data("pg");
    image_of_others(&node, "theirs");
    let device = sh(&format!("losetup -f --show {}", node.image("theirs").display()));
    let said = node.cli(&["volume", "adopt", "--overwrite", "theirs"]).fails(5);
    assert!(said.contains("in use"), "{said}");
    assert!(sh(&format!("debugfs -R 'cat data-of-a-test' {device} 2>&1")).contains("the data of theirs"));
    sh(&format!("losetup -d {device}"));
    node.cli(&["volume", "adopt", "--overwrite", "theirs"]).ok();
    let path = node.cli(&["volume", "mount", "theirs"]).ok();
    assert_eq!(sh(&format!("ls -A {path}")), "", "an empty volume is in its place");
    node.cli(&["volume", "unmount", "theirs"]).ok();
    node.finish();
}

#[test]
fn a_daemon_that_goes_in_whatever_way_takes_no_data_with_it() {
    let mut node = with_data();
    let path = node.mount("pg", "c1");
    let there = || sh(&format!("cat {}/data-of-a-test", path.display()));
    node.kill();
    assert_eq!(there(), "the data of pg");
    node.start();
    node.stop();
    assert_eq!(there(), "the data of pg");
    node.start();
    node.cli(&["stop", "--release"]).ok();
    node.wait_until_dead();
    assert!(!path.join("data-of-a-test").exists(), "it is not mounted");
    node.start();
    node.assert_data("pg");
    node.finish();
}

#[test]
fn a_run_folder_that_was_wiped_takes_no_data_with_it() {
    let mut node = with_data();
    let path = node.mount("pg", "c1");
    node.kill();
    sh(&format!("rm -r {}", node.run_dir().display()));
    node.start();
    assert_eq!(sh(&format!("cat {}/data-of-a-test", path.display())), "the data of pg", "the mount is left alone");
    let said = node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}"), "somebody had it: {said}");
    node.unmount("pg", "c1");
    node.assert_data("pg");
    node.finish();
}

#[test]
fn uninstalling_and_installing_again_keeps_every_volume() {
    let mut node = with_data();
    let units = node.folder.join("units");
    sh(&format!("mkdir {0}; mount --bind {0} /etc/systemd/system", units.display()));
    let prefix = node.folder.join("prefix").display().to_string();
    node.cli(&["install", "--prefix", &prefix]).ok();
    node.cli(&["stop"]).ok();
    node.wait_until_dead();
    node.cli(&["uninstall", "--prefix", &prefix]).ok();
    assert!(!Path::new(&prefix).join("bin/dunnage").exists());
    node.cli(&["install", "--prefix", &prefix]).ok();
    sh("umount /etc/systemd/system");
    node.start();
    node.assert_data("pg");
    node.finish();
}

#[test]
fn a_configuration_that_names_another_pool_or_endpoint_hides_volumes_and_deletes_none() {
    let mut node = with_data();
    node.stop();
    node.configure(&format!("drivers: {{ local: {{ type: local, pool: {}/other }} }}\n", node.folder.display()));
    node.start();
    assert_eq!(node.cli(&["volume", "ls", "-q"]).ok(), "");
    node.stop();
    node.configure("endpoints: { docker: [ { name: second, driver: local } ] }\n");
    node.endpoint = "second";
    node.start();
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("not_found") && said.contains("endpoint dunnage"), "{said}");
    node.stop();
    node.configure("");
    node.endpoint = "dunnage";
    node.start();
    node.assert_data("pg");
    node.finish();
}

#[test]
fn dvdcli_remove_deletes_what_nobody_holds_and_refuses_what_somebody_does() {
    let mut node = with_data();
    dvdcli(&node, "mount", "pg", "").ok();
    let said = dvdcli(&node, "remove", "pg", "").fails(1);
    assert!(said.contains("in_use{n1}"), "{said}");
    node.assert_data("pg");
    dvdcli(&node, "unmount", "pg", "").ok();
    node.assert_data("pg");
    dvdcli(&node, "remove", "pg", "").ok();
    node.assert_gone("pg");
    node.finish();
}

#[test]
fn dvdcli_mounts_what_is_there_with_its_data_whatever_the_options_say() {
    let mut node = with_data();
    let ran = dvdcli(&node, "mount", "pg", "--volumeopts=overwritefs=true --volumeopts=newFsType=xfs --volumeopts=size=1");
    assert!(ran.code == 0 && ran.err.contains("fs=ext4") && ran.err.contains("xfs"), "{}", ran.err);
    let path = ran.ok();
    assert_eq!(sh(&format!("cat {path}/data-of-a-test; stat -f -c %T {path}")), "the data of pg\next2/ext3");
    dvdcli(&node, "unmount", "pg", "").ok();
    node.assert_data("pg");
    node.finish();
}

#[test]
fn dvdcli_create_of_what_is_there_keeps_its_data() {
    let mut node = with_data();
    dvdcli(&node, "create", "pg", "--volumeopts=size=64M").ok();
    let said = dvdcli(&node, "create", "pg", "--volumeopts=size=1 --volumeopts=overwritefs=true").fails(1);
    assert!(said.contains("exists_incompatible"), "{said}");
    node.assert_data("pg");
    node.finish();
}

#[test]
fn rexray_volume_rm_deletes_what_nobody_holds_with_or_without_force() {
    let mut node = with_data();
    node.fill("redis");
    node.mount("pg", "c1");
    for line in ["volume rm pg", "volume rm pg --force"] {
        let said = rexray(&node, line).fails(1);
        assert!(said.contains("in_use{n1}") && said.contains("c1"), "{said}");
    }
    node.unmount("pg", "c1");
    node.assert_data("pg");
    rexray(&node, "volume rm p").fails(1);
    node.assert_data("pg");
    assert_eq!(rexray(&node, "volume rm pg").ok(), "pg");
    assert_eq!(rexray(&node, "volume rm redis --force").ok(), "redis");
    node.assert_gone("pg");
    node.assert_gone("redis");
    node.finish();
}

#[test]
fn rexray_volume_rm_by_an_expression_deletes_all_that_fit_and_nobody_holds() {
    let mut node = Node::started();
    for volume in ["db-1", "db-2", "my-db", "web"] {
        node.fill(volume);
    }
    node.mount("db-2", "c1");
    assert_eq!(rexray(&node, "volume rm /db/ -n").ok(), "db-1\ndb-2\nmy-db");
    node.assert_data("my-db");
    let ran = rexray(&node, "volume rm /db/ --continueOnError");
    assert!(ran.code == 1 && ran.err.contains("in_use{n1}") && ran.err.contains("db-2"), "{}", ran.err);
    // An expression fits anywhere in a name.
    assert_eq!(ran.out, "db-1\nmy-db\n");
    node.assert_gone("db-1");
    node.assert_gone("my-db");
    node.assert_data("web");
    node.unmount("db-2", "c1");
    node.assert_data("db-2");
    node.finish();
}

#[test]
fn rexray_overwrite_fs_overwrites_nothing() {
    let mut node = with_data();
    let ran = rexray(&node, "volume create pg --size 64MiB --overwriteFS");
    assert!(ran.code == 1 && ran.err.contains("already") && ran.err.contains("never overwritten"), "{}", ran.err);
    rexray(&node, "volume create pg --size 1 --fsType xfs --overwriteFS").fails(1);
    node.assert_data("pg");
    let ran = rexray(&node, "volume mount pg --overwriteFS --fsType xfs -q");
    assert!(ran.err.contains("never overwritten") && ran.err.contains("it has ext4"), "{}", ran.err);
    assert_eq!(ran.code, 0);
    // Both command lines are one holder.
    node.assert_data("pg");
    node.wait_until_released("pg");
    rexray(&node, "volume attach pg").ok();
    rexray(&node, "volume detach pg").ok();
    node.assert_data("pg");
    node.finish();
}

#[test]
fn rexray_device_format_formats_nothing_that_has_data() {
    let mut node = with_data();
    let image = node.image("pg").display().to_string();
    let said = rexray(&node, &format!("device format --deviceName {image} --overwriteFS")).fails(1);
    assert!(said.contains("made of"), "{said}");
    node.assert_data("pg");
    let (disk, at) = (node.folder.join("disk"), node.folder.join("at"));
    std::fs::create_dir(&at).expect("a folder");
    let (disk, at) = (disk.display(), at.display());
    sh(&format!("truncate -s 64M {disk}; mke2fs -q -t ext4 {disk}; mount -o loop {disk} {at}; echo mine >{at}/x; umount {at}"));
    let before = sh(&format!("sha256sum {disk}"));
    let said = rexray(&node, &format!("device format --deviceName {disk} --overwriteFS --fsType xfs")).fails(1);
    assert!(said.contains("not_blank{ext4"), "{said}");
    assert_eq!(sh(&format!("sha256sum {disk}")), before);
    assert_eq!(sh(&format!("mount -o loop {disk} {at}; cat {at}/x; umount {at}")), "mine");
    node.finish();
}

#[test]
fn an_endpoint_with_remove_refuse_removes_nothing_and_names_the_command_that_does() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local, remove: refuse } ] }\n");
    node.start();
    node.fill("pg");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("permission") && said.contains("remove: refuse") && said.contains("dunnage volume rm pg"), "{said}");
    let said = dvdcli(&node, "remove", "pg", "").fails(1);
    assert!(said.contains("dunnage volume rm pg"), "{said}");
    node.assert_data("pg");
    node.cli(&["volume", "rm", "pg"]).ok();
    node.assert_gone("pg");
    node.finish();
}

/// A configuration of REX-Ray's, with one of its operations turned off.
fn under_rex_ray_s_configuration(off: &str) -> Node {
    let mut node = Node::new();
    node.configure(&format!(
        "libstorage:\n  service: local\n  integration: {{ volume: {{ operations: {{ {off}: {{ disable: true }} }} }} }}\nlocal: {{ pool: {} }}\n",
        node.pool().display()
    ));
    node.endpoint = "rexray";
    node.start();
    node.fill("pg");
    node
}

#[test]
fn under_rex_ray_s_remove_disable_a_removal_is_refused_and_the_data_stays() {
    let mut node = under_rex_ray_s_configuration("remove");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("permission") && said.contains("dunnage volume rm pg"), "{said}");
    node.assert_data("pg");
    node.finish();
}

#[test]
fn under_rex_ray_s_create_disable_what_is_there_keeps_its_data_and_nothing_is_made() {
    let mut node = under_rex_ray_s_configuration("create");
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "overwritefs": "true", "newfstype": "xfs" } }));
    node.assert_data("pg");
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "new" }));
    assert!(said.starts_with("permission") && said.contains("dunnage volume create new"), "{said}");
    node.assert_gone("new");
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    node.assert_gone("pg");
    node.finish();
}
