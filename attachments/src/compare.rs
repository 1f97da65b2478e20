//! What changed between two walks, without reading a file. Pure.

use std::borrow::Borrow;
use std::cmp::Ordering;

use crate::found::Found;

/// What [`compare`] found. Numbers are places in the lists it was given; every place is in exactly one list.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Places in `now`: to be read.
    pub new_or_changed: Vec<usize>,
    /// Places in `before`. Ask [`Walked::may_hide`](crate::Walked::may_hide) before believing it.
    pub gone: Vec<usize>,
    /// Places in `before` and `now`: same file, length and time of writing, but something about it changed: its
    /// permissions, its owner, another name for it. The content is most likely the same; it is certain only when it
    /// was read again, because a program may write and then set the time of writing back. Not urgent.
    pub touched_only: Vec<(usize, usize)>,
    /// Places in `before` and `now`: certainly the same, if `before` was read by [`Folder::read`](crate::Folder::read).
    pub unchanged: Vec<(usize, usize)>,
}

/// Compares what was read (`before`: the [`Found`] of each successful [`Folder::read`](crate::Folder::read)) with what
/// a walk saw (`now`).
///
/// Both must be sorted by path, each path once, as a walk gives them. Takes one step for each file.
///
/// The danger known from git as "racily clean" (a file read and then written within one tick of the clock looks
/// the same) is kept out by `Folder::read`: it refuses a file that changed so lately that the next write might have
/// the same time. So no moment of reading has to be kept here.
pub fn compare<K: Borrow<Found>>(before: &[K], now: &[Found]) -> Changes {
    let mut changes = Changes::default();
    let (mut old, mut new) = (0, 0);
    loop {
        let order = match (before.get(old), now.get(new)) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(known), Some(found)) => known.borrow().path.cmp(&found.path),
        };
        match order {
            Ordering::Less => changes.gone.push(old),
            Ordering::Greater => changes.new_or_changed.push(new),
            Ordering::Equal => {
                let (known, found) = (before[old].borrow(), &now[new]);
                if known.is_same_file_as(found) && known.mode == found.mode {
                    changes.unchanged.push((old, new));
                } else if same_content_unless_hidden(known, found) {
                    changes.touched_only.push((old, new));
                } else {
                    changes.new_or_changed.push(new);
                }
            }
        }
        old += usize::from(order.is_le());
        new += usize::from(order.is_ge());
    }
}

fn same_content_unless_hidden(known: &Found, found: &Found) -> bool {
    (known.len, known.mtime_ns, known.inode) == (found.len, found.mtime_ns, found.inode)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::path::RelPath;

    fn file(path: &str) -> Found {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        Found { path, len: 10, mtime_ns: 1, ctime_ns: 2, inode: 3, mode: 0o600 }
    }

    #[track_caller]
    fn check(alter: impl FnOnce(&mut Found), expected: &Changes) {
        let before = file("a");
        let mut now = before.clone();
        alter(&mut now);
        assert_eq!(compare(&[before], &[now]), *expected);
    }

    fn changed() -> Changes {
        Changes { new_or_changed: vec![0], ..Changes::default() }
    }

    fn touched() -> Changes {
        Changes { touched_only: vec![(0, 0)], ..Changes::default() }
    }

    #[test]
    fn what_is_the_same_is_unchanged() {
        check(|_| {}, &Changes { unchanged: vec![(0, 0)], ..Changes::default() });
    }

    #[test]
    fn another_length_time_or_file_is_a_change() {
        check(|now| now.len = 11, &changed());
        check(|now| now.mtime_ns = 0, &changed());
        check(|now| now.inode = 4, &changed());
    }

    #[test]
    fn a_time_of_change_alone_is_a_touch() {
        check(|now| now.ctime_ns = 3, &touched());
        check(|now| (now.ctime_ns, now.mode) = (3, 0o644), &touched());
        check(|now| now.mode = 0o644, &touched());
    }

    #[test]
    fn a_name_in_one_list_only_is_new_or_gone() {
        let changes = compare(&[file("a"), file("b")], &[file("b"), file("c")]);
        assert_eq!((changes.gone, changes.new_or_changed), (vec![0], vec![1]));
        assert_eq!(changes.unchanged, [(1, 0)]);
    }

    fn files() -> impl Strategy<Value = Vec<Found>> {
        let attributes = (0..2_u64, 0..2_i64, 0..2_i64, 0..2_u64, 0..2_u32);
        prop::collection::btree_map("[ab]/?[ab.]?[ab]", attributes, 0..12).prop_map(|files| {
            files
                .into_iter()
                .filter_map(|(path, (len, mtime_ns, ctime_ns, inode, mode))| {
                    let path = RelPath::parse(path.as_bytes()).ok()?;
                    Some(Found { path, len, mtime_ns, ctime_ns, inode, mode })
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_file_is_in_exactly_one_list_and_in_the_right_one(before in files(), now in files()) {
            let changes = compare(&before, &now);
            let pairs = || changes.unchanged.iter().chain(&changes.touched_only);

            let new_places: Vec<usize> =
                changes.new_or_changed.iter().copied().chain(pairs().map(|pair| pair.1)).collect();
            prop_assert_eq!(new_places.len(), now.len());
            prop_assert_eq!(new_places.into_iter().collect::<BTreeSet<_>>(), (0..now.len()).collect());

            let old: BTreeMap<&RelPath, &Found> = before.iter().map(|it| (&it.path, it)).collect();
            let names: BTreeSet<&RelPath> = now.iter().map(|it| &it.path).collect();
            for &(at, place) in &changes.unchanged {
                prop_assert_eq!(&before[at], &now[place]);
            }
            for &(at, place) in &changes.touched_only {
                prop_assert_eq!(&before[at].path, &now[place].path);
                prop_assert_ne!(&before[at], &now[place]);
                prop_assert_eq!(before[at].mtime_ns, now[place].mtime_ns);
            }
            for &place in &changes.new_or_changed {
                prop_assert_ne!(old.get(&now[place].path), Some(&&now[place]));
            }
            let gone: Vec<usize> =
                (0..before.len()).filter(|&at| !names.contains(&before[at].path)).collect();
            prop_assert_eq!(&changes.gone, &gone);
        }
    }
}
