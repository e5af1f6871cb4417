"""The action `refuse` says every fault at once and templates nothing that it does not say."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from plugins.action.refuse import sentences


def say(*faults: tuple[str, str], **variables: Any) -> list[str]:
    """Return the sentences of the faults with these variables."""
    trusted = [{"when": trust_as_template(when), "say": trust_as_template(text)} for when, text in faults]
    return list(sentences(trusted, Templar(DataLoader(), variables)))


def test_says_every_fault_in_order() -> None:
    faults = [("port > 65535", "port is {{ port }}."), ("port > 1", "never mind."), ("port < 1", "too low.")]
    assert say(*faults, port=70000) == ["port is 70000.", "never mind."]


def test_says_nothing_without_a_fault() -> None:
    assert say(("port > 65535", "port is {{ port }}."), port=80) == []


def test_does_not_template_a_sentence_that_is_not_said() -> None:
    assert say(("names | length > 0", "The first is {{ names[0] }}, {{ missing }}."), names=[]) == []


def test_strips_a_folded_sentence() -> None:
    assert say(("true", "Text of a folded block.\n")) == ["Text of a folded block."]


def test_skips_a_broken_condition_after_a_fault() -> None:
    faults = [("port is not number", "port is no number."), ("port > 65535", "port is {{ port }}.")]
    assert say(*faults, port="http") == ["port is no number."]


def test_raises_a_broken_condition_without_a_fault() -> None:
    with pytest.raises(AnsibleError):
        say(("port > 65535", "port is {{ port }}."), port="http")
