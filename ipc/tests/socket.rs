//! Everything over a socket pair, with a fake daemon behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use chatkeep_ipc::names::{ROOT, database_path};
use chatkeep_ipc::proxy::{
    self, DatabaseProxy, EncryptionProxy, JobProxy, ManagerProxy, Options, StoreProxy, VaultProxy,
};
use chatkeep_ipc::{Details, Error, JobOutcome, JobState, ServeError, Settings, StoreState};
use common::{DIGITS, client, eventually, secret, start};
use futures_util::StreamExt as _;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{Fd, Value};

async fn database(connection: &Connection) -> DatabaseProxy<'_> {
    let builder = DatabaseProxy::builder(connection).path(database_path("notes")).unwrap();
    builder.cache_properties(CacheProperties::No).build().await.unwrap()
}

async fn encryption(connection: &Connection) -> EncryptionProxy<'_> {
    let builder = EncryptionProxy::builder(connection).path(database_path("notes")).unwrap();
    builder.cache_properties(CacheProperties::No).build().await.unwrap()
}

async fn job<'a>(connection: &'a Connection, path: &'a str) -> JobProxy<'a> {
    let builder = JobProxy::builder(connection).path(path).unwrap();
    builder.cache_properties(CacheProperties::No).build().await.unwrap()
}

fn options() -> Options<'static> {
    Options::new()
}

#[tokio::test]
async fn one_call_shows_every_object() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let objects = proxy::object_manager(&connection).await.unwrap().get_managed_objects().await.unwrap();
    let mut paths: Vec<_> = objects
        .iter()
        .filter(|(path, i)| !i.is_empty() && path.as_str() != ROOT)
        .map(|(path, _)| path.as_str())
        .collect();
    paths.sort_unstable();
    let expected: Vec<String> =
        ["database/notes", "store/home", "vault/one"].iter().map(|end| format!("{ROOT}/{end}")).collect();
    assert_eq!(paths, expected);
    let manager = ManagerProxy::new(&connection).await.unwrap();
    assert_eq!(manager.version().await.unwrap(), "0.0.0-fake");
    assert_eq!(manager.api_version().await.unwrap(), 1);
}

#[tokio::test]
async fn a_registered_database_is_there_when_the_answer_comes() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let manager = ManagerProxy::new(&connection).await.unwrap();
    let file = tempfile::tempfile().unwrap();
    let dir: OwnedFd = File::open("/").unwrap().into();
    let given = Options::from([("store", "home".into()), ("attachments", Value::from(vec![Fd::from(dir)]))]);
    let path = manager.register_database("chats", Fd::from(OwnedFd::from(file)), given).await.unwrap();
    assert_eq!(path, database_path("chats"));
    let builder = DatabaseProxy::builder(&connection).path(&path).unwrap();
    assert_eq!(builder.build().await.unwrap().id().await.unwrap(), "chats");
    assert_eq!(log.lines(), ["register chats 0 Some(\"home\") 1"]);

    manager.unregister(&path, options()).await.unwrap();
    let again =
        manager.unregister(&zbus::zvariant::ObjectPath::from_static_str_unchecked("/"), options()).await;
    assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
}

#[tokio::test]
async fn objects_come_and_go_with_signals() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let manager = proxy::object_manager(&connection).await.unwrap();
    let mut added = manager.receive_interfaces_added().await.unwrap();
    let mut removed = manager.receive_interfaces_removed().await.unwrap();
    server.upsert_store("away", StoreState::default());
    let signal = added.next().await.unwrap();
    assert_eq!(signal.args().unwrap().object_path().as_str(), format!("{ROOT}/store/away"));
    server.remove_store("away");
    let signal = removed.next().await.unwrap();
    assert_eq!(signal.args().unwrap().object_path().as_str(), format!("{ROOT}/store/away"));
}

#[tokio::test]
async fn unknown_options_are_refused_and_errors_have_names() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let notes = database(&connection).await;
    let typo = notes.backup_now(Options::from([("jobtoken", "x".into())])).await;
    assert_eq!(typo, Err(Error::InvalidArgument("there is no option jobtoken".into())));
    assert!(log.lines().is_empty());
    assert_eq!(notes.prune(options()).await, Err(Error::Unsupported("this is a fake".into())));
    let both = Options::from([("at", Value::from(1_u64)), ("point", "7".into())]);
    assert!(matches!(notes.restore_in_place(both).await, Err(Error::InvalidArgument(_))));
    let depth = notes.verify(Options::from([("depth", "deep".into())])).await;
    assert!(matches!(depth, Err(Error::InvalidArgument(_))));
}

#[tokio::test]
async fn a_call_without_an_answer_is_an_internal_error() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let manager = ManagerProxy::new(&connection).await.unwrap();
    assert!(matches!(manager.resume(options()).await, Err(Error::Internal(_))));
}

#[tokio::test]
async fn a_password_arrives_through_the_pipe() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let given = Options::from([("vault", "one".into())]);
    let path =
        encryption(&connection).await.enable_with_password(secret("hunter2\n").into(), given).await.unwrap();
    assert_eq!(log.lines(), ["password hunter2 Some(\"one\")"]);
    let job = job(&connection, &path).await;
    eventually_done(&job).await;
    assert_eq!(encryption(&connection).await.mode().await.unwrap(), "password");
}

async fn eventually_done(job: &JobProxy<'_>) {
    for _ in 0..500 {
        if matches!(job.state().await.unwrap().as_str(), "done" | "failed" | "cancelled") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the job never ended");
}

#[tokio::test]
async fn a_memfd_is_refused_unread() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let memfd = rustix::fs::memfd_create("pw", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(memfd.try_clone().unwrap());
    file.write_all(b"hunter2").unwrap();
    let answer = encryption(&connection).await.enable_with_password(memfd.into(), options()).await;
    assert!(matches!(answer, Err(Error::InvalidSecret(_))), "{answer:?}");
    assert!(log.lines().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_pipe_holds_up_nobody() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let begun = Instant::now();
    let waiting = {
        let connection = connection.clone();
        tokio::spawn(async move {
            let encryption = encryption(&connection).await;
            encryption.enable_with_password(read.into(), options()).await
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    // reads of the same object, and of all objects
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(encryption(&connection).await.state().await.unwrap(), "off");
        proxy::object_manager(&connection).await.unwrap().get_managed_objects().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    assert!(!waiting.is_finished());
    // the silent pipe is given up after five seconds
    let answer = waiting.await.unwrap();
    assert!(matches!(answer, Err(Error::SecretTimeout(_))), "{answer:?}");
    assert!((4..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    drop(write);
}

#[tokio::test]
async fn a_generated_key_comes_out_of_a_pipe() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let encryption = encryption(&connection).await;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    encryption.enable_with_generated_key(write.into(), options()).await.unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("{DIGITS}\n"));
    let wrong = encryption.confirm_key(secret("0000").into(), options()).await;
    assert_eq!(wrong, Err(Error::WrongSecret("group 3 of the digits is not the same".into())));
    encryption.confirm_key(secret(DIGITS).into(), options()).await.unwrap();

    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    encryption.rotate_key(Options::from([("key-out", Value::from(Fd::from(write)))])).await.unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("{DIGITS}\n"));
    assert!(matches!(encryption.rotate_key(options()).await, Err(Error::InvalidArgument(_))));

    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let refused =
        encryption.show_key(secret("hunter3").into(), Fd::from(write.try_clone().unwrap()), options()).await;
    assert!(matches!(refused, Err(Error::WrongSecret(_))), "{refused:?}");
    encryption.show_key(secret("hunter2 hunter2").into(), Fd::from(write), options()).await.unwrap();
    let mut shown = String::new();
    File::from(read).read_to_string(&mut shown).unwrap();
    assert_eq!(shown.trim_end(), DIGITS);
}

#[tokio::test]
async fn a_wrong_password_says_how_many_attempts_are_left() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let builder = VaultProxy::builder(&connection).path(format!("{ROOT}/vault/one")).unwrap();
    let vault = builder.build().await.unwrap();
    let mut failed = vault.receive_attempt_failed().await.unwrap();
    let path = encryption(&connection).await.unlock(secret("wrong").into(), options()).await.unwrap();
    assert_eq!(*failed.next().await.unwrap().args().unwrap().left(), 4);
    let job = job(&connection, &path).await;
    eventually_done(&job).await;
    assert_eq!(job.error().await.unwrap(), ("WrongSecret".to_owned(), "wrong".to_owned()));
    let result = job.result().await.unwrap();
    assert_eq!(u32::try_from(&result["attempts-left"]), Ok(4));
}

#[tokio::test]
async fn points_and_restores_carry_their_options() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let notes = database(&connection).await;
    let points = notes.list_recovery_points(Options::from([("limit", Value::from(5_u32))])).await.unwrap();
    assert_eq!(u64::try_from(&points[0]["time"]), Ok(70));
    assert_eq!(bool::try_from(&points[0]["base"]), Ok(true));

    let dir = tempfile::tempdir().unwrap();
    let fd: OwnedFd = File::open(dir.path()).unwrap().into();
    let given = Options::from([("point", "7".into()), ("overwrite", true.into())]);
    notes.restore_to(fd.into(), "back.db", given).await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("back.db")).unwrap(), b"restored by a fake");
    let fd: OwnedFd = File::open(dir.path()).unwrap().into();
    let outside = notes.restore_to(fd.into(), "../back.db", options()).await;
    assert!(matches!(outside, Err(Error::InvalidArgument(_))));
    assert_eq!(
        log.lines(),
        [
            "points PointFilter { since: None, until: None, limit: Some(5), forgotten: false }",
            "restore back.db RestoreOptions { target: Point(\"7\"), overwrite: true, into: false }",
        ]
    );
}

#[tokio::test]
async fn a_token_fixes_the_path_and_makes_the_call_repeatable() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let notes = database(&connection).await;
    let token = || Options::from([("job-token", Value::from("cli_12345678"))]);
    let path = notes.backup_now(token()).await.unwrap();
    assert_eq!(path.as_str(), format!("{ROOT}/job/cli_12345678"));
    assert_eq!(notes.backup_now(token()).await.unwrap(), path);
    assert_eq!(log.lines(), ["backup notes"]);
    let numbered = notes.backup_now(options()).await.unwrap();
    assert_ne!(numbered, path);
}

#[tokio::test]
async fn progress_is_signalled_four_times_a_second_and_the_end_at_once() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let id = server.new_job_id();
    let running = JobState { state: "running".into(), operation: "backup".into(), ..Default::default() };
    server.upsert_job(&id, running.clone());
    let path = id.path();
    let builder = zbus::fdo::PropertiesProxy::builder(&connection).path(&path).unwrap();
    let properties = builder.destination(chatkeep_ipc::names::BUS_NAME).unwrap().build().await.unwrap();
    let mut changes = properties.receive_properties_changed().await.unwrap();
    let job = job(&connection, &path).await;
    let mut completed = job.receive_completed().await.unwrap();
    let manager = ManagerProxy::new(&connection).await.unwrap();
    let mut finished = manager.receive_job_finished().await.unwrap();
    // 600 ms of steady progress
    for done in 1..=60_u64 {
        server.update_job(&id, |job| {
            job.bytes_done = done;
            job.progress = done as f64 / 60.0;
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.job_completed(&id, JobOutcome::Done(Details::new()), 42);
    let begun = Instant::now();
    let end = completed.next().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(200), "the end does not wait: {:?}", begun.elapsed());
    assert_eq!(end.args().unwrap().state(), "done");
    assert_eq!(finished.next().await.unwrap().args().unwrap().operation(), "backup");
    assert_eq!(job.finished().await.unwrap(), 42);
    let mut signals = Vec::new();
    while let Ok(Some(signal)) = tokio::time::timeout(Duration::from_millis(300), changes.next()).await {
        let args = signal.args().unwrap();
        let names: Vec<String> = args.changed_properties().keys().map(ToString::to_string).collect();
        signals.push(names);
    }
    // the first change at once, one for each quarter of a second, the end; a slow machine has fewer per time
    assert!((2..=6).contains(&signals.len()), "{signals:?}");
    assert!(
        signals[0].iter().any(|name| name == "BytesDone") && signals[0].iter().any(|name| name == "Progress")
    );
    assert!(signals.last().unwrap().iter().any(|name| name == "State"));
}

#[tokio::test]
async fn a_job_is_cancelled_and_stays_to_be_looked_at() {
    let (server, log) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let path = database(&connection).await.backup_now(options()).await.unwrap();
    let job = job(&connection, &path).await;
    job.cancel(options()).await.unwrap();
    assert_eq!(job.state().await.unwrap(), "cancelled");
    job.cancel(options()).await.unwrap();
    assert_eq!(log.lines(), ["backup notes", "cancel", "cancel"]);
}

#[tokio::test]
async fn the_schedule_is_written_through_the_daemon() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let notes = database(&connection).await;
    notes.set_schedule("hourly").await.unwrap();
    assert_eq!(notes.schedule().await.unwrap(), "hourly");
    assert!(notes.set_schedule("").await.is_err());
}

#[tokio::test]
async fn stores_answer_too() {
    let (server, _) = start(Settings::default());
    let (connection, _peer) = client(&server).await;
    let builder = StoreProxy::builder(&connection).path(format!("{ROOT}/store/home")).unwrap();
    let store = builder.build().await.unwrap();
    assert_eq!(store.kind().await.unwrap(), "file");
    assert!(matches!(store.test(options()).await, Err(Error::Unsupported(_))));
}

#[tokio::test]
async fn the_control_socket_is_private_and_replaces_a_stale_one() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("chatkeep/control.sock");
    let (server, _) = start(Settings::default());
    let socket = server.serve_control_socket(&path).await.unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path), 0o600);
    let connection = proxy::connect_socket(&path).await.unwrap();
    assert_eq!(ManagerProxy::new(&connection).await.unwrap().version().await.unwrap(), "0.0.0-fake");

    let second = server.serve_control_socket(&path).await;
    assert!(matches!(second, Err(ServeError::SocketTaken)), "{second:?}");
    drop(socket);
    assert!(!path.exists());
    tokio::time::timeout(Duration::from_secs(5), connection.closed())
        .await
        .expect("its peers are disconnected");

    // what a killed service leaves behind
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _socket = server.serve_control_socket(&path).await.unwrap();
    let _client = proxy::connect_socket(&path).await.unwrap();

    std::fs::set_permissions(path.parent().unwrap(), std::fs::Permissions::from_mode(0o750)).unwrap();
    let open = server.serve_control_socket(&path).await;
    assert!(matches!(open, Err(ServeError::NotPrivate { .. })), "{open:?}");
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_up_nobody() {
    let (server, _) = start(Settings::default());
    // a handshake by hand, and then silence; 2000 new objects are more than its socket takes
    let (mut silent, theirs) = UnixStream::pair().unwrap();
    silent.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").await.unwrap();
    let _peer = server.serve_peer(theirs).await.unwrap();
    let (connection, _other) = client(&server).await;
    for number in 0..2000_u32 {
        server.upsert_store(&format!("store{number}"), StoreState::default());
    }
    let manager = proxy::object_manager(&connection).await.unwrap();
    let begun = Instant::now();
    while manager.get_managed_objects().await.unwrap().len() < 2000 {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert!(silent.try_write(b"").is_ok());
}

#[tokio::test]
async fn gone_clients_are_forgotten() {
    let (server, _) = start(Settings::default());
    let (connection, peer) = client(&server).await;
    drop(connection);
    tokio::time::timeout(Duration::from_secs(5), peer.closed())
        .await
        .expect("the end of the stream is noticed");
    let mut rounds = 0;
    eventually("the server goes on", || {
        rounds += 1;
        server.update_manager(|state| state.next_wake = rounds);
        rounds > 3
    })
    .await;
}
