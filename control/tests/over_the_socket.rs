//! The tool against a daemon's socket: the same answers as in memory, and clear words when there is no daemon.

use std::{path::Path, sync::Mutex};

use shunt::{
    api::{Request, Response},
    ipvsadm::{self, Backend},
    rules::{Capabilities, Rules},
    socket::{self, Handler, Reply},
};

/// A daemon that has rules and nothing else.
struct Daemon(Mutex<Rules>);

impl Handler for Daemon {
    async fn handle(&self, request: Request, reply: Reply) {
        for response in self.answer(&request) {
            reply.send(response).await.expect("the client waits for its answer");
        }
    }
}

impl Daemon {
    fn answer(&self, request: &Request) -> Vec<Response> {
        let mut answer = Vec::new();
        let mut rules = self.0.lock().expect("no test panics with the rules in hand");
        let kept = rules.request(request, &mut |response| {
            match response {
                Response::Services(entries) => answer.extend(socket::services(entries)),
                Response::Locals(entries) => answer.extend(socket::locals(entries)),
                other => answer.push(other),
            }
            Ok(())
        });
        kept.expect("keeping cannot fail");
        answer
    }
}

fn tool(path: &Path, line: &str, stdin: &str) -> (String, String, i32) {
    let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    let (program, args) = words.split_first().expect("a line has a program");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = ipvsadm::run(program, args, path, &mut stdin.as_bytes(), &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).expect("the tool prints text");
    (text(stdout), text(stderr), exit)
}

fn with_a_daemon(capabilities: Capabilities, client: impl FnOnce(&Path) + Send + 'static) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("shunt.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = socket::bind(&path).expect("a fresh socket");
        let daemon = Daemon(Mutex::new(Rules::new(capabilities)));
        let client = tokio::task::spawn_blocking(move || client(&path));
        tokio::select! {
            served = socket::serve(listener, daemon) => served.expect("serving goes on"),
            done = client => done.expect("the client's checks hold"),
        }
    });
}

fn well(stdout: &str) -> (String, String, i32) {
    (stdout.to_string(), String::new(), 0)
}

fn badly(stderr: &str, exit: i32) -> (String, String, i32) {
    (String::new(), stderr.to_string(), exit)
}

#[test]
fn thousands_of_servers_are_restored_listed_and_saved_over_the_socket() {
    with_a_daemon(Capabilities::everything(), |path| {
        let mut rules = String::from("-A -t 10.9.0.1:80 -s rr\n");
        for n in 0..2000 {
            rules += &format!("-a -t 10.9.0.1:80 -r 10.1.{}.{}:80 -m -w 1\n", n / 250, n % 250);
        }
        for port in 81..400 {
            rules += &format!("-A -t 10.9.0.1:{port} -s wlc\n-a -t 10.9.0.1:{port} -r 10.1.0.1:80 -m -w 1\n");
        }
        assert_eq!(tool(path, "ipvsadm-restore", &format!("# saved\n{rules}")), well(""));
        assert_eq!(tool(path, "ipvsadm -Sn", ""), well(&rules));
        assert_eq!(tool(path, "/sbin/ipvsadm-save -n", ""), well(&rules));
        assert_eq!(tool(path, "ipvsadm -Ln", "").0.lines().count(), 3 + rules.lines().count());
        assert_eq!(tool(path, "ipvsadm -D -t 10.9.0.9:80", ""), badly("No such service\n", 255));
    });
}

#[test]
fn local_addresses_are_added_listed_saved_and_deleted_over_the_socket() {
    with_a_daemon(Capabilities::everything(), |path| {
        let mut rules = String::from("-A -t 10.9.0.1:80 -s rr --proxy-protocol v2 --mss 1400\n");
        for n in 0..1000 {
            rules += &format!("-P -t 10.9.0.1:80 -z 10.1.{}.{}\n", n / 250, n % 250);
        }
        rules += "-a -t 10.9.0.1:80 -r 10.1.9.1:8080 --fullnat -w 1\n-A -u 10.9.0.1:53 -s rr\n";
        assert_eq!(tool(path, "ipvsadm-restore", &rules), well(""));
        assert_eq!(tool(path, "ipvsadm -Sn", ""), well(&rules));

        let (listed, ..) = tool(path, "ipvsadm -G -n", "");
        let lines: Vec<_> = listed.lines().map(str::trim_end).collect();
        assert_eq!(lines.len(), 1 + 1 + 1000 + 1);
        assert_eq!(lines[0], "VIP:VPORT            TOTAL    SNAT_IP              CONFLICTS  CONNS");
        assert_eq!(lines[1], "10.9.0.1:80          1000");
        assert_eq!(lines[1001], "                              10.1.3.249           0          0");
        assert_eq!(lines[1002], "10.9.0.1:53          0");
        assert_eq!(tool(path, "ipvsadm -G -n -u 10.9.0.1:53", "").0.lines().count(), 2);
        assert_eq!(
            tool(path, "ipvsadm -L -n -t 10.9.0.1:80", ""),
            well(
                "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
                 TCP  10.9.0.1:80 rr proxy-protocol v2 mss 1400\n  -> 10.1.9.1:8080                Masq    1      0          0         \n"
            )
        );

        let web = "-t 10.9.0.1:80";
        for (line, complaint) in [
            (format!("-P {web} -z 10.1.0.0"), "Local address already exists\n"),
            (format!("-Q {web} -z 10.1.9.9"), "No such local address\n"),
            ("-P -t 10.9.0.9:80 -z 10.1.0.0".into(), "Service not defined\n"),
            (
                format!("-P {web} -z 127.0.0.1"),
                "Invalid operation.  Possibly wrong module version, address not unicast, ...\n",
            ),
        ] {
            assert_eq!(tool(path, &format!("ipvsadm {line}"), ""), badly(complaint, 255), "{line}");
        }
        assert_eq!(tool(path, "ipvsadm -G -t 10.9.0.9:80", ""), badly("No such service\n", 1));
        assert_eq!(tool(path, "ipvsadm -Q -t 10.9.0.1:80 -z 10.1.0.7 -F dpdk0", ""), well(""));
        let left = rules.replace("-P -t 10.9.0.1:80 -z 10.1.0.7\n", "");
        assert_eq!(tool(path, "ipvsadm -Sn", ""), well(&left));
    });
}

#[test]
fn words_of_fullnat_in_the_wrong_place_are_refused_like_any_other() {
    let mut rules = Rules::new(Capabilities::everything());
    for (line, complaint) in [
        ("-P -t 10.9.0.1:80", "You need to supply the 'laddr' option for the 'add-laddr' command"),
        ("-Q -z 10.1.0.1", "You need to supply the 'service-address' option for the 'del-laddr' command"),
        ("-G -t 10.9.0.1:80 -z 10.1.0.1", "Illegal 'laddr' option with the 'get-laddr' command"),
        ("-A -t 10.9.0.1:80 --fullnat", "Illegal 'forwarding-method' option with the 'add-service' command"),
        ("-A -t 10.9.0.1:80 --mss 87", "illegal mss specified"),
        ("-P -t 10.9.0.1:80 -z 10.1.0.1:80", "illegal local address specified"),
        ("-a -t 10.9.0.1:80 -r 10.1.0.1 -b", "-b: missing argument"),
        ("-a -t 10.9.0.1:80 -r 10.1.0.1 --fullnat -m", "multiple 'forwarding-method' options specified"),
        (
            "-a -t 10.9.0.1:80 -r 10.1.0.1 --fullnat --tun-type gre",
            "Tunnel options conflict with forward method",
        ),
    ] {
        let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = ipvsadm::main("ipvsadm", &words, &mut rules, &mut &[][..], &mut stdout, &mut stderr);
        assert_ne!(exit, 0, "{line}");
        assert_eq!(String::from_utf8_lossy(&stderr), format!("{complaint}\n"), "{line}");
    }
}

#[test]
fn what_the_director_lacks_is_said_in_a_second_line() {
    let little =
        Capabilities { schedulers: &["rr", "wrr"], ipv6: false, tunnel: false, ..Capabilities::everything() };
    with_a_daemon(little, |path| {
        assert_eq!(tool(path, "ipvsadm -A -t 10.9.0.1:80 -s rr", ""), well(""));
        assert_eq!(
            tool(path, "ipvsadm -A -t [2001:db8::1]:80 -s rr", ""),
            badly("Operation not supported with IPv6\n(IPv6 services are not supported yet)\n", 255)
        );
        assert_eq!(
            tool(path, "ipvsadm -a -t 10.9.0.1:80 -r 10.1.0.1 -i", ""),
            badly("Operation not supported\n(Tunneling is not supported yet)\n", 255)
        );
        assert_eq!(
            tool(path, "ipvsadm --start-daemon master", ""),
            badly("The synchronisation daemon is not supported yet; nothing was started\n", 0)
        );
        let stopped = tool(path, "ipvsadm --stop-daemon master", "");
        assert_eq!(stopped, badly("No daemon is running\n", 255));
        assert_eq!(tool(path, "ipvsadm -L --daemon", ""), well(""));
        assert_eq!(
            tool(path, "ipvsadm -A -t 10.9.0.2:80", ""),
            badly("Scheduler or persistence engine not found\n", 255)
        );
    });
}

#[test]
fn without_a_daemon_the_tool_says_what_to_do() {
    let path = Path::new("/nonexistent/shunt.sock");
    assert_eq!(
        tool(path, "ipvsadm -Ln", ""),
        badly(
            "Can't initialize ipvs: no shunt daemon answers at /nonexistent/shunt.sock: No such file or \
             directory\nStart the director with `shunt run', or name its socket in SHUNT_SOCKET.\n",
            2
        )
    );
    let (help, _, exit) = tool(path, "ipvsadm --help", "");
    assert!(help.starts_with("ipvsadm v1.31 "));
    assert_eq!(exit, 0);
}

#[test]
fn a_daemon_that_ends_under_the_tool_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("shunt.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a fresh socket");
    let daemon = std::thread::spawn(move || drop(listener.accept().expect("the tool connects")));
    let (_, complaint, exit) = tool(&path, "ipvsadm -Ln", "");
    daemon.join().expect("the daemon's one accept");
    assert!(complaint.contains("is lost: it closed the connection"), "{complaint}");
    assert_eq!(exit, 255);
}

#[test]
fn only_the_owner_and_the_group_may_connect() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    /// Who has nothing.
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skip: only root can ask as somebody else");
        return;
    }
    with_a_daemon(Capabilities::everything(), |path| {
        let open = |what: &Path, mode| {
            std::fs::set_permissions(what, std::fs::Permissions::from_mode(mode)).expect("it is ours")
        };
        let folder = path.parent().expect("a folder");
        open(folder, 0o755);
        // The way to the binary need not be open to all.
        let shunt = folder.join("shunt");
        std::fs::copy(env!("CARGO_BIN_EXE_shunt"), &shunt).expect("room for a copy");
        open(&shunt, 0o755);
        let ask = |group: u32| {
            let mut command = std::process::Command::new(&shunt);
            command.args(["ipvsadm", "-Ln"]).env("SHUNT_SOCKET", path).uid(NOBODY).gid(group);
            let output = command.output().expect("it can be run");
            (output.status.code(), String::from_utf8(output.stderr).expect("text"))
        };
        let own = nix::unistd::getegid().as_raw();
        assert_eq!(ask(own), (Some(0), String::new()), "its group may");

        let (code, said) = ask(NOBODY);
        assert_eq!(code, Some(2));
        assert!(said.contains("is its owner's and group's only: Permission denied"), "{said}");
        // The file's mode is not all there is.
        open(path, 0o666);
        let (code, said) = ask(NOBODY);
        assert_ne!(code, Some(0));
        assert!(said.contains("Permission denied"), "{said}");
        assert_eq!(tool(path, "ipvsadm -Ln", "").2, 0);
    });
}
