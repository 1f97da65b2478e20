//! Whether a server honours `If-None-Match: *`.
//!
//! Garage and `rclone serve s3` answer 200 to everything, Swift refuses honestly. Nothing but trying tells them apart from
//! those that honour it.

use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_store::{CreateGuarantee, ErrorKind, Result, StoreKey};
use tokio::sync::OnceCell;

use crate::options::Trust;

/// The object a server is tried with. Always the same one: where nothing can be deleted, it stays, and only one of it.
pub(crate) const PROBE: &str = "conditions-probe";

/// How to create an object here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Send the condition, believe the answer.
    Relied,
    /// Look first, then send the condition all the same.
    Ignored,
    /// Look first; the condition would be refused.
    Refused,
}

/// What is known about a server.
#[derive(Debug)]
pub(crate) struct Conditions {
    trust: Trust,
    found: OnceCell<Stance>,
    /// A put with a condition was refused after all.
    refused: AtomicBool,
}

impl Conditions {
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust, found: OnceCell::new(), refused: AtomicBool::new(false) }
    }

    /// How to create; `probe` is run once if nothing is known. Only what a server really answered is remembered.
    pub(crate) async fn stance(&self, probe: impl Future<Output = Result<Stance>>) -> Result<Stance> {
        match self.trust {
            _ if self.refused.load(Ordering::Relaxed) => Ok(Stance::Refused),
            Trust::On => Ok(Stance::Relied),
            Trust::Off => Ok(Stance::Refused),
            Trust::Probe => self.found.get_or_try_init(|| probe).await.copied(),
        }
    }

    /// A put with a condition was answered "not implemented".
    pub(crate) fn were_refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// What creates are worth, as far as it is known: the least until a server was tried.
    pub(crate) fn guarantee(&self) -> CreateGuarantee {
        let refused = self.refused.load(Ordering::Relaxed);
        match (self.trust, self.found.get()) {
            (Trust::On, _) | (Trust::Probe, Some(Stance::Relied)) if !refused => CreateGuarantee::Atomic,
            _ => CreateGuarantee::Advisory,
        }
    }
}

/// What two creates of one object say of a server.
pub(crate) async fn probe<F>(mut create: impl FnMut(StoreKey) -> F) -> Result<Stance>
where
    F: Future<Output = Result<()>>,
{
    for _ in 0..2 {
        let key = StoreKey::try_from(PROBE).expect("a valid key");
        match create(key).await {
            Ok(()) => {}
            Err(error) => {
                return match error.kind() {
                    // also in the first round: it was left behind, and the condition held
                    ErrorKind::AlreadyExists => Ok(Stance::Relied),
                    ErrorKind::Unsupported => Ok(Stance::Refused),
                    // credentials for some folder below only
                    ErrorKind::Permission => Ok(Stance::Ignored),
                    _ => Err(error),
                };
            }
        }
    }
    Ok(Stance::Ignored)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chatkeep_store::StoreError;

    use super::*;

    async fn probed(answers: Vec<Result<()>>) -> Result<Stance> {
        let mut answers = answers.into_iter();
        probe(move |_| std::future::ready(answers.next().unwrap())).await
    }

    fn exists() -> StoreError {
        StoreError::AlreadyExists { key: StoreKey::try_from(PROBE).unwrap() }
    }

    #[tokio::test]
    async fn two_creates_tell_who_honours_the_condition() {
        assert_eq!(probed(vec![Ok(()), Err(exists())]).await.unwrap(), Stance::Relied);
        assert_eq!(probed(vec![Err(exists())]).await.unwrap(), Stance::Relied);
        assert_eq!(probed(vec![Ok(()), Ok(())]).await.unwrap(), Stance::Ignored);
        let unsupported = StoreError::Unsupported { what: "do this" };
        assert_eq!(probed(vec![Err(unsupported)]).await.unwrap(), Stance::Refused);
        assert_eq!(probed(vec![Err(StoreError::Permission("no".into()))]).await.unwrap(), Stance::Ignored);
    }

    #[tokio::test]
    async fn a_line_that_is_down_says_nothing_about_a_server() {
        let conditions = Conditions::new(Trust::Probe);
        let offline = async { Err(StoreError::Offline("down".into())) };
        conditions.stance(offline).await.unwrap_err();
        assert_eq!(conditions.guarantee(), CreateGuarantee::Advisory);
        conditions.stance(async { Ok(Stance::Relied) }).await.unwrap();
        assert_eq!(conditions.guarantee(), CreateGuarantee::Atomic);
        conditions.were_refused();
        assert_eq!(conditions.guarantee(), CreateGuarantee::Advisory);
    }
}
