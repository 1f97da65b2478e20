//! Points that stay because somebody said so. Pins stand in the log itself: every entry has all of them, so that the next
//! device knows them, too. A pin is answered when an entry that has it is in the queue; if nothing changed in the
//! database, one is made for it.

use chatkeep_format::limits;
use chatkeep_ipc::{Error, Reply};
use chatkeep_planner::Event as Happened;

use super::Service;
use super::calls::answer;
use crate::catalogue::Head;
use crate::fault::Fault;
use crate::source::{Phase, PinRequest, Source};

impl Service {
    /// Keeps a point whatever the policy says, or no longer.
    pub(super) fn pin_point(&mut self, id: &str, point: &str, pinned: bool, reply: Reply<()>) {
        match self.check_pin(id, point, pinned) {
            Ok(Some(seq)) => {
                let number = self.number_of(id).expect("it was just there");
                self.update(number, |source| source.pin_requests.push(PinRequest { seq, pinned, reply }));
                self.plan(Happened::CaptureNow { source: number });
            }
            Ok(None) => answer(reply, Ok(())),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// The point's number; nothing when it is as wanted already.
    fn check_pin(&mut self, id: &str, point: &str, pinned: bool) -> Result<Option<u64>, Error> {
        let (number, opened) = self.opened_of(id)?;
        let source = &self.sources[&number];
        let Some(log) = source.log.as_ref().filter(|_| source.phase == Phase::Open) else {
            let why = source.fault().map(|fault| fault.error.clone());
            return Err(why.unwrap_or_else(|| Error::Busy("its archive is being opened".to_owned())));
        };
        if !source.found
            && let Some(fault) = &source.capture_fault
        {
            return Err(fault.error.clone());
        }
        let none = || Error::NotFound(format!("there is no point `{point}`"));
        let seq: u64 = point.parse().map_err(|_| none())?;
        let pins = source.head_with_pins(&log.written).pins;
        if pins.contains(&seq) == pinned {
            return Ok(None);
        }
        if !pinned {
            return Ok(Some(seq));
        }
        if pins.len() >= limits::MAX_PINS {
            let text = format!("{} points are pinned, and no more can be", limits::MAX_PINS);
            return Err(Error::InvalidArgument(text));
        }
        let catalogue = &self.tools.catalogue;
        if catalogue.point(&opened.archive.id, seq).is_none() {
            catalogue.forgotten_point(&opened.archive.id, seq).ok_or_else(none)?;
            if source.prune_job.is_some() {
                let text = format!("point {seq} is forgotten, and just now it is decided what is deleted");
                return Err(Error::Busy(text));
            }
            // With all that it builds on. What it needs of packs is unmarked by the next prune, before it deletes.
            let mut chain = vec![seq];
            while let Some(point) = catalogue.forgotten_point(&opened.archive.id, chain[chain.len() - 1])
                && point.parent_seq > 0
                && point.parent_seq < point.seq
            {
                chain.push(point.parent_seq);
            }
            catalogue.remember(&opened.archive.id, &chain).map_err(|error| Fault::internal(error).error)?;
            self.count_points(number);
        }
        Ok(Some(seq))
    }
}

impl Source {
    /// Where the log stands, with the pins that wait.
    pub fn head_with_pins(&self, head: &Head) -> Head {
        let mut head = head.clone();
        for request in self.pinning.iter().chain(&self.pin_requests) {
            head.pins.retain(|seq| *seq != request.seq);
            if request.pinned {
                head.pins.push(request.seq);
            }
        }
        head.pins.sort_unstable();
        head
    }

    /// Every point that somebody wants kept, also if that is not written yet.
    pub(super) fn all_pins(&self) -> Vec<u64> {
        let wanted = self.pinning.iter().chain(&self.pin_requests).filter(|request| request.pinned);
        let written = self.log.iter().flat_map(|log| log.stored.pins.iter().chain(&log.written.pins));
        wanted.map(|request| request.seq).chain(written.copied()).collect()
    }

    /// A capture ended that took pins along.
    pub(super) fn pins_captured(&mut self, written: bool) {
        for request in std::mem::take(&mut self.pinning) {
            let gone = || Error::DatabaseMissing("the database is gone".to_owned());
            answer(request.reply, if written { Ok(()) } else { Err(gone()) });
        }
    }

    /// The pins that wait cannot be written now.
    pub(super) fn fail_pins(&mut self, error: &Error) {
        for request in self.pinning.drain(..).chain(self.pin_requests.drain(..)) {
            answer(request.reply, Err(error.clone()));
        }
    }
}
