//! One writer, fenced, on a real Ceph: the engine's moves against real records, watchers and blocklists; and what short cuts
//! would lose there. (What a missing barrier would: `tier3_ceph_rados`.)

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunnage_driver::{Driver, NewVolume, Provision, Share, Versioned};
use dunnage_driver_ceph::Pool;
use dunnage_engine::ownership::liveness::{Observer, Standing};
use dunnage_engine::ownership::{Claim, Move, named, next, release};
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_model::{BootId, Bytes, Client as Address, Error, Owner, OwnerState, PartialSpec, Preempt, VolumeName};
use dunnage_tests::ceph::{Ceph, Client};
use dunnage_tests::{BOUND, eventually};

const CLIENT: &str = env!("CARGO_BIN_EXE_ceph-client");

/// What is left out, or done in another order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nothing,
    /// The fence ends after this.
    FenceTo(Duration),
    /// Nobody is fenced.
    Fence,
}

/// A node, as far as the platform sees it.
struct Node {
    owners: dunnage_driver_ceph::Ceph,
    me: Owner,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn new(ceph: &Ceph, name: &str, boot: &str) -> Node {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let helpers = |kind: &str| {
            let (brood, _) = Brood::begin(&ceph.folder.join(format!("{name}-{boot}-{kind}"))).expect("begin");
            Arc::new(Helpers::new(CLIENT.into(), brood))
        };
        let me = Owner { node: name.parse().expect("a name"), boot: BootId(boot.to_owned()) };
        let folder = ceph.folder.join(format!("{name}-{boot}-devices"));
        let settings = ceph.settings(me.clone(), folder);
        let _entered = runtime.enter();
        let host = dunnage_host::linux::host(helpers("host"), Tools::find());
        let owners = dunnage_driver_ceph::Ceph::new(settings, host, helpers("work"), helpers("signs"));
        Node { owners, me, runtime }
    }

    /// What a claim comes to: it is ours, or it waits, or it is refused.
    fn claim(&self, policy: Preempt, standing: Standing, cut: Cut) -> Result<Move, Error> {
        self.runtime.block_on(async {
            let mut claim = Claim::new(self.me.clone(), policy, BTreeSet::new());
            loop {
                match next(&claim) {
                    Move::Observe => claim.standing = Some(standing),
                    end @ (Move::Done | Move::Wait | Move::Refuse(_)) => return Ok(end),
                    step => self.make(&mut claim, step, cut).await?,
                }
            }
        })
    }

    async fn make(&self, claim: &mut Claim, step: Move, cut: Cut) -> Result<(), Error> {
        match step {
            Move::Read => claim.record = Some(self.owners.owner(&pg()).await?),
            Move::ListClients => claim.clients = Some(self.owners.clients(&pg()).await?),
            Move::Swap(record) => {
                let expected = claim.record.iter().flatten().map(|found| found.revision).next();
                match self.owners.swap(&pg(), expected, &record).await? {
                    Some(written) => claim.wrote(written),
                    None => claim.forget(),
                }
            }
            Move::Fence(clients) => {
                match cut {
                    Cut::Fence => {}
                    Cut::FenceTo(end) => self.owners.fence_for(&clients, end).await?,
                    Cut::Nothing => self.owners.fence(&clients).await?,
                }
                claim.fenced.extend(clients);
            }
            Move::Barrier => {
                if cut != Cut::Fence {
                    self.owners.barrier(&pg()).await?;
                }
                claim.barrier = true;
            }
            Move::Observe | Move::Wait | Move::Done | Move::Refuse(_) => {}
        }
        Ok(())
    }

    /// Writes its client into the record; whether it was its own still.
    fn names(&self, client: &Client) -> bool {
        self.runtime.block_on(async {
            let found = self.owners.owner(&pg()).await.expect("read").expect("it was claimed");
            let Some(record) = named(&self.me, &found.record, [address(client)].into()) else { return false };
            self.owners.swap(&pg(), Some(found.revision), &record).await.expect("swap").is_some()
        })
    }

    fn gives_up(&self, closed: &BTreeSet<Address>) {
        self.runtime.block_on(async {
            let mut claim = Claim::new(self.me.clone(), Preempt::IfDead, BTreeSet::new());
            loop {
                match release(&claim, closed) {
                    Move::Done => return,
                    step => self.make(&mut claim, step, Cut::Nothing).await.expect("it works"),
                }
            }
        });
    }

    fn record(&self) -> Versioned {
        self.runtime.block_on(self.owners.owner(&pg())).expect("read").expect("it was claimed")
    }

    fn gives_sign(&self, counter: u64) -> Result<(), Error> {
        self.runtime.block_on(self.owners.give_sign(&self.me, counter))
    }
}

fn pg() -> VolumeName {
    "pg".parse().expect("a name")
}

fn address(client: &Client) -> Address {
    Address(client.address.to_string())
}

/// A cluster with the volume `pg`, which is nobody's.
fn with_pg(osds: usize) -> Option<(Ceph, Pool)> {
    let ceph = Ceph::start(osds)?;
    let maker = Node::new(&ceph, "maker", "1");
    let spec = PartialSpec { size: Some(Bytes::mib(64)), ..PartialSpec::default() }.complete().expect("a spec");
    let (endpoint, created) = ("dunnage".parse().expect("a name"), jiff::Timestamp::UNIX_EPOCH);
    let new = NewVolume { name: pg(), endpoint, spec, created, maker: Some(maker.me.clone()) };
    maker.runtime.block_on(async {
        maker.owners.record(&new).await.expect("recorded");
        maker.owners.allocate(&pg()).await.expect("allocated");
        // Nothing is ever mounted: what is on it does not matter.
        maker.owners.formatting(&pg(), uuid::Uuid::new_v4()).await.expect("formatting");
        maker.owners.detach(&pg(), None).await.expect("detached");
        maker.owners.publish(&pg()).await.expect("published");
    });
    maker.gives_up(&BTreeSet::new());
    let pool = ceph.pool();
    Some((ceph, pool))
}

/// Somebody who writes objects as quickly as he can, and has written some.
fn writer(ceph: &Ceph, prefix: &str) -> Client {
    let mut writer = Client::start(CLIENT, ceph, &["write", prefix]);
    for _ in 0..40 {
        writer.line().expect("it writes");
    }
    writer
}

/// What the new owner reads.
fn read(pool: &Pool, prefix: &str) -> BTreeSet<String> {
    pool.list(&format!("{prefix}.")).expect("a list").into_iter().collect()
}

/// Until the writer has ended, for it was refused, or has written for a while.
fn goes_on(mut writer: Client) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) && writer.line().is_some() {}
}

#[test]
fn law_6_a_volume_goes_from_one_node_to_another_and_back_and_nobody_is_fenced_who_let_go() {
    let Some((ceph, pool)) = with_pg(1) else { return };
    let (a, b) = (Node::new(&ceph, "a", "1"), Node::new(&ceph, "b", "1"));
    assert_eq!(a.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing), Ok(Move::Done));
    let client = Client::start(CLIENT, &ceph, &["open", "pg"]);
    assert!(a.names(&client));
    assert_eq!(b.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing), Ok(Move::Wait));
    let closed = [address(&client)].into();
    drop(client);
    a.gives_up(&closed);
    assert_eq!(a.record().record.state, OwnerState::Free);
    // Its watcher was killed, and is seen for a while: as a stranger, who is not cut off.
    eventually("it is forgotten", 3 * BOUND, || b.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing) == Ok(Move::Done));
    assert_eq!(b.record().record.owner(), Some(&b.me));
    assert_eq!(pool.cluster().blocklisted(), Ok(Vec::new()));
}

#[test]
fn law_6_of_two_that_take_a_dead_node_s_volume_one_gets_it_and_the_other_sees_who() {
    let Some((ceph, pool)) = with_pg(1) else { return };
    let nodes: Vec<Node> = ["b", "c"].iter().map(|name| Node::new(&ceph, name, "1")).collect();
    let a = Node::new(&ceph, "a", "1");
    for round in 0..5 {
        let boot = Node::new(&ceph, "a", &format!("boot{round}"));
        assert_eq!(boot.claim(Preempt::Always, Standing::Dead, Cut::Nothing), Ok(Move::Done));
        let prefix = format!("round{round}");
        let old = writer(&ceph, &prefix);
        assert!(boot.names(&old));
        let start = std::sync::Barrier::new(2);
        let outcomes: Vec<Result<Move, Error>> = std::thread::scope(|scope| {
            let racers = nodes.iter().map(|node| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    // Whoever is second finds a taker that lives.
                    match node.claim(Preempt::IfDead, Standing::Dead, Cut::Nothing) {
                        Ok(Move::Done) if node.record().record.owner() != Some(&node.me) => Ok(Move::Wait),
                        other => other,
                    }
                })
            });
            let racers: Vec<_> = racers.collect();
            racers.into_iter().map(|racer| racer.join().expect("a racer")).collect()
        });
        let owner = a.record().record;
        let seen = read(&pool, &prefix);
        goes_on(old);
        assert_eq!(read(&pool, &prefix), seen, "round {round}: a write came after the new owner had read");
        let winners = nodes.iter().filter(|node| owner.owner() == Some(&node.me)).count();
        assert_eq!(winners, 1, "{outcomes:?} {owner:?}");
    }
}

#[test]
fn law_6_what_a_killed_client_had_sent_is_cut_off_before_its_own_node_gives_the_volume_up() {
    let Some((ceph, pool)) = with_pg(2) else { return };
    let a = Node::new(&ceph, "a", "1");
    assert_eq!(a.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing), Ok(Move::Done));
    let killed = writer(&ceph, "killed");
    let its = killed.address;
    assert!(a.names(&killed));
    drop(killed);
    a.gives_up(&BTreeSet::new());
    assert_eq!(a.record().record.state, OwnerState::Free);
    assert_eq!(pool.cluster().blocklisted(), Ok(vec![its]));
}

#[test]
fn law_6_a_stranger_s_image_is_in_use_and_its_address_is_named() {
    let Some((ceph, pool)) = with_pg(1) else { return };
    let mut stranger = Client::start(CLIENT, &ceph, &["open", "pg"]);
    stranger.line().expect("it writes");
    let b = Node::new(&ceph, "b", "1");
    match b.claim(Preempt::IfDead, Standing::Dead, Cut::Nothing) {
        Ok(Move::Refuse(error)) => assert!(error.to_string().contains(&stranger.address.to_string()), "{error}"),
        other => panic!("it was not refused: {other:?}"),
    }
    assert_eq!(b.claim(Preempt::Always, Standing::Dead, Cut::Nothing), Ok(Move::Done));
    assert_eq!(pool.cluster().blocklisted(), Ok(vec![stranger.address]));
    let last = std::iter::from_fn(|| stranger.line()).last().expect("it says something");
    assert!(last.contains("refused fenced=true"), "{last}");
}

#[test]
fn law_6_a_short_fence_loses_what_a_frozen_client_writes_when_it_thaws_and_ours_does_not() {
    let Some((ceph, pool)) = with_pg(1) else { return };
    // How long the cluster took to forget the short one: ours is tried for as long, and longer.
    let mut forgotten_after = Duration::ZERO;
    for (cut, loses) in [(Cut::FenceTo(Duration::from_secs(2)), true), (Cut::Nothing, false)] {
        let prefix = format!("loses-{loses}");
        let (a, b) = (Node::new(&ceph, "a", &prefix), Node::new(&ceph, "b", &prefix));
        assert_eq!(a.claim(Preempt::Always, Standing::Dead, Cut::Nothing), Ok(Move::Done));
        let old = writer(&ceph, &prefix);
        assert!(a.names(&old));
        old.freeze();
        assert_eq!(b.claim(Preempt::IfDead, Standing::Dead, cut), Ok(Move::Done));
        let seen = read(&pool, &prefix);
        let its = old.address;
        let fenced = Instant::now();
        let has_ended = || !pool.cluster().blocklisted().expect("a list").contains(&its);
        if loses {
            eventually("the fence has ended", BOUND, has_ended);
            forgotten_after = fenced.elapsed();
        } else {
            // A cluster that forgets does so every five seconds.
            let long = forgotten_after + Duration::from_secs(6);
            eventually("it was long enough", BOUND, || fenced.elapsed() > long || has_ended());
        }
        old.thaw();
        goes_on(old);
        let after = read(&pool, &prefix);
        println!("{} writes after the new owner had read", after.len() - seen.len());
        assert_eq!(after != seen, loses);
    }
}

#[test]
fn law_6_a_fence_before_the_claim_misses_whom_the_owner_has_become() {
    let Some((ceph, pool)) = with_pg(1) else { return };
    let (a, b) = (Node::new(&ceph, "a", "1"), Node::new(&ceph, "b", "1"));
    assert_eq!(a.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing), Ok(Move::Done));
    let first = writer(&ceph, "first");
    assert!(a.names(&first));
    // The short cut: it fences whom it has read of, and claims then.
    let found = b.record();
    b.runtime.block_on(b.owners.fence(found.record.clients().expect("named"))).expect("fenced");
    b.runtime.block_on(b.owners.barrier(&pg())).expect("barrier");
    // Its daemon sees an error, and attaches anew: the volume is its own still.
    let second = writer(&ceph, "second");
    assert!(a.names(&second));
    let now = b.record();
    let state = OwnerState::Held { owner: b.me.clone(), clients: None, taken: true };
    assert!(b.runtime.block_on(b.owners.swap(&pg(), Some(now.revision), &now.record.with(state))).expect("swap").is_some());
    let seen = read(&pool, "second");
    goes_on(second);
    assert_ne!(read(&pool, "second"), seen, "the short cut lost nothing: then it would be good enough");

    // In order: who attaches anew while it is taken finds that it is not its own any more.
    let c = Node::new(&ceph, "c", "1");
    let third = writer(&ceph, "third");
    assert!(b.names(&third));
    assert_eq!(c.claim(Preempt::IfDead, Standing::Dead, Cut::Nothing), Ok(Move::Done));
    let fourth = writer(&ceph, "fourth");
    assert!(!b.names(&fourth), "it was written in, and another had taken it");
    drop(fourth);
    let seen = read(&pool, "third");
    goes_on(third);
    assert_eq!(read(&pool, "third"), seen);
}

#[test]
fn law_6_the_exclusive_lock_alone_lets_both_write() {
    let Some((ceph, _pool)) = with_pg(1) else { return };
    let (a, b) = (Node::new(&ceph, "a", "1"), Node::new(&ceph, "b", "1"));
    assert_eq!(a.claim(Preempt::IfDead, Standing::Alive, Cut::Nothing), Ok(Move::Done));
    let mut old = Client::start(CLIENT, &ceph, &["open", "pg"]);
    old.line().expect("it writes");
    assert!(a.names(&old));
    assert_eq!(b.claim(Preempt::IfDead, Standing::Dead, Cut::Fence), Ok(Move::Done));
    let mut new = Client::start(CLIENT, &ceph, &["open", "pg"]);
    for _ in 0..3 {
        new.line().expect("the new one writes");
    }
    // All that it had said before is read over; then it writes on, and is let.
    let mut last = String::new();
    for _ in 0..200 {
        last = old.line().expect("the old one writes on");
        new.line().expect("and so does the new one");
    }
    assert!(!last.contains("refused"), "{last}");
}

#[test]
fn a_node_is_seen_to_live_and_its_name_is_refused_to_another_machine_until_it_is_dead() {
    let Some((ceph, _pool)) = with_pg(1) else { return };
    let (a, b) = (Node::new(&ceph, "a", "1"), Node::new(&ceph, "b", "1"));
    assert_eq!(b.runtime.block_on(b.owners.sign(&a.me.node)), Ok(None));
    a.gives_sign(1).expect("it lives");
    a.gives_sign(2).expect("it lives");
    let sign = b.runtime.block_on(b.owners.sign(&a.me.node)).expect("seen").expect("it gave one");
    assert_eq!((sign.watched, sign.counter, &sign.boot), (true, 2, &a.me.boot));
    let twin = Node::new(&ceph, "a", "2");
    let refused = twin.gives_sign(1).expect_err("the name is taken");
    assert_eq!(refused.word(), "in_use", "{refused}");
    let begun = Instant::now();
    let mut observer = Observer::new(a.me.boot.clone(), begun.elapsed());
    // Its daemon is killed, and with it the helper that watches.
    drop(a);
    eventually("it is dead", 2 * BOUND, || {
        let asked = begun.elapsed();
        let sign = b.runtime.block_on(b.owners.sign(&twin.me.node)).expect("seen");
        observer.see(asked, begun.elapsed(), sign);
        observer.standing(dunnage_driver::SILENCE, Some(Duration::ZERO), false) == Standing::Dead
    });
    println!("a node that was killed is dead after {:?}", begun.elapsed());
    twin.gives_sign(1).expect("the name is free");
}
