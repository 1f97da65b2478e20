//! Secrets of stores: from where the configuration says that they are, and never from anywhere else.

use std::path::{Path, PathBuf};

use chatkeep_store::{Secrets, StoreError};
use zeroize::Zeroizing;

use crate::config::{Place, Store};
use crate::keys::{KeyStore, KeyStoreError};

/// Where systemd puts credentials (`LoadCredential=`).
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Fetches the secrets of a store. One that cannot be had is an [`Auth`](StoreError::Auth) error that names it: the user has
/// to act, and no other place is looked at instead.
pub async fn resolve(
    store: &Store,
    key_store: &dyn KeyStore,
    directory: Option<&Path>,
) -> Result<Secrets, StoreError> {
    let mut secrets = Secrets::new();
    for (name, place) in &store.secrets {
        let value = match place {
            Place::Keyring => from_keyring(store, name, key_store).await?,
            Place::Credential(file) => from_file(name, file, directory)?,
            Place::Environment(variable) => {
                let missing = || auth(format!("`{variable}` is not in the environment (secret `{name}`)"));
                Zeroizing::new(std::env::var(variable).map_err(|_| missing())?)
            }
        };
        secrets.set(name, value);
    }
    Ok(secrets)
}

async fn from_keyring(
    store: &Store,
    name: &str,
    key_store: &dyn KeyStore,
) -> Result<Zeroizing<String>, StoreError> {
    let found = key_store.load_credential(&store.name, name).await;
    found.map_err(|error| auth_by(name, error))?.ok_or_else(|| {
        let how = format!("chatkeep store credentials {}", store.name);
        auth(format!("the secret `{name}` was never given; `{how}` asks for it"))
    })
}

fn from_file(name: &str, file: &str, directory: Option<&Path>) -> Result<Zeroizing<String>, StoreError> {
    let directory = directory.ok_or_else(|| {
        auth(format!("systemd gave this service no credentials (secret `{name}`, LoadCredential={file})"))
    })?;
    let read = std::fs::read_to_string(directory.join(file)).map(Zeroizing::new);
    let text = read.map_err(|error| auth(format!("the credential `{file}` cannot be read: {error}")))?;
    Ok(Zeroizing::new(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
}

fn auth(why: String) -> StoreError {
    StoreError::Auth(why.into())
}

fn auth_by(name: &str, error: KeyStoreError) -> StoreError {
    match error {
        KeyStoreError::Io(error) => auth(format!("the secret `{name}` cannot be read: {error}")),
        error => StoreError::Auth(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::error::Error as _;

    use super::*;
    use crate::keys::KeyFiles;

    fn store(place: &str) -> Store {
        toml::from_str(&format!("name = 'nas'\nurl = 's3://b'\nsecrets = {{ token = '{place}' }}")).unwrap()
    }

    fn cause(error: &StoreError) -> String {
        error.source().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_secret_comes_from_the_place_that_is_named_and_from_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFiles::new(folder.path().to_owned());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "from a file\n").unwrap();
        let of = async |place: &str, directory: Option<&Path>| resolve(&store(place), &keys, directory).await;

        let error = of("keyring", Some(directory.path())).await.unwrap_err();
        assert!(cause(&error).contains("chatkeep store credentials nas"), "{}", cause(&error));
        keys.save_credential("nas", "token", "from the keyring").await.unwrap();
        assert_eq!(of("keyring", None).await.unwrap().get("token"), Some("from the keyring"));
        let found = of("credential:token", Some(directory.path())).await.unwrap();
        assert_eq!(found.get("token"), Some("from a file"));

        for (place, directory) in [("credential:other", Some(directory.path())), ("credential:token", None)] {
            let error = of(place, directory).await.unwrap_err();
            assert!(matches!(error, StoreError::Auth(_)), "{error}");
        }
        let error = of("env:CHATKEEP_NOT_SET", None).await.unwrap_err();
        assert!(cause(&error).contains("CHATKEEP_NOT_SET"));
    }
}
