//! A process that carries an image, and the folder that is kept of it.
//!
//! It is nobody's child, outlives the daemon, and is found again by that folder, which stands in its command line.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunnage_model::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde_json::json;

/// Shows an image as a file.
pub const QEMU: &str = "qemu-storage-daemon";
/// Shows an image as a device of nbd.
pub const RBD_NBD: &str = "rbd-nbd";
/// The file that shows the image; a loop device is put on it.
pub const DEVICE: &str = "device";
/// Its process number, as it writes it itself. It takes it away as the last thing that it does, and who is killed does not.
pub const PID: &str = "pid";
/// Says that rbd-nbd carries the image, and its process number as soon as that is known.
pub const NBD: &str = "nbd";
/// What of an image the kernel was to map, written before it was.
pub const MAPPING: &str = "mapping";
/// As whom it writes. Nobody reads or writes through it before this is there.
pub const CLIENT: &str = "client";
/// The cluster's configuration, with the place of the key.
pub const CONF: &str = "ceph.conf";
/// What the command that began it said.
pub const SAID: &str = "said";

/// How long it may take to end: whatever was to be written was flushed before.
const END: Duration = Duration::from_secs(5);

/// How many processes there may be: one that goes to the background is two.
const MOST: usize = 8;

pub fn os(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// What QEMU's is told to serve: also what it is known by.
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
    names(QEMU) && has(export.as_bytes()) || names(RBD_NBD) && has(conf.as_os_str().as_bytes())
}

/// Its process. What others run is not looked at, and what runs in a container is not ours, whatever words it was started with.
pub fn find(folder: &Path) -> Result<Option<Pid>> {
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
        let Some(pid) = find(folder)? else { return Ok(in_time) };
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
    if find(folder)? != Some(pid) {
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
