//! A Ceph cluster of a test's own: one monitor and a few storage daemons with all that is theirs in the test's folder, on
//! ports that were free: of the loopback, unless a test has machines of its own that are to reach it.
//!
//! The daemons are our children and never leave the foreground; the data lie in sparse files. Keys are made here, so that the
//! monitor knows all of them from its first moment and nobody has to wait for one.

use std::fmt::Write as _;
use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dunnage_driver_ceph::{Access, Cluster, Pool, Settings, Way};
use dunnage_model::Owner;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::docker::find;
use crate::{BOUND, Node, Ran, eventually, scratch, skip};

/// The pool that is there from the beginning.
pub const POOL: &str = "rbd";
/// The user of the daemon, who may do what it needs and no more.
pub const USER: &str = "dunnage";
/// The filesystem, and the user of it.
pub const FILES: &str = "files";
/// How many placement groups the pool has.
pub const GROUPS: u32 = 8;

/// Whether there is a manager. RADOS and RBD do not need one, and it takes 300 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    None,
    One,
}

/// A cluster.
pub struct Ceph {
    /// Everything of it is in here.
    pub folder: PathBuf,
    /// Where it listens.
    address: &'static str,
    monitor: Option<Child>,
    manager: Option<Child>,
    /// Of a filesystem.
    metadata: Option<Child>,
    osds: Vec<Option<Child>>,
}

impl Ceph {
    /// A cluster, and qemu's way to its images; `None` where one of them is not installed (noted as a skip).
    pub fn with_devices(osds: usize) -> Option<Ceph> {
        if find("qemu-storage-daemon").is_none() {
            skip("needs qemu-storage-daemon with rbd (packages qemu-system-common, qemu-block-extra)");
            return None;
        }
        Ceph::start(osds)
    }

    /// A cluster with a filesystem, and a node's way into it; `None` where one of them is not installed (noted as a skip).
    pub fn with_files() -> Option<Ceph> {
        if let Some((program, package)) =
            [("ceph-mds", "ceph-mds"), ("ceph-fuse", "ceph-fuse")].into_iter().find(|(p, _)| find(p).is_none())
        {
            skip(&format!("needs {program} (package {package})"));
            return None;
        }
        let mut ceph = Ceph::start(1)?;
        for pool in ["files.data", "files.metadata"] {
            ceph.ceph(&["osd", "pool", "create", pool, "4"]).ok();
        }
        ceph.ceph(&["fs", "new", FILES, "files.metadata", "files.data"]).ok();
        // Half of the usual, for what a dead node had.
        ceph.ceph(&["fs", "set", FILES, "session_timeout", "30"]).ok();
        ceph.metadata = Some(ceph.spawn("ceph-mds", "m"));
        let key = ceph.ceph(&["fs", "authorize", FILES, &format!("client.{FILES}"), "/", "rwp"]).ok();
        std::fs::write(ceph.files_keyring(), key + "\n").expect("keyring");
        eventually("the filesystem serves", BOUND, || ceph.ceph(&["mds", "stat"]).ok().contains("up:active"));
        Some(ceph)
    }

    /// The key of the user of the filesystem.
    pub fn files_keyring(&self) -> PathBuf {
        self.folder.join(format!("client.{FILES}.keyring"))
    }

    /// The driver's settings, for tests without a daemon.
    pub fn settings(&self, me: Owner, folder: PathBuf) -> Settings {
        Settings {
            name: "ceph".parse().expect("a name"),
            access: self.access(),
            pools: vec![POOL.to_owned()],
            repl: None,
            make_pools: false,
            named_pools: false,
            silence: dunnage_driver::SILENCE,
            way: Way::Auto,
            me,
            folder,
        }
    }

    /// A node of that name with a daemon, whose endpoint `files` has volumes in this filesystem.
    pub fn files_node(&self, name: &'static str) -> Node {
        self.files_node_with(name, "files", "files: { type: cephfs, CONF, FILES }", "name: files, driver: files")
    }

    /// A node whose endpoint `pxd` has images, and files for who wants many writers.
    pub fn both_node(&self, name: &'static str) -> Node {
        let drivers = "files: { type: cephfs, CONF, FILES, repl: 1 }, images: { type: ceph, CONF, IMAGES }";
        self.files_node_with(name, "pxd", drivers, "name: pxd, driver: images, shared: files")
    }

    fn files_node_with(&self, name: &'static str, endpoint: &'static str, drivers: &str, docker: &str) -> Node {
        let mut node = Node::new();
        (node.name, node.endpoint) = (name, endpoint);
        let drivers = drivers
            .replace("CONF", &format!("conf: {}", self.conf().display()))
            .replace("FILES", &format!("keyring: {}, user: {FILES}", self.files_keyring().display()))
            .replace("IMAGES", &format!("keyring: {}, user: {USER}", self.keyring().display()));
        node.configure(&format!(
            "volumes: {{ private_namespace: true, defaults: {{ size: 64MiB }} }}\n\
             drivers: {{ {drivers} }}\nendpoints: {{ docker: [ {{ {docker} }} ] }}\n"
        ));
        node.start();
        node
    }

    /// A cluster whose pool can be used; `None` where Ceph is not installed (noted as a skip).
    pub fn start(osds: usize) -> Option<Ceph> {
        Ceph::start_with(osds, Manager::None)
    }

    /// The same, with a manager or without.
    pub fn start_with(osds: usize, manager: Manager) -> Option<Ceph> {
        Ceph::start_at("127.0.0.1", osds, manager)
    }

    /// The same at another address of the thread's network.
    pub fn start_at(address: &'static str, osds: usize, manager: Manager) -> Option<Ceph> {
        let mut programs = vec![("ceph-mon", "ceph-mon"), ("ceph-osd", "ceph-osd"), ("ceph", "ceph-common"), ("monmaptool", "ceph-common")];
        if manager == Manager::One {
            programs.push(("ceph-mgr", "ceph-mgr"));
        }
        if let Some((program, package)) = programs.into_iter().find(|(program, _)| find(program).is_none()) {
            skip(&format!("needs {program} (package {package})"));
            return None;
        }
        let mut ceph =
            Ceph { folder: scratch(), address, monitor: None, manager: None, metadata: None, osds: (0..osds).map(|_| None).collect() };
        ceph.configure();
        ceph.make_keys();
        ceph.make_monitor();
        ceph.monitor = Some(ceph.spawn("ceph-mon", "a"));
        let ids: Vec<String> = (0..osds).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        // The daemons' own first steps take as long as the monitor's: both at once.
        let making: Vec<Child> = ids.iter().enumerate().map(|(n, id)| ceph.make_osd(n, id)).collect();
        let admin = ceph.connected(&Access { timeout: Duration::from_secs(30), ..ceph.admin_access() });
        for (n, id) in ids.iter().enumerate() {
            let new = json!({ "prefix": "osd new", "uuid": id, "id": n });
            admin.monitor(&new).expect("the monitor takes a storage daemon");
        }
        for mut child in making {
            assert!(child.wait().expect("wait").success(), "a storage daemon made no store: {}", ceph.log());
        }
        for n in 0..osds {
            ceph.osds[n] = Some(ceph.spawn("ceph-osd", &n.to_string()));
        }
        let create = json!({ "prefix": "osd pool create", "pool": POOL, "pg_num": GROUPS, "pgp_num": GROUPS, "pool_type": "replicated" });
        admin.monitor(&create).expect("a pool");
        admin.monitor(&json!({ "prefix": "osd pool application enable", "pool": POOL, "app": "rbd" })).expect("an application");
        if manager == Manager::One {
            ceph.manager = Some(ceph.spawn("ceph-mgr", "x"));
        }
        ceph.wait_until_whole(&admin);
        Some(ceph)
    }

    fn configure(&self) {
        let address = self.address;
        let port = TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port();
        let (folder, osds) = (self.folder.display(), self.osds.len());
        let (size, min) = (osds.min(3), if osds > 1 { 2 } else { 1 });
        let text = format!(
            "[global]
fsid = {fsid}
mon host = [v2:{address}:{port}/0]
public addr = {address}
cluster addr = {address}
ms bind ipv6 = false
ms bind msgr1 = false
ms bind port min = 20000
ms bind port max = 29999
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
run dir = {folder}
crash dir = {folder}
admin socket =
pid file =
keyring = {folder}/$name.keyring
log file = {folder}/$name.log
log to stderr = false
osd pool default size = {size}
osd pool default min size = {min}
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd heartbeat interval = 1
osd heartbeat grace = 6
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false

[mon]
mon data = {folder}/mon
keyring = {folder}/mon..keyring
mon cluster log file = {folder}/cluster.log
mon data avail crit = 1
mon data avail warn = 1
mon osd min down reporters = 1
mon osd down out interval = 600
paxos propose interval = 0.05
paxos min wait = 0.01

[mgr]
mgr data = {folder}/mgr
mgr initial modules =

[mds]
mds data = {folder}
mds cache memory limit = 33554432

[osd]
osd data = {folder}/osd$id
osd objectstore = bluestore
bluestore block size = 8589934592
bluestore fsck on mkfs = false
bluestore rocksdb cf = false
bdev aio poll ms = 10
debug rocksdb = 0/0
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target autotune = false
osd op num shards = 2
osd op num threads per shard = 1
osd class load list = *
osd class default list = *
",
            fsid = uuid::Uuid::new_v4()
        );
        std::fs::write(self.conf(), text).expect("ceph.conf");
    }

    /// A keyring each, and one with all of them, which the monitor begins with.
    fn make_keys(&self) {
        const ALL: &[(&str, &str)] = &[("mon", "allow *"), ("osd", "allow *"), ("mgr", "allow *"), ("mds", "allow *")];
        self.add_key("mon.", &[("mon", "allow *")]);
        self.add_key("client.admin", ALL);
        self.add_key(&format!("client.{USER}"), &[("mon", "profile rbd"), ("osd", "profile rbd")]);
        self.add_key("mgr.x", &[("mon", "allow profile mgr"), ("osd", "allow *"), ("mds", "allow *")]);
        self.add_key("mds.m", &[("mon", "allow profile mds"), ("osd", "allow *"), ("mds", "allow *")]);
        for n in 0..self.osds.len() {
            self.add_key(&format!("osd.{n}"), &[("mon", "allow profile osd"), ("mgr", "allow profile osd"), ("osd", "allow *")]);
        }
    }

    fn add_key(&self, entity: &str, caps: &[(&str, &str)]) {
        let mut entry = format!("[{entity}]\n\tkey = {}\n", new_key());
        for (service, cap) in caps {
            let _ = writeln!(entry, "\tcaps {service} = \"{cap}\"");
        }
        std::fs::write(self.folder.join(format!("{entity}.keyring")), &entry).expect("keyring");
        let all = File::options().create(true).append(true).open(self.folder.join("all.keyring")).expect("keyring");
        std::io::Write::write_all(&mut &all, entry.as_bytes()).expect("keyring");
    }

    fn make_monitor(&self) {
        let conf = std::fs::read_to_string(self.conf()).expect("ceph.conf");
        let value = |key: &str| conf.lines().find_map(|line| line.strip_prefix(key)).expect("a value").trim_start_matches(" = ").to_owned();
        let (map, address) = (self.folder.join("monmap"), value("mon host").replace("/0]", "]"));
        let mut list = Command::new("monmaptool");
        list.args(["--create", "--fsid", &value("fsid"), "--addv", "a", &address]).arg(&map);
        ran(list.stdin(Stdio::null())).ok();
        let mut make = Command::new("ceph-mon");
        make.arg("-c").arg(self.conf()).args(["--mkfs", "-i", "a", "--monmap"]).arg(&map);
        ran(make.arg("--keyring").arg(self.folder.join("all.keyring")).stdin(Stdio::null())).ok();
    }

    fn make_osd(&self, n: usize, id: &str) -> Child {
        std::fs::create_dir_all(self.folder.join(format!("osd{n}"))).expect("folder");
        let mut make = Command::new("ceph-osd");
        make.arg("-c").arg(self.conf()).args(["--mkfs", "-i", &n.to_string(), "--osd-uuid", id]);
        self.with_log(make).spawn().expect("ceph-osd")
    }

    fn spawn(&self, program: &str, id: &str) -> Child {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.conf()).args(["-f", "-i", id]);
        self.with_log(command).spawn().expect(program)
    }

    fn with_log(&self, mut command: Command) -> Command {
        let log = File::options().create(true).append(true).open(self.folder.join("said")).expect("log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log).current_dir(&self.folder);
        command
    }

    /// Every placement group answers once it is served. (A client that asked before the daemons are there would learn of them
    /// only when it next looks, after five seconds.)
    fn wait_until_whole(&self, admin: &Cluster) {
        let up = format!("\"num_up_osds\":{}", self.osds.len());
        eventually("the storage daemons are up", BOUND, || {
            let said = admin.monitor(&json!({ "prefix": "osd stat", "format": "json" })).expect("osd stat");
            String::from_utf8_lossy(&said).contains(&up)
        });
        let access = Access { timeout: BOUND, ..self.access() };
        self.pool_as(&access).barrier().unwrap_or_else(|e| panic!("the pool cannot be used: {e}; {}", self.log()));
    }

    /// What the daemons have said at their start.
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("said")).unwrap_or_default()
    }

    /// Its `ceph.conf`.
    pub fn conf(&self) -> PathBuf {
        self.folder.join("ceph.conf")
    }

    /// The key of [`USER`].
    pub fn keyring(&self) -> PathBuf {
        self.folder.join(format!("client.{USER}.keyring"))
    }

    /// How the daemon gets in.
    pub fn access(&self) -> Access {
        Access { conf: self.conf(), user: USER.to_owned(), keyring: Some(self.keyring()), timeout: Duration::from_secs(10) }
    }

    /// A node of that name with a daemon, whose endpoint `pxd` has volumes in this cluster; `more` are keys of the endpoint.
    pub fn node(&self, name: &'static str, more: &str) -> Node {
        self.node_with(name, "", more)
    }

    /// The same with keys of the driver, too.
    pub fn node_with(&self, name: &'static str, of_driver: &str, more: &str) -> Node {
        let mut node = Node::new();
        (node.name, node.endpoint) = (name, "pxd");
        node.configure(&format!(
            "volumes: {{ private_namespace: true, defaults: {{ size: 64MiB }} }}\n\
             drivers: {{ pxd: {{ type: ceph, conf: {}, keyring: {}, user: {USER}, pool: {POOL}{of_driver} }} }}\n\
             endpoints: {{ docker: [ {{ name: pxd, driver: pxd{more} }} ] }}\n",
            self.conf().display(),
            self.keyring().display()
        ));
        node.start();
        node
    }

    /// How an operator gets in.
    pub fn admin_access(&self) -> Access {
        let keyring = self.folder.join("client.admin.keyring");
        Access { conf: self.conf(), user: "admin".to_owned(), keyring: Some(keyring), timeout: Duration::from_secs(10) }
    }

    /// A connection of its own, and the pool in it.
    pub fn pool(&self) -> Pool {
        self.pool_as(&self.access())
    }

    fn pool_as(&self, access: &Access) -> Pool {
        self.connected(access).pool(POOL).expect("the pool")
    }

    fn connected(&self, access: &Access) -> Cluster {
        Cluster::connect(access).unwrap_or_else(|e| panic!("{e}; {}", self.log()))
    }

    /// Runs the operator's command.
    pub fn ceph(&self, args: &[&str]) -> Ran {
        self.command("ceph", args)
    }

    /// Runs one of Ceph's commands (`ceph`, `rbd`, `rados`) as the operator.
    pub fn command(&self, program: &str, args: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        ran(command
            .args(["-s", "KILL", "60", program, "-c"])
            .arg(self.conf())
            .args(["--name", "client.admin"])
            .args(args)
            .stdin(Stdio::null()))
    }

    /// `kill -9` of a storage daemon.
    pub fn kill_osd(&mut self, n: usize) {
        end(&mut self.osds[n]);
    }

    /// Starts it again, and does not wait until it serves.
    pub fn start_osd(&mut self, n: usize) {
        assert!(self.osds[n].is_none(), "it runs already");
        self.osds[n] = Some(self.spawn("ceph-osd", &n.to_string()));
    }

    /// The monitor starts anew, and takes its time as an operator's does who has set nothing.
    pub fn slow_mon(&mut self) {
        let text = std::fs::read_to_string(self.conf()).expect("ceph.conf");
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("paxos ")).collect();
        std::fs::write(self.conf(), lines.join("\n") + "\n").expect("ceph.conf");
        end(&mut self.monitor);
        self.monitor = Some(self.spawn("ceph-mon", "a"));
        crate::eventually("the monitor is back", crate::BOUND, || self.ceph(&["health"]).code == 0);
    }

    /// From now on the monitor says nothing.
    pub fn stop_mon(&self) {
        self.signal_mon(Signal::STOP);
        let stat = PathBuf::from(format!("/proc/{}/stat", self.monitor.as_ref().expect("it runs").id()));
        let stopped = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')));
        eventually("the monitor has stopped", BOUND, stopped);
    }

    /// It answers again.
    pub fn cont_mon(&self) {
        self.signal_mon(Signal::CONT);
    }

    fn signal_mon(&self, signal: Signal) {
        kill_process(Pid::from_child(self.monitor.as_ref().expect("it runs")), signal).expect("signal");
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what Ceph's daemons said ---\n{}", self.log());
        }
        self.osds.iter_mut().chain([&mut self.metadata, &mut self.manager, &mut self.monitor]).for_each(end);
        for n in 0..self.osds.len() {
            // Sparse, and of no use to anybody.
            let _ = std::fs::remove_file(self.folder.join(format!("osd{n}/block")));
        }
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// A key as cephx has it: its type (1, AES), when it was made, how long it is (16), and as many bytes by chance.
fn new_key() -> String {
    let mut key = vec![1, 0];
    key.extend([0; 8]);
    key.extend([16, 0]);
    key.extend(uuid::Uuid::new_v4().into_bytes());
    STANDARD.encode(key)
}

/// The resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Another client of the cluster, in a process of its own: it can be frozen, fenced and killed.
pub struct Client {
    child: Child,
    said: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    /// Its address, as it says itself.
    pub address: dunnage_driver_ceph::ClientAddress,
}

impl Client {
    /// Starts `program` (`env!("CARGO_BIN_EXE_ceph-client")`) with words that say what it is to do, and waits until it is
    /// connected.
    pub fn start(program: &str, ceph: &Ceph, words: &[&str]) -> Client {
        let access = serde_json::to_string(&ceph.access()).expect("json");
        let mut command = Command::new(program);
        let mut child = command.arg(access).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the client runs");
        let mut said = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
        let address = said.next().expect("it says its address").expect("a line").parse().expect("an address");
        Client { child, said, address }
    }

    /// The next line that it says; nothing when it has ended.
    pub fn line(&mut self) -> Option<String> {
        self.said.next().map(|line| line.expect("a line"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Brings it to a halt.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("signal");
    }

    /// It goes on.
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("signal");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long something takes, and what comes of it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let outcome = work();
    (begun.elapsed(), outcome)
}

/// The middle one of some times.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A clock that all processes share.
pub fn since_1970() -> Duration {
    std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970")
}
