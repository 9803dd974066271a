//! From a raw number to the quantity that it stands for: `scale` and `offset`, `decimals`, `range`, in this order. Pure.

use crate::reading::{Reason, Value};

/// What is done to a raw number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantity {
    /// Multiplies it.
    pub scale: f64,
    /// Is added after scaling.
    pub offset: f64,
    /// Rounds to so many decimals.
    pub decimals: Option<u8>,
    /// Lowest and highest plausible value.
    pub range: Option<(f64, f64)>,
}

impl Quantity {
    /// Whether the raw number is the value, but for its decimals.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "the very defaults are meant")]
    pub fn is_unscaled(&self) -> bool {
        self.scale == 1.0 && self.offset == 0.0
    }

    /// The value of a raw number.
    pub fn of(&self, raw: f64) -> Result<Value, Reason> {
        let x = raw * self.scale + self.offset;
        let x = match self.decimals {
            Some(decimals) => as_written(&format!("{x:.*}", usize::from(decimals))),
            None if self.is_unscaled() => x,
            // 15 significant digits survive a double (DBL_DIG): 217 × 0.1 is 21.7, not 21.700000000000003.
            None => as_written(&format!("{x:.14e}")),
        };
        // Adding zero turns -0 into 0, which people would take for a fault.
        self.in_range(Value::float(x + 0.0).ok_or(Reason::NotANumber)?)
    }

    /// The value, if it is plausible.
    pub fn in_range(&self, value: Value) -> Result<Value, Reason> {
        match (self.range, value.as_f64()) {
            (Some((low, high)), Some(x)) if !(low..=high).contains(&x) => Err(Reason::OutOfRange),
            _ => Ok(value),
        }
    }
}

/// The double nearest to a decimal; NaN for what is none, such as `inf`.
fn as_written(text: &str) -> f64 {
    text.parse().unwrap_or(f64::NAN)
}
