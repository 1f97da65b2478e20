//! What holds on every device with keys: bodies of tests that each device names.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use chatkeep_vault_client::{DestroyReason, Identity, VaultError, info};
use chatkeep_vault_protocol::Suite;
use chatkeep_vault_rig::KeyDevice;
use chatkeep_vault_server::hsm::{DeviceError, OprfRoot, Sealer};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::{NonZeroScalar, ProjectivePoint};
use rand_core::OsRng;

use super::program::{PROGRAM, Program, courier};
use super::world::{World, enroll, guess_wrong, said};
use super::{KEY, PASSWORD, unlock};

/// Settings before the tables: an anchor that goes back with the disk.
pub(crate) const FILE_ANCHOR: &str = "anchor = { kinds = [\"file\"] }";

/// A password is registered, guessed wrong and right, and proved; `hsm` and `anchor` are what the vault says of itself.
pub(crate) async fn the_whole_way<D: KeyDevice>(world: &World<D>, hsm: &str, anchor: &str) {
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (shown, says) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!((says.as_str(), shown.anchor.as_str(), shown.suites), (hsm, anchor, vec![1]));

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

pub(crate) async fn ten_wrong_guesses<D: KeyDevice>(world: &World<D>) {
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

pub(crate) async fn a_disk_put_back<D: KeyDevice>(world: &World<D>) {
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

/// The vault has the `file` anchor.
pub(crate) async fn a_disk_put_back_with_its_file_anchor<D: KeyDevice>(world: &World<D>) {
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

/// The vault has the `file` anchor.
pub(crate) async fn an_old_copy_after_an_exchange<D: KeyDevice>(world: &World<D>) {
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

/// Two vaults on copies of one disk: whichever answers second would count apart.
pub(crate) async fn two_copies_on_one_device<D: KeyDevice>(world: &World<D>) {
    let transport = courier(world.dir.path());
    let served = world.serve();
    let slot = enroll(&transport, &served).await;
    served.stop();
    let copy = world.copy_disk("copy");
    let second = world.dir.path().join("second.toml");
    std::fs::write(&second, world.device.settings(&copy, "")).unwrap();

    let first = world.serve();
    let second =
        Program::start(world.device.command(PROGRAM).args(["serve", "--config"]).arg(second)).ready();
    assert_eq!(guess_wrong(&transport, &first, &slot).await, 9);
    let stopped = unlock(&transport, &[second.pin()], &slot, b"wrong").await.unwrap_err();
    assert!(matches!(stopped, VaultError::Unreachable { .. }), "{stopped}");
    second.failed();
    assert_eq!(guess_wrong(&transport, &first, &slot).await, 8);
}

/// The device's evaluation is what software would compute with the product of both keys, which the public key K·G allows to
/// compute for B = b·G; and the client, who blinds, cannot tell.
pub(crate) fn evaluations(oprf: &dyn OprfRoot, public: &ProjectivePoint) {
    assert_eq!(oprf.suites(), [Suite::P256]);
    let compressed = |point: ProjectivePoint| point.to_affine().to_encoded_point(true).as_bytes().to_vec();
    for _ in 0..32 {
        let b = NonZeroScalar::random(&mut OsRng);
        let key = oprf.generate_key(Suite::P256, &mut OsRng);
        let blinded = compressed(ProjectivePoint::GENERATOR * *b);
        let evaluated = oprf.evaluate(Suite::P256, &key, &blinded).unwrap();
        assert_eq!(evaluated, Suite::P256.evaluate(&key, &compressed(*public * *b)).unwrap());
        assert_eq!(oprf.at_once().evaluate(Suite::P256, &key, &blinded).unwrap(), evaluated);
    }
    let key = oprf.generate_key(Suite::P256, &mut OsRng);
    let [one, two] = [0, 1].map(|_| {
        let blinded = Suite::P256.blind(b"a password", &mut OsRng);
        let evaluated = oprf.evaluate(Suite::P256, &key, &blinded.element).unwrap();
        blinded.finalize(b"a password", &evaluated).unwrap()
    });
    assert_eq!(one, two);
    let other = oprf.generate_key(Suite::P256, &mut OsRng);
    let blinded = Suite::P256.blind(b"a password", &mut OsRng);
    let evaluated = oprf.evaluate(Suite::P256, &other, &blinded.element).unwrap();
    assert_ne!(one, blinded.finalize(b"a password", &evaluated).unwrap());
    assert_eq!(oprf.evaluate(Suite::P256, &key, &[2; 33][..32]), None);
    let ristretto = Suite::Ristretto255.blind(b"x", &mut OsRng).element;
    assert_eq!(oprf.evaluate(Suite::Ristretto255, &key, &ristretto), None);
}

/// Also: keys are exchanged, and a destroyed one opens nothing. `sealer` has one key.
pub(crate) fn records(sealer: &dyn Sealer) {
    let first = sealer.seal(b"account", b"record", &mut OsRng).unwrap();
    let second = sealer.seal(b"account", b"record", &mut OsRng).unwrap();
    assert_ne!(first.bytes, second.bytes);
    assert_eq!(*sealer.open(1, b"account", &first.bytes).unwrap(), b"record");
    let changed: Vec<u8> = first.bytes.iter().enumerate().map(|(at, b)| b ^ u8::from(at == 20)).collect();
    for (aad, sealed) in [(&b"another"[..], &first.bytes), (b"account", &changed), (b"account", &vec![1; 5])]
    {
        let refused = sealer.open(1, aad, sealed);
        assert!(matches!(refused, Err(DeviceError::NotSealedHere)), "{refused:?}");
    }
    assert_eq!(sealer.make_key(77).unwrap(), 2);
    let newer = sealer.seal(b"account", b"record", &mut OsRng).unwrap();
    assert_eq!((newer.key_id, sealer.keys().unwrap()[1].made_at_s), (2, 77));
    assert_eq!(*sealer.open(1, b"account", &first.bytes).unwrap(), b"record");
    assert!(sealer.open(2, b"account", &first.bytes).is_err());
    sealer.destroy_old_keys().unwrap();
    let gone = sealer.open(1, b"account", &first.bytes);
    assert!(matches!(gone, Err(DeviceError::NoSuchKey { key_id: 1 })), "{gone:?}");
    assert_eq!(*sealer.open(2, b"account", &newer.bytes).unwrap(), b"record");
}

pub(crate) async fn an_old_seal_key_is_exchanged<D: KeyDevice>(world: &World<D>) {
    world.reconfigure(|settings| settings.replace("\"0s\"", "\"1s\""));
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
