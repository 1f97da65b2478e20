//! The device's own copy of the keys, behind [`KeyStore`]: the desktop's keyring, or a file the user chose knowingly.
//!
//! What is kept is small and survives a lost cache: per archive the backup key, the secret behind its password
//! keyslot (so that a key can be rotated without asking for the password), and, while a change is under way, their
//! successors. A change first writes the successor here, then publishes it, then drops the predecessor: whatever
//! crashes in between, one of the two opens the newest keyring.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use chatkeep_crypto::BackupKey;
use chatkeep_format::ArchiveId;
use zeroize::Zeroizing;

/// What the device knows of one archive.
#[derive(Debug, Clone, Default)]
pub struct DeviceKeys {
    /// The backup key that opens the newest keyring.
    pub key: Option<BackupKey>,
    /// The secret behind the password keyslot, if there is one.
    pub slot_secret: Option<SlotBytes>,
    /// The backup key of a rotation that is not finished.
    pub next_key: Option<BackupKey>,
    /// The secret behind the keyslot of a password change that is not finished.
    pub next_slot_secret: Option<SlotBytes>,
}

/// The 32 bytes that a password keyslot hides.
#[derive(Clone)]
pub struct SlotBytes(pub Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SlotBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlotBytes(redacted)")
    }
}

/// Why the device's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The keyring is locked; it opens when the user logs in or unlocks it. Never prompted for at start.
    #[error("the desktop's keyring is locked, or was never set up")]
    Locked,
    /// There is no keyring service on this session's bus.
    #[error("no Secret Service answers on this session's bus")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is stored is not what we wrote.
    #[error("the stored keys are damaged")]
    Damaged,
    /// The file could not be read or written.
    #[error("key file")]
    Io(#[from] std::io::Error),
}

/// Keeps the keys of this device. One implementation is chosen at start and shown on D-Bus as `KeyStorage`.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The keys of `archive`; nothing when none were ever saved.
    async fn load(&self, archive: &ArchiveId) -> Result<DeviceKeys, KeyStoreError>;
    /// Replaces the keys of `archive`, durably, before it returns.
    async fn save(&self, archive: &ArchiveId, keys: &DeviceKeys) -> Result<(), KeyStoreError>;
    /// A secret of a store; nothing when none was ever saved.
    async fn load_credential(
        &self,
        store: &str,
        name: &str,
    ) -> Result<Option<Zeroizing<String>>, KeyStoreError>;
    /// Replaces a secret of a store, durably, before it returns.
    async fn save_credential(&self, store: &str, name: &str, value: &str) -> Result<(), KeyStoreError>;
    /// As shown on D-Bus: `secret-service` or `file`.
    fn kind(&self) -> &'static str;
}

/// Version of the record below.
const RECORD_VERSION: u8 = 1;
/// version ‖ present flags ‖ 4 × 32 bytes.
const RECORD_LEN: usize = 2 + 4 * 32;

impl DeviceKeys {
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.key.is_none() && self.next_key.is_none()
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let fields = [
            self.key.as_ref().map(BackupKey::expose),
            self.slot_secret.as_ref().map(|s| &*s.0),
            self.next_key.as_ref().map(BackupKey::expose),
            self.next_slot_secret.as_ref().map(|s| &*s.0),
        ];
        let mut out = Zeroizing::new(Vec::with_capacity(RECORD_LEN));
        out.push(RECORD_VERSION);
        out.push(fields.iter().enumerate().map(|(i, f)| u8::from(f.is_some()) << i).sum());
        for field in fields {
            out.extend_from_slice(field.unwrap_or(&[0; 32]));
        }
        out
    }

    fn decode(record: &[u8]) -> Result<Self, KeyStoreError> {
        if record.len() != RECORD_LEN || record[0] != RECORD_VERSION || record[1] > 0b1111 {
            return Err(KeyStoreError::Damaged);
        }
        let field = |i: usize| -> Option<[u8; 32]> {
            let at = 2 + 32 * i;
            (record[1] >> i & 1 == 1).then(|| record[at..at + 32].try_into().expect("a slice of 32 bytes"))
        };
        Ok(Self {
            key: field(0).map(BackupKey::from_bytes),
            slot_secret: field(1).map(|b| SlotBytes(Zeroizing::new(b))),
            next_key: field(2).map(BackupKey::from_bytes),
            next_slot_secret: field(3).map(|b| SlotBytes(Zeroizing::new(b))),
        })
    }
}

/// Key files with mode 0600 in a folder of their own. "A copy of your home directory decrypts your backups."
pub struct KeyFiles {
    folder: PathBuf,
}

impl KeyFiles {
    /// `folder` must exist and be private.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, archive: &ArchiveId) -> PathBuf {
        self.folder.join(format!("{archive}.key"))
    }

    /// Names of stores and of secrets have no slash ([`crate::config::Store`], manifests).
    fn credential_path(&self, store: &str, name: &str) -> PathBuf {
        self.folder.join(format!("store.{store}.{name}.secret"))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let _ = std::fs::remove_file(&temporary);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(&self.folder)?.sync_all()
    }
}

#[async_trait]
impl KeyStore for KeyFiles {
    async fn load(&self, archive: &ArchiveId) -> Result<DeviceKeys, KeyStoreError> {
        match std::fs::read(self.path(archive)).map(Zeroizing::new) {
            Ok(record) => DeviceKeys::decode(&record),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(DeviceKeys::default()),
            Err(error) => Err(error.into()),
        }
    }

    async fn save(&self, archive: &ArchiveId, keys: &DeviceKeys) -> Result<(), KeyStoreError> {
        Ok(self.replace(&self.path(archive), &keys.encode())?)
    }

    async fn load_credential(
        &self,
        store: &str,
        name: &str,
    ) -> Result<Option<Zeroizing<String>>, KeyStoreError> {
        match std::fs::read_to_string(self.credential_path(store, name)) {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(KeyStoreError::Damaged),
            Err(error) => Err(error.into()),
        }
    }

    async fn save_credential(&self, store: &str, name: &str, value: &str) -> Result<(), KeyStoreError> {
        Ok(self.replace(&self.credential_path(store, name), value.as_bytes())?)
    }

    fn kind(&self) -> &'static str {
        "file"
    }
}

/// The Secret Service of the desktop, with an encrypted session: a plain one would put keys into message bodies.
pub struct SecretService {
    service: oo7::dbus::Service,
}

impl SecretService {
    /// Connects; fails when no keyring answers.
    pub async fn connect() -> Result<Self, KeyStoreError> {
        let service = oo7::dbus::Service::encrypted().await.map_err(unavailable)?;
        Ok(Self { service })
    }

    async fn collection(&self) -> Result<oo7::dbus::Collection, KeyStoreError> {
        // Not `default_collection`: where there is none it would ask the user for a new one, at any time of the day.
        let found =
            self.service.with_alias(oo7::dbus::Service::DEFAULT_COLLECTION).await.map_err(unavailable)?;
        let collection = found.ok_or(KeyStoreError::Locked)?;
        if collection.is_locked().await.map_err(unavailable)? {
            return Err(KeyStoreError::Locked);
        }
        Ok(collection)
    }
}

fn unavailable(error: oo7::dbus::Error) -> KeyStoreError {
    KeyStoreError::Unavailable(Box::new(error))
}

fn credential_attributes(store: &str, name: &str) -> HashMap<String, String> {
    HashMap::from([
        (oo7::XDG_SCHEMA_ATTRIBUTE.to_owned(), "io.github.chatkeep.Chatkeep1.Store".to_owned()),
        ("store".to_owned(), store.to_owned()),
        ("name".to_owned(), name.to_owned()),
    ])
}

fn attributes(archive: &ArchiveId) -> HashMap<String, String> {
    HashMap::from([
        (oo7::XDG_SCHEMA_ATTRIBUTE.to_owned(), "io.github.chatkeep.Chatkeep1.Keys".to_owned()),
        ("archive".to_owned(), archive.to_string()),
    ])
}

#[async_trait]
impl KeyStore for SecretService {
    async fn load(&self, archive: &ArchiveId) -> Result<DeviceKeys, KeyStoreError> {
        let items = self.collection().await?.search_items(&attributes(archive)).await.map_err(unavailable)?;
        let Some(item) = items.first() else { return Ok(DeviceKeys::default()) };
        let secret = item.secret().await.map_err(unavailable)?;
        DeviceKeys::decode(secret.as_bytes())
    }

    async fn save(&self, archive: &ArchiveId, keys: &DeviceKeys) -> Result<(), KeyStoreError> {
        let record = keys.encode();
        self.collection()
            .await?
            .create_item(
                "Chatkeep backup keys",
                &attributes(archive),
                oo7::Secret::blob(&*record),
                true,
                None,
            )
            .await
            .map_err(unavailable)?;
        // A keyring that says yes and keeps nothing would cost the user his backups: read back before going on.
        let kept = self.load(archive).await?;
        if *kept.encode() == *record { Ok(()) } else { Err(KeyStoreError::Damaged) }
    }

    async fn load_credential(
        &self,
        store: &str,
        name: &str,
    ) -> Result<Option<Zeroizing<String>>, KeyStoreError> {
        let attributes = credential_attributes(store, name);
        let items = self.collection().await?.search_items(&attributes).await.map_err(unavailable)?;
        let Some(item) = items.first() else { return Ok(None) };
        let secret = item.secret().await.map_err(unavailable)?;
        let text = std::str::from_utf8(secret.as_bytes()).map_err(|_| KeyStoreError::Damaged)?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    async fn save_credential(&self, store: &str, name: &str, value: &str) -> Result<(), KeyStoreError> {
        let (label, attributes) =
            (format!("Chatkeep store {store}: {name}"), credential_attributes(store, name));
        let collection = self.collection().await?;
        let created = collection.create_item(&label, &attributes, oo7::Secret::text(value), true, None);
        created.await.map_err(unavailable)?;
        let kept = self.load_credential(store, name).await?;
        if kept.is_some_and(|kept| *kept == value) { Ok(()) } else { Err(KeyStoreError::Damaged) }
    }

    fn kind(&self) -> &'static str {
        "secret-service"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn archive() -> ArchiveId {
        ArchiveId([7; 16])
    }

    #[tokio::test]
    async fn key_files_keep_what_they_were_given_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyFiles::new(folder.path().to_owned());
        assert!(store.load(&archive()).await.unwrap().is_empty());
        let keys = DeviceKeys {
            key: Some(BackupKey::from_bytes([1; 32])),
            next_slot_secret: Some(SlotBytes(Zeroizing::new([9; 32]))),
            ..DeviceKeys::default()
        };
        store.save(&archive(), &keys).await.unwrap();
        let back = store.load(&archive()).await.unwrap();
        assert_eq!(back.key.unwrap().expose(), &[1; 32]);
        assert!(back.slot_secret.is_none() && back.next_key.is_none());
        assert_eq!(*back.next_slot_secret.unwrap().0, [9; 32]);
        let mode = std::fs::metadata(store.path(&archive())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn secrets_of_stores_are_kept_beside_the_keys_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFiles::new(folder.path().to_owned());
        assert!(keys.load_credential("nas", "token").await.unwrap().is_none());
        keys.save_credential("nas", "token", "one").await.unwrap();
        keys.save_credential("nas", "token", "two").await.unwrap();
        assert_eq!(*keys.load_credential("nas", "token").await.unwrap().unwrap(), "two");
        assert!(keys.load_credential("nas.token", "").await.unwrap().is_none());
        let mode = std::fs::metadata(keys.credential_path("nas", "token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_damaged_key_file_is_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyFiles::new(folder.path().to_owned());
        std::fs::write(store.path(&archive()), [1, 2, 3]).unwrap();
        assert!(matches!(store.load(&archive()).await, Err(KeyStoreError::Damaged)));
    }

    #[test]
    fn keys_are_not_printed() {
        let keys = DeviceKeys {
            key: Some(BackupKey::from_bytes([0xab; 32])),
            slot_secret: Some(SlotBytes(Zeroizing::new([0xcd; 32]))),
            ..DeviceKeys::default()
        };
        let text = format!("{keys:?}");
        assert!(!text.contains("ab, ") && !text.contains("171") && !text.contains("205"), "{text}");
    }
}
