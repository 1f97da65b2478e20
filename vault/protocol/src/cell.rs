//! Which part of a vault's accounts: those whose number begins with certain bits.

use serde::{Deserialize, Serialize};

use crate::limits::CELLS_MAX;

/// A cell: its number, from 0, and the number of cells, a power of two. Written as an array of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct CellId {
    number: u16,
    of: u16,
}

/// There is no such cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such cell")]
pub struct NoSuchCell;

impl CellId {
    /// Cell `number` of `of`; `None` if there is no such cell.
    pub fn new(number: u16, of: u16) -> Option<Self> {
        let possible = of.is_power_of_two() && usize::from(of) <= CELLS_MAX && number < of;
        possible.then_some(Self { number, of })
    }

    /// Counts from 0.
    pub fn number(self) -> u16 {
        self.number
    }

    /// Into how many cells the accounts are cut.
    pub fn of(self) -> u16 {
        self.of
    }

    /// As it is signed: both numbers.
    pub fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.number.to_be_bytes(), self.of.to_be_bytes());
        [a, b, c, d]
    }
}

impl TryFrom<(u16, u16)> for CellId {
    type Error = NoSuchCell;

    fn try_from((number, of): (u16, u16)) -> Result<Self, NoSuchCell> {
        Self::new(number, of).ok_or(NoSuchCell)
    }
}

impl From<CellId> for (u16, u16) {
    fn from(cell: CellId) -> Self {
        (cell.number, cell.of)
    }
}

impl std::fmt::Display for CellId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cell {} of {}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_of_a_power_of_two() {
        for (number, of) in [(0, 1), (1, 2), (127, 128), (4095, 4096)] {
            let cell = CellId::new(number, of).map(|cell| (cell.number(), cell.of()));
            assert_eq!(cell, Some((number, of)));
        }
        for (number, of) in [(0, 0), (1, 1), (0, 3), (4096, 4096), (0, 8192)] {
            assert_eq!(CellId::new(number, of), None, "{number} of {of}");
        }
    }
}
