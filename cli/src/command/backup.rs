//! Back up, pause.

use chatkeep_ipc::proxy::{DatabaseProxy, ManagerProxy, Options};
use serde_json::json;
use zbus::zvariant::OwnedObjectPath;

use super::Context;
use crate::explain::{Failure, Result};
use crate::view::Database;
use crate::{job, output, time};

pub(super) async fn backup(context: &Context, id: Option<&str>, wait: bool) -> Result<()> {
    let connection = &context.service.connection;
    let jobs = match id {
        Some(id) => {
            let view = context.view().await?;
            vec![proxy(context, view.database(id)?).await?.backup_now(Options::new()).await?]
        }
        None => ManagerProxy::new(connection).await?.backup_all(Options::new()).await?,
    };
    if !wait {
        let paths: Vec<&str> = jobs.iter().map(|path| path.as_str()).collect();
        match (context.json, jobs.len()) {
            (true, _) => output::json(&json!({ "jobs": paths })),
            (false, 0) => output::line("there is nothing to back up"),
            (false, 1) => output::line("started; `chatkeep status` shows how it goes, --wait waits"),
            (false, count) => {
                output::line(&format!("started {count} backups; `chatkeep status` shows how they go"));
            }
        }
        return Ok(());
    }
    if jobs.is_empty() {
        return Err(Failure::said("there is nothing to back up", "see `chatkeep status`"));
    }
    // all are waited for; the first failure is the command's
    let mut failure = None;
    for path in &jobs {
        match job::follow(connection, path, context.json).await {
            Ok(_) => {}
            Err(ended) if ended.failure.code == crate::explain::INTERRUPTED => return Err(ended.failure),
            Err(ended) => failure = failure.or(Some(ended.failure)),
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if !context.json {
        output::line("backed up");
    }
    Ok(())
}

pub(super) async fn pause(context: &Context, duration: Option<&str>, reason: &str) -> Result<()> {
    let until = match duration {
        None => 0,
        Some(text) => {
            let span = time::parse_duration(text);
            let span =
                span.ok_or_else(|| Failure::said(&format!("{text} is no duration"), "write 90m, 12h or 3d"))?;
            time::now().saturating_add(span)
        }
    };
    ManagerProxy::new(&context.service.connection).await?.pause(until, reason, Options::new()).await?;
    context.done(&match until {
        0 => "paused until `chatkeep resume`".to_owned(),
        until => format!("paused until {} UTC", time::date_time(until)),
    });
    Ok(())
}

pub(super) async fn resume(context: &Context) -> Result<()> {
    ManagerProxy::new(&context.service.connection).await?.resume(Options::new()).await?;
    context.done("backups go on");
    Ok(())
}

/// The object of one database.
pub(super) async fn proxy<'a>(context: &'a Context, database: &Database) -> Result<DatabaseProxy<'a>> {
    let path: OwnedObjectPath = database.state.path.clone();
    Ok(DatabaseProxy::builder(&context.service.connection).path(path)?.build().await?)
}
