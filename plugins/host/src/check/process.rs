//! What only a process can get wrong: how it dies, whom it tells its secrets, what it says to nonsense.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::conformance::{CaseResult, Extent, Outcome};
use chatkeep_store::protocol::{ListLine, content_digest};
use chatkeep_store::{ErrorKind, PutCondition, Store as _, StoreKey};
use futures_util::future::join_all;
use rand_core::{OsRng, RngCore as _};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use super::raw::{Reply, ask, begin};
use super::{Said, Subject, plugin};
use crate::store::PluginStore;

/// From SIGTERM to the end of a plugin.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Connections at once.
const CONNECTIONS: usize = 32;
/// Shorter secrets occur in texts by chance.
const CANARY_LEN_MIN: usize = 8;
/// Objects that are cut off are this long at most, in bytes.
const CUT_LEN_MAX: usize = 4 << 20;

/// What the cases need.
pub(super) struct Cases<'a> {
    pub(super) store: &'a PluginStore,
    pub(super) subject: &'a Subject,
    pub(super) extent: Extent,
    pub(super) said: &'a Said,
}

/// Why a case did not pass.
type Doubt = Box<dyn std::error::Error + Send + Sync>;
type Checked = Result<(), Doubt>;

impl Cases<'_> {
    pub(super) async fn run(&self) -> Vec<CaseResult> {
        vec![
            case("a request before the store is open is refused as invalid", self.before_open().await),
            case("a request that there is not gets a problem", self.unknown().await),
            case("a listing says where it ends", self.listing_end().await),
            case("a body with another digest is refused as corrupt", self.wrong_digest().await),
            case("32 connections at once are served", self.many_connections().await),
            case("an object whose sender went away is absent", self.sender_goes_away().await),
            case("an object is whole or absent after kill -9 in its put", self.killed().await),
            case("SIGTERM ends the process within 5 s, also in a put", self.terminated().await),
            case("no secret is in the arguments, the environment or standard error", self.canary().await),
        ]
    }

    /// Whether a part is answered with a part.
    pub(super) async fn finds_ranges(&self) -> Option<bool> {
        let key = self.key("range").ok()?;
        self.store.put(&key, "0123456789".into(), PutCondition::Overwrite).await.ok()?;
        let reply = self.ask("GET", &format!("/o/{key}"), "Range: bytes=2-4\r\n", b"").await.ok()?;
        self.store.delete(&key).await.ok()?;
        Some(reply.status == 206 && reply.body == b"234")
    }

    async fn before_open(&self) -> Checked {
        self.store.stop().await;
        // started, and not opened
        let _run = self.store.process.up().await?;
        for path in ["/usage", "/l/", "/o/a"] {
            let reply = ask(self.store.process.socket(), "GET", path, "", b"").await?;
            ensure_problem(&reply, ErrorKind::Invalid, path)?;
        }
        Ok(())
    }

    async fn unknown(&self) -> Checked {
        for (method, path) in
            [("GET", "/nothing"), ("POST", "/o/a"), ("GET", "/o/../etc/passwd"), ("PUT", "/l/a")]
        {
            let reply = self.ask(method, path, "", b"").await?;
            let is_problem = reply.status >= 400 && reply.kind().is_some();
            ensure(is_problem, || {
                format!("{method} {path} is answered with status {} and no kind", reply.status)
            })?;
        }
        Ok(())
    }

    async fn listing_end(&self) -> Checked {
        let key = self.key("listed")?;
        self.store.put(&key, "x".into(), PutCondition::Overwrite).await?;
        let reply = self.ask("GET", &format!("/l/{}", self.subject.root), "", b"").await?;
        self.store.delete(&key).await?;
        let text = String::from_utf8(reply.body)?;
        let lines: Vec<&str> = text.lines().collect();
        let end: ListLine = serde_json::from_str(lines.last().ok_or("the listing is empty")?)?;
        let count = lines.len() as u64 - 1;
        ensure(text.ends_with('\n') && end == ListLine::End { end: true, count }, || {
            format!("its last line is {end:?} after {count} others")
        })
    }

    async fn wrong_digest(&self) -> Checked {
        let key = self.key("digest")?;
        let digest = format!("Content-Digest: {}\r\n", content_digest(&[7; 32]));
        let reply = self.ask("PUT", &format!("/o/{key}"), &digest, b"hello").await?;
        ensure_problem(&reply, ErrorKind::Corrupt, "a put with another digest")?;
        self.ensure_whole_or_absent(&key, None, "a refused put").await
    }

    async fn many_connections(&self) -> Checked {
        let streams = (0..CONNECTIONS).map(|number| async move {
            let key = self.key(&format!("many-{number}"))?;
            let body = vec![number as u8; 50_000];
            let put = self.ask("PUT", &format!("/o/{key}"), &digest_header(&body), &body).await?;
            ensure(put.status == 201, || format!("a put is answered with status {}", put.status))?;
            let got = self.ask("GET", &format!("/o/{key}"), "", b"").await?;
            self.store.delete(&key).await?;
            ensure(got.body == body, || "another body came back".to_owned())
        });
        join_all(streams).await.into_iter().collect()
    }

    async fn sender_goes_away(&self) -> Checked {
        let body = self.body();
        for (number, sent) in [0, 1, body.len() / 2, body.len() - 1].into_iter().enumerate() {
            let key = self.key(&format!("gone-{number}"))?;
            let _up = self.store.up().await?;
            let mut stream = self.begin_put(&key, &body).await?;
            stream.write_all(&body[..sent]).await?;
            drop(stream);
            self.ensure_whole_or_absent(&key, None, &format!("a sender that left after {sent} bytes"))
                .await?;
            self.store.put(&key, "again".into(), PutCondition::Overwrite).await?;
            self.store.delete(&key).await?;
        }
        Ok(())
    }

    async fn killed(&self) -> Checked {
        let body = self.body();
        let all = body.len();
        // after all was sent, at several moments of what the plugin does with it
        let moments = [(0, 0), (all / 2, 0), (all, 0), (all, 2), (all, 10), (all, 50)];
        for (number, (sent, wait_ms)) in moments.into_iter().enumerate() {
            let key = self.key(&format!("killed-{number}"))?;
            let up = self.store.up().await?;
            let mut stream = self.begin_put(&key, &body).await?;
            stream.write_all(&body[..sent]).await?;
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            signal(up.0.pid, Signal::KILL)?;
            up.0.wait_until_ended().await;
            drop(up);
            let expected = (sent == all).then_some(&body);
            self.ensure_whole_or_absent(&key, expected, &format!("kill -9 after {sent} bytes")).await?;
            self.store.delete(&key).await?;
        }
        Ok(())
    }

    async fn terminated(&self) -> Checked {
        let body = self.body();
        for sent in [None, Some(body.len() / 2)] {
            let up = self.store.up().await?;
            let key = self.key("terminated")?;
            let mut stream = None;
            if let Some(sent) = sent {
                let put = stream.insert(self.begin_put(&key, &body).await?);
                put.write_all(&body[..sent]).await?;
            }
            signal(up.0.pid, Signal::TERM)?;
            let ended = tokio::time::timeout(STOP_MAX, up.0.wait_until_ended()).await.is_ok();
            if !ended {
                signal(up.0.pid, Signal::KILL)?;
                up.0.wait_until_ended().await;
            }
            drop((up, stream));
            ensure(ended, || "it was still there 5 s after SIGTERM".to_owned())?;
            self.ensure_whole_or_absent(&key, None, "SIGTERM in its put").await?;
        }
        Ok(())
    }

    async fn canary(&self) -> Checked {
        let secrets = self.subject.opening.secrets.iter().map(|(_, value)| value);
        let mut canaries: Vec<Zeroizing<String>> = secrets
            .filter(|value| value.len() >= CANARY_LEN_MIN)
            .map(|value| value.to_owned().into())
            .collect();
        if !canaries.is_empty() {
            let up = self.store.up().await?;
            return self.ensure_untold(&canaries, up.0.pid);
        }
        // it has no secret to tell, so it is given one, which it may refuse
        let canary = Zeroizing::new(format!("canary-{:016x}", OsRng.next_u64()));
        let mut opening = self.subject.opening.clone();
        opening.secrets.set("canary", canary.clone());
        canaries.push(canary);
        self.store.stop().await;
        let name = format!("{}-canary", self.subject.launch.store);
        let store = plugin(self.subject, &name, &opening, self.said)?;
        let opened = store.open().await;
        let told = self.ensure_untold(&canaries, store.state().running.and_then(|(pid, _)| pid));
        store.close().await;
        // what it says of the secret it does not want must not hold it, either
        if let Err(error) = opened {
            ensure(!error.to_string().contains(canaries[0].as_str()), || {
                "an error has the secret in it".to_owned()
            })?;
        }
        told
    }

    fn ensure_untold(&self, canaries: &[Zeroizing<String>], pid: Option<u32>) -> Checked {
        let told = |bytes: &[u8]| {
            canaries
                .iter()
                .any(|canary| bytes.windows(canary.len()).any(|window| window == canary.as_bytes()))
        };
        for line in self.said.lines() {
            ensure(!told(line.as_bytes()), || "a secret is in standard error".to_owned())?;
        }
        let Some(pid) = pid else { return Ok(()) };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        ensure(!told(&environment), || "a secret is in the environment".to_owned())?;
        for pid in with_descendants(pid) {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            ensure(!told(&arguments), || "a secret is among the arguments of a process".to_owned())?;
        }
        Ok(())
    }

    /// Requires an object to be absent, or to be this one.
    async fn ensure_whole_or_absent(&self, key: &StoreKey, whole: Option<&Bytes>, after: &str) -> Checked {
        match self.store.get(key, None).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(body) if whole.is_some_and(|whole| *whole == body) => {}
            Ok(body) => {
                return Err(format!("after {after} there is an object of {} bytes", body.len()).into());
            }
            Err(error) => return Err(error.into()),
        }
        let listed = self.store.list(&self.subject.root).await?;
        let named = listed.iter().find(|object| object.key == *key);
        let is_whole = named.is_none_or(|object| whole.is_some_and(|whole| whole.len() as u64 == object.len));
        ensure(is_whole, || format!("after {after} it is listed with another length"))
    }

    async fn begin_put(&self, key: &StoreKey, body: &Bytes) -> std::io::Result<tokio::net::UnixStream> {
        begin(self.store.process.socket(), "PUT", &format!("/o/{key}"), &digest_header(body), body.len())
            .await
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply, Doubt> {
        let _up = self.store.up().await?;
        Ok(ask(self.store.process.socket(), method, path, headers, body).await?)
    }

    fn key(&self, name: &str) -> Result<StoreKey, Doubt> {
        Ok(StoreKey::try_from(format!("{}/process/{name}", self.subject.root))?)
    }

    fn body(&self) -> Bytes {
        let max = self.store.caps().object_len_max.unwrap_or(u64::MAX);
        let len =
            self.extent.object_len.clamp(2, CUT_LEN_MAX).min(usize::try_from(max).unwrap_or(usize::MAX));
        (0..251_u8).cycle().take(len).collect()
    }
}

fn digest_header(body: &[u8]) -> String {
    format!("Content-Digest: {}\r\n", content_digest(&Sha256::digest(body).into()))
}

fn signal(pid: Option<u32>, signal: Signal) -> Checked {
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())).ok_or("its process id is not known")?;
    Ok(kill_process(pid, signal)?)
}

/// A process and all that it started.
fn with_descendants(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let parent = parent_of(&entry.path());
        if let (Some(parent), Some(Ok(child))) = (parent, entry.file_name().to_str().map(str::parse)) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let born = children.remove(parent).unwrap_or_default();
        all.extend(born);
        next += 1;
    }
    all
}

fn parent_of(process: &Path) -> Option<u32> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // the name of the program, which may hold anything, is in brackets before
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn case(name: &'static str, checked: Checked) -> CaseResult {
    let outcome = match checked {
        Ok(()) => Outcome::Passed,
        Err(doubt) => {
            let cause = doubt.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            Outcome::Failed(format!("{doubt}{cause}"))
        }
    };
    CaseResult { name, outcome }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

fn ensure_problem(reply: &Reply, kind: ErrorKind, what: &str) -> Checked {
    ensure(reply.status >= 400 && reply.kind() == Some(kind), || {
        format!("{what} is answered with status {} and kind {:?}, not {kind}", reply.status, reply.kind())
    })
}
