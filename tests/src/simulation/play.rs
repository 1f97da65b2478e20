//! What happens to a world: writes, captures, uploads, and a crash after a few of them, again and again.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use chatkeep_store::ErrorKind;
use chatkeep_store::chaos::{ChaosStore, Fault, LastCall};
use chatkeep_store::memory::MemoryStore;

use super::life::{Life, Stop, copy};
use super::model::Model;
use super::world::{Figures, World};
use crate::stack::random::Random;

/// Of 1000 store calls, how many go wrong by themselves in a world where some do.
const FAULTS_PER_MILLE: u16 = 20;
/// What a store may do: everything that it says.
const FAULTS: [Fault; 3] =
    [Fault::Fail(ErrorKind::Offline), Fault::DoneButFails(ErrorKind::Offline), Fault::ExistsAfterOwnPut];
/// Points that are restored after each crash, beside all of them at the end.
const CHECKS: u64 = 2;

/// A world, its store, and when that goes off.
struct Play {
    world: World,
    store: Arc<ChaosStore<MemoryStore>>,
    /// Number of the call.
    off_at: Option<u64>,
    /// Calls fail now and then.
    flaky: bool,
    pace: Pace,
}

/// Plays a world with so many crashes. What happened until an error is in the figures.
pub fn play(parent: &Path, program: &Path, crashes: u64, seed: u64) -> (Figures, Result<()>) {
    let begin = || -> Result<(tempfile::TempDir, Play)> {
        let folder = tempfile::Builder::new().prefix("ck").tempdir_in(parent)?;
        let store = Arc::new(ChaosStore::new(MemoryStore::new(), seed));
        let mut random = Random::new(seed);
        let databases = *random.pick(&[1, 1, 1, 2, 3]);
        let world = World::new(folder.path(), store.clone(), program, databases, seed, Model::default())?;
        let flaky = random.one_in(3);
        let pace = *random.pick(&[Pace::Seconds, Pace::Hours, Pace::Hours, Pace::Wild]);
        Ok((folder, Play { world, store, off_at: None, flaky, pace }))
    };
    let (mut folder, mut play) = match begin() {
        Ok(begun) => begun,
        Err(error) => return (Figures::default(), Err(error)),
    };
    let mut result = Ok(());
    while result.is_ok() && play.world.figures.crashes < crashes {
        let crash = play.world.figures.crashes;
        result = play.live().with_context(|| format!("after crash {crash}"));
    }
    let result = result.and_then(|()| play.world.check_all());
    if result.is_err() {
        folder.disable_cleanup(true);
        eprintln!("kept: {}", folder.path().display());
    }
    (play.world.figures.clone(), result)
}

impl Play {
    fn is_off(&self) -> bool {
        self.off_at.is_some_and(|at| self.store.calls() > at)
    }

    /// One life of the service, to its end.
    fn live(&mut self) -> Result<()> {
        self.plan_trouble();
        let (tables, older) = (self.world.state.join("tables"), self.world.folder.join("tables-before"));
        if self.world.random.one_in(16) && tables.is_dir() {
            copy(&tables, &older)?;
        }
        let mut life = match Life::begin(&self.world) {
            Ok(life) => life,
            Err(stop) => {
                self.excuse(stop).context("opening")?;
                return self.after(None);
            }
        };
        life.check_listed(&self.world)?;
        let steps = self.world.random.between(1, 16);
        for _ in 0..steps {
            match self.step(&mut life) {
                Ok(()) => {}
                Err(stop) => {
                    self.excuse(stop)?;
                    // A store that went off does not end the service: now and then it goes on without.
                    if self.is_off() && self.world.random.below(3) > 0 {
                        break;
                    }
                }
            }
        }
        self.after(Some(life))
    }

    /// What will go wrong in the next life.
    fn plan_trouble(&mut self) {
        let random = &mut self.world.random;
        let calls = self.store.calls();
        self.off_at = match random.below(10) {
            // At a call, which lands or not.
            0..4 => Some(calls + random.below(14)),
            // The store is away from the beginning.
            4 => Some(calls),
            _ => None,
        };
        if let Some(at) = self.off_at {
            let last = if at == calls { LastCall::IsLost } else { LastCall::ByCoin };
            self.store.crash_at_call_where(at, last);
        }
        if self.flaky {
            self.store.fault_randomly(FAULTS_PER_MILLE, &FAULTS);
        }
    }

    /// An error is none when the store was not to be reached.
    fn excuse(&self, stop: Stop) -> Result<()> {
        match stop {
            Stop::Fault(fault)
                if (self.is_off() || self.flaky)
                    && matches!(fault.error, chatkeep_ipc::Error::StoreUnreachable(_)) =>
            {
                Ok(())
            }
            Stop::Fault(fault) => bail!("the service says: {fault:?}"),
            Stop::Broken(error) => Err(error),
        }
    }

    fn step(&mut self, life: &mut Life) -> Result<(), Stop> {
        let (world, pace) = (&mut self.world, self.pace);
        match world.random.below(20) {
            0..3 => world.write()?,
            3 => {
                let report = life.prune(world)?;
                if let Some(hindrance) = report.hindrance.filter(|_| !self.flaky && !self.is_off()) {
                    return Err(anyhow::anyhow!("nothing is deleted: {hindrance:?}").into());
                }
            }
            4 | 5 => pace.pass(world),
            6..14 => {
                pace.pass(world);
                if world.random.below(8) > 0 {
                    world.write()?;
                }
                life.capture(world)?;
            }
            _ => {
                // All of it mostly, or only a part.
                let most = if world.random.one_in(3) { world.random.between(1, 2) } else { u64::MAX };
                let mut done = 0;
                while done < most && life.upload(world)? {
                    done += 1;
                }
            }
        }
        Ok(())
    }

    /// The end of a life, and what is lost with it.
    fn after(&mut self, life: Option<Life>) -> Result<()> {
        let off = self.is_off();
        let world = &mut self.world;
        let queue_is_empty = life.as_ref().is_some_and(Life::is_done);
        match life {
            Some(life) if !off && world.random.one_in(6) => life.finish(),
            Some(life) => life.crash(world)?,
            None => world.figures.crashes += 1,
        }
        world.figures.crashes_in_calls += u64::from(off);
        let lost: &[&str] = match world.random.below(120) {
            0 | 1 => &["cache"],
            2..5 => &["tables"],
            5 => &["cache", "tables", "spool"],
            // What was uploaded and not noted would be nobody's.
            6 if queue_is_empty => &["spool"],
            _ => &[],
        };
        for folder in lost {
            let path = world.state.join(folder);
            if path.is_dir() {
                std::fs::remove_dir_all(path)?;
            }
        }
        let older = world.folder.join("tables-before");
        if older.is_dir() {
            // A disk that lost what was written last, but for the queue, which is synced.
            let tables = world.state.join("tables");
            if tables.is_dir() {
                std::fs::remove_dir_all(&tables)?;
            }
            std::fs::rename(older, tables)?;
        }
        self.store.power_on();
        self.off_at = None;
        let announced = self.world.model.announced();
        if let Some(newest) = announced.last() {
            self.world.check_point(*newest)?;
            for _ in 1..CHECKS {
                let seq = *self.world.random.pick(&announced);
                self.world.check_point(seq)?;
            }
        }
        Ok(())
    }
}

/// How the time of a world goes by.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// Somebody who writes all day: chains get long.
    Seconds,
    /// Every level is reached.
    Hours,
    /// And clocks that are wrong.
    Wild,
}

impl Pace {
    fn pass(self, world: &mut World) {
        let random = &mut world.random;
        let (hour, day) = (3600, 86_400);
        let seconds = match (self, random.below(40)) {
            (Pace::Wild, 39) => {
                let back = world.random.between(1, 2 * day) as i64;
                return world.pass(-back);
            }
            (Pace::Wild, 37 | 38) => random.between(20 * day, 60 * day),
            (Pace::Wild | Pace::Hours, 34..) => random.between(day, 10 * day),
            (Pace::Wild | Pace::Hours, 20..) => random.between(600, 8 * hour),
            (Pace::Seconds, 39) => hour,
            _ => random.between(1, 60),
        };
        world.pass(seconds as i64);
    }
}
