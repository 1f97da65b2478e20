//! Attachments in the backup: what is new, changed, gone, renamed, and all that can happen meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

mod machine;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatkeep_format::{FolderRecord, ObjectName};
use chatkeep_store::Store;
use machine::{Machine, noise, same, tree};

#[test]
fn chat_process() {
    machine::chat_process();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_back_as_they_were_at_each_point() {
    let mut machine = Machine::new().await;
    machine.save("a/photo.jpg", &noise(1, 300_000));
    machine.save("b.ogg", &noise(2, 5_000_000));
    machine.save("empty", b"");
    machine.back_up().await.unwrap();
    machine.say("another photo");
    machine.save("a/two.jpg", &noise(3, 200_000));
    machine.back_up().await.unwrap();
    machine.remove("b.ogg");
    machine.save("a/photo.jpg", &noise(4, 100_000));
    machine.rename("a/two.jpg", "three.jpg");
    machine.back_up().await.unwrap();
    machine.say("only words");
    machine.back_up().await.unwrap();
    assert!(machine.back_up().await.is_none(), "nothing changed");
    assert_eq!(machine.seq(), 4);
    machine.assert_every_point_restores().await;
}

/// Minutes, then hours, then days: entries of all levels, with files that come, change, go and come again.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_all_levels_list_what_changed_since_their_parents() {
    let mut machine = Machine::new().await;
    machine.clock_us = 1_700_000_000_000_000;
    for step in 0_u64..120 {
        machine.clock_us += [60, 3_600, 90_000][step as usize * 3 / 120] * 1_000_000;
        let (old, new) = (format!("{}", step % 7), format!("n/{}", step % 11));
        match step % 5 {
            0 => machine.save(&old, &noise(step, 3_000)),
            1 => machine.save(&new, &noise(step, 70_000)),
            2 if machine.media().join(&new).exists() => machine.remove(&new),
            3 if machine.media().join(&old).exists() => machine.rename(&old, &new),
            _ => machine.say("words"),
        }
        if step % 17 == 0 {
            machine.restart().await;
        }
        machine.back_up().await;
    }
    let levels: BTreeSet<u8> = machine.points().iter().map(|point| point.level).collect();
    assert!(levels.len() >= 5, "{levels:?}");
    machine.assert_every_point_restores().await;
}

/// All pages of the store that a point does not name by itself or by its chain could be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_point_and_its_chain_name_every_pack_that_a_restore_reads() {
    let mut machine = Machine::new().await;
    for step in 0..30 {
        machine.save(&format!("{step}"), &noise(step % 20, 50_000));
        machine.back_up().await.unwrap();
    }
    let points = machine.points();
    let newest = points.last().unwrap();
    let mut named = BTreeSet::new();
    let mut seq = newest.seq;
    while let Some(point) = points.iter().find(|point| point.seq == seq) {
        named.extend(point.packs.iter().copied());
        seq = point.parent_seq;
    }
    for object in machine.store.list("").await.unwrap() {
        if let Some((_, ObjectName::Pack(pack))) = ObjectName::parse(object.key.as_str())
            && !named.contains(&pack)
        {
            machine.store.delete(&object.key).await.unwrap();
        }
    }
    let restored = machine.restore(newest.seq).await;
    assert_eq!(same(&tree(&restored.path().join("media"))), same(&tree(&machine.media())));
}

/// Bytes of packs in the store.
async fn stored(machine: &Machine) -> u64 {
    let objects = machine.store.list("").await.unwrap();
    let packs = objects.iter().filter(|object| object.key.as_str().contains("/pack/"));
    packs.map(|object| object.len).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_is_stored_once() {
    let mut machine = Machine::new().await;
    for name in ["a", "b/c", "d"] {
        machine.save(name, &noise(1, 400_000));
    }
    machine.back_up().await.unwrap();
    assert!(stored(&machine).await < 500_000);
    machine.save("later", &noise(1, 400_000));
    machine.rename("a", "renamed");
    machine.back_up().await.unwrap();
    machine.restart().await;
    machine.save("much later", &noise(1, 400_000));
    machine.back_up().await.unwrap();
    assert!(stored(&machine).await < 500_000);
    machine.assert_every_point_restores().await;
}

/// What no file of the newest point has may be deleted from the store: it is stored again.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_is_stored_again_when_it_comes_back() {
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 400_000));
    machine.back_up().await.unwrap();
    let first = machine.points()[0].packs.clone();
    machine.remove("a");
    machine.back_up().await.unwrap();
    // in a blob of another name
    machine.save("a", &noise(1, 400_000));
    machine.save("b", &noise(2, 400_000));
    machine.back_up().await.unwrap();
    let third = &machine.points()[2].packs;
    assert!(!third.is_empty() && third.iter().all(|pack| !first.contains(pack)), "{third:?}");
    machine.assert_every_point_restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_cache_nothing_is_stored_twice() {
    let mut machine = Machine::new().await;
    for step in 0..5 {
        machine.save(&format!("{step}"), &noise(step, 300_000));
        machine.back_up().await.unwrap();
    }
    machine.remove("2");
    machine.back_up().await.unwrap();
    let before = stored(&machine).await;
    machine.stop();
    std::fs::remove_dir_all(machine.state()).unwrap();
    std::fs::create_dir(machine.state()).unwrap();
    machine.start().await;
    machine.save("new", &noise(9, 10_000));
    machine.remove("3");
    machine.back_up_everything().await;
    let entry = machine.entry(machine.seq()).await;
    assert!(!entry.folders[0].is_base || entry.parent_seq == 0, "{entry:?}");
    assert!(stored(&machine).await < before + 200_000, "only the database and the new file");
    machine.assert_every_point_restores().await;
}

/// The entry is in the queue, and what is known of the files is as it was before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_the_entry_and_the_note_of_it_costs_nothing() {
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 300_000));
    machine.save("gone", b"soon");
    machine.back_up().await.unwrap();
    machine.stop();
    let (cache, copy) = (machine.state().join("cache"), machine.state().join("copy"));
    copy_folder(&cache, &copy);
    machine.start().await;
    machine.save("b", &noise(2, 300_000));
    machine.remove("gone");
    let written = machine.capture().await.unwrap().written.unwrap();
    let before = tree(&machine.media());
    machine.trees.insert(written.head.seq, before);
    machine.stop();
    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::rename(&copy, &cache).unwrap();

    machine.start().await;
    assert_eq!(machine.seq(), 2, "what waits in the queue is whole");
    machine.upload().await;
    let before = stored(&machine).await;
    machine.save("c", b"new");
    machine.back_up_everything().await;
    let record = &machine.entry(3).await.folders[0];
    assert!(!record.is_base && record.inline.len() == 1, "{record:?}");
    assert!(stored(&machine).await < before + 10_000);
    machine.assert_every_point_restores().await;
}

/// A blob went from the queue before it was uploaded: the entry that needs it is dropped, and made again.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_blob_is_lost_is_not_taken_from_the_queue() {
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 300_000));
    machine.back_up().await.unwrap();
    machine.save("b", &noise(2, 300_000));
    machine.capture().await.unwrap().written.unwrap();
    machine.save("c", b"names the first blob, too");
    machine.save("copy of a", &noise(1, 300_000));
    machine.capture().await.unwrap().written.unwrap();
    machine.stop();
    let spooled = machine.spool().list().unwrap();
    let blob = spooled.iter().find(|object| object.seq == 2 && object.len > 300_000).unwrap();
    std::fs::remove_file(&blob.path).unwrap();
    machine.start().await;
    assert_eq!(machine.seq(), 1);
    machine.back_up_everything().await;
    machine.assert_every_point_restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_queue_may_name_blobs_that_are_in_the_store() {
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 300_000));
    machine.back_up().await.unwrap();
    machine.save("copy", &noise(1, 300_000));
    machine.capture().await.unwrap().written.unwrap();
    machine.trees.insert(2, tree(&machine.media()));
    machine.restart().await;
    assert_eq!(machine.seq(), 2);
    machine.upload().await;
    machine.assert_every_point_restores().await;
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The record of the folder in the newest entry.
async fn newest(machine: &Machine) -> FolderRecord {
    machine.entry(machine.seq()).await.folders[0].clone()
}

/// 300 MB arrive while the chat program writes every 10 ms: captures go on, and in the end everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn captures_go_on_while_much_is_read() {
    let mut machine = Machine::new().await;
    machine.back_up().await.unwrap();
    for file in 0..60 {
        machine.save(&format!("{}/{file}", file % 7), &noise(file, 5_000_000));
    }
    let chat = machine.chat();
    let mut without = 0;
    loop {
        let captured = machine.capture().await.unwrap();
        let Some(written) = captured.written else { continue };
        machine.upload().await;
        let record = &machine.entry(written.head.seq).await.folders[0];
        assert_eq!(captured.more, record.unread > 0, "{}", record.unread);
        if record.unread == 0 && record.files == 60 {
            break;
        }
        without += u64::from(record.unread > 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    chat.end();
    assert!(without >= 3, "{without} entries were made while files were read");
    machine.say("the last one");
    machine.back_up().await.unwrap();
    machine.wait_for_caution(None).await;
    let restored = machine.restore(machine.seq()).await;
    assert_eq!(same(&tree(&restored.path().join("media"))), same(&tree(&machine.media())));
}

/// What a new message speaks of is in its entry, also while something big is being read.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_message_and_its_photo_are_in_one_entry() {
    let mut machine = Machine::new().await;
    machine.back_up().await.unwrap();
    for file in 0..30 {
        machine.save(&format!("old/{file}"), &noise(file, 5_000_000));
    }
    // not an hour ago: this moment
    for round in 0..5 {
        let photo = machine.media().join(format!("new-{round}"));
        std::fs::write(&photo, noise(1000 + round, 200_000)).unwrap();
        machine.say("look at this");
        let seq = machine.capture().await.unwrap().written.unwrap().head.seq;
        machine.upload().await;
        let restored = machine.restore(seq).await;
        assert!(restored.path().join("media").join(format!("new-{round}")).exists(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_time_is_read_between_captures_and_makes_entries_of_its_own() {
    let mut machine = Machine::new().await;
    for file in 0..20 {
        machine.save(&format!("{file}"), &noise(file, 5_000_000));
    }
    machine.back_up_everything().await;
    let entries = machine.seq();
    assert!((2..=8).contains(&entries), "{entries}");
    let record = newest(&machine).await;
    assert_eq!((record.files, record.bytes, record.unread), (20, 100_000_000, 0));
    // nothing is left in the queue, and nothing begins again
    assert_eq!(machine.spool().list().unwrap(), []);
    assert!(machine.back_up().await.is_none());
    let restored = machine.restore(entries).await;
    assert_eq!(same(&tree(&restored.path().join("media"))), same(&tree(&machine.media())));
}

/// It is long, and longer than anything else: it is read across captures.
#[tokio::test(flavor = "multi_thread")]
async fn a_film_is_read_across_captures_and_stored_once_when_it_grows() {
    let mut machine = Machine::new().await;
    machine.save("film.mp4", &noise(1, 120_000_000));
    machine.back_up_everything().await;
    let before = stored(&machine).await;
    assert!((120_000_000..125_000_000).contains(&before), "{before}");
    let mut longer = noise(1, 120_000_000);
    longer.extend(noise(2, 1_000_000));
    machine.save("film.mp4", &longer);
    machine.back_up_everything().await;
    assert!(stored(&machine).await < before + 6_000_000);
    let restored = machine.restore(machine.seq()).await;
    assert_eq!(same(&tree(&restored.path().join("media"))), same(&tree(&machine.media())));
}

/// A base refers to nothing that was sealed for the entries before it: the file that is being read is begun again, though as
/// much is sealed of it as an entry may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_film_that_a_base_cuts_off_is_read_again() {
    let mut machine = Machine::new().await;
    machine.back_up().await.unwrap();
    let mut cut_off = false;
    for film in 0..20 {
        machine.save(&format!("{film}.mp4"), &noise(film, 100_000_000));
        while machine.spooled_bytes() < 40_000_000 && newest(&machine).await.files <= film {
            // asks for what is read meanwhile, as the service does
            machine.listen();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        machine.follower.as_ref().unwrap().forget(BTreeSet::new());
        let base = machine.capture().await.unwrap().written.unwrap();
        machine.upload().await;
        cut_off = machine.entry(base.head.seq).await.folders[0].unread > 0;
        let all = tokio::time::timeout(Duration::from_mins(1), machine.back_up_everything()).await;
        all.expect("a film that nobody reads on");
        assert_eq!(newest(&machine).await.files, film + 1);
        if cut_off {
            break;
        }
    }
    assert!(cut_off, "every film was read before the base was made");
    let restored = machine.restore(machine.seq()).await;
    assert_eq!(same(&tree(&restored.path().join("media"))), same(&tree(&machine.media())));
}

/// Every point has a state of the file that it once had, or none.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_rests_is_in_the_backup_as_it_was_at_some_moment() {
    let mut machine = Machine::new().await;
    machine.save("rest", b"quiet");
    let path = machine.media().join("log");
    let writing = Arc::new(AtomicBool::new(true));
    let writer = {
        let (writing, path) = (writing.clone(), path.clone());
        std::thread::spawn(move || {
            let mut round = 0_u64;
            while writing.load(Ordering::Relaxed) {
                // each state is all of one byte, so a mixture would show
                std::fs::write(&path, vec![(round % 251) as u8; 2_000_000]).unwrap();
                round += 1;
                std::thread::sleep(Duration::from_millis(round % 90));
            }
        })
    };
    for _ in 0..15 {
        machine.say("words");
        machine.capture().await.unwrap();
        machine.upload().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    writing.store(false, Ordering::Relaxed);
    writer.join().unwrap();
    let mut with = 0;
    for point in machine.points() {
        let restored = machine.restore(point.seq).await;
        assert!(restored.path().join("media/rest").exists());
        if let Ok(content) = std::fs::read(restored.path().join("media/log")) {
            assert!(content.windows(2).all(|pair| pair[0] == pair[1]), "point {}", point.seq);
            with += 1;
        }
    }
    machine.say("words");
    machine.back_up().await.unwrap();
    let restored = machine.restore(machine.seq()).await;
    assert_eq!(std::fs::read(restored.path().join("media/log")).unwrap(), std::fs::read(path).unwrap());
    assert!(with > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_files_wait_until_they_have_their_names() {
    let mut machine = Machine::new().await;
    machine.save("photo.jpg.part", b"half of it");
    machine.back_up().await.unwrap();
    assert_eq!(newest(&machine).await.files, 0);
    machine.rename("photo.jpg.part", "photo.jpg");
    machine.back_up().await.unwrap();
    assert_eq!(newest(&machine).await.files, 1);
}

/// The folder is gone, or something else has its name: nothing that is in the backup goes for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_stays_in_the_backup_as_it_was() {
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 100_000));
    machine.save("b", b"b");
    machine.back_up().await.unwrap();
    let (media, aside) = (machine.media(), machine.folder.path().join("aside"));
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"not to be read").unwrap();
    let before = tree(&media);
    std::fs::rename(&media, &aside).unwrap();
    for what in ["nothing", "a file", "a link"] {
        match what {
            "a file" => std::fs::write(&media, b"x").unwrap(),
            "a link" => std::os::unix::fs::symlink(outside.path(), &media).unwrap(),
            _ => {}
        }
        for restart in [false, true] {
            if restart {
                machine.restart().await;
            }
            machine.say(what);
            let point = machine.capture().await.unwrap().written.unwrap().point;
            machine.upload().await;
            machine.wait_for_caution(Some("stay in the backup")).await;
            let restored = machine.restore(point.seq).await;
            assert_eq!(same(&tree(&restored.path().join("media"))), same(&before), "{what}");
        }
        let _ = std::fs::remove_file(&media);
    }
    std::fs::rename(&aside, &media).unwrap();
    machine.remove("b");
    machine.restart().await;
    machine.back_up().await.unwrap();
    assert_eq!(newest(&machine).await.files, 1);
    machine.wait_for_caution(None).await;
}

/// More than an entry holds itself: the list is in packs, and is found again without the cache.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_in_packs() {
    let mut machine = Machine::new().await;
    for file in 0..2500 {
        machine.save(&format!("{:0>120}/{file}", file % 10), format!("content {file}").as_bytes());
    }
    machine.back_up_everything().await;
    let base = newest(&machine).await;
    assert!(!base.packs.is_empty() && base.inline.is_empty(), "{}", base.inline.len());
    assert_eq!(base.packs.iter().map(|pack| pack.items).sum::<u32>(), 2500);
    let point = machine.points().pop().unwrap();
    machine.stop();
    std::fs::remove_dir_all(machine.state()).unwrap();
    std::fs::create_dir(machine.state()).unwrap();
    machine.start().await;
    assert_eq!(machine.points().pop().unwrap().packs, point.packs, "blobs in lists in packs are in use");
    machine.save("one more", b"x");
    machine.back_up_everything().await;
    machine.assert_every_point_restores().await;
}

/// What a walk cannot look at is counted, and is not gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_counted_and_stays() {
    let mut machine = Machine::new().await;
    machine.save("a/file", b"x");
    machine.back_up().await.unwrap();
    let deep = ["d"; 70].join("/");
    machine.save(&format!("{deep}/file"), b"too deep");
    machine.back_up().await;
    machine.say("words");
    machine.back_up().await.unwrap();
    let record = newest(&machine).await;
    assert_eq!((record.files, record.unread), (1, 1));
    machine.wait_for_caution(Some("cannot be read")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_and_times_alone_are_changes_too() {
    use std::os::unix::fs::PermissionsExt;
    let mut machine = Machine::new().await;
    machine.save("a", &noise(1, 300_000));
    machine.back_up().await.unwrap();
    let before = stored(&machine).await;
    let path = machine.media().join("a");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    machine.back_up_everything().await;
    while newest(&machine).await.inline.is_empty() || machine.seq() < 2 {
        machine.listen();
        machine.back_up_everything().await;
    }
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 987_654_321);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    machine.back_up_everything().await;
    assert_eq!(machine.seq(), 3);
    assert!(stored(&machine).await < before + 10_000);
    machine.assert_every_point_restores().await;
}
