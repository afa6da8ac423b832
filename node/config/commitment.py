"""The part of the schema that says what a storage commitment is worth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from node.config.network import Section
from node.config.values import Duration


class CommitmentSettings(Section):
    """Storage commitment: scanners ask whether they may delete what they sent (PS3.4 J)."""

    promise: Literal["off", "held", "delivered"] = Field(
        default="off",
        description="What a commitment means. `off`: the service is not offered. `delivered`: every destination with "
        "`forward_originals` has confirmed the instance. `held`: it lies in the spool, whole, and those destinations "
        "will get it, or `store.keep.received` is `forever`. No other case is ever committed.",
    )
    answer_within: Annotated[Duration, Field(gt=0)] = Field(
        default=86400.0,
        description="With `delivered`: what no destination has confirmed by then is told as failed.",
    )
    tell_for: Annotated[Duration, Field(gt=0)] = Field(
        default=7 * 86400.0, description="How long to try to tell a scanner that does not listen."
    )
