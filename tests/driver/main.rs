//! The driver table, and the thin wrappers over what cust lacks.

mod linkage;
