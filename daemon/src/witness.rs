//! Vaults as witnesses of the store: they remember the newest entry, so that a device that knows nothing of the archive yet
//! notices when the store shows an older one.
//!
//! A reason to warn, never to discard: a vault can forget, or name an entry that never was.

use chatkeep_format::ObjectName;
use chatkeep_vault_client::{KnownEntry, Transport, VaultError, VaultPin, known_head, witness_head};
use rand_core::OsRng;

use crate::archive::{Archive, ArchiveError};
use crate::fault::Result;
use crate::keyring::Keys;

/// What the store shows, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Number of the newest entry; 0 for none.
    pub newest_seq: u64,
    /// When it was captured, µs since 1970; 0 if that cannot be read.
    pub newest_us: u64,
    /// Digest of the entry that the vault knows, if it is there: it may have been forgotten and deleted since.
    pub digest_of_known: Option<[u8; 32]>,
}

/// What came of comparing the store with what vaults know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Compared {
    /// It was not compared.
    #[default]
    Not,
    /// The store shows no less than any vault knows.
    Whole,
    /// It shows less: what the user is to know.
    Older(String),
}

/// What the user is to know about a store that shows this, where a vault knows that.
pub fn compare(shown: Shown, known: &KnownEntry) -> Option<String> {
    let (vault, seq) = (&known.vault, known.seq);
    let what_to_do = "What is there can be restored; something newer existed. If the store was put back from a backup, \
                      this is why; otherwise somebody hides or exchanges what is in it";
    if shown.newest_seq < seq {
        let of = match shown.newest_us {
            0 => String::new(),
            us => format!(" of {} UTC", crate::clock::date_time(us / 1_000_000)),
        };
        let newest = match shown.newest_seq {
            0 => "no entry at all".to_owned(),
            n => format!("entry {n}{of}"),
        };
        return Some(format!(
            "the store shows an older archive: {newest}; the vault {vault} knows entry {seq}. {what_to_do}"
        ));
    }
    if shown.digest_of_known.is_some_and(|digest| digest != known.digest) {
        return Some(format!(
            "the store shows another archive: its entry {seq} is not the one that the vault {vault} knows. {what_to_do}"
        ));
    }
    None
}

/// Asks the vaults which entry is the newest they know, and looks whether the store shows less.
///
/// Not compared without the secret behind a password keyslot: then nobody can be asked.
pub async fn check(
    transport: &dyn Transport,
    pins: &[VaultPin],
    archive: &Archive,
    keys: &Keys,
) -> Result<Compared> {
    let (Some(slot), Some(secret)) = (keys.password_slot(), &keys.secret) else { return Ok(Compared::Not) };
    let known = known_head(transport, pins, &archive.id.0, slot, secret, &mut OsRng).await?;
    let Some(known) = known else { return Ok(Compared::Whole) };
    // Listed after the vault was asked: what was uploaded in between is there.
    let listing = archive.list().await?;
    let newest_seq = listing.entries.keys().next_back().copied().unwrap_or(0);
    let mut shown = Shown { newest_seq, newest_us: 0, digest_of_known: None };
    if newest_seq < known.seq && newest_seq > 0 {
        // One that does not open is told by whoever needs it.
        if let Ok((entry, ..)) = archive.entry(newest_seq, &keys.roots).await {
            shown.newest_us = u64::try_from(entry.taken_at_us).unwrap_or(0);
        }
    }
    if listing.entries.contains_key(&known.seq) {
        match archive.get(ObjectName::Entry(known.seq)).await {
            Ok(sealed) => shown.digest_of_known = Some(chatkeep_format::entry_digest(&sealed)),
            Err(ArchiveError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(compare(shown, &known).map_or(Compared::Whole, Compared::Older))
}

/// Lets the vaults remember the newest entry in the store.
pub async fn remember(
    transport: &dyn Transport,
    pins: &[VaultPin],
    archive: &Archive,
    keys: &Keys,
    head: (u64, [u8; 32]),
) -> Result<(), VaultError> {
    let (Some(slot), Some(secret)) = (keys.password_slot(), &keys.secret) else { return Ok(()) };
    witness_head(transport, pins, &archive.id.0, slot, secret, head, &mut OsRng).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(newest_seq: u64, digest_of_known: Option<u8>, wanted: Option<&str>) {
        let known = KnownEntry { seq: 7, digest: [7; 32], vault: "home".to_owned() };
        let digest_of_known = digest_of_known.map(|byte| [byte; 32]);
        let shown = Shown { newest_seq, newest_us: 1_795_509_000_000_000, digest_of_known };
        let said = compare(shown, &known);
        assert_eq!(said.is_some(), wanted.is_some(), "{said:?}");
        assert!(said.unwrap_or_default().contains(wanted.unwrap_or_default()));
    }

    #[test]
    fn a_store_that_shows_the_same_or_more_is_well() {
        check(7, Some(7), None);
        check(9, Some(7), None);
        check(9, None, None);
    }

    #[test]
    fn a_store_that_shows_less_is_named_with_both_numbers() {
        check(5, None, Some("entry 5 of 2026-11-24 08:30:00 UTC; the vault home knows entry 7"));
        check(0, None, Some("no entry at all; the vault home knows entry 7"));
    }

    #[test]
    fn another_entry_under_the_same_number_is_another_archive() {
        check(7, Some(8), Some("its entry 7 is not the one that the vault home knows"));
        check(9, Some(8), Some("another archive"));
    }
}
