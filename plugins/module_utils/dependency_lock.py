"""Read the dependencies of an app from the file in which it locks or lists them."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.fastmetal.metal.plugins.module_utils.uv import BuildError, Uv, UvError, hide_logins

NAMES = ("uv.lock", "pylock.toml", "requirements.lock", "requirements.txt")
# Locks that uv does not read, and the commands that export them.
FOREIGN = {
    "poetry.lock": (
        "poetry export --format requirements.txt --output requirements.lock",
        " (the command is in the plugin poetry-plugin-export)",
    ),
    "pdm.lock": ("pdm export --prod --format requirements --output requirements.lock", ""),
    "Pipfile.lock": ("pipenv requirements --hash > requirements.lock", ""),
}
# The Python of the oldest supported Debian release: a lock for it and later ones fits every host.
OLDEST_PYTHON = (3, 11)


class Lock:
    """The locked dependencies.

    path: The file that they were read from.
    text: Requirements with hashes or, if is_pylock, a pylock.toml, both without what `local` and `vcs` have.
    local: The directories and wheels of path dependencies, which may include the app itself.
    vcs: Requirements from repositories, each with a commit.
    python: The range of Python versions that a pylock.toml is for.
    is_resolved: Whether the file has no hashes, so that the versions were chosen here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        self.is_pylock = False
        self.local: list[Path] = []
        self.vcs: list[str] = []
        self.python = ""
        self.is_resolved = False

    def without(self, text: str, name: str) -> str:
        """Return a text like that of the lock without a package."""
        name = normal(name)
        if self.is_pylock:
            parts = re.split(r"^(?=\[\[packages\]\])", text, flags=re.MULTILINE)
            return "".join(part for part in parts if f'\nname = "{name}"\n' not in part)
        lines = text.splitlines(keepends=True)
        return "".join(
            line for line in lines if normal(re.split(r"[\s=<>!~;@\[]", line, maxsplit=1)[0]) != name
        )


def normal(name: str) -> str:
    """Return the normalized name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_lock(tree: Path, root: Path, wanted: str) -> Path:
    """Return the file with the dependencies of a tree, below or in the root of its repository.

    wanted: The operator's choice, absolute or relative to the tree or the root; empty for the usual names.
    """
    if wanted:
        for folder in (tree, root):
            if (path := folder / Path(wanted).expanduser()).is_file():
                return path
        raise BuildError(f"The dependency lock {tree / wanted} does not exist: correct app_requirements.")
    for name in NAMES:
        if (tree / name).is_file():
            return tree / name
    for folder in tree.parents if tree != root else ():
        if (folder / "uv.lock").is_file() and "workspace" in config(folder).get("tool", {}).get("uv", {}):
            return folder / "uv.lock"
        if folder == root:
            break
    for name, (command, remark) in FOREIGN.items():
        if (tree / name).is_file():
            raise BuildError(
                f"{tree / name} is no lock that uv reads: export it in {tree} by `{command}`{remark}."
            )
    if config(tree).get("project", {}).get("dependencies"):
        return tree / "pyproject.toml"
    raise BuildError(
        f"{tree} has none of {', '.join(NAMES)}: lock the app's dependencies, or set app_requirements."
    )


def read(path: Path) -> str:
    """Return the text of a file, or nothing if there is none."""
    return path.read_text() if path.is_file() else ""


def digest(path: Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config(tree: Path) -> dict[str, Any]:
    """Return the pyproject.toml of a tree."""
    try:
        return tomllib.loads(read(tree / "pyproject.toml"))
    except tomllib.TOMLDecodeError as error:
        raise BuildError(f"{tree / 'pyproject.toml'} cannot be read: {error}.") from None


def read_lock(path: Path, tree: Path, root: Path, uv: Uv, python: str, cache: Path) -> Lock:
    """Return the locked dependencies in a file; resolve them once if the file has no hashes."""
    lock = Lock(path)
    if path.name == "uv.lock":
        export(lock, tree, uv)
    elif path.suffix == ".toml" and path.name != "pyproject.toml":
        read_pylock(lock, path.read_text())
    else:
        is_list = path.suffix not in (".toml", ".whl")
        given = list(logical_lines(path) if is_list else [str(path)])
        lines = split_lines(lock, given)
        if any("--hash=" in line for line in lines):
            if moving := [line for line in lock.vcs if not re.search(r"@[0-9a-f]{40}\b", line)]:
                raise BuildError(f"{path} names no commit of {moving[0]}: lock it with one.")
            lock.text = "".join(f"{line}\n" for line in lines)
        elif given:
            resolve(lock, given, root, uv, python, cache)
    return lock


def export(lock: Lock, tree: Path, uv: Uv) -> None:
    """Read a uv.lock, that of the tree or of the workspace above it."""
    folder = lock.path.parent
    # The addresses in the lock are those of the index that it was made with; a mirror has its own.
    lock.is_pylock = not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & {*uv.settings, *os.environ}
    output = uv(
        *("export", "--frozen", "--no-default-groups", "--no-header", "--no-annotate", f"--project={tree}"),
        f"--format={'pylock.toml' if lock.is_pylock else 'requirements.txt'}",
        what=f"uv cannot read {lock.path}",
        cwd=folder,
    )
    if lock.is_pylock:
        read_pylock(lock, output)
    else:
        lines = split_lines(lock, list(join_lines(output, folder)))
        lock.text = "".join(f"{line}\n" for line in lines)


def read_pylock(lock: Lock, text: str) -> None:
    """Read a pylock.toml."""
    lock.is_pylock = True
    folder = lock.path.parent
    head, *packages = re.split(r"^(?=\[\[packages\]\])", text, flags=re.MULTILINE)
    # uv judges the Python of the control node by it.
    wanted = re.compile(r"^requires-python = [\"'](.*)[\"']\n", re.MULTILINE)
    lock.python = "".join(wanted.findall(head))
    kept = [wanted.sub("", head)]
    for part in packages:
        try:
            package = tomllib.loads(part)["packages"][0]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise BuildError(f"{lock.path} cannot be read: {error}.") from None
        if "directory" in package:
            lock.local.append((folder / package["directory"]["path"]).resolve())
        elif vcs := package.get("vcs"):
            subdirectory = f"#subdirectory={vcs['subdirectory']}" if "subdirectory" in vcs else ""
            address = vcs.get("url") or (folder / vcs["path"]).resolve().as_uri()
            lock.vcs.append(f"{package['name']} @ git+{address}@{vcs['commit-id']}{subdirectory}")
        else:
            # Relative to the lock, whose text is installed from another directory.
            kept.append(re.sub(r'\bpath = "([^"]+)"', lambda found: f'path = "{folder / found[1]}"', part))
    lock.text = "".join(kept) if len(kept) > 1 else ""


def join_lines(text: str, folder: Path) -> Iterator[str]:
    """Yield the logical lines of a requirements file without comments; paths in them become absolute."""
    for raw in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        line = re.sub(r"(^|\s+)#.*", "", raw).strip()
        option, _, value = line.replace("=", " ", 1).partition(" ")
        if option in ("-f", "--find-links", "-c", "--constraint") and "://" not in value:
            yield f"{option} {folder / value.strip()}"
        elif path := local_path(line, folder):
            extras = re.search(r"\[[\w,\s-]+\]$", line)
            yield f"{path}{extras[0] if extras else ''}"
        elif line:
            yield line


def logical_lines(path: Path) -> Iterator[str]:
    """Yield the logical lines of a requirements file and of those that it includes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BuildError(f"{path} is no text in UTF-8: save it as such.") from None
    for line in join_lines(text, path.parent):
        if found := re.match(r"(?:-r|--requirement)[\s=]+(.+)", line):
            yield from logical_lines(path.parent / found[1])
        else:
            yield line


def local_path(line: str, folder: Path) -> Path | None:
    """Return the path dependency in a line of a requirements file, or nothing."""
    text = re.sub(r"^(?:-e|--editable)[\s=]+", "", line)
    text = re.split(r"\s+[;-]", text, maxsplit=1)[0]
    text = re.sub(r"^[\w.-]+(?:\[[^\]]*\])?\s*@\s*(?=file:)", "", text)
    text = unquote(re.sub(r"^file:(?://)?", "", text))
    text = re.sub(r"\[[\w,\s-]+\]$", "", text)
    if text.startswith(("-", "git+")) or "://" in text:
        return None
    is_path = text.startswith((".", "/")) or ("/" in text and (folder / text).exists())
    return (folder / text).resolve() if is_path else None


def split_lines(lock: Lock, lines: Sequence[str]) -> list[str]:
    """Return the lines that name packages of an index; the others become those of the lock."""
    kept = []
    for line in lines:
        if line.startswith("/"):
            lock.local.append(Path(re.sub(r"\[[\w,\s-]+\]$", "", line)))
        elif "git+" in line:
            lock.vcs.append(re.sub(r"^(?:-e|--editable)\s+", "", line))
        else:
            kept.append(line)
    return kept


def resolve(lock: Lock, lines: Sequence[str], root: Path, uv: Uv, python: str, cache: Path) -> None:
    """Choose a version of each package and its hashes; a later build with the same lines takes the same."""
    lock.is_resolved = True
    content = [*lines, *map(str, sorted(uv.settings.items())), *map(read, constraints(lines))]
    content += [
        digest(path) if path.suffix == ".whl" else read(path / "pyproject.toml") for path in lock.local
    ]
    if lock.path.name == "pyproject.toml":
        content.append(read(lock.path))
    # Each commit of a repository has a tree of its own.
    anywhere = "\n".join(content).replace(str(root), "@SOURCE@")
    kept = cache / f"resolved-{hashlib.sha256(anywhere.encode()).hexdigest()[:24]}.txt"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        source, fresh = kept.with_suffix(".in"), kept.with_suffix(".new")
        source.write_text("".join(f"{line}\n" for line in lines))
        given = lock.path if lock.path.name == "pyproject.toml" else source
        target = tuple(map(int, python.split(".")[:2]))
        try:
            compile_lock(uv, given, fresh, min(OLDEST_PYTHON, target), lock.path)
        except UvError as error:
            # A version may need a newer Python than the oldest one.
            if target <= OLDEST_PYTHON or error.is_unreachable:
                raise
            compile_lock(uv, given, fresh, target, lock.path)
        source.unlink()
        fresh.write_text(fresh.read_text().replace(str(root), "@SOURCE@"))
        fresh.replace(kept)
    options = [line for line in lines if line.startswith("-") and not line.startswith("-c")]
    lock.vcs, lock.local = [], []
    text = kept.read_text().replace("@SOURCE@", str(root))
    named = split_lines(lock, list(join_lines(text, lock.path.parent)))
    lock.text = "".join(f"{line}\n" for line in (*options, *(line for line in named if "--hash=" in line)))


def constraints(lines: Sequence[str]) -> Iterator[Path]:
    """Yield the files of constraints that the lines of a requirements file name."""
    for line in lines:
        if found := re.match(r"(?:-c|--constraint)\s+(.+)", line):
            yield Path(found[1])


def compile_lock(uv: Uv, given: Path, output: Path, python: tuple[int, ...], path: Path) -> None:
    """Resolve requirements for a Python and every later one."""
    uv(
        *(
            "pip",
            "compile",
            "--universal",
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "--no-python-downloads",
        ),
        *(f"--python-version={'.'.join(map(str, python))}", f"--output-file={output}", str(given)),
        what=f"The versions of {path} cannot be chosen",
        cwd=path.parent,
    )


def public_text(lock: Lock) -> str:
    """Return the text that is kept with the release: without the addresses of indexes and without logins."""
    lines = [line for line in lock.text.splitlines() if not line.startswith("-")] + lock.vcs
    return hide_logins("".join(f"{line}\n" for line in lines))
