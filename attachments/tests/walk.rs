//! What a walk tells, and what it leaves out.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use chatkeep_attachments::{Folder, RelPath, Skipped, Why, compare};
use common::{Tree, rel, walk, without_privileges};
use rustix::fs::{CWD, FileType, Mode};

#[test]
fn files_come_sorted_by_path_as_bytes() {
    let tree = Tree::with(&["a/z", "a.jpg", "a0", "a/b/c", "a/b.x", "Z", "a-b/c", "ä"]);
    assert_eq!(tree.names(), ["Z", "a-b/c", "a.jpg", "a/b.x", "a/b/c", "a/z", "a0", "ä"]);
}

#[test]
fn a_file_is_told_as_the_system_sees_it() {
    let tree = Tree::with(&["x/photo"]);
    std::fs::set_permissions(tree.at("x/photo"), std::fs::Permissions::from_mode(0o4640)).unwrap();
    let (found, walked) = tree.walk();
    let meta = std::fs::metadata(tree.at("x/photo")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, rel("x/photo"));
    assert_eq!((found[0].len, found[0].inode, found[0].mode), (7, meta.ino(), 0o4640));
    assert_eq!(found[0].mtime_ns, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
    assert_eq!(found[0].ctime_ns, meta.ctime() * 1_000_000_000 + meta.ctime_nsec());
    assert_eq!((walked.files, walked.bytes, walked.problems.len()), (1, 7, 0));
}

#[test]
fn names_are_bytes() {
    let tree = Tree::new();
    let names: [&[u8]; 4] = [b"\xff\xfe.jpg", b"new\nline", b" ", b"\\"];
    for name in names {
        tree.write(name, b"x");
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let (found, _) = tree.walk();
    assert_eq!(found.iter().map(|it| it.path.as_bytes()).collect::<Vec<_>>(), sorted);
}

#[test]
fn what_is_no_finished_file_is_counted_and_left_out() {
    let tree = Tree::with(&["a", "b.part", "c.TMP", "d.crdownload", "e.download", ".~lock.f#", "x.tmp/g"]);
    tree.write(".goutputstream-123", b"");
    tree.write(".chatkeep-restore-1-2", b"");
    symlink("a", tree.at("link")).unwrap();
    symlink("/", tree.at("root")).unwrap();
    let _socket = UnixListener::bind(tree.at("socket")).unwrap();
    rustix::fs::mknodat(CWD, tree.at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let (_, walked) = tree.walk();
    assert_eq!(tree.names(), ["a", "x.tmp/g"]);
    let mut expected = Skipped::default();
    (expected.links, expected.specials, expected.unfinished) = (2, 2, 7);
    assert_eq!(walked.skipped, expected);
}

#[test]
fn another_file_system_is_counted_and_not_entered() {
    // folders with a mount in them and little else; a container may have neither
    for path in ["/dev", "/sys/fs"].into_iter().filter(|path| holds_a_mount(path)) {
        let (_, walked) = walk(&Folder::open(path.as_ref()).unwrap());
        assert!(walked.skipped.mounts > 0, "{path}");
    }
}

fn holds_a_mount(path: &str) -> bool {
    let dev = std::fs::metadata(path).unwrap().dev();
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    entries.flatten().any(|entry| {
        let meta = entry.path().symlink_metadata();
        meta.is_ok_and(|meta| meta.is_dir() && meta.dev() != dev)
    })
}

#[test]
fn hard_links_are_files_of_their_own_with_one_number() {
    let tree = Tree::with(&["a"]);
    std::fs::hard_link(tree.at("a"), tree.at("b")).unwrap();
    let (found, _) = tree.walk();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].inode, found[1].inode);
}

#[test]
fn ten_thousand_files_are_all_found_in_order() {
    let tree = Tree::new();
    for folder in 0..20 {
        std::fs::create_dir(tree.at(folder.to_string())).unwrap();
        for file in 0..500 {
            std::fs::write(tree.at(format!("{folder}/{file}.jpg")), b"").unwrap();
        }
    }
    let (found, walked) = tree.walk();
    assert_eq!(walked.files, 10_000);
    assert!(found.is_sorted_by(|a, b| a.path < b.path));
    let changes = compare(&found, &tree.walk().0);
    assert_eq!((changes.unchanged.len(), changes.new_or_changed.len()), (10_000, 0));
}

#[test]
fn a_folder_that_is_too_deep_is_named_and_the_deepest_files_are_told() {
    let tree = Tree::new();
    let folders = |count: usize| vec!["d"; count].join("/");
    tree.write(format!("{}/last", folders(RelPath::SEGMENTS_MAX - 1)), b"");
    tree.write(format!("{}/hidden", folders(RelPath::SEGMENTS_MAX)), b"");
    let (found, walked) = tree.walk();
    assert_eq!(found.len(), 1);
    assert_eq!(walked.problems.len(), 1);
    assert!(matches!(walked.problems[0].why, Why::TooDeep));
    assert_eq!(walked.problems[0].path, rel(folders(RelPath::SEGMENTS_MAX)));
}

#[test]
fn a_path_that_is_too_long_is_named_by_its_folder() {
    let tree = Tree::new();
    let long = "n".repeat(250);
    // longer than one call takes
    let mut at = std::fs::File::open(tree.root()).unwrap();
    for _ in 0..17 {
        rustix::fs::mkdirat(&at, &long, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &long, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap().into();
    }
    rustix::fs::mknodat(&at, "file", FileType::RegularFile, Mode::RUSR, 0).unwrap();
    let (found, walked) = tree.walk();
    assert_eq!(found.len(), 0);
    assert!(matches!(walked.problems[0].why, Why::TooLong));
    assert_eq!(walked.problems[0].path.as_bytes().len(), 16 * 251 - 1);
}

#[test]
fn files_below_a_folder_that_cannot_be_read_are_not_known_to_be_gone() {
    let tree = Tree::with(&["closed/a", "open/a"]);
    std::fs::set_permissions(tree.at("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (found, walked) = without_privileges(|| tree.walk());
    std::fs::set_permissions(tree.at("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(walked.problems[0].path, rel("closed"));
    assert!(matches!(walked.problems[0].why, Why::Unreadable(_)));
    assert!(walked.may_hide(&rel("closed/a")));
    assert!(!walked.may_hide(&rel("open/b")));
}

#[test]
fn past_a_thousand_problems_no_file_is_known_to_be_gone() {
    let tree = Tree::new();
    for number in 0..1001 {
        std::fs::create_dir(tree.at(number.to_string())).unwrap();
        let closed = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(tree.at(number.to_string()), closed).unwrap();
    }
    let (_, walked) = without_privileges(|| tree.walk());
    assert_eq!((walked.problems.len(), walked.problems_unnamed), (1000, 1));
    assert!(walked.may_hide(&rel("elsewhere")));
}

#[test]
fn files_and_folders_may_vanish_during_a_walk() {
    let tree = Tree::with(&["a", "b", "c/d", "e/f", "g"]);
    let mut seen = Vec::new();
    let walked = tree
        .folder()
        .walk(&mut |found| {
            seen.push(found.path.as_bytes().to_vec());
            if found.path == rel("a") {
                std::fs::remove_file(tree.at("b")).unwrap();
                std::fs::remove_dir_all(tree.at("c")).unwrap();
                std::fs::remove_dir_all(tree.at("e")).unwrap();
                symlink("/", tree.at("e")).unwrap();
            }
        })
        .unwrap();
    assert_eq!(seen, [b"a", b"g"]);
    assert!(walked.problems.is_empty());
}

#[test]
fn a_folder_that_was_deleted_is_not_an_empty_one() {
    let tree = Tree::with(&["x/a"]);
    let folder = Folder::open(&tree.at("x")).unwrap();
    std::fs::remove_dir_all(tree.at("x")).unwrap();
    folder.walk(&mut |_| {}).unwrap_err();
}

#[test]
fn a_folder_stays_the_same_when_its_path_leads_elsewhere() {
    let tree = Tree::with(&["x/a", "y/b"]);
    let folder = Folder::open(&tree.at("x")).unwrap();
    std::fs::rename(tree.at("x"), tree.at("z")).unwrap();
    symlink("y", tree.at("x")).unwrap();
    assert_eq!(walk(&folder).0[0].path, rel("a"));
}

#[test]
fn a_link_is_opened_only_when_it_is_meant() {
    let tree = Tree::with(&["x/a"]);
    symlink("x", tree.at("link")).unwrap();
    for path in ["link", "link/", "link/."] {
        Folder::open(&tree.at(path)).unwrap_err();
    }
    assert_eq!(walk(&Folder::open_through_link(&tree.at("link")).unwrap()).0.len(), 1);
    Folder::open(&tree.at("x/a")).unwrap_err();
}

#[test]
fn a_walk_leaves_no_trace() {
    let tree = Tree::with(&["x/a"]);
    let times = |path: &str| {
        let meta = std::fs::metadata(tree.at(path)).unwrap();
        (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec())
    };
    // so old that looking would renew it
    let old = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 2, tv_nsec: 0 },
    };
    for path in ["x", "x/a"] {
        rustix::fs::utimensat(CWD, tree.at(path), &old, rustix::fs::AtFlags::empty()).unwrap();
    }
    let (found, _) = tree.walk();
    common::settle();
    common::read(&tree.folder(), &found[0]).unwrap();
    assert_eq!(times("x"), (1, 0, 2, 0));
    assert_eq!(times("x/a"), (1, 0, 2, 0));
}
