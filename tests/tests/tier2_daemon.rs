//! The daemon as a process: its configuration while it runs, and what its log says.

use dunnage_tests::{BOUND, Node, eventually, sh};
use serde_json::json;

fn hang_up(node: &Node) {
    let pid = rustix::process::Pid::from_raw(node.pid() as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signal");
}

#[test]
fn after_hup_endpoints_and_their_defaults_are_those_of_the_new_configuration() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local, defaults: { size: 64M } } ] }");
    node.start();
    node.configure(
        "endpoints: { docker: [ { name: dunnage, driver: local, defaults: { size: 128M } }, { name: second, driver: local } ] }",
    );
    hang_up(&node);
    eventually("the second endpoint listens", BOUND, || node.plugins.join("second.sock").exists());
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg" }));
    assert_eq!(node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }))["Volume"]["Status"]["size"], "128MiB");
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local } ] }");
    hang_up(&node);
    eventually("the second endpoint is gone", BOUND, || !node.plugins.join("second.sock").exists());
    node.stop();
}

#[test]
fn after_hup_a_bad_configuration_changes_nothing_and_is_named_with_its_line() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local } ] }");
    node.start();
    node.configure("endpoints:\n  dokcer: []\n");
    hang_up(&node);
    eventually("it is in the log", BOUND, || node.log().contains("config.yml:2"));
    assert!(node.log().contains("did you mean \"docker\""));
    node.plugin_ok("VolumeDriver.List", &json!({}));
    node.stop();
}

#[test]
fn one_operation_id_leads_from_the_request_to_the_last_line_and_the_answer() {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    std::fs::write(node.image("pg"), "ruined").expect("write");
    let message = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "a" }));
    let id = message.rsplit_once('[').expect("an operation id").1.trim_end_matches(']').to_owned();
    let log = node.log();
    let of_it: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    assert!(of_it.first().expect("lines").contains("asked"), "{of_it:?}");
    assert!(of_it.last().expect("lines").contains("answered"), "{of_it:?}");
    let steps = of_it.iter().filter(|line| line.contains("step step=")).count();
    assert!(steps >= 2, "each step of it is there: {of_it:?}");
}

#[test]
fn a_second_daemon_on_the_same_state_directory_is_told_who_has_it() {
    let node = Node::started();
    let other = node.folder.join("other-run");
    let ran = std::process::Command::new(dunnage_tests::binary())
        .args(["--state-dir", &node.state().display().to_string(), "--run-dir", &other.display().to_string()])
        .args(["--plugin-dir", &other.display().to_string(), "start", "-f"])
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(5), "{said}");
    assert!(said.contains(&format!("pid {}", node.pid())), "{said}");
}

/// A process that carries a volume outlives its helper, and the daemon sees a helper's death by the end of its socket.
#[test]
fn law_4_what_a_helper_starts_inherits_nothing_that_tells_the_daemon_whether_the_helper_lives() {
    const CLOSED_BY_EXEC: u32 = 0o2_000_000;
    let node = Node::started();
    let children = sh(&format!("cat /proc/{0}/task/{0}/children", node.pid()));
    let helpers: Vec<&str> =
        children.split_whitespace().filter(|pid| sh(&format!("cat /proc/{pid}/cmdline")).contains("dunnage-helper")).collect();
    assert!(!helpers.is_empty(), "the daemon keeps some");
    for pid in helpers {
        let mut seen = 0;
        // The first three are given to whoever is started, each time anew.
        let same = format!(
            "for n in $(ls /proc/{pid}/fd); do test $n -lt 3 || test $(readlink /proc/{pid}/fd/$n) != $(readlink /proc/{pid}/fd/0) || echo $n; done"
        );
        for fd in sh(&same).split_whitespace() {
            let info = sh(&format!("cat /proc/{pid}/fdinfo/{fd}"));
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
            assert_ne!(u32::from_str_radix(flags.trim(), 8).expect("octal") & CLOSED_BY_EXEC, 0, "{fd} of helper {pid}: {info}");
            seen += 1;
        }
        assert!(seen > 0, "the socket");
    }
}
