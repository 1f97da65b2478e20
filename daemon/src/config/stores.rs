//! `[[store]]`: where sealed objects go, what may be sent there and what it costs.

use std::collections::BTreeMap;

use chatkeep_planner::{Budget, OnMetered, PausePolicy, Prices};
use serde::Deserialize;

use super::{Period, Span};

/// `[[store]]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Its name on D-Bus and in logs.
    pub name: String,
    /// The scheme picks the kind of store.
    pub url: String,
    /// Settings of that kind of store, handed over as they are.
    #[serde(default)]
    pub options: BTreeMap<String, toml::Value>,
    /// Where each secret of the store lives: `"keyring"`, `"credential:NAME"` or `"env:NAME"`. Never the secret.
    #[serde(default)]
    pub secrets: BTreeMap<String, Place>,
    /// What may be sent to it, and when.
    #[serde(default)]
    pub limits: Limits,
    /// What it charges, where that differs from the published list of its kind.
    pub prices: Option<PriceList>,
    /// Objects are locked against deletion for so long, and the locks of those that are still needed are renewed.
    #[serde(default)]
    pub retain: Retain,
}

/// Where a secret lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the desktop's keyring, under the name of the store and of the secret.
    Keyring,
    /// In a file that systemd puts into `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// In the environment: for containers. Other processes of the user can read it.
    Environment(String),
}

/// `store.limits`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// At most so many bytes a second are sent; nothing for no bound.
    pub upload: Option<Rate>,
    /// What goes over a metered line.
    pub metered: Metered,
    /// On the battery nothing is sent below this, in percent; 0 is always.
    pub battery: u8,
    /// Requests a month, of all kinds.
    pub requests: Option<u64>,
    /// Bytes a month, in both directions.
    pub bytes: Option<Size>,
}

/// `store.limits.metered`
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Metered {
    /// Nothing.
    #[default]
    Never,
    /// Objects up to 256 KiB.
    Small,
    /// Everything.
    Always,
}

/// `store.prices`, in a currency's unit (dollars, euros …).
#[derive(Debug, Clone, Copy, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct PriceList {
    /// For a million puts or lists.
    pub million_writes: f64,
    /// For a million gets or heads.
    pub million_reads: f64,
    /// For a GB (10⁹ bytes) and month.
    pub gb_month: f64,
    /// For a GB fetched.
    pub gb_down: f64,
}

impl Default for PriceList {
    fn default() -> Self {
        Self { million_writes: 0.0, million_reads: 0.0, gb_month: 0.0, gb_down: 0.0 }
    }
}

/// `store.retain`: nothing, or a duration of at least a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retain(pub Option<Span>);

/// Bytes a second, written `"512 KiB/s"` or `"2 MiB/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub u64);

/// Bytes, written `"500 MB"` or `"50 GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// The shortest retention: locks are renewed when half of their time is over, at most once a day.
const RETAIN_MIN_MS: u64 = 86_400_000;

impl Default for Limits {
    fn default() -> Self {
        Self { upload: None, metered: Metered::Never, battery: 30, requests: None, bytes: None }
    }
}

impl Store {
    /// The scheme of its URL.
    pub fn scheme(&self) -> &str {
        self.url.split(':').next().unwrap_or_default()
    }

    /// For the planner.
    pub fn pause_policy(&self) -> PausePolicy {
        PausePolicy {
            remote: !matches!(self.scheme(), "file" | "memory"),
            metered: match self.limits.metered {
                Metered::Never => OnMetered::Nothing,
                Metered::Small => OnMetered::Small,
                Metered::Always => OnMetered::Everything,
            },
            battery_min_percent: self.limits.battery,
        }
    }

    /// For the planner.
    pub fn budget(&self) -> Budget {
        Budget { requests_max: self.limits.requests, bytes_max: self.limits.bytes.map(|size| size.0) }
    }

    /// What it charges: what the user says, or the published list of its kind; nothing where nobody knows.
    pub fn price_list(&self) -> Option<Prices> {
        // millionths of the unit; a thousand requests are a thousandth of a million
        let millionths = |unit: f64| (unit * 1e6).max(0.0) as u64;
        match self.prices {
            Some(list) => Some(Prices {
                writes_1000: millionths(list.million_writes / 1000.0),
                reads_1000: millionths(list.million_reads / 1000.0),
                gb_month: millionths(list.gb_month),
                gb_down: millionths(list.gb_down),
            }),
            None => Prices::of_scheme(self.scheme()),
        }
    }

    /// Its options as text, as stores take them.
    pub fn option_texts(&self) -> BTreeMap<String, String> {
        let text = |value: &toml::Value| match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.options.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let name = &self.name;
        // It names a unit of systemd, an item of the keyring and an object on D-Bus.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(format!("store `{name}`: a name is made of letters, digits, `-`, `_` and `.`"));
        }
        if !self.url.contains(':') {
            return Err(format!("store `{name}`: `{}` is not a URL", self.url));
        }
        if let Some((option, _)) = self.options.iter().find(|(_, value)| value.is_table() || value.is_array())
        {
            return Err(format!("store `{name}`: the option `{option}` is no text, number or switch"));
        }
        // It names an item of the keyring and a file beside the keys, together with the name of the store.
        let good = |name: &str| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        if self.secrets.keys().any(|name| !good(name)) {
            return Err(format!("store `{name}`: a secret's name is made of a-z, 0-9 and `_`"));
        }
        if self.limits.battery > 100 {
            return Err(format!("store `{name}`: `limits.battery` is a percentage"));
        }
        if self.limits.upload.is_some_and(|rate| rate.0 < 1024) {
            return Err(format!(
                "store `{name}`: `limits.upload` below 1 KiB/s sends nothing in any useful time"
            ));
        }
        if self.retain.0.is_some_and(|span| span.0 < RETAIN_MIN_MS) {
            return Err(format!("store `{name}`: `retain` must be at least \"1d\""));
        }
        Ok(())
    }
}

impl Place {
    /// Reads `keyring`, `credential:NAME` or `env:NAME`; anything else may be the secret itself.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "keyring" => Some(Self::Keyring),
            Some(("credential", name)) if is_file_name(name) => Some(Self::Credential(name.to_owned())),
            Some(("env", name)) if !name.is_empty() => Some(Self::Environment(name.to_owned())),
            _ => None,
        }
    }
}

/// A name that does not leave its folder.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // the text is not repeated: it may be a secret
        let text = String::deserialize(deserializer)?;
        let places = "a secret is in \"keyring\", \"credential:NAME\" or \"env:NAME\"";
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(places))
    }
}

impl<'de> Deserialize<'de> for Retain {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Period::deserialize(deserializer).map(|period| Self(period.0.filter(|span| span.0 > 0)))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || format!("`{text}` is not a size (\"500 MB\", \"50 GiB\")");
        parse_size(&text).map(Self).ok_or_else(|| serde::de::Error::custom(wrong()))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || format!("`{text}` is not a rate (\"512 KiB/s\", \"2 MiB/s\")");
        let size = text.strip_suffix("/s").and_then(parse_size);
        size.map(Self).ok_or_else(|| serde::de::Error::custom(wrong()))
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let value: u64 = text[..digits].parse().ok()?;
    let factor: u64 = match text[digits..].trim_start() {
        "B" => 1,
        "kB" | "KB" => 1000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "TiB" => 1 << 40,
        _ => return None,
    };
    value.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn parse(more: &str) -> Result<Store, String> {
        let store: Store = toml::from_str(&format!("name = 'a'\nurl = 's3://b/c'\n{more}"))
            .map_err(|error| error.to_string())?;
        store.check()?;
        Ok(store)
    }

    #[test]
    fn sizes_and_rates_have_units() {
        let store = parse("limits = { upload = '2 MiB/s', bytes = '50GiB', requests = 9 }").unwrap();
        assert_eq!(store.limits.upload, Some(Rate(2 << 20)));
        assert_eq!(store.budget(), Budget { requests_max: Some(9), bytes_max: Some(50 << 30) });
        for bad in [
            "upload = '2'",
            "upload = '2 MiB'",
            "upload = 5",
            "bytes = '5 XB'",
            "bytes = ''",
            "upload = '9 B/s'",
        ] {
            parse(&format!("limits = {{ {bad} }}")).unwrap_err();
        }
    }

    #[test]
    fn a_name_is_good_for_a_unit_a_keyring_and_a_path() {
        let named = |name: &str| Store { name: name.to_owned(), ..parse("").unwrap() }.check();
        named("nas-2.home_a").unwrap();
        for bad in ["a b", "a/b", "ä", "a\n"] {
            named(bad).unwrap_err();
        }
    }

    #[test]
    fn a_secret_in_the_place_of_its_place_is_not_repeated() {
        let error = parse("secrets = { token = 'hunter2' }").unwrap_err();
        assert!(error.contains("keyring"), "{error}");
        assert_eq!(Place::parse("credential:../x"), None);
        assert_eq!(Place::parse("env:"), None);
        assert_eq!(Place::parse("credential:nas-s3"), Some(Place::Credential("nas-s3".to_owned())));
    }

    #[test]
    fn a_secret_cannot_be_named_like_one_of_another_store_or_like_another_file() {
        parse("secrets = { access_key_2 = 'keyring' }").unwrap();
        for bad in ["'a/b'", "'x.y'", "'../keys'", "'A'"] {
            parse(&format!("secrets = {{ {bad} = 'keyring' }}")).unwrap_err();
        }
    }

    #[test]
    fn options_are_text_whatever_they_were_in_toml() {
        let store = parse("options = { region = 'x', parallel = 4, path_style = true }").unwrap();
        let texts: Vec<String> = store.option_texts().into_values().collect();
        assert_eq!(texts, ["4", "true", "x"]);
        parse("options = { a = [1] }").unwrap_err();
    }

    #[test]
    fn prices_are_those_of_the_user_or_of_the_published_list() {
        assert_eq!(parse("").unwrap().price_list(), Prices::of_scheme("s3"));
        let list =
            parse("prices = { million_writes = 1.5, gb_month = 0.006 }").unwrap().price_list().unwrap();
        assert_eq!((list.writes_1000, list.reads_1000, list.gb_month), (1_500, 0, 6_000));
    }

    #[test]
    fn a_retention_below_a_day_is_refused() {
        assert_eq!(parse("retain = '30d'").unwrap().retain, Retain(Some(Span(30 * 86_400_000))));
        assert_eq!(parse("retain = 'never'").unwrap().retain, Retain(None));
        parse("retain = '2h'").unwrap_err();
    }
}
