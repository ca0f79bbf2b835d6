//! Who may write to a volume that several nodes can attach, as the platform keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use dunnage_model::{BootId, Client, Error, Kind, NodeId, Owner, OwnerRecord, Result, VolumeName};
use serde::{Deserialize, Serialize};

/// A record as it was read, and what a change of it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Another with every change, whoever makes it.
    pub revision: u64,
    /// The record.
    pub record: OwnerRecord,
}

/// What was seen of a node at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    /// Which run of it has the lease.
    pub boot: BootId,
    /// Its watch is there, and answers.
    pub watched: bool,
    /// Its counter.
    pub counter: u64,
}

/// How long no sign of life of a node may be seen before it is silent, where nobody says otherwise.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Sharing volumes among nodes: the platform's own compare-and-set, and its power to refuse a client.
///
/// The driver finds out and acts. In which order is the engine's to say (`dunnage_engine::ownership`), and safety rests on it.
#[async_trait]
pub trait Share: Send + Sync {
    /// How long no sign of life of a node may be seen before it is silent. It decides only *whether* to take a volume, and
    /// nodes need not agree on it. This node gives a sign of its own in a fifth of it.
    fn silence(&self) -> Duration {
        SILENCE
    }

    /// Who has a volume. `None`: nobody ever had it.
    async fn owner(&self, name: &VolumeName) -> Result<Option<Versioned>>;

    /// Changes the record, if it is still the one of revision `expected`, or makes it, if that is `None` and there is none.
    /// `None`: somebody was quicker, and nothing was changed. After an error nobody knows whether it was.
    async fn swap(&self, name: &VolumeName, expected: Option<u64>, record: &OwnerRecord) -> Result<Option<Versioned>>;

    /// Everybody who has the volume open on the platform, wherever.
    async fn clients(&self, name: &VolumeName) -> Result<BTreeSet<Client>>;

    /// Those by which this node has it open, as the host shows: they live.
    async fn mine(&self, name: &VolumeName) -> Result<BTreeSet<Client>>;

    /// Has the platform refuse everything that these clients ask for, for good. Idempotent; what fails may have been done.
    async fn fence(&self, clients: &BTreeSet<Client>) -> Result<()>;

    /// Returns when whatever on the platform could accept a write to this volume has heard of every fence that was made before.
    async fn barrier(&self, name: &VolumeName) -> Result<()>;

    /// Gives a sign of life for this run of this node. Refused when another run of it, that lives, has the lease, and when it was
    /// barred.
    async fn give_sign(&self, me: &Owner, counter: u64) -> Result<()>;

    /// What can be seen of a node. `None`: it never gave a sign.
    async fn sign(&self, of: &NodeId) -> Result<Option<Sign>>;

    /// All nodes that ever gave a sign.
    async fn nodes(&self) -> Result<Vec<NodeId>>;

    /// Who has what: of all volumes, half-made ones included.
    async fn owners(&self) -> Result<Vec<(VolumeName, OwnerRecord)>>;

    /// Has a node take no volume any more, whatever becomes of it, or lets it again: its signs of life are refused. Idempotent.
    async fn bar(&self, node: &NodeId, barred: bool) -> Result<()>;

    /// The nodes that were barred.
    async fn barred(&self) -> Result<BTreeSet<NodeId>>;
}

/// The error for a node that was barred.
pub fn is_barred(node: &NodeId) -> Error {
    let next = format!("make sure that nothing of an earlier run of it writes, then run 'dunnage node unfence {node}'");
    Error::new(Kind::Permission, format!("node {node} was cut off by 'dunnage node fence', and takes no volume"), next)
}
