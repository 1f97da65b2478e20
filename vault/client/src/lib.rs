//! Registers with, recovers from and watches Backup Key Vaults over one small transport trait.
