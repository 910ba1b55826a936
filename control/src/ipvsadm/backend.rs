//! Who answers requests: the daemon behind its socket, or rules in memory.

use std::io;

use super::failure::Failure;
use crate::{
    api::{LocalEntry, Request, Response, ServiceEntry, ServiceKey, Status, SyncDaemon, Timeouts},
    rules::{Change, Rules},
};

/// Something that answers requests.
pub trait Backend {
    /// Sends a request and hands over the messages of its answer as they come. An error of `part` ends the listing and
    /// is handed back. A backend that cannot be reached is an error, too; a refusal is not, it is a message.
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// The connection tables of kernel IPVS have this many buckets unless told otherwise; rules in memory say the same.
const TABLE_SIZE: u64 = 4096;

/// Rules alone: no connections, all counters zero.
impl Backend for Rules {
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        let change = match self.apply(request) {
            Ok(change) => change,
            Err(refusal) => return part(refusal.into()),
        };
        match (change, request) {
            (Change::Nothing, Request::Services(key)) => {
                part(self.entries(key.as_ref()).map_or_else(Response::from, Response::Services))?;
                part(Response::Done)
            }
            (Change::Nothing, Request::Locals(key)) => {
                part(self.locals(key.as_ref()).map_or_else(Response::from, Response::Locals))?;
                part(Response::Done)
            }
            (Change::Nothing, Request::Timeouts) => part(Response::Timeouts(self.timeouts())),
            (Change::Nothing, Request::Sysctls(name)) => {
                part(self.listed_sysctls(name.as_deref()).map_or_else(Response::from, Response::Sysctls))
            }
            (Change::Nothing, Request::Marks) => part(Response::Marks(self.marks().to_vec())),
            (Change::Nothing, Request::Daemons) => part(Response::Daemons(Vec::new())),
            (Change::Nothing, Request::Status) => part(Response::Status(Status {
                version: env!("CARGO_PKG_VERSION").to_string(),
                table_size: TABLE_SIZE,
                ..Status::default()
            })),
            _ => part(Response::Done),
        }
    }
}

/// Sends a request, hands on what it is answered with, and makes a refusal the failure it is to a user.
pub(super) fn ask(
    backend: &mut dyn Backend,
    request: &Request,
    take: &mut dyn FnMut(Response) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut refusal = None;
    backend.request(request, &mut |response| match response {
        Response::Refused { errno, why } => {
            refusal = Some(Failure::refused(request, errno, &why));
            Ok(())
        }
        Response::Done => Ok(()),
        other => take(other),
    })?;
    refusal.map_or(Ok(()), Err)
}

/// All services asked for, those that came in several parts put together again.
pub(super) fn services(backend: &mut dyn Backend, request: &Request) -> Result<Vec<ServiceEntry>, Failure> {
    let mut services: Vec<ServiceEntry> = Vec::new();
    ask(backend, request, &mut |response| {
        let Response::Services(part) = response else { return Err(unexpected()) };
        ServiceEntry::gather(&mut services, part);
        Ok(())
    })?;
    Ok(services)
}

/// The local addresses of one service or of all, those that came in several parts put together again.
pub(super) fn locals(
    backend: &mut dyn Backend,
    service: Option<ServiceKey>,
) -> Result<Vec<LocalEntry>, Failure> {
    let mut services: Vec<LocalEntry> = Vec::new();
    ask(backend, &Request::Locals(service), &mut |response| {
        let Response::Locals(part) = response else { return Err(unexpected()) };
        for entry in part {
            match services.last_mut() {
                Some(last) if last.service == entry.service => last.addresses.extend(entry.addresses),
                _ => services.push(entry),
            }
        }
        Ok(())
    })?;
    Ok(services)
}

/// The timeouts in force.
pub(super) fn timeouts(backend: &mut dyn Backend) -> Result<Timeouts, Failure> {
    one(backend, &Request::Timeouts, |response| match response {
        Response::Timeouts(timeouts) => Some(timeouts),
        _ => None,
    })
}

/// The synchronisation daemons.
pub(super) fn daemons(backend: &mut dyn Backend) -> Result<Vec<SyncDaemon>, Failure> {
    one(backend, &Request::Daemons, |response| match response {
        Response::Daemons(daemons) => Some(daemons),
        _ => None,
    })
}

/// The `size=` of a listing.
pub(super) fn table_size(backend: &mut dyn Backend) -> Result<u64, Failure> {
    one(backend, &Request::Status, |response| match response {
        Response::Status(status) => Some(status.table_size),
        _ => None,
    })
}

fn one<T>(
    backend: &mut dyn Backend,
    request: &Request,
    pick: impl Fn(Response) -> Option<T>,
) -> Result<T, Failure> {
    let mut answer = None;
    ask(backend, request, &mut |response| {
        answer = pick(response);
        Ok(())
    })?;
    answer.ok_or_else(|| Failure::from(unexpected()))
}

pub(super) fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the daemon's answer does not fit the request")
}
