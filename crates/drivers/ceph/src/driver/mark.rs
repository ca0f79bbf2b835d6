//! Whose an image is: an object beside it, in its own pool, that names the one volume that it is.
//!
//! The records of volumes have their names: they keep two nodes from making one name twice, and not one image from going by two
//! names (`pg`, and `rbd.pg` as REX-Ray called it), or two sets of nodes whose first pools differ from taking it both. What one
//! image is to two volumes, two nodes may write to.
//!
//! A mark without a record is of an adoption that was interrupted, and is taken over. So that it is not taken from one that is merely
//! slow, an adoption marks, makes its record, and then changes its mark: if somebody was quicker, that fails.

use dunnage_model::{Error, Kind, Result, VolumeName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Ceph;
use super::adopt::Located;
use crate::tasks::{CreateRecord, Place, ReadRecord, RemoveRecord, SwapRecord};
use crate::volumes::{Stored, oid};

/// The contents of the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The pool with the volume's record.
    home: String,
    /// The volume's name.
    volume: VolumeName,
    /// The volume's id.
    id: Uuid,
}

/// A mark as it was read or written.
#[derive(Clone)]
pub(super) struct Marked {
    revision: u64,
    mark: Mark,
}

fn object(image: &str) -> String {
    format!("dunnage.image.{image}")
}

impl Ceph {
    /// The mark that an image of a volume has.
    pub(super) fn mark_of(&self, volume: &VolumeName, id: Uuid) -> Mark {
        Mark { home: self.home().pool, volume: volume.clone(), id }
    }

    async fn marked(&self, name: &VolumeName, pool: &str, image: &str) -> Result<Option<Marked>> {
        let oid = object(image);
        let Some(found) = self.ask(name, ReadRecord { place: self.place(pool), oid: oid.clone() }).await? else { return Ok(None) };
        let damaged = |e: serde_json::Error| {
            let detail = format!("object {oid} of pool {pool} is damaged: {e}");
            Error::unavailable(detail, "nothing was changed; look at it with 'rados get'").of(name)
        };
        Ok(Some(Marked { revision: found.revision, mark: serde_json::from_slice(&found.data).map_err(damaged)? }))
    }

    /// The volume that an image is already, if it is one.
    async fn volume_of(&self, name: &VolumeName, Marked { mark, .. }: &Marked) -> Result<Option<Mark>> {
        let record = ReadRecord { place: self.place(&mark.home), oid: oid(&mark.volume) };
        let is_it = match self.ask(name, record).await {
            Ok(None) => false,
            Ok(Some(found)) => Stored::parse(&found.data, &oid(&mark.volume)).map_err(|e| e.of(name))?.volume.id == mark.id,
            // Its record's pool is none of ours to read, so that nobody can say that it is gone.
            Err(e) if matches!(e.word(), "not_found" | "permission") => true,
            Err(e) => return Err(e),
        };
        Ok(is_it.then(|| mark.clone()))
    }

    /// Refuses an image that is another volume already.
    pub(super) async fn refuse_known(&self, name: &VolumeName, located: &Located) -> Result<()> {
        let another = |marked: &Marked| marked.mark.volume != *name || marked.mark.home != self.home().pool;
        let Some(marked) = self.marked(name, &located.pool, &located.id).await?.filter(another) else { return Ok(()) };
        match self.volume_of(name, &marked).await? {
            Some(mark) => Err(self.is_known(name, located, &mark)),
            None => Ok(()),
        }
    }

    fn is_known(&self, name: &VolumeName, Located { pool, image, .. }: &Located, Mark { home, volume, .. }: &Mark) -> Error {
        let (detail, next) = if *home == self.home().pool {
            (format!("image {image} of pool {pool} is volume {volume:?} already"), format!("ask for {volume}"))
        } else {
            let detail = format!("image {image} of pool {pool} is volume {volume:?} already, whose record is in pool {home}");
            (detail, format!("name {home} first in the driver's pools, as whoever made it did"))
        };
        Error::new(Kind::ExistsIncompatible, detail, next).of(name)
    }

    /// Marks an image that is to become this volume, unless it is one.
    pub(super) async fn mark(&self, name: &VolumeName, located: &Located, mark: &Mark) -> Result<Marked> {
        let (pool, image) = (&located.pool, &located.id);
        let create = CreateRecord { place: self.place(pool), oid: object(image), revision: 1, data: written(mark)? };
        if self.ask(name, create).await? {
            return Ok(Marked { revision: 1, mark: mark.clone() });
        }
        let Some(found) = self.marked(name, pool, image).await? else { return Err(quicker(name)) };
        if found.mark == *mark {
            return Ok(found);
        }
        if let Some(known) = self.volume_of(name, &found).await? {
            return Err(self.is_known(name, located, &known));
        }
        self.replace_mark(name, pool, image, &found, mark).await
    }

    /// Makes sure that nobody has taken an image since it was marked.
    pub(super) async fn settle(&self, name: &VolumeName, located: &Located, marked: &Marked) -> Result<()> {
        self.replace_mark(name, &located.pool, &located.id, marked, &marked.mark).await.map(drop)
    }

    async fn replace_mark(&self, name: &VolumeName, pool: &str, image: &str, found: &Marked, mark: &Mark) -> Result<Marked> {
        let (expected, revision) = (found.revision, found.revision + 1);
        let swap = SwapRecord { place: self.place(pool), oid: object(image), expected, revision, data: written(mark)? };
        if self.ask(name, swap).await? { Ok(Marked { revision, mark: mark.clone() }) } else { Err(quicker(name)) }
    }

    /// Takes away the mark of an image that is gone, or is a volume no more, if it is this volume's.
    pub(super) async fn unmark(&self, name: &VolumeName, pool: &str, image: &str, mark: &Mark) -> Result<()> {
        let Some(found) = self.marked(name, pool, image).await?.filter(|found| found.mark == *mark) else { return Ok(()) };
        let place: Place = self.place(pool);
        self.ask(name, RemoveRecord { place, oid: object(image), expected: found.revision }).await.map(drop)
    }
}

fn written(mark: &Mark) -> Result<Vec<u8>> {
    serde_json::to_vec(mark).map_err(|e| Error::internal(format!("a mark cannot be written: {e}")))
}

fn quicker(name: &VolumeName) -> Error {
    Error::new(Kind::ExistsIncompatible, "somebody else takes this image at this moment", "ask again").of(name)
}
