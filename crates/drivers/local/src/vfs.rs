//! REX-Ray's `vfs`: its volumes are folders that lie in the folder of mounts itself, `MOUNTS/NAME`, and a file of JSON each,
//! `VFS/vol/ID.json`, with the name. (Seen with 0.11.4.)
//!
//! Our mounts would hide them there, so they are renamed into the pool, one by one: a rename keeps the folder itself, and with
//! it every container that has it mounted. The JSON stays; going back renames them to where they were.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dunnage_driver::Phase;
use dunnage_driver::folder::{self as record, sync_folder};
use dunnage_host::crash;
use dunnage_host::helpers::Task;
use dunnage_model::{Error, Result, VolumeName};
use serde::{Deserialize, Serialize};

use crate::pool::{Store, os};

/// The names of its volumes; those that no volume of ours can have are passed over.
fn names(vfs: &Path) -> Result<Vec<VolumeName>> {
    #[derive(Deserialize)]
    struct Volume {
        name: String,
    }
    let folder = vfs.join("vol");
    let what = format!("cannot list {}", folder.display());
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(os(&what))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(os(&what))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read(&path).map_err(os(format_args!("cannot read {}", path.display())))?;
            if let Some(name) = serde_json::from_slice::<Volume>(&text).ok().and_then(|volume| volume.name.parse().ok()) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

#[derive(Serialize, Deserialize)]
pub struct TakeIn {
    pub pool: PathBuf,
    pub mounts: PathBuf,
    pub vfs: PathBuf,
}

impl Task for TakeIn {
    const NAME: &'static str = "local.take-in";
    type Output = Vec<VolumeName>;

    fn run(self) -> Result<Vec<VolumeName>> {
        let mut taken = Vec::new();
        for name in names(&self.vfs)? {
            let (from, folder) = (self.mounts.join(name.as_str()), self.pool.join(name.as_str()));
            let to = folder.join(Store::Folders.content());
            let what = format!("cannot take {} into the pool {}", from.display(), self.pool.display());
            // What is mounted there is no folder of its own, and neither is a link.
            let plain = std::fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_dir()) && !is_mounted(&from);
            if !plain || to.exists() {
                continue;
            }
            // What is half made or half removed there has nothing in it; its record would have this removed.
            match record::read(&folder)? {
                Some(record) if record.removing || !matches!(record.storage, Phase::Formatted { .. }) => {
                    record::erase(&folder).map_err(os(&what))?;
                }
                _ => {}
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(os(&what))?;
            crash::pass(format_args!("helper/local.take-in/folder"));
            std::fs::rename(&from, &to).map_err(|e| match e.kind() {
                ErrorKind::CrossesDevices => {
                    let next = "give the driver a pool on the filesystem of the folder of mounts";
                    Error::invalid("pool", format!("{what}: they are on two filesystems"), next)
                }
                _ => os(&what)(e),
            })?;
            crash::pass(format_args!("helper/local.take-in/renamed"));
            for folder in [&folder, &self.mounts, &self.pool] {
                sync_folder(folder).map_err(os(&what))?;
            }
            taken.push(name);
        }
        Ok(taken)
    }
}

/// A path is on another mount than what is above it.
fn is_mounted(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(CWD, path, flags, StatxFlags::empty()).is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// What became of the folders.
#[derive(Debug, Default)]
pub struct Given {
    /// They are where the old service looks for them.
    pub back: Vec<VolumeName>,
    /// The old service never knew them.
    pub stay: Vec<VolumeName>,
}

/// Puts the folders back to where the old service looks for them. `mounts` is a plain folder again.
pub fn give_back(pool: &Path, mounts: &Path, vfs: &Path) -> Result<Given> {
    let mut given = Given::default();
    let known = names(vfs)?;
    let entries = std::fs::read_dir(pool).map_err(os(format_args!("cannot list {}", pool.display())))?;
    let ours = entries.flatten().filter(|entry| entry.path().join(Store::Folders.content()).is_dir());
    given.stay = ours.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|name| !known.contains(name)).collect();
    for name in known {
        let (folder, to) = (pool.join(name.as_str()), mounts.join(name.as_str()));
        let from = folder.join(Store::Folders.content());
        let what = format!("cannot put {} back to {}", from.display(), to.display());
        if !from.is_dir() {
            continue;
        }
        if is_mounted(&to) {
            // Our mount of that very folder; containers have mounts of their own.
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            rustix::mount::unmount(&to, flags).map_err(|e| Error::os(&what, &e.into()))?;
        }
        match std::fs::remove_dir(&to) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(os(what)(e)),
            _ => {}
        }
        std::fs::rename(&from, &to).map_err(os(&what))?;
        record::erase(&folder).map_err(os(&what))?;
        std::fs::remove_dir(&folder).map_err(os(&what))?;
        for folder in [mounts, pool] {
            sync_folder(folder).map_err(os(&what))?;
        }
        given.back.push(name);
    }
    Ok(given)
}
