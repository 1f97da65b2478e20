//! The whole service beside an app that writes all the time: how much is at risk at any moment, and what restores.

use std::time::{Duration, Instant};

use anyhow::Result;
use chatkeep_tests::stack::machine::{Point, now_us};
use chatkeep_tests::stack::random::Random;
use chatkeep_tests::stack::writer::{Commit, Profile, Writer, newest_before};
use chatkeep_tests::stack::{Machine, Settings, Stack};

use crate::prove_capture::Failures;

/// Between two looks at what is announced.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The default of `capture.max_age`.
pub(crate) const MAX_AGE: &str = "10s";

/// What the rounds gave.
#[derive(Default)]
pub(crate) struct Service {
    pub(crate) rounds: u32,
    pub(crate) points: u64,
    pub(crate) restores: u64,
    pub(crate) corrupt: u64,
    pub(crate) points_lost: u64,
    pub(crate) backward: u64,
    pub(crate) writer_errors: u64,
    pub(crate) kills: u64,
    /// At each look: seconds since the oldest commit that no announced point has.
    pub(crate) at_risk_s: Vec<f64>,
}

impl Service {
    /// Median and worst of what was at risk, in seconds.
    pub(crate) fn at_risk(&mut self) -> (f64, f64) {
        self.at_risk_s.sort_by(f64::total_cmp);
        let of = |at: usize| self.at_risk_s.get(at).map_or(0.0, |s| (s * 1000.0).round() / 1000.0);
        (of(self.at_risk_s.len() / 2), of(self.at_risk_s.len().saturating_sub(1)))
    }
}

/// Rounds of so many seconds.
pub(crate) fn service(
    random: &mut Random,
    rounds: u32,
    seconds: u64,
    failures: &mut Failures,
) -> Result<Service> {
    let mut sum = Service::default();
    if rounds == 0 {
        return Ok(sum);
    }
    let stack = Stack::start()?;
    for number in 1..=rounds {
        sum.rounds += 1;
        if let Err(error) = round(&stack, random, (number, seconds), &mut sum, failures) {
            failures.add(format!("service {number}: {error:#}"));
        }
        println!(
            "service {number} of {rounds}: {} points, {} restores, {} failures",
            sum.points,
            sum.restores,
            failures.count()
        );
    }
    Ok(sum)
}

fn round(
    stack: &Stack,
    random: &mut Random,
    (number, seconds): (u32, u64),
    sum: &mut Service,
    failures: &mut Failures,
) -> Result<()> {
    // As users have it: what is at risk depends on it.
    let settings = Settings { quiet: "2s".into(), max_age: MAX_AGE.into(), ..Settings::default() };
    let mut machine = stack.machine(&format!("s{number}"), &settings)?;
    machine.start()?;
    // With a log: what is written without one is read when the app pauses, and is at risk until then.
    let profile = Profile {
        autocheckpoint: *random.pick(&[10, 100, 1000]),
        truncate_each: random.one_in(4),
        reopen_every: *random.pick(&[0, 0, 50]),
        prefill_mb: *random.pick(&[0, 1, 16]),
        ..Profile::steady(*random.pick(&[1, 5, 50]))
    };
    println!("  {profile:?}");
    let database = machine.home().join("app.db");
    let mut writer = Writer::start(&database, machine.root(), profile, random.number())?;
    let id = machine.register(&database, "app")?;
    machine.enable_digits(&id)?;
    machine.wait_for_point(&id, 0)?;

    // The kill is at a random moment of the second half; what is at risk is only measured while the service runs.
    let kill_at = seconds * 500 + random.below(seconds * 400);
    watch(&machine, &writer, &id, Duration::from_millis(kill_at), sum)?;
    let announced = machine.points(&id)?;
    machine.kill();
    sum.kills += 1;
    machine.start()?;
    machine.wait_for_point(&id, now_us())?;
    watch(&machine, &writer, &id, Duration::from_millis(seconds * 1000 - kill_at), sum)?;
    if let Err(error) = writer.kill() {
        sum.writer_errors += 1;
        failures.add(format!("service {number}: {error:#}"));
    }
    let points = machine.points(&id)?;
    let lost = announced.iter().filter(|old| !points.iter().any(|point| point.id == old.id)).count();
    if lost > 0 {
        sum.points_lost += lost as u64;
        failures.add(format!("service {number}: {lost} announced points are gone"));
    }
    sum.points += points.len() as u64;
    restore_some(&machine, &writer, &id, &points, random, sum, failures)
}

/// Looks what is announced, and how old the oldest commit is that is not in it.
fn watch(machine: &Machine, writer: &Writer, id: &str, time: Duration, sum: &mut Service) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        let points = machine.points(id)?;
        let now = now_us();
        if let Some(newest) = points.first() {
            let commits = writer.acknowledged()?;
            sum.at_risk_s.push(at_risk_s(&commits, newest.time_us, now));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// What was acknowledged before a point was captured is in it; the oldest of the rest is at risk since then.
fn at_risk_s(commits: &[Commit], captured_us: u64, now_us: u64) -> f64 {
    let first = commits.iter().find(|commit| commit.at_us >= captured_us && commit.at_us <= now_us);
    first.map_or(0.0, |commit| (now_us - commit.at_us) as f64 / 1e6)
}

/// The newest point and some others restore, and have what was committed before their time.
fn restore_some(
    machine: &Machine,
    writer: &Writer,
    id: &str,
    points: &[Point],
    random: &mut Random,
    sum: &mut Service,
    failures: &mut Failures,
) -> Result<()> {
    let commits = writer.acknowledged()?;
    let target = machine.home().join("back.db");
    let mut chosen: Vec<&Point> = points.first().into_iter().collect();
    chosen.extend((0..4).map(|_| random.pick(points)));
    for point in chosen {
        let restored = machine
            .restore(id, &target, Some(&point.id))
            .and_then(chatkeep_tests::stack::command::Ran::success)
            .and_then(|_| writer.check_copy(&target));
        match restored {
            Ok(checked) => {
                sum.restores += 1;
                let promised = newest_before(&commits, point.time_us);
                if checked.newest_commit < promised {
                    sum.backward += 1;
                    failures.add(format!("point {}: commit {promised} is missing", point.id));
                }
            }
            Err(error) => {
                sum.corrupt += 1;
                failures.add(format!("point {}: {error:#}", point.id));
            }
        }
        let _ = std::fs::remove_file(&target);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_point_has_is_at_risk_since_it_was_acknowledged() {
        let commits: Vec<_> = [(1, 1_000_000), (2, 2_000_000), (3, 3_000_000)]
            .into_iter()
            .map(|(number, at_us)| Commit { number, at_us })
            .collect();
        assert!((at_risk_s(&commits, 1_500_000, 3_500_000) - 1.5).abs() < 1e-9);
        assert!(at_risk_s(&commits, 3_000_001, 3_500_000).abs() < 1e-9);
    }
}
