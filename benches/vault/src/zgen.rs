//! What a guess asks of a TPM, without our code: one `TPM2_ECDH_ZGen`.

use std::str::FromStr as _;

use anyhow::{Context as _, Result};
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public, PublicBuilder,
    PublicEccParametersBuilder,
};
use tss_esapi::tcti_ldr::TctiNameConf;

use crate::parts::each;

/// How often a second, with a key that is gone when the connection is.
pub(crate) fn measure(tcti: &str) -> Result<f64> {
    let mut context = Context::new(TctiNameConf::from_str(tcti)?).context("the TPM")?;
    context.set_sessions((Some(AuthSession::Password), None, None));
    let made = context.create_primary(Hierarchy::Null, template()?, None, None, None, None)?;
    let Public::Ecc { unique: point, .. } = made.out_public else { anyhow::bail!("not a key on a curve") };
    let mut multiply = || context.ecdh_z_gen(made.key_handle, point.clone());
    multiply()?;
    let rate = each(|| drop(multiply().expect("it did a moment ago")));
    context.flush_context(made.key_handle.into())?;
    Ok(rate)
}

fn template() -> Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_ecc_scheme(EccScheme::EcDh(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_decryption_key(true)
        .build()?;
    Ok(PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()?)
}
