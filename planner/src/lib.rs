//! Pure decisions of the Chatkeep daemon: when to capture, what to upload, what a restore needs, what is forgotten.
//!
//! Nothing here reads a clock, a file or a socket. The daemon tells the [`Scheduler`] what happened ([`Event`]) and
//! what time it is ([`Millis`]), and carries out the [`Command`]s it gets back. In reading order: [`event`] is all
//! that can be said in either direction, [`policy`] the user's choice, [`scheduler`] the decisions about captures and
//! uploads, [`levels`] what the next entry of an archive holds, [`restore`] which objects a restore reads and in which
//! order, [`pause`] and [`budget`] when nothing is sent and what sending costs, [`retention`] which recovery points stay,
//! [`prune`] what is deleted from a store, [`copies`] what copies of an archive get and lose, [`damage`] what an object
//! that is damaged costs. [`year`] tries them on a model.

pub mod budget;
pub mod copies;
pub mod damage;
pub mod event;
pub mod levels;
pub mod pause;
pub mod policy;
pub mod prune;
pub mod restore;
pub mod retention;
pub mod scheduler;
pub mod year;

pub use budget::{Budget, Month, Prices, Spent};
pub use copies::{
    CopyListing, CopyPlan, CopyPrunePlan, CopyStep, CopyView, FOLLOWED_MAX, plan_copy, plan_copy_prune,
    plan_queue,
};
pub use damage::Dependents;
pub use event::{Command, Event, Millis, Retry, SourceId, UploadId};
pub use levels::{
    ChainLink, EntryPlan, Level, LevelPolicy, advance_chain, chain_of, next_of_chain, plan_entry,
};
pub use pause::{Conditions, Gate, OnMetered, PausePolicy, PauseReason, gate};
pub use policy::{Backoff, CapturePolicy};
pub use prune::{
    KnownEntry, Mark, PackName, Prunable, PrunePlan, StoreView, is_ripe, listing_shrank, plan_prune,
};
pub use restore::{ChainError, RestorePlan, Target, choose_point, follows, plan_restore};
pub use retention::{PointInfo, RetentionPlan, RetentionPolicy, plan_retention};
pub use scheduler::{Scheduler, SourceView};
