//! What years of hourly use come to, and bounds that must hold in all of them.
//!
//! With the sizes measured and the default policy, seed 1:
//!
//! | | a year | ten years | ten, months for two | ten, small |
//! | --- | --- | --- | --- | --- |
//! | messages at the start, each day | 700,000, 1,000 | the same | the same | 1,000, 100 |
//! | database at the end, MB | 317 | 1,296 | 1,296 | 109 |
//! | entries written | 81,422 | 269,250 | 269,250 | 178,435 |
//! | stored at the end, MB | 2,657 | 19,831 | 5,808 | 2,381 |
//! | of that bases and months, MB | 1,872 | 19,007 | 4,984 | 2,250 |
//! | objects at the end | 2,728 | 3,789 | 1,935 | 1,291 |
//! | longest chain, entries | 30 | 32 | 32 | 27 |
//! | a restore at the end reads, MB (objects) | 306 (50) | 1,350 (195) | 1,350 (195) | 142 (42) |
//! | storage and requests on S3, dollars | 0.45 + 0.42 | 27.08 + 1.42 | 12.84 + 1.42 | 3.04 + 0.90 |
//!
//! Random writes make a month of 28,000 messages 59 MB, and for every such month a base of the same size will come, so
//! that restores stay bounded: months for ever are what a store grows by.

use chatkeep_planner::year::{ChatModel, PriceList, YearReport, live};
use chatkeep_planner::{Level, RetentionPolicy};

const DAY_MS: u64 = 86_400_000;

/// Ten years, of fewer and larger captures to be quick.
const TEN_YEARS: ChatModel = ChatModel {
    days: 3_650,
    messages_at_start: 700_000,
    messages_per_day: 1_000,
    messages_per_capture_max: 60,
    offline_from_day: 190,
    late_one_in: 20,
    prune_every_days: 7,
    seed: 1,
};

/// Lives through it; requires that nothing was lost, that chains were short, and a store of so many databases at most.
#[track_caller]
fn check(model: ChatModel, policy: RetentionPolicy, databases_max: u64) -> YearReport {
    let report = live(&model, &policy, &PriceList::S3_STANDARD);
    assert_eq!(report.faults, 0, "something kept lacks a parent or a pack");
    assert!(report.chain_links_max <= 60, "{} entries", report.chain_links_max);
    let stored_max = databases_max * report.database_bytes;
    assert!(report.stored_bytes <= stored_max, "{} bytes, not {stored_max}", report.stored_bytes);
    assert_eq!(report.stored_bytes_by_level.iter().sum::<u64>(), report.stored_bytes);
    assert_eq!(report.puts - report.deletes, report.objects);
    assert!(report.objects_max < 6_000, "{} objects", report.objects_max);
    report
}

/// A restore reads a compressed database and as much again above it.
#[track_caller]
fn check_restores(report: &YearReport) {
    let twice = 2 * report.database_bytes;
    assert!(report.restore_bytes <= report.restore_worst_bytes && report.restore_worst_bytes <= twice);
    assert!(report.restore_percent_of_base_max <= 215, "{} %", report.restore_percent_of_base_max);
}

#[test]
fn a_year_of_a_thousand_messages_a_day() {
    let report = check(ChatModel::default(), RetentionPolicy::default(), 9);
    check_restores(&report);
    let entries: u64 = report.entries_by_level.iter().sum();
    assert!((75_000..90_000).contains(&entries), "{entries} entries");
    let of_level = |level: Level| report.entries_by_level[usize::from(level.number())];
    // 351 days with the device on; a day that begins a week is one of those
    assert!((337..=352).contains(&(of_level(Level::Day) + of_level(Level::Week) + of_level(Level::Month))));
    let dollars = report.storage_dollars + report.request_dollars;
    assert!((0.5..1.0).contains(&dollars), "{dollars}");
}

#[test]
fn ten_years_with_every_month_kept() {
    let report = check(TEN_YEARS, RetentionPolicy::default(), 16);
    check_restores(&report);
    // one of each month of 28 days
    assert!(report.points >= 3_650 / 28, "{} points", report.points);
}

#[test]
fn ten_years_with_the_months_of_two() {
    let policy = RetentionPolicy { monthly_for_ms: Some(730 * DAY_MS), ..RetentionPolicy::default() };
    let report = check(TEN_YEARS, policy, 5);
    check_restores(&report);
}

/// At first less than the floor of 4 MiB; so only the end is judged.
#[test]
fn ten_years_of_a_database_that_begins_small() {
    let model = ChatModel { messages_at_start: 1_000, messages_per_day: 100, ..TEN_YEARS };
    let report = check(model, RetentionPolicy::default(), 22);
    assert!(report.restore_worst_bytes <= 2 * report.database_bytes);
}

#[test]
fn a_run_can_be_repeated() {
    let model = ChatModel { days: 30, ..ChatModel::default() };
    let run = |seed| live(&ChatModel { seed, ..model }, &RetentionPolicy::default(), &PriceList::S3_STANDARD);
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).put_bytes, run(8).put_bytes);
}
