//! Vaults that are absent, lie, or were rolled back: below the threshold the password opens, above it nothing does, and
//! never does a wrong key come out.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use chatkeep_tests::stack::random::Random;
use chatkeep_vault_client::{DirectTransport, VaultError};
use chatkeep_vault_rig::local::{KEY, Local, PASSWORD, enroll, lie, pins, transport, unlock};

use crate::prove_vault::Figures;

/// Threshold and number of vaults.
const SIZES: [(u8, usize); 5] = [(1, 1), (2, 2), (2, 3), (3, 4), (3, 5)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Honest,
    Absent,
    /// Has the identity, and evaluates with another key.
    Lies,
    /// Somebody put its database back: it does not start.
    RolledBack,
}

const BEHAVIOURS: [Behaviour; 4] =
    [Behaviour::Honest, Behaviour::Absent, Behaviour::Lies, Behaviour::RolledBack];

pub(crate) fn quorum(figures: &mut Figures, random: &mut Random, rounds: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for round in 0..rounds {
        let (threshold, count) = *random.pick(&SIZES);
        let behaviours: Vec<Behaviour> = (0..count)
            .map(|_| if random.one_in(2) { Behaviour::Honest } else { *random.pick(&BEHAVIOURS) })
            .collect();
        let case = format!("round {round}, {threshold} of {behaviours:?}");
        if let Err(error) = runtime.block_on(recovery(figures, threshold, &behaviours)) {
            figures.failures.add(format!("{case}: {error:#}"));
        }
    }
    Ok(())
}

async fn recovery(figures: &mut Figures, threshold: u8, behaviours: &[Behaviour]) -> Result<()> {
    let vaults: Vec<Arc<Local>> = (0..behaviours.len()).map(|n| Local::new(&format!("v{n}"))).collect();
    let pins = pins(&vaults);
    let slot = enroll(&transport(&vaults), &pins, threshold).await.slot;
    let mut between = DirectTransport::new();
    for (vault, behaviour) in vaults.iter().zip(behaviours) {
        let (identity, vault) = (vault.pin.identity, vault.clone());
        match behaviour {
            Behaviour::Honest => between.insert(identity, move |request| vault.answer(request)),
            Behaviour::Lies => between.insert(identity, move |request| lie(&vault, request)),
            Behaviour::Absent => vault.stop(),
            Behaviour::RolledBack => {
                figures.rollbacks_tried += 1;
                figures.rollbacks_refused += u64::from(put_back(&vault, &slot, &pins).await?);
            }
        }
    }
    figures.recoveries += 1;
    let honest = behaviours.iter().filter(|behaviour| **behaviour == Behaviour::Honest).count();
    let enough = honest >= usize::from(threshold);
    match unlock(&between, &pins, &slot, PASSWORD).await {
        Ok(recovered) => {
            ensure!(*recovered.key == KEY, "another key came out");
            ensure!(enough, "{honest} honest vaults opened it");
        }
        Err(error) if enough => bail!("{honest} honest vaults did not open it: {error}"),
        Err(_) => {}
    }
    // whoever lies may say what he wants: what is told is what an attacker has, and there is always an answer of its kind
    match unlock(&between, &pins, &slot, b"wrong").await {
        Ok(_) => bail!("a wrong password opens it"),
        Err(VaultError::WrongPassword { left, max }) => {
            figures.guesses += 1;
            ensure!(left < max, "{left} of {max} are left after a wrong one");
        }
        Err(error) => ensure!(!enough, "a wrong password is answered with {error}"),
    }
    Ok(())
}

/// An attempt is made, and the database from before it put back; whether the vault refuses to start with it.
async fn put_back(vault: &Arc<Local>, slot: &[u8], pins: &[chatkeep_vault_client::VaultPin]) -> Result<bool> {
    vault.stop();
    let database = vault.dir.path().join("vault.db");
    let copy = std::fs::read(&database)?;
    vault.start()?;
    let alone = transport(std::slice::from_ref(vault));
    // too few vaults for an answer, and this one counts
    drop(unlock(&alone, pins, slot, b"wrong").await);
    vault.stop();
    for rest in ["vault.db-wal", "vault.db-shm"] {
        drop(std::fs::remove_file(vault.dir.path().join(rest)));
    }
    std::fs::write(&database, copy)?;
    Ok(vault.start().is_err())
}
