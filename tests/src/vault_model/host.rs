//! The machine that a vault of the model runs on: one disk, one anchor, and the plug. The vault on it is the real one,
//! its thread and its check at start included; store and anchor are in memory, and records are not encrypted, so that a
//! state that was seen is seen again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_server::anchor::{Anchor, AnchorError, Anchored, Digester};
use chatkeep_vault_server::core::{Evaluator, Live, Policy, Record};
use chatkeep_vault_server::hsm::{DeviceError, IdentityKey, Keys, OprfRoot, SealKey, Sealed, Sealer};
use chatkeep_vault_server::store::{Head, Row, Store, StoreError, Write};
use chatkeep_vault_server::vault::{Parts, Vault};
use ed25519_dalek::{Signer as _, SigningKey};
use rand_core::{CryptoRng, CryptoRngCore, RngCore, impls};
use zeroize::Zeroizing;

use crate::stack::random::Random;

/// Number of the one seal key.
const KEY_ID: u32 = 1;
const IDENTITY: [u8; 32] = [9; 32];
const DIGEST_KEY: [u8; 32] = [7; 32];

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Disk {
    pub(super) seq: u64,
    root: [u8; 32],
    previous_root: [u8; 32],
    mac: [u8; 32],
    /// Revision and record.
    rows: BTreeMap<[u8; 16], (u64, Vec<u8>)>,
    /// Not on the disk: which proof, or change of password, the count on it began with.
    pub(super) window: u8,
}

impl Disk {
    /// As `chatkeep-vault init` leaves it.
    pub(super) fn new() -> Self {
        let head = digester().head(0, [0; 32], [0; 32]);
        Self { rows: BTreeMap::new(), window: 0, ..Self::at(&head) }
    }

    fn at(head: &Head) -> Self {
        let Head { seq, root, previous_root, mac } = *head;
        Self { seq, root, previous_root, mac, rows: BTreeMap::new(), window: 0 }
    }

    fn head(&self) -> Head {
        Head { seq: self.seq, root: self.root, previous_root: self.previous_root, mac: self.mac }
    }

    /// What the anchor says when this was committed last.
    pub(super) fn anchored(&self) -> (u64, [u8; 32]) {
        (self.seq, self.root)
    }
}

/// Where the plug is pulled, while the last request of a life is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// Nowhere.
    None,
    /// Nothing is durable yet.
    BeforeCommit,
    /// The record is durable, the anchor is not.
    BeforeAnchor,
    /// Both are; nothing is evaluated.
    BeforeAnswer,
    /// Evaluated, signed, and lost on the way. The host saw it.
    AnswerLost,
}

impl Fault {
    pub(super) const ALL: [Self; 5] =
        [Self::None, Self::BeforeCommit, Self::BeforeAnchor, Self::BeforeAnswer, Self::AnswerLost];
}

/// What happens to a running vault.
pub(super) enum Event {
    /// A client asks.
    Asked(Vec<u8>),
    /// Somebody exchanges the disk below it.
    Swapped(Disk),
}

/// A key and an element that were multiplied: one guess, if it is a new one.
pub(super) type Pair = ([u8; 32], Vec<u8>);

/// What is outside of the process, and stays when it dies.
struct World {
    disk: Disk,
    anchor: Anchored,
    draws: u64,
    windows: u8,
    fault: Fault,
    /// Every disk there was.
    disks: Vec<Disk>,
    evaluated: Vec<Pair>,
}

/// One life of the process, from its start to its end.
pub(super) struct Life {
    /// Whether it served.
    pub(super) served: bool,
    pub(super) disk: Disk,
    pub(super) anchor: (u64, [u8; 32]),
    pub(super) draws: u64,
    pub(super) windows: u8,
    pub(super) disks: Vec<Disk>,
    /// For each event: what was evaluated, in which window, and the answer that arrived.
    pub(super) happened: Vec<Happened>,
}

/// See [`Life::happened`].
pub(super) struct Happened {
    pub(super) evaluated: Vec<Pair>,
    pub(super) window: u8,
    pub(super) answer: Option<Answer>,
}

/// Where a life begins.
pub(super) struct Start<'a> {
    pub(super) disk: &'a Disk,
    pub(super) anchor: (u64, [u8; 32]),
    pub(super) draws: u64,
    pub(super) windows: u8,
    pub(super) now_s: u64,
    pub(super) attempts: u16,
}

/// What every start does first: whether a vault would serve this disk.
pub(super) fn is_accepted(start: &Start<'_>) -> bool {
    let world = Arc::new(Mutex::new(World::new(start)));
    digester().check(&mut MemoryStore(world.clone()), &mut MemoryAnchor(world)).is_ok()
}

/// Starts a vault, lets `events` happen to it, pulls the plug at `fault` of the last.
pub(super) fn live(start: &Start<'_>, events: Vec<Event>, fault: Fault) -> Life {
    let world = Arc::new(Mutex::new(World::new(start)));
    let vault = Vault::start(parts(&world, start), |_why| ());
    let served = vault.is_ok();
    let last = events.len().saturating_sub(1);
    let mut happened = Vec::new();
    for (n, event) in events.into_iter().enumerate().take_while(|_| served) {
        let answer = match event {
            Event::Swapped(disk) => {
                lock(&world).disk = disk;
                None
            }
            Event::Asked(request) => {
                lock(&world).fault = if n == last { fault } else { Fault::None };
                let answered = vault.as_ref().ok().and_then(|vault| vault.answer_blocking(&request).ok());
                answered
                    .filter(|_| n != last || fault != Fault::AnswerLost)
                    .map(|bytes| read(&bytes, &request, start.now_s))
            }
        };
        let mut world = lock(&world);
        let evaluated = std::mem::take(&mut world.evaluated);
        happened.push(Happened { evaluated, window: world.disk.window, answer });
    }
    drop(vault);
    let world = lock(&world);
    Life {
        served,
        disk: world.disk.clone(),
        anchor: (world.anchor.seq, world.anchor.root),
        draws: world.draws,
        windows: world.windows,
        disks: world.disks.clone(),
        happened,
    }
}

impl World {
    fn new(start: &Start<'_>) -> Self {
        let (seq, root) = start.anchor;
        Self {
            disk: start.disk.clone(),
            anchor: Anchored { seq, root },
            draws: start.draws,
            windows: start.windows,
            fault: Fault::None,
            disks: Vec::new(),
            evaluated: Vec::new(),
        }
    }
}

fn read(bytes: &[u8], request: &[u8], now_s: u64) -> Answer {
    answer::verify(bytes, &identity().verifying_key().to_bytes(), request, now_s)
        .expect("the vault signs what it says")
        .answer
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().expect("nobody panics while holding it")
}

fn digester() -> Digester {
    Digester::new(Zeroizing::new(DIGEST_KEY))
}

/// The key that clients pin.
pub(super) fn identity() -> SigningKey {
    SigningKey::from_bytes(&IDENTITY)
}

fn parts(world: &Arc<Mutex<World>>, start: &Start<'_>) -> Parts {
    let keys = Arc::new(ModelKeys { world: world.clone(), identity: identity() });
    let now_s = start.now_s;
    let counted = world.clone();
    let draw = move || {
        let mut world = lock(&counted);
        world.draws += 1;
        world.draws
    };
    Parts {
        keys: Keys { name: "model".to_owned(), identity: keys.clone(), sealer: keys.clone(), oprf: keys },
        store: Box::new(MemoryStore(world.clone())),
        anchor: Box::new(MemoryAnchor(world.clone())),
        digester: digester(),
        policy: Policy { attempts_max: start.attempts, ..Policy::without_delays() },
        insecure_dev: true,
        place: None,
        inviter: None,
        clock: Arc::new(move || now_s),
        rng: Box::new(Draws(draw)),
    }
}

/// A number for each count: what the vault draws never comes again, also when the disk goes back.
pub(super) struct Draws<F>(pub(super) F);

impl<F: FnMut() -> u64> RngCore for Draws<F> {
    fn next_u32(&mut self) -> u32 {
        impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        Random::new((self.0)()).number()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        impls::fill_bytes_via_next(self, bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl<F> CryptoRng for Draws<F> {}

struct MemoryStore(Arc<Mutex<World>>);

impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn head(&mut self) -> Result<Head, StoreError> {
        Ok(lock(&self.0).disk.head())
    }

    fn load(&mut self, accounts: &[[u8; 16]]) -> Result<Vec<Option<Row>>, StoreError> {
        let world = lock(&self.0);
        Ok(accounts.iter().map(|account| world.disk.rows.get(account).map(row)).collect())
    }

    fn commit_from(
        &mut self,
        seq: u64,
        root: &[u8; 32],
        head: &Head,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        let mut world = lock(&self.0);
        if world.fault == Fault::BeforeCommit {
            return Err(PULLED);
        }
        if (world.disk.seq, &world.disk.root) != (seq, root) {
            return Err(StoreError::Behind { found: world.disk.seq, expected: seq });
        }
        let mut next = Disk { rows: world.disk.rows.clone(), window: world.disk.window, ..Disk::at(head) };
        for Write { account, row } in writes {
            let before = next.rows.insert(*account, (row.revision, row.sealed.clone()));
            if before.is_some_and(|(_, before)| begins_a_count(&before, &row.sealed)) {
                world.windows += 1;
                next.window = world.windows;
            }
        }
        world.disks.push(next.clone());
        world.disk = next;
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError> {
        let world = lock(&self.0);
        world.disk.rows.iter().for_each(|(account, stored)| visit(account, &row(stored)));
        Ok(())
    }

    fn sealed_by_others(
        &mut self,
        _key_id: u32,
        _after: Option<&[u8; 16]>,
        _limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError> {
        Ok(Vec::new())
    }
}

const PULLED: StoreError = StoreError::Damaged { what: "the plug was pulled" };

fn row((revision, record): &(u64, Vec<u8>)) -> Row {
    Row { revision: *revision, key_id: KEY_ID, sealed: record.clone() }
}

/// Whether a proof was taken, or another registration became the active one.
fn begins_a_count(before: &[u8], after: &[u8]) -> bool {
    let (Some(before), Some(after)) = (live_record(before), live_record(after)) else { return false };
    let epoch = |live: &Live| live.active.as_ref().map(|active| active.epoch);
    let proved = before.challenge.is_some() && after.challenge.is_none();
    proved || epoch(&before) != epoch(&after)
}

fn live_record(bytes: &[u8]) -> Option<Box<Live>> {
    match Record::decode(bytes)? {
        Record::Live(live) => Some(live),
        Record::Tombstone { .. } | Record::Invite { .. } => None,
    }
}

struct MemoryAnchor(Arc<Mutex<World>>);

impl Anchor for MemoryAnchor {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn read(&mut self) -> Result<Anchored, AnchorError> {
        Ok(lock(&self.0).anchor)
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        let mut world = lock(&self.0);
        if world.fault == Fault::BeforeAnchor {
            return Err(AnchorError::Unusable);
        }
        world.anchor = *next;
        if world.fault == Fault::BeforeAnswer { Err(AnchorError::Unusable) } else { Ok(()) }
    }
}

/// Keys that evaluate as software does, and remember what they evaluated for whoever asked.
struct ModelKeys {
    world: Arc<Mutex<World>>,
    identity: SigningKey,
}

impl IdentityKey for ModelKeys {
    fn public(&self) -> [u8; 32] {
        self.identity.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
        Ok(self.identity.sign(message).to_bytes())
    }
}

impl Sealer for ModelKeys {
    fn keys(&self) -> Result<Vec<SealKey>, DeviceError> {
        Ok(vec![SealKey { id: KEY_ID, made_at_s: 0 }])
    }

    fn seal(&self, _aad: &[u8], plain: &[u8], _rng: &mut dyn CryptoRngCore) -> Result<Sealed, DeviceError> {
        Ok(Sealed { key_id: KEY_ID, bytes: plain.to_vec() })
    }

    fn open(&self, _key_id: u32, _aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        Ok(Zeroizing::new(sealed.to_vec()))
    }

    fn make_key(&self, _now_s: u64) -> Result<u32, DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn destroy_old_keys(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}

impl Evaluator for ModelKeys {
    fn suites(&self) -> &[Suite] {
        Quiet.suites()
    }

    fn generate_key(&self, suite: Suite, rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        Quiet.generate_key(suite, rng)
    }

    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        lock(&self.world).evaluated.push((*key, blinded.to_vec()));
        Quiet.evaluate(suite, key, blinded)
    }
}

impl OprfRoot for ModelKeys {
    /// What the vault evaluates to check a proof goes to nobody.
    fn at_once(&self) -> &dyn Evaluator {
        &Quiet
    }

    fn waits(&self) -> bool {
        false
    }
}

struct Quiet;

impl Evaluator for Quiet {
    fn suites(&self) -> &[Suite] {
        &[Suite::Ristretto255]
    }

    fn generate_key(&self, suite: Suite, mut rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        suite.generate_key(&mut rng)
    }

    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        suite.evaluate(key, blinded).ok()
    }
}
