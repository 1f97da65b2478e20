//! Version 3 of the protocol (draft-ietf-secsh-filexfer-02) as OpenSSH speaks it, as far as it is used here. Pure.

use bytes::{Buf as _, Bytes};

/// Longest packet, in bytes: OpenSSH's own limit.
pub(crate) const PACKET_LEN_MAX: usize = 256 << 10;

/// How much is read and written at once. Every server has to take packets of 34 000 bytes (section 3).
pub(crate) const BLOCK_LEN: usize = 32 << 10;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

const EXTENDED: u8 = 200;

pub(crate) const STATUS_OK: u32 = 0;
pub(crate) const STATUS_EOF: u32 = 1;
pub(crate) const STATUS_NO_SUCH_FILE: u32 = 2;
pub(crate) const STATUS_PERMISSION_DENIED: u32 = 3;
pub(crate) const STATUS_UNSUPPORTED: u32 = 8;

const ATTR_SIZE: u32 = 1;
const ATTR_OWNER: u32 = 2;
const ATTR_PERMISSIONS: u32 = 4;
const ATTR_TIMES: u32 = 8;
const ATTR_EXTENDED: u32 = 0x8000_0000;

/// A request without its number.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    kind: u8,
    payload: Vec<u8>,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    /// It must not be there.
    Create,
}

impl Request {
    fn new(kind: u8) -> Self {
        Self { kind, payload: Vec::new() }
    }

    fn number(mut self, number: u32) -> Self {
        self.payload.extend(number.to_be_bytes());
        self
    }

    fn long(mut self, number: u64) -> Self {
        self.payload.extend(number.to_be_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        let mut this = self.number(bytes.len() as u32);
        this.payload.extend_from_slice(bytes);
        this
    }

    pub(crate) fn open(path: &str, mode: Mode) -> Self {
        // READ; or WRITE, CREATE and EXCLUSIVE, for the owner only
        let request = Self::new(3).bytes(path.as_bytes());
        match mode {
            Mode::Read => request.number(0x01).number(0),
            Mode::Create => request.number(0x02 | 0x08 | 0x20).number(ATTR_PERMISSIONS).number(0o600),
        }
    }

    pub(crate) fn close(handle: &[u8]) -> Self {
        Self::new(4).bytes(handle)
    }

    pub(crate) fn read(handle: &[u8], offset: u64, len: u32) -> Self {
        Self::new(5).bytes(handle).long(offset).number(len)
    }

    pub(crate) fn write(handle: &[u8], offset: u64, data: &[u8]) -> Self {
        Self::new(6).bytes(handle).long(offset).bytes(data)
    }

    pub(crate) fn lstat(path: &str) -> Self {
        Self::new(7).bytes(path.as_bytes())
    }

    pub(crate) fn fstat(handle: &[u8]) -> Self {
        Self::new(8).bytes(handle)
    }

    pub(crate) fn opendir(path: &str) -> Self {
        Self::new(11).bytes(path.as_bytes())
    }

    pub(crate) fn readdir(handle: &[u8]) -> Self {
        Self::new(12).bytes(handle)
    }

    pub(crate) fn remove(path: &str) -> Self {
        Self::new(13).bytes(path.as_bytes())
    }

    pub(crate) fn mkdir(path: &str) -> Self {
        Self::new(14).bytes(path.as_bytes()).number(ATTR_PERMISSIONS).number(0o700)
    }

    pub(crate) fn realpath(path: &str) -> Self {
        Self::new(16).bytes(path.as_bytes())
    }

    /// Follows links.
    pub(crate) fn stat(path: &str) -> Self {
        Self::new(17).bytes(path.as_bytes())
    }

    pub(crate) fn rename(from: &str, to: &str) -> Self {
        Self::new(18).bytes(from.as_bytes()).bytes(to.as_bytes())
    }

    fn extended(extension: Extension) -> Self {
        Self::new(EXTENDED).bytes(extension.name().as_bytes())
    }

    pub(crate) fn posix_rename(from: &str, to: &str) -> Self {
        Self::extended(Extension::PosixRename).bytes(from.as_bytes()).bytes(to.as_bytes())
    }

    pub(crate) fn hardlink(from: &str, to: &str) -> Self {
        Self::extended(Extension::Hardlink).bytes(from.as_bytes()).bytes(to.as_bytes())
    }

    pub(crate) fn fsync(handle: &[u8]) -> Self {
        Self::extended(Extension::Fsync).bytes(handle)
    }

    pub(crate) fn statvfs(path: &str) -> Self {
        Self::extended(Extension::Statvfs).bytes(path.as_bytes())
    }

    /// The packet.
    pub(crate) fn packet(&self, number: u32) -> Bytes {
        let mut packet = Vec::with_capacity(self.payload.len() + 9);
        packet.extend((self.payload.len() as u32 + 5).to_be_bytes());
        packet.push(self.kind);
        packet.extend(number.to_be_bytes());
        packet.extend_from_slice(&self.payload);
        packet.into()
    }
}

/// The first packet of a client.
pub(crate) fn init() -> [u8; 9] {
    [0, 0, 0, 5, INIT, 0, 0, 0, 3]
}

/// What OpenSSH added to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extension {
    PosixRename,
    Hardlink,
    Fsync,
    Statvfs,
}

impl Extension {
    const ALL: [Self; 4] = [Self::PosixRename, Self::Hardlink, Self::Fsync, Self::Statvfs];

    fn name(self) -> &'static str {
        match self {
            Self::PosixRename => "posix-rename@openssh.com",
            Self::Hardlink => "hardlink@openssh.com",
            Self::Fsync => "fsync@openssh.com",
            Self::Statvfs => "statvfs@openssh.com",
        }
    }

    /// The version whose arguments are the ones written above.
    fn version(self) -> &'static [u8] {
        match self {
            Self::Statvfs => b"2",
            _ => b"1",
        }
    }
}

/// Reads the first packet of a server, without its length: what it can do beside version 3.
pub(crate) fn parse_version(packet: Bytes) -> Result<Vec<Extension>, &'static str> {
    let mut reader = Reader(packet);
    if reader.byte()? != VERSION {
        return Err("the first packet is no version");
    }
    if reader.number()? < 3 {
        return Err("its version of SFTP is older than 3");
    }
    let mut extensions = Vec::new();
    while !reader.0.is_empty() {
        let (name, version) = (reader.bytes()?, reader.bytes()?);
        let known = Extension::ALL.into_iter().find(|extension| extension.name().as_bytes() == name);
        extensions.extend(known.filter(|extension| extension.version() == version));
    }
    Ok(extensions)
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Status { code: u32, message: String },
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<Name>),
    Attributes(Attributes),
    Extended(Bytes),
}

/// A name in a folder. It can be any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: Bytes,
    pub(crate) attributes: Attributes,
}

/// What a server says of a file, as far as it says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) len: Option<u64>,
    pub(crate) permissions: Option<u32>,
    /// In seconds since 1970, by the server's clock.
    pub(crate) modified_s: Option<u32>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    File,
    Folder,
    Other,
}

impl Attributes {
    /// `None`: the server did not say.
    pub(crate) fn kind(&self) -> Option<FileKind> {
        Some(match self.permissions? & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Folder,
            _ => FileKind::Other,
        })
    }
}

/// Reads an answer, without its length: the number of the request, and the answer to it.
pub(crate) fn parse_reply(packet: Bytes) -> Result<(u32, Reply), &'static str> {
    let mut reader = Reader(packet);
    let kind = reader.byte()?;
    let number = reader.number()?;
    let reply = match kind {
        STATUS => {
            let code = reader.number()?;
            // servers of before version 3 leave the text out
            let message = reader.bytes().map(|text| String::from_utf8_lossy(&text).into_owned());
            Reply::Status { code, message: message.unwrap_or_default() }
        }
        HANDLE => Reply::Handle(reader.bytes()?),
        DATA => Reply::Data(reader.bytes()?),
        NAME => {
            let count = reader.number()?;
            let mut names = Vec::new();
            for _ in 0..count {
                let name = reader.bytes()?;
                // for people, as `ls -l` shows it
                reader.bytes()?;
                names.push(Name { name, attributes: reader.attributes()? });
            }
            Reply::Names(names)
        }
        ATTRS => Reply::Attributes(reader.attributes()?),
        EXTENDED_REPLY => Reply::Extended(reader.0),
        _ => return Err("an answer is of a kind that does not exist"),
    };
    Ok((number, reply))
}

/// Free room and all room in bytes, of an answer to `statvfs`.
pub(crate) fn parse_statvfs(mut reply: Bytes) -> Option<(u64, u64)> {
    if reply.len() < 5 * 8 {
        return None;
    }
    let mut next = || reply.get_u64();
    let (_block, fragment, blocks, _free, available) = (next(), next(), next(), next(), next());
    Some((available.saturating_mul(fragment), blocks.saturating_mul(fragment)))
}

const SHORT: &str = "an answer is shorter than it says";

struct Reader(Bytes);

impl Reader {
    fn byte(&mut self) -> Result<u8, &'static str> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    fn number(&mut self) -> Result<u32, &'static str> {
        self.0.try_get_u32().map_err(|_| SHORT)
    }

    fn long(&mut self) -> Result<u64, &'static str> {
        self.0.try_get_u64().map_err(|_| SHORT)
    }

    fn bytes(&mut self) -> Result<Bytes, &'static str> {
        let len = self.number()? as usize;
        if len > self.0.len() {
            return Err(SHORT);
        }
        Ok(self.0.split_to(len))
    }

    fn attributes(&mut self) -> Result<Attributes, &'static str> {
        let flags = self.number()?;
        let mut attributes = Attributes::default();
        if flags & ATTR_SIZE != 0 {
            attributes.len = Some(self.long()?);
        }
        if flags & ATTR_OWNER != 0 {
            self.long()?;
        }
        if flags & ATTR_PERMISSIONS != 0 {
            attributes.permissions = Some(self.number()?);
        }
        if flags & ATTR_TIMES != 0 {
            self.number()?;
            attributes.modified_s = Some(self.number()?);
        }
        if flags & ATTR_EXTENDED != 0 {
            for _ in 0..self.number()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// As `sftp-server` of OpenSSH 9.2 sends it.
    const VERSION_PACKET: &[u8] = b"\x02\0\0\0\x03\0\0\0\x18posix-rename@openssh.com\0\0\0\x011\
        \0\0\0\x13statvfs@openssh.com\0\0\0\x012\0\0\0\x14hardlink@openssh.com\0\0\0\x011\0\0\0\x11fsync@openssh.com\0\0\0\x011";

    #[test]
    fn a_version_names_what_the_server_can_do() {
        use Extension as E;
        let extensions = parse_version(Bytes::from_static(VERSION_PACKET)).unwrap();
        assert_eq!(extensions, [E::PosixRename, E::Statvfs, E::Hardlink, E::Fsync]);
        assert_eq!(parse_version(Bytes::from_static(b"\x02\0\0\0\x03")).unwrap(), []);
        assert!(parse_version(Bytes::from_static(b"\x02\0\0\0\x02")).is_err());
        assert!(parse_version(Bytes::from_static(b"Welcome!")).is_err());
        let other = b"\x02\0\0\0\x03\0\0\0\x13statvfs@openssh.com\0\0\0\x013";
        assert_eq!(
            parse_version(Bytes::from_static(other)).unwrap(),
            [],
            "of a version that is not known here"
        );
    }

    #[test]
    fn a_request_is_length_kind_number_and_arguments() {
        let packet = Request::read(b"h", 5, 6).packet(7);
        assert_eq!(packet, b"\0\0\0\x16\x05\0\0\0\x07\0\0\0\x01h\0\0\0\0\0\0\0\x05\0\0\0\x06".as_slice());
        let packet = Request::hardlink("/a", "/b").packet(1);
        assert_eq!(
            packet,
            b"\0\0\0\x29\xc8\0\0\0\x01\0\0\0\x14hardlink@openssh.com\0\0\0\x02/a\0\0\0\x02/b".as_slice()
        );
    }

    const NAMES: &[u8] =
        b"\x68\0\0\0\x09\0\0\0\x01\0\0\0\x01a\0\0\0\x02-r\0\0\0\x0d\0\0\0\0\0\0\0\x2a\0\0\x81\x80\
        \0\0\0\x01\0\0\0\x02";

    #[test]
    fn answers_are_read() {
        let attributes = Attributes { len: Some(42), permissions: Some(0o100_600), modified_s: Some(2) };
        assert_eq!(attributes.kind(), Some(FileKind::File));
        let name = Name { name: Bytes::from_static(b"a"), attributes };
        assert_eq!(parse_reply(Bytes::from_static(NAMES)).unwrap(), (9, Reply::Names(vec![name])));
        let status = b"\x65\0\0\0\x01\0\0\0\x04\0\0\0\x07Failure\0\0\0\0";
        let reply = Reply::Status { code: 4, message: "Failure".to_owned() };
        assert_eq!(parse_reply(Bytes::from_static(status)).unwrap(), (1, reply));
    }

    /// Every answer cut at every byte, and with any count: an error, not a panic or a gigabyte.
    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        for end in 0..NAMES.len() {
            assert!(parse_reply(Bytes::from_static(&NAMES[..end])).is_err(), "cut at {end}");
        }
        for end in 1..VERSION_PACKET.len() {
            let _ = parse_version(Bytes::from_static(&VERSION_PACKET[..end]));
        }
        let mut many = NAMES.to_vec();
        many[5..9].copy_from_slice(&[0xff; 4]);
        assert!(parse_reply(many.into()).is_err());
        assert!(parse_reply(Bytes::from_static(b"\x67\0\0\0\x01\xff\xff\xff\xff")).is_err());
        assert!(parse_reply(Bytes::from_static(b"\x01\0\0\0\x01")).is_err());
    }

    #[test]
    fn room_is_counted_in_fragments() {
        let numbers = [4096_u64, 1024, 1000, 600, 500, 0, 0, 0, 0, 0, 255];
        let reply: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        assert_eq!(parse_statvfs(reply.into()), Some((512_000, 1_024_000)));
        assert_eq!(parse_statvfs(Bytes::new()), None);
    }
}
