//! A backing store that does not answer: a FUSE server that is brought to a halt under a loop device and its filesystem.
//! One driver's pool lies on it, the other's on a disk that works.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dunnage_tests::fuse::Store;
use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, http, is_mounted};
use serde_json::{Value, json};

/// What "at once" means on a busy machine with a debug build: less than what a read may wait for a platform.
const AT_ONCE: Duration = Duration::from_millis(1900);

/// A daemon with a driver `bad` on a store that can be halted, and a driver `local` on one that works. (`bad` comes first
/// in the alphabet, so that whoever takes the drivers one by one is caught.)
struct Bench {
    node: Node,
    store: Store,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.store.go_on();
    }
}

impl Bench {
    /// With a volume `a` on the bad store and a volume `fine` on the good one, both with a file in them, neither mounted.
    fn new() -> Bench {
        let mut node = Node::new();
        let folder = node.folder.join("store");
        std::fs::create_dir_all(&folder).expect("folder");
        let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &folder, 512 << 20);
        node.configure(&format!(
            "drivers: {{ bad: {{ type: local, pool: {}/pool }}, local: {{ type: local }} }}\n\
             endpoints: {{ docker: [ {{ name: dunnage, driver: local }}, {{ name: bad, driver: bad }} ] }}\n",
            store.path().display()
        ));
        node.start();
        let bench = Bench { node, store };
        for (driver, volume) in [("bad", "a"), ("local", "fine")] {
            bench.node.cli(&["volume", "create", volume, "--driver", driver, "-o", "size=16M"]).ok();
            let path = bench.node.cli(&["volume", "mount", volume]).ok();
            sh(&format!("echo written > {path}/x"));
            bench.node.cli(&["volume", "unmount", volume]).ok();
        }
        bench
    }

    /// One call on the endpoint of the bad store.
    fn bad(&self, call: &str, body: &Value) -> (u16, Value) {
        let answer = http::post(&self.bad_socket(), &format!("/{call}"), body.to_string().as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    fn bad_socket(&self) -> PathBuf {
        self.node.plugins.join("bad.sock")
    }

    /// A Mount of `a`, whose caller waits for as long as it takes.
    fn mount_in_background(&self) -> JoinHandle<http::Answer> {
        let socket = self.bad_socket();
        std::thread::spawn(move || http::post(&socket, "/VolumeDriver.Mount", br#"{"Name":"a","ID":"c1"}"#))
    }

    fn mountpoint(&self) -> PathBuf {
        self.node.state().join("volumes/bad/a")
    }

    /// Nothing of the bad store's volume is mounted, attached, held or under way any more.
    #[track_caller]
    fn nothing_of_it_is_left(&self) {
        let attached = || !dunnage_tests::kernel::loops_beneath(&self.store.path().join("pool")).is_empty();
        eventually("it is let go", BOUND, || !is_mounted(&self.mountpoint()) && !attached());
        eventually("no job runs", BOUND, || self.jobs().is_empty());
        assert_eq!(self.node.holders("a"), []);
        assert!(!is_mounted(&self.mountpoint()) && !attached(), "it came back");
    }

    /// The processes that make the daemon's calls.
    fn helpers(&self) -> Vec<String> {
        sh(&format!("cat /proc/{0}/task/{0}/children", self.node.pid())).split_whitespace().map(str::to_owned).collect()
    }

    /// Waits for the helpers of a dead daemon. What they were doing is done then, unknown to the living one.
    #[track_caller]
    fn have_gone(&self, helpers: &[String]) {
        let alive = |pid: &String| std::fs::exists(format!("/proc/{pid}")).expect("/proc");
        eventually("the dead daemon's helpers have gone", BOUND, || !helpers.iter().any(alive));
    }

    fn jobs(&self) -> Vec<Value> {
        let inspected: Value = serde_json::from_str(&self.node.cli(&["volume", "inspect", "a", "-o", "json"]).ok()).expect("json");
        inspected["jobs"].as_array().expect("jobs").clone()
    }

    /// With a patience, so that a failure does not keep others waiting for a loop device.
    #[track_caller]
    fn the_other_is_mounted_and_unmounted_at_once(&self) {
        let path = within(AT_ONCE, "mount", || self.node.cli(&["volume", "mount", "fine", "--timeout", "3"]).ok());
        assert_eq!(sh(&format!("cat {path}/x")), "written");
        within(AT_ONCE, "unmount", || self.node.cli(&["volume", "unmount", "fine", "--timeout", "3"]).ok());
        assert!(!is_mounted(&PathBuf::from(path)));
    }

    /// The store answers again: whoever waits has the volume, and gives it back.
    #[track_caller]
    fn is_mounted_and_let_go(&self, hanging: JoinHandle<http::Answer>) {
        self.store.go_on();
        assert_eq!(hanging.join().expect("its caller hears of it").status, 200);
        self.bad("VolumeDriver.Unmount", &json!({ "Name": "a", "ID": "c1" }));
        self.nothing_of_it_is_left();
    }

    /// `a` can be mounted, and what was written is there.
    #[track_caller]
    fn its_data_is_there(&self) {
        let path = self.node.cli(&["volume", "mount", "a"]).ok();
        assert_eq!(sh(&format!("cat {path}/x")), "written");
        self.node.cli(&["volume", "unmount", "a"]).ok();
        self.nothing_of_it_is_left();
    }
}

/// Runs something, and it takes no longer than `bound`.
#[track_caller]
fn within<T>(bound: Duration, what: &str, run: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let outcome = run();
    assert!(begun.elapsed() < bound, "{what} took {:?}", begun.elapsed());
    outcome
}

#[test]
fn a_mount_on_a_store_that_hangs_is_answered_in_time_and_says_where_it_was() {
    let bench = Bench::new();
    bench.store.halt();
    let said = within(Duration::from_secs(4), "the answer", || bench.node.cli(&["volume", "mount", "a", "--timeout", "2"]).fails(12));
    assert!(said.starts_with("dunnage: timeout{stage/") && said.contains("volume \"a\"") && said.contains("ask again"), "{said}");
    bench.store.go_on();
    bench.nothing_of_it_is_left();
}

#[test]
fn a_create_on_a_store_that_hangs_is_answered_in_time() {
    let bench = Bench::new();
    bench.store.halt();
    let create = ["volume", "create", "b", "--driver", "bad", "-o", "size=16M", "--timeout", "2"];
    let said = within(Duration::from_secs(4), "the answer", || bench.node.cli(&create).fails(12));
    assert!(said.contains("timeout{create/") && said.contains("volume \"b\""), "{said}");
}

#[test]
fn a_create_that_was_given_up_is_finished_when_the_store_answers_again() {
    let bench = Bench::new();
    bench.store.halt();
    bench.node.cli(&["volume", "create", "b", "--driver", "bad", "-o", "size=16M", "--timeout", "0.5"]).fails(12);
    bench.store.go_on();
    let again = bench.node.cli(&["volume", "create", "b", "--driver", "bad", "-o", "size=16M"]);
    assert!(again.err.contains("bad/b: already there") || again.err.contains("bad/b: created"), "{}", again.err);
    assert_eq!(bench.node.cli(&["volume", "mount", "b", "--driver", "bad"]).code, 0);
    bench.node.cli(&["volume", "unmount", "b", "--driver", "bad"]).ok();
}

#[test]
fn a_mount_that_was_given_up_is_undone_when_the_store_answers_again() {
    let bench = Bench::new();
    bench.store.halt();
    bench.node.cli(&["volume", "mount", "a", "--timeout", "0.5"]).fails(12);
    bench.store.go_on();
    bench.nothing_of_it_is_left();
    bench.its_data_is_there();
}

#[test]
fn a_mount_whose_caller_still_waits_is_finished_when_the_store_answers_again() {
    let bench = Bench::new();
    bench.store.halt();
    let caller = bench.mount_in_background();
    eventually("the mount is under way", BOUND, || !bench.jobs().is_empty());
    bench.store.go_on();
    let answer = caller.join().expect("caller");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(sh(&format!("cat {}/x", bench.mountpoint().display())), "written");
    eventually("its holder is confirmed", BOUND, || bench.node.holders("a") == [(Some("c1".to_owned()), 1, 0, 0)]);
    assert_eq!(bench.bad("VolumeDriver.Unmount", &json!({ "Name": "a", "ID": "c1" })).0, 200);
    bench.nothing_of_it_is_left();
}

#[test]
fn an_unmount_that_hangs_is_answered_in_time_and_finished_later() {
    let bench = Bench::new();
    let path = bench.node.cli(&["volume", "mount", "a"]).ok();
    sh(&format!("echo more > {path}/y"));
    bench.store.halt();
    let said = within(Duration::from_secs(4), "the answer", || bench.node.cli(&["volume", "unmount", "a", "--timeout", "2"]).fails(12));
    assert!(said.contains("timeout{unstage/"), "{said}");
    bench.store.go_on();
    bench.nothing_of_it_is_left();
    bench.its_data_is_there();
}

#[test]
fn while_one_store_hangs_the_volumes_of_another_are_served_as_before() {
    let bench = Bench::new();
    bench.store.halt();
    let hanging = bench.mount_in_background();
    eventually("the mount is under way", BOUND, || !bench.jobs().is_empty());
    let node = &bench.node;
    bench.the_other_is_mounted_and_unmounted_at_once();
    within(AT_ONCE, "Get", || node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "fine" })));
    let listed = within(AT_ONCE, "List", || node.plugin_ok("VolumeDriver.List", &json!({})));
    assert_eq!(listed["Volumes"][0]["Name"], "fine");
    within(AT_ONCE, "Create", || node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "new", "Opts": { "size": "16M" } })));
    within(AT_ONCE, "Remove", || node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "new" })));
    bench.is_mounted_and_let_go(hanging);
}

#[test]
fn while_one_store_hangs_other_programs_on_the_machine_get_loop_devices() {
    let bench = Bench::new();
    bench.store.halt();
    let hanging = bench.mount_in_background();
    eventually("the attach is under way", BOUND, || bench.jobs().iter().any(|job| job["step"] == "attach"));
    let file = bench.node.folder.join("theirs").display().to_string();
    sh(&format!("truncate --size 1M {file}; device=$(timeout --signal=KILL 3 losetup --find --show {file}); losetup -d $device"));
    bench.is_mounted_and_let_go(hanging);
}

#[test]
fn the_list_and_the_volumes_of_a_store_that_hangs_are_read_from_memory() {
    let bench = Bench::new();
    bench.store.forget();
    bench.store.halt();
    let (status, listed) = within(AT_ONCE, "List", || bench.bad("VolumeDriver.List", &json!({})));
    assert_eq!((status, &listed["Volumes"][0]["Name"]), (200, &json!("a")));
    let (status, got) = within(AT_ONCE, "Get", || bench.bad("VolumeDriver.Get", &json!({ "Name": "a" })));
    assert_eq!((status, &got["Volume"]["Name"]), (200, &json!("a")));
    let (status, _) = within(AT_ONCE, "Path", || bench.bad("VolumeDriver.Path", &json!({ "Name": "a" })));
    assert_eq!(status, 200);
}

#[test]
fn the_command_line_lists_volumes_at_once_while_a_store_hangs() {
    let bench = Bench::new();
    bench.store.forget();
    bench.store.halt();
    let listed = within(AT_ONCE, "volume ls", || bench.node.cli(&["volume", "ls", "-q"]).ok());
    assert_eq!(listed, "a\nfine");
}

#[test]
fn an_unknown_name_is_asked_for_two_seconds_and_never_created_on_doubt() {
    let mut bench = Bench::new();
    bench.node.kill();
    bench.store.forget();
    bench.store.halt();
    bench.node.start();
    let (status, got) = within(Duration::from_secs(3), "Get", || bench.bad("VolumeDriver.Get", &json!({ "Name": "nobody" })));
    let said = got["Err"].as_str().expect("Err");
    assert_eq!(status, 503, "{said}");
    assert!(said.starts_with("platform_unavailable") && said.contains("\"nobody\""), "{said}");
    let (status, _) = bench.bad("VolumeDriver.Mount", &json!({ "Name": "nobody", "ID": "c1" }));
    assert_eq!(status, 503);
    bench.store.go_on();
    assert!(!bench.store.path().join("pool/nobody").exists());
}

#[test]
fn twenty_calls_that_hang_do_not_eat_the_daemon() {
    let bench = Bench::new();
    bench.store.halt();
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let socket = bench.bad_socket();
            let body = json!({ "Name": format!("v{n}"), "Opts": { "size": "16M" } }).to_string();
            std::thread::spawn(move || http::post(&socket, "/VolumeDriver.Create", body.as_bytes()).status)
        })
        .collect();
    eventually("all of them hang", BOUND, || bench.helpers().len() >= 20);
    bench.the_other_is_mounted_and_unmounted_at_once();
    let peak = peak_memory(bench.node.pid());
    assert!(peak < 64 << 10, "the daemon has grown to {peak} KiB");
    bench.store.go_on();
    let answers: Vec<u16> = callers.into_iter().map(|caller| caller.join().expect("caller")).collect();
    assert_eq!(answers, [200; 20]);
    eventually("the helpers that are not needed have gone", BOUND, || bench.helpers().len() <= 4);
}

/// VmHWM in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn a_daemon_that_is_killed_while_a_store_hangs_starts_again_and_serves_the_other_at_once() {
    let mut bench = Bench::new();
    bench.store.halt();
    let hanging = bench.mount_in_background();
    eventually("the mount is under way", BOUND, || !bench.jobs().is_empty());
    bench.node.kill();
    hanging.join().expect("its caller hears of it");
    // It waits two seconds for the store that hangs, and no longer.
    within(Duration::from_secs(4), "the start", || bench.node.start());
    bench.the_other_is_mounted_and_unmounted_at_once();
    bench.store.go_on();
    bench.nothing_of_it_is_left();
}

#[test]
fn a_daemon_that_starts_while_a_store_hangs_lists_the_volumes_of_the_other() {
    let mut bench = Bench::new();
    bench.node.kill();
    bench.store.forget();
    bench.store.halt();
    bench.node.start();
    let (_, listed) = bench.node.plugin("VolumeDriver.List", &json!({}));
    assert_eq!(listed["Volumes"][0]["Name"], "fine", "{listed}");
}

#[test]
fn a_daemon_that_started_while_a_store_hung_knows_its_volumes_when_it_answers_again() {
    let mut bench = Bench::new();
    bench.node.kill();
    bench.store.forget();
    bench.store.halt();
    bench.node.start();
    bench.store.go_on();
    eventually("it is listed", BOUND, || bench.bad("VolumeDriver.List", &json!({})).1["Volumes"][0]["Name"] == "a");
    bench.its_data_is_there();
}

#[test]
fn a_create_that_hung_when_the_daemon_was_killed_is_finished_or_undone_when_the_store_answers_again() {
    let mut bench = Bench::new();
    bench.store.halt();
    bench.node.cli(&["volume", "create", "b", "--driver", "bad", "-o", "size=16M", "--timeout", "0.2"]).fails(12);
    let helpers = bench.helpers();
    bench.node.kill();
    bench.node.start();
    bench.store.go_on();
    bench.have_gone(&helpers);
    let folder = bench.store.path().join("pool/b");
    let whole = || folder.join("image").exists() && bench.node.cli(&["volume", "ls", "-q"]).out.contains("b\n");
    eventually("it is there whole, or nothing of it is", BOUND, || whole() || !folder.exists());
}

#[test]
fn a_mount_that_hung_when_the_daemon_was_killed_leaves_nothing_when_the_store_answers_again() {
    let mut bench = Bench::new();
    bench.store.halt();
    let hanging = bench.mount_in_background();
    eventually("the mount is under way", BOUND, || !bench.jobs().is_empty());
    let helpers = bench.helpers();
    bench.node.kill();
    hanging.join().expect("its caller hears of it");
    bench.node.start();
    bench.store.go_on();
    bench.have_gone(&helpers);
    bench.nothing_of_it_is_left();
    bench.its_data_is_there();
}
