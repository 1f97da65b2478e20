//! The public conformance kit, on plugins that pass and on such that do not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chatkeep_store::conformance::{Extent, Outcome, assert_all_passed};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{CreateGuarantee, Opening, Visibility};
use chatkeep_store_host::check::{Report, Subject, check_plugin, check_store, tap};
use zeroize::Zeroizing;

use crate::support::{example, launch, memory_plugin, script};

async fn check(program: PathBuf, opening: Opening) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let subject = Subject {
        launch: launch("checked", program),
        opening,
        folder: folder.path().join("sockets"),
        root: "check".to_owned(),
    };
    check_plugin(subject, Extent::QUICK).await.unwrap()
}

fn folder_url(folder: &Path) -> Opening {
    Opening::of_url(&format!("folder://{}/objects", folder.display()))
}

/// Names of the cases that failed.
fn failed(report: &Report) -> Vec<&'static str> {
    let failed = report.results.iter().filter(|result| matches!(result.outcome, Outcome::Failed(_)));
    failed.map(|result| result.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_python_passes_the_whole_kit() {
    let folder = tempfile::tempdir().unwrap();
    let mut opening = folder_url(folder.path());
    opening.secrets.set("token", Zeroizing::new("correct-horse-battery".to_owned()));
    let report = check(example(), opening).await;
    assert_all_passed(&report.results);
    assert_eq!(report.found.create, Some(CreateGuarantee::Atomic));
    assert_eq!(report.found.range, Some(false));
    let left = std::fs::read_dir(folder.path().join("objects/check")).unwrap();
    assert!(left.flatten().all(|entry| entry.file_type().unwrap().is_dir()), "objects are left");
}

#[test]
fn the_example_is_short_and_what_the_manual_shows() {
    let text = std::fs::read_to_string(example()).unwrap();
    assert!(text.lines().count() < 100, "{} lines", text.lines().count());
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    assert!(manual.contains(&format!("```python\n{text}```\n")), "docs/plugins.md shows another program");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_in_rust_pass_the_whole_kit() {
    let report = check(memory_plugin(), Opening::of_url("memory:")).await;
    assert_all_passed(&report.results);
    assert_eq!(report.found.range, Some(true));
    let folder = tempfile::tempdir().unwrap();
    let report = check(memory_plugin(), folder_url(folder.path())).await;
    assert_all_passed(&report.results);
    let text = tap(&report);
    assert!(
        text.starts_with("TAP version 13\n1..") && text.contains("# create: claimed atomic, found atomic")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_process_is_checked_for_what_it_claims() {
    let report = check_store(Arc::new(MemoryStore::new()), "check", Extent::QUICK).await;
    assert!(report.passed());
    assert_eq!(report.found.list_after_write, Some(Visibility::Strong));
}

/// The example with one line exchanged: the kit has to find it.
async fn spoiled(line: &str, by: &str) -> Vec<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(example()).unwrap();
    assert!(text.contains(line), "{line}");
    let program = script(folder.path(), "spoiled", &text.replace(line, by));
    let mut opening = folder_url(folder.path());
    opening.secrets.set("token", Zeroizing::new("correct-horse-battery".to_owned()));
    failed(&check(program, opening).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_does_wrong_is_found() {
    let found = spoiled("if len(body) < length:", "if False:").await;
    assert_eq!(found, [] as [&str; 0], "the digest catches it, too");

    let found = spoiled("!= digest:", "== '':").await;
    assert_eq!(found, ["a body with another digest is refused as corrupt"]);

    let found = spoiled("Plugin.root is None or not", "not").await;
    assert_eq!(found, ["a request before the store is open is refused as invalid"]);

    let found = spoiled("put = os.link if", "put = os.replace if").await;
    assert!(found.contains(&"no more is claimed than was found"), "{found:?}");

    let found = spoiled(
        "server.serve_forever()",
        "import signal; signal.signal(15, lambda *_: None); server.serve_forever()",
    )
    .await;
    assert_eq!(found, ["SIGTERM ends the process within 5 s, also in a put"]);

    let found = spoiled(
        "Plugin.root = urllib",
        "import sys; print(request['secrets'], file=sys.stderr); Plugin.root = urllib",
    )
    .await;
    assert_eq!(found, ["no secret is in the arguments, the environment or standard error"]);

    let found = spoiled("Plugin.root = urllib", "import subprocess; subprocess.Popen(['sleep', '100', *request['secrets'].values()]); Plugin.root = urllib").await;
    assert!(found.contains(&"no secret is in the arguments, the environment or standard error"), "{found:?}");

    let in_place = "with open(path, 'wb') as file:\n            file.write(body[:len(body) // 2]); file.flush(); import time; time.sleep(0.02)\n            file.write(body[len(body) // 2:])\n        self.answer(201)\n        return\n        with tempfile";
    let found = spoiled("with tempfile", in_place).await;
    assert!(found.contains(&"an object is whole or absent after kill -9 in its put"), "{found:?}");
}
