//! A patch: a page as literal bytes and copies from an earlier image of it.
//!
//! A page of a B-tree changes in few places, but a cell put into it moves the pointers behind it, and a page that
//! SQLite defragments has its cells elsewhere: so copies may come from anywhere in the base. Patches are not
//! compressed. The object around them is, and finds what the patches of one capture have in common.

use crate::error::{FormatError, malformed};
use crate::limits::MAX_PAGE_SIZE;
use crate::wire::{Reader, put_varint32};

/// Shortest copy from where the copy before would go on, or from the image's own place in the base. A copy takes two
/// or three bytes, but shorter copies than these tear up what the compression would find (docs/decisions/0012).
const MIN_NEAR: usize = 8;
/// Shortest copy from elsewhere, which takes up to three bytes more.
const MIN_FAR: usize = 10;
/// From this length on no longer copy is looked for.
const LONG_ENOUGH: usize = 32;
/// Bytes that are looked up at once.
const WINDOW: usize = 4;
/// Each fourth place of the base is in the table: whatever has seven bytes in common is found, and grows to both sides.
const TABLE_STEP: usize = 4;
const TABLE_BITS: u32 = 12;
/// No place in the table has this number: it is no multiple of four.
const NOWHERE: u16 = u16::MAX;

/// Appends a patch that makes `image` of `base`.
///
/// `false`, and nothing is appended, when the whole page would do as well: the patch would take more than three
/// quarters of it, or the base has another size.
pub fn make_patch(base: &[u8], image: &[u8], out: &mut Vec<u8>) -> bool {
    if base.len() != image.len() || image.len() > MAX_PAGE_SIZE as usize {
        return false;
    }
    let start = out.len();
    let most = start + image.len() / 4 * 3;
    let mut encoder = Encoder { base, image, out, table: None, literals_from: 0, shift: 0 };
    let mut at = 0;
    while at < image.len() && encoder.len_at(at) <= most {
        match encoder.best_copy(at) {
            Some(copy) => {
                encoder.put_copy(&copy);
                at = encoder.literals_from;
            }
            None => at += 1,
        }
    }
    if encoder.len_at(image.len()) > most {
        out.truncate(start);
        return false;
    }
    if encoder.literals_from < image.len() {
        encoder.put_literals(image.len());
    }
    true
}

/// Makes the image that a patch describes, from the base it was made with.
///
/// After an error the image is neither. Panics if base and image differ in length: both are pages of one database.
pub fn apply_patch(base: &[u8], patch: &[u8], image: &mut [u8]) -> Result<(), FormatError> {
    assert_eq!(base.len(), image.len(), "base and image are pages of one size");
    if patch.len() > image.len() {
        return Err(malformed("patch length"));
    }
    let mut reader = Reader::new(patch);
    let mut rest = image;
    let mut shift = 0i64;
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
            shift += unzigzag(reader.varint32("patch copy")?);
        }
        let len = (copy >> 1) as usize;
        let from = (base.len() - rest.len()) as i64 + shift;
        let from = usize::try_from(from).map_err(|_| malformed("patch copy"))?;
        let source = base.get(from..).and_then(|tail| tail.get(..len)).filter(|source| !source.is_empty());
        let source = source.ok_or(malformed("patch copy"))?;
        let (to, after) = rest.split_at_mut_checked(len).ok_or(malformed("patch copy"))?;
        to.copy_from_slice(source);
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
    base: &'a [u8],
    image: &'a [u8],
    out: &'a mut Vec<u8>,
    /// Made when first needed: most changes need it, but not the page whose counter went up.
    table: Option<[u16; 1 << TABLE_BITS]>,
    /// The image before this place is in `out`.
    literals_from: usize,
    /// From where the last copy came, minus where it went.
    shift: i32,
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
        let shift = copy.from as i32 - copy.to as i32;
        let moved = shift != self.shift;
        put_varint32(self.out, (copy.len as u32) << 1 | u32::from(moved));
        if moved {
            put_varint32(self.out, zigzag(shift - self.shift));
        }
        self.shift = shift;
        self.literals_from = copy.to + copy.len;
    }

    fn best_copy(&mut self, at: usize) -> Option<Copy> {
        let here = self.copy_from(at, at);
        if here.len >= LONG_ENOUGH {
            return Some(here);
        }
        let on = at.checked_add_signed(self.shift as isize).map(|from| self.copy_from(at, from));
        let near = on.filter(|on| on.len > here.len).unwrap_or(here);
        if near.len >= LONG_ENOUGH {
            return Some(near);
        }
        let far = self.far_copy(at).filter(|far| far.len >= MIN_FAR && far.len > near.len + 2);
        far.or((near.len >= MIN_NEAR).then_some(near))
    }

    fn copy_from(&self, to: usize, from: usize) -> Copy {
        let len = self.base.get(from..).map_or(0, |base| common_len(base, &self.image[to..]));
        Copy { to, from, len }
    }

    /// A copy that has `at` in it, and may begin in the literals before.
    fn far_copy(&mut self, at: usize) -> Option<Copy> {
        let window = self.image.get(at..at + WINDOW)?;
        let table = self.table.get_or_insert_with(|| table_of(self.base));
        let from = table[slot(window)];
        if from == NOWHERE {
            return None;
        }
        let found = self.copy_from(at, usize::from(from));
        if found.len < WINDOW {
            return None;
        }
        let before = self.base[..found.from].iter().rev();
        let pending = self.image[self.literals_from..at].iter().rev();
        let earlier = before.zip(pending).take_while(|(base, image)| base == image).count();
        Some(Copy { to: at - earlier, from: found.from - earlier, len: found.len + earlier })
    }
}

fn table_of(base: &[u8]) -> [u16; 1 << TABLE_BITS] {
    let mut table = [NOWHERE; 1 << TABLE_BITS];
    for (step, window) in base.chunks_exact(TABLE_STEP).enumerate() {
        table[slot(window)] = (step * TABLE_STEP) as u16;
    }
    table
}

/// Multiplicative hashing with 2³² divided by the golden ratio.
fn slot(window: &[u8]) -> usize {
    let window = u32::from_le_bytes(window.try_into().expect("a window has four bytes"));
    (window.wrapping_mul(0x9e37_79b1) >> (32 - TABLE_BITS)) as usize
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

    fn made(base: &[u8], image: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let made = make_patch(base, image, &mut out);
        assert_eq!(&out[..6], b"before");
        assert!(made || out.len() == 6, "nothing may be appended");
        made.then(|| out.split_off(6))
    }

    fn applied(base: &[u8], patch: &[u8]) -> Result<Vec<u8>, FormatError> {
        let mut image = vec![0xee; base.len()];
        apply_patch(base, patch, &mut image).map(|()| image)
    }

    /// The patch has this length, and gives the image.
    fn check(base: &[u8], image: &[u8], len: usize) {
        let patch = made(base, image).unwrap();
        assert!(applied(base, &patch).unwrap() == image, "the patch gives something else");
        assert_eq!(patch.len(), len);
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
        assert_eq!(made(&base, &image).unwrap(), expected.concat());
    }

    #[test]
    fn a_page_that_did_not_change_is_one_copy() {
        check(&noise(1, 4096), &noise(1, 4096), 3);
        check(&[0; 512], &[0; 512], 3);
    }

    #[test]
    fn a_counter_that_went_up_is_some_bytes() {
        let mut image = noise(1, 4096);
        image[27] ^= 1;
        image[95] ^= 1;
        check(&noise(1, 4096), &image, 1 + 1 + 2 + 1 + 2 + 1 + 2);
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
        let patch = made(&base, &image).unwrap();
        assert!(applied(&base, &patch).unwrap() == image, "the patch gives something else");
        assert!((53..80).contains(&patch.len()), "{}", patch.len());
    }

    #[test]
    fn cells_that_moved_are_copied() {
        let base = noise(1, 4096);
        let image = [&base[3000..], &base[..1000], &base[1500..3000], &base[1000..1500]].concat();
        assert!(made(&base, &image).unwrap().len() < 30);
    }

    #[test]
    fn a_page_with_little_in_common_is_sent_whole() {
        for size in [512, 4096, 65_536] {
            let base = noise(1, size);
            assert_eq!(made(&base, &noise(2, size)), None);
            let part = |len: usize| [&base[..len], &noise(2, size - len)].concat();
            assert_eq!(made(&base, &part(size / 4)), None, "a little more than three quarters");
            assert!(made(&base, &part(size / 4 + 10)).is_some());
        }
        assert_eq!(made(&noise(1, 1024), &noise(1, 512)), None, "the page size changed");
    }

    #[test]
    fn hostile_patches_are_refused() {
        let base = noise(1, 512);
        let refused = |patch: &[u8], what| assert_eq!(applied(&base, patch).unwrap_err(), malformed(what));
        refused(&[], "patch literals");
        refused(&[0], "patch copy");
        refused(&[1], "patch literals");
        refused(&[1, b'x'], "patch copy");
        refused(&[0, 0], "patch copy"); // a copy of nothing
        refused(&[0, 1, 2], "patch copy");
        refused(&[0, 0x82, 0x08], "patch copy"); // one byte more than a page
        refused(&[0, 0x80, 0x08, 0], "bytes after the patch");
        refused(&[0, 3, 1, 0, 0xfe, 7], "patch copy"); // from before the page
        refused(&[0, 0xff, 7, 4], "patch copy"); // to beyond it
        refused(&[0, 3, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 3, 0xff, 0xff, 0xff, 0xff, 0x0f], "patch copy");
        refused(&[0x80, 0, 0x80, 8], "patch literals"); // not the shortest varint
        refused(&[0xff, 0xff, 0xff, 0xff, 0x0f], "patch literals");
        refused(&[0; 513], "patch length");
        assert_eq!(applied(&base, &[0, 0x80, 0x08]).unwrap(), base);
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
        ) {
            let image = edited(&base, &edits);
            if let Some(patch) = made(&base, &image) {
                prop_assert!(patch.len() <= base.len() / 4 * 3);
                prop_assert!(applied(&base, &patch).unwrap() == image);
            } else {
                prop_assert!(base.len() < 4096, "a dozen edits are less than a page");
            }
        }

        #[test]
        fn any_bytes_are_a_page_or_an_error(patch in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = applied(&noise(1, 512), &patch);
        }

        #[test]
        fn small_numbers_are_a_page_or_an_error(patch in proptest::collection::vec(0u8..4, 0..600)) {
            let _ = applied(&noise(1, 512), &patch);
        }

        #[test]
        fn flipped_bits_never_panic_and_cut_patches_are_refused(
            at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>(),
        ) {
            let base = noise(1, 1024);
            let image = [&base[500..], b"new", &base[..497]].concat();
            let mut patch = made(&base, &image).unwrap();
            let at = at.index(patch.len());
            if cut { patch.truncate(at) } else { patch[at] ^= 1 << bit }
            prop_assert!(!cut || applied(&base, &patch).is_err());
        }

        #[test]
        fn distances_of_either_sign_fit(value in -131_072i32..131_072) {
            prop_assert_eq!(unzigzag(zigzag(value)), i64::from(value));
        }
    }
}
