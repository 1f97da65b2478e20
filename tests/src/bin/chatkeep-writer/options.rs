//! What the writer can be told.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// `PRAGMA journal_mode`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Journal {
    Wal,
    Delete,
    Truncate,
    Persist,
}

/// `PRAGMA auto_vacuum`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AutoVacuum {
    None,
    Full,
    Incremental,
}

/// `PRAGMA synchronous`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sync {
    Off,
    Normal,
    Full,
}

/// Writes a chat database, as an app would.
#[derive(Parser)]
pub(crate) struct Options {
    /// The database; created if it does not exist, else continued.
    #[arg(long)]
    pub(crate) database: PathBuf,
    /// Sets the journal mode.
    #[arg(long)]
    pub(crate) journal: Option<Journal>,
    /// Page size of a new database, in bytes.
    #[arg(long)]
    pub(crate) page_size: Option<u32>,
    /// How a new database gives pages back.
    #[arg(long)]
    pub(crate) auto_vacuum: Option<AutoVacuum>,
    /// How often SQLite syncs.
    #[arg(long)]
    pub(crate) sync: Option<Sync>,
    /// Map so many MiB of the file into memory.
    #[arg(long)]
    pub(crate) mmap_mb: Option<u32>,
    /// Keep so few pages in memory that transactions spill.
    #[arg(long)]
    pub(crate) cache_pages: Option<u32>,
    /// Keep the locks from one transaction to the next.
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// Pages of log after which SQLite checkpoints.
    #[arg(long)]
    pub(crate) autocheckpoint: Option<u32>,
    /// Checkpoint with TRUNCATE after each commit.
    #[arg(long)]
    pub(crate) truncate_each: bool,
    /// Checkpoint in a random mode after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) checkpoint_every: u64,
    /// VACUUM after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) vacuum_every: u64,
    /// Change the page size after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) resize_every: u64,
    /// Change many pages and roll back after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) rollback_every: u64,
    /// Another journal mode for a while after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) switch_every: u64,
    /// Close and open the database after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) reopen_every: u64,
    /// Wait so long before each COMMIT.
    #[arg(long, default_value_t = 0)]
    pub(crate) dawdle_ms: u64,
    /// Commits a second; 0 = without a pause.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) rate: f64,
    /// Write slowly once there are so many commits, so that checks of every row stay quick; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) many: u64,
    /// How long; 0 = until killed.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// What is written follows from it. A database that is continued keeps its own.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Gets a line `n unix_us` after every commit.
    #[arg(long)]
    pub(crate) ack: Option<PathBuf>,
    /// Write an encrypted database with the program `sqlcipher`.
    #[arg(long, requires = "key")]
    pub(crate) sqlcipher: bool,
    /// Its raw key, 64 hexadecimal digits.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Fill the database to about this size first.
    #[arg(long, default_value_t = 0)]
    pub(crate) prefill_mb: u64,
    /// How long SQLite waits for a lock; 0 as in apps that never expect to wait.
    #[arg(long, default_value_t = 0)]
    pub(crate) busy_timeout_ms: u64,
    /// Others write, too: what cannot be had because of them is left.
    #[arg(long)]
    pub(crate) shared: bool,
    /// Write nothing: read, checkpoint, open and close.
    #[arg(long, requires = "shared")]
    pub(crate) visitor: bool,
    /// Run the lines of standard input.
    #[arg(long)]
    pub(crate) serve: bool,
    /// Write into one table of our own in whatever database this is.
    #[arg(long)]
    pub(crate) any: bool,
}
