//! What the tests of the host share.

pub(crate) mod scripted;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chatkeep_store::Opening;
use chatkeep_store_host::{Launch, PluginStore, Settings, Spawn};

/// The program that `cargo test` builds of `examples/memory-plugin.rs`.
pub(crate) fn memory_plugin() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().join("../examples/memory-plugin");
    folder.canonicalize().expect("the example is built together with all tests of the crate")
}

/// The environment of a plugin.
pub(crate) fn environment() -> Vec<(String, String)> {
    vec![("PATH".to_owned(), std::env::var("PATH").unwrap())]
}

/// Starts `program` for a store of this name.
pub(crate) fn launch(store: &str, program: PathBuf) -> Launch {
    Launch { store: store.to_owned(), program, environment: environment(), network: true, paths: Vec::new() }
}

/// Settings for a real child process.
pub(crate) fn settings(program: PathBuf, url: &str, folder: &Path) -> Settings {
    let launch = launch("test", program);
    Settings::new(launch, Arc::new(Spawn::new()), Opening::of_url(url), &folder.join("sockets"))
}

/// A store in the memory of a child process.
pub(crate) fn memory_store(folder: &Path) -> PluginStore {
    PluginStore::new(settings(memory_plugin(), "memory:", folder)).unwrap()
}

/// A script with this text, to be started as a plugin.
pub(crate) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What plugins wrote to standard error.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    /// A launcher that collects it.
    pub(crate) fn launcher(&self) -> Arc<Spawn> {
        let lines = Arc::clone(&self.0);
        Arc::new(Spawn::with_lines(Arc::new(move |_, line| lines.lock().unwrap().push(line.to_owned()))))
    }

    /// All of it so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// The example of docs/plugins.md.
pub(crate) fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/folder.py").canonicalize().unwrap()
}
