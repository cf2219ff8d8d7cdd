//! Variables, parameters and registers as they are declared.

use super::ast::{Param, RegId, Space, Ty, Variable};
use super::function::Body;
use super::lexer::{Tok, Token};
use super::parser::{MAX_REGISTERS, Parser, Result, space};

const MAX_DIMENSIONS: usize = 16;
const TOO_MANY: &str = "more than 4194304 registers in one module";

/// What stands before the names of a declaration.
#[derive(Default)]
struct Kind {
    ty: Option<Ty>,
    align: Option<u32>,
    /// Components of a vector type.
    width: Option<u8>,
    managed: bool,
}

impl<'a> Parser<'_, 'a> {
    /// `.align n`, `.v4`, `.b32`, `.attribute(…)` in any order, up to the first name.
    fn kind(&mut self) -> Result<Kind> {
        let mut kind = Kind::default();
        while let Tok::Dot(name) = self.peek() {
            self.bump();
            match name {
                "align" => kind.align = Some(self.alignment()?),
                "v2" | "v4" | "v8" => kind.width = Some(name.as_bytes()[1] - b'0'),
                "attribute" => kind.managed |= self.attribute()?,
                _ => match Ty::from_name(name) {
                    Some(ty) if kind.ty.is_none() => kind.ty = Some(ty),
                    Some(_) => return self.error("a second type"),
                    None => return self.error(format!("unknown type or attribute `.{name}`")),
                },
            }
        }
        Ok(kind)
    }

    fn alignment(&mut self) -> Result<u32> {
        let token = self.token();
        let align = self.u32("an alignment")?;
        if !align.is_power_of_two() {
            return self.error_at(token, "an alignment has to be a power of two");
        }
        Ok(align)
    }

    /// `(.managed)`, `(.unified(n, m))`, or a list of them; true where `.managed` is among them.
    pub fn attribute(&mut self) -> Result<bool> {
        self.expect(b'(')?;
        let mut managed = false;
        loop {
            match self.peek() {
                Tok::Dot("managed") => {
                    self.bump();
                    managed = true;
                }
                Tok::Dot("unified") => {
                    self.bump();
                    self.expect(b'(')?;
                    self.integer("a UUID's half")?;
                    self.expect(b',')?;
                    self.integer("a UUID's half")?;
                    self.expect(b')')?;
                }
                _ => return self.expected("`.managed` or `.unified`"),
            }
            if !self.accept(b',') {
                self.expect(b')')?;
                return Ok(managed);
            }
        }
    }

    /// `[4][3]`; an empty first pair of brackets is 0.
    fn dimensions(&mut self) -> Result<Vec<u64>> {
        let mut dims = Vec::new();
        while self.accept(b'[') {
            if dims.is_empty() && self.accept(b']') {
                dims.push(0);
                continue;
            }
            let token = self.token();
            match u64::try_from(self.integer("an array's size")?) {
                Ok(n) if dims.len() < MAX_DIMENSIONS => dims.push(n),
                _ => return self.error_at(token, "bad array size"),
            }
            self.expect(b']')?;
        }
        Ok(dims)
    }

    fn product(&self, dims: &[u64], ty: Ty) -> Result<u64> {
        let count = dims.iter().try_fold(1u64, |a, &b| a.checked_mul(b));
        match count {
            Some(count)
                if count
                    .checked_mul(u64::from(ty.size()))
                    .is_some_and(|b| b < 1 << 48) =>
            {
                Ok(count)
            }
            _ => self.error("the array is larger than any memory"),
        }
    }

    /// `.global .align 4 .b8 a[4] = {…}, b;` from the space on. Each comes with the place of its name.
    pub fn variables(&mut self, is_extern: bool) -> Result<Vec<(Variable, Token<'a>)>> {
        let Tok::Dot(space_name) = self.peek() else {
            return self.expected("a state space");
        };
        let Some(space) = space(space_name) else {
            return self.expected("a state space");
        };
        self.bump();
        let kind = self.kind()?;
        let Some(ty) = kind.ty else {
            return self.expected("a type");
        };
        if ty == Ty::Pred {
            return self.error("a predicate cannot be a variable in memory");
        }
        let width = u64::from(kind.width.unwrap_or(1));
        let mut variables = Vec::new();
        loop {
            let token = self.token();
            let name = self.name("the variable's name")?.to_string();
            let mut dims = self.dimensions()?;
            if width > 1 {
                dims.push(width);
            }
            let mut count = self.product(&dims, ty)?;
            let init = if self.accept(b'=') {
                if !matches!(space, Space::Global | Space::Const) || is_extern {
                    return self.error_at(token, format!("`{name}` cannot have an initialiser"));
                }
                let (init, elements) = self.initializer(ty, &dims)?;
                if count == 0 {
                    count = elements;
                }
                Some(init)
            } else {
                None
            };
            let align = kind.align.unwrap_or((ty.size() * width as u32).max(1));
            let is_managed = kind.managed;
            variables.push((
                Variable {
                    name,
                    space,
                    ty,
                    align,
                    count,
                    is_extern,
                    is_managed,
                    init,
                },
                token,
            ));
            if !self.accept(b',') {
                self.expect(b';')?;
                return Ok(variables);
            }
        }
    }

    /// `(.param .b64 a, .reg .b32 b)`. With `body`, register parameters become registers of it.
    pub fn params(&mut self, mut body: Option<&mut Body<'a>>) -> Result<Vec<Param>> {
        self.expect(b'(')?;
        let mut params = Vec::new();
        if self.accept(b')') {
            return Ok(params);
        }
        loop {
            params.push(self.param(body.as_deref_mut())?);
            if !self.accept(b',') {
                self.expect(b')')?;
                return Ok(params);
            }
        }
    }

    fn param(&mut self, body: Option<&mut Body<'a>>) -> Result<Param> {
        let is_reg = match self.peek() {
            Tok::Dot("reg") => true,
            Tok::Dot("param") => false,
            _ => return self.expected("`.param` or `.reg`"),
        };
        self.bump();
        let mut align = None;
        let mut ty = None;
        while let Tok::Dot(name) = self.peek() {
            self.bump();
            match name {
                "align" => align = Some(self.alignment()?),
                // What a pointer points to concerns optimisers only.
                "ptr" => {
                    if let Tok::Dot("const" | "global" | "local" | "shared" | "generic") =
                        self.peek()
                    {
                        self.bump();
                    }
                    if self.accept_dot("align") {
                        self.alignment()?;
                    }
                }
                _ => match Ty::from_name(name) {
                    Some(found) => ty = Some(found),
                    None => return self.error(format!("unknown type or attribute `.{name}`")),
                },
            }
        }
        let Some(ty) = ty else {
            return self.expected("a type");
        };
        let token = self.token();
        let name = self.name("the parameter's name")?;
        let dims = self.dimensions()?;
        let count = self.product(&dims, ty)?;
        let align = align.unwrap_or(ty.size());
        let reg = match body {
            Some(body) if is_reg => Some(self.register(body, name, ty, token)?),
            Some(body) => {
                body.declare_variable(name);
                None
            }
            None => None,
        };
        Ok(Param {
            name: name.to_string(),
            ty,
            count,
            align,
            reg,
        })
    }

    /// `.reg .b32 %r<10>, x;`
    pub fn registers(&mut self, body: &mut Body<'a>) -> Result<()> {
        self.bump();
        let kind = self.kind()?;
        let Some(ty) = kind.ty else {
            return self.expected("a type");
        };
        if kind.align.is_some() || kind.managed {
            return self.error("a register has neither alignment nor attributes");
        }
        loop {
            let token = self.token();
            let name = self.name("the register's name")?;
            if self.accept(b'<') {
                // The bound is a plain number: `>` would be read as an operator.
                let Tok::Number(text) = self.peek() else {
                    return self.expected("the number of registers");
                };
                let Ok(count) = text.parse::<u32>() else {
                    return self.error("the number of registers has to be a decimal integer");
                };
                self.bump();
                self.expect(b'>')?;
                if count as usize > MAX_REGISTERS - self.register_count {
                    return self.error_at(token, TOO_MANY);
                }
                if kind.width.is_none() {
                    self.register_count += count as usize;
                    body.declare_range(name, count, ty);
                } else {
                    for i in 0..count {
                        let name = format!("{name}{i}");
                        self.register_or_vector(body, &name, ty, kind.width, token)?;
                    }
                }
            } else {
                self.register_or_vector(body, name, ty, kind.width, token)?;
            }
            if !self.accept(b',') {
                return self.expect(b';');
            }
        }
    }

    fn register_or_vector(
        &mut self,
        body: &mut Body<'a>,
        name: &str,
        ty: Ty,
        width: Option<u8>,
        token: Token<'a>,
    ) -> Result<()> {
        let Some(width) = width else {
            return self.register(body, name, ty, token).map(drop);
        };
        if width > 4 {
            return self.error_at(token, "vector registers have 2 or 4 components");
        }
        let first = RegId(body.function.registers.len() as u32);
        for component in ["x", "y", "z", "w"].iter().take(usize::from(width)) {
            self.count_register(token)?;
            body.new_register(&format!("{name}.{component}"), ty);
        }
        body.declare_vector(name, first, width);
        Ok(())
    }

    fn register(
        &mut self,
        body: &mut Body<'a>,
        name: &str,
        ty: Ty,
        token: Token<'a>,
    ) -> Result<RegId> {
        self.count_register(token)?;
        let id = body.new_register(name, ty);
        body.declare_register(name, id);
        Ok(id)
    }

    fn count_register(&mut self, token: Token<'a>) -> Result<()> {
        self.register_count += 1;
        if self.register_count > MAX_REGISTERS {
            return self.error_at(
                token,
                format!("more than {MAX_REGISTERS} registers in one module"),
            );
        }
        Ok(())
    }
}
