//! Every call that a verb makes fails once: before its work and after it. Nothing may be left, and the repeat succeeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fmt;

use common::*;
use dunnage_engine::Engine;
use dunnage_host::fake::Fault;
use dunnage_model::{Error, RemoveAction, Result, UnmountAction};

/// One call of a verb.
#[derive(Clone, Copy)]
enum Point {
    /// A call of the kernel or a tool.
    Host(&'static str),
    /// A task of the driver, and how many of its name are skipped.
    Task(&'static str, usize),
}

/// How it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// It has done nothing.
    Before,
    /// It has done its work.
    After,
}

impl Point {
    fn arm(self, machine: &Machine, how: How) {
        match (self, how) {
            (Point::Host(call), How::Before) => machine.fake.plan(call, Fault::Error(injected())),
            (Point::Host(call), How::After) => machine.fake.plan(call, Fault::ErrorAfter(injected())),
            (Point::Task(task, skipped), How::Before) => machine.tasks.plan(task, skipped, TaskFault::Error),
            (Point::Task(task, skipped), How::After) => machine.tasks.plan(task, skipped, TaskFault::ErrorAfter),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Host(call) => f.write_str(call),
            Point::Task(task, skipped) => write!(f, "{task} after {skipped}"),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == How::Before { "before its work" } else { "after its work" })
    }
}

use How::{After, Before};
use Point::{Host, Task};

/// All calls of a create. A fault after a look is one before it: nothing was done.
const CREATE: &[(Point, How)] = &[
    (Task("local.inspect", 0), Before),
    (Host("at"), Before),
    (Task("local.record", 0), Before),
    (Task("local.record", 0), After),
    (Task("local.allocate", 0), Before),
    (Task("local.allocate", 0), After),
    (Host("probe"), Before),
    (Task("local.formatting", 0), Before),
    (Task("local.formatting", 0), After),
    (Host("format"), Before),
    (Host("format"), After),
    (Task("local.publish", 0), Before),
    (Task("local.publish", 0), After),
];

/// All calls of a mount.
const MOUNT: &[(Point, How)] =
    &[(Host("at"), Before), (Task("local.inspect", 0), Before), (Host("attach"), Before), (Host("attach"), After), (Host("mount"), Before)];

/// All calls of an unmount.
const UNMOUNT: &[(Point, How)] =
    &[(Host("at"), Before), (Host("unmount"), Before), (Host("unmount"), After), (Host("detach"), Before), (Host("detach"), After)];

/// All calls of a remove.
const REMOVE: &[(Point, How)] = &[
    (Host("at"), Before),
    (Task("local.inspect", 0), Before),
    (Host("list"), Before),
    (Task("local.remove", 0), Before),
    (Task("local.remove", 0), After),
];

/// The answer is the injected error, as it was.
fn told<T>(outcome: Result<T>, when: &str) -> Error {
    let Err(error) = outcome else { panic!("it worked {when}") };
    assert_eq!(error.detail, "injected", "another error than the first was told {when}");
    error
}

async fn swept(engine: &Engine) {
    engine.sweep();
    rest(engine).await;
}

#[tokio::test]
async fn the_tables_have_every_call_that_the_verbs_make() {
    fn made(machine: &Machine) -> BTreeSet<String> {
        let host = machine.fake.calls().into_iter().map(|call| call.split(' ').next().expect("a word").to_owned());
        let made = host.chain(machine.tasks.calls()).collect();
        machine.fake.forget_calls();
        machine.tasks.forget_calls();
        made
    }
    fn in_table(table: &[(Point, How)]) -> BTreeSet<String> {
        table.iter().map(|(point, _)| point.to_string().split(' ').next().expect("a word").to_owned()).collect()
    }
    let machine = Machine::new();
    let engine = machine.start().await;
    made(&machine);
    create(&engine, "pg").await.expect("created");
    assert_eq!(made(&machine), in_table(CREATE));
    hold(&engine, "pg", &docker("a")).await;
    assert_eq!(made(&machine), in_table(MOUNT));
    unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
    assert_eq!(made(&machine), in_table(UNMOUNT));
    engine.remove(&call(&engine), &volume("pg")).await.expect("removed");
    assert_eq!(made(&machine), in_table(REMOVE));
}

mod a_create {
    use super::*;

    #[tokio::test]
    async fn that_fails_anywhere_leaves_nothing_and_its_repeat_succeeds() {
        for (point, how) in CREATE {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.start().await;
            point.arm(&machine, *how);
            told(create(&engine, "pg").await, &when);
            assert_eq!(machine.in_pool(), BTreeSet::new(), "{when}");
            assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found", "{when}");
            create(&engine, "pg").await.unwrap_or_else(|e| panic!("no second try {when}: {e}"));
            hold(&engine, "pg", &docker("a")).await;
        }
    }

    #[tokio::test]
    async fn over_half_a_volume_that_fails_anywhere_leaves_nothing_either() {
        for (point, how) in &CREATE[4..] {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.start().await;
            half_a_volume(&machine, &engine).await;
            assert_eq!(machine.in_pool(), ["pg".to_owned()].into(), "half a volume");
            point.arm(&machine, *how);
            told(create(&engine, "pg").await, &when);
            assert_eq!(machine.in_pool(), BTreeSet::new(), "{when}");
        }
    }

    /// A record was made, nobody was told so, and it could not be undone.
    async fn half_a_volume(machine: &Machine, engine: &dunnage_engine::Engine) {
        Task("local.record", 0).arm(machine, After);
        Task("local.recover", 0).arm(machine, Before);
        told(create(engine, "pg").await, "when the record failed");
    }

    #[tokio::test]
    async fn whose_record_was_made_and_not_undone_is_invisible_and_its_repeat_succeeds() {
        let machine = Machine::new();
        let engine = machine.start().await;
        half_a_volume(&machine, &engine).await;
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found");
        create(&engine, "pg").await.expect("the second try");
        hold(&engine, "pg", &docker("a")).await;
    }

    #[tokio::test]
    async fn whose_record_was_made_and_not_undone_is_undone_when_the_platform_is_listed() {
        let machine = Machine::new();
        let engine = machine.start().await;
        half_a_volume(&machine, &engine).await;
        engine.settle().await;
        rest(&engine).await;
        assert_eq!(machine.in_pool(), BTreeSet::new());
    }

    #[tokio::test]
    async fn law_4_whose_record_was_made_and_not_undone_is_undone_by_a_sweep() {
        let machine = Machine::new();
        let engine = machine.start().await;
        half_a_volume(&machine, &engine).await;
        // And the sweep's own try fails once.
        Task("local.recover", 0).arm(&machine, Before);
        for left in [1, 0] {
            engine.sweep();
            rest(&engine).await;
            assert_eq!(machine.in_pool().len(), left);
        }
        let calls = machine.tasks.calls().len();
        engine.sweep();
        rest(&engine).await;
        assert_eq!(machine.tasks.calls().len(), calls, "it is done again, though it was done");
    }

    #[tokio::test]
    async fn whose_undo_fails_too_is_undone_when_the_platform_is_listed() {
        for (point, how) in &CREATE[4..] {
            let machine = Machine::new();
            let engine = machine.start().await;
            point.arm(&machine, *how);
            Task("local.remove", 0).arm(&machine, Before);
            told(create(&engine, "pg").await, &format!("when {point} failed {how}"));
            engine.settle().await;
            rest(&engine).await;
            let published = matches!((point, how), (Task("local.publish", _), After));
            assert_eq!(machine.in_pool().is_empty(), !published, "when {point} failed {how}");
        }
    }
}

mod a_mount {
    use super::*;

    async fn fails_and_leaves_nothing(point: Point, how: How) {
        let when = format!("when {point} failed {how}");
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        point.arm(&machine, how);
        told(mount(&engine, "pg", &docker("a")).await, &when);
        rest(&engine).await;
        machine.assert_clean(&when);
        assert_eq!(holders(&engine, "pg").await, [], "{when}");
        assert_eq!(engine.active(), [], "{when}");
        hold(&engine, "pg", &docker("a")).await;
        machine.assert_consistent(&engine, &when);
        unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
        machine.assert_clean(&when);
    }

    #[tokio::test]
    async fn that_fails_anywhere_leaves_nothing_and_its_repeat_succeeds() {
        for (point, how) in MOUNT {
            fails_and_leaves_nothing(*point, *how).await;
        }
    }

    #[tokio::test]
    async fn that_was_made_and_failed_leaves_nothing_and_its_repeat_succeeds() {
        fails_and_leaves_nothing(Host("mount"), After).await;
    }

    #[tokio::test]
    async fn that_fails_does_not_take_another_s_hold() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        Host("at").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("b")).await, "when the look failed");
        rest(&engine).await;
        assert_eq!((machine.fake.mounted(), holders(&engine, "pg").await.len()), (vec![machine.path("pg")], 1));
    }

    #[tokio::test]
    async fn whose_undo_fails_too_is_undone_by_the_next_try_or_the_sweep() {
        for (point, how) in &MOUNT[2..] {
            for undo in [Before, After] {
                let when = format!("when {point} failed {how}, and the detach {undo}");
                let machine = Machine::new();
                let engine = machine.with_pg().await;
                point.arm(&machine, *how);
                Host("detach").arm(&machine, undo);
                told(mount(&engine, "pg", &docker("a")).await, &when);
                rest(&engine).await;
                swept(&engine).await;
                machine.assert_clean(&when);
            }
        }
    }

    #[tokio::test]
    async fn that_fails_again_after_a_failed_undo_forgets_no_loop() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        Host("mount").arm(&machine, Before);
        Host("detach").arm(&machine, Before);
        Host("detach").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "the first time");
        rest(&engine).await;
        Host("mount").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "the second time");
        rest(&engine).await;
        swept(&engine).await;
        machine.assert_clean("after two failed mounts and a sweep");
    }

    #[tokio::test]
    async fn that_was_made_and_could_not_be_undone_is_not_forgotten_by_a_second_one_that_fails() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        Host("mount").arm(&machine, After);
        // Of the undo, and of the unmount that tries again.
        Host("unmount").arm(&machine, Before);
        Host("unmount").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "the first time");
        rest(&engine).await;
        Host("attach").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "the second time");
        rest(&engine).await;
        swept(&engine).await;
        machine.assert_clean("after two failed mounts and a sweep");
    }

    #[tokio::test]
    async fn that_was_made_and_could_not_be_undone_is_not_forgotten_while_it_is_busy() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        Host("mount").arm(&machine, After);
        Host("unmount").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "when the mount failed");
        machine.fake.set_busy(true);
        rest(&engine).await;
        swept(&engine).await;
        machine.fake.set_busy(false);
        swept(&engine).await;
        machine.assert_clean("when it is not busy any more");
    }

    #[tokio::test]
    async fn that_failed_and_could_not_be_undone_does_not_keep_the_volume_from_being_removed() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        Host("mount").arm(&machine, Before);
        Host("detach").arm(&machine, Before);
        Host("detach").arm(&machine, Before);
        told(mount(&engine, "pg", &docker("a")).await, "at first");
        rest(&engine).await;
        assert_eq!(engine.remove(&call(&engine), &volume("pg")).await, Ok(RemoveAction::Removed));
    }

    #[tokio::test]
    async fn law_4_that_cannot_be_written_down_is_not_begun() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::write(machine.ledger().join("local"), "in the way").expect("written");
        error(mount(&engine, "pg", &docker("a")).await);
        rest(&engine).await;
        assert_eq!((machine.count("attach"), machine.count("mount"), machine.attached()), (0, 0, 0));
        std::fs::remove_file(machine.ledger().join("local")).expect("removed");
        hold(&engine, "pg", &docker("a")).await;
        machine.assert_consistent(&engine, "when the ledger can be written again");
    }

    #[tokio::test]
    async fn that_several_joined_fails_for_all_of_them_and_leaves_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        Host("mount").arm(&machine, Before);
        let (a, b, c) =
            tokio::join!(mount(&engine, "pg", &docker("a")), mount(&engine, "pg", &docker("b")), mount(&engine, "pg", &anonymous()));
        for outcome in [a, b, c] {
            told(outcome, "when the one mount failed");
        }
        rest(&engine).await;
        assert_eq!(machine.count("mount"), 1);
        machine.assert_clean("after the failed mount");
    }
}

mod an_unmount {
    use super::*;

    #[tokio::test]
    async fn that_fails_anywhere_is_finished_by_its_repeat() {
        for (point, how) in UNMOUNT {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("a")).await;
            point.arm(&machine, *how);
            told(unmount(&engine, "pg", &docker("a")).await, &when);
            unmount(&engine, "pg", &docker("a")).await.unwrap_or_else(|e| panic!("no second try {when}: {e}"));
            machine.assert_clean(&when);
            assert_eq!(engine.active(), [], "{when}");
        }
    }

    #[tokio::test]
    async fn that_fails_anywhere_is_finished_by_the_sweep() {
        for (point, how) in UNMOUNT {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("a")).await;
            point.arm(&machine, *how);
            told(unmount(&engine, "pg", &docker("a")).await, &when);
            swept(&engine).await;
            machine.assert_clean(&when);
        }
    }

    #[tokio::test]
    async fn that_fails_anywhere_is_finished_by_a_restart() {
        for (point, how) in UNMOUNT {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("a")).await;
            point.arm(&machine, *how);
            told(unmount(&engine, "pg", &docker("a")).await, &when);
            drop(engine);
            machine.start().await;
            machine.assert_clean(&when);
        }
    }

    #[tokio::test]
    async fn that_fails_anywhere_does_not_keep_the_volume_from_being_mounted() {
        for (point, how) in UNMOUNT {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("a")).await;
            point.arm(&machine, *how);
            told(unmount(&engine, "pg", &docker("a")).await, &when);
            hold(&engine, "pg", &docker("b")).await;
            machine.assert_consistent(&engine, &when);
            let unmounted = unmount(&engine, "pg", &docker("b")).await.expect("unmounted");
            assert_eq!(unmounted.action, UnmountAction::Unmounted, "{when}");
            machine.assert_clean(&when);
        }
    }

    #[tokio::test]
    async fn that_cannot_ask_who_uses_an_adopted_mount_keeps_it() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        drop(engine);
        std::fs::remove_dir_all(machine.ledger()).expect("wiped");
        let engine = machine.start().await;
        Host("users").arm(&machine, Before);
        told(unmount(&engine, "pg", &docker("a")).await, "when nobody could say who uses it");
        machine.assert_consistent(&engine, "when nobody could say who uses it");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }
}

mod a_remove {
    use super::*;

    #[tokio::test]
    async fn that_fails_anywhere_is_finished_by_its_repeat() {
        for (point, how) in REMOVE {
            let when = format!("when {point} failed {how}");
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            point.arm(&machine, *how);
            told(engine.remove(&call(&engine), &volume("pg")).await, &when);
            engine.remove(&call(&engine), &volume("pg")).await.unwrap_or_else(|e| panic!("no second try {when}: {e}"));
            assert_eq!(machine.in_pool(), BTreeSet::new(), "{when}");
            assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found", "{when}");
        }
    }

    #[tokio::test]
    async fn that_failed_before_it_removed_anything_leaves_a_volume_that_can_be_mounted() {
        for (point, how) in &REMOVE[..4] {
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            point.arm(&machine, *how);
            told(engine.remove(&call(&engine), &volume("pg")).await, &format!("when {point} failed {how}"));
            hold(&engine, "pg", &docker("a")).await;
        }
    }
}

mod a_start {
    use super::*;

    #[tokio::test]
    async fn that_cannot_read_the_kernel_s_table_does_not_serve_and_loses_nothing() {
        for call in ["prepare", "table"] {
            let machine = Machine::new();
            let engine = machine.with_pg().await;
            hold(&engine, "pg", &docker("a")).await;
            drop(engine);
            Host(call).arm(&machine, Before);
            told(machine.start_watched(std::sync::Arc::default()).await, call);
            let engine = machine.start().await;
            assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        }
    }

    #[tokio::test]
    async fn whose_platform_cannot_be_listed_serves_what_it_knows() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        drop(engine);
        Task("local.list", 0).arm(&machine, Before);
        let engine = machine.start().await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("unmounted").action, UnmountAction::Unmounted);
        machine.assert_clean("after the unmount");
    }
}

#[tokio::test]
async fn a_platform_that_could_not_be_listed_is_asked_again_and_the_others_are_not() {
    let machine = Machine::new();
    let engine = machine.start().await;
    Task("local.list", 0).arm(&machine, Before);
    let left = engine.settle().await;
    assert_eq!(left.len(), 1, "{left:?}");
    machine.tasks.forget_calls();
    assert_eq!(engine.settle_these(left).await, []);
    let calls = machine.tasks.calls();
    assert_eq!(calls.iter().filter(|call| call.starts_with("local.list")).count(), 1, "{calls:?}");
}
