//! What stands in the way of a start: a slip in the configuration, a folder or a socket that is not ours, another
//! daemon, rights that are missing. Each is said in words that help, and nothing of anybody else's is touched.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dunnage_tests::sh;
use dunnage_tests::{Node, Ran, binary, kernel, scratch};
use serde_json::json;

/// Starts the daemon in the foreground, which has to end by itself; gives what it said.
#[track_caller]
fn refused(node: &mut Node) -> String {
    node.spawn();
    node.wait_until_dead();
    node.log()
}

#[test]
fn an_unknown_key_in_the_configuration_is_named_with_its_file_and_line() {
    let node = Node::new();
    node.configure("admin: { group: root }\nvolumes:\n  hint: warn\n");
    let said = node.cli(&["config", "check"]).fails(2);
    let place = format!("{}:3", node.folder.join("config.yml").display());
    assert!(said.contains(&place) && said.contains("hint") && said.contains("did you mean \"hints\""), "{said}");
}

#[test]
fn a_daemon_does_not_start_with_a_bad_configuration() {
    let mut node = Node::new();
    node.configure("drivers:\n  local: { type: local, reserve: alot }\n");
    let said = refused(&mut node);
    assert!(said.contains("config.yml:2") && said.contains("reserve"), "{said}");
    assert!(!node.run_dir().join("admin.sock").exists());
}

#[test]
fn a_good_configuration_is_said_to_be_good() {
    let node = Node::new();
    node.configure("drivers: { local: { type: local, reserve: 10% } }\n");
    node.cli(&["config", "check"]).ok();
}

#[test]
fn a_plugin_folder_that_cannot_be_written_is_named_with_the_endpoint_and_the_flag() {
    let mut node = Node::new();
    let plugins = node.plugins.display().to_string();
    sh(&format!("mkdir {plugins}; mount --bind {plugins} {plugins}; mount -o remount,bind,ro {plugins}"));
    let said = refused(&mut node);
    sh(&format!("umount {plugins}"));
    assert!(said.contains("permission: ") && said.contains("dunnage.sock"), "{said}");
    assert!(said.contains("endpoint dunnage") && said.contains("--plugin-dir"), "{said}");
}

#[test]
fn a_socket_that_somebody_else_listens_on_is_not_taken() {
    let mut node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    let _other = UnixListener::bind(node.socket()).expect("bind");
    let inode = std::fs::metadata(node.socket()).expect("socket").ino();
    let said = refused(&mut node);
    assert!(said.contains("in_use{") && said.contains("dunnage.sock") && said.contains("endpoint dunnage"), "{said}");
    assert_eq!(std::fs::metadata(node.socket()).expect("still there").ino(), inode);
    UnixStream::connect(node.socket()).expect("it answers still");
}

#[test]
fn a_socket_that_nobody_listens_on_any_more_is_replaced() {
    let mut node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    drop(UnixListener::bind(node.socket()).expect("bind"));
    node.start();
    node.plugin_ok("Plugin.Activate", &json!({}));
}

#[test]
fn a_plain_file_in_the_sockets_place_is_not_lost_without_a_word() {
    let mut node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    std::fs::write(node.socket(), "precious").expect("file");
    let said = refused(&mut node);
    assert_eq!(std::fs::read_to_string(node.socket()).expect("still there"), "precious");
    assert!(said.contains("dunnage.sock"), "{said}");
}

#[test]
fn sockets_are_roots_alone() {
    let node = Node::started();
    for socket in [node.socket(), node.run_dir().join("admin.sock")] {
        assert_eq!(std::fs::metadata(&socket).expect("socket").mode() & 0o777, 0o600, "{}", socket.display());
    }
}

#[test]
fn a_stop_removes_the_sockets_and_leaves_the_mounts() {
    let mut node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M"]).ok();
    let path = node.mount("pg", "c1");
    let mounted = kernel::mount_id(&path);
    node.stop();
    assert!(!node.socket().exists() && !node.run_dir().join("admin.sock").exists());
    assert_eq!(kernel::mount_id(&path), mounted);
    node.start();
    node.unmount("pg", "c1");
    node.assert_nothing_left();
}

/// `start` in the background, its log in the node's folder.
fn start_in_background(node: &Node) -> Ran {
    node.cli(&["start", "--log-file", &node.folder.join("log").display().to_string()])
}

#[test]
fn a_start_in_the_background_says_its_pid_and_how_to_stop_it_and_that_works() {
    let node = Node::new();
    let said = start_in_background(&node).ok();
    let stop = said.lines().find_map(|line| line.trim().strip_prefix("sudo ")).expect("the line to stop it").to_owned();
    let pid = said.split_once("PID ").and_then(|(_, rest)| rest.split(['.', ' ']).next()?.parse::<u32>().ok()).expect("a pid");
    let status = node.cli(&["status", "-o", "json"]).ok();
    assert!(status.contains(&format!("\"pid\": {pid},")), "{said}{status}");
    assert!(start_in_background(&node).ok().contains(&format!("running already at PID {pid}")));
    sh(&stop);
    assert_eq!(node.cli(&["status"]).code, 20, "stopped");
}

#[test]
fn a_start_in_the_background_that_fails_says_why_and_where_the_log_is() {
    let node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    let _other = UnixListener::bind(node.socket()).expect("bind");
    let ran = start_in_background(&node);
    assert!(ran.code != 0 && ran.err.contains("dunnage.sock") && ran.err.contains("/log"), "{} {}", ran.out, ran.err);
}

/// The binary, where somebody without rights can reach it.
fn for_everybody() -> PathBuf {
    let path = PathBuf::from(format!("/run/{}-dunnage", scratch().file_name().expect("name").display()));
    std::fs::copy(binary(), &path).expect("copy");
    path
}

/// Runs a command of the binary as nobody.
fn as_nobody(binary: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary).args(args);
    let output = command.stdin(Stdio::null()).current_dir("/").output().expect("setpriv");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn without_root_each_command_that_needs_it_prints_the_line_that_would_work() {
    let binary = for_everybody();
    for args in [&["start"][..], &["start", "-f"], &["demo"], &["install"], &["uninstall"]] {
        let said = as_nobody(&binary, args).fails(9);
        assert!(said.contains(&format!("sudo {} {}", binary.display(), args[0])), "{args:?}: {said}");
    }
}

/// Runs a command as nobody against a node, by a way that nobody may walk, wherever the test's folder is.
fn as_nobody_at(node: &Node, args: &[&str]) -> Ran {
    let (real, run_dir) = (node.run_dir(), format!("/run/{}-run", node.folder.file_name().expect("name").display()));
    sh(&format!("mkdir {run_dir}; mount --bind {0} {run_dir}; chmod a+rx {0}", real.display()));
    let ran = as_nobody(&for_everybody(), &[&["--run-dir", &run_dir], args].concat());
    sh(&format!("umount {run_dir}; rmdir {run_dir}"));
    ran
}

/// The daemon would read for whoever may use its socket what only root may.
#[test]
fn law_12_who_may_use_the_admin_socket_and_is_not_root_imports_no_file() {
    let mut node = Node::new();
    node.configure("admin: { group: nogroup }\n");
    node.start();
    assert_eq!(as_nobody_at(&node, &["volume", "ls", "-q"]).ok(), "", "it may use the socket");
    let said = as_nobody_at(&node, &["volume", "import", "pg", "/etc/shadow"]).fails(9);
    assert!(said.contains("only root may import"), "{said}");
    node.finish();
}

#[test]
fn without_root_the_admin_socket_is_refused_with_what_to_do() {
    let node = Node::started();
    let said = as_nobody_at(&node, &["volume", "ls"]).fails(9);
    assert!(said.contains("sudo") && said.contains("admin.group"), "{said}");
}
