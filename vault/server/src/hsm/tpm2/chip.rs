//! The way to a TPM, what it says about itself, and what its errors mean.

use std::str::FromStr as _;
use std::time::Duration;

use tss_esapi::abstraction::AsymmetricAlgorithmSelection;
use tss_esapi::abstraction::ek::create_ek_object_2;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind as Kind};
use tss_esapi::constants::{CapabilityType, PropertyTag, SessionType};
use tss_esapi::handles::{KeyHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, SymmetricDefinition};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, Error, WrapperErrorKind};

use crate::hsm::{DeviceError, HsmError};

/// A TPM that saves its memory from wear, or is about to wake up, says "later". Pauses between attempts.
const LATER_PAUSE: Duration = Duration::from_millis(100);
/// 10 s in all: then a write that does not come is an error.
const LATER_MAX: u32 = 100;

/// `TPMA_PERMANENT`: the owner's authorisation is not empty.
const OWNER_AUTH_SET: u32 = 1;

/// Makers of TPMs that are programs: their state is a file, which can be copied and goes back with a snapshot. As their
/// `TPM_PT_MANUFACTURER` says: libtpms and its swtpm, and with them QEMU; VMware; Google's and Amazon's clouds; the
/// reference simulator.
const IN_SOFTWARE: [&str; 5] = ["IBM", "VMW", "GOOG", "AMZN", "XCG"];
/// Microsoft makes both: Pluton, which is hardware, and the TPMs of Hyper-V and Azure.
const PERHAPS_IN_SOFTWARE: &str = "MSFT";

/// An open connection.
pub(super) struct Chip {
    context: Context,
}

/// See [`Chip::call_in_session`].
#[derive(Clone, Copy)]
struct Session {
    salt: Option<KeyHandle>,
    encrypted: bool,
}

/// A command failed.
#[derive(Debug)]
pub(super) struct ChipError {
    doing: &'static str,
    error: Error,
}

/// Who made it, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Maker {
    manufacturer: String,
    model: String,
}

impl Chip {
    /// Connects, and sends nothing yet that needs an authorisation.
    pub(super) fn connect(tcti: &str) -> Result<Self, HsmError> {
        let way = TctiNameConf::from_str(tcti).map_err(|_| {
            HsmError::Token(format!(
                "tcti = \"{tcti}\" is no way to a TPM: write \"device:/dev/tpmrm0\", \"tabrmd:bus_type=system\" or \
                 \"swtpm:host=127.0.0.1,port=2321\""
            ))
        })?;
        let context = Context::new(way).map_err(|error| {
            HsmError::Token(format!(
                "cannot reach the TPM at \"{tcti}\" ({}): is it there, and may this user open it (group tss, DeviceAllow=)?",
                explain(error)
            ))
        })?;
        Ok(Self { context })
    }

    /// Has one command done without any authorisation.
    pub(super) fn call<R>(
        &mut self,
        doing: &'static str,
        mut command: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        later(LATER_PAUSE, || command(&mut self.context)).map_err(|error| ChipError { doing, error })
    }

    /// Has one command done in a session: the auth values of what it uses are not sent, nor are the first parameter and result
    /// readable for whoever listens between processor and TPM; and it is the TPM that answers.
    ///
    /// The session ends with the command. One that stayed open would be shuffled in and out by the kernel with every
    /// command, and, idle for long, make the sessions of others fail (`TPM_RC_CONTEXT_GAP`).
    pub(super) fn call_in_session<R>(
        &mut self,
        doing: &'static str,
        command: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        self.in_session(doing, Session { salt: None, encrypted: true }, command)
    }

    /// As [`Self::call_in_session`], for what is no secret: half the work.
    pub(super) fn call_in_open_session<R>(
        &mut self,
        doing: &'static str,
        commands: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        self.in_session(doing, Session { salt: None, encrypted: false }, commands)
    }

    /// As [`Self::call_in_session`], with a key that only the TPM can know, because it is encrypted with `salt`. At `init` the auth
    /// values themselves travel: whoever listens then would learn them, and with them all that comes later.
    pub(super) fn call_in_salted_session<R>(
        &mut self,
        doing: &'static str,
        salt: KeyHandle,
        command: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        self.in_session(doing, Session { salt: Some(salt), encrypted: true }, command)
    }

    /// Has one command done whose auth value is sent as it is: a tenth of the work of [`Self::call_in_session`], two thirds of
    /// the commands saved.
    pub(super) fn call_with_password<R>(
        &mut self,
        doing: &'static str,
        mut command: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        self.call(doing, |context| context.execute_with_session(Some(AuthSession::Password), &mut command))
    }

    fn in_session<R>(
        &mut self,
        doing: &'static str,
        session: Session,
        mut command: impl FnMut(&mut Context) -> Result<R, Error>,
    ) -> Result<R, ChipError> {
        self.call(doing, |context| {
            let begun = context
                .start_auth_session(
                    session.salt,
                    None,
                    None,
                    SessionType::Hmac,
                    SymmetricDefinition::AES_128_CFB,
                    HashingAlgorithm::Sha256,
                )?
                .ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
            let (attributes, mask) = SessionAttributesBuilder::new()
                .with_decrypt(session.encrypted)
                .with_encrypt(session.encrypted)
                .build();
            let outcome = context
                .tr_sess_set_attributes(begun, attributes, mask)
                .and_then(|()| context.execute_with_session(Some(begun), &mut command));
            let ended = context.flush_context(SessionHandle::from(begun).into());
            // of two errors, the first says more
            outcome.and_then(|done| ended.map(|()| done))
        })
    }

    /// All persistent keys or NV indices from `first` on, `count` at most.
    pub(super) fn handles(&mut self, first: u32, count: u32) -> Result<Vec<u32>, ChipError> {
        let (found, _more) = self.call("list what it holds", |context| {
            context.get_capability(CapabilityType::Handles, first, count)
        })?;
        let CapabilityData::Handles(found) = found else { return Ok(Vec::new()) };
        let number = |handle: TpmHandle| u32::from(handle);
        Ok(found.into_inner().into_iter().map(number).filter(|handle| handle - first < count).collect())
    }

    /// Whether everybody who may talk to the TPM may undefine what is in it.
    pub(super) fn owner_is_open(&mut self) -> Result<bool, ChipError> {
        let permanent = self.property(PropertyTag::Permanent)?;
        Ok(permanent & OWNER_AUTH_SET == 0)
    }

    /// Who made it.
    pub(super) fn maker(&mut self) -> Result<Maker, ChipError> {
        let manufacturer = text(&[self.property(PropertyTag::Manufacturer)?]);
        let model = [
            PropertyTag::VendorString1,
            PropertyTag::VendorString2,
            PropertyTag::VendorString3,
            PropertyTag::VendorString4,
        ];
        let model = model.into_iter().map(|part| self.property(part)).collect::<Result<Vec<_>, _>>()?;
        Ok(Maker { manufacturer, model: text(&model) })
    }

    /// Tells one TPM from all others, also after it was cleared: the Name of its endorsement key, in hex. `None` if whoever owns
    /// the endorsement hierarchy keeps it to himself.
    pub(super) fn fingerprint(&mut self) -> Option<String> {
        let curve = AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256);
        let name = self.call("make its endorsement key", |context| {
            let key = create_ek_object_2(context, curve, None)?;
            let name = context.read_public(key).map(|(_, name, _)| name);
            context.flush_context(key.into())?;
            name
        });
        let name = name.inspect_err(|error| tracing::debug!(?error, "this TPM does not say which one it is"));
        Some(hex::encode(name.ok()?.value()))
    }

    fn property(&mut self, tag: PropertyTag) -> Result<u32, ChipError> {
        Ok(self.call("describe itself", |context| context.get_tpm_property(tag))?.unwrap_or_default())
    }
}

impl ChipError {
    /// Whether the auth value was wrong.
    pub(super) fn is_wrong_auth(&self) -> bool {
        matches!(kind(self.error), Some(Kind::AuthFail | Kind::BadAuth))
    }
}

impl From<ChipError> for DeviceError {
    fn from(ChipError { doing, error }: ChipError) -> Self {
        Self::Failed { doing, said: explain(error) }
    }
}

impl From<ChipError> for HsmError {
    fn from(error: ChipError) -> Self {
        Self::Device(error.into())
    }
}

impl Maker {
    /// Whether it is a program.
    pub(super) fn is_software(&self) -> bool {
        IN_SOFTWARE.contains(&self.manufacturer.as_str())
    }

    /// Whether it may be one.
    pub(super) fn may_be_software(&self) -> bool {
        self.manufacturer == PERHAPS_IN_SOFTWARE
    }
}

impl std::fmt::Display for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.manufacturer, self.model)
    }
}

/// Four letters in each number, most significant first, padded with spaces or zeros.
fn text(parts: &[u32]) -> String {
    let bytes: Vec<u8> =
        parts.iter().flat_map(|part| part.to_be_bytes()).filter(u8::is_ascii_graphic).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Repeats `command` while the TPM says that it should be asked later.
fn later<R>(pause: Duration, mut command: impl FnMut() -> Result<R, Error>) -> Result<R, Error> {
    let mut asked = 0;
    loop {
        match command() {
            Err(error) if asked < LATER_MAX && is_temporary(error) => {
                asked += 1;
                std::thread::sleep(pause);
            }
            outcome => return outcome,
        }
    }
}

fn is_temporary(error: Error) -> bool {
    matches!(
        kind(error),
        Some(Kind::NvRate | Kind::NvUnavailable | Kind::Retry | Kind::Testing | Kind::Yielded)
    )
}

/// What the TPM said; `None` if it was not the TPM that spoke.
fn kind(error: Error) -> Option<Kind> {
    match error {
        Error::Tss2Error(code) if layer(code) == Some(LAYER_TPM) => code.kind(),
        _ => None,
    }
}

/// Who speaks: bits 16 to 23 of a code (TSS 2.0 Overview, "Response codes").
const LAYER_TPM: u32 = 0;
/// The library that carries commands.
const LAYER_TCTI: u32 = 10;

fn layer(code: Tss2ResponseCode) -> Option<u32> {
    Some((number(code)? >> 16) & 0xff)
}

/// The crate keeps the number to itself, but prints it.
fn number(code: Tss2ResponseCode) -> Option<u32> {
    let printed = match code {
        Tss2ResponseCode::Success => return Some(0),
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    u32::from_str_radix(printed.rsplit_once("0x")?.1, 16).ok()
}

fn explain(error: Error) -> String {
    let Error::Tss2Error(code) = error else { return error.to_string() };
    let number = number(code).unwrap_or_default();
    match layer(code) {
        Some(LAYER_TPM) => format!("{error} (0x{number:x})"),
        Some(LAYER_TCTI) => format!("the connection to the TPM broke (0x{number:x})"),
        _ => format!("tpm2-tss failed (0x{number:x})"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn error(number: u32) -> Error {
        Error::Tss2Error(number.into())
    }

    #[test]
    fn later_is_not_never() {
        for (number, asked) in [(0x920, 3), (0x923, 3), (0x922, 3), (0x921, 1), (0x9a2, 1), (0xa_0920, 1)] {
            let mut times = 0;
            let outcome = later(Duration::ZERO, || {
                times += 1;
                if times < 3 { Err(error(number)) } else { Ok(()) }
            });
            assert_eq!((times, outcome.is_ok()), (asked, asked == 3), "{number:x}");
        }
        let mut times = 0;
        later(Duration::ZERO, || -> Result<(), Error> {
            times += 1;
            Err(error(0x920))
        })
        .unwrap_err();
        assert_eq!(times, LATER_MAX + 1);
    }

    #[test]
    fn who_speaks_is_told() {
        for (number, says) in [
            (
                0x9a2,
                "authorization failure without DA implications (associated with session number 1) (0x9a2)",
            ),
            (0xa_000a, "the connection to the TPM broke (0xa000a)"),
            (0x7_0014, "tpm2-tss failed (0x70014)"),
        ] {
            assert_eq!(explain(error(number)), says);
        }
        let of = |number| ChipError { doing: "test", error: error(number) };
        assert!(of(0x9a2).is_wrong_auth() && of(0x98e).is_wrong_auth() && !of(0xa_09a2).is_wrong_auth());
    }

    #[test]
    fn a_maker_is_read_from_numbers() {
        let maker =
            |name: &[u8; 4]| Maker { manufacturer: text(&[u32::from_be_bytes(*name)]), model: String::new() };
        assert!(maker(b"IBM\0").is_software() && maker(b"VMW ").is_software());
        assert!(
            !maker(b"IFX\0").is_software()
                && !maker(b"MSFT").is_software()
                && maker(b"MSFT").may_be_software()
        );
        assert_eq!(text(&[0x5357_2020, 0x5450_4d00, 0]), "SWTPM");
    }
}
