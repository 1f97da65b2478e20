//! An OPRF root in a device: an evaluation is asked of the one thread that owns it, at once or after others.

use chatkeep_vault_protocol::Suite;
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::worker::Turn;
use super::{DeviceError, OprfRoot};
use crate::core::Evaluator;

/// What a device does for one evaluation, of P-256.
pub(super) trait Multiply: Clone + Send + Sync + 'static {
    /// The evaluated element.
    fn multiply(
        &self,
        turn: Turn,
        suite: Suite,
        key: &[u8; 32],
        blinded: &[u8],
    ) -> Result<Vec<u8>, DeviceError>;
}

/// See the module.
pub(super) struct DeviceRoot<D> {
    first: Turned<D>,
    later: Turned<D>,
}

/// An evaluator whose questions have their turn first, or after others.
struct Turned<D> {
    device: D,
    turn: Turn,
}

impl<D: Multiply> DeviceRoot<D> {
    pub(super) fn new(device: D) -> Self {
        let first = Turned { device: device.clone(), turn: Turn::First };
        Self { first, later: Turned { device, turn: Turn::Later } }
    }
}

impl<D: Multiply> Evaluator for Turned<D> {
    fn suites(&self) -> &[Suite] {
        &[Suite::P256]
    }

    fn generate_key(&self, suite: Suite, mut rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        suite.generate_key(&mut rng)
    }

    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        if !self.suites().contains(&suite) {
            return None;
        }
        let evaluated = self.device.multiply(self.turn, suite, key, blinded);
        evaluated.inspect_err(|error| tracing::error!(%error, "an evaluation failed")).ok()
    }
}

impl<D: Multiply> Evaluator for DeviceRoot<D> {
    fn suites(&self) -> &[Suite] {
        self.later.suites()
    }

    fn generate_key(&self, suite: Suite, rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        self.later.generate_key(suite, rng)
    }

    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        self.later.evaluate(suite, key, blinded)
    }
}

impl<D: Multiply> OprfRoot for DeviceRoot<D> {
    fn at_once(&self) -> &dyn Evaluator {
        &self.first
    }

    fn waits(&self) -> bool {
        true
    }
}
