"""The parts of the schema that name peers: addresses, AE titles, TLS files."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from node.config.values import UID, AETitle, Filled, Network, Refused, Whole, host_and_port, quote


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is a fault."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, validate_default=False
    )


def _address(value: object) -> object:
    if isinstance(value, str):
        host, port = host_and_port(value)
        return {"host": host, "port": port}
    return value


class HostPort(Section):
    """Where to listen or to connect."""

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=0, le=65535)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address: TypeAlias = Annotated[
    HostPort, BeforeValidator(_address), WithJsonSchema({"type": "string", "pattern": "^.+:[0-9]{1,5}$"})
]


class ClientTLS(Section):
    """TLS for associations that the node opens."""

    authorities: Filled = Field(description="PEM file with the authorities that sign the peer's certificate.")
    certificate: Filled | None = Field(default=None, description="PEM file with the node's own certificate.")
    key: Filled | None = Field(default=None, description="PEM file with the private key of `certificate`.")

    @model_validator(mode="after")
    def _pair(self) -> ClientTLS:
        if (self.certificate is None) != (self.key is None):
            raise Refused("certificate and key go together", "give both or neither")
        return self


class ReportTo(Section):
    """Where a peer listens for the results of its requests for storage commitment."""

    address: Address = Field(description="host:port.")
    ae_title: AETitle | None = Field(
        default=None, description="The AE title that is called there. Left out: the peer's."
    )
    tls: ClientTLS | None = Field(default=None, description="Use TLS with these files. Left out: plain TCP.")


def _report_to(value: object) -> object:
    return {"address": value} if isinstance(value, str) else value


class Peer(Section):
    """A calling AE title that may associate, optionally pinned to addresses."""

    ae_title: AETitle = Field(description="The AE title by which the peer calls.")
    addresses: Annotated[tuple[Network, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="IP addresses or CIDR networks that this AE title may call from. Left out: from anywhere. "
        "AE titles are no authentication: pin every scanner whose address is fixed.",
    )
    max_associations: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="How many associations may call by this AE title at once, from wherever; more are rejected as "
        "transient: peers retry. Left out: as many as their addresses may have.",
    )
    report_to: Annotated[ReportTo, BeforeValidator(_report_to)] | None = Field(
        default=None,
        description="Where this peer listens for results of storage commitment: host:port, or {address, ae_title, "
        "tls}. Left out: it is told on an association of its own making.",
    )

    def admits(self, address: str) -> bool:
        """True if a peer at this IP address may use this AE title."""
        if self.addresses is None:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        # Either of an IPv4 address's two ways of being written may stand in the list.
        ways = (ip, ipaddress.IPv6Address(f"::ffff:{ip}")) if ip.version == 4 else (ip,)
        return any(way in ipaddress.ip_network(each) for each in self.addresses for way in ways)


def _peer(value: object) -> object:
    return {"ae_title": value} if isinstance(value, str) else value


def _any_or_list(value: object) -> object:
    if isinstance(value, str) and value != "any":
        meant = re.split(r"[\s,]+-?|^-", value.strip())
        everybody = value.strip().casefold() in ("any", "all", "*")
        raise Refused(
            f"{quote(value)} is neither `any` nor a list",
            "write any, in lower case" if everybody else f"write [{', '.join(filter(None, meant))}]",
            wanted="`any` or a list in brackets",
        )
    return value


def _which(value: object) -> str:
    return "any" if isinstance(value, str) else "list"


_Any = Annotated[Literal["any"], Tag("any")]
_PEER_JSON = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 16},
        {
            "type": "object",
            "required": ["ae_title"],
            "additionalProperties": False,
            "properties": {
                "ae_title": {"type": "string"},
                "addresses": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "max_associations": {"type": "integer", "minimum": 1, "maximum": 4096},
                "report_to": {
                    "anyOf": [
                        {"type": "string", "pattern": "^.+:[0-9]{1,5}$"},
                        {
                            "type": "object",
                            "required": ["address"],
                            "additionalProperties": False,
                            "properties": {
                                "address": {"type": "string", "pattern": "^.+:[0-9]{1,5}$"},
                                "ae_title": {"type": "string"},
                                "tls": {"type": "object"},
                            },
                        },
                    ]
                },
            },
        },
    ]
}
_Peer = Annotated[Peer, BeforeValidator(_peer), WithJsonSchema(_PEER_JSON)]
_Peers = Annotated[tuple[_Peer, ...], Field(min_length=1), Tag("list")]
_UIDs = Annotated[tuple[UID, ...], Field(min_length=1), Tag("list")]

AcceptFrom: TypeAlias = Annotated[
    Annotated[_Any | _Peers, Discriminator(_which)], BeforeValidator(_any_or_list)
]
TransferSyntaxes: TypeAlias = Annotated[
    Annotated[_Any | _UIDs, Discriminator(_which)], BeforeValidator(_any_or_list)
]


TLS_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites of TLS 1.2, in OpenSSL's words, at the door and towards a PACS: forward secrecy and authenticated encryption
(PS3.15 B.12, RFC 9325 4.2). All of TLS 1.3 have both."""


class ServerTLS(Section):
    """TLS for associations that scanners open (PS3.15 B.12)."""

    certificate: Filled = Field(description="PEM file with the node's certificate, then its chain.")
    key: Filled = Field(description="PEM file with the node's private key, readable by the node alone.")
    authorities: Filled | None = Field(
        default=None,
        description="PEM file with the authorities that sign the peers' certificates. When given, a peer "
        "without a certificate of one of them is turned away.",
    )
