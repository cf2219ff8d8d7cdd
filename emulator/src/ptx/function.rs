//! Functions: header, launch bounds, body.
//!
//! A body is a list of statements in nested scopes. Registers and variables have to be declared before they are used;
//! labels, branch tables and prototypes may come later in the same scope or in one around it, so an unknown name stays
//! *pending* in its scope and is looked up when the scope closes, first there, then further out. What is left at the
//! end of the function has to be a symbol of the module.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{
    Function, Instr, Label, LabelDef, LaunchBounds, Loc, Opcode, Operand, Prototype, RegId,
    Register, RegisterName, Ty,
};
use super::debug::Positions;
use super::lexer::{Tok, Token};
use super::parser::{Parser, Result};
use crate::hash::FastMap;

const MAX_SCOPE_DEPTH: usize = 256;
const MAX_OPERANDS: usize = 64;

/// What a name of a function stands for.
#[derive(Clone, Copy)]
pub(super) enum Found<'b> {
    Register(RegId),
    Vector(RegId, u8),
    Variable(&'b str),
}

enum Entity {
    Register(RegId),
    /// First component and width.
    Vector(RegId, u8),
    /// The unique name in the function.
    Variable(Box<str>),
}

enum Use {
    Operand { instr: usize },
    BranchTable { table: usize, position: usize },
}

struct Pending<'a> {
    name: &'a str,
    token: Token<'a>,
    what: Use,
}

/// `.reg .b32 %r<8>`.
struct Range<'a> {
    base: &'a str,
    first: RegId,
    count: u32,
}

impl Range<'_> {
    fn find(&self, name: &str) -> Option<RegId> {
        let digits = name.strip_prefix(self.base)?;
        let plain = digits.len() == 1 || !digits.starts_with('0');
        let number: u32 = digits.parse().ok()?;
        let known = plain && digits.as_bytes()[0].is_ascii_digit() && number < self.count;
        known.then_some(RegId(self.first.0 + number))
    }
}

#[derive(Default)]
struct Scope<'a> {
    ranges: Vec<Range<'a>>,
    /// What has been declared by name.
    names: FastMap<Box<str>, Entity>,
    labels: FastMap<&'a str, Label>,
    /// Branch tables, call targets and prototypes, with their unique names.
    lists: FastMap<&'a str, Box<str>>,
    pending: Vec<Pending<'a>>,
}

/// A function under construction.
pub(super) struct Body<'a> {
    pub function: Function,
    scopes: Vec<Scope<'a>>,
    /// How often a name was declared in this function.
    seen: HashMap<Box<str>, u32>,
    positions: Positions,
    loc: Option<Arc<Loc>>,
}

impl<'a> Body<'a> {
    fn scope(&mut self) -> &mut Scope<'a> {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub fn look_up(&self, name: &str) -> Option<Found<'_>> {
        self.scopes.iter().rev().find_map(|scope| {
            let named = scope.names.get(name).map(|entity| match entity {
                Entity::Register(id) => Found::Register(*id),
                Entity::Vector(first, width) => Found::Vector(*first, *width),
                Entity::Variable(unique) => Found::Variable(unique),
            });
            let numbered = || scope.ranges.iter().rev().find_map(|r| r.find(name));
            named.or_else(|| numbered().map(Found::Register))
        })
    }

    pub fn is_register(&self, name: &str) -> bool {
        matches!(self.look_up(name), Some(Found::Register(_)))
    }

    pub fn new_register(&mut self, name: &str, ty: Ty) -> RegId {
        let id = RegId(self.function.registers.len() as u32);
        let name = RegisterName {
            base: name.into(),
            number: None,
        };
        self.function.registers.push(Register { name, ty });
        id
    }

    /// `count` registers `base0`, `base1`, …
    pub fn declare_range(&mut self, base: &'a str, count: u32, ty: Ty) {
        let first = RegId(self.function.registers.len() as u32);
        let shared: Arc<str> = base.into();
        self.function.registers.extend((0..count).map(|n| Register {
            name: RegisterName {
                base: shared.clone(),
                number: Some(n),
            },
            ty,
        }));
        let range = Range { base, first, count };
        let scope = self.scope();
        // The later declaration counts.
        scope.names.retain(|name, _| range.find(name).is_none());
        scope.ranges.push(range);
    }

    pub fn declare_register(&mut self, name: &str, id: RegId) {
        self.scope().names.insert(name.into(), Entity::Register(id));
    }

    pub fn declare_vector(&mut self, name: &str, first: RegId, width: u8) {
        self.scope()
            .names
            .insert(name.into(), Entity::Vector(first, width));
    }

    /// Declares a variable or parameter; returns its name, made unique in the function.
    pub fn declare_variable(&mut self, name: &str) -> Box<str> {
        let unique = self.unique(name);
        self.scope()
            .names
            .insert(name.into(), Entity::Variable(unique.clone()));
        unique
    }

    fn unique(&mut self, name: &str) -> Box<str> {
        let seen = self.seen.entry(name.into()).or_insert(0);
        let unique = if *seen == 0 {
            name.into()
        } else {
            format!("{name}#{seen}").into()
        };
        *seen += 1;
        unique
    }

    /// An operand names something that is not declared yet.
    pub fn wait_for(&mut self, name: &'a str, token: Token<'a>) {
        let instr = self.function.body.len();
        self.scope().pending.push(Pending {
            name,
            token,
            what: Use::Operand { instr },
        });
    }

    /// Resolves what waits in the innermost scope; the rest waits further out.
    fn close_scope(&mut self) -> Vec<Pending<'a>> {
        let Some(scope) = self.scopes.pop() else {
            return Vec::new();
        };
        let mut left = Vec::new();
        for pending in scope.pending {
            let found = scope
                .labels
                .get(pending.name)
                .map(|&label| Operand::Label(label))
                .or_else(|| {
                    scope
                        .lists
                        .get(pending.name)
                        .map(|unique| Operand::Symbol(unique.clone()))
                });
            let Some(found) = found else {
                left.push(pending);
                continue;
            };
            match pending.what {
                Use::Operand { instr } => {
                    for operand in &mut self.function.body[instr].operands {
                        if matches!(operand, Operand::Symbol(name) if **name == *pending.name) {
                            *operand = found.clone();
                        }
                    }
                }
                Use::BranchTable { table, position } => match found {
                    Operand::Label(label) => self.function.branch_tables[table].1[position] = label,
                    _ => left.push(pending),
                },
            }
        }
        match self.scopes.last_mut() {
            Some(outer) => {
                outer.pending.append(&mut left);
                Vec::new()
            }
            None => left,
        }
    }
}

impl<'a> Parser<'_, 'a> {
    /// `.entry name (…) … { … }` or `.func (…) name (…) … ;`
    pub fn function(&mut self, is_entry: bool, is_extern: bool) -> Result<()> {
        let line = self.bump().line;
        let function = Function {
            name: String::new(),
            is_entry,
            is_declaration: true,
            is_noreturn: false,
            params: Vec::new(),
            returns: Vec::new(),
            bounds: LaunchBounds::default(),
            registers: Vec::new(),
            variables: Vec::new(),
            prototypes: Vec::new(),
            branch_tables: Vec::new(),
            call_targets: Vec::new(),
            body: Vec::new(),
            labels: Vec::new(),
            line,
        };
        let mut body = Body {
            function,
            scopes: vec![Scope::default()],
            seen: HashMap::new(),
            positions: Positions::default(),
            loc: None,
        };
        while self.accept_dot("attribute") {
            self.attribute()?;
        }
        if !is_entry && self.is_punct(b'(') {
            body.function.returns = self.params(Some(&mut body))?;
        }
        let name_token = self.token();
        body.function.name = self.name("the function's name")?.to_string();
        if self.is_punct(b'(') {
            body.function.params = self.params(Some(&mut body))?;
        }
        self.function_directives(&mut body.function)?;
        if self.accept(b';') {
            return self.add_function(body.function, name_token);
        }
        if is_extern {
            return self.error("an `.extern` function has no body");
        }
        body.function.is_declaration = false;
        // Recursive calls find the function while its body is read.
        self.function_index
            .entry(body.function.name.clone())
            .or_insert(usize::MAX);
        self.body(&mut body)?;
        self.add_function(body.function, name_token)
    }

    fn add_function(&mut self, function: Function, token: Token<'a>) -> Result<()> {
        match self.function_index.get(&function.name) {
            Some(&index) if index != usize::MAX => {
                let earlier = &mut self.module.functions[index];
                if !function.is_declaration {
                    if !earlier.is_declaration {
                        return self
                            .error_at(token, format!("`{}` is defined twice", function.name));
                    }
                    *earlier = function;
                }
            }
            _ => {
                self.function_index
                    .insert(function.name.clone(), self.module.functions.len());
                self.module.functions.push(function);
            }
        }
        Ok(())
    }

    /// The performance directives between a header and its body.
    fn function_directives(&mut self, function: &mut Function) -> Result<()> {
        let bounds = &mut function.bounds;
        while let Tok::Dot(name) = self.peek() {
            if name == "pragma" {
                if let Tok::Text(text) = self.peek_at(1)
                    && let Some(limit) = text.strip_prefix(super::REGISTER_LIMIT)
                {
                    bounds.register_limit = limit.trim().parse().ok();
                }
                self.pragma()?;
                continue;
            }
            self.bump();
            match name {
                "maxntid" => bounds.maxntid = Some(self.up_to_three()?),
                "reqntid" => bounds.reqntid = Some(self.up_to_three()?),
                "reqnctapercluster" => bounds.reqnctapercluster = Some(self.up_to_three()?),
                "minnctapersm" => bounds.minnctapersm = Some(self.u32("a bound")?),
                // An old hint that no launch depends on.
                "maxnctapersm" => _ = self.u32("a bound")?,
                "maxnreg" => bounds.maxnreg = Some(self.u32("a bound")?),
                "maxclusterrank" => bounds.max_cluster_rank = Some(self.u32("a bound")?),
                "explicitcluster" => bounds.explicit_cluster = true,
                "blocksareclusters" => bounds.blocks_are_clusters = true,
                "noreturn" => function.is_noreturn = true,
                // How many registers a callee leaves alone: of no meaning where registers are not shared.
                "abi_preserve" | "abi_preserve_control" => _ = self.u32("a number of registers")?,
                "attribute" => _ = self.attribute()?,
                _ => return self.error(format!("unknown directive `.{name}`")),
            }
        }
        Ok(())
    }

    fn up_to_three(&mut self) -> Result<[u32; 3]> {
        let mut sizes = [self.u32("a size")?, 1, 1];
        for size in &mut sizes[1..] {
            if self.accept(b',') {
                *size = self.u32("a size")?;
            }
        }
        Ok(sizes)
    }

    fn body(&mut self, body: &mut Body<'a>) -> Result<()> {
        let opening = self.token();
        self.expect(b'{')?;
        let mut depth = 1usize;
        while depth > 0 {
            match self.peek() {
                Tok::Punct(b'{') => {
                    if depth >= MAX_SCOPE_DEPTH {
                        return self.error("scopes are nested too deeply");
                    }
                    self.bump();
                    body.scopes.push(Scope::default());
                    depth += 1;
                }
                Tok::Punct(b'}') => {
                    self.bump();
                    depth -= 1;
                    for pending in body.close_scope() {
                        match pending.what {
                            Use::Operand { .. } => {
                                self.wanted.push((pending.name.into(), pending.token))
                            }
                            Use::BranchTable { .. } => {
                                return self.error_at(
                                    pending.token,
                                    format!("no label `{}`", pending.name),
                                );
                            }
                        }
                    }
                }
                Tok::Punct(b';') => _ = self.bump(),
                Tok::Dot(name) => self.body_directive(body, name)?,
                Tok::Name(name) if self.peek_at(1) == Tok::Punct(b':') => self.label(body, name)?,
                Tok::Name(_) | Tok::Punct(b'@') => self.instruction(body)?,
                Tok::End => {
                    let what = format!("the body of `{}` is not closed", body.function.name);
                    return self.error_at(opening, what);
                }
                _ => return self.expected("an instruction"),
            }
        }
        Ok(())
    }

    fn body_directive(&mut self, body: &mut Body<'a>, name: &'a str) -> Result<()> {
        match name {
            "reg" => self.registers(body),
            "loc" => {
                body.loc = Some(self.loc(&mut body.positions)?);
                Ok(())
            }
            "pragma" => self.pragma(),
            "file" => self.file(),
            "local" | "shared" | "param" | "global" | "const" => self.body_variables(body, false),
            "extern" => {
                self.bump();
                self.body_variables(body, true)
            }
            _ => self.error(format!("unknown directive `.{name}`")),
        }
    }

    fn body_variables(&mut self, body: &mut Body<'a>, is_extern: bool) -> Result<()> {
        for (mut variable, _) in self.variables(is_extern)? {
            variable.name = body.declare_variable(&variable.name).into();
            body.function.variables.push(variable);
        }
        Ok(())
    }

    /// `name:` before an instruction, `.branchtargets`, `.calltargets` or `.callprototype`.
    fn label(&mut self, body: &mut Body<'a>, name: &'a str) -> Result<()> {
        let token = self.bump();
        self.bump();
        match self.peek() {
            Tok::Dot("branchtargets") => self.branch_table(body, name),
            Tok::Dot("calltargets") => {
                self.bump();
                let mut targets = Vec::new();
                loop {
                    let token = self.token();
                    let target = self.name("a function")?;
                    self.wanted.push((target.into(), token));
                    targets.push(target.to_string());
                    if !self.accept(b',') {
                        break;
                    }
                }
                let unique = body.unique(name);
                body.function
                    .call_targets
                    .push((unique.to_string(), targets));
                body.scope().lists.insert(name, unique);
                self.expect(b';')
            }
            Tok::Dot("callprototype") => self.prototype(body, name),
            _ => {
                let label = Label(body.function.labels.len() as u32);
                if body.scope().labels.insert(name, label).is_some() {
                    return self.error_at(
                        token,
                        format!("label `{name}` is defined twice in this scope"),
                    );
                }
                let target = body.function.body.len();
                body.function.labels.push(LabelDef {
                    name: name.to_string(),
                    target,
                });
                Ok(())
            }
        }
    }

    fn branch_table(&mut self, body: &mut Body<'a>, name: &'a str) -> Result<()> {
        self.bump();
        let table = body.function.branch_tables.len();
        let unique = body.unique(name);
        let mut labels = Vec::new();
        loop {
            let token = self.token();
            let target = self.name("a label")?;
            let what = Use::BranchTable {
                table,
                position: labels.len(),
            };
            body.scope().pending.push(Pending {
                name: target,
                token,
                what,
            });
            labels.push(Label(u32::MAX));
            if !self.accept(b',') {
                break;
            }
        }
        body.function
            .branch_tables
            .push((unique.to_string(), labels));
        body.scope().lists.insert(name, unique);
        self.expect(b';')
    }

    /// `name: .callprototype (returns) _ (params) …;`
    fn prototype(&mut self, body: &mut Body<'a>, name: &'a str) -> Result<()> {
        self.bump();
        let returns = if self.is_punct(b'(') {
            self.params(None)?
        } else {
            Vec::new()
        };
        self.name("`_`")?;
        let params = if self.is_punct(b'(') {
            self.params(None)?
        } else {
            Vec::new()
        };
        loop {
            if self.accept_dot("noreturn") {
                continue;
            }
            if self.accept_dot("abi_preserve") || self.accept_dot("abi_preserve_control") {
                self.u32("a number of registers")?;
                continue;
            }
            break;
        }
        let unique = body.unique(name);
        body.function.prototypes.push(Prototype {
            label: unique.to_string(),
            params,
            returns,
        });
        body.scope().lists.insert(name, unique);
        self.expect(b';')
    }

    /// `@p opcode.modifiers operands;`
    fn instruction(&mut self, body: &mut Body<'a>) -> Result<()> {
        let line = self.token().line;
        let guard = self.guard(body)?;
        let opcode = self.name("an opcode")?;
        self.opcode.clear();
        self.opcode.push_str(opcode);
        while let Tok::Dot(part) = self.peek() {
            self.bump();
            self.opcode.push('.');
            self.opcode.push_str(part);
        }
        let op = match self.opcodes.get(&*self.opcode) {
            Some(known) => known.clone(),
            None => {
                let new = Arc::new(Opcode::new(&self.opcode));
                self.opcodes
                    .insert(self.opcode.as_str().into(), new.clone());
                new
            }
        };
        let mut operands = Vec::new();
        if !self.accept(b';') {
            loop {
                if operands.len() == MAX_OPERANDS {
                    return self.error("more operands than any instruction has");
                }
                operands.push(self.operand(body, opcode == "call")?);
                if !self.accept(b',') {
                    self.expect(b';')?;
                    break;
                }
            }
        }
        let loc = body.loc.clone();
        body.function.body.push(Instr {
            guard,
            op,
            operands,
            line,
            loc,
        });
        Ok(())
    }

    fn guard(&mut self, body: &Body<'a>) -> Result<Option<(RegId, bool)>> {
        if !self.accept(b'@') {
            return Ok(None);
        }
        let negated = self.accept(b'!');
        let token = self.token();
        let name = self.name("a predicate")?;
        match body.look_up(name) {
            Some(Found::Register(id)) if body.function.registers[id.0 as usize].ty == Ty::Pred => {
                Ok(Some((id, negated)))
            }
            _ => self.error_at(token, format!("`{name}` is not a predicate register")),
        }
    }
}
