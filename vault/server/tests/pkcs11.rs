//! Vaults with their keys on a PKCS#11 token (SoftHSM2): the real program, over real TLS, through the real courier code.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chatkeep_vault_client::{DestroyReason, Identity, KdfParams, VaultError, info, register};
use chatkeep_vault_rig::soft_token::SoftToken;
use common::program::{PROGRAM, Program, courier};
use common::{CONTEXT, KEY, PASSWORD, unlock};
use rand_core::OsRng;
use tempfile::TempDir;

/// A token, and a vault on it with its own disk.
struct World {
    token: SoftToken,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with("", "")
    }

    /// With a token that does not know a mechanism, and with more settings.
    fn with(forbidden: &str, settings: &str) -> Self {
        let world = Self { token: SoftToken::new(), dir: tempfile::tempdir().unwrap() };
        world.token.forbid(forbidden);
        std::fs::write(world.config(), world.token.settings(&world.disk(), settings)).unwrap();
        let made = world.run("init");
        assert!(made.status.success(), "{}", said(&made));
        world
    }

    /// The vault's disk: all that it keeps but the token.
    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("vault.toml")
    }

    fn run(&self, command: &str) -> Output {
        self.token.command(PROGRAM).args([command, "--config"]).arg(self.config()).output().unwrap()
    }

    fn start(&self) -> Program {
        Program::start(self.token.command(PROGRAM).args(["serve", "--config"]).arg(self.config()))
    }

    fn serve(&self) -> Program {
        self.start().ready()
    }

    /// What it says instead of serving.
    fn refused(&self) -> String {
        self.start().refused()
    }

    fn status(&self) -> String {
        let shown = self.run("status");
        assert!(shown.status.success(), "{}", said(&shown));
        String::from_utf8(shown.stdout).unwrap()
    }

    /// The folder in which the token keeps everything.
    fn objects(&self) -> PathBuf {
        self.token.pin_file().with_file_name("tokens")
    }

    fn copy_disk(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        copy_folder(&self.disk(), &copy);
        copy
    }

    fn put_back(&self, copy: &Path) {
        std::fs::remove_dir_all(self.disk()).unwrap();
        copy_folder(copy, &self.disk());
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

async fn enroll(transport: &chatkeep_vault_client::CourierTransport, served: &Program) -> Vec<u8> {
    let kdf = KdfParams::TESTING;
    register(transport, &[served.pin()], 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await.unwrap().slot
}

/// One wrong guess; how many are left.
async fn guess_wrong(
    transport: &chatkeep_vault_client::CourierTransport,
    served: &Program,
    slot: &[u8],
) -> u16 {
    match unlock(transport, &[served.pin()], slot, b"wrong").await.unwrap_err() {
        VaultError::WrongPassword { left, max: 10 } => left,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_password_makes_the_whole_way_through_a_token() {
    let world = World::new();
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (shown, hsm) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!((hsm.as_str(), shown.anchor.as_str(), shown.suites), ("pkcs11+software", "pkcs11", vec![1]));

    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    // the right password is proved, and so gives the attempt back
    for _ in 0..2 {
        let recovered = unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap();
        assert_eq!((*recovered.key, recovered.attempts_left), (KEY, 10));
        assert!(recovered.unproved.is_empty());
    }
    let identity = Identity(served.pin().identity).to_string();
    served.stop();
    assert_eq!(String::from_utf8(world.run("fingerprint").stdout).unwrap().trim(), identity);
    assert!(world.status().contains("seal keys [1]"));
}

#[tokio::test]
async fn ten_wrong_guesses_are_counted_over_restarts_and_then_the_key_is_gone() {
    let world = World::new();
    let transport = courier(world.dir.path());
    let mut served = world.serve();
    let slot = enroll(&transport, &served).await;
    for left in (0..10).rev() {
        match left {
            7 => {
                // killed, not asked
                drop(served);
                served = world.serve();
            }
            3 => {
                served.stop();
                served = world.serve();
            }
            _ => {}
        }
        assert_eq!(guess_wrong(&transport, &served, &slot).await, left);
    }
    for _ in 0..2 {
        let gone = unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap_err();
        assert!(matches!(gone, VaultError::Destroyed { reason: DestroyReason::Exhausted, .. }), "{gone}");
        drop(served);
        served = world.serve();
    }
}

#[tokio::test]
async fn a_disk_put_back_does_not_start_because_the_token_remembers() {
    let world = World::new();
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    let old = world.copy_disk("old");

    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 8);
    served.stop();
    let new = world.copy_disk("new");
    world.put_back(&old);
    let refused = world.refused();
    assert!(refused.contains("does not serve"), "{refused}");

    // and the newest state still does
    world.put_back(&new);
    assert_eq!(guess_wrong(&transport, &world.serve(), &slot).await, 7);
}

#[tokio::test]
async fn a_disk_put_back_with_its_file_anchor_is_not_noticed_and_everybody_is_told() {
    let world = World::with("", "anchor = { kinds = [\"file\"] }");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    let old = world.copy_disk("old");
    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 8);
    served.stop();

    world.put_back(&old);
    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 8, "an attempt came back");
    let (shown, _) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(shown.anchor, "file");
    served.stop();
    assert!(world.status().contains("this vault cannot know"), "{}", world.status());
}

/// The token is in a folder here, and goes back as well: only the witness knows.
#[tokio::test]
async fn a_token_put_back_with_the_disk_is_noticed_by_a_witness() {
    let world = World::new();
    let vault = String::from_utf8(world.run("fingerprint").stdout).unwrap();
    let witness = world.dir.path().join("witness");
    let made =
        Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(&witness).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let config = world.dir.path().join("witness.toml");
    let settings = format!(
        "data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n[[witness_for]]\nidentity = \"{}\"\n",
        witness.display(),
        vault.trim()
    );
    std::fs::write(&config, settings).unwrap();
    let witness = Program::start(Command::new(PROGRAM).args(["serve", "--config"]).arg(&config));
    let anchors = format!(
        "[anchor]\nkinds = [\"pkcs11\", \"witness\"]\nquorum = 1\n[[witness]]\nidentity = \"{}\"\naddress = \"{}\"\n",
        Identity(witness.pin().identity),
        witness.pin().url
    );
    std::fs::write(world.config(), world.token.settings(&world.disk(), &anchors)).unwrap();

    let transport = courier(world.dir.path());
    let served = world.serve();
    let (shown, _) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(shown.anchor, "pkcs11+witness");
    let slot = enroll(&transport, &served).await;
    served.stop();
    let (disk, token) = (world.copy_disk("old"), world.dir.path().join("token"));
    copy_folder(&world.objects(), &token);

    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    world.put_back(&disk);
    std::fs::remove_dir_all(world.objects()).unwrap();
    copy_folder(&token, &world.objects());
    let refused = world.refused();
    assert!(refused.contains("does not serve"), "{refused}");
}

/// Two vaults on copies of one disk: whichever answers second would count apart.
#[tokio::test]
async fn of_two_copies_on_one_token_only_one_answers() {
    let world = World::new();
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    served.stop();
    let copy = world.copy_disk("copy");
    let second = world.dir.path().join("second.toml");
    std::fs::write(&second, world.token.settings(&copy, "")).unwrap();

    let first = world.serve();
    let second = Program::start(world.token.command(PROGRAM).args(["serve", "--config"]).arg(second)).ready();
    assert_eq!(guess_wrong(&transport, &first, &slot).await, 9);
    let stopped = unlock(&transport, &[second.pin()], &slot, b"wrong").await.unwrap_err();
    assert!(matches!(stopped, VaultError::Unreachable { .. }), "{stopped}");
    second.failed();
    assert_eq!(guess_wrong(&transport, &first, &slot).await, 8);
}

#[tokio::test]
async fn after_an_exchange_of_the_seal_key_an_old_copy_cannot_be_opened() {
    let world = World::with("", "anchor = { kinds = [\"file\"] }");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    let old = world.copy_disk("old");

    let exchanged = world.run("rotate-seal-key");
    assert!(exchanged.status.success() && said(&exchanged).contains("seal key 2"), "{}", said(&exchanged));
    assert!(world.status().contains("seal keys [2]"));
    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 8);
    assert_eq!(*unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap().key, KEY);
    served.stop();

    // its file anchor went back with it, so nothing but the destroyed key is in the way
    world.put_back(&old);
    let refused = world.refused();
    assert!(refused.contains("1 records are sealed with key 1"), "{refused}");
}

#[tokio::test]
async fn a_running_vault_exchanges_an_old_seal_key_by_itself() {
    let world = World::new();
    let settings = world.token.settings(&world.disk(), "").replace("\"0s\"", "\"1s\"");
    std::fs::write(world.config(), settings).unwrap();
    // older than a second, by the whole seconds that are counted
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let served = world.serve();
    let transport = courier(world.dir.path());
    let slot = enroll(&transport, &served).await;
    // a look at a key that is being destroyed at that moment may fail
    let mut looks = 0;
    while !said(&world.run("status")).contains("seal keys [2]") {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        looks += 1;
        assert!(looks < 600, "{}", said(&world.run("status")));
    }
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
}

#[tokio::test]
async fn a_token_that_does_not_multiply_derives_and_says_so() {
    let world = World::with("CKM_ECDH1_DERIVE", "");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (_, hsm) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(hsm, "pkcs11-derived+software");
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    // also when it learns to multiply: another key would come out
    world.token.forbid("");
    let served = world.serve();
    assert_eq!(*unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap().key, KEY);
}

#[tokio::test]
async fn a_token_that_does_not_sign_keeps_the_identity_and_says_so() {
    let world = World::with("CKM_EDDSA", "");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (_, hsm) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(hsm, "pkcs11+memory-identity+software");
    let slot = enroll(&transport, &served).await;
    let identity = served.pin().identity;
    served.stop();
    let served = world.serve();
    assert_eq!(served.pin().identity, identity);
    assert_eq!(*unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap().key, KEY);
}

#[test]
fn a_token_that_no_longer_multiplies_is_refused_before_anybody_is_charged() {
    let world = World::new();
    world.token.forbid("CKM_ECDH1_DERIVE");
    let refused = world.refused();
    assert!(refused.contains("did not multiply"), "{refused}");
}

#[test]
fn keys_are_made_once() {
    let world = World::new();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("holds a vault already"), "{}", said(&again));
    std::fs::write(world.config(), world.token.settings(&world.dir.path().join("other"), "")).unwrap();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("not overwritten"), "{}", said(&again));
}

#[test]
fn a_wrong_pin_is_told_in_a_way_that_nothing_tries_it_again() {
    let world = World::new();
    std::fs::write(world.token.pin_file(), "0000").unwrap();
    let refused = world.run("status");
    // RestartPreventExitStatus= of the unit
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    assert!(said(&refused).contains("the PIN is wrong"), "{}", said(&refused));
    assert!(!said(&refused).contains("0000"));
}

#[test]
fn a_token_that_is_not_there_is_told_with_those_that_are() {
    let world = World::new();
    let settings = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), settings.replace("token = \"vault\"", "token = \"other\"")).unwrap();
    let refused = world.run("status");
    assert!(
        said(&refused).contains("there is no token `other`; there are [\"vault\"]"),
        "{}",
        said(&refused)
    );
}

#[test]
fn a_token_in_software_needs_a_word() {
    let world = World::new();
    let settings = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), settings.replace("insecure_dev = true", "")).unwrap();
    let refused = world.refused();
    assert!(refused.contains("no hardware"), "{refused}");
    assert!(world.status().contains("warning: the token says that it is no hardware"));
}
