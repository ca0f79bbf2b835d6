//! A volume's device without a mount: for those who want the device itself, and what becomes of it.

use std::path::Path;

use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::json;

fn with_volume() -> Node {
    let node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M" } }));
    node
}

fn attach(node: &Node) -> String {
    node.cli(&["volume", "attach", "pg"]).ok()
}

fn state(node: &Node) -> String {
    let text = node.cli(&["volume", "ls"]).ok();
    text.lines().nth(1).expect("a volume").split_whitespace().nth(4).expect("a state").to_owned()
}

#[test]
fn a_volume_is_attached_without_a_mount_once_however_often_it_is_asked_for() {
    let mut node = with_volume();
    let device = attach(&node);
    assert_eq!(attach(&node), device);
    assert_eq!(kernel::loops_beneath(&node.folder), [Path::new(&device)]);
    assert_eq!((state(&node).as_str(), is_mounted(&node.mountpoint("pg"))), ("attached", false));
    assert!(node.cli(&["volume", "rm", "pg"]).fails(5).contains("dunnage volume detach pg"));
    node.cli(&["volume", "detach", "pg"]).ok();
    node.cli(&["volume", "detach", "pg"]).ok();
    assert!(kernel::loops_beneath(&node.folder).is_empty());
    node.finish();
}

#[test]
fn the_device_stays_when_the_last_mount_goes_and_the_mount_when_the_device_is_given_back() {
    let mut node = with_volume();
    let device = attach(&node);
    node.mount("pg", "a");
    assert_eq!(kernel::loops_beneath(&node.folder).len(), 1, "the same device");
    let said = node.cli(&["volume", "detach", "pg"]).fails(5);
    assert!(said.contains("it is mounted"), "{said}");
    node.unmount("pg", "a");
    assert!(!is_mounted(&node.mountpoint("pg")));
    assert_eq!(kernel::loops_beneath(&node.folder), [Path::new(&device)]);
    assert_eq!(state(&node), "attached");
    node.mount("pg", "a");
    node.unmount("pg", "a");
    node.cli(&["volume", "detach", "pg"]).ok();
    assert!(kernel::loops_beneath(&node.folder).is_empty());
    node.finish();
}

#[test]
fn an_attached_device_outlives_the_daemon() {
    let mut node = with_volume();
    let device = attach(&node);
    for _ in 0..2 {
        node.kill();
        node.start();
        node.mount("pg", "a");
        node.kill();
        node.start();
        assert!(is_mounted(&node.mountpoint("pg")));
        node.unmount("pg", "a");
        assert_eq!(kernel::loops_beneath(&node.folder), [Path::new(&device)]);
        assert_eq!(state(&node), "attached");
    }
    node.cli(&["volume", "detach", "pg"]).ok();
    assert!(kernel::loops_beneath(&node.folder).is_empty());
    node.finish();
}

#[test]
fn a_kill_at_any_step_of_attaching_leaves_nothing_or_what_was_asked_for() {
    let mut node = Node::new();
    node.allow_crashes();
    node.start();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "64M" } }));
    node.passed();
    attach(&node);
    let points: Vec<String> = node.passed().into_iter().filter(|point| point.starts_with("attach/")).collect();
    node.cli(&["volume", "detach", "pg"]).ok();
    assert!(points.len() >= 8, "{points:?}");
    for point in points {
        node.die_at(&point);
        node.cli(&["volume", "attach", "pg"]);
        node.wait_until_dead();
        node.somebody_died(&point);
        node.start();
        let device = attach(&node);
        assert_eq!(kernel::loops_beneath(&node.folder), [Path::new(&device)], "{point}");
        node.cli(&["volume", "detach", "pg"]).ok();
        eventually("it is detached", BOUND, || kernel::loops_beneath(&node.folder).is_empty());
    }
    node.finish();
}

#[test]
fn everything_that_is_attached_is_let_go_when_the_machine_shuts_down() {
    let mut node = with_volume();
    attach(&node);
    node.cli(&["stop", "--release"]).ok();
    assert!(kernel::loops_beneath(&node.folder).is_empty());
    node.wait_until_dead();
    node.start();
    node.finish();
}
