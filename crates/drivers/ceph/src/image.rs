//! The images of a pool.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use dunnage_model::{Bytes, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::address::ClientAddress;
use crate::fault::failed;
use crate::library::{self, RawImage, RawSpec, RawWatcher, Rbd, text};
use crate::pool::Pool;

/// What an image is able to do, as `rbd/features.h` numbers it.
pub mod features {
    /// It can be the copy-on-write child of a snapshot.
    pub const LAYERING: u64 = 1;
    /// Its clients agree on who writes. That is cooperation and no fence.
    pub const EXCLUSIVE_LOCK: u64 = 1 << 2;
    /// It knows which of its objects exist. Needs the lock.
    pub const OBJECT_MAP: u64 = 1 << 3;
    /// It knows quickly what has changed since a snapshot. Needs the map.
    pub const FAST_DIFF: u64 = 1 << 4;
    /// Its data is in another pool than itself.
    pub const DATA_POOL: u64 = 1 << 7;
}

/// What our images have.
const OURS: u64 = features::LAYERING | features::EXCLUSIVE_LOCK | features::OBJECT_MAP | features::FAST_DIFF;

/// How long the parts of the lists are that Ceph fills, at first.
const USUAL: usize = 64;
/// Longer than any list that there can be.
const MOST: usize = 64 << 20;

/// An image in its pool's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageName {
    /// Its name, which can be changed.
    pub name: String,
    /// Its id, which no other image of the pool has or will have.
    pub id: String,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// See [`ImageName::id`].
    pub id: String,
    /// How long it is.
    pub size: Bytes,
    /// Its [`features`].
    pub features: u64,
}

/// A client that has an image open for writing, or had until at most 30 seconds ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// What to fence to stop it.
    pub address: ClientAddress,
    /// That connection's [`client_id`](crate::Cluster::client_id).
    pub client: u64,
    /// Which of its watches.
    pub cookie: u64,
}

impl Pool {
    /// Makes an image. It takes no room until something is written. `false`: there is one of that name.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time: it may have been made, or half made (Ceph finishes or removes such a
    /// one when it is created or removed again).
    pub fn create_image(&self, name: &str, size: Bytes) -> Result<bool> {
        let api = library::rbd()?;
        let (wanted, mut order) = (text("name", name)?, 0);
        // SAFETY: a live pool, a string, and a place for the size of its objects, where 0 asks for the usual one.
        match unsafe { (api.rbd_create2)(self.raw(), wanted.as_ptr(), size.0, OURS, &raw mut order) } {
            0 => Ok(true),
            code if code == -libc::EEXIST => Ok(false),
            code => Err(failed(self.of_image("create", name), code)),
        }
    }

    /// All images.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn images(&self) -> Result<Vec<ImageName>> {
        let api = library::rbd()?;
        let mut room = USUAL;
        loop {
            let mut specs = vec![RawSpec { id: std::ptr::null_mut(), name: std::ptr::null_mut() }; room];
            let mut count = room;
            // SAFETY: a live pool and room for that many.
            let code = unsafe { (api.rbd_list2)(self.raw(), specs.as_mut_ptr(), &raw mut count) };
            if code == -libc::ERANGE {
                room = more(room, count)?;
                continue;
            }
            if code < 0 {
                return Err(failed(format_args!("cannot list the images of pool {:?}", self.name()), code));
            }
            let count = count.min(room);
            // SAFETY: so many have been filled in, each with two strings of C, which are freed right after.
            let images =
                specs.iter().take(count).map(|spec| unsafe { ImageName { name: string(spec.name), id: string(spec.id) } }).collect();
            // SAFETY: librbd made their strings.
            unsafe { (api.rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), count) };
            return Ok(images);
        }
    }

    /// What an image is, if there is one.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn image(&self, name: &str) -> Result<Option<ImageInfo>> {
        self.looked_at(name, Image::info)
    }

    /// What an image takes of the pool, each copy counted once; `None` without such an image.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn image_used(&self, name: &str) -> Result<Option<Bytes>> {
        self.looked_at(name, Image::used)
    }

    /// Makes an image longer, if it is shorter.
    ///
    /// # Errors
    /// `not_found` without such an image.
    pub fn lengthen_image(&self, name: &str, size: Bytes) -> Result<()> {
        let image = self.open_image(name)?;
        if image.info()?.size >= size {
            return Ok(());
        }
        // SAFETY: an open image.
        image.done("resize", unsafe { (image.api.rbd_resize)(image.raw, size.0) })
    }

    /// Removes an image; `false`: there is none.
    ///
    /// # Errors
    /// `in_use` when a client has it open, with that client's address. After a `platform_unavailable` it may be half removed; the
    /// next removal finishes it.
    pub fn remove_image(&self, name: &str) -> Result<bool> {
        let api = library::rbd()?;
        self.refuse_if_open(name)?;
        let wanted = text("name", name)?;
        // SAFETY: a live pool and a string.
        match unsafe { (api.rbd_remove)(self.raw(), wanted.as_ptr()) } {
            0 => Ok(true),
            code if code == -libc::ENOENT => match self.image_id(name)? {
                None => Ok(false),
                // Seen with 16.2.15 in a cluster that was full, of the rbd command too.
                Some(_) => {
                    let detail = format!("{}: librbd finds it no more, and it is there", self.of_image("remove", name));
                    let next = "see whether the cluster is full ('ceph health'); if so, raise 'ceph osd set-full-ratio' a little, and it is removed";
                    Err(Error::new(Kind::LimitReached, detail, next))
                }
            },
            code if code == -libc::EBUSY => {
                // Somebody has opened it in between.
                self.refuse_if_open(name)?;
                let detail = self.of_image("remove", name);
                Err(Error::in_use(Vec::new(), "Ceph", detail, "wait half a minute until Ceph has forgotten who had it, then try again"))
            }
            code if code == -libc::ENOTEMPTY => {
                let detail = format!("{}: it has snapshots", self.of_image("remove", name));
                Err(Error::in_use(Vec::new(), "Ceph", detail, "remove its snapshots first ('rbd snap ls')"))
            }
            code => Err(failed(self.of_image("remove", name), code)),
        }
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// `exists_incompatible` when there is one of that name, `not_found` without such an image.
    pub fn rename_image(&self, name: &str, new: &str) -> Result<()> {
        let api = library::rbd()?;
        let (from, to) = (text("name", name)?, text("name", new)?);
        // SAFETY: a live pool and two strings.
        match unsafe { (api.rbd_rename)(self.raw(), from.as_ptr(), to.as_ptr()) } {
            code if code < 0 => Err(failed(format_args!("{} to {new:?}", self.of_image("rename", name)), code)),
            _ => Ok(()),
        }
    }

    fn refuse_if_open(&self, name: &str) -> Result<()> {
        let watchers = self.image_watchers(name)?.unwrap_or_default();
        let Some(first) = watchers.first() else { return Ok(()) };
        let holders = watchers.iter().map(|watcher| format!("Ceph client {}", watcher.address)).collect();
        let detail = format!("image {name:?} of pool {:?} is open", self.name());
        Err(Error::in_use(holders, first.address, detail, "end what uses it, or fence it, then try again"))
    }

    /// The id of the image of this name, if there is one. This is one read; to open an image is ten.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn image_id(&self, name: &str) -> Result<Option<String>> {
        // Since its second format librbd keeps it in an object: its length in four bytes, and the id.
        let Some(data) = self.read_plain(&format!("rbd_id.{name}"))? else { return Ok(None) };
        let id = data.split_first_chunk::<4>().and_then(|(length, id)| id.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?));
        let id = id.and_then(|id| std::str::from_utf8(id).ok());
        id.map(|id| Some(id.to_owned()))
            .ok_or_else(|| Error::internal(format!("the id of {:?} cannot be read", self.of_image("name", name))))
    }

    /// Looks at the image of this id without becoming one of its watchers; `None` without such an image.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn look_by_id(&self, id: &str) -> Result<Option<Image>> {
        let api = library::rbd()?;
        let wanted = text("id", id)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live pool, a string, a place for the handle, no snapshot.
        match unsafe { (api.rbd_open_by_id_read_only)(self.raw(), wanted.as_ptr(), &raw mut raw, std::ptr::null()) } {
            0 => Ok(Some(Image { api, raw, pool: self.clone(), name: id.to_owned() })),
            code if code == -libc::ENOENT => Ok(None),
            code => Err(failed(self.of_image("open", id), code)),
        }
    }

    /// Who has an image open for writing; `None` without such an image.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn image_watchers(&self, name: &str) -> Result<Option<Vec<Watcher>>> {
        self.looked_at(name, Image::watchers)
    }

    /// An image's labels; `None` without such an image. `rbd cp` and `rbd clone` copy them, and nothing compares when they are
    /// set: they are for people.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn image_labels(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.looked_at(name, Image::labels)
    }

    /// Sets labels.
    ///
    /// # Errors
    /// `not_found` without such an image.
    pub fn label_image(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let image = self.open_image(name)?;
        for (key, value) in labels {
            let (key, value) = (text("label", key.as_str())?, text("label", value.as_str())?);
            // SAFETY: an open image and two strings.
            image.done("label", unsafe { (image.api.rbd_metadata_set)(image.raw, key.as_ptr(), value.as_ptr()) })?;
        }
        Ok(())
    }

    /// Opens an image for writing. As long as it is open we are one of its watchers.
    ///
    /// # Errors
    /// `not_found` without such an image.
    pub fn open_image(&self, name: &str) -> Result<Image> {
        self.opened(name, Mode::Writable)
    }

    /// Looks at an image without becoming one of its watchers.
    fn looked_at<T>(&self, name: &str, look: fn(&Image) -> Result<T>) -> Result<Option<T>> {
        match self.open_raw(name, Mode::ReadOnly)? {
            Ok(image) => look(&image).map(Some),
            Err(code) if code == -libc::ENOENT => Ok(None),
            Err(code) => Err(failed(self.of_image("open", name), code)),
        }
    }

    fn opened(&self, name: &str, mode: Mode) -> Result<Image> {
        self.open_raw(name, mode)?.map_err(|code| failed(self.of_image("open", name), code))
    }

    fn open_raw(&self, name: &str, mode: Mode) -> Result<Result<Image, c_int>> {
        let api = library::rbd()?;
        let open = match mode {
            Mode::ReadOnly => api.rbd_open_read_only,
            Mode::Writable => api.rbd_open,
        };
        let wanted = text("name", name)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live pool, a string, a place for the handle, no snapshot.
        match unsafe { open(self.raw(), wanted.as_ptr(), &raw mut raw, std::ptr::null()) } {
            0 => Ok(Ok(Image { api, raw, pool: self.clone(), name: name.to_owned() })),
            code => Ok(Err(code)),
        }
    }

    fn of_image(&self, doing: &str, name: &str) -> String {
        format!("cannot {doing} image {name:?} of pool {:?}", self.name())
    }
}

#[derive(Clone, Copy)]
enum Mode {
    ReadOnly,
    Writable,
}

/// An open image.
pub struct Image {
    api: &'static Rbd,
    raw: RawImage,
    pool: Pool,
    name: String,
}

// SAFETY: an image may be used by any thread, by several at once; librbd has its own locks.
unsafe impl Send for Image {}
// SAFETY: the same.
unsafe impl Sync for Image {}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: rbd_open made it, its pool is alive still, and nothing else closes it.
        unsafe { (self.api.rbd_close)(self.raw) };
    }
}

impl Image {
    /// Reads bytes at a place; fewer at the image's end.
    ///
    /// # Errors
    /// `not_found` when it was removed, `platform_unavailable` without an answer in time.
    pub fn read(&self, at: Bytes, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0_u8; length];
        // SAFETY: an open image and room for so many bytes.
        let code = unsafe { (self.api.rbd_read)(self.raw, at.0, length, data.as_mut_ptr().cast::<c_char>()) };
        self.done("read", c_int::try_from(code.min(0)).unwrap_or(c_int::MIN))?;
        data.truncate(usize::try_from(code).unwrap_or(0));
        Ok(data)
    }

    /// Writes bytes at a place. They may be in the client's memory until a [`Image::flush`].
    ///
    /// # Errors
    /// A fence, when somebody has fenced us.
    pub fn write(&self, at: Bytes, data: &[u8]) -> Result<()> {
        // SAFETY: an open image and so many bytes, which are copied.
        let code = unsafe { (self.api.rbd_write)(self.raw, at.0, data.len(), data.as_ptr().cast::<c_char>()) };
        self.done("write to", c_int::try_from(code.min(0)).unwrap_or(c_int::MIN))
    }

    /// Comes back when all that was written is in the cluster.
    ///
    /// # Errors
    /// A fence, when somebody has fenced us.
    pub fn flush(&self) -> Result<()> {
        // SAFETY: an open image.
        self.done("flush", unsafe { (self.api.rbd_flush)(self.raw) })
    }

    fn done(&self, doing: &str, code: c_int) -> Result<()> {
        if code < 0 { Err(failed(self.pool.of_image(doing, &self.name), code)) } else { Ok(()) }
    }

    /// What it is.
    ///
    /// # Errors
    /// `not_found` when it was removed, `platform_unavailable` without an answer in time.
    pub fn info(&self) -> Result<ImageInfo> {
        let (mut size, mut features, mut id) = (0, 0, [0_u8; 256]);
        // SAFETY: an open image, and places for what is asked for.
        unsafe {
            self.done("look at", (self.api.rbd_get_size)(self.raw, &raw mut size))?;
            self.done("look at", (self.api.rbd_get_features)(self.raw, &raw mut features))?;
            self.done("look at", (self.api.rbd_get_id)(self.raw, id.as_mut_ptr().cast::<c_char>(), id.len()))?;
        }
        let id = CStr::from_bytes_until_nul(&id).map_err(|_| Error::internal("librbd gave an id without an end"))?;
        Ok(ImageInfo { id: id.to_string_lossy().into_owned(), size: Bytes(size), features })
    }

    /// What it takes of the pool, each copy counted once: its objects, as far as its own map knows.
    ///
    /// # Errors
    /// `not_found` when it was removed, `platform_unavailable` without an answer in time.
    pub fn used(&self) -> Result<Bytes> {
        extern "C" fn add(_: u64, length: usize, exists: c_int, sum: *mut c_void) -> c_int {
            if exists != 0 {
                // SAFETY: the argument of the call below, which waits for us.
                unsafe { *sum.cast::<u64>() += length as u64 };
            }
            0
        }
        let size = self.info()?.size.0;
        let mut sum = 0_u64;
        // SAFETY: an open image, no snapshot, parents included, whole objects, and a place for the sum, which only we touch meanwhile.
        let code = unsafe { (self.api.rbd_diff_iterate2)(self.raw, std::ptr::null(), 0, size, 1, 1, add, (&raw mut sum).cast::<c_void>()) };
        self.done("measure", code)?;
        Ok(Bytes(sum))
    }

    /// Who has it open for writing.
    ///
    /// # Errors
    /// `not_found` when it was removed, `platform_unavailable` without an answer in time.
    pub fn watchers(&self) -> Result<Vec<Watcher>> {
        let mut room = USUAL;
        loop {
            let mut found = vec![RawWatcher { addr: std::ptr::null_mut(), id: 0, cookie: 0 }; room];
            let mut count = room;
            // SAFETY: an open image and room for that many.
            let code = unsafe { (self.api.rbd_watchers_list)(self.raw, found.as_mut_ptr(), &raw mut count) };
            if code == -libc::ERANGE {
                room = more(room, count)?;
                continue;
            }
            self.done("see who watches", code)?;
            let count = count.min(room);
            let watcher = |raw: &RawWatcher| {
                // SAFETY: it was filled in with a string of C, which is freed below.
                let address = unsafe { string(raw.addr) }.parse()?;
                Ok(Watcher { address, client: raw.id.cast_unsigned(), cookie: raw.cookie })
            };
            let watchers = found.iter().take(count).map(watcher).collect();
            // SAFETY: librbd made their strings.
            unsafe { (self.api.rbd_watchers_list_cleanup)(found.as_mut_ptr(), count) };
            return watchers;
        }
    }

    fn labels(&self) -> Result<BTreeMap<String, String>> {
        let (mut keys, mut values) = (vec![0_u8; 4096], vec![0_u8; 16 << 10]);
        loop {
            let (mut keys_length, mut values_length) = (keys.len(), values.len());
            let start = CString::default();
            // SAFETY: an open image, a string, no bound on how many, and two buffers of those lengths.
            let code = unsafe {
                let (keys, values) = (keys.as_mut_ptr().cast::<c_char>(), values.as_mut_ptr().cast::<c_char>());
                (self.api.rbd_metadata_list)(self.raw, start.as_ptr(), 0, keys, &raw mut keys_length, values, &raw mut values_length)
            };
            if code == -libc::ERANGE {
                keys.resize(more(keys.len(), keys_length)?, 0);
                values.resize(more(values.len(), values_length)?, 0);
                continue;
            }
            self.done("read the labels of", code)?;
            // Each string has a zero byte at its end.
            let strings = |buffer: &[u8], length: usize| -> Vec<String> {
                let used = buffer.get(..length).unwrap_or_default();
                used.split_inclusive(|byte| *byte == 0).map(|s| String::from_utf8_lossy(s).trim_end_matches('\0').to_owned()).collect()
            };
            return Ok(strings(&keys, keys_length).into_iter().zip(strings(&values, values_length)).collect());
        }
    }
}

/// How much room to make for a list that Ceph wants `wanted` for, and that did not fit.
fn more(room: usize, wanted: usize) -> Result<usize> {
    let next = wanted.max(room.saturating_mul(2));
    if next > MOST { Err(Error::internal(format!("Ceph has a list of {wanted}, which nothing can have"))) } else { Ok(next) }
}

/// # Safety
/// It is a string of C, or null.
unsafe fn string(start: *const c_char) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: the caller says so.
    unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned()
}
