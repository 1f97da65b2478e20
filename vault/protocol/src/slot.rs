//! The password keyslot: what lies beside the backup. Decoding trusts nothing in it.

use crate::limits::{NAME_LEN_MAX, SLOT_LEN_MAX, URL_LEN_MAX, VAULTS_MAX, VERSION};
use crate::secret::{hkdf, hmac};
use crate::{KdfFloor, KdfParams, SlotError, Suite, VaultPin};

/// First bytes of every slot.
pub const MAGIC: [u8; 4] = *b"CKVS";
const KDF_ARGON2ID: u8 = 1;
const PASSWORD_RULE_NFKC: u8 = 1;
/// Salt, ciphertext of the 32-byte key, tag.
pub(crate) const WRAPPED_LEN: usize = 32 + 32 + 16;

/// What everything else in a slot is bound to.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Group and hash of the vaults.
    pub suite: Suite,
    /// How many vaults must answer; more than half of all.
    pub threshold: u8,
    /// Cost of stretching the password.
    pub kdf: KdfParams,
    /// Salt of the stretching and of the masks.
    pub salt: [u8; 32],
    /// Makes the account number at every vault; a capability, not a name.
    pub locator: [u8; 16],
    /// Which registration this is; random, never used again.
    pub epoch: [u8; 16],
    /// The archive this slot belongs to.
    pub context: [u8; 16],
    /// The vaults, in the order of the shares.
    pub vaults: Vec<VaultPin>,
}

/// A password keyslot.
#[derive(Clone, PartialEq, Eq)]
pub struct Slot {
    /// Parameters, vaults, identifiers.
    pub header: Header,
    /// One masked share for each vault: e_1 … e_n.
    pub masked_shares: Vec<[u8; 32]>,
    /// C.
    pub commitment: [u8; 32],
    /// W: salt, ciphertext and tag of the wrapped key.
    pub wrapped: [u8; WRAPPED_LEN],
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({} of {}, redacted)", self.header.threshold, self.header.vaults.len())
    }
}

impl Header {
    /// The account number at one vault. Two vaults cannot tell that their accounts belong together.
    pub fn account(&self, identity: &[u8; 32]) -> [u8; 16] {
        let mac = hmac(&self.locator, &[b"chatkeep vault account v1", identity]);
        mac[..16].try_into().expect("16 of 32 bytes")
    }

    /// The name under which one vault keeps the newest entry of the archive. From the locator, which the vault does not
    /// know, so the name tells it nothing; and the same after a change of password.
    pub fn archive_tag(&self, identity: &[u8; 32]) -> [u8; 16] {
        let label = b"chatkeep vault archive tag v1";
        let tag = hkdf(None, &self.locator, &[label, identity, &self.context]);
        tag[..16].try_into().expect("16 of 32 bytes")
    }

    /// Checks what [`Slot::decode`] promises and [`crate::ppss::register`] needs.
    pub fn check(&self, floor: KdfFloor) -> Result<(), SlotError> {
        let n = self.vaults.len();
        let t = usize::from(self.threshold);
        if n == 0 || n > VAULTS_MAX {
            return Err(SlotError::Malformed { what: "the number of vaults" });
        }
        if t == 0 || t > n || 2 * t <= n {
            return Err(SlotError::Malformed { what: "the threshold is not more than half of the vaults" });
        }
        for (i, vault) in self.vaults.iter().enumerate() {
            let text_ok = |text: &str, max| text.len() <= max && !text.chars().any(char::is_control);
            if !text_ok(&vault.name, NAME_LEN_MAX) || !text_ok(&vault.url, URL_LEN_MAX) {
                return Err(SlotError::Malformed { what: "a vault's name or address" });
            }
            if self.vaults[..i].iter().any(|other| other.identity == vault.identity) {
                return Err(SlotError::Malformed { what: "the same vault twice" });
            }
        }
        self.kdf.check(floor)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.suite as u8, self.threshold, self.vaults.len() as u8]);
        bytes.extend_from_slice(&[KDF_ARGON2ID, PASSWORD_RULE_NFKC]);
        for number in [self.kdf.memory_kib, self.kdf.passes, self.kdf.lanes] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.locator);
        bytes.extend_from_slice(&self.epoch);
        bytes.extend_from_slice(&self.context);
        for vault in &self.vaults {
            bytes.extend_from_slice(&vault.identity);
            bytes.push(vault.name.len() as u8);
            bytes.extend_from_slice(vault.name.as_bytes());
            bytes.extend_from_slice(&(vault.url.len() as u16).to_be_bytes());
            bytes.extend_from_slice(vault.url.as_bytes());
        }
        bytes
    }
}

impl Slot {
    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.bound();
        bytes.extend_from_slice(&self.commitment);
        bytes.extend_from_slice(&self.wrapped);
        bytes
    }

    /// Reads a slot; every rule of the format holds for what comes back.
    pub fn decode(bytes: &[u8], floor: KdfFloor) -> Result<Self, SlotError> {
        let mut reader = Reader(bytes);
        if bytes.len() > SLOT_LEN_MAX {
            return Err(SlotError::Malformed { what: "it is too long" });
        }
        if reader.array()? != MAGIC {
            return Err(SlotError::Malformed { what: "it is not a keyslot" });
        }
        let version = reader.byte()?;
        if version != VERSION {
            return Err(if version > VERSION {
                SlotError::NewerFormat { version }
            } else {
                SlotError::Malformed { what: "the version" }
            });
        }
        let suite = Suite::from_number(reader.byte()?).ok_or(SlotError::Malformed { what: "the suite" })?;
        let [threshold, count, kdf, rule] = reader.array()?;
        if kdf != KDF_ARGON2ID || rule != PASSWORD_RULE_NFKC {
            return Err(SlotError::Malformed { what: "the password rule" });
        }
        let kdf = KdfParams { memory_kib: reader.u32()?, passes: reader.u32()?, lanes: reader.u32()? };
        let (salt, locator, epoch, context) =
            (reader.array()?, reader.array()?, reader.array()?, reader.array()?);
        if usize::from(count) > VAULTS_MAX {
            return Err(SlotError::Malformed { what: "the number of vaults" });
        }
        let vaults = (0..count).map(|_| reader.vault()).collect::<Result<_, _>>()?;
        let header = Header { suite, threshold, kdf, salt, locator, epoch, context, vaults };
        header.check(floor)?;
        let masked_shares = (0..count).map(|_| reader.array()).collect::<Result<_, _>>()?;
        let slot = Self { header, masked_shares, commitment: reader.array()?, wrapped: reader.array()? };
        if !reader.0.is_empty() {
            return Err(SlotError::Malformed { what: "bytes after the end" });
        }
        Ok(slot)
    }

    /// Header and masked shares: what C is over.
    pub(crate) fn bound(&self) -> Vec<u8> {
        let mut bytes = self.header.encode();
        for share in &self.masked_shares {
            bytes.extend_from_slice(share);
        }
        bytes
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], SlotError> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or(SlotError::Malformed { what: "it is cut off" })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SlotError> {
        Ok(self.take(N)?.try_into().expect("just taken with this length"))
    }

    fn byte(&mut self) -> Result<u8, SlotError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, SlotError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn text(&mut self, len: usize) -> Result<String, SlotError> {
        let bytes = self.take(len)?.to_vec();
        String::from_utf8(bytes).map_err(|_| SlotError::Malformed { what: "a text that is not UTF-8" })
    }

    fn vault(&mut self) -> Result<VaultPin, SlotError> {
        let identity = self.array()?;
        let name_len = usize::from(self.byte()?);
        let name = self.text(name_len)?;
        let url_len = usize::from(u16::from_be_bytes(self.array()?));
        Ok(VaultPin { name, url: self.text(url_len)?, identity })
    }
}
