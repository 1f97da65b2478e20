//! `config.toml`: settings, never components and never secrets. An unknown key is fatal and named.
//!
//! `config.example.toml` in the repository shows every key with its unit and default; a test parses it.

mod stores;
mod vaults;

use std::path::{Path, PathBuf};

use chatkeep_planner::{CapturePolicy, RetentionPolicy};
use serde::Deserialize;

pub use stores::{Limits, Metered, Place, PriceList, Rate, Retain, Size, Store};
pub use vaults::{Vault, Vaults};

/// The whole configuration file.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What the service does on this machine.
    pub service: Service,
    /// When changes are captured and shipped.
    pub capture: Capture,
    /// Which recovery points stay.
    pub retention: Retention,
    /// What is done with what is stored, and how often.
    pub upkeep: Upkeep,
    /// Where sealed objects go.
    pub store: Vec<Store>,
    /// How vaults are used, and how they are watched.
    pub vaults: Vaults,
    /// Backup Key Vaults a password may be entrusted to.
    pub vault: Vec<Vault>,
    /// Databases to watch, beside those that apps register over D-Bus.
    pub source: Vec<Source>,
}

/// `[service]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Where this device keeps its copy of the keys.
    pub key_storage: KeyStorage,
    /// Flatpak application ids that may call us although they are sandboxed.
    pub allowed_apps: Vec<String>,
    /// Secrets may be taken from the environment (`env:NAME`), where other processes of the user can read them.
    pub secrets_from_environment: bool,
    /// Listening socket of the vault courier; none = `$XDG_RUNTIME_DIR/chatkeep-courier.sock`.
    pub courier_socket: Option<PathBuf>,
}

/// `service.key_storage`
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum KeyStorage {
    /// The desktop's keyring, over the Secret Service.
    SecretService,
    /// A file with mode 0600: whoever gets a copy of the home directory can read the backups.
    File,
}

/// `[capture]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Ship when the database was silent for this long.
    pub quiet: Span,
    /// Ship at the latest this long after the first unshipped commit.
    pub max_age: Span,
    /// Ship at once when this much waits, in bytes.
    pub max_pending_bytes: u64,
    /// zstd level of sealed objects, 1 to 19.
    pub compression_level: i32,
}

/// `[retention]`: a point goes only when its age *and* its rank let it go.
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Every point is kept for this long.
    pub everything_for: Period,
    /// One of each hour.
    pub hourly_for: Period,
    /// One of each day.
    pub daily_for: Period,
    /// One of each four weeks.
    pub monthly_for: Period,
    /// So many of the newest are kept, however old they are.
    pub latest: usize,
    /// So many of the newest of an hour.
    pub hourly: usize,
    /// So many of the newest of a day.
    pub daily: usize,
    /// So many of the newest of four weeks.
    pub monthly: usize,
}

/// `[upkeep]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Upkeep {
    /// Points are forgotten, and what was forgotten long enough ago is deleted.
    pub prune_every: Period,
    /// Every stored object is read back and opened.
    pub verify_every: Period,
    /// A restore is rehearsed in full.
    pub drill_every: Period,
}

/// `[[source]]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name on D-Bus, in logs and inside the (sealed) entries.
    pub name: String,
    /// The SQLite database of the app.
    pub path: PathBuf,
    /// Further databases of the app, captured with it: one recovery point has all of them.
    #[serde(default)]
    pub databases: Vec<PathBuf>,
    /// Folders with the app's attachments.
    #[serde(default)]
    pub attachments: Vec<PathBuf>,
    /// Name of the store; may be left out when there is only one.
    pub store: Option<String>,
    /// Names of several stores instead: the first has the log, every other one a copy of the archive.
    #[serde(default)]
    pub stores: Vec<String>,
}

/// A duration, written `"500ms"`, `"30s"`, `"5m"`, `"2h"` or `"7d"`. In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a duration (\"500ms\", \"30s\", \"5m\", \"2h\", \"7d\")"
            ))
        })
    }
}

fn parse_span(text: &str) -> Option<Span> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let value: u64 = text[..digits].parse().ok()?;
    let factor = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    value.checked_mul(factor).map(Span)
}

/// A duration that may have no end, written as a [`Span`] or `"forever"` (of what is kept), `"never"` (of what is done
/// every so often).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Option<Span>);

impl Period {
    const fn days(days: u64) -> Self {
        Self(Some(Span(days * 86_400_000)))
    }

    /// How often something is done, in milliseconds; nothing for never, which no time at all means, too.
    pub fn every_ms(self) -> Option<u64> {
        self.0.map(|span| span.0).filter(|ms| *ms > 0)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if matches!(text.as_str(), "forever" | "never") {
            return Ok(Self(None));
        }
        let span = if text == "0" { Some(Span(0)) } else { parse_span(&text) };
        span.map(|span| Self(Some(span))).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a duration (\"12h\", \"7d\", \"forever\", \"never\")"
            ))
        })
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            key_storage: KeyStorage::SecretService,
            allowed_apps: Vec::new(),
            secrets_from_environment: false,
            courier_socket: None,
        }
    }
}

impl Default for Capture {
    fn default() -> Self {
        // Two seconds of silence, ten at most, 8 MiB: what a laptop's death may cost, against one object per burst.
        Self { quiet: Span(2000), max_age: Span(10_000), max_pending_bytes: 8 << 20, compression_level: 1 }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            everything_for: Period::days(2),
            hourly_for: Period::days(14),
            daily_for: Period::days(90),
            monthly_for: Period(None),
            latest: 100,
            hourly: 48,
            daily: 30,
            monthly: 12,
        }
    }
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { prune_every: Period::days(1), verify_every: Period::days(7), drill_every: Period::days(30) }
    }
}

impl Retention {
    /// For the planner.
    pub fn policy(&self) -> RetentionPolicy {
        let ms = |period: Period| period.0.map(|span| span.0);
        RetentionPolicy {
            everything_for_ms: ms(self.everything_for).unwrap_or(u64::MAX),
            hourly_for_ms: ms(self.hourly_for).unwrap_or(u64::MAX),
            daily_for_ms: ms(self.daily_for).unwrap_or(u64::MAX),
            monthly_for_ms: ms(self.monthly_for),
            latest: self.latest,
            hourly: self.hourly,
            daily: self.daily,
            monthly: self.monthly,
        }
    }
}

impl Capture {
    /// For the planner.
    ///
    /// Each of the stores has room for two uploads at once: a slow one holds up no other.
    pub fn policy(&self, stores: usize) -> CapturePolicy {
        CapturePolicy {
            uploads_at_once: 2 * stores.max(1),
            quiet_ms: self.quiet.0,
            wait_max_ms: self.max_age.0,
            pending_bytes_max: self.max_pending_bytes,
            ..CapturePolicy::default()
        }
    }
}

/// Why the configuration cannot be used. The service does not start on a guess.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a key we do not know, or a value of the wrong kind.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and key.
        message: String,
    },
    /// A secret stands in the file, where backups, dotfile repositories and screen shares find it.
    #[error(
        "{path}: `{key}` holds a secret; secrets do not belong into this file. Write where it lives instead: \
         \"keyring\", \"credential:NAME\" or \"env:NAME\", under `secrets`"
    )]
    SecretInFile {
        /// The file.
        path: PathBuf,
        /// The key that holds it.
        key: String,
    },
    /// Two things that contradict each other.
    #[error("{path}: {message}")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        message: String,
    },
}

impl Config {
    /// Reads `path`; a file that does not exist is the default configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        }
    }

    /// Parses the text of `path` (used for messages only).
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let syntax = |message: String| ConfigError::Syntax { path: path.to_owned(), message };
        let tree: toml::Table = toml::from_str(text).map_err(|error| syntax(place(&error, text)))?;
        if let Some(key) = secret_in(&tree, "") {
            return Err(ConfigError::SecretInFile { path: path.to_owned(), key });
        }
        let config: Self = toml::from_str(text).map_err(|error| syntax(place(&error, text)))?;
        config.check().map_err(|message| ConfigError::Contradiction { path: path.to_owned(), message })?;
        Ok(config)
    }

    /// Why a folder of attachments cannot be this: what is written by a backup would be in the next one.
    pub fn inside_of(&self, folder: &Path, state: &Path) -> Option<String> {
        let store = |store: &Store| {
            let path = store.url.strip_prefix("file:")?;
            let path = Path::new(path.strip_prefix("//").unwrap_or(path)).to_owned();
            Some((path, format!("the store `{}`", store.name)))
        };
        let written =
            self.store.iter().filter_map(store).chain([(state.to_owned(), "the service's state".to_owned())]);
        let mut meeting = written.filter(|(path, _)| path.starts_with(folder) || folder.starts_with(path));
        meeting
            .next()
            .map(|(_, what)| format!("{what} and a folder of attachments cannot be inside of each other"))
    }

    fn check(&self) -> Result<(), String> {
        unique("store", self.store.iter().map(|s| s.name.as_str()))?;
        unique("vault", self.vault.iter().map(|v| v.name.as_str()))?;
        unique("source", self.source.iter().map(|s| s.name.as_str()))?;
        for source in &self.source {
            self.check_stores(source)?;
            let paths = || std::iter::once(&source.path).chain(&source.databases).chain(&source.attachments);
            if paths().any(|path| !path.is_absolute()) {
                return Err(format!("source `{}`: `path` must be absolute", source.name));
            }
            if let Some(inside) = source
                .attachments
                .iter()
                .find_map(|folder| self.inside_of(folder, Path::new("/proc/no-state")))
            {
                return Err(format!("source `{}`: {inside}", source.name));
            }
            let mut names: Vec<_> = paths().map(|path| path.file_name()).collect();
            names.sort_unstable();
            // A restore puts them into one folder.
            if names.contains(&None) || names.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(format!(
                    "source `{}`: two of its files or folders have the same name",
                    source.name
                ));
            }
        }
        for store in &self.store {
            store.check()?;
        }
        let from_environment =
            |store: &&Store| store.secrets.values().any(|place| matches!(place, Place::Environment(_)));
        if let Some(store) = self.store.iter().find(from_environment)
            && !self.service.secrets_from_environment
        {
            return Err(format!(
                "store `{}` takes a secret from the environment, where other processes of the user can read it; where that is \
                 right, say `service.secrets_from_environment = true`",
                store.name
            ));
        }
        self.vaults.check(self.vault.len())?;
        if !(1..=19).contains(&self.capture.compression_level) {
            return Err("`capture.compression_level` must be 1 to 19".to_owned());
        }
        if self.capture.quiet.0 > self.capture.max_age.0 {
            return Err("`capture.quiet` is longer than `capture.max_age`".to_owned());
        }
        Ok(())
    }
}

impl Config {
    fn check_stores(&self, source: &Source) -> Result<(), String> {
        let name = &source.name;
        if source.store.is_some() && !source.stores.is_empty() {
            return Err(format!("source `{name}` has `store` and `stores`: one of them says it all"));
        }
        if source.store.is_none() && source.stores.is_empty() && self.store.len() != 1 {
            return Err(format!("source `{name}` must say which store it uses"));
        }
        let stores = source.store.iter().chain(&source.stores);
        if let Some(unknown) = stores.clone().find(|known| !self.store.iter().any(|s| s.name == **known)) {
            return Err(format!("source `{name}` names the store `{unknown}`, which is not configured"));
        }
        unique("store", stores.map(String::as_str)).map_err(|error| format!("source `{name}`: {error}"))
    }
}

/// Where and what, without the line itself: it may hold a secret.
fn place(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().lines().next().unwrap_or_default();
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return message.to_owned();
    };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {message}")
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > 64 {
            return Err(format!("a {what} needs a name of 1 to 64 bytes"));
        }
        if !seen.insert(name) {
            return Err(format!("two {what}s are called `{name}`"));
        }
    }
    Ok(())
}

/// Names under which people write secrets into configuration files.
const SECRET_NAMES: [&str; 10] = [
    "password",
    "passphrase",
    "passwd",
    "secret",
    "secret_key",
    "secret_access_key",
    "access_key_id",
    "token",
    "api_key",
    "private_key",
];

/// The dotted path of the first secret in the tree, if there is one.
fn secret_in(table: &toml::Table, at: &str) -> Option<String> {
    for (key, value) in table {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match value {
            toml::Value::Table(inner) if key == "secrets" => {
                let leaked = inner.iter().find(|(_, v)| !v.as_str().is_some_and(names_a_place));
                if let Some((name, _)) = leaked {
                    return Some(format!("{path}.{name}"));
                }
            }
            toml::Value::Table(inner) => {
                if let Some(found) = secret_in(inner, &path) {
                    return Some(found);
                }
            }
            toml::Value::Array(items) => {
                for item in items.iter().filter_map(toml::Value::as_table) {
                    if let Some(found) = secret_in(item, &path) {
                        return Some(found);
                    }
                }
            }
            toml::Value::String(text) if key == "url" && has_user_info(text) => return Some(path),
            _ if SECRET_NAMES.contains(&key.to_ascii_lowercase().as_str()) => return Some(path),
            _ => {}
        }
    }
    None
}

fn names_a_place(value: &str) -> bool {
    Place::parse(value).is_some()
}

/// `https://user:password@host/`
fn has_user_info(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
    authority.split_once('@').is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("config.toml"))
    }

    #[test]
    fn a_malformed_secret_is_not_repeated() {
        for text in ["password = hunter2hunter2", "[[store]]\nname = \"a\"\ntoken = 'hunter2hunter2\n"] {
            let error = Config::parse(text, Path::new("config.toml")).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("line "), "{error}");
        }
    }

    #[test]
    fn the_example_is_the_default_written_out() {
        let example = include_str!("../../config.example.toml");
        assert_eq!(parse(example).unwrap(), Config::default());
        let all: Vec<&str> = example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
        let config = parse(&all.join("\n")).unwrap();
        assert!(!config.store.is_empty() && !config.vault.is_empty() && !config.source.is_empty());
    }

    #[test]
    fn an_unknown_key_is_fatal_and_named() {
        let error = parse("[capture]\nquite = \"2s\"\n").unwrap_err().to_string();
        assert!(error.contains("quite"), "{error}");
    }

    #[test]
    fn a_secret_is_refused_and_the_key_named() {
        for (text, key) in [
            (
                "[[store]]\nname='a'\nurl='s3://b'\nsecrets={secret_access_key='AKIA123'}\n",
                "store.secrets.secret_access_key",
            ),
            ("[[store]]\nname='a'\nurl='s3://b'\noptions={token='x'}\n", "store.options.token"),
            ("[service]\npassword='x'\n", "service.password"),
            ("[[store]]\nname='a'\nurl='dav://me:hunter2@host/x'\n", "store.url"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(&error, ConfigError::SecretInFile { key: found, .. } if found == key),
                "{error}"
            );
            assert!(!error.to_string().contains("AKIA123") && !error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn the_place_of_a_secret_is_no_secret() {
        let config = parse("[[store]]\nname='a'\nurl='file:///x'\nsecrets={token='keyring'}\n").unwrap();
        assert_eq!(config.store[0].secrets["token"], Place::Keyring);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse("[capture]\nquiet='500ms'\n").unwrap().capture.quiet, Span(500));
        for bad in ["'5'", "'5 s'", "'s'", "5", "'99999999999999999999h'"] {
            assert!(parse(&format!("[capture]\nquiet={bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn periods_may_have_no_end() {
        let text = "[retention]\nhourly_for='3d'\ndaily_for='forever'\n[upkeep]\nprune_every='never'\n\
                    verify_every='0'\ndrill_every='12h'\n";
        let config = parse(text).unwrap();
        let policy = config.retention.policy();
        assert_eq!((policy.hourly_for_ms, policy.daily_for_ms), (3 * 86_400_000, u64::MAX));
        assert_eq!(config.upkeep.prune_every.every_ms(), None);
        assert_eq!(config.upkeep.verify_every.every_ms(), None);
        assert_eq!(config.upkeep.drill_every.every_ms(), Some(12 * 3_600_000));
        assert!(parse("[retention]\nhourly_for='a while'\n").is_err());
        assert!(parse("[retention]\nweekly=3\n").is_err());
    }

    #[test]
    fn what_stays_by_default_is_what_the_planner_thinks() {
        assert_eq!(Retention::default().policy(), RetentionPolicy::default());
    }

    #[test]
    fn contradictions_are_found() {
        for bad in [
            "[[source]]\nname='a'\npath='/x'\n",
            "[[source]]\nname='a'\npath='/x'\nstore='b'\n",
            "[[store]]\nname='s'\nurl='file:///x'\n[[source]]\nname='a'\npath='/x'\nstore='s'\nstores=['s']\n",
            "[[store]]\nname='s'\nurl='file:///x'\n[[source]]\nname='a'\npath='/x'\nstores=['s', 's']\n",
            "[[store]]\nname='s'\nurl='file:///x'\n[[source]]\nname='a'\npath='/x'\nstores=['s', 't']\n",
            "[[store]]\nname='s'\nurl='file:///x'\n[[source]]\nname='a'\npath='/x/a.db'\ndatabases=['/y/a.db']\n",
            "[[store]]\nname='s'\nurl='file:///x'\n[[source]]\nname='a'\npath='/x/a.db'\nattachments=['media']\n",
            "[[store]]\nname='s'\nurl='file:///x/store'\n[[source]]\nname='a'\npath='/x/a.db'\nattachments=['/x']\n",
            "[[store]]\nname='a'\nurl='file:///x'\n[[store]]\nname='a'\nurl='file:///y'\n",
            "[[store]]\nname='a'\nurl='file:///x'\n[[source]]\nname='a'\npath='x'\n",
            "[capture]\nquiet='1m'\n",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
