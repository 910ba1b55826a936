use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::ipvsadm::address::{Names, Services};
use crate::ipvsadm::parse::Table;

fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    print(&mut out).expect("a vector takes all");
    String::from_utf8(out).expect("listings are text")
}

fn sample() -> ServiceEntry {
    let stats = Stats {
        conns: 12345,
        in_packets: 123_456_789,
        out_packets: 99_999_999,
        in_bytes: 1_234_567_890_123,
        out_bytes: 98_765_432_109_876,
        rates: [100_000_000, 3456, 7890, 1_234_567, 987_654_321],
    };
    ServiceEntry {
        config: ServiceConfig::new(
            ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 0, 0, 10].into(), port: 80 },
            "wrr",
        ),
        stats,
        servers: vec![ServerEntry {
            config: crate::api::ServerConfig {
                key: ServerKey { address: [192, 168, 1, 11].into(), port: 8080 },
                forwarding: Forwarding::Masq,
                weight: 3,
                upper_threshold: 1000,
                lower_threshold: 800,
            },
            active: 120,
            inactive: 45,
            persistent: 3,
            stats,
        }],
    }
}

fn plain() -> Listing {
    Listing {
        what: Table::Services(None),
        layout: Layout::Plain,
        numeric: true,
        exact: false,
        sorted: true,
        shows_full_nat: false,
        json: false,
    }
}

#[test]
fn a_full_nat_server_has_a_name_that_every_tool_knows_unless_its_own_is_asked_for() {
    let mut entry = sample();
    entry.servers[0].config.forwarding = Forwarding::FullNat;
    let rows = |layout, shows_full_nat| {
        let listing = Listing { layout, shows_full_nat, ..plain() };
        printed(|out| service(out, &entry, &listing, &mut Printed::numeric()))
    };
    for layout in [Layout::Plain, Layout::TunInfo] {
        let (told, shown) = (rows(layout, false), rows(layout, true));
        assert!(told.contains(" Masq    ") && !told.contains("FullNat"), "{told}");
        assert_eq!(shown, told.replace(" Masq    ", " FullNat "));
    }
}

#[test]
fn numbers_are_scaled_by_thousands_from_nine_digits_on() {
    for (number, text) in [
        (0, "        0"),
        (99_999_999, " 99999999"),
        (100_000_000, "  100000K"),
        (999_999_999, "  999999K"),
        (1_000_000_000, "    1000M"),
        (99_999_999_999, "   99999M"),
        (100_000_000_000, "     100G"),
        (99_999_999_999_999, "   99999G"),
        (100_000_000_000_000, "     100T"),
    ] {
        assert_eq!(scaled(number), text);
    }
}

#[test]
fn each_layout_has_its_columns() {
    let rows = |layout, exact| {
        let listing = Listing { layout, exact, ..plain() };
        printed(|out| service(out, &sample(), &listing, &mut Printed::numeric()))
    };
    for (layout, exact, text) in [
        (
            Layout::Plain,
            false,
            "TCP  10.0.0.10:80 wrr\n  -> 192.168.1.11:8080            Masq    3      120        45        \n",
        ),
        (
            Layout::Stats,
            false,
            "TCP  10.0.0.10:80                    12345  123456K 99999999    1234G   98765G\n  -> \
             192.168.1.11:8080               12345  123456K 99999999    1234G   98765G\n",
        ),
        (
            Layout::Stats,
            true,
            "TCP  10.0.0.10:80                    12345 123456789 99999999 1234567890123 98765432109876\n  -> \
             192.168.1.11:8080               12345 123456789 99999999 1234567890123 98765432109876\n",
        ),
        (
            Layout::Rate,
            false,
            "TCP  10.0.0.10:80                  100000K     3456     7890  1234567  987654K\n  -> \
             192.168.1.11:8080            100000000     3456     7890  1234567  987654K\n",
        ),
        (
            Layout::Thresholds,
            false,
            "TCP  10.0.0.10:80 wrr\n  -> 192.168.1.11:8080            1000       800        120        45        \n",
        ),
        (
            Layout::PersistentConn,
            false,
            "TCP  10.0.0.10:80 wrr\n  -> 192.168.1.11:8080            3         3           120        45        \n",
        ),
        (
            Layout::TunInfo,
            false,
            "TCP  10.0.0.10:80 wrr\n  -> 192.168.1.11:8080            Masq    n/a           3      120        45        \n",
        ),
    ] {
        assert_eq!(rows(layout, exact), text, "{layout:?}");
    }
}

#[test]
fn connections_show_minutes_beyond_an_hour_and_an_engines_data() {
    let mut entry = ConnectionEntry {
        protocol: "UDP".into(),
        expires: 4000,
        state: "UDP".into(),
        client: ([192, 168, 0, 5].into(), 5001),
        service: ([10, 0, 0, 10].into(), 5060),
        server: ([192, 168, 1, 11].into(), 5060),
        engine: None,
        is_template: false,
    };
    let row = |entry: &ConnectionEntry| printed(|out| connection(out, entry, true, &mut Printed::numeric()));
    let plain = "UDP 66:40  UDP         192.168.0.5:5001   10.0.0.10:5060     192.168.1.11:5060\n";
    assert_eq!(row(&entry), plain);
    entry.engine = Some(("sip".into(), "call@host".into()));
    assert_eq!(row(&entry), plain.replace(":5060\n", ":5060 sip                call@host\n"));
}

/// Names as two files have them.
struct Known(Services);

const HOSTS: &[(&str, &str)] = &[
    ("10.9.0.1", "vip.example"),
    ("10.9.0.66", "a-very-long-name-of-a-virtual-server.example"),
    ("10.1.0.11", "rs1.example"),
    ("10.0.0.2", "client.example"),
    ("10.0.0.3", "a-client-with-a-name-that-is-long.example"),
    ("2001:db8:f::1", "vip6.example"),
    ("2001:db8:a::2", "client6.example"),
];

impl Names for Known {
    fn host(&self, _: &str) -> Option<Ipv4Addr> {
        None
    }
    fn service(&self, _: &str, _: Protocol) -> Option<u16> {
        None
    }
    fn host_name(&self, address: IpAddr) -> Option<String> {
        let known = HOSTS.iter().find(|(known, _)| known.parse() == Ok(address));
        known.map(|(_, name)| (*name).to_owned())
    }
    fn service_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.0.name(port, protocol)
    }
}

/// As ipvsadm 1.31 printed them of Linux 6.1.
#[test]
fn connections_show_names_of_any_length() {
    let names = Known(Services::parse(
        "http 80/tcp\nhttp-alt 8080/tcp\ndomain 53/udp\nsyslog 514/udp\nshell 514/tcp syslog\n",
    ));
    let expected = "\
UDP 04:59  UDP         client.example:syslog a-very-long-name-of-a-virtual-server.example:domain rs1.example:domain
UDP 04:59  UDP         a-client-with-a-name-that-is-long.example:8080 10.9.0.67:domain   10.1.0.13:domain
TCP 01:39  NONE        client.example:0   vip.example:http   rs1.example:http-alt
IP  00:49  NONE        client.example:0   0.0.0.1:0          rs1.example:0
TCP 00:59  SYN_RECV    [client6.example]:http [vip6.example]:http [2001:db8:b::11]:http
";
    let rows = [
        ("UDP", 299, "UDP", "10.0.0.2", 514, "10.9.0.66", 53, "10.1.0.11", 53),
        ("UDP", 299, "UDP", "10.0.0.3", 8080, "10.9.0.67", 53, "10.1.0.13", 53),
        ("TCP", 99, "NONE", "10.0.0.2", 0, "10.9.0.1", 80, "10.1.0.11", 8080),
        ("IP", 49, "NONE", "10.0.0.2", 0, "0.0.0.1", 0, "10.1.0.11", 0),
        ("TCP", 59, "SYN_RECV", "2001:db8:a::2", 80, "2001:db8:f::1", 80, "2001:db8:b::11", 80),
    ];
    let address = |text: &str| text.parse().expect("a test's address");
    let mut printed_names = Printed::named(&names);
    let printed = printed(|out| {
        rows.into_iter().try_for_each(|(protocol, expires, state, c, c_port, v, v_port, s, s_port)| {
            let entry = ConnectionEntry {
                protocol: protocol.into(),
                expires,
                state: state.into(),
                client: (address(c), c_port),
                service: (address(v), v_port),
                server: (address(s), s_port),
                engine: None,
                is_template: false,
            };
            connection(out, &entry, false, &mut printed_names)
        })
    });
    assert_eq!(printed, expected);
}
