//! Serving from a backup: by hand only, with one attempt for everybody, and in the open.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_protocol::answer::{Answer, DestroyReason};
use chatkeep_vault_protocol::head::{commits, restores};
use chatkeep_vault_server::anchor::{ANCHOR_FILE, Anchor, AnchorError, Anchored};
use chatkeep_vault_server::ceremony::{self, CeremonyError};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::store::{Head, Row, Store, StoreError, Write};
use common::witnessed::{Account, Behaviour, Node, disk, put_back, witnesses};

const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(700);

/// A vault with a backup of its whole disk, and two accounts, of which one guessed on after the backup.
fn backed_up(w: usize, q: usize) -> (Arc<Node>, Vec<Arc<Node>>, [Account; 2], tempfile::TempDir) {
    let (vault, witnesses) = (Node::new("vault"), witnesses(w));
    vault.is_witnessed_by(&witnesses, q);
    for witness in &witnesses {
        witness.start(LONG).unwrap();
    }
    vault.start(LONG).unwrap();
    let accounts = [Account::new(&vault), Account::new(&vault)];
    vault.stop();
    let backup = disk(&vault);
    vault.start(LONG).unwrap();
    for n in 0..5 {
        accounts[0].left_after(&vault, n);
    }
    vault.stop();
    (vault, witnesses, accounts, backup)
}

fn assert_one_attempt(vault: &Node, accounts: &[Account]) {
    for account in accounts {
        assert_eq!(account.left_after(vault, 100), 0, "the one attempt");
        let gone = account.guess(vault, 101);
        assert!(matches!(gone, Answer::Destroyed { reason: DestroyReason::Exhausted, .. }), "{gone:?}");
    }
}

#[test]
fn a_backup_is_served_after_the_ceremony_only_and_leaves_one_attempt() {
    let (vault, _witnesses, accounts, backup) = backed_up(3, 2);
    put_back(&vault, &backup);
    assert!(vault.start(SHORT).is_err(), "without a ceremony");
    let done = vault.restore(false, LONG).unwrap();
    assert_eq!((done.accounts, done.reduced, done.backup, done.restores), (2, 2, 6, 1));
    assert_eq!(done.anchored, Some(11), "five attempts were used after the backup");
    vault.start(LONG).unwrap();
    let seq = vault.info().seq;
    assert_eq!((restores(seq), commits(seq)), (1, 0));
    assert_one_attempt(&vault, &accounts);
    let seq = vault.info().seq;
    assert_eq!((restores(seq), commits(seq)), (1, 2));
}

#[test]
fn the_backup_cannot_be_put_back_again_without_another_ceremony_which_is_counted() {
    let (vault, witnesses, accounts, backup) = backed_up(3, 2);
    put_back(&vault, &backup);
    vault.restore(false, LONG).unwrap();
    vault.start(LONG).unwrap();
    accounts[1].left_after(&vault, 100);
    vault.stop();
    put_back(&vault, &backup);
    assert!(vault.start(SHORT).is_err());
    assert_eq!(vault.restore(false, LONG).unwrap().restores, 2);
    vault.start(LONG).unwrap();
    assert_eq!(vault.info().seq, witnesses[0].latest_of(&vault).unwrap(), "witnesses see the count too");
    assert_eq!(restores(vault.info().seq), 2);
    assert_one_attempt(&vault, &accounts);
}

#[test]
fn a_database_that_is_the_newest_needs_no_ceremony() {
    let (vault, _witnesses, accounts, _backup) = backed_up(1, 1);
    assert!(matches!(vault.restore(false, LONG), Err(CeremonyError::NotBehind)));
    vault.start(LONG).unwrap();
    assert_eq!(accounts[0].left_after(&vault, 100), 4);
}

#[test]
fn a_ceremony_without_a_quorum_is_refused_whatever_is_said() {
    let (vault, witnesses, accounts, backup) = backed_up(2, 2);
    put_back(&vault, &backup);
    vault.sees(&witnesses[1], Behaviour::Away);
    assert!(vault.restore(false, SHORT).is_err(), "a quorum is needed to know what was anchored");
    assert!(vault.restore(true, SHORT).is_err(), "and is never lost");
    assert!(vault.start(SHORT).is_err());
    vault.sees(&witnesses[1], Behaviour::Honest);
    vault.restore(false, LONG).unwrap();
    assert!(matches!(vault.restore(false, LONG), Err(CeremonyError::NotBehind)), "once is enough");
    vault.start(LONG).unwrap();
    assert_one_attempt(&vault, &accounts);
}

/// A store or an anchor that fails at one of its calls, as if the power went there.
struct CutOff<T> {
    inner: T,
    calls_left: usize,
}

impl<T> CutOff<T> {
    fn is_over(&mut self) -> bool {
        let over = self.calls_left == 0;
        self.calls_left = self.calls_left.saturating_sub(1);
        over
    }
}

impl Store for CutOff<Box<dyn Store>> {
    fn head(&mut self) -> Result<Head, StoreError> {
        self.inner.head()
    }
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn load(&mut self, accounts: &[[u8; 16]]) -> Result<Vec<Option<Row>>, StoreError> {
        self.inner.load(accounts)
    }
    fn sealed_by_others(
        &mut self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError> {
        self.inner.sealed_by_others(key_id, after, limit)
    }
    fn commit_from(
        &mut self,
        seq: u64,
        root: &[u8; 32],
        head: &Head,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        if self.is_over() {
            return Err(StoreError::Damaged { what: "the power went" });
        }
        self.inner.commit_from(seq, root, head, writes)
    }
    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError> {
        self.inner.scan(visit)
    }
}

impl Anchor for CutOff<Box<dyn Anchor>> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn read(&mut self) -> Result<Anchored, AnchorError> {
        self.inner.read()
    }
    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        if self.is_over() { Err(AnchorError::Unusable) } else { self.inner.advance(next) }
    }
}

/// Two commits and one anchor: before each of them.
#[test]
fn a_ceremony_that_is_cut_off_anywhere_gives_no_attempts() {
    for (commits, advances) in [(0, 0), (1, 0), (2, 0), (2, 1)] {
        let (vault, _witnesses, accounts, backup) = backed_up(0, 0);
        // the anchor stays: only the database went back
        std::fs::copy(backup.path().join("vault.db"), vault.dir.path().join("vault.db")).unwrap();
        {
            let (parts, _lock) = setup::open(&Config::development(vault.dir.path())).unwrap();
            let mut store = CutOff { inner: parts.store, calls_left: commits };
            let anchor = CutOff { inner: parts.anchor, calls_left: advances };
            let mut anchors: Vec<Box<dyn Anchor>> = vec![Box::new(anchor)];
            let done = ceremony::restore(&mut store, &parts.keys, &parts.digester, &mut anchors, false);
            assert_eq!(done.is_ok(), advances == 1);
        }
        // after the last commit the start itself finishes it
        let finished = commits == 2;
        assert_eq!(vault.start(SHORT).is_ok(), finished, "{commits} commits");
        if !finished {
            vault.restore(false, SHORT).unwrap();
            vault.start(SHORT).unwrap();
        }
        assert_one_attempt(&vault, &accounts);
    }
}

#[test]
fn a_file_anchor_that_is_lost_is_made_anew_only_when_told_so() {
    let (vault, _witnesses, accounts, backup) = backed_up(0, 0);
    put_back(&vault, &backup);
    std::fs::remove_file(vault.dir.path().join(ANCHOR_FILE)).unwrap();
    assert!(vault.start(SHORT).is_err());
    assert!(matches!(vault.restore(false, SHORT), Err(CeremonyError::Anchor { name: "file", .. })));
    assert!(vault.start(SHORT).is_err());
    let done = vault.restore(true, SHORT).unwrap();
    assert_eq!((done.anchored, done.restores), (None, 1));
    vault.start(SHORT).unwrap();
    assert_one_attempt(&vault, &accounts);
}

#[test]
fn a_database_that_somebody_changed_is_not_restored() {
    let (vault, _witnesses, _accounts, backup) = backed_up(0, 0);
    put_back(&vault, &backup);
    let database = rusqlite::Connection::open(vault.dir.path().join("vault.db")).unwrap();
    database.execute("DELETE FROM record WHERE account = (SELECT min(account) FROM record)", []).unwrap();
    drop(database);
    assert!(matches!(vault.restore(true, SHORT), Err(CeremonyError::Check(_))));
}
