//! What is deleted is old, marked, and needed by nobody.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_planner::prune::MARKED_FOR_MIN_US;
use chatkeep_planner::{
    KnownEntry, Level, Mark, PointInfo, Prunable, PrunePlan, RetentionPlan, RetentionPolicy, StoreView,
    plan_prune, plan_retention,
};
use proptest::prelude::*;

const WEEK_US: i64 = MARKED_FOR_MIN_US;

/// Everything a plan is made of.
#[derive(Debug, Clone)]
struct World {
    objects: BTreeMap<Prunable, u64>,
    entries: BTreeMap<u64, KnownEntry>,
    packs_in_use: BTreeSet<[u8; 16]>,
    marks: BTreeMap<Prunable, Mark>,
    retention: RetentionPlan,
    newest_seq: u64,
    newest_taken_at_us: i64,
    listing_trusted: bool,
    now_us: i64,
}

impl World {
    /// A log of (seq, parent, packs), and which of it is to be forgotten.
    fn with(entries: &[(u64, u64, &[u8])], forget: &[u64]) -> Self {
        let mut world = Self {
            objects: BTreeMap::new(),
            entries: BTreeMap::new(),
            packs_in_use: BTreeSet::new(),
            marks: BTreeMap::new(),
            retention: RetentionPlan { forget: forget.to_vec(), ..RetentionPlan::default() },
            newest_seq: 0,
            newest_taken_at_us: 0,
            listing_trusted: true,
            now_us: 100 * WEEK_US,
        };
        world.retention.forget.sort_unstable_by(|a, b| b.cmp(a));
        for (seq, parent_seq, packs) in entries {
            world.objects.insert(Prunable::Entry(*seq), 1);
            world.objects.extend(packs.iter().map(|number| (pack(*number), 10)));
            let packs = packs.iter().map(|number| [*number; 16]).collect();
            world.entries.insert(*seq, KnownEntry { parent_seq: *parent_seq, packs });
            world.newest_seq = world.newest_seq.max(*seq);
            if !forget.contains(seq) {
                world.retention.keep.insert(0, *seq);
            }
        }
        world
    }

    /// Marks these long enough ago.
    fn marked(mut self, objects: &[Prunable]) -> Self {
        let mark = Mark { marked_at_us: self.now_us - WEEK_US, marked_at_seq: self.newest_seq - 2 };
        self.marks.extend(objects.iter().map(|object| (*object, mark)));
        self
    }

    fn plan(&self) -> PrunePlan {
        let view = StoreView {
            objects: &self.objects,
            entries: &self.entries,
            packs_in_use: &self.packs_in_use,
            marks: &self.marks,
            newest_seq: self.newest_seq,
            newest_taken_at_us: self.newest_taken_at_us,
            listing_trusted: self.listing_trusted,
        };
        plan_prune(&view, &self.retention, self.now_us)
    }

    /// Does what the plan says, up to a crash after so many deletions.
    fn carry_out(&mut self, plan: &PrunePlan, deletions_max: usize) {
        for object in &plan.unmark {
            self.marks.remove(object);
        }
        self.marks.extend(plan.mark.iter().copied());
        for object in plan.delete.iter().take(deletions_max) {
            self.objects.remove(object);
            self.marks.remove(object);
            if let Prunable::Entry(seq) = object {
                self.entries.remove(seq);
                self.retention.forget.retain(|it| it != seq);
            }
        }
    }

    #[track_caller]
    fn check_deleted(&self, objects: &[Prunable]) {
        assert_eq!(self.plan().delete, objects);
    }

    #[track_caller]
    fn check_marked(&self, objects: &[Prunable]) {
        let mark = Mark { marked_at_us: self.now_us, marked_at_seq: self.newest_seq };
        let marked: Vec<_> = objects.iter().map(|object| (*object, mark)).collect();
        assert_eq!(self.plan(), PrunePlan { mark: marked, ..PrunePlan::default() });
    }
}

fn entry(seq: u64) -> Prunable {
    Prunable::Entry(seq)
}

fn pack(number: u8) -> Prunable {
    Prunable::Pack([number; 16])
}

/// Two bases, each with a pack, and one that they share; the first one goes, with its child.
fn two_bases() -> World {
    World::with(&[(1, 0, &[1, 9]), (2, 1, &[2]), (3, 0, &[3, 9]), (4, 3, &[])], &[1, 2])
}

#[test]
fn what_is_forgotten_is_marked_first() {
    two_bases().check_marked(&[entry(2), entry(1), pack(1), pack(2)]);
}

#[test]
fn what_was_marked_is_deleted_children_first_and_packs_last() {
    let world = two_bases().marked(&[entry(1), entry(2), pack(1), pack(2)]);
    world.check_deleted(&[entry(2), entry(1), pack(1), pack(2)]);
    assert_eq!(world.plan().delete_bytes, 22);
}

#[test]
fn a_mark_waits_a_week_and_two_entries() {
    let world = two_bases().marked(&[entry(2)]);
    let mark = world.marks[&entry(2)];
    for too_young in [
        Mark { marked_at_us: mark.marked_at_us + 1, ..mark },
        Mark { marked_at_seq: mark.marked_at_seq + 1, ..mark },
        Mark { marked_at_us: i64::MAX, ..mark },
        Mark { marked_at_seq: u64::MAX, ..mark },
    ] {
        let mut world = world.clone();
        world.marks.insert(entry(2), too_young);
        assert_eq!((world.plan().delete, world.plan().waiting), (vec![], vec![entry(2)]), "{too_young:?}");
    }
    world.check_deleted(&[entry(2)]);
}

#[test]
fn a_parent_and_its_packs_wait_for_the_child() {
    let world = two_bases().marked(&[entry(1), pack(1), pack(2)]);
    world.check_deleted(&[]);
    assert_eq!(world.plan().waiting, [entry(1), pack(1), pack(2)]);
    assert_eq!(world.plan().mark.len(), 1);
}

#[test]
fn what_is_needed_again_is_unmarked() {
    let mut world = two_bases().marked(&[entry(1), entry(2), pack(1), pack(2), pack(9), pack(77)]);
    // somebody pinned 2
    world.retention = RetentionPlan { keep: vec![4, 3, 2], carry: vec![1], forget: vec![] };
    let unmark = [entry(1), entry(2), pack(1), pack(2), pack(9), pack(77)];
    assert_eq!(world.plan(), PrunePlan { unmark: unmark.to_vec(), ..PrunePlan::default() });
}

#[test]
fn what_a_crash_left_is_deleted_too() {
    let mut world = two_bases();
    world.retention = RetentionPlan { keep: vec![4, 3, 2, 1], ..RetentionPlan::default() };
    world.objects.insert(pack(50), 10);
    world.check_marked(&[pack(50)]);
    world.clone().marked(&[pack(50)]).check_deleted(&[pack(50)]);
    // unless it belongs to a capture that is under way
    world.packs_in_use.insert([50; 16]);
    assert_eq!(world.plan(), PrunePlan::default());
    assert_eq!(world.marked(&[pack(50)]).plan().unmark, [pack(50)]);
}

#[test]
fn an_entry_that_nobody_read_keeps_all_packs_and_older_entries() {
    let objects = [entry(1), entry(2), pack(1), pack(2)];
    let mut world = two_bases().marked(&objects);
    world.objects.insert(entry(5), 1);
    let untouched = PrunePlan { waiting: vec![entry(2), entry(1), pack(1), pack(2)], ..PrunePlan::default() };
    assert_eq!(world.plan(), untouched);
    world.marks.clear();
    assert_eq!(world.plan(), PrunePlan::default());
    // it cannot be a child of newer ones
    world = two_bases().marked(&objects);
    world.entries.remove(&1);
    world.check_deleted(&[entry(2)]);
}

#[test]
fn a_listing_that_is_not_trusted_plans_nothing() {
    let world = two_bases().marked(&[entry(1), entry(2), pack(1), pack(9)]);
    let untrusted = World { listing_trusted: false, ..world.clone() };
    assert_eq!(untrusted.plan(), PrunePlan::default());
    let mut lacks_a_kept_one = world;
    lacks_a_kept_one.objects.remove(&entry(3));
    assert_eq!(lacks_a_kept_one.plan(), PrunePlan::default());
}

#[test]
fn a_clock_behind_the_log_marks_and_deletes_nothing() {
    let mut world = two_bases().marked(&[entry(2), pack(9)]);
    world.newest_taken_at_us = world.now_us + 1;
    let plan = PrunePlan { waiting: vec![entry(2)], unmark: vec![pack(9)], ..PrunePlan::default() };
    assert_eq!(world.plan(), plan);
}

#[test]
fn a_retention_plan_that_is_wrong_deletes_no_parent_and_no_newest() {
    let mut world = two_bases();
    // 4 needs 3; the newest, which is 4, stays whatever the plan says
    world.retention = RetentionPlan { keep: vec![], carry: vec![], forget: vec![4, 3] };
    let world = world.marked(&[entry(4), entry(3), pack(3), pack(9)]);
    assert_eq!(world.plan().unmark, [entry(3), entry(4), pack(3), pack(9)]);
    world.check_deleted(&[]);
}

#[test]
fn an_entry_on_its_way_up_keeps_what_it_needs() {
    let mut world = two_bases().marked(&[entry(1), entry(2), pack(2)]);
    world.entries.insert(5, KnownEntry { parent_seq: 1, packs: vec![[2; 16]] });
    world.check_deleted(&[entry(2)]);
    assert_eq!(world.plan().unmark, [entry(1), pack(2)]);
}

/// What a step of the long run below does.
#[derive(Debug, Clone)]
enum Step {
    /// A capture: its parent is so many entries back, and it names these packs.
    Write(u64, Vec<u8>),
    /// The clock moves.
    Wait(i64),
    /// Packs without an entry.
    LeavePacks(Vec<u8>),
    Pin(u64),
    Unpin(u64),
    /// A check, with a crash after so many deletions; sometimes an entry is not read, or the listing not trusted.
    Prune {
        deletions_max: usize,
        unread: Option<u64>,
        trusted: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let packs = || prop::collection::vec(0..30_u8, 0..4);
    let prune = (0..20_usize, prop::option::weighted(0.1, any::<u64>()), prop::bool::weighted(0.9))
        .prop_map(|(deletions_max, unread, trusted)| Step::Prune { deletions_max, unread, trusted });
    prop_oneof![
        8 => (0..4_u64, packs()).prop_map(|(back, packs)| Step::Write(back, packs)),
        3 => (0..WEEK_US).prop_map(Step::Wait),
        1 => (-WEEK_US..4 * WEEK_US).prop_map(Step::Wait),
        1 => packs().prop_map(Step::LeavePacks),
        1 => any::<u64>().prop_map(Step::Pin),
        1 => any::<u64>().prop_map(Step::Unpin),
        8 => prune,
    ]
}

/// A store over months, and the points as the daemon lists them.
struct Store {
    world: World,
    points: BTreeMap<u64, PointInfo>,
    /// When each object was first found marked.
    marked_since: BTreeMap<Prunable, Mark>,
    deleted: usize,
}

impl Store {
    fn run(&mut self, step: Step) {
        match step {
            Step::Write(back, packs) => self.write(back, &packs),
            Step::Wait(us) => self.world.now_us += us,
            Step::LeavePacks(packs) => self.world.objects.extend(packs.into_iter().map(|it| (pack(it), 10))),
            Step::Pin(which) | Step::Unpin(which) => {
                let at = which % (self.points.len().max(1) as u64);
                if let Some(point) = self.points.values_mut().nth(at as usize) {
                    point.pinned = matches!(step, Step::Pin(_));
                }
            }
            Step::Prune { deletions_max, unread, trusted } => self.prune(deletions_max, unread, trusted),
        }
    }

    fn write(&mut self, back: u64, packs: &[u8]) {
        let world = &mut self.world;
        let seq = world.newest_seq + 1;
        // only entries of the newest one's chain become parents, as by the levels
        let mut parent_seq = world.newest_seq;
        for _ in 0..back {
            parent_seq = world.entries.get(&parent_seq).map_or(0, |it| it.parent_seq);
        }
        world.objects.insert(entry(seq), 1);
        world.objects.extend(packs.iter().map(|number| (pack(*number), 10)));
        let packs = packs.iter().map(|number| [*number; 16]).collect();
        world.entries.insert(seq, KnownEntry { parent_seq, packs });
        world.newest_seq = seq;
        world.newest_taken_at_us = world.now_us;
        let level = if parent_seq == 0 { Level::Base } else { Level::Entry };
        let taken_at_us = world.now_us;
        self.points.insert(seq, PointInfo { seq, parent_seq, level, taken_at_us, pinned: false });
    }

    fn prune(&mut self, deletions_max: usize, unread: Option<u64>, trusted: bool) {
        let policy = RetentionPolicy {
            everything_for_ms: 86_400_000,
            monthly_for_ms: Some(0),
            latest: 2,
            hourly: 0,
            daily: 0,
            monthly: 1,
            ..RetentionPolicy::default()
        };
        let unread = unread.and_then(|it| self.points.keys().nth((it % 7) as usize).copied());
        let known: Vec<PointInfo> =
            self.points.values().filter(|point| Some(point.seq) != unread).copied().collect();
        let mut world = self.world.clone();
        world.listing_trusted = trusted;
        world.retention = plan_retention(&known, world.now_us, &policy);
        if let Some(unread) = unread {
            world.entries.remove(&unread);
        }
        let plan = world.plan();
        self.judge(&world, &plan);
        world.carry_out(&plan, deletions_max);
        self.points.retain(|seq, _| world.objects.contains_key(&entry(*seq)));
        self.world.entries.retain(|seq, _| world.objects.contains_key(&entry(*seq)));
        self.world.marks = world.marks;
        self.world.objects = world.objects;
        self.check_all_restore();
    }

    fn judge(&mut self, world: &World, plan: &PrunePlan) {
        if !world.listing_trusted {
            assert_eq!(*plan, PrunePlan::default());
        }
        for object in &plan.unmark {
            self.marked_since.remove(object);
        }
        for (object, mark) in &plan.mark {
            assert_eq!(*mark, Mark { marked_at_us: world.now_us, marked_at_seq: world.newest_seq });
            assert_eq!(self.marked_since.insert(*object, *mark), None, "marked twice");
        }
        let stays: BTreeSet<u64> =
            world.retention.keep.iter().chain(&world.retention.carry).copied().collect();
        for object in &plan.delete {
            let mark = self.marked_since.remove(object).expect("it was never marked");
            assert!(
                world.now_us - mark.marked_at_us >= WEEK_US && world.newest_seq >= mark.marked_at_seq + 2
            );
            assert!(world.newest_taken_at_us <= world.now_us);
            match object {
                Prunable::Entry(seq) => assert!(!stays.contains(seq)),
                Prunable::Pack(name) => {
                    // not even one that an unread entry names
                    let mut named_by = self.world.entries.iter().filter(|(_, it)| it.packs.contains(name));
                    assert!(named_by.all(|(seq, _)| plan.delete.contains(&entry(*seq))));
                    assert_eq!(world.entries.len(), self.world.entries.len(), "an entry is not known");
                }
            }
        }
        // a crash may have kept some of them; they are marked still
        self.marked_since.extend(plan.delete.iter().map(|object| (*object, world.marks[object])));
        self.deleted += plan.delete.len();
    }

    /// Every entry in the store has its parents and its packs, those that are to go as well.
    fn check_all_restore(&mut self) {
        for known in self.world.entries.values() {
            let parent = entry(known.parent_seq);
            assert!(known.parent_seq == 0 || self.world.objects.contains_key(&parent), "no {parent:?}");
            for name in &known.packs {
                assert!(self.world.objects.contains_key(&Prunable::Pack(*name)));
            }
        }
        self.marked_since.retain(|object, _| self.world.objects.contains_key(object));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Months of captures, pins, left packs, clocks set, entries not read, and crashes in deletions.
    #[test]
    fn nothing_referenced_is_ever_deleted_nor_anything_without_an_old_mark(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let world = World::with(&[], &[]);
        let mut store = Store {
            world, points: BTreeMap::new(), marked_since: BTreeMap::new(), deleted: 0,
        };
        for step in steps {
            store.run(step);
        }
    }

    /// Left alone for long enough, exactly what is needed remains.
    #[test]
    fn in_the_end_all_that_nobody_needs_is_gone(
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let world = World::with(&[], &[]);
        let mut store = Store {
            world, points: BTreeMap::new(), marked_since: BTreeMap::new(), deleted: 0,
        };
        for step in steps {
            store.run(step);
        }
        store.world.now_us = store.world.now_us.max(store.world.newest_taken_at_us) + 10 * WEEK_US;
        for _ in 0..4 {
            store.write(0, &[]);
            store.prune(usize::MAX, None, true);
            store.world.now_us += WEEK_US;
        }
        // marks from a wrong future, and points dated there, are still waiting
        let waits = store.world.marks.values().any(|mark| mark.marked_at_us + WEEK_US > store.world.now_us);
        let needed: BTreeSet<Prunable> = store
            .world
            .entries
            .iter()
            .flat_map(|(seq, it)| it.packs.iter().map(|name| Prunable::Pack(*name)).chain([entry(*seq)]))
            .collect();
        let listed: BTreeSet<Prunable> = store.world.objects.keys().copied().collect();
        prop_assert!(waits || needed == listed, "{:?}", listed.difference(&needed));
    }
}

/// The run above is one that deletes.
#[test]
fn a_quiet_run_deletes_what_is_old() {
    let world = World::with(&[], &[]);
    let mut store = Store { world, points: BTreeMap::new(), marked_since: BTreeMap::new(), deleted: 0 };
    for round in 0..40_u8 {
        let base = u64::from(round % 4 == 0) * 100;
        store.run(Step::Write(base, vec![round]));
        store.run(Step::Wait(WEEK_US / 2));
        store.run(Step::Prune { deletions_max: 3, unread: None, trusted: true });
    }
    assert!(store.deleted > 40 && store.points.len() < 12, "{} deleted", store.deleted);
}
