//! What a conditional create is worth at a server: found out by trying. Apache lets two win now and then; nginx, rclone
//! and servers that lock do not.

use bytes::Bytes;
use chatkeep_store::{CreateGuarantee, Opening, Result, StoreError};
use futures_util::future::join_all;
use reqwest::StatusCode;

use crate::connection::{Connection, connect};
use crate::http::Ask;
use crate::leftovers::{FOLDER, new_name};

/// How many create the same name at once.
const RACERS: usize = 16;

/// Apache had two winners in 9 rounds of 30: after 20 rounds it passes once in a thousand times.
const ROUNDS: usize = 20;

/// Opens the store and races creates in its folder of temporary files. Some 700 requests; nothing is left behind.
pub async fn probe(opening: &Opening) -> Result<CreateGuarantee> {
    let connection = connect(opening, crate::Tuning::default()).await?;
    race(&connection).await
}

pub(crate) async fn race(connection: &Connection) -> Result<CreateGuarantee> {
    connection.folders.ensure(&connection.http, &connection.root, FOLDER).await?;
    for _ in 0..ROUNDS {
        if !round(connection).await? {
            return Ok(CreateGuarantee::Advisory);
        }
    }
    Ok(CreateGuarantee::Atomic)
}

/// Whether exactly one of many won, and what is there is what it wrote.
async fn round(connection: &Connection) -> Result<bool> {
    let mut target = connection.temporary();
    let mut racers = Vec::new();
    for racer in 0..RACERS {
        let temporary = connection.temporary();
        let body = Bytes::from(format!("{racer:02} {}", new_name()));
        connection.upload(&temporary.url, body.clone()).await?;
        racers.push((temporary, body));
    }
    let moves = racers.iter().map(|(temporary, _)| connection.rename(&temporary.url, &target.url, false));
    let mut winners = Vec::new();
    for (answer, (_, body)) in join_all(moves).await.into_iter().zip(&racers) {
        if answer?.status.is_success() {
            winners.push(body.clone());
        }
    }
    let answer = connection.http.exchange(Ask::new("GET", target.url.clone())).await?;
    target.remove().await;
    for (temporary, _) in &mut racers {
        temporary.remove().await;
    }
    match (&winners[..], answer.status) {
        ([winner], StatusCode::OK) => Ok(answer.body == *winner),
        ([_], _) => Err(StoreError::Transient("what the probe wrote cannot be read back".into())),
        _ => Ok(false),
    }
}
