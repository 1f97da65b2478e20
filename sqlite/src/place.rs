//! Putting a proven file in the place of what is there, in steps that can be taken back.
//!
//! Nothing is removed: the file that has the name, and whatever SQLite would take for its log or journal, are renamed
//! together, so that they still belong together under their new name. The database goes first on the way there and on
//! the way back: a log beside another database would be replayed into it.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::RestoreError;
use crate::os::{any_lock, identity_of, index_in_use, open_elsewhere};
use crate::restore::{Existing, doing};

/// The database, and what SQLite keeps beside it.
const MEMBERS: [&str; 4] = ["", "-wal", "-shm", "-journal"];
/// So many names `<file>.before-<label>-<n>` are tried.
const KEPT_MAX: u32 = 1000;

/// What was renamed: what is added to the name, and what it is called now.
type Moved = (&'static str, String);

/// A name in a folder, and what belongs to it.
pub(crate) struct Place<'a> {
    pub(crate) directory: &'a OwnedFd,
    pub(crate) name: &'a str,
}

impl Place<'_> {
    /// Renames what is there, and then `temporary` to the name. Returns what a file that had the name is called now.
    ///
    /// When it fails, all is as it was, unless the error says so. `between` is for tests: others may do something
    /// after the old files were renamed.
    pub(crate) fn take_over(
        &self,
        temporary: &str,
        existing: Existing,
        label: &str,
        between: &dyn Fn(),
    ) -> Result<Option<String>, RestoreError> {
        refuse_if_in_use(self.directory, self.name)?;
        if existing == Existing::Refuse && self.exists("").map_err(renaming)? {
            return Err(RestoreError::Exists);
        }
        let (moved, result) = self.keep(label);
        let result = result.and_then(|()| {
            between();
            self.check_alone(&moved)?;
            self.rename_new(temporary, self.name).map_err(renaming)
        });
        if let Err(error) = result {
            return Err(self.take_back(&moved, error));
        }
        Ok(moved.into_iter().find(|(suffix, _)| suffix.is_empty()).map(|(_, kept)| kept))
    }

    fn exists(&self, suffix: &str) -> Result<bool, Errno> {
        self.has(&format!("{}{suffix}", self.name))
    }

    fn has(&self, name: &str) -> Result<bool, Errno> {
        match rustix::fs::statat(self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renames all that is there to names that nothing has. Returns what was renamed, also when it failed half-way.
    fn keep(&self, label: &str) -> (Vec<Moved>, Result<(), RestoreError>) {
        let mut moved = Vec::new();
        let result = (|| {
            let mut kept = None;
            for suffix in MEMBERS {
                if !self.exists(suffix)? {
                    continue;
                }
                let base = match &kept {
                    Some(base) => base,
                    None => kept.insert(self.free_name(label)?),
                };
                let kept = format!("{base}{suffix}");
                match self.rename_new(&format!("{}{suffix}", self.name), &kept) {
                    Ok(()) => moved.push((suffix, kept)),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })();
        (moved, result.map_err(renaming))
    }

    /// A name that nothing has, nor anything that SQLite would take for its log.
    fn free_name(&self, label: &str) -> Result<String, Errno> {
        let label: String = label.chars().map(|c| if c == '/' || c.is_control() { '-' } else { c }).collect();
        for count in 1..=KEPT_MAX {
            let number = if count == 1 { String::new() } else { format!("-{count}") };
            let name = format!("{}.before-{label}{number}", self.name);
            let mut taken = false;
            for suffix in MEMBERS {
                taken |= self.has(&format!("{name}{suffix}"))?;
            }
            if !taken {
                return Ok(name);
            }
        }
        Err(Errno::EXIST)
    }

    /// Nobody has opened what was renamed, nor made new files under the name.
    fn check_alone(&self, moved: &[Moved]) -> Result<(), RestoreError> {
        for suffix in MEMBERS {
            if self.exists(suffix).map_err(renaming)? {
                let why = format!("a process created {}{suffix} meanwhile", self.name);
                return Err(RestoreError::InUse { pid: None, why });
            }
        }
        moved.iter().try_for_each(|(suffix, kept)| refuse_if_open(self.directory, kept, suffix))
    }

    /// Gives back the old names. Returns `error`, or what has to be done by hand.
    fn take_back(&self, moved: &[Moved], error: RestoreError) -> RestoreError {
        for (at, (suffix, kept)) in moved.iter().enumerate() {
            if self.rename_new(kept, &format!("{}{suffix}", self.name)).is_err() {
                let left = moved[at..].iter().map(|(_, kept)| kept.as_str()).collect::<Vec<_>>();
                return RestoreError::LeftAside { names: left.join(", "), why: error.to_string() };
            }
        }
        error
    }

    fn rename_new(&self, from: &str, to: &str) -> Result<(), Errno> {
        rustix::fs::renameat_with(self.directory, from, self.directory, to, RenameFlags::NOREPLACE)
    }
}

fn renaming(error: Errno) -> RestoreError {
    if error == Errno::EXIST { RestoreError::Exists } else { doing("renaming")(error.into()) }
}

/// Fails while a program has the database of this name, its log or its index open.
pub(crate) fn refuse_if_in_use(directory: &OwnedFd, name: &str) -> Result<(), RestoreError> {
    MEMBERS.iter().try_for_each(|suffix| refuse_if_open(directory, &format!("{name}{suffix}"), suffix))
}

fn refuse_if_open(directory: &OwnedFd, name: &str, suffix: &str) -> Result<(), RestoreError> {
    let looking = "looking at the target";
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => std::fs::File::from(fd),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(doing(looking)(error.into())),
    };
    let locked = match suffix {
        "" => any_lock(&file),
        "-shm" => index_in_use(&file),
        _ => Ok(false),
    };
    let locked = locked.map_err(doing("asking for locks"))?;
    let pid = open_elsewhere(identity_of(&file).map_err(doing(looking))?);
    if !locked && pid.is_none() {
        return Ok(());
    }
    let why = match pid {
        Some(pid) => format!("process {pid} has it open"),
        None => "a process has it locked".to_owned(),
    };
    Err(RestoreError::InUse { pid, why })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs::File;
    use std::path::Path;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    use super::*;

    fn files(folder: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, std::fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    /// A database with a log and a journal is replaced while `between` happens.
    fn replace(between: &dyn Fn(&Path)) -> (tempfile::TempDir, Result<Option<String>, RestoreError>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["db", "db-wal", "db-journal", "new"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let directory = File::open(folder.path()).unwrap().into();
        let place = Place { directory: &directory, name: "db" };
        let result = place.take_over("new", Existing::KeepBeside, "x", &|| between(folder.path()));
        (folder, result)
    }

    fn expected(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    const BEFORE: [(&str, &str); 4] =
        [("db", "db"), ("db-journal", "db-journal"), ("db-wal", "db-wal"), ("new", "new")];

    #[test]
    fn what_was_there_stays_together_under_another_name() {
        let (folder, result) = replace(&|_| {});
        assert_eq!(result.unwrap().as_deref(), Some("db.before-x"));
        let kept = [
            ("db", "new"),
            ("db.before-x", "db"),
            ("db.before-x-journal", "db-journal"),
            ("db.before-x-wal", "db-wal"),
        ];
        assert_eq!(files(folder.path()), expected(&kept));
    }

    #[test]
    fn whoever_had_just_opened_it_keeps_it() {
        let held = std::cell::RefCell::new(None);
        let (folder, result) = replace(&|folder| {
            let file = File::options().write(true).open(folder.join("db.before-x")).unwrap();
            let lock = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: 0x4000_0002,
                l_len: 510,
                l_pid: 0,
            };
            fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
            held.replace(Some(file));
        });
        assert!(matches!(result, Err(RestoreError::InUse { .. })), "{result:?}");
        assert_eq!(files(folder.path()), expected(&BEFORE));
    }

    #[test]
    fn a_log_that_appears_meanwhile_is_not_replayed_into_the_restored_database() {
        let (folder, result) = replace(&|folder| std::fs::write(folder.join("db-shm"), "other").unwrap());
        assert!(matches!(result, Err(RestoreError::InUse { .. })), "{result:?}");
        let mut all = BEFORE.to_vec();
        all.insert(2, ("db-shm", "other"));
        assert_eq!(files(folder.path()), expected(&all));
    }

    #[test]
    fn when_the_name_was_taken_the_old_log_stays_with_the_old_database() {
        let (folder, result) = replace(&|folder| std::fs::write(folder.join("db"), "other").unwrap());
        let Err(RestoreError::LeftAside { names, .. }) = result else { panic!("{result:?}") };
        assert_eq!(names, "db.before-x, db.before-x-wal, db.before-x-journal");
        let left = [
            ("db", "other"),
            ("db.before-x", "db"),
            ("db.before-x-journal", "db-journal"),
            ("db.before-x-wal", "db-wal"),
            ("new", "new"),
        ];
        assert_eq!(files(folder.path()), expected(&left));
    }
}
