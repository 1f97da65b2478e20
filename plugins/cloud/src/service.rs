//! From settings to something that signs requests and sends them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::{Result, StoreError};
use http::Method;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential, S3ConditionalPut};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpRequest};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ObjectStore, RetryConfig, StaticCredentialProvider};

use crate::http::{Connector, client};
use crate::options::{AzCredential, Kind, RetainMode, S3, Secret, Settings, Trust};
use crate::watchdog::Pace;

/// One bucket, and how to talk to it.
pub(crate) struct Service {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) http: HttpClient,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) parallel: u16,
    pub(crate) kind: Spoken,
    base: String,
}

/// What is spoken, with what our own requests are signed with.
pub(crate) enum Spoken {
    S3 {
        credential: Arc<AwsCredential>,
        region: String,
        storage_class: Option<String>,
        conditions: Trust,
        retain_mode: Option<RetainMode>,
    },
    Gs,
    Az {
        credential: Arc<AzureCredential>,
        account: String,
    },
}

/// A hiccup is tried again twice within seconds; everything else is the host's business, which knows of pauses.
fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(1),
        base: 3.0,
    };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(10) }
}

impl Service {
    /// Sets up. Reads the roots of trust from files; asks nobody.
    pub(crate) fn new(settings: Settings, pace: Pace) -> Result<Self> {
        let Settings { bucket, prefix, base, authority, parallel, kind } = settings;
        let http = client(&authority, pace, matches!(kind, Kind::S3(_)))?;
        let (objects, kind) = match kind {
            Kind::S3(s3) => s3_of(s3, &bucket, &base, &http)?,
            Kind::Gs { service_account } => (gs_of(&service_account, &bucket, &base, &http)?, Spoken::Gs),
            Kind::Az { account, credential } => az_of(account, &credential, &bucket, &base, &http)?,
        };
        Ok(Self { objects, http, bucket, prefix, parallel, kind, base })
    }

    /// A signed request for the object at `path` in the bucket. Not for Google, which is asked through `objects` only.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> Result<HttpRequest> {
        let folder = match self.kind {
            Spoken::Az { .. } => format!("/{}", self.bucket),
            _ => String::new(),
        };
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{folder}/{path}{query}", self.base))
            .header(http::header::CONTENT_LENGTH, body.len())
            .body(body.into())
            .map_err(|error| StoreError::Invalid { reason: error.to_string() })?;
        let signed = match &self.kind {
            Spoken::S3 { credential, region, .. } => {
                AwsAuthorizer::new(credential, "s3", region).try_authorize(&mut request, None)
            }
            Spoken::Az { credential, account } => {
                AzureAuthorizer::new(credential, account).try_authorize(&mut request)
            }
            Spoken::Gs => return Err(StoreError::Unsupported { what: "do this at Google" }),
        };
        signed.map_err(|_| StoreError::Invalid { reason: "the request cannot be signed".to_owned() })?;
        Ok(request)
    }
}

/// The words of a builder's error are not passed on: they repeat parts of what it was given, the secrets too.
fn unusable<T, E>(built: std::result::Result<T, E>, what: &str) -> Result<T> {
    built.map_err(|_| StoreError::Invalid { reason: format!("the secret `{what}` cannot be used") })
}

fn s3_of(s3: S3, bucket: &str, base: &str, http: &HttpClient) -> Result<(Arc<dyn ObjectStore>, Spoken)> {
    let credential = AwsCredential {
        key_id: s3.access_key_id.0.clone(),
        secret_key: s3.secret_access_key.0.clone(),
        token: s3.session_token.as_ref().map(|token| token.0.clone()),
    };
    let ours = AwsCredential {
        key_id: s3.access_key_id.0,
        secret_key: s3.secret_access_key.0,
        token: s3.session_token.map(|token| token.0),
    };
    let header_safe = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !header_safe(&ours.key_id) || !header_safe(ours.token.as_deref().unwrap_or_default()) {
        let reason = "a secret has a character that credentials of S3 do not have".to_owned();
        return Err(StoreError::Invalid { reason });
    }
    let built = AmazonS3Builder::new()
        .with_http_connector(Connector(http.clone()))
        .with_retry(retries())
        .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
        .with_region(s3.region.as_str())
        .with_bucket_name(bucket)
        // `base` has the bucket in it already, and that is what this means to the builder
        .with_virtual_hosted_style_request(true)
        .with_endpoint(base)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true)
        .with_disable_tagging(true)
        .build();
    let spoken = Spoken::S3 {
        credential: Arc::new(ours),
        region: s3.region,
        storage_class: s3.storage_class,
        conditions: s3.conditions,
        retain_mode: s3.retain_mode,
    };
    Ok((Arc::new(unusable(built, "secret_access_key")?), spoken))
}

fn gs_of(
    service_account: &Secret,
    bucket: &str,
    base: &str,
    http: &HttpClient,
) -> Result<Arc<dyn ObjectStore>> {
    // requests carry a token that is signed here with the account's key: nobody is asked for one
    let built = GoogleCloudStorageBuilder::new()
        .with_http_connector(Connector(http.clone()))
        .with_retry(retries())
        .with_service_account_key(service_account.0.as_str())
        .with_base_url(base)
        .with_bucket_name(bucket)
        .build();
    Ok(Arc::new(unusable(built, "service_account")?))
}

fn az_of(
    account: String,
    credential: &AzCredential,
    bucket: &str,
    base: &str,
    http: &HttpClient,
) -> Result<(Arc<dyn ObjectStore>, Spoken)> {
    let make = || match credential {
        AzCredential::AccountKey(key) => {
            unusable(AzureAccessKey::try_new(&key.0), "account_key").map(AzureCredential::AccessKey)
        }
        AzCredential::SasToken(token) => pairs_of(&token.0).map(AzureCredential::SASToken),
    };
    let built = MicrosoftAzureBuilder::new()
        .with_http_connector(Connector(http.clone()))
        .with_retry(retries())
        .with_account(account.as_str())
        .with_endpoint(base.to_owned())
        .with_container_name(bucket)
        .with_credentials(Arc::new(StaticCredentialProvider::new(make()?)))
        .build();
    Ok((Arc::new(unusable(built, "account_key")?), Spoken::Az { credential: Arc::new(make()?), account }))
}

/// A shared access signature is a piece of a URL: `sv=…&sig=…`, perhaps with a question mark before it.
fn pairs_of(token: &str) -> Result<Vec<(String, String)>> {
    let unusable = || StoreError::Invalid { reason: "the secret `sas_token` cannot be used".to_owned() };
    let url = reqwest::Url::parse(&format!("https://x/?{}", token.trim().trim_start_matches('?')));
    let url = url.map_err(|_| unusable())?;
    let pairs: Vec<_> =
        url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    if !pairs.iter().any(|(name, _)| name == "sig") {
        return Err(unusable());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chatkeep_store::Opening;

    use super::*;

    fn open(url: &str, secrets: &[(&str, &str)]) -> Result<Service> {
        let mut opening = Opening::of_url(url);
        if url.starts_with("az") {
            opening.options.insert("account".to_owned(), "someone".to_owned());
        }
        for (name, value) in secrets {
            opening.secrets.set(name, (*value).to_owned().into());
        }
        Service::new(Settings::of(&opening)?, Pace::default())
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_named_and_not_shown() {
        for (url, name, value) in [
            ("gs://b", "service_account", "\"hunter2\""),
            ("gs://b", "service_account", "{\"private_key\":\"hunter2\"}"),
            ("gs://b", "service_account", "hunter2"),
            ("az://b", "account_key", "hunter2 is not base64"),
            ("az://b", "sas_token", "hunter2"),
        ] {
            let error = open(url, &[(name, value)]).map(|_| ()).unwrap_err();
            let shown = format!("{error:?}");
            assert!(shown.contains(name) && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_shared_access_signature_is_taken_with_and_without_its_question_mark() {
        for token in ["?sv=2026-01-01&sig=a%2Bb%3D", "sv=2026-01-01&sig=a%2Bb%3D"] {
            let expected = [("sv", "2026-01-01"), ("sig", "a+b=")];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(pairs_of(token).unwrap(), expected);
        }
    }
}
