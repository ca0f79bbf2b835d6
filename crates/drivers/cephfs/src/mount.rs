//! The filesystem on this node: mounted once for all volumes, by `ceph-fuse`, which is nobody's child and outlives the daemon.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use dunnage_host::helpers::Task;
use dunnage_host::linux::{carrier, lock_folder, to_background};
use dunnage_model::{Error, Result};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The program.
const PROGRAM: &str = "ceph-fuse";
/// What it said when it did not mount.
const SAID: &str = "said";
/// What the folders begin with that it is mounted at.
const PLACE: &str = "fs.";
/// Which of them counts, and for what configuration.
const CURRENT: &str = "current";
/// The folder of the volumes, in the folder of the filesystem that we were given.
pub const VOLUMES: &str = "dunnage";

/// A filesystem of Ceph, and how to get to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// The cluster's `ceph.conf`.
    pub conf: PathBuf,
    /// The user, without `client.` before it.
    pub user: String,
    /// Its key, where it is not where `conf` says.
    pub keyring: Option<PathBuf>,
    /// Its name; the cluster's first when absent.
    pub name: Option<String>,
    /// The folder of it beneath which everything of ours is.
    pub path: PathBuf,
    /// How long the cluster may take to let us in.
    pub timeout: Duration,
    /// Where it is mounted on this node, and what is known of that; it dies with the boot.
    pub folder: PathBuf,
}

pub fn os(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// It is mounted there, and its process lives.
fn is_alive(place: &Path) -> Result<bool> {
    // Asked anew: what the kernel remembers of it says nothing about its process.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_FORCE_SYNC;
    match statx(CWD, place, flags, StatxFlags::BASIC_STATS) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTCONN | Errno::CONNABORTED) => Ok(false),
        Err(e) => Err(Error::os(format_args!("cannot look at {}", place.display()), &e.into())),
    }
}

/// Unmounts what is mounted at a place, and takes the place away.
fn leave(place: &Path) -> std::io::Result<()> {
    let begun = Instant::now();
    loop {
        match unmount(place, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => break,
            // A helper looks at something there.
            Err(Errno::BUSY) if begun.elapsed() < Duration::from_secs(2) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e.into()),
        }
    }
    match std::fs::remove_dir(place) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Filesystem {
    /// Where it is mounted, for what is configured now.
    pub fn place(&self) -> Option<PathBuf> {
        let text = std::fs::read_to_string(self.folder.join(CURRENT)).ok()?;
        let (name, described) = text.split_once('\n')?;
        (described == self.described()).then(|| self.folder.join(name))
    }

    fn described(&self) -> String {
        let Filesystem { conf, user, keyring, name, path, .. } = self;
        format!("{conf:?} {user} {keyring:?} {name:?} {path:?}\n")
    }

    /// The folder of the volumes. The filesystem is mounted for it if it is not yet, or its process has died.
    pub fn volumes(&self) -> Result<PathBuf> {
        let place = match self.place() {
            Some(place) if is_alive(&place)? => place,
            _ => self.mount()?,
        };
        let volumes = place.join(VOLUMES);
        make(&volumes)?;
        Ok(volumes)
    }

    /// Every place that it was ever mounted at, or was to be.
    fn places(&self) -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let is_one = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PLACE.as_bytes()));
        Ok(entries.into_iter().map(|entry| entry.path()).filter(is_one).collect())
    }

    fn mount(&self) -> Result<PathBuf> {
        let what = format!("cannot mount the filesystem in {}", self.folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(os(&what))?;
        // One helper at a time.
        let _alone = lock_folder(&self.folder)?;
        if let Some(place) = self.place()
            && is_alive(&place)?
        {
            return Ok(place);
        }
        // A new one each time: one that comes late, of a helper that was killed, is in nobody's way.
        let place = self.folder.join(format!("{PLACE}{}", Uuid::new_v4().simple()));
        make(&place)?;
        if let Err(e) = self.start(&place) {
            leave(&place).map_err(os(&what))?;
            return Err(e);
        }
        let (current, new) = (self.folder.join(CURRENT), self.folder.join("current.new"));
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        std::fs::write(&new, format!("{name}\n{}", self.described())).and_then(|()| std::fs::rename(&new, current)).map_err(os(&what))?;
        for old in self.places().map_err(os(&what))?.into_iter().filter(|old| *old != place) {
            // What is mounted of volumes are mounts of their own, and stay.
            leave(&old).map_err(os(&what))?;
        }
        Ok(place)
    }

    fn start(&self, place: &Path) -> Result<()> {
        let what = format!("cannot mount the filesystem at {}", place.display());
        let said = self.folder.join(SAID);
        let output = File::options().create(true).truncate(true).write(true).mode(0o600).open(&said).map_err(os(&what))?;
        let mut command = carrier(PROGRAM);
        command.args(["--id", &self.user, "-c"]).arg(&self.conf);
        if let Some(keyring) = &self.keyring {
            command.arg("-k").arg(keyring);
        }
        if let Some(name) = &self.name {
            command.args(["--client_fs", name]);
        }
        let seconds = self.timeout.as_secs().max(1);
        command.arg("-r").arg(&self.path).args(["--client_mount_timeout", &seconds.to_string()]).arg(place);
        command.stdout(Stdio::null()).stderr(output);
        // It gives up by itself, and says more then.
        let status = to_background(&mut command, self.timeout * 2).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::unavailable(format!("there is no {PROGRAM} on this node"), "install the package ceph-fuse"),
            _ => os(format_args!("cannot start {PROGRAM}"))(e),
        })?;
        if status.is_some_and(|status| status.success()) && is_alive(place)? {
            return Ok(());
        }
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("the cluster did not answer in time");
        let (path, last) = (self.path.display(), last.chars().take(300).collect::<String>());
        let next = format!(
            "look at 'ceph fs status', and at what client.{} may do ('ceph fs authorize {} client.{} {path} rwp')",
            self.user,
            self.name.as_deref().unwrap_or("FILESYSTEM"),
            self.user
        );
        Err(Error::unavailable(format!("{PROGRAM} cannot mount {path} of the filesystem: {last}"), next))
    }
}

/// Makes a folder that may be there already.
pub fn make(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(os(format_args!("cannot make {}", folder.display()))(e)),
        _ => Ok(()),
    }
}

/// Unmounts the filesystem, if nothing of it is in use.
#[derive(Serialize, Deserialize)]
pub struct Close {
    pub fs: Filesystem,
}

impl Task for Close {
    const NAME: &'static str = "cephfs.close";
    type Output = ();

    fn run(self) -> Result<()> {
        let folder = &self.fs.folder;
        if !folder.is_dir() {
            return Ok(());
        }
        // Not while another helper mounts it.
        let _alone = lock_folder(folder)?;
        let leave_all = || self.fs.places()?.iter().try_for_each(|place| leave(place));
        leave_all().map_err(os(format_args!("cannot unmount the filesystem in {}", folder.display())))
    }
}
