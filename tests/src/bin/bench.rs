//! Figures, each beside its floor in the same run: `cargo xtask bench`.
//!
//! Floor and daemon use the same pool, the same kind of image, the same loop flags and mount options, and take turns, so
//! that a noisy machine is noisy for both. A bar is a ratio; where it is missed, the row says so and the exit code is 1.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use dunnage_host::linux::floor;
use dunnage_tests::Node;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

/// How often each thing is done. Enough for a median; the whole takes seconds.
const ROUNDS: usize = 200;

/// A connection that stays, as dockerd's does.
struct Caller(UnixStream);

impl Caller {
    fn new(socket: &Path) -> Caller {
        Caller(UnixStream::connect(socket).expect("connect"))
    }

    fn call(&mut self, call: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!("POST /{call} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.0.write_all(request.as_bytes()).expect("write");
        let mut bytes = Vec::new();
        let mut chunk = [0; 65536];
        loop {
            let n = self.0.read(&mut chunk).expect("read");
            assert!(n > 0, "the daemon hung up");
            bytes.extend_from_slice(&chunk[..n]);
            let Some(split) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&bytes[..split]).to_lowercase();
            let length: usize = head.split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok()).expect("length");
            if bytes.len() == split + 4 + length {
                let answer: Value = serde_json::from_slice(&bytes[split + 4..]).expect("json");
                assert!(answer["Err"].as_str().unwrap_or("").is_empty(), "{call}: {answer}");
                return answer;
            }
        }
    }
}

/// Times one thing after a moment of rest: calls come to a machine at rest, and one that follows at once on another finds
/// processors awake and caches warm.
fn timed<T>(into: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    std::thread::sleep(Duration::from_millis(2));
    let begun = Instant::now();
    let value = work();
    into.push(begun.elapsed());
    value
}

/// The median and the 99th percentile, in milliseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    (at(0.5), at(0.99))
}

struct Row {
    what: &'static str,
    ours: (f64, f64),
    floor: Option<(f64, f64)>,
    unit: &'static str,
    bar: String,
    met: bool,
    /// REX-Ray 0.12 with its directory driver (no device at all), measured on 2026-11-21 on a like machine.
    rexray: &'static str,
}

fn ratio_row(what: &'static str, ours: Vec<Duration>, floor: Vec<Duration>, most: f64, rexray: &'static str) -> Row {
    let (ours, floor) = (percentiles(ours), percentiles(floor));
    let ratio = ours.0 / floor.0;
    Row { what, ours, floor: Some(floor), unit: "ms", bar: format!("{ratio:.2} × the floor (at most {most})"), met: ratio <= most, rexray }
}

fn plain_row(what: &'static str, ours: (f64, f64), unit: &'static str, most: f64, rexray: &'static str) -> Row {
    Row { what, ours, floor: None, unit, bar: format!("at most {most} {unit}"), met: ours.0 <= most, rexray }
}

fn main() {
    let json_path = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let mut rows = Vec::new();

    // Ready: process start to READY=1 at the service manager's socket, with a pool that is there.
    let mut node = Node::new();
    node.log_level = None;
    // The ledger lies on a tmpfs, as it does in /run.
    std::fs::create_dir(node.run_dir()).expect("mkdir");
    rustix::mount::mount("run", node.run_dir(), "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    node.start();
    node.stop();
    let mut ready = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let socket = node.folder.join("notify");
        let _ = std::fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixDatagram::bind(&socket).expect("bind");
        node.env = vec![("NOTIFY_SOCKET".to_owned(), socket.display().to_string())];
        node.spawn();
        let mut said = [0; 256];
        loop {
            let n = listener.recv(&mut said).expect("notification");
            if String::from_utf8_lossy(&said[..n]).contains("READY=1") {
                break;
            }
        }
        ready.push(begun.elapsed());
        node.stop();
    }
    node.env.clear();
    rows.push(plain_row("ready after start", percentiles(ready), "ms", 50.0, "1450"));

    node.start();
    let pss = pss_of(node.pid());
    rows.push(plain_row("idle memory, daemon and helpers (PSS)", (pss, pss), "MiB", 12.0, "29 (RSS)"));

    let mut caller = Caller::new(&node.socket());
    for name in ["ours", "floor"] {
        caller.call("VolumeDriver.Create", &json!({ "Name": name, "Opts": { "size": "1G" } }));
    }
    let target = node.folder.join("floor");
    std::fs::create_dir(&target).expect("mkdir");
    let image = node.image("floor");
    let mount = json!({ "Name": "ours", "ID": "bench" });
    let [mut our_mount, mut our_unmount, mut bare_mount, mut bare_unmount] = [const { Vec::new() }; 4];
    let [mut get, mut path] = [const { Vec::new() }; 2];
    for round in 0..ROUNDS {
        let mut bare = || {
            let mounted = timed(&mut bare_mount, || floor::mount(&image, &target)).expect("floor mount");
            timed(&mut bare_unmount, || floor::unmount(mounted, &target)).expect("floor unmount");
        };
        // Who begins changes, so that neither always finds the caches as the other left them.
        if round % 2 == 0 {
            bare();
        }
        timed(&mut our_mount, || caller.call("VolumeDriver.Mount", &mount));
        timed(&mut get, || caller.call("VolumeDriver.Get", &json!({ "Name": "ours" })));
        timed(&mut path, || caller.call("VolumeDriver.Path", &json!({ "Name": "ours" })));
        timed(&mut our_unmount, || caller.call("VolumeDriver.Unmount", &mount));
        if round % 2 == 1 {
            bare();
        }
    }
    rows.push(ratio_row("Mount of an existing clean volume", our_mount, bare_mount, 2.0, "586"));
    rows.push(ratio_row("Unmount of the last holder", our_unmount, bare_unmount, 2.0, "21"));
    rows.push(plain_row("Get", percentiles(get), "ms", 0.3, "7.5"));
    rows.push(plain_row("Path", percentiles(path), "ms", 0.3, "10.7"));

    let mut create = Vec::new();
    for n in 0..100 {
        timed(&mut create, || caller.call("VolumeDriver.Create", &json!({ "Name": format!("v{n}"), "Opts": { "size": "64M" } })));
    }
    rows.push(plain_row("Create, 64 MiB ext4 (no bar yet)", percentiles(create), "ms", f64::INFINITY, "25.7"));
    let mut list = Vec::new();
    for _ in 0..50 {
        timed(&mut list, || caller.call("VolumeDriver.List", &json!({})));
    }
    rows.push(plain_row("List of 102 (no bar yet)", percentiles(list), "ms", f64::INFINITY, "15.9 (of 100)"));
    node.stop();
    rustix::mount::unmount(node.run_dir(), UnmountFlags::DETACH).expect("unmount");
    node.assert_nothing_left();

    println!("{:40} {:>9} {:>9} {:>9} {:>9}  {:34} REX-Ray p50", "what", "p50", "p99", "floor p50", "floor p99", "bar");
    for row in &rows {
        let floor = row.floor.map_or(("-".to_owned(), "-".to_owned()), |f| (format!("{:.3}", f.0), format!("{:.3}", f.1)));
        let met = if row.met { "" } else { "  MISSED" };
        println!(
            "{:40} {:>9.3} {:>9.3} {:>9} {:>9}  {:34} {}{met}",
            row.what,
            row.ours.0,
            row.ours.1,
            floor.0,
            floor.1,
            row.bar.replace("inf", "∞"),
            row.rexray
        );
    }
    let rendered: Vec<Value> = rows
        .iter()
        .map(|row| {
            let floor = row.floor.map(|f| json!({ "p50": f.0, "p99": f.1 }));
            json!({ "what": row.what, "unit": row.unit, "p50": row.ours.0, "p99": row.ours.1, "floor": floor, "bar": row.bar, "met": row.met })
        })
        .collect();
    let text = serde_json::to_string_pretty(&rendered).expect("json");
    match json_path {
        Some(path) => std::fs::write(&path, text + "\n").unwrap_or_else(|e| panic!("{path}: {e}")),
        None => println!("{text}"),
    }
    if rows.iter().any(|row| !row.met) {
        std::process::exit(1);
    }
}

/// What a process and its children share fairly of the memory, in MiB.
fn pss_of(pid: u32) -> f64 {
    let mut sum = 0.0;
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if process != pid && parent != Some(pid) {
            continue;
        }
        let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        sum += kib.unwrap_or(0.0) / 1024.0;
    }
    sum
}
