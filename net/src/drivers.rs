//! quinn's own tasks, kept at hand so that a port can be given back.
//!
//! An endpoint's task goes on, and holds the socket, until the last of its connections has waited for late packets: three probe timeouts
//! after it was closed (RFC 9000, 10.2). Of a connection that was closed in the middle of its handshake on a busy machine that is more than a second. A node
//! that mended its log found its own port taken by what it had listened with meanwhile, and ended.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::task::JoinSet;

/// Runs the tasks of one endpoint on tokio, and can end them.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    tasks: Mutex<JoinSet<()>>,
}

impl Drivers {
    /// Ends every task, and returns when they are gone. Call it when all handles of the endpoint are dropped: then nothing holds
    /// the socket any more. Cancelled, the tasks end all the same, some time later.
    pub(crate) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for Drivers {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let mut tasks = self.tasks();
        // There is one task a connection: those that ended meanwhile make room.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}
