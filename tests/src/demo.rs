//! `cargo xtask demo`: the whole story in about a minute, with real programs in a folder of their own.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chatkeep_tests::stack::machine::{Point, now_us};
use chatkeep_tests::stack::tables::{self, Tables};
use chatkeep_tests::stack::writer::{Profile, Writer};
use chatkeep_tests::stack::{Machine, Settings, Stack};
use rusqlite::{Connection, OpenFlags};

use crate::demo_steps;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Play it with a copy of this SQLite database.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

/// Ships after a silence of 1 s, at the latest after 3 s: quicker than the defaults (2 s, 10 s), to show more in less
/// time. Said in the output, because it is what decides how much can be lost.
const QUIET: &str = "1s";
const MAX_AGE: &str = "3s";
/// How long recovery points are watched before the service is killed, and again afterwards.
const WATCH: Duration = Duration::from_secs(9);

pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// What the steps share.
pub(crate) struct Demo {
    pub(crate) stack: Stack,
    pub(crate) settings: Settings,
    pub(crate) said: Said,
    /// What was in the database that the user named.
    pub(crate) original: Option<Tables>,
}

/// Numbered steps on standard output.
pub(crate) struct Said {
    step: u32,
    started: Instant,
}

impl Said {
    /// A step that held.
    pub(crate) fn done(&mut self, text: impl Display) {
        self.step += 1;
        println!("{:>2} \u{2713} {text}", self.step);
    }

    /// More about a step.
    pub(crate) fn more(text: impl Display) {
        println!("     {text}");
    }
}

/// What is known about the first database when the machine is lost.
pub(crate) struct Lost {
    pub(crate) writer: Writer,
    pub(crate) points: Vec<Point>,
    pub(crate) at_us: u64,
    pub(crate) digits: String,
}

/// Plays all of it; an error is a promise that did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(file) = &arguments.database {
        let opened = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let schema = opened
            .and_then(|database| database.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())));
        schema.with_context(|| format!("{} cannot be read as an SQLite database", file.display()))?;
    }
    let stack = Stack::start()?;
    let settings = Settings { quiet: QUIET.into(), max_age: MAX_AGE.into(), ..Settings::default() };
    let said = Said { step: 0, started: Instant::now() };
    let mut demo = Demo { stack, settings, said, original: None };
    println!(
        "Chatkeep, from the first backup to a new machine. All of it happens in {}.\n",
        demo.stack.root().display()
    );
    let played = demo.play(arguments);
    if played.is_err() {
        let kept = demo.stack.keep();
        println!("\n\u{2717} this did not hold; logs and data are kept in {}", kept.display());
    }
    played
}

impl Demo {
    fn play(&mut self, arguments: &Arguments) -> Result<()> {
        let mut machine = self.stack.machine("old", &self.settings)?;
        let bus = if machine.bus.is_some() {
            "a private session bus"
        } else {
            "no dbus-daemon on this machine, so no session bus: the control socket only"
        };
        machine.start()?;
        self.said.done(format_args!("{bus}; a vault at {}; an empty store; chatkeepd", self.stack.vault.url));

        let database = machine.home().join("chat.db");
        let mut profile = Profile::steady(50);
        if let Some(file) = &arguments.database {
            let has_log = copy(file, &database)?;
            self.original = Some(tables::read(&database, &[])?);
            // without a log a database can be read between two messages only
            profile = Profile { any: true, ..Profile::steady(if has_log { 50 } else { 4 }) };
        }
        let rate = profile.rate;
        let writer = Writer::start(&database, self.stack.root(), profile, 7)?;
        self.said.done(format_args!("an app in a process of its own writes {rate} messages a second"));

        let id = machine.register(&database, "chat")?;
        let arguments = ["encryption", "enable-password", &id, "--password-fd", "0"];
        machine.run_as_app(&arguments, Some(PASSWORD))?.success()?;
        let way = if machine.bus.is_some() { "over D-Bus" } else { "over the control socket" };
        self.said.done(format_args!("encrypted with a password, {way}; the vault counts the attempts"));

        let digits = machine.show_digits(&id, PASSWORD)?;
        Said::more("the 64 digits of the key are shown once, against the password, and written down");
        let lost = self.back_up_and_lose(machine, &id, writer, digits)?;
        demo_steps::restore(self, &lost)?;
        demo_steps::guess(self, &lost)?;
        println!("\nall of it held, in {:.0} s", self.said.started.elapsed().as_secs_f64());
        Ok(())
    }

    fn back_up_and_lose(
        &mut self,
        mut machine: Machine,
        id: &str,
        mut writer: Writer,
        digits: String,
    ) -> Result<Lost> {
        let mut table = Table::new(id);
        table.watch(&machine, &mut writer, WATCH)?;
        ensure!(!table.seen.is_empty(), "no recovery point within {} s", WATCH.as_secs());
        self.said.done(format_args!(
            "{} recovery points, at most {MAX_AGE} apart (default: 10s)",
            table.seen.len()
        ));

        let before = machine.points(id)?;
        machine.kill();
        machine.start()?;
        let after = machine.points(id)?;
        let missing = before.iter().filter(|point| !after.iter().any(|found| found.id == point.id)).count();
        ensure!(missing == 0, "{missing} recovery points are gone after the restart");
        Said::more("SIGKILL to chatkeepd, and started again");
        table.watch(&machine, &mut writer, WATCH)?;
        ensure!(table.seen.len() > before.len(), "no new recovery point after the restart");
        self.said.done(format_args!(
            "killed in the middle: all {} points are still there, and go on",
            before.len()
        ));

        let points = machine.points(id)?;
        let at_us = now_us();
        machine.kill();
        writer.kill()?;
        machine.erase()?;
        self.said.done("the machine is lost: app and service killed, home, keys and cache deleted");
        Ok(Lost { writer, points, at_us, digits })
    }

    /// A new machine with an empty home.
    pub(crate) fn new_machine(&self, name: &str) -> Result<Machine> {
        let mut machine = self.stack.machine(name, &self.settings)?;
        machine.start()?;
        Ok(machine)
    }
}

/// Recovery points as they arrive.
struct Table<'a> {
    id: &'a str,
    seen: Vec<String>,
}

impl<'a> Table<'a> {
    fn new(id: &'a str) -> Self {
        Self { id, seen: Vec::new() }
    }

    fn watch(&mut self, machine: &Machine, writer: &mut Writer, how_long: Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < how_long {
            writer.check().context("the app was disturbed")?;
            for point in machine.points(self.id)?.iter().rev() {
                if self.seen.contains(&point.id) {
                    continue;
                }
                if self.seen.is_empty() {
                    Said::more("POINT   AGE when seen     ADDED    KIND");
                }
                self.seen.push(point.id.clone());
                let age = now_us().saturating_sub(point.time_us) as f64 / 1e6;
                let kind = if point.base { "base" } else { "increment" };
                Said::more(format_args!(
                    "{:>5}   {age:>6.1} s      {:>9}    {kind}",
                    point.id,
                    size(point.size)
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// `12.3 KiB`
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A copy that SQLite makes, so it is right also while an app writes into the original; with the same kind of journal.
/// True if that is a write-ahead log.
fn copy(from: &Path, to: &Path) -> Result<bool> {
    let original = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let target = to.to_str().context("the copy's path is UTF-8")?;
    let copied = original.execute("VACUUM INTO ?1", [target]);
    copied.with_context(|| format!("{} cannot be copied: is it an SQLite database?", from.display()))?;
    let journal: String = original.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if journal == "wal" {
        Connection::open(to)?.pragma_update(None, "journal_mode", "wal")?;
    }
    Ok(journal == "wal")
}
