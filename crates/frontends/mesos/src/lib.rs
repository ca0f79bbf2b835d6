//! What Mesos, Marathon and dcos-commons say of volumes: in a task's environment, and in the files that people write.
//!
//! Nothing here asks or changes anything: [`slots`] reads an environment, [`files`] a file, and both give what is wanted.

pub mod files;
pub mod slots;

pub use files::{Road, Wanted, Workload, read};
pub use slots::{Slot, slots};
