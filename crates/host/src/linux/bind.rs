//! A volume, shown in a container that is about to start: by a program that runs in the container's namespace of mounts, before what
//! the container runs does, and as root.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dunnage_model::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::mounts::make_path;
use super::sys::{failed, refused};

/// The filesystems of /proc and /sys, and the cgroups in it, by their magic numbers.
const KERNEL_S: [rustix::fs::FsWord; 4] = [libc::PROC_SUPER_MAGIC, libc::SYSFS_MAGIC, libc::CGROUP_SUPER_MAGIC, libc::CGROUP2_SUPER_MAGIC];

/// Which namespace of mounts this process is in.
pub fn mount_namespace() -> Result<u64> {
    const WHERE: &str = "/proc/self/ns/mnt";
    std::fs::metadata(WHERE).map(|found| found.ino()).map_err(failed(WHERE))
}

/// Shows what is at `source` at `target` beneath `root` as well, with all that is mounted in it; folders that are missing are made. With
/// `links` those on the way are followed, as far as they lead beneath the root; without, one on the way is an error. Nothing that is
/// swapped meanwhile makes it land elsewhere: the place is opened once, and what is opened is mounted on.
///
/// Only in another namespace than `outside`, which is what the host sees.
pub fn bind(source: &Path, root: &Path, target: &str, links: bool, outside: u64) -> Result<()> {
    let what = || format!("cannot show {} at {target:?} beneath {}", source.display(), root.display());
    if mount_namespace()? == outside {
        let detail = format!("{}: this is the host's own namespace of mounts, where everybody would see it", what());
        return Err(Error::invalid("namespace", detail, "run it in the container's"));
    }
    // What is mounted here is nobody else's to see, and what the host unmounts goes here, too.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(refused(what()))?;
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, source, copy).map_err(refused(what()))?;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, folder, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOENT => {
            Error::invalid("path", format!("{}: there is no such folder on this node", what()), "make it, or choose another path")
        }
        e => refused(what())(e),
    })?;
    let resolve = match links {
        true => ResolveFlags::IN_ROOT,
        false => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    let place = make_path(root.as_fd(), target.trim_matches('/'), resolve | ResolveFlags::NO_MAGICLINKS).map_err(|e| {
        let next = "choose a path of folders alone, without links that lead elsewhere";
        match e {
            rustix::io::Errno::NOENT => Error::invalid(
                "path",
                format!("{}: a link on the way leads to what is not there, or it cannot be made there", what()),
                next,
            ),
            rustix::io::Errno::ROFS => {
                let next = "make the folder in the image, or choose another path";
                Error::invalid("path", format!("{}: there is no such folder, and none can be made ({e})", what()), next)
            }
            rustix::io::Errno::LOOP | rustix::io::Errno::XDEV | rustix::io::Errno::NOTDIR => {
                Error::invalid("path", format!("{}: there is a link or a file on the way ({e})", what()), next)
            }
            e => refused(what())(e),
        }
    })?;
    let kind = rustix::fs::fstatfs(&place).map_err(refused(what()))?.f_type;
    if KERNEL_S.contains(&kind) {
        let detail = format!("{}: what is there is the kernel's, and another one in a moment", what());
        return Err(Error::invalid("path", detail, "choose a path that is not beneath /proc or /sys"));
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", place.as_fd(), "", flags).map_err(refused(what()))?;
    Ok(())
}
