//! The Backup Key Vault: counts password attempts and destroys its part of the key after the last.

fn main() {}
