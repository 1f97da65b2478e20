//! The side that remembers: the newest state of every vault it is configured for, durable before it is signed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::answer::{Answer, Refusal};
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::cell::CellId;
use chatkeep_vault_protocol::head::{SignedHead, restores};
use chatkeep_vault_protocol::limits::CELLS_MAX;
use chatkeep_vault_protocol::message::Request;
use rusqlite::{Connection, Transaction, params};

use crate::witness::rule::{Verdict, are_cut_alike, judge};

/// Requests that may wait: a vault has one on its way, or one for each cell, so this is plenty for as many vaults as one
/// is asked to witness.
const QUEUE_LEN: usize = CELLS_MAX;
/// Name of the database in the data directory.
pub const DATABASE_FILE: &str = "witness.db";

/// `cells` is 0, and so is `cell`, for a vault that is whole.
const SCHEMA: &str = "
    CREATE TABLE witnessed (
        vault BLOB NOT NULL, cells INTEGER NOT NULL, cell INTEGER NOT NULL, head BLOB NOT NULL,
        PRIMARY KEY (vault, cells, cell)
    ) STRICT, WITHOUT ROWID;";
/// Version 1 knew no cells.
const FROM_1: &str = "
    INSERT INTO witnessed (vault, cells, cell, head) SELECT vault, 0, 0, head FROM witnessed_1;
    DROP TABLE witnessed_1;";
const VERSION: i64 = 2;

/// A witness failed, or its database is not what it should be. It stops: it cannot know what is durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// The database said no.
    #[error("the witness's database")]
    Database(#[from] rusqlite::Error),
    /// The database holds something this program did not write.
    #[error("the witness's database is damaged: {what}")]
    Damaged {
        /// Where.
        what: &'static str,
    },
    /// No thread.
    #[error("the witness's thread")]
    Thread(#[from] std::io::Error),
}

type Done = Box<dyn FnOnce(Answer) + Send>;

struct Job {
    request: Request,
    done: Done,
}

/// A running witness. Dropping it stops its thread.
pub struct Witness {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// What became of a question.
pub(crate) enum Taken {
    /// The answer comes later, through `done`.
    Later,
    /// This is it.
    Now(Answer),
    /// There will be none.
    Stopped,
}

impl Witness {
    /// Witnesses `vaults` and no others, with its memory in `dir`.
    ///
    /// `on_failure` is called once, from its thread, if the memory fails: nothing is answered from then on.
    pub fn open(
        dir: &Path,
        vaults: &[[u8; 32]],
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, WitnessError> {
        let mut memory = Memory::open(dir, vaults)?;
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let thread = std::thread::Builder::new().name("vault-witness".to_owned()).spawn(move || {
            if let Err(error) = memory.run(&queue) {
                on_failure(error.to_string());
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn submit(&self, request: Request, done: Done) -> Taken {
        let Some(jobs) = &self.jobs else { return Taken::Stopped };
        match jobs.try_send(Job { request, done }) {
            Ok(()) => Taken::Later,
            Err(TrySendError::Full(_)) => Taken::Now(Answer::Busy {}),
            Err(TrySendError::Disconnected(_)) => Taken::Stopped,
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // a panic there was already reported on standard error
            drop(thread.join());
        }
    }
}

/// The newest state of every cell of one vault, or of a vault that is whole.
#[derive(Default)]
struct Remembered(HashMap<Option<CellId>, SignedHead>);

impl Remembered {
    /// Whether `cell` is one of the cells of which there are states: all are of one number of cells, so there are never
    /// more of them than a vault can have, and none has a second memory under another number.
    fn may_have(&self, cell: Option<CellId>) -> bool {
        self.0.keys().next().is_none_or(|known| are_cut_alike(*known, cell))
    }
}

/// What is remembered, on the disk and in memory.
struct Memory {
    connection: Connection,
    /// Every vault that is witnessed.
    vaults: HashMap<[u8; 32], Remembered>,
}

impl Memory {
    fn open(dir: &Path, vaults: &[[u8; 32]]) -> Result<Self, WitnessError> {
        let mut connection = Connection::open(dir.join(DATABASE_FILE))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        let transaction = connection.transaction()?;
        bring_up_to_date(&transaction)?;
        transaction.commit()?;
        let mut vaults: HashMap<_, _> = vaults.iter().map(|vault| (*vault, Remembered::default())).collect();
        {
            let mut statement = connection.prepare("SELECT vault, cells, cell, head FROM witnessed")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (vault, cells, cell): ([u8; 32], u16, u16) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let head: Vec<u8> = row.get(3)?;
                let head = SignedHead::decode(&head)
                    .filter(|head| head.vault.0 == vault && key_of(head.cell) == (cells, cell))
                    .filter(SignedHead::is_genuine)
                    .ok_or(WitnessError::Damaged { what: "a state that its vault did not sign" })?;
                // who is no longer configured is remembered, and not answered
                let Some(remembered) = vaults.get_mut(&vault) else { continue };
                if !remembered.may_have(head.cell) {
                    return Err(WitnessError::Damaged {
                        what: "states of one vault in two numbers of cells",
                    });
                }
                remembered.0.insert(head.cell, head);
            }
        }
        Ok(Self { connection, vaults })
    }

    fn run(&mut self, queue: &Receiver<Job>) -> Result<(), WitnessError> {
        while let Ok(first) = queue.recv() {
            let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
            let mut answers = Vec::with_capacity(jobs.len());
            let transaction = self.connection.transaction()?;
            for Job { request, done } in jobs {
                let answer = answer(&transaction, &mut self.vaults, &request)?;
                answers.push((done, answer));
            }
            // durable before anything is said; after an error the memory is ahead of the disk, and the thread ends
            transaction.commit()?;
            for (done, answer) in answers {
                done(answer);
            }
        }
        Ok(())
    }
}

/// Makes the table, or brings that of an earlier version over. Its states are of vaults that are whole, and stay.
fn bring_up_to_date(transaction: &Transaction<'_>) -> Result<(), WitnessError> {
    match transaction.pragma_query_value(None, "user_version", |row| row.get(0))? {
        0 => transaction.execute_batch(SCHEMA)?,
        1 => {
            transaction.execute_batch("ALTER TABLE witnessed RENAME TO witnessed_1;")?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(FROM_1)?;
        }
        VERSION => return Ok(()),
        _ => return Err(WitnessError::Damaged { what: "another version" }),
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(())
}

/// As the table has it.
fn key_of(cell: Option<CellId>) -> (u16, u16) {
    cell.map_or((0, 0), |cell| (cell.of(), cell.number()))
}

fn answer(
    connection: &Connection,
    vaults: &mut HashMap<[u8; 32], Remembered>,
    request: &Request,
) -> Result<Answer, WitnessError> {
    let refuse = |why| Ok(Answer::Refused { why });
    match request {
        Request::Latest(asked) => {
            let Some(remembered) = vaults.get(&asked.vault.0) else { return refuse(Refusal::NotWitnessed) };
            if !remembered.may_have(asked.cell) {
                return refuse(Refusal::OtherCells);
            }
            Ok(Answer::Latest { head: remembered.0.get(&asked.cell).copied().map(Box::new) })
        }
        Request::Cosign(head) => {
            let Some(remembered) = vaults.get_mut(&head.vault.0) else {
                return refuse(Refusal::NotWitnessed);
            };
            if !head.is_genuine() {
                return refuse(Refusal::Signature);
            }
            if !remembered.may_have(head.cell) {
                return refuse(Refusal::OtherCells);
            }
            let known = remembered.0.get(&head.cell);
            match judge(known, head) {
                Verdict::Refuse(why) => return refuse(why),
                Verdict::Repeat => {}
                Verdict::Sign => {
                    let (cells, cell) = key_of(head.cell);
                    connection
                        .prepare("INSERT OR REPLACE INTO witnessed (vault, cells, cell, head) VALUES (?1, ?2, ?3, ?4)")?
                        .execute(params![&head.vault.0[..], cells, cell, head.encode()])?;
                    tell_restore(known, head);
                    remembered.0.insert(head.cell, *head);
                }
            }
            Ok(Answer::Cosigned { seq: head.seq, root: Fixed(head.root.0) })
        }
        _ => refuse(Refusal::Malformed),
    }
}

/// A restore gives attempts back. Whoever runs a witness is the one who can ask why there are many.
fn tell_restore(known: Option<&SignedHead>, head: &SignedHead) {
    let before = known.map_or(0, |head| restores(head.seq));
    if restores(head.seq) > before {
        let vault = Identity(head.vault.0);
        let cell = head.cell.map(tracing::field::display);
        tracing::warn!(%vault, cell, restores = restores(head.seq), "a vault was restored from a backup");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use chatkeep_vault_protocol::head::head_message;
    use chatkeep_vault_protocol::message::Latest;
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn identity(n: u8) -> [u8; 32] {
        key(n).verifying_key().to_bytes()
    }

    fn head(by: u8, seq: u64, previous: u8, root: u8) -> SignedHead {
        head_of(by, None, seq, previous, root)
    }

    fn head_of(by: u8, cell: Option<CellId>, seq: u64, previous: u8, root: u8) -> SignedHead {
        let vault = identity(by);
        let (previous_root, root) = ([previous; 32], [root; 32]);
        let message = head_message(&vault, cell, seq, &previous_root, &root, false);
        let signature = Fixed(key(by).sign(&message).to_bytes());
        let (previous_root, root) = (Fixed(previous_root), Fixed(root));
        SignedHead { vault: Fixed(vault), cell, seq, previous_root, root, anchored: false, signature }
    }

    fn ask(witness: &Witness, request: Request) -> Answer {
        let (sender, receiver) = sync_channel(1);
        match witness.submit(request, Box::new(move |answer| sender.send(answer).unwrap())) {
            Taken::Later => receiver.recv().unwrap(),
            Taken::Now(answer) => answer,
            Taken::Stopped => panic!("stopped"),
        }
    }

    fn open(dir: &Path, vaults: &[u8]) -> Witness {
        let vaults: Vec<_> = vaults.iter().map(|n| identity(*n)).collect();
        Witness::open(dir, &vaults, |what| panic!("{what}")).unwrap()
    }

    fn latest(of: u8) -> Request {
        latest_of(of, None)
    }

    fn latest_of(of: u8, cell: Option<CellId>) -> Request {
        Request::Latest(Latest { vault: Fixed(identity(of)), cell })
    }

    const NOT_WITNESSED: Answer = Answer::Refused { why: Refusal::NotWitnessed };

    #[test]
    fn what_was_signed_is_remembered_through_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let witness = open(dir.path(), &[1]);
        assert_eq!(ask(&witness, latest(1)), Answer::Latest { head: None });
        let first = head(1, 1, 0, 1);
        let cosigned = Answer::Cosigned { seq: 1, root: Fixed([1; 32]) };
        assert_eq!(ask(&witness, Request::Cosign(first)), cosigned);
        drop(witness);
        let witness = open(dir.path(), &[1]);
        assert_eq!(ask(&witness, latest(1)), Answer::Latest { head: Some(Box::new(first)) });
        assert_eq!(ask(&witness, Request::Cosign(first)), cosigned, "asked again, said again");
        let conflict = Answer::Refused { why: Refusal::Conflict };
        assert_eq!(ask(&witness, Request::Cosign(head(1, 1, 0, 9))), conflict);
        let out_of_order = Answer::Refused { why: Refusal::OutOfOrder };
        assert_eq!(ask(&witness, Request::Cosign(head(1, 3, 2, 3))), out_of_order);
    }

    #[test]
    fn only_configured_vaults_are_witnessed_and_only_by_their_own_signature() {
        let dir = tempfile::tempdir().unwrap();
        let witness = open(dir.path(), &[1]);
        assert_eq!(ask(&witness, Request::Cosign(head(2, 1, 0, 1))), NOT_WITNESSED);
        assert_eq!(ask(&witness, latest(2)), NOT_WITNESSED);
        let forged = SignedHead { vault: Fixed(identity(1)), ..head(2, 1, 0, 1) };
        let refused = Answer::Refused { why: Refusal::Signature };
        assert_eq!(ask(&witness, Request::Cosign(forged)), refused);
        assert_eq!(ask(&witness, latest(1)), Answer::Latest { head: None });
    }

    #[test]
    fn a_vault_that_is_no_longer_configured_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        ask(&open(dir.path(), &[1]), Request::Cosign(head(1, 1, 0, 1)));
        assert_eq!(ask(&open(dir.path(), &[2]), latest(1)), NOT_WITNESSED);
        let head = Some(Box::new(head(1, 1, 0, 1)));
        assert_eq!(ask(&open(dir.path(), &[1, 2]), latest(1)), Answer::Latest { head });
    }

    #[test]
    fn a_state_that_somebody_wrote_into_the_database_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        ask(&open(dir.path(), &[1]), Request::Cosign(head(1, 1, 0, 1)));
        let forged = SignedHead { seq: 0, ..head(1, 1, 0, 1) }.encode();
        let database = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        database.execute("UPDATE witnessed SET head = ?1", [forged]).unwrap();
        let opened = Witness::open(dir.path(), &[identity(1)], |_| {});
        assert!(matches!(opened, Err(WitnessError::Damaged { .. })));
    }

    #[test]
    fn the_cells_of_a_vault_are_remembered_apart_also_through_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [0, 1].map(|number| CellId::new(number, 2));
        {
            let witness = open(dir.path(), &[1]);
            for (cell, seq, previous, root) in [(one, 1, 0, 1), (one, 2, 1, 2), (two, 1, 0, 9)] {
                let asked = head_of(1, cell, seq, previous, root);
                let cosigned = Answer::Cosigned { seq, root: Fixed([root; 32]) };
                assert_eq!(ask(&witness, Request::Cosign(asked)), cosigned);
            }
        }
        let witness = open(dir.path(), &[1]);
        for (cell, head) in [(one, head_of(1, one, 2, 1, 2)), (two, head_of(1, two, 1, 0, 9))] {
            assert_eq!(ask(&witness, latest_of(1, cell)), Answer::Latest { head: Some(Box::new(head)) });
        }
        // one goes back; for the other the same number is the next
        let out_of_order = Answer::Refused { why: Refusal::OutOfOrder };
        assert_eq!(ask(&witness, Request::Cosign(head_of(1, one, 1, 0, 1))), out_of_order);
        let next = Answer::Cosigned { seq: 2, root: Fixed([8; 32]) };
        assert_eq!(ask(&witness, Request::Cosign(head_of(1, two, 2, 9, 8))), next);
    }

    #[test]
    fn the_head_of_a_cell_is_none_of_another_cell_or_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let witness = open(dir.path(), &[1]);
        let [one, two] = [0, 1].map(|number| CellId::new(number, 2));
        let refused = Answer::Refused { why: Refusal::Signature };
        for (from, to) in [(one, two), (one, None), (None, one)] {
            let shown = SignedHead { cell: to, ..head_of(1, from, 1, 0, 1) };
            assert_eq!(ask(&witness, Request::Cosign(shown)), refused);
        }
        assert_eq!(ask(&witness, latest_of(1, two)), Answer::Latest { head: None });
    }

    /// A second way to cut the accounts would be a second memory, which starts at nothing.
    #[test]
    fn a_vault_is_cut_in_one_way_for_ever() {
        let cuts = [None, CellId::new(0, 1), CellId::new(0, 2), CellId::new(3, 4)];
        let refused = Answer::Refused { why: Refusal::OtherCells };
        for cut in cuts {
            let dir = tempfile::tempdir().unwrap();
            ask(&open(dir.path(), &[1]), Request::Cosign(head_of(1, cut, 1, 0, 1)));
            let witness = open(dir.path(), &[1, 2]);
            for other in cuts.into_iter().filter(|other| *other != cut) {
                assert_eq!(ask(&witness, Request::Cosign(head_of(1, other, 1, 0, 1))), refused);
                assert_eq!(ask(&witness, latest_of(1, other)), refused);
                assert_eq!(ask(&witness, latest_of(2, other)), Answer::Latest { head: None });
            }
        }
    }

    #[test]
    fn a_memory_of_the_version_without_cells_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let old = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        let schema =
            "CREATE TABLE witnessed (vault BLOB PRIMARY KEY, head BLOB NOT NULL) STRICT, WITHOUT ROWID;
            PRAGMA user_version = 1;";
        old.execute_batch(schema).unwrap();
        // as that version signed and encoded it: `tests/vectors/vault` has one that no version may change
        let head = head(1, 1, 0, 1);
        old.execute("INSERT INTO witnessed VALUES (?1, ?2)", params![&identity(1)[..], head.encode()])
            .unwrap();
        drop(old);
        for _ in 0..2 {
            let witness = open(dir.path(), &[1]);
            assert_eq!(ask(&witness, latest(1)), Answer::Latest { head: Some(Box::new(head)) });
        }
    }
}
