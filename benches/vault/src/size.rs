//! What accounts cost: disk, memory, and time until a vault with many of them serves.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use chatkeep_vault_server::anchor::Anchored;
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::core::RECORD_LEN;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::store::{DATABASE_FILE, Row, Write};
use rand_core::{OsRng, RngCore as _};
use serde_json::json;

use crate::VAULT_CORE;
use crate::program::{Program, Settings};

/// Accounts in one commit while the database is filled.
const BATCH: usize = 10_000;

/// Fills a vault in software with `accounts`, and starts it. Without any, too: the difference is theirs.
pub(crate) fn measure(program: &Path, accounts: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = Settings::soft(folder.path());
    settings.init(program)?;
    let (empty_s, empty) = start(program, &settings)?;
    fill(settings.path(), accounts)?;
    let (full_s, full) = start(program, &settings)?;
    let disk = std::fs::metadata(folder.path().join("data").join(DATABASE_FILE))?.len();
    println!(
        "{}",
        json!({
            "accounts": accounts, "disk_bytes": disk, "bytes_each": disk as f64 / accounts as f64,
            "accounts_per_gb": (1e9 / (disk as f64 / accounts as f64)).round(),
            "start_empty_s": empty_s, "start_s": full_s, "memory_empty_bytes": empty, "memory_bytes": full,
            "memory_each": full.saturating_sub(empty) as f64 / accounts as f64,
        })
    );
    Ok(())
}

/// Seconds until it listens, and its memory then.
fn start(program: &Path, settings: &Settings) -> Result<(f64, u64)> {
    let start = Instant::now();
    let vault = Program::serve(program, settings, VAULT_CORE)?;
    Ok((start.elapsed().as_secs_f64(), vault.resident()?))
}

/// Records that nobody can open, which no start tries to.
fn fill(config: &Path, accounts: usize) -> Result<()> {
    let (mut parts, _lock) = setup::open(&Config::read(config)?)?;
    for first in (0..accounts).step_by(BATCH) {
        let head = parts.store.head()?;
        let (mut root, mut writes) = (head.root, Vec::with_capacity(BATCH));
        for _ in first..accounts.min(first + BATCH) {
            let mut account = [0; 16];
            OsRng.fill_bytes(&mut account);
            let sealed = parts.keys.sealer.seal(&[0; 48], &[0; RECORD_LEN], &mut OsRng)?;
            let row = Row { revision: 1, key_id: sealed.key_id, sealed: sealed.bytes };
            root = parts.digester.replace(&root, &account, None, Some(&row));
            writes.push(Write { account, row });
        }
        let next = parts.digester.head(head.seq + 1, root, head.root);
        parts.store.commit_batch(&next, &writes)?;
        parts.anchor.advance(&Anchored::from(&next))?;
    }
    Ok(())
}
