//! From a frontend's request to the steps that carry it out, and everything that must be remembered on the way.
//!
//! No kernel and no protocol here: the [`planner`] decides, `carry` does what it says through the host and a driver, the
//! [`ledger`] remembers who asked, and a lane per volume keeps one volume's trouble from every other.

mod carry;
#[cfg(test)]
mod chance;
mod engine;
mod env;
mod lane;
pub mod ledger;
mod nodes;
mod own;
pub mod ownership;
pub mod planner;
mod reconcile;
#[cfg(test)]
mod simulation;
mod view;
mod witness;

pub use engine::{AttachedTo, Call, Claim, CreateRequest, Engine, Layout, Mounted, Preempting, Settings, Unmounted};
pub use env::{Boot, Clock, Random, System, Watcher};
pub use nodes::{Evicted, NodeState, NodeView, OwnerView};
pub use planner::AdoptRequest;
pub use view::{DriverView, Inspection, JobView, VolumeView};
pub use witness::{Held, Missing, Use, Witness};
