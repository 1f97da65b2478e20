//! What a witness signs: every state of a vault once, in order, and never back. Pure.

use chatkeep_vault_protocol::answer::Refusal;
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::{ORIGIN, SignedHead, follows};

/// What to do with a state that a vault asks to be witnessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Remember it durably, then say so.
    Sign,
    /// It is what was signed last: say so again.
    Repeat,
    /// Nothing changes.
    Refuse(Refusal),
}

/// Whether two parts of a vault are of the same number of cells, or both the whole. The cells of a vault are fixed when it is
/// made: somebody who is asked about others would remember the same accounts twice.
pub fn are_cut_alike(one: Option<CellId>, other: Option<CellId>) -> bool {
    one.map(CellId::of) == other.map(CellId::of)
}

/// Decides about `asked`, a genuine head of the vault, or of the cell, whose newest state here is `last`; `None` before the
/// first.
///
/// A step must follow the last state, number and digest. Who was away when states passed has missed steps: a state that
/// the vault says is anchored lets it catch up, and only forward. A vault says so when a quorum holds that state, so a
/// copy of the vault that went another way never has one to show.
pub fn judge(last: Option<&SignedHead>, asked: &SignedHead) -> Verdict {
    let (seq, root) = last.map_or(ORIGIN, SignedHead::state);
    if asked.seq == seq {
        let same = asked.root.0 == root;
        return if same { Verdict::Repeat } else { Verdict::Refuse(Refusal::Conflict) };
    }
    if asked.seq < seq {
        return Verdict::Refuse(Refusal::OutOfOrder);
    }
    if asked.anchored || asked.is_after((seq, root)) {
        return Verdict::Sign;
    }
    let forked = follows(seq, asked.seq);
    Verdict::Refuse(if forked { Refusal::Conflict } else { Refusal::OutOfOrder })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashMap;

    use chatkeep_vault_protocol::cbor::Fixed;
    use chatkeep_vault_protocol::head::next_restore;
    use proptest::prelude::*;

    use super::*;

    fn head(seq: u64, previous: u8, root: u8, anchored: bool) -> SignedHead {
        let (vault, signature) = (Fixed([1; 32]), Fixed([0; 64]));
        let (previous_root, root) = (Fixed([previous; 32]), Fixed([root; 32]));
        SignedHead { vault, cell: None, seq, previous_root, root, anchored, signature }
    }

    #[test]
    fn the_next_state_and_the_last_one_again_are_signed() {
        let last = head(5, 4, 5, false);
        assert_eq!(judge(Some(&last), &head(6, 5, 6, false)), Verdict::Sign);
        assert_eq!(judge(Some(&last), &last), Verdict::Repeat);
        assert_eq!(judge(None, &head(1, 0, 1, false)), Verdict::Sign);
        let restored = next_restore(5).unwrap();
        assert_eq!(judge(Some(&last), &head(restored, 5, 9, false)), Verdict::Sign);
    }

    #[test]
    fn another_state_of_the_same_number_and_a_fork_are_conflicts() {
        let last = head(5, 4, 5, false);
        let conflict = Verdict::Refuse(Refusal::Conflict);
        for forked in [head(5, 4, 9, false), head(5, 4, 9, true), head(6, 9, 6, false)] {
            assert_eq!(judge(Some(&last), &forked), conflict);
        }
        assert_eq!(judge(None, &head(1, 9, 1, false)), conflict);
        assert_eq!(judge(None, &head(0, 9, 9, false)), conflict);
        assert_eq!(judge(Some(&last), &head(next_restore(5).unwrap(), 4, 9, false)), conflict);
    }

    #[test]
    fn older_states_and_gaps_are_out_of_order_and_an_anchored_state_closes_a_gap() {
        let last = head(5, 4, 5, false);
        let out_of_order = Verdict::Refuse(Refusal::OutOfOrder);
        for refused in [head(4, 3, 4, false), head(4, 3, 4, true), head(7, 6, 7, false)] {
            assert_eq!(judge(Some(&last), &refused), out_of_order);
        }
        assert_eq!(judge(Some(&last), &head(7, 6, 7, true)), Verdict::Sign);
        assert_eq!(judge(None, &head(7, 6, 7, true)), Verdict::Sign);
    }

    #[derive(Debug, Clone)]
    struct Asked {
        head: SignedHead,
        /// The power goes before the state is durable: nothing is kept, nothing said.
        crash: bool,
    }

    fn asked() -> impl Strategy<Value = Asked> {
        // few numbers and digests, so that forks, repetitions and gaps are frequent
        let seq = prop_oneof![0u64..8, Just(next_restore(0).unwrap()), Just(next_restore(0).unwrap() + 1)];
        (seq, 0u8..3, 0u8..3, any::<bool>(), any::<bool>()).prop_map(
            |(seq, previous, root, anchored, crash)| Asked {
                head: head(seq, previous, root, anchored),
                crash,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is asked, in whatever order, repeated, with the power cut anywhere.
        #[test]
        fn a_witness_never_signs_two_states_of_one_number_and_never_goes_back(
            asked in proptest::collection::vec(asked(), 1..80),
        ) {
            let mut durable: Option<SignedHead> = None;
            let mut signed: HashMap<u64, [u8; 32]> = HashMap::new();
            let mut highest = 0;
            for Asked { head, crash } in asked {
                let verdict = judge(durable.as_ref(), &head);
                if crash || matches!(verdict, Verdict::Refuse(_)) {
                    continue;
                }
                if verdict == Verdict::Sign {
                    durable = Some(head);
                }
                let root = *signed.entry(head.seq).or_insert(head.root.0);
                prop_assert_eq!(root, head.root.0, "two states of one number");
                prop_assert!(head.seq >= highest, "it went back");
                highest = head.seq;
            }
        }

        /// Two copies of a vault, each sure that it is the one, ask `w` witnesses in any order; a state is final when `q`
        /// signed it, and only then is it shown as anchored. Never are two states of one number final.
        #[test]
        fn two_copies_of_a_vault_never_both_get_a_quorum(
            acts in proptest::collection::vec((any::<bool>(), 0usize..5, any::<bool>()), 1..200),
            w in 1usize..6,
        ) {
            let q = w / 2 + 1;
            let mut witnesses: Vec<Option<SignedHead>> = vec![None; w];
            // of each copy: its last final state, and what tells its states from the other's
            let mut copies = [(ORIGIN, 1), (ORIGIN, 2)];
            let mut finals: HashMap<u64, [u8; 32]> = HashMap::new();
            for (which, witness, catch_up) in acts {
                let (last, fork) = &mut copies[usize::from(which)];
                let witness = witness % w;
                let next = head(last.0 + 1, last.1[0], *fork, false);
                let asked = if catch_up && last.0 > 0 {
                    head(last.0, 0, last.1[0], true)
                } else {
                    next
                };
                if judge(witnesses[witness].as_ref(), &asked) == Verdict::Sign {
                    witnesses[witness] = Some(asked);
                }
                let holds = |held: &&Option<SignedHead>| held.is_some_and(|held| held.state() == next.state());
                if witnesses.iter().filter(holds).count() >= q {
                    *last = next.state();
                    let root = *finals.entry(next.seq).or_insert(next.root.0);
                    prop_assert_eq!(root, next.root.0, "both copies were served");
                }
            }
        }
    }
}
