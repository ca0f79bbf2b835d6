//! Options that change how a volume is mounted, on the real kernel.

use dunnage_tests::Node;
use serde_json::json;

/// The kernel's line of a mount.
fn line(node: &Node, volume: &str) -> String {
    let path = node.mountpoint(volume).display().to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table.lines().find(|line| line.split(' ').nth(4) == Some(&path)).expect("mounted").to_owned()
}

#[test]
fn a_volume_is_mounted_with_its_mount_options_at_every_mount() {
    let mut node = Node::started();
    for fs in ["ext4", "xfs", "btrfs"] {
        let own = if fs == "ext4" { ",commit=30" } else { "" };
        node.plugin_ok(
            "VolumeDriver.Create",
            &json!({ "Name": fs, "Opts": { "size": "320M", "fs": fs, "mountOptions": format!("noatime,noexec{own}") } }),
        );
        for _ in 0..2 {
            node.mount(fs, "a");
            let line = line(&node, fs);
            assert!(line.contains("noatime") && line.contains("noexec") && line.contains("nosuid") && line.contains(own), "{line}");
            node.unmount(fs, "a");
        }
    }
    node.finish();
}

#[test]
fn mount_options_that_the_kernel_does_not_know_are_refused_at_create_by_name_and_nothing_is_made() {
    let mut node = Node::started();
    for fs in ["ext4", "xfs", "btrfs"] {
        let said = node.plugin_err(
            "VolumeDriver.Create",
            &json!({ "Name": "pg", "Opts": { "size": "320M", "fs": fs, "mountOptions": "noatime,frobnicate" } }),
        );
        assert!(said.contains("{mountOptions}") && said.contains("frobnicate"), "{said}");
        assert!(node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    }
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M", "mountOptions": "suid" } }));
    assert!(said.contains("nosuid"), "{said}");
    node.finish();
}

#[test]
fn holders_are_given_the_folder_inside_that_was_asked_for_and_it_is_theirs() {
    use std::os::unix::fs::MetadataExt;
    let mut node = Node::started();
    let options = json!({ "size": "64M", "rootPath": "/data", "uid": "1234", "mode": "0750" });
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": options }));
    let path = node.mount("pg", "a");
    assert_eq!(path, node.mountpoint("pg").join("data"));
    let meta = std::fs::metadata(&path).expect("data");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (1234, 0o750));
    let shown = node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }));
    assert_eq!(shown["Volume"]["Mountpoint"], path.display().to_string());
    // Its mode is its owner's from now on; a folder that was taken away comes back.
    std::fs::remove_dir(&path).expect("removed");
    node.unmount("pg", "a");
    assert!(node.mount("pg", "b").is_dir());
    node.unmount("pg", "b");
    node.finish();
}

#[test]
fn a_link_where_the_folder_inside_should_be_leads_nowhere() {
    let mut node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M", "rootPath": "a/b" } }));
    let path = node.mount("pg", "a");
    let above = path.parent().expect("a").to_owned();
    std::fs::remove_dir(&path).expect("removed");
    std::fs::remove_dir(&above).expect("removed");
    let elsewhere = node.folder.join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("folder");
    std::os::unix::fs::symlink(&elsewhere, &above).expect("a link");
    node.unmount("pg", "a");
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "b" }));
    assert!(said.contains("a/b"), "{said}");
    assert!(!elsewhere.join("b").exists());
    node.wait_until_released("pg");
    node.finish();
}
