//! What the steps of the model change.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_vault_protocol::answer::Answer;
use chatkeep_vault_protocol::limits::PENDING_LIFETIME_S;

use super::host::{self, Disk, Event, Fault, Life, Pair, Start};
use super::messages::{self, OWNERS};
use super::{Bounds, Flaw};

/// Everything outside of the vault's process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) disk: Disk,
    /// The disk that belongs into the machine.
    newest: Disk,
    /// Others that there were, as long as the anchor might take them.
    pub(super) copies: BTreeSet<Disk>,
    anchor: (u64, [u8; 32]),
    draws: u64,
    windows: u8,
    pub(super) day: u8,
    pub(super) owner: Owner,
    pub(super) sent: BTreeSet<Vec<u8>>,
    /// Registration and element, as the thief calls them, with the pair.
    known: BTreeSet<Pair>,
    /// New guesses, for each window.
    pub(super) guesses: BTreeMap<u8, u16>,
    /// The vault said that the key is gone.
    pub(super) destroyed: bool,
    pub(super) wrong: Option<Wrong>,
    /// What was seen, so that nobody believes in a model where nothing happens.
    pub(super) seen: Seen,
}

/// See [`State::seen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Seen {
    pub(super) reset: bool,
    pub(super) changed: bool,
    pub(super) swap_stopped: bool,
}

/// What the honest client is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    /// The registration that opens the keyslot.
    pub(super) active: u8,
    /// How far the change to the next one is: begun, finished.
    pub(super) change: u8,
    pub(super) guesses_left: u8,
    /// The newest answer to a right guess.
    pub(super) answered: Option<Answered>,
}

/// See [`Owner::answered`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Answered {
    element: u8,
    evaluated: Vec<u8>,
    challenge: [u8; 32],
}

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wrong {
    /// Crashes alone made the vault refuse its own disk.
    Stuck,
    /// It served a disk that is older than the anchor.
    ServedOld,
    /// It evaluated after it had said that the key is gone.
    Undead,
}

/// Disks older than the anchor that were put in, and how many were refused.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rollbacks {
    pub(super) tried: u64,
    pub(super) refused: u64,
}

/// What no state has of its own.
pub(super) struct Given {
    pub(super) bounds: Bounds,
    pub(super) elements: Vec<Vec<u8>>,
}

impl Given {
    fn element(&self, n: u8) -> &[u8] {
        &self.elements[usize::from(n)]
    }
}

impl State {
    /// A vault with one account, whose first registration is active.
    pub(super) fn registered(given: &Given) -> Self {
        let disk = Disk::new();
        let anchor = disk.anchored();
        let owner = Owner { active: 1, change: 0, guesses_left: given.bounds.owner_guesses, answered: None };
        let mut state = Self {
            newest: disk.clone(),
            disk,
            copies: BTreeSet::new(),
            anchor,
            draws: 0,
            windows: 0,
            day: 0,
            owner,
            sent: BTreeSet::new(),
            known: BTreeSet::new(),
            guesses: BTreeMap::new(),
            destroyed: false,
            wrong: None,
            seen: Seen::default(),
        };
        let attempts = given.bounds.attempts;
        let begin = messages::begin(1, None, given.element(OWNERS), attempts);
        for request in [begin, messages::finish(1, None), messages::commit(1)] {
            state.ask(given, request, Fault::None, &mut Rollbacks::default());
        }
        state.seen = Seen::default();
        state
    }

    /// One life, in which `request` is asked.
    pub(super) fn ask(&mut self, given: &Given, request: Vec<u8>, fault: Fault, count: &mut Rollbacks) {
        self.ask_owner(given, request, fault, count);
    }

    /// The thief guesses at a registration with an element that was never sent.
    pub(super) fn steal(&mut self, given: &Given, registration: u8, fault: Fault, count: &mut Rollbacks) {
        let request = messages::guess(registration, self.next_element(given));
        self.ask(given, request, fault, count);
    }

    /// The thief guesses, exchanges the disk of the running vault for a copy, and sends something again.
    pub(super) fn swap(&mut self, given: &Given, copy: Disk, again: Vec<u8>, count: &mut Rollbacks) {
        let guess = messages::guess(self.owner.active, self.next_element(given));
        self.sent.insert(guess.clone());
        let for_nothing = messages::is_begin(&again);
        let events = vec![Event::Asked(guess), Event::Swapped(copy), Event::Asked(again)];
        let answers = self.live(given, events, Fault::None, for_nothing, count);
        self.seen.swap_stopped |=
            answers.first().is_some_and(Option::is_some) && answers.last() == Some(&None);
    }

    /// The owner guesses right, or proves that the last guess was.
    pub(super) fn unlock(&mut self, given: &Given, fault: Fault, count: &mut Rollbacks) {
        let registration = self.owner.active;
        if let Some(Answered { element, evaluated, challenge }) = self.owner.answered.take() {
            let proof = messages::prove(registration, given.element(element), &evaluated, &challenge);
            let answer = self.ask_owner(given, proof, fault, count);
            self.seen.reset |= matches!(answer, Some(Answer::Reset { .. }));
            return;
        }
        let element = OWNERS + self.owner.guesses_left;
        let guess = messages::guess(registration, given.element(element));
        match self.ask_owner(given, guess, fault, count) {
            Some(Answer::Charged(charged)) => {
                self.owner.guesses_left -= 1;
                let (evaluated, challenge) = (charged.evaluated.0, charged.challenge.0);
                self.owner.answered = Some(Answered { element, evaluated, challenge });
            }
            // asked again with the same element, as the client does
            None => {}
            Some(_) => self.owner.guesses_left -= 1,
        }
    }

    /// The owner's next message of a change of password.
    pub(super) fn change(&mut self, given: &Given, fault: Fault, count: &mut Rollbacks) {
        let (old, new) = (self.owner.active, self.owner.active + 1);
        let attempts = given.bounds.attempts;
        let begin = || messages::begin(new, Some(old), given.element(OWNERS), attempts);
        let request = match self.owner.change {
            0 => begin(),
            1 => messages::finish(new, Some(old)),
            _ => messages::commit(new),
        };
        match (self.owner.change, self.ask_owner(given, request, fault, count)) {
            (_, None) => {}
            (0, Some(Answer::Evaluated { .. })) | (1, Some(Answer::Pending {})) => self.owner.change += 1,
            (2, Some(Answer::Active { .. })) => {
                self.owner = Owner { active: new, change: 0, answered: None, ..self.owner.clone() };
                self.seen.changed = true;
            }
            (_, Some(_)) => self.owner.change = 0,
        }
    }

    /// A copy is put in while the vault does not run.
    pub(super) fn put_back(&mut self, given: &Given, copy: Disk) {
        if given.bounds.flaw == Flaw::AnchorGoesBack {
            self.anchor = copy.anchored();
        }
        self.copies.insert(std::mem::replace(&mut self.disk, copy));
        self.copies.remove(&self.disk);
    }

    /// The newest disk is put in again.
    pub(super) fn put_right(&mut self, given: &Given) {
        self.put_back(given, self.newest.clone());
    }

    pub(super) fn is_tampered(&self) -> bool {
        self.disk != self.newest
    }

    fn ask_owner(
        &mut self,
        given: &Given,
        request: Vec<u8>,
        fault: Fault,
        count: &mut Rollbacks,
    ) -> Option<Answer> {
        let for_nothing = messages::is_begin(&request);
        // of what nothing is left of, another one like it is as good
        if fault != Fault::BeforeCommit {
            self.sent.insert(request.clone());
        }
        self.live(given, vec![Event::Asked(request)], fault, for_nothing, count).pop().flatten()
    }

    /// The first element that nobody ever sent.
    fn next_element<'a>(&self, given: &'a Given) -> &'a [u8] {
        let sent = |element: &[u8]| self.sent.iter().any(|request| messages::carries(request, element));
        let mut elements = given.elements[..usize::from(OWNERS)].iter();
        elements.find(|element| !sent(element)).expect("there are enough")
    }

    fn start<'a>(&self, given: &Given, disk: &'a Disk) -> Start<'a> {
        Start {
            disk,
            anchor: self.anchor,
            draws: self.draws,
            windows: self.windows,
            now_s: 1_000_000 + u64::from(self.day) * PENDING_LIFETIME_S,
            attempts: given.bounds.attempts,
        }
    }

    /// One life of the process; the answers that arrived.
    fn live(
        &mut self,
        given: &Given,
        events: Vec<Event>,
        fault: Fault,
        for_nothing: bool,
        count: &mut Rollbacks,
    ) -> Vec<Option<Answer>> {
        let life = host::live(&self.start(given, &self.disk), events, fault);
        let tampered = self.is_tampered();
        if !life.served {
            if !tampered {
                self.wrong = Some(Wrong::Stuck);
            }
            return Vec::new();
        }
        if self.disk.seq < self.anchor.0 {
            self.wrong = Some(Wrong::ServedOld);
        }
        self.learn(&life, for_nothing);
        let Life { disk, disks, anchor, draws, windows, happened, .. } = life;
        // what it served is its own disk from now on
        self.newest = disks.last().unwrap_or(&self.disk).clone();
        let before = std::mem::replace(&mut self.disk, disk);
        (self.anchor, self.draws, self.windows) = (anchor, draws, windows);
        self.copies.extend(disks.into_iter().chain([before]));
        self.copies.remove(&self.disk);
        if given.bounds.flaw == Flaw::None {
            self.put_old_ones_back(given, count);
        }
        happened.into_iter().map(|happened| happened.answer).collect()
    }

    /// Counts what the host of the vault saw.
    fn learn(&mut self, life: &Life, for_nothing: bool) {
        for happened in &life.happened {
            for pair in &happened.evaluated {
                if self.known.insert(pair.clone()) && !for_nothing {
                    *self.guesses.entry(happened.window).or_default() += 1;
                    if self.destroyed {
                        self.wrong = Some(Wrong::Undead);
                    }
                }
            }
            self.destroyed |= matches!(happened.answer, Some(Answer::Destroyed { .. }));
        }
    }

    /// What is older than the anchor can never be served again: tried once, then forgotten.
    fn put_old_ones_back(&mut self, given: &Given, count: &mut Rollbacks) {
        let mut copies = std::mem::take(&mut self.copies);
        copies.retain(|disk| {
            if disk.seq >= self.anchor.0 {
                return true;
            }
            count.tried += 1;
            if host::is_accepted(&self.start(given, disk)) {
                self.wrong = Some(Wrong::ServedOld);
            } else {
                count.refused += 1;
            }
            false
        });
        self.copies = copies;
    }
}
