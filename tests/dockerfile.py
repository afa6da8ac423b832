"""Reads a Dockerfile and runs the steps of a stage without Docker, in a scratch folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One instruction: ``COPY``, its arguments as one line."""

    word: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: str
    base: str
    steps: tuple[Step, ...]

    def all(self, word: str) -> list[str]:
        return [s.text for s in self.steps if s.word == word]


def read(path: Path) -> tuple[Stage, ...]:
    """The stages of a Dockerfile, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not re.match(r"\s*#", line)]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    steps: list[Step] = []
    name = base = ""
    for line in filter(None, map(str.strip, whole.splitlines())):
        word, _, text = line.partition(" ")
        if word == "FROM":
            if base:
                stages.append(Stage(name=name, base=base, steps=tuple(steps)))
            base, _, name = (part.strip() for part in text.partition(" AS "))
            steps = []
        elif base:
            steps.append(Step(word=word, text=text.strip()))
    stages.append(Stage(name=name, base=base, steps=tuple(steps)))
    return tuple(stages)


def run(stage: Stage, context: Path, root: Path, env: Mapping[str, str]) -> None:
    """Run WORKDIR, COPY and RUN of a stage as they stand, with absolute paths moved under ``root``.

    Raises
    ------
    subprocess.CalledProcessError
        A step failed.
    """
    where = root
    moved = sorted({m for s in stage.steps for m in re.findall(r"(?<![\w./])/(?:src|wheels|opt)\b", s.text)})
    for step in stage.steps:
        text = step.text
        for path in moved:
            text = re.sub(rf"(?<![\w./]){path}\b", str(root / path[1:]), text)
        if step.word == "WORKDIR":
            where = Path(text)
            where.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            *sources, target = shlex.split(text)
            for source in sources:
                place = where / target if target != "./" else where / source
                if (context / source).is_dir():
                    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
                    shutil.copytree(context / source, place, ignore=skip, dirs_exist_ok=True)
                else:
                    shutil.copy(context / source, place)
        elif step.word == "RUN":
            (root / "opt").mkdir(exist_ok=True)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            around = {**os.environ, "PATH": path, **env}
            subprocess.run(
                ["/bin/sh", "-c", text],
                cwd=where,
                check=True,
                env=around,
                timeout=170,
            )
