//! The driver `ceph`: volumes that are images of RBD, and go from node to node with at most one that can write.
//!
//! A safe, blocking layer over librados and librbd, which are loaded when the first connection is made, so that a node without
//! Ceph needs neither. Any call may take as long as [`Access::timeout`] and some may hang for longer, when a library waits for its own
//! threads: it is made in helper processes ([`mod@tasks`]), which can be killed.
//!
//! The blocklist knows a client by its [`ClientAddress`]; [`Pool::barrier`] is what makes a fence certain.

mod address;
mod carrier;
mod cluster;
mod device;
mod driver;
mod fault;
mod image;
mod index;
mod kernel;
mod library;
mod nbd;
mod node;
mod pool;
mod process;
mod start;
pub mod tasks;
mod volumes;

pub use address::ClientAddress;
pub use cluster::{Access, Cluster, PoolName};
pub use driver::{Ceph, Settings};
pub use fault::is_fenced;
pub use image::{Image, ImageInfo, ImageName, Watcher, features};
pub use pool::{Heard, Listener, Pool, Versioned, Watch};
pub use start::Way;
pub use tasks::tasks;
