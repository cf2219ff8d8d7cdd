//! `vprintf`: the format of C, with its arguments packed in memory, each at its natural alignment.

use super::Cx;
use super::memory::peek;

/// Longest string taken from device memory.
const MAX_TEXT: usize = 1 << 16;

/// Bytes of a C string at a generic address.
fn text(cx: &mut Cx, lane: usize, mut address: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut byte = [0u8];
    while out.len() < MAX_TEXT && peek(cx, lane, address, &mut byte) && byte[0] != 0 {
        out.push(byte[0]);
        address += 1;
    }
    out
}

pub fn string(cx: &mut Cx, lane: usize, address: u64) -> String {
    String::from_utf8_lossy(&text(cx, lane, address)).into_owned()
}

/// What stands between `%` and the conversion.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
    /// `l`, `ll`, `j`, `z`, `t`: the argument has 64 bits.
    long: bool,
    /// `h`, `hh`: bits that count.
    short: u32,
}

struct Arguments {
    at: u64,
}

impl Arguments {
    fn next(&mut self, cx: &mut Cx, lane: usize, bytes: u64) -> u64 {
        self.at = self.at.next_multiple_of(bytes);
        let mut v = [0u8; 8];
        peek(cx, lane, self.at, &mut v[..bytes as usize]);
        self.at += bytes;
        u64::from_le_bytes(v)
    }
}

/// The text that one lane prints.
pub fn format(cx: &mut Cx, lane: usize, format: u64, arguments: u64) -> Vec<u8> {
    let format = text(cx, lane, format);
    let mut args = Arguments { at: arguments };
    let mut out = Vec::new();
    let mut i = 0;
    while i < format.len() {
        if format[i] != b'%' {
            out.push(format[i]);
            i += 1;
            continue;
        }
        let start = i;
        i += 1;
        let mut spec = Spec::default();
        while let Some(c) = format.get(i) {
            match c {
                b'-' => spec.left = true,
                b'0' => spec.zero = true,
                b'+' => spec.plus = true,
                b' ' => spec.space = true,
                b'#' => spec.alternate = true,
                _ => break,
            }
            i += 1;
        }
        let number = |cx: &mut Cx, i: &mut usize, args: &mut Arguments| {
            if format.get(*i) == Some(&b'*') {
                *i += 1;
                return args.next(cx, lane, 4) as i32 as i64;
            }
            let mut n = 0i64;
            while let Some(d) = format.get(*i).filter(|c| c.is_ascii_digit()) {
                n = (n * 10 + i64::from(d - b'0')).min(4096);
                *i += 1;
            }
            n
        };
        let width = number(cx, &mut i, &mut args);
        spec.left |= width < 0;
        spec.width = width.unsigned_abs().min(4096) as usize;
        if format.get(i) == Some(&b'.') {
            i += 1;
            let p = number(cx, &mut i, &mut args);
            spec.precision = usize::try_from(p).ok().map(|p| p.min(4096));
        }
        while let Some(c) = format.get(i) {
            match c {
                b'l' | b'j' | b'z' | b't' | b'L' => spec.long = true,
                b'h' if spec.short == 16 => spec.short = 8,
                b'h' => spec.short = 16,
                _ => break,
            }
            i += 1;
        }
        let Some(&conversion) = format.get(i) else {
            out.extend_from_slice(&format[start..]);
            break;
        };
        i += 1;
        if conversion == b'%' {
            out.push(b'%');
            continue;
        }
        match converted(cx, lane, &spec, conversion, &mut args) {
            Some(v) => out.extend_from_slice(&v),
            None => out.extend_from_slice(&format[start..i]),
        }
    }
    out
}

fn converted(
    cx: &mut Cx,
    lane: usize,
    spec: &Spec,
    conversion: u8,
    args: &mut Arguments,
) -> Option<Vec<u8>> {
    let bytes = if spec.long { 8 } else { 4 };
    let body: (Vec<u8>, Vec<u8>) = match conversion {
        b'd' | b'i' => {
            let v = args.next(cx, lane, bytes);
            let v = match (spec.long, spec.short) {
                (true, _) => v as i64,
                (_, 8) => i64::from(v as i8),
                (_, 16) => i64::from(v as i16),
                _ => i64::from(v as i32),
            };
            (
                sign(spec, v < 0),
                digits(spec, v.unsigned_abs().to_string()),
            )
        }
        b'u' | b'x' | b'X' | b'o' => {
            let mut v = args.next(cx, lane, bytes);
            if spec.short > 0 {
                v &= (1 << spec.short) - 1;
            }
            let (prefix, text) = match conversion {
                b'u' => ("", v.to_string()),
                b'x' => ("0x", format!("{v:x}")),
                b'X' => ("0X", format!("{v:X}")),
                _ => ("0", format!("{v:o}")),
            };
            let prefix = if spec.alternate && v != 0 { prefix } else { "" };
            (prefix.into(), digits(spec, text))
        }
        b'p' => (
            b"0x".to_vec(),
            format!("{:x}", args.next(cx, lane, 8)).into(),
        ),
        b'c' => (vec![], vec![args.next(cx, lane, 4) as u8]),
        b's' => {
            let address = args.next(cx, lane, 8);
            let mut t = text(cx, lane, address);
            t.truncate(spec.precision.unwrap_or(usize::MAX));
            (vec![], t)
        }
        b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
            let v = f64::from_bits(args.next(cx, lane, 8));
            let text = float(spec, conversion, v.abs());
            (sign(spec, v.is_sign_negative() && !v.is_nan()), text.into())
        }
        _ => return None,
    };
    let (prefix, text) = body;
    let pad = spec.width.saturating_sub(prefix.len() + text.len());
    let numeric = !matches!(conversion, b'c' | b's' | b'p');
    let by_zero =
        spec.zero && numeric && !spec.left && text.first().is_some_and(u8::is_ascii_alphanumeric);
    let mut out = Vec::new();
    if !spec.left && !by_zero {
        out.resize(pad, b' ');
    }
    out.extend(prefix);
    if by_zero {
        out.resize(out.len() + pad, b'0');
    }
    out.extend(text);
    if spec.left {
        out.resize(out.len() + pad, b' ');
    }
    Some(out)
}

fn sign(spec: &Spec, negative: bool) -> Vec<u8> {
    match (negative, spec.plus, spec.space) {
        (true, ..) => vec![b'-'],
        (_, true, _) => vec![b'+'],
        (_, _, true) => vec![b' '],
        _ => vec![],
    }
}

fn digits(spec: &Spec, text: String) -> Vec<u8> {
    let wanted = spec.precision.unwrap_or(0);
    let mut out = vec![b'0'; wanted.saturating_sub(text.len())];
    out.extend(text.bytes());
    out
}

/// `{:e}` of Rust with the exponent of C: at least two digits and a sign.
fn exponential(v: f64, precision: usize) -> String {
    let text = format!("{v:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let e: i32 = exponent.parse().unwrap_or(0);
    let sign = if e < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", e.abs())
}

fn float(spec: &Spec, conversion: u8, v: f64) -> String {
    let precision = spec.precision.unwrap_or(6);
    let text = match conversion.to_ascii_lowercase() {
        _ if v.is_nan() => "nan".into(),
        _ if v.is_infinite() => "inf".into(),
        b'f' => format!("{v:.precision$}"),
        b'e' => exponential(v, precision),
        b'g' => {
            let p = precision.max(1);
            let scientific = exponential(v, p - 1);
            let e: i32 = scientific
                .split_once('e')
                .map_or(0, |(_, e)| e.parse().unwrap_or(0));
            let trim = |s: &str| match s.contains('.') && !spec.alternate {
                true => s.trim_end_matches('0').trim_end_matches('.').to_string(),
                false => s.to_string(),
            };
            if e < -4 || e >= p as i32 {
                let (m, e) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
                format!("{}e{e}", trim(m))
            } else {
                trim(&format!("{v:.*}", (p as i32 - 1 - e).max(0) as usize))
            }
        }
        _ => hexadecimal(v),
    };
    if conversion.is_ascii_uppercase() {
        text.to_uppercase()
    } else {
        text
    }
}

/// `%a`.
fn hexadecimal(v: f64) -> String {
    let bits = v.to_bits();
    let mantissa = bits & ((1 << 52) - 1);
    let exponent = (bits >> 52 & 0x7ff) as i32;
    let (lead, e) = match (exponent, mantissa) {
        (0, 0) => (0, 0),
        (0, _) => (0, -1022),
        _ => (1, exponent - 1023),
    };
    let digits = format!("{mantissa:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("0x{lead}{point}{digits}p{e:+}")
}
