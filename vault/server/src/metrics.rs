//! What the vault does, in numbers for its operator: nothing about one account, no addresses.
//!
//! The format is that of Prometheus, version 0.0.4, which is a few lines of text for each metric: written here by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chatkeep_vault_protocol::answer::{AdmissionFault, Answer, Refusal};
use chatkeep_vault_protocol::message::{Envelope, Request};

use crate::vault::Unanswered;

/// Upper ends of the buckets for times, in seconds: from an SSD's write to the patience of clients.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper ends of the buckets for requests in a batch.
const REQUESTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Counts, since this process began.
pub(crate) struct Metrics {
    /// By kind and outcome.
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    request_s: Histogram,
    /// Requests decided together.
    pub(crate) batch: Histogram,
    /// How long a batch took to be durable in the store.
    pub(crate) commit_s: Histogram,
    /// How long the anchors took after that.
    pub(crate) anchor_s: Histogram,
    /// How long an evaluation took, with waiting for the device.
    pub(crate) evaluation_s: Histogram,
    /// Records there are, with erased accounts and used invitations.
    pub(crate) records: AtomicU64,
    /// When the newest seal key was made, in seconds since 1970; 0 if nobody knows.
    pub(crate) seal_key_made_at_s: AtomicU64,
}

/// What is asked for when somebody looks.
pub(crate) struct Gauges {
    pub(crate) ready: bool,
    pub(crate) commits: u64,
    pub(crate) restores: u64,
    pub(crate) in_flight: usize,
    pub(crate) connections: usize,
    /// `None`: nobody knows when it was made.
    pub(crate) seal_key_age_s: Option<u64>,
    /// By witness, in the order of the settings; `None` if it did not say what it holds.
    pub(crate) witness_lags: Vec<Option<u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            request_s: Histogram::new(SECONDS),
            batch: Histogram::new(REQUESTS),
            commit_s: Histogram::new(SECONDS),
            anchor_s: Histogram::new(SECONDS),
            evaluation_s: Histogram::new(SECONDS),
            records: AtomicU64::new(0),
            seal_key_made_at_s: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Notes what became of a request.
    pub(crate) fn answered(&self, kind: &'static str, answer: &Result<Answer, Unanswered>, took: Duration) {
        let outcome = outcome(answer);
        tracing::debug!(kind, outcome, took_ms = took.as_millis() as u64, "answered");
        self.request_s.observe(took.as_secs_f64());
        let mut requests = self.requests.lock().expect("no one panics while holding it");
        *requests.entry((kind, outcome)).or_default() += 1;
    }

    /// All of it.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        let mut text = Text::default();
        text.about("requests_total", "counter", "Requests, by what was asked and what became of it.");
        for ((kind, outcome), count) in &*self.requests.lock().expect("no one panics while holding it") {
            text.line("requests_total", &[("kind", kind), ("outcome", outcome)], *count);
        }
        text.histogram("request_seconds", "From a request to its answer.", &self.request_s);
        text.histogram("batch_requests", "Requests decided and committed together.", &self.batch);
        text.histogram("commit_seconds", "Until a batch is durable in the store.", &self.commit_s);
        text.histogram("anchor_seconds", "Until the anchors have it, after that.", &self.anchor_s);
        let what = "One evaluation, with waiting for the device.";
        text.histogram("evaluation_seconds", what, &self.evaluation_s);
        let Gauges { ready, commits, restores, in_flight, connections, .. } = *gauges;
        text.gauge("ready", "1 when store and anchors were checked.", u64::from(ready));
        text.gauge("commits", "Number of the newest commit since the last restore.", commits);
        text.gauge("restores", "Restores from a backup, ever.", restores);
        let records = self.records.load(Ordering::Relaxed);
        text.gauge("records", "Records, with erased accounts and used invitations.", records);
        text.gauge("in_flight_requests", "Requests that wait or are worked on.", in_flight as u64);
        text.gauge("connections", "Open connections of clients.", connections as u64);
        if let Some(age) = gauges.seal_key_age_s {
            text.gauge("seal_key_age_seconds", "Age of the key that seals records.", age);
        }
        if !gauges.witness_lags.is_empty() {
            let what = "Commits that a witness is behind; none if it did not say.";
            text.about("witness_lag_commits", "gauge", what);
        }
        for (index, lag) in gauges.witness_lags.iter().enumerate() {
            if let Some(lag) = lag {
                text.line("witness_lag_commits", &[("witness", &index.to_string())], *lag);
            }
        }
        text.0
    }
}

/// Counts values by size.
pub(crate) struct Histogram {
    /// Upper ends of the buckets.
    bounds: &'static [f64],
    seen: Mutex<Seen>,
}

struct Seen {
    /// One for each bound, and one for what is larger.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, seen: Mutex::new(Seen { counts: vec![0; bounds.len() + 1], sum: 0.0 }) }
    }

    /// Counts one value.
    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        let mut seen = self.seen.lock().expect("no one panics while holding it");
        seen.counts[bucket] += 1;
        seen.sum += value;
    }

    /// Counts how long `work` takes.
    pub(crate) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let since = std::time::Instant::now();
        let done = work();
        self.observe(since.elapsed().as_secs_f64());
        done
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let name = format!("chatkeep_vault_{name}");
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes text");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "chatkeep_vault_{name}{labels} {value}").expect("a string takes text");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.about(name, "gauge", help);
        self.line(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.about(name, "histogram", help);
        let seen = histogram.seen.lock().expect("no one panics while holding it");
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut up_to = 0;
        for (bound, count) in bounds.zip(&seen.counts) {
            up_to += count;
            self.line(&format!("{name}_bucket"), &[("le", &bound)], up_to);
        }
        self.line(&format!("{name}_sum"), &[], seen.sum);
        self.line(&format!("{name}_count"), &[], up_to);
    }
}

/// What was asked; `None` is no request.
pub(crate) fn kind(envelope: Option<&Envelope>) -> &'static str {
    let Some(envelope) = envelope else { return "malformed" };
    match envelope.request {
        Request::Info(_) => "info",
        Request::Begin(_) => "begin",
        Request::Finish(_) => "finish",
        Request::Commit(_) => "commit",
        Request::Guess(_) => "guess",
        Request::Prove(_) => "prove",
        Request::Status(_) => "status",
        Request::Freeze(_) => "freeze",
        Request::Thaw(_) => "thaw",
        Request::Destroy(_) => "destroy",
        Request::Cosign(_) => "cosign",
        Request::Latest(_) => "latest",
        Request::WitnessHead(_) => "witness_head",
        Request::Head(_) => "head",
    }
}

fn outcome(answer: &Result<Answer, Unanswered>) -> &'static str {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Unanswered::Overloaded) => return "overloaded",
        Err(Unanswered::Stopped(_)) => return "stopped",
    };
    match answer {
        Answer::Info(_) => "info",
        Answer::Evaluated { .. } => "evaluated",
        Answer::Pending {} => "pending",
        Answer::Active { .. } => "active",
        Answer::Charged(_) => "charged",
        Answer::Reset { .. } => "reset",
        Answer::Status(_) => "status",
        Answer::Frozen { .. } => "frozen",
        Answer::Throttled { .. } => "throttled",
        Answer::Destroyed { .. } => "destroyed",
        Answer::Superseded {} => "superseded",
        Answer::Unknown {} => "unknown",
        Answer::Exists {} => "exists",
        Answer::AdmissionRequired { .. } => "admission_required",
        Answer::AdmissionRefused { why: AdmissionFault::Invalid } => "admission_invalid",
        Answer::AdmissionRefused { why: AdmissionFault::Expired } => "admission_expired",
        Answer::AdmissionRefused { why: AdmissionFault::Spent } => "admission_spent",
        Answer::Elsewhere { .. } => "elsewhere",
        Answer::Busy {} => "busy",
        Answer::Cosigned { .. } => "cosigned",
        Answer::Latest { .. } => "latest",
        Answer::Head { .. } => "head",
        Answer::Refused { why } => match why {
            Refusal::Malformed => "refused_malformed",
            Refusal::Suite => "refused_suite",
            Refusal::Element => "refused_element",
            Refusal::Signature => "refused_signature",
            Refusal::Challenge => "refused_challenge",
            Refusal::NotPending => "refused_not_pending",
            Refusal::NotWitnessed => "refused_not_witnessed",
            Refusal::OutOfOrder => "refused_out_of_order",
            Refusal::Conflict => "refused_conflict",
            Refusal::OtherCells => "refused_other_cells",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_all_that_is_no_larger() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 3.0] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.histogram("size", "Sizes.", &histogram);
        let expected = [
            "# HELP chatkeep_vault_size Sizes.",
            "# TYPE chatkeep_vault_size histogram",
            "chatkeep_vault_size_bucket{le=\"1\"} 2",
            "chatkeep_vault_size_bucket{le=\"2\"} 3",
            "chatkeep_vault_size_bucket{le=\"+Inf\"} 4",
            "chatkeep_vault_size_sum 6",
            "chatkeep_vault_size_count 4",
        ];
        assert_eq!(text.0.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_nobody_knows_has_no_line() {
        let gauges = Gauges {
            ready: true,
            commits: 7,
            restores: 0,
            in_flight: 1,
            connections: 2,
            seal_key_age_s: None,
            witness_lags: vec![Some(3), None],
        };
        let metrics = Metrics::default();
        metrics.answered("guess", &Ok(Answer::Busy {}), Duration::from_millis(2));
        let text = metrics.text(&gauges);
        let has = |line: &str| text.lines().any(|found| found == line);
        assert!(has("chatkeep_vault_requests_total{kind=\"guess\",outcome=\"busy\"} 1"), "{text}");
        assert!(has("chatkeep_vault_commits 7") && has("chatkeep_vault_connections 2"), "{text}");
        assert!(has("chatkeep_vault_witness_lag_commits{witness=\"0\"} 3"), "{text}");
        assert!(!text.contains("witness=\"1\"") && !text.contains("seal_key_age"), "{text}");
    }
}
