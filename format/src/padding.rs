//! How long a sealed object is: what a store sees of its content.

use crate::header::HEADER_LEN;
use crate::limits::{CHUNK_LEN, MIN_STREAM_LEN, TAG_LEN};

/// Rounds a length up so that only O(log log len) bits of it show, adding at most 12 % (Padmé, PETS 2019, section 4).
///
/// Lengths that cannot be rounded within 64 bits are returned rounded down to the same granularity.
pub fn padme(len: u64) -> u64 {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let mantissa_bits = exponent.ilog2() + 1;
    let mask = (1u64 << exponent.saturating_sub(mantissa_bits)) - 1;
    len.saturating_add(mask) & !mask
}

/// Length of the stream that carries `len` bytes of prefix and compressed data.
pub fn padded_len(len: u64) -> u64 {
    padme(len).max(MIN_STREAM_LEN as u64)
}

/// Length of the sealed object that carries a stream of this length.
pub fn sealed_len(stream_len: u64) -> u64 {
    HEADER_LEN as u64 + stream_len + stream_len.div_ceil(CHUNK_LEN as u64) * TAG_LEN as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padme_gives_the_values_of_the_paper() {
        for (len, padded) in
            [(0, 0), (1, 1), (2, 2), (9, 10), (100, 104), (1000, 1024), (1_000_000, 1_015_808)]
        {
            assert_eq!(padme(len), padded, "{len}");
        }
    }

    #[test]
    fn padme_grows_by_an_eighth_at_most_and_is_its_own_fixed_point() {
        for len in (0..100_000).chain((1 << 40)..(1 << 40) + 1000) {
            let padded = padme(len);
            assert!(padded >= len && padded <= len + len / 8, "{len}");
            assert_eq!(padme(padded), padded, "{len}");
        }
        padme(u64::MAX);
    }

    #[test]
    fn the_longest_plaintext_fits_the_longest_object() {
        use crate::limits::{MAX_PLAINTEXT_LEN, MAX_SEALED_LEN};
        // ZSTD_compressBound: one 256th more
        let worst = 16 + MAX_PLAINTEXT_LEN as u64 + MAX_PLAINTEXT_LEN as u64 / 256 + 64;
        assert!(sealed_len(padded_len(worst)) <= MAX_SEALED_LEN as u64);
    }
}
