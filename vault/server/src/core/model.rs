//! The promise, checked against a machine that sends anything in any order and pulls the plug: never more than
//! `max` different elements are evaluated under one registration between two proofs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use chatkeep_vault_protocol::answer::{Answer, DestroyReason, Refusal};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{
    ArchiveHead, Begin, Commit, Envelope, Finish, Freeze, Guess, Operation, Prove, Request, Signed,
    WitnessHead, owner_message, prove_message, sign,
};
use chatkeep_vault_protocol::{Suite, limits};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use rand_core::{CryptoRngCore, OsRng};
use zeroize::Zeroizing;

use super::{Context, Evaluator, Policy, Record, Reply, step};

const IDENTITY: [u8; 32] = [9; 32];
const ACCOUNT: [u8; 16] = [1; 16];

struct Soft;

impl Evaluator for Soft {
    fn suites(&self) -> &[Suite] {
        &[Suite::Ristretto255]
    }
    fn generate_key(&self, suite: Suite, mut rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        suite.generate_key(&mut rng)
    }
    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        suite.evaluate(key, blinded).ok()
    }
}

/// The newest answer to a guess.
struct Answered {
    registration: u8,
    blinded: Vec<u8>,
    evaluated: Vec<u8>,
    challenge: [u8; 32],
}

/// A vault of one account, and a client that knows S of every registration.
struct World {
    durable: Option<Record>,
    policy: Policy,
    now_s: u64,
    seq: u64,
    elements: Vec<Vec<u8>>,
    sent: Vec<Envelope>,
    answered: Option<Answered>,
    /// Different results given to guesses since the last proof or change.
    evaluated: BTreeSet<Vec<u8>>,
    active: Option<u8>,
}

fn epoch(n: u8) -> Fixed<16> {
    Fixed([n; 16])
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n ^ 0x55; 32])
}

impl World {
    fn new(policy: Policy) -> Self {
        let elements = (0..30).map(|i| Suite::Ristretto255.blind(&[i], &mut OsRng).element).collect();
        Self {
            durable: None,
            policy,
            now_s: 1_000_000,
            seq: 0,
            elements,
            sent: Vec::new(),
            answered: None,
            evaluated: BTreeSet::new(),
            active: None,
        }
    }

    /// With registration 1 committed.
    fn registered(policy: Policy) -> Self {
        let mut world = Self::new(policy);
        for request in [world.begin(1, None, 0), World::finish(1, None), commit(1)] {
            world.ask(request);
        }
        assert_eq!(world.active, Some(1));
        world
    }

    fn owner(by: u8, operation: Operation<'_>, on: u8) -> Fixed<64> {
        sign(&key(by), &owner_message(operation, &IDENTITY, &ACCOUNT, &epoch(on).0))
    }

    fn begin(&self, n: u8, signer: Option<u8>, element: usize) -> Request {
        let blinded = &self.elements[element];
        let operation = Operation::Begin { suite: Suite::Ristretto255, attempts_max: 10, blinded };
        Request::Begin(Begin {
            account: Fixed(ACCOUNT),
            epoch: epoch(n),
            suite: Suite::Ristretto255 as u8,
            blinded: Blob(blinded.clone()),
            attempts_max: 10,
            signature: signer.map(|by| Self::owner(by, operation, n)),
            invite: None,
        })
    }

    fn finish(n: u8, signer: Option<u8>) -> Request {
        let public_key = key(n).verifying_key().to_bytes();
        let operation = Operation::Finish { public_key: &public_key };
        let signature = signer.map(|by| Self::owner(by, operation, n));
        Request::Finish(Finish {
            account: Fixed(ACCOUNT),
            epoch: epoch(n),
            public_key: Fixed(public_key),
            signature,
        })
    }

    fn guess(&self, n: u8, element: usize) -> Request {
        let blinded = Blob(self.elements[element].clone());
        Request::Guess(Guess { account: Fixed(ACCOUNT), epoch: epoch(n), blinded })
    }

    /// The proof for the newest answer; `None` before there is one.
    fn proof(&self) -> Option<Request> {
        let Answered { registration: n, blinded, evaluated, challenge } = self.answered.as_ref()?;
        let message = prove_message(&IDENTITY, &ACCOUNT, &epoch(*n).0, blinded, evaluated, challenge);
        Some(Request::Prove(Prove {
            account: Fixed(ACCOUNT),
            epoch: epoch(*n),
            blinded: Blob(blinded.clone()),
            signature: sign(&key(*n), &message),
        }))
    }

    fn ask(&mut self, request: Request) -> Answer {
        let envelope = Envelope::new(request, &mut OsRng);
        self.sent.push(envelope.clone());
        self.deliver(&envelope, false)
    }

    /// Delivers bytes, also old ones. With `crash` the power goes before the commit: nothing is kept, nothing answered.
    fn deliver(&mut self, envelope: &Envelope, crash: bool) -> Answer {
        let context = Context {
            identity: &IDENTITY,
            policy: &self.policy,
            now_s: self.now_s,
            seq: self.seq + 1,
            evaluator: &Soft,
        };
        let step = step(self.durable.as_ref(), envelope, &context, &mut OsRng);
        if crash {
            return Answer::Busy {};
        }
        let changed = step.record.is_some();
        if let Some(record) = step.record {
            // through its bytes, as the store would
            self.durable = Some(Record::decode(&*record.encode()).unwrap());
            self.seq += 1;
        }
        let answer = match step.reply {
            Reply::Answer(answer) => answer,
            Reply::Evaluate(evaluation) => evaluation.carry_out(&Soft).unwrap(),
        };
        self.observe(&envelope.request, &answer, changed);
        answer
    }

    fn observe(&mut self, request: &Request, answer: &Answer, changed: bool) {
        match (request, answer) {
            (Request::Guess(r), Answer::Charged(charged)) => {
                self.evaluated.insert(charged.evaluated.0.clone());
                self.answered = Some(Answered {
                    registration: r.epoch.0[0],
                    blinded: r.blinded.0.clone(),
                    evaluated: charged.evaluated.0.clone(),
                    challenge: charged.challenge.0,
                });
            }
            (Request::Prove(_), Answer::Reset { .. }) if changed => {
                // re-asking what was charged last tells nothing new, so it is not counted after the reset either
                self.evaluated.clear();
                self.evaluated.extend(self.answered.as_ref().map(|a| a.evaluated.clone()));
            }
            (Request::Commit(r), Answer::Active { .. }) if self.active != Some(r.epoch.0[0]) => {
                self.active = Some(r.epoch.0[0]);
                self.evaluated.clear();
            }
            _ => {}
        }
        let bound = usize::from(self.policy.attempts_max) + 1;
        assert!(self.evaluated.len() <= bound, "{} evaluations", self.evaluated.len());
    }
}

fn commit(n: u8) -> Request {
    let signature = World::owner(n, Operation::Commit, n);
    Request::Commit(Commit { account: Fixed(ACCOUNT), epoch: epoch(n), signature })
}

#[derive(Debug, Clone)]
enum Act {
    Guess { registration: u8, element: usize },
    Prove,
    Begin { registration: u8, signed: bool, element: usize },
    Finish { registration: u8, signed: bool },
    Commit { registration: u8 },
    Replay { which: usize, crash: bool },
    Wait { seconds: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (1u8..4, 0usize..30).prop_map(|(registration, element)| Act::Guess { registration, element }),
        1 => Just(Act::Prove),
        1 => (1u8..4, any::<bool>(), 0usize..30)
            .prop_map(|(registration, signed, element)| Act::Begin { registration, signed, element }),
        1 => (1u8..4, any::<bool>()).prop_map(|(registration, signed)| Act::Finish { registration, signed }),
        1 => (1u8..4).prop_map(|registration| Act::Commit { registration }),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(which, crash)| Act::Replay { which, crash }),
        1 => (0u64..200_000).prop_map(|seconds| Act::Wait { seconds }),
    ];
    proptest::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Duplicates, old messages in any order, crashes before the commit, changes of password: the bound holds.
    #[test]
    fn never_more_evaluations_than_attempts_between_proofs(acts in acts()) {
        let mut world = World::registered(Policy::without_delays());
        for act in acts {
            let signer = |signed: bool| world.active.filter(|_| signed);
            let request = match act {
                Act::Guess { registration, element } => world.guess(registration, element),
                Act::Prove => match world.proof() {
                    Some(proof) => proof,
                    None => continue,
                },
                Act::Begin { registration, signed, element } => {
                    world.begin(registration, signer(signed), element)
                }
                Act::Finish { registration, signed } => World::finish(registration, signer(signed)),
                Act::Commit { registration } => commit(registration),
                Act::Replay { which, crash } => {
                    let envelope = world.sent[which % world.sent.len()].clone();
                    world.deliver(&envelope, crash);
                    continue;
                }
                Act::Wait { seconds } => {
                    world.now_s += seconds;
                    continue;
                }
            };
            world.ask(request);
        }
    }
}

#[test]
fn ten_wrong_guesses_then_nothing_is_left() {
    let mut world = World::registered(Policy::without_delays());
    for left in (0..10).rev() {
        let Answer::Charged(charged) = world.ask(world.guess(1, 20 - left)) else { panic!() };
        assert_eq!(usize::from(charged.left), left);
    }
    let gone = Answer::Destroyed { reason: DestroyReason::Exhausted, seq: world.seq };
    assert_eq!(world.ask(world.guess(1, 29)), gone);
    assert_eq!(world.ask(world.proof().unwrap()), gone);
    assert_eq!(world.ask(world.begin(2, Some(1), 0)), gone);
    assert_eq!(world.ask(world.begin(2, None, 0)), gone);
    assert!(matches!(world.durable, Some(Record::Tombstone { .. })));
}

#[test]
fn asking_again_costs_nothing_and_a_proof_counts_once() {
    let mut world = World::registered(Policy::without_delays());
    world.ask(world.guess(1, 1));
    let Answer::Charged(first) = world.ask(world.guess(1, 2)) else { panic!() };
    let Answer::Charged(again) = world.ask(world.guess(1, 2)) else { panic!() };
    assert_eq!((first.left, &first), (8, &again));

    let proof = world.proof().unwrap();
    assert_eq!(world.ask(proof.clone()), Answer::Reset { left: 10 });
    world.ask(world.guess(1, 3));
    let refused = Answer::Refused { why: Refusal::Challenge };
    assert_eq!(world.ask(proof), refused);
    let Answer::Charged(charged) = world.ask(world.guess(1, 4)) else { panic!() };
    assert_eq!((charged.left, charged.failed_since_change), (8, 3));
}

#[test]
fn old_and_new_registration_share_one_count_until_the_commit() {
    let mut world = World::registered(Policy::without_delays());
    world.ask(world.begin(2, Some(1), 0));
    let superseded = Answer::Superseded {};
    assert_eq!(world.ask(world.guess(2, 1)), superseded, "not before it is finished");
    world.ask(World::finish(2, Some(1)));
    for (n, element) in [(1, 1), (2, 2), (1, 3)] {
        assert!(matches!(world.ask(world.guess(n, element)), Answer::Charged(_)));
    }
    let Answer::Charged(charged) = world.ask(world.guess(2, 4)) else { panic!() };
    assert_eq!(charged.left, 6);
    world.ask(commit(2));
    assert_eq!(world.ask(world.guess(1, 5)), superseded);
    let Answer::Charged(charged) = world.ask(world.guess(2, 6)) else { panic!() };
    assert_eq!(charged.left, 9);
    world.ask(commit(2));
    let Answer::Charged(charged) = world.ask(world.guess(2, 7)) else { panic!() };
    assert_eq!(charged.left, 8, "a commit again resets nothing");
}

#[test]
fn an_unfinished_change_dies_after_a_day_and_a_finished_one_waits() {
    let mut world = World::registered(Policy::without_delays());
    world.ask(world.begin(2, Some(1), 0));
    world.now_s += limits::PENDING_LIFETIME_S;
    assert_eq!(world.ask(World::finish(2, Some(1))), Answer::Refused { why: Refusal::NotPending });
    world.ask(world.begin(2, Some(1), 0));
    world.ask(World::finish(2, Some(1)));
    world.now_s += 10 * limits::PENDING_LIFETIME_S;
    for n in [1, 2] {
        assert!(matches!(world.ask(world.guess(n, n.into())), Answer::Charged(_)), "both open");
    }
    assert!(matches!(world.ask(commit(2)), Answer::Active { .. }));

    let mut fresh = World::new(Policy::default());
    fresh.ask(fresh.begin(1, None, 0));
    fresh.ask(World::finish(1, None));
    fresh.now_s += limits::PENDING_LIFETIME_S;
    assert_eq!(fresh.ask(commit(1)), Answer::Unknown {}, "an account that was never made");
}

#[test]
fn a_stranger_cannot_change_or_destroy_what_exists() {
    let mut world = World::registered(Policy::without_delays());
    let refused = Answer::Refused { why: Refusal::Signature };
    assert_eq!(world.ask(world.begin(2, None, 0)), Answer::Exists {});
    assert_eq!(world.ask(world.begin(2, Some(3), 0)), refused);
    let forged = Signed { account: Fixed(ACCOUNT), epoch: epoch(1), signature: Fixed([7; 64]) };
    assert_eq!(world.ask(Request::Destroy(forged.clone())), refused);
    assert_eq!(world.ask(Request::Status(forged)), refused);
}

#[test]
fn the_first_evaluation_is_for_one_element_only() {
    let mut world = World::new(Policy::default());
    let Answer::Evaluated { evaluated: first, .. } = world.ask(world.begin(1, None, 3)) else { panic!() };
    let Answer::Evaluated { evaluated: same, .. } = world.ask(world.begin(1, None, 3)) else { panic!() };
    assert_eq!(first, same);
    world.ask(world.begin(1, None, 4));
    let Answer::Evaluated { evaluated: other, .. } = world.ask(world.begin(1, None, 3)) else { panic!() };
    assert_ne!(first, other, "another element draws another key");
}

#[test]
fn failures_make_the_next_guess_wait_and_a_freeze_stops_all() {
    let mut world = World::registered(Policy { delays_s: vec![0, 60], ..Policy::default() });
    world.ask(world.guess(1, 1));
    world.ask(world.guess(1, 2));
    assert_eq!(world.ask(world.guess(1, 3)), Answer::Throttled { retry_after_s: 60, left: 8 });
    assert!(matches!(world.ask(world.guess(1, 2)), Answer::Charged(_)), "a repetition need not wait");
    world.now_s += 60;
    assert!(matches!(world.ask(world.guess(1, 3)), Answer::Charged(_)));

    let until_s = world.now_s + 1000;
    let freeze = |until_s| {
        let signature = World::owner(1, Operation::Freeze { until_s }, 1);
        Request::Freeze(Freeze { account: Fixed(ACCOUNT), epoch: epoch(1), until_s, signature })
    };
    assert_eq!(world.ask(freeze(until_s)), Answer::Frozen { until_s });
    assert_eq!(world.ask(freeze(1)), Answer::Frozen { until_s }, "never earlier");
    world.now_s += 999;
    assert_eq!(world.ask(world.guess(1, 4)), Answer::Frozen { until_s });
    world.now_s += 1;
    assert!(matches!(world.ask(world.guess(1, 4)), Answer::Charged(_)));
}

#[test]
fn a_thaw_lifts_the_freeze_it_names_and_no_later_one() {
    let mut world = World::registered(Policy { delays_s: Vec::new(), ..Policy::default() });
    let signed = |operation, until_s| {
        let signature = World::owner(1, operation, 1);
        Freeze { account: Fixed(ACCOUNT), epoch: epoch(1), until_s, signature }
    };
    let freeze = |until_s| Request::Freeze(signed(Operation::Freeze { until_s }, until_s));
    let thaw = |until_s| Request::Thaw(signed(Operation::Thaw { until_s }, until_s));
    let first = world.now_s + 1000;
    assert_eq!(world.ask(thaw(first)), Answer::Frozen { until_s: 0 }, "there is nothing to thaw");
    world.ask(freeze(first));
    assert_eq!(world.ask(thaw(first + 1)), Answer::Frozen { until_s: first }, "another freeze");
    let forged = Request::Thaw(signed(Operation::Freeze { until_s: first }, first));
    assert_eq!(world.ask(forged), Answer::Refused { why: Refusal::Signature }, "a freeze is no thaw");
    assert_eq!(world.ask(world.guess(1, 1)), Answer::Frozen { until_s: first });
    assert_eq!(world.ask(thaw(first)), Answer::Frozen { until_s: 0 });
    assert!(matches!(world.ask(world.guess(1, 1)), Answer::Charged(_)));

    let second = first + 1;
    world.ask(freeze(second));
    assert_eq!(world.ask(thaw(first)), Answer::Frozen { until_s: second }, "an old request, sent again");
    assert_eq!(world.ask(world.guess(1, 2)), Answer::Frozen { until_s: second });
}

/// Eight wrong guesses for every right one of the owner: the lifetime ends it.
#[test]
fn a_patient_thief_is_stopped_by_the_lifetime() {
    let policy = Policy { lifetime_failures_max: 20, ..Policy::without_delays() };
    let mut world = World::registered(policy);
    let mut wrong = 0;
    'life: for round in 0..10 {
        for i in 0..8 {
            match world.ask(world.guess(1, (round * 10 + i) % 30)) {
                Answer::Charged(_) => wrong += 1,
                Answer::Destroyed { .. } => break 'life,
                other => panic!("{other:?}"),
            }
        }
        world.ask(world.guess(1, (round * 10 + 9) % 30));
        world.ask(world.proof().unwrap());
    }
    assert!(matches!(world.durable, Some(Record::Tombstone { .. })));
    assert!((18..=20).contains(&wrong), "{wrong}");
}

fn archive_head(tag: u8, seq: u64, digest: u8) -> ArchiveHead {
    ArchiveHead { tag: Fixed([tag; 16]), seq, digest: Fixed([digest; 32]) }
}

fn witness_head(by: u8, head: ArchiveHead) -> Request {
    let signature = World::owner(by, Operation::WitnessHead { head: &head }, by);
    Request::WitnessHead(WitnessHead { account: Fixed(ACCOUNT), epoch: epoch(by), head, signature })
}

/// What the vault says when it is asked by the owner of registration `by`.
fn known_head(world: &mut World, by: u8) -> Answer {
    let nonce = [by; 16];
    let signature = World::owner(by, Operation::Head { nonce: &nonce }, by);
    let request = Request::Head(Signed { account: Fixed(ACCOUNT), epoch: epoch(by), signature });
    world.deliver(&Envelope { version: 1, nonce: Fixed(nonce), request }, false)
}

#[test]
fn the_newest_entry_is_remembered_and_never_goes_back() {
    let mut world = World::registered(Policy::default());
    assert_eq!(known_head(&mut world, 1), Answer::Head { head: None });
    let refused = |why| Answer::Refused { why };
    let (five, six) = (archive_head(1, 5, 5), archive_head(1, 6, 6));
    for head in [five, six, six] {
        assert_eq!(world.ask(witness_head(1, head)), Answer::Head { head: Some(head) });
    }
    assert_eq!(world.ask(witness_head(1, five)), refused(Refusal::OutOfOrder));
    assert_eq!(world.ask(witness_head(1, archive_head(1, 6, 9))), refused(Refusal::Conflict));
    assert_eq!(world.ask(witness_head(1, archive_head(2, 7, 7))), refused(Refusal::Conflict));
    assert_eq!(known_head(&mut world, 1), Answer::Head { head: Some(six) });
}

#[test]
fn the_newest_entry_is_the_owners_alone_and_outlives_a_change_of_password() {
    let mut world = World::registered(Policy::default());
    let head = archive_head(1, 5, 5);
    let forged = WitnessHead { account: Fixed(ACCOUNT), epoch: epoch(1), head, signature: Fixed([7; 64]) };
    let refused = Answer::Refused { why: Refusal::Signature };
    assert_eq!(world.ask(Request::WitnessHead(forged)), refused);
    let signature = Fixed([7; 64]);
    let forged = Signed { account: Fixed(ACCOUNT), epoch: epoch(1), signature };
    assert_eq!(world.ask(Request::Head(forged)), refused);

    world.ask(witness_head(1, head));
    world.ask(world.begin(2, Some(1), 0));
    world.ask(World::finish(2, Some(1)));
    world.ask(commit(2));
    assert_eq!(known_head(&mut world, 1), Answer::Superseded {});
    assert_eq!(known_head(&mut world, 2), Answer::Head { head: Some(head) });
}
