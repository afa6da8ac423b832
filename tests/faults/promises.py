"""What Luminode promises, R1-R60 and the rows S1-S16 of its security model that tests can break, as short text.

Each stands in docs/reliability.md beside what was run against it. A promise has a test, or `Unexercised` says why not.
"""

# ruff: noqa: E501 - a table, one promise a line

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A promise.

    Attributes
    ----------
    id
        ``R1`` ... ``R60``, ``S1`` ... ``S16``.
    promise
        What holds, whatever happens.
    target
        The figures at which it counts as kept, at full load.
    """

    id: str
    promise: str
    target: str


SECTIONS = {
    "A. Nothing acknowledged is lost": range(1, 14),
    "B. A broken or hostile peer harms only itself": range(14, 29),
    "C. Delivery": range(29, 38),
    "D. Engines": range(38, 49),
    "E. Configuration, database, time, operation": range(49, 61),
}
"""Heading of each part of the table, and the numbers of its promises."""

_TABLE = """
R1 | Every instance answered 0000H appears in its derived series exactly once by UID, whatever the crash point | at least 100 crash points in make test and 2,000 in make faults; 0 lost, 0 extra, 0 rows without file; ready within 10 s
R2 | The same under power loss, when unsynced data and names are gone | 20 and 200 cuts; 0 lost; without any one sync the test is red
R3 | A failed write, sync, rename or commit is never answered 0000H, and never tried again on the same file | A700H or abort in 100 %; the association is usable for the next instance
R4 | Every way to fail has its declared status | a table of 12 cases, exact; 0000H in none
R5 | Abort, reset or end in mid-association keep what was acknowledged and show nothing of the rest | 300 of 300 cuts; nothing left under tmp
R6 | Stored bytes are sent bytes | 1,000 of 1,000 objects of 24 transfer syntaxes identical
R7 | A duplicate is harmless, in sequence or at once | 0000H to all, 1 row; other bytes: both kept, and an event
R8 | Order of arrival and interleaving do not matter | 200 permutations: derived UIDs and pixels equal
R9 | A late instance is never dropped nor silently mixed | 50 of 50: the next generation complete, the one before untouched, told
R10 | A restart in mid-series loses neither count nor timer | killed after every k of 40: all 40 are in one derived series; closes on time
R11 | SIGTERM under load drains | 50 stops: gone within 15 s, 0 lost
R12 | Storage commitment never lies | 100 of 100 flipped bits reported as failed
R13 | Bit rot is found before use | 100 of 100 flipped bits found; never processed, never sent
R14 | No PDU makes the node allocate beyond its cap | resident memory +64 MB at most; cut within 1 s
R15 | Who drips bytes cannot occupy the node | a good scanner beside 200 drippers: associated within 1 s, all stored; drippers gone within 45 s
R16 | Idle connections cannot occupy the node | 1,000 idle from one address: a good scanner from another is never rejected
R17 | A stalled TLS handshake blocks nobody | 50 silent peers: a good association within 1 s; the stalled closed within 10 s
R18 | 100 and more associations at once | 128 associations of 50 instances: 0 failed, 99 % answered within 3 s; nothing left over
R19 | Inflation is bounded | bombs refused or stored as they came; resident memory +64 MB at most
R20 | Depth, elements and items are bounded before a full parse | a typed refusal within 1 s of processor each; echo answered throughout
R21 | No mutated data set or PDU crashes, hangs, leaks or is a false success | 1 M data sets and 1 M PDUs: 0 escaped exceptions, 250 ms at worst
R22 | Memory does not grow with slices | a series of 2,000 slices, 4 at once: receiver under 300 MB
R23 | Memory does not grow with objects | 1 GB multi-frame: receiver under 300 MB, bytes identical; beyond the cap A700H
R24 | A data set without end is ended | stopped at the cap; nothing left under tmp
R25 | Unknown titles and addresses are refused before any data set | rejected in 100 %; an event; 0 bytes stored
R26 | No path leaves the spool | 10,000 hostile UIDs: 0 files outside
R27 | A full disk is refused early, and heals | 20 cycles: 0 false success; goes on within 30 s of there being space
R28 | Inodes, descriptors and threads that run out are refusals | no crash loop; recovers
R29 | A PACS outage of 7 days loses nothing and needs no hand | 500 series, 10 restarts: all delivered, at most 1 try in 15 min, oldest first
R30 | A half-open or frozen PACS is left in bounded time | 20 points: each attempt ends within 60 s; others unaffected
R31 | A slow PACS is used, not punished | delivered at 64 kB/s, with delays, in chunks of 1 byte
R32 | Every class of status does what the table says | 30 of 30 outcomes exact; one poison instance stops no other
R33 | A lost answer is unknown: sent again, never skipped, never failed | 1 % of answers lost: the PACS holds what it should; 0 held
R34 | A restart in mid-upload resumes | killed at each instance of 200: the PACS holds what it should
R35 | One destination's trouble is not another's | up, down and frozen: delay of the one that is up at most doubled
R36 | Sent only when N of N are confirmed | 1,000 series with random faults: 0 early
R37 | Queued work keeps its destination and the version of its rule | 100 rows while the configuration changes: never to another
R38 | A crash of an engine costs at most one retry | 30 % of 100 series: all done or held; node up
R39 | A hang of an engine is killed | killed within its bound; originals unaffected
R40 | Running out of memory is contained | tried smaller once, then held; receiver flat
R41 | A broken context of a device is never used again | the worker ends at the first error; a canary before it serves again
R42 | A poison series is quarantined, the rest goes on | 1 among 50: held after 2 fresh workers; 49 done
R43 | A bad GPU opens the breaker | 3 failures in 10 min: declared fallback, or held; alarm
R44 | Garbage never leaves | NaN, shape, constant, shift, swapped slices: 100 % stopped, with the reason
R45 | A derived series is complete and labelled | every series of every test: 0 violations
R46 | CPU and GPU agree | within the engine's declared bound, else the fallback is refused
R47 | An altered or unsigned model is not loaded | refused before any parser sees it; others go on
R48 | Originals are never gated | engines hung, GPU gone, database slow: forwarding delay unchanged
R49 | A bad edit of the configuration never stops the node or half-applies | 1,000 edits: the last good one stays; 0 lost
R50 | The database killed and restarted: refused, never lost | 100 kills: A700H while away, back within 10 s, 0 lost, 0 double
R51 | A failover of PostgreSQL loses nothing | 10 promotions of a synchronous standby: 0 lost
R52 | A database that cannot be used is refused, not improvised | start refused with an instruction, or rebuilt from the spool
R53 | Jumps of the clock change no outcome | hours, days, years, both ways: 0 early closes, 0 double runs
R54 | Periodic jobs run once, and are never skipped for being late | 2 nodes, one database: 1 run a slot
R55 | A full or blocked log does not stop care | 99 % of answers at most twice as late; no event lost
R56 | An upgrade interrupted at any statement starts again clean | every step: 0 lost; an older binary refuses a newer schema
R57 | A backup is consistent and can be restored | 20 under load: restored holds all that was acknowledged before it began
R58 | Nothing unsent is ever deleted | retention 0, disk at 95 %: 0 deletions of what is not done
R59 | Health tells the truth | each part broken in turn: told within 15 s
R60 | A soak: nothing lost, nothing grows | 1 h in make faults, 72 h at a release: 0 lost, 0 extra; memory, files, threads flat
S1 | The door and the admin's page listen where they were told, and nowhere wider | every listener of a running node
S2 | Only listed peers come in; an empty list is nobody | a matrix of titles and addresses
S3 | TLS 1.2 and later with AEAD, certificates required where the site says so | offered suites; wrong certificates refused
S7 | Secrets reach no configuration dump, log or traceback | a canary secret in every output: 0 hits
S8 | Files are the node's own: 0600 and 0700, links refused | every file of a spool; planted links
S11 | No connection but to what is configured; no telemetry, no download | a whole job without a network but the loopback
S12 | The receiver decodes no pixels and unpickles nothing | bounded scan; a rule over the sources
S13 | A model is what its card says, or it is not loaded | every byte flipped is refused
S16 | What is not configured stays closed | no configuration, no allow-list, bad permissions: no listener, a text
"""

PROMISES: dict[str, Promise] = {
    row[0]: Promise(id=row[0], promise=row[1], target=row[2])
    for row in ([cell.strip() for cell in line.split("|")] for line in _TABLE.strip().splitlines())
}
"""By id, in order."""
