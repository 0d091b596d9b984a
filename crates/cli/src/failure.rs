//! Errors as one readable chain on stderr, and the exit codes.

use crate::output::harmless;
use std::error::Error;
use std::process::ExitCode;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Empty if everything was said already.
    message: String,
}

impl Failure {
    /// Exit code 1: something went wrong while running.
    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// Exit code 2: the arguments contradict each other.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Exit code 3: input data is not valid.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// Exit code 4: a model or file is not there or cannot be loaded.
    pub(crate) fn model(message: impl Into<String>) -> Self {
        Self { code: 4, message: message.into() }
    }

    /// Exit code 5: not enough memory.
    pub(crate) fn memory(message: impl Into<String>) -> Self {
        Self { code: 5, message: message.into() }
    }

    /// The same exit code when everything that is wrong was said already.
    pub(crate) fn reported(self) -> Self {
        Self { message: String::new(), ..self }
    }

    /// Exit code 3 when everything that is wrong was said already.
    pub(crate) fn input_reported() -> Self {
        Self { code: 3, message: String::new() }
    }

    /// Exit code 130: Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self { code: 130, message: "interrupted".to_owned() }
    }

    /// Standard output cannot be written. A reader that has enough (`ocelli ... | head`) is no error.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self { code: 0, message: String::new() };
        }
        Self { code: 1, message: format!("cannot write the output: {error}") }
    }

    /// With another line.
    pub(crate) fn with(mut self, line: &str) -> Self {
        self.message += "\n  ";
        self.message += line;
        self
    }

    /// Says what went wrong and gives the exit code.
    #[allow(clippy::print_stderr)] // The one place where errors are printed.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("error: {}", harmless(&self.message));
        }
        ExitCode::from(self.code)
    }
}

/// An error with its causes, each once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text += ": ";
            text += &next_text;
        }
        cause = next.source();
    }
    text
}

impl From<ocelli_models::Error> for Failure {
    fn from(error: ocelli_models::Error) -> Self {
        use ocelli_models::Error as E;
        let message = chain(&error);
        match error {
            E::Load(_)
            | E::Checkpoint(_)
            | E::Io { .. }
            | E::Config { .. }
            | E::UnknownModel { .. }
            // Of the files that belong to a model: its tokenizer, its processor.
            | E::Data(_) => Self::model(message),
            E::Unsuitable { .. } | E::ImageCount { .. } => Self::usage(message),
            E::ContextOverflow { .. } | E::EmptyPrompt { .. } => Self::input(message),
            _ => Self::runtime(message),
        }
    }
}

impl From<ocelli_nn::checkpoint::Error> for Failure {
    fn from(error: ocelli_nn::checkpoint::Error) -> Self {
        Self::model(chain(&error))
    }
}

impl From<ocelli_data::Error> for Failure {
    fn from(error: ocelli_data::Error) -> Self {
        Self::input(chain(&error))
    }
}

impl From<ocelli_tensor::Error> for Failure {
    fn from(error: ocelli_tensor::Error) -> Self {
        Self::runtime(chain(&error))
    }
}

impl From<ocelli_eval::Error> for Failure {
    fn from(error: ocelli_eval::Error) -> Self {
        use ocelli_eval::Error as E;
        match error {
            E::NoLabels | E::NoTemplates | E::Text(_) => Self::usage(chain(&error)),
            _ => Self::runtime(chain(&error)),
        }
    }
}

impl From<ocelli_train::Error> for Failure {
    fn from(error: ocelli_train::Error) -> Self {
        use ocelli_train::Error as E;
        let message = chain(&error);
        match error {
            E::Model(error) => error.into(),
            E::Eval(error) => error.into(),
            E::Recipe { .. } | E::Override { .. } | E::Unfit { .. } | E::OtherRun { .. } => {
                Self::usage(message)
            }
            E::Memory { .. } => Self::memory(message),
            E::Dataset(_) | E::Text(_) => Self::input(message),
            E::Io { .. } | E::Start { .. } | E::Load(_) | E::Checkpoint(_) => Self::model(message),
            _ => Self::runtime(message),
        }
    }
}
