//! The way to a token: module, slot, session, PIN.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::config::Pkcs11Config;
use crate::hsm::HsmError;
use crate::hsm::secret_file::read_pin;

/// A session that is logged in.
pub(super) struct Connected {
    pub(super) session: Session,
    /// What the token says it can do. Not all that it lists is allowed, but what it does not list must not be used.
    pub(super) mechanisms: Vec<MechanismType>,
    /// Whether the slot does not claim to be hardware: SoftHSM2, for one, whose token is a folder.
    pub(super) in_software: bool,
}

/// Opens the one token with the configured label.
pub(super) fn connect(settings: &Pkcs11Config) -> Result<Connected, HsmError> {
    let pin = read_pin(&settings.pin_file)?;
    let module = settings.module.display();
    let library = Pkcs11::new(&settings.module)
        .map_err(|error| HsmError::Token(format!("cannot load the PKCS#11 module `{module}`: {error}")))?;
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(HsmError::Token(format!("the PKCS#11 module `{module}`: {error}"))),
    }
    let slot = find_slot(&library, &settings.token)?;
    let said = |error: Error| HsmError::Token(format!("the token `{}`: {error}", settings.token));
    let in_software = !library.get_slot_info(slot).map_err(said)?.hardware_slot();
    let mechanisms = library.get_mechanism_list(slot).map_err(said)?;
    let session = library.open_rw_session(slot).map_err(said)?;
    match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
            Ok(Connected { session, mechanisms, in_software })
        }
        Err(
            error @ Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked,
                _,
            ),
        ) => Err(HsmError::Pin { said: error.to_string() }),
        Err(error) => Err(said(error)),
    }
}

fn find_slot(library: &Pkcs11, label: &str) -> Result<Slot, HsmError> {
    let said = |error: Error| HsmError::Token(format!("cannot list tokens: {error}"));
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for slot in library.get_slots_with_initialized_token().map_err(said)? {
        let info = library.get_token_info(slot).map_err(said)?;
        if info.label() == label {
            found.push(slot);
        } else {
            others.push(info.label().to_owned());
        }
    }
    match found[..] {
        [slot] => Ok(slot),
        [] => Err(HsmError::Token(format!("there is no token `{label}`; there are {others:?}"))),
        _ => Err(HsmError::Token(format!("there are {} tokens called `{label}`", found.len()))),
    }
}
