//! The daemon's side: every client is a task, every answer a stream of messages.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::libc::{EACCES, EBUSY, EMSGSIZE, EPROTO};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{CLIENTS, IDLE_TIME, MESSAGE_TIME, Malformed, REPLY_TIME, decode_request, encode, length};
use crate::api::{Request, Response};

/// Answers requests. The messages go to `reply`; [`Response::is_last`] must hold for the last one and no other. A
/// handler that returns without a last message leaves the client with a refusal.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Once the last message is taken, or the client has gone, what remains is not run.
    fn handle(&self, request: Request, reply: Reply) -> impl Future<Output = ()> + Send;
}

/// Where the messages of one answer go. Each send waits for the client to take what came before, so a long listing
/// never lies in memory as a whole.
#[derive(Debug)]
pub struct Reply(mpsc::Sender<Response>);

/// The client has gone; nobody wants the rest of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

impl Reply {
    /// Sends one message.
    pub async fn send(&self, response: Response) -> Result<(), Gone> {
        self.0.send(response).await.map_err(|_| Gone)
    }

    /// Sends messages one after the other, then [`Response::Done`].
    pub async fn send_all(&self, parts: impl Iterator<Item = Response>) -> Result<(), Gone> {
        for part in parts {
            self.send(part).await?;
        }
        self.send(Response::Done).await
    }
}

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A live daemon answers there.
    #[error("{} is already served by a running daemon", .0.display())]
    AlreadyServed(PathBuf),
    /// There is something that is no socket; it is not ours to remove.
    #[error("{} exists and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen at {}: {error}{}", path.display(), if error.kind() == io::ErrorKind::InvalidInput { " (107 bytes)" } else { "" })]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Mode of the socket file: its owner and group may connect.
const MODE: u32 = 0o660;

/// Listens at `path`, in place of a socket file that a dead daemon left. Must be called within a runtime.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |error| BindError::System { path: path.to_path_buf(), error };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_path_buf())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            // Refused is what a socket without a process gives; a full backlog, for one, gives another error.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) | Err(_) => return Err(BindError::AlreadyServed(path.to_path_buf())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Until here the umask rules; the look at each peer covers the moment between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(failed)?;
    Ok(listener)
}

/// Serves clients until the future is dropped.
pub async fn serve(listener: UnixListener, handler: impl Handler) -> io::Result<()> {
    let handler = Arc::new(handler);
    let places = Arc::new(Semaphore::new(CLIENTS));
    let waited_for = Arc::new(WaitedFor::default());
    // Dropping the set, with this future, ends all tasks.
    let mut clients = tokio::task::JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the clients that are served will free some.
                warn!(%error, "cannot accept a client");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = waited_for.place(&places).await?;
        let (handler, waited_for) = (Arc::clone(&handler), Arc::clone(&waited_for));
        clients.spawn(async move {
            if let Err(ended) = attend(stream, &*handler, &waited_for).await {
                debug!(%ended, "client");
            }
            drop(place);
        });
    }
}

/// The clients that the daemon waits for: to ask, to finish a request, to take an answer. When places are short the one that was waited for
/// longest gives way; first those that were never answered, so that whoever only fills places drives out its like.
#[derive(Default)]
struct WaitedFor {
    clients: Mutex<BTreeMap<(bool, u64), oneshot::Sender<()>>>,
    /// How often a client was waited for.
    turns: AtomicU64,
}

impl WaitedFor {
    /// A place for a client, be it another's.
    async fn place(&self, places: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        loop {
            // Those who came last have not begun yet: until they have, somebody who asks might give way to them.
            tokio::task::yield_now().await;
            self.make_way();
            // Nobody may have been waited for just now.
            if let Ok(place) = timeout(SHORTAGE, Arc::clone(places).acquire_owned()).await {
                return place.map_err(io::Error::other);
            }
        }
    }

    fn make_way(&self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has just left cannot be told, and is no loss.
        while let Some((_, gives_way)) = clients.pop_first() {
            if gives_way.send(()).is_ok() {
                return;
            }
        }
    }

    /// Waits for something that a client does, unless it has to give way.
    async fn wait<T>(
        &self,
        was_answered: bool,
        act: impl Future<Output = Result<T, Ended>>,
    ) -> Result<T, Ended> {
        let (gives_way, told) = oneshot::channel();
        let turn = (was_answered, self.turns.fetch_add(1, Ordering::Relaxed));
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, gives_way);
        let outcome = tokio::select! {
            biased;
            done = act => done,
            Ok(()) = told => Err(Ended::GaveWay),
        };
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn);
        outcome
    }
}

/// How long a new client waits for a place until one more of the others has to give way.
const SHORTAGE: Duration = Duration::from_millis(10);

/// How a client's connection ended, when not by the client's wish.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it may not connect")]
    NotAllowed,
    #[error("it kept the daemon waiting")]
    TooSlow(#[from] tokio::time::error::Elapsed),
    #[error("it kept the daemon waiting for longer than all others, and there was no place for one more")]
    GaveWay,
}

/// Serves one client.
async fn attend<H: Handler>(
    mut stream: UnixStream,
    handler: &H,
    waited_for: &WaitedFor,
) -> Result<(), Ended> {
    if !may_connect(&stream)? {
        refuse(&mut stream, EACCES, "Only root and the daemon's user and group may ask").await?;
        return Err(Ended::NotAllowed);
    }
    let mut was_answered = false;
    loop {
        let bytes = match waited_for.wait(was_answered, read_message(&mut stream)).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(Ended::GaveWay) => {
                // Between two answers there is room for a word, which does not wait for its reader.
                let why = "Too many clients; the request was not looked at, ask again".to_owned();
                let _ = stream.try_write(&encode(&Response::Refused { errno: EBUSY, why })?);
                return Err(Ended::GaveWay);
            }
            Err(ended) => return Err(ended),
        };
        match decode_request(&bytes) {
            Ok(request) => answer(&mut stream, handler, request, waited_for).await?,
            // The frame was whole, so the next one can still be found.
            Err(wrong) => refuse(&mut stream, EPROTO, &wrong.to_string()).await?,
        }
        was_answered = true;
    }
}

/// The next message, or nothing when the client closed or fell silent between two.
async fn read_message(stream: &mut UnixStream) -> Result<Option<Vec<u8>>, Ended> {
    let mut header = [0; 4];
    match timeout(IDLE_TIME, stream.read(&mut header[..1])).await {
        Ok(Ok(0)) | Err(_) => return Ok(None),
        Ok(read) => read?,
    };

    let rest = async {
        stream.read_exact(&mut header[1..]).await?;
        let length = match length(header) {
            Ok(length) => length,
            Err(wrong) => {
                refuse(stream, EMSGSIZE, &wrong.to_string()).await?;
                return Err(Ended::Malformed(wrong));
            }
        };
        // Memory is taken as bytes arrive, not as announced.
        let mut bytes = Vec::new();
        stream.take(length as u64).read_to_end(&mut bytes).await?;
        if bytes.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(bytes))
    };
    match timeout(MESSAGE_TIME, rest).await {
        Ok(read) => read,
        Err(slow) => {
            refuse(stream, EPROTO, "The request was not complete in time").await?;
            Err(slow.into())
        }
    }
}

/// Lets the handler answer and passes its messages on, both at once.
async fn answer<H: Handler>(
    stream: &mut UnixStream,
    handler: &H,
    request: Request,
    waited_for: &WaitedFor,
) -> Result<(), Ended> {
    let (sender, mut messages) = mpsc::channel::<Response>(1);
    let pass_on = async {
        while let Some(response) = messages.recv().await {
            let last = response.is_last();
            waited_for.wait(true, write(stream, &response)).await?;
            if last {
                return Ok(());
            }
        }
        refuse(stream, EPROTO, "The daemon has no answer to this").await
    };
    // The handler is dropped when the client has gone: its next message would find nobody.
    let handling = async {
        handler.handle(request, Reply(sender)).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        passed = pass_on => passed,
        () = handling => Ok(()),
    }
}

async fn refuse(stream: &mut UnixStream, errno: i32, why: &str) -> Result<(), Ended> {
    write(stream, &Response::Refused { errno, why: why.to_string() }).await
}

async fn write(stream: &mut UnixStream, response: &Response) -> Result<(), Ended> {
    let bytes = encode(response)?;
    Ok(timeout(REPLY_TIME, stream.write_all(&bytes)).await??)
}

/// Whether the peer is root, or has the daemon's user or group, be it as one of several groups.
fn may_connect(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if peer.uid() == 0 || peer.uid() == user || peer.gid() == group {
        return Ok(true);
    }
    let Some(pid) = peer.pid() else { return Ok(false) };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    Ok(groups.split_whitespace().any(|other| other.parse() == Ok(group)))
}
