//! The program of a plugin: which file it is, and whether anybody else could have put it there.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use chatkeep_store::{Opening, Result};

use super::{Manifest, PathUse, invalid};
use crate::launch::Launch;

/// What every plugin gets of our environment.
const ENVIRONMENT: [&str; 4] = ["PATH", "LANG", "HOME", "TMPDIR"];
/// Where programs of packages lie that nobody calls by name.
const LIBEXEC: [&str; 3] = ["/usr/libexec/chatkeep", "/usr/lib/chatkeep", "/usr/local/libexec/chatkeep"];

impl Manifest {
    /// The program, after a look at who could have changed it: it and its folder belong to root or to the user, and nobody
    /// else may write to them; nor may anybody exchange a folder above, other than in one where only owners may.
    pub fn program(&self) -> Result<PathBuf> {
        let path = if self.exec.is_absolute() { self.exec.clone() } else { find(&self.exec)? };
        let wrong = |why: &str| invalid(format!("the plugin program {} {why}", path.display()));
        // what is looked at is what is run: links are followed once, here
        let real = path.canonicalize().map_err(|error| wrong(&format!("cannot be used: {error}")))?;
        let metadata =
            std::fs::metadata(&real).map_err(|error| wrong(&format!("cannot be used: {error}")))?;
        if !metadata.is_file() {
            return Err(wrong("is no regular file"));
        }
        if metadata.mode() & 0o111 == 0 {
            return Err(wrong("may not be executed"));
        }
        // What lies beside this program is as safe as this program: who may exchange the one may exchange the other.
        if self.origin == super::Origin::Shipped && real.parent() == beside().as_deref() {
            return Ok(real);
        }
        if let Some(why) = open_to_others(&metadata, false) {
            return Err(wrong(why));
        }
        for (level, folder) in real.ancestors().skip(1).enumerate() {
            let metadata =
                std::fs::metadata(folder).map_err(|error| wrong(&format!("cannot be used: {error}")))?;
            if let Some(why) = open_to_others(&metadata, level > 0) {
                return Err(wrong(&format!("lies below {}, which {why}", folder.display())));
            }
        }
        Ok(real)
    }

    /// How its program is started for a store of this name that is opened with `opening`.
    pub fn launch(&self, store: &str, opening: &Opening) -> Result<Launch> {
        let program = self.program()?;
        let of_ours = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
        let names = ENVIRONMENT.into_iter().chain(self.sandbox.environment.iter().map(String::as_str));
        let mut environment: Vec<(String, String)> = names.filter_map(of_ours).collect();
        let mut paths: Vec<PathBuf> = self
            .sandbox
            .paths
            .iter()
            .filter_map(|path| expand(path, |name| std::env::var(name).ok()))
            .collect();
        if self.sandbox.session_bus {
            environment.extend(of_ours("DBUS_SESSION_BUS_ADDRESS"));
            paths.extend(
                expand("$XDG_RUNTIME_DIR", |name| std::env::var(name).ok()).map(|folder| folder.join("bus")),
            );
        }
        for (name, spec) in &self.options {
            let path = opening.option(name).map(Path::new);
            paths.extend(match (spec.path, path) {
                (Some(PathUse::Itself), Some(path)) => Some(path.to_owned()),
                (Some(PathUse::Parent), Some(path)) => path.parent().map(Path::to_owned),
                _ => None,
            });
        }
        Ok(Launch { store: store.to_owned(), program, environment, network: self.sandbox.network, paths })
    }
}

/// Why somebody else could exchange this, if somebody could. Of folders above, those are fine where only owners may remove.
fn open_to_others(metadata: &Metadata, above: bool) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    let mode = metadata.mode();
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        return Some("belongs neither to root nor to this user");
    }
    let only_owners_remove = above && mode & STICKY != 0;
    (mode & 0o022 != 0 && !only_owners_remove).then_some("others may write to")
}

/// The folder of this program.
fn beside() -> Option<PathBuf> {
    std::env::current_exe().ok()?.canonicalize().ok()?.parent().map(Path::to_owned)
}

/// Finds a program that comes with Chatkeep: beside this one, on the path, or where packages put such.
fn find(name: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside().into_iter().chain(std::env::split_paths(&path)).chain(LIBEXEC.map(PathBuf::from));
    let mut candidates = folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name));
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        invalid(format!(
            "the plugin program {} is not installed: it is neither beside this program nor on the path",
            name.display()
        ))
    })
}

/// A path of a sandbox as an absolute one; none where a variable is not set.
fn expand(path: &str, variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let path = match (path.strip_prefix("~/"), path.strip_prefix('$')) {
        (Some(below), _) => PathBuf::from(variable("HOME")?).join(below),
        (None, Some(name)) => PathBuf::from(variable(name)?),
        (None, None) => PathBuf::from(path),
    };
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::manifest::Origin;

    fn manifest_of(program: &Path) -> Manifest {
        let text = format!(
            "schemes = [\"x\"]\nexec = \"{}\"\nsandbox = {{ network = true, paths = [\"/data\", \"$CHATKEEP_NONE\"] }}\n\
             [options]\nkey = {{ path = \"itself\" }}\nconfig = {{ path = \"parent\" }}",
            program.display()
        );
        Manifest::parse("x", &text, Origin::Home("/x.toml".into())).unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_program_that_somebody_else_could_have_put_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (below, program) = (folder.path().join("below"), folder.path().join("below/program"));
        std::fs::create_dir(&below).unwrap();
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(&below, 0o755);
        mode(&program, 0o755);
        let manifest = manifest_of(&program);
        assert_eq!(manifest.program().unwrap(), program.canonicalize().unwrap());
        let refused = |words: &str| {
            let error = manifest.program().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        for open in [0o775, 0o757, 0o777] {
            mode(&program, open);
            refused("others may write");
        }
        mode(&program, 0o644);
        refused("may not be executed");
        mode(&program, 0o755);
        for open in [0o775, 0o1777] {
            mode(&below, open);
            refused("lies below");
        }
        mode(&below, 0o755);
        mode(folder.path(), 0o777);
        refused("lies below");
        mode(folder.path(), 0o1777);
        manifest.program().unwrap();
        std::fs::remove_file(&program).unwrap();
        refused("No such file");
        std::fs::create_dir(&program).unwrap();
        refused("no regular file");
    }

    /// Needs root, as the tests in a container have; elsewhere nobody can give a file away.
    #[test]
    fn a_program_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(&program, 0o755);
        if std::os::unix::fs::chown(&program, Some(4242), None).is_ok() {
            let error = manifest_of(&program).program().unwrap_err().to_string();
            assert!(error.contains("belongs neither"), "{error}");
        }
    }

    #[test]
    fn a_plugin_reaches_what_its_manifest_and_its_settings_name() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(&program, 0o755);
        let mut opening = Opening::of_url("x:");
        opening.options.insert("key".to_owned(), "/k/id".to_owned());
        opening.options.insert("config".to_owned(), "/c/rclone.conf".to_owned());
        let launch = manifest_of(&program).launch("mine", &opening).unwrap();
        assert_eq!(launch.paths, ["/data", "/c", "/k/id"].map(PathBuf::from));
        assert!(launch.environment.iter().all(|(name, _)| ENVIRONMENT.contains(&name.as_str())));
        assert!(launch.network && launch.store == "mine");
    }

    #[test]
    fn paths_of_a_sandbox_are_made_absolute_or_left_out() {
        let variable = |name: &str| (name == "HOME").then(|| "/home/a".to_owned());
        assert_eq!(expand("~/.ssh", variable), Some("/home/a/.ssh".into()));
        assert_eq!(expand("$HOME", variable), Some("/home/a".into()));
        assert_eq!(expand("$SSH_AUTH_SOCK", variable), None);
        assert_eq!(expand("/x", variable), Some("/x".into()));
    }
}
