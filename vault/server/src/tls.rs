//! The vault's own certificates: a CA that is the pinned identity, and a leaf that lives for a week.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use chatkeep_vault_protocol::limits::{CERTIFICATE_LIFETIME_S, CLOCK_SKEW_S};
use chatkeep_vault_protocol::tls::{CA_COMMON_NAME, SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::hsm::IdentityKey;

/// Serves the newest leaf.
#[derive(Debug)]
pub struct Leaf(RwLock<Arc<CertifiedKey>>);

impl Leaf {
    /// Issues the first leaf.
    pub fn issue(identity: &dyn IdentityKey) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self(RwLock::new(Arc::new(new_leaf(identity)?)))))
    }

    /// Issues another one; connections that are open keep theirs.
    pub fn renew(&self, identity: &dyn IdentityKey) -> anyhow::Result<()> {
        *self.0.write().expect("no one panics while holding it") = Arc::new(new_leaf(identity)?);
        Ok(())
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().expect("no one panics while holding it").clone())
    }
}

/// TLS 1.3 with the key exchange that clients ask for.
pub fn server_config(leaf: Arc<Leaf>) -> anyhow::Result<rustls::ServerConfig> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(chatkeep_vault_line::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // no early data and no tickets: every connection proves the identity anew
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn new_leaf(identity: &dyn IdentityKey) -> anyhow::Result<CertifiedKey> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, CA_COMMON_NAME);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = Issuer::new(ca, IdentitySigner { identity, public: identity.public() });

    let mut leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    leaf.distinguished_name = DistinguishedName::new();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    leaf.not_before = (now - Duration::from_secs(CLOCK_SKEW_S)).into();
    leaf.not_after = (now + Duration::from_secs(CERTIFICATE_LIFETIME_S)).into();
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &issuer)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let private = aws_lc_rs::sign::any_supported_type(&private).context("the leaf's key")?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], private))
}

/// Lets rcgen sign with a key that need not be in this process.
struct IdentitySigner<'a> {
    identity: &'a dyn IdentityKey,
    public: [u8; 32],
}

impl PublicKeyData for IdentitySigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for IdentitySigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.identity.sign(message).map(Into::into).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
