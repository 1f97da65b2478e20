//! What the authorisation of the TPM's owner is good for: attacks with real tools on a real vault.
#![cfg(feature = "tpm2")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_vault_client::CourierTransport;
use chatkeep_vault_rig::swtpm::{Swtpm, index_auth};
use common::program::courier;
use common::world::{World, enroll, guess_wrong, said};

const ANCHOR: &str = "0x0180c4e3";

/// A vault whose disk was put back to 9 attempts, when 8 are left.
struct PutBack {
    world: World<Swtpm>,
    transport: CourierTransport,
    slot: Vec<u8>,
    /// What the anchor said when the disk was copied.
    anchor: Vec<u8>,
}

impl PutBack {
    /// `hsm` are more settings for the keys.
    async fn new(hsm: &str) -> Self {
        let world = World::configured(Swtpm::new(), |settings| settings + hsm);
        let transport = courier(world.dir.path());
        let served = world.serve();
        let slot = enroll(&transport, &served).await;
        assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
        served.stop();
        let old = world.copy_disk("old");
        let auth = index_auth();
        let anchor = world.device.do_tool("tpm2_nvread", &[ANCHOR, "-C", ANCHOR, "-P", &auth]);
        let served = world.serve();
        assert_eq!(guess_wrong(&transport, &served, &slot).await, 8);
        served.stop();
        world.put_back(&old);
        assert!(world.refused().contains("does not serve"));
        Self { world, transport, slot, anchor }
    }

    /// Undefines the anchor and defines it anew with what it said earlier. Its Name is the same after that.
    fn redefine(&self, auth: &str) {
        let tpm = &self.world.device;
        let before = tpm.do_tool("tpm2_nvreadpublic", &[ANCHOR]);
        tpm.do_tool("tpm2_nvundefine", &["-C", "o", ANCHOR]);
        let attributes = "authread|authwrite|no_da";
        tpm.do_tool("tpm2_nvdefine", &[ANCHOR, "-C", "o", "-s", "40", "-a", attributes, "-p", auth]);
        self.write(auth);
        assert_eq!(tpm.do_tool("tpm2_nvreadpublic", &[ANCHOR]), before);
    }

    fn write(&self, auth: &str) {
        let tpm = &self.world.device;
        std::fs::write(tpm.path("old"), &self.anchor).unwrap();
        tpm.do_tool("tpm2_nvwrite", &[ANCHOR, "-C", ANCHOR, "-P", auth, "-i", "old"]);
    }

    async fn guess(&self) -> u16 {
        guess_wrong(&self.transport, &self.world.serve(), &self.slot).await
    }
}

/// The attack: with an open owner, and what is in `auth_file`.
#[tokio::test]
async fn who_knows_the_auth_value_puts_the_anchor_back_if_the_owner_is_open() {
    let attacked = PutBack::new("").await;
    assert!(attacked.world.status().contains("warning: the authorisation of the TPM's owner is empty"));
    attacked.redefine(&index_auth());
    assert_eq!(attacked.guess().await, 8, "an attempt came back");
}

/// The Name of an index does not say who defined it; that it answers to the auth value does.
#[tokio::test]
async fn who_does_not_know_it_cannot_even_if_the_owner_is_open() {
    let attacked = PutBack::new("").await;
    attacked.redefine("hex:00112233");
    let refused = attacked.world.refused();
    assert!(refused.contains("is not the auth value of the vault's keys"), "{refused}");
}

#[tokio::test]
async fn after_the_owners_authorisation_was_discarded_nobody_undefines_anything() {
    let attacked = PutBack::new("discard_owner_auth = true\n").await;
    let tpm = &attacked.world.device;
    for attack in [
        &["tpm2_nvundefine", "-C", "o", ANCHOR][..],
        &["tpm2_nvundefine", "-C", "o", "-P", &index_auth(), ANCHOR],
        &["tpm2_evictcontrol", "-C", "o", "-c", "0x8102c4e0"],
        &["tpm2_nvwrite", ANCHOR, "-C", "o", "-i", "root"],
        &["tpm2_changeauth", "-c", "owner", "mine"],
        &["tpm2_createprimary", "-C", "o"],
    ] {
        std::fs::write(tpm.path("root"), [0; 40]).unwrap();
        assert!(!tpm.tool(attack[0], &attack[1..]).status.success(), "{attack:?}");
    }
    assert!(attacked.world.refused().contains("does not serve"));
    assert!(!attacked.world.status().contains("owner is empty"), "{}", attacked.world.status());
}

/// What it does not help against: this is no other attacker than one who is root.
#[tokio::test]
async fn who_knows_the_auth_value_can_write_the_anchor_also_without_the_owner() {
    let attacked = PutBack::new("discard_owner_auth = true\n").await;
    attacked.write(&index_auth());
    assert_eq!(attacked.guess().await, 8, "an attempt came back");
}

#[test]
fn an_owner_who_keeps_his_authorisation_is_asked_for_it() {
    let tpm = Swtpm::new();
    tpm.do_tool("tpm2_changeauth", &["-c", "owner", "the owner's own"]);
    let world = World::unmade(tpm, |settings| settings);
    let refused = world.run("init");
    assert!(said(&refused).contains("name the file that has it as owner_auth_file"), "{}", said(&refused));

    let file = world.device.write_secret("owner", "a guess");
    world.reconfigure(|settings| settings + &format!("owner_auth_file = \"{}\"\n", file.display()));
    let refused = world.run("init");
    assert!(said(&refused).contains("is not the authorisation of the TPM's owner"), "{}", said(&refused));

    // nothing was left by the attempts
    world.device.write_secret("owner", "the owner's own\n");
    let made = world.run("init");
    assert!(made.status.success(), "{}", said(&made));
    std::fs::remove_file(file).unwrap();
    assert!(!world.status().contains("owner is empty"));
}
