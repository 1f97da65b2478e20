//! Every limit of the format. A decoder checks them before it allocates; an encoder refuses to pass them.

/// The version this crate writes, and the newest it reads.
pub const FORMAT_VERSION: u8 = 1;
/// Plaintext bytes of every chunk but the last, which may be shorter.
pub const CHUNK_LEN: usize = 65_536;
/// Bytes an AES-256-GCM tag adds to a chunk.
pub const TAG_LEN: usize = 16;
/// Longest plaintext of an object, 64 MiB: eight times the target of a pack, small enough to hold in memory.
pub const MAX_PLAINTEXT_LEN: usize = 64 << 20;
/// Longest sealed object: the longest plaintext, incompressible, padded (at most 3.2 % here), cut and tagged, rounded up.
pub const MAX_SEALED_LEN: usize = 72 << 20;
/// Shortest stream that is cut into chunks: the smallest objects all look alike to a store.
pub const MIN_STREAM_LEN: usize = 4096;
/// Longest keyring object.
pub const MAX_KEYRING_LEN: usize = 1 << 20;
/// Most keyslots of a keyring.
pub const MAX_KEYSLOTS: usize = 32;
/// Longest body of one keyslot.
pub const MAX_KEYSLOT_LEN: usize = 16_384;
/// Most key epochs, that is rotations and one.
pub const MAX_KEY_EPOCHS: usize = 1024;
/// Largest number in an object name: 16 decimal digits.
pub const MAX_COUNTER: u64 = 9_999_999_999_999_999;
/// Longest file name of a database, in bytes (NAME_MAX of Linux).
pub const MAX_NAME_LEN: usize = 255;
/// Longest source name or application id, in bytes.
pub const MAX_TEXT_LEN: usize = 1024;
/// Most databases in one entry.
pub const MAX_DATABASES: usize = 256;
/// Most packs of one database in one entry: 512 GiB at 8 MiB each.
pub const MAX_PACKS: usize = 65_536;
/// Most pages in one page set: 64 MiB of 512-byte pages twice over, or 1 GiB of zeroed 4-KiB pages.
pub const MAX_PAGES: usize = 262_144;
/// Most bytes of earlier images that the patches of one page set copy from, 16 MiB: a reader has them all in memory.
pub const MAX_BASES_LEN: usize = 16 << 20;
/// Highest level of an entry.
pub const MAX_LEVEL: u8 = 15;
/// Most pinned recovery points.
pub const MAX_PINS: usize = 1024;
/// Most folders of attachments in one entry.
pub const MAX_FOLDERS: usize = 256;
/// Longest path of an attachment below its folder, in bytes (PATH_MAX of Linux).
pub const MAX_PATH_LEN: usize = 4096;
/// Most files in one file set.
pub const MAX_FILES: usize = 1 << 20;
/// Most chunks of one file: 256 GiB at a quarter of a MiB each.
pub const MAX_FILE_CHUNKS: usize = 1 << 20;
/// Smallest and largest page of SQLite.
pub const MIN_PAGE_SIZE: u32 = 512;
/// See [`MIN_PAGE_SIZE`].
pub const MAX_PAGE_SIZE: u32 = 65_536;

/// Whether SQLite could use pages of this size.
pub fn is_page_size(size: u32) -> bool {
    size.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&size)
}
