//! moto: an S3 server with conditions, versions and locks. It takes any credentials until it is told otherwise.

use std::net::SocketAddr;
use std::process::Command;

use crate::http::{Request, Response};
use crate::server::{Server, free_port};
use crate::tools;

/// A running moto.
pub struct Moto {
    server: Server,
}

/// Credentials of a user of moto.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: String,
}

impl Moto {
    /// Starts one without buckets.
    pub fn start() -> Self {
        let port = free_port();
        let program = tools::python().join("moto_server");
        let server =
            Server::start(Command::new(program).args(["-H", "127.0.0.1", "-p", &port.to_string()]), port);
        Self { server }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Makes a bucket, one whose objects can be locked if `lock`.
    pub fn bucket(&self, name: &str, lock: bool) {
        let request = Request::new("PUT", &format!("/{name}"), b"");
        let request = if lock { request.with("x-amz-bucket-object-lock-enabled", "true") } else { request };
        self.ask(&request);
    }

    /// Sends a request, of which only the service is looked at that its signature names.
    pub fn ask(&self, request: &Request) -> Response {
        let mut request = request.clone();
        if request.header("authorization").is_none() {
            request = request.with("authorization", &signature("s3"));
        }
        let answer = request.send(self.address()).expect("moto answers");
        let text = String::from_utf8_lossy(&answer.body);
        assert!((200..300).contains(&answer.status), "{request:?}: {} {text}", answer.status);
        answer
    }

    /// Makes a user who may do what `policy` (JSON) says, and checks signatures and policies from now on.
    pub fn only_user(&self, policy: &str) -> AccessKey {
        let name = "only";
        self.iam(&[("Action", "CreateUser"), ("UserName", name)]);
        let made = self.iam(&[("Action", "CreateAccessKey"), ("UserName", name)]);
        let field = |name: &str| {
            let (_, rest) = made.split_once(&format!("<{name}>")).expect("a field");
            rest.split_once('<').expect("its end").0.to_owned()
        };
        let key = AccessKey { id: field("AccessKeyId"), secret: field("SecretAccessKey") };
        let put = ("Action", "PutUserPolicy");
        self.iam(&[put, ("UserName", name), ("PolicyName", "only"), ("PolicyDocument", policy)]);
        self.ask(&Request::new("POST", "/moto-api/reset-auth", b"0"));
        key
    }

    fn iam(&self, fields: &[(&str, &str)]) -> String {
        let mut form = "Version=2010-05-08".to_owned();
        for (name, value) in fields {
            let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            form.push_str(&format!("&{name}={value}"));
        }
        let request = Request::new("POST", "/", form.as_bytes())
            .with("authorization", &signature("iam"))
            .with("content-type", "application/x-www-form-urlencoded");
        String::from_utf8(self.ask(&request).body).unwrap()
    }
}

/// What looks like a signature.
fn signature(service: &str) -> String {
    let scope = format!("x/20260101/us-east-1/{service}/aws4_request");
    format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=x")
}
