//! Making a folder our folder of mounts, with what somebody else has mounted in it: no mount is lost on the way.
//!
//! Ours is a tmpfs over the folder, and it would hide what is mounted beneath. So a second one is made beside the folder
//! first, and gets copies of those mounts; then the old ones go, and the whole of the second is put over the folder in one
//! step. Whatever moment a kill comes at, each filesystem is mounted in one of the two places, and the next start goes on from
//! there. Who has files open on an old mount keeps it, and them: it goes with its last user (MNT_DETACH).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use dunnage_model::{Error, HERE, Result};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::mounts::{SOURCE, make_folders, with_writable};
use super::sys::{failed, refused, sealed};
use super::table;
use crate::crash;
use crate::helpers::Task;
use crate::{DeviceNumber, Prepared};

#[derive(Serialize, Deserialize)]
pub struct Prepare {
    pub root: PathBuf,
}

/// A mount, and what is behind it.
#[derive(Clone, PartialEq, Eq)]
struct There {
    path: PathBuf,
    behind: (DeviceNumber, PathBuf),
}

/// What of the kernel's table concerns a folder of mounts.
struct Seen {
    ours: bool,
    /// The second tmpfs is there, of a run that was killed.
    beside: bool,
    /// What is mounted directly beneath the folder.
    mounts: Vec<There>,
    /// What is mounted directly beneath the second tmpfs.
    copies: Vec<There>,
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
                // Of a takeover that was killed at its end, or of a giving back that was killed or refused: then the only mounts may be there.
                put_all(&seen.copies, root, &seen.mounts, &what, |relative| {
                    with_writable(root, |view| make_folders(view, relative)).map_err(failed(&what))
                })?;
                take_down(&beside, &what)?;
            }
            return Ok(Prepared::AlreadyThere);
        }
        if let Some(file) = first_file(root, &seen.mounts, 4).map_err(failed(&what))? {
            return Err(Error::invalid(
                "volumes.path",
                format!("{what}: it is not empty (there is {}), and mounts would hide what is in it", file.display()),
                "move it away, or give another folder as volumes.path",
            ));
        }
        if seen.mounts.is_empty() && !seen.beside {
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
    let mut seen = Seen { ours: false, beside: false, mounts: Vec::new(), copies: Vec::new() };
    let directly = |path: &Path, folder: &Path| path.strip_prefix(folder).is_ok_and(|relative| relative.components().count() == 1);
    for line in table::read()? {
        let ours = line.fs == "tmpfs" && line.source == SOURCE;
        let there = There { path: line.mountpoint, behind: (line.shown, line.root) };
        if there.path == root {
            seen.ours |= ours;
        } else if there.path == beside {
            seen.beside |= ours;
        } else if directly(&there.path, root) {
            seen.mounts.push(there);
        } else if directly(&there.path, beside) {
            seen.copies.push(there);
        }
    }
    let mut paths: Vec<&PathBuf> = seen.mounts.iter().map(|there| &there.path).collect();
    paths.sort();
    if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
        let detail = format!("two filesystems are mounted over each other at {}", twice[0].display());
        return Err(Error::in_use(vec![], HERE, detail, "find out which one is meant, and unmount the upper one"));
    }
    Ok(seen)
}

/// Whether a folder of mounts of ours is at a path.
pub fn is_ours(root: &Path) -> Result<bool> {
    Ok(look(root, &beside(root))?.ours)
}

/// What is mounted beneath a folder, relative to it.
pub fn mounted_beneath(root: &Path) -> Result<Vec<PathBuf>> {
    let lines = table::read()?.into_iter().filter_map(|line| line.mountpoint.strip_prefix(root).map(Path::to_owned).ok());
    Ok(lines.filter(|relative| !relative.as_os_str().is_empty()).collect())
}

/// Something beneath a folder that is no folder itself; what is mounted there is not looked into.
fn first_file(folder: &Path, mounted: &[There], depth: usize) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if mounted.iter().any(|there| there.path == path) {
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

const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC).union(OpenTreeFlags::AT_RECURSIVE);

/// Copies of mounts, with what is mounted inside of them, at the same names on the second tmpfs; then the mounts themselves go.
fn move_beside(beside: &Path, seen: &Seen, what: &str) -> Result<()> {
    if !seen.beside {
        std::fs::create_dir_all(beside).map_err(failed(what))?;
        put(&ours_nowhere(what)?, beside, what)?;
        crash::pass(format_args!("helper/mount.prepare/not-private"));
    }
    // What is mounted or unmounted in the one place is not to be so in the other.
    rustix::mount::mount_change(beside, MountPropagationFlags::PRIVATE).map_err(refused(what))?;
    crash::pass(format_args!("helper/mount.prepare/beside"));
    for old in &seen.mounts {
        let Some(name) = old.path.file_name() else { continue };
        let place = beside.join(name);
        let copy = seen.copies.iter().find(|copy| copy.path == place);
        if copy.is_none_or(|copy| copy.behind != old.behind) {
            if copy.is_some() {
                // Of another time: what is mounted now counts.
                rustix::mount::unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(refused(what))?;
            }
            std::fs::create_dir_all(&place).map_err(failed(what))?;
            let tree = rustix::mount::open_tree(CWD, &old.path, COPY).map_err(refused(what))?;
            put(&tree, &place, what)?;
            rustix::mount::mount_change(&place, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(refused(what))?;
            crash::pass(format_args!("helper/mount.prepare/copied"));
        }
        rustix::mount::unmount(&old.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(refused(what))?;
        crash::pass(format_args!("helper/mount.prepare/detached"));
    }
    Ok(())
}

/// Copies of copies, at the same names beneath a folder, but for what is there.
fn put_all(copies: &[There], root: &Path, there: &[There], what: &str, make: impl Fn(&Path) -> Result<()>) -> Result<usize> {
    let mut count = 0;
    for copy in copies {
        let Some(name) = copy.path.file_name().map(Path::new) else { continue };
        if there.iter().any(|there| there.path == root.join(name)) {
            continue;
        }
        make(name)?;
        let tree = rustix::mount::open_tree(CWD, &copy.path, COPY).map_err(refused(what))?;
        put(&tree, &root.join(name), what)?;
        crash::pass(format_args!("helper/mount.prepare/put"));
        count += 1;
    }
    Ok(count)
}

fn take_over(root: &Path, beside: &Path, seen: &Seen, what: &str) -> Result<()> {
    move_beside(beside, seen, what)?;
    let tree = rustix::mount::open_tree(CWD, beside, COPY).map_err(refused(what))?;
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
/// another service to go on with; says how many. A kill on the way is gone on with by the next call, or undone by the next
/// [`Prepare`].
pub fn give_back(root: &Path) -> Result<usize> {
    let what = format!("cannot give {} back", root.display());
    let beside = beside(root);
    let mut seen = look(root, &beside)?;
    if seen.ours {
        move_beside(&beside, &seen, &what)?;
        rustix::mount::unmount(root, UnmountFlags::NOFOLLOW).map_err(refused(&what))?;
        crash::pass(format_args!("helper/mount.give-back/uncovered"));
        seen = look(root, &beside)?;
    }
    let folder = |relative: &Path| std::fs::create_dir_all(root.join(relative)).map_err(failed(&what));
    put_all(&seen.copies, root, &seen.mounts, &what, folder)?;
    if seen.beside {
        take_down(&beside, &what)?;
    }
    Ok(look(root, &beside)?.mounts.len())
}
