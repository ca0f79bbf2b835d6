//! The main job on the real kernel.

use dunnage_tests::{BOUND, Node, eventually, is_mounted};

#[test]
fn a_volume_is_made_mounted_and_there_again_after_everything_has_gone() {
    let mut node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    let path = node.mount("pg", "c1");
    assert_eq!(std::fs::read_dir(&path).expect("mounted").count(), 0, "a new volume is an empty folder");
    std::fs::write(path.join("x"), "written").expect("write");
    node.unmount("pg", "c1");
    assert!(!is_mounted(&path) && !path.exists(), "unmounted, and its mountpoint is gone");
    node.assert_nothing_left();
    node.kill();
    node.start();
    let path = node.mount("pg", "c2");
    assert_eq!(std::fs::read_to_string(path.join("x")).expect("read"), "written");
    node.unmount("pg", "c2");
    node.assert_nothing_left();
    node.stop();
}

#[test]
fn mounts_and_holders_outlive_a_daemon_that_is_killed() {
    let mut node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    let path = node.mount("pg", "c1");
    let before = dunnage_tests::kernel::mount_id(&path);
    // That the answer was read is noticed a moment after it was; killed before, it would be undecided, and kept too.
    eventually("the holder is confirmed", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    node.kill();
    assert!(is_mounted(&path));
    node.start();
    assert_eq!(dunnage_tests::kernel::mount_id(&path), before, "the mount was not touched");
    assert_eq!(node.holders("pg"), [(Some("c1".to_owned()), 1, 0, 0)]);
    node.unmount("pg", "c1");
    node.assert_nothing_left();
}
