"""config.yaml to a frozen :class:`~node.config.schema.Config`, or every fault at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node.config.checks import Finding, conditions, cross
from node.config.doubts import doubts, folders
from node.config.faults import findings
from node.config.masks import mask, mask_more
from node.config.schema import Config
from node.config.secret import digest, shown
from node.config.tlsfiles import tls_faults
from node.config.tree import MAX_CHARACTERS, Node, read_tree
from node.config.values import legible
from node.errors import ConfigError, ConfigFault

MAX_FAULTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration in force.

    Attributes
    ----------
    config
        The settings; values of the environment filled in.
    digest
        SHA-256 (hex) of the settings in canonical JSON, secrets as their digests. Comments, order of keys
        and values left at their defaults make no difference.
    text
        The file as written, ``${NAME}`` and all, a password in a URL masked: fit to be stored and shown.
    raw
        The file as written, a password in a URL in clear: fit for a file that only its owner reads.
    path
        Where it was read; None for text that came from elsewhere.
    warnings
        What is allowed but probably not meant.
    shown
        The settings with their defaults for people, JSON-able; secrets as ``${NAME}`` or masked.
    """

    config: Config
    digest: str
    text: str
    path: Path | None = None
    warnings: tuple[ConfigFault, ...] = ()
    shown: Mapping[str, Any]
    raw: str = field(default="", repr=False)


def shipped() -> Path:
    """The annotated config.yaml that comes with Luminode: in the package, or at the top of a checkout."""
    here = Path(__file__).resolve()
    inside = here.with_name("config.yaml")
    return inside if inside.exists() else here.parents[2] / "config.yaml"


def load(
    path: Path, env: Mapping[str, str], *, catalogue: Collection[str] | None = None, files: bool = True
) -> LoadedConfig:
    """Read and validate a file.

    Parameters
    ----------
    path
        The file.
    env
        What ``${NAME}`` may name, usually ``os.environ``.
    catalogue
        Names of the installed engines, to check ``engines:`` against; None leaves that out. A mapping also tells the
        modalities of each, for the rules.
    files
        Check that the files which the configuration names (TLS) can be used.

    Raises
    ------
    ConfigError
        With every fault found.
    """
    return parse(read_text(path), file=str(path), env=env, catalogue=catalogue, files=files, path=path)


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises
    ------
    ConfigError
        If it is no readable, ordinary file with UTF-8 text.
    """
    try:
        if not path.is_file():
            what = "there is no such file" if not path.exists() else "this is no ordinary file"
            raise ConfigError((_whole(str(path), what, "name another with --config"),))
        with path.open("rb") as stream:
            data = stream.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}"
        raise ConfigError((_whole(str(path), what, "check owner and permissions"),)) from None
    return decode(data, str(path))


def decode(data: bytes, file: str) -> str:
    """UTF-8 to text.

    Raises
    ------
    ConfigError
        With the place of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        fault = ConfigFault(
            file=file,
            line=before.count("\n") + 1,
            column=len(before) - (before.rfind("\n") + 1) + 1,
            path="",
            message=f"a byte that is not UTF-8: 0x{data[error.start]:02X}",
            hint="save the file as UTF-8",
        )
        raise ConfigError((fault,)) from None


def _whole(file: str, message: str, hint: str) -> ConfigFault:
    return ConfigFault(file=file, line=0, column=0, path="", message=message, hint=hint)


def parse(
    text: str,
    file: str = "config.yaml",
    env: Mapping[str, str] | None = None,
    *,
    catalogue: Collection[str] | None = None,
    files: bool = False,
    path: Path | None = None,
) -> LoadedConfig:
    """Validate the text of a configuration; see :func:`load`.

    Raises
    ------
    ConfigError
        With every fault found, in the order of the file.
    """
    root, faults = read_tree(text, file, env or {})
    if root is None or root.kind != "mapping":
        if not faults:
            faults = [_not_a_configuration(root, file)]
        raise ConfigError(_ordered(faults))
    found = _missing_values(root)
    whens, said = conditions(root)
    found += said
    config: Config | None = None
    try:
        config = Config.model_validate(_plain(root, whens))
    except ValidationError as error:
        found += findings(error, root)
    found += cross(root, whens, catalogue)
    if config is not None:
        found += [*doubts(config, root, catalogue), *folders(config, root)]
        found += tls_faults(config, root) if files else []
    blamed = {(fault.line, fault.column) for fault in faults}  # what follows from those is no news
    faults += [
        _fault(each, file) for each in found if not each.warning and (each.line, each.column) not in blamed
    ]
    if faults or config is None:
        raise ConfigError(_ordered(faults))
    return LoadedConfig(
        config=config,
        digest=digest(config, root),
        text=mask(text),
        path=path,
        warnings=_ordered([_fault(each, file) for each in found if each.warning]),
        shown=shown(config, root),
        raw=text,
    )


def _not_a_configuration(root: Node | None, file: str) -> ConfigFault:
    hint = "begin with `node:`; the annotated config.yaml shows every key"
    if root is None or (root.kind == "scalar" and root.value is None):
        return _whole(file, "the file is empty", hint)
    message = f"a configuration is made of sections, this is a {root.kind}"
    return ConfigFault(file=file, line=root.line, column=root.column, path="", message=message, hint=hint)


def _fault(finding: Finding, file: str) -> ConfigFault:
    return ConfigFault(
        file=file,
        line=finding.line,
        column=finding.column,
        path=legible(mask_more(finding.path)),
        message=legible(mask_more(finding.message)),
        hint=legible(mask_more(finding.hint)),
    )


def _ordered(faults: list[ConfigFault]) -> tuple[ConfigFault, ...]:
    """In the order of the file, one of each, capped."""
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.line, fault.column))
    if len(ordered) > MAX_FAULTS:
        more = f"and {len(ordered) - MAX_FAULTS} more faults"
        last = _whole(ordered[0].file, more, "mend these first")
        return (*ordered[:MAX_FAULTS], last)
    return tuple(ordered)


def _missing_values(root: Node) -> list[Finding]:
    """Keys without a value. A whole section may be left empty: it then has its defaults."""
    found: list[Finding] = []
    todo: list[tuple[Node, str]] = [(root, "")]
    while todo:
        node, path = todo.pop()
        children = [(name, entry.node, (entry.line, entry.column)) for name, entry in node.entries.items()]
        children += [(str(n + 1), item, (item.line, item.column)) for n, item in enumerate(node.items)]
        for name, child, where in children:
            below = f"{path}.{name}".lstrip(".")[:120]
            if child.kind == "scalar" and child.value is None and path:
                found.append(Finding(*where, below, "the value is missing", "give one, or take the line out"))
            todo.append((child, below))
    return found


_DROP = object()


def _plain(root: Node, whens: Mapping[int, Any]) -> dict[str, Any]:
    """What pydantic gets: conditions parsed, missing values left out, for those are reported already."""
    plain: dict[str, Any] = {}
    for key, entry in root.entries.items():
        value = _without_nulls(entry.node.plain())
        if value is not _DROP:
            plain[key] = value
    rules = root.get("rules")
    if rules is not None and rules.kind == "list" and isinstance(plain.get("rules"), list):
        for n, (node, rule) in enumerate(zip(rules.items, plain["rules"], strict=True)):
            if isinstance(rule, dict) and node.get("when") is not None:
                rule["when"] = whens.get(n, {}) or "any"
    return plain


def _without_nulls(value: Any) -> Any:
    if value is None:
        return _DROP
    if isinstance(value, dict):
        kept = {key: _without_nulls(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each is not _DROP}
    if isinstance(value, list):
        return ["" if each is None else _without_nulls(each) for each in value]
    return value
