//! Folders on other machines, reached with the user's own ssh.
