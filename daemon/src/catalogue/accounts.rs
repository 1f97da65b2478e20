//! What the device remembers of its accounts at vaults: which failed attempts were its own.
//!
//! Durable before an attempt is sent. When it is lost, all failed attempts count as somebody else's: told, never hidden.

use super::Catalogue;
use crate::guard::{Account, AccountId};

impl Catalogue {
    /// What is known of an account, nothing if it was never seen.
    pub fn account(&self, id: &AccountId) -> Option<Account> {
        self.get("accounts", &id.0)
    }

    /// Remembers it. Durable when this returns.
    pub fn put_account(&self, id: &AccountId, account: &Account) -> anyhow::Result<()> {
        self.put("accounts", &id.0, account)?;
        self.db.flush()?;
        Ok(())
    }

    /// What is known of the other registrations of the account.
    pub fn accounts_beside(&self, id: &AccountId) -> Vec<Account> {
        let Ok(tree) = self.db.open_tree("accounts") else { return Vec::new() };
        let all = tree.scan_prefix(id.of_all_registrations()).filter_map(Result::ok);
        let others = all.filter(|(key, _)| key != &id.0);
        others.filter_map(|(_, value)| serde_json::from_slice(&value).ok()).collect()
    }

    /// Forgets all registrations of the account but this one.
    pub fn keep_account(&self, id: &AccountId) -> anyhow::Result<()> {
        let tree = self.db.open_tree("accounts")?;
        for key in tree.scan_prefix(id.of_all_registrations()).keys() {
            let key = key?;
            if key != id.0 {
                tree.remove(key)?;
            }
        }
        self.db.flush()?;
        Ok(())
    }
}
