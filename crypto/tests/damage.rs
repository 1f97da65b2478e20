//! The damage matrix: each kind of object × each kind of damage gives the error docs/format.md promises.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use chatkeep_crypto::{
    BackupKey, DataRoots, OpenError, authenticate, open, open_keyring, pack_name, read_keyring, seal,
    write_keyring,
};
use chatkeep_format::limits::{MAX_PLAINTEXT_LEN, MIN_STREAM_LEN};
use chatkeep_format::{ArchiveId, CHUNK_LEN, HEADER_LEN, Keyslot, ObjectName, TAG_LEN};
use support::{KnownRng, error_name, mend_end, mend_header, seal_by_hand, stream};

const ARCHIVE: ArchiveId = ArchiveId([0xa1; 16]);
const OTHER_ARCHIVE: ArchiveId = ArchiveId([0xa2; 16]);
const SEALED_CHUNK: usize = CHUNK_LEN + TAG_LEN;

struct World {
    rng: KnownRng,
    roots: DataRoots,
    root: [u8; 32],
}

fn world() -> World {
    let root = KnownRng::new("damage").array();
    let mut rng = KnownRng::new("damage");
    World { roots: DataRoots::new(&mut rng), rng, root }
}

impl World {
    /// Three chunks of what cannot be compressed.
    fn plaintext(&mut self) -> Vec<u8> {
        self.rng.bytes(150_000)
    }

    fn seal(&mut self, name: ObjectName, plaintext: &[u8]) -> Vec<u8> {
        seal(&ARCHIVE, name, &self.roots, plaintext, 3, &mut self.rng)
    }

    fn opens_as(&self, name: ObjectName, sealed: &[u8]) -> String {
        let opened = open(&ARCHIVE, name, &self.roots, sealed).map(drop);
        // What is authentic may still be no stream of ours; all other damage shows without unpacking.
        let is_authentic = !matches!(opened, Err(ref error) if error_name(error) != "Damaged body");
        let authenticated = authenticate(&ARCHIVE, name, &self.roots, sealed);
        assert_eq!(authenticated.is_ok(), is_authentic, "{authenticated:?}");
        match opened {
            Ok(()) => "opens".to_owned(),
            Err(error) => error_name(&error),
        }
    }
}

fn kinds() -> [ObjectName; 2] {
    [ObjectName::Entry(7), ObjectName::Pack([7; 16])]
}

fn flipped(sealed: &[u8], at: usize) -> Vec<u8> {
    let mut sealed = sealed.to_vec();
    sealed[at] ^= 0x10;
    sealed
}

#[test]
fn whatever_was_sealed_opens() {
    let mut world = world();
    for len in [0, 1, 4000, 65_519, 65_520, 65_521, 200_000] {
        for plaintext in [world.rng.bytes(len), vec![b'x'; len]] {
            for name in kinds() {
                let sealed = world.seal(name, &plaintext);
                assert_eq!(open(&ARCHIVE, name, &world.roots, &sealed).unwrap(), plaintext, "{len}");
                authenticate(&ARCHIVE, name, &world.roots, &sealed).unwrap();
            }
        }
    }
}

#[test]
fn the_crate_and_the_document_seal_alike() {
    let mut world = world();
    let plaintext = world.plaintext();
    let frame = zstd::bulk::compress(&plaintext, 3).unwrap();
    let by_hand = stream(&frame, plaintext.len() as u64);
    for name in kinds() {
        let mut fixed = KnownRng::new("salt");
        let salt = KnownRng::new("salt").array();
        let sealed = seal(&ARCHIVE, name, &world.roots, &plaintext, 3, &mut fixed);
        assert_eq!(sealed, seal_by_hand(&world.root, 0, salt, &ARCHIVE, name, &by_hand));
    }
}

#[test]
fn every_flipped_byte_is_damage_where_it_was_flipped() {
    let mut world = world();
    let plaintext = world.plaintext();
    for name in kinds() {
        let sealed = world.seal(name, &plaintext);
        for at in 0..HEADER_LEN {
            let expected = if at < 8 { "NotOurs" } else { "Damaged header" };
            assert_eq!(world.opens_as(name, &flipped(&sealed, at)), expected, "{at}");
        }
        let chunks = (sealed.len() - HEADER_LEN).div_ceil(SEALED_CHUNK);
        assert_eq!(chunks, 3);
        for chunk in 0..chunks {
            let start = HEADER_LEN + chunk * SEALED_CHUNK;
            let end = (start + SEALED_CHUNK).min(sealed.len());
            for at in [start, start + 9, end - TAG_LEN - 1, end - TAG_LEN, end - 1] {
                assert_eq!(
                    world.opens_as(name, &flipped(&sealed, at)),
                    format!("Damaged chunk {chunk}"),
                    "{at}"
                );
            }
        }
    }
}

#[test]
fn every_cut_is_truncation_and_every_addition_is_damage() {
    let mut world = world();
    let plaintext = world.plaintext();
    for name in kinds() {
        let sealed = world.seal(name, &plaintext);
        let boundaries = (0..3).map(|chunk| HEADER_LEN + chunk * SEALED_CHUNK);
        let cuts = boundaries.flat_map(|at| [at - 1, at, at + 1]).chain([0, 1, 8, 95, sealed.len() - 1]);
        for len in cuts {
            assert_eq!(world.opens_as(name, &sealed[..len]), "Truncated", "{len}");
        }
        for tail in [&[0][..], &[0; TAG_LEN], &sealed[HEADER_LEN..], &sealed] {
            assert_eq!(world.opens_as(name, &[&sealed, tail].concat()), "Damaged trailing");
        }
    }
}

/// Someone who cuts the object and mends its header still cannot pass it off as whole.
#[test]
fn a_cut_with_a_mended_length_does_not_open() {
    let mut world = world();
    let plaintext = world.plaintext();
    for name in kinds() {
        let sealed = world.seal(name, &plaintext);
        for (len, expected) in [
            (HEADER_LEN, "Damaged header"),
            (HEADER_LEN + TAG_LEN, "Damaged header"),
            (HEADER_LEN + SEALED_CHUNK + 1, "Damaged header"),
            (HEADER_LEN + SEALED_CHUNK + TAG_LEN, "Damaged header"),
            (HEADER_LEN + SEALED_CHUNK, "Damaged chunk 0"),
            (HEADER_LEN + SEALED_CHUNK * 2, "Damaged chunk 0"),
        ] {
            let mut cut = sealed[..len].to_vec();
            cut[16..24].copy_from_slice(&(len as u64).to_le_bytes());
            mend_header(&mut cut);
            assert_eq!(world.opens_as(name, &cut), expected, "{len}");
        }
    }
}

#[test]
fn mixed_up_objects_are_not_this_object() {
    let mut world = world();
    let plaintext = world.plaintext();
    let (entry, pack) = (ObjectName::Entry(7), ObjectName::Pack([7; 16]));
    let (sealed_entry, sealed_pack) = (world.seal(entry, &plaintext), world.seal(pack, &plaintext));
    for (name, sealed) in [
        (ObjectName::Entry(8), &sealed_entry),
        (pack, &sealed_entry),
        (ObjectName::Keyring(7), &sealed_entry),
        (ObjectName::Pack([8; 16]), &sealed_pack),
        (entry, &sealed_pack),
    ] {
        assert_eq!(world.opens_as(name, sealed), "NotThisObject", "{name:?}");
    }
    for (name, sealed) in [(entry, sealed_entry), (pack, sealed_pack)] {
        let error = open(&OTHER_ARCHIVE, name, &world.roots, &sealed).unwrap_err();
        assert_eq!(error, OpenError::NotThisObject);
        let other_roots = DataRoots::new(&mut world.rng);
        assert_eq!(open(&ARCHIVE, name, &other_roots, &sealed).unwrap_err(), OpenError::NotThisObject);
    }
}

#[test]
fn chunks_stay_in_their_place_and_object() {
    let mut world = world();
    let plaintext = world.plaintext();
    for name in kinds() {
        let (sealed, again) = (world.seal(name, &plaintext), world.seal(name, &plaintext));
        assert_ne!(sealed, again, "each attempt has its own salt");
        let mut swapped = sealed.clone();
        swapped[HEADER_LEN..].rotate_left(SEALED_CHUNK);
        assert_eq!(world.opens_as(name, &swapped), "Damaged chunk 0");
        let mut repeated = sealed.clone();
        repeated.copy_within(HEADER_LEN..HEADER_LEN + SEALED_CHUNK, HEADER_LEN + SEALED_CHUNK);
        assert_eq!(world.opens_as(name, &repeated), "Damaged chunk 1");
        let foreign = [&sealed[..HEADER_LEN + SEALED_CHUNK], &again[HEADER_LEN + SEALED_CHUNK..]].concat();
        assert_eq!(world.opens_as(name, &foreign), "Damaged chunk 1");
    }
}

#[test]
fn epochs_open_what_they_sealed_and_newer_ones_are_named() {
    let mut world = world();
    let name = ObjectName::Entry(1);
    let old_roots = world.roots.clone();
    let before = world.seal(name, b"before");
    let name_before = pack_name(&world.roots, b"page");
    assert_eq!(world.roots.add_epoch(&mut world.rng), 1);
    let after = world.seal(name, b"after");
    assert_eq!(open(&ARCHIVE, name, &world.roots, &before).unwrap(), b"before");
    assert_eq!(open(&ARCHIVE, name, &world.roots, &after).unwrap(), b"after");
    let error = open(&ARCHIVE, name, &old_roots, &after).unwrap_err();
    assert_eq!(error, OpenError::UnknownKeyEpoch { epoch: 1 });
    assert_ne!(pack_name(&world.roots, b"page"), name_before);
}

#[test]
fn newer_versions_and_forged_headers_are_told_apart() {
    let mut world = world();
    for name in kinds() {
        let sealed = world.seal(name, b"plaintext");
        for (at, value, expected) in [
            (8, 2, "NewerFormat 2"),
            (8, 255, "NewerFormat 255"),
            (8, 0, "Damaged header"),
            (9, 9, "Damaged header"),
            (10, 1, "Damaged header"),
            (12, 9, "UnknownKeyEpoch 9"),
            (20, 1, "Damaged header"),
            (24, 9, "NotThisObject"),
            (56, 9, "NotThisObject"),
        ] {
            let mut forged = sealed.clone();
            assert_ne!(forged[at], value);
            forged[at] = value;
            mend_header(&mut forged);
            assert_eq!(world.opens_as(name, &forged), expected, "byte {at} = {value}");
        }
    }
}

/// Only a holder of the key can write these; they still neither open nor cost memory.
#[test]
fn authentic_streams_that_no_encoder_writes_are_refused() {
    let world = world();
    let name = ObjectName::Entry(7);
    let check = |stream: &[u8], what: &str| {
        let sealed = seal_by_hand(&world.root, 0, [9; 32], &ARCHIVE, name, stream);
        assert_eq!(world.opens_as(name, &sealed), "Damaged body", "{what}");
    };
    let frame = zstd::bulk::compress(b"plaintext", 3).unwrap();
    check(&stream(&frame, 8), "claims less than there is");
    check(&stream(&frame, 10), "claims more than there is");
    check(&stream(&frame, MAX_PLAINTEXT_LEN as u64 + 1), "claims more than the limit");
    check(&stream(&frame, u64::MAX), "claims everything");
    let mut long_frame = stream(&frame, 9);
    long_frame[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    check(&long_frame, "frame longer than the stream");
    let bomb = zstd::bulk::compress(&vec![0; MAX_PLAINTEXT_LEN + 1], 3).unwrap();
    check(&stream(&bomb, 9), "bomb that claims little");
    check(&stream(&bomb, MAX_PLAINTEXT_LEN as u64 + 1), "bomb that says so");
    check(&stream(&[&frame[..], &frame].concat(), 18), "two frames");
    check(&stream(&[&frame[..], &frame].concat(), 9), "a frame after the one that counts");
    check(&stream(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], 0), "skippable frame");
    check(&stream(&[], 0), "no frame");
    check(&stream(&frame[..frame.len() - 1], 9), "cut frame");
    let padding = stream(&frame, 9);
    check(&[&padding[..MIN_STREAM_LEN - 1], &[1]].concat(), "padding that is not zero");
    check(&[&padding[..], &[0; 256]].concat(), "more padding than Padmé");
    assert_eq!(
        world.opens_as(name, &seal_by_hand(&world.root, 0, [9; 32], &ARCHIVE, name, &padding)),
        "opens"
    );
}

fn keyring_result(bytes: &[u8], archive: &ArchiveId, counter: u64, key: &BackupKey) -> String {
    match read_keyring(bytes, archive, counter).and_then(|keyring| open_keyring(&keyring, key)) {
        Ok(_) => "opens".to_owned(),
        Err(error) => error_name(&error),
    }
}

#[test]
fn a_keyring_gives_the_promised_error_for_every_damage() {
    let mut world = world();
    let key = BackupKey::generate(&mut world.rng);
    world.roots.add_epoch(&mut world.rng);
    let slots = vec![Keyslot::Raw, Keyslot::Password(vec![5; 40])];
    let bytes = write_keyring(&ARCHIVE, 3, &key, &world.roots, slots.clone(), &mut world.rng);
    let check = |bytes: &[u8], expected: &str, what: &str| {
        assert_eq!(keyring_result(bytes, &ARCHIVE, 3, &key), expected, "{what}");
    };

    assert_eq!(read_keyring(&bytes, &ARCHIVE, 3).unwrap().slots, slots);
    check(&bytes, "opens", "as written");
    for at in 0..bytes.len() {
        let expected = match at {
            0..8 => "NotOurs",
            8..HEADER_LEN => "Damaged header",
            _ => "Damaged keyring",
        };
        check(&flipped(&bytes, at), expected, &format!("flipped byte {at}"));
        check(&bytes[..at], "Truncated", &format!("cut to {at}"));
    }
    check(&[&bytes[..], &[0]].concat(), "Damaged trailing", "extended");

    let wrong_key = BackupKey::generate(&mut world.rng);
    assert_eq!(keyring_result(&bytes, &ARCHIVE, 3, &wrong_key), "WrongKey");
    assert_eq!(keyring_result(&bytes, &OTHER_ARCHIVE, 3, &key), "NotThisObject");
    assert_eq!(keyring_result(&bytes, &ARCHIVE, 4, &key), "NotThisObject");
    let entry = world.seal(ObjectName::Entry(3), b"x");
    check(&entry, "NotThisObject", "an entry in its place");
    assert_eq!(world.opens_as(ObjectName::Entry(3), &bytes), "NotThisObject");
    assert_eq!(world.opens_as(ObjectName::Keyring(3), &bytes), "NotThisObject");
}

/// Every byte after the check value is under the MAC, whoever mends the checksums.
#[test]
fn a_forged_keyring_is_damaged_and_never_a_wrong_key() {
    let mut world = world();
    let key = BackupKey::generate(&mut world.rng);
    let slots = vec![Keyslot::Raw, Keyslot::Password(vec![5; 40])];
    let bytes = write_keyring(&ARCHIVE, 3, &key, &world.roots, slots, &mut world.rng);
    for at in HEADER_LEN..bytes.len() - 8 {
        let mut forged = flipped(&bytes, at);
        mend_end(&mut forged);
        let expected =
            if at < HEADER_LEN + 24 { ["NotThisObject", "Damaged keyring"] } else { ["Damaged keyring"; 2] };
        assert!(expected.contains(&keyring_result(&forged, &ARCHIVE, 3, &key).as_str()), "byte {at}");
    }
    for (at, expected) in [(24, "WrongKey"), (56, "WrongKey")] {
        let mut forged = flipped(&bytes, at);
        mend_header(&mut forged);
        mend_end(&mut forged);
        assert_eq!(keyring_result(&forged, &ARCHIVE, 3, &key), expected, "salt or check value replaced");
    }
}

#[test]
fn a_rotated_key_opens_everything_and_the_old_one_nothing_new() {
    let mut world = world();
    let (old, new) = (BackupKey::generate(&mut world.rng), BackupKey::generate(&mut world.rng));
    let first = write_keyring(&ARCHIVE, 1, &old, &world.roots, vec![Keyslot::Raw], &mut world.rng);
    world.roots.add_epoch(&mut world.rng);
    let second = write_keyring(&ARCHIVE, 2, &new, &world.roots, vec![Keyslot::Raw], &mut world.rng);
    assert_eq!(keyring_result(&second, &ARCHIVE, 2, &old), "WrongKey");
    assert_eq!(keyring_result(&first, &ARCHIVE, 1, &new), "WrongKey");
    let roots = open_keyring(&read_keyring(&second, &ARCHIVE, 2).unwrap(), &new).unwrap();
    assert_eq!(roots.epochs().collect::<Vec<_>>(), [0, 1]);
    let sealed = world.seal(ObjectName::Entry(1), b"new");
    assert_eq!(open(&ARCHIVE, ObjectName::Entry(1), &roots, &sealed).unwrap(), b"new");
}

#[test]
fn secrets_never_print() {
    let mut world = world();
    world.roots.add_epoch(&mut world.rng);
    assert_eq!(format!("{:?}", world.roots), "DataRoots(epoch 1, redacted)");
}
