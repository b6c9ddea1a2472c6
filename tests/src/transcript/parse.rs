//! The grammar of transcripts: directives, arguments, input, expected text.
//!
//! A directive is one line (`command argument key=value key=(a, b)`; a backslash at its end continues it), then input lines, then
//! `----`, then what the run printed, up to the first blank line. Text with blank lines in it stands between doubled `----` lines.
//! Lines that begin with `#` between directives are comments; `subtest` lines carry no output.

use std::fmt;

/// One step of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The line of the command in its file, from 1.
    pub line: usize,
    /// What is to be done.
    pub command: String,
    /// Its arguments, in order.
    pub args: Vec<Arg>,
    /// The lines between the command and `----`.
    pub input: String,
    /// What was printed; each line ends with a newline.
    pub expected: String,
}

/// `key`, `key=value`, or `key=(value, value)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// What stands before `=`.
    pub key: String,
    /// What stands behind it; empty without `=`.
    pub values: Vec<String>,
}

/// What is wrong with a transcript, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1.
    pub line: usize,
    /// What was expected there.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl Directive {
    /// The values of all arguments named `key`, in order; `None` when there is none.
    #[must_use]
    pub fn values(&self, key: &str) -> Option<Vec<&str>> {
        let named = self.args.iter().filter(|arg| arg.key == key);
        let all: Vec<_> = named.clone().flat_map(|arg| arg.values.iter().map(String::as_str)).collect();
        named.clone().next().map(|_| all)
    }

    /// The only value of the argument named `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).and_then(|values| values.first().copied())
    }

    /// Arguments without `=`.
    pub fn bare(&self) -> impl Iterator<Item = &str> {
        self.args.iter().filter(|arg| arg.values.is_empty()).map(|arg| arg.key.as_str())
    }

    /// Arguments without `=`, as node ids.
    ///
    /// # Errors
    /// Names an argument that is no number.
    pub fn ids(&self) -> Result<Vec<u64>, String> {
        self.bare().map(number).collect()
    }

    /// The first argument, as a number.
    ///
    /// # Errors
    /// There is none, or it is no number.
    pub fn first(&self) -> Result<u64, String> {
        self.bare().next().ok_or_else(|| format!("{} needs a number", self.command)).and_then(number)
    }
}

/// A number that stands for a node or an index.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// All directives of a transcript.
///
/// # Errors
/// Names the first line that does not follow the grammar.
pub fn parse(text: &str) -> Result<Vec<Directive>, Malformed> {
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    let mut directives = Vec::new();
    while at < lines.len() {
        let start = at;
        let mut head = lines[at].trim().to_owned();
        at += 1;
        if head.is_empty() || head.starts_with('#') {
            continue;
        }
        while head.ends_with('\\') {
            head.pop();
            let Some(more) = lines.get(at) else { break };
            head = format!("{} {}", head.trim_end(), more.trim());
            at += 1;
        }
        let (command, args) = parse_head(&head).map_err(|what| Malformed { line: start + 1, what })?;
        if command == "subtest" {
            continue;
        }
        let Some(length) = lines[at..].iter().position(|line| *line == "----") else {
            let what = format!("no ---- after {command:?}");
            return Err(Malformed { line: start + 1, what });
        };
        let input = lines[at..at + length].join("\n");
        at += length + 1;
        let expected = parse_expected(&lines, &mut at)?;
        directives.push(Directive { line: start + 1, command, args, input, expected });
    }
    Ok(directives)
}

fn parse_expected(lines: &[&str], at: &mut usize) -> Result<String, Malformed> {
    let start = *at;
    let mut expected = String::new();
    if lines.get(*at) != Some(&"----") {
        while let Some(line) = lines.get(*at).filter(|line| !line.trim().is_empty()) {
            expected += line;
            expected.push('\n');
            *at += 1;
        }
        return Ok(expected);
    }
    *at += 1;
    while let Some(line) = lines.get(*at) {
        if *line == "----" && lines.get(*at + 1) == Some(&"----") {
            *at += 2;
            return Ok(expected);
        }
        expected += line;
        expected.push('\n');
        *at += 1;
    }
    Err(Malformed { line: start + 1, what: "text with blank lines that does not end with doubled ----".to_owned() })
}

fn parse_head(head: &str) -> Result<(String, Vec<Arg>), String> {
    let mut words = split(head, char::is_whitespace)?.into_iter().filter(|word| !word.is_empty());
    let command = words.next().unwrap_or_default();
    let args = words.map(|word| parse_arg(&word)).collect::<Result<_, _>>()?;
    Ok((command, args))
}

fn parse_arg(word: &str) -> Result<Arg, String> {
    let Some((key, value)) = word.split_once('=') else {
        return Ok(Arg { key: word.to_owned(), values: Vec::new() });
    };
    let list = value.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
    let values = match list {
        None => vec![value.to_owned()],
        Some(inner) if inner.trim().is_empty() => Vec::new(),
        Some(inner) => split(inner, |c| c == ',')?.iter().map(|value| value.trim().to_owned()).collect(),
    };
    Ok(Arg { key: key.to_owned(), values })
}

/// Splits where `separates` holds outside of all parentheses.
fn split(text: &str, separates: impl Fn(char) -> bool) -> Result<Vec<String>, String> {
    let mut depth = 0usize;
    let mut parts = vec![String::new()];
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or_else(|| format!("a ) without ( in {text:?}"))?,
            _ => {}
        }
        if depth == 0 && separates(c) {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if depth == 0 { Ok(parts) } else { Err(format!("a ( without ) in {text:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_have_arguments_input_and_expected_text() {
        let text = "# a comment\n\ngrow 3 to=(a, b(c,d) ,e) by=2 \\\n  now\nfirst\n\nsecond\n----\nline 1\n  line 2\n\nshrink\n----\n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 2);
        let grow = &all[0];
        assert_eq!((grow.line, grow.command.as_str(), grow.first()), (3, "grow", Ok(3)));
        assert_eq!(grow.values("to"), Some(vec!["a", "b(c,d)", "e"]));
        assert_eq!((grow.value("by"), grow.value("at")), (Some("2"), None));
        assert_eq!(grow.bare().collect::<Vec<_>>(), ["3", "now"]);
        assert_eq!((grow.input.as_str(), grow.expected.as_str()), ("first\n\nsecond", "line 1\n  line 2\n"));
        assert_eq!((all[1].line, all[1].expected.as_str()), (12, ""));
    }

    #[test]
    fn doubled_rules_keep_blank_lines_and_subtests_carry_nothing() {
        let text = "subtest one\nsay\n----\n----\na\n\nb\n----\n----\n\nsubtest end\nsay\n----\nc";
        let all = parse(text).unwrap();
        assert_eq!(all.iter().map(|one| one.expected.as_str()).collect::<Vec<_>>(), ["a\n\nb\n", "c\n"]);
    }

    #[test]
    fn what_is_malformed_is_named_with_its_line() {
        assert_eq!(parse("\nsay it\n").unwrap_err().line, 2);
        assert_eq!(parse("say (it\n----\n").unwrap_err().line, 1);
        assert_eq!(parse("say\n----\n----\nno end\n").unwrap_err().line, 3);
        assert!(parse("say x\n----\nok\n").unwrap()[0].first().is_err());
    }
}
