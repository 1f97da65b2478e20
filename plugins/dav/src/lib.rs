//! WebDAV servers: Nextcloud, Apache, nginx and others.
