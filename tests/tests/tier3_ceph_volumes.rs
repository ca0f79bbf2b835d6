//! Volumes that are images of a real Ceph: made, mounted, moved from node to node, and taken from one that has died.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dunnage_driver::conformance::{Bench, CASES};
use dunnage_driver::{Driver, NewVolume, Provision};
use dunnage_driver_ceph::Settings;
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_host::{Detached, Host};
use dunnage_model::{BootId, Bytes, Owner, PartialSpec};
use dunnage_tests::ceph::{Ceph, Client, POOL, USER};
use dunnage_tests::{BOUND, Node, binary, eventually, is_mounted, kernel, sh};
use rustix::process::Signal;
use serde_json::{Value, json};

fn create(node: &Node, volume: &str) {
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": {} }));
}

fn remove(node: &Node, volume: &str) {
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": volume }));
}

fn write(path: &Path, text: &str) {
    sh(&format!("echo {text} >{0}/file; sync {0}/file", path.display()));
}

fn read(path: &Path) -> String {
    sh(&format!("cat {}/file", path.display()))
}

/// What of ours is in the pool besides the nodes' signs of life.
fn left_in(ceph: &Ceph) -> Vec<String> {
    let images = ceph.command("rbd", &["ls", POOL]).ok();
    let objects = ceph.command("rados", &["-p", POOL, "ls"]).ok();
    let ours = objects.lines().filter(|name| name.starts_with("dunnage.volume."));
    images.lines().chain(ours).map(str::to_owned).collect()
}

/// The driver without a daemon.
struct Alone {
    host: Host,
    work: Arc<Helpers>,
    signs: Arc<Helpers>,
    settings: Settings,
}

impl Alone {
    fn new(ceph: &Ceph) -> Alone {
        let helpers = |kind: &str| {
            let (brood, _) = Brood::begin(&ceph.folder.join(kind)).expect("begin");
            Arc::new(Helpers::new(binary(), brood))
        };
        let me = Owner { node: "n1".parse().expect("a name"), boot: BootId("1".to_owned()) };
        let settings = ceph.settings(me, ceph.folder.join("devices"));
        let host = dunnage_host::linux::host(helpers("host"), Tools::find());
        Alone { host, work: helpers("work"), signs: helpers("signs"), settings }
    }

    fn driver(&self) -> dunnage_driver_ceph::Ceph {
        dunnage_driver_ceph::Ceph::new(self.settings.clone(), self.host.clone(), self.work.clone(), self.signs.clone())
    }

    fn carriers(&self) -> Vec<u32> {
        kernel::processes_with(&self.settings.folder.display().to_string())
    }
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work);
}

#[test]
fn the_ceph_driver_passes_the_conformance_suite_on_a_real_cluster() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    run(async {
        let alone = Alone::new(&ceph);
        for case in CASES {
            let driver = alone.driver();
            let bench = Bench { driver: &driver, host: &alone.host, maker: Some(alone.settings.me.clone()) };
            case.run(&bench).await.unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert_eq!(left_in(&ceph), [""; 0], "{} left something", case.name);
            assert!(kernel::loops_beneath(&alone.settings.folder).is_empty(), "{} left a loop", case.name);
            assert_eq!(alone.carriers(), [0; 0], "{} left a process", case.name);
        }
    });
}

/// What was killed may have sent something that is on its way yet; what has closed its image has not.
#[test]
fn law_6_a_device_whose_process_was_killed_is_told_from_one_whose_process_has_ended_in_order() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    run(async {
        let alone = Alone::new(&ceph);
        let (driver, pg) = (alone.driver(), "pg".parse().expect("a name"));
        let spec = PartialSpec { size: Some(Bytes::mib(64)), ..PartialSpec::default() }.complete().expect("a spec");
        let (endpoint, created) = ("dunnage".parse().expect("a name"), jiff::Timestamp::UNIX_EPOCH);
        let maker = Some(alone.settings.me.clone());
        driver.record(&NewVolume { name: "pg".parse().expect("a name"), endpoint, spec, created, maker }).await.expect("recorded");
        driver.allocate(&pg).await.expect("allocated");
        assert_eq!(driver.detach(&pg, None).await, Ok(Detached::Done), "we ended it");
        for (signal, ended) in [(Signal::TERM, Detached::Done), (Signal::KILL, Detached::Killed)] {
            driver.attach(&pg).await.expect("attached");
            let pid = alone.carriers()[0];
            // Between a look at who writes and the end somebody else may have been quicker.
            sh(&format!("losetup -d {}", kernel::loops_beneath(&alone.settings.folder)[0].display()));
            kernel::end(pid, signal);
            assert_eq!(driver.detach(&pg, None).await, Ok(ended), "somebody else ended it by {signal:?}");
        }
    });
}

/// How large an image is, in MiB.
fn image_size(ceph: &Ceph, image: &str) -> u64 {
    let info: Value =
        serde_json::from_str(&ceph.command("rbd", &["info", "--format", "json", &format!("{POOL}/{image}")]).ok()).expect("json");
    info["size"].as_u64().expect("a size") >> 20
}

#[test]
fn a_volume_of_ceph_grows_in_use_on_its_own_node_and_at_rest_from_any() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "x", "Opts": { "fs": "xfs", "size": "300M" } }));
    let path = a.mount("x", "c1");
    write(&path, "before");
    let free = |path: &Path| rustix::fs::statvfs(path).map(|stat| (stat.f_blocks * stat.f_frsize) >> 20).expect("statvfs");
    let small = free(&path);
    // Another node is told who has it, and changes nothing.
    let said = b.cli(&["volume", "resize", "x", "500M"]).fails(5);
    assert!(said.contains("in_use") && said.contains("node a"), "{said}");
    assert_eq!(image_size(&ceph, "x"), 300);
    let said = a.cli(&["volume", "resize", "x", "500M"]);
    assert!(said.err.contains(": grown (500MiB)"), "{}", said.err);
    assert_eq!(image_size(&ceph, "x"), 500);
    assert_eq!(free(&path), small + 200, "the kernel, the process and the filesystem all know");
    // Into what is new.
    sh(&format!("dd if=/dev/urandom of={0}/large bs=1M count=400 status=none; sync {0}/large", path.display()));
    let sum = sh(&format!("sha256sum <{}/large", path.display()));
    a.unmount("x", "c1");
    // The kernel has nothing of it any more, and another node neither: what is read comes from the cluster.
    let path = b.mount("x", "c2");
    assert_eq!((read(&path), sh(&format!("sha256sum <{}/large", path.display()))), ("before".to_owned(), sum));
    b.unmount("x", "c2");

    // Out as an image, and in as another volume, from another node.
    let out = ceph.folder.join("x.img").display().to_string();
    let exported = b.cli(&["volume", "export", "x", &out]);
    assert_eq!(exported.code, 0, "{}", exported.err);
    a.cli(&["volume", "import", "copy", &out]).ok();
    let (one, two) = (a.mount("x", "c1"), a.mount("copy", "c1"));
    sh(&format!("cmp {0}/large {1}/large && cmp {0}/file {1}/file", one.display(), two.display()));
    ["x", "copy"].iter().for_each(|volume| a.unmount(volume, "c1"));
    remove(&b, "copy");

    // At rest, by a node that never had it; then it is everybody's.
    create(&a, "pg");
    let said = b.cli(&["volume", "resize", "pg", "200M"]);
    assert!(said.err.contains("grows when it is mounted next"), "{}", said.err);
    assert_eq!(image_size(&ceph, "pg"), 200);
    let path = a.mount("pg", "c1");
    assert!(free(&path) > 150, "{}", free(&path));
    assert!(!a.cli(&["volume", "inspect", "pg"]).ok().contains("mounted next"));
    a.unmount("pg", "c1");
    for volume in ["x", "pg"] {
        remove(&a, volume);
    }
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
    b.finish();
}

#[test]
fn a_volume_of_ceph_is_made_mounted_found_again_by_the_next_daemon_and_removed() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let mut a = ceph.node("a", "");
    let capabilities = a.plugin_ok("VolumeDriver.Capabilities", &json!({}));
    assert_eq!(capabilities["Capabilities"]["Scope"], "global");
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "labels": "tier=gold" } }));
    assert_eq!(ceph.command("rbd", &["ls", POOL]).ok(), "pg");
    let labels = ceph.pool().image_labels("pg").expect("asked").expect("it is there").into_iter();
    let wanted =
        [("endpoint", "pxd"), ("label.tier", "gold"), ("volume", "pg")].map(|(key, value)| (format!("dunnage.{key}"), value.to_owned()));
    assert_eq!(labels.collect::<Vec<_>>(), wanted);
    assert!(a.carriers().is_empty(), "it is made, and nobody uses it");
    let path = a.mount("pg", "c1");
    assert_eq!(sh(&format!("ls -A {}", path.display())), "", "a new volume is empty");
    write(&path, "first");
    let carriers = a.carriers();
    assert_eq!(carriers.len(), 1);
    // Law 3: it outlives the daemon.
    a.kill();
    write(&path, "second");
    a.start();
    assert_eq!(a.mount("pg", "c2"), path);
    assert_eq!(a.carriers(), carriers);
    assert_eq!(read(&path), "second");
    a.unmount("pg", "c1");
    a.unmount("pg", "c2");
    assert!(a.carriers().is_empty());
    assert_eq!(ceph.pool().cluster().blocklisted(), Ok(Vec::new()), "nobody was fenced who let go");
    remove(&a, "pg");
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
}

#[test]
fn law_6_a_volume_moves_to_the_node_that_asks_for_it_next_with_all_that_was_written() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    create(&a, "pg");
    write(&a.mount("pg", "c1"), "written");
    a.unmount("pg", "c1");
    let begun = Instant::now();
    let path = b.mount("pg", "c2");
    println!("moved in {:?}", begun.elapsed());
    assert_eq!(read(&path), "written");
    // Whoever comes meanwhile is told who has it. (It waits for 45 s, which is longer than this caller does.)
    let refused = a.cli(&["volume", "mount", "pg", "--timeout", "3"]);
    assert_ne!(refused.code, 0, "{}", refused.out);
    b.unmount("pg", "c2");
    assert_eq!(ceph.pool().cluster().blocklisted(), Ok(Vec::new()));
    eventually("whoever was not waited for has let go", BOUND, || b.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" })).0 == 200);
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
    b.finish();
}

#[test]
fn law_6_a_dead_node_s_volume_is_taken_with_every_acknowledged_write_and_the_node_comes_back_clean() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    create(&a, "pg");
    write(&a.mount("pg", "c1"), "acknowledged");
    a.cut_power();
    let begun = Instant::now();
    let path = b.mount("pg", "c2");
    println!("taken {:?} after the power cut", begun.elapsed());
    assert_eq!(read(&path), "acknowledged");
    assert!(!ceph.pool().cluster().blocklisted().expect("a list").is_empty(), "the old client was fenced");
    // It comes back, and waits its turn.
    a.start();
    write(&path, "newer");
    b.unmount("pg", "c2");
    let path = a.mount("pg", "c3");
    assert_eq!(read(&path), "newer");
    a.unmount("pg", "c3");
    remove(&a, "pg");
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
    b.finish();
}

#[test]
fn law_6_a_quorum_that_is_lost_in_the_middle_of_a_failover_stops_it_before_the_fence_and_the_retry_goes_on_from_there() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    // The storage daemon alone sees that the dead client is gone, and who claims. To cut one off takes a monitor.
    ceph.ceph(&["config", "set", "osd", "osd_client_watch_timeout", "5"]).ok();
    let (mut a, mut b) = (ceph.node_with("a", ", silence: 5s", ""), ceph.node_with("b", ", silence: 5s, timeout: 4s", ""));
    create(&a, "pg");
    write(&a.mount("pg", "c1"), "acknowledged");
    let fenced = || ceph.pool().cluster().blocklisted().expect("a list").len();
    a.cut_power();
    ceph.stop_mon();
    let said = b.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c2" }));
    assert!(said.contains("was not fenced: Ceph does not answer"), "{said}");
    assert!(!is_mounted(&b.mountpoint("pg")), "nothing is mounted that was not cut off before");
    ceph.cont_mon();
    eventually("the monitor answers again", BOUND, || ceph.ceph(&["health"]).code == 0);
    let path = b.mount("pg", "c2");
    assert_eq!(fenced(), 1);
    assert_eq!(read(&path), "acknowledged");
    write(&path, "newer");
    b.unmount("pg", "c2");
    a.start();
    let path = a.mount("pg", "c3");
    assert_eq!(read(&path), "newer");
    a.unmount("pg", "c3");
    remove(&a, "pg");
    a.finish();
    b.finish();
}

#[test]
fn a_device_whose_process_was_killed_is_let_go_of_and_had_again_after_a_fence() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let mut a = ceph.node("a", "");
    create(&a, "pg");
    let path = a.mount("pg", "c1");
    write(&path, "acknowledged");
    a.carriers().into_iter().for_each(kernel::kill);
    let refused = std::process::Command::new("sh").args(["-c", &format!("echo late >{0}/file && sync {0}/file", path.display())]).output();
    assert!(!refused.expect("sh").status.success(), "there is no way to the data");
    a.unmount("pg", "c1");
    let path = a.mount("pg", "c2");
    assert_eq!(read(&path), "acknowledged");
    // What it had sent may have been on its way.
    assert_eq!(ceph.pool().cluster().blocklisted().expect("a list").len(), 1);
    a.unmount("pg", "c2");
    eventually("the killed client is forgotten", 2 * BOUND, || a.plugin("VolumeDriver.Remove", &json!({ "Name": "pg" })).0 == 200);
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
}

#[test]
fn law_6_always_takes_a_volume_at_once_and_whoever_had_it_can_write_no_more() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    // What is said of a volume stands above what is said of its endpoint.
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ", preempt: never"));
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "preempt": "always" } }));
    let old = a.mount("pg", "c1");
    write(&old, "old");
    let begun = Instant::now();
    let new = b.mount("pg", "c2");
    println!("taken from a living node in {:?}", begun.elapsed());
    assert_eq!(read(&new), "old");
    write(&new, "new");
    let refused = std::process::Command::new("sh").args(["-c", &format!("echo late >{0}/file && sync {0}/file", old.display())]).output();
    assert!(!refused.expect("sh").status.success(), "the old owner writes still");
    assert_eq!(read(&new), "new");
    // Nobody is given what is dead.
    let said = a.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c9" }));
    assert!(said.contains("node b has taken it"), "{said}");
    // What is in memory is not read any more as if nothing had happened, once the daemon has looked: at the latest when it starts.
    a.kill();
    a.start();
    let reads = || std::process::Command::new("cat").arg(old.join("file")).output().is_ok_and(|done| done.status.success());
    eventually("what is mounted on the old node is shut down", BOUND, || !reads());
    // The old one lets go of what is left to it; nobody is harmed.
    a.unmount("pg", "c1");
    write(&new, "newest");
    b.unmount("pg", "c2");
    let path = a.mount("pg", "c3");
    assert_eq!(read(&path), "newest");
    a.unmount("pg", "c3");
    a.finish();
    b.finish();
}

fn nodes(node: &Node) -> Vec<(String, String, bool)> {
    let text = node.cli(&["node", "ls", "-o", "json"]).ok();
    let listed: Vec<Value> = serde_json::from_str(&text).expect("json");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    listed.iter().map(|n| (text(&n["node"]), text(&n["state"]), n["fenced"].as_bool().expect("a truth"))).collect()
}

#[test]
fn law_6_a_node_that_is_gone_is_fenced_by_name_and_nobody_waits_for_it_and_it_takes_nothing_until_it_is_pardoned() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    create(&a, "pg");
    write(&a.mount("pg", "c1"), "acknowledged");
    let state = |name: &str, state: &str, fenced| (name.to_owned(), state.to_owned(), fenced);
    eventually("both have given a sign", BOUND, || nodes(&b) == [state("a", "alive", false), state("b", "alive", false)]);
    println!("{}", b.cli(&["node", "ls"]).ok());
    let inspected = |parts: [&str; 3]| {
        let said = b.cli(&["volume", "inspect", "pg"]).ok();
        println!("{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} are not all in: {said}");
    };
    inspected(["node a (boot", "alive: it answered just now", "if-dead (for a mount on this node)"]);
    let said = b.cli(&["node", "fence", "a"]).fails(5);
    assert!(said.contains("lives") && said.contains("--force"), "{said}");
    assert!(b.cli(&["node", "fence", "nobody"]).fails(3).contains("node ls"));
    assert!(b.cli(&["node", "fence", "b"]).fails(2).contains("this very node"));
    a.cut_power();
    // It is still watched, and mute.
    inspected(["node a (boot", "silent: ", "if-dead"]);
    let begun = Instant::now();
    println!("{}", b.cli(&["node", "fence", "a"]).err);
    let path = b.mount("pg", "c2");
    println!("had {:?} after the power cut, for somebody said so", begun.elapsed());
    assert_eq!(read(&path), "acknowledged");
    write(&path, "newer");
    a.start();
    assert_eq!(nodes(&b).iter().map(|node| node.2).collect::<Vec<_>>(), [true, false]);
    b.unmount("pg", "c2");
    let said = a.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c3" }));
    assert!(said.contains("node unfence a"), "{said}");
    println!("{}", b.cli(&["node", "unfence", "a"]).err);
    let path = a.mount("pg", "c4");
    assert_eq!(read(&path), "newer");
    a.unmount("pg", "c4");
    remove(&a, "pg");
    a.finish();
    b.finish();
}

#[test]
fn law_6_an_operator_who_insists_cuts_off_a_node_that_lives_and_what_it_writes_from_then_on_is_refused() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    create(&a, "pg");
    let old = a.mount("pg", "c1");
    write(&old, "acknowledged");
    eventually("both have given a sign", BOUND, || nodes(&b).len() == 2);
    b.cli(&["node", "fence", "a"]).fails(5);
    b.cli(&["node", "fence", "a", "--force"]).ok();
    let path = b.mount("pg", "c2");
    assert_eq!(read(&path), "acknowledged");
    assert!(
        !sh(&format!("sh -c 'echo too-late >{0}/file; sync {0}/file' 2>&1 && echo written || true", old.display())).contains("written")
    );
    b.unmount("pg", "c2");
    b.cli(&["node", "unfence", "a"]).ok();
    a.plugin("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "c1" }));
    eventually("what it had is gone", BOUND, || !is_mounted(&old));
    assert_eq!(read(&a.mount("pg", "c3")), "acknowledged");
    a.unmount("pg", "c3");
    remove(&a, "pg");
    a.finish();
    b.finish();
}

fn volumes(node: &Node) -> Vec<String> {
    let listed: Value = node.plugin_ok("VolumeDriver.List", &json!({}));
    listed["Volumes"].as_array().expect("a list").iter().map(|v| v["Name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_cluster_that_does_not_answer_is_said_so_and_lists_stay_and_all_works_again_later() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let mut a = ceph.node_with("a", ", timeout: 2s", "");
    create(&a, "pg");
    create(&a, "idle");
    let path = a.mount("pg", "c1");
    ceph.stop_mon();
    // All of it while nobody answers.
    assert_eq!(volumes(&a), ["idle", "pg"]);
    assert_eq!(a.plugin_ok("VolumeDriver.Get", &json!({ "Name": "pg" }))["Volume"]["Name"], "pg");
    write(&path, "the monitor is not asked for every write");
    for (call, body) in [("Mount", json!({ "Name": "idle", "ID": "c" })), ("Create", json!({ "Name": "new", "Opts": {} }))] {
        let said = a.plugin_err(&format!("VolumeDriver.{call}"), &body);
        println!("{call}: {said}");
        assert!(said.starts_with("platform_unavailable"), "{call}: {said}");
    }
    assert_eq!(volumes(&a), ["idle", "pg"]);
    ceph.cont_mon();
    a.unmount("pg", "c1");
    assert!(read(&a.mount("pg", "c1")).contains("not asked"));
    a.unmount("pg", "c1");
    create(&a, "new");
    for volume in ["idle", "new", "pg"] {
        a.mount(volume, "c2");
        a.unmount(volume, "c2");
        remove(&a, volume);
    }
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
}

#[test]
fn what_is_wrong_with_the_way_to_the_cluster_is_named_with_what_to_do() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let refused = |wrong: &str, right: &str, parts: &[&str]| {
        let mut a = ceph.node("a", "");
        a.stop();
        let config = std::fs::read_to_string(a.folder.join("config.yml")).expect("configuration");
        assert!(config.contains(right), "{config}");
        a.configure(&config.replace(right, wrong));
        a.start();
        let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": {} }));
        println!("{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} is missing in: {said}");
        }
        // Law 7: it is no proof that there is no such volume.
        let unknown = a.plugin_err("VolumeDriver.Get", &json!({ "Name": "old" }));
        assert!(!unknown.starts_with("not_found") && unknown.contains(parts[0]), "{unknown}");
        assert!(a.cli(&["volume", "ls"]).err.contains("has not listed its volumes yet"));
        a.stop();
    };
    let key = ceph.folder.join("another.keyring");
    sh(&format!("ceph-authtool --create-keyring {} --name client.{USER} --gen-key", key.display()));
    refused(&key.display().to_string(), &ceph.keyring().display().to_string(), &["client.dunnage", "profile rbd"]);
    refused("user: nobody", "user: dunnage", &["client.nobody", "profile rbd"]);
    refused("pool: elsewhere", &format!("pool: {POOL}"), &["no pool \"elsewhere\"", "ceph osd pool create"]);
    refused("/nowhere/ceph.conf", &ceph.conf().display().to_string(), &["there is no /nowhere/ceph.conf"]);
}

#[test]
fn copies_that_no_pool_keeps_are_refused_and_those_that_one_keeps_are_had() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let mut a = ceph.node("a", "");
    let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "repl": "3" } }));
    assert!(said.contains("repl") && said.contains("rbd keeps 1"), "{said}");
    // One copy is what somebody wants who has one disk; one of two that is enough is not.
    let warned = |node: &Node| node.cli(&["driver", "ls"]).err;
    assert!(!warned(&a).contains("min_size"), "{}", warned(&a));
    ceph.ceph(&["osd", "pool", "set", POOL, "size", "2"]).ok();
    ceph.ceph(&["osd", "pool", "set", POOL, "min_size", "1"]).ok();
    assert!(warned(&a).contains("ceph osd pool set rbd min_size 2"), "{}", warned(&a));
    ceph.ceph(&["osd", "pool", "set", POOL, "size", "1", "--yes-i-really-mean-it"]).ok();
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "repl": "1" } }));
    remove(&a, "pg");
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
}

#[test]
fn in_a_full_cluster_nothing_is_made_or_lost_and_a_removal_is_finished_when_there_is_room() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    for volume in ["old", "pg"] {
        create(&a, volume);
    }
    let path = a.mount("pg", "c1");
    write(&path, "before");
    sh("sync");
    let full = |ratio: &str, is: bool| {
        for which in ["nearfull", "backfillfull", "full"] {
            ceph.ceph(&["osd", &format!("set-{which}-ratio"), ratio]).ok();
        }
        eventually("the storage daemon has counted", BOUND, || ceph.ceph(&["health", "detail"]).ok().contains("is full") == is);
    };
    full("0.00001", true);
    let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "new", "Opts": {} }));
    println!("{said}");
    assert!(said.starts_with("limit_reached") && said.contains("full"), "{said}");
    assert_eq!((volumes(&a), read(&path)), (vec!["old".to_owned(), "pg".to_owned()], "before".to_owned()));
    // librbd removes nothing there (the rbd command neither), and says that there is nothing. We do not believe it.
    let said = b.plugin_err("VolumeDriver.Remove", &json!({ "Name": "old" }));
    println!("{said}");
    assert!(said.starts_with("limit_reached") && said.contains("set-full-ratio"), "{said}");
    assert_eq!(ceph.command("rbd", &["rm", "--no-progress", "old"]).code, 2);
    full("0.95", false);
    eventually("what was begun is finished when there is room", BOUND, || ceph.command("rbd", &["ls", POOL]).ok() == "pg");
    write(&path, "after");
    a.unmount("pg", "c1");
    let path = b.mount("pg", "c2");
    assert_eq!(read(&path), "after");
    b.unmount("pg", "c2");
    remove(&b, "pg");
    assert_eq!(left_in(&ceph), [""; 0]);
    a.finish();
    b.finish();
}

/// Does something again and again, until it is told to stop; gives when each time was over.
fn again_and_again(stop: &Arc<AtomicBool>, mut once: impl FnMut() + Send + 'static) -> JoinHandle<Vec<Instant>> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut times = vec![Instant::now()];
        while !stop.load(Ordering::Relaxed) {
            once();
            times.push(Instant::now());
        }
        times
    })
}

/// The longest time between two, of those before a moment.
fn longest_pause(times: &[Instant], before: Instant) -> Duration {
    times.windows(2).filter(|pair| pair[1] < before).map(|pair| pair[1] - pair[0]).max().expect("some")
}

#[test]
fn law_6_without_storage_daemons_nobody_is_fenced_by_silence_and_writers_wait_no_longer_than_a_bare_client() {
    let Some(mut ceph) = Ceph::with_devices(3) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    create(&a, "pg");
    let path = a.mount("pg", "c1");
    assert_eq!(ceph.pool().create_image("bare", Bytes::mib(64)), Ok(true));
    let mut bare = Client::start(env!("CARGO_BIN_EXE_ceph-client"), &ceph, &["open", "bare"]);
    bare.line().expect("it writes");
    let stop = Arc::new(AtomicBool::new(false));
    let at = path.clone();
    let ours = again_and_again(&stop, move || write(&at, "x"));
    // It gives up after ten seconds without an answer.
    let theirs = again_and_again(&stop, move || match bare.line() {
        Some(_) => {}
        None => std::thread::sleep(Duration::from_millis(100)),
    });
    std::thread::sleep(Duration::from_secs(1));
    ceph.kill_osd(0);
    // Longer than it takes the others to notice.
    std::thread::sleep(Duration::from_secs(10));
    let one_is_gone = Instant::now();
    // Below min_size nothing is written any more, and nothing is refused.
    ceph.kill_osd(1);
    // Nobody can give a sign of life now, and that is no death: for longer than a node may be silent.
    let asked = Instant::now();
    while asked.elapsed() < dunnage_driver::SILENCE + Duration::from_secs(5) {
        let refused = b.cli(&["volume", "mount", "pg", "--timeout", "20"]);
        assert_ne!(refused.code, 0, "it was taken from a node that lives: {}", refused.out);
    }
    // Reads do not wait for whom nobody hears.
    assert_eq!(volumes(&a), ["pg"]);
    assert!(a.cli(&["status"]).out.contains("running"));
    let back = Instant::now();
    ceph.start_osd(0);
    ceph.start_osd(1);
    // Nor is what was not heard meanwhile.
    let refused = b.cli(&["volume", "mount", "pg", "--timeout", "20"]);
    assert_ne!(refused.code, 0, "it was taken from a node that lives: {}", refused.out);
    stop.store(true, Ordering::Relaxed);
    let (ours, theirs) = (ours.join().expect("ours"), theirs.join().expect("theirs"));
    let again = ours.iter().find(|time| **time > back).expect("it writes again");
    println!("it wrote again {:?} after the storage daemons had come back", *again - back);
    // What was on its way when the second one was killed may have come.
    let waited = ours.iter().filter(|time| (one_is_gone + Duration::from_secs(2)..back).contains(time)).count();
    assert_eq!(waited, 0, "something was written below min_size");
    let (ours, theirs) = (longest_pause(&ours, one_is_gone), longest_pause(&theirs, one_is_gone));
    println!("one storage daemon less: we paused for {ours:?}, the bare client for {theirs:?}");
    assert!(ours < 2 * theirs, "we paused for {ours:?}, the bare client for {theirs:?}");
    write(&path, "whole");
    assert_eq!(ceph.pool().cluster().blocklisted(), Ok(Vec::new()), "silence is no death");
    // Whoever has asked while nobody answered waits for that answer yet.
    eventually("the cluster says whose it is", BOUND, || {
        let inspected: Value = serde_json::from_str(&a.cli(&["volume", "inspect", "pg", "-o", "json"]).ok()).expect("json");
        inspected["ownership"]["state"]["held"]["owner"]["node"] == "a"
    });
    a.unmount("pg", "c1");
    // Whoever asked meanwhile may have come to it, or has gone.
    eventually("b lets go of it", 2 * BOUND, || b.carriers().is_empty() && b.holders("pg").is_empty());
    assert_eq!(read(&a.mount("pg", "c2")), "whole");
    a.unmount("pg", "c2");
    a.finish();
    b.finish();
}

#[test]
fn two_clusters_are_two_drivers_of_one_node_and_neither_s_volume_is_taken_for_the_other_s() {
    let (Some(east), Some(west)) = (Ceph::with_devices(1), Ceph::with_devices(1)) else { return };
    let mut node = east.node("a", "");
    node.stop();
    let driver = |name: &str, ceph: &Ceph| {
        let (conf, keyring) = (ceph.conf(), ceph.keyring());
        format!("{name}: {{ type: ceph, conf: {}, keyring: {}, user: {USER}, pool: {POOL} }}", conf.display(), keyring.display())
    };
    node.configure(&format!(
        "volumes: {{ private_namespace: true, defaults: {{ size: 64MiB }} }}\ndrivers: {{ {}, {} }}\n\
         endpoints: {{ docker: [ {{ name: east, driver: east }}, {{ name: west, driver: west }} ] }}\n",
        driver("east", &east),
        driver("west", &west)
    ));
    node.endpoint = "east";
    node.start();
    let both = [("east", &east), ("west", &west)];
    let mut paths = Vec::new();
    for (endpoint, ceph) in both {
        node.endpoint = endpoint;
        create(&node, "pg");
        paths.push(node.mount("pg", "c"));
        write(&paths[paths.len() - 1], endpoint);
        assert_eq!(left_in(ceph), ["pg", "dunnage.volume.pg"]);
    }
    for (path, (endpoint, ceph)) in paths.iter().zip(both) {
        assert_eq!(read(path), endpoint);
        node.endpoint = endpoint;
        node.unmount("pg", "c");
        remove(&node, "pg");
        assert_eq!(left_in(ceph), [""; 0]);
    }
    node.finish();
}

#[test]
fn a_pool_is_made_for_a_number_of_copies_that_none_keeps_where_that_is_wanted_and_allowed() {
    let Some(ceph) = Ceph::with_devices(3) else { return };
    let mut a = ceph.node_with("a", ", make_pools: true", "");
    let ask = |name: &str| json!({ "Name": name, "Opts": { "repl": "2" } });
    // A key that may use pools may not make them.
    let said = a.plugin_err("VolumeDriver.Create", &ask("pg"));
    assert!(said.starts_with("permission"), "{said}");
    assert_eq!(left_in(&ceph), [""; 0]);
    let commands = ["create", "set", "application enable", "application get"].map(|word| format!("allow command \"osd pool {word}\""));
    let monitor = format!("profile rbd, {}", commands.join(", "));
    ceph.ceph(&["auth", "caps", "client.dunnage", "mon", &monitor, "osd", "profile rbd"]).ok();
    a.kill();
    a.start();
    a.plugin_ok("VolumeDriver.Create", &ask("pg"));
    let get = |variable: &str| ceph.ceph(&["osd", "pool", "get", "rbd-repl2", variable]).ok();
    assert_eq!((get("size"), get("min_size")), ("size: 2".to_owned(), "min_size: 2".to_owned()));
    assert_eq!(ceph.command("rbd", &["ls", "rbd-repl2"]).ok(), "pg");
    let path = a.mount("pg", "c1");
    write(&path, "two-copies");
    // What an operator has set since stays.
    ceph.ceph(&["osd", "pool", "set", "rbd-repl2", "min_size", "1"]).ok();
    a.plugin_ok("VolumeDriver.Create", &ask("pg2"));
    assert_eq!(get("min_size"), "min_size: 1");
    let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg3", "Opts": { "repl": "1" } }));
    assert!(said.contains("invalid_argument{repl}"), "{said}");
    a.unmount("pg", "c1");
    // A node that does not make pools, and knows of none but its own, has the volume all the same.
    let mut b = ceph.node("b", "");
    assert_eq!(read(&b.mount("pg", "c2")), "two-copies");
    b.unmount("pg", "c2");
    ["pg", "pg2"].iter().for_each(|volume| remove(&b, volume));
    a.finish();
    b.finish();
}
