//! dvdcli against our own daemon: what its users type, and what a Mesos agent executes.
#![allow(clippy::expect_used)]

use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use dunnage_tests::fuse::Store;
use dunnage_tests::{BOUND, Node, Ran, binary, eventually, is_mounted, kernel, scratch, small_dvdcli};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// What answers to the name: a link to the binary, or the small program that a release archive installs.
#[derive(Clone, Copy)]
enum Program {
    Link,
    Small,
}

impl Program {
    fn path(self) -> PathBuf {
        match self {
            Program::Link => binary(),
            Program::Small => small_dvdcli(),
        }
    }
}

/// A node, and one of these.
struct Bench {
    node: Node,
    dvdcli: PathBuf,
}

impl Bench {
    fn new(program: Program) -> Bench {
        Bench::of(program, Node::started())
    }

    fn of(program: Program, node: Node) -> Bench {
        let dvdcli = node.folder.join("dvdcli");
        symlink(program.path(), &dvdcli).expect("symlink");
        Bench { node, dvdcli }
    }

    /// As a Mesos agent executes it: an absolute path, nothing on stdin, pipes, `/`, a process group of its own, and the
    /// agent's environment with three variables more.
    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = Command::new(&self.dvdcli);
        command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.envs([("LIBPROCESS_IP", "127.0.0.1"), ("LIBPROCESS_PORT", "0"), ("LIBPROCESS_MEMORY_PROFILING", "false")]);
        command.env("DUNNAGE_PLUGIN_DIR", &self.node.plugins);
        command.spawn().expect("it runs")
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = self.spawn(args).wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The same for one volume of our driver.
    fn on(&self, volume: &str, command: &str, more: &[&str]) -> Ran {
        let name = format!("--volumename={volume}");
        let mut args = vec![command, "--volumedriver=dunnage", &name];
        args.extend(more);
        self.run(&args)
    }

    fn mountpoint(&self, volume: &str) -> String {
        self.node.mountpoint(volume).display().to_string()
    }
}

/// Every test, with each of the two.
macro_rules! with_both {
    ($($test:ident)*) => {
        mod the_link {
            $(#[test]
            fn $test() {
                super::$test(super::Program::Link);
            })*
        }

        mod the_small_program {
            $(#[test]
            fn $test() {
                super::$test(super::Program::Small);
            })*
        }
    };
}

with_both! {
    a_mount_creates_what_is_missing_and_prints_the_path_and_nothing_else
    mesos_mounts_for_every_container_and_unmounts_once
    an_unmount_of_what_was_never_mounted_or_never_made_or_has_no_possible_name_is_no_error
    a_hostile_name_or_option_fails_with_the_reason_on_stderr_and_makes_nothing
    every_command_prints_what_the_old_one_printed
    explicit_create_in_both_spellings_makes_nothing
    a_volume_that_is_there_is_mounted_as_it_is_and_what_differs_is_said
    a_driver_that_is_not_there_is_said_at_once_with_those_that_are
    who_is_killed_in_the_middle_of_a_mount_leaves_nothing_and_the_unmount_that_follows_works
    who_is_killed_while_the_volume_of_its_mount_is_made_leaves_nothing_either
    volumes_of_one_task_mount_in_parallel
    while_the_daemon_starts_anew_a_call_waits_for_it
}

fn a_mount_creates_what_is_missing_and_prints_the_path_and_nothing_else(program: Program) {
    let bench = Bench::new(program);
    let ran = bench.on("vol1", "mount", &["--volumeopts=size=1", "--volumeopts=fs=ext4"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, format!("{}\n", bench.mountpoint("vol1")).as_str()), "{}", ran.err);
    assert!(is_mounted(&bench.node.mountpoint("vol1")));
    assert_eq!(bench.node.holders("vol1"), [(None, 1, 0, 0)]);
    bench.on("vol1", "unmount", &[]).ok();
    bench.node.assert_nothing_left();
}

fn mesos_mounts_for_every_container_and_unmounts_once(program: Program) {
    let bench = Bench::new(program);
    for _ in 0..3 {
        assert_eq!(bench.on("vol1", "mount", &[]).ok(), bench.mountpoint("vol1"));
    }
    bench.on("vol1", "unmount", &[]).ok();
    assert!(!is_mounted(&bench.node.mountpoint("vol1")));
    bench.node.assert_nothing_left();
}

fn an_unmount_of_what_was_never_mounted_or_never_made_or_has_no_possible_name_is_no_error(program: Program) {
    let bench = Bench::new(program);
    bench.node.cli(&["volume", "create", "idle"]).ok();
    for name in ["idle", "never-made", "a b/../c=d;$(id)", "", "../../etc", &"x".repeat(4096)] {
        let ran = bench.on(name, "unmount", &[]);
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{name:?}: {}", ran.err);
    }
}

fn a_hostile_name_or_option_fails_with_the_reason_on_stderr_and_makes_nothing(program: Program) {
    let bench = Bench::new(program);
    for name in ["a b/../c=d;$(id)", "../../etc", "", "-rf"] {
        let ran = bench.on(name, "mount", &[]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{name:?}");
        assert!(ran.err.starts_with("dvdcli: invalid_argument{") && ran.err.lines().count() == 1, "{}", ran.err);
    }
    for option in ["--volumeopts==x", "--volumeopts=siez=5", "--volumeopts=size", "--volumeopts=fs type=ext4 -O x"] {
        let ran = bench.on("v", "mount", &[option]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{option}");
        assert!(ran.err.contains("invalid_argument"), "{option}: {}", ran.err);
    }
    assert_eq!(bench.node.cli(&["volume", "ls", "-q"]).ok(), "");
}

fn every_command_prints_what_the_old_one_printed(program: Program) {
    let bench = Bench::new(program);
    let created = bench.on("b", "create", &["--volumeopts=size=32M,labels=tier=gold,uid=5"]);
    assert_eq!((created.code, created.out.as_str()), (0, ""), "{}", created.err);
    assert!(bench.node.cli(&["volume", "inspect", "b"]).ok().contains("tier=gold"));
    bench.on("a", "create", &["--volumeopts=size=16M"]).ok();
    assert_eq!(bench.run(&["list", "--volumedriver=dunnage"]).ok(), "a\nb");
    assert_eq!(bench.on("a", "get", &[]).ok(), "a");
    assert_eq!(bench.on("a", "path", &[]).ok(), "");
    bench.on("a", "mount", &[]).ok();
    assert_eq!(bench.on("a", "path", &[]).ok(), bench.mountpoint("a"));
    assert!(bench.on("a", "remove", &[]).fails(1).contains("in_use{n1}"));
    bench.on("a", "unmount", &[]).ok();
    bench.on("a", "remove", &[]).ok();
    for command in ["get", "path", "remove"] {
        assert!(bench.on("a", command, &[]).fails(1).contains("not_found"), "{command}");
    }
    let version = bench.run(&["version"]).ok();
    for line in [format!("Binary: {}", program.path().display()), format!("SemVer: {}", env!("CARGO_PKG_VERSION"))] {
        assert!(version.lines().any(|said| said == line), "{line}: {version}");
    }
    assert!(bench.run(&[]).ok().contains("Usage: dvdcli"));
}

fn explicit_create_in_both_spellings_makes_nothing(program: Program) {
    let bench = Bench::new(program);
    for flag in ["--explicitcreate", "--explicitCreate=true"] {
        let said = bench.on("typo", "mount", &[flag]).fails(1);
        assert!(said.contains("\"typo\"") && said.contains("dvdcli create"), "{said}");
    }
    assert_eq!(bench.run(&["list", "--volumedriver=dunnage"]).ok(), "");
    bench.on("real", "create", &["--volumeopts=size=16M"]).ok();
    bench.on("real", "mount", &["--explicitCreate"]).ok();
    bench.on("real", "unmount", &[]).ok();
}

fn a_volume_that_is_there_is_mounted_as_it_is_and_what_differs_is_said(program: Program) {
    let bench = Bench::new(program);
    bench.on("v", "create", &["--volumeopts=size=16M"]).ok();
    let ran = bench.on("v", "mount", &["--volumeopts=size=5"]);
    assert_eq!((ran.code, ran.out.trim_end()), (0, bench.mountpoint("v").as_str()), "{}", ran.err);
    assert!(ran.err.contains("size=16MiB") && ran.err.contains("5GiB"), "{}", ran.err);
    bench.on("v", "unmount", &[]).ok();
}

fn a_driver_that_is_not_there_is_said_at_once_with_those_that_are(program: Program) {
    let bench = Bench::new(program);
    let ran = bench.run(&["mount", "--volumedriver=rexray", "--volumename=v"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("\"rexray\"") && ran.err.contains("rexray.sock") && ran.err.contains("dunnage"), "{}", ran.err);
    assert!(bench.run(&["mount", "--volumename=v"]).fails(1).contains("--volumedriver"));
}

/// One whose pool lies on a store that can be brought to a halt.
struct Slow {
    // Dropped first: its volumes lie on the store.
    bench: Bench,
    store: Store,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.store.go_on();
    }
}

impl Slow {
    fn new(program: Program) -> Slow {
        let mut node = Node::new();
        let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &scratch(), 256 << 20);
        node.configure(&format!("drivers: {{ local: {{ type: local, pool: {} }} }}\n", store.path().join("pool").display()));
        node.start();
        Slow { bench: Bench::of(program, node), store }
    }

    fn inspect(&self, volume: &str) -> Value {
        serde_json::from_str(&self.bench.node.cli(&["volume", "inspect", volume, "-o", "json"]).out).unwrap_or_default()
    }

    /// Mesos kills the whole tree of what takes too long: here in the middle of a job.
    #[track_caller]
    fn killed_in_the_middle_of_its(&self, job: &str, volume: &str) {
        self.store.halt();
        let name = format!("--volumename={volume}");
        let mut child = self.bench.spawn(&["mount", "--volumedriver=dunnage", &name, "--volumeopts=size=16M"]);
        // A volume that is only about to be made cannot be inspected.
        let job = format!("volume=local/{volume} goal=\"{job}\"}}: step ");
        eventually("its job is under way", BOUND, || self.bench.node.log().contains(&job));
        assert_eq!(child.try_wait().expect("wait"), None, "it waits for the store");
        kill_process_group(Pid::from_child(&child), Signal::KILL).expect("kill");
        let mut out = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("read");
        assert_eq!((child.wait().expect("wait").signal(), out.as_str()), (Some(9), ""));
        self.store.go_on();
    }

    /// The volume is there, nobody holds it, and the kernel has nothing of it.
    #[track_caller]
    fn nothing_is_left(&self, volume: &str) {
        eventually("its job has ended, and left nothing", BOUND, || {
            let inspected = self.inspect(volume);
            let none = |what: &str| inspected[what].as_array().is_some_and(Vec::is_empty);
            let attached = kernel::loops_beneath(&self.store.path().join("pool"));
            none("jobs") && none("holders") && attached.is_empty() && !is_mounted(&self.bench.node.mountpoint(volume))
        });
    }

    /// The unmount that Mesos sends after the kill, and its next task.
    #[track_caller]
    fn goes_on(&self, volume: &str) {
        self.bench.on(volume, "unmount", &[]).ok();
        assert_eq!(self.bench.on(volume, "mount", &["--volumeopts=size=16M"]).ok(), self.bench.mountpoint(volume));
        self.bench.on(volume, "unmount", &[]).ok();
        self.nothing_is_left(volume);
    }
}

fn who_is_killed_in_the_middle_of_a_mount_leaves_nothing_and_the_unmount_that_follows_works(program: Program) {
    let slow = Slow::new(program);
    slow.bench.on("v", "create", &["--volumeopts=size=16M"]).ok();
    slow.killed_in_the_middle_of_its("stage", "v");
    slow.nothing_is_left("v");
    slow.goes_on("v");
}

fn who_is_killed_while_the_volume_of_its_mount_is_made_leaves_nothing_either(program: Program) {
    let slow = Slow::new(program);
    slow.killed_in_the_middle_of_its("create", "v");
    slow.nothing_is_left("v");
    slow.goes_on("v");
}

fn volumes_of_one_task_mount_in_parallel(program: Program) {
    let bench = Bench::new(program);
    let names: Vec<String> = (0..8).map(|n| format!("--volumename=v{n}")).collect();
    let spawn = |name: &String| bench.spawn(&["mount", "--volumedriver=dunnage", name, "--volumeopts=size=16M"]);
    for child in names.iter().map(spawn).collect::<Vec<_>>() {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for name in &names {
        bench.run(&["unmount", "--volumedriver=dunnage", name]).ok();
    }
    bench.node.assert_nothing_left();
}

fn while_the_daemon_starts_anew_a_call_waits_for_it(program: Program) {
    let mut bench = Bench::new(program);
    bench.on("v", "create", &["--volumeopts=size=16M"]).ok();
    // Its socket stays, and refuses.
    bench.node.kill();
    let child = bench.spawn(&["mount", "--volumedriver=dunnage", "--volumename=v"]);
    bench.node.start();
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bench.on("v", "unmount", &[]).ok();
}
