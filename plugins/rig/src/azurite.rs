//! Azurite: the Azure Blob Storage emulator of its maker.

use std::net::SocketAddr;
use std::process::Command;

use crate::server::{Server, free_port};
use crate::tools;

/// The account that Azurite always has.
pub const ACCOUNT: &str = "devstoreaccount1";

/// Its key, which is in Azurite's manual.
pub const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes a container (arguments: address, account, key, container): the one thing that needs a signature before a store is opened.
const MAKE_CONTAINER: &str = r#"
import base64, email.utils, hashlib, hmac, sys, urllib.request
address, account, key, container = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
path = f"/{account}/{container}"
text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}{path}\nrestype:container"
mac = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
headers = {"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {account}:{mac}"}
url = f"http://{address}{path}?restype=container"
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.request.Request(url, method="PUT", headers=headers))
"#;

/// Prints a shared access signature for a container (arguments: account, key, container, permissions).
const SIGN_ACCESS: &str = r#"
import base64, hashlib, hmac, sys, urllib.parse
account, key, container, permissions = sys.argv[1:]
fields = {"sp": permissions, "st": "2020-01-01T00:00:00Z", "se": "2099-01-01T00:00:00Z", "sv": "2021-08-06", "sr": "c"}
text = "\n".join([fields["sp"], fields["st"], fields["se"], f"/blob/{account}/{container}", "", "", "", fields["sv"], fields["sr"]] + [""] * 7)
fields["sig"] = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
print(urllib.parse.urlencode(fields), end="")
"#;

/// A running Azurite.
pub struct Azurite {
    server: Server,
    _folder: tempfile::TempDir,
}

impl Azurite {
    /// Starts one without containers.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(tools::node().join("azurite-blob"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]);
        command.arg(folder.path()).args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        Self { server: Server::start(&mut command, port), _folder: folder }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The URL of its account.
    pub fn endpoint(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.address())
    }

    /// Makes a container.
    pub fn container(&self, name: &str) {
        let mut command = Command::new("python3");
        command.args(["-c", MAKE_CONTAINER, &self.address().to_string(), ACCOUNT, ACCOUNT_KEY, name]);
        let status = command.status().unwrap();
        assert!(status.success(), "the container `{name}` cannot be made");
    }

    /// A shared access signature for a container, with permissions as `rwdl`.
    pub fn sas(&self, container: &str, permissions: &str) -> String {
        let mut command = Command::new("python3");
        let made =
            command.args(["-c", SIGN_ACCESS, ACCOUNT, ACCOUNT_KEY, container, permissions]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap()
    }
}
