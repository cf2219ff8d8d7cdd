//! The hooks that the executor calls.
//!
//! Contract: `at` names the executing agent and pc. Addresses were bounds-tested before. An asynchronous operation is
//! an agent of its own: [`Checker::fork`] at issue, its accesses under its own agent when it retires,
//! [`Checker::complete`] when its completion is signalled to a synchronisation object (mbarrier, bulk group, wgmma
//! group), and whoever observes that object [`Checker::acquire`]s it.

use super::*;

impl Checker {
    /// Adds a finding.
    pub fn report(
        &mut self,
        kind: FindingKind,
        at: At,
        message: impl Into<String>,
        others: Vec<SiteRef>,
    ) {
        let mut sites = vec![SiteRef {
            pc: at.pc,
            who: self.name(at.agent),
            role: "here".into(),
        }];
        sites.extend(others);
        self.findings.push(Finding {
            kind,
            kernel: self.kernel.clone(),
            message: message.into(),
            sites,
        });
    }

    /// Name of an agent for reports: `warp 3 of CTA 0`, `tensor copy issued by warp 0 of CTA 0`.
    pub fn name(&self, agent: Agent) -> String {
        format!("agent {}", agent.0)
    }

    /// A warp's access to shared memory of CTA `cta` through the generic proxy: lane addresses (offsets in that CTA),
    /// `bytes` per lane.
    pub fn shared_access(
        &mut self,
        _at: At,
        _cta: u32,
        _addresses: &[u32; 32],
        _mask: u32,
        _bytes: u32,
        _kind: Kind,
    ) {
    }

    /// A contiguous access to shared memory (asynchronous copies, wgmma operands, mbarrier words).
    pub fn shared_range(
        &mut self,
        _at: At,
        _cta: u32,
        _address: u32,
        _bytes: u32,
        _kind: Kind,
        _proxy: Proxy,
    ) {
    }

    /// A warp's access to global memory, lane by lane.
    pub fn global_access(
        &mut self,
        _at: At,
        _addresses: &[u64; 32],
        _mask: u32,
        _bytes: u32,
        _kind: Kind,
    ) {
    }

    /// A contiguous access to global memory by an asynchronous operation.
    pub fn global_range(
        &mut self,
        _at: At,
        _address: u64,
        _bytes: u64,
        _kind: Kind,
        _proxy: Proxy,
    ) {
    }

    /// `at` makes everything it did (and has observed) visible to whoever acquires `object` later.
    pub fn release(&mut self, _at: At, _object: Sync) {}

    /// The object's phase has completed (the last arrival came): what was released to it so far is what those who wait
    /// for that phase acquire. Called for named barriers, the cluster barrier and mbarriers at every phase change.
    pub fn advance(&mut self, _object: Sync) {}

    /// `at` sees everything released to `object` up to its last completed phase (objects without phases: all).
    pub fn acquire(&mut self, _at: At, _object: Sync) {}

    /// An asynchronous operation is issued; it starts with what its issuer has observed.
    pub fn fork(&mut self, at: At, _what: &'static str) -> Agent {
        at.agent
    }

    /// The operation has signalled its completion to `object`.
    pub fn complete(&mut self, _agent: At, _object: Sync) {}

    /// `at` has waited for the operation itself (wgmma.wait_group, cp.async.wait_group, bulk wait_group).
    pub fn join(&mut self, _at: At, _agent: Agent) {}

    pub fn fence(&mut self, _at: At, _fence: Fence) {}

    /// Bytes of shared memory were laid out with a swizzle (0 none, 1 32B, 2 64B, 3 128B as in CUtensorMapSwizzle).
    pub fn tag_layout(&mut self, _cta: u32, _address: u32, _bytes: u32, _swizzle: u8) {}

    /// An operand of the tensor core expects bytes to be laid out with `swizzle` (same codes as `tag_layout`).
    pub fn expect_layout(&mut self, _at: At, _cta: u32, _address: u32, _bytes: u32, _swizzle: u8) {}
}
