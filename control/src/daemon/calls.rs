//! Requests on their way from clients to control, and answers on their way back.
//!
//! Control answers one question at a time and must never wait for a client, nor keep a listing for one. So a client's own task asks for a long
//! listing page by page, at the client's pace: services as they were when it began, with counters as they are now, and connections from
//! where the last page ended. Between two pages control does other things.

use std::sync::Arc;

use shunt_dataplane::director::Listed;
use tokio::sync::{mpsc, oneshot};

use super::engine::Cursor;
use crate::api::{ConnectionEntry, LocalEntry, Request, Response, ServiceEntry};
use crate::rules::Service;
use crate::socket::{self, Gone, Handler, Reply};

/// Questions that wait for control; more wait at their clients.
const WAITING: usize = 16;

/// What a client's task asks of control.
pub enum Question {
    /// What the client asks for.
    Request(Request),
    /// To count what these services and their servers did.
    Count(Vec<ServiceEntry>),
    /// A page of connections.
    Connections(Cursor),
}

/// A question, and where its answer goes.
pub struct Call {
    /// What is asked.
    pub question: Question,
    /// Where to answer.
    pub answer: oneshot::Sender<Answer>,
}

/// An answer.
pub enum Answer {
    /// A single message.
    Message(Response),
    /// The services to list.
    Services(Vec<Arc<Service>>),
    /// A page of services, with their counters.
    Counted(Vec<ServiceEntry>),
    /// A listing of local addresses.
    Locals(Vec<LocalEntry>),
    /// Connections are to be listed from here on.
    Connections(Cursor),
    /// A page of connections, and where the next one begins if there is one.
    Page(Vec<Listed>, Option<Cursor>),
}

/// The clients' end.
pub struct Calls(mpsc::Sender<Call>);

/// Both ends.
pub fn channel() -> (Calls, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Calls(sender), receiver)
}

impl Handler for Calls {
    async fn handle(&self, request: Request, reply: Reply) {
        // Without a last message the client is told that there is no answer; one that has gone needs no rest of it.
        let Some(answer) = self.ask(Question::Request(request)).await else { return };
        let _ = match answer {
            Answer::Message(response) => reply.send(response).await,
            Answer::Locals(entries) => reply.send_all(socket::locals(entries)).await,
            Answer::Services(services) => self.services(services, &reply).await,
            Answer::Connections(from) => self.connections(from, &reply).await,
            Answer::Counted(_) | Answer::Page(..) => Ok(()),
        };
    }
}

impl Calls {
    /// Control's answer; none when control is stopping.
    async fn ask(&self, question: Question) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call { question, answer }).await.ok()?;
        answered.await.ok()
    }

    async fn services(&self, services: Vec<Arc<Service>>, reply: &Reply) -> Result<(), Gone> {
        for page in socket::service_pages(services.into_iter().map(|service| service.entry())) {
            let Some(Answer::Counted(page)) = self.ask(Question::Count(page)).await else { return Ok(()) };
            reply.send(Response::Services(page)).await?;
        }
        reply.send(Response::Done).await
    }

    async fn connections(&self, from: Cursor, reply: &Reply) -> Result<(), Gone> {
        let (mut from, mut found) = (Some(from), Vec::new());
        while let Some(cursor) = from {
            match self.ask(Question::Connections(cursor)).await {
                Some(Answer::Page(page, next)) => {
                    found.extend(page);
                    from = next;
                }
                Some(Answer::Message(refused)) => return reply.send(refused).await,
                _ => return Ok(()),
            }
            // An old table may have few connections on many pages.
            if found.len() >= socket::LINES || from.is_none() {
                for message in socket::connections(found.drain(..).map(|listed| connection(&listed))) {
                    reply.send(message).await?;
                }
            }
        }
        reply.send(Response::Done).await
    }
}

fn connection(listed: &Listed) -> ConnectionEntry {
    let protocol = match listed.protocol {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        // A template for packets of all protocols.
        _ => "IP",
    };
    ConnectionEntry {
        protocol: protocol.to_owned(),
        expires: listed.left / 1000,
        state: listed.state.name().to_owned(),
        client: listed.client,
        service: listed.service,
        server: listed.server,
        engine: listed.call.as_ref().map(|id| ("sip".to_owned(), id.to_string())),
        is_template: listed.is_template,
    }
}
