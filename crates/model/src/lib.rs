//! Dunnage's words as types: names, sizes, options, holders, volumes, errors.
//!
//! Nothing here does I/O. A value that exists is valid: a [`VolumeName`] can be joined to a path, a [`Bytes`] is a
//! number of bytes and nothing else. Every other room speaks in these words.

mod access;
mod actions;
mod error;
mod holder;
mod ids;
mod inline;
mod mount_options;
mod options;
mod ownership;
mod size;
mod suggest;
mod volume;

pub use access::{Access, PublishMode};
pub use actions::{AdoptAction, AttachAction, CreateAction, MountAction, ReleaseAction, RemoveAction, ResizeAction, UnmountAction};
pub use error::{Error, HERE, Kind, Result};
pub use holder::{Caller, CallerKind, Holder, HolderKey};
pub use ids::{BootId, DriverName, EndpointName, NodeId, OperationId, VolumeId, VolumeName};
pub use inline::{AskedName, parse_name};
pub use mount_options::MountOptions;
pub use options::{Hint, HintPolicy, KeyClass, KnownKey, ParsedOptions, known_keys, parse_options, parse_wish, split_options};
pub use ownership::{Client, Owner, OwnerRecord, OwnerState, Preempt};
pub use size::Bytes;
pub use suggest::nearest;
pub use volume::{FsKind, Mode, PartialSpec, RootPath, Usage, VolumeInfo, VolumeSpec, VolumeState};
