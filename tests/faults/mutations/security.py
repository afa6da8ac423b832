"""What breaks the rows of the security model that a node must keep by itself."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_CLOSED = "tests/faults/test_closed_by_default.py"
_LISTED = "tests/faults/test_peers_listed.py"
_TLS = "tests/faults/test_tls_offered.py"
_TOLD = "tests/faults/test_secrets_told.py"
_MODELS = "tests/faults/test_engines_models.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="S1",
        what="the door listens on every interface",
        file="node/receive/server.py",
        old="                (listen.host, listen.port),\n",
        new='                ("0.0.0.0", listen.port),\n',
        test=f"{_CLOSED}::test_a_node_listens_and_connects_where_it_was_told_and_nowhere_else",
    ),
    Mutation(
        invariant="S1",
        what="the pages listen on every interface",
        file="node/web/server.py",
        old="        sock.bind((host, port))\n",
        new='        sock.bind(("0.0.0.0", port))\n',
        test=f"{_CLOSED}::test_a_node_listens_and_connects_where_it_was_told_and_nowhere_else",
    ),
    Mutation(
        invariant="S2",
        what="the case of an AE title does not count",
        file="node/config/schema.py",
        old="each.ae_title == title and",
        new="each.ae_title.casefold() == title.casefold() and",
        test=f"{_LISTED}::test_only_who_is_listed_comes_in",
    ),
    Mutation(
        invariant="S2",
        what="a listed title may call from anywhere",
        file="node/config/network.py",
        old="        return any(way in ipaddress.ip_network(each) for each in self.addresses for way in ways)\n",
        new="        return bool(ways)\n",
        test=f"{_LISTED}::test_only_who_is_listed_comes_in",
    ),
    Mutation(
        invariant="S2",
        what="an empty list of addresses is everywhere",
        file="node/config/network.py",
        old="    addresses: Annotated[tuple[Network, ...], Field(min_length=1)] | None = Field(\n",
        new="    addresses: tuple[Network, ...] | None = Field(\n",
        test=f"{_LISTED}::test_an_empty_list_is_nobody",
    ),
    Mutation(
        invariant="S3",
        what="suites without authenticated encryption are offered",
        file="node/config/network.py",
        old='TLS_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"\n',
        new='TLS_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"\n',
        test=f"{_TLS}::test_the_door_takes_aead_suites_of_tls_1_2_and_1_3_alone",
    ),
    Mutation(
        invariant="S3",
        what="a peer without certificate may come in",
        file="node/receive/server.py",
        old="            context.verify_mode = ssl.CERT_REQUIRED\n",
        new="            context.verify_mode = ssl.CERT_OPTIONAL\n",
        test=f"{_TLS}::test_the_door_wants_a_certificate_that_is_good_for_a_client",
    ),
    Mutation(
        invariant="S3",
        what="the sender takes whatever suite OpenSSL takes",
        file="node/deliver/dimse.py",
        old="    context.set_ciphers(TLS_SUITES)\n",
        new="",
        test=f"{_TLS}::test_the_sender_gives_no_image_to_a_weak_or_false_pacs",
    ),
    Mutation(
        invariant="S7",
        what="a password in the query of a URL is shown",
        file="node/config/masks.py",
        old='    return _QUERY.sub(r"\\g<1>***", "\\n".join(_masked(_PASSWORD, line) for line in text.split("\\n")))\n',
        new='    return "\\n".join(_masked(_PASSWORD, line) for line in text.split("\\n"))\n',
        test=f"{_TOLD}::test_a_good_configuration_is_told_without_its_secret",
    ),
    Mutation(
        invariant="S7",
        what="a wrong value is told whatever the environment had in it",
        file="node/config/faults.py",
        old="    if any(each.secret for each in node.nodes()):\n",
        new="    if any(each.secret for each in node.items):\n",
        test=f"{_TOLD}::test_a_wrong_edit_is_told_without_the_secret_in_it",
    ),
    Mutation(
        invariant="S7",
        what="a defect is logged with the variables around it",
        file="node/log.py",
        old="ConsoleRenderer(colors=colored, exception_formatter=_written)",
        new="ConsoleRenderer(colors=colored)",
        test=f"{_TOLD}::test_a_defect_is_told_by_place_and_type_alone",
    ),
    Mutation(
        invariant="S7",
        what="pg_dump is given the password in its arguments",
        file="node/store/archive.py",
        old="    where = bare.render_as_string(hide_password=False)\n",
        new='    where = url.set(drivername="postgresql").render_as_string(hide_password=False)\n',
        test=f"{_TOLD}::test_a_dump_gets_the_password_where_nobody_else_can_read_it",
    ),
    Mutation(
        invariant="S8",
        what="the database is readable for others",
        file="node/store/db.py",
        old="os.O_EXCL | os.O_CLOEXEC, 0o600))",
        new="os.O_EXCL | os.O_CLOEXEC, 0o644))",
        test=f"{_CLOSED}::test_nobody_else_may_read_what_a_node_keeps",
    ),
    Mutation(
        invariant="S11",
        what="a role talks to somebody else",
        file="node/app/roles.py",
        old="    die_with_parent()\n",
        new="    die_with_parent()\n"
        "    import socket\n\n"
        "    (home := socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).connect(('127.0.0.1', 9))\n",
        test=f"{_CLOSED}::test_a_node_listens_and_connects_where_it_was_told_and_nowhere_else",
    ),
    Mutation(
        invariant="S12",
        what="the receiver's process loads the decoders",
        file="node/receive/intake.py",
        old="from node.dicom.scan import Ids, NeedMore, scan_file, scan_uids\n",
        new="import node.dicom.pixels\nfrom node.dicom.scan import Ids, NeedMore, scan_file, scan_uids\n",
        test=f"{_CLOSED}::test_the_receiver_loads_nothing_that_decodes",
    ),
    Mutation(
        invariant="S13",
        what="weights are loaded whatever their digest",
        file="engines/runtime/onnx.py",
        old="    if seen != sha256:\n",
        new="    if len(seen) != len(sha256):\n",
        test=f"{_MODELS}::test_every_byte_flipped_is_refused",
    ),
    Mutation(
        invariant="S13",
        what="the shipped zoo needs no seal",
        file="engines/catalog.py",
        old="            if seal is None and folder == ZOO:",
        new="            if seal is None and folder != folder:",
        test=f"{_MODELS}::test_the_shipped_zoo_without_its_seal_is_refused",
    ),
    Mutation(
        invariant="S16",
        what="who may send is everybody until somebody says otherwise",
        file="node/config/schema.py",
        old="    accept_from: AcceptFrom = Field(\n",
        new='    accept_from: AcceptFrom = Field(\n        default="any",\n',
        test=f"{_CLOSED}::test_what_is_not_configured_stays_closed[nobody may send]",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="S7",
        why="core dumps and swap; a secret of which an edit has taken away what marks it as one (the colon before it, "
        "the word password=).",
    ),
)
