//! rclone of a version that has what the store needs: as the program under test, and as a server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::{Server, free_port};
use crate::tools;

/// The pinned rclone.
pub fn program() -> PathBuf {
    tools::python().join("rclone")
}

/// Serves a folder over WebDAV, without a password.
pub fn webdav(folder: &Path) -> Server {
    serve("webdav", folder, &[])
}

/// Serves a folder over SFTP, for this user and password.
pub fn sftp(folder: &Path, user: &str, password: &str) -> Server {
    serve("sftp", folder, &["--user", user, "--pass", password])
}

fn serve(kind: &str, folder: &Path, arguments: &[&str]) -> Server {
    let port = free_port();
    let mut command = Command::new(program());
    command.args(["serve", kind, "--config", "/dev/null", "--addr", &format!("127.0.0.1:{port}")]);
    // without `--dir-cache-time 0`: 1.75.2 then spins for ever in some calls
    command.args(arguments).arg(folder);
    Server::start(&mut command, port)
}

/// A password as rclone.conf wants it: not secret, only not to be read over a shoulder.
pub fn obscured(password: &str) -> String {
    let output = Command::new(program()).args(["obscure", password]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
