//! Which sockets a program asks the kernel for, told by strace: of the program itself, not of those that it starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::programs;

/// A program whose sockets are written down.
#[derive(Debug, Clone)]
pub struct Trace {
    folder: PathBuf,
}

/// What was written down.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// Sockets of the unix family.
    pub unix: usize,
    /// Calls for a socket of any other family, whether they succeeded or not.
    pub others: Vec<String>,
}

impl Trace {
    /// What is written down goes into `folder`, which is made.
    pub fn into(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        programs::require("strace", "strace")?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// `program` under strace. It keeps its own number, so that signals reach it, and the tracer ends with it.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = programs::leashed(&programs::require("strace", "strace")?);
        command.args([
            "-D",
            "-ff",
            "-qq",
            "-e",
            "trace=socket,socketpair,execve,clone,clone3,fork,vfork",
            "-o",
        ]);
        command.arg(self.folder.join("calls")).arg("--").arg(program);
        Ok(command)
    }

    /// What the processes that ran `program` and nothing else asked for, with all of their threads.
    pub fn sockets(&self, program: &str) -> Result<Sockets> {
        let mut calls = BTreeMap::new();
        for file in std::fs::read_dir(&self.folder)? {
            let path = file?.path();
            let id: u32 =
                path.extension().and_then(|id| id.to_str()?.parse().ok()).context("a file of strace")?;
            calls.insert(id, std::fs::read_to_string(path).context("what strace wrote")?);
        }
        let parents = parents(&calls);
        let mut found = Sockets::default();
        let mut seen = false;
        for id in calls.keys() {
            let runs =
                program_of(*id, &calls, &parents).is_some_and(|line| line.contains(&format!("/{program}\"")));
            seen |= runs;
            for call in calls[id].lines().filter(|line| runs && line.starts_with("socket")) {
                if call.contains("(AF_UNIX,") {
                    found.unix += 1;
                } else {
                    found.others.push(call.to_owned());
                }
            }
        }
        ensure!(seen, "strace saw no {program}");
        Ok(found)
    }
}

/// Who made which thread or process.
fn parents(calls: &BTreeMap<u32, String>) -> BTreeMap<u32, u32> {
    let makes = |line: &&str| ["clone", "fork", "vfork"].iter().any(|call| line.starts_with(call));
    let made = |line: &str| line.rsplit(" = ").next()?.split_whitespace().next()?.parse().ok();
    let children = calls.iter().flat_map(|(parent, text)| {
        text.lines().filter(makes).filter_map(made).map(move |child| (child, *parent))
    });
    children.collect()
}

/// The program that a process runs, or the process of a thread: neither threads nor children before their `execve` have one
/// of their own.
fn program_of<'a>(
    id: u32,
    calls: &'a BTreeMap<u32, String>,
    parents: &BTreeMap<u32, u32>,
) -> Option<&'a str> {
    let mut at = id;
    loop {
        let last = calls.get(&at)?.lines().rfind(|line| line.starts_with("execve("));
        if last.is_some() {
            return last;
        }
        at = *parents.get(&at)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_program_that_asks_for_the_internet_is_seen_and_one_that_it_starts_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let python = programs::require("python3", "python3").unwrap().canonicalize().unwrap();
        let name = python.file_name().unwrap().to_str().unwrap();
        let sockets = |at: &str, script: &str| {
            let trace = Trace::into(&folder.path().join(at)).unwrap();
            assert!(trace.command(&python).unwrap().args(["-c", script]).status().unwrap().success());
            // the tracer ends after the program
            crate::stack::wait::until("strace has written", crate::stack::wait::PATIENCE, || {
                Ok(trace.sockets(name).ok().filter(|found| found.unix > 0))
            })
            .unwrap()
        };
        let unix = "import socket; socket.socket(socket.AF_UNIX)";
        assert!(sockets("a", unix).others.is_empty());
        let both = "import socket; socket.socket(socket.AF_INET); socket.socket(socket.AF_UNIX)";
        assert_eq!(sockets("b", both).others.len(), 1);
        let child = format!("{unix}; import subprocess; subprocess.run(['getent', 'ahosts', 'localhost'])");
        assert!(sockets("c", &child).others.is_empty());
    }
}
