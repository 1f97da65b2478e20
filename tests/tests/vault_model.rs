//! The vault's promise in every order of what can go wrong; `cargo xtask prove vault` goes deeper.

use chatkeep_tests::stack::random::Random;
use chatkeep_tests::vault_model::{Bounds, Flaw, Tried, explore, walk};

const BOUNDS: Bounds = Bounds { attempts: 2, owner_guesses: 1, changes: 1, flaw: Flaw::None };

#[track_caller]
fn check_kept(tried: &Tried) {
    println!("{} states, {} steps, {} rollbacks", tried.states, tried.steps, tried.rollbacks_tried);
    assert!(tried.broken.is_empty(), "{:#?}", tried.broken);
    assert!(tried.missed.is_empty(), "{:#?}", tried.missed);
    assert!(tried.rollbacks_tried > 0);
    assert_eq!(tried.rollbacks_tried, tried.rollbacks_refused);
}

#[test]
fn in_no_order_of_crashes_replays_and_rollbacks_does_a_thief_get_more_guesses() {
    check_kept(&explore(BOUNDS, 3));
}

/// Deeper, because without the owner less can happen.
#[test]
fn a_thief_alone_gets_no_more_guesses_whatever_is_put_in_while_the_vault_runs() {
    let tried = explore(Bounds { owner_guesses: 0, changes: 0, ..BOUNDS }, 5);
    check_kept(&tried);
}

#[test]
fn long_ways_at_random_give_no_more_guesses() {
    let bounds = Bounds { attempts: 5, owner_guesses: 3, changes: 2, ..BOUNDS };
    check_kept(&walk(bounds, &mut Random::new(20_211_014), 30, 40));
}

/// The model finds what the anchor in a file cannot notice.
#[test]
fn an_anchor_that_goes_back_with_the_disk_gives_more_guesses() {
    let tried = explore(Bounds { attempts: 1, flaw: Flaw::AnchorGoesBack, ..BOUNDS }, 3);
    assert!(tried.broken.iter().any(|broken| broken.starts_with("never more guesses")), "{tried:?}");
}
