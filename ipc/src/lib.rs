//! The D-Bus face of Chatkeep: interfaces, proxies, error names, secrets by file descriptor.
