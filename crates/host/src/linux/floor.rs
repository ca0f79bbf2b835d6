//! The same system calls with nothing around them: what a mount and an unmount cost when nobody looks, remembers or
//! checks. For the bench, which shows ours beside it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use super::sys::{LO_FLAGS_DIRECT_IO, LoopClear, LoopConfig, LoopGetFree, LoopInfo, loop_call, loop_configure};

/// A mount that was made here.
pub struct Bare {
    device: File,
}

/// Opens an image, configures a loop with our flags, and mounts it with our options at an existing folder.
pub fn mount(image: &Path, target: &Path) -> io::Result<Bare> {
    let file = File::options().read(true).write(true).open(image)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let number = loop_call(&control, LoopGetFree)?;
    let path = format!("/dev/loop{number}");
    let device = File::options().read(true).write(true).open(&path)?;
    let info = LoopInfo { flags: LO_FLAGS_DIRECT_IO, ..LoopInfo::zeroed() };
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    loop_configure(&device, LoopConfig { fd, block_size: 0, info, reserved: [0; 8] })?;
    rustix::mount::mount(&path, target, "ext4", MountFlags::NOSUID | MountFlags::NODEV, c"discard")?;
    Ok(Bare { device })
}

/// Unmounts and clears the loop.
pub fn unmount(bare: Bare, target: &Path) -> io::Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?;
    loop_call(&bare.device, LoopClear)?;
    Ok(())
}
