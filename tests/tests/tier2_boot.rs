//! A machine that has started anew, as far as a daemon can tell: the kernel's boot id is another one. That is not a thing
//! of one namespace, so it is a file that is mounted over the kernel's; for all tests in here, of which there is one.

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[test]
fn what_was_held_before_a_boot_is_held_by_nobody_after_it() {
    let mut node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M"]).ok();
    let path = node.mount("pg", "c1");
    sh(&format!("echo written > {0}/x; sync -f {0}/x", path.display()));
    eventually("it holds", BOUND, || node.holders("pg").len() == 1);
    node.kill();
    // What a boot does: mounts and devices are gone. That /run is gone as well is not relied on.
    sh(&format!("umount {}; losetup -d $(losetup -n -O NAME -j {})", path.display(), node.image("pg").display()));
    let boot = node.folder.join("boot_id");
    std::fs::write(&boot, "11111111-2222-3333-4444-555555555555\n").expect("write");
    sh(&format!("mount --bind {} {BOOT_ID}", boot.display()));
    node.start();
    assert_eq!(node.holders("pg"), []);
    assert!(!is_mounted(&path));
    assert!(node.log().contains("is of an earlier boot"), "the log says why");
    let path = node.mount("pg", "c1");
    assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
    eventually("it holds once", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    node.unmount("pg", "c1");
    node.assert_nothing_left();
    sh(&format!("umount {BOOT_ID}"));
}
