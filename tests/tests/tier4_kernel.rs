//! Images of Ceph that the kernel itself maps, or shows as devices of its nbd, in an emulated machine whose kernel can; its neighbour is a
//! node of the usual kind.
//!
//! Run by hand: 'cargo xtask test --tier 4'.

use std::path::PathBuf;
use std::time::Duration;

use dunnage_tests::ceph::{Ceph, Manager, POOL, USER};
use dunnage_tests::machine::{SWITCH, Switch};
use dunnage_tests::vm::Vm;
use dunnage_tests::{BOUND, Node, Ran, eventually, scratch, sh};
use serde_json::json;

/// How long it may take until a dead machine's volume is another's: 30 s of it are Ceph's.
const FAILOVER: Duration = Duration::from_secs(120);

/// A machine whose kernel has the module `rbd` or `nbd`, and a node where a process carries images.
struct Bench {
    module: &'static str,
    // Dropped in this order: who uses it before what is used.
    vm: Vm,
    node: Node,
    ceph: Ceph,
    _switch: Switch,
}

impl Bench {
    fn new(module: &'static str) -> Option<Bench> {
        let bench = Bench::with("plain", module)?;
        bench.vm.start_daemon(&bench.yaml());
        Some(bench)
    }

    fn with(init: &str, module: &'static str) -> Option<Bench> {
        let switch = Switch::new();
        let ceph = Ceph::start_at(SWITCH, 1, Manager::None)?;
        let vm = Vm::boot(init, module, "vm", 9, &scratch())?;
        Some(Bench { module, node: ceph.node("node", ""), vm, ceph, _switch: switch })
    }

    fn yaml(&self) -> String {
        let (conf, keyring) = (self.ceph.conf(), self.ceph.keyring());
        format!(
            "volumes: {{ defaults: {{ size: 64MiB }} }}\n\
             drivers: {{ pxd: {{ type: ceph, conf: {}, keyring: {}, user: {USER}, pool: {POOL} }} }}\n\
             endpoints: {{ docker: [ {{ name: pxd, driver: pxd }} ] }}\n",
            conf.display(),
            keyring.display()
        )
    }

    /// Emulated, a cold connection to Ceph takes longer than a look-up may: the first to ask may be told so.
    fn dunnage(&self, args: &str) -> Ran {
        let mut ran = self.vm.dunnage(args);
        eventually(&format!("'{args}' is answered"), FAILOVER, || {
            if ran.err.contains("did not answer within 2 s") {
                ran = self.vm.dunnage(args);
            }
            !ran.err.contains("did not answer within 2 s")
        });
        ran
    }

    fn mount(&self, name: &str) -> PathBuf {
        self.dunnage(&format!("volume mount {name}")).ok().into()
    }

    /// The devices in the machine that have an image.
    fn mapped(&self) -> Vec<String> {
        let list = if self.module == "rbd" { "ls /sys/bus/rbd/devices" } else { "ls -d /sys/block/nbd*/pid 2>/dev/null || true" };
        self.vm.sh(list).ok().split_whitespace().map(str::to_owned).collect()
    }

    /// The points that a mount or an unmount comes by in peace, the daemon's and its helpers'.
    fn points(&self, verb: &str) -> Vec<String> {
        self.vm.passed();
        self.vm.dunnage(&format!("volume {verb} pg")).ok();
        let mut points: Vec<String> = Vec::new();
        for point in self.vm.passed() {
            let others = ["sign", ".list/", ".attachments/"].iter().any(|word| point.contains(word));
            if !others && !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }

    /// Dies at a point of a verb; then the verb is done all the same.
    fn dies_at(&self, verb: &str, point: &str) {
        self.vm.die_at(point);
        self.vm.dunnage(&format!("volume {verb} pg"));
        eventually(&format!("somebody dies at {point}"), BOUND, || self.vm.somebody_died());
        if !point.starts_with("helper/") {
            eventually("the daemon is dead", BOUND, || !self.vm.daemon_runs());
            self.vm.start_daemon(&self.yaml());
        }
        eventually(&format!("{verb} after {point}"), FAILOVER, || self.vm.dunnage(&format!("volume {verb} pg")).code == 0);
    }

    /// However many times it was mounted.
    fn let_go(&self) {
        eventually("it is let go of", FAILOVER, || {
            self.vm.dunnage("volume unmount pg").ok();
            self.mapped().is_empty()
        });
    }

    fn create(&self, name: &str) {
        self.node.plugin_ok("VolumeDriver.Create", &json!({ "Name": name, "Opts": {} }));
    }
}

#[test]
fn a_volume_is_mapped_by_the_kernel_survives_the_daemon_and_goes_to_a_node_where_a_process_carries_it_and_back() {
    let Some(mut bench) = Bench::new("rbd") else { return };
    bench.create("pg");
    let path = bench.mount("pg");
    let shown = bench.vm.dunnage("volume inspect pg").ok();
    println!("{shown}");
    assert!(shown.contains("/dev/rbd0"), "{shown}");
    bench.vm.sh(&format!("echo by-the-kernel >{0}/file; sync {0}/file", path.display())).ok();

    bench.vm.kill_daemon();
    // An operator maps it by hand, too, to read: to write it is refused.
    let by_hand = format!("rbd -c {} -k {} --id {USER}", bench.ceph.conf().display(), bench.ceph.keyring().display());
    let map = format!("{by_hand} device map -o noudev,ms_mode=prefer-crc --pool {POOL} --image pg");
    assert_ne!(bench.vm.sh(&map).code, 0);
    let theirs = bench.vm.sh(&format!("{map} --read-only")).ok();
    bench.vm.start_daemon(&bench.yaml());
    assert_eq!(bench.mapped().len(), 2, "it is mapped still, once by us");
    assert_eq!(bench.vm.sh(&format!("cat {}/file", path.display())).ok(), "by-the-kernel");

    eventually("it is unmounted", FAILOVER, || bench.vm.dunnage("volume unmount pg").code == 0);
    assert_eq!(bench.mapped().len(), 1, "it is unmapped, and the operator's device is not");
    assert!(bench.vm.sh(&format!("test -b {theirs}")).code == 0);
    bench.vm.sh(&format!("{by_hand} device unmap -o noudev {theirs}")).ok();
    let there = bench.node.mount("pg", "c");
    assert_eq!(sh(&format!("cat {}/file", there.display())), "by-the-kernel");
    sh(&format!("echo by-a-process >{0}/file; sync {0}/file", there.display()));
    bench.node.unmount("pg", "c");
    let path = bench.mount("pg");
    assert_eq!(bench.vm.sh(&format!("cat {}/file", path.display())).ok(), "by-a-process");

    // What the kernel has for itself alone grows when it has let go; and then this kernel grows an ext4 in use.
    let said = bench.vm.dunnage("volume resize pg 200MiB");
    assert!(said.code == 5 && said.err.contains("/dev/rbd"), "{said:?}");
    eventually("it is unmounted", FAILOVER, || bench.vm.dunnage("volume unmount pg").code == 0);
    let said = bench.vm.dunnage("volume resize pg 200MiB");
    assert!(said.err.contains("grows when it is mounted next"), "{said:?}");
    let path = bench.mount("pg");
    let large: u64 = bench.vm.sh(&format!("df --output=size -m {} | tail -1", path.display())).ok().trim().parse().expect("a number");
    assert!(large > 150, "{large} MiB");
    assert_eq!(bench.vm.sh(&format!("cat {}/file", path.display())).ok(), "by-a-process");

    // Somebody works in it: nothing is let go of.
    bench.vm.sh(&format!("cd {}; setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/run/sleeper", path.display())).ok();
    let said = bench.vm.dunnage("volume unmount pg");
    assert!(said.code != 0 && said.err.contains("in_use"), "{said:?}");
    assert_eq!(bench.mapped().len(), 1);
    bench.vm.sh("kill $(cat /run/sleeper)").ok();
    eventually("it is unmapped", FAILOVER, || bench.mapped().is_empty());
    // A new one is made through a process there, too: only that says that nothing was ever written to it.
    bench.vm.dunnage("volume create made-there").ok();
    bench.vm.dunnage("volume rm made-there").ok();
    bench.node.finish();
}

#[test]
fn a_volume_is_carried_by_nbd_where_the_kernel_has_no_rbd_grows_in_use_and_its_dead_process_takes_no_other_volume_along() {
    let Some(mut bench) = Bench::new("nbd") else { return };
    for name in ["pg", "other"] {
        bench.create(name);
    }
    let path = bench.mount("pg");
    let shown = bench.vm.dunnage("volume inspect pg").ok();
    assert!(shown.contains("/dev/nbd0"), "{shown}");
    let write = |word: &str| bench.vm.sh(&format!("echo {word} >>{0}/file; sync {0}/file", path.display()));
    write("by-nbd").ok();

    // The next daemon finds it, and beside it what an operator has attached by hand.
    bench.vm.kill_daemon();
    let conf = format!(
        "printf '\\n[client.{USER}]\\nkeyring = %s\\n' {} | cat {} - >/run/by-hand.conf",
        bench.ceph.keyring().display(),
        bench.ceph.conf().display()
    );
    bench.vm.sh(&conf).ok();
    let theirs = bench.vm.sh(&format!("rbd-nbd map --read-only --conf /run/by-hand.conf --id {USER} {POOL}/pg")).ok();
    bench.vm.start_daemon(&bench.yaml());
    assert_eq!(bench.mapped().len(), 2, "it is carried still, once by us");
    write("still").ok();

    // It grows while it is used, and its filesystem with it.
    bench.dunnage("volume resize pg 200MiB").ok();
    let large: u64 = bench.vm.sh(&format!("df --output=size -m {} | tail -1", path.display())).ok().trim().parse().expect("a number");
    assert!(large > 150, "{large} MiB");

    // In order: the other node has it at once, for nobody is cut off; and back.
    eventually("it is unmounted", FAILOVER, || bench.vm.dunnage("volume unmount pg").code == 0);
    assert_eq!(bench.mapped().len(), 1, "it has ended, and the operator's has not");
    bench.vm.sh(&format!("rbd-nbd unmap {theirs}")).ok();
    assert_eq!(bench.ceph.pool().cluster().blocklisted(), Ok(Vec::new()));
    let there = bench.node.mount("pg", "c");
    assert_eq!(sh(&format!("cat {}/file", there.display())), "by-nbd\nstill");
    bench.node.unmount("pg", "c");

    // Its process is killed. What it served is an error from then on, and no other volume is given its device.
    bench.mount("pg");
    write("again").ok();
    let killed = bench.vm.sh("cat /sys/block/nbd0/pid").ok();
    bench.vm.sh(&format!("kill -9 {killed}; for i in $(seq 200); do test -d /proc/{killed} || exit 0; sleep 0.1; done; cat /proc/{killed}/task/*/stack; exit 1")).ok();
    let said = write("lost");
    assert_ne!(said.code, 0, "{said:?}");
    let other = bench.mount("other");
    let shown = bench.vm.dunnage("volume inspect other").ok();
    assert!(shown.contains("/dev/nbd1"), "{shown}");
    bench.vm.sh(&format!("echo fine >{0}/file; sync {0}/file", other.display())).ok();
    let said = bench.vm.dunnage("volume mount pg");
    assert!(said.code != 0 && said.err.contains("has died"), "{said:?}");
    eventually("it is unmounted", FAILOVER, || bench.vm.dunnage("volume unmount pg").code == 0);
    assert_eq!(bench.ceph.pool().cluster().blocklisted().expect("a list").len(), 1, "who was killed is cut off before the volume is free");
    let there = bench.node.mount("pg", "c");
    assert_eq!(sh(&format!("cat {}/file", there.display())), "by-nbd\nstill\nagain");
    bench.node.unmount("pg", "c");
    bench.vm.dunnage("volume unmount other").ok();
    assert!(bench.mapped().is_empty());

    // What was written to a device that is only attached is there, synced by nobody.
    let device = bench.dunnage("volume attach other").ok();
    assert!(device.starts_with("/dev/nbd"), "{device}");
    bench.vm.sh(&format!("printf of-nobody | dd of={device} bs=512 seek=40000 conv=notrunc")).ok();
    bench.vm.dunnage("volume detach other").ok();
    let device = bench.dunnage("volume attach other").ok();
    let read = bench.vm.sh(&format!("dd if={device} bs=512 skip=40000 count=1 | head -c 9")).ok();
    assert_eq!(read, "of-nobody");
    bench.vm.dunnage("volume detach other").ok();
    assert!(bench.mapped().is_empty());

    // Where nbd has no device left, it goes the next way.
    let map = format!("rbd-nbd map --read-only --conf /run/by-hand.conf --id {USER} {POOL}/other");
    bench.vm.sh(&format!("for i in $(seq 16); do {map} || exit 1; done")).ok();
    bench.mount("pg");
    let shown = bench.vm.dunnage("volume inspect pg").ok();
    assert!(shown.contains("/dev/loop"), "{shown}");
    bench.vm.dunnage("volume unmount pg").ok();
    bench.node.finish();
}

#[test]
fn what_carries_a_volume_is_outside_of_the_daemon_s_unit_and_outlives_it_under_systemd() {
    let Some(bench) = Bench::with("systemd", "rbd") else { return };
    let Bench { vm, .. } = &bench;
    vm.configure(&bench.yaml().replace("pool:", "attach: process, pool:"));
    // As the installed unit has it.
    let unit = "Type=notify\nKillMode=process\nRestart=on-failure\nExecStart=";
    let unit = format!("[Unit]\nDefaultDependencies=no\n[Service]\n{unit}{}\n", vm.line("start -f --log-level debug"));
    vm.sh(&format!("printf '%s' '{unit}' >/run/systemd/system/dunnage.service; systemctl daemon-reload; systemctl start dunnage")).ok();
    bench.create("pg");
    let path = bench.mount("pg");
    vm.sh(&format!("echo written >{0}/file; sync {0}/file", path.display())).ok();
    let carriers = || vm.sh("pidof qemu-storage-daemon").ok();
    let before = carriers();
    let cgroup = vm.sh(&format!("cat /proc/{before}/cgroup")).ok();
    println!("{cgroup}");
    assert!(cgroup.trim_end().ends_with(".scope"), "{cgroup}");
    // Whatever is done to the unit: all of it is killed, and it is started again.
    vm.sh("systemctl kill --kill-who=all --signal=KILL dunnage; for i in $(seq 100); do systemctl is-active dunnage && break; sleep 0.1; done").ok();
    vm.wait_until_it_serves();
    vm.sh("systemctl restart dunnage").ok();
    assert_eq!(carriers(), before, "it lives");
    assert_eq!(vm.sh(&format!("cat {}/file", path.display())).ok(), "written");
    eventually("it is unmounted", FAILOVER, || vm.dunnage("volume unmount pg").code == 0);
    assert_eq!(vm.sh("pidof qemu-storage-daemon || true").ok(), "");
    assert_eq!(vm.sh("systemctl list-units --type=scope --no-legend --plain | grep -c qemu || true").ok(), "0", "no scope is left");
    vm.sh("systemctl stop dunnage").ok();
}

#[test]
fn law_6_a_machine_that_stood_still_writes_nothing_through_the_kernel_after_its_volume_was_taken() {
    stands_still("rbd");
}

#[test]
fn law_6_a_machine_that_stood_still_writes_nothing_through_nbd_after_its_volume_was_taken() {
    stands_still("nbd");
}

fn stands_still(module: &'static str) {
    let Some(mut bench) = Bench::new(module) else { return };
    for name in ["pg", "other"] {
        bench.create(name);
    }
    let (path, other) = (bench.mount("pg"), bench.mount("other"));
    let write = |path: &PathBuf, word: &str| bench.vm.sh(&format!("echo {word} >>{0}/file; sync {0}/file", path.display()));
    write(&path, "before").ok();
    write(&other, "before").ok();
    assert_eq!(bench.mapped().len(), 2, "by the module that this is about");
    bench.vm.freeze();
    let there = bench.node.mount("pg", "c");
    assert_eq!(sh(&format!("cat {}/file", there.display())), "before");
    sh(&format!("echo after >>{0}/file; sync {0}/file", there.display()));
    bench.vm.thaw();
    let said = write(&path, "too-late");
    assert_ne!(said.code, 0, "it was told that a write had gone well: {said:?}");
    // The other volume has a client of its own: nobody took it, and it goes on.
    write(&other, "goes-on").ok();
    bench.node.unmount("pg", "c");
    // What was cut off goes, and the volume comes back.
    bench.vm.dunnage("volume unmount pg").ok();
    let path = bench.mount("pg");
    assert_eq!(bench.vm.sh(&format!("cat {}/file", path.display())).ok(), "before\nafter");
    for name in ["pg", "other"] {
        bench.vm.dunnage(&format!("volume unmount {name}")).ok();
    }
    assert!(bench.mapped().is_empty());
    bench.node.finish();
}

#[test]
fn law_4_a_mount_by_the_kernel_that_dies_anywhere_is_done_by_a_retry() {
    dies_anywhere("rbd");
}

#[test]
fn law_4_a_mount_by_nbd_that_dies_anywhere_is_done_by_a_retry() {
    dies_anywhere("nbd");
}

fn dies_anywhere(module: &'static str) {
    let Some(mut bench) = Bench::new(module) else { return };
    bench.create("pg");
    let path = bench.mount("pg");
    bench.vm.sh(&format!("echo written >{0}/x; sync {0}/x", path.display())).ok();
    bench.vm.dunnage("volume unmount pg").ok();
    let (mounting, unmounting) = (bench.points("mount"), bench.points("unmount"));
    assert!(mounting.iter().any(|point| point == "helper/ceph.start/after"), "{mounting:?}");
    assert!(bench.mapped().is_empty());
    for point in &mounting {
        bench.dies_at("mount", point);
        assert_eq!(bench.mapped().len(), 1, "{point}");
        assert_eq!(bench.vm.sh(&format!("cat {}/x", path.display())).ok(), "written", "{point}");
        bench.let_go();
    }
    for point in &unmounting {
        bench.mount("pg");
        bench.dies_at("unmount", point);
        bench.let_go();
    }
    println!("{} points", mounting.len() + unmounting.len());
    let there = bench.node.mount("pg", "c");
    assert_eq!(sh(&format!("cat {}/x", there.display())), "written");
    bench.node.unmount("pg", "c");
    bench.node.finish();
}

#[test]
fn a_copy_that_is_adopted_gets_a_uuid_of_its_own_through_the_kernel_s_device() {
    let Some(mut bench) = Bench::new("rbd") else { return };
    bench.create("pg");
    bench.ceph.command("rbd", &["cp", "--no-progress", &format!("{POOL}/pg"), &format!("{POOL}/twin")]).ok();
    let fs = |name: &str| {
        let shown = bench.vm.dunnage(&format!("volume inspect {name}")).out;
        shown.lines().find_map(|line| line.strip_prefix("fs ").map(|fs| fs.trim().to_owned()))
    };
    eventually("the machine has a connection", FAILOVER, || fs("pg").is_some());
    bench.vm.dunnage("volume adopt twin").ok();
    bench.mount("twin");
    assert_eq!(bench.mapped().len(), 1);
    assert_ne!(fs("twin"), fs("pg"));
    let on_it = bench.vm.sh("blkid -p -s UUID -o value /dev/rbd0").ok();
    assert!(fs("twin").is_some_and(|fs| fs.ends_with(&on_it)), "{on_it}");
    bench.vm.dunnage("volume unmount twin").ok();
    bench.node.finish();
}
