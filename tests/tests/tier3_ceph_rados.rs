//! What the protocols between nodes stand on, against a real Ceph: records that change by comparison, the blocklist, the barrier,
//! watchers. All of it is done with a key that has `profile rbd` and no more.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dunnage_driver_ceph::tasks::{self, Place};
use dunnage_driver_ceph::{Access, ClientAddress, Cluster, Heard, Pool, Versioned, features, is_fenced};
use dunnage_host::helpers::{HELPER_NAME, Helpers, run};
use dunnage_host::orphans::Brood;
use dunnage_model::{Bytes, Error, Kind};
use dunnage_tests::ceph::{Ceph, Client, POOL, median, resident_mib, since_1970, timed};
use dunnage_tests::docker::find;
use dunnage_tests::{BOUND, eventually, skip};

const CLIENT: &str = env!("CARGO_BIN_EXE_ceph-client");
/// What is meant when somebody is fenced for good.
const FOR_GOOD: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

fn fences(pool: &Pool, address: ClientAddress) {
    pool.cluster().blocklist(&[address], FOR_GOOD).expect("profile rbd may fence");
}

/// Names, in order.
fn listed(pool: &Pool, prefix: &str) -> Vec<String> {
    let mut names = pool.list(prefix).expect("a list");
    names.sort();
    names
}

#[test]
fn of_two_that_swap_at_once_one_wins_and_the_other_is_told() {
    let Some(ceph) = Ceph::start(1) else { return };
    let pools = [ceph.pool(), ceph.pool(), ceph.pool()];
    let together = |work: &(dyn Fn(&Pool, u64) -> bool + Sync)| -> Vec<u64> {
        let start = Barrier::new(pools.len());
        std::thread::scope(|scope| {
            let begin = |(pool, who)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    work(pool, who).then_some(who)
                })
            };
            let racers: Vec<_> = pools.iter().zip(1_u64..).map(begin).collect();
            racers.into_iter().filter_map(|racer| racer.join().expect("a racer")).collect()
        })
    };
    let mut times = Vec::new();
    for round in 0..100_u64 {
        let oid = format!("dunnage.vol.{}", round % 10);
        if round < 10 {
            let winners = together(&|pool, who| pool.create(&oid, 1, format!("made by {who}").as_bytes()).expect("create"));
            assert_eq!(winners.len(), 1, "an exclusive create has one winner");
            let record = pools[0].read(&oid).expect("read").expect("it is there");
            assert_eq!(record, Versioned { revision: 1, data: format!("made by {}", winners[0]).into_bytes() });
        }
        let before = pools[0].read(&oid).expect("read").expect("it is there");
        let next = before.revision + 1;
        let winners = together(&|pool, who| pool.swap(&oid, before.revision, next, format!("{round} by {who}").as_bytes()).expect("swap"));
        assert_eq!(winners.len(), 1, "a swap has one winner");
        let after = pools[0].read(&oid).expect("read").expect("it is there");
        assert_eq!(after, Versioned { revision: next, data: format!("{round} by {}", winners[0]).into_bytes() });
        let (took, swapped) = timed(|| pools[1].swap(&oid, next, next, &after.data));
        assert_eq!(swapped, Ok(true));
        times.push(took);
    }
    println!("one swap, one storage daemon: {:?}", median(&mut times));
}

#[test]
fn a_change_that_names_an_old_revision_changes_nothing() {
    let Some(ceph) = Ceph::start(1) else { return };
    let pool = ceph.pool();
    assert_eq!(pool.read("r"), Ok(None));
    assert_eq!(pool.swap("r", 0, 1, b"x"), Ok(false), "what is not there cannot be swapped");
    assert_eq!(pool.read("r"), Ok(None), "nor is it made by that");
    assert_eq!(pool.remove("r", 0), Ok(false));
    assert_eq!(pool.create("r", 7, b"seven"), Ok(true));
    assert_eq!(pool.create("r", 8, b"eight"), Ok(false));
    for old in [0, 6, 8, 70, u64::MAX] {
        assert_eq!(pool.swap("r", old, 9, b"nine"), Ok(false));
        assert_eq!(pool.remove("r", old), Ok(false));
    }
    assert_eq!(pool.read("r"), Ok(Some(Versioned { revision: 7, data: b"seven".to_vec() })));
    // A record that is longer than the first read expects, one that is empty, and one that became shorter.
    let long: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for (revision, data) in [(8, long), (9, Vec::new()), (10, b"ten".to_vec())] {
        assert_eq!(pool.swap("r", revision - 1, revision, &data), Ok(true));
        assert_eq!(pool.read("r"), Ok(Some(Versioned { revision, data })));
    }
    assert_eq!(pool.remove("r", 10), Ok(true));
    assert_eq!(pool.remove("r", 10), Ok(false));
    assert_eq!(pool.read("r"), Ok(None));
    // Somebody else's object is neither read as a record nor overwritten.
    ceph.command("rados", &["-p", POOL, "put", "theirs", "/etc/hostname"]).ok();
    assert_eq!(pool.read("theirs").expect_err("no record").kind, Kind::ExistsIncompatible);
    assert_eq!(pool.swap("theirs", 0, 1, b"x"), Ok(false));
    assert_eq!(pool.create("theirs", 1, b"x"), Ok(false));
    assert_eq!(listed(&pool, "th"), ["theirs"]);
    let text = pool.create("zero\0byte", 1, b"").expect_err("C has no such name").to_string();
    assert!(text.contains("zero byte"), "{text}");
}

#[test]
fn all_that_the_driver_needs_is_allowed_to_profile_rbd() {
    let Some(ceph) = Ceph::start(3) else { return };
    let caps = ceph.ceph(&["auth", "get", "client.dunnage"]).ok();
    assert!(caps.contains("caps mon = \"profile rbd\"") && caps.contains("caps osd = \"profile rbd\""), "{caps}");
    let (connecting, cluster) = timed(|| Cluster::connect(&ceph.access()).expect("connected"));
    let mut connects: Vec<_> = (0..20).map(|_| timed(|| Cluster::connect(&ceph.access()).expect("connected")).0).collect();
    println!("connect: the first {connecting:?}, later ones {:?}", median(&mut connects));

    assert_eq!(ceph.ceph(&["fsid"]).ok(), cluster.fsid().expect("an id"));
    let pools: Vec<_> = cluster.pools().expect("pools").into_iter().map(|pool| (pool.name, pool.id)).collect();
    assert_eq!(pools, [(POOL.to_owned(), 1)]);
    let missing = cluster.pool("nowhere").err().expect("there is none");
    assert_eq!(missing.kind, Kind::NotFound);
    assert!(missing.detail.contains("\"nowhere\""), "{missing}");

    let pool = cluster.pool(POOL).expect("the pool");
    let mut swaps = Vec::new();
    assert_eq!(pool.create("r", 0, b"0"), Ok(true));
    for revision in 1..=200 {
        let (took, swapped) = timed(|| pool.swap("r", revision - 1, revision, b"a record of some length"));
        assert_eq!(swapped, Ok(true));
        swaps.push(took);
    }
    println!("swap, three copies: {:?}, at most {:?}", median(&mut swaps), swaps.iter().max());

    images(&pool);

    // Others see our address as we do, and the blocklist takes it as it is.
    let other = ceph.pool();
    let own = other.cluster().instance().expect("an address");
    println!("a client's own address: {own:?}");
    assert_eq!(own.len(), 1);
    assert_eq!(other.create("alive", 1, b""), Ok(true));
    let mut blocklists = vec![timed(|| fences(&pool, own[0])).0];
    let mut barriers = vec![timed(|| pool.barrier().expect("profile rbd may list")).0];
    assert!(cluster.blocklisted().expect("a list").contains(&own[0]));
    let fenced = other.create("late", 1, b"").expect_err("it is fenced");
    assert!(is_fenced(&fenced), "{fenced}");
    println!("what a fenced client is told: {fenced}");
    for port in 1..20 {
        let nobody: ClientAddress = format!("127.0.0.1:0/{port}").parse().expect("an address");
        blocklists.push(timed(|| fences(&pool, nobody)).0);
        barriers.push(timed(|| pool.barrier().expect("barrier")).0);
    }
    println!(
        "blocklist: {:?}; barrier of 8 groups: {:?}, at most {:?}",
        median(&mut blocklists),
        median(&mut barriers),
        barriers.iter().max()
    );
    let alone = (0..20).map(|_| timed(|| pool.barrier().expect("barrier")).0);
    println!("barrier without a new map: {:?}", median(&mut alone.collect::<Vec<_>>()));

    watches(&ceph, &pool);
    let told = cluster.monitor(&serde_json::json!({ "prefix": "osd pool delete", "pool": POOL })).expect_err("it may not");
    assert_eq!(told.kind, Kind::Permission, "{told}");
}

fn images(pool: &Pool) {
    assert_eq!(pool.images(), Ok(Vec::new()));
    assert_eq!(pool.image("pg"), Ok(None));
    assert_eq!(pool.image_watchers("pg"), Ok(None));
    let (took, made) = timed(|| pool.create_image("pg", Bytes::gib(1)));
    assert_eq!(made, Ok(true));
    println!("an image is made in {took:?}");
    assert_eq!(pool.create_image("pg", Bytes::gib(2)), Ok(false));
    let info = pool.image("pg").expect("stat").expect("it is there");
    assert_eq!(info.size, Bytes::gib(1));
    let ours = features::LAYERING | features::EXCLUSIVE_LOCK | features::OBJECT_MAP | features::FAST_DIFF;
    assert_eq!(info.features, ours);
    let images = pool.images().expect("images");
    assert_eq!(images.iter().map(|image| (&*image.name, &*image.id)).collect::<Vec<_>>(), [("pg", &*info.id)]);
    pool.lengthen_image("pg", Bytes::gib(3)).expect("lengthened");
    assert_eq!(pool.image("pg").expect("stat").map(|info| info.size), Some(Bytes::gib(3)));

    assert_eq!(pool.image_labels("pg"), Ok(Some(BTreeMap::new())));
    let labels = (0..100).map(|n| (format!("label{n}"), if n == 50 { "l".repeat(10_000) } else { "short".to_owned() })).collect();
    pool.label_image("pg", &labels).expect("labelled");
    assert_eq!(pool.image_labels("pg"), Ok(Some(labels)));

    assert_eq!(pool.image_watchers("pg"), Ok(Some(Vec::new())), "to look is not to watch");
    assert_eq!(pool.remove_image("pg"), Ok(true));
    assert_eq!(pool.remove_image("pg"), Ok(false));
    assert_eq!(pool.lengthen_image("pg", Bytes::gib(1)).expect_err("it is gone").kind, Kind::NotFound);
}

fn watches(ceph: &Ceph, pool: &Pool) {
    assert_eq!(pool.watch("dunnage.node.n1", Duration::from_secs(5)).err().map(|e| e.kind), Some(Kind::NotFound));
    assert_eq!(pool.create("dunnage.node.n1", 1, b""), Ok(true));
    let nobody = pool.notify("dunnage.node.n1", b"?", Duration::from_secs(2)).expect("notify");
    assert!(nobody.answered.is_empty() && nobody.silent.is_empty(), "{nobody:?}");
    let owner = ceph.pool();
    let watch = owner.watch("dunnage.node.n1", Duration::from_secs(5)).expect("watch");
    let (took, heard) = timed(|| pool.notify("dunnage.node.n1", b"please let go", Duration::from_secs(2)).expect("notify"));
    println!("a notify with one watcher: {took:?}, {heard:?}");
    assert_eq!(heard.answered.iter().map(|one| one.client).collect::<Vec<_>>(), [owner.cluster().client_id()]);
    assert!(heard.silent.is_empty());
    assert_eq!((watch.rings(), watch.take_notes(), watch.take_notes().len()), (1, vec![b"please let go".to_vec()], 0));
    assert!(watch.is_alive());

    // A watch ends with its fence, as soon as the storage daemon knows.
    fences(pool, owner.cluster().instance().expect("an address")[0]);
    pool.barrier().expect("barrier");
    let heard = pool.notify("dunnage.node.n1", b"?", Duration::from_secs(2)).expect("notify");
    println!("a notify right after its watcher was fenced: {heard:?}");
    assert!(heard.answered.is_empty(), "{heard:?}");
    let (took, ()) = timed(|| eventually("the watch knows that it was lost", BOUND, || !watch.is_alive()));
    println!("a fenced watcher knows of it after {took:?}: {}", watch.confirmed().expect_err("it was lost"));
    drop(watch);
    let again = pool.watch("dunnage.node.n1", Duration::from_secs(5)).expect("watch");
    drop(again);
    let heard = pool.notify("dunnage.node.n1", b"?", Duration::from_secs(2)).expect("notify");
    assert!(heard.answered.is_empty(), "a watch that was dropped is none: {heard:?}");
}

#[test]
fn a_watcher_that_is_frozen_is_silent_and_one_that_died_is_forgotten() {
    let Some(ceph) = Ceph::start(1) else { return };
    let pool = ceph.pool();
    assert_eq!(pool.create("dunnage.node.n1", 1, b""), Ok(true));
    let mut node = Client::start(CLIENT, &ceph, &["watch", "dunnage.node.n1"]);
    node.line().expect("it watches");
    let ask = || pool.notify("dunnage.node.n1", b"?", Duration::from_secs(1)).expect("notify");
    let there = ask();
    assert_eq!((there.answered.len(), there.silent.len()), (1, 0), "{there:?}");
    node.freeze();
    let (took, frozen) = timed(ask);
    println!("a notify with a frozen watcher: {took:?}, {frozen:?}");
    assert_eq!((frozen.answered, frozen.silent), (vec![], there.answered.clone()));
    node.thaw();
    assert_eq!(ask().answered, there.answered);
    drop(node);
    let begun = Instant::now();
    eventually("it is forgotten", BOUND, || ask() == Heard::default());
    println!("a watch of 5 s whose client died is forgotten after {:?}", begun.elapsed());
}

/// An accepted write of [`Client`]: when it began, and when the client knew.
#[derive(Clone, Copy)]
struct Accepted {
    begun: Duration,
    done: Duration,
}

/// Reads what a writer says from now on: the writes that were accepted, and at the end how it was refused, twice.
fn end_of(mut writer: Client) -> (Vec<Accepted>, String, String) {
    let (mut accepted, mut refused, mut late) = (Vec::new(), String::new(), String::new());
    while let Some(line) = writer.line() {
        if line.starts_with("refused again") {
            late = line;
        } else if line.starts_with("refused") {
            refused = line;
        } else {
            let mut times = line.split(' ').map(|at| Duration::from_nanos(at.parse().expect("nanoseconds")));
            let (begun, done) = (times.next().expect("a time"), times.next().expect("another"));
            accepted.push(Accepted { begun, done });
        }
    }
    (accepted, refused, late)
}

#[test]
fn after_blocklist_and_barrier_no_write_of_the_fenced_client_is_accepted() {
    let Some(ceph) = Ceph::start(3) else { return };
    // Five groups: a number that is no power of two has groups of two sizes.
    ceph.ceph(&["osd", "pool", "create", "five", "5", "5"]).ok();
    ceph.ceph(&["osd", "pool", "application", "enable", "five", "rbd"]).ok();
    let usual = ceph.pool();
    let five = usual.cluster().pool("five").expect("the pool");
    let (mut between, mut begun_between, mut written, mut broken) = (Vec::new(), Vec::new(), 0, 0);
    let (mut fencing, mut barriers, mut latest) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..20 {
        let prefix = format!("storm{round}");
        let pool = if round < 15 { &usual } else { &five };
        let mut writer = Client::start(CLIENT, &ceph, &["write", &prefix, pool.name()]);
        let address = writer.address;
        for _ in 0..40 {
            writer.line().expect("it writes");
        }
        let (took, ()) = timed(|| fences(pool, address));
        let fenced = since_1970();
        fencing.push(took);
        let (took, ()) = timed(|| pool.barrier().expect("barrier"));
        let passed = since_1970();
        barriers.push(took);
        let seen = listed(pool, &format!("{prefix}."));
        let (accepted, refused, late) = end_of(writer);
        let count = |is_so: &dyn Fn(&Accepted) -> bool| accepted.iter().filter(|one| is_so(one)).count();
        between.push(count(&|one| one.done > fenced && one.done <= passed));
        begun_between.push(count(&|one| one.begun > fenced && one.begun <= passed));
        broken += count(&|one| one.begun > passed);
        written += seen.len();
        latest.extend(accepted.iter().map(|one| one.done).max().map(|last| last.as_secs_f64() - fenced.as_secs_f64()));
        assert!(refused.contains("fenced=true"), "it is told why: {refused:?}");
        assert!(late.contains("fenced=true"), "and once more: {late:?}");
        assert_eq!(listed(pool, &format!("{prefix}.")), seen, "round {round}: what is read after the barrier changes no more");
    }
    println!("20 rounds, {written} writes; accepted between the blocklist's return and the barrier's: {between:?}");
    println!("of these begun after the blocklist's return: {begun_between:?}; begun after the barrier's: {broken}");
    println!("blocklist under writes: {:?}; barrier: {:?}", median(&mut fencing), median(&mut barriers));
    latest.sort_by(f64::total_cmp);
    println!("the last accepted write against the blocklist's return, in seconds: {latest:.4?}");
    assert!(begun_between.iter().sum::<usize>() > 0, "the blocklist alone lets nothing through: then there need be no barrier");
    assert_eq!(broken, 0, "a write that began after the barrier was accepted");
}

#[test]
fn a_client_that_was_frozen_when_it_was_fenced_writes_nothing_when_it_thaws() {
    let Some(ceph) = Ceph::start(2) else { return };
    let pool = ceph.pool();
    for round in 0..5 {
        let prefix = format!("frozen{round}");
        let mut writer = Client::start(CLIENT, &ceph, &["write", &prefix]);
        for _ in 0..40 {
            writer.line().expect("it writes");
        }
        writer.freeze();
        fences(&pool, writer.address);
        pool.barrier().expect("barrier");
        let seen = listed(&pool, &format!("{prefix}."));
        writer.thaw();
        let (_, refused, late) = end_of(writer);
        assert!(refused.contains("fenced=true") && late.contains("fenced=true"), "{refused:?} {late:?}");
        assert_eq!(listed(&pool, &format!("{prefix}.")), seen, "round {round}");
    }
}

#[test]
fn who_has_an_image_open_is_seen_by_the_address_that_cuts_it_off() {
    let Some(ceph) = Ceph::start(1) else { return };
    let pool = ceph.pool();
    assert_eq!(pool.create_image("pg", Bytes::mib(64)), Ok(true));
    let mut owner = Client::start(CLIENT, &ceph, &["open", "pg"]);
    owner.line().expect("it writes");
    let watchers = pool.image_watchers("pg").expect("watchers").expect("it is there");
    assert_eq!(watchers.iter().map(|watcher| watcher.address).collect::<Vec<_>>(), [owner.address]);
    assert!(ceph.command("rbd", &["status", &format!("{POOL}/pg")]).ok().contains(&owner.address.to_string()));
    let refused = pool.remove_image("pg").expect_err("it is open");
    assert!(matches!(&refused.kind, Kind::InUse { holders, .. } if holders[0].contains(&owner.address.to_string())), "{refused}");
    println!("what a removal is told: {refused}");
    fences(&pool, watchers[0].address);
    pool.barrier().expect("barrier");
    let last = std::iter::from_fn(|| owner.line()).last().expect("it says something");
    println!("what a fenced writer to an image is told: {last}");
    assert!(last.contains("refused fenced=true"), "{last}");
    // A fenced client is no watcher any more: nobody waits half a minute for it.
    let (took, ()) = timed(|| {
        eventually("nobody watches it", BOUND, || pool.image_watchers("pg").expect("watchers").is_some_and(|all| all.is_empty()));
    });
    println!("a fenced client is no watcher after {took:?}");
    assert_eq!(pool.remove_image("pg"), Ok(true));
}

#[test]
fn a_device_of_qemu_is_cut_off_by_the_address_that_watches_its_image() {
    let Some(storage_daemon) = find("qemu-storage-daemon") else {
        skip("needs qemu-storage-daemon with rbd (packages qemu-system-common, qemu-block-extra)");
        return;
    };
    let Some(ceph) = Ceph::start(1) else { return };
    let pool = ceph.pool();
    assert_eq!(pool.create_image("pg", Bytes::mib(64)), Ok(true));
    let file = ceph.folder.join("device");
    std::fs::write(&file, "").expect("a file to mount on");
    let access = ceph.access();
    // qemu finds the key where ceph.conf says: beside it.
    let blockdev =
        format!("driver=rbd,node-name=n0,pool={POOL},image=pg,conf={},user={},cache.direct=on", access.conf.display(), access.user);
    let export = format!("type=fuse,id=e0,node-name=n0,mountpoint={},writable=on", file.display());
    let mut command = Command::new(storage_daemon);
    command.args(["--blockdev", &blockdev, "--export", &export]).stdin(Stdio::null());
    command.stderr(std::fs::File::create(ceph.folder.join("qemu.log")).expect("log"));
    let mut device = Device { child: command.spawn().expect("qemu-storage-daemon"), file: file.clone() };
    let size = || std::fs::metadata(&file).is_ok_and(|file| file.len() == Bytes::mib(64).0);
    eventually("the device is there", BOUND, || device.runs() && size());
    let write = || -> std::io::Result<()> {
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=64k", "count=1", "conv=notrunc,fsync", "status=none"]).arg(format!("of={}", file.display()));
        let done = command.stdin(Stdio::null()).stderr(Stdio::null()).status()?;
        if done.success() { Ok(()) } else { Err(std::io::Error::other("dd failed")) }
    };
    write().expect("it writes");
    let watchers = pool.image_watchers("pg").expect("watchers").expect("it is there");
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    fences(&pool, watchers[0].address);
    pool.barrier().expect("barrier");
    write().expect_err("it was cut off");
    let said = std::fs::read_to_string(ceph.folder.join("qemu.log")).expect("log");
    assert!(said.contains("-108"), "it was told of the fence: {said}");
    println!("qemu-storage-daemon with one volume: {} MiB", resident_mib(device.child.id()));
    drop(device);
}

/// A qemu-storage-daemon, and the file that it serves.
struct Device {
    child: Child,
    file: std::path::PathBuf,
}

impl Device {
    fn runs(&mut self) -> bool {
        let ended = self.child.try_wait().expect("wait");
        assert!(ended.is_none(), "qemu-storage-daemon ended: {ended:?}");
        true
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("umount").arg(&self.file).stderr(Stdio::null()).status();
    }
}

#[test]
fn what_cannot_be_reached_is_an_error_in_time_and_works_again_later() {
    let Some(mut ceph) = Ceph::start(1) else { return };
    let access = Access { timeout: Duration::from_secs(2), ..ceph.access() };
    let fails = |access: &Access| -> Error {
        let (took, error) = timed(|| Cluster::connect(access).err().expect("it cannot connect"));
        println!("after {took:?}: {error}");
        assert!(took < Duration::from_secs(6), "{took:?}: {error}");
        error
    };
    // Another key, no key, a user that is not there, no configuration, nobody at the address.
    let keyring = ceph.folder.join("wrong.keyring");
    let text = std::fs::read_to_string(ceph.keyring()).expect("keyring");
    let key = text.lines().find_map(|line| line.trim().strip_prefix("key = ")).expect("a key");
    let wrong = format!("{}AAAAAAAAAAAAAAAAAAAAAA==", &key[..key.len() - 24]);
    std::fs::write(&keyring, text.replace(key, &wrong)).expect("keyring");
    assert_eq!(fails(&Access { keyring: Some(keyring), ..access.clone() }).kind, Kind::Permission);
    let none = Access { keyring: Some(ceph.folder.join("no.keyring")), ..access.clone() };
    assert_eq!(fails(&none).kind, Kind::Permission);
    assert_eq!(fails(&Access { user: "nobody".into(), ..access.clone() }).kind, Kind::Permission);
    let lost = fails(&Access { conf: ceph.folder.join("no.conf"), ..access.clone() });
    assert!(lost.kind == Kind::NotFound && lost.detail.contains("no.conf"), "{lost}");
    let conf = std::fs::read_to_string(ceph.conf()).expect("ceph.conf");
    let elsewhere = ceph.folder.join("elsewhere.conf");
    let host = conf.lines().find(|line| line.starts_with("mon host")).expect("mon host");
    std::fs::write(&elsewhere, conf.replace(host, "mon host = [v2:127.0.0.1:1/0]")).expect("written");
    assert_eq!(fails(&Access { conf: elsewhere, ..access.clone() }).kind, Kind::PlatformUnavailable);

    // The monitor says nothing: what is connected goes on with its objects, and cannot fence.
    let connected = Cluster::connect(&access).expect("connected");
    let pool = connected.pool(POOL).expect("the pool");
    assert_eq!(pool.create("r", 1, b""), Ok(true));
    ceph.stop_mon();
    assert_eq!(fails(&access).kind, Kind::PlatformUnavailable);
    assert_eq!(pool.swap("r", 1, 2, b""), Ok(true));
    let in_time = |what: &str, outcome: &mut dyn FnMut() -> Result<(), Error>| {
        let (took, outcome) = timed(outcome);
        let error = outcome.expect_err(what);
        println!("{what} after {took:?}: {error}");
        assert_eq!(error.kind, Kind::PlatformUnavailable, "{error}");
        assert!(took < Duration::from_secs(6), "{took:?}");
    };
    let nobody: ClientAddress = "127.0.0.1:0/1".parse().expect("an address");
    in_time("blocklist", &mut || connected.blocklist(&[nobody], FOR_GOOD));
    in_time("barrier", &mut || pool.barrier());
    ceph.cont_mon();
    let (took, ()) = timed(|| eventually("it goes on", BOUND, || pool.barrier().is_ok()));
    println!("a connection goes on {took:?} after the monitor does");
    Cluster::connect(&access).expect("connected");

    // The storage daemon is away: nothing is known, within the time that was given.
    ceph.kill_osd(0);
    in_time("swap", &mut || pool.swap("r", 2, 3, b"").map(drop));
    in_time("barrier", &mut || pool.barrier());
    let (took, ()) = timed(|| drop((pool, connected)));
    println!("such a connection is ended in {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    ceph.start_osd(0);
    eventually("the pool is served again", BOUND, || Cluster::connect(&access).and_then(|c| c.pool(POOL)?.read("r")).is_ok());
}

/// The helpers that run in this namespace.
fn helpers_that_run() -> Vec<u32> {
    let named = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(HELPER_NAME.as_bytes()));
    let all = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(named).collect()
}

/// The children that a process has, and the page faults of those that it had.
fn children_of(pid: u32) -> (usize, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let living = children.map(|children| children.split_whitespace().count()).sum();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    // cminflt is the eleventh field of all, the ninth after the name.
    let faults = stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(8)).expect("cminflt");
    (living, faults.parse().expect("a number"))
}

#[test]
fn one_helper_serves_three_hundred_images_and_starts_no_process() {
    let Some(ceph) = Ceph::start(1) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (brood, _) = Brood::begin(&ceph.folder.join("marks")).expect("begin");
        let helpers = Helpers::new(CLIENT.into(), brood);
        let place = Place { access: ceph.access(), pool: POOL.to_owned() };
        let begun = Instant::now();
        for n in 0..300 {
            let (place, name) = (place.clone(), format!("v{n}"));
            let record =
                tasks::CreateRecord { place: place.clone(), oid: format!("dunnage.vol.{n}"), revision: 1, data: name.clone().into() };
            assert!(run(&helpers, &record).await.expect("record"));
            assert!(run(&helpers, &tasks::CreateImage { place, name, size: Bytes::gib(10) }).await.expect("image"));
        }
        let made = begun.elapsed();
        let begun = Instant::now();
        for n in 0..300 {
            let (place, name) = (place.clone(), format!("v{n}"));
            let (oid, of) = (format!("dunnage.vol.{n}"), place.clone());
            let info = run(&helpers, &tasks::StatImage { place: place.clone(), name: name.clone() }).await.expect("stat");
            assert_eq!(info.map(|info| info.size), Some(Bytes::gib(10)));
            assert_eq!(run(&helpers, &tasks::ImageWatchers { place: place.clone(), name }).await, Ok(Some(Vec::new())));
            assert_eq!(
                run(&helpers, &tasks::SwapRecord { place: of, oid: oid.clone(), expected: 1, revision: 2, data: b"held".to_vec() }).await,
                Ok(true)
            );
            let record = run(&helpers, &tasks::ReadRecord { place, oid }).await.expect("read");
            assert_eq!(record, Some(Versioned { revision: 2, data: b"held".to_vec() }));
        }
        let used = begun.elapsed();
        let listed = run(&helpers, &tasks::ListImages { place: place.clone() }).await.expect("list");
        assert_eq!(listed.len(), 300);
        run(&helpers, &tasks::Barrier { place: place.clone() }).await.expect("barrier");

        let pids = helpers_that_run();
        assert_eq!(pids.len(), 1, "one helper did all: {pids:?}");
        assert_eq!(children_of(pids[0]), (0, 0), "it never had a child");
        println!(
            "300 images and records made in {made:?}, each looked at four times in {used:?}; the helper has {} MiB",
            resident_mib(pids[0])
        );

        // A helper whose connection was fenced says so once, and then has another one.
        let own = run(&helpers, &tasks::Instance { access: ceph.access() }).await.expect("its address");
        run(&helpers, &tasks::Blocklist { access: ceph.access(), clients: own, duration: FOR_GOOD }).await.expect("it may fence itself");
        ceph.pool().barrier().expect("barrier");
        let read = tasks::ReadRecord { place: place.clone(), oid: "dunnage.vol.0".into() };
        let fenced = run(&helpers, &read).await.expect_err("it is fenced");
        assert!(is_fenced(&fenced), "{fenced}");
        assert!(run(&helpers, &read).await.expect("another connection").is_some());
        assert_eq!(run(&helpers, &tasks::RemoveImage { place: place.clone(), name: "v0".into() }).await, Ok(true));
        assert_eq!(run(&helpers, &tasks::RemoveRecord { place, oid: "dunnage.vol.0".into(), expected: 2 }).await, Ok(true));
    });
}
