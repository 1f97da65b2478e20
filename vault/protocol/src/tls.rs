//! How the pinned identity key becomes the only TLS trust anchor.
//!
//! The vault issues its own leaf certificate under a CA whose subject and name are fixed here and
//! whose key is the identity key, so a client needs no certificate file and no public CA.

/// The one DNS name that the leaf certificate carries; also the SNI. Never resolved (RFC 6761, `.invalid`).
pub const SERVER_NAME: &str = "vault.chatkeep.invalid";
/// Common name of the issuing CA.
pub const CA_COMMON_NAME: &str = "chatkeep vault identity";

/// The CA's subject: content of the DER `Name`, one UTF8String common name.
pub fn anchor_subject() -> Vec<u8> {
    const OID_COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let name = CA_COMMON_NAME.as_bytes();
    let mut value = vec![0x0c, name.len() as u8];
    value.extend_from_slice(name);
    let mut attribute = vec![0x30, (OID_COMMON_NAME.len() + value.len()) as u8];
    attribute.extend_from_slice(&OID_COMMON_NAME);
    attribute.extend_from_slice(&value);
    let mut subject = vec![0x31, attribute.len() as u8];
    subject.extend_from_slice(&attribute);
    subject
}

/// The CA's public key: content of the DER `SubjectPublicKeyInfo` for Ed25519 (RFC 8410).
pub fn anchor_public_key(identity: &[u8; 32]) -> Vec<u8> {
    let mut info = vec![0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    info.extend_from_slice(identity);
    info
}
