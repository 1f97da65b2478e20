//! Reading files that other programs write to, or put something else in place of.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use chatkeep_attachments::{ReadError, compare};
use common::{KEY, Tree, noise, read, rel, settle, without_privileges};
use rustix::fs::{CWD, FileType, Mode};

/// Finds a file, does something to it, and expects that reading it says so.
#[track_caller]
fn expect_changed(meddle: impl FnOnce(&Tree)) {
    let tree = Tree::with(&["x/photo", "other/photo"]);
    settle();
    let (folder, found) = (tree.folder(), tree.find("x/photo"));
    assert_eq!(read(&folder, &found).unwrap().content, b"x/photo");
    meddle(&tree);
    settle();
    let error = read(&folder, &found).unwrap_err();
    assert!(matches!(error, ReadError::Changed), "{error:?}");
}

/// Does something when the first chunk of a large file was passed on.
#[track_caller]
fn expect_changed_while_read(meddle: impl FnOnce(&Tree)) {
    let tree = Tree::new();
    tree.write("big", &noise("big", 20 << 20));
    settle();
    let mut meddle = Some(meddle);
    let result = tree.folder().read(&tree.find("big"), &KEY, &mut |_| {
        if let Some(meddle) = meddle.take() {
            meddle(&tree);
        }
        Ok(())
    });
    assert!(matches!(result, Err(ReadError::Changed)), "{result:?}");
}

#[test]
fn a_file_is_read_as_it_is() {
    let tree = Tree::new();
    for (name, len, chunks) in
        [("empty", 0, 0..=0), ("one", 1, 1..=1), ("whole", 1 << 20, 1..=1), ("big", 9 << 20, 5..=20)]
    {
        let content = noise(name, len);
        tree.write(name, &content);
        settle();
        let cut = read(&tree.folder(), &tree.find(name)).unwrap();
        assert_eq!(cut.content, content);
        assert!(chunks.contains(&cut.chunks.len()), "{name}: {}", cut.chunks.len());
    }
}

#[test]
fn a_chunk_is_named_by_its_content_and_the_key() {
    let tree = Tree::with(&["a"]);
    tree.write("b", b"a");
    settle();
    let (folder, a, b) = (tree.folder(), tree.find("a"), tree.find("b"));
    let under = |found, key: [u8; 32]| {
        let mut id = None;
        folder
            .read(found, &key, &mut |chunk| {
                id = Some(chunk.id);
                Ok(())
            })
            .unwrap();
        id.unwrap()
    };
    assert_eq!(under(&a, KEY), under(&b, KEY));
    assert_ne!(under(&a, KEY), under(&a, [8; 32]));
    assert_eq!(under(&a, KEY), blake3::keyed_hash(&KEY, b"a").as_bytes()[..16]);
}

#[test]
fn a_folder_replaced_by_a_link_leads_nowhere() {
    expect_changed(|tree| {
        std::fs::rename(tree.at("x"), tree.at("moved")).unwrap();
        symlink("moved", tree.at("x")).unwrap();
    });
}

#[test]
fn a_file_replaced_by_a_link_is_not_followed() {
    expect_changed(|tree| {
        std::fs::rename(tree.at("x/photo"), tree.at("moved")).unwrap();
        symlink("../moved", tree.at("x/photo")).unwrap();
    });
}

#[test]
fn a_file_replaced_by_a_pipe_does_not_hang() {
    expect_changed(|tree| {
        std::fs::remove_file(tree.at("x/photo")).unwrap();
        rustix::fs::mknodat(CWD, tree.at("x/photo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    });
}

#[test]
fn a_file_replaced_by_a_folder_or_another_file_or_nothing_changed() {
    expect_changed(|tree| std::fs::remove_file(tree.at("x/photo")).unwrap());
    expect_changed(|tree| std::fs::remove_dir_all(tree.at("x")).unwrap());
    expect_changed(|tree| std::fs::rename(tree.at("other/photo"), tree.at("x/photo")).unwrap());
    expect_changed(|tree| {
        std::fs::remove_file(tree.at("x/photo")).unwrap();
        std::fs::create_dir(tree.at("x/photo")).unwrap();
    });
}

#[test]
fn a_file_written_since_it_was_found_changed() {
    expect_changed(|tree| std::fs::write(tree.at("x/photo"), b"PHOTO..").unwrap());
    expect_changed(|tree| {
        // even when the program puts its time back
        let path = tree.at("x/photo");
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, b"PHOTO..").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    });
}

#[test]
fn a_file_that_grows_while_it_is_read_changed() {
    expect_changed_while_read(|tree| {
        let mut file = std::fs::File::options().append(true).open(tree.at("big")).unwrap();
        file.write_all(b"more").unwrap();
    });
}

#[test]
fn a_file_cut_off_while_it_is_read_changed() {
    expect_changed_while_read(|tree| {
        let file = std::fs::File::options().write(true).open(tree.at("big")).unwrap();
        file.set_len(9 << 20).unwrap();
    });
}

#[test]
fn a_byte_written_while_the_file_is_read_shows() {
    expect_changed_while_read(|tree| {
        let file = std::fs::File::options().write(true).open(tree.at("big")).unwrap();
        file.write_all_at(b"x", 0).unwrap();
    });
}

#[test]
fn a_file_replaced_while_it_is_read_changed() {
    expect_changed_while_read(|tree| {
        tree.write("new", b"new");
        std::fs::rename(tree.at("new"), tree.at("big")).unwrap();
    });
}

/// A write could follow within the same tick of the clock and not show.
#[test]
fn a_file_written_just_now_is_not_taken() {
    let tree = Tree::new();
    let folder = tree.folder();
    let refused = (0..20).filter(|number: &u32| {
        let name = number.to_string();
        tree.write(&name, b"x");
        matches!(read(&folder, &tree.find(&name)), Err(ReadError::Changed))
    });
    // on a machine that stops for 20 ms now and then, some may be old enough
    assert!(refused.count() > 0);
}

#[test]
fn a_file_that_must_not_be_read_says_so() {
    let tree = Tree::with(&["closed"]);
    std::fs::set_permissions(tree.at("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    settle();
    let result = without_privileges(|| read(&tree.folder(), &tree.find("closed")));
    assert!(matches!(result, Err(ReadError::Unreadable(_))), "{result:?}");
}

#[test]
fn who_takes_the_chunks_may_fail() {
    let tree = Tree::with(&["a"]);
    settle();
    let result =
        tree.folder().read(&tree.find("a"), &KEY, &mut |_| Err(std::io::ErrorKind::StorageFull.into()));
    assert!(matches!(result, Err(ReadError::Sink(_))), "{result:?}");
}

/// What is compared is what was read: a write right after shows, however soon it comes.
#[test]
fn a_write_right_after_reading_shows_in_the_next_comparison() {
    let tree = Tree::with(&["a"]);
    settle();
    let (before, _) = tree.walk();
    read(&tree.folder(), &before[0]).unwrap();
    std::fs::write(tree.at("a"), b"b").unwrap();
    assert_eq!(compare(&before, &tree.walk().0).new_or_changed, [0]);
}

#[test]
fn permissions_and_another_name_are_a_touch() {
    let tree = Tree::with(&["a", "b"]);
    settle();
    let (before, _) = tree.walk();
    std::fs::set_permissions(tree.at("a"), std::fs::Permissions::from_mode(0o400)).unwrap();
    std::fs::hard_link(tree.at("b"), tree.at("c")).unwrap();
    let (now, _) = tree.walk();
    let changes = compare(&before, &now);
    assert_eq!(changes.touched_only, [(0, 0), (1, 1)]);
    assert_eq!(changes.new_or_changed, [2]);
    assert_eq!(now[2].path, rel("c"));
}
