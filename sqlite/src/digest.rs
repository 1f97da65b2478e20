//! Digests of pages and of whole states, and what page 1 says about a database.

/// The 16 bytes that stand for one page, or, XORed over all pages, for one state.
pub type Digest = [u8; 16];

/// The byte whose page SQLite never uses, because its locks live there (2^30).
const LOCK_BYTE: u64 = 1 << 30;

/// First bytes of every unencrypted database file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The first 16 bytes of BLAKE3, keyed with `key`, over the image and the page number (little-endian).
///
/// Keyed, so that a digest kept or sent somewhere cannot be used to test for known content. The number comes last: with
/// the image in front its chunks of 1 KiB are hashed side by side, which takes a bit more than half the time.
pub fn page_digest(key: &[u8; 32], pgno: u32, image: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(image);
    hasher.update(&pgno.to_le_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

/// The number of the page that holds byte 2^30. It is neither stored nor compared.
pub fn lock_byte_page(page_size: u32) -> u32 {
    (LOCK_BYTE / u64::from(page_size)) as u32 + 1
}

pub(crate) fn xor(into: &mut Digest, other: &Digest) {
    for (a, b) in into.iter_mut().zip(other) {
        *a ^= b;
    }
}

/// Whether the content of the pages can be read without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An ordinary database: page 1 begins with SQLite's magic.
    Plain,
    /// Encrypted as a whole (`SQLCipher` and the like): every byte is noise.
    Opaque,
}

/// What page 1 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    pub(crate) user_version: u32,
    pub(crate) application_id: u32,
}

impl Facts {
    pub(crate) const EMPTY: Facts = Facts { kind: Kind::Plain, user_version: 0, application_id: 0 };

    /// Reads the fields from the image of page 1; an image without the magic is [`Kind::Opaque`].
    pub(crate) fn of_page_one(image: &[u8]) -> Facts {
        if image.len() < 100 || &image[..16] != MAGIC {
            return Facts { kind: Kind::Opaque, user_version: 0, application_id: 0 };
        }
        let field = |at: usize| u32::from_be_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
        Facts { kind: Kind::Plain, user_version: field(60), application_id: field(68) }
    }
}

/// The page size that the header of a database tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderPageSize {
    /// There is no magic: encrypted, or no database.
    Unreadable,
    /// There is a magic, but the size cannot be.
    Impossible,
    Bytes(u32),
}

impl HeaderPageSize {
    pub(crate) fn read(header: &[u8]) -> HeaderPageSize {
        if header.len() < 100 || &header[..16] != MAGIC {
            return HeaderPageSize::Unreadable;
        }
        match u16::from_be_bytes([header[16], header[17]]) {
            1 => HeaderPageSize::Bytes(65536),
            size if size >= 512 && size.is_power_of_two() => HeaderPageSize::Bytes(u32::from(size)),
            _ => HeaderPageSize::Impossible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_byte_page_holds_byte_two_to_the_thirty() {
        assert_eq!(lock_byte_page(4096), 262_145);
        assert_eq!(lock_byte_page(65536), 16_385);
        assert_eq!(lock_byte_page(512), 2_097_153);
    }

    #[test]
    fn a_digest_depends_on_key_number_and_image() {
        let one = page_digest(&[1; 32], 1, b"image");
        assert_ne!(one, page_digest(&[2; 32], 1, b"image"));
        assert_ne!(one, page_digest(&[1; 32], 2, b"image"));
        assert_ne!(one, page_digest(&[1; 32], 1, b"other"));
    }

    #[test]
    fn noise_is_opaque_and_an_impossible_page_size_is_noticed() {
        assert_eq!(Facts::of_page_one(&[7; 512]).kind, Kind::Opaque);
        let mut header = [0_u8; 100];
        header[..16].copy_from_slice(MAGIC);
        header[17] = 1;
        assert_eq!(HeaderPageSize::read(&header), HeaderPageSize::Bytes(65536));
        header[17] = 3;
        assert_eq!(HeaderPageSize::read(&header), HeaderPageSize::Impossible);
        assert_eq!(HeaderPageSize::read(&[7; 100]), HeaderPageSize::Unreadable);
    }
}
