//! The driver `local` with a folder for each volume, and REX-Ray's `vfs`, whose volumes such folders are.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use dunnage_tests::container::{self, Container};
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel, sh};
use serde_json::{Value, json};

const CONFIG: &str = "drivers: { local: { type: local, store: folders } }\n";

fn node() -> Node {
    let mut node = Node::new();
    node.configure(CONFIG);
    node.start();
    node
}

fn create(node: &Node, name: &str, options: Value) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": name, "Opts": options }));
}

fn content(node: &Node, name: &str) -> PathBuf {
    node.pool().join(name).join("data")
}

#[test]
fn a_folder_is_made_mounted_shared_unmounted_and_removed_like_any_volume() {
    let mut node = node();
    create(&node, "pg", json!({ "uid": "1234", "mode": "0750", "rootPath": "data", "mountOptions": "noexec" }));
    let path = node.mount("pg", "a");
    assert_eq!(path, node.mountpoint("pg").join("data"));
    let meta = std::fs::metadata(&path).expect("data");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (1234, 0o750));
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let place = node.mountpoint("pg").display().to_string();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&place)).expect("mounted");
    assert!(line.contains("nosuid") && line.contains("nodev") && line.contains("noexec"), "{line}");
    std::fs::write(path.join("x"), "kept").expect("write");
    assert_eq!(node.mount("pg", "b"), path);
    node.unmount("pg", "a");
    assert!(is_mounted(&node.mountpoint("pg")), "b has it");
    node.unmount("pg", "b");
    assert!(!is_mounted(&node.mountpoint("pg")));
    assert_eq!(std::fs::read_to_string(node.mount("pg", "c").join("x")).expect("x"), "kept");
    node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    node.unmount("pg", "c");
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(!node.pool().join("pg").exists());
    node.finish();
}

#[test]
fn what_a_folder_cannot_have_is_refused_or_told_and_never_pretended() {
    let mut node = node();
    for (key, value) in [("size", "1G"), ("fs", "xfs"), ("thick", "true")] {
        let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { key: value } }));
        assert!(said.starts_with(&format!("invalid_argument{{{key}}}")) && said.contains("folders"), "{said}");
    }
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "mountOptions": "commit=5" } }));
    assert!(said.contains("{mountOptions}") && said.contains("noatime"), "{said}");
    assert!(node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    node.stop();
    node.configure("drivers: { local: { type: local, store: folders } }\nvolumes: { hints: warn }\n");
    node.start();
    create(&node, "pg", json!({ "size": "1G" }));
    create(&node, "pg", json!({ "size": "2G" }));
    let got = node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }));
    assert_eq!(got["Volume"]["Status"]["unheeded hints"]["size"], "1GiB", "{got}");
    let said = node.cli(&["volume", "attach", "pg"]).fails(2);
    assert!(said.contains("is a folder"), "{said}");
    node.finish();
}

#[test]
fn a_folder_stays_mounted_over_a_kill_and_over_the_loss_of_the_ledger() {
    let _none_begins = container::none_begins();
    let mut node = node();
    create(&node, "pg", json!({}));
    let path = node.mount("pg", "a");
    let before = kernel::mount_id(&path);
    node.kill();
    node.start();
    assert_eq!((kernel::mount_id(&path), node.holders("pg").len()), (before, 1));
    assert_eq!(node.mount("pg", "b"), path);
    node.unmount("pg", "a");
    node.unmount("pg", "b");
    assert!(!is_mounted(&path));
    node.mount("pg", "a");
    node.kill();
    sh(&format!("rm -r {}", node.run_dir().display()));
    node.start();
    assert_eq!(node.holders("pg"), [(None, 1, 0, 0)], "one that is unknown");
    node.unmount("pg", "a");
    assert!(!is_mounted(&path));
    node.finish();
}

#[test]
fn a_folder_that_somebody_works_in_is_busy_by_name_and_one_that_another_namespace_has_is_not_removed() {
    let mut node = node();
    create(&node, "pg", json!({}));
    let path = node.mount("pg", "a");
    let mut process = Command::new("sleep").arg("1000").current_dir(&path).spawn().expect("sleep");
    let said = node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "a" }));
    assert!(said.starts_with("in_use") && said.contains("sleep"), "{said}");
    process.kill().and_then(|()| process.wait()).expect("it ends");
    eventually("it is unmounted", BOUND, || !is_mounted(&path));
    let container = {
        let path = node.mount("pg", "b");
        Container::with(&path)
    };
    node.unmount("pg", "b");
    assert!(!is_mounted(&path), "a copy of the mount elsewhere keeps nothing busy");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use") && said.contains("sh (pid"), "{said}");
    assert!(content(&node, "pg").join("log").exists());
    container.end();
    eventually("it can be removed", BOUND, || node.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" })).0 == 200);
    node.finish();
}

#[test]
fn a_link_or_a_file_where_the_folder_should_be_is_no_volume() {
    let mut node = node();
    create(&node, "pg", json!({}));
    std::fs::rename(content(&node, "pg"), node.pool().join("pg/away")).expect("rename");
    std::os::unix::fs::symlink("/etc", content(&node, "pg")).expect("a link");
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "a" }));
    assert!(said.contains("no folder"), "{said}");
    assert!(!is_mounted(&node.mountpoint("pg")));
    std::fs::remove_file(content(&node, "pg")).expect("removed");
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "a" }));
    assert!(said.contains("damaged") && said.contains("cannot be found"), "{said}");
    std::fs::rename(node.pool().join("pg/away"), content(&node, "pg")).expect("put back");
    node.mount("pg", "a");
    node.unmount("pg", "a");
    node.finish();
}

#[test]
fn a_kill_at_any_point_of_any_verb_leaves_a_folder_that_is_there_or_is_not() {
    let mut node = Node::new();
    node.configure(CONFIG);
    node.allow_crashes();
    node.start();
    let verbs = [
        ("Create", json!({ "Name": "v", "Opts": {} })),
        ("Mount", json!({ "Name": "v", "ID": "a" })),
        ("Unmount", json!({ "Name": "v", "ID": "a" })),
        ("Remove", json!({ "Name": "v" })),
    ];
    let call = |node: &Node, n: usize| node.plugin_ok(&format!("VolumeDriver.{}", verbs[n].0), &verbs[n].1);
    let mut points = Vec::new();
    for n in 0..verbs.len() {
        node.passed();
        call(&node, n);
        let mut passed: Vec<String> = node.passed().into_iter().filter(|point| !point.contains("mount/confirm")).collect();
        passed.dedup();
        points.push(passed);
    }
    let mut deaths = 0;
    for (n, passed) in points.iter().enumerate() {
        for point in passed {
            for before in 0..n {
                call(&node, before);
            }
            if n > 1 {
                sh(&format!("echo kept > {}/x || true", content(&node, "v").display()));
            }
            node.die_at(point);
            let _ =
                dunnage_tests::http::try_post(&node.socket(), &format!("/VolumeDriver.{}", verbs[n].0), verbs[n].1.to_string().as_bytes());
            node.somebody_died(point);
            deaths += 1;
            node.start_unless_it_serves();
            if n == 1 || n == 2 {
                // What was written is there, whatever became of the mount.
                call(&node, 1);
                assert!(n == 1 || content(&node, "v").join("x").exists(), "{point}");
                // One unmount, or two: a kill may have come before the first was noted.
                while !node.holders("v").is_empty() {
                    call(&node, 2);
                }
                eventually("it is unmounted", BOUND, || !is_mounted(&node.mountpoint("v")));
            }
            node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "v" }));
            while !node.holders("v").is_empty() {
                call(&node, 2);
            }
            call(&node, 3);
            assert!(!node.pool().join("v").exists(), "{point}");
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 50, "{deaths}");
    node.finish();
}

/// REX-Ray's `vfs` as it leaves things: a file of JSON for each volume, and its data in the folder of mounts.
fn vfs_node() -> (Node, PathBuf) {
    let mut node = Node::new();
    node.endpoint = "rexray";
    let lib = node.state();
    let volumes = lib.join("volumes");
    std::fs::create_dir_all(lib.join("vfs/vol")).expect("folder");
    node.configure(&format!(
        "libstorage: {{ service: vfs }}\nvfs: {{ root: {0}/vfs }}\nintegration: {{ volume: {{ operations: {{ mount: {{ path: {0}/volumes }} }} }} }}\n",
        lib.display()
    ));
    for (n, name) in ["pg", "idle"].iter().enumerate() {
        let json = format!("{{\"name\":\"{name}\",\"size\":2,\"id\":\"vfs-00{n}\",\"type\":\"\"}}\n");
        std::fs::write(lib.join(format!("vfs/vol/vfs-00{n}.json")), json).expect("json");
        std::fs::create_dir_all(lib.join(format!("vfs/vol/vfs-00{n}"))).expect("folder");
        std::fs::create_dir_all(volumes.join(name).join("data")).expect("folder");
        std::fs::write(volumes.join(name).join("data/x"), *name).expect("data");
    }
    (node, volumes)
}

#[test]
fn the_volumes_of_rex_ray_s_vfs_are_taken_in_with_containers_running_and_given_back() {
    let (mut node, volumes) = vfs_node();
    let before = sh(&format!("cd {}; find vfs volumes -name log -prune -o -print | sort", node.state().display()));
    let container = Container::with(&volumes.join("pg/data"));
    node.start();
    container.goes_on();
    // Named, it is a volume at the path that it had, with what was in it.
    for name in ["pg", "idle"] {
        create(&node, name, json!({ "size": "2" }));
        let path = node.mount(name, "h");
        assert_eq!(path, volumes.join(name).join("data"));
        assert_eq!(std::fs::read_to_string(path.join("x")).expect("x"), name);
    }
    container.goes_on();
    assert!(volumes.join("pg/data/log").exists(), "the container's own file");
    node.unmount("idle", "h");
    assert!(!volumes.join("idle").exists());
    assert!(std::fs::write(volumes.join("stray"), "x").is_err());
    // A restart finds what is there.
    node.kill();
    node.start();
    container.goes_on();
    assert_eq!(node.holders("pg").len(), 1);
    let said = node.cli(&["stop", "--hand-over"]).ok();
    assert!(said.contains("pg is where REX-Ray's vfs looks for it") && said.contains("0 mounts"), "{said}");
    node.wait_until_dead();
    container.goes_on();
    let after =
        sh(&format!("cd {}; rmdir vfs/dunnage; rm -f lock; find vfs volumes -name log -prune -o -print | sort", node.state().display()));
    assert_eq!(after, before, "as it was");
    assert_eq!(std::fs::read_to_string(volumes.join("idle/data/x")).expect("x"), "idle");
    container.end();
    node.assert_nothing_left();
}

#[test]
fn what_lies_in_the_folder_of_mounts_and_is_no_volume_of_vfs_stays_and_is_named() {
    let (node, volumes) = vfs_node();
    std::fs::create_dir_all(volumes.join("other")).expect("folder");
    std::fs::write(volumes.join("other/file"), "somebody's").expect("file");
    let ran = node.cli(&["start", "-f"]);
    assert!(ran.code == 2 && ran.err.contains("other/file"), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(volumes.join("other/file")).expect("file"), "somebody's");
    node.assert_nothing_left();
}

#[test]
fn a_folder_that_a_container_was_given_a_part_of_is_not_removed_and_nothing_of_it_is() {
    let mut node = node();
    create(&node, "pg", json!({ "rootPath": "data" }));
    let path = node.mount("pg", "a");
    let container = Container::with(&path);
    // The container's own view has nothing but the folder inside.
    node.unmount("pg", "a");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use") && said.contains("sh (pid"), "{said}");
    assert!(content(&node, "pg").join("data/log").exists());
    container.end();
    eventually("it can be removed", BOUND, || node.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" })).0 == 200);
    node.finish();
}

#[test]
fn what_somebody_has_mounted_inside_of_a_folder_is_not_emptied_with_it() {
    let mut node = node();
    create(&node, "pg", json!({}));
    let inside = content(&node, "pg").join("theirs");
    let theirs = node.folder.join("theirs");
    sh(&format!("mkdir {0} {1}; echo x >{1}/file; mount --bind {1} {0}", inside.display(), theirs.display()));
    node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert_eq!(std::fs::read_to_string(theirs.join("file")).expect("file"), "x\n");
    sh(&format!("umount {}", inside.display()));
    eventually("the removal is finished", BOUND, || {
        node.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" }));
        !node.pool().join("pg").exists()
    });
    node.finish();
}

#[test]
fn a_folder_in_a_folder_in_a_folder_is_removed_however_deep() {
    let mut node = node();
    create(&node, "pg", json!({}));
    let deep = content(&node, "pg");
    sh(&format!(
        "cd {}; for n in $(seq 100); do mkdir -p a-folder-with-a-name-of-thirty-x; cd a-folder-with-a-name-of-thirty-x; done; echo x >file",
        deep.display()
    ));
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(!node.pool().join("pg").exists());
    node.finish();
}

#[test]
fn folders_and_images_lie_side_by_side_at_one_path_and_a_restart_tells_them_apart() {
    let mut node = Node::new();
    node.configure(
        "volumes: { layout: flat }\ndrivers: { aaa: { type: local, store: folders }, local: { type: local } }\nendpoints: { docker: [ { name: dunnage, driver: aaa }, { name: images, driver: local } ] }\n",
    );
    node.start();
    create(&node, "folder", json!({}));
    node.mount("folder", "a");
    node.endpoint = "images";
    create(&node, "image", json!({ "size": "64M" }));
    node.mount("image", "a");
    for wiped in [false, true] {
        node.kill();
        if wiped {
            sh(&format!("rm -r {}", node.run_dir().display()));
        }
        node.start();
        for (name, driver) in [("folder", "aaa"), ("image", "local")] {
            let text = node.cli(&["volume", "inspect", name, "--driver", driver, "-o", "json"]).ok();
            let shown: Value = serde_json::from_str(&text).expect("json");
            assert_eq!(shown["holders"].as_array().map(Vec::len), Some(1), "{name}, ledger wiped: {wiped}: {text}");
            assert!(is_mounted(&node.state().join("volumes").join(name)));
        }
    }
    for (name, endpoint) in [("folder", "dunnage"), ("image", "images")] {
        node.endpoint = endpoint;
        node.unmount(name, "a");
        assert!(!node.state().join("volumes").join(name).exists(), "{name}");
    }
    node.endpoint = "dunnage";
    node.finish();
}
