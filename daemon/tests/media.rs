//! Attachments in the backup: what is new, changed, gone, renamed, and all that can happen meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

mod machine;

use machine::{Machine, noise};

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
