#!/usr/bin/env python3
"""Run real systemd hosts on one Linux machine: systemd-nspawn over a shared image.

Every lab belongs to one checkout. It has its own directory (`.lab/<lab>/`), bridge, subnet,
nft table and cgroup, all named after a hash of checkout and lab, so labs never collide.
A host's mounts live in its own mount namespace and end with it. The cgroup, never a file,
says which hosts run, so the next `up` or `down` finds everything that a killed run left.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("LABCTL_ROOT", Path(__file__).resolve().parents[3]))
CACHE = Path("/var/cache/fastmetal-lab")
RUN = Path("/run/fastmetal-lab")
RELEASES = ("bookworm", "trixie")
DEFAULT_RELEASE = "trixie"
# What addresses a host has; of dual, SSH and Ansible use the IPv4 address.
FAMILIES = ("ipv4", "dual", "ipv6")
IMAGE_PACKAGES = (
    "ca-certificates,dbus,gnupg,iproute2,iputils-ping,kmod,nftables,openssh-server,procps,"
    "python3,python3-apt,sudo,systemd,systemd-sysv"
)
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"

LAUNCH = """
set -e
mount --make-rprivate /
if ! [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  umount -l /sys/fs/cgroup
  mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
fi
cd {dir}
mount -t overlay overlay -o lowerdir={base},upperdir=upper,workdir=work,volatile root
# nspawn ends with status 133 if the host reboots itself.
status=133
while [ $status = 133 ]; do
  status=0
  systemd-nspawn -q --register=no --keep-unit -b -D root -M {machine} --hostname={name} \
    --network-bridge={bridge} --console=pipe --resolv-conf=off --timezone=off --link-journal=no \
    --kill-signal=SIGRTMIN+3 || status=$?
done
"""


class LabError(Exception):
    """An error that ends labctl with one sentence for the operator."""


def run(*argv: str, **kwargs: Any) -> str:
    """Run a command and return its output; raise LabError with the command's error output if it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(argv, capture_output=True, text=True, **kwargs)
    if done.returncode:
        raise LabError(f"{shlex.join(argv)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what} took longer than {seconds:.0f} s")
        time.sleep(0.05)


def cgroup_root() -> Path:
    """Return the machine's cgroup2 hierarchy; mount it if the machine does not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    point = RUN / "cgroup"
    point.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "cgroup2", "cgroup2", str(point))
    return point


def build_image(release: str, progress: Callable[[str], None]) -> Path:
    """Return the shared image of a Debian release; build it on first use (about 20 s)."""
    if release not in RELEASES:
        raise LabError(f"unknown Debian release '{release}': use one of {', '.join(RELEASES)}")
    ca_files = sorted(Path("/usr/local/share/ca-certificates").glob("*.crt"))
    recipe = [release, IMAGE_PACKAGES, *(path.read_text() for path in ca_files)]
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:8]
    image = CACHE / f"{release}-{digest}"
    with locked(CACHE / "lock"):
        # Running hosts mount their image, so a new recipe gets a new name and never replaces an image.
        if image.exists() and not (image / "etc/machine-id").exists():
            shutil.rmtree(image)
        if image.exists():
            return image
        progress(f"building the {release} image, once for this machine (about 20 s)")
        for leftover in CACHE.glob("build-*"):
            shutil.rmtree(leftover)
        build = Path(tempfile.mkdtemp(prefix="build-", dir=CACHE))
        build.chmod(0o755)
        # In its own mount namespace, so that a killed build leaves no mount.
        run(
            *("unshare", "--mount", "--propagation", "private"),
            *("mmdebstrap", "--variant=minbase", f"--include={IMAGE_PACKAGES}", release, str(build)),
        )
        for ca_file in ca_files:
            shutil.copy(ca_file, build / "usr/local/share/ca-certificates")
        run("chroot", str(build), "update-ca-certificates")
        for key in (build / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        write(build / "etc/machine-id", "")
        # mmdebstrap just emptied the package lists; Ansible would consider them up to date.
        os.utime(build / "var/lib/apt/lists", (0, 0))
        wants = build / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        build.rename(image)
    return image


class Lab:
    """One lab of one checkout."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dir = ROOT / ".lab" / name
        self.id = hashlib.sha256(f"{ROOT}\0{name}".encode()).hexdigest()[:6]
        self.bridge = f"fm-{self.id}"
        self.table = f"fastmetal_{self.id}"
        # Unique local addresses (RFC 4193); no packet for them leaves the machine.
        self.prefix = f"fd46:4d{self.id[:2]}:{self.id[2:].lstrip('0') or '1'}:"
        self.state: dict[str, Any] = {"subnet": "", "hosts": {}}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.state = json.loads((self.dir / "state.json").read_text())

    def save(self) -> None:
        write(self.dir / "state.json.new", json.dumps(self.state, indent=2) + "\n")
        (self.dir / "state.json.new").rename(self.dir / "state.json")

    def host(self, name: str) -> dict[str, Any]:
        try:
            host: dict[str, Any] = self.state["hosts"][name]
        except KeyError:
            raise LabError(
                f"lab '{self.name}' has no host '{name}': see `labctl.py status {self.name}`"
            ) from None
        return host

    # --- hosts -----------------------------------------------------------------

    def machine(self, name: str) -> str:
        """Return systemd-nspawn's name of the host."""
        return f"fm{self.id}-{self.host(name)['index']}"

    def interface(self, name: str) -> str:
        """Return this machine's end of the host's network."""
        return f"vb-{self.machine(name)}"

    def cgroup(self, name: str) -> Path:
        return cgroup_root() / f"fastmetal-{self.id}" / name

    def is_running(self, name: str) -> bool:
        """Return whether any process of the host still runs; cgroup.procs does not list exiting ones."""
        with contextlib.suppress(OSError):
            return "populated 1" in (self.cgroup(name) / "cgroup.events").read_text()
        return False

    def init(self, name: str) -> int | None:
        """Return the host's PID 1 in the machine's PID namespace: the first process of nspawn's payload."""
        for pid in cgroup_processes(self.cgroup(name)):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if next(x for x in status.splitlines() if x.startswith("NSpid:")).split()[2:] == ["1"]:
                    return pid
        return None

    def start(self, name: str) -> None:
        host = self.host(name)
        directory = self.dir / "hosts" / name
        for part in ("upper", "work", "root"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        # After a crash of the machine, the overlay refuses to mount until this is removed.
        shutil.rmtree(directory / "work/work/incompat", ignore_errors=True)
        self.prepare(name, directory / "upper")
        # The kernel removes a killed host's interface later, an IPv6 one's after seconds.
        link = f"/sys/class/net/{self.interface(name)}"
        subprocess.run(["ip", "link", "del", self.interface(name)], capture_output=True, check=False)
        wait_for(lambda: not os.path.lexists(link), 10, f"removing the former interface of host '{name}'")
        self.cgroup(name).mkdir(parents=True, exist_ok=True)
        script = LAUNCH.format(
            base=host["image"],
            dir=shlex.quote(str(directory)),
            machine=self.machine(name),
            name=name,
            bridge=self.bridge,
        )
        with (directory / "console.log").open("wb") as console:
            subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                # Before exec: after a kill, only processes in the cgroup can be found.
                preexec_fn=lambda: (self.cgroup(name) / "cgroup.procs").write_text("0"),
            )

    def prepare(self, name: str, upper: Path) -> None:
        """Write the files that differ between hosts, on the first start only, to keep the host's changes."""
        host, subnet = self.host(name), self.state["subnet"]
        family, number = host.get("family", "ipv4"), host["index"] + 10
        network = "[Match]\nName=host0\n[Network]\nIPv6AcceptRA=no\n"
        # Neighbours of an IPv6 host are found by link-local addresses.
        network += f"LinkLocalAddressing={'no' if family == 'ipv4' else 'ipv6'}\n"
        if family != "ipv6":
            network += f"Address={subnet}.{number}/24\nGateway={subnet}.1\n"
        if family != "ipv4":
            # During a check for duplicates, which takes up to two seconds, an address cannot be used.
            network += f"Gateway={self.prefix}:1\n[Address]\nAddress={self.prefix}:{number:x}/64\n"
            network += "DuplicateAddressDetection=none\n"
        # A host may change its family.
        write(upper / "etc/systemd/network/10-host0.network", network)
        if (upper / "etc/hostname").exists():
            return
        write(upper / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{host['address']} {name}\n")
        write(upper / "etc/resolv.conf", resolver())
        (upper / "root").mkdir(mode=0o700, exist_ok=True)
        (upper / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        public = (self.dir / "id_ed25519.pub").read_text()
        write(upper / "root/.ssh/authorized_keys", public, 0o600)
        self.keygen(upper / HOST_KEY, name)
        write(upper / "etc/hostname", f"{name}\n")

    def keygen(self, path: Path, comment: str) -> None:
        """Generate a key pair and rename it into place, so that a killed run never leaves half a pair."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.dir) as scratch:
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", f"{scratch}/key")
            Path(f"{scratch}/key.pub").rename(f"{path}.pub")
            Path(f"{scratch}/key").rename(path)

    def kill(self, name: str) -> None:
        """Simulate a power failure: kill all processes of the host at once."""
        cgroup = self.cgroup(name)
        if not cgroup.exists():
            return
        (cgroup / "cgroup.kill").write_text("1")
        wait_for(lambda: not self.is_running(name), 10, f"killing host '{name}'")
        remove_cgroup(cgroup)

    def stop(self, name: str) -> None:
        """Shut the host down; kill it after 20 s."""
        init = self.init(name)
        if init:
            os.kill(init, signal.SIGRTMIN + 3)
            with contextlib.suppress(LabError):
                wait_for(lambda: not self.is_running(name), 20, f"stopping host '{name}'")
        self.kill(name)

    def remove_host(self, name: str) -> None:
        self.kill(name)
        shutil.rmtree(self.dir / "hosts" / name, ignore_errors=True)
        self.state["hosts"].pop(name, None)

    def wait_for_ssh(self, name: str) -> None:
        """Wait until SSH answers on each address of the host."""
        host = self.host(name)

        def answers() -> bool:
            if not self.is_running(name):
                log = (self.dir / "hosts" / name / "console.log").read_text(errors="replace")
                raise LabError(f"host '{name}' ended while starting: {log.strip()[-500:]}")
            return all(map(ssh_answers, {host["address"], host.get("address6") or host["address"]}))

        wait_for(answers, 60, f"starting host '{name}'")

    # --- network ---------------------------------------------------------------

    def network_up(self) -> None:
        with locked(RUN / "network.lock"):
            if self.bridge_is_up() and self.state["subnet"]:
                return
            self.network_down()
            taken = run("ip", "-o", "-4", "addr") + run("ip", "-4", "route")
            first = int(self.id, 16)
            all_subnets = [f"10.213.{(first + n) % 254 + 1}" for n in range(254)]
            subnets = [self.state["subnet"], *all_subnets] if self.state["subnet"] else all_subnets
            subnet = next((x for x in subnets if f"{x}." not in taken), None)
            if not subnet:
                raise LabError(
                    "no free subnet in 10.213.0.0/16: remove unused labs with `labctl.py down LAB`"
                )
            if self.state["subnet"] not in ("", subnet):
                raise LabError(
                    f"subnet {self.state['subnet']}.0/24 is in use: run `labctl.py down {self.name}` first"
                )
            self.state["subnet"] = subnet
            self.save()
            forward = Path("/proc/sys/net/ipv4/ip_forward")
            original = RUN / "ip_forward"
            if not original.exists():
                write(original, forward.read_text())
            forward.write_text("1")
            run("nft", "-f", "-", input=self.rules(subnet))
            # Keep packets for this subnet on the machine while the bridge is down.
            run("ip", "route", "add", "blackhole", f"{subnet}.0/24", "metric", "9999")
            run("ip", "link", "add", self.bridge, "type", "bridge", "forward_delay", "0")
            run("ip", "addr", "add", f"{subnet}.1/24", "dev", self.bridge)
            if Path("/proc/net/if_inet6").exists():
                run("ip", "-6", "route", "add", "blackhole", f"{self.prefix}:/64", "metric", "9999")
                run("ip", "-6", "addr", "add", f"{self.prefix}:1/64", "dev", self.bridge, "nodad")
            run("ip", "link", "set", self.bridge, "up")

    def bridge_is_up(self) -> bool:
        """Return whether the network is complete; a killed run may leave a bridge without an address."""
        flags = Path(f"/sys/class/net/{self.bridge}/flags")
        return flags.exists() and bool(int(flags.read_text(), 16) & 1)  # IFF_UP, set last

    def rules(self, subnet: str) -> str:
        """Return nft rules: hosts reach each other, this machine, the resolver and ports 80 and 443 only."""
        servers = ", ".join(
            line.split()[1] for line in resolver().splitlines() if line.startswith("nameserver")
        )
        return f"""
        table inet {self.table} {{
          chain forwarding {{
            type filter hook forward priority 0; policy accept;
            iifname != "{self.bridge}" oifname != "{self.bridge}" accept
            iifname "{self.bridge}" oifname "{self.bridge}" accept
            ct state established,related accept
            iifname "{self.bridge}" tcp dport {{ 80, 443 }} accept
            iifname "{self.bridge}" ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept
            drop
          }}
          chain translation {{
            type nat hook postrouting priority 100;
            ip saddr {subnet}.0/24 oifname != "{self.bridge}" masquerade
          }}
        }}
        """

    def network_down(self) -> None:
        """Remove the bridge, route and rules that exist."""
        subnet = self.state["subnet"]
        if subnet:
            # Multiplexed SSH connections would outlive their hosts.
            links = run("ss", "--no-header", "--tcp", "--numeric", "--processes", "dst", f"{subnet}.0/24")
            for pid in re.findall(r'"ssh",pid=(\d+)', links):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
        if Path(f"/sys/class/net/{self.bridge}").exists():
            run("ip", "link", "del", self.bridge)
        if subnet and f"blackhole {subnet}.0/24" in run("ip", "-4", "route"):
            run("ip", "route", "del", "blackhole", f"{subnet}.0/24", "metric", "9999")
        has_ipv6 = Path("/proc/net/if_inet6").exists()
        if has_ipv6 and f"blackhole {self.prefix}:/64" in run(
            "ip", "-6", "route", "show", "type", "blackhole"
        ):
            run("ip", "-6", "route", "del", "blackhole", f"{self.prefix}:/64", "metric", "9999")
        # A machine that never ran a lab may lack nft.
        if shutil.which("nft") and f"table inet {self.table}\n" in run("nft", "list", "tables") + "\n":
            run("nft", "delete", "table", "inet", self.table)

    # --- verbs -----------------------------------------------------------------

    def up(
        self,
        releases: dict[str, str | None],
        progress: Callable[[str], None],
        families: dict[str, str | None] | None = None,
    ) -> bool:
        """Start exactly the given hosts and remove all others; return whether any host changed.

        `releases` is {name: Debian release}; None keeps the host's release, and likewise `families`.
        A host keeps its files when it changes its family, and restarts.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        if not (self.dir / "id_ed25519").exists():
            self.keygen(self.dir / "id_ed25519", f"fastmetal-lab-{self.name}")
        for name in set(self.state["hosts"]) - set(releases):
            progress(f"removing host {name}")
            self.remove_host(name)
        for name, release in releases.items():
            known = self.state["hosts"].get(name)
            if known and release and known["release"] != release:
                progress(f"replacing host {name}: {known['release']} with {release}")
                self.remove_host(name)
        images = {
            name: build_image(
                release or self.state["hosts"].get(name, {}).get("release", DEFAULT_RELEASE), progress
            )
            for name, release in releases.items()
            if name not in self.state["hosts"] or not Path(self.state["hosts"][name]["image"]).exists()
        }
        self.network_up()
        for name, image in images.items():
            self.remove_host(name)
            used = {host["index"] for host in self.state["hosts"].values()}
            index = next(n for n in range(240) if n not in used)
            self.state["hosts"][name] = {
                "address": "",
                "release": image.name.split("-")[0],
                "image": str(image),
                "index": index,
            }
        for name in releases:
            host = self.state["hosts"][name]
            family = (families or {}).get(name) or host.get("family", "ipv4")
            if family != "ipv4" and not Path("/proc/net/if_inet6").exists():
                raise LabError(f"host '{name}' cannot have IPv6: this machine's kernel has none")
            if family != host.get("family", "ipv4"):
                self.stop(name)
            number = host["index"] + 10
            four, six = f"{self.state['subnet']}.{number}", f"{self.prefix}:{number:x}"
            host |= {"family": family, "address": six if family == "ipv6" else four}
            host["address6"] = "" if family == "ipv4" else six
        self.save()
        stopped = [name for name in releases if not self.is_running(name)]
        for name in stopped:
            self.start(name)
        for name in releases:
            self.wait_for_ssh(name)
        self.write_connection_files()
        return bool(images or stopped)

    def write_connection_files(self) -> None:
        """Write the SSH files and addresses for the checkout's owner, who runs Ansible without sudo."""
        lines = [
            host["address"] + " " + (self.dir / "hosts" / name / f"upper/{HOST_KEY}.pub").read_text()
            for name, host in self.state["hosts"].items()
        ]
        write(self.dir / "known_hosts", "".join(lines))
        for name, host in self.state["hosts"].items():
            for kind in ("address", "address6"):
                write(self.dir / "hosts" / name / kind, host[kind] + "\n")
        entries = "".join(
            f"Host {name}\n  HostName {host['address']}\n" for name, host in self.state["hosts"].items()
        )
        common = f'Host *\n  User root\n  IdentityFile "{self.dir}/id_ed25519"\n  IdentitiesOnly yes\n'
        write(self.dir / "ssh_config", f'{entries}{common}  UserKnownHostsFile "{self.dir}/known_hosts"\n')
        owner = ROOT.stat()
        for path in (self.dir.parent, self.dir, *self.dir.glob("*")):
            if path.name != "hosts":
                os.chown(path, owner.st_uid, owner.st_gid)

    def down(self) -> bool:
        running = [path.name for path in self.cgroup(".").glob("*/")] if self.cgroup(".").exists() else []
        changed = bool(running) or self.dir.exists()
        for name in {*running, *self.state["hosts"]}:
            self.remove_host(name)
        remove_cgroup(self.cgroup("."))
        with locked(RUN / "network.lock"):
            self.network_down()
            original = RUN / "ip_forward"
            if original.exists() and not list(Path("/sys/class/net").glob("fm-*")):
                Path("/proc/sys/net/ipv4/ip_forward").write_text(original.read_text())
                original.unlink()
            if (RUN / "cgroup").is_mount() and not list((RUN / "cgroup").glob("fastmetal-*")):
                run("umount", str(RUN / "cgroup"))
        shutil.rmtree(self.dir, ignore_errors=True)
        return changed


def cgroup_processes(cgroup: Path) -> list[int]:
    """Return the processes below a cgroup; its parts may vanish during the read."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        found += [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
        for child in os.scandir(cgroup):
            if child.is_dir(follow_symlinks=False):
                found += cgroup_processes(Path(child.path))
    return found


def ssh_answers(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, 22), 0.5) as link:
        return link.recv(4) == b"SSH-"
    return False


def remove_cgroup(cgroup: Path) -> None:
    if cgroup.exists():
        for child in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            child.rmdir()
        cgroup.rmdir()


def resolver() -> str:
    """Return the machine's resolv.conf, or the upstream one if it names systemd-resolved's stub."""
    text = Path("/etc/resolv.conf").read_text()
    upstream = Path("/run/systemd/resolve/resolv.conf")
    return upstream.read_text() if "nameserver 127." in text and upstream.exists() else text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "verb",
        choices=["up", "down", "status", "start", "stop", "restart", "kill", "cut", "mend", "enter"],
        help="up: start exactly the hosts of --host; down: remove the lab; kill: simulate a power failure;"
        " cut and mend: disconnect hosts from the network and reconnect them; enter: run a command of this"
        " machine with a host's network, and so with its address: enter LAB HOST -- COMMAND",
    )
    parser.add_argument("lab", help="name of the lab")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="host",
        help="hosts for start, stop, restart, kill, cut and mend, by default all; for enter, a host"
        " and a command",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME[:RELEASE[:FAMILY]]",
        help="a host for up, repeatable; RELEASE is a Debian release, by default the host's present one;"
        f" FAMILY is one of {', '.join(FAMILIES)}, for a new host by default {FAMILIES[0]}",
    )
    options = parser.parse_args()
    # Services and SSH of the hosts read what this writes.
    os.umask(0o022)
    if os.geteuid():
        raise LabError("the lab creates network bridges and mounts: run labctl as root or with sudo")
    if options.verb == "enter":
        return enter(Lab(options.lab), *options.names)
    with locked(RUN / f"{hashlib.sha256(f'{ROOT}{options.lab}'.encode()).hexdigest()[:12]}.lock"):
        return run_verb(Lab(options.lab), options)


def enter(lab: Lab, name: str, *command: str) -> int:
    """Run a command with a host's network and return its exit status."""
    if (init := lab.init(name)) is None:
        raise LabError(f"host '{name}' does not run: `labctl.py start {lab.name} {name}`")
    return subprocess.run(["nsenter", f"--target={init}", "--net", "--", *command], check=False).returncode


def run_verb(lab: Lab, options: argparse.Namespace) -> int:
    def progress(text: str) -> None:
        print(f"lab {lab.name}: {text}", file=sys.stderr, flush=True)

    if options.verb == "up":
        words = [[*word.split(":"), "", ""] for word in options.host]
        releases = {name: release or None for name, release, *_ in words}
        families = {name: family or None for name, _, family, *_ in words}
        if not releases:
            raise LabError("up needs at least one --host")
        if any(len(name) > 63 or not name.replace("-", "").isalnum() for name in releases):
            raise LabError("host names may have 1 to 63 letters, digits and dashes")
        if wrong := set(families.values()) - {*FAMILIES, None}:
            raise LabError(f"unknown address family '{wrong.pop()}': use one of {', '.join(FAMILIES)}")
        print("changed" if lab.up(releases, progress, families) else "unchanged")
    elif options.verb == "down":
        print("changed" if lab.down() else "unchanged")
    elif options.verb == "status":
        for name, host in lab.state["hosts"].items():
            state = "running" if lab.is_running(name) else "stopped"
            print(f"{name}\t{host['address']}\t{host['release']}\t{state}")
    else:
        if not lab.state["hosts"]:
            raise LabError(
                f"lab '{lab.name}' has no hosts: start one with `labctl.py up {lab.name} --host NAME`"
            )
        for name in options.names or lab.state["hosts"]:
            if options.verb in ("stop", "restart"):
                lab.stop(name)
            if options.verb == "kill":
                lab.kill(name)
            if options.verb in ("cut", "mend"):
                run("ip", "link", "set", lab.interface(name), "down" if options.verb == "cut" else "up")
            if options.verb in ("start", "restart") and not lab.is_running(name):
                lab.start(name)
                lab.wait_for_ssh(name)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"labctl: {error}")
