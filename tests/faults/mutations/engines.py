"""What breaks R38-R47: the workers, the GPU's breaker, the canary, the last look, the engines' files."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

WORKERS = "tests/faults/test_engines_workers.py"
GPU = "tests/faults/test_engines_gpu.py"
GARBAGE = "tests/faults/test_engines_garbage.py"
MODELS = "tests/faults/test_engines_models.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R38",
        what="a crash holds the job at once instead of costing one try",
        file="node/enhance/guardian.py",
        old="_FRESH_WORKERS = 2\n",
        new="_FRESH_WORKERS = 1\n",
        test=f"{WORKERS}::test_a_crash_costs_one_try",
    ),
    Mutation(
        invariant="R39",
        what="patience is the pace of the engine alone, without its lower bound",
        file="node/enhance/guardian.py",
        old="max(p.stalled_s, p.steps * step)",
        new="max(p.stalled_most_s, p.steps * step)",
        test=f"{WORKERS}::test_patience_follows_the_pace_of_the_engine",
    ),
    Mutation(
        invariant="R40",
        what="the memory of a worker has no bound of its own",
        file="node/enhance/memory.py",
        old="    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))\n",
        new="    n_bytes += 0\n",
        test=f"{WORKERS}::test_the_bound_of_memory_is_told_by_an_error",
    ),
    Mutation(
        invariant="R41",
        what="a device error is a failure like another, and the process goes on",
        file="node/enhance/failures.py",
        old="        return Verdict(held=spent, wait_s=1.0, trusted=False)\n    if isinstance(e, _PERMANENT)",
        new="        return Verdict(held=spent, wait_s=1.0, trusted=True)\n    if isinstance(e, _PERMANENT)",
        test=f"{WORKERS}::test_a_device_error_ends_the_process_with_its_own_status",
    ),
    Mutation(
        invariant="R42",
        what="a poison series is tried for ever",
        file="node/enhance/guardian.py",
        old="elif attempt < tries(job, accelerated=accelerated):",
        new="elif attempt < 1000 + tries(job, accelerated=accelerated):",
        test=f"{WORKERS}::test_a_poison_series_is_held_and_the_rest_goes_on",
    ),
    Mutation(
        invariant="R43",
        what="one series that fails again and again condemns the GPU",
        file="node/enhance/health.py",
        old="        n = len({s for _, s in self._failures})\n",
        new="        n = len([s for _, s in self._failures])\n",
        test=f"{GPU}::test_the_breaker_counts_different_series_within_ten_minutes",
    ),
    Mutation(
        invariant="R43",
        what="a restart forgets that the GPU is unfit",
        file="node/enhance/health.py",
        old="        self.mark = read_mark(path)\n",
        new="        self.mark = None\n",
        test=f"{GPU}::test_the_mark_and_its_alarm_survive_a_disk_and_a_database_that_are_away",
    ),
    Mutation(
        invariant="R44",
        what="nobody asks whether a residual is that of its own slice",
        file="engines/judge.py",
        old="        if better.any():\n",
        new="        if better.any() and False:\n",
        test=f"{GARBAGE}::test_an_engine_whose_result_is_spoiled_on_its_way",
    ),
    Mutation(
        invariant="R45",
        what="a series that did not change is delivered as enhanced",
        file="node/enhance/tally.py",
        old="        if at_all and 0 < self.n_slices <= self.n_same:\n",
        new="        if at_all and 0 < self.n_slices < self.n_same:\n",
        test=f"{GARBAGE}::test_a_copy_is_not_sold_as_enhanced",
    ),
    Mutation(
        invariant="R46",
        what="the canary is asked, and any answer is right",
        file="engines/canary.py",
        old="    if not (largest <= MOST[card.unit] and rms <= RMS[card.unit]):",
        new="    if largest > 1e9:",
        test=f"{GPU}::test_a_runtime_that_answers_wrongly_is_refused_at_load",
    ),
    Mutation(
        invariant="R47",
        what="weights are parsed whatever their digest",
        file="engines/runtime/onnx.py",
        old="    if seen != sha256:\n",
        new="    if seen == '':\n",
        test=f"{MODELS}::test_one_byte_is_enough",
    ),
    Mutation(
        invariant="R47",
        what="a card is read whatever the seal says",
        file="engines/card.py",
        old="    if seal is not None and seal.get(folder.name) != hashlib.sha256(data).hexdigest():\n",
        new="    if seal is not None and folder.name not in seal:\n",
        test=f"{MODELS}::test_one_byte_is_enough",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R40",
        why="out of device memory on a GPU: no GPU; the ladder below it is tested with an injected device.",
    ),
    Unexercised(
        invariant="R41",
        why="a CUDA context that is really poisoned: no GPU; errors are raised by an injected device on the CPU.",
    ),
    Unexercised(
        invariant="R43",
        why="NVML (lost GPU, ECC, Xid events) and a process that hangs in the driver: no GPU; lines of the kernel's "
        "log come from a file.",
    ),
    Unexercised(
        invariant="R46",
        why="a GPU against the CPU: no GPU; the gate is tested with a device on the CPU that is off by known amounts.",
    ),
    Unexercised(
        invariant="R47",
        why="signatures: models are known by digest, cards by the seal of the zoo, neither is signed; flipped bits of "
        "plans are tested with the plans, on a bench without a GPU.",
    ),
)
