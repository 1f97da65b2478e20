//! Stores: adding and trying them, their secrets, which kinds there are, and which plugins are trusted.

mod add;
mod check;
mod kinds;
mod show;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use chatkeep_ipc::proxy::StoreProxy;
use zbus::zvariant::Value as Wire;

use super::Context;
use crate::args::StoreCommand;
use crate::explain::{Failure, Result};
use crate::secret_input::Source;

pub(super) use show::{rows, to_json};

/// Those that need no service, to an exit code; gives all others back.
pub(super) async fn alone(command: StoreCommand, json: bool) -> Result<Result<u8, StoreCommand>> {
    match command {
        StoreCommand::Kinds => kinds::kinds(json)?,
        StoreCommand::Trust { plugin } => kinds::trust(&plugin, json)?,
        StoreCommand::Distrust { plugin } => kinds::distrust(&plugin, json)?,
        StoreCommand::Check(arguments) => return check::check(arguments, json).await.map(Ok),
        other => return Ok(Err(other)),
    }
    Ok(Ok(0))
}

pub(super) async fn run(context: &Context, command: StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Add(arguments) => add::add(context, arguments).await,
        StoreCommand::Test { store } => {
            let job = proxy(context, &store).await?.test(HashMap::new()).await?;
            context.follow(&job, "the store works: a probe was written, read back and deleted").await
        }
        StoreCommand::Credentials { store, name, secret_fd } => {
            let mut source = Source::choose(secret_fd)?;
            let value = source.read(&format!("{name} of {store}: ")).await?;
            let proxy = proxy(context, &store).await?;
            let options = HashMap::from([("name", Wire::from(name.as_str()))]);
            let pipe = value
                .into_pipe()
                .map_err(|error| Failure::local("the secret cannot be passed on", &error))?;
            proxy.set_credentials(pipe.into(), options).await?;
            context.done(&format!("{name} of {store} is kept on this device"));
            Ok(())
        }
        StoreCommand::Kinds
        | StoreCommand::Check(_)
        | StoreCommand::Trust { .. }
        | StoreCommand::Distrust { .. } => {
            unreachable!("carried out without the service")
        }
    }
}

async fn proxy<'a>(context: &'a Context, store: &str) -> Result<StoreProxy<'a>> {
    let view = context.view().await?;
    let path = view.store(store)?.path.clone();
    Ok(StoreProxy::builder(&context.service.connection).path(path)?.build().await?)
}

/// Where the service remembers which plugins of the home directory are trusted.
fn trusted() -> Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let data = data.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".local/share")));
    let data = data.ok_or_else(|| Failure::said("HOME is not set", ""))?;
    Ok(data.join("chatkeep/trusted-plugins.toml"))
}
