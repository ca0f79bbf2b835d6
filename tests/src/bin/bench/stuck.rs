//! What the volumes of one store cost when those of another hang.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use dunnage_tests::fuse::Store;
use dunnage_tests::{BOUND, Node, eventually, http};
use serde_json::json;

use crate::{Caller, Row, end, percentiles, quiet_node, timed};

const VOLUMES: usize = 100;
const HUNG: usize = 64;
const CALLS: usize = 1_000;

pub fn rows() -> Vec<Row> {
    let mut node = quiet_node();
    let folder = node.folder.join("store");
    std::fs::create_dir_all(&folder).expect("folder");
    let server = std::env::current_exe().expect("our path").with_file_name("fuse-store");
    let store = Store::new(&server.display().to_string(), &folder, 4 << 30);
    node.configure(&format!(
        "drivers: {{ bad: {{ type: local, pool: {}/pool }}, local: {{ type: local }} }}\n\
         endpoints: {{ docker: [ {{ name: dunnage, driver: local }}, {{ name: bad, driver: bad }} ] }}\n",
        store.path().display()
    ));
    node.start();
    let (mut good, bad) = (Caller::new(&node.socket()), node.plugins.join("bad.sock"));
    for n in 0..VOLUMES {
        good.call("VolumeDriver.Create", &json!({ "Name": format!("v{n}"), "Opts": { "size": "16M" } }));
    }
    let mut caller = Caller::new(&bad);
    for n in 0..HUNG {
        caller.call("VolumeDriver.Create", &json!({ "Name": format!("b{n}"), "Opts": { "size": "16M" } }));
    }
    let none = reads(&mut good);
    store.halt();
    let mut hanging: Vec<_> = (0..1).map(|n| mount(&bad, n)).collect();
    wait_until_hung(&node, 1);
    let one = reads(&mut good);
    hanging.extend((1..HUNG).map(|n| mount(&bad, n)));
    wait_until_hung(&node, HUNG);
    let many = reads(&mut good);
    store.go_on();
    hanging.into_iter().for_each(|hanging| assert_eq!(hanging.join().expect("a caller"), 200));
    for n in 0..HUNG {
        caller.call("VolumeDriver.Unmount", &json!({ "Name": format!("b{n}"), "ID": "c" }));
    }
    node.stop();
    drop(store);
    end(node);
    let row = |what, ours: &[Duration], none: &[Duration]| {
        let (ours, none) = (percentiles(ours.to_vec()), percentiles(none.to_vec()));
        let ratio = ours.1 / none.1;
        let bar = format!("p99 {ratio:.2} × with none hung (at most 2)");
        Row { what, ours, floor: Some(none), unit: "ms", bar, met: ratio <= 2.0, rexray: "never (its List hangs too)" }
    };
    vec![
        row("Get, one other volume hung", &one.0, &none.0),
        row("Get, 64 others hung", &many.0, &none.0),
        row("List of 100, one other volume hung", &one.1, &none.1),
        row("List of 100, 64 others hung", &many.1, &none.1),
    ]
}

/// Get and List of the volumes that do not hang.
fn reads(caller: &mut Caller) -> (Vec<Duration>, Vec<Duration>) {
    let (mut get, mut list) = (Vec::new(), Vec::new());
    for n in 0..CALLS {
        timed(&mut get, || caller.call("VolumeDriver.Get", &json!({ "Name": format!("v{}", n % VOLUMES) })));
        timed(&mut list, || caller.call("VolumeDriver.List", &json!({})));
    }
    (get, list)
}

fn mount(socket: &Path, n: usize) -> JoinHandle<u16> {
    let (socket, body) = (socket.to_owned(), json!({ "Name": format!("b{n}"), "ID": "c" }).to_string());
    std::thread::spawn(move || http::post(&socket, "/VolumeDriver.Mount", body.as_bytes()).status)
}

/// So many helpers are in a call that does not come back: in state D, or waiting for the store.
fn wait_until_hung(node: &Node, count: usize) {
    let path = format!("/proc/{0}/task/{0}/children", node.pid());
    let hangs = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "));
    eventually("they hang", BOUND, || {
        let children = std::fs::read_to_string(&path).expect("children");
        children.split_whitespace().filter(|pid| hangs(pid)).count() >= count
    });
}
