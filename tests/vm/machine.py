"""A Debian 13 machine under qemu's software emulation, for what a container cannot show."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from tests.lab import ROOT

DIRECTORY = ROOT / ".lab/vm"
IMAGE = DIRECTORY / "root.img"
KEY = DIRECTORY / "id_ed25519"
NAME = "vm"
# qemu's own network has this gateway, which stands for the control node, and this name server.
CONTROL_NODE = "10.0.2.2"
ADDRESS = "10.0.2.15"
SSH_PORT = 22022
PACKAGES = (
    "ca-certificates,dbus,gnupg,iproute2,iputils-ping,kmod,linux-image-cloud-amd64,nftables,openssh-server,procps,"
    "python3,python3-apt,sudo,systemd,systemd-sysv,zstd"
)
# The card's name differs between versions of qemu.
NETWORK = f"[Match]\nType=ether\n[Network]\nAddress={ADDRESS}/24\nGateway={CONTROL_NODE}\n"
FILES = {
    "etc/hostname": f"{NAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n{ADDRESS} {NAME}\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/machine-id": "",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/systemd/network/10-card.network": NETWORK,
}
MEMORY_MB = 3072
DISK = "8G"


def build() -> None:
    """Build the disk, its kernel and the key for SSH, unless they exist."""
    if IMAGE.exists():
        return
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    tree = DIRECTORY / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    KEY.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", str(KEY))
    run(
        *("unshare", "--mount", "--propagation", "private"),
        *("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", str(tree)),
    )
    for name, content in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    # The machine may have to trust a private CA, like a host of the lab.
    for ca in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(ca, tree / "usr/local/share/ca-certificates")
    run("chroot", str(tree), "update-ca-certificates")
    run("chroot", str(tree), "systemctl", "enable", "systemd-networkd.service")
    keys = tree / "root/.ssh"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    (keys / "authorized_keys").write_text(KEY.with_suffix(".pub").read_text())
    for name, target in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd")):
        shutil.copy(next((tree / "boot").glob(f"{name}-*")), DIRECTORY / target)
    new = IMAGE.with_suffix(".new")
    new.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(new), DISK)
    shutil.rmtree(tree)
    new.rename(IMAGE)


class Machine:
    """The running machine. Its disk outlives it."""

    # The start of a command line that logs in as root.
    login = (
        *(
            "ssh",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ),
        *("-o", "ConnectTimeout=20", "-i", str(KEY), "-p", str(SSH_PORT), "root@127.0.0.1"),
    )

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot, and wait until SSH answers."""
        with (DIRECTORY / "console.log").open("ab") as console:
            self.process = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
                    *("-m", str(MEMORY_MB), "-nographic", "-no-reboot"),
                    *("-kernel", str(DIRECTORY / "vmlinuz"), "-initrd", str(DIRECTORY / "initrd")),
                    *("-append", "root=/dev/vda rw console=ttyS0 panic=-1"),
                    # Writes reach the file when the guest flushes, so that a kill of qemu is a power failure.
                    *("-drive", f"file={IMAGE},format=raw,if=virtio,cache=writeback"),
                    *("-netdev", f"user,id=card,hostfwd=tcp:127.0.0.1:{SSH_PORT}-:22"),
                    *("-device", "virtio-net-pci,netdev=card", "-device", "virtio-rng-pci"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait()

    def wait(self, seconds: float = 600) -> None:
        """Wait until a login works; raise TimeoutError with the console's last lines if none does."""
        deadline = time.monotonic() + seconds
        while self.ssh("true", check=False).returncode:
            if time.monotonic() > deadline:
                lines = (DIRECTORY / "console.log").read_text(errors="replace").splitlines()
                raise TimeoutError("no login: " + "\n".join(lines[-20:]))
            time.sleep(2)

    def ssh(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root."""
        done = subprocess.run([*self.login, command], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{command}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done

    def answer(self, command: str) -> str:
        """Return the output of a shell command."""
        return self.ssh(command).stdout.strip()

    def cut_power(self) -> None:
        """End the machine without a shutdown: what it has not written to its disk is lost."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reboot(self) -> None:
        """Restart the machine by its own systemd."""
        before = self.answer("cat /proc/sys/kernel/random/boot_id")
        self.ssh("systemctl reboot", check=False)
        if self.process:
            # With -no-reboot qemu ends where a machine would start again.
            self.process.wait(timeout=600)
        self.start()
        if self.answer("cat /proc/sys/kernel/random/boot_id") == before:
            raise RuntimeError("the machine did not restart")


def run(*argv: str) -> None:
    """Run a command; raise RuntimeError with its output if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-2000:]}")
