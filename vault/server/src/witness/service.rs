//! The side that remembers: the newest state of every vault it is configured for, durable before it is signed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::answer::{Answer, Refusal};
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::head::{SignedHead, restores};
use chatkeep_vault_protocol::message::Request;
use rusqlite::{Connection, params};

use crate::witness::rule::{Verdict, judge};

/// Requests that may wait: a vault has one on its way, so this is plenty for as many vaults as one is asked to witness.
const QUEUE_LEN: usize = 256;
/// Name of the database in the data directory.
pub const DATABASE_FILE: &str = "witness.db";

const SCHEMA: &str = "
    CREATE TABLE witnessed (vault BLOB PRIMARY KEY, head BLOB NOT NULL) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;";

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

/// What is remembered, on the disk and in memory.
struct Memory {
    connection: Connection,
    /// Every vault that is witnessed, with its newest state.
    heads: HashMap<[u8; 32], Option<SignedHead>>,
}

impl Memory {
    fn open(dir: &Path, vaults: &[[u8; 32]]) -> Result<Self, WitnessError> {
        let mut connection = Connection::open(dir.join(DATABASE_FILE))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => {
                let transaction = connection.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.commit()?;
            }
            1 => {}
            _ => return Err(WitnessError::Damaged { what: "another version" }),
        }
        let mut heads: HashMap<_, _> = vaults.iter().map(|vault| (*vault, None)).collect();
        {
            let mut statement = connection.prepare("SELECT vault, head FROM witnessed")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (vault, head): ([u8; 32], Vec<u8>) = (row.get(0)?, row.get(1)?);
                let head = SignedHead::decode(&head)
                    .filter(|head| head.vault.0 == vault && head.is_genuine())
                    .ok_or(WitnessError::Damaged { what: "a state that its vault did not sign" })?;
                // who is no longer configured is remembered, and not answered
                if let Some(known) = heads.get_mut(&vault) {
                    *known = Some(head);
                }
            }
        }
        Ok(Self { connection, heads })
    }

    fn run(&mut self, queue: &Receiver<Job>) -> Result<(), WitnessError> {
        while let Ok(first) = queue.recv() {
            let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
            let mut answers = Vec::with_capacity(jobs.len());
            let transaction = self.connection.transaction()?;
            for Job { request, done } in jobs {
                let answer = answer(&transaction, &mut self.heads, &request)?;
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

fn answer(
    connection: &Connection,
    heads: &mut HashMap<[u8; 32], Option<SignedHead>>,
    request: &Request,
) -> Result<Answer, WitnessError> {
    let refuse = |why| Ok(Answer::Refused { why });
    match request {
        Request::Latest(asked) => match heads.get(&asked.vault.0) {
            Some(head) => Ok(Answer::Latest { head: head.map(Box::new) }),
            None => refuse(Refusal::NotWitnessed),
        },
        Request::Cosign(head) => {
            let Some(known) = heads.get_mut(&head.vault.0) else { return refuse(Refusal::NotWitnessed) };
            if !head.is_genuine() {
                return refuse(Refusal::Signature);
            }
            match judge(known.as_ref(), head) {
                Verdict::Refuse(why) => return refuse(why),
                Verdict::Repeat => {}
                Verdict::Sign => {
                    connection
                        .prepare("INSERT OR REPLACE INTO witnessed (vault, head) VALUES (?1, ?2)")?
                        .execute(params![&head.vault.0[..], head.encode()])?;
                    tell_restore(known.as_ref(), head);
                    *known = Some(*head);
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
        tracing::warn!(%vault, restores = restores(head.seq), "a vault was restored from a backup");
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
        let vault = identity(by);
        let (previous_root, root) = ([previous; 32], [root; 32]);
        let message = head_message(&vault, seq, &previous_root, &root, false);
        let signature = Fixed(key(by).sign(&message).to_bytes());
        let (previous_root, root) = (Fixed(previous_root), Fixed(root));
        SignedHead { vault: Fixed(vault), seq, previous_root, root, anchored: false, signature }
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
        Request::Latest(Latest { vault: Fixed(identity(of)) })
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
}
