//! Passwords and keys.

mod digits;

use chatkeep_ipc::Secret;
use chatkeep_ipc::proxy::{EncryptionProxy, Options};
use serde_json::json;
use zbus::zvariant::{Fd, OwnedObjectPath, Value};

use super::vault::FEW_ATTEMPTS;
use super::{Context, vault};
use crate::args::{EncryptionCommand, SecretArgs};
use crate::explain::{Failure, Result};
use crate::output::{self, note, plain};
use crate::secret_input::Source;
use crate::view::{Database, View};
use crate::{job, time};

/// How often a person is asked again.
const TRIES: usize = 3;

pub(super) async fn run(context: &Context, command: EncryptionCommand) -> Result<()> {
    match command {
        EncryptionCommand::Status { id } => status(context, id.as_deref()).await,
        EncryptionCommand::EnablePassword { id, vault, secret } => {
            enable_password(context, &id, vault, &secret).await
        }
        EncryptionCommand::EnableKey { id, secret } => digits::enable(context, &id, &secret).await,
        EncryptionCommand::GenerateKey { id, key } => digits::generate(context, &id, &key).await,
        EncryptionCommand::Confirm { id, secret } => digits::confirm(context, &id, &secret).await,
        EncryptionCommand::ChangePassword { id, password_fd, new_password_fd } => {
            change_password(context, &id, password_fd, new_password_fd).await
        }
        EncryptionCommand::RotateKey { id, reencrypt, key } => {
            digits::rotate(context, &id, reencrypt, &key).await
        }
        EncryptionCommand::ShowKey { id, secret, key_out } => {
            digits::show_key(context, &id, &secret, key_out.as_deref()).await
        }
        EncryptionCommand::Unlock { id, secret, trust } => unlock(context, &id, &secret, trust.vaults).await,
        EncryptionCommand::Check { id, vault, secret } => check(context, &id, vault, &secret).await,
    }
}

async fn proxy<'a>(context: &'a Context, database: &Database) -> Result<EncryptionProxy<'a>> {
    let path = database.encryption.path.clone();
    Ok(EncryptionProxy::builder(&context.service.connection).path(path)?.build().await?)
}

/// A pipe with the secret, as an argument.
fn pipe(secret: &Secret) -> Result<Fd<'static>> {
    let pipe =
        secret.clone().into_pipe().map_err(|error| Failure::local("the secret cannot be passed", &error))?;
    Ok(pipe.into())
}

async fn status(context: &Context, id: Option<&str>) -> Result<()> {
    let view = context.view().await?;
    let databases: Vec<&Database> = match id {
        Some(id) => vec![view.database(id)?],
        None => view.databases.iter().collect(),
    };
    if context.json {
        let list: Vec<_> = databases
            .iter()
            .map(|database| {
                let encryption = &database.encryption;
                json!({
                    "id": database.id(), "mode": encryption.text("Mode"), "state": encryption.text("State"),
                    "key_id": encryption.text("KeyId"), "key_created": encryption.number("KeyCreated"),
                    "key_on_device": encryption.flag("KeyOnDevice"),
                    "last_checked": encryption.number("LastChecked"), "vault": view.vault_of(database).map(vault::id),
                })
            })
            .collect();
        output::json(&json!({ "databases": list }));
        return Ok(());
    }
    let now = time::now();
    let headings = ["DATABASE", "MODE", "STATE", "KEY", "MADE", "ON THIS MACHINE", "LAST PROVED", "VAULT"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for database in databases {
        let encryption = &database.encryption;
        let on_device = if encryption.flag("KeyOnDevice") { "yes" } else { "no" };
        rows.push(vec![
            plain(&database.id()),
            plain(&encryption.text("Mode")),
            plain(&encryption.text("State")),
            plain(&encryption.text("KeyId")),
            time::age(encryption.number("KeyCreated"), now),
            on_device.to_owned(),
            time::age(encryption.number("LastChecked"), now),
            view.vault_of(database).map_or_else(|| "-".to_owned(), |found| plain(&vault::id(found))),
        ]);
    }
    output::print(&output::table(&rows));
    Ok(())
}

async fn enable_password(
    context: &Context,
    id: &str,
    vault: Option<String>,
    from: &SecretArgs,
) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let mut source = Source::choose(from.password_fd)?;
    let password = source.read_new("New password: ").await?;
    let mut options = Options::new();
    if let Some(vault) = vault {
        options.insert("vault", vault.into());
    }
    let job = proxy(context, database).await?.enable_with_password(pipe(&password)?, options).await?;
    context.follow(&job, "backups are encrypted from now on; the password opens them on any machine").await
}

async fn change_password(context: &Context, id: &str, current: Option<u32>, new: Option<u32>) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let mut source = Source::choose(current)?;
    let current = source.read("Current password: ").await?;
    let mut source = if new.is_some() { Source::choose(new)? } else { source };
    let new = source.read_new("New password: ").await?;
    let encryption = proxy(context, database).await?;
    let job = encryption.change_password(pipe(&current)?, pipe(&new)?, Options::new()).await?;
    match job::follow(&context.service.connection, &job, context.json).await {
        Ok(_) => {
            if !context.json {
                output::line("the password is changed; the old one opens nothing any more");
            }
            Ok(())
        }
        Err(ended) => {
            tell_attempts(&ended);
            Err(ended.into())
        }
    }
}

/// What a secret for this database is called.
fn prompt(database: &Database) -> &'static str {
    match database.encryption.text("Mode").as_str() {
        "password" => "Password: ",
        "key" => "64 digits: ",
        _ => "Password or 64 digits: ",
    }
}

/// Before the last attempts the user must know what is at stake.
fn warn_before_asking(view: &View, database: &Database) {
    let Some(vault) = view.vault_of(database) else { return };
    let (left, max) = (vault.get::<u32>("AttemptsLeft"), vault.get::<u32>("AttemptsMax"));
    if max > 0 {
        warn_if_few(left);
    }
}

fn warn_if_few(left: u32) {
    match left {
        0 => {}
        1..=FEW_ATTEMPTS => note(&format!(
            "Only {left} attempt{} left: after the last one the key is destroyed for good; the 64 digits, if you have \
             them, still work.",
            if left == 1 { " is" } else { "s are" }
        )),
        _ => {}
    }
}

/// After a wrong password.
fn tell_attempts(ended: &job::Ended) {
    match ended.attempts_left {
        Some(0) => note("No attempt is left."),
        Some(left) if left <= FEW_ATTEMPTS => warn_if_few(left),
        Some(left) => note(&format!("{left} attempts are left.")),
        None => {}
    }
    if let Some(at) = ended.retry_after {
        note(&format!("The next attempt is possible at {} UTC.", time::date_time(at)));
    }
}

/// Also through vaults that are not configured here, once the user says that they are right.
pub(super) async fn unlock(
    context: &Context,
    id: &str,
    from: &SecretArgs,
    trusted: Vec<String>,
) -> Result<()> {
    let done = "unlocked: the key is on this machine";
    let trusted = std::cell::RefCell::new(trusted);
    ask_and_try(context, id, from, done, Some(&trusted), async |encryption, secret| {
        let trust = Value::from(trusted.borrow().clone());
        encryption.unlock(secret, Options::from([("trust-vaults", trust)])).await
    })
    .await
}

/// Shows vaults that nobody configured, and asks whether they are right.
async fn ask_for_trust(source: &mut Source, unknown: &[job::UnknownVault]) -> Result<bool> {
    note("This archive is guarded by vaults that are not configured on this machine:");
    for (name, url, fingerprint) in unknown {
        let groups: Vec<&str> =
            (0..fingerprint.len()).step_by(4).filter_map(|at| fingerprint.get(at..at + 4)).collect();
        note(&plain(&format!("  {name} at {url}")));
        note(&plain(&format!("    {}", groups.join(" "))));
    }
    note(
        "Whoever can write to the store could have put them there. Compare each fingerprint with what its operator says.",
    );
    let said = source.read("Type `yes` if they are right: ").await?;
    Ok(said.as_str() == Some("yes"))
}

async fn check(context: &Context, id: &str, ask_vault: bool, from: &SecretArgs) -> Result<()> {
    ask_and_try(context, id, from, "right: this opens the backups", None, async |encryption, secret| {
        encryption.check_secret(secret, Options::from([("vault", ask_vault.into())])).await
    })
    .await
}

/// Asks for the secret, tries it, and on a terminal asks again, with what is left said before.
async fn ask_and_try(
    context: &Context,
    id: &str,
    from: &SecretArgs,
    done: &str,
    trusted: Option<&std::cell::RefCell<Vec<String>>>,
    attempt: impl AsyncFn(&EncryptionProxy<'_>, Fd<'_>) -> chatkeep_ipc::proxy::Result<OwnedObjectPath>,
) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let encryption = proxy(context, database).await?;
    let mut source = Source::choose(from.password_fd.or(from.key_fd))?;
    if !context.json {
        warn_before_asking(&view, database);
    }
    for round in 1.. {
        let secret = source.read(prompt(database)).await?;
        let ended = match attempt(&encryption, pipe(&secret)?).await {
            Ok(job) => match job::follow(&context.service.connection, &job, context.json).await {
                Ok(outcome) => {
                    if let Some(warning) = outcome.warning().filter(|_| !context.json) {
                        note(&plain(&format!("warning: {warning}")));
                    }
                    break;
                }
                Err(ended) => ended,
            },
            Err(error) => Failure::from(error).into(),
        };
        if !context.json {
            tell_attempts(&ended);
        }
        if let Some(trusted) = trusted.filter(|_| source.is_terminal() && !ended.unknown_vaults.is_empty()) {
            if !ask_for_trust(&mut source, &ended.unknown_vaults).await? {
                return Err(ended.into());
            }
            trusted.borrow_mut().extend(ended.unknown_vaults.into_iter().map(|(.., print)| print));
            continue;
        }
        let again = source.is_terminal() && ended.failure.is_wrong_secret() && ended.retry_after.is_none();
        if !again || round >= TRIES || ended.attempts_left == Some(0) {
            return Err(ended.into());
        }
        ended.failure.print(false);
    }
    if !context.json && !done.is_empty() {
        output::line(done);
    }
    Ok(())
}
