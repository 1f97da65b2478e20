//! The `dav:` store: WebDAV servers such as Nextcloud, Apache, nginx and what a NAS brings along.
//!
//! A put writes a temporary file, has the server count its bytes and moves it into place; a listing walks folder by
//! folder and believes an answer only if it is whole. In reading order: [`target`] (what a URL and its options mean),
//! [`store`] (the contract), [`connection`] (files), [`listing`], [`folders`] (made one after another), [`multistatus`]
//! (what a server says of a folder), [`http`] (one request, watched for progress), [`overwrites`], [`errors`],
//! [`leftovers`] and [`probe`].

mod connection;
mod errors;
mod folders;
mod http;
mod leftovers;
mod listing;
mod multistatus;
mod overwrites;
mod probe;
mod store;
mod target;

pub use http::Tuning;
pub use probe::probe;
pub use store::{open, open_tuned};
