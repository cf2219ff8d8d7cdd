//! What a measurement leaves behind: one JSON file.

use serde::{Deserialize, Serialize};

use super::clocks::Around;
use super::predict::{Counts, Predicted};
use crate::failure::Failure;
use anyhow::Result;
use std::path::Path;

/// A whole measurement. Deliberately without a commit: records are compared across versions, and the date says enough.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// `birdie` and its version.
    pub program: String,
    /// UTC, `2026-11-22T01:40:07Z`.
    pub date: String,
    /// Absent where only counts were read, which do not say.
    pub device: Option<DeviceFacts>,
    /// Whether `rows` hold times of a GPU or counts of the emulator.
    pub kind: Kind,
    /// The model behind every predicted number; absent where all are measured.
    pub model: Option<String>,
    /// Absent where a program other than birdie was counted.
    pub recipe: Option<String>,
    /// What one step was: `48 x 2048 tokens on 1 of 8 devices, 11 layers`.
    pub step: String,
    pub rows: Vec<Row>,
    /// Sums over the step, in milliseconds.
    pub total: Total,
    /// Kernels of birdie that the step does not launch.
    pub not_launched: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Measured,
    Predicted,
}

/// The device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    pub name: String,
    /// `cuda` or `emu`.
    pub driver_kind: String,
    pub driver: String,
    pub multiprocessors: u32,
    /// The largest clocks; the current ones are in the rows that were measured.
    pub max_clock_khz: u32,
    pub max_memory_clock_khz: u32,
    pub l2_bytes: u32,
    pub compiled_by: String,
}

/// One operation of the step; the same operation with the same sizes is one row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Entry points, joined by ` + ` where the operation has several launches.
    pub name: String,
    /// The whole name where `name` is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// 32-bit sizes among the parameters, in their order; of another program the grid and the threads of a CTA.
    pub sizes: String,
    pub grid: Vec<[u32; 3]>,
    /// How often the step does it.
    pub count: u32,
    /// At least so much must be computed and moved; 0 where that is not known.
    pub flops: f64,
    pub bytes: f64,
    /// Predicted: the time that this takes at least.
    pub floor_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

impl Row {
    /// Measured where there is a measurement, else predicted.
    pub fn us(&self) -> f64 {
        match (&self.measured, &self.predicted) {
            (Some(measured), _) => measured.in_step.p50,
            (None, Some(predicted)) => predicted.bound_us,
            (None, None) => 0.0,
        }
    }

    /// What names a row in a comparison.
    pub fn key(&self) -> (&str, &str, u64) {
        // Optional operands show in the bytes.
        (&self.name, &self.sizes, self.bytes as u64)
    }
}

/// Microseconds of one operation, over the repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p20: f64,
    pub p50: f64,
    pub p80: f64,
}

impl Quantiles {
    /// # Panics
    /// Without values.
    pub fn of(mut values: Vec<f64>) -> Quantiles {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Quantiles {
            p20: at(0.2),
            p50: at(0.5),
            p80: at(0.8),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub in_step: Quantiles,
    pub cold_l2: Quantiles,
    pub warm_l2: Quantiles,
    pub repetitions: u32,
    pub tflops: f64,
    pub gbytes_per_second: f64,
    /// Of the predicted floor, at the median in the step.
    pub share_of_floor: f64,
    /// Around the kernel, the lowest seen; in a pass of its own, as it comes in the step. Absent where the device does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Around>,
}

/// Sums over one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// Measured or predicted, as the record's kind says.
    pub ms: f64,
    /// Predicted: the floors of these operations, without further fusion.
    pub floor_ms: Option<f64>,
    /// The goal, and the floor of the plan with all its fusions.
    pub goal_ms: Option<f64>,
    pub plan_floor_ms: Option<f64>,
    pub launches: u32,
}

impl Record {
    /// Where and of what: for the first line of a table.
    pub fn origin(&self) -> String {
        let device = self.device.as_ref().map_or("counts", |device| &device.name);
        match &self.recipe {
            Some(recipe) => format!("{} on {device}, recipe {recipe}, {}", self.date, self.step),
            None => format!("{} on {device}, {}", self.date, self.step),
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).map_err(|error| {
            Failure::user(path.display(), error, "name a file that can be written").into()
        })
    }

    pub fn read(path: &Path) -> Result<Record> {
        let failed = |why: String| {
            Failure::user(
                path.display(),
                why,
                "a record is what `birdie bench kernels --out FILE` or `bench counts --out FILE` writes",
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Ok(serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_of_eleven_values() {
        let q = Quantiles::of((0..11).rev().map(f64::from).collect());
        assert_eq!((q.p20, q.p50, q.p80), (2.0, 5.0, 8.0));
        assert_eq!(Quantiles::of(vec![3.0]).p80, 3.0);
    }
}
