//! Where files are cut, and what the pieces are called.

use fastcdc::v2020::FastCDC;

/// A file of up to this length is one chunk. Most attachments are: cutting them would share nothing.
pub const UNCUT_LEN_MAX: u64 = 1 << 20;

/// No chunk is longer.
pub const CHUNK_LEN_MAX: usize = 4 << 20;

const CHUNK_LEN_MIN: usize = 256 << 10;
const CHUNK_LEN_AVERAGE: usize = 1 << 20;

/// Names a chunk by its content: the first 16 bytes of BLAKE3 of it, under the caller's key.
///
/// Who does not have the key can neither tell from an id what the chunk is, nor make two chunks of one id; by chance two
/// of 2^40 chunks have one with a probability of 2^-49.
pub type ChunkId = [u8; 16];

/// A piece of a file.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Its name.
    pub id: ChunkId,
    /// Its content, never empty.
    pub bytes: &'a [u8],
}

impl<'a> Chunk<'a> {
    pub(crate) fn new(key: &[u8; 32], bytes: &'a [u8]) -> Self {
        Self { id: id(&blake3::keyed_hash(key, bytes)), bytes }
    }
}

pub(crate) fn id(hash: &blake3::Hash) -> ChunkId {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// How long the first chunk of `bytes` is, which is the rest of a file or at least [`CHUNK_LEN_MAX`] of it.
///
/// FastCDC, 2020: a cut depends on the 64 bytes before it, so an insertion moves the cuts near it and no others. The
/// library promises the same cuts for the same bytes, and a test of ours holds it to that; if they ever change, chunks are
/// stored anew once, and nothing is lost, because no reader needs to know where to cut.
pub(crate) fn first_cut(bytes: &[u8]) -> usize {
    let mut cuts = FastCDC::new(bytes, CHUNK_LEN_MIN, CHUNK_LEN_AVERAGE, CHUNK_LEN_MAX);
    cuts.next().map_or(bytes.len(), |chunk| chunk.length)
}
