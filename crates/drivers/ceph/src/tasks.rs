//! What helpers do with a cluster. A helper keeps its connection from one task to the next: to make one takes longer than most
//! tasks.
//!
//! A connection that was fenced stays so, and one that is lost may: it is given up with the task that finds it out, which
//! fails. The next task makes another one, which is another client to the cluster.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use dunnage_host::Space;
use dunnage_host::helpers::{Registry, Task};
use dunnage_model::{Bytes, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::{Access, ClientAddress, Cluster, Image, ImageInfo, ImageName, Pool, Versioned, Watcher, is_fenced};

/// The tasks that helpers must know for this driver.
pub fn tasks(registry: Registry) -> Registry {
    registry
        .with::<ReadRecord>()
        .with::<CreateRecord>()
        .with::<SwapRecord>()
        .with::<RemoveRecord>()
        .with::<CreateImage>()
        .with::<ListImages>()
        .with::<LabelImage>()
        .with::<StatImage>()
        .with::<RemoveImage>()
        .with::<RenameImage>()
        .with::<LengthenImage>()
        .with::<ImageWatchers>()
        .with::<WatchersById>()
        .with::<ImageId>()
        .with::<ImageUsed>()
        .with::<AddName>()
        .with::<RemoveName>()
        .with::<ListNames>()
        .with::<crate::volumes::ReadAll>()
        .with::<crate::driver::LookInto>()
        .with::<CopiesOf>()
        .with::<LeastCopiesOf>()
        .with::<MakePool>()
        .with::<SpaceOf>()
        .with::<crate::carrier::Look>()
        .with::<crate::start::Start>()
        .with::<crate::carrier::Tell>()
        .with::<crate::carrier::End>()
        .with::<crate::carrier::All>()
        .with::<crate::carrier::Lengthen>()
        .with::<crate::carrier::WaitForSize>()
        .with::<Instance>()
        .with::<Blocklist>()
        .with::<Barrier>()
        .with::<crate::node::GiveSign>()
        .with::<crate::node::ReadSign>()
}

/// A pool, and how to get to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The cluster.
    pub access: Access,
    /// The pool's name.
    pub pool: String,
}

/// A connection, and the pools that were used by it.
struct Kept {
    access: Access,
    cluster: Cluster,
    pools: Vec<Pool>,
}

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

fn with_kept<T>(access: &Access, work: impl FnOnce(&mut Kept) -> Result<T>) -> Result<T> {
    // Taken out while it is used, so that a failure drops it.
    let kept = KEPT.with_borrow_mut(|all| all.iter().position(|kept| kept.access == *access).map(|at| all.swap_remove(at)));
    let mut kept = match kept {
        Some(kept) => kept,
        None => Kept { access: access.clone(), cluster: Cluster::connect(access)?, pools: Vec::new() },
    };
    let outcome = work(&mut kept);
    if !matches!(&outcome, Err(e) if is_fenced(e) || e.kind == Kind::PlatformUnavailable) {
        KEPT.with_borrow_mut(|all| all.push(kept));
    }
    outcome
}

impl Place {
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Pool) -> Result<T>) -> Result<T> {
        with_kept(&self.access, |kept| {
            if let Some(pool) = kept.pools.iter().find(|pool| pool.name() == self.pool) {
                return work(pool);
            }
            let pool = kept.cluster.pool(&self.pool)?;
            let outcome = work(&pool);
            kept.pools.push(pool);
            outcome
        })
    }
}

/// A task in a pool: its name, its fields, what comes of it, and the one call that it is.
macro_rules! task {
    ($(#[$doc:meta])* $task:ident, $name:literal, { $($(#[$of_field:meta])* $field:ident: $type:ty),* } -> $output:ty, $pool:ident => $call:expr) => {
        $(#[$doc])*
        #[derive(Debug, Serialize, Deserialize)]
        pub struct $task {
            /// Where.
            pub place: Place,
            $($(#[$of_field])* pub $field: $type,)*
        }

        impl Task for $task {
            const NAME: &'static str = $name;
            type Output = $output;

            fn run(self) -> Result<$output> {
                let $task { place, $($field),* } = self;
                place.with(|$pool| $call)
            }
        }
    };
}

task! {
    /// [`Pool::read`].
    ReadRecord, "ceph.read", {
        /// The object.
        oid: String
    } -> Option<Versioned>, pool => pool.read(&oid)
}

task! {
    /// [`Pool::create`].
    CreateRecord, "ceph.create", {
        /// The object.
        oid: String,
        /// Its first revision.
        revision: u64,
        /// What it says.
        data: Vec<u8>
    } -> bool, pool => pool.create(&oid, revision, &data)
}

task! {
    /// [`Pool::swap`].
    SwapRecord, "ceph.swap", {
        /// The object.
        oid: String,
        /// The revision that it must have.
        expected: u64,
        /// The one that it gets.
        revision: u64,
        /// What it says then.
        data: Vec<u8>
    } -> bool, pool => pool.swap(&oid, expected, revision, &data)
}

task! {
    /// [`Pool::remove`].
    RemoveRecord, "ceph.remove", {
        /// The object.
        oid: String,
        /// The revision that it must have.
        expected: u64
    } -> bool, pool => pool.remove(&oid, expected)
}

task! {
    /// [`Pool::create_image`].
    CreateImage, "ceph.create-image", {
        /// Its name.
        name: String,
        /// How long it is to be.
        size: Bytes
    } -> bool, pool => pool.create_image(&name, size)
}

task! {
    /// [`Pool::label_image`].
    LabelImage, "ceph.label-image", {
        /// Its name.
        name: String,
        /// The labels.
        labels: BTreeMap<String, String>
    } -> (), pool => pool.label_image(&name, &labels)
}

task! {
    /// [`Pool::images`].
    ListImages, "ceph.list-images", {} -> Vec<ImageName>, pool => pool.images()
}

task! {
    /// [`Pool::image`].
    StatImage, "ceph.stat-image", {
        /// Its name.
        name: String
    } -> Option<ImageInfo>, pool => pool.image(&name)
}

task! {
    /// [`Pool::remove_image`].
    RemoveImage, "ceph.remove-image", {
        /// Its name.
        name: String
    } -> bool, pool => pool.remove_image(&name)
}

task! {
    /// [`Pool::rename_image`].
    RenameImage, "ceph.rename-image", {
        /// Its name.
        name: String,
        /// The one that it gets.
        new: String
    } -> (), pool => pool.rename_image(&name, &new)
}

task! {
    /// [`Pool::lengthen_image`].
    LengthenImage, "ceph.lengthen-image", {
        /// Its name.
        name: String,
        /// How long it is to be at least.
        size: Bytes
    } -> (), pool => pool.lengthen_image(&name, size)
}

task! {
    /// [`Pool::add_name`].
    AddName, "ceph.add-name", {
        /// The object.
        oid: String,
        /// The name.
        name: String
    } -> (), pool => pool.add_name(&oid, &name)
}

task! {
    /// [`Pool::remove_name`].
    RemoveName, "ceph.remove-name", {
        /// The object.
        oid: String,
        /// The name.
        name: String
    } -> (), pool => pool.remove_name(&oid, &name)
}

task! {
    /// [`Pool::names`].
    ListNames, "ceph.list-names", {
        /// The object.
        oid: String
    } -> Vec<String>, pool => pool.names(&oid)
}

task! {
    /// [`Pool::copies`].
    CopiesOf, "ceph.copies", {} -> u32, pool => pool.copies()
}

task! {
    /// [`Pool::least_copies`].
    LeastCopiesOf, "ceph.least-copies", {} -> u32, pool => pool.least_copies()
}

task! {
    /// [`Pool::space`].
    SpaceOf, "ceph.space", {} -> Space, pool => pool.space()
}

task! {
    /// [`Pool::image_watchers`].
    ImageWatchers, "ceph.image-watchers", {
        /// Its name.
        name: String
    } -> Option<Vec<Watcher>>, pool => pool.image_watchers(&name)
}

thread_local! {
    /// The image that was looked at last, of which most are looked at several times: by its pool and id.
    static LOOKED_AT: RefCell<Option<(Place, String, Image)>> = const { RefCell::new(None) };
}

/// Who has the image of this id open for writing; nobody, if there is none.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchersById {
    /// Where.
    pub place: Place,
    /// Its id.
    pub id: String,
}

impl Task for WatchersById {
    const NAME: &'static str = "ceph.watchers-by-id";
    type Output = Vec<Watcher>;

    fn run(self) -> Result<Vec<Watcher>> {
        let WatchersById { place, id } = self;
        // Taken out while it is used, so that a failure drops it.
        let kept = LOOKED_AT.take().filter(|(its_place, its_id, _)| *its_place == place && *its_id == id).map(|(.., image)| image);
        let image = match kept {
            Some(image) => Some(image),
            None => place.with(|pool| pool.look_by_id(&id))?,
        };
        let Some(image) = image else { return Ok(Vec::new()) };
        let watchers = image.watchers()?;
        LOOKED_AT.set(Some((place, id, image)));
        Ok(watchers)
    }
}

task! {
    /// [`Pool::image_id`].
    ImageId, "ceph.image-id", {
        /// Its name.
        name: String
    } -> Option<String>, pool => pool.image_id(&name)
}

task! {
    /// [`Pool::image_used`].
    ImageUsed, "ceph.image-used", {
        /// Its name.
        name: String
    } -> Option<Bytes>, pool => pool.image_used(&name)
}

task! {
    /// [`Pool::barrier`].
    Barrier, "ceph.barrier", {} -> (), pool => pool.barrier()
}

/// [`Cluster::blocklist`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Blocklist {
    /// The cluster.
    pub access: Access,
    /// Whom.
    pub clients: Vec<ClientAddress>,
    /// For how long.
    pub duration: Duration,
}

impl Task for Blocklist {
    const NAME: &'static str = "ceph.blocklist";
    type Output = ();

    fn run(self) -> Result<()> {
        with_kept(&self.access, |kept| kept.cluster.blocklist(&self.clients, self.duration))
    }
}

/// [`Cluster::make_pool`].
#[derive(Debug, Serialize, Deserialize)]
pub struct MakePool {
    /// The cluster, and the pool's name.
    pub place: Place,
    /// How many copies it keeps.
    pub copies: u32,
}

impl Task for MakePool {
    const NAME: &'static str = "ceph.make-pool";
    type Output = ();

    fn run(self) -> Result<()> {
        with_kept(&self.place.access, |kept| kept.cluster.make_pool(&self.place.pool, self.copies))
    }
}

/// [`Cluster::instance`], of this helper's connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Instance {
    /// The cluster.
    pub access: Access,
}

impl Task for Instance {
    const NAME: &'static str = "ceph.instance";
    type Output = Vec<ClientAddress>;

    fn run(self) -> Result<Vec<ClientAddress>> {
        with_kept(&self.access, |kept| kept.cluster.instance())
    }
}
