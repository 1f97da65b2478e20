//! Object locks (S3 Object Lock).
//!
//! A lock is on one version of an object. A delete in a bucket with versions only puts a marker over it, which S3 permits
//! at any time: the object is safe and yet gone from sight. So a store with locks looks before it deletes.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chatkeep_store::{Result, StoreError, StoreKey};
use http::Method;
use object_store::GetOptions;

use crate::call::{Call, Wants};
use crate::http::ask;
use crate::options::RetainMode;
use crate::service::Spoken;
use crate::store::{CloudStore, error_of};

/// The last second that is written with four digits of a year.
const LATEST_S: u64 = 253_402_300_799;

impl CloudStore {
    pub(crate) fn retain_mode(&self) -> Option<RetainMode> {
        match &self.service.kind {
            Spoken::S3 { retain_mode, .. } => *retain_mode,
            Spoken::Gs | Spoken::Az { .. } => None,
        }
    }

    /// Locks an object until a time, unless it is locked for longer.
    pub(crate) async fn lock(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        let Some(mode) = self.retain_mode() else {
            return Err(StoreError::Unsupported { what: "lock objects against deletion" });
        };
        let until = text_of(until_s);
        match self.locked_until(key).await {
            Ok(Some(now)) if now >= until => return Ok(()),
            // credentials that can only write cannot look; S3 itself refuses what would shorten a lock
            Ok(_) | Err(StoreError::Permission(_)) => {}
            Err(error) => return Err(error),
        }
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode>\
             <RetainUntilDate>{until}</RetainUntilDate></Retention>",
            mode.as_str()
        );
        let path = self.path(key);
        let request = self.service.request(Method::PUT, path.as_ref(), "?retention", Bytes::from(body))?;
        let call = Call::new(Wants::Nothing);
        let asked = self.asked(Some(key), 0);
        ask(&self.service.http, &call, request).await.map(|_| ()).map_err(|fault| fault.error(asked))
    }

    /// In a store with locks: an error if this object is locked now.
    pub(crate) async fn refuse_if_locked(&self, key: &StoreKey) -> Result<()> {
        if self.retain_mode().is_none() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.locked_until(key).await {
            Ok(Some(until)) if until > text_of(now) => Err(StoreError::Retained { key: key.clone() }),
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Until when an object is locked, as [`text_of`] writes it.
    async fn locked_until(&self, key: &StoreKey) -> Result<Option<String>> {
        let call = Call::new(Wants::Nothing);
        let path = self.path(key);
        let options = GetOptions { head: true, ..GetOptions::default() };
        match call.run(self.service.objects.get_opts(&path, options)).await {
            Ok(_) => Ok(call.retain_until().map(|until| whole_seconds(&until))),
            Err(error) => Err(error_of(&call, error, self.asked(Some(key), 0))),
        }
    }
}

/// `2026-12-01T00:00:00.000Z` without what follows the seconds: such texts sort as the times do.
fn whole_seconds(text: &str) -> String {
    text.chars().take("2026-12-01T00:00:00".len()).chain(['Z']).collect()
}

/// Seconds since 1970 as S3 reads times. (Days to dates after Howard Hinnant, "chrono-compatible low-level date algorithms".)
fn text_of(seconds: u64) -> String {
    let seconds = seconds.min(LATEST_S);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // days since 1 March of the year 0, so that leap days come last
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_s3_reads_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_675_261, "2026-12-31T00:01:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(text_of(seconds), text);
        }
    }

    #[test]
    fn times_compare_whatever_their_fractions() {
        assert_eq!(whole_seconds("2026-12-01T00:00:00.123Z"), "2026-12-01T00:00:00Z");
        assert!(text_of(1_798_675_262) > whole_seconds("2026-12-31T00:01:01.999Z"));
    }
}
