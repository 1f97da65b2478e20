//! WebDAV servers: nginx, Apache and rclone.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::server::{Server, free_port};
use crate::tools;

/// Who may use [`Dav::apache`] and [`Dav::rclone`].
pub const USER: &str = "tester";
/// The password of [`USER`].
pub const PASSWORD: &str = "a password for tests";
/// [`PASSWORD`] as `htpasswd -s` writes it.
const PASSWORD_LINE: &str = "tester:{SHA}9A8HCHCvJce4TgdK+QB/NOelssA=\n";

/// A running WebDAV server with a folder of its own.
pub struct Dav {
    server: Option<Server>,
    command: Box<dyn Fn() -> Command + Send>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Dav {
    /// nginx with the module for PROPFIND: creates are atomic, no authentication, no quota. Its log says what was asked
    /// with which depth ([`Dav::log`]).
    pub fn nginx() -> Self {
        Self::nginx_with("", "")
    }

    /// nginx with TLS, from a certificate and its key in PEM.
    pub fn nginx_tls(certificate: &str, key: &str) -> Self {
        let tls = |name: &str, pem: &str| {
            let file = std::env::temp_dir().join(format!("chatkeep-rig-{}-{name}", free_port()));
            fs::write(&file, pem).unwrap();
            file
        };
        let (certificate, key) = (tls("certificate", certificate), tls("key", key));
        let lines =
            format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display());
        let started = Self::nginx_with(" ssl", &lines);
        fs::remove_file(certificate).unwrap();
        fs::remove_file(key).unwrap();
        started
    }

    fn nginx_with(listen: &str, lines: &str) -> Self {
        let (folder, port) = (new_folder(), free_port());
        let here = folder.path().display();
        let user = if is_root() { "user root;" } else { "" };
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
{user} daemon off; master_process off; pid {here}/pid; error_log stderr;
events {{}}
http {{
  log_format asked '$request_method $uri depth=$http_depth';
  access_log {here}/log asked; client_body_temp_path {here}/body; proxy_temp_path {here}/t1; fastcgi_temp_path {here}/t2;
  uwsgi_temp_path {here}/t3; scgi_temp_path {here}/t4; client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port}{listen}; {lines}
    location / {{ root {here}/files; dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS; }}
  }}
}}"
        );
        fs::write(folder.path().join("config"), config).unwrap();
        let file = folder.path().join("config");
        Self::start(folder, port, move || {
            let mut command = Command::new("/usr/sbin/nginx");
            command.arg("-c").arg(&file).args(["-e", "stderr"]);
            command
        })
    }

    /// Apache with mod_dav and Basic authentication: of several creates at once more than one may win. No quota.
    pub fn apache() -> Self {
        let (folder, port) = (new_folder(), free_port());
        let here = folder.path().display();
        let modules: String = [
            "mpm_event",
            "authn_core",
            "authn_file",
            "authz_core",
            "authz_user",
            "auth_basic",
            "dav",
            "dav_fs",
            "dir",
        ]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
        let user = if is_root() { "User www-data\nGroup www-data\n" } else { "" };
        let config = format!(
            "ServerRoot {here}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {here}/pid\nErrorLog /dev/stderr
{modules}{user}DocumentRoot {here}/files\nDavLockDB {here}/locks/db\nDefaultRuntimeDir {here}\nMutex file:{here}/locks
<Directory {here}/files>
  Dav On
  DirectoryIndex disabled
  AuthType Basic\n  AuthName tests\n  AuthUserFile {here}/users\n  Require valid-user
</Directory>\n"
        );
        fs::create_dir(folder.path().join("locks")).unwrap();
        fs::write(folder.path().join("config"), config).unwrap();
        fs::write(folder.path().join("users"), PASSWORD_LINE).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            // Apache refuses to serve as root
            run(Command::new("chown").args(["-R", "www-data"]).arg(folder.path()));
        }
        let file = folder.path().join("config");
        Self::start(folder, port, move || {
            let mut command = Command::new("/usr/sbin/apache2");
            command.arg("-f").arg(&file).arg("-DFOREGROUND");
            command
        })
    }

    /// `rclone serve webdav` with Basic authentication: creates are atomic, no quota, a page for each folder.
    pub fn rclone() -> Self {
        let (folder, port) = (new_folder(), free_port());
        let (files, users) = (folder.path().join("files"), folder.path().join("users"));
        fs::write(&users, PASSWORD_LINE).unwrap();
        let program = tools::python().join("rclone");
        Self::start(folder, port, move || {
            let mut command = Command::new(&program);
            command.args([
                "serve",
                "webdav",
                "--config",
                "",
                "--addr",
                &format!("127.0.0.1:{port}"),
                "--htpasswd",
            ]);
            command.arg(&users).arg(&files);
            command
        })
    }

    fn start(folder: tempfile::TempDir, port: u16, command: impl Fn() -> Command + Send + 'static) -> Self {
        let server = Some(Server::start(&mut command(), port));
        Self { server, command: Box::new(command), folder, port }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it serves, as a folder of this machine.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// All that it wrote, errors above all.
    pub fn said(&self) -> String {
        self.server.as_ref().map(Server::said).unwrap_or_default()
    }

    /// What was asked of it: a line for each request. Of nginx only.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Kills it, at once and with everything it is doing.
    pub fn kill(&mut self) {
        self.server = None;
        // a child of it may hold the port for a moment longer
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again after [`Dav::kill`], at the same port and with the same files.
    pub fn restart(&mut self) {
        self.server = Some(Server::start(&mut (self.command)(), self.port));
    }
}

fn new_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("files")).unwrap();
    folder
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// Every file below a folder, for tests that look behind the server's back.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { found.extend(files_below(&entry)) } else { found.push(entry) }
    }
    found
}
