"""The training loop: plain torch, resumed after any death with a minute lost at most.

Every batch is a function of the seed and its number, so that a training that was killed and resumed sees what
it would have seen. What is validated and exported is the running mean of the weights.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from training import checkpoint, feed, losses, warm
from training.checkpoint import Progress
from training.data.patches import Batch
from training.errors import CheckpointError, Diverged, SplitError
from training.log import Log
from training.networks import build
from training.networks.dae import Autoencoder
from training.networks.discriminator import Discriminator
from training.networks.half import halve
from training.recipe import Recipe

Tell = Callable[[Mapping[str, float]], None]
Twins = tuple[Tensor, Tensor, Tensor]
"""Twins without lesions, their rulers, and which examples they are of."""

LAST = "last.safetensors"
BEST = "best.safetensors"

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a training runs: this process among others (torchrun), and on what."""

    rank: int
    world: int
    device: torch.device


def place() -> Place:
    """Read torchrun's environment, join the group if there is one, and take the GPU if there is one."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    return Place(rank=rank, world=world, device=device)


class Fit:
    """One training.

    Parameters
    ----------
    recipe
        What to do.
    data
        The folder that holds the folders of shards.
    out
        Where checkpoints and logs of this recipe go.
    runs
        The folder of all runs, for recipes that begin with another's weights.
    """

    def __init__(self, recipe: Recipe, data: Path, out: Path, runs: Path, where: Place | None = None) -> None:
        self.recipe, self.data, self.out, self.runs = recipe, data, out, runs
        self.where = where or place()
        torch.manual_seed(recipe.seed)
        self.network = build(recipe.network.kind, **recipe.network.options).to(self.where.device)
        for weight in self.network.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        part = recipe.optim
        if recipe.begins_with is not None:
            self._begin_with(recipe.begins_with)
        self.critic: Discriminator | None = None
        self.optimisers: dict[str, optim.Optimizer] = {}
        if recipe.adversary is not None:
            self._begin_with(recipe.adversary.begins_with)
            self.critic = Discriminator().to(self.where.device)
            self.optimisers["optim2"] = optim.Adam(
                self.critic.parameters(), recipe.adversary.rate, betas=(0.5, 0.9)
            )
        self.mean = copy.deepcopy(self.network).requires_grad_(False)
        if part.precision in HALVES:
            halve(self.network, HALVES[part.precision])
        self.optimisers["optim"] = optim.AdamW(self.network.parameters(), part.rate, weight_decay=part.decay)
        self.trained: nn.Module = self.network
        if self.where.world > 1:
            self.trained = nn.parallel.DistributedDataParallel(self.network)
        self.progress = Progress(
            step=0, seconds=0.0, best=-math.inf, recipe=recipe.digest, split=recipe.data.split
        )
        self._checks = [(level, self._moved(b)) for level, b in feed.validation(recipe, data)]

    # state --------------------------------------------------------------------------------------------
    def _networks(self) -> dict[str, nn.Module]:
        held: dict[str, nn.Module] = {"net": self.network, "ema": self.mean}
        if self.critic is not None:
            held["critic"] = self.critic
        return held

    def _begin_with(self, name: str) -> None:
        """Take the best weights of another recipe: from its run, or from the engine that it became."""
        path = self.runs / name / BEST
        if path.exists():
            before, tensors = checkpoint.read(path)
            if before.split not in ("", self.recipe.data.split):
                raise SplitError(
                    f"{self.recipe.name} begins with the weights of {name}, which saw patients of another split",
                    hint="whom they were trained on may be judged by here: give both the same split (--split FILE), "
                    "or begin with weights that saw no patients",
                )
            checkpoint.restore(tensors, "ema", self.network)
            return
        engine = warm.shipped(name)
        if engine is None:
            raise CheckpointError(
                f"{self.recipe.name} begins with the weights of {name}, which are not there",
                hint=f"first `python -m training fit {name}`",
            )
        held, found = self.network.state_dict(), warm.weights(engine)
        if any(k not in found or found[k].shape != v.shape for k, v in held.items()):
            raise CheckpointError(f"the weights of the engine {engine.name} do not fit this network")
        self.network.load_state_dict({k: found[k] for k in held})

    def resume(self) -> bool:
        """Go on where the last run stopped; False if there was none.

        Raises
        ------
        CheckpointError
            The checkpoint was made with another recipe or split.
        """
        wanted = (self.recipe.digest, self.recipe.data.split)
        held = (self._networks(), self.optimisers)
        progress = checkpoint.go_on(self.out / LAST, self.recipe.name, wanted, *held)
        self.progress = progress or self.progress
        if progress is not None and (self.out / BEST).exists():
            # A run that was killed after it kept its best weights must not take worse ones for better.
            kept, _ = checkpoint.read(self.out / BEST)
            if (kept.recipe, kept.split) == wanted and math.isfinite(kept.best):
                self.progress = replace(progress, best=max(progress.best, kept.best))
        return progress is not None

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint (rank 0 only)."""
        if self.where.rank == 0:
            checkpoint.save(self.out / name, self.progress, self._networks(), self.optimisers)

    # steps --------------------------------------------------------------------------------------------
    def _moved(self, b: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, c, target, sigma = (
            torch.from_numpy(a).to(self.where.device) for a in (b.x, b.c, b.target, b.sigma)
        )
        return x.contiguous(memory_format=torch.channels_last), c, target, sigma

    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        part = self.recipe.optim
        done = self.progress.step / part.updates
        if part.minutes is not None:
            done = max(done, self.progress.seconds / (60 * part.minutes))
        return min(1.0, done)

    def _rate(self) -> float:
        part = self.recipe.optim
        if self.progress.step < part.warmup:
            return part.rate * (self.progress.step + 1) / part.warmup
        return part.last_rate + 0.5 * (part.rate - part.last_rate) * (1 + math.cos(math.pi * self.share()))

    def _loss(
        self, x: Tensor, c: Tensor, target: Tensor, sigma: Tensor, weight: Tensor, twins: Twins
    ) -> dict[str, Tensor]:
        part = self.recipe.loss
        extra: dict[str, Tensor] = {}
        if isinstance(self.network, Autoencoder):
            r, lost, divergence = self.network.sampled(x, c)
            # What is weakened teaches little: the decoder is asked for the picture itself, too.
            extra["picture"] = 0.5 * losses.charbonnier((lost - target) / (sigma + 0.1), part.charbonnier)
            if self.network.variational:
                extra["divergence"] = part.divergence * divergence
        elif len(twins[2]):
            twin, ruler, which = twins
            both = self.trained(torch.cat((x, twin)), torch.cat((c, c[which]))).float()
            r, bare = both[: len(x)], both[len(x) :]
            extra["kept"] = part.kept * losses.kept(r[which] - bare, ruler)
        else:
            r = self.trained(x, c)
        r = r.float()
        # Detail has no noise level to be measured against: its own typical size stands in.
        unit = sigma + 0.02 if self.recipe.scale == 1 else torch.full_like(sigma, 0.02)
        error = (r - target) / unit
        parts = {"charbonnier": losses.charbonnier(error, part.charbonnier, weight), **extra}
        if part.gradient:
            parts["gradient"] = part.gradient * losses.gradient(error)
        if part.lowpass:
            parts["lowpass"] = part.lowpass * losses.lowpass(error)
        if part.spectrum:
            parts["spectrum"] = part.spectrum * losses.high_band(error)
        if self.critic is not None:
            parts |= self._adversarial(x, r, target, sigma)
        return parts

    def _adversarial(self, x: Tensor, r: Tensor, target: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """Both players see slices in units of the noise, without their local mean."""
        assert self.critic is not None
        assert self.recipe.adversary is not None
        part = self.recipe.adversary
        per_c = 10.0 if self.recipe.data.unit == "HU" else 1.0
        noisy = x[:, 1:2] * per_c
        local = functional.avg_pool2d(noisy - target, 33, 1, 16, count_include_pad=False)
        scale = 3 * sigma + 0.02
        given = ((noisy - local) / scale).clamp(-4, 4)
        left = part.grain * torch.rot90(target, 2, (2, 3))
        real = ((noisy - target - local + left) / scale).clamp(-4, 4)
        made = ((noisy - r - local) / scale).clamp(-4, 4)
        critic = self.optimisers["optim2"]
        critic.zero_grad(set_to_none=True)
        judged = losses.hinge_critic(self.critic(real, given), self.critic(made.detach(), given))
        judged.backward()  # type: ignore[no-untyped-call]
        critic.step()
        self.critic.requires_grad_(False)
        fooled = losses.hinge_maker(self.critic(made, given))
        self.critic.requires_grad_(True)
        return {
            "adversary": part.weight * fooled,
            "texture": part.texture * losses.texture(target - part.strength * r, target),
        }

    def step(self, b: Batch) -> dict[str, float]:
        """One update; returns the parts of the loss."""
        self.trained.train()
        moved = self._moved(b)
        optimiser = self.optimisers["optim"]
        rate = self._rate()
        for group in optimiser.param_groups:
            group["lr"] = rate
        weight, twin, ruler, which = (
            torch.from_numpy(a).to(self.where.device) for a in (b.weight, b.twin, b.ruler, b.which)
        )
        parts = self._loss(*moved, weight, (twin, ruler, which))
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise Diverged(
                f"{self.recipe.name}: the loss is not a number at step {self.progress.step}",
                hint="lower optim.rate, or precision: fp32",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        steep = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optim.clip)
        if not torch.isfinite(steep):  # an update with it would leave no weight a number
            raise Diverged(
                f"{self.recipe.name}: the gradient is not a number at step {self.progress.step}",
                hint="lower optim.rate, or precision: fp32",
            )
        optimiser.step()
        self._average()
        return {
            "loss": float(loss.detach()),
            "rate": rate,
            **{k: float(v.detach()) for k, v in parts.items()},
        }

    def _average(self) -> None:
        # The mean forgets quickly at first: it must not hold the untrained weights for a thousand steps.
        keep = min(self.recipe.optim.average, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now.detach(), 1 - keep)

    # judging ------------------------------------------------------------------------------------------
    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Gain in dB on the fixed patches, per noise level and in the mean."""
        self.mean.eval()
        gains = {f"gain_{level:.3g}": gain(self.mean, *moved) for level, moved in self._checks}
        return {**gains, "gain": sum(gains.values()) / len(gains)}

    def run(self, tell: Tell = lambda _: None, *, stop_after: int | None = None) -> Progress:
        """Train to the end of the recipe (or ``stop_after`` updates); keeps ``last`` and ``best`` on disk.

        Raises
        ------
        Diverged
            The loss, a gradient or a weight is not a number; what was kept before still is.
        CheckpointError
            What is to be kept cannot be, or another process trains here.
        """
        if self.where.rank > 0:
            return self._run(tell, stop_after)
        with checkpoint.alone(self.out):
            return self._run(tell, stop_after)

    def _run(self, tell: Tell, stop_after: int | None) -> Progress:
        part = self.recipe.optim
        log = Log(self.out, first=self.progress.step) if self.where.rank == 0 else None
        batches = feed.training(
            self.recipe, self.data, first=self.progress.step, stride=self.where.world, offset=self.where.rank
        )
        saved = validated = time.monotonic()
        n_done = 0
        while self.share() < 1.0 and (stop_after is None or n_done < stop_after):
            began = time.monotonic()
            told = self.step(next(batches))
            n_done += 1
            now = time.monotonic()
            self.progress = replace(
                self.progress, step=self.progress.step + 1, seconds=self.progress.seconds + now - began
            )
            tell({**told, "share": self.share(), "step": self.progress.step})
            if log is not None and self.progress.step % 50 == 0:
                log.write(self.progress.step, told)
            if now - validated > part.validate_s:
                self._judge(log, tell)
                validated = time.monotonic()
            if now - saved > part.checkpoint_s:
                self.save()
                saved = time.monotonic()
        self._judge(log, tell)
        self.save()
        if log is not None:
            log.close()
        return self.progress

    def _judge(self, log: Log | None, tell: Tell) -> None:
        seen = self.validate()
        # Where small lesions count more than the mean error, the gain does not tell which weights are better.
        better = seen["gain"] > self.progress.best or (
            self.recipe.data.lesions > 0 and math.isfinite(seen["gain"])
        )
        if better:
            self.progress = replace(self.progress, best=seen["gain"])
            self.save(BEST)
        if log is not None:
            log.write(self.progress.step, seen)
        tell(seen)


def gain(network: nn.Module, x: Tensor, c: Tensor, target: Tensor, sigma: Tensor) -> float:
    """10 log10 of the error power before over after, mean over patches, dB (detail: against none)."""
    error = network(x, c).float() - target
    before = target.square().mean(dim=(1, 2, 3))
    after = error.square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10((before + 1e-12) / (after + 1e-12))).mean())


def finished(path: Path, recipe: Recipe) -> nn.Module:
    """The network of a checkpoint: its running mean, ready to evaluate or export.

    Raises
    ------
    CheckpointError
    """
    network = build(recipe.network.kind, **recipe.network.options)
    checkpoint.restore(checkpoint.read(path)[1], "ema", network)
    return network.eval().requires_grad_(False)
