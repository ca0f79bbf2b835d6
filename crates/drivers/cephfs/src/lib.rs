//! The driver `cephfs`: volumes that are folders of CephFS, each with a quota, that any number of nodes write to at the same time.
//!
//! There is no owner and no fence here: the filesystem itself sees to it that all nodes see the same. What nodes must agree on (a name, a
//! removal) they do by renames ([`store`]).

mod mount;
mod store;

use std::sync::Arc;

use async_trait::async_trait;
use dunnage_driver::{Adopt, Allocated, Attached, Attachment, Capacity, Driver, Expand, Listing, NewVolume, Provision, Reach};
use dunnage_host::helpers::{Task, run};
use dunnage_host::{Detached, DeviceNumber, Host, Medium};
use dunnage_model::{
    Bytes, DriverName, Error, FsKind, HERE, HintPolicy, Kind, Owner, PartialSpec, RemoveAction, Result, VolumeInfo, VolumeName, VolumeSpec,
};
use uuid::Uuid;

pub use mount::Filesystem;
use store::Place;
pub use store::tasks;

/// Folders of a filesystem of Ceph.
pub struct CephFs {
    place: Arc<Place>,
    /// How many copies the filesystem's pool keeps, as the operator says.
    repl: Option<u32>,
    host: Host,
}

impl CephFs {
    /// A driver; nothing is asked of the cluster yet.
    pub fn new(name: DriverName, fs: Filesystem, repl: Option<u32>, me: Owner, host: Host) -> Self {
        CephFs { place: Arc::new(Place { fs, driver: name, me }), repl, host }
    }

    fn place(&self) -> Place {
        (*self.place).clone()
    }

    async fn run<T: Task>(&self, task: T) -> Result<T::Output> {
        run(&*self.host.runner, &task).await
    }

    async fn of<T: Task>(&self, name: &VolumeName, task: T) -> Result<T::Output> {
        self.run(task).await.map_err(|e| e.of(name))
    }

    /// The processes on this node that have a volume, or a part of it, mounted.
    async fn users(&self, name: &VolumeName) -> Result<Vec<String>> {
        let had = self.of(name, store::Had { place: self.place(), name: name.clone() }).await?;
        let Some((number, data)) = had else { return Ok(Vec::new()) };
        Ok(self.host.mounts.users(number, &data).await?.iter().map(ToString::to_string).collect())
    }
}

#[async_trait]
impl Driver for CephFs {
    fn name(&self) -> &DriverName {
        &self.place.driver
    }

    fn kind(&self) -> &'static str {
        "cephfs"
    }

    fn reach(&self) -> Reach {
        Reach::Cluster
    }

    fn medium(&self) -> Medium {
        Medium::Folder
    }

    /// All of it are guarantees, and so refused whatever becomes of hints.
    fn complete(&self, asked: PartialSpec, defaults: &PartialSpec, _hints: HintPolicy) -> Result<VolumeSpec> {
        let say_so = "leave it out; or, if that is what the pool keeps, say so in the driver's 'repl'";
        let one_writer = "use a driver whose volumes have one writer, such as one of type ceph";
        let cannot = [
            (
                "repl",
                asked.repl.filter(|repl| self.repl != Some(*repl)).map(|repl| repl.to_string()),
                "copies are those of the filesystem's pool",
                say_so,
            ),
            (
                "shared",
                asked.shared.filter(|shared| !shared).map(|shared| shared.to_string()),
                "any node may write to its volumes",
                one_writer,
            ),
            ("fs", asked.fs.filter(|fs| *fs != FsKind::Folder).map(|fs| fs.to_string()), "its volumes are folders", "leave it out"),
            ("thick", asked.thick.filter(|thick| *thick).map(|thick| thick.to_string()), "its volumes are folders", "leave it out"),
        ];
        for (key, value, why, next) in cannot {
            if let Some(value) = value {
                let detail = format!("driver {} cannot give {key}={value}: {why}", self.name());
                return Err(Error::invalid(key, detail, next));
            }
        }
        let spec = asked.over(defaults);
        PartialSpec { fs: Some(FsKind::Folder), thick: Some(false), shared: Some(true), repl: self.repl, ..spec }.complete()
    }

    async fn list(&self) -> Result<Listing> {
        self.run(store::ListAll { place: self.place() }).await
    }

    async fn inspect(&self, name: &VolumeName) -> Result<Option<VolumeInfo>> {
        self.of(name, store::Inspect { place: self.place(), name: name.clone() }).await
    }

    async fn attach(&self, name: &VolumeName) -> Result<Attached> {
        self.of(name, store::Attach { place: self.place(), name: name.clone() }).await
    }

    async fn detach(&self, name: &VolumeName, _device: Option<DeviceNumber>) -> Result<Detached> {
        if !self.users(name).await?.is_empty() {
            return Ok(Detached::Lingering);
        }
        let had = self.of(name, store::Detach { place: self.place(), name: name.clone() }).await?;
        Ok(if had { Detached::Done } else { Detached::NotThere })
    }

    fn has_in_place(&self, _name: &VolumeName, _device: DeviceNumber) -> bool {
        // To look where a folder is, is to ask the filesystem.
        false
    }

    fn is_carried(&self) -> bool {
        true
    }

    async fn confirm(&self, name: &VolumeName, device: DeviceNumber) -> Result<()> {
        self.of(name, store::Confirm { place: self.place(), name: name.clone(), device }).await
    }

    async fn attachments(&self) -> Result<Vec<Attachment>> {
        self.run(store::Attachments { place: self.place() }).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.run(store::CapacityOf { place: self.place() }).await
    }

    async fn spent(&self, name: &VolumeName) -> Result<Option<Bytes>> {
        self.of(name, store::Spent { place: self.place(), name: name.clone() }).await
    }

    async fn close(&self) -> Result<()> {
        self.run(mount::Close { fs: self.place.fs.clone() }).await
    }

    fn provision(&self) -> Option<&dyn Provision> {
        Some(self)
    }

    fn adopt(&self) -> Option<&dyn Adopt> {
        None
    }

    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }
}

#[async_trait]
impl Expand for CephFs {
    async fn expand(&self, name: &VolumeName, size: Bytes) -> Result<VolumeInfo> {
        self.of(name, store::Expand { place: self.place(), name: name.clone(), size }).await
    }

    /// A folder with a larger quota is all there is to it.
    async fn grown(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.inspect(name).await?.ok_or_else(|| Error::no_volume(name))
    }
}

#[async_trait]
impl Provision for CephFs {
    async fn record(&self, new: &NewVolume) -> Result<()> {
        self.of(&new.name, store::Record { place: self.place(), new: new.clone() }).await
    }

    async fn allocate(&self, name: &VolumeName) -> Result<Allocated> {
        let path = self.of(name, store::Allocate { place: self.place(), name: name.clone() }).await?;
        Ok(Allocated { path, attached: false })
    }

    async fn formatting(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        self.of(name, store::Formatting { place: self.place(), name: name.clone(), uuid }).await
    }

    async fn publish(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.of(name, store::Publish { place: self.place(), name: name.clone() }).await
    }

    async fn remove(&self, name: &VolumeName) -> Result<RemoveAction> {
        let users = self.users(name).await?;
        if !users.is_empty() {
            let kind = Kind::InUse { holders: users, node: HERE.to_owned() };
            return Err(Error::new(kind, "processes have it mounted still", "end them, then try again").of(name));
        }
        self.of(name, store::Remove { place: self.place(), name: name.clone() }).await
    }

    async fn recover(&self, name: &VolumeName) -> Result<Option<String>> {
        self.of(name, store::Recover { place: self.place(), name: name.clone() }).await
    }
}
