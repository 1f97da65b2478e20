//! What a store is found to do, whatever it says.

use bytes::Bytes;
use chatkeep_store::conformance::{CaseResult, Extent, Outcome};
use chatkeep_store::{CreateGuarantee, PutCondition, Result, Store, StoreError, StoreKey, Visibility};
use futures_util::future::join_all;

/// What was found. `None` is: nothing that would tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// What a conditional create is worth.
    pub create: Option<CreateGuarantee>,
    /// When an object that was put can be read.
    pub read_after_write: Option<Visibility>,
    /// When an object that was put is listed.
    pub list_after_write: Option<Visibility>,
    /// Whether a part is answered with that part alone.
    pub range: Option<bool>,
}

/// Tries it, below `root`, and compares it with what the store says.
pub(super) async fn probe(store: &dyn Store, root: &str, extent: Extent) -> (CaseResult, Found) {
    let claimed = store.capabilities();
    let (outcome, found) = match find(store, root, extent).await {
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            (Outcome::Failed(format!("{error}: {cause}")), Found::default())
        }
        Ok(found) => {
            let too_much = [
                (rank(claimed.create) > found.create.map_or(0, rank)).then_some("create"),
                lags(claimed.read_after_write, found.read_after_write).then_some("read after write"),
                lags(claimed.list_after_write, found.list_after_write).then_some("list after write"),
            ];
            let too_much: Vec<&str> = too_much.into_iter().flatten().collect();
            let outcome = if too_much.is_empty() {
                Outcome::Passed
            } else {
                Outcome::Failed(format!("it claims more than was found for: {}", too_much.join(", ")))
            };
            (outcome, found)
        }
    };
    (CaseResult { name: "no more is claimed than was found", outcome }, found)
}

fn lags(claimed: Visibility, found: Option<Visibility>) -> bool {
    claimed == Visibility::Strong && found == Some(Visibility::Eventual)
}

fn rank(guarantee: CreateGuarantee) -> u8 {
    match guarantee {
        CreateGuarantee::None => 0,
        CreateGuarantee::Advisory => 1,
        CreateGuarantee::Atomic => 2,
    }
}

async fn find(store: &dyn Store, root: &str, extent: Extent) -> Result<Found> {
    let create = create(store, root, extent).await?;
    let (mut read, mut list) = (Visibility::Strong, Visibility::Strong);
    for round in 0..extent.rounds {
        let key = key(root, &format!("visible-{round}"))?;
        store.put(&key, "visible".into(), PutCondition::Overwrite).await?;
        match store.get(&key, None).await {
            Ok(body) if body == "visible" => {}
            Ok(_) | Err(StoreError::NotFound { .. }) => read = Visibility::Eventual,
            Err(error) => return Err(error),
        }
        if !store.list(&format!("{root}/probe")).await?.iter().any(|object| object.key == key) {
            list = Visibility::Eventual;
        }
        store.delete(&key).await?;
    }
    let found = Found {
        create: Some(create),
        read_after_write: Some(read),
        list_after_write: Some(list),
        range: None,
    };
    Ok(found)
}

/// Creates one object twice, then races.
async fn create(store: &dyn Store, root: &str, extent: Extent) -> Result<CreateGuarantee> {
    let twice = key(root, "twice")?;
    store.delete(&twice).await?;
    let condition = PutCondition::CreateIfAbsent;
    match store.put(&twice, "first".into(), condition).await {
        Err(StoreError::Unsupported { .. }) => return Ok(CreateGuarantee::None),
        first => drop(first?),
    }
    let second = store.put(&twice, "second".into(), condition).await;
    store.delete(&twice).await?;
    match second {
        Ok(_) => return Ok(CreateGuarantee::None),
        Err(StoreError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error),
    }
    for round in 0..extent.rounds {
        let raced = key(root, &format!("race-{round}"))?;
        let puts = (0..extent.racers).map(|racer| {
            // long enough that a store which copies it in pieces can be caught at it
            let body = Bytes::from(vec![racer as u8; 100_000]);
            store.put(&raced, body, condition)
        });
        let mut winners = 0;
        for done in join_all(puts).await {
            match done {
                Ok(_) => winners += 1,
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        store.delete(&raced).await?;
        if winners > 1 {
            return Ok(CreateGuarantee::Advisory);
        }
    }
    Ok(CreateGuarantee::Atomic)
}

fn key(root: &str, name: &str) -> Result<StoreKey> {
    Ok(StoreKey::try_from(format!("{root}/probe/{name}"))?)
}
