//! Where manifests are, and which of them a URL means.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use chatkeep_store::Result;

use super::{LEN_MAX, Manifest, Origin, invalid};

/// The stores that come with Chatkeep.
const SHIPPED: [(&str, &str); 6] = [
    ("s3", include_str!("../../manifests/s3.toml")),
    ("gs", include_str!("../../manifests/gs.toml")),
    ("az", include_str!("../../manifests/az.toml")),
    ("dav", include_str!("../../manifests/dav.toml")),
    ("sftp", include_str!("../../manifests/sftp.toml")),
    ("rclone", include_str!("../../manifests/rclone.toml")),
];

/// Folders that manifests are looked for in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Those of the system.
    pub system: Vec<PathBuf>,
    /// The user's.
    pub home: Option<PathBuf>,
}

impl Places {
    /// As the documentation says: two folders of the system, one below `$XDG_DATA_HOME`.
    pub fn usual() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data =
            absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        Self {
            system: vec!["/usr/share/chatkeep/stores".into(), "/usr/local/share/chatkeep/stores".into()],
            home: data.map(|data| data.join("chatkeep/stores")),
        }
    }
}

/// All manifests that were found.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    found: Vec<Manifest>,
    faults: Vec<String>,
}

impl Manifests {
    /// Those that come with Chatkeep, and those in `places`. Reads files, and runs nothing.
    ///
    /// One that is wrong does not hide the others: it is told once somebody asks for a scheme that nobody has.
    pub fn load(places: &Places) -> Self {
        let mut all = Self::shipped();
        for folder in &places.system {
            all.read_folder(folder, Origin::System);
        }
        if let Some(folder) = &places.home {
            all.read_folder(folder, Origin::Home);
        }
        all
    }

    /// Those that come with Chatkeep.
    pub fn shipped() -> Self {
        let mut all = Self::default();
        for (name, text) in SHIPPED {
            all.take(Manifest::parse(name, text, Origin::Shipped));
        }
        all
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Manifest> {
        self.found.iter()
    }

    /// What is wrong with those that could not be read.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Result<&Manifest> {
        let named: Vec<&Manifest> = self.found.iter().filter(|manifest| manifest.name == name).collect();
        match named[..] {
            [one] => Ok(one),
            [] => Err(invalid(format!("there is no store plugin `{name}`{}", self.hint()))),
            _ => Err(invalid(format!("several manifests are named `{name}`: {}", origins(&named)))),
        }
    }

    /// The one that has the scheme of this URL.
    pub fn for_url(&self, url: &str) -> Result<&Manifest> {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme);
        let scheme =
            scheme.ok_or_else(|| invalid("the URL of a store begins with a scheme and `:`".to_owned()))?;
        let has_it = |manifest: &&Manifest| manifest.schemes.iter().any(|name| name == scheme);
        let claimants: Vec<&Manifest> = self.found.iter().filter(has_it).collect();
        match claimants[..] {
            [one] => Ok(one),
            [] => {
                let shown: String = scheme.chars().take(60).flat_map(char::escape_debug).collect();
                Err(invalid(format!("no store plugin has the scheme `{shown}:`{}", self.hint())))
            }
            _ => Err(invalid(format!(
                "several store plugins claim the scheme `{scheme}:`: {}",
                origins(&claimants)
            ))),
        }
    }

    fn hint(&self) -> String {
        if self.faults.is_empty() { String::new() } else { format!("; {}", self.faults.join("; ")) }
    }

    fn take(&mut self, manifest: Result<Manifest>) {
        match manifest {
            Ok(manifest) => self.found.push(manifest),
            Err(error) => self.faults.push(error.to_string()),
        }
    }

    fn read_folder(&mut self, folder: &Path, origin: fn(PathBuf) -> Origin) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.faults.push(format!("{}: {error}", folder.display())),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        for path in paths {
            self.take(read_file(&path, origin));
        }
    }
}

fn read_file(path: &Path, origin: fn(PathBuf) -> Origin) -> Result<Manifest> {
    let wrong = |error: &dyn std::fmt::Display| invalid(format!("{}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
    let mut text = String::new();
    let read = file.take(LEN_MAX + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if read as u64 > LEN_MAX {
        return Err(wrong(&"it is too long for a manifest"));
    }
    let name =
        path.file_stem().and_then(|name| name.to_str()).ok_or_else(|| wrong(&"its name is not UTF-8"))?;
    Manifest::parse(name, &text, origin(path.to_owned()))
}

fn origins(manifests: &[&Manifest]) -> String {
    let origins = manifests.iter().map(|manifest| match manifest.path() {
        None => format!("`{}`, which comes with Chatkeep", manifest.name),
        Some(path) => path.display().to_string(),
    });
    origins.collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn places(folder: &Path) -> Places {
        let places = Places { system: vec![folder.join("system")], home: Some(folder.join("home")) };
        std::fs::create_dir(&places.system[0]).unwrap();
        std::fs::create_dir(places.home.as_ref().unwrap()).unwrap();
        places
    }

    fn write(folder: &Path, name: &str, schemes: &str) {
        std::fs::write(folder.join(name), format!("schemes = {schemes}\nexec = \"/x\"\n")).unwrap();
    }

    #[test]
    fn the_shipped_manifests_are_right_and_have_the_schemes_of_the_documentation() {
        let all = Manifests::shipped();
        assert_eq!(all.faults(), [] as [String; 0]);
        for url in
            ["s3://b/x", "gs://b", "az://c", "dav://h/p", "davs://h/p", "sftp://h/p", "rclone:remote:x"]
        {
            assert_eq!(all.for_url(url).unwrap().origin, Origin::Shipped, "{url}");
        }
        let error = all.for_url("pcloud://x").unwrap_err().to_string();
        assert_eq!(error, "no store plugin has the scheme `pcloud:`");
        all.for_url("no-scheme").unwrap_err();
    }

    #[test]
    fn manifests_are_found_in_their_folders_and_told_apart_by_origin() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        write(&places.system[0], "pcloud.toml", "[\"pcloud\"]");
        write(&places.system[0], "readme.txt", "not a manifest");
        write(places.home.as_ref().unwrap(), "mine.toml", "[\"mine\", \"mine+tls\"]");
        let all = Manifests::load(&places);
        assert_eq!(all.faults(), [] as [String; 0]);
        assert!(matches!(all.for_url("pcloud:x").unwrap().origin, Origin::System(_)));
        assert!(matches!(all.for_url("mine+tls:x").unwrap().origin, Origin::Home(_)));
        assert_eq!(all.named("mine").unwrap().schemes.len(), 2);
    }

    #[test]
    fn two_claimants_of_one_scheme_are_an_error_that_names_both() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        write(places.home.as_ref().unwrap(), "evil.toml", "[\"s3\"]");
        let error = Manifests::load(&places).for_url("s3://b").unwrap_err().to_string();
        assert!(error.contains("which comes with Chatkeep") && error.contains("evil.toml"), "{error}");
    }

    #[test]
    fn a_wrong_manifest_hides_no_other_and_is_told_when_its_scheme_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        write(&places.system[0], "good.toml", "[\"good\"]");
        write(&places.system[0], "bad.toml", "[\"BAD\"]");
        std::fs::write(places.system[0].join("long.toml"), "#".repeat(100_000)).unwrap();
        std::fs::write(places.system[0].join("binary.toml"), [0xff, 0xfe]).unwrap();
        std::fs::create_dir(places.system[0].join("folder.toml")).unwrap();
        let all = Manifests::load(&places);
        assert_eq!(all.faults().len(), 4, "{:?}", all.faults());
        all.for_url("good:x").unwrap();
        let error = all.for_url("bad:x").unwrap_err().to_string();
        assert!(error.contains("`BAD` is no scheme"), "{error}");
    }
}
