//! A volume's record: what it is, and how far its making or its removal has come. Durable before anything is done.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use dunnage_host::crash;
use dunnage_model::{EndpointName, Error, Kind, Result, VolumeName, VolumeSpec};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version that we write.
const FORMAT: u32 = 1;

/// The file's name.
pub const FILE: &str = "record.json";
const TEMPORARY: &str = "record.json.new";
/// What it is called while the volume is being removed: a rename needs no room, and a pool that is full is the one that
/// something is to be removed from.
const REMOVING: &str = "record.removing";

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
    fn word(self) -> &'static str {
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
    /// It is being removed: nothing of it is to be used any more. (Told by the file's name.)
    #[serde(skip)]
    pub removing: bool,
    /// What a newer version wrote and we do not know: kept.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

impl VolumeRecord {
    /// The record of a volume that is to be made.
    pub fn new(name: VolumeName, endpoint: EndpointName, created: Timestamp, spec: VolumeSpec) -> Self {
        VolumeRecord {
            format: FORMAT,
            min_reader: 1,
            id: Uuid::new_v4(),
            name,
            endpoint,
            created,
            spec,
            storage: Phase::Never,
            removing: false,
            unknown: serde_json::Map::new(),
        }
    }

    /// Reads the record in a volume's folder. `None`: there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        for (name, removing) in [(FILE, false), (REMOVING, true)] {
            if let Some(record) = Self::read_file(&folder.join(name))? {
                return Ok(Some(VolumeRecord { removing, ..record }));
            }
        }
        Ok(None)
    }

    fn read_file(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::os(format_args!("cannot read {}", path.display()), &e)),
        };
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            min_reader: u32,
        }
        let damaged = |e: serde_json::Error| {
            Error::unavailable(
                format!("{} is damaged: {e}", path.display()),
                "the image beside it was not touched; restore the record from a backup",
            )
        };
        let versions: Versions = serde_json::from_slice(&text).map_err(damaged)?;
        if versions.min_reader > FORMAT {
            return Err(Error::new(
                Kind::ExistsIncompatible,
                format!("{} has format {}, which this version cannot read (it reads up to {FORMAT})", path.display(), versions.format),
                "use the newer version of Dunnage that wrote it; nothing was changed",
            ));
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Writes it: when this returns, it is there after a power cut, or the one before it is.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let what = format!("cannot write {}", folder.join(FILE).display());
        let write = || -> std::io::Result<()> {
            let mut file = File::create(folder.join(TEMPORARY))?;
            file.write_all(&serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            crash::pass(format_args!("helper/record/{}/written", self.storage.word()));
            std::fs::rename(folder.join(TEMPORARY), folder.join(FILE))?;
            crash::pass(format_args!("helper/record/{}/renamed", self.storage.word()));
            sync_folder(folder)
        };
        write().map_err(|e| Error::os(what, &e))
    }

    /// Writes down that the volume is being removed.
    pub fn mark_removing(folder: &Path) -> std::io::Result<()> {
        std::fs::rename(folder.join(FILE), folder.join(REMOVING))?;
        sync_folder(folder)
    }

    /// Removes a folder in which there is nothing but what writing a first record can have left; says whether it was one.
    pub fn erase_unwritten(folder: &Path) -> std::io::Result<bool> {
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        for entry in entries {
            if entry?.file_name() != TEMPORARY {
                return Ok(false);
            }
        }
        Self::erase(folder)?;
        std::fs::remove_dir(folder)?;
        Ok(true)
    }

    /// Removes the record, and what writing it can have left.
    pub fn erase(folder: &Path) -> std::io::Result<()> {
        for file in [TEMPORARY, FILE, REMOVING] {
            match std::fs::remove_file(folder.join(file)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> VolumeRecord {
        let spec = dunnage_model::PartialSpec::default().complete().expect("defaults");
        VolumeRecord::new("pg".parse().expect("name"), "dunnage".parse().expect("name"), Timestamp::UNIX_EPOCH, spec)
    }

    #[test]
    fn a_record_of_the_first_format_is_read() {
        let folder = tempfile::tempdir().expect("dir");
        std::fs::write(folder.path().join(FILE), include_str!("../tests/fixtures/record-format-1.json")).expect("write");
        let record = VolumeRecord::read(folder.path()).expect("read").expect("there");
        assert_eq!(record.name.as_str(), "pg");
        assert!(matches!(record.storage, Phase::Formatted { .. }));
    }

    #[test]
    fn what_a_newer_version_added_survives_being_rewritten() {
        let folder = tempfile::tempdir().expect("dir");
        let mut record = sample();
        record.unknown.insert("snapshots".into(), serde_json::json!(["monday"]));
        record.format = 7;
        record.write(folder.path()).expect("write");
        let read = VolumeRecord::read(folder.path()).expect("read").expect("there");
        assert_eq!(read, record);
    }

    #[test]
    fn a_record_that_only_a_newer_version_can_read_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("dir");
        let mut record = sample();
        (record.format, record.min_reader) = (9, 9);
        record.write(folder.path()).expect("write");
        let before = std::fs::read(folder.path().join(FILE)).expect("read");
        let error = VolumeRecord::read(folder.path()).expect_err("too new");
        assert!(error.to_string().contains("format 9"), "{error}");
        assert_eq!(std::fs::read(folder.path().join(FILE)).expect("read"), before);
    }

    #[test]
    fn a_torn_record_is_an_error_and_not_an_absent_volume() {
        let folder = tempfile::tempdir().expect("dir");
        std::fs::write(folder.path().join(FILE), "{\"format\":1,").expect("write");
        assert!(VolumeRecord::read(folder.path()).is_err());
    }
}
