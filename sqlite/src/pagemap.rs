//! A map from page numbers to something small: a few bytes a page, also when every page of a large database is in it.

use std::collections::BTreeMap;

/// Pages of one leaf. Pages that change together are often neighbours; a lone one costs a leaf.
const LEAF: usize = 16;

/// Sorted by page number. `Option<T>` should not be larger than `T`.
pub(crate) struct PageMap<T> {
    /// Where the leaf with these pages is in `values`.
    leaves: BTreeMap<u32, u32>,
    /// In one piece: it goes back to the system as a whole.
    values: Vec<[Option<T>; LEAF]>,
    len: usize,
}

impl<T> Default for PageMap<T> {
    fn default() -> Self {
        PageMap { leaves: BTreeMap::new(), values: Vec::new(), len: 0 }
    }
}

impl<T: Copy> PageMap<T> {
    pub(crate) fn get(&self, pgno: u32) -> Option<T> {
        let leaf = *self.leaves.get(&(pgno / LEAF as u32))?;
        self.values[leaf as usize][pgno as usize % LEAF]
    }

    /// Returns what was there.
    pub(crate) fn insert(&mut self, pgno: u32, value: T) -> Option<T> {
        let leaf = *self.leaves.entry(pgno / LEAF as u32).or_insert_with(|| {
            self.values.push([None; LEAF]);
            self.values.len() as u32 - 1
        });
        let old = self.values[leaf as usize][pgno as usize % LEAF].replace(value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In the order of page numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, T)> {
        self.leaves.iter().flat_map(|(number, leaf)| of_leaf(*number, self.values[*leaf as usize]))
    }

    /// Takes everything out, in the order of page numbers.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (u32, T)> + use<T> {
        let PageMap { leaves, values, .. } = std::mem::take(self);
        leaves.into_iter().flat_map(move |(number, leaf)| of_leaf(number, values[leaf as usize]))
    }
}

fn of_leaf<T: Copy>(number: u32, values: [Option<T>; LEAF]) -> impl Iterator<Item = (u32, T)> {
    let first = number * LEAF as u32;
    values.into_iter().enumerate().filter_map(move |(at, value)| Some((first + at as u32, value?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_sorted_map() {
        let mut map = PageMap::default();
        for pgno in [70, 1, u32::MAX, 64, 63] {
            assert_eq!(map.insert(pgno, pgno), None);
        }
        assert_eq!(map.insert(64, 5), Some(64));
        assert_eq!((map.get(64), map.get(65), map.get(70), map.len()), (Some(5), None, Some(70), 5));
        let all = [(1, 1), (63, 63), (64, 5), (70, 70), (u32::MAX, u32::MAX)];
        assert_eq!(map.iter().collect::<Vec<_>>(), all);
        assert_eq!(map.drain().collect::<Vec<_>>(), all);
        assert!(map.is_empty() && map.get(1).is_none());
    }
}
