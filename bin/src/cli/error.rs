//! How a command fails: a code with its exit status, one sentence, and for scripts the same as JSON.

use std::fmt;
use std::io;

use serde_json::{Map, Value, json};

use graven_net::protocol::{self, Detail};
pub(crate) use graven_net::protocol::{ErrorCode, Outcome};

/// A command's result.
pub(crate) type CliResult<T = ()> = Result<T, Failure>;

/// Why a command ends before its work is done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads our output any more, as in `graven read | head`: not an error.
    StdoutClosed,
    /// An error to tell.
    Error(Box<CliError>),
}

/// What is told about an error.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) outcome: Outcome,
    pub(crate) details: Map<String, Value>,
}

impl Failure {
    /// An error of this code that did not and will not happen.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Failure {
        let details = Map::new();
        Failure::Error(Box::new(CliError { code, message: message.into(), outcome: Outcome::Refused, details }))
    }

    /// Wrong arguments, or a place that is not as the command needs it.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(ErrorCode::Usage, message)
    }

    /// A configuration file that cannot be used.
    pub(crate) fn config(message: impl fmt::Display) -> Failure {
        Failure::new(ErrorCode::Config, message.to_string())
    }

    /// Something broke here.
    pub(crate) fn internal(message: impl Into<String>) -> Failure {
        Failure::new(ErrorCode::Internal, message)
    }

    /// The same with one more detail.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Failure {
        if let Failure::Error(error) = &mut self {
            error.details.insert(key.to_owned(), value.into());
        }
        self
    }

    /// The same with another outcome.
    pub(crate) fn with_outcome(mut self, outcome: Outcome) -> Failure {
        if let Failure::Error(error) = &mut self {
            error.outcome = outcome;
        }
        self
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::StdoutClosed => 0,
            Failure::Error(error) => error.code.exit_code(),
        }
    }
}

impl CliError {
    /// The object that `--json` promises.
    pub(crate) fn to_json(&self) -> Value {
        let outcome = match self.outcome {
            Outcome::Unknown => "unknown",
            Outcome::Refused => "refused",
        };
        json!({"error": {
            "code": self.code.as_str(),
            "message": self.message,
            "outcome": outcome,
            "details": self.details,
        }})
    }
}

impl From<protocol::Failure> for Failure {
    fn from(failure: protocol::Failure) -> Failure {
        let details = failure.details.into_iter().map(|(key, detail)| {
            let value = match detail {
                Detail::Number(number) => Value::from(number),
                Detail::Text(text) => Value::from(text),
            };
            (key, value)
        });
        Failure::Error(Box::new(CliError {
            code: failure.code,
            message: failure.message,
            outcome: failure.outcome,
            details: details.collect(),
        }))
    }
}

macro_rules! from_client_error {
    ($($name:ident),*) => {$(
        impl From<graven_net::client::$name> for Failure {
            fn from(error: graven_net::client::$name) -> Failure {
                error.into_failure().into()
            }
        }
    )*};
}

from_client_error!(ConnectError, AppendError, SubscribeError, StreamError, RequestError);

/// A write to stdout failed.
pub(crate) fn stdout_failed(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::StdoutClosed;
    }
    Failure::internal(format!("cannot write to stdout: {error}"))
}

/// Tells people or, with `--json`, programs. A closed stderr is nobody's problem.
pub(crate) fn report(error: &CliError, as_json: bool) {
    use io::Write;
    let line = if as_json { error.to_json().to_string() } else { format!("graven: {}", error.message) };
    let _ = writeln!(io::stderr(), "{line}");
}
