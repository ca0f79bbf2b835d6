//! The device alone, for somebody who wants no mount.

use dunnage_host::Detached;
use dunnage_model::{AttachAction, Error};

use super::{Facts, Outcome, Step, cancelled, must_give_up, ready};

pub(super) fn attach(f: &Facts) -> Step {
    let failure = f.failure.clone().or_else(|| (f.cancelled && !f.committed).then(cancelled));
    if let Some(error) = failure {
        return undo(f, error);
    }
    let Some(at) = f.at else { return Step::LookAtMount };
    match &f.volume {
        None => return Step::Inspect,
        Some(info) => {
            if let Err(step) = ready(info.as_ref()) {
                return step;
            }
        }
    }
    if !f.recorded {
        return Step::Record;
    }
    if f.shared && !f.owned {
        return Step::Own;
    }
    let Some(attached) = &f.attached else { return Step::Attach };
    if f.shared && !f.named {
        return Step::Name;
    }
    if !f.committed {
        return Step::Commit;
    }
    let joined = attached.found && (at.is_some() || f.kept.is_some());
    let action = if joined { AttachAction::Joined } else { AttachAction::Attached };
    Step::Done(Outcome::Attached(action, attached.path.clone()))
}

fn undo(f: &Facts, error: Error) -> Step {
    let others = f.at.flatten().is_some() || f.kept.is_some();
    match &f.attached {
        // What others have mounted or attached stays; so does what we could not undo, for the next start.
        _ if f.undo_failed || !f.recorded || f.released || others => Step::Refuse(error),
        Some(attached) if f.detached.is_none() => Step::Detach(Some(attached.number)),
        None if f.detached.is_none() => Step::Detach(None),
        _ if f.detached == Some(Detached::Lingering) => Step::Refuse(error),
        _ if must_give_up(f) => Step::GiveUp,
        _ => Step::Release,
    }
}
