//! What is found in an image when it is to be mounted: only what was recorded is, and whatever else it is stays as it is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::json;

/// A node with a volume `pg` of 16 MiB that has a file in it and is not mounted.
fn with_data() -> Node {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M"]).ok();
    let path = node.mount("pg", "w");
    sh(&format!("echo written > {}/x", path.display()));
    node.unmount("pg", "w");
    node
}

#[track_caller]
fn its_data_is_there(node: &Node) {
    let path = node.mount("pg", "c1");
    assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
    node.unmount("pg", "c1");
    node.assert_nothing_left();
}

/// Does something to the image. Then a mount is refused with this word, and changes no byte.
#[track_caller]
fn refused(node: &Node, line: &str, word: &str) -> String {
    let image = node.image("pg").display().to_string();
    sh(&line.replace("IMAGE", &image));
    let before = sh(&format!("sha256sum {image}"));
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c1" }));
    assert!(said.starts_with(word) && said.contains("volume \"pg\"") && said.contains("; "), "{line}: {said}");
    assert_eq!(sh(&format!("sha256sum {image}")), before, "{line}: it was written to");
    eventually("nobody holds it", BOUND, || node.holders("pg").is_empty());
    node.assert_nothing_left();
    said
}

#[test]
fn a_volume_with_zeroes_where_its_superblock_was_is_not_mounted_and_not_formatted() {
    let node = with_data();
    refused(&node, "dd if=/dev/zero of=IMAGE bs=1M count=1 conv=notrunc status=none", "not_blank{");
}

#[test]
fn an_image_with_nothing_at_all_in_it_is_not_formatted() {
    let node = with_data();
    refused(&node, "fallocate --punch-hole --offset 0 --length 16M IMAGE", "not_blank{");
}

#[test]
fn another_filesystem_of_the_same_kind_is_not_mounted() {
    let node = with_data();
    refused(&node, "mke2fs -q -F -t ext4 IMAGE", "not_blank{");
}

#[test]
fn an_image_that_was_cut_short_is_damaged_and_mounted_again_when_it_is_whole() {
    let node = with_data();
    let image = node.image("pg").display().to_string();
    sh(&format!("cp --sparse=always {image} {image}.copy"));
    refused(&node, "truncate --size 8M IMAGE", "platform_unavailable");
    assert!(node.cli(&["volume", "inspect", "pg"]).ok().contains("damaged"));
    sh(&format!("mv {image}.copy {image}"));
    its_data_is_there(&node);
}

#[test]
fn an_image_that_is_a_link_to_another_place_is_not_followed() {
    let node = with_data();
    let elsewhere = node.folder.join("elsewhere").display().to_string();
    refused(&node, &format!("mv IMAGE {elsewhere}; ln -s {elsewhere} IMAGE"), "");
    sh(&format!("rm {0}; mv {elsewhere} {0}", node.image("pg").display()));
    its_data_is_there(&node);
}

#[test]
fn a_volume_whose_folder_was_copied_is_no_second_volume() {
    let node = with_data();
    let pool = node.pool().display().to_string();
    sh(&format!("cp -r --sparse=always {pool}/pg {pool}/copy"));
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "copy", "ID": "c1" }));
    assert!(said.contains("copied or renamed"), "{said}");
    its_data_is_there(&node);
}

#[test]
fn a_filesystem_that_the_kernel_marked_is_checked_and_mounted() {
    let node = with_data();
    sh(&format!("debugfs -w -R 'set_super_value state 2' {} 2>&1", node.image("pg").display()));
    its_data_is_there(&node);
    assert!(node.log().contains("had errors and was checked"), "the check is in the log");
}

#[test]
fn a_filesystem_that_was_not_unmounted_is_left_to_the_kernel_and_not_checked() {
    let node = with_data();
    // A copy of a mounted image is what a power cut leaves: its journal is dirty.
    let (path, image) = (node.mount("pg", "c1"), node.image("pg"));
    sh(&format!("echo more > {}/y; sync -f {0}/y; cp --sparse=always {1} {1}.copy", path.display(), image.display()));
    node.unmount("pg", "c1");
    sh(&format!("mv {0}.copy {0}", image.display()));
    its_data_is_there(&node);
    assert!(!node.log().contains("was checked"));
}

#[test]
fn a_filesystem_that_cannot_be_mended_unasked_is_refused_with_what_to_do() {
    let node = with_data();
    let image = node.image("pg").display().to_string();
    // The root folder is no folder any more: e2fsck -p does not decide that alone.
    sh(&format!("debugfs -w -R 'set_inode_field <2> mode 0' {image} 2>&1; debugfs -w -R 'set_super_value state 2' {image} 2>&1"));
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c1" }));
    assert!(said.starts_with("platform_unavailable: volume \"pg\"") && said.contains("e2fsck"), "{said}");
    node.assert_nothing_left();
}

#[test]
fn the_last_copy_of_a_volume_is_not_unmounted_and_the_rescue_line_works() {
    let node = with_data();
    let path = node.mount("pg", "c1");
    let loops = kernel::loops_beneath(&node.pool());
    std::fs::remove_file(node.image("pg")).expect("remove");
    let said = node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "c1" }));
    assert!(said.contains("last copy") && said.contains("volume \"pg\""), "{said}");
    assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
    let rescue = said.split_once("rescue it first: ").and_then(|(_, rest)| rest.split(" [").next()).expect("a rescue line");
    assert!(rescue.contains(&loops[0].display().to_string()), "{rescue}");
    let rescued = node.folder.join("rescued");
    sh(&format!("sync -f {}; {}", path.display(), rescue.replace("/a/safe/place", &rescued.display().to_string())));
    sh(&format!("umount {}; losetup -d {}; mv {} {}", path.display(), loops[0].display(), rescued.display(), node.image("pg").display()));
    its_data_is_there(&node);
}

#[test]
fn a_rescued_image_that_was_put_back_lets_the_volume_be_unmounted_and_detached() {
    let node = with_data();
    let (path, image) = (node.mount("pg", "c1"), node.image("pg"));
    let device = kernel::loops_beneath(&node.pool())[0].display().to_string();
    std::fs::remove_file(&image).expect("remove");
    sh(&format!("sync -f {}; cp --sparse=always {device} {}", path.display(), image.display()));
    node.unmount("pg", "c1");
    assert!(!is_mounted(&path));
    eventually("the device of the lost file has gone", BOUND, || kernel::loops_beneath(&node.pool()).is_empty());
    its_data_is_there(&node);
}

#[test]
fn a_volume_whose_image_is_gone_is_not_removed_while_it_is_the_last_copy() {
    let mut node = with_data();
    let path = node.mount("pg", "c1");
    std::fs::remove_file(node.image("pg")).expect("remove");
    node.kill();
    node.start();
    assert!(is_mounted(&path));
    assert_eq!(node.cli(&["volume", "rm", "pg"]).code, 5);
    assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
    sh(&format!("umount {}", path.display()));
    for device in kernel::loops_beneath(&node.pool()) {
        sh(&format!("losetup -d {}", device.display()));
    }
}

#[test]
fn a_new_volume_is_an_empty_folder_with_the_owner_and_mode_that_were_asked() {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M", "-o", "uid=1000", "-o", "gid=1001", "-o", "mode=0750"]).ok();
    let path = node.mount("pg", "c1");
    assert_eq!(std::fs::read_dir(&path).expect("mounted").count(), 0);
    let root = std::fs::metadata(&path).expect("root");
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (1000, 1001, 0o750));
    node.unmount("pg", "c1");
}

#[test]
fn what_a_container_made_of_its_folders_owner_and_mode_is_kept() {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M", "-o", "uid=1000"]).ok();
    let path = node.mount("pg", "c1");
    sh(&format!("chown 70:71 {0}; chmod 700 {0}", path.display()));
    node.unmount("pg", "c1");
    let root = std::fs::metadata(node.mount("pg", "c1")).expect("root");
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (70, 71, 0o700));
    node.unmount("pg", "c1");
}

#[test]
fn a_read_only_volume_cannot_be_written_not_even_by_root() {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M", "-o", "ro=true"]).ok();
    let path = node.mount("pg", "c1");
    let touch = format!("touch {}/x; mount -o remount,bind,rw {0} && touch {0}/x", path.display());
    let output = Command::new("sh").args(["-c", &touch]).stdin(Stdio::null()).output().expect("sh");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("Read-only"), "{output:?}");
    assert!(is_empty(&path));
    node.unmount("pg", "c1");
    node.assert_nothing_left();
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("folder").next().is_none()
}
