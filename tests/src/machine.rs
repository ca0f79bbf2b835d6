//! A machine of a test's own, made of namespaces: a network with one link to a switch, mounts, processes, a host name, and a boot
//! id, which the kernel has only one of. It runs the daemon and an engine, at the places where users' machines have them.
//!
//! Its disk is a folder of the test. Its `/run` is a tmpfs, and dies with the boot; so does all that runs, for when the first process
//! of such a machine is killed the kernel kills the others. Nothing of it is a child of the test but that first process.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::docker::{cgroup_name, find, processes_in, remove_cgroups};
use crate::{BOUND, Ran, binary, eventually, kernel};

/// The addresses of a switch and its machines begin like this.
pub const NET: &str = "10.77.0";
/// Where the switch itself is, and whatever else listens in its network.
pub const SWITCH: &str = "10.77.0.254";

/// The longest that a command in a machine may take.
const PATIENCE: &str = "110";

/// A network of its own with a bridge in it; the thread that made it is in it until it is dropped, with all that the thread starts.
pub struct Switch {
    /// What keeps the network.
    keeper: Child,
    /// Where the thread was before.
    home: OwnedFd,
}

impl Switch {
    /// Makes one.
    pub fn new() -> Switch {
        let home = File::open("/proc/thread-self/ns/net").expect("a network").into();
        // An address of its own: it would take that of one of its links, another whenever one comes or goes, and for a quarter of a
        // minute the machines would send to the one before.
        let script = format!(
            "ip link set lo up; ip link add br0 address 02:00:00:00:00:fe type bridge; ip address add {SWITCH}/24 dev br0; ip link set br0 up\n\
             echo made; exec sleep infinity"
        );
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "--kill-child", "sh", "-ec", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().expect("unshare");
        assert_eq!(first_line(&mut keeper), "made", "there is no bridge");
        move_to(&File::open(format!("/proc/{}/ns/net", keeper.id())).expect("its network").into());
        Switch { keeper, home }
    }
}

impl Default for Switch {
    fn default() -> Self {
        Switch::new()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        move_to(&self.home);
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The thread goes into a network.
fn move_to(network: &OwnedFd) {
    use std::os::fd::AsFd;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("a network");
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

/// What a machine does first. `/proc` is still the test's when it looks which process it is there. Whoever becomes a child of
/// it is reaped by the kernel.
const INIT: &str = r#"
read -r pid rest </proc/self/stat
mount -t proc proc /proc
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs tmpfs /run
mkdir -p /run/docker/plugins /run/lock /etc/docker
mount -t tmpfs tmpfs /etc/docker
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id
if [ -f /etc/resolv.conf ]; then mount --bind "$2/resolv.conf" /etc/resolv.conf; fi
mount --make-rshared /
ip link set lo up
echo "$pid"
exec env --ignore-signal=CHLD sleep infinity
"#;

/// A machine.
pub struct Machine {
    /// Its host name, and what its daemon calls itself.
    pub name: &'static str,
    /// Its disk.
    pub folder: PathBuf,
    /// The folder of its daemon beneath `/run`; no other machine's is called so.
    run: String,
    number: u8,
    cgroup: String,
    boot: Option<Boot>,
}

/// One run of a machine. But for the first, process numbers are the machine's own.
struct Boot {
    outside: Child,
    first: u32,
    daemon: u32,
    containerd: u32,
    dockerd: u32,
}

impl Machine {
    /// A machine that is switched off, with an empty disk and a configuration of the daemon. The thread is in a switch's network.
    pub fn new(name: &'static str, number: u8, folder: PathBuf, yaml: &str) -> Machine {
        std::fs::create_dir_all(&folder).expect("folder");
        let (run, cgroup) = (format!("/run/dunnage-{}", uuid::Uuid::new_v4().simple()), cgroup_name(&folder));
        let machine = Machine { name, folder, run, number, cgroup, boot: None };
        // A name server that refuses at once: nothing here is to be looked up.
        for (file, text) in [("config.yml", yaml), ("resolv.conf", "nameserver 127.0.0.1\n"), ("daemon.json", "{}")] {
            machine.write(file, text);
        }
        let config = "version = 2\nstate = \"/run/containerd\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                      [grpc]\naddress = \"/run/containerd.sock\"\n";
        let (root, opt) = (machine.path("containerd"), machine.path("opt"));
        machine.write(
            "containerd.toml",
            &format!("root = \"{root}\"\n{config}[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{opt}\"\n"),
        );
        machine
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).expect("a file of the machine");
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("{NET}.{}", self.number)
    }

    /// The switch's end of its link.
    fn link(&self) -> String {
        format!("v{}", self.number)
    }

    fn now(&self) -> &Boot {
        self.boot.as_ref().unwrap_or_else(|| panic!("{} is off", self.name))
    }

    fn now_mut(&mut self) -> &mut Boot {
        self.boot.as_mut().expect("it is on")
    }

    /// Switches it on: a new boot, with the daemon and an engine, as its service manager would start them.
    pub fn boot(&mut self) {
        assert!(self.boot.is_none(), "{} is on", self.name);
        self.write("boot_id", &format!("{}\n", uuid::Uuid::new_v4()));
        let mut outside = Command::new("unshare");
        outside.args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-ec", INIT, "sh"]);
        let log = File::options().create(true).append(true).open(self.folder.join("init.log")).expect("log");
        outside.arg(self.name).arg(&self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut outside = outside.spawn().expect("unshare");
        let first = first_line(&mut outside).parse().expect("the first process of a machine");
        self.boot = Some(Boot { outside, first, daemon: 0, containerd: 0, dockerd: 0 });
        ip(&format!("link add {} type veth peer name eth0 netns {first}", self.link()));
        ip(&format!("link set {} master br0 up", self.link()));
        self.sh(&format!("ip address add {}/24 dev eth0; ip link set eth0 up", self.address())).ok();
        self.start_daemon();
        self.start_engine();
    }

    /// A command in it.
    fn enter(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", PATIENCE, "nsenter", "--target", &self.now().first.to_string()]);
        command.args(["--mount", "--uts", "--net", "--pid", "--"]).stdin(Stdio::null());
        command
    }

    /// Runs a line of shell in it.
    pub fn sh(&self, line: &str) -> Ran {
        ran(self.enter().args(["sh", "-ec", line]))
    }

    /// `docker ARGS` in it.
    pub fn docker(&self, args: &[&str]) -> Ran {
        ran(self.enter().arg(find("docker").expect("docker")).args(["--config", "/run/docker-config"]).args(args))
    }

    /// `dunnage ARGS` in it.
    pub fn dunnage(&self, args: &[&str]) -> Ran {
        ran(self.enter().args(self.daemon_line(args)))
    }

    fn daemon_line(&self, args: &[&str]) -> Vec<String> {
        let (program, config, state) = (binary().display().to_string(), self.path("config.yml"), self.path("state"));
        let places = ["--config", &config, "--state-dir", &state, "--run-dir", &self.run, "--node", self.name];
        [&[program.as_str()], &places[..], args].concat().into_iter().map(str::to_owned).collect()
    }

    /// Starts a program that nobody waits for; gives its number.
    fn spawn(&self, log: &str, line: &[String]) -> u32 {
        let script = "log=$1; shift; setsid \"$@\" </dev/null >>\"$log\" 2>&1 & echo $!";
        let number = ran(self.enter().args(["sh", "-ec", script, "sh"]).arg(self.folder.join(log)).args(line)).ok();
        number.parse().expect("a process number")
    }

    fn signal(&self, process: u32, signal: &str) {
        self.sh(&format!("kill -{signal} {process}")).ok();
    }

    fn runs(&self, process: u32) -> bool {
        Path::new(&format!("/proc/{}/root/proc/{process}", self.now().first)).exists()
    }

    fn end(&self, process: u32, signal: &str) {
        self.signal(process, signal);
        eventually("a process of a machine ends", BOUND, || !self.runs(process));
    }

    /// Starts its daemon, and waits until it serves.
    pub fn start_daemon(&mut self) {
        let pid = self.spawn("log", &self.daemon_line(&["start", "-f", "--log-level", "debug"]));
        self.now_mut().daemon = pid;
        eventually("the daemon serves", BOUND, || {
            assert!(self.runs(pid), "the daemon of {} ended at start: {}", self.name, self.log());
            self.dunnage(&["status", "-o", "json"]).out.contains(&format!("\"pid\": {pid},"))
        });
    }

    /// `kill -9` of its daemon.
    pub fn kill_daemon(&self) {
        self.end(self.now().daemon, "KILL");
    }

    /// What its daemon has logged, in all its boots.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn start_engine(&mut self) {
        let line = ["containerd", "--log-level=warn", "--config", &self.path("containerd.toml")].map(str::to_owned);
        self.now_mut().containerd = self.spawn("engine.log", &line);
        eventually("containerd listens", BOUND, || self.sh("test -S /run/containerd.sock").code == 0);
        self.start_dockerd();
    }

    /// Starts dockerd, and waits until it serves.
    pub fn start_dockerd(&mut self) {
        let mut line: Vec<String> = [("--config-file", "daemon.json"), ("--data-root", "docker")]
            .into_iter()
            .flat_map(|(flag, file)| [flag.to_owned(), self.path(file)])
            .collect();
        line.insert(0, "dockerd".to_owned());
        line.push(format!("--cgroup-parent=/{}", self.cgroup));
        line.extend(["--containerd=/run/containerd.sock", "--host=unix:///run/docker.sock", "--exec-root=/run/docker"].map(str::to_owned));
        line.extend(
            ["--exec-opt=native.cgroupdriver=cgroupfs", "--bridge=none", "--iptables=false", "--ip6tables=false"].map(str::to_owned),
        );
        line.extend(["--userland-proxy=false", "--log-level=warn"].map(str::to_owned));
        let pid = self.spawn("engine.log", &line);
        self.now_mut().dockerd = pid;
        eventually("dockerd serves", BOUND, || {
            assert!(self.runs(pid), "dockerd of {} ended at start: {}", self.name, self.engine_log());
            // An engine looks for plugins when somebody asks, and a swarm sends it nothing for one that it has not found.
            self.docker(&["volume", "ls", "-q"]).code == 0
        });
    }

    /// `kill -9` of dockerd alone: its containers go on.
    pub fn kill_dockerd(&self) {
        self.end(self.now().dockerd, "KILL");
        // It would say at its next start that it runs.
        self.sh("rm -f /run/docker.pid").ok();
    }

    /// What its engine has logged, in all its boots.
    pub fn engine_log(&self) -> String {
        std::fs::read_to_string(self.folder.join("engine.log")).unwrap_or_default()
    }

    /// Its link is down: it hears nothing and is not heard.
    pub fn cut(&self) {
        ip(&format!("link set {} down", self.link()));
    }

    /// Its link is up again.
    pub fn heal(&self) {
        ip(&format!("link set {} up", self.link()));
    }

    /// It hears everything, and nobody hears it.
    pub fn silence(&self) {
        self.sh("iptables --append OUTPUT --out-interface eth0 --jump DROP").ok();
    }

    /// It hears everybody, and whoever has this address does not hear it.
    pub fn silence_towards(&self, address: &str) {
        self.sh(&format!("iptables --append OUTPUT --destination {address} --jump DROP")).ok();
    }

    /// It is heard again by everybody.
    pub fn unsilence(&self) {
        self.sh("iptables --flush OUTPUT").ok();
    }

    /// Brings everything in it to a halt: engine, containers, daemon, and whatever carries a device.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    /// It all goes on.
    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    fn signal_all(&self, signal: &str) {
        // All but the first one and who says it.
        self.sh(&format!("kill -s {signal} -- -1")).ok();
    }

    /// The power is gone. First the link, so that nothing more is heard of it; then the way to the data, so that nothing of what is
    /// in memory gets there; then the rest.
    pub fn cut_power(&mut self) {
        self.cut();
        self.carriers().into_iter().for_each(kernel::kill);
        self.switch_off();
    }

    /// A machine that is shut down as its service manager would do it: first the engine with its containers, then the daemon, which
    /// gives everything up.
    pub fn shut_down(&mut self) {
        self.end(self.now().dockerd, "TERM");
        self.end(self.now().containerd, "TERM");
        self.dunnage(&["stop", "--release"]).ok();
        assert!(self.is_clean(), "{} went down with volumes mounted: {:?}", self.name, self.mounts());
        self.switch_off();
    }

    fn switch_off(&mut self) {
        let loops = self.loops();
        let Some(Boot { mut outside, first, .. }) = self.boot.take() else { return };
        if let Some(first) = i32::try_from(first).ok().and_then(Pid::from_raw) {
            let _ = kill_process(first, Signal::KILL);
        }
        let _ = outside.wait();
        eventually("all that ran in a machine is gone", BOUND, || processes_in(&self.cgroup).is_empty() && self.carriers().is_empty());
        // The kernel has these for all machines, and goes on when one ends. Their files have no path any more, or will have none soon.
        let is_dead = |device: &PathBuf| backing(device).is_some_and(|file| file == "/" || file.contains(&self.run));
        for device in loops.into_iter().filter(is_dead) {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
        let _ = Command::new("ip").args(["link", "delete", &self.link()]).stderr(Stdio::null()).status();
        remove_cgroups(&self.cgroup);
    }

    /// The processes that carry its devices.
    pub fn carriers(&self) -> Vec<u32> {
        kernel::processes_with(&format!("{}/devices", self.run))
    }

    /// What is mounted of its volumes.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let Some(boot) = &self.boot else { return Vec::new() };
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", boot.first)).unwrap_or_default();
        let volumes = self.folder.join("state/volumes");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&volumes) && *point != volumes).collect()
    }

    /// Nothing of a volume is mounted in it, nothing carries one.
    pub fn is_clean(&self) -> bool {
        self.mounts().is_empty() && self.carriers().is_empty() && self.loops().is_empty()
    }

    /// The loop devices on its carriers' files.
    fn loops(&self) -> Vec<PathBuf> {
        let devices = std::fs::read_dir("/sys/block").expect("/sys/block").flatten().map(|block| Path::new("/dev").join(block.file_name()));
        devices.filter(|device| backing(device).is_some_and(|file| file.contains(&self.run))).collect()
    }
}

/// The file of a loop device, if it has one.
fn backing(device: &Path) -> Option<String> {
    let block = Path::new("/sys/block").join(device.file_name()?);
    std::fs::read_to_string(block.join("loop/backing_file")).ok().map(|file| file.trim_end().to_owned())
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (what, log) in [("daemon", self.log()), ("engine", self.engine_log())] {
                let from = log.lines().count().saturating_sub(80);
                eprintln!("--- {}: the {what}'s log ---\n{}", self.name, log.lines().skip(from).collect::<Vec<_>>().join("\n"));
            }
        }
        if self.boot.is_some() {
            self.carriers().into_iter().for_each(kernel::kill);
            self.switch_off();
        }
    }
}

fn ip(args: &str) {
    ran(Command::new("ip").args(args.split(' '))).ok();
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}
