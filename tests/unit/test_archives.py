"""Files of releases have times that follow from their content, as web servers make validators of them."""

from __future__ import annotations

import io
import tarfile

from plugins.module_utils.archives import add


def time_of(content: bytes) -> float:
    """Return the time that an archive gives to a file with a content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tree:
        add(tree, "code/app.js", content)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tree:
        return tree.getmember("code/app.js").mtime


def test_a_file_of_the_same_size_with_another_content_has_another_time() -> None:
    """Nginx and Starlette make an ETag of the time and the size."""
    assert time_of(b"let a = 1") == time_of(b"let a = 1") != time_of(b"let a = 2")
    assert 315532800 <= time_of(b"let a = 1") < 1400000000
