//! Adds a section to `config.toml` as text, so that everything else in it stays as its owner wrote it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A `[[store]]` to be written.
pub(crate) struct NewStore<'a> {
    pub(crate) name: &'a str,
    pub(crate) url: &'a str,
    pub(crate) options: &'a BTreeMap<String, String>,
    /// Names of its secrets; all of them are in the keyring.
    pub(crate) secrets: &'a [String],
}

/// Where the service looks unless told otherwise.
pub(crate) fn default_path() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("chatkeep/config.toml"))
}

/// The text with one section more. A table at the end of a file belongs to nothing before it.
pub(crate) fn with_store(before: &str, store: &NewStore<'_>) -> String {
    let mut text = before.trim_end().to_owned();
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let _ = write!(text, "[[store]]\nname = {}\nurl = {}\n", quoted(store.name), quoted(store.url)); // a String takes everything
    let inline = |pairs: Vec<(String, String)>| {
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name} = {}", quoted(value))).collect();
        format!("{{ {} }}", pairs.join(", "))
    };
    if !store.options.is_empty() {
        let options = store.options.iter().map(|(name, value)| (key(name), value.clone())).collect();
        let _ = writeln!(text, "options = {}", inline(options));
    }
    if !store.secrets.is_empty() {
        let secrets = store.secrets.iter().map(|name| (key(name), "keyring".to_owned())).collect();
        let _ = writeln!(text, "secrets = {}", inline(secrets));
    }
    text
}

/// A key of TOML, quoted where it has to be.
fn key(name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { name.to_owned() } else { toml::Value::String(name.to_owned()).to_string() }
}

/// Whether there is a store of this name already. A file that is no TOML has none: the service says what is wrong with it.
pub(crate) fn has_store(text: &str, name: &str) -> bool {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    let stores = table.get("store").and_then(toml::Value::as_array);
    stores.is_some_and(|stores| {
        stores.iter().any(|store| store.get("name").and_then(toml::Value::as_str) == Some(name))
    })
}

/// Replaces the file as a whole or not at all. It keeps its mode; a new one is for its owner alone.
pub(crate) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mode = std::fs::metadata(&target).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    let mut new = target.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const BEFORE: &str = "# mine\n[capture]\nquiet = \"2s\" # as I like it\n";

    fn add(before: &str, options: &[(&str, &str)], secrets: &[&str]) -> String {
        let pairs = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let secrets: Vec<String> = secrets.iter().map(|name| (*name).to_owned()).collect();
        let options = pairs.collect();
        with_store(
            before,
            &NewStore { name: "nas", url: "s3://b/\"x\"", options: &options, secrets: &secrets },
        )
    }

    #[test]
    fn what_was_there_stays_to_the_letter() {
        let text = add(BEFORE, &[("region", "a \"b\"")], &["token"]);
        assert!(text.starts_with(BEFORE.trim_end()), "{text}");
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["capture"]["quiet"].as_str(), Some("2s"));
        let store = &table["store"][0];
        assert_eq!(store["url"].as_str(), Some("s3://b/\"x\""));
        assert_eq!(store["options"]["region"].as_str(), Some("a \"b\""));
        assert_eq!(store["secrets"]["token"].as_str(), Some("keyring"));
    }

    #[test]
    fn a_store_is_added_behind_others_and_into_nothing() {
        let twice = add(&add("", &[], &[]), &[], &[]);
        let table: toml::Table = toml::from_str(&twice).unwrap();
        assert_eq!(table["store"].as_array().unwrap().len(), 2);
        assert!(has_store(&twice, "nas") && !has_store(&twice, "other") && !has_store("no [ toml", "nas"));
    }

    #[test]
    fn a_link_to_the_file_stays_a_link_and_the_mode_stays_too() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("dotfiles.toml"), folder.path().join("config.toml"));
        std::fs::write(&file, BEFORE).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
