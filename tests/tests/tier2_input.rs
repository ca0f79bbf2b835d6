//! What callers may send by mistake, by malice or by going away: refused in clear words, and nothing changed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dunnage_tests::{BOUND, Node, eventually, http, is_mounted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// Nothing was made in the pool, and nothing is attached or mounted.
#[track_caller]
fn nothing_changed(node: &Node) {
    let made: Vec<_> = std::fs::read_dir(node.pool()).expect("pool").flatten().map(|entry| entry.path()).collect();
    assert!(made.is_empty(), "there is {made:?}");
    node.assert_nothing_left();
}

fn bad_names() -> Vec<String> {
    ["", "/", "a/b", "/etc/passwd", "..", ".", "../local", "a\0b", "a b", "-rf", "données", "卷", "a\nb", "\u{202e}gp"]
        .map(str::to_owned)
        .into_iter()
        .chain(["a".repeat(129), "a".repeat(4096)])
        .collect()
}

#[test]
fn a_bad_name_is_refused_by_every_call_and_nothing_is_made() {
    let node = Node::started();
    for name in bad_names() {
        for call in ["Create", "Mount", "Unmount", "Remove", "Get", "Path"] {
            let said = node.plugin_err(&format!("VolumeDriver.{call}"), &json!({ "Name": name, "ID": "c1" }));
            assert!(said.starts_with("invalid_argument{name}: ") && said.contains("; use letters"), "{call} {name:?}: {said}");
            assert!(said.len() < 400, "{call} repeats a long name: {said}");
        }
    }
    nothing_changed(&node);
}

#[test]
fn a_bad_name_is_refused_at_the_command_line() {
    let node = Node::started();
    for name in bad_names().iter().filter(|name| !name.contains('\0') && !name.starts_with('-')) {
        for verb in ["create", "mount", "unmount", "inspect", "rm"] {
            let said = node.cli(&["volume", verb, name]).fails(2);
            assert!(said.contains("invalid_argument{name}"), "{verb} {name:?}: {said}");
        }
    }
    nothing_changed(&node);
}

#[test]
fn a_bad_size_is_refused_with_the_volume_and_what_would_do() {
    let node = Node::started();
    for size in ["0", "-1", "abc", "1.2.3", "99999999999999999999", "1M"] {
        let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": size } }));
        assert!(said.starts_with("invalid_argument{size}: volume \"pg\": ") && said.contains("; "), "{size}: {said}");
        let said = node.cli(&["volume", "create", "pg", "-o", &format!("size={size}")]).fails(2);
        assert!(said.contains("invalid_argument{size}"), "{size}: {said}");
    }
    nothing_changed(&node);
}

#[test]
fn a_size_that_the_pool_cannot_have_in_one_file_is_refused_as_a_bad_size() {
    let node = Node::started();
    // 97 PiB: ext4 as a volume's filesystem could have that, a file on the pool's ext4 cannot.
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "99999T" } }));
    assert!(said.starts_with("invalid_argument{size}: volume \"pg\": "), "{said}");
    nothing_changed(&node);
}

#[test]
fn an_unknown_option_is_refused_and_the_nearest_right_one_is_named() {
    let node = Node::started();
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "siez": "1G" } }));
    assert!(said.starts_with("invalid_argument{siez}: volume \"pg\"") && said.contains("did you mean \"size\"?"), "{said}");
    let said = node.cli(&["volume", "create", "pg", "-o", "siez=1G"]).fails(2);
    assert!(said.contains("did you mean \"size\"?"), "{said}");
    nothing_changed(&node);
}

#[test]
fn a_body_that_is_no_object_of_the_api_is_refused() {
    let node = Node::started();
    let deep = "[".repeat(100_000);
    let bodies = [
        r#"["pg", {}]"#,
        "{",
        "not json",
        "\"pg\"",
        "7",
        "{\"Name\": 7}",
        "{\"Name\": \"pg\", \"Opts\": []}",
        "{\"Name\": null}",
        "\0\0",
        &deep,
    ];
    for body in bodies {
        let answer = http::post(&node.socket(), "/VolumeDriver.Create", body.as_bytes());
        let said: Value = serde_json::from_slice(&answer.body).expect("the answer is JSON");
        let said = said["Err"].as_str().expect("Err");
        assert_eq!(answer.status, 400, "{:.40}: {said}", body);
        assert!(said.starts_with("invalid_argument{body}: "), "{:.40}: {said}", body);
    }
    nothing_changed(&node);
}

#[test]
fn an_empty_body_is_an_empty_object() {
    let node = Node::started();
    for body in ["", "null", " \r\n"] {
        assert_eq!(http::post(&node.socket(), "/VolumeDriver.List", body.as_bytes()).status, 200);
        let answer = http::post(&node.socket(), "/VolumeDriver.Create", body.as_bytes());
        assert!(String::from_utf8_lossy(&answer.body).contains("invalid_argument{name}"), "no name was given");
    }
    nothing_changed(&node);
}

/// VmHWM in KiB.
fn peak_memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

const HUNDRED_MB: usize = 100 << 20;

/// Sends a head and then 100 MB, as far as the daemon takes them; gives the answer.
fn flood(node: &Node, head: &str, piece: &[u8]) -> String {
    let mut stream = UnixStream::connect(node.socket()).expect("connect");
    stream.set_read_timeout(Some(BOUND)).expect("timeout");
    stream.write_all(head.as_bytes()).expect("head");
    let mut sent = 0;
    while sent < HUNDRED_MB && stream.write_all(piece).is_ok() {
        sent += piece.len();
    }
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[test]
fn a_body_of_a_hundred_megabytes_is_refused_and_the_daemon_does_not_grow() {
    let node = Node::started();
    node.plugin_ok("VolumeDriver.List", &json!({}));
    let before = peak_memory(&node);
    let head = format!("POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: {HUNDRED_MB}\r\n\r\n");
    let answer = flood(&node, &head, &[b' '; 65536]);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("the body is longer than"), "{answer}");
    let head = "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let piece = [b"10000\r\n".as_slice(), &[b' '; 65536], b"\r\n"].concat();
    let answer = flood(&node, head, &piece);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("the body is longer than"), "{answer}");
    let grown = peak_memory(&node) - before;
    assert!(grown < 8 << 10, "the daemon grew by {grown} KiB");
    nothing_changed(&node);
}

#[test]
fn a_body_in_chunks_is_read() {
    let node = Node::started();
    let request = "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   e\r\n{\"Name\": \"pg\",\r\n1b\r\n \"Opts\": {\"size\": \"16M\"}}  \r\n0\r\n\r\n";
    let answer = http::raw(&node.socket(), request.as_bytes());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert!(node.image("pg").exists());
}

#[test]
fn a_call_that_there_is_not_is_answered_404_in_json() {
    let node = Node::started();
    for path in ["/VolumeDriver.Snapshot", "/", "/../../etc/passwd", "/v1/release"] {
        let answer = http::post(&node.socket(), path, b"{}");
        let said: Value = serde_json::from_slice(&answer.body).expect("the answer is JSON");
        assert_eq!(answer.status, 404, "{path}");
        assert!(said["Err"].as_str().is_some_and(|said| said.starts_with("not_found: ")), "{path}: {said}");
    }
}

/// One request on a connection that stays open; gives the answer's body.
fn on(stream: &mut UnixStream, call: &str, body: &Value) -> Value {
    let body = body.to_string();
    write!(stream, "POST /VolumeDriver.{call} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("ask");
    let mut bytes = Vec::new();
    let mut one = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut one).expect("the answer's head");
        bytes.push(one[0]);
    }
    let head = String::from_utf8(bytes).expect("text").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the answer's body");
    serde_json::from_slice(&body).expect("json")
}

#[test]
fn one_connection_carries_several_requests() {
    let node = Node::started();
    let mut stream = UnixStream::connect(node.socket()).expect("connect");
    assert_eq!(on(&mut stream, "Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }))["Err"], "");
    let path = on(&mut stream, "Mount", &json!({ "Name": "pg", "ID": "c1" }))["Mountpoint"].as_str().expect("a path").to_owned();
    assert!(is_mounted(path.as_ref()));
    eventually("it holds, though the connection is open", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    assert!(on(&mut stream, "Get", &json!({ "Name": "no" }))["Err"].as_str().is_some_and(|e| e.starts_with("not_found")));
    assert_eq!(on(&mut stream, "Unmount", &json!({ "Name": "pg", "ID": "c1" }))["Err"], "");
    node.assert_nothing_left();
}

/// Sends a Mount and keeps the connection, unread.
fn ask_to_mount(node: &Node) -> UnixStream {
    let mut stream = UnixStream::connect(node.socket()).expect("connect");
    let body = json!({ "Name": "pg", "ID": "c1" }).to_string();
    write!(stream, "POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("ask");
    stream
}

fn with_a_volume() -> Node {
    let node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    node
}

/// Nobody holds it, it is not mounted, and that stays so.
#[track_caller]
fn let_go(node: &Node) {
    eventually("nobody holds it and it is unmounted", BOUND, || {
        node.holders("pg").is_empty()
            && !is_mounted(&node.mountpoint("pg"))
            && dunnage_tests::kernel::loops_beneath(&node.folder).is_empty()
    });
    assert!(node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }))["Volume"]["Status"]["holders"] == json!([]));
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
}

#[test]
fn a_caller_that_hangs_up_in_the_middle_of_a_mount_leaves_no_holder_and_no_mount() {
    let node = with_a_volume();
    // One that hangs up before anybody looks was never heard.
    eventually("the daemon has heard one", BOUND, || {
        drop(ask_to_mount(&node));
        node.log().contains("call=\"Mount\"")
    });
    let_go(&node);
}

#[test]
fn a_caller_that_never_reads_its_answer_leaves_no_holder_and_no_mount() {
    let node = with_a_volume();
    let stream = ask_to_mount(&node);
    let bound = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&bound)).expect("poll"), 1, "an answer came");
    assert!(is_mounted(&node.mountpoint("pg")));
    drop(stream);
    let_go(&node);
}

#[test]
fn a_holder_is_provisional_until_its_answer_has_been_read() {
    let node = with_a_volume();
    let mut stream = ask_to_mount(&node);
    eventually("it is mounted", BOUND, || is_mounted(&node.mountpoint("pg")));
    eventually("it is provisional", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 0, 1, 0)]);
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    assert!(stream.read(&mut [0; 4096]).expect("the answer") > 0);
    eventually("it counts", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    node.unmount("pg", "c1");
    let_go(&node);
}

#[test]
fn a_caller_that_hangs_up_takes_no_other_callers_hold_with_it() {
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    eventually("it holds", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    let caller = ask_to_mount(&node);
    eventually("the daemon has heard it", BOUND, || node.log().matches("call=\"Mount\"").count() == 2);
    drop(caller);
    eventually("the first one holds it, once", BOUND, || node.holders("pg") == [(Some("c1".to_owned()), 1, 0, 0)]);
    assert!(is_mounted(&path));
    node.unmount("pg", "c1");
    let_go(&node);
}
