//! Device memory, planned before anything is allocated.
//!
//! A [`Plan`] is made by asking for tensors one after another; it knows every byte that a run will use, prints itself, and says what
//! would not fit. Only then is memory allocated from it: one block per [`Region`]. A [`Tensor`] is a place in the
//! plan, cheap to copy, and an address once there is memory. Nothing is allocated inside a step.
//!
//! Invariants: tensors are aligned to 256 bytes and do not overlap, with one exception: scratch tensors reserved inside
//! [`Plan::scratch`] give their room back when it returns, so that the next scratch reuses it.

pub mod memory;

use crate::failure::Failure;
use anyhow::Result;

/// What a block of memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    Parameters,
    Gradients,
    Optimizer,
    Averages,
    /// bf16 copies of the weights, as the matrix products read them.
    Weights,
    Activations,
    Workspace,
    /// Tokens, step values, losses: what travels between host and device.
    Exchange,
}

impl Region {
    pub const ALL: [Self; 8] = [
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Averages,
        Self::Weights,
        Self::Activations,
        Self::Workspace,
        Self::Exchange,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Averages => "averages",
            Self::Weights => "bf16 weights",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
            Self::Exchange => "exchange",
        }
    }
}

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    U8,
    U16,
    Bf16,
    I32,
    F32,
}

impl Element {
    pub fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::F32 => "f32",
        }
    }
}

/// A place in a plan: `elements` of a type from `offset` bytes into a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub region: Region,
    pub offset: u64,
    pub element: Element,
    pub elements: u64,
}

impl Tensor {
    pub fn bytes(self) -> u64 {
        self.elements * self.element.bytes()
    }

    /// `elements` from `start` elements on.
    ///
    /// # Panics
    /// If that reaches beyond the tensor: a defect of the planner.
    pub fn slice(self, start: u64, elements: u64) -> Self {
        assert!(
            start + elements <= self.elements,
            "slice {start}+{elements} of a tensor of {} elements",
            self.elements
        );
        Self {
            offset: self.offset + start * self.element.bytes(),
            elements,
            ..self
        }
    }
}

/// One tensor as the plan lists it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    pub tensor: Tensor,
    /// Shares its room with other scratch tensors.
    pub scratch: bool,
}

/// Every tensor of a run, by region.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    entries: Vec<Entry>,
    used: [u64; Region::ALL.len()],
    peak: [u64; Region::ALL.len()],
    in_scratch: bool,
}

/// Alignment of every tensor: the allocator's own, and enough for any access of a kernel.
const ALIGNMENT: u64 = 256;

impl Plan {
    /// Reserves a tensor. A shape with no dimensions is one element.
    pub fn reserve(
        &mut self,
        region: Region,
        name: impl Into<String>,
        element: Element,
        shape: &[usize],
    ) -> Tensor {
        let elements: u64 = shape.iter().map(|&n| n as u64).product();
        let used = &mut self.used[region as usize];
        let tensor = Tensor {
            region,
            offset: *used,
            element,
            elements,
        };
        *used += tensor.bytes().next_multiple_of(ALIGNMENT);
        let peak = &mut self.peak[region as usize];
        *peak = (*peak).max(*used);
        self.entries.push(Entry {
            name: name.into(),
            shape: shape.into(),
            tensor,
            scratch: self.in_scratch,
        });
        tensor
    }

    /// Room in the workspace reserved by `reserve` is free again for the next scratch when it returns.
    ///
    /// Tensors of two scratches must not be in use at the same time: kernels of one stream run one after the other.
    pub fn scratch<T>(&mut self, reserve: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.used[Region::Workspace as usize];
        let outer = std::mem::replace(&mut self.in_scratch, true);
        let result = reserve(self);
        self.in_scratch = outer;
        self.used[Region::Workspace as usize] = start;
        result
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of a region.
    pub fn bytes(&self, region: Region) -> u64 {
        self.peak[region as usize]
    }

    pub fn total(&self) -> u64 {
        self.peak.iter().sum()
    }

    /// Refuses a plan that the device's free memory cannot hold.
    pub fn check_fits(&self, what: &str, free: u64) -> Result<()> {
        let total = self.total();
        if total <= free {
            return Ok(());
        }
        let largest = Region::ALL
            .into_iter()
            .max_by_key(|&region| self.bytes(region))
            .expect("there are regions");
        Err(Failure::user(
            what,
            format!(
                "needs {} of device memory, {} more than the {} that are free; {} of it are {}",
                size(total),
                size(total - free),
                size(free),
                size(self.bytes(largest)),
                largest.name()
            ),
            "lower train_batch_tokens or raise grad_accum_steps; --dry-run prints the whole plan",
        )
        .into())
    }

    /// A table of regions and whether they fit into each of `places` (a name and its free bytes); with `tensors`, of every tensor
    /// below it.
    pub fn report(&self, places: &[(&str, u64)], tensors: bool) -> String {
        let mut text = String::new();
        for region in Region::ALL {
            text += &format!("{:<14} {:>12}\n", region.name(), size(self.bytes(region)));
        }
        text += &format!("{:<14} {:>12}", "total", size(self.total()));
        for (name, free) in places {
            let verdict = if self.total() <= *free {
                "fits into"
            } else {
                "DOES NOT FIT into"
            };
            text += &format!("\n  {verdict} {name}: {} free", size(*free));
        }
        text.push('\n');
        if !tensors {
            return text;
        }
        for region in Region::ALL {
            text += &format!("\n{}\n", region.name());
            for entry in self.entries.iter().filter(|e| e.tensor.region == region) {
                let shape: Vec<String> = entry.shape.iter().map(usize::to_string).collect();
                text += &format!(
                    "  {:<40} {:>5} {:<24} {:>12}{}\n",
                    entry.name,
                    entry.tensor.element.name(),
                    format!("[{}]", shape.join(", ")),
                    size(entry.tensor.bytes()),
                    if entry.scratch { "  shared" } else { "" },
                );
            }
        }
        text
    }
}

/// Bytes for people: four significant digits, binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let decimals = if value >= 100.0 { 1 } else { 2 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_aligned_and_apart() {
        let mut plan = Plan::default();
        let a = plan.reserve(Region::Activations, "a", Element::Bf16, &[3, 5]);
        let b = plan.reserve(Region::Activations, "b", Element::F32, &[]);
        assert_eq!((a.offset, a.bytes(), b.offset, b.elements), (0, 30, 256, 1));
        assert_eq!(plan.bytes(Region::Activations), 512);
        assert_eq!(a.slice(8, 7).offset, 16);
    }

    #[test]
    fn scratch_is_reused_and_the_largest_counts() {
        let mut plan = Plan::default();
        let kept = plan.reserve(Region::Workspace, "kept", Element::U8, &[256]);
        let first =
            plan.scratch(|plan| plan.reserve(Region::Workspace, "first", Element::U8, &[1024]));
        let second =
            plan.scratch(|plan| plan.reserve(Region::Workspace, "second", Element::U8, &[512]));
        assert_eq!(first.offset, second.offset);
        assert_eq!(first.offset, kept.bytes());
        assert_eq!(plan.bytes(Region::Workspace), 1280);
    }

    #[test]
    fn what_does_not_fit_is_said_with_numbers() {
        let mut plan = Plan::default();
        plan.reserve(Region::Activations, "x", Element::F32, &[1 << 20]);
        assert!(plan.check_fits("run", 4 << 20).is_ok());
        let error = plan.check_fits("run", 3 << 20).unwrap_err().to_string();
        assert!(
            error.contains("4.00 MiB")
                && error.contains("1.00 MiB more")
                && error.contains("activations"),
            "{error}"
        );
        assert!(
            plan.report(&[("a toy", 1)], true)
                .contains("DOES NOT FIT into a toy")
        );
    }
}
