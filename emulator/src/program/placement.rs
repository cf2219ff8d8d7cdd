//! Places of variables: module-scope ones in the device's arena, shared ones in the shared memory of a kernel, local
//! ones and the `.param` variables of calls in the frame of their function.

use super::LowerError;
use super::lower::{Result, SymbolValue};
use crate::exec::SHARED_BASE;
use crate::memory::Arena;
use crate::ptx::ast::{Module, Space, Ty, Variable};
use std::collections::HashMap;

/// Address of a function as a value: `FUNCTION_BASE + 16 * index in the module`. No memory lies there.
pub const FUNCTION_BASE: u64 = 0x7ff0_0000_0000_0000;

fn error<T>(what: String) -> Result<T> {
    Err(LowerError { line: 0, what })
}

pub fn variable_bytes(v: &Variable) -> u64 {
    v.count.saturating_mul(u64::from(v.ty.size()))
}

/// The declared alignment, or that of the type.
pub fn alignment(align: u32, ty: Ty) -> u64 {
    u64::from(align.max(1)).max(if align == 0 { u64::from(ty.size()) } else { 1 })
}

/// The module's global and constant variables in device memory; functions by address.
///
/// Returns the symbols, and the allocations made (also when it fails: the caller frees them).
pub fn place_module(
    module: &Module,
    arena: &Arena,
    limit: u64,
    allocated: &mut Vec<u64>,
) -> Result<HashMap<String, SymbolValue>> {
    let mut symbols = HashMap::new();
    for (i, f) in module.functions.iter().enumerate() {
        symbols.insert(
            f.name.clone(),
            SymbolValue {
                space: Space::Generic,
                value: FUNCTION_BASE + 16 * i as u64,
                bytes: 0,
                ty: Ty::B64,
            },
        );
    }
    for (alias, of) in &module.aliases {
        if let Some(&s) = symbols.get(of) {
            symbols.insert(alias.clone(), s);
        }
    }
    let placed = |v: &&Variable| matches!(v.space, Space::Global | Space::Const);
    for v in module.variables.iter().filter(placed) {
        if v.is_extern {
            return error(format!(
                "variable {} is external and nothing defines it",
                v.name
            ));
        }
        let bytes = variable_bytes(v);
        let name = format!("variable {}", v.name);
        let Some(address) = arena.allocate(bytes.max(1), alignment(v.align, v.ty), limit, name)
        else {
            return error(format!(
                "no memory for variable {} of {bytes} bytes",
                v.name
            ));
        };
        allocated.push(address);
        symbols.insert(
            v.name.clone(),
            SymbolValue {
                space: v.space,
                value: address,
                bytes,
                ty: v.ty,
            },
        );
    }
    for v in module.variables.iter().filter(placed) {
        initialize(v, &symbols)?;
    }
    Ok(symbols)
}

fn initialize(v: &Variable, symbols: &HashMap<String, SymbolValue>) -> Result<()> {
    let place = symbols[&v.name];
    let mut bytes = vec![0u8; place.bytes as usize];
    if let Some(init) = &v.init {
        let n = init.bytes.len().min(bytes.len());
        bytes[..n].copy_from_slice(&init.bytes[..n]);
        for r in &init.relocations {
            let Some(s) = symbols.get(&r.symbol) else {
                return error(format!(
                    "the initialiser of {} names {}, which has no address in memory",
                    v.name, r.symbol
                ));
            };
            let value = s.value.wrapping_add(r.addend as u64) >> r.shift.min(63);
            let (at, size) = (r.offset as usize, usize::from(r.size.min(8)));
            match bytes.get_mut(at..at + size) {
                Some(b) => b.copy_from_slice(&value.to_le_bytes()[..size]),
                None => return error(format!("the initialiser of {} is too long", v.name)),
            }
        }
    }
    // SAFETY: the variable's own allocation of `place.bytes` bytes; nothing runs on the module yet.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.value as *mut u8, bytes.len()) };
    Ok(())
}

/// Shared memory of one kernel.
#[derive(Default)]
pub struct Shared {
    pub symbols: HashMap<String, SymbolValue>,
    /// Name, address and bytes of each static variable.
    pub list: Vec<(String, u32, u64)>,
    /// Static bytes from `SHARED_BASE` on.
    pub bytes: u32,
    /// Alignment of dynamic shared memory, which follows.
    pub dynamic_align: u32,
}

/// Places the shared variables of a kernel in their order, then the dynamic ones, all of which start at one address.
///
/// Like on the device the first address is [`SHARED_BASE`], so a lone dynamic array is aligned to 1024 bytes whatever
/// its declaration says. With `exact` each address is aligned as declared and no better, which shows kernels that rely
/// on that.
pub fn place_shared<'a>(
    variables: impl Iterator<Item = &'a Variable> + Clone,
    exact: bool,
) -> Result<Shared> {
    let mut out = Shared {
        dynamic_align: 16,
        ..Shared::default()
    };
    let at = |cursor: u64, align: u64| {
        let a = cursor.next_multiple_of(align);
        if exact && a.is_multiple_of(2 * align) {
            a + align
        } else {
            a
        }
    };
    let mut cursor = u64::from(SHARED_BASE);
    for v in variables.clone().filter(|v| v.count > 0 && !v.is_extern) {
        let bytes = variable_bytes(v);
        let address = at(cursor, alignment(v.align, v.ty));
        cursor = address.saturating_add(bytes);
        if cursor > 1 << 24 {
            return error(format!("shared variable {} is too large", v.name));
        }
        out.list.push((v.name.clone(), address as u32, bytes));
        out.symbols.insert(
            v.name.clone(),
            SymbolValue {
                space: Space::Shared,
                value: address,
                bytes,
                ty: v.ty,
            },
        );
    }
    for v in variables.clone().filter(|v| v.count == 0 || v.is_extern) {
        out.dynamic_align = out.dynamic_align.max(alignment(v.align, v.ty) as u32);
    }
    let dynamic = if variables.clone().any(|v| v.count == 0 || v.is_extern) {
        at(cursor, u64::from(out.dynamic_align))
    } else {
        cursor
    };
    for v in variables.filter(|v| v.count == 0 || v.is_extern) {
        out.symbols.insert(
            v.name.clone(),
            SymbolValue {
                space: Space::Shared,
                value: dynamic,
                bytes: 0,
                ty: v.ty,
            },
        );
    }
    out.bytes = (dynamic - u64::from(SHARED_BASE)) as u32;
    Ok(out)
}
