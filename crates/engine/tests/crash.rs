//! Laws 3 and 4: the daemon dies before and after every step, and the next one finishes or undoes what it left.
//!
//! A daemon runs in a thread of its own. At its last step the thread stops for ever, inside the step: nothing of that
//! daemon happens any more, no destructor and no task, as after `kill -9`. What it had done to the fake kernel, to the pool
//! and to the ledger stays, and another daemon is started on them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::*;
use dunnage_engine::Engine;
use dunnage_model::{UnmountAction, VolumeState};

/// How a daemon's life ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Here.
    At(String),
    /// It did all that it was to do.
    Whole,
}

/// The points where it may end, in the order in which they come.
struct Points {
    passed: AtomicUsize,
    last: usize,
    end: mpsc::Sender<End>,
}

impl Points {
    /// One more point. The last one is not left.
    fn pass(&self, name: String) {
        if self.passed.fetch_add(1, Ordering::SeqCst) == self.last {
            self.end.send(End::At(name)).expect("the test waits");
            loop {
                std::thread::park();
            }
        }
    }
}

/// Starts a daemon that lives this life, and dies at its `last`th point (from 0) if it gets there.
fn live<L>(machine: &Arc<Machine>, last: usize, life: L) -> End
where
    L: AsyncFnOnce(&Engine, &Points) + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let points = Arc::new(Points { passed: AtomicUsize::new(0), last, end: sender.clone() });
    let machine = machine.clone();
    let daemon = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(Duration::from_millis(1)).build();
        runtime.expect("a runtime").block_on(async {
            let recorder = Arc::new(Recorder::default());
            recorder.at_each({
                let points = points.clone();
                move |goal, step, after| points.pass(format!("{goal}/{step} {}", if after { "after" } else { "before" }))
            });
            let engine = machine.start_watched(recorder).await.expect("it starts");
            engine.settle().await;
            rest(&engine).await;
            life(&engine, &points).await;
            rest(&engine).await;
        });
        sender.send(End::Whole).expect("the test waits");
    });
    let end = receiver.recv_timeout(Duration::from_secs(30)).expect("it dies or ends; its thread says why it did not");
    if end == End::Whole {
        daemon.join().expect("no panic");
    }
    end
}

/// Lives the same life on machine after machine, dying one point later each time; what is left is looked at.
async fn at_every_point<P, L>(prepare: P, life: fn() -> L, look: impl AsyncFn(&Arc<Machine>, &str)) -> BTreeSet<String>
where
    P: AsyncFn(&Machine),
    L: AsyncFnOnce(&Engine, &Points) + Send + 'static,
{
    let mut seen = BTreeSet::new();
    for last in 0.. {
        let machine = Shared(Arc::new(Machine::new()));
        prepare(&machine).await;
        match live(&machine, last, life()) {
            End::Whole => break,
            End::At(point) => {
                look(&machine, &point).await;
                seen.insert(point);
            }
        }
    }
    seen
}

async fn nothing(_: &Machine) {}

async fn pg(machine: &Machine) {
    machine.with_pg().await;
}

async fn pg_held(machine: &Machine) {
    let engine = machine.with_pg().await;
    hold(&engine, "pg", &docker("a")).await;
}

/// Creates `pg`.
fn creating() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
    async |engine: &Engine, _: &Points| {
        create(engine, "pg").await.expect("created");
    }
}

/// Mounts `pg` for `a`; the answer has left, and nobody knows whether it was read, at the point `answered`.
fn mounting() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
    async |engine: &Engine, points: &Points| {
        let mounted = mount(engine, "pg", &docker("a")).await.expect("mounted");
        points.pass("answered".to_owned());
        mounted.claim.delivered();
    }
}

/// Unmounts `pg` for `a`.
fn unmounting() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
    async |engine: &Engine, _: &Points| {
        unmount(engine, "pg", &docker("a")).await.expect("unmounted");
    }
}

/// Removes `pg`.
fn removing() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
    async |engine: &Engine, _: &Points| {
        engine.remove(&call(engine), &volume("pg")).await.expect("removed");
    }
}

/// `pg` is whole, or it is not at all.
async fn assert_whole_or_not_there(machine: &Machine, engine: &Engine, when: &str) {
    let infos = engine.list(&volume("pg").driver, None).await.expect("listed");
    let ready: BTreeSet<String> =
        infos.iter().filter(|view| view.info.state == VolumeState::Ready).map(|view| view.info.id.name.to_string()).collect();
    assert_eq!(machine.in_pool(), ready, "half a volume {when}");
}

/// What the steps of a goal give, before and after each.
fn points_of(goal: &str, steps: &[&str]) -> BTreeSet<String> {
    let mut points: BTreeSet<String> = steps.iter().flat_map(|step| around(&format!("{goal}/{step}"))).collect();
    points.insert(format!("{goal}/done before"));
    points
}

fn around(step: &str) -> [String; 2] {
    [format!("{step} before"), format!("{step} after")]
}

/// What comes of a mount's answer when the volume is mounted.
fn points_of_an_answer() -> BTreeSet<String> {
    [around("mount/hold"), around("mount/confirm"), ["answered".to_owned(), "stage/done before".to_owned()]].concat().into_iter().collect()
}

/// Where it is known that a caller has read its answer. It has nothing to ask again: another mount would be another hold.
const CONFIRMED: &str = "mount/confirm after";

/// The caller `a` asks again, if it has not read an answer.
async fn retry(engine: &Engine, point: &str) {
    if point != CONFIRMED {
        hold(engine, "pg", &docker("a")).await;
    }
}

/// Where a caller's hold has not been given back yet.
const NOT_BEGUN: &str = "unmount/give-back before";

mod a_create_that_died {
    use super::*;

    #[tokio::test]
    async fn anywhere_leaves_a_whole_volume_or_none_after_the_next_start() {
        let seen = at_every_point(nothing, creating, async |machine, point| {
            let engine = machine.start().await;
            assert_whole_or_not_there(machine, &engine, point).await;
            machine.assert_clean(point);
        })
        .await;
        assert_eq!(seen, points_of("create", &["inspect", "look", "record", "allocate", "probe-new", "formatting", "format", "publish"]));
    }

    #[tokio::test]
    async fn anywhere_is_done_by_a_retry() {
        at_every_point(nothing, creating, async |machine, point| {
            let engine = machine.start().await;
            create(&engine, "pg").await.unwrap_or_else(|e| panic!("{point}: {e}"));
            hold(&engine, "pg", &docker("a")).await;
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_and_again_anywhere_in_the_retry_leaves_a_whole_volume_or_none() {
        at_every_point(nothing, creating, async |machine, point| {
            // The same death, and then another one at the next point each time.
            let mut next: Option<Shared> = None;
            for again in 0.. {
                let machine = next.as_deref().unwrap_or(machine);
                let End::At(second) = live(machine, again, creating()) else { break };
                let engine = machine.start().await;
                assert_whole_or_not_there(machine, &engine, &format!("{point}, then {second}")).await;
                let machine = Shared(Arc::new(Machine::new()));
                assert_eq!(live(&machine, points_before(point), creating()), End::At(point.to_owned()));
                next = Some(machine);
            }
        })
        .await;
    }

    /// How many points of a create come before this one.
    fn points_before(point: &str) -> usize {
        let order = ["inspect", "look", "record", "allocate", "probe-new", "formatting", "format", "publish", "done"];
        let (step, when) = point.trim_start_matches("create/").split_once(' ').expect("a step and when");
        let at = order.iter().position(|known| *known == step).expect("a step of a create");
        2 * at + usize::from(when == "after")
    }
}

mod a_mount_that_died {
    use super::*;

    #[tokio::test]
    async fn anywhere_leaves_mounts_loops_and_holders_in_accord() {
        let seen = at_every_point(pg, mounting, async |machine, point| {
            let engine = machine.start().await;
            machine.assert_consistent(&engine, point);
        })
        .await;
        let mut all = points_of("stage", &["look", "inspect", "record", "attach", "mount", "commit"]);
        all.extend(points_of_an_answer());
        assert_eq!(seen, all);
    }

    #[tokio::test]
    async fn before_its_commit_leaves_nothing() {
        at_every_point(pg, mounting, async |machine, point| {
            machine.start().await;
            if point != "stage/commit after" && !points_of_an_answer().contains(point) {
                machine.assert_clean(point);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn law_9_after_its_commit_is_kept_for_a_caller_that_may_have_read() {
        at_every_point(pg, mounting, async |machine, point| {
            let engine = machine.start().await;
            if point == "stage/commit after" || points_of_an_answer().contains(point) {
                assert_eq!(counts(&engine, "pg", &docker("a")).await, if point == CONFIRMED { (1, 0, 0) } else { (0, 0, 1) }, "{point}");
                assert_eq!(machine.fake.mounted(), [machine.path("pg")], "{point}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn law_9_anywhere_counts_once_after_a_retry_with_the_same_id() {
        at_every_point(pg, mounting, async |machine, point| {
            let engine = machine.start().await;
            retry(&engine, point).await;
            assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0), "{point}");
            machine.assert_consistent(&engine, point);
            assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("unmounted").action, UnmountAction::Unmounted, "{point}");
            machine.assert_clean(point);
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_counts_once_after_a_retry_that_does_not_wait_for_the_new_daemon_to_settle() {
        at_every_point(pg, mounting, async |machine, point| {
            let engine = machine.start_watched(Arc::default()).await.expect("it starts");
            retry(&engine, point).await;
            assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0), "{point}");
            rest(&engine).await;
            machine.assert_consistent(&engine, point);
            unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
            machine.assert_clean(point);
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_and_is_not_retried_leaves_nothing_after_an_unmount() {
        at_every_point(pg, mounting, async |machine, point| {
            let engine = machine.start().await;
            unmount(&engine, "pg", &docker("a")).await.unwrap_or_else(|e| panic!("{point}: {e}"));
            machine.assert_clean(point);
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_does_not_touch_another_s_hold() {
        let held_by_b = async |machine: &Machine| {
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("b")).await;
        };
        let seen = at_every_point(held_by_b, mounting, async |machine, point| {
            let engine = machine.start().await;
            assert_eq!(counts(&engine, "pg", &docker("b")).await, (1, 0, 0), "{point}");
            retry(&engine, point).await;
            assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0), "{point}");
            assert_eq!(machine.count("mount"), 1, "{point}");
        })
        .await;
        let mut all = points_of_an_answer();
        all.extend(around("stage/look"));
        assert_eq!(seen, all);
    }

    #[tokio::test]
    async fn anywhere_and_again_anywhere_in_the_retry_counts_once() {
        for first in 0.. {
            for second in 0.. {
                let machine = Shared(Arc::new(Machine::new()));
                pg(&machine).await;
                let End::At(point) = live(&machine, first, mounting()) else { return };
                if point == CONFIRMED {
                    break;
                }
                let End::At(again) = live(&machine, second, mounting()) else { break };
                let when = format!("{point}, then {again}");
                let engine = machine.start().await;
                machine.assert_consistent(&engine, &when);
                retry(&engine, &again).await;
                assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0), "{when}");
                unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
                machine.assert_clean(&when);
            }
        }
    }

    #[tokio::test]
    async fn anywhere_in_a_second_mount_without_an_id_leaves_one_holder() {
        fn mounting_without_an_id() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
            async |engine: &Engine, points: &Points| {
                let mounted = mount(engine, "pg", &anonymous()).await.expect("mounted");
                points.pass("answered".to_owned());
                mounted.claim.delivered();
            }
        }
        let held = async |machine: &Machine| {
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &anonymous()).await;
        };
        at_every_point(held, mounting_without_an_id, async |machine, point| {
            let engine = machine.start().await;
            unmount(&engine, "pg", &anonymous()).await.expect("unmounted");
            machine.assert_clean(point);
        })
        .await;
    }
}

mod an_unmount_that_died {
    use super::*;

    #[tokio::test]
    async fn anywhere_is_finished_by_the_next_start() {
        let seen = at_every_point(pg_held, unmounting, async |machine, point| {
            let engine = machine.start().await;
            match point {
                NOT_BEGUN => assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0)),
                _ => machine.assert_clean(point),
            }
        })
        .await;
        let mut all = points_of("unstage", &["look", "record", "unmount", "detach", "release"]);
        all.extend(around("unmount/give-back"));
        assert_eq!(seen, all);
    }

    #[tokio::test]
    async fn anywhere_succeeds_when_it_is_repeated() {
        at_every_point(pg_held, unmounting, async |machine, point| {
            let engine = machine.start_watched(Arc::default()).await.expect("it starts");
            unmount(&engine, "pg", &docker("a")).await.unwrap_or_else(|e| panic!("{point}: {e}"));
            rest(&engine).await;
            machine.assert_clean(point);
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_does_not_keep_the_volume_from_being_mounted_at_once() {
        at_every_point(pg_held, unmounting, async |machine, point| {
            let engine = machine.start_watched(Arc::default()).await.expect("it starts");
            hold(&engine, "pg", &docker("b")).await;
            rest(&engine).await;
            machine.assert_consistent(&engine, point);
            assert_eq!(machine.fake.mounted(), [machine.path("pg")], "{point}");
            // Found by the simulation (seed 125228946157919): the dead daemon's intent to unmount stayed with the new holder.
            let intent = machine.in_ledger().remove("pg").expect("an entry").intent;
            assert_eq!(intent, None, "{point}");
        })
        .await;
    }

    #[tokio::test]
    async fn anywhere_and_again_anywhere_in_the_next_start_is_finished_by_the_one_after() {
        for first in 0.. {
            for second in 0.. {
                let machine = Shared(Arc::new(Machine::new()));
                pg_held(&machine).await;
                let End::At(point) = live(&machine, first, unmounting()) else { return };
                let End::At(again) = live(&machine, second, async |_: &Engine, _: &Points| {}) else { break };
                let engine = machine.start().await;
                let when = format!("{point}, then {again}");
                if point == NOT_BEGUN {
                    machine.assert_consistent(&engine, &when);
                } else {
                    machine.assert_clean(&when);
                }
            }
        }
    }
}

mod a_remove_that_died {
    use super::*;

    #[tokio::test]
    async fn anywhere_leaves_a_whole_volume_or_none_and_is_done_by_a_retry() {
        let seen = at_every_point(pg, removing, async |machine, point| {
            let engine = machine.start().await;
            assert_whole_or_not_there(machine, &engine, point).await;
            engine.remove(&call(&engine), &volume("pg")).await.unwrap_or_else(|e| panic!("{point}: {e}"));
            assert_eq!(machine.in_pool(), BTreeSet::new(), "{point}");
        })
        .await;
        assert_eq!(seen, points_of("remove", &["look", "inspect", "remove"]));
    }
}

/// A whole life, over and over on one machine, each daemon dying where chance will have it.
#[tokio::test]
async fn a_hundred_daemons_that_die_one_after_the_other_lose_and_leak_nothing() {
    fn life() -> impl AsyncFnOnce(&Engine, &Points) + Send + 'static {
        async |engine: &Engine, points: &Points| {
            create(engine, "pg").await.expect("created");
            let mounted = mount(engine, "pg", &docker("a")).await.expect("mounted");
            points.pass("answered".to_owned());
            mounted.claim.delivered();
            let unmounted = unmount(engine, "pg", &docker("a")).await.expect("unmounted");
            assert_eq!(unmounted.action, UnmountAction::Unmounted);
            engine.remove(&call(engine), &volume("pg")).await.expect("removed");
        }
    }
    let machine = Shared(Arc::new(Machine::new()));
    let chance = FakeRandom::new(7);
    let mut lives = 0;
    let mut deaths = Vec::new();
    for _ in 0..100 {
        match live(&machine, chance.below(60), life()) {
            End::Whole => lives += 1,
            End::At(point) => deaths.push(point),
        }
        let engine = machine.start().await;
        machine.assert_consistent(&engine, &format!("after {deaths:?}"));
        assert_whole_or_not_there(&machine, &engine, &format!("after {deaths:?}")).await;
        if deaths.last().is_some_and(|point| [CONFIRMED, NOT_BEGUN].contains(&point.as_str())) {
            // The caller knows what it holds.
            unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
        }
    }
    assert!(lives > 0 && deaths.len() > 50, "{lives} whole lives, {} deaths", deaths.len());
    assert_eq!(live(&machine, usize::MAX, life()), End::Whole);
    machine.assert_clean("after a last whole life");
    assert_eq!(machine.in_pool(), BTreeSet::new());
}
