//! What a server says of a resource or a folder (RFC 4918, 14.16), read strictly: what is not whole is an error. Pure.

use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};

/// One `response` of a multistatus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it was sent, percent-encoded, with or without scheme and host.
    pub(crate) href: String,
    /// The server could not say anything of this resource, and why.
    pub(crate) failed: Option<u16>,
    pub(crate) properties: Properties,
}

/// What was asked of a resource. What the server did not tell is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) collection: bool,
    pub(crate) len: Option<u64>,
    pub(crate) modified: Option<String>,
    /// Of RFC 4331. Servers write a negative number for "without bound".
    pub(crate) quota_free: Option<u64>,
    pub(crate) quota_used: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Multistatus,
    Response,
    Href,
    Status,
    Propstat,
    Prop,
    ResourceType,
    Collection,
    Len,
    Modified,
    QuotaFree,
    QuotaUsed,
    Other,
}

/// Reads a whole multistatus; the error says what is wrong with it.
pub(crate) fn parse(body: &[u8]) -> Result<Vec<Entry>, String> {
    let mut reader = NsReader::from_reader(body);
    reader.config_mut().expand_empty_elements = true;
    let mut parser = Parser::default();
    loop {
        let (namespace, event) = reader.read_resolved_event().map_err(|error| error.to_string())?;
        let ours = matches!(namespace, ResolveResult::Bound(Namespace(b"DAV:")));
        match event {
            Event::Start(start) => parser.open(element(ours, start.local_name().as_ref()))?,
            Event::End(_) => parser.close(),
            Event::Text(text) => parser.text(&text.decode().map_err(|error| error.to_string())?)?,
            Event::CData(text) => parser.text(&text.decode().map_err(|error| error.to_string())?)?,
            Event::GeneralRef(name) => parser.text(&resolved(&name)?)?,
            // definitions can blow up a few bytes to gigabytes; no server sends any
            Event::DocType(_) => return Err("it has a document type".to_owned()),
            Event::Eof => return parser.finish(),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

fn element(ours: bool, name: &[u8]) -> Element {
    match name {
        _ if !ours => Element::Other,
        b"multistatus" => Element::Multistatus,
        b"response" => Element::Response,
        b"href" => Element::Href,
        b"status" => Element::Status,
        b"propstat" => Element::Propstat,
        b"prop" => Element::Prop,
        b"resourcetype" => Element::ResourceType,
        b"collection" => Element::Collection,
        b"getcontentlength" => Element::Len,
        b"getlastmodified" => Element::Modified,
        b"quota-available-bytes" => Element::QuotaFree,
        b"quota-used-bytes" => Element::QuotaUsed,
        _ => Element::Other,
    }
}

fn resolved(name: &quick_xml::events::BytesRef<'_>) -> Result<String, String> {
    if let Some(character) = name.resolve_char_ref().map_err(|error| error.to_string())? {
        return Ok(character.to_string());
    }
    let name = name.decode().map_err(|error| error.to_string())?;
    let known = quick_xml::escape::resolve_predefined_entity(&name);
    known.map(str::to_owned).ok_or_else(|| "it has an entity that is not defined".to_owned())
}

#[derive(Default)]
struct Parser {
    stack: Vec<Element>,
    entries: Vec<Entry>,
    entry: Entry,
    /// Of the current `propstat`: they count once its status is known to be a good one.
    properties: Properties,
    status: Option<u16>,
    text: String,
    ended: bool,
}

impl Parser {
    fn open(&mut self, element: Element) -> Result<(), String> {
        if self.stack.is_empty() && (self.ended || element != Element::Multistatus) {
            return Err("it is not one multistatus".to_owned());
        }
        match element {
            Element::Response => self.entry = Entry::default(),
            Element::Propstat => {
                self.properties = Properties::default();
                self.status = None;
            }
            _ => {}
        }
        self.text.clear();
        self.stack.push(element);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), String> {
        if self.stack.is_empty() && !text.trim().is_empty() {
            return Err("there is text beside the multistatus".to_owned());
        }
        self.text.push_str(text);
        Ok(())
    }

    fn close(&mut self) {
        use Element as E;
        let text = self.text.trim();
        match self.stack[..] {
            [.., E::Response, E::Href] => text.clone_into(&mut self.entry.href),
            [.., E::Response, E::Status] => self.entry.failed = status(text).filter(|code| *code >= 300),
            [.., E::Propstat, E::Status] => self.status = status(text),
            [.., E::Prop, E::ResourceType, E::Collection] => self.properties.collection = true,
            [.., E::Prop, E::Len] => self.properties.len = text.parse().ok(),
            [.., E::Prop, E::Modified] => self.properties.modified = Some(text.to_owned()),
            [.., E::Prop, E::QuotaFree] => self.properties.quota_free = text.parse().ok(),
            [.., E::Prop, E::QuotaUsed] => self.properties.quota_used = text.parse().ok(),
            [.., E::Response, E::Propstat] => self.end_of_propstat(),
            [E::Multistatus, E::Response] => self.entries.push(std::mem::take(&mut self.entry)),
            [_] => self.ended = true,
            _ => {}
        }
        self.text.clear();
        self.stack.pop();
    }

    /// A server that has some of what was asked for says so in two parts: what it has, and a 404 for the rest.
    fn end_of_propstat(&mut self) {
        let properties = std::mem::take(&mut self.properties);
        match self.status {
            Some(200..=299) => self.entry.properties = properties,
            Some(code @ 500..) => self.entry.failed = Some(code),
            _ => {}
        }
    }

    fn finish(self) -> Result<Vec<Entry>, String> {
        if !self.stack.is_empty() || !self.ended {
            return Err("it breaks off".to_owned());
        }
        if self.entries.iter().any(|entry| entry.href.is_empty()) {
            return Err("an entry has no name".to_owned());
        }
        Ok(self.entries)
    }
}

/// The number in `HTTP/1.1 200 OK`.
fn status(text: &str) -> Option<u16> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const WHOLE: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<d:multistatus xmlns:d="DAV:" xmlns:x="urn:other">
 <d:response><d:href>/a%20b/</d:href>
  <d:propstat><d:prop><d:resourcetype><d:collection/></d:resourcetype><x:getcontentlength>9</x:getcontentlength>
   <d:quota-available-bytes>-3</d:quota-available-bytes><d:quota-used-bytes>12</d:quota-used-bytes></d:prop>
   <d:status>HTTP/1.1 200 OK</d:status></d:propstat>
  <d:propstat><d:prop><d:getcontentlength/></d:prop><d:status>HTTP/1.1 404 Not Found</d:status></d:propstat>
 </d:response>
 <d:response><d:href>/a%20b/c&amp;d&#x41;</d:href>
  <d:propstat><d:prop><d:resourcetype/><d:getcontentlength>42</d:getcontentlength></d:prop>
   <d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>
</d:multistatus>
"#;

    #[track_caller]
    fn refuse(text: &str, reason: &str) {
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn files_folders_and_quota_are_read() {
        let entries = parse(WHOLE.as_bytes()).unwrap();
        let folder = Properties { collection: true, quota_used: Some(12), ..Properties::default() };
        assert_eq!(entries[0], Entry { href: "/a%20b/".into(), failed: None, properties: folder });
        let file = Properties { len: Some(42), ..Properties::default() };
        assert_eq!(entries[1], Entry { href: "/a%20b/c&dA".into(), failed: None, properties: file });
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn the_prefix_of_a_namespace_is_the_servers_choice() {
        let plain = WHOLE.replace("<d:", "<").replace("</d:", "</").replace("xmlns:d", "xmlns");
        assert_eq!(parse(plain.as_bytes()), parse(WHOLE.as_bytes()));
        let foreign = WHOLE.replace("\"DAV:\"", "\"urn:other\"");
        refuse(&foreign, "not one multistatus");
    }

    /// Cut at every byte: no part of a listing passes for a listing.
    #[test]
    fn a_listing_that_breaks_off_anywhere_is_an_error() {
        let whole = WHOLE.trim_end();
        for end in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..end]).is_err(), "cut at {end}: {}", &whole[..end]);
        }
    }

    #[test]
    fn what_is_not_one_multistatus_is_refused() {
        refuse("", "breaks off");
        refuse("<html><body>Login</body></html>", "not one multistatus");
        refuse(&format!("{WHOLE}<d:multistatus xmlns:d=\"DAV:\"/>"), "not one multistatus");
        refuse(&format!("{WHOLE}trailing"), "beside");
        refuse("<!DOCTYPE x [<!ENTITY a \"b\">]><multistatus xmlns=\"DAV:\"/>", "document type");
        refuse("<multistatus xmlns=\"DAV:\"><response><href>&a;</href></response></multistatus>", "entity");
        refuse("<multistatus xmlns=\"DAV:\"><response></response></multistatus>", "no name");
        assert!(parse(b"<multistatus xmlns=\"DAV:\"><a></b></multistatus>").is_err());
    }

    #[test]
    fn a_server_that_cannot_say_anything_of_a_resource_is_heard() {
        let failed = WHOLE.replace("HTTP/1.1 200 OK", "HTTP/1.1 500 Internal Server Error");
        assert!(parse(failed.as_bytes()).unwrap().iter().all(|entry| entry.failed == Some(500)));
        let failed = "<multistatus xmlns=\"DAV:\"><response><href>/a</href><status>HTTP/1.1 403 No</status>\
                      </response></multistatus>";
        assert_eq!(parse(failed.as_bytes()).unwrap()[0].failed, Some(403));
    }
}
