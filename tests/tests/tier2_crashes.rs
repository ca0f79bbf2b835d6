//! A minute of verbs under a `kill -9` every half second on average.
//!
//! Callers mount, write, look and unmount all the time, as many at once, and ask again what was not answered, as a scheduler
//! does. Whoever holds a volume finds it mounted, on the same mount, with every write that fsync acknowledged; in the end
//! nothing is held, mounted or attached. (The matrix of single deaths is `tier2_crash_matrix`.)
//!
//! The seed is printed; `DUNNAGE_SEED=N` runs with it again: the same deaths and verbs, in an order that threads make anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, http, kernel};
use serde_json::{Value, json};

const FOR: Duration = Duration::from_secs(60);
/// Milliseconds from one death to the next: half a second on average.
const BETWEEN: std::ops::Range<u64> = 50..950;
const CALLERS: usize = 4;
const KEPT: [&str; 3] = ["v0", "v1", "v2"];

/// Chance with a memory: the same seed, the same choices (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn fork(&mut self) -> Chance {
        Chance(self.below(u64::MAX) | 1)
    }
}

fn seed() -> u64 {
    if let Ok(seed) = std::env::var("DUNNAGE_SEED") {
        return seed.parse().expect("DUNNAGE_SEED is a number");
    }
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed)).expect("chance");
    u64::from_le_bytes(seed) | 1
}

/// What all callers share.
struct Calls<'a> {
    socket: &'a Path,
    over: AtomicBool,
    done: AtomicUsize,
    repeated: AtomicUsize,
}

impl Calls<'_> {
    /// Asks until there is an answer: the daemon may be dead.
    fn ask(&self, call: &str, body: &Value) -> Value {
        let begun = Instant::now();
        loop {
            let asked = http::try_post(self.socket, &format!("/VolumeDriver.{call}"), body.to_string().as_bytes());
            if let Some(answer) = asked.ok().filter(|answer| answer.status != 0) {
                self.done.fetch_add(1, Ordering::Relaxed);
                return serde_json::from_slice(&answer.body).expect("json");
            }
            assert!(begun.elapsed() < BOUND, "nobody answers {call} {body}");
            self.repeated.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask_for(&self, call: &str, body: &Value) -> Value {
        let answer = self.ask(call, body);
        assert_eq!(answer["Err"].as_str().unwrap_or(""), "", "{call} {body}");
        answer
    }
}

/// Mounts a volume, writes, and gives it back, over and over. Gives the last number of its own that each volume has.
fn hold_and_write(calls: &Calls<'_>, id: &str, mut chance: Chance) -> BTreeMap<&'static str, u64> {
    let mut acknowledged = BTreeMap::new();
    let mut number = 0;
    while !calls.over.load(Ordering::Relaxed) {
        let volume = KEPT[usize::try_from(chance.below(3)).expect("small")];
        let body = json!({ "Name": volume, "ID": id });
        let answer = calls.ask_for("Mount", &body);
        let path = Path::new(answer["Mountpoint"].as_str().expect("a path"));
        let mount = kernel::mount_id(path);
        assert!(mount.is_some(), "{id} holds {volume}, and it is not mounted");
        let file = path.join(id);
        for _ in 0..chance.below(4) {
            let was = acknowledged.get(volume).map(ToString::to_string).unwrap_or_default();
            assert_eq!(sh(&format!("cat {} 2>/dev/null || true", file.display())), was, "{volume} has lost a write of {id}");
            number += 1;
            sh(&format!("echo {number} | dd of={} conv=fsync status=none", file.display()));
            acknowledged.insert(volume, number);
            assert_eq!(kernel::mount_id(path), mount, "{volume} was unmounted under {id}");
        }
        calls.ask_for("Unmount", &body);
    }
    acknowledged
}

/// Makes a volume and removes it, over and over.
fn make_and_remove(calls: &Calls<'_>) {
    while !calls.over.load(Ordering::Relaxed) {
        calls.ask_for("Create", &json!({ "Name": "t", "Opts": { "size": "16M" } }));
        let answer = calls.ask("Remove", &json!({ "Name": "t" }));
        // A removal whose answer was lost was one.
        let said = answer["Err"].as_str().unwrap_or("");
        assert!(said.is_empty() || said.starts_with("not_found"), "{said}");
    }
}

#[test]
fn a_minute_of_verbs_under_kill_9_every_half_second_loses_nothing_and_leaks_nothing() {
    let seed = seed();
    println!("DUNNAGE_SEED={seed}");
    let mut chance = Chance(seed);
    let mut node = Node::started();
    for volume in KEPT.iter().chain(&["keep"]) {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }));
    }
    let keep = node.mount("keep", "k");
    sh(&format!("echo kept > {}/x; sync -f {0}/x", keep.display()));
    let neighbour = kernel::mount_id(&keep);

    let socket = node.socket();
    let calls = Calls { socket: &socket, over: AtomicBool::new(false), done: AtomicUsize::new(0), repeated: AtomicUsize::new(0) };
    let mut deaths = 0;
    let acknowledged: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let (calls, chance) = (&calls, chance.fork());
                scope.spawn(move || hold_and_write(calls, &format!("c{n}"), chance))
            })
            .collect();
        let maker = scope.spawn(|| make_and_remove(&calls));
        let begun = Instant::now();
        while begun.elapsed() < FOR && !callers.iter().any(|caller| caller.is_finished()) && !maker.is_finished() {
            std::thread::sleep(Duration::from_millis(BETWEEN.start + chance.below(BETWEEN.end - BETWEEN.start)));
            node.kill();
            node.spawn();
            deaths += 1;
        }
        calls.over.store(true, Ordering::Relaxed);
        maker.join().expect("the maker");
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
    });
    let (done, repeated) = (calls.done.into_inner(), calls.repeated.into_inner());
    println!("{deaths} deaths, {done} answers, {repeated} times nobody answered");
    assert!(deaths > 60 && done > 1000, "this tests nothing");

    assert_eq!(kernel::mount_id(&keep), neighbour, "the neighbour's mount was touched");
    assert_eq!(sh(&format!("cat {}/x", keep.display())), "kept");
    for volume in KEPT {
        node.wait_until_released(volume);
        let path = node.mount(volume, "reader");
        for (n, acknowledged) in acknowledged.iter().enumerate() {
            let mut was = String::new();
            acknowledged.get(volume).map(|number| write!(was, "{number}")).transpose().expect("text");
            assert_eq!(sh(&format!("cat {}/c{n} 2>/dev/null || true", path.display())), was, "{volume} has lost a write of c{n}");
        }
        node.unmount(volume, "reader");
    }
    node.unmount("keep", "k");
    eventually("nothing of the volume that came and went is there", BOUND, || {
        let _ = node.plugin("VolumeDriver.Remove", &json!({ "Name": "t" }));
        !node.pool().join("t").exists()
    });
    node.finish();
}
