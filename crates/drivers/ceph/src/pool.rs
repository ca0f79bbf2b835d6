//! A pool and the objects in it: records that are changed by comparison, and bells.
//!
//! A call that failed with `platform_unavailable` may have been carried out, or be carried out later: who has to know reads the
//! record. A swap that is made again after that and is refused may have been refused because of itself.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunnage_host::Space;
use dunnage_model::{Bytes, Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::{Cluster, Connection, unreadable};
use crate::fault::failed;
use crate::library::{Buffer, Rados, RawAttributes, RawCursor, RawListing, RawObject, RawPool, RawRead, RawWrite, text};

/// The attribute that holds a record's revision, in decimal.
const REVISION: &CStr = c"dunnage.revision";
/// `LIBRADOS_CMPXATTR_OP_EQ`.
const EQUAL: u8 = 1;
/// `LIBRADOS_CREATE_EXCLUSIVE`.
const EXCLUSIVE: c_int = 1;
/// `LIBRADOS_OPERATION_FULL_TRY`: in a full cluster it fails, instead of waiting for room.
const FULL_TRY: c_int = 64;
/// `LIBRADOS_OPERATION_FULL_FORCE`: in a full cluster it is done all the same.
const FULL_FORCE: c_int = 128;
/// What a record has room for at first; a larger one is read twice.
const USUAL: usize = 16 << 10;
/// Larger than any record of ours.
const MOST: u64 = 16 << 20;
/// How many notes a watch keeps that nobody has taken.
const MOST_NOTES: usize = 64;

/// A pool. Copies share the handle.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    cluster: Cluster,
    name: Arc<str>,
}

struct Inner {
    // Dropped after the handle of the pool, which is the struct's own work.
    connection: Arc<Connection>,
    raw: RawPool,
}

// SAFETY: librados' handles may be used by any thread, by several at once, as long as nobody changes their settings; we never do.
unsafe impl Send for Inner {}
// SAFETY: the same.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: rados_ioctx_create made it, the connection is alive still, and nobody else ends it.
        unsafe { (self.connection.api.rados_ioctx_destroy)(self.raw) }
    }
}

/// A record: what it says, and in which revision it says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The number that the next change has to name.
    pub revision: u64,
    /// What it says.
    pub data: Vec<u8>,
}

/// One watch that was asked by a [`notify`](Pool::notify).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// Whose it is: that connection's [`client_id`](Cluster::client_id).
    pub client: u64,
    /// Which of that client's watches.
    pub cookie: u64,
}

/// Who watched an object when it was notified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Those who have confirmed it.
    pub answered: Vec<Listener>,
    /// Those whose watch stands and who said nothing in time: frozen, cut off, or dead for less than their watch's timeout.
    pub silent: Vec<Listener>,
}

impl Pool {
    pub(crate) fn open(cluster: &Cluster, name: &str) -> Result<Pool> {
        // Of a pool that its map does not have, librados asks the monitors without a timeout; so we ask before.
        cluster.wait_for_latest_map()?;
        let connection = Arc::clone(cluster.connection());
        let wanted = text("pool", name)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live handle, a string, and a place for the pool's handle.
        match unsafe { (connection.api.rados_ioctx_create)(connection.raw, wanted.as_ptr(), &raw mut raw) } {
            0 => {
                // In a full cluster librados would wait for room with whatever is a write to it, a watch and a removal, too. Now they are
                // tried, and what takes room is refused.
                // SAFETY: it was made just now.
                unsafe { (connection.api.rados_set_pool_full_try)(raw) }
                Ok(Pool { inner: Arc::new(Inner { connection, raw }), cluster: cluster.clone(), name: name.into() })
            }
            code if code == -libc::ENOENT => {
                let next = format!("make it ('ceph osd pool create {name}', 'rbd pool init {name}') or name another one");
                Err(Error::not_found(format!("Ceph has no pool {name:?}"), next))
            }
            code => Err(failed(format_args!("cannot open pool {name:?}"), code)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn raw(&self) -> RawPool {
        self.inner.raw
    }

    pub(crate) fn api(&self) -> &'static Rados {
        self.inner.connection.api
    }

    pub(crate) fn of(&self, doing: &str, oid: &str) -> String {
        format!("cannot {doing} object {oid:?} of pool {:?}", self.name)
    }

    /// Makes a record unless there is one: of several who do it at once one is told `true`.
    ///
    /// # Errors
    /// `limit_reached` when the cluster is full: whatever it is of would be the next to have no room. `platform_unavailable` without an
    /// answer in time: it may have been made.
    pub fn create(&self, oid: &str, revision: u64, data: &[u8]) -> Result<bool> {
        let write = Write::new(self.api())?;
        // SAFETY: a live operation. It takes no category any more.
        unsafe { (self.api().rados_write_op_create)(write.raw, EXCLUSIVE, std::ptr::null()) }
        write.contents(revision, data);
        match write.operate_if_full(self, oid, FULL_TRY)? {
            0 => Ok(true),
            code if code == -libc::EEXIST => Ok(false),
            code => Err(failed(self.of("create", oid), code)),
        }
    }

    /// Replaces a record if it has the revision `expected`. The comparison and the change are one operation: `false` says that
    /// nothing was changed, because somebody was quicker or it is gone.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time: it may have been replaced.
    pub fn swap(&self, oid: &str, expected: u64, revision: u64, data: &[u8]) -> Result<bool> {
        let write = Write::new(self.api())?;
        write.only_if(expected);
        write.contents(revision, data);
        self.compared(&write, "change", oid)
    }

    /// Removes a record if it has the revision `expected`; `false` as with [`Pool::swap`].
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time: it may have been removed.
    pub fn remove(&self, oid: &str, expected: u64) -> Result<bool> {
        let write = Write::new(self.api())?;
        write.only_if(expected);
        // SAFETY: a live operation.
        unsafe { (self.api().rados_write_op_remove)(write.raw) }
        self.compared(&write, "remove", oid)
    }

    fn compared(&self, write: &Write, doing: &str, oid: &str) -> Result<bool> {
        match write.operate(self, oid)? {
            0 => Ok(true),
            code if [-libc::ECANCELED, -libc::ENOENT, -libc::ENODATA].contains(&code) => Ok(false),
            code => Err(failed(self.of(doing, oid), code)),
        }
    }

    /// Reads a record. Its revision and its data are of one moment.
    ///
    /// # Errors
    /// `exists_incompatible` when there is an object that is no record of ours.
    pub fn read(&self, oid: &str) -> Result<Option<Versioned>> {
        let mut room = USUAL;
        loop {
            let Some(Found { size, revision, data }) = self.read_at_most(oid, room)? else { return Ok(None) };
            if size > MOST {
                let detail = format!("object {oid:?} of pool {:?} has {size} bytes: it is no record of ours", self.name);
                return Err(Error::new(Kind::ExistsIncompatible, detail, "look who has made it, and move it out of the way"));
            }
            if size > room as u64 {
                // It may have grown again when it is read again.
                room = usize::try_from(size).unwrap_or(usize::MAX);
                continue;
            }
            let Some(revision) = revision else {
                let detail = format!("object {oid:?} of pool {:?} has no revision: it is no record of ours", self.name);
                return Err(Error::new(Kind::ExistsIncompatible, detail, "look who has made it, and move it out of the way"));
            };
            return Ok(Some(Versioned { revision, data }));
        }
    }

    /// Reads a small object that is no record of ours.
    pub(crate) fn read_plain(&self, oid: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.read_at_most(oid, USUAL)?.map(|found| found.data))
    }

    fn read_at_most(&self, oid: &str, room: usize) -> Result<Option<Found>> {
        let api = self.api();
        let name = text("oid", oid)?;
        let mut data = vec![0_u8; room];
        let (mut size, mut length) = (0_u64, 0_usize);
        let mut results: [c_int; 3] = [0; 3];
        let [of_stat, of_attributes, of_read] = &mut results;
        let mut attributes = Attributes { api, raw: std::ptr::null_mut() };
        let read = Read::new(api)?;
        // SAFETY: a live operation and a live pool. All places are locals that outlive rados_read_op_operate, after which nothing
        // is written there any more; the iterator is freed by its guard.
        let code = unsafe {
            (api.rados_read_op_stat)(read.raw, &raw mut size, std::ptr::null_mut(), of_stat);
            (api.rados_read_op_getxattrs)(read.raw, &raw mut attributes.raw, of_attributes);
            (api.rados_read_op_read)(read.raw, 0, room, data.as_mut_ptr().cast::<c_char>(), &raw mut length, of_read);
            (api.rados_read_op_operate)(read.raw, self.inner.raw, name.as_ptr(), 0)
        };
        let code = [code].into_iter().chain(results).find(|code| *code < 0).unwrap_or(0);
        if code == -libc::ENOENT {
            return Ok(None);
        }
        if code < 0 {
            return Err(failed(self.of("read", oid), code));
        }
        data.truncate(length);
        Ok(Some(Found { size, revision: attributes.revision(), data }))
    }

    /// The names of all objects that begin so. This asks every placement group for all that it has, the data of every image
    /// included, 4 MiB an object: it is for small pools and for people, and no way to find one's records.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let api = self.api();
        let failed = |code| failed(format_args!("cannot list pool {:?}", self.name), code);
        let mut listing = Listing { api, raw: std::ptr::null_mut() };
        // SAFETY: a live pool and a place for the listing, which the guard closes.
        let code = unsafe { (api.rados_nobjects_list_open)(self.inner.raw, &raw mut listing.raw) };
        if code < 0 {
            return Err(failed(code));
        }
        let mut names = Vec::new();
        loop {
            let (mut entry, mut key, mut space) = (std::ptr::null(), std::ptr::null(), std::ptr::null());
            // SAFETY: a live listing, and places for three strings that it keeps.
            let code = unsafe { (api.rados_nobjects_list_next)(listing.raw, &raw mut entry, &raw mut key, &raw mut space) };
            if code == -libc::ENOENT {
                return Ok(names);
            }
            if code < 0 {
                return Err(failed(code));
            }
            // SAFETY: it gave a string of C that is good until the next call.
            let name = unsafe { CStr::from_ptr(entry) }.to_string_lossy();
            if name.starts_with(prefix) {
                names.push(name.into_owned());
            }
        }
    }

    /// Comes back when every placement group of the pool has seen a map that is at least as new as the newest one now. After a
    /// [`Cluster::blocklist`], no write of who is on it is accepted in this pool any more. An operation makes a group take in the
    /// map that it carries before it is served; so each group is asked for one name.
    ///
    /// # Errors
    /// `platform_unavailable` while a placement group has no daemon that serves it: nothing is known then.
    pub fn barrier(&self) -> Result<()> {
        #[derive(Deserialize)]
        struct Groups {
            pg_num: usize,
        }
        self.cluster.wait_for_latest_map()?;
        let Groups { pg_num } = self.setting("pg_num")?;
        // Groups are ranges of the hashes' space, and as many ranges as the next power of two are at least as fine. One that is
        // split later hands its map on to its children.
        let slices = pg_num.next_power_of_two();
        let begin = self.cursor();
        // SAFETY: a live pool.
        let end = Cursor { pool: self, raw: unsafe { (self.api().rados_object_list_end)(self.raw()) } };
        (0..slices).try_for_each(|slice| self.ask_slice(&begin, &end, slice, slices))
    }

    /// One of the pool's settings, as the monitors tell it.
    fn setting<T: DeserializeOwned>(&self, variable: &str) -> Result<T> {
        let ask = json!({ "prefix": "osd pool get", "pool": &*self.name, "var": variable, "format": "json" });
        serde_json::from_slice(&self.cluster.monitor(&ask)?).map_err(|e| unreadable("osd pool get", &e))
    }

    /// How many copies it keeps of everything.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn copies(&self) -> Result<u32> {
        #[derive(Deserialize)]
        struct Copies {
            size: u32,
        }
        Ok(self.setting::<Copies>("size")?.size)
    }

    /// How many of them must be there before a write is acknowledged (its `min_size`).
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn least_copies(&self) -> Result<u32> {
        #[derive(Deserialize)]
        struct Least {
            min_size: u32,
        }
        Ok(self.setting::<Least>("min_size")?.min_size)
    }

    /// How full it is, as the cluster's manager has counted it; without one all is 0.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn space(&self) -> Result<Space> {
        #[derive(Deserialize)]
        struct Df {
            pools: Vec<OfPool>,
        }
        #[derive(Deserialize)]
        struct OfPool {
            name: String,
            stats: Stats,
        }
        #[derive(Deserialize)]
        struct Stats {
            #[serde(default)]
            stored: u64,
            #[serde(default)]
            max_avail: u64,
        }
        let said = self.cluster.monitor(&json!({ "prefix": "df", "format": "json" }))?;
        let Df { pools } = serde_json::from_slice(&said).map_err(|e| unreadable("df", &e))?;
        let stats = pools.into_iter().find(|pool| pool.name == *self.name).map(|pool| pool.stats);
        let Stats { stored, max_avail } = stats.unwrap_or(Stats { stored: 0, max_avail: 0 });
        Ok(Space { total: Bytes(stored.saturating_add(max_avail)), used: Bytes(stored), available: Bytes(max_avail) })
    }

    /// A cursor of its own, for librados to move.
    fn cursor(&self) -> Cursor<'_> {
        // SAFETY: a live pool.
        Cursor { pool: self, raw: unsafe { (self.api().rados_object_list_begin)(self.raw()) } }
    }

    /// Asks who has this part of the hashes' space for a name of an object in it.
    fn ask_slice(&self, begin: &Cursor<'_>, end: &Cursor<'_>, slice: usize, of: usize) -> Result<()> {
        let api = self.api();
        let (mut from, mut to, mut next) = (self.cursor(), self.cursor(), self.cursor());
        let mut found = Objects { api, item: None };
        // SAFETY: a live pool and live cursors, the last two of which are overwritten in place.
        unsafe { (api.rados_object_list_slice)(self.raw(), begin.raw, end.raw, slice, of, &raw mut from.raw, &raw mut to.raw) }
        let item = found.item.insert(RawObject {
            oid_length: 0,
            oid: std::ptr::null_mut(),
            nspace_length: 0,
            nspace: std::ptr::null_mut(),
            locator_length: 0,
            locator: std::ptr::null_mut(),
        });
        // SAFETY: a live pool, live cursors, the last of which is overwritten in place, no filter, and room for the one item that
        // is asked for, whose strings the guard frees.
        let code = unsafe { (api.rados_object_list)(self.raw(), from.raw, to.raw, 1, std::ptr::null(), 0, item, &raw mut next.raw) };
        if code < 0 {
            return Err(failed(format_args!("not every placement group of pool {:?} has taken in the newest map", self.name), code));
        }
        Ok(())
    }

    /// Watches an object that is there: it hears every [`Pool::notify`] until it is dropped. The cluster forgets a watch whose client
    /// it has not heard of for `timeout`.
    ///
    /// # Errors
    /// `not_found` without such an object.
    pub fn watch(&self, oid: &str, timeout: Duration) -> Result<Watch> {
        let name = text("oid", oid)?;
        let bell = Arc::new(Bell {
            pool: Arc::clone(&self.inner),
            oid: name,
            rings: AtomicU64::new(0),
            lost: AtomicI32::new(0),
            notes: Mutex::default(),
        });
        let timeout = u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX);
        let argument = Arc::into_raw(Arc::clone(&bell));
        let mut cookie = 0;
        // SAFETY: a live pool, a string, a place for the handle. The argument is a share of the bell, which is given back below or
        // when the watch is dropped, after the last callback.
        let code = unsafe {
            let argument = argument.cast_mut().cast::<c_void>();
            (self.api().rados_watch3)(self.inner.raw, bell.oid.as_ptr(), &raw mut cookie, on_notify, on_lost, timeout, argument)
        };
        let watch = Watch { bell, argument, cookie: (code == 0).then_some(cookie) };
        if code == 0 { Ok(watch) } else { Err(failed(self.of("watch", oid), code)) }
    }

    /// Rings all who watch an object, and waits at most so long (in milliseconds) until each has confirmed it. Who hears nothing
    /// and still has a watch is `silent`.
    ///
    /// librados has no call in C that lists the watchers of an object which is no image's; this is the way to learn whether
    /// there are any, and which clients they are.
    ///
    /// # Errors
    /// `not_found` without such an object.
    pub fn notify(&self, oid: &str, payload: &[u8], timeout: Duration) -> Result<Heard> {
        let name = text("oid", oid)?;
        let size = c_int::try_from(payload.len()).map_err(|_| Error::invalid("payload", "it is too long", "say less"))?;
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        let (mut reply, mut length) = (Buffer::empty(self.api()), 0);
        // SAFETY: a live pool, a string, a payload of that size, and a place for a buffer, which frees what is put there.
        let code = unsafe {
            let payload = payload.as_ptr().cast::<c_char>();
            (self.api().rados_notify2)(self.inner.raw, name.as_ptr(), payload, size, timeout, reply.out(), &raw mut length)
        };
        // SAFETY: the library said how much there is.
        let reply = unsafe { reply.bytes(length) };
        // With somebody who was silent the call has timed out, and has an answer all the same.
        if code == 0 || (code == -libc::ETIMEDOUT && !reply.is_empty()) {
            return heard(reply).ok_or_else(|| Error::internal("cannot read who has heard a notify"));
        }
        Err(failed(self.of("notify who watches", oid), code))
    }
}

struct Found {
    size: u64,
    revision: Option<u64>,
    data: Vec<u8>,
}

/// Takes apart what a notify answers: those who confirmed it, each with a payload, then the others.
fn heard(mut reply: &[u8]) -> Option<Heard> {
    fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
        let (first, rest) = from.split_first_chunk::<N>()?;
        *from = rest;
        Some(*first)
    }
    fn listener(from: &mut &[u8]) -> Option<Listener> {
        Some(Listener { client: u64::from_le_bytes(take(from)?), cookie: u64::from_le_bytes(take(from)?) })
    }
    let mut heard = Heard::default();
    for _ in 0..u32::from_le_bytes(take(&mut reply)?) {
        heard.answered.push(listener(&mut reply)?);
        let payload = u32::from_le_bytes(take(&mut reply)?);
        reply = reply.get(usize::try_from(payload).ok()?..)?;
    }
    for _ in 0..u32::from_le_bytes(take(&mut reply)?) {
        heard.silent.push(listener(&mut reply)?);
    }
    Some(heard)
}

/// A watch; see [`Pool::watch`].
pub struct Watch {
    bell: Arc<Bell>,
    /// The share that librados has.
    argument: *const Bell,
    cookie: Option<u64>,
}

// SAFETY: the pointer is only given back, once, and the bell may be shared by threads.
unsafe impl Send for Watch {}
// SAFETY: the same.
unsafe impl Sync for Watch {}

struct Bell {
    pool: Arc<Inner>,
    oid: CString,
    rings: AtomicU64,
    lost: AtomicI32,
    notes: Mutex<VecDeque<Vec<u8>>>,
}

impl Watch {
    /// How often it was rung.
    pub fn rings(&self) -> u64 {
        self.bell.rings.load(Ordering::SeqCst)
    }

    /// What was said with it since the last call of this; of very many the newest.
    pub fn take_notes(&self) -> Vec<Vec<u8>> {
        self.bell.notes.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// How long ago the cluster last confirmed it.
    ///
    /// # Errors
    /// `platform_unavailable`: it was lost, and has to be made anew. Who was fenced is told no more than that here; the next call
    /// says it.
    pub fn confirmed(&self) -> Result<Duration> {
        let failed = |code| failed("the watch was lost", code);
        match self.bell.lost.load(Ordering::SeqCst) {
            0 => {}
            code => return Err(failed(code)),
        }
        let pool = &self.bell.pool;
        // SAFETY: a live pool, and the handle that it gave.
        let code = unsafe { (pool.connection.api.rados_watch_check)(pool.raw, self.cookie.unwrap_or_default()) };
        u64::try_from(code).map(Duration::from_millis).map_err(|_| failed(code))
    }

    /// Whether it stands, as far as we know.
    pub fn is_alive(&self) -> bool {
        self.confirmed().is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let pool = &self.bell.pool;
        if let Some(cookie) = self.cookie {
            // SAFETY: a live pool, and the handle that it gave. The flush waits for callbacks that run: none comes after it.
            unsafe {
                (pool.connection.api.rados_unwatch2)(pool.raw, cookie);
                (pool.connection.api.rados_watch_flush)(pool.connection.raw);
            }
        }
        // SAFETY: it came from Arc::into_raw, and no callback uses it any more: there was no watch, or it is ended.
        drop(unsafe { Arc::from_raw(self.argument) });
    }
}

/// A panic in here would end the process: an `extern "C"` function never unwinds.
extern "C" fn on_notify(argument: *mut c_void, id: u64, cookie: u64, _: u64, payload: *mut c_void, length: usize) {
    // SAFETY: the argument of rados_watch3, which lives until the watch has been flushed.
    let bell = unsafe { &*argument.cast::<Bell>() };
    let mut note = Vec::new();
    if !payload.is_null() && length > 0 {
        // SAFETY: librados gives a payload of that length for the time of the call.
        note.extend_from_slice(unsafe { std::slice::from_raw_parts(payload.cast::<u8>(), length) });
    }
    {
        let mut notes = bell.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() >= MOST_NOTES {
            notes.pop_front();
        }
        notes.push_back(note);
    }
    bell.rings.fetch_add(1, Ordering::SeqCst);
    // SAFETY: a live pool and a string; there is no payload. Who is not told waits until its timeout.
    unsafe { (bell.pool.connection.api.rados_notify_ack)(bell.pool.raw, bell.oid.as_ptr(), id, cookie, std::ptr::null(), 0) };
}

extern "C" fn on_lost(argument: *mut c_void, _: u64, code: c_int) {
    // SAFETY: as in on_notify.
    let bell = unsafe { &*argument.cast::<Bell>() };
    bell.lost.store(if code < 0 { code } else { -libc::ENOTCONN }, Ordering::SeqCst);
}

/// A write operation: all of it is done at once, or nothing.
pub(crate) struct Write {
    api: &'static Rados,
    pub raw: RawWrite,
}

impl Write {
    pub fn new(api: &'static Rados) -> Result<Write> {
        // SAFETY: it has no argument.
        let raw = unsafe { (api.rados_create_write_op)() };
        if raw.is_null() { Err(Error::internal("librados makes no operation")) } else { Ok(Write { api, raw }) }
    }

    fn only_if(&self, revision: u64) {
        let value = revision.to_string();
        // SAFETY: a live operation, a string, and bytes, which are copied.
        unsafe { (self.api.rados_write_op_cmpxattr)(self.raw, REVISION.as_ptr(), EQUAL, value.as_ptr().cast(), value.len()) }
    }

    fn contents(&self, revision: u64, data: &[u8]) {
        let value = revision.to_string();
        // SAFETY: a live operation, a string, and bytes, which are copied.
        unsafe {
            (self.api.rados_write_op_setxattr)(self.raw, REVISION.as_ptr(), value.as_ptr().cast(), value.len());
            (self.api.rados_write_op_write_full)(self.raw, data.as_ptr().cast(), data.len());
        }
    }

    /// In a cluster that is full, too: there above all something is to be given up and removed, and a record takes next to nothing.
    pub fn operate(&self, pool: &Pool, oid: &str) -> Result<c_int> {
        self.operate_if_full(pool, oid, FULL_FORCE)
    }

    pub fn operate_if_full(&self, pool: &Pool, oid: &str, if_full: c_int) -> Result<c_int> {
        let name = text("oid", oid)?;
        // SAFETY: a live operation that is used once, a live pool, a string, the time of now.
        Ok(unsafe { (self.api.rados_write_op_operate)(self.raw, pool.inner.raw, name.as_ptr(), std::ptr::null_mut(), if_full) })
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        // SAFETY: rados_create_write_op made it, and nothing else frees it.
        unsafe { (self.api.rados_release_write_op)(self.raw) }
    }
}

/// A read operation: all that it brings is of one moment.
pub(crate) struct Read {
    api: &'static Rados,
    pub raw: RawRead,
}

impl Read {
    pub fn new(api: &'static Rados) -> Result<Read> {
        // SAFETY: it has no argument.
        let raw = unsafe { (api.rados_create_read_op)() };
        if raw.is_null() { Err(Error::internal("librados makes no operation")) } else { Ok(Read { api, raw }) }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        // SAFETY: rados_create_read_op made it, and nothing else frees it.
        unsafe { (self.api.rados_release_read_op)(self.raw) }
    }
}

struct Attributes {
    api: &'static Rados,
    raw: RawAttributes,
}

impl Attributes {
    fn revision(&mut self) -> Option<u64> {
        while !self.raw.is_null() {
            let (mut name, mut value, mut length) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: a live iterator, and places for two strings that it keeps.
            let code = unsafe { (self.api.rados_getxattrs_next)(self.raw, &raw mut name, &raw mut value, &raw mut length) };
            if code < 0 || name.is_null() {
                return None;
            }
            // SAFETY: it gave a string of C.
            if unsafe { CStr::from_ptr(name) } == REVISION && !value.is_null() {
                // SAFETY: it said how long the value is.
                let value = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length) };
                return std::str::from_utf8(value).ok()?.parse().ok();
            }
        }
        None
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the read operation made it, and nothing else frees it.
            unsafe { (self.api.rados_getxattrs_end)(self.raw) }
        }
    }
}

struct Listing {
    api: &'static Rados,
    raw: RawListing,
}

impl Drop for Listing {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: rados_nobjects_list_open made it, and nothing else closes it.
            unsafe { (self.api.rados_nobjects_list_close)(self.raw) }
        }
    }
}

struct Cursor<'p> {
    pool: &'p Pool,
    raw: RawCursor,
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: librados made it, and nothing else frees it.
            unsafe { (self.pool.api().rados_object_list_cursor_free)(self.pool.raw(), self.raw) }
        }
    }
}

struct Objects {
    api: &'static Rados,
    item: Option<RawObject>,
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Some(item) = &mut self.item {
            // SAFETY: its strings are librados', or null.
            unsafe { (self.api.rados_object_list_free)(1, item) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(answered: &[(u64, u64, &[u8])], silent: &[(u64, u64)]) -> Vec<u8> {
        let mut reply = u32::try_from(answered.len()).expect("few").to_le_bytes().to_vec();
        for (client, cookie, payload) in answered {
            reply.extend(client.to_le_bytes().into_iter().chain(cookie.to_le_bytes()));
            reply.extend(u32::try_from(payload.len()).expect("short").to_le_bytes());
            reply.extend_from_slice(payload);
        }
        reply.extend(u32::try_from(silent.len()).expect("few").to_le_bytes());
        for (client, cookie) in silent {
            reply.extend(client.to_le_bytes().into_iter().chain(cookie.to_le_bytes()));
        }
        reply
    }

    #[test]
    fn who_answered_a_notify_is_told_from_who_was_silent() {
        let heard = heard(&reply(&[(4102, 7, b"yes"), (4103, 8, b"")], &[(4104, 9)])).expect("whole");
        assert_eq!(heard.answered, [Listener { client: 4102, cookie: 7 }, Listener { client: 4103, cookie: 8 }]);
        assert_eq!(heard.silent, [Listener { client: 4104, cookie: 9 }]);
    }

    proptest! {
        #[test]
        fn no_answer_to_a_notify_crashes_the_reader(bytes: Vec<u8>) {
            let _ = heard(&bytes);
        }

        #[test]
        fn half_an_answer_to_a_notify_is_none(cut in 0_usize..63) {
            let whole = reply(&[(1, 2, b"abc")], &[(3, 4), (5, 6)]);
            prop_assert_eq!(heard(whole.get(..cut).expect("shorter")), None);
        }
    }
}
