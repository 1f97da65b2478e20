//! Objects come back as they were put, whole or in part.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{CaseOutcome, CaseResult, Doubt, LOCKED, Suite, case, ensure, ensure_kind};
use crate::contract::{CreateGuarantee, PutCondition};
use crate::error::{ErrorKind, StoreError};
use crate::key::KEY_LEN_MAX;

pub(super) async fn run(suite: &Suite) -> Vec<CaseResult> {
    vec![
        case("an object comes back as it was put", basics(suite).await),
        case("an empty object is an object", empty(suite).await),
        case("a range is cut at the end of the object", ranges(suite).await),
        case("what is missing is reported as missing", missing(suite).await),
        case("the second create is refused and changes nothing", create_twice(suite).await),
        case("an overwrite replaces the object, also by a shorter one", overwrite(suite).await),
        case("deleting twice succeeds, and the key is free again", delete_twice(suite).await),
        case("every byte value and every permitted key survives", awkward(suite).await),
        case("a large object comes back whole", large(suite).await),
        case("usage is told, or refused as unsupported", usage(suite).await),
        case(LOCKED, locked(suite).await),
    ]
}

async fn basics(suite: &Suite) -> CaseOutcome {
    let key = suite.create("basics/one", "hello").await?;
    ensure(suite.store.get(&key, None).await? == "hello", || "it came back different".to_owned())?;
    let meta = suite.store.head(&key).await?;
    ensure(meta.key == key && meta.len == 5, || format!("head says {meta:?} of 5 bytes"))
}

async fn empty(suite: &Suite) -> CaseOutcome {
    let key = suite.create("empty/none", "").await?;
    ensure(suite.store.get(&key, None).await?.is_empty(), || "it came back with content".to_owned())?;
    ensure(suite.store.get(&key, Some(0..5)).await?.is_empty(), || "a range of it has content".to_owned())?;
    ensure(suite.store.head(&key).await?.len == 0, || "head says it has a length".to_owned())?;
    ensure(suite.names("empty").await? == ["none"], || "it is not listed".to_owned())
}

async fn ranges(suite: &Suite) -> CaseOutcome {
    let body = Bytes::from((0..=255_u8).cycle().take(100_000).collect::<Vec<_>>());
    let key = suite.create("ranges/body", body.clone()).await?;
    for (start, end) in [
        (0, 1),
        (0, 100_000),
        (65_535, 65_537),
        (99_999, 100_000),
        (99_999, 100_001),
        (0, u64::MAX),
        (100_000, 100_001),
        (200_000, 300_000),
        (u64::MAX, u64::MAX),
        (0, 0),
        (7, 7),
    ] {
        let part = suite.store.get(&key, Some(start..end)).await?;
        let expected = body.slice(start.min(100_000) as usize..end.min(100_000) as usize);
        ensure(part == expected, || format!("{start}..{end} of 100000 bytes answers {} bytes", part.len()))?;
    }
    let (start, end) = (9, 8);
    let backwards = suite.store.get(&key, Some(start..end)).await;
    ensure_kind(backwards, ErrorKind::Invalid, "a range that ends before it starts")
}

async fn missing(suite: &Suite) -> CaseOutcome {
    suite.create("missing/there", "x").await?;
    for below in ["missing/not-there", "nowhere/at/all"] {
        let key = suite.key(below)?;
        ensure_kind(suite.store.get(&key, None).await, ErrorKind::NotFound, "get")?;
        ensure_kind(suite.store.get(&key, Some(0..0)).await, ErrorKind::NotFound, "get of an empty range")?;
        ensure_kind(suite.store.head(&key).await, ErrorKind::NotFound, "head")?;
    }
    // where keys are paths, a folder is not an object, and nothing lies below one
    let folder = suite.key("missing")?;
    ensure_kind(suite.store.get(&folder, None).await, ErrorKind::NotFound, "get of a folder")?;
    ensure_kind(suite.store.head(&folder).await, ErrorKind::NotFound, "head of a folder")?;
    let below = suite.key("missing/there/below")?;
    ensure_kind(suite.store.get(&below, None).await, ErrorKind::NotFound, "get below an object")
}

async fn create_twice(suite: &Suite) -> CaseOutcome {
    let key = suite.key("create/once")?;
    let store = &suite.store;
    if store.capabilities().create == CreateGuarantee::None {
        let answer = store.put(&key, "x".into(), PutCondition::CreateIfAbsent).await;
        return ensure_kind(answer, ErrorKind::Unsupported, "a conditional put");
    }
    store.put(&key, "first".into(), PutCondition::CreateIfAbsent).await?;
    let second = store.put(&key, "the second".into(), PutCondition::CreateIfAbsent).await;
    ensure_kind(second, ErrorKind::AlreadyExists, "the second create")?;
    ensure(store.get(&key, None).await? == "first", || "the second create changed the object".to_owned())
}

async fn overwrite(suite: &Suite) -> CaseOutcome {
    let key = suite.create("overwrite/it", "a longer first body").await?;
    for body in ["short", "", "again"] {
        suite.store.put(&key, body.into(), PutCondition::Overwrite).await?;
        ensure(suite.store.get(&key, None).await? == body, || format!("`{body}` was not what came back"))?;
        let len = suite.store.head(&key).await?.len;
        ensure(len == body.len() as u64, || format!("head says {len} of `{body}`"))?;
    }
    Ok(())
}

async fn delete_twice(suite: &Suite) -> CaseOutcome {
    let key = suite.create("delete/it", "x").await?;
    suite.store.delete(&key).await?;
    ensure_kind(suite.store.get(&key, None).await, ErrorKind::NotFound, "get of a deleted object")?;
    ensure(suite.names("delete").await?.is_empty(), || "it is still listed".to_owned())?;
    suite.store.delete(&key).await?;
    suite.store.delete(&suite.key("never/was/there")?).await?;
    suite.create("delete/it", "y").await?;
    ensure(suite.store.get(&key, None).await? == "y", || "the key is not free again".to_owned())
}

async fn awkward(suite: &Suite) -> CaseOutcome {
    let body = Bytes::from((0..=255_u8).collect::<Vec<_>>());
    // of as much as the root leaves room for, cut into names no file system finds too long
    let longest = KEY_LEN_MAX - suite.root.len() - 1 - "awkward/".len();
    let long = "l".repeat(longest);
    let names =
        ["0", "a.b", "a-b", "a_b", "a..b", "a.", "con", "nul.txt", "x.tmp", "index.html", "a.json", &long];
    for name in names {
        let key = suite.create(&format!("awkward/{name}"), body.clone()).await?;
        ensure(suite.store.get(&key, None).await? == body, || format!("`{name}` came back different"))?;
    }
    let mut expected = names.to_vec();
    expected.sort_unstable();
    let listed = suite.names("awkward").await?;
    ensure(listed == expected, || format!("listed are {listed:?}"))
}

async fn large(suite: &Suite) -> CaseOutcome {
    let len = suite.extent.object_len;
    // a pattern that no block size divides, so that swapped or repeated parts show
    let body = Bytes::from((0..251_u8).cycle().take(len).collect::<Vec<_>>());
    if suite.store.capabilities().object_len_max.is_some_and(|max| max < len as u64) {
        let answer = suite.store.put(&suite.key("large/it")?, body, suite.plain_put()).await;
        return ensure_kind(answer, ErrorKind::TooLarge, "a put above the stated limit");
    }
    let key = suite.create("large/it", body.clone()).await?;
    let head = suite.store.head(&key).await?.len;
    ensure(head == len as u64, || format!("head says {head} of {len} bytes"))?;
    let whole = suite.store.get(&key, None).await?;
    ensure(whole == body, || format!("{} bytes came back, or others than were put", whole.len()))?;
    let part = suite.store.get(&key, Some(len as u64 - 3..len as u64 + 3)).await?;
    ensure(part == body.slice(len - 3..), || "its end came back different".to_owned())?;
    suite.store.delete(&key).await?;
    Ok(())
}

async fn usage(suite: &Suite) -> CaseOutcome {
    let answer = suite.store.usage().await;
    if !suite.store.capabilities().usage {
        return ensure_kind(answer, ErrorKind::Unsupported, "usage");
    }
    let usage = answer?;
    let fits = usage.free.zip(usage.total).is_none_or(|(free, total)| free <= total);
    ensure(fits, || format!("more is free than there is: {usage:?}"))
}

/// The lock is short: the suite removes what it made.
async fn locked(suite: &Suite) -> CaseOutcome {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let key = suite.create("locked/object", "keep me").await?;
    let until_s = now() + 4;
    if !suite.store.capabilities().retain {
        ensure_kind(suite.store.retain(&key, until_s).await, ErrorKind::Unsupported, "retain")?;
        return Err(Doubt::Cannot("it has no locks".to_owned()));
    }
    suite.store.retain(&key, until_s).await?;
    // a shorter lock shortens nothing
    match suite.store.retain(&key, until_s - 3).await {
        Ok(()) | Err(StoreError::Retained { .. } | StoreError::Permission(_)) => {}
        Err(error) => return Err(error.into()),
    }
    ensure_kind(suite.store.delete(&key).await, ErrorKind::Retained, "deleting a locked object")?;
    ensure(suite.store.get(&key, None).await? == "keep me", || "it is not what it was".to_owned())?;
    while now() <= until_s {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    suite.store.delete(&key).await?;
    Ok(())
}
