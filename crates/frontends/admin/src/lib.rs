//! What the command line asks of the daemon: HTTP and JSON on a socket under the run directory, for root (and a group).

mod api;
mod client;
pub mod wire;

pub use api::{Admin, Choice, router};
pub use client::AdminClient;
