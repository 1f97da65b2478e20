//! A listing is whole or an error, whatever happens to its pages. Two pages of moto behind a proxy that spoils them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use chatkeep_store::{ErrorKind, Store};
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::slow::{Deed, Proxy, Request, Response};
use common::{names, trusting};

const OBJECTS: usize = 1001;

struct World {
    _moto: Moto,
    proxy: Proxy,
    store: Arc<dyn Store>,
}

impl World {
    async fn new() -> Self {
        let moto = Moto::start();
        moto.bucket("plain", false);
        for number in 0..OBJECTS {
            moto.ask(&Request::new("PUT", &format!("/plain/d/log/{number:08}"), b"x"));
        }
        let proxy = Proxy::start(moto.address(), 0);
        let store = trusting(&format!("http://{}", proxy.address()), "plain").await;
        Self { _moto: moto, proxy, store }
    }

    /// Changes the text of every page (of the second only, if `second`).
    fn spoil(&self, second: bool, change: impl Fn(String) -> String + Send + Sync + 'static) {
        self.proxy.twist(move |request, answer| {
            if second && !is_second(request) {
                return answer;
            }
            let body = change(String::from_utf8(answer.body.clone()).unwrap());
            Response { body: body.into_bytes(), ..answer }
        });
    }

    async fn fails_with(&self, kind: ErrorKind) {
        let error = self.store.list("d").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

fn is_second(request: &Request) -> bool {
    request.query("continuation-token").is_some()
}

/// What stands between two tags.
fn between<'a>(text: &'a str, tag: &str) -> &'a str {
    text.split_once(&format!("<{tag}>")).unwrap().1.split_once(&format!("</{tag}>")).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pages_are_one_listing_and_every_spoilt_one_is_an_error() {
    let world = World::new().await;
    let all = names(&world.store, "d").await.unwrap();
    assert_eq!(all.len(), OBJECTS);
    assert_eq!(world.proxy.seen().len(), 2);

    // cut in the middle, between two objects, and just before the end
    world.spoil(true, |page| page[..page.len() / 2].to_owned());
    world.fails_with(ErrorKind::IncompleteListing).await;
    world.spoil(false, |page| page[..page.find("</Contents>").unwrap() + "</Contents>".len()].to_owned());
    world.fails_with(ErrorKind::IncompleteListing).await;
    world.spoil(true, |page| page.strip_suffix("</ListBucketResult>").unwrap().to_owned());
    world.fails_with(ErrorKind::IncompleteListing).await;

    // there is more, and it is not said where; it is said where, and that there is no more
    world.spoil(false, |page| {
        let Some((before, rest)) = page.split_once("<NextContinuationToken>") else { return page };
        format!("{before}{}", rest.split_once("</NextContinuationToken>").unwrap().1)
    });
    world.fails_with(ErrorKind::IncompleteListing).await;
    world.spoil(false, |page| page.replace("<IsTruncated>true", "<IsTruncated>false"));
    world.fails_with(ErrorKind::IncompleteListing).await;
    world.spoil(false, |page| page.replace("<IsTruncated>true</IsTruncated>", ""));
    world.fails_with(ErrorKind::IncompleteListing).await;

    // an object is left out that was counted
    world.spoil(false, |page| {
        let object = format!("<Contents>{}</Contents>", between(&page, "Contents"));
        page.replacen(&object, "", 1)
    });
    world.fails_with(ErrorKind::IncompleteListing).await;

    // what answers is no store at all
    world.spoil(false, |_| "<html><body>Welcome to the airport</body></html>".to_owned());
    world.fails_with(ErrorKind::IncompleteListing).await;

    // a name that leads out of the folder
    world.spoil(true, |page| {
        let name = between(&page, "Key").to_owned();
        page.replace(&name, "d/../../etc/passwd")
    });
    world.fails_with(ErrorKind::UntrustedListing).await;
    world.spoil(true, |page| {
        let name = between(&page, "Key").to_owned();
        page.replace(&name, "e/log/00000000")
    });
    world.fails_with(ErrorKind::UntrustedListing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_does_not_come_is_an_error_and_one_that_comes_twice_is_not() {
    let world = World::new().await;
    let all = names(&world.store, "d").await.unwrap();

    for (answer, kind) in [
        (Response::error(500, "InternalError"), ErrorKind::Transient),
        (Response::error(503, "SlowDown"), ErrorKind::Throttled),
        (Response::error(403, "AccessDenied"), ErrorKind::Permission),
        (Response::error(403, "ExpiredToken"), ErrorKind::Auth),
    ] {
        world.proxy.rule(
            move |request| {
                if is_second(request) { Deed::Answer(answer.clone()) } else { Deed::Pass }
            },
        );
        world.fails_with(kind).await;
    }
    world.proxy.rule(|request| if is_second(request) { Deed::HangUp } else { Deed::Pass });
    world.fails_with(ErrorKind::Transient).await;
    world.proxy.rule(|request| if is_second(request) { Deed::Cut(100) } else { Deed::Pass });
    world.fails_with(ErrorKind::Transient).await;
    world.proxy.rule(|_| Deed::Pass);

    // the second page names what the first did, once more
    world.spoil(true, |page| {
        let object = format!("<Contents>{}</Contents>", between(&page, "Contents"));
        let name = between(&page, "Key").to_owned();
        let again = object.replace(&name, "d/log/00000000");
        page.replace(&object, &format!("{again}{object}"))
    });
    assert_eq!(names(&world.store, "d").await.unwrap(), all);

    // a page that follows itself
    world.proxy.twist(|request, answer| {
        let Some(token) = request.query("continuation-token") else { return answer };
        let more =
            format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>");
        let page = String::from_utf8(answer.body.clone()).unwrap();
        Response { body: page.replace("<IsTruncated>false</IsTruncated>", &more).into_bytes(), ..answer }
    });
    world.fails_with(ErrorKind::IncompleteListing).await;
}
