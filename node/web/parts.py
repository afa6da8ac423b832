"""What the node's parts tell of themselves, put into words for whoever watches: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

DESTINATION: Final = "destination "


class Part(Protocol):
    """A part of the node (node/app/health.py).

    ``role`` is the process that tells, ``told`` what is wrong, "" if nothing is; a start of the node may heal what is
    ``vital``.
    """

    @property
    def role(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def told(self) -> str: ...

    @property
    def vital(self) -> bool: ...


_HEALS: Final = "it is started again by itself; if this stays, look into the log, and start the node again"
_DO: Final[Mapping[tuple[str, str], str]] = {
    ("gather", "database"): "see that store.database runs, answers and is not locked by another program",
    ("gather", "configuration"): "mend config.yaml; `luminode check` tells of every fault",
    ("receive", "spool"): "make room on the disk of store.spool, or see that it can be written to",
    ("web", "page"): "see monitoring.listen",
    ("node", "processes"): "start the node: `luminode serve`",
}


def what_to_do(part: Part) -> str:
    """One sentence for a person, about a part that does not work."""
    kind = part.role.partition("-")[0]  # several receivers are receive, receive-2, ...
    if part.name.startswith(DESTINATION):
        name = part.name.removeprefix(DESTINATION)
        return f"see that it runs and can be reached: `luminode echo {name}`; what is to go there waits"
    return _DO.get((kind, part.name), _HEALS)


def alive(parts: Sequence[Part]) -> bool:
    """Whether no process or loop hangs: else a start of the node may help."""
    return all(not part.told for part in parts if part.vital)


def ready(parts: Sequence[Part]) -> bool:
    """Whether every part works, the database, the disk and each destination included."""
    return all(not part.told for part in parts)


def takes(parts: Sequence[Part]) -> bool:
    """Whether what receiving needs works: a receiver, the spool, the database. A PACS is no part of it."""
    return all(not part.told for part in parts if _receives(part))


def _receives(part: Part) -> bool:
    kind = part.role.partition("-")[0]
    return kind == "receive" or part.role == "node" or (part.role, part.name) == ("gather", "database")


def document(parts: Sequence[Part], ok: bool) -> dict[str, Any]:
    """What a page says: those parts that do not work first, with what to do."""
    told = [
        {"role": p.role, "part": p.name, "ok": not p.told}
        | ({"told": p.told, "do": what_to_do(p)} if p.told else {})
        for p in parts
    ]
    return {"ok": ok, "parts": sorted(told, key=lambda one: bool(one["ok"]))}
