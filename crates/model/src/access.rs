//! Who may use a volume, and how one holder gets it.

use serde::{Deserialize, Serialize};

/// How many may hold a volume at a time, and whether they write.
///
/// Readers never stand beside a writer on ext4, xfs or btrfs: the kernel of the reader would cache what the writer
/// changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// One node writes; any number of holders on it.
    #[default]
    SingleWriter,
    /// Nobody writes.
    ManyReaders,
    /// Any number of nodes write, to a filesystem that is made for it.
    ManyWriters,
}

/// What one holder was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum PublishMode {
    /// The filesystem, writable.
    #[default]
    ReadWrite,
    /// The filesystem, read only.
    ReadOnly,
    /// The device alone.
    Device,
}

impl Access {
    /// What a holder of a volume with this access gets.
    pub fn publish_mode(self) -> PublishMode {
        match self {
            Access::SingleWriter | Access::ManyWriters => PublishMode::ReadWrite,
            Access::ManyReaders => PublishMode::ReadOnly,
        }
    }
}
