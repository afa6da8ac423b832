"""What breaks R49-R60: configuration, database, time, operation."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_CONFIG = "tests/faults/test_operation_config.py"
_DATABASE = "tests/faults/test_operation_database.py"
_REPAIR = "tests/faults/test_operation_repair.py"
_CLOCK = "tests/faults/test_operation_clock.py"
_LOG = "tests/faults/test_operation_log.py"
_HEALTH = "tests/faults/test_operation_health.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R49",
        what="a series is decided by one version and recorded with the digest of another",
        file="node/app/roles.py",
        old="InForce(config=now.config, digest=now.digest)",
        new="InForce(config=now.config, digest=settings.loaded.digest)",
        test=f"{_CONFIG}::test_what_decides_and_its_digest_are_of_one_version",
    ),
    Mutation(
        invariant="R49",
        what="a refused edit is not told",
        file="node/config/live.py",
        old="            self._tell(seen, error)\n            self._refused",
        new="            self._refused",
        test=f"{_CONFIG}::test_no_edit_stops_or_half_applies",
    ),
    Mutation(
        invariant="R50",
        what="a database that is away is answered as a defect of ours, not A700H",
        file="node/receive/intake.py",
        old="        return Refusal(*STORE)\n    return",
        new="        return Refusal(*DEFECT)\n    return",
        test=f"{_DATABASE}::test_sqlite_locked_by_a_stranger",
    ),
    Mutation(
        invariant="R51",
        what="a commit does not wait for the standby",
        file="node/store/db.py",
        old="SET synchronous_commit = on;",
        new="SET synchronous_commit = off;",
        test=f"{_DATABASE}::test_failover_to_a_synchronous_standby",
    ),
    Mutation(
        invariant="R52",
        what="the reserve is kept although the disk is full",
        file="node/store/db.py",
        old="                self.reserve.release()  #",
        new="                pass  #",
        test=f"{_REPAIR}::test_out_of_space_lets_the_reserve_go",
    ),
    Mutation(
        invariant="R52",
        what="a damaged database is taken for one that is away",
        file="node/store/db.py",
        old='    "SQLITE_NOTADB": _damaged,\n',
        new="",
        test=f"{_REPAIR}::test_a_damaged_database_is_refused_and_rebuilt",
    ),
    Mutation(
        invariant="R53",
        what="leases are judged by a clock that was just set",
        file="node/store/moves.py",
        old="    if not WATCH.settled:\n",
        new="    if False:\n",
        test=f"{_CLOCK}::test_no_lease_is_taken_over_right_after_a_step",
    ),
    Mutation(
        invariant="R53",
        what="a sign of life from the future keeps a series open",
        file="node/gather/complete.py",
        old="if s <= now + _AHEAD)",
        new="if s)",
        test=f"{_CLOCK}::test_a_sign_from_the_future_keeps_no_series_open",
    ),
    Mutation(
        invariant="R53",
        what="what waits for a time waits for the old one when the clock is put back",
        file="node/store/moves.py",
        old="            .values(not_before=max(now, row.not_before + step))\n",
        new="            .values(not_before=row.not_before)\n",
        test=f"{_CLOCK}::test_a_pause_does_not_grow_when_the_clock_is_put_back",
    ),
    Mutation(
        invariant="R54",
        what="every node runs every task",
        file="node/housekeep.py",
        old="            if self._store.turns.take(name, self._owner, _now(), every_s=every_s):\n",
        new="            if self._store.turns.take(name, self._owner, _now(), every_s=every_s) or True:\n",
        test=f"{_CLOCK}::test_two_nodes_run_a_task_once_in_its_slot",
    ),
    Mutation(
        invariant="R54",
        what="a task that is a second late is skipped",
        file="node/housekeep.py",
        old='"misfire_grace_time": None',
        new='"misfire_grace_time": 1',
        test=f"{_CLOCK}::test_a_task_that_is_late_runs_and_never_overlaps_itself",
    ),
    Mutation(
        invariant="R55",
        what="whoever logs waits for the target",
        file="node/log.py",
        old="    if not waits:\n",
        new="    if False:\n",
        test=f"{_LOG}::test_a_log_that_does_not_read_stops_nothing",
    ),
    Mutation(
        invariant="R56",
        what="an older release works on a schema that it does not know",
        file="node/store/migrate.py",
        old="    if found and found not in KNOWN:\n",
        new="    if False:\n",
        test=f"{_REPAIR}::test_an_older_release_refuses_what_a_newer_one_wrote",
    ),
    Mutation(
        invariant="R57",
        what="files that nothing but a delivery needs are left out of a backup",
        file="node/store/retention.py",
        old="        select(DerivedInstanceRow.path).where(DerivedInstanceRow.derived_id.in_(derived)),\n    )",
        new="    )",
        test=f"{_REPAIR}::test_backups_under_load_are_whole_and_are_drained_elsewhere",
    ),
    Mutation(
        invariant="R57",
        what="a restore believes what it finds",
        file="node/store/archive.py",
        old="        _verify(folder, named, manifest)\n",
        new="",
        test=f"{_REPAIR}::test_a_restore_overwrites_nothing_and_believes_nothing",
    ),
    Mutation(
        invariant="R58",
        what="a received series may go while what was made of it is unsent",
        file="node/store/retention.py",
        old="        ~keeps,\n",
        new="",
        test=f"{_REPAIR}::test_nothing_unsent_is_removed_however_full_the_disk_is",
    ),
    Mutation(
        invariant="R59",
        what="a sign of life never grows old",
        file="node/app/health.py",
        old="    if not 0 <= age_s <= OLD_S:\n",
        new="    if not told:\n",
        test=f"{_HEALTH}::test_an_old_sign_of_life_is_none",
    ),
    Mutation(
        invariant="R59",
        what="a page and a metric look at processes alone",
        file="node/web/parts.py",
        old="    return all(not part.told for part in parts)\n",
        new="    return alive(parts)\n",
        test="tests/contract/test_web.py::test_health_and_readiness_tell_which_part_and_what_to_do",
    ),
    Mutation(
        invariant="R59",
        what="figures of a database that is away are told on",
        file="node/web/lookout.py",
        old="            if time.monotonic() - self._last.at <= OLD_S:\n",
        new="            if self._last.figures is not None or time.monotonic() - self._last.at <= OLD_S:\n",
        test="tests/contract/test_web.py::test_figures_that_are_old_are_none",
    ),
    Mutation(
        invariant="R60",
        what="a role that died is not started again",
        file="node/app/supervise.py",
        old="        child.start_at = now + child.wait_s\n",
        new='        child.start_at = float("inf")\n',
        test="tests/faults/test_operation_soak.py::test_a_soak_loses_nothing_and_grows_nowhere",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R52",
        why="a real network file system is not mounted: what /proc/mounts says of one is given to the check instead.",
    ),
    Unexercised(
        invariant="R53",
        why="libfaketime 0.9.10 breaks time.sleep (clock_nanosleep with an absolute time): the clock of each process "
        "is set by time-machine. Daylight saving changes no UTC, and the node computes in UTC.",
    ),
    Unexercised(
        invariant="R55",
        why="there is no audit log over syslog yet; what must not be missed is an event in the database.",
    ),
    Unexercised(
        invariant="R60",
        why="72 hours are a release run: python -m tests.faults.soak --seconds 259200 --nemesis 300. The nemesis "
        "does not set the clock; R53 does.",
    ),
)
