//! Large objects in parts (S3 only; the others take any length we make in one request).
//!
//! Parts that were never put together are invisible, and paid for: they are thrown away when anything fails, and the
//! manual has a rule for the bucket against what a crash leaves.

use std::sync::Arc;

use bytes::Bytes;
use chatkeep_store::{Result, StoreError, StoreKey};
use object_store::{Attribute, MultipartUpload, PutMultipartOptions};

use crate::call::{Call, Wants};
use crate::service::Spoken;
use crate::store::{CloudStore, ONE_REQUEST_LEN_MAX, error_of};

/// Length of a part, in bytes. Most services want 5 MiB at least, and no more than 10 000 parts.
const PART_LEN: usize = 16 << 20;

impl CloudStore {
    /// Whether an object is too long for one request.
    pub(crate) fn in_parts(&self, body: &Bytes) -> bool {
        matches!(self.service.kind, Spoken::S3 { .. }) && body.len() > ONE_REQUEST_LEN_MAX
    }

    /// Puts a long object. With `create`, the request that puts the parts together carries the condition.
    pub(crate) async fn put_in_parts(&self, key: &StoreKey, body: Bytes, create: bool) -> Result<()> {
        if create && self.is_there(key).await? {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        let asked = self.asked(Some(key), body.len());
        let call = Call::new(Wants::Nothing);
        let mut options = PutMultipartOptions::default();
        if let Some(class) = self.storage_class() {
            options.attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        let path = self.path(key);
        let begun = call.run(self.service.objects.put_multipart_opts(&path, options)).await;
        let mut upload = Abandoned(Some(begun.map_err(|error| error_of(&call, error, asked))?));
        for start in (0..body.len()).step_by(PART_LEN) {
            let part = body.slice(start..body.len().min(start + PART_LEN));
            let call = Call::new(Wants::Nothing);
            let sent = call.run(upload.get().put_part(part.into())).await;
            if let Err(error) = sent {
                let error = error_of(&call, error, asked);
                upload.abort().await;
                return Err(error);
            }
        }
        let call = Call::new(if create { Wants::ConditionAtEnd } else { Wants::Nothing });
        let Err(error) = call.run(upload.get().complete()).await else {
            upload.0 = None;
            return Ok(());
        };
        let error = error_of(&call, error, asked);
        upload.abort().await;
        match error {
            // the parts are gone, or the key is taken: by the request before this one, perhaps
            StoreError::AlreadyExists { .. } | StoreError::NotFound { .. } | StoreError::Invalid { .. }
                if call.was_retried() =>
            {
                self.ours_or_exists(key, &body).await
            }
            error => Err(error),
        }
    }
}

/// An upload whose parts are thrown away unless it is completed, also when the call is cancelled.
struct Abandoned(Option<Box<dyn MultipartUpload>>);

impl Abandoned {
    fn get(&mut self) -> &mut Box<dyn MultipartUpload> {
        self.0.as_mut().expect("taken at the end only")
    }

    async fn abort(&mut self) {
        if let Some(mut upload) = self.0.take() {
            abort(&mut upload).await;
        }
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { abort(&mut upload).await });
        }
    }
}

async fn abort(upload: &mut Box<dyn MultipartUpload>) {
    let call: Arc<Call> = Call::new(Wants::Nothing);
    if call.run(upload.abort()).await.is_err() {
        tracing::warn!(fault = ?call.fault(), "parts of an upload stay in the bucket");
    }
}
