//! Whatever rclone reaches.
