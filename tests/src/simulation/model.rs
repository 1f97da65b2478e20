//! What every recovery point must be. Kept in a file as well where the process that writes it can be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};

/// By point: what its databases are.
#[derive(Default)]
pub struct Model {
    planned: BTreeMap<u64, Vec<String>>,
    announced: BTreeSet<u64>,
    file: Option<File>,
}

impl Model {
    /// One that is kept in a file, with what it says.
    pub fn in_file(path: &Path) -> Result<Model> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut model = Model::default();
        // A line that a kill cut off was not said.
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..end].lines() {
            let mut words = line.split('\t');
            let kind = words.next().unwrap_or_default();
            let seq = words.next().context("a number")?.parse()?;
            match kind {
                "planned" => drop(model.planned.insert(seq, words.map(str::to_owned).collect())),
                "announced" => drop(model.announced.insert(seq)),
                other => anyhow::bail!("{other:?} in the model"),
            }
        }
        let file = File::options().create(true).append(true).open(path)?;
        // Whatever was cut off must not become part of the next line.
        file.set_len(end as u64)?;
        model.file = Some(file);
        Ok(model)
    }

    /// A capture begins that will be this point, if it will be one. Said before: a crash may come at once.
    pub fn plan(&mut self, seq: u64, fingerprints: &[String]) -> Result<()> {
        self.say(&format!("planned\t{seq}\t{}\n", fingerprints.join("\t")))?;
        self.planned.insert(seq, fingerprints.to_vec());
        Ok(())
    }

    /// The service says that this point is safe.
    pub fn announce(&mut self, seq: u64) -> Result<()> {
        self.say(&format!("announced\t{seq}\n"))?;
        self.announced.insert(seq);
        Ok(())
    }

    /// It was forgotten as was decided.
    pub fn forget(&mut self, seq: u64) {
        self.announced.remove(&seq);
    }

    fn say(&mut self, line: &str) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(line.as_bytes())?;
        }
        Ok(())
    }

    /// All points that were announced, oldest first.
    pub fn announced(&self) -> Vec<u64> {
        self.announced.iter().copied().collect()
    }

    /// What a point must be.
    pub fn at(&self, seq: u64) -> Option<&[String]> {
        self.planned.get(&seq).map(Vec::as_slice)
    }
}
