//! `kill -9` before and after every step of every verb. After each: the daemon starts again, the kernel, the ledger and
//! the pool agree, the verb can be repeated, what was written is there, and a neighbour that is mounted is not touched.
//!
//! And at any moment of many calls at once, within a step too.
//!
//! The steps are those that the daemon says in its log that it takes, so that a new one is not forgotten here.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use dunnage_tests::fuse::sh;
use dunnage_tests::{BOUND, Node, eventually, http, is_mounted, kernel};
use serde_json::{Value, json};

/// A node with a volume `keep`, mounted all the time, with a file in it.
struct Bench {
    node: Node,
    neighbour: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut node = Node::new();
        node.start();
        create(&node, "keep");
        let path = node.mount("keep", "k");
        eventually("its holder is confirmed", BOUND, || node.holders("keep") == [(Some("k".to_owned()), 1, 0, 0)]);
        sh(&format!("echo kept > {}/x; sync -f {0}/x", path.display()));
        let neighbour = kernel::mount_id(&path).expect("mounted");
        Bench { node, neighbour }
    }

    /// The crash points of a goal that has just been reached in peace: before and after each step.
    fn points(&self, goal: &str) -> Vec<String> {
        let of_goal = format!("goal=\"{goal}\"}}: step step=\"");
        let mut steps: Vec<String> = Vec::new();
        for step in self.node.log().lines().filter_map(|line| line.split_once(&of_goal)?.1.strip_suffix('"').map(str::to_owned)) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        assert!(steps.len() > 3 && steps.last().is_some_and(|step| step == "done"), "{goal} took the steps {steps:?}");
        // Nothing is done after the last.
        let both = steps.iter().flat_map(|step| ["before", "after"].map(|when| format!("{goal}/{step}/{when}")));
        both.filter(|point| !point.ends_with("done/after")).collect()
    }

    /// Has the daemon die at `point` of a call, and starts it again.
    fn crash(&mut self, point: &str, call: &str, body: &Value) {
        eprintln!("at {point}");
        self.node.stop();
        self.node.env = vec![("DUNNAGE_CRASH_AT".to_owned(), point.to_owned())];
        self.node.start();
        let answer = http::post(&self.node.socket(), &format!("/{call}"), body.to_string().as_bytes());
        assert_eq!(answer.status, 0, "{point}: it answered: {}", String::from_utf8_lossy(&answer.body));
        self.node.wait_until_dead();
        self.node.env.clear();
        self.node.start();
    }

    /// Kernel, ledger and pool say the same of a volume, in the end; gives whether it is there, and mounted.
    #[track_caller]
    fn agreed(&self, volume: &str) -> (bool, bool) {
        let begun = Instant::now();
        let seen = loop {
            match self.look(volume) {
                Ok(seen) => break seen,
                Err(differs) => assert!(begun.elapsed() < BOUND, "they do not agree on {volume}: {differs}"),
            }
        };
        let path = self.node.mountpoint("keep");
        assert_eq!(kernel::mount_id(&path), Some(self.neighbour), "the neighbour's mount was touched");
        assert_eq!(sh(&format!("cat {}/x", path.display())), "kept");
        seen
    }

    fn look(&self, volume: &str) -> Result<(bool, bool), String> {
        let inspected = self.node.cli(&["volume", "inspect", volume, "-o", "json"]);
        let folder = self.node.pool().join(volume);
        let loops = kernel::loops_beneath(&folder).len();
        let mounted = is_mounted(&self.node.mountpoint(volume));
        if inspected.code == 3 {
            let gone = !folder.exists() && loops == 0 && !mounted;
            return if gone { Ok((false, false)) } else { Err(format!("not found, and {loops} loops, mounted: {mounted}")) };
        }
        let inspected: Value = serde_json::from_str(&inspected.ok()).map_err(|e| e.to_string())?;
        let held = inspected["holders"].as_array().is_some_and(|holders| !holders.is_empty());
        let known = inspected["mountpoint"].is_string();
        let mut files: Vec<String> = std::fs::read_dir(&folder)
            .map_err(|e| e.to_string())?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let idle = inspected["jobs"].as_array().is_some_and(Vec::is_empty);
        let whole = inspected["state"] == "ready" && files == ["image", "record.json"];
        if idle && whole && held == known && known == mounted && loops == usize::from(mounted) {
            return Ok((true, mounted));
        }
        Err(format!("held {held}, known {known}, mounted {mounted}, {loops} loops, files {files:?}, {inspected}"))
    }

    /// The volume can be used, and its data is there.
    #[track_caller]
    fn used(&self, volume: &str, id: &str) {
        let path = self.node.mount(volume, id);
        eventually("its holder is confirmed, once", BOUND, || self.node.holders(volume) == [(Some(id.to_owned()), 1, 0, 0)]);
        assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
        self.node.unmount(volume, id);
        assert_eq!(self.agreed(volume), (true, false));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.node.unmount("keep", "k");
            self.node.assert_nothing_left();
        }
    }
}

fn create(node: &Node, volume: &str) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }));
}

fn write(node: &Node, volume: &str) -> PathBuf {
    let path = node.mount(volume, "w");
    sh(&format!("echo written > {}/x", path.display()));
    path
}

/// A volume with a file in it, not mounted.
fn with_data(node: &Node, volume: &str) {
    create(node, volume);
    write(node, volume);
    node.unmount(volume, "w");
}

#[test]
fn a_create_that_is_killed_at_any_step_is_finished_or_undone() {
    let mut bench = Bench::new();
    for (n, point) in bench.points("create").into_iter().enumerate() {
        let volume = format!("v{n}");
        let body = json!({ "Name": volume, "Opts": { "size": "16M" } });
        bench.crash(&point, "VolumeDriver.Create", &body);
        bench.agreed(&volume);
        create(&bench.node, &volume);
        assert_eq!(bench.agreed(&volume), (true, false), "{point}");
        write(&bench.node, &volume);
        bench.node.unmount(&volume, "w");
        bench.used(&volume, "c1");
    }
}

#[test]
fn a_mount_that_is_killed_at_any_step_is_undone_or_kept_for_its_caller() {
    let mut bench = Bench::new();
    with_data(&bench.node, "v");
    for point in bench.points("stage") {
        bench.crash(&point, "VolumeDriver.Mount", &json!({ "Name": "v", "ID": "c1" }));
        bench.agreed("v");
        // The same caller asks again: it holds the volume once, whatever the first call came to.
        bench.used("v", "c1");
    }
}

#[test]
fn a_mount_that_is_killed_around_a_check_checks_again() {
    let mut bench = Bench::new();
    with_data(&bench.node, "v");
    for point in ["stage/check/before", "stage/check/after"] {
        sh(&format!("debugfs -w -R 'set_super_value state 2' {} 2>&1", bench.node.image("v").display()));
        bench.crash(point, "VolumeDriver.Mount", &json!({ "Name": "v", "ID": "c1" }));
        bench.agreed("v");
        bench.used("v", "c1");
    }
}

#[test]
fn an_unmount_that_is_killed_at_any_step_is_finished() {
    let mut bench = Bench::new();
    with_data(&bench.node, "v");
    for point in bench.points("unstage") {
        bench.node.mount("v", "c1");
        eventually("its holder is confirmed", BOUND, || bench.node.holders("v") == [(Some("c1".to_owned()), 1, 0, 0)]);
        bench.crash(&point, "VolumeDriver.Unmount", &json!({ "Name": "v", "ID": "c1" }));
        assert_eq!(bench.agreed("v"), (true, false), "{point}: its only holder had gone");
        bench.node.unmount("v", "c1");
        bench.used("v", "c2");
    }
}

#[test]
fn a_removal_that_is_killed_at_any_step_is_finished_or_not_begun() {
    let mut bench = Bench::new();
    with_data(&bench.node, "first");
    bench.node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "first" }));
    for (n, point) in bench.points("remove").into_iter().enumerate() {
        let volume = format!("v{n}");
        with_data(&bench.node, &volume);
        bench.crash(&point, "VolumeDriver.Remove", &json!({ "Name": volume }));
        let (there, _) = bench.agreed(&volume);
        if there {
            bench.used(&volume, "c1");
            bench.node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": volume }));
        } else {
            assert!(bench.node.plugin_err("VolumeDriver.Remove", &json!({ "Name": volume })).starts_with("not_found"));
        }
        assert_eq!(bench.agreed(&volume), (false, false), "{point}");
    }
}

#[test]
fn a_recovery_that_is_killed_itself_is_finished_by_the_next() {
    for recovery in ["recover/recover/before", "recover/recover/after"] {
        let mut bench = Bench::new();
        bench.node.stop();
        bench.node.env = vec![("DUNNAGE_CRASH_AT".to_owned(), "create/format/after".to_owned())];
        bench.node.start();
        let body = json!({ "Name": "v", "Opts": { "size": "16M" } });
        http::post(&bench.node.socket(), "/VolumeDriver.Create", body.to_string().as_bytes());
        bench.node.wait_until_dead();
        bench.node.env = vec![("DUNNAGE_CRASH_AT".to_owned(), recovery.to_owned())];
        bench.node.spawn();
        bench.node.wait_until_dead();
        bench.node.env.clear();
        bench.node.start();
        assert_eq!(bench.agreed("v"), (false, false), "{recovery}");
        create(&bench.node, "v");
    }
}

/// Chance with a memory: the same seed, the same choices (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const IDS: [&str; 3] = ["c0", "c1", "c2"];
const KEPT: [&str; 3] = ["v0", "v1", "v2"];
const COMING_AND_GOING: [&str; 2] = ["t0", "t1"];

/// Calls as they come, from one caller, until the daemon is gone.
fn call_until_it_is_gone(socket: &Path, mut chance: Chance) {
    loop {
        let pick = |names: &[&'static str], n: u64| names[usize::try_from(n).expect("small") % names.len()];
        let (kept, coming) = (pick(&KEPT, chance.below(3)), pick(&COMING_AND_GOING, chance.below(2)));
        let id = pick(&IDS, chance.below(3));
        let (call, body) = match chance.below(8) {
            0..=2 => ("Mount", json!({ "Name": kept, "ID": id })),
            3..=5 => ("Unmount", json!({ "Name": kept, "ID": id })),
            6 => ("Create", json!({ "Name": coming, "Opts": { "size": "16M" } })),
            _ => ("Remove", json!({ "Name": coming })),
        };
        let body = body.to_string();
        let Ok(mut stream) = UnixStream::connect(socket) else { return };
        let head = format!("POST /VolumeDriver.{call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut answer = Vec::new();
        if stream.write_all((head + &body).as_bytes()).and_then(|()| stream.read_to_end(&mut answer)).is_err() || answer.is_empty() {
            return;
        }
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_of_many_calls_leaves_nothing_and_loses_nothing() {
    let mut bench = Bench::new();
    KEPT.iter().for_each(|volume| with_data(&bench.node, volume));
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed)).expect("chance");
    let seed = u64::from_le_bytes(seed) | 1;
    println!("seed {seed}");
    let mut chance = Chance(seed);
    for _ in 0..8 {
        let socket = bench.node.socket();
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (socket, chance) = (socket.clone(), Chance(chance.below(u64::MAX) | 1));
                std::thread::spawn(move || call_until_it_is_gone(&socket, chance))
            })
            .collect();
        let until = bench.node.log().lines().count() + 20 + usize::try_from(chance.below(200)).expect("small");
        eventually("so much has been done", BOUND, || bench.node.log().lines().count() > until);
        bench.node.kill();
        callers.into_iter().for_each(|caller| caller.join().expect("caller"));
        bench.node.start();
        for volume in KEPT.iter().chain(&COMING_AND_GOING) {
            bench.agreed(volume);
        }
        for volume in KEPT {
            // Who holds it knows; the test does not, for answers were lost.
            eventually("everybody gives it back", BOUND, || {
                IDS.iter().for_each(|id| bench.node.unmount(volume, id));
                bench.node.holders(volume).is_empty()
            });
            assert_eq!(bench.agreed(volume), (true, false));
            bench.used(volume, "c1");
        }
    }
}
