//! Taking what somebody else has made: looked at first, never written to, but for the UUID of a copy.

use dunnage_driver::{Adoption, Stranger};
use dunnage_host::{Detached, Probe};
use dunnage_model::{AdoptAction, EndpointName, Error, Kind, RootPath, VolumeInfo, VolumeState};

use super::{Facts, Outcome, Step, damaged, must_give_up};

/// What is wanted with a stranger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptRequest {
    /// Who will list it.
    pub endpoint: EndpointName,
    /// The folder inside that holders are given; found out when nothing is said.
    pub root_path: Option<RootPath>,
    /// A volume of ours goes from its endpoint to this one. Only a person may ask for that.
    pub moves: bool,
    /// What is there may be destroyed: a person has said so by name.
    pub overwrite: bool,
}

pub(super) fn adopt(wanted: &AdoptRequest, f: &Facts) -> Step {
    if f.adopted {
        // It is, whatever becomes of the rest; what could not be given up is owed.
        let moved = f.volume.iter().flatten().any(|info| info.state == VolumeState::Ready);
        let done = if moved { AdoptAction::Moved } else { AdoptAction::Adopted };
        let give_up = must_give_up(f) && f.failure.is_none();
        return if give_up { Step::GiveUp } else { Step::Done(Outcome::Adopted(done)) };
    }
    if let Some(error) = &f.failure {
        return undo(f, error);
    }
    let volume = match &f.volume {
        None => return Step::Inspect,
        Some(volume) => volume.as_ref(),
    };
    if let Some(info) = volume.filter(|info| info.state == VolumeState::Ready) {
        return of_ours(wanted, info);
    }
    // What a run has left half done that does not come back is undone first.
    let half = matches!(volume, Some(VolumeInfo { state: VolumeState::Creating | VolumeState::Removing, .. }));
    if f.shared && half && !f.recorded && f.recovered.is_none() {
        return super::recover_shared(f);
    }
    let stranger = match &f.stranger {
        None => return Step::LookForStranger,
        Some(None) => return Step::Refuse(no_stranger(volume)),
        Some(Some(stranger)) => stranger,
    };
    if wanted.overwrite {
        return match f.at {
            None => Step::LookAtMount,
            Some(Some(there)) => Step::Refuse(super::last_copy(there.device)),
            Some(None) if f.discarded => Step::Done(Outcome::Adopted(AdoptAction::Discarded)),
            Some(None) => Step::Discard,
        };
    }
    let Probe::Known(known) = &stranger.found else { return Step::Refuse(not_a_filesystem(stranger)) };
    let (copy, looks) = (stranger.copy_of.is_some() && !f.renewed, wanted.root_path.is_none());
    // What others could take is this node's own before it is touched; what they could not is written to as it lies there.
    if copy && !f.shared {
        return Step::Renew;
    }
    if !f.recorded && (f.shared || looks) {
        return Step::Record;
    }
    if f.shared && !f.owned {
        return Step::Own;
    }
    if f.attached.is_none() && (copy || looks) {
        return Step::Attach;
    }
    if f.shared && f.attached.is_some() && !f.named {
        return Step::Name;
    }
    if copy {
        return Step::Renew;
    }
    let root_path = match (&wanted.root_path, &f.inside) {
        (Some(path), _) => Some(path.clone()),
        (None, None) => return Step::LookInside(known.fs),
        (None, Some(names)) => detected(names),
    };
    match let_go(f) {
        Some(step) => step,
        // What another node could have is not adopted while something here uses it.
        None if f.shared && f.detached == Some(Detached::Lingering) => Step::Refuse(super::still_in_use("adopt it again")),
        None => Step::Adopt(root_path.filter(|path| !path.is_root())),
    }
}

/// It is attached only to be looked into.
fn let_go(f: &Facts) -> Option<Step> {
    match &f.attached {
        // Of a device that others could have nobody else makes use here: it has no volume yet.
        Some(attached) if f.detached.is_none() && (f.shared || !attached.found) => Some(Step::Detach(Some(attached.number))),
        // What is left attached stays written down, for a sweep.
        _ if f.recorded && !f.shared && !f.released && f.staged.is_none() && f.detached != Some(Detached::Lingering) => Some(Step::Release),
        _ => None,
    }
}

fn undo(f: &Facts, error: &Error) -> Step {
    match let_go(f) {
        _ if f.undo_failed => Step::Refuse(error.clone()),
        Some(step) => step,
        // It is a stranger again; or it is adopted, and the last word of that was lost.
        // (What was only tried may be another node's by now: it is owed, and looked at by whom it belongs to.)
        None if f.shared && f.recorded && f.recovered.is_none() && f.detached != Some(Detached::Lingering) => Step::Recover,
        None if f.recovered.is_some() && must_give_up(f) => Step::GiveUp,
        None => Step::Refuse(error.clone()),
    }
}

/// REX-Ray gave containers the folder `data` of a volume: one that has nothing else was its.
fn detected(names: &[String]) -> Option<RootPath> {
    let mut others = names.iter().filter(|name| *name != "lost+found");
    match (others.next(), others.next()) {
        (Some(only), None) if only == "data" => only.parse().ok(),
        _ => None,
    }
}

/// It is a volume of ours already.
fn of_ours(wanted: &AdoptRequest, info: &VolumeInfo) -> Step {
    if wanted.overwrite {
        let detail = "it is a volume that Dunnage has made";
        return Step::Refuse(Error::new(Kind::ExistsIncompatible, detail, "remove it with 'dunnage volume rm', then create it"));
    }
    if info.endpoint == wanted.endpoint {
        Step::Done(Outcome::Adopted(AdoptAction::AlreadyThere))
    } else if wanted.moves {
        Step::Adopt(None)
    } else {
        let detail = format!("it belongs to endpoint {}", info.endpoint);
        let next = format!("ask endpoint {} for it; 'dunnage volume adopt' gives it to another", info.endpoint);
        Step::Refuse(Error::not_found(detail, next))
    }
}

fn no_stranger(volume: Option<&VolumeInfo>) -> Error {
    match volume {
        Some(info) if info.state == VolumeState::Damaged => damaged(info),
        Some(info) => Error::not_found(format!("it is {}", info.state), "create it again"),
        None => Error::not_found(
            "there is no volume of that name",
            "look at 'dunnage volume ls', and at 'dunnage volume adopt --all --dry-run'",
        ),
    }
}

fn not_a_filesystem(stranger: &Stranger) -> Error {
    let next = format!("nothing was changed; 'dunnage volume adopt --overwrite {}' destroys it and makes an empty volume", stranger.name);
    no_filesystem_on(&stranger.place, &stranger.found, next)
}

/// The error for something that is wanted with its data, and has no filesystem of a kind that we know.
pub(crate) fn no_filesystem_on(place: &str, found: &Probe, next: impl Into<String>) -> Error {
    let signature = found.signature();
    let detail = format!("{place} has {signature} on it, and no filesystem that can be mounted");
    Error::new(Kind::NotBlank { signature }, detail, next)
}

/// What the driver is told.
pub(crate) fn adoption(
    wanted: &AdoptRequest,
    stranger: Option<&Stranger>,
    root_path: Option<RootPath>,
    name: &dunnage_model::VolumeName,
    now: jiff::Timestamp,
) -> Adoption {
    let fs = stranger.and_then(|stranger| match &stranger.found {
        Probe::Known(known) => Some(known.clone()),
        _ => None,
    });
    Adoption { name: name.clone(), endpoint: wanted.endpoint.clone(), fs, root_path, adopted: now }
}
