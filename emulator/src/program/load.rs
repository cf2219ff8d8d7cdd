//! Loading a module: text to programs.

use super::kernel::{lower_gathering, lower_kernel};
use super::placement::{place_module, variable_bytes};
use super::{LowerError, Program};
use crate::device::{Device, LoadError, Module};
use crate::ptx::ast::Space;
use std::collections::HashMap;
use std::sync::Arc;

/// The kernels of a module as they would be loaded, and every instruction that keeps it from loading.
#[derive(Default)]
pub struct Inspection {
    pub kernels: Vec<Program>,
    pub errors: Vec<LowerError>,
}

impl Device {
    /// Parses, places and lowers a module. Nothing stays allocated when it fails.
    pub fn load_module(&self, text: &str) -> Result<Module, LoadError> {
        let ast = crate::ptx::parse(text).map_err(|e| LoadError::Parse {
            line: e.line,
            what: e.what,
        })?;
        let mut allocated = Vec::new();
        let result = self.lower_module(&ast, &mut allocated);
        if result.is_err() {
            for a in allocated {
                self.memory.free(a);
            }
        }
        result
    }

    /// What a module holds and all that it cannot run with, for the tools. Nothing stays allocated.
    pub fn inspect_module(&self, text: &str) -> Result<Inspection, LoadError> {
        let ast = crate::ptx::parse(text).map_err(|e| LoadError::Parse {
            line: e.line,
            what: e.what,
        })?;
        let mut allocated = Vec::new();
        let symbols = place_module(
            &ast,
            &self.memory,
            self.settings.memory_bytes,
            &mut allocated,
        );
        for a in allocated {
            self.memory.free(a);
        }
        let symbols = symbols.map_err(LoadError::Lower)?;
        let mut out = Inspection::default();
        for (i, f) in ast.functions.iter().enumerate() {
            if !f.is_entry || f.is_declaration {
                continue;
            }
            let exact = self.settings.exact_alignment;
            match lower_gathering(&ast, &symbols, i, exact, Some(&mut out.errors)) {
                Ok(program) => out.kernels.push(program),
                Err(e) => out.errors.push(e),
            }
        }
        out.errors.sort_by_key(|e| e.line);
        out.errors.dedup();
        Ok(out)
    }

    fn lower_module(
        &self,
        ast: &crate::ptx::ast::Module,
        allocated: &mut Vec<u64>,
    ) -> Result<Module, LoadError> {
        let symbols = place_module(ast, &self.memory, self.settings.memory_bytes, allocated)
            .map_err(LoadError::Lower)?;
        let mut entries = HashMap::new();
        for (i, f) in ast.functions.iter().enumerate() {
            if f.is_entry && !f.is_declaration {
                let program = lower_kernel(ast, &symbols, i, self.settings.exact_alignment)
                    .map_err(LoadError::Lower)?;
                entries.insert(f.name.clone(), Arc::new(program));
            }
        }
        let globals = ast
            .variables
            .iter()
            .filter_map(|v| Some((v.name.clone(), symbols.get(&v.name)?)))
            .map(|(name, s)| (name, (s.value, s.bytes)))
            .collect();
        let constant_bytes = ast
            .variables
            .iter()
            .filter(|v| v.space == Space::Const)
            .map(variable_bytes)
            .sum();
        Ok(Module {
            entries,
            globals,
            constant_bytes,
            allocations: std::mem::take(allocated),
        })
    }

    /// Frees the module's variables.
    pub fn unload_module(&self, module: &Module) {
        for &a in &module.allocations {
            self.memory.free(a);
        }
    }
}
