//! The token cursor, and what may stand at module level.

use std::collections::{HashMap, HashSet};

use super::ParseError;
use super::ast::{Module, Opcode, Operand, Space};
use super::lexer::{Tok, Token, tokens};
use crate::hash::FastMap;
use std::sync::Arc;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Registers of one module, all functions together. More is taken for an attack on our memory.
pub(super) const MAX_REGISTERS: usize = 1 << 22;

/// Parses one PTX module.
pub fn parse(text: &str) -> std::result::Result<Module, ParseError> {
    let tokens = tokens(text)?;
    let mut parser = Parser::new(&tokens);
    parser.module.debug_strings = parser.scan_debug_strings();
    parser.debug_labels = parser
        .module
        .debug_strings
        .iter()
        .enumerate()
        .map(|(i, (label, _))| (label.clone(), i))
        .collect();
    parser.module()?;
    Ok(parser.module)
}

pub(super) struct Parser<'t, 'a> {
    pub tokens: &'t [Token<'a>],
    pub at: usize,
    pub module: Module,
    /// Label in `.debug_str` to its index in `module.debug_strings`.
    pub debug_labels: HashMap<String, usize>,
    pub variable_index: HashMap<String, usize>,
    pub function_index: HashMap<String, usize>,
    /// Names used by operands and initialisers that no function declares: the module has to.
    pub wanted: Vec<(Box<str>, Token<'a>)>,
    /// Opcodes met so far, and the text of the one being read.
    pub opcodes: FastMap<Box<str>, Arc<Opcode>>,
    pub opcode: String,
    pub register_count: usize,
    /// Bytes of all variables with an initialiser so far.
    pub initialized_bytes: u64,
}

impl<'t, 'a> Parser<'t, 'a> {
    pub fn new(tokens: &'t [Token<'a>]) -> Self {
        Parser {
            tokens,
            at: 0,
            module: Module {
                address_size: 32,
                ..Module::default()
            },
            debug_labels: HashMap::new(),
            variable_index: HashMap::new(),
            function_index: HashMap::new(),
            wanted: Vec::new(),
            opcodes: FastMap::default(),
            opcode: String::new(),
            register_count: 0,
            initialized_bytes: 0,
        }
    }

    pub fn token(&self) -> Token<'a> {
        // The last token is `End`, and `bump` never passes it.
        self.tokens[self.at]
    }

    pub fn peek(&self) -> Tok<'a> {
        self.tokens[self.at].tok
    }

    pub fn peek_at(&self, ahead: usize) -> Tok<'a> {
        self.tokens.get(self.at + ahead).map_or(Tok::End, |t| t.tok)
    }

    pub fn bump(&mut self) -> Token<'a> {
        let token = self.token();
        if token.tok != Tok::End {
            self.at += 1;
        }
        token
    }

    pub fn error_at<T>(&self, token: Token<'_>, what: impl Into<String>) -> Result<T> {
        Err(ParseError {
            line: token.line,
            column: token.column,
            what: what.into(),
        })
    }

    pub fn error<T>(&self, what: impl Into<String>) -> Result<T> {
        self.error_at(self.token(), what)
    }

    /// `expected X, found Y` at the current token.
    pub fn expected<T>(&self, what: &str) -> Result<T> {
        let found = match self.peek() {
            Tok::Name(s) | Tok::Number(s) | Tok::Pair(s) => format!("`{s}`"),
            Tok::Dot(s) => format!("`.{s}`"),
            Tok::Text(_) => "a string".into(),
            Tok::Punct(c) => format!("`{}`", char::from(c)),
            Tok::End => "the end of the text".into(),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    pub fn is_punct(&self, c: u8) -> bool {
        self.peek() == Tok::Punct(c)
    }

    /// Takes `c` if it comes next.
    pub fn accept(&mut self, c: u8) -> bool {
        let found = self.is_punct(c);
        if found {
            self.at += 1;
        }
        found
    }

    pub fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Tok::Dot(name);
        if found {
            self.at += 1;
        }
        found
    }

    pub fn expect(&mut self, c: u8) -> Result<()> {
        if self.accept(c) {
            Ok(())
        } else {
            self.expected(&format!("`{}`", char::from(c)))
        }
    }

    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        match self.peek() {
            Tok::Name(name) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.expected(what),
        }
    }

    /// An unsigned constant expression that fits in 32 bits.
    pub fn u32(&mut self, what: &str) -> Result<u32> {
        let token = self.token();
        match self.constant()? {
            Operand::Int(value) if u32::try_from(value).is_ok() => Ok(value as u32),
            _ => self.error_at(token, format!("{what} has to be an integer of 32 bits")),
        }
    }

    fn module(&mut self) -> Result<()> {
        self.version()?;
        loop {
            let token = self.token();
            match token.tok {
                Tok::End => break,
                Tok::Punct(b';') => _ = self.bump(),
                Tok::Dot(name) => self.module_directive(name)?,
                _ => return self.expected("a directive"),
            }
        }
        if self.module.target.is_empty() {
            return self.error("the module has no .target");
        }
        self.check_wanted()
    }

    fn version(&mut self) -> Result<()> {
        if !self.accept_dot("version") {
            return self.expected("`.version` (is this PTX?)");
        }
        if let Tok::Number(text) = self.peek()
            && let Some((major, minor)) = text.split_once('.')
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            self.at += 1;
            self.module.version = (major, minor);
            return Ok(());
        }
        self.expected("a version as in `8.0`")
    }

    fn module_directive(&mut self, name: &'a str) -> Result<()> {
        match name {
            "target" => {
                self.bump();
                self.target()
            }
            "address_size" => {
                self.bump();
                let token = self.token();
                self.module.address_size = self.u32("the address size")?;
                if self.module.address_size != 64 {
                    return self.error_at(token, "only .address_size 64 can be run");
                }
                Ok(())
            }
            "file" => self.file(),
            "section" => self.skip_section(),
            "loc" => self.skip_loc(),
            "pragma" => self.pragma(),
            "alias" => {
                self.bump();
                self.alias()
            }
            "version" => self.error("a second `.version`"),
            _ => self.declaration(),
        }
    }

    fn target(&mut self) -> Result<()> {
        let mut names = vec![self.name("a target architecture")?.to_string()];
        while self.accept(b',') {
            names.push(self.name("a target option")?.to_string());
        }
        let architecture = names
            .iter()
            .position(|n| n.starts_with("sm_") || n.starts_with("compute_"));
        let Some(architecture) = architecture else {
            return self.error("`.target` names no architecture");
        };
        self.module.target = names.remove(architecture);
        self.module.target_options = names;
        Ok(())
    }

    pub fn pragma(&mut self) -> Result<()> {
        self.bump();
        loop {
            let Tok::Text(_) = self.peek() else {
                return self.expected("a string");
            };
            self.bump();
            if !self.accept(b',') {
                return self.expect(b';');
            }
        }
    }

    fn alias(&mut self) -> Result<()> {
        let alias = self.name("the alias")?;
        self.expect(b',')?;
        let token = self.token();
        let target = self.name("the function it stands for")?;
        self.expect(b';')?;
        if !self.function_index.contains_key(target) {
            return self.error_at(
                token,
                format!("`.alias` of an undeclared function `{target}`"),
            );
        }
        self.module.aliases.push((alias.into(), target.into()));
        Ok(())
    }

    /// `[linkage] space … ;` or `[linkage] .entry|.func …`
    fn declaration(&mut self) -> Result<()> {
        let first = self.at;
        let mut is_extern = false;
        while let Tok::Dot(name @ ("visible" | "extern" | "weak" | "common")) = self.peek() {
            is_extern |= name == "extern";
            self.at += 1;
        }
        match self.peek() {
            Tok::Dot("entry") => self.function(true, is_extern),
            Tok::Dot("func") => self.function(false, is_extern),
            Tok::Dot("global" | "const" | "shared" | "local" | "param") => {
                if matches!(self.peek(), Tok::Dot("local" | "param")) {
                    return self.error("this space has no variables at module level");
                }
                for variable in self.variables(is_extern)? {
                    self.add_module_variable(variable)?;
                }
                Ok(())
            }
            Tok::Dot(name) if self.at == first => {
                self.error(format!("unknown directive `.{name}`"))
            }
            _ => self.expected("a variable or a function"),
        }
    }

    fn add_module_variable(
        &mut self,
        (variable, token): (super::ast::Variable, Token<'a>),
    ) -> Result<()> {
        if let Some(&index) = self.variable_index.get(&variable.name) {
            let earlier = &mut self.module.variables[index];
            if variable.space != earlier.space {
                return self.error_at(
                    token,
                    format!("`{}` is declared again in another space", variable.name),
                );
            }
            match (earlier.is_extern, variable.is_extern) {
                (true, _) => *earlier = variable,
                (false, true) => {}
                (false, false) => {
                    return self.error_at(token, format!("`{}` is defined twice", variable.name));
                }
            }
            return Ok(());
        }
        self.variable_index
            .insert(variable.name.clone(), self.module.variables.len());
        self.module.variables.push(variable);
        Ok(())
    }

    fn check_wanted(&mut self) -> Result<()> {
        let aliases: HashSet<&str> = self
            .module
            .aliases
            .iter()
            .map(|(a, _)| a.as_str())
            .collect();
        for (name, token) in &self.wanted {
            let name: &str = name;
            if !self.variable_index.contains_key(name)
                && !self.function_index.contains_key(name)
                && !aliases.contains(name)
            {
                return self.error_at(*token, format!("`{name}` is not declared"));
            }
        }
        Ok(())
    }
}

/// The state space named by a directive or modifier without its dot.
pub(super) fn space(name: &str) -> Option<Space> {
    Some(match name {
        "reg" => Space::Reg,
        "sreg" => Space::Sreg,
        "const" => Space::Const,
        "global" => Space::Global,
        "local" => Space::Local,
        "param" => Space::Param,
        "shared" => Space::Shared,
        "shared::cta" => Space::SharedCta,
        "shared::cluster" => Space::SharedCluster,
        _ => return None,
    })
}
