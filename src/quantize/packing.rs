//! Bit packing of codes: code + limit as an unsigned number of 5 or 6 bits, least significant bits first, as
//! #1573 packs them (8 codes in 5 bytes, 4 codes in 3 bytes). A last partial byte is padded with zeros.

use super::RowCodes;

/// Bytes that `count` codes of `bits` take.
pub fn packed_len(count: usize, bits: u8) -> Option<usize> {
    count
        .checked_mul(usize::from(bits))
        .map(|bits| bits.div_ceil(8))
}

/// Packs codes; each lies in ±limit of `bits`.
pub fn pack(codes: &[i8], bits: u8) -> Vec<u8> {
    let limit = i16::from(RowCodes::limit(bits));
    let mut packed = Vec::with_capacity(codes.len() * usize::from(bits) / 8 + 1);
    let (mut buffer, mut filled) = (0u32, 0u8);
    for code in codes {
        debug_assert!(i16::from(*code).abs() <= limit);
        buffer |= ((i16::from(*code) + limit) as u32) << filled;
        filled += bits;
        while filled >= 8 {
            packed.push(buffer as u8);
            buffer >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        packed.push(buffer as u8);
    }
    packed
}

/// Unpacks `count` codes. `None` if there are not exactly as many bytes as they take, a code is beyond its
/// limit, or the padding is not zero.
pub fn unpack(packed: &[u8], count: usize, bits: u8) -> Option<Vec<i8>> {
    if packed_len(count, bits)? != packed.len() {
        return None;
    }
    let limit = i16::from(RowCodes::limit(bits));
    let mask = (1u32 << bits) - 1;
    let mut codes = Vec::with_capacity(count);
    let (mut buffer, mut filled) = (0u32, 0u8);
    let mut bytes = packed.iter();
    for _ in 0..count {
        while filled < bits {
            buffer |= u32::from(*bytes.next()?) << filled;
            filled += 8;
        }
        let code = (buffer & mask) as i16 - limit;
        if code > limit {
            return None;
        }
        codes.push(code as i8);
        buffer >>= bits;
        filled -= bits;
    }
    (buffer == 0).then_some(codes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(bits in 5u8..=6, raw in proptest::collection::vec(-31i8..=31, 0..100)) {
            let limit = RowCodes::limit(bits);
            let codes: Vec<i8> = raw.iter().map(|c| (*c).clamp(-limit, limit)).collect();
            let packed = pack(&codes, bits);
            prop_assert_eq!(packed.len(), packed_len(codes.len(), bits).unwrap());
            prop_assert_eq!(unpack(&packed, codes.len(), bits), Some(codes));
        }

        #[test]
        fn damaged_input_never_panics(bits in 5u8..=6, bytes in proptest::collection::vec(any::<u8>(), 0..40), count in 0usize..80) {
            if let Some(codes) = unpack(&bytes, count, bits) {
                prop_assert_eq!(pack(&codes, bits), bytes);
            }
        }
    }
}
