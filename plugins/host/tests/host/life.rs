//! Real plugin processes: started when they are needed, stopped when they are not, not started for ever.

use std::sync::Arc;
use std::time::Duration;

use chatkeep_store::{ErrorKind, PutCondition, Store as _, StoreError, StoreKey};
use chatkeep_store_host::{CrashPolicy, Life, PluginStore};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::{Said, memory_plugin, memory_store, script, settings};

fn key() -> StoreKey {
    StoreKey::try_from("a/log/1").unwrap()
}

fn pid_of(store: &PluginStore) -> Option<Pid> {
    let pid = store.state().running?.0?;
    Pid::from_raw(pid.cast_signed())
}

/// Waits as long as it takes, because a busy machine is no failure.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_mins(1), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("in a minute it did not happen that {what}"));
}

fn causes(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

#[tokio::test]
async fn nothing_runs_before_the_first_call_and_one_process_serves_all_that_follow() {
    let folder = tempfile::tempdir().unwrap();
    let store = memory_store(folder.path());
    assert_eq!(store.state().running, None);
    store.put(&key(), "x".into(), PutCondition::Overwrite).await.unwrap();
    let first = pid_of(&store).unwrap();
    assert_eq!(store.get(&key(), None).await.unwrap(), "x");
    assert_eq!(pid_of(&store), Some(first));
    assert_eq!(store.state().plugin.unwrap().0, "memory-plugin");
    store.close().await;
    assert_eq!(store.state().running, None);
    assert!(test_kill_process(first).is_err(), "the process is still there");
    assert_eq!(store.head(&key()).await.unwrap_err().kind(), ErrorKind::Offline);
}

#[tokio::test]
async fn an_idle_plugin_is_stopped_and_started_again_by_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(memory_plugin(), "memory:", folder.path());
    settings.life.idle = Duration::from_millis(50);
    let store = PluginStore::new(settings).unwrap();
    store.put(&key(), "x".into(), PutCondition::Overwrite).await.unwrap();
    until("the idle plugin is stopped", || store.state().running.is_none()).await;
    // another process, so another memory
    assert_eq!(store.get(&key(), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!store.state().off);
}

#[tokio::test]
async fn a_plugin_that_was_killed_is_started_again_and_its_call_is_transient() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(memory_plugin(), "memory:", folder.path());
    settings.life.crashes.first_wait = Duration::from_millis(1);
    let store = Arc::new(PluginStore::new(settings).unwrap());
    store.open().await.unwrap();
    store.control().set_limit(Some(64 << 10));
    let put = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.put(&key(), vec![7; 4 << 20].into(), PutCondition::Overwrite).await }
    });
    until("the upload runs", || store.control().counters().bytes_up > 0).await;
    kill_process(pid_of(&store).unwrap(), Signal::KILL).unwrap();
    assert_eq!(put.await.unwrap().unwrap_err().kind(), ErrorKind::Transient);
    until("the end is noticed", || store.state().running.is_none()).await;
    assert_eq!(store.get(&key(), None).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_fifth_crash_switches_a_plugin_off_until_somebody_resets_it() {
    let folder = tempfile::tempdir().unwrap();
    let crash = script(folder.path(), "crash", "#!/bin/sh\necho starting >&2\nexit 3\n");
    let said = Said::default();
    let mut settings = settings(crash, "x:", folder.path());
    settings.launcher = said.launcher();
    settings.life.crashes = CrashPolicy { first_wait: Duration::from_millis(1), ..CrashPolicy::default() };
    let store = PluginStore::new(settings).unwrap();
    for _ in 0..5 {
        let error = store.head(&key()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
    until("the crash is noticed", || store.state().off).await;
    for _ in 0..3 {
        let error = store.head(&key()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let words = error.to_string();
        assert!(words.contains("store `test` is off") && words.contains("5 times"), "{words}");
        assert!(words.ends_with("exit status 3 at last"), "{words}");
    }
    until("five starts are told", || said.lines().len() == 5).await;
    store.reset();
    assert_eq!(store.head(&key()).await.unwrap_err().kind(), ErrorKind::Transient);
}

#[tokio::test]
async fn a_plugin_that_leaves_by_itself_is_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = memory_store(folder.path());
    for _ in 0..7 {
        store.head(&key()).await.unwrap_err();
        kill_process(pid_of(&store).unwrap(), Signal::TERM).unwrap();
        until("it left", || store.state().running.is_none()).await;
    }
    assert!(!store.state().off);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let no_program = script(folder.path(), "no-program", "#!/no/such/interpreter\n");
    let mut settings = settings(no_program, "x:", folder.path());
    settings.life.crashes.first_wait = Duration::from_millis(1);
    let store = PluginStore::new(settings).unwrap();
    let error = store.head(&key()).await.unwrap_err();
    assert!(error.is_temporary(), "{}", causes(&error));
}

#[tokio::test]
async fn a_plugin_that_ignores_the_signal_to_end_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let text = format!(
        "#!/bin/sh\ntrap '' TERM\nsleep 1000 &\necho $$ $! > {0}.new\nmv {0}.new {0}\nwait\nsleep 1000\n",
        pids.display()
    );
    let mut settings = settings(script(folder.path(), "stubborn", &text), "x:", folder.path());
    settings.life.stop = Duration::from_millis(100);
    let store = Arc::new(PluginStore::new(settings).unwrap());
    let call = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.head(&key()).await }
    });
    until("it runs", || pids.exists()).await;
    store.stop().await;
    assert_eq!(call.await.unwrap().unwrap_err().kind(), ErrorKind::Transient);
    let pids = std::fs::read_to_string(&pids).unwrap();
    for pid in pids.split_whitespace() {
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        until("both are gone", || is_gone(pid)).await;
    }
}

fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

#[tokio::test]
async fn dropping_a_store_ends_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = memory_store(folder.path());
    store.open().await.unwrap();
    let pid = pid_of(&store).unwrap();
    drop(store);
    until("it is gone", || is_gone(pid)).await;
    assert!(!folder.path().join("sockets/test.sock").exists());
}

#[tokio::test]
async fn a_plugin_gets_the_environment_it_was_given_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let said = Said::default();
    let tell =
        script(folder.path(), "tell", "#!/bin/sh\nenv >&2\necho \"in $(pwd) with $# arguments\" >&2\n");
    let mut settings = settings(tell, "x:", folder.path());
    settings.launcher = said.launcher();
    settings.launch.environment = vec![("LANG".to_owned(), "C".to_owned())];
    let store = PluginStore::new(settings).unwrap();
    store.head(&key()).await.unwrap_err();
    until("it told", || said.lines().iter().any(|line| line.starts_with("in "))).await;
    let mut lines = said.lines();
    // a shell sets these itself
    lines.retain(|line| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|start| line.starts_with(start)));
    assert_eq!(lines, ["LANG=C", "in / with 0 arguments"]);
}

#[tokio::test]
async fn many_calls_at_once_start_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(memory_store(folder.path()));
    let calls = (0..50).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.head(&key()).await.unwrap_err().kind() })
    });
    for call in futures_util::future::join_all(calls).await {
        assert_eq!(call.unwrap(), ErrorKind::NotFound);
    }
    assert_eq!(store.control().counters().others, 1, "it was opened once");
    assert_eq!(Life::default().idle, Duration::from_mins(10));
}

const HOST_FOLDER: &str = "CHATKEEP_TEST_HOST_FOLDER";

/// The host that the next test kills: this program again, with a variable that says where.
#[tokio::test]
async fn a_host_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(HOST_FOLDER).map(std::path::PathBuf::from) else { return };
    let pid = folder.join("pid");
    let text = format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 1000\n", pid.display());
    let store = PluginStore::new(settings(script(&folder, "sleeper", &text), "x:", &folder)).unwrap();
    let _ = store.open().await;
}

#[tokio::test]
async fn a_plugin_dies_with_its_host_also_one_that_takes_no_care_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::a_host_in_a_process_of_its_own"])
        .env(HOST_FOLDER, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let file = folder.path().join("pid");
    until("the plugin runs", || file.exists()).await;
    host.kill().unwrap();
    host.wait().unwrap();
    let pid = std::fs::read_to_string(&file).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    until("the plugin is gone", || is_gone(pid)).await;
}

/// With the plugin in Python, which ends at once when it is asked to: ours would end its calls first.
#[tokio::test]
async fn a_plugin_in_the_middle_of_a_call_is_not_idle() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("folder://{}/objects", folder.path().display());
    let mut settings = settings(crate::support::example(), &url, folder.path());
    settings.life.idle = Duration::from_millis(20);
    let store = PluginStore::new(settings).unwrap();
    store.control().set_limit(Some(1 << 20));
    // 512 KiB at that limit take many times as long as it may be idle
    store.put(&key(), vec![7; 512 << 10].into(), PutCondition::Overwrite).await.unwrap();
}
