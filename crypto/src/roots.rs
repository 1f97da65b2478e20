//! The data roots of an archive: what objects are sealed under, one for each key epoch.

use std::collections::BTreeMap;
use std::fmt;

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::schedule;

/// The data root of every key epoch of an archive. Never empty.
#[derive(Clone)]
pub struct DataRoots {
    by_epoch: BTreeMap<u32, Zeroizing<[u8; 32]>>,
}

impl DataRoots {
    /// A fresh root, of epoch 0.
    pub fn new(rng: &mut impl CryptoRngCore) -> Self {
        let mut roots = Self { by_epoch: BTreeMap::new() };
        roots.insert_fresh(0, rng);
        roots
    }

    /// Adds a fresh root, under which everything is sealed from now on. Returns its epoch.
    ///
    /// Panics after 2³² - 1 rotations; a keyring holds [`MAX_KEY_EPOCHS`](chatkeep_format::limits::MAX_KEY_EPOCHS).
    pub fn add_epoch(&mut self, rng: &mut impl CryptoRngCore) -> u32 {
        let epoch = self.current_epoch().checked_add(1).expect("nobody rotates four thousand million times");
        self.insert_fresh(epoch, rng);
        epoch
    }

    /// The epoch in which objects are sealed.
    pub fn current_epoch(&self) -> u32 {
        *self.by_epoch.last_key_value().expect("never empty").0
    }

    /// All epochs, ascending.
    pub fn epochs(&self) -> impl ExactSizeIterator<Item = u32> {
        self.by_epoch.keys().copied()
    }

    /// `None` when there are no roots.
    pub(crate) fn from_epochs(by_epoch: BTreeMap<u32, Zeroizing<[u8; 32]>>) -> Option<Self> {
        if by_epoch.is_empty() { None } else { Some(Self { by_epoch }) }
    }

    pub(crate) fn root(&self, epoch: u32) -> Option<&[u8; 32]> {
        self.by_epoch.get(&epoch).map(|root| &**root)
    }

    pub(crate) fn current(&self) -> (u32, &[u8; 32]) {
        let (epoch, root) = self.by_epoch.last_key_value().expect("never empty");
        (*epoch, root)
    }

    fn insert_fresh(&mut self, epoch: u32, rng: &mut impl CryptoRngCore) {
        let mut root = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *root);
        self.by_epoch.insert(epoch, root);
    }
}

impl fmt::Debug for DataRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataRoots(epoch {}, redacted)", self.current_epoch())
    }
}

/// The name of a pack: a hash of its plaintext that only holders of the current root can compute, so that a store
/// cannot test for content it knows.
pub fn pack_name(roots: &DataRoots, plaintext: &[u8]) -> [u8; 16] {
    name_under(roots.current().1, plaintext)
}

/// Whether this name was given to this plaintext, in whichever key epoch: then it is what the pack of this name holds.
pub fn is_pack_name(roots: &DataRoots, name: &[u8; 16], plaintext: &[u8]) -> bool {
    roots.by_epoch.values().rev().any(|root| name_under(root, plaintext) == *name)
}

fn name_under(root: &[u8; 32], plaintext: &[u8]) -> [u8; 16] {
    let hash = blake3::keyed_hash(&schedule::names_key(root), plaintext);
    *hash.as_bytes().first_chunk().expect("a hash is longer than a name")
}

/// Authenticates what a rehearsal of a restore found, under the root of this key epoch; nothing when there is no such epoch.
///
/// A MAC is the right signature here. Whoever can rehearse a restore has the data root, and whoever has it could have: so a
/// right MAC says all that a signature could say. Who reads it is the same service, or another one with the same key; nobody
/// else is to be convinced, and a key pair would be one more secret to lose.
pub fn drill_mac(roots: &DataRoots, key_epoch: u32, record: &[u8]) -> Option<[u8; 32]> {
    let key = schedule::drill_key(roots.root(key_epoch)?);
    Some(*blake3::keyed_hash(&key, record).as_bytes())
}
