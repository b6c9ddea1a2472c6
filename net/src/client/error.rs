//! What can go wrong for a user of the library, by operation. Each carries one [`Failure`].

use crate::protocol::{ErrorCode, Failure, Outcome};

macro_rules! operation_error {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error(transparent)]
        pub struct $name(Box<Failure>);

        impl $name {
            /// The kind of error.
            #[must_use]
            pub fn code(&self) -> ErrorCode {
                self.0.code
            }

            /// Whether it may have happened all the same.
            #[must_use]
            pub fn outcome(&self) -> Outcome {
                self.0.outcome
            }

            /// Kind, sentence, outcome and details.
            #[must_use]
            pub fn failure(&self) -> &Failure {
                &self.0
            }

            /// Gives the failure away.
            #[must_use]
            pub fn into_failure(self) -> Failure {
                *self.0
            }
        }

        impl From<Failure> for $name {
            fn from(failure: Failure) -> $name {
                $name(Box::new(failure))
            }
        }
    };
}

operation_error! {
    /// Why no node of the cluster could be reached, or none wanted us.
    ConnectError
}
operation_error! {
    /// Why an append was not acknowledged. [`AppendError::outcome`] tells whether it may have happened all the same.
    AppendError
}
operation_error! {
    /// Why a subscription could not begin.
    SubscribeError
}
operation_error! {
    /// Why a subscription ended. Everything before was delivered once and in order.
    StreamError
}
operation_error! {
    /// Why a request was not answered as hoped.
    RequestError
}
