//! A volume's record as a file in the volume's own folder, durable before anything is done: for drivers that keep volumes in folders.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use dunnage_host::crash;
use dunnage_model::{Error, Result};

use crate::VolumeRecord;

/// The file's name.
pub const FILE: &str = "record.json";
const TEMPORARY: &str = "record.json.new";
/// What it is called while the volume is being removed: a rename needs no room, and a pool that is full is the one that
/// something is to be removed from.
const REMOVING: &str = "record.removing";

/// Reads the record in a volume's folder. `None`: there is none.
pub fn read(folder: &Path) -> Result<Option<VolumeRecord>> {
    for (name, removing) in [(FILE, false), (REMOVING, true)] {
        if let Some(record) = read_file(&folder.join(name))? {
            return Ok(Some(VolumeRecord { removing, ..record }));
        }
    }
    Ok(None)
}

fn read_file(path: &Path) -> Result<Option<VolumeRecord>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::os(format_args!("cannot read {}", path.display()), &e)),
    };
    VolumeRecord::parse(&text, &path.display().to_string()).map(Some)
}

/// Writes it: when this returns, it is there after a power cut, or the one before it is.
pub fn write(record: &VolumeRecord, folder: &Path) -> Result<()> {
    let what = format!("cannot write {}", folder.join(FILE).display());
    let write = || -> std::io::Result<()> {
        let mut file = File::create(folder.join(TEMPORARY))?;
        file.write_all(&serde_json::to_vec_pretty(record).map_err(std::io::Error::other)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        crash::pass(format_args!("helper/record/{}/written", record.storage.word()));
        std::fs::rename(folder.join(TEMPORARY), folder.join(FILE))?;
        crash::pass(format_args!("helper/record/{}/renamed", record.storage.word()));
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
    erase(folder)?;
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

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewVolume, Phase};
    use jiff::Timestamp;

    fn sample() -> VolumeRecord {
        let spec = dunnage_model::PartialSpec::default().complete().expect("defaults");
        let (name, endpoint) = ("pg".parse().expect("name"), "dunnage".parse().expect("name"));
        VolumeRecord::new(NewVolume { name, endpoint, created: Timestamp::UNIX_EPOCH, spec, maker: None })
    }

    #[test]
    fn a_record_of_the_first_format_is_read() {
        let folder = tempfile::tempdir().expect("dir");
        std::fs::write(folder.path().join(FILE), include_str!("../tests/fixtures/record-format-1.json")).expect("write");
        let record = read(folder.path()).expect("read").expect("there");
        assert_eq!(record.name.as_str(), "pg");
        assert!(matches!(record.storage, Phase::Formatted { .. }));
    }

    #[test]
    fn what_a_newer_version_added_survives_being_rewritten() {
        let folder = tempfile::tempdir().expect("dir");
        let mut record = sample();
        record.unknown.insert("snapshots".into(), serde_json::json!(["monday"]));
        record.format = 7;
        write(&record, folder.path()).expect("write");
        let read = super::read(folder.path()).expect("read").expect("there");
        assert_eq!(read, record);
    }

    #[test]
    fn a_record_that_only_a_newer_version_can_read_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("dir");
        let mut record = sample();
        (record.format, record.min_reader) = (9, 9);
        write(&record, folder.path()).expect("write");
        let before = std::fs::read(folder.path().join(FILE)).expect("read");
        let error = read(folder.path()).expect_err("too new");
        assert!(error.to_string().contains("format 9"), "{error}");
        assert_eq!(std::fs::read(folder.path().join(FILE)).expect("read"), before);
    }

    #[test]
    fn a_torn_record_is_an_error_and_not_an_absent_volume() {
        let folder = tempfile::tempdir().expect("dir");
        std::fs::write(folder.path().join(FILE), "{\"format\":1,").expect("write");
        assert!(read(folder.path()).is_err());
    }
}
