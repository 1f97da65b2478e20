//! The service's own library on a machine of our making: its store fails, its clock is ours, and it crashes all the time.
//!
//! In reading order: [`app`] is a program that writes, [`model`] what every point must be, [`world`] the machine,
//! [`life`] one run of the service on it, and [`play`] what happens to it; [`child`] is for a process that is killed,
//! [`year`] goes through a whole year.

pub mod app;
pub mod child;
pub mod life;
pub mod model;
pub mod play;
pub mod world;
pub mod year;

pub use world::World;
