//! Holders whose container is gone: found by the word of a witness, never by its silence; let go of after a time of grace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use dunnage_engine::{Engine, Use, Witness};
use dunnage_model::{Caller, CallerKind, Error, Result};

const GRACE: Duration = Duration::from_secs(600);

/// Docker, which says what the test has it say; or nobody is there.
struct Docker(Mutex<Option<Result<Vec<Use>>>>);

#[async_trait]
impl Witness for Docker {
    fn name(&self) -> String {
        "docker".to_owned()
    }
    fn is_there(&self) -> bool {
        self.0.lock().expect("lock").is_some()
    }
    fn speaks_of(&self, caller: &Caller) -> bool {
        caller.kind == CallerKind::PluginClient // the IDs are short here
    }
    async fn uses(&self) -> Result<Vec<Use>> {
        self.0.lock().expect("lock").clone().expect("only asked when it is there")
    }
}

struct Bench {
    machine: Machine,
    engine: Engine,
    docker: Arc<Docker>,
}

impl Bench {
    /// `pg`, held by these.
    async fn held_by(ids: &[&str]) -> Bench {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for id in ids {
            hold(&engine, "pg", &docker(id)).await;
        }
        Bench { machine, engine, docker: Arc::new(Docker(Mutex::new(Some(Ok(Vec::new()))))) }
    }

    fn says(&self, what: Result<Vec<Use>>) {
        *self.docker.0.lock().expect("lock") = Some(what);
    }

    async fn look(&self, act: bool) {
        let witness: Arc<dyn Witness> = self.docker.clone();
        self.engine.look_for_missing(&[witness], GRACE, act).await;
        rest(&self.engine).await;
    }

    /// A look, and another one after the time of grace.
    async fn look_twice(&self, act: bool) {
        self.look(act).await;
        tokio::time::advance(GRACE).await;
        self.look(act).await;
    }

    fn missing(&self) -> Vec<String> {
        self.engine.missing(&volume("pg")).into_iter().map(|missing| missing.holder.caller.id.expect("an id")).collect()
    }

    async fn holders(&self) -> Vec<String> {
        let view = self.engine.get(&volume("pg")).await.expect("there");
        view.holders.into_iter().map(|holder| holder.key.caller.id.expect("an id")).collect()
    }
}

/// A container has pg, under these IDs if they are known.
fn a_use(ids: Option<&[&str]>) -> Use {
    let ids = ids.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>());
    Use { endpoint: endpoint(), volume: "pg".parse().expect("a name"), ids, who: "container db".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_container_lives_is_not_missing() {
    let bench = Bench::held_by(&["a"]).await;
    bench.says(Ok(vec![a_use(Some(&["a"]))]));
    bench.look_twice(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_container_is_gone_is_reported_and_kept_unless_it_is_to_be_let_go_of() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look_twice(false).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec!["a".to_owned()], vec!["a".to_owned()]));
    let view = bench.engine.get(&volume("pg")).await.expect("there");
    assert_eq!(view.missing.first().map(|missing| missing.witness.as_str()), Some("docker"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_container_is_gone_is_let_go_of_after_the_time_of_grace_and_not_before() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look(true).await;
    tokio::time::advance(GRACE - Duration::from_secs(1)).await;
    bench.look(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec!["a".to_owned()]));
    tokio::time::advance(Duration::from_secs(1)).await;
    bench.look(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec![]));
    bench.machine.assert_clean("after the time of grace");
}

#[tokio::test(start_paused = true)]
async fn silence_proves_nothing_and_begins_the_time_of_grace_anew() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look_twice(false).await;
    assert_eq!(bench.missing(), ["a"]);
    bench.says(Err(Error::unavailable("it does not answer", "wait")));
    tokio::time::advance(GRACE).await;
    bench.look(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec!["a".to_owned()]));
    bench.says(Ok(Vec::new()));
    bench.look(true).await;
    tokio::time::advance(GRACE - Duration::from_secs(1)).await;
    bench.look(true).await;
    assert_eq!(bench.holders().await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_comes_back_ends_the_time_of_grace() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look(true).await;
    bench.says(Ok(vec![a_use(None)]));
    tokio::time::advance(GRACE).await;
    bench.look(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_mounts_again_begins_the_time_of_grace_anew() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look(true).await;
    hold(&bench.engine, "pg", &docker("a")).await;
    tokio::time::advance(GRACE).await;
    bench.look(true).await;
    assert_eq!(bench.holders().await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn one_of_two_is_let_go_of_when_its_id_is_known_to_be_gone_and_the_mount_stays() {
    let bench = Bench::held_by(&["a", "b"]).await;
    bench.says(Ok(vec![a_use(Some(&["b"]))]));
    bench.look_twice(true).await;
    assert_eq!(bench.holders().await, ["b"]);
    assert_eq!(bench.machine.fake.mounted(), [bench.machine.path("pg")]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_missing_while_some_container_uses_the_volume_and_its_id_is_not_known() {
    let bench = Bench::held_by(&["a", "b"]).await;
    bench.says(Ok(vec![a_use(None)]));
    bench.look_twice(true).await;
    assert_eq!((bench.missing(), bench.holders().await.len()), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn a_container_of_another_volume_or_another_endpoint_says_nothing_of_this_one() {
    let bench = Bench::held_by(&["a"]).await;
    let of_another_volume = Use { volume: "other".parse().expect("a name"), ..a_use(None) };
    let of_another_endpoint = Use { endpoint: "rexray".parse().expect("a name"), ..a_use(None) };
    bench.says(Ok(vec![of_another_volume, of_another_endpoint]));
    bench.look_twice(false).await;
    assert_eq!(bench.missing(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_holder_stays_while_a_process_has_the_volume_mounted_whatever_the_witness_says() {
    let bench = Bench::held_by(&["a"]).await;
    bench.machine.fake.set_busy(true);
    bench.look_twice(true).await;
    assert_eq!((bench.missing(), bench.holders().await), (vec!["a".to_owned()], vec!["a".to_owned()]));
    bench.machine.fake.set_busy(false);
    bench.look(true).await;
    bench.machine.assert_clean("when it is not busy any more");
}

#[tokio::test(start_paused = true)]
async fn a_witness_does_not_speak_of_callers_of_another_kind() {
    let bench = Bench::held_by(&[]).await;
    hold(&bench.engine, "pg", &anonymous()).await;
    bench.look_twice(true).await;
    assert_eq!(bench.missing(), Vec::<String>::new());
    assert_eq!(bench.machine.fake.mounted(), [bench.machine.path("pg")]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_answer_is_on_its_way_is_not_missing() {
    let bench = Bench::held_by(&[]).await;
    let mounted = mount(&bench.engine, "pg", &docker("a")).await.expect("mounted");
    bench.look_twice(true).await;
    mounted.claim.delivered();
    assert_eq!(bench.holders().await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_person_can_let_go_for_a_holder_but_not_for_one_that_has_changed_since() {
    let bench = Bench::held_by(&["a"]).await;
    let seen = bench.engine.get(&volume("pg")).await.expect("there").holders.remove(0);
    hold(&bench.engine, "pg", &docker("a")).await;
    let e = error(bench.engine.release_holder(&call(&bench.engine), &volume("pg"), &seen).await);
    assert_eq!(e.word(), "in_use");
    let seen = bench.engine.get(&volume("pg")).await.expect("there").holders.remove(0);
    bench.engine.release_holder(&call(&bench.engine), &volume("pg"), &seen).await.expect("let go of");
    bench.machine.assert_clean("after it was let go of");
}

#[tokio::test(start_paused = true)]
async fn one_of_two_witnesses_that_is_not_there_is_silent_and_the_other_one_s_word_is_not_enough() {
    let bench = Bench::held_by(&["a"]).await;
    let (there, away): (Arc<dyn Witness>, Arc<dyn Witness>) = (bench.docker.clone(), Arc::new(Docker(Mutex::new(None))));
    for _ in 0..3 {
        bench.engine.look_for_missing(&[there.clone(), away.clone()], GRACE, true).await;
        tokio::time::advance(GRACE).await;
    }
    assert_eq!((bench.missing(), bench.holders().await), (vec![], vec!["a".to_owned()]));
}

/// Somebody sets the machine's clock.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_does_not_shorten_the_time_of_grace() {
    let bench = Bench::held_by(&["a"]).await;
    bench.look(true).await;
    bench.machine.clock.advance(1_000_000);
    bench.look(true).await;
    assert_eq!(bench.holders().await, ["a"]);
}
