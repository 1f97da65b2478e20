//! [`PluginStore`]: the store that a plugin is, over its socket.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use chatkeep_store::protocol::{
    AuthAnswer, AuthRequest, Caps, OpenAnswer, OpenRequest, PROBLEM, PROTOCOL, Problem, SECRETS_CHANGED,
};
use chatkeep_store::{Capabilities, Opening, Result, Secrets, StoreError, StoreKey};
use hyper::header::{CONTENT_LENGTH, RETRY_AFTER};
use hyper::{Method, Request};
use zeroize::Zeroizing;

use crate::launch::{Launch, Launcher, Walls};
use crate::meter::{Kind, StoreControl};
use crate::permits::Permits;
use crate::process::{InUse, Life, Process, Run, lock};
use crate::progress::{Patience, Progress};
use crate::take::{Json, Take};
use crate::wire::{Answer, Body, Lines, len_header, whole};

/// Longest text of a problem that is read, in bytes.
const PROBLEM_LEN_MAX: u64 = 64 << 10;
/// Shorter ones occur in texts by chance, and are no secrets.
const SECRET_LEN_MIN: usize = 6;

/// Takes secrets that a plugin renewed, to keep them. All that are renewed, not only those that changed now.
pub type OnSecrets = Arc<dyn Fn(&Secrets) + Send + Sync>;

/// What a [`PluginStore`] is made of.
pub struct Settings {
    /// The program, and how far it may reach.
    pub launch: Launch,
    /// Starts it.
    pub launcher: Arc<dyn Launcher>,
    /// What the store is opened with.
    pub opening: Opening,
    /// Folder for the socket; made if it is missing, for this user alone.
    pub folder: std::path::PathBuf,
    /// Limits, pause and counters.
    pub control: Arc<StoreControl>,
    /// Where renewed secrets go.
    pub on_secrets: OnSecrets,
    /// How long the process lives.
    pub life: Life,
    /// How long calls may take.
    pub patience: Patience,
}

impl Settings {
    /// Without limits, and with the times of the documentation.
    pub fn new(launch: Launch, launcher: Arc<dyn Launcher>, opening: Opening, folder: &Path) -> Self {
        Self {
            launch,
            launcher,
            opening,
            folder: folder.to_owned(),
            control: Arc::new(StoreControl::new()),
            on_secrets: Arc::new(|_| ()),
            life: Life::default(),
            patience: Patience::default(),
        }
    }
}

/// A store behind a plugin process. The process is started by the first call, and opened by it.
pub struct PluginStore {
    name: String,
    pub(crate) process: Process,
    pub(crate) lines: Lines,
    opening: Mutex<Opening>,
    told: Mutex<Told>,
    pub(crate) control: Arc<StoreControl>,
    on_secrets: OnSecrets,
    fetching: tokio::sync::Mutex<()>,
    permits: Arc<Permits>,
    pub(crate) patience: Patience,
    /// Secrets were set since the store was opened.
    reopen: AtomicBool,
}

/// What the plugin said when it was opened.
struct Told {
    caps: Capabilities,
    plugin: Option<(String, String)>,
}

/// What is known of a plugin at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginState {
    /// Its process, if one runs, and behind which walls.
    pub running: Option<(Option<u32>, Walls)>,
    /// Its name and version, once it was opened.
    pub plugin: Option<(String, String)>,
    /// It crashed too often, and is not started any more.
    pub off: bool,
}

/// One request to a plugin.
pub(crate) struct Call<'a> {
    pub(crate) kind: Kind,
    pub(crate) request: hyper::http::request::Builder,
    /// What it is about.
    pub(crate) key: Option<&'a StoreKey>,
    /// Length of the object that is sent, for messages.
    pub(crate) len: u64,
    /// How long its answer may take.
    pub(crate) answer: std::time::Duration,
}

impl PluginStore {
    /// Makes the socket; starts nothing yet.
    pub fn new(settings: Settings) -> Result<Self> {
        let name = settings.launch.store.clone();
        let process = Process::bind(settings.launch, settings.launcher, settings.life, &settings.folder)?;
        Ok(Self {
            name,
            process,
            lines: Lines::default(),
            opening: Mutex::new(settings.opening),
            told: Mutex::new(Told { caps: Capabilities::from(&Caps::default()), plugin: None }),
            control: settings.control,
            on_secrets: settings.on_secrets,
            fetching: tokio::sync::Mutex::default(),
            permits: Permits::new(1),
            patience: settings.patience,
            reopen: AtomicBool::new(false),
        })
    }

    /// Starts the plugin and opens the store, if that is not done yet. Before it, the least capabilities are told.
    pub async fn open(&self) -> Result<Capabilities> {
        self.up().await?;
        Ok(self.caps())
    }

    /// One step of a sign-in that the user carries out.
    pub async fn sign_in(&self, step: &AuthRequest) -> Result<AuthAnswer> {
        let body = serde_json::to_vec(step).expect("the types of the protocol can be written as JSON");
        let call = self.small(Kind::Other, Method::POST, "/auth");
        let answer = self.json_call(call, Zeroizing::new(body)).await?;
        serde_json::from_slice(&answer).map_err(|_| self.lie("what it answers to POST /auth is no answer"))
    }

    /// Sets other secrets; the store is opened anew with them by the next call.
    pub fn set_secrets(&self, secrets: Secrets) {
        lock(&self.opening).secrets = secrets;
        self.reopen.store(true, Ordering::Release);
    }

    /// Limits, pause and counters.
    pub fn control(&self) -> &Arc<StoreControl> {
        &self.control
    }

    /// What is known of the plugin.
    pub fn state(&self) -> PluginState {
        PluginState {
            running: self.process.running().map(|run| (run.pid, run.walls)),
            plugin: lock(&self.told).plugin.clone(),
            off: self.process.is_off(),
        }
    }

    /// Lets a plugin that crashed too often be started again.
    pub fn reset(&self) {
        self.process.reset();
    }

    /// Stops the process. The next call starts another.
    pub async fn stop(&self) {
        self.lines.clear();
        self.process.stop().await;
    }

    /// Stops the process for good, for the end of the program.
    pub async fn close(&self) {
        self.lines.clear();
        self.process.close().await;
    }

    pub(crate) fn caps(&self) -> Capabilities {
        lock(&self.told).caps
    }

    /// A call that moves no object.
    pub(crate) fn small(&self, kind: Kind, method: Method, path: &str) -> Call<'static> {
        let request = Request::builder().method(method).uri(path);
        Call { kind, request, key: None, len: 0, answer: self.patience.answer }
    }

    /// A process in which the store is open.
    pub(crate) async fn up(&self) -> Result<InUse> {
        let in_use = self.process.up().await?;
        let mut opened = in_use.0.opened.lock().await;
        let again = self.reopen.swap(false, Ordering::AcqRel);
        if !*opened || again {
            if !*opened {
                // what is left belongs to the process before
                self.lines.clear();
            }
            if let Err(error) = self.open_in(&in_use.0).await {
                if again {
                    self.reopen.store(true, Ordering::Release);
                }
                return Err(error);
            }
            *opened = true;
            in_use.0.has_served.store(true, Ordering::Relaxed);
        }
        drop(opened);
        Ok(in_use)
    }

    async fn open_in(&self, run: &Run) -> Result<()> {
        let body = {
            let opening = lock(&self.opening);
            let request = OpenRequest {
                protocol: vec![PROTOCOL],
                store: self.name.clone(),
                url: opening.url.clone(),
                options: opening.options.clone(),
                secrets: opening.secrets.clone(),
                read_only: opening.read_only,
                agent: concat!("chatkeep/", env!("CARGO_PKG_VERSION")).to_owned(),
            };
            // with room for all of it, so that it is not moved while it is written
            let secrets: usize = request.secrets.iter().map(|(name, value)| name.len() + value.len()).sum();
            let mut body = Zeroizing::new(Vec::with_capacity(4096 + 8 * secrets));
            serde_json::to_writer(&mut *body, &request)
                .expect("the types of the protocol can be written as JSON");
            body
        };
        let call = self.small(Kind::Other, Method::POST, "/open");
        let answer = self.json_in(run, call, body).await?;
        let answer: OpenAnswer = serde_json::from_slice(&answer)
            .map_err(|_| self.lie("what it answers to POST /open is no answer"))?;
        if answer.protocol != PROTOCOL {
            return Err(self.lie(&format!("it picked protocol {}, which was not offered", answer.protocol)));
        }
        let caps = Capabilities::from(&answer.caps);
        self.permits.set_max(usize::from(caps.parallel));
        *lock(&self.told) = Told { caps, plugin: Some((answer.name, answer.version)) };
        Ok(())
    }

    /// Makes a call in a process that is open, and gives a good answer to `take`.
    pub(crate) async fn call<T: Take>(
        &self,
        call: Call<'_>,
        body: impl Fn(&Arc<Progress>) -> Body + Send + Sync,
        take: T,
    ) -> Result<T::Taken> {
        let in_use = self.up().await?;
        let _permit = self.permits.acquire().await;
        let (done, renewed) = self.call_in(&in_use.0, call, body, take).await;
        if renewed {
            self.fetch_secrets(&in_use.0).await;
        }
        done
    }

    /// As [`PluginStore::call`]; also says whether the answer speaks of renewed secrets.
    async fn call_in<T: Take>(
        &self,
        run: &Run,
        call: Call<'_>,
        body: impl Fn(&Arc<Progress>) -> Body + Send + Sync,
        take: T,
    ) -> (Result<T::Taken>, bool) {
        let progress = Arc::new(Progress::new());
        let mut renewed = false;
        self.control.count(call.kind);
        let exchange = async {
            let sent = self.lines.send(self.process.socket(), call.request, || body(&progress)).await;
            let answer = sent.map_err(StoreError::Transient)?;
            renewed = answer.head.headers.contains_key(SECRETS_CHANGED);
            progress.moving(0);
            if take.is_good(answer.status()) {
                take.take(self, answer, &progress).await
            } else {
                Err(self.problem(answer, call.key, call.len, &progress).await)
            }
        };
        let watched = progress.watch(&self.patience, call.answer, exchange);
        let done = tokio::select! {
            biased;
            done = watched => match done {
                Ok(done) => done,
                Err(why) => Err(StoreError::Transient(format!("the plugin of `{}`: {why}", self.name).into())),
            },
            how = run.wait_until_ended() => {
                let words = format!("the plugin of `{}` ended in the middle of a call: {how}", self.name);
                Err(StoreError::Transient(words.into()))
            }
        };
        (done, renewed)
    }

    /// What a plugin says went wrong. Its words are for people, and must hold no secret, whatever the plugin thinks of it.
    async fn problem(
        &self,
        answer: Answer,
        key: Option<&StoreKey>,
        len: u64,
        progress: &Progress,
    ) -> StoreError {
        let status = answer.status();
        if status.is_success() || status.is_informational() || status.is_redirection() {
            return self.lie(&format!("it answers with status {status}, which this request does not have"));
        }
        let header = |name: &str| answer.head.headers.get(name)?.to_str().ok().map(str::to_owned);
        let kind = header(PROBLEM);
        let retry_after_s = header(RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
        let body = answer.collect(&self.lines, PROBLEM_LEN_MAX, progress).await.unwrap_or_default();
        let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        if problem.kind.is_empty() {
            problem.kind = kind.unwrap_or_default();
        }
        problem.retry_after_s = problem.retry_after_s.or(retry_after_s);
        for (_, secret) in
            lock(&self.opening).secrets.iter().filter(|(_, secret)| secret.len() >= SECRET_LEN_MIN)
        {
            problem.detail = problem.detail.replace(secret, "(redacted)");
        }
        problem.into_error(status.as_u16(), key, len)
    }

    /// A small request with a JSON body in an open process; the answer is JSON.
    async fn json_call(&self, call: Call<'_>, body: Zeroizing<Vec<u8>>) -> Result<Bytes> {
        let in_use = self.up().await?;
        self.json_in(&in_use.0, call, body).await
    }

    async fn json_in(&self, run: &Run, mut call: Call<'_>, body: Zeroizing<Vec<u8>>) -> Result<Bytes> {
        call.request = call.request.header(CONTENT_LENGTH, len_header(body.len()));
        let body = Bytes::from_owner(body);
        self.call_in(run, call, |_| whole(body.clone()), Json).await.0
    }

    /// Fetches secrets that were renewed. Others that notice it at the same time leave it to the first.
    async fn fetch_secrets(&self, run: &Run) {
        let Ok(_fetching) = self.fetching.try_lock() else { return };
        let call = self.small(Kind::Other, Method::GET, "/secrets");
        let fetched = self.json_in(run, call, Zeroizing::default()).await;
        let parsed = fetched.map(|body| serde_json::from_slice::<Secrets>(&body));
        let Ok(Ok(renewed)) = parsed else {
            tracing::warn!(store = self.name, "renewed secrets could not be fetched");
            return;
        };
        let mut all = lock(&self.opening).secrets.clone();
        for (name, value) in renewed.iter() {
            all.set(name, Zeroizing::new(value.to_owned()));
        }
        lock(&self.opening).secrets = all;
        (self.on_secrets)(&renewed);
    }

    pub(crate) fn lie(&self, reason: &str) -> StoreError {
        StoreError::Invalid { reason: format!("the plugin of `{}` breaks protocol 1: {reason}", self.name) }
    }
}
