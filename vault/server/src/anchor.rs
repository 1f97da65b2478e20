//! Binds the newest state to something that an old copy of the database does not take back with it.
//!
//! Anchored is the digest, not only a count: two different states could have the same count. Order of every batch:
//! database, anchor, answers. At start the database must be where the anchor is, or exactly one batch ahead.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chatkeep_vault_protocol::head::follows;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::hsm::DeviceError;
use crate::store::{Head, Row, Store, StoreError};
use crate::witness::anchor::WitnessFault;

/// What an anchor remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    /// Batches so far.
    pub seq: u64,
    /// Digest over all rows.
    pub root: [u8; 32],
}

/// Remembers one value. Durable when [`Anchor::advance`] returns.
pub trait Anchor: Send {
    /// What `info` says.
    fn name(&self) -> &'static str;
    /// What it cannot notice, for whoever runs the vault.
    fn limit(&self) -> Option<&'static str> {
        None
    }
    /// The value; an error if there is none.
    fn read(&mut self) -> Result<Anchored, AnchorError>;
    /// Replaces the value.
    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError>;
    /// Replaces the value if it is `previous`: of two processes that both think the store is theirs, one stops here.
    fn advance_from(&mut self, previous: &Anchored, next: &Anchored) -> Result<(), AnchorError> {
        let found = self.read()?;
        if found != *previous {
            return Err(AnchorError::Moved { found: found.seq, expected: previous.seq });
        }
        self.advance(next)
    }

    /// Where the database is, seen from here. An error if it may not be there.
    fn position(&mut self, head: &Head) -> Result<Position, AnchorError> {
        let anchored = self.read()?;
        if anchored == Anchored::from(head) {
            return Ok(Position::Here);
        }
        if anchored.is_before(head) {
            return Ok(Position::OneAhead);
        }
        Err(AnchorError::RolledBack { found: head.seq, anchored: anchored.seq })
    }

    /// At start: checks where the database is, and comes up to it if a crash left the anchor one batch behind.
    fn settle(&mut self, head: &Head) -> Result<(), AnchorError> {
        match self.position(head)? {
            Position::Here => Ok(()),
            Position::OneAhead => self.advance(&head.into()),
        }
    }

    /// How long it should be left alone before it is advanced again: what waits meanwhile goes into the same batch.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }

    /// Lets an [`Anchor::advance`] that waits for others give up. For anchors that never wait: nothing.
    fn interrupter(&self) -> Option<Interrupter> {
        None
    }

    /// How far its witnesses are behind, for whoever watches. For anchors without witnesses: nothing.
    fn lags(&self) -> Option<Lags> {
        None
    }
}

/// Where a database may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Where the anchor is.
    Here,
    /// Exactly one batch after it.
    OneAhead,
}

/// Called from another thread.
pub type Interrupter = std::sync::Arc<dyn Fn() + Send + Sync>;

/// How many commits each witness is behind; `None` if it did not say what it holds. Called from another thread.
pub type Lags = std::sync::Arc<dyn Fn() -> Vec<Option<u64>> + Send + Sync>;

impl Anchored {
    /// Whether `head` is exactly one batch after it.
    pub fn is_before(&self, head: &Head) -> bool {
        follows(self.seq, head.seq) && self.root == head.previous_root
    }
}

impl From<&Head> for Anchored {
    fn from(head: &Head) -> Self {
        Self { seq: head.seq, root: head.root }
    }
}

/// Why the vault does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorError {
    /// The database is not the newest one, or was changed by somebody else.
    #[error(
        "the database is at commit {found}, the anchor at {anchored}: an old or foreign copy, or a server that took over \
         without the last commits, would give back used attempts, so this vault does not serve"
    )]
    RolledBack {
        /// Where the database is.
        found: u64,
        /// Where it should be.
        anchored: u64,
    },
    /// Rows were added, removed or exchanged.
    #[error(
        "the records do not match their digest: the database was changed by somebody else, or is another vault's than \
         the keys"
    )]
    RootMismatch,
    /// There are records that this cell must not have: they could be guessed at here and in their own.
    #[error("the database has records of another cell")]
    OtherCell,
    /// Another process advanced the anchor.
    #[error(
        "the anchor is at commit {found}, not at {expected} where this process left it: another one serves"
    )]
    Moved {
        /// Where it is.
        found: u64,
        /// Where this process left it.
        expected: u64,
    },
    /// The anchor is missing or forged.
    #[error("the anchor is missing or not by this vault")]
    Unusable,
    /// Its seal key was destroyed, or is on another device.
    #[error(
        "{records} records are sealed with key {key_id}, which the device does not have: an old copy of the database, or \
         a foreign one, so this vault does not serve"
    )]
    Shredded {
        /// The key's number.
        key_id: u32,
        /// How many.
        records: u64,
    },
    /// Witnesses do not help, or contradict.
    #[error("the witnesses: {0}")]
    Witness(#[from] WitnessFault),
    /// Two anchors contradict each other.
    #[error("the anchors `{one}` and `{other}` are at different states")]
    Contradiction {
        /// Its name.
        one: &'static str,
        /// Its name.
        other: &'static str,
    },
    /// The anchor cannot be written.
    #[error("the anchor's file")]
    Io(#[from] std::io::Error),
    /// The device with the anchor or the keys failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which row every account has: about 50 bytes of memory each.
pub type Tags = std::collections::HashMap<[u8; 16], Tag>;

/// The beginning of a row's MAC. Not its revision: of two rows that follow the same one, because a crash discarded the
/// first, both have the same.
pub type Tag = [u8; 8];

/// What [`Digester::check`] found.
pub struct Checked {
    /// Where the store is.
    pub head: Head,
    /// While the vault runs, another row that somebody puts in is noticed by these.
    pub tags: Tags,
    /// How many records each seal key sealed.
    pub sealed_by: BTreeMap<u32, u64>,
}

/// Keeps the digest over all rows: the sum, modulo 2^256, of one HMAC per row, so that a write costs two of them.
///
/// Keyed, and never shown: who does not know the key cannot search for rows whose sum stays the same.
pub struct Digester {
    key: Zeroizing<[u8; 32]>,
}

impl AnchorError {
    /// Whether waiting may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Witness(fault) if fault.is_temporary())
    }
}

impl Digester {
    /// With the anchor key of the HSM.
    pub fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self { key }
    }

    /// The root after a row became another.
    pub fn replace(
        &self,
        root: &[u8; 32],
        account: &[u8; 16],
        old: Option<&Row>,
        new: Option<&Row>,
    ) -> [u8; 32] {
        let mut root = *root;
        if let Some(row) = new {
            root = add(&root, &self.row(account, row));
        }
        if let Some(row) = old {
            root = add(&root, &negate(&self.row(account, row)));
        }
        root
    }

    /// A head with its MAC.
    pub fn head(&self, seq: u64, root: [u8; 32], previous_root: [u8; 32]) -> Head {
        let mac = self.mac(&[b"chatkeep vault head v1", &seq.to_be_bytes(), &root, &previous_root]);
        Head { seq, root, previous_root, mac }
    }

    /// Checks the whole store against its head and the anchor; advances an anchor that a crash left one batch behind.
    pub fn check(&self, store: &mut dyn Store, anchor: &mut dyn Anchor) -> Result<Checked, AnchorError> {
        let checked = self.check_store(store)?;
        anchor.settle(&checked.head)?;
        Ok(checked)
    }

    /// Checks the whole store against its own head. Says nothing about how old it is.
    pub fn check_store(&self, store: &mut dyn Store) -> Result<Checked, AnchorError> {
        let head = store.head()?;
        if head != self.head(head.seq, head.root, head.previous_root) {
            return Err(AnchorError::RootMismatch);
        }
        let (mut root, mut tags, mut sealed_by) = ([0; 32], Tags::new(), BTreeMap::new());
        store.scan(&mut |account, row| {
            root = self.replace(&root, account, None, Some(row));
            tags.insert(*account, self.tag(account, row));
            *sealed_by.entry(row.key_id).or_default() += 1;
        })?;
        if root != head.root {
            return Err(AnchorError::RootMismatch);
        }
        Ok(Checked { head, tags, sealed_by })
    }

    /// What tells this row from every other that this vault ever wrote for the account.
    pub fn tag(&self, account: &[u8; 16], row: &Row) -> Tag {
        *self.row(account, row).first_chunk().expect("a MAC has 32 bytes")
    }

    fn row(&self, account: &[u8; 16], row: &Row) -> [u8; 32] {
        let (revision, key_id) = (row.revision.to_be_bytes(), row.key_id.to_be_bytes());
        self.mac(&[b"chatkeep vault row v1", account, &revision, &key_id, &row.sealed])
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.key).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Sum modulo 2^256, least significant byte first.
fn add(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let mut carry = 0u16;
    let mut sum = [0; 32];
    for (out, (a, b)) in sum.iter_mut().zip(a.iter().zip(b)) {
        carry += u16::from(*a) + u16::from(*b);
        *out = carry as u8;
        carry >>= 8;
    }
    sum
}

fn negate(a: &[u8; 32]) -> [u8; 32] {
    let mut one = [0; 32];
    one[0] = 1;
    add(&a.map(|byte| !byte), &one)
}

/// A file beside the database, for development. It notices a database that was put back alone; it **cannot** notice
/// a whole disk that was put back, anchor included.
pub struct FileAnchor {
    path: PathBuf,
    digester: Digester,
}

/// Name of the anchor in the data directory.
pub const ANCHOR_FILE: &str = "anchor";

impl FileAnchor {
    /// In `dir`; `key` signs its content.
    pub fn new(dir: &Path, key: Zeroizing<[u8; 32]>) -> Self {
        Self { path: dir.join(ANCHOR_FILE), digester: Digester::new(key) }
    }

    fn bytes(&self, value: &Anchored) -> Vec<u8> {
        let seq = value.seq.to_be_bytes();
        let mac = self.digester.mac(&[b"chatkeep vault anchor v1", &seq, &value.root]);
        [&seq[..], &value.root, &mac].concat()
    }
}

impl Anchor for FileAnchor {
    fn name(&self) -> &'static str {
        "file"
    }

    fn limit(&self) -> Option<&'static str> {
        Some(
            "it lies on the same disk: when the whole disk, or the virtual machine, is put back to an earlier state, this \
             vault cannot know, and used attempts come back",
        )
    }

    fn read(&mut self) -> Result<Anchored, AnchorError> {
        let bytes = std::fs::read(&self.path).map_err(|_| AnchorError::Unusable)?;
        let bytes: [u8; 72] = bytes.try_into().map_err(|_| AnchorError::Unusable)?;
        let value = Anchored {
            seq: u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes")),
            root: bytes[8..40].try_into().expect("32 bytes"),
        };
        if self.bytes(&value) == bytes { Ok(value) } else { Err(AnchorError::Unusable) }
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        let temporary = self.path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&self.bytes(next))?;
        file.sync_data()?;
        std::fs::rename(&temporary, &self.path)?;
        let dir = self.path.parent().expect("the file is in the data directory");
        std::fs::File::open(dir)?.sync_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::{SqliteStore, Write};

    fn row(revision: u64) -> Row {
        Row { revision, key_id: 1, sealed: vec![revision as u8; 9] }
    }

    struct World {
        dir: tempfile::TempDir,
        store: SqliteStore,
        anchor: FileAnchor,
        digester: Digester,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = Zeroizing::new([7; 32]);
            let digester = Digester::new(key.clone());
            let store = SqliteStore::create(dir.path(), &digester.head(0, [0; 32], [0; 32])).unwrap();
            let mut anchor = FileAnchor::new(dir.path(), key);
            anchor.advance(&Anchored { seq: 0, root: [0; 32] }).unwrap();
            Self { dir, store, anchor, digester }
        }

        fn write(&mut self, anchored: bool) {
            let head = self.store.head().unwrap();
            let old = self.store.load(&[[1; 16]]).unwrap().remove(0);
            let new = row(head.seq + 1);
            let root = self.digester.replace(&head.root, &[1; 16], old.as_ref(), Some(&new));
            let next = self.digester.head(head.seq + 1, root, head.root);
            self.store.commit_batch(&next, &[Write { account: [1; 16], row: new }]).unwrap();
            if anchored {
                self.anchor.advance(&Anchored { seq: next.seq, root }).unwrap();
            }
        }

        fn check(&mut self) -> Result<Head, AnchorError> {
            self.digester.check(&mut self.store, &mut self.anchor).map(|checked| checked.head)
        }
    }

    #[test]
    fn the_state_itself_and_one_step_ahead_are_accepted() {
        let mut world = World::new();
        world.write(true);
        assert_eq!(world.check().unwrap().seq, 1);
        world.write(false);
        assert_eq!(world.check().unwrap().seq, 2);
        assert_eq!(world.anchor.read().unwrap().seq, 2);
    }

    #[test]
    fn two_steps_ahead_and_an_old_database_are_refused() {
        let mut world = World::new();
        world.write(false);
        world.write(false);
        assert!(matches!(world.check(), Err(AnchorError::RolledBack { found: 2, anchored: 0 })));

        let mut world = World::new();
        world.write(true);
        let old = world.dir.path().join("old.db");
        world.store.connection_for_tests().execute("VACUUM INTO ?1", [old.to_str().unwrap()]).unwrap();
        world.write(true);
        std::fs::rename(&old, world.dir.path().join(crate::store::DATABASE_FILE)).unwrap();
        for rest in ["vault.db-wal", "vault.db-shm"] {
            std::fs::remove_file(world.dir.path().join(rest)).ok();
        }
        world.store = SqliteStore::open(world.dir.path()).unwrap();
        assert!(matches!(world.check(), Err(AnchorError::RolledBack { found: 1, anchored: 2 })));
    }

    #[test]
    fn an_anchor_that_somebody_else_advanced_is_not_advanced() {
        let mut world = World::new();
        let at = |seq| Anchored { seq, root: [seq as u8; 32] };
        world.anchor.advance(&at(5)).unwrap();
        let moved = world.anchor.advance_from(&at(4), &at(5)).unwrap_err();
        assert!(matches!(moved, AnchorError::Moved { found: 5, expected: 4 }));
        let fork = Anchored { root: [9; 32], ..at(5) };
        assert!(world.anchor.advance_from(&fork, &at(6)).is_err());
        world.anchor.advance_from(&at(5), &at(6)).unwrap();
        assert_eq!(world.anchor.read().unwrap(), at(6));
    }

    #[test]
    fn a_changed_row_or_a_forged_anchor_is_refused() {
        let mut world = World::new();
        world.write(true);
        world.store.connection_for_tests().execute("UPDATE record SET revision = 0", []).unwrap();
        assert!(matches!(world.check(), Err(AnchorError::RootMismatch)));

        let mut world = World::new();
        std::fs::write(world.dir.path().join(ANCHOR_FILE), [0; 72]).unwrap();
        assert!(matches!(world.check(), Err(AnchorError::Unusable)));
    }

    #[test]
    fn adding_and_taking_away_a_row_is_no_change() {
        let digester = Digester::new(Zeroizing::new([1; 32]));
        let root = digester.replace(&[0xff; 32], &[2; 16], None, Some(&row(5)));
        assert_ne!(root, [0xff; 32]);
        assert_eq!(digester.replace(&root, &[2; 16], Some(&row(5)), None), [0xff; 32]);
    }
}
