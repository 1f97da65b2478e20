//! Making a data directory, and joining one to a vault.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rand_core::OsRng;
use rustix::fs::FlockOperation;
use zeroize::Zeroizing;

use crate::anchor::{Anchor, Anchored, Digester, FileAnchor};
use crate::composite::AllOf;
use crate::config::{AnchorKind, Config};
use crate::hsm::{self, Keys};
use crate::store::{DATABASE_FILE, Head, SqliteStore, Store};
use crate::vault::{Clock, Parts};
use crate::witness::{self, WitnessAnchor};

/// Name of the file in the data directory that a running vault holds locked.
const LOCK_FILE: &str = "lock";

/// Makes keys, an empty database and its anchors. Refuses where there are any of them.
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
    let anchors = own_anchors(config, device.anchor, &device.digest_key)?;
    SqliteStore::create(dir, &digester.head(0, [0; 32], [0; 32]))?;
    for mut anchor in anchors {
        anchor.advance(&Anchored { seq: 0, root: [0; 32] })?;
    }
    Ok(device.keys.identity.public())
}

/// Opens keys, database and anchors. The file that comes back is the lock of the directory: two vaults on one database
/// would count apart.
pub fn open(config: &Config) -> anyhow::Result<(Parts, File)> {
    let opened = open_apart(config)?;
    let parts = Parts {
        anchor: AllOf::join(opened.anchors.into_all()),
        keys: opened.keys,
        store: opened.store,
        digester: opened.digester,
        policy: config.policy.policy(config.insecure_dev)?,
        insecure_dev: config.insecure_dev,
        clock: opened.clock,
    };
    Ok((parts, opened.lock))
}

/// What [`open_apart`] gives.
pub struct Opened {
    /// Identity, seal and OPRF keys.
    pub keys: Keys,
    /// Records.
    pub store: Box<dyn Store>,
    /// Keyed digest over all records.
    pub digester: Digester,
    /// All that the database must agree with.
    pub anchors: Anchors,
    /// Of the data directory.
    pub lock: File,
    clock: Clock,
}

/// All anchors of a vault.
pub struct Anchors {
    /// Those that need nobody else.
    pub own: Vec<Box<dyn Anchor>>,
    /// Other vaults, if there are any.
    pub witnesses: Option<WitnessAnchor>,
}

impl Anchors {
    /// One by one: those that need nobody else first. There is at least one.
    pub fn into_all(self) -> Vec<Box<dyn Anchor>> {
        let witnesses = self.witnesses.map(|witnesses| Box::new(witnesses) as Box<dyn Anchor>);
        self.own.into_iter().chain(witnesses).collect()
    }
}

/// As [`open`], with every anchor by itself: for whoever runs the vault and has something to repair.
pub fn open_apart(config: &Config) -> anyhow::Result<Opened> {
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
    let clock = system_clock();
    let anchors = Anchors {
        own: own_anchors(config, device.anchor, &device.digest_key)?,
        witnesses: witness::config::witness_anchor(config, &device.keys.identity, &clock)?,
    };
    Ok(Opened {
        keys: device.keys,
        store: Box::new(SqliteStore::open(dir)?),
        digester: Digester::new(device.digest_key),
        anchors,
        lock,
        clock,
    })
}

/// Shows the database's state to the witnesses, after the other anchors agreed that it is the newest.
pub fn enrol_witnesses(config: &Config) -> anyhow::Result<Head> {
    let Opened { mut store, digester, anchors, lock: _lock, .. } = open_apart(config)?;
    let mut witnesses = anchors.witnesses.context("the configuration names no witnesses")?;
    let head = digester.check_store(&mut *store)?.head;
    if !anchors.own.is_empty() {
        AllOf::join(anchors.own).settle(&head)?;
    }
    witnesses.enrol(&head)?;
    Ok(head)
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
    pub anchor: String,
    /// What that cannot notice.
    pub anchor_limit: Option<&'static str>,
    /// Batches so far.
    pub seq: u64,
    /// Records, tombstones included.
    pub records: u64,
    /// Numbers of the seal keys; more than one: an exchange is not finished.
    pub seal_keys: Vec<u32>,
}

/// Looks at keys, database and anchors. Asks no witnesses.
pub fn inspect(config: &Config) -> anyhow::Result<Inspected> {
    let device = hsm::open(&config.hsm, &config.data)?;
    let own = own_anchors(config, device.anchor, &device.digest_key)?;
    let witnessed = config.anchor_kinds().contains(&AnchorKind::Witness);
    let names = own.iter().map(|anchor| anchor.name()).chain(witnessed.then_some("witness"));
    let anchor = names.collect::<Vec<_>>().join("+");
    let anchor_limit = if witnessed { None } else { AllOf::join(own).limit() };
    let mut store = SqliteStore::open(&config.data)?;
    let mut records = 0;
    store.scan(&mut |_, _| records += 1)?;
    Ok(Inspected {
        identity: device.keys.identity.public(),
        seal_keys: device.keys.sealer.keys()?.iter().map(|key| key.id).collect(),
        hsm: device.keys.name,
        weakness: device.weakness,
        anchor,
        anchor_limit,
        seq: store.head()?.seq,
        records,
    })
}

/// The key that clients pin.
pub fn identity(config: &Config) -> anyhow::Result<[u8; 32]> {
    Ok(hsm::open(&config.hsm, &config.data)?.keys.identity.public())
}

/// The anchors of `config` that need nobody else, one by one.
fn own_anchors(
    config: &Config,
    of_device: Option<Box<dyn Anchor>>,
    key: &Zeroizing<[u8; 32]>,
) -> anyhow::Result<Vec<Box<dyn Anchor>>> {
    let kinds = config.anchor_kinds();
    if kinds.is_empty() {
        bail!("[anchor] kinds names no anchor");
    }
    let mut anchors: Vec<Box<dyn Anchor>> = Vec::new();
    if kinds.contains(&AnchorKind::Pkcs11) {
        anchors.push(of_device.context("the anchor \"pkcs11\" needs [hsm] kind = \"pkcs11\"")?);
    }
    if kinds.contains(&AnchorKind::File) {
        anchors.push(Box::new(FileAnchor::new(&config.data, key.clone())));
    }
    Ok(anchors)
}

fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
