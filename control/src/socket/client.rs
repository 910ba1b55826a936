//! The command line's side: blocking, one request at a time.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{decode, encode, length};
use crate::{
    api::{Message, Request, Response, VERSION},
    ipvsadm::Backend,
};

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    used: Instant,
}

/// How long the daemon may take for a message. It answers at once, but may wait for workers to reach an epoch.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// A connection unused for this long is made anew: well before the daemon closes it, so that no request is lost in
/// between.
const FRESH: Duration = Duration::from_secs(10);

impl Client {
    /// Connects to the daemon that serves `path`. The error names the path and says what may be wrong.
    pub fn connect(path: impl Into<PathBuf>) -> io::Result<Client> {
        let path = path.into();
        Ok(Client { stream: connect(&path)?, path, used: Instant::now() })
    }

    /// Sends one request and gives all messages of the answer.
    pub fn call(&mut self, request: &Request) -> io::Result<Vec<Response>> {
        let mut answer = Vec::new();
        self.request(request, &mut |response| {
            answer.push(response);
            Ok(())
        })?;
        Ok(answer)
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        if self.used.elapsed() > FRESH {
            self.stream = connect(&self.path)?;
        }
        let message = Message { version: VERSION, request: request.clone() };
        let bytes = encode(&message).map_err(io::Error::other)?;
        self.stream.write_all(&bytes)
    }

    fn receive(&mut self) -> io::Result<Response> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let mut bytes = vec![0; length(header).map_err(io::Error::other)?];
        self.stream.read_exact(&mut bytes)?;
        self.used = Instant::now();
        decode(&bytes).map_err(io::Error::other)
    }

    /// What befell the connection, told so that nobody takes it for trouble with a terminal or a file.
    fn lost(&self, error: io::Error) -> io::Error {
        let path = self.path.display();
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                "it closed the connection".to_string()
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("it did not answer within {} s", ANSWER_TIME.as_secs())
            }
            _ => error.to_string(),
        };
        io::Error::other(format!("the shunt daemon at {path} is lost: {why}"))
    }
}

impl Backend for Client {
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        // A daemon that refuses the peer, or a message, answers and closes; its answer may already be here when the
        // request cannot be written any more.
        let mut sent = self.send(request);
        let mut may_ask_again = true;
        loop {
            let response = match (self.receive(), &sent) {
                (Ok(response), _) => response,
                (Err(error), Ok(())) => return Err(self.lost(error)),
                (Err(_), Err(error)) => {
                    return Err(self.lost(io::Error::new(error.kind(), error.to_string())));
                }
            };
            if may_ask_again && matches!(response, Response::Refused { errno: nix::libc::EBUSY, .. }) {
                // This connection had to give way to others before the request was looked at.
                self.stream = connect(&self.path)?;
                (sent, may_ask_again) = (self.send(request), false);
                continue;
            }
            may_ask_again = false;
            let last = response.is_last();
            if let Err(error) = part(response) {
                // The rest of the answer is of no interest; the next request gets a connection of its own.
                self.stream = connect(&self.path)?;
                return Err(error);
            }
            if last {
                return Ok(());
            }
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).map_err(|error| {
        let at = path.display();
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no shunt daemon answers at {at}: {}", plain(&error))
            }
            io::ErrorKind::PermissionDenied => {
                format!("the socket {at} is its owner's and group's only: {}", plain(&error))
            }
            _ => format!("cannot connect to the shunt daemon at {at}: {}", plain(&error)),
        };
        io::Error::new(error.kind(), why)
    })?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    Ok(stream)
}

/// The system's words without Rust's number behind them.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_string(),
        None => error.to_string(),
    }
}
