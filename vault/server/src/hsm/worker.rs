//! The one thread that talks to a device. Many sessions are slower than one, with SoftHSM2 at least, and a TPM does one thing
//! at a time; and the thread that decides and commits must not stand behind a hundred evaluations.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hsm::DeviceError;

/// Jobs that may wait before whoever brings one has to wait itself.
const QUEUE_LEN: usize = 1024;

/// Who waits for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The thread that decides, and with it everybody: at once.
    First,
    /// As well, but for what a whole batch has to be done once: not before those before it had [`SHARES`] times as long.
    /// Each evaluation that ends brings a new question. If that were anchored at once, every batch would be of one.
    Batch,
    /// One client.
    Later,
}

/// How much longer than for one [`Turn::Batch`] the device works for clients that wait, before the next. So the anchor
/// takes at most a fifth of its time, and waits at most four times as long as it takes.
const SHARES: u32 = 4;

type Work<T> = Box<dyn FnOnce(&mut T) + Send>;

struct Job<T> {
    turn: Turn,
    work: Work<T>,
}

/// The thread, and the token that it owns. It ends, and closes the connection, when this is dropped.
pub(super) struct Worker<T> {
    jobs: Option<SyncSender<Job<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Gives `token` to a thread of its own.
    pub(super) fn start(token: T) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let thread =
            std::thread::Builder::new().name("vault-hsm".to_owned()).spawn(move || run(token, &queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has `work` done, and waits for it.
    pub(super) fn call<R: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce(&mut T) -> Result<R, DeviceError> + Send + 'static,
    ) -> Result<R, DeviceError> {
        let (sender, receiver) = sync_channel(1);
        let work: Work<T> = Box::new(move |token| drop(sender.send(work(token))));
        let jobs = self.jobs.as_ref().ok_or(DeviceError::Gone)?;
        jobs.send(Job { turn, work }).map_err(|_| DeviceError::Gone)?;
        receiver.recv().map_err(|_| DeviceError::Gone)?
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // a panic there was already reported on standard error
            drop(thread.join());
        }
    }
}

/// Whatever comes with [`Turn::First`] is done before the next of the others.
fn run<T>(mut token: T, queue: &Receiver<Job<T>>) {
    let (mut batches, mut later) = (VecDeque::<Work<T>>::new(), VecDeque::<Work<T>>::new());
    // to clients, since the last batch
    let mut owed = Duration::ZERO;
    loop {
        let idle = batches.is_empty() && later.is_empty();
        match if idle { queue.recv().ok() } else { queue.try_recv().ok() } {
            Some(Job { turn: Turn::First, work }) => work(&mut token),
            Some(Job { turn: Turn::Batch, work }) => batches.push_back(work),
            Some(Job { turn: Turn::Later, work }) => later.push_back(work),
            None if idle => return,
            None => {
                let start = Instant::now();
                if let Some(work) = batches.pop_front_if(|_| owed.is_zero() || later.is_empty()) {
                    work(&mut token);
                    owed = start.elapsed() * SHARES;
                } else if let Some(work) = later.pop_front() {
                    work(&mut token);
                    owed = owed.saturating_sub(start.elapsed());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Holds the thread up, lets others queue, and tells in which order they were served.
    #[test]
    fn what_everybody_waits_for_is_done_first_and_the_rest_in_order() {
        let worker = Worker::start(Vec::new()).unwrap();
        let (go, gate) = sync_channel::<()>(0);
        let (jobs, name) = (worker.jobs.as_ref().unwrap(), |name: &'static str| -> Work<Vec<&str>> {
            Box::new(move |order| order.push(name))
        });
        jobs.send(Job { turn: Turn::First, work: Box::new(move |_| gate.recv().unwrap()) }).unwrap();
        for (turn, job) in [(Turn::Later, "guess 1"), (Turn::Later, "guess 2"), (Turn::First, "record")] {
            jobs.send(Job { turn, work: name(job) }).unwrap();
        }
        go.send(()).unwrap();
        let order = worker.call(Turn::Later, |order| Ok(order.clone())).unwrap();
        assert_eq!(order, ["record", "guess 1", "guess 2"]);
    }

    /// A batch that took long is followed by a guess, whatever comes first.
    #[test]
    fn of_two_batches_the_second_waits_for_guesses() {
        let worker = Worker::start(Vec::new()).unwrap();
        let (go, gate) = sync_channel::<()>(0);
        let jobs = worker.jobs.as_ref().unwrap();
        let name = |name: &'static str, ms: u64| -> Work<Vec<&str>> {
            Box::new(move |order| {
                std::thread::sleep(Duration::from_millis(ms));
                order.push(name);
            })
        };
        jobs.send(Job { turn: Turn::First, work: Box::new(move |_| gate.recv().unwrap()) }).unwrap();
        let waiting = [
            (Turn::Later, name("guess 1", 1)),
            (Turn::Batch, name("batch 1", 10)),
            (Turn::Batch, name("batch 2", 0)),
            (Turn::Later, name("guess 2", 1)),
        ];
        for (turn, work) in waiting {
            jobs.send(Job { turn, work }).unwrap();
        }
        go.send(()).unwrap();
        let order = worker.call(Turn::Later, |order| Ok(order.clone())).unwrap();
        assert_eq!(order[..3], ["batch 1", "guess 1", "guess 2"]);
        let order = worker.call(Turn::Batch, |order| Ok(order.clone())).unwrap();
        assert_eq!(order[3..], ["batch 2"]);
    }

    #[test]
    fn a_thread_that_broke_is_an_error_and_no_wait_without_end() {
        let worker = Worker::start(()).unwrap();
        let broken = worker.call(Turn::First, |()| -> Result<(), _> { panic!("a test breaks it") });
        assert!(matches!(broken, Err(DeviceError::Gone)));
        assert!(matches!(worker.call(Turn::Later, |()| Ok(())), Err(DeviceError::Gone)));
    }
}
