//! Images that somebody else has made: `rbd create`, or REX-Ray. In the driver's pools they go by their own names, and in any pool by
//! `POOL.IMAGE`, as REX-Ray called them.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use async_trait::async_trait;
use dunnage_driver::{Adopt, Adoption, Driver, NewVolume, Phase, Stranger};
use dunnage_host::Probe;
use dunnage_host::helpers::{Task, run};
use dunnage_host::linux::probe_file;
use dunnage_model::{Bytes, Error, Owner, PartialSpec, Result, VolumeInfo, VolumeName, VolumeSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Ceph, Found};
use crate::tasks::{ListImages, Place};
use crate::volumes::{ReadAll, Stored, UNFINISHED};

/// How much of an image's beginning and of its end is looked at: all marks that libblkid knows are there.
const ENDS: u64 = 1 << 20;

/// Where an image is.
pub(super) struct Located {
    pub pool: String,
    pub image: String,
    pub id: String,
}

/// Looks at an image without becoming one of its watchers; nothing, if there is none of this id.
#[derive(Debug, Serialize, Deserialize)]
pub struct LookInto {
    /// Its pool.
    pub place: Place,
    /// Its id.
    pub id: String,
}

impl Task for LookInto {
    const NAME: &'static str = "ceph.look-into";
    type Output = Option<(Bytes, Probe)>;

    fn run(self) -> Result<Self::Output> {
        self.place.with(|pool| {
            let Some(image) = pool.look_by_id(&self.id)? else { return Ok(None) };
            let size = image.info()?.size;
            let what = "cannot look at an image";
            let os = |e: std::io::Error| Error::os(what, &e);
            // What tells filesystems apart wants a file: it gets one with the same ends.
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::memfd_create("image", flags).map_err(|e| Error::os(what, &e.into()))?);
            file.set_len(size.0).map_err(os)?;
            for at in [0, size.0.saturating_sub(ENDS)] {
                let data = image.read(Bytes(at), usize::try_from(ENDS.min(size.0)).unwrap_or(0))?;
                if data.iter().any(|byte| *byte != 0) {
                    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&data)).map_err(os)?;
                }
            }
            let found = match probe_file(&mut file).map_err(os)? {
                Probe::Blank if image.used()?.0 > 0 => Probe::Unknown { signature: "data of an unknown kind".to_owned() },
                found => found,
            };
            Ok(Some((size, found)))
        })
    }
}

impl Ceph {
    /// The image that a name means: of that name in the first of the driver's pools that has one, or `POOL.IMAGE`.
    pub(super) async fn locate(&self, name: &VolumeName) -> Result<Option<Located>> {
        for pool in &self.settings.pools {
            if let Some(id) = self.image(name, pool, name.to_string()).await? {
                return Ok(Some(Located { pool: pool.clone(), image: name.to_string(), id }));
            }
        }
        let Some((pool, image)) = self.named_pool(name).await? else { return Ok(None) };
        let id = self.image(name, &pool, image.clone()).await?;
        Ok(id.map(|id| Located { pool, image, id }))
    }

    /// The two parts of a name `POOL.IMAGE`, if there is such a pool.
    pub(super) async fn named_pool(&self, name: &VolumeName) -> Result<Option<(String, String)>> {
        let Some((pool, image)) = name.as_str().split_once('.') else { return Ok(None) };
        // What is being made has no volume's name yet, and is somebody's all the same.
        if image.is_empty() || image.starts_with(UNFINISHED) {
            return Ok(None);
        }
        match self.image(name, pool, image.to_owned()).await {
            Ok(_) => Ok(Some((pool.to_owned(), image.to_owned()))),
            // There is no such pool, or none for us: it is a name with a dot.
            Err(e) if matches!(e.word(), "not_found" | "permission") => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn look_into(&self, name: &VolumeName, located: &Located) -> Result<Option<(Bytes, Probe)>> {
        self.ask(name, LookInto { place: self.place(&located.pool), id: located.id.clone() }).await
    }

    /// What is at a place, and whose copy it is.
    async fn described(&self, name: &VolumeName, located: &Located, volumes: &[Stored]) -> Result<Option<Stranger>> {
        let Some((size, found)) = self.look_into(name, located).await? else { return Ok(None) };
        let same = |stored: &&Stored| match (&found, stored.volume.storage) {
            (Probe::Known(known), Phase::Formatted { fs_uuid }) => fs_uuid == known.uuid && stored.volume.name != *name,
            _ => false,
        };
        let copy_of = volumes.iter().find(same).map(|stored| stored.volume.name.clone());
        let place = format!("image {} of pool {}", located.image, located.pool);
        Ok(Some(Stranger { name: name.clone(), place, size, found, copy_of }))
    }

    async fn volumes(&self) -> Result<Vec<Stored>> {
        run(&*self.cluster, &ReadAll { place: self.home() }).await.map(|(volumes, _)| volumes)
    }
}

fn gone(name: &VolumeName) -> Error {
    Error::not_found("its image has gone meanwhile", "look at 'rbd ls'").of(name)
}

#[async_trait]
impl Adopt for Ceph {
    async fn strangers(&self) -> Result<Vec<Stranger>> {
        let volumes = self.volumes().await?;
        let mut strangers: Vec<Stranger> = Vec::new();
        for pool in &self.settings.pools {
            for image in run(&*self.cluster, &ListImages { place: self.place(pool) }).await? {
                let known = |stored: &Stored| stored.pool == *pool && stored.image.as_ref() == Some(&image.id);
                if volumes.iter().any(known) || image.name.starts_with(UNFINISHED) {
                    continue;
                }
                // What no volume can be called nobody can adopt; and of two pools' images of one name the second goes by its pool's, too.
                let taken = |name: &VolumeName| {
                    volumes.iter().any(|stored| stored.volume.name == *name) || strangers.iter().any(|stranger| stranger.name == *name)
                };
                let names = [image.name.clone(), format!("{pool}.{}", image.name)];
                let Some(name) = names.iter().filter_map(|name| name.parse().ok()).find(|name| !taken(name)) else { continue };
                let located = Located { pool: pool.clone(), image: image.name, id: image.id };
                strangers.extend(self.described(&name, &located, &volumes).await?);
            }
        }
        Ok(strangers)
    }

    async fn stranger(&self, name: &VolumeName) -> Result<Option<Stranger>> {
        if self.find(name).await?.is_some_and(|found| !found.stored.adopting) {
            return Ok(None);
        }
        let Some(located) = self.locate(name).await? else { return Ok(None) };
        self.refuse_known(name, &located).await?;
        self.described(name, &located, &self.volumes().await?).await
    }

    async fn claim(&self, adoption: &Adoption, me: &Owner) -> Result<()> {
        let name = &adoption.name;
        let located = self.locate(name).await?.ok_or_else(|| gone(name))?;
        self.refuse_data_pool(name, &located.pool, &located.image).await?;
        let (size, _) = self.look_into(name, &located).await?.ok_or_else(|| gone(name))?;
        let whole = PartialSpec { fs: adoption.fs.as_ref().map(|known| known.fs), ..PartialSpec::default() }.complete()?;
        // Its size is what it has, whatever a new one would have to have.
        let spec = VolumeSpec { size, ..whole };
        let new =
            NewVolume { name: name.clone(), endpoint: adoption.endpoint.clone(), spec, created: adoption.adopted, maker: Some(me.clone()) };
        let called = (located.image != name.as_str()).then(|| located.image.clone());
        let image = Some(located.id.clone());
        let stored = Stored { image, called, adopting: true, ..Stored::new(new, located.pool.clone()) };
        let marked = self.mark(name, &located, &self.mark_of(name, stored.volume.id)).await?;
        self.begin(&stored).await?;
        self.settle(name, &located, &marked).await
    }

    async fn renew(&self, name: &VolumeName, uuid: Uuid) -> Result<()> {
        let Found { stored, .. } = self.there(name).await?;
        // By whatever way: it is there already.
        let device = Driver::attach(self, name).await?;
        self.host.filesystems.renew(&device.path, stored.volume.spec.fs, uuid).await.map_err(|e| e.of(name))
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<VolumeInfo> {
        let name = &adoption.name;
        let Some(fs) = &adoption.fs else {
            // Who lists a volume is nothing that its owner could be disturbed by.
            loop {
                let Found { revision, mut stored } = self.there(name).await?;
                stored.volume.endpoint = adoption.endpoint.clone();
                if self.write(name, revision, &stored).await?.is_some() {
                    return Ok(self.info(stored, true));
                }
            }
        };
        let Found { stored, .. } = self.there(name).await?;
        let id = stored.image.clone().unwrap_or_default();
        let located = Located { pool: stored.pool.clone(), image: stored.image_name(), id };
        match self.look_into(name, &located).await?.ok_or_else(|| gone(name))?.1 {
            Probe::Known(known) if known.uuid == fs.uuid && known.fs == fs.fs => {}
            other => return Err(Error::internal(format!("an image was to be adopted that has {other:?} now")).of(name)),
        }
        let finish = |stored: &mut Stored| {
            if !stored.adopting {
                return Err(Error::internal("a volume of ours was to be adopted"));
            }
            stored.volume.storage = Phase::Formatted { fs_uuid: fs.uuid };
            stored.volume.spec.root_path.clone_from(&adoption.root_path);
            stored.adopting = false;
            Ok(())
        };
        Ok(self.info(self.change(name, finish).await?.stored, true))
    }

    async fn discard(&self, name: &VolumeName) -> Result<()> {
        let located = if self.find(name).await?.is_some() { None } else { self.locate(name).await? };
        let Some(located) = located else {
            let detail = "there is nothing of that name that was not made by Dunnage";
            return Err(Error::not_found(detail, "look at 'dunnage volume adopt --all --dry-run'").of(name));
        };
        let mark = self.mark_of(name, Uuid::new_v4());
        self.mark(name, &located, &mark).await?;
        let Located { pool, image, id } = located;
        self.remove_image(name, &pool, image, Some(&id)).await?;
        self.unmark(name, &pool, &id, &mark).await
    }
}
