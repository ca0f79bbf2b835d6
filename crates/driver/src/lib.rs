//! What a storage platform must be able to do to carry volumes.
//!
//! The traits are split by capability, so that what the frontends announce follows from what a driver *is*. A driver
//! finds out and acts; it never decides: whether a format, a detach or a removal may happen is the planner's to say, and
//! the driver refuses only what its platform shows to be wrong.

pub mod conformance;
pub mod folder;
mod record;
mod share;

use std::path::PathBuf;

use async_trait::async_trait;
use dunnage_host::{Detached, DeviceNumber, KnownFs, Medium, Probe, Space};
use dunnage_model::{
    Bytes, DriverName, EndpointName, Error, HintPolicy, Owner, PartialSpec, RemoveAction, Result, RootPath, VolumeInfo, VolumeName,
    VolumeSpec,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use record::{Phase, VolumeRecord};
pub use share::{SILENCE, Share, Sign, Versioned, is_barred};

/// From where a volume can be reached: what Docker calls scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// From this node only.
    Node,
    /// From every node of a cluster.
    Cluster,
}

/// A volume's block device on this node. The device is found by what it is, never by its letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The device node.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// It was attached before this call.
    pub found: bool,
}

/// What this node has attached, as the host shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The volume.
    pub name: VolumeName,
    /// Its device.
    pub number: DeviceNumber,
}

/// All volumes of a driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Listing {
    /// Those that can be told about.
    pub volumes: Vec<VolumeInfo>,
    /// One error for each that is there and cannot be read.
    pub unreadable: Vec<Error>,
}

/// What a new volume shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// The endpoint that will list it.
    pub endpoint: EndpointName,
    /// What it guarantees.
    pub spec: VolumeSpec,
    /// Now.
    pub created: Timestamp,
    /// The node that makes it, where others could, too: it is this node's from the first moment.
    pub maker: Option<Owner>,
}

/// The new storage of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// Where it can be proven blank, and formatted: a file.
    pub path: PathBuf,
    /// It had to be attached for that, and is to be detached before the volume is published.
    pub attached: bool,
}

/// What a driver's store says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Where it is, as people know it.
    pub place: String,
    /// Its space, as the platform tells it.
    pub space: Space,
    /// The sum of what all volumes may grow to.
    pub promised: Bytes,
    /// New volumes are refused when less than this is free.
    pub reserve: Bytes,
    /// What an operator should know now, such as a pool that is nearly full.
    pub warnings: Vec<String>,
}

/// A platform with volumes on it.
///
/// Every call is idempotent, and may take as long as the platform takes: deadlines are the engine's.
#[async_trait]
pub trait Driver: Send + Sync {
    /// The name that it was configured under.
    fn name(&self) -> &DriverName;

    /// Its type, such as `local`.
    fn kind(&self) -> &'static str;

    /// From where its volumes can be reached.
    fn reach(&self) -> Reach;

    /// What its volumes are made of.
    fn medium(&self) -> Medium {
        Medium::Device
    }

    /// What a new volume will be, by what is asked for and what holds where nothing is. What is asked for and the platform cannot
    /// keep is refused, or noted as a hint that is not followed.
    fn complete(&self, asked: PartialSpec, defaults: &PartialSpec, _hints: HintPolicy) -> Result<VolumeSpec> {
        asked.over(defaults).complete()
    }

    /// All volumes that are ours, half-made ones included.
    async fn list(&self) -> Result<Listing>;

    /// One volume. `None` is proof that there is none; doubt is an error.
    async fn inspect(&self, name: &VolumeName) -> Result<Option<VolumeInfo>>;

    /// Makes the volume's device appear on this node, or finds it.
    async fn attach(&self, name: &VolumeName) -> Result<Attached>;

    /// Makes the volume's device go from this node, and proves it. Works from what the host shows; `device` only saves
    /// the search.
    async fn detach(&self, name: &VolumeName, device: Option<DeviceNumber>) -> Result<Detached>;

    /// Whether the kernel itself says that a device of this node is this volume's, with its data where it belongs. Asks
    /// neither a platform nor a disk, and so never waits; `false` says nothing.
    fn has_in_place(&self, name: &VolumeName, device: DeviceNumber) -> bool;

    /// A process of this node stands between what is mounted and its data, and may die under it. (Of what other nodes could have, the
    /// engine finds that out by its owner.)
    fn is_carried(&self) -> bool {
        false
    }

    /// Whether what leads from this mounted device to the volume's data lives; an error says that it does not, and what to do.
    async fn confirm(&self, _name: &VolumeName, _device: DeviceNumber) -> Result<()> {
        Ok(())
    }

    /// Lets go of what the driver keeps on this node while nothing is attached, if nothing is. The machine shuts down.
    async fn close(&self) -> Result<()> {
        Ok(())
    }

    /// What this node has attached.
    async fn attachments(&self) -> Result<Vec<Attachment>>;

    /// How full the store is.
    async fn capacity(&self) -> Result<Capacity>;

    /// What the platform really spends on a volume, where [`Driver::inspect`] does not say: to ask for it takes longer than a mount
    /// should wait.
    async fn spent(&self, _name: &VolumeName) -> Result<Option<Bytes>> {
        Ok(None)
    }

    /// The capability to make and remove volumes, if the driver has it.
    fn provision(&self) -> Option<&dyn Provision>;

    /// The capability to take what somebody else has made, if the driver has it.
    fn adopt(&self) -> Option<&dyn Adopt>;

    /// The capability to make volumes larger, if the driver has it.
    fn expand(&self) -> Option<&dyn Expand> {
        None
    }

    /// The capability to share volumes among nodes. Whoever can attach a volume on more than one node has it.
    fn share(&self) -> Option<&dyn Share> {
        None
    }
}

/// Something on the platform that looks like a volume and was not made by us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// The name that it would have.
    pub name: VolumeName,
    /// Where it is, as people know it.
    pub place: String,
    /// Its size.
    pub size: Bytes,
    /// What is on it.
    pub found: Probe,
    /// It is a copy of this volume: its filesystem has the same UUID.
    pub copy_of: Option<VolumeName>,
}

/// How a stranger becomes a volume of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Its name.
    pub name: VolumeName,
    /// The endpoint that will list it.
    pub endpoint: EndpointName,
    /// The filesystem that is on it; nothing for a volume of ours that only changes its endpoint.
    pub fs: Option<KnownFs>,
    /// The folder inside that its holders are given.
    pub root_path: Option<RootPath>,
    /// Now.
    pub adopted: Timestamp,
}

/// Taking what somebody else has made. Data is never touched, but by `discard`, which a person has asked for by name.
#[async_trait]
pub trait Adopt: Send + Sync {
    /// All that could be adopted.
    async fn strangers(&self) -> Result<Vec<Stranger>>;

    /// One of them. `None` is proof that there is none; doubt is an error.
    async fn stranger(&self, name: &VolumeName) -> Result<Option<Stranger>>;

    /// Of what other nodes could have: writes down that it is being adopted, and by whom. From then on it has an owner, is shown as
    /// being made, and is attached like any volume; `recover` makes it a stranger again. Refused when another was quicker.
    async fn claim(&self, _adoption: &Adoption, _me: &Owner) -> Result<()> {
        Ok(())
    }

    /// Gives the filesystem of a copy a UUID of its own, of what others could have while it is attached. Refused while anything else has
    /// it open.
    async fn renew(&self, name: &VolumeName, uuid: Uuid) -> Result<()>;

    /// Makes it a volume of ours, or gives one of ours to another endpoint.
    async fn adopt(&self, adoption: &Adoption) -> Result<VolumeInfo>;

    /// Destroys it. Refused while anything has it open.
    async fn discard(&self, name: &VolumeName) -> Result<()>;
}

/// Making volumes larger. None ever becomes smaller.
#[async_trait]
pub trait Expand: Send + Sync {
    /// Makes a volume's storage that long, and its device where it is attached on this node; then writes down that this is its size, and
    /// that its filesystem does not fill it yet. What is long enough already is only written down.
    async fn expand(&self, name: &VolumeName, size: Bytes) -> Result<VolumeInfo>;

    /// Writes down that its filesystem fills it.
    async fn grown(&self, name: &VolumeName) -> Result<VolumeInfo>;
}

/// Making and removing volumes.
///
/// A volume is made in four steps, each durable before the next, so that a crash between any two is recognised:
/// `record` (never formatted) → `allocate` → `formatting` (with the UUID that is to be) → mkfs by the host → `publish`.
#[async_trait]
pub trait Provision: Send + Sync {
    /// Writes down that the volume is wanted. Refuses when the platform has no room.
    async fn record(&self, new: &NewVolume) -> Result<()>;

    /// Makes its storage, blank, under a temporary name, and says where.
    async fn allocate(&self, name: &VolumeName) -> Result<Allocated>;

    /// Writes down that its storage, proven blank, is about to be formatted.
    async fn formatting(&self, name: &VolumeName, uuid: Uuid) -> Result<()>;

    /// Makes the formatted storage the volume's own: from now on it may be attached.
    async fn publish(&self, name: &VolumeName) -> Result<VolumeInfo>;

    /// Removes the volume and its data, or what a create has left of it. Refused while anything has it open.
    async fn remove(&self, name: &VolumeName) -> Result<RemoveAction>;

    /// Finishes or undoes what a crash has left half done of one volume; says what it did, in words for the log.
    async fn recover(&self, name: &VolumeName) -> Result<Option<String>>;
}
