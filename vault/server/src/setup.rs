//! Making a data directory, and joining one to a vault.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rand_core::OsRng;
use rustix::fs::FlockOperation;

use crate::anchor::{Anchor as _, Anchored, Digester, FileAnchor};
use crate::core::Policy;
use crate::hsm::{IdentityKey, KEY_FILE, SoftHsm};
use crate::store::{SqliteStore, Store as _};
use crate::vault::{Clock, Keys, Parts};

/// Makes keys, an empty database and its anchor in `dir`. Refuses a directory that has any of them.
pub fn init(dir: &Path) -> anyhow::Result<[u8; 32]> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).context("the data directory")?;
    let hsm = SoftHsm::create(dir, &mut OsRng).context("the data directory may hold a vault already")?;
    let digester = Digester::new(hsm.anchor_key());
    SqliteStore::create(dir, &digester.head(0, [0; 32], [0; 32]))?;
    FileAnchor::new(dir, hsm.anchor_key()).advance(&Anchored { seq: 0, root: [0; 32] })?;
    Ok(hsm.public())
}

/// Opens the data directory. The file that comes back is its lock: two vaults on one database would count apart.
pub fn open(dir: &Path, policy: Policy, insecure_dev: bool) -> anyhow::Result<(Parts, File)> {
    let hsm = SoftHsm::open(dir)?;
    if !insecure_dev {
        bail!(
            "the keys are in software (hsm: soft): whoever copies this machine's disk can guess without limit. \
             Serve it with insecure_dev = true or --insecure-dev, for development only"
        );
    }
    let lock = File::open(dir.join(KEY_FILE))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .context("another vault serves this data directory")?;
    let (digester, anchor) = (Digester::new(hsm.anchor_key()), FileAnchor::new(dir, hsm.anchor_key()));
    let hsm = Arc::new(hsm);
    let parts = Parts {
        keys: Keys { name: SoftHsm::NAME, identity: hsm.clone(), sealer: hsm.clone(), oprf: hsm },
        store: Box::new(SqliteStore::open(dir)?),
        anchor: Box::new(anchor),
        digester,
        policy,
        insecure_dev,
        clock: system_clock(),
    };
    Ok((parts, lock))
}

/// What `status` says of a data directory: identity, batches so far, records.
pub fn inspect(dir: &Path) -> anyhow::Result<([u8; 32], u64, u64)> {
    let hsm = SoftHsm::open(dir)?;
    let mut store = SqliteStore::open(dir)?;
    let mut records = 0;
    store.scan(&mut |_, _| records += 1)?;
    Ok((hsm.public(), store.head()?.seq, records))
}

fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
