//! The newest entry of an archive, remembered by vaults: so that a new device notices a store that shows an old archive.

use chatkeep_vault_protocol::answer::Answer;
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::message::{ArchiveHead, Operation, Request, WitnessHead, owner_message, sign};
use chatkeep_vault_protocol::{SlotSecret, VaultPin};
use rand_core::CryptoRngCore;

use crate::exchange::{ask_all, dominant, envelopes, unexpected};
use crate::owner::{Question, ask_owner, open_owned};
use crate::{Transport, VaultError};

/// An entry of the archive, as one of its vaults knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownEntry {
    /// Number of the entry.
    pub seq: u64,
    /// Its digest.
    pub digest: [u8; 32],
    /// The vault that said so.
    pub vault: String,
}

/// Lets the vaults remember the newest entry. They never go back: an older one is refused by those that know a newer.
///
/// Fails if no vault took it. Costs each vault a commit, so not for every entry.
pub async fn witness_head(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    (seq, digest): (u64, [u8; 32]),
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let header = &slot.header;
    let requests = vaults.iter().map(|vault| {
        let (identity, account) = (&vault.identity, header.account(&vault.identity));
        let head = ArchiveHead { tag: Fixed(header.archive_tag(identity)), seq, digest: Fixed(digest) };
        let message =
            owner_message(Operation::WitnessHead { head: &head }, identity, &account, &header.epoch);
        let signature = sign(&secret.auth_key(identity, &header.epoch), &message);
        Request::WitnessHead(WitnessHead {
            account: Fixed(account),
            epoch: Fixed(header.epoch),
            head,
            signature,
        })
    });
    let requests = envelopes(requests, rng);
    let (mut taken, mut errors) = (0, Vec::new());
    for (vault, answered) in vaults.iter().zip(ask_all(transport, &vaults, &requests).await) {
        match answered.map(|answered| answered.answer) {
            Ok(Answer::Head { head: Some(head) }) if (head.seq, head.digest.0) == (seq, digest) => taken += 1,
            Ok(_) => errors.push(unexpected(vault)),
            Err(error) => errors.push(error),
        }
    }
    if taken > 0 { Ok(()) } else { Err(dominant(&errors, header.threshold, vaults.len())) }
}

/// The newest entry that any vault knows; `None` if those that answered know none. An error if none answered.
///
/// Not proof: a vault can forget, or name an entry that never was. Reason to warn, never to discard anything.
pub async fn known_head(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Option<KnownEntry>, VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let header = &slot.header;
    let all = ask_owner(transport, &vaults, &slot, secret, Question::Head, rng).await;
    let (mut known, mut answers, mut errors) = (None::<KnownEntry>, 0, Vec::new());
    for (vault, answered) in vaults.iter().zip(all) {
        match answered.map(|answered| answered.answer) {
            Ok(Answer::Head { head }) => {
                answers += 1;
                let ours = head.filter(|head| head.tag.0 == header.archive_tag(&vault.identity));
                let Some(head) = ours else { continue };
                if known.as_ref().is_none_or(|known| head.seq > known.seq) {
                    let (seq, digest, vault) = (head.seq, head.digest.0, vault.name.clone());
                    known = Some(KnownEntry { seq, digest, vault });
                }
            }
            Ok(_) => errors.push(unexpected(vault)),
            Err(error) => errors.push(error),
        }
    }
    if answers > 0 { Ok(known) } else { Err(dominant(&errors, header.threshold, vaults.len())) }
}
