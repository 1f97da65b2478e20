//! One run of the service: it opens what is there, captures and uploads. It ends well, or it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use chatkeep_planner::{
    ChainLink, Level, LevelPolicy, PointInfo, RetentionPolicy, SourceId, UploadId, plan_entry, plan_retention,
};
use chatkeep_sqlite::LiveConfig;
use chatkeepd::catalogue::{Catalogue, Point};
use chatkeepd::event::{Event, Opened, UploadOrder};
use chatkeepd::fault::Fault;
use chatkeepd::follower::{CaptureOrder, Follower, Start, table_folder, table_name, table_name_of};
use chatkeepd::jobs::prune::{PruneReport, Pruning};
use chatkeepd::log::Log;
use chatkeepd::spool::Spool;
use chatkeepd::writer::{Writer, Written};
use tokio::sync::mpsc::Receiver;

use super::world::World;

/// The service at work.
pub struct Life {
    catalogue: Catalogue,
    spool: Spool,
    log: Log,
    writer: Writer,
    follower: Option<Follower>,
    incoming: Receiver<Event>,
    /// Objects of the oldest waiting entry that are in the store.
    uploaded: usize,
}

/// Why a step was not done.
#[derive(Debug)]
pub enum Stop {
    /// The service said so. Whether it may, the caller knows.
    Fault(Box<Fault>),
    /// It never may.
    Broken(anyhow::Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl Life {
    /// Opens what is there.
    pub fn begin(world: &World) -> Result<Life, Stop> {
        let archive = world.archive();
        let catalogue = Catalogue::open(&world.state.join("cache"))?;
        let spool = Spool::open(&world.state, &archive.id)?;
        let opened = chatkeepd::log::open(&archive, &world.keys.roots, &catalogue, &spool);
        let log = world.runtime.block_on(opened)?;
        if let Some(fault) = log.blocked {
            return Err(fault.into());
        }
        let writer = Writer {
            archive: archive.id,
            roots: world.keys.roots.clone(),
            spool: spool.clone(),
            source_name: "chat".to_owned(),
            app_id: String::new(),
            level: 1,
        };
        let (events, incoming) = tokio::sync::mpsc::channel(64);
        let name = table_name(&archive.id, &log.written);
        let databases = world.apps.iter().map(|app| LiveConfig {
            path: app.database().to_owned(),
            digest_key: log.written.digest_key,
            state_dir: table_folder(&world.state),
            name: table_name_of(&name, app.database()),
        });
        let start = Start {
            source: SourceId(0),
            databases: databases.collect(),
            written_seq: log.written.seq,
            writer: writer.clone(),
            rebase: log.rebase,
            links: true,
            attachments: None,
        };
        let follower = Some(Follower::start(start, events)?);
        Ok(Life { catalogue, spool, log, writer, follower, incoming, uploaded: 0 })
    }

    /// Every announced point is listed.
    pub fn check_listed(&self, world: &World) -> anyhow::Result<()> {
        let listed = self.catalogue.points(&world.archive().id);
        for seq in world.model.announced() {
            if !listed.iter().any(|point| point.seq == seq) {
                anyhow::bail!("point {seq} was announced and is lost: it is not listed");
            }
        }
        Ok(())
    }

    /// Captures. `false` when nothing had changed.
    pub fn capture(&mut self, world: &mut World) -> Result<bool, Stop> {
        let fingerprints = world.fingerprints()?;
        let seq = self.log.written.seq + 1;
        world.model.plan(seq, &fingerprints)?;
        let clock = world.clock();
        let links: Vec<ChainLink> = self.log.chain.iter().map(Point::link).collect();
        let plan = plan_entry(&links, clock.now_us() as i64, LevelPolicy::default());
        let order = CaptureOrder {
            before: self.log.written.clone(),
            chain: self.log.chain.clone(),
            clock,
            writer: self.writer.clone(),
            even_if_unchanged: false,
            cancelled: Arc::new(AtomicBool::new(false)),
            done_bytes: Arc::new(AtomicU64::new(0)),
        };
        let follower = self.follower.as_ref().expect("it is alive");
        follower.capture(order);
        let captured = loop {
            match self.incoming.blocking_recv() {
                Some(Event::Captured { result, .. }) => break result?,
                Some(_) => {}
                None => return Err(anyhow::anyhow!("the follower ended").into()),
            }
        };
        world.figures.gaps += u64::from(captured.gap.is_some() && seq > 1);
        let Some(written) = captured.written else { return Ok(false) };
        if written.head.seq != seq {
            return Err(anyhow::anyhow!("entry {} was written for {seq}", written.head.seq).into());
        }
        let level = written.point.level;
        world.late = if level < plan.level.number() { world.late + 1 } else { 0 };
        let figures = &mut world.figures;
        figures.late_max = figures.late_max.max(world.late);
        figures.entries += 1;
        figures.levels[usize::from(level.min(Level::Base.number()))] += 1;
        self.log.wrote(&written);
        Ok(true)
    }

    /// Uploads the next object. `false` when there is none.
    pub fn upload(&mut self, world: &mut World) -> Result<bool, Stop> {
        let Some(written) = self.log.waiting.front().cloned() else { return Ok(false) };
        let last = written.objects.len() - 1;
        let order = UploadOrder {
            source: SourceId(0),
            upload: UploadId(0),
            object: written.objects[self.uploaded].clone(),
            archive: world.archive(),
            keys: world.keys.clone(),
            spool: self.spool.clone(),
            publishes: (self.uploaded == last).then(|| written.clone()),
            log: Box::new(self.log.clone()),
        };
        let stored = world.runtime.block_on(chatkeepd::hands::upload(&self.catalogue, order));
        let stored = stored.inspect_err(|_| self.log.confirmed = false)?;
        if stored.spoiled {
            return Err(anyhow::anyhow!("the queue is damaged").into());
        }
        if stored.rebase {
            return Err(anyhow::anyhow!("the chain in the store is broken").into());
        }
        self.log.confirmed = true;
        if self.uploaded < last {
            self.uploaded += 1;
            return Ok(true);
        }
        self.uploaded = 0;
        self.log.stored = written.head.clone();
        self.log.waiting.pop_front();
        world.model.announce(written.head.seq)?;
        world.figures.announced += 1;
        Ok(true)
    }

    /// Forgets what the policy lets go, and deletes what was forgotten long enough ago.
    ///
    /// Points that the policy keeps stay announced; of the others nothing is said any more from the moment it begins.
    pub fn prune(&mut self, world: &mut World) -> Result<PruneReport, Stop> {
        let now_us = world.clock().now_us() as i64;
        let policy = RetentionPolicy::default();
        let listed = self.catalogue.points(&world.archive().id);
        let kept = kept(&listed, now_us, &policy);
        for point in listed.iter().filter(|point| !kept.contains(&point.seq)) {
            world.model.forget(point.seq);
        }
        let opened = Opened {
            archive: world.archive(),
            keys: world.keys.clone(),
            spool: self.spool.clone(),
            log: self.log.clone(),
            vaults: Vec::new(),
        };
        let pruning = Pruning {
            opened: &opened,
            catalogue: &self.catalogue,
            pins: &[],
            policy,
            now_us,
            dry_run: false,
            cancelled: &AtomicBool::new(false),
            progress: &|_, _| {},
        };
        let report = world.runtime.block_on(pruning.run())?;
        world.figures.prunes += 1;
        world.figures.forgotten += report.newly_forgotten as u64;
        world.figures.deleted += report.deleted_objects as u64;
        Ok(report)
    }

    /// The points that the service lists, by number.
    pub fn points(&self, world: &World) -> BTreeMap<u64, Point> {
        let listed = self.catalogue.points(&world.archive().id);
        listed.into_iter().map(|point| (point.seq, point)).collect()
    }

    /// The newest entry that waits.
    pub fn newest(&self) -> Option<Written> {
        self.log.waiting.back().cloned()
    }

    /// Everything written is in the store.
    pub fn is_done(&self) -> bool {
        self.log.waiting.is_empty()
    }

    /// The end that systemd asks for.
    pub fn finish(mut self) {
        self.stop();
        self.catalogue.flush();
    }

    fn stop(&mut self) {
        // Nobody listens any more: a thread that tells something must not wait.
        self.incoming.close();
        self.follower = None;
    }

    /// The end without a word: what follows sees the files as they are now, whatever is written out when memory is
    /// cleared up.
    pub fn crash(mut self, world: &mut World) -> std::io::Result<()> {
        self.stop();
        world.figures.crashes += 1;
        let next = world.folder.join(format!("state-{}", world.figures.crashes));
        copy(&world.state, &next)?;
        let old = std::mem::replace(&mut world.state, next);
        drop(self);
        std::fs::remove_dir_all(old)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the planner keeps of these, and carries for others.
pub(super) fn kept(points: &[Point], now_us: i64, policy: &RetentionPolicy) -> BTreeSet<u64> {
    let info = |point: &Point| PointInfo {
        seq: point.seq,
        parent_seq: point.parent_seq,
        level: Level::from_number(point.level).unwrap_or(Level::Base),
        taken_at_us: point.taken_at_us,
        pinned: false,
    };
    let points: Vec<PointInfo> = points.iter().map(info).collect();
    let plan = plan_retention(&points, now_us, policy);
    plan.keep.into_iter().chain(plan.carry).collect()
}

/// Copies a folder with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
