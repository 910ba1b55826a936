"""Zero-copy and two workers on the two queues of an emulated igb: a thousand requests that a second igb on its wire sends, by NAT, and their answers.

For the oracle's guest with the newer kernel (DIR is its folder, whose setup.sh has been run with "new"):

    DIR/run.sh --new --smp 4 --mem 2048 --share target/debug --qemu "-device pcie-root-port,id=r1,chassis=1,slot=1
        -device pcie-root-port,id=r2,chassis=2,slot=2 -netdev hubport,hubid=0,id=n0 -device igb,bus=r1,netdev=n0
        -netdev hubport,hubid=0,id=n1 -device igb,bus=r2,netdev=n1" tests/oracle/zero_copy.py [OPTIONS OF shunt run, such as --busy-poll]

It fails if a frame is missing, has changed or comes twice, or if the interface is not in zero-copy mode.
"""
import os, re, socket, struct, subprocess, sys, time

CLIENTS = ["10.0.0.%d" % n for n in range(100, 116)]
SERVER, VIP, NEAR = "10.0.0.11", "10.9.0.1", bytes.fromhex("02c000000064")
ROUNDS, BATCH = 40, 25


def run(command, check=True):
    return subprocess.run(command, shell=True, check=check, capture_output=True, text=True).stdout


def director(command, check=True):
    return run("ip netns exec director " + command, check)


def wait(what, seconds=30):
    end = time.time() + seconds
    while not what():
        if time.time() > end:
            sys.exit("waited in vain")
        time.sleep(0.2)


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def datagram(mac, source, port, destination, to, payload):
    udp = struct.pack("!HHHH", port, to, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination))
    return mac + NEAR + b"\x08\x00" + head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def parsed(frame):
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    port, to, length = struct.unpack("!HHH", frame[34:40])
    return socket.inet_ntoa(frame[26:30]), port, socket.inet_ntoa(frame[30:34]), to, frame[42:34 + length]


class Wire:
    def __init__(self, name):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((name, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

    def send(self, frames):
        for frame in frames:
            self.socket.send(frame)

    def take(self, want, count, seconds=5):
        got, end = [], time.time() + seconds
        while len(got) < count and (left := end - time.time()) > 0:
            self.socket.settimeout(left)
            try:
                frame, address = self.socket.recvfrom(2048)
            except TimeoutError:
                break
            if address[2] != socket.PACKET_OUTGOING and (told := parsed(frame)) and want(told):
                got.append(told)
        return got


run("modprobe -a igb af_packet nf_tables", False)
wait(lambda: len([d for d in os.listdir("/sys/class/net") if d.startswith(("eth", "en"))]) == 2)
near, far = sorted(d for d in os.listdir("/sys/class/net") if d.startswith(("eth", "en")))
run(f"cp /oracle/share/shunt /tmp; ip netns add director; ip link set {far} netns director; ip link set {near} up promisc on")
director("ip link set lo up")
director(f"ethtool -L {far} combined 2", False)
director(f"ethtool -N {far} rx-flow-hash udp4 sdfn")
director(f"ip link set {far} up")
director(f"ip address add 10.0.0.1/24 dev {far}")
director(f"ip address add {VIP}/32 dev lo")
director("sysctl -qw net.ipv4.ip_forward=1")
for address in CLIENTS + [SERVER]:
    director(f"ip neigh add {address} lladdr {NEAR.hex(':')} dev {far} nud permanent")
mac = bytes.fromhex(director(f"cat /sys/class/net/{far}/address").strip().replace(":", ""))
carrier = lambda: director(f"cat /sys/class/net/{far}/carrier", False).strip() == "1"
wait(carrier)
log = open("/tmp/log", "w+")
shunt = subprocess.Popen(["ip", "netns", "exec", "director", "/tmp/shunt", "run", "--interface", far, "--backend", "af-xdp", "--cores", "0,1",
                          "--socket", "/run/shunt.sock", "--connections", "8192"] + sys.argv[1:], stderr=log)
try:
    wait(lambda: os.path.exists("/run/shunt.sock"), 60)
    for rule in f"-A -u {VIP}:53 -s rr", f"-a -u {VIP}:53 -r {SERVER}:53 -m":
        director("/tmp/shunt ipvsadm " + rule)
    time.sleep(3)
    wait(carrier)
    wire = Wire(near)
    there = back = spoilt = 0
    began = time.time()
    slowest = 0
    for n in range(ROUNDS):
        asked = [(CLIENTS[k % 16], 20000 + n * BATCH + k, b"%06d" % (n * BATCH + k) * 4) for k in range(BATCH)]
        at = time.time()
        wire.send(datagram(mac, source, port, VIP, 53, payload) for source, port, payload in asked)
        got = wire.take(lambda f: f[2] == SERVER, BATCH)
        wire.send(datagram(mac, SERVER, 53, source, port, payload) for source, port, _, _, payload in got)
        answered = wire.take(lambda f: f[0] == VIP, len(got))
        slowest = max(slowest, time.time() - at)
        there, back = there + len(got), back + len(answered)
        good = sorted((source, port, payload) for source, port, payload in asked) == sorted((f[2], f[3], f[4]) for f in answered)
        spoilt += not good
        if spoilt > 4:
            break
    sent = (n + 1) * BATCH
    print(f"{sent} requests, {there} came to the server, {back} answers came back, {spoilt} rounds not whole; "
          f"{time.time() - began:.1f} s, the slowest round {slowest:.2f} s")
    for line in director("/tmp/shunt status").splitlines():
        if re.match(r"^\s*(frames|drop|port)\.", line):
            print(line)
    print(run("grep -E '%s' /proc/interrupts" % far))
    print(director(f"ethtool -S {far} | grep -E 'queue.*(packets|drops)'"))
finally:
    shunt.terminate()
    shunt.wait()
    log.seek(0)
    print(re.sub("\x1b\\[[0-9;]*m", "", said := log.read()))
if "native, zero-copy" not in said:
    sys.exit("not zero-copy")
sys.exit(spoilt != 0)
