//! Laws 1 and 3: the platform, the kernel and the ledger, when they do not say the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::*;
use dunnage_engine::Engine;
use dunnage_host::{Filesystems, MountedAt};
use dunnage_host::{FormatRequest, LoopRequest, Loops, MountRequest, Mounts, Probe, Target};
use dunnage_model::{CallerKind, FsKind, Kind, MountAction, PublishMode, UnmountAction, VolumeState};

/// The daemon dies, as far as its successor can tell.
fn die(engine: Engine) {
    std::mem::forget(engine);
}

mod a_daemon_that_starts_again {
    use super::*;

    #[tokio::test]
    async fn law_3_touches_no_mount_that_is_held() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        machine.fake.forget_calls();
        let engine = machine.start().await;
        let touching: Vec<String> = machine
            .fake
            .calls()
            .into_iter()
            .filter(|call| !["prepare", "table", "list"].contains(&call.split(' ').next().unwrap()))
            .collect();
        assert_eq!(touching, Vec::<String>::new());
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        machine.assert_consistent(&engine, "after the restart");
    }

    #[tokio::test]
    async fn law_3_serves_what_was_mounted_before() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        let engine = machine.start().await;
        assert_eq!(mount(&engine, "pg", &docker("b")).await.expect("joined").action, MountAction::Joined);
        rest(&engine).await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after the unmount by who mounted before the restart");
    }

    #[tokio::test]
    async fn law_9_takes_an_answer_that_was_on_its_way_for_one_hold() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::mem::forget(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        die(engine);
        let engine = machine.start().await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (0, 0, 1));
        machine.assert_consistent(&engine, "after the restart");
    }

    /// Its caller may have read that answer, and lives on the mount.
    #[tokio::test]
    async fn law_9_keeps_what_a_retry_took_over_when_nothing_comes_of_the_retry() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::mem::forget(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        die(engine);
        let engine = machine.start().await;
        machine.fake.plan("at", dunnage_host::fake::Fault::Error(injected()));
        assert!(mount(&engine, "pg", &docker("a")).await.is_err());
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (0, 0, 1));
        drop(mount(&engine, "pg", &docker("a")).await.expect("mounted").claim);
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (0, 0, 1));
        rest(&engine).await;
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after it was given back");
    }

    #[tokio::test]
    async fn law_9_lets_a_retry_take_over_the_answer_that_was_on_its_way() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::mem::forget(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        die(engine);
        let engine = machine.start().await;
        hold(&engine, "pg", &docker("a")).await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
    }

    #[tokio::test]
    async fn law_9_lets_an_unmount_give_back_the_answer_that_was_on_its_way() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::mem::forget(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        die(engine);
        let engine = machine.start().await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after the unmount");
    }

    #[tokio::test]
    async fn law_9_does_not_let_another_take_over_the_answer_that_was_on_its_way() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::mem::forget(mount(&engine, "pg", &docker("a")).await.expect("mounted"));
        die(engine);
        let engine = machine.start().await;
        hold(&engine, "pg", &docker("b")).await;
        assert_eq!(unmount(&engine, "pg", &docker("b")).await.expect("given back").action, UnmountAction::StillHeld);
    }

    #[tokio::test]
    async fn lets_go_of_what_is_attached_and_wanted_by_nobody_by_a_sweep_when_it_failed_at_first() {
        let machine = Machine::new();
        machine.with_pg().await;
        attach_by_hand(&machine).await;
        machine.fake.plan("detach", dunnage_host::fake::Fault::Error(injected()));
        let engine = machine.start().await;
        assert_eq!(machine.attached(), 1);
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after a sweep");
    }

    #[tokio::test]
    async fn lets_go_of_what_is_attached_and_wanted_by_nobody() {
        let machine = Machine::new();
        machine.with_pg().await;
        attach_by_hand(&machine).await;
        machine.start().await;
        machine.assert_clean("after the start");
    }

    async fn attach_by_hand(machine: &Machine) {
        let request = LoopRequest { folder: machine.pool(), relative: Path::new("pg").join("image") };
        machine.fake.attach(&request).await.expect("attached by hand");
    }

    #[tokio::test]
    async fn drops_the_holders_of_a_mount_that_went_while_it_was_away() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        machine.umount_by_hand("pg").await;
        let engine = machine.start().await;
        assert_eq!(holders(&engine, "pg").await, []);
        machine.assert_clean("after the start");
    }

    #[tokio::test]
    async fn finishes_an_unmount_that_could_not_be_done_before() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.fake.set_busy(true);
        let _ = unmount(&engine, "pg", &docker("a")).await;
        die(engine);
        machine.fake.set_busy(false);
        machine.start().await;
        machine.assert_clean("after the start");
    }

    #[tokio::test]
    async fn law_8_does_not_wait_for_a_platform_that_hangs() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        let _bells = ["local.list", "local.inspect"].map(|task| machine.tasks.hang(task));
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        assert_eq!(engine.active(), [volume("pg")]);
        assert_eq!(mount(&engine, "pg", &docker("b")).await.expect("joined").action, MountAction::Joined);
    }

    #[tokio::test]
    async fn refuses_a_ledger_of_a_newer_version_and_touches_nothing() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let mut newer = machine.in_ledger().remove("pg").expect("an entry");
        die(engine);
        newer.min_reader = 99;
        let boot = newer.boot.clone();
        let (mut ledger, _) = dunnage_engine::ledger::Ledger::open(machine.ledger(), boot).expect("a ledger");
        ledger.write(&newer).expect("written");
        let error = error(machine.start_watched(std::sync::Arc::default()).await);
        assert_eq!(error.word(), "exists_incompatible");
        assert_eq!((machine.fake.mounted(), machine.attached()), (vec![machine.path("pg")], 1));
    }
}

mod a_reboot {
    use super::*;

    #[tokio::test]
    async fn drops_all_holders() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        machine.reboot();
        let engine = machine.start().await;
        assert_eq!(holders(&engine, "pg").await, []);
        machine.assert_clean("after the reboot");
    }

    #[tokio::test]
    async fn leaves_the_volume_and_it_is_mounted_again() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        machine.reboot();
        let engine = machine.start().await;
        hold(&engine, "pg", &docker("a")).await;
        assert_eq!(counts(&engine, "pg", &docker("a")).await, (1, 0, 0));
        machine.assert_consistent(&engine, "after the reboot and a mount");
    }
}

mod a_ledger_that_was_wiped {
    use super::*;

    /// A daemon that finds a mount of which its ledger knows nothing.
    async fn wiped(machine: &Machine) -> Engine {
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        die(engine);
        std::fs::remove_dir_all(machine.ledger()).expect("wiped");
        machine.start().await
    }

    #[tokio::test]
    async fn law_1_leaves_the_mount_with_an_unknown_holder() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        let kinds: Vec<CallerKind> = holders(&engine, "pg").await.iter().map(|holder| holder.key.caller.kind).collect();
        assert_eq!(kinds, [CallerKind::Unknown]);
        assert_eq!(engine.path(&engine.get(&volume("pg")).await.expect("there")).await, Ok(Some(machine.path("pg").display().to_string())));
        machine.assert_consistent(&engine, "after the start");
    }

    #[tokio::test]
    async fn law_1_does_not_bring_a_second_mount() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        machine.fake.forget_calls();
        let mounted = mount(&engine, "pg", &docker("b")).await.expect("joined");
        assert_eq!((mounted.action, machine.count("mount")), (MountAction::Joined, 0));
    }

    #[tokio::test]
    async fn keeps_the_mount_when_who_came_later_goes() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        hold(&engine, "pg", &docker("b")).await;
        assert_eq!(unmount(&engine, "pg", &docker("b")).await.expect("given back").action, UnmountAction::StillHeld);
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn releases_the_mount_at_an_unmount_that_nobody_else_matches_when_nothing_uses_it() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after the unmount");
    }

    #[tokio::test]
    async fn keeps_the_mount_as_long_as_a_process_uses_it() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        machine.fake.set_busy(true);
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("not its").action, UnmountAction::NotHeld);
        assert_eq!((machine.fake.mounted(), machine.count("unmount")), (vec![machine.path("pg")], 0));
        assert_eq!(holders(&engine, "pg").await.len(), 1);
    }

    #[tokio::test]
    async fn keeps_the_mount_as_long_as_another_namespace_has_a_copy() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        machine.fake.copy_mounts(true);
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("not its").action, UnmountAction::NotHeld);
        assert_eq!((machine.fake.mounted(), machine.count("unmount")), (vec![machine.path("pg")], 0));
        machine.fake.copy_mounts(false);
        unmount(&engine, "pg", &docker("a")).await.expect("given back");
        machine.assert_clean("after the unmount when the copy had gone");
    }

    #[tokio::test]
    async fn keeps_the_hold_of_who_came_while_it_was_looked_for_who_uses_the_mount() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        let bell = machine.fake.hang("users");
        let (unmounted, ()) = tokio::join!(unmount(&engine, "pg", &docker("a")), async {
            until("it is looked for", async || machine.count("users") == 1).await;
            hold(&engine, "pg", &docker("b")).await;
            bell.notify_one();
        });
        assert_ne!(unmounted.expect("not its").action, UnmountAction::Unmounted);
        assert_eq!(counts(&engine, "pg", &docker("b")).await, (1, 0, 0));
        machine.assert_consistent(&engine, "after the unmount");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test(start_paused = true)]
    async fn law_9_lets_a_caller_go_whose_patience_ends_while_it_is_looked_for_who_uses_the_mount() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        let _bell = machine.fake.hang("users");
        let (short, pg, a) = (patient(&engine, Duration::from_secs(5)), volume("pg"), docker("a"));
        let outcome = tokio::time::timeout(Duration::from_secs(60), engine.unmount(&short, &pg, &a)).await;
        assert_eq!(error(outcome.expect("it waits for ever")).word(), "timeout");
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn keeps_the_unknown_holder_of_a_mount_that_somebody_else_holds_too() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        hold(&engine, "pg", &docker("b")).await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("not its").action, UnmountAction::NotHeld);
        assert_eq!(holders(&engine, "pg").await.len(), 2);
    }

    #[tokio::test]
    async fn is_written_anew_and_outlives_another_start() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        let before = holders(&engine, "pg").await;
        die(engine);
        let engine = machine.start().await;
        assert_eq!(holders(&engine, "pg").await, before);
    }

    #[tokio::test]
    async fn does_not_let_a_mounted_volume_be_removed() {
        let machine = Machine::new();
        let engine = wiped(&machine).await;
        assert_eq!(error(engine.remove(&call(&engine), &volume("pg")).await).word(), "in_use");
        assert!(machine.image("pg").exists());
    }
}

mod an_umount_behind_our_back {
    use super::*;

    #[tokio::test]
    async fn law_1_is_noticed_by_the_next_mount_which_really_mounts() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.umount_by_hand("pg").await;
        let mounted = mount(&engine, "pg", &docker("b")).await.expect("mounted");
        assert_eq!((mounted.action, machine.count("mount")), (MountAction::Mounted, 1));
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn is_no_error_to_an_unmount_which_detaches() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        machine.umount_by_hand("pg").await;
        assert_eq!(unmount(&engine, "pg", &docker("a")).await.expect("given back").action, UnmountAction::Unmounted);
        machine.assert_clean("after the unmount");
    }
}

mod another_device_where_a_volume_belongs {
    use super::*;

    /// Somebody mounts the volume `other` at the place of `pg`.
    async fn usurped(machine: &Machine) -> Engine {
        let engine = machine.with_pg().await;
        let (_, other) = create(&engine, "other").await.expect("created");
        let other = other.expect("there");
        let request = LoopRequest { folder: machine.pool(), relative: Path::new("other").join("image") };
        let device = machine.fake.attach(&request).await.expect("attached by hand");
        let request = MountRequest {
            device: device.path,
            number: device.number,
            fs: FsKind::Ext4,
            uuid: other.fs_uuid.expect("formatted"),
            target: place(machine),
            mode: PublishMode::ReadWrite,
            discard: true,
            options: dunnage_model::MountOptions::default(),
            root_path: None,
        };
        machine.fake.mount(&request).await.expect("mounted by hand");
        machine.fake.forget_calls();
        engine
    }

    fn place(machine: &Machine) -> Target {
        Target { root: machine.volumes(), relative: Path::new("local").join("pg"), medium: dunnage_host::Medium::Device }
    }

    async fn there(machine: &Machine) -> MountedAt {
        machine.fake.at(&place(machine)).await.expect("looked").expect("mounted")
    }

    #[tokio::test]
    async fn is_in_use_to_a_mount_and_stays() {
        let machine = Machine::new();
        let engine = usurped(&machine).await;
        let before = there(&machine).await;
        assert_eq!(error(mount(&engine, "pg", &docker("a")).await).word(), "in_use");
        rest(&engine).await;
        assert_eq!(there(&machine).await, before);
        assert_eq!((machine.count("mount"), machine.count("unmount")), (0, 0));
    }

    #[tokio::test]
    async fn leaves_nothing_of_ours_after_the_refused_mount() {
        let machine = Machine::new();
        let engine = usurped(&machine).await;
        error(mount(&engine, "pg", &docker("a")).await);
        rest(&engine).await;
        assert_eq!(machine.attached(), 1, "the other's is all that is attached");
        assert_eq!(engine.active(), []);
    }

    #[tokio::test]
    async fn is_not_removed_with_the_volume() {
        let machine = Machine::new();
        let engine = usurped(&machine).await;
        assert_eq!(error(engine.remove(&call(&engine), &volume("pg")).await).word(), "in_use");
        there(&machine).await;
    }

    #[tokio::test]
    async fn is_not_unmounted_by_an_unmount() {
        let machine = Machine::new();
        let engine = usurped(&machine).await;
        let before = there(&machine).await;
        let _ = unmount(&engine, "pg", &docker("a")).await;
        rest(&engine).await;
        assert_eq!(there(&machine).await, before);
    }
}

mod a_filesystem_that_is_not_what_was_recorded {
    use super::*;

    /// The volume's image is written over; nothing may be formatted or mounted then.
    async fn refused(write: impl AsyncFnOnce(&Machine)) -> dunnage_model::Error {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        write(&machine).await;
        machine.fake.forget_calls();
        let before = std::fs::read(machine.image("pg")).expect("read");
        let error = error(mount(&engine, "pg", &docker("a")).await);
        rest(&engine).await;
        machine.assert_clean("after the refused mount");
        assert_eq!((machine.count("format"), machine.count("check")), (0, 0));
        assert!(std::fs::read(machine.image("pg")).expect("read") == before, "something was written");
        error
    }

    #[tokio::test]
    async fn because_it_is_blank_law_5_is_neither_formatted_nor_mounted() {
        let error = refused(async |machine| {
            let file = std::fs::File::create(machine.image("pg")).expect("truncated");
            file.set_len(64 << 20).expect("a hole");
        })
        .await;
        assert_eq!(error.kind, Kind::NotBlank { signature: "nothing".to_owned() });
    }

    #[tokio::test]
    async fn because_nobody_knows_it_law_5_is_neither_formatted_nor_mounted() {
        let error = refused(async |machine| {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::create(machine.image("pg")).expect("truncated");
            file.write_all_at(b"a few words of somebody's", 0).expect("written");
            file.set_len(64 << 20).expect("a hole");
        })
        .await;
        assert_eq!(error.kind, Kind::NotBlank { signature: "data of an unknown kind".to_owned() });
    }

    #[tokio::test]
    async fn because_it_is_another_volume_s_law_5_is_neither_formatted_nor_mounted() {
        let other = uuid::Uuid::from_u128(7);
        let error = refused(async |machine| {
            let request = FormatRequest::plain(machine.image("pg"), FsKind::Ext4, other);
            machine.fake.format(&request).await.expect("formatted by hand");
        })
        .await;
        assert!(error.to_string().contains(&other.to_string()), "{error}");
    }

    #[tokio::test]
    async fn because_it_was_cut_short_is_damaged_and_not_attached() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        std::fs::File::options().write(true).open(machine.image("pg")).expect("open").set_len(1 << 20).expect("cut");
        let error = error(mount(&engine, "pg", &docker("a")).await);
        assert!(error.to_string().contains("1MiB") && error.to_string().contains("64MiB"), "{error}");
        assert_eq!(machine.count("attach"), 0);
    }
}

mod a_filesystem_with_the_error_flag {
    use super::*;

    #[tokio::test]
    async fn law_5_is_checked_before_it_is_really_mounted() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        machine.fake.mark_errors(&machine.image("pg")).expect("marked");
        hold(&engine, "pg", &docker("a")).await;
        let order: Vec<String> = machine.fake.calls().iter().map(|call| call.split(' ').next().expect("a word").to_owned()).collect();
        assert_eq!(order, ["at", "attach", "mount", "check", "mount"]);
        let Probe::Known(found) = machine.fake.probe(&machine.image("pg")).await.expect("probed") else { panic!("nothing is on it") };
        assert!(!found.has_errors);
    }

    #[tokio::test]
    async fn law_5_is_not_mounted_when_the_check_fails() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        machine.fake.mark_errors(&machine.image("pg")).expect("marked");
        machine.fake.plan("check", dunnage_host::fake::Fault::Error(injected()));
        assert_eq!(error(mount(&engine, "pg", &docker("a")).await).detail, "injected");
        rest(&engine).await;
        assert_eq!(machine.count("mount"), 1, "the one that found the errors");
        machine.assert_clean("after the failed check");
    }

    #[tokio::test]
    async fn a_clean_one_is_not_checked() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        assert_eq!(machine.count("check"), 0);
    }
}

mod the_last_copy {
    use super::*;

    /// The image of a mounted volume is unlinked.
    async fn unlinked(machine: &Machine) -> Engine {
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        std::fs::remove_file(machine.image("pg")).expect("somebody removes it");
        engine
    }

    fn untouched(machine: &Machine) {
        assert_eq!((machine.fake.mounted(), machine.attached()), (vec![machine.path("pg")], 1));
        assert_eq!((machine.count("unmount"), machine.count("detach")), (0, 0));
    }

    #[tokio::test]
    async fn is_not_unmounted_and_the_rescue_line_is_told() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        let error = error(unmount(&engine, "pg", &docker("a")).await);
        assert!(error.next.contains("cp --sparse=always /dev/loop0"), "{error}");
        untouched(&machine);
    }

    #[tokio::test]
    async fn is_not_unmounted_when_the_whole_volume_is_gone_from_the_platform() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        std::fs::remove_dir_all(machine.pool().join("pg")).expect("somebody removes the rest");
        let error = error(unmount(&engine, "pg", &docker("a")).await);
        assert!(error.next.contains("cp --sparse=always /dev/loop0"), "{error}");
        untouched(&machine);
    }

    #[tokio::test]
    async fn is_not_unmounted_by_the_sweep_by_a_remove_or_by_a_restart() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        error(unmount(&engine, "pg", &docker("a")).await);
        engine.sweep();
        rest(&engine).await;
        error(engine.remove(&call(&engine), &volume("pg")).await);
        die(engine);
        machine.start().await;
        untouched(&machine);
    }

    #[tokio::test]
    async fn is_not_unmounted_by_a_shutdown() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        assert_eq!(engine.release_all(&call(&engine)).await.len(), 1);
        untouched(&machine);
    }

    #[tokio::test]
    async fn is_joined_by_another_mount() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        assert_eq!(mount(&engine, "pg", &docker("b")).await.expect("joined").action, MountAction::Joined);
    }

    #[tokio::test]
    async fn is_shown_as_damaged_by_an_inspection() {
        let machine = Machine::new();
        let engine = unlinked(&machine).await;
        let info = engine.inspect(&volume("pg")).await.expect("inspected").volume.info;
        assert_eq!(info.state, VolumeState::Damaged);
        assert!(info.why.is_some());
    }

    #[tokio::test]
    async fn is_unmounted_when_the_image_is_back() {
        let machine = Machine::new();
        let engine = machine.with_pg().await;
        hold(&engine, "pg", &docker("a")).await;
        let aside = machine.folder.path().join("aside");
        std::fs::rename(machine.image("pg"), &aside).expect("somebody moves it");
        error(unmount(&engine, "pg", &docker("a")).await);
        untouched(&machine);
        std::fs::rename(&aside, machine.image("pg")).expect("and back");
        engine.sweep();
        rest(&engine).await;
        machine.assert_clean("after the image came back");
    }
}

mod half_a_volume {
    use super::*;

    /// A create that stopped when its storage was there.
    async fn half_made(machine: &Machine) {
        let engine = machine.start().await;
        let _bell = machine.fake.hang("format");
        let creating = tokio::spawn({
            let engine = engine.clone();
            async move { create(&engine, "pg").await.map(|_| ()) }
        });
        until("it formats", async || machine.count("format") == 1).await;
        creating.abort();
        die(engine);
        assert_eq!(machine.in_pool(), ["pg".to_owned()].into());
    }

    #[tokio::test]
    async fn law_4_is_undone_when_the_daemon_starts() {
        let machine = Machine::new();
        half_made(&machine).await;
        machine.start().await;
        assert_eq!(machine.in_pool(), [].into());
    }

    #[tokio::test]
    async fn law_4_is_made_anew_by_a_create_that_comes_before_that() {
        let machine = Machine::new();
        half_made(&machine).await;
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        create(&engine, "pg").await.expect("created");
        hold(&engine, "pg", &docker("a")).await;
        assert_eq!(machine.fake.mounted(), [machine.path("pg")]);
    }

    #[tokio::test]
    async fn cannot_be_mounted() {
        let machine = Machine::new();
        half_made(&machine).await;
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        assert_eq!(error(mount(&engine, "pg", &docker("a")).await).word(), "not_found");
        assert_eq!(machine.count("attach"), 0);
    }

    #[tokio::test]
    async fn is_not_found_even_after_somebody_tried_to_mount_it() {
        let machine = Machine::new();
        half_made(&machine).await;
        let engine = machine.start_watched(std::sync::Arc::default()).await.expect("it starts");
        error(mount(&engine, "pg", &docker("a")).await);
        assert_eq!(error(engine.get(&volume("pg")).await).word(), "not_found");
    }
}
