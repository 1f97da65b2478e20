//! When nothing is sent to a store although something waits: the line, the battery, sleep, a budget that is used up.

/// What the machine says of itself. Where nobody says anything, all is well: a server has no battery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// There is no connection to anywhere.
    pub offline: bool,
    /// What is sent costs money, or is guessed to.
    pub metered: bool,
    /// Runs on its battery.
    pub on_battery: bool,
    /// How full the battery is, in percent.
    pub battery_percent: Option<u8>,
    /// The user asked for a long life of the battery.
    pub power_saver: bool,
    /// About to sleep.
    pub sleeping: bool,
}

/// What may be sent to a store over a metered line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMetered {
    /// Nothing.
    #[default]
    Nothing,
    /// Objects of at most [`SMALL_LEN`] bytes: messages go on, pictures wait.
    Small,
    /// Everything.
    Everything,
}

/// The longest object that is small, in bytes: 256 KiB, which are a few hundred messages.
pub const SMALL_LEN: u64 = 256 << 10;

/// What the user wants for one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PausePolicy {
    /// It is reached over a network.
    pub remote: bool,
    /// What goes over a metered line.
    pub metered: OnMetered,
    /// On the battery nothing is sent below this, in percent. 0: always.
    pub battery_min_percent: u8,
}

impl Default for PausePolicy {
    fn default() -> Self {
        Self { remote: true, metered: OnMetered::Nothing, battery_min_percent: 30 }
    }
}

/// Why nothing is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PauseReason {
    /// The machine is about to sleep.
    Sleep,
    /// There is no connection.
    Offline,
    /// The line is metered.
    Metered,
    /// The battery is low.
    Battery,
    /// The user asked for a long life of the battery.
    PowerSaver,
    /// The budget of this month is used up.
    Budget,
}

impl PauseReason {
    /// The name on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sleep => "sleep",
            Self::Offline => "offline",
            Self::Metered => "metered",
            Self::Battery => "battery",
            Self::PowerSaver => "power-saver",
            Self::Budget => "budget",
        }
    }

    /// Whether somebody who asks for a backup gets it all the same. Nobody can go ahead without a connection, or while
    /// the machine falls asleep.
    pub fn yields_to_a_person(self) -> bool {
        !matches!(self, Self::Sleep | Self::Offline)
    }
}

/// Whether the transfer of an object has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// Everything goes.
    #[default]
    Open,
    /// Objects of at most [`SMALL_LEN`] bytes go.
    Small(PauseReason),
    /// Nothing goes.
    Closed(PauseReason),
}

impl Gate {
    /// Why something waits, if anything does.
    pub fn reason(self) -> Option<PauseReason> {
        match self {
            Self::Open => None,
            Self::Small(reason) | Self::Closed(reason) => Some(reason),
        }
    }

    /// Why an object of `len` bytes has to wait, if it has to.
    pub fn holds(self, len: u64) -> Option<PauseReason> {
        match self {
            Self::Small(_) if len <= SMALL_LEN => None,
            gate => gate.reason(),
        }
    }
}

/// Decides what may be sent to a store. `asked`: a person waits for it.
///
/// Of several reasons the one that lasts longest for the user is told: what cannot be helped first.
pub fn gate(conditions: Conditions, policy: PausePolicy, budget_left: bool, asked: bool) -> Gate {
    let low = |percent: u8| conditions.on_battery && percent < policy.battery_min_percent;
    let reasons = [
        (conditions.sleeping, PauseReason::Sleep),
        (policy.remote && conditions.offline, PauseReason::Offline),
        (!budget_left, PauseReason::Budget),
        (
            policy.remote && conditions.metered && policy.metered != OnMetered::Everything,
            PauseReason::Metered,
        ),
        (conditions.battery_percent.is_some_and(low), PauseReason::Battery),
        (
            conditions.on_battery && conditions.power_saver && policy.battery_min_percent > 0,
            PauseReason::PowerSaver,
        ),
    ];
    let mut held = reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason);
    let Some(reason) = held.find(|reason| !asked || !reason.yields_to_a_person()) else { return Gate::Open };
    let only_metered = reason == PauseReason::Metered && held.next().is_none();
    if only_metered && policy.metered == OnMetered::Small {
        Gate::Small(reason)
    } else {
        Gate::Closed(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Conditions = Conditions {
        offline: false,
        metered: false,
        on_battery: false,
        battery_percent: None,
        power_saver: false,
        sleeping: false,
    };
    const REMOTE: PausePolicy =
        PausePolicy { remote: true, metered: OnMetered::Nothing, battery_min_percent: 30 };

    #[track_caller]
    fn check(conditions: Conditions, policy: PausePolicy, expected: Gate) {
        assert_eq!(gate(conditions, policy, true, false), expected);
    }

    #[test]
    fn where_nothing_is_said_everything_goes() {
        check(WELL, REMOTE, Gate::Open);
        check(Conditions::default(), PausePolicy::default(), Gate::Open);
    }

    #[test]
    fn a_metered_line_holds_what_the_user_does_not_let_through() {
        let metered = Conditions { metered: true, ..WELL };
        check(metered, REMOTE, Gate::Closed(PauseReason::Metered));
        check(metered, PausePolicy { metered: OnMetered::Everything, ..REMOTE }, Gate::Open);
        let small = PausePolicy { metered: OnMetered::Small, ..REMOTE };
        check(metered, small, Gate::Small(PauseReason::Metered));
        let gate = Gate::Small(PauseReason::Metered);
        assert_eq!((gate.holds(SMALL_LEN), gate.holds(SMALL_LEN + 1)), (None, Some(PauseReason::Metered)));
        // a second reason closes the small door, too
        let low = Conditions { metered: true, on_battery: true, battery_percent: Some(5), ..WELL };
        check(low, small, Gate::Closed(PauseReason::Metered));
    }

    #[test]
    fn a_folder_on_this_machine_needs_no_line_but_a_battery() {
        let local = PausePolicy { remote: false, ..REMOTE };
        check(Conditions { offline: true, metered: true, ..WELL }, local, Gate::Open);
        let low = Conditions { on_battery: true, battery_percent: Some(29), ..WELL };
        check(low, local, Gate::Closed(PauseReason::Battery));
    }

    #[test]
    fn a_low_battery_counts_only_while_it_is_used() {
        let at = |on_battery, percent| Conditions { on_battery, battery_percent: Some(percent), ..WELL };
        check(at(true, 29), REMOTE, Gate::Closed(PauseReason::Battery));
        check(at(true, 30), REMOTE, Gate::Open);
        check(at(false, 1), REMOTE, Gate::Open);
        check(at(true, 1), PausePolicy { battery_min_percent: 0, ..REMOTE }, Gate::Open);
        let saving = Conditions { power_saver: true, ..at(true, 90) };
        check(saving, REMOTE, Gate::Closed(PauseReason::PowerSaver));
    }

    #[test]
    fn who_asks_for_a_backup_gets_it_if_it_can_be_had() {
        let costly = Conditions { metered: true, on_battery: true, battery_percent: Some(2), ..WELL };
        assert_eq!(gate(costly, REMOTE, false, true), Gate::Open);
        let offline = Conditions { offline: true, ..costly };
        assert_eq!(gate(offline, REMOTE, false, true), Gate::Closed(PauseReason::Offline));
        let sleeping = Conditions { sleeping: true, ..offline };
        assert_eq!(gate(sleeping, REMOTE, false, true), Gate::Closed(PauseReason::Sleep));
    }

    #[test]
    fn a_budget_that_is_used_up_holds_everything() {
        assert_eq!(gate(WELL, REMOTE, false, false), Gate::Closed(PauseReason::Budget));
    }
}
