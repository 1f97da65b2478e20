//! More accounts than one store should hold: the space of accounts cut into cells of equal size, each with a store, an
//! anchor and a process of its own, all with one identity.
//!
//! A cell is a prefix of the account's number itself. That number is 16 bytes of an HMAC that the client makes, so it is
//! spread evenly already; hashing it again would not stop anybody who wants one cell full (he would search for
//! numbers), and as it is, a cell is one range of the table's key, which the database can enforce and copy.
//!
//! Which accounts are in which cell never changes: an account that is in two cells could be guessed at in both. So the
//! number of cells is fixed when they are made, and what a new version of the map changes is where they are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use chatkeep_vault_protocol::answer::Answer;
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::limits::{CELL_ADDRESSES_MAX, CELLS_MAX, URL_LEN_MAX};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac as _};
use serde::Deserialize;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::hsm::{DeviceError, IdentityKey};

/// `[cell]`: which part of the accounts a process serves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellConfig {
    /// The signed map.
    pub map: PathBuf,
    /// The cell's place in it, from 0.
    pub number: u16,
}

/// The accounts that begin with certain bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    number: u16,
    bits: u32,
}

impl Cell {
    /// All accounts.
    pub const WHOLE: Self = Self { number: 0, bits: 0 };

    fn of(account: &[u8; 16], bits: u32) -> Self {
        let prefix = u16::from_be_bytes([account[0], account[1]]);
        Self { number: prefix.checked_shr(16 - bits).unwrap_or(0), bits }
    }

    /// Its number, and how many there are.
    pub fn id(&self) -> CellId {
        CellId::new(self.number, 1 << self.bits).expect("a cell is one of a map")
    }

    /// The key of the digest over this cell's records, from that of the vault.
    ///
    /// Every cell has another one, and the number of cells is in it: a database, or an anchor in a file, that is exchanged
    /// for that of another cell fits neither, also before there are records in it.
    pub fn digest_key(&self, vault: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(vault).expect("HMAC takes keys of any length");
        mac.update(b"chatkeep vault cell digest key v1");
        mac.update(&self.id().to_bytes());
        Zeroizing::new(mac.finalize().into_bytes().into())
    }

    /// Whether `account` is here.
    pub fn contains(&self, account: &[u8; 16]) -> bool {
        Self::of(account, self.bits) == *self
    }

    /// `number` with the first bits of this cell.
    pub fn within(&self, mut number: [u8; 16]) -> [u8; 16] {
        let mask = u16::MAX.checked_shr(self.bits).unwrap_or(0);
        let first = u16::from_be_bytes([number[0], number[1]]) & mask | u16::from_be_bytes(self.bounds().0);
        number[..2].copy_from_slice(&first.to_be_bytes());
        number
    }

    /// The first two bytes of its first account, and of the first one after it, if there is any.
    pub fn bounds(&self) -> ([u8; 2], Option<[u8; 2]>) {
        let prefix = |number: u32| u16::try_from(number << (16 - self.bits)).ok().map(u16::to_be_bytes);
        let first = prefix(u32::from(self.number)).expect("the number has that many bits");
        (first, prefix(u32::from(self.number) + 1))
    }
}

/// Where every cell is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellMap {
    /// Higher than that of the map before.
    pub version: u64,
    /// For every cell, by its number, its addresses; `https://…`. A power of two of them.
    pub cells: Vec<Vec<String>>,
}

/// A map of cells cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CellMapError {
    /// The file cannot be read.
    #[error("the cell map")]
    Io(#[from] std::io::Error),
    /// It is not a map.
    #[error("the cell map: {0}")]
    Malformed(String),
    /// It could not be signed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no signature, or it is not this vault's.
    #[error("the cell map is not signed by this vault's identity; sign it with `chatkeep-vault sign-cells`")]
    Unsigned,
}

const LABEL: &[u8] = b"chatkeep vault cells v1\n";
const SIGNATURE: &str = "# signature ";

impl CellMap {
    /// A map without a signature, checked.
    pub fn parse(text: &str) -> Result<Self, CellMapError> {
        let malformed = |what: &str| Err(CellMapError::Malformed(what.to_owned()));
        let map: Self = toml::from_str(text).map_err(|error| CellMapError::Malformed(error.to_string()))?;
        if !map.cells.len().is_power_of_two() || map.cells.len() > CELLS_MAX {
            return malformed("the number of cells must be a power of two, 4096 at most");
        }
        for addresses in &map.cells {
            if addresses.is_empty() || addresses.len() > CELL_ADDRESSES_MAX {
                return malformed("every cell has one to four addresses");
            }
            if addresses.iter().any(|url| !url.starts_with("https://") || url.len() > URL_LEN_MAX) {
                return malformed("addresses begin with https:// and have 256 bytes at most");
            }
        }
        Ok(map)
    }

    /// `text` with its signature in a last line; an earlier signature gives way.
    pub fn sign(text: &str, identity: &dyn IdentityKey) -> Result<String, CellMapError> {
        let mut text = split(text).0.to_owned();
        Self::parse(&text)?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let signature = hex::encode(identity.sign(&message(&text))?);
        writeln!(text, "{SIGNATURE}{signature}").expect("a string takes text");
        Ok(text)
    }

    /// The map in `text`, if `identity` signed it.
    pub fn verify(text: &str, identity: &[u8; 32]) -> Result<Self, CellMapError> {
        let (body, signature) = split(text);
        let signature = signature.and_then(|digits| hex::decode(digits.trim_end()).ok());
        let signature = signature.and_then(|bytes| <[u8; 64]>::try_from(bytes).ok());
        let signature = Signature::from_bytes(&signature.ok_or(CellMapError::Unsigned)?);
        VerifyingKey::from_bytes(identity)
            .and_then(|key| key.verify_strict(&message(body), &signature))
            .map_err(|_| CellMapError::Unsigned)?;
        Self::parse(body)
    }

    fn bits(&self) -> u32 {
        self.cells.len().ilog2()
    }
}

/// The map without its signature, and the signature's digits.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.rfind(SIGNATURE) {
        Some(at) if at == 0 || text.as_bytes()[at - 1] == b'\n' => {
            (&text[..at], Some(&text[at + SIGNATURE.len()..]))
        }
        _ => (text, None),
    }
}

fn message(text: &str) -> Vec<u8> {
    [LABEL, text.as_bytes()].concat()
}

/// What a process knows of the cells: its own, and where the others are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its own.
    pub cell: Cell,
    map: CellMap,
}

impl Place {
    /// Reads the signed map that `config` names.
    pub fn read(config: &CellConfig, identity: &[u8; 32]) -> Result<Self, CellMapError> {
        Self::new(CellMap::verify(&read(&config.map)?, identity)?, config.number)
    }

    /// The cell with this number of `map`.
    pub fn new(map: CellMap, number: u16) -> Result<Self, CellMapError> {
        if usize::from(number) >= map.cells.len() {
            let what = format!("there is no cell {number}: it has {}, from 0", map.cells.len());
            return Err(CellMapError::Malformed(what));
        }
        Ok(Self { cell: Cell { number, bits: map.bits() }, map })
    }

    /// What to answer for an account of another cell.
    pub fn elsewhere(&self, account: &[u8; 16]) -> Option<Answer> {
        let there = Cell::of(account, self.cell.bits);
        (there != self.cell).then(|| Answer::Elsewhere {
            urls: self.map.cells[usize::from(there.number)].clone(),
            map_version: self.map.version,
        })
    }

    /// For people: `cell 3 of 32, map 7`.
    pub fn describe(&self) -> String {
        format!("{}, map {}", self.cell.id(), self.map.version)
    }
}

fn read(path: &Path) -> Result<String, CellMapError> {
    Ok(std::fs::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};

    struct Key(SigningKey);

    impl IdentityKey for Key {
        fn public(&self) -> [u8; 32] {
            self.0.verifying_key().to_bytes()
        }

        fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
            Ok(self.0.sign(message).to_bytes())
        }
    }

    fn key(byte: u8) -> Key {
        Key(SigningKey::from_bytes(&[byte; 32]))
    }

    fn map(cells: usize) -> String {
        let cells: Vec<String> = (0..cells).map(|n| format!("[\"https://cell-{n}.example\"]")).collect();
        format!("version = 7\ncells = [{}]\n", cells.join(", "))
    }

    fn account(prefix: u16) -> [u8; 16] {
        let mut account = [0xee; 16];
        account[..2].copy_from_slice(&prefix.to_be_bytes());
        account
    }

    #[test]
    fn every_account_is_in_exactly_one_cell_and_within_its_bounds() {
        for cells in [1, 2, 32, 4096] {
            let map = CellMap::parse(&map(cells)).unwrap();
            let places: Vec<Place> =
                (0..cells as u16).map(|number| Place::new(map.clone(), number).unwrap()).collect();
            for prefix in [0, 1, 0x07ff, 0x0800, 0x7fff, 0x8000, 0xfff0, 0xffff] {
                let account = account(prefix);
                let here: Vec<_> = places.iter().filter(|place| place.cell.contains(&account)).collect();
                assert_eq!(here.len(), 1, "{prefix:x} of {cells}");
                assert_eq!(here[0].elsewhere(&account), None);
                let (first, next) = here[0].cell.bounds();
                assert!(first <= [account[0], account[1]], "{prefix:x} of {cells}");
                assert!(next.is_none_or(|next| [account[0], account[1]] < next), "{prefix:x} of {cells}");
            }
        }
        assert_eq!(Cell::WHOLE.bounds(), ([0, 0], None));
        assert_eq!(Place::new(CellMap::parse(&map(4096)).unwrap(), 4095).unwrap().cell.id().of(), 4096);
        assert!(Cell::WHOLE.contains(&account(0xffff)));
    }

    #[test]
    fn every_cell_of_every_map_has_a_digest_key_of_its_own() {
        let mut keys = std::collections::BTreeSet::new();
        for cells in [1, 2, 4, 128] {
            let map = CellMap::parse(&map(cells)).unwrap();
            for number in 0..cells as u16 {
                let cell = Place::new(map.clone(), number).unwrap().cell;
                assert_eq!(cell.digest_key(&[7; 32]), cell.digest_key(&[7; 32]));
                assert_ne!(cell.digest_key(&[7; 32]), cell.digest_key(&[8; 32]));
                keys.insert(*cell.digest_key(&[7; 32]));
            }
        }
        assert_eq!(keys.len(), 1 + 2 + 4 + 128);
    }

    #[test]
    fn any_number_can_be_moved_into_a_cell() {
        for cells in [1, 2, 32, 4096] {
            let map = CellMap::parse(&map(cells)).unwrap();
            for number in 0..cells as u16 {
                let cell = Place::new(map.clone(), number).unwrap().cell;
                for prefix in [0, 0x5555, 0xffff] {
                    let moved = cell.within(account(prefix));
                    assert!(cell.contains(&moved), "{number} of {cells}");
                    let low = u16::MAX >> cells.ilog2();
                    assert_eq!(u16::from_be_bytes([moved[0], moved[1]]) & low, prefix & low);
                    assert_eq!(moved[2..], account(prefix)[2..]);
                }
            }
        }
    }

    #[test]
    fn an_account_of_another_cell_is_told_where_it_is() {
        let place = Place::new(CellMap::parse(&map(4)).unwrap(), 1).unwrap();
        let urls = vec!["https://cell-3.example".to_owned()];
        assert_eq!(place.elsewhere(&account(0xc000)), Some(Answer::Elsewhere { urls, map_version: 7 }));
        assert_eq!(place.describe(), "cell 1 of 4, map 7");
        assert!(Place::new(CellMap::parse(&map(4)).unwrap(), 4).is_err());
    }

    #[test]
    fn a_map_counts_only_with_this_vaults_signature_under_every_byte() {
        let signed = CellMap::sign(&map(2), &key(1)).unwrap();
        assert_eq!(CellMap::verify(&signed, &key(1).public()).unwrap(), CellMap::parse(&map(2)).unwrap());
        assert_eq!(CellMap::sign(&signed, &key(1)).unwrap(), signed);
        assert!(matches!(CellMap::verify(&signed, &key(2).public()), Err(CellMapError::Unsigned)));
        assert!(matches!(CellMap::verify(&map(2), &key(1).public()), Err(CellMapError::Unsigned)));
        for at in 0..signed.len() - 1 {
            let mut bytes = signed.clone().into_bytes();
            bytes[at] ^= 1;
            let text = String::from_utf8(bytes).unwrap();
            assert!(CellMap::verify(&text, &key(1).public()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn maps_that_leave_accounts_without_a_cell_are_refused() {
        for bad in [
            map(3),
            map(0),
            map(8192),
            map(2).replace("https", "http"),
            "version = 1\ncells = [[], []]".to_owned(),
            "cells = []".to_owned(),
            map(2) + "typo = 1",
        ] {
            assert!(matches!(CellMap::parse(&bad), Err(CellMapError::Malformed(_))), "{bad}");
        }
    }
}
