//! The driver: volumes that are images of RBD.

mod adopt;
mod mark;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dunnage_driver::{
    Adopt, Allocated, Attached, Attachment, Capacity, Driver, Expand, Listing, NewVolume, Phase, Provision, Reach, Share, Sign, Versioned,
};
use dunnage_host::helpers::{Runner, Task, run};
use dunnage_host::{Detached, DeviceNumber, Host, LoopRequest};
use dunnage_model::{
    Bytes, Client, DriverName, Error, HERE, HintPolicy, Kind, NodeId, Owner, OwnerRecord, PartialSpec, RemoveAction, Result, Usage,
    VolumeInfo, VolumeName, VolumeSpec, VolumeState,
};
use uuid::Uuid;

use crate::carrier::{self, Carried, Carrier, Ended};
use crate::device::Device;
use crate::node::{self, GiveSign, ReadSign};
use crate::process::DEVICE;
use crate::start::{Start, Started, Way};
use crate::tasks::{
    AddName, Barrier, Blocklist, CopiesOf, CreateImage, CreateRecord, ImageId, ImageUsed, ImageWatchers, LabelImage, LeastCopiesOf,
    LengthenImage, ListImages, ListNames, MakePool, Place, ReadRecord, RemoveImage, RemoveName, RemoveRecord, RenameImage, SpaceOf,
    StatImage, SwapRecord, WatchersById,
};
use crate::volumes::{NAMES, ReadAll, Stored, oid};
use crate::{Access, ClientAddress, features};

use adopt::Located;

pub use adopt::LookInto;

/// A fence that ended by itself would be none: a client that was frozen meanwhile writes again (measured). The cluster keeps no
/// entry for ever; this is five years.
const FOR_GOOD: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// No pool is made for more.
const MOST_COPIES: u32 = 10;

/// What a [`Ceph`] needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name that it is configured under.
    pub name: DriverName,
    /// How the cluster is reached.
    pub access: Access,
    /// The pools. In the first are the records of all volumes, and the images of those that do not ask for another.
    pub pools: Vec<String>,
    /// How many copies a volume has that asks for no number.
    pub repl: Option<u32>,
    /// A pool is made for a number of copies that none keeps.
    pub make_pools: bool,
    /// A new volume `POOL.IMAGE` is that image in that pool, as REX-Ray made it; otherwise it is an image of this very name.
    pub named_pools: bool,
    /// How long no sign of life of another node may be seen before it is silent.
    pub silence: Duration,
    /// By what images are attached.
    pub way: Way,
    /// Who we are.
    pub me: Owner,
    /// Where the devices of this node are kept track of; it dies with the boot.
    pub folder: PathBuf,
}

/// The images of some pools of a cluster.
pub struct Ceph {
    settings: Settings,
    host: Host,
    /// What is asked of the cluster. Its helpers keep connections, so nobody else should use it.
    cluster: Arc<dyn Runner>,
    /// For the signs of life: its helper keeps the watch, and does nothing else that could hang.
    signs: Arc<dyn Runner>,
}

/// A record as it was read.
struct Found {
    revision: u64,
    stored: Stored,
}

impl Ceph {
    /// A driver; nothing is asked of the cluster yet. `cluster` and `signs` must be two runners that nobody else uses.
    pub fn new(settings: Settings, host: Host, cluster: Arc<dyn Runner>, signs: Arc<dyn Runner>) -> Self {
        Ceph { settings, host, cluster, signs }
    }

    fn place(&self, pool: &str) -> Place {
        Place { access: self.settings.access.clone(), pool: pool.to_owned() }
    }

    /// Where the records are.
    fn home(&self) -> Place {
        self.place(self.settings.pools.first().map_or("", String::as_str))
    }

    async fn ask<T: Task>(&self, name: &VolumeName, task: T) -> Result<T::Output> {
        run(&*self.cluster, &task).await.map_err(|e| e.of(name))
    }

    /// What has a device on this node is asked in helpers that need no cluster.
    async fn here<T: Task>(&self, name: &VolumeName, task: T) -> Result<T::Output> {
        run(&*self.host.runner, &task).await.map_err(|e| e.of(name))
    }

    async fn find(&self, name: &VolumeName) -> Result<Option<Found>> {
        let (place, oid) = (self.home(), oid(name));
        let what = format!("object {oid} of pool {}", place.pool);
        // Where there is no pool, or no way to it, nobody knows which volumes there are.
        let unknown = |e: Error| if e.kind == Kind::NotFound { Error { kind: Kind::PlatformUnavailable, ..e } } else { e };
        let Some(found) = self.ask(name, ReadRecord { place, oid }).await.map_err(unknown)? else { return Ok(None) };
        let stored = Stored::parse(&found.data, &what).map_err(|e| e.of(name))?;
        Ok(Some(Found { revision: found.revision, stored }))
    }

    async fn there(&self, name: &VolumeName) -> Result<Found> {
        self.find(name).await?.ok_or_else(|| Error::no_volume(name))
    }

    /// Writes a record, if nobody has changed it since it was read.
    async fn write(&self, name: &VolumeName, expected: u64, stored: &Stored) -> Result<Option<u64>> {
        let (revision, data) = (expected + 1, written(stored)?);
        let swapped = self.ask(name, SwapRecord { place: self.home(), oid: oid(name), expected, revision, data }).await?;
        Ok(swapped.then_some(revision))
    }

    /// Changes what a volume is, if it is this node's.
    async fn change(&self, name: &VolumeName, edit: impl Fn(&mut Stored) -> Result<()>) -> Result<Found> {
        loop {
            let Found { revision, mut stored } = self.there(name).await?;
            if stored.owner.owner() != Some(&self.settings.me) {
                return Err(Error::unavailable("another node has taken it meanwhile; nothing was changed", "ask again").of(name));
            }
            edit(&mut stored).map_err(|e| e.of(name))?;
            if let Some(revision) = self.write(name, revision, &stored).await? {
                return Ok(Found { revision, stored });
            }
        }
    }

    /// Writes down how long a volume is now, and whether its filesystem does not fill it yet.
    async fn note_growth(&self, name: &VolumeName, size: Bytes, growing: bool) -> Result<VolumeInfo> {
        let edit = |stored: &mut Stored| {
            stored.volume.spec.size = stored.volume.spec.size.max(size);
            stored.volume.growing = growing;
            Ok(())
        };
        self.change(name, edit).await.map(|Found { stored, .. }| self.info(stored, true))
    }

    /// The id of the image of this name.
    async fn image(&self, name: &VolumeName, pool: &str, image: String) -> Result<Option<String>> {
        self.ask(name, ImageId { place: self.place(pool), name: image }).await
    }

    fn info(&self, stored: Stored, image: bool) -> VolumeInfo {
        let (state, why) = match stored.volume.state() {
            VolumeState::Ready if !image => {
                let why = format!("there is no image {} in pool {}", stored.image_name(), stored.pool);
                (VolumeState::Damaged, Some(why))
            }
            state => (state, None),
        };
        stored.volume.info(&self.settings.name, state, why, Usage::default())
    }

    /// Where a new volume's image goes: its pool, and its name if that is not the volume's.
    async fn place_of(&self, new: &NewVolume) -> Result<(String, Option<String>)> {
        if self.settings.named_pools
            && let Some((pool, image)) = self.named_pool(&new.name).await?
        {
            let pool = self.pool_for(new, &[pool]).await?;
            return Ok((pool, Some(image)));
        }
        Ok((self.pool_for(new, &self.settings.pools).await?, None))
    }

    /// The pool of these that keeps so many copies.
    async fn pool_for(&self, new: &NewVolume, pools: &[String]) -> Result<String> {
        let mut kept = Vec::new();
        for pool in pools {
            let Some(asked) = new.spec.repl else { return Ok(pool.clone()) };
            let copies = self.ask(&new.name, CopiesOf { place: self.place(pool) }).await?;
            if copies == asked {
                return Ok(pool.clone());
            }
            kept.push(format!("{pool} keeps {copies}"));
        }
        let asked = new.spec.repl.unwrap_or_default();
        // One copy is no wish that somebody should be able to have by a slip.
        if self.settings.make_pools && (2..=MOST_COPIES).contains(&asked) {
            let pool = format!("{}-repl{asked}", self.home().pool);
            self.ask(&new.name, MakePool { place: self.place(&pool), copies: asked }).await?;
            let copies = self.ask(&new.name, CopiesOf { place: self.place(&pool) }).await?;
            if copies == asked {
                return Ok(pool);
            }
            kept.push(format!("{pool} keeps {copies}"));
        }
        let detail = format!("no pool of driver {} keeps {asked} copies: {}", self.settings.name, kept.join(", "));
        let next = format!(
            "ask for what a pool keeps, or make one ('ceph osd pool create', 'ceph osd pool set NAME size {asked}') and add it to the driver's 'pools'; or set the driver's 'make_pools'"
        );
        Err(Error::invalid("repl", detail, next).of(&new.name))
    }

    /// Makes the record of a volume that nobody has made yet, and so decides whose it is.
    async fn begin(&self, stored: &Stored) -> Result<()> {
        let (name, data) = (&stored.volume.name, written(stored)?);
        if !self.ask(name, CreateRecord { place: self.home(), oid: oid(name), revision: 1, data }).await? {
            let detail = "another node makes a volume of that name at this moment";
            return Err(Error::new(Kind::ExistsIncompatible, detail, "ask again").of(name));
        }
        self.ask(name, AddName { place: self.home(), oid: NAMES.to_owned(), name: name.to_string() }).await
    }

    fn folder(&self, name: &VolumeName) -> PathBuf {
        self.settings.folder.join(name.as_str())
    }

    fn file(&self, name: &VolumeName) -> LoopRequest {
        LoopRequest { folder: self.folder(name), relative: DEVICE.into() }
    }

    async fn look(&self, name: &VolumeName) -> Result<Carried> {
        self.here(name, carrier::Look { folder: self.folder(name) }).await
    }

    async fn end(&self, name: &VolumeName) -> Result<Ended> {
        self.here(name, carrier::End { folder: self.folder(name) }).await
    }

    /// Detaches what there is, in whatever state.
    async fn let_go(&self, name: &VolumeName, device: Option<DeviceNumber>) -> Result<Detached> {
        if self.host.loops.detach(&self.file(name), device).await.map_err(|e| e.of(name))? == Detached::Lingering {
            return Ok(Detached::Lingering);
        }
        Ok(match self.end(name).await? {
            Ended::InOrder => Detached::Done,
            Ended::Told(client) if self.sees(name, client).await == Ok(false) => Detached::Done,
            // (Where nobody can say so, too: then it is cut off.)
            Ended::Told(_) | Ended::Killed => Detached::Killed,
            Ended::Open => Detached::Lingering,
        })
    }

    /// Whether the cluster sees a client that has a volume's image open.
    async fn sees(&self, name: &VolumeName, client: ClientAddress) -> Result<bool> {
        let Found { stored, .. } = self.there(name).await?;
        Ok(self.watchers(name, &stored).await?.contains(&client))
    }

    /// Begins to carry an image, and finds out as whom. Gives the device, if what carries it makes one itself.
    async fn start(&self, name: &VolumeName, stored: &Stored, way: Way) -> Result<Option<Attached>> {
        let (folder, place, image) = (self.folder(name), self.place(&stored.pool), stored.image_name());
        let before = self.watchers(name, stored).await?;
        let Started { device, client, why_not } = self.here(name, Start { way, folder: folder.clone(), place, image }).await?;
        for why in why_not {
            tracing::warn!(volume = %name, "its image is carried otherwise: {why}");
        }
        let client = match client {
            Some(client) => client,
            None => {
                let new: Vec<ClientAddress> = self.watchers(name, stored).await?.difference(&before).copied().collect();
                let [client] = new[..] else {
                    self.end(name).await?;
                    let detail =
                        format!("{} clients have opened its image at the same time, and nobody can say which one is ours", new.len());
                    return Err(Error::unavailable(detail, "ask again").of(name));
                };
                client
            }
        };
        self.here(name, carrier::Tell { folder, client, volume: stored.volume.id }).await?;
        Ok(device.map(|Device { path, number }| Attached { path, number, found: false }))
    }

    async fn watchers(&self, name: &VolumeName, stored: &Stored) -> Result<BTreeSet<ClientAddress>> {
        let place = self.place(&stored.pool);
        let watchers = match &stored.image {
            Some(id) => self.ask(name, WatchersById { place, id: id.clone() }).await?,
            None => self.ask(name, ImageWatchers { place, name: stored.image_name() }).await?.unwrap_or_default(),
        };
        Ok(watchers.into_iter().map(|watcher| watcher.address).collect())
    }

    /// A fence that ends by itself. It is no fence: for the test that shows so.
    #[doc(hidden)]
    pub async fn fence_for(&self, clients: &BTreeSet<Client>, duration: Duration) -> Result<()> {
        let clients = clients.iter().map(|client| client.0.parse()).collect::<Result<_>>()?;
        run(&*self.cluster, &Blocklist { access: self.settings.access.clone(), clients, duration }).await
    }

    /// What an old owner has sent to another pool the barrier does not wait for.
    async fn refuse_data_pool(&self, name: &VolumeName, pool: &str, image: &str) -> Result<()> {
        let found = self.ask(name, StatImage { place: self.place(pool), name: image.to_owned() }).await?;
        if found.is_none_or(|info| info.features & features::DATA_POOL == 0) {
            return Ok(());
        }
        let detail = format!("image {image} of pool {pool} keeps its data in another pool, which a fence would not reach in time");
        let next = "make it without a data pool ('rbd_default_data_pool' in the cluster's or the pool's configuration); or copy it into one without ('rbd cp')";
        Err(Error::invalid("pool", detail, next).of(name))
    }

    /// Whether a volume's image has its last name.
    async fn is_renamed(&self, name: &VolumeName, stored: &Stored) -> Result<bool> {
        let image = self.image(name, &stored.pool, stored.finished()).await?;
        Ok(image.is_some() && image == stored.image)
    }

    /// Removes an image, if it is there and has this id. (Of one that has none yet, its name is proof enough.)
    async fn remove_image(&self, name: &VolumeName, pool: &str, image: String, id: Option<&str>) -> Result<()> {
        match self.image(name, pool, image.clone()).await? {
            Some(found) if id.is_none_or(|id| *id == *found) => {
                self.ask(name, RemoveImage { place: self.place(pool), name: image }).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }
}

fn written(stored: &Stored) -> Result<Vec<u8>> {
    serde_json::to_vec(stored).map_err(|e| Error::internal(format!("a record cannot be written: {e}")))
}

#[async_trait]
impl Driver for Ceph {
    fn name(&self) -> &DriverName {
        &self.settings.name
    }

    fn kind(&self) -> &'static str {
        "ceph"
    }

    fn reach(&self) -> Reach {
        Reach::Cluster
    }

    fn complete(&self, asked: PartialSpec, defaults: &PartialSpec, _hints: HintPolicy) -> Result<VolumeSpec> {
        let spec = asked.over(defaults);
        spec.has_one_writer(self.settings.name.as_str())?;
        let spec = PartialSpec { repl: spec.repl.or(self.settings.repl), ..spec }.complete()?;
        if spec.thick {
            let detail =
                format!("driver {} cannot give thick=true: images of Ceph take their space as they are written", self.settings.name);
            return Err(Error::invalid("thick", detail, "leave it out"));
        }
        Ok(spec)
    }

    async fn list(&self) -> Result<Listing> {
        let (volumes, unreadable) = run(&*self.cluster, &ReadAll { place: self.home() }).await?;
        let mut images: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        for pool in &self.settings.pools {
            let listed = run(&*self.cluster, &ListImages { place: self.place(pool) }).await?;
            images.insert(pool, listed.into_iter().map(|image| (image.name, image.id)).collect());
        }
        let info = |stored: Stored| {
            // Of a pool that is not ours nothing is known.
            let image = images.get(&*stored.pool).is_none_or(|ids| ids.get(&stored.image_name()) == stored.image.as_ref());
            self.info(stored, image)
        };
        Ok(Listing { volumes: volumes.into_iter().map(info).collect(), unreadable })
    }

    async fn inspect(&self, name: &VolumeName) -> Result<Option<VolumeInfo>> {
        let Some(Found { stored, .. }) = self.find(name).await? else { return Ok(None) };
        let whole = stored.volume.state() == VolumeState::Ready;
        let image = if whole { self.image(name, &stored.pool, stored.image_name()).await? } else { None };
        // Another of its name is somebody else's.
        let its = image.is_some() && image == stored.image;
        Ok(Some(self.info(stored, its)))
    }

    async fn attach(&self, name: &VolumeName) -> Result<Attached> {
        let Found { stored, .. } = self.there(name).await?;
        if stored.volume.removing {
            return Err(Error::unavailable("it is being removed", "look at 'dunnage volume inspect'").of(name));
        }
        let cut = |client: &ClientAddress| stored.owner.cut.contains(&Client(client.to_string()));
        let found = match self.look(name).await? {
            Carried::By { client, volume, carrier } if volume == stored.volume.id && !cut(&client) => {
                if let Some(Device { path, number }) = carrier.device() {
                    return Ok(Attached { path, number, found: true });
                }
                true
            }
            Carried::No => false,
            // It was cut off, or is of an earlier volume of that name, or has died, or nobody knows as whom it writes: nothing good
            // comes of it any more.
            Carried::By { .. } | Carried::Dead | Carried::Unnamed => {
                if self.let_go(name, None).await? == Detached::Lingering {
                    let detail = "what this node had of it was cut off, and something on this node uses that still";
                    return Err(Error::in_use(Vec::new(), HERE, detail, "end what uses it, then ask again").of(name));
                }
                false
            }
        };
        if !found && let Some(attached) = self.start(name, &stored, self.settings.way).await? {
            return Ok(attached);
        }
        let device = self.host.loops.attach(&self.file(name)).await.map_err(|e| e.of(name))?;
        Ok(Attached { path: device.path, number: device.number, found: found && device.found })
    }

    async fn detach(&self, name: &VolumeName, device: Option<DeviceNumber>) -> Result<Detached> {
        if self.look(name).await? == Carried::No {
            return Ok(Detached::NotThere);
        }
        let detached = self.let_go(name, device).await?;
        if detached == Detached::Killed {
            tracing::warn!(volume = %name, "what carried it has not ended in order; its client is cut off before the volume is given up");
        }
        Ok(detached)
    }

    fn has_in_place(&self, name: &VolumeName, device: DeviceNumber) -> bool {
        self.host.loops.has_in_place(&self.file(name), device) || carrier::has_device(&self.folder(name), device)
    }

    async fn attachments(&self) -> Result<Vec<Attachment>> {
        let names = run(&*self.host.runner, &carrier::All { folder: self.settings.folder.clone() }).await?;
        let loops = self.host.loops.list(&self.settings.folder).await?;
        let of = |(name, carrier): (VolumeName, Option<Carrier>)| {
            let path = self.file(&name).path();
            let on_file = || loops.iter().find(|device| device.backing == path).map(|device| device.number);
            let number = carrier.and_then(|carrier| carrier.device()).map(|device| device.number).or_else(on_file)?;
            Some(Attachment { name, number })
        };
        Ok(names.into_iter().filter_map(of).collect())
    }

    async fn capacity(&self) -> Result<Capacity> {
        let place = self.home();
        let shown = format!("pool {} ({})", place.pool, place.access.conf.display());
        let space = run(&*self.cluster, &SpaceOf { place: place.clone() }).await?;
        let (volumes, _) = run(&*self.cluster, &ReadAll { place }).await?;
        let mut warnings = Vec::new();
        for pool in &self.settings.pools {
            let place = self.place(pool);
            let copies = run(&*self.cluster, &CopiesOf { place: place.clone() }).await?;
            if copies > 1 && run(&*self.cluster, &LeastCopiesOf { place }).await? < 2 {
                warnings.push(format!(
                    "pool {pool} acknowledges what is on one disk alone (min_size 1 of {copies}): 'ceph osd pool set {pool} min_size 2'"
                ));
            }
        }
        let promised = volumes.iter().fold(0_u64, |sum, stored| sum.saturating_add(stored.volume.spec.size.0));
        Ok(Capacity { place: shown, space, promised: Bytes(promised), reserve: Bytes(0), warnings })
    }

    async fn spent(&self, name: &VolumeName) -> Result<Option<Bytes>> {
        let Found { stored, .. } = self.there(name).await?;
        self.ask(name, ImageUsed { place: self.place(&stored.pool), name: stored.image_name() }).await
    }

    fn provision(&self) -> Option<&dyn Provision> {
        Some(self)
    }

    fn adopt(&self) -> Option<&dyn Adopt> {
        Some(self)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }

    fn share(&self) -> Option<&dyn Share> {
        Some(self)
    }
}

#[async_trait]
impl Expand for Ceph {
    async fn expand(&self, name: &VolumeName, size: Bytes) -> Result<VolumeInfo> {
        let Found { stored, .. } = self.there(name).await?;
        let lengthen = || self.ask(name, LengthenImage { place: self.place(&stored.pool), name: stored.image_name(), size });
        match self.look(name).await? {
            Carried::By { carrier: Carrier::Kernel(mapped), .. } => {
                let path = mapped.device().path;
                let detail = format!("the kernel has it as {} for itself alone, and so nobody can make it longer", path.display());
                let next = "end what uses it on this node, and resize it then (with 'attach: nbd' or 'process' in the driver's settings it grows in use)";
                return Err(Error::in_use(Vec::new(), HERE, detail, next).of(name));
            }
            Carried::By { carrier: Carrier::Nbd(device), .. } => {
                lengthen().await?;
                self.here(name, carrier::WaitForSize { device, size }).await?;
            }
            Carried::By { carrier: Carrier::File, .. } => {
                self.here(name, carrier::Lengthen { folder: self.folder(name), size }).await?;
                self.host.loops.lengthen(&self.file(name)).await.map_err(|e| e.of(name))?;
            }
            Carried::No => lengthen().await?,
            Carried::Unnamed | Carried::Dead => {
                let detail = "what carried it on this node has died";
                return Err(Error::unavailable(detail, "end what uses it on this node; then ask again").of(name));
            }
        }
        self.note_growth(name, size, true).await
    }

    async fn grown(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.note_growth(name, Bytes(0), false).await
    }
}

#[async_trait]
impl Provision for Ceph {
    async fn record(&self, new: &NewVolume) -> Result<()> {
        let (name, (pool, called)) = (&new.name, self.place_of(new).await?);
        if let Some(located) = self.locate(name).await? {
            self.refuse_known(name, &located).await?;
            let Located { pool, image, .. } = located;
            let detail = format!("there is an image {image} in pool {pool} that Dunnage has not made");
            let next = format!("'dunnage volume adopt {name}' takes it with its data; or choose another name");
            return Err(Error::new(Kind::ExistsIncompatible, detail, next).of(name));
        }
        self.begin(&Stored { called, ..Stored::new(new.clone(), pool) }).await
    }

    async fn allocate(&self, name: &VolumeName) -> Result<Allocated> {
        let Found { stored, .. } = self.there(name).await?;
        if stored.volume.storage != Phase::Never {
            return Err(Error::internal("a volume that has storage was to be given some").of(name));
        }
        let create = CreateImage { place: self.place(&stored.pool), name: stored.unfinished(), size: stored.volume.spec.size };
        // One that is there already is this volume's own: no other has its number.
        self.ask(name, create).await?;
        let label = LabelImage { place: self.place(&stored.pool), name: stored.unfinished(), labels: stored.labels() };
        self.ask(name, label).await?;
        self.refuse_data_pool(name, &stored.pool, &stored.unfinished()).await?;
        // Through the process that carries it, the platform itself says that nothing was ever written: no device can.
        // (The kernel's own client says it to nobody.)
        self.start(name, &stored, Way::Process).await?;
        Ok(Allocated { path: self.file(name).path(), attached: true })
    }

    async fn formatting(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        let Found { stored, .. } = self.there(name).await?;
        let image = self.image(name, &stored.pool, stored.unfinished()).await?;
        let id = image.ok_or_else(|| Error::internal("a volume without an image was to be formatted").of(name))?;
        let edit = |stored: &mut Stored| match stored.volume.storage {
            Phase::Never => {
                stored.volume.storage = Phase::Formatting { fs_uuid: uuid };
                stored.image = Some(id.clone());
                Ok(())
            }
            _ => Err(Error::internal("a volume that was formatted was to be formatted")),
        };
        let Found { stored, .. } = self.change(name, edit).await?;
        let located = Located { image: stored.unfinished(), pool: stored.pool, id };
        self.mark(name, &located, &self.mark_of(name, stored.volume.id)).await.map(drop)
    }

    async fn publish(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let Found { stored, .. } = self.there(name).await?;
        if !self.is_renamed(name, &stored).await? {
            let place = self.place(&stored.pool);
            self.ask(name, RenameImage { place, name: stored.unfinished(), new: stored.finished() }).await?;
        }
        let finish = |stored: &mut Stored| match stored.volume.storage {
            Phase::Formatting { fs_uuid } | Phase::Formatted { fs_uuid } => {
                stored.volume.storage = Phase::Formatted { fs_uuid };
                Ok(())
            }
            Phase::Never => Err(Error::internal("a volume that was not formatted was to be published")),
        };
        Ok(self.info(self.change(name, finish).await?.stored, true))
    }

    async fn remove(&self, name: &VolumeName) -> Result<RemoveAction> {
        let Some(Found { stored, .. }) = self.find(name).await? else { return Ok(RemoveAction::NotThere) };
        let open: Vec<String> = self.watchers(name, &stored).await?.iter().map(|client| format!("Ceph client {client}")).collect();
        // (Of one that is being adopted nothing goes but the record.)
        if !open.is_empty() && !stored.adopting {
            let detail = "its image is open (a client that was killed is seen for half a minute)";
            return Err(Error::in_use(open, "Ceph", detail, "end what uses it, then try again").of(name));
        }
        let mark = |stored: &mut Stored| {
            stored.volume.removing = true;
            Ok(())
        };
        let Found { revision, stored } = self.change(name, mark).await?;
        self.remove_image(name, &stored.pool, stored.unfinished(), None).await?;
        if let Some(id) = stored.image.as_ref().filter(|_| !stored.adopting) {
            self.remove_image(name, &stored.pool, stored.finished(), Some(id)).await?;
        }
        if let Some(id) = &stored.image {
            self.unmark(name, &stored.pool, id, &self.mark_of(name, stored.volume.id)).await?;
        }
        self.ask(name, RemoveName { place: self.home(), oid: NAMES.to_owned(), name: name.to_string() }).await?;
        self.ask(name, RemoveRecord { place: self.home(), oid: oid(name), expected: revision }).await?;
        Ok(RemoveAction::Removed)
    }

    async fn recover(&self, name: &VolumeName) -> Result<Option<String>> {
        let Some(Found { stored, .. }) = self.find(name).await? else { return Ok(None) };
        if stored.volume.removing {
            self.remove(name).await?;
            return Ok(Some("finished its removal".to_owned()));
        }
        match stored.volume.storage {
            Phase::Formatted { .. } => Ok(None),
            // The new name is the last step but one, and given only when the filesystem is whole.
            Phase::Formatting { .. } if self.is_renamed(name, &stored).await? => {
                self.publish(name).await?;
                Ok(Some("finished its creation".to_owned()))
            }
            Phase::Never | Phase::Formatting { .. } => {
                self.remove(name).await?;
                let what = if stored.adopting { "adoption" } else { "creation" };
                Ok(Some(format!("undid its {what}, which was interrupted")))
            }
        }
    }
}

#[async_trait]
impl Share for Ceph {
    fn silence(&self) -> Duration {
        self.settings.silence
    }

    async fn owner(&self, name: &VolumeName) -> Result<Option<Versioned>> {
        let found = self.find(name).await?;
        Ok(found.map(|Found { revision, stored }| Versioned { revision, record: stored.owner }))
    }

    async fn swap(&self, name: &VolumeName, expected: Option<u64>, record: &OwnerRecord) -> Result<Option<Versioned>> {
        let Found { revision, stored } = self.there(name).await?;
        if expected != Some(revision) {
            return Ok(None);
        }
        let written = self.write(name, revision, &Stored { owner: record.clone(), ..stored }).await?;
        Ok(written.map(|revision| Versioned { revision, record: record.clone() }))
    }

    async fn clients(&self, name: &VolumeName) -> Result<BTreeSet<Client>> {
        let Found { stored, .. } = self.there(name).await?;
        Ok(self.watchers(name, &stored).await?.iter().map(|client| Client(client.to_string())).collect())
    }

    async fn mine(&self, name: &VolumeName) -> Result<BTreeSet<Client>> {
        match self.look(name).await? {
            Carried::By { client, .. } => Ok([Client(client.to_string())].into()),
            Carried::No | Carried::Dead => Ok(BTreeSet::new()),
            // Nobody has ever read or written through it.
            Carried::Unnamed => self.end(name).await.map(|_| BTreeSet::new()),
        }
    }

    async fn fence(&self, clients: &BTreeSet<Client>) -> Result<()> {
        self.fence_for(clients, FOR_GOOD).await
    }

    async fn barrier(&self, name: &VolumeName) -> Result<()> {
        let Found { stored, .. } = self.there(name).await?;
        self.ask(name, Barrier { place: self.place(&stored.pool) }).await
    }

    async fn give_sign(&self, me: &Owner, counter: u64) -> Result<()> {
        run(&*self.signs, &GiveSign { place: self.home(), me: me.clone(), counter }).await
    }

    async fn sign(&self, of: &NodeId) -> Result<Option<Sign>> {
        run(&*self.cluster, &ReadSign { place: self.home(), node: of.clone() }).await
    }

    async fn nodes(&self) -> Result<Vec<NodeId>> {
        let names = run(&*self.cluster, &ListNames { place: self.home(), oid: node::ALL.to_owned() }).await?;
        names.iter().map(|name| name.parse()).collect()
    }

    async fn owners(&self) -> Result<Vec<(VolumeName, OwnerRecord)>> {
        let (volumes, _) = run(&*self.cluster, &ReadAll { place: self.home() }).await?;
        Ok(volumes.into_iter().map(|stored| (stored.volume.name, stored.owner)).collect())
    }

    async fn bar(&self, node: &NodeId, barred: bool) -> Result<()> {
        let (place, oid, name) = (self.home(), node::BARRED.to_owned(), node.to_string());
        if barred {
            run(&*self.cluster, &AddName { place, oid, name }).await
        } else {
            run(&*self.cluster, &RemoveName { place, oid, name }).await
        }
    }

    async fn barred(&self) -> Result<BTreeSet<NodeId>> {
        let names = run(&*self.cluster, &ListNames { place: self.home(), oid: node::BARRED.to_owned() }).await?;
        names.iter().map(|name| name.parse()).collect()
    }
}
