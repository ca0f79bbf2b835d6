//! Who keeps a filesystem busy: found in /proc, without touching the filesystem itself, which may hang.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dunnage_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::sys::failed;
use super::table;
use crate::helpers::Task;
use crate::{DeviceNumber, Process};

#[derive(Serialize, Deserialize)]
pub struct Users {
    pub device: DeviceNumber,
    pub at: PathBuf,
}

impl Task for Users {
    const NAME: &'static str = "mount.users";
    type Output = Vec<Process>;

    fn run(self) -> Result<Vec<Process>> {
        let own_namespace = std::fs::read_link("/proc/self/ns/mnt").map_err(failed("cannot read /proc/self/ns/mnt"))?;
        let (wanted, ours) = (Wanted::of(self.device, &self.at)?, Ours::of(self.at)?);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").map_err(failed("cannot list /proc"))? {
            let name = entry.map_err(failed("cannot list /proc"))?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let proc = PathBuf::from(format!("/proc/{pid}"));
            // A process may end while we look: what cannot be read any more is nobody's.
            let Some(mounts) = mounts_of(&proc, &wanted) else { continue };
            if mounts.ids.is_empty() {
                continue;
            }
            let foreign = std::fs::read_link(proc.join("ns/mnt")).is_ok_and(|namespace| namespace != own_namespace)
                && !mounts.lines.iter().all(|line| ours.goes_with(line));
            let uses = mounts.used_by(&proc);
            if uses || foreign {
                let name = std::fs::read_to_string(proc.join("comm")).unwrap_or_default().trim().to_owned();
                found.push(Process { pid, name, namespace_only: !uses });
            }
        }
        Ok(found)
    }
}

/// A process' own view of a device's mounts.
struct Mounts {
    ids: BTreeSet<u64>,
    lines: Vec<table::Line>,
}

/// The node's own mount. Who runs in a namespace of its own that hears of the node's unmounts has a copy at the same place, of every
/// volume and without having asked: it goes with ours, and is no use of it.
struct Ours {
    at: PathBuf,
    peers: Option<u64>,
}

impl Ours {
    fn of(at: PathBuf) -> Result<Ours> {
        let line = table::read()?.into_iter().rfind(|line| line.mountpoint == at);
        Ok(Ours { at, peers: line.and_then(|line| line.peers) })
    }

    fn goes_with(&self, line: &table::Line) -> bool {
        line.mountpoint == self.at && self.peers.is_some() && (line.peers == self.peers || line.master == self.peers)
    }
}

/// Which lines of a table are meant.
enum Wanted {
    Device(DeviceNumber),
    /// A folder, or what is beneath it: the filesystem's number, and the folder's path in it. No filesystem is asked.
    Folder(DeviceNumber, PathBuf),
}

impl Wanted {
    fn of(device: DeviceNumber, at: &Path) -> Result<Wanted> {
        if device.folder.is_none() {
            return Ok(Wanted::Device(device));
        }
        // The mount that a path is on is the last of those that lead farthest towards it.
        let lines = table::read()?.into_iter().filter(|line| at.starts_with(&line.mountpoint));
        let on = lines.max_by_key(|line| line.mountpoint.components().count());
        let lost = || Error::internal(format!("{} is on no mount", at.display()));
        let on = on.ok_or_else(lost)?;
        let inside = at.strip_prefix(&on.mountpoint).map_err(|_| lost())?;
        // Without the slash that joining nothing leaves at the end.
        Ok(Wanted::Folder(on.shown, on.root.join(inside).components().collect()))
    }

    fn is(&self, line: &table::Line) -> bool {
        match self {
            Wanted::Device(device) => line.device == *device,
            Wanted::Folder(filesystem, folder) => line.shown == *filesystem && line.root.starts_with(folder),
        }
    }
}

fn mounts_of(proc: &Path, wanted: &Wanted) -> Option<Mounts> {
    let text = std::fs::read(proc.join("mountinfo")).ok()?;
    let lines = table::parse(&text).ok()?;
    let lines: Vec<table::Line> = lines.into_iter().filter(|line| wanted.is(line)).collect();
    Some(Mounts { ids: lines.iter().map(|line| line.id).collect(), lines })
}

impl Mounts {
    fn used_by(&self, proc: &Path) -> bool {
        let inside =
            |link: &str| std::fs::read_link(proc.join(link)).is_ok_and(|to| self.lines.iter().any(|line| to.starts_with(&line.mountpoint)));
        if inside("cwd") || inside("root") || inside("exe") {
            return true;
        }
        let Ok(files) = std::fs::read_dir(proc.join("fdinfo")) else { return false };
        files.flatten().any(|file| {
            let info = std::fs::read_to_string(file.path()).unwrap_or_default();
            let id = info.lines().find_map(|l| l.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
            id.is_some_and(|id: u64| self.ids.contains(&id))
        })
    }
}
