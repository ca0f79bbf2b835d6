//! What a call of dvdcli costs as a process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use dunnage_tests::{binary, http, small_dvdcli};
use serde_json::json;

use crate::{Row, end, percentiles, quiet_node, rest};

pub fn rows() -> Vec<Row> {
    let mut node = quiet_node();
    node.start();
    node.cli(&["volume", "create", "v", "-o", "size=16M"]).ok();
    // As `install` leaves it where it comes from the archive, and where it comes from a build.
    let small = small_dvdcli();
    let linked = node.folder.join("dvdcli");
    std::os::unix::fs::symlink(binary(), &linked).expect("symlink");
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
    spawn(&small, &mount);
    let [mut process, mut as_link, mut floor, mut calls] = [const { Vec::new() }; 4];
    for _ in 0..200 {
        rest();
        floor.push(spawn(&empty, &[]));
        rest();
        process.push(spawn(&small, &mount));
        rest();
        as_link.push(spawn(&linked, &mount));
        rest();
        let begun = Instant::now();
        for (call, body) in
            [("Plugin.Activate", json!({})), ("VolumeDriver.Get", json!({ "Name": "v" })), ("VolumeDriver.Mount", json!({ "Name": "v" }))]
        {
            http::post(&node.socket(), &format!("/{call}"), body.to_string().as_bytes());
        }
        calls.push(begun.elapsed());
    }
    spawn(&small, &["unmount", "--volumedriver=dunnage", "--volumename=v"]);
    end(node);
    let (floor, calls) = (percentiles(floor), percentiles(calls));
    let row = |what, times, most: f64, rexray| {
        let ours = percentiles(times);
        let more = ours.0 - calls.0 - floor.0;
        let at_most = if most.is_finite() { format!("at most {most}") } else { "no bar".to_owned() };
        let bar = format!("{more:.2} ms over an empty static program, calls ({:.2} ms) aside ({at_most})", calls.0);
        Row { what, ours, floor: Some(floor), unit: "ms", bar, met: more <= most, rexray }
    };
    vec![
        row("dvdcli mount as a process", process, 1.0, "6 (dvdcli 0.2, in all)"),
        row("the same by a link to dunnage", as_link, f64::INFINITY, ""),
    ]
}
