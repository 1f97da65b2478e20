//! Servers that speak S3 and mean something else: `rclone serve s3` answers 200 to every condition and every range.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Command;

use chatkeep_store::conformance::{Extent, assert_all_passed, run};
use chatkeep_store::{CreateGuarantee, ErrorKind};
use chatkeep_store_cloud::open;
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::server::{Server, free_port};
use chatkeep_store_rig::slow::{Deed, Proxy, Response};
use chatkeep_store_rig::tools;
use common::{create, key, names, pattern, probing, s3_as};

struct Liar {
    server: Server,
    _folder: tempfile::TempDir,
}

const ID: &str = "AKIDEXAMPLEAKIDEXAMP";
const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";

impl Liar {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vault")).unwrap();
        let port = free_port();
        let mut command = Command::new(tools::python().join("rclone"));
        command.args(["serve", "s3", "--config", "/dev/null", "--vfs-cache-mode", "off"]);
        command.args(["--addr", &format!("127.0.0.1:{port}"), "--auth-key", &format!("{ID},{SECRET}")]);
        command.arg(folder.path());
        Self { server: Server::start(&mut command, port), _folder: folder }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_conditions_is_found_out_and_used_all_the_same() {
    let liar = Liar::start();
    let store = open(&s3_as(&liar.endpoint(), "vault/laptop", &[], ID, SECRET)).await.unwrap();
    create(&store, "d/1", pattern(1000)).await.unwrap();
    assert_eq!(store.capabilities().create, CreateGuarantee::Advisory);
    assert_eq!(create(&store, "d/1", "another").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.get(&key("d/1"), None).await.unwrap(), pattern(1000));
    assert_eq!(store.get(&key("d/1"), Some(10..20)).await.unwrap(), pattern(1000).slice(10..20));
    assert_eq!(names(&store, "").await.unwrap(), ["d/1"], "the object of the trial is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_it() {
    let liar = Liar::start();
    let store = open(&s3_as(&liar.endpoint(), "vault/laptop", &[], ID, SECRET)).await.unwrap();
    assert_all_passed(&run(store, "suite", Extent::QUICK).await);
}

/// As OpenStack Swift answers: an honest refusal, of which moto knows nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_conditions_is_not_asked_for_them_again() {
    let moto = Moto::start();
    moto.bucket("vault", false);
    let proxy = Proxy::start(moto.address(), 0);
    proxy.rule(|request| match request.header("if-none-match") {
        Some(_) => Deed::Answer(Response::error(501, "NotImplemented")),
        None => Deed::Pass,
    });
    let endpoint = format!("http://{}", proxy.address());
    for store in
        [probing(&endpoint, "vault/probed").await, common::trusting(&endpoint, "vault/trusted").await]
    {
        create(&store, "d/1", "x").await.unwrap();
        assert_eq!(store.capabilities().create, CreateGuarantee::Advisory);
        assert_eq!(create(&store, "d/1", "y").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_all_passed(&run(store, "suite", Extent::QUICK).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_ranges_with_everything_is_cut_here() {
    let moto = Moto::start();
    moto.bucket("vault", false);
    let proxy = Proxy::start(moto.address(), 0);
    let store = probing(&format!("http://{}", proxy.address()), "vault").await;
    let body = pattern(1000);
    create(&store, "d/1", body.clone()).await.unwrap();
    let whole = body.clone();
    proxy.rule(move |request| match request.header("range") {
        Some(_) => Deed::Answer(Response::new(200, whole.clone()).with("etag", "\"x\"")),
        None => Deed::Pass,
    });
    assert!(store.capabilities().range);
    for (start, end) in [(0, 1), (10, 20), (999, 2000), (1000, 1001), (5000, 6000)] {
        let part = store.get(&key("d/1"), Some(start..end)).await.unwrap();
        assert_eq!(part, body.slice(start.min(1000) as usize..end.min(1000) as usize), "{start}..{end}");
    }
    assert!(!store.capabilities().range);
}
