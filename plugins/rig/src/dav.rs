//! nginx and Apache as WebDAV servers.
