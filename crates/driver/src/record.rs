//! A volume's record: what it is, and how far its making or its removal has come. Where it is kept is the driver's to say; it is
//! durable there before anything is done.

use dunnage_model::{DriverName, EndpointName, Error, Kind, Result, Usage, VolumeId, VolumeInfo, VolumeName, VolumeSpec, VolumeState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::NewVolume;

/// The version that we write.
const FORMAT: u32 = 1;

/// How far the storage has come. Only `Formatted` may be mounted; only `Never` may become `Formatting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Nothing was ever written to it.
    Never,
    /// Proven blank, and being formatted with this UUID: whatever is on it now is ours to make anew.
    Formatting {
        /// The filesystem's UUID that is to be.
        fs_uuid: Uuid,
    },
    /// It has users' data, for ever.
    Formatted {
        /// The filesystem's UUID.
        fs_uuid: Uuid,
    },
}

impl Phase {
    /// Its name in crash points.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Never => "never",
            Phase::Formatting { .. } => "formatting",
            Phase::Formatted { .. } => "formatted",
        }
    }
}

/// The record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The version of this record.
    pub format: u32,
    /// The oldest version whose readers understand it.
    pub min_reader: u32,
    /// Told from any other volume that ever had this name.
    pub id: Uuid,
    /// The volume's name: that of the folder, or the folder was copied.
    pub name: VolumeName,
    /// The endpoint that lists it.
    pub endpoint: EndpointName,
    /// When it was made.
    pub created: Timestamp,
    /// What it guarantees.
    pub spec: VolumeSpec,
    /// How far its storage has come.
    pub storage: Phase,
    /// Its storage was made larger, and its filesystem does not fill it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub growing: bool,
    /// It is being removed: nothing of it is to be used any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
    /// What a newer version wrote and we do not know: kept.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

impl VolumeRecord {
    /// The record of a volume that is to be made.
    pub fn new(new: NewVolume) -> Self {
        let NewVolume { name, endpoint, created, spec, .. } = new;
        VolumeRecord {
            format: FORMAT,
            min_reader: 1,
            id: Uuid::new_v4(),
            name,
            endpoint,
            created,
            spec,
            storage: Phase::Never,
            growing: false,
            removing: false,
            unknown: serde_json::Map::new(),
        }
    }

    /// Reads one. `what` names it in errors.
    pub fn parse(text: &[u8], what: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            min_reader: u32,
        }
        let damaged = |e: serde_json::Error| {
            Error::unavailable(format!("{what} is damaged: {e}"), "the volume's data was not touched; restore the record from a backup")
        };
        let versions: Versions = serde_json::from_slice(text).map_err(damaged)?;
        if versions.min_reader > FORMAT {
            return Err(Error::new(
                Kind::ExistsIncompatible,
                format!("{what} has format {}, which this version cannot read (it reads up to {FORMAT})", versions.format),
                "use the newer version of Dunnage that wrote it; nothing was changed",
            ));
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    /// Where the volume stands, as far as the record tells.
    pub fn state(&self) -> VolumeState {
        match self.storage {
            _ if self.removing => VolumeState::Removing,
            Phase::Never | Phase::Formatting { .. } => VolumeState::Creating,
            Phase::Formatted { .. } => VolumeState::Ready,
        }
    }

    /// The volume as it is told of. `why` explains a state that is not obvious.
    pub fn info(self, driver: &DriverName, state: VolumeState, why: Option<String>, usage: Usage) -> VolumeInfo {
        let fs_uuid = match self.storage {
            Phase::Formatted { fs_uuid } => Some(fs_uuid),
            Phase::Never | Phase::Formatting { .. } => None,
        };
        let VolumeRecord { name, endpoint, spec, created, growing, .. } = self;
        VolumeInfo { id: VolumeId { driver: driver.clone(), name }, endpoint, spec, created, state, why, fs_uuid, growing, usage }
    }
}
