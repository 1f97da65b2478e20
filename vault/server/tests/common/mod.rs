//! Vaults in this process, on real disks, and a liar.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of this")]

pub(crate) mod device_cases;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod soft_token;
pub(crate) mod swtpm;
pub(crate) mod witnessed;
pub(crate) mod world;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use chatkeep_vault_client::{
    DirectTransport, KdfFloor, KdfParams, Recovered, Registered, TransportError, VaultError, VaultPin,
    recover, register,
};
use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, Answer, Certificate};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::hsm::{IdentityKey as _, SoftHsm};
use chatkeep_vault_server::setup;
use chatkeep_vault_server::vault::Vault;
use ed25519_dalek::SigningKey;
use rand_core::OsRng;
use tempfile::TempDir;

pub(crate) const CONTEXT: [u8; 16] = [0xc0; 16];
pub(crate) const KEY: [u8; 32] = *b"the backup key, thirty-two bytes";
pub(crate) const PASSWORD: &[u8] = "correct horse b\u{e4}ttery".as_bytes();

/// A vault that can be stopped and started again.
pub(crate) struct Local {
    pub(crate) dir: TempDir,
    pub(crate) pin: VaultPin,
    running: Mutex<Option<(Arc<Vault>, File)>>,
}

impl Local {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let identity = setup::init(&Config::development(dir.path())).unwrap();
        let pin = VaultPin { name: name.to_owned(), url: format!("https://{name}.example"), identity };
        let local = Self { dir, pin, running: Mutex::new(None) };
        local.start().unwrap();
        Arc::new(local)
    }

    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let (parts, lock) = setup::open(&Config::development(self.dir.path()))?;
        let vault = Vault::start(parts, |what| eprintln!("stopped: {what}"))?;
        *self.running.lock().unwrap() = Some((Arc::new(vault), lock));
        Ok(())
    }

    pub(crate) fn stop(&self) {
        *self.running.lock().unwrap() = None;
    }

    pub(crate) fn vault(&self) -> Option<Arc<Vault>> {
        self.running.lock().unwrap().as_ref().map(|running| running.0.clone())
    }

    pub(crate) fn answer(&self, request: &[u8]) -> Result<Vec<u8>, TransportError> {
        let away = || TransportError::Unreachable { what: "stopped".to_owned() };
        self.vault().ok_or_else(away)?.answer_blocking(request).map_err(|_| away())
    }
}

pub(crate) fn transport(vaults: &[Arc<Local>]) -> DirectTransport {
    let mut transport = DirectTransport::new();
    for vault in vaults {
        let served = vault.clone();
        transport.insert(vault.pin.identity, move |request| served.answer(request));
    }
    transport
}

/// Holds the vault's real identity, and evaluates with another key.
pub(crate) fn lie(vault: &Local, request: &[u8]) -> Result<Vec<u8>, TransportError> {
    let identity = SoftHsm::open(vault.dir.path()).unwrap();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let honest = vault.answer(request)?;
    let mut body = answer::verify(&honest, &identity.public(), request, now_s).unwrap();
    if let Answer::Charged(charged) = &mut body.answer {
        charged.evaluated.0 = Suite::Ristretto255.blind(b"a lie", &mut OsRng).element;
        charged.left = u16::MAX;
    }
    let key = SigningKey::generate(&mut OsRng);
    let operational = key.verifying_key().to_bytes();
    let certificate = Certificate { operational, not_before_s: now_s, not_after_s: now_s + 60 };
    let certificate = certificate.encode(&identity.sign(&certificate.message()).unwrap());
    Ok(answer::sign(&key, &certificate, &identity.public(), request, &body))
}

pub(crate) fn pins(vaults: &[Arc<Local>]) -> Vec<VaultPin> {
    vaults.iter().map(|vault| vault.pin.clone()).collect()
}

pub(crate) async fn enroll(
    transport: &dyn chatkeep_vault_client::Transport,
    pins: &[VaultPin],
    threshold: u8,
) -> Registered {
    try_enroll(transport, pins, threshold).await.unwrap()
}

pub(crate) async fn try_enroll(
    transport: &dyn chatkeep_vault_client::Transport,
    pins: &[VaultPin],
    threshold: u8,
) -> Result<Registered, VaultError> {
    register(transport, pins, threshold, &CONTEXT, PASSWORD, &KEY, KdfParams::TESTING, &mut OsRng).await
}

pub(crate) async fn unlock(
    transport: &dyn chatkeep_vault_client::Transport,
    pins: &[VaultPin],
    slot: &[u8],
    password: &[u8],
) -> Result<Recovered, VaultError> {
    recover(transport, pins, &CONTEXT, slot, password, KdfFloor::AllowWeakKdf, &mut OsRng).await
}

/// Whether any file in `dir` contains `needle`.
pub(crate) fn contains(dir: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}
