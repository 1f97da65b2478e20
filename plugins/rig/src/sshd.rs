//! OpenSSH: a server with keys of its own.
