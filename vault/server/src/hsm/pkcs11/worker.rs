//! The one thread that talks to the token. Many sessions are slower than one, with SoftHSM2 at least; and the thread
//! that decides and commits must not stand behind a hundred evaluations.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::token::Token;
use crate::hsm::DeviceError;

/// Jobs that may wait before whoever brings one has to wait itself.
const QUEUE_LEN: usize = 1024;

/// Who waits for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The thread that decides, and with it everybody: at once.
    First,
    /// One client.
    Later,
}

type Work = Box<dyn FnOnce(&mut Token) + Send>;

struct Job {
    turn: Turn,
    work: Work,
}

/// The thread. It ends, and closes the session, when this is dropped.
pub(super) struct Worker {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Gives `token` to a thread of its own.
    pub(super) fn start(token: Token) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let thread =
            std::thread::Builder::new().name("vault-hsm".to_owned()).spawn(move || run(token, &queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has `work` done, and waits for it.
    pub(super) fn call<T: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce(&mut Token) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, DeviceError> {
        let (sender, receiver) = sync_channel(1);
        let work: Work = Box::new(move |token| drop(sender.send(work(token))));
        let jobs = self.jobs.as_ref().ok_or(DeviceError::Gone)?;
        jobs.send(Job { turn, work }).map_err(|_| DeviceError::Gone)?;
        receiver.recv().map_err(|_| DeviceError::Gone)?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // a panic there was already reported on standard error
            drop(thread.join());
        }
    }
}

/// Whatever comes with [`Turn::First`] is done before the next of the others.
fn run(mut token: Token, queue: &Receiver<Job>) {
    let mut later: VecDeque<Work> = VecDeque::new();
    loop {
        let job = if later.is_empty() { queue.recv().ok() } else { queue.try_recv().ok() };
        match job {
            Some(Job { turn: Turn::First, work }) => work(&mut token),
            Some(Job { turn: Turn::Later, work }) => later.push_back(work),
            None => match later.pop_front() {
                Some(work) => work(&mut token),
                None => return,
            },
        }
    }
}
