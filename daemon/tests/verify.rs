//! Verification, rehearsals and repairs, against damage of every kind in every place.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chatkeep_crypto::DataRoots;
use chatkeep_format::ObjectName;
use chatkeep_ipc::{Error, VerifyDepth};
use chatkeepd::damage::DamageKind;
use chatkeepd::drill::Verdict;
use chatkeepd::event::{Outcome, Work};
use chatkeepd::follower::LostPack;
use chatkeepd::jobs::rehearse_in;
use common::World;
use rand_core::OsRng;

/// Enough for two packs in a base.
const ROWS: u32 = 16_000;

/// How an object can be damaged: what it is called, and what stands in its place. `other` is another object of its kind.
type Harm = fn(good: &Bytes, other: &Bytes) -> Option<Bytes>;

const HARMS: [(&str, Harm, DamageKind); 5] = [
    ("deleted", |_, _| None, DamageKind::Missing),
    ("cut off", |good, _| Some(good.slice(..good.len() / 2)), DamageKind::Damaged),
    ("a bit flipped", |good, _| Some(flipped(good)), DamageKind::Damaged),
    ("swapped", |_, other| Some(other.clone()), DamageKind::Swapped),
    ("newer", |good, _| Some(newer(good)), DamageKind::Newer),
];

fn flipped(good: &Bytes) -> Bytes {
    let mut bytes = good.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes.into()
}

fn newer(good: &Bytes) -> Bytes {
    let mut bytes = good.to_vec();
    bytes[8] = 9;
    let checksum = blake3::hash(&bytes[..88]);
    bytes[88..96].copy_from_slice(&checksum.as_bytes()[..8]);
    bytes.into()
}

/// A base, 11 entries on it, an entry that stands for all of these, and one more.
async fn span() -> World {
    let mut world = World::chat(ROWS).await;
    world.back_up().await;
    for seq in 2..=14 {
        world.sql(&format!("INSERT INTO m VALUES ('more {seq}')"));
        assert_eq!(world.back_up().await, seq);
    }
    let points = world.tools.catalogue.points(&world.id());
    let parents: Vec<u64> = points.iter().map(|point| point.parent_seq).collect();
    assert_eq!(parents, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 13]);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_object_is_named_with_the_points_it_costs() {
    let world = span().await;
    assert_eq!(world.verify(VerifyDepth::Chunks).await, []);
    let packs = world.packs().await;
    let cases = [
        (ObjectName::Entry(5), ObjectName::Entry(6), (5..=12).collect::<BTreeSet<u64>>()),
        (ObjectName::Entry(13), ObjectName::Entry(12), [13, 14].into()),
        (ObjectName::Entry(14), ObjectName::Entry(12), [14].into()),
        (ObjectName::Entry(1), ObjectName::Entry(2), (1..=14).collect()),
        (ObjectName::Pack(packs[0]), ObjectName::Pack(packs[1]), (1..=14).collect()),
    ];
    for (name, other, affected) in cases {
        let (good, other) = (world.object(name).await, world.object(other).await);
        for (how, harm, kind) in HARMS {
            world.exchange(name, harm(&good, &other)).await;
            let case = format!("{name:?}, {how}");
            for depth in [VerifyDepth::Manifest, VerifyDepth::Chunks] {
                let inside = matches!(name, ObjectName::Pack(_)) && matches!(how, "a bit flipped" | "newer");
                let found = world.verify(depth).await;
                if depth == VerifyDepth::Manifest && inside {
                    assert_eq!(found, [], "{case}: that shows only inside");
                    continue;
                }
                assert_eq!(found.len(), 1, "{case}, {depth:?}: {found:?}");
                let damage = &found[0];
                assert_eq!(damage.name(), Some(name), "{case}");
                assert_eq!(damage.kind, kind, "{case}: {damage:?}");
                assert_eq!(damage.points.iter().copied().collect::<BTreeSet<_>>(), affected, "{case}");
                assert!(!damage.holds.is_empty(), "{case}");
            }
            // What does not need it restores, what needs it does not: once is enough for each object.
            for seq in [4, 12, 13, 14].into_iter().filter(|_| how == "cut off") {
                let restored = world.restore(seq).await;
                assert_eq!(restored.is_err(), affected.contains(&seq), "{case}, point {seq}: {restored:?}");
            }
            world.exchange(name, Some(good.clone())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_goes_on_after_damage_and_reports_all_of_it() {
    let world = span().await;
    let packs = world.packs().await;
    let mut harmed = BTreeSet::new();
    for name in [ObjectName::Entry(3), ObjectName::Entry(7), ObjectName::Entry(13), ObjectName::Keyring(1)] {
        world.exchange(name, None).await;
        harmed.insert(name);
    }
    for pack in &packs[..2] {
        let name = ObjectName::Pack(*pack);
        world.exchange(name, Some(flipped(&world.object(name).await))).await;
        harmed.insert(name);
    }
    let found = world.verify(VerifyDepth::Chunks).await;
    assert_eq!(found.iter().filter_map(chatkeepd::damage::Damage::name).collect::<BTreeSet<_>>(), harmed);
    assert_eq!(found.len(), harmed.len(), "each once");
}

fn lost(world: &World, packs: &[[u8; 16]]) -> Vec<LostPack> {
    let pages = |name: &[u8; 16]| world.tools.catalogue.pack_pages(&world.id(), name).unwrap();
    packs.iter().map(|name| LostPack { name: *name, pages: pages(name) }).collect()
}

/// The packs of the base, by the pages they hold.
async fn base_packs(world: &World) -> Vec<[u8; 16]> {
    let mut packs = world.packs().await;
    packs.sort_by_key(|name| world.tools.catalogue.pack_pages(&world.id(), name).unwrap().pages().next());
    packs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_base_pack_is_made_again_and_the_old_point_restores() {
    let mut world = World::chat(ROWS / 2 * 3).await;
    world.back_up().await;
    world.sql("INSERT INTO m VALUES ('more')");
    world.back_up().await;
    let packs = base_packs(&world).await;
    assert!(packs.len() >= 3, "{}", packs.len());
    // The first has the page that every commit changes, the last the page that grows; between them nothing happened.
    let unchanged = packs[1];
    let name = ObjectName::Pack(unchanged);
    let good = world.object(name).await;
    for harmed in [None, Some(flipped(&good)), Some(good.slice(..100))] {
        world.exchange(name, harmed).await;
        world.restore(1).await.expect_err("a pack is damaged");
        assert_eq!(world.verify(VerifyDepth::Chunks).await.len(), 1);
        let (made, failed) = world.rebuild(lost(&world, &[unchanged])).await;
        assert_eq!((made.len(), failed), (1, 0));
        assert_eq!(world.opened.spool.repairs().unwrap(), made, "it is safe before anything is deleted");
        let repair = Work::Repair { opened: world.opened.clone(), packs: made };
        let Outcome::Repaired { objects, failure: None } = world.run(repair).await.unwrap() else { panic!() };
        assert_eq!(objects, [name]);
        assert_eq!(world.opened.spool.repairs().unwrap(), []);
        assert_eq!(world.verify(VerifyDepth::Chunks).await, []);
        world.restore(1).await.unwrap();
        world.restore(2).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_which_a_page_has_changed_is_not_made_again() {
    let mut world = World::chat(ROWS).await;
    world.back_up().await;
    let packs = base_packs(&world).await;
    world.sql("UPDATE m SET t = 'other' WHERE rowid % 1000 = 0");
    for captured in [false, true] {
        if captured {
            world.back_up().await;
        }
        let (made, failed) = world.rebuild(lost(&world, &packs[..2])).await;
        assert_eq!((made.len(), failed), (0, 2), "captured: {captured}");
    }
    assert_eq!(world.opened.spool.repairs().unwrap(), []);
}

/// A base that is made anew because of damage has the same packs: they take the place of the damaged ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_in_the_way_of_an_upload_is_replaced_by_the_same_content() {
    let mut world = World::chat(ROWS).await;
    world.back_up().await;
    let name = ObjectName::Pack(world.packs().await[0]);
    let good = world.object(name).await;
    let roots = world.opened.keys.roots.clone();
    let ObjectName::Pack(pack) = name else { unreachable!() };
    let nowhere = std::path::Path::new("nowhere");
    for harmed in [flipped(&good), good.slice(..10), Bytes::from_static(b"<html>")] {
        world.exchange(name, Some(harmed)).await;
        world.opened.archive.put_pack(pack, good.clone(), nowhere, &roots).await.unwrap();
        assert_eq!(world.object(name).await, good);
    }
    // What a later version wrote is not ours to replace, and what does not open is no replacement.
    world.exchange(name, Some(newer(&good))).await;
    world.opened.archive.put_pack(pack, good.clone(), nowhere, &roots).await.unwrap_err();
    world.exchange(name, Some(flipped(&good))).await;
    world.opened.archive.put_pack(pack, good.slice(..500), nowhere, &roots).await.unwrap_err();
    assert_eq!(world.object(name).await, flipped(&good));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_counts_what_came_back_and_leaves_a_record() {
    let mut world = World::chat(5000).await;
    world.back_up().await;
    world.sql("INSERT INTO m VALUES ('more')");
    world.back_up().await;
    world.sql("INSERT INTO m VALUES ('more')");
    world.back_up().await;
    assert_eq!(world.drill().await.0, [3, 2]);
    let roots = &world.opened.keys.roots;
    let proved = world.tools.catalogue.drills(&world.id()).prove(&world.id(), roots);
    let record = proved.newest.unwrap();
    assert_eq!((record.seq, record.tables, record.rows, record.databases), (3, 2, 5002, 1));
    assert_eq!(record.bytes, std::fs::metadata(world.database()).unwrap().len());
    assert_eq!((record.verdict, record.uncounted), (Verdict::Whole, 0));
    assert_eq!(proved.older.unwrap().seq, 2);
    assert_eq!(world.drill().await.0, [3, 1], "older points take turns");
    assert_eq!(world.drill().await.0, [3, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_of_a_rehearsal_is_not_shown() {
    let mut world = World::chat(100).await;
    world.back_up().await;
    world.drill().await;
    let (id, roots) = (world.id(), world.opened.keys.roots.clone());
    let catalogue = &world.tools.catalogue;
    let record = catalogue.drills(&id).prove(&id, &roots).newest.unwrap();
    let better = chatkeepd::drill::DrillRecord { drilled_us: u64::MAX / 2, ..record };
    catalogue.update_drills(&id, |drills| drills.newest = better.seal(&DataRoots::new(&mut OsRng)));
    assert_eq!(catalogue.drills(&id).prove(&id, &roots).newest, None);
    catalogue.update_drills(&id, |drills| drills.newest = better.seal(&roots));
    assert_eq!(catalogue.drills(&id).prove(&id, &roots).newest, Some(better), "the test would notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_fails_is_told_and_keeps_the_last_good_one() {
    let mut world = World::chat(ROWS).await;
    world.back_up().await;
    world.drill().await;
    let name = ObjectName::Pack(world.packs().await[0]);
    let good = world.object(name).await;
    world.exchange(name, None).await;
    let (points, failure) = world.drill().await;
    assert!(points.is_empty(), "{points:?}");
    let failure = failure.unwrap();
    assert!(matches!(failure.error, Error::ObjectMissing(_)), "{failure:?}");
    assert_eq!(failure.damage()[0].name(), Some(name));
    let (id, roots) = (world.id(), &world.opened.keys.roots);
    let shown = world.tools.catalogue.drills(&id).prove(&id, roots);
    assert_eq!(shown.newest.unwrap().seq, 1);
    assert_eq!(shown.failure.unwrap().error, "ObjectMissing");
    world.exchange(name, Some(good)).await;
    world.drill().await;
    assert_eq!(world.tools.catalogue.drills(&id).failure, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_does_not_fill_the_disk() {
    let mut world = World::chat(5000).await;
    world.back_up().await;
    let size = std::fs::metadata(world.database()).unwrap().len();
    let reserve = 256 << 20;
    for (free, enough) in [(0, false), (size + reserve - 1, false), (size + reserve, true)] {
        let (source, runtime) = (world.source(), tokio::runtime::Handle::current());
        let scratch = world.tools.paths.drills().join("full");
        let there = scratch.clone();
        let rehearse = move || rehearse_in(&there, &source, 1, &runtime, |_| Ok(free));
        let ran = tokio::task::spawn_blocking(rehearse).await.unwrap();
        assert!(!scratch.exists(), "nothing is left");
        match ran {
            Ok(record) => assert!(enough, "{record:?}"),
            Err(fault) => assert!(!enough && matches!(fault.error, Error::NoSpace(_)), "{fault:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_its_app_can_read_is_rehearsed_too() {
    let noise = |path: &std::path::Path| {
        let mut bytes = vec![0; 64 * 4096];
        rand_core::RngCore::fill_bytes(&mut OsRng, &mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let mut world = World::with(noise).await;
    world.back_up().await;
    assert_eq!(world.drill().await.0, [1]);
    let (id, roots) = (world.id(), Arc::clone(&world.opened.keys.roots));
    let record = world.tools.catalogue.drills(&id).prove(&id, &roots).newest.unwrap();
    assert_eq!((record.verdict, record.tables, record.rows), (Verdict::Opaque, 0, 0));
    assert_eq!(record.bytes, 64 * 4096);
}
