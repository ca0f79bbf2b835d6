//! The verbs, one after the other, when nothing goes wrong: what they answer, what they call, and who holds what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use dunnage_model::{CreateAction, Kind, MountAction, RemoveAction, UnmountAction};

fn calls(machine: &Machine) -> Vec<String> {
    let pool = machine.pool().display().to_string();
    machine.fake.calls().iter().map(|call| call.replace(&pool, "POOL")).collect()
}

mod the_main_road {
    use super::*;

    #[tokio::test]
    async fn a_create_looks_at_the_new_storage_and_formats_it() {
        let machine = Machine::new();
        let engine = machine.start().await;
        machine.fake.forget_calls();
        machine.tasks.forget_calls();
        assert_eq!(create(&engine, "pg").await.expect("created").0, CreateAction::Created);
        assert_eq!(calls(&machine), ["at local/pg", "probe POOL/pg/image.new", "format POOL/pg/image.new"]);
        assert_eq!(machine.tasks.calls(), ["local.inspect", "local.record", "local.allocate", "local.formatting", "local.publish"]);
    }

    #[tokio::test]
    async fn a_mount_looks_attaches_and_mounts() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mounted = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        assert_eq!((mounted.path, mounted.action), (machine.path("pg"), MountAction::Mounted));
        assert_eq!(calls(&machine), ["at local/pg", "attach pg/image", "mount local/pg"]);
    }

    #[tokio::test]
    async fn an_unmount_looks_unmounts_and_detaches() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.forget_calls();
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("unmounted").action, UnmountAction::Unmounted);
        assert_eq!(calls(&machine), ["at local/pg", "unmount local/pg", "detach pg/image"]);
        machine.assert_clean("after an unmount");
    }

    #[tokio::test]
    async fn a_remove_looks_whether_it_is_mounted_or_attached() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        assert_eq!(engine.remove(&call(&engine), &volume("pg")).await, Ok(RemoveAction::Removed));
        assert_eq!(calls(&machine), ["at local/pg", "list POOL"]);
        assert_eq!(machine.in_pool(), [].into());
    }

    #[tokio::test]
    async fn the_steps_of_a_mount_are_watched_one_by_one() {
        let machine = Machine::new();
        machine.with_pg().await;
        let (engine, recorder) = machine.start_recorded().await;
        hold(&engine, "pg", &docker("a")).await;
        let steps = ["look", "inspect", "record", "attach", "mount", "commit", "done"].map(|step| format!("stage/{step}"));
        assert_eq!(recorder.steps(), [&steps[..], &["mount/hold".to_owned(), "mount/confirm".to_owned()]].concat());
    }

    #[tokio::test]
    async fn a_mounted_volume_is_in_the_ledger_with_its_holder() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let entry = machine.in_ledger().remove("pg").expect("an entry");
        assert!(entry.staged.is_some() && entry.intent.is_none(), "{entry:?}");
        assert_eq!(entry.holders, holders(&engine, "pg").await);
    }

    #[tokio::test]
    async fn a_removed_volume_is_not_found() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        engine.remove(&call(&engine), &volume("pg")).await.expect("removed");
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found");
    }
}

mod doing_it_again {
    use super::*;

    #[tokio::test]
    async fn a_create_of_what_exists_is_already_there_and_touches_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        assert_eq!(create(&engine, "pg").await.expect("there").0, CreateAction::AlreadyThere);
        assert_eq!(machine.fake.calls(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_create_with_another_size_is_incompatible() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mut other = request("pg");
        other.asked.size = Some(dunnage_model::Bytes::mib(128));
        assert_eq!(error(engine.create(&call(&engine), other).await).word(), "exists_incompatible");
    }

    #[tokio::test]
    async fn a_create_without_a_size_takes_what_exists() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mut bare = request("pg");
        bare.asked.size = None;
        assert_eq!(engine.create(&call(&engine), bare).await.expect("there").0, CreateAction::AlreadyThere);
    }

    #[tokio::test]
    async fn a_create_through_another_endpoint_is_incompatible_and_names_the_owner() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mut other = request("pg");
        other.endpoint = "rexray".parse().expect("endpoint");
        let error = error(engine.create(&call(&engine), other).await);
        assert_eq!(error.word(), "exists_incompatible");
        assert!(error.to_string().contains("endpoint dunnage"), "{error}");
    }

    #[tokio::test]
    async fn a_remove_of_what_is_not_there_is_nothing() {
        let machine = Machine::new();
        let engine = machine.start().await;
        assert_eq!(engine.remove(&call(&engine), &volume("pg")).await, Ok(RemoveAction::NotThere));
    }

    #[tokio::test]
    async fn a_second_mount_joins_and_calls_the_kernel_only_to_look() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.forget_calls();
        let mounted = mount(&engine, "pg", &docker("b")).await.expect("joined");
        assert_eq!(mounted.action, MountAction::Joined);
        assert_eq!(calls(&machine), ["at local/pg"]);
    }

    #[tokio::test]
    async fn an_unmount_of_what_was_never_mounted_succeeds() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("nothing to do").action, UnmountAction::NotHeld);
        assert_eq!(machine.count("unmount"), 0);
    }

    #[tokio::test]
    async fn an_unmount_of_what_was_never_created_succeeds() {
        let machine = Machine::new();
        let engine = machine.start().await;
        assert_eq!(unmount(&engine, "never", &docker("a")).await.expect("nothing to do").action, UnmountAction::NotHeld);
    }

    #[tokio::test]
    async fn a_second_unmount_by_the_same_holder_succeeds_and_does_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("nothing to do").action, UnmountAction::NotHeld);
    }
}

mod at_once {
    use super::*;

    #[tokio::test]
    async fn a_create_that_worked_says_so_even_when_the_volume_is_removed_before_its_caller_hears_of_it() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let mut creating = std::pin::pin!(create(&engine, "pg"));
        let asked = std::future::poll_fn(|context| std::task::Poll::Ready(creating.as_mut().poll(context).is_pending()));
        assert!(asked.await, "it takes a while");
        assert_eq!(engine.remove(&call(&engine), &volume("pg")).await, Ok(RemoveAction::Removed));
        assert_eq!(creating.await.expect("it was created").0, CreateAction::Created);
    }
}

mod a_name_that_was_never_created {
    use super::*;

    #[tokio::test]
    async fn is_not_found_by_a_mount_which_leaves_nothing() {
        let machine = Machine::new();
        let engine = machine.start().await;
        assert_eq!(error(mount(&engine, "pg", &docker("a")).await).word(), "not_found");
        rest(&engine).await;
        machine.assert_clean("after a mount of nothing");
        assert_eq!((engine.active(), machine.in_pool()), (Vec::new(), [].into()));
    }

    #[tokio::test]
    async fn never_gets_a_file_in_the_ledger() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let _ = mount(&engine, "pg", &docker("a")).await;
        assert!(!machine.ledger().join("local").exists());
    }

    #[tokio::test]
    async fn is_not_found_by_a_get() {
        let machine = Machine::new();
        let engine = machine.start().await;
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found");
    }
}

mod law_2_holders_are_a_multiset {
    use super::*;

    #[tokio::test]
    async fn of_two_holders_the_first_unmount_keeps_the_mount() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &docker("b")).await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::StillHeld);
        assert_eq!((machine.fake.mounted(), machine.attached()), (vec![machine.path("pg")], 1));
    }

    #[tokio::test]
    async fn the_last_unmount_unmounts_and_detaches() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &docker("b")).await;
        unmount(&engine, "pg", &docker("b")).await.expect("given back");
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after the last holder");
    }

    /// moby/moby#47964: `docker cp` mounts and unmounts with the ID of the running container.
    #[tokio::test]
    async fn a_copy_into_a_running_container_does_not_unmount_it() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("container")).await;
        hold(&engine, "pg", &docker("container")).await;
        assert_eq!(counts(&engine, "pg", &docker("container")).await, (2, 0, 0));
        assert_eq!(unmount(&engine, "pg", &docker("container")).await.expect("cp is done").action, UnmountAction::StillHeld);
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn an_id_that_mounted_twice_lets_go_with_its_second_unmount() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("container")).await;
        hold(&engine, "pg", &docker("container")).await;
        unmount(&engine, "pg", &docker("container")).await.expect("cp is done");
        assert_eq!(unmount(&engine, "pg", &docker("container")).await.expect("it stops").action, UnmountAction::Unmounted);
        machine.assert_clean("after the container");
    }

    /// Mesos: dvdcli mounts once per container and unmounts once for the last.
    #[tokio::test]
    async fn a_caller_without_an_id_is_one_holder_however_often_it_mounts() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for _ in 0..5 {
            hold(&engine, "pg", &anonymous()).await;
        }
        assert_eq!(counts(&engine, "pg", &anonymous()).await, (1, 0, 0));
        assert_eq!(unmount(&engine, "pg", &anonymous()).await.expect("the last").action, UnmountAction::Unmounted);
        machine.assert_clean("after one unmount of five mounts");
    }

    #[tokio::test]
    async fn a_caller_without_an_id_does_not_take_another_s_hold_with_it() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &anonymous()).await;
        assert_eq!(unmount(&engine, "pg", &anonymous()).await.expect("given back").action, UnmountAction::StillHeld);
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
    }

    #[tokio::test]
    async fn one_id_through_two_endpoints_is_two_holders() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mut other = docker("a");
        other.endpoint = "rexray".parse().expect("endpoint");
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "pg", &other).await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::StillHeld);
        assert_eq!(holders(&engine, "pg").await.len(), 1);
    }

    #[tokio::test]
    async fn an_unmount_by_who_holds_nothing_does_nothing_while_others_hold() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.forget_calls();
        assert_eq!(unmount(&engine, "pg", &docker("stranger")).await.expect("nothing to do").action, UnmountAction::NotHeld);
        assert_eq!(machine.fake.calls(), Vec::<String>::new());
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
    }

    #[tokio::test]
    async fn the_ledger_counts_as_the_engine_does() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        for id in ["a", "a", "b", "c"] {
            hold(&engine, "pg", &docker(id)).await;
        }
        unmount(&engine, "pg", &docker("b")).await.expect("given back");
        assert_eq!(machine.in_ledger()["pg"].holders, holders(&engine, "pg").await);
    }
}

mod law_9_an_answer_counts_when_it_was_read {
    use super::*;

    #[tokio::test]
    async fn until_then_its_holder_is_provisional() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mounted = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (0, 1, 0));
        mounted.claim.delivered();
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
    }

    #[tokio::test]
    async fn it_is_in_the_ledger_before_it_leaves() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let first = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        let joined = mount(&engine, "pg", &docker("b")).await.expect("joined");
        let provisional: Vec<u32> = machine.in_ledger()["pg"].holders.iter().map(|holder| holder.provisional).collect();
        assert_eq!(provisional, [1, 1]);
        drop((first, joined));
    }

    #[tokio::test]
    async fn a_caller_that_has_gone_leaves_no_holder_and_no_mount() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        drop(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        rest(&engine).await;
        assert_eq!(holders(&engine, "pg").await, []);
        machine.assert_clean("after a caller that has gone");
    }

    #[tokio::test]
    async fn a_caller_that_has_gone_takes_only_what_its_own_call_added() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        drop(mount(&engine, "pg", &docker("a")).await.expect("joined"));
        rest(&engine).await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn a_caller_without_an_id_that_has_gone_takes_no_hold_of_an_earlier_call() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &anonymous()).await;
        drop(mount(&engine, "pg", &anonymous()).await.expect("joined"));
        rest(&engine).await;
        assert_eq!(counts(&engine, "pg", &anonymous()).await, (1, 0, 0));
    }

    #[tokio::test]
    async fn a_caller_that_unmounts_before_we_know_that_it_has_read_is_taken_at_its_word() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mounted = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("quick").action, UnmountAction::Unmounted);
        machine.assert_clean("after a quick unmount");
        mounted.claim.delivered();
        rest(&engine).await;
        assert_eq!(holders(&engine, "pg").await, []);
        machine.assert_clean("after the late word that it was read");
    }

    #[tokio::test]
    async fn a_quick_unmount_and_then_a_claim_that_is_dropped_take_one_hold_and_not_two() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("b")).await;
        let mounted = mount(&engine, "pg", &docker("a")).await.expect("joined");
        unmount(&engine, "pg", &docker("a")).await.expect("quick");
        drop(mounted);
        rest(&engine).await;
        assert_eq!(counts(&engine, "pg", &docker("b")).await, (1, 0, 0));
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn a_late_word_for_a_hold_that_was_given_back_does_not_confirm_the_next_one() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let first = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        unmount(&engine, "pg", &docker("a")).await.expect("quick");
        let second = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        first.claim.delivered();
        drop(second);
        rest(&engine).await;
        machine.assert_clean("after a caller that gave back one hold and did not read of the other");
    }

    #[tokio::test]
    async fn a_caller_that_has_gone_while_something_else_is_done_to_the_volume_leaves_no_mount() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let mounted = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        let bell = machine.tasks.hang("local.inspect");
        let (created, ()) = tokio::join!(create(&engine, "pg"), async {
            until_at_step(&engine, "pg", "inspect").await;
            drop(mounted);
            bell.notify_one();
        });
        assert_eq!(created.expect("there").0, CreateAction::AlreadyThere);
        rest(&engine).await;
        machine.assert_clean("after a caller that has gone");
    }

    #[tokio::test]
    async fn a_late_word_for_a_hold_that_was_given_back_does_not_end_another_one_after_a_sweep() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let first = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        unmount(&engine, "pg", &docker("a")).await.expect("quick");
        engine.sweep();
        let second = mount(&engine, "pg", &docker("a")).await.expect("mounted");
        drop(first);
        second.claim.delivered();
        rest(&engine).await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        machine.assert_consistent(&engine, "after the late word");
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_in_the_middle_leaves_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let bell = machine.fake.hang("mount");
        {
            let (its_call, its_volume) = (call(&engine), volume("pg"));
            let giving_up = engine.mount(&its_call, &its_volume, docker("a"));
            tokio::select! {
                _ = giving_up => panic!("it hangs"),
                () = until_at_step(&engine, "pg", "mount") => {}
            }
        }
        bell.notify_one();
        rest(&engine).await;
        machine.assert_clean("after a caller that hung up");
    }
}

mod a_held_volume {
    use super::*;

    #[tokio::test]
    async fn is_not_removed_and_its_holder_is_named() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("7f")).await;
        let error = error(engine.remove(&call(&engine), &volume("pg")).await);
        let Kind::InUse { holders, node } = &error.kind else { panic!("{error}") };
        assert!(holders.len() == 1 && holders[0].contains("plugin client 7f"), "{holders:?}");
        assert_eq!(node, "n1");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
        assert!(machine.image("pg").exists());
    }

    #[tokio::test]
    async fn is_removed_when_it_was_let_go() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let _ = engine.remove(&call(&engine), &volume("pg")).await;
        unmount(&engine, "pg", &docker("a")).await.expect("unmounted");
        assert_eq!(engine.remove(&call(&engine), &volume("pg")).await, Ok(RemoveAction::Removed));
    }
}

mod names {
    use super::*;

    #[tokio::test]
    async fn that_differ_in_letter_case_are_two_volumes() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        assert_eq!(create(&engine, "PG").await.expect("created").0, CreateAction::Created);
        hold(&engine, "pg", &docker("a")).await;
        hold(&engine, "PG", &docker("b")).await;
        assert_eq!((machine.count("mount"), machine.attached()), (2, 2));
        unmount(&engine, "PG", &docker("b")).await.expect("unmounted");
        engine.remove(&call(&engine), &volume("PG")).await.expect("removed");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
        assert_eq!(machine.in_pool(), ["pg".to_owned()].into());
    }

    #[tokio::test]
    async fn of_two_drivers_are_two_volumes() {
        let machine = Machine::new();
        let engine = machine.start_two().await;
        create(&engine, "pg").await.expect("created");
        assert_eq!(error(engine.get(&volume_of_other("pg")).await).word(), "not_found");
        let other = dunnage_engine::CreateRequest { volume: volume_of_other("pg"), ..request("pg") };
        assert_eq!(engine.create(&call(&engine), other).await.expect("created").0, CreateAction::Created);
        assert_eq!(engine.find(&volume("pg").name).await, Ok(vec![volume("pg"), volume_of_other("pg")]));
    }

    #[tokio::test]
    async fn of_drivers_that_there_are_not_are_not_found() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let error = error(engine.mount(&call(&engine), &volume_of_other("pg"), docker("a")).await);
        assert_eq!(error.word(), "not_found");
        assert!(error.to_string().contains("driver other"), "{error}");
    }
}

mod law_10_an_error {
    use super::*;

    #[tokio::test]
    async fn of_a_job_names_the_volume_and_the_operation() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let call = call(&engine);
        // A mount would not even come so far: it asks what there is first.
        let error = error(engine.stage(&call, &volume("pg")).await);
        assert_eq!((error.volume.as_ref(), error.operation.as_ref()), (Some(&volume("pg").name), Some(&call.operation)));
        assert!(error.to_string().contains(&call.operation.0), "{error}");
    }

    #[tokio::test]
    async fn of_a_refused_remove_names_the_volume_and_the_operation() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let call = call(&engine);
        let error = error(engine.remove(&call, &volume("pg")).await);
        assert_eq!((error.volume.as_ref(), error.operation.as_ref()), (Some(&volume("pg").name), Some(&call.operation)));
    }

    #[tokio::test]
    async fn of_a_size_that_is_too_small_names_the_volume_and_the_key() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let mut small = request("pg");
        small.asked.size = Some(dunnage_model::Bytes::mib(1));
        let error = error(engine.create(&call(&engine), small).await);
        assert_eq!(error.kind, Kind::InvalidArgument { key: "size".to_owned() });
        assert_eq!(error.volume, Some(volume("pg").name));
        assert_eq!(machine.in_pool(), [].into());
    }
}
