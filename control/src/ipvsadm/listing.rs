//! The listings: asked for, put in order where that is wanted, and printed as they come.
//!
//! A listing's head is printed with its first entry, or at its end if it has none, so that what is refused prints nothing. Only what must
//! be sorted is kept until all of it is there.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    Tool, backend,
    failure::Failure,
    fullnat, order,
    parse::{Listing, Table},
    print,
};
use crate::{
    api::{Request, Response, ServiceEntry, ServiceKey},
    json,
};

impl Tool<'_> {
    /// `-L`.
    pub(super) fn list(&mut self, listing: &Listing) -> Result<(), Failure> {
        match &listing.what {
            Table::Timeouts => {
                let timeouts = backend::timeouts(self.backend)?;
                match listing.json {
                    true => json::document(self.stdout, "timeouts", &json::TimeoutSeconds::from(&timeouts))?,
                    false => print::timeouts(self.stdout, &timeouts)?,
                }
            }
            Table::Daemons => {
                let daemons = backend::daemons(self.backend)?;
                if listing.json {
                    let daemons: Vec<_> = daemons.iter().map(json::Daemon::from).collect();
                    json::document(self.stdout, "daemons", &daemons)?;
                } else {
                    daemons.iter().try_for_each(|daemon| print::daemon(self.stdout, daemon))?;
                }
            }
            Table::Connections { engines } => self.list_connections(listing, *engines)?,
            Table::Services(key) => self.list_services(listing, *key)?,
        }
        Ok(())
    }

    fn list_connections(&mut self, listing: &Listing, engines: bool) -> Result<(), Failure> {
        let mut names = self.printed(listing.numeric);
        let mut sheet = match listing.json {
            true => Sheet::json(self.stdout, "connections", |c| json::Connection::new(c, &mut names)),
            false => Sheet::text(
                self.stdout,
                |out| print::connection_titles(out, engines),
                |out, c| print::connection(out, c, engines, &mut names),
            ),
        };
        backend::ask(self.backend, &Request::Connections, &mut |response| {
            let Response::Connections(part) = response else { return Err(backend::unexpected()) };
            part.iter().try_for_each(|connection| sheet.row(connection))
        })?;
        Ok(sheet.end()?)
    }

    fn list_services(&mut self, listing: &Listing, key: Option<ServiceKey>) -> Result<(), Failure> {
        let mut names = self.printed(listing.numeric);
        let size = match key.is_none() && !listing.json {
            true => Some(backend::table_size(self.backend)?),
            false => None,
        };
        let head = |out: &mut dyn Write| {
            size.map_or(Ok(()), |size| print::banner(out, size))?;
            print::titles(out, listing.layout)
        };
        let mut sheet = match listing.json {
            true => Sheet::json(self.stdout, "services", |entry| json::Service::new(entry, &mut names)),
            false => {
                Sheet::text(self.stdout, head, |out, entry| print::service(out, entry, listing, &mut names))
            }
        };

        let request = Request::Services(key);
        if listing.sorted {
            let mut services = backend::services(self.backend, &request)?;
            sort(&mut services);
            services.iter().try_for_each(|entry| sheet.row(entry))?;
        } else {
            let mut coming: Vec<ServiceEntry> = Vec::new();
            backend::ask(self.backend, &request, &mut |response| {
                let Response::Services(part) = response else { return Err(backend::unexpected()) };
                ServiceEntry::gather(&mut coming, part);
                // The last one may go on in the next message.
                let whole = coming.len().saturating_sub(1);
                coming.drain(..whole).try_for_each(|entry| sheet.row(&entry))
            })?;
            coming.iter().try_for_each(|entry| sheet.row(entry))?;
        }
        Ok(sheet.end()?)
    }

    /// `-G`.
    pub(super) fn locals(
        &mut self,
        service: Option<ServiceKey>,
        numeric: bool,
        json: bool,
    ) -> Result<(), Failure> {
        let mut names = self.printed(numeric);
        let mut entries = backend::locals(self.backend, service)?;
        order::locals(&mut entries);
        let mut sheet = match json {
            true => Sheet::json(self.stdout, "local_addresses", |entry| json::Locals::new(entry, &mut names)),
            false => {
                Sheet::text(self.stdout, fullnat::title, |out, entry| fullnat::locals(out, entry, &mut names))
            }
        };
        entries.iter().try_for_each(|entry| sheet.row(entry))?;
        Ok(sheet.end()?)
    }
}

/// Puts services and their servers into the order of the original.
pub(super) fn sort(services: &mut Vec<ServiceEntry>) {
    order::services(services);
    for service in services {
        order::servers(&mut service.servers);
    }
}

/// What prints a listing's head.
type Head<'s> = Box<dyn FnMut(&mut dyn Write) -> io::Result<()> + 's>;
/// What prints an entry.
type Row<'s, T> = Box<dyn FnMut(&mut dyn Write, &T) -> io::Result<()> + 's>;

/// A listing on its way out.
struct Sheet<'s, T> {
    out: &'s mut dyn Write,
    head: Head<'s>,
    row: Row<'s, T>,
    foot: &'static str,
    is_begun: bool,
}

impl<'s, T> Sheet<'s, T> {
    /// One for people.
    fn text(
        out: &'s mut dyn Write,
        head: impl FnMut(&mut dyn Write) -> io::Result<()> + 's,
        row: impl FnMut(&mut dyn Write, &T) -> io::Result<()> + 's,
    ) -> Self {
        Sheet { out, head: Box::new(head), row: Box::new(row), foot: "", is_begun: false }
    }

    /// One for programs, under this name; `form` makes of an entry what is printed of it.
    fn json<S: Serialize>(
        out: &'s mut dyn Write,
        name: &'static str,
        mut form: impl FnMut(&T) -> S + 's,
    ) -> Self {
        let mut is_first = true;
        let row = move |out: &mut dyn Write, entry: &T| {
            json::entry(out, std::mem::take(&mut is_first), &form(entry))
        };
        Sheet {
            out,
            head: Box::new(move |out| json::open(out, name)),
            row: Box::new(row),
            foot: json::CLOSE,
            is_begun: false,
        }
    }

    fn row(&mut self, entry: &T) -> io::Result<()> {
        self.begin()?;
        (self.row)(self.out, entry)
    }

    fn end(mut self) -> io::Result<()> {
        self.begin()?;
        self.out.write_all(self.foot.as_bytes())
    }

    fn begin(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_begun, true) {
            (self.head)(self.out)?;
        }
        Ok(())
    }
}
