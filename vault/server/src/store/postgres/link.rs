//! One connection to one server: made, checked, and given up when it does not answer in time.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::Severity;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket, Statement};

use super::tls::Tls;
use crate::cells::Cell;
use crate::store::settings::{Address, Host};
use crate::store::{Head, Row, SEALED_LEN_MAX, StoreError, Write, chain};

/// For one statement, its commit included. A server that is slower is given up, and another one looked for.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// For the connection; a server in another building answers in milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The lease is this advisory lock of the database: "CKVAULT" in ASCII.
const LEASE: i64 = 0x0043_4b56_4155_4c54;

/// Time limits would end a commit that waits for its standby, and a foreign search path could name other tables.
const SESSION: &str = "
    SET search_path = pg_catalog; SET default_transaction_isolation = 'read committed';
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
    SET idle_session_timeout = 0";

const HEAD: &str = "SELECT seq, root, previous_root, mac, holder, term FROM chatkeep.head WHERE one";

const LOAD: &str = "SELECT account, revision, key_id, sealed FROM chatkeep.record WHERE account = ANY($1)";

/// Always writes, also if nothing changes: see [`Link::take`].
const TAKE: &str = "
    UPDATE chatkeep.head SET holder = $1, term = term + CASE WHEN holder = $1 THEN 0 ELSE 1 END
    WHERE one AND ($2 OR holder = $1) RETURNING seq, root, previous_root, mac, holder, term";

/// One statement, so one transaction and one round trip. The head's row lock puts writers in line, and who comes
/// second finds its condition broken.
const COMMIT: &str = "
    WITH moved AS (
        UPDATE chatkeep.head SET seq = $1, root = $2, previous_root = $3, mac = $4
        WHERE one AND holder = $5 AND seq = $6 AND root = $12
            AND ($7 OR current_setting('synchronous_standby_names') <> '')
        RETURNING one
    ), written AS (
        INSERT INTO chatkeep.record (account, revision, key_id, sealed)
        SELECT * FROM unnest($8::bytea[], $9::bigint[], $10::bigint[], $11::bytea[])
        WHERE EXISTS (SELECT FROM moved)
        ON CONFLICT (account) DO UPDATE
            SET revision = EXCLUDED.revision, key_id = EXCLUDED.key_id, sealed = EXCLUDED.sealed
        RETURNING account
    )
    SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM written)";

/// What a call came to instead of a result.
pub(super) enum Trouble {
    /// This server does not do now; it, or another one, may later.
    Away(String),
    /// Asking again would not help.
    Final(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

/// What asking for the lease came to.
pub(super) enum Taken {
    /// It is ours, and the store is here.
    Ours(Box<Standing>),
    /// Another session has it.
    Held,
    /// It was ours, and this server lost what we had committed.
    Behind {
        /// Where it is.
        found: u64,
    },
    /// Another process took it last.
    Fenced(Box<Standing>),
}

/// The head's row.
pub(super) struct Standing {
    pub(super) head: Head,
    /// The process that took the lease last.
    pub(super) holder: String,
    /// How often it changed hands.
    pub(super) term: u64,
}

/// How to reach one server, and what it must promise.
pub(super) struct Server {
    pub(super) host: Host,
    pub(super) config: Config,
    pub(super) tls: Option<Tls>,
    pub(super) allow_asynchronous: bool,
}

impl Server {
    /// `base` has role, database and password.
    pub(super) fn new(host: Host, base: &Config, tls: Option<Tls>, allow_asynchronous: bool) -> Self {
        let mut config = base.clone();
        config
            .port(host.port)
            .connect_timeout(CONNECT_LIMIT)
            // a server that lost its power says nothing: these let the kernel notice, within some 10 s
            .tcp_user_timeout(CALL_LIMIT)
            .keepalives_idle(Duration::from_secs(4))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = match &host.address {
            Address::Unix(path) => {
                config.host_path(path);
                None
            }
            Address::Tcp(name) => {
                config.host(name);
                tls
            }
        };
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        Self { host, config, tls, allow_asynchronous }
    }
}

/// A connection to a server that takes writes and keeps what it commits.
pub(super) struct Link {
    client: Client,
    _driver: Driver,
    /// The server said "warning" since this was last cleared.
    warned: Arc<AtomicBool>,
    load: Statement,
    commit: Statement,
    allow_asynchronous: bool,
    /// Whether this session holds the lease.
    pub(super) taken: bool,
}

/// The task that moves bytes. It ends with the link, also if the server never answers what was asked last.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Connects to the first of `servers` that takes writes and is safe.
    pub(super) async fn to_any(servers: &[Server]) -> Result<Self, Trouble> {
        let (mut said, mut refusals) = (Vec::new(), Vec::new());
        for server in servers {
            let what = match Self::to(server).await {
                Ok(link) => return Ok(link),
                Err(Trouble::Away(what)) => what,
                Err(Trouble::Final(error)) => {
                    let what = chain(&error);
                    refusals.push(error);
                    what
                }
            };
            said.push(format!("{}: {what}", server.host));
        }
        // one that is only away may come back and take over
        match refusals.pop() {
            Some(refusal) if refusals.len() + 1 == servers.len() => Err(Trouble::Final(refusal)),
            _ => Err(Trouble::Away(said.join("; "))),
        }
    }

    async fn to(server: &Server) -> Result<Self, Trouble> {
        let (client, driver, warned) = connect(server).await?;
        let load = within(client.prepare(LOAD)).await?;
        let commit = within(client.prepare(COMMIT)).await?;
        let allow_asynchronous = server.allow_asynchronous;
        Ok(Self { client, _driver: driver, warned, load, commit, allow_asynchronous, taken: false })
    }

    /// Where the store is.
    pub(super) async fn standing(&self) -> Result<Standing, Trouble> {
        standing(&within(self.client.query_one(HEAD, &[])).await?)
    }

    /// Asks for the lease: for the first time, or again after the connection broke.
    ///
    /// Commits that were waiting for a standby when their connection broke are visible and maybe on one disk only. The
    /// write in here comes after them in the log, so once it is acknowledged, all that is read here is durable, too.
    ///
    /// `at` is where the holder knows the store to be, if it had the lease before.
    pub(super) async fn take(&mut self, holder: &str, at: Option<u64>) -> Result<Taken, Trouble> {
        self.warned.store(false, Ordering::Relaxed);
        if let Some(at) = at {
            let standing = self.standing().await?;
            if standing.holder != holder {
                return Ok(Taken::Fenced(Box::new(standing)));
            }
            if standing.head.seq < at {
                return Ok(Taken::Behind { found: standing.head.seq });
            }
            // what is left of our own sessions would keep the lease until the server notices that nobody listens
            let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                          WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid()";
            within(self.client.query(others, &[&holder])).await?;
        }
        let lock = within(self.client.query_one("SELECT pg_try_advisory_lock($1)", &[&LEASE])).await?;
        if !lock.get::<_, bool>(0) {
            return Ok(Taken::Held);
        }
        let Some(row) = within(self.client.query_opt(TAKE, &[&holder, &at.is_none()])).await? else {
            return Ok(Taken::Fenced(Box::new(self.standing().await?)));
        };
        self.refuse_warnings()?;
        self.taken = true;
        Ok(Taken::Ours(Box::new(standing(&row)?)))
    }

    /// See [`crate::store::Store::load`].
    pub(super) async fn load(&self, accounts: &[[u8; 16]]) -> Result<Vec<([u8; 16], Row)>, Trouble> {
        let accounts: Vec<&[u8]> = accounts.iter().map(|account| &account[..]).collect();
        let rows = within(self.client.query(&self.load, &[&accounts])).await?;
        rows.iter().map(|row| Ok(record(row)?)).collect()
    }

    /// See [`crate::store::Store::commit_batch`].
    pub(super) async fn commit(
        &self,
        holder: &str,
        (expected, root): (u64, &[u8; 32]),
        head: &Head,
        writes: &[Write],
    ) -> Result<(), Trouble> {
        self.warned.store(false, Ordering::Relaxed);
        let accounts: Vec<&[u8]> = writes.iter().map(|write| &write.account[..]).collect();
        let revisions: Vec<i64> = writes.iter().map(|write| write.row.revision as i64).collect();
        let key_ids: Vec<i64> = writes.iter().map(|write| i64::from(write.row.key_id)).collect();
        let sealed: Vec<&[u8]> = writes.iter().map(|write| &write.row.sealed[..]).collect();
        let row = within(self.client.query_one(
            &self.commit,
            &[
                &(head.seq as i64),
                &&head.root[..],
                &&head.previous_root[..],
                &&head.mac[..],
                &holder,
                &(expected as i64),
                &self.allow_asynchronous,
                &accounts,
                &revisions,
                &key_ids,
                &sealed,
                &&root[..],
            ],
        ))
        .await?;
        self.refuse_warnings()?;
        match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
            (1, written) if written == writes.len() as i64 => Ok(()),
            (1, _) => Err(StoreError::Damaged { what: "a batch was not written as a whole" }.into()),
            _ => Err(self.why_refused(holder, expected).await),
        }
    }

    /// See [`crate::store::Store::scan`].
    pub(super) async fn scan(&self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), Trouble> {
        let sql = "SELECT account, revision, key_id, sealed FROM chatkeep.record";
        let none: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];
        let rows = within(self.client.query_raw(sql, none)).await?;
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = within(rows.try_next()).await? {
            let (account, row) = record(&row)?;
            visit(&account, &row);
        }
        Ok(())
    }

    /// See [`crate::store::Store::sealed_by_others`].
    pub(super) async fn sealed_by_others(
        &self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, Trouble> {
        let sql = "SELECT account FROM chatkeep.record WHERE account > $1 AND key_id <> $2 ORDER BY account LIMIT $3";
        let after = after.map_or(&[][..], |account| &account[..]);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = within(self.client.query(sql, &[&after, &i64::from(key_id), &limit])).await?;
        let account = |row: &tokio_postgres::Row| {
            let account = row.get::<_, &[u8]>(0).try_into();
            account.map_err(|_| StoreError::Damaged { what: "an account of another length" }.into())
        };
        rows.iter().map(account).collect()
    }

    /// How many records there are.
    pub(super) async fn count(&self) -> Result<u64, Trouble> {
        // no time limit: a full cell takes minutes
        let row = self.client.query_one("SELECT count(*) FROM chatkeep.record", &[]).await.map_err(sort)?;
        Ok(row.get::<_, i64>(0) as u64)
    }

    async fn why_refused(&self, holder: &str, expected: u64) -> Trouble {
        match self.standing().await {
            Err(trouble) => trouble,
            Ok(found) if found.holder != holder => StoreError::Fenced.into(),
            Ok(found) if found.head.seq != expected => StoreError::moved(found.head.seq, expected).into(),
            Ok(found) => match check_durability(&self.client, self.allow_asynchronous).await {
                Err(trouble) => trouble,
                // the count fits, so the digest did not: another history
                Ok(()) => StoreError::Behind { found: found.head.seq, expected }.into(),
            },
        }
    }

    /// An administrator who cancels a commit's wait for its standby makes it succeed, with a warning: that is not durable.
    fn refuse_warnings(&self) -> Result<(), Trouble> {
        if self.warned.load(Ordering::Relaxed) {
            return Err(Trouble::Away(
                "the server warned that a commit may not have reached its standby".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether tables can be made: a server takes writes, commits are safe there, and it has none of a vault.
pub(super) async fn check_vacant(servers: &[Server]) -> Result<(), Trouble> {
    let (client, _driver, _) = connect_to_any(servers).await?;
    let row = within(client.query_one("SELECT to_regnamespace('chatkeep') IS NULL", &[])).await?;
    if row.get::<_, bool>(0) {
        return Ok(());
    }
    let what = "the database has the tables of a vault already".to_owned();
    Err(StoreError::Unsafe { what }.into())
}

/// Makes the tables on the first server that takes writes; `range` bounds the accounts of this cell.
pub(super) async fn create(servers: &[Server], range: &Cell, head: &Head) -> Result<(), Trouble> {
    let (first, next) = range.bounds();
    let below = next.map(|next| format!(" AND account < '\\x{}'", hex::encode(next))).unwrap_or_default();
    let Head { seq, root, previous_root, mac } = head;
    let [root, previous_root, mac] = [root, previous_root, mac].map(hex::encode);
    let sql = format!(
        "BEGIN;
         CREATE SCHEMA chatkeep;
         CREATE TABLE chatkeep.record (
             account bytea PRIMARY KEY CHECK (octet_length(account) = 16 AND account >= '\\x{first}'{below}),
             revision bigint NOT NULL, key_id bigint NOT NULL,
             sealed bytea NOT NULL CHECK (octet_length(sealed) <= {SEALED_LEN_MAX})
         ) WITH (fillfactor = 80);
         CREATE TABLE chatkeep.head (
             one boolean PRIMARY KEY CHECK (one), seq bigint NOT NULL, root bytea NOT NULL,
             previous_root bytea NOT NULL, mac bytea NOT NULL,
             holder text NOT NULL DEFAULT '', term bigint NOT NULL DEFAULT 0
         ) WITH (fillfactor = 10);
         INSERT INTO chatkeep.head VALUES (true, {seq}, '\\x{root}', '\\x{previous_root}', '\\x{mac}');
         COMMIT",
        first = hex::encode(first),
    );
    let (client, _driver, _) = connect_to_any(servers).await?;
    within(client.batch_execute(&sql)).await
}

/// To the first server that takes writes; one that would lose them is refused.
async fn connect_to_any(servers: &[Server]) -> Result<(Client, Driver, Arc<AtomicBool>), Trouble> {
    let mut said = Vec::new();
    for server in servers {
        match connect(server).await {
            Err(Trouble::Away(what)) => said.push(format!("{}: {what}", server.host)),
            connected_or_refused => return connected_or_refused,
        }
    }
    Err(Trouble::Away(said.join("; ")))
}

/// A session that takes writes and whose commits are safe.
async fn connect(server: &Server) -> Result<(Client, Driver, Arc<AtomicBool>), Trouble> {
    let warned = Arc::new(AtomicBool::new(false));
    let (client, driver) = if let Some(tls) = &server.tls {
        let (client, connection) = within(server.config.connect(tls.clone())).await?;
        (client, tokio::spawn(drive(connection, warned.clone())))
    } else {
        let (client, connection) = within(server.config.connect(NoTls)).await?;
        (client, tokio::spawn(drive(connection, warned.clone())))
    };
    let driver = Driver(driver);
    check_durability(&client, server.allow_asynchronous).await?;
    within(client.batch_execute(SESSION)).await?;
    Ok((client, driver, warned))
}

/// Moves the connection's bytes, and notes whether the server warned.
async fn drive<T: TlsStream + Unpin>(mut connection: Connection<Socket, T>, warned: Arc<AtomicBool>) {
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        let AsyncMessage::Notice(notice) = message else { continue };
        if notice.parsed_severity() == Some(Severity::Warning) {
            tracing::warn!(code = notice.code().code(), "PostgreSQL: {}", notice.message());
            warned.store(true, Ordering::Relaxed);
        }
    }
}

/// Refuses a server whose commits may be lost with it, unless the settings allow that.
async fn check_durability(client: &Client, allow_asynchronous: bool) -> Result<(), Trouble> {
    let sql = "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
                      current_setting('fsync')";
    let row = within(client.query_one(sql, &[])).await?;
    let [commit, standbys, fsync]: [String; 3] = [0, 1, 2].map(|column| row.get(column));
    if fsync != "on" {
        let what = format!("PostgreSQL has fsync = {fsync}: a power cut would lose commits");
        return Err(StoreError::Unsafe { what }.into());
    }
    let what = if !matches!(commit.as_str(), "on" | "remote_apply") {
        format!("PostgreSQL has synchronous_commit = {commit}: set it to on or remote_apply")
    } else if standbys.is_empty() {
        "PostgreSQL has no synchronous_standby_names: a commit would be on one machine only".to_owned()
    } else {
        return Ok(());
    };
    if !allow_asynchronous {
        let what =
            format!("{what} (or set allow_asynchronous = true, and lose attempts' counts with the machine)");
        return Err(StoreError::Unsafe { what }.into());
    }
    // what is left is at least on this machine's disk
    within(client.batch_execute("SET synchronous_commit = on")).await
}

fn standing(row: &tokio_postgres::Row) -> Result<Standing, Trouble> {
    let head = Head {
        seq: column::<i64>(row, 0)? as u64,
        root: fixed(column(row, 1)?)?,
        previous_root: fixed(column(row, 2)?)?,
        mac: fixed(column(row, 3)?)?,
    };
    Ok(Standing { head, holder: column(row, 4)?, term: column::<i64>(row, 5)? as u64 })
}

fn record(row: &tokio_postgres::Row) -> Result<([u8; 16], Row), StoreError> {
    let account = fixed(column(row, 0)?)?;
    let key_id = column::<i64>(row, 2)?.try_into();
    let key_id = key_id.map_err(|_| StoreError::Damaged { what: "a key's number" })?;
    let sealed: &[u8] = column(row, 3)?;
    let row = Row { revision: column::<i64>(row, 1)? as u64, key_id, sealed: sealed.to_vec() }.checked()?;
    Ok((account, row))
}

fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    index: usize,
) -> Result<T, StoreError> {
    row.try_get(index).map_err(|_| StoreError::Damaged { what: "a value of another type" })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Damaged { what: "a value of another length" })
}

/// The result of `call`, unless the server takes too long.
async fn within<T>(call: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Trouble> {
    let late = |_| {
        Trouble::Away(format!("no answer within {} s; is a synchronous standby there?", CALL_LIMIT.as_secs()))
    };
    tokio::time::timeout(CALL_LIMIT, call).await.map_err(late)?.map_err(sort)
}

/// Whether asking again, here or elsewhere, may help.
fn sort(error: tokio_postgres::Error) -> Trouble {
    let Some(code) = error.code().map(|code| code.code().to_owned()) else {
        return Trouble::Away(chain(&error)); // the connection, or what is at its other end
    };
    // connection, now read-only, rolled back, out of resources, not in this state, cancelled or shutting down
    if ["08", "25", "40", "53", "55", "57"].iter().any(|class| code.starts_with(class)) {
        Trouble::Away(chain(&error))
    } else {
        Trouble::Final(StoreError::Database(Box::new(error)))
    }
}
