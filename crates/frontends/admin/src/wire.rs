//! The words of the admin socket.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dunnage_engine::{DriverView, Evicted, Inspection, NodeView, VolumeView};
use dunnage_model::{
    AdoptAction, AttachAction, CreateAction, Error, Hint, MountAction, RemoveAction, ResizeAction, UnmountAction, VolumeInfo,
};
use serde::{Deserialize, Serialize};

/// Where the socket is, in the run directory.
pub const SOCKET: &str = "admin.sock";
/// The header that says for how many seconds the caller waits.
pub const PATIENCE: &str = "dunnage-patience";

/// The daemon about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its node.
    pub node: String,
    /// Where its configuration came from.
    pub config: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// What does not work, in sentences. Empty when all is well.
    pub degraded: Vec<String>,
}

/// One endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Its socket.
    pub socket: String,
}

/// What to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateBody {
    /// Its name.
    pub name: String,
    /// The driver; the first endpoint's when absent.
    #[serde(default)]
    pub driver: Option<String>,
    /// The endpoint that shall list it; the first of that driver when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Options, as everywhere.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// It is to be a copy of this raw image, a file or a device of the daemon's node. For root alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    /// What was done.
    pub action: CreateAction,
    /// The volume.
    pub volume: std::sync::Arc<VolumeInfo>,
    /// Hints that nobody follows.
    pub unheeded: Vec<Hint>,
}

/// What a mount came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mounted {
    /// What was done.
    pub action: MountAction,
    /// Where it is.
    pub path: String,
}

/// What an attach came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attached {
    /// What was done.
    pub action: AttachAction,
    /// The device node.
    pub device: String,
}

/// What an unmount or a detach came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unmounted {
    /// What was done.
    pub action: UnmountAction,
    /// Processes in other namespaces that keep the device.
    pub lingering: Vec<String>,
}

/// How large a volume shall be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResizeBody {
    /// As a user would write it: `20GiB`.
    pub size: String,
}

/// What a resize came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resized {
    /// What was done.
    pub action: ResizeAction,
    /// The volume.
    pub volume: std::sync::Arc<VolumeInfo>,
}

/// What to adopt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AdoptBody {
    /// The driver; the one that has it when absent.
    #[serde(default)]
    pub driver: Option<String>,
    /// The endpoint that shall list it; the first of that driver when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The folder inside that holders are given; found out when absent.
    #[serde(default)]
    pub root_path: Option<String>,
    /// What is there is destroyed.
    #[serde(default)]
    pub overwrite: bool,
}

/// What an adoption came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Adopted {
    /// What was done.
    pub action: AdoptAction,
    /// The volume.
    pub volume: std::sync::Arc<VolumeInfo>,
}

/// What could be adopted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Strangers {
    /// Driver and what it has.
    pub strangers: Vec<(dunnage_model::DriverName, dunnage_driver::Stranger)>,
    /// One sentence for each driver that does not say.
    pub notes: Vec<String>,
}

/// What a removal came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {
    /// What was done.
    pub action: RemoveAction,
}

/// All volumes, and what could not be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volumes {
    /// The volumes.
    pub volumes: Vec<VolumeView>,
    /// One sentence for each driver that does not say.
    pub notes: Vec<String>,
}

/// One volume.
pub type Inspected = Inspection;
/// All drivers.
pub type Drivers = Vec<DriverView>;

/// All holders on this node.
pub type Held = Vec<dunnage_engine::Held>;

/// Which holder to let go of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReleaseBody {
    /// The beginning of its ID; the only holder when absent.
    #[serde(default)]
    pub id: Option<String>,
}

/// What letting go of everything came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Released {
    /// What could not be let go.
    pub failed: Vec<Error>,
}

/// All nodes, and what could not be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Nodes {
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// One sentence for each driver that does not say.
    pub notes: Vec<String>,
}

/// How a node is to be cut off.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FenceBody {
    /// The driver; all when absent.
    #[serde(default)]
    pub driver: Option<String>,
    /// It may be one that lives.
    #[serde(default)]
    pub force: bool,
}

/// What became of its volumes.
pub type Fenced = Vec<Evicted>;
