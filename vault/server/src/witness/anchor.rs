//! The side that is remembered: an anchor that is as far as a quorum of witnesses is.
//!
//! With w witnesses, of which up to f were rolled back or lie, a quorum of q >= (w + f + 1) / 2 is safe: any two quorums
//! share more than f witnesses. If a whole quorum is rolled back together with the vault, nobody can notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::{ORIGIN, SignedHead};

use crate::anchor::{Anchor, AnchorError, Anchored, Interrupter, Lags};
use crate::hsm::IdentityKey;
use crate::store::Head;
use crate::vault::Clock;
use crate::witness::peers::{Board, Peer, Seat, State};

/// When a quorum has answered, the others get so long to say that they know something newer.
const GRACE: Duration = Duration::from_secs(2);
/// While a batch waits for its quorum, the log says so that often.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// Why witnesses do not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessFault {
    /// Fewer than a quorum answered. Try again later.
    #[error(
        "{have} of the {needed} witnesses answered that are needed, so this vault does not serve: {what}"
    )]
    TooFew {
        /// How many answered.
        have: usize,
        /// The quorum.
        needed: usize,
        /// Witness by witness.
        what: String,
    },
    /// A quorum answered, but fewer than a quorum hold the newest state or the one before it. Some were away for long,
    /// or were rolled back. Try again later, when others answer.
    #[error(
        "{have} of the {needed} witnesses hold the newest state, commit {newest}, that are needed: others were away or \
         rolled back, so this vault does not serve: {what}"
    )]
    Behind {
        /// How many hold it.
        have: usize,
        /// The quorum.
        needed: usize,
        /// The newest state that any of them holds.
        newest: u64,
        /// Witness by witness.
        what: String,
    },
    /// This vault signed another state of this commit, or one after it: a copy of this vault runs, or ran. Final.
    #[error("a copy of this vault went another way: {what}")]
    Forked {
        /// Which witnesses hold what.
        what: String,
    },
    /// The quorum is none.
    #[error(
        "a quorum must be more than half of the witnesses, and at most all: {quorum} of {witnesses} is not"
    )]
    BadQuorum {
        /// As configured.
        quorum: usize,
        /// As configured.
        witnesses: usize,
    },
    /// The vault stops.
    #[error("the vault stops while it waits for its witnesses")]
    Stopped,
}

impl WitnessFault {
    /// Whether waiting may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::TooFew { .. } | Self::Behind { .. })
    }
}

/// q of w witnesses.
pub struct WitnessAnchor {
    board: Arc<Board>,
    quorum: usize,
    /// The state that is final.
    last: Option<Anchored>,
    patience: Duration,
}

impl WitnessAnchor {
    /// `quorum` of `peers`, for the state of `cell` or of a vault that is whole. Reading gives up after `patience`; advancing never does.
    pub fn new(
        peers: Vec<Peer>,
        quorum: usize,
        keys: Arc<dyn IdentityKey>,
        cell: Option<CellId>,
        clock: Clock,
        patience: Duration,
    ) -> Result<Self, AnchorError> {
        let witnesses = peers.len();
        if quorum > witnesses || 2 * quorum <= witnesses {
            return Err(WitnessFault::BadQuorum { quorum, witnesses }.into());
        }
        Ok(Self { board: Board::start(peers, keys, cell, clock)?, quorum, last: None, patience })
    }

    /// Shows the database's state to all witnesses as final: to witnesses that are new, or that lost their memory.
    ///
    /// By hand, by whoever runs the vault and knows that nobody put an old disk back: a witness that holds a newer state
    /// refuses, one that holds none cannot know. Fails unless a quorum holds the state afterwards.
    pub fn enrol(&mut self, head: &Head) -> Result<(), AnchorError> {
        let signed = self.board.sign(head.seq, head.previous_root, head.root, true)?;
        self.board.change(|state| {
            state.goal = Some(signed);
            state.anchored = Some(signed);
            state.round += 1;
        });
        self.bring_quorum_to(&signed, Some(Instant::now() + self.patience))?;
        self.last = Some(Anchored { seq: head.seq, root: head.root });
        Ok(())
    }

    /// The newest state that a quorum knows of.
    fn newest(&self, deadline: Instant) -> Result<Option<SignedHead>, WitnessFault> {
        let mut grace: Option<Instant> = None;
        let mut state = self.board.lock();
        loop {
            if state.stop {
                return Err(WitnessFault::Stopped);
            }
            let all_tried = state.seats.iter().all(|seat| seat.tried == state.round);
            let now = Instant::now();
            match survey(&state, self.quorum) {
                Ok(newest) => {
                    let until = *grace.get_or_insert(now + GRACE);
                    if all_tried || now >= until.min(deadline) {
                        return Ok(newest);
                    }
                }
                Err(fault) if !fault.is_temporary() || now >= deadline => return Err(fault),
                Err(_) => {}
            }
            let until = grace.map_or(deadline, |grace| grace.min(deadline));
            state = self.board.wait(state, until.saturating_duration_since(now));
        }
    }

    /// Waits until a quorum holds the goal; without a deadline for ever.
    fn bring_quorum_to(&self, goal: &SignedHead, deadline: Option<Instant>) -> Result<(), WitnessFault> {
        let mut remind = Instant::now() + REMIND_EVERY;
        let mut state = self.board.lock();
        loop {
            if state.stop {
                return Err(WitnessFault::Stopped);
            }
            forked(&state, goal)?;
            let have = state.seats.iter().filter(|seat| seat.held.at() == Some(goal.state())).count();
            if have >= self.quorum {
                state.anchored = Some(*goal);
                return Ok(());
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                let (needed, what) = (self.quorum, describe(&state.seats));
                return Err(WitnessFault::TooFew { have, needed, what });
            }
            if now >= remind {
                let (needed, what) = (self.quorum, describe(&state.seats));
                tracing::warn!(have, needed, what, "no answer leaves before enough witnesses signed");
                remind = now + REMIND_EVERY;
            }
            let until = deadline.map_or(remind, |deadline| deadline.min(remind));
            state = self.board.wait(state, until.saturating_duration_since(now));
        }
    }
}

impl Drop for WitnessAnchor {
    fn drop(&mut self) {
        self.board.stop();
    }
}

impl Anchor for WitnessAnchor {
    fn name(&self) -> &'static str {
        "witness"
    }

    /// The newest state that any of at least a quorum of witnesses holds. If a crash left it at fewer than a quorum,
    /// that is finished first: the state carries this vault's own signature.
    fn read(&mut self) -> Result<Anchored, AnchorError> {
        self.board.change(|state| {
            state.goal = None;
            state.anchored = None;
            state.round += 1;
        });
        let newest = self.newest(Instant::now() + self.patience)?;
        if let Some(newest) = newest {
            self.board.change(|state| state.goal = Some(newest));
            self.bring_quorum_to(&newest, Some(Instant::now() + self.patience))?;
        }
        let (seq, root) = newest.map_or(ORIGIN, |head| head.state());
        let anchored = Anchored { seq, root };
        self.last = Some(anchored);
        Ok(anchored)
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        let last = match self.last {
            Some(last) => last,
            None => self.read()?,
        };
        if last == *next {
            return Ok(());
        }
        let step = self.board.sign(next.seq, last.root, next.root, false)?;
        self.board.change(|state| state.goal = Some(step));
        self.bring_quorum_to(&step, None)?;
        self.last = Some(*next);
        Ok(())
    }

    /// Asks nobody: of two processes, the witnesses sign the next state of one.
    fn advance_from(&mut self, previous: &Anchored, next: &Anchored) -> Result<(), AnchorError> {
        match self.last {
            Some(last) if last != *previous => {
                Err(AnchorError::Moved { found: last.seq, expected: previous.seq })
            }
            _ => self.advance(next),
        }
    }

    fn interrupter(&self) -> Option<Interrupter> {
        let board = self.board.clone();
        Some(Arc::new(move || board.stop()))
    }

    fn lags(&self) -> Option<Lags> {
        let board = self.board.clone();
        Some(Arc::new(move || board.lock().lags()))
    }
}

/// The newest state among the answers of this round, if enough came and enough hold it.
fn survey(state: &State, quorum: usize) -> Result<Option<SignedHead>, WitnessFault> {
    let heard: Vec<&Seat> = state.seats.iter().filter(|seat| seat.heard == state.round).collect();
    let newest = heard.iter().filter_map(|seat| seat.held.head()).max_by_key(|head| head.seq);
    if let Some(newest) = &newest {
        forked(state, newest)?;
    }
    let (have, needed) = (heard.len(), quorum);
    if have < quorum {
        return Err(WitnessFault::TooFew { have, needed, what: describe(&state.seats) });
    }
    let Some(newest) = newest else { return Ok(None) };
    // the last anchored state was held by a quorum, and the newest is that one or the one after it
    let near = |at| at == newest.state() || newest.is_after(at);
    let have = heard.iter().filter(|seat| seat.held.at().is_some_and(near)).count();
    if have < quorum {
        return Err(WitnessFault::Behind { have, needed, newest: newest.seq, what: describe(&state.seats) });
    }
    Ok(Some(newest))
}

/// Fails if a witness holds a state that cannot be when `head` is the newest.
fn forked(state: &State, head: &SignedHead) -> Result<(), WitnessFault> {
    let elsewhere = |seat: &&Seat| {
        seat.heard == state.round
            && seat.held.at().is_some_and(|at| at.0 > head.seq || at.0 == head.seq && at != head.state())
    };
    let elsewhere: Vec<String> = state
        .seats
        .iter()
        .filter(elsewhere)
        .map(|seat| format!("`{}` holds {}", seat.name, holds(seat)))
        .collect();
    if elsewhere.is_empty() {
        return Ok(());
    }
    let ours = format!("this one is at commit {} ({})", head.seq, short(&head.root.0));
    Err(WitnessFault::Forked { what: format!("{}, signed by this vault; {ours}", elsewhere.join(", ")) })
}

fn describe(seats: &[Seat]) -> String {
    let one = |seat: &Seat| match &seat.fault {
        Some(fault) => format!("`{}` {fault}", seat.name),
        None => format!("`{}` holds {}", seat.name, holds(seat)),
    };
    seats.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn holds(seat: &Seat) -> String {
    match seat.held.at() {
        None => "something unknown: it has not answered yet".to_owned(),
        Some(at) if at == ORIGIN => "no state yet".to_owned(),
        Some((seq, root)) => format!("commit {seq} ({})", short(&root)),
    }
}

/// Enough of a digest to tell two apart.
fn short(root: &[u8; 32]) -> String {
    hex::encode(&root[..4])
}
