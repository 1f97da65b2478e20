//! Where the programs are: beside the program that looks for them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// Everything a stack starts.
const ALL: [&str; 5] = ["chatkeepd", "chatkeep", "chatkeep-vault", "chatkeep-courier", "chatkeep-writer"];

/// A program of the workspace.
pub fn ours(name: &str) -> Result<PathBuf> {
    let path = folder()?.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// Names all programs that are not built at once.
pub fn require_all() -> Result<()> {
    let folder = folder()?;
    let missing: Vec<_> = ALL.into_iter().filter(|name| !folder.join(name).is_file()).collect();
    if !missing.is_empty() {
        bail!(
            "not built in {}: {}; run `cargo build --workspace --bins`",
            folder.display(),
            missing.join(", ")
        );
    }
    Ok(())
}

/// A program of the system, if it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A program of the system that a test cannot do without, and the Debian package that has it.
pub fn require(name: &str, package: &str) -> Result<PathBuf> {
    installed(name).with_context(|| format!("{name} is not installed; on Debian: apt-get install {package}"))
}

/// A command for `program` that the kernel ends when the thread that started it ends, where setpriv is installed.
///
/// Whoever is killed drops nothing; without this its children would live on.
pub fn leashed(program: &Path) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let setpriv = SETPRIV.get_or_init(|| {
        let found = installed("setpriv")?;
        let works = Command::new(&found)
            .args(["--pdeathsig", "KILL", "--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        works.is_ok_and(|status| status.success()).then_some(found)
    });
    match setpriv {
        None => Command::new(program),
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
    }
}

/// Test programs lie in `deps`, one below the others.
fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path")?;
    let folder = own.parent().context("this program lies in no folder")?;
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}
