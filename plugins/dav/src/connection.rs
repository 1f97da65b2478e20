//! One server and the folder of the store there: files go up beside their place, and are moved into it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::temporary::FOLDER;
use chatkeep_store::{
    CreateGuarantee, Opening, PutCondition, PutReceipt, Result, StoreError, StoreKey, clamp_range,
};
use reqwest::header::{CONTENT_RANGE, ETAG, LAST_MODIFIED};
use reqwest::{StatusCode, Url};

use crate::errors;
use crate::folders::{self, Folders};
use crate::http::{Answer, Ask, Http, LISTING_BYTES_MAX, Tuning};
use crate::leftovers::Temporary;
use crate::multistatus::{self, Properties};
use crate::overwrites::Overwrites;
use crate::target::Target;

/// How often a MOVE is sent that got no answer and did not happen.
const LOST_TRIES_MAX: u32 = 4;

/// rclone and other servers in Go lock what a MOVE touches while it runs, and answer 423 to the next one.
const LOCKED_TRIES_MAX: u32 = 8;
const LOCKED_PAUSE: Duration = Duration::from_millis(40);

/// A server that answered, and the folder of the store there.
pub(crate) struct Connection {
    pub(crate) http: Arc<Http>,
    pub(crate) root: Url,
    pub(crate) folders: Folders,
    pub(crate) overwrites: Overwrites,
    pub(crate) parallel: u16,
    pub(crate) probe: bool,
    pub(crate) read_only: bool,
    pub(crate) usage: bool,
    pub(crate) create: CreateGuarantee,
}

/// What is at an address.
pub(crate) enum Found {
    File(u64),
    Folder(Properties),
    Nothing,
}

pub(crate) async fn connect(opening: &Opening, tuning: Tuning) -> Result<Connection> {
    let mut target = Target::of(opening)?;
    let http = Arc::new(Http::new(&mut target, tuning)?);
    let mut connection = Connection {
        http,
        root: target.root,
        folders: Folders::default(),
        overwrites: Overwrites::default(),
        parallel: target.parallel,
        probe: target.probe,
        read_only: target.read_only,
        usage: false,
        create: CreateGuarantee::Advisory,
    };
    let mut found = connection.find(&connection.root).await?;
    if matches!(found, Found::Nothing) && !connection.read_only {
        folders::make(&connection.http, &connection.root).await?;
        found = connection.find(&connection.root).await?;
    }
    match found {
        Found::Folder(properties) => {
            connection.usage = properties.quota_free.is_some() || properties.quota_used.is_some();
        }
        Found::Nothing => return Err(connection.gone()),
        Found::File(_) => {
            let reason = format!("`{}` at the server is a file, not a folder", connection.root.path());
            return Err(StoreError::Invalid { reason });
        }
    }
    Ok(connection)
}

/// Asks for the properties of a resource (`depth` 0), or of a folder and what lies directly in it (1). Never for
/// everything below: nginx and Apache refuse that, and others answer a part as if it were all.
pub(crate) fn propfind(url: Url, depth: &'static str) -> Ask {
    const BODY: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><propfind xmlns=\"DAV:\"><prop><resourcetype/>\
        <getcontentlength/><getlastmodified/><quota-available-bytes/><quota-used-bytes/></prop></propfind>";
    Ask::new("PROPFIND", url)
        .header("depth", depth)
        .body("application/xml; charset=utf-8", Bytes::from_static(BODY.as_bytes()))
        .answer_len_max(LISTING_BYTES_MAX)
}

impl Connection {
    pub(crate) fn folder(&self, path: &str) -> Url {
        folders::below(&self.root, path)
    }

    pub(crate) fn object(&self, key: &StoreKey) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}{key}", self.root.path()));
        url
    }

    pub(crate) fn gone(&self) -> StoreError {
        let reason = format!("the folder `{}` of the store is not at the server", self.root.path());
        StoreError::Offline(reason.into())
    }

    fn may_write(&self) -> Result<()> {
        if self.read_only {
            return Err(StoreError::Permission("the store was opened to be read only".into()));
        }
        Ok(())
    }

    pub(crate) fn temporary(&self) -> Temporary {
        Temporary::new(Arc::clone(&self.http), &self.root)
    }

    /// Writes a temporary file; where folders are missing that were there before, they are made again.
    pub(crate) async fn upload(&self, url: &Url, body: Bytes) -> Result<()> {
        let len = body.len() as u64;
        let ask = || Ask::new("PUT", url.clone()).body("application/octet-stream", body.clone());
        let mut answer = self.http.exchange(ask()).await?;
        if errors::lacks_folder(answer.status) {
            self.folders.forget().await;
            self.folders.ensure(&self.http, &self.root, FOLDER).await?;
            answer = self.http.exchange(ask()).await?;
        }
        match errors::of_answer(&answer, url, "write a file") {
            _ if answer.status.is_success() => Ok(()),
            StoreError::TooLarge { len_max, .. } => Err(StoreError::TooLarge { len, len_max }),
            error => Err(error),
        }
    }

    /// Gives a file another name; the answer may say that it did not happen.
    pub(crate) async fn rename(&self, from: &Url, to: &Url, overwrite: bool) -> Result<Answer> {
        let ask = Ask::new("MOVE", from.clone())
            .header("destination", to.as_str())
            .header("overwrite", if overwrite { "T" } else { "F" });
        self.http.exchange(ask).await
    }

    /// Looks what is at an address. By properties, not with HEAD: Apache leaves the length of an empty file out there.
    pub(crate) async fn find(&self, url: &Url) -> Result<Found> {
        let answer = self.http.exchange(propfind(url.clone(), "0")).await?;
        if answer.says_folder(url) {
            return Ok(Found::Folder(Properties::default()));
        }
        match answer.status {
            StatusCode::MULTI_STATUS => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Found::Nothing),
            _ => return Err(errors::of_answer(&answer, url, "look for a file")),
        }
        let broken =
            |reason: &str| StoreError::Transient(format!("the answer about a file: {reason}").into());
        let entries = multistatus::parse(&answer.body).map_err(|reason| broken(&reason))?;
        let [entry] = &entries[..] else { return Err(broken("it is not about one")) };
        match (entry.failed, &entry.properties) {
            (Some(404 | 410), _) => Ok(Found::Nothing),
            (Some(code), _) => Err(broken(&format!("the server could not read it ({code})"))),
            (None, properties) if properties.collection => Ok(Found::Folder(properties.clone())),
            (None, Properties { len: Some(len), .. }) => Ok(Found::File(*len)),
            (None, _) => Err(broken("it has no length")),
        }
    }

    /// The length of an object.
    pub(crate) async fn len_of(&self, key: &StoreKey) -> Result<u64> {
        match self.find(&self.object(key)).await? {
            Found::File(len) => Ok(len),
            Found::Folder(_) | Found::Nothing => Err(self.missing(key).await),
        }
    }

    /// No object has this key; or the whole store is not there, which says nothing about its objects.
    async fn missing(&self, key: &StoreKey) -> StoreError {
        match self.find(&self.root).await {
            Ok(Found::Folder(_)) => StoreError::NotFound { key: key.clone() },
            Ok(_) => self.gone(),
            Err(error) => error,
        }
    }

    pub(crate) async fn put(
        &self,
        key: &StoreKey,
        body: Bytes,
        condition: PutCondition,
    ) -> Result<PutReceipt> {
        self.may_write()?;
        self.make_folders_of(key).await?;
        let len = body.len() as u64;
        let mut temporary = self.temporary();
        self.upload(&temporary.url, body).await?;
        match self.find(&temporary.url).await? {
            Found::File(kept) if kept == len => {}
            Found::File(kept) => {
                tracing::warn!(kept, len, "the server kept another number of bytes than it was sent");
                return Err(StoreError::Corrupt { key: key.clone() });
            }
            _ => return Err(StoreError::Transient("what was written is not there".into())),
        }
        self.publish(&mut temporary, key, len, condition == PutCondition::Overwrite).await?;
        Ok(PutReceipt { len })
    }

    async fn make_folders_of(&self, key: &StoreKey) -> Result<()> {
        let folder = key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        for path in [FOLDER, folder] {
            self.folders.ensure(&self.http, &self.root, path).await?;
        }
        Ok(())
    }

    async fn publish(
        &self,
        temporary: &mut Temporary,
        key: &StoreKey,
        len: u64,
        overwrite: bool,
    ) -> Result<()> {
        let _overwriting = if overwrite { Some(self.overwrites.begin().await) } else { None };
        let target = self.object(key);
        temporary.hand_over();
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            let answer = match self.rename(&temporary.url, &target, overwrite).await {
                Err(error) => match (self.find(&temporary.url).await?, self.find(&target).await?) {
                    // only this MOVE can have taken it away
                    (Found::Nothing, Found::File(found)) if found == len => return Ok(()),
                    (Found::File(_), _) if tries < LOST_TRIES_MAX => continue,
                    _ => return Err(error),
                },
                Ok(answer) => answer,
            };
            match answer.status {
                status if errors::lacks_folder(status) && tries == 1 => {
                    // somebody may have tidied up empty folders
                    self.folders.forget().await;
                    self.make_folders_of(key).await?;
                }
                // the lock is the server's own, for as long as another MOVE takes
                StatusCode::LOCKED if tries < LOCKED_TRIES_MAX => {
                    tokio::time::sleep(LOCKED_PAUSE * tries).await;
                }
                _ => break answer,
            }
        };
        if matches!(answer.status, StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK) {
            return Ok(());
        }
        temporary.remove().await;
        match answer.status {
            StatusCode::PRECONDITION_FAILED if !overwrite => {
                Err(StoreError::AlreadyExists { key: key.clone() })
            }
            _ => Err(errors::of_answer(&answer, &temporary.url, "move a file into place")),
        }
    }

    pub(crate) async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        // larger numbers are no offsets to most servers; no object ends there
        const OFFSET_MAX: u64 = i64::MAX as u64;
        let Some(range) = range else { return self.read(key, None).await };
        clamp_range(&range, u64::MAX)?;
        if range.is_empty() || range.start > OFFSET_MAX {
            return self.len_of(key).await.map(|_| Bytes::new());
        }
        self.read(key, Some(range.start..range.end.min(OFFSET_MAX))).await
    }

    async fn read(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let url = self.object(key);
        let mut ask = Ask::new("GET", url.clone()).answer_len_max(usize::MAX);
        if let Some(Range { start, end }) = &range {
            ask = ask.header("range", format!("bytes={start}-{}", end - 1));
        }
        let answer = self.http.exchange(ask).await?;
        if answer.says_folder(&url) {
            return Err(self.missing(key).await);
        }
        match (answer.status, range) {
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => Err(self.missing(key).await),
            // some servers show a folder as a page, and a page has neither tag nor date
            (StatusCode::OK, range) => {
                if !answer.headers.contains_key(ETAG) && !answer.headers.contains_key(LAST_MODIFIED) {
                    self.len_of(key).await?;
                }
                let whole = 0..answer.body.len() as u64;
                let part = clamp_range(&range.unwrap_or(whole.clone()), whole.end)?;
                Ok(answer.body.slice(part.start as usize..part.end as usize))
            }
            (StatusCode::PARTIAL_CONTENT, Some(range)) => part_of(&answer, &range),
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => self.len_of(key).await.map(|_| Bytes::new()),
            // what some answer to the GET of a folder
            (StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED, _) => {
                self.len_of(key).await?;
                Err(errors::of_answer(&answer, &url, "read a file"))
            }
            _ => Err(errors::of_answer(&answer, &url, "read a file")),
        }
    }

    pub(crate) async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.may_write()?;
        let url = self.object(key);
        // deleting a folder would take everything below it along
        match self.len_of(key).await {
            Err(StoreError::NotFound { .. }) => return Ok(()),
            found => found?,
        };
        let answer = self.http.exchange(Ask::new("DELETE", url.clone())).await?;
        match answer.status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(()),
            StatusCode::MULTI_STATUS => {
                Err(StoreError::Transient("the server could not delete the file".into()))
            }
            status if status.is_success() => Ok(()),
            _ => Err(errors::of_answer(&answer, &url, "delete a file")),
        }
    }
}

/// The body of a 206: it must begin where it was asked to, and be as long as it says.
fn part_of(answer: &Answer, range: &Range<u64>) -> Result<Bytes> {
    let said = answer.header(CONTENT_RANGE).and_then(|text| text.strip_prefix("bytes "));
    let numbers = said.and_then(|text| {
        let (range, total) = text.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    });
    let wrong = || StoreError::Transient("the server sent another part than it was asked for".into());
    let (first, last, total) = numbers.ok_or_else(wrong)?;
    let expected = clamp_range(range, total)?;
    let whole = (first, last.saturating_add(1)) == (expected.start, expected.end);
    if whole && answer.body.len() as u64 == expected.end - expected.start {
        return Ok(answer.body.clone());
    }
    Err(wrong())
}
