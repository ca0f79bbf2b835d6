//! What a call of dvdcli costs as a process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use dunnage_tests::{binary, http};
use serde_json::json;

use crate::{Row, end, percentiles, quiet_node, rest};

pub fn rows() -> Vec<Row> {
    let mut node = quiet_node();
    node.start();
    node.cli(&["volume", "create", "v", "-o", "size=16M"]).ok();
    let dvdcli = node.folder.join("dvdcli");
    std::os::unix::fs::symlink(binary(), &dvdcli).expect("symlink");
    let empty = node.folder.join("empty");
    let source = node.folder.join("empty.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").expect("write");
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).args([&empty, &source]).status().expect("cc (package build-essential)");
    assert!(built.success(), "cc");

    let spawn = |program: &Path, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).env("DUNNAGE_PLUGIN_DIR", &node.plugins).stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let output = command.output().expect("it runs");
        let elapsed = begun.elapsed();
        assert!(output.status.success(), "{}", program.display());
        elapsed
    };
    let mount = ["mount", "--volumedriver=dunnage", "--volumename=v"];
    // Mounted already: what is measured is the program, and the calls are subtracted as the same calls cost.
    spawn(&dvdcli, &mount);
    let [mut process, mut floor, mut calls] = [const { Vec::new() }; 3];
    for _ in 0..200 {
        rest();
        floor.push(spawn(&empty, &[]));
        rest();
        process.push(spawn(&dvdcli, &mount));
        rest();
        let begun = Instant::now();
        for (call, body) in
            [("Plugin.Activate", json!({})), ("VolumeDriver.Get", json!({ "Name": "v" })), ("VolumeDriver.Mount", json!({ "Name": "v" }))]
        {
            http::post(&node.socket(), &format!("/{call}"), body.to_string().as_bytes());
        }
        calls.push(begun.elapsed());
    }
    spawn(&dvdcli, &["unmount", "--volumedriver=dunnage", "--volumename=v"]);
    end(node);
    let (process, floor, calls) = (percentiles(process), percentiles(floor), percentiles(calls));
    let more = process.0 - calls.0 - floor.0;
    vec![Row {
        what: "dvdcli mount as a process",
        ours: process,
        floor: Some(floor),
        unit: "ms",
        bar: format!("{more:.2} ms over an empty static program, calls ({:.2} ms) aside (at most 1)", calls.0),
        met: more <= 1.0,
        rexray: "6 (dvdcli 0.2, in all)",
    }]
}
