//! One writer, fenced (law 6): what a node does next to own a volume that others can attach, given what it has seen. It does no
//! I/O.
//!
//! The platform has a record beside each volume, changed by compare-and-set. Safety rests on the order of four things, and on
//! nobody's clock:
//!
//! 1. *claim*: the record says who takes the volume, and from whom, before anything is cut off. Two takers cannot both be right.
//! 2. *fence*: the platform refuses the clients that could write until now, for good.
//! 3. *barrier*: every part of the platform that may be asked to write has heard of the fence.
//! 4. *own*: only now the record says whose it is; and what is attached then is written into it before anything is read or
//!    written through it. Who is written in can be cut off by the next.
//!
//! Clocks and silence only decide *whether* to take a volume from another node ([`liveness`]). A wrong decision costs that
//! node its volume, and nobody any data.

pub mod liveness;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use dunnage_driver::Versioned;
use dunnage_model::{Client, Error, Kind, NodeId, Owner, OwnerRecord, OwnerState, Preempt};

use liveness::Standing;

/// What is wanted, and what is known so far. `None` is "not looked yet".
#[derive(Debug, Clone)]
pub struct Claim {
    /// Who we are.
    pub me: Owner,
    /// Whether it is taken from another node.
    pub policy: Preempt,
    /// The clients by which this very node has it open.
    pub mine: BTreeSet<Client>,
    /// The record, as we read or wrote it last. The inner `None`: there is none.
    pub record: Option<Option<Versioned>>,
    /// Everybody who has the volume open on the platform, asked after the record was read.
    pub clients: Option<BTreeSet<Client>>,
    /// How the node that the record names stands.
    pub standing: Option<Standing>,
    /// It was taken from somebody not long ago: two that take it from each other would never end.
    pub restless: bool,
    /// Who was cut off since the record was read.
    pub fenced: BTreeSet<Client>,
    /// The barrier was passed since the last of them was.
    pub barrier: bool,
    /// Nobody waits any longer for a node that lives.
    pub impatient: bool,
}

impl Claim {
    /// Nothing is known yet.
    pub fn new(me: Owner, policy: Preempt, mine: BTreeSet<Client>) -> Claim {
        let (clients, fenced) = (None, BTreeSet::new());
        Claim { me, policy, mine, record: None, clients, standing: None, restless: false, fenced, barrier: false, impatient: false }
    }

    /// What was known of the record is out of date.
    pub fn forget(&mut self) {
        *self = Claim { impatient: self.impatient, ..Claim::new(self.me.clone(), self.policy, std::mem::take(&mut self.mine)) };
    }

    /// The record is now this one, by our own hand.
    pub fn wrote(&mut self, versioned: Versioned) {
        self.forget();
        self.record = Some(Some(versioned));
    }
}

/// The next thing to do for a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Read the record.
    Read,
    /// Ask the platform who has the volume open.
    ListClients,
    /// Find out how the node in the record stands.
    Observe,
    /// Change the record, if nobody did since it was read. (Or make it, if there was none.)
    Swap(OwnerRecord),
    /// Cut these off for good.
    Fence(BTreeSet<Client>),
    /// Wait until all of the platform has heard of it.
    Barrier,
    /// The volume may be let go of in a moment: look again then.
    Wait,
    /// It is ours: attach it. Or, of a release: it is ours no more.
    Done,
    /// It is not to be had.
    Refuse(Error),
}

/// The next move of a node that wants a volume.
pub fn next(claim: &Claim) -> Move {
    let Some(found) = &claim.record else { return Move::Read };
    let unclaimed = OwnerRecord::new();
    let record = found.as_ref().map_or(&unclaimed, |versioned| &versioned.record);
    match &record.state {
        OwnerState::Free => match strangers(claim, record, &BTreeSet::new()) {
            Err(ask) => ask,
            Ok(strangers) if strangers.is_empty() => Move::Swap(held(claim, record, record.epoch + 1, false)),
            Ok(strangers) => from_strangers(claim, record, strangers),
        },
        OwnerState::Held { owner, clients, .. } if *owner == claim.me => {
            let named = clients.clone().unwrap_or_default();
            // What is named and not here any more has died, and what it had sent may be on its way still.
            let died: BTreeSet<Client> = named.difference(&claim.mine).cloned().collect();
            if !died.is_empty() {
                return take(claim, record, died, false);
            }
            match strangers(claim, record, &named) {
                Err(ask) => ask,
                Ok(strangers) if strangers.is_empty() => Move::Done,
                Ok(strangers) => from_strangers(claim, record, strangers),
            }
        }
        OwnerState::Held { owner, clients, taken } => {
            let take = || take(claim, record, clients.clone().unwrap_or_default(), clients.is_none());
            // What an earlier run of this node could write with is cut off like anybody's.
            if owner.node == claim.me.node { take() } else { of_another(claim, owner, *taken, take) }
        }
        OwnerState::Fencing { by, victims, everybody } if *by == claim.me => {
            fence(claim, record, victims, *everybody, |record| held(claim, record, record.epoch, true))
        }
        // It has attached nothing yet, so there is nobody else to cut off than whom it was about to.
        OwnerState::Fencing { by, victims, everybody } => {
            let take = || take(claim, record, victims.clone(), *everybody);
            if by.node == claim.me.node { take() } else { of_another(claim, by, true, take) }
        }
    }
}

/// The next move of a node that has unmounted a volume and detached it. `closed` are those of its clients that have ended in order,
/// with every write of theirs answered: of all others something may be on its way, and they are cut off first.
pub fn release(claim: &Claim, closed: &BTreeSet<Client>) -> Move {
    let Some(found) = &claim.record else { return Move::Read };
    let Some(Versioned { record, .. }) = found else { return Move::Done };
    match &record.state {
        OwnerState::Held { owner, clients, .. } if *owner == claim.me => {
            let rest: BTreeSet<Client> = clients.iter().flatten().filter(|client| !closed.contains(*client)).cloned().collect();
            if rest.is_empty() { Move::Swap(record.with(OwnerState::Free)) } else { take(claim, record, rest, false) }
        }
        OwnerState::Fencing { by, victims, everybody } if *by == claim.me => {
            fence(claim, record, victims, *everybody, |record| record.with(OwnerState::Free))
        }
        // It was taken from us.
        _ => Move::Done,
    }
}

/// The next move of a node that cuts another one off because somebody has said so: what is that one's becomes nobody's.
pub fn evict(claim: &Claim, node: &NodeId) -> Move {
    let Some(found) = &claim.record else { return Move::Read };
    let Some(Versioned { record, .. }) = found else { return Move::Done };
    match &record.state {
        OwnerState::Held { owner, clients, .. } if owner.node == *node => {
            take(claim, record, clients.clone().unwrap_or_default(), clients.is_none())
        }
        OwnerState::Fencing { by, victims, everybody } if by.node == *node => take(claim, record, victims.clone(), *everybody),
        OwnerState::Fencing { by, victims, everybody } if *by == claim.me => {
            fence(claim, record, victims, *everybody, |record| record.with(OwnerState::Free))
        }
        _ => Move::Done,
    }
}

/// The record with the clients by which its owner writes from now on. `None`: it is not this node's any more, and whatever it
/// has attached must go unread.
pub fn named(me: &Owner, record: &OwnerRecord, clients: BTreeSet<Client>) -> Option<OwnerRecord> {
    match &record.state {
        OwnerState::Held { owner, clients: before, taken } if owner == me => {
            let clients = before.iter().flatten().cloned().chain(clients).collect();
            Some(record.with(OwnerState::Held { owner: me.clone(), clients: Some(clients), taken: *taken }))
        }
        _ => None,
    }
}

fn held(claim: &Claim, record: &OwnerRecord, epoch: u64, taken: bool) -> OwnerRecord {
    let state = OwnerState::Held { owner: claim.me.clone(), clients: None, taken };
    // Whoever was cut off and is not seen any more does not come back.
    let seen = |client: &&Client| claim.clients.as_ref().is_none_or(|clients| clients.contains(*client));
    let cut = record.cut.iter().filter(seen).cloned().collect();
    OwnerRecord { epoch, cut, ..record.with(state) }
}

fn take(claim: &Claim, record: &OwnerRecord, victims: BTreeSet<Client>, everybody: bool) -> Move {
    let state = OwnerState::Fencing { by: claim.me.clone(), victims, everybody };
    Move::Swap(OwnerRecord { epoch: record.epoch + 1, ..record.with(state) })
}

/// Who has the volume open and is neither known by the record nor us. (Who was cut off is seen for a while yet.)
fn strangers(claim: &Claim, record: &OwnerRecord, known: &BTreeSet<Client>) -> Result<BTreeSet<Client>, Move> {
    let clients = claim.clients.as_ref().ok_or(Move::ListClients)?;
    let expected = |client: &&Client| !claim.mine.contains(*client) && !known.contains(*client) && !record.cut.contains(*client);
    Ok(clients.iter().filter(expected).cloned().collect())
}

/// A client of nobody's is a person with the platform's own tools, or another program: it is asked to go, or cut off where
/// that is the policy.
fn from_strangers(claim: &Claim, record: &OwnerRecord, strangers: BTreeSet<Client>) -> Move {
    match claim.policy {
        Preempt::Always => take(claim, record, strangers, false),
        Preempt::Never | Preempt::IfDead => {
            let who = strangers.iter().map(|client| format!("client {client}")).collect();
            let kind = Kind::InUse { holders: who, node: "another".to_owned() };
            // A removal or an adoption takes nothing from anybody.
            let or_always = if claim.impatient { "" } else { ", or ask with preempt=always, which cuts it off" };
            let next = format!("find out what it is and end it{or_always}");
            Move::Refuse(Error::new(kind, "something that Dunnage knows nothing of has it open on the platform", next))
        }
    }
}

fn of_another(claim: &Claim, owner: &Owner, taken: bool, take: impl FnOnce() -> Move) -> Move {
    let dead = match claim.policy {
        Preempt::Never => false,
        Preempt::Always if !(taken && claim.restless) => return take(),
        Preempt::IfDead | Preempt::Always => match &claim.standing {
            None => return Move::Observe,
            Some(standing) => *standing == Standing::Dead,
        },
    };
    match (dead, claim.impatient) {
        (true, _) => take(),
        (false, false) => Move::Wait,
        (false, true) => Move::Refuse(in_use(claim, owner)),
    }
}

fn in_use(claim: &Claim, owner: &Owner) -> Error {
    let how = match (&claim.standing, claim.policy) {
        (_, Preempt::Never) => "has it, and preempt=never does not take it",
        (Some(Standing::Suspect), _) => "has it; its daemon is silent, and something there has it open still",
        _ => "has it, and lives",
    };
    let kind = Kind::InUse { holders: vec![format!("node {}", owner.node)], node: owner.node.to_string() };
    let next = format!("stop what uses it there, or, if that node is gone for good, run 'dunnage node fence {}'", owner.node);
    Error::new(kind, format!("node {} {how}", owner.node), next)
}

fn fence(
    claim: &Claim,
    record: &OwnerRecord,
    victims: &BTreeSet<Client>,
    everybody: bool,
    then: impl FnOnce(&OwnerRecord) -> OwnerRecord,
) -> Move {
    let mut all = victims.clone();
    if everybody {
        // Whoever opens it after this has found our record changed before it reads or writes a thing, and goes.
        match &claim.clients {
            None => return Move::ListClients,
            Some(clients) => all.extend(clients.iter().cloned()),
        }
    }
    let rest: BTreeSet<Client> = all.difference(&claim.fenced).cloned().collect();
    if !rest.is_empty() {
        return Move::Fence(rest);
    }
    // Without a victim there is nothing that could be on its way.
    if !all.is_empty() && !claim.barrier {
        return Move::Barrier;
    }
    let then = then(record);
    let cut = all.union(&then.cut).cloned().collect();
    Move::Swap(OwnerRecord { cut, ..then })
}
