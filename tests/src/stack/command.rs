//! The `chatkeep` command, driven as a script drives it: with `--json`, and secrets through a pipe.

use std::io::{Read, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// No command takes longer than this; a job that hangs must not hang us.
const LIMIT: Duration = Duration::from_mins(3);

/// What a run of the command came to.
#[derive(Debug, Clone)]
pub struct Ran {
    /// What was run, for errors.
    pub line: String,
    /// Its exit status.
    pub code: i32,
    /// One JSON value for each line on standard output.
    pub lines: Vec<Value>,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// An error if the command did not succeed.
    pub fn success(self) -> Result<Self> {
        if self.code == 0 {
            return Ok(self);
        }
        bail!("`{}` ended with {}: {}", self.line, self.code, self.explanation());
    }

    /// The last line, which tells how it ended.
    pub fn last(&self) -> Value {
        self.lines.last().cloned().unwrap_or_default()
    }

    /// The error's name on D-Bus, empty if there was none.
    pub fn error(&self) -> String {
        self.last()["error"].as_str().unwrap_or_default().to_owned()
    }

    /// The error in words, with the advice.
    pub fn explanation(&self) -> String {
        let last = self.last();
        let part = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        match part("message") {
            message if message.is_empty() => format!("{} {}", last, self.err.trim()),
            message => format!("{}: {message} ({})", part("error"), part("advice")),
        }
    }

    /// What the job said at its end.
    pub fn result(&self) -> Value {
        let finished = self.lines.iter().rev().find(|line| line["event"] == "finished");
        finished.map(|line| line["result"].clone()).unwrap_or_default()
    }

    /// Attempts that the vault said were left.
    pub fn attempts_left(&self) -> Option<u64> {
        self.result()["attempts-left"].as_u64()
    }
}

/// Runs `command` with `secret` on a pipe that is its standard input.
pub(crate) fn run(mut command: Command, secret: Option<&str>) -> Result<Ran> {
    let line = describe(&command);
    let input = match secret {
        None => Stdio::null(),
        Some(secret) => {
            let (read, mut write) = std::io::pipe()?;
            // a secret is far smaller than what a pipe holds
            write.write_all(secret.as_bytes())?;
            Stdio::from(read)
        }
    };
    let child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run `{line}`"))?;
    let out = collect(child.stdout.take().context("standard output is a pipe")?);
    let err = collect(child.stderr.take().context("standard error is a pipe")?);
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            bail!("`{line}` still runs after {} s", LIMIT.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let out = out.join().unwrap_or_default();
    let err = err.join().unwrap_or_default();
    let lines = out.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let lines = lines.with_context(|| format!("`{line}` printed what is not JSON: {out}"))?;
    let code = status.code().with_context(|| format!("`{line}` ended with {status}"))?;
    Ok(Ran { line, code, lines, err })
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn describe(command: &Command) -> String {
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    format!("chatkeep {}", arguments.join(" "))
}
