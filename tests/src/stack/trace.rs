//! Which sockets a program asks the kernel for, told by strace: of the program itself, not of those that it starts.

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
        command.args(["-D", "-ff", "-qq", "-e", "trace=socket,socketpair,execve", "-o"]);
        command.arg(self.folder.join("calls")).arg("--").arg(program);
        Ok(command)
    }

    /// What the processes that ran `program` and nothing else asked for.
    pub fn sockets(&self, program: &str) -> Result<Sockets> {
        let mut found = Sockets::default();
        let mut seen = false;
        for file in std::fs::read_dir(&self.folder)? {
            let text = std::fs::read_to_string(file?.path()).context("what strace wrote")?;
            // a thread writes no execve, a child that became another program one of that program
            let last = text.lines().filter(|line| line.starts_with("execve(")).next_back();
            let ours = last.is_none_or(|line| line.contains(&format!("/{program}\"")));
            seen |= last.is_some() && ours;
            for call in text.lines().filter(|line| ours && line.starts_with("socket")) {
                match call.contains("(AF_UNIX,") {
                    true => found.unix += 1,
                    false => found.others.push(call.to_owned()),
                }
            }
        }
        ensure!(seen, "strace saw no {program}");
        Ok(found)
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
