"""How single values are written in config.yaml: durations, sizes, AE titles, addresses, UIDs.

YAML gives every scalar to these functions as the text that the admin wrote, so that an AE title ``NO``,
``012`` or ``1e3`` stays what it is. Python values (a number of seconds, a bool) are taken too, which is how
code builds a :class:`~node.config.schema.Config` and how a dumped one is read back.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

from node.config.masks import mask_more


class Refused(ValueError):
    """A value does not fit.

    Attributes
    ----------
    message
        What is wrong, the value included.
    hint
        What to do.
    wanted
        What fits here, without the value: this is told where the value is a secret.
    """

    def __init__(self, message: str, hint: str = "", *, wanted: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.wanted = wanted or hint


def quote(value: object, limit: int = 60) -> str:
    """A value as text for people: on one line, printable, shortened, in quotes, passwords masked."""
    if isinstance(value, (Mapping, list, tuple)):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    text = legible(mask_more(str(value)))
    return f'"{text[: limit - 3]}..."' if len(text) > limit else f'"{text}"'


def legible(text: str) -> str:
    """Text fit for a terminal and a log line: whatever cannot be printed is a question mark."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def nearest(word: str, words: Iterable[str]) -> str:
    """The most similar of ``words``, whatever its case; empty if none is close."""
    folded: dict[str, str] = {}
    for each in words:
        folded.setdefault(each.casefold(), each)
    found = difflib.get_close_matches(word[:64].casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else ""


def did_you_mean(word: str, words: Iterable[str], otherwise: str = "") -> str:
    """A hint: the nearest word, or ``otherwise``."""
    near = nearest(word, words)
    return f"did you mean {near}?" if near else otherwise


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)", re.ASCII)
_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_HINT = "write a duration such as 500ms, 30s, 5m, 2h or 7d"

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|[kKMGT]i?B)?", re.ASCII)
_BYTES: Mapping[str, int] = {
    "B": 1,
    **{f"{letter}B": 1000**n for n, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**n for n, letter in enumerate("kMGT", 1)},
    "KB": 1000,
    "KiB": 1024,
}
_SIZE_HINT = "write a size such as 500MB or 20GB (powers of 1000), or 512MiB (powers of 1024)"

_AE_HINT = "an AE title has 1 to 16 ASCII characters and no backslash (PS3.5 6.2)"
_ADDRESS_HINT = "write host:port, for example 0.0.0.0:11112, pacs.hospital.lan:104 or [::1]:11112"
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII
)
_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_GPU = re.compile(r"(?:[0-9]|[1-9][0-9])|GPU-[0-9a-fA-F-]{8,40}|MIG-[0-9a-zA-Z/-]{8,80}", re.ASCII)
_POSTGRESQL = re.compile(
    r"postgresql\+psycopg://(?:[^\s:@/?]*(?::[^\s@]*)?@)?"  # what follows an @ in a password would be the host
    r"(?:\[[0-9a-fA-F:.]+\]|[^\s:@/?\[\]]*)(?::[0-9]{1,5})?(?:/[^\s@?]*)?(?:\?\S*)?"
)
_WHOLE = re.compile(r"[+-]?[0-9]{1,12}", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:[eE][+-]?[0-9]{1,2})?", re.ASCII
)


_LONGEST_S = 100 * 366 * 86400.0
"""Beyond a life's length, and within what a date can be moved by."""


def duration(value: object) -> float:
    """Seconds, at most 100 years. ``30s``, ``5m``, ``2h``, ``7d``, ``500ms``; a bare 0; or a number of seconds."""
    seconds = _seconds(value)
    if seconds > _LONGEST_S:
        raise Refused(f"{quote(value)} is more than 100 years", "write less", wanted=_DURATION_HINT)
    return seconds


def _seconds(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value) and value >= 0:
            return float(value)
    elif isinstance(value, str):
        if value.strip() == "0":
            return 0.0
        found = _DURATION.fullmatch(value.strip())
        if found:
            return float(found[1]) * _SECONDS[found[2]]
        if _NUMBER.fullmatch(value.strip()):
            unit = f"a unit is missing: write {value.strip()}s for seconds, {value.strip()}m for minutes"
            raise Refused(f"{quote(value)} is no duration", unit, wanted=_DURATION_HINT)
    raise Refused(f"{quote(value)} is no duration", _DURATION_HINT)


def kept_for(value: object) -> float | None:
    """As :func:`duration`, or ``forever`` (None)."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "forever"):
        return None
    try:
        return duration(value)
    except Refused as refused:
        raise Refused(refused.message, f"{refused.hint}; or forever", wanted=_DURATION_HINT) from None


def size(value: object) -> int:
    """Bytes. ``500MB`` and ``20GB`` are powers of 1000, ``512MiB`` of 1024; a bare number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found:
            return round(float(found[1]) * _BYTES[found[2] or "B"])
    raise Refused(f"{quote(value)} is no size", _SIZE_HINT)


def whole(value: object) -> int:
    """A whole number in decimal digits; ``0x1F`` and ``1e3`` are none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    raise Refused(f"{quote(value)} is no whole number", "write decimal digits, for example 128")


def receivers(value: object) -> int | Literal["auto"]:
    """1 to 16, or ``auto``."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    hint = "write auto, or a whole number from 1 to 16"
    try:
        n = whole(value)
    except Refused as refused:
        raise Refused(refused.message, hint) from None
    if not 1 <= n <= 16:
        raise Refused(f"{n} is no number of receivers", hint)
    return n


def number(value: object) -> float:
    """A finite decimal number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    raise Refused(f"{quote(value)} is no number", "write a decimal number, for example 0.6")


def truth(value: object) -> bool:
    """``true`` or ``false``, as in YAML 1.2; ``yes`` and ``on`` are words, not truth values."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise Refused(f"{quote(value)} is neither true nor false", "write true or false")


def text(value: object) -> str:
    """Printable text on one line."""
    if isinstance(value, str):
        if all(c.isprintable() for c in value):
            return value
        raise Refused(f"{quote(value)} has characters that cannot be printed", "write it on one line")
    raise Refused(f"{quote(value)} is no text", "write text, in quotes if need be")


def filled(value: object) -> str:
    """As :func:`text`, not empty."""
    said = text(value)
    if not said.strip():
        raise Refused("the text is empty", "write something or take the line out")
    return said


def ae_title(value: object) -> str:
    """An application entity title without padding (PS3.5 6.2, VR AE)."""
    if not isinstance(value, str):
        raise Refused(f"{quote(value)} is no AE title", _AE_HINT)
    title = value.strip(" ")
    if not title:
        raise Refused("the AE title is empty", _AE_HINT)
    if len(title) > 16:
        raise Refused(f"the AE title {quote(title)} has {len(title)} characters", _AE_HINT)
    if "\\" in title or not all(" " <= c <= "~" for c in title):
        raise Refused(f"the AE title {quote(title)} has a character that is not allowed", _AE_HINT)
    return title


def suffix(value: object) -> str:
    """Text that is appended to one value of a description."""
    said = text(value)
    if "\\" in said:
        raise Refused(
            f"{quote(value)} has a backslash, which begins another value (PS3.5 6.2)", "take it out"
        )
    return said


def host_and_port(value: object) -> tuple[str, int]:
    """``host:port``; an IPv6 host stands in square brackets."""
    said = value.strip() if isinstance(value, str) else ""
    host, colon, port = said.rpartition(":")
    if not colon:
        raise Refused(f"{quote(value)} is no host:port", _ADDRESS_HINT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise Refused(f"{quote(host)} is no IPv6 address", _ADDRESS_HINT) from None
    elif ":" in host:
        raise Refused(f"{quote(said)} is no host:port", "an IPv6 host stands in brackets: [::1]:11112")
    elif not _HOST.fullmatch(host) or (host.replace(".", "").isdigit() and not _is_ip(host)):
        raise Refused(f"{quote(host)} is neither a host name nor an IP address", _ADDRESS_HINT)
    if not _WHOLE.fullmatch(port) or not 0 <= int(port) <= 65535:
        raise Refused(f"{quote(port)} is no port", "a port is a number from 1 to 65535, often 104 or 11112")
    return host, int(port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def network(value: object) -> str:
    """An IP address or a network in CIDR notation, in canonical form."""
    hint = "write an address such as 10.1.2.3 or a network such as 10.1.2.0/24; names are not resolved"
    if not isinstance(value, str):
        raise Refused(f"{quote(value)} is no IP address", hint)
    try:
        return str(ipaddress.ip_network(value.strip()))
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise Refused(f"{quote(value)} is no IP address", hint) from None
    one = value.strip().partition("/")[0]
    either = f"write {loose}, or {one} for that host"
    raise Refused(f"{quote(value)} names a host and a network at once", either, wanted=hint)


def uid(value: object) -> str:
    """A DICOM UID (PS3.5 9.1): at most 64 characters, numbers without leading zeros, joined by dots."""
    said = value.strip() if isinstance(value, str) else ""
    if len(said) > 64 or not _UID.fullmatch(said):
        raise Refused(
            f"{quote(value)} is no UID", "a UID is digits and dots, at most 64 characters (PS3.5 9.1)"
        )
    return said


def name(value: object) -> str:
    """The name of an entry of ``engines:`` or ``destinations:``."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise Refused(
        f"{quote(value)} is no name", "a name has letters, digits, dots, dashes and underscores, at most 64"
    )


def gpu(value: object) -> str:
    """A GPU: its number in ``nvidia-smi -L``, its UUID, or that of a MIG slice of one."""
    said = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(said, str) and _GPU.fullmatch(said.strip()):
        return said.strip()
    raise Refused(
        f"{quote(value)} is no GPU",
        "write a number, or a UUID as `nvidia-smi -L` shows it: GPU-... or MIG-...",
    )


def database(value: object) -> str:
    """A database URL. It may hold a password, so no fault repeats it."""
    if not isinstance(value, str):
        raise Refused("this is no database URL", "write sqlite:///var/luminode.db")
    if value.startswith("sqlite:///") and len(value) > len("sqlite:///"):
        return value
    if value.startswith("postgresql+psycopg://"):
        if "sslpassword=" in value.lower():
            raise Refused(
                "the database URL holds a key's passphrase", "use a key without one, for the node alone"
            )
        if _POSTGRESQL.fullmatch(value):
            return value
        raise Refused(
            "the database URL is not whole, or its user, password or query has characters that a URL reads",
            "write postgresql+psycopg://user:${DB_PASSWORD}@host/luminode; within a part of it write @ as %40, "
            "% as %25, a space as %20",
        )
    hint = "write sqlite:///var/luminode.db or postgresql+psycopg://user:${DB_PASSWORD}@host/luminode"
    if value.startswith(("postgresql:", "postgres:", "postgresql+")):
        raise Refused("the database URL does not name the driver psycopg", hint)
    raise Refused("this is no database URL that Luminode knows", hint)


def natural(value: object) -> object:
    """Plain YAML scalars under ``options:`` as numbers and truth values where they read so."""
    if isinstance(value, Mapping):
        return {str(key): natural(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [natural(each) for each in value]
    if isinstance(value, str):
        said = value.strip()
        if said in ("true", "false"):
            return said == "true"
        if _WHOLE.fullmatch(said):
            return int(said)
        if _NUMBER.fullmatch(said):
            return float(said)
    return value


_DURATION_JSON = {"type": ["string", "number"], "pattern": rf"^(0|{_DURATION.pattern})$", "minimum": 0}
_KEPT_JSON = {**_DURATION_JSON, "pattern": rf"^(0|forever|{_DURATION.pattern})$"}
_SIZE_JSON = {"type": ["string", "integer"], "pattern": rf"^{_SIZE.pattern}$", "minimum": 0}

Duration: TypeAlias = Annotated[float, BeforeValidator(duration), WithJsonSchema(_DURATION_JSON)]
KeptFor: TypeAlias = Annotated[float | None, BeforeValidator(kept_for), WithJsonSchema(_KEPT_JSON)]
Size: TypeAlias = Annotated[int, BeforeValidator(size), WithJsonSchema(_SIZE_JSON)]
Whole: TypeAlias = Annotated[int, BeforeValidator(whole)]
Receivers: TypeAlias = Annotated[
    int | Literal["auto"],
    BeforeValidator(receivers),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 16}]}),
]
Number: TypeAlias = Annotated[float, BeforeValidator(number)]
Truth: TypeAlias = Annotated[bool, BeforeValidator(truth)]
Text: TypeAlias = Annotated[str, BeforeValidator(text)]
Suffix: TypeAlias = Annotated[str, BeforeValidator(suffix)]
Filled: TypeAlias = Annotated[str, BeforeValidator(filled)]
AETitle: TypeAlias = Annotated[
    str, BeforeValidator(ae_title), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 16})
]
Network: TypeAlias = Annotated[str, BeforeValidator(network)]
UID: TypeAlias = Annotated[str, BeforeValidator(uid)]
Name: TypeAlias = Annotated[str, BeforeValidator(name)]
GpuDevice: TypeAlias = Annotated[
    str,
    BeforeValidator(gpu),
    WithJsonSchema({"type": ["string", "integer"], "pattern": f"^({_GPU.pattern})$"}),
]
Options: TypeAlias = Annotated[dict[str, Any], BeforeValidator(natural)]
Database: TypeAlias = Annotated[str, BeforeValidator(database)]
