//! An invitation: what a vault that does not make accounts for everybody wants with a first `begin`.

use zeroize::Zeroizing;

/// Begins the text form, so that another secret in its place is noticed before it is sent.
const PREFIX: &str = "invite-";
/// Longest invitation, in bytes. The longest that a vault of this version makes has 42.
pub const INVITE_LEN_MAX: usize = 256;

/// A bearer's right to make accounts at one vault. Only that vault knows what the bytes mean.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite(Zeroizing<Vec<u8>>);

/// A text is no invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no invitation: one is a line that begins with `invite-`")]
pub struct NoInvite;

impl Invite {
    /// From what travels in `begin`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What travels in `begin`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// To be printed once and given to whom it is for.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", hex::encode(&*self.0)))
    }
}

impl std::str::FromStr for Invite {
    type Err = NoInvite;

    /// Reads the text form; space around it is no part of it.
    fn from_str(text: &str) -> Result<Self, NoInvite> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(NoInvite)?;
        let bytes = hex::decode(digits).map_err(|_| NoInvite)?;
        if bytes.is_empty() || bytes.len() > INVITE_LEN_MAX {
            return Err(NoInvite);
        }
        Ok(Self::from_bytes(bytes))
    }
}

impl std::fmt::Debug for Invite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Invite(redacted)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_invitation_is_one_line_of_text() {
        let invite = Invite::from_bytes(vec![0x0a, 0xff]);
        assert_eq!(*invite.to_text(), "invite-0aff");
        assert_eq!(" invite-0aff\n".parse(), Ok(invite.clone()));
        assert_eq!(format!("{invite:?}"), "Invite(redacted)");
    }

    #[test]
    fn other_secrets_are_no_invitations() {
        let long = format!("invite-{}", "00".repeat(INVITE_LEN_MAX + 1));
        for text in ["", "invite-", "invite-0", "invite-zz", "0aff", "invite-0a ff", &long] {
            assert_eq!(text.parse::<Invite>(), Err(NoInvite), "{text}");
        }
    }
}
