//! Making a data directory, and joining one to a vault.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::head;
use rand_core::OsRng;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::admission::Inviter;
use crate::anchor::{ANCHOR_FILE, Anchor, Anchored, Digester, FileAnchor};
use crate::cells::{Cell, Place};
use crate::composite::AllOf;
use crate::config::{AnchorKind, BadSetting, Config, HsmConfig};
use crate::hsm::{self, Device, IdentityKey, KEY_FILE, Keys, Part};
use crate::store::{DATABASE_FILE, Head, PostgresStore, SqliteStore, Store, StoreConfig};
use crate::vault::{Clock, Parts};
use crate::witness::{self, WitnessAnchor};

/// Name of the file in the data directory that a running vault holds locked.
const LOCK_FILE: &str = "lock";

/// What the least memory of a TPM stands.
const MANY_TPM_WRITES: u64 = 100_000;

/// Makes keys, an empty database and its anchors. Refuses where there are any of them; but a cell is made around the keys
/// that are there: all cells have one identity, and on a token each has an anchor and seal keys of its own.
pub fn init(config: &Config) -> anyhow::Result<[u8; 32]> {
    let dir = &config.data;
    let shown = dir.display();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| shown.to_string())?;
    if dir.join(ANCHOR_FILE).exists() {
        bail!("`{shown}`: there is an anchor already: a new one would forget what the old one knows");
    }
    if dir.join(DATABASE_FILE).exists() {
        bail!("`{shown}` holds a vault already");
    }
    check_anchor_kinds(config)?;
    if let StoreConfig::Postgres(config) = &config.store {
        PostgresStore::check_vacant(config)?;
    }
    if config.cell.is_none() && dir.join(KEY_FILE).exists() {
        bail!("`{shown}` has the keys of a vault already: {KEY_FILE}");
    }
    let clock = system_clock();
    let device = hsm::create(&config.hsm, dir, part(config), clock(), &mut OsRng).context(
        if config.cell.is_some() {
            "a cell needs the vault's keys, in its data directory or on its token, and a map that they signed"
        } else {
            "cannot make the keys"
        },
    )?;
    let identity = device.keys.identity.public();
    init_around(config, device).context(
        "the keys are made, but the vault is not. Before `init` is tried again, remove them: nobody uses them yet",
    )?;
    Ok(identity)
}

/// Store and anchors for keys that are there.
fn init_around(config: &Config, device: Device) -> anyhow::Result<()> {
    let dir = &config.data;
    let cell = device.place.as_ref().map_or(Cell::WHOLE, |place| place.cell);
    let key = digest_key(&device);
    let anchors = own_anchors(config, device.anchor, &key)?;
    let digester = Digester::new(key);
    let head = digester.head(0, [0; 32], [0; 32]);
    match &config.store {
        StoreConfig::Sqlite {} => drop(SqliteStore::create(dir, &head)?),
        StoreConfig::Postgres(config) => PostgresStore::create(config, &cell, &head)?,
    }
    for mut anchor in anchors {
        anchor.advance(&Anchored { seq: 0, root: [0; 32] })?;
    }
    Ok(())
}

/// Opens keys, database and anchors. The file that comes back is the lock of the directory: two vaults on one database
/// would count apart. An error if another process has the store.
pub fn open(config: &Config) -> anyhow::Result<(Parts, File)> {
    Ok(parts_of(config, open_parts(config, None)?)?)
}

/// As [`open`], but if another process has a store on a server, `standby` is called, and this waits until it has not.
pub fn open_or_wait(config: &Config, standby: &mut dyn FnMut()) -> anyhow::Result<(Parts, File)> {
    Ok(parts_of(config, open_parts(config, Some(standby))?)?)
}

fn parts_of(config: &Config, opened: Opened) -> Result<(Parts, File), BadSetting> {
    let parts = Parts {
        anchor: AllOf::join(opened.anchors.into_all()),
        keys: opened.keys,
        store: opened.store,
        digester: opened.digester,
        policy: config.policy.policy(config.insecure_dev)?,
        insecure_dev: config.insecure_dev,
        place: opened.place,
        inviter: opened.inviter,
        clock: opened.clock,
        rng: Box::new(OsRng),
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
    place: Option<Place>,
    inviter: Option<Inviter>,
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
    open_parts(config, None)
}

fn open_parts(config: &Config, standby: Option<&mut dyn FnMut()>) -> anyhow::Result<Opened> {
    let dir = &config.data;
    let device = open_device(config, part(config))?;
    let lock = dir.join(LOCK_FILE);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .with_context(|| lock.display().to_string())?;
    if let Some(weakness) = device.weakness.filter(|_| !config.insecure_dev) {
        bail!("{weakness}. Serve it with insecure_dev = true or --insecure-dev, for development only");
    }
    for caution in &device.cautions {
        tracing::warn!("{caution}");
    }
    let store = open_store(config, &lock, standby)?;
    // before that, the process that had the store may have exchanged the seal key. The device itself was opened before: what
    // is wrong with it is told at once, and not when a standby is needed
    device.keys.sealer.look_again()?;
    let (clock, key) = (system_clock(), digest_key(&device));
    let cell = device.place.as_ref().map(|place| place.cell.id());
    let anchors = Anchors {
        own: own_anchors(config, device.anchor, &key)?,
        witnesses: witness::config::witness_anchor(config, cell, &device.keys.identity, &clock)?,
    };
    Ok(Opened {
        inviter: Inviter::of(&config.admission, &device.digest_key),
        keys: device.keys,
        store,
        digester: Digester::new(key),
        anchors,
        lock,
        place: device.place,
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
    /// What else whoever runs it should know.
    pub cautions: Vec<String>,
    /// What binds the state.
    pub anchor: String,
    /// What that cannot notice.
    pub anchor_limit: Option<&'static str>,
    /// Engine of the store, and what a commit survives.
    pub store: &'static str,
    /// Batches so far.
    pub seq: u64,
    /// Records, tombstones included.
    pub records: u64,
    /// Numbers of the seal keys; more than one: an exchange is not finished.
    pub seal_keys: Vec<u32>,
}

/// Looks at keys, database and anchors, also while it is served. Asks no witnesses.
pub fn inspect(config: &Config) -> anyhow::Result<Inspected> {
    let device = open_device(config, part(config))?;
    let key = digest_key(&device);
    let own = own_anchors(config, device.anchor, &key)?;
    let witnessed = config.anchor_kinds().contains(&AnchorKind::Witness);
    let names = own.iter().map(|anchor| anchor.name()).chain(witnessed.then_some("witness"));
    let anchor = names.collect::<Vec<_>>().join("+");
    let anchor_limit = if witnessed { None } else { AllOf::join(own).limit() };
    let (store, seq, records) = match &config.store {
        StoreConfig::Sqlite {} => {
            let mut store = SqliteStore::open(&config.data)?;
            let mut records = 0;
            store.scan(&mut |_, _| records += 1)?;
            (store.name(), store.head()?.seq, records)
        }
        StoreConfig::Postgres(config) => {
            let seen = PostgresStore::look(config)?;
            (seen.name, seen.head.seq, seen.records)
        }
    };
    let mut cautions = device.cautions;
    let writes = head::commits(seq);
    if writes >= MANY_TPM_WRITES && config.anchor_kinds().contains(&AnchorKind::Tpm2) {
        cautions.push(format!(
            "the anchor in the TPM was written {writes} times; its memory stands 100 000 to some millions of writes, its maker \
             may know: when it is worn out, the vault ends, and its accounts with it"
        ));
    }
    Ok(Inspected {
        identity: device.keys.identity.public(),
        seal_keys: device.keys.sealer.keys()?.iter().map(|key| key.id).collect(),
        hsm: device.keys.name,
        weakness: device.weakness,
        cautions,
        anchor,
        anchor_limit,
        store,
        seq,
        records,
    })
}

/// Makes invitations, also while the vault is served: they are stored when they are used.
pub fn inviter(config: &Config) -> anyhow::Result<Inviter> {
    // with its own place in no cell: one invitation is good in all of them
    let device = open_device(config, Part::Common)?;
    Inviter::of(&config.admission, &device.digest_key).context(
        "this vault makes accounts for everybody; set [admission] kind = \"invite\" to ask for invitations",
    )
}

/// The key that clients pin.
pub fn identity(config: &Config) -> anyhow::Result<[u8; 32]> {
    Ok(identity_key(config)?.public())
}

/// The key itself. Also for a map of cells that is not signed yet.
pub fn identity_key(config: &Config) -> anyhow::Result<Arc<dyn IdentityKey>> {
    Ok(open_device(config, Part::Common)?.keys.identity)
}

/// The accounts that `config` is for.
fn part(config: &Config) -> Part<'_> {
    config.cell.as_ref().map_or(Part::Whole, Part::Cell)
}

/// Keys the digest over the records, and the anchor in a file.
fn digest_key(device: &Device) -> Zeroizing<[u8; 32]> {
    match &device.place {
        Some(place) => place.cell.digest_key(&device.digest_key),
        None => device.digest_key.clone(),
    }
}

fn open_device(config: &Config, part: Part<'_>) -> anyhow::Result<Device> {
    let dir = &config.data;
    if !dir.try_exists().with_context(|| dir.display().to_string())? {
        bail!("there is no `{}`: make a vault with `chatkeep-vault init`", dir.display());
    }
    let opened = hsm::open(&config.hsm, dir, part);
    match config.hsm {
        HsmConfig::Soft {} => opened.with_context(|| format!("the keys in `{}`", dir.display())),
        HsmConfig::Pkcs11(_) | HsmConfig::Tpm2(_) => Ok(opened?),
    }
}

/// Before any keys are made: an anchor in a device is in the one that has them.
fn check_anchor_kinds(config: &Config) -> anyhow::Result<()> {
    let kinds = config.anchor_kinds();
    if kinds.is_empty() {
        bail!("[anchor] kinds names no anchor");
    }
    let of_device = match config.hsm {
        HsmConfig::Soft {} => None,
        HsmConfig::Pkcs11(_) => Some(AnchorKind::Pkcs11),
        HsmConfig::Tpm2(_) => Some(AnchorKind::Tpm2),
    };
    for (kind, name) in DEVICE_ANCHORS {
        if kinds.contains(&kind) && of_device != Some(kind) {
            bail!("the anchor \"{name}\" needs [hsm] kind = \"{name}\"");
        }
    }
    Ok(())
}

/// Anchors that are in the device with the keys.
const DEVICE_ANCHORS: [(AnchorKind, &str); 2] = [(AnchorKind::Pkcs11, "pkcs11"), (AnchorKind::Tpm2, "tpm2")];

/// The anchors of `config` that need nobody else, one by one.
fn own_anchors(
    config: &Config,
    mut of_device: Option<Box<dyn Anchor>>,
    key: &Zeroizing<[u8; 32]>,
) -> anyhow::Result<Vec<Box<dyn Anchor>>> {
    check_anchor_kinds(config)?;
    let kinds = config.anchor_kinds();
    let mut anchors: Vec<Box<dyn Anchor>> = Vec::new();
    if DEVICE_ANCHORS.iter().any(|(kind, _)| kinds.contains(kind)) {
        anchors.push(of_device.take().context("the device cannot be an anchor")?);
    }
    if kinds.contains(&AnchorKind::File) {
        anchors.push(Box::new(FileAnchor::new(&config.data, key.clone())));
    }
    Ok(anchors)
}

/// A file is guarded by a lock on `lock`, a server by its lease, which other machines see, too.
fn open_store(
    config: &Config,
    lock: &File,
    standby: Option<&mut dyn FnMut()>,
) -> anyhow::Result<Box<dyn Store>> {
    Ok(match &config.store {
        StoreConfig::Sqlite {} => {
            let dir = config.data.display();
            match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    bail!("`{dir}` is being served by another process: stop it first")
                }
                Err(error) => return Err(error).context(format!("the lock of `{dir}`")),
            }
            Box::new(SqliteStore::open(&config.data)?)
        }
        StoreConfig::Postgres(config) => {
            let store = match standby {
                Some(standby) => PostgresStore::open(config, standby)?,
                None => PostgresStore::open_if_free(config)?,
            };
            tracing::info!(term = store.term(), "this process has the store");
            Box::new(store)
        }
    })
}

fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A TPM belongs to one machine. A token and witnesses are for many: `tests/cells_on_a_token.rs`,
    /// `tests/cells_with_witnesses.rs`.
    #[test]
    fn cells_have_no_keys_in_a_tpm() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("vault");
        let base = format!("data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n", data.display());
        let cell = "[cell]\nmap = \"/nowhere\"\nnumber = 0\n";
        let tpm = "[hsm]\nkind = \"tpm2\"\nauth_file = \"/nowhere\"\n";
        let config: Config = toml::from_str(&format!("{base}{cell}{tpm}")).unwrap();
        for refused in [init(&config).map(drop), open(&config).map(drop)] {
            let error = format!("{:#}", refused.unwrap_err());
            assert!(error.contains("cells cannot have their keys in a TPM"), "{error}");
        }
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    }

    /// What can be checked without the devices, servers and files that they name.
    #[test]
    fn the_example_configurations_are_ones_that_a_vault_takes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples-config");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let config = Config::read(&path).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
            assert_eq!(config.policy.policy(config.insecure_dev).unwrap().delays_s.last(), Some(&86_400));
            let in_software = config.hsm == HsmConfig::Soft {};
            assert_eq!(in_software, config.insecure_dev, "{}", path.display());
            let witnessed = config.anchor_kinds().contains(&AnchorKind::Witness);
            assert_eq!(witnessed, !config.witnesses.is_empty());
            let (quorum, witnesses) = (config.anchor.quorum.unwrap_or(0), config.witnesses.len());
            assert!(!witnessed || (2 * quorum > witnesses && quorum <= witnesses));
            names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
        names.sort();
        assert_eq!(names, ["cell", "organisation", "self-hoster"]);
    }

    /// An anchor that is in no device of this vault would be none.
    #[test]
    fn an_anchor_is_in_the_device_that_has_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        for kind in ["pkcs11", "tpm2"] {
            let data = dir.path().join(kind);
            let settings = format!(
                "data = \"{}\"\nlisten = \"127.0.0.1:0\"\n[anchor]\nkinds = [\"{kind}\"]\n",
                data.display()
            );
            let refused = init(&toml::from_str(&settings).unwrap()).unwrap_err().to_string();
            assert!(refused.contains(&format!("needs [hsm] kind = \"{kind}\"")), "{refused}");
            assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "no keys before that");
        }
    }
}
