//! What Mesos, Marathon and dcos-commons say of volumes: in a task's environment, and in the files that people write.
//!
//! [`slots`] reads an environment, [`files`] a file, and both give what is wanted; [`isolator`] has it mounted for a container, and
//! let go of when that has ended.

pub mod files;
pub mod isolator;
pub mod slots;

pub use files::{Road, Wanted, Workload, read};
pub use isolator::{Bind, FOLDERS, Isolator, Settings, WORK_DIR, place};
pub use slots::{Slot, slots};
