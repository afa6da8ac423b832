"""The configuration of a node in a test of the command line."""

from __future__ import annotations

CONFIG = """\
node: {ae_title: LUMINODE, listen: 127.0.0.1:11112, accept_from: [CT1]}
store: {spool: spool, database: "sqlite:///luminode.db", refuse_below: 1MB}
engines:
  ct: {engine: ct-wavelet, strength: 0.6}
  mr: {engine: mr-wavelet}
destinations:
  outbox: {kind: folder, path: outbox}
  pacs: {kind: dimse, ae_title: PACS, address: "127.0.0.1:1"}
rules:
  - {name: chest, when: {Modality: CT, ImageType: not LOCALIZER}, enhance: ct, send_to: [outbox, pacs]}
  - {name: brain, when: {Modality: MR, InstanceCount: at least 100}, enhance: mr, send_to: [outbox]}
  - {name: the rest, when: any, ignore: true}
"""
