//! A Podman of a test's own: the `podman` command with its storage, its state, its locks and its `containers.conf` in the
//! test's folder. A Podman of the machine is neither used nor seen.
//!
//! Podman has no daemon: every command opens the same storage, and every container has a `conmon` that cleans up when it
//! ends. It knows our socket from `containers.conf`, as users' machines do. Nothing is pulled.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::docker::{IMAGE, cgroup_name, find, image_tar, processes_in, remove_cgroups};
use crate::{BOUND, Node, Ran, eventually, kernel, skip};

/// The one ID that Podman sends for all containers: the SHA-256 of `placeholder` and a newline.
pub const PODMAN_ID: &str = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";

/// The longest that a `podman` command may take.
const PATIENCE: &str = "110";

/// Where the system's Podman keeps a cache of what it has copied, which no setting moves.
const CACHE: &str = "/var/lib/containers";

/// A node, and a Podman that is told of its sockets.
pub struct Bench {
    // Dropped first: its containers hold the node's volumes.
    pub podman: Podman,
    pub node: Node,
}

impl Bench {
    /// A daemon without a configuration, and a Podman; `None` where there is no Podman (noted as a skip).
    pub fn started() -> Option<Bench> {
        Some(Bench::of(Bench::node()?, &["dunnage"]))
    }

    /// A node whose daemon does not run yet; `None` where there is no Podman (noted as a skip).
    pub fn node() -> Option<Node> {
        let lacking = ["podman", "conmon", "busybox", "timeout", "tar", "unshare"].into_iter().find(|name| find(name).is_none());
        let lacking = lacking.or_else(|| runtime().is_none().then_some("runc"));
        if let Some(program) = lacking {
            skip(&format!("needs {program} (packages podman, busybox-static)"));
            return None;
        }
        Some(Node::new())
    }

    /// Starts a node's daemon, and gives it a Podman that knows these endpoints.
    pub fn of(mut node: Node, endpoints: &[&str]) -> Bench {
        node.start();
        let sockets = endpoints.iter().map(|name| ((*name).to_owned(), node.plugins.join(format!("{name}.sock")))).collect();
        let podman = Podman::new(node.folder.join("podman"), sockets);
        Bench { podman, node }
    }

    /// Stops everything cleanly and looks for what is left: of the volumes, of the daemon, of Podman.
    #[track_caller]
    pub fn finish(mut self) {
        self.podman.finish();
        self.node.finish();
    }

    /// Waits until nothing of a volume is mounted or attached, and nobody holds it.
    #[track_caller]
    pub fn wait_until_released(&self, volume: &str) {
        self.node.wait_until_released(volume);
    }

    /// Makes a small volume.
    #[track_caller]
    pub fn create(&self, volume: &str) {
        self.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "size=64M", volume]).ok();
    }

    /// Starts a container that appends to `/data/log` for ever, and waits until it writes.
    #[track_caller]
    pub fn writer(&self, name: &str, volume: &str) {
        let mount = format!("{volume}:/data");
        self.podman.begin(name, &["-v", &mount], "while echo x >>/data/log; do sleep 0.01; done");
        self.assert_written_to(volume);
    }

    /// Somebody goes on writing to the volume's log.
    #[track_caller]
    pub fn assert_written_to(&self, volume: &str) {
        let log = self.node.mountpoint(volume).join("log");
        let written = || std::fs::metadata(&log).map_or(0, |file| file.len());
        let before = written();
        eventually("the container goes on writing", BOUND, || written() > before);
    }

    /// What Podman holds of a volume, as it shows in our list: how many times, and nobody else anything.
    #[track_caller]
    pub fn held(&self, volume: &str) -> u64 {
        match self.node.holders(volume).as_slice() {
            [] => 0,
            [(Some(id), count, 0, 0)] if id == PODMAN_ID => *count,
            others => panic!("held by {others:?}"),
        }
    }
}

/// A Podman of a test's own.
pub struct Podman {
    folder: PathBuf,
    /// What of it does not outlive a boot. Not in the folder: Podman wants a path of at most 50 bytes.
    run: PathBuf,
    sockets: Vec<(String, PathBuf)>,
    storage: &'static str,
    cgroup: String,
}

/// A `podman` command that runs.
pub struct Running(Child);

impl Running {
    /// Waits for its end.
    pub fn wait(self) -> Ran {
        let output = self.0.wait_with_output().expect("podman");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A `podman system service`, which ends with this.
pub struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Podman {
    fn new(folder: PathBuf, sockets: Vec<(String, PathBuf)>) -> Podman {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let run = PathBuf::from(format!("/run/podman-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let cgroup = cgroup_name(&folder);
        std::fs::create_dir_all(folder.join("tmp")).expect("folder");
        let mut podman = Podman { folder, run, sockets, storage: "overlay", cgroup };
        podman.configure("");
        let tar = image_tar(&podman.folder, |root| {
            std::fs::create_dir(root.join("kept")).expect("image");
            std::fs::write(root.join("kept/of-the-image"), "of the image\n").expect("image");
        });
        if podman.import(&tar).code != 0 {
            // overlay wants a filesystem below it that can carry it; vfs wants nothing.
            let _ = std::fs::remove_dir_all(podman.folder.join("root"));
            let _ = std::fs::remove_dir_all(&podman.run);
            podman.storage = "vfs";
            podman.import(&tar).ok();
        }
        std::fs::remove_file(tar).expect("image");
        podman
    }

    /// In a mount namespace in which its cache is nobody's. One at a time: the folder would go from under another's mount.
    fn import(&self, tar: &Path) -> Ran {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (cache, had) = (Path::new(CACHE), Path::new(CACHE).exists());
        std::fs::create_dir_all(cache).expect("folder");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", "mount -t tmpfs tmpfs $0; \"$@\"", CACHE]);
        let ran = self.run_as(command, &["import", &tar.display().to_string(), IMAGE]).wait();
        if !had {
            let _ = std::fs::remove_dir(cache);
        }
        ran
    }

    /// Writes its configuration, with more lines for the section `[engine]`.
    pub fn configure(&self, engine: &str) {
        let runtime = runtime().expect("an OCI runtime");
        let sockets: String = self.sockets.iter().map(|(name, path)| format!("{name} = \"{}\"\n", path.display())).collect();
        let text = format!(
            // The limits: raising them needs a right that root may lack.
            "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n\
             [engine]\nruntime = \"{runtime}\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n{engine}\n\
             [engine.volume_plugins]\n{sockets}"
        );
        std::fs::write(self.folder.join("containers.conf"), text).expect("containers.conf");
    }

    /// `podman ARGS`.
    pub fn cli(&self, args: &[&str]) -> Ran {
        self.spawn(args).wait()
    }

    /// `podman system reset`, in a mount namespace in which nothing of the machine's own Podman is to be seen.
    pub fn reset(&self) -> Ran {
        let mut command = Command::new("unshare");
        let line =
            "for folder in /var/lib/containers /etc/containers; do test ! -d $folder || mount -t tmpfs tmpfs $folder; done; exec \"$@\"";
        command.args(["--mount", "--propagation", "slave", "sh", "-ec", line, "sh"]);
        self.run_as(command, &["system", "reset", "--force"]).wait()
    }

    /// `podman ARGS`, not waited for.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", PATIENCE]);
        self.run_as(command, args)
    }

    /// Has it serve Docker's API on a socket, as `podman.socket` does.
    #[track_caller]
    pub fn serve(&self, socket: &Path) -> Service {
        let running = self.run_as(Command::new("env"), &["system", "service", "--time=0", &format!("unix://{}", socket.display())]);
        eventually("podman serves", BOUND, || std::os::unix::net::UnixStream::connect(socket).is_ok());
        Service(running.0)
    }

    /// `podman ARGS` as the last arguments of another command.
    fn run_as(&self, mut command: Command, args: &[&str]) -> Running {
        command.arg(find("podman").expect("podman")).args(["--storage-driver", self.storage]);
        command.arg("--root").arg(self.folder.join("root"));
        command.arg("--runroot").arg(self.run.join("root")).arg("--tmpdir").arg(self.run.join("tmp"));
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf")).env("TMPDIR", self.folder.join("tmp"));
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1").env("HOME", &self.folder);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().expect("podman"))
    }

    /// Runs a script in a new container with these arguments of `podman run`, which is gone afterwards.
    pub fn run(&self, args: &[&str], script: &str) -> Ran {
        self.spawn_run(args, script).wait()
    }

    /// The same, not waited for.
    pub fn spawn_run(&self, args: &[&str], script: &str) -> Running {
        self.spawn_container(&["run", "--rm"], args, script)
    }

    /// Begins a script in a container that goes on by itself. A stop kills it at once.
    #[track_caller]
    pub fn begin(&self, name: &str, args: &[&str], script: &str) {
        self.spawn_container(&["run", "-d", "--stop-signal=KILL", "--name", name], args, script).wait().ok();
    }

    fn spawn_container(&self, first: &[&str], args: &[&str], script: &str) -> Running {
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        self.spawn(&[first, &["--pull=never", &parent], args, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// Stops a container and removes it.
    #[track_caller]
    pub fn end(&self, name: &str) {
        self.cli(&["rm", "-f", name]).ok();
    }

    /// The same for one whose conmon has died. Podman 5 says once that it cannot be stopped, and removes it when it is told again.
    #[track_caller]
    pub fn end_at_last(&self, name: &str) {
        eventually("the container is removed", BOUND, || {
            self.cli(&["rm", "-f", name]);
            self.cli(&["container", "exists", name]).code == 1
        });
    }

    /// The names of the volumes that Podman knows.
    #[track_caller]
    pub fn volumes(&self) -> Vec<String> {
        self.cli(&["volume", "ls", "-q"]).ok().lines().map(str::to_owned).collect()
    }

    /// One field of `podman volume inspect`.
    #[track_caller]
    pub fn field(&self, volume: &str, field: &str) -> String {
        self.cli(&["volume", "inspect", "--format", &format!("{{{{.{field}}}}}"), volume]).ok()
    }

    /// `kill -9` of every `conmon` alone; the containers run on.
    pub fn kill_conmon(&self) {
        self.kill_all("conmon", || self.processes_called("conmon"));
    }

    /// `kill -9` of every running `podman` command.
    pub fn kill_commands(&self) {
        self.kill_all("podman", || self.processes_called("podman"));
    }

    /// `kill -9` of all of it: commands, conmon, the containers.
    pub fn kill_everything(&self) {
        self.kill_all("processes", || self.processes());
    }

    fn kill_all(&self, what: &str, processes: impl Fn() -> Vec<Pid>) {
        eventually(&format!("Podman's {what} are killed"), BOUND, || {
            let left = processes();
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            left.is_empty()
        });
    }

    /// What a boot does to Podman's state: what lies under `/run` is gone.
    pub fn lose_run(&self) {
        for mount in self.mounts() {
            unmount(&mount, UnmountFlags::NOFOLLOW).expect("unmount");
        }
        std::fs::remove_dir_all(&self.run).expect("Podman's state");
        self.remove_runtime_state();
    }

    /// What the OCI runtime remembers under `/run` of containers that were killed with their conmon.
    fn remove_runtime_state(&self) {
        let containers = std::fs::read_dir(self.folder.join("root").join(format!("{}-containers", self.storage)));
        for container in containers.into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir_all(Path::new("/run").join(runtime().unwrap_or_default()).join(container.file_name()));
        }
    }

    /// Nothing of it is left, and its storage is removed.
    #[track_caller]
    pub fn finish(&mut self) {
        let containers = self.cli(&["ps", "-aq"]).ok();
        assert!(containers.is_empty(), "the test has left containers: {containers}");
        eventually("Podman's processes end", BOUND, || self.processes().is_empty());
        // What it mounts for itself, not for a container, stays as long as the machine runs.
        for mount in self.mounts() {
            assert!(mount == self.folder.join("root").join(self.storage), "Podman has left a mount: {}", mount.display());
            unmount(&mount, UnmountFlags::NOFOLLOW).expect("unmount");
        }
        remove_cgroups(&self.cgroup);
        std::fs::remove_dir_all(&self.run).expect("Podman's state");
        std::fs::remove_dir_all(&self.folder).expect("Podman's storage");
    }

    /// Its mounts, the last one first.
    fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts = kernel::mounts_beneath(&self.folder);
        mounts.extend(kernel::mounts_beneath(&self.run));
        mounts.reverse();
        mounts
    }

    fn processes(&self) -> Vec<Pid> {
        let ours = ["podman", "conmon", "runc", "crun"].into_iter().flat_map(|name| self.processes_called(name));
        ours.chain(processes_in(&self.cgroup)).collect()
    }

    /// Processes of that program that have this Podman's folder in their command line.
    fn processes_called(&self, program: &str) -> Vec<Pid> {
        let folder = format!("{}/", self.folder.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let name = command.split('\0').next().and_then(|path| path.rsplit('/').next());
            if name == Some(program) && command.contains(&folder) {
                found.extend(entry.file_name().to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw));
            }
        }
        found
    }
}

impl Drop for Podman {
    /// Lets go of everything, so that one failed test does not make others fail.
    fn drop(&mut self) {
        if !self.folder.exists() {
            return;
        }
        self.kill_everything();
        for mount in self.mounts() {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        remove_cgroups(&self.cgroup);
        self.remove_runtime_state();
        let _ = std::fs::remove_dir_all(&self.run);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What makes the containers.
fn runtime() -> Option<&'static str> {
    ["runc", "crun"].into_iter().find(|name| find(name).is_some())
}
