//! An image as a block device: mapped by the kernel ([`kernel`]) or, where it has no rbd, by a process. Where the kernel has nbd, that
//! is `rbd-nbd` ([`nbd`]); elsewhere `qemu-storage-daemon` shows it as a file over FUSE, and a loop device is put on that file.
//!
//! Such a process carries the volume's data. It is nobody's child, outlives the daemon, and is found again by its folder, which
//! stands in its command line. What is known of it lies in that folder, beside the file that it serves.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunnage_host::DeviceNumber;
use dunnage_host::helpers::Task;
use dunnage_model::{Bytes, Error, Result, VolumeName};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::ClientAddress;
use crate::kernel::{self, MAPPING, Mapped, Mapping};
use crate::nbd::{self, NBD};
use crate::start::{CONF, SAID};

/// The program.
pub const PROGRAM: &str = "qemu-storage-daemon";
/// The file that shows the image; a loop device is put on it.
pub const DEVICE: &str = "device";
/// Its process number, as it writes it itself. It takes it away as the last thing that it does, and who is killed does not.
pub const PID: &str = "pid";
/// As whom it writes. Nobody reads or writes through it before this is there.
const CLIENT: &str = "client";

/// How long it may take to end: whatever was to be written was flushed before.
const END: Duration = Duration::from_secs(5);

/// How many processes there may be: one that goes to the background is two.
const MOST: usize = 8;

/// By what an image is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By the first of the others that can.
    #[default]
    Auto,
    /// By the kernel's own client.
    Kernel,
    /// By `rbd-nbd`, as a device of the kernel's nbd.
    Nbd,
    /// By `qemu-storage-daemon`, as a file.
    Process,
}

/// A block device that a carrier makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its node.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
}

/// What carries an image, and lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// The kernel's own client.
    Kernel(Mapped),
    /// A process whose device this is.
    Nbd(Device),
    /// A process that shows it as a file.
    File,
}

impl Carrier {
    /// Its device, if it makes one itself.
    pub fn device(&self) -> Option<Device> {
        match self {
            Carrier::Kernel(mapped) => Some(mapped.device()),
            Carrier::Nbd(device) => Some(device.clone()),
            Carrier::File => None,
        }
    }
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
        /// By what.
        carrier: Carrier,
    },
    /// What carried it has died.
    Dead,
}

/// What an end came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It has closed the image, with every write of its own answered.
    InOrder,
    /// It has ended because it was told to. Whether that was in order, the cluster knows: who has closed an image is seen there no more.
    Told(ClientAddress),
    /// It was killed, by whomever, or could not write what it had: what it had sent may be on its way.
    Killed,
    /// It has not ended: the kernel's device is open.
    Open,
}

pub fn os(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// What it is told to serve: also what it is known by.
pub fn export(folder: &Path) -> String {
    json!({ "type": "fuse", "id": "volume", "node-name": "volume", "mountpoint": folder.join(DEVICE), "writable": true }).to_string()
}

/// Whether a command line is that of what carries the image of this folder. Its program need not come first: who puts it into a scope
/// becomes it, but not at once.
fn is_line(line: &[u8], folder: &Path) -> bool {
    let (export, conf) = (export(folder), folder.join(CONF));
    let words = || line.split(|byte| *byte == 0);
    let names = |program: &str| words().any(|word| Path::new(OsStr::from_bytes(word)).file_name() == Some(program.as_ref()));
    let has = |what: &[u8]| words().any(|word| word == what);
    names(PROGRAM) && has(export.as_bytes()) || names(nbd::PROGRAM) && has(conf.as_os_str().as_bytes())
}

/// Its process. What others run is not looked at, and what runs in a container is not ours, whatever words it was started with.
pub fn process(folder: &Path) -> Result<Option<Pid>> {
    let namespace = |of: &Path| std::fs::read_link(of.join("ns/pid")).ok();
    let ours = namespace(Path::new("/proc/self"));
    let is_it = |pid: &Pid| {
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        is_line(&std::fs::read(proc.join("cmdline")).unwrap_or_default(), folder)
            && std::fs::metadata(&proc).is_ok_and(|found| found.uid() == geteuid().as_raw())
            && namespace(&proc) == ours
    };
    let number = |text: &str| text.trim().parse().ok().and_then(Pid::from_raw);
    let written = [PID, NBD].iter().find_map(|file| number(&std::fs::read_to_string(folder.join(file)).ok()?));
    if let Some(pid) = written.filter(is_it) {
        return Ok(Some(pid));
    }
    // It may not have come as far as that.
    let all = std::fs::read_dir("/proc").map_err(os("cannot list /proc"))?;
    Ok(all.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).find(is_it))
}

/// What carries the image of this folder, and lives.
fn carrier_of(folder: &Path) -> Result<Option<Carrier>> {
    if let Some(mapping) = Mapping::read(folder)? {
        let client = named(folder)?.map(|(client, _)| client);
        return Ok(mapping.mapped(client)?.map(Carrier::Kernel));
    }
    let Some(pid) = process(folder)? else { return Ok(None) };
    if folder.join(NBD).exists() { Ok(nbd::device(pid).map(Carrier::Nbd)) } else { Ok(Some(Carrier::File)) }
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
        Ok(match (carrier_of(&folder)?, named(&folder)?) {
            (Some(carrier), Some((client, volume))) => Carried::By { client, volume, carrier },
            (Some(_), None) => Carried::Unnamed,
            // It may not have come as far as a device.
            (None, None) if process(&folder)?.is_some() => Carried::Unnamed,
            (None, _) => Carried::Dead,
        })
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

/// Whether the device of this number is what carries the image of this folder.
pub fn has_device(folder: &Path, number: DeviceNumber) -> bool {
    // Every driver is asked about every mount: most are none of its.
    if ![MAPPING, NBD].iter().any(|file| folder.join(file).exists()) {
        return false;
    }
    let device = carrier_of(folder).map(|carrier| carrier.and_then(|carrier| carrier.device()));
    device.is_ok_and(|device| device.is_some_and(|device| device.number == number))
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
        let folder = &self.folder;
        let carrier = carrier_of(folder)?;
        if Mapping::read(folder)?.is_some() {
            if let Some(Carrier::Kernel(mapped)) = &carrier
                && !kernel::unmap(mapped)?
            {
                return Ok(Ended::Open);
            }
            clear(folder)?;
            // Who unmapped it may have been in a hurry.
            return Ok(if carrier.is_some() { Ended::InOrder } else { Ended::Killed });
        }
        // Who is told to end lets go of its device, whoever uses that; from here on nobody begins to.
        let kept = match &carrier {
            Some(Carrier::Nbd(device)) => match nbd::keep(device)? {
                None => return Ok(Ended::Open),
                kept => kept,
            },
            _ => None,
        };
        let in_time = match &kept {
            Some(kept) => {
                let written = nbd::disconnect(kept)?;
                // (It may have been quick.)
                let ended = end(folder, How::Wait)?.unwrap_or(true);
                nbd::free(kept)?;
                written && ended
            }
            None => end(folder, How::Tell)?.unwrap_or(false),
        };
        let (client, by_nbd) = (named(folder)?, folder.join(NBD).exists());
        let was_killed = if by_nbd { !in_time } else { folder.join(PID).exists() };
        clear(folder)?;
        Ok(match client {
            _ if was_killed => Ended::Killed,
            Some((client, _)) if by_nbd => Ended::Told(client),
            _ => Ended::InOrder,
        })
    }
}

/// How a process is brought to its end. Whoever has not ended after a while is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is told to.
    Tell,
    /// It knows already. (To be told in the middle of its end would be its death.)
    Wait,
    /// It is killed at once.
    Kill,
}

/// Ends it, if it runs: one after the other, where it has not gone to the background yet. Says whether it ended before it was killed;
/// nothing if it did not run.
pub fn end(folder: &Path, how: How) -> Result<Option<bool>> {
    let mut in_time = None;
    for _ in 0..MOST {
        let Some(pid) = process(folder)? else { return Ok(in_time) };
        in_time = Some(end_one(folder, pid, how)? && in_time.unwrap_or(true));
    }
    let detail = format!("what carries the image of {} is started again and again by somebody", folder.display());
    Err(Error::unavailable(detail, "find out who does ('ps ax'), and ask again"))
}

fn end_one(folder: &Path, pid: Pid, how: How) -> Result<bool> {
    let who = format!("what carries the image of {} (pid {})", folder.display(), pid.as_raw_nonzero());
    let failed = |e: Errno| Error::os(format_args!("cannot end {who}"), &e.into());
    // One that is gone by itself was killed by somebody else, for all that is known; unless it was on its way.
    let gone = how == How::Wait;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(gone),
        Err(e) => return Err(failed(e)),
    };
    // From here on the number cannot become another's; it may have before.
    if process(folder)? != Some(pid) {
        return Ok(gone);
    }
    let signal = |signal| match pidfd_send_signal(&pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(failed(e)),
    };
    let ends = || {
        let patience = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).map(|ready| ready > 0).map_err(failed)
    };
    if how == How::Tell {
        signal(Signal::TERM)?;
    }
    if how != How::Kill && ends()? {
        return Ok(true);
    }
    signal(Signal::KILL)?;
    if ends()? {
        return Ok(false);
    }
    Err(Error::unavailable(format!("{who} does not die"), "look what it waits for in the kernel"))
}

/// Takes a file away, if it is there.
pub fn forget(folder: &Path, file: &str) -> Result<()> {
    match std::fs::remove_file(folder.join(file)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(os(format_args!("cannot take {} away", folder.join(file).display()))(e)),
        _ => Ok(()),
    }
}

/// Takes away what a process that has ended leaves.
pub fn clear(folder: &Path) -> Result<()> {
    let what = format!("cannot take {} away", folder.display());
    match rustix::mount::unmount(folder.join(DEVICE), rustix::mount::UnmountFlags::NOFOLLOW) {
        // It did so itself.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(os(what)(e.into())),
    }
    for file in [DEVICE, PID, NBD, CLIENT, "client.new", CONF, SAID, MAPPING, "mapping.new"] {
        forget(folder, file)?;
    }
    match std::fs::remove_dir(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(os(what)(e)),
        _ => Ok(()),
    }
}

/// Waits until the device that a process serves is as long as its image.
#[derive(Serialize, Deserialize)]
pub struct WaitForSize {
    /// Its device.
    pub device: Device,
    /// How long that is to be at least.
    pub size: Bytes,
}

impl Task for WaitForSize {
    const NAME: &'static str = "ceph.wait-for-size";
    type Output = ();

    fn run(self) -> Result<()> {
        nbd::wait_for_size(&self.device, self.size)
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

/// The volumes whose images are on this node, and what carries them.
#[derive(Serialize, Deserialize)]
pub struct All {
    /// The folder of their folders.
    pub folder: PathBuf,
}

impl Task for All {
    const NAME: &'static str = "ceph.all";
    type Output = Vec<(VolumeName, Option<Carrier>)>;

    fn run(self) -> Result<Self::Output> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(os(format_args!("cannot list {}", self.folder.display())))?,
        };
        let all = entries.flatten().filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        all.map(|(name, folder)| Ok((name, carrier_of(&folder)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_program_and_its_folder_and_by_nothing_less() {
        let folder = Path::new("/run/dunnage/devices/pxd/pg");
        let is_it = |words: &[&str]| is_line(words.join("\0").as_bytes(), folder);
        let (conf, export) = ("/run/dunnage/devices/pxd/pg/ceph.conf", export(folder));
        assert!(is_it(&["rbd-nbd", "map", "--conf", conf, "--id", "dunnage", "rbd/pg"]));
        assert!(is_it(&["systemd-run", "--scope", "--", "/usr/bin/rbd-nbd", "map", "--conf", conf]));
        assert!(is_it(&["qemu-storage-daemon", "--export", &export, "--daemonize"]));
        for other in [
            vec!["rbd-nbd", "map", "--conf", "/run/dunnage/devices/pxd/pg2/ceph.conf"],
            vec!["rbd", "--conf", conf, "device", "map"],
            vec!["qemu-storage-daemon", "--blockdev", conf],
            vec!["qemu-storage-daemon", conf],
            vec!["tail", &export],
            vec![""],
        ] {
            assert!(!is_it(&other), "{other:?}");
        }
    }
}
