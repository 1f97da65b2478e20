//! A page set: what became of which pages of one database.
//!
//! Its *bases* are the images that some of its pages had before the set is applied, by ascending page number, one after
//! another. They are not in the set: whoever applies it has them. Patches copy from all of them.

use crate::error::{FormatError, malformed};
use crate::header::{CHECKSUM_LEN, checksum};
use crate::limits::{MAX_BASES_LEN, MAX_PAGES, MAX_PLAINTEXT_LEN, is_page_size};
use crate::page_set_builder::PageSetBuilder;
use crate::wire::{Reader, put_varint32, varint32_len};

pub(crate) const FIXED_LEN: usize = 12;
/// The most that one page takes in the index: its number, its operation, the length of a patch (at most 65 536).
pub(crate) const INDEX_ENTRY_MAX: usize = 5 + 1 + 3;
const OP_ZERO: u8 = 0;
const OP_FULL: u8 = 1;
const OP_PATCH: u8 = 2;
/// Added to the operation: the page's image before is one of the bases.
const OP_HAS_BASE: u8 = 4;

/// What to do with one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageOp<'a> {
    /// All bytes are zero.
    Zero,
    /// This is the page.
    Full(&'a [u8]),
    /// The page is what [`apply_patch`](crate::apply_patch) makes of the bases.
    Patch {
        /// Where in the bases the page's own base begins, or would.
        place: usize,
        /// The patch.
        patch: &'a [u8],
    },
}

/// Where in the buffer what belongs to a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Nowhere,
    Image { offset: u32 },
    Patch { offset: u32, len: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) pgno: u32,
    pub(crate) place: Place,
    pub(crate) has_base: bool,
    /// How many pages before it have a base.
    pub(crate) bases_before: u32,
}

/// Sorted, unique pages of one size with one operation each, over one buffer.
#[derive(Debug, Clone, Default)]
pub struct PageSet {
    pub(crate) page_size: u32,
    pub(crate) index: Vec<Indexed>,
    pub(crate) buffer: Vec<u8>,
    /// There if and only if a page has a base.
    pub(crate) bases_checksum: Option<[u8; CHECKSUM_LEN]>,
}

impl PageSet {
    /// Starts an empty set. Panics if SQLite has no pages of this size.
    pub fn builder(page_size: u32) -> PageSetBuilder {
        PageSetBuilder::new(page_size)
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

    /// Whether it has bases: then it says nothing without what was before. All sets with patches have some.
    pub fn has_bases(&self) -> bool {
        self.bases_checksum.is_some()
    }

    /// The pages whose images before are the bases, by ascending number.
    pub fn bases(&self) -> impl Iterator<Item = u32> {
        self.index.iter().filter(|page| page.has_base).map(|page| page.pgno)
    }

    /// Length of all bases; at most [`MAX_BASES_LEN`].
    pub fn bases_len(&self) -> usize {
        let count = self.index.last().map_or(0, |page| page.bases_before + u32::from(page.has_base));
        (count as usize).saturating_mul(self.page_size as usize)
    }

    /// The first bytes of the BLAKE3 of all bases, if there are any.
    pub fn bases_checksum(&self) -> Option<[u8; CHECKSUM_LEN]> {
        self.bases_checksum
    }

    /// Whether the set was made with these bases. A checksum against accidents: the state digest of the record proves
    /// what comes out.
    pub fn is_made_with(&self, bases: &[u8]) -> bool {
        bases.len() == self.bases_len() && self.bases_checksum.is_none_or(|sum| sum == checksum(bases))
    }

    fn op(&self, page: Indexed) -> PageOp<'_> {
        let at = |offset: u32, len: u32| &self.buffer[offset as usize..(offset + len) as usize];
        match page.place {
            Place::Nowhere => PageOp::Zero,
            Place::Image { offset } => PageOp::Full(at(offset, self.page_size)),
            Place::Patch { offset, len } => PageOp::Patch {
                place: page.bases_before as usize * self.page_size as usize,
                patch: at(offset, len),
            },
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

    fn head_len(&self) -> usize {
        FIXED_LEN + self.index_len() + self.bases_checksum.map_or(0, |sum| sum.len())
    }

    /// Length of the encoding.
    pub fn byte_len(&self) -> usize {
        let bytes = |page: &Indexed| match page.place {
            Place::Nowhere => 0,
            Place::Image { .. } => self.page_size as usize,
            Place::Patch { len, .. } => len as usize,
        };
        self.head_len() + self.index.iter().map(bytes).sum::<usize>()
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
            if let PageOp::Patch { patch, .. } = op {
                out.extend_from_slice(patch);
            }
        }
    }

    /// All but the images and the patches.
    fn encode_head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.head_len());
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.index_len() as u32).to_le_bytes());
        let mut before = 0;
        for page in &self.index {
            put_varint32(&mut out, page.pgno - before);
            before = page.pgno;
            let base = if page.has_base { OP_HAS_BASE } else { 0 };
            match page.place {
                Place::Nowhere => out.push(OP_ZERO + base),
                Place::Image { .. } => out.push(OP_FULL + base),
                Place::Patch { len, .. } => {
                    out.push(OP_PATCH + base);
                    put_varint32(&mut out, len);
                }
            }
        }
        out.extend(self.bases_checksum.into_iter().flatten());
        out
    }

    /// The set's only encoding, without a second copy of the pages where they lie in order already.
    pub fn into_encoding(mut self) -> Vec<u8> {
        let mut places = self.index.clone();
        let end = place_all(&mut places, self.page_size, 0, self.buffer.len());
        let in_order = end.is_ok_and(|end| end == self.buffer.len()) && places == self.index;
        if !in_order {
            return self.encode();
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.splice(0..0, self.encode_head());
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
        let index = decode_index(reader.bytes(index_len, "page index")?, count, page_size)?;
        let has_patches = index.iter().any(|page| matches!(page.place, Place::Patch { .. }));
        let mut set = Self { page_size, index, buffer: Vec::new(), bases_checksum: None };
        match set.bases_len() {
            0 if has_patches => return Err(malformed("patch without bases")),
            0 => {}
            1..=MAX_BASES_LEN => set.bases_checksum = Some(reader.array("checksum of the bases")?),
            _ => return Err(malformed("length of the bases")),
        }
        let start = bytes.len() - reader.remaining();
        let end = place_all(&mut set.index, page_size, start, bytes.len())?;
        if end != bytes.len() {
            return Err(malformed("bytes after the pages"));
        }
        set.buffer = bytes;
        Ok(set)
    }
}

/// Reads the index, without where things are in the buffer.
fn decode_index(bytes: &[u8], count: usize, page_size: u32) -> Result<Vec<Indexed>, FormatError> {
    let mut entries = Reader::new(bytes);
    if count > entries.remaining() / 2 {
        return Err(malformed("page count"));
    }
    let mut index = Vec::with_capacity(count);
    let (mut pgno, mut bases_before) = (0u32, 0);
    for _ in 0..count {
        let delta = entries.varint32("page number")?;
        pgno = pgno.checked_add(delta).filter(|_| delta > 0).ok_or(malformed("page number"))?;
        let operation = entries.u8("page operation")?;
        let has_base = operation & OP_HAS_BASE != 0;
        let place = match operation & !OP_HAS_BASE {
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
        index.push(Indexed { pgno, place, has_base, bases_before });
        bases_before += u32::from(has_base);
    }
    entries.finish("page index")?;
    Ok(index)
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
        self.page_size == other.page_size
            && self.bases_checksum == other.bases_checksum
            && self.bases().eq(other.bases())
            && self.iter().eq(other.iter())
    }
}

impl Eq for PageSet {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn set(pages: &[(u32, u8)]) -> PageSet {
        let mut builder = PageSet::builder(512);
        for (pgno, fill) in pages {
            builder.push(*pgno, &[*fill; 512], None);
        }
        builder.finish()
    }

    /// Pages and operations as they are in the index; images and patches are filled with the number of their page.
    fn any_set(pages: &[(u8, u8)]) -> Vec<u8> {
        let (mut index, mut images, mut patches) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = 0;
        for (pgno, op) in pages {
            index.extend([pgno - before, *op]);
            before = *pgno;
            match op & 3 {
                1 => images.extend([*pgno; 512]),
                2 => {
                    index.push(3);
                    patches.extend([*pgno; 3]);
                }
                _ => {}
            }
        }
        let checksum = if pages.iter().any(|(_, op)| op & 4 != 0) { &b"checksum"[..] } else { &[] };
        [&raw(512, pages.len() as u32, &index, 0)[..], checksum, &images, &patches].concat()
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
        let images = [[4; 512], [10; 512]].concat();
        let head = raw(512, 5, &[3, 6, 3, 1, 1, 5, 2, 3, 1, 5, 1, 4], 0);
        let parts = [&head[..], b"checksum", &images, &[3; 3], &[9; 3]].concat();
        assert_eq!(any_set(&[(3, 6), (4, 1), (9, 2), (10, 5), (11, 4)]), parts);
        let pages = PageSet::decode(parts.clone()).unwrap();
        assert_eq!((pages.encode(), pages.clone().into_encoding()), (parts.clone(), parts));
        assert_eq!(pages.bases().collect::<Vec<_>>(), [3, 10, 11]);
        assert_eq!(pages.get(3), Some(PageOp::Patch { place: 0, patch: &[3; 3] }));
        assert_eq!(pages.get(9), Some(PageOp::Patch { place: 512, patch: &[9; 3] }));
        assert_eq!(PageSet::default().encode(), [0; 12]);
        assert_eq!(PageSet::decode(vec![0; 12]).unwrap(), PageSet::default());
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
        check(raw(512, 1, &[1, 7], 520), "page operation");
        check(raw(512, 1, &[1, 8], 0), "page operation");
        check(raw(512, 1, &[1, 2, 0], 0), "patch");
        check(raw(512, 1, &[1, 2, 0x81, 4], 513), "patch");
        check(raw(512, 1, &[1, 2, 9], 9), "patch without bases");
        check(raw(512, 1, &[1, 6, 9], 8 + 8), "patch");
        check(raw(512, 1, &[1, 6, 9], 8 + 10), "bytes after the pages");
        check(raw(512, 1, &[1, 4], 7), "checksum of the bases");
        check(raw(512, 1, &[1, 4], 9), "bytes after the pages");
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

    #[test]
    fn bases_are_bounded() {
        let decode = |page_size: u32, count: u32| {
            let index = [1, 4].repeat(count as usize);
            PageSet::decode(raw(page_size, count, &index, 8)).map(|pages| pages.bases_len())
        };
        for page_size in [512, 4096, 65_536] {
            let most = MAX_BASES_LEN as u32 / page_size;
            assert_eq!(decode(page_size, most), Ok(MAX_BASES_LEN));
            assert_eq!(decode(page_size, most + 1), Err(malformed("length of the bases")));
        }
        assert_eq!(decode(65_536, MAX_PAGES as u32), Err(malformed("length of the bases")));
    }

    proptest! {
        #[test]
        fn sets_read_back(ops in proptest::collection::btree_map(1u8..128, 0u8..7, 0..40)) {
            let pages: Vec<_> = ops.into_iter().filter(|(_, op)| *op != 3).collect();
            let bytes = any_set(&pages);
            let has_bases = pages.iter().any(|(_, op)| op & 4 != 0);
            let fits = has_bases || pages.iter().all(|(_, op)| *op != 2);
            let read = if pages.is_empty() { Ok(PageSet::default()) } else { PageSet::decode(bytes.clone()) };
            prop_assert_eq!(read.is_ok(), fits);
            if let (Ok(read), false) = (read, pages.is_empty()) {
                prop_assert_eq!(read.has_bases(), has_bases);
                prop_assert_eq!(read.byte_len(), bytes.len());
                prop_assert_eq!(&read.encode(), &bytes);
                prop_assert_eq!(PageSet::decode(bytes).unwrap(), read);
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_read_back_to_themselves(
            index in proptest::collection::vec(0u8..8, 0..20), count in 0u32..10, images in 0usize..3, extra in 0usize..12,
        ) {
            let bytes = raw(if count == 0 { 0 } else { 512 }, count, &index, images * 512 + extra);
            if let Ok(pages) = PageSet::decode(bytes.clone()) {
                prop_assert_eq!(pages.encode(), bytes);
            }
        }

        #[test]
        fn cut_or_flipped_bytes_never_panic(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = any_set(&[(1, 1), (2, 0), (9, 6), (70, 5)]);
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
