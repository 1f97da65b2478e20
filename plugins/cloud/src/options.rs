//! From an [`Opening`] to settings that cannot be wrong in themselves. Pure.

use chatkeep_store::{Opening, Result, StoreError};
use http::Uri;

/// Longest prefix within a bucket, in bytes: keys add up to 200, and the services take 1024.
const PREFIX_LEN_MAX: usize = 512;

/// Classes whose objects cannot be read without being asked for hours before.
const CLASSES_THAT_CANNOT_BE_READ: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// Where and how, without the secrets' meaning being checked by anybody yet.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub(crate) prefix: String,
    /// `https://host[:port][/path]`, without a slash at the end. For S3 with the bucket in it, else without.
    pub(crate) base: String,
    /// The host (and port) of `base`: nobody else is talked to.
    pub(crate) authority: String,
    pub(crate) parallel: u16,
    pub(crate) kind: Kind,
}

/// What differs between the services.
#[derive(Debug)]
pub(crate) enum Kind {
    S3(S3),
    Gs { service_account: Secret },
    Az { account: String, credential: AzCredential },
}

#[derive(Debug)]
pub(crate) struct S3 {
    pub(crate) region: String,
    pub(crate) storage_class: Option<String>,
    pub(crate) conditions: Trust,
    pub(crate) retain_mode: Option<RetainMode>,
    pub(crate) access_key_id: Secret,
    pub(crate) secret_access_key: Secret,
    pub(crate) session_token: Option<Secret>,
}

#[derive(Debug)]
pub(crate) enum AzCredential {
    AccountKey(Secret),
    SasToken(Secret),
}

/// Text that does not show. What the libraries below make of it is not zeroized by them; it leaves with the process.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(redacted)")
    }
}

/// Whether `If-None-Match: *` is to be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Known to hold.
    On,
    /// To be tried once.
    Probe,
    /// Not even to be sent.
    Off,
}

/// How an object is locked (S3 Object Lock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainMode {
    /// Nobody can delete it before its time, not even the owner of the account.
    Compliance,
    /// Who has a special permission can.
    Governance,
}

impl RetainMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Compliance => "COMPLIANCE",
            Self::Governance => "GOVERNANCE",
        }
    }
}

impl Settings {
    /// Reads URL, options and secrets.
    pub(crate) fn of(opening: &Opening) -> Result<Self> {
        let (scheme, rest) = opening.url.split_once("://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket = bucket_of(bucket)?;
        let prefix = prefix_of(prefix)?;
        match scheme {
            "s3" => s3(opening, bucket, prefix),
            "gs" => gs(opening, bucket, prefix),
            "az" => az(opening, bucket, prefix),
            _ => Err(invalid(format!("`{scheme}` is none of s3, gs and az"))),
        }
    }
}

fn s3(opening: &Opening, bucket: String, prefix: String) -> Result<Settings> {
    const OPTIONS: &[&str] = &[
        "endpoint",
        "region",
        "path_style",
        "allow_http",
        "storage_class",
        "conditions",
        "retain_mode",
        "parallel",
    ];
    opening.expect_only(OPTIONS, &["access_key_id", "secret_access_key", "session_token"])?;
    let region = opening.option("region").unwrap_or("us-east-1").to_owned();
    if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    {
        return Err(invalid(format!("`{region}` is no region")));
    }
    let storage_class = opening.option("storage_class").map(str::to_owned);
    if let Some(class) = &storage_class {
        if CLASSES_THAT_CANNOT_BE_READ.contains(&class.as_str()) {
            return Err(invalid(format!("objects of the storage class {class} cannot be read at once")));
        }
        if !class.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_') {
            return Err(invalid(format!("`{class}` is no storage class")));
        }
    }
    let own = opening.option("endpoint");
    let amazon = format!("https://s3.{region}.amazonaws.com");
    let endpoint = endpoint_of(own.unwrap_or(&amazon), opening.option_or("allow_http", false)?)?;
    // a certificate for *.s3.amazonaws.com does not cover a name with dots below it
    let path_style = opening.option_or("path_style", own.is_some() || bucket.contains('.'))?;
    let (base, authority) = if path_style {
        (format!("{}/{bucket}", endpoint.url()), endpoint.authority)
    } else {
        let authority = format!("{bucket}.{}", endpoint.authority);
        (format!("{}://{authority}{}", endpoint.scheme, endpoint.path), authority)
    };
    let conditions = match (opening.option("conditions").unwrap_or("auto"), own) {
        ("auto", None) | ("on", _) => Trust::On,
        ("auto", Some(_)) => Trust::Probe,
        ("off", _) => Trust::Off,
        (other, _) => return Err(invalid(format!("`conditions` is auto, on or off, not `{other}`"))),
    };
    let retain_mode = match opening.option("retain_mode") {
        None => None,
        Some("compliance") => Some(RetainMode::Compliance),
        Some("governance") => Some(RetainMode::Governance),
        Some(other) => {
            return Err(invalid(format!("`retain_mode` is compliance or governance, not `{other}`")));
        }
    };
    let kind = Kind::S3(S3 {
        region,
        storage_class,
        conditions,
        retain_mode,
        access_key_id: secret(opening, "access_key_id")?,
        secret_access_key: secret(opening, "secret_access_key")?,
        session_token: opening.secrets.get("session_token").map(|token| Secret(token.to_owned())),
    });
    Ok(Settings { bucket, prefix, base, authority, parallel: parallel(opening)?, kind })
}

fn gs(opening: &Opening, bucket: String, prefix: String) -> Result<Settings> {
    opening.expect_only(&["endpoint", "parallel"], &["service_account"])?;
    let endpoint = opening.option("endpoint").unwrap_or("https://storage.googleapis.com");
    let endpoint = endpoint_of(endpoint, false)?;
    let kind = Kind::Gs { service_account: secret(opening, "service_account")? };
    let (base, authority) = (endpoint.url(), endpoint.authority);
    Ok(Settings { bucket, prefix, base, authority, parallel: parallel(opening)?, kind })
}

fn az(opening: &Opening, bucket: String, prefix: String) -> Result<Settings> {
    opening.expect_only(&["account", "endpoint", "parallel"], &["account_key", "sas_token"])?;
    let account =
        opening.option("account").ok_or_else(|| invalid("the option `account` is missing".into()))?;
    if account.is_empty() || !account.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(invalid(format!("`{account}` is no storage account")));
    }
    let endpoint = opening
        .option("endpoint")
        .map_or_else(|| format!("https://{account}.blob.core.windows.net"), str::to_owned);
    let endpoint = endpoint_of(&endpoint, false)?;
    let credential = match (opening.secrets.get("account_key"), opening.secrets.get("sas_token")) {
        (Some(_), Some(_)) => return Err(invalid("give `account_key` or `sas_token`, not both".into())),
        (None, Some(token)) => AzCredential::SasToken(Secret(token.to_owned())),
        (_, None) => AzCredential::AccountKey(secret(opening, "account_key")?),
    };
    let kind = Kind::Az { account: account.to_owned(), credential };
    let (base, authority) = (endpoint.url(), endpoint.authority);
    Ok(Settings { bucket, prefix, base, authority, parallel: parallel(opening)?, kind })
}

fn invalid(reason: String) -> StoreError {
    StoreError::Invalid { reason }
}

fn secret(opening: &Opening, name: &str) -> Result<Secret> {
    let value = opening.secrets.need(name)?;
    if value.is_empty() {
        return Err(invalid(format!("the secret `{name}` is empty")));
    }
    Ok(Secret(value.to_owned()))
}

/// Four at once fill a line of 100 Mbit/s with packs of 8 MiB; more takes memory.
fn parallel(opening: &Opening) -> Result<u16> {
    Ok(opening.option_or("parallel", 4_u16)?.clamp(1, 32))
}

/// What needs no escaping in a URL, so that every server sees the same name.
fn plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text.bytes().any(|byte| byte != b'.')
}

fn bucket_of(text: &str) -> Result<String> {
    if text.len() > 255 || !plain(text) {
        return Err(invalid(format!("`{text}` is no name of a bucket")));
    }
    Ok(text.to_owned())
}

fn prefix_of(text: &str) -> Result<String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if !text.is_empty() && (text.len() > PREFIX_LEN_MAX || !text.split('/').all(plain)) {
        return Err(invalid(format!("`{text}` is no prefix: letters, digits and . _ - between slashes")));
    }
    Ok(text.to_owned())
}

struct Endpoint {
    scheme: String,
    authority: String,
    path: String,
}

impl Endpoint {
    fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }
}

/// Without TLS, who listens can read along what is named and add to it: only on request, or within this machine.
fn endpoint_of(text: &str, allow_http: bool) -> Result<Endpoint> {
    let reason = || format!("`{text}` is no endpoint, as `https://s3.example.org` is");
    let uri: Uri = text.parse().map_err(|_| invalid(reason()))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid(reason()));
    };
    if uri.query().is_some() || authority.as_str().contains('@') {
        return Err(invalid(reason()));
    }
    let loopback = matches!(authority.host(), "127.0.0.1" | "[::1]" | "localhost");
    match scheme {
        "https" => {}
        "http" if allow_http || loopback => {}
        "http" => return Err(invalid(format!("`{text}` is not encrypted; `allow_http` would allow it"))),
        _ => return Err(invalid(reason())),
    }
    let path = uri.path().trim_end_matches('/').to_owned();
    Ok(Endpoint { scheme: scheme.to_owned(), authority: authority.to_string(), path })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn opening(url: &str, options: &[(&str, &str)], secrets: &[&str]) -> Opening {
        let mut opening = Opening::of_url(url);
        for (name, value) in options {
            opening.options.insert((*name).to_owned(), (*value).to_owned());
        }
        for name in secrets {
            opening.secrets.set(name, "hunter2".to_owned().into());
        }
        opening
    }

    const KEYS: &[&str] = &["access_key_id", "secret_access_key"];

    fn s3(url: &str, options: &[(&str, &str)]) -> Result<Settings> {
        Settings::of(&opening(url, options, KEYS))
    }

    fn refuse(settings: Result<Settings>, reason: &str) {
        let error = settings.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    fn trust(options: &[(&str, &str)]) -> Trust {
        match s3("s3://b", options).unwrap().kind {
            Kind::S3(s3) => s3.conditions,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_bucket_is_in_the_host_at_amazon_and_in_the_path_elsewhere() {
        let settings = s3("s3://bucket/some/folder/", &[("region", "eu-central-1")]).unwrap();
        assert_eq!(settings.base, "https://bucket.s3.eu-central-1.amazonaws.com");
        assert_eq!((settings.bucket.as_str(), settings.prefix.as_str()), ("bucket", "some/folder"));
        let settings = s3("s3://bucket", &[("endpoint", "https://s3.example.org:8443/")]).unwrap();
        assert_eq!(settings.base, "https://s3.example.org:8443/bucket");
        assert_eq!(settings.authority, "s3.example.org:8443");
        let settings = s3("s3://a.b", &[]).unwrap();
        assert_eq!(settings.base, "https://s3.us-east-1.amazonaws.com/a.b");
        let options = [("endpoint", "https://s3.example.org"), ("path_style", "false")];
        assert_eq!(s3("s3://bucket", &options).unwrap().base, "https://bucket.s3.example.org");
    }

    #[test]
    fn a_missing_secret_is_named() {
        refuse(Settings::of(&opening("s3://b", &[], &[])), "`access_key_id` is missing");
        refuse(Settings::of(&opening("s3://b", &[], &["access_key_id"])), "`secret_access_key` is missing");
        refuse(Settings::of(&opening("gs://b", &[], &[])), "`service_account` is missing");
        refuse(Settings::of(&opening("az://b", &[("account", "a")], &[])), "`account_key` is missing");
        refuse(Settings::of(&opening("az://b", &[], &["account_key"])), "`account` is missing");
        let both = opening("az://b", &[("account", "a")], &["account_key", "sas_token"]);
        refuse(Settings::of(&both), "not both");
    }

    #[test]
    fn what_is_misspelt_or_makes_no_sense_is_refused() {
        refuse(s3("s3://b", &[("regoin", "x")]), "no option `regoin`");
        refuse(s3("s3://b", &[("conditions", "maybe")]), "`conditions`");
        refuse(s3("s3://b", &[("retain_mode", "forever")]), "`retain_mode`");
        refuse(s3("s3://b", &[("storage_class", "GLACIER")]), "cannot be read at once");
        refuse(s3("s3://b", &[("region", "a.evil.example/")]), "no region");
        refuse(s3("s3://", &[]), "no name of a bucket");
        refuse(s3("s3://../x", &[]), "no name of a bucket");
        refuse(s3("s3://b/x/../y", &[]), "no prefix");
        refuse(s3("s3://b/x%2fy", &[]), "no prefix");
        refuse(s3("s3://b//x", &[]), "no prefix");
        refuse(s3("ftp://b", &[]), "none of s3, gs and az");
        refuse(s3("s3://b", &[("endpoint", "https://key:secret@s3.example.org")]), "no endpoint");
        refuse(s3("s3://b", &[("endpoint", "s3.example.org")]), "no endpoint");
    }

    #[test]
    fn without_tls_only_on_request_or_within_this_machine() {
        refuse(s3("s3://b", &[("endpoint", "http://nas.example.org")]), "not encrypted");
        s3("s3://b", &[("endpoint", "http://nas.example.org"), ("allow_http", "true")]).unwrap();
        s3("s3://b", &[("endpoint", "http://127.0.0.1:9000")]).unwrap();
    }

    #[test]
    fn conditions_are_tried_where_nothing_is_known_of_the_server() {
        assert_eq!(trust(&[]), Trust::On);
        assert_eq!(trust(&[("endpoint", "https://s3.example.org")]), Trust::Probe);
        assert_eq!(trust(&[("endpoint", "https://s3.example.org"), ("conditions", "on")]), Trust::On);
        assert_eq!(trust(&[("conditions", "off")]), Trust::Off);
    }

    #[test]
    fn a_secret_does_not_show_where_settings_are_printed() {
        let shown = format!("{:?}", s3("s3://b", &[]).unwrap());
        assert!(shown.contains("(redacted)") && !shown.contains("hunter2"), "{shown}");
    }
}
