//! The oblivious pseudo-random function (RFC 9497, mode 0x00) over two groups.
//!
//! P-256 is for vaults whose hardware knows no other curve, ristretto255 for those without.

use rand_core::CryptoRngCore;
use sha2::digest::OutputSizeUser;
use sha2::digest::core_api::BlockSizeUser;
use sha2::digest::generic_array::typenum::{IsLess, IsLessOrEqual, U256};
use voprf::{BlindedElement, CipherSuite, EvaluationElement, OprfClient, OprfServer};
use zeroize::Zeroizing;

/// Which group and hash; the number is on the wire and in slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// P256-SHA256, elements of 33 bytes.
    P256 = 0x01,
    /// ristretto255-SHA512, elements of 32 bytes. The default.
    Ristretto255 = 0x02,
}

/// The bytes are not an element of the group, or are its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a usable group element or scalar")]
pub struct InvalidElement;

/// What the client keeps between blinding and the answer.
pub struct Blinded {
    suite: Suite,
    scalar: Zeroizing<Vec<u8>>,
    /// The blinded element, as sent.
    pub element: Vec<u8>,
}

impl Suite {
    /// Every suite, strongest assumption last.
    pub const ALL: [Self; 2] = [Self::P256, Self::Ristretto255];

    /// The suite of a number on the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }

    /// Length of an element, in bytes.
    pub fn element_len(self) -> usize {
        match self {
            Self::P256 => 33,
            Self::Ristretto255 => 32,
        }
    }

    /// Hides `input` under a fresh random scalar.
    ///
    /// Panics if `input` is empty or longer than 65 535 bytes.
    pub fn blind(self, input: &[u8], rng: &mut impl CryptoRngCore) -> Blinded {
        let (scalar, element) = match self {
            Self::P256 => blind::<p256::NistP256>(input, rng),
            Self::Ristretto255 => blind::<voprf::Ristretto255>(input, rng),
        };
        Blinded { suite: self, scalar, element }
    }

    /// Checks that `element` is one of the group and not its identity.
    pub fn check_element(self, element: &[u8]) -> Result<(), InvalidElement> {
        match self {
            Self::P256 => BlindedElement::<p256::NistP256>::deserialize(element).is_ok(),
            Self::Ristretto255 => BlindedElement::<voprf::Ristretto255>::deserialize(element).is_ok(),
        }
        .then_some(())
        .filter(|()| element.len() == self.element_len())
        .ok_or(InvalidElement)
    }

    /// Draws a key: a non-zero scalar.
    pub fn generate_key(self, rng: &mut impl CryptoRngCore) -> Zeroizing<[u8; 32]> {
        match self {
            Self::P256 => generate_key::<p256::NistP256>(rng),
            Self::Ristretto255 => generate_key::<voprf::Ristretto255>(rng),
        }
    }

    /// The vault's step: multiplies a blinded element with the key.
    pub fn evaluate(self, key: &[u8; 32], blinded: &[u8]) -> Result<Vec<u8>, InvalidElement> {
        self.check_element(blinded)?;
        match self {
            Self::P256 => evaluate::<p256::NistP256>(key, blinded),
            Self::Ristretto255 => evaluate::<voprf::Ristretto255>(key, blinded),
        }
    }
}

impl Blinded {
    /// Unblinds the vault's answer and hashes it with `input`, the same as was blinded: rho.
    pub fn finalize(&self, input: &[u8], evaluated: &[u8]) -> Result<Zeroizing<Vec<u8>>, InvalidElement> {
        self.suite.check_element(evaluated)?;
        match self.suite {
            Suite::P256 => finalize::<p256::NistP256>(&self.scalar, input, evaluated),
            Suite::Ristretto255 => finalize::<voprf::Ristretto255>(&self.scalar, input, evaluated),
        }
    }
}

fn blind<CS: CipherSuite>(input: &[u8], rng: &mut impl CryptoRngCore) -> (Zeroizing<Vec<u8>>, Vec<u8>)
where
    <CS::Hash as OutputSizeUser>::OutputSize:
        IsLess<U256> + IsLessOrEqual<<CS::Hash as BlockSizeUser>::BlockSize>,
{
    let blinded = OprfClient::<CS>::blind(input, rng).expect("inputs are 1 to 65535 bytes long");
    (Zeroizing::new(blinded.state.serialize().to_vec()), blinded.message.serialize().to_vec())
}

fn generate_key<CS: CipherSuite>(rng: &mut impl CryptoRngCore) -> Zeroizing<[u8; 32]>
where
    <CS::Hash as OutputSizeUser>::OutputSize:
        IsLess<U256> + IsLessOrEqual<<CS::Hash as BlockSizeUser>::BlockSize>,
{
    let server = OprfServer::<CS>::new(rng).expect("a random seed derives a key");
    let scalar = Zeroizing::new(server.serialize().to_vec());
    Zeroizing::new(scalar.as_slice().try_into().expect("scalars of both groups have 32 bytes"))
}

fn evaluate<CS: CipherSuite>(key: &[u8; 32], blinded: &[u8]) -> Result<Vec<u8>, InvalidElement>
where
    <CS::Hash as OutputSizeUser>::OutputSize:
        IsLess<U256> + IsLessOrEqual<<CS::Hash as BlockSizeUser>::BlockSize>,
{
    let server = OprfServer::<CS>::new_with_key(key).map_err(|_| InvalidElement)?;
    let element = BlindedElement::<CS>::deserialize(blinded).map_err(|_| InvalidElement)?;
    Ok(server.blind_evaluate(&element).serialize().to_vec())
}

fn finalize<CS: CipherSuite>(
    scalar: &[u8],
    input: &[u8],
    evaluated: &[u8],
) -> Result<Zeroizing<Vec<u8>>, InvalidElement>
where
    <CS::Hash as OutputSizeUser>::OutputSize:
        IsLess<U256> + IsLessOrEqual<<CS::Hash as BlockSizeUser>::BlockSize>,
{
    let client = OprfClient::<CS>::deserialize(scalar).map_err(|_| InvalidElement)?;
    let element = EvaluationElement::<CS>::deserialize(evaluated).map_err(|_| InvalidElement)?;
    let output = client.finalize(input, &element).map_err(|_| InvalidElement)?;
    Ok(Zeroizing::new(output.to_vec()))
}

#[cfg(test)]
#[path = "suite_tests.rs"]
mod tests;
