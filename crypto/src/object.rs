//! Sealing and opening entries and packs: compress, pad, cut, encrypt; and back.

use chatkeep_format::limits::{MAX_PLAINTEXT_LEN, MIN_STREAM_LEN};
use chatkeep_format::{
    ArchiveId, CHUNK_LEN, HEADER_LEN, Header, ObjectKind, ObjectName, TAG_LEN, padded_len, sealed_len,
};
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zstd::zstd_safe::{self, CParameter};

use crate::error::{DamagedPart, OpenError};
use crate::roots::DataRoots;
use crate::schedule;

/// Length of the two numbers before the compressed data: its length, and that of the plaintext.
const PREFIX_LEN: usize = 16;
/// How a zstd frame begins (RFC 8878, 3.1.1); skippable frames begin otherwise.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Seals a plaintext as this object, under the current key epoch. `level` is zstd's.
///
/// Every call takes a fresh salt and so a fresh key: also a second attempt to write the same object never repeats
/// a nonce (NIST SP 800-38D, 8.2.1). Takes one buffer of the plaintext's length beside the result.
///
/// Panics if the plaintext is longer than [`MAX_PLAINTEXT_LEN`] (encoders keep that limit) or the name is a keyring's.
pub fn seal(
    archive: &ArchiveId,
    name: ObjectName,
    roots: &DataRoots,
    plaintext: &[u8],
    level: i32,
    rng: &mut impl CryptoRngCore,
) -> Vec<u8> {
    assert!(plaintext.len() <= MAX_PLAINTEXT_LEN, "the plaintext is past the limit of the format");
    let kind = name.kind();
    assert!(kind != ObjectKind::Keyring, "keyrings are written in clear");
    seal_stream(archive, name, roots, &compress(plaintext, level), rng)
}

fn seal_stream(
    archive: &ArchiveId,
    name: ObjectName,
    roots: &DataRoots,
    stream: &[u8],
    rng: &mut impl CryptoRngCore,
) -> Vec<u8> {
    let (key_epoch, root) = roots.current();
    let mut salt = [0; 32];
    rng.fill_bytes(&mut salt);
    let (cipher, commitment) = schedule::object_key(root, &salt, archive, name);
    let sealed_len = sealed_len(stream.len() as u64);
    let header = Header { kind: name.kind(), key_epoch, sealed_len, salt, commitment }.encode();

    let mut out = vec![0; sealed_len as usize];
    let (head, body) = out.split_at_mut(HEADER_LEN);
    head.copy_from_slice(&header);
    let chunks = stream.chunks(CHUNK_LEN).zip(body.chunks_mut(CHUNK_LEN + TAG_LEN));
    let last = chunks.len() - 1;
    for (index, (plain, sealed)) in chunks.enumerate() {
        cipher.seal_chunk(index as u64, index == last, &header, plain, sealed);
    }
    out
}

/// The stream that is cut into chunks: two lengths, one zstd frame, zeros up to the padded length.
fn compress(plaintext: &[u8], level: i32) -> Vec<u8> {
    let mut stream = vec![0; PREFIX_LEN + zstd_safe::compress_bound(plaintext.len())];
    let frame_len = compressor(level)
        .and_then(|mut zstd| zstd.compress_to_buffer(plaintext, &mut stream[PREFIX_LEN..]))
        .expect("zstd compresses into a buffer of its own bound");
    let used = PREFIX_LEN + frame_len;
    stream[..8].copy_from_slice(&(frame_len as u64).to_le_bytes());
    stream[8..PREFIX_LEN].copy_from_slice(&(plaintext.len() as u64).to_le_bytes());
    stream.truncate(used);
    stream.resize(padded_len(used as u64) as usize, 0);
    stream
}

/// Level 1 forgets what it saw 64 KiB ago, and looks for repeats of 7 bytes. Rows of a chat repeat shorter things from
/// pages far apart: with a table twice as long and 6 bytes a database of chats takes 3.6 % less, for a sixth more time; level 2
/// takes 5 % less, for a third more.
fn compressor(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(level)?;
    if level == 1 {
        zstd.set_parameter(CParameter::HashLog(15))?;
        zstd.set_parameter(CParameter::MinMatch(6))?;
    }
    Ok(zstd)
}

/// Opens an object that the store gave under this name.
pub fn open(
    archive: &ArchiveId,
    name: ObjectName,
    roots: &DataRoots,
    sealed: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let chunks = Chunks::of(archive, name, roots, sealed)?;
    let mut stream = vec![0; chunks.stream_len];
    for (index, plain) in stream.chunks_mut(CHUNK_LEN).enumerate() {
        chunks.open(index, plain)?;
    }
    decompress(&stream).ok_or(OpenError::damaged(DamagedPart::Body))
}

/// Proves that an object is byte for byte what was sealed under this name, and unpacks nothing: a third of the work.
pub fn authenticate(
    archive: &ArchiveId,
    name: ObjectName,
    roots: &DataRoots,
    sealed: &[u8],
) -> Result<(), OpenError> {
    let chunks = Chunks::of(archive, name, roots, sealed)?;
    let mut plain = vec![0; CHUNK_LEN];
    (0..chunks.count()).try_for_each(|index| {
        let len = CHUNK_LEN.min(chunks.stream_len - index * CHUNK_LEN);
        chunks.open(index, &mut plain[..len])
    })
}

/// The body of an object whose header is right.
struct Chunks<'a> {
    cipher: schedule::Cipher,
    header: &'a [u8],
    body: &'a [u8],
    /// Plaintext bytes in all of them.
    stream_len: usize,
}

impl<'a> Chunks<'a> {
    fn of(
        archive: &ArchiveId,
        name: ObjectName,
        roots: &DataRoots,
        sealed: &'a [u8],
    ) -> Result<Self, OpenError> {
        let header =
            Header::decode_whole(sealed).map_err(|e| OpenError::from_format(&e, DamagedPart::Header))?;
        if header.kind != name.kind() || header.kind == ObjectKind::Keyring {
            return Err(OpenError::NotThisObject);
        }
        let epoch = header.key_epoch;
        let root = roots.root(epoch).ok_or(OpenError::UnknownKeyEpoch { epoch })?;
        let (cipher, commitment) = schedule::object_key(root, &header.salt, archive, name);
        if !bool::from(commitment.ct_eq(&header.commitment)) {
            return Err(OpenError::NotThisObject);
        }
        let (header, body) = sealed.split_at(HEADER_LEN);
        let stream_len = stream_len(body.len()).ok_or(OpenError::damaged(DamagedPart::Header))?;
        Ok(Self { cipher, header, body, stream_len })
    }

    fn count(&self) -> usize {
        self.stream_len.div_ceil(CHUNK_LEN)
    }

    /// Opens chunk `index` into `plain`, which is as long as its plaintext.
    fn open(&self, index: usize, plain: &mut [u8]) -> Result<(), OpenError> {
        let begin = index * (CHUNK_LEN + TAG_LEN);
        let sealed = &self.body[begin..begin + plain.len() + TAG_LEN];
        let last = index + 1 == self.count();
        if self.cipher.open_chunk(index as u64, last, self.header, sealed, plain) {
            Ok(())
        } else {
            Err(OpenError::damaged(DamagedPart::Chunk(index as u64)))
        }
    }
}

/// Plaintext bytes in chunks of this total length, if chunks can have it.
fn stream_len(body_len: usize) -> Option<usize> {
    let chunks = body_len.div_ceil(CHUNK_LEN + TAG_LEN);
    let len = body_len.checked_sub(chunks * TAG_LEN)?;
    (len >= MIN_STREAM_LEN && len.div_ceil(CHUNK_LEN) == chunks).then_some(len)
}

/// Undoes [`compress`], and refuses every stream it would not have written. Allocates what an authentic stream
/// declares, within the limit, and gives zstd no more than that to write to.
fn decompress(stream: &[u8]) -> Option<Vec<u8>> {
    let (prefix, rest) = stream.split_first_chunk::<PREFIX_LEN>()?;
    let number = |at: usize| prefix.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (frame_len, plain_len) = (number(0)?, number(8)?);
    if frame_len > rest.len() as u64 || plain_len > MAX_PLAINTEXT_LEN as u64 {
        return None;
    }
    let (frame, padding) = rest.split_at(frame_len as usize);
    let canonical_len = padded_len(PREFIX_LEN as u64 + frame_len) == stream.len() as u64;
    if !canonical_len || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    // one frame, and one that says how long it is: zstd would also take several, or skip some
    if !frame.starts_with(&ZSTD_MAGIC)
        || zstd_safe::find_frame_compressed_size(frame).ok()? != frame.len()
        || zstd_safe::get_frame_content_size(frame).ok()? != Some(plain_len)
    {
        return None;
    }
    let mut plaintext = vec![0; plain_len as usize];
    let written = zstd::bulk::decompress_to_buffer(frame, &mut plaintext[..]).ok()?;
    (written == plaintext.len()).then_some(plaintext)
}
