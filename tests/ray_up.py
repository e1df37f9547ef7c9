"""A cluster that `ray up cluster.local.yaml` makes of hosts, used as its users do: from a machine with an SSH key."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from background import PATIENCE_S
from cluster_hosts import Host, Network
from repository import ROOT
from ruamel.yaml import YAML

SPEC = ROOT / "cluster.local.yaml"


class Cluster:
    """Hosts, the file that makes a cluster of them, and the machine of the user."""

    def __init__(
        self,
        network: Network,
        head: Host,
        workers: Sequence[Host],
        *,
        num_cpus: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.network, self.head, self.workers = network, head, workers
        self.home = network.folder / "user"
        self.spec = self.home / "cluster.yaml"
        self.home.mkdir(exist_ok=True)
        self._write_spec(num_cpus, environment)
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "LANG": "C.UTF-8",
        }
        if not (self.home / ".ray" / "auth_token").exists():
            self.ray("get-auth-token", "--generate", umask=0o077)

    @property
    def token(self) -> str:
        """The token that opens it."""
        return (self.home / ".ray" / "auth_token").read_text().strip()

    @property
    def hosts(self) -> list[Host]:
        return [self.head, *self.workers]

    def ray(
        self, *arguments: str, check: bool = True, timeout: float = PATIENCE_S, umask: int = -1
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Ray's own commands on the user's machine."""
        done = subprocess.run(
            ["ray", *arguments], env=self.environment, cwd=self.home, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False, timeout=timeout, umask=umask,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"ray {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start one of Ray's own commands on the user's machine, in a process group of its own."""
        with open(log, "wb") as output:
            return subprocess.Popen(
                ["ray", *arguments], env=self.environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def up(self) -> None:
        """`ray up`, and wait until all hosts have joined."""
        self.ray("up", "-y", "--no-config-cache", str(self.spec))
        self.wait_for_nodes(len(self.hosts))

    def wait_for_nodes(self, number: int) -> None:
        """Wait until so many nodes are alive."""
        script = (
            "import ray, time; ray.init(address='auto', log_to_driver=False, logging_level='ERROR')\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {number}: time.sleep(0.3)"
        )
        self.head.run(f"timeout {PATIENCE_S:.0f} python -c {shlex.quote(script)}", timeout=PATIENCE_S + 10)

    def down(self) -> None:
        self.ray("down", "-y", str(self.spec))

    def _write_spec(self, num_cpus: int | None, environment: Mapping[str, str]) -> None:
        """The file of the repository with its words in capitals replaced, and an installation that needs no network."""
        own = {
            "HEAD_ADDRESS": self.head.address,
            "[WORKER_ADDRESS, WORKER_ADDRESS]": f"[{', '.join(worker.address for worker in self.workers)}]",
            "USER": "root",
            "~/.ssh/id_ed25519": str(self.network.key),
            "CLUSTER_NETWORK": self.network.hosts_range,
            "./search_spaces": str(ROOT / "search_spaces"),
        }
        text = SPEC.read_text()
        for word, value in own.items():
            assert word in text, word
            text = text.replace(word, value)
        yaml = YAML()
        spec = yaml.load(text)
        assert "pip install" in spec["setup_commands"][0]
        spec["setup_commands"][0] = "sh /mnt/network/install.sh"
        exports = " ".join(f"{name}={value}" for name, value in environment.items())
        spec["setup_commands"].append(f"grep -q '{exports}' ~/.bashrc || echo 'export {exports}' >> ~/.bashrc")
        if num_cpus is not None:
            for commands in (spec["head_start_ray_commands"], spec["worker_start_ray_commands"]):
                commands[-1] += f" --num-cpus={num_cpus}"
        yaml.dump(spec, self.spec)


def prepare_installation(network: Network) -> None:
    """Put beside the hosts' keys what installs this project on them: a wheel of it, its dependencies from here."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--no-build-isolation", "-w", network.folder, "."],
        cwd=_copy_of_sources(network.folder / "sources"), check=True, capture_output=True,
    )  # fmt: skip
    base, packages = Path(sys.executable), sysconfig.get_paths()["purelib"]
    (network.folder / "install.sh").write_text(
        f"""set -e
        [ -x ~/lsmha-env/bin/ray ] && exit
        {base} -m venv ~/lsmha-env
        echo {packages} > $(echo ~/lsmha-env/lib/python*/site-packages)/dependencies.pth
        ~/lsmha-env/bin/python -m pip install -q --no-deps --no-index /mnt/network/*.whl
        printf '#!%s\\nfrom ray.scripts.scripts import main\\nmain()\\n' ~/lsmha-env/bin/python > ~/lsmha-env/bin/ray
        chmod +x ~/lsmha-env/bin/ray
        """
    )


def _copy_of_sources(folder: Path) -> Path:
    """What is built from, apart: a build leaves things behind, and the hosts shall see what is tracked."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "lsmha", "orchestrator"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    return folder
