//! The crash matrix: every point of every verb × every filesystem × nobody, one and two others that hold the volume.
//!
//! At each point the daemon, a helper of it or the tool that it runs is killed by SIGKILL. The daemon starts again if it was
//! the daemon; the kernel, the ledger and the pool agree; the verb is repeated and works; whoever held the volume holds it
//! still, on the same mount; what was written is read back; and a neighbour that is mounted was not touched.
//!
//! The points are those that a peaceful run comes by, in order, so that a new one is not forgotten here. What was passed is
//! printed as rows of the table in `docs/crash-matrix.md` (`--nocapture`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, http, is_mounted, kernel};
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Mount,
    Unmount,
    Remove,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Create => "Create",
            Verb::Mount => "Mount",
            Verb::Unmount => "Unmount",
            Verb::Remove => "Remove",
        }
    }
}

/// A node with a volume `keep`, mounted all the time; and the volume `v`, to which everything happens.
struct Bench {
    node: Node,
    fs: &'static str,
    size: &'static str,
    neighbour: u64,
}

impl Bench {
    fn new(fs: &'static str, size: &'static str) -> Bench {
        let mut node = Node::new();
        node.allow_crashes();
        node.start();
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "keep", "Opts": { "size": "16M" } }));
        let path = node.mount("keep", "k");
        sh(&format!("echo kept > {}/x; sync -f {0}/x", path.display()));
        let neighbour = kernel::mount_id(&path).expect("mounted");
        let bench = Bench { node, fs, size, neighbour };
        bench.holds("keep", &["k"]);
        bench
    }

    fn body(&self, verb: Verb) -> Value {
        match verb {
            Verb::Create => json!({ "Name": "v", "Opts": { "fs": self.fs, "size": self.size } }),
            Verb::Mount | Verb::Unmount => json!({ "Name": "v", "ID": "c" }),
            Verb::Remove => json!({ "Name": "v" }),
        }
    }

    fn ask(&self, verb: Verb) -> http::Answer {
        http::post(&self.node.socket(), &format!("/VolumeDriver.{}", verb.word()), self.body(verb).to_string().as_bytes())
    }

    #[track_caller]
    fn do_it(&self, verb: Verb) {
        self.node.plugin_ok(&format!("VolumeDriver.{}", verb.word()), &self.body(verb));
    }

    /// These hold a volume, once each, and it is known that they have read their answers.
    #[track_caller]
    fn holds(&self, volume: &str, ids: &[&str]) {
        let wanted: BTreeSet<_> = ids.iter().map(|id| (Some((*id).to_owned()), 1, 0, 0)).collect();
        let begun = Instant::now();
        loop {
            let now: BTreeSet<_> = self.node.holders(volume).into_iter().collect();
            if now == wanted {
                return;
            }
            assert!(begun.elapsed() < BOUND, "{volume} is held by {now:?}, and not by {ids:?}");
        }
    }

    /// `v` as it has to be before the verb, with so many others that hold it; their mount, if there is one.
    fn prepare(&self, verb: Verb, others: &[&str]) -> Option<u64> {
        if verb != Verb::Create || !others.is_empty() {
            self.do_it(Verb::Create);
            let path = self.node.mount("v", "w");
            sh(&format!("echo written > {}/x; sync -f {0}/x", path.display()));
            others.iter().for_each(|id| drop(self.node.mount("v", id)));
            self.node.unmount("v", "w");
            self.holds("v", others);
        }
        if verb == Verb::Unmount {
            self.before_an_unmount(others);
        }
        kernel::mount_id(&self.node.mountpoint("v"))
    }

    fn before_an_unmount(&self, others: &[&str]) {
        self.do_it(Verb::Mount);
        self.holds("v", &[others, &["c"]].concat());
    }

    /// The points that a verb comes by in peace, each once, in order.
    fn points(&self, verb: Verb) -> Vec<String> {
        self.node.passed();
        let answer = self.ask(verb);
        let mut passed = self.node.passed();
        let begun = Instant::now();
        // That an answer was read is known a little later.
        while verb == Verb::Mount && answer.status == 200 && !passed.iter().any(|point| point == CONFIRMED) {
            assert!(begun.elapsed() < BOUND, "it was not confirmed: {passed:?}");
            passed.extend(self.node.passed());
        }
        let mut points: Vec<String> = Vec::new();
        for point in passed {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }

    /// Somebody dies at this point of a verb; the daemon lives again if it was the daemon.
    fn crash(&mut self, verb: Verb, point: &str) {
        self.node.die_at(point);
        let answer = self.ask(verb);
        if is_the_daemons(point) {
            assert!(answer.status == 0 || point.starts_with("mount/confirm"), "{point}: it was answered");
            self.node.wait_until_dead();
            self.node.start();
        } else {
            self.node.somebody_died(point);
        }
    }

    /// Kernel, ledger and pool say the same of `v`, in the end; gives whether it is there, and mounted.
    #[track_caller]
    fn agreed(&self, when: &str) -> (bool, bool) {
        let begun = Instant::now();
        let seen = loop {
            match self.look() {
                Ok(seen) => break seen,
                Err(differs) => assert!(begun.elapsed() < BOUND, "{when}: they do not agree: {differs}"),
            }
        };
        let path = self.node.mountpoint("keep");
        assert_eq!(kernel::mount_id(&path), Some(self.neighbour), "{when}: the neighbour's mount was touched");
        assert_eq!(sh(&format!("cat {}/x", path.display())), "kept", "{when}");
        seen
    }

    fn look(&self) -> Result<(bool, bool), String> {
        let inspected = self.node.cli(&["volume", "inspect", "v", "-o", "json"]);
        let folder = self.node.pool().join("v");
        let loops = kernel::loops_beneath(&folder).len();
        let mounted = is_mounted(&self.node.mountpoint("v"));
        if inspected.code == 3 {
            // A helper that was killed in the middle of a removal can leave an empty folder.
            let files = std::fs::read_dir(&folder).map_or(0, Iterator::count);
            let gone = files == 0 && loops == 0 && !mounted;
            return if gone { Ok((false, false)) } else { Err(format!("not found, and {files} files, {loops} loops, mounted: {mounted}")) };
        }
        let inspected: Value = serde_json::from_str(&inspected.ok()).map_err(|e| e.to_string())?;
        let held = inspected["holders"].as_array().is_some_and(|holders| !holders.is_empty());
        let known = inspected["mountpoint"].is_string();
        let names = std::fs::read_dir(&folder).map_err(|e| e.to_string())?.flatten().map(|entry| entry.file_name());
        let files: BTreeSet<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        let idle = inspected["jobs"].as_array().is_some_and(Vec::is_empty);
        let whole = inspected["state"] == "ready" && files == ["image", "record.json"].map(str::to_owned).into();
        if idle && whole && held == known && known == mounted && loops == usize::from(mounted) {
            return Ok((true, mounted));
        }
        Err(format!("held {held}, known {known}, mounted {mounted}, {loops} loops, files {files:?}, {inspected}"))
    }

    /// The verb is repeated and works, and things are again as they were before it.
    #[track_caller]
    fn repeat(&self, verb: Verb, point: &str, others: &[&str], there: bool) {
        match verb {
            Verb::Create => {
                self.do_it(Verb::Create);
                if others.is_empty() {
                    assert_eq!(self.agreed(point), (true, false), "{point}");
                    let path = self.node.mount("v", "w");
                    assert_eq!(std::fs::read_dir(&path).expect("read").count(), 0, "{point}");
                    sh(&format!("echo written > {}/x", path.display()));
                    self.node.unmount("v", "w");
                    self.is_written(point);
                    self.do_it(Verb::Remove);
                }
            }
            Verb::Mount => {
                if !(point == CONFIRMED && there) {
                    self.do_it(Verb::Mount);
                }
                self.holds("v", &[others, &["c"]].concat());
                self.is_written(point);
                self.do_it(Verb::Unmount);
                assert_eq!(self.agreed(point), (true, !others.is_empty()), "{point}");
            }
            Verb::Unmount => {
                self.do_it(Verb::Unmount);
                assert_eq!(self.agreed(point), (true, !others.is_empty()), "{point}");
                self.is_written(point);
                self.before_an_unmount(others);
            }
            Verb::Remove => {
                if there {
                    self.is_written(point);
                    self.do_it(Verb::Remove);
                } else {
                    assert!(self.node.plugin_err("VolumeDriver.Remove", &self.body(verb)).starts_with("not_found"), "{point}");
                }
                assert_eq!(self.agreed(point), (false, false), "{point}");
                self.prepare(verb, others);
            }
        }
    }

    #[track_caller]
    fn is_written(&self, point: &str) {
        let path = self.node.mount("v", "reader");
        assert_eq!(sh(&format!("cat {}/x", path.display())), "written", "{point}");
        self.node.unmount("v", "reader");
    }

    /// `v` goes, whoever has it.
    fn clear(&self, others: &[&str]) {
        others.iter().chain(&["c"]).for_each(|id| self.node.unmount("v", id));
        let (status, _) = self.node.plugin("VolumeDriver.Remove", &self.body(Verb::Remove));
        assert!(status == 200 || self.agreed("at the end") == (false, false));
    }
}

/// From here on it is known that the caller of a mount has read its answer.
const CONFIRMED: &str = "mount/confirm/after";

fn is_the_daemons(point: &str) -> bool {
    !point.starts_with("helper/") && !point.starts_with("tool/")
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.node.unmount("keep", "k");
            self.node.assert_nothing_left();
        }
    }
}

/// One column of the matrix: a verb on a filesystem, with nobody, one and two others who hold the volume.
fn column(verb: Verb, fs: &'static str, size: &'static str) {
    for others in [&[][..], &["h1"], &["h1", "h2"]] {
        let mut bench = Bench::new(fs, size);
        let mount = bench.prepare(verb, others).filter(|_| !others.is_empty());
        let points = bench.points(verb);
        match verb {
            Verb::Create if others.is_empty() => bench.do_it(Verb::Remove),
            Verb::Mount => bench.do_it(Verb::Unmount),
            Verb::Unmount => bench.before_an_unmount(others),
            Verb::Remove if others.is_empty() => drop(bench.prepare(verb, others)),
            _ => {}
        }
        for point in &points {
            let when = format!("{} of {fs} with {} others, at {point}", verb.word(), others.len());
            eprintln!("{when}");
            bench.crash(verb, point);
            let (there, _) = bench.agreed(&when);
            bench.repeat(verb, point, others, there);
            if let Some(mount) = mount {
                assert_eq!(kernel::mount_id(&bench.node.mountpoint("v")), Some(mount), "{when}: their mount was touched");
                let and_c: &[&str] = if verb == Verb::Unmount { &["c"] } else { &[] };
                bench.holds("v", &[others, and_c].concat());
            }
        }
        let daemon = points.iter().filter(|point| is_the_daemons(point)).count();
        println!("| {} | {fs} | {} | {daemon} | {} |", verb.word(), others.len(), points.len() - daemon);
        assert!(daemon > 0 || (verb == Verb::Remove && !others.is_empty()), "a verb without points: {points:?}");
        bench.clear(others);
    }
}

macro_rules! columns {
    ($($fs:ident $size:literal;)*) => { $(mod $fs {
        use super::*;

        #[test]
        fn a_create_that_is_killed_at_any_point_is_finished_or_undone() {
            column(Verb::Create, stringify!($fs), $size);
        }

        #[test]
        fn a_mount_that_is_killed_at_any_point_is_undone_or_kept_for_its_caller() {
            column(Verb::Mount, stringify!($fs), $size);
        }

        #[test]
        fn an_unmount_that_is_killed_at_any_point_is_finished() {
            column(Verb::Unmount, stringify!($fs), $size);
        }

        #[test]
        fn a_removal_that_is_killed_at_any_point_is_finished_or_not_begun() {
            column(Verb::Remove, stringify!($fs), $size);
        }

        #[test]
        fn a_recovery_that_is_killed_at_any_point_is_finished_by_the_next() {
            recovery(stringify!($fs), $size);
        }
    })* };
}

columns! {
    ext4 "16M";
    xfs "300M";
    btrfs "128M";
}

/// What was left half done by a first death is recovered; the recovery dies as well, at each of its points.
fn recovery(fs: &'static str, size: &'static str) {
    for (verb, first) in
        [(Verb::Create, "create/format/after"), (Verb::Mount, "stage/mount/after"), (Verb::Unmount, "unstage/record/after")]
    {
        let mut bench = Bench::new(fs, size);
        bench.prepare(verb, &[]);
        let again = |bench: &mut Bench| {
            bench.node.die_at(first);
            bench.ask(verb);
            bench.node.wait_until_dead();
        };
        let mut peaceful = || {
            again(&mut bench);
            bench.node.passed();
            bench.node.start();
            let points = settled(&bench.node);
            let (there, _) = bench.agreed(first);
            bench.repeat(verb, first, &[], there);
            points
        };
        // What comes once and not again, as a second look at what the kernel lets go of a little late, is nothing to wait for.
        let (mut points, others) = (peaceful(), peaceful());
        points.retain(|point| others.contains(point));
        for point in &points {
            let when = format!("{fs}: recovery after {first}, at {point}");
            eprintln!("{when}");
            again(&mut bench);
            bench.node.die_at(point);
            bench.node.spawn();
            if is_the_daemons(point) {
                bench.node.wait_until_dead();
                bench.node.start();
            } else {
                // One that the daemon cannot do without ends it; the others it goes on after.
                bench.node.somebody_died(point);
                bench.node.start_unless_it_serves();
            }
            let (there, _) = bench.agreed(&when);
            bench.repeat(verb, point, &[], there);
        }
        let daemon = points.iter().filter(|point| is_the_daemons(point)).count();
        println!("| recovery after `{first}` | {fs} | 0 | {daemon} | {} |", points.len() - daemon);
        assert!(daemon > 0, "nothing was recovered: {points:?}");
        bench.clear(&[]);
    }
}

/// The points that a start comes by, until it comes by no more.
fn settled(node: &Node) -> Vec<String> {
    let mut points: Vec<String> = Vec::new();
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        for point in node.passed() {
            last = Instant::now();
            if !points.contains(&point) {
                points.push(point);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    points
}

#[test]
fn a_mount_that_is_killed_around_a_check_checks_again() {
    let mut bench = Bench::new("ext4", "16M");
    bench.prepare(Verb::Mount, &[]);
    let mark = || sh(&format!("debugfs -w -R 'set_super_value state 2' {} 2>&1", bench.node.image("v").display()));
    mark();
    let points = bench.points(Verb::Mount);
    let points: Vec<_> = points.into_iter().filter(|point| point.contains("check") || point.starts_with("tool/")).collect();
    assert_eq!(points, ["stage/check/before", "tool/e2fsck/running", "stage/check/after"]);
    bench.do_it(Verb::Unmount);
    for point in &points {
        eventually("it is detached", BOUND, || kernel::loops_beneath(&bench.node.pool().join("v")).is_empty());
        sh(&format!("debugfs -w -R 'set_super_value state 2' {} 2>&1", bench.node.image("v").display()));
        bench.crash(Verb::Mount, point);
        let (there, _) = bench.agreed(point);
        bench.repeat(Verb::Mount, point, &[], there);
    }
    bench.clear(&[]);
}
