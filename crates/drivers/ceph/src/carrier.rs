//! An image as a block device: mapped by the kernel ([`kernel`]) or, where it has no rbd, by a process: `qemu-storage-daemon` shows it
//! as a file over FUSE, and a loop device is put on that file.
//!
//! Such a process carries the volume's data. It is nobody's child, outlives the daemon, and is found again by its folder, which
//! stands in its command line. What is known of it lies in that folder, beside the file that it serves.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dunnage_host::DeviceNumber;
use dunnage_host::helpers::Task;
use dunnage_host::linux::{carrier, to_background};
use dunnage_model::{Bytes, Error, Result, VolumeName};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::ClientAddress;
use crate::kernel::{self, MAPPING, Mapped, Mapping, SAID};
use crate::tasks::Place;

/// The program.
const PROGRAM: &str = "qemu-storage-daemon";
/// The file that shows the image; a loop device is put on it.
pub const DEVICE: &str = "device";
/// Its process number, as it writes it itself. It takes it away as the last thing that it does, and who is killed does not.
const PID: &str = "pid";
/// As whom it writes. Nobody reads or writes through it before this is there.
const CLIENT: &str = "client";
/// The cluster's configuration, with the place of the key.
const CONF: &str = "ceph.conf";

/// How long it may take to open an image.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end: whatever was to be written was flushed before.
const END: Duration = Duration::from_secs(5);

/// By what an image is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By the kernel if it can, else by a process.
    #[default]
    Auto,
    /// By the kernel's own client.
    Kernel,
    /// By a process.
    Process,
}

/// How an image stands on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// It is not here.
    No,
    /// It is carried, and nobody has come to know yet as whom: a start that was interrupted.
    Unnamed,
    /// It is carried, and written to as this client.
    By {
        /// The client.
        client: ClientAddress,
        /// The number of the volume whose image it is.
        volume: Uuid,
        /// The kernel's device, where the kernel carries it.
        mapped: Option<Mapped>,
    },
    /// What carried it has died.
    Dead,
}

/// What an end came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It has closed the image, with every write of its own answered.
    InOrder,
    /// It was killed, by whomever: what it had sent may be on its way.
    Killed,
    /// It has not ended: the kernel's device is open.
    Open,
}

fn os(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// What it is told to serve: also what it is known by.
fn export(folder: &Path) -> String {
    json!({ "type": "fuse", "id": "volume", "node-name": "volume", "mountpoint": folder.join(DEVICE), "writable": true }).to_string()
}

/// Its process.
fn process(folder: &Path) -> Result<Option<Pid>> {
    let export = export(folder);
    let is_it = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let is_program = |word: &[u8]| Path::new(std::ffi::OsStr::from_bytes(word)).file_name() == Some(PROGRAM.as_ref());
        // Its name need not come first: who puts it into a scope becomes it, but not at once.
        let mut words = line.split(|byte| *byte == 0);
        words.any(is_program) && words.any(|word| word == export.as_bytes())
    };
    let number = |text: &str| text.trim().parse().ok().and_then(Pid::from_raw);
    let written = std::fs::read_to_string(folder.join(PID)).ok().and_then(|text| number(&text));
    if let Some(pid) = written.filter(is_it) {
        return Ok(Some(pid));
    }
    // It may not have come as far as writing it down.
    let all = std::fs::read_dir("/proc").map_err(os("cannot list /proc"))?;
    Ok(all.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).find(is_it))
}

/// Looks how an image stands on this node.
#[derive(Serialize, Deserialize)]
pub struct Look {
    /// Its folder.
    pub folder: PathBuf,
}

impl Task for Look {
    const NAME: &'static str = "ceph.look";
    type Output = Carried;

    fn run(self) -> Result<Carried> {
        let Look { folder } = self;
        if !folder.is_dir() {
            return Ok(Carried::No);
        }
        let mapped = match Mapping::read(&folder)? {
            Some(mapping) => match mapped(&folder, &mapping)? {
                None => return Ok(Carried::Dead),
                mapped => mapped,
            },
            None if process(&folder)?.is_none() => return Ok(Carried::Dead),
            None => None,
        };
        Ok(named(&folder)?.map_or(Carried::Unnamed, |(client, volume)| Carried::By { client, volume, mapped }))
    }
}

/// As whom an image is written to, and the number of the volume whose it is; nothing if nobody has come to know.
fn named(folder: &Path) -> Result<Option<(ClientAddress, Uuid)>> {
    let path = folder.join(CLIENT);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(os(format_args!("cannot read {}", path.display())))?,
    };
    let damaged = || Error::internal(format!("{} is damaged", path.display()));
    let (client, volume) = text.split_once(' ').ok_or_else(damaged)?;
    Ok(Some((client.parse()?, volume.parse().map_err(|_| damaged())?)))
}

/// The kernel's device of a mapping that was written into this folder.
fn mapped(folder: &Path, mapping: &Mapping) -> Result<Option<Mapped>> {
    mapping.mapped(named(folder)?.map(|(client, _)| client))
}

/// Whether the device of this number is the kernel's for this folder.
pub fn is_mapped_as(folder: &Path, number: DeviceNumber) -> bool {
    let found = Mapping::read(folder).and_then(|mapping| mapping.map_or(Ok(None), |mapping| mapped(folder, &mapping)));
    found.is_ok_and(|found| found.is_some_and(|found| found.number == number))
}

/// What came of a start.
#[derive(Serialize, Deserialize)]
pub struct Started {
    /// The kernel's device. A process does not say as whom it writes.
    pub mapped: Option<Mapped>,
    /// Why it is not the kernel, which could have been.
    pub why_not: Option<String>,
}

/// Has an image carried, and waits until it can be used.
#[derive(Serialize, Deserialize)]
pub struct Start {
    /// By what.
    pub way: Way,
    /// Its folder.
    pub folder: PathBuf,
    /// The image's pool.
    pub place: Place,
    /// The image.
    pub image: String,
}

impl Task for Start {
    const NAME: &'static str = "ceph.start";
    type Output = Started;

    fn run(self) -> Result<Started> {
        let Start { way, folder, place: Place { access, pool }, image } = self;
        let what = format!("cannot make {}", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(os(&what))?;
        // The key is where the configuration says, or where ours does.
        let mut conf = std::fs::read_to_string(&access.conf).map_err(os(format_args!("cannot read {}", access.conf.display())))?;
        conf.push_str(&format!("\n[client.{}]\nclient mount timeout = {}\n", access.user, START.as_secs() / 2));
        if let Some(keyring) = &access.keyring {
            conf.push_str(&format!("keyring = {}\n", keyring.display()));
        }
        std::fs::write(folder.join(CONF), conf).map_err(os(&what))?;
        File::create(folder.join(DEVICE)).map_err(os(&what))?;
        let mut why_not = None;
        if way == Way::Kernel || way == Way::Auto && kernel::is_here() {
            let why = kernel::map(&folder, &folder.join(CONF), &access.user, &pool, &image)?;
            if let Some(mapped) = Mapping::read(&folder)?.map_or(Ok(None), |mapping| mapping.mapped(None))? {
                return Ok(Started { mapped: Some(mapped), why_not: None });
            }
            let why = why.unwrap_or_else(|| "it is mapped, and the kernel does not show it".to_owned());
            if way == Way::Kernel {
                clear(&folder)?;
                let next = "look at the kernel's log, and whether the package ceph-common is installed; or leave 'attach' out of the driver's settings";
                return Err(Error::unavailable(format!("the kernel cannot map image {image:?} of pool {pool:?}: {why}"), next));
            }
            std::fs::remove_file(folder.join(MAPPING)).map_err(os(&what))?;
            why_not = Some(why);
        }
        let blockdev = json!({
            "driver": "rbd",
            "node-name": "volume",
            "pool": pool,
            "image": image,
            "conf": folder.join(CONF),
            "user": access.user,
            "discard": "unmap",
            // Nothing is kept in a process that may die.
            "cache": { "direct": true },
        });
        let said = File::options().create(true).truncate(true).write(true).mode(0o600).open(folder.join(SAID)).map_err(os(&what))?;
        let mut command = carrier(PROGRAM);
        command.args(["--blockdev", &blockdev.to_string(), "--export", &export(&folder), "--daemonize", "--pidfile"]);
        command.arg(folder.join(PID)).stdout(Stdio::null()).stderr(said);
        let status = to_background(&mut command, START).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::unavailable(
                format!("there is neither an rbd module in this kernel nor {PROGRAM} on this node"),
                "install the packages qemu-system-common and qemu-block-extra",
            ),
            _ => os(format_args!("cannot start {PROGRAM}"))(e),
        })?;
        let Some(status) = status else {
            // The one that was waited for.
            end(&folder, Duration::ZERO)?;
            let detail = format!("image {image:?} of pool {pool:?} could not be opened within {} s", START.as_secs());
            return Err(Error::unavailable(detail, "look at 'ceph status' and at the network to its storage daemons"));
        };
        if status.success() {
            return Ok(Started { mapped: None, why_not });
        }
        let said = std::fs::read_to_string(folder.join(SAID)).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it said nothing").chars().take(300).collect::<String>();
        clear(&folder)?;
        let next = format!("look at the image with 'rbd info {pool}/{image}', and at the key of client.{}", access.user);
        Err(Error::unavailable(format!("{PROGRAM} cannot show image {image:?} of pool {pool:?}: {last}"), next))
    }
}

/// Writes down as whom the process writes: from now on it is used.
#[derive(Serialize, Deserialize)]
pub struct Tell {
    /// Its folder.
    pub folder: PathBuf,
    /// As whom.
    pub client: ClientAddress,
    /// To which volume's image: its number, for another may have had its name.
    pub volume: Uuid,
}

impl Task for Tell {
    const NAME: &'static str = "ceph.tell";
    type Output = ();

    fn run(self) -> Result<()> {
        let Tell { folder, client, volume } = self;
        let (path, new) = (folder.join(CLIENT), folder.join("client.new"));
        let write = || std::fs::write(&new, format!("{client} {volume}")).and_then(|()| std::fs::rename(&new, &path));
        write().map_err(os(format_args!("cannot write {}", path.display())))
    }
}

/// Ends what carries an image, when nothing uses that any more, and takes its folder away.
#[derive(Serialize, Deserialize)]
pub struct End {
    /// Its folder.
    pub folder: PathBuf,
}

impl Task for End {
    const NAME: &'static str = "ceph.end";
    type Output = Ended;

    fn run(self) -> Result<Ended> {
        if let Some(mapping) = Mapping::read(&self.folder)? {
            let mapped = mapped(&self.folder, &mapping)?;
            if let Some(mapped) = &mapped
                && !kernel::unmap(mapped)?
            {
                return Ok(Ended::Open);
            }
            clear(&self.folder)?;
            // Who unmapped it may have been in a hurry.
            return Ok(if mapped.is_some() { Ended::InOrder } else { Ended::Killed });
        }
        end(&self.folder, END)?;
        let in_order = !self.folder.join(PID).exists();
        clear(&self.folder)?;
        Ok(if in_order { Ended::InOrder } else { Ended::Killed })
    }
}

/// Ends it, if it runs.
fn end(folder: &Path, patience: Duration) -> Result<()> {
    let Some(pid) = process(folder)? else { return Ok(()) };
    let failed = |e: rustix::io::Errno| Error::os(format_args!("cannot end {PROGRAM} (pid {})", pid.as_raw_nonzero()), &e.into());
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    // From here on the number cannot become another's; it may have before.
    if process(folder)? != Some(pid) {
        return Ok(());
    }
    let ended_by = |signal, patience: Duration| -> Result<bool> {
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(failed(e)),
        }
        let seconds = patience.as_secs().cast_signed();
        let patience = Timespec { tv_sec: seconds, tv_nsec: patience.subsec_nanos().into() };
        Ok(rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).map_err(failed)? > 0)
    };
    if !patience.is_zero() && ended_by(Signal::TERM, patience)? {
        return Ok(());
    }
    if ended_by(Signal::KILL, END)? {
        return Ok(());
    }
    Err(Error::unavailable(format!("{PROGRAM} (pid {}) does not die", pid.as_raw_nonzero()), "look what it waits for in the kernel"))
}

/// Takes away what a process that has ended leaves.
fn clear(folder: &Path) -> Result<()> {
    let what = format!("cannot take {} away", folder.display());
    match rustix::mount::unmount(folder.join(DEVICE), rustix::mount::UnmountFlags::NOFOLLOW) {
        // It did so itself.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(os(what)(e.into())),
    }
    for file in [DEVICE, PID, CLIENT, "client.new", CONF, SAID, MAPPING, "mapping.new"] {
        match std::fs::remove_file(folder.join(file)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(os(what)(e)),
            _ => {}
        }
    }
    match std::fs::remove_dir(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(os(what)(e)),
        _ => Ok(()),
    }
}

/// Has the process that carries an image make it longer, if it is shorter: then it knows.
#[derive(Serialize, Deserialize)]
pub struct Lengthen {
    /// Its folder.
    pub folder: PathBuf,
    /// How long it is to be at least.
    pub size: Bytes,
}

impl Task for Lengthen {
    const NAME: &'static str = "ceph.lengthen";
    type Output = ();

    fn run(self) -> Result<()> {
        let path = self.folder.join(DEVICE);
        let what = format!("cannot lengthen {}", path.display());
        let file = File::options().write(true).open(&path).map_err(os(&what))?;
        if file.metadata().map_err(os(&what))?.len() < self.size.0 {
            file.set_len(self.size.0).map_err(os(&what))?;
        }
        Ok(())
    }
}

/// The volumes whose images are on this node, and the kernel's devices of those that it carries.
#[derive(Serialize, Deserialize)]
pub struct All {
    /// The folder of their folders.
    pub folder: PathBuf,
}

impl Task for All {
    const NAME: &'static str = "ceph.all";
    type Output = Vec<(VolumeName, Option<Mapped>)>;

    fn run(self) -> Result<Self::Output> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(os(format_args!("cannot list {}", self.folder.display())))?,
        };
        let all = entries.flatten().filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        let mapped = |folder: &Path| Mapping::read(folder)?.map_or(Ok(None), |mapping| mapped(folder, &mapping));
        all.map(|(name, folder)| Ok((name, mapped(&folder)?))).collect()
    }
}
