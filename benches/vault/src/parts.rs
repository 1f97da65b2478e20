//! What each part of the vault allows by itself: the primitive of its keys, an evaluation, the commit, the anchor, and
//! what is done for every answer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, Answer, Body};
use chatkeep_vault_protocol::limits::VERSION;
use chatkeep_vault_server::anchor::Anchored;
use chatkeep_vault_server::config::{Config, HsmConfig, Pkcs11Config};
use chatkeep_vault_server::core::RECORD_LEN;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::store::{Row, Write};
use chatkeep_vault_server::vault;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use ed25519_dalek::SigningKey;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use rand_core::{OsRng, RngCore as _};
use serde::{Deserialize, Serialize};

use crate::clients::Rates;

/// How long each part is measured.
const RUN: Duration = Duration::from_secs(2);

/// How often a second, alone on one core.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// What a guess asks of the keys, without our code: in software a multiplication, on a token two derivations, in a TPM
    /// a command.
    primitive: f64,
    /// The same through the vault's own code.
    evaluations: f64,
    /// Signing an answer; part of what a connection allows.
    signatures: f64,
    /// Clients, and what commits with as many writes allow.
    commits: Vec<(usize, f64)>,
    /// Moving the anchor.
    anchor: f64,
}

impl Parts {
    /// Of a vault that does not run.
    pub(crate) fn measure(config: &Path, batches: &[usize]) -> Result<Self> {
        let config = Config::read(config)?;
        let primitive = match &config.hsm {
            HsmConfig::Soft {} => multiplications(),
            HsmConfig::Pkcs11(token) => derivations(token)? / 2.0,
            HsmConfig::Tpm2(tpm) => commands(&tpm.tcti)?,
        };
        let (mut parts, _lock) = setup::open(&config)?;
        let oprf = parts.keys.oprf.clone();
        let suite = oprf.suites()[0];
        let key = oprf.generate_key(suite, &mut OsRng);
        let blinded = suite.blind(b"x", &mut OsRng).element;
        let evaluations = each(|| drop(oprf.evaluate(suite, &key, &blinded)));
        let commits =
            batches.iter().map(|batch| Ok((*batch, commits(&mut parts, *batch)?))).collect::<Result<_>>()?;
        let anchor = moves(&mut parts);
        Ok(Self { primitive, evaluations, signatures: signatures(), commits, anchor })
    }

    /// What each part allows with so many clients.
    pub(crate) fn allow(&self, rates: &Rates) -> [(&'static str, f64); 4] {
        let commits =
            self.commits.iter().find(|(batch, _)| *batch == rates.clients).map_or(f64::NAN, |(_, n)| *n);
        [
            ("evaluation", self.evaluations),
            ("commit", commits),
            ("anchor", self.anchor * rates.clients as f64),
            ("connection", rates.questions),
        ]
    }
}

/// How often a second.
pub(crate) fn each(mut work: impl FnMut()) -> f64 {
    let (start, mut done) = (Instant::now(), 0u32);
    while start.elapsed() < RUN {
        work();
        done += 1;
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

fn multiplications() -> f64 {
    let suite = Suite::Ristretto255;
    let key = suite.generate_key(&mut OsRng);
    let blinded = suite.blind(b"x", &mut OsRng).element;
    each(|| drop(suite.evaluate(&key, &blinded)))
}

#[cfg(feature = "tpm2")]
fn commands(tcti: &str) -> Result<f64> {
    crate::zgen::measure(tcti)
}

#[cfg(not(feature = "tpm2"))]
fn commands(_tcti: &str) -> Result<f64> {
    anyhow::bail!("built without the feature tpm2")
}

/// ECDH on the token, with a key that is gone with the session.
fn derivations(token: &Pkcs11Config) -> Result<f64> {
    let library = Pkcs11::new(&token.module)?;
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slots = library.get_slots_with_initialized_token()?;
    let is_ours = |slot: &&cryptoki::slot::Slot| {
        library.get_token_info(**slot).is_ok_and(|info| info.label() == token.token)
    };
    let slot = *slots.iter().find(is_ours).context("the token")?;
    let session = library.open_rw_session(slot)?;
    let pin = std::fs::read_to_string(&token.pin_file)?;
    session.login(UserType::User, Some(&AuthPin::from(pin.trim())))?;
    // prime256v1
    let curve = vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let public = [Attribute::EcParams(curve), Attribute::Token(false)];
    let private = [Attribute::Derive(true), Attribute::Token(false), Attribute::Sensitive(true)];
    let (_, key) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
    let point = p256::ProjectivePoint::GENERATOR.to_affine().to_encoded_point(false).as_bytes().to_vec();
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Token(false),
    ];
    let derive = || -> Result<()> {
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), &point));
        let derived = session.derive_key(&mechanism, key, &template)?;
        session.get_attributes(derived, &[AttributeType::Value])?;
        Ok(session.destroy_object(derived)?)
    };
    derive()?;
    Ok(each(|| derive().expect("it did a moment ago")))
}

fn signatures() -> f64 {
    let key = SigningKey::generate(&mut OsRng);
    let answer = Answer::Reset { left: 10 };
    let body = Body { version: VERSION, hsm: "soft".to_owned(), time_s: 0, answer };
    each(|| drop(answer::sign(&key, &[0; 112], &[0; 32], &[0; 100], &body)))
}

/// Records a second, sealed, in commits of `batch`, of accounts that are there. Nobody has these accounts: they stay.
fn commits(parts: &mut vault::Parts, batch: usize) -> Result<f64> {
    let accounts: Vec<[u8; 16]> = (0..batch).map(|n| (n as u128).to_be_bytes()).collect();
    let mut revision = 1;
    let mut commit = || -> Result<()> {
        let head = parts.store.head()?;
        let old = parts.store.load(&accounts)?;
        let (mut root, mut writes) = (head.root, Vec::with_capacity(batch));
        for (account, old) in accounts.iter().zip(&old) {
            let sealed = parts.keys.sealer.seal(&[0; 48], &[0; RECORD_LEN], &mut OsRng)?;
            let row = Row { revision, key_id: sealed.key_id, sealed: sealed.bytes };
            root = parts.digester.replace(&root, account, old.as_ref(), Some(&row));
            writes.push(Write { account: *account, row });
        }
        revision += 1;
        Ok(parts.store.commit_batch(&parts.digester.head(head.seq + 1, root, head.root), &writes)?)
    };
    commit()?;
    Ok(each(|| commit().expect("it did a moment ago")) * batch as f64)
}

/// Moves of the anchor a second; it ends where it was.
fn moves(parts: &mut vault::Parts) -> f64 {
    let mut seq = 0;
    let rate = each(|| {
        let mut root = [0; 32];
        OsRng.fill_bytes(&mut root);
        seq += 1;
        parts.anchor.advance(&Anchored { seq, root }).expect("the anchor moves");
    });
    drop(parts.store.head().map(|head| parts.anchor.advance(&Anchored::from(&head))));
    rate
}
