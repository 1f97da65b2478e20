//! `restore-ceremony`: the only way to serve from a backup of the database.
//!
//! A backup knows nothing of the attempts that were used after it. So every account is left with one attempt at most, and
//! the new state comes after everything that was ever anchored: nothing goes back, and witnesses sign it as any other.
//! Its number counts the restores, for ever and for everybody to see: repeated restores would be repeated attempts.

use chatkeep_vault_protocol::head::{commits, next_restore, restores};
use rand_core::OsRng;

use crate::anchor::{Anchor, AnchorError, Anchored, Digester};
use crate::core::Record;
use crate::hsm::Keys;
use crate::store::{Store, StoreError, Write};
use crate::vault::{SealError, open_record, seal_record};

/// To be given word by word: it says what is lost.
pub const PHRASE: &str = "every account is left with one attempt";

/// Rows in one transaction: about 5 MB.
const CHUNK: usize = 10_000;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Accounts that had more than one attempt left.
    pub reduced: u64,
    /// Accounts in all, erased ones included.
    pub accounts: u64,
    /// Commits of the backup since it was made or last restored.
    pub backup: u64,
    /// What the anchors knew; `None` if they were lost.
    pub anchored: Option<u64>,
    /// How often this vault was restored, this time included.
    pub restores: u64,
}

/// Why a restore was not carried out, or not to its end. It may be repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CeremonyError {
    /// The database is the newest there is: it can be served as it is.
    #[error("the database is not behind its anchor: nothing was lost, serve it as it is")]
    NotBehind,
    /// An anchor cannot be read.
    #[error(
        "the anchor `{name}` cannot be read; if it is lost for good, say --anchor-lost. Witnesses are never lost: \
         wait for them, or let the vault enrol with new ones first"
    )]
    Anchor {
        /// Which.
        name: &'static str,
        /// Why.
        source: AnchorError,
    },
    /// The backup is not what this vault wrote, or an anchor cannot be written.
    #[error(transparent)]
    Check(#[from] AnchorError),
    /// A record cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was restored 32767 times.
    #[error("this vault was restored too often: make a new one")]
    TooOften,
}

/// Makes a backup of the database one that may be served, under `anchors`, which are all that the vault has.
///
/// `anchor_lost`: anchors that cannot be read are made anew; never witnesses, whose memory is not the vault's to replace.
pub fn restore(
    store: &mut dyn Store,
    keys: &Keys,
    digester: &Digester,
    anchors: &mut [Box<dyn Anchor>],
    anchor_lost: bool,
) -> Result<Restored, CeremonyError> {
    let mut head = digester.check_store(store)?.head;
    let newest = newest(anchors, anchor_lost)?;
    if newest.is_some_and(|newest| newest == Anchored::from(&head) || newest.is_before(&head)) {
        return Err(CeremonyError::NotBehind);
    }
    let base = newest.unwrap_or(Anchored::from(&head));
    let seq = next_restore(base.seq.max(head.seq)).ok_or(CeremonyError::TooOften)?;

    let mut accounts = Vec::new();
    store.scan(&mut |account, _| accounts.push(*account))?;
    let mut done = Restored {
        reduced: 0,
        accounts: accounts.len() as u64,
        backup: commits(head.seq),
        anchored: newest.map(|newest| newest.seq),
        restores: restores(seq),
    };
    // under the old number, which the anchors refuse: a crash in between leaves a database that is not served
    for chunk in accounts.chunks(CHUNK) {
        let mut root = head.root;
        let mut writes = Vec::new();
        for (account, row) in chunk.iter().zip(store.load(chunk)?) {
            let Some(row) = row else { continue };
            let Some(record) = with_one_attempt(&open_record(keys, account, &row)?) else { continue };
            let new = seal_record(keys, account, row.revision + 1, &record, &mut OsRng)?;
            root = digester.replace(&root, account, Some(&row), Some(&new));
            writes.push(Write { account: *account, row: new });
        }
        done.reduced += writes.len() as u64;
        let from = head;
        head = digester.head(from.seq, root, from.previous_root);
        store.commit_from(from.seq, &from.root, &head, &writes)?;
    }
    let from = head;
    let head = digester.head(seq, from.root, base.root);
    store.commit_from(from.seq, &from.root, &head, &[])?;
    for anchor in anchors {
        anchor.advance(&Anchored::from(&head))?;
    }
    tracing::warn!(restores = done.restores, accounts = done.accounts, "restored from a backup");
    Ok(done)
}

/// The newest state of all anchors that can be read.
fn newest(anchors: &mut [Box<dyn Anchor>], anchor_lost: bool) -> Result<Option<Anchored>, CeremonyError> {
    let mut newest: Option<Anchored> = None;
    for anchor in anchors {
        match anchor.read() {
            Ok(read) if newest.is_none_or(|newest| read.seq > newest.seq) => newest = Some(read),
            Ok(_) => {}
            Err(AnchorError::Unusable) if anchor_lost => {}
            Err(source) => return Err(CeremonyError::Anchor { name: anchor.name(), source }),
        }
    }
    Ok(newest)
}

/// `None` if nothing is to be taken away.
fn with_one_attempt(record: &Record) -> Option<Record> {
    match record {
        Record::Live(live) if live.left > 1 => {
            let mut live = live.clone();
            live.left = 1;
            Some(Record::Live(live))
        }
        _ => None,
    }
}
