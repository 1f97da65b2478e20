//! What a year costs: the plans of this crate carried out on a model of a chat, a store, and a price list.
//!
//! Nothing is captured or stored here: sizes come from measurements ([`ChatModel`]), decisions from [`plan_entry`],
//! [`plan_retention`] and [`plan_prune`], as the daemon carries them out. Tests hold the bounds, a benchmark prints
//! [`YearReport`].

use std::collections::{BTreeMap, BTreeSet};

use crate::levels::{ChainLink, EntryPlan, Level, LevelPolicy, advance_chain, plan_entry};
use crate::prune::{KnownEntry, Mark, Prunable, StoreView, plan_prune};
use crate::retention::{PointInfo, RetentionPlan, RetentionPolicy, plan_retention};

const MINUTE_US: i64 = 60_000_000;
const DAY_US: i64 = 24 * 60 * MINUTE_US;
/// 2027-01-15, a Friday. Any other day does as well.
const START_US: i64 = 20_833 * DAY_US;

/// A user's chats, and how large what changes is.
///
/// The sizes were measured on a chat database of 1 GiB with 3.6 million messages, 4 KiB pages and a full-text index,
/// every message a transaction of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatModel {
    /// Days that are lived through.
    pub days: u32,
    /// Messages in the database at the start.
    pub messages_at_start: u64,
    /// Messages on a day.
    pub messages_per_day: u64,
    /// The most messages that one capture finds; on average it finds half as many.
    pub messages_per_capture_max: u64,
    /// The device is off for 14 days from this day of each year; all messages of that time come at once afterwards.
    pub offline_from_day: u32,
    /// One entry in so many is a plain one whatever was planned, as if the daemon was late; 0 for none.
    pub late_one_in: u64,
    /// The store is looked through every so many days.
    pub prune_every_days: u32,
    /// Makes the run another one.
    pub seed: u64,
}

impl Default for ChatModel {
    fn default() -> Self {
        Self {
            days: 365,
            messages_at_start: 700_000,
            messages_per_day: 1_000,
            messages_per_capture_max: 9,
            offline_from_day: 190,
            late_one_in: 20,
            prune_every_days: 1,
            seed: 1,
        }
    }
}

/// What a store asks for, in US dollars.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PriceList {
    /// For 10⁹ bytes stored for a month of 730 hours.
    pub gigabyte_month: f64,
    /// For a million objects written or pages of a listing read.
    pub million_puts: f64,
    /// For a million objects read.
    pub million_gets: f64,
}

impl PriceList {
    /// Amazon S3 Standard, us-east-1, first 50 TB, as listed on aws.amazon.com/s3/pricing; deletions are free, and what a
    /// restore transfers out of AWS is not in it ($0.09 for 10⁹ bytes after the first 100 · 10⁹ of a month).
    pub const S3_STANDARD: Self = Self { gigabyte_month: 0.023, million_puts: 5.0, million_gets: 0.4 };
}

/// What came of it. Bytes are those of objects in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct YearReport {
    /// Days lived through.
    pub days: u32,
    /// Messages in the database at the end.
    pub messages: u64,
    /// The database at the end, in bytes.
    pub database_bytes: u64,
    /// Entries written, by level.
    pub entries_by_level: [u64; 9],
    /// Recovery points at the end that are kept, or carried for others.
    pub points: u64,
    /// Points at the end that are forgotten and not deleted yet.
    pub points_forgotten: u64,
    /// Objects at the end.
    pub objects: u64,
    /// The most objects at any time.
    pub objects_max: u64,
    /// Bytes at the end.
    pub stored_bytes: u64,
    /// The same, by the level of the entries that hold them.
    pub stored_bytes_by_level: [u64; 9],
    /// The most bytes at any time, in hundredths of the database at that time.
    pub stored_percent_max: u64,
    /// Bytes uploaded.
    pub put_bytes: u64,
    /// Objects uploaded.
    pub puts: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Pages of 1000 names listed.
    pub lists: u64,
    /// The longest chain at any time, in entries.
    pub chain_links_max: u64,
    /// The chain of the newest point at the end, in entries.
    pub chain_links: u64,
    /// Objects that a restore of the newest point reads.
    pub restore_objects: u64,
    /// Bytes that a restore of the newest point reads.
    pub restore_bytes: u64,
    /// The most bytes that a restore of any point there is at the end reads.
    pub restore_worst_bytes: u64,
    /// The most objects of such a restore.
    pub restore_worst_objects: u64,
    /// The most bytes that a restore of the newest point read at any time, in hundredths of its base.
    pub restore_percent_of_base_max: u64,
    /// What storing cost, in US dollars.
    pub storage_dollars: f64,
    /// What requests cost.
    pub request_dollars: f64,
    /// What one restore of the newest point costs, without the transfer.
    pub restore_dollars: f64,
    /// Things that must not be, such as a kept point that lacks a parent. Always 0.
    pub faults: u64,
}

/// Lives through `model.days` and reports.
pub fn live(model: &ChatModel, policy: &RetentionPolicy, prices: &PriceList) -> YearReport {
    let mut life = Life::new(*model, *policy);
    for day in 0..model.days {
        life.day(day);
        life.byte_days += u128::from(life.stored_bytes);
        if day % model.prune_every_days.max(1) == 0 {
            life.prune();
        }
    }
    life.finish(prices)
}

/// Points of (messages, bytes): what an entry that holds so many messages takes, after zstd. One message dirties 12
/// pages, 10,000 dirty 11,884.
type Sizes = [(f64, f64); 5];

/// Patches against the page as it was, which is at hand for the recent past: up to [`Level::Gross`].
const PATCHES: Sizes = [(1.0, 2.1e3), (10.0, 13e3), (100.0, 99e3), (1_000.0, 0.7e6), (10_000.0, 5.8e6)];
/// Whole pages.
const IMAGES: Sizes = [(1.0, 27e3), (10.0, 113e3), (100.0, 579e3), (1_000.0, 4.1e6), (10_000.0, 26e6)];

/// Bytes of the database for each message: 1 GiB for 3.6 million.
const MESSAGE_BYTES: u64 = 298;
/// What zstd makes of pages, in hundredths (level 1 on blocks of 1 MiB).
const COMPRESSED_PERCENT: u64 = 77;
/// Up to here pages are in the entry itself; above they are in packs of [`PACK_BYTES`].
const INLINE_BYTES: u64 = 1 << 20;
const PACK_BYTES: u64 = 8 << 20;
/// An entry without pages: header, record, list of packs, padded.
const ENTRY_BYTES: u64 = 4_208;
/// Names in a page of a listing.
const LIST_PAGE: u64 = 1_000;

/// What `messages` new messages take at `level`, in a database that has `of_messages`.
fn entry_bytes(level: Level, messages: u64, of_messages: u64) -> u64 {
    let all = of_messages * MESSAGE_BYTES * COMPRESSED_PERCENT / 100;
    let pages = match level {
        Level::Base => all,
        Level::Entry | Level::Dozen | Level::Gross => interpolate(&PATCHES, messages).min(all),
        _ => interpolate(&IMAGES, messages).min(all),
    };
    ENTRY_BYTES + pages
}

/// Along straight lines between the points on paper with logarithmic axes; the outer lines go on.
fn interpolate(sizes: &Sizes, messages: u64) -> u64 {
    let wanted = messages.max(1) as f64;
    let after = sizes.iter().position(|(at, _)| *at > wanted).unwrap_or(sizes.len() - 1).max(1);
    let (from, to) = (sizes[after - 1], sizes[after]);
    let slope = (to.1 / from.1).ln() / (to.0 / from.0).ln();
    (from.1 * (wanted / from.0).powf(slope)) as u64
}

/// What an entry holds and takes.
#[derive(Debug, Clone, Copy)]
struct Written {
    point: PointInfo,
    bytes: u64,
    objects: u64,
}

/// The state of the model.
struct Life {
    model: ChatModel,
    policy: RetentionPolicy,
    random: u64,
    now_us: i64,
    messages: u64,
    /// Messages that there were at each entry of the chain, by seq.
    messages_at: BTreeMap<u64, u64>,
    chain: Vec<ChainLink>,
    written: BTreeMap<u64, Written>,
    entries: BTreeMap<u64, KnownEntry>,
    objects: BTreeMap<Prunable, u64>,
    marks: BTreeMap<Prunable, Mark>,
    packs_named: u128,
    newest: PointInfo,
    stored_bytes: u64,
    byte_days: u128,
    report: YearReport,
}

impl Life {
    fn new(model: ChatModel, policy: RetentionPolicy) -> Self {
        let none = PointInfo { seq: 0, parent_seq: 0, level: Level::Base, taken_at_us: 0, pinned: false };
        Self {
            model,
            policy,
            random: model.seed,
            now_us: START_US,
            messages: model.messages_at_start,
            messages_at: BTreeMap::new(),
            chain: Vec::new(),
            written: BTreeMap::new(),
            entries: BTreeMap::new(),
            objects: BTreeMap::new(),
            marks: BTreeMap::new(),
            packs_named: 0,
            newest: none,
            stored_bytes: 0,
            byte_days: 0,
            report: YearReport { days: model.days, ..YearReport::default() },
        }
    }

    /// A number below `below`, which is not 0.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(1);
        crate::policy::scatter(self.random) % below
    }

    /// Messages from 7 to 23 o'clock, in bursts, or none at all.
    fn day(&mut self, day: u32) {
        let offline = (self.model.offline_from_day..self.model.offline_from_day + 14).contains(&(day % 365));
        let mut left = self.model.messages_per_day;
        if offline {
            self.messages += left;
            left = 0;
        }
        let begins_us = START_US + i64::from(day) * DAY_US + 7 * 60 * MINUTE_US;
        let mut bursts_us: Vec<i64> =
            (0..60).map(|_| begins_us + self.random(16 * 60) as i64 * MINUTE_US).collect();
        bursts_us.sort_unstable();
        let per_burst = left.div_ceil(bursts_us.len() as u64).max(1);
        for burst_us in bursts_us {
            self.now_us = self.now_us.max(burst_us);
            let mut of_burst = per_burst.min(left);
            left -= of_burst;
            while of_burst > 0 {
                let found = (1 + self.random(self.model.messages_per_capture_max)).min(of_burst);
                of_burst -= found;
                self.messages += found;
                self.now_us += 5_000_000 + self.random(20_000_000) as i64;
                self.capture();
            }
        }
        self.now_us = self.now_us.max(START_US + i64::from(day + 1) * DAY_US);
    }

    fn capture(&mut self) {
        let mut plan = plan_entry(&self.chain, self.now_us, LevelPolicy::default());
        let late = self.model.late_one_in > 0 && self.random(self.model.late_one_in) == 0;
        if late {
            plan = EntryPlan::at_level(&self.chain, Level::Entry);
        }
        let EntryPlan { level, parent_seq } = plan;
        let seq = self.newest.seq + 1;
        let since = self.messages_at.get(&parent_seq).copied().unwrap_or(0);
        let bytes = entry_bytes(level, self.messages - since, self.messages);
        self.newest = PointInfo { seq, parent_seq, level, taken_at_us: self.now_us, pinned: false };
        let objects = self.upload(bytes);
        self.written.insert(seq, Written { point: self.newest, bytes, objects });
        advance_chain(&mut self.chain, parent_seq, ChainLink { seq, level, taken_at_us: self.now_us, bytes });
        self.messages_at.retain(|it, _| *it <= parent_seq);
        self.messages_at.insert(seq, self.messages);
        self.report.entries_by_level[usize::from(level.number())] += 1;
        self.note_chain();
    }

    /// Stores the newest entry: packs, then itself. Returns how many objects that were.
    fn upload(&mut self, bytes: u64) -> u64 {
        let mut in_packs = if bytes > INLINE_BYTES { bytes - ENTRY_BYTES } else { 0 };
        let mut objects = vec![(Prunable::Entry(self.newest.seq), bytes - in_packs)];
        let mut packs = Vec::new();
        while in_packs > 0 {
            self.packs_named += 1;
            let name = self.packs_named.to_be_bytes();
            let pack_bytes = in_packs.min(PACK_BYTES);
            in_packs -= pack_bytes;
            packs.push(name);
            objects.push((Prunable::Pack(name), pack_bytes));
        }
        self.entries.insert(self.newest.seq, KnownEntry { parent_seq: self.newest.parent_seq, packs });
        let count = objects.len() as u64;
        self.objects.extend(objects);
        self.report.puts += count;
        self.report.put_bytes += bytes;
        self.stored_bytes += bytes;
        count
    }

    fn note_chain(&mut self) {
        let links = self.chain.len() as u64;
        let bytes: u64 = self.chain.iter().map(|link| link.bytes).sum();
        let base_bytes = self.chain.last().map_or(1, |base| base.bytes);
        let report = &mut self.report;
        report.chain_links_max = report.chain_links_max.max(links);
        report.restore_percent_of_base_max = report.restore_percent_of_base_max.max(bytes * 100 / base_bytes);
        let database_bytes = self.messages * MESSAGE_BYTES;
        report.stored_percent_max = report.stored_percent_max.max(self.stored_bytes * 100 / database_bytes);
        report.objects_max = report.objects_max.max(self.objects.len() as u64);
    }

    fn points(&self) -> Vec<PointInfo> {
        self.written.values().map(|it| it.point).collect()
    }

    /// What the daemon does once a day.
    fn prune(&mut self) {
        let retention = plan_retention(&self.points(), self.now_us, &self.policy);
        self.report.lists += (self.objects.len() as u64).div_ceil(LIST_PAGE);
        let plan = plan_prune(
            &StoreView {
                objects: &self.objects,
                entries: &self.entries,
                packs_in_use: &BTreeSet::new(),
                marks: &self.marks,
                newest_seq: self.newest.seq,
                newest_taken_at_us: self.newest.taken_at_us,
                listing_trusted: true,
            },
            &retention,
            self.now_us,
        );
        self.marks.extend(plan.mark);
        for object in plan.unmark {
            self.marks.remove(&object);
        }
        for object in plan.delete {
            self.stored_bytes -= self.objects.remove(&object).unwrap_or(0);
            self.marks.remove(&object);
            if let Prunable::Entry(seq) = object {
                self.written.remove(&seq);
                self.entries.remove(&seq);
            }
            self.report.deletes += 1;
        }
        self.check(&retention);
    }

    /// Counts what must not be.
    fn check(&mut self, retention: &RetentionPlan) {
        let has = |object: Prunable| self.objects.contains_key(&object);
        let lacks_something = |(seq, entry): (&u64, &KnownEntry)| {
            let has_parent = entry.parent_seq == 0 || has(Prunable::Entry(entry.parent_seq));
            let has_packs = entry.packs.iter().all(|name| has(Prunable::Pack(*name)));
            !(has(Prunable::Entry(*seq)) && has_parent && has_packs)
        };
        let lacking = self.entries.iter().filter(|it| lacks_something(*it)).count();
        let kept = retention.keep.iter().chain(&retention.carry);
        let lost = kept.filter(|seq| !self.written.contains_key(seq)).count();
        self.report.faults += (lacking + lost) as u64;
    }

    fn finish(self, prices: &PriceList) -> YearReport {
        let retention = plan_retention(&self.points(), self.now_us, &self.policy);
        // what a restore of each point reads: itself and what its parent reads
        let mut restores: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (seq, it) in &self.written {
            let (bytes, objects) = restores.get(&it.point.parent_seq).copied().unwrap_or((0, 0));
            restores.insert(*seq, (bytes + it.bytes, objects + it.objects));
        }
        let (restore_bytes, restore_objects) = restores.get(&self.newest.seq).copied().unwrap_or((0, 0));
        let mut stored_bytes_by_level = [0; 9];
        for it in self.written.values() {
            stored_bytes_by_level[usize::from(it.point.level.number())] += it.bytes;
        }
        let requests = (self.report.puts + self.report.lists) as f64;
        YearReport {
            messages: self.messages,
            database_bytes: self.messages * MESSAGE_BYTES,
            points: (retention.keep.len() + retention.carry.len()) as u64,
            points_forgotten: retention.forget.len() as u64,
            objects: self.objects.len() as u64,
            stored_bytes: self.stored_bytes,
            stored_bytes_by_level,
            chain_links: self.chain.len() as u64,
            restore_objects,
            restore_bytes,
            restore_worst_bytes: restores.values().map(|it| it.0).max().unwrap_or(0),
            restore_worst_objects: restores.values().map(|it| it.1).max().unwrap_or(0),
            storage_dollars: self.byte_days as f64 / 1e9 * 24.0 / 730.0 * prices.gigabyte_month,
            request_dollars: requests / 1e6 * prices.million_puts,
            restore_dollars: restore_objects as f64 / 1e6 * prices.million_gets,
            ..self.report
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_measured_and_grow_between_and_beyond() {
        for sizes in [&PATCHES, &IMAGES] {
            for (messages, bytes) in sizes {
                let modelled = interpolate(sizes, *messages as u64) as f64;
                assert!((modelled / bytes - 1.0).abs() < 1e-3, "{modelled} for {messages} messages");
            }
            let grown: Vec<u64> = (0..20).map(|power| interpolate(sizes, 1 << power)).collect();
            assert!(grown.is_sorted_by(|less, more| less < more), "{grown:?}");
        }
    }

    #[test]
    fn no_entry_is_larger_than_a_base() {
        for level in Level::ALL {
            assert!(entry_bytes(level, 5_000, 5_000) <= entry_bytes(Level::Base, 5_000, 5_000), "{level:?}");
        }
        assert_eq!(entry_bytes(Level::Base, 1, 3_600_000), ENTRY_BYTES + 826_056_000);
    }

    #[test]
    fn storing_a_gigabyte_for_a_year_costs_twelve_times_the_price_of_a_month() {
        let mut life = Life::new(ChatModel::default(), RetentionPolicy::default());
        life.byte_days = 365 * 1_000_000_000;
        let report = life.finish(&PriceList::S3_STANDARD);
        assert!((report.storage_dollars - 12.0 * 0.023).abs() < 1e-6, "{}", report.storage_dollars);
    }
}
