//! `dunnage holder`, and holders of a Mesos agent whose task is gone.

use std::path::Path;

use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::json;

fn with_pg(node: &Node) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
}

/// What the agent writes before it mounts a volume for a container.
fn checkpoint(folder: &Path, container: &str, text: &str) {
    std::fs::create_dir_all(folder.join(container)).expect("folder");
    std::fs::write(folder.join(container).join("volumes"), text).expect("written");
}

#[test]
fn a_hold_without_an_id_is_let_go_of_when_no_checkpoint_of_the_mesos_agent_has_its_volume() {
    let mut node = Node::new();
    let folder = node.folder.join("mesos");
    node.configure(&format!("holders: {{ reconcile: act, grace: 2s, docker: [], mesos: [ {} ] }}\n", folder.display()));
    checkpoint(&folder, "c1", r#"{"volumes":[{"driver":"dunnage","name":"pg"}]}"#);
    node.start();
    with_pg(&node);
    let path = node.mount("pg", "");
    node.wait_for_witnesses();
    assert!(is_mounted(&path), "let go of under a task that lives");

    // A torn checkpoint may have named anything.
    checkpoint(&folder, "c1", "{\"volumes\":");
    eventually("it is silent", BOUND, || node.log().matches("does not say who lives").count() > 4);
    assert!(is_mounted(&path), "let go of on silence");

    std::fs::remove_dir_all(folder.join("c1")).expect("removed");
    node.wait_until_released("pg");
}

#[test]
fn holders_are_listed_and_a_person_lets_go_for_one_of_them() {
    let node = Node::started();
    with_pg(&node);
    assert_eq!(node.cli(&["holder", "ls"]).ok().lines().count(), 1, "only a heading");
    let refused = node.cli(&["holder", "release", "pg"]).fails(3);
    assert!(refused.contains("nobody holds it"), "{refused}");

    let path = node.mount("pg", "alpha");
    node.mount("pg", "beta");
    let mount = kernel::mount_id(&path);
    let listed = node.cli(&["holder", "ls"]).ok();
    let rows: Vec<Vec<&str>> = listed.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "{listed}");
    assert_eq!(rows[0][..5], ["pg", "local", "plugin", "client", "alpha"], "{listed}");
    assert_eq!(node.cli(&["holder", "ls", "--gone"]).ok().lines().count(), 1, "none is gone");

    let refused = node.cli(&["holder", "release", "pg"]).fails(2);
    assert!(refused.contains("2 holders fit") && refused.contains("alpha") && refused.contains("--id"), "{refused}");
    let refused = node.cli(&["holder", "release", "pg", "--id", "gamma"]).fails(3);
    assert!(refused.contains("\"gamma\"") && refused.contains("dunnage holder ls"), "{refused}");
    node.cli(&["holder", "release", "pg", "--id", "al"]).ok();
    assert_eq!(kernel::mount_id(&path), mount, "the other one's mount was touched");
    node.cli(&["holder", "release", "pg"]).ok();
    node.wait_until_released("pg");
}

#[test]
fn a_mount_that_was_found_without_a_holder_is_let_go_of_by_a_person() {
    let mut node = Node::started();
    with_pg(&node);
    let path = node.mount("pg", "a");
    node.stop();
    std::fs::remove_dir_all(node.run_dir().join("ledger")).expect("removed");
    node.start();
    assert!(node.cli(&["holder", "ls"]).ok().contains("unknown"));
    node.cli(&["holder", "release", "pg"]).ok();
    assert!(!is_mounted(&path));
    node.wait_until_released("pg");
}
