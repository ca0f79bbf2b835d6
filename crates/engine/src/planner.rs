//! The heart: what to do next, given what is wanted and what is known. It does no I/O.
//!
//! The engine asks for a step, carries it out, adds what came of it to the facts, and asks again, until the answer is
//! `Done` or `Refuse`. A crash is "stop after any step"; an error is a fact like any other, and the next steps undo what
//! this run did.

mod adopt;
mod attach;
mod resize;

use std::path::PathBuf;

use dunnage_driver::{Attached, Stranger};
use dunnage_host::{Detached, DeviceNumber, Growth, MountedAt, Probe, Process, Unmounted};
use dunnage_model::{
    AdoptAction, AttachAction, Bytes, CreateAction, EndpointName, Error, FsKind, HERE, Kind, MountAction, NodeId, PartialSpec,
    ReleaseAction, RemoveAction, ResizeAction, Result, RootPath, VolumeInfo, VolumeSpec, VolumeState,
};
use serde::{Deserialize, Serialize};

pub use adopt::AdoptRequest;
pub(crate) use adopt::{adoption, no_filesystem_on};

/// What is wanted of one volume.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// That it exists, as asked.
    Create {
        /// What the caller said.
        asked: Box<PartialSpec>,
        /// The same with all defaults.
        spec: Box<VolumeSpec>,
        /// Who will list it.
        endpoint: EndpointName,
        /// It is new, and a copy of this image.
        source: Option<PathBuf>,
    },
    /// That its device is on this node.
    Attach,
    /// That it is mounted on this node.
    Stage,
    /// That it is not, if nobody holds it.
    Unstage,
    /// That it does not exist.
    Remove,
    /// That it has this size.
    Resize(Bytes),
    /// That what somebody else has made of that name is ours.
    Adopt(AdoptRequest),
    /// That nothing half done is left of it.
    Recover,
    /// That it is not this node's any more, which somebody says is gone.
    Evict(NodeId),
}

impl Goal {
    /// Its name in logs and crash points.
    pub fn word(&self) -> &'static str {
        match self {
            Goal::Create { .. } => "create",
            Goal::Attach => "attach",
            Goal::Stage => "stage",
            Goal::Unstage => "unstage",
            Goal::Remove => "remove",
            Goal::Resize(_) => "resize",
            Goal::Adopt(_) => "adopt",
            Goal::Recover => "recover",
            Goal::Evict(_) => "evict",
        }
    }
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Ask the platform about the volume.
    Inspect,
    /// Ask the kernel what is mounted at its place.
    LookAtMount,
    /// Write down what is going to be done.
    Record,
    /// Make its storage, blank, under a temporary name.
    Allocate,
    /// Look at what is on the new storage.
    ProbeNew,
    /// Write down that it will be formatted.
    Formatting,
    /// Make the filesystem, or fill the storage with a copy of one.
    Format,
    /// Give the finished storage its name.
    Publish,
    /// Become the one node that may write to it.
    Own,
    /// Write down on the platform by which clients this node writes, before anything is read or written.
    Name,
    /// Find out whether what is mounted is this node's still.
    Confirm,
    /// Give it up for other nodes.
    GiveUp,
    /// Take it from a node, for nobody.
    Evict(NodeId),
    /// Make its device appear.
    Attach,
    /// Make its storage larger, and its device if it is here.
    Expand(Bytes),
    /// Have its filesystem fill its device.
    Grow,
    /// Write down that it does.
    Grown,
    /// Repair the filesystem.
    Check,
    /// Mount it, if what is on the device is what must be there.
    Mount,
    /// Write down that it is mounted, or attached.
    Commit,
    /// Unmount it.
    Unmount(DeviceNumber),
    /// Find out who keeps it.
    WhoUses(DeviceNumber),
    /// Make its device go.
    Detach(Option<DeviceNumber>),
    /// Write down that nothing of it is here any more.
    Release,
    /// Remove it, or what is left of it.
    Remove,
    /// Finish or undo what a crash left.
    Recover,
    /// Ask the platform for something of that name that is not ours.
    LookForStranger,
    /// Look at what is at the root of its filesystem.
    LookInside(FsKind),
    /// Give the filesystem of a copy a UUID of its own.
    Renew,
    /// Make it ours; holders are given this folder of it.
    Adopt(Option<RootPath>),
    /// Destroy it.
    Discard,
    /// It is as wanted.
    Done(Outcome),
    /// It cannot be.
    Refuse(Error),
}

impl Step {
    /// Its name in logs and crash points.
    pub fn word(&self) -> &'static str {
        match self {
            Step::Inspect => "inspect",
            Step::LookAtMount => "look",
            Step::Record => "record",
            Step::Allocate => "allocate",
            Step::ProbeNew => "probe-new",
            Step::Formatting => "formatting",
            Step::Format => "format",
            Step::Publish => "publish",
            Step::Own => "own",
            Step::Name => "name",
            Step::Confirm => "confirm",
            Step::GiveUp => "give-up",
            Step::Evict(_) => "evict",
            Step::Attach => "attach",
            Step::Expand(_) => "expand",
            Step::Grow => "grow",
            Step::Grown => "grown",
            Step::Check => "check",
            Step::Mount => "mount",
            Step::Commit => "commit",
            Step::Unmount(_) => "unmount",
            Step::WhoUses(_) => "who-uses",
            Step::Detach(_) => "detach",
            Step::Release => "release",
            Step::Remove => "remove",
            Step::Recover => "recover",
            Step::LookForStranger => "look-for-stranger",
            Step::LookInside(_) => "look-inside",
            Step::Renew => "renew",
            Step::Adopt(_) => "adopt",
            Step::Discard => "discard",
            Step::Done(_) => "done",
            Step::Refuse(_) => "refuse",
        }
    }
}

/// What came of a goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Goal::Create`].
    Created(CreateAction),
    /// Of [`Goal::Attach`]: and the device node.
    Attached(AttachAction, PathBuf),
    /// Of [`Goal::Stage`].
    Staged(MountAction),
    /// Of [`Goal::Unstage`]: gone, or not there before.
    Unstaged(ReleaseAction),
    /// Of [`Goal::Unstage`]: somebody holds it after all.
    StillHeld,
    /// Of [`Goal::Unstage`]: unmounted here; a copy of the mount in another namespace keeps the device.
    Lingering(Vec<Process>),
    /// Of [`Goal::Remove`].
    Removed(RemoveAction),
    /// Of [`Goal::Resize`].
    Resized(ResizeAction),
    /// Of [`Goal::Adopt`].
    Adopted(AdoptAction),
    /// Of [`Goal::Recover`]: what was done, if anything.
    Recovered(Option<String>),
    /// Of [`Goal::Evict`].
    Evicted,
}

/// What the ledger says is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The device.
    pub device: DeviceNumber,
    /// The kernel's number of the mount.
    pub mount_id: u64,
}

/// What is known so far. `None` is "not looked yet".
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // each field is what the step of its name brought
pub struct Facts {
    /// From the ledger, before every step: those who want it mounted, those who want the device alone, and what there is.
    pub holders: usize,
    pub attachers: usize,
    pub staged: Option<Staged>,
    pub kept: Option<DeviceNumber>,
    pub intended: bool,
    /// The caller does not want it any more.
    pub cancelled: bool,
    /// Other nodes can attach it, too.
    pub shared: bool,
    /// A process stands between what is mounted and its data.
    pub carried: bool,

    pub volume: Option<Option<VolumeInfo>>,
    pub at: Option<Option<MountedAt>>,
    /// What is mounted has its data in its place, by the kernel's own word: the platform need not be asked for it.
    pub in_place: bool,
    /// A volume's record, or its removal, was asked of the platform.
    pub provision_tried: bool,
    pub recorded: bool,
    pub allocated: bool,
    /// Its new storage is attached.
    pub attached_new: bool,
    pub probed_new: Option<Probe>,
    pub formatting: bool,
    pub formatted: bool,
    pub published: bool,
    /// The platform was asked to make it this node's: its record may say so whatever came back.
    pub own_tried: bool,
    pub owned: bool,
    pub named: bool,
    pub confirmed: bool,
    pub given_up: bool,
    pub evicted: bool,
    pub attached: Option<Attached>,
    pub expanded: bool,
    /// When its filesystem can grow, on this node.
    pub growth: Option<Growth>,
    /// It was grown, and that was written down; or why not.
    pub grew: Option<Result<()>>,
    pub grown: Option<Result<()>>,
    /// What a mount found instead of what must be there, or with errors.
    pub probe: Option<Probe>,
    pub checked: bool,
    pub mount_tried: bool,
    pub mounted: Option<MountedAt>,
    pub committed: bool,
    pub unmounted: Option<Unmounted>,
    pub users: Option<Vec<Process>>,
    pub detached: Option<Detached>,
    pub released: bool,
    pub removed: Option<RemoveAction>,
    pub recovered: Option<Option<String>>,
    pub stranger: Option<Option<Stranger>>,
    pub inside: Option<Vec<String>>,
    pub renewed: bool,
    pub adopted: bool,
    pub discarded: bool,

    /// The first step that failed. From then on the plan undoes.
    pub failure: Option<Error>,
    /// A step of the undoing failed: leave the rest to the next start.
    pub undo_failed: bool,
}

/// The next step towards `goal`.
pub fn next(goal: &Goal, facts: &Facts) -> Step {
    match goal {
        Goal::Create { asked, endpoint, source, .. } => create(asked, endpoint, source.is_some(), facts),
        Goal::Attach => attach::attach(facts),
        Goal::Stage => stage(facts),
        Goal::Unstage => unstage(facts),
        Goal::Remove => remove(facts),
        Goal::Resize(size) => resize::resize(*size, facts),
        Goal::Adopt(wanted) => adopt::adopt(wanted, facts),
        Goal::Recover => recover(facts),
        Goal::Evict(node) => match &facts.failure {
            // Half of it is our claim, which is given up, or taken up again by the next who says so.
            Some(error) => Step::Refuse(error.clone()),
            None if facts.evicted => Step::Done(Outcome::Evicted),
            None => Step::Evict(node.clone()),
        },
    }
}

fn cancelled() -> Error {
    Error::unavailable("the daemon is stopping", "ask again when it runs")
}

fn create(asked: &PartialSpec, endpoint: &EndpointName, new: bool, f: &Facts) -> Step {
    if f.published {
        // It is there, whatever becomes of the rest; what could not be given up is owed.
        let give_up = must_give_up(f) && f.failure.is_none();
        return if give_up { Step::GiveUp } else { Step::Done(Outcome::Created(CreateAction::Created)) };
    }
    if let Some(error) = f.failure.clone().or_else(|| f.cancelled.then(cancelled)) {
        return undo_create(f, error);
    }
    let Some(found) = &f.volume else { return Step::Inspect };
    let whole = matches!(found, Some(VolumeInfo { state: VolumeState::Ready | VolumeState::Damaged, .. }));
    if !whole && !f.recorded {
        match f.at {
            None => return Step::LookAtMount,
            // A new one in its place would be taken for it, and the mount for one that may go.
            Some(Some(there)) => return Step::Refuse(last_copy(there.device)),
            Some(None) => {}
        }
    }
    match found {
        Some(info) if !f.recorded => match info.state {
            // Another node has finished it while we waited for it.
            VolumeState::Ready if must_give_up(f) => Step::GiveUp,
            VolumeState::Ready if new => Step::Refuse(Error::new(
                Kind::ExistsIncompatible,
                "there is a volume of that name",
                "choose another name; or remove it first ('dunnage volume rm'), if nobody needs it",
            )),
            VolumeState::Ready => existing(asked, endpoint, info),
            // Half made or half removed by a run that crashed: nobody makes it now, for we have its lane, and of those that others
            // could make, its record.
            VolumeState::Creating | VolumeState::Removing if f.removed.is_some() => Step::Record,
            VolumeState::Creating | VolumeState::Removing if f.shared => match &f.detached {
                _ if !f.owned => Step::Own,
                None => Step::Detach(None),
                Some(Detached::Lingering) => Step::Refuse(still_in_use("create it again")),
                Some(_) => Step::Remove,
            },
            VolumeState::Creating | VolumeState::Removing => Step::Remove,
            VolumeState::Damaged => Step::Refuse(damaged(info)),
        },
        // A device of an earlier volume of that name would be taken for the new one's.
        _ if !f.recorded && f.shared && f.detached.is_none() => Step::Detach(None),
        _ if !f.recorded && f.detached == Some(Detached::Lingering) => Step::Refuse(still_in_use("create it again")),
        _ if !f.recorded => Step::Record,
        _ if !f.allocated => Step::Allocate,
        // Law 6: we can be cut off before anything is read from it.
        _ if f.attached_new && f.shared && !f.named => Step::Name,
        _ => match &f.probed_new {
            None => Step::ProbeNew,
            // Law 5: mkfs on a proven blank only.
            Some(Probe::Blank) if !f.formatting => Step::Formatting,
            Some(Probe::Blank) if !f.formatted => Step::Format,
            Some(Probe::Blank) if f.attached_new && f.detached.is_none() => Step::Detach(None),
            Some(Probe::Blank) if f.detached == Some(Detached::Lingering) => undo_create(f, still_in_use("create it again")),
            Some(Probe::Blank) => Step::Publish,
            // Not even looked into any further: it is this run's own, and goes with its record.
            Some(other) => undo_create(f, not_blank(other)),
        },
    }
}

fn undo_create(f: &Facts, error: Error) -> Step {
    match (f.recorded, &f.removed, f.undo_failed) {
        // It may have been made, and by another node: only its owner may tell.
        (false, ..) if f.shared => Step::Refuse(error),
        (false, ..) => after_recovery(f, error),
        // Nobody was told of it, so nothing of it may stay.
        (true, None, false) => match f.detached {
            None if f.shared => Step::Detach(None),
            Some(Detached::Lingering) => Step::Refuse(error),
            _ => Step::Remove,
        },
        _ => Step::Refuse(error),
    }
}

/// What this run has made or removed is half done, or may be, and nobody is told of it as that.
pub(crate) fn must_recover(goal: &Goal, f: &Facts) -> bool {
    let half_made = match goal {
        Goal::Create { .. } => f.shared && !f.published && (!f.recorded || f.removed.is_none()),
        Goal::Adopt(_) => f.shared && !f.adopted && f.recovered.is_none(),
        _ => false,
    };
    f.provision_tried && (f.undo_failed || half_made)
}

/// A record or a removal that failed may have been made, or half of it: what it left is finished or undone first.
fn after_recovery(f: &Facts, error: Error) -> Step {
    if f.provision_tried && f.recovered.is_none() && !f.undo_failed { Step::Recover } else { Step::Refuse(error) }
}

fn existing(asked: &PartialSpec, endpoint: &EndpointName, info: &VolumeInfo) -> Step {
    if info.endpoint != *endpoint {
        return Step::Refuse(Error::new(
            Kind::ExistsIncompatible,
            format!("it exists, and belongs to endpoint {}", info.endpoint),
            format!("ask endpoint {} for it, choose another name, or give it to this one with 'dunnage volume adopt'", info.endpoint),
        ));
    }
    let differs = asked.differences(&info.spec);
    if differs.is_empty() {
        return Step::Done(Outcome::Created(CreateAction::AlreadyThere));
    }
    Step::Refuse(Error::new(
        Kind::ExistsIncompatible,
        format!("it exists with another {}", differs.join(", another ")),
        "leave out what differs to use it as it is, or choose another name",
    ))
}

fn stage(f: &Facts) -> Step {
    let failure = f.failure.clone().or_else(|| (f.cancelled && !f.committed).then(cancelled));
    if let Some(error) = failure {
        return undo_stage(f, error);
    }
    let Some(at) = f.at else { return Step::LookAtMount };
    if let (Some(there), Some(staged)) = (at, f.staged)
        && there.device == staged.device
    {
        // What another node has taken is mounted here still, and dead; so is that whose carrier has died.
        let joined = || Step::Done(Outcome::Staged(MountAction::Joined));
        return if (f.shared || f.carried) && !f.confirmed { Step::Confirm } else { joined() };
    }
    let info = match &f.volume {
        None => return Step::Inspect,
        Some(info) => match ready(info.as_ref()) {
            Ok(info) => info,
            Err(step) => return step,
        },
    };
    let Some(uuid) = info.fs_uuid else { return Step::Refuse(damaged(info)) };
    if !f.recorded {
        return Step::Record;
    }
    // Law 6: whoever else could write is cut off before the device is here, and we can be before anything is read from it.
    if f.shared && !f.owned {
        return Step::Own;
    }
    let Some(attached) = &f.attached else { return Step::Attach };
    if f.shared && !f.named {
        return Step::Name;
    }
    if let Some(there) = at {
        // Mounted, and the ledger does not know: it is ours if it is our device, and nobody's to touch if not.
        return if there.device != attached.number {
            undo_stage(f, foreign_mount(there.device))
        } else if !f.committed {
            Step::Commit
        } else {
            Step::Done(Outcome::Staged(MountAction::Joined))
        };
    }
    if f.mounted.is_none()
        && let Some(step) = resize::growing(info, f, Growth::Unmounted)
    {
        return step;
    }
    // Law 5: a mount that finds something else has done nothing, and says what it found.
    match &f.probe {
        Some(Probe::Known(known)) if known.uuid == uuid && known.fs == info.spec.fs => {
            // A dirty journal is mount(2)'s to replay; only the kernel's own error mark brings us here.
            return if f.checked { undo_stage(f, still_has_errors()) } else { Step::Check };
        }
        Some(other) => return undo_stage(f, not_what_was_recorded(&other.signature())),
        None => {}
    }
    if f.mounted.is_none() {
        Step::Mount
    } else if !f.committed {
        Step::Commit
    } else {
        resize::growing(info, f, Growth::Mounted).unwrap_or(Step::Done(Outcome::Staged(MountAction::Mounted)))
    }
}

/// The volume, if it can be used.
fn ready(found: Option<&VolumeInfo>) -> Result<&VolumeInfo, Step> {
    let Some(info) = found else {
        return Err(Step::Refuse(Error::not_found("there is no volume of that name", "create it first")));
    };
    match info.state {
        VolumeState::Ready => Ok(info),
        VolumeState::Damaged => Err(Step::Refuse(damaged(info))),
        VolumeState::Creating | VolumeState::Removing => {
            let detail = format!("it is {}: a create or a removal of it was interrupted", info.state);
            Err(Step::Refuse(Error::not_found(detail, "create it again")))
        }
    }
}

fn undo_stage(f: &Facts, error: Error) -> Step {
    if f.undo_failed || !f.recorded || f.released {
        return Step::Refuse(error);
    }
    let device = f.attached.as_ref().map(|attached| attached.number);
    // A mount that was tried may have been made, whatever came back.
    match (device, &f.unmounted) {
        (Some(device), None) if f.mount_tried && f.probe.is_none() => return Step::Unmount(device),
        (_, Some(Unmounted::Busy | Unmounted::Foreign(_))) => return Step::Refuse(error),
        _ => {}
    }
    // What is mounted here lives on its device. (A loop of our image that we found is ours to let go of too: a superblock
    // on it, in whatever namespace, keeps it.)
    let lives_on = f.at.flatten().map(|there| there.device);
    if lives_on.is_some() && device.is_none_or(|device| lives_on == Some(device)) {
        return Step::Refuse(error); // an earlier run mounted it: that stays written down
    }
    if f.detached.is_none() && f.attachers == 0 {
        return Step::Detach(device);
    }
    if f.detached == Some(Detached::Lingering) {
        return Step::Refuse(error); // and stays written down
    }
    if must_give_up(f) && f.attachers == 0 {
        return Step::GiveUp;
    }
    Step::Release
}

fn is_detached(f: &Facts) -> bool {
    matches!(f.detached, Some(Detached::Done | Detached::Killed | Detached::NotThere))
}

/// Other nodes wait for it, or will: this run, or an earlier one whose device it has detached, may have made it this node's.
pub(crate) fn must_give_up(f: &Facts) -> bool {
    let detached = match f.detached {
        Some(Detached::Done | Detached::Killed) => true,
        // A detach that failed may have been done, and the next one found nothing more.
        Some(Detached::NotThere) => f.failure.is_some(),
        Some(Detached::Lingering) | None => false,
    };
    f.shared && (f.own_tried || detached) && !f.given_up
}

fn foreign_mount(device: DeviceNumber) -> Error {
    Error::in_use(
        vec![format!("device {device}")],
        HERE,
        "another device is mounted where it belongs",
        "find out what mounted it, and unmount it",
    )
}

fn unstage(f: &Facts) -> Step {
    // A holder that came while we waited wins, until the unmount is done. (What others can have and is not mounted and detached here is
    // given up first, by who has seen that it was detached in order.)
    let on_its_way = f.shared && f.at == Some(None) && is_detached(f);
    if f.holders > 0 && f.unmounted.is_none() && !on_its_way {
        return Step::Done(Outcome::StillHeld);
    }
    match (&f.failure, &f.unmounted) {
        // That it is busy is what matters, even when nobody can say by whom.
        (Some(_), Some(Unmounted::Busy)) => return Step::Refuse(busy(f.users.as_deref().unwrap_or_default())),
        (Some(error), _) => return Step::Refuse(error.clone()),
        (None, _) => {}
    }
    let Some(at) = f.at else { return Step::LookAtMount };
    if f.volume.is_none() && !f.in_place {
        return Step::Inspect;
    }
    let gone = f.volume == Some(None);
    let damaged = matches!(&f.volume, Some(Some(info)) if info.state == VolumeState::Damaged);
    let device = at.map(|there| there.device).or(f.staged.map(|staged| staged.device)).or(f.kept);
    if let Some(there) = at {
        // The last copy: what is mounted may be all that is left of the data.
        if gone || damaged {
            return Step::Refuse(last_copy(there.device));
        }
        if f.unmounted.is_none() && f.staged.is_none_or(|staged| staged.device != there.device) {
            // Not known to the ledger: only what is proven to be this volume's device is ours to unmount.
            match &f.attached {
                None if f.shared && !f.owned => return Step::Own,
                None => return Step::Attach,
                Some(attached) if attached.number != there.device => {
                    // Attached only to tell them apart.
                    let ours = !attached.found && f.detached.is_none();
                    return if ours { Step::Detach(Some(attached.number)) } else { Step::Refuse(foreign_mount(there.device)) };
                }
                Some(_) => {}
            }
        }
        if !f.recorded {
            return Step::Record;
        }
        match &f.unmounted {
            None => return Step::Unmount(there.device),
            Some(Unmounted::Busy) => {
                return match &f.users {
                    None => Step::WhoUses(there.device),
                    Some(users) => Step::Refuse(busy(users)),
                };
            }
            Some(Unmounted::Foreign(other)) => {
                return Step::Refuse(Error::internal(format!("device {other} is mounted where {} was", there.device)));
            }
            Some(Unmounted::Done | Unmounted::NotThere) => {}
        }
    }
    if f.attachers > 0 {
        // Somebody wants the device; nobody the mount.
        let nothing = at.is_none() && f.staged.is_none() && !f.intended;
        return if nothing || f.released { Step::Done(Outcome::StillHeld) } else { Step::Release };
    }
    match &f.detached {
        None => Step::Detach(device),
        Some(Detached::Lingering) => match (&f.users, device) {
            (None, Some(device)) => Step::WhoUses(device),
            (users, _) => Step::Done(Outcome::Lingering(users.clone().unwrap_or_default())),
        },
        Some(_) if f.shared && !f.given_up => Step::GiveUp,
        Some(_) if !f.released => Step::Release,
        Some(Detached::NotThere) if at.is_none() => Step::Done(Outcome::Unstaged(ReleaseAction::NotThere)),
        Some(_) => Step::Done(Outcome::Unstaged(ReleaseAction::Released)),
    }
}

fn remove(f: &Facts) -> Step {
    if let Some(error) = &f.failure {
        return match after_recovery(f, error.clone()) {
            // What was not removed is others' to use.
            Step::Refuse(_) if must_give_up(f) && is_detached(f) && !f.undo_failed => Step::GiveUp,
            step => step,
        };
    }
    if let Some(action) = f.removed {
        return Step::Done(Outcome::Removed(action));
    }
    let Some(at) = f.at else { return Step::LookAtMount };
    if f.holders > 0 || f.attachers > 0 || at.is_some() {
        let detail = if f.attachers > 0 { "it is attached on this node" } else { "it is mounted on this node" };
        return Step::Refuse(Error::in_use(Vec::new(), HERE, detail, "end what uses it, then remove it"));
    }
    match &f.volume {
        None => Step::Inspect,
        Some(None) => Step::Done(Outcome::Removed(RemoveAction::NotThere)),
        Some(Some(info)) if info.state == VolumeState::Damaged => Step::Refuse(damaged(info)),
        Some(Some(_)) if f.shared && !f.owned => Step::Own,
        Some(Some(_)) if f.shared && f.detached.is_none() => Step::Detach(None),
        Some(Some(_)) if f.detached == Some(Detached::Lingering) => Step::Refuse(still_in_use("remove it")),
        Some(Some(_)) => Step::Remove,
    }
}

fn recover(f: &Facts) -> Step {
    match (&f.failure, &f.recovered) {
        (Some(_), _) if must_give_up(f) && is_detached(f) && !f.undo_failed => Step::GiveUp,
        (Some(error), _) => Step::Refuse(error.clone()),
        (None, None) if f.shared => recover_shared(f),
        (None, None) => Step::Recover,
        (None, Some(_)) if must_give_up(f) => Step::GiveUp,
        (None, Some(done)) => Step::Done(Outcome::Recovered(done.clone())),
    }
}

/// Another node may be making it just now.
fn recover_shared(f: &Facts) -> Step {
    match &f.volume {
        None => Step::Inspect,
        Some(Some(VolumeInfo { state: VolumeState::Creating | VolumeState::Removing, .. })) => match &f.detached {
            _ if !f.owned => Step::Own,
            None => Step::Detach(None),
            Some(Detached::Lingering) => Step::Refuse(still_in_use("undo it")),
            Some(_) => Step::Recover,
        },
        // Another node has finished or undone it.
        Some(Some(_)) if must_give_up(f) => Step::GiveUp,
        Some(_) => Step::Done(Outcome::Recovered(None)),
    }
}

fn still_in_use(then: &str) -> Error {
    Error::in_use(Vec::new(), HERE, "its device is in use on this node", format!("end what uses it, then {then}"))
}

fn not_blank(found: &Probe) -> Error {
    let signature = found.signature();
    let detail = format!("its new storage is not blank: there is {signature} on it");
    Error::new(Kind::NotBlank { signature }, detail, "nothing was written; look at the pool's disk")
}

fn not_what_was_recorded(found: &str) -> Error {
    Error::new(
        Kind::NotBlank { signature: found.to_owned() },
        format!("its device has {found} on it, and not the filesystem that was recorded"),
        "nothing was written; find out who changed it, and restore the image from a backup if need be",
    )
}

fn still_has_errors() -> Error {
    Error::unavailable(
        "its filesystem has errors that a check has not mended",
        "keep a copy of the volume, then run 'e2fsck -f' on it by hand",
    )
}

fn damaged(info: &VolumeInfo) -> Error {
    let why = info.why.as_deref().unwrap_or("its record and its data do not agree");
    Error::unavailable(format!("it is damaged: {why}"), "put its data back where it was; nothing was changed")
}

/// The error for a volume that the platform does not have, and that is mounted.
pub(crate) fn last_copy(device: DeviceNumber) -> Error {
    let rescue = match device.folder {
        None => format!("cp --sparse=always /dev/loop{} /a/safe/place", device.minor),
        Some(_) => "cp -a from where it is mounted to a safe place".to_owned(),
    };
    Error::unavailable(
        "its data is gone from the platform, and what is mounted is the last copy: it is not unmounted",
        format!("rescue it first: {rescue}"),
    )
}

fn busy(users: &[Process]) -> Error {
    let who: Vec<String> = users.iter().filter(|user| !user.namespace_only).map(ToString::to_string).collect();
    let detail = if who.is_empty() { "something on this node uses it, and cannot be found" } else { "processes on this node use it" };
    Error::in_use(who, HERE, detail, "end them; it is unmounted as soon as they have gone")
}

#[cfg(test)]
mod tests;
