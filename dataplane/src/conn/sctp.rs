//! SCTP states as IPVS keeps them: a table of what each chunk does in each state, by the side it came from.
//!
//! IPVS looks at a packet's first chunk only, except that an ABORT behind a cookie counts (RFC 9260 §3.3.7 lets it stand there).
//! It follows no tags and no sequence numbers. As with TCP, a third table is for a director that sees only the client's half.
//!
//! Source: kernel `ip_vs_proto_sctp.c`, as recorded in `tests/golden/states.json`.

use super::state::{Side, State};
use crate::packet::parse::chunks;

use State::{
    Associated as ES, Closed as CL, Cookie as CO, CookieEchoed as CE, CookieReplied as CR, CookieSent as CS,
    CookieWait as CW, Init as IN, Init1 as I1, Rejected as RJ, ShutdownAckSent as SA, ShutdownReceived as SR,
    ShutdownSent as SS,
};

/// Rows: what a chunk means, as in [`event`]. Columns: the state before, the first one [`State::None`], then in the order of [`State`].
type Table = [[State; 14]; 10];

#[rustfmt::skip]
const INPUT: Table = [
    //        NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    /*d   */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*i   */ [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
    /*i_a */ [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*c_e */ [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*c_a */ [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
    /*s   */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /*s_a */ [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
    /*s_c */ [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
    /*err */ [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
    /*ab  */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const OUTPUT: Table = [
    //        NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    /*d   */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*i   */ [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
    /*i_a */ [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*c_e */ [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
    /*c_a */ [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
    /*s   */ [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
    /*s_a */ [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
    /*s_c */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*err */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*ab  */ [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const INPUT_ONLY: Table = [
    //        NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    /*d   */ [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*i   */ [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
    /*i_a */ [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*c_e */ [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*c_a */ [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
    /*s   */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /*s_a */ [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
    /*s_c */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
    /*err */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*ab  */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

/// The state after an SCTP packet with this [chunk](crate::packet::Meta::flags).
#[inline]
pub fn after(state: State, side: Side, chunk: u8) -> State {
    let table = match side {
        Side::Input => &INPUT,
        Side::Output => &OUTPUT,
        Side::InputOnly => &INPUT_ONLY,
    };
    // A connection of another protocol never gets here; it would be taken for a new one.
    let column = (state as usize + 1).saturating_sub(State::Init1 as usize).min(13);
    table[event(chunk)][column]
}

/// The row of a chunk.
#[inline]
fn event(chunk: u8) -> usize {
    match chunk {
        chunks::INIT => 1,
        chunks::INIT_ACK => 2,
        chunks::COOKIE_ECHO => 3,
        chunks::COOKIE_ACK => 4,
        chunks::SHUTDOWN => 5,
        chunks::SHUTDOWN_ACK => 6,
        chunks::SHUTDOWN_COMPLETE => 7,
        chunks::ERROR => 8,
        chunks::ABORT | chunks::COOKIE_AND_ABORT => 9,
        // SACK, HEARTBEAT and all that came later, too.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows chunks from a new connection on; a side and a chunk each.
    fn life(chunks: &[(Side, u8)]) -> Vec<&'static str> {
        let mut state = State::None;
        let follow = |(side, chunk): &(Side, u8)| {
            state = after(state, *side, *chunk);
            state.name()
        };
        chunks.iter().map(follow).collect()
    }

    #[test]
    fn an_association_by_nat_and_by_direct_routing() {
        use Side::{Input, InputOnly, Output};
        assert_eq!(
            life(&[
                (Input, 1),
                (Output, 2),
                (Input, 10),
                (Output, 11),
                (Input, 0),
                (Input, 7),
                (Output, 8),
                (Input, 14)
            ]),
            [
                "INIT1",
                "C-SENT",
                "C-REPLIED",
                "ESTABLISHED",
                "ESTABLISHED",
                "S-RECEIVED",
                "S-ACK-SENT",
                "CLOSED"
            ]
        );
        assert_eq!(
            life(&[
                (InputOnly, 1),
                (InputOnly, 10),
                (InputOnly, 3),
                (InputOnly, 7),
                (InputOnly, 14),
                (InputOnly, 1)
            ]),
            ["INIT1", "ESTABLISHED", "ESTABLISHED", "S-RECEIVED", "CLOSED", "INIT"]
        );
    }

    #[test]
    fn an_abort_behind_a_cookie_closes() {
        assert_eq!(after(State::CookieSent, Side::Input, chunks::COOKIE_AND_ABORT), State::Closed);
        assert_eq!(after(State::CookieWait, Side::Input, chunks::ABORT), State::Rejected);
    }

    #[test]
    fn a_chunk_nobody_knows_is_data() {
        assert_eq!(after(State::None, Side::Input, 64), State::Associated);
        assert_eq!(after(State::Closed, Side::Input, 64), State::Closed);
    }
}
