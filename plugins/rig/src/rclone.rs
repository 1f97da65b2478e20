//! rclone of a version that has what the store needs.
