//! From two x-coordinates to a point: what `CKM_ECDH1_DERIVE` leaves out. Pure.
//!
//! The device multiplies a point with its key K and gives the x-coordinate of the product only. It is asked twice, for
//! B and for B + G. With Q = K·B, the second answer is the x-coordinate of Q + K·G, and K·G is the public key: that fits
//! one of the two points with the first x-coordinate, and never both, because the order of the group is odd.

use p256::elliptic_curve::point::{AffineCoordinates as _, DecompressPoint as _};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::elliptic_curve::subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use p256::{AffinePoint, ProjectivePoint, PublicKey};

/// An element of P-256, uncompressed: 4, x, y.
pub(super) type Uncompressed = [u8; 65];

/// What the device has to be asked for one product.
pub(super) struct Question {
    /// B.
    pub(super) point: Uncompressed,
    /// B + G; `None` if that is the identity, which no device multiplies.
    pub(super) shifted: Option<Uncompressed>,
}

/// What it said.
pub(super) struct DeviceAnswer<'a> {
    /// x-coordinate of K·B.
    pub(super) x: &'a [u8; 32],
    /// x-coordinate of K·(B + G).
    pub(super) x_shifted: Option<&'a [u8; 32]>,
}

impl Question {
    /// For an element as it travels; `None` if it is not on the curve, or its identity.
    pub(super) fn new(element: &[u8]) -> Option<Self> {
        let point = PublicKey::from_sec1_bytes(element).ok()?.to_projective();
        let shifted = point + ProjectivePoint::GENERATOR;
        let shifted = (shifted != ProjectivePoint::IDENTITY).then(|| uncompressed(&shifted));
        Some(Self { point: uncompressed(&point), shifted })
    }
}

/// K·B as an element that travels, from the device's answers; `None` if these do not fit its public key.
pub(super) fn product(public: &ProjectivePoint, answer: &DeviceAnswer<'_>) -> Option<Vec<u8>> {
    let Some(x_shifted) = answer.x_shifted else {
        // B = -G
        return Some(compressed(&-*public)).filter(|point| point[1..] == answer.x[..]);
    };
    let even = AffinePoint::decompress(answer.x.into(), Choice::from(0)).into_option()?;
    let even = ProjectivePoint::from(even);
    let fits = |candidate: ProjectivePoint| (candidate + public).to_affine().x().ct_eq(&x_shifted[..]);
    let (even_fits, odd_fits) = (fits(even), fits(-even));
    let one_fits = bool::from(even_fits ^ odd_fits);
    one_fits.then(|| compressed(&ProjectivePoint::conditional_select(&-even, &even, even_fits)))
}

/// A public key out of `CKA_EC_POINT`, which is an octet string in DER or, on older tokens, bare.
pub(super) fn public_key(attribute: &[u8]) -> Option<ProjectivePoint> {
    let bare = match attribute {
        [0x04, 65, rest @ ..] if rest.len() == 65 => rest,
        bare => bare,
    };
    Some(PublicKey::from_sec1_bytes(bare).ok()?.to_projective())
}

fn compressed(point: &ProjectivePoint) -> Vec<u8> {
    point.to_affine().to_encoded_point(true).as_bytes().to_vec()
}

fn uncompressed(point: &ProjectivePoint) -> Uncompressed {
    point
        .to_affine()
        .to_encoded_point(false)
        .as_bytes()
        .try_into()
        .expect("65 bytes, as it is not the identity")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use chatkeep_vault_protocol::Suite;
    use p256::{NonZeroScalar, Scalar};
    use rand_core::OsRng;

    use super::*;

    /// A device with this key.
    fn x_of(key: &Scalar, point: &Uncompressed) -> [u8; 32] {
        let point = PublicKey::from_sec1_bytes(point).unwrap().to_projective();
        (point * key).to_affine().x().into()
    }

    fn multiply(key: &Scalar, element: &[u8]) -> Vec<u8> {
        let question = Question::new(element).unwrap();
        let (x, x_shifted) = (x_of(key, &question.point), question.shifted.map(|point| x_of(key, &point)));
        let answer = DeviceAnswer { x: &x, x_shifted: x_shifted.as_ref() };
        product(&(ProjectivePoint::GENERATOR * key), &answer).unwrap()
    }

    #[test]
    fn two_x_coordinates_give_the_product_with_its_sign() {
        let mut signs = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let key = NonZeroScalar::random(&mut OsRng);
            let element = Suite::P256.blind(b"x", &mut OsRng).element;
            let product = multiply(&key, &element);
            assert_eq!(product, Suite::P256.evaluate(&key.to_bytes().into(), &element).unwrap());
            signs.insert(product[0]);
        }
        assert_eq!(signs.len(), 2, "both signs came up");
    }

    #[test]
    fn points_next_to_the_identity_are_multiplied_too() {
        let key = NonZeroScalar::random(&mut OsRng);
        for point in [ProjectivePoint::GENERATOR, -ProjectivePoint::GENERATOR] {
            assert_eq!(multiply(&key, &compressed(&point)), compressed(&(point * *key)));
        }
    }

    #[test]
    fn answers_that_contradict_the_public_key_are_refused() {
        let [key, other] = [0, 1].map(|_| NonZeroScalar::random(&mut OsRng));
        let public = ProjectivePoint::GENERATOR * *key;
        let question = Question::new(&Suite::P256.blind(b"x", &mut OsRng).element).unwrap();
        let shifted = question.shifted.unwrap();
        for (first, second) in [(&key, &other), (&other, &key), (&other, &other)] {
            let (x, x_shifted) = (x_of(first, &question.point), x_of(second, &shifted));
            assert_eq!(product(&public, &DeviceAnswer { x: &x, x_shifted: Some(&x_shifted) }), None);
        }
        let minus_g = Question::new(&compressed(&-ProjectivePoint::GENERATOR)).unwrap();
        let x = x_of(&other, &minus_g.point);
        assert_eq!(product(&public, &DeviceAnswer { x: &x, x_shifted: None }), None);
    }

    #[test]
    fn what_is_not_on_the_curve_is_no_question() {
        for junk in [&[0; 33][..], &[2; 33], &[0], &[]] {
            assert!(Question::new(junk).is_none() || junk == [2; 33]);
        }
        let mut off = uncompressed(&ProjectivePoint::GENERATOR);
        off[64] ^= 1;
        assert!(Question::new(&off).is_none() && public_key(&off).is_none());
    }

    #[test]
    fn a_public_key_is_read_with_and_without_its_wrapping() {
        let bare = uncompressed(&ProjectivePoint::GENERATOR);
        let wrapped = [&[4, 65], &bare[..]].concat();
        assert_eq!(public_key(&bare), Some(ProjectivePoint::GENERATOR));
        assert_eq!(public_key(&wrapped), Some(ProjectivePoint::GENERATOR));
    }
}
