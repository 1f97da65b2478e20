//! The arrows of ARCHITECTURE.md: which crate may import which, and what must not be below which.
//!
//! Each rule is a row of a table with its reason. A new crate needs a row in [`MAP`].

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Where a crate is and what it may import of ours.
struct Place {
    name: &'static str,
    folder: &'static str,
    /// In the program.
    imports: &'static [&'static str],
    /// In its tests only, beside `imports`.
    test_imports: &'static [&'static str],
    why: &'static str,
}

/// All that is not a program.
const LIBRARIES: &[&str] = &[
    "chatkeep-format",
    "chatkeep-crypto",
    "chatkeep-planner",
    "chatkeep-sqlite",
    "chatkeep-attachments",
    "chatkeep-store",
    "chatkeep-store-host",
    "chatkeep-store-local",
    "chatkeep-ipc",
    "chatkeep-vault-protocol",
    "chatkeep-vault-client",
];

/// Everything of ours.
const ALL: &[&str] = &[
    "chatkeep-format",
    "chatkeep-crypto",
    "chatkeep-planner",
    "chatkeep-sqlite",
    "chatkeep-attachments",
    "chatkeep-store",
    "chatkeep-store-cloud",
    "chatkeep-store-dav",
    "chatkeep-store-host",
    "chatkeep-store-local",
    "chatkeep-store-program",
    "chatkeep-store-rclone",
    "chatkeep-store-rig",
    "chatkeep-store-serve",
    "chatkeep-store-sftp",
    "chatkeep-ipc",
    "chatkeep-vault-protocol",
    "chatkeep-vault-client",
    "chatkeep-vault-line",
    "chatkeep-vault-courier",
    "chatkeep-vault-server",
    "chatkeep-vault-rig",
    "chatkeepd",
    "chatkeep",
];

const FORMAT: &[&str] = &["chatkeep-format"];
const STORE: &[&str] = &["chatkeep-store"];
const RIG: &[&str] = &["chatkeep-store-rig"];
const PROTOCOL: &[&str] = &["chatkeep-vault-protocol"];

#[rustfmt::skip]
const MAP: &[Place] = &[
    Place { name: "chatkeep-format", folder: "format", imports: &[], test_imports: &[], why: "a leaf: what bytes mean" },
    Place { name: "chatkeep-crypto", folder: "crypto", imports: FORMAT, test_imports: &[], why: "seals and opens what the format says" },
    Place { name: "chatkeep-planner", folder: "planner", imports: FORMAT, test_imports: &[], why: "decides; others act" },
    Place { name: "chatkeep-sqlite", folder: "sqlite", imports: &[], test_imports: &[], why: "a leaf: one database, no idea of archives" },
    Place { name: "chatkeep-attachments", folder: "attachments", imports: &[], test_imports: &[], why: "a leaf: one folder of files, no idea of archives" },
    Place { name: "chatkeep-store", folder: "plugins/store", imports: &[], test_imports: &[], why: "a leaf: the contract" },
    Place { name: "chatkeep-store-local", folder: "plugins/local", imports: STORE, test_imports: &[], why: "a store sees ciphertext: it must not be able to do more" },
    Place { name: "chatkeep-store-host", folder: "plugins/host", imports: STORE, test_imports: &["chatkeep-store-serve", "chatkeep-store-local"], why: "talks to plugins over a socket: it needs none of them" },
    Place { name: "chatkeep-store-serve", folder: "plugins/serve", imports: STORE, test_imports: &[], why: "the other end of that socket" },
    Place { name: "chatkeep-store-cloud", folder: "plugins/cloud", imports: STORE, test_imports: RIG, why: "a store sees ciphertext: it must not be able to do more" },
    Place { name: "chatkeep-store-dav", folder: "plugins/dav", imports: STORE, test_imports: RIG, why: "the same" },
    Place { name: "chatkeep-store-sftp", folder: "plugins/sftp", imports: STORE, test_imports: RIG, why: "the same" },
    Place { name: "chatkeep-store-rclone", folder: "plugins/rclone", imports: STORE, test_imports: RIG, why: "the same" },
    Place { name: "chatkeep-store-program", folder: "plugins/program", imports: &["chatkeep-store", "chatkeep-store-serve", "chatkeep-store-cloud", "chatkeep-store-dav", "chatkeep-store-sftp", "chatkeep-store-rclone"], test_imports: RIG, why: "has the network, so it must not have the keys" },
    Place { name: "chatkeep-store-rig", folder: "plugins/rig", imports: &[], test_imports: &[], why: "servers for tests, whatever is tested" },
    Place { name: "chatkeep-ipc", folder: "ipc", imports: &[], test_imports: &[], why: "a leaf: D-Bus and no decisions" },
    Place { name: "chatkeep-vault-protocol", folder: "vault/protocol", imports: &[], test_imports: &[], why: "a leaf: both ends agree on it" },
    Place { name: "chatkeep-vault-client", folder: "vault/client", imports: PROTOCOL, test_imports: &[], why: "knows vaults, not archives" },
    Place { name: "chatkeep-vault-line", folder: "vault/line", imports: PROTOCOL, test_imports: &[], why: "the network to a vault, and nothing to say on it" },
    Place { name: "chatkeep-vault-courier", folder: "vault/courier", imports: &["chatkeep-vault-protocol", "chatkeep-vault-line"], test_imports: &[], why: "has the network, so it must not have the keys" },
    Place { name: "chatkeep-vault-server", folder: "vault/server", imports: &["chatkeep-vault-protocol", "chatkeep-vault-line"], test_imports: &["chatkeep-vault-client", "chatkeep-vault-courier", "chatkeep-vault-rig"], why: "runs elsewhere; reaches its witnesses as the courier reaches vaults; its tests drive it as a device does" },
    Place { name: "chatkeep-vault-rig", folder: "vault/rig", imports: &["chatkeep-vault-server", "chatkeep-vault-client", "chatkeep-vault-courier", "chatkeep-vault-protocol"], test_imports: &[], why: "for tests and measurements: both ends of a vault, and what is between" },
    Place { name: "chatkeepd", folder: "daemon", imports: LIBRARIES, test_imports: &[], why: "a program joins libraries, never programs: above all not the courier, which has TLS" },
    Place { name: "chatkeep", folder: "cli", imports: LIBRARIES, test_imports: &[], why: "talks to the service, is not linked to it" },
    Place { name: "chatkeep-tests", folder: "tests", imports: ALL, test_imports: &[], why: "drives everything" },
    Place { name: "chatkeep-benches", folder: "benches", imports: &[], test_imports: &[], why: "measures programs, ours as the others" },
    Place { name: "chatkeep-bench-store", folder: "benches/store", imports: &["chatkeep-store", "chatkeep-store-cloud", "chatkeep-store-host", "chatkeep-store-rig"], test_imports: &[], why: "measures the way through a plugin beside the library in it" },
    Place { name: "chatkeep-bench-vault", folder: "benches/vault", imports: &["chatkeep-vault-protocol", "chatkeep-vault-line", "chatkeep-vault-server", "chatkeep-vault-rig"], test_imports: &[], why: "measures the vault's program beside the parts it is made of" },
    Place { name: "xtask", folder: "xtask", imports: ALL, test_imports: &[], why: "drives everything" },
];

/// What must not be anywhere below a crate, tests aside. A name that ends in `*` is a beginning.
struct Ban {
    below: &'static str,
    banned: &'static [&'static str],
    why: &'static str,
}

const WAITING: &[&str] =
    &["tokio", "tokio-*", "async-*", "mio", "rustix", "nix", "rusqlite", "libsqlite3-sys"];
const TLS: &[&str] = &["rustls", "aws-lc-rs", "ring", "openssl", "openssl-sys", "native-tls", "hyper-tls"];

#[rustfmt::skip]
const BANS: &[Ban] = &[
    Ban { below: "chatkeepd", banned: TLS, why: "the process that has the keys has no network" },
    Ban { below: "chatkeep", banned: TLS, why: "the command talks to the service only" },
    Ban { below: "chatkeep-format", banned: WAITING, why: "pure: no I/O, no async" },
    Ban { below: "chatkeep-crypto", banned: WAITING, why: "pure: no I/O, no async" },
    Ban { below: "chatkeep-planner", banned: WAITING, why: "pure: no I/O, no async" },
    Ban { below: "chatkeep-vault-protocol", banned: WAITING, why: "pure: no I/O, no async" },
    Ban { below: "chatkeep-store-program", banned: &["chatkeep-crypto", "chatkeep-format", "chatkeep-sqlite", "oo7"], why: "the process that has the network has no keys" },
    Ban { below: "chatkeep-vault-courier", banned: &["chatkeep-crypto", "chatkeep-sqlite", "oo7"], why: "the process that has the network has no keys" },
];

/// Names of which exactly one may be built into what we ship and test.
struct ExactlyOne {
    of: &'static [&'static str],
    why: &'static str,
}

#[rustfmt::skip]
const EXACTLY_ONE: &[ExactlyOne] = &[
    ExactlyOne { of: &["zbus"], why: "two versions do not understand each other's types; oo7 decides which" },
    ExactlyOne { of: &["rustls", "openssl", "native-tls", "boring", "s2n-tls"], why: "one TLS stack to keep up to date" },
    ExactlyOne { of: &["aws-lc-rs", "ring"], why: "one provider of cryptography below it, the one with X25519MLKEM768" },
];

/// A crate, ours or not, and what it is made of.
#[derive(Default)]
struct Node {
    name: String,
    /// Relative to the workspace; `None` for crates of others.
    folder: Option<String>,
    normal: BTreeSet<Id>,
    test_only: BTreeSet<Id>,
}

type Id = String;
type Graph = BTreeMap<Id, Node>;

fn misplaced(graph: &Graph, map: &[Place]) -> Vec<String> {
    let mut found = Vec::new();
    let ours = || graph.values().filter(|node| node.folder.is_some());
    for place in map.iter().filter(|place| ours().all(|node| node.name != place.name)) {
        found.push(format!("{} is on the map and not in the workspace", place.name));
    }
    for node in ours() {
        let Some(place) = map.iter().find(|place| place.name == node.name) else {
            found.push(format!("{} is not on the map", node.name));
            continue;
        };
        if node.folder.as_deref() != Some(place.folder) {
            found.push(format!("{} belongs into {}/, not {:?}", node.name, place.folder, node.folder));
        }
        let of_ours = |ids: &BTreeSet<Id>| -> Vec<String> {
            ids.iter()
                .map(|id| &graph[id])
                .filter(|node| node.folder.is_some())
                .map(|node| node.name.clone())
                .collect()
        };
        for import in of_ours(&node.normal) {
            if !place.imports.contains(&import.as_str()) {
                found.push(format!("{} must not import {import}: {}", node.name, place.why));
            }
        }
        for import in of_ours(&node.test_only) {
            if !place.imports.contains(&import.as_str()) && !place.test_imports.contains(&import.as_str()) {
                found.push(format!("the tests of {} must not import {import}: {}", node.name, place.why));
            }
        }
    }
    found
}

fn banned(graph: &Graph, bans: &[Ban]) -> Vec<String> {
    let mut found = Vec::new();
    for ban in bans {
        let Some(top) = graph.iter().find(|(_, node)| node.name == ban.below && node.folder.is_some()) else {
            found.push(format!("there is no {}", ban.below));
            continue;
        };
        let matches = |name: &str| {
            ban.banned.iter().any(|banned| match banned.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == *banned,
            })
        };
        for id in below(graph, top.0) {
            if matches(&graph[&id].name) {
                found.push(format!("{id} is below {}: {}", ban.below, ban.why));
            }
        }
    }
    found
}

/// All that is built into a crate, itself excluded.
fn below(graph: &Graph, top: &Id) -> BTreeSet<Id> {
    let mut reached = BTreeSet::new();
    let mut open = vec![top];
    while let Some(id) = open.pop() {
        for next in &graph[id].normal {
            if reached.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    reached
}

fn not_exactly_one(built: &BTreeSet<Id>, rules: &[ExactlyOne]) -> Vec<String> {
    let name = |id: &Id| id.split(' ').next().unwrap_or_default().to_owned();
    rules
        .iter()
        .filter_map(|rule| {
            let found: Vec<&Id> = built.iter().filter(|id| rule.of.contains(&name(id).as_str())).collect();
            (found.len() != 1).then(|| format!("exactly one of {:?}, not {found:?}: {}", rule.of, rule.why))
        })
        .collect()
}

/// The graph as cargo resolves it for this machine. It holds a little more than is built (optional parts that another
/// crate asks for), so what is not in it is certainly not built.
fn real_graph() -> Graph {
    let mut command = MetadataCommand::new();
    command.other_options(["--locked".to_owned(), "--filter-platform".to_owned(), host()]);
    let metadata = command.exec().unwrap();
    let id_of = |id: &cargo_metadata::PackageId| {
        let package = &metadata[id];
        format!("{} {}", package.name, package.version)
    };
    let resolve = metadata.resolve.as_ref().unwrap();
    let mut graph = Graph::new();
    for package in &metadata.packages {
        let ours = metadata.workspace_members.contains(&package.id);
        let folder = package.manifest_path.parent().unwrap();
        let folder =
            folder.strip_prefix(&metadata.workspace_root).ok().filter(|_| ours).map(ToString::to_string);
        let mut node = Node { name: package.name.to_string(), folder, ..Node::default() };
        let Some(resolved) = resolve.nodes.iter().find(|it| it.id == package.id) else { continue };
        for dependency in &resolved.deps {
            let test_only = dependency.dep_kinds.iter().all(|kind| kind.kind == DependencyKind::Development);
            let list = if test_only { &mut node.test_only } else { &mut node.normal };
            list.insert(id_of(&dependency.pkg));
        }
        graph.insert(id_of(&package.id), node);
    }
    graph
}

/// All that is built for any crate of the workspace or its tests, as `name version`.
fn really_built() -> BTreeSet<Id> {
    let text = cargo(&["tree", "--locked", "--workspace", "--edges", "normal,build,dev", "--prefix", "none"]);
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(" v")?;
            Some(format!("{name} {}", rest.split(' ').next()?))
        })
        .collect()
}

fn host() -> String {
    cargo(&["-vV"]).lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_crate_is_in_its_place_and_imports_what_it_may() {
    assert_eq!(misplaced(&real_graph(), MAP), Vec::<String>::new());
}

#[test]
fn keys_have_no_network_and_the_core_does_not_wait() {
    assert_eq!(banned(&real_graph(), BANS), Vec::<String>::new());
}

#[test]
fn there_is_one_of_what_there_must_be_one_of() {
    assert_eq!(not_exactly_one(&really_built(), EXACTLY_ONE), Vec::<String>::new());
}

// The rules themselves, on graphs made up.

/// Crates as `name folder: imports | imports of tests`; without a folder they are not ours.
fn made_up(lines: &[&str]) -> Graph {
    let node = |line: &&str| {
        let (crate_, imports) = line.split_once(':').unwrap();
        let (normal, test_only) = imports.split_once('|').unwrap_or((imports, ""));
        let words = |text: &str| text.split_whitespace().map(ToOwned::to_owned).collect();
        let (name, folder) =
            crate_.split_once(' ').map_or((crate_, None), |(name, folder)| (name, Some(folder)));
        let folder = folder.map(ToOwned::to_owned);
        (
            name.to_owned(),
            Node { name: name.to_owned(), folder, normal: words(normal), test_only: words(test_only) },
        )
    };
    lines.iter().map(node).collect()
}

#[track_caller]
fn expect_misplaced(lines: &[&str], complaint: &str) {
    const SMALL_MAP: &[Place] = &[
        Place { name: "leaf", folder: "leaf", imports: &[], test_imports: &[], why: "reason" },
        Place {
            name: "edge",
            folder: "plugins/edge",
            imports: &["leaf"],
            test_imports: &["other"],
            why: "reason",
        },
        Place { name: "other", folder: "other", imports: &[], test_imports: &[], why: "reason" },
    ];
    let found = misplaced(&made_up(lines), SMALL_MAP);
    let expected: Vec<&str> = if complaint.is_empty() { vec![] } else { vec![complaint] };
    assert_eq!(found, expected);
}

#[test]
fn permitted_imports_are_permitted() {
    expect_misplaced(&["leaf leaf: serde", "edge plugins/edge: leaf | other", "other other:", "serde:"], "");
}

#[test]
fn a_forbidden_import_is_found() {
    expect_misplaced(
        &["leaf leaf:", "edge plugins/edge: other", "other other:"],
        "edge must not import other: reason",
    );
    expect_misplaced(
        &["leaf leaf:", "edge plugins/edge:", "other other: | leaf"],
        "the tests of other must not import leaf: reason",
    );
}

#[test]
fn a_crate_without_a_place_is_found() {
    expect_misplaced(
        &["leaf leaf:", "edge plugins/edge:", "other other:", "new new:"],
        "new is not on the map",
    );
    expect_misplaced(&["leaf leaf:", "edge plugins/edge:"], "other is on the map and not in the workspace");
    expect_misplaced(
        &["leaf elsewhere:", "edge plugins/edge:", "other other:"],
        "leaf belongs into leaf/, not Some(\"elsewhere\")",
    );
}

#[test]
fn what_is_banned_is_found_however_deep_but_not_in_tests() {
    let ban = [Ban { below: "top", banned: &["rustls", "async-*"], why: "reason" }];
    let graph =
        |last: &'static str| made_up(&["top top: a", "a: b", last, "rustls:", "async-io:", "asynchronous:"]);
    assert_eq!(banned(&graph("b: rustls"), &ban), ["rustls is below top: reason"]);
    assert_eq!(banned(&graph("b: async-io"), &ban), ["async-io is below top: reason"]);
    assert!(banned(&graph("b: asynchronous | rustls"), &ban).is_empty());
    assert_eq!(banned(&made_up(&["a a:"]), &ban), ["there is no top"]);
}

#[test]
fn two_of_one_and_none_at_all_are_found() {
    let rules = [ExactlyOne { of: &["zbus"], why: "reason" }];
    let check = |built: &[&str]| not_exactly_one(&built.iter().map(|id| (*id).to_owned()).collect(), &rules);
    assert!(check(&["zbus 5.19.0", "zbus_names 4.0.0"]).is_empty());
    assert_eq!(check(&["zbus 5.19.0", "zbus 6.0.0"]).len(), 1);
    assert_eq!(check(&[]).len(), 1);
}

#[test]
fn the_list_of_everything_is_everything() {
    let programs_and_libraries = MAP.iter().map(|place| place.name).filter(|name| {
        !["chatkeep-tests", "chatkeep-benches", "chatkeep-bench-store", "chatkeep-bench-vault", "xtask"]
            .contains(name)
    });
    assert_eq!(programs_and_libraries.collect::<BTreeSet<_>>(), ALL.iter().copied().collect());
    assert!(MAP.iter().all(|place| !place.why.is_empty()) && BANS.iter().all(|ban| !ban.why.is_empty()));
}
