#!/usr/bin/env python3
"""Random command lines of ipvsadm, and what each printed and how it ended, in the format of golden/cli.txt.

Runs in the oracle's guest, beside its lab.py. A file named `plan` says from which seed and how many lines; `hosts` and `services` become the guest's. State
accumulates over the lines. Most are what somebody might type, spelled in any of the ways there are; a part of them is then spoiled. What is left out has no one
answer: addresses and marks so far apart that the order of a listing hangs on the kernel's hash.
"""
import ctypes, random, shlex, sys
sys.path.insert(0, "/oracle/case")
from lab import *

SEED, LINES = (int(word) for word in open("/oracle/case/plan").read().split())
rng = random.Random(SEED)
pick, chance = lambda *of: rng.choice(of), lambda p: rng.random() < p

# ---------------------------------------------------------------- values: mostly good ones, and bad ones
VIPS4 = "10.9.0.1", "10.9.0.1", "10.9.0.2", "10.9.3", "0x0a090004", "10.011.0.5", "vip.example", "10.9.0.66", "168361985"
VIPS6 = "2001:db8:f::1", "2001:db8:f::1", "2001:db8:f::2", "2001:DB8:f:0:0::1", "::ffff:10.9.0.1", "::10.9.0.1"
SERVERS4 = "10.1.0.11", "10.1.0.11", "10.1.0.12", "10.1.12", "rs1.example", "10.1.0.99", "0xa010063"
SERVERS6 = "2001:db8:b::11", "2001:db8:b::11", "2001:db8:b:0::12", "2001:db8:b::13"
NO_HOSTS = "", "nobody.example", "10.9.0.256", "10.9.0.1.1", "10.9.0.", ".10.9", "10..1", "1.2.3.08", "vip", "-", "*", "10.9.0.1/32", "4294967296", "2001:db8::g", ":::", "[::1]", \
    "vip.example.", "VIP.example"
NO_SERVERS = "0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.255.255", "[ff02::1]", "[::]", "[fe80::1]", "[::ffff:10.1.0.1]", "240.0.0.1"
PORTS = "80", "80", "80", "443", "53", "8080", "http", "domain", "102", "010", "+81", " 82", "65535", "0", "1024"
NO_PORTS = "", "65536", "-1", "80 ", "nosuch", "HTTP", "0x50", "99999999999999999999", "80:80", "www ", "8.0", "snmp-trap"
NUMBERS = "0", "1", "1", "2", "5", "100", "+7", "007", " 9", "65535", "65536", "2147483647"
NO_NUMBERS = "", "-1", "-0", "- 1", "2147483648", "4294967295", "4294967296", "9223372036854775808", "99999999999999999999", "5 ", "0x10", "ten", "1e3", "1.5", "5,5", "+", "++1", "%s"
SCHEDULERS = "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos none".split()
NO_SCHEDULERS = "", "RR", "wlcc", "rr ", "averyveryverylongschedulername", "r"
FLAGS = "sh-fallback", "sh-port", "mh-fallback", "mh-port", "flag-1", "flag-2", "flag-3", "sh-fallback,sh-port", "mh-port,mh-fallback", "flag-1,flag-3", ",flag-2,", "sh-port,sh-port"
NO_FLAGS = "", "flag-4", "sh-", "sh-fallback, sh-port", "FLAG-1", "flag-1;flag-2"
MASKS = "255.255.255.0", "255.255.255.255", "255.255.0.0", "0.0.0.0", "255.0.255.0", "64", "128", "1", "255.255.65280", "0xffffff00", "vip.example"
NO_MASKS = "", "129", "-1", "/24", "255.255.255.256", "mask", "255.255.255.0/24"
MARKS = "1", "1", "2", "77", "1000000", "+3", "04294967295"
NO_MARKS = "0", "-1", "", "4294967296", "0x1", "one", "1 ", "99999999999999999999"
SECONDS = "1", "5", "300", "2678400", "010", "+60", " 7"
NO_SECONDS = "0", "-1", "2678401", "", "5s", "1e2", "4294967296", "99999999999999999999"
GROUPS = "224.0.0.81", "239.1.2.3", "ff02::81", "ff05::1", "224.0.0.81 "
NO_GROUPS = "", "10.0.0.1", "2001:db8::1", "224.0.0", "group", "223.255.255.255", "240.0.0.0", "224.0.0.256", "::"
DEVICES = "c0", "s0", "c0", "lo"
NO_DEVICES = "eth0", "", "averyveryverylonginterface", "c 0"


def of(good, bad, p=0.06):
    return pick(*bad) if chance(p) else pick(*good)


def endpoint(hosts4, hosts6, ported=0.85):
    """host[:port] in one of its forms, mostly right."""
    six = chance(0.3)
    host = of(hosts6 if six else hosts4, NO_HOSTS, 0.03)
    if not chance(ported):
        return host
    port = of(PORTS, NO_PORTS, 0.04)
    return "[%s]:%s" % (host, port) if ":" in host and chance(0.97) or chance(0.01) else "%s:%s" % (host, port)


# ---------------------------------------------------------------- words: long, short, whether a value follows, and which
class Word:
    def __init__(self, long, short, value=None, perhaps=False):
        self.long, self.short, self.value, self.perhaps = long, short, value, perhaps


def number(p=0.12):
    return lambda: of(NUMBERS, NO_NUMBERS, p)


SERVICE = [Word("tcp-service", "t", lambda: endpoint(VIPS4, VIPS6)), Word("udp-service", "u", lambda: endpoint(VIPS4, VIPS6)),
           Word("sctp-service", None, lambda: endpoint(VIPS4, VIPS6)), Word("fwmark-service", "f", lambda: of(MARKS, NO_MARKS))]
IPV6 = Word("ipv6", "6")
PERSISTENT = Word("persistent", "p", lambda: of(SECONDS, NO_SECONDS, 0.05), perhaps=True)
OF_SERVICE = [Word("scheduler", "s", lambda: of(SCHEDULERS, NO_SCHEDULERS, 0.04)), Word("scheduler", "s", lambda: pick("rr", "sh", "mh")), PERSISTENT, PERSISTENT, PERSISTENT,
              Word("netmask", "M", lambda: of(MASKS, NO_MASKS)), Word("pe", None, lambda: of(["sip"], ["", "SIP", "sipp"])), Word("ops", "o"),
              Word("sched-flags", "b", lambda: of(FLAGS, NO_FLAGS))]
SERVER = Word("real-server", "r", lambda: pick(*NO_SERVERS) + ":80" if chance(0.03) else endpoint(SERVERS4, SERVERS6, 0.7))
METHODS = [Word("gatewaying", "g"), Word("ipip", "i"), Word("masquerading", "m")]
TUN_TYPE = Word("tun-type", None, lambda: of(["ipip", "gue", "gue", "gre"], ["", "vxlan", "GUE", "gr"]))
TUN_PORT = Word("tun-port", None, lambda: of(["1", "6080", "65535"], ["0", "65536", "-1", "", "http", "6080 "]))
TUN_SUMS = [Word("tun-nocsum", None), Word("tun-csum", None), Word("tun-remcsum", None)]
OF_SERVER = [Word("weight", "w", number()), Word("weight", "w", number(0)), Word("u-threshold", "x", number()), Word("l-threshold", "y", number())]
LAYOUTS = [Word(name, None) for name in ("stats", "rate", "thresholds", "persistent-conn", "tun-info")]
EXACT, NOSORT, SORT, NUMERIC = Word("exact", "X"), Word("nosort", None), Word("sort", None), Word("numeric", "n")
TABLES = [Word("connection", "c"), Word("timeout", None), Word("daemon", None)]
OF_DAEMON = [Word("mcast-interface", None, lambda: of(DEVICES, NO_DEVICES)), Word("mcast-interface", None, lambda: pick("c0", "s0")), Word("syncid", None, lambda: of(["0", "1", "255", "+5"], ["256", "-1", "", "x"])),
             Word("sync-maxlen", None, lambda: of(["1", "1000", "1400", "1472", "65507", "9000"], ["0", "65508", "-1", "", "x"])), Word("mcast-group", None, lambda: of(GROUPS, NO_GROUPS, 0.2)),
             Word("mcast-port", None, lambda: of(["1", "8848", "65535"], ["0", "65536", "", "http"])), Word("mcast-ttl", None, lambda: of(["1", "5", "255"], ["0", "256", "", "x"]))]
COMMANDS = [Word(*names) for names in (("add-service", "A"), ("edit-service", "E"), ("delete-service", "D"), ("clear", "C"), ("list", "L"), ("list", "l"), ("add-server", "a"),
            ("delete-server", "d"), ("edit-server", "e"), ("set", None), ("restore", "R"), ("save", "S"), ("zero", "Z"), ("help", "h"), ("version", "v"))]
COMMAND = {c.short or c.long: c for c in COMMANDS}
ROLE = lambda: of(["master", "backup"], ["", "both", "Master", "none"], 0.04)
START, STOP = Word("start-daemon", None, ROLE), Word("stop-daemon", None, ROLE)
ANY = SERVICE + [IPV6, SERVER, TUN_TYPE, TUN_PORT, EXACT, NOSORT, SORT, NUMERIC] + OF_SERVICE + METHODS + TUN_SUMS + OF_SERVER + LAYOUTS + TABLES + OF_DAEMON
JUNK = "foo", "-", "--", "", "-q", "--bogus", "-Lq", "10.9.0.1:80", "--numer", "--list=1", "-nX", "master", "5", "--=", "-=", "--numeric=", "---n", "-n5", "é", "-é", "--weight", "-w", "ipvsadm", "#", "-p=", "-6n"


def spelled(word):
    """The word in one of its spellings, as a list of words."""
    long, short = "--" + word.long, word.short and "-" + word.short
    if word.value is None:
        return [short if short and chance(0.7) else long]
    value = word.value()
    if word.perhaps and chance(0.4):
        return [short if chance(0.7) else long]
    if short and chance(0.75):
        return pick([short, value], [short, value], [short, value], [short + value], [short + "=" + value])
    return pick([long, value], [long + "=" + value])


# ---------------------------------------------------------------- lines
def some(words, most):
    return rng.sample(words, rng.randint(0, min(most, len(words))))


# What lines have named so far: services, and services with a server. Later lines are about these, mostly.
services, servers = [], []


def fixed(word):
    """The word, with one value for good."""
    value = word.value()
    return Word(word.long, word.short, lambda: value)


def service(new=False):
    if services and chance(0.15 if new else 0.85):
        return list(pick(*services))
    word = fixed(pick(SERVICE[0], SERVICE[0], *SERVICE))
    services.append([word, IPV6] if word.short == "f" and chance(0.4) else [word])
    return list(services[-1])


def server(new=False):
    if servers and chance(0.15 if new else 0.85):
        return list(pick(*servers))
    servers.append(service() + [fixed(SERVER)])
    return list(servers[-1])


def reach():
    if not chance(0.3):
        return [pick(*METHODS)] if chance(0.7) else []
    return [METHODS[1], TUN_TYPE] + some([TUN_PORT], 1) + some(TUN_SUMS, 1 if chance(0.9) else 2)


def listing():
    words = some([NUMERIC], 1) + some([EXACT, NOSORT, SORT], 1 if chance(0.7) else 3)
    words += pick([pick(*LAYOUTS)], [pick(*LAYOUTS)], [], service(), [pick(*TABLES)], some(LAYOUTS, 3) + some(TABLES, 1))
    return words


def grammatical():
    """A command and its options."""
    kind = rng.choices(("A", "E", "D", "a", "e", "d", "L", "S", "Z", "C", "set", "start", "stop", "wild", "help"), (22, 7, 4, 26, 8, 4, 22, 4, 2, 0.4, 2, 2, 1, 4, 0.2))[0]
    if kind in "AE":
        return COMMAND[kind], service(kind == "A") + some(OF_SERVICE, 4)
    if kind in "ae":
        return COMMAND[kind], server(kind == "a") + reach() + some(OF_SERVER, 3 if chance(0.5) else 1)
    if kind == "d":
        return COMMAND[kind], server()
    if kind == "D":
        return COMMAND[kind], service()
    if kind == "L":
        return COMMAND[pick("L", "L", "l")], listing()
    if kind == "S":
        return COMMAND[kind], some([NUMERIC], 1)
    if kind == "Z":
        return COMMAND[kind], service() if chance(0.7) else []
    if kind == "start":
        return START, some(OF_DAEMON, 4)
    if kind == "stop":
        return STOP, some(OF_DAEMON, 1)
    if kind == "wild":
        return pick(START, STOP, *COMMANDS), some(ANY, 5)
    if kind == "help":
        return COMMAND[pick("h", "v")], some(ANY, 1)
    return COMMAND[kind], []


def words():
    command, options = grammatical()
    if chance(0.04):
        options.pop(rng.randrange(len(options))) if options else None
    if chance(0.04):
        options.append(pick(*options) if options and chance(0.5) else pick(*ANY))
    if chance(0.15):
        rng.shuffle(options)
    line = spelled(command)
    for option in options:
        line += spelled(option)
    if command.long == "set":
        count = 3 if chance(0.85) else rng.randint(0, 4)
        line += [of(SECONDS + ("0", "120"), NO_SECONDS) for _ in range(count)]
    # Options without values, and the first letter of one with a value, may share a dash.
    bundled = line[:1]
    for word in line[1:]:
        if bundled[-1][:1] == "-" and bundled[-1][1:].isalpha() and word[:1] == "-" and word[1:2].isalnum() and chance(0.25):
            bundled[-1] += word[1:]
        else:
            bundled.append(word)
    return spoiled(bundled) if chance(0.08) else bundled


def spoiled(line):
    line, place = list(line), rng.randrange(len(line))
    what = rng.randrange(6)
    if what == 0:
        line.pop(place)
    elif what == 1:
        line.insert(place, line[place])
    elif what == 2:
        line.insert(rng.randint(0, len(line)), pick(*JUNK))
    elif what == 3 and line[place]:
        at = rng.randrange(len(line[place]))
        line[place] = line[place][:at] + pick("", "x", "-", "=", " ", "0", ".", ":", "[") + line[place][at + 1:]
    elif what == 4:
        rng.shuffle(line)
    else:
        line.insert(rng.randint(0, len(line)), spelled(pick(START, STOP, *COMMANDS))[0])
    return line


def quoted(word):
    plain = word and all(c.isalnum() or c in "-_.,:+=/%@" for c in word)
    return word if plain else "'%s'" % word


def typed():
    """A line of the shell."""
    if chance(0.01):
        return pick("ipvsadm", "ipvsadm-save", "ipvsadm-save -n", "ipvsadm-save foo -n", "ipvsadm-save -x", "ipvsadm-save -n -h", "/sbin/ipvsadm", "/sbin/ipvsadm -q", "ipvsadm -S | ipvsadm -R")
    if chance(0.025):
        restore = pick("ipvsadm -R", "ipvsadm --restore", "ipvsadm-restore", "ipvsadm -Rn", "ipvsadm -R foo")
        lines = [pick(" ", " ", "  ", "\\t").join((["ipvsadm"] if chance(0.2) else []) + words()) for _ in range(rng.randint(0, 6))]
        lines += some(["# comment", "", "   ", "ipvsadm", "-R", "-Sn", "-L -n", "-h"], 1)
        text = pick("\\n", "\\n", "\\r\\n").join(lines).replace("%", "") + pick("\\n", "\\n", "")
        return "printf -- '%s' | %s" % (text, restore)
    if chance(0.012):
        return pick("ipvsadm -Sn > /tmp/saved; ipvsadm -C; ipvsadm -R < /tmp/saved; ipvsadm -Sn", "ipvsadm-save -n > /tmp/saved; ipvsadm-restore < /tmp/saved; ipvsadm -Ln",
                    "ipvsadm -S > /tmp/saved; ipvsadm -C; ipvsadm -R < /tmp/saved; ipvsadm -S")
    return " ".join(["ipvsadm"] + [quoted(word) for word in words()])


def told(line):
    """Runs a line and tells of it."""
    plain = not any(c in line for c in "|;>")
    p = subprocess.run(shlex.split(line) if plain else ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True)
    print("$ " + line)
    for mark, text in (("  ", p.stdout), ("! ", p.stderr)):
        for row in text.decode().splitlines():
            print(mark + row)
    if p.returncode:
        print("[exit %d]" % p.returncode)


for name in ("hosts", "services"):
    sh("cp /oracle/case/%s /tmp/%s && mount --bind /tmp/%s /etc/%s" % (name, name, name, name))
Lab(servers=3)
with open("/run/netns/lb") as director:
    ctypes.CDLL(None).setns(director.fileno(), 0)
print("@boot")
for n in range(1, LINES + 1):
    told(typed())
    if n % 8 == 0:
        told(pick("ipvsadm -Ln", "ipvsadm -Sn", "ipvsadm -L", "ipvsadm -S", "ipvsadm -Ln --thresholds", "ipvsadm -Ln --tun-info"))
