//! What a conditional create is worth at a server: found out by trying. Apache lets two win now and then; nginx, rclone
//! and servers that lock do not.

use bytes::Bytes;
use chatkeep_store::temporary::{FOLDER, new_name};
use chatkeep_store::{CreateGuarantee, Opening, Result, StoreError};
use futures_util::future::join_all;
use reqwest::StatusCode;

use crate::connection::{Connection, connect};
use crate::http::Ask;

/// How many create the same name at once.
const RACERS: usize = 16;

/// Apache has two winners in every third or tenth round, depending on how busy it is. That it passes them all stays
/// possible: what is found to be advisory is so, what is found to be atomic is likely so.
const ROUNDS: usize = 40;

/// Opens the store and races creates in its folder of temporary files. Some 2000 small requests; nothing is left behind.
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
    let mut racers: Vec<_> = (0..RACERS).map(|_| (connection.temporary(), Bytes::from(new_name()))).collect();
    // all at once, so that a connection for each is open when the race begins
    let uploads = racers.iter().map(|(temporary, body)| connection.upload(&temporary.url, body.clone()));
    for upload in join_all(uploads).await {
        upload?;
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
