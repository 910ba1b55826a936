#!/usr/bin/env python3
"""Random services, edits and packets; which real server each packet went to, in the format of golden/sched.json.

Runs in the oracle's guest, beside its lab.py. A file named `plan` says from which seed and how many cases. Real servers are reached by direct routing, so that
the frame's Ethernet address tells where it went.
"""
import json, random, sys, time
sys.path.insert(0, "/oracle/case")
from lab import *

SEED, CASES = (int(word) for word in open("/oracle/case/plan").read().split())
SYSCTLS = dict(expire_quiescent_template=0, expire_nodest_conn=0, conn_reuse_mode=1)
# twos draws random numbers, and not ours.
SCHEDULERS = {
    "rr": [""], "wrr": [""], "lc": [""], "wlc": [""], "sed": [""], "nq": [""], "fo": [""], "ovf": [""],
    "dh": [""], "lblc": [""], "lblcr": [""],
    "sh": ["", "sh-fallback", "sh-port", "sh-fallback,sh-port"],
    "mh": ["", "mh-fallback", "mh-port", "mh-fallback,mh-port"],
}
PORTS = dict(port=80, any=0, ops=80, ftp=21)

rng = random.Random(SEED)
bench = Lab(servers=4)


def service_of(kind, protocol):
    """The words of a random service, and of its real servers."""
    scheduler = rng.choice(list(SCHEDULERS))
    flags = rng.choice(SCHEDULERS[scheduler])
    key = "-%s %s:%d" % (protocol, VIP, PORTS[kind])
    words = ["-A", key, "-s", scheduler] + (["-b", flags] if flags else [])
    if kind in ("any", "ftp") or rng.random() < 0.4:
        words += ["-p", str(rng.choice([30, 100]))]
        if rng.random() < 0.4:
            words += ["-M", rng.choice(["255.255.255.0", "255.255.0.0", "255.255.255.254"])]
    if kind == "ops":
        words.append("-o")
    return scheduler, key, " ".join(words)


def packet(protocol, kind):
    """A random packet: what it is called, and its bytes."""
    source, port = "10.0.0.%d" % rng.randrange(2, 10), 1000 + rng.randrange(12)
    to = {"port": [80], "ops": [80], "any": [80, 443, 22], "ftp": [21, 21, 20, 2000, 30000]}[kind]
    to = rng.choice(to)
    if protocol == "u":
        return "udp %s %d %s %d" % (source, port, VIP, to), udp(source, VIP, port, to)
    what = rng.choice(["syn", "syn", "syn", "ack", "rst", "fin"])
    letters = dict(syn="S", ack="A", rst="R", fin="FA")[what]
    return "%s %s %d %s %d" % (what, source, port, VIP, to), tcp(source, VIP, port, to, letters)


def case(n):
    reset()
    sysctls = {name: 1 for name in ("expire_quiescent_template", "expire_nodest_conn") if rng.random() < 0.3}
    lbsh(" ; ".join("echo %d > /proc/sys/net/ipv4/vs/%s" % (sysctls.get(k, v), k) for k, v in SYSCTLS.items()))
    protocol = rng.choice("ttu")
    kind = rng.choice(["port", "port", "any", "ops"] if protocol == "u" else ["port", "port", "any", "ftp"])
    scheduler, key, line = service_of(kind, protocol)
    server = lambda: "%s -r 10.1.0.%d:%d" % (key, 10 + rng.randrange(1, 5), PORTS[kind])
    limits = lambda: rng.choice(["", "", " -x %d" % rng.choice([2, 3]), " -x 4 -y 2"])
    setup = [line] + ["-a %s -r 10.1.0.%d:%d -g -w %d%s" % (key, 10 + r, PORTS[kind], rng.choice([1, 1, 2, 3]), limits())
                      for r in rng.sample([1, 2, 3, 4], rng.choice([2, 3]))]
    for line in setup:
        lb("ipvsadm " + line)
    steps = []
    for _ in range(40):
        draw = rng.random()
        if draw < 0.74:
            words, data = packet(protocol, kind)
            to = bench.where(bench.inject("cl", data)[1])
            # A packet of no connection that begins none is for the kernel alone.
            if words[:3] in ("syn", "udp") or to.startswith("rs"):
                steps.append("%s = %s" % (words, to))
        elif draw < 0.84:
            wait = rng.choice([3, 17, 41, 130, 400])
            time.sleep(wait)
            steps.append("wait %d" % wait)
        else:
            edit = rng.choice(["-e %s -g -w %d" % (server(), rng.choice([0, 0, 1, 3])), "-d " + server(),
                               "-a %s -g -w %d" % (server(), rng.choice([1, 2]))])
            code = lb("ipvsadm " + edit, check=False).returncode
            steps.append("cmd %s = %d" % (edit, code))
            if code == 0 and edit.startswith("-d"):
                # The kernel's flush of a removed server's connections runs a moment later.
                time.sleep(0.2)
    return dict(scheduler=scheduler, scenario="%s-%d-%d" % (kind, SEED, n), setup=setup,
                sysctl=[["net.ipv4.vs." + k, v] for k, v in sysctls.items()], steps=steps, end={})


print(json.dumps([case(n) for n in range(CASES)]))
