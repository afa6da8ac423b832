"""Errors of the engines. The node maps them onto its own tree by what the caller should do.

::

    EngineError
    ├── CardInvalid        the engine's folder is wrong: mend or remove it
    ├── WeightsMismatch    the weights' digest is not the card's: refuse, alarm
    ├── RuntimeUnavailable the next runtime may take over
    │   ├── PlanMismatch   a compiled plan is not what it says, or not what the network says: refuse it, rebuild
    │   ├── GpuUnusable    there is a GPU that it is for, and yet it cannot be used: a person has to see to that
    │   └── CanaryRefused  it answered a question of known answer wrongly: this runtime is not to be used here
    ├── DeviceLost         the accelerator is in an unknown state: end the process, never use it again in this one
    ├── OutOfMemory        retry with smaller slabs
    ├── VolumeUnsuitable   permanent: this engine cannot take this volume
    └── OutputImplausible  permanent: a guard broke; nothing may be derived
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of the engines' errors; ``hint`` tells a person what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CardInvalid(EngineError):
    pass


class WeightsMismatch(EngineError):
    pass


class RuntimeUnavailable(EngineError):
    pass


class PlanMismatch(RuntimeUnavailable):
    pass


class GpuUnusable(RuntimeUnavailable):
    pass


class CanaryRefused(RuntimeUnavailable):
    pass


class DeviceLost(EngineError):
    pass


class OutOfMemory(EngineError):
    pass


class VolumeUnsuitable(EngineError):
    pass


class OutputImplausible(EngineError):
    pass
