//! [`LocalStore`]: the contract on top of blocking file calls.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, CreateGuarantee, ObjectMeta, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey,
    Usage, Visibility,
};

use crate::root::{FirstUse, Root};
use crate::{files, url};

/// A folder as a store. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Root>,
}

impl LocalStore {
    /// The store in the folder `path`, which must be absolute. Its first use makes the folder (not those above it) and
    /// writes a marker file.
    ///
    /// Fails only where the path itself makes no sense. Anything else may pass by itself, so the calls tell it:
    /// [`Offline`](StoreError::Offline) while the folder is away, and again whenever its marker vanishes from an empty
    /// folder, which is then the place of a drive that is not mounted.
    ///
    /// Before the first call has found it, an empty folder cannot be told from such a place: for a store that was used
    /// before, call [`LocalStore::reopen`], which never begins anew. Blocks.
    pub fn open(path: &Path) -> Result<Self> {
        Self::start(path, FirstUse::Allowed)
    }

    /// As [`LocalStore::open`], for a store that was used before: without its folder, or in an empty folder without
    /// the marker, calls are [`Offline`](StoreError::Offline) until it is back.
    pub fn reopen(path: &Path) -> Result<Self> {
        Self::start(path, FirstUse::Refused)
    }

    /// As [`LocalStore::open`], for the folder of a URL `file:///…`; percent-encoding is undone.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::open(&url::path_of(url)?)
    }

    /// As [`LocalStore::reopen`], for the folder of a URL `file:///…`.
    pub fn reopen_url(url: &str) -> Result<Self> {
        Self::reopen(&url::path_of(url)?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    fn start(path: &Path, first_use: FirstUse) -> Result<Self> {
        if !path.is_absolute() {
            let reason =
                format!("the folder of a store must be given from / on, not as `{}`", path.display());
            return Err(StoreError::Invalid { reason });
        }
        let root = Root::at(PathBuf::from(path), first_use);
        match root.open() {
            Err(error @ StoreError::Invalid { .. }) => Err(error),
            _ => Ok(Self { root: Arc::new(root) }),
        }
    }

    /// Runs blocking file calls. They run to their end even if nobody waits for them any more, so that a dropped call
    /// is done or not done.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // the runtime is shutting down, and the work had not begun
            Err(error) => Err(StoreError::Transient(error.into())),
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let key = key.clone();
        self.run(move |root| files::put(root, &key, &body, condition)).await
    }

    async fn put_file(&self, key: &StoreKey, body: Bytes, file: &Path) -> Result<PutReceipt> {
        let (key, file) = (key.clone(), file.to_owned());
        self.run(move |root| files::put_file(root, &key, &body, &file)).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let key = key.clone();
        self.run(move |root| files::get(root, &key, range)).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let key = key.clone();
        self.run(move |root| files::head(root, &key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = prefix.to_owned();
        self.run(move |root| files::list(root, &prefix)).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        let key = key.clone();
        self.run(move |root| files::delete(root, &key)).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.run(files::usage).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create: CreateGuarantee::Atomic,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: true,
            delete_is_final: true,
            usage: true,
            retain: false,
            object_len_max: None,
            // each put waits for the disk two times; more at once only queue up there
            parallel: 8,
        }
    }
}
