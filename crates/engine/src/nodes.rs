//! The nodes that share volumes with this one: how they stand, and what an operator may do to one that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunnage_driver::{Share, Sign};
use dunnage_model::{BootId, Client, DriverName, Error, Kind, NodeId, Owner, OwnerRecord, Result, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

use crate::engine::{Call, Engine};
use crate::lane::Job;
use crate::ownership::liveness::Standing;
use crate::planner::Goal;

/// How a node stands, as far as it can be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It answered just now, or has given a sign of life since it was last looked at.
    Alive,
    /// It did not answer, and has not been looked at for long enough to say more.
    Silent,
    /// Its daemon is silent, and a volume of its is open still: a task on it may live.
    Suspect,
    /// It is dead: its volumes are had by whoever asks.
    Dead,
}

impl NodeState {
    /// Its name for people.
    pub fn word(self) -> &'static str {
        match self {
            NodeState::Alive => "alive",
            NodeState::Silent => "silent",
            NodeState::Suspect => "suspect",
            NodeState::Dead => "dead",
        }
    }
}

/// A node as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeId,
    /// The driver whose volumes it shares.
    pub driver: DriverName,
    /// How it stands.
    pub state: NodeState,
    /// How that is known.
    pub how: String,
    /// It takes no volume before somebody says 'dunnage node unfence'.
    pub fenced: bool,
    /// Which run of it gave a sign last.
    pub boot: Option<BootId>,
    /// The volumes that are its.
    pub volumes: Vec<VolumeName>,
}

/// The owner of a volume as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerView {
    /// Its name.
    pub node: NodeId,
    /// How it stands.
    pub state: NodeState,
    /// How that is known.
    pub how: String,
}

/// What became of one volume of a node that was fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// The volume.
    pub volume: VolumeId,
    /// Why it is that node's still.
    pub error: Option<Error>,
}

impl Engine {
    /// The drivers whose volumes other nodes can have, too; of these, the one that is asked for.
    fn shared(&self, driver: Option<&DriverName>) -> Result<Vec<DriverName>> {
        if let Some(name) = driver
            && self.driver(name)?.share().is_none()
        {
            let detail = format!("no other node can have a volume of driver {name}");
            return Err(Error::invalid("driver", detail, "leave --driver out"));
        }
        let shared = self.shared_drivers().into_iter().map(|(name, _)| name);
        Ok(shared.filter(|name| driver.is_none_or(|wanted| wanted == name)).collect())
    }

    /// All nodes that share volumes with this one, and one sentence for each driver that does not say.
    pub async fn nodes(&self, call: &Call, driver: Option<&DriverName>) -> Result<(Vec<NodeView>, Vec<String>)> {
        let (mut views, mut notes) = (Vec::new(), Vec::new());
        for driver in self.shared(driver)? {
            let engine = self.clone();
            let asking = tokio::spawn(async move { engine.nodes_of(&driver).await.map_err(|e| (driver, e)) });
            match tokio::time::timeout(call.patience, asking).await {
                Ok(Ok(Ok(nodes))) => views.extend(nodes),
                Ok(Ok(Err((driver, e)))) => notes.push(format!("driver {driver}: {e}")),
                Ok(Err(e)) => notes.push(format!("asking for nodes ended early: {e}")),
                Err(_) => notes.push("a driver's platform does not answer".to_owned()),
            }
        }
        Ok((views, notes))
    }

    async fn nodes_of(&self, name: &DriverName) -> Result<Vec<NodeView>> {
        let driver = self.driver(name)?.clone();
        let Some(share) = driver.share() else { return Ok(Vec::new()) };
        let barred = share.barred().await?;
        let owners = share.owners().await?;
        let mut of: BTreeMap<NodeId, Vec<(VolumeName, OwnerRecord)>> = BTreeMap::new();
        for (volume, record) in owners {
            if let Some(owner) = record.owner() {
                of.entry(owner.node.clone()).or_default().push((volume, record));
            }
        }
        let all: BTreeSet<NodeId> = share.nodes().await?.into_iter().chain(of.keys().cloned()).chain(barred.iter().cloned()).collect();
        let look = all.into_iter().map(async |node| {
            let owned = of.get(&node).cloned().unwrap_or_default();
            let (state, how, boot) = self.standing(share, name, &node, &owned).await?;
            let fenced = barred.contains(&node);
            let volumes = owned.into_iter().map(|(volume, _)| volume).collect();
            Ok(NodeView { node, driver: name.clone(), state, how, fenced, boot, volumes })
        });
        // A node that does not answer is waited for, and ten no longer than one.
        futures_util::future::join_all(look).await.into_iter().collect()
    }

    async fn standing(
        &self,
        share: &dyn Share,
        driver: &DriverName,
        node: &NodeId,
        owned: &[(VolumeName, OwnerRecord)],
    ) -> Result<(NodeState, String, Option<BootId>)> {
        if *node == *self.node() {
            return Ok((NodeState::Alive, "it is this node".to_owned(), Some(self.0.settings.boot.clone())));
        }
        let asked = self.uptime();
        let Some(Sign { boot, watched, counter }) = share.sign(node).await? else {
            return Ok((NodeState::Silent, "it has never given a sign of life".to_owned(), None));
        };
        let mut open = false;
        if !watched {
            for (volume, record) in owned {
                let clients: BTreeSet<Client> = record.clients().cloned().unwrap_or_default();
                open = !clients.is_empty() && !share.clients(volume).await?.is_disjoint(&clients);
                if open {
                    break;
                }
            }
        }
        let now = self.uptime();
        let sign = Sign { boot: boot.clone(), watched, counter };
        let (standing, silent) = self.seen(driver, |seen| {
            let lease = seen.lease_since(now, share.silence());
            let observer = seen.observer(node, &boot, now);
            observer.see(asked, now, Some(sign));
            (observer.standing(share.silence(), lease, open), observer.silent(lease))
        });
        let seconds = silent.as_secs();
        let (state, how) = match standing {
            Standing::Alive if watched => (NodeState::Alive, "it answered just now".to_owned()),
            Standing::Alive if silent.is_zero() => {
                (NodeState::Silent, "it does not answer; it was looked at for the first time".to_owned())
            }
            Standing::Alive => (NodeState::Silent, format!("it has given no sign for {seconds} s of looking")),
            Standing::Suspect => (NodeState::Suspect, format!("no sign for {seconds} s, and something on it has a volume open")),
            Standing::Dead if open => {
                (NodeState::Dead, format!("no sign for {seconds} s: it is given up, though something on it has a volume open"))
            }
            Standing::Dead => (NodeState::Dead, format!("no sign for {seconds} s, and nothing of it is open")),
        };
        Ok((state, how, Some(boot)))
    }

    /// Cuts off a node that is gone: whatever is its becomes free, and it takes nothing before it is pardoned. One that lives is
    /// refused unless `force`: its containers would lose their volumes at once. What was begun goes on when the caller has gone.
    pub async fn fence_node(&self, call: &Call, driver: Option<&DriverName>, node: &NodeId, force: bool) -> Result<Vec<Evicted>> {
        if *node == *self.node() {
            let detail = "it is this very node, which cannot cut itself off";
            return Err(Error::invalid("node", detail, "ask another node, or stop the daemon with --release"));
        }
        let (engine, drivers) = (self.clone(), self.shared(driver)?);
        let (begun, target) = (call.clone(), node.clone());
        let fencing = tokio::spawn(async move { engine.begin_fence(&begun, drivers, &target, force).await });
        let jobs = match tokio::time::timeout(call.patience, fencing).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(e)) => return Err(Error::internal(format!("the fence ended early: {e}"))),
            Err(_) => {
                return Err(Error::timeout("fence", "the platform did not answer in time, and the fence goes on").during(&call.operation));
            }
        };
        let mut evicted = Vec::new();
        for (volume, job) in jobs {
            let error = self.wait(call, &volume, &job).await.err();
            evicted.push(Evicted { volume, error });
        }
        Ok(evicted)
    }

    /// Nothing is done to any driver's volumes before all that know the node were asked whether it lives.
    async fn begin_fence(&self, call: &Call, drivers: Vec<DriverName>, node: &NodeId, force: bool) -> Result<Vec<(VolumeId, Arc<Job>)>> {
        let mut known = Vec::new();
        for name in drivers {
            let driver = self.driver(&name)?.clone();
            let Some(share) = driver.share() else { continue };
            let is_its = |record: &OwnerRecord| record.owner().is_some_and(|owner| owner.node == *node);
            if !share.nodes().await?.contains(node) && !share.owners().await?.iter().any(|(_, record)| is_its(record)) {
                continue;
            }
            if !force && share.sign(node).await?.is_some_and(|sign| sign.watched) {
                let kind = Kind::InUse { holders: vec![format!("node {node}")], node: node.to_string() };
                let next = "stop it first; or, if its containers are to lose their volumes at once, say --force";
                return Err(Error::new(kind, format!("node {node} lives: it answered just now"), next));
            }
            known.push((name, driver));
        }
        if known.is_empty() {
            return Err(Error::not_found(format!("no driver knows a node {node}"), "look at 'dunnage node ls'"));
        }
        let mut jobs = Vec::new();
        for (name, driver) in known {
            let Some(share) = driver.share() else { continue };
            // First, so that it takes nothing while it is cut off.
            share.bar(node, true).await?;
            for (volume, record) in share.owners().await? {
                if record.owner().is_some_and(|owner| owner.node == *node) {
                    let volume = VolumeId { driver: name.clone(), name: volume };
                    let job = self.submit(call, &volume, Goal::Evict(node.clone()));
                    jobs.push((volume, job));
                }
            }
        }
        Ok(jobs)
    }

    /// Lets a node that was cut off take volumes again.
    pub async fn unfence_node(&self, driver: Option<&DriverName>, node: &NodeId) -> Result<()> {
        for name in self.shared(driver)? {
            let driver = self.driver(&name)?.clone();
            if let Some(share) = driver.share() {
                share.bar(node, false).await?;
            }
        }
        Ok(())
    }

    /// Whose a volume is, as the platform says; nothing for one that no other node can have.
    pub(crate) async fn ownership(&self, volume: &VolumeId) -> Result<Option<OwnerRecord>> {
        let driver = self.driver(&volume.driver)?.clone();
        let Some(share) = driver.share() else { return Ok(None) };
        Ok(share.owner(&volume.name).await?.map(|found| found.record))
    }

    /// How the owner of a volume stands, if it has one.
    pub(crate) async fn owner(&self, volume: &VolumeId, record: OwnerRecord) -> Result<Option<OwnerView>> {
        let driver = self.driver(&volume.driver)?.clone();
        let (Some(share), Some(Owner { node, .. })) = (driver.share(), record.owner().cloned()) else { return Ok(None) };
        let (state, how, _) = self.standing(share, &volume.driver, &node, &[(volume.name.clone(), record)]).await?;
        Ok(Some(OwnerView { node, state, how }))
    }
}
