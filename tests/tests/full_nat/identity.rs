//! Whatever a client sends: a server that turns it round is heard as if nobody were between them.

use proptest::prelude::*;
use shunt_tests::bench::Bench;
use shunt_tests::segment::{Pair, Segment};

/// How servers are told of clients.
const TOLD: [&str; 4] = ["--toa disable", "", "--proxy-protocol v1", "--proxy-protocol v2"];

/// A TCP option, or what a broken host takes for one.
#[derive(Clone, Debug)]
enum Item {
    NoOperation,
    Timestamps(u64),
    Acknowledged(Vec<u32>),
    Unknown(u8, Vec<u8>),
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        Just(Item::NoOperation),
        any::<u64>().prop_map(Item::Timestamps),
        prop::collection::vec(any::<u32>(), 2..=4).prop_map(Item::Acknowledged),
        (9u8..200, prop::collection::vec(any::<u8>(), 0..6))
            .prop_map(|(kind, bytes)| Item::Unknown(kind, bytes)),
    ]
}

/// The options, as many as fit with twenty more; what is acknowledged selectively moved on by `by`.
fn options(items: &[Item], by: u32) -> Vec<u8> {
    let mut options: Vec<u8> = Vec::new();
    for item in items {
        let bytes = match item {
            Item::NoOperation => vec![1],
            Item::Timestamps(both) => [&[8, 10][..], &both.to_be_bytes()].concat(),
            Item::Acknowledged(edges) => {
                let moved = edges.iter().flat_map(|edge| edge.wrapping_add(by).to_be_bytes());
                [5, 2 + 4 * edges.len() as u8].into_iter().chain(moved).collect()
            }
            Item::Unknown(kind, bytes) => [&[*kind, 2 + bytes.len() as u8][..], bytes].concat(),
        };
        if options.len() + bytes.len() <= 20 {
            options.extend(bytes);
        }
    }
    options.resize(options.len().next_multiple_of(4), 1);
    options
}

/// A segment of the client's: its number beyond the first one, what it acknowledges, flags, options, data.
type Sent = (u32, u32, u8, Vec<Item>, Vec<u8>);

fn sent() -> impl Strategy<Value = Sent> {
    let number = prop_oneof![Just(0), 0u32..4, any::<u32>()];
    // All flags but SYN and RST.
    let flags = prop::sample::select(vec![0x10, 0x18, 0x11, 0x30, 0x19]);
    let data = prop::collection::vec(any::<u8>(), 0..400);
    (number, any::<u32>(), flags, prop::collection::vec(item(), 0..4), data)
}

proptest! {
    #[test]
    fn a_server_that_turns_round_what_it_gets_is_heard_saying_it(
        told in 0usize..4, client_is_v4 in any::<bool>(), server_is_v4 in any::<bool>(), first in any::<u32>(),
        all in prop::collection::vec(sent(), 1..20),
    ) {
        let mut pair = Pair::between(Bench::default(), client_is_v4, server_is_v4, TOLD[told]);
        let syn = pair.request("S", first.wrapping_sub(1), 0);
        pair.to_server(&syn);
        let answer = pair.reply("SA", 5000, first);
        pair.to_client(&answer);
        let ack = pair.request("A", first, 5001);
        let header = pair.to_server(&ack)[0].data.len() as u32;
        prop_assert_eq!(header > 0, told >= 2);
        let ack = pair.reply("A", 5001, first.wrapping_add(header));
        prop_assert_eq!(pair.to_client(&ack)[0].acknowledges, first);

        for (further, acknowledges, flags, items, data) in all {
            let number = first.wrapping_add(further);
            let plain = options(&items, 0);
            let mut segment = pair.request("", number, acknowledges).options(&plain).data(&data);
            segment.flags = flags;
            let arrived = pair.to_server(&segment);
            prop_assert_eq!(arrived.len(), 1);
            let arrived = &arrived[0];
            prop_assert_eq!(arrived.number, number.wrapping_add(header));
            prop_assert_eq!((arrived.acknowledges, arrived.flags), (acknowledges, flags));
            prop_assert_eq!(&arrived.data, &data);
            let is_told = told == 1 && further == 0 && flags & 1 == 0;
            let option = if !is_told { 0 } else if client_is_v4 { 8 } else { 20 };
            prop_assert_eq!(&arrived.options[option..], &plain[..]);

            let turned = Segment {
                from: arrived.to,
                to: arrived.from,
                number: arrived.acknowledges,
                acknowledges: arrived.number,
                options: options(&items, header),
                ..arrived.clone()
            };
            let heard = pair.to_client(&turned);
            let expected = Segment {
                from: segment.to,
                to: segment.from,
                number: segment.acknowledges,
                acknowledges: segment.number,
                ..segment
            };
            prop_assert_eq!(heard, vec![expected]);
        }
    }
}
