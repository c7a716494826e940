//! (room)

/// Something the gate has released. Only the gate makes one.
#[derive(Debug)]
pub struct Released<T>(T);

impl<T> Released<T> {
    /// What was released.
    pub const fn get(&self) -> &T {
        &self.0
    }

    /// What was released.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// Released by a test.
    #[cfg(test)]
    pub(crate) const fn for_test(value: T) -> Self {
        Self(value)
    }
}
