//! Temporary files of stores that are made of files: all in one folder whose name no key can have, so that a listing of objects
//! never meets them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The folder, directly below the root of the store.
pub const FOLDER: &str = ".chatkeep-tmp";

/// How old a temporary file must be before it is nobody's: longer than any put takes, also one of another machine.
pub const AGE_MIN: Duration = Duration::from_hours(24);

/// Tells this process from all others that write into the store.
static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));

/// A name that no other put uses.
pub fn new_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}-{}", *RUN, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether a name may be removed: one that [`new_name`] made, and not in this process, whose puts may be running.
pub fn is_of_another_run(name: &str) -> bool {
    let Some((run, number)) = name.split_once('-') else { return false };
    let hex =
        run.len() == 16 && run.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && number.parse::<u64>().is_ok() && run != format!("{:016x}", *RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_run_left_may_be_removed() {
        assert!(is_of_another_run("0123456789abcdef-17"));
        assert!(!is_of_another_run(&new_name()));
        assert_ne!(new_name(), new_name());
        for name in
            ["", "-", "notes.txt", "0123456789abcdef", "0123456789abcdef-", "0123456789ABCDEF-1", "abc-1"]
        {
            assert!(!is_of_another_run(name), "{name}");
        }
    }
}
