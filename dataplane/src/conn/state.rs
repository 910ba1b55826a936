//! The states that a connection goes through, of all protocols in one list, so that a state alone tells its timeout, its name and whether it
//! counts as active. What leads from one to the next is each protocol's own: [`tcp`](super::tcp), [`sctp`](super::sctp).

use zerocopy::{FromZeros, Immutable};

use super::Direction;

/// States of a connection: TCP's, the one of UDP, SCTP's; and what becomes of a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros, Immutable)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names of RFC 9293, and the kernel's for SCTP")]
pub enum State {
    /// Before its first packet was followed. All protocols begin here.
    #[default]
    None,
    Established,
    SynSent,
    SynRecv,
    FinWait,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    SynAck,
    /// Any UDP flow.
    Udp,
    Init1,
    Init,
    CookieSent,
    CookieReplied,
    CookieWait,
    Cookie,
    CookieEchoed,
    /// SCTP's ESTABLISHED. It has a timeout of its own, which `ipvsadm --set` does not touch.
    Associated,
    ShutdownSent,
    ShutdownReceived,
    ShutdownAckSent,
    Rejected,
    Closed,
    /// A template that a connection has been established by.
    Assured,
}

/// Who sent a packet, as far as the director can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client, on a connection whose replies the director sees.
    Input,
    /// The real server.
    Output,
    /// The client, on a connection whose replies the director does not see.
    InputOnly,
}

impl State {
    /// Every state, in order.
    pub const ALL: [State; 26] = [
        State::None,
        State::Established,
        State::SynSent,
        State::SynRecv,
        State::FinWait,
        State::TimeWait,
        State::Close,
        State::CloseWait,
        State::LastAck,
        State::Listen,
        State::SynAck,
        State::Udp,
        State::Init1,
        State::Init,
        State::CookieSent,
        State::CookieReplied,
        State::CookieWait,
        State::Cookie,
        State::CookieEchoed,
        State::Associated,
        State::ShutdownSent,
        State::ShutdownReceived,
        State::ShutdownAckSent,
        State::Rejected,
        State::Closed,
        State::Assured,
    ];

    /// Whether IPVS counts a connection in this state as active. TCP's half-open ones are; SCTP's, UDP and closing ones are not.
    #[inline]
    pub fn is_active(self) -> bool {
        matches!(
            self,
            State::Established | State::SynSent | State::SynRecv | State::SynAck | State::Associated
        )
    }

    /// Whether a packet that goes this way and leads to this state shows that the real server serves the client.
    #[inline]
    pub fn is_established(self, direction: Direction) -> bool {
        match self {
            State::Udp => direction == Direction::Reply,
            state => matches!(state, State::Established | State::Associated),
        }
    }

    /// Whether the connection is over and done with, so that a packet which may begin one begins a new one, perhaps on
    /// another real server.
    #[inline]
    pub fn is_over(self) -> bool {
        matches!(self, State::TimeWait | State::Close | State::Closed)
    }

    /// The name in listings (`ipvsadm -Lc`).
    pub fn name(self) -> &'static str {
        match self {
            State::None => "NONE",
            State::Established | State::Associated => "ESTABLISHED",
            State::SynSent => "SYN_SENT",
            State::SynRecv => "SYN_RECV",
            State::FinWait => "FIN_WAIT",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::Listen => "LISTEN",
            State::SynAck => "SYNACK",
            State::Udp => "UDP",
            State::Init1 => "INIT1",
            State::Init => "INIT",
            State::CookieSent => "C-SENT",
            State::CookieReplied => "C-REPLIED",
            State::CookieWait => "C-WAIT",
            State::Cookie => "COOKIE",
            State::CookieEchoed => "C-ECHOED",
            State::ShutdownSent => "S-SENT",
            State::ShutdownReceived => "S-RECEIVED",
            State::ShutdownAckSent => "S-ACK-SENT",
            State::Rejected => "REJECTED",
            State::Closed => "CLOSED",
            State::Assured => "ASSURED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order() {
        assert!(State::ALL.iter().enumerate().all(|(n, state)| n == *state as usize));
    }
}
