//! Listings are complete, or errors.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::{CaseOutcome, CaseResult, Doubt, Suite, case, ensure, ensure_kind};
use crate::contract::Visibility;
use crate::error::ErrorKind;

pub(super) async fn run(suite: &Suite) -> Vec<CaseResult> {
    vec![
        case("a folder that never was lists nothing", nothing(suite).await),
        case("a prefix ends where a segment ends", prefixes(suite).await),
        case("a prefix that cannot be one is refused", bad_prefixes(suite).await),
        case("a long listing is complete and sorted", long(suite).await),
        case("a listing while writing misses nothing that was there before", while_writing(suite).await),
    ]
}

fn require_strong(suite: &Suite) -> CaseOutcome {
    match suite.store.capabilities().list_after_write {
        Visibility::Strong => Ok(()),
        Visibility::Eventual => Err(Doubt::Cannot("it says listings lag behind".to_owned())),
    }
}

async fn nothing(suite: &Suite) -> CaseOutcome {
    let names = suite.names("never").await?;
    ensure(names.is_empty(), || format!("listed are {names:?}"))
}

async fn prefixes(suite: &Suite) -> CaseOutcome {
    require_strong(suite)?;
    for below in ["prefix/log/1", "prefix/log/2", "prefix/logs/3", "prefix/lo/4", "prefix/log.5"] {
        suite.create(below, below.to_owned()).await?;
    }
    ensure(suite.names("prefix/log").await? == ["1", "2"], || "`log` holds more than 1 and 2".to_owned())?;
    let all = suite.names("prefix").await?;
    ensure(all == ["lo/4", "log.5", "log/1", "log/2", "logs/3"], || format!("listed are {all:?}"))?;
    let with_slash = suite.store.list(&format!("{}/prefix/log/", suite.root)).await?;
    ensure(with_slash.len() == 2, || "a slash at the end changes the listing".to_owned())?;
    let lens_right = with_slash.iter().all(|object| object.len == "prefix/log/1".len() as u64);
    ensure(lens_right, || "a listed length is wrong".to_owned())?;
    let object = suite.names("prefix/log/1").await?;
    ensure(object.is_empty(), || "an object is listed below itself".to_owned())?;
    let everything = suite.store.list("").await?;
    let here = everything.iter().filter(|o| o.key.as_str().starts_with(&format!("{}/prefix/", suite.root)));
    ensure(here.count() == 5, || "the listing of everything misses some of it".to_owned())
}

async fn bad_prefixes(suite: &Suite) -> CaseOutcome {
    for prefix in ["/", "..", "a/../b", "A", "a//b", "/etc"] {
        let answer = suite.store.list(prefix).await;
        ensure_kind(answer, ErrorKind::Invalid, &format!("the listing of `{prefix}`"))?;
    }
    Ok(())
}

async fn long(suite: &Suite) -> CaseOutcome {
    require_strong(suite)?;
    let expected: Vec<String> = (0..suite.extent.listing_len).map(|number| format!("{number:08}")).collect();
    fill(suite, "long", &expected).await?;
    let listed = suite.names("long").await?;
    ensure(listed == expected, || format!("{} of {} objects are listed", listed.len(), expected.len()))?;
    suite.store.delete(&suite.key("long/00000000")?).await?;
    let listed = suite.names("long").await?;
    ensure(listed == expected[1..], || "after a delete another listing than one less".to_owned())
}

async fn while_writing(suite: &Suite) -> CaseOutcome {
    require_strong(suite)?;
    let before: Vec<String> = (0..50).map(|number| format!("b{number:04}")).collect();
    fill(suite, "while", &before).await?;
    let writer = {
        let (store, condition) = (Arc::clone(&suite.store), suite.plain_put());
        let keys: Vec<_> =
            (0..200).map(|number| suite.key(&format!("while/a{number:04}"))).collect::<Result<_, _>>()?;
        tokio::spawn(async move {
            for key in keys {
                store.put(&key, "new".into(), condition).await?;
            }
            Ok::<_, crate::StoreError>(())
        })
    };
    for _ in 0..suite.extent.rounds {
        let listed = suite.names("while").await?;
        let complete = before.iter().all(|name| listed.binary_search(name).is_ok());
        ensure(complete, || "an object that was there all the time is missing".to_owned())?;
    }
    writer.await.map_err(|error| Doubt::Broken(format!("a put panicked: {error}")))??;
    let listed = suite.names("while").await?;
    ensure(listed.len() == 250, || format!("{} of 250 objects are listed in the end", listed.len()))
}

/// Puts an object of each of these names, a few at once.
async fn fill(suite: &Suite, folder: &str, names: &[String]) -> CaseOutcome {
    let parallel = suite.store.capabilities().parallel.max(1) as usize;
    let mut puts = stream::iter(names)
        .map(|name| async move { suite.create(&format!("{folder}/{name}"), name.clone()).await })
        .buffer_unordered(parallel);
    while let Some(put) = puts.next().await {
        put?;
    }
    Ok(())
}
