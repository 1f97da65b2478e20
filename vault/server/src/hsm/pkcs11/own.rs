//! What every cell has of its own on a token that all cells reach, and what says into how many the vault is cut.
//!
//! Root, identity and the HMAC key for the host are common to all cells. Anchor and seal keys are not: a vault that is
//! whole has one set, and every cell one with its number, and the number of cells, in the labels. The anchor of the whole
//! is then no state any more, but says how many cells there are. So whoever forgot `[cell]` does not serve, nor does
//! somebody with a map of another number of cells: an account could be guessed at in a cell of each.

use std::collections::BTreeMap;

use chatkeep_vault_protocol::cell::CellId;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::objects::{self, ANCHOR, Keep, SEAL, failed};
use crate::hsm::device_anchor::ANCHOR_LEN;
use crate::hsm::{DeviceError, HsmError, SealKey};

/// Anchor and seal keys of the whole, or of one cell.
pub(super) struct Own {
    labels: Labels,
    /// By their numbers; at least one.
    pub(super) seal: BTreeMap<u32, (ObjectHandle, SealKey)>,
    pub(super) anchor: ObjectHandle,
}

/// What they are called. With the numbers they have 31 bytes at most: some tokens take 32.
struct Labels {
    seal: String,
    anchor: String,
}

impl Labels {
    fn new(cell: Option<CellId>) -> Self {
        let label = |what: &str| match cell {
            Some(cell) => format!("{what} {}/{}", cell.number(), cell.of()),
            None => what.to_owned(),
        };
        Self { seal: label(SEAL), anchor: label(ANCHOR) }
    }
}

impl Own {
    /// Finds those of `cell`, or of the whole.
    pub(super) fn find(session: &Session, cell: Option<CellId>) -> Result<Self, HsmError> {
        let labels = Labels::new(cell);
        let anchor = objects::need(session, ObjectClass::SECRET_KEY, &labels.anchor)?;
        let seal = find_seal_keys(session, &labels.seal)?;
        Ok(Self { labels, seal, anchor })
    }

    /// Makes those of a vault that is whole.
    pub(super) fn make(session: &Session, now_s: u64) -> Result<(), DeviceError> {
        make(session, &Labels::new(None), now_s)
    }

    /// Makes those of `cell`; the first cell says how many there will be. Refuses what there is already.
    pub(super) fn make_of_cell(session: &Session, cell: CellId, now_s: u64) -> Result<(), HsmError> {
        let labels = Labels::new(Some(cell));
        for label in [&labels.anchor, &labels.seal] {
            if !objects::named_so(session, label)?.is_empty() {
                return Err(HsmError::Token(format!(
                    "the token has a `{label}` already: a new one would forget what the old one knows"
                )));
            }
        }
        cut(session, cell)?;
        make(session, &labels, now_s).map_err(|error| {
            // half a cell is none: what has these labels was made just now
            for label in [&labels.anchor, &labels.seal] {
                for object in objects::named_so(session, label).unwrap_or_default() {
                    drop(session.destroy_object(object));
                }
            }
            error.into()
        })
    }

    /// The newest seal key.
    pub(super) fn newest(&self) -> (u32, ObjectHandle) {
        let (id, (handle, _)) = self.seal.last_key_value().expect("`find` found at least one");
        (*id, *handle)
    }

    /// Finds the seal keys anew.
    pub(super) fn look_again(&mut self, session: &Session) -> Result<(), DeviceError> {
        let found = find_seal_keys(session, &self.labels.seal);
        self.seal = found.map_err(|error| match error {
            HsmError::Device(error) => error,
            other => DeviceError::Failed { doing: "list the seal keys", said: other.to_string() },
        })?;
        Ok(())
    }

    /// Makes the next one, which seals from now on. Looks first what there is: a process that has lost its store since may
    /// have made one, and two of one number could not be told apart.
    pub(super) fn make_seal_key(&mut self, session: &Session, now_s: u64) -> Result<u32, DeviceError> {
        self.look_again(session)?;
        let key = SealKey { id: self.newest().0 + 1, made_at_s: now_s };
        let handle = objects::make_seal_key(session, Keep::OnToken, &self.labels.seal, key)?;
        self.seal.insert(key.id, (handle, key));
        Ok(key.id)
    }

    /// Destroys all but the newest: of this cell, and of no other.
    pub(super) fn destroy_old_seal_keys(&mut self, session: &Session) -> Result<(), DeviceError> {
        while self.seal.len() > 1 {
            let (oldest, (handle, _)) = self.seal.first_key_value().expect("there are two");
            let oldest = *oldest;
            session.destroy_object(*handle).map_err(failed("destroy a seal key"))?;
            self.seal.remove(&oldest);
        }
        Ok(())
    }
}

fn make(session: &Session, labels: &Labels, now_s: u64) -> Result<(), DeviceError> {
    objects::make_anchor(session, Keep::OnToken, &labels.anchor)?;
    let first = SealKey { id: 1, made_at_s: now_s };
    objects::make_seal_key(session, Keep::OnToken, &labels.seal, first).map(drop)
}

fn find_seal_keys(
    session: &Session,
    label: &str,
) -> Result<BTreeMap<u32, (ObjectHandle, SealKey)>, HsmError> {
    let mut keys = BTreeMap::new();
    for handle in objects::secret_keys(session, label)? {
        objects::check_locked_in(session, handle, label)?;
        let key = objects::describe_seal_key(session, handle)?;
        if keys.insert(key.id, (handle, key)).is_some() {
            return Err(HsmError::Token(format!("the token has two `{label}` with the number {}", key.id)));
        }
    }
    if keys.is_empty() {
        return Err(HsmError::Token(format!("the token has no `{label}`")));
    }
    Ok(keys)
}

/// What the anchor of the whole says of the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// Nothing was ever committed.
    Empty,
    /// It is a state.
    InUse,
    /// There are so many cells.
    Cut(u16),
}

/// Stands where a state has its number: it is no number of a commit, which stay below 2^63.
const CUT: [u8; 8] = [0xff; 8];

impl Whole {
    fn decode(bytes: &[u8]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Empty;
        }
        match bytes {
            [begin @ .., a, b] if bytes.len() == ANCHOR_LEN && begin.starts_with(&CUT) => {
                Self::Cut(u16::from_be_bytes([*a, *b]))
            }
            _ => Self::InUse,
        }
    }

    fn encode_cut(cells: u16) -> [u8; ANCHOR_LEN] {
        let mut bytes = [0; ANCHOR_LEN];
        bytes[..CUT.len()].copy_from_slice(&CUT);
        bytes[ANCHOR_LEN - 2..].copy_from_slice(&cells.to_be_bytes());
        bytes
    }

    fn read(session: &Session) -> Result<(ObjectHandle, Self), HsmError> {
        let anchor = objects::need(session, ObjectClass::SECRET_KEY, ANCHOR)?;
        Ok((anchor, Self::decode(&objects::read_id(session, anchor)?)))
    }
}

/// Notes that there are as many cells as `cell` says.
fn cut(session: &Session, cell: CellId) -> Result<(), HsmError> {
    match Whole::read(session)? {
        (anchor, Whole::Empty) => {
            let value = Attribute::Id(Whole::encode_cut(cell.of()).to_vec());
            session.update_attributes(anchor, &[value]).map_err(failed("write the number of cells"))?;
            Ok(())
        }
        (_, Whole::Cut(_)) => check_cut(session, cell),
        (_, Whole::InUse) => Err(HsmError::Token(
            "the vault on this token has commits and is whole: it cannot be cut into cells; make a new vault"
                .to_owned(),
        )),
    }
}

/// Refuses a cell of another map than the vault was cut by.
pub(super) fn check_cut(session: &Session, cell: CellId) -> Result<(), HsmError> {
    match Whole::read(session)?.1 {
        Whole::Cut(cells) if cells == cell.of() => Ok(()),
        Whole::Cut(cells) => Err(HsmError::Token(format!(
            "the vault on this token has {cells} cells, and the map {}: their number cannot be changed, because an account \
             could be guessed at in a cell of each",
            cell.of()
        ))),
        Whole::Empty | Whole::InUse => Err(HsmError::Token(
            "the vault on this token is not cut into cells: was `chatkeep-vault init` run with [cell]?"
                .to_owned(),
        )),
    }
}

/// Refuses a vault that is cut into cells.
pub(super) fn check_whole(session: &Session) -> Result<(), HsmError> {
    match Whole::read(session)?.1 {
        Whole::Cut(cells) => Err(HsmError::Token(format!(
            "the vault on this token is cut into {cells} cells: say in [cell] which one this is"
        ))),
        Whole::Empty | Whole::InUse => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn labels_have_the_number_of_the_cell_and_of_the_cells() {
        let longest = Labels::new(CellId::new(4095, 4096));
        assert_eq!(longest.anchor, "chatkeep-vault anchor 4095/4096");
        assert!(longest.anchor.len() <= 32 && longest.seal.len() <= 32);
        assert_eq!(Labels::new(None).seal, SEAL);
    }

    #[test]
    fn the_anchor_of_the_whole_is_nothing_a_state_or_a_number_of_cells() {
        assert_eq!(Whole::decode(&[0; ANCHOR_LEN]), Whole::Empty);
        for cells in [1, 4096] {
            assert_eq!(Whole::decode(&Whole::encode_cut(cells)), Whole::Cut(cells));
        }
        let mut state = [0; ANCHOR_LEN];
        state[7] = 1;
        assert_eq!(Whole::decode(&state), Whole::InUse);
        assert_eq!(Whole::decode(&[0xff; 9]), Whole::InUse, "not by a vault");
    }
}
