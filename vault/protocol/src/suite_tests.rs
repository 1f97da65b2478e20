#![allow(clippy::disallowed_types, reason = "tests may draw randomness")]
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

#[derive(serde::Deserialize)]
struct Vector {
    suite: u8,
    key: String,
    input: String,
    blind: String,
    blinded: String,
    evaluated: String,
    output: String,
}

/// RFC 9497, appendix A.1.1 and A.3.1.
#[test]
fn the_vectors_of_rfc_9497_hold() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../../tests/vectors/vault/rfc9497.json")).unwrap();
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let suite = Suite::from_number(vector.suite).unwrap();
        let key: [u8; 32] = hex::decode(vector.key).unwrap().try_into().unwrap();
        let evaluated = suite.evaluate(&key, &hex::decode(&vector.blinded).unwrap()).unwrap();
        assert_eq!(hex::encode(&evaluated), vector.evaluated);
        let blinded = Blinded {
            suite,
            scalar: Zeroizing::new(hex::decode(vector.blind).unwrap()),
            element: hex::decode(vector.blinded).unwrap(),
        };
        let input = hex::decode(vector.input).unwrap();
        assert_eq!(hex::encode(&*blinded.finalize(&input, &evaluated).unwrap()), vector.output);
    }
}

#[test]
fn the_output_does_not_depend_on_the_blinding() {
    for suite in Suite::ALL {
        let key = suite.generate_key(&mut rand_core::OsRng);
        let [first, second] = [0, 1].map(|_| {
            let blinded = suite.blind(b"a password", &mut rand_core::OsRng);
            let evaluated = suite.evaluate(&key, &blinded.element).unwrap();
            (blinded.element.clone(), blinded.finalize(b"a password", &evaluated).unwrap())
        });
        assert_ne!(first.0, second.0);
        assert_eq!(first.1, second.1);
    }
}

#[test]
fn identity_and_junk_are_no_elements() {
    for suite in Suite::ALL {
        for junk in [vec![0; suite.element_len()], vec![0xff; suite.element_len()], vec![], vec![2; 400]] {
            assert_eq!(suite.check_element(&junk), Err(InvalidElement));
        }
        let mut longer = suite.blind(b"x", &mut rand_core::OsRng).element;
        longer.push(0);
        assert_eq!(suite.check_element(&longer), Err(InvalidElement));
    }
}
