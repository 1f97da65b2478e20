//! What is to go wrong when, and what has to be remembered for it.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::{CallRecord, Fault, LastCall, Operation};
use crate::contract::ObjectMeta;
use crate::key::StoreKey;

/// What happens at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// What the wrapped store does.
    Plain,
    Fault(Fault),
    /// The power is off. `lands`: it went off just now, and the call still reached the disk.
    Dark {
        lands: bool,
    },
}

/// What an object was before its newest change.
pub(super) enum Past {
    NeverChanged,
    Absent,
    Body(Bytes),
}

#[derive(Debug)]
pub(super) struct Script {
    at: BTreeMap<u64, Fault>,
    random: (u16, Vec<Fault>),
    /// Whether stale answers are planned, for which the past must be kept.
    pub(super) remembers: bool,
    pub(super) crash: Option<(u64, LastCall)>,
    pub(super) quota: Option<u64>,
    pub(super) log: Vec<CallRecord>,
    generator: SplitMix64,
    /// Until which call an object is not to be seen.
    hidden: HashMap<StoreKey, u64>,
    /// What an object was before its newest change.
    before: HashMap<StoreKey, Option<Bytes>>,
    names_before: Option<Vec<ObjectMeta>>,
}

impl Script {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            at: BTreeMap::new(),
            random: (0, Vec::new()),
            remembers: false,
            crash: None,
            quota: None,
            log: Vec::new(),
            generator: SplitMix64(seed),
            hidden: HashMap::new(),
            before: HashMap::new(),
            names_before: None,
        }
    }

    pub(super) fn plan(&mut self, number: u64, fault: Fault) {
        self.remembers |= fault == Fault::Stale;
        self.at.insert(number, fault);
    }

    pub(super) fn plan_random(&mut self, per_mille: u16, faults: &[Fault]) {
        self.remembers |= faults.contains(&Fault::Stale);
        self.random = (per_mille, faults.to_vec());
    }

    pub(super) fn next(&mut self, operation: Operation, on: &str) -> Turn {
        let number = self.log.len() as u64;
        self.log.push(CallRecord { operation, on: on.to_owned() });
        if let Some((crash, last_call)) = self.crash
            && number >= crash
        {
            let lands = match last_call {
                LastCall::Lands => true,
                LastCall::IsLost => false,
                LastCall::ByCoin => self.generator.below(2) == 0,
            };
            return Turn::Dark { lands: lands && number == crash };
        }
        if let Some(fault) = self.at.get(&number) {
            return Turn::Fault(*fault);
        }
        let (per_mille, faults) = &self.random;
        if !faults.is_empty() && self.generator.below(1000) < u64::from(*per_mille) {
            return Turn::Fault(faults[self.generator.below(faults.len() as u64) as usize]);
        }
        Turn::Plain
    }

    pub(super) fn calm_down(&mut self) {
        self.at.clear();
        self.random = (0, Vec::new());
        self.crash = None;
        self.hidden.clear();
    }

    pub(super) fn hide(&mut self, key: &StoreKey, calls: u64) {
        let until = self.log.len() as u64 + calls;
        self.hidden.insert(key.clone(), until);
    }

    /// Whether the call that runs now sees `key` not yet.
    pub(super) fn hides(&self, key: &StoreKey) -> bool {
        self.hidden.get(key).is_some_and(|until| self.log.len() as u64 <= *until)
    }

    pub(super) fn remember(&mut self, key: &StoreKey, before: Option<Bytes>, names: Vec<ObjectMeta>) {
        self.before.insert(key.clone(), before);
        self.names_before = Some(names);
    }

    pub(super) fn before(&self, key: &StoreKey) -> Past {
        match self.before.get(key) {
            None => Past::NeverChanged,
            Some(None) => Past::Absent,
            Some(Some(body)) => Past::Body(body.clone()),
        }
    }

    pub(super) fn names_before(&self) -> Option<Vec<ObjectMeta>> {
        self.names_before.clone()
    }
}

/// Sebastiano Vigna's SplitMix64: small, good enough to pick faults, and the same on every machine.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end - 1`; the bias is below 2^-54 for the small numbers here.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
