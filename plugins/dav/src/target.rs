//! What the URL, the options and the secrets of a store mean. Pure, but for the file of a certificate authority.

use std::net::IpAddr;

use chatkeep_store::{Opening, Result, StoreError};
use reqwest::Url;
use zeroize::Zeroizing;

/// Requests at once unless the user says otherwise. Small servers at home answer several no faster than two.
const PARALLEL: u16 = 2;

const OPTIONS: &[&str] = &["allow_http", "ca_file", "parallel", "probe"];
const SECRETS: &[&str] = &["username", "password", "token"];

/// A folder on a server, and how to be let in.
pub(crate) struct Target {
    /// Ends in `/`.
    pub(crate) root: Url,
    pub(crate) auth: Auth,
    pub(crate) parallel: u16,
    /// Certificate authorities beside those of the system, PEM.
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) probe: bool,
    pub(crate) read_only: bool,
}

/// What a server wants to see.
pub(crate) enum Auth {
    Nothing,
    Basic { username: Zeroizing<String>, password: Zeroizing<String> },
    Bearer(Zeroizing<String>),
}

impl Target {
    pub(crate) fn of(opening: &Opening) -> Result<Self> {
        opening.expect_only(OPTIONS, SECRETS)?;
        let parallel = opening.option_or("parallel", PARALLEL)?;
        if !(1..=64).contains(&parallel) {
            return Err(invalid("the option `parallel` is between 1 and 64"));
        }
        let allow_http = opening.option_or("allow_http", false)?;
        let ca = opening.option("ca_file").map(read_ca).transpose()?;
        Ok(Self {
            root: root_of(&opening.url, allow_http)?,
            auth: auth_of(opening)?,
            parallel,
            ca,
            probe: opening.option_or("probe", false)?,
            read_only: opening.read_only,
        })
    }
}

fn root_of(text: &str, allow_http: bool) -> Result<Url> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let http = match scheme.to_ascii_lowercase().as_str() {
        "dav" | "davs" => "https",
        "dav+http" => "http",
        _ => return Err(invalid("a URL of this store is `dav://HOST/FOLDER`")),
    };
    if rest.starts_with(['/', '\\']) {
        // the parser would take the folder for the server
        return Err(invalid("the URL of the store names no server"));
    }
    let mut url = Url::parse(&format!("{http}://{rest}"))
        .map_err(|error| StoreError::Invalid { reason: format!("the URL of the store: {error}") })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("user and password are secrets of the store, no part of its URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("`?` and `#` in the URL of the store are written %3F and %23"));
    }
    if http == "http" {
        plain_http_is_fine(url.host_str().unwrap_or_default(), allow_http)?;
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    if url.path().bytes().all(|byte| byte == b'/') {
        return Err(invalid("the URL of the store names no folder: backups need one of their own"));
    }
    Ok(url)
}

/// Without TLS the password is for everybody on the way to read: never through the internet.
fn plain_http_is_fine(host: &str, allowed: bool) -> Result<()> {
    let reach = reach_of(host);
    match (reach, allowed) {
        (Reach::Here, _) | (Reach::Near, true) => Ok(()),
        (Reach::Near, false) => {
            Err(invalid("plain HTTP shows the password to the network: the option `allow_http` permits it"))
        }
        (Reach::Far, _) => Err(invalid("plain HTTP is for this machine and the local network: use `dav://`")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Here,
    Near,
    Far,
}

fn reach_of(host: &str) -> Reach {
    let host = host.trim_end_matches('.');
    if host == "localhost" || host.ends_with(".localhost") {
        return Reach::Here;
    }
    let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else {
        // names that cannot be bought (RFC 6762, RFC 8375, ICANN's reservation of .internal), and names without a dot
        let local = [".local", ".lan", ".home.arpa", ".internal"].iter().any(|end| host.ends_with(end));
        return if local || !host.contains('.') { Reach::Near } else { Reach::Far };
    };
    let near = match address {
        // 100.64/10 (RFC 6598) is what overlay networks give out
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    match (address.is_loopback(), near) {
        (true, _) => Reach::Here,
        (false, true) => Reach::Near,
        (false, false) => Reach::Far,
    }
}

fn auth_of(opening: &Opening) -> Result<Auth> {
    let secret = |name: &str| opening.secrets.get(name).map(|value| Zeroizing::new(value.to_owned()));
    match (secret("username"), secret("password"), secret("token")) {
        (None, None, None) => Ok(Auth::Nothing),
        (Some(username), Some(password), None) => Ok(Auth::Basic { username, password }),
        (None, None, Some(token)) => Ok(Auth::Bearer(token)),
        _ => Err(invalid("a store has the secrets `username` and `password`, or `token`, or none")),
    }
}

fn read_ca(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| StoreError::Invalid { reason: format!("the file of the option `ca_file`: {error}") })
}

fn invalid(reason: &str) -> StoreError {
    StoreError::Invalid { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn root(url: &str, allow_http: bool) -> Result<String> {
        root_of(url, allow_http).map(|url| url.to_string())
    }

    #[track_caller]
    fn refuse(url: &str, allow_http: bool, reason: &str) {
        let error = root(url, allow_http).unwrap_err().to_string();
        assert!(error.contains(reason), "{url}: {error}");
    }

    #[test]
    fn a_url_names_a_folder_behind_tls() {
        assert_eq!(root("dav://h/a", false).unwrap(), "https://h/a/");
        assert_eq!(root("DAVS://h:8443/a/b/", false).unwrap(), "https://h:8443/a/b/");
        assert_eq!(root("dav://h/u%20v", false).unwrap(), "https://h/u%20v/");
    }

    #[test]
    fn a_url_without_a_folder_or_with_more_than_one_is_refused() {
        refuse("dav://h", false, "names no folder");
        refuse("dav://h//", false, "names no folder");
        refuse("https://h/a", false, "dav://HOST/FOLDER");
        refuse("dav:/h/a", false, "dav://HOST/FOLDER");
        refuse("dav://h/a?b", false, "%3F");
        refuse("dav://h/a#b", false, "%23");
        refuse("dav://me:secret@h/a", false, "no part of its URL");
        refuse("dav:///a", false, "names no server");
    }

    #[test]
    fn plain_http_never_leaves_the_local_network() {
        for here in ["localhost", "127.0.0.1", "[::1]", "127.8.9.1"] {
            root(&format!("dav+http://{here}:8080/a"), false).unwrap();
        }
        for near in
            ["nas", "nas.local", "192.168.1.9", "10.0.0.1", "100.64.0.1", "[fd00::1]", "nas.home.arpa"]
        {
            refuse(&format!("dav+http://{near}/a"), false, "allow_http");
            root(&format!("dav+http://{near}/a"), true).unwrap();
        }
        for far in ["example.org", "8.8.8.8", "100.128.0.1", "[2001:db8::1]", "local.example.org"] {
            refuse(&format!("dav+http://{far}/a"), true, "use `dav://`");
        }
    }

    #[test]
    fn half_of_the_secrets_or_a_misspelt_option_is_refused() {
        let mut opening = Opening::of_url("dav://h/a");
        opening.secrets.set("username", Zeroizing::new("me".to_owned()));
        assert!(Target::of(&opening).is_err());
        opening.secrets.set("password", Zeroizing::new("p".to_owned()));
        assert!(matches!(Target::of(&opening).unwrap().auth, Auth::Basic { .. }));
        opening.secrets.set("token", Zeroizing::new("t".to_owned()));
        assert!(Target::of(&opening).is_err());
        let mut opening = Opening::of_url("dav://h/a");
        opening.options.insert("pararell".to_owned(), "3".to_owned());
        assert!(Target::of(&opening).is_err());
        let mut opening = Opening::of_url("dav://h/a");
        opening.options.insert("parallel".to_owned(), "0".to_owned());
        assert!(Target::of(&opening).is_err());
    }
}
