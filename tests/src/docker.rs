//! A Docker Engine of a test's own: dockerd and containerd with everything that is theirs in the test's folder, and the
//! `docker` command that speaks to them. A running engine of the machine is neither used nor seen.
//!
//! The engine finds the daemon as it does on users' machines, by looking into `/run/docker/plugins`: that folder is the
//! namespace's own, so one bench at a time. Nothing is pulled: images are made of Debian's static busybox.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::{BOUND, Node, Ran, eventually, http, is_mounted, kernel, scratch, skip};

/// Where every Docker Engine looks for plugins.
pub const PLUGINS: &str = "/run/docker/plugins";

/// The image that containers run: busybox and nothing else; it has no `/data`. No registry answers at that address, so
/// that a typing mistake is not looked for in the world.
pub const IMAGE: &str = "localhost:1/bb:1";

/// The longest that a `docker` command may take.
const PATIENCE: &str = "110";

const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "chown", "cp", "dd", "date", "df", "echo", "find", "id", "ls", "mkdir", "readlink", "rm", "sleep", "stat",
    "sync", "test", "touch", "true",
];

/// One bench at a time: they share `/run/docker/plugins`.
static ALONE: Mutex<()> = Mutex::new(());

/// A node, and an engine that has found it by itself.
pub struct Bench {
    // Dropped first: its containers hold the node's volumes.
    pub docker: Docker,
    pub node: Node,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// A daemon without a configuration, and an engine; `None` where there is no engine (noted as a skip).
    pub fn started() -> Option<Bench> {
        Bench::configured("", &[])
    }

    /// The same with a configuration (none if empty) and flags for dockerd.
    pub fn configured(yaml: &str, flags: &[&str]) -> Option<Bench> {
        Bench::of(yaml, flags, Network::OfTheMachine)
    }

    /// The same with an engine that is alone in its network, where a swarm may make what it wants.
    pub fn alone_in_its_network(yaml: &str) -> Option<Bench> {
        Bench::of(yaml, &[], Network::ItsOwn)
    }

    fn of(yaml: &str, flags: &[&str], network: Network) -> Option<Bench> {
        let lacking = ["dockerd", "containerd", "docker", "busybox", "timeout", "tar"].into_iter().find(|name| find(name).is_none());
        if let Some(program) = lacking {
            skip(&format!("needs {program} (packages docker.io, docker-cli, busybox-static)"));
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // A socket that a killed daemon left would be asked by this engine, too.
        let _ = std::fs::remove_dir_all(PLUGINS);
        std::fs::create_dir_all(PLUGINS).expect("plugin folder");
        let mut node = Node::new();
        node.plugins = PLUGINS.into();
        if !yaml.is_empty() {
            node.configure(yaml);
        }
        node.start();
        Some(Bench { docker: Docker::started(flags, network), node, _alone: alone })
    }

    /// Stops everything cleanly and looks for what is left: of the volumes, of the daemon, of the engine.
    #[track_caller]
    pub fn finish(mut self) {
        self.docker.stop();
        self.node.finish();
    }

    /// Waits until nothing of a volume is mounted or attached, nobody holds it, and no copy of its mount lived on.
    #[track_caller]
    pub fn wait_until_released(&self, volume: &str) {
        self.node.wait_until_released(volume);
        // Somebody who looks at the device (udev does) may keep it for a moment; a copy of the mount may not.
        assert!(!self.node.log().contains("Lingering([Process"), "another namespace kept it for a while: {}", self.node.log());
    }

    /// Starts a container that appends to `/data/log` for ever, and waits until it has begun.
    #[track_caller]
    pub fn writer(&self, name: &str, volume: &str) -> Writer {
        let mount = format!("{volume}:/data");
        self.docker.begin(name, &["-v", &mount, "--volume-driver", "dunnage"], "while echo x >>/data/log; do sleep 0.01; done");
        let writer = Writer { log: self.node.mountpoint(volume).join("log") };
        eventually("the container writes", BOUND, || writer.log.exists());
        writer
    }
}

/// A container that writes, seen from the node.
pub struct Writer {
    log: PathBuf,
}

impl Writer {
    /// How much it has written.
    pub fn written(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |file| file.len())
    }

    /// It goes on writing.
    #[track_caller]
    pub fn assert_goes_on(&self) {
        let before = self.written();
        eventually("the container goes on writing", BOUND, || self.written() > before);
    }
}

/// Where dockerd makes its bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    OfTheMachine,
    ItsOwn,
}

/// A Docker Engine of a test's own.
pub struct Docker {
    folder: PathBuf,
    flags: Vec<String>,
    network: Network,
    storage: &'static str,
    cgroup: String,
    containerd: Option<Child>,
    dockerd: Option<Child>,
}

/// A `docker` command that runs.
pub struct Running(Child);

impl Running {
    /// Waits for its end.
    pub fn wait(self) -> Ran {
        let output = self.0.wait_with_output().expect("docker");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Docker {
    /// An engine that serves and has [`IMAGE`].
    fn started(flags: &[&str], network: Network) -> Docker {
        let folder = scratch();
        let cgroup = cgroup_name(&folder);
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut docker = Docker { folder, flags, network, storage: "overlay2", cgroup, containerd: None, dockerd: None };
        docker.write("daemon.json", "{}");
        docker.write("containerd.toml", &docker.containerd_config());
        docker.start_containerd();
        if docker.try_start().is_err() {
            // overlay2 wants a filesystem below it that can carry it; vfs wants nothing.
            docker.storage = "vfs";
            docker.start();
        }
        docker.import(IMAGE, |_| {});
        docker
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).expect("a file of the engine");
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn containerd_config(&self) -> String {
        format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}\"\n",
            self.path("ctd"),
            self.path("ctx"),
            self.path("c.sock"),
            self.path("opt")
        )
    }

    fn spawn_engine(&self, program: &str, args: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).expect("log");
        let path = find(program).expect(program);
        let mut command = match (self.network, program) {
            (Network::ItsOwn, "dockerd") => {
                let mut command = Command::new("unshare");
                command.args(["--net", "sh", "-ec", "busybox ip link set lo up; exec \"$@\"", "sh"]).arg(path);
                command
            }
            _ => Command::new(path),
        };
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        command.spawn().expect(program)
    }

    fn start_containerd(&mut self) {
        self.containerd =
            Some(self.spawn_engine("containerd", &["--log-level=warn".to_owned(), "--config".to_owned(), self.path("containerd.toml")]));
        eventually("containerd listens", BOUND, || UnixStream::connect(self.folder.join("c.sock")).is_ok());
    }

    /// Where it keeps what it has.
    pub fn data_root(&self) -> PathBuf {
        self.folder.join("d")
    }

    /// Starts dockerd, again or for the first time, and waits until it serves.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("dockerd did not start: {why}\n{}", self.log());
        }
    }

    fn try_start(&mut self) -> Result<(), String> {
        assert!(self.dockerd.is_none(), "dockerd runs already");
        let mut args: Vec<String> = [
            ("--config-file", self.path("daemon.json")),
            ("--containerd", self.path("c.sock")),
            ("--data-root", self.path("d")),
            ("--exec-root", self.path("x")),
            ("--pidfile", self.path("pid")),
            ("--host", self.host()),
            ("--storage-driver", self.storage.to_owned()),
            // There may be no systemd to ask, and cgroups of our own can be taken away again.
            ("--exec-opt", "native.cgroupdriver=cgroupfs".to_owned()),
            ("--cgroup-parent", format!("/{}", self.cgroup)),
            ("--bridge", "none".to_owned()),
        ]
        .into_iter()
        .map(|(flag, value)| format!("{flag}={value}"))
        .collect();
        args.extend(["--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--log-level=warn"].map(str::to_owned));
        args.extend(self.flags.iter().cloned());
        self.dockerd = Some(self.spawn_engine("dockerd", &args));
        let mut ended = None;
        eventually("dockerd serves", BOUND, || {
            ended = self.dockerd.as_mut().and_then(|child| child.try_wait().expect("wait"));
            ended.is_some() || self.answers()
        });
        match ended {
            None => Ok(()),
            Some(status) => {
                self.dockerd = None;
                Err(status.to_string())
            }
        }
    }

    fn answers(&self) -> bool {
        let socket = self.folder.join("d.sock");
        let ping = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        UnixStream::connect(&socket).is_ok() && http::raw(&socket, ping).status == 200
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("d.sock")
    }

    /// Where it listens, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("d.sock"))
    }

    /// What the engine has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// `docker ARGS`.
    pub fn cli(&self, args: &[&str]) -> Ran {
        self.spawn(args).wait()
    }

    /// `docker ARGS`, not waited for.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", PATIENCE]).arg(find("docker").expect("docker")).args(args);
        command.env("DOCKER_HOST", self.host()).env("DOCKER_CONFIG", self.folder.join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().expect("docker"))
    }

    /// Runs a script in a new container with these arguments of `docker run`, which is gone afterwards.
    pub fn run(&self, args: &[&str], script: &str) -> Ran {
        self.spawn_run(args, script).wait()
    }

    /// The same, not waited for.
    pub fn spawn_run(&self, args: &[&str], script: &str) -> Running {
        self.spawn(&[&["run", "--rm", "--network=none"], args, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// Begins a script in a container that goes on by itself; gives the container's whole ID. A stop kills it at once.
    #[track_caller]
    pub fn begin(&self, name: &str, args: &[&str], script: &str) -> String {
        let first = ["run", "-d", "--network=none", "--stop-signal=KILL", "--name", name];
        self.cli(&[&first, args, &[IMAGE, "sh", "-c", script]].concat()).ok()
    }

    /// Stops a container and removes it.
    #[track_caller]
    pub fn end(&self, name: &str) {
        self.cli(&["rm", "-f", name]).ok();
    }

    /// The names that `docker volume ls` shows.
    #[track_caller]
    pub fn volumes(&self) -> Vec<String> {
        self.cli(&["volume", "ls", "-q"]).ok().lines().map(str::to_owned).collect()
    }

    /// Whether a container runs.
    #[track_caller]
    pub fn is_running(&self, name: &str) -> bool {
        self.cli(&["inspect", "--format", "{{.State.Running}}", name]).ok() == "true"
    }

    /// Makes an image of busybox and what is added to its root folder.
    #[track_caller]
    pub fn import(&self, image: &str, add: impl FnOnce(&Path)) {
        let tar = image_tar(&self.folder, add);
        let path = tar.display().to_string();
        self.cli(&["import", &path, image]).ok();
        std::fs::remove_file(&tar).expect("image");
    }

    /// dockerd stops as its service does, and containerd goes on.
    #[track_caller]
    pub fn stop_dockerd(&mut self) {
        terminate("dockerd", self.dockerd.take().expect("dockerd runs"));
    }

    /// `kill -9` of dockerd alone.
    pub fn kill_dockerd(&mut self) {
        kill(self.dockerd.take().expect("dockerd runs"));
    }

    /// containerd does nothing more, so that dockerd waits in the middle of a start.
    pub fn freeze_containerd(&self) {
        self.signal_containerd(Signal::STOP);
    }

    /// containerd goes on.
    pub fn thaw_containerd(&self) {
        self.signal_containerd(Signal::CONT);
    }

    fn signal_containerd(&self, signal: Signal) {
        let child = self.containerd.as_ref().expect("containerd runs");
        kill_process(Pid::from_child(child), signal).expect("signal");
    }

    /// `kill -9` of all of it: dockerd, containerd, its shims, the containers; and containerd runs again.
    pub fn kill_everything(&mut self) {
        self.kill_processes();
        self.start_containerd();
    }

    /// Stops all of it, and nothing of it is left.
    #[track_caller]
    pub fn stop(&mut self) {
        let containers = self.cli(&["ps", "-aq"]).ok();
        assert!(containers.is_empty(), "the test has left containers: {containers}");
        self.stop_dockerd();
        terminate("containerd", self.containerd.take().expect("containerd runs"));
        eventually("the engine's processes end", BOUND, || self.processes().is_empty());
        // With live-restore, or killed once, dockerd leaves the mount that it makes of its own data root; and always the name that
        // it gives to the machine's network, if a container was in that.
        for own in [self.folder.join("d"), self.folder.join("x/netns/default")] {
            while is_mounted(&own) && unmount(&own, UnmountFlags::NOFOLLOW).is_ok() {}
        }
        let mounts = kernel::mounts_beneath(&self.folder);
        assert!(mounts.is_empty(), "the engine has left mounts: {mounts:?}");
        self.remove_cgroups();
    }

    fn kill_processes(&mut self) {
        [self.dockerd.take(), self.containerd.take()].into_iter().flatten().for_each(kill);
        eventually("the engine's processes are killed", BOUND, || {
            let left = self.processes();
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            left.is_empty()
        });
    }

    /// Its shims, which name its socket, and its containers, which are in its cgroups.
    fn processes(&self) -> Vec<Pid> {
        let number = |text: &str| text.parse().ok().and_then(Pid::from_raw);
        let folder = self.folder.display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let engine = ["dockerd", "containerd", "runc"].iter().any(|name| command.split('\0').next().is_some_and(|c| c.contains(name)));
            if engine && command.contains(&format!("{folder}/")) {
                found.extend(entry.file_name().to_str().and_then(number));
            }
        }
        found.extend(processes_in(&self.cgroup));
        found
    }

    fn remove_cgroups(&self) {
        remove_cgroups(&self.cgroup);
    }
}

impl Drop for Docker {
    /// Lets go of everything, so that one failed test does not make others fail.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.lines().count().saturating_sub(60);
            eprintln!("--- the engine's log ---\n{}", log.lines().skip(from).collect::<Vec<_>>().join("\n"));
        }
        if self.dockerd.is_some() || self.containerd.is_some() {
            self.kill_processes();
        }
        for mount in kernel::mounts_beneath(&self.folder).into_iter().rev() {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        self.remove_cgroups();
    }
}

fn terminate(name: &str, mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).expect("signal");
    let mut ended = None;
    eventually(&format!("{name} stops"), BOUND, || {
        ended = child.try_wait().expect("wait");
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()), "{name} stopped with {ended:?}");
}

fn kill(mut child: Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// The root folder of an image, packed: busybox and what is added to it. The caller removes it.
pub(crate) fn image_tar(folder: &Path, add: impl FnOnce(&Path)) -> PathBuf {
    let root = folder.join("image");
    for folder in ["", "bin", "tmp"] {
        std::fs::create_dir(root.join(folder)).expect("image");
    }
    std::fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("image");
    std::fs::copy(find("busybox").expect("busybox"), root.join("bin/busybox")).expect("image");
    APPLETS.iter().for_each(|applet| symlink("busybox", root.join("bin").join(applet)).expect("image"));
    add(&root);
    let tar = folder.join("image.tar");
    let made =
        Command::new("tar").args(["--create", "--numeric-owner", "--file"]).arg(&tar).arg("--directory").arg(&root).arg(".").status();
    assert!(made.is_ok_and(|status| status.success()), "tar makes the image");
    std::fs::remove_dir_all(&root).expect("image");
    tar
}

/// A name for the control groups of an engine in this folder.
pub(crate) fn cgroup_name(folder: &Path) -> String {
    folder.display().to_string().replace('/', "-").trim_matches('-').to_owned()
}

/// The control groups of that name and beneath, innermost first, in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut found: Vec<PathBuf> = folders(root).chain([root.to_owned()]).map(|h| h.join(name)).filter(|c| c.is_dir()).collect();
    let mut next = 0;
    while let Some(cgroup) = found.get(next) {
        let inner: Vec<_> = folders(cgroup).collect();
        found.extend(inner);
        next += 1;
    }
    found.reverse();
    found
}

/// What runs in them.
pub(crate) fn processes_in(name: &str) -> Vec<Pid> {
    let list = |cgroup: PathBuf| std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let number = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    cgroups(name).into_iter().map(list).flat_map(|text| text.lines().filter_map(number).collect::<Vec<_>>()).collect()
}

pub(crate) fn remove_cgroups(name: &str) {
    cgroups(name).iter().for_each(|cgroup| drop(std::fs::remove_dir(cgroup)));
}

fn folders(of: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// A program of the machine; for `docker` the one that came with the engine, before others on the way.
pub fn find(program: &str) -> Option<PathBuf> {
    let packaged = Path::new("/usr/bin/docker");
    if OsStr::new(program) == "docker" && packaged.exists() {
        return Some(packaged.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join(program)).find(|path| path.is_file())
}
