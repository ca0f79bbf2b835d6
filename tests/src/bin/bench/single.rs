//! One volume at a time.

use dunnage_host::linux::floor;
use serde_json::json;

use crate::{Caller, Row, end, percentiles, plain_row, pss_of, quiet_node, ratio_row, ready, timed};

/// How often each thing is done. Enough for a median; the whole takes seconds.
const ROUNDS: usize = 200;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();

    let mut node = quiet_node();
    node.start();
    node.stop();
    let times = (0..20).map(|_| ready(&mut node)).collect();
    rows.push(plain_row("ready after start", percentiles(times), "ms", 50.0, "1450"));

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
    end(node);
    rows
}
