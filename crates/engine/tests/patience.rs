//! Laws 8 and 9: many at once, callers that do not wait, and calls that do not come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use common::*;
use dunnage_host::fake::Fault;
use dunnage_model::{Kind, MountAction, UnmountAction};
use tokio::time::Instant;

/// Podman's.
const SHORT: Duration = Duration::from_secs(5);

fn timeout_of(error: &dunnage_model::Error) -> &str {
    match &error.kind {
        Kind::Timeout { operation } => operation,
        other => panic!("no timeout: {other:?}"),
    }
}

/// A caller without patience mounts a volume whose platform hangs; gives the error.
async fn impatient_mount(engine: &dunnage_engine::Engine, name: &str, id: &str) -> dunnage_model::Error {
    error(engine.mount(&patient(engine, SHORT), &volume(name), docker(id)).await)
}

mod a_platform_that_hangs {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lets_a_caller_go_when_its_patience_ends_and_says_where_the_job_is() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _bell = machine.fake.hang("attach");
        let began = Instant::now();
        let error = impatient_mount(&engine, "pg", "a").await;
        assert_eq!(timeout_of(&error), "stage/attach");
        assert!(began.elapsed() >= SHORT && began.elapsed() < SHORT + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn is_named_in_the_error_with_the_operation_that_hangs_and_not_the_one_that_waits() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _bell = machine.fake.hang("attach");
        let first = patient(&engine, SHORT);
        let _ = engine.mount(&first, &volume("pg"), docker("a")).await.map(|_| ());
        let second = impatient_mount(&engine, "pg", "b").await;
        assert_eq!((timeout_of(&second), &second.operation), ("stage/attach", &Some(first.operation)));
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_no_holder_of_a_caller_that_has_gone() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _bell = machine.fake.hang("attach");
        impatient_mount(&engine, "pg", "a").await;
        assert_eq!(holders(&engine, "pg").await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn has_its_work_undone_when_it_comes_back_and_nobody_waits_any_more() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for step in ["at", "attach", "mount"] {
            let bell = machine.fake.hang(step);
            impatient_mount(&engine, "pg", "a").await;
            bell.notify_one();
            rest(&engine).await;
            machine.assert_clean(step);
            assert_eq!(holders(&engine, "pg").await, []);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_keep_other_volumes_from_being_served() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        create(&engine, "other").await.expect("created");
        let _bell = machine.fake.hang("attach");
        impatient_mount(&engine, "pg", "a").await;
        let began = Instant::now();
        hold(&engine, "other", &docker("b")).await;
        create(&engine, "third").await.expect("created");
        unmount(&engine, "other", &docker("b")).await.expect("unmounted");
        engine.remove(&call(&engine), &volume("other")).await.expect("removed");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn law_7_does_not_keep_reads_waiting() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _bell = machine.fake.hang("attach");
        impatient_mount(&engine, "pg", "a").await;
        let _other_bell = machine.tasks.hang("local.inspect");
        let began = Instant::now();
        let view = engine.get(&volume("pg")).await.expect("known");
        assert_eq!(engine.list(&volume("pg").driver, None).await.expect("listed").len(), 1);
        assert_eq!(engine.path(&engine.get(&volume("pg")).await.expect("there")).await, Ok(None));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(view.state(), "mounting (attach)");
    }

    #[tokio::test(start_paused = true)]
    async fn is_joined_by_a_retry_which_is_mounted_when_it_comes_back() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let bell = machine.fake.hang("attach");
        impatient_mount(&engine, "pg", "a").await;
        let (retry, ()) = tokio::join!(mount(&engine, "pg", &docker("a")), async {
            until("the retry is a holder", async || !holders(&engine, "pg").await.is_empty()).await;
            bell.notify_one();
        });
        retry.expect("mounted").claim.delivered();
        rest(&engine).await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        assert_eq!((machine.count("attach"), machine.count("mount"), machine.count("unmount")), (1, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_gather_a_job_for_every_retry() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _bell = machine.fake.hang("attach");
        for _ in 0..20 {
            impatient_mount(&engine, "pg", "a").await;
        }
        let jobs = engine.get(&volume("pg")).await.expect("known").jobs;
        assert!(jobs.len() <= 3, "{} jobs", jobs.len());
    }

    #[tokio::test(start_paused = true)]
    async fn lets_an_unmount_go_too_and_the_holder_is_gone_at_once() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let bell = machine.fake.hang("unmount");
        let error = error(engine.unmount(&patient(&engine, SHORT), &volume("pg"), &docker("a")).await);
        assert_eq!(timeout_of(&error), "unstage/unmount");
        assert_eq!(holders(&engine, "pg").await, []);
        bell.notify_one();
        rest(&engine).await;
        machine.assert_clean("after the unmount came back");
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_create_leaves_the_volume_when_it_comes_back_and_a_retry_finds_it() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let bell = machine.fake.hang("format");
        let error = error(engine.create(&patient(&engine, SHORT), request("pg")).await);
        assert_eq!(timeout_of(&error), "create/format");
        bell.notify_one();
        rest(&engine).await;
        assert_eq!(create(&engine, "pg").await.expect("there").0, dunnage_model::CreateAction::AlreadyThere);
    }

    #[tokio::test(start_paused = true)]
    async fn is_not_at_rest() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let bell = machine.fake.hang("attach");
        impatient_mount(&engine, "pg", "a").await;
        assert!(!engine.drained(&patient(&engine, SHORT)).await);
        bell.notify_one();
        assert!(engine.drained(&patient(&engine, SHORT)).await);
    }
}

mod a_stop {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_a_mount_that_hangs_undoes_it_when_it_comes_back_and_does_not_go_on() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let bell = machine.fake.hang("attach");
        let (outcome, ()) = tokio::join!(mount(&engine, "pg", &docker("a")), async {
            until_at_step(&engine, "pg", "attach").await;
            engine.cancel_all();
            bell.notify_one();
        });
        let error = error(outcome);
        assert_eq!(error.word(), "platform_unavailable");
        assert!(error.detail.contains("stopping"), "{error}");
        rest(&engine).await;
        assert_eq!(machine.count("mount"), 0);
        machine.assert_clean("after the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_create_that_hangs_undoes_it() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let bell = machine.fake.hang("format");
        let (outcome, ()) = tokio::join!(create(&engine, "pg"), async {
            until("it formats", async || machine.count("format") == 1).await;
            engine.cancel_all();
            bell.notify_one();
        });
        assert_eq!(error(outcome).word(), "platform_unavailable");
        assert_eq!(machine.in_pool(), BTreeSet::new());
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_stop_an_unmount_in_the_middle() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let bell = machine.fake.hang("unmount");
        let (outcome, ()) = tokio::join!(unmount(&engine, "pg", &docker("a")), async {
            until_at_step(&engine, "pg", "unmount").await;
            engine.cancel_all();
            bell.notify_one();
        });
        assert_eq!(outcome.expect("unmounted").action, UnmountAction::Unmounted);
        machine.assert_clean("after the stop");
    }

    #[tokio::test]
    async fn leaves_what_is_mounted_and_held_as_it_is() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        engine.cancel_all();
        rest(&engine).await;
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }
}

mod a_mount_that_comes_during_an_unmount {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wins_when_nothing_was_unmounted_yet() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let bell = machine.fake.hang("at");
        let (unmounted, mounted) = tokio::join!(unmount(&engine, "pg", &docker("a")), async {
            until_at_step(&engine, "pg", "look").await;
            let (mounted, ()) = tokio::join!(mount(&engine, "pg", &docker("b")), async {
                until("b is a holder", async || !holders(&engine, "pg").await.is_empty()).await;
                bell.notify_one();
            });
            mounted
        });
        assert_eq!(unmounted.expect("given back").action, UnmountAction::StillHeld);
        let mounted = mounted.expect("joined");
        assert_eq!((mounted.action, machine.count("unmount")), (MountAction::Joined, 0));
        mounted.claim.delivered();
        assert_eq!(machine.in_ledger()["pg"].holders.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_no_intent_of_the_unmount_it_won_against() {
        let machine = Machine::new();
        machine.with_pg().await;
        let (engine, recorder) = machine.start_recorded().await;
        hold(&engine, "pg", &docker("a")).await;
        // Between the record and the unmount somebody comes.
        let come = Arc::new(Mutex::new(None));
        recorder.at_each({
            let come = come.clone();
            let coming = Mutex::new(Some(Box::pin(mount(&engine, "pg", &docker("b")))));
            move |goal, step, after| {
                if (goal, step, after) == ("unstage", "record", true)
                    && let Some(mut coming) = coming.lock().expect("b").take()
                {
                    assert!(coming.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                    *come.lock().expect("b") = Some(coming);
                }
            }
        });
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::StillHeld);
        let coming = come.lock().expect("b").take().expect("b came");
        coming.await.expect("joined").claim.delivered();
        assert_eq!(machine.in_ledger()["pg"].intent, None);
    }

    #[tokio::test(start_paused = true)]
    async fn mounts_again_when_it_was_too_late() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let bell = machine.fake.hang("detach");
        let (unmounted, mounted) = tokio::join!(unmount(&engine, "pg", &docker("a")), async {
            until_at_step(&engine, "pg", "detach").await;
            let (mounted, ()) = tokio::join!(mount(&engine, "pg", &docker("b")), async {
                until("b is a holder", async || !holders(&engine, "pg").await.is_empty()).await;
                bell.notify_one();
            });
            mounted
        });
        unmounted.expect("unmounted");
        let mounted = mounted.expect("mounted");
        assert_eq!((mounted.action, machine.count("mount")), (MountAction::Mounted, 2));
        mounted.claim.delivered();
        machine.assert_consistent(&engine, "after the second mount");
    }
}

mod many_at_once {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_mounts_of_one_volume_are_one_mount() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mounts: Vec<_> = (0..100)
            .map(|number| {
                let engine = engine.clone();
                tokio::spawn(async move { mount(&engine, "pg", &docker(&format!("id-{number}"))).await })
            })
            .collect();
        for mounted in mounts {
            mounted.await.expect("it ends").expect("mounted").claim.delivered();
        }
        assert_eq!((machine.count("mount"), machine.count("attach")), (1, 1));
        assert_eq!(holders(&engine, "pg").await.len(), 100);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_unmounts_of_one_volume_are_one_unmount_and_the_last_one_s() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for number in 0..100 {
            hold(&engine, "pg", &docker(&format!("id-{number}"))).await;
        }
        let unmounts: Vec<_> = (0..100)
            .map(|number| {
                let engine = engine.clone();
                tokio::spawn(async move { unmount(&engine, "pg", &docker(&format!("id-{number}"))).await.expect("given back").action })
            })
            .collect();
        let mut last = 0;
        for unmounted in unmounts {
            last += usize::from(unmounted.await.expect("it ends") == UnmountAction::Unmounted);
        }
        assert_eq!((last, machine.count("unmount")), (1, 1));
        machine.assert_clean("after all of them");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_volumes_are_made_mounted_unmounted_and_removed() {
        let machine = Arc::new(Machine::new());
        let engine = machine.start().await;
        let lives: Vec<_> = (0..100)
            .map(|number| {
                let (engine, name) = (engine.clone(), format!("v{number}"));
                tokio::spawn(async move {
                    create(&engine, &name).await.expect("created");
                    hold(&engine, &name, &docker("a")).await;
                    let seen = engine.get(&volume(&name)).await.expect("known").mountpoint.is_some();
                    unmount(&engine, &name, &docker("a")).await.expect("unmounted");
                    engine.remove(&call(&engine), &volume(&name)).await.expect("removed");
                    seen
                })
            })
            .collect();
        for life in lives {
            assert!(life.await.expect("it ends"));
        }
        assert_eq!((machine.count("mount"), machine.count("unmount")), (100, 100));
        machine.assert_clean("after a hundred lives");
        assert_eq!(machine.in_pool(), BTreeSet::new());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_volumes_that_are_mounted_at_once_have_a_loop_each() {
        let machine = Arc::new(Machine::new());
        let engine = machine.start().await;
        let mounts: Vec<_> = (0..100)
            .map(|number| {
                let (engine, name) = (engine.clone(), format!("v{number}"));
                tokio::spawn(async move {
                    create(&engine, &name).await.expect("created");
                    hold(&engine, &name, &docker("a")).await;
                })
            })
            .collect();
        for mounted in mounts {
            mounted.await.expect("it ends");
        }
        assert_eq!((machine.fake.mounted().len(), machine.attached()), (100, 100));
        machine.assert_consistent(&engine, "after a hundred mounts");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_creates_of_one_volume_format_it_once() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let creates: Vec<_> = (0..100)
            .map(|_| {
                let engine = engine.clone();
                tokio::spawn(async move { create(&engine, "pg").await.map(|_| ()) })
            })
            .collect();
        for created in creates {
            created.await.expect("it ends").expect("created");
        }
        assert_eq!(machine.count("format"), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_mounts_and_unmounts_at_once_the_last_one_out_turns_off_the_light() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for _ in 0..20 {
            let lives: Vec<_> = (0..8)
                .map(|number| {
                    let engine = engine.clone();
                    tokio::spawn(async move {
                        let key = docker(&format!("id-{number}"));
                        let mounted = mount(&engine, "pg", &key).await.expect("mounted");
                        match number % 3 {
                            0 => drop(mounted),
                            _ => {
                                mounted.claim.delivered();
                                unmount(&engine, "pg", &key).await.expect("given back");
                            }
                        }
                    })
                })
                .collect();
            for life in lives {
                life.await.expect("it ends");
            }
            rest(&engine).await;
            machine.assert_clean("after everybody has gone");
        }
    }
}

mod a_busy_volume {
    use super::*;

    async fn busy(machine: &Machine) -> dunnage_engine::Engine {
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.set_busy(true);
        engine
    }

    #[tokio::test]
    async fn is_not_unmounted_and_the_process_is_named() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let error = error(unmount(&engine, "pg", &docker("a")).await);
        let Kind::InUse { holders, node } = &error.kind else { panic!("{error}") };
        assert_eq!((holders.as_slice(), node.as_str()), (["tail (pid 4711)".to_owned()].as_slice(), "n1"));
        assert_eq!((machine.fake.mounted(), machine.attached()), (vec![machine.path("pg")], 1));
    }

    #[tokio::test]
    async fn is_in_the_ledger_as_mounted_and_not_as_being_unmounted() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        let entry = machine.in_ledger().remove("pg").expect("an entry");
        assert!(entry.staged.is_some() && entry.intent.is_none(), "{entry:?}");
    }

    #[tokio::test]
    async fn is_shown_as_mounted_and_to_be_let_go() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        assert_eq!(engine.get(&volume("pg")).await.expect("known").state(), "mounted, to be let go");
    }

    #[tokio::test]
    async fn is_unmounted_by_the_sweep_when_it_is_not_busy_any_more() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        engine.sweep();
        rest(&engine).await;
        assert_eq!(machine.fake.mounted(), [machine.path("pg")], "it is busy still");
        machine.fake.set_busy(false);
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the sweep");
    }

    #[tokio::test]
    async fn is_joined_by_a_mount_that_comes_before_the_sweep() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &docker("b")).await;
        machine.fake.set_busy(false);
        engine.sweep();
        rest(&engine).await;
        assert_eq!((machine.fake.mounted(), machine.count("mount")), (vec![machine.path("pg")], 1));
    }

    #[tokio::test]
    async fn is_not_removed() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        assert_eq!(error(engine.remove(&call(&engine), &volume("pg")).await).word(), "in_use");
        assert!(machine.image("pg").exists());
    }

    #[tokio::test]
    async fn is_unmounted_and_removed_by_a_remove_when_it_is_not_busy_any_more() {
        let machine = Machine::new();
        let engine = busy(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        machine.fake.set_busy(false);
        engine.remove(&call(&engine), &volume("pg")).await.expect("removed");
        machine.assert_clean("after the remove");
    }
}

mod a_copy_of_a_mount_in_another_namespace {
    use super::*;

    async fn lingering(machine: &Machine) -> dunnage_engine::Engine {
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.copy_mounts(true);
        let unmounted = unmount(&engine, "pg", &docker("a")).await.expect("unmounted here");
        assert_eq!((unmounted.action, unmounted.lingering), (UnmountAction::Unmounted, vec!["sleep (pid 4712)".to_owned()]));
        engine
    }

    #[tokio::test]
    async fn keeps_the_device_and_is_told_by_its_process() {
        let machine = Machine::new();
        let _engine = lingering(&machine).await;
        assert_eq!((machine.fake.mounted().len(), machine.attached()), (0, 1));
    }

    #[tokio::test]
    async fn is_swept_when_it_has_gone() {
        let machine = Machine::new();
        let engine = lingering(&machine).await;
        machine.fake.copy_mounts(false);
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the sweep");
    }

    /// Found by the simulation (seed 125263482965233): the next daemon looked once, and forgot the device.
    #[tokio::test]
    async fn is_swept_by_the_next_daemon_too_when_it_has_gone() {
        let machine = Machine::new();
        drop(lingering(&machine).await);
        let engine = machine.start().await;
        assert_eq!(machine.attached(), 1);
        machine.fake.copy_mounts(false);
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the sweep");
    }

    #[tokio::test]
    async fn does_not_bring_a_second_attach_when_the_volume_is_mounted_again() {
        let machine = Machine::new();
        let engine = lingering(&machine).await;
        hold(&engine, "pg", &docker("b")).await;
        assert_eq!((machine.fake.mounted().len(), machine.attached()), (1, 1));
    }

    #[tokio::test]
    async fn does_not_make_an_unmount_by_who_held_nothing_one_that_unmounted() {
        let machine = Machine::new();
        let engine = lingering(&machine).await;
        assert_eq!(unmount(&engine, "pg", &docker("stranger")).await.expect("nothing to do").action, UnmountAction::NotHeld);
    }

    #[tokio::test]
    async fn keeps_the_volume_from_being_removed() {
        let machine = Machine::new();
        let engine = lingering(&machine).await;
        assert_eq!(error(engine.remove(&call(&engine), &volume("pg")).await).word(), "in_use");
        assert!(machine.image("pg").exists());
    }

    #[tokio::test]
    async fn does_not_make_a_failed_mount_forget_the_device() {
        let machine = Machine::new();
        let engine = lingering(&machine).await;
        machine.fake.copy_mounts(false);
        machine.fake.plan("mount", Fault::Error(injected()));
        error(mount(&engine, "pg", &docker("b")).await);
        rest(&engine).await;
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the failed mount and a sweep");
    }
}

mod a_machine_that_shuts_down {
    use super::*;

    #[tokio::test]
    async fn law_3_unmounts_and_detaches_everything_whoever_holds_it() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        create(&engine, "other").await.expect("created");
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &docker("b")).await;
        hold(&engine, "other", &anonymous()).await;
        assert_eq!(engine.release_all(&call(&engine)).await, []);
        machine.assert_clean("after the shutdown");
    }

    #[tokio::test]
    async fn law_3_says_what_it_cannot_let_go_of_and_lets_go_of_the_rest() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.set_busy(true);
        create(&engine, "other").await.expect("created");
        hold(&engine, "other", &docker("a")).await;
        let failed = engine.release_all(&call(&engine)).await;
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!((failed[0].word(), failed[0].volume.as_ref()), ("in_use", Some(&volume("pg").name)));
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }
}
