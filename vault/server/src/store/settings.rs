//! `[store]` of the configuration: which engine, and where its servers are.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::StoreError;
use crate::config::Duration;

/// `[store]`; SQLite in the data directory unless configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// A file in the data directory: one machine.
    Sqlite {},
    /// A primary with synchronous standbys: a store that outlives machines.
    Postgres(PostgresConfig),
}

/// `[store]` with `kind = "postgres"`. The password is in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// All servers that may be the primary: directories of unix sockets or `host:port`. The one that takes writes is used.
    pub hosts: Vec<String>,
    /// One database for one cell.
    pub database: String,
    /// Role.
    pub user: String,
    /// Its password, alone in a file of mode 0600; absent with `peer` authentication.
    pub password_file: Option<PathBuf>,
    /// PEM file with the authorities that sign the servers' certificates; without it TCP goes to this machine only.
    pub tls_ca: Option<PathBuf>,
    /// Serve although a commit may be on one disk only. Said in `info` and `status`.
    #[serde(default)]
    pub allow_asynchronous: bool,
    /// How long to look for a server that takes writes before giving up.
    #[serde(default = "default_patience")]
    pub patience: Duration,
}

/// Longer than it takes to promote a standby (Patroni: 30 s to notice, seconds to act).
fn default_patience() -> Duration {
    Duration { seconds: 60 }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self::Sqlite {}
    }
}

/// Where one server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) address: Address,
    pub(super) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// Directory of the socket.
    Unix(PathBuf),
    Tcp(String),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "{}:{}", path.display(), self.port),
            Address::Tcp(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

impl Host {
    /// `/run/postgresql`, `/run/postgresql:5433`, `10.0.0.1`, `db-a:5433`, `[::1]:5433`.
    fn parse(text: &str) -> Option<Self> {
        const PORT: u16 = 5432;
        if text.starts_with('/') {
            let (path, port) = match text.rsplit_once(':') {
                Some((path, port)) => (path, port.parse().ok()?),
                None => (text, PORT),
            };
            return Some(Self { address: Address::Unix(path.into()), port });
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("5432"))?)
            }
            None => text.split_once(':').unwrap_or((text, "5432")),
        };
        let port = port.parse().ok()?;
        (!host.is_empty()).then(|| Self { address: Address::Tcp(host.to_owned()), port })
    }

    /// Whether what is sent never leaves this machine. A name could be anybody: only addresses count.
    fn is_local(&self) -> bool {
        match &self.address {
            Address::Unix(_) => true,
            Address::Tcp(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        }
    }
}

impl PostgresConfig {
    /// The servers; refuses those that would be spoken to in the clear over a network.
    pub(super) fn servers(&self) -> Result<Vec<Host>, StoreError> {
        let refused = |what: String| StoreError::Unsafe { what };
        if self.hosts.is_empty() {
            return Err(refused("`hosts` is empty".to_owned()));
        }
        let parse = |text: &String| {
            let host = Host::parse(text).ok_or_else(|| {
                refused(format!("`{text}` is neither a directory of a unix socket nor host:port"))
            })?;
            if self.tls_ca.is_none() && !host.is_local() {
                return Err(refused(format!(
                    "`{text}` is not on this machine and no `tls_ca` is set: connections over a network need TLS \
                     (this machine is a unix socket or the address 127.0.0.1, not a name)"
                )));
            }
            Ok(host)
        };
        self.hosts.iter().map(parse).collect()
    }

    /// The password, if there is a file for it.
    pub(super) fn password(&self) -> Result<Option<Zeroizing<String>>, StoreError> {
        self.password_file.as_deref().map(read_password).transpose()
    }
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, StoreError> {
    let unusable =
        |what: String| StoreError::Unsafe { what: format!("password_file {}: {what}", path.display()) };
    let mode = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(unusable(format!("it must have mode 0600, it has {:o}", mode & 0o777)));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?);
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn config(text: &str) -> Result<StoreConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn postgres(hosts: &[&str]) -> PostgresConfig {
        PostgresConfig {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            database: "d".to_owned(),
            user: "u".to_owned(),
            password_file: None,
            tls_ca: None,
            allow_asynchronous: false,
            patience: default_patience(),
        }
    }

    #[test]
    fn both_kinds_read_and_typing_errors_do_not() {
        assert_eq!(config("kind = 'sqlite'").unwrap(), StoreConfig::default());
        let text = "kind = 'postgres'\nhosts = ['/run/postgresql']\ndatabase = 'd'\nuser = 'u'";
        assert_eq!(config(text).unwrap(), StoreConfig::Postgres(postgres(&["/run/postgresql"])));
        for bad in [
            "kind = 'sqlite'\nhosts = []",
            "kind = 'redb'",
            "kind = 'postgres'\nhosts = ['a']",
            &format!("{text}\npassword = 'secret'"),
        ] {
            assert!(config(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_sockets_or_addresses_with_ports() {
        let check = |text: &str, host: &str, port| {
            let parsed = Host::parse(text).unwrap();
            assert_eq!((parsed.to_string(), parsed.port), (format!("{host}:{port}"), port));
        };
        check("/run/postgresql", "/run/postgresql", 5432);
        check("/run/postgresql:5433", "/run/postgresql", 5433);
        check("10.0.0.1:1", "10.0.0.1", 1);
        check("db-a", "db-a", 5432);
        check("[::1]", "::1", 5432);
        check("[::1]:7", "::1", 7);
        for bad in ["", ":5432", "a:b", "[::1", "[::1]7", "/run:x", "::1"] {
            assert!(Host::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nothing_goes_over_a_network_in_the_clear() {
        for local in ["/run/postgresql", "127.0.0.1", "127.9.9.9:1", "[::1]:1"] {
            assert!(postgres(&[local]).servers().is_ok(), "{local}");
        }
        for far in ["localhost", "10.0.0.1", "db-a:5432", "[2001:db8::1]:5432", "0.0.0.0"] {
            let error = postgres(&["127.0.0.1", far]).servers().unwrap_err();
            assert!(matches!(&error, StoreError::Unsafe { what } if what.contains(far)), "{error}");
            let with_tls = PostgresConfig { tls_ca: Some("/ca.pem".into()), ..postgres(&[far]) };
            assert!(with_tls.servers().is_ok(), "{far}");
        }
    }

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "se cret\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let config = PostgresConfig { password_file: Some(path.clone()), ..postgres(&["/run"]) };
        assert!(matches!(config.password(), Err(StoreError::Unsafe { what }) if what.contains("640")));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(&**config.password().unwrap().unwrap(), "se cret");
    }
}
