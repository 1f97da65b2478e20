//! Carries blinded and signed vault messages over TLS, for a daemon that has no network.
//!
//! HTTP/1.1 on a listening unix socket: `POST /v1/call` with the vault's address and identity in headers. Stateless; it
//! holds no secret, reads no body, and trusts for each call only the identity that the call names.

mod serve;

pub use serve::serve;
