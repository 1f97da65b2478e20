//! Passwords and digits: from the terminal without echo, from a descriptor, or from standard input. Never from
//! arguments or the environment, where other processes can read them.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write as _};

use chatkeep_ipc::{SECRET_LEN_MAX, Secret};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::explain::{Failure, Result};

/// Where secrets of this run come from.
pub(crate) enum Source {
    /// The terminal, asked with a prompt.
    Terminal,
    /// Standard input, one secret a line.
    Input(Lines<std::io::Stdin>),
    /// A descriptor that the caller opened.
    Descriptor(Lines<File>),
}

impl Source {
    /// From a descriptor if one is given, else the terminal if standard input is one, else standard input.
    pub(crate) fn choose(descriptor: Option<u32>) -> Result<Self> {
        if let Some(number) = descriptor {
            let path = format!("/proc/self/fd/{number}");
            let file =
                File::open(path).map_err(|error| Failure::local("the descriptor cannot be read", &error))?;
            return Ok(Self::Descriptor(Lines::new(file)));
        }
        if std::io::stdin().is_terminal() {
            return Ok(Self::Terminal);
        }
        Ok(Self::Input(Lines::new(std::io::stdin())))
    }

    /// Whether it makes sense to ask again.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal)
    }

    /// The next secret.
    pub(crate) async fn read(&mut self, prompt: &str) -> Result<Secret> {
        match self {
            Self::Terminal => {
                let prompt = prompt.to_owned();
                let typed = tokio::task::spawn_blocking(move || type_secret(&prompt)).await;
                typed.map_err(|error| Failure::local("the terminal cannot be read", &error))?
            }
            Self::Input(lines) => lines.next(),
            Self::Descriptor(lines) => lines.next(),
        }
    }

    /// The next secret; nothing for an empty line.
    pub(crate) async fn read_or_none(&mut self, prompt: &str) -> Result<Option<Secret>> {
        match self.read(prompt).await {
            Ok(secret) => Ok(Some(secret)),
            Err(failure) if failure.is_no_secret() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A new secret: on the terminal it is asked for twice.
    pub(crate) async fn read_new(&mut self, prompt: &str) -> Result<Secret> {
        let first = self.read(prompt).await?;
        if self.is_terminal() && self.read("Again: ").await? != first {
            return Err(Failure::said("the two are not the same", "nothing was changed; try again"));
        }
        Ok(first)
    }
}

/// Reads lines byte by byte, so that nothing behind a line is swallowed.
pub(crate) struct Lines<R>(R);

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Self {
        Self(reader)
    }

    fn next(&mut self) -> Result<Secret> {
        let mut line = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX + 1));
        let mut byte = Zeroizing::new([0_u8]);
        loop {
            match self.0.read(&mut byte[..]) {
                Ok(0) => break,
                Ok(_) if byte[0] == b'\n' => break,
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::local("the secret cannot be read", &error)),
            }
            if line.len() > SECRET_LEN_MAX {
                return Err(Failure::said("the secret is longer than 4096 bytes", ""));
            }
        }
        if line.is_empty() {
            return Err(Failure::no_secret(
                "no password or key was given",
                "type it, or pass it with --password-fd",
            ));
        }
        Ok(Secret::new(line))
    }
}

/// A terminal that does not show what is typed, until dropped.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: File) -> std::io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        // Ctrl-C comes as a character, so that the terminal is put right before the program ends
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        let _ = self.terminal.write_all(b"\n");
    }
}

fn type_secret(prompt: &str) -> Result<Secret> {
    let failed = |error: std::io::Error| Failure::local("the terminal cannot be used", &error);
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
    (&terminal).write_all(prompt.as_bytes()).map_err(failed)?;
    let silent = Silent::new(terminal).map_err(failed)?;
    let mut typed = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX + 1));
    let mut byte = Zeroizing::new([0_u8]);
    loop {
        if (&silent.terminal).read(&mut byte[..]).map_err(failed)? == 0 {
            break;
        }
        match byte[0] {
            b'\r' | b'\n' | 0x04 => break,                     // Enter, Ctrl-D
            0x03 | 0x1c => return Err(Failure::interrupted()), // Ctrl-C, Ctrl-\
            0x15 => typed.clear(),                             // Ctrl-U
            0x08 | 0x7f => erase(&mut typed),
            other if typed.len() < SECRET_LEN_MAX => typed.push(other),
            _ => return Err(Failure::said("the secret is longer than 4096 bytes", "")),
        }
    }
    drop(silent);
    if typed.is_empty() {
        return Err(Failure::no_secret("nothing was typed", ""));
    }
    Ok(Secret::new(typed))
}

/// Takes the last character back: in UTF-8 that may be several bytes.
fn erase(typed: &mut Vec<u8>) {
    while let Some(byte) = typed.pop() {
        if byte & 0xc0 != 0x80 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn each_line_is_one_secret() {
        let mut lines = Lines::new(&b"first\nsecond"[..]);
        assert_eq!(lines.next().unwrap().as_bytes(), b"first");
        assert_eq!(lines.next().unwrap().as_bytes(), b"second");
        assert!(lines.next().is_err());
    }

    #[test]
    fn too_long_is_refused() {
        assert_eq!(Lines::new(&[b'x'; SECRET_LEN_MAX][..]).next().unwrap().as_bytes().len(), SECRET_LEN_MAX);
        assert!(Lines::new(&[b'x'; SECRET_LEN_MAX + 1][..]).next().is_err());
    }

    #[test]
    fn backspace_takes_a_whole_character() {
        let mut typed = "a€".as_bytes().to_vec();
        erase(&mut typed);
        assert_eq!(typed, b"a");
        erase(&mut typed);
        erase(&mut typed);
        assert!(typed.is_empty());
    }
}
