use std::time::Duration;

use dunnage_model::BootId;

use dunnage_driver::{SILENCE, Sign};

use super::liveness::{Observer, SUSPECT_FOR};
use super::*;

fn owner(node: &str, boot: &str) -> Owner {
    Owner { node: node.parse().expect("a name"), boot: BootId(boot.to_owned()) }
}

fn clients<const N: usize>(names: [&str; N]) -> BTreeSet<Client> {
    names.map(|name| Client(name.to_owned())).into()
}

fn record(epoch: u64, state: OwnerState) -> OwnerRecord {
    OwnerRecord { epoch, ..OwnerRecord::new().with(state) }
}

fn held_by(node: &str, of: Option<BTreeSet<Client>>) -> OwnerState {
    OwnerState::Held { owner: owner(node, "1"), clients: of, taken: false }
}

/// What `b` knows, that found this record.
fn found(policy: Preempt, record: OwnerRecord) -> Claim {
    let found = Some(Some(Versioned { revision: 3, record }));
    Claim { record: found, ..Claim::new(owner("b", "1"), policy, BTreeSet::new()) }
}

/// Goes on as if every move worked, until the platform is asked to change or to cut off something, or nothing more is to be done.
fn decides(mut claim: Claim, standing: Standing, open: &BTreeSet<Client>) -> Move {
    loop {
        match next(&claim) {
            Move::ListClients => claim.clients = Some(open.clone()),
            Move::Observe => claim.standing = Some(standing),
            decided => return decided,
        }
    }
}

#[track_caller]
fn fences(decided: Move) -> (u64, BTreeSet<Client>, bool) {
    match decided {
        Move::Swap(OwnerRecord { epoch, state: OwnerState::Fencing { by, victims, everybody }, .. }) if by.node.as_str() == "b" => {
            (epoch, victims, everybody)
        }
        other => panic!("it does not take it: {other:?}"),
    }
}

#[track_caller]
fn is_refused(decided: Move) -> String {
    match decided {
        Move::Refuse(error) if error.word() == "in_use" => error.to_string(),
        other => panic!("it is not refused: {other:?}"),
    }
}

mod law_6_one_writer {
    use super::*;

    #[test]
    fn what_nobody_has_is_claimed_before_it_is_attached() {
        for found_as in [None, Some(Versioned { revision: 3, record: record(7, OwnerState::Free) })] {
            let before = found_as.as_ref().map_or(0, |found| found.record.epoch);
            let claim = Claim { record: Some(found_as), ..Claim::new(owner("b", "1"), Preempt::Never, BTreeSet::new()) };
            let Move::Swap(claimed) = decides(claim, Standing::Alive, &clients([])) else { panic!("it does not claim it") };
            assert_eq!((claimed.epoch, claimed.state.clone()), (before + 1, held_by("b", None)));
            assert_eq!(decides(found(Preempt::Never, claimed), Standing::Alive, &clients([])), Move::Done);
        }
    }

    #[test]
    fn a_node_that_lives_keeps_its_volume_until_nobody_waits_any_longer() {
        for (policy, standing) in
            [(Preempt::Never, Standing::Dead), (Preempt::IfDead, Standing::Alive), (Preempt::IfDead, Standing::Suspect)]
        {
            let claim = found(policy, record(7, held_by("a", Some(clients(["a1"])))));
            assert_eq!(decides(claim.clone(), standing, &clients(["a1"])), Move::Wait, "{policy}");
            let said = is_refused(decides(Claim { impatient: true, ..claim }, standing, &clients(["a1"])));
            assert!(said.contains("in_use{a}") && said.contains("dunnage node fence a"), "{said}");
        }
    }

    #[test]
    fn a_dead_node_s_volume_is_claimed_then_its_clients_are_cut_off_then_the_barrier_is_passed_and_only_then_is_it_ours() {
        let claim = found(Preempt::IfDead, record(7, held_by("a", Some(clients(["a1", "a2"])))));
        let Move::Swap(fencing) = decides(claim, Standing::Dead, &clients([])) else { panic!("it does not take it") };
        assert_eq!(fences(Move::Swap(fencing.clone())), (8, clients(["a1", "a2"]), false));
        let mut claim = found(Preempt::IfDead, fencing);
        assert_eq!(next(&claim), Move::Fence(clients(["a1", "a2"])));
        claim.fenced = clients(["a1"]);
        assert_eq!(next(&claim), Move::Fence(clients(["a2"])), "one that is not cut off yet");
        claim.fenced = clients(["a1", "a2"]);
        assert_eq!(next(&claim), Move::Barrier);
        claim.barrier = true;
        let Move::Swap(ours) = next(&claim) else { panic!("it is not ours") };
        assert_eq!((ours.epoch, ours.cut.clone()), (8, clients(["a1", "a2"])));
        // They are seen for a while after they were cut off.
        assert_eq!(decides(found(Preempt::IfDead, ours), Standing::Alive, &clients(["a1", "a2"])), Move::Done);
    }

    #[test]
    fn from_an_owner_whose_clients_nobody_knows_everybody_is_cut_off() {
        let (epoch, victims, everybody) =
            fences(decides(found(Preempt::IfDead, record(7, held_by("a", None))), Standing::Dead, &clients(["x"])));
        assert_eq!((epoch, victims.len(), everybody), (8, 0, true));
        let state = OwnerState::Fencing { by: owner("b", "1"), victims, everybody };
        assert_eq!(
            decides(found(Preempt::IfDead, record(8, state)), Standing::Dead, &clients(["x", "y"])),
            Move::Fence(clients(["x", "y"]))
        );
    }

    #[test]
    fn a_dead_taker_is_taken_over_with_whom_it_was_to_cut_off() {
        let state = OwnerState::Fencing { by: owner("c", "1"), victims: clients(["a1"]), everybody: true };
        let claim = found(Preempt::IfDead, record(8, state));
        assert_eq!(decides(claim.clone(), Standing::Alive, &clients([])), Move::Wait);
        assert_eq!(fences(decides(claim, Standing::Dead, &clients([]))), (9, clients(["a1"]), true));
    }

    #[test]
    fn what_an_earlier_run_of_this_node_wrote_with_is_cut_off_first() {
        let state = OwnerState::Held { owner: owner("b", "0"), clients: Some(clients(["b0"])), taken: false };
        assert_eq!(fences(decides(found(Preempt::Never, record(7, state)), Standing::Alive, &clients([]))), (8, clients(["b0"]), false));
    }

    #[test]
    fn what_of_this_run_has_died_is_cut_off_before_another_takes_its_place() {
        let ours = record(7, held_by("b", Some(clients(["b1", "b2"]))));
        let claim = Claim { mine: clients(["b2"]), ..found(Preempt::Never, ours.clone()) };
        assert_eq!(fences(next(&claim)), (8, clients(["b1"]), false));
        let claim = Claim { mine: clients(["b1", "b2"]), ..found(Preempt::Never, ours) };
        assert_eq!(decides(claim, Standing::Alive, &clients(["b1", "b2"])), Move::Done);
    }

    #[test]
    fn a_stranger_is_named_and_cut_off_by_always_alone() {
        for state in [OwnerState::Free, held_by("b", None)] {
            let said = is_refused(decides(found(Preempt::IfDead, record(7, state.clone())), Standing::Dead, &clients(["10.0.0.9:0/1"])));
            assert!(said.contains("client 10.0.0.9:0/1"), "{said}");
            let taken = decides(found(Preempt::Always, record(7, state)), Standing::Alive, &clients(["10.0.0.9:0/1"]));
            assert_eq!(fences(taken), (8, clients(["10.0.0.9:0/1"]), false));
        }
        // What this node has open itself is no stranger, and is not cut off with one.
        let ours = record(7, held_by("b", Some(clients(["b1"]))));
        let claim = Claim { mine: clients(["b1"]), ..found(Preempt::Always, ours) };
        assert_eq!(fences(decides(claim, Standing::Alive, &clients(["b1", "x"]))), (8, clients(["x"]), false));
    }

    #[test]
    fn always_does_not_wait_but_for_who_has_just_taken_it_itself() {
        let taken = |taken| OwnerState::Held { owner: owner("a", "1"), clients: Some(clients(["a1"])), taken };
        for (was_taken, restless) in [(false, false), (false, true), (true, false)] {
            let claim = Claim { restless, ..found(Preempt::Always, record(7, taken(was_taken))) };
            assert_eq!(fences(decides(claim, Standing::Alive, &clients(["a1"]))), (8, clients(["a1"]), false));
        }
        let claim = Claim { restless: true, ..found(Preempt::Always, record(7, taken(true))) };
        assert_eq!(decides(claim, Standing::Alive, &clients(["a1"])), Move::Wait);
    }

    #[test]
    fn a_volume_is_given_up_when_all_that_wrote_to_it_has_ended_in_order_and_else_cut_off_first() {
        let ours = record(7, held_by("b", Some(clients(["b1", "b2"]))));
        let claim = found(Preempt::IfDead, ours);
        assert_eq!(release(&claim, &clients(["b1", "b2"])), Move::Swap(record(7, OwnerState::Free)));
        let Move::Swap(fencing) = release(&claim, &clients(["b1"])) else { panic!("it is not cut off") };
        assert_eq!(fences(Move::Swap(fencing.clone())), (8, clients(["b2"]), false));
        let claim = Claim { fenced: clients(["b2"]), barrier: true, ..found(Preempt::IfDead, fencing) };
        let Move::Swap(free) = release(&claim, &clients(["b1"])) else { panic!("it is not given up") };
        assert_eq!((free.state, free.cut), (OwnerState::Free, clients(["b2"])));
        // What was taken from us is another's to give up.
        assert_eq!(release(&found(Preempt::IfDead, record(8, held_by("a", None))), &clients([])), Move::Done);
    }

    #[test]
    fn who_lost_the_volume_while_it_attached_is_not_written_in() {
        let me = owner("b", "1");
        assert_eq!(named(&me, &record(8, held_by("a", None)), clients(["b1"])), None);
        let state = OwnerState::Fencing { by: owner("a", "1"), victims: clients([]), everybody: true };
        assert_eq!(named(&me, &record(8, state), clients(["b1"])), None);
        let written = named(&me, &record(7, held_by("b", Some(clients(["b0"])))), clients(["b1"])).expect("ours");
        assert_eq!(written.state, held_by("b", Some(clients(["b0", "b1"]))));
    }
}

mod a_node {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn boot(name: &str) -> BootId {
        BootId(name.to_owned())
    }

    /// An observer that looks every second from 0 on, until `end`, at a node that gives signs until `last`.
    fn observed(last: u32, end: u32) -> Observer {
        let mut observer = Observer::new(boot("1"), Duration::ZERO);
        for second in 0..=end {
            let sign = Sign { boot: boot("1"), watched: second <= last, counter: second.min(last).into() };
            observer.see(second * SECOND, second * SECOND, Some(sign));
        }
        observer
    }

    #[test]
    fn is_dead_when_it_was_silent_for_long_enough_and_no_sooner() {
        let lease = Some(Duration::ZERO);
        assert_eq!(observed(5, 19).standing(SILENCE, lease, false), Standing::Alive);
        assert_eq!(observed(5, 20).standing(SILENCE, lease, false), Standing::Dead);
        assert_eq!(SILENCE, 15 * SECOND);
        assert_eq!(observed(5, 9).standing(5 * SECOND, lease, false), Standing::Alive);
        assert_eq!(observed(5, 10).standing(5 * SECOND, lease, false), Standing::Dead);
    }

    #[test]
    fn is_only_suspected_while_a_client_of_it_has_the_volume_open() {
        let lease = Some(Duration::ZERO);
        assert_eq!(observed(5, 20).standing(SILENCE, lease, true), Standing::Suspect);
        let end = 5 + u32::try_from(SUSPECT_FOR.as_secs()).expect("small");
        assert_eq!(observed(5, end).standing(SILENCE, lease, true), Standing::Dead);
    }

    #[test]
    fn that_runs_anew_has_ended_its_run_before_at_once() {
        let mut observer = observed(5, 6);
        observer.see(6 * SECOND, 6 * SECOND, Some(Sign { boot: boot("2"), watched: true, counter: 1 }));
        assert_eq!(observer.standing(SILENCE, None, true), Standing::Dead);
    }

    #[test]
    fn is_not_dead_because_we_were_cut_off_ourselves() {
        assert_eq!(observed(5, 100).standing(SILENCE, None, false), Standing::Alive);
        assert_eq!(observed(5, 100).standing(SILENCE, Some(90 * SECOND), false), Standing::Alive);
        assert_eq!(observed(5, 105).standing(SILENCE, Some(90 * SECOND), false), Standing::Dead);
    }

    #[test]
    fn is_not_dead_because_nobody_looked() {
        // We slept, or the platform did not answer: the first look after it brings another counter.
        let mut observer = observed(5, 5);
        observer.see(500 * SECOND, 500 * SECOND, Some(Sign { boot: boot("1"), watched: false, counter: 77 }));
        assert_eq!(observer.standing(SILENCE, Some(Duration::ZERO), false), Standing::Alive);
        // An answer that took long is a sign as late as it can have been given.
        let mut observer = observed(5, 5);
        observer.see(10 * SECOND, 40 * SECOND, Some(Sign { boot: boot("1"), watched: true, counter: 5 }));
        observer.see(41 * SECOND, 41 * SECOND, Some(Sign { boot: boot("1"), watched: false, counter: 5 }));
        assert_eq!(observer.standing(SILENCE, Some(Duration::ZERO), false), Standing::Alive);
    }
}
