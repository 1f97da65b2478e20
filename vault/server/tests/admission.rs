//! Who may make an account, and that an invitation is good for as many as it says, whatever happens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use chatkeep_vault_client::{
    DirectTransport, Invite, Invites, KdfParams, Registered, VaultError, begin_change, commit_change,
    destroy, info, register_invited,
};
use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, AdmissionFault, Answer};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{Begin, Envelope, Request};
use chatkeep_vault_server::admission::AdmissionConfig;
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::core::Terms;
use chatkeep_vault_server::setup;
use common::{CONTEXT, KEY, Local, PASSWORD, contains, pins, transport, try_enroll, unlock};
use futures_util::future::join_all;
use rand_core::OsRng;

const INVITED: AdmissionConfig = AdmissionConfig::Invite { series: 0 };

fn invite(vault: &Local, uses: u16) -> Invite {
    let expires_s = vault.vault().unwrap().now_s() + 100;
    setup::inviter(&vault.config).unwrap().make(Terms { uses, expires_s }, &mut OsRng)
}

async fn enroll(
    transport: &DirectTransport,
    vaults: &[Arc<Local>],
    invites: &[Option<&Invite>],
) -> Result<Registered, VaultError> {
    let given = vaults.iter().zip(invites);
    let invites: Invites =
        given.filter_map(|(vault, invite)| Some((vault.pin.identity, (*invite)?.clone()))).collect();
    let (pins, t, kdf) = (pins(vaults), vaults.len() / 2 + 1, KdfParams::TESTING);
    let (transport, t) = (transport as &dyn chatkeep_vault_client::Transport, t as u8);
    register_invited(transport, &pins, &invites, t, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await
}

fn refused(made: Result<Registered, VaultError>) -> &'static str {
    match made.unwrap_err() {
        VaultError::AdmissionRefused { what, .. } => what,
        other => panic!("{other}"),
    }
}

const SPENT: &str = "it was used already";

#[tokio::test]
async fn an_invitation_makes_an_account_once_and_is_not_needed_again() {
    let vaults = [Local::with("a", INVITED)];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    assert_eq!(info(&transport, &pins[0], &mut OsRng).await.unwrap().0.admission, "invite");
    let without = try_enroll(&transport, &pins, 1).await.unwrap_err();
    assert!(matches!(without, VaultError::AdmissionRequired { kind, .. } if kind == "invite"));

    let invite = invite(&vaults[0], 1);
    let old = enroll(&transport, &vaults, &[Some(&invite)]).await.unwrap();
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&invite)]).await), SPENT);
    vaults[0].stop();
    vaults[0].start().unwrap();
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&invite)]).await), SPENT);

    unlock(&transport, &pins, &old.slot, PASSWORD).await.unwrap();
    let kdf = KdfParams::TESTING;
    let new = begin_change(&transport, &pins, &CONTEXT, &old.slot, &old.secret, b"new", kdf, &mut OsRng)
        .await
        .unwrap();
    commit_change(&transport, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    unlock(&transport, &pins, &new.slot, b"new").await.unwrap();
    destroy(&transport, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&invite)]).await), SPENT, "not given back");
}

#[tokio::test]
async fn a_vault_that_asks_for_nothing_never_sees_an_invitation() {
    let vaults = [Local::new("a")];
    let invite = Invite::from_bytes(vec![1; 42]);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (mut transport, served, sees) = (DirectTransport::new(), vaults[0].clone(), seen.clone());
    transport.insert(vaults[0].pin.identity, move |request| {
        sees.lock().unwrap().extend_from_slice(request);
        served.answer(request)
    });
    enroll(&transport, &vaults, &[Some(&invite)]).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && !seen.windows(42).any(|window| window == invite.as_bytes()));
}

#[tokio::test]
async fn what_the_vault_did_not_make_or_took_back_admits_nobody() {
    let vaults = [Local::with("a", INVITED)];
    let transport = transport(&vaults);
    let other = Local::with("b", INVITED);
    let invalid = "it is for another vault, or was taken back";
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&invite(&other, 1))]).await), invalid);
    let inviter = setup::inviter(&vaults[0].config).unwrap();
    let old = inviter.make(Terms { uses: 1, expires_s: 1000 }, &mut OsRng);
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&old)]).await), "its time is over");

    let good = invite(&vaults[0], 1);
    let next = AdmissionConfig::Invite { series: 1 };
    vaults[0].stop();
    vaults[0].start_as(&Config { admission: next, ..vaults[0].config.clone() }).unwrap();
    assert_eq!(refused(enroll(&transport, &vaults, &[Some(&good)]).await), invalid);
}

/// All vaults are asked what they want before any invitation is used.
#[tokio::test]
async fn one_missing_invitation_costs_none_of_the_others() {
    let vaults = [Local::with("a", INVITED), Local::new("b"), Local::with("c", INVITED)];
    let transport = transport(&vaults);
    let [first, third] = [&vaults[0], &vaults[2]].map(|vault| invite(vault, 1));
    let missing = enroll(&transport, &vaults, &[Some(&first), None, None]).await.unwrap_err();
    assert!(matches!(missing, VaultError::AdmissionRequired { vault, .. } if vault == "c"));
    enroll(&transport, &vaults, &[Some(&first), None, Some(&third)]).await.unwrap();
}

fn begin(account: u8, invite: &Invite) -> Vec<u8> {
    let request = Request::Begin(Begin {
        account: Fixed([account; 16]),
        epoch: Fixed([1; 16]),
        suite: Suite::Ristretto255 as u8,
        blinded: Blob(Suite::Ristretto255.blind(&[account], &mut OsRng).element),
        attempts_max: 10,
        signature: None,
        invite: Some(Blob(invite.as_bytes().to_vec())),
    });
    Envelope::new(request, &mut OsRng).encode()
}

fn said(vault: &Local, request: &[u8], answer: &[u8]) -> Answer {
    let now_s = vault.vault().unwrap().now_s();
    answer::verify(answer, &vault.pin.identity, request, now_s).unwrap().answer
}

const ALL_USED: Answer = Answer::AdmissionRefused { why: AdmissionFault::Spent };

#[tokio::test]
async fn an_answer_that_was_lost_costs_no_second_use() {
    let vault = Local::with("a", INVITED);
    let invite = invite(&vault, 2);
    let ask = |request: &[u8]| said(&vault, request, &vault.answer(request).unwrap());
    let first = begin(1, &invite);
    assert!(matches!(ask(&first), Answer::Evaluated { .. }));
    vault.stop();
    vault.start().unwrap();
    assert!(matches!(ask(&first), Answer::Evaluated { .. }), "the same bytes");
    assert!(matches!(ask(&begin(1, &invite)), Answer::Evaluated { .. }), "an account that was begun");
    assert!(matches!(ask(&begin(2, &invite)), Answer::Evaluated { .. }));
    assert_eq!(ask(&begin(3, &invite)), ALL_USED);
}

#[tokio::test]
async fn those_who_use_it_at_the_same_moment_are_counted_too() {
    let local = Local::with("a", INVITED);
    let (vault, invite) = (local.vault().unwrap(), invite(&local, 3));
    let requests: Vec<_> = (0..20).map(|account| begin(account, &invite)).collect();
    let answers = join_all(requests.iter().map(|request| vault.answer(request.clone()))).await;
    let answers =
        requests.iter().zip(answers).map(|(request, answer)| said(&local, request, &answer.unwrap()));
    let (admitted, refused): (Vec<_>, Vec<_>) =
        answers.partition(|answer| matches!(answer, Answer::Evaluated { .. }));
    assert_eq!(admitted.len(), 3);
    assert!(refused.iter().all(|answer| *answer == ALL_USED), "{refused:?}");
}

/// A request that makes no account uses nothing, and a use that the disk forgets is a disk that is not served.
#[tokio::test]
async fn a_use_is_as_durable_as_an_account_and_the_invitation_is_on_no_disk() {
    let vault = Local::with("a", INVITED);
    let invite = invite(&vault, 1);
    let ask = |request: &[u8]| said(&vault, request, &vault.answer(request).unwrap());
    let request = Request::Begin(Begin {
        account: Fixed([1; 16]),
        epoch: Fixed([1; 16]),
        suite: 77,
        blinded: Blob(vec![2; 32]),
        attempts_max: 10,
        signature: None,
        invite: Some(Blob(invite.as_bytes().to_vec())),
    });
    assert!(matches!(ask(&Envelope::new(request, &mut OsRng).encode()), Answer::Refused { .. }));
    let before = std::fs::read(vault.dir.path().join("vault.db")).unwrap();
    vault.stop();
    vault.start().unwrap();
    assert!(matches!(ask(&begin(1, &invite)), Answer::Evaluated { .. }));
    for part in [&invite.as_bytes()[..16], &invite.as_bytes()[26..]] {
        assert!(!contains(vault.dir.path(), part));
    }
    vault.stop();
    for file in ["vault.db-wal", "vault.db-shm"] {
        std::fs::remove_file(vault.dir.path().join(file)).ok();
    }
    std::fs::write(vault.dir.path().join("vault.db"), before).unwrap();
    let refused = vault.start().unwrap_err().to_string();
    assert!(refused.contains("does not serve"), "{refused}");
}
