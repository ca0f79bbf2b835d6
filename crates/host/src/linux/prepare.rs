//! Making a folder our folder of mounts, with what somebody else has mounted in it: no mount is lost on the way.
//!
//! Ours is a tmpfs over the folder, and it would hide what is mounted beneath. So a second one is made beside the folder
//! first, and gets copies of those mounts; then the old ones go, and the whole of the second is put over the folder in one
//! step. Whatever moment a kill comes at, each filesystem is mounted in one of the two places, and the next start goes on from
//! there. Who has files open on an old mount keeps it, and them: it goes with its last user (MNT_DETACH).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use dunnage_model::{Error, Result};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::mounts::SOURCE;
use super::sys::{failed, refused, sealed};
use super::table;
use crate::Prepared;
use crate::crash;
use crate::helpers::Task;

#[derive(Serialize, Deserialize)]
pub struct Prepare {
    pub root: PathBuf,
}

/// What of the kernel's table concerns a folder of mounts.
struct Seen {
    ours: bool,
    /// The second tmpfs is there, of a start that was killed.
    beside: bool,
    /// What is mounted beneath the folder, and not on our tmpfs.
    others: Vec<PathBuf>,
}

impl Task for Prepare {
    const NAME: &'static str = "mount.prepare";
    type Output = Prepared;

    fn run(self) -> Result<Prepared> {
        let root = &self.root;
        let what = format!("cannot make {} a folder for mounts", root.display());
        std::fs::create_dir_all(root).map_err(failed(&what))?;
        let beside = beside(root);
        let seen = look(root, &beside)?;
        if seen.ours {
            if seen.beside {
                take_down(&beside, &what)?;
            }
            return Ok(Prepared::AlreadyThere);
        }
        if let Some(file) = first_file(root, &seen.others, 4).map_err(failed(&what))? {
            return Err(Error::invalid(
                "volumes.path",
                format!("{what}: it is not empty (there is {}), and mounts would hide what is in it", file.display()),
                "move it away, or give another folder as volumes.path",
            ));
        }
        if seen.others.is_empty() && !seen.beside {
            let tree = ours_nowhere(&what)?;
            seal(&tree, &what)?;
            put(&tree, root, &what)?;
            return Ok(Prepared::Mounted);
        }
        take_over(root, &beside, &seen, &what)?;
        Ok(Prepared::Mounted)
    }
}

/// Where the second tmpfs is: on the same filesystem, under a name that no volume can have.
fn beside(root: &Path) -> PathBuf {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    root.with_file_name(format!(".{name}-takeover"))
}

fn look(root: &Path, beside: &Path) -> Result<Seen> {
    let mut seen = Seen { ours: false, beside: false, others: Vec::new() };
    for line in table::read()? {
        let ours = line.fs == "tmpfs" && line.source == SOURCE;
        if line.mountpoint == root {
            seen.ours |= ours;
        } else if line.mountpoint == beside {
            seen.beside |= ours;
        } else if line.mountpoint.strip_prefix(root).is_ok_and(|relative| relative.components().count() == 1) {
            seen.others.push(line.mountpoint);
        }
    }
    Ok(seen)
}

/// Something beneath a folder that is no folder itself; what is mounted there is not looked into.
fn first_file(folder: &Path, mounted: &[PathBuf], depth: usize) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if mounted.contains(&path) {
            continue;
        }
        // A folder in a folder in a folder is nobody's mountpoint.
        if !entry.file_type()?.is_dir() || depth == 0 {
            return Ok(Some(path));
        }
        if let Some(file) = first_file(&path, mounted, depth - 1)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// A tmpfs of ours, where no path leads to and for the time being writable.
fn ours_nowhere(what: &str) -> Result<OwnedFd> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // It takes no blocks for folders; the limit on inodes is one of sanity.
        for (key, value) in [("source", SOURCE), ("mode", "0711"), ("size", "64k"), ("nr_inodes", "200k")] {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(refused(what))
}

/// From now on nothing can be written on it, and what is mounted there reaches whoever listens. Before it is put in its
/// place: where that is shared with other namespaces (a daemon in a container), what they get is the same, and hears of
/// what is mounted on it.
fn seal(tree: &OwnedFd, what: &str) -> Result<()> {
    sealed(tree).map_err(failed(what))
}

fn put(tree: &OwnedFd, at: &Path, what: &str) -> Result<()> {
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(refused(what))
}

const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Copies of mounts, at the same names on the second tmpfs; then the mounts themselves go.
fn move_beside(beside: &Path, seen: &Seen, what: &str) -> Result<()> {
    if !seen.beside {
        std::fs::create_dir_all(beside).map_err(failed(what))?;
        put(&ours_nowhere(what)?, beside, what)?;
        rustix::mount::mount_change(beside, MountPropagationFlags::PRIVATE).map_err(refused(what))?;
        crash::pass(format_args!("helper/mount.prepare/beside"));
    }
    let copies = beneath(beside)?;
    for old in &seen.others {
        let Some(name) = old.file_name() else { continue };
        let place = beside.join(name);
        if !copies.contains(&place) {
            std::fs::create_dir_all(&place).map_err(failed(what))?;
            let tree = rustix::mount::open_tree(CWD, old, COPY).map_err(refused(what))?;
            rustix::mount::move_mount(tree.as_fd(), "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(refused(what))?;
            // What is mounted in the one place is not to appear in the other.
            rustix::mount::mount_change(&place, MountPropagationFlags::PRIVATE).map_err(refused(what))?;
            crash::pass(format_args!("helper/mount.prepare/copied"));
        }
        rustix::mount::unmount(old, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(refused(what))?;
        crash::pass(format_args!("helper/mount.prepare/detached"));
    }
    Ok(())
}

fn beneath(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = table::read()?.into_iter().map(|line| line.mountpoint);
    Ok(paths.filter(|path| path != folder && path.starts_with(folder)).collect())
}

fn take_over(root: &Path, beside: &Path, seen: &Seen, what: &str) -> Result<()> {
    move_beside(beside, seen, what)?;
    let tree = rustix::mount::open_tree(CWD, beside, COPY | OpenTreeFlags::AT_RECURSIVE).map_err(refused(what))?;
    seal(&tree, what)?;
    put(&tree, root, what)?;
    crash::pass(format_args!("helper/mount.prepare/covered"));
    take_down(beside, what)
}

/// Takes the second tmpfs down: only copies are on it by then.
fn take_down(beside: &Path, what: &str) -> Result<()> {
    match rustix::mount::unmount(beside, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(e) => return Err(refused(what)(e)),
    }
    // That the folder stays is no harm.
    let _ = std::fs::remove_dir(beside);
    Ok(())
}

/// Makes a folder of ours a plain one again: what is mounted on our tmpfs is mounted beneath it, at the same paths, for
/// another service to go on with. A kill on the way is put right by the next [`Prepare`].
pub fn give_back(root: &Path) -> Result<usize> {
    let what = format!("cannot give {} back", root.display());
    let beside = beside(root);
    let seen = look(root, &beside)?;
    if !seen.ours {
        return Ok(0);
    }
    move_beside(&beside, &seen, &what)?;
    rustix::mount::unmount(root, UnmountFlags::NOFOLLOW).map_err(refused(&what))?;
    let copies = beneath(&beside)?;
    for copy in &copies {
        let Some(name) = copy.file_name() else { continue };
        let place = root.join(name);
        std::fs::create_dir_all(&place).map_err(failed(&what))?;
        let tree = rustix::mount::open_tree(CWD, copy, COPY).map_err(refused(&what))?;
        rustix::mount::move_mount(tree.as_fd(), "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(refused(&what))?;
    }
    take_down(&beside, &what)?;
    Ok(copies.len())
}
