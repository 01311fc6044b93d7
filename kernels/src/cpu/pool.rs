//! stub
/// stub
pub struct Pool(usize);
impl Pool {
    /// stub
    pub fn new(threads: usize) -> Self {
        Self(threads)
    }
    /// stub
    pub fn threads(&self) -> usize {
        self.0
    }
}
