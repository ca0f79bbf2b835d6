//! What is done to a pool's files. All of it runs in helpers: a pool's disk may hang.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dunnage_driver::folder::{self as record, sync_folder};
use dunnage_driver::{Capacity, Listing, NewVolume, Phase, VolumeRecord};
use dunnage_host::crash;
use dunnage_host::helpers::Task;
use dunnage_host::linux::{folder_number, lock_folder, probe_file, remove_tree, space_at};
use dunnage_host::{DeviceNumber, Probe, Space};
use dunnage_model::{Bytes, DriverName, Error, Kind, RemoveAction, Result, Usage, VolumeInfo, VolumeName, VolumeState};
use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The file that has the volume in it.
pub const IMAGE: &str = "image";

/// What a pool's volumes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// A file each, with a filesystem in it.
    #[default]
    Images,
    /// A folder each, of the pool's own filesystem.
    Folders,
}

impl Store {
    /// What has the volume in it, beside the record.
    pub fn content(self) -> &'static str {
        match self {
            Store::Images => IMAGE,
            Store::Folders => "data",
        }
    }

    /// The same while it is being made: it gets its name when it is whole.
    fn unfinished(self) -> &'static str {
        match self {
            Store::Images => "image.new",
            Store::Folders => "data.new",
        }
    }
}

/// How full a pool may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// New volumes are refused when less than this share of the pool is free, in per mille.
    pub reserve_permille: u32,
    /// From this share on a warning is given, in per mille.
    pub warn_permille: u32,
    /// What all volumes together may be promised, as a share of the pool in per mille. `None`: anything.
    pub overcommit_permille: Option<u32>,
}

fn share(of: Bytes, permille: u32) -> Bytes {
    Bytes(u64::try_from(u128::from(of.0) * u128::from(permille) / 1000).unwrap_or(u64::MAX))
}

pub fn os(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::os(what, &e)
}

/// Filesystems that a pool may not lie on: another machine may write there too, or a process may die under it.
/// Magics are those of include/uapi/linux/magic.h.
const REFUSED: &[(u32, &str)] = &[
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb"),
    (0x517B, "smb"),
    (0x00C3_6400, "ceph"),
    (0x6573_5546, "fuse (gluster and the like)"),
    (0x0102_1997, "9p"),
    (0x0BD0_0BD0, "lustre"),
    (0x0116_1970, "gfs2"),
    (0x7461_636F, "ocfs2"),
];

#[derive(Serialize, Deserialize)]
pub struct Open {
    pub pool: PathBuf,
}

impl Task for Open {
    const NAME: &'static str = "local.open";
    type Output = ();

    fn run(self) -> Result<()> {
        let what = format!("cannot use {} as a pool", self.pool.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.pool).map_err(os(&what))?;
        let stat = rustix::fs::statfs(&self.pool).map_err(|e| Error::os(&what, &e.into()))?;
        match REFUSED.iter().find(|(magic, _)| u64::from(*magic) == (stat.f_type as u64 & 0xFFFF_FFFF)) {
            Some((_, name)) => Err(Error::invalid(
                "pool",
                format!("{what}: it lies on {name}, where others may write to the same files"),
                "put the pool on a disk of this machine",
            )),
            None => Ok(()),
        }
    }
}

/// A volume as its record and its image tell of it.
pub fn info(driver: &DriverName, store: Store, folder: &Path, record: VolumeRecord) -> VolumeInfo {
    let image = std::fs::metadata(folder.join(store.content()));
    let folder_name = folder.file_name().unwrap_or_default().to_string_lossy();
    let (state, why) = match (record.state(), &image) {
        _ if record.name.as_str() != folder_name => {
            let why = format!("its record is of volume {:?}: the folder was copied or renamed", record.name.as_str());
            (VolumeState::Damaged, Some(why))
        }
        (VolumeState::Ready, Err(e)) => (VolumeState::Damaged, Some(format!("its {} cannot be found: {e}", store.content()))),
        (VolumeState::Ready, Ok(meta)) if store == Store::Images && meta.len() < record.spec.size.0 => {
            let why = format!("its image has {} and should have {}", Bytes(meta.len()), record.spec.size);
            (VolumeState::Damaged, Some(why))
        }
        (state, _) => (state, None),
    };
    // What is in a folder nobody counts.
    let spent = image.ok().filter(|_| store == Store::Images).map(|meta| Bytes(meta.blocks() * 512));
    let name = if state == VolumeState::Damaged { folder_name.parse().unwrap_or(record.name) } else { record.name };
    VolumeRecord { name, ..record }.info(driver, state, why, Usage { spent })
}

#[derive(Serialize, Deserialize)]
pub struct ListAll {
    pub pool: PathBuf,
    pub store: Store,
    pub driver: DriverName,
}

impl Task for ListAll {
    const NAME: &'static str = "local.list";
    type Output = Listing;

    fn run(self) -> Result<Listing> {
        let what = format!("cannot list the pool {}", self.pool.display());
        let mut listing = Listing::default();
        for entry in std::fs::read_dir(&self.pool).map_err(os(&what))? {
            let folder = entry.map_err(os(&what))?.path();
            match record::read(&folder) {
                Ok(Some(record)) => listing.volumes.push(info(&self.driver, self.store, &folder, record)),
                Ok(None) => {}
                Err(e) => listing.unreadable.push(e),
            }
        }
        Ok(listing)
    }
}

#[derive(Serialize, Deserialize)]
pub struct Inspect {
    pub pool: PathBuf,
    pub store: Store,
    pub driver: DriverName,
    pub name: VolumeName,
}

impl Task for Inspect {
    const NAME: &'static str = "local.inspect";
    type Output = Option<VolumeInfo>;

    fn run(self) -> Result<Option<VolumeInfo>> {
        // A pool that is not there any more is no proof that the volume is not.
        let folder = self.pool.join(self.name.as_str());
        let record = record::read(&folder).map_err(|e| e.of(&self.name))?;
        if record.is_none() && !self.pool.is_dir() {
            let detail = format!("the pool {} is not there", self.pool.display());
            return Err(Error::unavailable(detail, "mount the disk that it is on").of(&self.name));
        }
        Ok(record.map(|record| info(&self.driver, self.store, &folder, record)))
    }
}

#[derive(Serialize, Deserialize)]
pub struct Record {
    pub pool: PathBuf,
    pub new: NewVolume,
    pub limits: Limits,
}

impl Task for Record {
    const NAME: &'static str = "local.record";
    type Output = ();

    fn run(self) -> Result<()> {
        check_room(&self.pool, self.limits, self.new.spec.size, self.new.spec.thick)?;
        let folder = self.pool.join(self.new.name.as_str());
        let what = format!("cannot make {}", folder.display());
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            // Left by a create that did not get as far as its record; only an empty one is taken over.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                if std::fs::read_dir(&folder).map_err(os(&what))?.any(|entry| entry.is_ok_and(|e| e.file_name() != "record.json.new")) {
                    return Err(Error::new(
                        Kind::ExistsIncompatible,
                        format!("{what}: there is something in it that Dunnage has not made"),
                        format!("'dunnage volume adopt {}' takes an image as it is; anything else is to be moved away", self.new.name),
                    ));
                }
            }
            Err(e) => return Err(os(what)(e)),
        }
        crash::pass(format_args!("helper/local.record/folder"));
        record::write(&VolumeRecord::new(self.new), &folder)?;
        sync_folder(&self.pool).map_err(os(&what))?;
        Ok(())
    }
}

/// Refuses what a pool should not promise: so much more, thick or not.
fn check_room(pool: &Path, limits: Limits, more: Bytes, thick: bool) -> Result<()> {
    let (space, shown) = (space_at(pool)?, pool.display());
    let refuse = |detail: String| {
        Err(Error::new(Kind::LimitReached, detail, "remove volumes that nobody needs, give the pool more space, or lower its limits"))
    };
    let reserve = share(space.total, limits.reserve_permille);
    let taken = if thick { more } else { Bytes(0) };
    if space.available.0.saturating_sub(taken.0) < reserve.0 {
        return refuse(format!("the pool {shown} has {} left, and keeps a reserve of {reserve}", space.available));
    }
    if let Some(overcommit) = limits.overcommit_permille {
        let most = share(space.total, overcommit);
        let promised = promised(pool)?;
        if promised.0.saturating_add(more.0) > most.0 {
            return refuse(format!("{more} more would promise more than {most} of the pool {shown} (promised now: {promised})"));
        }
    }
    Ok(())
}

/// The sum of what all volumes may grow to.
fn promised(pool: &Path) -> Result<Bytes> {
    let what = format!("cannot list the pool {}", pool.display());
    let mut sum = Bytes(0);
    for entry in std::fs::read_dir(pool).map_err(os(&what))? {
        let folder = entry.map_err(os(&what))?.path();
        if let Ok(Some(record)) = record::read(&folder) {
            sum.0 = sum.0.saturating_add(record.spec.size.0);
        }
    }
    Ok(sum)
}

/// The folder and the record of a volume that must be there.
fn existing(pool: &Path, name: &VolumeName) -> Result<(PathBuf, VolumeRecord)> {
    let folder = pool.join(name.as_str());
    let record = record::read(&folder)?.ok_or_else(|| Error::no_volume(name))?;
    Ok((folder, record))
}

#[derive(Serialize, Deserialize)]
pub struct Allocate {
    pub pool: PathBuf,
    pub store: Store,
    pub name: VolumeName,
}

impl Task for Allocate {
    const NAME: &'static str = "local.allocate";
    type Output = PathBuf;

    fn run(self) -> Result<PathBuf> {
        let (folder, record) = existing(&self.pool, &self.name)?;
        if record.storage != Phase::Never {
            return Err(Error::internal("a volume that has storage was to be given some"));
        }
        let path = folder.join(self.store.unfinished());
        let what = format!("cannot make {}", path.display());
        if self.store == Store::Folders {
            DirBuilder::new().mode(0o700).create(&path).map_err(os(&what))?;
            crash::pass(format_args!("helper/local.allocate/folder"));
            return Ok(path);
        }
        // Never an existing file: this one is new, and so it is blank.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(os(&what))?;
        crash::pass(format_args!("helper/local.allocate/file"));
        set_length(&file, record.spec.size, &what)?;
        Ok(path)
    }
}

fn set_length(file: &File, size: Bytes, what: &str) -> Result<()> {
    match file.set_len(size.0) {
        Err(e) if e.kind() == ErrorKind::FileTooLarge => {
            let detail = format!("the pool's filesystem has no files of {size}");
            Err(Error::invalid("size", detail, "ask for less, or put the pool on another filesystem"))
        }
        outcome => outcome.map_err(os(what)),
    }
}

/// Makes a volume's image longer, before anything says that it is.
#[derive(Serialize, Deserialize)]
pub struct Lengthen {
    pub pool: PathBuf,
    pub limits: Limits,
    pub name: VolumeName,
    pub size: Bytes,
}

impl Task for Lengthen {
    const NAME: &'static str = "local.lengthen";
    type Output = ();

    fn run(self) -> Result<()> {
        let (folder, record) = existing(&self.pool, &self.name)?;
        let path = folder.join(IMAGE);
        let what = format!("cannot lengthen {}", path.display());
        let file = File::options().read(true).write(true).open(&path).map_err(os(&what))?;
        let length = file.metadata().map_err(os(&what))?.len();
        if length < self.size.0 {
            check_room(&self.pool, self.limits, Bytes(self.size.0 - record.spec.size.0.min(self.size.0)), record.spec.thick)?;
            if record.spec.thick {
                // The space first: a file that is longer than what it was given would be thin.
                rustix::fs::fallocate(&file, FallocateFlags::empty(), length, self.size.0 - length)
                    .map_err(|e| Error::os(&what, &e.into()))?;
            }
            set_length(&file, self.size, &what)?;
        }
        file.sync_all().map_err(os(&what))
    }
}

/// Writes down how far a volume has grown.
#[derive(Serialize, Deserialize)]
pub struct Grown {
    pub pool: PathBuf,
    pub driver: DriverName,
    pub name: VolumeName,
    /// Its size, if that is more than it had.
    pub size: Bytes,
    /// Its filesystem does not fill it yet.
    pub growing: bool,
}

impl Task for Grown {
    const NAME: &'static str = "local.grown";
    type Output = VolumeInfo;

    fn run(self) -> Result<VolumeInfo> {
        let (folder, mut record) = existing(&self.pool, &self.name)?;
        record.spec.size = record.spec.size.max(self.size);
        record.growing = self.growing;
        record::write(&record, &folder)?;
        Ok(info(&self.driver, Store::Images, &folder, record))
    }
}

#[derive(Serialize, Deserialize)]
pub struct Formatting {
    pub pool: PathBuf,
    pub name: VolumeName,
    pub uuid: Uuid,
}

impl Task for Formatting {
    const NAME: &'static str = "local.formatting";
    type Output = ();

    fn run(self) -> Result<()> {
        let (folder, mut record) = existing(&self.pool, &self.name)?;
        if record.storage != Phase::Never {
            return Err(Error::internal("a volume that was formatted was to be formatted again"));
        }
        record.storage = Phase::Formatting { fs_uuid: self.uuid };
        record::write(&record, &folder)
    }
}

#[derive(Serialize, Deserialize)]
pub struct Publish {
    pub pool: PathBuf,
    pub store: Store,
    pub driver: DriverName,
    pub name: VolumeName,
}

impl Task for Publish {
    const NAME: &'static str = "local.publish";
    type Output = VolumeInfo;

    fn run(self) -> Result<VolumeInfo> {
        let (folder, mut record) = existing(&self.pool, &self.name)?;
        let Phase::Formatting { fs_uuid } = record.storage else {
            return Err(Error::internal("a volume that is not being formatted was to be finished"));
        };
        let (unfinished, image) = (folder.join(self.store.unfinished()), folder.join(self.store.content()));
        let what = format!("cannot finish {}", image.display());
        if self.store == Store::Images {
            let mut file = File::options().read(true).write(true).open(&unfinished).map_err(os(&what))?;
            match probe_file(&mut file).map_err(os(&what))? {
                Probe::Known(known) if known.uuid == fs_uuid => {}
                other => return Err(Error::internal(format!("{what}: it has {other:?}"))),
            }
            if record.spec.thick {
                // Now that it was proven blank: space that is taken may look like data.
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, record.spec.size.0).map_err(|e| Error::os(&what, &e.into()))?;
            }
            file.sync_all().map_err(os(&what))?;
        }
        std::fs::rename(&unfinished, &image).map_err(os(&what))?;
        crash::pass(format_args!("helper/local.publish/renamed"));
        sync_folder(&folder).map_err(os(&what))?;
        record.storage = Phase::Formatted { fs_uuid };
        record::write(&record, &folder)?;
        Ok(info(&self.driver, self.store, &folder, record))
    }
}

#[derive(Serialize, Deserialize)]
pub struct Remove {
    pub pool: PathBuf,
    pub store: Store,
    pub name: VolumeName,
}

impl Task for Remove {
    const NAME: &'static str = "local.remove";
    type Output = RemoveAction;

    fn run(self) -> Result<RemoveAction> {
        match alone(&self.pool.join(self.name.as_str()))? {
            Some((_alone, record)) => remove(&self.pool, self.store, &self.name, &record),
            None => Ok(RemoveAction::NotThere),
        }
    }
}

/// The record of a volume, with the only right to change what is there: a helper of a daemon that has died may hang in
/// the same work. `None` when there is no volume.
fn alone(folder: &Path) -> Result<Option<(File, VolumeRecord)>> {
    if record::read(folder)?.is_none() {
        return Ok(None);
    }
    let lock = lock_folder(folder)?;
    Ok(record::read(folder)?.map(|record| (lock, record)))
}

fn remove(pool: &Path, store: Store, name: &VolumeName, record: &VolumeRecord) -> Result<RemoveAction> {
    let folder = pool.join(name.as_str());
    if record.name != *name {
        let detail = format!("its record is of volume {:?}: the folder was copied or renamed", record.name.as_str());
        return Err(Error::new(Kind::ExistsIncompatible, detail, "move the folder away, or rename it back"));
    }
    let what = format!("cannot remove {}", folder.display());
    if !record.removing {
        record::mark_removing(&folder).map_err(os(&what))?;
    }
    crash::pass(format_args!("helper/local.remove/marked"));
    for content in [store.unfinished(), store.content()] {
        let content = folder.join(content);
        let removed = match store {
            Store::Images => std::fs::remove_file(content),
            Store::Folders => remove_tree(&content),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(os(what)(e)),
            _ => {}
        }
    }
    // The record goes after the data: as long as it is there, the removal can be finished.
    sync_folder(&folder).map_err(os(&what))?;
    crash::pass(format_args!("helper/local.remove/no-image"));
    record::erase(&folder).map_err(os(&what))?;
    crash::pass(format_args!("helper/local.remove/no-record"));
    match std::fs::remove_dir(&folder) {
        // Something that is not ours lies in it: the volume is gone, the rest is its owner's.
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => return Err(os(what)(e)),
        _ => {}
    }
    sync_folder(pool).map_err(os(what))?;
    Ok(RemoveAction::Removed)
}

#[derive(Serialize, Deserialize)]
pub struct Recover {
    pub pool: PathBuf,
    pub store: Store,
    pub driver: DriverName,
    pub name: VolumeName,
}

impl Task for Recover {
    const NAME: &'static str = "local.recover";
    type Output = Option<String>;

    fn run(self) -> Result<Option<String>> {
        let folder = self.pool.join(self.name.as_str());
        let Some((_alone, mut record)) = alone(&folder)? else {
            let undone = record::erase_unwritten(&folder).map_err(os(format_args!("cannot remove {}", folder.display())))?;
            return Ok(undone.then(|| "removed its folder, which had no record".to_owned()));
        };
        if record.removing {
            remove(&self.pool, self.store, &self.name, &record)?;
            return Ok(Some("finished its removal".to_owned()));
        }
        match record.storage {
            Phase::Formatted { .. } => Ok(None),
            // The rename is the last step but one, and happens only when the filesystem is whole.
            Phase::Formatting { fs_uuid } if folder.join(self.store.content()).exists() => {
                record.storage = Phase::Formatted { fs_uuid };
                record::write(&record, &folder)?;
                Ok(Some("finished its creation".to_owned()))
            }
            // Nobody was told that it exists, and nothing of a user's is in it.
            Phase::Never | Phase::Formatting { .. } => {
                remove(&self.pool, self.store, &self.name, &record)?;
                Ok(Some("undid its creation, which was interrupted".to_owned()))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
pub struct CapacityOf {
    pub pool: PathBuf,
    pub limits: Limits,
}

impl Task for CapacityOf {
    const NAME: &'static str = "local.capacity";
    type Output = Capacity;

    fn run(self) -> Result<Capacity> {
        let space: Space = space_at(&self.pool)?;
        let reserve = share(space.total, self.limits.reserve_permille);
        let mut warnings = Vec::new();
        let full = space.total.0 - space.available.0.min(space.total.0);
        if full >= share(space.total, self.limits.warn_permille).0 {
            let percent = full * 100 / space.total.0.max(1);
            warnings.push(format!("the pool {} is {percent} % full ({} left)", self.pool.display(), space.available));
        }
        Ok(Capacity { place: self.pool.display().to_string(), space, promised: promised(&self.pool)?, reserve, warnings })
    }
}

/// Which folder a path is.
#[derive(Serialize, Deserialize)]
pub struct Number {
    pub path: PathBuf,
}

impl Task for Number {
    const NAME: &'static str = "local.number";
    type Output = DeviceNumber;

    fn run(self) -> Result<DeviceNumber> {
        let what = format!("cannot look at {}", self.path.display());
        match std::fs::symlink_metadata(&self.path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(Error::unavailable(format!("{what}: it is no folder"), "look at what it is, and move it away")),
            Err(e) => return Err(os(what)(e)),
        }
        folder_number(&self.path).ok_or_else(|| Error::internal(what))
    }
}
