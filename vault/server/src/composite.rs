//! Several anchors that must all agree.

use std::sync::Arc;
use std::time::Duration;

use crate::anchor::{Anchor, AnchorError, Anchored, Interrupter, Lags, Position};
use crate::store::Head;

/// All of several anchors, advanced in their order.
pub struct AllOf {
    name: &'static str,
    anchors: Vec<Box<dyn Anchor>>,
}

impl AllOf {
    /// Joins `anchors`, of which there is at least one. A single one stays as it is.
    pub fn join(mut anchors: Vec<Box<dyn Anchor>>) -> Box<dyn Anchor> {
        if anchors.len() == 1 {
            return anchors.remove(0);
        }
        let names: Vec<&str> = anchors.iter().map(|anchor| anchor.name()).collect();
        // one short text for the life of the process
        let name = names.join("+").leak();
        Box::new(Self { name, anchors })
    }
}

impl Anchor for AllOf {
    fn name(&self) -> &'static str {
        self.name
    }

    /// What one of them notices, all notice.
    fn limit(&self) -> Option<&'static str> {
        let mut limits = self.anchors.iter().map(|anchor| anchor.limit());
        let first = limits.next().flatten();
        if limits.all(|limit| limit.is_some()) { first } else { None }
    }

    /// The newest value. A crash between two anchors leaves the others one batch behind it.
    fn read(&mut self) -> Result<Anchored, AnchorError> {
        let mut newest: Option<(Anchored, &'static str)> = None;
        for anchor in &mut self.anchors {
            let (read, name) = (anchor.read()?, anchor.name());
            match newest {
                Some((known, other)) if known.seq == read.seq && known != read => {
                    return Err(AnchorError::Contradiction { one: other, other: name });
                }
                Some((known, _)) if known.seq >= read.seq => {}
                _ => newest = Some((read, name)),
            }
        }
        newest.map(|(value, _)| value).ok_or(AnchorError::Unusable)
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        self.anchors.iter_mut().try_for_each(|anchor| anchor.advance(next))
    }

    fn advance_from(&mut self, previous: &Anchored, next: &Anchored) -> Result<(), AnchorError> {
        self.anchors.iter_mut().try_for_each(|anchor| anchor.advance_from(previous, next))
    }

    fn position(&mut self, head: &Head) -> Result<Position, AnchorError> {
        let mut all = Position::Here;
        for anchor in &mut self.anchors {
            if anchor.position(head)? == Position::OneAhead {
                all = Position::OneAhead;
            }
        }
        Ok(all)
    }

    /// Nothing is advanced before all agree.
    fn settle(&mut self, head: &Head) -> Result<(), AnchorError> {
        let positions =
            self.anchors.iter_mut().map(|anchor| anchor.position(head)).collect::<Result<Vec<_>, _>>()?;
        for (anchor, position) in self.anchors.iter_mut().zip(positions) {
            if position == Position::OneAhead {
                anchor.advance(&head.into())?;
            }
        }
        Ok(())
    }

    fn rest(&self) -> Duration {
        self.anchors.iter().map(|anchor| anchor.rest()).max().unwrap_or_default()
    }

    fn interrupter(&self) -> Option<Interrupter> {
        let all: Vec<Interrupter> = self.anchors.iter().filter_map(|anchor| anchor.interrupter()).collect();
        if all.is_empty() {
            return None;
        }
        Some(Arc::new(move || all.iter().for_each(|interrupt| interrupt())))
    }

    fn lags(&self) -> Option<Lags> {
        self.anchors.iter().find_map(|anchor| anchor.lags())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Mutex;

    use super::*;

    /// Remembers in memory; several handles share one value.
    #[derive(Clone)]
    struct Cell(Arc<Mutex<Anchored>>, &'static str);

    impl Anchor for Cell {
        fn name(&self) -> &'static str {
            self.1
        }
        fn read(&mut self) -> Result<Anchored, AnchorError> {
            Ok(*self.0.lock().unwrap())
        }
        fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
            *self.0.lock().unwrap() = *next;
            Ok(())
        }
        fn rest(&self) -> Duration {
            Duration::from_secs(self.0.lock().unwrap().seq)
        }
    }

    fn at(seq: u64, root: u8) -> Anchored {
        Anchored { seq, root: [root; 32] }
    }

    fn head(seq: u64, previous: u8, root: u8) -> Head {
        Head { seq, root: [root; 32], previous_root: [previous; 32], mac: [0; 32] }
    }

    fn joined(one: Anchored, other: Anchored) -> (Box<dyn Anchor>, [Cell; 2]) {
        let cells = [Cell(Arc::new(Mutex::new(one)), "one"), Cell(Arc::new(Mutex::new(other)), "other")];
        (AllOf::join(vec![Box::new(cells[0].clone()), Box::new(cells[1].clone())]), cells)
    }

    #[test]
    fn a_crash_between_two_anchors_is_repaired() {
        for (one, other) in [(at(5, 5), at(4, 4)), (at(4, 4), at(5, 5)), (at(4, 4), at(4, 4))] {
            let (mut all, mut cells) = joined(one, other);
            assert_eq!(all.name(), "one+other");
            all.settle(&head(5, 4, 5)).unwrap();
            assert_eq!((cells[0].read().unwrap(), cells[1].read().unwrap()), (at(5, 5), at(5, 5)));
        }
    }

    #[test]
    fn one_that_disagrees_stops_all_before_any_advances() {
        for bad in [at(6, 6), at(5, 9), at(3, 3), at(4, 9)] {
            let (mut all, mut cells) = joined(at(4, 4), bad);
            assert!(matches!(all.settle(&head(5, 4, 5)), Err(AnchorError::RolledBack { .. })), "{bad:?}");
            assert_eq!(cells[0].read().unwrap(), at(4, 4));
        }
    }

    #[test]
    fn all_rest_as_long_as_the_most_tired_one() {
        assert_eq!(joined(at(4, 4), at(9, 9)).0.rest(), Duration::from_secs(9));
        assert_eq!(joined(at(9, 9), at(4, 4)).0.rest(), Duration::from_secs(9));
    }

    #[test]
    fn the_newest_of_all_is_read_and_two_of_one_number_contradict() {
        assert_eq!(joined(at(4, 4), at(9, 9)).0.read().unwrap(), at(9, 9));
        let contradiction = joined(at(4, 4), at(4, 9)).0.read();
        assert!(matches!(contradiction, Err(AnchorError::Contradiction { .. })));
    }
}
