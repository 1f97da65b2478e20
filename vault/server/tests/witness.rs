//! Vaults that witness each other, on real disks, with networks that fail and witnesses that lie or forget.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_protocol::answer::{Answer, Charged};
use common::witnessed::{Account, Behaviour, Node, Request, disk, put_back, witnesses};

/// Long enough for a busy machine, when an answer is expected.
const LONG: Duration = Duration::from_mins(1);
/// When none is.
const SHORT: Duration = Duration::from_millis(700);

/// A vault and `w` witnesses of it, of which `q` must sign.
fn world(w: usize, q: usize) -> (Arc<Node>, Vec<Arc<Node>>) {
    let vault = Node::new("vault");
    let witnesses = witnesses(w);
    vault.is_witnessed_by(&witnesses, q);
    for witness in &witnesses {
        witness.start(LONG).unwrap();
    }
    vault.start(LONG).unwrap();
    (vault, witnesses)
}

#[test]
fn a_quorum_signs_every_batch_and_a_start_finds_it() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    assert_eq!(account.left_after(&vault, 1), 9);
    assert_eq!(vault.info().anchor, "file+witness");
    vault.stop();
    let seq = vault.start(LONG).map(|()| vault.info().seq).unwrap();
    let held = witnesses.iter().filter(|witness| witness.latest_of(&vault) == Some(seq)).count();
    assert!(held >= 2, "{held}");
    assert_eq!(account.left_after(&vault, 2), 8);
}

#[test]
fn the_metrics_say_how_far_a_witness_is_behind() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.sees(&witnesses[2], Behaviour::Away);
    account.left_after(&vault, 1);
    account.left_after(&vault, 2);
    let lag = |witness: usize| {
        let metrics = vault.vault().unwrap().metrics(0);
        let name = format!("chatkeep_vault_witness_lag_commits{{witness=\"{witness}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    assert_eq!((lag(0), lag(1)), (Some(0), Some(0)));
    assert!(lag(2).unwrap() >= 2);
}

#[test]
fn a_disk_that_was_put_back_is_refused_with_the_reason() {
    let (vault, _witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.stop();
    let copy = disk(&vault);
    vault.start(LONG).unwrap();
    for n in 0..5 {
        account.left_after(&vault, n);
    }
    vault.stop();
    // everything: database, file anchor, keys, its own memory as a witness
    put_back(&vault, &copy);
    let refused = vault.start(LONG).unwrap_err().to_string();
    assert!(refused.contains("commit 3") && refused.contains("does not serve"), "{refused}");
    assert!(vault.vault().is_none());
}

#[test]
fn too_few_witnesses_at_start_are_named_and_waited_for() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.stop();
    for away in &witnesses[1..] {
        vault.sees(away, Behaviour::Away);
    }
    let refused = vault.start(SHORT).unwrap_err().to_string();
    assert!(refused.contains("1 of the 2 witnesses"), "{refused}");
    for away in &witnesses[1..] {
        assert!(refused.contains(&format!("`{}` cannot be reached", away.name)), "{refused}");
    }
    vault.sees(&witnesses[2], Behaviour::Honest);
    vault.start(LONG).unwrap();
    assert_eq!(account.left_after(&vault, 1), 9);
}

#[test]
fn while_witnesses_are_away_no_answer_leaves_and_nothing_is_charged_twice() {
    let (vault, witnesses) = world(3, 2);
    let (account, other) = (Account::new(&vault), Account::new(&vault));
    for away in &witnesses[1..] {
        vault.sees(away, Behaviour::Away);
    }
    let before = vault.vault().unwrap().evaluations();
    let guess = Request::guess(&account, 1);
    for _ in 0..3 {
        assert_eq!(vault.ask(&guess), Answer::Busy {});
        // whoever came while nothing moves was told so at once, and is not charged later
        vault.until(|vault| vault.ask(&Request::guess(&other, 1)) == Answer::Busy {});
    }
    assert_eq!(vault.vault().unwrap().evaluations(), before, "no evaluation without an anchor");

    vault.sees(&witnesses[2], Behaviour::Honest);
    vault.until(|vault| vault.ask(&guess) != Answer::Busy {});
    let answer = vault.ask(&guess);
    assert!(
        matches!(answer, Answer::Charged(Charged { left: 9, .. })),
        "the same bytes are one attempt: {answer:?}"
    );
    assert_eq!(other.left_after(&vault, 2), 9, "who was sent away was not charged");
    assert!(vault.failures().is_empty(), "{:?}", vault.failures());
}

#[test]
fn who_gave_up_in_the_queue_is_not_charged_when_it_moves_again() {
    let (vault, witnesses) = world(3, 2);
    let (first, queued) = (Account::new(&vault), Account::new(&vault));
    vault.until(|vault| witnesses[0].latest_of(vault) == Some(vault.info().seq));
    for away in &witnesses[1..] {
        vault.sees(away, Behaviour::Away);
    }
    let seq = vault.info().seq;
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(first.guess(&vault, 1), Answer::Busy {}));
        // the first one's batch is committed, and one of the two witnesses signed it
        vault.until(|vault| witnesses[0].latest_of(vault) == Some(seq + 1));
        assert_eq!(queued.guess(&vault, 1), Answer::Busy {});
    });
    vault.sees(&witnesses[1], Behaviour::Honest);
    assert_eq!(queued.left_after(&vault, 2), 9);
    assert_eq!(first.left_after(&vault, 2), 8);
}

#[test]
fn a_vault_that_waits_for_its_witnesses_can_be_stopped() {
    let (vault, witnesses) = world(1, 1);
    let account = Account::new(&vault);
    vault.sees(&witnesses[0], Behaviour::Away);
    assert_eq!(account.guess(&vault, 1), Answer::Busy {});
    vault.stop();
    vault.sees(&witnesses[0], Behaviour::Honest);
    vault.start(LONG).unwrap();
    assert_eq!(account.left_after(&vault, 1), 9, "charged before the stop, once");
    assert!(vault.failures().is_empty(), "{:?}", vault.failures());
}

#[test]
fn two_vaults_witness_each_other_under_load_and_start_together() {
    let [one, two] = ["one", "two"].map(Node::new);
    one.is_witnessed_by(std::slice::from_ref(&two), 1);
    two.is_witnessed_by(std::slice::from_ref(&one), 1);
    for round in 0..2 {
        // neither can serve before the other is there to answer
        std::thread::scope(|scope| {
            for node in [&one, &two] {
                scope.spawn(|| node.start(LONG).unwrap());
            }
        });
        std::thread::scope(|scope| {
            for node in [&one, &two] {
                for _ in 0..8 {
                    scope.spawn(move || {
                        let account = Account::new(node);
                        for n in 0..5 {
                            assert_eq!(account.left_after(node, n), 9 - n as u16, "round {round}");
                        }
                    });
                }
            }
        });
        for node in [&one, &two] {
            node.stop();
        }
    }
    assert!(one.failures().is_empty() && two.failures().is_empty());
}

#[test]
fn a_witness_that_missed_steps_catches_up_and_counts_again() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.sees(&witnesses[2], Behaviour::Away);
    for n in 0..3 {
        account.left_after(&vault, n);
    }
    // over a restart, which remembers nothing of what it missed
    vault.stop();
    vault.start(LONG).unwrap();
    vault.sees(&witnesses[2], Behaviour::Honest);
    vault.until(|vault| witnesses[2].latest_of(vault) == Some(vault.info().seq));
    vault.sees(&witnesses[0], Behaviour::Away);
    assert_eq!(account.left_after(&vault, 7), 6);
}

#[test]
fn one_witness_that_was_rolled_back_is_brought_forward() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    let copy = disk_of_stopped(&witnesses[0]);
    account.left_after(&vault, 1);
    vault.until(|vault| witnesses[1..].iter().all(|w| w.latest_of(vault) == Some(vault.info().seq)));
    vault.stop();
    witnesses[0].stop();
    put_back(&witnesses[0], &copy);
    witnesses[0].start(LONG).unwrap();
    let before = witnesses[0].latest_of(&vault);
    vault.start(LONG).unwrap();
    assert!(before < Some(vault.info().seq));
    vault.until(|vault| witnesses[0].latest_of(vault) == Some(vault.info().seq));
}

#[test]
fn witnesses_that_were_rolled_back_below_the_quorum_are_noticed() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    let copies = [disk_of_stopped(&witnesses[0]), disk_of_stopped(&witnesses[1])];
    for n in 0..3 {
        account.left_after(&vault, n);
    }
    vault.until(|vault| witnesses[2].latest_of(vault) == Some(vault.info().seq));
    vault.stop();
    for (witness, copy) in witnesses.iter().zip(&copies) {
        witness.stop();
        put_back(witness, copy);
        witness.start(LONG).unwrap();
    }
    let refused = vault.start(SHORT).unwrap_err().to_string();
    assert!(refused.contains("1 of the 2 witnesses hold the newest state"), "{refused}");
    assert!(refused.contains("rolled back"), "{refused}");

    // also when the vault's own disk went back with them, as far as one honest witness answers
    vault.sees(&witnesses[0], Behaviour::Away);
    assert!(vault.start(SHORT).is_err());

    // whoever runs the vault, and knows that its own disk is the newest, says so by hand
    vault.sees(&witnesses[0], Behaviour::Honest);
    vault.enrol(LONG).unwrap();
    vault.start(LONG).unwrap();
    assert_eq!(account.left_after(&vault, 9), 6);
}

#[test]
fn an_old_disk_cannot_be_enrolled_where_a_newer_state_is_known() {
    let (vault, _witnesses) = world(2, 2);
    let account = Account::new(&vault);
    let copy = disk_of_stopped(&vault);
    account.left_after(&vault, 1);
    vault.stop();
    put_back(&vault, &copy);
    assert!(vault.enrol(SHORT).is_err());
    assert!(vault.start(SHORT).is_err());
}

#[test]
fn a_witness_that_invents_a_state_is_named_and_not_counted() {
    let (vault, witnesses) = world(2, 2);
    Account::new(&vault);
    vault.stop();
    vault.sees(&witnesses[1], Behaviour::Invents);
    let refused = vault.start(SHORT).unwrap_err().to_string();
    assert!(refused.contains(&format!("`{}` lies", witnesses[1].name)), "{refused}");

    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.stop();
    vault.sees(&witnesses[1], Behaviour::Invents);
    vault.start(LONG).unwrap();
    assert_eq!(account.left_after(&vault, 1), 9);
}

#[test]
fn a_witness_that_signs_something_else_or_is_somebody_else_does_not_count() {
    for behaviour in [Behaviour::SignsSomethingElse, Behaviour::SomebodyElse] {
        let (vault, witnesses) = world(3, 2);
        let account = Account::new(&vault);
        vault.sees(&witnesses[0], behaviour);
        assert_eq!(account.left_after(&vault, 1), 9, "the others are enough");
        vault.sees(&witnesses[1], Behaviour::Away);
        assert_eq!(account.guess(&vault, 2), Answer::Busy {}, "{behaviour:?}");
    }
}

#[test]
fn of_two_copies_of_one_vault_only_one_goes_on() {
    let (vault, witnesses) = world(3, 2);
    let account = Account::new(&vault);
    vault.stop();
    let clone = Node::clone_of(&vault, "clone");
    clone.is_witnessed_by(&witnesses, 2);
    vault.start(LONG).unwrap();
    clone.start(LONG).unwrap();
    assert_eq!(account.left_after(&vault, 1), 9);
    clone.ask_if_it_lives(&Request::guess(&account, 2));
    clone.until(|clone| !clone.failures().is_empty());
    assert!(clone.failures()[0].contains("a copy of this vault went another way"), "{:?}", clone.failures());
    assert_eq!(clone.vault().unwrap().evaluations(), 0);
    assert_eq!(account.left_after(&vault, 3), 8);
    clone.stop();
    assert!(clone.start(SHORT).is_err());
}

#[test]
fn a_vault_whose_witness_role_nobody_configured_says_so() {
    let (vault, witnesses) = (Node::new("vault"), witnesses(1));
    vault.is_witnessed_by(&witnesses, 1);
    witnesses[0].forgets_to_witness(&vault);
    witnesses[0].start(LONG).unwrap();
    let refused = vault.start(SHORT).unwrap_err().to_string();
    assert!(refused.contains("does not witness this vault"), "{refused}");
}

/// The disk of a node that goes on afterwards.
fn disk_of_stopped(node: &Node) -> tempfile::TempDir {
    node.stop();
    let copy = disk(node);
    node.start(LONG).unwrap();
    copy
}
