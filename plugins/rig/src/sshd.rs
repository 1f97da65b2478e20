//! OpenSSH: a server with keys of its own, for the user who runs the test.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::server::{Server, free_port};

/// A running sshd with an SFTP subsystem, and what a client needs to be let in.
pub struct Sshd {
    server: Option<Server>,
    folder: tempfile::TempDir,
    port: u16,
    room: Room,
}

/// What bounds the files of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    /// A file system of 4 MiB.
    SmallDisk,
    /// No file longer than 4 MiB.
    ShortFiles,
    /// Nothing can be deleted or renamed.
    OnlyMore,
}

impl Sshd {
    /// Started, with a client that it knows and that knows it.
    pub fn start() -> Self {
        Self::make(Room::Enough)
    }

    /// As [`Sshd::start`], on a file system of 4 MiB: only root can mount one ([`Sshd::may_mount`]).
    pub fn start_on_small_disk() -> Self {
        Self::make(Room::SmallDisk)
    }

    /// As [`Sshd::start`], where writing past 4 MiB of a file fails.
    pub fn start_with_short_files() -> Self {
        Self::make(Room::ShortFiles)
    }

    /// As [`Sshd::start`], where nothing can be deleted or renamed.
    pub fn start_without_deletion() -> Self {
        Self::make(Room::OnlyMore)
    }

    /// Whether [`Sshd::start_on_small_disk`] works here.
    pub fn may_mount() -> bool {
        Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success())
    }

    fn make(room: Room) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        fs::create_dir(here.join("files")).unwrap();
        for key in ["host", "user", "other"] {
            let file = here.join(key);
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(file));
        }
        fs::copy(here.join("user.pub"), here.join("authorized")).unwrap();
        let mut sshd = Self { server: None, port: free_port(), room, folder };
        sshd.write_server_config();
        sshd.write_client_config("host.pub", "user");
        sshd.restart();
        sshd
    }

    fn write_server_config(&self) {
        let here = self.folder.path().display();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {here}/host\nPidFile {here}/pid\n\
             AuthorizedKeysFile {here}/authorized\nStrictModes no\nUsePAM {}\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n\
             Subsystem sftp internal-sftp{}\n",
            self.port,
            // without root's rights sshd cannot see whether an account is locked, and PAM can
            if is_root() { "no" } else { "yes" },
            if self.room == Room::OnlyMore {
                " -P remove,rmdir,rename,posix-rename,setstat,fsetstat"
            } else {
                ""
            }
        );
        fs::write(self.folder.path().join("sshd_config"), config).unwrap();
    }

    /// What `ssh -F` reads: the host key that is expected and the key that is shown, by their files in the folder of
    /// this server: `host.pub` and `user` are the right ones, `other.pub` and `other` wrong ones.
    pub fn write_client_config(&self, host_key: &str, user_key: &str) {
        let here = self.folder.path().display();
        let key = fs::read_to_string(self.folder.path().join(host_key)).unwrap();
        let known = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.folder.path().join("known_hosts"), known).unwrap();
        let config = format!(
            "UserKnownHostsFile {here}/known_hosts\nGlobalKnownHostsFile /dev/null\nIdentityFile {here}/{user_key}\n\
             IdentitiesOnly yes\nIdentityAgent none\nUpdateHostKeys no\n"
        );
        fs::write(self.client_config(), config).unwrap();
        fs::set_permissions(self.client_config(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The file for `ssh -F`.
    pub fn client_config(&self) -> PathBuf {
        self.folder.path().join("ssh_config")
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A folder for the store. What is in it on a small disk is seen by the server only.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Sends the sessions of all clients a signal, and not the server.
    pub fn signal_sessions(&self, signal: Signal) {
        let pid = fs::read_to_string(self.folder.path().join("pid")).unwrap();
        for pid in descendants(pid.trim()) {
            let pid = pid.parse().ok().and_then(Pid::from_raw).unwrap();
            // it may have ended
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills everything: the server and the sessions, which outlive it otherwise.
    pub fn kill(&mut self) {
        if self.server.is_some() {
            self.signal_sessions(Signal::KILL);
        }
        self.server = None;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it after [`Sshd::kill`], at the same port and with the same files.
    pub fn restart(&mut self) {
        if is_root() {
            // where the part of sshd that has no rights lives; a server of the system makes it at its start
            fs::create_dir_all("/run/sshd").unwrap();
            fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755)).unwrap();
        }
        let config = self.folder.path().join("sshd_config");
        let mut command = match self.room {
            Room::Enough | Room::OnlyMore => Command::new("/usr/sbin/sshd"),
            Room::SmallDisk => {
                let mut command = Command::new("unshare");
                let script = "mount -t tmpfs -o size=4m none \"$0\" && exec /usr/sbin/sshd \"$@\"";
                command.args(["-m", "sh", "-c", script]).arg(self.files());
                command
            }
            Room::ShortFiles => {
                let mut command = Command::new("sh");
                // in blocks of 512 bytes; without the trap the server would be killed instead of getting an error
                command.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec /usr/sbin/sshd \"$@\"", "sh"]);
                command
            }
        };
        command.args(["-D", "-e", "-f"]);
        self.server = Some(Server::start(command.arg(config), self.port));
        // it listens before it writes this
        while !self.folder.path().join("pid").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.signal_sessions(Signal::KILL);
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Children of a process, their children, and so on.
fn descendants(parent: &str) -> Vec<String> {
    let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?;
        let stat = fs::read_to_string(Path::new("/proc").join(&pid).join("stat")).ok()?;
        // "pid (name) state parent …": a name can hold anything but is in the last parentheses
        let mut after_name = stat.rsplit_once(") ")?.1.split(' ');
        (after_name.nth(1)? == parent).then_some(pid)
    });
    let children: Vec<String> = children.collect();
    let below: Vec<String> = children.iter().flat_map(|child| descendants(child)).collect();
    children.into_iter().chain(below).collect()
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
