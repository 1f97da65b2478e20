//! The whole suite, over rclone, against what it stores to here.
#![allow(clippy::unwrap_used, dead_code, reason = "tests; not each uses all of what they share")]

mod common;

use chatkeep_store::conformance::{Extent, assert_all_passed, run};
use chatkeep_store_rig::rclone;
use common::{World, files, open};

async fn conforms(world: &World, url: &str) {
    let results = run(open(&world.opening(url)).await, "suite", Extent::QUICK).await;
    for result in &results {
        println!("{result}");
    }
    assert_all_passed(&results);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_conforms() {
    let world = World::with_disk();
    let opening = world.disk();
    conforms(&world, &opening.url).await;
    assert_eq!(files(&world.objects()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn webdav_conforms() {
    let mut world = World::new();
    let server = rclone::webdav(&world.objects());
    world.remote(
        "dav",
        &[("type", "webdav"), ("vendor", "rclone"), ("url", &format!("http://{}", server.address()))],
    );
    conforms(&world, "rclone:dav:backups/laptop").await;
    assert_eq!(files(&world.objects()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_conforms() {
    let mut world = World::new();
    let server = rclone::sftp(&world.objects(), "me", "hunter2");
    let (port, pass) = (server.address().port().to_string(), rclone::obscured("hunter2"));
    let options = [("type", "sftp"), ("host", "127.0.0.1"), ("port", &port), ("user", "me"), ("pass", &pass)];
    world.remote("nas", &options);
    conforms(&world, "rclone://nas/backups").await;
    assert_eq!(files(&world.objects()), [""; 0]);
}

/// rclone's own store without folders: as object stores are treated, without a rename.
#[tokio::test(flavor = "multi_thread")]
async fn names_without_folders_conform() {
    let mut world = World::new();
    world.remote("mem", &[("type", "memory")]);
    conforms(&world, "rclone:mem:bucket/laptop").await;
}

/// Encrypted once more by rclone: what is around a remote behaves as what is inside.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_around_a_folder_conforms() {
    let mut world = World::with_disk();
    let inner = format!("disk:{}", world.objects().display());
    let password = rclone::obscured("hunter2");
    // encrypted names would be longer than this file system takes
    let options =
        [("type", "crypt"), ("remote", &inner), ("password", &password), ("filename_encryption", "off")];
    world.remote("safe", &options);
    conforms(&world, "rclone:safe:laptop").await;
}
