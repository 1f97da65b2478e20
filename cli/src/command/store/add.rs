//! `chatkeep store add`: asks for what the store needs, tries it, shows what it found, and only then writes it down.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use chatkeep_ipc::proxy::{ManagerProxy, StoreProxy};
use chatkeep_store::{Opening, PutCondition, Store, StoreError, StoreKey};
use chatkeep_store_host::manifest::Manifest;
use chatkeep_store_host::manifest::find::{Manifests, Places};
use chatkeep_store_host::manifest::trust::TrustList;
use chatkeep_store_host::{Launch, PluginStore, Settings, Spawn};
use zbus::zvariant::Value as Wire;
use zeroize::Zeroizing;

use super::{Context, proxy, trusted};
use crate::args::{NewStoreArguments, StoreSettings};
use crate::config_file::{self, NewStore};
use crate::explain::{Failure, Result};
use crate::output::{self, plain};
use crate::secret_input::Source;

/// How long a store is waited for that the service was told of: 5 s.
const APPEARS_TRIES: u32 = 100;
const APPEARS_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

pub(super) async fn add(context: &Context, arguments: NewStoreArguments) -> Result<()> {
    let NewStoreArguments { name, url, settings, untried } = arguments;
    let path = config_file::default_path().ok_or_else(|| Failure::said("HOME is not set", ""))?;
    let before = read(&path)?;
    if config_file::has_store(&before, &name) {
        return Err(Failure::said(&format!("there is a store `{name}` already"), "choose another name"));
    }
    let options = pairs(&settings.options)?;
    let mut opening = Opening { url: url.clone(), options: options.clone(), ..Opening::default() };
    if !["file:", "memory:"].iter().any(|scheme| url.starts_with(scheme)) {
        let (launch, complete) = behind(&name, &settings, &mut opening).await?;
        if !untried {
            try_it(launch, complete, context.json).await?;
        }
    }
    let names: Vec<String> = opening.secrets.names().map(str::to_owned).collect();
    let section = NewStore { name: &name, url: &url, options: &options, secrets: &names };
    write(&path, &config_file::with_store(&before, &section))?;
    if let Err(failure) = hand_over(context, &name, &opening, untried).await {
        // A failure never changes the configuration.
        write(&path, &before)?;
        let _ = manager(context).await?.reload(HashMap::new()).await;
        return Err(failure);
    }
    context.done(&format!("the store {name} is in {}", path.display()));
    Ok(())
}

/// Finds the plugin of a URL, sees whether it may run, asks for its secrets, and checks all that it is opened with. What the
/// user gave stays in `opening`; the answer has what the manifest adds.
pub(super) async fn behind(
    store: &str,
    settings: &StoreSettings,
    opening: &mut Opening,
) -> Result<(Launch, Opening)> {
    let manifests = Manifests::load(&Places::usual());
    let manifest = manifests.for_url(&opening.url).map_err(|error| refused(&error))?;
    TrustList::new(&trusted()?).check(manifest).map_err(|error| refused(&error))?;
    ask(manifest, settings, opening).await?;
    let complete = manifest.complete(opening).map_err(|error| refused(&error))?;
    Ok((manifest.launch(store, &complete).map_err(|error| refused(&error))?, complete))
}

/// Lets the service take the store over, and use it once.
async fn hand_over(context: &Context, name: &str, opening: &Opening, untried: bool) -> Result<()> {
    manager(context).await?.reload(HashMap::new()).await?;
    let store = appeared(context, name).await?;
    for (secret, value) in opening.secrets.iter() {
        let value = chatkeep_ipc::Secret::new(Zeroizing::new(value.as_bytes().to_vec()));
        let pipe =
            value.into_pipe().map_err(|error| Failure::local("the secret cannot be passed on", &error))?;
        store.set_credentials(pipe.into(), HashMap::from([("name", Wire::from(secret))])).await?;
    }
    if untried {
        return Ok(());
    }
    let job = store.test(HashMap::new()).await?;
    context.follow(&job, "the service has written, read and deleted a probe there").await
}

/// The object of a store that was just configured: it appears after the reload was answered.
async fn appeared<'a>(context: &'a Context, name: &str) -> Result<StoreProxy<'a>> {
    for _ in 0..APPEARS_TRIES {
        if let Ok(store) = proxy(context, name).await {
            return Ok(store);
        }
        tokio::time::sleep(APPEARS_PAUSE).await;
    }
    proxy(context, name).await
}

/// Asks for the secrets that the store has: those it cannot do without, those that were named, and on a terminal all others, too.
async fn ask(manifest: &Manifest, settings: &StoreSettings, opening: &mut Opening) -> Result<()> {
    let named = &settings.secrets;
    if let Some(unknown) = named.iter().find(|name| !manifest.secrets.contains_key(*name)) {
        let known: Vec<&str> = manifest.secrets.keys().map(String::as_str).collect();
        return Err(Failure::said(&format!("this store has no secret `{unknown}`"), &known.join(", ")));
    }
    if manifest.secrets.is_empty() {
        return Ok(());
    }
    let mut source = Source::choose(settings.secret_fd)?;
    for (name, spec) in &manifest.secrets {
        let needed = spec.required || named.contains(name);
        if !needed && (!source.is_terminal() || !named.is_empty()) {
            continue;
        }
        let prompt = if spec.prompt.is_empty() { name } else { &spec.prompt };
        let hint = if needed { "" } else { " (Enter for none)" };
        let value = match source.read_or_none(&format!("{}{hint}: ", plain(prompt))).await? {
            Some(value) => value,
            None if needed => return Err(Failure::said(&format!("`{name}` is needed"), "")),
            None => continue,
        };
        let text = value.as_str().ok_or_else(|| Failure::said("a secret is text", ""))?;
        opening.secrets.set(name, Zeroizing::new(text.to_owned()));
    }
    Ok(())
}

/// Opens the store as the service will, does once what the service does all the time, and tells what it found.
async fn try_it(launch: Launch, opening: Opening, json: bool) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Failure::local("no temporary folder", &error))?;
    let lines = Arc::new(|_: &str, line: &str| output::note(&plain(line)));
    let settings = Settings::new(launch, Arc::new(Spawn::with_lines(lines)), opening, folder.path());
    let store = PluginStore::new(settings).map_err(|error| refused(&error))?;
    let tried = probe(&store).await;
    let can = store.capabilities();
    store.close().await;
    let steps = tried.map_err(|error| refused(&error))?;
    if !json {
        for step in &steps {
            output::line(step);
        }
        let caps = chatkeep_store::protocol::Caps::from(can);
        let say = |what: Option<String>| what.unwrap_or_else(|| "unknown".to_owned());
        output::line(&format!(
            "it says: create {}, read after write {}, list after write {}, deleting is {}",
            say(caps.create),
            say(caps.read_after_write),
            say(caps.list_after_write),
            say(caps.delete),
        ));
    }
    Ok(())
}

/// One object: written, written once more where that must be refused, read, listed, deleted. Credentials that may only add are
/// fine, and told.
async fn probe(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let body = bytes::Bytes::from(format!("probe {:?}", std::time::SystemTime::now()));
    let name = format!("probe/{:x}", std::process::id());
    let key = StoreKey::try_from(name)?;
    let mut steps = Vec::new();
    store.put(&key, body.clone(), PutCondition::Overwrite).await?;
    steps.push("writing works".to_owned());
    let again = store.put(&key, body.clone(), PutCondition::CreateIfAbsent).await;
    steps.push(match again {
        Err(StoreError::AlreadyExists { .. }) => "an object is not created twice".to_owned(),
        Err(StoreError::Unsupported { .. }) => {
            "it cannot refuse to create an object twice; that is checked otherwise".to_owned()
        }
        Ok(_) => {
            "it creates an object twice although it was told not to; that is checked otherwise".to_owned()
        }
        Err(error) => return Err(error),
    });
    match store.get(&key, None).await {
        Ok(back) if back == body => steps.push("reading works".to_owned()),
        Ok(_) => return Err(StoreError::Corrupt { key }),
        Err(StoreError::Permission(_)) => {
            steps.push("these credentials may not read: enough to add backups".to_owned());
        }
        Err(error) => return Err(error),
    }
    match store.list("probe").await {
        Ok(listed) if listed.iter().any(|object| object.key == key) => steps.push("listing works".to_owned()),
        Ok(_) => steps.push("what was written is not listed yet; that is waited for".to_owned()),
        Err(StoreError::Permission(_)) => steps.push("these credentials may not list".to_owned()),
        Err(error) => return Err(error),
    }
    match store.delete(&key).await {
        Ok(()) => steps.push("deleting works".to_owned()),
        Err(StoreError::Permission(_) | StoreError::Retained { .. }) => {
            steps.push(
                "these credentials may not delete: forgotten points have to be pruned with others".to_owned(),
            );
        }
        Err(error) => return Err(error),
    }
    Ok(steps)
}

async fn manager(context: &Context) -> Result<ManagerProxy<'_>> {
    Ok(ManagerProxy::new(&context.service.connection).await?)
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::local("the configuration cannot be read", &error)),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    config_file::replace(path, text)
        .map_err(|error| Failure::local("the configuration cannot be written", &error))
}

/// `NAME=VALUE` …
pub(super) fn pairs(options: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::said(&format!("`{text}` is not NAME=VALUE"), "")),
    };
    options.iter().map(pair).collect()
}

/// What a store or its manifest says against it, with all causes.
pub(super) fn refused(error: &StoreError) -> Failure {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        text = format!("{text}: {below}");
        cause = below.source();
    }
    let advice = match error {
        StoreError::Auth(_) => "check the secrets; nothing was changed",
        StoreError::Offline(_) => "check the network and the address; nothing was changed",
        _ => "nothing was changed",
    };
    Failure::said(&plain(&text), advice)
}
