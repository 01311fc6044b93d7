//! Recorded launches, and those that are being recorded.

use std::sync::Arc;

use cudarc::driver::sys;

use super::Function;
use super::context::Context;
use crate::cuda::driver::Launch;
use crate::spec::KernelError;

/// Launches that are being recorded. They are noted, so that they can be recorded once more where a driver refuses to have them overlap
/// in a recording.
#[derive(Default)]
pub(super) struct Recording {
    launches: Vec<Noted>,
    /// Whether one of them may start before the one before it has ended.
    pub(super) dependent: bool,
    /// Why one of them could not be recorded so.
    pub(super) failed: Option<KernelError>,
}

struct Noted {
    function: Function,
    /// Without its parameters.
    launch: Launch<'static>,
    params: Vec<u8>,
}

impl Recording {
    /// Notes a launch, and has it recorded by `start`. Where launches overlap, an error is kept for the end of the recording.
    pub(super) fn note(
        &mut self,
        function: Function,
        launch: &Launch<'_>,
        dependent: bool,
        start: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.dependent |= dependent;
        let Launch { grid, threads, shared, cluster, dependent, cooperative, params } = *launch;
        let bare = Launch { grid, threads, shared, cluster, dependent, cooperative, params: &[] };
        self.launches.push(Noted { function, launch: bare, params: params.to_vec() });
        if self.failed.is_some() {
            return Ok(());
        }
        match start() {
            Err(error @ KernelError::Device(_)) if self.dependent => {
                self.failed = Some(error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Gives every launch to `start` again.
    pub(super) fn again(
        &self,
        mut start: impl FnMut(Function, &Launch<'_>) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.launches
            .iter()
            .try_for_each(|noted| start(noted.function, &Launch { params: &noted.params, ..noted.launch }))
    }
}

/// Recorded launches.
pub(super) struct Graph {
    pub(super) exec: sys::CUgraphExec,
    pub(super) context: Arc<Context>,
}

// SAFETY: a handle of the driver, used by one queue at a time.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.is_gone() {
            return;
        }
        // SAFETY: the graph is alive and used no more.
        unsafe {
            sys::cuCtxSetCurrent(self.context.context);
            sys::cuGraphExecDestroy(self.exec);
        }
    }
}
