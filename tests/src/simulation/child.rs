//! A world in a process that somebody kills: everything it needs lies in its folder, and it never ends by itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use chatkeep_store_local::LocalStore;

use super::life::{Life, Stop};
use super::model::Model;
use super::world::World;

/// What is done in one life of the service, before the next one in the same process.
const STEPS: u64 = 12;
/// Between two starts, in seconds of the world's clock.
const AWAY_S: i64 = 1800;

fn world(folder: &Path, program: &Path, seed: u64, start: u64) -> Result<World> {
    let store = Arc::new(LocalStore::open(&folder.join("store"))?);
    let model = Model::in_file(&folder.join("model"))?;
    let mut world = World::new(folder, store, program, 2, seed, model)?;
    world.pass(start as i64 * AWAY_S);
    world.random = crate::stack::random::Random::new(seed ^ start << 32);
    Ok(world)
}

fn serious(stop: Stop) -> anyhow::Error {
    match stop {
        Stop::Fault(fault) => anyhow::anyhow!("the service says: {fault:?}"),
        Stop::Broken(error) => error,
    }
}

/// Lives until it is killed. `start` counts the processes in this folder.
pub fn live(folder: &Path, program: &Path, seed: u64, start: u64) -> Result<()> {
    let mut world = world(folder, program, seed, start)?;
    loop {
        let mut life = Life::begin(&world).map_err(serious)?;
        life.check_listed(&world)?;
        for _ in 0..STEPS {
            step(&mut world, &mut life).map_err(serious)?;
        }
        life.finish();
    }
}

fn step(world: &mut World, life: &mut Life) -> Result<(), Stop> {
    world.write()?;
    let seconds = world.random.between(1, 900);
    world.pass(seconds as i64);
    life.capture(world)?;
    while world.random.below(8) > 0 && life.upload(world)? {}
    Ok(())
}

/// Opens what was left by the one that was killed, and restores all that was announced. Says how many points.
pub fn check(folder: &Path, program: &Path, seed: u64, start: u64) -> Result<u64> {
    let mut world = world(folder, program, seed, start)?;
    let life = Life::begin(&world).map_err(serious)?;
    life.check_listed(&world)?;
    world.check_all()?;
    life.finish();
    if world.figures.restores == 0 {
        bail!("nothing was ever announced");
    }
    Ok(world.figures.restores)
}
