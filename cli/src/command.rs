//! What each subcommand does.

mod backup;
mod copies;
mod doctor;
mod encryption;
mod manual;
mod points;
mod register;
mod restore;
mod status;
mod store;
mod vault;
mod verify;

use clap::CommandFactory as _;
use serde_json::json;

use crate::args::{Cli, Command, EncryptionCommand};
use crate::connect::{self, Service};
use crate::explain::{Failure, Result};
use crate::view::View;
use crate::{job, output};

/// What every command works with.
struct Context {
    service: Service,
    json: bool,
}

impl Context {
    async fn view(&self) -> Result<View> {
        View::read(&self.service.connection).await
    }

    /// Follows a job, then says `done`.
    async fn follow(&self, path: &zbus::zvariant::OwnedObjectPath, done: &str) -> Result<()> {
        let outcome = job::follow(&self.service.connection, path, self.json).await?;
        if !self.json {
            output::line(done);
            if let Some(warning) = outcome.warning() {
                output::note(&output::plain(&warning));
            }
        }
        Ok(())
    }

    /// Says that something is done that was no job.
    fn done(&self, text: &str) {
        if self.json {
            output::json(&json!({"ok": true}));
        } else {
            output::line(text);
        }
    }
}

/// Carries the command out; the result is the exit code.
pub(crate) async fn run(cli: Cli) -> Result<u8> {
    // these need no service
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "chatkeep", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            return Ok(0);
        }
        Command::Man => {
            let page =
                manual::page().map_err(|error| Failure::local("the manual page cannot be made", &error))?;
            output::print(&page);
            return Ok(0);
        }
        Command::Doctor => return doctor::doctor(cli.socket.as_deref(), cli.json).await,
        _ => {}
    }
    let Cli { command, socket, json } = cli;
    let command = match command {
        Command::Store(command) => match store::alone(command, json).await? {
            Err(command) => Command::Store(command),
            Ok(code) => return Ok(code),
        },
        other => other,
    };
    let service = connect::connect(socket.as_deref()).await?;
    let context = Context { service, json };
    let context = &context;
    match command {
        Command::Status => return status::status(context).await,
        Command::Register { file, name, store, databases, attachments } => {
            register::register(context, &file, name, store, (&databases, &attachments)).await?;
        }
        Command::Unregister { id } => register::unregister(context, &id).await?,
        Command::Backup { id, all: _, wait } => backup::backup(context, id.as_deref(), wait).await?,
        Command::Points { id, limit, all } => points::points(context, &id, limit, all).await?,
        Command::Pin { id, point } => points::pin(context, &id, &point, true).await?,
        Command::Unpin { id, point } => points::pin(context, &id, &point, false).await?,
        Command::Prune { id, dry_run } => points::prune(context, &id, dry_run).await?,
        Command::Restore { id, to, at, point, overwrite } => {
            let target = restore::Target { at, point, overwrite };
            restore::restore(context, &id, &to, target).await?;
        }
        Command::ListRemote { store } => register::list_remote(context, &store).await?,
        Command::Adopt { store, remote_id, to, name, restore } => {
            register::adopt(context, &store, &remote_id, &to, name, restore).await?;
        }
        Command::Unlock { id, secret, trust }
        | Command::Encryption(EncryptionCommand::Unlock { id, secret, trust }) => {
            encryption::unlock(context, &id, &secret, trust.vaults).await?;
        }
        Command::Encryption(command) => encryption::run(context, command).await?,
        Command::Vault(command) => vault::run(context, command).await?,
        Command::Store(command) => store::run(context, command).await?,
        Command::Pause { duration, reason } => backup::pause(context, duration.as_deref(), &reason).await?,
        Command::Resume => backup::resume(context).await?,
        Command::Verify { id, depth } => verify::verify(context, &id, &depth).await?,
        Command::Drill { id } => verify::drill(context, &id).await?,
        Command::Doctor | Command::Completions { .. } | Command::Man => unreachable!("carried out above"),
    }
    Ok(0)
}
