//! Lowering of a kernel with all functions it can call.
//!
//! Every function is lowered once and appended to the same list of operations. It has rows and a part of local memory
//! of its own, so that a call only copies arguments; a function that can be active twice (it is recursive) has these
//! saved at the call (`exec::call`). Arguments and results in `.param` space lie in local memory.

use super::compact::compact;
use super::dispatch;
use super::lower::{Fixup, LowerCx, Result, SymbolValue};
use super::placement::{FUNCTION_BASE, alignment, place_shared, variable_bytes};
use super::*;
use crate::ptx::ast::{self, Function, Module, Operand, Param, Space, Ty};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Local memory for recursive calls and `alloca`, per thread, where a kernel has any.
const STACK_BYTES: u32 = 16 << 10;
/// Local memory of a thread may not exceed 512 KiB, as on the device.
const MAX_LOCAL: u32 = 512 << 10;
/// Bytes of kernel parameters that a launch can carry.
const MAX_PARAM_BYTES: u32 = 32764;

/// What a branch table's handler looks at: pcs by index.
pub type BranchTable = Vec<u32>;

/// The functions that call what, by index in the module.
struct CallGraph {
    reachable: Vec<usize>,
    recursive: HashSet<usize>,
}

fn visit<'a>(o: &'a Operand, f: &mut impl FnMut(&'a str)) {
    match o {
        Operand::Symbol(s) | Operand::SymbolOffset(s, _) => f(s),
        Operand::Address { base, .. } => visit(base, f),
        Operand::RegPair(a, b) => {
            visit(a, f);
            visit(b, f);
        }
        Operand::AddressList(v) | Operand::Vector(v) | Operand::List(v) => {
            v.iter().for_each(|o| visit(o, f));
        }
        _ => {}
    }
}

/// All symbols that a function's body names.
fn symbols_of<'a>(f: &'a Function, mut each: impl FnMut(&'a str)) {
    for i in &f.body {
        i.operands.iter().for_each(|o| visit(o, &mut each));
    }
}

fn is_indirect(i: &ast::Instr) -> bool {
    &*i.op[0] == "call"
        && i.operands
            .iter()
            .take(2)
            .any(|o| matches!(o, Operand::Reg(_)))
}

fn function_index(
    module: &Module,
    globals: &HashMap<String, SymbolValue>,
    name: &str,
) -> Option<usize> {
    let s = globals.get(name)?;
    let index = s.value.checked_sub(FUNCTION_BASE)? / 16;
    (s.space == Space::Generic && (index as usize) < module.functions.len())
        .then_some(index as usize)
}

fn call_graph(module: &Module, globals: &HashMap<String, SymbolValue>, entry: usize) -> CallGraph {
    let in_tables = module
        .variables
        .iter()
        .filter_map(|v| v.init.as_ref())
        .flat_map(|i| &i.relocations)
        .filter_map(|r| function_index(module, globals, &r.symbol));
    let callable =
        |i: &usize| !module.functions[*i].is_declaration && !module.functions[*i].is_entry;
    let address_taken: BTreeSet<usize> = in_tables.collect();
    let mut edges: HashMap<usize, BTreeSet<usize>> = HashMap::new();
    let mut todo = vec![entry];
    while let Some(f) = todo.pop() {
        if edges.contains_key(&f) {
            continue;
        }
        let mut out = BTreeSet::new();
        symbols_of(&module.functions[f], |s| {
            out.extend(function_index(module, globals, s));
        });
        if module.functions[f].body.iter().any(is_indirect) {
            out.extend(&address_taken);
        }
        out.retain(callable);
        todo.extend(&out);
        edges.insert(f, out);
    }
    let reaches_itself = |f: usize| {
        let mut seen = HashSet::new();
        let mut todo: Vec<usize> = edges[&f].iter().copied().collect();
        while let Some(g) = todo.pop() {
            if g == f {
                return true;
            }
            if seen.insert(g) {
                todo.extend(&edges[&g]);
            }
        }
        false
    };
    let mut reachable: Vec<usize> = edges.keys().copied().filter(|&f| f != entry).collect();
    reachable.sort_unstable();
    reachable.insert(0, entry);
    // A function that is called through a pointer may hold a pointer to itself.
    let indirect = reachable
        .iter()
        .any(|&f| module.functions[f].body.iter().any(is_indirect));
    let recursive = reachable
        .iter()
        .copied()
        .filter(|&f| f != entry && (reaches_itself(f) || (indirect && address_taken.contains(&f))))
        .collect();
    CallGraph {
        reachable,
        recursive,
    }
}

fn param_bytes(p: &Param) -> u64 {
    p.count.max(1) * u64::from(p.ty.size())
}

/// Offsets of a kernel's parameters.
fn kernel_params(f: &Function) -> Result<(Vec<ParamInfo>, u32)> {
    let mut offset = 0u64;
    let mut out = Vec::new();
    for p in &f.params {
        let align = alignment(p.align, p.ty);
        let bytes = param_bytes(p);
        offset = offset.next_multiple_of(align);
        if offset + bytes > u64::from(MAX_PARAM_BYTES) {
            return Err(LowerError {
                line: f.line,
                what: format!(
                    "the parameters of {} take more than {MAX_PARAM_BYTES} bytes",
                    f.name
                ),
            });
        }
        out.push(ParamInfo {
            name: p.name.clone(),
            offset: offset as u32,
            bytes: bytes as u32,
            align: align as u32,
        });
        offset += bytes;
    }
    Ok((out, offset as u32))
}

/// Gives every register of a function its virtual row or predicate slot.
fn registers(cx: &mut LowerCx, f: &Function) -> Result<Vec<RowId>> {
    f.registers
        .iter()
        .map(|r| {
            Ok(if r.ty == Ty::Pred {
                u32::from(cx.scratch_pred()?)
            } else {
                cx.scratch(super::lower::bits(r.ty))
            })
        })
        .collect()
}

/// Lays out a function's frame in local memory and fills the symbols that live there; formal parameters too, unless
/// it is the entry.
fn frame(
    f: &Function,
    rows: &[RowId],
) -> (HashMap<String, SymbolValue>, u32, Vec<Formal>, Vec<Formal>) {
    let mut symbols = HashMap::new();
    let mut top = 0u64;
    let mut place = |name: &str, align: u32, ty: Ty, bytes: u64| {
        top = top.next_multiple_of(alignment(align, ty));
        let value = top;
        top += bytes;
        symbols.insert(
            name.to_string(),
            SymbolValue {
                space: Space::Local,
                value,
                bytes,
                ty,
            },
        );
        value as u32
    };
    for v in &f.variables {
        if matches!(v.space, Space::Local | Space::Param) {
            place(&v.name, v.align, v.ty, variable_bytes(v));
        }
    }
    let mut formal = |p: &Param| Formal {
        bytes: param_bytes(p) as u32,
        home: match p.reg {
            Some(r) if f.registers[r.0 as usize].ty == Ty::Pred => {
                Home::Pred(rows[r.0 as usize] as u16)
            }
            Some(r) => Home::Row(rows[r.0 as usize]),
            None => Home::Local(place(&p.name, p.align, p.ty, param_bytes(p))),
        },
    };
    let (params, returns) = if f.is_entry {
        (Vec::new(), Vec::new())
    } else {
        (
            f.params.iter().map(&mut formal).collect(),
            f.returns.iter().map(&mut formal).collect(),
        )
    };
    (
        symbols,
        top.next_multiple_of(16).min(u64::from(u32::MAX)) as u32,
        params,
        returns,
    )
}

/// Lowers the kernel at index `entry` of the module.
pub fn lower_kernel(
    module: &Module,
    globals: &HashMap<String, SymbolValue>,
    entry: usize,
    exact: bool,
) -> Result<Program> {
    lower_gathering(module, globals, entry, exact, None)
}

/// As [`lower_kernel`]; with `errors` all instructions that cannot be lowered are put there, and the program lacks them.
pub fn lower_gathering(
    module: &Module,
    globals: &HashMap<String, SymbolValue>,
    entry: usize,
    exact: bool,
    errors: Option<&mut Vec<LowerError>>,
) -> Result<Program> {
    let graph = call_graph(module, globals, entry);
    let kernel = &module.functions[entry];
    let (params, param_bytes) = kernel_params(kernel)?;

    let mut named: HashSet<&str> = HashSet::new();
    for &f in &graph.reachable {
        symbols_of(&module.functions[f], |s| _ = named.insert(s));
    }
    let shared_of_functions = graph
        .reachable
        .iter()
        .flat_map(|&f| &module.functions[f].variables);
    let shared_space = |v: &&ast::Variable| {
        matches!(v.space, Space::Shared | Space::SharedCta) && named.contains(v.name.as_str())
    };
    let shared = place_shared(
        module
            .variables
            .iter()
            .chain(shared_of_functions)
            .filter(shared_space),
        exact,
    )?;
    let mut module_symbols = globals.clone();
    module_symbols.extend(shared.symbols.iter().map(|(k, v)| (k.clone(), *v)));

    let mut cx = LowerCx::new(module, kernel, &module_symbols);
    cx.errors = errors.is_some().then(Vec::new);
    let mut frames = Vec::new();
    for &f in &graph.reachable {
        let function = &module.functions[f];
        let rows = registers(&mut cx, function)?;
        let (mut symbols, local_bytes, formals, returns) = frame(function, &rows);
        if function.is_entry {
            symbols.extend(params.iter().zip(&function.params).map(|(p, declared)| {
                (
                    p.name.clone(),
                    SymbolValue {
                        space: Space::Param,
                        value: u64::from(p.offset),
                        bytes: u64::from(p.bytes),
                        ty: declared.ty,
                    },
                )
            }));
        }
        let recursive = graph.recursive.contains(&f);
        let frame_row = if recursive { cx.scratch(64) } else { NO_ROW };
        cx.function_numbers
            .insert(function.name.clone(), cx.functions.len() as u32);
        cx.functions.push(FunctionInfo {
            name: function.name.clone(),
            start: 0,
            end: 0,
            rows: 0..0,
            wide: 0,
            quad: 0,
            preds: 0..0,
            recursive,
            frame_row,
            local_offset: 0,
            local_bytes,
            params: formals,
            returns,
        });
        frames.push((rows, symbols));
    }
    let mut local_static = 0u32;
    for info in &mut cx.functions {
        if !info.recursive {
            info.local_offset = local_static;
            local_static = local_static.saturating_add(info.local_bytes);
        }
    }
    for (alias, of) in &module.aliases {
        if let Some(&n) = cx.function_numbers.get(of) {
            cx.function_numbers.insert(alias.clone(), n);
        }
    }
    let mut bodies = Vec::new();
    for (n, (&f, (rows, symbols))) in graph.reachable.iter().zip(frames).enumerate() {
        bodies.push(lower_function(
            &mut cx,
            &module.functions[f],
            n as u32,
            rows,
            symbols,
        )?);
    }
    if let (Some(all), Some(found)) = (errors, cx.errors.take()) {
        all.extend(found);
    }
    let stack = if graph.recursive.is_empty() {
        0
    } else {
        STACK_BYTES
    };
    let stack = stack + if cx.has_stack { crate::exec::STACK } else { 0 };
    let local_bytes = local_static.saturating_add(stack).next_multiple_of(16);
    if local_bytes > MAX_LOCAL {
        return cx.error(format!(
            "{} needs {local_bytes} bytes of local memory per thread; {MAX_LOCAL} are possible",
            kernel.name
        ));
    }
    let compacted = compact(&mut cx, &bodies)?;
    Ok(Program {
        name: kernel.name.clone(),
        ops: cx.ops,
        effects: cx.effects,
        sites: cx.sites.into(),
        ext: cx.ext,
        lists: cx.lists,
        init: compacted.init,
        rows: compacted.rows,
        preds: compacted.preds,
        registers: compacted.registers,
        params,
        param_bytes,
        shared_bytes: shared.bytes,
        shared_align: shared.dynamic_align,
        local_bytes,
        bounds: kernel.bounds.clone(),
        communicates: cx.communicates,
        most_registers: cx.most_registers,
        entry: 0,
        functions: cx.functions,
        local_static,
        has_stack: cx.has_stack,
        files: module.files.clone().into(),
        shared_symbols: shared.list,
        passages: Default::default(),
    })
}

/// The pcs of one function's labels, for liveness.
pub struct BodyInfo {
    pub labels: Vec<u32>,
}

fn lower_function<'m>(
    cx: &mut LowerCx<'m>,
    f: &'m Function,
    number: u32,
    rows: Vec<RowId>,
    symbols: HashMap<String, SymbolValue>,
) -> Result<BodyInfo> {
    cx.function = f;
    cx.function_index = number;
    cx.register_rows = rows;
    cx.locals = symbols;
    cx.fixups.clear();
    cx.line = f.line;
    let start = cx.pc();
    crate::exec::call::emit_entry(cx);
    let mut pcs = Vec::with_capacity(f.body.len() + 1);
    for i in &f.body {
        pcs.push(cx.pc());
        if let Err(e) = dispatch::lower(cx, i) {
            match &mut cx.errors {
                Some(all) => all.push(e),
                None => return Err(e),
            }
        }
    }
    pcs.push(cx.pc());
    cx.current = Effects::default();
    crate::exec::control::emit_return(cx);
    let labels: Vec<u32> = f.labels.iter().map(|l| pcs[l.target]).collect();
    for fixup in std::mem::take(&mut cx.fixups) {
        match fixup {
            Fixup::Label(op, label) => {
                cx.ops[op as usize].imm = i64::from(labels[label.0 as usize]);
            }
            Fixup::Table(ext, targets) => {
                cx.ext[ext as usize] = Box::new(
                    targets
                        .iter()
                        .map(|l| labels[l.0 as usize])
                        .collect::<BranchTable>(),
                );
            }
        }
    }
    let end = cx.pc();
    for pc in start..end {
        if let Some(s) = cx.successors.get_mut(&pc) {
            s.labels.iter_mut().for_each(|l| *l = labels[*l as usize]);
        }
    }
    let info = &mut cx.functions[number as usize];
    (info.start, info.end) = (start, end);
    Ok(BodyInfo { labels })
}
