//! Real processes behind the socket pass the suite that every store passes.

use std::sync::Arc;

use chatkeep_store::conformance::{Extent, assert_all_passed, run};
use chatkeep_store_host::PluginStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_the_memory_of_a_plugin_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(crate::support::memory_store(folder.path()));
    store.open().await.unwrap();
    assert_all_passed(&run(store.clone(), "conformance", Extent::FULL).await);
    let counters = store.control().counters();
    assert!(counters.puts > 1000 && counters.bytes_up > 64 << 20, "{counters:?}");
    assert!(counters.gets > 100 && counters.heads > 4 && counters.lists > 10 && counters.deletes > 1000);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_behind_a_plugin_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("folder://{}/objects", folder.path().display());
    let settings = crate::support::settings(crate::support::memory_plugin(), &url, folder.path());
    let store = Arc::new(PluginStore::new(settings).unwrap());
    store.open().await.unwrap();
    assert_all_passed(
        &run(store.clone(), "conformance", Extent { object_len: 64 << 20, ..Extent::QUICK }).await,
    );
    store.close().await;
}
