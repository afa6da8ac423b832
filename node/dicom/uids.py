"""Names that follow from what they name: the same job always makes the same UIDs.

A retry, a restart or a second send can then never put a second copy into a PACS: it makes the same objects
again (docs/architecture.md). UIDs are UUIDs under 2.25 (PS3.5 B.2), version 8 of RFC 9562 with 122 bits of
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from node.dicom.ours import MANUFACTURER, MODEL, UID_PREFIX

MAX_IS: Final = 2**31 - 1


def derived_uid(*parts: str) -> str:
    """A UID that is a function of its parts.

    Parameters
    ----------
    parts
        Any texts; ``("ab", "c")`` and ``("a", "bc")`` make different UIDs.

    Returns
    -------
    str
        At most 44 characters.
    """
    number = int.from_bytes(_digest(list(parts))[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76  # version 8
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant of RFC 9562
    return f"{UID_PREFIX}{number}"


def derivation_key(
    *,
    series_uid: str,
    engine: str,
    engine_version: str,
    weights_sha256: str,
    params: Mapping[str, Any],
    rule: str,
    study_uid: str = "",
) -> str:
    """Digest of everything that decides what a derived series is.

    Parameters
    ----------
    series_uid, study_uid
        Of the source series.
    engine, engine_version, weights_sha256
        From the engine's card.
    params
        All that shapes the result; JSON values only, numbers by value (1 and 1.0 are the same).
    rule
        Name of the rule that asked for it.

    Returns
    -------
    str
        SHA-256, hexadecimal. The same question always has the same answer: no clock, no host, no counter.
    """
    return _digest(
        {
            "study": study_uid,
            "series": series_uid,
            "engine": engine,
            "version": engine_version,
            "weights": weights_sha256,
            "params": _canonical(params),
            "rule": rule,
        }
    ).hex()


def series_uid(key: str, revision: int = 1) -> str:
    """Series Instance UID of the derived series of a derivation key and revision."""
    return derived_uid("series", key, str(revision))


def instance_uid(key: str, source_sop_instance_uid: str, revision: int = 1) -> str:
    """SOP Instance UID of what is derived from one source instance."""
    return derived_uid("instance", key, source_sop_instance_uid, str(revision))


def device_uid(product_version: str) -> str:
    """Device UID (0018,1002) of this version of the product."""
    return derived_uid("device", MANUFACTURER, MODEL, product_version)


def series_number(source: int | None, source_series_uid: str, offset: int, revision: int = 1) -> int:
    """Series Number of a derived series: behind its source's, and no other's.

    Parameters
    ----------
    source
        The source's number, None where it has none.
    source_series_uid
        Decides the number where the source has none: any two such series of a study get two numbers
        (but for one chance in 9,000), which viewers and converters would otherwise merge.
    offset
        Added once per revision: source 3, offset 1000 gives 1003, its revision 2 gives 2003.
    """
    if source is not None and source >= 0:
        number = source + offset * revision
        if number <= MAX_IS:
            return number
    spread = int.from_bytes(_digest(["number", source_series_uid])[:8], "big") % 8999
    return offset * revision * 10 + 1 + spread


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= 2**53 else value
    return value


def _digest(value: Any) -> bytes:
    told = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(told.encode("ascii")).digest()
