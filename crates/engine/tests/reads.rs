//! Law 7: reads are answered from memory, with the answer's age; only a name that memory does not have asks the platform.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use tokio::time::Instant;

fn names(views: &[dunnage_engine::VolumeView]) -> Vec<String> {
    views.iter().map(|view| view.info.id.name.to_string()).collect()
}

async fn listed(engine: &dunnage_engine::Engine) -> Vec<String> {
    names(&engine.list(&volume("pg").driver, None).await.expect("listed"))
}

mod a_pool_that_has_gone {
    use super::*;

    #[tokio::test]
    async fn is_no_proof_that_a_name_is_unknown() {
        let machine = Machine::new();
        let engine = machine.start().await;
        std::fs::remove_dir(machine.pool()).expect("rmdir");
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "platform_unavailable");
    }

    #[tokio::test]
    async fn does_not_make_known_volumes_unknown() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::rename(machine.pool(), machine.folder.path().join("elsewhere")).expect("rename");
        assert_eq!(engine.get(&volume("pg")).await.expect("remembered").info.id, volume("pg"));
        assert_eq!(listed(&engine).await, ["pg"]);
    }

    #[tokio::test]
    async fn is_told_by_an_inspection_together_with_what_is_remembered() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::rename(machine.pool(), machine.folder.path().join("elsewhere")).expect("rename");
        let inspection = engine.inspect(&volume("pg")).await.expect("remembered");
        assert!(inspection.notes.iter().any(|note| note.contains("platform_unavailable")), "{:?}", inspection.notes);
    }

    #[tokio::test]
    async fn fails_a_mount_with_its_name_and_leaves_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::rename(machine.pool(), machine.folder.path().join("elsewhere")).expect("rename");
        assert_eq!(error(mount(&engine, "pg", &docker("a")).await).word(), "platform_unavailable");
        rest(&engine).await;
        machine.assert_clean("after a mount without a pool");
    }

    #[tokio::test]
    async fn does_not_create_a_volume_on_doubt() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::rename(machine.pool(), machine.folder.path().join("elsewhere")).expect("rename");
        assert_eq!(error(create(&engine, "pg").await).word(), "platform_unavailable");
        assert!(!machine.pool().exists());
    }

    #[tokio::test]
    async fn keeps_a_mounted_volume_mounted_and_its_unmount_succeeds_when_it_is_back() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        std::fs::rename(machine.pool(), machine.folder.path().join("elsewhere")).expect("rename");
        assert_eq!(error(unmount(&engine, "pg", &docker("a")).await).word(), "platform_unavailable");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
        std::fs::rename(machine.folder.path().join("elsewhere"), machine.pool()).expect("rename");
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the pool came back");
    }
}

mod a_platform_that_does_not_answer {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_asked_about_an_unknown_name_for_two_seconds() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let _bell = machine.tasks.hang("local.inspect");
        let began = Instant::now();
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "platform_unavailable");
        assert!(began.elapsed() >= Duration::from_secs(2) && began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn is_not_asked_about_a_known_one() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        machine.tasks.forget_calls();
        engine.get(&volume("pg")).await.expect("known");
        assert_eq!(machine.tasks.calls(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn makes_a_list_that_was_never_read_unavailable_within_two_seconds() {
        let machine = Machine::new();
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        let began = Instant::now();
        assert_eq!(error(engine.list(&volume("pg").driver, None).await).word(), "platform_unavailable");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn is_waited_for_by_a_list_that_was_never_read() {
        let machine = Machine::new();
        machine.with_pg().await;
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        let bell = machine.tasks.hang("local.list");
        let settling = tokio::spawn({
            let engine = engine.clone();
            async move { engine.settle().await }
        });
        let (listed, ()) = tokio::join!(listed(&engine), async {
            until("it is asked", async || machine.tasks.calls().last().is_some_and(|task| task == "local.list")).await;
            bell.notify_one();
        });
        assert_eq!(listed, ["pg"]);
        settling.await.expect("settled");
    }

    #[tokio::test(start_paused = true)]
    async fn is_told_of_among_the_drivers() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let _bell = machine.tasks.hang("local.capacity");
        let drivers = engine.drivers().await;
        assert_eq!(drivers.len(), 1);
        assert_eq!(drivers[0].error.as_ref().map(dunnage_model::Error::word), Some("platform_unavailable"));
    }

    #[tokio::test(start_paused = true)]
    async fn law_8_does_not_keep_another_from_being_listed_at_start() {
        let machine = Machine::new();
        let engine = machine.start_two().await;
        let _bell = machine.tasks.hang("local.list");
        let settling = tokio::spawn({
            let engine = engine.clone();
            async move { engine.settle().await }
        });
        assert!(engine.list(&volume_of_other("pg").driver, None).await.is_ok());
        settling.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn law_8_does_not_keep_another_s_list_from_being_read_anew() {
        let machine = Machine::new();
        let engine = machine.start_two().await;
        engine.settle().await;
        let _bell = machine.tasks.hang("local.list");
        machine.clock.advance(60);
        engine.list(&volume("pg").driver, None).await.expect("from memory");
        until("it hangs", async || machine.tasks.calls().last().is_some_and(|task| task == "local.list")).await;
        machine.other_tasks.forget_calls();
        engine.list(&volume_of_other("pg").driver, None).await.expect("from memory");
        until("the other is asked", async || machine.other_tasks.calls().contains(&"local.list".to_owned())).await;
    }
}

mod memory {
    use super::*;

    #[tokio::test]
    async fn says_how_old_it_is() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        machine.clock.advance(17);
        assert_eq!(engine.get(&volume("pg")).await.expect("known").age, 17);
    }

    #[tokio::test]
    async fn is_read_anew_behind_the_answer_when_it_is_old() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::remove_dir_all(machine.pool().join("pg")).expect("somebody removes it");
        assert_eq!(listed(&engine).await, ["pg"], "it is young");
        machine.clock.advance(31);
        assert_eq!(listed(&engine).await, ["pg"], "nobody waits for the new one");
        until("the list is new", async || listed(&engine).await.is_empty()).await;
    }

    #[tokio::test]
    async fn is_not_read_anew_while_it_is_young() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        machine.tasks.forget_calls();
        machine.clock.advance(29);
        for _ in 0..100 {
            listed(&engine).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(machine.tasks.calls(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn lists_to_an_endpoint_only_its_own() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let rexray: dunnage_model::EndpointName = "rexray".parse().expect("endpoint");
        let other = dunnage_engine::CreateRequest { endpoint: rexray.clone(), ..request("other") };
        engine.create(&call(&engine), other).await.expect("created");
        let driver = volume("pg").driver;
        assert_eq!(names(&engine.list(&driver, Some(&endpoint())).await.expect("listed")), ["pg"]);
        assert_eq!(names(&engine.list(&driver, Some(&rexray)).await.expect("listed")), ["other"]);
        assert_eq!(names(&engine.list(&driver, None).await.expect("listed")), ["other", "pg"]);
    }

    #[tokio::test]
    async fn does_not_show_half_a_volume() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let bell = machine.fake.hang("format");
        let (created, ()) = tokio::join!(create(&engine, "pg"), async {
            until("it formats", async || machine.count("format") == 1).await;
            assert_eq!(listed(&engine).await, Vec::<String>::new());
            assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found");
            bell.notify_one();
        });
        created.expect("created");
        assert_eq!(listed(&engine).await, ["pg"]);
    }

    #[tokio::test]
    async fn finds_a_volume_that_was_made_while_nobody_looked() {
        let machine = Machine::new();
        let engine = machine.start().await;
        let elsewhere = Machine::new();
        elsewhere.with_pg().await;
        std::fs::rename(elsewhere.pool().join("pg"), machine.pool().join("pg")).expect("it is brought here");
        assert_eq!(engine.get(&volume("pg")).await.expect("asked").info.id, volume("pg"));
    }

    #[tokio::test]
    async fn shows_who_holds_a_volume_and_where_it_is() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let view = engine.get(&volume("pg")).await.expect("known");
        assert_eq!(view.mountpoint, Some(machine.path("pg").display().to_string()));
        assert_eq!(view.holders.len(), 1);
        assert_eq!(view.state(), "mounted");
    }

    #[tokio::test]
    async fn shows_the_space_of_a_mounted_volume_when_it_is_inspected() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        assert_eq!(engine.inspect(&volume("pg")).await.expect("inspected").space, None);
        hold(&engine, "pg", &docker("a")).await;
        assert!(engine.inspect(&volume("pg")).await.expect("inspected").space.is_some());
    }

    #[tokio::test]
    async fn makes_nothing_active_by_being_read() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let _ = engine.get(&volume("pg")).await;
        let _ = engine.get(&volume("never")).await;
        let _ = engine.find(&volume("pg").name).await;
        assert_eq!(engine.active(), []);
    }
}

mod a_list_that_is_on_its_way {
    use super::*;

    /// Something happens between the moment when the platform made its list and the moment when we have it.
    async fn during_a_list(machine: &Machine, engine: &dunnage_engine::Engine, happens: impl AsyncFnOnce()) {
        let bell = machine.tasks.hang_after("local.list");
        machine.clock.advance(31);
        machine.tasks.forget_calls();
        listed(engine).await;
        until("the platform has made its list", async || machine.tasks.calls().contains(&"local.list is done".to_owned())).await;
        happens().await;
        bell.notify_one();
        until("the list is new", async || engine.get(&volume("keep")).await.is_ok_and(|view| view.age == 0)).await;
    }

    #[tokio::test]
    async fn does_not_lose_a_volume_that_was_made_meanwhile() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        create(&engine, "keep").await.expect("created");
        during_a_list(&machine, &engine, async || {
            create(&engine, "new").await.expect("created");
        })
        .await;
        assert_eq!(listed(&engine).await, ["keep", "new", "pg"]);
    }

    #[tokio::test]
    async fn does_not_bring_back_a_volume_that_was_removed_meanwhile() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        create(&engine, "keep").await.expect("created");
        during_a_list(&machine, &engine, async || {
            engine.remove(&call(&engine), &volume("pg")).await.expect("removed");
        })
        .await;
        assert_eq!(listed(&engine).await, ["keep"]);
    }

    #[tokio::test]
    async fn does_not_undo_a_create_that_runs() {
        let machine = Machine::new();
        let engine = machine.start().await;
        create(&engine, "keep").await.expect("created");
        let bell = machine.fake.hang("format");
        let (created, ()) = tokio::join!(create(&engine, "pg"), async {
            until("it formats", async || machine.count("format") == 2).await;
            engine.settle().await;
            bell.notify_one();
        });
        created.expect("created");
        rest(&engine).await;
        assert_eq!(engine.inspect(&volume("pg")).await.expect("there").volume.info.state, dunnage_model::VolumeState::Ready);
    }
}

mod an_answer_that_is_on_its_way {
    use super::*;

    #[tokio::test]
    async fn does_not_bring_back_a_volume_that_was_removed_meanwhile() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        let bell = machine.tasks.hang_after("local.inspect");
        let pg = volume("pg");
        let (inspected, ()) = tokio::join!(engine.inspect(&pg), async {
            until("the platform has answered", async || machine.tasks.calls().contains(&"local.inspect is done".to_owned())).await;
            engine.remove(&call(&engine), &pg).await.expect("removed");
            bell.notify_one();
        });
        drop(inspected);
        assert_eq!(error(engine.get(&pg).await).word(), "not_found");
        assert_eq!(listed(&engine).await, Vec::<String>::new());
    }
}
