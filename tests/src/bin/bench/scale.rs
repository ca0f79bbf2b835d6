//! Ten thousand volumes, a thousand mounts, eight callers at once.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dunnage_host::linux::floor;
use dunnage_tests::{BOUND, Node, kernel};
use serde_json::{Value, json};

use crate::{Caller, Row, end, percentiles, plain_row, pss_of, quiet_node, ready, rest, times_row};

const VOLUMES: usize = 10_000;
const MOUNTS: usize = 1_000;
const CALLERS: usize = 8;
/// Mounts and unmounts of each caller.
const EACH: usize = 40;

pub fn rows() -> Vec<Row> {
    let mut rows = many_volumes();
    rows.extend(many_mounts());
    rows.extend(many_callers());
    rows
}

/// A pool with this many volumes: one is made, and its record is written again under other names, with an image that has
/// its size. (They are never mounted.)
fn fill(node: &Node, count: usize) {
    Caller::new(&node.socket()).call("VolumeDriver.Create", &json!({ "Name": "v0", "Opts": { "size": "1G" } }));
    let pool = node.pool();
    let record: Value = serde_json::from_slice(&std::fs::read(pool.join("v0/record.json")).expect("record")).expect("json");
    for n in 1..count {
        let folder = pool.join(format!("v{n}"));
        std::fs::create_dir(&folder).expect("mkdir");
        let mut record = record.clone();
        record["name"] = format!("v{n}").into();
        record["id"] = uuid::Uuid::new_v4().to_string().into();
        std::fs::write(folder.join("record.json"), record.to_string()).expect("record");
        std::fs::File::create(folder.join("image")).and_then(|image| image.set_len(1 << 30)).expect("image");
    }
}

/// From the start of the process to the first List that has all volumes: a daemon is ready before it has listed them.
fn listed(node: &mut Node) -> Duration {
    let begun = Instant::now();
    node.spawn();
    let stream = loop {
        match UnixStream::connect(node.socket()) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
        assert!(begun.elapsed() < BOUND, "nobody listens");
    };
    let mut caller = Caller(stream);
    let elapsed = loop {
        let answer = caller.ask("VolumeDriver.List", &json!({}));
        let elapsed = begun.elapsed();
        if String::from_utf8_lossy(&answer).matches("\"Name\":").count() == VOLUMES {
            break elapsed;
        }
        assert!(elapsed < BOUND, "not all are listed");
    };
    node.stop();
    elapsed
}

fn many_volumes() -> Vec<Row> {
    let mut node = quiet_node();
    node.start();
    fill(&node, VOLUMES);
    node.stop();
    let times = (0..10).map(|_| ready(&mut node)).collect();
    let all = (0..10).map(|_| listed(&mut node)).collect();
    node.start();
    let mut caller = Caller::new(&node.socket());
    let listed: Value = serde_json::from_slice(&caller.ask("VolumeDriver.List", &json!({}))).expect("json");
    assert_eq!(listed["Volumes"].as_array().map(Vec::len), Some(VOLUMES));
    let mut list = Vec::new();
    for _ in 0..30 {
        rest();
        let begun = Instant::now();
        caller.ask("VolumeDriver.List", &json!({}));
        list.push(begun.elapsed());
    }
    let pss = pss_of(node.pid());
    end(node);
    vec![
        plain_row("ready after start with 10,000 volumes", percentiles(times), "ms", 500.0, ""),
        plain_row("start to the first complete List of 10,000 (warm)", percentiles(all), "ms", 500.0, ""),
        plain_row("List of 10,000", percentiles(list), "ms", 50.0, "15.9 (of 100)"),
        plain_row("memory with 10,000 volumes, listed (PSS)", (pss, pss), "MiB", 40.0, ""),
    ]
}

/// Medians of a mount and an unmount of one volume, while others are as they are.
fn pair(caller: &mut Caller) -> (Vec<Duration>, Vec<Duration>) {
    let body = json!({ "Name": "one", "ID": "bench" });
    let (mut mounts, mut unmounts) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        rest();
        let begun = Instant::now();
        caller.call("VolumeDriver.Mount", &body);
        mounts.push(begun.elapsed());
        rest();
        let begun = Instant::now();
        caller.call("VolumeDriver.Unmount", &body);
        unmounts.push(begun.elapsed());
    }
    (mounts, unmounts)
}

fn many_mounts() -> Vec<Row> {
    let mut node = quiet_node();
    node.start();
    let mut caller = Caller::new(&node.socket());
    caller.call("VolumeDriver.Create", &json!({ "Name": "one", "Opts": { "size": "1G" } }));
    for n in 0..MOUNTS {
        caller.call("VolumeDriver.Create", &json!({ "Name": format!("v{n}"), "Opts": { "size": "16M" } }));
    }
    let alone = pair(&mut caller);
    for n in 0..MOUNTS {
        caller.call("VolumeDriver.Mount", &json!({ "Name": format!("v{n}"), "ID": "c" }));
    }
    let among = pair(&mut caller);
    let ids = |node: &Node| (0..MOUNTS).map(|n| kernel::mount_id(&node.mountpoint(&format!("v{n}")))).collect::<Vec<_>>();
    let before = ids(&node);
    let mut again = Vec::new();
    for _ in 0..5 {
        node.kill();
        again.push(ready(&mut node));
        assert_eq!(ids(&node), before, "a restart has touched mounts");
        node.start();
    }
    let mut caller = Caller::new(&node.socket());
    for n in 0..MOUNTS {
        caller.call("VolumeDriver.Unmount", &json!({ "Name": format!("v{n}"), "ID": "c" }));
    }
    end(node);
    vec![
        times_row("Mount with 1,000 others mounted", "with none", among.0, alone.0, 1.3),
        times_row("Unmount with 1,000 others mounted", "with none", among.1, alone.1, 1.3),
        plain_row("ready after kill -9 with 1,000 mounts", percentiles(again), "ms", 1000.0, ""),
    ]
}

/// Pairs of mount and unmount in a second, by so many threads at once.
fn rate(threads: usize, work: impl Fn(usize) -> Box<dyn FnMut() + Send>) -> f64 {
    let workers: Vec<_> = (0..threads).map(work).collect();
    let begun = Instant::now();
    let running: Vec<_> = workers
        .into_iter()
        .map(|mut once| {
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    once();
                }
            })
        })
        .collect();
    running.into_iter().for_each(|thread| thread.join().expect("a caller"));
    (threads * EACH) as f64 / begun.elapsed().as_secs_f64()
}

/// The bare calls, again when another thread was quicker to take the free loop.
fn bare(image: &Path, target: &Path) {
    let mounted = loop {
        match floor::mount(image, target) {
            Ok(mounted) => break mounted,
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {}
            Err(e) => panic!("floor: {e}"),
        }
    };
    floor::unmount(mounted, target).expect("floor unmount");
}

fn many_callers() -> Vec<Row> {
    let mut node = quiet_node();
    node.start();
    let mut caller = Caller::new(&node.socket());
    let mut places: Vec<(PathBuf, PathBuf)> = Vec::new();
    for n in 0..CALLERS {
        for name in ["p", "bare"] {
            caller.call("VolumeDriver.Create", &json!({ "Name": format!("{name}{n}"), "Opts": { "size": "1G" } }));
        }
        let target = node.folder.join(format!("bare{n}"));
        std::fs::create_dir(&target).expect("mkdir");
        places.push((node.image(&format!("bare{n}")), target));
    }
    let socket = node.socket();
    let ours = |n: usize| -> Box<dyn FnMut() + Send> {
        let (mut caller, body) = (Caller::new(&socket), json!({ "Name": format!("p{n}"), "ID": "bench" }));
        Box::new(move || {
            caller.call("VolumeDriver.Mount", &body);
            caller.call("VolumeDriver.Unmount", &body);
        })
    };
    let floor = |n: usize| -> Box<dyn FnMut() + Send> {
        let (image, target) = places[n].clone();
        Box::new(move || bare(&image, &target))
    };
    // Once each before, so that neither finds cold caches.
    rate(CALLERS, ours);
    rate(CALLERS, floor);
    let (one, eight) = (rate(1, ours), rate(CALLERS, ours));
    let (bare_one, bare_eight) = (rate(1, floor), rate(CALLERS, floor));
    end(node);
    let (speedup, bare_speedup) = (eight / one, bare_eight / bare_one);
    let bar = format!("× {speedup:.2} with 8; the bare calls × {bare_speedup:.2} (at least 0.8 of that)");
    vec![Row {
        what: "mounts and unmounts by 8 callers, pairs/s",
        ours: (eight, one),
        floor: Some((bare_eight, bare_one)),
        unit: "1/s",
        bar,
        met: speedup >= 0.8 * bare_speedup,
        rexray: "",
    }]
}
