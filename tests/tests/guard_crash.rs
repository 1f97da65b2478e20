//! The service dies at every point of an attempt, before a real vault: its own attempt is never taken for somebody else's, and
//! somebody else's never for its own.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use chatkeep_crypto::{BackupKey, DataRoots};
use chatkeep_format::{ArchiveId, Keyslot};
use chatkeep_store::memory::MemoryStore;
use chatkeep_tests::stack::{Machine, Settings, Stack};
use chatkeep_vault_client::{
    CourierTransport, KdfFloor, KdfParams, Recovered, Registered, Transport, TransportError, VaultError,
    VaultPin, recover, register,
};
use chatkeep_vault_protocol::message::{Envelope, Request};
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::Catalogue;
use chatkeepd::guard::{Book, LookOrder, VaultSeen, look};
use chatkeepd::keyring::Keys;
use rand_core::OsRng;

const ARCHIVE: ArchiveId = ArchiveId([7; 16]);
const RIGHT: &[u8] = b"correct horse battery staple";
const WRONG: &[u8] = b"a mistake of my own";

/// Where an attempt is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nowhere,
    BeforeGuess,
    AfterGuess,
    BeforeProof,
    AfterProof,
}

const CUTS: [Cut; 5] = [Cut::Nowhere, Cut::BeforeGuess, Cut::AfterGuess, Cut::BeforeProof, Cut::AfterProof];

/// A way to the vault that ends where it is cut.
struct Cutting {
    inner: CourierTransport,
    cut: Arc<AtomicU8>,
}

#[async_trait]
impl Transport for Cutting {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let cut = CUTS[usize::from(self.cut.load(Ordering::SeqCst))];
        let asked = Envelope::decode(&request).unwrap().request;
        let is = |before, after| match asked {
            Request::Guess(_) => cut == before,
            Request::Prove(_) => cut == after,
            _ => false,
        };
        let dead = || Err(TransportError::Unreachable { what: "killed".to_owned() });
        if is(Cut::BeforeGuess, Cut::BeforeProof) {
            return dead();
        }
        let answer = self.inner.call(vault, request.clone()).await;
        if is(Cut::AfterGuess, Cut::AfterProof) { dead() } else { answer }
    }
}

struct World {
    pin: VaultPin,
    cut: Arc<AtomicU8>,
    made: Registered,
    folder: tempfile::TempDir,
    plain: CourierTransport,
    _machine: Machine,
}

impl World {
    async fn new(stack: &Stack, name: &str) -> Self {
        let machine = stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
        let plain = CourierTransport::new(machine.root().join("run/chatkeep-courier.sock"));
        let identity: chatkeep_vault_client::Identity = stack.vault.identity.parse().unwrap();
        let pin = VaultPin { name: "tower".to_owned(), url: stack.vault.url.clone(), identity: identity.0 };
        let folder = tempfile::tempdir().unwrap();
        let cut = Arc::new(AtomicU8::new(0));
        let way = Cutting { inner: plain.clone(), cut: cut.clone() };
        let book = Book::new(Arc::new(way), Catalogue::open(folder.path()).unwrap());
        let pins = std::slice::from_ref(&pin);
        let kdf = KdfParams::TESTING;
        let made = register(&book, pins, 1, &ARCHIVE.0, RIGHT, &[9; 32], kdf, &mut OsRng).await.unwrap();
        drop(book);
        Self { pin, cut, made, folder, plain, _machine: machine }
    }

    /// The service, as it is after a start: with nothing but what is on the disk.
    fn started(&self) -> Book {
        let way = Cutting { inner: self.plain.clone(), cut: self.cut.clone() };
        Book::new(Arc::new(way), Catalogue::open(self.folder.path()).unwrap())
    }

    async fn attempt(&self, transport: &dyn Transport, password: &[u8]) -> Result<Recovered, VaultError> {
        let pins = std::slice::from_ref(&self.pin);
        let (slot, floor) = (&self.made.slot, KdfFloor::AllowWeakKdf);
        recover(transport, pins, &ARCHIVE.0, slot, password, floor, &mut OsRng).await
    }

    /// Two looks: what is not certain has to stay.
    async fn looks(&self, book: &Book) -> VaultSeen {
        let keys = Keys {
            key: BackupKey::generate(&mut OsRng),
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            counter: 1,
            slots: vec![Keyslot::Password(self.made.slot.clone())],
            secret: Some(self.made.secret.clone()),
        };
        let order = LookOrder {
            archive: Archive { store: Arc::new(MemoryStore::new()), id: ARCHIVE },
            keys,
            pins: vec![self.pin.clone()],
            lock_s: None,
            confirm_us: 0,
            check_store: false,
        };
        look(book, &order).await.unwrap();
        look(book, &order).await.unwrap().vaults.remove(0)
    }
}

#[tokio::test]
async fn however_an_attempt_is_cut_off_it_is_nobody_elses_and_hides_nobody_elses() {
    let stack = Stack::start().unwrap();
    for (number, cut) in CUTS.into_iter().enumerate() {
        for (password, word) in [(WRONG, "wrong"), (RIGHT, "right")] {
            for stranger_first in [false, true] {
                let case = format!("{cut:?}, {word}, stranger first: {stranger_first}");
                let world = World::new(&stack, &format!("m{number}-{word}-{stranger_first}")).await;
                world.cut.store(u8::try_from(number).unwrap(), Ordering::SeqCst);
                drop(world.attempt(&world.started(), password).await);
                world.cut.store(0, Ordering::SeqCst);
                let book = world.started();
                if !stranger_first {
                    let seen = world.looks(&book).await.counted.unwrap();
                    assert_eq!(seen.elsewhere, 0, "{case}: {seen:?}");
                    assert_eq!(seen.here, seen.failed, "{case}");
                }
                let guess = world.attempt(&world.plain, b"a guess of somebody else").await;
                assert!(matches!(guess, Err(VaultError::WrongPassword { .. })), "{case}: {guess:?}");
                let seen = world.looks(&book).await.counted.unwrap();
                // Between a proof that was sent and the first look, an attempt that follows it leaves open whether the
                // proof counted: then it is told, in case.
                let open = stranger_first && cut == Cut::AfterGuess;
                let most = 1 + u32::from(open || stranger_first && cut == Cut::BeforeProof);
                assert!((1..=most).contains(&seen.elsewhere), "{case}: {seen:?}");
            }
        }
    }
}
