//! What holds for all facts and all worlds, whatever fails: properties of the planner, checked on random ones.

use proptest::prelude::*;

use super::*;

/// Anything that could ever be known, sense or nonsense.
mod any {
    use super::*;

    pub fn goal() -> impl Strategy<Value = Goal> {
        let resize = Just(Goal::Resize(Bytes::gib(2)));
        prop_oneof![Just(create_goal()), Just(Goal::Stage), Just(Goal::Unstage), Just(Goal::Remove), resize, Just(Goal::Recover)]
    }

    fn device() -> impl Strategy<Value = DeviceNumber> {
        prop_oneof![3 => Just(OURS), 1 => Just(FOREIGN)]
    }

    pub fn mounted() -> impl Strategy<Value = Option<MountedAt>> {
        prop::option::of(device().prop_map(at))
    }

    pub fn in_ledger() -> impl Strategy<Value = Option<Staged>> {
        prop::option::of(device().prop_map(staged))
    }

    pub fn info() -> impl Strategy<Value = Option<VolumeInfo>> {
        let state = prop_oneof![
            4 => Just(VolumeState::Ready),
            1 => Just(VolumeState::Creating),
            1 => Just(VolumeState::Removing),
            1 => Just(VolumeState::Damaged)
        ];
        let uuid = prop_oneof![1 => Just(None), 6 => Just(Some(UUID)), 1 => Just(Some(OTHER_UUID))];
        prop::option::weighted(
            0.8,
            (state, uuid, any::<bool>()).prop_map(|(state, fs_uuid, growing)| VolumeInfo { fs_uuid, growing, ..volume(state) }),
        )
    }

    pub fn probe() -> impl Strategy<Value = Probe> {
        let found = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(other, dirty_journal, has_errors)| {
            Probe::Known(KnownFs { fs: FsKind::Ext4, uuid: if other { OTHER_UUID } else { UUID }, dirty_journal, has_errors })
        });
        prop_oneof![Just(Probe::Blank), Just(unknown()), found]
    }

    fn attached() -> impl Strategy<Value = Attached> {
        (device(), any::<bool>()).prop_map(|(number, found)| Attached { path: "/dev/loop3".into(), number, found })
    }

    fn unmounted() -> impl Strategy<Value = Unmounted> {
        prop_oneof![Just(Unmounted::Done), Just(Unmounted::NotThere), Just(Unmounted::Busy), Just(Unmounted::Foreign(FOREIGN)),]
    }

    fn growth() -> impl Strategy<Value = Growth> {
        prop_oneof![Just(Growth::Mounted), Just(Growth::Unmounted), Just(Growth::Always)]
    }

    pub fn facts() -> impl Strategy<Value = Facts> {
        use prop::option::of;
        let detached = prop_oneof![Just(Detached::Done), Just(Detached::Killed), Just(Detached::NotThere), Just(Detached::Lingering)];
        let removed = prop_oneof![Just(RemoveAction::Removed), Just(RemoveAction::NotThere)];
        let device = (0..2_usize, of(Just(OURS)), any::<bool>());
        let ledger = (0..3_usize, device, in_ledger(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let platform =
            (of(info()), any::<(bool, bool, bool)>(), of(probe()), any::<bool>(), any::<bool>(), any::<bool>(), of(removed), of(of("x")));
        let node = (of(mounted()), any::<bool>(), of(attached()), of(probe()), any::<bool>(), any::<bool>(), mounted());
        let gone = (of(unmounted()), of(Just(vec![process(1, "init", false)])), of(detached));
        let trouble = (of(Just(step_failed(0))), any::<bool>());
        let nodes = any::<(bool, bool, bool, bool, bool, bool)>();
        let done = || of(prop_oneof![Just(Ok(())), Just(Err(step_failed(0)))]);
        let larger = (any::<bool>(), of(growth()), done(), done());
        (ledger, platform, node, gone, trouble, nodes, larger).prop_map(|(ledger, platform, node, gone, trouble, nodes, larger)| {
            let (expanded, growth, grew, grown) = larger;
            let (shared, own_tried, owned, named, given_up, confirmed) = nodes;
            let (holders, (attachers, kept, intended), staged, cancelled, recorded, committed, released) = ledger;
            let (volume, (provision_tried, allocated, attached_new), probed_new, formatting, formatted, published, removed, recovered) =
                platform;
            let (at, in_place, attached, probe, checked, mount_tried, mounted) = node;
            let (unmounted, users, detached) = gone;
            let (failure, undo_failed) = trouble;
            // Every field by name: one that is added must be thought of here.
            Facts {
                holders,
                attachers,
                staged,
                kept,
                intended,
                cancelled,
                volume,
                at,
                in_place,
                provision_tried,
                recorded,
                allocated,
                attached_new,
                probed_new,
                formatting,
                formatted,
                published,
                shared,
                carried: false,
                own_tried,
                owned,
                named,
                confirmed,
                given_up,
                evicted: false,
                attached,
                expanded,
                growth,
                grew,
                grown,
                probe,
                checked,
                mount_tried,
                mounted,
                committed,
                unmounted,
                users,
                detached,
                released,
                removed,
                recovered,
                // What is adopted has facts of its own, and no other goal looks at them.
                stranger: None,
                inside: None,
                renewed: false,
                adopted: false,
                discarded: false,
                failure,
                undo_failed,
            }
        })
    }

    pub fn world() -> impl Strategy<Value = World> {
        let device = (prop::option::of(Just(OURS)), probe(), probe(), mounted());
        let node = (any::<bool>(), any::<bool>(), 0..2_usize, in_ledger(), any::<bool>(), any::<bool>(), any::<bool>());
        let how = prop_oneof![Just(Fail::Before), Just(Fail::After)];
        let trouble = (prop::collection::btree_map(0..BOUND, how, 0..4), prop_oneof![3 => Just(usize::MAX), 1 => 0..12_usize]);
        let larger = (growth(), any::<bool>());
        (info(), device, node, trouble, any::<bool>(), larger).prop_map(|(info, device, node, trouble, shared, (growth, cannot_grow))| {
            let (attached, new_storage, on_device, mounted) = device;
            let (busy, copied, holders, staged, intent, unmendable, kernel_knows) = node;
            let (failing, cancelled_at) = trouble;
            // A device that is mounted is attached.
            let attached = if mounted == Some(at(OURS)) { Some(OURS) } else { attached };
            let trace = Vec::new();
            // What is attached is ours, and by whom we write is written down.
            let (ours, named) = (attached.is_some(), attached.is_some());
            World {
                shared,
                ours,
                named,
                owed: false,
                half_done: false,
                info,
                new_storage,
                attached,
                on_device,
                unmendable,
                mounted,
                busy,
                copied,
                holders,
                staged,
                intent,
                kernel_knows,
                growth,
                cannot_grow,
                grew: false,
                failing,
                cancelled_at,
                trace,
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn law_5_no_facts_lead_to_a_format_but_storage_that_this_run_recorded_and_proved_blank(goal in any::goal(), facts in any::facts()) {
        if next(&goal, &facts) == Step::Format {
            prop_assert_eq!(&facts.probed_new, &Some(Probe::Blank));
            prop_assert!(facts.recorded && facts.allocated && facts.formatting && facts.failure.is_none());
            prop_assert_eq!(goal.word(), "create");
        }
    }

    #[test]
    fn law_5_no_facts_lead_to_a_mount_but_of_a_ready_volume_on_which_nothing_else_was_found(goal in any::goal(), facts in any::facts()) {
        if next(&goal, &facts) == Step::Mount {
            let Some(Some(info)) = facts.volume else { return Err(TestCaseError::fail("there is no volume")) };
            prop_assert_eq!(info.state, VolumeState::Ready);
            prop_assert!(info.fs_uuid.is_some(), "nothing to compare with");
            prop_assert_eq!(facts.probe, None);
            prop_assert!(facts.recorded && facts.attached.is_some() && facts.at == Some(None) && facts.failure.is_none());
            prop_assert_eq!(goal, Goal::Stage);
        }
    }

    #[test]
    fn law_6_no_facts_lead_to_an_attach_of_what_others_may_have_or_to_a_read_before_we_can_be_cut_off(goal in any::goal(), facts in any::facts()) {
        let step = next(&goal, &facts);
        if facts.shared && matches!(goal, Goal::Stage | Goal::Attach) {
            prop_assert!(step != Step::Attach || facts.owned);
            prop_assert!(!matches!(step, Step::Mount | Step::Check | Step::Commit) || facts.named, "{:?}", step);
        }
        if facts.shared && goal == Goal::Remove {
            prop_assert!(step != Step::Remove || facts.owned);
        }
        if step == Step::GiveUp {
            prop_assert!(facts.shared && !facts.given_up);
        }
    }

    #[test]
    fn law_6_what_is_not_attached_here_any_more_is_free_for_others_unless_it_is_written_down(mut world in any::world()) {
        world.shared = true;
        // What was attached was written down before.
        world.intent |= world.attached.is_some();
        for goal in [create_goal(), Goal::Resize(Bytes::gib(2)), Goal::Stage, Goal::Unstage, Goal::Remove] {
            world.run(&goal);
            let left = world.ours && world.attached.is_none() && world.mounted.is_none() && world.info.is_some();
            // Whoever undoes what is half made gives it up with that, and what is whole is not half made.
            let half = world.info.as_ref().is_some_and(|info| matches!(info.state, VolumeState::Creating | VolumeState::Removing));
            prop_assert!(!left || world.intent || world.owed || (half && world.half_done), "{:?}", world.words());
        }
    }

    #[test]
    fn law_4_what_a_create_of_a_shared_volume_leaves_is_whole_or_gone_or_owed(mut world in any::world()) {
        world.shared = true;
        (world.attached, world.named) = (None, false);
        world.mounted = None;
        world.run(&create_goal());
        let half = world.info.as_ref().is_some_and(|info| info.state == VolumeState::Creating);
        // What another run of this node or another node has left half made, and this run has not touched, is not its to undo.
        prop_assert!(!half || world.half_done || !world.did("record"), "{:?}", world.words());
    }

    #[test]
    fn law_5_no_facts_lead_to_a_check_but_of_the_recorded_filesystem_and_only_once(goal in any::goal(), facts in any::facts()) {
        if next(&goal, &facts) == Step::Check {
            let recorded = facts.volume.flatten().and_then(|info| info.fs_uuid);
            prop_assert!(matches!(facts.probe, Some(Probe::Known(known)) if Some(known.uuid) == recorded));
            prop_assert!(!facts.checked && facts.recorded);
        }
    }

    #[test]
    fn law_6_no_facts_lead_to_a_longer_image_of_another_node_and_none_to_a_shorter_one(facts in any::facts()) {
        for size in [Bytes::mib(512), Bytes::gib(2)] {
            if let Step::Expand(to) = next(&Goal::Resize(size), &facts) {
                prop_assert!(to == size && size == Bytes::gib(2));
                prop_assert!(!facts.shared || facts.owned || facts.confirmed);
            }
        }
    }

    #[test]
    fn law_5_no_facts_lead_to_a_grown_filesystem_but_of_a_volume_that_is_here_and_can_be_cut_off(goal in any::goal(), facts in any::facts()) {
        if next(&goal, &facts) == Step::Grow {
            prop_assert!(facts.attached.is_some() || facts.at.flatten().is_some());
            prop_assert!(!facts.shared || facts.named || facts.confirmed || facts.expanded);
            prop_assert!(facts.volume.iter().flatten().any(|info| info.growing && info.state == VolumeState::Ready));
        }
    }

    #[test]
    fn law_2_no_facts_lead_to_an_unmount_of_what_is_held_but_to_undo_a_mount(goal in any::goal(), facts in any::facts()) {
        if let Step::Unmount(device) = next(&goal, &facts) {
            if goal == Goal::Stage {
                let ours = [facts.mounted.map(|mounted| mounted.device), facts.attached.map(|attached| attached.number)];
                prop_assert!(facts.recorded && ours.contains(&Some(device)));
            } else {
                prop_assert_eq!(facts.holders, 0);
                prop_assert_eq!(facts.at.flatten().map(|there| there.device), Some(device));
            }
        }
    }

    #[test]
    fn no_facts_lead_to_an_unmount_or_a_detach_of_the_last_copy(facts in any::facts()) {
        let gone = matches!(&facts.volume, Some(None)) || matches!(&facts.volume, Some(Some(info)) if info.state == VolumeState::Damaged);
        if gone && facts.at.flatten().is_some() {
            let step = next(&Goal::Unstage, &facts);
            prop_assert!(!matches!(step, Step::Unmount(_) | Step::Detach(_)), "{:?}", step);
        }
    }

    #[test]
    fn law_4_nothing_is_changed_on_this_node_before_it_is_written_down(facts in any::facts()) {
        if !facts.recorded {
            let step = next(&Goal::Stage, &facts);
            prop_assert!(!matches!(step, Step::Attach | Step::Mount | Step::Unmount(_) | Step::Detach(_)), "{:?}", step);
            let step = next(&Goal::Unstage, &facts);
            prop_assert!(!matches!(step, Step::Mount | Step::Unmount(_)), "{:?}", step);
        }
    }

    #[test]
    fn every_plan_ends_whatever_fails_and_formats_no_data_on_the_way(goal in any::goal(), mut world in any::world()) {
        let last = world.run(&goal);
        prop_assert!(matches!(last, Step::Done(_) | Step::Refuse(_)));
    }

    #[test]
    fn an_error_that_is_answered_is_the_first_one(goal in any::goal(), mut world in any::world()) {
        let first = world.failing.keys().copied().next();
        let last = world.run(&goal);
        if let (Some(first), Step::Refuse(error)) = (first, last)
            && error.detail.starts_with("step ")
        {
            prop_assert_eq!(error, step_failed(first));
        }
    }

    #[test]
    fn no_plan_touches_a_mount_of_another_device(goal in any::goal(), mut world in any::world()) {
        world.mounted = Some(at(FOREIGN));
        world.staged = world.staged.filter(|staged| staged.device == OURS);
        world.run(&goal);
        prop_assert_eq!(world.mounted, Some(at(FOREIGN)));
    }
}
