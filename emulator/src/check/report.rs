//! The text of a finding: one headline, then each site with its source line and inline stack.

use super::Finding;
use crate::program::Site;
use crate::ptx::ast::Loc;
use std::fmt::Write;

/// `file:line` of a position; only the file's last two components, so that reports do not depend on where it was built.
fn position(loc: &Loc, files: &[(u32, String)]) -> String {
    let file = files
        .iter()
        .find(|(n, _)| *n == loc.file)
        .map_or("?", |(_, f)| f.as_str());
    let mut parts: Vec<&str> = file.rsplit('/').take(2).collect();
    parts.reverse();
    format!("{}:{}", parts.join("/"), loc.line)
}

/// Where a site stands, without who was there: `gemm.cu:41 (PTX line 88: st.shared.u32)`, then one line per inlining.
pub fn site_text(site: &Site, files: &[(u32, String)]) -> String {
    let mut out = String::new();
    match &site.loc {
        Some(loc) => {
            let _ = write!(
                out,
                "{} (PTX line {}: {})",
                position(loc, files),
                site.line,
                site.opcode
            );
            let mut l = loc.inlined_at.as_ref();
            while let Some(at) = l {
                let _ = write!(out, "\n      inlined at {}", position(at, files));
                l = at.inlined_at.as_ref();
            }
        }
        None => {
            let _ = write!(out, "PTX line {}: {}", site.line, site.opcode);
        }
    }
    out
}

impl Finding {
    /// The whole report.
    pub fn render(&self, sites: &[Site], files: &[(u32, String)]) -> String {
        let mut out = format!("{} in {}: {}", self.kind.name(), self.kernel, self.message);
        for s in &self.sites {
            let place = sites
                .get(s.pc as usize)
                .map_or_else(|| "(no instruction)".to_string(), |x| site_text(x, files));
            let _ = write!(out, "\n  {}: {} at {place}", s.role, s.who);
        }
        out
    }
}
