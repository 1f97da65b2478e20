//! A chat database whose content follows from a seed and the number of commits. Pure.
//!
//! Commit `n` inserts one to four messages. Every seventh edits a message of an earlier commit, every eleventh deletes
//! some. So the newest commit number tells what every row must be.

use std::fmt::Write;

/// Commits this far back are edited by every commit divisible by [`EDIT_EVERY`].
const EDIT_BACK: u64 = 3;
const EDIT_EVERY: u64 = 7;
/// Commits this far back lose all but their first message by every commit divisible by [`DELETE_EVERY`].
const DELETE_BACK: u64 = 5;
const DELETE_EVERY: u64 = 11;
const CHATS: u64 = 5;

const WORDS: [&str; 24] = [
    "and", "are", "by", "call", "coffee", "for", "from", "great", "home", "in", "later", "meet", "moon",
    "of", "on", "please", "rain", "see", "tea", "thanks", "the", "tomorrow", "train", "wir",
];

/// One message as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Commit that inserted it.
    pub n: u64,
    /// Its number in the commit, from 0.
    pub i: u64,
    /// Unique identifier, random to look at.
    pub stanza: String,
    /// Text.
    pub body: String,
    /// Of stanza and body.
    pub hash: String,
}

/// The tables. Every statement can be run again.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chats(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages(
  id INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chats(id), n INTEGER NOT NULL, i INTEGER NOT NULL,
  stanza TEXT NOT NULL UNIQUE, sent_us INTEGER NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS messages_by_commit ON messages(n, i);
CREATE INDEX IF NOT EXISTS messages_by_chat ON messages(chat, sent_us);
CREATE TABLE IF NOT EXISTS history(id INTEGER PRIMARY KEY, stanza TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL);
INSERT OR IGNORE INTO chats VALUES (0, 'home'), (1, 'work'), (2, 'family'), (3, 'choir'), (4, 'neighbours');
";

/// The full-text index, for builds of SQLite that have FTS5.
pub const SCHEMA_FTS: &str = "
CREATE VIRTUAL TABLE IF NOT EXISTS messages_fts USING fts5(body, content='messages', content_rowid='id');
CREATE TRIGGER IF NOT EXISTS messages_added AFTER INSERT ON messages BEGIN
  INSERT INTO messages_fts(rowid, body) VALUES (new.id, new.body); END;
CREATE TRIGGER IF NOT EXISTS messages_removed AFTER DELETE ON messages BEGIN
  INSERT INTO messages_fts(messages_fts, rowid, body) VALUES ('delete', old.id, old.body); END;
CREATE TRIGGER IF NOT EXISTS messages_edited AFTER UPDATE ON messages BEGIN
  INSERT INTO messages_fts(messages_fts, rowid, body) VALUES ('delete', old.id, old.body);
  INSERT INTO messages_fts(rowid, body) VALUES (new.id, new.body); END;
";

/// The only table of a replay into somebody else's database.
pub const SCHEMA_ANY: &str = "
CREATE TABLE IF NOT EXISTS chatkeep_demo_messages(n INTEGER PRIMARY KEY, stanza TEXT NOT NULL, body TEXT NOT NULL,
  hash TEXT NOT NULL);
";

fn random(seed: u64, what: &str, n: u64, i: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for number in [seed, n, i] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(what.as_bytes());
    hasher.finalize()
}

fn text(random: &blake3::Hash) -> String {
    let bytes = random.as_bytes();
    // Mostly short, sometimes long: as people write.
    let words = 3 + usize::from(bytes[0] % 12) * usize::from(1 + bytes[1] / 32);
    let mut text = String::new();
    let mut reader = blake3::Hasher::new().update(bytes).finalize_xof();
    let mut choices = vec![0; words];
    reader.fill(&mut choices);
    for choice in choices {
        let _ = write!(text, "{} ", WORDS[usize::from(choice) % WORDS.len()]);
    }
    let _ = write!(text, "{:02x}{:02x}", bytes[2], bytes[3]);
    text
}

fn message(seed: u64, n: u64, i: u64, edited_by: Option<u64>) -> Message {
    let stanza = random(seed, "stanza", n, i).to_hex()[..32].to_owned();
    let mut body = text(&random(seed, "body", n, i));
    if let Some(editor) = edited_by {
        let _ = write!(body, " (edited in {editor}: {})", text(&random(seed, "edit", editor, 0)));
    }
    let hash = hash_of(&stanza, &body);
    Message { n, i, stanza, body, hash }
}

/// What the column `hash` must be.
pub fn hash_of(stanza: &str, body: &str) -> String {
    blake3::hash(format!("{stanza} {body}").as_bytes()).to_hex()[..32].to_owned()
}

fn inserted(seed: u64, n: u64) -> u64 {
    1 + u64::from(random(seed, "count", n, 0).as_bytes()[0] % 4)
}

fn edited(n: u64) -> Option<u64> {
    (n.is_multiple_of(EDIT_EVERY) && n > EDIT_BACK).then(|| n - EDIT_BACK)
}

fn thinned(n: u64) -> Option<u64> {
    (n.is_multiple_of(DELETE_EVERY) && n > DELETE_BACK).then(|| n - DELETE_BACK)
}

/// The messages of commit `n` as they must be when `newest` is the last commit.
pub fn expected(seed: u64, n: u64, newest: u64) -> Vec<Message> {
    let editor = n + EDIT_BACK;
    let edited_by = (editor <= newest && edited(editor) == Some(n)).then_some(editor);
    let thinner = n + DELETE_BACK;
    let all = if thinner <= newest && thinned(thinner) == Some(n) { 1 } else { inserted(seed, n) };
    (0..all).map(|i| message(seed, n, i, edited_by.filter(|_| i == 0))).collect()
}

/// Row `id` of the table `history`.
pub fn history(seed: u64, id: u64) -> Message {
    message(seed, id, u64::MAX, None)
}

/// The statements of commit `n`, without `BEGIN` and `COMMIT`.
pub fn statements(seed: u64, n: u64) -> String {
    let mut sql = String::new();
    for i in 0..inserted(seed, n) {
        let Message { stanza, body, hash, .. } = message(seed, n, i, None);
        let (chat, sent_us) = ((n + i) % CHATS, n * 1000 + i);
        let _ = writeln!(
            sql,
            "INSERT INTO messages(chat, n, i, stanza, sent_us, body, hash) \
             VALUES ({chat}, {n}, {i}, '{stanza}', {sent_us}, '{body}', '{hash}');"
        );
    }
    if let Some(target) = edited(n) {
        let Message { body, hash, .. } = message(seed, target, 0, Some(n));
        let _ = writeln!(
            sql,
            "UPDATE messages SET body = '{body}', hash = '{hash}' WHERE n = {target} AND i = 0;"
        );
    }
    if let Some(target) = thinned(n) {
        let _ = writeln!(sql, "DELETE FROM messages WHERE n = {target} AND i > 0;");
    }
    sql
}

/// One commit of a replay into somebody else's database.
pub fn statements_any(seed: u64, n: u64) -> String {
    let Message { stanza, body, hash, .. } = message(seed, n, 0, None);
    format!("INSERT INTO chatkeep_demo_messages VALUES ({n}, '{stanza}', '{body}', '{hash}');\n")
}

/// Rows `first..first + count` of the table `history`.
pub fn statements_history(seed: u64, first: u64, count: u64) -> String {
    let mut sql = String::new();
    for id in first..first + count {
        let Message { stanza, body, hash, .. } = history(seed, id);
        let _ = writeln!(sql, "INSERT INTO history VALUES ({id}, '{stanza}', '{body}', '{hash}');");
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_and_a_deletion_show_only_once_their_commit_is_there() {
        let before = expected(1, 4, 6);
        let after = expected(1, 4, 7);
        assert_ne!(before[0].body, after[0].body);
        assert!(after[0].body.contains("edited in 7"));
        assert_eq!(expected(1, 6, 11).len(), 1);
        assert_eq!(expected(1, 6, 10).len() as u64, inserted(1, 6));
    }
}
