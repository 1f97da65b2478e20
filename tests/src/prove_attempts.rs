//! Wrong passwords while the vault is killed: it counts ten, and no more, in all its lives together.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use chatkeep_tests::stack::Machine;
use chatkeep_tests::stack::command::Ran;
use chatkeep_tests::stack::notes::Notes;

use crate::prove::{PASSWORD, Proof};

/// Attempts that a vault grants (docs/vault-protocol.md, section 8).
const ATTEMPTS: u64 = 10;
/// Far more commands than ten attempts take when kills swallow some.
const COMMANDS_MAX: u32 = 80;
/// Stretching a password takes about this long, so a kill within it hits before, during and after the question.
const GUESS_MS: u64 = 1500;

/// Guesses until the vault says that it is over, twice: killed between guesses, and killed at any moment.
pub(crate) fn attempts(proof: &mut Proof) -> Result<()> {
    let owner = proof.machine("owner")?;
    let thief = proof.machine("thief")?;

    let id = guarded(&owner, &thief, "between")?;
    proof.figures.granted = guess_until_destroyed(&thief, &id, |number| {
        let ran = thief.unlock(&id, &wrong(number));
        proof.stack.vault.kill();
        proof.figures.kills += 1;
        proof.stack.vault.restart()?;
        ran
    })?;
    ensure!(proof.figures.granted == ATTEMPTS, "{} guesses were answered", proof.figures.granted);

    let id = guarded(&owner, &thief, "any_moment")?;
    proof.figures.granted_under_fire = guess_until_destroyed(&thief, &id, |number| {
        let moment = Duration::from_millis(proof.random.below(GUESS_MS));
        std::thread::scope(|scope| {
            let guess = scope.spawn(|| thief.unlock(&id, &wrong(number)));
            std::thread::sleep(moment);
            proof.stack.vault.kill();
            proof.figures.kills += 1;
            let restarted = proof.stack.vault.restart();
            let ran = guess.join().expect("guessing does not panic");
            restarted.and(ran)
        })
    })?;
    let answered = proof.figures.granted_under_fire;
    ensure!(answered <= ATTEMPTS, "{answered} guesses were answered under fire");
    Ok(())
}

fn wrong(number: u32) -> String {
    format!("wrong password {number}")
}

/// An archive guarded by the vault; the identifier that it has on the thief's machine.
fn guarded(owner: &Machine, thief: &Machine, name: &str) -> Result<String> {
    let chat = Notes::open(&owner.home().join(format!("{name}.db")))?;
    chat.say("guarded")?;
    let known = owner.list_remote()?;
    let id = owner.register(chat.path(), name)?;
    owner.enable_password(&id, PASSWORD)?;
    owner.wait_for_point(&id, 0)?;
    let Some((archive, _)) = owner.list_remote()?.into_iter().find(|archive| !known.contains(archive)) else {
        bail!("the new archive is not listed");
    };
    thief.adopt(&archive, &thief.home().join(format!("{name}.db")))
}

/// How many guesses were answered. What is left only ever gets less, and in the end the right password is refused.
fn guess_until_destroyed(
    thief: &Machine,
    id: &str,
    mut guess: impl FnMut(u32) -> Result<Ran>,
) -> Result<u64> {
    let (mut answered, mut left) = (0, ATTEMPTS);
    for number in 1.. {
        ensure!(number <= COMMANDS_MAX, "after {COMMANDS_MAX} commands {left} attempts are left still");
        let ran = guess(number)?;
        match (ran.error().as_str(), ran.attempts_left()) {
            ("WrongSecret", Some(now)) => {
                ensure!(now < left, "{now} attempts are left after {left} were");
                (answered, left) = (answered + 1, now);
            }
            ("VaultUnreachable", _) => {}
            ("VaultDestroyed", _) => break,
            _ => bail!("a guess ended with {}: {}", ran.code, ran.explanation()),
        }
    }
    let right = thief.unlock(id, PASSWORD)?;
    ensure!(right.error() == "VaultDestroyed", "the right password ends with {}", right.explanation());
    Ok(answered)
}
