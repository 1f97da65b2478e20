//! "In no order of crashes, restarts, replays and rollbacks does a thief get more evaluations than he was told": every
//! order up to a depth, and long ways at random, with the vault itself.
//!
//! A step is one life of the vault's process: start, with the check of store against anchor, one request, and the plug
//! pulled somewhere in it or not. Between lives, or while it runs, somebody puts another disk in. The thief knows every
//! message that was ever sent and sends it again; the owner guesses right, proves it and changes the password. A guess
//! is a key and an element that were never multiplied before, whoever sees the result: more than `attempts` of them in
//! one window, which ends with a proof or a change of password, break the promise.
//!
//! Left out, because the count does not depend on it: records are not encrypted; elements that nobody sent yet are
//! alike, so the thief takes the first; a plug that is pulled before the commit leaves nothing behind.

mod host;
mod messages;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stateright::{Checker as _, Expectation, HasDiscoveries, Model, Property};

use crate::stack::random::Random;
use host::Fault;
use messages::OWNERS;
use state::{Given, Rollbacks, State, Wrong};

/// What is not as it should be, so that the model is seen to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// The anchor goes back with the disk, as the one in a file does.
    AnchorGoesBack,
}

/// What is tried.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Attempts between two proofs.
    pub attempts: u16,
    /// How often the owner guesses right.
    pub owner_guesses: u8,
    /// How often the owner changes the password.
    pub changes: u8,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What was tried and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    /// Different states of disk, anchor, owner and thief.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// Disks that were put in and older than the anchor.
    pub rollbacks_tried: u64,
    /// Those of them that were refused.
    pub rollbacks_refused: u64,
    /// Promises that were broken, with the steps that lead there.
    pub broken: Vec<String>,
    /// What should happen somewhere, and did not.
    pub missed: Vec<String>,
}

/// Every state that can be reached in `depth` steps, on two threads.
pub fn explore(bounds: Bounds, depth: usize) -> Tried {
    let model = VaultModel::new(bounds);
    let rollbacks = model.rollbacks.clone();
    // the first state counts, and what is that deep is reached and not looked at
    let checker = model.checker().threads(2).target_max_depth(depth + 2);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut tried = Tried {
        states: checker.unique_state_count() as u64,
        steps: checker.state_count() as u64,
        ..Tried::counting(&rollbacks)
    };
    let discoveries = checker.discoveries();
    for property in checker.model().properties() {
        match (&property.expectation, discoveries.get(property.name)) {
            (Expectation::Always, Some(path)) => {
                tried.broken.push(format!("{}: {:?}", property.name, path.clone().into_actions()));
            }
            (Expectation::Sometimes, None) => tried.missed.push(property.name.to_owned()),
            _ => {}
        }
    }
    tried
}

/// `walks` ways of at most `steps` steps, at random, the same for the same `random`. A state counts each time.
pub fn walk(bounds: Bounds, random: &mut Random, walks: u32, steps: u32) -> Tried {
    let model = VaultModel::new(bounds);
    let start = State::registered(&model.given);
    let properties = model.properties();
    let mut seen = BTreeSet::new();
    let mut tried = Tried::default();
    for _ in 0..walks {
        let (mut state, mut way) = (start.clone(), Vec::new());
        for _ in 0..steps {
            let mut possible = Vec::new();
            model.actions(&state, &mut possible);
            possible.sort_by_key(Step::kind);
            if possible.is_empty() {
                break;
            }
            // each kind as often as the others: there are many more messages to replay than disks to put back
            let kinds: Vec<_> = possible.chunk_by(|a, b| a.kind() == b.kind()).collect();
            let possible = *random.pick(&kinds);
            let step = random.pick(possible);
            let Some(next) = model.next_state(&state, step.clone()).filter(|next| *next != state) else {
                continue;
            };
            way.push(step.clone());
            state = next;
            tried.steps += 1;
            for property in &properties {
                match (&property.expectation, (property.condition)(&model, &state)) {
                    (Expectation::Always, false) => {
                        tried.broken.push(format!("{}: {way:?}", property.name));
                    }
                    (Expectation::Sometimes, true) => drop(seen.insert(property.name)),
                    _ => {}
                }
            }
        }
    }
    let expected = properties.iter().filter(|property| property.expectation == Expectation::Sometimes);
    tried.missed = expected
        .map(|property| property.name)
        .filter(|name| !seen.contains(name))
        .map(str::to_owned)
        .collect();
    let Tried { rollbacks_tried, rollbacks_refused, .. } = Tried::counting(&model.rollbacks);
    Tried { states: tried.steps, rollbacks_tried, rollbacks_refused, ..tried }
}

impl Tried {
    fn counting([tried, refused]: &[Arc<AtomicU64>; 2]) -> Self {
        Self {
            rollbacks_tried: tried.load(Ordering::Relaxed),
            rollbacks_refused: refused.load(Ordering::Relaxed),
            ..Self::default()
        }
    }
}

/// One life of the process, or what somebody does to the disk between two.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The thief guesses at a registration.
    Guess(u8, Fault),
    /// Something that was sent before, again.
    Replay(usize, Fault),
    /// A stranger registers the account once more.
    Stranger(Fault),
    /// The owner's next right guess, or the proof of the last one.
    Unlock(Fault),
    /// The next message of a change of password.
    Change(Fault),
    /// A guess, a copy put in while the vault runs, and something that was sent before.
    Swap(usize, usize),
    /// A copy is put in.
    PutBack(usize),
    /// The newest disk is put in again.
    PutRight,
    /// An unfinished change of password expires.
    Day,
}

impl Step {
    fn kind(&self) -> u8 {
        match self {
            Self::Guess(..) => 0,
            Self::Replay(..) => 1,
            Self::Stranger(_) => 2,
            Self::Unlock(_) => 3,
            Self::Change(_) => 4,
            Self::Swap(..) => 5,
            Self::PutBack(_) => 6,
            Self::PutRight => 7,
            Self::Day => 8,
        }
    }
}

/// The vault and all that may happen to it.
struct VaultModel {
    given: Given,
    /// Tried and refused.
    rollbacks: [Arc<AtomicU64>; 2],
}

impl VaultModel {
    fn new(bounds: Bounds) -> Self {
        Self { given: Given { bounds, elements: messages::elements() }, rollbacks: Default::default() }
    }
}

impl Model for VaultModel {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::registered(&self.given)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.wrong.is_some() {
            return;
        }
        let bounds = self.given.bounds;
        let owner = &state.owner;
        let changes_left = owner.active <= bounds.changes;
        for fault in Fault::ALL {
            steps.push(Step::Guess(owner.active, fault));
            if owner.change == 2 {
                steps.push(Step::Guess(owner.active + 1, fault));
            }
            if owner.active > 1 {
                steps.push(Step::Guess(owner.active - 1, fault));
            }
            if owner.guesses_left > 0 || owner.answered.is_some() {
                steps.push(Step::Unlock(fault));
            }
            if changes_left {
                steps.push(Step::Change(fault));
            }
        }
        // the thief learns nothing from an answer to what he did not ask for
        for fault in [Fault::None, Fault::BeforeAnchor, Fault::BeforeAnswer] {
            steps.extend((0..state.sent.len()).map(|n| Step::Replay(n, fault)));
        }
        steps.push(Step::Stranger(Fault::None));
        for n in 0..state.copies.len() {
            steps.push(Step::PutBack(n));
            steps.extend((0..state.sent.len()).map(|again| Step::Swap(n, again)));
        }
        if state.is_tampered() {
            steps.push(Step::PutRight);
        }
        if state.day == 0 && owner.change > 0 {
            steps.push(Step::Day);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        let (given, mut count) = (&self.given, Rollbacks::default());
        match step {
            Step::Guess(registration, fault) => next.steal(given, registration, fault, &mut count),
            Step::Replay(n, fault) => {
                let request = state.sent.iter().nth(n)?.clone();
                next.ask(given, request, fault, &mut count);
            }
            Step::Stranger(fault) => {
                let element = &given.elements[usize::from(OWNERS)];
                let request = messages::begin(9, None, element, given.bounds.attempts);
                next.ask(given, request, fault, &mut count);
            }
            Step::Unlock(fault) => next.unlock(given, fault, &mut count),
            Step::Change(fault) => next.change(given, fault, &mut count),
            Step::Swap(n, again) => {
                let (copy, again) =
                    (state.copies.iter().nth(n)?.clone(), state.sent.iter().nth(again)?.clone());
                next.swap(given, copy, again, &mut count);
            }
            Step::PutBack(n) => next.put_back(given, state.copies.iter().nth(n)?.clone()),
            Step::PutRight => next.put_right(given),
            Step::Day => next.day += 1,
        }
        self.rollbacks[0].fetch_add(count.tried, Ordering::Relaxed);
        self.rollbacks[1].fetch_add(count.refused, Ordering::Relaxed);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(
                "never more guesses than attempts between proofs",
                |model: &Self, state: &State| {
                    state.guesses.values().all(|guesses| *guesses <= model.given.bounds.attempts)
                },
            ),
            Property::always("a crash alone never stops the vault", |_, state: &State| {
                state.wrong != Some(Wrong::Stuck)
            }),
            Property::always("a disk older than the anchor is refused", |_, state: &State| {
                state.wrong != Some(Wrong::ServedOld)
            }),
            Property::always("nothing is evaluated after the key is gone", |_, state: &State| {
                state.wrong != Some(Wrong::Undead)
            }),
            Property::sometimes("the key is destroyed", |_, state: &State| state.destroyed),
            Property::sometimes("a disk exchanged while it runs stops the vault", |_, state: &State| {
                state.seen.swap_stopped
            }),
        ];
        if self.given.bounds.owner_guesses > 0 {
            properties
                .push(Property::sometimes("a proof resets the count", |_, state: &State| state.seen.reset));
        }
        if self.given.bounds.changes > 0 {
            properties
                .push(Property::sometimes("a password is changed", |_, state: &State| state.seen.changed));
        }
        properties
    }
}
