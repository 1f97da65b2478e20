//! Keys, keyslots, sealing and opening of Chatkeep objects.
