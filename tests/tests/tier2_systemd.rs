//! What a service manager and the daemon say to each other: readiness, the watchdog, sockets that are handed over.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use dunnage_tests::{BOUND, Node, eventually};
use serde_json::json;

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    heard: String,
}

impl Manager {
    fn of(node: &mut Node) -> Manager {
        let path = node.folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        node.env.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
        Manager { socket, heard: String::new() }
    }

    /// Waits for a line.
    #[track_caller]
    fn hears(&mut self, line: &str) {
        eventually(&format!("it says {line}"), BOUND, || {
            let mut message = [0; 4096];
            while let Ok(n) = self.socket.recv(&mut message) {
                self.heard.push_str(&String::from_utf8_lossy(&message[..n]));
                self.heard.push('\n');
            }
            self.heard.lines().any(|said| said == line)
        });
    }
}

#[test]
fn the_manager_hears_that_it_is_ready_when_it_is_and_that_it_stops() {
    let mut node = Node::new();
    let mut manager = Manager::of(&mut node);
    node.spawn();
    manager.hears("READY=1");
    node.plugin_ok("Plugin.Activate", &json!({}));
    assert!(!manager.heard.contains("STOPPING=1"));
    node.stop();
    manager.hears("STOPPING=1");
}

#[test]
fn the_watchdog_is_fed_in_time_and_only_when_it_is_asked_for() {
    let mut node = Node::new();
    let mut manager = Manager::of(&mut node);
    node.start();
    manager.hears("READY=1");
    node.stop();
    manager.hears("STOPPING=1");
    assert!(!manager.heard.contains("WATCHDOG=1"), "nobody asked");
    node.env.push(("WATCHDOG_USEC".to_owned(), "400000".to_owned()));
    node.start();
    for _ in 0..3 {
        let begun = Instant::now();
        manager.heard.clear();
        manager.hears("WATCHDOG=1");
        assert!(begun.elapsed().as_micros() < 400_000, "it came after {:?}", begun.elapsed());
    }
}

/// The daemon with a socket handed over as systemd does: descriptor 3, and LISTEN_PID its own.
fn with_socket(node: &Node, listener: UnixListener) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"]);
    let daemon = node.command();
    command.arg(daemon.get_program()).args(daemon.get_args()).args(["start", "-f"]);
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh")
}

#[test]
fn a_socket_that_is_handed_over_is_used_and_left_in_its_place() {
    let node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    let listener = UnixListener::bind(node.socket()).expect("bind");
    let inode = std::fs::metadata(node.socket()).expect("socket").ino();
    // A container that starts before the daemon: it waits, and is answered.
    let mut early = UnixStream::connect(node.socket()).expect("connect");
    early.write_all(b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").expect("ask");
    let mut daemon = with_socket(&node, listener);
    early.set_read_timeout(Some(BOUND)).expect("timeout");
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("VolumeDriver"), "{answer}");
    eventually("it serves", BOUND, || node.cli(&["status"]).code == 0);
    assert_eq!(std::fs::metadata(node.socket()).expect("socket").ino(), inode, "it was not replaced");
    node.cli(&["stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
    assert_eq!(std::fs::metadata(node.socket()).expect("it is the manager's").ino(), inode);
}

#[test]
fn helpers_do_not_inherit_a_socket_that_was_handed_over() {
    let node = Node::new();
    std::fs::create_dir_all(&node.plugins).expect("folder");
    let listener = UnixListener::bind(node.socket()).expect("bind");
    let inode = std::fs::metadata(node.socket()).expect("socket").ino();
    let mut daemon = with_socket(&node, listener);
    eventually("it serves", BOUND, || node.cli(&["status"]).code == 0);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).expect("children");
    assert!(!children.trim().is_empty());
    for child in children.split_whitespace() {
        let fds: Vec<_> = std::fs::read_dir(format!("/proc/{child}/fd")).expect("fd").flatten().collect();
        assert!(
            fds.iter().all(|fd| fd.file_name() != "3" || !links_to_a_listener(&fd.path())),
            "helper {child} has descriptor 3 (inode {inode})"
        );
    }
    node.cli(&["stop"]).ok();
    daemon.wait().expect("wait");
}

/// Whether a descriptor is a unix socket that listens.
fn links_to_a_listener(fd: &std::path::Path) -> bool {
    let link = std::fs::read_link(fd).unwrap_or_default().display().to_string();
    let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) else { return false };
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // The sixth field is the state's, the fourth the flags': 00010000 is a listener.
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(6) == Some(&inode) && fields.get(3) == Some(&"00010000")
    })
}
