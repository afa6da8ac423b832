"""What breaks the rows of the security model that a node must keep by itself."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_CLOSED = "tests/faults/test_closed_by_default.py"

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
        invariant="S16",
        what="who may send is everybody until somebody says otherwise",
        file="node/config/schema.py",
        old="    accept_from: AcceptFrom = Field(\n",
        new='    accept_from: AcceptFrom = Field(\n        default="any",\n',
        test=f"{_CLOSED}::test_what_is_not_configured_stays_closed[nobody may send]",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(invariant="S2", why="attacked as R25, whose matrix of titles and addresses this is."),
    Unexercised(
        invariant="S3",
        why="stalled handshakes and wrong certificates are attacked as R17 and R25; a scan of the offered suites by "
        "another program is not part of make faults.",
    ),
    Unexercised(
        invariant="S7",
        why="masking is tested case by case (tests/unit/test_config_load.py, tests/contract/test_store_faults.py); no "
        "canary was sought over all outputs of a running node.",
    ),
    Unexercised(invariant="S13", why="attacked as R47, by the tests of the engines."),
)
