//! Volumes that several nodes can attach: engines that take them from each other, on one platform in memory.

#![allow(clippy::expect_used)]

mod cluster;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::{Cluster, Node, held_by_a};
use common::{TaskFault, call, create, docker, endpoint, hold, mount, rest, unmount, volume};
use dunnage_driver::{Sign, Versioned};
use dunnage_engine::{AdoptRequest, Preempting};
use dunnage_model::{AdoptAction, Client, Owner, OwnerRecord, OwnerState, Preempt, Result};

#[tokio::test]
async fn law_6_a_volume_is_owned_before_it_is_attached_named_before_it_is_read_and_given_up_last_of_all() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    a.steps.forget();
    hold(&a.engine, "pg", &docker("c1")).await;
    assert_eq!(cluster.story(), ["a: held by a", "a: attach as a-1", "a: held by a as a-1"]);
    let order: Vec<String> = a.steps.steps().into_iter().filter(|step| !step.contains("own-")).collect();
    // What was known of it before it was ours is asked for again.
    let wanted = ["record", "own", "inspect", "attach", "name", "mount", "commit", "done"].map(|step| format!("stage/{step}"));
    assert_eq!(order[2..10], wanted);
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    assert_eq!(cluster.story(), ["a: detach", "a: free"]);
    a.machine.assert_clean("after the last holder went");
}

#[tokio::test]
async fn law_6_what_a_node_that_lives_has_is_waited_for_and_mounted_when_it_lets_go() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished() && !b.mounted());
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    assert!(b.mounted() && !a.mounted());
    assert_eq!(cluster.state(), "held by b as b-2");
    assert_eq!(cluster.platform.lock().expect("platform").fenced, BTreeSet::new());
}

#[tokio::test]
async fn law_6_what_a_node_that_lives_keeps_is_in_use_there_and_the_error_says_so() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.lives_for(48).await;
    let error = waiting.await.expect("no panic").err().expect("refused").to_string();
    assert!(error.starts_with("in_use{a}") && error.contains("volume \"pg\"") && error.contains("node a"), "{error}");
    assert!(a.mounted() && !b.mounted());
    assert_eq!(cluster.state(), "held by a as a-1");
    b.machine.assert_clean("after the refusal");
}

#[tokio::test]
async fn law_9_nobody_waits_for_another_node_on_behalf_of_a_caller_that_has_gone() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    waiting.abort();
    rest(&b.engine).await;
    b.machine.assert_clean("after its caller had gone");
    assert_eq!(cluster.state(), "held by a as a-1");
    // A retry while it waits joins it, and both are answered when it comes.
    let first = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    let second = tokio::spawn(mount(&b.engine, "pg", &docker("c3")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    for waiting in [first, second] {
        waiting.await.expect("no panic").expect("mounted").claim.delivered();
    }
    assert_eq!(b.machine.count("mount"), 1);
}

#[tokio::test]
async fn law_6_what_a_late_change_has_made_this_node_s_is_given_up_when_it_looks_again() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    create(&a.engine, "pg").await.expect("created");
    {
        let mut platform = cluster.platform.lock().expect("platform");
        let owner = Owner { node: "a".parse().expect("name"), boot: dunnage_model::BootId("boot-0".to_owned()) };
        let record = OwnerRecord::new().with(OwnerState::Held { owner, clients: None, taken: false });
        platform.owners.insert(volume("pg").name, Versioned { revision: 7, record });
    }
    a.engine.settle().await;
    rest(&a.engine).await;
    assert_eq!(cluster.state(), "free");
    hold(&b.engine, "pg", &docker("c2")).await;
    // What is in use stays.
    b.engine.settle().await;
    rest(&b.engine).await;
    assert!(b.mounted());
    assert_eq!(cluster.state(), "held by b as b-1");
}

#[tokio::test]
async fn law_6_a_dead_node_s_volume_is_taken_with_its_clients_cut_off_and_the_barrier_passed_before_it_is_attached() {
    let (cluster, _a, b) = held_by_a(Preempt::IfDead).await;
    cluster.dies("a");
    cluster.story();
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    // Silence counts from when it was looked at, and for as long as it must.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(cluster.story().is_empty() && !waiting.is_finished());
    b.lives_for(18).await;
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    let expected = ["fencing by b of a-1", "fence a-1", "barrier", "held by b", "attach as b-2", "held by b as b-2"];
    assert_eq!(cluster.story(), expected.map(|what| format!("b: {what}")));
}

#[tokio::test]
async fn law_6_always_takes_it_from_a_node_that_lives_and_cuts_it_off_first() {
    let (cluster, a, b) = held_by_a(Preempt::Always).await;
    cluster.story();
    hold(&b.engine, "pg", &docker("c2")).await;
    assert_eq!(cluster.story()[..3], ["b: fencing by b of a-1", "b: fence a-1", "b: barrier"]);
    // The old owner lets go later, and takes nothing back.
    unmount(&a.engine, "pg", &docker("c1")).await.expect("unmounted");
    assert_eq!(cluster.state(), "held by b as b-2");
}

#[tokio::test]
async fn law_6_the_rule_of_the_daemon_holds_for_endpoints_that_it_has_not_and_a_new_one_at_once() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    cluster.dies("a");
    let never = Preempting { usual: Preempt::Never, ..Preempting::default() };
    b.engine.preempt(never.clone());
    let waiting = tokio::spawn(mount(&b.engine, "pg", &docker("c2")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.lives_for(90).await;
    waiting.await.expect("no panic").err().expect("it is taken from nobody, dead or not");
    assert_eq!(cluster.state(), "held by a as a-1");
    b.engine.preempt(Preempting { endpoints: BTreeMap::from([(endpoint(), Preempt::Always)]), ..never });
    hold(&b.engine, "pg", &docker("c2")).await;
    assert_eq!(cluster.state(), "held by b as b-2");
    drop(a);
}

#[tokio::test]
async fn law_6_of_two_that_take_from_a_dead_node_at_once_one_mounts_and_the_other_is_told_who() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let c = cluster.node("c").await;
    cluster.dies("a");
    let [for_b, for_c] = [&b, &c].map(|node| tokio::spawn(mount(&node.engine, "pg", &docker("c2"))));
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.lives_for(90).await;
    c.lives_for(90).await;
    let (of_b, of_c) = (for_b.await.expect("no panic"), for_c.await.expect("no panic"));
    let (winner, error) = match (of_b, of_c) {
        (Ok(mounted), Err(error)) => (("b", mounted), error),
        (Err(error), Ok(mounted)) => (("c", mounted), error),
        (of_b, of_c) => panic!("b: {:?}, c: {:?}", of_b.err(), of_c.err()),
    };
    assert!(error.to_string().starts_with(&format!("in_use{{{}}}", winner.0)), "{error}");
    winner.1.claim.delivered();
    assert_eq!((b.mounted(), c.mounted()), (winner.0 == "b", winner.0 == "c"));
    assert!(cluster.state().starts_with(&format!("held by {0} as {0}-", winner.0)), "{}", cluster.state());
    drop(a);
}

#[tokio::test]
async fn a_silent_node_that_has_something_open_is_suspect_and_then_given_up_and_it_is_said_why() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    cluster.platform.lock().expect("platform").signs.get_mut(&"a".parse().expect("name")).expect("it gave a sign").watched = false;
    let (mut states, call) = (Vec::new(), call(&b.engine));
    for _ in 0..40 {
        let (nodes, _) = b.engine.nodes(&call, None).await.expect("nodes");
        let node = nodes.into_iter().find(|node| node.node.as_str() == "a").expect("a is known");
        if states.last().is_none_or(|(state, _)| *state != node.state) {
            states.push((node.state, node.how));
        }
        b.lives_for(9).await;
    }
    let words: Vec<_> = states.iter().map(|(state, _)| state.word()).collect();
    assert_eq!(words, ["silent", "suspect", "dead"]);
    assert!(states[2].1.contains("given up, though something on it has a volume open"), "{states:?}");
    let inspected = b.engine.inspect(&volume("pg")).await.expect("inspected");
    assert_eq!(inspected.owner.map(|owner| (owner.node.to_string(), owner.state.word())), Some(("a".to_owned(), "dead")));
    assert_eq!(inspected.preempt, Some(Preempt::IfDead));
    drop(a);
}

#[tokio::test]
async fn law_6_a_takeover_whose_platform_refuses_any_one_call_is_gone_on_with_by_whoever_asks_and_skips_nothing() {
    for works in [false, true] {
        for calls in 0.. {
            let (cluster, _a, b) = held_by_a(Preempt::Always).await;
            let c = cluster.node_with("c", Preempt::Always).await;
            cluster.story();
            cluster.platform.lock().expect("platform").fails_after = Some((calls, works));
            let outcome = mount(&b.engine, "pg", &docker("c2")).await;
            let all_worked = cluster.platform.lock().expect("platform").fails_after.take().is_some();
            let said = match outcome {
                Ok(mounted) => {
                    mounted.claim.delivered();
                    unmount(&b.engine, "pg", &docker("c2")).await.expect("unmounted");
                    String::new()
                }
                Err(e) => e.to_string(),
            };
            assert!(said.is_empty() || said.starts_with("platform_unavailable"), "{said}");
            hold(&c.engine, "pg", &docker("c3")).await;
            let story = cluster.story();
            // Nobody has it by a client of its own before the old one's was cut off, and whatever it had sent has come or was refused.
            let had = story.iter().position(|step| step.contains(": held by") && step.contains(" as ")).expect("it is had");
            let fenced = story[..had].iter().position(|step| step.ends_with(": fence a-1"));
            let passed = story[..had].iter().rposition(|step| step.ends_with(": barrier"));
            assert!(fenced.is_some() && passed > fenced, "after call {calls} failed ({works}): {story:?}");
            if all_worked {
                assert!(calls > 5, "{calls} calls");
                break;
            }
        }
    }
}

#[tokio::test]
async fn law_6_what_could_be_neither_removed_nor_looked_at_again_does_not_stay_this_node_s() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    a.machine.tasks.plan("local.remove", 0, TaskFault::Error);
    a.machine.tasks.plan("local.recover", 0, TaskFault::Error);
    a.engine.remove(&call(&a.engine), &volume("pg")).await.expect_err("nothing works");
    assert_eq!(cluster.state(), "held by a");
    a.engine.sweep();
    rest(&a.engine).await;
    assert_eq!(cluster.state(), "free");
    assert!(cluster.pool().join("pg/image").exists(), "it was removed after all");
}

#[tokio::test]
async fn law_6_what_another_node_has_taken_is_shut_down_once_and_handed_to_nobody() {
    let (cluster, a, b) = held_by_a(Preempt::Always).await;
    hold(&b.engine, "pg", &docker("c2")).await;
    let error = mount(&a.engine, "pg", &docker("c3")).await.err().expect("refused").to_string();
    assert!(error.contains("node b has taken it"), "{error}");
    a.lives_for(90).await;
    a.looks_for_what_was_lost().await;
    a.lives_for(90).await;
    assert_eq!((a.machine.count("shut-down"), b.machine.count("shut-down")), (1, 0));
    assert_eq!(cluster.state(), "held by b as b-2");
}

#[tokio::test]
async fn law_8_a_mount_that_hangs_when_it_is_shut_down_keeps_no_sign_of_life_waiting() {
    let (_cluster, a, b) = held_by_a(Preempt::Always).await;
    hold(&b.engine, "pg", &docker("c2")).await;
    let _never = a.machine.fake.hang("shut-down");
    a.lives_for(90).await;
    a.looks_for_what_was_lost().await;
    // It hangs, and the next signs are given all the same.
    tokio::time::timeout(Duration::from_secs(20), a.lives_for(90)).await.expect("signs wait for what hangs");
}

#[tokio::test]
async fn law_6_a_node_that_is_gone_is_cut_off_by_name_for_good_and_what_it_had_is_free() {
    let (cluster, a, b) = held_by_a(Preempt::IfDead).await;
    let (name, call_of_b) = ("a".parse().expect("name"), call(&b.engine));
    let lives = b.engine.fence_node(&call_of_b, None, &name, false).await.expect_err("it lives").to_string();
    assert!(lives.contains("--force"), "{lives}");
    assert!(cluster.story().is_empty() && cluster.platform.lock().expect("platform").barred.is_empty(), "a refused fence did something");
    cluster.dies("a");
    let evicted = b.engine.fence_node(&call_of_b, None, &name, false).await.expect("cut off");
    assert_eq!(evicted.iter().map(|one| one.error.clone()).collect::<Vec<_>>(), [None]);
    assert_eq!(cluster.story(), ["b: fencing by b of a-1", "b: fence a-1", "b: barrier", "b: free"]);
    let nodes = b.engine.nodes(&call_of_b, None).await.expect("nodes").0;
    assert_eq!(
        nodes.iter().map(|node| (node.node.to_string(), node.fenced)).collect::<Vec<_>>(),
        [("a".into(), true), ("b".into(), false)]
    );
    assert!(a.engine.give_sign(&volume("pg").driver).await.is_err(), "it was not barred");
    b.engine.unfence_node(None, &name).await.expect("pardoned");
    a.engine.give_sign(&volume("pg").driver).await.expect("it was pardoned");
}

#[tokio::test]
async fn law_6_who_loses_it_while_it_attaches_reads_nothing() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node_with("b", Preempt::Always).await);
    create(&a.engine, "pg").await.expect("created");
    let platform = cluster.platform.clone();
    a.steps.at_each(move |_, step, after| {
        if step == "attach" && after {
            // Between two steps of ours another has taken it, and has done with it.
            let mut platform = platform.lock().expect("platform");
            let found = platform.owners.get_mut(&volume("pg").name).expect("claimed");
            let by = Owner { node: "c".parse().expect("name"), boot: dunnage_model::BootId("1".to_owned()) };
            (found.revision, found.record.epoch) = (found.revision + 2, found.record.epoch + 1);
            found.record.state = OwnerState::Held { owner: by, clients: None, taken: true };
        }
    });
    let error = mount(&a.engine, "pg", &docker("c1")).await.err().expect("refused").to_string();
    assert!(error.contains("another node has taken it"), "{error}");
    a.machine.assert_clean("after it was lost");
    assert_eq!(a.machine.count("mount"), 0, "it was read");
    assert_eq!(cluster.state(), "held by c");
    assert_eq!(b.mine.lock().expect("mine").len(), 0);
}

#[tokio::test]
async fn law_6_what_nobody_could_cut_off_is_not_read() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    let mine = a.mine.clone();
    // A driver that does not know by which client it has attached.
    a.steps.at_each(move |_, step, after| {
        if step == "attach" && after {
            mine.lock().expect("mine").clear();
        }
    });
    let error = mount(&a.engine, "pg", &docker("c1")).await.err().expect("refused").to_string();
    assert!(error.contains("by which client"), "{error}");
    assert_eq!(a.machine.count("mount"), 0, "it was read");
    assert_eq!(cluster.state(), "free");
}

#[tokio::test]
async fn law_6_a_removal_of_what_another_node_has_is_refused_at_once() {
    let (cluster, a, b) = held_by_a(Preempt::Always).await;
    let error = b.engine.remove(&call(&b.engine), &volume("pg")).await.expect_err("refused").to_string();
    assert!(error.starts_with("in_use{a}"), "{error}");
    assert!(a.mounted() && cluster.pool().join("pg/image").exists());
}

#[tokio::test]
async fn a_node_is_dead_after_the_silence_that_its_driver_is_told_and_no_sooner() {
    let cluster = Cluster::new();
    let (_a, b) = (cluster.node("a").await, cluster.node("b").await);
    cluster.platform.lock().expect("platform").silence = Some(Duration::from_secs(5));
    cluster.dies("a");
    let driver = volume("pg").driver;
    let mut seen = Vec::new();
    for _ in 0..7 {
        let (nodes, _) = b.engine.nodes(&call(&b.engine), None).await.expect("nodes");
        seen.push(nodes.iter().find(|node| node.node.as_str() == "a").expect("a").state);
        b.machine.clock.advance(1);
        b.engine.give_sign(&driver).await.expect("it lives");
    }
    assert_eq!(seen[..5], [dunnage_engine::NodeState::Silent; 5]);
    assert_eq!(seen[5..], [dunnage_engine::NodeState::Dead; 2]);
}

#[tokio::test]
async fn law_6_two_machines_under_one_name_do_not_both_attach() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    // Another machine, which runs since another boot, has the lease of this name.
    cluster.platform.lock().expect("platform").signs.get_mut(&"a".parse().expect("name")).expect("a sign").boot =
        dunnage_model::BootId("of another machine".to_owned());
    a.machine.clock.advance(30);
    let waiting = tokio::spawn(mount(&a.engine, "pg", &docker("c1")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.machine.clock.advance(48);
    let error = waiting.await.expect("no panic").err().expect("refused").to_string();
    assert!(error.contains("another machine runs under this node's name"), "{error}");
    a.machine.assert_clean("after the refusal");
}

#[tokio::test]
async fn law_6_an_earlier_run_of_this_node_is_waited_for_until_the_platform_sees_it_no_more() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    create(&a.engine, "pg").await.expect("created");
    let sign = |change: &dyn Fn(&mut Sign)| {
        change(cluster.platform.lock().expect("platform").signs.get_mut(&"a".parse().expect("name")).expect("a sign"))
    };
    sign(&|sign| sign.boot = dunnage_model::BootId("before this one".to_owned()));
    a.machine.clock.advance(30);
    let waiting = tokio::spawn(mount(&a.engine, "pg", &docker("c1")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished() && !a.mounted());
    sign(&|sign| sign.watched = false);
    waiting.await.expect("no panic").expect("mounted").claim.delivered();
    assert!(a.mounted());
}

#[tokio::test]
async fn law_6_a_platform_that_fails_at_any_call_leaves_a_volume_that_is_mounted_or_free_for_others() {
    for works in [false, true] {
        for calls in 0.. {
            let cluster = Cluster::new();
            let (a, b) = (cluster.node("a").await, cluster.node("b").await);
            create(&a.engine, "pg").await.expect("created");
            cluster.platform.lock().expect("platform").fails_after = Some((calls, works));
            let outcome = mount(&a.engine, "pg", &docker("c1")).await;
            let all_worked = cluster.platform.lock().expect("platform").fails_after.take().is_some();
            match outcome {
                Ok(mounted) => mounted.claim.delivered(),
                Err(e) => assert_eq!(e.word(), "platform_unavailable", "{e}"),
            }
            if !a.mounted() {
                // What could not be given up is, with a sweep.
                a.engine.sweep();
                rest(&a.engine).await;
                a.machine.assert_clean(&format!("after call {calls} failed"));
                hold(&b.engine, "pg", &docker("c2")).await;
                assert!(b.mounted());
            }
            if all_worked {
                assert!(a.mounted() && calls > 4, "{calls} calls");
                break;
            }
        }
    }
}

/// What somebody else has put there: a volume's image without a word of whose it is.
async fn with_a_stranger(cluster: &Cluster, a: &Node) {
    create(&a.engine, "pg").await.expect("created");
    std::fs::remove_file(cluster.pool().join("pg/record.json")).expect("forgotten");
    let mut platform = cluster.platform.lock().expect("platform");
    platform.owners.clear();
    platform.story.clear();
}

async fn adopt(node: &Node) -> Result<AdoptAction> {
    let request = AdoptRequest { endpoint: endpoint(), root_path: None, moves: false, overwrite: false };
    node.engine.adopt(&call(&node.engine), &volume("pg"), request).await
}

#[tokio::test]
async fn law_6_what_is_adopted_is_owned_before_anything_of_it_is_read_through_a_device_and_free_afterwards() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    with_a_stranger(&cluster, &a).await;
    assert_eq!(adopt(&a).await.expect("adopted"), AdoptAction::Adopted);
    let story = ["a: claim", "a: attach as a-1", "a: held by a as a-1", "a: detach", "a: adopt", "a: free"];
    assert_eq!(cluster.story(), story);
    a.machine.assert_clean("after the adoption");
    hold(&b.engine, "pg", &docker("c1")).await;
}

#[tokio::test]
async fn law_6_what_somebody_has_open_is_not_adopted_and_nobody_is_cut_off() {
    let cluster = Cluster::new();
    let a = cluster.node_with("a", Preempt::Always).await;
    with_a_stranger(&cluster, &a).await;
    let client = Client("rbd-map".to_owned());
    cluster.platform.lock().expect("platform").open.insert("pg".parse().expect("name"), [client].into());
    let error = adopt(&a).await.expect_err("it is in use");
    assert!(error.word() == "in_use" && error.to_string().contains("rbd-map"), "{error}");
    assert_eq!(cluster.story(), ["a: claim"]);
    assert!(cluster.platform.lock().expect("platform").owners.is_empty(), "it stays somebody's");
}

#[tokio::test]
async fn law_4_an_adoption_that_fails_at_any_call_leaves_a_stranger_or_a_volume() {
    for works in [false, true] {
        for calls in 0.. {
            let cluster = Cluster::new();
            let (a, b) = (cluster.node("a").await, cluster.node("b").await);
            with_a_stranger(&cluster, &a).await;
            cluster.platform.lock().expect("platform").fails_after = Some((calls, works));
            let outcome = adopt(&a).await;
            let all_worked = cluster.platform.lock().expect("platform").fails_after.take().is_some();
            a.engine.sweep();
            rest(&a.engine).await;
            a.machine.assert_clean(&format!("after call {calls} failed"));
            let again = adopt(&b).await.unwrap_or_else(|e| panic!("after call {calls} failed ({works}): {e}"));
            assert!(matches!(again, AdoptAction::Adopted | AdoptAction::AlreadyThere));
            hold(&b.engine, "pg", &docker("c1")).await;
            if all_worked {
                assert!(outcome.is_ok() && calls > 5, "{calls} calls");
                break;
            }
        }
    }
}
