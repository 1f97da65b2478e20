//! Every order up to a depth, and long ways at random.

use chatkeep_tests::stack::random::Random;
use chatkeep_tests::vault_model::{Bounds, Flaw, Tried, explore, walk};

use crate::prove_vault::Figures;

/// Steps of a way at random.
const STEPS: u32 = 80;
/// Ways at random in a round.
const WALKS: u32 = 20;

pub(crate) fn model(figures: &mut Figures, random: &mut Random, depth: usize, rounds: u32) {
    let small = Bounds { attempts: 2, owner_guesses: 1, changes: 1, flaw: Flaw::None };
    add(figures, explore(small, depth));
    // more attempts, so less that happens between the first guess and the last
    add(figures, explore(Bounds { attempts: 3, owner_guesses: 0, changes: 0, ..small }, depth + 1));
    for _ in 0..rounds {
        let (attempts, owner_guesses) = (random.between(2, 10) as u16, random.between(1, 4) as u8);
        let bounds = Bounds { attempts, owner_guesses, changes: random.between(1, 3) as u8, ..small };
        add(figures, walk(bounds, random, WALKS, STEPS));
    }
    let goes_back = explore(Bounds { attempts: 1, flaw: Flaw::AnchorGoesBack, ..small }, 3);
    if goes_back.broken.is_empty() {
        figures.failures.add("the model does not notice an anchor that goes back with the disk".to_owned());
    }
}

fn add(figures: &mut Figures, tried: Tried) {
    figures.states += tried.states;
    figures.steps += tried.steps;
    figures.rollbacks_tried += tried.rollbacks_tried;
    figures.rollbacks_refused += tried.rollbacks_refused;
    for broken in tried.broken {
        figures.evaluations_over_limit += u64::from(broken.starts_with("never more guesses"));
        figures.failures.add(broken);
    }
}
