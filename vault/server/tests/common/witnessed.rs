//! Vaults that reach each other by calls in this process, honest or not.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, Answer, Body, Certificate, VaultInfo};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::SignedHead;
use chatkeep_vault_protocol::message::{
    self, Begin, Commit, Envelope, Finish, Guess, Info, Latest, Operation, owner_message, sign,
};
use chatkeep_vault_server::anchor::AnchorError;
use chatkeep_vault_server::cells::{CellConfig, CellMap};
use chatkeep_vault_server::ceremony::{self, CeremonyError, Restored};
use chatkeep_vault_server::composite::AllOf;
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::hsm::{IdentityKey as _, KEY_FILE, SoftHsm};
use chatkeep_vault_server::setup;
use chatkeep_vault_server::vault::{Parts, Vault};
use chatkeep_vault_server::witness::peers::{Link, Peer};
use chatkeep_vault_server::witness::{Witness, WitnessAnchor};
use ed25519_dalek::SigningKey;
use rand_core::{OsRng, RngCore as _};
use tempfile::TempDir;

/// How a witness looks from one vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Honest,
    /// The network says no.
    Away,
    /// Shows a state far ahead, which the vault never signed.
    Invents,
    /// Says that it signed another digest.
    SignsSomethingElse,
    /// Has another identity.
    SomebodyElse,
    /// Shows the state of the other cell, which the vault did sign.
    ShowsTheOtherCell,
}

/// One vault with its disk.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: TempDir,
    identity: [u8; 32],
    /// Which cell it is, of a vault with the map in the file [`MAP`].
    cell: Option<u16>,
    witnessed_by: Mutex<(Vec<Way>, usize)>,
    witness_for: Mutex<Vec<[u8; 32]>>,
    running: Mutex<Option<(Arc<Vault>, File)>>,
    failures: Arc<Mutex<Vec<String>>>,
}

/// From a vault to one of its witnesses.
#[derive(Clone)]
struct Way {
    to: Weak<Node>,
    behaviour: Arc<Mutex<Behaviour>>,
}

/// Name of the map of cells on a node's disk.
const MAP: &str = "cells.toml";

impl Node {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        setup::init(&Config::development(dir.path())).unwrap();
        Self::on(dir, name, None)
    }

    /// Both cells of one vault.
    pub(crate) fn two_cells() -> [Arc<Self>; 2] {
        let keys = tempfile::tempdir().unwrap();
        setup::init(&Config::development(keys.path())).unwrap();
        let identity = SoftHsm::open(keys.path()).unwrap();
        let map = "version = 1\ncells = [['https://cell-0'], ['https://cell-1']]\n";
        let map = CellMap::sign(map, &identity).unwrap();
        [0, 1].map(|number| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy(keys.path().join(KEY_FILE), dir.path().join(KEY_FILE)).unwrap();
            std::fs::write(dir.path().join(MAP), &map).unwrap();
            let node = Self::on(dir, &format!("cell {number}"), Some(number));
            setup::init(&node.config()).unwrap();
            node
        })
    }

    fn config(&self) -> Config {
        let cell = self.cell.map(|number| CellConfig { map: self.dir.path().join(MAP), number });
        Config { cell, ..Config::development(self.dir.path()) }
    }

    fn cell_id(&self) -> Option<CellId> {
        self.cell.and_then(|number| CellId::new(number, 2))
    }

    /// With a copy of a stopped vault's disk, keys included.
    pub(crate) fn clone_of(other: &Self, name: &str) -> Arc<Self> {
        Self::on(disk(other), name, other.cell)
    }

    fn on(dir: TempDir, name: &str, cell: Option<u16>) -> Arc<Self> {
        let identity = SoftHsm::open(dir.path()).unwrap().public();
        Arc::new(Self {
            name: name.to_owned(),
            dir,
            identity,
            cell,
            witnessed_by: Mutex::default(),
            witness_for: Mutex::default(),
            running: Mutex::default(),
            failures: Arc::default(),
        })
    }

    /// Configures both sides.
    pub(crate) fn is_witnessed_by(&self, witnesses: &[Arc<Self>], quorum: usize) {
        let way = |to| Way { to: Arc::downgrade(to), behaviour: Arc::new(Mutex::new(Behaviour::Honest)) };
        *self.witnessed_by.lock().unwrap() = (witnesses.iter().map(way).collect(), quorum);
        for witness in witnesses {
            witness.witness_for.lock().unwrap().push(self.identity);
        }
    }

    pub(crate) fn forgets_to_witness(&self, other: &Self) {
        self.witness_for.lock().unwrap().retain(|vault| *vault != other.identity);
    }

    /// From now on `witness` looks like this to this vault.
    pub(crate) fn sees(&self, witness: &Arc<Self>, behaviour: Behaviour) {
        for way in &self.witnessed_by.lock().unwrap().0 {
            if Weak::ptr_eq(&way.to, &Arc::downgrade(witness)) {
                *way.behaviour.lock().unwrap() = behaviour;
            }
        }
    }

    fn parts(&self) -> anyhow::Result<(Parts, File)> {
        setup::open(&self.config())
    }

    fn anchor(&self, parts: &Parts, patience: Duration) -> Result<Option<WitnessAnchor>, AnchorError> {
        let (ways, quorum) = self.witnessed_by.lock().unwrap().clone();
        if ways.is_empty() {
            return Ok(None);
        }
        let peer = |way: Way| {
            let node = way.to.upgrade().unwrap();
            Peer { name: node.name.clone(), identity: node.identity, link: Box::new(way) }
        };
        let peers = ways.into_iter().map(peer).collect();
        let (keys, clock) = (parts.keys.identity.clone(), parts.clock.clone());
        WitnessAnchor::new(peers, quorum, keys, self.cell_id(), clock, patience).map(Some)
    }

    /// Gives up on witnesses after `patience`.
    pub(crate) fn start(&self, patience: Duration) -> anyhow::Result<()> {
        let (parts, lock) = self.parts()?;
        let witnesses = self.anchor(&parts, patience)?;
        let mut anchors = vec![parts.anchor];
        if let Some(witnesses) = witnesses {
            anchors.push(Box::new(witnesses));
        }
        let parts = Parts { anchor: AllOf::join(anchors), ..parts };
        let failures = self.failures.clone();
        let vaults = self.witness_for.lock().unwrap().clone();
        let witness = Witness::open(self.dir.path(), &vaults, |what| panic!("{what}"))?;
        let (vault, starting) =
            Vault::begin(parts, Some(witness), false, move |what| failures.lock().unwrap().push(what))?;
        let vault = Arc::new(vault.with_patience(Duration::from_millis(1500)));
        *self.running.lock().unwrap() = Some((vault, lock));
        if let Err(error) = starting.wait() {
            self.stop();
            return Err(error.into());
        }
        Ok(())
    }

    pub(crate) fn enrol(&self, patience: Duration) -> anyhow::Result<()> {
        let (mut parts, _lock) = self.parts()?;
        let head = parts.digester.check_store(&mut *parts.store)?.head;
        self.anchor(&parts, patience)?.unwrap().enrol(&head)?;
        Ok(())
    }

    /// The ceremony, with all the anchors that [`Self::start`] asks.
    pub(crate) fn restore(&self, anchor_lost: bool, patience: Duration) -> Result<Restored, CeremonyError> {
        let (parts, _lock) = self.parts().unwrap();
        let witnesses = self.anchor(&parts, patience)?;
        let mut anchors = vec![parts.anchor];
        if let Some(witnesses) = witnesses {
            anchors.push(Box::new(witnesses));
        }
        let mut store = parts.store;
        ceremony::restore(&mut *store, &parts.keys, &parts.digester, &mut anchors, anchor_lost)
    }

    pub(crate) fn stop(&self) {
        let running = self.running.lock().unwrap().take();
        let Some((vault, lock)) = running else { return };
        // a link in another thread may be in the middle of a call
        let mut vault = Some(vault);
        while let Some(shared) = vault.take() {
            match Arc::try_unwrap(shared) {
                Ok(last) => drop(last),
                Err(shared) => {
                    vault = Some(shared);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        drop(lock);
    }

    pub(crate) fn vault(&self) -> Option<Arc<Vault>> {
        self.running.lock().unwrap().as_ref().map(|running| running.0.clone())
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    fn answer(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let vault = self.vault().ok_or("stopped")?;
        vault.answer_blocking(request).map_err(|error| error.to_string())
    }

    pub(crate) fn ask(&self, request: &Request) -> Answer {
        self.try_ask(request).unwrap()
    }

    pub(crate) fn ask_if_it_lives(&self, request: &Request) {
        drop(self.try_ask(request));
    }

    /// A machine under load may be slower than the short patience of these vaults.
    fn ask_until_not_busy(&self, request: &Request) -> Answer {
        let mut answer = Answer::Busy {};
        self.until(|node| {
            answer = node.ask(request);
            answer != Answer::Busy {}
        });
        answer
    }

    fn try_ask(&self, request: &Request) -> Result<Answer, String> {
        let answer = self.answer(&request.0)?;
        Ok(answer::verify(&answer, &self.identity, &request.0, now_s()).unwrap().answer)
    }

    pub(crate) fn info(&self) -> VaultInfo {
        match self.ask(&Request::new(message::Request::Info(Info {}))) {
            Answer::Info(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    /// The commit of `other` that this node holds as its witness.
    pub(crate) fn latest_of(&self, other: &Self) -> Option<u64> {
        let latest = Latest { vault: Fixed(other.identity), cell: other.cell_id() };
        match self.ask(&Request::new(message::Request::Latest(latest))) {
            Answer::Latest { head } => head.map(|head| head.seq),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for what comes by itself; a minute is more than any machine needs.
    pub(crate) fn until(&self, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..6000 {
            if done(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it never happened");
    }
}

impl Link for Way {
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, String> {
        let behaviour = *self.behaviour.lock().unwrap();
        if behaviour == Behaviour::Away {
            return Err("no route".to_owned());
        }
        let node = self.to.upgrade().ok_or("gone")?;
        let answer = node.answer(request)?;
        Ok(if behaviour == Behaviour::Honest { answer } else { node.distort(behaviour, request, &answer) })
    }
}

impl Node {
    /// Signs another answer, with the real identity unless it is somebody else's.
    fn distort(&self, behaviour: Behaviour, request: &[u8], honest: &[u8]) -> Vec<u8> {
        let identity = SoftHsm::open(self.dir.path()).unwrap();
        let mut body = answer::verify(honest, &self.identity, request, now_s()).unwrap();
        match (behaviour, &mut body.answer) {
            (Behaviour::Invents, Answer::Latest { head: Some(head) }) => {
                **head = SignedHead { seq: head.seq + 1000, ..**head };
            }
            (Behaviour::SignsSomethingElse, Answer::Cosigned { root, .. }) => root.0[0] ^= 1,
            (Behaviour::ShowsTheOtherCell, answer @ Answer::Latest { .. }) => {
                *answer = self.latest_of_the_other_cell(request);
            }
            _ => {}
        }
        if behaviour == Behaviour::SomebodyElse {
            let stranger = SigningKey::from_bytes(&[7; 32]);
            return signed(
                &|message| ed25519_dalek::Signer::sign(&stranger, message).to_bytes(),
                self,
                request,
                &body,
            );
        }
        signed(&|message| identity.sign(message).unwrap(), self, request, &body)
    }
}

impl Node {
    fn latest_of_the_other_cell(&self, request: &[u8]) -> Answer {
        let Some(message::Request::Latest(Latest { vault, cell: Some(cell) })) =
            Envelope::decode(request).map(|envelope| envelope.request)
        else {
            panic!("the vault has cells");
        };
        let cell = CellId::new(cell.of() - 1 - cell.number(), cell.of());
        self.ask(&Request::new(message::Request::Latest(Latest { vault, cell })))
    }
}

fn signed(identity: &dyn Fn(&[u8]) -> [u8; 64], node: &Node, request: &[u8], body: &Body) -> Vec<u8> {
    let key = SigningKey::generate(&mut OsRng);
    let operational = key.verifying_key().to_bytes();
    let certificate = Certificate { operational, not_before_s: now_s(), not_after_s: now_s() + 60 };
    let certificate = certificate.encode(&identity(&certificate.message()));
    answer::sign(&key, &certificate, &node.identity, request, body)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `w` witnesses that nobody witnesses.
pub(crate) fn witnesses(w: usize) -> Vec<Arc<Node>> {
    (1..=w).map(|n| Node::new(&format!("witness {n}"))).collect()
}

/// A copy of a stopped vault's whole disk.
pub(crate) fn disk(node: &Node) -> TempDir {
    assert!(node.vault().is_none(), "a running vault's files change");
    let copy = tempfile::tempdir().unwrap();
    copy_files(node.dir.path(), copy.path());
    copy
}

/// Puts a copy in the place of everything a stopped vault has.
pub(crate) fn put_back(node: &Node, copy: &TempDir) {
    assert!(node.vault().is_none());
    for entry in std::fs::read_dir(node.dir.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    copy_files(copy.path(), node.dir.path());
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The bytes of one request; asked again, they are the same.
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn new(request: message::Request) -> Self {
        Self(Envelope::new(request, &mut OsRng).encode())
    }

    /// A wrong password, blinded afresh: another attempt each time it is made, the same one when it is sent again.
    pub(crate) fn guess(account: &Account, n: usize) -> Self {
        let blinded = Blob(Suite::Ristretto255.blind(&n.to_be_bytes(), &mut OsRng).element);
        Self::new(message::Request::Guess(Guess { account: Fixed(account.id), epoch: EPOCH, blinded }))
    }
}

const EPOCH: Fixed<16> = Fixed([1; 16]);

/// A registered account.
pub(crate) struct Account {
    id: [u8; 16],
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl Account {
    pub(crate) fn new(node: &Node) -> Self {
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        if let Some(cell) = node.cell {
            // of two: the first bit
            id[0] = id[0] >> 1 | (cell as u8) << 7;
        }
        let (account, epoch) = (Fixed(id), EPOCH);
        let key = SigningKey::generate(&mut OsRng);
        let begin = Begin {
            account,
            epoch,
            suite: Suite::Ristretto255 as u8,
            blinded: Blob(Suite::Ristretto255.blind(b"x", &mut OsRng).element),
            attempts_max: 10,
            signature: None,
            invite: None,
        };
        let public_key = Fixed(key.verifying_key().to_bytes());
        let finish = Finish { account, epoch, public_key, signature: None };
        let message = owner_message(Operation::Commit, &node.identity, &id, &epoch.0);
        let commit = Commit { account, epoch, signature: sign(&key, &message) };
        let requests = [
            message::Request::Begin(begin),
            message::Request::Finish(finish),
            message::Request::Commit(commit),
        ];
        for request in requests.map(Request::new) {
            let answer = node.ask_until_not_busy(&request);
            let went_on =
                matches!(answer, Answer::Evaluated { .. } | Answer::Pending {} | Answer::Active { .. });
            assert!(went_on, "{answer:?}");
        }
        Self { id, last: Mutex::new(None) }
    }

    /// As [`Self::guess`], sent again until there is an answer, which says how many attempts are left.
    pub(crate) fn left_after(&self, node: &Node, n: usize) -> u16 {
        let mut answer = Answer::Busy {};
        node.until(|node| {
            answer = self.guess(node, n);
            answer != Answer::Busy {}
        });
        match answer {
            Answer::Charged(charged) => charged.left,
            other => panic!("{other:?}"),
        }
    }

    /// One wrong guess; the same `n` again sends the same bytes.
    pub(crate) fn guess(&self, node: &Node, n: usize) -> Answer {
        let mut last = self.last.lock().unwrap();
        let bytes = match last.take() {
            Some((same, bytes)) if same == n => bytes,
            _ => Request::guess(self, n).0,
        };
        let answer = node.ask(&Request(bytes.clone()));
        *last = Some((n, bytes));
        answer
    }
}
