//! Making volumes larger, with the real tools and the real kernel: in use and not, and killed at every point.

use std::path::Path;

use dunnage_tests::{Node, http, kernel, sh, skip};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn create(node: &Node, name: &str, fs: &str, size: &str) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": name, "Opts": { "fs": fs, "size": size } }));
}

fn inspect(node: &Node, name: &str) -> Value {
    serde_json::from_str(&node.cli(&["volume", "inspect", "-o", "json", name]).ok()).expect("json")
}

/// How large the filesystem that is mounted there says that it is.
fn shown(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("statvfs");
    stat.f_blocks * stat.f_frsize
}

/// A filesystem shows less than its device has: xfs by its log of 64 MiB, ext4 by its tables of inodes.
#[track_caller]
fn assert_fills(path: &Path, size: u64) {
    let shown = shown(path);
    assert!(shown > size.saturating_sub(112 * MIB) && shown <= size, "{} has {shown} of {size}", path.display());
}

/// The kernel makes an ext4 larger in use for who has CAP_SYS_RESOURCE.
fn ext4_grows_in_use() -> bool {
    let have = rustix::thread::capabilities(None).expect("capabilities");
    have.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
}

#[test]
fn a_volume_that_nobody_has_is_larger_at_its_next_mount_and_has_its_data() {
    let mut node = Node::started();
    for (fs, small, large) in [("ext4", 64, 300), ("xfs", 300, 500), ("btrfs", 128, 400)] {
        create(&node, fs, fs, &format!("{small}M"));
        let path = node.mount(fs, "a");
        assert_fills(&path, small * MIB);
        node.fill(fs);
        node.unmount(fs, "a");
        let said = node.cli(&["volume", "resize", fs, &format!("{large}M")]);
        assert!(said.err.contains("grows when it is mounted next"), "{}", said.err);
        assert_eq!(said.ok(), fs);
        let info = inspect(&node, fs);
        assert_eq!((&info["spec"]["size"], &info["growing"]), (&(large * MIB).into(), &true.into()));
        assert!(node.cli(&["volume", "inspect", fs]).ok().contains("its filesystem grows when it is mounted next"));
        let path = node.mount(fs, "b");
        assert_fills(&path, large * MIB);
        node.assert_data(fs);
        assert_eq!(inspect(&node, fs)["growing"], Value::Null, "{fs}: it is done");
        node.unmount(fs, "b");
        let said = node.cli(&["volume", "resize", fs, &format!("{large}M")]);
        assert!(said.err.contains("has that size"), "{}", said.err);
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": fs }));
    }
    node.finish();
}

#[test]
fn a_volume_in_use_is_larger_at_once_where_the_kernel_can_do_that_and_nobody_is_disturbed() {
    let mut node = Node::started();
    for (fs, small, large) in [("ext4", 64, 300), ("xfs", 300, 500), ("btrfs", 128, 400)] {
        create(&node, fs, fs, &format!("{small}M"));
        let path = node.mount(fs, "a");
        let mount = kernel::mount_id(&path).expect("mounted");
        node.fill(fs);
        let open = std::fs::File::create(path.join("open")).expect("a file");
        let said = node.cli(&["volume", "resize", fs, &format!("{large}M")]);
        if fs == "ext4" && !ext4_grows_in_use() {
            skip("NOT POSSIBLE HERE: online ext4 growth (root lacks CAP_SYS_RESOURCE)");
            assert!(said.err.contains("grows when it is mounted next"), "{}", said.err);
            assert_fills(&path, small * MIB);
        } else {
            assert!(said.err.contains(": grown ("), "{}", said.err);
            assert_fills(&path, large * MIB);
        }
        assert_eq!(kernel::mount_id(&path), Some(mount), "{fs}: it is the same mount");
        open.set_len(1).expect("still writable");
        node.assert_data(fs);
        drop(open);
        node.unmount(fs, "a");
        assert_fills(&node.mount(fs, "b"), large * MIB);
        node.unmount(fs, "b");
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": fs }));
    }
    node.finish();
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let mut node = Node::started();
    create(&node, "pg", "ext4", "64M");
    let before = std::fs::read(node.pool().join("pg/record.json")).expect("a record");
    for (size, says) in [
        ("32M", "no volume becomes smaller"),
        ("lots", "invalid_argument{size}"),
        ("2000000TiB", "maximum"),
        ("0", "invalid_argument{size}"),
    ] {
        let said = node.cli(&["volume", "resize", "pg", size]).fails(2);
        assert!(said.contains(says) && said.contains("pg"), "{size}: {said}");
    }
    let said = node.cli(&["volume", "resize", "nobody", "1G"]).fails(3);
    assert!(said.contains("not_found"), "{said}");
    create(&node, "ro", "ext4", "64M");
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "readers", "Opts": { "ro": "true", "size": "64M" } }));
    let said = node.cli(&["volume", "resize", "readers", "1G"]).fails(2);
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(std::fs::read(node.pool().join("pg/record.json")).expect("a record"), before);
    assert_eq!(node.image("pg").metadata().expect("an image").len(), 64 * MIB);
    // Another create of that name sees the size that it has now.
    node.cli(&["volume", "resize", "pg", "100M"]).ok();
    create(&node, "pg", "ext4", "100M");
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M" } }));
    assert!(said.contains("asked 64MiB, is 100MiB"), "{said}");
    node.finish();
}

#[test]
fn a_pool_promises_no_more_to_a_volume_that_grows_than_to_a_new_one() {
    let mut node = Node::new();
    node.configure("drivers: { local: { type: local, overcommit: 100% } }\n");
    node.start();
    create(&node, "pg", "ext4", "64M");
    let said = node.cli(&["volume", "resize", "pg", "1000TiB"]).fails(11);
    assert!(said.contains("limit_reached") && said.contains("would promise more"), "{said}");
    assert_eq!(node.image("pg").metadata().expect("an image").len(), 64 * MIB);
    node.finish();
}

#[test]
fn a_thick_volume_is_given_the_space_that_it_grows_by() {
    let mut node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "t", "Opts": { "thick": "true", "size": "32M" } }));
    node.cli(&["volume", "resize", "t", "80M"]).ok();
    let spent = std::os::unix::fs::MetadataExt::blocks(&node.image("t").metadata().expect("an image")) * 512;
    assert!(spent >= 80 * MIB, "{spent}");
    assert_fills(&node.mount("t", "a"), 80 * MIB);
    node.unmount("t", "a");
    node.finish();
}

#[test]
fn law_5_no_tool_touches_another_filesystem_than_the_one_that_was_to_grow() {
    let mut node = Node::started();
    create(&node, "pg", "ext4", "64M");
    node.cli(&["volume", "resize", "pg", "200M"]).ok();
    let image = node.image("pg").display().to_string();
    sh(&format!("tune2fs -U random {image} && sync {image}"));
    let before = sh(&format!("sha256sum {image}"));
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "a" }));
    assert!(said.contains("not the filesystem that was recorded"), "{said}");
    assert_eq!(sh(&format!("sha256sum {image}")), before);
    node.finish();
}

/// Asks, somebody dies at this point, and the daemon lives again if it was the daemon.
fn killed_at(node: &mut Node, point: &str, ask: impl FnOnce(&Node)) {
    node.die_at(point);
    ask(node);
    if point.starts_with("helper/") || point.starts_with("tool/") {
        node.somebody_died(point);
    } else {
        node.wait_until_dead();
        node.start();
    }
}

#[test]
fn law_4_a_growth_that_is_killed_at_any_point_is_finished_by_the_next_and_costs_no_data() {
    for (fs, small) in [("ext4", 32), ("xfs", 300)] {
        let mut node = Node::new();
        node.allow_crashes();
        node.start();
        // A mount that is killed may have been answered, and then it is one more.
        let let_go = |node: &Node| {
            (0..2).for_each(|_| node.unmount("v", "a"));
            node.wait_until_released("v");
        };
        let resize = |node: &Node, mib: u64| node.cli(&["volume", "resize", "v", &format!("{mib}MiB")]);
        create(&node, "v", fs, &format!("{small}M"));
        node.mount("v", "a");
        node.fill("v");
        node.unmount("v", "a");
        // A peaceful growth, and the mount that finishes it: by these points they come.
        node.passed();
        let mut size = small + 128;
        resize(&node, size).ok();
        let asked = node.passed();
        node.mount("v", "a");
        let mounted: Vec<String> = node.passed().into_iter().filter(|point| point.contains("grow") || point.starts_with("tool/")).collect();
        assert!(asked.iter().any(|point| point.contains("expand")) && mounted.iter().any(|point| point.contains("grown")));
        assert!(mounted.iter().any(|point| point.starts_with("tool/")), "{mounted:?}");
        let of_two = |points: Vec<String>, during: bool| points.into_iter().map(move |point| (point, during)).collect::<Vec<_>>();
        let all = [of_two(asked, false), of_two(mounted, true)].concat();
        for (point, in_mount) in &all {
            eprintln!("{fs}: {point}");
            let_go(&node);
            size += 128;
            if *in_mount {
                resize(&node, size).ok();
                let body = json!({ "Name": "v", "ID": "a" }).to_string();
                killed_at(&mut node, point, |node| drop(http::post(&node.socket(), "/VolumeDriver.Mount", body.as_bytes())));
            } else {
                killed_at(&mut node, point, |node| drop(resize(node, size)));
                // The same words again.
                resize(&node, size).ok();
            }
            let path = node.mount("v", "a");
            // Where the growth failed the mount goes on; then the next finishes it.
            if inspect(&node, "v")["growing"] == true {
                let_go(&node);
                node.mount("v", "a");
            }
            assert_eq!(inspect(&node, "v")["growing"], Value::Null, "{fs}: {point}");
            assert_fills(&path, size * MIB);
            node.assert_data("v");
        }
        let_go(&node);
        let image = node.image("v").display().to_string();
        match fs {
            "ext4" => drop(sh(&format!("e2fsck -fn {image}"))),
            _ => drop(sh(&format!("xfs_repair -n -f {image}"))),
        }
        node.finish();
    }
}
