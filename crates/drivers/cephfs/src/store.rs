//! What lies in the filesystem, and how nodes that know nothing of each other change it: by renames, each of which one of them wins.
//!
//! `NAME/` has `record.json`, the volume's own folder `data`, and in `nodes` a file for each node that has it. A volume is made whole in
//! `.new/NODE/NAME` before it gets its name, and goes by `.gone/NODE/NAME`: what is half made or half removed is its own node's alone to
//! finish.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dunnage_driver::{Attached, Attachment, Capacity, Listing, NewVolume, Phase, VolumeRecord, folder};
use dunnage_host::DeviceNumber;
use dunnage_host::crash;
use dunnage_host::helpers::{Registry, Task};
use dunnage_host::linux::{folder_number, remove_tree, space_at};
use dunnage_model::{Bytes, DriverName, Error, HERE, Kind, Owner, RemoveAction, Result, Usage, VolumeInfo, VolumeName, VolumeState};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::mount::{Close, Filesystem, VOLUMES, make, os};

/// A volume's own folder.
const DATA: &str = "data";
/// Who has it.
const NODES: &str = "nodes";

/// The tasks that helpers must know for this driver.
pub fn tasks(registry: Registry) -> Registry {
    registry
        .with::<ListAll>()
        .with::<Inspect>()
        .with::<Record>()
        .with::<Allocate>()
        .with::<Formatting>()
        .with::<Publish>()
        .with::<Expand>()
        .with::<Remove>()
        .with::<Recover>()
        .with::<Attach>()
        .with::<Confirm>()
        .with::<Detach>()
        .with::<Attachments>()
        .with::<Had>()
        .with::<CapacityOf>()
        .with::<Spent>()
        .with::<Close>()
}

/// The filesystem, as one node of it has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    pub fs: Filesystem,
    pub driver: DriverName,
    pub me: Owner,
}

impl Place {
    fn open(&self) -> Result<Store<'_>> {
        Ok(Store { place: self, volumes: self.fs.volumes()? })
    }
}

/// The folders of the volumes, with the filesystem mounted.
struct Store<'a> {
    place: &'a Place,
    volumes: PathBuf,
}

impl Store<'_> {
    fn whole(&self, name: &VolumeName) -> PathBuf {
        self.volumes.join(name.as_str())
    }

    /// Where this node makes volumes, or removes them.
    fn own(&self, kind: &str) -> PathBuf {
        self.volumes.join(kind).join(self.place.me.node.as_str())
    }

    fn half(&self, name: &VolumeName) -> PathBuf {
        self.own(".new").join(name.as_str())
    }

    fn gone(&self, name: &VolumeName) -> PathBuf {
        self.own(".gone").join(name.as_str())
    }

    fn make_own(&self, kind: &str) -> Result<()> {
        make(&self.volumes.join(kind))?;
        make(&self.own(kind))
    }

    fn mark(&self, folder: &Path) -> PathBuf {
        folder.join(NODES).join(self.place.me.node.as_str())
    }

    /// This very run of this node has it.
    fn is_marked(&self, folder: &Path) -> Result<bool> {
        let mark = self.mark(folder);
        match std::fs::read_to_string(&mark) {
            Ok(boot) => Ok(boot == self.place.me.boot.0),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(os(format_args!("cannot read {}", mark.display()))(e)),
        }
    }

    fn find(&self, name: &VolumeName) -> Result<Option<VolumeInfo>> {
        let folder = self.whole(name);
        if let Some(record) = folder::read(&folder)? {
            return Ok(Some(self.info(&folder, record)));
        }
        if let Some(record) = folder::read(&self.gone(name))? {
            return Ok(Some(record.info(&self.place.driver, VolumeState::Removing, None, Usage::default())));
        }
        let half = folder::read(&self.half(name))?;
        Ok(half.map(|record| record.info(&self.place.driver, VolumeState::Creating, None, Usage::default())))
    }

    fn info(&self, folder: &Path, record: VolumeRecord) -> VolumeInfo {
        let (state, why) = match std::fs::symlink_metadata(folder.join(DATA)) {
            _ if folder.file_name().is_none_or(|name| name != record.name.as_str()) => {
                let why = format!("its record is of volume {:?}: the folder was copied or renamed", record.name.as_str());
                (VolumeState::Damaged, Some(why))
            }
            Ok(meta) if meta.is_dir() => (record.state(), None),
            Ok(_) => (VolumeState::Damaged, Some(format!("its {DATA} is no folder"))),
            Err(e) => (VolumeState::Damaged, Some(format!("its {DATA} cannot be found: {e}"))),
        };
        let name = folder.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(record.name);
        VolumeRecord { name, ..record }.info(&self.place.driver, state, why, Usage::default())
    }

    /// Every name that a folder has, of those that a volume can have.
    fn names(&self, folder: &Path) -> Result<Vec<VolumeName>> {
        let what = format!("cannot list {}", folder.display());
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(os(&what))?.collect::<std::io::Result<Vec<_>>>().map_err(os(&what))?,
        };
        Ok(entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Refuses when a node has the volume that lies in this folder.
    fn refuse_if_used(&self, name: &VolumeName, folder: &Path) -> Result<()> {
        let nodes = folder.join(NODES);
        let what = format!("cannot list {}", nodes.display());
        let mut users = Vec::new();
        let entries = match std::fs::read_dir(&nodes) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(os(&what))?,
        };
        for entry in entries {
            let node = entry.map_err(os(&what))?.file_name().to_string_lossy().into_owned();
            // What an earlier run of this node had is gone with it.
            if node != self.place.me.node.as_str() || self.is_marked(folder)? {
                users.push(node);
            }
        }
        let Some(first) = users.first() else { return Ok(()) };
        let node = if first == self.place.me.node.as_str() { HERE.to_owned() } else { first.clone() };
        let next =
            format!("end what uses it there; if that node is gone for good, delete {VOLUMES}/{name}/{NODES}/{first} in the filesystem");
        let holders = users.iter().map(|user| format!("node {user}")).collect();
        Err(Error::new(Kind::InUse { holders, node }, "it is in use", next))
    }

    /// Takes what is left of a volume away, if no node has it; else puts it back to where it was.
    fn finish_removal(&self, name: &VolumeName) -> Result<()> {
        let gone = self.gone(name);
        let what = format!("cannot remove {}", gone.display());
        // Once it is written down that nobody has it, it is not asked again: its data may be half gone.
        if folder::read(&gone)?.is_some_and(|record| !record.removing) {
            match self.refuse_if_used(name, &gone) {
                Err(e) if matches!(e.kind, Kind::InUse { .. }) => {
                    std::fs::rename(&gone, self.whole(name)).map_err(os(format_args!("cannot take the removal of {name} back")))?;
                    return Err(e);
                }
                outcome => outcome?,
            }
            crash::pass(format_args!("helper/cephfs.remove/renamed"));
            folder::mark_removing(&gone).map_err(os(&what))?;
        }
        crash::pass(format_args!("helper/cephfs.remove/marked"));
        // The record goes last: as long as it is there, the removal is known as that.
        for part in [DATA, NODES] {
            gone_already(remove_tree(&gone.join(part))).map_err(os(&what))?;
        }
        crash::pass(format_args!("helper/cephfs.remove/no-data"));
        gone_already(remove_tree(&gone)).map_err(os(&what))
    }
}

fn gone_already(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A task: its name, its fields, what comes of it, and what it does in the store.
macro_rules! task {
    ($(#[$doc:meta])* $task:ident, $name:literal, { $($field:ident: $type:ty),* } -> $output:ty, $store:ident => $work:expr) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize)]
        pub struct $task {
            pub place: Place,
            $(pub $field: $type,)*
        }

        impl Task for $task {
            const NAME: &'static str = $name;
            type Output = $output;

            fn run(self) -> Result<$output> {
                let $task { place, $($field),* } = self;
                let $store = place.open()?;
                $work
            }
        }
    };
}

task! {
    ListAll, "cephfs.list", {} -> Listing, store => {
        let mut listing = Listing::default();
        let mut names = store.names(&store.volumes)?;
        for kind in [".new", ".gone"] {
            names.extend(store.names(&store.own(kind))?);
        }
        names.sort();
        names.dedup();
        for name in names {
            match store.find(&name) {
                Ok(found) => listing.volumes.extend(found),
                Err(e) => listing.unreadable.push(e.of(&name)),
            }
        }
        Ok(listing)
    }
}

task! {
    Inspect, "cephfs.inspect", { name: VolumeName } -> Option<VolumeInfo>, store => store.find(&name)
}

fn taken(name: &VolumeName) -> Error {
    let detail = format!("there is a {name} in the filesystem already: another node has just made it, or something that is not Dunnage");
    Error::new(Kind::ExistsIncompatible, detail, "ask again, or choose another name")
}

task! {
    Record, "cephfs.record", { new: NewVolume } -> (), store => {
        let half = store.half(&new.name);
        let what = format!("cannot make {}", half.display());
        if std::fs::symlink_metadata(store.whole(&new.name)).is_ok() {
            return Err(taken(&new.name));
        }
        store.make_own(".new")?;
        // Left by a create that did not get as far as its record.
        gone_already(remove_tree(&half)).map_err(os(&what))?;
        DirBuilder::new().mode(0o700).create(&half).map_err(os(&what))?;
        crash::pass(format_args!("helper/cephfs.record/folder"));
        folder::write(&VolumeRecord::new(new), &half)
    }
}

/// The record of a volume that this node is making.
fn half_made(store: &Store<'_>, name: &VolumeName) -> Result<(PathBuf, VolumeRecord)> {
    let half = store.half(name);
    let record = folder::read(&half)?.ok_or_else(|| Error::no_volume(name))?;
    Ok((half, record))
}

task! {
    Allocate, "cephfs.allocate", { name: VolumeName } -> PathBuf, store => {
        let (half, record) = half_made(&store, &name)?;
        if record.storage != Phase::Never {
            return Err(Error::internal("a volume that has storage was to be given some"));
        }
        let data = half.join(DATA);
        let what = format!("cannot make {}", data.display());
        DirBuilder::new().mode(0o700).create(&data).map_err(os(&what))?;
        crash::pass(format_args!("helper/cephfs.allocate/folder"));
        give_quota(&store, &data, record.spec.size)?;
        Ok(data)
    }
}

fn give_quota(store: &Store<'_>, data: &Path, size: Bytes) -> Result<()> {
    let quota = size.0.to_string();
    match rustix::fs::setxattr(data, "ceph.quota.max_bytes", quota.as_bytes(), XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            let detail = format!("client.{} may not set quotas, and so no size can be given", store.place.fs.user);
            let next = format!("ceph fs authorize FILESYSTEM client.{} {} rwp", store.place.fs.user, store.place.fs.path.display());
            Err(Error::new(Kind::Permission, detail, next))
        }
        Err(e) => Err(Error::os(format_args!("cannot give {} a quota", data.display()), &e.into())),
    }
}

task! {
    /// The quota is given first: a record never says more than there is. Of two nodes that do it at once the last record counts.
    Expand, "cephfs.expand", { name: VolumeName, size: Bytes } -> VolumeInfo, store => {
        let whole = ready(&store, &name)?;
        let mut record = folder::read(&whole)?.ok_or_else(|| Error::no_volume(&name))?;
        let size = record.spec.size.max(size);
        give_quota(&store, &whole.join(DATA), size)?;
        record.spec.size = size;
        folder::write(&record, &whole)?;
        Ok(store.info(&whole, record))
    }
}

task! {
    Formatting, "cephfs.formatting", { name: VolumeName, uuid: Uuid } -> (), store => {
        let (half, mut record) = half_made(&store, &name)?;
        if record.storage != Phase::Never {
            return Err(Error::internal("a volume that was formatted was to be formatted again"));
        }
        record.storage = Phase::Formatting { fs_uuid: uuid };
        folder::write(&record, &half)
    }
}

task! {
    Publish, "cephfs.publish", { name: VolumeName } -> VolumeInfo, store => {
        let (half, mut record) = half_made(&store, &name)?;
        let Phase::Formatting { fs_uuid } = record.storage else {
            return Err(Error::internal("a volume that is not being formatted was to be finished"));
        };
        make(&half.join(NODES))?;
        record.storage = Phase::Formatted { fs_uuid };
        folder::write(&record, &half)?;
        crash::pass(format_args!("helper/cephfs.publish/whole"));
        let whole = store.whole(&name);
        // Of several nodes that make one of this name one comes first: no folder with something in it is replaced.
        std::fs::rename(&half, &whole).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => taken(&name),
            _ => os(format_args!("cannot finish {}", whole.display()))(e),
        })?;
        folder::sync_folder(&store.volumes).map_err(os(format_args!("cannot finish {}", whole.display())))?;
        Ok(store.info(&whole, record))
    }
}

task! {
    Remove, "cephfs.remove", { name: VolumeName } -> RemoveAction, store => {
        let (whole, gone, half) = (store.whole(&name), store.gone(&name), store.half(&name));
        let what = format!("cannot remove {}", whole.display());
        if folder::read(&whole)?.is_some() {
            store.refuse_if_used(&name, &whole)?;
            store.make_own(".gone")?;
            if std::fs::symlink_metadata(&gone).is_ok() {
                // An earlier volume of the name, whose removal was interrupted.
                store.finish_removal(&name)?;
            }
            // From here on nobody finds it; who has it is looked at after that.
            match std::fs::rename(&whole, &gone) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(RemoveAction::NotThere),
                outcome => outcome.map_err(os(&what))?,
            }
        }
        if std::fs::symlink_metadata(&gone).is_ok() {
            store.finish_removal(&name)?;
        } else if std::fs::symlink_metadata(&half).is_ok() {
            remove_tree(&half).map_err(os(&what))?;
        } else {
            return Ok(RemoveAction::NotThere);
        }
        folder::sync_folder(&store.volumes).map_err(os(&what))?;
        Ok(RemoveAction::Removed)
    }
}

task! {
    Recover, "cephfs.recover", { name: VolumeName } -> Option<String>, store => {
        let half = store.half(&name);
        if std::fs::symlink_metadata(store.gone(&name)).is_ok() {
            return match store.finish_removal(&name) {
                Ok(()) => Ok(Some("finished its removal".to_owned())),
                Err(e) if matches!(e.kind, Kind::InUse { .. }) => Ok(Some("took its removal back, for it is in use".to_owned())),
                Err(e) => Err(e),
            };
        }
        if std::fs::symlink_metadata(&half).is_err() {
            return Ok(None);
        }
        remove_tree(&half).map_err(os(format_args!("cannot remove {}", half.display())))?;
        Ok(Some("undid its creation, which was interrupted".to_owned()))
    }
}

/// The folder of a volume that can be used.
fn ready(store: &Store<'_>, name: &VolumeName) -> Result<PathBuf> {
    match store.find(name)? {
        None => Err(Error::no_volume(name)),
        Some(VolumeInfo { state: VolumeState::Ready, .. }) => Ok(store.whole(name)),
        Some(info) => {
            let why = info.why.map(|why| format!(": {why}")).unwrap_or_default();
            Err(Error::unavailable(format!("it is {}{why}", info.state), "look at 'dunnage volume inspect'"))
        }
    }
}

fn number(data: &Path) -> Result<DeviceNumber> {
    folder_number(data).ok_or_else(|| Error::internal(format!("cannot look at {}", data.display())))
}

task! {
    Attach, "cephfs.attach", { name: VolumeName } -> Attached, store => {
        let folder = ready(&store, &name)?;
        let found = store.is_marked(&folder)?;
        if !found {
            let mark = store.mark(&folder);
            std::fs::write(&mark, &store.place.me.boot.0).map_err(os(format_args!("cannot write {}", mark.display())))?;
        }
        // Who removes it renames it first and looks for marks after that: ours is there, or the volume is not.
        ready(&store, &name)?;
        let path = folder.join(DATA);
        Ok(Attached { number: number(&path)?, path, found })
    }
}

task! {
    Confirm, "cephfs.confirm", { name: VolumeName, device: DeviceNumber } -> (), store => {
        let now = number(&store.whole(&name).join(DATA))?;
        if now == device {
            return Ok(());
        }
        let detail = "it is mounted here, and what led to its data has died";
        Err(Error::in_use(Vec::new(), HERE, detail, "end what uses it on this node; then it can be mounted anew"))
    }
}

task! {
    Detach, "cephfs.detach", { name: VolumeName } -> bool, store => {
        let folder = store.whole(&name);
        let mark = store.mark(&folder);
        let what = format!("cannot let go of {}", folder.display());
        if !store.is_marked(&folder)? {
            return Ok(false);
        }
        // Whoever has ended without an fsync has written, too.
        match File::open(folder.join(DATA)) {
            Ok(data) => rustix::fs::syncfs(&data).map_err(|e| Error::os(&what, &e.into()))?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(os(what)(e)),
        }
        gone_already(std::fs::remove_file(mark)).map_err(os(what))?;
        Ok(true)
    }
}

task! {
    Attachments, "cephfs.attachments", {} -> Vec<Attachment>, store => {
        let mut attachments = Vec::new();
        for name in store.names(&store.volumes)? {
            let folder = store.whole(&name);
            // What is no volume of ours is not looked into.
            if folder::read(&folder).ok().flatten().is_none() {
                continue;
            }
            if store.is_marked(&folder)? {
                attachments.push(Attachment { number: number(&folder.join(DATA))?, name });
            } else {
                // An earlier run of this node had it.
                gone_already(std::fs::remove_file(store.mark(&folder))).map_err(os(format_args!("cannot let go of {}", folder.display())))?;
            }
        }
        Ok(attachments)
    }
}

task! {
    /// A volume's own folder, if this node has it.
    Had, "cephfs.had", { name: VolumeName } -> Option<(DeviceNumber, PathBuf)>, store => {
        let folder = store.whole(&name);
        if !store.is_marked(&folder)? {
            return Ok(None);
        }
        let data = folder.join(DATA);
        Ok(Some((number(&data)?, data)))
    }
}

task! {
    CapacityOf, "cephfs.capacity", {} -> Capacity, store => {
        let space = space_at(&store.volumes)?;
        let mut promised = Bytes(0);
        for name in store.names(&store.volumes)? {
            if let Ok(Some(record)) = folder::read(&store.whole(&name)) {
                promised.0 = promised.0.saturating_add(record.spec.size.0);
            }
        }
        let fs = &store.place.fs;
        let shown = format!("{} of {} ({})", fs.path.display(), fs.name.as_deref().unwrap_or("the cluster's filesystem"), fs.conf.display());
        Ok(Capacity { place: shown, space, promised, reserve: Bytes(0), warnings: Vec::new() })
    }
}

task! {
    Spent, "cephfs.spent", { name: VolumeName } -> Option<Bytes>, store => {
        let mut text = [0_u8; 32];
        match rustix::fs::getxattr(store.whole(&name).join(DATA), "ceph.dir.rbytes", &mut text[..]) {
            Ok(length) => Ok(std::str::from_utf8(text.get(..length).unwrap_or_default()).ok().and_then(|text| text.trim().parse().ok()).map(Bytes)),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::os("cannot count what is in it", &e.into())),
        }
    }
}
