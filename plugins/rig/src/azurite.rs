//! Azurite: the Azure Blob Storage emulator of its maker.
