//! What damage costs: which entries need an object that is missing or damaged.

use std::collections::{BTreeMap, BTreeSet};

use crate::prune::{KnownEntry, PackName, Prunable};

/// Who needs which of some objects: an entry needs itself, the packs it names, and all that its parent needs.
pub struct Dependents {
    children: BTreeMap<u64, Vec<u64>>,
    naming: BTreeMap<PackName, Vec<u64>>,
    known: BTreeSet<u64>,
}

impl Dependents {
    /// Of `entries` (by their number), on some of `objects`.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = (u64, &'a KnownEntry)>,
        objects: &BTreeSet<Prunable>,
    ) -> Self {
        let mut new = Self { children: BTreeMap::new(), naming: BTreeMap::new(), known: BTreeSet::new() };
        for (seq, entry) in entries {
            new.known.insert(seq);
            new.children.entry(entry.parent_seq).or_default().push(seq);
            for pack in entry.packs.iter().filter(|pack| objects.contains(&Prunable::Pack(**pack))) {
                new.naming.entry(*pack).or_default().push(seq);
            }
        }
        new
    }

    /// The entries that cannot be restored without `object`, newest first. An entry that is not known can be asked about:
    /// those that name it as their parent are known.
    pub fn on(&self, object: Prunable) -> Vec<u64> {
        let mut waiting = match object {
            Prunable::Entry(seq) => vec![seq],
            Prunable::Pack(name) => self.naming.get(&name).cloned().unwrap_or_default(),
        };
        let mut found = BTreeSet::new();
        while let Some(seq) = waiting.pop() {
            // A parent is older than its child: 0 is none, and nobody is met again on a way down.
            if found.insert(seq) {
                let children = self.children.get(&seq).into_iter().flatten();
                waiting.extend(children.copied().filter(|child| *child > seq));
            }
        }
        found.into_iter().rev().filter(|seq| self.known.contains(seq)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PackName = [1; 16];
    const B: PackName = [2; 16];
    const C: PackName = [3; 16];

    /// A base with packs, ordinary entries, one of a long span that has pages of its own, and a base again, which shares a
    /// pack with the first.
    fn log() -> BTreeMap<u64, KnownEntry> {
        let entry = |parent_seq, packs: &[PackName]| KnownEntry { parent_seq, packs: packs.to_vec() };
        BTreeMap::from([
            (1, entry(0, &[A, B])),
            (2, entry(1, &[])),
            (3, entry(2, &[])),
            (4, entry(1, &[C])),
            (5, entry(4, &[])),
            (6, entry(0, &[B])),
            (7, entry(6, &[])),
        ])
    }

    #[track_caller]
    fn check(log: &BTreeMap<u64, KnownEntry>, object: Prunable, expected: &[u64]) {
        let dependents = Dependents::new(log.iter().map(|(seq, entry)| (*seq, entry)), &[object].into());
        assert_eq!(dependents.on(object), expected);
    }

    #[test]
    fn an_ordinary_entry_costs_those_that_build_on_it_and_no_others() {
        check(&log(), Prunable::Entry(2), &[3, 2]);
        check(&log(), Prunable::Entry(3), &[3]);
    }

    #[test]
    fn a_base_costs_its_whole_chain() {
        check(&log(), Prunable::Entry(1), &[5, 4, 3, 2, 1]);
    }

    #[test]
    fn a_pack_costs_all_that_name_it_and_all_that_build_on_these() {
        check(&log(), Prunable::Pack(A), &[5, 4, 3, 2, 1]);
        check(&log(), Prunable::Pack(B), &[7, 6, 5, 4, 3, 2, 1]);
        check(&log(), Prunable::Pack(C), &[5, 4]);
        check(&log(), Prunable::Pack([9; 16]), &[]);
    }

    #[test]
    fn an_entry_that_nobody_could_read_costs_its_children() {
        let mut log = log();
        log.remove(&4);
        check(&log, Prunable::Entry(4), &[5]);
    }

    #[test]
    fn parents_made_up_by_a_store_end() {
        let entry = |parent_seq| KnownEntry { parent_seq, packs: vec![A] };
        let log = BTreeMap::from([(1, entry(2)), (2, entry(1)), (3, entry(3))]);
        check(&log, Prunable::Pack(A), &[3, 2, 1]);
    }
}
