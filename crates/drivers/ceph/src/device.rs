//! A block device, as who makes it tells of it.

use std::path::PathBuf;

use dunnage_host::DeviceNumber;
use serde::{Deserialize, Serialize};

/// A block device that a carrier makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its node.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
}
