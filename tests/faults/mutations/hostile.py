"""What breaks R14-R28: the guards of the door, and the readers that see bytes of strangers first."""

from __future__ import annotations

from tests.faults.mutations import Mutation

_DOOR, _GUARD, _WIRE = "node/receive/door.py", "node/receive/guard.py", "node/receive/wire.py"
_INTAKE, _PACE, _SERVER = "node/receive/intake.py", "node/receive/pace.py", "node/receive/server.py"
_SCAN, _ENCODING = "node/dicom/scan.py", "node/dicom/encoding.py"


def _test(part: str, name: str) -> str:
    return f"tests/faults/test_hostile_{part}.py::test_{name}"


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R14",
        what="no PDU is too long",
        file=_WIRE,
        old="        if length > cap:\n",
        new="        if length > 1 << 33:\n",
        test=_test("connections", "no_pdu_allocates_beyond_its_cap"),
    ),
    Mutation(
        invariant="R15",
        what="a PDU may take for ever as long as something comes",
        file=_PACE,
        old="now - self._pdu > self._pdu_s:",
        new="now - self._pdu > 1e9:",
        test=_test("connections", "bytes_that_drip_inside_an_association_end_it"),
    ),
    Mutation(
        invariant="R15",
        what="whoever has most half-open connections keeps them",
        file=_GUARD,
        old="            if share > shares[address] + 1:\n",
        new="            if share > 1 << 33:\n",
        test=_test("connections", "drippers_that_come_again_from_everywhere_do_not_take_the_last_seat"),
    ),
    Mutation(
        invariant="R16",
        what="no limit for the connections of an address",
        file=_GUARD,
        old="            return from_here < per_address + COURTESY and len(",
        new="            return len(",
        test=_test("connections", "an_idle_flood_stops_nobody[another address]"),
    ),
    Mutation(
        invariant="R16",
        what="connections that idle do not make room",
        file=_GUARD,
        old="        idler = self._gate.idler(address, per_address=per_address)\n",
        new="        idler = None\n",
        test=_test("connections", "an_idle_flood_stops_nobody[the same address]"),
    ),
    Mutation(
        invariant="R16",
        what="an AE title may have every seat",
        file=_GUARD,
        old="            if per_title is not None and sum(",
        new="            if False and sum(",
        test=_test("connections", "a_title_takes_no_more_than_its_seats"),
    ),
    Mutation(
        invariant="R17",
        what="a TLS handshake has no deadline",
        file="node/receive/sockets.py",
        old="    sock.settimeout(within_s)",
        new="    sock.settimeout(None)",
        test=_test("strangers", "a_stalled_handshake_blocks_nobody"),
    ),
    Mutation(
        invariant="R17",
        what="every cipher is offered",
        file=_SERVER,
        old="    context.set_ciphers(TLS_SUITES)\n",
        new='    context.set_ciphers("ALL")\n',
        test=_test("strangers", "only_today_s_tls_is_offered"),
    ),
    Mutation(
        invariant="R18",
        what="connections that were closed still count",
        file=_DOOR,
        old="        self._house.gate.leave(self)\n",
        new="",
        test=_test("crowds", "128_associations_at_once"),
    ),
    Mutation(
        invariant="R19",
        what="whatever a deflated data set inflates to is inflated",
        file=_ENCODING,
        old="    most = min(at_most, allowed + 1)\n",
        new="    most = 1 << 31\n",
        test=_test("bombs", "inflation_is_bounded"),
    ),
    Mutation(
        invariant="R20",
        what="sequences may be nested as deeply as they like",
        file=_SCAN,
        old="            if len(open_levels) > 2 * limits.depth:\n",
        new="            if len(open_levels) > 1 << 33:\n",
        test=_test("bombs", "structure_is_bounded_at_the_door"),
    ),
    Mutation(
        invariant="R20",
        what="the header is gone through again with every piece that comes",
        file=_INTAKE,
        old="max(found.size, 2 * len(self._prefix))",
        new="found.size",
        test=_test("bombs", "bytes_that_trickle_are_not_looked_at_again_and_again"),
    ),
    Mutation(
        invariant="R20",
        what="every thread has a large window of its own",
        file=_SCAN,
        old="    return _LARGE_WINDOW if window > _FIRST_WINDOW else nullcontext()\n",
        new="    return nullcontext()\n",
        test=_test("bombs", "long_headers_cost_one_window_and_not_one_for_each_peer"),
    ),
    Mutation(
        invariant="R20",
        what="a header may hold any number of elements",
        file="node/dicom/parse.py",
        old="            if self.left < 0:\n",
        new="            if self.left < -(1 << 33):\n",
        test=_test("bombs", "structure_is_bounded_for_whoever_reads_the_header[explicit]"),
    ),
    Mutation(
        invariant="R21",
        what="the header of an element is believed to be whole",
        file=_SCAN,
        old="        if pos + 8 > size:\n"
        "            raise _Short(pos + 8, found if pos == size else None)\n"
        "        group, element, vr, length = unpack(buffer, pos)\n",
        new="        group, element, vr, length = unpack(buffer, pos)\n",
        test=_test("fuzz", "no_mutated_data_set_escapes"),
    ),
    Mutation(
        invariant="R21",
        what="a PDV may be shorter than its own header",
        file=_WIRE,
        old="        if length < 2 or length + 4 > self._pdu_left:\n",
        new="        if length + 4 > self._pdu_left:\n",
        test=_test("fuzz", "no_mutated_pdu_escapes"),
    ),
    Mutation(
        invariant="R21",
        what="an abort with an odd source is given to the state machine",
        file=_DOOR,
        old="                raw = _ABORT if pdu.kind == wire.ABORT else raw\n",
        new="                raw = pdu.raw\n",
        test=_test("fuzz", "no_conversation_stops_the_node_or_is_told_what_is_not_so"),
    ),
    Mutation(
        invariant="R22",
        what="what was received stays in memory",
        file=_INTAKE,
        old="            self._writer.write_all(pieces)\n",
        new="            self._writer.write_all(pieces)\n"
        "            globals().setdefault('_kept', []).extend(map(bytes, pieces))\n",
        test=_test("crowds", "many_slices_at_once_cost_no_memory"),
    ),
    Mutation(
        invariant="R23",
        what="a data set is gathered in memory",
        file=_INTAKE,
        old="            if self._ids is None:\n                self._look_for_ids(pieces)\n",
        new='            self._prefix += b"".join(pieces)\n'
        "            if self._ids is None:\n                self._look_for_ids(pieces)\n",
        test=_test("crowds", "an_enormous_multi_frame_object_passes_through"),
    ),
    Mutation(
        invariant="R24",
        what="a data set may go on for ever",
        file=_INTAKE,
        old="        return self.size > DRAIN * self._terms.max_instance\n",
        new="        return False\n",
        test=_test("crowds", "a_data_set_without_end_is_ended"),
    ),
    Mutation(
        invariant="R24",
        what="a data set may creep for ever",
        file=_PACE,
        old="        if lasted > LONG_S and ",
        new="        if lasted > 1e9 and ",
        test=_test("crowds", "a_data_set_that_creeps_is_ended"),
    ),
    Mutation(
        invariant="R25",
        what="everybody may call",
        file="node/receive/terms.py",
        old="    if not node.peer(calling_ae, address):\n",
        new="    if not calling_ae:\n",
        test=_test("strangers", "a_stranger_leaves_no_byte_and_an_event"),
    ),
    Mutation(
        invariant="R25",
        what="a certificate is asked for and not required",
        file=_SERVER,
        old="            context.verify_mode = ssl.CERT_REQUIRED\n",
        new="            context.verify_mode = ssl.CERT_OPTIONAL\n",
        test=_test("strangers", "a_wrong_certificate_is_turned_away_and_told"),
    ),
    Mutation(
        invariant="R26",
        what="a folder of the spool is named after the series",
        file="node/store/spool.py",
        old='    folder = hashlib.sha256(series_uid.encode("utf-8", "surrogateescape")).hexdigest()[:2]\n',
        new="    folder = series_uid[-2:]\n",
        test=_test("names", "no_name_from_the_network_becomes_a_path"),
    ),
    Mutation(
        invariant="R26",
        what="a link is taken for a folder",
        file="node/store/disk.py",
        old="        if not stat.S_ISDIR(os.lstat(path).st_mode):\n",
        new="        if not stat.S_ISDIR(os.stat(path).st_mode):\n",
        test=_test("names", "a_link_planted_in_the_spool_is_not_followed"),
    ),
    Mutation(
        invariant="R27",
        what="new jobs are accepted on a disk that is nearly full",
        file=_DOOR,
        old=" >= self._house.terms.reject_below\n",
        new=" >= 0\n",
        test=_test("full", "a_full_disk_is_refused_early_and_heals"),
    ),
    Mutation(
        invariant="R27",
        what="instances are taken until the disk is full",
        file=_INTAKE,
        old="    if free < refuse_below:\n",
        new="    if free < 0:\n",
        test=_test("full", "a_full_disk_is_refused_early_and_heals"),
    ),
    Mutation(
        invariant="R28",
        what="idle connections may take every file that the process may open",
        file=_SERVER,
        old="            in_all = min(in_all, max((files - FILES - landing.most_files()) // 2, 1))\n",
        new="            in_all = max(in_all, 1)\n",
        test=_test("full", "no_files_left_is_refused_and_heals"),
    ),
    Mutation(
        invariant="R28",
        what="where there is no thread, the process ends",
        file=_SERVER,
        old="            self._house.gate.leave(door)\n            sock.close()\n            self._house.alarm",
        new="            __import__('os')._exit(1)\n            sock.close()\n            self._house.alarm",
        test=_test("full", "no_threads_left_is_refused_and_heals"),
    ),
)
