//! Ceph: its objects and its images, for now; the driver on top of them is to come.
//!
//! A safe, blocking layer over librados and librbd, which are loaded when the first connection is made, so that a node without
//! Ceph needs neither. Any call may take as long as [`Access::timeout`] and some may hang for longer, when a library waits for its own
//! threads: it is made in helper processes ([`mod@tasks`]), which can be killed.
//!
//! The blocklist knows a client by its [`ClientAddress`]; [`Pool::barrier`] is what makes a fence certain.

mod address;
mod cluster;
mod fault;
mod image;
mod library;
mod node;
mod owners;
mod pool;
pub mod tasks;

pub use address::ClientAddress;
pub use cluster::{Access, Cluster, PoolName};
pub use fault::is_fenced;
pub use image::{Image, ImageInfo, ImageName, Watcher, features};
pub use owners::Owners;
pub use pool::{Heard, Listener, Pool, Versioned, Watch};
pub use tasks::tasks;
