//! What the URL and the options of a store mean, and how `ssh` is called for it. Pure.

use std::ffi::OsString;

use chatkeep_store::opening::undo_percent_encoding;
use chatkeep_store::{Opening, Result, StoreError};

/// Calls at once unless the user says otherwise. One session does one thing after another at the server.
const PARALLEL: u16 = 2;

const OPTIONS: &[&str] = &["identity_file", "parallel", "port", "ssh", "ssh_config"];

/// What is asked of `ssh` whatever the user's configuration says: to ask nobody, to carry nothing but this, and to notice
/// within a minute that the other side is gone.
const SSH_OPTIONS: &[&str] = &[
    "BatchMode=yes",
    "ClearAllForwardings=yes",
    "ConnectTimeout=30",
    "ControlMaster=no",
    "ControlPath=none",
    "EscapeChar=none",
    "ForwardAgent=no",
    "ForwardX11=no",
    // its errors are read
    "LogLevel=ERROR",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ServerAliveCountMax=4",
    "ServerAliveInterval=15",
];

/// A folder on another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    ssh: String,
    identity_file: Option<String>,
    ssh_config: Option<String>,
    pub(crate) folder: Folder,
    pub(crate) parallel: u16,
    pub(crate) read_only: bool,
}

/// The folder there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Folder {
    Absolute(String),
    /// Below where the server puts the user.
    OfHome(String),
}

impl Target {
    pub(crate) fn of(opening: &Opening) -> Result<Self> {
        opening.expect_only(OPTIONS, &[])?;
        let scheme = opening.url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("sftp://"));
        let rest = scheme.map(|_| &opening.url[7..]).ok_or_else(|| invalid(FORM))?;
        let (authority, path) = rest.split_once('/').ok_or_else(|| invalid(FORM))?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(checked_user(user)?), host),
            None => (None, authority),
        };
        let (host, url_port) = host_and_port(host)?;
        let port = opening.option("port").map(|_| opening.option_or("port", 22_u16)).transpose()?;
        if port.is_some() && url_port.is_some() && port != url_port {
            return Err(invalid("the URL and the option `port` of the store name two ports"));
        }
        let parallel = opening.option_or("parallel", PARALLEL)?;
        if !(1..=64).contains(&parallel) {
            return Err(invalid("the option `parallel` is between 1 and 64"));
        }
        let text = |name: &str| opening.option(name).map(str::to_owned);
        Ok(Self {
            user,
            host,
            port: port.or(url_port),
            ssh: text("ssh").unwrap_or_else(|| "ssh".to_owned()),
            identity_file: text("identity_file"),
            ssh_config: text("ssh_config"),
            folder: folder_of(path)?,
            parallel,
            read_only: opening.read_only,
        })
    }

    pub(crate) fn program(&self) -> &str {
        &self.ssh
    }

    /// The arguments of `ssh`. Nothing of the URL can be taken for an option: each is behind one, or behind `--`.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
        if let Some(file) = &self.ssh_config {
            add("-F", file);
        }
        for option in SSH_OPTIONS {
            add("-o", option);
        }
        if let Some(file) = &self.identity_file {
            add("-i", file);
        }
        if let Some(port) = self.port {
            add("-p", &port.to_string());
        }
        if let Some(user) = &self.user {
            add("-l", user);
        }
        arguments.extend(["-s", "--", self.host.as_str(), "sftp"].map(OsString::from));
        arguments
    }
}

const FORM: &str =
    "a URL of this store is `sftp://[USER@]HOST[:PORT]/FOLDER`, or `…/~/FOLDER` for one of the home folder";

/// A name goes into commands that the user's configuration may build (`ProxyCommand`, `Match exec`), through a shell:
/// letters, digits and a few signs that mean nothing there.
fn is_harmless(text: &str, signs: &str) -> bool {
    let harmless = |character: char| character.is_ascii_alphanumeric() || signs.contains(character);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(harmless)
}

fn checked_user(user: &str) -> Result<String> {
    if user.contains(':') {
        return Err(invalid("a password in the URL is of no use: `ssh` wants a key"));
    }
    if !is_harmless(user, "._-+@") {
        return Err(invalid("the user in the URL of the store has characters that no user name should have"));
    }
    Ok(user.to_owned())
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>)> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| invalid(FORM))?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if !is_harmless(host, "._-:") || (bracketed.is_none() && host.contains(':')) {
        return Err(invalid("the host in the URL of the store has characters that no name of a host has"));
    }
    let port = port.map(|port| port.parse().map_err(|_| invalid("the port in the URL of the store is none")));
    Ok((host.to_owned(), port.transpose()?))
}

fn folder_of(path: &str) -> Result<Folder> {
    if path.contains(['?', '#']) {
        return Err(invalid("`?` and `#` in the URL of the store are written %3F and %23"));
    }
    let decoded =
        undo_percent_encoding(path).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
            invalid("the path in the URL of the store has a % without two hex digits, or is not UTF-8")
        })?;
    let (home, path) = match decoded.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => (true, rest),
        _ => (false, decoded.as_str()),
    };
    let segments: Vec<&str> =
        path.split('/').filter(|segment| !segment.is_empty() && *segment != ".").collect();
    if segments.contains(&"..") || path.contains(char::is_control) {
        return Err(invalid("the path in the URL of the store has `..` or a control character in it"));
    }
    let path = segments.join("/");
    match (path.is_empty(), home) {
        (true, _) => Err(invalid("the URL of the store names no folder: backups need one of their own")),
        (false, true) => Ok(Folder::OfHome(path)),
        (false, false) => Ok(Folder::Absolute(format!("/{path}"))),
    }
}

fn invalid(reason: &str) -> StoreError {
    StoreError::Invalid { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn target(url: &str) -> Result<Target> {
        Target::of(&Opening::of_url(url))
    }

    #[track_caller]
    fn refuse(url: &str) {
        assert!(matches!(target(url), Err(StoreError::Invalid { .. })), "{url}");
    }

    fn absolute(path: &str) -> Folder {
        Folder::Absolute(path.to_owned())
    }

    #[test]
    fn a_url_names_a_machine_and_a_folder_there() {
        let full = target("sftp://me@nas.example:2222/srv/backups/").unwrap();
        assert_eq!(
            (full.user.as_deref(), full.host.as_str(), full.port),
            (Some("me"), "nas.example", Some(2222))
        );
        assert_eq!(full.folder, absolute("/srv/backups"));
        let short = target("SFTP://nas/~/backups/of%20me").unwrap();
        assert_eq!((short.user, short.port), (None, None));
        assert_eq!(short.folder, Folder::OfHome("backups/of me".to_owned()));
        let six = target("sftp://me@[fd00::1]:22/b").unwrap();
        assert_eq!((six.host.as_str(), six.port), ("fd00::1", Some(22)));
        assert_eq!(target("sftp://h//a/./b").unwrap().folder, absolute("/a/b"));
        assert_eq!(target("sftp://h/~a").unwrap().folder, absolute("/~a"));
    }

    #[test]
    fn nothing_in_a_url_can_be_an_option_or_a_command() {
        for url in [
            "sftp://-oProxyCommand=touch/x",
            "sftp://-oProxyCommand=touch@h/x",
            "sftp://h;id/x",
            "sftp://`id`/x",
            "sftp://$(id)@h/x",
            "sftp://h%20-v/x",
            "sftp://me:secret@h/x",
            "sftp://[-v]/x",
            "sftp://a b/x",
            "sftp://@h/x",
            "sftp:///x",
        ] {
            refuse(url);
        }
        let arguments = target("sftp://me@h:22/x").unwrap().arguments();
        let end: Vec<_> = arguments[arguments.len() - 4..].to_vec();
        assert_eq!(end, ["-s", "--", "h", "sftp"]);
    }

    #[test]
    fn a_url_without_a_folder_of_its_own_is_refused() {
        for url in ["sftp://h", "sftp://h/", "sftp://h/~", "sftp://h/~/", "sftp://h/a/../b", "sftp://h/a%00b"]
        {
            refuse(url);
        }
        for url in
            ["sftp://h/a?b", "sftp://h/a#b", "sftp://h/a%", "sftp://h/%ff", "ssh://h/a", "sftp://h:0x1/a"]
        {
            refuse(url);
        }
    }

    #[test]
    fn options_are_checked_and_reach_ssh() {
        let mut opening = Opening::of_url("sftp://h/x");
        opening.options.insert("port".to_owned(), "2222".to_owned());
        opening.options.insert("identity_file".to_owned(), "/k".to_owned());
        opening.options.insert("ssh_config".to_owned(), "/c".to_owned());
        let arguments = Target::of(&opening).unwrap().arguments();
        let has = |pair: [&str; 2]| arguments.windows(2).any(|two| two == pair);
        assert!(
            has(["-p", "2222"]) && has(["-i", "/k"]) && has(["-F", "/c"]) && has(["-o", "BatchMode=yes"])
        );
        opening.url = "sftp://h:22/x".to_owned();
        assert!(Target::of(&opening).is_err(), "two ports");
        let mut opening = Opening::of_url("sftp://h/x");
        opening.options.insert("prot".to_owned(), "1".to_owned());
        assert!(Target::of(&opening).is_err());
    }
}
