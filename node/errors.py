"""Every error that Luminode raises, grouped by what the caller should do.

::

    NodeError
    ├── ConfigError            the admin mends config.yaml (exit status 78)
    ├── StoreError             the database or the spool: retry, then a person
    │   ├── OutOfSpace         free space; C-STORE answers A700H until then
    │   ├── SchemaTooNew       a newer Luminode wrote this database
    │   ├── SchemaTooOld       an older one did, and this caller may not upgrade it
    │   └── TransitionRefused  somebody else moved this row first: read again
    ├── ReceiveError           carries the DIMSE status that answers it
    │   └── HeaderFault        the bytes are no data set, or one beyond the reader's bounds
    ├── SeriesError            permanent: this series cannot be enhanced as it is
    ├── EnhanceError
    │   ├── EngineUnavailable  retry: the runtime or its worker is not there
    │   ├── PlanMismatch       rebuild the plan; another runtime takes over
    │   ├── OutOfDeviceMemory  retry with smaller slabs
    │   └── ImplausibleOutput  permanent: nothing derived is sent
    ├── DeriveError            a defect of ours: park, keep everything
    ├── MonitoringError        the pages for whoever watches cannot be shown; all else goes on
    └── DeliveryError
        ├── PeerUnreachable    retry for days
        ├── AssociationRejected  retry when transient, a person when permanent
        ├── ContextNotAccepted   permanent: this PACS does not take this class
        └── InstanceRefused      permanent for this instance, the rest goes on
"""

from __future__ import annotations

from dataclasses import dataclass

READ_ONLY_HINT = (
    "this place may only be read: a service of systemd has to name it in ReadWritePaths= (install.md)"
)
"""Where the system says EROFS: no owner and no mode helps against it."""


class NodeError(Exception):
    """Root of all typed errors.

    Attributes
    ----------
    retryable
        True if the same call may succeed later without a person's help.
    hint
        One sentence that tells a person what to do. Never holds patient data.
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFault:
    """One fault in config.yaml.

    ``line`` and ``column`` count from 1, as editors do; 0 means the file as a whole.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        told = f"{where}: {self.path + ': ' if self.path else ''}{self.message}"
        return f"{told} ({self.hint})" if self.hint else told


class ConfigError(NodeError):
    """The configuration is wrong; ``faults`` lists every fault found, at once."""

    exit_status = 78

    def __init__(self, faults: tuple[ConfigFault, ...]) -> None:
        super().__init__("\n".join(str(f) for f in faults))
        self.faults = faults


class StoreError(NodeError):
    """The database or the spool did not do what was asked."""

    retryable = True


class OutOfSpace(StoreError):
    """Free space is under the reserve."""


class SchemaTooNew(StoreError):
    """The database was migrated by a newer Luminode."""

    retryable = False


class SchemaTooOld(StoreError):
    """The database waits for an upgrade of its schema."""

    retryable = False


class TransitionRefused(StoreError):
    """A compare-and-swap found another state than the one expected."""

    retryable = False


class ReceiveError(NodeError):
    """An instance is not stored; ``status`` is the DIMSE status to answer (PS3.4 B.2.3)."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class HeaderFault(ReceiveError):
    """A data set's header cannot be read: malformed, cut short, or beyond the bounds of the reader.

    The message names tags and lengths, never values: it may be logged.
    """

    def __init__(self, message: str, *, status: int = 0xC000, hint: str = "") -> None:
        super().__init__(status, message, hint=hint)


class SeriesError(NodeError):
    """This series cannot be enhanced as it is; the reason is the message."""


class EnhanceError(NodeError):
    """An engine did not produce a usable result."""


class EngineUnavailable(EnhanceError):
    retryable = True


class PlanMismatch(EnhanceError):
    pass


class OutOfDeviceMemory(EnhanceError):
    retryable = True


class ImplausibleOutput(EnhanceError):
    pass


class DeriveError(NodeError):
    """A derived object could not be written: a defect of ours."""


class MonitoringError(NodeError):
    """The pages of ``monitoring`` cannot be shown: nobody's work depends on it."""

    retryable = True


class DeliveryError(NodeError):
    """A destination did not take what was sent."""


class PeerUnreachable(DeliveryError):
    retryable = True


class AssociationRejected(DeliveryError):
    """``retryable`` follows the result of the A-ASSOCIATE-RJ (PS3.8 9.3.4)."""


class ContextNotAccepted(DeliveryError):
    pass


class InstanceRefused(DeliveryError):
    def __init__(self, status: int, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.status = status
