//! The XML in `ipc/xml` is the contract. What is served must be the same, to the names of arguments.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use chatkeep_ipc::Settings;
use chatkeep_ipc::names::ROOT;
use common::{client, start};
use zbus::fdo::IntrospectableProxy;

const PREFIX: &str = "io.github.chatkeep.Chatkeep1.";

/// One start tag: its name and attributes.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
    closed: bool,
}

impl Tag {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Just enough XML for introspection data: tags and attributes; comments, declarations and text are skipped.
fn tags(xml: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = &comment[comment.find("-->").expect("a comment ends") + 3..];
            continue;
        }
        let end = rest.find('>').expect("a tag ends");
        let (tag, after) = rest.split_at(end);
        rest = &after[1..];
        if tag.starts_with(['!', '?']) {
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/').trim();
        let (name, mut text) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let mut attributes = Vec::new();
        while let Some((key, value)) = text.split_once('=') {
            let quote = value.chars().next().unwrap();
            let (value, after) = value[1..].split_once(quote).unwrap();
            attributes.push((key.trim().to_owned(), value.to_owned()));
            text = after;
        }
        tags.push(Tag { name: name.to_owned(), attributes, closed });
    }
    tags
}

/// One line for everything that a caller can depend on.
fn contract(xml: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let (mut interface, mut member, mut arguments) = (String::new(), String::new(), 0);
    let mut kind = String::new();
    for tag in tags(xml) {
        match tag.name.as_str() {
            "interface" => tag.get("name").unwrap().clone_into(&mut interface),
            _ if !interface.starts_with(PREFIX) => {}
            "method" | "signal" | "property" => {
                kind.clone_from(&tag.name);
                member = format!("{}.{}", interface.strip_prefix(PREFIX).unwrap(), tag.get("name").unwrap());
                arguments = 0;
                let what = [tag.get("type"), tag.get("access")].map(Option::unwrap_or_default).join(" ");
                lines.insert(format!("{kind} {member} {what}").trim_end().to_owned());
            }
            "arg" => {
                arguments += 1;
                let default = if kind == "signal" { "out" } else { "in" };
                let direction = tag.get("direction").unwrap_or(default);
                let (name, signature) = (tag.get("name").unwrap_or("?"), tag.get("type").unwrap());
                lines.insert(format!("{kind} {member} argument {arguments}: {direction} {name} {signature}"));
            }
            "annotation" if tag.get("name") == Some("org.freedesktop.DBus.Property.EmitsChangedSignal") => {
                lines.insert(format!("{kind} {member} emits {}", tag.get("value").unwrap()));
            }
            _ => assert!(tag.closed || tag.name.starts_with('/') || tag.name == "annotation", "{}", tag.name),
        }
    }
    lines
}

#[tokio::test]
async fn what_is_served_is_what_is_written() {
    let (server, _) = start(Settings::default());
    let id = server.new_job_id();
    server.upsert_job(&id, chatkeep_ipc::JobState::default());
    let (connection, _peer) = client(&server).await;
    let mut served = BTreeSet::new();
    let job = format!("job/{id}");
    for object in ["", "database/notes", "store/home", "vault/one", &job] {
        let path = format!("{ROOT}/{object}");
        let builder = IntrospectableProxy::builder(&connection).path(path.trim_end_matches('/')).unwrap();
        let proxy = builder.destination(chatkeep_ipc::names::BUS_NAME).unwrap().build().await.unwrap();
        served.extend(contract(&proxy.introspect().await.unwrap()));
    }

    let mut written = BTreeSet::new();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("xml")).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let xml = std::fs::read_to_string(&file).unwrap();
        assert!(
            xml.contains(&format!("<interface name=\"{name}\">")),
            "{} holds its interface",
            file.display()
        );
        written.extend(contract(&xml));
    }
    let missing: Vec<_> = written.difference(&served).collect();
    let unwritten: Vec<_> = served.difference(&written).collect();
    assert!(
        missing.is_empty() && unwritten.is_empty(),
        "not served: {missing:#?}\nnot written: {unwritten:#?}"
    );
    assert!(written.len() > 200, "the parser read {} lines only", written.len());
}

#[test]
fn the_parser_sees_differences() {
    let interface =
        |inside: &str| contract(&format!("<node><interface name=\"{PREFIX}X\">{inside}</interface></node>"));
    let one =
        interface("<!-- <b> --><method name=\"A\"><arg name=\"b\" type=\"s\" direction=\"in\"/></method>");
    assert_eq!(one, interface("<method name='A'><arg type='s' name='b'/></method>"));
    assert_ne!(one, interface("<method name=\"A\"><arg name=\"c\" type=\"s\"/></method>"));
    assert_ne!(one, interface("<method name=\"A\"><arg name=\"b\" type=\"h\"/></method>"));
    assert_ne!(one, interface("<method name=\"A\"/>"));
}
