//! PostgreSQL servers of our own: real ones, in a temporary folder, on unix sockets.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use chatkeep_vault_server::store::PostgresConfig;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Role and database of the vault.
const ROLE: &str = "vault";
/// The database of the vault.
pub const DATABASE: &str = "cell";
/// For what happens within a second when the machine is idle.
const PATIENCE: Duration = Duration::from_mins(1);

/// One server; killed when dropped.
pub struct Node {
    /// Single letter.
    pub name: &'static str,
    dir: PathBuf,
    port: u16,
    process: Mutex<Option<Child>>,
}

/// A primary `a`, and maybe synchronous standbys `b` and `c`, of which one has to have a commit.
pub struct Cluster {
    dir: TempDir,
    nodes: Vec<Node>,
}

/// Runs `program` as somebody who may run servers: PostgreSQL refuses root.
fn unprivileged(program: &str) -> Command {
    let path = Path::new(BIN).join(program);
    assert!(path.exists(), "this test needs {}: apt-get install postgresql-15", path.display());
    let mut command = Command::new(path);
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// User and group of the package, if this is root.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.expect("there is no user postgres: apt-get install postgresql-15");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Waits until `what` is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Node {
    fn new(name: &'static str, base: &Path, port: u16) -> Self {
        let dir = base.join(name);
        std::fs::create_dir(&dir).unwrap();
        if let Some((user, group)) = owner() {
            std::os::unix::fs::chown(&dir, Some(user), Some(group)).unwrap();
        }
        Self { name, dir, port, process: Mutex::new(None) }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// How a vault names it.
    pub fn host(&self) -> String {
        self.dir.to_str().unwrap().to_owned()
    }

    /// A file in its folder that only it may read.
    pub fn give(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if let Some((user, group)) = owner() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
        }
    }

    /// Adds to its settings; the last word counts.
    pub fn configure(&self, settings: &str) {
        let path = self.data().join("postgresql.auto.conf");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{before}\n{settings}\n")).unwrap();
        if let Some(child) = &*self.process.lock().unwrap() {
            kill_process(Pid::from_child(child), Signal::HUP).unwrap();
        }
    }

    /// Starts it and waits until it answers.
    pub fn start(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = unprivileged("postgres")
            .arg("-D")
            .arg(self.data())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(child);
        eventually("the server answers", || self.try_sql("SELECT 1").is_ok());
    }

    /// As an administrator stops it.
    pub fn stop(&self) {
        let Some(mut child) = self.process.lock().unwrap().take() else { return };
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait().unwrap();
    }

    /// As a power cut stops it: all its processes at once, with no time to say anything.
    pub fn kill(&self) {
        let Some(mut child) = self.process.lock().unwrap().take() else { return };
        let main = Pid::from_child(&child);
        kill_process(main, Signal::STOP).unwrap(); // so that it starts no more of them
        for pid in children(main) {
            kill_process(pid, Signal::KILL).ok();
        }
        kill_process(main, Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    /// As its superuser.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.name))
    }

    fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.try_sql_in(if sql.contains("chatkeep.") { DATABASE } else { "postgres" }, sql)
    }

    /// As its superuser, in one database.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        self.try_sql_in(database, sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.name))
    }

    fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let path = Path::new(BIN).join("psql");
        let output = Command::new(path)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d"])
            .arg(database)
            .args(["-h", &self.host(), "-p", &self.port.to_string(), "-c", sql])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Makes it a copy of `primary` that follows it.
    fn copy_of(&self, primary: &Node) {
        let data = self.data();
        if data.exists() {
            std::fs::remove_dir_all(&data).unwrap();
        }
        run(unprivileged("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "-U", "postgres", "-h", &primary.host(), "-D"])
            .arg(&data));
        std::fs::write(data.join("standby.signal"), "").unwrap();
        self.configure(&format!("unix_socket_directories = '{}'", self.host()));
        self.follow(primary);
        self.start();
    }

    fn follow(&self, primary: &Node) {
        let (host, name) = (primary.host(), self.name);
        self.configure(&format!("primary_conninfo = 'host={host} user=postgres application_name={name}'"));
    }

    fn is_running(&self) -> bool {
        self.process.lock().unwrap().is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("== the last words of {}, newest first:\n{}", self.name, lines.join("\n"));
        }
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |id: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // after the name, which may contain anything: state, parent
        let parent_of =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent_of == Some(parent.as_raw_nonzero().get())
    };
    ids.filter(is_child).filter_map(Pid::from_raw).collect()
}

impl Cluster {
    /// One server that nobody follows, and which says so.
    pub fn alone() -> Self {
        Self::listening(5432, "")
    }

    /// As [`Self::alone`], on a port of this machine, too, with more settings.
    pub fn listening(port: u16, settings: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ckpg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let node = Node::new("a", dir.path(), port);
        run(unprivileged("initdb").args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]).args([
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "-D",
            node.data().to_str().unwrap(),
        ]));
        node.configure(&format!(
            "unix_socket_directories = '{}'\nlisten_addresses = ''\nshared_buffers = 16MB\nmax_connections = 40
             autovacuum = off\nwal_retrieve_retry_interval = 100ms\nwal_receiver_status_interval = 1s\nport = {port}
             {settings}",
            node.host()
        ));
        node.start();
        node.sql(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD 'pass word'"));
        node.sql(&format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"));
        Self { dir, nodes: vec![node] }
    }

    /// A primary with two standbys, of which one has to have a commit.
    pub fn of_three() -> Self {
        let mut cluster = Self::alone();
        for name in ["b", "c"] {
            let node = Node::new(name, cluster.dir.path(), 5432);
            node.copy_of(&cluster.nodes[0]);
            cluster.nodes.push(node);
        }
        for node in &cluster.nodes {
            node.configure("synchronous_standby_names = 'ANY 1 (a, b, c)'");
        }
        cluster.wait_for_standbys("a", 2);
        cluster
    }

    /// By its name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// Waits until so many standbys follow `primary`.
    pub fn wait_for_standbys(&self, primary: &str, count: usize) {
        let sql =
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
        eventually("standbys follow", || self.node(primary).sql(sql) == count.to_string());
    }

    /// What Patroni does when the primary is gone: of the standbys that are left, the one that has most becomes the
    /// primary, and the other follows it. Gives its name.
    pub fn fail_over(&self) -> &'static str {
        let received = |node: &Node| {
            let sql = "SELECT pg_wal_lsn_diff(coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')";
            node.sql(sql).parse::<u64>().unwrap()
        };
        let left: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let next = *left.iter().max_by_key(|node| received(node)).unwrap();
        next.sql("SELECT pg_promote()");
        for node in left.iter().filter(|node| node.name != next.name) {
            node.follow(next);
        }
        self.wait_for_standbys(next.name, left.len() - 1);
        next.name
    }

    /// A server that was away begins anew, as a standby of `primary`.
    pub fn rebuild(&self, name: &str, primary: &str) {
        self.node(name).copy_of(self.node(primary));
        eventually("it follows", || {
            let sql = format!(
                "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming'"
            );
            self.node(primary).sql(&sql) == "1"
        });
    }

    /// For all of its servers.
    pub fn config(&self) -> PostgresConfig {
        self.config_of(DATABASE)
    }

    /// As [`Self::config`], for another database.
    pub fn config_of(&self, database: &str) -> PostgresConfig {
        let hosts: Vec<String> = self.nodes.iter().map(Node::host).collect();
        toml::from_str(&format!("hosts = {hosts:?}\ndatabase = '{database}'\nuser = '{ROLE}'")).unwrap()
    }
}
