//! Every number that bounds what a stranger may send. The table in docs/vault-protocol.md repeats them.

/// Version of messages, slots and certificates.
pub const VERSION: u8 = 1;
/// Longest request, in bytes. The longest real one (`begin`, signed) is below 400.
pub const REQUEST_LEN_MAX: usize = 4096;
/// Longest answer, in bytes, that a client accepts and a courier passes on.
pub const ANSWER_LEN_MAX: usize = 65_536;
/// Most vaults in one slot: at most 6435 subsets are tried (8 of 15).
pub const VAULTS_MAX: usize = 15;
/// Longest vault name, in bytes.
pub const NAME_LEN_MAX: usize = 64;
/// Longest vault URL, in bytes.
pub const URL_LEN_MAX: usize = 256;
/// Most addresses of one cell of a vault: the active process, its standbys, and where they move to.
pub const CELL_ADDRESSES_MAX: usize = 4;
/// Most cells of one vault: with 2^31 accounts, half a million in each.
pub const CELLS_MAX: usize = 4096;
/// Longest encoded slot: 15 vaults with the longest names and URLs need 6019 bytes.
pub const SLOT_LEN_MAX: usize = 8192;
/// Longest password, in bytes before normalisation.
pub const PASSWORD_LEN_MAX: usize = 1024;
/// Attempts that an attacker gets over all vaults together, unless a policy says less.
pub const ATTEMPTS_DEFAULT: u16 = 10;
/// Failed attempts since the last change of password after which an account is destroyed.
pub const LIFETIME_FAILURES_MAX: u32 = 100;
/// A first registration without its commit, and a change without its `finish`, are forgotten after this time, in seconds.
pub const PENDING_LIFETIME_S: u64 = 24 * 3600;
/// A freeze lasts at most this long, in seconds, and ends by itself.
pub const FREEZE_MAX_S: u64 = 30 * 24 * 3600;
/// Life of an operational key certificate, in seconds.
pub const CERTIFICATE_LIFETIME_S: u64 = 7 * 24 * 3600;
/// How far the clocks of client and vault may differ, in seconds.
pub const CLOCK_SKEW_S: u64 = 24 * 3600;

/// Attempts to ask of each of `n` vaults, so that somebody who needs `t` of them gets `total` in all.
///
/// Every vault counts alone, so an attacker may spread guesses: `n * m / t` are possible.
pub fn attempts_per_vault(total: u16, t: u8, n: u8) -> u16 {
    (u32::from(total) * u32::from(t) / u32::from(n.max(1))).max(1) as u16
}
