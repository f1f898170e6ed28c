//! Ids that the platform gives.

use serde::{Serialize, Serializer};
use std::fmt;

/// A UUID: a command's or an event's. Displayed, and in JSON, in the usual form with dashes.
///
/// ```
/// let id = ebbtide::Id::from_u128(0x0190_0000_0000_7000_8000_0000_0000_002a);
/// assert_eq!(id.to_string(), "01900000-0000-7000-8000-00000000002a");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(u128);

impl Id {
    /// From its 128 bits.
    #[must_use]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// Its 128 bits.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    #[cfg(target_family = "wasm")]
    pub(crate) const fn from_halves((high, low): (u64, u64)) -> Self {
        Self((high as u128) << 64 | low as u128)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            bits >> 96,
            bits >> 80 & 0xffff,
            bits >> 64 & 0xffff,
            bits >> 48 & 0xffff,
            bits & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
