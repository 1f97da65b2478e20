//! What a capture of a generated chat takes as whole pages, as XOR and as patches (docs/decisions/0012), and the entry
//! that the service makes of it:
//! `cargo run --release -p chatkeepd --example patch_sizes -- --messages 900000`.
#![allow(clippy::unwrap_used, reason = "a tool for this repository: it stops where it fails")]

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use chatkeep_crypto::{DataRoots, seal};
use chatkeep_format::limits::MAX_BASES_LEN;
use chatkeep_format::{ArchiveId, ObjectName, PatchMaker, apply_patch};
use chatkeep_sqlite::{Capture, Kind, PageSink};
use chatkeepd::catalogue::{Head, Point};
use chatkeepd::spool::Spool;
use chatkeepd::writer::{Draft, Part, Writer};
use clap::Parser;
use rand_core::OsRng;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};

const PAGE: usize = 4096;
/// Messages between two captures, and how often that is measured.
const BURSTS: [(u64, usize); 4] = [(1, 30), (10, 12), (100, 5), (1000, 2)];
const SCHEMA: &str = "
PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
CREATE TABLE chats(id INTEGER PRIMARY KEY, address TEXT NOT NULL, last_message INTEGER, last_activity INTEGER, unread INTEGER NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, chat INTEGER NOT NULL, sender INTEGER NOT NULL, stanza TEXT NOT NULL,
  sent_us INTEGER NOT NULL, received_us INTEGER NOT NULL, body TEXT NOT NULL, state INTEGER NOT NULL);
CREATE UNIQUE INDEX messages_by_stanza ON messages(stanza);
CREATE INDEX messages_by_chat ON messages(chat, sent_us);
CREATE TABLE receipts(message INTEGER, kind INTEGER, at_us INTEGER, PRIMARY KEY(message, kind)) WITHOUT ROWID;
CREATE TABLE reactions(id INTEGER PRIMARY KEY, message INTEGER NOT NULL, emoji TEXT NOT NULL);
CREATE INDEX reactions_by_message ON reactions(message);";
const SCHEMA_FTS: &str = "
CREATE VIRTUAL TABLE search USING fts5(body, content = 'messages', content_rowid = 'id');
CREATE TRIGGER added AFTER INSERT ON messages BEGIN INSERT INTO search(rowid, body) VALUES (new.id, new.body); END;
CREATE TRIGGER removed AFTER DELETE ON messages BEGIN
  INSERT INTO search(search, rowid, body) VALUES ('delete', old.id, old.body); END;";

#[derive(Parser)]
struct Args {
    /// Messages before the first capture.
    #[arg(long, default_value_t = 300_000)]
    messages: u64,
    /// Leave out the full-text index.
    #[arg(long)]
    no_search: bool,
}

fn main() {
    let args = Args::parse();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.db");
    let mut chat = Chat::open(&file, !args.no_search);
    while chat.newest < args.messages {
        chat.app.execute_batch("BEGIN").unwrap();
        (0..2000.min(args.messages - chat.newest)).for_each(|_| chat.message("", ""));
        chat.app.execute_batch("COMMIT").unwrap();
    }
    let mut before = chat.image(&file);
    println!(
        "database of {} MB; averages in bytes of sealed objects, CPU in µs a page (sealing: all that the service does)",
        before.len() / 1_000_000
    );
    println!(
        "{:>9} {:>6} {:>9} {:>9} {:>14} {:>14} {:>9} {:>7} {:>6} {:>6} {:>7}",
        "messages",
        "pages",
        "whole",
        "XOR",
        "patch of page",
        "patch of set",
        "entry",
        "objects",
        "make",
        "apply",
        "sealing"
    );
    let backup = Backup::new(folder.path());
    for (messages, runs) in BURSTS {
        let mut sum = Sizes::default();
        for _ in 0..runs {
            (0..messages).for_each(|_| chat.message("BEGIN IMMEDIATE", "COMMIT"));
            let after = chat.image(&file);
            measure(&before, &after, &backup, &mut sum);
            before = after;
        }
        sum.print(messages, runs);
    }
}

/// An app with one chat database. The same messages in every run.
struct Chat {
    app: Connection,
    newest: u64,
    random: blake3::OutputReader,
    words: Vec<String>,
}

impl Chat {
    fn open(file: &Path, search: bool) -> Self {
        let app = Connection::open(file).unwrap();
        app.execute_batch(SCHEMA).unwrap();
        if search {
            app.execute_batch(SCHEMA_FTS).unwrap();
        }
        app.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -100000").unwrap();
        let mut chat =
            Self { app, newest: 0, random: blake3::Hasher::new().finalize_xof(), words: Vec::new() };
        chat.words = (0..20_000).map(|_| chat.new_word()).collect();
        for id in 0..300 {
            let address = format!("{}@{}.example", chat.new_word(), chat.new_word());
            chat.app.execute("INSERT INTO chats VALUES (?, ?, 0, 0, 0)", params![id, address]).unwrap();
        }
        chat
    }

    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.below(1 << 52) as f64 / (1u64 << 52) as f64
    }

    fn new_word(&mut self) -> String {
        const SYLLABLES: [&str; 16] = [
            "an", "be", "co", "de", "er", "go", "hi", "in", "lu", "me", "no", "sch", "ter", "ti", "un", "we",
        ];
        (0..=self.below(4)).map(|_| SYLLABLES[self.below(16) as usize]).collect()
    }

    /// Words as often as people use them: the hundredth a hundredth as often as the first.
    fn body(&mut self) -> String {
        let words = 1 + self.below(6) + (self.fraction().powi(3) * 45.0) as u64;
        let mut body = String::new();
        for _ in 0..words {
            let rank = (self.words.len() as f64).powf(self.fraction()) as usize - 1;
            let _ = write!(body, "{} ", self.words[rank]);
        }
        body
    }

    /// One message and what follows it, each event in a transaction.
    fn message(&mut self, begin: &str, commit: &str) {
        self.newest += 1;
        let id = self.newest as i64;
        let sent_us = id * 300_000_000 + self.below(200_000_000) as i64;
        let chat = (self.fraction().powi(3) * 300.0) as i64;
        let stanza = format!("{:016x}{:016x}", self.below(u64::MAX), self.below(u64::MAX));
        let (body, own, dice) = (self.body(), self.below(3) == 0, self.below(800) as i64);
        let event = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            self.app.execute_batch(begin).unwrap();
            self.app.execute(sql, values).unwrap();
            self.app.execute_batch(commit).unwrap();
        };
        let insert = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, 0)";
        event(
            insert,
            params![id, chat, if own { 0 } else { chat * 3 }, stanza, sent_us, sent_us + 700, body],
        );
        let update = "UPDATE chats SET last_message = ?, last_activity = ?, unread = ? WHERE id = ?";
        event(update, params![id, sent_us, i64::from(!own), chat]);
        for kind in (1..=2).filter(|_| own) {
            event("INSERT INTO receipts VALUES (?, ?, ?)", params![id, kind, sent_us + kind * 900]);
            event("UPDATE messages SET state = ? WHERE id = ?", params![kind, id]);
        }
        if dice < 100 {
            event("INSERT INTO reactions(message, emoji) VALUES (?, '👍')", params![id - dice / 5]);
        }
        if dice % 100 == 0 {
            event("DELETE FROM messages WHERE id = ?", params![id - 10 - dice]);
        }
    }

    fn image(&self, file: &Path) -> Vec<u8> {
        self.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        std::fs::read(file).unwrap()
    }
}

#[derive(Default)]
struct Sizes {
    pages: usize,
    whole: usize,
    xor: usize,
    patch_of_page: usize,
    patch_of_set: usize,
    entry: usize,
    objects: usize,
    make_us: f64,
    apply_us: f64,
    sealing_us: f64,
}

impl Sizes {
    fn print(&self, messages: u64, runs: usize) {
        let sizes = [self.pages, self.whole, self.xor, self.patch_of_page, self.patch_of_set, self.entry];
        let [pages, whole, xor, page, set, entry] = sizes.map(|sum| sum / runs);
        let objects = self.objects as f64 / runs as f64;
        let [make, apply, sealing] =
            [self.make_us, self.apply_us, self.sealing_us].map(|us| us / self.pages as f64);
        println!(
            "{messages:>9} {pages:>6} {whole:>9} {xor:>9} {page:>14} {set:>14} {entry:>9} {objects:>7.1} \
             {make:>6.1} {apply:>6.2} {sealing:>7.1}"
        );
    }
}

/// A page that changed.
struct Changed<'a> {
    pgno: u32,
    base: Option<&'a [u8]>,
    image: &'a [u8],
}

fn measure(before: &[u8], after: &[u8], backup: &Backup, sum: &mut Sizes) {
    let bases = before.chunks(PAGE).map(Some).chain(std::iter::repeat(None));
    let changed: Vec<_> = (1..)
        .zip(bases.zip(after.chunks(PAGE)))
        .filter(|(_, (base, image))| *base != Some(*image))
        .map(|(pgno, (base, image))| Changed { pgno, base, image })
        .collect();
    sum.pages += changed.len();
    sum.whole += sealed(&changed, changed.iter().map(|page| page.image.to_vec()));
    sum.xor += sealed(&changed, changed.iter().map(xor));
    let mut unused = Sizes::default();
    sum.patch_of_page += sealed(&changed, changed.chunks(1).flat_map(|page| patches(page, &mut unused)));
    sum.patch_of_set +=
        sealed(&changed, changed.chunks(MAX_BASES_LEN / PAGE).flat_map(|set| patches(set, sum)));
    let start_us = process_us();
    let objects = backup.objects(&changed, (after.len() / PAGE) as u32);
    sum.sealing_us += process_us() - start_us;
    sum.entry += objects.iter().sum::<usize>();
    sum.objects += objects.len();
}

/// What the service has to seal a capture.
struct Backup {
    writer: Writer,
    head: Head,
    base: Option<Point>,
}

impl Backup {
    /// With a base that has no pages.
    fn new(folder: &Path) -> Self {
        let archive = ArchiveId([0; 16]);
        let writer = Writer {
            archive,
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            spool: Spool::open(folder, &archive).unwrap(),
            source_name: "chat".to_owned(),
            app_id: "org.example.Chat".to_owned(),
            level: 1,
        };
        let (digest_key, writer_id) = ([1; 32], [1; 16]);
        let head = Head {
            seq: 0,
            digest: [0; 32],
            base_seq: 0,
            pins: Vec::new(),
            digest_key,
            writer_id,
            writer_epoch: 1,
        };
        let mut backup = Self { writer, head, base: None };
        let written = backup.publish(&[], 0);
        (backup.head, backup.base) = (written.head, Some(written.point));
        backup
    }

    /// Lengths of the objects that these pages take.
    fn objects(&self, changed: &[Changed<'_>], page_count: u32) -> Vec<usize> {
        let written = self.publish(changed, page_count);
        let lengths = written.objects.iter().map(|object| object.len as usize).collect();
        self.writer.spool.remove(&written.objects).unwrap();
        lengths
    }

    fn publish(&self, changed: &[Changed<'_>], page_count: u32) -> chatkeepd::writer::Written {
        let is_base = self.base.is_none();
        let done_bytes = AtomicU64::new(0);
        let (inline, packs) = self.writer.sealing(self.head.seq + 1, 0, |sealing| {
            let mut collector = sealing.collector(&done_bytes, true);
            collector.begin(PAGE as u32, is_base).unwrap();
            for page in changed {
                collector.page(page.pgno, page.image, page.base).unwrap();
            }
            collector.finish(page_count).unwrap()
        });
        let mut packs = packs.unwrap();
        let capture = Capture {
            is_base,
            parent: self.head.seq,
            kind: Kind::Plain,
            page_size: PAGE as u32,
            page_count,
            user_version: 1,
            application_id: 1,
            state_digest: [1; 16],
            pages: changed.len() as u32,
            changed_pages: changed.len() as u32,
            bases: 0,
            unchanged: false,
            gap: None,
            bytes_read: 0,
            gone: false,
        };
        let part = Part { name: "chat.db".to_owned(), capture, packs: packs.parts.remove(0), inline };
        let draft = Draft {
            before: &self.head,
            parent: self.base.as_ref(),
            level: if is_base { 8 } else { 0 },
            parts: vec![part],
            unchanged: Vec::new(),
            folders: Vec::new(),
            listed_packs: Vec::new(),
            objects: packs.objects,
            taken_at_us: 1,
        };
        self.writer.publish(draft).unwrap()
    }
}

fn xor(page: &Changed<'_>) -> Vec<u8> {
    let base = page.base.unwrap_or(&[0; PAGE]);
    base.iter().zip(page.image).map(|(base, byte)| base ^ byte).collect()
}

/// Patches, and whole pages where these are no gain.
fn patches(set: &[Changed<'_>], sum: &mut Sizes) -> Vec<Vec<u8>> {
    let bases: Vec<u8> = set.iter().filter_map(|page| page.base).flatten().copied().collect();
    let start_us = cpu_us();
    let maker = PatchMaker::new(&bases);
    let mut place = 0;
    let mut made = Vec::new();
    for page in set {
        let mut patch = Vec::new();
        made.push((place, maker.make_patch(place, page.image, &mut patch).then_some(patch)));
        place += page.base.map_or(0, <[u8]>::len);
    }
    let made_us = cpu_us();
    let mut image = [0; PAGE];
    for ((place, patch), page) in made.iter().zip(set) {
        if let Some(patch) = patch {
            apply_patch(&bases, *place, patch, &mut image).unwrap();
            assert!(image == *page.image, "a patch gives something else");
        }
    }
    sum.make_us += made_us - start_us;
    sum.apply_us += cpu_us() - made_us;
    made.into_iter().zip(set).map(|((_, patch), page)| patch.unwrap_or(page.image.to_vec())).collect()
}

/// Length of the object with these pages, each written in this way.
fn sealed(pages: &[Changed<'_>], written: impl Iterator<Item = Vec<u8>>) -> usize {
    let (mut index, mut body) = (Vec::new(), Vec::new());
    let mut before = 0;
    for (page, bytes) in pages.iter().zip(written) {
        put_varint(&mut index, page.pgno - before);
        index.push(u8::from(bytes.len() < PAGE));
        put_varint(&mut index, bytes.len() as u32);
        body.extend_from_slice(&bytes);
        before = page.pgno;
    }
    let name = ObjectName::Pack([0; 16]);
    let plaintext = [index, body].concat();
    seal(&ArchiveId([0; 16]), name, &DataRoots::new(&mut OsRng), &plaintext, 1, &mut OsRng).len()
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn cpu_us() -> f64 {
    time_us(ClockId::ThreadCPUTime)
}

fn process_us() -> f64 {
    time_us(ClockId::ProcessCPUTime)
}

fn time_us(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
