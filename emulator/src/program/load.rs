//! Loading a module: text to programs.

use super::kernel::lower_kernel;
use super::placement::place_module;
use crate::device::{Device, LoadError, Module};
use std::collections::HashMap;
use std::sync::Arc;

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
        Ok(Module {
            entries,
            globals,
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
