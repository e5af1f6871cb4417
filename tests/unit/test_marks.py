"""Marks say which functions of a host are managed here; what a first run replaces is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.module_utils import marks

MARK = {"environment": "lab", "services": ["api"]}


def write(root: Path, path: str, text: str = "x") -> Path:
    """Write a file of the host."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """A file of the operator outside of the host's root, so that its path is absolute."""
    return write(tmp_path, "operator/nginx.conf", "theirs")


def test_a_host_without_marks_has_none(tmp_path: Path) -> None:
    assert marks.read_marks(tmp_path) == {}
    assert not marks.is_marked("nginx", MARK, tmp_path)


def test_the_first_claim_copies_what_it_replaces(tmp_path: Path, sites: Path) -> None:
    sites.chmod(0o640)
    marks.claim("nginx", MARK, [str(sites), "/does/not/exist"], tmp_path)
    assert marks.read_marks(tmp_path) == {"nginx": MARK}
    copy = tmp_path / marks.REPLACED / sites.relative_to("/")
    assert copy.read_text() == "theirs"
    assert copy.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / marks.REPLACED).stat().st_mode & 0o777 == 0o700
    sites.write_text("ours")
    shop = MARK | {"services": ["shop"]}
    assert not marks.is_marked("nginx", shop, tmp_path)
    marks.claim("nginx", shop, [str(sites)], tmp_path)
    assert copy.read_text() == "theirs"
    assert marks.is_marked("nginx", shop, tmp_path)
    assert marks.is_marked("nginx", MARK, tmp_path)
    assert marks.read_marks(tmp_path)["nginx"]["services"] == ["api", "shop"]


def test_a_second_function_of_the_host_copies_its_own_files(tmp_path: Path, sites: Path) -> None:
    marks.claim("base", MARK, [], tmp_path)
    marks.claim("nginx", MARK, [str(sites)], tmp_path)
    assert sorted(marks.read_marks(tmp_path)) == ["base", "nginx"]
    assert (tmp_path / marks.REPLACED / sites.relative_to("/")).exists()


def test_files_of_0_1_0_stand_for_marks_until_the_first_claim(tmp_path: Path, sites: Path) -> None:
    write(tmp_path, "etc/apt/apt.conf.d/90fastmetal")
    write(tmp_path, "etc/systemd/system/nginx.service.d/fastmetal.conf")
    write(tmp_path, "usr/local/lib/shop-release/__main__.py", '"""SERVICE-release: ..."""')
    write(tmp_path, "etc/redis/redis-cache.conf", "port 6380\n")  # The operator's own.
    assert marks.read_marks(tmp_path) == {"app": {"services": ["shop"]}, "base": {}, "nginx": {}}
    marks.claim("nginx", MARK, [str(sites)], tmp_path)
    shop = MARK | {"services": ["api", "shop"]}
    assert marks.read_marks(tmp_path) == {"app": shop, "base": MARK, "nginx": MARK}
    assert not (tmp_path / marks.REPLACED).exists()


def test_a_mark_with_one_service_is_read(tmp_path: Path) -> None:
    write(tmp_path, f"{marks.MARKS}/app.json", '{"environment": "lab", "service": "api"}')
    assert marks.read_marks(tmp_path) == {"app": MARK}


def test_an_interrupted_first_claim_is_repeated(tmp_path: Path) -> None:
    write(tmp_path, "etc/apt/apt.conf.d/90fastmetal")
    write(tmp_path, f"{marks.MARKS}.new/base.json", "")
    marks.claim("nginx", MARK, [], tmp_path)
    assert marks.read_marks(tmp_path) == {"base": MARK, "nginx": MARK}
