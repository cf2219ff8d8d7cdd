//! The body of an artifact before compression; its layout is described in the parent module.

use super::Artifact;
use crate::quantize::{QuantizedTensor, RowCodes, Stored, packing};
use crate::train::engine::Element;
use anyhow::{Result, ensure};
use half::f16;

/// Bytes of the smallest possible table entry.
const SMALLEST_ENTRY: usize = 5;

/// The body, and where its codes begin.
pub fn write(artifact: &Artifact, packed: bool) -> Result<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    body.extend_from_slice(&u32::try_from(artifact.recipe.len())?.to_le_bytes());
    body.extend_from_slice(artifact.recipe.as_bytes());
    body.extend_from_slice(&u32::try_from(artifact.tensors.len())?.to_le_bytes());
    for tensor in &artifact.tensors {
        write_entry(&mut body, tensor)?;
    }
    let codes_at = body.len();
    let rows = || {
        artifact.tensors.iter().filter_map(|t| {
            if let Stored::Rows(rows) = &t.stored {
                Some(rows)
            } else {
                None
            }
        })
    };
    for rows in rows().filter(|rows| rows.bits < 8) {
        if packed {
            body.extend(packing::pack(&rows.codes, rows.bits));
        } else {
            body.extend(rows.codes.iter().map(|code| *code as u8));
        }
    }
    for rows in rows().filter(|rows| rows.bits == 8) {
        body.extend(rows.codes.iter().map(|code| *code as u8));
    }
    for rows in rows() {
        body.extend(
            rows.scales
                .iter()
                .flat_map(|scale| scale.to_bits().to_le_bytes()),
        );
    }
    for tensor in &artifact.tensors {
        if let Stored::F16(values) = &tensor.stored {
            body.extend(
                values
                    .iter()
                    .flat_map(|value| value.to_bits().to_le_bytes()),
            );
        }
    }
    Ok((body, codes_at))
}

fn write_entry(body: &mut Vec<u8>, tensor: &QuantizedTensor) -> Result<()> {
    body.extend_from_slice(&u16::try_from(tensor.name.len())?.to_le_bytes());
    body.extend_from_slice(tensor.name.as_bytes());
    match &tensor.stored {
        Stored::F16(values) => {
            ensure!(
                values.len() == tensor.numel(),
                "{}: {} values for its shape",
                tensor.name,
                values.len()
            );
            body.push(0);
        }
        Stored::Rows(rows) => {
            let whole = tensor.shape == [rows.rows, rows.cols]
                && rows.codes.len() == tensor.numel()
                && rows.scales.len() == rows.rows;
            ensure!(
                whole,
                "{}: codes and scales do not fit its shape {:?}",
                tensor.name,
                tensor.shape
            );
            let limit = RowCodes::limit(rows.bits);
            ensure!(
                rows.codes.iter().all(|c| (-limit..=limit).contains(c)),
                "{}: a code is beyond ±{limit}",
                tensor.name
            );
            body.push(rows.bits);
        }
    }
    body.push(match tensor.restored {
        Element::F32 => 0,
        Element::Bf16 => 1,
        other => anyhow::bail!("{}: parameters are f32 or bf16, not {other:?}", tensor.name),
    });
    body.push(u8::try_from(tensor.shape.len())?);
    for dimension in &tensor.shape {
        body.extend_from_slice(&u32::try_from(*dimension)?.to_le_bytes());
    }
    Ok(())
}

/// A cursor that never reads past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        if count > self.0.len() {
            return Err("its contents end too early".into());
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<usize, String> {
        Ok(usize::from(u16::from_le_bytes(
            self.take(2)?.try_into().expect("2 bytes"),
        )))
    }

    fn u32(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")) as usize)
    }

    fn text(&mut self, length: usize) -> Result<String, String> {
        String::from_utf8(self.take(length)?.to_vec())
            .map_err(|_| "a name or the recipe is not UTF-8".into())
    }

    fn f16s(&mut self, count: usize) -> Result<Vec<f16>, String> {
        let bytes = self.take(count.checked_mul(2).ok_or("a tensor is too large")?)?;
        Ok(bytes
            .chunks_exact(2)
            .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
            .collect())
    }

    fn codes(&mut self, count: usize, bits: u8, packed: bool) -> Result<Vec<i8>, String> {
        if packed && bits < 8 {
            let bytes =
                self.take(packing::packed_len(count, bits).ok_or("a tensor is too large")?)?;
            return packing::unpack(bytes, count, bits)
                .ok_or_else(|| "packed codes are damaged".into());
        }
        let limit = RowCodes::limit(bits);
        let codes: Vec<i8> = self.take(count)?.iter().map(|byte| *byte as i8).collect();
        match codes.iter().all(|code| (-limit..=limit).contains(code)) {
            true => Ok(codes),
            false => Err(format!("a code is beyond ±{limit}")),
        }
    }
}

pub fn read(body: &[u8], packed: bool) -> Result<Artifact, String> {
    let mut reader = Reader(body);
    let length = reader.u32()?;
    let recipe = reader.text(length)?;
    let count = reader.u32()?;
    if count > reader.0.len() / SMALLEST_ENTRY {
        return Err(format!("{count} tensors do not fit its contents"));
    }
    let mut tensors: Vec<QuantizedTensor> = Vec::with_capacity(count);
    for _ in 0..count {
        tensors.push(read_entry(&mut reader)?);
    }
    for low in [true, false] {
        for tensor in &mut tensors {
            if let Stored::Rows(rows) = &mut tensor.stored
                && (rows.bits < 8) == low
            {
                rows.codes = reader.codes(
                    rows.rows
                        .checked_mul(rows.cols)
                        .ok_or("a tensor is too large")?,
                    rows.bits,
                    packed,
                )?;
            }
        }
    }
    for tensor in &mut tensors {
        if let Stored::Rows(rows) = &mut tensor.stored {
            rows.scales = reader.f16s(rows.rows)?;
        }
    }
    for tensor in &mut tensors {
        if let Stored::F16(values) = &mut tensor.stored {
            let numel = tensor
                .shape
                .iter()
                .try_fold(1usize, |n, d| n.checked_mul(*d))
                .ok_or("a tensor is too large")?;
            *values = reader.f16s(numel)?;
        }
    }
    if !reader.0.is_empty() {
        return Err(format!(
            "{} bytes too many after its last tensor",
            reader.0.len()
        ));
    }
    Ok(Artifact { recipe, tensors })
}

fn read_entry(reader: &mut Reader<'_>) -> Result<QuantizedTensor, String> {
    let length = reader.u16()?;
    let name = reader.text(length)?;
    let bits = reader.u8()?;
    let restored = match reader.u8()? {
        0 => Element::F32,
        1 => Element::Bf16,
        other => return Err(format!("tensor {name} has the unknown type {other}")),
    };
    let dimensions = reader.u8()?;
    let shape = (0..dimensions)
        .map(|_| reader.u32())
        .collect::<Result<Vec<_>, _>>()?;
    let stored = match (bits, shape.as_slice()) {
        (0, _) => Stored::F16(Vec::new()),
        (5 | 6 | 8, &[rows, cols]) if cols > 0 => Stored::Rows(RowCodes {
            rows,
            cols,
            bits,
            codes: Vec::new(),
            scales: Vec::new(),
        }),
        _ => return Err(format!("tensor {name} has {bits} bits and shape {shape:?}")),
    };
    Ok(QuantizedTensor {
        name,
        shape,
        restored,
        stored,
    })
}
