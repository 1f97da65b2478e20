//! A fake daemon on a control socket, for the command to talk to. It keeps nothing and says that it is a fake.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatkeep_ipc::{
    Call, ControlSocket, DatabaseState, Details, EncryptionState, Error, JobId, JobOutcome, JobState,
    ManagerState, NewJob, RecoveryPoint, RemoteArchive, RestoreTarget, Server, Settings, StoreState,
    VaultState, VerifyDepth,
};
use serde_json::Value as Json;
use tokio::sync::mpsc;
use zbus::zvariant::{OwnedValue, Value};

pub(crate) const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub(crate) const NOW: u64 = 1_795_509_000_000_000; // 2026-11-24 08:30 UTC

/// The fake, and a directory with its socket.
pub(crate) struct Fake {
    pub(crate) server: Server,
    pub(crate) dir: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
    _socket: ControlSocket,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (calls, incoming) = mpsc::channel(16);
        let server = Server::new(calls, Settings::default());
        server.set_manager(ManagerState {
            version: env!("CARGO_PKG_VERSION").into(),
            key_storage: "fake".into(),
            ..Default::default()
        });
        let state = DatabaseState {
            display_name: "Notes (fake)".into(),
            path: "/nowhere/notes.db".into(),
            store: "home".into(),
            state: "idle".into(),
            last_capture: NOW,
            last_success: NOW,
            recovery_points: 2,
            ..Default::default()
        };
        let encryption = EncryptionState {
            mode: "password".into(),
            state: "on".into(),
            vault: "one".into(),
            ..Default::default()
        };
        server.upsert_database("notes", state, encryption);
        server.upsert_store(
            "home",
            StoreState { kind: "file".into(), state: "ok".into(), ..Default::default() },
        );
        let vault =
            VaultState { state: "ok".into(), attempts_left: 10, attempts_max: 10, ..Default::default() };
        server.upsert_vault("one", vault);
        let log = Arc::new(Mutex::new(Vec::new()));
        let path = dir.path().join("chatkeep/control.sock");
        let socket = runtime.block_on(server.serve_control_socket(&path)).unwrap();
        runtime.spawn(answer(incoming, server.clone(), Arc::clone(&log)));
        Self { server, dir, log, _socket: socket, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("chatkeep/control.sock")
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatkeep"));
        command.env_clear().arg("--socket").arg(self.socket()).args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(&self.command(arguments).output().unwrap())
    }

    /// With text on standard input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // a command that needs no input may have gone
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran::new(&child.wait_with_output().unwrap())
    }
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Every line of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Json> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn begin(server: &Server, job: &NewJob, operation: &str) -> JobId {
    let state = JobState {
        operation: operation.into(),
        database: "notes".into(),
        started_by: job.started_by.clone(),
        cancelable: true,
        state: "running".into(),
        ..Default::default()
    };
    server.upsert_job(&job.id, state);
    job.id.clone()
}

async fn answer(mut incoming: mpsc::Receiver<Call>, server: Server, log: Arc<Mutex<Vec<String>>>) {
    let note = |text: String| log.lock().unwrap().push(text);
    while let Some(call) = incoming.recv().await {
        match call {
            Call::RegisterDatabase { name, options, reply, .. } => {
                note(format!("register {name} {:?}", options.store));
                let encryption =
                    EncryptionState { mode: "none".into(), state: "off".into(), ..Default::default() };
                server.upsert_database(&name, DatabaseState::default(), encryption);
                reply.send(Ok(name)).unwrap();
            }
            Call::Unregister { database, reply } => {
                note(format!("unregister {database}"));
                reply.send(Ok(())).unwrap();
            }
            Call::Pause { until, reason, reply } => {
                note(format!("pause {} {reason}", until.is_some()));
                reply.send(Ok(())).unwrap();
            }
            Call::BackupNow { job, reply, .. } => {
                let id = begin(&server, &job, "backup");
                reply.send(Ok(job.id)).unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    for done in 1..=3_u64 {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        server.update_job(&id, |job| {
                            job.phase = "uploading".into();
                            (job.bytes_done, job.bytes_total) = (done * 1024, 3 * 1024);
                        });
                    }
                    server.job_completed(&id, JobOutcome::Done(Details::new()), NOW);
                });
            }
            Call::BackupAll { reply, .. } => reply.send(Ok(Vec::new())).unwrap(),
            Call::ListRecoveryPoints { filter, reply, .. } => {
                note(format!("points {:?}", filter.limit));
                let point = |id: &str, level: &str| RecoveryPoint {
                    id: id.into(),
                    time: NOW,
                    size: 2048,
                    base: level == "base",
                    level: level.into(),
                    damaged: level == "base",
                    ..Default::default()
                };
                let mut points = vec![point("8", "hour"), point("7", "base")];
                if filter.forgotten {
                    points.push(RecoveryPoint { forgotten: true, pinned: true, ..point("6", "entry") });
                }
                reply.send(Ok(points)).unwrap();
            }
            Call::ListRemote { store, reply } => {
                let archive =
                    RemoteArchive { id: format!("archive-in-{store}"), size: 5, ..Default::default() };
                reply.send(Ok(vec![archive])).unwrap();
            }
            Call::RestoreTo { file_name, options, job, reply, .. } => {
                note(format!("restore {file_name} {options:?}"));
                let id = begin(&server, &job, "restore");
                reply.send(Ok(job.id)).unwrap();
                let outcome = match options.target {
                    RestoreTarget::Point(_) => {
                        JobOutcome::Failed(Error::Corrupt("page 3".into()), Details::new())
                    }
                    _ => JobOutcome::Done(Details::new()),
                };
                server.job_completed(&id, outcome, NOW);
            }
            Call::VaultAcknowledge { vault, reply } => {
                note(format!("acknowledge {vault}"));
                reply.send(Ok(())).unwrap();
            }
            Call::VaultFreeze { vault, until, job, reply } => {
                note(format!("freeze {vault} {}", until.is_some_and(|until| until > NOW)));
                let id = begin(&server, &job, "freeze");
                reply.send(Ok(job.id)).unwrap();
                server.job_completed(&id, JobOutcome::Done(Details::new()), NOW);
            }
            Call::Unlock { secret, trust, job, reply, .. } => {
                let said: Vec<&str> = std::iter::once(secret.as_str().unwrap())
                    .chain(trust.iter().map(String::as_str))
                    .collect();
                note(format!("unlock {}", said.join(" trusting ")));
                let id = begin(&server, &job, "unlock");
                reply.send(Ok(job.id)).unwrap();
                let outcome = if secret.as_bytes() == b"right" {
                    JobOutcome::Done(Details::new())
                } else {
                    let details = Details::from([("attempts-left".to_owned(), 3_u32.into())]);
                    JobOutcome::Failed(Error::WrongSecret("not this one".into()), details)
                };
                server.job_completed(&id, outcome, NOW);
            }
            Call::EnableWithGeneratedKey { key_out, job, reply, .. } => {
                begin(&server, &job, "enable");
                reply.send(key_out.write(DIGITS).map(|()| job.id)).unwrap();
            }
            Call::ConfirmKey { key, reply, .. } => {
                let typed: String = key.as_str().unwrap().chars().filter(char::is_ascii_hexdigit).collect();
                let right = typed == DIGITS;
                note(format!("confirm {right}"));
                let wrong = || Error::WrongSecret("group 16 is not the same".into());
                reply.send(if right { Ok(()) } else { Err(wrong()) }).unwrap();
            }
            Call::ChangePassword { current, new, job, reply, .. } => {
                note(format!("change {} {}", current.as_str().unwrap(), new.as_str().unwrap()));
                let id = begin(&server, &job, "change");
                reply.send(Ok(job.id)).unwrap();
                server.job_completed(&id, JobOutcome::Done(Details::new()), NOW);
            }
            Call::StoreTest { job, reply, .. } => {
                drop(job);
                reply.send(Err(Error::Unsupported("this is a fake".into()))).unwrap();
            }
            Call::Verify { job, depth, reply, .. } => {
                let id = begin(&server, &job, "verify");
                reply.send(Ok(job.id)).unwrap();
                match depth {
                    VerifyDepth::Manifest => {
                        let damage = vec![("ab/log/7", "missing", "a recovery point", vec!["8", "7"])];
                        let damage = OwnedValue::try_from(Value::from(damage)).unwrap();
                        let details = Details::from([("damage".to_owned(), damage)]);
                        let error = Error::ObjectMissing("missing object: ab/log/7".into());
                        server.job_completed(&id, JobOutcome::Failed(error, details), NOW);
                    }
                    VerifyDepth::Restore => {
                        server.update_database("notes", |state, _| {
                            let text = |text: &'static str| Value::from(text).try_to_owned().unwrap();
                            state.last_drill_result = Details::from([
                                ("time".to_owned(), NOW.into()),
                                ("bytes".to_owned(), 2_097_152_u64.into()),
                                ("tables".to_owned(), 3_u32.into()),
                                ("rows".to_owned(), 12_345_u64.into()),
                                ("verdict".to_owned(), text("whole")),
                            ]);
                        });
                        server.job_completed(&id, JobOutcome::Done(Details::new()), NOW);
                    }
                    // stays running until cancelled
                    VerifyDepth::Chunks => {}
                }
            }
            Call::Pin { database, point, pinned, reply } => {
                note(format!("pin {database} {point} {pinned}"));
                let none = || Error::NotFound(format!("there is no point `{point}`"));
                reply.send(if point == "9" { Err(none()) } else { Ok(()) }).unwrap();
            }
            Call::Prune { dry_run, job, reply, .. } => {
                note(format!("prune {dry_run}"));
                let id = begin(&server, &job, "prune");
                reply.send(Ok(job.id)).unwrap();
                let points: Vec<(String, u64, u64)> = vec![("6".into(), 2048, NOW), ("3".into(), 1024, 0)];
                let points = zbus::zvariant::Value::from(points).try_into_owned().unwrap();
                let details = Details::from([
                    ("deleted-points".to_owned(), 1_u32.into()),
                    ("deleted-objects".to_owned(), 2_u32.into()),
                    ("deleted-bytes".to_owned(), 4096_u64.into()),
                    ("waiting-objects".to_owned(), 1_u32.into()),
                    ("waiting-bytes".to_owned(), 1024_u64.into()),
                    ("points".to_owned(), points),
                ]);
                server.job_completed(&id, JobOutcome::Done(details), NOW);
            }
            Call::JobCancel { job, reply } => {
                note("cancel".into());
                server.job_completed(&job, JobOutcome::Cancelled, NOW);
                reply.send(Ok(())).unwrap();
            }
            other => panic!("the fake was not taught {other:?}"),
        }
    }
}
