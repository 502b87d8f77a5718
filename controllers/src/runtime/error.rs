//! Why a reconcile did not finish.

/// Any of these is retried with backoff; the variants tell how loudly it is logged and what may be assumed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API refused or could not be reached.
    #[error("{what}")]
    Api {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The object contradicts itself in a way validation does not catch.
    #[error("{0}")]
    Invalid(String),
}

impl ReconcileError {
    /// True if somebody else wrote the object first: normal, and gone with the next event.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if is_conflict(source))
    }
}

/// For `map_err`: says what was tried.
pub fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ReconcileError {
    let what = what.into();
    move |source| ReconcileError::Api { what, source: Box::new(source) }
}

pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409) && !is_already_exists(error)
}

/// True if the server said that it did not do it; otherwise it may have been done.
pub(crate) fn is_refused(error: &kube::Error) -> bool {
    code(error).is_some_and(|code| (400..500).contains(&code) && code != 408)
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
