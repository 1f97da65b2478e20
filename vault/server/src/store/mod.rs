//! What is kept, and the one promise: when [`Store::commit_batch`] returns, the batch survives a power cut.
//!
//! [`SqliteStore`] for one machine, [`PostgresStore`] for a store that outlives machines.

mod postgres;
mod settings;
mod sqlite;

pub use postgres::{PostgresStore, Seen};
pub use settings::{PostgresConfig, StoreConfig};
pub use sqlite::{DATABASE_FILE, SqliteStore};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The longest sealed record that a store takes or gives; the core's are 348 bytes.
pub const SEALED_LEN_MAX: usize = 4096;

/// One sealed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Counts the writes of this account; bound into the seal.
    pub revision: u64,
    /// Which key sealed it.
    pub key_id: u32,
    /// Nonce, ciphertext, tag. At most [`SEALED_LEN_MAX`] bytes.
    pub sealed: Vec<u8>,
}

impl Row {
    /// Refuses what no vault wrote, before it costs memory.
    fn checked(self) -> Result<Self, StoreError> {
        if self.sealed.len() > SEALED_LEN_MAX {
            return Err(StoreError::Damaged { what: "a record of impossible length" });
        }
        Ok(self)
    }
}

/// Where the whole store is: changed by every batch, in the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Batches so far.
    pub seq: u64,
    /// Keyed digest over all rows.
    pub root: [u8; 32],
    /// The digest one batch earlier.
    pub previous_root: [u8; 32],
    /// Over the three, by the anchor key: a head is made by the vault only.
    pub mac: [u8; 32],
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Account.
    pub account: [u8; 16],
    /// What it becomes.
    pub row: Row,
}

/// A store failed or is not what it should be. The vault stops: it cannot know what is durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database said no: a wrong setting, a full disk, or a bug.
    #[error("the vault's database")]
    Database(#[source] Source),
    /// Nothing was written. Make room, and start again.
    #[error("the disk with the vault's database is full")]
    Full,
    /// The database holds something this program did not write.
    #[error("the vault's database is damaged: {what}")]
    Damaged {
        /// Where.
        what: &'static str,
    },
    /// No server took writes for as long as the settings allow. Start again when one does.
    #[error("the vault's database cannot be reached: {what}")]
    Unreachable {
        /// What each server said.
        what: String,
    },
    /// Another process serves this store. Stop it first.
    #[error("the store is being served by another process: stop it first")]
    Held,
    /// Another process writes this store now. What this one did not commit is not committed.
    #[error("another process has taken this store over")]
    Fenced,
    /// The store lost what it had made durable. Let a server take over that still has it.
    #[error(
        "the database is at commit {found}, but commit {expected} was durable: a failover or an old copy lost it and \
         would give back used attempts"
    )]
    Behind {
        /// Where the store is.
        found: u64,
        /// Where it was.
        expected: u64,
    },
    /// The settings would let commits be lost, or passwords be read on the way. Change them.
    #[error("refused: {what}")]
    Unsafe {
        /// What, and what to do.
        what: String,
    },
}

impl StoreError {
    /// Why a head is not where its one writer left it.
    fn moved(found: u64, expected: u64) -> Self {
        if found > expected { Self::Fenced } else { Self::Behind { found, expected } }
    }
}

/// An error and all that is below it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        below = error.source();
    }
    text
}

/// Kept records. One writer; the caller is its only user.
///
/// Every implementation passes the cases of `tests/stores.rs`.
pub trait Store: Send {
    /// What `info` says: which engine, and what a commit survives.
    fn name(&self) -> &'static str;

    /// The head after the last batch.
    fn head(&mut self) -> Result<Head, StoreError>;

    /// The records of `accounts`, in their order: one round trip for a batch.
    fn load(&mut self, accounts: &[[u8; 16]]) -> Result<Vec<Option<Row>>, StoreError>;

    /// All of `writes` and the new head, or nothing. Durable when it returns. No account is written twice.
    ///
    /// The store must be where `head` says it comes from (one batch earlier, `previous_root`); else somebody else
    /// writes, too, and nothing is written.
    fn commit_batch(&mut self, head: &Head, writes: &[Write]) -> Result<(), StoreError> {
        self.commit_from(head.seq.wrapping_sub(1), &head.previous_root, head, writes)
    }

    /// As [`Self::commit_batch`], from any number and digest: a restore keeps the number at first, and then jumps.
    fn commit_from(
        &mut self,
        seq: u64,
        root: &[u8; 32],
        head: &Head,
        writes: &[Write],
    ) -> Result<(), StoreError>;

    /// Every record once, in any order.
    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError>;

    /// At most `limit` accounts after `after`, in ascending order, whose records another key than `key_id` sealed.
    fn sealed_by_others(
        &mut self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError>;
}
