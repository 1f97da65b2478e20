//! Several at once: one winner, and never half an object.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::Barrier;

use super::{CaseOutcome, CaseResult, Doubt, Suite, case, ensure};
use crate::contract::{CreateGuarantee, PutCondition};
use crate::error::{ErrorKind, StoreError};

/// Long enough that a store which copies the body in pieces can be caught at it.
const BODY_LEN: usize = 300_000;

pub(super) async fn run(suite: &Suite) -> Vec<CaseResult> {
    vec![
        case("of many creates at once exactly one wins", creates(suite).await),
        case("a reader beside writers sees one whole object", overwrites(suite).await),
        case("what was put can be read and is listed at once", visible(suite).await),
    ]
}

fn body_of(racer: u32) -> Bytes {
    Bytes::from(vec![racer as u8; BODY_LEN])
}

async fn creates(suite: &Suite) -> CaseOutcome {
    match suite.store.capabilities().create {
        CreateGuarantee::Atomic => {}
        CreateGuarantee::Advisory => return Err(Doubt::Cannot("it says create is advisory".to_owned())),
        CreateGuarantee::None => return Err(Doubt::Cannot("it has no create".to_owned())),
    }
    for round in 0..suite.extent.rounds {
        let key = suite.key(&format!("race/{round:04}"))?;
        let barrier = Arc::new(Barrier::new(suite.extent.racers as usize));
        let racers = (0..suite.extent.racers).map(|racer| {
            let (store, key, barrier) = (Arc::clone(&suite.store), key.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                (racer, store.put(&key, body_of(racer), PutCondition::CreateIfAbsent).await)
            })
        });
        let mut winners = Vec::new();
        for joined in join_all(racers).await {
            match joined.map_err(|error| Doubt::Broken(format!("a put panicked: {error}")))? {
                (racer, Ok(_)) => winners.push(racer),
                (_, Err(error)) if error.kind() == ErrorKind::AlreadyExists => {}
                (_, Err(error)) => return Err(error.into()),
            }
        }
        let [winner] = winners[..] else {
            return Err(Doubt::Broken(format!("round {round} has {} winners", winners.len())));
        };
        let body = suite.store.get(&key, None).await?;
        ensure(body == body_of(winner), || format!("round {round}: the body is not the winner's"))?;
    }
    Ok(())
}

async fn overwrites(suite: &Suite) -> CaseOutcome {
    let key = suite.create("beside/writers", body_of(0)).await?;
    for _ in 0..suite.extent.rounds {
        let writers = (0..4_u32).map(|racer| {
            let (store, key) = (Arc::clone(&suite.store), key.clone());
            tokio::spawn(
                async move { store.put(&key, body_of(racer), PutCondition::Overwrite).await.map(|_| ()) },
            )
        });
        let readers = (0..4).map(|_| {
            let (store, key) = (Arc::clone(&suite.store), key.clone());
            tokio::spawn(async move {
                let body = store.get(&key, None).await?;
                let whole = body.len() == BODY_LEN && body.iter().all(|byte| *byte == body[0]);
                let reason = "a reader saw a mixture of two writers".to_owned();
                if whole { Ok(()) } else { Err(StoreError::Invalid { reason }) }
            })
        });
        for joined in join_all(writers.chain(readers)).await {
            joined.map_err(|error| Doubt::Broken(format!("a call panicked: {error}")))??;
        }
    }
    Ok(())
}

async fn visible(suite: &Suite) -> CaseOutcome {
    let capabilities = suite.store.capabilities();
    let strong = crate::Visibility::Strong;
    if capabilities.read_after_write != strong && capabilities.list_after_write != strong {
        return Err(Doubt::Cannot("it says changes show later".to_owned()));
    }
    for round in 0..suite.extent.rounds {
        let name = format!("{round:04}");
        let key = suite.create(&format!("visible/{name}"), name.clone()).await?;
        if capabilities.read_after_write == strong {
            let body = suite.store.get(&key, None).await?;
            ensure(body == name, || format!("round {round}: another body came back"))?;
        }
        if capabilities.list_after_write == strong {
            let listed = suite.names("visible").await?;
            ensure(listed.contains(&name), || format!("round {round}: the object is not listed"))?;
        }
    }
    Ok(())
}
