//! Who can say which containers live: Docker and Podman by their API, a Mesos agent by what it has written down.
//!
//! Each knows its own callers and speaks of nobody else's. What it cannot say it does not: an error is silence.

mod engine;
mod mesos;

pub use engine::ContainerEngine;
pub use mesos::MesosAgent;

use dunnage_host::helpers::Registry;

/// What helper processes do for witnesses: they read files that may lie on disks that hang.
pub fn tasks(registry: Registry) -> Registry {
    registry.with::<engine::HolderIds>().with::<mesos::Checkpoints>()
}
