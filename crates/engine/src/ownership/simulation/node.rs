//! What a node does about a volume, move by move.

use dunnage_driver::SILENCE;

use super::*;

impl Sim {
    pub(super) fn drop_mount(&mut self, node: usize, volume: usize) {
        if let Some((client, _)) = self.nodes[node].mounted.remove(&volume) {
            self.dies(volume, &client);
        }
        if self.nodes[node].jobs.remove(&volume).is_some_and(|job| !job.unwanted) {
            self.wants(node, volume);
        }
    }

    /// A client that did not end in order is shown for a while.
    pub(super) fn dies(&mut self, volume: usize, client: &Client) {
        let until = self.now + WATCH;
        if let Some(open) = self.volumes[volume].open.get_mut(client) {
            *open = Some(until);
        }
    }

    pub(super) fn wants(&mut self, node: usize, volume: usize) {
        let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
        self.nodes[node].jobs.entry(volume).or_insert(Job { phase: Phase::Claiming(claim), waits_for: 0, unwanted: false });
        self.poll(node, volume, 1);
    }

    pub(super) fn poll(&mut self, node: usize, volume: usize, after: Time) {
        let life = self.nodes[node].life;
        self.at(self.now + after, Event::Poll { node, life, volume });
    }

    /// The next thing that a job does.
    pub(super) fn go_on(&mut self, node: usize, volume: usize) {
        let Some(Job { phase, unwanted, .. }) = self.nodes[node].jobs.get(&volume) else { return };
        let (phase, unwanted) = (phase.clone(), *unwanted);
        match phase {
            Phase::Claiming(_) if unwanted => {
                let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
                self.becomes(node, volume, Phase::Releasing(claim, BTreeSet::new()));
                self.poll(node, volume, 1);
            }
            Phase::Claiming(claim) => self.make(node, volume, &claim, None),
            Phase::Releasing(claim, closed) => self.make(node, volume, &claim, Some(&closed)),
            Phase::Opening(client) => self.ask(node, volume, Ask::Open(client)),
            Phase::Naming(_) => self.ask(node, volume, Ask::Read),
            Phase::Closing(client) => self.ask(node, volume, Ask::Close(client)),
            Phase::Mounted(client) if unwanted => {
                // Unmounted, flushed, and answered: what was on its way has arrived, or waits behind a cable.
                self.nodes[node].mounted.remove(&volume);
                if self.flying.contains_key(&client) {
                    self.poll(node, volume, 100);
                } else {
                    self.becomes(node, volume, Phase::Closing(client));
                    self.poll(node, volume, 1);
                }
            }
            Phase::Mounted(_) => {}
        }
    }

    pub(super) fn becomes(&mut self, node: usize, volume: usize, phase: Phase) {
        if let Some(job) = self.nodes[node].jobs.get_mut(&volume) {
            job.phase = phase;
        }
    }

    pub(super) fn make(&mut self, node: usize, volume: usize, claim: &Claim, closed: Option<&BTreeSet<Client>>) {
        let decided = match closed {
            None => next(claim),
            Some(closed) => release(claim, closed),
        };
        let expected = claim.record.as_ref().and_then(|found| found.as_ref().map(|found| found.revision));
        match decided {
            Move::Read => self.ask(node, volume, Ask::Read),
            Move::ListClients => self.ask(node, volume, Ask::ListClients),
            Move::Observe => self.ask(node, volume, Ask::Observe),
            Move::Swap(mut record) => {
                if let (Mistake::FenceFirst, OwnerState::Fencing { by, victims, .. }) = (self.mistake, &record.state) {
                    self.ask(node, volume, Ask::Fence(victims.clone()));
                    let state = OwnerState::Held { owner: by.clone(), clients: None, taken: true };
                    record = OwnerRecord { cut: victims.clone(), ..record.with(state) };
                    // The claim comes later, whatever the record says by then.
                    let expected = self.volumes[volume].found.as_ref().map(|found| found.revision);
                    self.ask(node, volume, Ask::Swap(expected, record));
                    return;
                }
                self.ask(node, volume, Ask::Swap(expected, record));
            }
            Move::Fence(_) | Move::Barrier if self.mistake == Mistake::LockAlone => self.pretend(node, volume, decided),
            Move::Barrier if self.mistake == Mistake::NoBarrier => self.pretend(node, volume, decided),
            Move::Fence(clients) => self.ask(node, volume, Ask::Fence(clients)),
            Move::Barrier => self.ask(node, volume, Ask::Barrier),
            Move::Wait => {
                self.forget(node, volume);
                self.poll(node, volume, 1_000);
            }
            Move::Done if closed.is_some() => {
                self.nodes[node].jobs.remove(&volume);
                if self.volumes[volume].wanted_on == Some(node) {
                    self.wants(node, volume);
                }
            }
            Move::Done => {
                self.next_client += 1;
                let client = Client(format!("c{}", self.next_client));
                self.becomes(node, volume, Phase::Opening(client));
                self.poll(node, volume, 1 + self.next_client % 300);
            }
            Move::Refuse(_) => {
                self.forget(node, volume);
                self.poll(node, volume, 5_000);
            }
        }
    }

    /// A mistake: what is to be done is taken for done.
    pub(super) fn pretend(&mut self, node: usize, volume: usize, what: Move) {
        if let Some(Job { phase: Phase::Claiming(claim) | Phase::Releasing(claim, _), .. }) = self.nodes[node].jobs.get_mut(&volume) {
            match what {
                Move::Fence(clients) => claim.fenced.extend(clients),
                _ => claim.barrier = true,
            }
        }
        self.poll(node, volume, 1);
    }

    pub(super) fn forget(&mut self, node: usize, volume: usize) {
        if let Some(Job { phase: Phase::Claiming(claim) | Phase::Releasing(claim, _), .. }) = self.nodes[node].jobs.get_mut(&volume) {
            claim.forget();
        }
    }

    pub(super) fn answered(&mut self, node: usize, volume: usize, answer: Answer) {
        let Some(job) = self.nodes[node].jobs.get(&volume) else { return };
        match (job.phase.clone(), answer) {
            (Phase::Claiming(claim), answer) => self.learned(node, volume, claim, answer, None),
            (Phase::Releasing(claim, closed), answer) => self.learned(node, volume, claim, answer, Some(closed)),
            // It may be open or not; nothing was written through it.
            (Phase::Opening(client), Answer::Lost) | (Phase::Naming(client), Answer::Lost) => self.fails(node, volume, &client),
            (Phase::Opening(client), Answer::Done) if self.mistake == Mistake::ReadFirst => {
                self.becomes(node, volume, Phase::Naming(client.clone()));
                self.poll(node, volume, 500);
                self.mount(node, volume, client);
            }
            (Phase::Opening(client), Answer::Done) => {
                self.becomes(node, volume, Phase::Naming(client));
                self.poll(node, volume, 1);
            }
            (Phase::Naming(client), Answer::Record(found)) => {
                let me = self.owner(node);
                let written = found.as_ref().and_then(|found| named(&me, &found.record, [client.clone()].into()));
                match (found, written) {
                    (Some(found), Some(record)) => self.ask(node, volume, Ask::Swap(Some(found.revision), record)),
                    _ => self.fails(node, volume, &client),
                }
            }
            (Phase::Naming(client), Answer::Swapped(Some(_))) => {
                self.mounts += 1;
                self.becomes(node, volume, Phase::Mounted(client.clone()));
                self.poll(node, volume, 1);
                self.mount(node, volume, client);
            }
            (Phase::Naming(client), Answer::Swapped(None)) => self.fails(node, volume, &client),
            (Phase::Closing(client), Answer::Lost) => {
                self.dies(volume, &client);
                self.releases(node, volume, BTreeSet::new());
            }
            (Phase::Closing(client), Answer::Done) => self.releases(node, volume, [client].into()),
            // An answer that was given up.
            _ => {}
        }
    }

    /// It is mounted: its journal is replayed, and its task reads and writes.
    pub(super) fn mount(&mut self, node: usize, volume: usize, client: Client) {
        if self.is_refused(&client, self.volumes[volume].heard) {
            // It was cut off since: it cannot even read.
            return self.fails(node, volume, &client);
        }
        self.volumes[volume].read += 1;
        self.nodes[node].mounted.insert(volume, (client.clone(), self.volumes[volume].read));
        self.at(self.now + 1, Event::Tick { node, volume, client });
    }

    pub(super) fn releases(&mut self, node: usize, volume: usize, closed: BTreeSet<Client>) {
        let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
        self.becomes(node, volume, Phase::Releasing(claim, closed));
        self.poll(node, volume, 1);
    }

    /// What was attached and not read yet is closed, and all begins anew.
    pub(super) fn fails(&mut self, node: usize, volume: usize, client: &Client) {
        self.nodes[node].mounted.remove(&volume);
        self.dies(volume, client);
        let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
        self.becomes(node, volume, Phase::Claiming(claim));
        self.poll(node, volume, 100);
    }

    pub(super) fn learned(&mut self, node: usize, volume: usize, mut claim: Claim, answer: Answer, closed: Option<BTreeSet<Client>>) {
        let own = self.clock(node, self.now);
        match answer {
            Answer::Record(found) => {
                let epoch = found.as_ref().map_or(0, |found| found.record.epoch);
                let seen = self.nodes[node].seen.entry(volume).or_insert((epoch, self.now));
                if seen.0 != epoch {
                    *seen = (epoch, self.now);
                }
                claim.restless = self.now - seen.1 < 60_000;
                claim.record = Some(found);
            }
            Answer::Clients(clients) => claim.clients = Some(clients),
            Answer::Seen { asked, sign, open } => {
                let Some(other) = claim.record.iter().flatten().find_map(|found| found.record.owner()).cloned() else { return };
                let (lease, asked) = (self.nodes[node].lease.map(|lease| self.clock(node, lease)), self.clock(node, asked));
                let key = (other.node.to_string(), other.boot.to_string());
                let observer = self.nodes[node].observers.entry(key).or_insert_with(|| Observer::new(other.boot, own));
                observer.see(asked, own, sign);
                claim.standing = Some(observer.standing(SILENCE, lease, open));
            }
            Answer::Swapped(Some(found)) => claim.wrote(found),
            Answer::Done => match next_or_release(&claim, closed.as_ref()) {
                Move::Fence(clients) => claim.fenced.extend(clients),
                Move::Barrier => claim.barrier = true,
                _ => {}
            },
            Answer::Swapped(None) | Answer::Lost => claim.forget(),
        }
        let phase = match closed {
            None => Phase::Claiming(claim),
            Some(closed) => Phase::Releasing(claim, closed),
        };
        self.becomes(node, volume, phase);
        self.poll(node, volume, 1);
    }
}

fn next_or_release(claim: &Claim, closed: Option<&BTreeSet<Client>>) -> Move {
    closed.map_or_else(|| next(claim), |closed| release(claim, closed))
}
