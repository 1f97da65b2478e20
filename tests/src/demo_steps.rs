//! The second half of the demonstration: a new machine, and somebody who guesses.

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_tests::stack::writer::{lost_seconds, newest_before};
use chatkeep_tests::stack::{Machine, tables};

use crate::demo::{Demo, Lost, PASSWORD, Said, size};

/// The database comes back on a machine that has nothing but the password.
pub(crate) fn restore(demo: &mut Demo, lost: &Lost) -> Result<()> {
    let machine = demo.new_machine("new")?;
    let target = machine.home().join("chat.db");
    let id = machine.adopt(&archive(&machine)?, &target)?;
    machine.unlock(&id, PASSWORD)?.success()?;
    demo.said.done("a new machine with an empty home: the password unlocked the archive through the vault");

    machine.restore(&id, &target, None)?.success()?;
    let newest = lost.points.first().context("there are recovery points")?;
    let commits = lost.writer.acknowledged()?;
    let promised = newest_before(&commits, newest.time_us);
    let checked = lost.writer.check_copy(&target)?;
    ensure!(
        checked.newest_commit >= promised,
        "message {promised} was committed before the last recovery point, the restored database ends at {}",
        checked.newest_commit
    );
    demo.said.done(format_args!(
        "restored {}: integrity_check ok; messages 1 to {} all there and equal",
        size(std::fs::metadata(&target)?.len()),
        checked.newest_commit,
    ));
    if let Some(original) = &demo.original {
        let restored = tables::read(&target, &["chatkeep_demo_messages"])?;
        ensure!(restored == *original, "tables of the named database came back changed");
        let rows: u64 = original.values().map(|(rows, _)| rows).sum();
        Said::more(format_args!(
            "all {} tables of the named database are as they were, {rows} rows",
            original.len()
        ));
    }
    let gone = commits.iter().filter(|commit| commit.number > checked.newest_commit).count();
    let seconds = lost_seconds(&commits, checked.newest_commit, lost.at_us);
    Said::more(format_args!(
        "{promised} were committed before the last recovery point; the last {gone}, {seconds:.1} s of writing, are lost"
    ));
    Ok(())
}

/// Somebody who has the store guesses passwords; the vault counts.
pub(crate) fn guess(demo: &mut Demo, lost: &Lost) -> Result<()> {
    let machine = demo.new_machine("thief")?;
    let target = machine.home().join("chat.db");
    let id = machine.adopt(&archive(&machine)?, &target)?;
    let mut left = Vec::new();
    for attempt in 1..=10 {
        let ran = machine.unlock(&id, &format!("wrong password {attempt}"))?;
        ensure!(ran.code == 4, "a wrong password ended with {}: {}", ran.code, ran.explanation());
        left.push(
            ran.attempts_left().with_context(|| format!("no attempts left are told: {:?}", ran.lines))?,
        );
    }
    ensure!(left == (0..10).rev().collect::<Vec<_>>(), "attempts left were told as {left:?}");
    let told: Vec<String> = left.iter().map(ToString::to_string).collect();
    demo.said.done(format_args!("wrong passwords on another machine; attempts left: {}", told.join(" ")));
    Said::more("(a vault for real makes guessers wait, up to a day each; this one is in development mode)");

    refused(&machine, &id)?;
    demo.stack.vault.kill();
    demo.stack.vault.restart()?;
    refused(&machine, &id)?;
    demo.said.done("the vault has destroyed its part: the right password is refused, after its restart, too");

    machine.unlock_digits(&id, &lost.digits)?.success()?;
    machine.restore(&id, &target, None)?.success()?;
    let checked = lost.writer.check_copy(&target)?;
    demo.said.done(format_args!(
        "the 64 digits need no vault: messages 1 to {} are restored with them",
        checked.newest_commit
    ));
    Ok(())
}

fn refused(machine: &Machine, id: &str) -> Result<()> {
    let ran = machine.unlock(id, PASSWORD)?;
    match ran.error().as_str() {
        "VaultDestroyed" => Ok(()),
        _ => {
            bail!("the right password after the last attempt ended with {}: {}", ran.code, ran.explanation())
        }
    }
}

/// The archive in the store.
fn archive(machine: &Machine) -> Result<String> {
    let archives = machine.list_remote()?;
    let [(id, _)] = archives.as_slice() else { bail!("there is not one archive but {archives:?}") };
    Ok(id.clone())
}
