//! Messages, password-protected secret sharing and limits of the Backup Key Vault.
