//! Calls on the remote of a store, on an rclone that is started when there is none.

use std::sync::Arc;

use chatkeep_store::{Result, StoreError};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::child::{Program, Rclone};
use crate::control::Failure;
use crate::errors::{Asked, Sorter};

/// An rclone and the remote it is used for.
pub(crate) struct Session {
    program: Program,
    running: Mutex<Option<Arc<Rclone>>>,
    /// The remote and folder, as rclone reads it.
    pub(crate) spec: String,
    pub(crate) sorter: Sorter,
}

/// A file or folder that rclone names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Item {
    pub(crate) name: String,
    /// `-1` where the service does not know.
    pub(crate) size: i64,
    pub(crate) is_dir: bool,
}

/// What is left out of what rclone says about files: each of these can cost a request per file.
pub(crate) fn brief(files_only: bool) -> Value {
    json!({"filesOnly": files_only, "noModTime": true, "noMimeType": true})
}

impl Session {
    pub(crate) fn new(program: Program, spec: String, sorter: Sorter) -> Self {
        Self { program, running: Mutex::new(None), spec, sorter }
    }

    /// The rclone that runs, or a new one.
    pub(crate) async fn rclone(&self) -> Result<Arc<Rclone>> {
        let mut running = self.running.lock().await;
        if let Some(rclone) = running.as_ref().filter(|rclone| rclone.lives()) {
            return Ok(Arc::clone(rclone));
        }
        if running.take().is_some() {
            tracing::warn!("rclone had ended and is started again");
        }
        let rclone = Arc::new(self.program.start().await?);
        *running = Some(Arc::clone(&rclone));
        Ok(rclone)
    }

    /// A call whose failure is one of the store.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &Value,
        asked: Asked<'_>,
    ) -> Result<T> {
        let answer = self.try_call(command, arguments).await?;
        answer.map_err(|failure| self.sorter.sort(failure, asked))
    }

    /// A call whose failure the caller looks at.
    pub(crate) async fn try_call<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &Value,
    ) -> Result<Result<T, Failure>> {
        let answer = self.rclone().await?.control.call(command, arguments).await;
        if !matches!(answer, Err(Failure::NoConnection(_))) {
            return Ok(answer);
        }
        // it ended between the look and the call, which has not begun: once more, on a new one
        Ok(self.rclone().await?.control.call(command, arguments).await)
    }

    /// A call that answers nothing.
    pub(crate) async fn order(&self, command: &str, arguments: &Value, asked: Asked<'_>) -> Result<()> {
        self.call::<IgnoredAny>(command, arguments, asked).await.map(|_| ())
    }

    /// The length of an object or of a file of ours, or `None` if there is none.
    pub(crate) async fn len_of(&self, name: &str) -> Result<Option<u64>> {
        #[derive(Deserialize)]
        struct Answer {
            item: Option<Item>,
        }
        let arguments = json!({"fs": self.spec, "remote": name, "opt": brief(true)});
        let item = match self.try_call::<Answer>("operations/stat", &arguments).await? {
            Ok(answer) => answer.item.filter(|item| !item.is_dir),
            Err(failure) if failure.is_missing() => None,
            Err(failure) => return Err(self.sorter.sort(failure, Asked::Other)),
        };
        item.map(|item| item.len()).transpose()
    }

    /// Deletes a file. Also succeeds when there is none.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let arguments = json!({"fs": self.spec, "remote": name});
        match self.try_call::<IgnoredAny>("operations/deletefile", &arguments).await? {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_missing() => Ok(()),
            Err(failure) => Err(self.sorter.sort(failure, Asked::Other)),
        }
    }
}

impl Item {
    pub(crate) fn len(&self) -> Result<u64> {
        u64::try_from(self.size)
            .map_err(|_| StoreError::Transient("the service does not say how long a file is".into()))
    }
}
