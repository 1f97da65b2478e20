//! Who is being answered: a bound on all requests together, and one on those about the same account.
//!
//! An account can be asked for by whoever knows its number. With the bound, he takes a few of many places in the queue
//! and at the device, and everybody else waits for a few of his evaluations at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Requests that may be under way; a waiting one takes some 2 KB.
pub(super) const ALL_MAX: usize = 1024;
/// Of these for one account: several devices of its owner, and a repetition while the first try is under way.
pub const OF_ONE_ACCOUNT_MAX: usize = 4;

/// Counts requests under way.
pub(super) struct Crowd {
    all_max: usize,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    all: usize,
    of_account: HashMap<[u8; 16], usize>,
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// There are too many.
    Everybody,
    /// There are too many for this account.
    Account,
}

/// A place inside; free when it is dropped.
pub(super) struct Turn {
    crowd: Arc<Crowd>,
    account: Option<[u8; 16]>,
}

impl Crowd {
    pub(super) fn new(all_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, inside: Mutex::default() })
    }

    /// A place for a request about `account`.
    pub(super) fn enter(self: &Arc<Self>, account: Option<[u8; 16]>) -> Result<Turn, Full> {
        let mut inside = self.lock();
        if inside.all >= self.all_max {
            return Err(Full::Everybody);
        }
        if let Some(account) = account {
            let of_account = inside.of_account.entry(account).or_default();
            if *of_account >= OF_ONE_ACCOUNT_MAX {
                return Err(Full::Account);
            }
            *of_account += 1;
        }
        inside.all += 1;
        Ok(Turn { crowd: self.clone(), account })
    }

    /// How many are inside.
    pub(super) fn len(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no one panics while holding it")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inside = self.crowd.lock();
        inside.all -= 1;
        let Some(account) = self.account else { return };
        let of_account = inside.of_account.get_mut(&account).expect("it was counted when it came in");
        *of_account -= 1;
        if *of_account == 0 {
            inside.of_account.remove(&account);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn enter(crowd: &Arc<Crowd>, account: u8) -> Result<Turn, Full> {
        crowd.enter(Some([account; 16]))
    }

    #[test]
    fn an_account_takes_few_places_and_leaves_the_rest_to_others() {
        let crowd = Crowd::new(100);
        let turns: Vec<_> = (0..OF_ONE_ACCOUNT_MAX).map(|_| enter(&crowd, 1).unwrap()).collect();
        assert_eq!(enter(&crowd, 1).err(), Some(Full::Account));
        let other = enter(&crowd, 2).unwrap();
        drop(turns);
        let again = enter(&crowd, 1).unwrap();
        drop((other, again));
        assert_eq!(crowd.len(), 0);
        assert!(crowd.lock().of_account.is_empty(), "nothing is remembered of who was here");
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let crowd = Crowd::new(2);
        let turns = [enter(&crowd, 1).unwrap(), crowd.enter(None).unwrap()];
        assert_eq!(enter(&crowd, 2).err(), Some(Full::Everybody));
        drop(turns);
        assert!(enter(&crowd, 2).is_ok());
    }
}
