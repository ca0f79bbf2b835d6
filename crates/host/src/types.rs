//! The words of this room.

use std::fmt;
use std::path::{Path, PathBuf};

use dunnage_model::{Bytes, FsKind, MountOptions, PublishMode, RootPath};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is behind a mount: a block device's number, which no other has as long as it exists; or a folder of a filesystem, by
/// that filesystem's number and the folder's inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
    /// The folder's inode, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<u64>,
}

impl DeviceNumber {
    /// A block device.
    pub const fn new(major: u32, minor: u32) -> Self {
        DeviceNumber { major, minor, folder: None }
    }

    /// The device's node: `/dev/loop0` for 7:0.
    pub fn node(&self) -> PathBuf {
        let link = std::fs::read_link(format!("/sys/dev/block/{}:{}", self.major, self.minor)).ok();
        let name = link.and_then(|link| Some(link.file_name()?.to_owned()));
        name.map_or_else(|| format!("/dev/block/{}:{}", self.major, self.minor).into(), |name| Path::new("/dev").join(name))
    }

    /// A folder of a filesystem with this number.
    pub const fn folder(major: u32, minor: u32, inode: u64) -> Self {
        DeviceNumber { major, minor, folder: Some(inode) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)?;
        self.folder.map_or(Ok(()), |inode| write!(f, " inode {inode}"))
    }
}

/// What a driver's volumes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum Medium {
    /// A block device each, with a filesystem on it.
    #[default]
    Device,
    /// A folder each, of a filesystem that they share.
    Folder,
}

/// A file's identity within one operation. (Over time it is not: a pool that moves to a new disk has new inodes.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The filesystem's device number, packed as the kernel's `st_dev`.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

/// A place beneath our own folder of mounts. The relative part is made of checked names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The folder that [`crate::Mounts::prepare`] made ours.
    pub root: PathBuf,
    /// Beneath it.
    pub relative: PathBuf,
    /// What is mounted there.
    #[serde(default)]
    pub medium: Medium,
}

impl Target {
    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.relative)
    }
}

/// What [`crate::Mounts::prepare`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prepared {
    /// The folder is ours now.
    Mounted,
    /// It was ours already: an earlier daemon made it.
    AlreadyThere,
}

/// One line of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// Where, beneath the root that was asked about.
    pub relative: PathBuf,
    /// Which device.
    pub device: DeviceNumber,
    /// The filesystem's name.
    pub fs: String,
    /// What was mounted, as the kernel shows it; empty where it has not said, and the device needs no such help.
    pub source: String,
}

/// What is mounted at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedAt {
    /// The device.
    pub device: DeviceNumber,
    /// The kernel's own number of this mount: unchanged as long as nobody touches it.
    pub mount_id: u64,
}

/// What statfs(2) says of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// All of it.
    pub total: Bytes,
    /// What is taken.
    pub used: Bytes,
    /// What a program may still write.
    pub available: Bytes,
}

/// A block device that is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The device node.
    pub device: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// The filesystem that must be on it.
    pub fs: FsKind,
    /// The UUID that it must have.
    pub uuid: Uuid,
    /// Where to.
    pub target: Target,
    /// Writable or not.
    pub mode: PublishMode,
    /// What is deleted goes back to the platform.
    pub discard: bool,
    /// What the user wants besides.
    pub options: MountOptions,
    /// The folder inside that must be there for its holders.
    pub root_path: Option<RootPath>,
}

/// What a mount came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tried {
    /// It is mounted.
    Mounted(MountedAt),
    /// Not what was to be mounted, or with errors that want a check first: nothing was done.
    Found(Probe),
}

/// What an unmount came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmounted {
    /// Gone from here. (A copy in another namespace may keep the superblock; the detach tells.)
    Done,
    /// Nothing was mounted there.
    NotThere,
    /// Somebody uses it: nothing was done.
    Busy,
    /// Another device is mounted there: nothing was done.
    Foreign(DeviceNumber),
}

/// A process that keeps something busy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// It only has a copy of the mount in a namespace of its own.
    pub namespace_only: bool,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// A file that is to become a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopRequest {
    /// The folder that the file must lie beneath, without a link on the way.
    pub folder: PathBuf,
    /// The file, relative to it.
    pub relative: PathBuf,
}

impl LoopRequest {
    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.relative)
    }
}

/// A loop device with a file behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopDevice {
    /// The device node.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// The file behind it.
    pub file: FileId,
    /// The file's path as the kernel shows it (it may be cut short, or end in ` (deleted)`).
    pub backing: PathBuf,
    /// Reads and writes pass the page cache by.
    pub direct_io: bool,
    /// It was attached before this call.
    pub found: bool,
}

/// What a detach came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detached {
    /// It is free now.
    Done,
    /// It is free now, and what carried it had to be killed: what that had sent may be on its way.
    Killed,
    /// It was free.
    NotThere,
    /// A filesystem lives on it in some namespace, or somebody has it open: it stays.
    Lingering,
}

/// The three answers to "what is on this device" (law 5). Only the first allows a format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Nothing was ever written.
    Blank,
    /// A filesystem of ours.
    Known(KnownFs),
    /// Anything else, an unreadable device included.
    Unknown {
        /// What it looks like.
        signature: String,
    },
}

impl Probe {
    /// What was found, for messages.
    pub fn signature(&self) -> String {
        match self {
            Probe::Blank => "nothing".to_owned(),
            Probe::Known(known) => format!("{} {}", known.fs, known.uuid),
            Probe::Unknown { signature } => signature.clone(),
        }
    }
}

/// A filesystem that was recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFs {
    /// Which.
    pub fs: FsKind,
    /// Its UUID.
    pub uuid: Uuid,
    /// It was not unmounted cleanly; mount(2) replays its journal.
    pub dirty_journal: bool,
    /// The kernel found errors in it: it wants a check before it is mounted.
    pub has_errors: bool,
}

/// A filesystem that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatRequest {
    /// The blank file.
    pub path: PathBuf,
    /// Which filesystem.
    pub fs: FsKind,
    /// The UUID that it shall have: recorded before, so that it can be told from any other.
    pub uuid: Uuid,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// Mode of its root.
    pub mode: u32,
    /// A folder to make in it, with the same owner and mode.
    pub root_path: Option<RootPath>,
    /// What it will be mounted with: whether the kernel knows these is found out now.
    pub options: MountOptions,
}

impl FormatRequest {
    /// A filesystem that is root's, with nothing special about it.
    pub fn plain(path: PathBuf, fs: FsKind, uuid: Uuid) -> Self {
        FormatRequest { path, fs, uuid, uid: 0, gid: 0, mode: 0o755, root_path: None, options: MountOptions::default() }
    }
}

/// An image that a new filesystem is to be a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillRequest {
    /// The image: a file or a device.
    pub from: PathBuf,
    /// The blank file.
    pub to: PathBuf,
    /// The filesystem that must be on it.
    pub fs: FsKind,
    /// The UUID that the copy gets.
    pub uuid: Uuid,
}

/// When a filesystem can become larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Growth {
    /// While it is mounted.
    Mounted,
    /// While it is not.
    Unmounted,
    /// It has no size of its own.
    Always,
}

/// A filesystem that is to fill its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowRequest {
    /// The device node.
    pub device: PathBuf,
    /// The filesystem that must be on it.
    pub fs: FsKind,
    /// The UUID that it must have.
    pub uuid: Uuid,
    /// Where it is mounted, if it is.
    pub at: Option<PathBuf>,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    /// Nothing was wrong.
    Clean,
    /// Something was, and was mended.
    Repaired,
}
