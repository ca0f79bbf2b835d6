//! The driver `local`: image files in a folder of one machine, each a loop device when it is used; or plain folders, for what
//! REX-Ray's `vfs` has left.
//!
//! `POOL/NAME/` holds `record.json`, which is durable before anything is done, and `image`, a sparse file that has the
//! volume's whole filesystem in it. Nothing else is needed, on no other machine: it is the default.

mod adopt;
mod pool;
mod vfs;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use dunnage_driver::{
    Adopt, Adoption, Allocated, Attached, Attachment, Capacity, Driver, Expand, Listing, NewVolume, Provision, Reach, Stranger,
};
use dunnage_host::helpers::{Registry, Task, run};
use dunnage_host::{Detached, DeviceNumber, Host, LoopDevice, LoopRequest, Medium, Probe};
use dunnage_model::{
    Bytes, DriverName, Error, HERE, HintPolicy, Kind, PartialSpec, RemoveAction, Result, VolumeInfo, VolumeName, VolumeSpec, VolumeState,
};
use uuid::Uuid;

pub use pool::{IMAGE, Limits, Store};
pub use vfs::{Given, give_back};

/// The tasks that helpers must know for this driver.
pub fn tasks(registry: Registry) -> Registry {
    registry
        .with::<pool::Open>()
        .with::<pool::ListAll>()
        .with::<pool::Inspect>()
        .with::<pool::Record>()
        .with::<pool::Allocate>()
        .with::<pool::Formatting>()
        .with::<pool::Publish>()
        .with::<pool::Remove>()
        .with::<pool::Recover>()
        .with::<pool::Lengthen>()
        .with::<pool::Grown>()
        .with::<pool::CapacityOf>()
        .with::<pool::Number>()
        .with::<vfs::TakeIn>()
        .with::<adopt::Strangers>()
        .with::<adopt::Take>()
        .with::<adopt::Discard>()
}

/// A pool of image files.
pub struct Local {
    name: DriverName,
    pool: PathBuf,
    store: Store,
    limits: Limits,
    host: Host,
}

impl Local {
    /// A driver on a pool that need not be there yet.
    pub fn new(name: DriverName, pool: PathBuf, limits: Limits, host: Host) -> Self {
        Local { name, pool, store: Store::Images, limits, host }
    }

    /// The same with a folder for each volume, instead of an image.
    pub fn of_folders(self) -> Self {
        Local { store: Store::Folders, ..self }
    }

    /// Takes the folders of REX-Ray's `vfs` into the pool: each lies in the folder of mounts, where it would be hidden.
    pub async fn take_in(&self, mounts: PathBuf, vfs: PathBuf) -> Result<Vec<VolumeName>> {
        self.run(vfs::TakeIn { pool: self.pool.clone(), mounts, vfs }).await
    }

    /// Makes the pool's folder if need be, and refuses one on a filesystem of another machine, or on FUSE.
    pub async fn open(&self) -> Result<()> {
        self.run(pool::Open { pool: self.pool.clone() }).await
    }

    async fn run<T: Task>(&self, task: T) -> Result<T::Output> {
        run(&*self.host.runner, &task).await
    }

    fn image(&self, name: &VolumeName) -> LoopRequest {
        LoopRequest { folder: self.pool.clone(), relative: Path::new(name.as_str()).join(IMAGE) }
    }

    /// Why something cannot be done to a volume's image, when its record says more than the kernel did.
    async fn explain(&self, name: &VolumeName, error: Error) -> Error {
        match self.inspect(name).await {
            Ok(None) => Error::no_volume(name),
            Ok(Some(info)) if info.state != VolumeState::Ready => {
                let why = info.why.map(|why| format!(": {why}")).unwrap_or_default();
                Error::unavailable(format!("it is {}{why}", info.state), "look at 'dunnage volume inspect'").of(name)
            }
            _ => error.of(name),
        }
    }

    /// Removes a volume that is a folder, if no process has it mounted in whatever namespace.
    async fn remove_folder(&self, name: &VolumeName) -> Result<RemoveAction> {
        let path = self.pool.join(name.as_str()).join(self.store.content());
        if let Ok(number) = self.run(pool::Number { path: path.clone() }).await {
            let users = self.host.mounts.users(number, &path).await?;
            if !users.is_empty() {
                let kind = Kind::InUse { holders: users.iter().map(ToString::to_string).collect(), node: HERE.to_owned() };
                return Err(Error::new(kind, "processes have it mounted still", "end them, then try again").of(name));
            }
        }
        let remove = pool::Remove { pool: self.pool.clone(), store: self.store, name: name.clone() };
        self.run(remove).await.map_err(|e| e.of(name))
    }

    /// It has no image that anything could be attached to: it is not there, half made, or half removed.
    async fn has_no_image(&self, name: &VolumeName) -> Result<bool> {
        Ok(self.inspect(name).await?.is_none_or(|info| info.state != VolumeState::Ready))
    }
}

#[async_trait]
impl Driver for Local {
    fn name(&self) -> &DriverName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "local"
    }

    fn reach(&self) -> Reach {
        Reach::Node
    }

    fn medium(&self) -> Medium {
        match self.store {
            Store::Images => Medium::Device,
            Store::Folders => Medium::Folder,
        }
    }

    /// A folder has neither a size nor a filesystem of its own.
    fn complete(&self, asked: PartialSpec, defaults: &PartialSpec, hints: HintPolicy) -> Result<VolumeSpec> {
        let asked = match self.store {
            Store::Images => asked,
            Store::Folders => asked.in_a_folder(self.name.as_str(), hints)?,
        };
        let spec = asked.over(defaults);
        spec.keeps_one_copy(self.name.as_str())?;
        spec.complete()
    }

    async fn list(&self) -> Result<Listing> {
        self.run(pool::ListAll { pool: self.pool.clone(), store: self.store, driver: self.name.clone() }).await
    }

    async fn inspect(&self, name: &VolumeName) -> Result<Option<VolumeInfo>> {
        self.run(pool::Inspect { pool: self.pool.clone(), store: self.store, driver: self.name.clone(), name: name.clone() }).await
    }

    async fn attach(&self, name: &VolumeName) -> Result<Attached> {
        if self.store == Store::Folders {
            let path = self.pool.join(name.as_str()).join(self.store.content());
            return match self.run(pool::Number { path: path.clone() }).await {
                Ok(number) => Ok(Attached { path, number, found: false }),
                Err(e) => Err(self.explain(name, e).await),
            };
        }
        match self.host.loops.attach(&self.image(name)).await {
            Ok(device) => Ok(Attached { path: device.path, number: device.number, found: device.found }),
            Err(e) => Err(self.explain(name, e).await),
        }
    }

    async fn detach(&self, name: &VolumeName, device: Option<DeviceNumber>) -> Result<Detached> {
        if self.store == Store::Folders {
            return Ok(Detached::NotThere);
        }
        match self.host.loops.detach(&self.image(name), device).await {
            Err(_) if self.has_no_image(name).await? => Ok(Detached::NotThere),
            outcome => outcome.map_err(|e| e.of(name)),
        }
    }

    fn has_in_place(&self, name: &VolumeName, device: DeviceNumber) -> bool {
        // To look at a folder is to ask the disk.
        self.store == Store::Images && self.host.loops.has_in_place(&self.image(name), device)
    }

    async fn attachments(&self) -> Result<Vec<Attachment>> {
        if self.store == Store::Folders {
            return Ok(Vec::new());
        }
        let loops = self.host.loops.list(&self.pool).await?;
        let of_ours = |device: LoopDevice| {
            let mut parts = device.backing.strip_prefix(&self.pool).ok()?.iter();
            let name = parts.next()?.to_str()?.parse().ok()?;
            (parts.next()? == IMAGE && parts.next().is_none()).then_some(Attachment { name, number: device.number })
        };
        Ok(loops.into_iter().filter_map(of_ours).collect())
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.run(pool::CapacityOf { pool: self.pool.clone(), limits: self.limits }).await
    }

    fn provision(&self) -> Option<&dyn Provision> {
        Some(self)
    }

    fn adopt(&self) -> Option<&dyn Adopt> {
        Some(self)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        (self.store == Store::Images).then_some(self as &dyn Expand)
    }
}

#[async_trait]
impl Expand for Local {
    async fn expand(&self, name: &VolumeName, size: Bytes) -> Result<VolumeInfo> {
        let (pool, driver, limits) = (self.pool.clone(), self.name.clone(), self.limits);
        self.run(pool::Lengthen { pool: pool.clone(), limits, name: name.clone(), size }).await.map_err(|e| e.of(name))?;
        self.host.loops.lengthen(&self.image(name)).await.map_err(|e| e.of(name))?;
        self.run(pool::Grown { pool, driver, name: name.clone(), size, growing: true }).await.map_err(|e| e.of(name))
    }

    async fn grown(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let (pool, driver) = (self.pool.clone(), self.name.clone());
        self.run(pool::Grown { pool, driver, name: name.clone(), size: Bytes(0), growing: false }).await.map_err(|e| e.of(name))
    }
}

#[async_trait]
impl Adopt for Local {
    async fn strangers(&self) -> Result<Vec<Stranger>> {
        self.run(adopt::Strangers { pool: self.pool.clone(), store: self.store, name: None }).await
    }

    async fn stranger(&self, name: &VolumeName) -> Result<Option<Stranger>> {
        let found = self.run(adopt::Strangers { pool: self.pool.clone(), store: self.store, name: Some(name.clone()) }).await;
        Ok(found.map_err(|e| e.of(name))?.pop())
    }

    async fn renew(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        let Some(Stranger { found: Probe::Known(known), .. }) = self.stranger(name).await? else {
            return Err(Error::internal("what has no filesystem was to get a UUID").of(name));
        };
        self.host.filesystems.renew(&self.image(name).path(), known.fs, uuid).await.map_err(|e| e.of(name))
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<VolumeInfo> {
        let take = adopt::Take { pool: self.pool.clone(), store: self.store, driver: self.name.clone(), adoption: adoption.clone() };
        self.run(take).await.map_err(|e| e.of(&adoption.name))
    }

    async fn discard(&self, name: &VolumeName) -> Result<()> {
        self.run(adopt::Discard { pool: self.pool.clone(), store: self.store, name: name.clone() }).await.map_err(|e| e.of(name))
    }
}

#[async_trait]
impl Provision for Local {
    async fn record(&self, new: &NewVolume) -> Result<()> {
        self.run(pool::Record { pool: self.pool.clone(), new: new.clone(), limits: self.limits }).await.map_err(|e| e.of(&new.name))
    }

    async fn allocate(&self, name: &VolumeName) -> Result<Allocated> {
        let allocate = pool::Allocate { pool: self.pool.clone(), store: self.store, name: name.clone() };
        let path = self.run(allocate).await.map_err(|e| e.of(name))?;
        Ok(Allocated { path, attached: false })
    }

    async fn formatting(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        self.run(pool::Formatting { pool: self.pool.clone(), name: name.clone(), uuid }).await.map_err(|e| e.of(name))
    }

    async fn publish(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.run(pool::Publish { pool: self.pool.clone(), store: self.store, driver: self.name.clone(), name: name.clone() })
            .await
            .map_err(|e| e.of(name))
    }

    async fn remove(&self, name: &VolumeName) -> Result<RemoveAction> {
        if self.store == Store::Folders {
            return self.remove_folder(name).await;
        }
        let found = match self.host.loops.find(&self.image(name)).await {
            Err(_) if self.has_no_image(name).await? => None,
            outcome => outcome.map_err(|e| e.of(name))?,
        };
        if let Some(attached) = found {
            let users = self.host.mounts.users(attached.number, &attached.path).await?;
            let who = users.iter().map(ToString::to_string).chain([attached.path.display().to_string()]).collect();
            let kind = Kind::InUse { holders: who, node: HERE.to_owned() };
            return Err(Error::new(kind, "its image is attached still", "end what uses it, then try again").of(name));
        }
        self.run(pool::Remove { pool: self.pool.clone(), store: self.store, name: name.clone() }).await.map_err(|e| e.of(name))
    }

    async fn recover(&self, name: &VolumeName) -> Result<Option<String>> {
        self.run(pool::Recover { pool: self.pool.clone(), store: self.store, driver: self.name.clone(), name: name.clone() })
            .await
            .map_err(|e| e.of(name))
    }
}
