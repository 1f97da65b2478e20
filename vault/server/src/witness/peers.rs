//! One thread for each witness: brings it to the state that the vault wants remembered, and notes what it says.
//!
//! What to send next is decided in [`State::next`], from what the witness holds; the rest carries it out, again and again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chatkeep_vault_protocol::answer::{self, Answer, Refusal};
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::{ORIGIN, SignedHead, commits, head_message, restores};
use chatkeep_vault_protocol::message::{Envelope, Latest, Request};
use rand_core::OsRng;

use crate::hsm::{DeviceError, IdentityKey};
use crate::vault::Clock;

/// After a failure a witness is left alone for so long, then twice as long, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A witness that has nothing to do is asked that often what it holds. Shorter than the ten seconds after which a vault
/// closes an idle connection: one that stays open cannot be crowded out by clients, who may be waiting for this witness.
const KEEP_OPEN_EVERY: Duration = Duration::from_secs(5);

/// Carries bytes to one witness and back. Blocks, but for some seconds at most. Need not be trusted.
pub trait Link: Send {
    /// The answer's bytes, or why there are none, for a person. May send the same bytes twice.
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, String>;
}

/// A vault that remembers this one's state.
pub struct Peer {
    /// What its operator is called; in messages.
    pub name: String,
    /// Its identity key, pinned.
    pub identity: [u8; 32],
    /// The way to it.
    pub link: Box<dyn Link>,
}

/// Shared by the anchor and the threads of the witnesses.
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
    keys: Arc<dyn IdentityKey>,
    /// Whose state it is; `None`: that of a vault that is whole.
    cell: Option<CellId>,
    clock: Clock,
}

pub(super) struct State {
    /// What the witnesses shall hold.
    pub(super) goal: Option<SignedHead>,
    /// The newest state that is final.
    pub(super) anchored: Option<SignedHead>,
    /// Counts the times that all witnesses are asked what they hold.
    pub(super) round: u64,
    pub(super) seats: Vec<Seat>,
    pub(super) stop: bool,
}

/// What is known of one witness.
pub(super) struct Seat {
    pub(super) name: String,
    /// The round in which it last told what it holds.
    pub(super) heard: u64,
    /// The round in which it was last asked, in vain or not.
    pub(super) tried: u64,
    /// What it holds, as far as it told.
    pub(super) held: Held,
    /// What went wrong last.
    pub(super) fault: Option<String>,
}

/// See [`Seat::held`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Held {
    Unknown,
    /// No state yet.
    Nothing,
    State(SignedHead),
}

impl Held {
    /// Number and digest, if they are known.
    pub(super) fn at(&self) -> Option<(u64, [u8; 32])> {
        match self {
            Self::Unknown => None,
            Self::Nothing => Some(ORIGIN),
            Self::State(head) => Some(head.state()),
        }
    }

    pub(super) fn head(&self) -> Option<SignedHead> {
        match self {
            Self::State(head) => Some(*head),
            Self::Unknown | Self::Nothing => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Ask,
    Send(SignedHead),
    Wait,
}

impl State {
    fn next(&self, seat: &Seat) -> Action {
        let Some(at) = seat.held.at().filter(|_| seat.heard == self.round) else { return Action::Ask };
        let Some(goal) = self.goal else { return Action::Wait };
        if goal.is_after(at) {
            return Action::Send(goal);
        }
        match self.anchored {
            // it was away; it must not miss a quorum for ever because it missed some steps
            Some(anchored) if goal.seq > at.0 && anchored.seq > at.0 => Action::Send(anchored),
            _ => Action::Wait,
        }
    }
}

impl State {
    /// How many commits each witness is behind what they shall hold; `None` if it did not say what it holds.
    pub(super) fn lags(&self) -> Vec<Option<u64>> {
        let goal = self.goal.or(self.anchored).map_or(0, |goal| goal.seq);
        let behind = |seq| {
            // commits of a restore that a witness does not know of are all behind it
            if restores(seq) == restores(goal) { goal.saturating_sub(seq) } else { commits(goal) }
        };
        self.seats.iter().map(|seat| seat.held.at().map(|(seq, _)| behind(seq))).collect()
    }
}

impl Board {
    /// Starts the threads. They end by themselves after [`Self::stop`]; nobody waits for one that is on the network.
    pub(super) fn start(
        peers: Vec<Peer>,
        keys: Arc<dyn IdentityKey>,
        cell: Option<CellId>,
        clock: Clock,
    ) -> std::io::Result<Arc<Self>> {
        let seat = |peer: &Peer| Seat {
            name: peer.name.clone(),
            heard: 0,
            tried: 0,
            held: Held::Unknown,
            fault: None,
        };
        let seats = peers.iter().map(seat).collect();
        // round 1, so that nobody is taken as heard
        let state = State { goal: None, anchored: None, round: 1, seats, stop: false };
        let board = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), keys, cell, clock });
        for (index, peer) in peers.into_iter().enumerate() {
            let board = board.clone();
            std::thread::Builder::new()
                .name("vault-to-witness".to_owned())
                .spawn(move || board.attend(index, peer))?;
        }
        Ok(board)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics while holding it")
    }

    /// Changes something and lets everybody look.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }

    /// Waits for a change, at most so long.
    pub(super) fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        at_most: Duration,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, at_most).expect("no one panics while holding it").0
    }

    pub(super) fn stop(&self) {
        self.change(|state| state.stop = true);
    }

    pub(super) fn sign(
        &self,
        seq: u64,
        previous_root: [u8; 32],
        root: [u8; 32],
        anchored: bool,
    ) -> Result<SignedHead, DeviceError> {
        let vault = self.keys.public();
        let cell = self.cell;
        let message = head_message(&vault, cell, seq, &previous_root, &root, anchored);
        let signature = Fixed(self.keys.sign(&message)?);
        let (previous_root, root) = (Fixed(previous_root), Fixed(root));
        Ok(SignedHead { vault: Fixed(vault), cell, seq, previous_root, root, anchored, signature })
    }

    fn attend(&self, index: usize, mut peer: Peer) {
        let mut pause = Duration::ZERO;
        while let Some((action, round)) = self.next(index) {
            let held = self.carry_out(action, &mut peer);
            let failed = held.is_err();
            self.change(|state| note(&mut state.seats[index], action, round, held));
            pause = if failed { (pause * 2).clamp(PAUSE.0, PAUSE.1) } else { Duration::ZERO };
            if failed {
                let state = self.lock();
                let stopped = self.changed.wait_timeout_while(state, pause, |state| !state.stop);
                drop(stopped.expect("no one panics while holding it"));
            }
        }
    }

    /// What to do next for this witness; waits until there is something. `None`: stop.
    fn next(&self, index: usize) -> Option<(Action, u64)> {
        let idle_until = Instant::now() + KEEP_OPEN_EVERY;
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            match state.next(&state.seats[index]) {
                Action::Wait => {
                    let idle = idle_until.saturating_duration_since(Instant::now());
                    if idle.is_zero() {
                        return Some((Action::Ask, state.round));
                    }
                    state = self.wait(state, idle);
                }
                action => return Some((action, state.round)),
            }
        }
    }

    /// What the witness holds after it answered.
    fn carry_out(&self, action: Action, peer: &mut Peer) -> Result<Held, Failure> {
        match action {
            Action::Ask | Action::Wait => self.ask(peer),
            Action::Send(head) => {
                // only a state that is final may be shown to a witness that missed some
                let catches_up = self.lock().anchored.is_some_and(|anchored| anchored == head);
                let head = if catches_up && !head.anchored {
                    self.sign(head.seq, head.previous_root.0, head.root.0, true)
                        .map_err(|error| Failure::new(format!("was not asked: {error}")))?
                } else {
                    head
                };
                match self.call(peer, Request::Cosign(head))? {
                    Answer::Cosigned { seq, root } if (seq, root.0) == head.state() => Ok(Held::State(head)),
                    other => Err(Failure::unasked(&other)),
                }
            }
        }
    }

    fn ask(&self, peer: &mut Peer) -> Result<Held, Failure> {
        let (vault, cell) = (Fixed(self.keys.public()), self.cell);
        match self.call(peer, Request::Latest(Latest { vault, cell }))? {
            Answer::Latest { head: None } => Ok(Held::Nothing),
            Answer::Latest { head: Some(head) }
                if head.vault == vault && head.cell == cell && head.is_genuine() =>
            {
                Ok(Held::State(*head))
            }
            Answer::Latest { head: Some(head) } => Err(Failure::new(format!(
                "lies: it shows a state of commit {} that this vault never signed{}",
                head.seq,
                cell.map(|cell| format!(" for {cell}")).unwrap_or_default()
            ))),
            other => Err(Failure::unasked(&other)),
        }
    }

    fn call(&self, peer: &mut Peer, request: Request) -> Result<Answer, Failure> {
        let request = Envelope::new(request, &mut OsRng).encode();
        let unreachable = |what| Failure::new(format!("cannot be reached: {what}"));
        let answer = peer.link.call(&request).map_err(unreachable)?;
        let body = answer::verify(&answer, &peer.identity, &request, (self.clock)())
            .map_err(|error| Failure::new(format!("is not believed: {error}")))?;
        match body.answer {
            Answer::Busy {} => Err(Failure::new("is busy".to_owned())),
            Answer::Refused { why } => Err(Failure::refused(why)),
            answer => Ok(answer),
        }
    }
}

struct Failure {
    what: String,
    /// What it holds is not what was thought: it must be asked.
    surprised: bool,
}

impl Failure {
    fn new(what: String) -> Self {
        Self { what, surprised: false }
    }

    fn unasked(answer: &Answer) -> Self {
        Self::new(format!("lies or is another version: it answered {answer:?}"))
    }

    fn refused(why: Refusal) -> Self {
        let surprised = matches!(why, Refusal::OutOfOrder | Refusal::Conflict);
        let what = match why {
            Refusal::NotWitnessed => {
                "does not witness this vault: its operator has to name this vault's identity in [[witness_for]]"
                    .to_owned()
            }
            Refusal::OtherCells => {
                "refuses: it remembers states of this vault that is whole, or cut into another number of cells"
                    .to_owned()
            }
            Refusal::Malformed => "refuses: its program may be too old, for cells above all".to_owned(),
            Refusal::OutOfOrder => "refuses: it holds another state than it told".to_owned(),
            Refusal::Conflict => "refuses: it signed another state of this commit".to_owned(),
            why => format!("refuses: {why:?}"),
        };
        Self { what, surprised }
    }
}

fn note(seat: &mut Seat, action: Action, round: u64, held: Result<Held, Failure>) {
    seat.tried = seat.tried.max(round);
    match held {
        Ok(held) => {
            let (before, now) = (seat.held.at().unwrap_or(ORIGIN).0, held.at().unwrap_or(ORIGIN).0);
            if now < before {
                let name = &seat.name;
                tracing::error!(name, before, now, "a witness forgot: it was rolled back, or it lies");
            }
            if seat.fault.take().is_some() {
                tracing::info!(name = seat.name, "a witness is back");
            }
            seat.held = held;
            if action == Action::Ask {
                seat.heard = seat.heard.max(round);
            }
        }
        Err(Failure { what, surprised }) => {
            if seat.fault.as_ref() != Some(&what) {
                tracing::warn!(name = seat.name, what, "a witness does not help");
            }
            seat.fault = Some(what);
            if surprised {
                // not what was thought: it is asked again
                seat.held = Held::Unknown;
            }
        }
    }
}
