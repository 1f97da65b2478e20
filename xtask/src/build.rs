//! `cargo xtask demo` and `prove`: build what they start, then hand over to `chatkeep-tests`, which does the work.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The packages with the programs of a demonstration.
const PACKAGES: [&str; 5] =
    ["chatkeepd", "chatkeep", "chatkeep-vault-server", "chatkeep-vault-courier", "chatkeep-tests"];

/// Builds with optimisation, and runs `chatkeep-tests ARGUMENTS`. Ends with its exit status if that is not 0.
pub(crate) fn and_run(arguments: Vec<OsString>) -> Result<()> {
    with_more_and_run(&[], &[], arguments)
}

/// As [`and_run`], of more programs, and of programs with more in them.
pub(crate) fn with_more_and_run(
    packages: &[&str],
    features: &[&str],
    arguments: Vec<OsString>,
) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--release", "--bins"]).current_dir(root);
    for package in PACKAGES.iter().chain(packages) {
        build.args(["--package", package]);
    }
    for feature in features {
        build.args(["--features", feature]);
    }
    eprintln!("building; the first time this takes some minutes");
    let status = build.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the programs could not be built ({status})");
    }
    let program = target()?.join("release/chatkeep-tests");
    let status = Command::new(&program).args(arguments).status();
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// We lie in `TARGET/debug`, wherever cargo was told to put it.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path")?;
    own.ancestors().nth(2).map(Path::to_owned).context("this program lies in no target folder")
}
