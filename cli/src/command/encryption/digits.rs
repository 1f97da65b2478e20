//! The 64 digits: shown once, and typed back before they count.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use chatkeep_ipc::proxy::{EncryptionProxy, Options};
use chatkeep_ipc::{SECRET_LEN_MAX, Secret};
use rustix::pipe::{PipeFlags, pipe_with};
use zbus::zvariant::{Fd, OwnedObjectPath, Value};
use zeroize::Zeroizing;

use super::{TRIES, ask_and_try, pipe, proxy};
use crate::args::{NewKeyArgs, SecretArgs};
use crate::command::Context;
use crate::explain::{Failure, Result};
use crate::output::note;
use crate::secret_input::Source;

/// With digits that the user has already: typed twice, so that a slip does not become the key.
pub(super) async fn enable(context: &Context, id: &str, from: &SecretArgs) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let mut source = Source::choose(from.key_fd)?;
    let key = source.read("64 digits: ").await?;
    if source.is_terminal() && bare(&source.read("Again: ").await?) != bare(&key) {
        return Err(Failure::said("the two are not the same", "nothing was changed; try again"));
    }
    let job = proxy(context, database).await?.enable_with_key(pipe(&key)?, Options::new()).await?;
    context.follow(&job, "backups are encrypted from now on; the 64 digits open them on any machine").await
}

pub(super) async fn generate(context: &Context, id: &str, key: &NewKeyArgs) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let encryption = proxy(context, database).await?;
    if key.key_out.is_none() && key.confirm_from_file.is_some() {
        // for a key that was written with --key-out before
        return confirm_from_file(context, &encryption, key).await;
    }
    let done = "backups are encrypted from now on; the 64 digits open them on any machine";
    hand_over(context, &encryption, key, id, done, async |key_out| {
        encryption.enable_with_generated_key(key_out, Options::new()).await
    })
    .await
}

pub(super) async fn rotate(context: &Context, id: &str, reencrypt: bool, key: &NewKeyArgs) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let encryption = proxy(context, database).await?;
    if database.encryption.text("Mode") != "key" {
        let options = Options::from([("reencrypt", reencrypt.into())]);
        let job = encryption.rotate_key(options).await?;
        return context.follow(&job, "a new key is in use; the password is the same").await;
    }
    if key.key_out.is_none() && key.confirm_from_file.is_some() {
        return confirm_from_file(context, &encryption, key).await;
    }
    let done = "the new digits are in use: they open everything, also what was stored before; the old ones open nothing \
                that is stored from now on";
    hand_over(context, &encryption, key, id, done, async |key_out| {
        let options = Options::from([("reencrypt", reencrypt.into()), ("key-out", Value::from(key_out))]);
        encryption.rotate_key(options).await
    })
    .await
}

pub(super) async fn confirm(context: &Context, id: &str, from: &SecretArgs) -> Result<()> {
    let view = context.view().await?;
    let encryption = proxy(context, view.database(id)?).await?;
    let mut source = Source::choose(from.key_fd)?;
    type_back(context, &encryption, &mut source).await?;
    context.done("confirmed: the digits are in use");
    Ok(())
}

async fn confirm_from_file(
    context: &Context,
    encryption: &EncryptionProxy<'_>,
    key: &NewKeyArgs,
) -> Result<()> {
    if let Some(path) = &key.confirm_from_file {
        encryption.confirm_key(pipe(&read_file(path)?)?, Options::new()).await?;
        context.done("confirmed: the digits are in use");
    }
    Ok(())
}

/// The digits of the key in use, for a safe place.
pub(super) async fn show_key(
    context: &Context,
    id: &str,
    from: &SecretArgs,
    key_out: Option<&Path>,
) -> Result<()> {
    need_a_place(key_out, "write them to a file with --key-out")?;
    let file = key_out.map(new_private_file).transpose()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::local("no pipe", &error))?;
    let write = Fd::from(write);
    let asked = ask_and_try(context, id, from, "", None, async |encryption, proof| {
        let write = write.try_clone().map_err(zbus::Error::from)?;
        encryption.show_key(proof, write, Options::new()).await
    })
    .await;
    drop(write);
    let digits = match asked {
        Ok(()) => read_digits(read).await,
        Err(failure) => Err(failure),
    };
    let digits = digits.inspect_err(|_| {
        // an empty file would be in the way of the next try
        if let Some(path) = key_out {
            let _ = std::fs::remove_file(path);
        }
    })?;
    match (file, key_out) {
        (Some(file), Some(path)) => {
            write_file(file, path, &digits)?;
            context.done("the digits are in the file");
            Ok(())
        }
        _ => show(&digits),
    }
}

/// Digits need a terminal to be shown on, or a file.
fn need_a_place(key_out: Option<&Path>, advice: &str) -> Result<()> {
    if key_out.is_none() && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::said("there is no terminal to show the digits on", advice));
    }
    Ok(())
}

fn write_file(mut file: File, path: &Path, digits: &str) -> Result<()> {
    let text = [digits.as_bytes(), b"\n"];
    let written = text.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_all());
    written.map_err(|error| Failure::local(&path.display().to_string(), &error))
}

/// Gets new digits from the service to where the user keeps them, and has them confirmed.
async fn hand_over(
    context: &Context,
    encryption: &EncryptionProxy<'_>,
    key: &NewKeyArgs,
    id: &str,
    done: &str,
    start: impl AsyncFn(Fd<'_>) -> chatkeep_ipc::proxy::Result<OwnedObjectPath>,
) -> Result<()> {
    need_a_place(
        key.key_out.as_deref(),
        "write them to a file with --key-out, and confirm with --confirm-from-file",
    )?;
    // made first: new digits that cannot be kept are of no use
    let file = key.key_out.as_deref().map(new_private_file).transpose()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::local("no pipe", &error))?;
    let started = start(Fd::from(write)).await;
    let digits = match started {
        Ok(_) => read_digits(read).await,
        Err(error) => Err(error.into()),
    };
    let digits = match digits {
        Ok(digits) => digits,
        Err(failure) => {
            // an empty file would be in the way of the next try
            if let Some(path) = &key.key_out {
                let _ = std::fs::remove_file(path);
            }
            return Err(failure);
        }
    };
    if let (Some(file), Some(path)) = (file, &key.key_out) {
        write_file(file, path, &digits)?;
        let Some(path) = &key.confirm_from_file else {
            note(&format!("Not in use before they are confirmed: chatkeep encryption confirm {id}"));
            context.done("the new digits are in the file");
            return Ok(());
        };
        encryption.confirm_key(pipe(&read_file(path)?)?, Options::new()).await?;
        context.done(done);
        return Ok(());
    }
    show(&digits)?;
    drop(digits);
    type_back(context, encryption, &mut Source::Terminal).await?;
    context.done(done);
    Ok(())
}

/// Asks for the digits until they are right; the service says which group is not.
async fn type_back(context: &Context, encryption: &EncryptionProxy<'_>, source: &mut Source) -> Result<()> {
    for round in 1.. {
        let typed = source.read("Type the digits back: ").await?;
        match encryption.confirm_key(pipe(&typed)?, Options::new()).await.map_err(Failure::from) {
            Ok(()) => return Ok(()),
            Err(failure) if failure.is_wrong_secret() && source.is_terminal() && round < TRIES => {
                failure.print(context.json);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// On the terminal itself, so that the digits do not end in a file by accident.
fn show(digits: &str) -> Result<()> {
    let failed = |error: std::io::Error| Failure::local("the terminal cannot be used", &error);
    let mut terminal = File::options().write(true).open("/dev/tty").map_err(failed)?;
    let mut text = Zeroizing::new(String::with_capacity(512));
    text.push_str("\nWrite these digits down and keep them safe. Nobody can restore them for you.\n\n");
    text.push_str(&grouped(digits));
    text.push('\n');
    terminal.write_all(text.as_bytes()).map_err(failed)
}

/// Four groups of four a line; what is left over (the check group) is on the last one.
fn grouped(digits: &str) -> Zeroizing<String> {
    let bare: Zeroizing<Vec<char>> =
        Zeroizing::new(digits.chars().filter(|c| !c.is_whitespace() && *c != '-').collect());
    let mut text = Zeroizing::new(String::with_capacity(bare.len() * 2 + 32));
    for line in bare.chunks(16) {
        text.push_str("   ");
        for group in line.chunks(4) {
            text.push(' ');
            text.extend(group);
        }
        text.push('\n');
    }
    text
}

/// Without what people put between digits.
fn bare(secret: &Secret) -> Zeroizing<Vec<u8>> {
    let bytes = secret.as_bytes().iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'-');
    Zeroizing::new(bytes.map(u8::to_ascii_lowercase).collect())
}

async fn read_digits(pipe: OwnedFd) -> Result<Zeroizing<String>> {
    let read = tokio::task::spawn_blocking(move || read_limited(File::from(pipe)));
    // the service holds the other end; it may be stuck
    match tokio::time::timeout(std::time::Duration::from_secs(10), read).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => Err(Failure::local("the digits cannot be read", &error)),
        Err(error) => Err(Failure::local("the service did not hand over the digits", &error)),
    }
}

fn read_file(path: &Path) -> Result<Secret> {
    let file = File::open(path).map_err(|error| Failure::local(&path.display().to_string(), &error))?;
    let text = read_limited(file)?;
    Ok(Secret::new(Zeroizing::new(text.as_bytes().to_vec())))
}

fn read_limited(file: File) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(SECRET_LEN_MAX + 2));
    let read = file.take(SECRET_LEN_MAX as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::local("the digits cannot be read", &error))?;
    let length = text.trim_end().len();
    text.truncate(length);
    if text.is_empty() || text.len() > SECRET_LEN_MAX {
        return Err(Failure::said("there are no digits", ""));
    }
    Ok(text)
}

fn new_private_file(path: &Path) -> Result<File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| Failure::local(&path.display().to_string(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_shown_in_groups_with_the_check_group_last() {
        let digits = "0123456789abcdef".repeat(4) + "77aa";
        let line = "    0123 4567 89ab cdef\n";
        assert_eq!(*grouped(&digits), line.repeat(4) + "    77aa\n");
        assert_eq!(*grouped("0123-4567 89AB"), "    0123 4567 89AB\n");
    }

    #[test]
    fn what_is_between_digits_does_not_matter() {
        let secret = |text: &str| Secret::new(Zeroizing::new(text.as_bytes().to_vec()));
        assert_eq!(bare(&secret("01AB 23-cd")), bare(&secret("01ab23cd")));
    }
}
