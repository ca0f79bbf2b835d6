//! dvdcli: a client of any Docker volume plugin, for Mesos agents, scripts and people.
//!
//! It speaks the plugin API to whoever serves it, ours or not, and knows nothing of what is behind. On stdout stands what
//! was asked for and nothing else: Mesos takes the whole of it for the path. The exit code is 0 or 1.
#![allow(clippy::print_stdout)] // this is a command line

mod cli;
mod find;
#[cfg(not(feature = "network"))]
mod other;
mod plugin;
#[cfg(feature = "network")]
mod tls;
mod verbs;

pub use cli::{NAME, command, main, truth};
pub use find::{Address, Places, TlsFiles};
pub use plugin::{Complaint, Plugin};
pub use verbs::{Asked, mount, unmount};
