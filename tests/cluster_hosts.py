"""Hosts on one machine: each a set of namespaces with its own address, processes, /tmp, home and sshd.

What a cluster of them does crosses a real network stack and real ssh connections, and a host can be lost like a
machine, all at once. Needs root and Linux namespaces; `why_not` says what is missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from background import PATIENCE_S, wait_for

TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ps": "procps",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "ss": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}
"""What hosts are made of, and the Debian packages that have it."""
NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc")
HOME = "/home/sweeper"
"""Home of the hosts' root, apart from this machine's."""


def why_not() -> str | None:
    """Why hosts cannot be made here, in one line; None where they can."""
    if os.geteuid() != 0:
        return "hosts need root, for their network and process namespaces"
    if missing := sorted({package for tool, package in TOOLS.items() if _which(tool) is None}):
        return f"hosts need the package(s) {', '.join(missing)}"
    # Containers often let root be root, but not make namespaces or network devices.
    probe = subprocess.run(
        ["unshare", *NAMESPACES, "ip", "link", "add", "probe", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        return f"hosts need namespaces and network devices: {probe.stderr.strip().splitlines()[-1]}"
    return None


@dataclass
class Host:
    """One of the hosts."""

    name: str
    address: str
    folder: Path
    """Where its files lie on this machine."""
    network: Network
    init: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Boot it: namespaces, network, sshd. A host of which nothing was left but its address is as good as new."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "passwd").write_text(
            "".join(
                f"root:x:0:0:root:{HOME}:/bin/bash\n" if line.startswith("root:") else line
                for line in Path("/etc/passwd").read_text().splitlines(keepends=True)
            )
        )
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}:22\nHostKey /mnt/network/host_key\n"
            f"AuthorizedKeysFile /mnt/network/key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\nUseDNS no\n"
        )
        # The Python that runs this may lie where a host has folders of its own.
        kept = " ".join(shlex.quote(path) for path in dict.fromkeys([sys.base_prefix, sys.prefix]))
        # The first process must reap what others leave behind: `ray stop` takes zombies for running processes.
        boot = f"""
            set -eu
            mount --make-rprivate /
            hostname {self.name}
            mount -t tmpfs tmpfs /mnt
            mkdir /mnt/host /mnt/network /mnt/lsmha
            mount --bind {self.folder} /mnt/host
            mount --bind {self.network.folder} /mnt/network
            mount --bind {self.network.shared} /mnt/lsmha
            for kept in {kept}; do mkdir -p /mnt/kept$kept; mount --bind $kept /mnt/kept$kept; done
            for folder in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
            mkdir -p /run/sshd
            mount -t tmpfs -o mode=755 tmpfs /home
            mkdir -m 700 {HOME}
            for kept in {kept}; do mkdir -p $kept; mount --bind /mnt/kept$kept $kept; done
            mount --bind /mnt/host/passwd /etc/passwd
            mount --bind /mnt/host/hosts /etc/hosts
            ip link set lo up
            until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
            ip address add {self.address}/24 dev eth0
            ip link set eth0 up
            ip route add default via {self.network.gateway}
            cd /
            {_which("sshd")} -D -f /mnt/host/sshd_config -E /mnt/host/sshd.log &
            wait
        """
        with open(self.folder / "boot.log", "wb") as log:
            self.init = subprocess.Popen(
                # However this process ends, they end with it.
                ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--kill-child", "bash", "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            )
        self.network.plug_in(self)
        wait_for(lambda: self.run("true", check=False).returncode == 0, f"sshd on {self.name}", said=self._states)

    def _states(self) -> str:
        """What tells why it cannot be reached."""
        states = [self.run("true", check=False).stderr, (self.folder / "boot.log").read_text()]
        for command in (["ip", "neigh"], ["ip", "-br", "link"], self.inside("ip", "-br", "address")):
            states.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        return "\n".join(states)

    @property
    def pid(self) -> int:
        """Its first process, as this machine numbers it."""
        assert self.init is not None
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children")
        return int(children.read_text().split()[0])

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command on it without ssh."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--uts", "--ipc", *command]

    def ssh(self, command: str) -> list[str]:
        """The command line that runs a shell command on it through ssh, with the environment of ~/.bashrc."""
        return [*self.network.ssh_command, f"root@{self.address}", f"[ -f ~/.bashrc ] && . ~/.bashrc; {command}"]

    def run(self, command: str, *, check: bool = True, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a shell command on it through ssh."""
        return subprocess.run(
            self.ssh(command), capture_output=True, text=True, check=check, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def processes(self) -> list[str]:
        """Command lines of all that runs on it but its first process, sshd and who asks."""
        listed = subprocess.run(self.inside("ps", "-eo", "args="), capture_output=True, text=True, check=True).stdout
        own = ("ps -eo", "sshd", "bash -c", "/usr/sbin/sshd")
        return [line.strip() for line in listed.splitlines() if line.strip() and not line.strip().startswith(own)]

    def listeners(self) -> set[tuple[str, int]]:
        """Addresses and ports that accept TCP connections on it."""
        listed = subprocess.run(self.inside("ss", "-Htln"), capture_output=True, text=True, check=True).stdout
        ends = (line.split()[3].rpartition(":") for line in listed.splitlines())
        return {(address.strip("[]"), int(port)) for address, _, port in ends}

    def lose(self) -> None:
        """Kill all of its processes at once, and its network with them."""
        if self.init is not None:
            self.init.kill()  # --kill-child: the namespaces die with it
            self.init.wait()
            self.init = None


@dataclass
class Network:
    """Hosts on one bridge, which is also the way from this machine to them."""

    folder: Path
    prefix: str
    """The first three numbers of its addresses."""
    shared: Path
    """Folder that all hosts see at /mnt/lsmha, as a file server would have it."""
    hosts: list[Host] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"lsmha{self.prefix.split('.')[2]}"

    @property
    def gateway(self) -> str:
        """This machine's address in the network."""
        return f"{self.prefix}.1"

    @property
    def hosts_range(self) -> str:
        """The addresses of the hosts, without this machine's."""
        return f"{self.prefix}.16/28"

    @property
    def key(self) -> Path:
        """The ssh key that opens all hosts."""
        return self.folder / "key"

    @property
    def ssh_command(self) -> list[str]:
        return ["ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", "-o", "BatchMode=yes"]  # fmt: skip

    def add_host(self, name: str) -> Host:
        """Boot one more host."""
        number = len(self.hosts) + 16
        host = Host(name, f"{self.prefix}.{number}", self.folder / name, self)
        self.hosts.append(host)
        host.start()
        return host

    def plug_in(self, host: Host) -> None:
        """Connect a host that boots."""
        wait_for(lambda: _has_child(host), f"namespaces of {host.name}")
        outside, inside = (f"v{self.prefix.split('.')[2]}{end}{host.address.split('.')[3]}" for end in "ab")
        _ip("link", "delete", outside, check=False)  # of a host that was lost: the kernel takes its time
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "address", _hardware_address(host.address))
        _ip("link", "set", inside, "netns", str(host.pid), "name", "eth0")
        _ip("link", "set", outside, "master", self.bridge, "up")


@contextmanager
def network(folder: Path, *, shared: Path) -> Iterator[Network]:
    """An empty network of hosts with its files in `folder`; all hosts are gone when the block ends."""
    folder.mkdir(parents=True)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with ExitStack() as cleanup:
        made = next(one for prefix in _free_prefixes() if _add_bridge(one := Network(folder, prefix, shared)))
        cleanup.callback(_ip, "link", "delete", made.bridge)
        _ip("address", "add", f"{made.gateway}/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        cleanup.callback(lambda: [host.lose() for host in made.hosts])
        yield made


def _free_prefixes() -> Iterator[str]:
    taken = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    prefixes = (f"10.77.{number}" for number in range(1, 250))
    return (prefix for prefix in prefixes if f"{prefix}." not in taken)


def _add_bridge(network: Network) -> bool:
    """Make the network's bridge; returns whether its name was still free: others may be making theirs."""
    address = _hardware_address(network.gateway)
    return not _ip("link", "add", network.bridge, "address", address, "type", "bridge", check=False).returncode


def _hardware_address(address: str) -> str:
    """A private one that follows from the address. Left to itself a bridge takes the lowest of those of its hosts, and
    another one when that host is lost: the others then do not reach this machine for as long as they remember it."""
    return ":".join(f"{part:02x}" for part in (2, 0, *map(int, address.split("."))))


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True)


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _has_child(host: Host) -> bool:
    try:
        return host.pid > 0
    except (IndexError, OSError):
        return False
