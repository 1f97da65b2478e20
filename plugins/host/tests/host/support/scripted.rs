//! A plugin that is a task of the test and not a process: a stand-in, to say on the wire what no honest program says.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use chatkeep_store_host::launch::{End, Launch, Launcher, Running, Walls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Answers one request, given its head, on the raw connection.
pub(crate) type Script = Arc<dyn Fn(String) -> Vec<u8> + Send + Sync>;

/// Starts tasks that answer by a script. `POST /open` is answered well unless the script answers something to it.
pub(crate) struct Scripted {
    script: Script,
    /// How often a plugin was started.
    pub(crate) starts: Arc<AtomicUsize>,
}

/// What is answered to `POST /open`.
pub(crate) const OPENED: &str = r#"{"protocol":1,"name":"scripted","version":"1","caps":{"create":"atomic","usage":true,"retain":true,"parallel":4}}"#;

/// An answer with this status line, headers and body, and the length of the body.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Scripted {
    /// Answers with what `script` returns; nothing is no answer at all: the connection stays open.
    pub(crate) fn new(script: impl Fn(String) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { script: Arc::new(script), starts: Arc::default() }
    }
}

#[async_trait]
impl Launcher for Scripted {
    async fn launch(&self, _: &Launch, listener: BorrowedFd<'_>) -> io::Result<Box<dyn Running>> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        let listener = StdListener::from(listener.try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let script = Arc::clone(&self.script);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script)));
            }
        });
        Ok(Box::new(Task(task)))
    }
}

async fn serve(mut stream: UnixStream, script: Script) -> io::Result<()> {
    loop {
        let Some(head) = read_request(&mut stream).await? else { return Ok(()) };
        let is_open = head.starts_with("POST /open");
        let mut bytes = script(head);
        if is_open && bytes.is_empty() {
            bytes = answer("200 OK", "", OPENED);
        }
        if bytes.is_empty() {
            std::future::pending::<()>().await;
        }
        stream.write_all(&bytes).await?;
    }
}

/// Reads one request with its body, and returns its head.
async fn read_request(stream: &mut UnixStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Ok(None),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; len.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok(Some(head))
}

struct Task(JoinHandle<()>);

#[async_trait]
impl Running for Task {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn walls(&self) -> Walls {
        Walls::None
    }

    async fn ended(&mut self) -> End {
        let _ = (&mut self.0).await;
        End { clean: true, words: "the task ended".to_owned() }
    }

    async fn terminate(&mut self) {
        self.0.abort();
    }

    async fn kill(&mut self) {
        self.0.abort();
    }
}
