//! Where things lie on this machine, after the XDG Base Directory Specification.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The service's own folders, each with mode 0700.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `config.toml`.
    pub config: PathBuf,
    /// What cannot be made anew: which databases are watched, and key files where the user chose them.
    pub data: PathBuf,
    /// A cache: positions, catalogue, queue of sealed objects. May be deleted at any time.
    pub state: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
}

impl Paths {
    /// Takes the folders from the environment, after [XDG].
    ///
    /// `StateDirectory=` of systemd is not used: it means another folder in version 252 than in 254 and later.
    ///
    /// [XDG]: https://specifications.freedesktop.org/basedir-spec/latest/
    pub fn from_environment() -> Result<Self> {
        let home = std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set")?;
        let folder = |name: &str, fallback: PathBuf| {
            std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute()).unwrap_or(fallback)
        };
        Ok(Self {
            config: folder("XDG_CONFIG_HOME", home.join(".config")).join("chatkeep/config.toml"),
            data: folder("XDG_DATA_HOME", home.join(".local/share")).join("chatkeep"),
            state: folder("XDG_STATE_HOME", home.join(".local/state")).join("chatkeep"),
            runtime: std::env::var_os("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .context("XDG_RUNTIME_DIR is not set")?,
        })
    }

    /// Where restores are rehearsed. What a crash left there is plaintext, and swept at start.
    pub fn drills(&self) -> PathBuf {
        self.state.join("drill")
    }

    /// The private control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("chatkeep/control.sock")
    }

    /// Where the sockets of store plugins are; made anew by each service.
    pub fn plugin_sockets(&self) -> PathBuf {
        self.runtime.join("chatkeep/stores")
    }

    /// Where the vault courier listens unless the configuration says otherwise.
    pub fn courier_socket(&self) -> PathBuf {
        self.runtime.join("chatkeep-courier.sock")
    }
}

/// Makes `path` and its parents, 0700, and insists that nobody else can read it.
pub fn private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", path.display()))?;
    }
    Ok(())
}
