//! The small parts every encoding is made of: little-endian integers, length-prefixed text, minimal varints.

use crate::error::{FormatError, malformed};

/// Takes values off the front of a byte slice. Nothing is allocated.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(malformed(what))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(malformed(what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, FormatError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, FormatError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count or length, refused when past `limit`.
    pub(crate) fn u16_up_to(&mut self, limit: usize, what: &'static str) -> Result<usize, FormatError> {
        let value = usize::from(self.u16(what)?);
        if value > limit { Err(malformed(what)) } else { Ok(value) }
    }

    /// A count or length, refused when past `limit`.
    pub(crate) fn u32_up_to(&mut self, limit: usize, what: &'static str) -> Result<usize, FormatError> {
        let value = self.u32(what)? as usize;
        if value > limit { Err(malformed(what)) } else { Ok(value) }
    }

    /// UTF-8 text behind a u16 length.
    pub(crate) fn text(&mut self, limit: usize, what: &'static str) -> Result<&'a str, FormatError> {
        let len = self.u16_up_to(limit, what)?;
        std::str::from_utf8(self.bytes(len, what)?).map_err(|_| malformed(what))
    }

    /// An unsigned LEB128 number of at most 32 bits, in its shortest form only.
    pub(crate) fn varint32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let minimal = byte != 0 || shift == 0;
                return u32::try_from(value).ok().filter(|_| minimal).ok_or(malformed(what));
            }
        }
        Err(malformed(what))
    }

    /// Nothing may be left.
    pub(crate) fn finish(self, what: &'static str) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(malformed(what)) }
    }
}

/// Appends the shortest unsigned LEB128 form.
pub(crate) fn put_varint32(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`put_varint32`] appends.
pub(crate) fn varint32_len(value: u32) -> usize {
    (value.checked_ilog2().unwrap_or(0) / 7 + 1) as usize
}

/// Appends text behind a u16 length.
pub(crate) fn put_text(
    out: &mut Vec<u8>,
    text: &str,
    limit: usize,
    what: &'static str,
) -> Result<(), FormatError> {
    let len = u16::try_from(text.len()).ok().filter(|len| usize::from(*len) <= limit);
    out.extend_from_slice(&len.ok_or(FormatError::Unencodable { what })?.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(value: u32, encoded: &[u8]) {
        let mut out = Vec::new();
        put_varint32(&mut out, value);
        assert_eq!(out, encoded);
        assert_eq!(varint32_len(value), encoded.len());
        assert_eq!(Reader::new(encoded).varint32("v").unwrap(), value);
    }

    #[test]
    fn varints_are_leb128() {
        check(0, &[0]);
        check(127, &[0x7f]);
        check(128, &[0x80, 1]);
        check(16_383, &[0xff, 0x7f]);
        check(16_384, &[0x80, 0x80, 1]);
        check(u32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x0f]);
    }

    #[test]
    fn longer_than_needed_too_large_or_cut_off_varints_are_refused() {
        for bytes in
            [&[0x80, 0][..], &[0xff, 0x80, 0], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80; 6], &[0x80], &[]]
        {
            assert!(Reader::new(bytes).varint32("v").is_err(), "{bytes:02x?}");
        }
    }
}
