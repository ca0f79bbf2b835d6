//! Mounting and unmounting, by descriptors where the kernel allows it.
//!
//! Our folder of mounts is a tmpfs of our own, mounted read only and shared: a mountpoint with nothing on it cannot be
//! written to by anybody, an unmount reaches every namespace that listens, and nothing is left on the host's disk.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use dunnage_model::{Bytes, Error, FsKind, Kind, MountOptions, PublishMode, Result};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::sys::{device_number, failed, folder_clone, patiently, refused, set_block_size, writable_clone};
use super::tools::probe_file;
use crate::crash;
use crate::helpers::Task;
use crate::{DeviceNumber, Medium, MountRequest, MountedAt, Probe, Space, Target, Tried, Unmounted, signature};

/// What our tmpfs is called in the table of mounts.
pub const SOURCE: &str = "dunnage";

/// What is mounted at a target: one statx(2), however many mounts there are.
pub fn at(target: &Target) -> Result<Option<MountedAt>> {
    let path = target.path();
    // The kernel is not to ask the filesystem, which may hang; it knows by itself what is mounted where.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = if target.medium == Medium::Folder { StatxFlags::MNT_ID | StatxFlags::INO } else { StatxFlags::MNT_ID };
    let stat = match rustix::fs::statx(CWD, &path, flags, wanted) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(refused(format_args!("cannot look at {}", path.display()))(e)),
    };
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(None);
    }
    let mut device = DeviceNumber::new(stat.stx_dev_major, stat.stx_dev_minor);
    if target.medium == Medium::Folder {
        device.folder = Some(stat.stx_ino);
    } else if device.major == 0 {
        device = super::table::behind(device, &source(&path, stat.stx_mnt_id)?);
    }
    Ok(Some(MountedAt { device, mount_id: stat.stx_mnt_id }))
}

/// What was mounted at a path, by the kernel's tables.
fn source(path: &Path, id: u64) -> Result<PathBuf> {
    let told = || -> std::io::Result<Option<PathBuf>> {
        match super::statmount::unique_id(path)? {
            Some(unique) => Ok(super::statmount::look(unique)?.map(|mount| mount.source)),
            None => Ok(None),
        }
    };
    if let Some(source) = told().map_err(failed(format_args!("cannot look at {}", path.display())))? {
        return Ok(source);
    }
    let line = super::table::read()?.into_iter().find(|line| line.id == id);
    Ok(line.map(|line| line.source.into()).unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
pub struct ShutDown {
    pub target: Target,
    pub device: DeviceNumber,
}

impl Task for ShutDown {
    const NAME: &'static str = "mount.shut-down";
    type Output = bool;

    fn run(self) -> Result<bool> {
        let path = self.target.path();
        let what = format!("cannot shut {} down", path.display());
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match rustix::fs::openat(CWD, &path, open, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(refused(what)(e)),
        };
        // What is open stays what it is, whatever is mounted there meanwhile.
        let stat = rustix::fs::fstat(&root).map_err(refused(&what))?;
        if DeviceNumber::new(rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) != self.device {
            return Ok(false);
        }
        match super::sys::shut_down(root.as_fd()) {
            Ok(()) => Ok(true),
            // btrfs learned it in 6.17.
            Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(refused(what)(e)),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub struct SpaceOf {
    pub target: Target,
}

impl Task for SpaceOf {
    const NAME: &'static str = "mount.space";
    type Output = Space;

    fn run(self) -> Result<Space> {
        space_at(&self.target.path())
    }
}

/// What the filesystem that has this path says of its space. It asks the filesystem, so it belongs into a helper.
pub fn space_at(path: &Path) -> Result<Space> {
    let stat = rustix::fs::statvfs(path).map_err(refused(format_args!("cannot ask {} for its space", path.display())))?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.f_frsize));
    Ok(Space { total: bytes(stat.f_blocks), used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)), available: bytes(stat.f_bavail) })
}

#[derive(Serialize, Deserialize)]
pub struct Mount {
    pub request: MountRequest,
}

impl Task for Mount {
    const NAME: &'static str = "mount.mount";
    type Output = Tried;

    fn run(self) -> Result<Tried> {
        if self.request.fs == FsKind::Folder {
            return mount_folder(&self.request);
        }
        let MountRequest { device, number, fs, uuid, target, mode, discard, options, root_path } = &self.request;
        let what = format!("cannot mount {} at {}", device.display(), target.path().display());
        // Held open over the mount: the number cannot become another device's, and what is read here is not read from
        // the disk again.
        let mut held = File::open(device).map_err(failed(&what))?;
        let now = device_number(&held).map_err(failed(&what))?;
        if now != *number {
            return Err(Error::internal(format!("{what}: it is device {now} now, and was {number}")));
        }
        // Another helper may be at it, of a daemon that died while it hung; and udev keeps away while it is locked
        // (systemd's "Locking Block Device Access").
        rustix::fs::flock(&held, FlockOperation::LockExclusive).map_err(refused(&what))?;
        if let Some(there) = at(target)? {
            return if there.device == *number {
                Ok(Tried::Mounted(there))
            } else {
                Err(Error::internal(format!("{what}: device {} is mounted there", there.device)))
            };
        }
        if *fs == FsKind::Ext4 {
            // ext4 begins with blocks of this size, and the kernel forgets what it has read in blocks of another: so the
            // superblock is read from the disk once less. That it is refused is no harm.
            let _ = set_block_size(&held, 1024);
        }
        match probe_file(&mut held).map_err(failed(&what))? {
            Probe::Known(known) if known.fs == *fs && known.uuid == *uuid && !known.has_errors => {}
            other => return Ok(Tried::Found(other)),
        }
        let mountpoint = make_mountpoint(target).map_err(failed(&what))?;
        crash::pass(format_args!("helper/mount.mount/mountpoint"));

        let context = rustix::mount::fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused(&what))?;
        let configure = || -> rustix::io::Result<OwnedFd> {
            if *discard {
                match fs {
                    FsKind::Ext4 | FsKind::Xfs => rustix::mount::fsconfig_set_flag(context.as_fd(), "discard")?,
                    FsKind::Btrfs => rustix::mount::fsconfig_set_string(context.as_fd(), "discard", "async")?,
                    FsKind::Folder => {}
                }
            }
            let mut attributes = MountAttrFlags::empty();
            if *mode == PublishMode::ReadOnly {
                rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            create(&context, device, options, attributes)
        };
        let mounted = match configure() {
            Ok(mounted) => mounted,
            Err(e) => {
                let said = kernel_says(&context);
                remove_mountpoint(target);
                if let Some(error) = too_fine(device, *fs, &what) {
                    return Err(error);
                }
                let error = refused(format_args!("{what}{said}"))(e);
                return Err(if error.word() == "internal" {
                    Error::unavailable(
                        error.detail,
                        "the filesystem may be damaged: look at 'dmesg', and keep a copy of the volume before repairing it",
                    )
                } else {
                    error
                });
            }
        };
        crash::pass(format_args!("helper/mount.mount/nowhere"));
        if let (Some(inside), PublishMode::ReadWrite) = (root_path, mode) {
            // Somebody may have taken it away; REX-Ray made it anew with every mount.
            make_inside(mounted.as_fd(), inside.as_str()).map_err(refused(format_args!("cannot make {inside} in the volume")))?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mounted.as_fd(), "", mountpoint.as_fd(), "", flags).map_err(refused(&what))?;
        let mounted = at(target)?;
        mounted.map(Tried::Mounted).ok_or_else(|| Error::internal(format!("{what}: the kernel said yes, and nothing is mounted there")))
    }
}

/// The number of a folder, without waiting for its filesystem where that can be helped.
pub fn folder_number(path: &Path) -> Option<DeviceNumber> {
    number_of(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

fn number_of(at: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> Option<DeviceNumber> {
    let stat = rustix::fs::statx(at, path, flags | AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some(DeviceNumber::folder(stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

/// What of a folder's mount options its mount can have; all others are a filesystem's, which is not its own.
pub fn folder_attributes(options: &MountOptions) -> Result<MountAttrFlags> {
    let mut attributes = MountAttrFlags::empty();
    for (key, value) in options.iter() {
        match (ATTRIBUTES.iter().find(|(word, _)| *word == key), value) {
            (Some((_, attribute)), None) => attributes |= *attribute,
            _ => {
                let known: Vec<&str> = ATTRIBUTES.iter().map(|(word, _)| *word).collect();
                let next = format!("known for a folder: {}", known.join(", "));
                return Err(Error::invalid("mountOptions", format!("a folder cannot be mounted with {key}"), next));
            }
        }
    }
    Ok(attributes)
}

/// Mounts a folder: a copy of its part of the tree, with attributes of its own, put into place.
fn mount_folder(request: &MountRequest) -> Result<Tried> {
    let MountRequest { device: folder, number, target, mode, options, root_path, .. } = request;
    let what = format!("cannot mount {} at {}", folder.display(), target.path().display());
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::openat(CWD, folder, open, Mode::empty()).map_err(refused(&what))?;
    // Another helper may be at it, of a daemon that died while it hung.
    rustix::fs::flock(&held, FlockOperation::LockExclusive).map_err(refused(&what))?;
    let now = number_of(held.as_fd(), Path::new(""), AtFlags::EMPTY_PATH);
    if now != Some(*number) {
        return Err(Error::internal(format!("{what}: it is {now:?} now, and was {number}")));
    }
    if let Some(there) = at(target)? {
        return if there.device == *number {
            Ok(Tried::Mounted(there))
        } else {
            Err(Error::internal(format!("{what}: {} is mounted there", there.device)))
        };
    }
    let mut attributes = folder_attributes(options)? | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if *mode == PublishMode::ReadOnly {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mountpoint = make_mountpoint(target).map_err(failed(&what))?;
    crash::pass(format_args!("helper/mount.mount/mountpoint"));
    let tree = folder_clone(held.as_fd(), attributes).map_err(failed(&what))?;
    if let (Some(inside), PublishMode::ReadWrite) = (root_path, mode) {
        make_inside(tree.as_fd(), inside.as_str()).map_err(refused(format_args!("cannot make {inside} in the volume")))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", mountpoint.as_fd(), "", flags).map_err(refused(&what))?;
    at(target)?.map(Tried::Mounted).ok_or_else(|| Error::internal(format!("{what}: the kernel said yes, and nothing is mounted there")))
}

/// The last steps of a mount that was configured: it is there, and nowhere in the table of mounts yet.
fn create(context: &OwnedFd, device: &Path, options: &MountOptions, mut attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    for (key, value) in options.iter() {
        match (ATTRIBUTES.iter().find(|(word, _)| *word == key), value) {
            (Some((_, attribute)), None) => attributes |= *attribute,
            (_, Some(value)) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?,
            (None, None) => rustix::mount::fsconfig_set_flag(context.as_fd(), key)?,
        }
    }
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", device)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Options that are the mount's; all others are the filesystem's.
const ATTRIBUTES: &[(&str, MountAttrFlags)] = &[
    ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
    ("strictatime", MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ("relatime", MountAttrFlags::MOUNT_ATTR_RELATIME),
    ("nosymfollow", MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Mounts a device where no path leads to. It is gone when the descriptor is.
pub fn mount_nowhere(fs: FsKind, device: &Path, options: &MountOptions, what: &str) -> Result<OwnedFd> {
    let open = || rustix::mount::fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC);
    let context = open().map_err(|e| match e {
        Errno::NODEV => Error::unavailable(format!("{what}: this kernel has no {fs}"), "use another filesystem, or another kernel"),
        e => refused(what)(e),
    })?;
    create(&context, device, options, MountAttrFlags::empty()).map_err(|e| {
        let said = kernel_says(&context);
        // Without them it can be mounted: they are at fault.
        let at_fault = !options.is_empty()
            && open().is_ok_and(|plain| create(&plain, device, &MountOptions::default(), MountAttrFlags::empty()).is_ok());
        if at_fault {
            let detail = format!("the kernel does not mount {fs} with {options}{said}");
            return Error::invalid("mountOptions", detail, "leave out what it does not know");
        }
        refused(format_args!("{what}{said}"))(e)
    })
}

/// The same for reading. Where its device is mounted for writing already it shares that superblock, and still cannot write.
pub fn mount_nowhere_readonly(fs: FsKind, device: &Path, what: &str) -> Result<OwnedFd> {
    let try_with = |readonly: bool| -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        if readonly {
            rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
            // Nothing is written, a dirty journal's replay included.
            match fs {
                FsKind::Ext4 => rustix::mount::fsconfig_set_flag(context.as_fd(), "noload")?,
                FsKind::Xfs => rustix::mount::fsconfig_set_flag(context.as_fd(), "norecovery")?,
                FsKind::Btrfs => rustix::mount::fsconfig_set_string(context.as_fd(), "rescue", "nologreplay")?,
                FsKind::Folder => {}
            }
        }
        create(&context, device, &MountOptions::default(), MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    match try_with(true) {
        // A superblock that is writable cannot be had for reading only: that is the mount's to say then.
        Err(Errno::BUSY) => try_with(false),
        outcome => outcome,
    }
    .map_err(|e| too_fine(device, fs, what).unwrap_or_else(|| refused(what)(e)))
}

/// Why a filesystem cannot be mounted whose blocks are smaller than the sectors of the disk beneath, if that is so: the kernel only
/// says "Invalid argument".
fn too_fine(device: &Path, fs: FsKind, what: &str) -> Option<Error> {
    let mut file = File::open(device).ok()?;
    let sector = rustix::fs::ioctl_blksszget(&file).ok()?;
    let mut head = vec![0; signature::HEAD];
    file.read_exact(&mut head).ok()?;
    let unit = signature::unit(&head).filter(|unit| *unit < sector)?;
    Some(Error::new(
        Kind::ExistsIncompatible,
        format!("{what}: its {fs} is made of blocks of {unit} bytes, and the disk that it is on has sectors of {sector}"),
        "mount it on a disk with smaller sectors, and copy its files into a new volume",
    ))
}

/// Makes a folder in a mounted filesystem, and those above it, and opens it. Nothing leads out: a link on the way is refused.
pub fn make_inside(root: BorrowedFd<'_>, relative: &str) -> rustix::io::Result<OwnedFd> {
    make_path(root, relative, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

/// Makes the folders of a path that are missing, each looked up anew from the root as `resolve` says, and gives the last.
pub fn make_path(root: BorrowedFd<'_>, relative: &str, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let open = |path: &str| rustix::fs::openat2(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut folder = open(".")?;
    let mut path = String::from(".");
    for part in relative.split('/') {
        path = format!("{path}/{part}");
        match rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => folder = open(&path)?,
            Err(e) => return Err(e),
        }
    }
    Ok(folder)
}

/// The kernel's own words about a mount that failed, as the new mount API gives them.
fn kernel_says(context: &OwnedFd) -> String {
    let Ok(context) = context.try_clone() else { return String::new() };
    let mut context = File::from(context);
    let mut said = String::new();
    let mut line = [0; 1024];
    while let Ok(n) = context.read(&mut line)
        && n > 0
    {
        let text = String::from_utf8_lossy(line.get(..n).unwrap_or_default());
        said.push_str(if said.is_empty() { ": " } else { ", " });
        // "e ext4: Unknown parameter …": a letter for how grave it is, then the words.
        said.push_str(["e ", "w ", "i "].iter().find_map(|grave| text.strip_prefix(grave)).unwrap_or(&text).trim());
    }
    said
}

/// Makes the folders down to a target and opens the last one.
fn make_mountpoint(target: &Target) -> std::io::Result<OwnedFd> {
    let mut made = false;
    loop {
        let root = rustix::fs::open(&target.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&root, &target.relative, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(mountpoint) => return Ok(mountpoint),
            Err(Errno::NOENT) if !made => {
                with_writable(&target.root, |root| make_folders(root, &target.relative))?;
                made = true;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

pub fn make_folders(root: BorrowedFd<'_>, relative: &Path) -> rustix::io::Result<()> {
    let mut path = PathBuf::new();
    for component in relative.components() {
        let Component::Normal(name) = component else { return Err(Errno::INVAL) };
        path.push(name);
        // Others may pass through to what they know the name of; they may not look around.
        match rustix::fs::mkdirat(root, &path, Mode::from_raw_mode(0o711)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes the mountpoint. That it stays is no harm (nobody can write to it), so nothing fails for it.
fn remove_mountpoint(target: &Target) {
    let _ = with_writable(&target.root, |root| rustix::fs::unlinkat(root, &target.relative, AtFlags::REMOVEDIR));
}

/// Does something through a writable view of our folder. The view is kept for the next time: taking it down costs an
/// RCU grace period, as every unmount does.
pub fn with_writable(root: &Path, work: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>) -> std::io::Result<()> {
    thread_local! {
        static KEPT: RefCell<Option<(PathBuf, MountedAt, OwnedFd)>> = const { RefCell::new(None) };
    }
    KEPT.with_borrow_mut(|kept| {
        let stat = rustix::fs::statx(CWD, root, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
        let now = MountedAt { device: DeviceNumber::new(stat.stx_dev_major, stat.stx_dev_minor), mount_id: stat.stx_mnt_id };
        let view = match kept.take() {
            Some((path, at, view)) if path == root && at == now => view,
            _ => writable_clone(root)?,
        };
        let done = work(view.as_fd());
        *kept = Some((root.to_owned(), now, view));
        Ok(done?)
    })
}

#[derive(Serialize, Deserialize)]
pub struct Unmount {
    pub target: Target,
    pub device: DeviceNumber,
}

impl Task for Unmount {
    const NAME: &'static str = "mount.unmount";
    type Output = Unmounted;

    fn run(self) -> Result<Unmounted> {
        patiently(|| self.once(), |outcome| *outcome == Unmounted::Busy)
    }
}

impl Unmount {
    fn once(&self) -> Result<Unmounted> {
        let Unmount { target, device } = self;
        let path = target.path();
        let what = format!("cannot unmount {}", path.display());
        match at(target)? {
            None => {
                remove_mountpoint(target);
                return Ok(Unmounted::NotThere);
            }
            Some(there) if there.device != *device => return Ok(Unmounted::Foreign(there.device)),
            Some(_) => {}
        }
        // The path leads over our own read-only tmpfs: nobody can have put a link there.
        match rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                crash::pass(format_args!("helper/mount.unmount/busy"));
                return Ok(Unmounted::Busy);
            }
            Err(e) => return Err(refused(&what)(e)),
        }
        crash::pass(format_args!("helper/mount.unmount/unmounted"));
        remove_mountpoint(target);
        // That umount(2) returned is not the superblock being gone: the detach that follows proves it.
        Ok(Unmounted::Done)
    }
}
