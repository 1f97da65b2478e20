//! Pure decisions of the Chatkeep daemon: when to capture, what to upload, what a restore needs.
