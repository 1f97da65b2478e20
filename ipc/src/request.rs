//! One method call on its way to the daemon: who calls, with which options, about which database.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::zvariant::{self, OwnedObjectPath};

use crate::caller::{self, App};
use crate::options::{Options, RawOptions};
use crate::secret::read_secret;
use crate::shared::{Object, Shared};
use crate::{Call, Caller, Error, JobId, KeyOut, NewJob, Reply, Secret, mirror};

/// The result of every method.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Who may make the call.
pub(crate) enum Rights<'a> {
    /// Host processes.
    Host,
    /// Listed apps, too.
    Apps,
    /// Listed apps for their own databases, too; to others it is as if it did not exist.
    Owner(&'a str),
}

pub(crate) struct Request<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    pub(crate) caller: Caller,
    pub(crate) options: Options,
}

impl<'a> Request<'a> {
    pub(crate) async fn new(
        shared: &'a Arc<Shared>,
        connection: &'a Connection,
        header: &Header<'_>,
        options: RawOptions,
        rights: Rights<'_>,
    ) -> Result<Self> {
        let caller = caller::identify(connection, header).await?;
        authorise(shared, &caller, &rights)?;
        Ok(Self { shared, connection, caller, options: Options::new(options) })
    }

    /// Sends a call that is answered at once.
    pub(crate) async fn ask<T>(self, make: impl FnOnce(Caller, Reply<T>) -> Call) -> Result<T> {
        self.options.finish()?;
        let caller = self.caller;
        self.shared.ask(|reply| make(caller, reply)).await
    }

    /// Sends a call that starts a job, and makes sure the caller finds the job where the answer says.
    pub(crate) async fn start(
        mut self,
        make: impl FnOnce(Caller, NewJob, Reply<JobId>) -> Call,
    ) -> Result<OwnedObjectPath> {
        let token = self.options.job_token()?;
        self.options.finish()?;
        let owner = match self.caller.sender.as_str() {
            "" => format!("pid {}", self.caller.pid),
            sender => sender.to_owned(),
        };
        if let Some(token) = &token
            && let Some(job) = self.shared.tree().job_of_token(&owner, token)?
        {
            return Ok(job.path());
        }
        let id = token.clone().unwrap_or_else(|| self.shared.new_job_id());
        let job = NewJob { id, started_by: self.caller.label() };
        let caller = self.caller;
        let id = self.shared.ask(|reply| make(caller, job, reply)).await?;
        if let Some(token) = token {
            self.shared.tree().remember_token(owner, token, id.clone());
        }
        mirror::add(self.connection, self.shared, &Object::Job(id.clone())).await?;
        Ok(id.path())
    }

    /// The objects of jobs that the daemon started for this call.
    pub(crate) async fn job_paths(
        connection: &Connection,
        shared: &Arc<Shared>,
        jobs: Vec<JobId>,
    ) -> Result<Vec<OwnedObjectPath>> {
        let mut paths = Vec::with_capacity(jobs.len());
        for id in jobs {
            paths.push(id.path());
            mirror::add(connection, shared, &Object::Job(id)).await?;
        }
        Ok(paths)
    }
}

fn authorise(shared: &Shared, caller: &Caller, rights: &Rights<'_>) -> Result<()> {
    let app = match &caller.app {
        App::Host => return Ok(()),
        App::Flatpak(app) if shared.allowed_apps.contains(app) => app,
        App::Flatpak(app) => {
            return Err(Error::AccessDenied(format!("the app {app} is not listed in the configuration")));
        }
        App::Unknown => {
            return Err(Error::AccessDenied(
                "it cannot be told whether the caller is a sandboxed app".into(),
            ));
        }
    };
    match rights {
        Rights::Apps => Ok(()),
        Rights::Host => Err(Error::AccessDenied("sandboxed apps may not do this".into())),
        Rights::Owner(database) => match shared.tree().databases.get(*database) {
            Some((state, _)) if state.app_id == *app => Ok(()),
            _ => Err(Error::NotFound("there is no such database".into())),
        },
    }
}

/// Reads a secret argument.
pub(crate) async fn secret(fd: zvariant::OwnedFd) -> Result<Secret> {
    read_secret(fd.into()).await
}

/// Checks the pipe for a generated key.
pub(crate) fn key_out(fd: impl Into<OwnedFd>) -> Result<KeyOut> {
    KeyOut::new(fd.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{DatabaseState, EncryptionState};

    fn shared() -> Shared {
        let (calls, _) = tokio::sync::mpsc::channel(1);
        let shared = Shared::new(calls, BTreeSet::from(["org.listed.App".to_owned()]));
        let own = DatabaseState { app_id: "org.listed.App".into(), ..Default::default() };
        shared.change(|tree| {
            tree.databases.insert("own".into(), (own, EncryptionState::default()));
            tree.databases.insert("other".into(), Default::default());
        });
        shared
    }

    fn check(app: &App, rights: &Rights<'_>, allowed: bool) {
        let caller = Caller { uid: 0, pid: 1, app: app.clone(), sender: ":1.1".into() };
        assert_eq!(authorise(&shared(), &caller, rights).is_ok(), allowed, "{app:?}");
    }

    #[test]
    fn host_processes_may_do_everything() {
        check(&App::Host, &Rights::Host, true);
        check(&App::Host, &Rights::Owner("other"), true);
    }

    #[test]
    fn a_listed_app_sees_only_its_own() {
        let app = || App::Flatpak("org.listed.App".into());
        check(&app(), &Rights::Apps, true);
        check(&app(), &Rights::Host, false);
        check(&app(), &Rights::Owner("own"), true);
        check(&app(), &Rights::Owner("other"), false);
        check(&app(), &Rights::Owner("missing"), false);
    }

    #[test]
    fn other_apps_and_unknown_callers_see_nothing() {
        for app in [App::Flatpak("org.other.App".into()), App::Unknown] {
            check(&app, &Rights::Apps, false);
            check(&app, &Rights::Owner("own"), false);
        }
    }
}
