"""Archives of a release, built from a folder of wheels without a network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fastmetal.metal.plugins.module_utils import release_build
from ansible_collections.fastmetal.metal.plugins.module_utils.release_build import Build
from ansible_collections.fastmetal.metal.plugins.module_utils.uv import BuildError, FaultsError

from tests.unit.release_sources import locked, make_sdist, make_wheel, source_files, write

SITE = "venv/lib/python3.13/site-packages"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "service"
version = "1.2"
dependencies = ["alpha"]

[tool.setuptools]
packages = ["service"]
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source of packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tree of an app that needs alpha."""
    tree = tmp_path / "tree"
    (tree / "service").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(PROJECT)
    (tree / "service/__init__.py").write_text("VALUE = 1\n")
    return tree


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The wheel of an app that needs alpha; nothing has to be built from it."""
    return make_wheel(tmp_path, "service", requires="alpha")


def request(source: Path, cache: str = "cache", **changes: Any) -> dict[str, Any]:
    """Return the module's request, for Python 3.13 on x86_64."""
    return {
        "source": str(source),
        "subdirectory": "",
        "files": [],
        "include": [],
        "requirements": str(source.parent / "requirements.txt"),
        "server": str(source.parent / "server.txt"),
        "indexes": {},
        "version": "",
        "commit": "",
        "python_version": "3.13.5",
        "architecture": "x86_64",
        "cache": str(source.parent / cache),
        **changes,
    }


def build(source: Path, lock: str, cache: str = "cache", **changes: Any) -> Build:
    """Build a release."""
    (source.parent / "requirements.txt").write_text(lock)
    (source.parent / "server.txt").touch()
    made = Build(request(source, cache, **changes))
    made.run()
    return made


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as tree:
        return set(tree.getnames())


def read(archive: Path, name: str) -> str:
    with tarfile.open(archive) as tree:
        file = tree.extractfile(name)
        assert isinstance(file, io.BufferedReader)
        return file.read().decode()


def test_archives_hold_the_code_and_the_dependencies_without_scripts(wheels: Path, source: Path) -> None:
    made = build(source, locked(make_wheel(wheels, "alpha")))
    assert names(made.dependencies) == {
        f"{SITE}/alpha/__init__.py",
        *(
            f"{SITE}/alpha-1.0.dist-info/{name}"
            for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
        ),
    }
    assert "alpha-run" not in read(made.dependencies, f"{SITE}/alpha-1.0.dist-info/RECORD")
    assert {"release.json", "code/service/__init__.py"} <= names(made.app)
    about = json.loads(read(made.app, "release.json"))
    assert (about["version"], about["python"], about["packages"]) == ("1.2", "3.13", ["alpha==1.0"])
    assert (about["id"], about["dependencies"]) == (made.release, made.dependencies_id)


def test_a_second_build_is_the_same_byte_for_byte(wheels: Path, source: Path) -> None:
    lock = locked(make_wheel(wheels, "alpha"))
    first, second = build(source, lock), build(source, lock, "other")
    assert first.release == second.release
    for one, other in ((first.app, second.app), (first.dependencies, second.dependencies)):
        assert one.read_bytes() == other.read_bytes()


def test_a_new_release_shares_the_dependencies_without_a_download(wheels: Path, app: Path) -> None:
    wheel = make_wheel(wheels, "alpha")
    lock = locked(wheel)
    first = build(app, lock)
    wheel.unlink()
    second = build(app, lock, version="2")
    assert second.release != first.release
    assert second.dependencies == first.dependencies
    assert json.loads(read(second.app, "release.json"))["packages"] == ["alpha==1.0"]


def test_wheels_and_markers_are_those_of_the_target(wheels: Path, app: Path) -> None:
    """The target's, not those of the Python that runs this test."""
    x86, arm = (
        make_wheel(wheels, "alpha", tag=f"cp313-cp313-manylinux_2_28_{arch}")
        for arch in ("x86_64", "aarch64")
    )
    old, new = make_wheel(wheels, "beta"), make_wheel(wheels, "gamma")
    lock = locked(x86, arm) + locked(old, marker="python_full_version < '3.13.5'")
    lock += locked(new, marker="platform_machine == 'aarch64'")
    made = build(app, lock)
    assert "manylinux_2_28_x86_64" in read(made.dependencies, f"{SITE}/alpha/__init__.py")
    assert json.loads(made.listed.read_text())["packages"] == ["alpha==1.0"]
    made = build(app, lock, architecture="aarch64", python_version="3.13.4")
    assert "manylinux_2_28_aarch64" in read(made.dependencies, f"{SITE}/alpha/__init__.py")
    assert json.loads(made.listed.read_text())["packages"] == ["alpha==1.0", "beta==1.0", "gamma==1.0"]


def test_a_requirement_without_a_hash_is_refused_beside_others_that_have_one(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(BuildError, match=r"has no hash for alpha==1.0: lock it with hashes\.$"):
        build(app, "alpha==1.0\n" + locked(make_wheel(wheels, "beta")))


def test_another_wheel_than_the_locked_one_is_refused(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(BuildError, match=r"uv could not install .*alpha==1.0"):
        build(app, f"alpha==1.0 --hash=sha256:{'0' * 64}\n")


def test_a_wheel_that_the_target_lacks_is_named(wheels: Path, app: Path) -> None:
    lock = locked(make_wheel(wheels, "alpha", tag="cp311-cp311-manylinux_2_28_x86_64"))
    with pytest.raises(BuildError, match=r"^alpha==1.0 has no wheel for Python 3.13 on x86_64"):
        build(app, lock)


def test_a_dependency_that_the_lock_lacks_is_named(wheels: Path, app: Path) -> None:
    with pytest.raises(BuildError, match=r"lacks alpha, which the app needs: lock it anew\.$"):
        build(app, locked(make_wheel(wheels, "beta")))


def test_a_wheel_is_released_as_it_is(wheels: Path, app: Path) -> None:
    made = build(app, locked(make_wheel(wheels, "alpha")))
    assert made.release.startswith("1.0-")
    assert "code/service/__init__.py" in names(made.app)


def test_the_dependencies_of_a_wheel_without_a_lock_are_resolved(
    wheels: Path, tmp_path: Path, app: Path
) -> None:
    make_wheel(wheels, "alpha")
    make_wheel(wheels, "beta")
    assert packages(build(app, "", requirements="")) == ["alpha==1.0"]
    make_wheel(tmp_path, "service", requires="beta")
    made = build(app, "", requirements="")
    assert (packages(made), made.local) == (["beta==1.0"], [])


def test_only_the_listed_files_make_the_release(wheels: Path, source: Path) -> None:
    (source.parent / "server.txt").touch()
    lock = source.parent / "requirements.txt"
    lock.write_text(locked(make_wheel(wheels, "alpha")))

    def release() -> str:
        return Build(request(source, files=["pyproject.toml", "service"])).release

    first = release()
    (source / "notes.txt").write_text("not listed\n")
    (source / "service/__pycache__").mkdir()
    (source / "service/__pycache__/x.pyc").touch()
    (source / "service/Containerfile").touch()
    assert release() == first
    (source / "service/__init__.py").write_text("VALUE = 2\n")
    assert release() != first


def test_old_archives_are_removed(wheels: Path, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_build, "KEEP", 1)
    lock = locked(make_wheel(wheels, "alpha"))
    first, second = build(app, lock), build(app, lock, version="2")
    assert not first.app.exists()
    assert second.is_built


# --- dependencies


def packages(made: Build) -> list[str]:
    return list(json.loads(read(made.app, "release.json"))["packages"])


def test_requirements_without_hashes_are_resolved_once(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha", requires="beta")
    make_wheel(wheels, "beta")
    first = build(app, "alpha  # direct\n")
    assert packages(first) == ["alpha==1.0", "beta==1.0"]
    assert "beta==1.0 --hash=sha256:" in read(first.app, "requirements.lock")
    assert first.lock.is_resolved
    make_wheel(wheels, "beta", version="2.0")
    second = build(app, "alpha\n")
    assert second.release == first.release
    assert packages(build(app, "alpha\n", "other")) == ["alpha==1.0", "beta==2.0"]


def test_extras_and_path_dependencies_are_those_of_each_tree(wheels: Path, tmp_path: Path) -> None:
    """Each commit of a repository is unpacked to another directory, and takes the versions of the first."""
    project = PROJECT.replace('dependencies = ["alpha"]', 'optional-dependencies = {fast = ["beta"]}')
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "beta", version=version)
        tree = write(tmp_path / f"tree-{version}", {"pyproject.toml": project, "service/__init__.py": ""})
        write(tree, {f"libs/gamma/{name}": text for name, text in source_files("gamma").items()})
        write(tree, {"requirements.txt": "-e .[fast]\n./libs/gamma\n"})
        made = build(tree, "", requirements="")
        assert packages(made) == ["beta==1.0"]
        assert made.local == [tree / "libs/gamma"]
        assert "local/gamma.py" in names(made.app)


def test_included_files_and_constraints_count(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha", requires="beta")
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "beta", version=version)
    write(app.parent, {"base.txt": "alpha\n", "limits.txt": "beta<2\n"})
    made = build(app, "-r base.txt\n-c limits.txt\n")
    assert packages(made) == ["alpha==1.0", "beta==1.0"]
    write(app.parent, {"limits.txt": "beta>1\n"})
    assert packages(build(app, "-r base.txt\n-c limits.txt\n")) == ["alpha==1.0", "beta==2.0"]


def test_a_uv_workspace_is_built_from_its_lock_without_a_file_in_it(wheels: Path, tmp_path: Path) -> None:
    """For a newer Python than that of the control node, with a path dependency and another one for tests."""
    root = workspace(wheels, tmp_path, ">=3.99")
    before = sorted(root.rglob("*"))
    made = build(root, "", subdirectory="backend", requirements="", python_version="3.99.1")
    assert packages(made) == ["alpha==1.0"]
    inside = names(made.app)
    assert {"code/shop/__init__.py", "code/migrations/env.py", "local/common.py"} <= inside
    assert read(made.app, "venv/lib/python3.99/site-packages/app.pth").split() == [
        "../../../../code",
        "../../../../local",
    ]
    assert sorted(root.rglob("*")) == before
    first = made.release
    write(root, {"libs/common/common.py": "NAME = 'changed'\n"})
    changed = build(root, "", subdirectory="backend", requirements="", python_version="3.99.1")
    assert changed.release != first


SETUPTOOLS = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'


def workspace(wheels: Path, folder: Path, python: str) -> Path:
    """Write a monorepo with a lock whose Python the control node lacks."""
    make_wheel(wheels, "alpha")
    make_wheel(wheels, "beta")
    root = write(
        folder / "mono",
        {
            "pyproject.toml": '[tool.uv.workspace]\nmembers = ["backend", "libs/common"]\n',
            "backend/pyproject.toml": f"""{SETUPTOOLS}
[project]
name = "shop"
version = "3.1"
requires-python = ">=3.11"
dependencies = ["alpha", "common"]
[dependency-groups]
dev = ["beta"]
[tool.uv.sources]
common = {{ workspace = true }}
[tool.setuptools]
packages = ["shop"]
""",
            "backend/shop/__init__.py": "",
            "backend/migrations/env.py": "",
            "libs/common/pyproject.toml": f"""{SETUPTOOLS}
[project]
name = "common"
version = "1.0"
requires-python = ">=3.11"
[tool.setuptools]
py-modules = ["common"]
""",
            "libs/common/common.py": "NAME = 'common'\n",
        },
    )
    command = [sys.executable, "-m", "uv", "lock", "--quiet", f"--python={sys.executable}"]
    subprocess.run(command, cwd=root, check=True)
    for path in (root / "uv.lock", *root.glob("**/pyproject.toml")):
        path.write_text(path.read_text().replace(">=3.11", python))
    return root


def test_a_pylock_is_installed(wheels: Path, app: Path) -> None:
    wheel = make_wheel(wheels, "alpha")
    hashed = locked(wheel).rpartition(":")[2].strip()
    lock = f"""lock-version = "1.0"
created-by = "test"
requires-python = ">=3.99"

[[packages]]
name = "alpha"
version = "1.0"
wheels = [{{ path = "{wheel.name}", hashes = {{ sha256 = "{hashed}" }} }}]
"""
    write(wheels, {"pylock.toml": lock})
    made = build(app, "", requirements=str(wheels / "pylock.toml"), python_version="3.99.1")
    assert packages(made) == ["alpha==1.0"]
    with pytest.raises(
        BuildError, match=r"pylock.toml is for Python >=3.99, and the release runs with 3.13.5"
    ):
        build(app, "", requirements=str(wheels / "pylock.toml"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("poetry.lock", "poetry export --format requirements.txt --output requirements.lock"),
        ("pdm.lock", "pdm export --prod --format requirements --output requirements.lock"),
        ("Pipfile.lock", "pipenv requirements --hash > requirements.lock"),
    ],
)
def test_the_command_that_exports_another_lock_is_named(source: Path, name: str, command: str) -> None:
    write(source, {name: ""})
    with pytest.raises(BuildError) as refused:
        build(source, "", requirements="")
    assert f"{source / name} is no lock that uv reads: export it in {source} by `{command}`" in str(
        refused.value
    )


def test_an_app_without_a_list_of_dependencies_is_refused(source: Path) -> None:
    (source / "pyproject.toml").unlink()
    with pytest.raises(
        BuildError, match=r"has none of uv.lock, pylock.toml, requirements.lock, requirements.txt"
    ):
        build(source, "", requirements="")


def test_what_the_worker_needs_is_added_or_renewed(wheels: Path, app: Path) -> None:
    server = locked(make_wheel(wheels, "worker", version="2.0")) + locked(make_wheel(wheels, "loop"))
    lock = locked(make_wheel(wheels, "alpha")) + locked(make_wheel(wheels, "worker", version="1.9"))
    (app.parent / "server.txt").write_text(server)
    made = build(app, lock, server=str(write(app.parent, {"pins.txt": server}) / "pins.txt"))
    assert packages(made) == ["alpha==1.0", "loop==1.0", "worker==2.0"]
    newer = lock.replace("1.9", "2.1").partition("worker")[0] + locked(
        make_wheel(wheels, "worker", version="2.1")
    )
    made = build(app, newer, server=str(app.parent / "pins.txt"))
    assert packages(made) == ["alpha==1.0", "loop==1.0", "worker==2.1"]


def test_a_dependency_that_refuses_the_workers_version_is_named(wheels: Path, app: Path) -> None:
    server = write(app.parent, {"pins.txt": locked(make_wheel(wheels, "worker", version="2.0"))}) / "pins.txt"
    lock = locked(make_wheel(wheels, "alpha", requires="worker<2"))
    with pytest.raises(
        BuildError, match=r"alpha 1.0 in .*requirements.txt needs worker<2, and the service runs"
    ):
        build(app, lock, server=str(server))


def test_a_pure_source_distribution_is_built(wheels: Path, app: Path) -> None:
    lock = locked(make_sdist(wheels, "alpha"))
    made = build(app, lock)
    assert read(made.dependencies, f"{SITE}/alpha.py") == "NAME = 'alpha'\n"


def test_all_packages_that_cannot_be_installed_are_named_at_once(wheels: Path, app: Path) -> None:
    compiled = make_sdist(
        wheels, "alpha", tag=f"cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-linux_x86_64"
    )
    call = "import subprocess; subprocess.run(['cargo', 'metadata'], check=True)"
    broken = make_sdist(wheels, "beta", fault=call)
    other = make_wheel(wheels, "gamma", tag="cp311-cp311-manylinux_2_28_x86_64")
    lock = "".join(map(locked, (compiled, broken, other)))
    with pytest.raises(FaultsError) as refused:
        build(app, lock, python_version="3.13.5")
    text = str(refused.value)
    assert len(refused.value.sentences) == 3
    assert "alpha==1.0 has no wheel for Python 3.13 on x86_64, and its source is not pure Python" in text
    assert "pure Python (error: needs a compiler (cargo)): lock a version that has one" in text
    assert "gamma==1.0 has no wheel for Python 3.13 on x86_64: lock another version." in text


def test_a_compiled_package_is_refused_though_this_python_is_the_targets(wheels: Path, app: Path) -> None:
    minor = sys.version_info[1]
    lock = locked(make_sdist(wheels, "alpha", tag=f"cp3{minor}-cp3{minor}-linux_x86_64"))
    with pytest.raises(BuildError, match=r"^alpha==1.0 has no wheel .* its source is not pure Python"):
        build(app, lock, python_version=f"3.{minor}.1")


def test_a_dependency_from_a_repository_is_built_at_its_commit(wheels: Path, app: Path) -> None:
    repository = write(app.parent / "delta", source_files("delta"))
    author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "First"]):
        subprocess.run(["git", *author, *words], cwd=repository, check=True)
    alpha = locked(make_wheel(wheels, "alpha"))
    with pytest.raises(BuildError, match=r"names no commit of delta @ git.*: lock it"):
        build(app, f"{alpha}delta @ git+{repository.as_uri()}\n")
    made = build(app, f"alpha\ndelta @ git+{repository.as_uri()}\n")
    assert packages(made) == ["alpha==1.0", "delta==1.0"]
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    assert f"delta @ git+{repository.as_uri()}@{commit}" in read(made.app, "requirements.lock")


# --- the app


def test_an_app_that_is_no_package_is_copied_as_a_tree(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "alpha")
    files = {"main.py": "", "templates/page.html": "", "alembic.ini": "", "requirements.txt": "alpha\n"}
    private = {".env": "SECRET=1", "node_modules/x/y.js": "", "venv/pyvenv.cfg": "", "__pycache__/x.pyc": ""}
    tree = write(tmp_path / "notes", files | private)
    (tree / "current").symlink_to("templates")
    made = build(tree, "", requirements="", commit="0123456789ab")
    assert {n for n in names(made.app) if n.startswith("code/")} == {
        *(f"code/{name}" for name in files),
        "code/current",
    }
    assert made.release.startswith("0123456789ab-")


def test_files_that_git_ignores_stay_out_but_for_built_assets(wheels: Path, source: Path) -> None:
    ignored = {"dist/index.html": "", "dist/assets/app.js": "", "notes/secret": ""}
    write(source, {".gitignore": "dist/\nnotes/\n", **ignored})
    subprocess.run(["git", "init", "--quiet"], cwd=source, check=True)
    lock = locked(make_wheel(wheels, "alpha"))
    inside = names(build(source, lock, include=["dist/assets"]).app)
    assert {"code/dist/assets/app.js", "code/dist/index.html"} <= inside
    assert "code/notes/secret" not in inside


def test_a_package_below_src_is_imported_from_its_tree(wheels: Path, tmp_path: Path) -> None:
    project = PROJECT.replace('packages = ["service"]', 'packages.find = {where = ["src"]}')
    tree = write(
        tmp_path / "app", {"pyproject.toml": project, "src/service/__init__.py": "", "alembic.ini": ""}
    )
    made = build(tree, locked(make_wheel(wheels, "alpha")))
    inside = names(made.app)
    assert {
        "code/src/service/__init__.py",
        "code/alembic.ini",
        "code/service-1.2.dist-info/METADATA",
    } <= inside
    assert "code/service/__init__.py" not in inside
    assert read(made.app, f"{SITE}/app.pth") == "../../../../code/src\n../../../../code\n"


def test_commands_run_with_the_python_beside_them(wheels: Path, app: Path) -> None:
    python = "{}.{}.{}".format(*sys.version_info)
    made = build(app, locked(make_wheel(wheels, "alpha")), python_version=python)
    home = app.parent / "else where"
    for archive in (made.app, made.dependencies):
        with tarfile.open(archive) as tree:
            tree.extractall(home, filter="data")
    venv.create(home / "venv", symlinks=True)
    for name, said in {"alpha": "alpha py3-none-any\n", "alpha-run": "run\n"}.items():
        done = subprocess.run([home / "venv/bin" / name], capture_output=True, text=True)
        assert done.stdout == said, done.stderr


def test_the_first_error_of_a_build_is_shown(source: Path) -> None:
    write(source, {"pyproject.toml": PROJECT.replace('["service"]', '["missing"]')})
    with pytest.raises(BuildError) as refused:
        build(source, "")
    assert (
        str(refused.value)
        == f"{source} could not be built: error: package directory 'missing' does not exist"
    )
