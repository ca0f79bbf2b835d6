//! An image as a block device of the module `nbd`, which `rbd-nbd` serves: a process that carries it, as the one of QEMU, and a device as
//! of the kernel's own client. The kernel gives no device that is open to another process, not even when the one that served it has died.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use dunnage_host::DeviceNumber;
use dunnage_model::{Bytes, Error, Result};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, ioctl, opcode};
use rustix::process::Pid;

use crate::device::Device;
use crate::kernel::has_module;
use crate::process::RBD_NBD;

/// How long it may take to hear that an image has become longer.
const HEARS: Duration = Duration::from_secs(5);

/// Whether this node has all that it needs.
pub fn is_here() -> bool {
    let installed = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|folder| Path::new(folder).join(RBD_NBD).exists());
    installed && has_module("nbd", Path::new("/sys/module/nbd"))
}

/// The device that a process serves: it has it open as long as it does.
pub fn device(pid: Pid) -> Option<Device> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?;
    open.flatten().find_map(|entry| {
        let path = std::fs::read_link(entry.path()).ok().filter(|path| path.starts_with("/dev"))?;
        let metadata = std::fs::metadata(entry.path()).ok().filter(|metadata| metadata.file_type().is_block_device())?;
        let number = metadata.rdev();
        Some(Device { path, number: DeviceNumber::new(major(number), minor(number)) })
    })
}

/// Keeps everybody from beginning to use a device, as long as what this gives is kept; nothing if somebody uses it.
pub fn keep(device: &Device) -> Result<Option<File>> {
    match File::options().read(true).custom_flags(libc::O_EXCL).open(&device.path) {
        Ok(kept) => Ok(Some(kept)),
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Ok(None),
        Err(e) => Err(Error::os(format_args!("cannot open {}", device.path.display()), &e)),
    }
}

/// Has a device let go of its process, and says whether all that was written to it is there. (The process keeps the device open, so that
/// nobody's close is the last one, which would see to it.)
pub fn disconnect(kept: &File) -> Result<bool> {
    let synced = kept.sync_all().is_ok();
    // SAFETY: it takes nothing and gives nothing.
    match unsafe { ioctl(kept, NoArg::<{ opcode::none(b'\xab', 8) }>::new()) } {
        // It has none any more.
        Ok(()) | Err(Errno::INVAL) => Ok(synced),
        Err(e) => Err(Error::os("cannot disconnect a device of nbd", &e.into())),
    }
}

/// Gives a device back whose process has ended. (Of one that was made by netlink, as newer versions of the program do it, something stays
/// otherwise.)
pub fn free(kept: &File) -> Result<()> {
    // SAFETY: as above.
    unsafe { ioctl(kept, NoArg::<{ opcode::none(b'\xab', 4) }>::new()) }.map_err(|e| Error::os("cannot free a device of nbd", &e.into()))
}

/// Waits until a device is so long.
pub fn wait_for_size(device: &Device, size: Bytes) -> Result<()> {
    let (major, minor, begun) = (device.number.major, device.number.minor, Instant::now());
    let sectors = format!("/sys/dev/block/{major}:{minor}/size");
    loop {
        let read = std::fs::read_to_string(&sectors).map_err(|e| Error::os(format_args!("cannot read {sectors}"), &e))?;
        if read.trim().parse::<u64>().is_ok_and(|sectors| sectors.saturating_mul(512) >= size.0) {
            return Ok(());
        }
        if begun.elapsed() > HEARS {
            let detail = format!("{RBD_NBD} does not say that {} is longer now", device.path.display());
            return Err(Error::unavailable(detail, "ask again"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
