//! moto: an S3 server with conditions, versions and locks.
