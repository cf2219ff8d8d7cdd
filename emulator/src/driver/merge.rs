//! Several PTX texts as one: what a device linker does to machine code.
//!
//! Each text is cut into its top-level statements. Variables come first, then declarations, then functions, so that every name is
//! known where it is used. An `.extern` that another text defines becomes a plain declaration; of `.weak` and `.common` definitions
//! of one name the first stays; names without linkage belong to their text and are renamed where another text has them too; the numbers
//! of `.file` are shifted. Names that nobody defines stay `.extern`: loading the result says so if they are used.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ptx::REGISTER_LIMIT;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// `.version`, `.target`, `.address_size`: written anew.
    Header,
    File,
    Variable,
    Declaration,
    Function,
    /// Debug sections, aliases, pragmas.
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Linkage {
    Local,
    Visible,
    /// `.weak` and `.common`: one of several.
    Shared,
    Extern,
}

struct Statement<'a> {
    kind: Kind,
    linkage: Linkage,
    names: Vec<&'a str>,
    text: &'a str,
}

/// The tokens of a text: strings, words (with their leading dot or percent sign) and single characters.
fn tokens(text: &str) -> Vec<(usize, &str)> {
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'$';
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        match bytes[i] {
            b if b.is_ascii_whitespace() => {
                i += 1;
                continue;
            }
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                i += text[i..].find('\n').unwrap_or(text.len() - i);
                continue;
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                i += text[i..].find("*/").map_or(text.len() - i, |n| n + 2);
                continue;
            }
            b'"' => i += 2 + text[i + 1..].find('"').unwrap_or(text.len() - i - 2),
            b if word(b)
                || (matches!(b, b'.' | b'%') && bytes.get(i + 1).is_some_and(|&n| word(n))) =>
            {
                i += 1;
                while bytes.get(i).is_some_and(|&b| word(b)) {
                    i += 1;
                }
            }
            // A character of several bytes can only stand in a comment or a string of a correct text.
            _ => i += text[i..].chars().next().map_or(1, char::len_utf8),
        }
        out.push((start, &text[start..i.min(text.len())]));
    }
    out
}

fn is_name(token: &str) -> bool {
    token
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'$')
}

/// The tokens outside of round and square brackets.
fn outside<'a>(head: &[(usize, &'a str)]) -> Vec<&'a str> {
    let mut depth = 0i32;
    let mut out = Vec::new();
    for &(_, token) in head {
        match token {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            _ if depth == 0 => out.push(token),
            _ => {}
        }
    }
    out
}

fn statements(text: &str) -> Vec<Statement<'_>> {
    const SPACES: [&str; 4] = [".global", ".const", ".shared", ".tex"];
    let all = tokens(text);
    let mut out = Vec::new();
    let mut i = 0;
    while i < all.len() {
        let (start, first) = all[i];
        if matches!(first, ".version" | ".target" | ".address_size" | ".file") {
            let end = start + text[start..].find('\n').unwrap_or(text.len() - start);
            while i < all.len() && all[i].0 < end {
                i += 1;
            }
            let kind = if first == ".file" {
                Kind::File
            } else {
                Kind::Header
            };
            out.push(Statement {
                kind,
                linkage: Linkage::Local,
                names: Vec::new(),
                text: &text[start..end],
            });
            continue;
        }
        let rest = &all[i..];
        let head_end = rest
            .iter()
            .position(|t| matches!(t.1, "{" | ";" | "="))
            .unwrap_or(rest.len());
        let head = outside(&rest[..head_end]);
        let function = head.iter().position(|t| matches!(*t, ".func" | ".entry"));
        let variable = head.iter().any(|t| SPACES.contains(t));
        let braced = function.is_some() || head.first() == Some(&".section");
        // The statement ends with its body, or with a semicolon outside of an initialiser.
        let mut depth = 0i32;
        let mut length = rest.len();
        for (n, &(_, token)) in rest.iter().enumerate() {
            match token {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && (token == ";" || (token == "}" && braced)) {
                length = n + 1;
                break;
            }
        }
        let last = rest[length - 1];
        let linkage = head.iter().find_map(|t| match *t {
            ".visible" => Some(Linkage::Visible),
            ".weak" | ".common" => Some(Linkage::Shared),
            ".extern" => Some(Linkage::Extern),
            _ => None,
        });
        let (kind, names) = if let Some(at) = function {
            let kind = if last.1 == "}" {
                Kind::Function
            } else {
                Kind::Declaration
            };
            (
                kind,
                head[at..]
                    .iter()
                    .copied()
                    .find(|t| is_name(t))
                    .into_iter()
                    .collect(),
            )
        } else if variable {
            // The first name, and the first after each comma outside of brackets.
            let mut names = Vec::new();
            let mut wanted = true;
            let mut depth = 0i32;
            for &(_, token) in &rest[..length] {
                match token {
                    "{" | "(" | "[" => depth += 1,
                    "}" | ")" | "]" => depth -= 1,
                    "," if depth == 0 => wanted = true,
                    _ if depth == 0 && wanted && is_name(token) => {
                        names.push(token);
                        wanted = false;
                    }
                    _ => {}
                }
            }
            (Kind::Variable, names)
        } else {
            (Kind::Other, Vec::new())
        };
        out.push(Statement {
            kind,
            linkage: linkage.unwrap_or(Linkage::Local),
            names,
            text: &text[start..last.0 + last.1.len()],
        });
        i += length;
    }
    out
}

/// The text with names replaced and numbers of files shifted.
fn rewritten(text: &str, rename: impl Fn(&str) -> Option<String>, files: u32) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut done = 0;
    let mut before = "";
    for (at, token) in tokens(text) {
        let new = if matches!(before, ".file" | ".loc" | "inlined_at") {
            token.parse().ok().map(|n: u32| (n + files).to_string())
        } else if is_name(token) {
            rename(token)
        } else {
            None
        };
        if let Some(new) = new {
            out.push_str(&text[done..at]);
            out.push_str(&new);
            done = at + token.len();
        }
        before = token;
    }
    out.push_str(&text[done..]);
    out
}

/// Of a function: where its results are named, behind `.func`, and how.
fn returns(statement: &str) -> Option<(usize, Option<&str>)> {
    let all = tokens(statement);
    let func = all.iter().position(|t| t.1 == ".func")?;
    let at = all[func].0 + ".func".len();
    // `.noreturn` and the like stand before the results.
    let first = all[func + 1..].iter().position(|t| !t.1.starts_with('.'))? + func + 1;
    if all[first].1 != "(" {
        return Some((at, None));
    }
    let close = all[first..].iter().position(|t| t.1 == ")")? + first;
    let results = &statement[all[first].0..=all[close].0];
    Some((at, results.contains(".param").then_some(results)))
}

fn version(statement: &str) -> Option<(u32, u32)> {
    let (major, minor) = statement.strip_prefix(".version")?.trim().split_once('.')?;
    let digits = minor.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, digits.parse().ok()?))
}

/// The text with a limit on the registers of its kernels. Those that say themselves how many registers they may have, by `.maxnreg` or by launch
/// bounds, keep that, as they do with a real compiler.
pub fn limit_registers(text: &str, limit: u32) -> String {
    const OWN: [&str; 4] = [".maxnreg", ".maxntid", ".reqntid", ".minnctapersm"];
    let mut out = String::with_capacity(text.len() + 64);
    let mut done = 0;
    for s in statements(text).iter().filter(|s| s.kind == Kind::Function) {
        let start = s.text.as_ptr() as usize - text.as_ptr() as usize;
        let all = tokens(s.text);
        let Some(body) = all.iter().position(|t| t.1 == "{") else {
            continue;
        };
        let head = &all[..body];
        let has = |wanted: &str| head.iter().any(|t| t.1 == wanted);
        if has(".entry") && !OWN.iter().any(|own| has(own)) {
            let at = start + all[body].0;
            out.push_str(&text[done..at]);
            // On the line of the body, so that lines keep their numbers.
            out.push_str(&format!(".pragma \"{REGISTER_LIMIT}{limit}\"; "));
            done = at;
        }
    }
    out.push_str(&text[done..]);
    out
}

/// One text of all; the error is one line.
pub fn merge(inputs: &[String]) -> Result<String, String> {
    let texts: Vec<Vec<Statement>> = inputs.iter().map(|text| statements(text)).collect();
    // Who defines each name that others can see, and in how many texts a name means something.
    let mut owner: BTreeMap<&str, (usize, Linkage)> = BTreeMap::new();
    let mut texts_with: HashMap<&str, HashSet<usize>> = HashMap::new();
    for (i, text) in texts.iter().enumerate() {
        for s in text {
            for &name in &s.names {
                texts_with.entry(name).or_default().insert(i);
                if s.kind == Kind::Declaration
                    || matches!(s.linkage, Linkage::Local | Linkage::Extern)
                {
                    continue;
                }
                match owner.get(name) {
                    Some((_, Linkage::Visible)) if s.linkage == Linkage::Visible => {
                        return Err(format!("{name} is defined twice"));
                    }
                    Some((_, Linkage::Visible)) => {}
                    Some(_) if s.linkage == Linkage::Shared => {}
                    _ => _ = owner.insert(name, (i, s.linkage)),
                }
            }
        }
    }
    // What callers take back of a function that another text defines.
    let mut expected: HashMap<&str, &str> = HashMap::new();
    for s in texts.iter().flatten() {
        if s.kind == Kind::Declaration
            && let Some(&name) = s.names.first()
            && let Some((_, Some(returns))) = returns(s.text)
        {
            expected.insert(name, returns);
        }
    }
    let newest = texts
        .iter()
        .flatten()
        .filter_map(|s| version(s.text))
        .max()
        .unwrap_or((8, 0));
    let mut head = format!(".version {}.{}\n", newest.0, newest.1);
    for wanted in [".target", ".address_size"] {
        let found = texts.iter().flatten().find(|s| s.text.starts_with(wanted));
        head.extend(found.map(|s| format!("{}\n", s.text)));
    }
    let mut parts: [String; 5] = Default::default();
    let mut declared: HashSet<&str> = HashSet::new();
    let mut files = 0;
    for (i, text) in texts.iter().enumerate() {
        let locals: HashSet<&str> = text
            .iter()
            .filter(|s| s.linkage == Linkage::Local)
            .flat_map(|s| s.names.iter().copied())
            .filter(|name| texts_with[name].len() > 1)
            .collect();
        let rename = |name: &str| {
            (locals.contains(name) || (i > 0 && name.starts_with("$L__info_string")))
                .then(|| format!("{name}$text{i}"))
        };
        let mut last_file = 0;
        for s in text {
            let name = s.names.first().copied().unwrap_or("");
            let defined = owner.get(name);
            let part = match s.kind {
                Kind::Header => continue,
                Kind::File => {
                    let number = s
                        .text
                        .split_whitespace()
                        .nth(1)
                        .and_then(|n| n.parse().ok());
                    last_file = last_file.max(number.unwrap_or(0));
                    0
                }
                Kind::Variable => match s.linkage {
                    Linkage::Extern if defined.is_some() || !declared.insert(name) => continue,
                    Linkage::Visible | Linkage::Shared if defined.is_some_and(|d| d.0 != i) => {
                        continue;
                    }
                    _ => 1,
                },
                Kind::Declaration => match s.linkage {
                    Linkage::Local => 2,
                    _ if !declared.insert(name) => continue,
                    _ => 2,
                },
                Kind::Function => match s.linkage {
                    Linkage::Visible | Linkage::Shared if defined.is_some_and(|d| d.0 != i) => {
                        continue;
                    }
                    _ => 3,
                },
                Kind::Other => 4,
            };
            let mut new = rewritten(s.text, rename, files);
            // A linker of machine code matches names only: who takes a result from a function that has none gets what is in the register.
            if s.kind == Kind::Function
                && let Some((at, None)) = returns(&new)
                && let Some(returns) = expected.get(name)
            {
                new.insert_str(at, &format!(" {returns}"));
            }
            if s.kind == Kind::Declaration && s.linkage == Linkage::Extern && defined.is_some() {
                new = new.replacen(".extern", ".visible", 1);
            }
            parts[part].push_str(&new);
            parts[part].push('\n');
        }
        files += last_file;
    }
    Ok(head + &parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

    #[test]
    fn texts_are_cut_into_their_statements() {
        let text = format!(
            "{HEAD}.file 1 \"a;b.cu\"\n// .func no;\n.extern .func (.param .b32 r) far (.param .b32 a, .param .b64 b);\n\
             .visible .global .align 4 .b8 x[8] = {{1, 2, 3}}, y;\n.extern .shared .align 16 .b8 pool[];\n\
             .func local () {{ {{ ret; }} }}\n.visible .entry k(.param .u64 p) .maxntid 1, 1, 1 {{ ret; }}\n\
             .section .debug_str {{ $L__info_string0: .b8 1; }}"
        );
        let found: Vec<_> = statements(&text)
            .iter()
            .skip(3)
            .map(|s| (s.kind, s.linkage, s.names.join(" ")))
            .collect();
        assert_eq!(
            found,
            [
                (Kind::File, Linkage::Local, String::new()),
                (Kind::Declaration, Linkage::Extern, "far".into()),
                (Kind::Variable, Linkage::Visible, "x y".into()),
                (Kind::Variable, Linkage::Extern, "pool".into()),
                (Kind::Function, Linkage::Local, "local".into()),
                (Kind::Function, Linkage::Visible, "k".into()),
                (Kind::Other, Linkage::Local, String::new()),
            ]
        );
    }

    #[test]
    fn a_function_without_a_result_may_be_called_for_one() {
        let caller = format!(
            "{HEAD}.extern .func (.param .b64 r) f\n(.param .b32 a);\n.visible .entry k() {{ ret; }}"
        );
        let callee =
            |results: &str| format!("{HEAD}.visible .func {results}f(.param .b32 a)\n{{ ret; }}");
        let merged = merge(&[caller.clone(), callee("")]).unwrap();
        assert!(
            merged.contains(".visible .func (.param .b64 r) f(.param .b32 a)"),
            "{merged}"
        );
        let other = merge(&[caller, callee("(.param .b32 q) ")]).unwrap();
        assert!(
            other.contains(".visible .func (.param .b32 q) f("),
            "{other}"
        );
        assert!(
            !other.contains(".visible .func (.param .b64 r) (.param"),
            "{other}"
        );
    }

    #[test]
    fn registers_are_limited_where_a_kernel_does_not_say_itself() {
        let text = format!(
            "{HEAD}.func f() {{ ret; }}\n.visible .entry a(.param .u32 x)\n{{ {{ ret; }} }}\n.entry b() .maxntid 64, 1, 1\n{{ ret; }}"
        );
        let limited = limit_registers(&text, 40);
        assert_eq!(
            limited,
            text.replace(
                "x)\n{ {",
                &format!("x)\n.pragma \"{REGISTER_LIMIT}40\"; {{ {{")
            ),
            "{limited}"
        );
        assert_ne!(limited, text);
    }

    #[test]
    fn every_cut_of_a_text_can_be_merged() {
        let text = format!(
            "{HEAD}.file 1 \"a\"\n.visible .global .u32 x = 1;\n.visible .entry k() {{ .loc 1 2 3 ret; }} /* end */"
        );
        for end in 0..text.len() {
            _ = merge(&[text[..end].to_owned(), text[end..].to_owned()]);
        }
    }

    #[test]
    fn numbers_of_files_are_shifted_and_private_names_kept_apart() {
        let text = |n: u32| {
            format!(
                "{HEAD}.file {n} \"f{n}.cu\"\n.global .u32 mine = {n};\n.visible .entry k{n}() {{ .loc {n} 7 0, function_name $L__info_string0, inlined_at {n} 9 1\n ret; }}"
            )
        };
        let merged = merge(&[text(1), text(2).replace(".version 8.0", ".version 8.6")]).unwrap();
        assert!(merged.starts_with(".version 8.6\n"), "{merged}");
        assert!(
            merged.contains(".file 3 \"f2.cu\"") && merged.contains("inlined_at 3 9 1"),
            "{merged}"
        );
        assert!(
            merged.contains("mine$text0 = 1") && merged.contains("mine$text1 = 2"),
            "{merged}"
        );
        assert_eq!(
            merge(&[text(1), text(1)]).unwrap_err(),
            "k1 is defined twice"
        );
    }
}
