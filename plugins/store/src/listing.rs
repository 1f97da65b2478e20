//! From what a foreign store names to a listing that can be trusted.

use crate::contract::ObjectMeta;
use crate::error::{Result, StoreError};
use crate::key::{InvalidKey, ListPrefix, StoreKey, shown};

/// Most objects in one listing: two million are about 300 MB here, and more than a decade of hourly packs.
pub const LISTING_LEN_MAX: usize = 2_000_000;

/// Checks a listing name by name, as it arrives. Without [`ListingCheck::finish`] there is no listing.
#[derive(Debug)]
pub struct ListingCheck {
    prefix: ListPrefix,
    found: Vec<ObjectMeta>,
}

impl ListingCheck {
    /// Starts a listing of `prefix`.
    pub fn new(prefix: &str) -> Result<Self> {
        Ok(Self { prefix: ListPrefix::parse(prefix)?, found: Vec::new() })
    }

    /// Takes one name. One that is no key, or that was not asked for, spoils the listing: it is neither skipped
    /// (then a store could hide a name by garbling it) nor believed.
    pub fn push(&mut self, name: &str, len: u64) -> Result<()> {
        let key = StoreKey::try_from(name).map_err(StoreError::UntrustedListing)?;
        if !self.prefix.holds(&key) {
            let reason = "it does not lie below what was listed";
            return Err(StoreError::UntrustedListing(InvalidKey { shown: shown(name), reason }));
        }
        if self.found.len() == LISTING_LEN_MAX {
            return Err(incomplete(format!("it names more than {LISTING_LEN_MAX} objects")));
        }
        self.found.push(ObjectMeta { key, len });
        Ok(())
    }

    /// Ends the listing. `count` is what the store says it has named; `None` is: it did not say that this is the end.
    ///
    /// The same name twice with one length is harmless (pages that overlap); with two lengths it is not.
    pub fn finish(mut self, count: Option<u64>) -> Result<Vec<ObjectMeta>> {
        let named = self.found.len() as u64;
        match count {
            None => return Err(incomplete("it broke off without an end".to_owned())),
            Some(count) if count != named => {
                return Err(incomplete(format!("it names {named} objects and counts {count}")));
            }
            Some(_) => {}
        }
        self.found.sort_unstable();
        self.found.dedup();
        if let Some(pair) = self.found.windows(2).find(|pair| pair[0].key == pair[1].key) {
            return Err(incomplete(format!("`{}` is there with two lengths", pair[0].key)));
        }
        Ok(self.found)
    }
}

fn incomplete(reason: String) -> StoreError {
    StoreError::IncompleteListing { reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::error::ErrorKind;

    fn check(names: &[(&str, u64)], count: Option<u64>) -> Result<Vec<String>> {
        let mut listing = ListingCheck::new("a/log")?;
        for (name, len) in names {
            listing.push(name, *len)?;
        }
        Ok(listing.finish(count)?.into_iter().map(|object| object.key.to_string()).collect())
    }

    fn kind(names: &[(&str, u64)], count: Option<u64>) -> ErrorKind {
        check(names, count).unwrap_err().kind()
    }

    #[test]
    fn a_whole_listing_comes_out_sorted() {
        let names = check(&[("a/log/2", 5), ("a/log/1", 5)], Some(2)).unwrap();
        assert_eq!(names, ["a/log/1", "a/log/2"]);
    }

    #[test]
    fn a_listing_without_its_end_is_no_listing() {
        assert_eq!(kind(&[("a/log/1", 5)], None), ErrorKind::IncompleteListing);
        assert_eq!(kind(&[("a/log/1", 5)], Some(2)), ErrorKind::IncompleteListing);
    }

    #[test]
    fn overlapping_pages_are_one_object_but_two_lengths_are_a_contradiction() {
        assert_eq!(check(&[("a/log/1", 5), ("a/log/1", 5)], Some(2)).unwrap().len(), 1);
        assert_eq!(kind(&[("a/log/1", 5), ("a/log/1", 6)], Some(2)), ErrorKind::IncompleteListing);
    }

    #[test]
    fn a_name_that_cannot_be_ours_spoils_the_listing() {
        for name in ["a/log/../../etc/passwd", "a/log/", "A/LOG/1", "a/logs/1", "b/log/1", "", "a/log"] {
            assert_eq!(kind(&[("a/log/1", 5), (name, 5)], Some(2)), ErrorKind::UntrustedListing, "{name}");
        }
    }
}
