//! The few calls that rustix has no safe words for, and the ones that everybody here needs.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dunnage_model::{Error, Result};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use crate::{DeviceNumber, FileId};

/// Opens what lies beneath `folder`, following no link and leaving it by no `..`.
pub fn open_beneath(folder: &Path, relative: &Path, flags: OFlags) -> io::Result<File> {
    let dir = rustix::fs::openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(File::from(rustix::fs::openat2(&dir, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?))
}

/// Tries again for half a second what is in use. Much that is, is only for a moment: somebody looks at a device, as udev does,
/// a namespace with a copy of a mount is taken down, a process ends, or a program with an open file has just forked, and its
/// child holds that file too until it has executed another program (measured: 3,191 of 381,534 unmounts met one that started
/// programs all the time; 20 ms were the longest on a machine with twice as much to do as it has processors).
pub fn patiently<T>(mut once: impl FnMut() -> Result<T>, in_use: impl Fn(&T) -> bool) -> Result<T> {
    for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let outcome = once()?;
        if !in_use(&outcome) {
            return Ok(outcome);
        }
        std::thread::sleep(Duration::from_millis(pause));
    }
    once()
}

/// `FS_IOC_SHUTDOWN` without a flush of anything: nothing is written after it.
pub fn shut_down(filesystem: impl AsFd) -> rustix::io::Result<()> {
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: _IOR('X', 125, __u32): the kernel reads one number.
    unsafe { rustix::ioctl::ioctl(filesystem, rustix::ioctl::Setter::<0x8004_587D, u32>::new(NO_LOG_FLUSH)) }
}

/// A file's identity.
pub fn file_id(file: impl AsFd) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(file)?;
    Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
}

/// The number of the block device behind a descriptor.
pub fn device_number(file: impl AsFd) -> io::Result<DeviceNumber> {
    let stat = rustix::fs::fstat(file)?;
    Ok(DeviceNumber::new(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
}

/// Whether nobody but this descriptor has the file open, loop devices included: a write lease is given only then
/// (fcntl(2), F_SETLEASE). It costs the same with one loop device as with ten thousand.
///
/// `None` where the filesystem gives no leases.
pub fn free_of_others(file: &File) -> io::Result<Option<bool>> {
    let lease = |kind: c_int| -> io::Result<()> {
        // SAFETY: F_SETLEASE takes an integer and touches no memory of ours; the descriptor is open.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    match lease(c_int::from(libc::F_WRLCK)) {
        Ok(()) => {
            lease(c_int::from(libc::F_UNLCK))?;
            Ok(Some(true))
        }
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(Some(false)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// How many of the bytes written to a unix socket its peer has not read yet (SIOCOUTQ, unix(7)).
pub fn unread_by_peer(socket: impl AsFd) -> io::Result<u32> {
    let mut unread: c_int = 0;
    // SAFETY: 0x5411 (SIOCOUTQ) writes one int, which is what the updater points to.
    unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Updater::<0x5411, c_int>::new(&mut unread)) }?;
    Ok(u32::try_from(unread).unwrap_or(0))
}

/// In what blocks the kernel reads a device (BLKBSZSET).
pub fn set_block_size(device: &File, bytes: c_int) -> rustix::io::Result<()> {
    // SAFETY: 0x40081271 reads one int, which is what the setter points to.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<0x4008_1271, c_int>::new(bytes)) }
}

/// A detached copy of the mount at `root` that can be written through, while the one at `root` cannot.
///
/// Our folder of mounts is a tmpfs mounted read only; this is the only way to make a folder on it.
pub fn writable_clone(root: &Path) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    let tree = rustix::mount::open_tree(CWD, root, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    mount_setattr(&tree, 0, &attributes)?;
    Ok(tree)
}

/// A mount of a folder alone, attached nowhere, with these attributes and no others.
pub fn folder_clone(folder: BorrowedFd<'_>, attributes: rustix::mount::MountAttrFlags) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(folder, "", flags)?;
    let set = u64::from(attributes.bits());
    let times = if set & libc::MOUNT_ATTR__ATIME == 0 { 0 } else { libc::MOUNT_ATTR__ATIME };
    let attributes = libc::mount_attr { attr_set: set, attr_clr: times, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    mount_setattr(&tree, 0, &attributes)?;
    Ok(tree)
}

/// Makes the root of a tree of mounts read only, and all of it shared.
pub fn sealed(tree: &OwnedFd) -> io::Result<()> {
    let shared = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_SHARED, userns_fd: 0 };
    mount_setattr(tree, libc::AT_RECURSIVE, &shared)?;
    mount_setattr(tree, 0, &libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

fn mount_setattr(tree: &OwnedFd, flags: libc::c_int, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the pointer and the size are those of a mount_attr that lives until the call returns; the path is empty
    // and AT_EMPTY_PATH makes the kernel use the descriptor, which is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An error of the operating system, in words.
pub fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// The same for rustix.
pub fn refused(what: impl std::fmt::Display) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |e| Error::os(what, &io::Error::from(e))
}

/// `None` where there is no such thing.
pub fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// LOOP_CTL_GET_FREE: the number of a loop that is free right now.
pub struct LoopGetFree;

// SAFETY: the call takes no argument and writes nothing of ours; its answer is the return value.
unsafe impl Ioctl for LoopGetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        0x4C82
    }
    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::INVAL)
    }
}

/// LOOP_CTL_ADD with no number: a loop that was not there before, and its number.
pub struct LoopAdd;

// SAFETY: the call takes a number instead of a pointer (here -1, which asks for any) and writes nothing of ours; its
// answer is the return value.
unsafe impl Ioctl for LoopAdd {
    type Output = u32;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        0x4C80
    }
    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(usize::MAX)
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::INVAL)
    }
}

/// LOOP_CLR_FD: let go of the file; later, if somebody has the device open.
pub struct LoopClear;

// SAFETY: the call takes no argument and writes nothing of ours.
unsafe impl Ioctl for LoopClear {
    type Output = ();
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        0x4C01
    }
    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// `struct loop_info64` of include/uapi/linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopInfo {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    pub offset: u64,
    pub size_limit: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    pub flags: u32,
    pub file_name: [u8; 64],
    pub crypt_name: [u8; 64],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

/// `struct loop_config` of include/uapi/linux/loop.h.
#[repr(C)]
pub struct LoopConfig {
    pub fd: u32,
    pub block_size: u32,
    pub info: LoopInfo,
    pub reserved: [u64; 8],
}

pub const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Whoever closes the device last detaches it.
pub const LO_FLAGS_AUTOCLEAR: u32 = 4;

impl LoopInfo {
    pub fn zeroed() -> Self {
        LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// LOOP_CONFIGURE: all in one call, so that nobody sees a half-made loop.
pub fn loop_configure(device: &File, config: LoopConfig) -> rustix::io::Result<()> {
    // SAFETY: 0x4C0A reads one loop_config, which is what the setter points to.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<0x4C0A, LoopConfig>::new(config)) }
}

/// LOOP_GET_STATUS64, or nothing when no file is attached.
pub fn loop_status(device: &File) -> io::Result<Option<LoopInfo>> {
    let mut info = LoopInfo::zeroed();
    // SAFETY: 0x4C05 writes one loop_info64, which is what the updater points to.
    let done = unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Updater::<0x4C05, LoopInfo>::new(&mut info)) };
    absent(done.map_err(io::Error::from).map(|()| info))
}

/// LOOP_SET_CAPACITY: it looks again how long its file is.
pub fn loop_set_capacity(device: &File) -> rustix::io::Result<()> {
    // SAFETY: the call takes no argument and writes nothing of ours.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::NoArg::<0x4C07>::new()) }
}

/// LOOP_SET_STATUS64.
pub fn loop_set_status(device: &File, info: LoopInfo) -> rustix::io::Result<()> {
    // SAFETY: 0x4C04 reads one loop_info64, which is what the setter points to.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<0x4C04, LoopInfo>::new(info)) }
}

/// The only right to change what is in a folder, until it is dropped: two processes that were told the same, one of them by
/// a daemon that has died since, do it one after the other.
pub fn lock_folder(folder: &Path) -> Result<File> {
    let what = || format!("cannot lock {}", folder.display());
    let file = File::open(folder).map_err(failed(what()))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(refused(what()))?;
    Ok(file)
}

/// Runs one of the loop calls that take nothing.
pub fn loop_call<I: Ioctl>(device: &File, call: I) -> rustix::io::Result<I::Output> {
    // SAFETY: the two calls above are declared with what they take and give.
    unsafe { rustix::ioctl::ioctl(device, call) }
}

/// A command of a program that carries volumes, and so outlives this one. Where systemd has this one in a service, the program gets a
/// scope of its own, so that nothing that befalls the service befalls the volumes; and none of the usual orders, by which a scope
/// would be ended at the beginning of a shutdown, under the containers.
pub fn carrier(program: &str) -> Command {
    let ours = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if !ours.lines().any(|line| line.ends_with(".service")) || !Path::new("/run/systemd/system").is_dir() {
        return Command::new(program);
    }
    let mut command = Command::new("systemd-run");
    command.args(["--scope", "--quiet", "--collect", "--property=DefaultDependencies=no", "--", program]);
    command
}

/// Starts a program that goes to the background by itself, and waits until it has: nothing when it takes longer than that, and then
/// the one that was to go is killed, and whom it has left behind is the caller's to find. It gets a clean environment.
pub fn to_background(command: &mut Command, patience: Duration) -> io::Result<Option<ExitStatus>> {
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    let (mut child, begun) = (command.spawn()?, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
