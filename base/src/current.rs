//! A value that may be replaced while it is in use: each time it is needed, the current one is asked for.

use std::fmt;
use std::sync::Arc;

/// Where the current value comes from. Cheap to clone; all clones give the same values.
pub struct Current<T>(Arc<dyn Fn() -> Arc<T> + Send + Sync>);

impl<T> Current<T> {
    /// `source` is called for each use and must not block for long.
    pub fn new(source: impl Fn() -> Arc<T> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    pub fn get(&self) -> Arc<T> {
        (self.0)()
    }
}

/// A value that stays.
impl<T: Send + Sync + 'static> From<Arc<T>> for Current<T> {
    fn from(value: Arc<T>) -> Self {
        Self::new(move || Arc::clone(&value))
    }
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}
