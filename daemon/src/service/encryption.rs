//! What callers ask about keys. Everything here ends in a job; one at a time for each database.

use chatkeep_crypto::BackupKey;
use chatkeep_format::ArchiveId;
use chatkeep_ipc::{Call, Details, Error, JobId, JobOutcome, KeyOut, NewJob, Reply, Secret};
use chatkeep_planner::SourceId;
use chatkeep_vault_client::Identity;
use rand_core::{OsRng, RngCore};

use super::Service;
use super::calls::{answer, unsupported};
use crate::archive::Archive;
use crate::event::Work;
use crate::fault::Result;
use crate::secrets::compare_digits;
use crate::source::{Phase, Unconfirmed};

impl Service {
    pub(super) fn encryption_call(&mut self, call: Call) {
        match call {
            Call::EnableWithPassword { database, password, vault, job, reply } => {
                answer(reply, self.enable_with_password(&database, password, vault.as_deref(), job));
            }
            Call::EnableWithKey { database, key, job, reply } => {
                answer(reply, self.enable_with_key(&database, &key, job));
            }
            Call::EnableWithGeneratedKey { database, key_out, job, reply } => {
                answer(reply, self.enable_with_generated_key(&database, key_out, job));
            }
            Call::ConfirmKey { database, key, reply } => self.confirm_key(&database, &key, reply),
            Call::ChangePassword { database, current, new, job, reply } => {
                answer(reply, self.change_password(&database, current, new, job));
            }
            Call::RotateKey { database, reencrypt, reason: _, key_out, job, reply } => {
                answer(reply, self.rotate_key(&database, reencrypt, key_out, job));
            }
            Call::Unlock { database, secret, trust, job, reply } => {
                answer(reply, self.unlock(&database, secret, &trust, job));
            }
            Call::CheckSecret { database, secret, ask_vault, job, reply } => {
                answer(reply, self.check_secret(&database, secret, ask_vault, job));
            }
            Call::ShowKey { database, proof, key_out, job, reply } => {
                let started = self.opened_of(&database).map(|(number, opened)| {
                    let pins = self.pins_for(&self.sources[&number].registration.vault);
                    let work = Work::ShowKey { opened, pins, proof, key_out };
                    self.run(job, "show-key", Some(number), false, work)
                });
                answer(reply, started);
            }
            Call::SwitchToKey { reply, .. }
            | Call::SwitchToPassword { reply, .. }
            | Call::Disable { reply, .. } => unsupported(reply),
            // The reply is dropped: the caller gets an internal error.
            other => tracing::error!(?other, "a call that nobody carries out"),
        }
    }

    fn enable_with_password(
        &mut self,
        id: &str,
        password: Secret,
        vault: Option<&str>,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let number = self.not_enabled_yet(id)?;
        let archive = self.new_archive(number)?;
        let (pins, threshold) = self.chosen_vaults(vault)?;
        let caution = self.caution_about(&pins);
        let work = Work::EnablePassword { archive, pins, threshold, caution, password };
        Ok(self.run(job, "enable-encryption", Some(number), true, work))
    }

    fn enable_with_key(&mut self, id: &str, key: &Secret, job: NewJob) -> Result<JobId, Error> {
        let number = self.not_enabled_yet(id)?;
        let archive = self.new_archive(number)?;
        let key = parse(key)?;
        Ok(self.run(job, "enable-encryption", Some(number), true, Work::EnableKey { archive, key }))
    }

    /// The digits leave through the pipe; nothing is encrypted with them before they are typed back.
    fn enable_with_generated_key(&mut self, id: &str, key_out: KeyOut, job: NewJob) -> Result<JobId, Error> {
        let number = self.not_enabled_yet(id)?;
        let archive = self.new_archive(number)?;
        self.hand_out(number, Some(archive), key_out, job)
    }

    fn hand_out(
        &mut self,
        number: SourceId,
        archive: Option<Archive>,
        key_out: KeyOut,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let key = BackupKey::generate(&mut OsRng);
        key_out.write(&key.to_digits())?;
        let operation = if archive.is_some() { "enable-encryption" } else { "rotate-key" };
        self.begin_job(&job, operation, Some(number), true);
        self.update(number, |source| source.unconfirmed = Some(Unconfirmed { key, archive }));
        self.end_job(&job.id, JobOutcome::Done(Details::new()));
        Ok(job.id)
    }

    fn confirm_key(&mut self, id: &str, typed: &Secret, reply: Reply<()>) {
        match self.confirmed(id, typed) {
            Ok((number, work)) => {
                let operation =
                    if matches!(work, Work::Rotate { .. }) { "rotate-key" } else { "enable-encryption" };
                let job = NewJob { id: self.tools.server.new_job_id(), started_by: "confirm".to_owned() };
                let name = job.id.clone();
                self.run(job, operation, Some(number), true, work);
                if let Some(running) = self.jobs.get_mut(&name) {
                    running.reply = Some(reply);
                }
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn confirmed(&mut self, id: &str, typed: &Secret) -> Result<(SourceId, Work), Error> {
        let number = self.number_of(id)?;
        self.no_key_job(number)?;
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        let source = &self.sources[&number];
        let Some(unconfirmed) = &source.unconfirmed else {
            return Err(Error::InvalidArgument(
                "no new digits wait for confirmation; generate them again".to_owned(),
            ));
        };
        let text = typed.as_str().ok_or_else(|| Error::InvalidSecret("these are not digits".to_owned()))?;
        compare_digits(text, &unconfirmed.key).map_err(|fault| fault.error)?;
        let key = unconfirmed.key.clone();
        let work = match (&unconfirmed.archive, &source.opened) {
            (Some(archive), _) => Work::EnableKey { archive: archive.clone(), key },
            (None, Some(opened)) => Work::Rotate { opened: opened.clone(), pins, key },
            (None, None) => return Err(Error::KeyUnavailable("it was locked meanwhile".to_owned())),
        };
        Ok((number, work))
    }

    fn change_password(
        &mut self,
        id: &str,
        current: Secret,
        new: Secret,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let (number, opened) = self.opened_of(id)?;
        self.no_key_job(number)?;
        if opened.keys.mode() != "password" {
            let text = format!("`{id}` is opened with 64 digits, not with a password");
            return Err(Error::NotEnabled(text));
        }
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        let work = Work::ChangePassword { opened, pins, current, new };
        Ok(self.run(job, "change-password", Some(number), true, work))
    }

    fn rotate_key(
        &mut self,
        id: &str,
        reencrypt: bool,
        key_out: Option<KeyOut>,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let (number, opened) = self.opened_of(id)?;
        self.no_key_job(number)?;
        if reencrypt {
            let text = "this version cannot encrypt again what is stored; rotate without it";
            return Err(Error::Unsupported(text.to_owned()));
        }
        if opened.keys.mode() == "key" {
            let key_out = key_out.ok_or_else(|| {
                Error::InvalidArgument("the new digits need a way out: the option `key-out`".to_owned())
            })?;
            return self.hand_out(number, None, key_out, job);
        }
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        let work = Work::Rotate { opened, pins, key: BackupKey::generate(&mut OsRng) };
        Ok(self.run(job, "rotate-key", Some(number), true, work))
    }

    fn unlock(&mut self, id: &str, secret: Secret, trust: &[String], job: NewJob) -> Result<JobId, Error> {
        let number = self.number_of(id)?;
        let trust = trust.iter().map(|text| text.parse::<Identity>()).collect::<Result<Vec<_>, _>>();
        let trust = trust.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        self.no_key_job(number)?;
        let registration = &self.sources[&number].registration;
        let archive = registration.archive;
        let archive =
            archive.ok_or_else(|| Error::NotEnabled(format!("encryption is not turned on for `{id}`")))?;
        let store = self.store(&registration.store.clone())?;
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        let work = Work::Unlock { archive: Archive { store, id: archive }, pins, secret, trust };
        Ok(self.run(job, "unlock", Some(number), true, work))
    }

    fn check_secret(
        &mut self,
        id: &str,
        secret: Secret,
        ask_vault: bool,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let (number, opened) = self.opened_of(id)?;
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        let work = Work::Check { opened, pins, secret, ask_vault };
        Ok(self.run(job, "check-secret", Some(number), false, work))
    }

    fn not_enabled_yet(&self, id: &str) -> Result<SourceId, Error> {
        let number = self.number_of(id)?;
        self.no_key_job(number)?;
        if self.sources[&number].phase != Phase::Off {
            return Err(Error::AlreadyEnabled(format!("encryption of `{id}` is on")));
        }
        Ok(number)
    }

    fn no_key_job(&self, number: SourceId) -> Result<(), Error> {
        match &self.sources[&number].key_job {
            Some(_) => Err(Error::Busy("its keys are being changed".to_owned())),
            None => Ok(()),
        }
    }

    fn new_archive(&self, number: SourceId) -> Result<Archive, Error> {
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        let store = self.store(&self.sources[&number].registration.store)?;
        Ok(Archive { store, id: ArchiveId(id) })
    }
}

fn parse(secret: &Secret) -> Result<BackupKey, Error> {
    let text = secret.as_str().ok_or_else(|| Error::InvalidSecret("these are not digits".to_owned()))?;
    BackupKey::parse_digits(text).map_err(|error| Error::InvalidSecret(error.to_string()))
}
