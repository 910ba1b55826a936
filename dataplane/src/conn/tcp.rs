//! TCP states as IPVS keeps them: a table of what each event does in each state, by the side it came from.
//!
//! IPVS does not follow sequence numbers. It looks at one flag a packet, the first of RST, SYN, FIN, ACK that is set, and at who sent
//! it; a packet with none of them closes. A director that sees only the client's half (DR, tunnels) guesses the server's
//! half from a third table, until a reply is seen.
//!
//! Source: kernel `ip_vs_proto_tcp.c`, as written down in states and timeouts of the IPVS reference and recorded in
//! `tests/golden/states.json`.

use zerocopy::{FromZeros, Immutable};

use crate::packet::parse::tcp_flags;

/// States of a connection, TCP's and the one of UDP, under the names of `ipvsadm -Lc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros, Immutable)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names of RFC 9293")]
pub enum State {
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
}

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

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

/// Rows: SYN, FIN, ACK, RST. Columns: the state before, in the order of [`State`] without UDP.
type Table = [[State; 11]; 4];

#[rustfmt::skip]
const INPUT: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /*fin*/ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
];

#[rustfmt::skip]
const OUTPUT: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
    /*fin*/ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /*rst*/ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const INPUT_ONLY: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /*fin*/ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

impl State {
    /// Every state, in order.
    pub const ALL: [State; 12] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA, State::Udp];

    /// The state after a TCP packet.
    #[inline]
    pub fn after(self, side: Side, flags: u8) -> State {
        let event = if flags & tcp_flags::RST != 0 {
            3
        } else if flags & tcp_flags::SYN != 0 {
            0
        } else if flags & tcp_flags::FIN != 0 {
            1
        } else if flags & tcp_flags::ACK != 0 {
            2
        } else {
            return State::Close;
        };
        let table = match side {
            Side::Input => &INPUT,
            Side::Output => &OUTPUT,
            Side::InputOnly => &INPUT_ONLY,
        };
        // A UDP connection never gets here; the bound keeps the index in the table all the same.
        table[event][(self as usize).min(10)]
    }

    /// Whether IPVS counts a connection in this state as active. Half-open ones are; UDP and closing ones are not.
    #[inline]
    pub fn is_active(self) -> bool {
        matches!(self, State::Established | State::SynSent | State::SynRecv | State::SynAck)
    }

    /// Whether a SYN finds the connection over and done with, so that it may start a new one on another real server
    /// (`conn_reuse_mode` 1, the default).
    #[inline]
    pub fn is_over(self) -> bool {
        matches!(self, State::TimeWait | State::Close)
    }

    /// The name in listings.
    pub fn name(self) -> &'static str {
        match self {
            State::None => "NONE",
            State::Established => "ESTABLISHED",
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
        }
    }
}
