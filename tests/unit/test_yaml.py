"""YAML and JSON as they are read: version 1.2 without surprises, within limits, every refusal with its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from convergio.graphflow.flow import document, reader
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Retry

NO_TAGS = "; tags are not allowed: remove it"


def problems(text: str) -> list[str]:
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_yaml(text, "flow.yaml")
    return [problem.line() for problem in caught.value.problems]


def test_yaml_reads_as_version_1_2() -> None:
    text = "[yes, no, on, off, 1:30, 2026-11-23, 010, 0x1F, 0o17, 1_000, .5, 1e3, ~, Null, True, '5', \"a\\u0041\", NO]"
    assert reader.read_yaml(text, "t")[0] == [
        *(
            "yes",
            "no",
            "on",
            "off",
            "1:30",
            "2026-11-23",
            10,
            31,
            15,
            "1_000",
            0.5,
            1000.0,
            None,
            None,
            True,
            "5",
            "aA",
            "NO",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1", "BAD_YAML  t: line 3:"),
        ("a: 1\n b: 2", "BAD_YAML  t: line 2:"),
        ("a: \tb\n\tc: d", "BAD_YAML  t: line 2:"),
        ("a: *b", "the alias *b names nothing"),
        ("a: &a [*a]", "the alias *a names nothing"),
        ("a: 1\n---\nb: 2", "line 2: a second document starts here"),
        ("a: '\x00'", "characters that YAML does not allow"),
        ("a: '\ud800'", "characters that YAML does not allow"),
        ("[" * 5000, "nests deeper than 64 levels"),
        ("{a: " * 70 + "1" + "}" * 70, "nests deeper than 64 levels"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_yaml(text, "t")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("workflow: w\nsteps:\n  a: {task: m.f}\n  a: {}", "DUPLICATE_KEY  line 4 has 'a' twice; keep one of them"),
        ("workflow: !!python/name:os.system x", "BAD_YAML  line 1 has the tag '!!python/name:os.system'" + NO_TAGS),
        ("workflow: !!str 5", "BAD_YAML  line 1 has the tag '!!str'" + NO_TAGS),
        ("workflow: !mine x", "BAD_YAML  line 1 has the tag '!mine'" + NO_TAGS),
        ("1: a", "BAD_KEY  line 1 has a name that is not text; put it in quotes"),
        ("[a, b]: c", "BAD_KEY  line 1 has a name that is not text; put it in quotes"),
        ("version: 1e999", "BAD_VALUE  line 1 the number 1e999 is too large; put it in quotes if it is text"),
    ],
)  # fmt: skip
def test_yaml_that_means_something_surprising_is_refused_with_its_line(text: str, line: str) -> None:
    assert line in problems(text)


def test_an_alias_may_share_a_policy() -> None:
    text = "workflow: w\nversion: 1\nsteps:\n  a: {task: m.f, retry: &often {max: 9}}\n  b: {task: m.f, retry: *often}"
    workflow = document.parse_yaml(text)
    assert workflow.steps["a"].retry == workflow.steps["b"].retry == Retry(max=9)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    started = time.process_time()
    assert any("more than 500,000 values, aliases followed" in line for line in problems("\n".join(lines)))
    assert time.process_time() - started < 1


def test_a_chain_of_aliases_cannot_nest_past_the_limit() -> None:
    lines = ["workflow: w", "version: 1", "input:", "  a0: &a0 [x]"]
    lines += [f"  a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)]
    assert any(line.startswith("TOO_DEEP") for line in problems("\n".join(lines)))


def test_a_text_over_the_limit_is_refused_before_it_is_read() -> None:
    assert problems("a: " + "é" * reader.LARGEST)[0].startswith("TOO_LARGE")


def test_a_key_twice_in_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flow.json"
    file.write_text('{"workflow": "w", "version": 1, "steps": {"a": {"task": "m.f"}, "a": {"task": "m.g"}}}')
    with pytest.raises(errors.InvalidWorkflow, match=r"DUPLICATE_KEY  flow\.json: has 'a' twice"):
        document.load(file)
    file.write_text("[" * 100_000)
    with pytest.raises(errors.InvalidWorkflow, match="BAD_JSON"):
        document.load(file)
