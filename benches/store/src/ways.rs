//! The ways that are compared. All of them ask the same server for the same, with the same credentials.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{
    Capabilities, ObjectMeta, Opening, PutCondition, PutReceipt, Store, StoreError, StoreKey, Usage,
};
use chatkeep_store_host::{Launch, PluginStore, Settings, Spawn};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStoreExt as _};
use zeroize::Zeroizing;

const BUCKET: &str = "bench";
const ACCESS_KEY_ID: &str = "measured";
const SECRET_ACCESS_KEY: &str = "no secret at all";

/// A way to the server.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) store: Arc<dyn Store>,
}

/// What our store is opened with.
fn opening(endpoint: &str) -> Opening {
    let mut opening = Opening::of_url(&format!("s3://{BUCKET}"));
    let options = [
        ("endpoint", endpoint),
        ("region", "us-east-1"),
        ("allow_http", "true"),
        ("path_style", "true"),
        ("conditions", "off"),
    ];
    opening.options.extend(options.map(|(name, value)| (name.to_owned(), value.to_owned())));
    opening.secrets.set("access_key_id", Zeroizing::new(ACCESS_KEY_ID.to_owned()));
    opening.secrets.set("secret_access_key", Zeroizing::new(SECRET_ACCESS_KEY.to_owned()));
    opening
}

/// Our store, in this process.
pub(crate) async fn in_process(endpoint: &str) -> Result<Arc<dyn Store>> {
    Ok(chatkeep_store_cloud::open(&opening(endpoint)).await?)
}

/// Our store in a process of its own.
pub(crate) struct Plugin {
    store: Arc<PluginStore>,
    _folder: tempfile::TempDir,
}

/// Starts it.
pub(crate) async fn plugin(program: &Path, endpoint: &str) -> Result<Plugin> {
    let folder = tempfile::tempdir()?;
    let launch = Launch {
        store: "bench".to_owned(),
        program: std::fs::canonicalize(program).context("the plugin's program")?,
        network: true,
        ..Launch::default()
    };
    let settings = Settings::new(launch, Arc::new(Spawn::new()), opening(endpoint), folder.path());
    let store = PluginStore::new(settings)?;
    store.open().await?;
    Ok(Plugin { store: Arc::new(store), _folder: folder })
}

impl Plugin {
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Its share of memory (Pss), in KiB.
    pub(crate) fn memory(&self) -> Result<u64> {
        let pid = self.store.state().running.and_then(|(pid, _)| pid).context("the plugin does not run")?;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}

/// The library itself, with nothing around it but the trait that all ways have here.
pub(crate) struct Direct(AmazonS3);

impl Direct {
    pub(crate) fn new(endpoint: &str) -> Result<Self> {
        let options = ClientOptions::new().with_allow_http(true).with_timeout_disabled();
        let builder = AmazonS3Builder::new().with_bucket_name(BUCKET).with_endpoint(endpoint);
        let builder = builder.with_access_key_id(ACCESS_KEY_ID).with_secret_access_key(SECRET_ACCESS_KEY);
        Ok(Self(builder.with_region("us-east-1").with_client_options(options).build()?))
    }
}

fn failed(error: object_store::Error) -> StoreError {
    StoreError::Transient(Box::new(error))
}

#[async_trait]
impl Store for Direct {
    async fn put(&self, key: &StoreKey, body: Bytes, _: PutCondition) -> Result<PutReceipt, StoreError> {
        let len = body.len() as u64;
        self.0.put(&ObjectPath::from(key.as_str()), body.into()).await.map_err(failed)?;
        Ok(PutReceipt { len })
    }

    async fn get(&self, key: &StoreKey, _: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let found = self.0.get(&ObjectPath::from(key.as_str())).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta, StoreError> {
        let found = self.0.head(&ObjectPath::from(key.as_str())).await.map_err(failed)?;
        Ok(ObjectMeta { key: key.clone(), len: found.size })
    }

    async fn list(&self, _: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        Err(StoreError::Unsupported { what: "list: nobody measures it" })
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.0.delete(&ObjectPath::from(key.as_str())).await.map_err(failed)
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        Err(StoreError::Unsupported { what: "say how full it is" })
    }

    fn capabilities(&self) -> Capabilities {
        MemoryStore::new().capabilities()
    }
}
