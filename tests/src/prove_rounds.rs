//! One round: a random app, random kills, then the machine is lost and every announced recovery point restored.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use chatkeep_tests::stack::machine::{Point, now_us};
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::writer::{Commit, Profile, Writer, lost_seconds, newest_before};
use chatkeep_tests::stack::{Machine, scan, wait};

use crate::prove::{PASSWORD, PLANTED, Proof};

/// What opens the archive of a round.
enum Secret {
    Password,
    Digits(String),
}

/// Plays a round. What did not hold is in the figures; an error is what made going on impossible.
pub(crate) fn round(proof: &mut Proof, number: u32) -> Result<()> {
    let mut machine = proof.machine(&format!("m{number}"))?;
    if number == 1 {
        plant(proof, &machine)?;
    }
    let known = patiently(|| machine.list_remote())?;
    let profile = Profile::random(&mut proof.random);
    println!("  {profile:?}");
    let seed = proof.random.number();
    let database = machine.home().join("app.db");
    let mut writer = Writer::start(&database, machine.root(), profile, seed)?;
    proof.needles.extend(writer.needles());
    let id = machine.register(&database, "app")?;
    let secret = if proof.random.one_in(3) {
        machine.enable_password(&id, PASSWORD)?;
        Secret::Password
    } else {
        let digits = machine.enable_digits(&id)?;
        proof.needles.extend(scan::digits("the digits of a round", &digits));
        Secret::Digits(digits)
    };
    machine.wait_for_point(&id, 0)?;
    let archives = patiently(|| machine.list_remote())?;
    let archive = archives.into_iter().find(|archive| !known.contains(archive));
    let (archive, _) = archive.context("the archive of this round is not listed")?;

    kill_at_random(proof, &mut machine, &mut writer, &id)?;

    let announced = machine.points(&id)?;
    let lost_at_us = now_us();
    machine.kill();
    proof.figures.kills += 1;
    writer.kill()?;
    std::fs::remove_dir_all(machine.home())?;
    drop(machine);
    proof.figures.captures += announced.len() as u64;
    restore_all(proof, number, &archive, &secret, &writer, &announced, lost_at_us)
}

/// What a person does when the store does not answer: again, in a while. All else fails at once.
fn patiently<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..5 {
        match call() {
            Err(error) if format!("{error:#}").contains("StoreUnreachable") => {
                std::thread::sleep(Duration::from_secs(1));
            }
            done => return done,
        }
    }
    call()
}

/// A database whose text and password are looked for in everything that others can see.
fn plant(proof: &mut Proof, machine: &Machine) -> Result<()> {
    let chat = Notes::open(&machine.home().join("planted.db"))?;
    chat.say(PLANTED)?;
    let id = machine.register(chat.path(), "planted")?;
    machine
        .run_as_app(&["encryption", "enable-password", &id, "--password-fd", "0"], Some(PASSWORD))?
        .success()?;
    machine.wait_for_point(&id, 0)?;
    let copy = machine.home().join("planted-back.db");
    machine.restore(&id, &copy, None)?.success()?;
    proof.planted = notes::texts(&copy)? == [PLANTED];
    Ok(())
}

/// For some seconds: SIGKILL to this and that, at moments nobody chose.
fn kill_at_random(proof: &mut Proof, machine: &mut Machine, writer: &mut Writer, id: &str) -> Result<()> {
    let started = Instant::now();
    let how_long = Duration::from_millis(proof.random.between(3000, 6000));
    while started.elapsed() < how_long {
        std::thread::sleep(Duration::from_millis(proof.random.between(50, 1200)));
        if let Err(error) = writer.check() {
            proof.figures.writer_errors += 1;
            bail!("{error:#}");
        }
        let away = Duration::from_millis(proof.random.below(600));
        match proof.random.below(6) {
            0..3 => {
                let announced = machine.points(id)?;
                machine.kill();
                std::thread::sleep(away);
                machine.start()?;
                still_there(proof, machine, id, &announced);
            }
            3 => {
                proof.stack.vault.kill();
                std::thread::sleep(away);
                proof.stack.vault.restart()?;
            }
            4 => {
                writer.kill()?;
                std::thread::sleep(away);
                writer.restart()?;
            }
            _ => {
                let announced = machine.points(id)?;
                machine.stop()?;
                machine.start()?;
                still_there(proof, machine, id, &announced);
                continue;
            }
        }
        proof.figures.kills += 1;
    }
    Ok(())
}

/// Everything that was announced before the service ended is announced again.
fn still_there(proof: &mut Proof, machine: &Machine, id: &str, announced: &[Point]) {
    let missing = |points: &[Point]| {
        announced.iter().filter(|point| !points.iter().any(|found| found.id == point.id)).count()
    };
    let mut seen = Vec::new();
    let all = wait::until("the announced points are listed again", wait::PATIENCE, || {
        // while the archive is being opened there may be no answer yet
        seen = machine.points(id).unwrap_or_default();
        Ok((missing(&seen) == 0).then_some(()))
    });
    if all.is_err() {
        proof.figures.points_lost += missing(&seen) as u64;
        proof.figures.fail(format!("{} announced points are gone after a restart", missing(&seen)));
    }
}

/// A fresh machine: every announced point comes back, and holds what was committed before its time.
fn restore_all(
    proof: &mut Proof,
    number: u32,
    archive: &str,
    secret: &Secret,
    writer: &Writer,
    announced: &[Point],
    lost_at_us: u64,
) -> Result<()> {
    let machine = proof.machine(&format!("f{number}"))?;
    let id = patiently(|| machine.adopt(archive, &machine.home().join("app.db")))?;
    match secret {
        Secret::Password => machine.unlock(&id, PASSWORD)?.success()?,
        Secret::Digits(digits) => machine.unlock_digits(&id, digits)?.success()?,
    };
    still_there(proof, &machine, &id, announced);
    let commits = writer.acknowledged()?;
    let mut newest = None;
    let mut oldest_first = announced.to_vec();
    oldest_first.reverse();
    for point in &oldest_first {
        let target = machine.home().join(format!("point-{}.db", point.id));
        match restore_one(&machine, writer, &id, point, &target) {
            Ok(commit) => {
                proof.figures.restores += 1;
                check_commit(proof, point, commit, newest, &commits);
                newest = Some(commit);
            }
            Err(error) => {
                proof.figures.corrupt += 1;
                proof.figures.fail(format!("round {number}, point {}: {error:#}", point.id));
            }
        }
        let _ = std::fs::remove_file(&target);
    }
    let newest = newest.context("no recovery point could be restored")?;
    proof.figures.lost_s.push(lost_seconds(&commits, newest, lost_at_us));
    Ok(())
}

/// The newest commit in the restored database, which is checked to hold all of them up to it.
fn restore_one(machine: &Machine, writer: &Writer, id: &str, point: &Point, target: &Path) -> Result<u64> {
    patiently(|| machine.restore(id, target, Some(&point.id))?.success())?;
    Ok(writer.check_copy(target)?.newest_commit)
}

fn check_commit(proof: &mut Proof, point: &Point, commit: u64, older: Option<u64>, commits: &[Commit]) {
    let promised = newest_before(commits, point.time_us);
    if commit < promised {
        proof.figures.backward += 1;
        proof.figures.fail(format!(
            "point {}: commit {promised} was acknowledged before its time, it ends at {commit}",
            point.id
        ));
    }
    if older.is_some_and(|older| commit < older) {
        proof.figures.backward += 1;
        proof.figures.fail(format!("point {} ends at commit {commit}, an older one has more", point.id));
    }
}
