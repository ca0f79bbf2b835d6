//! Holders whose container is gone: an engine that was killed, or gave up to tell us, never takes its hold back.
//!
//! Whoever started the containers is asked. A holder is *missing* when its witness has answered for the time of grace that
//! no container of its uses the volume; silence proves nothing, and begins the time anew. One that is missing is shown, and let
//! go of if that is wanted and the kernel has nothing against it: while a process in any namespace has the volume mounted,
//! its last holder stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dunnage_model::{Caller, EndpointName, Error, Holder, HolderKey, Result, VolumeId, VolumeName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::engine::{Call, Engine};
use crate::lane::lock;

/// How long a witness may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who knows which containers live.
#[async_trait]
pub trait Witness: Send + Sync {
    /// As people know it: `docker at /var/run/docker.sock`.
    fn name(&self) -> String;

    /// Whether there is anybody to ask.
    fn is_there(&self) -> bool;

    /// Whether callers of this kind are its containers.
    fn speaks_of(&self, caller: &Caller) -> bool;

    /// Every use of a volume by a container that lives, at this moment.
    async fn uses(&self) -> Result<Vec<Use>>;
}

/// A volume in use by a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The driver's name as the container's engine has it.
    pub endpoint: EndpointName,
    /// The volume.
    pub volume: VolumeName,
    /// The IDs under which it holds it; `None` when that cannot be known, and it may be any.
    pub ids: Option<BTreeSet<String>>,
    /// The container, for people.
    pub who: String,
}

/// A holder whose container is gone, by the word of its witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The holder.
    #[serde(flatten)]
    pub holder: HolderKey,
    /// Since when the witness has said so.
    pub since: Timestamp,
    /// Who says so.
    pub witness: String,
    /// Why it was not let go of, where it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

/// A holder whose container was not seen, as it was then: one that has changed since lives.
pub(crate) struct Missed {
    since: Timestamp,
    /// The same by a clock that nobody sets.
    begun: Instant,
    witness: String,
    holder: Holder,
    /// For the time of grace.
    gone: bool,
    kept: Option<String>,
}

/// A volume and its holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The volume.
    pub volume: VolumeId,
    /// Who holds it.
    pub holders: Vec<Holder>,
    /// Those whose container is gone.
    pub missing: Vec<Missing>,
}

impl Engine {
    /// All volumes that are held on this node.
    pub fn held(&self) -> Vec<Held> {
        let lanes = crate::view::read(&self.0.lanes).clone();
        let held = lanes.into_iter().map(|(volume, lane)| {
            let (holders, missing) = (lock(&lane.state).entry.holders.clone(), self.missing(&volume));
            Held { volume, holders, missing }
        });
        held.filter(|held| !held.holders.is_empty()).collect()
    }

    /// The holders of a volume whose container is gone.
    pub fn missing(&self, volume: &VolumeId) -> Vec<Missing> {
        let missed = lock(&self.0.missed);
        let of_volume = missed.iter().filter(|((of, _), missed)| of == volume && missed.gone);
        let missing = |(holder, Missed { since, witness, kept, .. }): (&HolderKey, &Missed)| Missing {
            holder: holder.clone(),
            since: *since,
            witness: witness.clone(),
            kept: kept.clone(),
        };
        of_volume.map(|((_, key), missed)| missing((key, missed))).collect()
    }

    /// Asks the witnesses once. A holder that none has seen for the time of `grace` is missing; `act` lets go of those.
    pub async fn look_for_missing(&self, witnesses: &[Arc<dyn Witness>], grace: Duration, act: bool) {
        let held = self.held();
        let holders = || held.iter().flat_map(|held| held.holders.iter().map(|holder| (&held.volume, holder)));
        let mut said = Vec::new();
        for witness in witnesses {
            if holders().any(|(_, holder)| witness.speaks_of(&holder.key.caller)) {
                // One that is not there is as silent as one that does not answer.
                said.push((witness, if witness.is_there() { ask(&**witness).await } else { None }));
            }
        }
        let mut missing = BTreeMap::new();
        for (volume, holder) in holders() {
            let of_holder: Vec<_> = said.iter().filter(|(witness, _)| witness.speaks_of(&holder.key.caller)).collect();
            let silent = of_holder.iter().any(|(_, uses)| uses.is_none());
            let lives = of_holder.iter().filter_map(|(_, uses)| uses.as_ref()).flatten().any(|found| found.is_of(volume, &holder.key));
            // One whose answer is on its way is being started.
            if !of_holder.is_empty() && !silent && !lives && holder.provisional == 0 {
                let witness = of_holder.iter().map(|(witness, _)| witness.name()).collect::<Vec<_>>().join(" and ");
                missing.insert((volume.clone(), holder.key.clone()), (holder.clone(), witness));
            }
        }
        for (volume, holder) in self.note_missing(missing, grace) {
            if !act {
                continue;
            }
            if let Err(e) = self.release_missing(&volume, &holder).await
                && let Some(missed) = lock(&self.0.missed).get_mut(&(volume.clone(), holder.key.clone()))
            {
                let why = Some(e.to_string());
                if missed.kept != why {
                    tracing::warn!(%volume, holder = %holder.key, "its container is gone, and it is not let go of: {e}");
                }
                missed.kept = why;
            }
        }
    }

    /// Remembers who was not seen since when; gives those for whom that is longer than `grace`.
    fn note_missing(&self, missing: BTreeMap<(VolumeId, HolderKey), (Holder, String)>, grace: Duration) -> Vec<(VolumeId, Holder)> {
        let now = self.0.settings.clock.now();
        let mut missed = lock(&self.0.missed);
        missed.retain(|place, missed| missing.get(place).is_some_and(|(holder, _)| *holder == missed.holder));
        for (place, (holder, witness)) in missing {
            missed.entry(place).or_insert(Missed { since: now, begun: Instant::now(), witness, holder, gone: false, kept: None });
        }
        let mut gone = Vec::new();
        for ((volume, key), missed) in missed.iter_mut() {
            if missed.begun.elapsed() < grace {
                continue;
            }
            if !std::mem::replace(&mut missed.gone, true) {
                tracing::warn!(%volume, holder = %key, "held, and its container is gone since {:.0}, says {}", missed.since, missed.witness);
            }
            gone.push((volume.clone(), missed.holder.clone()));
        }
        gone
    }

    async fn release_missing(&self, volume: &VolumeId, holder: &Holder) -> Result<()> {
        self.release(volume, holder).await?;
        tracing::warn!(%volume, holder = %holder.key, "its container has been gone for the time of grace: let go of");
        self.owe(volume.clone(), crate::planner::Goal::Unstage);
        Ok(())
    }

    /// Lets go of a volume for a holder that will not do so itself, and unmounts it if that was the last.
    pub async fn release_holder(&self, call: &Call, volume: &VolumeId, holder: &Holder) -> Result<()> {
        self.release(volume, holder).await?;
        match self.unstage(call, volume).await {
            Ok(_) => Ok(()),
            Err(e) => Err(e.of(&volume.name).during(&call.operation)),
        }
    }

    /// Takes a holder out, if it is as it was seen, and if nothing lives on the mount that it is the last holder of.
    async fn release(&self, volume: &VolumeId, holder: &Holder) -> Result<()> {
        let changed = || {
            let detail = "its holders have changed meanwhile";
            Error::in_use(vec![holder.to_string()], self.node(), detail, "look at 'dunnage holder ls', and ask again").of(&volume.name)
        };
        let lane = self.lane(volume);
        let (seen, device) = {
            let state = lock(&lane.state);
            (state.entry.holders.clone(), state.entry.staged.map(|staged| staged.device))
        };
        // Who wants the device alone keeps no mount.
        let last = holder.wants_mount() && seen.iter().filter(|one| one.wants_mount()).count() == 1;
        if let (true, Some(device)) = (last, device) {
            let users = self.0.settings.host.mounts.users(device, &self.target(volume).path()).await?;
            if !users.is_empty() {
                let who = users.iter().map(ToString::to_string).collect();
                let next = "end them, then let go of it";
                return Err(Error::in_use(who, self.node(), "processes have it mounted, in whatever namespace", next).of(&volume.name));
            }
        }
        let mut state = lock(&lane.state);
        if state.entry.holders != seen || !seen.contains(holder) {
            return Err(changed());
        }
        state.entry.holders.retain(|one| one != holder);
        state.end_claims_of(&holder.key, true);
        self.persist(&state.entry)?;
        lock(&self.0.missed).remove(&(volume.clone(), holder.key.clone()));
        Ok(())
    }
}

impl Use {
    fn is_of(&self, volume: &VolumeId, key: &HolderKey) -> bool {
        let by_id = match (&self.ids, &key.caller.id) {
            (Some(ids), Some(id)) => ids.contains(id),
            _ => true,
        };
        self.endpoint == key.endpoint && self.volume == volume.name && by_id
    }
}

async fn ask(witness: &dyn Witness) -> Option<Vec<Use>> {
    match tokio::time::timeout(PATIENCE, witness.uses()).await {
        Ok(Ok(uses)) => {
            tracing::debug!(witness = witness.name(), uses = uses.len(), "said who lives");
            Some(uses)
        }
        Ok(Err(e)) => {
            tracing::warn!("{} does not say who lives: {e}", witness.name());
            None
        }
        Err(_) => {
            tracing::warn!("{} did not answer within {} s", witness.name(), PATIENCE.as_secs());
            None
        }
    }
}
