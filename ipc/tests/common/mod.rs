//! A fake daemon behind a real server: it answers calls with canned answers and says that it is a fake.

#![allow(clippy::unwrap_used, dead_code, reason = "tests; not every test file uses everything")]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatkeep_ipc::{
    Call, DatabaseState, Details, EncryptionState, Error, JobOutcome, JobState, ManagerState, Peer,
    RecoveryPoint, Secret, Server, Settings, StoreState, VaultState, proxy,
};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zbus::Connection;

/// What the fake was asked, in words a test can compare.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) fn start(settings: Settings) -> (Server, Log) {
    let (calls, incoming) = mpsc::channel(16);
    let server = Server::new(calls, settings);
    server.set_manager(ManagerState {
        version: "0.0.0-fake".into(),
        key_storage: "fake".into(),
        ..Default::default()
    });
    server.upsert_database(
        "notes",
        DatabaseState {
            display_name: "Notes (fake)".into(),
            state: "idle".into(),
            store: "home".into(),
            ..Default::default()
        },
        EncryptionState { mode: "none".into(), state: "off".into(), ..Default::default() },
    );
    server.upsert_store("home", StoreState { kind: "file".into(), state: "ok".into(), ..Default::default() });
    server.upsert_vault("one", VaultState { state: "ok".into(), attempts_left: 10, ..Default::default() });
    let log = Log::default();
    tokio::spawn(fake(incoming, server.clone(), log.clone()));
    (server, log)
}

fn job(server: &Server, id: &chatkeep_ipc::JobId, operation: &str) {
    let state = JobState {
        operation: operation.into(),
        database: "notes".into(),
        state: "running".into(),
        cancelable: true,
        ..Default::default()
    };
    server.upsert_job(id, state);
}

async fn fake(mut incoming: mpsc::Receiver<Call>, server: Server, log: Log) {
    while let Some(call) = incoming.recv().await {
        match call {
            Call::RegisterDatabase { name, file, options, caller, reply } => {
                let length = File::from(file).metadata().unwrap().len();
                log.add(format!(
                    "register {name} {length} {:?} {}",
                    options.store,
                    options.attachments.len()
                ));
                assert_eq!(caller.uid, rustix::process::getuid().as_raw());
                server.upsert_database(&name, DatabaseState::default(), EncryptionState::default());
                reply.send(Ok(name)).unwrap();
            }
            Call::Unregister { database, reply } => {
                log.add(format!("unregister {database}"));
                server.remove_database(&database);
                reply.send(Ok(())).unwrap();
            }
            Call::BackupNow { database, job: new, reply } => {
                log.add(format!("backup {database}"));
                job(&server, &new.id, "backup");
                reply.send(Ok(new.id)).unwrap();
            }
            Call::EnableWithPassword { password, vault, job: new, reply, .. } => {
                log.add(format!("password {} {vault:?}", password.as_str().unwrap()));
                job(&server, &new.id, "enable");
                let id = new.id.clone();
                reply.send(Ok(new.id)).unwrap();
                server.update_database("notes", |_, encryption| encryption.mode = "password".into());
                server.job_completed(&id, JobOutcome::Done(Details::new()), 7);
            }
            Call::EnableWithGeneratedKey { key_out, job: new, reply, .. } => {
                job(&server, &new.id, "enable");
                reply.send(key_out.write(DIGITS).map(|()| new.id)).unwrap();
            }
            Call::RotateKey { key_out, job: new, reply, .. } => {
                job(&server, &new.id, "rotate");
                let written = key_out.ok_or_else(|| Error::InvalidArgument("key-out is missing".into()));
                reply.send(written.and_then(|out| out.write(DIGITS)).map(|()| new.id)).unwrap();
            }
            Call::ShowKey { proof, key_out, job: new, reply, .. } => {
                job(&server, &new.id, "show-key");
                let wrong = || Error::WrongSecret("wrong".into());
                let right = proof.as_str() == Some("hunter2 hunter2");
                reply
                    .send(if right { key_out.write(DIGITS) } else { Err(wrong()) }.map(|()| new.id))
                    .unwrap();
            }
            Call::ConfirmKey { key, reply, .. } => {
                let right = key.as_bytes() == DIGITS.as_bytes();
                let wrong = || Error::WrongSecret("group 3 of the digits is not the same".into());
                reply.send(if right { Ok(()) } else { Err(wrong()) }).unwrap();
            }
            Call::Unlock { job: new, reply, .. } => {
                job(&server, &new.id, "unlock");
                let id = new.id.clone();
                reply.send(Ok(new.id)).unwrap();
                let details = Details::from([("attempts-left".to_owned(), 4_u32.into())]);
                server.vault_attempt_failed("one", 4, 0);
                server.job_completed(&id, JobOutcome::Failed(Error::WrongSecret("wrong".into()), details), 7);
            }
            Call::ListRecoveryPoints { filter, reply, .. } => {
                log.add(format!("points {filter:?}"));
                let point =
                    RecoveryPoint { id: "7".into(), time: 70, size: 7, base: true, ..Default::default() };
                reply.send(Ok(vec![point])).unwrap();
            }
            Call::RestoreTo { dir, file_name, options, job: new, reply, .. } => {
                log.add(format!("restore {file_name} {options:?}"));
                let file = rustix::fs::openat(
                    &dir,
                    file_name.as_str(),
                    rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
                    rustix::fs::Mode::RUSR,
                );
                File::from(file.unwrap()).write_all(b"restored by a fake").unwrap();
                job(&server, &new.id, "restore");
                reply.send(Ok(new.id)).unwrap();
            }
            Call::SetSchedule { schedule, reply, .. } => {
                server.update_database("notes", |state, _| state.schedule = schedule);
                reply.send(Ok(())).unwrap();
            }
            Call::JobCancel { job, reply } => {
                log.add("cancel");
                server.job_completed(&job, JobOutcome::Cancelled, 9);
                reply.send(Ok(())).unwrap();
            }
            Call::Resume { reply } => drop(reply), // a daemon that forgets to answer
            other => {
                log.add(format!("{other:?}").chars().take(40).collect::<String>());
                refuse(other);
            }
        }
    }
}

fn refuse(call: Call) {
    let error = || Error::Unsupported("this is a fake".into());
    match call {
        Call::Reload { reply } | Call::CancelDelete { reply, .. } | Call::Pause { reply, .. } => {
            reply.send(Err(error())).unwrap();
        }
        Call::Prune { reply, .. } | Call::Verify { reply, .. } | Call::StoreTest { reply, .. } => {
            reply.send(Err(error())).unwrap();
        }
        other => panic!("the fake was not taught {other:?}"),
    }
}

/// A client on a socket pair.
pub(crate) async fn client(server: &Server) -> (Connection, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (peer, client) = tokio::join!(server.serve_peer(theirs), proxy::connect_stream(ours));
    (client.unwrap(), peer.unwrap())
}

pub(crate) fn secret(text: &str) -> OwnedFd {
    Secret::new(zeroize::Zeroizing::new(text.as_bytes().to_vec())).into_pipe().unwrap()
}

/// Waits for a condition, at most five seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
