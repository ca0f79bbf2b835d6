//! The kernel and the tools that work on filesystems, behind small traits.
//!
//! Nothing here knows what a volume is. [`linux`] is the real thing: calls that can hang run in [`helpers`], processes
//! that can be given up. [`fake`] remembers what was asked and fails where a plan says so; it is passed in, never
//! chosen from inside.

pub mod crash;
pub mod fake;
pub mod helpers;
pub mod linux;
pub mod orphans;
pub mod signature;
mod types;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use dunnage_model::{Bytes, Result};

pub use types::*;

/// Mounts beneath one folder of our own.
#[async_trait]
pub trait Mounts: Send + Sync {
    /// Makes `root` a shared mount of our own, on which nothing can be written. Done once at start; idempotent.
    async fn prepare(&self, root: &Path) -> Result<Prepared>;

    /// Everything that is mounted beneath `root`, but not `root` itself.
    async fn table(&self, root: &Path) -> Result<Vec<MountEntry>>;

    /// What is mounted at a target, without reading the whole table.
    async fn at(&self, target: &Target) -> Result<Option<MountedAt>>;

    /// Makes the mountpoint and mounts a device there, if what is on it is what must be, and has no errors. One look
    /// decides, with the device held open until it is mounted.
    async fn mount(&self, request: &MountRequest) -> Result<Tried>;

    /// Unmounts a target, if it is `device` that is mounted there, and removes the mountpoint. Never lazily.
    async fn unmount(&self, target: &Target, device: DeviceNumber) -> Result<Unmounted>;

    /// Has the filesystem mounted at a target refuse everything from now on, without writing a thing, if it is `device`'s: what is
    /// behind it is not this node's any more. `false`: it cannot, or is not there.
    async fn shut_down(&self, target: &Target, device: DeviceNumber) -> Result<bool>;

    /// What the filesystem mounted at a target says of its space.
    async fn space(&self, target: &Target) -> Result<Space>;

    /// The processes that keep a device's filesystem busy, or hold a copy of its mount in another namespace. `at` is where it is
    /// mounted here; of a folder, that or the folder itself: by it the folder is known in others' tables.
    async fn users(&self, device: DeviceNumber, at: &Path) -> Result<Vec<Process>>;
}

/// Files as block devices.
#[async_trait]
pub trait Loops: Send + Sync {
    /// Attaches a file, or finds the loop that it is attached to.
    async fn attach(&self, request: &LoopRequest) -> Result<LoopDevice>;

    /// Detaches the loop that a file is attached to, and proves that it is free. `device` only saves the search.
    async fn detach(&self, request: &LoopRequest, device: Option<DeviceNumber>) -> Result<Detached>;

    /// The loop that a file is attached to, if it is to any.
    async fn find(&self, request: &LoopRequest) -> Result<Option<LoopDevice>>;

    /// Tells the loop that a file is attached to, if it is to any, that the file has become longer.
    async fn lengthen(&self, request: &LoopRequest) -> Result<()>;

    /// Whether the kernel says that a device is a loop of this file, and that nobody has deleted or moved it. Never waits.
    fn has_in_place(&self, request: &LoopRequest, device: DeviceNumber) -> bool;

    /// Every loop that is attached to a file beneath `folder`.
    async fn list(&self, folder: &Path) -> Result<Vec<LoopDevice>>;
}

/// What is on a device, and the tools that make and repair it.
#[async_trait]
pub trait Filesystems: Send + Sync {
    /// What is on this device or file.
    async fn probe(&self, path: &Path) -> Result<Probe>;

    /// Makes a filesystem. The caller has proven that there is none; this looks once more right before.
    async fn format(&self, request: &FormatRequest) -> Result<()>;

    /// How long an image is that is to be copied, a file or a device, and what is on it.
    async fn look_at_image(&self, path: &Path) -> Result<(Bytes, Probe)>;

    /// Fills a blank file with a copy of an image, whose UUID becomes the one that was recorded. The caller has proven that it is blank;
    /// this looks once more right before.
    async fn fill(&self, request: &FillRequest) -> Result<()>;

    /// Gives a copy a UUID of its own: before it is first shown to anybody. Refused while anything has the file open.
    async fn renew(&self, path: &Path, fs: dunnage_model::FsKind, uuid: uuid::Uuid) -> Result<()>;

    /// The names at the root of the filesystem on a device, in order, and not more than a few.
    async fn look_inside(&self, device: &Path, fs: dunnage_model::FsKind) -> Result<Vec<String>>;

    /// When filesystems of this kind can become larger on this machine.
    fn growth(&self, fs: dunnage_model::FsKind) -> Growth;

    /// Makes a filesystem as large as its device, when [`Filesystems::growth`] says that it can.
    async fn grow(&self, request: &GrowRequest) -> Result<()>;

    /// Repairs what may be repaired unasked. An error means that it was not.
    async fn check(&self, path: &Path, fs: dunnage_model::FsKind) -> Result<Checked>;
}

/// The whole host, as the engine and the drivers are given it.
#[derive(Clone)]
pub struct Host {
    /// Mounts.
    pub mounts: Arc<dyn Mounts>,
    /// Loop devices.
    pub loops: Arc<dyn Loops>,
    /// Filesystems.
    pub filesystems: Arc<dyn Filesystems>,
    /// A place to run what can hang.
    pub runner: Arc<dyn helpers::Runner>,
}
