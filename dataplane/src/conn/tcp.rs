//! TCP states as IPVS keeps them: a table of what each event does in each state, by the side it came from.
//!
//! IPVS does not follow sequence numbers. It looks at one flag a packet, the first of RST, SYN, FIN, ACK that is set, and at who sent
//! it; a packet with none of them closes. A director that sees only the client's half (DR, tunnels) guesses the server's
//! half from a third table, until a reply is seen.
//!
//! Source: kernel `ip_vs_proto_tcp.c`, as written down in states and timeouts of the IPVS reference and recorded in
//! `tests/golden/states.json`.

use super::state::{Side, State};
use crate::packet::parse::tcp_flags;

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// Rows: SYN, FIN, ACK, RST. Columns: the state before, in the order of [`State`].
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

/// Under `secure_tcp` a client's acknowledgement establishes nothing: only what the real server does.
#[rustfmt::skip]
const SECURE_INPUT: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
    /*fin*/ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
    /*ack*/ [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

#[rustfmt::skip]
const SECURE_OUTPUT: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
    /*fin*/ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /*rst*/ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const SECURE_INPUT_ONLY: Table = [
    //       NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
    /*fin*/ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

/// The state after a TCP packet with these flags.
#[inline]
pub fn after(state: State, side: Side, flags: u8, is_secure: bool) -> State {
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
    let table = match (side, is_secure) {
        (Side::Input, false) => &INPUT,
        (Side::Output, false) => &OUTPUT,
        (Side::InputOnly, false) => &INPUT_ONLY,
        (Side::Input, true) => &SECURE_INPUT,
        (Side::Output, true) => &SECURE_OUTPUT,
        (Side::InputOnly, true) => &SECURE_INPUT_ONLY,
    };
    // A connection of another protocol never gets here; the bound keeps the index in the table all the same.
    table[event][(state as usize).min(10)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the director's short way takes for granted.
    #[test]
    fn an_acknowledgement_leaves_an_established_connection_established_whoever_sends_it() {
        for side in [Side::Input, Side::Output, Side::InputOnly] {
            for is_secure in [false, true] {
                let new = after(State::Established, side, tcp_flags::ACK | tcp_flags::PSH, is_secure);
                assert_eq!(new, State::Established, "{side:?}, {is_secure}");
            }
        }
    }
}
