//! What the keys in a TPM do and do not do, with a TPM of its own (swtpm) for every test.
#![cfg(feature = "tpm2")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_vault_rig::swtpm::{self, Swtpm};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::hsm::{self, Device, DeviceError, HsmError, Part, SealKey};
use chatkeep_vault_server::setup;
use common::device_cases;
use p256::PublicKey;
use rand_core::OsRng;
use tempfile::TempDir;

const ROOT: &str = "0x8102c4e0";
const SEAL: [&str; 2] = ["0x0180c4e1", "0x0180c4e2"];

/// A vault that was made.
struct Made {
    tpm: Swtpm,
    config: Config,
    _dir: TempDir,
}

impl Made {
    fn new() -> Self {
        let (tpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let config = toml::from_str(&tpm.settings(dir.path(), "")).unwrap();
        setup::init(&config).unwrap();
        Self { tpm, config, _dir: dir }
    }

    fn open(&self) -> Result<Device, HsmError> {
        hsm::open(&self.config.hsm, &self.config.data, Part::Whole)
    }

    fn refused(&self) -> String {
        self.open().err().unwrap().to_string()
    }

    fn read(&self, index: &str) -> Vec<u8> {
        self.tpm.do_tool("tpm2_nvread", &[index, "-C", index, "-P", &swtpm::index_auth()])
    }

    /// The root's public key, and what the TPM says of it.
    fn root(&self) -> (PublicKey, String) {
        let shown = self.tpm.do_tool("tpm2_readpublic", &["-c", ROOT, "-f", "der", "-o", "root.der"]);
        let der = std::fs::read(self.tpm.path("root.der")).unwrap();
        let key = PublicKey::from_sec1_bytes(der.last_chunk::<65>().unwrap()).unwrap();
        (key, String::from_utf8(shown).unwrap())
    }

    /// Puts another key where the root was, made with these attributes and with the vault's auth value.
    fn replace_root(&self, attributes: &str) {
        let auth = swtpm::root_auth();
        self.tpm.do_tool("tpm2_evictcontrol", &["-C", "o", "-c", ROOT]);
        self.tpm.do_tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "parent.ctx"]);
        let make =
            ["-C", "parent.ctx", "-G", "ecc:ecdh-sha256", "-a", attributes, "-p", &auth, "-c", "key.ctx"];
        self.tpm.do_tool("tpm2_create", &make);
        // three keys are all that fit, and the tools leave theirs
        self.tpm.do_tool("tpm2_flushcontext", &["-t"]);
        self.tpm.do_tool("tpm2_evictcontrol", &["-C", "o", "-c", "key.ctx", ROOT]);
        self.tpm.do_tool("tpm2_flushcontext", &["-t"]);
    }
}

#[test]
fn an_evaluation_is_that_of_rfc_9497_under_the_product_of_both_keys() {
    let made = Made::new();
    let (root, _) = made.root();
    device_cases::evaluations(&*made.open().unwrap().keys.oprf, &root.to_projective());
}

#[test]
fn a_record_opens_for_its_own_account_and_key_only() {
    device_cases::records(&*Made::new().open().unwrap().keys.sealer);
}

#[test]
fn the_root_was_made_in_the_tpm_and_cannot_leave_it() {
    let made = Made::new();
    let (_, shown) = made.root();
    assert!(
        shown.contains("value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt\n"),
        "{shown}"
    );
    made.replace_root("sensitivedataorigin|userwithauth|noda|decrypt");
    let refused = made.refused();
    assert!(refused.contains("can be taken out of it"), "{refused}");
}

/// Else every right password would give a wrong result, and be charged for.
#[test]
fn another_root_is_refused() {
    let made = Made::new();
    made.replace_root("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt");
    assert!(made.refused().contains("are those of another vault"), "{}", made.refused());
    std::fs::remove_file(made.config.data.join("tpm2.toml")).unwrap();
    assert!(made.refused().contains("is not the one that this vault was made with"), "{}", made.refused());
}

#[test]
fn a_part_that_was_removed_is_named() {
    let made = Made::new();
    made.tpm.do_tool("tpm2_nvundefine", &["-C", "o", SEAL[1]]);
    assert!(made.refused().contains("lost a part of the vault's keys (0x0180c4e2)"), "{}", made.refused());
}

/// Copies of the disk hold what the key sealed; nothing holds the key any more, not even the file that is this TPM's memory.
#[test]
fn an_exchange_leaves_nothing_of_the_old_key_and_is_finished_after_a_crash() {
    let made = Made::new();
    let first = made.read(SEAL[0]);
    let remembered = |slot: &[u8]| common::contains(&made.tpm.state(), &slot[12..]);
    assert!(remembered(&first));
    let sealed = made.open().unwrap().keys.sealer.seal(b"account", b"record", &mut OsRng).unwrap();

    let crashed = made.open().unwrap().keys.sealer;
    assert_eq!(crashed.make_key(5).unwrap(), 2);
    drop(crashed);
    let sealer = made.open().unwrap().keys.sealer;
    assert_eq!(sealer.keys().unwrap()[1], SealKey { id: 2, made_at_s: 5 });
    assert!(sealer.make_key(6).unwrap_err().to_string().contains("an exchange is not finished"));
    assert_eq!(*sealer.open(1, b"account", &sealed.bytes).unwrap(), b"record");
    sealer.destroy_old_keys().unwrap();
    drop(sealer);
    assert_eq!(made.read(SEAL[0]), [0; 44]);
    assert!(!remembered(&first));

    let sealer = made.open().unwrap().keys.sealer;
    assert!(matches!(sealer.open(1, b"account", &sealed.bytes), Err(DeviceError::NoSuchKey { key_id: 1 })));
    assert_eq!((sealer.keys().unwrap().len(), sealer.make_key(7).unwrap()), (1, 3));
    sealer.destroy_old_keys().unwrap();
    drop(sealer);
    let third = made.read(SEAL[0]);
    assert!(third.starts_with(&[0, 0, 0, 3]) && made.read(SEAL[1]) == [0; 44]);
}
