//! What the events since the last good look say about continuity. Pure.

use crate::watch::{Event, Member};

/// Facts gathered from events, in their order.
///
/// Those about the log that is followed count from the last good look. Those about the passage to another log count
/// from when the log was joined, or the database came to rest: a good look at a log that was closed meanwhile says
/// nothing about what happened afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tracker {
    /// The log was written.
    pub(crate) wal_written: bool,
    /// The index was truncated or grew: it may have been made anew, with its counter at 0.
    pub(crate) index_written: bool,
    /// A connection that could write to this log was closed, perhaps by force.
    pub(crate) writer_left: bool,
    pub(crate) db_written: bool,

    /// Events were dropped, or a file of the log was renamed: anything may have happened.
    pub(crate) lost: bool,
    /// The log exists, as far as events tell.
    wal_present: bool,
    /// How many logs were created.
    wal_created: u32,
    /// One of them was written.
    new_log_written: bool,
    /// A connection to the newest of them was closed.
    new_log_left: bool,
    /// The database file was written while there was no log (so not by a checkpoint of what we read).
    outside: bool,
    /// The database file itself was created, deleted or renamed.
    pub(crate) db_replaced: bool,
}

impl Tracker {
    /// Starts again, with the log in place (it is being followed) or absent.
    pub(crate) fn restart(wal_present: bool) -> Tracker {
        Tracker { wal_present, ..Tracker::default() }
    }

    /// After a good look at the log held. `unpublished`: it has a whole transaction after the position that the index
    /// does not publish, so the suspicion that somebody died before publishing it stays.
    pub(crate) fn good_look(&mut self, unpublished: bool) {
        self.writer_left &= unpublished;
        (self.wal_written, self.index_written, self.db_written) = (false, false, false);
    }

    /// After a good look, when the log held is still the log of the database: nothing lost was about a passage.
    pub(crate) fn still_in_place(&mut self) {
        self.lost = false;
    }

    pub(crate) fn absorb_all(&mut self, events: &[Event]) {
        for event in events {
            self.absorb(*event);
        }
    }

    pub(crate) fn absorb(&mut self, event: Event) {
        match event {
            Event::Lost => (self.lost, self.writer_left, self.index_written) = (true, true, true),
            Event::Written(Member::Db) => {
                self.db_written = true;
                self.outside |= !self.wal_present;
            }
            Event::Written(Member::Wal) => {
                self.wal_written = true;
                self.new_log_written |= self.wal_created > 0;
            }
            Event::Written(Member::Shm) => self.index_written = true,
            Event::Closed(Member::Wal) => {
                self.writer_left = true;
                self.new_log_left |= self.wal_created > 0;
            }
            Event::Created(Member::Wal) => {
                self.wal_created += 1;
                self.wal_present = true;
                self.new_log_left = false;
            }
            Event::Deleted(Member::Wal) => self.wal_present = false,
            Event::Moved(Member::Wal | Member::Shm) => self.absorb(Event::Lost),
            Event::Created(Member::Db) | Event::Deleted(Member::Db) | Event::Moved(Member::Db) => {
                self.db_replaced = true;
            }
            Event::Written(Member::Journal)
            | Event::Created(Member::Journal | Member::Shm)
            | Event::Deleted(Member::Journal | Member::Shm)
            | Event::Moved(Member::Journal)
            | Event::Closed(Member::Db | Member::Shm | Member::Journal) => {}
        }
    }

    /// A log was created or deleted.
    pub(crate) fn log_came_or_went(&self) -> bool {
        self.lost || self.db_replaced || self.wal_created > 0 || !self.wal_present
    }

    /// The state known before goes over to the log that is there now, provided that all commits counted in
    /// its index are in it: no other log existed in between, nobody wrote without one, nobody was cut short.
    pub(crate) fn hands_over_to_one_log(&self) -> bool {
        let one_log = self.wal_created == 1 && self.wal_present;
        one_log && !self.lost && !self.db_replaced && !self.outside && !self.new_log_left
    }

    /// Something happened that makes a read of the files at rest worthless.
    pub(crate) fn written_at_rest(&self) -> bool {
        self.lost || self.db_written || self.wal_written || self.db_replaced
    }

    /// Nothing was committed since the log that was followed was closed: nobody wrote the database file outside of
    /// it, or another log. `log_is_empty`: there is none, or it has no bytes (an app is just opening the database).
    pub(crate) fn untouched(&self, log_is_empty: bool) -> bool {
        let quiet = !self.lost && !self.db_replaced && !self.outside && !self.new_log_written;
        quiet && (self.wal_created == 0 || log_is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::Event::{Closed, Created, Deleted, Written};
    use super::Member::{Db, Shm, Wal};
    use super::*;

    fn after(events: &[Event]) -> Tracker {
        let mut tracker = Tracker::restart(true);
        tracker.absorb_all(events);
        tracker
    }

    const CLOSE: [Event; 4] = [Written(Db), Deleted(Shm), Closed(Wal), Deleted(Wal)];

    #[test]
    fn closing_and_opening_once_hands_over() {
        let reopened =
            [&CLOSE[..], &[Created(Wal), Created(Shm), Written(Shm), Written(Wal), Written(Db)]].concat();
        assert!(after(&reopened).hands_over_to_one_log());
    }

    #[test]
    fn closing_and_opening_twice_does_not() {
        let twice = [&CLOSE[..], &[Created(Wal)], &CLOSE, &[Created(Wal)]].concat();
        assert!(!after(&twice).hands_over_to_one_log());
    }

    #[test]
    fn a_write_between_two_logs_does_not_hand_over() {
        let between = [&CLOSE[..], &[Written(Db), Created(Wal)]].concat();
        assert!(!after(&between).hands_over_to_one_log());
    }

    #[test]
    fn a_writer_killed_in_the_new_log_does_not_hand_over() {
        let killed = [&CLOSE[..], &[Created(Wal), Written(Wal), Closed(Wal)]].concat();
        assert!(!after(&killed).hands_over_to_one_log());
    }

    #[test]
    fn after_a_clean_close_nothing_is_to_be_read_until_somebody_writes() {
        assert!(after(&[Deleted(Shm), Closed(Wal), Deleted(Wal)]).untouched(true));
        assert!(after(&CLOSE).untouched(true));
        assert!(!after(&[&CLOSE[..], &[Written(Db)]].concat()).untouched(true));
        assert!(after(&[&CLOSE[..], &[Created(Wal)]].concat()).untouched(true));
        assert!(!after(&[&CLOSE[..], &[Created(Wal), Written(Wal)]].concat()).untouched(false));
        assert!(!after(&[Event::Lost]).untouched(true));
    }

    #[test]
    fn a_good_look_at_a_closed_log_does_not_hide_what_came_after_it() {
        for later in [&[Written(Db)][..], &[Created(Wal), Written(Wal), Deleted(Wal)]] {
            let mut tracker = after(&[&CLOSE[..], later].concat());
            tracker.good_look(false);
            assert!(!tracker.untouched(true), "{later:?}");
        }
        let mut tracker = after(&[&CLOSE[..], &[Created(Wal), Written(Wal), Closed(Wal)]].concat());
        tracker.good_look(false);
        assert!(!tracker.hands_over_to_one_log());
    }

    #[test]
    fn suspicion_of_an_unpublished_commit_outlives_a_look_that_found_one() {
        let mut tracker = after(&[Written(Wal), Closed(Wal)]);
        tracker.good_look(true);
        assert!(tracker.writer_left);
        tracker.good_look(false);
        assert!(!tracker.writer_left);
    }
}
