//! What a program gets through a mounted volume, beside the very same one mounted by hand on a loop with the same flags: two
//! images differ by where they lie, on a disk as in memory, by more than is to be seen here. A second turn by hand shows how far
//! two that are the same differ.

use std::path::Path;
use std::process::Command;

use dunnage_host::linux::floor;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use crate::{Caller, Row, argument, end_with, quiet_node};

const PAIRS: usize = 7;

/// (what, fio's flags, which side of its answer)
const JOBS: [(&str, &[&str], &str); 5] = [
    ("fio 4k random write, IOPS", &["--rw=randwrite", "--bs=4k", "--iodepth=16"], "write"),
    ("fio 4k random read, IOPS", &["--rw=randread", "--bs=4k", "--iodepth=16"], "read"),
    ("fio 1M sequential write, IOPS", &["--rw=write", "--bs=1M", "--iodepth=4"], "write"),
    ("fio 1M sequential read, IOPS", &["--rw=read", "--bs=1M", "--iodepth=4"], "read"),
    ("fio 4k write and fsync, IOPS", &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"], "write"),
];

pub fn rows() -> Vec<Row> {
    let seconds = argument("--seconds").map_or(1.5, |text| text.parse().expect("--seconds is a number"));
    if Command::new("fio").arg("--version").output().is_err() {
        println!("fio is not installed (package fio): the volumes' throughput is not measured");
        return Vec::new();
    }
    let mut node = quiet_node();
    // A disk that others use, too, is a noise in which a few percent are not to be heard.
    let memory = std::env::args().any(|word| word == "--memory");
    if memory {
        std::fs::create_dir(node.state()).expect("mkdir");
        rustix::mount::mount("pool", node.state(), "tmpfs", MountFlags::empty(), c"size=3G").expect("tmpfs");
    }
    node.start();
    let mut caller = Caller::new(&node.socket());
    caller.call("VolumeDriver.Create", &json!({ "Name": "v", "Opts": { "size": "1G" } }));
    let (image, ours, hand) = (node.image("v"), node.mountpoint("v"), node.folder.join("hand"));
    std::fs::create_dir(&hand).expect("mkdir");
    let mut through_us = |flags: &[&str], side: &str, seconds: Option<f64>| {
        caller.call("VolumeDriver.Mount", &json!({ "Name": "v", "ID": "bench" }));
        let iops = fio(&ours, flags, side, seconds);
        caller.call("VolumeDriver.Unmount", &json!({ "Name": "v", "ID": "bench" }));
        iops
    };
    let by_hand = |flags: &[&str], side: &str, seconds: Option<f64>| {
        let mounted = floor::mount(&image, &hand).expect("floor mount");
        let iops = fio(&hand, flags, side, seconds);
        floor::unmount(mounted, &hand).expect("floor unmount");
        iops
    };
    // The file is there and filled before anything is measured.
    through_us(&["--rw=write", "--bs=1M", "--iodepth=4"], "write", None);
    let mut rows = Vec::new();
    for (what, flags, side) in JOBS {
        let [mut us, mut them, mut others] = [const { Vec::new() }; 3];
        for pair in 0..PAIRS {
            // Who begins changes.
            for turn in 0..3 {
                match (pair + turn) % 3 {
                    0 => us.push(through_us(flags, side, Some(seconds))),
                    1 => them.push(by_hand(flags, side, Some(seconds))),
                    _ => others.push(by_hand(flags, side, Some(seconds))),
                }
            }
        }
        let median_ratio = |ones: &[f64]| {
            let mut ratios: Vec<f64> = ones.iter().zip(&them).map(|(one, other)| one / other).collect();
            ratios.sort_by(f64::total_cmp);
            ratios[PAIRS / 2]
        };
        let (ratio, noise) = (median_ratio(&us), median_ratio(&others));
        for list in [&mut us, &mut them] {
            list.sort_by(f64::total_cmp);
        }
        let middle = PAIRS / 2;
        let bar = format!("{ratio:.2} × the same by hand (at least 0.97; a second one by hand: {noise:.2})");
        rows.push(Row {
            what,
            ours: (us[middle], us[0]),
            floor: Some((them[middle], them[0])),
            unit: "1/s",
            bar,
            met: ratio >= 0.97,
            rexray: "",
        });
    }
    let state = node.state();
    end_with(node, || {
        if memory {
            rustix::mount::unmount(&state, UnmountFlags::DETACH).expect("unmount");
        }
    });
    rows
}

/// One run, of so many seconds or of the whole file; gives its operations in a second.
fn fio(folder: &Path, flags: &[&str], side: &str, seconds: Option<f64>) -> f64 {
    let mut command = Command::new("fio");
    command.args(["--name=x", "--filename=fio", "--size=256M", "--direct=1", "--ioengine=libaio", "--output-format=json", "--norandommap"]);
    if let Some(seconds) = seconds {
        command.arg("--time_based").arg(format!("--runtime={}ms", (seconds * 1000.0).round()));
    }
    let output = command.args(flags).current_dir(folder).output().expect("fio");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "fio: {text}{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_str(&text[text.find('{').expect("JSON")..]).expect("JSON");
    answer["jobs"][0][side]["iops"].as_f64().expect("iops")
}
