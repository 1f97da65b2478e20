//! Who may make an account. Pure, and beside [`super::step`], which never asks: an account that exists needs no admission.

use chatkeep_vault_protocol::answer::AdmissionFault;
use chatkeep_vault_protocol::message::Begin;

use super::Record;

/// What an invitation says of itself, once its maker is known to be this vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Accounts that it admits.
    pub uses: u16,
    /// Worth nothing from this time on, in seconds since 1970.
    pub expires_s: u64,
}

/// Whether `request` would make an account where `record` is.
///
/// With a signature it is for an account that exists, or for none at all; an unfinished registration was admitted when it
/// was begun.
pub fn makes_account(record: Option<&Record>, request: &Begin, now_s: u64) -> bool {
    let vacant = match record {
        None => true,
        Some(Record::Live(live)) => {
            live.active.is_none() && live.pending.as_ref().is_none_or(|pending| pending.expires_s <= now_s)
        }
        Some(Record::Tombstone { .. } | Record::Invite { .. }) => false,
    };
    vacant && request.signature.is_none()
}

/// Uses an invitation once. `record` is what is stored of its uses, and what comes back takes its place.
pub fn redeem(record: Option<&Record>, terms: &Terms, now_s: u64) -> Result<Record, AdmissionFault> {
    if terms.expires_s <= now_s {
        return Err(AdmissionFault::Expired);
    }
    let used = match record {
        None => 0,
        Some(Record::Invite { used, .. }) => *used,
        // only a forger of account numbers could have made an account there
        Some(Record::Live(_) | Record::Tombstone { .. }) => return Err(AdmissionFault::Spent),
    };
    if used >= terms.uses {
        return Err(AdmissionFault::Spent);
    }
    Ok(Record::Invite { used: used + 1, expires_s: terms.expires_s })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use chatkeep_vault_protocol::Suite;
    use chatkeep_vault_protocol::answer::DestroyReason;
    use chatkeep_vault_protocol::cbor::{Blob, Fixed};
    use zeroize::Zeroizing;

    use super::super::{Live, Pending, Registration};
    use super::*;

    const NOW: u64 = 1000;

    fn registration() -> Registration {
        Registration { epoch: [1; 16], suite: Suite::P256, key: Zeroizing::new([2; 32]), public_key: [3; 32] }
    }

    fn pending(expires_s: u64) -> Pending {
        let registration = registration();
        Pending { registration, finished: false, begun_with: [0; 32], max: 10, expires_s }
    }

    fn check_makes(record: Option<&Record>, signed: bool, expected: bool) {
        let request = Begin {
            account: Fixed([1; 16]),
            epoch: Fixed([2; 16]),
            suite: 2,
            blinded: Blob::default(),
            attempts_max: 10,
            signature: signed.then_some(Fixed([0; 64])),
            invite: None,
        };
        assert_eq!(makes_account(record, &request, NOW), expected);
    }

    fn live(active: bool, pending: Option<Pending>) -> Record {
        let active = active.then(registration);
        Record::Live(Box::new(Live { active, pending, ..Live::default() }))
    }

    #[test]
    fn only_what_was_never_there_or_never_finished_is_a_new_account() {
        check_makes(None, false, true);
        check_makes(Some(&live(false, Some(pending(NOW)))), false, true);
        check_makes(Some(&live(false, Some(pending(NOW + 1)))), false, false);
        check_makes(Some(&live(true, None)), false, false);
        check_makes(Some(&live(true, Some(pending(NOW)))), false, false);
        check_makes(Some(&Record::Tombstone { reason: DestroyReason::User, seq: 1 }), false, false);
        check_makes(None, true, false);
    }

    #[test]
    fn an_invitation_admits_as_often_as_it_says() {
        let terms = Terms { uses: 2, expires_s: NOW + 1 };
        let once = redeem(None, &terms, NOW).unwrap();
        assert!(once == Record::Invite { used: 1, expires_s: NOW + 1 });
        let twice = redeem(Some(&once), &terms, NOW).unwrap();
        assert_eq!(redeem(Some(&twice), &terms, NOW).err(), Some(AdmissionFault::Spent));
        assert_eq!(redeem(None, &terms, NOW + 1).err(), Some(AdmissionFault::Expired));
        let none = Terms { uses: 0, ..terms };
        assert_eq!(redeem(None, &none, NOW).err(), Some(AdmissionFault::Spent));
    }
}
