//! Vaults with their keys in a TPM (swtpm): the real program, over real TLS, through the real courier code.
#![cfg(feature = "tpm2")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_vault_client::VaultError;
use chatkeep_vault_rig::swtpm::{Brokered, Swtpm};
use common::device_cases::{self, FILE_ANCHOR};
use common::program::courier;
use common::unlock;
use common::world::{World, enroll, guess_wrong, said};

fn world() -> World<Swtpm> {
    World::on(Swtpm::new(), "")
}

#[tokio::test]
async fn a_password_makes_the_whole_way_through_a_tpm() {
    device_cases::the_whole_way(&world(), "tpm2+software", "tpm2").await;
}

#[tokio::test]
async fn ten_wrong_guesses_are_counted_over_restarts_and_then_the_key_is_gone() {
    device_cases::ten_wrong_guesses(&world()).await;
}

#[tokio::test]
async fn a_disk_put_back_does_not_start_because_the_tpm_remembers() {
    device_cases::a_disk_put_back(&world()).await;
}

#[tokio::test]
async fn after_an_exchange_of_the_seal_key_an_old_copy_cannot_be_opened() {
    device_cases::an_old_copy_after_an_exchange(&World::on(Swtpm::new(), FILE_ANCHOR)).await;
}

#[tokio::test]
async fn of_two_copies_on_one_tpm_only_one_answers() {
    device_cases::two_copies_on_one_device(&World::on(Brokered::new(), "")).await;
}

/// Others use the TPM meanwhile: the vault itself, asked for its status, and anybody else.
#[tokio::test]
async fn a_tpm_is_shared_while_it_serves() {
    let world = World::on(Brokered::new(), "");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    for left in [9, 8, 7] {
        assert_eq!(guess_wrong(&transport, &served, &slot).await, left);
        assert!(world.status().contains("hsm tpm2+software\nanchor tpm2\n"), "{}", world.status());
        let random = world.device.command("tpm2_getrandom").arg("8").output().unwrap();
        assert!(random.status.success(), "{}", said(&random));
    }
}

#[tokio::test]
async fn a_running_vault_exchanges_an_old_seal_key_by_itself() {
    device_cases::an_old_seal_key_is_exchanged(&World::on(Brokered::new(), "")).await;
}

#[tokio::test]
async fn a_tpm_that_goes_away_stops_the_vault_and_gives_nothing_back() {
    let world = world();
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    world.device.kill();
    let stopped = unlock(&transport, &[served.pin()], &slot, b"wrong").await.unwrap_err();
    assert!(matches!(stopped, VaultError::Unreachable { .. }), "{stopped}");
    served.failed();
    let refused = world.refused();
    assert!(refused.contains("cannot reach the TPM at \"swtpm:"), "{refused}");

    // the guess was durable before the anchor failed: it is charged, and the anchor is one behind
    world.device.restart();
    assert_eq!(guess_wrong(&transport, &world.serve(), &slot).await, 7);
}

#[test]
fn another_tpm_is_told_from_one_that_was_cleared() {
    let world = world();
    let settings = std::fs::read_to_string(world.config()).unwrap();
    let other = Swtpm::new();
    std::fs::write(world.config(), other.settings(&world.disk(), "")).unwrap();
    let refused = world.refused();
    assert!(refused.contains("this is another TPM (IBM SWTPM)"), "{refused}");
    assert!(refused.contains("keys (IBM SWTPM)"), "{refused}");

    std::fs::write(world.config(), &settings).unwrap();
    assert!(world.status().contains("identity"));
    world.device.do_tool("tpm2_clear", &[]);
    let refused = world.refused();
    assert!(refused.contains("has lost the vault's keys: it was cleared"), "{refused}");

    std::fs::remove_file(world.disk().join("tpm2.toml")).unwrap();
    let refused = world.refused();
    assert!(refused.contains("has no keys of a vault: was `chatkeep-vault init` run"), "{refused}");
}

#[test]
fn the_keys_of_another_vault_are_told() {
    let (world, other) = (world(), world());
    std::fs::write(world.config(), other.device.settings(&world.disk(), "")).unwrap();
    let refused = world.refused();
    assert!(refused.contains("are those of another vault"), "{refused}");
}

#[test]
fn keys_are_made_once() {
    let world = world();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("holds a vault already"), "{}", said(&again));
    std::fs::write(world.config(), world.device.settings(&world.dir.path().join("other"), "")).unwrap();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("not overwritten"), "{}", said(&again));
}

#[test]
fn a_wrong_auth_value_is_told_and_not_shown() {
    let world = world();
    world.device.write_secret("auth", "another-secret-of-enough-length");
    let refused = world.refused();
    assert!(refused.contains("auth_file is not the auth value"), "{refused}");
    assert!(!refused.contains("another-secret"));

    world.device.write_secret("auth", "short");
    let refused = world.refused();
    assert!(refused.contains("20 random characters"), "{refused}");
}

/// The count of wrong tries is one for all that is in a TPM; the vault's keys are not part of that.
#[tokio::test]
async fn a_tpm_locked_by_others_still_serves() {
    let world = world();
    let tpm = &world.device;
    tpm.do_tool("tpm2_dictionarylockout", &["--setup-parameters", "--max-tries", "1"]);
    let index = "0x01800001";
    tpm.do_tool("tpm2_nvdefine", &[index, "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "secret"]);
    let locked =
        (0..3).map(|_| tpm.tool("tpm2_nvread", &[index, "-C", index, "-P", "wrong"])).last().unwrap();
    assert!(said(&locked).contains("lockout"), "{}", said(&locked));

    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
}

#[test]
fn a_tpm_that_is_a_program_needs_a_word() {
    let world = world();
    world.reconfigure(|settings| settings.replace("insecure_dev = true", ""));
    let refused = world.refused();
    assert!(refused.contains("the TPM is a program"), "{refused}");
    assert!(world.status().contains("warning: the TPM is a program"));
}

#[test]
fn a_way_that_is_none_is_told() {
    let world = world();
    world.reconfigure(|settings| settings.replace("swtpm:", "usb:"));
    let refused = world.refused();
    assert!(refused.contains("is no way to a TPM"), "{refused}");
}
