//! What is kept of one account: a fixed number of bytes, whatever state it is in.

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::DestroyReason;
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::message::ArchiveHead;
use zeroize::Zeroizing;

/// Length of every record before sealing: live accounts, tombstones and used invitations look the same from outside.
pub const RECORD_LEN: usize = 384;
const FORMAT: u8 = 2;
/// Records of format 1 end before [`Live::archive_head`]; the next write makes them format 2.
const RECORD_LEN_1: usize = 320;

/// One account.
#[derive(Clone, PartialEq, Eq)]
pub enum Record {
    /// Can be guessed at, or is being registered.
    Live(Box<Live>),
    /// Erased. Stays for ever, so that the number is never used again and the owner learns what happened.
    Tombstone {
        /// Why.
        reason: DestroyReason,
        /// The commit that erased it.
        seq: u64,
    },
    /// No account: how often an invitation was used. Says nothing of which accounts it admitted.
    Invite {
        /// So often.
        used: u16,
        /// When it is worth nothing any more, in seconds since 1970.
        expires_s: u64,
    },
}

/// Keys and counters.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Live {
    /// The registration that counts; none before the first commit.
    pub active: Option<Registration>,
    /// A registration that waits for its commit.
    pub pending: Option<Pending>,
    /// Attempts left, for active and pending together.
    pub left: u16,
    /// Attempts after a proof.
    pub max: u16,
    /// Attempts without a proof since the last commit of a registration.
    pub failed_since_change: u32,
    /// No charge before this time, in seconds since 1970.
    pub not_before_s: u64,
    /// No guess before this time, in seconds since 1970.
    pub frozen_until_s: u64,
    /// What the next proof must sign; taken away by the proof.
    pub challenge: Option<[u8; 32]>,
    /// Hash of registration and element that were charged last.
    pub last_charged: Option<[u8; 32]>,
    /// The newest entry of the owner's archive.
    pub archive_head: Option<ArchiveHead>,
}

/// One OPRF key and the key that proves the knowledge of S.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// Which one; chosen by the client.
    pub epoch: [u8; 16],
    /// Group and hash.
    pub suite: Suite,
    /// k_a: random for this registration, derived from nothing.
    pub key: Zeroizing<[u8; 32]>,
    /// Ed25519; zero until `finish`.
    pub public_key: [u8; 32],
}

/// See [`Live::pending`].
#[derive(Clone, PartialEq, Eq)]
pub struct Pending {
    /// The new keys.
    pub registration: Registration,
    /// Whether `finish` came: only then it can be guessed at.
    pub finished: bool,
    /// Hash of the one element that `begin` evaluates without a charge.
    pub begun_with: [u8; 32],
    /// Attempts after the commit.
    pub max: u16,
    /// Forgotten from this time on, in seconds since 1970.
    pub expires_s: u64,
}

const ACTIVE: u8 = 1;
const PENDING: u8 = 2;
const FINISHED: u8 = 4;
const CHALLENGE: u8 = 8;
const CHARGED: u8 = 16;
const HEAD: u8 = 32;

impl Record {
    /// The bytes to seal.
    pub fn encode(&self) -> Zeroizing<[u8; RECORD_LEN]> {
        let mut writer = Writer { bytes: Zeroizing::new([0; RECORD_LEN]), at: 0 };
        match self {
            Self::Tombstone { reason, seq } => {
                let reason = match reason {
                    DestroyReason::Exhausted => 1,
                    DestroyReason::User => 2,
                    DestroyReason::Operator => 3,
                };
                writer.put(&[FORMAT, 2, 0, reason]);
                writer.put(&seq.to_be_bytes());
            }
            Self::Invite { used, expires_s } => {
                writer.put(&[FORMAT, 3, 0, 0]);
                writer.put(&expires_s.to_be_bytes());
                writer.put(&used.to_be_bytes());
            }
            Self::Live(live) => {
                let flag = |set: bool, bit: u8| if set { bit } else { 0 };
                let flags = flag(live.active.is_some(), ACTIVE)
                    | flag(live.pending.is_some(), PENDING)
                    | flag(live.pending.as_ref().is_some_and(|p| p.finished), FINISHED)
                    | flag(live.challenge.is_some(), CHALLENGE)
                    | flag(live.last_charged.is_some(), CHARGED)
                    | flag(live.archive_head.is_some(), HEAD);
                writer.put(&[FORMAT, 1, flags, 0]);
                writer.put(&0u64.to_be_bytes());
                writer.registration(live.active.as_ref());
                writer.registration(live.pending.as_ref().map(|p| &p.registration));
                let pending = live.pending.as_ref();
                writer.put(&pending.map_or([0; 32], |p| p.begun_with));
                writer.put(&pending.map_or(0, |p| p.max).to_be_bytes());
                writer.put(&pending.map_or(0, |p| p.expires_s).to_be_bytes());
                writer.put(&live.left.to_be_bytes());
                writer.put(&live.max.to_be_bytes());
                writer.put(&live.failed_since_change.to_be_bytes());
                writer.put(&live.not_before_s.to_be_bytes());
                writer.put(&live.frozen_until_s.to_be_bytes());
                writer.put(&live.challenge.unwrap_or_default());
                writer.put(&live.last_charged.unwrap_or_default());
                let head = live.archive_head;
                writer.put(&head.map_or([0; 16], |head| head.tag.0));
                writer.put(&head.map_or(0, |head| head.seq).to_be_bytes());
                writer.put(&head.map_or([0; 32], |head| head.digest.0));
            }
        }
        writer.bytes
    }

    /// Reads what [`Self::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut padded = Zeroizing::new([0; RECORD_LEN]);
        let expected = if bytes.len() == RECORD_LEN_1 { 1 } else { FORMAT };
        if ![RECORD_LEN, RECORD_LEN_1].contains(&bytes.len()) {
            return None;
        }
        padded[..bytes.len()].copy_from_slice(bytes);
        let mut reader = Reader(&padded[..]);
        let [format, kind, flags, reason] = reader.take()?;
        let seq = u64::from_be_bytes(reader.take()?);
        if format != expected {
            return None;
        }
        if kind == 2 {
            let reason = match reason {
                1 => DestroyReason::Exhausted,
                2 => DestroyReason::User,
                3 => DestroyReason::Operator,
                _ => return None,
            };
            return Some(Self::Tombstone { reason, seq });
        }
        if kind == 3 {
            return Some(Self::Invite { used: u16::from_be_bytes(reader.take()?), expires_s: seq });
        }
        if kind != 1 {
            return None;
        }
        let active = reader.registration(flags & ACTIVE != 0)?;
        let registration = reader.registration(flags & PENDING != 0)?;
        let (begun_with, max, expires_s) =
            (reader.take()?, u16::from_be_bytes(reader.take()?), u64::from_be_bytes(reader.take()?));
        let finished = flags & FINISHED != 0;
        let pending =
            registration.map(|registration| Pending { registration, finished, begun_with, max, expires_s });
        Some(Self::Live(Box::new(Live {
            active,
            pending,
            left: u16::from_be_bytes(reader.take()?),
            max: u16::from_be_bytes(reader.take()?),
            failed_since_change: u32::from_be_bytes(reader.take()?),
            not_before_s: u64::from_be_bytes(reader.take()?),
            frozen_until_s: u64::from_be_bytes(reader.take()?),
            challenge: Some(reader.take()?).filter(|_| flags & CHALLENGE != 0),
            last_charged: Some(reader.take()?).filter(|_| flags & CHARGED != 0),
            archive_head: Some(reader.archive_head()?).filter(|_| flags & HEAD != 0),
        })))
    }
}

struct Writer {
    bytes: Zeroizing<[u8; RECORD_LEN]>,
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn registration(&mut self, registration: Option<&Registration>) {
        match registration {
            Some(registration) => {
                self.put(&registration.epoch);
                self.put(&[registration.suite as u8]);
                self.put(&*registration.key);
                self.put(&registration.public_key);
            }
            None => self.put(&[0; 16 + 1 + 32 + 32]),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_at_checked(N)?;
        self.0 = rest;
        taken.try_into().ok()
    }

    fn archive_head(&mut self) -> Option<ArchiveHead> {
        let tag = Fixed(self.take()?);
        let seq = u64::from_be_bytes(self.take()?);
        Some(ArchiveHead { tag, seq, digest: Fixed(self.take()?) })
    }

    /// The outer `None` is a record that cannot be read.
    #[expect(clippy::option_option, reason = "absent and unreadable are different")]
    fn registration(&mut self, present: bool) -> Option<Option<Registration>> {
        let (epoch, [suite], key, public_key) = (self.take()?, self.take()?, self.take()?, self.take()?);
        if !present {
            return Some(None);
        }
        let suite = Suite::from_number(suite)?;
        Some(Some(Registration { epoch, suite, key: Zeroizing::new(key), public_key }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn registration(n: u8) -> Registration {
        Registration { epoch: [n; 16], suite: Suite::P256, key: Zeroizing::new([n; 32]), public_key: [n; 32] }
    }

    #[test]
    fn every_state_reads_back_and_has_the_same_length() {
        let pending = Pending {
            registration: registration(2),
            finished: true,
            begun_with: [3; 32],
            max: 4,
            expires_s: 5,
        };
        let full = Live {
            active: Some(registration(1)),
            pending: Some(pending),
            left: 6,
            max: 7,
            failed_since_change: 8,
            not_before_s: 9,
            frozen_until_s: 10,
            challenge: Some([11; 32]),
            last_charged: Some([12; 32]),
            archive_head: Some(ArchiveHead { tag: Fixed([13; 16]), seq: 14, digest: Fixed([15; 32]) }),
        };
        for record in [
            Record::Live(Box::new(full)),
            Record::Live(Box::default()),
            Record::Tombstone { reason: DestroyReason::User, seq: 77 },
            Record::Invite { used: 3, expires_s: 78 },
        ] {
            let bytes = record.encode();
            assert!(Record::decode(&*bytes).unwrap() == record);
        }
    }

    #[test]
    fn a_record_of_format_1_still_opens() {
        let live =
            Live { active: Some(registration(1)), left: 6, last_charged: Some([12; 32]), ..Live::default() };
        let record = Record::Live(Box::new(live));
        let mut bytes = *record.encode();
        bytes[0] = 1;
        assert!(Record::decode(&bytes[..RECORD_LEN_1]).unwrap() == record);
        assert!(Record::decode(&bytes).is_none());
    }

    #[test]
    fn a_tombstone_keeps_nothing_of_the_account() {
        let bytes = Record::Tombstone { reason: DestroyReason::Exhausted, seq: 1 }.encode();
        assert!(bytes[12..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn junk_is_no_record() {
        assert!(Record::decode(&[0; RECORD_LEN]).is_none());
        assert!(Record::decode(&[1; RECORD_LEN - 1]).is_none());
        let mut unknown_suite =
            *Record::Live(Box::new(Live { active: Some(registration(1)), ..Live::default() })).encode();
        unknown_suite[12 + 16] = 9;
        assert!(Record::decode(&unknown_suite).is_none());
    }
}
