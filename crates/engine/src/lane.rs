//! One lane per volume: its jobs run one after the other, and never wait for another volume's.
//!
//! A job outlives its callers. A call that wants what the newest job of the lane is already doing joins it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunnage_model::{Error, OperationId, Result};
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

pub(crate) struct LaneState {
    /// The ledger's entry, as it is to be written.
    pub entry: Entry,
    /// Jobs that are not done, the running one first.
    pub jobs: VecDeque<Arc<Job>>,
}

pub(crate) struct Lane {
    pub state: Mutex<LaneState>,
    /// Held by the job that runs. Fair: first come, first served.
    pub turn: tokio::sync::Mutex<()>,
}

impl Lane {
    pub fn new(entry: Entry) -> Self {
        Lane { state: Mutex::new(LaneState { entry, jobs: VecDeque::new() }), turn: tokio::sync::Mutex::new(()) }
    }

    /// The job that runs, and how long it has.
    pub fn running(&self) -> Option<Arc<Job>> {
        lock(&self.state).jobs.front().cloned()
    }
}
