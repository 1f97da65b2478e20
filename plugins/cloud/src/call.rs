//! What one call of ours has seen so far.
//!
//! `object_store` turns all answers but a few into one error with a text. It runs in the task that calls it, so what its
//! requests were answered is written down beside it, in a record that goes with the task.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::answer::{Answer, Fault};
use crate::page::Page;

/// Most pages of one listing: two million objects in pages of a hundred. A listing without end has more.
const PAGES_MAX: u32 = 20_000;

tokio::task_local! {
    static CURRENT: Arc<Call>;
}

/// The record of one call of `object_store`.
#[derive(Debug, Default)]
pub(crate) struct Call {
    wants: Wants,
    seen: Mutex<Seen>,
}

/// What has to happen to its requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    #[default]
    Nothing,
    /// Answers are pages of a listing.
    Pages,
    /// The request that completes a multipart upload carries the condition of a create, for which `object_store` has no way.
    ConditionAtEnd,
}

#[derive(Debug, Default)]
struct Seen {
    requests: u32,
    status: u16,
    fault: Option<Fault>,
    retain_until: Option<String>,
    objects: Vec<(String, u64)>,
    pages: u32,
    next: Option<String>,
}

impl Call {
    pub(crate) fn new(wants: Wants) -> Arc<Self> {
        Arc::new(Self { wants, seen: Mutex::default() })
    }

    /// Runs `future` with this as its record.
    pub(crate) async fn run<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        CURRENT.scope(Arc::clone(self), future).await
    }

    /// The record of the call that runs in this task.
    pub(crate) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    pub(crate) fn wants(&self) -> Wants {
        self.wants
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is about to be sent.
    pub(crate) fn begins(&self) {
        let mut seen = self.seen();
        seen.requests += 1;
        seen.status = 0;
        seen.fault = None;
    }

    /// A request was answered with success.
    pub(crate) fn succeeded(&self, status: u16, retain_until: Option<String>) {
        let mut seen = self.seen();
        seen.status = status;
        seen.retain_until = retain_until;
    }

    /// A request came to nothing.
    pub(crate) fn failed(&self, fault: Fault) {
        let mut seen = self.seen();
        if let Fault::Answer(answer) = &fault {
            seen.status = answer.status;
        }
        seen.fault = Some(fault);
    }

    /// A page of a listing arrived.
    pub(crate) fn page(&self, page: Page) -> Result<(), String> {
        let mut seen = self.seen();
        seen.pages += 1;
        if seen.pages > PAGES_MAX {
            return Err(format!("it has more than {PAGES_MAX} pages"));
        }
        if page.next.is_some() && page.next == seen.next {
            return Err("a page says that it follows itself".to_owned());
        }
        seen.next = page.next;
        seen.objects.extend(page.objects);
        Ok(())
    }

    /// What the pages named; an error unless the last of them said that it is the last.
    pub(crate) fn objects(&self) -> Result<Vec<(String, u64)>, String> {
        let mut seen = self.seen();
        if seen.pages == 0 || seen.next.is_some() {
            return Err("it broke off between two pages".to_owned());
        }
        Ok(std::mem::take(&mut seen.objects))
    }

    /// Whether the last request was the second or a later one: an earlier one may have done the work.
    pub(crate) fn was_retried(&self) -> bool {
        self.seen().requests > 1
    }

    /// Status of the last answer; 0 if there was none.
    pub(crate) fn status(&self) -> u16 {
        self.seen().status
    }

    /// The last failure, if the last request failed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.seen().fault.clone()
    }

    /// The last answer, if it was a failure.
    pub(crate) fn answer(&self) -> Option<Answer> {
        match self.fault() {
            Some(Fault::Answer(answer)) => Some(answer),
            _ => None,
        }
    }

    /// Until when the object of the last answer is locked, as S3 writes times.
    pub(crate) fn retain_until(&self) -> Option<String> {
        self.seen().retain_until.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn page(next: Option<&str>) -> Page {
        Page { objects: vec![("a".to_owned(), 1)], next: next.map(str::to_owned) }
    }

    #[test]
    fn a_listing_ends_with_its_last_page_and_not_before() {
        let call = Call::new(Wants::Pages);
        call.objects().unwrap_err();
        call.page(page(Some("1"))).unwrap();
        call.objects().unwrap_err();
        call.page(page(None)).unwrap();
        assert_eq!(call.objects().unwrap().len(), 2);
    }

    #[test]
    fn a_listing_that_runs_in_a_circle_is_noticed() {
        let call = Call::new(Wants::Pages);
        call.page(page(Some("1"))).unwrap();
        call.page(page(Some("1"))).unwrap_err();
        let call = Call::new(Wants::Pages);
        let endless = (0..2 * PAGES_MAX).find(|number| call.page(page(Some(&number.to_string()))).is_err());
        assert_eq!(endless, Some(PAGES_MAX));
    }
}
