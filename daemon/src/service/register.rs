//! What an app or a person registers: a database, others of the same app, and folders of attachments.
//!
//! Each comes as an open descriptor: who registers something shows that he can open it. What is watched is its path, so
//! the path must lead to just that, seen from here.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use chatkeep_ipc::{Caller, Error, RegisterOptions};
use chatkeep_planner::SourceId;

use super::Service;
use crate::fault::Result;
use crate::registry::Registration;

/// Further databases, and folders, of one registration.
const FILES_MAX: usize = 64;

impl Service {
    pub(super) fn register(
        &mut self,
        name: String,
        file: &OwnedFd,
        options: RegisterOptions,
        caller: &Caller,
    ) -> Result<String, Error> {
        if options.kind.as_deref().is_some_and(|kind| kind != "sqlite") {
            return Err(Error::Unsupported("only SQLite databases can be watched".to_owned()));
        }
        if options.schedule.is_some() {
            return Err(Error::Unsupported("this version knows no schedules".to_owned()));
        }
        let path = database_path(file)?;
        let more_databases = options.databases.iter().map(database_path).collect::<Result<Vec<_>, _>>()?;
        let folder = |folder: &OwnedFd| self.folder_path(folder, caller);
        let attachments = options.attachments.iter().map(folder).collect::<Result<Vec<_>, _>>()?;
        check_names(std::iter::once(&path).chain(&more_databases).chain(&attachments))?;
        let display_name = options.display_name.unwrap_or(name);
        if display_name.is_empty() || display_name.len() > 256 {
            return Err(Error::InvalidArgument("a name has 1 to 256 bytes".to_owned()));
        }
        let others = self.registry.database.values().filter(|known| known.path != path);
        let watched: BTreeSet<PathBuf> = others.flat_map(Registration::databases).collect();
        if let Some(known) = [&path].into_iter().chain(&more_databases).find(|path| watched.contains(*path)) {
            return Err(Error::AlreadyRegistered(format!("{} is watched already", known.display())));
        }
        if let Some((id, known)) = self.registry.database.iter().find(|(_, known)| known.path == path) {
            let same_store = options.store.as_ref().is_none_or(|store| *store == known.store);
            if same_store && known.display_name == display_name {
                let id = id.clone();
                self.register_more(&id, more_databases, attachments, caller)?;
                return Ok(id);
            }
            let text =
                format!("{} is watched as `{id}` already, with the store `{}`", path.display(), known.store);
            return Err(Error::AlreadyRegistered(text));
        }
        if self.registry.database.values().any(|known| known.display_name == display_name) {
            return Err(Error::AlreadyRegistered(format!("another file is registered as `{display_name}`")));
        }
        let store = self.choose_store(options.store)?;
        let id = self.registry.new_id(&display_name);
        let registration = Registration {
            display_name,
            app_id: caller.app_id().map(str::to_owned).or(options.app_id).unwrap_or_default(),
            path,
            more_databases,
            attachments,
            store,
            copies: Vec::new(),
            archive: None,
            vault: String::new(),
        };
        let added = registration.clone();
        self.change_registry(|registry| registry.database.insert(id.clone(), added))
            .map_err(|fault| fault.error)?;
        self.add_source(id.clone(), registration, false);
        Ok(id)
    }

    /// The same once more, with other databases or folders: these are what it has from now on. Without any it stays.
    fn register_more(
        &mut self,
        id: &str,
        more_databases: Vec<PathBuf>,
        attachments: Vec<PathBuf>,
        caller: &Caller,
    ) -> Result<(), Error> {
        let number = self.number_of(id)?;
        let source = &self.sources[&number];
        let known = (&source.registration.more_databases, &source.registration.attachments);
        let same = known == (&more_databases, &attachments);
        if same || more_databases.is_empty() && attachments.is_empty() {
            return Ok(());
        }
        if source.configured {
            return Err(Error::Configured(format!("`{id}` stands in {}", self.config_path.display())));
        }
        if caller.app_id().is_some_and(|app| app != source.registration.app_id) {
            return Err(Error::AccessDenied("another app has registered it".to_owned()));
        }
        self.change_registration(number, |registration| {
            (registration.more_databases, registration.attachments) = (more_databases, attachments);
        })
        .map_err(|fault| fault.error)?;
        if self.sources[&number].following {
            self.restart(number);
        }
        Ok(())
    }

    fn folder_path(&self, folder: &OwnedFd, caller: &Caller) -> Result<PathBuf, Error> {
        let path = path_of(folder)?;
        let refuse = |why: &str| Err(Error::InvalidArgument(format!("{}: {why}", path.display())));
        if !path.is_dir() {
            return refuse("it is not a folder");
        }
        if let Some(app) = caller.app_id() {
            // It sees its own view of a folder, and we would see more of it.
            let own = std::env::home_dir().map(|home| home.join(".var/app").join(app));
            if !own.is_some_and(|own| path.starts_with(own)) {
                let text = "a sandboxed app can register attachments in its own folder only, ~/.var/app/";
                return Err(Error::AccessDenied(format!("{text}{app}")));
            }
        }
        if let Some(inside) = self.config.inside_of(&path, &self.tools.paths.state) {
            return refuse(&inside);
        }
        Ok(path)
    }

    /// What else is in the newest point is watched beside the database from now on. Says whether there is anything.
    pub(super) fn register_siblings(&mut self, number: SourceId) -> Result<bool> {
        let Some(source) = self.sources.get(&number) else { return Ok(false) };
        let (Some(log), Some(archive)) = (&source.log, source.registration.archive) else { return Ok(false) };
        let Some(point) = self.tools.catalogue.point(&archive, log.stored.seq) else { return Ok(false) };
        let path = source.registration.path.clone();
        let Some(parent) = path.parent() else { return Ok(false) };
        let mut databases: Vec<PathBuf> =
            point.databases.iter().map(|database| parent.join(&database.name)).collect();
        let folders: Vec<PathBuf> = point.folders.iter().map(|folder| parent.join(folder)).collect();
        if databases.len() <= 1 && folders.is_empty() {
            return Ok(false);
        }
        // One database has the name that was asked for, several have their own.
        let first = match databases.iter().position(|database| *database == path) {
            _ if databases.len() <= 1 => {
                databases.clear();
                path
            }
            Some(at) => databases.remove(at),
            None => databases.remove(0),
        };
        self.change_registration(number, |registration| {
            registration.path = first;
            (registration.more_databases, registration.attachments) = (databases, folders);
        })?;
        Ok(true)
    }
}

/// A restore puts all of it into one folder.
fn check_names<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<(), Error> {
    let (mut names, mut count) = (BTreeSet::new(), 0);
    for path in paths {
        count += 1;
        let name = path.file_name().unwrap_or_default();
        if count > FILES_MAX {
            return Err(Error::InvalidArgument(format!("at most {FILES_MAX} files and folders go together")));
        }
        if name.is_empty() || !names.insert(name) {
            let text = "two files or folders of one registration cannot have the same name";
            return Err(Error::InvalidArgument(format!("{}: {text}", path.display())));
        }
    }
    Ok(())
}

fn database_path(file: &OwnedFd) -> Result<PathBuf, Error> {
    let path = path_of(file)?;
    looks_like_a_database(file, &path)?;
    Ok(path)
}

/// The path of an open file or folder, as the system names it now.
pub(super) fn path_of(file: &OwnedFd) -> Result<PathBuf, Error> {
    let unknown =
        |error: std::io::Error| Error::InvalidArgument(format!("the file's path is unknown: {error}"));
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(unknown)?;
    if path.to_str().is_none() {
        return Err(Error::InvalidArgument("the path is not UTF-8".to_owned()));
    }
    let there = rustix::fs::stat(&path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let given = rustix::fs::fstat(file.as_fd()).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    if !path.is_absolute() || there.is_none() {
        return Err(Error::InvalidArgument("the file has no path: it was deleted, or is none".to_owned()));
    }
    // A sandbox may have something of its own where we see another file: it must not make us read that for it.
    if there != given {
        let text = "its path leads to another file outside of the sandbox that it was opened in";
        return Err(Error::InvalidArgument(format!("{}: {text}", path.display())));
    }
    Ok(path)
}

/// Refuses what is certainly no database, before it is watched: a text, a picture, a folder.
///
/// An empty file may become a database. An encrypted one begins with noise, so what cannot be told is accepted.
fn looks_like_a_database(file: &OwnedFd, path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::FileExt;
    let no =
        |what: &str| Error::InvalidArgument(format!("{} is not an SQLite database: {what}", path.display()));
    let file = std::fs::File::from(file.try_clone().map_err(|error| no(&error.to_string()))?);
    let metadata = file.metadata().map_err(|error| no(&error.to_string()))?;
    if !metadata.is_file() {
        return Err(no("it is not a file"));
    }
    let mut head = [0; 512];
    let mut len = 0;
    while len < head.len() {
        match file.read_at(&mut head[len..], len as u64) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) => return Err(no(&error.to_string())),
        }
    }
    let head = &head[..len];
    if head.is_empty() || head.starts_with(b"SQLite format 3\0") {
        return Ok(());
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if head.iter().all(printable) {
        return Err(no("it is a text"));
    }
    if !metadata.len().is_multiple_of(512) {
        return Err(no("its length is not a multiple of a page"));
    }
    Ok(())
}
