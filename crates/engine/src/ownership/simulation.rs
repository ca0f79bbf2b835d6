//! Nodes that take volumes from each other, on a platform that is slow, loses answers, and hears of fences late; with crashes,
//! power cuts, frozen nodes, cut cables and clocks that begin anywhere and run at paces of their own.
//!
//! The moves and the observers are the real ones. The platform is a few variables: records with compare-and-set, who has a volume
//! open, a map of who is fenced of which every volume has heard up to some point, and writes that are on their way. Tasks write
//! all the time. The checker says one thing: once a volume was mounted and read, no write through an earlier mount is accepted.
//!
//! Time is the simulation's own, in milliseconds. The seed is printed; `DUNNAGE_SEED=N` runs it again. `DUNNAGE_NODES`,
//! `DUNNAGE_VOLUMES` and `DUNNAGE_SECONDS` make it as large as one likes; what it costs the platform is printed.

mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use dunnage_driver::Sign;
use dunnage_model::BootId;

use super::liveness::Observer;
use super::*;
use crate::chance::{Chance, seed};

/// What is done wrong on purpose, to see that the checker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The new owner goes on when the fence was asked for, and does not wait for the barrier.
    NoBarrier,
    /// A fence ends after half a minute.
    ShortFence,
    /// Nobody is fenced: the platform's lock goes to whoever asks for it.
    LockAlone,
    /// The fence comes before the claim: whoever the owner has become by then goes free.
    FenceFirst,
    /// What was attached is read before it stands in the record.
    ReadFirst,
    /// A volume whose client was killed is given up as if it had ended in order.
    FreeAfterKill,
}

type Time = u64;

/// What is asked of the platform.
#[derive(Debug, Clone)]
enum Ask {
    Read,
    ListClients,
    Observe,
    Swap(Option<u64>, OwnerRecord),
    Fence(BTreeSet<Client>),
    Barrier,
    Open(Client),
    Close(Client),
}

#[derive(Debug, Clone)]
enum Answer {
    Record(Option<Versioned>),
    Clients(BTreeSet<Client>),
    Seen {
        asked: Time,
        sign: Option<Sign>,
        open: bool,
    },
    Swapped(Option<Versioned>),
    Done,
    /// Nobody knows whether it was done.
    Lost,
}

#[derive(Debug)]
enum Event {
    Arrive {
        node: usize,
        life: u32,
        volume: usize,
        number: u64,
        ask: Ask,
    },
    Answer {
        node: usize,
        life: u32,
        volume: usize,
        number: u64,
        answer: Answer,
    },
    /// A write reaches the platform.
    Write {
        volume: usize,
        client: Client,
        mount: u64,
    },
    /// A task writes.
    Tick {
        node: usize,
        volume: usize,
        client: Client,
    },
    /// Goes on with what waited.
    Poll {
        node: usize,
        life: u32,
        volume: usize,
    },
    Heartbeat {
        node: usize,
        life: u32,
        at: Option<Time>,
    },
    Start {
        node: usize,
        reboot: bool,
    },
    /// The scheduler, and fate.
    Move,
    Fate,
}

/// What a node does about a volume.
#[derive(Debug, Clone)]
enum Phase {
    Claiming(Claim),
    Opening(Client),
    /// Reads the record to write its client in.
    Naming(Client),
    Mounted(Client),
    Closing(Client),
    Releasing(Claim, BTreeSet<Client>),
}

struct Job {
    phase: Phase,
    /// What it has asked for and waits for: an answer that comes when nobody waits any more is heard by nobody.
    waits_for: u64,
    /// Its holder has gone.
    unwanted: bool,
}

struct Node {
    /// Powered.
    on: bool,
    boot: u32,
    /// The daemon's life: what was asked for in an earlier one is answered to nobody.
    life: u32,
    frozen_until: Time,
    cut_off_until: Time,
    /// How fast its clock runs, in per mille.
    pace: u64,
    /// Where its clock began: another one's tells nobody anything.
    origin: Time,
    jobs: BTreeMap<usize, Job>,
    /// The kernel's truth: what is mounted, by which client, and as which of all mounts of the volume.
    mounted: BTreeMap<usize, (Client, u64)>,
    counter: u64,
    heard: Time,
    lease: Option<Time>,
    observers: BTreeMap<(String, String), Observer>,
    /// When it saw each volume in its present epoch first.
    seen: BTreeMap<usize, (u64, Time)>,
}

/// One volume on the platform.
struct Volume {
    found: Option<Versioned>,
    /// Who has it open; until when, if they have died.
    open: BTreeMap<Client, Option<Time>>,
    /// Up to where it has heard of fences.
    heard: u64,
    /// How often it was mounted, and read.
    read: u64,
    policy: Preempt,
    wanted_on: Option<usize>,
}

struct Sim {
    chance: Chance,
    mistake: Mistake,
    now: Time,
    order: u64,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
    nodes: Vec<Node>,
    volumes: Vec<Volume>,
    /// Who is fenced: since which map, and until when.
    fenced: BTreeMap<Client, (u64, Time)>,
    map: u64,
    /// How many writes of each client are on their way.
    flying: BTreeMap<Client, u32>,
    leases: BTreeMap<usize, (BootId, u64, Time)>,
    next_client: u64,
    calm: bool,
    calls: BTreeMap<&'static str, u64>,
    mounts: u64,
    takes: u64,
    writes: u64,
    refused: u64,
    /// What went wrong.
    violation: Option<String>,
}

/// How long the platform shows a client that has died.
const WATCH: Time = 30_000;
const LEASE: Time = 15_000;
/// By how much the clocks of two nodes, or of two runs of one, may differ.
const JUMP: Time = 10 * 24 * 3600 * 1000;

impl Sim {
    fn new(seed: u64, nodes: usize, volumes: usize, mistake: Mistake) -> Sim {
        let mut chance = Chance(seed);
        let node = |pace, origin| Node {
            on: true,
            boot: 0,
            life: 0,
            frozen_until: 0,
            cut_off_until: 0,
            pace,
            origin,
            jobs: BTreeMap::new(),
            mounted: BTreeMap::new(),
            counter: 0,
            heard: 0,
            lease: None,
            observers: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        let nodes: Vec<Node> = (0..nodes).map(|_| node(980 + chance.time(41), chance.time(JUMP))).collect();
        let policy = |n: usize| if n % 3 == 2 { Preempt::Always } else { Preempt::IfDead };
        let volume = |n| Volume { found: None, open: BTreeMap::new(), heard: 0, read: 0, policy: policy(n), wanted_on: None };
        let (queue, events) = (BinaryHeap::new(), BTreeMap::new());
        let mut sim = Sim {
            chance,
            mistake,
            now: 0,
            order: 0,
            queue,
            events,
            nodes,
            volumes: (0..volumes).map(volume).collect(),
            fenced: BTreeMap::new(),
            map: 0,
            flying: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_client: 0,
            calm: false,
            calls: BTreeMap::new(),
            mounts: 0,
            takes: 0,
            writes: 0,
            refused: 0,
            violation: None,
        };
        for node in 0..sim.nodes.len() {
            sim.at(node as Time, Event::Heartbeat { node, life: 0, at: None });
        }
        sim.at(0, Event::Move);
        sim.at(1, Event::Fate);
        sim
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((time.max(self.now), self.order)));
        self.events.insert(self.order, event);
    }

    /// The node's own clock.
    fn clock(&self, node: usize, time: Time) -> Duration {
        Duration::from_millis(self.nodes[node].origin + time * self.nodes[node].pace / 1000)
    }

    fn owner(&self, node: usize) -> Owner {
        Owner { node: format!("n{node}").parse().expect("a name"), boot: BootId(self.nodes[node].boot.to_string()) }
    }

    /// When something sent now arrives: soon, or, through a cut cable, when it is mended.
    fn arrival(&mut self, node: usize) -> Time {
        let slow = if self.chance.one_in(200) { self.chance.time(3_000) } else { 0 };
        self.now.max(self.nodes[node].cut_off_until) + 1 + self.chance.time(4) + slow
    }

    fn is_refused(&self, client: &Client, heard: u64) -> bool {
        self.fenced.get(client).is_some_and(|(since, until)| *since <= heard && self.now < *until)
    }

    fn run(&mut self, until: Time) {
        while let Some(Reverse((time, order))) = self.queue.peek().copied() {
            if time > until || self.violation.is_some() {
                break;
            }
            self.queue.pop();
            self.now = time;
            if let Some(event) = self.events.remove(&order) {
                self.happen(event);
            }
        }
        if self.violation.is_none() {
            self.now = self.now.max(until);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { node, life, volume, number, ask } => self.arrive(node, life, volume, number, ask),
            Event::Write { volume, client, mount } => self.write(volume, &client, mount),
            Event::Move => self.reschedule(),
            Event::Fate => self.fate(),
            Event::Start { node, reboot } => self.start(node, reboot),
            Event::Answer { node, .. } | Event::Tick { node, .. } | Event::Poll { node, .. } | Event::Heartbeat { node, .. } => {
                let thaw = self.nodes[node].frozen_until;
                if self.now < thaw {
                    self.at(thaw + 1, event);
                } else if self.nodes[node].on {
                    self.on_node(event);
                }
            }
        }
    }

    fn on_node(&mut self, event: Event) {
        match event {
            Event::Answer { node, life, volume, number, answer } if life == self.nodes[node].life => {
                let job = self.nodes[node].jobs.get_mut(&volume).filter(|job| job.waits_for == number);
                if job.map(|job| job.waits_for = 0).is_some() {
                    self.answered(node, volume, answer);
                }
            }
            Event::Poll { node, life, volume } if life == self.nodes[node].life => self.go_on(node, volume),
            Event::Heartbeat { node, life, at } if life == self.nodes[node].life => self.heartbeat(node, at),
            Event::Tick { node, volume, client } => self.tick(node, volume, client),
            _ => {}
        }
    }

    fn heartbeat(&mut self, node: usize, at: Option<Time>) {
        let life = self.nodes[node].life;
        if let Some(sent) = at {
            // Answered. The lease was good without a break if the last answer is not too long ago.
            let n = &mut self.nodes[node];
            if n.lease.is_none() || self.now - n.heard >= LEASE / 2 {
                n.lease = Some(self.now);
            }
            n.heard = sent;
            return;
        }
        *self.calls.entry("lease").or_default() += 1;
        self.nodes[node].counter += 1;
        let (counter, sent) = (self.nodes[node].counter, self.now);
        let arrival = self.arrival(node);
        // What is cut off for long is lost.
        if arrival < self.now + 5_000 {
            let boot = self.owner(node).boot;
            self.leases.insert(node, (boot, counter, arrival + LEASE));
            self.at(arrival + 2, Event::Heartbeat { node, life, at: Some(sent) });
        }
        if self.now.saturating_sub(self.nodes[node].heard) >= LEASE / 2 {
            self.nodes[node].lease = None;
        }
        self.at(self.now + 3_000, Event::Heartbeat { node, life, at: None });
    }

    fn ask(&mut self, node: usize, volume: usize, ask: Ask) {
        let name = match ask {
            Ask::Read => "read",
            Ask::ListClients => "list clients",
            Ask::Observe => "observe",
            Ask::Swap(..) => "swap",
            Ask::Fence(_) => "fence",
            Ask::Barrier => "barrier",
            Ask::Open(_) => "open",
            Ask::Close(_) => "close",
        };
        *self.calls.entry(name).or_default() += 1;
        let (life, number) = (self.nodes[node].life, self.order);
        if let Some(job) = self.nodes[node].jobs.get_mut(&volume) {
            job.waits_for = number;
        }
        if !self.calm && self.chance.one_in(300) {
            // Lost on its way.
            self.at(self.now + 10_000, Event::Answer { node, life, volume, number, answer: Answer::Lost });
            return;
        }
        let arrival = self.arrival(node);
        if arrival > self.now + 10_000 {
            self.at(self.now + 10_000, Event::Answer { node, life, volume, number, answer: Answer::Lost });
        }
        self.at(arrival, Event::Arrive { node, life, volume, number, ask });
    }

    /// The platform does what it was asked for. (Of a node that has lost its power in between, too: it was sent.)
    fn arrive(&mut self, node: usize, life: u32, volume: usize, number: u64, ask: Ask) {
        let now = self.now;
        let answer = match ask {
            Ask::Read => Answer::Record(self.volumes[volume].found.clone()),
            Ask::ListClients => Answer::Clients(self.open(volume)),
            Ask::Observe => {
                let owner = self.volumes[volume].found.as_ref().and_then(|found| found.record.owner().cloned());
                let other = owner.and_then(|owner| owner.node.as_str()[1..].parse().ok());
                let lease = other.and_then(|other: usize| self.leases.get(&other));
                let sign = lease.map(|(boot, counter, until)| Sign { boot: boot.clone(), watched: now < *until, counter: *counter });
                let clients = match self.volumes[volume].found.as_ref().map(|found| &found.record.state) {
                    Some(OwnerState::Held { clients, .. }) => clients.clone().unwrap_or_default(),
                    _ => BTreeSet::new(),
                };
                Answer::Seen { asked: now, sign, open: !clients.is_disjoint(&self.open(volume)) }
            }
            Ask::Swap(expected, record) => {
                let found = &mut self.volumes[volume].found;
                if found.as_ref().map(|found| found.revision) == expected {
                    if matches!(record.state, OwnerState::Held { taken: true, .. }) {
                        self.takes += 1;
                    }
                    *found = Some(Versioned { revision: expected.map_or(1, |revision| revision + 1), record });
                    Answer::Swapped(found.clone())
                } else {
                    Answer::Swapped(None)
                }
            }
            Ask::Fence(clients) => {
                self.map += 1;
                let until = if self.mistake == Mistake::ShortFence { now + 30_000 } else { Time::MAX };
                for client in clients {
                    self.fenced.entry(client).or_insert((self.map, until));
                }
                Answer::Done
            }
            Ask::Barrier => {
                self.volumes[volume].heard = self.map;
                Answer::Done
            }
            Ask::Open(client) => {
                // Nobody waits for it any more: it has been killed, and the platform shows it for a while.
                let waits = self.nodes[node].jobs.get(&volume).is_some_and(|job| job.waits_for == number);
                let gone = life != self.nodes[node].life || !waits;
                self.volumes[volume].open.insert(client, gone.then_some(now + WATCH));
                Answer::Done
            }
            Ask::Close(client) => {
                self.volumes[volume].open.remove(&client);
                Answer::Done
            }
        };
        if !self.calm && self.chance.one_in(300) {
            // Done, and nobody hears of it.
            self.at(now + 10_000, Event::Answer { node, life, volume, number, answer: Answer::Lost });
            return;
        }
        let back = self.arrival(node);
        self.at(back, Event::Answer { node, life, volume, number, answer });
    }

    fn open(&self, volume: usize) -> BTreeSet<Client> {
        self.volumes[volume].open.iter().filter(|(_, until)| until.is_none_or(|until| self.now < until)).map(|(c, _)| c.clone()).collect()
    }

    fn write(&mut self, volume: usize, client: &Client, mount: u64) {
        match self.flying.get_mut(client) {
            Some(many) if *many > 1 => *many -= 1,
            _ => drop(self.flying.remove(client)),
        }
        if self.is_refused(client, self.volumes[volume].heard) {
            self.refused += 1;
            return;
        }
        self.writes += 1;
        let read = self.volumes[volume].read;
        if mount < read {
            let record = &self.volumes[volume].found;
            let what = format!("v{volume}: {client} wrote through mount {mount}, and mount {read} has read it: {record:?}");
            self.violation.get_or_insert(what);
        }
    }

    /// A task writes, as long as its mount is there. It does not know of records.
    fn tick(&mut self, node: usize, volume: usize, client: Client) {
        let Some((mounted, mount)) = self.nodes[node].mounted.get(&volume).cloned() else { return };
        if mounted != client {
            return;
        }
        if self.is_refused(&client, self.map) && self.chance.one_in(3) {
            // An I/O error, and the daemon drops what it has.
            self.drop_mount(node, volume);
            return;
        }
        let mut arrival = self.arrival(node);
        if !self.calm && self.chance.one_in(50) {
            // Long in a queue somewhere.
            arrival += self.chance.time(2_000);
        }
        *self.flying.entry(client.clone()).or_default() += 1;
        self.at(arrival, Event::Write { volume, client: client.clone(), mount });
        let again = self.now + 50 + self.chance.time(400);
        self.at(again, Event::Tick { node, volume, client });
    }

    /// The scheduler wants a volume elsewhere; it tells the old node, if it can, and does not wait for it.
    fn reschedule(&mut self) {
        if !self.calm {
            let volume = self.chance.below(self.volumes.len());
            let node = self.chance.below(self.nodes.len());
            let before = self.volumes[volume].wanted_on.replace(node);
            if before != Some(node) {
                if let Some(before) = before {
                    self.unwants(before, volume);
                }
                if self.nodes[node].on {
                    self.wants(node, volume);
                }
            }
        }
        let pause = 4_000_000 / (self.volumes.len() as u64 * 100) + 1;
        let next = self.now + 1 + self.chance.time(2 * pause);
        self.at(next, Event::Move);
    }

    fn unwants(&mut self, node: usize, volume: usize) {
        // A scheduler that was cut off from it tells it later, or never.
        if self.nodes[node].on && !self.chance.one_in(3) {
            if let Some(job) = self.nodes[node].jobs.get_mut(&volume) {
                job.unwanted = true;
            }
            self.poll(node, volume, 1);
        }
    }

    fn fate(&mut self) {
        if !self.calm {
            let node = self.chance.below(self.nodes.len());
            let for_long = 500 + if self.chance.one_in(3) { self.chance.time(400_000) } else { self.chance.time(20_000) };
            match self.chance.below(6) {
                _ if !self.nodes[node].on => {}
                0 => self.power_cut(node, for_long),
                1 => {
                    // The daemon crashes; its mounts and their tasks do not.
                    self.nodes[node].life += 1;
                    self.at(self.now + self.order % 3_000, Event::Start { node, reboot: false });
                }
                2 => self.nodes[node].frozen_until = self.now + for_long,
                3 => self.nodes[node].cut_off_until = self.now + for_long,
                4 => self.kill_a_client(node),
                _ => {
                    let volume = self.chance.below(self.volumes.len());
                    self.volumes[volume].heard = self.map;
                }
            }
        }
        let next = self.now + 1 + self.chance.time(20_000 / self.nodes.len() as u64 + 1);
        self.at(next, Event::Fate);
    }

    fn power_cut(&mut self, node: usize, for_long: Time) {
        let n = &mut self.nodes[node];
        (n.on, n.life, n.lease) = (false, n.life + 1, None);
        n.observers.clear();
        n.seen.clear();
        n.jobs.clear();
        for (volume, (client, _)) in std::mem::take(&mut self.nodes[node].mounted) {
            self.dies(volume, &client);
        }
        self.at(self.now + for_long, Event::Start { node, reboot: true });
    }

    /// The process that carries a device is killed. What it had sent is on its way.
    fn kill_a_client(&mut self, node: usize) {
        let Some((volume, (client, _))) = self.nodes[node].mounted.pop_first() else { return };
        self.dies(volume, &client);
        if self.chance.one_in(2) {
            // Whoever holds it wants it still.
            let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
            self.becomes(node, volume, Phase::Claiming(claim));
            self.poll(node, volume, 1);
        } else {
            let closed = if self.mistake == Mistake::FreeAfterKill { [client].into() } else { BTreeSet::new() };
            self.releases(node, volume, closed);
        }
    }

    fn start(&mut self, node: usize, reboot: bool) {
        if reboot {
            self.nodes[node].on = true;
            self.nodes[node].boot += 1;
            self.nodes[node].origin = self.chance.time(JUMP);
        } else if !self.nodes[node].on {
            return;
        }
        let (life, boot_again) = (self.nodes[node].life, self.now + 1);
        self.at(boot_again, Event::Heartbeat { node, life, at: None });
        self.nodes[node].lease = None;
        // What the kernel has mounted goes on; whatever else was under way begins anew.
        let mounted: Vec<(usize, (Client, u64))> = self.nodes[node].mounted.clone().into_iter().collect();
        let before = std::mem::take(&mut self.nodes[node].jobs);
        for (volume, job) in before {
            match job.phase {
                Phase::Opening(client) | Phase::Naming(client) | Phase::Closing(client) => self.dies(volume, &client),
                _ => {}
            }
            if !self.nodes[node].mounted.contains_key(&volume) {
                let claim = Claim::new(self.owner(node), self.volumes[volume].policy, BTreeSet::new());
                let job = Job { phase: Phase::Releasing(claim, BTreeSet::new()), waits_for: 0, unwanted: true };
                self.nodes[node].jobs.insert(volume, job);
                self.poll(node, volume, 1);
            }
        }
        for (volume, (client, _)) in mounted {
            let unwanted = self.volumes[volume].wanted_on != Some(node);
            self.nodes[node].jobs.insert(volume, Job { phase: Phase::Mounted(client), waits_for: 0, unwanted });
            self.poll(node, volume, 1);
        }
        for volume in 0..self.volumes.len() {
            if self.volumes[volume].wanted_on == Some(node) && !self.nodes[node].jobs.contains_key(&volume) {
                self.wants(node, volume);
            }
        }
    }

    /// Everything is mended and nobody is moved: whoever is wanted somewhere must get there.
    fn calm_down(&mut self) {
        self.calm = true;
        for node in 0..self.nodes.len() {
            (self.nodes[node].frozen_until, self.nodes[node].cut_off_until) = (self.now, self.now);
            for volume in 0..self.volumes.len() {
                if self.volumes[volume].wanted_on != Some(node)
                    && let Some(job) = self.nodes[node].jobs.get_mut(&volume)
                {
                    job.unwanted = true;
                    self.poll(node, volume, 1);
                }
            }
        }
    }

    fn lacking(&self) -> Vec<String> {
        let wanted = self.volumes.iter().enumerate().filter_map(|(volume, v)| Some((volume, v.wanted_on?)));
        let lacking = wanted.filter(|(volume, node)| !self.nodes[*node].mounted.contains_key(volume));
        lacking
            .map(|(v, n)| format!("v{v} on n{n}: {:?} {:?}", self.nodes[n].jobs.get(&v).map(|j| &j.phase), self.volumes[v].found))
            .collect()
    }
}

impl Sim {
    /// What the platform was asked, and what came of it.
    fn tell(&self) {
        for (call, times) in &self.calls {
            println!("{call:14} {times:9} {:8.2} a second", *times as f64 / (self.now as f64 / 1000.0));
        }
        println!("{} mounts, {} taken from others, {} writes, {} refused", self.mounts, self.takes, self.writes, self.refused);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn law_6_no_write_of_an_old_owner_is_accepted_once_a_new_one_has_read() {
    let seed = seed();
    let (nodes, volumes) = (number("DUNNAGE_NODES", 5), number("DUNNAGE_VOLUMES", 6));
    let seconds = number("DUNNAGE_SECONDS", 40_000);
    let mut sim = Sim::new(seed, usize::try_from(nodes).expect("small"), usize::try_from(volumes).expect("small"), Mistake::None);
    sim.run(seconds * 1000);
    assert_eq!(sim.violation, None);
    sim.tell();
    let end = sim.now;
    assert!(sim.mounts > seconds / 100 && sim.takes > seconds / 1000 && sim.refused > seconds / 1000, "this tests nothing");
    sim.calm_down();
    sim.run(end + 600_000);
    assert_eq!((sim.violation.clone(), sim.lacking()), (None, vec![]));
}

#[test]
fn law_6_the_same_with_a_thousand_nodes_and_ten_thousand_volumes() {
    let mut sim = Sim::new(seed(), 1000, 10_000, Mistake::None);
    sim.run(30_000);
    assert_eq!(sim.violation, None);
    sim.tell();
    assert!(sim.mounts > 1000 && sim.takes > 10 && sim.refused > 0, "this tests nothing");
}

#[test]
fn each_short_cut_loses_data_and_is_seen_to() {
    let mistakes =
        [Mistake::NoBarrier, Mistake::ShortFence, Mistake::LockAlone, Mistake::FenceFirst, Mistake::ReadFirst, Mistake::FreeAfterKill];
    for mistake in mistakes {
        let found = (1..=40).find_map(|seed| {
            let mut sim = Sim::new(seed, 5, 6, mistake);
            sim.run(4_000_000);
            sim.violation.map(|violation| (seed, sim.now, violation))
        });
        let (seed, now, violation) = found.unwrap_or_else(|| panic!("{mistake:?} is not seen"));
        println!("{mistake:?}: seed {seed}, after {} s: {violation:.120}", now / 1000);
    }
}
