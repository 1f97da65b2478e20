//! Making a data directory, and joining one to a vault.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rand_core::OsRng;
use rustix::fs::FlockOperation;

use crate::anchor::{ANCHOR_FILE, Anchor as _, Anchored, Digester, FileAnchor};
use crate::cells::{Cell, CellConfig, Place};
use crate::core::Policy;
use crate::hsm::{IdentityKey, KEY_FILE, SoftHsm};
use crate::store::{PostgresStore, SqliteStore, Store, StoreConfig};
use crate::vault::{Clock, Keys, Parts};

/// Makes keys, an empty database and its anchor in `dir`. Refuses a directory that has any of them.
pub fn init(dir: &Path) -> anyhow::Result<[u8; 32]> {
    init_with(dir, &StoreConfig::default(), None)
}

/// As [`init`], with records elsewhere. A cell is made around the keys that are there: all cells have one identity.
pub fn init_with(dir: &Path, store: &StoreConfig, cell: Option<&CellConfig>) -> anyhow::Result<[u8; 32]> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).context("the data directory")?;
    let hsm = if cell.is_some() {
        SoftHsm::open(dir).context("a cell needs the vault's keys in its data directory")?
    } else {
        SoftHsm::create(dir, &mut OsRng).context("the data directory may hold a vault already")?
    };
    if dir.join(ANCHOR_FILE).exists() {
        bail!("there is an anchor already: a new one would forget what the old one knows");
    }
    let cell = match cell {
        Some(cell) => Place::read(cell, &hsm.public())?.cell,
        None => Cell::WHOLE,
    };
    let digester = Digester::new(hsm.anchor_key());
    let head = digester.head(0, [0; 32], [0; 32]);
    match store {
        StoreConfig::Sqlite {} => drop(SqliteStore::create(dir, &head)?),
        StoreConfig::Postgres(config) => PostgresStore::create(config, &cell, &head)?,
    }
    FileAnchor::new(dir, hsm.anchor_key()).advance(&Anchored { seq: 0, root: [0; 32] })?;
    Ok(hsm.public())
}

/// Opens the data directory. The file that comes back is its lock: two vaults on one database would count apart.
pub fn open(dir: &Path, policy: Policy, insecure_dev: bool) -> anyhow::Result<(Parts, File)> {
    open_with(dir, &StoreConfig::default(), None, policy, insecure_dev, &mut || {})
}

/// As [`open`], with records elsewhere, and for one cell. `standby` is called if another process has the store; then
/// this waits until it has not.
pub fn open_with(
    dir: &Path,
    store: &StoreConfig,
    cell: Option<&CellConfig>,
    policy: Policy,
    insecure_dev: bool,
    standby: &mut dyn FnMut(),
) -> anyhow::Result<(Parts, File)> {
    let hsm = SoftHsm::open(dir)?;
    if !insecure_dev {
        bail!(
            "the keys are in software (hsm: soft): whoever copies this machine's disk can guess without limit. \
             Serve it with insecure_dev = true or --insecure-dev, for development only"
        );
    }
    let place = cell.map(|cell| Place::read(cell, &hsm.public())).transpose()?;
    let lock = File::open(dir.join(KEY_FILE))?;
    let store = open_store(dir, store, &lock, standby)?;
    let (digester, anchor) = (Digester::new(hsm.anchor_key()), FileAnchor::new(dir, hsm.anchor_key()));
    let hsm = Arc::new(hsm);
    let parts = Parts {
        keys: Keys { name: SoftHsm::NAME, identity: hsm.clone(), sealer: hsm.clone(), oprf: hsm },
        store,
        anchor: Box::new(anchor),
        digester,
        policy,
        insecure_dev,
        place,
        clock: system_clock(),
    };
    Ok((parts, lock))
}

/// A file is guarded by a lock on `lock`, a server by its lease, which other machines see, too.
fn open_store(
    dir: &Path,
    config: &StoreConfig,
    lock: &File,
    standby: &mut dyn FnMut(),
) -> anyhow::Result<Box<dyn Store>> {
    Ok(match config {
        StoreConfig::Sqlite {} => {
            rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive)
                .context("another vault serves this data directory")?;
            Box::new(SqliteStore::open(dir)?)
        }
        StoreConfig::Postgres(config) => {
            let store = PostgresStore::open(config, standby)?;
            tracing::info!(term = store.term(), "this process has the store");
            Box::new(store)
        }
    })
}

/// What `status` says of a data directory.
pub struct Status {
    /// The identity.
    pub identity: [u8; 32],
    /// Engine, and what a commit survives.
    pub store: &'static str,
    /// Batches so far.
    pub seq: u64,
    /// Records.
    pub records: u64,
}

/// Looks at a data directory, also while it is served.
pub fn inspect(dir: &Path, store: &StoreConfig) -> anyhow::Result<Status> {
    let identity = SoftHsm::open(dir)?.public();
    let (store, seq, records) = match store {
        StoreConfig::Sqlite {} => {
            let mut store = SqliteStore::open(dir)?;
            let mut records = 0;
            store.scan(&mut |_, _| records += 1)?;
            (store.name(), store.head()?.seq, records)
        }
        StoreConfig::Postgres(config) => {
            let seen = PostgresStore::look(config)?;
            (seen.name, seen.head.seq, seen.records)
        }
    };
    Ok(Status { identity, store, seq, records })
}

fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
