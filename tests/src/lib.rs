//! What the tests with a real kernel and real engines stand on: a daemon of their own in a place of its own, its command
//! line, its plugin socket, and a look at what is left behind.
//!
//! They run as root inside the namespaces that `cargo xtask test` makes; run by hand, they say so and fail.

pub mod ceph;
pub mod compose;
pub mod container;
pub mod docker;
pub mod fuse;
pub mod http;
pub mod kernel;
pub mod machine;
pub mod mesos;
pub mod podman;
pub mod swarm;
pub mod vm;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dunnage_host::crash;
use dunnage_host::orphans::Brood;
use serde_json::{Value, json};

/// The daemon's binary.
pub fn binary() -> PathBuf {
    PathBuf::from(std::env::var_os("DUNNAGE_BIN").expect("DUNNAGE_BIN is not set: run 'cargo xtask test'"))
}

/// The core of the Mesos module, as a library to link with.
pub fn mesos_module() -> PathBuf {
    PathBuf::from(std::env::var_os("DUNNAGE_MESOS_MODULE").expect("DUNNAGE_MESOS_MODULE: run the tests by 'cargo xtask test'"))
}

/// The small static program dvdcli.
pub fn small_dvdcli() -> PathBuf {
    PathBuf::from(std::env::var_os("DUNNAGE_DVDCLI").expect("DUNNAGE_DVDCLI is not set: run 'cargo xtask test'"))
}

/// Where the tests have their folders.
fn base() -> PathBuf {
    PathBuf::from(std::env::var_os("DUNNAGE_TEST_TMP").expect("DUNNAGE_TEST_TMP is not set: run 'cargo xtask test'"))
}

/// A folder of this test alone, on a real disk.
pub fn scratch() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = base().join(format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&folder).expect("scratch folder");
    folder
}

/// Waits until something is so, for at most `bound`.
pub fn eventually(what: &str, bound: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < bound, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The usual bound for a wait: far more than anything takes.
pub const BOUND: Duration = Duration::from_secs(30);

/// A daemon of a test's own, with its command line.
pub struct Node {
    /// Everything of it is in here.
    pub folder: PathBuf,
    /// Environment of the daemon, such as that of crash points.
    pub env: Vec<(String, String)>,
    /// How much it logs; `None` is what a user gets.
    pub log_level: Option<&'static str>,
    /// What it calls itself.
    pub name: &'static str,
    /// The endpoint that a test speaks to.
    pub endpoint: &'static str,
    /// Where the plugin sockets go; its own folder unless a test says otherwise.
    pub plugins: PathBuf,
    passed: News,
    child: Option<Child>,
}

/// What is new in a text that others append to. The file behind it stays where it is: a writer may have it open already.
#[derive(Debug, Default)]
struct News(AtomicUsize);

impl News {
    /// The whole lines of it that were not given before.
    fn of(&self, text: &str) -> Vec<String> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let given = self.0.swap(whole, Ordering::Relaxed);
        text[given..whole].lines().map(str::to_owned).collect()
    }
}

/// What a command of the daemon's command line did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// It worked; gives what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "it failed: {}{}", self.out, self.err);
        self.out.trim_end().to_owned()
    }

    /// It failed with this exit code; gives what it said.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "exit code; it said: {}{}", self.out, self.err);
        self.err
    }
}

/// Runs a line of shell that has to work; gives what it printed. What tests do to files inside a volume they do so, or
/// the open file would be inherited for a moment by what another test starts, and keep the volume busy.
#[track_caller]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().expect("sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {} {said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

impl Node {
    /// A node whose daemon does not run yet.
    pub fn new() -> Node {
        let folder = scratch();
        let plugins = folder.join("plugins");
        Node {
            folder,
            env: Vec::new(),
            log_level: Some("debug"),
            name: "n1",
            endpoint: "dunnage",
            plugins,
            passed: News::default(),
            child: None,
        }
    }

    /// A node with a running daemon.
    pub fn started() -> Node {
        let mut node = Node::new();
        node.start();
        node
    }

    /// Writes its configuration.
    pub fn configure(&self, yaml: &str) {
        std::fs::write(self.folder.join("config.yml"), yaml).expect("configuration");
    }

    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub fn pool(&self) -> PathBuf {
        self.state().join("pool/local")
    }

    pub fn image(&self, volume: &str) -> PathBuf {
        self.pool().join(volume).join("image")
    }

    pub fn mountpoint(&self, volume: &str) -> PathBuf {
        self.state().join("volumes/local").join(volume)
    }

    pub fn socket(&self) -> PathBuf {
        self.plugins.join(format!("{}.sock", self.endpoint))
    }

    /// A command of the binary, with this node's places.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        let config = self.folder.join("config.yml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        command.arg("--state-dir").arg(self.state()).arg("--run-dir").arg(self.run_dir()).arg("--plugin-dir").arg(&self.plugins);
        command.arg("--node").arg(self.name).stdin(Stdio::null());
        command
    }

    /// Runs the command line.
    pub fn cli(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = self.command().args(args).output().expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    /// Starts the daemon in the foreground, as our child, and waits until it serves. Its log goes to `log`.
    pub fn start(&mut self) {
        self.spawn();
        let pid = self.pid();
        eventually("the daemon serves", BOUND, || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("wait")) {
                panic!("the daemon ended at start ({status}): {}", self.log());
            }
            self.serves(pid)
        });
    }

    /// Waits until a daemon that was spawned serves, and starts another one if it ends.
    pub fn start_unless_it_serves(&mut self) {
        let pid = self.pid();
        eventually("the daemon serves or ends", BOUND, || {
            if self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_some()) {
                self.child = None;
            }
            self.child.is_none() || self.serves(pid)
        });
        if self.child.is_none() {
            self.start();
        }
    }

    fn serves(&self, pid: u32) -> bool {
        self.cli(&["status", "-o", "json"]).out.contains(&format!("\"pid\": {pid},"))
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.folder.join("log")).expect("log");
        let mut command = self.command();
        command.args(["start", "-f"]).args(self.log_level.iter().flat_map(|level| ["--log-level", level])).envs(self.env.iter().cloned());
        command.stdout(log.try_clone().expect("log")).stderr(log);
        self.child = Some(command.spawn().expect("the binary runs"));
    }

    fn crash_points(&self) -> PathBuf {
        self.folder.join("crash-points")
    }

    /// From its next start on, it comes by crash points (see `dunnage_host::crash`).
    pub fn allow_crashes(&mut self) {
        let folder = self.crash_points();
        std::fs::create_dir_all(&folder).expect("folder");
        self.env = vec![(crash::VARIABLE.to_owned(), folder.display().to_string())];
    }

    /// Whoever comes by this point next dies there.
    pub fn die_at(&self, point: &str) {
        // Nobody reads half of it.
        let folder = self.crash_points();
        std::fs::write(folder.join("new"), point).and_then(|()| std::fs::rename(folder.join("new"), folder.join("die"))).expect("written");
    }

    /// Somebody died there.
    #[track_caller]
    pub fn somebody_died(&self, point: &str) {
        eventually(&format!("somebody dies at {point}"), BOUND, || !self.crash_points().join("die").exists());
    }

    /// The points that were passed since the last call of this.
    pub fn passed(&self) -> Vec<String> {
        self.passed.of(&std::fs::read_to_string(self.crash_points().join("passed")).unwrap_or_default())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until witnesses have said a few times more who lives: whoever is to be let go of has been.
    #[track_caller]
    pub fn wait_for_witnesses(&self) {
        let said = || self.log().matches("said who lives").count();
        let before = said();
        eventually("the witnesses say who lives", BOUND, || said() > before + 3);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Waits until it has ended by itself, as at a crash point.
    pub fn wait_until_dead(&mut self) {
        let child = self.child.as_mut().expect("it runs");
        eventually("the daemon ends", BOUND, || child.try_wait().expect("wait").is_some());
        self.child = None;
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
            let status = child.wait().expect("wait");
            assert!(status.success(), "the daemon stopped with {status}: {}", self.log());
        }
    }

    /// One call of the plugin API: status and answer.
    pub fn plugin(&self, call: &str, body: &Value) -> (u16, Value) {
        let answer = http::post(&self.socket(), &format!("/{call}"), body.to_string().as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{call} answered no JSON ({e})")))
    }

    /// The same, and it must work.
    #[track_caller]
    pub fn plugin_ok(&self, call: &str, body: &Value) -> Value {
        let (status, answer) = self.plugin(call, body);
        assert!(status == 200 && answer["Err"].as_str().unwrap_or("").is_empty(), "{call} {body}: {status} {answer}");
        answer
    }

    /// The same, and it must fail; gives the message.
    #[track_caller]
    pub fn plugin_err(&self, call: &str, body: &Value) -> String {
        let (status, answer) = self.plugin(call, body);
        let err = answer["Err"].as_str().unwrap_or("").to_owned();
        assert!(status != 200 && !err.is_empty(), "{call} {body} did not fail: {status} {answer}");
        err
    }

    /// Mounts through the plugin API; gives the path.
    #[track_caller]
    pub fn mount(&self, volume: &str, id: &str) -> PathBuf {
        let answer = self.plugin_ok("VolumeDriver.Mount", &json!({ "Name": volume, "ID": id }));
        PathBuf::from(answer["Mountpoint"].as_str().expect("a path"))
    }

    #[track_caller]
    pub fn unmount(&self, volume: &str, id: &str) {
        self.plugin_ok("VolumeDriver.Unmount", &json!({ "Name": volume, "ID": id }));
    }

    /// The holders that `inspect` shows, as (id or nothing, count, provisional, undecided).
    pub fn holders(&self, volume: &str) -> Vec<(Option<String>, u64, u64, u64)> {
        let text = self.cli(&["volume", "inspect", volume, "-o", "json"]).ok();
        let inspected: Value = serde_json::from_str(&text).expect("json");
        let number = |holder: &Value, key: &str| holder[key].as_u64().unwrap_or(0);
        inspected["holders"]
            .as_array()
            .expect("holders")
            .iter()
            .map(|h| (h["id"].as_str().map(str::to_owned), number(h, "count"), number(h, "provisional"), number(h, "undecided")))
            .collect()
    }

    /// Waits until nothing of a volume is mounted or attached, and nobody holds it.
    #[track_caller]
    pub fn wait_until_released(&self, volume: &str) {
        let (path, pool) = (self.mountpoint(volume), self.pool().join(volume));
        eventually("the volume is unmounted and detached, and nobody holds it", BOUND, || {
            !path.exists() && kernel::loops_beneath(&pool).is_empty() && self.holders(volume).is_empty()
        });
    }

    /// Writes a file into a volume, which is made if there is none, and lets go of it.
    #[track_caller]
    pub fn fill(&self, volume: &str) {
        if !self.cli(&["volume", "ls", "-q"]).ok().lines().any(|name| name == volume) {
            self.cli(&["volume", "create", volume, "-o", "size=64M"]).ok();
        }
        let path = self.cli(&["volume", "mount", volume]).ok();
        sh(&format!("echo the data of {volume} >{path}/data-of-a-test; sync {path}/data-of-a-test"));
        self.cli(&["volume", "unmount", volume]).ok();
    }

    /// What was written there is there.
    #[track_caller]
    pub fn assert_data(&self, volume: &str) {
        let path = self.cli(&["volume", "mount", volume]).ok();
        let file = PathBuf::from(path).join("data-of-a-test");
        let found = if file.exists() { sh(&format!("cat {}", file.display())) } else { "nothing".to_owned() };
        self.cli(&["volume", "unmount", volume]).ok();
        assert_eq!(found, format!("the data of {volume}"));
    }

    /// There is neither such a volume nor anything of it in the pool.
    #[track_caller]
    pub fn assert_gone(&self, volume: &str) {
        let listed = self.cli(&["volume", "ls", "-q"]).ok();
        assert!(!listed.lines().any(|name| name == volume), "{volume} is listed");
        assert!(!self.pool().join(volume).exists(), "something of {volume} is in the pool");
    }

    /// The end of a test with an engine: everything is let go of, and the daemon stops.
    #[track_caller]
    pub fn finish(&mut self) {
        eventually("nothing is attached", BOUND, || kernel::loops_beneath(&self.folder).is_empty());
        self.assert_nothing_left();
        self.stop();
    }

    /// A helper of a killed daemon ends when its call does, and what that has made is there only then.
    fn wait_for_helpers(&self) {
        let marks = self.run_dir().join("helpers");
        let begun = Instant::now();
        while marks.exists() && begun.elapsed() < BOUND && Brood::begin(&marks).is_ok_and(|(_, orphans)| !orphans.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The processes that carry a device of this node.
    pub fn carriers(&self) -> Vec<u32> {
        kernel::processes_with(&self.run_dir().join("devices").display().to_string())
    }

    /// Nothing of this node says another word to anybody, and nothing of it that is not on a disk is there any more.
    pub fn cut_power(&mut self) {
        // First the way to the data, so that nothing of what is in memory gets there.
        self.carriers().into_iter().for_each(kernel::kill);
        self.kill();
        self.let_go();
        std::fs::remove_dir_all(self.run_dir()).expect("nothing is mounted in it");
    }

    /// Takes down what the kernel has of this node.
    fn let_go(&self) {
        self.carriers().into_iter().for_each(kernel::kill);
        // Looked for first: a file on a filesystem that is not mounted any more has no path.
        let devices = kernel::loops_beneath(&self.folder);
        for mount in kernel::mounts_beneath(&self.folder).into_iter().rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
        for device in devices {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }

    /// Nothing of it is mounted or attached. (Checked again by xtask, for the whole machine.)
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left: Vec<_> = kernel::mounts_beneath(&self.folder).into_iter().filter(|m| *m != self.state().join("volumes")).collect();
        assert!(left.is_empty(), "still mounted: {left:?}");
        let loops = kernel::loops_beneath(&self.folder);
        assert!(loops.is_empty(), "still attached: {loops:?}");
        let carriers = self.carriers();
        assert!(carriers.is_empty(), "still carried: {carriers:?}");
    }
}

impl Default for Node {
    fn default() -> Self {
        Node::new()
    }
}

impl Drop for Node {
    /// Lets go of everything, so that one failed test does not make others fail. The tests assert before.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if std::thread::panicking() {
                eprintln!("--- the daemon's log ---\n{}", self.log());
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.wait_for_helpers();
        self.let_go();
    }
}

/// Notes that a test could not run here; see `cargo xtask test`.
pub fn skip(line: &str) {
    use std::io::Write;
    let log = std::env::var_os("DUNNAGE_SKIP_LOG").expect("DUNNAGE_SKIP_LOG is not set: run 'cargo xtask test'");
    let mut file = File::options().append(true).create(true).open(log).expect("skip log");
    writeln!(file, "{line}").expect("skip log");
}

/// Whether a path is a mount point.
pub fn is_mounted(path: &Path) -> bool {
    kernel::mounts_beneath(path).iter().any(|mount| mount == path)
}
