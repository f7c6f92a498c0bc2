"""A tenant's name is a part of keys: no tenant may be called like another part."""

from __future__ import annotations

import re

import pytest

from convergio.graphflow.board import keys
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow import document
from convergio.graphflow.model import errors, ids

WORKFLOW = document.parse_document({"workflow": "w", "version": 1, "steps": {"a": {"task": "m.f"}}})


def test_every_word_that_stands_where_a_tenant_stands_is_reserved() -> None:
    words = set(re.findall(r"^\| P:E:([a-z]+):", keys.__doc__ or "", flags=re.M))
    assert words == ids.RESERVED_TENANTS


@pytest.mark.parametrize("tenant", sorted(ids.RESERVED_TENANTS))
def test_a_reserved_word_is_no_tenant(tenant: str) -> None:
    with pytest.raises(errors.InvalidInput, match="cannot be a tenant"):
        Submission(workflow=WORKFLOW, input=None, tenant=tenant).check()
