//! Client and vaults in one process: every flow, and what goes wrong in each.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use chatkeep_vault_client::{
    DestroyReason, KdfFloor, KdfParams, SlotError, VaultError, VaultPin, begin_change, commit_change,
    destroy, freeze, info, known_head, look, recover, register, rewrap, status, thaw, witness_head,
};
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{Envelope, Guess, Request};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{Suite, password};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::vault::OF_ONE_ACCOUNT_MAX;
use common::{CONTEXT, KEY, Local, PASSWORD, contains, enroll, lie, pins, transport, unlock};
use futures_util::future::join_all;
use rand_core::OsRng;

#[tokio::test]
async fn the_right_password_gives_the_key_back() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let registered = enroll(&transport, &pins, 1).await;
    let recovered = unlock(&transport, &pins, &registered.slot, PASSWORD).await.unwrap();
    assert_eq!(*recovered.key, KEY);
    assert_eq!(recovered.secret, registered.secret);
    assert_eq!((recovered.attempts_left, recovered.failed_since_change), (10, 0));
    assert!(recovered.unproved.is_empty() && !recovered.must_register_again);

    let composed = "correct horse ba\u{308}ttery".as_bytes();
    assert_eq!(*unlock(&transport, &pins, &registered.slot, composed).await.unwrap().key, KEY);
}

/// With the least stretching that is accepted outside tests: 64 MiB, three passes.
#[tokio::test]
async fn slots_for_real_use_open_without_leave_for_weak_ones() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let kdf = KdfParams::FLOOR;
    let slot = register(&transport, &pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await.unwrap().slot;
    let floor = KdfFloor::Production;
    let recovered = recover(&transport, &pins, &CONTEXT, &slot, PASSWORD, floor, &mut OsRng).await.unwrap();
    assert_eq!(*recovered.key, KEY);
}

#[tokio::test]
async fn ten_wrong_passwords_are_counted_down_and_then_the_key_is_gone() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    for left in (0..10).rev() {
        if left == 4 {
            vaults[0].stop();
            vaults[0].start().unwrap();
        }
        let wrong = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
        assert_eq!(wrong, VaultError::WrongPassword { left, max: 10 });
    }
    for _ in 0..2 {
        let gone = unlock(&transport, &pins, &slot, PASSWORD).await.unwrap_err();
        assert!(matches!(gone, VaultError::Destroyed { reason: DestroyReason::Exhausted, .. }), "{gone}");
        vaults[0].stop();
        vaults[0].start().unwrap();
    }
}

#[tokio::test]
async fn a_right_password_gives_the_attempts_back() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let registered = enroll(&transport, &pins, 1).await;
    for _ in 0..8 {
        unlock(&transport, &pins, &registered.slot, b"wrong").await.unwrap_err();
    }
    let recovered = unlock(&transport, &pins, &registered.slot, PASSWORD).await.unwrap();
    assert_eq!((recovered.attempts_left, recovered.failed_since_change), (10, 8));
    let (slot, secret) = (&registered.slot, &registered.secret);
    let report = status(&transport, &pins, &CONTEXT, slot, secret, &mut OsRng).await.unwrap();
    assert_eq!((report.attempts_left, report.attempts_max, report.failed_since_change), (10, 10, 8));
    assert_eq!(report.vaults[0].hsm.as_deref(), Some("soft"));
}

#[tokio::test]
async fn the_last_attempt_may_be_the_right_one_but_is_the_last() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    for _ in 0..9 {
        unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    }
    let recovered = unlock(&transport, &pins, &slot, PASSWORD).await.unwrap();
    assert_eq!(*recovered.key, KEY);
    assert!(recovered.must_register_again);
    assert_eq!(recovered.attempts_left, 0);
    assert!(matches!(unlock(&transport, &pins, &slot, PASSWORD).await, Err(VaultError::Destroyed { .. })));
}

#[tokio::test]
async fn a_change_of_password_never_leaves_a_moment_without_a_way_in() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let old = enroll(&transport, &pins, 1).await;
    let kdf = KdfParams::TESTING;
    let new =
        begin_change(&transport, &pins, &CONTEXT, &old.slot, &old.secret, b"new password", kdf, &mut OsRng)
            .await
            .unwrap();
    assert_eq!(*unlock(&transport, &pins, &old.slot, PASSWORD).await.unwrap().key, KEY);
    assert_eq!(*unlock(&transport, &pins, &new.slot, b"new password").await.unwrap().key, KEY);

    for _ in 0..2 {
        commit_change(&transport, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    }
    assert_eq!(*unlock(&transport, &pins, &new.slot, b"new password").await.unwrap().key, KEY);
    let old_slot = unlock(&transport, &pins, &old.slot, PASSWORD).await.unwrap_err();
    assert_eq!(old_slot, VaultError::Superseded);
}

#[tokio::test]
async fn another_key_needs_the_secret_and_no_password() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let registered = enroll(&transport, &pins, 1).await;
    let slot = rewrap(&registered.slot, &registered.secret, &CONTEXT, &[8; 32], &mut OsRng).unwrap();
    assert_eq!(*unlock(&transport, &pins, &slot, PASSWORD).await.unwrap().key, [8; 32]);
    let other = chatkeep_vault_client::SlotSecret::from_bytes([1; 32]);
    assert!(rewrap(&registered.slot, &other, &CONTEXT, &[8; 32], &mut OsRng).is_err());
}

#[tokio::test]
async fn the_owner_can_freeze_and_destroy_without_the_password() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let registered = enroll(&transport, &pins, 1).await;
    let (slot, secret) = (&registered.slot, &registered.secret);
    let until_s = 4_000_000_000;
    freeze(&transport, &pins, &CONTEXT, slot, secret, until_s, &mut OsRng).await.unwrap();
    assert!(matches!(unlock(&transport, &pins, slot, PASSWORD).await, Err(VaultError::Frozen { .. })));
    let reports = look(&transport, &pins, &CONTEXT, slot, secret, &mut OsRng).await.unwrap();
    let until_s = reports[0].counters.as_ref().unwrap().frozen_until_s;
    let other = [("a".to_owned(), until_s - 1)];
    let refused = thaw(&transport, &pins, &CONTEXT, slot, secret, &other, &mut OsRng).await;
    assert_eq!(refused, Err(VaultError::Frozen { until_s }), "another freeze");
    let freezes = [("a".to_owned(), until_s)];
    thaw(&transport, &pins, &CONTEXT, slot, secret, &freezes, &mut OsRng).await.unwrap();
    unlock(&transport, &pins, slot, PASSWORD).await.unwrap();
    for _ in 0..2 {
        destroy(&transport, &pins, &CONTEXT, slot, secret, &mut OsRng).await.unwrap();
    }
    let gone = unlock(&transport, &pins, slot, PASSWORD).await.unwrap_err();
    assert!(matches!(gone, VaultError::Destroyed { reason: DestroyReason::User, .. }));
}

/// A new device, that has slot and password only, learns which entry is the newest.
#[tokio::test]
async fn vaults_remember_the_newest_entry_for_a_new_device() {
    let vaults = [Local::new("a"), Local::new("b"), Local::new("c")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let old = enroll(&transport, &pins, 2).await;
    let (slot, secret) = (&old.slot, &old.secret);
    let none = known_head(&transport, &pins, &CONTEXT, slot, secret, &mut OsRng).await.unwrap();
    assert!(none.is_none());
    for entry in [(7, [7; 32]), (8, [8; 32]), (8, [8; 32])] {
        witness_head(&transport, &pins, &CONTEXT, slot, secret, entry, &mut OsRng).await.unwrap();
    }
    let back = witness_head(&transport, &pins, &CONTEXT, slot, secret, (7, [7; 32]), &mut OsRng).await;
    assert!(matches!(back, Err(VaultError::Refused { .. })), "{back:?}");

    // one vault alone knows of the last entry, and the password was changed since
    let last = common::transport(&vaults[1..2]);
    witness_head(&last, &pins, &CONTEXT, slot, secret, (9, [9; 32]), &mut OsRng).await.unwrap();
    let kdf = KdfParams::TESTING;
    let new = begin_change(&transport, &pins, &CONTEXT, slot, secret, b"new password", kdf, &mut OsRng)
        .await
        .unwrap();
    commit_change(&transport, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    let device = unlock(&transport, &pins, &new.slot, b"new password").await.unwrap();
    let known = known_head(&transport, &pins, &CONTEXT, &new.slot, &device.secret, &mut OsRng).await;
    let known = known.unwrap().unwrap();
    assert_eq!((known.seq, known.digest, known.vault.as_str()), (9, [9; 32], "b"));

    let away = common::transport(&[]);
    let unknown = known_head(&away, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await;
    assert!(matches!(unknown, Err(VaultError::Unreachable { .. })), "{unknown:?}");
}

#[tokio::test]
async fn an_account_that_a_vault_never_had_is_unknown() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    let mut decoded = Slot::decode(&slot, KdfFloor::AllowWeakKdf).unwrap();
    decoded.header.locator = [0; 16];
    let error = unlock(&transport, &pins, &decoded.encode(), PASSWORD).await.unwrap_err();
    assert_eq!(error, VaultError::Unknown);
}

#[tokio::test]
async fn two_of_three_work_with_one_absent_or_one_lying() {
    let vaults = [Local::new("a"), Local::new("b"), Local::new("c")];
    let pins = pins(&vaults);
    let slot = enroll(&transport(&vaults), &pins, 2).await.slot;

    let mut lying = transport(&vaults);
    let liar = vaults[0].clone();
    lying.insert(liar.pin.identity, move |request| lie(&liar, request));
    let recovered = unlock(&lying, &pins, &slot, PASSWORD).await.unwrap();
    assert_eq!(*recovered.key, KEY);
    assert_eq!(recovered.unproved.len(), 1, "the liar's proof does not fit: {:?}", recovered.unproved);

    let absent = transport(&vaults[1..]);
    assert_eq!(*unlock(&absent, &pins, &slot, PASSWORD).await.unwrap().key, KEY);
    let wrong = unlock(&absent, &pins, &slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left: 5, max: 6 });

    let alone = transport(&vaults[2..]);
    let error = unlock(&alone, &pins, &slot, PASSWORD).await.unwrap_err();
    assert!(matches!(error, VaultError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn three_of_five_work_with_one_absent_and_one_lying() {
    let vaults = ["a", "b", "c", "d", "e"].map(Local::new);
    let pins = pins(&vaults);
    let slot = enroll(&transport(&vaults), &pins, 3).await.slot;
    let mut transport = transport(&vaults[1..]);
    let liar = vaults[1].clone();
    transport.insert(liar.pin.identity, move |request| lie(&liar, request));
    assert_eq!(*unlock(&transport, &pins, &slot, PASSWORD).await.unwrap().key, KEY);
    // the liar says that 65535 attempts are left; the third-largest count is told
    let wrong = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left: 5, max: 6 });
}

/// As many liars as it takes to decide what the count is: the number is theirs, but it is a number of attempts.
#[tokio::test]
async fn vaults_that_lie_about_the_count_make_no_attempts() {
    let vaults = ["a", "b", "c"].map(Local::new);
    let pins = pins(&vaults);
    let slot = enroll(&transport(&vaults), &pins, 2).await.slot;
    let mut transport = transport(&vaults);
    for vault in &vaults[..2] {
        let liar = vault.clone();
        transport.insert(liar.pin.identity, move |request| lie(&liar, request));
    }
    let wrong = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left: 5, max: 6 });
}

#[tokio::test]
async fn an_answer_by_another_identity_is_not_believed() {
    let vaults = [Local::new("a"), Local::new("b")];
    let pins = pins(&vaults[..1]);
    let mut transport = transport(&vaults);
    let slot = enroll(&transport, &pins, 1).await.slot;

    let other = vaults[1].clone();
    transport.insert(vaults[0].pin.identity, move |request| other.answer(request));
    let error = unlock(&transport, &pins, &slot, PASSWORD).await.unwrap_err();
    assert!(matches!(error, VaultError::Untrusted { .. }), "{error}");

    transport.insert(vaults[0].pin.identity, |_| Ok(b"{\"destroyed\": true}".to_vec()));
    let error = unlock(&transport, &pins, &slot, PASSWORD).await.unwrap_err();
    assert!(matches!(error, VaultError::Untrusted { .. }), "{error}");

    // a real answer, but to another question
    let (stale, real) = (std::sync::OnceLock::new(), vaults[0].clone());
    transport.insert(vaults[0].pin.identity, move |request| {
        Ok(stale.get_or_init(|| real.answer(request).unwrap()).clone())
    });
    info(&transport, &pins[0], &mut OsRng).await.unwrap();
    let error = info(&transport, &pins[0], &mut OsRng).await.unwrap_err();
    assert!(matches!(error, VaultError::Untrusted { .. }), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_without_a_charge() {
    let vaults = [Local::new("a")];
    let pins = pins(&vaults);
    let slot = enroll(&transport(&vaults), &pins, 1).await.slot;
    let mut flaky = transport(&vaults);
    let (real, calls) = (vaults[0].clone(), std::sync::atomic::AtomicU32::new(0));
    flaky.insert(pins[0].identity, move |request| {
        let answer = real.answer(request);
        if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed).is_multiple_of(2) {
            return Err(chatkeep_vault_client::TransportError::Unreachable { what: "lost".to_owned() });
        }
        answer
    });
    let wrong = unlock(&flaky, &pins, &slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left: 9, max: 10 });
    let recovered = unlock(&flaky, &pins, &slot, PASSWORD).await.unwrap();
    assert_eq!((recovered.attempts_left, recovered.unproved.len()), (10, 0));
}

#[tokio::test]
async fn nothing_of_password_or_key_is_on_the_vaults_disk() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let registered = enroll(&transport, &pins, 1).await;
    unlock(&transport, &pins, &registered.slot, PASSWORD).await.unwrap();
    let slot = Slot::decode(&registered.slot, KdfFloor::AllowWeakKdf).unwrap();
    let pwk = password::stretch(PASSWORD, &slot.header.salt, slot.header.kdf).unwrap();
    let account = slot.header.account(&pins[0].identity);
    let dir = vaults[0].dir.path();
    assert!(contains(dir, &account), "the search finds what is there");
    let entry = (1, [1; 32]);
    witness_head(&transport, &pins, &CONTEXT, &registered.slot, &registered.secret, entry, &mut OsRng)
        .await
        .unwrap();
    for secret in [PASSWORD, &KEY, registered.secret.as_bytes(), &*pwk, &slot.header.locator, &CONTEXT] {
        assert!(!contains(dir, secret));
    }
}

#[tokio::test]
async fn slots_that_lie_are_refused_before_anything_is_sent() {
    let vaults = [Local::new("a"), Local::new("b")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins[..1], 1).await.slot;
    let before = vaults[0].vault().unwrap().evaluations();

    let weak = recover(&transport, &pins, &CONTEXT, &slot, PASSWORD, KdfFloor::Production, &mut OsRng).await;
    assert!(matches!(weak, Err(VaultError::BadSlot(SlotError::Malformed { .. }))));
    let allow = KdfFloor::AllowWeakKdf;
    let other = recover(&transport, &pins, &[0; 16], &slot, PASSWORD, allow, &mut OsRng).await;
    assert_eq!(other.unwrap_err(), VaultError::BadSlot(SlotError::OtherContext));
    let unpinned = unlock(&transport, &pins[1..], &slot, PASSWORD).await;
    assert!(matches!(unpinned, Err(VaultError::NotPinned { .. })));
    let no_text = unlock(&transport, &pins, &slot, &[0xff]).await;
    assert_eq!(no_text.unwrap_err(), VaultError::PasswordNotText);
    assert_eq!(vaults[0].vault().unwrap().evaluations(), before);
}

#[tokio::test]
async fn half_of_the_vaults_are_not_enough_for_a_threshold() {
    let vaults = [Local::new("a"), Local::new("b")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let twice = [pins[0].clone(), pins[0].clone()];
    for (pins, t) in [(&pins[..], 1), (&pins[..], 3), (&twice[..], 2), (&[][..], 0)] {
        let kdf = KdfParams::TESTING;
        let result = register(&transport, pins, t, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await;
        assert!(matches!(result, Err(VaultError::BadSlot(_))));
    }
}

#[tokio::test]
async fn a_vault_whose_database_was_put_back_does_not_serve() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    vaults[0].stop();
    let (database, copy) = (vaults[0].dir.path().join("vault.db"), vaults[0].dir.path().join("copy"));
    std::fs::copy(&database, &copy).unwrap();
    vaults[0].start().unwrap();
    for _ in 0..3 {
        unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    }
    vaults[0].stop();
    std::fs::rename(&copy, &database).unwrap();
    let refused = vaults[0].start().unwrap_err().to_string();
    assert!(refused.contains("does not serve"), "{refused}");
}

#[tokio::test]
async fn a_record_put_back_while_it_runs_stops_the_vault() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    let database = rusqlite::Connection::open(vaults[0].dir.path().join("vault.db")).unwrap();
    database.execute("CREATE TEMP TABLE old AS SELECT * FROM record", []).unwrap();
    unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    database.execute("REPLACE INTO record SELECT * FROM old", []).unwrap();
    let evaluations = vaults[0].vault().unwrap().evaluations();
    let error = unlock(&transport, &pins, &slot, PASSWORD).await.unwrap_err();
    assert!(matches!(error, VaultError::Unreachable { .. }), "{error}");
    assert_eq!(vaults[0].vault().unwrap().evaluations(), evaluations);
}

/// A guess that was charged, and discarded by a crash, is in a record that nobody followed. Put in while the vault runs, it
/// would be a guess that is paid for already.
#[tokio::test]
async fn a_record_of_a_state_that_was_discarded_is_noticed_while_the_vault_runs() {
    let vaults = [Local::new("a")];
    let (vault, pins) = (&vaults[0], pins(&vaults));
    let slot = enroll(&transport(&vaults), &pins, 1).await.slot;
    let path = |name: &str| vault.dir.path().join(name);
    vault.stop();
    for name in ["vault.db", "anchor"] {
        std::fs::copy(path(name), path(&format!("{name}.before"))).unwrap();
    }
    vault.start().unwrap();
    let (asked, answering) = (Arc::new(Mutex::new(Vec::new())), vault.clone());
    let (mut listening, sent) = (transport(&[]), asked.clone());
    listening.insert(pins[0].identity, move |request| {
        sent.lock().unwrap().push(request.to_vec());
        answering.answer(request)
    });
    unlock(&listening, &pins, &slot, b"wrong").await.unwrap_err();
    vault.stop();
    let discarded = rusqlite::Connection::open(path("vault.db")).unwrap();
    discarded.execute("ATTACH ?1 AS kept", [path("kept.db").to_str().unwrap()]).unwrap();
    discarded.execute("CREATE TABLE kept.record AS SELECT * FROM record", []).unwrap();
    drop(discarded);
    for name in ["vault.db", "anchor"] {
        std::fs::copy(path(&format!("{name}.before")), path(name)).unwrap();
    }

    vault.start().unwrap();
    unlock(&transport(&vaults), &pins, &slot, b"another").await.unwrap_err();
    let database = rusqlite::Connection::open(path("vault.db")).unwrap();
    database.execute("ATTACH ?1 AS kept", [path("kept.db").to_str().unwrap()]).unwrap();
    database.execute("REPLACE INTO main.record SELECT * FROM kept.record", []).unwrap();
    let evaluations = vault.vault().unwrap().evaluations();
    let guess = asked.lock().unwrap()[0].clone();
    assert!(vault.answer(&guess).is_err());
    assert_eq!(vault.vault().unwrap().evaluations(), evaluations);
}

/// Somebody who knows an account's number asks for it as fast as he can.
#[tokio::test]
async fn one_account_does_not_take_all_places_and_who_finds_none_is_not_charged() {
    let vaults = [Local::new("a")];
    let (transport, pins) = (transport(&vaults), pins(&vaults));
    let slot = enroll(&transport, &pins, 1).await.slot;
    let header = Slot::decode(&slot, KdfFloor::AllowWeakKdf).unwrap().header;
    let (vault, account) = (vaults[0].vault().unwrap(), Fixed(header.account(&pins[0].identity)));
    let guess = |n: usize| {
        let blinded = Blob(Suite::Ristretto255.blind(&n.to_be_bytes(), &mut OsRng).element);
        let request = Request::Guess(Guess { account, epoch: Fixed(header.epoch), blinded });
        Envelope::new(request, &mut OsRng).encode()
    };
    let requests: Vec<_> = (0..24).map(guess).collect();
    // few enough for `join_all` to poll each once before any again: all are sent before the first answer is taken
    let answers = join_all(requests.iter().map(|request| vault.answer(request.clone()))).await;
    let said = |request: &[u8], answer: &[u8]| {
        answer::verify(answer, &pins[0].identity, request, vault.now_s()).unwrap().answer
    };
    let mut charged = 0;
    for (request, answer) in requests.iter().zip(answers) {
        match said(request, &answer.unwrap()) {
            Answer::Charged(_) => charged += 1,
            Answer::Busy {} => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..=OF_ONE_ACCOUNT_MAX).contains(&charged), "{charged} of 24");
    let left = 10 - u16::try_from(charged).unwrap() - 1;
    let wrong = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left, max: 10 });
}

#[test]
fn two_processes_cannot_serve_one_database_and_software_keys_need_a_word() {
    let vault = Local::new("a");
    let second = vault.start().unwrap_err();
    assert!(second.to_string().contains("served by another process"), "{second}");
    vault.stop();
    let config = Config { insecure_dev: false, ..Config::development(vault.dir.path()) };
    let refused = chatkeep_vault_server::setup::open(&config).err().unwrap();
    assert!(refused.to_string().contains("insecure"), "{refused}");
}

#[tokio::test]
async fn the_policy_is_shown() {
    let vaults = [Local::new("a")];
    let (info, hsm) = info(&transport(&vaults), &vaults[0].pin, &mut OsRng).await.unwrap();
    assert_eq!((hsm.as_str(), info.insecure_dev, info.anchor.as_str()), ("soft", true, "file"));
    assert_eq!((info.suites, info.attempts_max), (vec![2, 1], 10));
}

/// The futures can be spawned: a daemon does.
#[test]
fn operations_are_send() {
    fn check<T: Send>(_: T) {}
    let transport = chatkeep_vault_client::DirectTransport::new();
    let pins: Vec<VaultPin> = Vec::new();
    check(unlock(&transport, &pins, &[], b""));
    check(register(&transport, &pins, 1, &CONTEXT, b"", &KEY, KdfParams::TESTING, &mut OsRng));
}
