//! Images (or folders) that somebody else put into the pool, as `POOL/NAME/image` (or `data`): found, taken with what is on them, or destroyed where a
//! person says so by name.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dunnage_driver::folder::{self as record, sync_folder};
use dunnage_driver::{Adoption, NewVolume, Phase, Stranger, VolumeRecord};
use dunnage_host::crash;
use dunnage_host::helpers::Task;
use dunnage_host::linux::{free_of_others, lock_folder, probe_file};
use dunnage_host::{KnownFs, Probe};
use dunnage_model::{Bytes, DriverName, Error, FsKind, HERE, Kind, PartialSpec, Result, VolumeInfo, VolumeName, VolumeSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::pool::{Store, info, os};

/// All strangers, or the one of a name.
#[derive(Serialize, Deserialize)]
pub struct Strangers {
    pub pool: PathBuf,
    pub store: Store,
    pub name: Option<VolumeName>,
}

impl Task for Strangers {
    const NAME: &'static str = "local.strangers";
    type Output = Vec<Stranger>;

    fn run(self) -> Result<Vec<Stranger>> {
        let what = format!("cannot list the pool {}", self.pool.display());
        let names: Vec<VolumeName> = match &self.name {
            Some(name) => vec![name.clone()],
            None => {
                let entries = std::fs::read_dir(&self.pool).map_err(os(&what))?.collect::<std::io::Result<Vec<_>>>().map_err(os(&what))?;
                entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
            }
        };
        let mut strangers = Vec::new();
        for name in names {
            // One that cannot be read is told of when it is asked for by name.
            match look(&self.pool, self.store, &name) {
                Ok(found) => strangers.extend(found),
                Err(e) if self.name.is_some() => return Err(e),
                Err(_) => {}
            }
        }
        Ok(strangers)
    }
}

/// What is in a folder of the pool that is no volume of ours: an image without a record, or with that of another folder.
fn look(pool: &Path, store: Store, name: &VolumeName) -> Result<Option<Stranger>> {
    let folder = pool.join(name.as_str());
    if record::read(&folder)?.is_some_and(|record| record.name == *name) {
        return Ok(None);
    }
    let image = folder.join(store.content());
    let what = format!("cannot look at {}", image.display());
    // No link is followed: it could lead anywhere.
    match std::fs::symlink_metadata(&image) {
        Ok(meta) if store == Store::Folders && meta.is_dir() => {
            // Any folder will do; its identity begins with its record.
            let found = Probe::Known(KnownFs { fs: FsKind::Folder, uuid: Uuid::new_v4(), dirty_journal: false, has_errors: false });
            return Ok(Some(Stranger { name: name.clone(), place: image.display().to_string(), size: Bytes(0), found, copy_of: None }));
        }
        Ok(meta) if store == Store::Images && meta.is_file() => {}
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Err(os(what)(e)),
        _ => return Ok(None),
    }
    let mut file = File::open(&image).map_err(os(&what))?;
    let found = probe_file(&mut file).map_err(os(&what))?;
    let size = Bytes(file.metadata().map_err(os(&what))?.len());
    let copy_of = match &found {
        Probe::Known(known) => other_with(pool, name, known)?,
        _ => None,
    };
    Ok(Some(Stranger { name: name.clone(), place: image.display().to_string(), size, found, copy_of }))
}

/// Another volume of the pool whose filesystem has the same UUID.
fn other_with(pool: &Path, name: &VolumeName, known: &KnownFs) -> Result<Option<VolumeName>> {
    let what = format!("cannot list the pool {}", pool.display());
    for entry in std::fs::read_dir(pool).map_err(os(&what))? {
        let folder = entry.map_err(os(&what))?.path();
        if folder.file_name().is_some_and(|other| other == name.as_str()) {
            continue;
        }
        if let Ok(Some(VolumeRecord { storage: Phase::Formatted { fs_uuid }, name: other, .. })) = record::read(&folder)
            && fs_uuid == known.uuid
        {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Makes a stranger a volume, or gives a volume to another endpoint.
#[derive(Serialize, Deserialize)]
pub struct Take {
    pub pool: PathBuf,
    pub store: Store,
    pub driver: DriverName,
    pub adoption: Adoption,
}

impl Task for Take {
    const NAME: &'static str = "local.adopt";
    type Output = VolumeInfo;

    fn run(self) -> Result<VolumeInfo> {
        let Adoption { name, endpoint, fs, root_path, adopted } = self.adoption;
        let folder = self.pool.join(name.as_str());
        let _alone = lock_folder(&folder)?;
        if let Some(mut record) = record::read(&folder)?.filter(|record| record.name == name) {
            record.endpoint = endpoint;
            record::write(&record, &folder)?;
            return Ok(info(&self.driver, self.store, &folder, record));
        }
        let image = folder.join(self.store.content());
        let what = format!("cannot adopt {}", image.display());
        let mut file = File::open(&image).map_err(os(&what))?;
        let (known, size) = match (self.store, fs) {
            (Store::Folders, Some(fs)) => (fs, Bytes(0)),
            (Store::Images, Some(fs)) => match probe_file(&mut file).map_err(os(&what))? {
                Probe::Known(known) if fs.uuid == known.uuid && fs.fs == known.fs => {
                    (known, Bytes(file.metadata().map_err(os(&what))?.len()))
                }
                other => return Err(Error::internal(format!("{what}: it has {other:?} now"))),
            },
            (_, None) => return Err(Error::internal(format!("{what}: nobody has looked at it"))),
        };
        let whole = PartialSpec { fs: Some(known.fs), root_path, ..PartialSpec::default() }.complete()?;
        // Its size is what it has, whatever a new one would have to have.
        let spec = VolumeSpec { size, ..whole };
        let mut record = VolumeRecord::new(NewVolume { name, endpoint, spec, created: adopted, maker: None });
        record.storage = Phase::Formatted { fs_uuid: known.uuid };
        record::write(&record, &folder)?;
        sync_folder(&self.pool).map_err(os(&what))?;
        Ok(info(&self.driver, self.store, &folder, record))
    }
}

/// Destroys a stranger: what a person wants who says so by name.
#[derive(Serialize, Deserialize)]
pub struct Discard {
    pub pool: PathBuf,
    pub store: Store,
    pub name: VolumeName,
}

impl Task for Discard {
    const NAME: &'static str = "local.discard";
    type Output = ();

    fn run(self) -> Result<()> {
        let folder = self.pool.join(self.name.as_str());
        let what = format!("cannot discard {}", folder.display());
        let _alone = lock_folder(&folder)?;
        if look(&self.pool, self.store, &self.name)?.is_none() {
            let detail = "there is nothing of that name that was not made by Dunnage";
            return Err(Error::not_found(detail, "look at 'dunnage volume adopt --all --dry-run'"));
        }
        let image = folder.join(self.store.content());
        if self.store == Store::Folders {
            let detail = format!("{} is a folder: it can be adopted as it is, or moved away", image.display());
            return Err(Error::invalid("overwrite", detail, "leave --overwrite out"));
        }
        let file = File::options().read(true).write(true).open(&image).map_err(os(&what))?;
        if free_of_others(&file).map_err(os(&what))? == Some(false) {
            let kind = Kind::InUse { holders: Vec::new(), node: HERE.to_owned() };
            return Err(Error::new(kind, format!("{} is in use", image.display()), "end what has it open ('losetup -a', 'fuser')"));
        }
        std::fs::remove_file(&image).map_err(os(&what))?;
        crash::pass(format_args!("helper/local.discard/no-image"));
        // The record of the volume that the folder was copied from.
        record::erase(&folder).map_err(os(&what))?;
        sync_folder(&folder).map_err(os(what))
    }
}
