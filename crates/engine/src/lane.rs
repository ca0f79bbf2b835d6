//! One lane per volume: its jobs run one after the other, and never wait for another volume's.
//!
//! A job outlives its callers. A call that wants what the newest job of the lane is already doing joins it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunnage_model::{Error, HolderKey, OperationId, Result};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::ledger::Entry;
use crate::planner::{Goal, Outcome};

/// A mutex whose holder cannot leave it broken: every change under it is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A goal on its way.
pub(crate) struct Job {
    pub goal: Goal,
    pub operation: OperationId,
    pub since: Timestamp,
    step: Mutex<&'static str>,
    cancelled: AtomicBool,
    outcome: watch::Sender<Option<Result<Outcome>>>,
}

impl Job {
    pub fn new(goal: Goal, operation: OperationId, since: Timestamp) -> Self {
        Job { goal, operation, since, step: Mutex::new("waiting"), cancelled: AtomicBool::new(false), outcome: watch::Sender::new(None) }
    }

    /// What it is doing.
    pub fn step(&self) -> &'static str {
        *lock(&self.step)
    }

    pub fn set_step(&self, step: &'static str) {
        *lock(&self.step) = step;
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub fn finish(&self, outcome: Result<Outcome>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Its outcome, when it has one.
    pub async fn outcome(&self) -> Result<Outcome> {
        let mut receiver = self.outcome.subscribe();
        let gone = || Error::internal("a job ended without an outcome");
        receiver.wait_for(Option::is_some).await.map_err(|_| gone())?.clone().unwrap_or_else(|| Err(gone()))
    }
}

/// A claim on a lane: whose, and which. (One key may have several, and they are not the same.)
pub(crate) struct Claimed {
    pub id: u64,
    pub key: HolderKey,
    /// It took over what was undecided since the daemon before died: when nothing comes of it, that is undecided again.
    pub took_over: bool,
}

pub(crate) struct LaneState {
    /// The ledger's entry, as it is to be written.
    pub entry: Entry,
    /// Answers on their way, oldest first: one for each provisional count.
    pub claims: VecDeque<Claimed>,
    /// Jobs that are not done, the running one first.
    pub jobs: VecDeque<Arc<Job>>,
}

pub(crate) struct Lane {
    pub state: Mutex<LaneState>,
    /// Held by the job that runs. Fair: first come, first served.
    pub turn: tokio::sync::Mutex<()>,
}

impl LaneState {
    /// Nothing is being done to it, and more of it is here than anybody wants.
    pub fn is_left_over(&self) -> bool {
        let mounted = self.entry.staged.is_some() || self.entry.intent.is_some();
        let unwanted = if self.entry.holders.is_empty() { !self.entry.is_empty() } else { mounted && self.entry.mounters() == 0 };
        self.jobs.is_empty() && unwanted
    }

    /// A new claim of this key.
    pub fn add_claim(&mut self, key: &HolderKey, took_over: bool) -> u64 {
        // Never used again, in whatever lane: a late word may come when its lane was swept away and made anew.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        self.claims.push_back(Claimed { id, key: key.clone(), took_over });
        id
    }

    /// Ends a claim; `None` if it was ended before, by an unmount that was quicker than our knowing.
    pub fn end_claim(&mut self, id: u64) -> Option<Claimed> {
        let at = self.claims.iter().position(|claim| claim.id == id)?;
        self.claims.remove(at)
    }

    /// Ends this key's claims: the oldest, or all.
    pub fn end_claims_of(&mut self, key: &HolderKey, all: bool) {
        let mut ended = false;
        self.claims.retain(|claim| {
            let ends = claim.key == *key && (all || !ended);
            ended |= ends;
            !ends
        });
    }
}

impl Lane {
    pub fn new(entry: Entry) -> Self {
        Lane { state: Mutex::new(LaneState { entry, claims: VecDeque::new(), jobs: VecDeque::new() }), turn: tokio::sync::Mutex::new(()) }
    }

    /// The job that runs, and how long it has.
    pub fn running(&self) -> Option<Arc<Job>> {
        lock(&self.state).jobs.front().cloned()
    }
}
