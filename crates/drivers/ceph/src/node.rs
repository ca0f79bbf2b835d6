//! A node's signs of life: an object of its own, in which it writes its boot and a counter, and which it watches as long as it lives.

use std::cell::RefCell;
use std::time::Duration;

use dunnage_driver::{Sign, is_barred};
use dunnage_host::helpers::Task;
use dunnage_model::{BootId, Error, Kind, NodeId, Owner, Result};
use serde::{Deserialize, Serialize};

use crate::tasks::Place;
use crate::{Listener, Pool, Watch};

/// The object with the names of all nodes.
pub const ALL: &str = "dunnage.nodes";
/// The object with the names of those that may take nothing.
pub const BARRED: &str = "dunnage.barred";

/// When the cluster forgets a watch whose client it has not heard of.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);
/// How long a watcher is waited for that is there and does not answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What stands in the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    boot: BootId,
    counter: u64,
    /// The connection that watches.
    client: u64,
}

thread_local! {
    /// This helper's watches: they live as long as it does.
    static WATCHES: RefCell<Vec<(String, Watch)>> = const { RefCell::new(Vec::new()) };
}

fn oid(node: &NodeId) -> String {
    format!("dunnage.node.{node}")
}

fn read(pool: &Pool, oid: &str) -> Result<Option<(u64, Lease)>> {
    let Some(found) = pool.read(oid)? else { return Ok(None) };
    let damaged = |e| Error::unavailable(format!("object {oid} of pool {} is damaged: {e}", pool.name()), "remove it, if its node is gone");
    Ok(Some((found.revision, serde_json::from_slice(&found.data).map_err(damaged)?)))
}

/// How the connection that a lease names takes a notice.
#[derive(PartialEq, Eq)]
enum Heard {
    Answered,
    /// Its watch is there and does not answer: it is frozen, or died not long ago.
    Silent,
    Gone,
}

fn heard_by(pool: &Pool, oid: &str, lease: &Lease) -> Result<Heard> {
    let all = pool.notify(oid, b"?", ANSWER)?;
    let is_it = |listener: &Listener| listener.client == lease.client;
    Ok(match (all.answered.iter().any(is_it), all.silent.iter().any(is_it)) {
        (true, _) => Heard::Answered,
        (false, true) => Heard::Silent,
        (false, false) => Heard::Gone,
    })
}

/// Gives a sign of life. Refused while another run of the node, which lives, has the lease.
#[derive(Debug, Serialize, Deserialize)]
pub struct GiveSign {
    /// Where.
    pub place: Place,
    /// Who.
    pub me: Owner,
    /// Another number each time.
    pub counter: u64,
}

impl Task for GiveSign {
    const NAME: &'static str = "ceph.give-sign";
    type Output = ();

    fn run(self) -> Result<()> {
        let GiveSign { place, me, counter } = self;
        let oid = oid(&me.node);
        place.with(|pool| {
            let lease = Lease { boot: me.boot.clone(), counter, client: pool.cluster().client_id() };
            let data = serde_json::to_vec(&lease).map_err(|e| Error::internal(format!("a lease cannot be written: {e}")))?;
            let taken = |detail: String| {
                let kind = Kind::InUse { holders: vec![format!("node {}", me.node)], node: me.node.to_string() };
                Error::new(kind, detail, "give each machine a name of its own (--node), or end the other one")
            };
            if pool.names(BARRED)?.iter().any(|name| name == me.node.as_str()) {
                return Err(is_barred(&me.node));
            }
            // Our own last sign may have come late, after we were told that it was lost.
            for _ in 0..3 {
                let written = match read(pool, &oid)? {
                    None => pool.add_name(ALL, me.node.as_str()).and_then(|()| pool.create(&oid, 1, &data))?,
                    Some((_, before)) if before.boot != me.boot && heard_by(pool, &oid, &before)? != Heard::Gone => {
                        return Err(taken(format!(
                            "another machine, or an earlier run of this one, lives under the name of node {}",
                            me.node
                        )));
                    }
                    Some((revision, _)) => pool.swap(&oid, revision, revision + 1, &data)?,
                };
                if written {
                    return watch(pool, &oid);
                }
            }
            Err(taken(format!("another machine gives signs of life as node {}", me.node)))
        })
    }
}

fn watch(pool: &Pool, oid: &str) -> Result<()> {
    let ours = format!("{}/{oid}/{}", pool.name(), pool.cluster().client_id());
    WATCHES.with_borrow_mut(|watches| {
        watches.retain(|(_, watch)| watch.is_alive());
        if watches.iter().all(|(known, _)| *known != ours) {
            watches.push((ours, pool.watch(oid, FORGOTTEN_AFTER)?));
        }
        Ok(())
    })
}

/// What can be seen of a node.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadSign {
    /// Where.
    pub place: Place,
    /// Which.
    pub node: NodeId,
}

impl Task for ReadSign {
    const NAME: &'static str = "ceph.read-sign";
    type Output = Option<Sign>;

    fn run(self) -> Result<Option<Sign>> {
        let oid = oid(&self.node);
        self.place.with(|pool| {
            let Some((_, lease)) = read(pool, &oid)? else { return Ok(None) };
            // One that is there and mute gives no sign: a live one answers at once.
            let watched = heard_by(pool, &oid, &lease)? == Heard::Answered;
            Ok(Some(Sign { boot: lease.boot, watched, counter: lease.counter }))
        })
    }
}
