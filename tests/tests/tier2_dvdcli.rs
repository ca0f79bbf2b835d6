//! dvdcli against our own daemon: what its users type, and what a Mesos agent executes.
#![allow(clippy::expect_used)]

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
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
    /// agent's environment, which may be a bare one, with three variables more.
    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(&self.dvdcli);
        command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("DUNNAGE_PLUGIN_DIR", &self.node.plugins);
        command.envs([("LIBPROCESS_IP", "127.0.0.1"), ("LIBPROCESS_PORT", "0"), ("LIBPROCESS_MEMORY_PROFILING", "false")]);
        command
    }

    fn spawn<A: AsRef<OsStr>>(&self, args: &[A]) -> Child {
        self.command(args).spawn().expect("it runs")
    }

    fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Ran {
        ran(self.spawn(args))
    }

    /// The same for one volume of our driver.
    fn on(&self, volume: impl AsRef<OsStr>, command: &str, more: &[&str]) -> Ran {
        ran(self.begin(volume, command, more))
    }

    fn begin(&self, volume: impl AsRef<OsStr>, command: &str, more: &[&str]) -> Child {
        let mut name = OsString::from("--volumename=");
        name.push(volume);
        let mut args = [command, "--volumedriver=dunnage"].map(OsString::from).to_vec();
        args.push(name);
        args.extend(more.iter().map(OsString::from));
        self.spawn(&args)
    }

    fn mountpoint(&self, volume: &str) -> String {
        self.node.mountpoint(volume).display().to_string()
    }
}

fn ran(child: Child) -> Ran {
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// What a task may name a volume, and no volume can be called.
fn impossible_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = ["a b/../c=d;$(id)", "a\nb", "../../etc", "", "-rf"].map(OsString::from).to_vec();
    names.extend([129, 4096].map(|length| "x".repeat(length).into()));
    names.push(OsStr::from_bytes(b"caf\xe9").to_owned());
    names
}

/// Something that is done before a whole task of `sleep` is.
#[track_caller]
fn before_half_a_minute_is_over<T>(work: impl FnOnce() -> T) -> T {
    let mut sleep = Command::new("sleep").arg("29").spawn().expect("sleep");
    let outcome = work();
    let slept = sleep.try_wait().expect("wait");
    sleep.kill().expect("kill");
    sleep.wait().expect("wait");
    assert_eq!(slept, None, "it was waited for what does not come");
    outcome
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
    every_guarantee_that_a_volume_there_does_not_have_is_said_on_one_line_and_it_is_mounted
    a_driver_that_is_not_there_is_said_at_once_with_those_that_are
    an_unmount_fails_when_nobody_can_say_whether_it_is_mounted
    who_is_killed_in_the_middle_of_a_mount_leaves_nothing_and_the_unmount_that_follows_works
    who_is_killed_while_the_volume_of_its_mount_is_made_leaves_nothing_either
    volumes_of_one_task_mount_in_parallel
    when_one_mount_of_a_task_fails_all_of_them_are_unmounted_and_nothing_is_left
    two_that_mount_one_name_at_the_same_time_have_one_volume_and_are_one_holder
    what_nobody_can_be_told_is_a_failure_and_no_panic
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
    for name in impossible_names().into_iter().chain(["idle".into(), "never-made".into(), "x".repeat(128).into()]) {
        let ran = bench.on(&name, "unmount", &[]);
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{name:?}: {}", ran.err);
    }
}

fn a_hostile_name_or_option_fails_with_the_reason_on_stderr_and_makes_nothing(program: Program) {
    let bench = Bench::new(program);
    for name in impossible_names() {
        let ran = bench.on(&name, "mount", &[]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{name:?}");
        assert!(ran.err.starts_with("dvdcli: invalid_argument{") && ran.err.lines().count() == 1, "{}", ran.err);
    }
    for option in ["--volumeopts==x", "--volumeopts=siez=5", "--volumeopts=size", "--volumeopts=fs type=ext4 -O x"] {
        let ran = bench.on("v", "mount", &[option]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{option}");
        assert!(ran.err.contains("invalid_argument"), "{option}: {}", ran.err);
    }
    assert_eq!(bench.node.cli(&["volume", "ls", "-q"]).ok(), "");
    let longest = "x".repeat(128);
    assert_eq!(bench.on(&longest, "mount", &["--volumeopts=size=16M"]).ok(), bench.mountpoint(&longest));
    bench.on(&longest, "unmount", &[]).ok();
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
    assert!(bench.run::<&str>(&[]).ok().contains("Usage: dvdcli"));
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

fn every_guarantee_that_a_volume_there_does_not_have_is_said_on_one_line_and_it_is_mounted(program: Program) {
    let bench = Bench::new(program);
    bench.on("v", "create", &["--volumeopts=size=16M,uid=5,labels=tier=gold"]).ok();
    let mount = |options: &[&str]| {
        let ran = bench.on("v", "mount", options);
        assert_eq!((ran.code, ran.out.trim_end()), (0, bench.mountpoint("v").as_str()), "{}", ran.err);
        ran.err
    };
    let said = mount(&[
        "--volumeopts=size=16M,fs=xfs,ro=true,shared=true,thick=true,repl=3,uid=6,gid=7,mode=0700,preempt=never",
        "--volumeopts=rootPath=/data",
        "--volumeopts=mountOptions=noatime",
        "--volumeopts=labels=tier=silver",
        "--volumeopts=siez=5",
        "--volumeopts=encrypted=true",
    ]);
    for differs in [
        "fs=ext4, and not xfs",
        "ro=false, and not true",
        "shared=false, and not true",
        "thick=false, and not true",
        "repl=-, and not 3",
        "uid=5, and not 6",
        "gid=-, and not 7",
        "mode=-, and not 0700",
        "preempt=-, and not never",
        "rootPath=-, and not /data",
        "mountOptions=-, and not noatime",
        "label tier=gold, and not silver",
        "option \"siez\" is unknown",
        "driver local cannot give encrypted=true",
    ] {
        assert!(said.contains(differs), "{differs}: {said}");
    }
    assert!(!said.contains("size=") && said.lines().count() == 1, "{said}");
    // What is as asked, or usual and left open, is not worth a word.
    let same = "--volumeopts=size=16M,fs=ext4,uid=5,gid=0,mode=755,ro=false,shared=no,thick=0,rootPath=/,labels=tier=gold";
    assert_eq!(mount(&[same]), "");
    bench.on("v", "unmount", &[]).ok();
}

fn a_driver_that_is_not_there_is_said_at_once_with_those_that_are(program: Program) {
    let bench = Bench::new(program);
    let ran = before_half_a_minute_is_over(|| bench.run(&["mount", "--volumedriver=rexray", "--volumename=v"]));
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("\"rexray\"") && ran.err.contains("rexray.sock") && ran.err.contains("dunnage"), "{}", ran.err);
    assert!(bench.run(&["mount", "--volumename=v"]).fails(1).contains("--volumedriver"));
}

/// Its mounts outlive it, and nobody else can say whether there are any.
fn an_unmount_fails_when_nobody_can_say_whether_it_is_mounted(program: Program) {
    let mut bench = Bench::new(program);
    bench.on("v", "mount", &["--volumeopts=size=16M"]).ok();
    // A socket that refuses, as of a daemon that was killed; and none, as of one that was stopped.
    bench.node.kill();
    let refused = before_half_a_minute_is_over(|| bench.on("v", "unmount", &[]).fails(1));
    assert!(refused.contains("nothing answers on") && refused.contains("dunnage.sock") && refused.lines().count() == 1, "{refused}");
    bench.node.start();
    bench.node.stop();
    assert!(!bench.node.socket().exists());
    let absent = before_half_a_minute_is_over(|| bench.on("v", "unmount", &[]).fails(1));
    assert!(absent.contains("there is no volume plugin \"dunnage\"") && absent.lines().count() == 1, "{absent}");
    assert!(is_mounted(&bench.node.mountpoint("v")));
    // What the agent's next start does.
    bench.node.start();
    bench.on("v", "unmount", &[]).ok();
    bench.node.assert_nothing_left();
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

fn when_one_mount_of_a_task_fails_all_of_them_are_unmounted_and_nothing_is_left(program: Program) {
    let bench = Bench::new(program);
    let volumes = [("good", "size=16M"), ("bad", "size=1M"), ("worse name", "size=16M"), ("fine", "size=16M")];
    let task = volumes.map(|(volume, option)| bench.begin(volume, "mount", &[&format!("--volumeopts={option}")]));
    assert_eq!(task.map(|child| ran(child).code), [0, 1, 1, 0]);
    for (volume, _) in volumes {
        let ran = bench.on(volume, "unmount", &[]);
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{volume}: {}", ran.err);
    }
    bench.node.assert_nothing_left();
    assert_eq!(bench.node.cli(&["volume", "ls", "-q"]).ok(), "fine\ngood");
}

fn two_that_mount_one_name_at_the_same_time_have_one_volume_and_are_one_holder(program: Program) {
    let bench = Bench::new(program);
    for round in 0..5 {
        let volume = format!("v{round}");
        let both = [(); 2].map(|()| bench.begin(&volume, "mount", &["--volumeopts=size=16M"]));
        for child in both {
            assert_eq!(ran(child).ok(), bench.mountpoint(&volume));
        }
        assert_eq!(bench.node.holders(&volume), [(None, 1, 0, 0)]);
        bench.on(&volume, "unmount", &[]).ok();
        assert_eq!(bench.node.holders(&volume), []);
    }
    bench.node.assert_nothing_left();
}

fn what_nobody_can_be_told_is_a_failure_and_no_panic(program: Program) {
    let bench = Bench::new(program);
    // `get` has an error to tell, and `list` has nothing.
    for (asked, code) in [("version", 1), ("get", 1), ("list", 0)] {
        let mut command = bench.command(&[asked, "--volumedriver=dunnage", "--volumename=none"]);
        let nobody = || std::io::pipe().expect("a pipe").1;
        assert_eq!(command.stdout(nobody()).stderr(nobody()).status().expect("it runs").code(), Some(code), "{asked}");
    }
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
