//! The rclone process: started in a folder of its own, and gone when we are.

use std::fmt;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::{Result, StoreError};
use rand_core::{OsRng, RngCore as _};
use tempfile::{NamedTempFile, TempDir};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use zeroize::Zeroizing;

use crate::control::{Control, USER, base64};
use crate::errors;
use crate::version;

/// How long rclone may take until it listens; it takes 0.2 s on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How much of what rclone said last is kept, in bytes, to tell why it did not start.
const WORDS_LEN_MAX: usize = 2048;

/// Longest path of a unix socket, in bytes (`sun_path` has 108 with the zero at its end).
const SOCKET_LEN_MAX: usize = 107;

/// What becomes rclone, with a watcher beside it that ends it when we die, however that happens: it waits for the end of
/// its standard input, which only we hold open, removes the folder ($0), and kills the process group. The watcher is in
/// that group, so its number cannot be anybody else's by then. A shell, because a child that dies with its parent takes
/// code between fork and exec, which is unsafe.
const SCRIPT: &str = r#"exec 3<&0
(read -r _ <&3; rm -rf -- "$0"; kill -KILL 0) >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-"#;

/// What rclone inherits of our environment. Above all no `RCLONE_…`, which could be a filter or a dry run.
const INHERITED: [&str; 19] = [
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "USER",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "DBUS_SESSION_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
];

/// How rclone is to be run.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its name or path.
    pub(crate) path: String,
    /// The configuration, if not the one rclone finds by itself.
    pub(crate) config: Option<String>,
    /// What the configuration is encrypted with.
    pub(crate) config_password: Option<Zeroizing<String>>,
}

/// A running rclone. Killed when dropped.
pub(crate) struct Rclone {
    pub(crate) control: Control,
    child: Mutex<Child>,
    /// Removed by whoever notices first: us when this is dropped, or the watcher.
    folder: TempDir,
    /// Counted by [`read_words`].
    partial_listings: Arc<AtomicU64>,
}

impl Program {
    fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir("/");
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Starts rclone, if it is one that may be started, and waits until it listens.
    pub(crate) async fn start(&self) -> Result<Rclone> {
        version::check(Self::command(&self.path), &self.path).await?;
        let folder = tempfile::Builder::new()
            .prefix("chatkeep-rclone-")
            // whoever gets to the socket could try passwords; and objects lie here on their way
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(errors::of_own_files)?;
        let socket = folder.path().join("s");
        if socket.as_os_str().len() > SOCKET_LEN_MAX {
            let reason =
                format!("the folder for temporary files, `{}`, has too long a name", folder.path().display());
            return Err(StoreError::Invalid { reason });
        }
        let password = new_password();
        let mut command = Self::command("sh");
        command.arg("-c").arg(SCRIPT).arg(folder.path()).arg(&self.path);
        command.args(arguments(folder.path(), &socket, self.config.as_deref()));
        command.env("RCLONE_RC_USER", USER).env("RCLONE_RC_PASS", password.as_str());
        if let Some(password) = &self.config_password {
            command.env("RCLONE_CONFIG_PASS", password.as_str());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(errors::of_own_files)?;
        let words = Arc::new(Mutex::new(String::new()));
        let partial_listings = Arc::new(AtomicU64::new(0));
        let stderr = child.stderr.take().expect("it was asked for");
        let reader = tokio::spawn(read_words(stderr, Arc::clone(&words), Arc::clone(&partial_listings)));
        let control = Control::new(socket, &password);
        match wait_until_it_listens(&mut child, control.socket()).await {
            Ok(()) => Ok(Rclone { control, child: Mutex::new(child), folder, partial_listings }),
            Err(ended) => {
                drop(child);
                let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
                let words = words.lock().expect("no panic while it is held").clone();
                Err(errors::of_start(&ended, &words))
            }
        }
    }
}

impl Rclone {
    /// Whether the process is still there.
    pub(crate) fn lives(&self) -> bool {
        matches!(self.child.lock().expect("no panic while it is held").try_wait(), Ok(None))
    }

    /// How often rclone said that a service gave it a part of a listing only.
    pub(crate) fn partial_listings(&self) -> u64 {
        self.partial_listings.load(Ordering::Relaxed)
    }

    /// Writes the bytes of an object where rclone can copy them from. The file is gone when it is dropped.
    pub(crate) async fn stage(&self, body: Bytes) -> Result<NamedTempFile> {
        self.in_folder(move |folder| {
            let mut file = tempfile::Builder::new().prefix("up-").tempfile_in(folder)?;
            file.write_all(&body)?;
            Ok(file)
        })
        .await
    }

    /// A place that rclone can copy an object to.
    pub(crate) async fn landing(&self) -> Result<TempDir> {
        self.in_folder(|folder| tempfile::Builder::new().prefix("down-").tempdir_in(folder)).await
    }

    async fn in_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(PathBuf) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = self.folder.path().to_owned();
        match tokio::task::spawn_blocking(move || work(folder)).await {
            Ok(done) => done.map_err(errors::of_own_files),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(StoreError::Transient(error.into())),
        }
    }
}

/// 256 bits, as text.
fn new_password() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    OsRng.fill_bytes(bytes.as_mut());
    Zeroizing::new(base64(bytes.as_ref()))
}

fn arguments(folder: &Path, socket: &Path, config: Option<&str>) -> Vec<String> {
    let folder = folder.display();
    let mut arguments = vec![
        "rcd".to_owned(),
        format!("--rc-addr=unix://{}", socket.display()),
        "--rc-serve".to_owned(),
        "--ask-password=false".to_owned(),
        "--log-level=ERROR".to_owned(),
        format!("--temp-dir={folder}"),
        format!("--cache-dir={folder}/cache"),
        // a copy is a copy, also onto an object of the same length and time
        "--ignore-times".to_owned(),
        // where a half copy can be seen we give it a name of ours, which no object can have; rclone's could be a key
        "--inplace".to_owned(),
        // the host tries again; tries multiply in here (8 for a read, with pauses), and it waits for all of them
        "--low-level-retries=2".to_owned(),
        "--contimeout=30s".to_owned(),
        // read-ahead for each copy; the default of 16 MiB is for movies
        "--buffer-size=1M".to_owned(),
        // the trash of Drive counts against the quota, for 30 days
        "--drive-use-trash=false".to_owned(),
    ];
    if let Some(config) = config {
        arguments.push(format!("--config={config}"));
    }
    arguments
}

async fn wait_until_it_listens(child: &mut Child, socket: &Path) -> std::result::Result<(), Ended> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if UnixStream::connect(socket).await.is_ok() {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Ended::With(status));
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Ended::NotYet);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Why rclone does not listen.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ended.
    With(ExitStatus),
    /// It is there and does nothing.
    NotYet,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::With(status) => write!(f, "it ended with {status}"),
            Self::NotYet => f.write_str("it does not listen"),
        }
    }
}

/// Keeps the end of what rclone says, and counts partial listings. Nothing of it is logged: it has names in it.
async fn read_words(stderr: ChildStderr, words: Arc<Mutex<String>>, partial_listings: Arc<AtomicU64>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        if line.contains(PARTIAL_LISTING) {
            partial_listings.fetch_add(1, Ordering::Relaxed);
        }
        let mut words = words.lock().expect("no panic while it is held");
        words.push_str(&line);
        words.push('\n');
        let surplus = words.len().saturating_sub(WORDS_LEN_MAX);
        let cut = (surplus..=words.len()).find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        words.drain(..cut);
    }
}

/// What rclone's Drive backend writes, and only writes, when Google says that a search did not look everywhere.
const PARTIAL_LISTING: &str = "search result INCOMPLETE";

/// A file that rclone has put into a landing.
pub(crate) async fn read_landed(landing: TempDir) -> Result<Bytes> {
    let read =
        tokio::task::spawn_blocking(move || std::fs::read(landing.path().join(LANDED)).map(Bytes::from));
    match read.await {
        Ok(done) => done.map_err(errors::of_own_files),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StoreError::Transient(error.into())),
    }
}

/// Its name there.
pub(crate) const LANDED: &str = "object";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// A shell says it here: the service that makes rclone say it cannot be had.
    #[tokio::test]
    async fn a_listing_that_a_service_calls_partial_is_noticed() {
        let line = "2026/11/26 12:00:00 ERROR : Google drive root 'x': search result INCOMPLETE";
        let mut child = Command::new("sh")
            .args(["-c", &format!("yes something else | head -n 1000 >&2; echo \"{line}\" >&2")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (words, partial) = (Arc::default(), Arc::default());
        read_words(child.stderr.take().unwrap(), Arc::clone(&words), Arc::clone(&partial)).await;
        child.wait().await.unwrap();
        assert_eq!(partial.load(Ordering::Relaxed), 1);
        let words = words.lock().unwrap();
        assert!(words.len() <= WORDS_LEN_MAX && words.ends_with("INCOMPLETE\n"), "{words}");
    }
}
