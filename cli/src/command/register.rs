//! What is watched, and what can be taken over from a store.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chatkeep_ipc::proxy::{ManagerProxy, Options};
use serde_json::json;
use zbus::zvariant::{Fd, OwnedValue, Value};

use super::{Context, restore};
use crate::explain::{Failure, Result};
use crate::output::{self, plain, size};
use crate::{job, time};

pub(super) async fn register(
    context: &Context,
    file: &Path,
    name: Option<String>,
    store: Option<String>,
    (databases, attachments): (&[PathBuf], &[PathBuf]),
) -> Result<()> {
    let opened = open_database(file)?;
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = name.or_else(stem).unwrap_or_default();
    let mut options = Options::new();
    if let Some(store) = store {
        options.insert("store", store.into());
    }
    let databases = databases.iter().map(|file| open_database(file)).collect::<Result<Vec<_>>>()?;
    let folders = attachments.iter().map(|folder| open_folder(folder)).collect::<Result<Vec<_>>>()?;
    for (option, files) in [("databases", &databases), ("attachments", &folders)] {
        if !files.is_empty() {
            let descriptors: Vec<Fd<'_>> = files.iter().map(Fd::from).collect();
            options.insert(option, descriptors.into());
        }
    }
    let manager = ManagerProxy::new(&context.service.connection).await?;
    let path = manager.register_database(&name, opened.into(), options).await?;
    let view = context.view().await?;
    let found = view.databases.iter().find(|database| database.state.path == path);
    let (id, mode) = found.map(|found| (found.id(), found.encryption.text("Mode"))).unwrap_or_default();
    if context.json {
        output::json(&json!({"id": id, "path": path.as_str()}));
        return Ok(());
    }
    output::line(&format!("watching {} as {}", file.display(), plain(&id)));
    if mode == "none" {
        output::line(&format!(
            "next, choose how it is encrypted: `chatkeep encryption enable-password {0}` or `generate-key {0}`",
            plain(&id)
        ));
    }
    Ok(())
}

fn open_database(file: &Path) -> Result<OwnedFd> {
    let opened = File::open(file).map_err(|error| Failure::local(&file.display().to_string(), &error))?;
    if !opened.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Failure::said(
            &format!("{} is no file", file.display()),
            "name the database file itself",
        ));
    }
    Ok(opened.into())
}

fn open_folder(folder: &Path) -> Result<OwnedFd> {
    let opened = File::open(folder).map_err(|error| Failure::local(&folder.display().to_string(), &error))?;
    if !opened.metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(Failure::said(&format!("{} is no folder", folder.display()), "name the folder itself"));
    }
    Ok(opened.into())
}

pub(super) async fn unregister(context: &Context, id: &str) -> Result<()> {
    let view = context.view().await?;
    let path = &view.database(id)?.state.path;
    ManagerProxy::new(&context.service.connection).await?.unregister(path, Options::new()).await?;
    context.done("no longer watched; what is stored stays");
    Ok(())
}

pub(super) async fn list_remote(context: &Context, store: &str) -> Result<()> {
    let manager = ManagerProxy::new(&context.service.connection).await?;
    let archives = manager.list_remote(store, Options::new()).await?;
    if context.json {
        let archives: Vec<_> = archives.iter().map(job::to_json).collect();
        output::json(&json!({ "archives": archives }));
        return Ok(());
    }
    if archives.is_empty() {
        output::line("there is no archive in this store");
        return Ok(());
    }
    let now = time::now();
    let mut rows = vec![["ARCHIVE", "NAME", "OPENS WITH", "NEWEST", "SIZE"].map(str::to_owned).to_vec()];
    for archive in &archives {
        let or_dash = |text: String| if text.is_empty() { "-".into() } else { plain(&text) };
        let newest = number(archive, "newest");
        rows.push(vec![
            plain(&text(archive, "id")),
            or_dash(text(archive, "name")),
            or_dash(text(archive, "mode")),
            if newest == 0 { "-".into() } else { time::age(newest, now) },
            size(number(archive, "size")),
        ]);
    }
    output::print(&output::table(&rows));
    Ok(())
}

pub(super) async fn adopt(
    context: &Context,
    store: &str,
    remote_id: &str,
    to: &Path,
    name: Option<String>,
    restore: bool,
) -> Result<()> {
    let (dir, file_name) = restore::destination(to, None)?;
    let mut options = Options::from([("restore", Value::from(restore))]);
    if let Some(name) = name {
        options.insert("name", name.into());
    }
    let manager = ManagerProxy::new(&context.service.connection).await?;
    let path = manager.adopt(store, remote_id, dir.into(), &file_name, options).await?;
    context.follow(&path, "adopted; if `chatkeep status` shows it locked, run `chatkeep unlock`").await
}

/// A text in a map of the service.
pub(super) fn text(map: &HashMap<String, OwnedValue>, key: &str) -> String {
    map.get(key).and_then(|value| <&str>::try_from(value).ok()).unwrap_or_default().to_owned()
}

/// A number in a map of the service.
pub(super) fn number(map: &HashMap<String, OwnedValue>, key: &str) -> u64 {
    map.get(key).and_then(|value| u64::try_from(value).ok()).unwrap_or_default()
}
