//! What a plugin says of itself before anybody runs it: its schemes, its program, what it is set up with, how far it reaches.

pub mod find;
pub mod program;
pub mod trust;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chatkeep_store::{Opening, Result, StoreError};
use serde::Deserialize;

/// Stores that need no process; no manifest may claim them.
const IN_PROCESS: [&str; 2] = ["file", "memory"];
/// Longest manifest, in bytes.
const LEN_MAX: u64 = 64 << 10;

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name of its file, without `.toml`.
    pub name: String,
    /// Where it is from.
    pub origin: Origin,
    /// Its text, which trust is bound to.
    pub text: String,
    /// The schemes of its URLs.
    pub schemes: Vec<String>,
    /// The program: an absolute path, or a name for one that comes with Chatkeep.
    pub exec: PathBuf,
    /// What it reaches.
    pub sandbox: Sandbox,
    /// Its settings by name.
    pub options: BTreeMap<String, OptionSpec>,
    /// Its secrets by name.
    pub secrets: BTreeMap<String, SecretSpec>,
}

/// Where a manifest is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is part of this program.
    Shipped,
    /// A folder of the system, which only root writes to.
    System(PathBuf),
    /// The user's home directory. It needs [`trust`].
    Home(PathBuf),
}

/// What a plugin reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// The network.
    pub network: bool,
    /// Files and folders of the home directory, to read and to write: `/…`, `~/…`, or `$NAME` for what a variable of the
    /// environment says. What does not exist is left out.
    pub paths: Vec<String>,
    /// The session bus.
    pub session_bus: bool,
    /// Variables of the environment that it gets besides `PATH`, `LANG`, `HOME` and `TMPDIR`.
    pub environment: Vec<String>,
}

/// A setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptionSpec {
    /// The values it may have; any text where there are none.
    #[serde(rename = "enum")]
    pub one_of: Vec<String>,
    /// What it is if it is not set.
    pub default: Option<String>,
    /// The store cannot be opened without it.
    pub required: bool,
    /// Its value is a path, which the plugin then reaches.
    pub path: Option<PathUse>,
    /// For people.
    pub doc: String,
}

/// What a plugin reaches because of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathUse {
    /// What is named.
    Itself,
    /// The folder that it lies in: for a file that is replaced when it is written.
    Parent,
}

/// A secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretSpec {
    /// What the user is asked.
    pub prompt: String,
    /// How it comes about.
    pub how: How,
    /// The store cannot be opened without it.
    pub required: bool,
}

/// How a secret comes about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The user is asked for it.
    #[default]
    Ask,
    /// The plugin signs in (`POST /auth`), and has it then.
    Oauth,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    schemes: Vec<String>,
    exec: PathBuf,
    #[serde(default)]
    sandbox: Sandbox,
    #[serde(default)]
    options: BTreeMap<String, OptionSpec>,
    #[serde(default)]
    secrets: BTreeMap<String, SecretSpec>,
}

impl Manifest {
    /// Reads a manifest. What is unknown in it is an error: a misspelt line must not open more, or less, than was meant.
    pub fn parse(name: &str, text: &str, origin: Origin) -> Result<Self> {
        let wrong = |what: String| invalid(format!("the manifest of store plugin `{name}` is wrong: {what}"));
        let written: Written = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
            wrong(format!("line {line}: {}", error.message()))
        })?;
        let manifest = Self {
            name: name.to_owned(),
            origin,
            text: text.to_owned(),
            schemes: written.schemes,
            exec: written.exec,
            sandbox: written.sandbox,
            options: written.options,
            secrets: written.secrets,
        };
        match manifest.fault() {
            Some(fault) => Err(wrong(fault)),
            None => Ok(manifest),
        }
    }

    fn fault(&self) -> Option<String> {
        if !is_name(&self.name) {
            return Some("its name is not made of a-z, 0-9 and -".to_owned());
        }
        if self.schemes.is_empty() {
            return Some("it has no scheme".to_owned());
        }
        if let Some(scheme) = self.schemes.iter().find(|scheme| !is_scheme(scheme)) {
            return Some(format!("`{scheme}` is no scheme of a URL"));
        }
        if let Some(scheme) = self.schemes.iter().find(|scheme| IN_PROCESS.contains(&scheme.as_str())) {
            return Some(format!("`{scheme}` is not for plugins"));
        }
        if self.origin != Origin::Shipped && !self.exec.is_absolute() {
            return Some("`exec` is no absolute path".to_owned());
        }
        let bad_path = |path: &&String| !["/", "~/", "$"].iter().any(|start| path.starts_with(start));
        if let Some(path) = self.sandbox.paths.iter().find(bad_path) {
            return Some(format!("`{path}` is no path of a sandbox: `/…`, `~/…` or `$NAME`"));
        }
        if let Some(name) = self.options.keys().find(|name| self.secrets.contains_key(*name)) {
            return Some(format!("`{name}` is an option and a secret"));
        }
        self.options.iter().find_map(|(name, spec)| {
            let default = spec.default.as_ref()?;
            let fits = spec.one_of.is_empty() || spec.one_of.contains(default);
            (!fits).then(|| format!("the default `{default}` of `{name}` is not one of its values"))
        })
    }

    /// Checks what a store is to be opened with, and fills in defaults.
    pub fn complete(&self, opening: &Opening) -> Result<Opening> {
        for (name, value) in &opening.options {
            let Some(spec) = self.options.get(name) else {
                return Err(self.unknown("option", name, self.options.keys()));
            };
            if !spec.one_of.is_empty() && !spec.one_of.contains(value) {
                let values = spec.one_of.join(", ");
                return Err(invalid(format!(
                    "`{value}` is no value for the option `{name}`: it is one of {values}"
                )));
            }
            if spec.path.is_some() && !["/", "~/"].iter().any(|start| value.starts_with(start)) {
                return Err(invalid(format!("the option `{name}` is an absolute path, not `{value}`")));
            }
        }
        if let Some(name) = opening.secrets.names().find(|name| !self.secrets.contains_key(*name)) {
            return Err(self.unknown("secret", name, self.secrets.keys()));
        }
        let mut complete = opening.clone();
        let home = std::env::var("HOME").unwrap_or_default();
        for (name, spec) in &self.options {
            if let (Some(_), Some(value)) = (spec.path, complete.options.get_mut(name))
                && let Some(below) = value.strip_prefix("~/")
            {
                *value = format!("{home}/{below}");
            }
            if let (None, Some(default)) = (opening.option(name), &spec.default) {
                complete.options.insert(name.clone(), default.clone());
            }
            if spec.required && complete.option(name).is_none() {
                return Err(invalid(format!("the option `{name}` is missing")));
            }
        }
        let missing =
            self.secrets.iter().find(|(name, spec)| spec.required && opening.secrets.get(name).is_none());
        match missing {
            Some((name, _)) => Err(invalid(format!("the secret `{name}` is missing"))),
            None => Ok(complete),
        }
    }

    fn unknown<'a>(&self, what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> StoreError {
        let known: Vec<&str> = known.map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        invalid(format!(
            "there is no {what} `{name}` for {}: stores; there are: {known}",
            self.schemes.join(": and ")
        ))
    }

    /// The file it is in, if it is in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Shipped => None,
            Origin::System(path) | Origin::Home(path) => Some(path),
        }
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.bytes().all(allowed)
}

fn is_scheme(scheme: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+.-".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_lowercase()) && scheme.bytes().all(allowed)
}

fn invalid(reason: String) -> StoreError {
    StoreError::Invalid { reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use zeroize::Zeroizing;

    use super::*;

    const PCLOUD: &str = r#"
        schemes = ["pcloud"]
        exec = "/usr/lib/chatkeep/stores/pcloud"
        sandbox = { network = true }
        [options]
        region = { enum = ["eu", "us"], default = "eu", doc = "where the account is" }
        key_file = { path = "itself" }
        [secrets]
        token = { prompt = "Access token", how = "oauth" }
    "#;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse("pcloud", text, Origin::System("/usr/share/x/pcloud.toml".into()))
    }

    fn refuse(text: &str, words: &str) {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("`pcloud`") && error.contains(words), "{error}");
    }

    #[test]
    fn what_is_wrong_in_a_manifest_is_named() {
        refuse("", "schemes");
        refuse("schemes = []\nexec = \"/x\"", "no scheme");
        refuse("schemes = [\"s3\"]", "exec");
        refuse("schemes = [\"S3\"]\nexec = \"/x\"", "`S3` is no scheme");
        refuse("schemes = [\"a:b\"]\nexec = \"/x\"", "`a:b` is no scheme");
        refuse("schemes = [\"file\"]\nexec = \"/x\"", "`file` is not for plugins");
        refuse("schemes = [\"p\"]\nexec = \"x\"", "no absolute path");
        refuse("schemes = [\"p\"]\nexec = \"/x\"\nsandbx = {}", "sandbx");
        refuse("schemes = [\"p\"]\nexec = \"/x\"\nsandbox = { networks = true }", "networks");
        refuse("schemes = [\"p\"]\nexec = \"/x\"\nsandbox = { paths = [\"x\"] }", "`x` is no path");
        refuse(
            "schemes = [\"p\"]\nexec = \"/x\"\n[options.a]\nenum = [\"b\"]\ndefault = \"c\"",
            "default `c` of `a`",
        );
        refuse("schemes = [\"p\"]\nexec = \"/x\"\n[options.a]\n[secrets.a]", "an option and a secret");
        refuse("schemes = [\"p\"]\nexec = \"/x\"\n[secrets.a]\nhow = \"guess\"", "guess");
        refuse("exec = \"/x\"\nschemes = \"p\"", "line 2: invalid type");
        refuse("\u{0}", "");
        Manifest::parse("../p", PCLOUD, Origin::Shipped).unwrap_err();
    }

    #[test]
    fn a_configuration_is_checked_against_the_manifest() {
        let manifest = parse(PCLOUD).unwrap();
        let mut opening = Opening::of_url("pcloud://x");
        assert_eq!(manifest.complete(&opening).unwrap().option("region"), Some("eu"));
        let mut refuse = |name: &str, value: &str, words: &str| {
            opening.options.insert(name.to_owned(), value.to_owned());
            assert_eq!(manifest.complete(&opening).unwrap_err().to_string(), words);
            opening.options.remove(name);
        };
        refuse("region", "mars", "`mars` is no value for the option `region`: it is one of eu, us");
        refuse("regoin", "eu", "there is no option `regoin` for pcloud: stores; there are: key_file, region");
        refuse("key_file", "x", "the option `key_file` is an absolute path, not `x`");
        opening.secrets.set("password", Zeroizing::new("hunter2".to_owned()));
        let error = manifest.complete(&opening).unwrap_err().to_string();
        assert_eq!(error, "there is no secret `password` for pcloud: stores; there are: token");
    }

    #[test]
    fn what_is_required_is_asked_for_by_name() {
        let text =
            "schemes = [\"p\"]\nexec = \"/x\"\n[options.a]\nrequired = true\n[secrets.b]\nrequired = true";
        let (manifest, mut opening) = (parse(text).unwrap(), Opening::of_url("p:"));
        assert_eq!(manifest.complete(&opening).unwrap_err().to_string(), "the option `a` is missing");
        opening.options.insert("a".to_owned(), "1".to_owned());
        assert_eq!(manifest.complete(&opening).unwrap_err().to_string(), "the secret `b` is missing");
        opening.secrets.set("b", Zeroizing::new("2".to_owned()));
        manifest.complete(&opening).unwrap();
    }
}
