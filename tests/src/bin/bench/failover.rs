//! Volumes of Ceph: what a mount costs beside the same tools by hand, and how long a volume is away when it moves and when its node
//! has lost power.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dunnage_tests::ceph::{Ceph, POOL, USER};
use dunnage_tests::{BOUND, Node, eventually, kernel, sh};
use serde_json::json;

use crate::{Row, percentiles, plain_row, times_row};

const MOUNTS: usize = 15;
const MOVES: usize = 15;
const CUTS: usize = 5;

pub fn rows() -> Vec<Row> {
    let Some(mut ceph) = Ceph::with_devices(3) else {
        println!("Ceph is not installed: failover is not measured");
        return Vec::new();
    };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    for volume in ["ours", "hand"] {
        a.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": {} }));
    }
    let mut rows = vec![mounts(&ceph, &a), moves(&a, &b)];

    let own = "  of it after the platform has forgotten the dead client";
    let by_default = ["RBD: from a power cut to the first write on the next node", own];
    rows.extend(cuts(&ceph, &mut a, &mut b, by_default, 45.0));
    // What the test's cluster has is quicker than what an operator's has who did nothing about it.
    ceph.slow_mon();
    let slow_mon = ["RBD: the same with Ceph's default paxos intervals", own];
    rows.extend(cuts(&ceph, &mut a, &mut b, slow_mon, 45.0));
    a.finish();
    b.finish();

    ceph.ceph(&["config", "set", "osd", "osd_client_watch_timeout", "10"]).ok();
    let fast = ", silence: 5s";
    let (mut a, mut b) = (ceph.node_with("a", fast, ""), ceph.node_with("b", fast, ""));
    let fast = ["RBD: the same with osd_client_watch_timeout 10, silence 5s", own];
    rows.extend(cuts(&ceph, &mut a, &mut b, fast, 15.0));
    a.finish();
    b.finish();
    rows
}

fn mounts(ceph: &Ceph, a: &Node) -> Row {
    let folder = ceph.folder.join("hand");
    std::fs::create_dir_all(folder.join("mounted")).expect("mkdir");
    let [mut ours, mut hand] = [const { Vec::new() }; 2];
    for _ in 0..MOUNTS {
        let begun = Instant::now();
        a.mount("ours", "bench");
        ours.push(begun.elapsed());
        a.unmount("ours", "bench");
        hand.push(by_hand(ceph, &folder));
    }
    times_row("RBD: attach and mount of a volume that is there", "the same tools by hand", ours, hand, 1.5)
}

/// qemu-storage-daemon, losetup and mount; then all of it back, which is not measured.
fn by_hand(ceph: &Ceph, folder: &Path) -> Duration {
    let (file, pid) = (folder.join("device"), folder.join("pid"));
    std::fs::write(&file, "").expect("a file to mount on");
    let blockdev = json!({
        "driver": "rbd", "node-name": "n", "pool": POOL, "image": "hand", "conf": ceph.conf(), "user": USER, "discard": "unmap",
        "cache": { "direct": true },
    });
    let export = json!({ "type": "fuse", "id": "e", "node-name": "n", "mountpoint": file, "writable": true });
    let begun = Instant::now();
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &blockdev.to_string(), "--export", &export.to_string(), "--daemonize", "--pidfile"]).arg(&pid);
    assert!(command.stdin(Stdio::null()).status().expect("qemu-storage-daemon").success());
    let device = sh(&format!("losetup -f --show --direct-io=on {}", file.display()));
    sh(&format!("mount -t ext4 -o nosuid,nodev {device} {}/mounted", folder.display()));
    let elapsed = begun.elapsed();
    let carrier = sh(&format!("cat {}", pid.display()));
    // One that is told to end right after its loop was detached now and then does not.
    sh(&format!("umount {}/mounted; losetup -d {device}; sleep 0.2; kill {carrier}", folder.display()));
    eventually("it has ended", BOUND, || kernel::processes_with(&file.display().to_string()).is_empty());
    elapsed
}

fn moves(a: &Node, b: &Node) -> Row {
    let mut times = Vec::new();
    a.mount("ours", "bench");
    let (mut from, mut to) = (a, b);
    for _ in 0..MOVES {
        let begun = Instant::now();
        from.unmount("ours", "bench");
        to.mount("ours", "bench");
        times.push(begun.elapsed());
        std::mem::swap(&mut from, &mut to);
    }
    from.unmount("ours", "bench");
    plain_row("RBD: from Unmount asked on A to Mount answered on B", percentiles(times), "ms", 1500.0, "")
}

/// From the cut to the first write on the next node; and of that what comes after the platform has forgotten the dead client, which
/// nobody can hurry but the cluster's operator.
fn cuts(ceph: &Ceph, a: &mut Node, b: &mut Node, [whole, part]: [&'static str; 2], most: f64) -> Vec<Row> {
    let pool = ceph.pool();
    let [mut all, mut own] = [const { Vec::new() }; 2];
    let mut shares = SHARES.map(|_| Vec::new());
    let (mut from, mut to) = (a, b);
    for _ in 0..CUTS {
        let path = from.mount("ours", "bench");
        sh(&format!("echo written >{0}/file; sync {0}/file", path.display()));
        let dead = pool.image_watchers("ours").expect("watchers").expect("an image")[0].address;
        from.cut_power();
        let begun = Instant::now();
        let forgotten = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let watches = || pool.image_watchers("ours").expect("watchers").expect("an image").iter().any(|w| w.address == dead);
                eventually("the dead client is forgotten", 2 * BOUND, || !watches());
                begun.elapsed()
            });
            let path = to.mount("ours", "bench");
            sh(&format!("echo first >{0}/file; sync {0}/file", path.display()));
            all.push(begun.elapsed());
            watching.join().expect("watching")
        });
        own.push(all[all.len() - 1].saturating_sub(forgotten));
        let took = steps(&to.log());
        for ((_, of_share), into) in SHARES.iter().zip(&mut shares) {
            into.push(took.iter().filter(|(step, _)| of_share.contains(&step.as_str())).map(|(_, took)| *took).sum());
        }
        to.unmount("ours", "bench");
        from.start();
        std::mem::swap(&mut from, &mut to);
    }
    let seconds = |times: Vec<Duration>| {
        let (middle, worst) = percentiles(times);
        (middle / 1e3, worst / 1e3)
    };
    let (all, own) = (seconds(all), seconds(own));
    let mut rows = vec![plain_row(whole, all, "s", most, ""), plain_row(part, own, "s", 2.0, "")];
    // The worst counts, too.
    rows[1].bar += ", at the worst 10";
    rows[1].met &= own.1 <= 10.0;
    let share = |((what, _), times): (&(&'static str, &[&str]), Vec<Duration>)| Row {
        what,
        ours: percentiles(times),
        floor: None,
        unit: "ms",
        bar: String::new(),
        met: true,
        rexray: "",
    };
    rows.extend(SHARES.iter().zip(shares).map(share));
    rows
}

/// What a takeover is made of, by the steps that the daemon's log names. (A scheduler's own part is none of them.)
const SHARES: [(&str, &[&str]); 6] = [
    ("    waiting for the dead node's time to be over", &["own-read", "own-clients", "own-observe", "own-wait"]),
    ("    the claim, twice written", &["own-swap"]),
    ("    the fence", &["own-fence"]),
    ("    the barrier", &["own-barrier"]),
    ("    attach", &["attach", "name"]),
    ("    mount: the journal's recovery, and looking before and after", &["look", "record", "inspect", "mount", "check", "commit"]),
];

/// How long each step of the last mount took, as the daemon has logged it.
fn steps(log: &str) -> Vec<(String, Duration)> {
    let begun = log.rfind("goal=\"stage\"}: step step=\"look\"").expect("a mount was logged");
    let step = |line: &str| -> Option<(jiff::Timestamp, String)> {
        let (time, rest) = line.split_once(' ')?;
        let name = rest.contains("goal=\"stage\"").then(|| rest.rsplit_once("step=\""))??.1;
        Some((time.parse().ok()?, name.trim_end_matches('"').to_owned()))
    };
    let start = log[..begun].rfind('\n').map_or(0, |end| end + 1);
    let steps: Vec<_> = log[start..].lines().filter_map(step).collect();
    let took = |pair: &[(jiff::Timestamp, String)]| (pair[0].1.clone(), Duration::try_from(pair[1].0 - pair[0].0).unwrap_or_default());
    steps.windows(2).map(took).collect()
}
