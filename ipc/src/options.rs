//! The `a{sv} options` at the end of every method: taken one by one, and what is left over is an error.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};

use zbus::zvariant::{OwnedValue, Value};

use crate::{Error, JobId};

/// Options as they come from the bus.
pub(crate) type RawOptions = HashMap<String, OwnedValue>;

pub(crate) struct Options(RawOptions);

impl Options {
    pub(crate) fn new(raw: RawOptions) -> Self {
        Self(raw)
    }

    fn take<T>(&mut self, key: &str) -> Result<Option<T>, Error>
    where
        T: TryFrom<OwnedValue>,
    {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        let signature = value.value_signature().to_string();
        T::try_from(value)
            .map(Some)
            .map_err(|_| Error::InvalidArgument(format!("option {key} cannot be of type {signature}")))
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, Error> {
        self.take(key)
    }

    /// An array of texts.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>, Error> {
        Ok(self.take(key)?.unwrap_or_default())
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, Error> {
        Ok(self.take(key)?.unwrap_or(false))
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<u32>, Error> {
        self.take(key)
    }

    pub(crate) fn time(&mut self, key: &str) -> Result<Option<u64>, Error> {
        self.take(key)
    }

    pub(crate) fn fd(&mut self, key: &str) -> Result<Option<OwnedFd>, Error> {
        let wrong = || Error::InvalidArgument(format!("option {key} must be a descriptor"));
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        match Value::from(value) {
            Value::Fd(fd) => fd.as_fd().try_clone_to_owned().map(Some).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// An array of descriptors.
    pub(crate) fn fds(&mut self, key: &str) -> Result<Vec<OwnedFd>, Error> {
        let wrong = || Error::InvalidArgument(format!("option {key} must be an array of descriptors"));
        let Some(value) = self.0.remove(key) else { return Ok(Vec::new()) };
        let Value::Array(array) = Value::from(value) else { return Err(wrong()) };
        let mut fds = Vec::with_capacity(array.len());
        for item in array.iter() {
            let Value::Fd(fd) = item else { return Err(wrong()) };
            fds.push(fd.as_fd().try_clone_to_owned().map_err(|_| wrong())?);
        }
        Ok(fds)
    }

    /// The identifier that the caller chose for the job.
    pub(crate) fn job_token(&mut self) -> Result<Option<JobId>, Error> {
        self.text("job-token")?.map(|token| token.parse()).transpose()
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let mut unknown: Vec<String> = self.0.into_keys().collect();
        unknown.sort();
        match unknown.first() {
            None => Ok(()),
            Some(key) => Err(Error::InvalidArgument(format!("there is no option {key}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn options(key: &str, value: Value<'_>) -> Options {
        Options::new(RawOptions::from([(key.to_owned(), value.try_into_owned().unwrap())]))
    }

    #[test]
    fn what_is_not_taken_is_an_error() {
        let mut taken = options("store", "home".into());
        assert_eq!(taken.text("store"), Ok(Some("home".into())));
        assert_eq!(taken.finish(), Ok(()));
        let error = options("stroe", "home".into()).finish().unwrap_err();
        assert_eq!(error, Error::InvalidArgument("there is no option stroe".into()));
    }

    #[test]
    fn a_wrong_type_is_an_error_and_not_a_missing_option() {
        let error = options("limit", "ten".into()).number("limit").unwrap_err();
        assert_eq!(error, Error::InvalidArgument("option limit cannot be of type s".into()));
        assert!(options("overwrite", 1_u32.into()).flag("overwrite").is_err());
        assert!(options("attachments", 1_u32.into()).fds("attachments").is_err());
    }

    #[test]
    fn absent_options_have_their_defaults() {
        let mut none = Options::new(RawOptions::new());
        assert_eq!(none.flag("overwrite"), Ok(false));
        assert_eq!(none.time("at"), Ok(None));
        assert!(none.fds("attachments").unwrap().is_empty());
        assert_eq!(none.job_token(), Ok(None));
    }

    #[test]
    fn arrays_of_descriptors_are_taken() {
        let file = std::os::fd::OwnedFd::from(tempfile::tempfile().unwrap());
        let array = vec![zbus::zvariant::Fd::from(file)];
        assert_eq!(options("attachments", Value::from(array)).fds("attachments").unwrap().len(), 1);
    }
}
