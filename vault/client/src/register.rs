//! A new slot: all vaults take part, or there is none.

use std::collections::BTreeMap;

use chatkeep_vault_protocol::answer::Answer;
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::limits::{ATTEMPTS_DEFAULT, attempts_per_vault};
use chatkeep_vault_protocol::message::{
    Begin, Commit, Finish, Info, Operation, Request, owner_message, sign,
};
use chatkeep_vault_protocol::ppss::{self, Question};
use chatkeep_vault_protocol::slot::{Header, Slot};
use chatkeep_vault_protocol::{Invite, KdfFloor, KdfParams, SlotSecret, Suite, VaultPin, password};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::exchange::{ask_all, envelopes, not_admitted, unexpected};
use crate::{Transport, VaultError};

/// A registered password.
#[derive(Debug)]
pub struct Registered {
    /// To be stored beside the backup.
    pub slot: Vec<u8>,
    /// To be kept on this device, beside the backup key.
    pub secret: SlotSecret,
}

/// Invitations, by the identity of the vault that made them.
pub type Invites = BTreeMap<[u8; 32], Invite>;

/// As [`register_invited`], at vaults that make accounts for everybody.
#[expect(clippy::too_many_arguments, reason = "all are inputs of one slot, none belong together")]
pub async fn register(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    threshold: u8,
    context: &[u8; 16],
    password: &[u8],
    key: &[u8; 32],
    kdf: KdfParams,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Registered, VaultError> {
    let none = Invites::new();
    register_invited(transport, vaults, &none, threshold, context, password, key, kdf, rng).await
}

/// Makes new accounts at all of `vaults` and a slot in which `key` is wrapped.
///
/// `threshold` must be more than half of the vaults. When it fails, what was begun at a vault dies after a day, and a use of
/// an invitation there is gone. So nothing is begun before all vaults have answered, and none wants an invitation that is
/// not there. A vault that does not ask for one never sees its invitation.
#[expect(clippy::too_many_arguments, reason = "all are inputs of one slot, none belong together")]
pub async fn register_invited(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    invites: &Invites,
    threshold: u8,
    context: &[u8; 16],
    password: &[u8],
    key: &[u8; 32],
    kdf: KdfParams,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Registered, VaultError> {
    let mut locator = [0; 16];
    rng.fill_bytes(&mut locator);
    let plan = Plan { vaults, threshold, context, locator, kdf, accounts: Accounts::New { invites } };
    let (slot, secret) = make(transport, plan, password, key, rng).await?;
    commit(transport, vaults, &slot, &secret, rng).await?;
    Ok(Registered { slot: slot.encode(), secret })
}

/// What a new slot shall be.
pub(crate) struct Plan<'a> {
    pub(crate) vaults: &'a [VaultPin],
    pub(crate) threshold: u8,
    pub(crate) context: &'a [u8; 16],
    pub(crate) locator: [u8; 16],
    pub(crate) kdf: KdfParams,
    pub(crate) accounts: Accounts<'a>,
}

/// Whether the vaults know the accounts.
pub(crate) enum Accounts<'a> {
    New {
        invites: &'a Invites,
    },
    /// The slot and secret whose registration is active there.
    Old(&'a Slot, &'a SlotSecret),
}

impl Accounts<'_> {
    /// The signature of an operation by the active registration, if there is one.
    fn sign(
        &self,
        operation: Operation<'_>,
        vault: &VaultPin,
        account: &[u8; 16],
        epoch: &[u8; 16],
    ) -> Option<Fixed<64>> {
        let Self::Old(slot, secret) = self else { return None };
        let message = owner_message(operation, &vault.identity, account, epoch);
        Some(sign(&secret.auth_key(&vault.identity, &slot.header.epoch), &message))
    }

    /// What `vault` shall see to make an account, by what its `info` asks for.
    fn admission(&self, vault: &VaultPin, kind: &str) -> Result<Option<Invite>, VaultError> {
        match self {
            Self::New { .. } if kind.is_empty() => Ok(None),
            Self::New { invites } if kind == INVITE => match invites.get(&vault.identity) {
                Some(invite) => Ok(Some(invite.clone())),
                None => Err(not_admitted(vault, kind)),
            },
            Self::New { .. } => Err(not_admitted(vault, kind)),
            Self::Old(..) => Ok(None),
        }
    }
}

/// The one kind of admission that this program knows.
const INVITE: &str = "invite";

/// Begins and finishes at all vaults. Until [`commit`] the old slot, if any, opens too.
pub(crate) async fn make(
    transport: &dyn Transport,
    plan: Plan<'_>,
    password: &[u8],
    key: &[u8; 32],
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(Slot, SlotSecret), VaultError> {
    let (mut salt, mut epoch) = ([0; 32], [0; 16]);
    rng.fill_bytes(&mut salt);
    rng.fill_bytes(&mut epoch);
    let mut header = Header {
        suite: Suite::Ristretto255,
        threshold: plan.threshold,
        kdf: plan.kdf,
        salt,
        locator: plan.locator,
        epoch,
        context: *plan.context,
        vaults: plan.vaults.to_vec(),
    };
    // who calls this chose the parameters; weak ones open later only for those who allow them
    header.check(KdfFloor::AllowWeakKdf)?;
    let (suite, admissions) = ask_what_they_want(transport, &plan, rng).await?;
    header.suite = suite;

    let pwk = stretch(password, &salt, plan.kdf).await?;
    let questions: Vec<Question> =
        (0..plan.vaults.len()).map(|index| Question::new(&header, index, &pwk, rng)).collect();
    let secret = SlotSecret::generate(rng);
    let asked = plan.vaults.iter().zip(&questions).zip(admissions);
    let begins = asked.map(|((vault, question), invite)| begin(&plan, &header, vault, question, invite));
    let begins = envelopes(begins, rng);
    let mut masks = Vec::with_capacity(questions.len());
    let answers = ask_all(transport, plan.vaults, &begins).await;
    for ((vault, question), answered) in plan.vaults.iter().zip(&questions).zip(answers) {
        let Answer::Evaluated { evaluated, .. } = answered?.answer else { return Err(unexpected(vault)) };
        masks.push(question.answered(&header, &evaluated.0).map_err(|_| unexpected(vault))?);
    }

    let finishes = plan.vaults.iter().map(|vault| finish(&plan, &header, vault, &secret));
    let finishes = envelopes(finishes, rng);
    let answers = ask_all(transport, plan.vaults, &finishes).await;
    for (vault, answered) in plan.vaults.iter().zip(answers) {
        let Answer::Pending {} = answered?.answer else { return Err(unexpected(vault)) };
    }
    let slot = ppss::register(header, &masks, &secret, key, rng)?;
    Ok((slot, secret))
}

/// Makes the slot's registration the active one at all vaults. May be repeated.
pub(crate) async fn commit(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    slot: &Slot,
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let epoch = slot.header.epoch;
    let commits = vaults.iter().map(|vault| {
        let account = slot.header.account(&vault.identity);
        let message = owner_message(Operation::Commit, &vault.identity, &account, &epoch);
        let signature = sign(&secret.auth_key(&vault.identity, &epoch), &message);
        Request::Commit(Commit { account: Fixed(account), epoch: Fixed(epoch), signature })
    });
    let commits = envelopes(commits, rng);
    for (vault, answered) in vaults.iter().zip(ask_all(transport, vaults, &commits).await) {
        let Answer::Active { .. } = answered?.answer else { return Err(unexpected(vault)) };
    }
    Ok(())
}

/// Stretches the password on a thread of its own: it takes most of a second and a quarter of a gigabyte.
pub(crate) async fn stretch(
    password: &[u8],
    salt: &[u8; 32],
    kdf: KdfParams,
) -> Result<Zeroizing<[u8; 32]>, VaultError> {
    let password = Zeroizing::new(password.to_vec());
    let salt = *salt;
    let stretched = tokio::task::spawn_blocking(move || password::stretch(&password, &salt, kdf))
        .await
        .expect("stretching does not panic and is not cancelled");
    Ok(stretched?)
}

/// The suite that all vaults serve, and what each shall see; the suite without hardware is taken last only if hardware asks
/// for the other.
async fn ask_what_they_want(
    transport: &dyn Transport,
    plan: &Plan<'_>,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(Suite, Vec<Option<Invite>>), VaultError> {
    let vaults = plan.vaults;
    let mut admissions = Vec::with_capacity(vaults.len());
    let asked = envelopes(vaults.iter().map(|_| Request::Info(Info {})), rng);
    let mut served = vec![Suite::Ristretto255, Suite::P256];
    for (vault, answered) in vaults.iter().zip(ask_all(transport, vaults, &asked).await) {
        let Answer::Info(info) = answered?.answer else { return Err(unexpected(vault)) };
        served.retain(|suite| info.suites.contains(&(*suite as u8)));
        admissions.push(plan.accounts.admission(vault, &info.admission)?);
    }
    let suite = served.first().copied().ok_or_else(|| VaultError::Refused {
        vault: vaults.first().map(|vault| vault.name.clone()).unwrap_or_default(),
        what: "the vaults have no suite in common".to_owned(),
    })?;
    Ok((suite, admissions))
}

fn begin(
    plan: &Plan<'_>,
    header: &Header,
    vault: &VaultPin,
    question: &Question,
    invite: Option<Invite>,
) -> Request {
    let account = header.account(&vault.identity);
    let attempts_max = attempts_per_vault(ATTEMPTS_DEFAULT, header.threshold, header.vaults.len() as u8);
    let blinded = question.element();
    let operation = Operation::Begin { suite: header.suite, attempts_max, blinded };
    let signature = plan.accounts.sign(operation, vault, &account, &header.epoch);
    Request::Begin(Begin {
        account: Fixed(account),
        epoch: Fixed(header.epoch),
        suite: header.suite as u8,
        blinded: Blob(blinded.to_vec()),
        attempts_max,
        signature,
        invite: invite.map(|invite| Blob(invite.as_bytes().to_vec())),
    })
}

fn finish(plan: &Plan<'_>, header: &Header, vault: &VaultPin, secret: &SlotSecret) -> Request {
    let account = header.account(&vault.identity);
    let public_key = secret.auth_key(&vault.identity, &header.epoch).verifying_key().to_bytes();
    let operation = Operation::Finish { public_key: &public_key };
    let signature = plan.accounts.sign(operation, vault, &account, &header.epoch);
    Request::Finish(Finish {
        account: Fixed(account),
        epoch: Fixed(header.epoch),
        public_key: Fixed(public_key),
        signature,
    })
}
