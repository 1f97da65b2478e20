//! A patch: a page as literal bytes and copies from what pages were before.
//!
//! A page of a B-tree changes in few places, but a cell put into it moves the pointers behind it, and a page that
//! SQLite defragments has its cells elsewhere. Pages that are split, and segments of a full-text index that are merged,
//! have their bytes from other pages. So copies come from any place of the *bases*: the earlier images of the pages of
//! one set, one after another. Patches are not compressed. The object around them is, and finds what they have in common.

use crate::error::{FormatError, malformed};
use crate::limits::MAX_BASES_LEN;
use crate::wire::{Reader, put_varint32};

/// Shortest copy from where the copy before would go on, or from the page's own place. A copy takes two or three bytes,
/// but shorter copies than these tear up what the compression would find (docs/decisions/0012).
const MIN_NEAR: usize = 8;
/// Shortest copy from elsewhere, which takes up to four bytes more.
const MIN_FAR: usize = 10;
/// From this length on no longer copy is looked for.
const LONG_ENOUGH: usize = 32;
/// After so many bytes in vain each step gets one byte longer: what is new is passed over quickly.
const PATIENCE: usize = 32;
/// Bytes that are looked up at once.
const WINDOW: usize = 6;
/// Every fourth place is in the table: nine bytes in common have one, and grow to both sides from there.
const STEP: usize = 4;
/// The table takes at most 4 MiB.
const MAX_TABLE_BITS: u32 = 20;
const NOWHERE: u32 = u32::MAX;

/// Makes the patches of one page set.
#[derive(Debug)]
pub struct PatchMaker<'a> {
    bases: &'a [u8],
    table: Table,
}

impl<'a> PatchMaker<'a> {
    /// Looks through the bases, which are together at most [`MAX_BASES_LEN`] long; else this panics.
    pub fn new(bases: &'a [u8]) -> Self {
        assert!(bases.len() <= MAX_BASES_LEN, "the caller cuts the set");
        Self { bases, table: Table::of(bases) }
    }

    /// Appends a patch that makes `image`. `place` is where its own base begins in the bases; a page that has none takes
    /// the place where it would be.
    ///
    /// `false`, and nothing is appended, when the patch would take more than three quarters of the page, which then
    /// better goes whole. Panics if `place` is past the end of the bases.
    pub fn make_patch(&self, place: usize, image: &[u8], out: &mut Vec<u8>) -> bool {
        assert!(place <= self.bases.len(), "a page's place is among the bases or right behind them");
        let start = out.len();
        let most = start + image.len() / 4 * 3;
        let mut encoder = Encoder {
            bases: self.bases,
            table: &self.table,
            place,
            image,
            out,
            literals_from: 0,
            distance: 0,
        };
        let mut at = 0;
        while at < image.len() && encoder.len_at(at) <= most {
            match encoder.best_copy(at) {
                Some(copy) => {
                    encoder.put_copy(&copy);
                    at = encoder.literals_from;
                }
                None => at += 1 + (at - encoder.literals_from) / PATIENCE,
            }
        }
        if encoder.literals_from < image.len() {
            encoder.put_literals(image.len());
        }
        let short_enough = out.len() <= most;
        if !short_enough {
            out.truncate(start);
        }
        short_enough
    }
}

/// Makes the image that a patch describes, from the bases and the place it was made with.
///
/// After an error nobody knows what the image is.
pub fn apply_patch(bases: &[u8], place: usize, patch: &[u8], image: &mut [u8]) -> Result<(), FormatError> {
    if patch.len() > image.len() {
        return Err(malformed("patch length"));
    }
    if place > bases.len() {
        return Err(malformed("patch bases"));
    }
    let page_size = image.len();
    let mut reader = Reader::new(patch);
    let mut rest = image;
    let mut distance = 0i64;
    while !rest.is_empty() {
        let literals = reader.varint32("patch literals")? as usize;
        let (to, after) = rest.split_at_mut_checked(literals).ok_or(malformed("patch literals"))?;
        to.copy_from_slice(reader.bytes(literals, "patch literals")?);
        rest = after;
        if rest.is_empty() {
            break;
        }
        let copy = reader.varint32("patch copy")?;
        if copy & 1 == 1 {
            distance += unzigzag(reader.varint32("patch copy")?);
        }
        let len = (copy >> 1) as usize;
        let from = (place + page_size - rest.len()) as i64 + distance;
        let from = usize::try_from(from).map_err(|_| malformed("patch copy"))?;
        let source = bases.get(from..).and_then(|tail| tail.get(..len)).filter(|source| !source.is_empty());
        let (to, after) = rest.split_at_mut_checked(len).ok_or(malformed("patch copy"))?;
        to.copy_from_slice(source.ok_or(malformed("patch copy"))?);
        rest = after;
    }
    reader.finish("bytes after the patch")
}

/// Small numbers of either sign as small numbers: 0, -1, 1, -2 … become 0, 1, 2, 3 …
fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

fn unzigzag(value: u32) -> i64 {
    i64::from(value >> 1) ^ -i64::from(value & 1)
}

#[derive(Debug, Clone, Copy)]
struct Copy {
    to: usize,
    from: usize,
    len: usize,
}

struct Encoder<'a> {
    bases: &'a [u8],
    table: &'a Table,
    place: usize,
    image: &'a [u8],
    out: &'a mut Vec<u8>,
    /// The image before this place is in `out`.
    literals_from: usize,
    /// Where in the bases the last copy came from, minus where in them it would have stayed in its place.
    distance: i32,
}

impl Encoder<'_> {
    /// Length of `out` if all up to `at` were literals, give or take the bytes for their number.
    fn len_at(&self, at: usize) -> usize {
        self.out.len() + at - self.literals_from
    }

    fn put_literals(&mut self, end: usize) {
        put_varint32(self.out, (end - self.literals_from) as u32);
        self.out.extend_from_slice(&self.image[self.literals_from..end]);
    }

    fn put_copy(&mut self, copy: &Copy) {
        self.put_literals(copy.to);
        let distance = copy.from as i32 - (self.place + copy.to) as i32;
        let moved = distance != self.distance;
        put_varint32(self.out, (copy.len as u32) << 1 | u32::from(moved));
        if moved {
            put_varint32(self.out, zigzag(distance - self.distance));
        }
        self.distance = distance;
        self.literals_from = copy.to + copy.len;
    }

    fn best_copy(&self, at: usize) -> Option<Copy> {
        let here = self.copy_from(at, self.place + at);
        if here.len >= LONG_ENOUGH {
            return Some(here);
        }
        let on =
            (self.place + at).checked_add_signed(self.distance as isize).map(|from| self.copy_from(at, from));
        let near = on.filter(|on| on.len > here.len).unwrap_or(here);
        if near.len >= LONG_ENOUGH {
            return Some(near);
        }
        let far = self.far_copy(at).filter(|far| far.len >= MIN_FAR && far.len > near.len + 3);
        far.or((near.len >= MIN_NEAR).then_some(near))
    }

    fn copy_from(&self, to: usize, from: usize) -> Copy {
        let len = self.bases.get(from..).map_or(0, |base| common_len(base, &self.image[to..]));
        Copy { to, from, len }
    }

    /// A copy that has `at` in it, and may begin in the literals before.
    fn far_copy(&self, at: usize) -> Option<Copy> {
        let from = self.table.find(*self.image[at..].first_chunk()?)?;
        let found = self.copy_from(at, from);
        if found.len < WINDOW {
            return None;
        }
        let before = self.bases[..from].iter().rev();
        let pending = self.image[self.literals_from..at].iter().rev();
        let earlier = before.zip(pending).take_while(|(base, image)| base == image).count();
        Some(Copy { to: at - earlier, from: from - earlier, len: found.len + earlier })
    }
}

/// Where some bytes are, as far as they were not overwritten by others with the same hash.
#[derive(Debug)]
struct Table {
    places: Vec<u32>,
    shift: u32,
}

impl Table {
    fn of(bytes: &[u8]) -> Self {
        let steps = bytes.len() / STEP;
        let bits = steps.next_power_of_two().ilog2().clamp(4, MAX_TABLE_BITS);
        let mut table = Self { places: vec![NOWHERE; 1 << bits], shift: 64 - bits };
        for place in (0..bytes.len()).step_by(STEP) {
            if let Some(&window) = bytes[place..].first_chunk() {
                let slot = table.slot(window);
                table.places[slot] = place as u32;
            }
        }
        table
    }

    fn find(&self, window: [u8; WINDOW]) -> Option<usize> {
        let place = self.places[self.slot(window)];
        (place != NOWHERE).then_some(place as usize)
    }

    /// Multiplicative hashing, with 2⁶⁴ divided by the golden ratio.
    fn slot(&self, window: [u8; WINDOW]) -> usize {
        let mut word = [0; 8];
        word[..WINDOW].copy_from_slice(&window);
        (u64::from_le_bytes(word).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }
}

/// How many bytes both begin with.
fn common_len(a: &[u8], b: &[u8]) -> usize {
    let (a_words, _) = a.as_chunks::<8>();
    let (b_words, _) = b.as_chunks::<8>();
    let words = a_words.iter().zip(b_words).take_while(|(a, b)| a == b).count() * 8;
    words + a[words..].iter().zip(&b[words..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    /// Bytes without repetitions, the same for the same seed.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn made(bases: &[u8], place: usize, image: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let made = PatchMaker::new(bases).make_patch(place, image, &mut out);
        assert_eq!(&out[..6], b"before");
        assert!(made || out.len() == 6, "nothing may be appended");
        made.then(|| out.split_off(6))
    }

    fn applied(bases: &[u8], place: usize, patch: &[u8], page_size: usize) -> Result<Vec<u8>, FormatError> {
        let mut image = vec![0xee; page_size];
        apply_patch(bases, place, patch, &mut image).map(|()| image)
    }

    /// The patch has this length, and gives the image.
    fn check(bases: &[u8], place: usize, image: &[u8], len: std::ops::RangeInclusive<usize>) {
        let patch = made(bases, place, image).unwrap();
        assert!(
            applied(bases, place, &patch, image.len()).unwrap() == image,
            "the patch gives something else"
        );
        assert!(len.contains(&patch.len()), "{} bytes", patch.len());
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let base = noise(1, 512);
        let image = [&base[..10], b"literal", &base[10..400], &base[420..509], b"the end", &[7; 9]].concat();
        let expected = [
            &[0, 10 << 1][..], // from the same place
            &[7],
            b"literal",
            &[0x8d, 0x06, 13],    // 390 bytes from 7 before: the change is -7
            &[0, 0xb3, 0x01, 40], // 89 from 13 behind: +20
            &[16],
            b"the end",
            &[7; 9],
        ];
        assert_eq!(made(&base, 0, &image).unwrap(), expected.concat());
    }

    #[test]
    fn a_page_that_did_not_change_is_one_copy() {
        check(&noise(1, 4096), 0, &noise(1, 4096), 3..=3);
        check(&[0; 512], 0, &[0; 512], 3..=3);
        check(&noise(1, 3 * 512), 512, &noise(1, 3 * 512)[512..1024], 3..=3);
    }

    #[test]
    fn a_counter_that_went_up_is_some_bytes() {
        let mut image = noise(1, 4096);
        image[27] ^= 1;
        image[95] ^= 1;
        check(&noise(1, 4096), 0, &image, 10..=10);
    }

    #[test]
    fn a_cell_put_into_a_page_costs_its_bytes_and_a_few() {
        let mut base = vec![0; 4096];
        base[..200].copy_from_slice(&noise(1, 200));
        base[2000..].copy_from_slice(&noise(2, 2096));
        let mut image = base.clone();
        image[3] ^= 1;
        image.copy_within(100..200, 102);
        image[100..102].copy_from_slice(b"at");
        image[1950..2000].copy_from_slice(&noise(3, 50));
        check(&base, 0, &image, 54..=80);
    }

    #[test]
    fn cells_that_moved_are_copied() {
        let base = noise(1, 4096);
        check(
            &base,
            0,
            &[&base[3000..], &base[..1000], &base[1500..3000], &base[1000..1500]].concat(),
            12..=30,
        );
    }

    #[test]
    fn what_comes_from_other_pages_is_copied() {
        let bases = noise(1, 8 * 4096);
        let image =
            [&bases[7 * 4096 + 50..][..2000], b"new", &bases[100..2000], &bases[5 * 4096..][..193]].concat();
        for place in [0, 4096, 3 * 4096, 7 * 4096] {
            check(&bases, place, &image, 18..=30);
        }
        check(&bases, 8 * 4096, &image, 18..=30); // a page that has no base and comes after all that have one
    }

    #[test]
    fn a_page_with_little_in_common_is_sent_whole() {
        for size in [512, 4096, 65_536] {
            let base = noise(1, size);
            assert_eq!(made(&base, 0, &noise(2, size)), None);
            let part = |len: usize| [&base[..len], &noise(2, size - len)].concat();
            assert_eq!(made(&base, 0, &part(size / 4)), None, "a little more than three quarters");
            assert!(made(&base, 0, &part(size / 4 + 10)).is_some());
        }
        assert_eq!(made(&[], 0, &noise(1, 512)), None, "there are no bases");
    }

    #[test]
    fn hostile_patches_are_refused() {
        let base = noise(1, 1024);
        let read = |patch: &[u8]| applied(&base, 512, patch, 512);
        let refused = |patch: &[u8], what| assert_eq!(read(patch).unwrap_err(), malformed(what));
        refused(&[], "patch literals");
        refused(&[0], "patch copy");
        refused(&[1], "patch literals");
        refused(&[1, b'x'], "patch copy");
        refused(&[0, 0], "patch copy"); // a copy of nothing
        refused(&[0, 1, 2], "patch copy");
        refused(&[0, 0x83, 0x08, 3], "patch copy"); // one byte more than a page
        refused(&[0, 0x80, 0x08, 0], "bytes after the patch");
        refused(&[0, 3, 0x81, 0x08], "patch copy"); // from before the bases: -513
        refused(&[0, 0x81, 8, 2], "patch copy"); // to beyond them
        let huge = [0, 3, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 3, 0xff, 0xff, 0xff, 0xff, 0x0f];
        refused(&huge, "patch copy");
        refused(&[0x80, 0, 0x80, 8], "patch literals"); // not the shortest varint
        refused(&[0xff, 0xff, 0xff, 0xff, 0x0f], "patch literals");
        refused(&[0; 513], "patch length");
        assert_eq!(read(&[0, 0x80, 0x08]).unwrap(), base[512..]);
        assert_eq!(read(&[0, 0x81, 0x08, 0xff, 0x07]).unwrap(), base[..512]); // from 512 before
        let past_the_end = applied(&base, 1536, &[0, 0x81, 0x08, 0x80, 0x10], 512);
        assert_eq!(past_the_end.unwrap_err(), malformed("patch bases"));
    }

    /// What apps do to pages, and worse.
    #[derive(Debug, Clone)]
    enum Edit {
        Put(Vec<u8>),
        Insert(Vec<u8>),
        Remove(usize),
        Move(usize, usize),
        Zero(usize),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..80);
        prop_oneof![
            bytes().prop_map(Edit::Put),
            bytes().prop_map(Edit::Insert),
            (1usize..200).prop_map(Edit::Remove),
            (0usize..512, 1usize..200).prop_map(|(to, len)| Edit::Move(to, len)),
            (1usize..200).prop_map(Edit::Zero),
        ]
    }

    fn edited(base: &[u8], edits: &[(prop::sample::Index, Edit)]) -> Vec<u8> {
        let mut image = base.to_vec();
        for (at, edit) in edits {
            let at = at.index(image.len());
            let end = |len: usize| (at + len).min(base.len());
            match edit {
                Edit::Put(bytes) => {
                    image[at..end(bytes.len())].copy_from_slice(&bytes[..end(bytes.len()) - at]);
                }
                Edit::Insert(bytes) => drop(image.splice(at..at, bytes.iter().copied())),
                Edit::Remove(len) => drop(image.splice(at..end(*len), [])),
                Edit::Move(to, len) => image.copy_within(at..end((*len).min(base.len() - to)), *to),
                Edit::Zero(len) => image[at..end(*len)].fill(0),
            }
            image.resize(base.len(), 0);
        }
        image
    }

    fn page() -> impl Strategy<Value = Vec<u8>> {
        (0u32..8, any::<u64>(), any::<bool>()).prop_map(|(power, seed, repeats)| {
            let size = 512usize << power;
            if repeats {
                noise(seed, 50).repeat(size.div_ceil(50))[..size].to_vec()
            } else {
                noise(seed, size)
            }
        })
    }

    proptest! {
        #[test]
        fn a_patch_gives_the_image(
            base in page(), edits in proptest::collection::vec((any::<prop::sample::Index>(), edit()), 0..12),
            others in 0usize..3, at in 0usize..4,
        ) {
            let mut bases = noise(2, others * base.len());
            let place = at.min(others) * base.len();
            drop(bases.splice(place..place, base.iter().copied()));
            let image = edited(&base, &edits);
            if let Some(patch) = made(&bases, place, &image) {
                prop_assert!(patch.len() <= base.len() / 4 * 3);
                prop_assert!(applied(&bases, place, &patch, base.len()).unwrap() == image);
            } else {
                prop_assert!(base.len() < 4096, "a dozen edits are less than a page");
            }
        }

        #[test]
        fn any_bytes_are_a_page_or_an_error(
            patch in proptest::collection::vec(any::<u8>(), 0..600), pages in 0usize..4, place in 0usize..4,
        ) {
            let _ = applied(&noise(1, pages * 512), place * 512, &patch, 512);
        }

        #[test]
        fn small_numbers_are_a_page_or_an_error(
            patch in proptest::collection::vec(0u8..4, 0..600), pages in 0usize..4, place in 0usize..4,
        ) {
            let _ = applied(&noise(1, pages * 512), place * 512, &patch, 512);
        }

        #[test]
        fn flipped_bits_never_panic_and_cut_patches_are_refused(
            at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>(),
        ) {
            let base = noise(1, 1024);
            let image = [&base[500..], b"new", &base[..497]].concat();
            let mut patch = made(&base, 0, &image).unwrap();
            let at = at.index(patch.len());
            if cut { patch.truncate(at) } else { patch[at] ^= 1 << bit }
            let result = applied(&base, 0, &patch, 1024);
            prop_assert!(!cut || result.is_err());
        }

        #[test]
        fn distances_of_either_sign_fit(value in -(MAX_BASES_LEN as i32 * 2)..MAX_BASES_LEN as i32 * 2) {
            prop_assert_eq!(unzigzag(zigzag(value)), i64::from(value));
        }
    }
}
