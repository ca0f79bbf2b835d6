//! The main job, end to end and narrated: for whoever wants to know what this is for.
//!
//! Everything happens for real, in a temporary place: a daemon of its own, the kernel's own loop devices and ext4, and
//! the calls that dockerd makes. Nothing stays behind, whatever happens on the way.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dunnage_frontend_admin::wire::{Inspected, Status};
use dunnage_frontend_unix::Client;
use dunnage_host::linux::Tools;
use dunnage_model::{Error, Result};
use rustix::mount::UnmountFlags;
use serde_json::{Value, json};

use crate::client::ask;
use crate::config::Places;
use crate::daemon;

/// The volume of the story, and the IDs that dockerd would give its containers.
const VOLUME: &str = "pg";
const CONTAINER: &str = "7f3a9c0de1b24c55a0f1e2d3c4b5a69788796a5b4c3d2e1f0f1e2d3c4b5a6978";
const ANOTHER: &str = "0d1e2f3a4b5c69788796a5b4c3d2e1f01e2d3c4b5a6978877f3a9c0de1b24c55";

/// `dunnage demo`
pub fn run() -> Result<()> {
    check_machine()?;
    let stage = Arc::new(Stage::new()?);
    // The story runs beside; a Ctrl-C ends it, and what it has built is taken down all the same.
    let (tell, told) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    let story = {
        let (stage, tell) = (stage.clone(), tell.clone());
        std::thread::spawn(move || tell.send(Some(story(&stage))))
    };
    std::thread::spawn(move || {
        let interrupted = runtime.block_on(tokio::signal::ctrl_c());
        interrupted.map(|()| tell.send(None))
    });
    let outcome = told.recv().map_err(|_| Error::internal("the demonstration ended without a word"))?;
    stage.take_down()?;
    match outcome {
        Some(outcome) => {
            let _ = story.join();
            outcome?;
        }
        None => {
            println!("\nInterrupted; everything is cleaned up.");
            return Ok(());
        }
    }
    let binary = std::env::current_exe().map_err(|e| Error::os("cannot find this binary", &e))?;
    println!("Everything is cleaned up. To use it with Docker:\n");
    println!("  sudo {} start && docker run --rm -it -v pg:/data --volume-driver dunnage busybox\n", binary.display());
    Ok(())
}

/// What the demonstration, and the daemon, cannot do without.
fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(daemon::need_root("demo"));
    }
    let refuse = |what: String, next: &str| Err(Error::unavailable(what, next));
    if !Path::new("/dev/loop-control").exists() {
        let next = "load the module with 'modprobe loop'; in a container, give it /dev/loop-control and the loop devices";
        return refuse("this kernel has no loop devices (/dev/loop-control is not there)".to_owned(), next);
    }
    if let Some((tool, package)) = Tools::find().missing().first() {
        return refuse(format!("{tool} is not installed"), &format!("run: apt-get install {package}"));
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (5, 14) {
        return refuse(format!("the kernel is {release}"), "use Linux 5.14 or newer");
    }
    println!("Checked: root, Linux {release}, loop devices, e2fsprogs.");
    if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
        println!("(This is a container: it must be privileged, and see the host's loop devices.)");
    }
    if release.to_lowercase().contains("microsoft") {
        println!("(This is WSL: it works as on any Linux, until Windows stops the virtual machine.)");
    }
    Ok(())
}

/// The temporary place, with a daemon on it.
struct Stage {
    folder: tempfile::TempDir,
    places: Places,
    daemon: std::sync::Mutex<Option<Child>>,
}

impl Stage {
    fn new() -> Result<Stage> {
        // Not /tmp: that may be memory, and a volume is to be on a disk.
        let folder = tempfile::Builder::new()
            .prefix("dunnage-demo-")
            .tempdir_in("/var/tmp")
            .map_err(|e| Error::os("cannot make a temporary folder in /var/tmp", &e))?;
        let path = folder.path();
        let places = Places {
            config: Some(path.join("config.yml")),
            state_dir: path.join("state"),
            run_dir: path.join("run"),
            plugin_dir: path.join("plugins"),
            node: Some("demo".parse()?),
        };
        // A small machine may be in a namespace of its own; for this story nobody else needs to see the mounts.
        std::fs::write(path.join("config.yml"), "volumes: { private_namespace: true }\n").map_err(|e| Error::os("cannot write", &e))?;
        Ok(Stage { folder, places, daemon: std::sync::Mutex::new(None) })
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn start(&self) -> Result<Duration> {
        let os = |e: std::io::Error| Error::os("cannot start the daemon", &e);
        let binary = std::env::current_exe().map_err(os)?;
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).map_err(os)?;
        let Places { config, state_dir, run_dir, plugin_dir, .. } = &self.places;
        let begun = Instant::now();
        let mut command = Command::new(binary);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command.arg("--state-dir").arg(state_dir).arg("--run-dir").arg(run_dir).arg("--plugin-dir").arg(plugin_dir);
        command.args(["--node", "demo", "start", "--foreground"]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().map_err(os)?).stderr(log).spawn().map_err(os)?;
        let pid = child.id();
        *self.child() = Some(child);
        while !ask::<Status>(&self.places, Duration::from_secs(1), "GET", "/v1/status", &()).is_ok_and(|status| status.pid == pid) {
            let ended = self.child().as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || begun.elapsed() > Duration::from_secs(30) {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(Error::internal(format!("the daemon does not serve; its log says:\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// One call as dockerd makes it.
    fn docker(&self, call: &str, body: &Value) -> Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
        let client = Client::new(self.places.plugin_dir.join("dunnage.sock"));
        let answer = runtime.block_on(client.send("POST", &format!("/VolumeDriver.{call}"), &[], body))?;
        let answer: Value =
            serde_json::from_slice(&answer.body).map_err(|e| Error::internal(format!("the daemon answered no JSON: {e}")))?;
        println!("      POST /VolumeDriver.{call} {body}");
        println!("      {answer}");
        match answer.get("Err").and_then(Value::as_str) {
            Some(err) if !err.is_empty() => Err(Error::internal(err)),
            _ => Ok(answer),
        }
    }

    fn inspect(&self) -> Result<Inspected> {
        ask(&self.places, Duration::from_secs(10), "GET", &format!("/v1/volumes/{VOLUME}"), &())
    }

    /// Takes everything down: the daemon, what it has mounted and attached, the folder.
    fn take_down(&self) -> Result<()> {
        let running = self.child().is_some();
        if running {
            let _ = ask::<Value>(&self.places, Duration::from_secs(20), "POST", "/v1/release", &());
        }
        if let Some(mut child) = self.child().take() {
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            child.wait().map_err(|e| Error::os("cannot wait for the daemon", &e))?;
        }
        let volumes = self.places.state_dir.join("volumes");
        match rustix::mount::unmount(&volumes, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(Error::os(format_args!("cannot unmount {}", volumes.display()), &e.into())),
        }
        std::fs::remove_dir_all(self.folder.path())
            .map_err(|e| Error::os(format_args!("cannot remove {}", self.folder.path().display()), &e))
    }
}

fn say(text: &str) {
    println!("\n{text}");
}

fn show(text: &str) {
    println!("      {text}");
}

fn os(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

fn expect(truth: bool, what: &str) -> Result<()> {
    if truth { Ok(()) } else { Err(Error::internal(format!("the demonstration failed: {what}"))) }
}

fn story(stage: &Stage) -> Result<()> {
    say("A container's data should live longer than the container. Dunnage gives every container scheduler volumes that do.");
    say("1. A daemon starts on this node (here: in a temporary place, for this demonstration).");
    let ready = stage.start()?;
    show(&format!("serving after {} ms at {}", ready.as_millis(), stage.places.plugin_dir.join("dunnage.sock").display()));

    say(&format!(
        "2. A container asks for a volume by name, as 'docker run -v {VOLUME}:/data --volume-driver dunnage' would.\n   dockerd has it created ..."
    ));
    stage.docker("Create", &json!({ "Name": VOLUME, "Opts": { "size": "1GiB" } }))?;
    show("a sparse image file is made, proven blank, and only then formatted; its record is on disk before each step");
    println!("   ... and mounted for the container:");
    let mount = json!({ "Name": VOLUME, "ID": CONTAINER });
    let answer = stage.docker("Mount", &mount)?;
    let path = PathBuf::from(answer.get("Mountpoint").and_then(Value::as_str).unwrap_or_default());
    let empty = std::fs::read_dir(&path).map_err(os("cannot read the volume"))?.count() == 0;
    expect(empty, "a new volume is not empty")?;
    show(&format!("{} is an empty ext4 filesystem of its own, on a loop device", path.display()));

    say("3. The container writes something that must not be lost.");
    let file = path.join("ledger.txt");
    let write = || -> std::io::Result<()> {
        std::fs::write(&file, "42 crates of oranges\n")?;
        File::open(&file)?.sync_all()
    };
    write().map_err(os("cannot write to the volume"))?;
    show(&format!("{}: 42 crates of oranges", file.display()));

    say("4. The worst happens to the daemon: kill -9.");
    let status = {
        let mut child = stage.child().take().ok_or_else(|| Error::internal("there is no daemon"))?;
        child.kill().map_err(os("cannot kill the daemon"))?;
        child.wait().map_err(os("cannot wait for the daemon"))?
    };
    show(&format!("the daemon is dead (signal {}); the container would not notice:", status.signal().unwrap_or(0)));
    let read = std::fs::read_to_string(&file).map_err(os("cannot read the volume"))?;
    expect(read.contains("oranges"), "the mount died with the daemon")?;
    show(&format!("{} is mounted still, and says: {}", path.display(), read.trim()));

    say("5. The daemon starts again, and remembers who holds what.");
    stage.start()?;
    let inspected = stage.inspect()?;
    expect(inspected.volume.holders.len() == 1, "the holder was forgotten")?;
    show(&format!(
        "state: {}; holder: {}",
        inspected.volume.state(),
        inspected.volume.holders.iter().map(ToString::to_string).collect::<String>()
    ));

    say("6. Somebody tries to remove the volume while the container runs. That is refused, and says who has it.");
    match ask::<Value>(&stage.places, Duration::from_secs(10), "DELETE", &format!("/v1/volumes/{VOLUME}"), &()) {
        Err(refused) => show(&refused.to_string()),
        Ok(_) => return Err(Error::internal("the demonstration failed: a volume in use was removed")),
    }

    say(
        "7. The container ends. With its last holder the volume is unmounted and detached, and its mountpoint is gone, so that\n   nothing is ever written beside it by mistake.",
    );
    stage.docker("Unmount", &mount)?;
    expect(!path.exists(), "the mountpoint is there still")?;
    show(&format!("{} does not exist any more", path.display()));

    say("8. Another container asks for the same name. It is attached, checked, found to have data, and never formatted.");
    let other = json!({ "Name": VOLUME, "ID": ANOTHER });
    stage.docker("Mount", &other)?;
    let read = std::fs::read_to_string(&file).map_err(os("cannot read the volume"))?;
    expect(read == "42 crates of oranges\n", "the data is not what was written")?;
    show(&format!("{}: {}", file.display(), read.trim()));
    stage.docker("Unmount", &other)?;
    stage.docker("Remove", &json!({ "Name": VOLUME }))?;
    println!();
    Ok(())
}
