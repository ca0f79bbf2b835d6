//! What a program gets through a mounted volume, beside the same filesystem mounted by hand on a loop with the same flags; and
//! beside that a second one by hand, which shows how far two that are the same differ here.

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
    for name in ["ours", "hand", "hand2"] {
        caller.call("VolumeDriver.Create", &json!({ "Name": name, "Opts": { "size": "1G" } }));
    }
    caller.call("VolumeDriver.Mount", &json!({ "Name": "ours", "ID": "bench" }));
    let (ours, hand, second) = (node.mountpoint("ours"), node.folder.join("hand"), node.folder.join("hand2"));
    let by_hand = |name: &str, folder: &Path| {
        std::fs::create_dir(folder).expect("mkdir");
        floor::mount(&node.image(name), folder).expect("floor mount")
    };
    let mounted = [by_hand("hand", &hand), by_hand("hand2", &second)];
    // All files are there and filled before anything is measured.
    for folder in [&ours, &hand, &second] {
        fio(folder, &["--rw=write", "--bs=1M", "--iodepth=4"], "write", None);
    }
    let mut rows = Vec::new();
    for (what, flags, side) in JOBS {
        let [mut us, mut them, mut others] = [const { Vec::new() }; 3];
        for pair in 0..PAIRS {
            let mut turn = [(&ours, &mut us), (&hand, &mut them), (&second, &mut others)];
            // Who begins changes.
            turn.rotate_left(pair % 3);
            for (folder, into) in turn {
                into.push(fio(folder, flags, side, Some(seconds)));
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
    for (bare, folder) in mounted.into_iter().zip([&hand, &second]) {
        floor::unmount(bare, folder).expect("floor unmount");
    }
    caller.call("VolumeDriver.Unmount", &json!({ "Name": "ours", "ID": "bench" }));
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
