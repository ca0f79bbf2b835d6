//! Figures, each beside its floor in the same run: `cargo xtask bench`.
//!
//! Floor and daemon use the same pool, the same kind of image, the same loop flags and mount options, and take turns, so
//! that a noisy machine is noisy for both. A bar is a ratio; where it is missed, the row says so and the exit code is 1.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use dunnage_tests::Node;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

mod failover;
mod io;
mod processes;
mod scale;
mod single;
mod stuck;

/// A connection that stays, as dockerd's does.
struct Caller(UnixStream);

impl Caller {
    fn new(socket: &Path) -> Caller {
        Caller(UnixStream::connect(socket).expect("connect"))
    }

    /// One call that works; its answer is read and not understood, which would be the caller's own cost.
    fn call(&mut self, call: &str, body: &Value) {
        let answer = self.ask(call, body);
        assert!(answer.windows(8).any(|w| w == b"\"Err\":\"\""), "{call}: {}", String::from_utf8_lossy(&answer));
    }

    fn ask(&mut self, call: &str, body: &Value) -> Vec<u8> {
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
                return bytes.split_off(split + 4);
            }
        }
    }
}

/// A moment before each measurement: calls come to a machine at rest, and one that follows at once on another finds
/// processors awake and caches warm.
fn rest() {
    std::thread::sleep(Duration::from_millis(2));
}

fn timed<T>(into: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    rest();
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

/// So many times what the same costs under other circumstances.
fn times_row(what: &'static str, beside: &str, ours: Vec<Duration>, other: Vec<Duration>, most: f64) -> Row {
    let (ours, other) = (percentiles(ours), percentiles(other));
    let ratio = ours.0 / other.0;
    let bar = format!("{ratio:.2} × {beside} (at most {most})");
    Row { what, ours, floor: Some(other), unit: "ms", bar, met: ratio <= most, rexray: "" }
}

/// A node as a user has it: it logs what a user's does, and its ledger lies on a tmpfs, as it does in /run.
fn quiet_node() -> Node {
    let mut node = Node::new();
    node.log_level = None;
    std::fs::create_dir(node.run_dir()).expect("mkdir");
    rustix::mount::mount("run", node.run_dir(), "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    node
}

/// Stops a quiet node, of which nothing may be left.
fn end(node: Node) {
    end_with(node, || {});
}

/// The same; what was put beneath it is taken away when its daemon has stopped.
fn end_with(mut node: Node, take_away: impl FnOnce()) {
    node.stop();
    take_away();
    rustix::mount::unmount(node.run_dir(), UnmountFlags::DETACH).expect("unmount");
    node.assert_nothing_left();
}

/// From the start of the process to READY=1 at the service manager's socket, with a pool that is there.
fn ready(node: &mut Node) -> Duration {
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
    let elapsed = begun.elapsed();
    node.stop();
    node.env.clear();
    elapsed
}

type Section = fn() -> Vec<Row>;

/// The measurements, by the name that asks for one alone.
const SECTIONS: [(&str, Section); 6] = [
    ("single", single::rows),
    ("scale", scale::rows),
    ("stuck", stuck::rows),
    ("dvdcli", processes::rows),
    ("io", io::rows),
    ("failover", failover::rows),
];

/// What follows this word on the command line.
fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() {
    let json_path = argument("--json");
    let name = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    let chosen: Vec<_> = SECTIONS.iter().filter(|(section, _)| name.as_deref().is_none_or(|name| name == *section)).collect();
    assert!(!chosen.is_empty(), "there is no measurement {name:?}: use one of {:?}", SECTIONS.map(|(section, _)| section));
    let rows: Vec<Row> = chosen.iter().flat_map(|(_, section)| section()).collect();

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
