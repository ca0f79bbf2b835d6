//! The moves of [`crate::ownership`], carried out; and the signs of life that others are judged by, and we by others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunnage_driver::{Driver, Share};
use dunnage_model::{BootId, Client, DriverName, Error, Kind, NodeId, Owner, OwnerRecord, Preempt, Result, VolumeId};

use crate::engine::Engine;
use crate::lane::{Job, Lane, lock};
use crate::ownership::liveness::Observer;
use crate::ownership::{self, Claim, Move};
use crate::planner::Goal;

/// How long a node that lives is waited for. Schedulers start the new task before the old node has let go.
const PATIENCE: Duration = Duration::from_secs(45);
/// How soon it is looked at again, for it may be letting go at this very moment;
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// and how seldom later: each time takes twice as long as the one before.
const LOOK: Duration = Duration::from_millis(400);
/// A volume that was taken is not taken again by `always` for so long: two that want it would never end.
const RESTLESS: Duration = Duration::from_secs(60);

/// How many signs of life are given at least in the time after which whoever gives none is silent,
const SIGNS_IN_A_SILENCE: u32 = 5;
/// and how seldom, for other nodes may be less patient.
const SIGNS_EVERY: Duration = Duration::from_secs(3);
/// How many signs of life are given between two looks at what is mounted here: whether it is this node's still.
const SIGNS_BETWEEN_LOOKS: u64 = 10;

/// What is known of the nodes that share a driver's volumes. Only a cache.
#[derive(Default)]
pub(crate) struct Seen {
    counter: u64,
    /// Since when our own lease has been good without a break, and when it was renewed last.
    lease: Option<(Duration, Duration)>,
    observers: BTreeMap<(String, String), Observer>,
    /// What was mounted here when another node took it, with the epoch since when: shut down already.
    lost: BTreeSet<(VolumeId, u64)>,
    /// Somebody looks just now at what was lost.
    looking: bool,
    /// Since when each volume has had the epoch that it has.
    epochs: BTreeMap<VolumeId, (u64, Duration)>,
}

impl Seen {
    /// Since when our own lease has been good, where nobody may be silent for longer than `silence`: it is for half of that.
    pub fn lease_since(&self, now: Duration, silence: Duration) -> Option<Duration> {
        self.lease.filter(|(_, renewed)| now.saturating_sub(*renewed) < silence / 2).map(|(since, _)| since)
    }

    /// What is known of a run of a node.
    pub fn observer(&mut self, node: &NodeId, boot: &BootId, now: Duration) -> &mut Observer {
        let key = (node.to_string(), boot.to_string());
        self.observers.entry(key).or_insert_with(|| Observer::new(boot.clone(), now))
    }
}

impl Engine {
    pub(crate) fn me(&self) -> Owner {
        Owner { node: self.0.settings.node.clone(), boot: self.0.settings.boot.clone() }
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.0.settings.clock.uptime()
    }

    /// What is known of a driver's nodes, for as long as `look` looks.
    pub(crate) fn seen<T>(&self, driver: &DriverName, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(lock(&self.0.seen).entry(driver.clone()).or_default())
    }

    /// Gives signs of life to every platform that nodes share, until it is dropped. Each has a turn of its own: one that hangs does
    /// not keep another waiting, the next time neither.
    pub async fn give_signs(&self) {
        let mut giving = tokio::task::JoinSet::new();
        for (driver, every) in self.shared_drivers() {
            let engine = self.clone();
            giving.spawn(async move {
                loop {
                    if let Err(e) = engine.give_sign(&driver).await {
                        tracing::warn!(%driver, "no sign of life could be given: {e}");
                    }
                    tokio::time::sleep(every).await;
                }
            });
        }
        giving.join_all().await;
    }

    /// The drivers whose volumes other nodes can have, too, and how often this node gives a sign of life there.
    pub(crate) fn shared_drivers(&self) -> Vec<(DriverName, Duration)> {
        let shared =
            |driver: &Arc<dyn Driver>| Some((driver.name().clone(), SIGNS_EVERY.min(driver.share()?.silence() / SIGNS_IN_A_SILENCE)));
        self.0.drivers.values().filter_map(shared).collect()
    }

    /// Gives one sign of life to one platform.
    pub async fn give_sign(&self, name: &DriverName) -> Result<()> {
        let driver = self.driver(name)?.clone();
        let Some(share) = driver.share() else { return Ok(()) };
        let asked = self.uptime();
        let counter = self.seen(name, |seen| {
            seen.counter += 1;
            seen.counter
        });
        share.give_sign(&self.me(), counter).await?;
        let now = self.uptime();
        let unbroken = self.seen(name, |seen| {
            let since = seen.lease_since(now, share.silence());
            seen.lease = Some((since.unwrap_or(now), asked));
            since.is_some()
        });
        // Whoever was away for a while may have lost what it had.
        if !unbroken || counter.is_multiple_of(SIGNS_BETWEEN_LOOKS) {
            self.look_for_lost(name);
        }
        Ok(())
    }

    /// Lets go of what was lost, behind the back of the signs of life: what is mounted may hang.
    fn look_for_lost(&self, name: &DriverName) {
        if self.seen(name, |seen| std::mem::replace(&mut seen.looking, true)) {
            return;
        }
        let (engine, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            if let Err(e) = engine.let_go_of_lost(&name).await {
                tracing::warn!(driver = %name, "nobody can say whether what is mounted is this node's still: {e}");
            }
            engine.seen(&name, |seen| seen.looking = false);
        });
    }

    /// Shuts down what is mounted here and has become another node's. Safety needs none of it: that node has had us cut off. But
    /// what is in memory would be read as if nothing had happened, until somebody writes.
    async fn let_go_of_lost(&self, name: &DriverName) -> Result<()> {
        let driver = self.driver(name)?.clone();
        let Some(share) = driver.share() else { return Ok(()) };
        let staged = |lane: &Lane| lock(&lane.state).entry.staged.map(|staged| staged.device);
        let mounted: Vec<_> = crate::view::read(&self.0.lanes)
            .iter()
            .filter(|(volume, _)| volume.driver == *name)
            .filter_map(|(volume, lane)| Some((volume.clone(), staged(lane)?)))
            .collect();
        for (volume, device) in mounted {
            // Positive evidence alone: a record that says so. A volume that cannot be asked for is ours still.
            let Some(found) = share.owner(&volume.name).await? else { continue };
            if found.record.owner().is_none_or(|owner| *owner == self.me()) {
                continue;
            }
            let lost = (volume, found.record.epoch);
            if self.seen(name, |seen| seen.lost.contains(&lost)) {
                continue;
            }
            let owner = found.record.owner().map(|owner| owner.node.to_string()).unwrap_or_default();
            let shut = self.0.settings.host.mounts.shut_down(&self.target(&lost.0), device).await?;
            tracing::error!(volume = %lost.0, %owner, shut, "another node has taken it: what is mounted here is cut off from its data");
            self.seen(name, |seen| seen.lost.insert(lost));
        }
        Ok(())
    }
}

/// One job's dealings with a volume's record.
pub(crate) struct Owning<'a> {
    pub engine: &'a Engine,
    pub share: &'a dyn Share,
    pub volume: &'a VolumeId,
    pub lane: &'a Lane,
    pub job: &'a Job,
    pub policy: Preempt,
}

impl Owning<'_> {
    async fn claim(&self) -> Result<Claim> {
        let mine = self.share.mine(&self.volume.name).await?;
        // What another node has is neither removed nor made larger nor let go of nor finished, and nobody waits with it. What a dead one was making
        // is anybody's to undo. And nobody's mapping is cut off because somebody has adopted what it maps.
        let impatient = matches!(self.job.goal, Goal::Remove | Goal::Resize(_) | Goal::Unstage | Goal::Recover | Goal::Adopt(_));
        let policy = match self.job.goal {
            Goal::Recover | Goal::Create { .. } | Goal::Adopt(_) => Preempt::IfDead,
            _ if impatient => Preempt::Never,
            _ => self.policy,
        };
        Ok(Claim { impatient, ..Claim::new(self.engine.me(), policy, mine) })
    }

    /// Makes the volume this node's.
    pub async fn own(&self) -> Result<()> {
        let (mut claim, until, mut pause) = (self.claim().await?, self.engine.uptime() + PATIENCE, FIRST_LOOK);
        self.be_seen(claim.impatient, until).await?;
        loop {
            match ownership::next(&claim) {
                Move::Done => return Ok(()),
                Move::Refuse(error) => return Err(error),
                Move::Wait => {
                    self.wait(pause).await?;
                    pause = (2 * pause).min(LOOK);
                    claim.forget();
                    claim.impatient |= self.engine.uptime() >= until;
                }
                step => self.make(&mut claim, step).await?,
            }
        }
    }

    /// Takes the volume from a node that is to have nothing any more, for nobody.
    pub async fn evict(&self, node: &NodeId) -> Result<()> {
        let mut claim = self.claim().await?;
        loop {
            match ownership::evict(&claim, node) {
                Move::Done => return Ok(()),
                step => self.make(&mut claim, step).await?,
            }
        }
    }

    /// Sees to it that others can see us live: whoever cannot say so could not be told from a dead node. An earlier run of this
    /// very node may be seen yet, for a while after its end.
    async fn be_seen(&self, impatient: bool, until: Duration) -> Result<()> {
        let (engine, driver) = (self.engine, &self.volume.driver);
        while engine.seen(driver, |seen| seen.lease_since(engine.uptime(), self.share.silence())).is_none() {
            match engine.give_sign(driver).await {
                Err(e) if matches!(e.kind, Kind::InUse { .. }) && !impatient && engine.uptime() < until => self.wait(LOOK).await?,
                outcome => return outcome,
            }
        }
        Ok(())
    }

    /// Waits for a moment, if somebody still wants that.
    async fn wait(&self, pause: Duration) -> Result<()> {
        if self.job.is_cancelled() {
            return Err(Error::unavailable("the daemon is stopping", "ask again when it runs"));
        }
        if !matches!(self.job.goal, Goal::Create { .. }) && lock(&self.lane.state).entry.holders.is_empty() {
            return Err(Error::unavailable("whoever asked for it has gone while another node had it", "ask again"));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Gives the volume up. `closed` are the clients of this node that have ended in order.
    pub async fn give_up(&self, closed: &BTreeSet<Client>) -> Result<()> {
        let mut claim = self.claim().await?;
        loop {
            match ownership::release(&claim, closed) {
                Move::Done => return Ok(()),
                step => self.make(&mut claim, step).await?,
            }
        }
    }

    /// Writes down by which clients this node writes from now on.
    pub async fn name(&self) -> Result<()> {
        let clients = self.share.mine(&self.volume.name).await?;
        if clients.is_empty() {
            // Whoever took the volume from us would cut off nobody.
            return Err(Error::internal("it is attached, and the driver cannot say by which client"));
        }
        loop {
            let Some(found) = self.share.owner(&self.volume.name).await? else { return Err(self.lost()) };
            let record = ownership::named(&self.engine.me(), &found.record, clients.clone()).ok_or_else(|| self.lost())?;
            if self.share.swap(&self.volume.name, Some(found.revision), &record).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Whether what is mounted here is this node's still, and alive.
    pub async fn confirm(&self) -> Result<()> {
        let name = &self.volume.name;
        let (found, mine) = (self.share.owner(name).await?, self.share.mine(name).await?);
        let record = found.as_ref().map(|found| &found.record);
        let owner = record.and_then(OwnerRecord::owner);
        let named = record.and_then(OwnerRecord::clients).is_some_and(|named| !named.is_disjoint(&mine));
        if owner == Some(&self.engine.me()) && named {
            return Ok(());
        }
        let detail = match owner.filter(|owner| **owner != self.engine.me()) {
            Some(owner) => format!("it is mounted here, and node {} has taken it: nothing here can write to it any more", owner.node),
            None => "it is mounted here, and what led to its data has died".to_owned(),
        };
        let holders = lock(&self.lane.state).entry.holders.iter().filter(|holder| holder.count > 0).map(ToString::to_string).collect();
        Err(Error::in_use(holders, self.engine.node(), detail, "end what uses it on this node; then it can be mounted anew"))
    }

    fn lost(&self) -> Error {
        Error::unavailable("another node has taken it meanwhile; nothing was read or written here", "ask again")
    }

    async fn make(&self, claim: &mut Claim, step: Move) -> Result<()> {
        let (name, watcher, word) = (&self.volume.name, &self.engine.0.settings.watcher, word(&step));
        let goal = self.job.goal.word();
        tracing::debug!(step = word, "own");
        watcher.step(goal, word, false);
        match step {
            Move::Read => {
                let found = self.share.owner(name).await?;
                let epoch = found.as_ref().map_or(0, |found| found.record.epoch);
                claim.restless = self.is_restless(epoch);
                claim.record = Some(found);
            }
            Move::ListClients => claim.clients = Some(self.share.clients(name).await?),
            Move::Observe => self.observe(claim).await?,
            Move::Swap(record) => {
                let expected = claim.record.iter().flatten().map(|found| found.revision).next();
                match self.share.swap(name, expected, &record).await? {
                    Some(written) => claim.wrote(written),
                    None => claim.forget(),
                }
            }
            Move::Fence(clients) => {
                tracing::warn!(volume = %self.volume, clients = ?clients, "cut off: {goal} takes the volume from them");
                self.share.fence(&clients).await?;
                claim.fenced.extend(clients);
                claim.barrier = false;
            }
            Move::Barrier => {
                self.share.barrier(name).await?;
                claim.barrier = true;
            }
            Move::Wait | Move::Done | Move::Refuse(_) => {}
        }
        watcher.step(goal, word, true);
        Ok(())
    }

    /// Looks at the node that the record names.
    async fn observe(&self, claim: &mut Claim) -> Result<()> {
        let record = claim.record.iter().flatten().map(|found| &found.record).next();
        let Some(owner) = record.and_then(|record| record.owner()).cloned() else { return Ok(()) };
        let asked = self.engine.uptime();
        let sign = self.share.sign(&owner.node).await?;
        let open = self.share.clients(&self.volume.name).await?;
        let now = self.engine.uptime();
        let held = |clients: &BTreeSet<Client>| !clients.is_disjoint(&open);
        let open = record.is_some_and(|record| record.clients().is_some_and(held));
        claim.standing = Some(self.engine.seen(&self.volume.driver, |seen| {
            let lease = seen.lease_since(now, self.share.silence());
            let observer = seen.observer(&owner.node, &owner.boot, now);
            observer.see(asked, now, sign);
            observer.standing(self.share.silence(), lease, open)
        }));
        Ok(())
    }

    fn is_restless(&self, epoch: u64) -> bool {
        let now = self.engine.uptime();
        self.engine.seen(&self.volume.driver, |seen| {
            let known = seen.epochs.entry(self.volume.clone()).or_insert((epoch, now));
            if known.0 != epoch {
                *known = (epoch, now);
            }
            now.saturating_sub(known.1) < RESTLESS
        })
    }
}

/// Its name in logs and crash points.
fn word(step: &Move) -> &'static str {
    match step {
        Move::Read => "own-read",
        Move::ListClients => "own-clients",
        Move::Observe => "own-observe",
        Move::Swap(_) => "own-swap",
        Move::Fence(_) => "own-fence",
        Move::Barrier => "own-barrier",
        Move::Wait => "own-wait",
        Move::Done => "own-done",
        Move::Refuse(_) => "own-refuse",
    }
}
