//! Making a data directory, and joining one to a vault.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rand_core::OsRng;
use rustix::fs::FlockOperation;
use zeroize::Zeroizing;

use crate::anchor::{Anchor, Anchored, Digester, FileAnchor};
use crate::config::{AnchorKind, Config};
use crate::hsm;
use crate::store::{DATABASE_FILE, SqliteStore, Store as _};
use crate::vault::{Clock, Parts};

/// Name of the file in the data directory that a running vault holds locked.
const LOCK_FILE: &str = "lock";

/// Makes keys, an empty database and its anchor. Refuses where there are any of them.
pub fn init(config: &Config) -> anyhow::Result<[u8; 32]> {
    let dir = &config.data;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).context("the data directory")?;
    if dir.join(DATABASE_FILE).exists() {
        bail!("the data directory holds a vault already");
    }
    let clock = system_clock();
    let device = hsm::create(&config.hsm, dir, clock(), &mut OsRng)
        .context("the keys; data directory or token may have those of a vault already")?;
    let digester = Digester::new(device.digest_key.clone());
    let mut anchor = choose_anchor(config.anchor, dir, device.anchor, &device.digest_key)?;
    SqliteStore::create(dir, &digester.head(0, [0; 32], [0; 32]))?;
    anchor.advance(&Anchored { seq: 0, root: [0; 32] })?;
    Ok(device.keys.identity.public())
}

/// Opens keys, database and anchor. The file that comes back is the lock of the directory: two vaults on one database
/// would count apart.
pub fn open(config: &Config) -> anyhow::Result<(Parts, File)> {
    let dir = &config.data;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .context("the data directory")?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .context("another vault serves this data directory")?;
    let device = hsm::open(&config.hsm, dir)?;
    if let Some(weakness) = device.weakness.filter(|_| !config.insecure_dev) {
        bail!("{weakness}. Serve it with insecure_dev = true or --insecure-dev, for development only");
    }
    let parts = Parts {
        keys: device.keys,
        store: Box::new(SqliteStore::open(dir)?),
        anchor: choose_anchor(config.anchor, dir, device.anchor, &device.digest_key)?,
        digester: Digester::new(device.digest_key),
        policy: config.policy.policy(config.insecure_dev)?,
        insecure_dev: config.insecure_dev,
        clock: system_clock(),
    };
    Ok((parts, lock))
}

/// What `status` says of a vault that need not run.
pub struct Inspected {
    /// The key that clients pin.
    pub identity: [u8; 32],
    /// Where the keys are.
    pub hsm: String,
    /// Why they are for development only, if they are.
    pub weakness: Option<&'static str>,
    /// What binds the state.
    pub anchor: &'static str,
    /// What that cannot notice.
    pub anchor_limit: Option<&'static str>,
    /// Batches so far.
    pub seq: u64,
    /// Records, tombstones included.
    pub records: u64,
    /// Numbers of the seal keys; more than one: an exchange is not finished.
    pub seal_keys: Vec<u32>,
}

/// Looks at keys, database and anchor.
pub fn inspect(config: &Config) -> anyhow::Result<Inspected> {
    let device = hsm::open(&config.hsm, &config.data)?;
    let anchor = choose_anchor(config.anchor, &config.data, device.anchor, &device.digest_key)?;
    let mut store = SqliteStore::open(&config.data)?;
    let mut records = 0;
    store.scan(&mut |_, _| records += 1)?;
    Ok(Inspected {
        identity: device.keys.identity.public(),
        seal_keys: device.keys.sealer.keys()?.iter().map(|key| key.id).collect(),
        hsm: device.keys.name,
        weakness: device.weakness,
        anchor: anchor.name(),
        anchor_limit: anchor.limit(),
        seq: store.head()?.seq,
        records,
    })
}

/// The key that clients pin.
pub fn identity(config: &Config) -> anyhow::Result<[u8; 32]> {
    Ok(hsm::open(&config.hsm, &config.data)?.keys.identity.public())
}

fn choose_anchor(
    wanted: Option<AnchorKind>,
    dir: &Path,
    of_device: Option<Box<dyn Anchor>>,
    key: &Zeroizing<[u8; 32]>,
) -> anyhow::Result<Box<dyn Anchor>> {
    match (wanted, of_device) {
        (Some(AnchorKind::File), _) | (None, None) => Ok(Box::new(FileAnchor::new(dir, key.clone()))),
        (Some(AnchorKind::Pkcs11) | None, Some(anchor)) => Ok(anchor),
        (Some(AnchorKind::Pkcs11), None) => bail!("anchor = \"pkcs11\" needs [hsm] kind = \"pkcs11\""),
    }
}

fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
