//! One window of samples of the analog converter: its mean, and its true RMS around that mean.
//!
//! Terms: a count is what the converter says, 125 µV ([`MICROVOLTS_PER_COUNT`]). A window that spans whole periods of the
//! mains has none of its hum in the mean; its RMS is that of the alternating part alone, whatever its shape.
//!
//! A sample at either end of the range counts as what it says. What clips reads low, and still far above all that fits.

/// 1 count at a full scale of ±4.096 V over 16 bits.
pub const MICROVOLTS_PER_COUNT: u8 = 125;

/// Samples that a window takes: more than 860 a second give in [`crate::sensors::analog::WINDOW`] (190 with the clock of the
/// chip 10 % fast), and few enough that no sum below overflows.
const CAPACITY: u8 = 255;

/// Samples on their way to a mean and an RMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    samples: u8,
    sum: i32,     // counts: at most 255 × 2^15 = 2^23
    squares: u64, // counts²: at most 255 × 2^30 = 2^38
}

impl Window {
    /// Without samples.
    #[must_use]
    pub const fn new() -> Self {
        Self { samples: 0, sum: 0, squares: 0 }
    }

    /// Adds one sample in counts; a full window takes no more.
    pub fn push(&mut self, counts: i16) {
        if self.samples < CAPACITY {
            self.samples += 1;
            self.sum += i32::from(counts);
            self.squares += u64::from(counts.unsigned_abs()).pow(2);
        }
    }

    /// How many samples it holds.
    #[must_use]
    pub const fn samples(&self) -> u8 {
        self.samples
    }

    /// Mean in microvolts; 0 without samples.
    #[must_use]
    pub fn mean_uv(&self) -> i32 {
        // 2^23 × 125 < 2^30
        self.sum * i32::from(MICROVOLTS_PER_COUNT) / i32::from(self.samples).max(1)
    }

    /// True RMS around the mean in microvolts; 0 without samples.
    #[must_use]
    pub fn rms_uv(&self) -> u32 {
        let samples = u64::from(self.samples);
        let sum = u64::from(self.sum.unsigned_abs());
        // n²σ² = n·Σx² - (Σx)², in counts²: at most 2^46; times 125² it stays below 2^60
        let spread = (samples * self.squares).saturating_sub(sum * sum) * u64::from(MICROVOLTS_PER_COUNT).pow(2);
        // at most 2^30 / 1
        (spread.isqrt() / samples.max(1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{SQRT_2, TAU};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn window(samples: impl IntoIterator<Item = i16>) -> Window {
        let mut window = Window::new();
        samples.into_iter().for_each(|counts| window.push(counts));
        window
    }

    #[test]
    fn an_empty_window_is_zero() {
        assert_eq!((Window::new().mean_uv(), Window::new().rms_uv()), (0, 0));
    }

    #[test]
    fn a_direct_voltage_is_all_mean() {
        let window = window([16_000; 60]);
        assert_eq!((window.samples(), window.mean_uv(), window.rms_uv()), (60, 2_000_000, 0));
    }

    #[test]
    fn a_square_wave_around_a_bias_has_its_amplitude_as_rms() {
        let window = window([12_000 - 800, 12_000 + 800].into_iter().cycle().take(66));
        assert_eq!((window.mean_uv(), window.rms_uv()), (1_500_000, 100_000));
    }

    #[test]
    fn samples_at_both_ends_of_the_range_overflow_nothing() {
        assert_eq!(window([i16::MIN; 1000]).mean_uv(), -4_096_000);
        assert_eq!(window([i16::MAX; 1000]).mean_uv(), 4_095_875);
        let clipped = window([i16::MIN, i16::MAX].into_iter().cycle().take(1000));
        assert_eq!(clipped.samples(), CAPACITY);
        assert!((4_095_900..=4_096_000).contains(&clipped.rms_uv()), "{}", clipped.rms_uv());
    }

    proptest! {
        /// Sampled as the converter does it: every 2 to 3 ms for 200 ms, never in step with the mains.
        #[test]
        fn the_rms_of_a_sine_on_a_bias_is_within_a_percent(
            hertz in prop::sample::select(&[49.5, 50.0, 50.5, 59.5, 60.0, 60.5][..]),
            amplitude in 800.0_f64..12_000.0,
            bias in 12_800.0_f64..20_000.0,
            phase in 0.0..TAU,
            interval_us in 2_000_u32..=3_000,
        ) {
            let times: Vec<f64> = (0..200_000 / interval_us).map(|n| f64::from(n * interval_us) / 1e6).collect();
            let window = window(times.iter().map(|t| (bias + amplitude * (TAU * hertz * t + phase).sin()).round() as i16));
            let rms = amplitude / SQRT_2 * 125.0;
            prop_assert!((f64::from(window.rms_uv()) - rms).abs() < 0.01 * rms, "{} for {rms}", window.rms_uv());
            prop_assert!((f64::from(window.mean_uv()) - bias * 125.0).abs() < 0.03 * amplitude * 125.0);
        }

        #[test]
        fn no_samples_panic_and_the_mean_lies_between_them(samples in prop::collection::vec(any::<i16>(), 1..300)) {
            let window = window(samples.iter().copied());
            let kept = &samples[..samples.len().min(usize::from(CAPACITY))];
            let (low, high) = (i32::from(*kept.iter().min().unwrap()), i32::from(*kept.iter().max().unwrap()));
            prop_assert!((low * 125..=high * 125).contains(&window.mean_uv()));
            prop_assert!(window.rms_uv() <= (high - low) as u32 * 125);
        }
    }
}
