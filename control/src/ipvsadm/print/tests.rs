use super::*;
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
