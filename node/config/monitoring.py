"""The part of the schema that says who may look at the node over HTTP."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field, model_validator

from node.config.network import Address, HostPort, Section
from node.config.values import Network, Refused

_HERE = ("127.0.0.0/8", "::1/128")


class MonitoringSettings(Section):
    """Pages for whoever watches the node: /healthz, /readyz and /metrics. No patient data is on any of them."""

    listen: Address | None = Field(
        default=None,
        description="Address and port of the pages, for example 127.0.0.1:9464. Plain HTTP: no password, no TLS. Left "
        "out: there are none.",
        json_schema_extra={"restart": True},
    )
    allow_from: Annotated[tuple[Network, ...], Field(min_length=1)] = Field(
        default=_HERE,
        description="IP addresses or CIDR networks that may ask; all others get 403. The default is this machine "
        "alone: beside it, list the addresses of your Prometheus and its like.",
    )

    @model_validator(mode="after")
    def _somebody_may_ask(self) -> MonitoringSettings:
        if self.listen is None or _loopback(self.listen):
            return self
        if all(ipaddress.ip_network(each).is_loopback for each in self.allow_from):
            raise Refused(
                "`listen` is open to other machines, and `allow_from` lets none of them ask",
                "list who may: allow_from: [10.1.2.3], or write listen: 127.0.0.1:9464",
            )
        return self

    def admits(self, address: str) -> bool:
        """True if somebody at this IP address may ask."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in ipaddress.ip_network(each) for each in self.allow_from)


def _loopback(listen: HostPort) -> bool:
    try:
        return ipaddress.ip_address(listen.host).is_loopback
    except ValueError:
        return listen.host == "localhost"
