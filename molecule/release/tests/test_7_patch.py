"""playbooks/patch.yml: hosts are upgraded and rebooted one after the other, without a lost request."""

from __future__ import annotations

import json

import pytest

from tests.release.fleet import Fleet

RATE = 50
# A repository on the host itself with two packages in version 2; version 1 is installed.
PACKAGES = """
set -e
mkdir -p /srv/repository && cd /srv/repository
for version in 1 2; do
  : > Packages
  for name in patched theirs; do
    mkdir -p build/DEBIAN
    printf 'Package: %s\\nVersion: %s\\nArchitecture: all\\nMaintainer: test\\nDescription: test\\n' \
      $name $version > build/DEBIAN/control
    dpkg-deb --build build $name-$version.deb > /dev/null
    { cat build/DEBIAN/control; printf 'Filename: ./%s\\nSize: %s\\nSHA256: %s\\n\\n' $name-$version.deb \
        $(stat -c %s $name-$version.deb) $(sha256sum $name-$version.deb | cut -d' ' -f1); } >> Packages
  done
  [ $version = 2 ] || dpkg --install ./*-1.deb > /dev/null
done
echo 'deb [trusted=yes] file:/srv/repository ./' > /etc/apt/sources.list.d/repository.list
apt-get update -qq
"""
REMOVE = """
dpkg --purge patched theirs > /dev/null
rm -r /etc/apt/sources.list.d/repository.list /srv/repository
apt-get update -qq
"""
VERSIONS = "dpkg-query --show --showformat='${Package} ${Version}\\n' patched theirs"
BOOT = "cat /proc/sys/kernel/random/boot_id; systemctl show --value --property=UserspaceTimestampMonotonic"


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_patched_hosts_lose_no_request(fleet: Fleet) -> None:
    for host in fleet.apps:
        fleet.ssh(host, PACKAGES)
    before = {host: fleet.ssh(host, BOOT) for host in fleet.apps}
    try:
        with fleet.load("patch", RATE) as load:
            run = fleet.play(
                "patch",
                *("--limit", ",".join(fleet.apps)),
                patch_reboot="always",
                base_upgrades_held_packages=["their"],
            )
        assert run.status == 0, run.output
        assert not load.report.failures
        report = json.loads(run.output.split('"msg": ', 1)[1].split("\n}\n")[0])
        for host in fleet.apps:
            assert "patched 1 -> 2" in report[host]["upgraded"]
            assert "theirs 1 -> 2" in report[host]["held"]
            assert report[host]["rebooted"] is True
            assert fleet.ssh(host, VERSIONS).splitlines() == ["patched 2", "theirs 1"]
            assert fleet.ssh(host, BOOT) != before[host]
        # No edge drains any more.
        assert (
            fleet.ssh(fleet.edge, "ls /run/nginx-drain; systemctl list-units --no-legend 'nginx-patch-*'")
            == ""
        )
    finally:
        for host in fleet.apps:
            fleet.ssh(host, REMOVE)
    # A second run finds nothing to do.
    again = fleet.play("patch", "--limit", ",".join(fleet.apps), "--check", patch_upgrade=False)
    assert again.status == 0, again.output
    assert not any(again.changed.values())
