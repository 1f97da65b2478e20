//! Shamir's secret sharing over GF(2^8), polynomial 0x11b, byte by byte, without tables or branches on secrets.
//!
//! Coefficients are uniform, zero included: a scheme that avoids zero gives information below the threshold.

use rand_core::CryptoRngCore;
use zeroize::{Zeroize, Zeroizing};

/// One share: the value at `x`, which is 1 for the first.
pub type Share = Zeroizing<[u8; 32]>;

/// Splits `secret` so that any `t` of `n` shares give it back and fewer say nothing. Share i is at x = i + 1.
///
/// Panics unless `1 <= t <= n`.
pub fn split(secret: &[u8; 32], t: u8, n: u8, rng: &mut impl CryptoRngCore) -> Vec<Share> {
    assert!(t >= 1 && t <= n, "threshold between one and the number of shares");
    let mut coefficients = vec![[0u8; 32]; usize::from(t) - 1];
    for coefficient in &mut coefficients {
        rng.fill_bytes(coefficient);
    }
    let shares = (1..=n)
        .map(|x| {
            // Horner, highest coefficient first; the constant term is the secret
            let mut value = Zeroizing::new([0u8; 32]);
            for coefficient in coefficients.iter().rev().chain([secret]) {
                for (byte, add) in value.iter_mut().zip(coefficient) {
                    *byte = multiply(*byte, x) ^ add;
                }
            }
            value
        })
        .collect();
    coefficients.zeroize();
    shares
}

/// Interpolates the secret from shares at distinct, non-zero `x`. Too few or wrong shares give a wrong secret.
///
/// Panics if two `x` are equal or one is zero.
pub fn combine(shares: &[(u8, &[u8; 32])]) -> Zeroizing<[u8; 32]> {
    let mut secret = Zeroizing::new([0u8; 32]);
    for (i, (x_i, share)) in shares.iter().enumerate() {
        assert!(*x_i != 0, "x is never zero");
        let mut weight = 1;
        for (x_j, _) in shares.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, share)| share) {
            assert!(x_i != x_j, "x are distinct");
            weight = multiply(weight, multiply(*x_j, invert(x_i ^ x_j)));
        }
        for (byte, value) in secret.iter_mut().zip(share.iter()) {
            *byte ^= multiply(weight, *value);
        }
    }
    secret
}

/// Product in GF(2^8), in the same number of steps for all inputs.
fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    let mut shifted = a;
    for bit in 0..8 {
        product ^= shifted & 0u8.wrapping_sub((b >> bit) & 1);
        shifted = (shifted << 1) ^ (0x1b & 0u8.wrapping_sub(shifted >> 7));
    }
    product
}

/// Inverse in GF(2^8): a^254. Zero gives zero.
fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut result = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_types, reason = "tests may draw randomness")]
    use super::*;
    use rand_core::OsRng;

    #[test]
    fn the_field_is_the_one_of_aes() {
        assert_eq!(multiply(0x57, 0x83), 0xc1); // FIPS 197, 4.2
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1);
        }
    }

    #[test]
    fn every_subset_of_t_gives_the_secret_back() {
        let secret = [0x5a; 32];
        for (t, n) in [(1, 1), (1, 3), (2, 3), (3, 5), (5, 5)] {
            let shares = split(&secret, t, n, &mut OsRng);
            for mask in 0u32..1 << n {
                let subset: Vec<_> = (0..n)
                    .filter(|i| mask >> i & 1 == 1)
                    .map(|i| (i + 1, &*shares[usize::from(i)]))
                    .collect();
                if subset.len() >= usize::from(t) {
                    assert_eq!(*combine(&subset), secret);
                } else if !subset.is_empty() {
                    assert_ne!(*combine(&subset), secret);
                }
            }
        }
    }

    /// Chi-squared over the first byte of the second share of a fixed secret: 255 degrees of freedom,
    /// more than 400 happens by chance less than once in 10^8 runs. Coefficients that avoid zero would give 0 in one cell
    /// (about 256 of 65536 draws missing: more than 256).
    #[test]
    fn shares_below_the_threshold_are_uniform() {
        let mut counts = [0u32; 256];
        for _ in 0..2048 {
            for byte in split(&[7; 32], 2, 2, &mut OsRng)[1].iter() {
                counts[usize::from(*byte)] += 1;
            }
        }
        let expected = 256.0;
        let chi: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
        assert!(chi < 400.0, "chi squared is {chi}");
        assert!(counts.iter().all(|c| *c > 0));
    }
}
