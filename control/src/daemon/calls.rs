//! Requests on their way from clients to control, and answers on their way back.
//!
//! Control answers one request at a time and must never wait for a client. So an answer comes to the client's own task as a whole, in the
//! workers' compact form, and is cut into messages there, at the client's pace.

use shunt_dataplane::director::Listed;
use tokio::sync::{mpsc, oneshot};

use crate::api::{ConnectionEntry, LocalEntry, Request, Response, ServiceEntry};
use crate::socket::{self, Handler, Reply};

/// Requests that wait for control; more wait at their clients.
const WAITING: usize = 16;

/// A request, and where its answer goes.
pub struct Call {
    /// What is asked for.
    pub request: Request,
    /// Where to answer.
    pub answer: oneshot::Sender<Answer>,
}

/// An answer.
pub enum Answer {
    /// A single message.
    Message(Response),
    /// A listing of services.
    Services(Vec<ServiceEntry>),
    /// A listing of local addresses.
    Locals(Vec<LocalEntry>),
    /// A listing of connections.
    Connections(Vec<Listed>),
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
        let (answer, answered) = oneshot::channel();
        if self.0.send(Call { request, answer }).await.is_err() {
            // Control is stopping; without a last message the client is told that there is no answer.
            return;
        }
        let Ok(answer) = answered.await else { return };
        // A client that has gone needs no rest of an answer.
        let _ = match answer {
            Answer::Message(response) => reply.send(response).await,
            Answer::Services(entries) => reply.send_all(socket::services(entries)).await,
            Answer::Locals(entries) => reply.send_all(socket::locals(entries)).await,
            Answer::Connections(list) => {
                reply.send_all(socket::connections(list.iter().map(connection))).await
            }
        };
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
