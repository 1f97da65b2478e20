//! Gathers the pages of a set, and makes patches of those whose bases are at hand.

use crate::header::checksum;
use crate::limits::{MAX_BASES_LEN, MAX_PAGES, MAX_PLAINTEXT_LEN, is_page_size};
use crate::pages::{FIXED_LEN, INDEX_ENTRY_MAX, Indexed, PageSet, Place};
use crate::patch::PatchMaker;

/// After so many pages in vain no more patches are tried: the database is encrypted.
const TRIES: usize = 32;

/// Gathers pages in any order; of several with one number the last counts.
///
/// Gathering copies bytes, and no more. [`finish`](Self::finish) makes the patches: it may well run on another thread.
#[derive(Debug, Clone)]
pub struct PageSetBuilder {
    page_size: u32,
    pages: Vec<Pushed>,
    images: Vec<u8>,
    bases: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Pushed {
    pgno: u32,
    /// Where in the images it is; nowhere when it is all zeros.
    image: Option<u32>,
    /// Where in the bases its own is.
    base: Option<u32>,
}

impl PageSetBuilder {
    pub(crate) fn new(page_size: u32) -> Self {
        assert!(is_page_size(page_size), "{page_size} is no page size");
        Self { page_size, pages: Vec::new(), images: Vec::new(), bases: Vec::new() }
    }

    /// Adds a page. `base` is its image before the set is applied, where it is at hand; if the page is added again, that
    /// of any time will do.
    ///
    /// Panics if `image` or `base` is no page of this size or `pgno` is 0.
    pub fn push(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) {
        assert!(pgno > 0, "pages are numbered from 1");
        let page_len = self.page_size as usize;
        assert!(
            image.len() == page_len && base.is_none_or(|base| base.len() == page_len),
            "one page is one page long"
        );
        let is_zero = image.iter().all(|byte| *byte == 0);
        let image = (!is_zero).then(|| append(&mut self.images, image));
        let base = base.map(|base| append(&mut self.bases, base));
        self.pages.push(Pushed { pgno, image, base });
    }

    /// Drops the pages beyond the end of a database.
    pub fn truncate(&mut self, page_count: u32) {
        self.pages.retain(|page| page.pgno <= page_count);
    }

    /// How many pages were added, repeated ones counted each time.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Bytes of all images that were added, but those of zeros.
    pub fn images_len(&self) -> usize {
        self.images.len()
    }

    /// Bytes of all bases that were added.
    pub fn bases_len(&self) -> usize {
        self.bases.len()
    }

    /// The most that the finished set can take when encoded.
    fn byte_len_max(&self) -> usize {
        FIXED_LEN + self.pages.len() * INDEX_ENTRY_MAX + checksum(&[]).len() + self.images.len()
    }

    /// Whether one more page could take the set past a limit of the format.
    pub fn is_full(&self) -> bool {
        let page_len = self.page_size as usize;
        self.pages.len() >= MAX_PAGES
            || self.byte_len_max() + INDEX_ENTRY_MAX + page_len > MAX_PLAINTEXT_LEN
            || self.bases.len() + page_len > MAX_BASES_LEN
    }

    /// The sorted set, with a patch in place of each image that is made of the bases for the most part. Without such
    /// images it has no bases either, and the images are not copied.
    ///
    /// Panics if pages were added to a set that [is full](Self::is_full).
    pub fn finish(mut self) -> PageSet {
        assert!(
            self.pages.len() <= MAX_PAGES
                && self.byte_len_max() <= MAX_PLAINTEXT_LEN
                && self.bases.len() <= MAX_BASES_LEN,
            "the caller asks is_full() before it pushes"
        );
        self.sort();
        let bases = self.take_bases();
        let mut patches = Vec::new();
        let places = self.make_patches(&bases, &mut patches);
        let page_size = if self.pages.is_empty() { 0 } else { self.page_size };
        if patches.is_empty() {
            self.pages.iter_mut().for_each(|page| page.base = None);
            let index = self.index(places);
            return PageSet { page_size, index, buffer: self.images, bases_checksum: None };
        }
        let bases_checksum = Some(checksum(&bases));
        drop(bases);
        let (places, buffer) = self.pack(places, &patches);
        PageSet { page_size, index: self.index(places), buffer, bases_checksum }
    }

    /// One push for each page, by ascending number. Every base that came with a page is the same.
    fn sort(&mut self) {
        self.pages.reverse(); // a stable sort then puts the last of equals first, where dedup keeps it
        self.pages.sort_by_key(|page| page.pgno);
        self.pages.dedup_by(|earlier, last| {
            let same = earlier.pgno == last.pgno;
            if same {
                last.base = last.base.or(earlier.base);
            }
            same
        });
    }

    /// The bases in the order of the pages.
    fn take_bases(&mut self) -> Vec<u8> {
        let page_len = self.page_size as usize;
        let bases = std::mem::take(&mut self.bases);
        let wanted: Vec<usize> =
            self.pages.iter().filter_map(|page| page.base).map(|at| at as usize).collect();
        let in_order = wanted.iter().copied().eq((0..bases.len()).step_by(page_len));
        if in_order {
            return bases;
        }
        let mut sorted = Vec::with_capacity(wanted.len() * page_len);
        for at in wanted {
            sorted.extend_from_slice(&bases[at..at + page_len]);
        }
        sorted
    }

    /// For each page its place among the images, or among the patches, which are appended.
    fn make_patches(&self, bases: &[u8], patches: &mut Vec<u8>) -> Vec<Place> {
        let page_len = self.page_size as usize;
        let maker = (!bases.is_empty()).then(|| PatchMaker::new(bases));
        let (mut place, mut tries) = (0, 0);
        let place_of = |page: &Pushed| {
            let own = place;
            place += if page.base.is_some() { page_len } else { 0 };
            let Some(at) = page.image else { return Place::Nowhere };
            let Some(maker) = maker.as_ref().filter(|_| tries < TRIES || !patches.is_empty()) else {
                return Place::Image { offset: at };
            };
            tries += 1;
            let (offset, image) = (patches.len(), &self.images[at as usize..][..page_len]);
            if maker.make_patch(own, image, patches) {
                Place::Patch { offset: offset as u32, len: (patches.len() - offset) as u32 }
            } else {
                Place::Image { offset: at }
            }
        };
        self.pages.iter().map(place_of).collect()
    }

    /// The images that are left, in the order of the pages, and the patches behind them; and where each is.
    fn pack(&self, mut places: Vec<Place>, patches: &[u8]) -> (Vec<Place>, Vec<u8>) {
        let page_len = self.page_size as usize;
        let whole = places.iter().filter(|place| matches!(place, Place::Image { .. })).count();
        let images_len = whole * page_len;
        let mut buffer = Vec::with_capacity(images_len + patches.len());
        for place in &mut places {
            match place {
                Place::Nowhere => {}
                Place::Image { offset } => {
                    *offset = append(&mut buffer, &self.images[*offset as usize..][..page_len]);
                }
                Place::Patch { offset, .. } => *offset += images_len as u32,
            }
        }
        buffer.extend_from_slice(patches);
        (places, buffer)
    }

    fn index(&self, places: Vec<Place>) -> Vec<Indexed> {
        let mut bases_before = 0;
        let indexed = |(page, place): (&Pushed, Place)| {
            let has_base = page.base.is_some();
            let before = bases_before;
            bases_before += u32::from(has_base);
            Indexed { pgno: page.pgno, place, has_base, bases_before: before }
        };
        self.pages.iter().zip(places).map(indexed).collect()
    }
}

/// Appends, and says where.
fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> u32 {
    let at = u32::try_from(buffer.len()).expect("a page set is far shorter than 4 GiB");
    buffer.extend_from_slice(bytes);
    at
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::pages::PageOp;
    use crate::patch::apply_patch;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Bytes without repetitions, the same for the same seed.
    fn noise(seed: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A page with one byte changed.
    fn touched(base: &[u8], at: usize) -> Vec<u8> {
        let mut image = base.to_vec();
        image[at] ^= 1;
        image
    }

    type Images = BTreeMap<u32, Vec<u8>>;

    /// What the set makes of a database.
    fn applied(set: &PageSet, before: &Images) -> Images {
        let bases: Vec<u8> = set.bases().flat_map(|pgno| before[&pgno].clone()).collect();
        assert!(set.is_made_with(&bases));
        let mut after = before.clone();
        for (pgno, op) in set.iter() {
            let mut image = vec![0; set.page_size() as usize];
            match op {
                PageOp::Zero => {}
                PageOp::Full(whole) => image.copy_from_slice(whole),
                PageOp::Patch { place, patch } => apply_patch(&bases, place, patch, &mut image).unwrap(),
            }
            after.insert(pgno, image);
        }
        after
    }

    fn ops(set: &PageSet) -> Vec<(u32, char)> {
        let op = |op| match op {
            PageOp::Zero => 'z',
            PageOp::Full(_) => 'f',
            PageOp::Patch { .. } => 'p',
        };
        set.iter().map(|(pgno, page)| (pgno, op(page))).collect()
    }

    #[test]
    fn pages_come_in_any_order_and_the_last_one_counts() {
        let mut builder = PageSet::builder(512);
        for (pgno, fill) in [(9, 1), (2, 2), (9, 3), (5, 5), (5, 0)] {
            builder.push(pgno, &[fill; 512], None);
        }
        assert_eq!((builder.len(), builder.images_len()), (5, 4 * 512));
        let pages = builder.finish();
        assert_eq!(ops(&pages), [(2, 'f'), (5, 'z'), (9, 'f')]);
        assert_eq!(pages.get(9), Some(PageOp::Full(&[3; 512])));
        assert_eq!(pages.get(6), None);
        assert!(!pages.has_bases());
        assert_eq!(PageSet::decode(pages.encode()).unwrap(), pages);
    }

    #[test]
    fn a_page_is_a_patch_with_its_base_and_whole_without() {
        let before: Images = (1..=3).map(|pgno| (pgno, noise(pgno, 512))).collect();
        let mut builder = PageSet::builder(512);
        builder.push(3, &touched(&before[&3], 5), Some(&before[&3]));
        builder.push(1, &noise(9, 512), Some(&before[&1]));
        builder.push(2, &[0; 512], Some(&before[&2]));
        // New pages: one has what another page had, one has nothing in common.
        builder.push(7, &touched(&before[&1], 7), None);
        builder.push(8, &noise(8, 512), None);
        let set = builder.finish();
        assert_eq!(ops(&set), [(1, 'f'), (2, 'z'), (3, 'p'), (7, 'p'), (8, 'f')]);
        assert_eq!(set.bases().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(set.bases_len(), 3 * 512);
        let after = applied(&set, &before);
        assert_eq!(after[&3], touched(&before[&3], 5));
        assert_eq!(after[&7], touched(&before[&1], 7));
        assert!(set.byte_len() < 2 * 512 + 100);
    }

    #[test]
    fn other_bases_are_noticed() {
        let base = noise(1, 512);
        let mut builder = PageSet::builder(512);
        builder.push(1, &touched(&base, 1), Some(&base));
        let set = builder.finish();
        assert!(set.is_made_with(&base));
        assert!(!set.is_made_with(&touched(&base, 511)));
        assert!(!set.is_made_with(&base[..511]));
        assert!(!set.is_made_with(&[]));
        assert!(PageSet::default().is_made_with(&[]));
    }

    #[test]
    fn a_page_that_comes_again_keeps_its_base() {
        let base = noise(1, 512);
        let before = Images::from([(4, base.clone())]);
        for bases in [[Some(&base), None], [None, Some(&base)], [Some(&base), Some(&base)]] {
            let mut builder = PageSet::builder(512);
            builder.push(4, &noise(2, 512), bases[0].map(Vec::as_slice));
            builder.push(4, &touched(&base, 3), bases[1].map(Vec::as_slice));
            let set = builder.finish();
            assert_eq!(ops(&set), [(4, 'p')]);
            assert_eq!(set.bases().collect::<Vec<_>>(), [4]);
            assert_eq!(applied(&set, &before)[&4], touched(&base, 3));
        }
    }

    #[test]
    fn bases_of_no_use_are_left_out() {
        let mut builder = PageSet::builder(512);
        for pgno in 1..100 {
            builder.push(pgno, &noise(1000 + pgno, 512), Some(&noise(pgno, 512)));
        }
        let mut whole = PageSet::builder(512);
        (1..100).for_each(|pgno| whole.push(pgno, &noise(1000 + pgno, 512), None));
        assert_eq!(builder.finish(), whole.finish());
    }

    /// The 33rd could be a patch, and is not tried.
    #[test]
    fn what_seems_encrypted_is_not_tried_for_long() {
        let kinds = |in_vain: u32| {
            let mut builder = PageSet::builder(512);
            (1..=in_vain)
                .for_each(|pgno| builder.push(pgno, &noise(1000 + pgno, 512), Some(&noise(pgno, 512))));
            builder.push(200, &touched(&noise(1, 512), 9), Some(&noise(1, 512)));
            ops(&builder.finish()).last().copied()
        };
        assert_eq!(kinds(TRIES as u32 - 1), Some((200, 'p')));
        assert_eq!(kinds(TRIES as u32), Some((200, 'f')));
    }

    #[test]
    fn pages_beyond_the_end_are_dropped() {
        let base = noise(1, 512);
        let mut builder = PageSet::builder(512);
        for pgno in [9, 4, 5] {
            builder.push(pgno, &touched(&base, pgno as usize), Some(&base));
        }
        builder.truncate(5);
        let set = builder.finish();
        assert_eq!(ops(&set), [(4, 'p'), (5, 'p')]);
        assert_eq!(set.bases_len(), 1024);
        let mut builder = PageSet::builder(512);
        builder.push(2, &base, None);
        builder.truncate(1);
        assert_eq!(builder.finish(), PageSet::default());
    }

    #[test]
    fn a_set_with_all_the_bases_there_may_be_is_full() {
        let page = vec![7; 65_536];
        let mut builder = PageSet::builder(65_536);
        while !builder.is_full() {
            builder.push(builder.len() as u32 + 1, &page, Some(&page));
        }
        assert_eq!(builder.bases_len(), MAX_BASES_LEN);
    }

    #[test]
    fn it_can_be_finished_on_another_thread() {
        fn check<T: Send>(_: &T) {}
        check(&PageSet::builder(512));
    }

    proptest! {
        /// Pages that are new, zero, edited, copies of others, repeated, with and without bases.
        #[test]
        fn sets_give_the_pages_they_were_made_of(
            pushes in proptest::collection::vec((1u32..30, 0u8..4, any::<bool>(), 0usize..512), 0..60),
        ) {
            let before: Images = (1..20).map(|pgno| (pgno, noise(pgno, 512))).collect();
            let mut after = before.clone();
            let mut builder = PageSet::builder(512);
            for (pgno, kind, with_base, at) in pushes {
                let image = match kind {
                    0 => vec![0; 512],
                    1 => noise(1000 + pgno, 512),
                    2 => touched(before.get(&pgno).unwrap_or(&before[&1]), at),
                    _ => [&before[&3][at..], &before[&5][..at]].concat(),
                };
                builder.push(pgno, &image, before.get(&pgno).filter(|_| with_base).map(Vec::as_slice));
                after.insert(pgno, image);
            }
            let set = builder.finish();
            let bytes = set.encode();
            prop_assert_eq!(bytes.len(), set.byte_len());
            prop_assert_eq!(&set.clone().into_encoding(), &bytes);
            let set = PageSet::decode(bytes).unwrap();
            prop_assert_eq!(applied(&set, &before), after);
        }
    }
}
