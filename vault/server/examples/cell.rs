//! What an account costs in PostgreSQL: `cargo run -p chatkeep-vault-server --example cell [ACCOUNTS]`, 200 000 unless said.
//!
//! A primary and two synchronous standbys on this machine, filled through the store as the vault does it. The figures
//! in docs/operate-a-vault.md, "Many cells", are from here.
#![allow(clippy::unwrap_used, reason = "a measurement has nobody to tell")]

use std::time::Instant;

use chatkeep_vault_rig::postgres;
use chatkeep_vault_server::anchor::{Anchor as _, Anchored, Digester, FileAnchor};
use chatkeep_vault_server::cells::Cell;
use chatkeep_vault_server::core::RECORD_LEN;
use chatkeep_vault_server::store::{PostgresStore, Row, Store, Write};
use rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

/// Nonce, record, tag.
const SEALED_LEN: usize = 12 + RECORD_LEN + 16;

fn main() {
    let accounts: usize = std::env::args().nth(1).map_or(200_000, |text| text.parse().unwrap());
    let cluster = postgres::Cluster::of_three();
    let key = Zeroizing::new([7; 32]);
    let digester = Digester::new(key.clone());
    PostgresStore::create(&cluster.config(), &Cell::WHOLE, &digester.head(0, [0; 32], [0; 32])).unwrap();
    let mut store = PostgresStore::open(&cluster.config(), &mut || {}).unwrap();
    let mut known = Vec::with_capacity(accounts);

    let start = Instant::now();
    while known.len() < accounts {
        let new: Vec<[u8; 16]> = (0..1000).map(|_| random()).collect();
        commit(&mut store, &digester, &new, 1);
        known.extend(new);
    }
    let rate = accounts as f64 / start.elapsed().as_secs_f64();
    println!("filled with {} accounts, {rate:.0}/s in batches of 1000", known.len());

    // every account is written again some ten times in its life: the size that counts is the one after that
    let start = Instant::now();
    for (n, some) in known.chunks(256).take(200).enumerate() {
        commit(&mut store, &digester, some, n as u64 + 2);
    }
    println!("batches of 256: {:.1} ms each", start.elapsed().as_secs_f64() * 1000.0 / 200.0);
    let start = Instant::now();
    for (n, one) in known.chunks(1).take(200).enumerate() {
        commit(&mut store, &digester, one, n as u64 + 1000);
    }
    println!("batches of one: {:.1} ms each", start.elapsed().as_secs_f64() * 1000.0 / 200.0);

    let node = cluster.node("a");
    let size = |what: &str| node.sql(&format!("SELECT {what}('chatkeep.record')")).parse::<f64>().unwrap();
    let each = |bytes: f64| bytes / known.len() as f64;
    println!(
        "on disk, per account: {:.0} bytes in the table, {:.0} in its index",
        each(size("pg_table_size")),
        each(size("pg_indexes_size"))
    );

    let dir = tempfile::tempdir().unwrap();
    let mut anchor = FileAnchor::new(dir.path(), key);
    let head = store.head().unwrap();
    anchor.advance(&Anchored { seq: head.seq, root: head.root }).unwrap();
    let (start, before) = (Instant::now(), resident());
    let tags = digester.check(&mut store, &mut anchor).unwrap().tags;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "checked at start in {seconds:.1} s, {:.0} accounts/s; {:.0} bytes of memory each",
        tags.len() as f64 / seconds,
        each(resident() - before)
    );
}

fn commit(store: &mut PostgresStore, digester: &Digester, accounts: &[[u8; 16]], revision: u64) {
    let head = store.head().unwrap();
    let old = store.load(accounts).unwrap();
    let mut root = head.root;
    let mut writes = Vec::with_capacity(accounts.len());
    for (account, old) in accounts.iter().zip(&old) {
        let mut sealed = vec![0; SEALED_LEN];
        OsRng.fill_bytes(&mut sealed);
        let row = Row { revision, key_id: 1, sealed };
        root = digester.replace(&root, account, old.as_ref(), Some(&row));
        writes.push(Write { account: *account, row });
    }
    store.commit_batch(&digester.head(head.seq + 1, root, head.root), &writes).unwrap();
}

fn random() -> [u8; 16] {
    let mut account = [0; 16];
    OsRng.fill_bytes(&mut account);
    account
}

/// Bytes of memory in use by this process.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}
