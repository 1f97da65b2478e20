//! A page set: what became of which pages of one database.

use crate::error::{FormatError, malformed};
use crate::limits::{MAX_PAGES, MAX_PLAINTEXT_LEN, is_page_size};
use crate::wire::{Reader, put_varint32, varint32_len};

const FIXED_LEN: usize = 12;
const OP_ZERO: u8 = 0;
const OP_FULL: u8 = 1;
const OP_PATCH: u8 = 2;
/// The most that one page takes in the index: its number, its operation, the length of a patch (at most 65 536).
const INDEX_ENTRY_MAX: usize = 5 + 1 + 3;

/// What to do with one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageOp<'a> {
    /// All bytes are zero.
    Zero,
    /// This is the page.
    Full(&'a [u8]),
    /// The page at the entry's parent becomes this page by [`apply_patch`](crate::apply_patch).
    Patch(&'a [u8]),
}

/// Where in the buffer what belongs to a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Image { offset: u32 },
    Patch { offset: u32, len: u32 },
}

#[derive(Debug, Clone, Copy)]
struct Indexed {
    pgno: u32,
    place: Place,
}

/// Sorted, unique pages of one size with one operation each, over one buffer.
#[derive(Debug, Clone, Default)]
pub struct PageSet {
    page_size: u32,
    index: Vec<Indexed>,
    buffer: Vec<u8>,
}

impl PageSet {
    /// Starts an empty set. Panics if SQLite has no pages of this size.
    pub fn builder(page_size: u32) -> PageSetBuilder {
        assert!(is_page_size(page_size), "{page_size} is no page size");
        PageSetBuilder { page_size, index: Vec::new(), buffer: Vec::new() }
    }

    /// Size of the pages; 0 when the set is empty.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// How many pages it has.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The pages, by ascending number.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, PageOp<'_>)> + DoubleEndedIterator {
        self.index.iter().map(|page| (page.pgno, self.op(*page)))
    }

    /// What to do with page `pgno`.
    pub fn get(&self, pgno: u32) -> Option<PageOp<'_>> {
        let at = self.index.binary_search_by_key(&pgno, |page| page.pgno).ok()?;
        Some(self.op(self.index[at]))
    }

    /// Whether some of the pages are patches: then it says nothing without the parent.
    pub fn has_patches(&self) -> bool {
        self.index.iter().any(|page| matches!(page.place, Place::Patch { .. }))
    }

    fn op(&self, page: Indexed) -> PageOp<'_> {
        let at = |offset: u32, len: u32| &self.buffer[offset as usize..(offset + len) as usize];
        match page.place {
            Place::Nowhere => PageOp::Zero,
            Place::Image { offset } => PageOp::Full(at(offset, self.page_size)),
            Place::Patch { offset, len } => PageOp::Patch(at(offset, len)),
        }
    }

    fn index_len(&self) -> usize {
        let mut before = 0;
        let entry_len = |page: &Indexed| {
            let delta = page.pgno - before;
            before = page.pgno;
            let patch = match page.place {
                Place::Patch { len, .. } => varint32_len(len),
                _ => 0,
            };
            varint32_len(delta) + 1 + patch
        };
        self.index.iter().map(entry_len).sum()
    }

    /// Length of the encoding.
    pub fn byte_len(&self) -> usize {
        let bytes = |page: &Indexed| match page.place {
            Place::Nowhere => 0,
            Place::Image { .. } => self.page_size as usize,
            Place::Patch { len, .. } => len as usize,
        };
        FIXED_LEN + self.index_len() + self.index.iter().map(bytes).sum::<usize>()
    }

    /// The set's only encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.byte_len());
        self.encode_into(&mut out);
        out
    }

    /// Appends the encoding.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend(self.encode_head());
        // Images first, then patches: what is alike lies together for the compression.
        for (_, op) in self.iter() {
            if let PageOp::Full(image) = op {
                out.extend_from_slice(image);
            }
        }
        for (_, op) in self.iter() {
            if let PageOp::Patch(patch) = op {
                out.extend_from_slice(patch);
            }
        }
    }

    /// All but the images and the patches.
    fn encode_head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_LEN + self.index_len());
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.index_len() as u32).to_le_bytes());
        let mut before = 0;
        for page in &self.index {
            put_varint32(&mut out, page.pgno - before);
            before = page.pgno;
            match page.place {
                Place::Nowhere => out.push(OP_ZERO),
                Place::Image { .. } => out.push(OP_FULL),
                Place::Patch { len, .. } => {
                    out.push(OP_PATCH);
                    put_varint32(&mut out, len);
                }
            }
        }
        out
    }

    /// The set's only encoding, without a second copy of the pages where they lie in order already.
    pub fn into_encoding(self) -> Vec<u8> {
        let mut places = self.index.clone();
        let end = place_all(&mut places, self.page_size, 0, self.buffer.len());
        let in_order = end.is_ok_and(|end| end == self.buffer.len())
            && places.iter().zip(&self.index).all(|(wanted, there)| wanted.place == there.place);
        if !in_order {
            return self.encode();
        }
        let Self { page_size, index, mut buffer } = self;
        let head = Self { page_size, index, buffer: Vec::new() }.encode_head();
        buffer.splice(0..0, head);
        buffer
    }

    /// Reads a set. The bytes become its buffer: images are not copied.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, FormatError> {
        if bytes.len() > MAX_PLAINTEXT_LEN {
            return Err(malformed("length of the pages")); // also keeps every place in it within 32 bits
        }
        let mut reader = Reader::new(&bytes);
        let page_size = reader.u32("page size")?;
        let count = reader.u32_up_to(MAX_PAGES, "page count")?;
        let index_len = reader.u32_up_to(MAX_PLAINTEXT_LEN, "page index")?;
        let page_size_fits = if count == 0 { page_size == 0 } else { is_page_size(page_size) };
        if !page_size_fits {
            return Err(malformed("page size"));
        }
        let mut entries = Reader::new(reader.bytes(index_len, "page index")?);
        if count > entries.remaining() / 2 {
            return Err(malformed("page count"));
        }
        let mut index = Vec::with_capacity(count);
        let mut pgno = 0u32;
        for _ in 0..count {
            let delta = entries.varint32("page number")?;
            pgno = pgno.checked_add(delta).filter(|_| delta > 0).ok_or(malformed("page number"))?;
            let place = match entries.u8("page operation")? {
                OP_ZERO => Place::Nowhere,
                OP_FULL => Place::Image { offset: 0 },
                OP_PATCH => {
                    let len = entries.varint32("patch")?;
                    if !(1..=page_size).contains(&len) {
                        return Err(malformed("patch"));
                    }
                    Place::Patch { offset: 0, len }
                }
                _ => return Err(malformed("page operation")),
            };
            index.push(Indexed { pgno, place });
        }
        entries.finish("page index")?;
        let end = place_all(&mut index, page_size, FIXED_LEN + index_len, bytes.len())?;
        if end != bytes.len() {
            return Err(malformed("bytes after the pages"));
        }
        Ok(Self { page_size, index, buffer: bytes })
    }
}

/// Says where each image and patch begins, images first. Returns where they end.
fn place_all(
    index: &mut [Indexed],
    page_size: u32,
    start: usize,
    limit: usize,
) -> Result<usize, FormatError> {
    let mut at = start;
    let mut next = |len: u32, what| {
        let offset = at;
        at += len as usize;
        if at > limit { Err(malformed(what)) } else { u32::try_from(offset).map_err(|_| malformed(what)) }
    };
    for page in index.iter_mut() {
        if let Place::Image { offset } = &mut page.place {
            *offset = next(page_size, "page image")?;
        }
    }
    for page in index {
        if let Place::Patch { offset, len } = &mut page.place {
            *offset = next(*len, "patch")?;
        }
    }
    Ok(at)
}

impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        self.page_size == other.page_size && self.iter().eq(other.iter())
    }
}

impl Eq for PageSet {}

/// Gathers pages in any order; of several with one number the last counts.
#[derive(Debug, Clone)]
pub struct PageSetBuilder {
    page_size: u32,
    index: Vec<Indexed>,
    buffer: Vec<u8>,
}

impl PageSetBuilder {
    /// Adds a page, as [`PageOp::Zero`] when it is all zeros. Panics if `image` is no page of this size or `pgno` is 0.
    pub fn push(&mut self, pgno: u32, image: &[u8]) {
        assert_eq!(image.len(), self.page_size as usize, "an image is one page long");
        if image.iter().all(|byte| *byte == 0) {
            self.push_zero(pgno);
            return;
        }
        assert!(pgno > 0, "pages are numbered from 1");
        let offset = self.keep(image);
        self.index.push(Indexed { pgno, place: Place::Image { offset } });
    }

    /// Adds a page as a patch of what it is at the parent. Panics if `pgno` is 0, or the patch is empty or longer than a
    /// page.
    pub fn push_patch(&mut self, pgno: u32, patch: &[u8]) {
        assert!(pgno > 0, "pages are numbered from 1");
        assert!((1..=self.page_size as usize).contains(&patch.len()), "a longer patch is no gain");
        let (offset, len) = (self.keep(patch), patch.len() as u32);
        self.index.push(Indexed { pgno, place: Place::Patch { offset, len } });
    }

    fn keep(&mut self, bytes: &[u8]) -> u32 {
        let offset = u32::try_from(self.buffer.len()).expect("a page set is far shorter than 4 GiB");
        self.buffer.extend_from_slice(bytes);
        offset
    }

    /// Adds a page of zeros. Panics if `pgno` is 0.
    pub fn push_zero(&mut self, pgno: u32) {
        assert!(pgno > 0, "pages are numbered from 1");
        self.index.push(Indexed { pgno, place: Place::Nowhere });
    }

    /// How many pages were added, repeated ones counted each time.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The most that the finished set can take when encoded.
    pub fn byte_len(&self) -> usize {
        FIXED_LEN + self.index.len() * INDEX_ENTRY_MAX + self.buffer.len()
    }

    /// Whether one more page could take the set past a limit of the format.
    pub fn is_full(&self) -> bool {
        self.index.len() >= MAX_PAGES
            || self.byte_len() + INDEX_ENTRY_MAX + self.page_size as usize > MAX_PLAINTEXT_LEN
    }

    /// The sorted set. Panics if pages were added to a set that [is full](Self::is_full).
    pub fn finish(mut self) -> PageSet {
        assert!(
            self.index.len() <= MAX_PAGES && self.byte_len() <= MAX_PLAINTEXT_LEN,
            "the caller asks is_full() before it pushes"
        );
        self.index.reverse(); // a stable sort then puts the last of equals first, where dedup keeps it
        self.index.sort_by_key(|page| page.pgno);
        self.index.dedup_by_key(|page| page.pgno);
        let page_size = if self.index.is_empty() { 0 } else { self.page_size };
        PageSet { page_size, index: self.index, buffer: self.buffer }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    /// Pages filled with a byte; from 200 on it is a patch of three bytes.
    fn set(pages: &[(u32, u8)]) -> PageSet {
        let mut builder = PageSet::builder(512);
        for (pgno, fill) in pages {
            match fill {
                200.. => builder.push_patch(*pgno, &[*fill; 3]),
                _ => builder.push(*pgno, &[*fill; 512]),
            }
        }
        builder.finish()
    }

    fn raw(page_size: u32, count: u32, index: &[u8], images: usize) -> Vec<u8> {
        let mut out =
            [page_size.to_le_bytes(), count.to_le_bytes(), (index.len() as u32).to_le_bytes()].concat();
        out.extend_from_slice(index);
        out.resize(out.len() + images, 7);
        out
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let expected = raw(512, 3, &[3, 1, 1, 0, 0xc8, 1, 1], 1024);
        assert_eq!(set(&[(3, 7), (4, 0), (204, 7)]).encode(), expected);
        let images = [[1; 512], [2; 512]].concat();
        let parts = [&raw(512, 4, &[3, 2, 3, 1, 1, 5, 2, 3, 1, 1], 0)[..], &images, &[200; 3], &[201; 3]];
        assert_eq!(set(&[(3, 200), (4, 1), (9, 201), (10, 2)]).encode(), parts.concat());
        assert_eq!(PageSet::default().encode(), [0; 12]);
        assert_eq!(PageSet::decode(vec![0; 12]).unwrap(), PageSet::default());
    }

    #[test]
    fn pages_come_in_any_order_and_the_last_one_counts() {
        let pages = set(&[(9, 1), (2, 2), (9, 3), (5, 5), (5, 0)]);
        let seen: Vec<_> =
            pages.iter().map(|(pgno, op)| (pgno, matches!(op, PageOp::Full([3, ..])))).collect();
        assert_eq!(seen, [(2, false), (5, false), (9, true)]);
        assert_eq!(pages.get(5), Some(PageOp::Zero));
        assert_eq!(pages.get(6), None);
        assert_eq!(PageSet::decode(pages.encode()).unwrap(), pages);
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let check = |bytes: Vec<u8>, what| assert_eq!(PageSet::decode(bytes).unwrap_err(), malformed(what));
        check(raw(512, 0, &[], 0), "page size");
        check(raw(513, 1, &[1, 0], 0), "page size");
        check(raw(0, 1, &[1, 0], 0), "page size");
        check(raw(131_072, 1, &[1, 0], 0), "page size");
        check(raw(512, 1, &[0, 0], 0), "page number");
        check(raw(512, 2, &[1, 0, 0, 0], 0), "page number");
        check(raw(512, 1, &[0x81, 0, 0], 0), "page number");
        check(raw(512, 2, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1, 0], 0), "page number");
        check(raw(512, 1, &[1, 3], 512), "page operation");
        check(raw(512, 1, &[1, 2, 0], 0), "patch");
        check(raw(512, 1, &[1, 2, 0x81, 4], 513), "patch");
        check(raw(512, 1, &[1, 2, 9], 8), "patch");
        check(raw(512, 1, &[1, 2, 9], 10), "bytes after the pages");
        check(raw(512, 1, &[1, 2], 0), "patch");
        check(raw(512, 1, &[1, 1], 511), "page image");
        check(raw(512, 1, &[1, 1], 513), "bytes after the pages");
        check(raw(512, 1, &[1, 0, 0], 0), "page index");
        check(raw(512, 2, &[1, 0], 0), "page count");
        check(raw(512, MAX_PAGES as u32 + 1, &[1, 0], 0), "page count");
        check(raw(512, u32::MAX, &[1, 0], 0), "page count");
        check(vec![0; MAX_PLAINTEXT_LEN + 1], "length of the pages");
    }

    /// Nothing is allocated for what is not there; a count past the limit is refused even where there is enough.
    #[test]
    fn counts_are_checked_before_they_are_believed() {
        let decode = |count: usize, index_len: usize| {
            let index: Vec<u8> = [1, 0].into_iter().cycle().take(index_len).collect();
            PageSet::decode(raw(512, count as u32, &index, 0)).map(|pages| pages.len())
        };
        assert_eq!(decode(2, 3), Err(malformed("page count")));
        assert_eq!(decode(MAX_PAGES, 2 * MAX_PAGES - 1), Err(malformed("page count")));
        assert_eq!(decode(MAX_PAGES, 2 * MAX_PAGES), Ok(MAX_PAGES));
        assert_eq!(decode(MAX_PAGES + 1, 2 * MAX_PAGES + 2), Err(malformed("page count")));
    }

    proptest! {
        #[test]
        fn sets_read_back(pages in proptest::collection::vec((1u32.., prop_oneof![0u8..3, 200u8..202]), 0..40)) {
            let pages = set(&pages);
            let bytes = pages.encode();
            prop_assert_eq!(bytes.len(), pages.byte_len());
            prop_assert_eq!(&pages.clone().into_encoding(), &bytes);
            prop_assert_eq!(PageSet::decode(bytes).unwrap(), pages);
        }

        #[test]
        fn any_bytes_are_an_error_or_read_back_to_themselves(
            index in proptest::collection::vec(0u8..4, 0..20), count in 0u32..10, images in 0usize..3, extra in 0usize..2,
        ) {
            let bytes = raw(if count == 0 { 0 } else { 512 }, count, &index, images * 512 + extra);
            if let Ok(pages) = PageSet::decode(bytes.clone()) {
                prop_assert_eq!(pages.encode(), bytes);
            }
        }

        #[test]
        fn cut_or_flipped_bytes_never_panic(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = set(&[(1, 1), (2, 0), (9, 200), (700, 3)]).encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let result = PageSet::decode(bytes.clone());
            prop_assert!(!cut || result.is_err());
            if let Ok(pages) = result {
                prop_assert_eq!(pages.encode(), bytes);
            }
        }
    }
}
