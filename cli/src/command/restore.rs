//! The way back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use chatkeep_ipc::proxy::Options;
use zbus::zvariant::Value;

use super::{Context, backup};
use crate::explain::{Failure, Result};
use crate::time;

/// What to restore, and over what.
pub(super) struct Target {
    pub(super) at: Option<String>,
    pub(super) point: Option<String>,
    pub(super) overwrite: bool,
}

pub(super) async fn restore(context: &Context, id: &str, to: &Path, target: Target) -> Result<()> {
    let view = context.view().await?;
    let database = view.database(id)?;
    let watched = database.state.text("Path");
    let (dir, file_name) = destination(to, Path::new(&watched).file_name().and_then(|name| name.to_str()))?;
    let mut options = Options::from([("overwrite", Value::from(target.overwrite))]);
    if to.is_dir() {
        options.insert("into", true.into());
    }
    if let Some(point) = target.point {
        options.insert("point", point.into());
    }
    if let Some(text) = target.at {
        let at = time::parse_moment(&text, time::now()).ok_or_else(|| {
            Failure::said(
                &format!("{text} is no time"),
                "write 2026-11-24T08:30 (UTC), @SECONDS, or an age like 3h",
            )
        })?;
        options.insert("at", at.into());
    }
    let path = backup::proxy(context, database).await?.restore_to(dir.into(), &file_name, options).await?;
    context.follow(&path, &format!("restored to {}", shown(to, &file_name))).await
}

fn shown(to: &Path, file_name: &str) -> String {
    if to.is_dir() { to.join(file_name).display().to_string() } else { to.display().to_string() }
}

/// An open directory and a file name in it: what the service needs to write there without seeing our paths.
///
/// A directory takes `default_name`; a path whose parent is a directory names the file.
pub(super) fn destination(to: &Path, default_name: Option<&str>) -> Result<(OwnedFd, String)> {
    let (dir, name) = if to.is_dir() {
        let name = default_name.map(str::to_owned).ok_or_else(|| {
            Failure::said(&format!("{} is a directory", to.display()), "name the file, too: --to DIR/NAME")
        })?;
        (to, name)
    } else {
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = to.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Failure::said(&format!("{} names no file", to.display()), ""))?;
        (parent, name.to_owned())
    };
    let opened = File::open(dir).map_err(|error| Failure::local(&dir.display().to_string(), &error))?;
    if !opened.metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(Failure::said(&format!("{} is no directory", dir.display()), "make it first"));
    }
    Ok((opened.into(), name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_directory_takes_the_watched_file_s_name() {
        let dir = std::env::temp_dir();
        assert_eq!(destination(&dir, Some("messages.db")).unwrap().1, "messages.db");
        assert_eq!(destination(&dir.join("other.db"), Some("messages.db")).unwrap().1, "other.db");
        assert!(destination(&dir, None).is_err());
        assert!(destination(&dir.join("missing/other.db"), None).is_err());
        assert!(destination(Path::new("/"), None).is_err());
    }
}
