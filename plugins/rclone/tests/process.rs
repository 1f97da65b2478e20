//! The rclone process: which one is taken, who sees its secrets, and how it ends.
#![allow(clippy::unwrap_used, dead_code, reason = "tests; not each uses all of what they share")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chatkeep_store::ErrorKind::*;
use chatkeep_store::PutCondition::CreateIfAbsent;
use chatkeep_store_rig::rclone;
use common::proxy::{Fault, Proxy};
use common::{World, files, key, names, open, refused, told};
use rustix::process::{Pid, Signal, kill_process};

/// What Debian 12 has; a stand-in with its answer where it is not installed.
#[tokio::test(flavor = "multi_thread")]
async fn an_rclone_with_a_known_hole_is_refused() {
    let world = World::with_disk();
    let old = old_rclone(&world);
    let mut opening = world.disk();
    opening.options.insert("program".to_owned(), old.to_str().unwrap().to_owned());
    let error = refused(&opening).await;
    assert_eq!(error.kind(), Invalid);
    let text = told(&error);
    for part in ["1.60.1", "1.74.3", "CVE-2026-49980", "https://rclone.org/downloads/", "`program`"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn old_rclone(world: &World) -> PathBuf {
    let of_debian = PathBuf::from("/usr/bin/rclone");
    let output = Command::new(&of_debian).arg("version").output();
    if output.is_ok_and(|output| output.stdout.starts_with(b"rclone v1.60.1")) {
        return of_debian;
    }
    script(world, "echo 'rclone v1.60.1-DEV'")
}

fn script(world: &World, line: &str) -> PathBuf {
    let path = world.path("program");
    std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_rclone_is_refused() {
    let world = World::with_disk();
    for (program, reason) in [
        ("/nowhere/rclone", "cannot run"),
        ("/bin/true", "what version"),
        ("./rclone", "absolute path"),
        ("", "absolute path"),
    ] {
        let mut opening = world.disk();
        opening.options.insert("program".to_owned(), program.to_owned());
        let error = refused(&opening).await;
        assert!(error.kind() == Invalid && told(&error).contains(reason), "{program}: {}", told(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_is_not_configured_is_named() {
    let world = World::with_disk();
    let error = refused(&world.opening("rclone:nas:backups")).await;
    assert!(error.kind() == Invalid && told(&error).contains("no remote `nas`"), "{}", told(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hides_a_part_that_is_away_is_refused() {
    let mut world = World::with_disk();
    world.remote("both", &[("type", "union"), ("upstreams", "/tmp/a /tmp/b")]);
    world.remote("safe", &[("type", "alias"), ("remote", "both:x")]);
    for url in ["rclone:both:x", "rclone:safe:"] {
        let error = refused(&world.opening(url)).await;
        assert!(error.kind() == Invalid && told(&error).contains("union"), "{}", told(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_configuration_needs_its_password_which_nobody_sees() {
    let world = World::with_disk();
    encrypt(&world.config(), "hunter2");
    let missing = refused(&world.disk()).await;
    assert!(
        missing.kind() == Auth && told(&missing).contains("`config_password` is missing"),
        "{}",
        told(&missing)
    );
    let mut opening = world.disk();
    opening.secrets.set("config_password", "hunter3".to_owned().into());
    let wrong = refused(&opening).await;
    assert!(wrong.kind() == Auth && told(&wrong).contains("`config_password` is wrong"), "{}", told(&wrong));
    assert!(!told(&wrong).contains("hunter"), "{}", told(&wrong));
    opening.secrets.set("config_password", "hunter2".to_owned().into());
    let store = open(&opening).await;
    store.put(&key("a"), "hello".into(), CreateIfAbsent).await.unwrap();
    let seen = command_lines();
    assert!(
        seen.iter().any(|line| line.contains(world.config().to_str().unwrap())),
        "the child is not found"
    );
    assert!(!seen.iter().any(|line| line.contains("hunter2")), "{seen:?}");
}

fn encrypt(config: &Path, password: &str) {
    let command = format!("echo {password}");
    let status = Command::new(rclone::program())
        .args(["config", "encryption", "set", "--config"])
        .arg(config)
        .args(["--password-command", &command])
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    assert!(!std::fs::read_to_string(config).unwrap().contains("[disk]"));
}

/// As everybody on the machine can see them, the number of the process in front.
fn command_lines() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let line = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        entry.file_name().to_str()?.parse::<i32>().ok().map(|pid| format!("{pid} {line}"))
    };
    processes.filter_map(line).collect()
}

/// The rclones, watchers left out, that use this configuration.
fn children(world: &World) -> Vec<Pid> {
    let config = world.config();
    let ours = |line: &String| line.contains(" rcd ") && line.contains(config.to_str().unwrap());
    let rclone = |line: &String| !line.contains(" sh -c ");
    let pid = |line: String| Pid::from_raw(line.split(' ').next()?.parse().ok()?);
    command_lines().into_iter().filter(ours).filter(rclone).filter_map(pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rclone_that_was_killed_is_started_again() {
    let world = World::with_disk();
    let store = open(&world.disk()).await;
    store.put(&key("a"), "hello".into(), CreateIfAbsent).await.unwrap();
    for _ in 0..3 {
        let [child] = children(&world)[..] else { panic!("not one child") };
        kill_process(child, Signal::KILL).unwrap();
        // at once, when it may not be known yet that it is dead
        match store.get(&key("a"), None).await {
            Ok(body) => assert_eq!(body, "hello"),
            Err(error) => assert_eq!(error.kind(), Transient, "{}", told(&error)),
        }
        assert_eq!(store.get(&key("a"), None).await.unwrap(), "hello");
    }
    assert_eq!(names(store.list("").await), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rclone_that_is_killed_in_a_put_leaves_no_half() {
    let mut world = World::new();
    let proxy = Proxy::start(&mut world).await;
    let store = open(&world.opening("rclone:dav:laptop")).await;
    proxy.set(&[("PUT", "", Fault::Wait(1500))]);
    let name = key("a/log/1");
    let (put, ()) = tokio::join!(store.put(&name, "hello".into(), CreateIfAbsent), async {
        while proxy.seen("PUT").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let [child] = children(&world)[..] else { panic!("not one child") };
        kill_process(child, Signal::KILL).unwrap();
    });
    assert_eq!(put.unwrap_err().kind(), Transient);
    // the server may still take what it was sent: under a name that no object has
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.set(&[]);
    assert_eq!(names(store.list("").await), [""; 0]);
    assert_eq!(store.get(&name, None).await.unwrap_err().kind(), NotFound);
    store.put(&name, "hello".into(), CreateIfAbsent).await.unwrap();
    assert_eq!(names(store.list("").await), ["a/log/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_takes_its_rclone_along() {
    let world = World::with_disk();
    let store = open(&world.disk()).await;
    assert_eq!(children(&world).len(), 1);
    drop(store);
    all_gone(&world);
}

fn all_gone(world: &World) {
    let begin = Instant::now();
    let config = world.config();
    while command_lines().iter().any(|line| line.contains(" rcd ") && line.contains(config.to_str().unwrap()))
    {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", command_lines());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Run by the test below in a process of its own; by itself it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn holds_a_store_open_when_told_to() {
    let Some(folder) = std::env::var_os("CHATKEEP_TEST_FOLDER") else { return };
    let mut opening = chatkeep_store::Opening::of_url("rclone:disk:/");
    let config = Path::new(&folder).join("rclone.conf");
    opening.options.insert("program".to_owned(), rclone::program().to_str().unwrap().to_owned());
    opening.options.insert("config".to_owned(), config.to_str().unwrap().to_owned());
    opening.read_only = true;
    let _store = open(&opening).await;
    std::fs::write(Path::new(&folder).join("open"), "").unwrap();
    std::future::pending::<()>().await;
}

#[test]
fn a_plugin_that_is_killed_takes_its_rclone_and_its_files_along() {
    let world = World::with_disk();
    let temporary = world.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut plugin = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_store_open_when_told_to", "--nocapture"])
        .env("CHATKEEP_TEST_FOLDER", world.path(""))
        .env("TMPDIR", &temporary)
        .spawn()
        .unwrap();
    while !world.path("open").exists() {
        assert!(plugin.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(children(&world).len(), 1);
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 1);
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    all_gone(&world);
    assert_eq!(files(&temporary), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_at_the_remote_control() {
    let world = World::with_disk();
    let _store = open(&world.disk()).await;
    let socket = command_lines().into_iter().find_map(|line| {
        let mine = line.contains(world.config().to_str().unwrap());
        let socket = line.split_once("--rc-addr=unix://")?.1.split(' ').next()?.to_owned();
        mine.then_some(PathBuf::from(socket))
    });
    let socket = socket.unwrap();
    let mode = std::fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // and who gets into the folder has no password
    let answer = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "--unix-socket"])
        .arg(&socket)
        .arg("http://rclone/core/pid")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "401");
}
