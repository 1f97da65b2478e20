//! The stores of `prove stores`: each with a server of its own, and as a user would configure it.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use chatkeep_store::Opening;
use chatkeep_store_rig::azurite::{ACCOUNT, ACCOUNT_KEY, Azurite};
use chatkeep_store_rig::dav::{Dav, PASSWORD, USER};
use chatkeep_store_rig::gcs::{BUCKET, Gcs, service_account};
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::rclone;
use chatkeep_store_rig::server::{Server, free_port};
use chatkeep_store_rig::slow::{Deed, Proxy, Request, Response};
use chatkeep_store_rig::sshd::Sshd;
use chatkeep_tests::stack::machine::Shelf;
use zeroize::Zeroizing;

const KEY_ID: &str = "AKIDEXAMPLEAKIDEXAMP";
const KEY: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";

/// A store with all that it stands on; the servers end when it is dropped.
pub(crate) struct Place {
    /// Kind and server.
    pub(crate) name: &'static str,
    /// As a user configures it.
    pub(crate) shelf: Shelf,
    /// It misbehaves: the contract is not asked of it, only that nothing that was announced is lost.
    pub(crate) hostile: bool,
    stands_on: Vec<Box<dyn Any>>,
}

impl Place {
    fn new(name: &'static str, url: &str, options: &[(&str, &str)], secrets: &[(&str, &str)]) -> Self {
        let owned = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let shelf = Shelf { url: url.to_owned(), options: owned(options), secrets: owned(secrets) };
        Self { name, shelf, hostile: false, stands_on: Vec::new() }
    }

    fn on(mut self, server: impl Any) -> Self {
        self.stands_on.push(Box::new(server));
        self
    }

    fn hostile(mut self) -> Self {
        self.hostile = true;
        self
    }

    /// What a host opens it with.
    pub(crate) fn opening(&self) -> Opening {
        let mut opening = Opening::of_url(&self.shelf.url);
        opening.options.clone_from(&self.shelf.options);
        for (name, value) in &self.shelf.secrets {
            opening.secrets.set(name, Zeroizing::new(value.clone()));
        }
        opening
    }
}

/// All of them, in the order of the table. Each is started when its turn comes.
pub(crate) const ALL: [fn(&Path) -> Place; 15] = [
    file,
    memory,
    moto,
    lying_s3,
    azurite,
    gcs,
    nginx,
    apache,
    dav_of_rclone,
    sshd,
    rclone_local,
    rclone_webdav,
    rclone_sftp,
    failing_s3,
    failing_dav,
];

fn file(folder: &Path) -> Place {
    let shelf = folder.join("shelf");
    std::fs::create_dir_all(&shelf).expect("a folder of its own");
    Place::new("file", &format!("file://{}", shelf.display()), &[], &[])
}

fn memory(_: &Path) -> Place {
    Place::new("memory", "memory:", &[], &[])
}

fn s3(name: &'static str, endpoint: &str) -> Place {
    let options = [("endpoint", endpoint), ("allow_http", "true"), ("path_style", "true")];
    Place::new(
        name,
        "s3://backups/laptop",
        &options,
        &[("access_key_id", KEY_ID), ("secret_access_key", KEY)],
    )
}

fn moto(_: &Path) -> Place {
    let moto = Moto::start();
    moto.bucket("backups", false);
    let mut place = s3("s3: moto", &moto.endpoint());
    // it can be relied on; what is not told so is found out one by one, and counts as advisory
    place.shelf.options.insert("conditions".to_owned(), "on".to_owned());
    place.on(moto)
}

/// It takes conditions and ranges, and pays no heed to them.
fn lying_s3(folder: &Path) -> Place {
    let files = folder.join("lying");
    std::fs::create_dir_all(files.join("backups")).expect("a folder of its own");
    let port = free_port();
    let mut command = Command::new(rclone::program());
    command.args(["serve", "s3", "--config", "/dev/null", "--addr", &format!("127.0.0.1:{port}")]);
    command.args(["--auth-key", &format!("{KEY_ID},{KEY}")]).arg(&files);
    let server = Server::start(&mut command, port);
    s3("s3: rclone serve s3 (ignores conditions and ranges)", &format!("http://{}", server.address()))
        .on(server)
}

fn azurite(_: &Path) -> Place {
    let azurite = Azurite::start();
    azurite.container("backups");
    let endpoint = azurite.endpoint();
    let options = [("account", ACCOUNT), ("endpoint", endpoint.as_str())];
    Place::new("az: Azurite", "az://backups/laptop", &options, &[("account_key", ACCOUNT_KEY)]).on(azurite)
}

/// A fake: no real one runs here.
fn gcs(_: &Path) -> Place {
    let gcs = Gcs::start();
    let endpoint = gcs.endpoint();
    let (url, key) = (format!("gs://{BUCKET}/laptop"), service_account());
    let (options, secrets) = ([("endpoint", endpoint.as_str())], [("service_account", key.as_str())]);
    Place::new("gs: a fake of its XML interface", &url, &options, &secrets).on(gcs)
}

fn dav(name: &'static str, port: u16, secrets: &[(&str, &str)]) -> Place {
    Place::new(name, &format!("dav+http://127.0.0.1:{port}/laptop"), &[("allow_http", "true")], secrets)
}

fn nginx(_: &Path) -> Place {
    let server = Dav::nginx();
    dav("dav: nginx", server.port(), &[]).on(server)
}

fn apache(_: &Path) -> Place {
    let server = Dav::apache();
    dav("dav: Apache", server.port(), &[("username", USER), ("password", PASSWORD)]).on(server)
}

fn dav_of_rclone(_: &Path) -> Place {
    let server = Dav::rclone();
    dav("dav: rclone serve webdav", server.port(), &[("username", USER), ("password", PASSWORD)]).on(server)
}

fn sshd(_: &Path) -> Place {
    let server = Sshd::start();
    let url = format!("sftp://127.0.0.1:{}{}", server.port(), server.files().join("laptop").display());
    let config = server.client_config();
    let config = config.to_str().expect("a path of text");
    Place::new("sftp: OpenSSH", &url, &[("ssh_config", config)], &[]).on(server)
}

/// A remote in a configuration of its own.
fn of_rclone(name: &'static str, folder: &Path, url: &str, section: &str) -> Place {
    let config = folder.join("rclone/rclone.conf");
    std::fs::create_dir_all(folder.join("rclone")).expect("a folder of its own");
    std::fs::write(&config, section).expect("a file of its own");
    let (config, program) = (config.display().to_string(), rclone::program().display().to_string());
    Place::new(name, url, &[("program", &program), ("config", &config)], &[])
}

fn rclone_local(folder: &Path) -> Place {
    let files = folder.join("files");
    std::fs::create_dir_all(&files).expect("a folder of its own");
    let url = format!("rclone:disk:{}", files.display());
    of_rclone("rclone: local", folder, &url, "[disk]\ntype = local\n")
}

fn rclone_webdav(folder: &Path) -> Place {
    let files = folder.join("files");
    std::fs::create_dir_all(&files).expect("a folder of its own");
    let server = rclone::webdav(&files);
    let section = format!("[cloud]\ntype = webdav\nvendor = other\nurl = http://{}\n", server.address());
    of_rclone("rclone: webdav", folder, "rclone:cloud:laptop", &section).on(server)
}

fn rclone_sftp(folder: &Path) -> Place {
    let files = folder.join("files");
    std::fs::create_dir_all(&files).expect("a folder of its own");
    let server = rclone::sftp(&files, "me", PASSWORD);
    let port = server.address().port();
    let section = format!(
        "[nas]\ntype = sftp\nhost = 127.0.0.1\nport = {port}\nuser = me\npass = {}\n",
        rclone::obscured(PASSWORD)
    );
    of_rclone("rclone: sftp", folder, "rclone:nas:laptop", &section).on(server)
}

/// Of eight requests one is refused in passing, one is done and answered with an error, one is done and its answer is lost, and
/// one answer is cut off.
fn failing(count: &AtomicU64, _: &Request) -> Deed {
    match count.fetch_add(1, Ordering::Relaxed) % 32 {
        3 => Deed::Answer(Response::error(503, "SlowDown").with("retry-after", "1")),
        11 => Deed::PassAndAnswer(Response::error(500, "InternalError")),
        19 => Deed::PassAndHangUp,
        23 => Deed::HangUp,
        29 => Deed::Cut(100),
        _ => Deed::Pass,
    }
}

fn failing_s3(_: &Path) -> Place {
    let moto = Moto::start();
    moto.bucket("backups", false);
    let proxy = Proxy::start(moto.address(), 0);
    let count = AtomicU64::new(0);
    proxy.rule(move |request| failing(&count, request));
    s3("s3: moto behind a line that fails", &format!("http://{}", proxy.address()))
        .on(proxy)
        .on(moto)
        .hostile()
}

fn failing_dav(_: &Path) -> Place {
    let server = Dav::nginx();
    let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into(), 0);
    let count = AtomicU64::new(0);
    proxy.rule(move |request| failing(&count, request));
    let port = proxy.address().port();
    dav("dav: nginx behind a line that fails", port, &[]).on(proxy).on(server).hostile()
}
