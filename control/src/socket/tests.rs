use super::*;
use crate::api::*;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Answers each kind of request in one way.
struct Fixed;

static FLUSHED: AtomicUsize = AtomicUsize::new(0);

impl Handler for Fixed {
    async fn handle(&self, request: Request, reply: Reply) {
        let sent = match request {
            Request::Services(_) => {
                reply.send_all(services(vec![service(1), service(3000), service(0)])).await
            }
            Request::Connections => {
                let connection = ConnectionEntry {
                    protocol: "TCP".into(),
                    expires: 900,
                    state: "ESTABLISHED".into(),
                    client: ([10, 0, 0, 1].into(), 1),
                    service: ([10, 9, 0, 1].into(), 80),
                    server: ([10, 1, 0, 1].into(), 80),
                    engine: None,
                    is_template: false,
                };
                reply.send_all(connections(std::iter::repeat_n(connection, 100_000))).await
            }
            // A handler that forgets to answer.
            Request::Daemons => Ok(()),
            Request::Flush => {
                FLUSHED.fetch_add(1, Ordering::SeqCst);
                reply.send(Response::Done).await
            }
            _ => reply.send(Response::Done).await,
        };
        sent.unwrap_or(());
    }
}

fn service(servers: u32) -> ServiceEntry {
    let stats = Stats { conns: u64::MAX, in_bytes: u64::MAX, rates: [u64::MAX; 5], ..Stats::default() };
    let server = |n| ServerEntry {
        config: ServerConfig {
            key: ServerKey { address: std::net::Ipv4Addr::from_bits(n).into(), port: 65535 },
            forwarding: Forwarding::Masq,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        },
        active: 0,
        inactive: 0,
        persistent: 0,
        stats,
    };
    ServiceEntry {
        config: ServiceConfig::new(
            ServiceKey::Address {
                protocol: Protocol::Tcp,
                address: [10, 9, 0, 1].into(),
                port: servers as u16,
            },
            "rr",
        ),
        stats,
        servers: (0..servers).map(server).collect(),
    }
}

/// Runs `client` in a thread of its own against a daemon of [`Fixed`] answers.
fn against_a_daemon(client: impl FnOnce(&Path) + Send + 'static) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("shunt.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = bind(&path).expect("a fresh socket");
        let client = tokio::task::spawn_blocking(move || client(&path));
        tokio::select! {
            served = serve(listener, Fixed) => served.expect("serving goes on"),
            done = client => done.expect("the client's checks hold"),
        }
    });
}

fn raw(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("the daemon listens")
}

/// The answer that arrives until the daemon closes or `one` message is complete.
fn read_response(stream: &mut UnixStream) -> Option<Response> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).ok()?;
    let mut bytes = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn refused(response: Option<Response>) -> (i32, String) {
    match response {
        Some(Response::Refused { errno, why }) => (errno, why),
        other => panic!("not refused: {other:?}"),
    }
}

fn framed(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

#[test]
fn a_long_list_comes_in_parts_and_several_requests_share_a_connection() {
    against_a_daemon(|path| {
        let mut client = Client::connect(path).expect("the daemon listens");
        assert_eq!(client.call(&Request::Flush).expect("an answer"), [Response::Done]);
        let parts = client.call(&Request::Services(None)).expect("an answer");
        assert!(parts.len() > 5);
        assert!(parts.iter().rev().skip(1).all(|part| !part.is_last()));
        let servers: usize = parts
            .iter()
            .filter_map(|part| match part {
                Response::Services(entries) => Some(entries),
                _ => None,
            })
            .flatten()
            .map(|entry| entry.servers.len())
            .sum();
        assert_eq!(servers, 3001);
        assert_eq!(
            client.call(&Request::Connections).expect("an answer").len(),
            100_000_usize.div_ceil(512) + 1
        );
    });
}

#[test]
fn a_message_that_is_not_understood_is_refused_and_the_next_one_served() {
    against_a_daemon(|path| {
        let mut stream = raw(path);
        for (text, why) in [
            ("", "a message is not understood"),
            ("{", "a message is not understood"),
            ("[[[[[[", "a message is not understood"),
            ("{\"version\":1,\"request\":\"dance\"}", "unknown variant `dance`"),
            ("{\"version\":1,\"request\":\"flush\",\"please\":1}", "unknown field `please`"),
            ("{\"version\":9,\"request\":\"dance\"}", "the client speaks version 9"),
            ("\u{0}\u{1}\u{2}", "a message is not understood"),
        ] {
            stream.write_all(&framed(text)).expect("the daemon reads");
            let (errno, said) = refused(read_response(&mut stream));
            assert_eq!(errno, nix::libc::EPROTO);
            assert!(said.contains(why), "{text}: {said}");
        }
        let deep = "[".repeat(MAX_MESSAGE);
        stream.write_all(&framed(&deep)).expect("the daemon reads");
        refused(read_response(&mut stream));

        stream.write_all(&framed("{\"version\":1,\"request\":\"status\"}")).expect("the daemon reads");
        assert_eq!(read_response(&mut stream), Some(Response::Done));
    });
}

#[test]
fn an_oversized_message_is_refused_unread() {
    against_a_daemon(|path| {
        for length in [MAX_MESSAGE as u32 + 1, u32::MAX] {
            let mut stream = raw(path);
            stream.write_all(&length.to_be_bytes()).expect("the daemon reads");
            let (errno, why) = refused(read_response(&mut stream));
            assert_eq!(errno, nix::libc::EMSGSIZE);
            assert!(why.contains("longer than 1048576"), "{why}");
            assert_eq!(read_response(&mut stream), None, "the connection is closed");
        }
    });
}

#[test]
fn half_a_message_harms_nobody_and_is_given_up_in_time() {
    against_a_daemon(|path| {
        let whole = framed("{\"version\":1,\"request\":\"status\"}");
        let mut stalled: Vec<UnixStream> = Vec::new();
        for cut in [1, 3, 4, 5, whole.len() - 1] {
            // One sender closes in the middle, one stalls.
            raw(path).write_all(&whole[..cut]).expect("the daemon reads");
            let mut stream = raw(path);
            stream.write_all(&whole[..cut]).expect("the daemon reads");
            stalled.push(stream);
        }
        // Others are served meanwhile.
        let mut client = Client::connect(path).expect("the daemon listens");
        assert_eq!(client.call(&Request::Status).expect("an answer"), [Response::Done]);

        for mut stream in stalled {
            let (errno, why) = refused(read_response(&mut stream));
            assert_eq!((errno, why.as_str()), (nix::libc::EPROTO, "The request was not complete in time"));
            assert_eq!(read_response(&mut stream), None);
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_listing_is_forgotten() {
    against_a_daemon(|path| {
        for _ in 0..2 * CLIENTS {
            let mut stream = raw(path);
            stream
                .write_all(&framed("{\"version\":1,\"request\":\"connections\"}"))
                .expect("the daemon reads");
            let mut some = [0; 100];
            stream.read_exact(&mut some).expect("the listing begins");
        }
        let mut client = Client::connect(path).expect("the daemon listens");
        assert_eq!(client.call(&Request::Status).expect("an answer"), [Response::Done]);
    });
}

/// Asks for a long listing and does not read it.
fn sleeper(path: &Path) -> UnixStream {
    let mut stream = raw(path);
    stream.write_all(&framed("{\"version\":1,\"request\":\"connections\"}")).expect("the daemon reads");
    stream.read_exact(&mut [0; 100]).expect("the listing begins");
    stream
}

fn is_served(path: &Path) -> bool {
    let mut client = Client::connect(path).expect("the daemon listens");
    client.call(&Request::Status).expect("an answer") == [Response::Done]
}

#[test]
fn a_thousand_connections_that_say_nothing_keep_nobody_out_and_drive_out_nobody_who_asks() {
    // Both ends of all of them are this process's.
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).expect("up to the hard limit");

    against_a_daemon(|path| {
        let mut known = raw(path);
        let status = framed("{\"version\":1,\"request\":\"status\"}");
        let ask = |known: &mut UnixStream| {
            known.write_all(&status).expect("the daemon reads");
            read_response(known)
        };
        assert_eq!(ask(&mut known), Some(Response::Done));
        let mut idle: Vec<UnixStream> = (0..1000).map(|_| raw(path)).collect();
        assert!(is_served(path));
        assert_eq!(ask(&mut known), Some(Response::Done), "its connection is the same");

        // The first had to go, and were told; the last are still there.
        let (errno, why) = refused(read_response(&mut idle[0]));
        assert_eq!(errno, nix::libc::EBUSY);
        assert!(why.contains("Too many clients"), "{why}");
        assert_eq!(read_response(&mut idle[0]), None);
        assert_eq!(ask(idle.last_mut().expect("there are some")), Some(Response::Done));
    });
}

#[test]
fn clients_that_stop_reading_keep_nobody_out() {
    against_a_daemon(|path| {
        let mut asleep: Vec<UnixStream> = (0..3 * CLIENTS).map(|_| sleeper(path)).collect();
        assert!(is_served(path));
        // One that had to give way is cut off in the middle of its listing.
        let mut rest = Vec::new();
        let end = asleep[0].read_to_end(&mut rest);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        assert!(!rest.ends_with(b"\"done\""));
    });
}

#[test]
fn requests_without_end_keep_nobody_out() {
    against_a_daemon(|path| {
        // As many requests as the socket takes, and none of their answers.
        let mut greedy = raw(path);
        greedy.set_nonblocking(true).expect("a socket can be");
        let request = framed("{\"version\":1,\"request\":\"connections\"}").repeat(100);
        for _ in 0..10_000 {
            match greedy.write(&request) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(is_served(path));

        // A request that grows by a byte now and then is given up like one that stalls.
        let mut slow = raw(path);
        slow.write_all(&[0, 15, 255]).expect("the daemon reads");
        let mut said = slow.try_clone().expect("another handle");
        let dripping = std::thread::spawn(move || {
            while slow.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let (errno, why) = refused(read_response(&mut said));
        assert_eq!((errno, why.as_str()), (nix::libc::EPROTO, "The request was not complete in time"));
        dripping.join().expect("the daemon has closed the connection");
        assert!(is_served(path));
    });
}

#[test]
fn a_client_that_had_to_give_way_asks_again() {
    against_a_daemon(|path| {
        let mut client = Client::connect(path).expect("the daemon listens");
        let before = FLUSHED.load(Ordering::SeqCst);
        assert_eq!(client.call(&Request::Status).expect("an answer"), [Response::Done]);
        // All others ask as well, and later.
        let _others: Vec<UnixStream> = (0..CLIENTS).map(|_| sleeper(path)).collect();
        assert_eq!(client.call(&Request::Flush).expect("an answer"), [Response::Done]);
        assert!(FLUSHED.load(Ordering::SeqCst) > before);
    });
}

#[test]
fn a_handler_without_an_answer_leaves_a_refusal() {
    against_a_daemon(|path| {
        let mut client = Client::connect(path).expect("the daemon listens");
        let answer = client.call(&Request::Daemons).expect("an answer");
        assert!(matches!(answer[..], [Response::Refused { errno: nix::libc::EPROTO, .. }]));
    });
}

#[test]
fn a_served_path_is_left_alone_and_a_stale_one_taken_over() {
    against_a_daemon(|path| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let error = bind(path).expect_err("it is served");
        assert_eq!(error.to_string(), format!("{} is already served by a running daemon", path.display()));

        let stale = path.with_file_name("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).expect("a fresh socket"));
        bind(&stale).expect("nobody serves it");

        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&stale).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);

        let file = path.with_file_name("file");
        std::fs::write(&file, "precious").expect("a fresh file");
        assert!(matches!(bind(&file), Err(BindError::NoSocket(_))));
        assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "precious");
    });
}

#[test]
fn without_a_daemon_the_error_names_the_path() {
    let error = Client::connect("/nonexistent/shunt.sock").expect_err("nobody is there");
    assert_eq!(
        error.to_string(),
        "no shunt daemon answers at /nonexistent/shunt.sock: No such file or directory"
    );
}
