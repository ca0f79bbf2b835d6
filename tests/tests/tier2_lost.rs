//! What the daemon finds at its start when something of its own was lost, torn, or written by another version, while
//! volumes are mounted: it takes nothing away, and says what it found.

use std::path::PathBuf;

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::{Value, json};

/// A node whose volume `pg` is mounted for `c1`, with a file in it, and whose daemon was killed.
fn killed() -> (Node, PathBuf, Option<u64>) {
    let node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    let path = node.mount("pg", "c1");
    eventually("its holder is confirmed", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    sh(&format!("echo written > {}/x; sync -f {0}/x", path.display()));
    let mount = kernel::mount_id(&path);
    let mut node = node;
    node.kill();
    (node, path, mount)
}

/// It is mounted as it was, and its data is there.
#[track_caller]
fn untouched(path: &std::path::Path, mount: Option<u64>) {
    assert!(mount.is_some() && kernel::mount_id(path) == mount, "the mount was touched");
    assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
}

fn ledger(node: &Node) -> PathBuf {
    node.run_dir().join("ledger/local/pg")
}

/// Writes the ledger's entry of pg anew, as another version would have.
fn rewrite(node: &Node, change: impl FnOnce(&mut Value)) {
    let bytes = std::fs::read(ledger(node)).expect("the ledger");
    let word = |slot: &[u8], at: usize| u32::from_le_bytes(slot[at..at + 4].try_into().expect("four")) as usize;
    let slot = bytes.len() / 2;
    let generation = |slot: &[u8]| u64::from_le_bytes(slot[4..12].try_into().expect("eight"));
    let newest = bytes.chunks(slot).filter(|slot| slot.starts_with(b"DNLG")).max_by_key(|slot| generation(slot)).expect("a slot");
    let mut entry: Value = serde_json::from_slice(&newest[20..20 + word(newest, 12)]).expect("json");
    change(&mut entry);
    let (text, number) = (entry.to_string().into_bytes(), generation(newest) + 1);
    let sum = crc32fast::hash(&[&number.to_le_bytes()[..], &text].concat());
    let frame = [&b"DNLG"[..], &number.to_le_bytes(), &(text.len() as u32).to_le_bytes(), &sum.to_le_bytes(), &text].concat();
    let mut bytes = vec![0; 2 * slot];
    bytes[..frame.len()].copy_from_slice(&frame);
    std::fs::write(ledger(node), bytes).expect("the ledger");
}

fn end(node: &Node, id: &str) {
    node.unmount("pg", id);
    node.wait_until_released("pg");
}

#[test]
fn a_torn_newest_entry_of_the_ledger_falls_back_to_the_one_before_and_the_mount_stays() {
    let (mut node, path, mount) = killed();
    let mut bytes = std::fs::read(ledger(&node)).expect("the ledger");
    let slot = bytes.len() / 2;
    let generation = |slot: &[u8]| u64::from_le_bytes(slot[4..12].try_into().expect("eight"));
    let newest = usize::from(generation(&bytes[slot..]) > generation(&bytes[..slot]));
    bytes[newest * slot + 40..newest * slot + 60].fill(0);
    std::fs::write(ledger(&node), bytes).expect("the ledger");
    node.start();
    untouched(&path, mount);
    // The one before says that the answer was on its way.
    assert_eq!(node.holders("pg"), [(Some("c1".to_owned()), 0, 0, 1)]);
    end(&node, "c1");
}

#[test]
fn an_entry_of_the_ledger_that_is_all_noise_leaves_the_mount_to_an_unknown_holder_and_says_so() {
    let (mut node, path, mount) = killed();
    let length = std::fs::metadata(ledger(&node)).expect("the ledger").len();
    sh(&format!("head -c {length} /dev/urandom > {}", ledger(&node).display()));
    node.start();
    untouched(&path, mount);
    assert_eq!(node.holders("pg"), [(None, 1, 0, 0)]);
    assert!(node.log().contains("has no whole entry") && node.log().contains("kept for an unknown holder"), "{}", node.log());
    end(&node, "c1");
}

#[test]
fn a_ledger_of_a_newer_version_that_can_be_read_is_read_and_the_mount_stays() {
    let (mut node, path, mount) = killed();
    rewrite(&node, |entry| {
        entry["format"] = 2.into();
        entry["of_a_newer_version"] = json!({ "deep": [1, 2] });
        entry["holders"][0]["priority"] = 7.into();
    });
    node.start();
    untouched(&path, mount);
    assert_eq!(node.holders("pg"), [(Some("c1".to_owned()), 1, 0, 0)]);
    end(&node, "c1");
}

#[test]
fn a_ledger_that_only_a_newer_version_can_read_keeps_the_daemon_from_starting_and_nothing_is_touched() {
    let (mut node, path, mount) = killed();
    rewrite(&node, |entry| (entry["format"], entry["min_reader"]) = (9.into(), 9.into()));
    let before = std::fs::read(ledger(&node)).expect("the ledger");
    node.spawn();
    node.wait_until_dead();
    assert!(node.log().contains("has format 9") && node.log().contains("use the newer version"), "{}", node.log());
    assert_eq!(std::fs::read(ledger(&node)).expect("the ledger"), before);
    untouched(&path, mount);
    rewrite(&node, |entry| (entry["format"], entry["min_reader"]) = (1.into(), 1.into()));
    node.start();
    end(&node, "c1");
}

#[test]
fn a_record_that_only_a_newer_version_can_read_refuses_its_volume_alone_and_is_not_touched() {
    let (mut node, path, mount) = killed();
    let record = node.pool().join("pg/record.json");
    let old = std::fs::read_to_string(&record).expect("the record");
    let mut newer: Value = serde_json::from_str(&old).expect("json");
    (newer["format"], newer["min_reader"]) = (9.into(), 9.into());
    std::fs::write(&record, newer.to_string()).expect("the record");
    node.start();
    untouched(&path, mount);
    for (call, body) in
        [("VolumeDriver.Remove", json!({ "Name": "pg" })), ("VolumeDriver.Create", json!({ "Name": "pg", "Opts": { "size": "16M" } }))]
    {
        let said = node.plugin_err(call, &body);
        assert!(said.contains("format 9"), "{call}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&record).expect("the record"), newer.to_string());
    untouched(&path, mount);
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "other", "Opts": { "size": "16M" } }));
    // Letting go needs no record: the kernel says that the image is where it was.
    node.unmount("pg", "c1");
    assert!(!is_mounted(&path));
    std::fs::write(&record, old).expect("the record");
    assert_eq!(sh(&format!("cat {}/x", node.mount("pg", "c2").display())), "written");
    end(&node, "c2");
}

/// As after a reboot; and as in a container or a namespace that shows another one.
#[test]
fn with_a_new_boot_id_the_holders_of_the_old_boot_hold_nothing() {
    let (mut node, path, _) = killed();
    sh(&format!("umount {}; losetup -d $(losetup -n -O NAME -j {})", path.display(), node.image("pg").display()));
    rewrite(&node, |entry| entry["boot"] = "another-boot".into());
    node.start();
    assert_eq!(node.holders("pg"), []);
    assert!(node.log().contains("is of an earlier boot"), "{}", node.log());
    assert_eq!(sh(&format!("cat {}/x", node.mount("pg", "c2").display())), "written");
    end(&node, "c2");
}

#[test]
fn with_a_new_boot_id_what_is_mounted_all_the_same_is_kept() {
    let (mut node, path, mount) = killed();
    rewrite(&node, |entry| entry["boot"] = "another-boot".into());
    node.start();
    untouched(&path, mount);
    assert_eq!(node.holders("pg"), [(None, 1, 0, 0)]);
    end(&node, "c1");
}

#[test]
fn a_pool_that_was_wiped_under_a_mounted_volume_destroys_nothing_and_is_told() {
    let (mut node, path, mount) = killed();
    let saved = node.folder.join("saved");
    sh(&format!("cp -r --sparse=always {} {}; rm -r {0}", node.pool().display(), saved.display()));
    node.start();
    untouched(&path, mount);
    let shown = node.cli(&["holder", "ls"]).ok();
    assert!(shown.lines().any(|row| row.starts_with("pg ") && row.contains("c1")), "{shown}");
    // A new volume of that name would be taken for it.
    for (call, body) in [
        ("VolumeDriver.Create", json!({ "Name": "pg", "Opts": { "size": "16M" } })),
        ("VolumeDriver.Unmount", json!({ "Name": "pg", "ID": "c1" })),
        ("VolumeDriver.Create", json!({ "Name": "pg", "Opts": { "size": "16M" } })),
        ("VolumeDriver.Remove", json!({ "Name": "pg" })),
        ("VolumeDriver.Get", json!({ "Name": "pg" })),
    ] {
        let said = node.plugin_err(call, &body);
        assert!(said.contains("the last copy") && said.contains("rescue it first: cp"), "{call}: {said}");
    }
    let said = node.cli(&["volume", "inspect", "pg"]).fails(8);
    assert!(said.contains("the last copy"), "{said}");
    untouched(&path, mount);
    // Put back, it is as it was.
    sh(&format!("mkdir -p {0}; cp -r --sparse=always {1}/. {0}/", node.pool().display(), saved.display()));
    node.wait_until_released("pg");
    assert!(node.mount("pg", "c2").join("x").exists());
    end(&node, "c2");
}
