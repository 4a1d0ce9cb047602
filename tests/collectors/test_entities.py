from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.entities import FLEET, ancestors, entity, kind_of, parent_of, top_of


def test_the_tree_is_read_off_the_name() -> None:
    gpu = entity("host", "box1", "gpu", "0")
    assert gpu == "host/box1/gpu/0"
    assert kind_of(gpu) == "gpu"
    assert list(ancestors(gpu)) == ["host/box1", FLEET]
    assert top_of(gpu) == "host/box1"
    assert parent_of("host/box1") == FLEET


@pytest.mark.parametrize("parts", [(), ("host",), ("host", ""), ("a", "b", "c")])
def test_half_a_name_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="entity"):
        entity(*parts)


@given(st.text(min_size=1, max_size=30))
def test_untrusted_names_cannot_leave_their_place(name: str) -> None:
    named = entity("host", name)
    assert parent_of(named) == FLEET
    assert len(named.split("/")) == 2
