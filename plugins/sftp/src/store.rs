//! The contract, on sessions that come and go.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, CreateGuarantee, ObjectMeta, Opening, PutCondition, PutReceipt, Result, Store, StoreError,
    StoreKey, Usage, Visibility,
};
use tokio::sync::Mutex;

use crate::files;
use crate::live::{Facts, Live};
use crate::session::Tuning;
use crate::target::Target;
use crate::wire::{Extension, Request, STATUS_NO_SUCH_FILE};

/// Opens the store: connects, makes its folder if that one folder is missing, tries whether files can have two names,
/// and begins to remove what a crash may have left.
///
/// Without a network this is [`Offline`](StoreError::Offline); call again later. A connection that is lost afterwards is
/// made anew by the next call.
pub async fn open(opening: &Opening) -> Result<Arc<dyn Store>> {
    open_tuned(opening, Tuning::default()).await
}

/// As [`open`], with another patience.
pub async fn open_tuned(opening: &Opening, tuning: Tuning) -> Result<Arc<dyn Store>> {
    let target = Target::of(opening)?;
    let live = Arc::new(Live::connect(&target, tuning).await?);
    let mut facts = Facts::default();
    if !target.read_only {
        facts = live.try_out().await?;
        let live = Arc::clone(&live);
        tokio::spawn(async move { live.remove_old(facts).await });
    }
    let usage = live.session.can(Extension::Statvfs);
    Ok(Arc::new(SftpStore { target, tuning, facts, usage, live: Mutex::new(live) }))
}

struct SftpStore {
    target: Target,
    tuning: Tuning,
    facts: Facts,
    usage: bool,
    /// The newest session; it may have ended.
    live: Mutex<Arc<Live>>,
}

impl SftpStore {
    /// A session that has not ended, as far as is known.
    async fn live(&self) -> Result<Arc<Live>> {
        let mut live = self.live.lock().await;
        if live.session.has_ended() {
            *live = Arc::new(Live::connect(&self.target, self.tuning).await?);
        }
        Ok(Arc::clone(&live))
    }

    async fn live_to_write(&self) -> Result<Arc<Live>> {
        if self.target.read_only {
            return Err(StoreError::Permission("the store was opened to be read only".into()));
        }
        self.live().await
    }
}

#[async_trait]
impl Store for SftpStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.live_to_write().await?.put(key, &body, condition, self.facts).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.live().await?.get(key, range).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let found = self.live().await?.find(key).await?;
        let attributes = found.ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        let len = attributes.len.ok_or_else(|| StoreError::Transient("the server tells no length".into()))?;
        Ok(ObjectMeta { key: key.clone(), len })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.live().await?.list(prefix, self.target.parallel).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        let live = self.live_to_write().await?;
        match live.carry_out(&Request::remove(&live.path(key.as_str()))).await {
            Ok(()) => Ok(()),
            // missing, or a folder; and not the whole store
            Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => live.find(key).await.map(|_| ()),
            Err(failure) => match live.find(key).await? {
                None => Ok(()),
                Some(_) => Err(failure.sort("delete a file")),
            },
        }
    }

    async fn usage(&self) -> Result<Usage> {
        let live = self.live().await?;
        if !live.session.can(Extension::Statvfs) {
            return Err(StoreError::Unsupported { what: "say how full it is" });
        }
        let room = files::room(&live.session, &live.root).await;
        let (free, total) = room.map_err(|failure| failure.sort("look how full it is"))?;
        Ok(Usage { used: None, total: Some(total), free: Some(free) })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create: if self.facts.links { CreateGuarantee::Atomic } else { CreateGuarantee::Advisory },
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: true,
            delete_is_final: true,
            usage: self.usage,
            retain: false,
            object_len_max: None,
            parallel: self.target.parallel,
        }
    }
}
