//! The Chatkeep user service: it joins the crates that capture, seal, store and restore.
//!
//! In reading order: [`config`] and [`paths`] say what the user wants and where things lie; [`event`] is all that can
//! happen and all that can be done; [`service`] decides, [`hands`] act. What they work with: [`keys`] (the device's
//! copy), [`keyring`] (what can be done with keys), [`archive`] and [`log`] (what is in a store), [`registry`] (what is
//! watched), [`catalogue`] (what is remembered), [`spool`] (what waits),
//! [`damage`] (what is found damaged), [`guard`] (who tried the password), [`witness`] (what vaults know of the store), [`line`](mod@line) (what the machine says of its line and battery). The way out: [`follower`] captures on a
//! thread of its own, [`sealing`] makes packs and [`writer`] the entry; [`copies`] takes both to further stores. The way back: [`restore`], over [`fallback`] from all of them. [`jobs`] is everything a person waits for,
//! [`secrets`] what people type, [`desktop`] what they are told without having asked.

pub mod config;
pub mod paths;

pub mod event;
pub mod fault;

pub mod service;
pub mod source;

pub mod hands;

pub mod copies;
pub mod fallback;

pub mod archive;
pub mod catalogue;
pub mod clock;
pub mod courier;
pub mod credentials;
pub mod damage;
pub mod drill;
pub mod guard;
pub mod invites;
pub mod keyring;
pub mod keys;
pub mod known;
pub mod line;
pub mod log;
pub mod pack_pages;
pub mod registry;
pub mod spool;
pub mod stores;
pub mod witness;

pub mod follower;
pub mod sealing;
pub mod writer;

pub mod restore;

pub mod desktop;
pub mod jobs;
pub mod secrets;
