//! What the engine is given from outside: time, chance, and the name of this boot.

use std::time::Duration;

use dunnage_model::{BootId, Error, OperationId, Result};
use jiff::Timestamp;
use uuid::Uuid;

/// The clock.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// How long the machine has been up, the time that it slept included. Nobody sets it.
    fn uptime(&self) -> Duration;
}

/// Chance.
pub trait Random: Send + Sync {
    /// A number that nobody can guess.
    fn next(&self) -> u128;

    /// The UUID of a filesystem that is to be.
    fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.next().to_le_bytes()).into_uuid()
    }

    /// The name of an operation.
    fn operation(&self) -> OperationId {
        OperationId(format!("op-{:010x}", self.next() & 0xFF_FFFF_FFFF))
    }
}

/// The running kernel.
pub trait Boot: Send + Sync {
    /// Which run of it this is.
    fn id(&self) -> Result<BootId>;
}

/// Something that is told of every step, before and after: the daemon's crash points.
pub trait Watcher: Send + Sync {
    /// `goal` is about to do `step` (`after` false), or has done it.
    fn step(&self, goal: &str, step: &str, after: bool);
}

/// The machine as it is.
pub struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uptime(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
    }
}

impl Random for System {
    fn next(&self) -> u128 {
        Uuid::new_v4().as_u128()
    }
}

impl Boot for System {
    fn id(&self) -> Result<BootId> {
        let path = "/proc/sys/kernel/random/boot_id";
        let text = std::fs::read_to_string(path).map_err(|e| Error::os(format_args!("cannot read {path}"), &e))?;
        Ok(BootId(text.trim().to_owned()))
    }
}

impl Watcher for System {
    fn step(&self, _goal: &str, _step: &str, _after: bool) {}
}
