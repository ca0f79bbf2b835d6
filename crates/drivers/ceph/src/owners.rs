//! Who owns an image, kept in the pool beside it; and the fence. What `dunnage_driver::Share` asks of Ceph, but for what only a host
//! can say: by which clients a node has an image open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dunnage_driver::{Sign, Versioned};
use dunnage_host::helpers::{Runner, Task, run};
use dunnage_model::{Client, Error, NodeId, Owner, OwnerRecord, Result, VolumeName};

use crate::node::{GiveSign, ReadSign};
use crate::tasks::{Barrier, Blocklist, CreateRecord, ImageWatchers, Place, ReadRecord, StatImage, SwapRecord};

/// A fence that ended by itself would be none: a client that was frozen meanwhile writes again (measured). The cluster keeps no
/// entry for ever; this is five years.
const FOR_GOOD: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// The owners of the images of a pool.
pub struct Owners {
    place: Place,
    runner: Arc<dyn Runner>,
    /// For the signs of life: its helper keeps the watch, and does nothing else that could hang.
    signs: Arc<dyn Runner>,
}

impl Owners {
    /// Those of a pool. `signs` must be a runner that nobody else uses, and that keeps its helper.
    pub fn new(place: Place, runner: Arc<dyn Runner>, signs: Arc<dyn Runner>) -> Self {
        Owners { place, runner, signs }
    }

    async fn ask<T: Task>(&self, name: &VolumeName, task: T) -> Result<T::Output> {
        run(&*self.runner, &task).await.map_err(|e| e.of(name))
    }

    /// Where the record is. It belongs to the image and not to its name: an image that is made anew begins without one.
    async fn oid(&self, name: &VolumeName) -> Result<String> {
        let image = self.ask(name, StatImage { place: self.place.clone(), name: name.to_string() }).await?;
        let image = image.ok_or_else(|| Error::no_volume(name))?;
        Ok(format!("dunnage.vol.{}", image.id))
    }

    /// `Share::owner`.
    pub async fn owner(&self, name: &VolumeName) -> Result<Option<Versioned>> {
        let oid = self.oid(name).await?;
        let found = self.ask(name, ReadRecord { place: self.place.clone(), oid: oid.clone() }).await?;
        let read = |found: crate::Versioned| {
            let record = OwnerRecord::read(&found.data, &format!("object {oid} of pool {}", self.place.pool))?;
            Ok(Versioned { revision: found.revision, record })
        };
        found.map(read).transpose().map_err(|e: Error| e.of(name))
    }

    /// `Share::swap`.
    pub async fn swap(&self, name: &VolumeName, expected: Option<u64>, record: &OwnerRecord) -> Result<Option<Versioned>> {
        let (oid, place) = (self.oid(name).await?, self.place.clone());
        let data = serde_json::to_vec(record).map_err(|e| Error::internal(format!("an owner's record cannot be written: {e}")))?;
        let revision = expected.map_or(1, |expected| expected + 1);
        let done = match expected {
            None => self.ask(name, CreateRecord { place, oid, revision, data }).await?,
            Some(expected) => self.ask(name, SwapRecord { place, oid, expected, revision, data }).await?,
        };
        Ok(done.then(|| Versioned { revision, record: record.clone() }))
    }

    /// `Share::clients`.
    pub async fn clients(&self, name: &VolumeName) -> Result<BTreeSet<Client>> {
        let watchers = self.ask(name, ImageWatchers { place: self.place.clone(), name: name.to_string() }).await?;
        let watchers = watchers.ok_or_else(|| Error::no_volume(name))?;
        Ok(watchers.into_iter().map(|watcher| Client(watcher.address.to_string())).collect())
    }

    /// `Share::fence`.
    pub async fn fence(&self, clients: &BTreeSet<Client>) -> Result<()> {
        self.fence_for(clients, FOR_GOOD).await
    }

    /// A fence that ends by itself. It is no fence: for the test that shows so.
    #[doc(hidden)]
    pub async fn fence_for(&self, clients: &BTreeSet<Client>, duration: Duration) -> Result<()> {
        let clients = clients.iter().map(|client| client.0.parse()).collect::<Result<_>>()?;
        run(&*self.runner, &Blocklist { access: self.place.access.clone(), clients, duration }).await
    }

    /// `Share::barrier`.
    pub async fn barrier(&self) -> Result<()> {
        run(&*self.runner, &Barrier { place: self.place.clone() }).await
    }

    /// `Share::give_sign`.
    pub async fn give_sign(&self, me: &Owner, counter: u64) -> Result<()> {
        run(&*self.signs, &GiveSign { place: self.place.clone(), me: me.clone(), counter }).await
    }

    /// `Share::sign`.
    pub async fn sign(&self, of: &NodeId) -> Result<Option<Sign>> {
        run(&*self.runner, &ReadSign { place: self.place.clone(), node: of.clone() }).await
    }
}
