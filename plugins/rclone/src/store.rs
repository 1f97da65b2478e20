//! [`RcloneStore`]: the contract on top of rclone.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, ObjectMeta, Opening, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey, Usage,
};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::backend::{Backend, Features, Inner, Section};
use crate::child::Program;
use crate::errors::{Asked, Sorter};
use crate::folders::Folders;
use crate::session::Session;
use crate::url::Remote;
use crate::{download, upload, walk};

/// How many uploads at once are useful: services for people, not for machines.
const PARALLEL: u16 = 2;

/// Remotes put around remotes: more than this is a circle.
const WRAPPED_MAX: usize = 8;

/// Most leftovers that one listing removes.
const SWEEP_MAX: usize = 50;

/// A folder of a remote.
struct RcloneStore {
    session: Session,
    backend: Backend,
    folders: Folders,
    parallel: u16,
    read_only: bool,
}

/// Opens `rclone:REMOTE:PATH` or `rclone://REMOTE/PATH`, where REMOTE is one of rclone's configuration.
///
/// Options: `program` (rclone itself, if not the one in `PATH`), `config` (its configuration file, if not the one it
/// finds), `flags` (`name=value,…`: options of the remote) and `parallel`. Secret: `config_password`, if the
/// configuration is encrypted. Must run on a Tokio runtime, and so must every call.
///
/// Starts rclone, and asks it about the remote: without a network that is [`StoreError::Offline`] on many services.
pub async fn open(opening: &Opening) -> Result<Arc<dyn Store>> {
    opening.expect_only(&["program", "config", "flags", "parallel"], &["config_password"])?;
    let remote = Remote::of(opening)?;
    let parallel = opening.option_or("parallel", PARALLEL)?;
    if parallel == 0 {
        return Err(StoreError::Invalid { reason: "`parallel` must be at least 1".to_owned() });
    }
    let has_config_password = opening.secrets.get("config_password").is_some();
    let sorter = Sorter { remote: remote.name.clone(), has_config_password };
    let session = Session::new(program_of(opening)?, remote.spec(), sorter);
    let backend = backend_of(&session, &remote.name).await?;
    let folders = Folders::default();
    let read_only = opening.read_only;
    if backend.folders && !read_only {
        // from now on it is there, so that a listing can tell an empty one from one that is away
        folders.make_top(&session).await?;
    }
    Ok(Arc::new(RcloneStore { session, backend, folders, parallel, read_only }))
}

fn program_of(opening: &Opening) -> Result<Program> {
    let absolute = |name: &str, path: &str| {
        let reason = format!("the option `{name}` must be an absolute path, not `{}`", path.escape_debug());
        if path.starts_with('/') { Ok(()) } else { Err(StoreError::Invalid { reason }) }
    };
    let path = opening.option("program").unwrap_or("rclone");
    if path.contains('/') || path.starts_with('-') || path.is_empty() {
        absolute("program", path)?;
    }
    let config = opening.option("config");
    if let Some(config) = config {
        absolute("config", config)?;
    }
    Ok(Program {
        path: path.to_owned(),
        config: config.map(str::to_owned),
        config_password: opening
            .secrets
            .get("config_password")
            .map(|secret| Zeroizing::new(secret.to_owned())),
    })
}

/// Asks what kind of service is behind the remote, through whatever is put around it.
async fn backend_of(session: &Session, remote: &str) -> Result<Backend> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info {
        features: Features,
    }
    let mut name = remote.to_owned();
    let mut kind = None;
    for _ in 0..WRAPPED_MAX {
        let section: Section = session.call("config/get", &json!({"name": name}), Asked::Other).await?;
        match section.inner() {
            Inner::None => kind = Some(section.kind.clone()),
            Inner::Local => kind = Some("local".to_owned()),
            Inner::Remote(inner) => {
                inner.clone_into(&mut name);
                continue;
            }
        }
        break;
    }
    let info: Info = session.call("operations/fsinfo", &json!({"fs": session.spec}), Asked::Other).await?;
    Backend::new(&kind.unwrap_or_default(), info.features)
}

impl RcloneStore {
    fn may_write(&self) -> Result<()> {
        if self.read_only {
            Err(StoreError::Permission("it was opened for reading only".into()))
        } else {
            Ok(())
        }
    }

    async fn sweep(&self, leftovers: Vec<String>) {
        let mut removed = 0;
        for name in leftovers.iter().take(SWEEP_MAX) {
            removed += u32::from(self.session.delete(name).await.is_ok());
        }
        if removed > 0 {
            tracing::info!(removed, "removed files that uploads had left behind");
        }
    }
}

#[async_trait]
impl Store for RcloneStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.may_write()?;
        let len = body.len() as u64;
        let create = condition == PutCondition::CreateIfAbsent;
        if create && self.session.len_of(key.as_str()).await?.is_some() {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        if self.backend.folders {
            self.folders.make_for(&self.session, key).await?;
        }
        let put = upload::put(&self.session, &self.backend, key, body, condition).await;
        if put.is_err() && self.backend.folders {
            self.folders.forget().await;
        }
        put.map(|()| PutReceipt { len })
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        download::get(&self.session, &self.backend, key, range).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let len = download::exists(&self.session, key).await?;
        Ok(ObjectMeta { key: key.clone(), len })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let found = walk::list(&self.session, &self.backend, prefix).await?;
        if !self.read_only {
            self.sweep(found.leftovers).await;
        }
        Ok(found.objects)
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.may_write()?;
        self.session.delete(key.as_str()).await
    }

    /// What rclone calls "used" is all of the account, so it is not told.
    async fn usage(&self) -> Result<Usage> {
        if !self.capabilities().usage {
            return Err(StoreError::Unsupported { what: "say how full it is" });
        }
        #[derive(Deserialize)]
        struct About {
            total: Option<u64>,
            free: Option<u64>,
        }
        let arguments = json!({"fs": self.session.spec});
        let about: About = self.session.call("operations/about", &arguments, Asked::Other).await?;
        Ok(Usage { used: None, total: about.total, free: about.free })
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities(self.parallel)
    }
}
