//! Writes `tests/vectors/vault/{slots,messages,answers}.json`: `cargo run --example make_vectors DIR`.
//!
//! Only for a new version of the protocol: vectors of a published version never change.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a tool that writes files")]

use chatkeep_vault_protocol::answer::{
    self, AdmissionFault, Answer, Body, Certificate, Charged, DestroyReason, Refusal, VaultInfo,
};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::{SignedHead, head_message};
use chatkeep_vault_protocol::message::{
    ArchiveHead, Begin, Commit, Envelope, Finish, Freeze, Guess, Info, Latest, Prove, Request, Signed,
    WitnessHead,
};
use chatkeep_vault_protocol::ppss::{self, Question};
use chatkeep_vault_protocol::slot::{Header, Slot};
use chatkeep_vault_protocol::{KdfParams, SlotSecret, Suite, VaultPin, password};
use ed25519_dalek::{Signer as _, SigningKey};
use rand_core::{CryptoRng, RngCore};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a counter: the same vectors on every run.
struct Counter(u64);

impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_be_bytes(bytes)
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            self.0 += 1;
            chunk.copy_from_slice(&Sha256::digest(self.0.to_be_bytes())[..chunk.len()]);
        }
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Counter {}

fn main() {
    let dir = std::env::args().nth(1).expect("where to write");
    for (name, vectors) in [("slots", slots()), ("messages", messages()), ("answers", answers())] {
        let text = serde_json::to_string_pretty(&vectors).unwrap();
        std::fs::write(format!("{dir}/{name}.json"), text + "\n").unwrap();
    }
}

fn slot(t: u8, n: u8, suite: Suite, kdf: KdfParams, password: &str, seed: u64) -> (Slot, Value) {
    let mut rng = Counter(seed << 32);
    let vaults = (1..=n)
        .map(|i| VaultPin {
            name: format!("vault {i}"),
            url: format!("https://vault{i}.example"),
            identity: SigningKey::from_bytes(&[i; 32]).verifying_key().to_bytes(),
        })
        .collect();
    let (mut salt, mut locator, mut epoch) = ([0; 32], [0; 16], [0; 16]);
    rng.fill_bytes(&mut salt);
    rng.fill_bytes(&mut locator);
    rng.fill_bytes(&mut epoch);
    let header = Header { suite, threshold: t, kdf, salt, locator, epoch, context: [0xc0; 16], vaults };
    let pwk = password::stretch(password.as_bytes(), &salt, kdf).unwrap();
    let keys: Vec<_> = (0..n).map(|_| suite.generate_key(&mut rng)).collect();
    let masks: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| {
            let question = Question::new(&header, i, &pwk, &mut rng);
            question.answered(&header, &suite.evaluate(key, question.element()).unwrap()).unwrap()
        })
        .collect();
    let secret = SlotSecret::generate(&mut rng);
    let mut key = [0; 32];
    rng.fill_bytes(&mut key);
    let slot = ppss::register(header, &masks, &secret, &key, &mut rng).unwrap();
    let accounts: Vec<_> =
        slot.header.vaults.iter().map(|v| hex::encode(slot.header.account(&v.identity))).collect();
    let auth: Vec<_> = slot
        .header
        .vaults
        .iter()
        .map(|v| hex::encode(secret.auth_key(&v.identity, &epoch).verifying_key().to_bytes()))
        .collect();
    let tags: Vec<_> =
        slot.header.vaults.iter().map(|v| hex::encode(slot.header.archive_tag(&v.identity))).collect();
    let vector = json!({
        "slot": hex::encode(slot.encode()),
        "context": hex::encode([0xc0; 16]),
        "password": password,
        "pwk": hex::encode(*pwk),
        "oprf_keys": keys.iter().map(|key| hex::encode(**key)).collect::<Vec<_>>(),
        "accounts": accounts,
        "archive_tags": tags,
        "auth_public_keys": auth,
        "secret": hex::encode(secret.as_bytes()),
        "key": hex::encode(key),
    });
    (slot, vector)
}

fn slots() -> Value {
    let weak = KdfParams::TESTING;
    let (good, first) = slot(1, 1, Suite::Ristretto255, weak, "correct horse b\u{e4}ttery", 1);
    let valid = vec![
        first,
        slot(1, 1, Suite::P256, weak, "\u{ff30}\u{ff41}ss 1", 2).1,
        slot(2, 3, Suite::Ristretto255, weak, "two of three", 3).1,
        slot(1, 1, Suite::Ristretto255, KdfParams::FLOOR, "the floor", 4).1,
    ];
    let bytes = good.encode();
    let edit = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let bad = |why: &str, error: &str, bytes: Vec<u8>| json!({ "why": why, "error": error, "slot": hex::encode(bytes) });
    let invalid = vec![
        bad("empty", "malformed", Vec::new()),
        bad("magic", "malformed", edit(0, b"X")),
        bad("a newer version", "newer", edit(4, &[2])),
        bad("version zero", "malformed", edit(4, &[0])),
        bad("unknown suite", "malformed", edit(5, &[3])),
        bad("threshold zero", "malformed", edit(6, &[0])),
        bad("threshold above the number of vaults", "malformed", edit(6, &[2])),
        bad("no vaults", "malformed", edit(7, &[0])),
        bad("more vaults than bytes", "malformed", edit(7, &[2])),
        bad("more vaults than the limit", "malformed", edit(7, &[16])),
        bad("unknown stretching", "malformed", edit(8, &[2])),
        bad("unknown password rule", "malformed", edit(9, &[2])),
        bad("a memory bomb", "malformed", edit(10, &[0, 0x20, 0, 0])),
        bad("endless passes", "malformed", edit(14, &[0, 0, 0, 17])),
        bad("no lanes", "malformed", edit(18, &[0, 0, 0, 0])),
        bad("cut off", "malformed", bytes[..bytes.len() - 1].to_vec()),
        bad("a byte too many", "malformed", [&bytes[..], &[0]].concat()),
    ];
    json!({ "valid": valid, "invalid": invalid })
}

fn signed_head(anchored: bool) -> SignedHead {
    signed_head_of(None, anchored)
}

fn signed_head_of(cell: Option<CellId>, anchored: bool) -> SignedHead {
    let key = SigningKey::from_bytes(&[4; 32]);
    let (vault, seq) = (key.verifying_key().to_bytes(), 500);
    let (previous_root, root) = ([5; 32], [6; 32]);
    let message = head_message(&vault, cell, seq, &previous_root, &root, anchored);
    let signature = Fixed(key.sign(&message).to_bytes());
    let (previous_root, root) = (Fixed(previous_root), Fixed(root));
    SignedHead { vault: Fixed(vault), cell, seq, previous_root, root, anchored, signature }
}

fn archive_head() -> ArchiveHead {
    ArchiveHead { tag: Fixed([5; 16]), seq: 77, digest: Fixed([6; 32]) }
}

fn messages() -> Value {
    let (account, epoch, signature) = (Fixed([1; 16]), Fixed([2; 16]), Fixed([3; 64]));
    let blinded = || Blob(vec![4; 32]);
    let signed = Signed { account, epoch, signature };
    let cell = CellId::new(3, 4);
    let begin = Begin {
        account,
        epoch,
        suite: 2,
        blinded: blinded(),
        attempts_max: 10,
        signature: None,
        invite: None,
    };
    let invited = Begin { invite: Some(Blob(vec![6; 42])), ..begin.clone() };
    let requests = [
        ("info", Request::Info(Info {})),
        ("begin", Request::Begin(begin.clone())),
        ("begin, signed", Request::Begin(Begin { signature: Some(signature), ..begin })),
        ("begin, invited", Request::Begin(invited)),
        ("finish", Request::Finish(Finish { account, epoch, public_key: Fixed([5; 32]), signature: None })),
        ("commit", Request::Commit(Commit { account, epoch, signature })),
        ("guess", Request::Guess(Guess { account, epoch, blinded: blinded() })),
        ("prove", Request::Prove(Prove { account, epoch, blinded: blinded(), signature })),
        ("status", Request::Status(signed.clone())),
        ("freeze", Request::Freeze(Freeze { account, epoch, until_s: 4_000_000_000, signature })),
        ("thaw", Request::Thaw(Freeze { account, epoch, until_s: 4_000_000_000, signature })),
        ("destroy", Request::Destroy(signed.clone())),
        ("cosign", Request::Cosign(signed_head(false))),
        ("cosign, anchored", Request::Cosign(signed_head(true))),
        ("latest", Request::Latest(Latest { vault: signed_head(false).vault, cell: None })),
        (
            "witness head",
            Request::WitnessHead(WitnessHead { account, epoch, head: archive_head(), signature }),
        ),
        ("head", Request::Head(signed)),
        ("cosign, of a cell", Request::Cosign(signed_head_of(cell, false))),
        ("cosign, of a cell, anchored", Request::Cosign(signed_head_of(cell, true))),
        ("latest, of a cell", Request::Latest(Latest { vault: signed_head(false).vault, cell })),
    ];
    let valid: Vec<_> = requests
        .into_iter()
        .map(|(name, request)| {
            let envelope = Envelope { version: 1, nonce: Fixed([9; 16]), request };
            json!({ "name": name, "request": hex::encode(envelope.encode()) })
        })
        .collect();
    let info = Envelope { version: 1, nonce: Fixed([9; 16]), request: Request::Info(Info {}) }.encode();
    let newer = Envelope { version: 2, nonce: Fixed([9; 16]), request: Request::Info(Info {}) }.encode();
    let bad = |why: &str, bytes: &[u8]| json!({ "why": why, "request": hex::encode(bytes) });
    let mut unknown = info.clone();
    let name = unknown.windows(4).position(|window| window == b"info").unwrap();
    unknown[name..name + 4].copy_from_slice(b"inf0");
    let mut short_nonce = info.clone();
    let nonce = short_nonce.windows(2).position(|window| window == [0x50, 9]).unwrap();
    short_nonce[nonce] = 0x4f;
    short_nonce.remove(nonce + 1);
    let latest = Request::Latest(Latest { vault: signed_head(false).vault, cell: CellId::new(3, 4) });
    let latest = Envelope { version: 1, nonce: Fixed([9; 16]), request: latest }.encode();
    let with_cell = |number: u8, of: u8| {
        let mut bytes = latest.clone();
        let at = bytes.windows(4).position(|window| window == [b'c', 0x82, 3, 4]).unwrap();
        (bytes[at + 2], bytes[at + 3]) = (number, of);
        bytes
    };
    let invalid = vec![
        bad("empty", &[]),
        bad("a byte after the end", &[&info[..], &[0]].concat()),
        bad("cut off", &info[..info.len() - 1]),
        bad("another version", &newer),
        bad("an unknown request", &unknown),
        bad("a nonce of 15 bytes", &short_nonce),
        bad("no map", &[0x01]),
        bad("deeply nested", &[0x81; 64]),
        bad("a length without bytes", &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        bad("a cell that there is not", &with_cell(4, 4)),
        bad("a number of cells that is no power of two", &with_cell(0, 3)),
    ];
    json!({ "valid": valid, "invalid": invalid })
}

fn answers() -> Value {
    const NOW: u64 = 1_800_000_000;
    let identity = SigningKey::from_bytes(&[1; 32]);
    let operational = SigningKey::from_bytes(&[2; 32]);
    let public = identity.verifying_key().to_bytes();
    let certificate = Certificate {
        operational: operational.verifying_key().to_bytes(),
        not_before_s: NOW,
        not_after_s: NOW + 604_800,
    };
    let certificate = certificate.encode(&identity.sign(&certificate.message()).to_bytes());
    let request = Envelope { version: 1, nonce: Fixed([9; 16]), request: Request::Info(Info {}) }.encode();
    let body = |answer| Body { version: 1, hsm: "soft".to_owned(), time_s: NOW, answer };
    let charged = Charged {
        evaluated: Blob(vec![7; 32]),
        left: 9,
        max: 10,
        failed_since_change: 1,
        challenge: Fixed([8; 32]),
    };
    let info = VaultInfo {
        suites: vec![2, 1],
        attempts_max: 10,
        delays_s: vec![0, 60],
        lifetime_failures_max: 100,
        anchor: "file".to_owned(),
        store: String::new(),
        admission: String::new(),
        insecure_dev: true,
        seq: 5,
        software: "vault 1".to_owned(),
    };
    let with_store = VaultInfo { store: "postgres".to_owned(), ..info.clone() };
    let with_admission = VaultInfo { admission: "invite".to_owned(), ..info.clone() };
    let refused = |why| Answer::AdmissionRefused { why };
    let urls = vec!["https://cell-3.example:8443".to_owned()];
    let said = [
        ("info", Answer::Info(Box::new(info))),
        ("info with store", Answer::Info(Box::new(with_store))),
        ("info with admission", Answer::Info(Box::new(with_admission))),
        ("evaluated", Answer::Evaluated { evaluated: Blob(vec![7; 33]), expires_s: NOW }),
        ("pending", Answer::Pending {}),
        ("active", Answer::Active { seq: 6 }),
        ("charged", Answer::Charged(charged)),
        ("reset", Answer::Reset { left: 10 }),
        ("frozen", Answer::Frozen { until_s: NOW }),
        ("throttled", Answer::Throttled { retry_after_s: 60, left: 3 }),
        ("destroyed", Answer::Destroyed { reason: DestroyReason::Exhausted, seq: 7 }),
        ("superseded", Answer::Superseded {}),
        ("unknown", Answer::Unknown {}),
        ("exists", Answer::Exists {}),
        ("refused", Answer::Refused { why: Refusal::Challenge }),
        ("elsewhere", Answer::Elsewhere { urls, map_version: 7 }),
        ("busy", Answer::Busy {}),
        ("cosigned", Answer::Cosigned { seq: 500, root: Fixed([6; 32]) }),
        ("latest", Answer::Latest { head: Some(Box::new(signed_head(false))) }),
        ("latest, none yet", Answer::Latest { head: None }),
        ("head", Answer::Head { head: Some(archive_head()) }),
        ("head, none yet", Answer::Head { head: None }),
        ("admission required", Answer::AdmissionRequired { kind: "invite".to_owned() }),
        ("admission refused, invalid", refused(AdmissionFault::Invalid)),
        ("admission refused, expired", refused(AdmissionFault::Expired)),
        ("admission refused, spent", refused(AdmissionFault::Spent)),
        ("refused, not witnessed", Answer::Refused { why: Refusal::NotWitnessed }),
        ("refused, out of order", Answer::Refused { why: Refusal::OutOfOrder }),
        ("refused, conflict", Answer::Refused { why: Refusal::Conflict }),
        (
            "latest, of a cell",
            Answer::Latest { head: Some(Box::new(signed_head_of(CellId::new(3, 4), true))) },
        ),
        ("refused, other cells", Answer::Refused { why: Refusal::OtherCells }),
    ];
    let sign = |body: &Body| answer::sign(&operational, &certificate, &public, &request, body);
    let valid: Vec<_> = said
        .into_iter()
        .map(|(name, answer)| json!({ "name": name, "answer": hex::encode(sign(&body(answer))) }))
        .collect();
    let good = sign(&body(Answer::Unknown {}));
    let bad = |why: &str, error: &str, now_s: u64, identity: [u8; 32], bytes: &[u8]| json!({ "why": why, "error": error, "now_s": now_s, "identity": hex::encode(identity), "answer": hex::encode(bytes) });
    let stranger = SigningKey::from_bytes(&[3; 32]);
    let forged = answer::sign(&stranger, &certificate, &public, &request, &body(Answer::Unknown {}));
    let other =
        answer::sign(&operational, &certificate, &public, b"another request", &body(Answer::Unknown {}));
    let newer = sign(&Body { version: 2, ..body(Answer::Unknown {}) });
    let invalid = vec![
        bad("empty", "untrusted", NOW, public, &[]),
        bad("another identity", "untrusted", NOW, stranger.verifying_key().to_bytes(), &good),
        bad("another operational key", "untrusted", NOW, public, &forged),
        bad("for another request", "untrusted", NOW, public, &other),
        bad("long expired", "untrusted", NOW + 10 * 86_400, public, &good),
        bad("long before", "untrusted", NOW - 2 * 86_400, public, &good),
        bad("a byte after the end", "untrusted", NOW, public, &[&good[..], &[0]].concat()),
        bad("a newer version, signed", "newer", NOW, public, &newer),
    ];
    json!({
        "identity": hex::encode(public),
        "request": hex::encode(&request),
        "now_s": NOW,
        "valid": valid,
        "invalid": invalid,
    })
}
