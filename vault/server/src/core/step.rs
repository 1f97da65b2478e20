//! One request on one record. Charge first, evaluate after: evaluation is a plan in the reply, carried out when the
//! charged record is durable.

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{Answer, Charged, Counters, DestroyReason, Refusal};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::limits::{FREEZE_MAX_S, PENDING_LIFETIME_S};
use chatkeep_vault_protocol::message::{
    Begin, Commit, Envelope, Finish, Freeze, Guess, Operation, Prove, Request, Signed, WitnessHead,
    owner_message, prove_message, verify,
};
use rand_core::CryptoRngCore;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Live, Pending, Policy, Record, Registration};

/// Multiplies an element with the root and an account's key. Pure for a software root; a device call for others.
pub trait Evaluator {
    /// The suites it knows.
    fn suites(&self) -> &[Suite];
    /// Draws an account's key.
    fn generate_key(&self, suite: Suite, rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]>;
    /// `None` when the element is none or the device failed.
    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>>;
}

/// What a step may look at beside record and request.
pub struct Context<'a> {
    /// This vault.
    pub identity: &'a [u8; 32],
    /// Its bounds.
    pub policy: &'a Policy,
    /// Seconds since 1970.
    pub now_s: u64,
    /// The number that the commit of this step will have.
    pub seq: u64,
    /// Checks elements, draws keys, and repeats an evaluation to check a proof.
    pub evaluator: &'a dyn Evaluator,
}

/// What follows from one request.
#[must_use = "the record must be durable before the reply leaves"]
pub struct Step {
    /// The new record, if it changed.
    pub record: Option<Record>,
    /// What to answer, once the record is durable.
    pub reply: Reply,
}

/// What to answer.
pub enum Reply {
    /// This.
    Answer(Answer),
    /// The result of an evaluation that is paid for.
    Evaluate(Evaluation),
}

/// An evaluation that was charged, or that tells nothing new.
pub struct Evaluation {
    /// Group and hash.
    pub suite: Suite,
    /// k_a; after the last attempt this is the only copy.
    pub key: Zeroizing<[u8; 32]>,
    /// B.
    pub blinded: Vec<u8>,
    /// What is said beside the result.
    pub then: Then,
}

/// See [`Evaluation::then`].
pub enum Then {
    /// To `begin`.
    Begun {
        /// When the unfinished registration is forgotten.
        expires_s: u64,
    },
    /// To `guess`; the element is still to be filled in.
    Charged(Charged),
}

impl Evaluation {
    /// Carries the plan out. `None` when the device failed.
    pub fn carry_out(self, evaluator: &dyn Evaluator) -> Option<Answer> {
        let evaluated = Blob(evaluator.evaluate(self.suite, &self.key, &self.blinded)?);
        Some(match self.then {
            Then::Begun { expires_s } => Answer::Evaluated { evaluated, expires_s },
            Then::Charged(charged) => Answer::Charged(Charged { evaluated, ..charged }),
        })
    }
}

/// Decides one request. `record` is what is stored; `None` if nothing is.
pub fn step(
    record: Option<&Record>,
    envelope: &Envelope,
    context: &Context<'_>,
    rng: &mut dyn CryptoRngCore,
) -> Step {
    let live = match record {
        Some(Record::Tombstone { reason, seq }) => {
            return say(Answer::Destroyed { reason: *reason, seq: *seq });
        }
        Some(Record::Live(live)) => Some(without_expired(live, context.now_s)),
        // nobody can name this place but by chance, one in 2^128
        Some(Record::Invite { .. }) => return say(Answer::Unknown {}),
        None => None,
    };
    // a first registration that was never committed and expired: as if it had never been
    let live = live.filter(|live| live.active.is_some() || live.pending.is_some());
    let nonce = &envelope.nonce.0;
    if let Request::Begin(request) = &envelope.request {
        return begin(live, request, context, rng);
    }
    let Some(live) = live else { return say(Answer::Unknown {}) };
    match &envelope.request {
        Request::Finish(request) => finish(live, request, context),
        Request::Commit(request) => commit(live, request, context),
        Request::Guess(request) => guess(live, request, context, rng),
        Request::Prove(request) => prove(live, request, context),
        Request::Status(request) => status(&live, request, nonce, context),
        Request::Freeze(request) => freeze(live, request, context),
        Request::Thaw(request) => thaw(live, request, context),
        Request::Destroy(request) => destroy(&live, request, nonce, context),
        Request::WitnessHead(request) => witness_head(live, request, context),
        Request::Head(request) => head(&live, request, nonce, context),
        Request::Begin(_) | Request::Info(_) | Request::Cosign(_) | Request::Latest(_) => {
            refuse(Refusal::Malformed)
        }
    }
}

fn begin(live: Option<Live>, request: &Begin, context: &Context<'_>, rng: &mut dyn CryptoRngCore) -> Step {
    let Some(suite) =
        Suite::from_number(request.suite).filter(|suite| context.evaluator.suites().contains(suite))
    else {
        return refuse(Refusal::Suite);
    };
    let blinded = &request.blinded.0;
    if suite.check_element(blinded).is_err() {
        return refuse(Refusal::Element);
    }
    let mut live = match live {
        None if request.signature.is_some() => return say(Answer::Unknown {}),
        None => {
            let max = context.policy.grant(request.attempts_max);
            Live { left: max, max, ..Live::default() }
        }
        Some(live) => live,
    };
    if let Some(active) = &live.active {
        let Some(signature) = &request.signature else { return say(Answer::Exists {}) };
        let operation = Operation::Begin { suite, attempts_max: request.attempts_max, blinded };
        let message = owner_message(operation, context.identity, &request.account.0, &request.epoch.0);
        if !verify(&active.public_key, &message, signature) {
            return refuse(Refusal::Signature);
        }
        if active.epoch == request.epoch.0 {
            return refuse(Refusal::NotPending);
        }
    }
    let begun_with = charge_of(&request.epoch.0, blinded);
    let evaluate = |pending: &Pending| {
        Reply::Evaluate(Evaluation {
            suite,
            key: pending.registration.key.clone(),
            blinded: blinded.clone(),
            then: Then::Begun { expires_s: pending.expires_s },
        })
    };
    // the same question again gets the same answer; another one a fresh key, never two evaluations for free
    if let Some(pending) = live.pending.as_ref().filter(|pending| {
        pending.registration.epoch == request.epoch.0
            && pending.registration.suite == suite
            && pending.begun_with == begun_with
    }) {
        return Step { record: None, reply: evaluate(pending) };
    }
    let pending = Pending {
        registration: Registration {
            epoch: request.epoch.0,
            suite,
            key: context.evaluator.generate_key(suite, rng),
            public_key: [0; 32],
        },
        finished: false,
        begun_with,
        max: context.policy.grant(request.attempts_max),
        expires_s: context.now_s + PENDING_LIFETIME_S,
    };
    let reply = evaluate(&pending);
    live.pending = Some(pending);
    Step { record: Some(Record::Live(Box::new(live))), reply }
}

fn finish(mut live: Live, request: &Finish, context: &Context<'_>) -> Step {
    if let Some(active) = &live.active {
        let Some(signature) = &request.signature else { return say(Answer::Exists {}) };
        let operation = Operation::Finish { public_key: &request.public_key.0 };
        let message = owner_message(operation, context.identity, &request.account.0, &request.epoch.0);
        if !verify(&active.public_key, &message, signature) {
            return refuse(Refusal::Signature);
        }
    }
    let Some(pending) = live.pending.as_mut().filter(|p| p.registration.epoch == request.epoch.0) else {
        return refuse(Refusal::NotPending);
    };
    if pending.finished {
        return if pending.registration.public_key == request.public_key.0 {
            say(Answer::Pending {})
        } else {
            refuse(Refusal::NotPending)
        };
    }
    pending.registration.public_key = request.public_key.0;
    pending.finished = true;
    write(live, Answer::Pending {})
}

fn commit(mut live: Live, request: &Commit, context: &Context<'_>) -> Step {
    let message = owner_message(Operation::Commit, context.identity, &request.account.0, &request.epoch.0);
    let signed_by =
        |registration: &Registration| verify(&registration.public_key, &message, &request.signature);
    if let Some(active) = live.active.as_ref().filter(|active| active.epoch == request.epoch.0) {
        // a repetition: nothing changes, no counter is reset
        return if signed_by(active) {
            say(Answer::Active { seq: context.seq.saturating_sub(1) })
        } else {
            refuse(Refusal::Signature)
        };
    }
    match live.pending.take_if(|p| p.registration.epoch == request.epoch.0) {
        Some(pending) if !pending.finished => refuse(Refusal::NotPending),
        Some(pending) if !signed_by(&pending.registration) => refuse(Refusal::Signature),
        Some(pending) => {
            let live = Live {
                active: Some(pending.registration),
                left: pending.max,
                max: pending.max,
                frozen_until_s: live.frozen_until_s,
                archive_head: live.archive_head,
                ..Live::default()
            };
            write(live, Answer::Active { seq: context.seq })
        }
        None => say(Answer::Superseded {}),
    }
}

fn guess(mut live: Live, request: &Guess, context: &Context<'_>, rng: &mut dyn CryptoRngCore) -> Step {
    let Some(registration) = guessable(&live, &request.epoch.0).cloned() else {
        return say(Answer::Superseded {});
    };
    let blinded = &request.blinded.0;
    if registration.suite.check_element(blinded).is_err() {
        return refuse(Refusal::Element);
    }
    if context.now_s < live.frozen_until_s {
        return say(Answer::Frozen { until_s: live.frozen_until_s });
    }
    let evaluate = |live: &Live| {
        Reply::Evaluate(Evaluation {
            suite: registration.suite,
            key: registration.key.clone(),
            blinded: blinded.clone(),
            then: Then::Charged(Charged {
                evaluated: Blob::default(),
                left: left(live, context.policy),
                max: live.max,
                failed_since_change: live.failed_since_change,
                challenge: Fixed(live.challenge.unwrap_or_default()),
            }),
        })
    };
    let charge = charge_of(&request.epoch.0, blinded);
    if live.last_charged.is_some_and(|last| last == charge) {
        return Step { record: None, reply: evaluate(&live) };
    }
    if context.now_s < live.not_before_s {
        let retry_after_s = live.not_before_s - context.now_s;
        return say(Answer::Throttled { retry_after_s, left: left(&live, context.policy) });
    }
    let mut challenge = [0; 32];
    rng.fill_bytes(&mut challenge);
    live.left = live.left.saturating_sub(1);
    live.failed_since_change = live.failed_since_change.saturating_add(1);
    live.challenge = Some(challenge);
    live.last_charged = Some(charge);
    live.not_before_s = context.now_s + context.policy.delay_s(live.max.saturating_sub(live.left));
    let reply = evaluate(&live);
    let record = if left(&live, context.policy) == 0 {
        // this attempt is still answered, from memory; the record forgets the key with the charge
        Record::Tombstone { reason: DestroyReason::Exhausted, seq: context.seq }
    } else {
        Record::Live(Box::new(live))
    };
    Step { record: Some(record), reply }
}

fn prove(mut live: Live, request: &Prove, context: &Context<'_>) -> Step {
    let Some(registration) = guessable(&live, &request.epoch.0) else { return say(Answer::Superseded {}) };
    let blinded = &request.blinded.0;
    let charge = charge_of(&request.epoch.0, blinded);
    if live.last_charged.is_none_or(|last| last != charge) {
        return refuse(Refusal::Challenge);
    }
    let Some(challenge) = live.challenge else {
        // the proof arrived before, its answer was lost
        return say(Answer::Reset { left: left(&live, context.policy) });
    };
    let Some(evaluated) = context.evaluator.evaluate(registration.suite, &registration.key, blinded) else {
        return say(Answer::Busy {});
    };
    let message = prove_message(
        context.identity,
        &request.account.0,
        &request.epoch.0,
        blinded,
        &evaluated,
        &challenge,
    );
    if !verify(&registration.public_key, &message, &request.signature) {
        return refuse(Refusal::Signature);
    }
    live.left = live.max;
    live.failed_since_change = live.failed_since_change.saturating_sub(1);
    live.challenge = None;
    live.not_before_s = 0;
    let left = left(&live, context.policy);
    write(live, Answer::Reset { left })
}

fn status(live: &Live, request: &Signed, nonce: &[u8; 16], context: &Context<'_>) -> Step {
    let counters = Counters {
        left: left(live, context.policy),
        max: live.max,
        failed_since_change: live.failed_since_change,
        not_before_s: live.not_before_s,
        frozen_until_s: live.frozen_until_s,
        change_pending: live.pending.is_some(),
    };
    match check_owner(live, request, Operation::Status { nonce }, context) {
        Ok(()) => say(Answer::Status(counters)),
        Err(no) => say(no),
    }
}

fn freeze(mut live: Live, request: &Freeze, context: &Context<'_>) -> Step {
    let signed = Signed { account: request.account, epoch: request.epoch, signature: request.signature };
    if let Err(no) = check_owner(&live, &signed, Operation::Freeze { until_s: request.until_s }, context) {
        return say(no);
    }
    // never earlier than it was: an old request, sent again, thaws nothing
    let until_s = request.until_s.min(context.now_s + FREEZE_MAX_S).max(live.frozen_until_s);
    live.frozen_until_s = until_s;
    write(live, Answer::Frozen { until_s })
}

/// Lifts the freeze that ends at the time asked for. Another one stays: an old request, sent again, thaws nothing either.
fn thaw(mut live: Live, request: &Freeze, context: &Context<'_>) -> Step {
    let signed = Signed { account: request.account, epoch: request.epoch, signature: request.signature };
    if let Err(no) = check_owner(&live, &signed, Operation::Thaw { until_s: request.until_s }, context) {
        return say(no);
    }
    if live.frozen_until_s == 0 || live.frozen_until_s != request.until_s {
        return say(Answer::Frozen { until_s: live.frozen_until_s });
    }
    live.frozen_until_s = 0;
    write(live, Answer::Frozen { until_s: 0 })
}

fn destroy(live: &Live, request: &Signed, nonce: &[u8; 16], context: &Context<'_>) -> Step {
    if let Err(no) = check_owner(live, request, Operation::Destroy { nonce }, context) {
        return say(no);
    }
    let (reason, seq) = (DestroyReason::User, context.seq);
    Step {
        record: Some(Record::Tombstone { reason, seq }),
        reply: Reply::Answer(Answer::Destroyed { reason, seq }),
    }
}

/// Remembers the newest entry of an archive; only ever forward, so an old request, sent again, hides nothing.
fn witness_head(mut live: Live, request: &WitnessHead, context: &Context<'_>) -> Step {
    let signed = Signed { account: request.account, epoch: request.epoch, signature: request.signature };
    let asked = request.head;
    if let Err(no) = check_owner(&live, &signed, Operation::WitnessHead { head: &asked }, context) {
        return say(no);
    }
    match live.archive_head {
        // an account belongs to one keyslot, and that to one archive
        Some(known) if known.tag != asked.tag => refuse(Refusal::Conflict),
        Some(known) if known.seq > asked.seq => refuse(Refusal::OutOfOrder),
        Some(known) if known.seq == asked.seq && known != asked => refuse(Refusal::Conflict),
        Some(known) if known == asked => say(Answer::Head { head: Some(known) }),
        _ => {
            live.archive_head = Some(asked);
            write(live, Answer::Head { head: Some(asked) })
        }
    }
}

fn head(live: &Live, request: &Signed, nonce: &[u8; 16], context: &Context<'_>) -> Step {
    match check_owner(live, request, Operation::Head { nonce }, context) {
        Ok(()) => say(Answer::Head { head: live.archive_head }),
        Err(no) => say(no),
    }
}

/// Whether the request is signed by the key of a registration that can be guessed at.
fn check_owner(
    live: &Live,
    request: &Signed,
    operation: Operation<'_>,
    context: &Context<'_>,
) -> Result<(), Answer> {
    let registration = guessable(live, &request.epoch.0).ok_or(Answer::Superseded {})?;
    let message = owner_message(operation, context.identity, &request.account.0, &request.epoch.0);
    if verify(&registration.public_key, &message, &request.signature) {
        Ok(())
    } else {
        Err(Answer::Refused { why: Refusal::Signature })
    }
}

fn guessable<'a>(live: &'a Live, epoch: &[u8; 16]) -> Option<&'a Registration> {
    let pending = live.pending.as_ref().filter(|pending| pending.finished).map(|p| &p.registration);
    live.active.iter().chain(pending).find(|registration| registration.epoch == *epoch)
}

/// Attempts before the account is erased, by whichever bound comes first.
fn left(live: &Live, policy: &Policy) -> u16 {
    let lifetime = policy.lifetime_failures_max.saturating_sub(live.failed_since_change);
    live.left.min(u16::try_from(lifetime).unwrap_or(u16::MAX))
}

/// A change that is finished waits for its commit as long as it takes: of four vaults two may have the new registration
/// and two the old one, where neither slot would open without those that wait. Both have one count, so it costs nothing.
fn without_expired(live: &Live, now_s: u64) -> Live {
    let mut live = live.clone();
    let can_wait = |pending: &Pending| pending.finished && live.active.is_some();
    live.pending = live.pending.take().filter(|pending| pending.expires_s > now_s || can_wait(pending));
    live
}

/// What makes two guesses the same guess.
fn charge_of(epoch: &[u8; 16], blinded: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"chatkeep vault charge v1")
        .chain_update(epoch)
        .chain_update(blinded)
        .finalize()
        .into()
}

fn say(answer: Answer) -> Step {
    Step { record: None, reply: Reply::Answer(answer) }
}

fn refuse(why: Refusal) -> Step {
    say(Answer::Refused { why })
}

fn write(live: Live, answer: Answer) -> Step {
    Step { record: Some(Record::Live(Box::new(live))), reply: Reply::Answer(answer) }
}
