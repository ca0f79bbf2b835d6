//! Making a volume larger: its storage and its device at once, its filesystem when that can be.

use dunnage_host::{Detached, Growth};
use dunnage_model::{Access, Bytes, Error, ResizeAction, VolumeInfo};

use super::{Facts, Outcome, Step, cancelled, foreign_mount, must_give_up, ready};

pub(super) fn resize(size: Bytes, f: &Facts) -> Step {
    // What is longer stays so: from there on it only goes forward.
    let failure = f.failure.clone().or_else(|| (f.cancelled && !f.expanded).then(cancelled));
    if let Some(error) = failure {
        return let_go(f).unwrap_or(Step::Refuse(error));
    }
    let Some(at) = f.at else { return Step::LookAtMount };
    let info = match &f.volume {
        None => return Step::Inspect,
        Some(info) => match ready(info.as_ref()) {
            Ok(info) => info,
            Err(step) => return let_go(f).unwrap_or(step),
        },
    };
    let here = at.is_some() || f.kept.is_some();
    if !f.expanded {
        if size == info.spec.size && !info.growing {
            return let_go(f).unwrap_or(Step::Done(Outcome::Resized(ResizeAction::AlreadyThere)));
        }
        if let Some(error) = cannot(size, info) {
            return let_go(f).unwrap_or(Step::Refuse(error));
        }
        if let Some(there) = at.filter(|there| f.staged.is_none_or(|staged| staged.device != there.device)) {
            return Step::Refuse(foreign_mount(there.device));
        }
        // Law 6: what others could have is this node's before it is touched, or never was another's since it is here.
        return match here {
            true if (f.shared || (f.carried && at.is_some())) && !f.confirmed => Step::Confirm,
            false if f.shared && !f.owned => Step::Own,
            _ => Step::Expand(size),
        };
    }
    // Of what is not mounted here the filesystem grows with its next mount.
    let now = if at.is_some() { Growth::Mounted } else { Growth::Always };
    if let Some(step) = growing(info, f, now) {
        return step;
    }
    if let Some(Err(error)) = f.grew.as_ref().or(f.grown.as_ref()) {
        return let_go(f).unwrap_or(Step::Refuse(error.clone()));
    }
    let action = if info.growing { ResizeAction::GrowsWithMount } else { ResizeAction::Grown };
    let_go(f).unwrap_or(Step::Done(Outcome::Resized(action)))
}

fn cannot(size: Bytes, info: &VolumeInfo) -> Option<Error> {
    let now = info.spec.size;
    if now == Bytes(0) {
        return Some(Error::invalid("size", "it is a folder, and has no size", "leave it as it is: it has the room that its disk has"));
    }
    if size < now {
        let detail = format!("it has {now}, and no volume becomes smaller: what lies beyond {size} would be lost");
        return Some(Error::invalid("size", detail, "make a smaller volume, and copy the data into it"));
    }
    if info.spec.access == Access::ManyReaders {
        let detail = "it is read-only, and so nobody could use more room";
        return Some(Error::invalid("size", detail, "make a larger volume, and copy the data into it"));
    }
    info.spec.fs.refuse_above(size).err()
}

/// The next step of a filesystem that is behind its device, if one can be taken now: at a moment when those of this growth can grow. What
/// fails keeps nobody from the volume, which has the size that it had; the next mount tries again.
pub(super) fn growing(info: &VolumeInfo, f: &Facts, now: Growth) -> Option<Step> {
    if !info.growing || f.grown.is_some() {
        return None;
    }
    match (f.growth, &f.grew) {
        (Some(Growth::Always), _) | (_, Some(Ok(()))) => Some(Step::Grown),
        (growth, None) if growth == Some(now) => Some(Step::Grow),
        _ => None,
    }
}

/// It was made this node's for this alone.
fn let_go(f: &Facts) -> Option<Step> {
    let here = f.at.flatten().is_some() || f.kept.is_some();
    if f.undo_failed || here || !must_give_up(f) {
        return None;
    }
    match f.detached {
        None => Some(Step::Detach(None)),
        Some(Detached::Lingering) => None,
        Some(_) => Some(Step::GiveUp),
    }
}
