//! The error a user reads.
//!
//! Every mistake a user can make ends in one [`Failure`]: `birdie: <what>: <why>`, then `hint: <next thing
//! to do>`, and an exit code from the contract. Code below the command line returns it through `anyhow`;
//! `main` finds it in the chain. An error without one is a defect or the environment's, and is shown with its
//! causes under exit code 1.

use std::fmt;

/// Exit codes of the `birdie` program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something the user can change: arguments, files, recipe, device.
    User = 2,
    /// The emulator's checkers found a race, hazard or access out of bounds.
    Finding = 3,
    /// Training diverged: a loss, gradient or weight is not finite.
    NonFinite = 4,
}

/// What went wrong, why, and what to do next; each one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub what: String,
    pub why: String,
    pub hint: String,
    pub exit: Exit,
}

impl Failure {
    /// A user's mistake (exit code 2).
    pub fn user(what: impl fmt::Display, why: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self::new(Exit::User, what, why, hint)
    }

    pub fn new(
        exit: Exit,
        what: impl fmt::Display,
        why: impl fmt::Display,
        hint: impl fmt::Display,
    ) -> Self {
        Self {
            what: one_line(what),
            why: one_line(why),
            hint: one_line(hint),
            exit,
        }
    }
}

fn one_line(text: impl fmt::Display) -> String {
    text.to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.hint.is_empty() {
            write!(f, "\nhint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_and_a_hint() {
        let failure = Failure::user("recipe", "no such\nfile", "look here");
        assert_eq!(failure.to_string(), "recipe: no such file\nhint: look here");
    }
}
