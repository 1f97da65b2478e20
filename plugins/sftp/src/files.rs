//! What an SFTP server can do, call by call.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chatkeep_store::StoreError;

use crate::errors::Failure;
use crate::session::{Session, Ticket};
use crate::wire::{
    Attributes, BLOCK_LEN, Extension, Mode, Name, Reply, Request, STATUS_EOF, STATUS_NO_SUCH_FILE, STATUS_OK,
    parse_statvfs,
};

/// Blocks that are on their way at once: 2 MiB, what OpenSSH lets a channel carry.
const IN_FLIGHT: usize = 64;

pub(crate) type Done<T> = Result<T, Failure>;

/// A file or folder that is open at the server, and closed when this is dropped.
pub(crate) struct Handle {
    session: Arc<Session>,
    token: Bytes,
    open: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.open {
            self.session.mention(&Request::close(&self.token));
        }
    }
}

pub(crate) async fn open(session: &Arc<Session>, path: &str, mode: Mode) -> Done<Handle> {
    handle(session, &Request::open(path, mode)).await
}

async fn handle(session: &Arc<Session>, request: &Request) -> Done<Handle> {
    match session.ask(request).await? {
        Reply::Handle(token) => Ok(Handle { session: Arc::clone(session), token, open: true }),
        other => Err(refused(other)),
    }
}

impl Handle {
    /// Writes all of a new file, waits until it is on the disk where the server can say so, and says how long it is then.
    pub(crate) async fn write_all(mut self, body: &Bytes) -> Done<u64> {
        let session = Arc::clone(&self.session);
        let mut in_flight = VecDeque::new();
        for (index, block) in body.chunks(BLOCK_LEN).enumerate() {
            if in_flight.len() == IN_FLIGHT {
                done(&session, in_flight.pop_front()).await?;
            }
            let request = Request::write(&self.token, (index * BLOCK_LEN) as u64, block);
            in_flight.push_back(session.send(&request).await?);
        }
        while !in_flight.is_empty() {
            done(&session, in_flight.pop_front()).await?;
        }
        if session.can(Extension::Fsync) {
            ok(session.ask(&Request::fsync(&self.token)).await?)?;
        }
        let len = self.attributes().await?.len;
        self.open = false;
        ok(session.ask(&Request::close(&self.token)).await?)?;
        len.ok_or_else(|| {
            Failure::Store(StoreError::Transient("the server does not say how long a file is".into()))
        })
    }

    /// Waits until it is on the disk. A server that cannot do that has done what it can.
    pub(crate) async fn sync(&self) -> Done<()> {
        match ok(self.session.ask(&Request::fsync(&self.token)).await?) {
            Err(Failure::Store(error)) => Err(Failure::Store(error)),
            _ => Ok(()),
        }
    }

    pub(crate) async fn attributes(&self) -> Done<Attributes> {
        attributes(self.session.ask(&Request::fstat(&self.token)).await?)
    }

    /// Reads a part of a file; one that is not there any more is an error.
    pub(crate) async fn read(&self, range: Range<u64>) -> Done<Bytes> {
        let mut body = BytesMut::with_capacity((range.end - range.start).min(64 << 20) as usize);
        let mut in_flight: VecDeque<(u64, Ticket)> = VecDeque::new();
        let mut next = range.start;
        loop {
            while next < range.end && in_flight.len() < IN_FLIGHT {
                let end = range.end.min(next + BLOCK_LEN as u64);
                let request = Request::read(&self.token, next, (end - next) as u32);
                in_flight.push_back((end, self.session.send(&request).await?));
                next = end;
            }
            let Some((end, ticket)) = in_flight.pop_front() else { return Ok(body.freeze()) };
            self.append(self.session.wait(ticket).await?, &mut body)?;
            // a server may send less than it was asked for
            while range.start + (body.len() as u64) < end {
                let at = range.start + body.len() as u64;
                let request = Request::read(&self.token, at, (end - at) as u32);
                self.append(self.session.ask(&request).await?, &mut body)?;
            }
            if range.start + body.len() as u64 != end {
                return Err(broken("the server sends more than it was asked for"));
            }
        }
    }

    #[expect(clippy::unused_self, reason = "it belongs to reading a file that is open")]
    fn append(&self, reply: Reply, body: &mut BytesMut) -> Done<()> {
        match reply {
            Reply::Data(data) if data.is_empty() => Err(broken("the server sends nothing and no end")),
            Reply::Data(data) => {
                body.extend_from_slice(&data);
                Ok(())
            }
            Reply::Status { code: STATUS_EOF, .. } => {
                Err(broken("the file became shorter while it was read"))
            }
            other => Err(refused(other)),
        }
    }
}

async fn done(session: &Session, ticket: Option<Ticket>) -> Done<()> {
    match ticket {
        Some(ticket) => ok(session.wait(ticket).await?),
        None => Ok(()),
    }
}

/// What lies in a folder, but for itself and the one above; `None`: there is no such folder.
pub(crate) async fn read_folder(session: &Arc<Session>, path: &str) -> Done<Option<Vec<Name>>> {
    let folder = match handle(session, &Request::opendir(path)).await {
        Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => return Ok(None),
        opened => opened?,
    };
    let mut found = Vec::new();
    loop {
        match session.ask(&Request::readdir(&folder.token)).await? {
            Reply::Names(names) if names.is_empty() => return Err(broken("a folder goes on and on")),
            Reply::Names(names) => {
                found.extend(names.into_iter().filter(|name| !matches!(&name.name[..], b"." | b"..")));
            }
            // the end, and the only way to tell a whole folder from a part of it
            Reply::Status { code: STATUS_EOF, .. } => return Ok(Some(found)),
            other => return Err(refused(other)),
        }
    }
}

/// What a path stands for, links not followed.
pub(crate) async fn lstat(session: &Session, path: &str) -> Done<Option<Attributes>> {
    found(session.ask(&Request::lstat(path)).await?)
}

/// What a path stands for, links followed.
pub(crate) async fn stat(session: &Session, path: &str) -> Done<Option<Attributes>> {
    found(session.ask(&Request::stat(path)).await?)
}

/// Asks for something that is answered with "done".
pub(crate) async fn carry_out(session: &Session, request: &Request) -> Done<()> {
    ok(session.ask(request).await?)
}

/// The path of a file without links and dots.
pub(crate) async fn real_path(session: &Session, path: &str) -> Done<String> {
    match session.ask(&Request::realpath(path)).await? {
        Reply::Names(names) => match names.first().map(|name| String::from_utf8(name.name.to_vec())) {
            Some(Ok(path)) => Ok(path),
            _ => Err(broken("the server does not say where the home folder is")),
        },
        other => Err(refused(other)),
    }
}

/// Free room and all room, in bytes.
pub(crate) async fn room(session: &Session, path: &str) -> Done<(u64, u64)> {
    match session.ask(&Request::statvfs(path)).await? {
        Reply::Extended(reply) => {
            parse_statvfs(reply).ok_or_else(|| broken("the server's room cannot be read"))
        }
        other => Err(refused(other)),
    }
}

fn ok(reply: Reply) -> Done<()> {
    match reply {
        Reply::Status { code: STATUS_OK, .. } => Ok(()),
        other => Err(refused(other)),
    }
}

fn attributes(reply: Reply) -> Done<Attributes> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        other => Err(refused(other)),
    }
}

fn found(reply: Reply) -> Done<Option<Attributes>> {
    match attributes(reply) {
        Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => Ok(None),
        other => other.map(Some),
    }
}

fn refused(reply: Reply) -> Failure {
    match reply {
        Reply::Status { code, message } if code != STATUS_OK => Failure::Refused { code, message },
        _ => broken("the server answers something else than it was asked"),
    }
}

fn broken(what: &str) -> Failure {
    Failure::Store(StoreError::Transient(what.to_owned().into()))
}
