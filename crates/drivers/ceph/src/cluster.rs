//! A connection to a cluster: who we are, its monitors, its pools, its blocklist.

use std::ffi::{c_char, c_int};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dunnage_model::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::address::ClientAddress;
use crate::fault::failed;
use crate::library::{self, Buffer, Rados, RawCluster, text};
use crate::pool::Pool;

/// How a cluster is reached, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// The cluster's `ceph.conf`.
    pub conf: PathBuf,
    /// The user, without `client.` before it.
    pub user: String,
    /// The file with the user's key, where it is not where `ceph.conf` says.
    pub keyring: Option<PathBuf>,
    /// How long one call may take, in whole seconds and at least one. A monitor or a storage daemon that does not answer in that
    /// time is an error; what the call should have done may have been done all the same, or be done later.
    pub timeout: Duration,
}

/// A connection, as one client of the cluster. Its threads and its address are its own; it ends with its last user.
#[derive(Clone)]
pub struct Cluster {
    connection: Arc<Connection>,
}

/// A pool, as the cluster lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolName {
    /// Its name.
    pub name: String,
    /// Its number, which no other pool of the cluster ever had.
    pub id: i64,
}

/// A handle of librados that is configured, and connected once [`Cluster::connect`] has come back.
pub struct Connection {
    pub api: &'static Rados,
    pub raw: RawCluster,
    timeout: Duration,
}

// SAFETY: librados' handles may be used by any thread, by several at once; its header says so.
unsafe impl Send for Connection {}
// SAFETY: the same.
unsafe impl Sync for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: rados_create2 made it, and nothing else ends it. Pools and watches hold the connection.
        unsafe { (self.api.rados_shutdown)(self.raw) }
    }
}

impl Connection {
    fn set(&self, option: &str, value: &str) -> Result<()> {
        let (name, given) = (text("option", option)?, text(option, value)?);
        // SAFETY: a live handle and two strings, which are copied.
        match unsafe { (self.api.rados_conf_set)(self.raw, name.as_ptr(), given.as_ptr()) } {
            0 => Ok(()),
            code => Err(failed(format_args!("Ceph does not take {option}={value}"), code)),
        }
    }
}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// `not_found` without a configuration, `permission` with a wrong key or none, `platform_unavailable` when no monitor
    /// answers in time or the library is not installed.
    pub fn connect(access: &Access) -> Result<Cluster> {
        let api = library::rados()?;
        let (cluster, user) = (text("cluster", "ceph")?, text("user", format!("client.{}", access.user))?);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for the handle, and two strings, which are copied.
        let code = unsafe { (api.rados_create2)(&raw mut raw, cluster.as_ptr(), user.as_ptr(), 0) };
        if code < 0 {
            return Err(failed("cannot make a client of Ceph", code));
        }
        let connection = Connection { api, raw, timeout: Duration::from_secs(whole_seconds(access.timeout)) };
        let path = access.conf.display();
        let conf = text("conf", access.conf.as_os_str().as_encoded_bytes())?;
        // SAFETY: a live handle and a string.
        match unsafe { (api.rados_conf_read_file)(raw, conf.as_ptr()) } {
            0 => {}
            code if code == -libc::ENOENT => {
                return Err(Error::not_found(format!("there is no {path}"), "copy the cluster's ceph.conf to this node"));
            }
            code => return Err(failed(format_args!("cannot read {path}"), code)),
        }
        if let Some(keyring) = &access.keyring {
            connection.set("keyring", &keyring.display().to_string())?;
        }
        let timeout = whole_seconds(access.timeout).to_string();
        for option in ["client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"] {
            connection.set(option, &timeout)?;
        }
        // What it has to say is in the errors that we get.
        for option in ["log_to_stderr", "err_to_stderr"] {
            connection.set(option, "false")?;
        }
        // SAFETY: a live handle that was not connected yet.
        match unsafe { (api.rados_connect)(raw) } {
            0 => Ok(Cluster { connection: Arc::new(connection) }),
            code => Err(not_connected(access, code)),
        }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The cluster's own id.
    ///
    /// # Errors
    /// None is known while it is connected.
    pub fn fsid(&self) -> Result<String> {
        let mut id = vec![0_u8; 64];
        // SAFETY: a live handle and a buffer of that length.
        let code = unsafe { (self.connection.api.rados_cluster_fsid)(self.connection.raw, id.as_mut_ptr().cast::<c_char>(), id.len()) };
        let length = usize::try_from(code).map_err(|_| failed("cannot ask for the cluster's id", code))?;
        id.truncate(length);
        Ok(String::from_utf8_lossy(&id).into_owned())
    }

    /// Our own addresses: what others put on the blocklist to stop this connection.
    ///
    /// # Errors
    /// When the library says them in a way that we cannot read.
    pub fn instance(&self) -> Result<Vec<ClientAddress>> {
        let mut said = Buffer::empty(self.connection.api);
        // SAFETY: a live handle and a place for a string, which the buffer frees.
        let code = unsafe { (self.connection.api.rados_getaddrs)(self.connection.raw, said.out()) };
        if code < 0 {
            return Err(failed("cannot ask for our own address", code));
        }
        // SAFETY: rados_getaddrs gave a string of C.
        ClientAddress::parse_all(&unsafe { said.string() })
    }

    /// The number that the cluster knows this connection by; see [`Listener`](crate::Listener).
    pub fn client_id(&self) -> u64 {
        // SAFETY: a live handle.
        unsafe { (self.connection.api.rados_get_instance_id)(self.connection.raw) }
    }

    /// All pools.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn pools(&self) -> Result<Vec<PoolName>> {
        let mut names = vec![0_u8; 4096];
        loop {
            let start = names.as_mut_ptr().cast::<c_char>();
            // SAFETY: a live handle and a buffer of that length.
            let code = unsafe { (self.connection.api.rados_pool_list)(self.connection.raw, start, names.len()) };
            let needed = usize::try_from(code).map_err(|_| failed("cannot list the pools", code))?;
            if needed <= names.len() {
                break;
            }
            names.resize(needed, 0);
        }
        let mut pools = Vec::new();
        for name in names.split(|byte| *byte == 0).take_while(|name| !name.is_empty()) {
            let known = text("pool", name)?;
            // SAFETY: a live handle and a string.
            let id = unsafe { (self.connection.api.rados_pool_lookup)(self.connection.raw, known.as_ptr()) };
            // One that went in between is not there.
            if id >= 0 {
                pools.push(PoolName { name: String::from_utf8_lossy(name).into_owned(), id });
            }
        }
        Ok(pools)
    }

    /// Makes a pool for images that keeps so many copies, or finishes what another began to make; what is finished is left as it is.
    ///
    /// Nothing is acknowledged before two copies have it, nor before most have: what a writer was told to be there outlives any one disk.
    ///
    /// # Errors
    /// `permission` when the key may not.
    pub fn make_pool(&self, name: &str, copies: u32) -> Result<()> {
        let about = self.monitor(&json!({ "prefix": "osd pool application get", "pool": name, "format": "json" }));
        match about {
            // It is marked last.
            Ok(said) if serde_json::from_slice::<Value>(&said).is_ok_and(|apps| apps.get("rbd").is_some()) => return Ok(()),
            Err(e) if e.kind != Kind::NotFound => return Err(e),
            _ => {}
        }
        let set = |variable: &str, value: u32| {
            self.monitor(&json!({ "prefix": "osd pool set", "pool": name, "var": variable, "val": value.to_string() })).map(|_| ())
        };
        self.monitor(&json!({ "prefix": "osd pool create", "pool": name, "pool_type": "replicated" }))?;
        set("size", copies)?;
        set("min_size", least_copies(copies))?;
        self.monitor(&json!({ "prefix": "osd pool application enable", "pool": name, "app": "rbd" })).map(|_| ())
    }

    /// A pool to work in.
    ///
    /// # Errors
    /// `not_found` when there is none of that name.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        Pool::open(self, name)
    }

    /// Has the cluster refuse every operation of these clients from now on, for so long. The storage daemons learn of it one by
    /// one: nobody may rely on it before [`Pool::barrier`] has come back, for every pool that they write to.
    ///
    /// To fence a client again is no error, and counts from now. After a `platform_unavailable` some of them may be fenced.
    ///
    /// # Errors
    /// `permission` when the key may not, `platform_unavailable` without an answer in time.
    pub fn blocklist(&self, clients: &[ClientAddress], duration: Duration) -> Result<()> {
        for client in clients {
            // The monitors want a number with a point.
            #[expect(clippy::cast_precision_loss, reason = "nobody counts the seconds of a million years")]
            let expire = whole_seconds(duration) as f64;
            let command =
                json!({ "prefix": "osd blocklist", "blocklistop": "add", "addr": client.to_string(), "expire": expire, "format": "json" });
            self.monitor(&command).map_err(|e| Error { detail: format!("{client} was not fenced: {}", e.detail), ..e })?;
        }
        Ok(())
    }

    /// The clients that are fenced now. Entries for whole machines and networks, which are an operator's, are not among them.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn blocklisted(&self) -> Result<Vec<ClientAddress>> {
        #[derive(Deserialize)]
        struct Entry {
            addr: String,
        }
        let said = self.monitor(&json!({ "prefix": "osd blocklist ls", "format": "json" }))?;
        let mut clients = Vec::new();
        // Two lists, one after the other: of addresses, and of networks.
        for list in serde_json::Deserializer::from_slice(&said).into_iter::<Vec<Entry>>() {
            let list = list.map_err(|e| unreadable("osd blocklist ls", &e))?;
            clients.extend(list.iter().filter_map(|entry| entry.addr.parse::<ClientAddress>().ok()));
        }
        Ok(clients)
    }

    /// Waits until we know the newest map of the cluster: every operation after that carries it, or a newer one.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn wait_for_latest_map(&self) -> Result<()> {
        const WHAT: &str = "cannot get the cluster's newest map";
        let (answer, answered) = mpsc::channel();
        let connection = Arc::clone(&self.connection);
        let wait = move || {
            // SAFETY: a live handle, which this thread keeps alive.
            let code = unsafe { (connection.api.rados_wait_for_latest_osdmap)(connection.raw) };
            // Without a receiver it came too late.
            let _ = answer.send(code);
        };
        // The call knows no timeout. A thread that waits for monitors which have gone is left behind, and with it the connection.
        let thread = std::thread::Builder::new().name("ceph-map".to_owned());
        thread.spawn(wait).map_err(|e| Error::os("cannot start a thread", &e))?;
        match answered.recv_timeout(self.connection.timeout) {
            Ok(code) if code < 0 => Err(failed(WHAT, code)),
            Ok(_) => Ok(()),
            Err(_) => Err(failed(WHAT, -libc::ETIMEDOUT)),
        }
    }

    /// Gives the monitors a command, as JSON with its `prefix`, and gives back what they print.
    ///
    /// # Errors
    /// `permission` when the key may not, `platform_unavailable` without an answer in time; it may have been carried out then.
    pub fn monitor(&self, command: &Value) -> Result<Vec<u8>> {
        let api = self.connection.api;
        let line = text("command", command.to_string())?;
        let mut lines = [line.as_ptr()];
        let (mut out, mut out_length) = (Buffer::empty(api), 0);
        let (mut status, mut status_length) = (Buffer::empty(api), 0);
        // SAFETY: a live handle, one string, no input, and places for two buffers, which free what is put there.
        let code = unsafe {
            (api.rados_mon_command)(
                self.connection.raw,
                lines.as_mut_ptr(),
                lines.len(),
                std::ptr::null(),
                0,
                out.out(),
                &raw mut out_length,
                status.out(),
                &raw mut status_length,
            )
        };
        // SAFETY: the library said how much there is in each.
        let (out, status) = unsafe { (out.bytes(out_length), status.bytes(status_length)) };
        if code < 0 {
            let prefix = command.get("prefix").and_then(Value::as_str).unwrap_or_default();
            let said = String::from_utf8_lossy(status);
            let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
            let what = format!("the monitors do not do '{prefix}'{said}");
            // They do not understand us: no name that anybody gave is to blame.
            return Err(if code == -libc::EINVAL { Error::internal(what) } else { failed(what, code) });
        }
        Ok(out.to_vec())
    }
}

pub fn unreadable(command: &str, error: &serde_json::Error) -> Error {
    Error::internal(format!("cannot read the monitors' answer to '{command}': {error}"))
}

/// How many copies there must be of what is acknowledged.
fn least_copies(of: u32) -> u32 {
    (of / 2 + 1).max(2).min(of)
}

/// For Ceph, 0 means for ever.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

fn not_connected(access: &Access, code: c_int) -> Error {
    let Access { conf, user, keyring, timeout } = access;
    let what = format!("cannot connect as client.{user} by {}", conf.display());
    match -code {
        // Without a key there is no way to authenticate that both sides know.
        libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP => {
            let place = keyring.as_ref().map_or_else(|| "where ceph.conf has it".to_owned(), |path| path.display().to_string());
            let next = format!("put the key of client.{user} there, with mon 'profile rbd' and osd 'profile rbd'");
            Error::new(Kind::Permission, format!("{what}: there is no key of client.{user} in the keyring ({place})"), next)
        }
        libc::ETIMEDOUT => failed(format_args!("{what} within {} s", whole_seconds(*timeout)), code),
        _ => failed(what, code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_acknowledged_is_on_two_disks_and_on_most() {
        assert_eq!([1, 2, 3, 4, 5].map(least_copies), [1, 2, 2, 3, 3]);
    }

    #[test]
    fn no_timeout_is_so_short_that_ceph_takes_it_for_none() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2001)), 3);
        assert_eq!(whole_seconds(Duration::from_secs(60)), 60);
    }
}
