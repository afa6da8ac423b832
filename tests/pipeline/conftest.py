"""Fixtures of the pipeline tests: a node as an admin runs it, delivering to a real Orthanc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers import OrthancPeer
from tests.pipeline.harness import Node, make_node

MakeNode = Callable[..., Node]


@pytest.fixture
def nodes(tmp_path: Path, orthanc: OrthancPeer) -> Iterator[MakeNode]:
    """Makes and starts nodes that deliver to ``orthanc``; ends them with the test."""
    made: list[Node] = []

    def make(**options: Any) -> Node:
        folder = tmp_path / f"node{len(made)}"
        folder.mkdir()
        node = make_node(folder, pacs_ae=orthanc.ae_title, pacs_port=orthanc.port, **options)
        made.append(node)
        node.start()
        return node

    yield make
    for node in made:
        node.stop()
