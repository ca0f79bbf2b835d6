//! What a verb did. Every verb is idempotent, so "it worked" is not an answer: `Created` and `AlreadyThere` are.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $text),+ })
            }
        }
    )+};
}

actions! {
    /// What `create` did.
    CreateAction {
        /// The volume is new.
        Created = "created",
        /// A compatible volume of that name was there.
        AlreadyThere = "already there",
    }
    /// What `adopt` did.
    AdoptAction {
        /// It was there, made by somebody else, and is ours to look after now.
        Adopted = "adopted",
        /// It was another endpoint's, and is this one's now.
        Moved = "moved to this endpoint",
        /// It was this endpoint's before.
        AlreadyThere = "already there",
        /// What was there is gone: the caller wants an empty volume instead.
        Discarded = "discarded",
    }
    /// What `attach` did.
    AttachAction {
        /// Its device appeared for this caller.
        Attached = "attached",
        /// Its device was there already; the caller joined the holders.
        Joined = "already attached, joined",
    }
    /// What `mount` did.
    MountAction {
        /// The filesystem was mounted for this caller.
        Mounted = "mounted",
        /// It was mounted already; the caller joined the holders.
        Joined = "already mounted, joined",
    }
    /// What `unmount` did.
    UnmountAction {
        /// The last holder went: unmounted and detached.
        Unmounted = "unmounted",
        /// Others hold it still: it stays mounted.
        StillHeld = "still held by others",
        /// The caller held nothing: nothing was done.
        NotHeld = "was not held by this caller",
    }
    /// What `remove` did.
    RemoveAction {
        /// The volume and its data are gone.
        Removed = "removed",
        /// There was no such volume.
        NotThere = "was not there",
    }
    /// What `resize` did.
    ResizeAction {
        /// It has that size, and its filesystem fills it.
        Grown = "grown",
        /// It has that size; its filesystem cannot grow as it is now.
        GrowsWithMount = "grown, and its filesystem grows when it is mounted next",
        /// It had that size before.
        AlreadyThere = "has that size",
    }
    /// What letting go of a device or a mount did.
    ReleaseAction {
        /// It is gone now.
        Released = "released",
        /// It was gone before.
        NotThere = "was not there",
    }
}
