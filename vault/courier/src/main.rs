//! Carries blinded and signed vault messages over TLS, for a daemon that has no network.

fn main() {}
