//! SIGKILL in the middle of a change of password or a rotation of the key: one of the two passwords opens the archive
//! on a new machine, the new one if the change was reported as done, and everything comes back.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_tests::stack::Machine;
use chatkeep_tests::stack::machine::now_us;
use chatkeep_tests::stack::notes::{self, Notes};

use crate::prove::{PASSWORD, Proof};

/// A change takes about this long: two stretchings of a password, some calls to the vault, two keyrings.
const CHANGE_MS: u64 = 2500;
/// And a rotation: one keyring.
const ROTATION_MS: u64 = 100;

/// Changes of both kinds, each cut off at a random moment.
pub(crate) fn changes(proof: &mut Proof, rounds: u32) -> Result<()> {
    let mut owner = proof.machine("changer")?;
    let book = Notes::open(&owner.home().join("changed.db"))?;
    let known = owner.list_remote()?;
    let id = owner.register(book.path(), "changed")?;
    let mut password = PASSWORD.to_owned();
    owner.enable_password(&id, &password)?;
    let archives = owner.list_remote()?;
    let archive = archives.into_iter().find(|archive| !known.contains(archive));
    let (archive, _) = archive.context("the new archive is not listed")?;

    let mut texts = Vec::new();
    for round in 1..=rounds {
        let next = format!("{PASSWORD} {round}");
        let rotate = proof.random.one_in(2);
        let moment = proof.random.below(if rotate { ROTATION_MS } else { CHANGE_MS });
        let change = (!rotate).then(|| format!("{password}\n{next}\n"));
        let done = cut_off(&owner, &id, change.as_deref(), Duration::from_millis(moment))?;
        proof.figures.kills += 1;
        owner.kill();
        owner.start()?;

        let case = format!("change {round} (rotation: {rotate}, killed after {moment} ms, done: {done})");
        let before = now_us();
        texts.push(format!("after change {round}"));
        book.say(&texts[texts.len() - 1])?;
        owner.wait_for_point(&id, before).with_context(|| case.clone())?;
        let candidates = if rotate { vec![password.clone()] } else { vec![next.clone(), password.clone()] };
        let opened = opens(proof, round, &archive, &candidates, &texts).with_context(|| case.clone())?;
        ensure!(!done || rotate || opened == next, "{case}: it was done, and the old password opens");
        password = opened;
        proof.figures.changes += 1;
    }
    Ok(())
}

/// Starts a change, or a rotation without `change`, and kills the service. True if it was reported as done before.
fn cut_off(owner: &Machine, id: &str, change: Option<&str>, moment: Duration) -> Result<bool> {
    let what = if change.is_some() { "change-password" } else { "rotate-key" };
    let ran = std::thread::scope(|scope| {
        let change = scope.spawn(|| owner.run(&["encryption", what, id], change));
        std::thread::sleep(moment);
        let killed = owner.kill_at_once();
        let ran = change.join().expect("the command does not panic");
        killed.and(ran)
    })?;
    match (ran.code, ran.error().as_str()) {
        (0, _) => Ok(true),
        // the service went away
        (3, _) | (_, "NoService" | "Bus") => Ok(false),
        _ => bail!("{what} ended with {}: {}", ran.code, ran.explanation()),
    }
}

/// The first of `passwords` that opens the archive on an empty machine; everything comes back with it.
fn opens(
    proof: &mut Proof,
    round: u32,
    archive: &str,
    passwords: &[String],
    texts: &[String],
) -> Result<String> {
    let machine = proof.machine(&format!("c{round}"))?;
    let target = machine.home().join("changed.db");
    let id = machine.adopt(archive, &target)?;
    for password in passwords {
        let ran = machine.unlock(&id, password)?;
        if ran.error() == "WrongSecret" {
            continue;
        }
        ran.success()?;
        machine.restore(&id, &target, None)?.success()?;
        let back = notes::texts(&target)?;
        ensure!(back == texts, "{back:?} came back");
        return Ok(password.clone());
    }
    bail!("no password opens it any more")
}
