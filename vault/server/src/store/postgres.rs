//! PostgreSQL with synchronous standbys: a commit is on two machines before it returns.
//!
//! One process writes, the *holder*. Three things see to that:
//!
//! - an advisory lock, which ends with its holder's session: whoever waits for it is the standby;
//! - the holder's name in the head's row, a condition of every commit: a former holder that wakes up commits nothing;
//! - the head itself: a commit moves it from where the writer left it, or is refused.
//!
//! When the connection breaks, the outcome of a commit may be unknown. The store then looks for a server that takes
//! writes, takes the lease again, and finds its own commit, or the one before it, or that something is lost. Only the
//! first two go on.
//!
//! It owns a runtime of one thread, the caller's: each call has a time limit and the server's warnings are heard, which
//! the blocking crate `postgres` offers neither of. So it must not be used, made or dropped inside an async function.

mod link;
mod tls;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore as _};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::Config;

use self::link::{Link, Server, Standing, Taken, Trouble};
use self::tls::Tls;
use super::{Head, PostgresConfig, Row, Store, StoreError, Write};
use crate::cells::Cell;

/// Between two looks for a server or for the lease.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// So soon after a process ended, its server may not have noticed.
const SESSION_ENDS: Duration = Duration::from_secs(2);

/// Records in a database that outlives machines.
pub struct PostgresStore {
    // before the runtime: it ends within it
    link: Option<Link>,
    runtime: Runtime,
    /// The one to try first is in front.
    servers: Vec<Server>,
    /// Names this process, in the head's row and in `pg_stat_activity`.
    holder: String,
    patience: Duration,
    name: &'static str,
    /// Where this process last knew the store to be.
    at: Head,
    term: u64,
}

/// What `status` says of a store without taking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it is.
    pub head: Head,
    /// Records in it.
    pub records: u64,
    /// How often another process took it.
    pub term: u64,
    /// See [`Store::name`].
    pub name: &'static str,
}

impl PostgresStore {
    /// Whether [`Self::create`] can succeed: asked before keys are made, which cannot be made a second time.
    pub fn check_vacant(config: &PostgresConfig) -> Result<(), StoreError> {
        let (runtime, servers) = (runtime()?, servers(config, "chatkeep-vault/init")?);
        runtime.block_on(link::check_vacant(&servers)).map_err(unreachable)
    }

    /// Makes the tables for `cell`, with this head. Refuses a database that has them.
    pub fn create(config: &PostgresConfig, cell: &Cell, head: &Head) -> Result<(), StoreError> {
        let (runtime, servers) = (runtime()?, servers(config, "chatkeep-vault/init")?);
        runtime.block_on(link::create(&servers, cell, head)).map_err(unreachable)
    }

    /// Takes the store, once nobody else has it. `waiting` is called when somebody has, and once only.
    ///
    /// Waits for the lease for ever, for a server that takes writes as long as the settings say.
    pub fn open(config: &PostgresConfig, waiting: &mut dyn FnMut()) -> Result<Self, StoreError> {
        let mut told = false;
        Self::open_or(config, &mut || {
            if !std::mem::replace(&mut told, true) {
                waiting();
            }
            true
        })
    }

    /// As [`Self::open`], but an error if somebody else has it.
    pub fn open_if_free(config: &PostgresConfig) -> Result<Self, StoreError> {
        let until = Instant::now() + SESSION_ENDS;
        Self::open_or(config, &mut || Instant::now() < until)
    }

    /// `held` is called whenever somebody else has it, and says whether to wait.
    fn open_or(config: &PostgresConfig, held: &mut dyn FnMut() -> bool) -> Result<Self, StoreError> {
        let holder = format!("chatkeep-vault/{:016x}", OsRng.next_u64());
        let mut store = Self {
            link: None,
            runtime: runtime()?,
            servers: servers(config, &holder)?,
            holder,
            patience: Duration::from_secs(config.patience.seconds),
            name: name(config),
            at: Head { seq: 0, root: [0; 32], previous_root: [0; 32], mac: [0; 32] },
            term: 0,
        };
        let mut deadline = Instant::now() + store.patience;
        loop {
            match store.take(None) {
                Ok(Taken::Ours(standing)) => {
                    store.at = standing.head;
                    store.term = standing.term;
                    return Ok(store);
                }
                Ok(_) => {
                    deadline = Instant::now() + store.patience;
                    if !held() {
                        return Err(StoreError::Held);
                    }
                }
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Away(what)) if Instant::now() > deadline => {
                    return Err(StoreError::Unreachable { what });
                }
                Err(Trouble::Away(_)) => {}
            }
            std::thread::sleep(RETRY_EVERY);
        }
    }

    /// Looks at a store that another process may hold.
    pub fn look(config: &PostgresConfig) -> Result<Seen, StoreError> {
        let (runtime, servers) = (runtime()?, servers(config, "chatkeep-vault/status")?);
        let seen = async {
            let link = Link::to_any(&servers).await?;
            let Standing { head, term, .. } = link.standing().await?;
            Ok(Seen { head, records: link.count().await?, term, name: name(config) })
        };
        runtime.block_on(seen).map_err(unreachable)
    }

    /// How often the store had changed hands when this process took it.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes the lease over the connection there is, or over a new one.
    fn take(&mut self, at: Option<u64>) -> Result<Taken, Trouble> {
        let Self { link, runtime, servers, holder, .. } = self;
        let taken = runtime.block_on(async {
            let link = match link {
                Some(link) => link,
                None => link.insert(Link::to_any(servers).await?),
            };
            link.take(holder, at).await
        });
        if taken.is_err() {
            self.try_another_server_first();
        }
        taken
    }

    /// A former primary may be back and take writes, too: whoever does not do must not hide who does.
    fn try_another_server_first(&mut self) {
        self.link = None;
        self.servers.rotate_left(1);
    }

    /// Sees to a connection that holds the lease, and gives where the store is: not before where it was.
    fn ensure(&mut self, deadline: Instant) -> Result<Head, StoreError> {
        if self.link.as_ref().is_some_and(|link| link.taken) {
            return Ok(self.at);
        }
        loop {
            let error = match self.take(Some(self.at.seq)) {
                Ok(Taken::Ours(standing)) => return Ok(standing.head),
                Ok(Taken::Fenced(standing)) if standing.term >= self.term => return Err(StoreError::Fenced),
                Ok(Taken::Behind { found }) => {
                    self.try_another_server_first();
                    StoreError::Behind { found, expected: self.at.seq }
                }
                // not taken over: this server lost even that we took it
                Ok(Taken::Fenced(standing)) => {
                    self.try_another_server_first();
                    StoreError::Behind { found: standing.head.seq, expected: self.at.seq }
                }
                Ok(Taken::Held) => {
                    StoreError::Unreachable { what: "another session has the lease".to_owned() }
                }
                Err(trouble) => match unreachable(trouble) {
                    error @ StoreError::Unreachable { .. } => error,
                    refused => return Err(refused),
                },
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(RETRY_EVERY);
        }
    }

    /// As [`Self::ensure`], when nothing is under way: the store must be where it was.
    fn ensure_in_place(&mut self, deadline: Instant) -> Result<(), StoreError> {
        let found = self.ensure(deadline)?;
        if found == self.at { Ok(()) } else { Err(StoreError::moved(found.seq, self.at.seq)) }
    }

    /// Calls, and calls again over another connection if the first one breaks: for what only reads.
    fn read<T>(&mut self, mut call: impl AsyncFnMut(&Link) -> Result<T, Trouble>) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.ensure_in_place(deadline)?;
            let link = self.link.as_ref().expect("ensured above");
            match self.runtime.block_on(call(link)) {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Away(what)) => self.give_up_link(what, deadline)?,
            }
        }
    }

    fn give_up_link(&mut self, what: String, deadline: Instant) -> Result<(), StoreError> {
        self.link = None;
        tracing::warn!("the connection to PostgreSQL broke: {what}");
        if Instant::now() > deadline { Err(StoreError::Unreachable { what }) } else { Ok(()) }
    }
}

impl Store for PostgresStore {
    fn name(&self) -> &'static str {
        self.name
    }

    fn head(&mut self) -> Result<Head, StoreError> {
        self.read(async |link| Ok(link.standing().await?.head))
    }

    fn load(&mut self, accounts: &[[u8; 16]]) -> Result<Vec<Option<Row>>, StoreError> {
        let mut rows: HashMap<_, _> =
            self.read(async |link| link.load(accounts).await)?.into_iter().collect();
        // not taken out: the same account may be asked for twice
        Ok(accounts.iter().map(|account| rows.get_mut(account).cloned()).collect())
    }

    fn commit_from(
        &mut self,
        seq: u64,
        root: &[u8; 32],
        head: &Head,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.patience;
        let mut tried = false;
        loop {
            let found = self.ensure(deadline)?;
            if tried && found == *head {
                break; // it was committed when the connection broke, and is durable now: see `Link::take`
            }
            if found != self.at {
                return Err(StoreError::moved(found.seq, self.at.seq));
            }
            tried = true;
            let link = self.link.as_ref().expect("ensured above");
            match self.runtime.block_on(link.commit(&self.holder, (seq, root), head, writes)) {
                Ok(()) => break,
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Away(what)) => self.give_up_link(what, deadline)?,
            }
        }
        self.at = *head;
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError> {
        self.ensure_in_place(Instant::now() + self.patience)?;
        let link = self.link.as_ref().expect("ensured above");
        // not tried again: what was visited cannot be taken back
        self.runtime.block_on(link.scan(visit)).map_err(|trouble| {
            self.link = None;
            unreachable(trouble)
        })
    }

    fn sealed_by_others(
        &mut self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError> {
        self.read(async |link| link.sealed_by_others(key_id, after, limit).await)
    }
}

fn unreachable(trouble: Trouble) -> StoreError {
    match trouble {
        Trouble::Away(what) => StoreError::Unreachable { what },
        Trouble::Final(error) => error,
    }
}

fn name(config: &PostgresConfig) -> &'static str {
    if config.allow_asynchronous { "postgres-asynchronous" } else { "postgres" }
}

fn runtime() -> Result<Runtime, StoreError> {
    Builder::new_current_thread().enable_all().build().map_err(|error| StoreError::Database(Box::new(error)))
}

fn servers(config: &PostgresConfig, application: &str) -> Result<Vec<Server>, StoreError> {
    let tls = config.tls_ca.as_deref().map(Tls::trusting).transpose()?;
    let mut base = Config::new();
    base.user(&config.user).dbname(&config.database).application_name(application);
    if let Some(password) = config.password()? {
        base.password(password.as_bytes());
    }
    let servers = config.servers()?.into_iter();
    Ok(servers.map(|host| Server::new(host, &base, tls.clone(), config.allow_asynchronous)).collect())
}
