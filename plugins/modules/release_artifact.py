#!/usr/bin/python
"""Build a release of an ASGI app for one target Python: reproducible archives, cached by content."""

from __future__ import annotations

import os
import sys

from ansible.module_utils.basic import AnsibleModule

try:
    from ansible_collections.fastmetal.metal.plugins.module_utils.release_build import SPEC, Build
    from ansible_collections.fastmetal.metal.plugins.module_utils.uv import BuildError
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""

DOCUMENTATION = r"""
module: release_artifact
short_description: Build the archives of a release, once for each content
description:
  - Runs on the control node. Installs the locked dependencies for the target's Python with uv, builds the
    app if it is a package, and packs both into archives that a host only has to unpack.
  - The dependencies have an archive of their own, as most releases have those of the release before.
  - The release's id depends only on the app's files, the lock, what the worker needs, and the version.
  - uv's own settings, such as UV_DEFAULT_INDEX and UV_FIND_LINKS, apply to the download.
author: Fastmetal
options:
  request:
    type: dict
    required: true
    description: What is built.
    suboptions:
      source: {type: path, required: true, description: "The source tree or a wheel."}
      subdirectory: {type: str, default: "", description: "The app's directory in the source tree."}
      files:
        type: list
        elements: str
        default: []
        description: Files and directories of the app; empty means all that Git does not ignore.
      include: {type: list, elements: str, default: [], description: "Directories that Git may ignore."}
      requirements: {type: str, default: "", description: "The lock; empty means the first usual name."}
      server: {type: path, required: true, description: "Requirements of the worker, with hashes."}
      indexes:
        type: dict
        default: {}
        description: The package indexes by index_url, extra_index_urls, find_links and index_credentials.
      version: {type: str, default: "", description: "The version; empty means the project's own."}
      commit: {type: str, default: "", description: "The version of a project that declares none."}
      python_version: {type: str, required: true, description: "The target's full Python version."}
      python_id: {type: str, default: "", description: "The Python that the release brings, if it does."}
      architecture: {type: str, required: true, description: "The target's machine architecture."}
      cache: {type: path, required: true, description: "The directory of archives and resolved locks."}
"""

RETURN = r"""
release: {type: str, returned: success, description: "The release id."}
app: {type: str, returned: success, description: "Path of the archive with the app's own code."}
dependencies: {type: str, returned: success, description: "Path of the archive with its dependencies."}
dependencies_id: {type: str, returned: success, description: "The id of the dependencies."}
python: {type: str, returned: success, description: "The target's Python, such as 3.13."}
"""

EXAMPLES = r"""
- name: Build the release
  fastmetal.metal.release_artifact:
    request:
      source: /srv/checkout
      server: /srv/checkout/roles/app/files/server.txt
      python_version: 3.13.5
      architecture: x86_64
      cache: /srv/checkout/.artifacts
"""


def main() -> None:
    """Run the module."""
    spec = {} if MISSING else SPEC
    module = AnsibleModule(
        argument_spec={"request": {"type": "dict", "required": True, "options": spec}},
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=f"The control node's {sys.executable} cannot build releases: {MISSING}.")
    os.umask(0o022)
    request = module.params["request"]
    for login in (request["indexes"].get("index_credentials") or {}).values():
        module.no_log_values.update(str(text) for text in login.values())
    try:
        build = Build(request)
        changed = not build.is_built if module.check_mode else build.run()
        for note in build.notes() if changed else ():
            module.warn(note)
    except BuildError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The release could not be built: {error}.")
    module.exit_json(changed=changed, **build.result())


if __name__ == "__main__":
    main()
