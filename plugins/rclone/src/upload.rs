//! How an object gets there: whole, and looked at before it counts.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chatkeep_store::{PutCondition, Result, StoreError, StoreKey};
use rand_core::{OsRng, RngCore as _};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::errors::Asked;
use crate::session::Session;

/// Files on their way start with this. No segment of a key starts with a dot.
const PREFIX: &str = ".chatkeep-tmp-";

/// How old such a file must be before it is nobody's: longer than any put takes, also one of another machine whose clock
/// is a little off.
const AGE_MIN: Duration = Duration::from_hours(24);

/// How long an object may stay unseen after its upload where changes show later; Google Drive takes seconds.
const UNSEEN_MAX: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Stores an object. The folders are there, and the condition is met as far as that can be known.
pub(crate) async fn put(
    session: &Session,
    backend: &Backend,
    key: &StoreKey,
    body: Bytes,
    condition: PutCondition,
) -> Result<()> {
    if !backend.renames {
        return copy_up(session, backend, key, key.as_str(), body).await;
    }
    let temporary = temporary_name(key, SystemTime::now());
    let put = async {
        copy_up(session, backend, key, &temporary, body).await?;
        rename(session, &temporary, key, condition).await
    };
    let outcome = put.await;
    if outcome.is_err() {
        // if this fails, too, a listing removes it when it is old
        let _ = session.delete(&temporary).await;
    }
    outcome
}

/// Copies from a file of this machine. rclone then knows the length beforehand (not every service takes an upload
/// without), can send parts of it again, and compares length and checksum itself where the service has one.
async fn copy_up(
    session: &Session,
    backend: &Backend,
    key: &StoreKey,
    name: &str,
    body: Bytes,
) -> Result<()> {
    let len = body.len() as u64;
    let rclone = session.rclone().await?;
    let file = rclone.stage(body).await?;
    let arguments = json!({
        "srcFs": folder_of(file.path())?,
        "srcRemote": name_of(file.path())?,
        "dstFs": session.spec,
        "dstRemote": name,
    });
    // on this rclone and no other: the file is in its folder
    let copied: Result<Value, _> = rclone.control.call("operations/copyfile", &arguments).await;
    copied.map_err(|failure| session.sorter.sort(failure, Asked::Write(key, len)))?;
    confirm(session, backend, name, len).await
}

/// Looks whether all of it arrived: services have kept half of a file that rclone had sent twice (restic #3079).
async fn confirm(session: &Session, backend: &Backend, name: &str, len: u64) -> Result<()> {
    let mut waits = if backend.is_strong() { &[][..] } else { &UNSEEN_MAX[..] }.iter();
    let found = loop {
        match (session.len_of(name).await?, waits.next()) {
            (None, Some(wait)) => tokio::time::sleep(*wait).await,
            (found, _) => break found,
        }
    };
    match found {
        Some(found) if found == len => Ok(()),
        Some(found) => {
            session.delete(name).await?;
            Err(StoreError::Transient(format!("{len} bytes were uploaded and {found} arrived").into()))
        }
        None => Err(StoreError::Transient("what was uploaded is not there".into())),
    }
}

async fn rename(session: &Session, from: &str, key: &StoreKey, condition: PutCondition) -> Result<()> {
    let arguments = |config: Value| {
        let (fs, to) = (&session.spec, key.as_str());
        json!({"srcFs": fs, "srcRemote": from, "dstFs": fs, "dstRemote": to, "_config": config})
    };
    // rclone must not look for what is there already: it would delete that first, and a reader would find nothing
    let replacing = arguments(json!({"NoCheckDest": true}));
    let moved = session.order("operations/movefile", &replacing, Asked::Write(key, 0)).await;
    match (moved, condition) {
        // a service that does not rename onto another file: then there has to be a gap
        (Err(StoreError::Transient(_)), PutCondition::Overwrite) => {
            session.order("operations/movefile", &arguments(json!({})), Asked::Write(key, 0)).await
        }
        (moved, _) => moved,
    }
}

/// `.chatkeep-tmp-SECONDS-RANDOM` in the folder of `key`.
fn temporary_name(key: &StoreKey, now: SystemTime) -> String {
    let folder = key.as_str().rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    format!("{folder}{PREFIX}{:x}-{:016x}", seconds(now), OsRng.next_u64())
}

/// Whether a file with this name is one on its way, here or on another machine.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether it is nobody's any more.
pub(crate) fn is_old(name: &str, now: SystemTime) -> bool {
    let begun = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    let begun = begun.and_then(|begun| u64::from_str_radix(begun, 16).ok());
    begun.is_some_and(|begun| seconds(now).saturating_sub(begun) >= AGE_MIN.as_secs())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn folder_of(file: &Path) -> Result<&str> {
    file.parent().and_then(Path::to_str).ok_or_else(not_text)
}

fn name_of(file: &Path) -> Result<&str> {
    file.file_name().and_then(|name| name.to_str()).ok_or_else(not_text)
}

pub(crate) fn not_text() -> StoreError {
    StoreError::Invalid { reason: "the name of the folder for temporary files is not text".to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_file_on_its_way_lies_beside_its_object_and_is_no_object() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let key = StoreKey::try_from("a/log/1").unwrap();
        let name = temporary_name(&key, now);
        assert!(name.starts_with("a/log/.chatkeep-tmp-6b49d200-"), "{name}");
        assert!(StoreKey::try_from(name.as_str()).is_err());
        assert_ne!(name, temporary_name(&key, now));
        assert!(is_temporary(name.strip_prefix("a/log/").unwrap()));
        assert!(temporary_name(&StoreKey::try_from("a").unwrap(), now).starts_with(PREFIX));
    }

    #[test]
    fn only_what_is_a_day_old_is_nobodys() {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let name = temporary_name(&StoreKey::try_from("a").unwrap(), begun);
        assert!(!is_old(&name, begun + AGE_MIN - Duration::from_secs(1)));
        assert!(is_old(&name, begun + AGE_MIN));
        // a clock that was set back, and names that are not ours
        assert!(!is_old(&name, begun - AGE_MIN));
        assert!(!is_old(".chatkeep-tmp-zz-1", begun) && !is_old("1", begun));
    }
}
