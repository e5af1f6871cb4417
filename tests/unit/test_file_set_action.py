"""The action `file_set` hands the module the content of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from plugins.action.file_set import ActionModule
from plugins.filter.exporter import exporter_files
from plugins.filter.files import file_units


@pytest.fixture
def role(tmp_path: Path) -> Path:
    """A role with templates and a file."""
    for folder in ("templates", "files"):
        (tmp_path / folder).mkdir()
    (tmp_path / "templates/unit.j2").write_text(
        "# {{ ansible_managed }}\n{% include 'part.j2' %}\n\nPort={{ port }}\n"
    )
    (tmp_path / "templates/part.j2").write_text("Name={{ name | default('none') }}\n")
    (tmp_path / "files/script.py").write_text("print('{{ not a template }}')\n")
    return tmp_path


def sent(role: Path, *files: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Return the arguments that the module gets for these files."""
    loader = DataLoader()
    variables = {
        "port": trust_as_template("{{ base + 80 }}"),
        "base": 8000,
        "ansible_search_path": [str(role)],
    }
    task = MagicMock(args={"files": list(files), **arguments}, async_val=0)
    task.get_search_path.return_value = [str(role)]
    action = ActionModule(task, MagicMock(), MagicMock(), loader, Templar(loader, variables), MagicMock())
    execute = MagicMock(return_value={"changed": True, "paths": ["/etc/x"]})
    with patch.object(action, "_execute_module", execute):
        assert action.run(task_vars=variables)["paths"] == ["/etc/x"]
    module_arguments: dict[str, Any] = execute.call_args.kwargs["module_args"]
    return module_arguments


def content(role: Path, **source: Any) -> str:
    """Return the content that the module gets for a file."""
    (file,) = sent(role, {"path": "/etc/x", **source})["files"]
    return str(file["content"])


def test_renders_a_template_with_its_includes(role: Path) -> None:
    assert content(role, template="unit.j2") == "# Ansible managed\nName=none\nPort=8080\n"


def test_finds_an_include_beside_the_template(role: Path) -> None:
    folder = role / "templates/units"
    folder.mkdir()
    (folder / "own.j2").write_text("{% include 'beside.j2' %}\n")
    (folder / "beside.j2").write_text("Beside\n")
    assert content(role, template="units/own.j2") == "Beside\n"


def test_gives_a_template_its_own_variables(role: Path) -> None:
    files: list[dict[str, Any]] = [
        {"path": "/etc/x", "template": "part.j2", "variables": {"name": "x"}},
        {"path": "/etc/y", "template": "part.j2"},
    ]
    assert [file["content"] for file in sent(role, *files)["files"]] == ["Name=x\n", "Name=none\n"]


def test_reads_a_file_without_templating_it(role: Path) -> None:
    assert content(role, file="script.py") == "print('{{ not a template }}')\n"
    assert content(role, file=str(role / "files/script.py")) == "print('{{ not a template }}')\n"


@pytest.mark.parametrize("present", [False, "false"])
def test_empties_a_file_that_is_not_present(role: Path, present: object) -> None:
    assert content(role, template="missing.j2", present=present) == ""


def test_keeps_what_the_module_knows(role: Path) -> None:
    directories = [{"path": "/etc/d", "mode": "0700"}]
    file = {"path": "/etc/x", "content": "x", "mode": "0600", "group": "ssl-cert", "validate": "check %s"}
    arguments = sent(role, file | {"units": ["x.service"], "present": True}, directories=directories)
    assert arguments == {"files": [file], "directories": directories, "owner": {}}


def test_a_roles_files_have_its_mark() -> None:
    names = {"environment_name": "lab", "service_name": trust_as_template("{{ port }}")}
    task = MagicMock()
    task._role.get_name.return_value = "fastmetal.metal.nginx"
    variables = {"port": "api", **names}
    action = ActionModule(
        task, MagicMock(), MagicMock(), DataLoader(), Templar(DataLoader(), variables), MagicMock()
    )
    assert action.owner(variables) == {"role": "nginx", "environment": "lab", "services": ["api"]}
    assert action.owner({"port": "api"}) == {}


@pytest.mark.parametrize("sources", [{}, {"content": "x", "file": "script.py"}], ids=["none", "two"])
def test_demands_one_source(role: Path, sources: dict[str, str]) -> None:
    with pytest.raises(AnsibleActionFail, match=r"/etc/x has .*: give one of content, template, file"):
        sent(role, {"path": "/etc/x", **sources})


def test_names_a_template_that_is_missing(role: Path) -> None:
    with pytest.raises(AnsibleError, match=r"missing\.j2"):
        content(role, template="missing.j2")


def test_groups_files_by_the_units_that_read_them() -> None:
    files: list[dict[str, Any]] = [
        {"path": "/etc/a", "units": ["a.service"], "present": False},
        {"path": "/etc/shared", "units": ["a.service", "b.service"]},
        {"path": "/etc/unread"},
    ]
    assert file_units(files) == [
        {"name": "a.service", "enabled": False, "files": ["/etc/a", "/etc/shared"]},
        {"name": "b.service", "enabled": True, "files": ["/etc/shared"]},
    ]


def test_lists_a_drop_in_for_every_kind_of_exporter() -> None:
    redis, node = exporter_files(["redis", "node"], ["node"])[::-1]
    assert (node["present"], redis["present"]) == (True, False)
    assert node["path"] == "/etc/systemd/system/prometheus-node-exporter.service.d/fastmetal.conf"
    assert redis["units"] == ["prometheus-redis-exporter.service"]
    assert redis["variables"] == {"name": "redis"}
