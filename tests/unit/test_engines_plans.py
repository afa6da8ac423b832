"""A plan is code: only what this host wrote, whole and for exactly this purpose, is ever handed out."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import PlanMismatch, RuntimeUnavailable
from engines.runtime import vault
from engines.runtime.gpu import Gpu
from engines.runtime.plans import BUILD, PlanKey, Plans, ahead_of_time, default_folder, for_gpu
from engines.runtime.vault import KEY_FILE, Vault

ROOT = Path(__file__).resolve().parents[2]
LABEL = {"kind": "plan", "title": "a plan"}
CARD = Gpu(name="NVIDIA RTX 4090", compute_capability="89", driver="580.65")


def key(**other: object) -> PlanKey:
    made = for_gpu("a" * 64, "tensorrt", "11.4.1", CARD, "p" * 64)
    return replace(made, **other)  # type: ignore[arg-type]


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    return Plans(tmp_path / "var" / "plans")


def file(plans: Plans) -> Path:
    (found,) = plans.folder.glob("*.plan")
    return found


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


# whole and ours -----------------------------------------------------------------------------------
def test_a_plan_comes_back_as_it_was(plans: Plans) -> None:
    assert plans.list() == ()
    assert not plans.folder.exists(), "looking makes nothing"
    for content in (b"", b"x", os.urandom(1 << 20)):
        plans.store(key(), content, title="ct-cnn fp16")
        assert plans.load(key()) == content
    (kept,) = plans.list()
    assert (kept.kind, kept.key, kept.title, kept.size, kept.fault) == (
        "plan",
        key(),
        "ct-cnn fp16",
        1 << 20,
        "",
    )


def test_everything_is_for_the_owner_only(plans: Plans) -> None:
    before = os.umask(0)
    try:
        plans.store(key(), b"plan")
        with plans.lock(key()):
            modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in plans.folder.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(plans.folder.stat().st_mode) == 0o700
    assert len(modes) >= 3
    assert set(modes.values()) == {0o600}


@pytest.fixture(scope="module")
def sealed() -> tuple[Path, bytes]:
    """A folder with its key, and the bytes of a sealed file in it."""
    folder = Path(tempfile.mkdtemp(prefix="plans"))
    Vault(folder).put("one", bytes(range(256)) * 2, LABEL)
    return folder, (folder / "one").read_bytes()


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_whatever_happens_to_its_bytes_it_is_refused(sealed: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, good = sealed
    at = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "drop", "insert", "swap"]))
    if how == "flip":
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    elif how == "cut":
        bad = good[:at]
    elif how == "grow":
        bad = good + data.draw(st.binary(min_size=1, max_size=40))
    elif how == "drop":
        bad = good[:at] + good[at + data.draw(st.integers(1, 9)) :]
    elif how == "insert":
        bad = good[:at] + data.draw(st.binary(min_size=1, max_size=9)) + good[at:]
    else:
        bad = good[at:] + good[:at] if at else good[::-1]
    (folder / "one").write_bytes(bad)
    if bad == good:
        return
    with pytest.raises(PlanMismatch) as refused:
        Vault(folder).get("one")
    assert refused.value.hint
    try:
        Vault(folder).label("one")
    except PlanMismatch:
        return
    # The label alone may be sound; then the damage is in the content, and its length is right.
    assert len(bad) == len(good)


def test_every_byte_counts(sealed: tuple[Path, bytes]) -> None:
    folder, good = sealed
    for at in range(len(good)):
        (folder / "one").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(PlanMismatch):
            Vault(folder).get("one")
    (folder / "one").write_bytes(good)
    assert Vault(folder).get("one") is not None


def test_a_plan_of_another_host_is_refused(plans: Plans, tmp_path: Path) -> None:
    other = Plans(tmp_path / "other")
    other.store(key(), b"code of somebody else")
    plans.folder.mkdir(parents=True, mode=0o700)
    shutil.copy(file(other), plans.folder)
    with pytest.raises(PlanMismatch, match="no key yet"):
        plans.load(key())
    plans.store(key(driver="999"), b"ours")
    with pytest.raises(PlanMismatch, match="seal"):
        plans.load(key())
    assert plans.state(key()).state == "refused"


def test_a_plan_under_another_name_is_refused(plans: Plans) -> None:
    plans.store(key(), b"for this driver")
    here = file(plans)
    plans.store(key(driver="999"), b"for that")
    there = next(p for p in plans.folder.glob("*.plan") if p != here)
    there.write_bytes(here.read_bytes())
    with pytest.raises(PlanMismatch, match="something else"):
        plans.load(key(driver="999"))
    assert plans.state(key(driver="999")).state == "refused"
    assert plans.load(key()) == b"for this driver"
    assert [k.fault != "" for k in plans.list() if k.name == there.name] == [True]
    # Nor does one kind of file stand in for another.
    shutil.copy(here, here.with_suffix(".kernels"))
    assert plans.cached("kernels", key(), CARD) is None


@pytest.mark.parametrize("mode", [0o666, 0o622, 0o602, 0o620, 0o660])
def test_a_plan_that_others_may_write_is_refused(plans: Plans, mode: int) -> None:
    plans.store(key(), b"plan")
    file(plans).chmod(mode)
    with pytest.raises(PlanMismatch, match="others may write"):
        plans.load(key())


@pytest.mark.parametrize("mode", [0o770, 0o722, 0o777])
def test_a_folder_that_others_may_write_is_refused(plans: Plans, mode: int) -> None:
    plans.store(key(), b"plan")
    plans.folder.chmod(mode)
    try:
        for refused in (lambda: plans.load(key()), lambda: plans.store(key(), b"new"), plans.list):
            with pytest.raises(PlanMismatch, match="others may write") as e:
                refused()
            assert e.value.hint.startswith("chmod 700")
        assert plans.state(key()).state == "refused"
    finally:
        plans.folder.chmod(0o700)
    assert plans.load(key()) == b"plan"


@pytest.mark.parametrize(("mode", "said"), [(0o644, "read"), (0o640, "read"), (0o620, "write")])
def test_a_key_that_others_know_seals_nothing(plans: Plans, mode: int, said: str) -> None:
    plans.store(key(), b"plan")
    (plans.folder / KEY_FILE).chmod(mode)
    with pytest.raises(PlanMismatch, match=f"{KEY_FILE}.*others may {said}"):
        plans.load(key())
    with pytest.raises(PlanMismatch, match=KEY_FILE):
        plans.store(key(), b"plan")


def test_a_file_of_another_user_is_refused(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.store(key(), b"plan")
    if os.geteuid() == 0:
        os.chown(file(plans), 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PlanMismatch, match="belongs to user"):
        plans.load(key())


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "dangling"])
@pytest.mark.parametrize("which", ["plan", "key"])
def test_what_is_no_plain_file_is_refused(plans: Plans, tmp_path: Path, kind: str, which: str) -> None:
    plans.store(key(), b"plan")
    path = file(plans) if which == "plan" else plans.folder / KEY_FILE
    elsewhere = path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(0o700)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PlanMismatch):
        plans.load(key())
    assert plans.state(key()).state == "refused"


def test_a_link_is_replaced_not_followed(plans: Plans, tmp_path: Path) -> None:
    plans.store(key(), b"plan")
    path = file(plans)
    elsewhere = path.rename(tmp_path / "elsewhere")
    old = elsewhere.read_bytes()
    path.symlink_to(elsewhere)
    plans.store(key(), b"new")
    assert plans.load(key()) == b"new"
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == old


@pytest.mark.parametrize("name", ["", ".", "..", "../one", "a/b"])
def test_a_name_stays_in_its_folder(plans: Plans, name: str) -> None:
    plans.store(key(), b"plan")
    with pytest.raises(PlanMismatch, match="no name"):
        plans.vault.get(name)


def test_half_a_key_is_made_anew(plans: Plans) -> None:
    plans.store(key(), b"old")
    (plans.folder / KEY_FILE).write_bytes(b"half")
    assert plans.state(key()).state == "refused"
    plans.store(key(), b"new")
    assert plans.load(key()) == b"new"


# accidents ----------------------------------------------------------------------------------------
DIES = """
import os, signal, sys
from pathlib import Path
from engines.runtime.vault import Vault
folder, call, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real = getattr(os, call)
def dying(*a, **k):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return real(*a, **k)
setattr(os, call, dying)
Vault(folder).put("one", b"new" * 100000, {"kind": "plan"})
"""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("rename", 0), ("fsync", 1)])
def test_a_crash_leaves_the_old_plan_or_the_new_one(tmp_path: Path, old: bool, call: str, after: int) -> None:
    # The key has its own file: its writes are not those that are interrupted here.
    there = Vault(tmp_path)
    there.put("other", b"", LABEL)
    if old:
        there.put("one", b"old", LABEL)
    died = child(DIES, tmp_path, call, after)
    died.communicate(timeout=60)
    assert died.returncode == -signal.SIGKILL
    found = there.get("one")
    if (call, after) == ("fsync", 1):
        assert found is not None, "it has its name before the folder is made durable"
        assert found[1] == b"new" * 100000
    else:
        assert (None if found is None else found[1]) == (b"old" if old else None)
    assert there.names() == (("one", "other") if found else ("other",)), "half a file has no name"
    there.put("one", b"newer", LABEL)
    again = there.get("one")
    assert again is not None
    assert again[1] == b"newer"


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    there = Vault(tmp_path)
    there.put("one", b"", LABEL)
    for name, age in ((".one.dead.new", vault.LEFT_BEHIND_S + 60), (".one.busy.new", 10)):
        (tmp_path / name).write_bytes(b"half")
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    there.put("one", b"", LABEL)
    assert not (tmp_path / ".one.dead.new").exists()
    assert (tmp_path / ".one.busy.new").exists(), "somebody is writing it"


FULL = """
import resource, sys
from pathlib import Path
from engines.errors import RuntimeUnavailable
from engines.runtime.vault import Vault
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    Vault(Path(sys.argv[1])).put("one", b"x" * 100000, {"kind": "plan"})
except RuntimeUnavailable as e:
    sys.exit(0 if e.hint else "no hint")
sys.exit("it was kept")
"""


def test_a_disk_that_refuses_leaves_the_old_plan(tmp_path: Path) -> None:
    there = Vault(tmp_path)
    there.put("one", b"old", LABEL)
    full = child(FULL, tmp_path)
    full.communicate(timeout=60)
    assert full.returncode == 0
    found = there.get("one")
    assert found is not None
    assert found[1] == b"old"
    assert list(tmp_path.glob(".*.new")) == []


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    plans = Plans(tmp_path / "file" / "plans")
    with pytest.raises(RuntimeUnavailable, match="cannot keep"):
        plans.store(key(), b"")
    with pytest.raises(RuntimeUnavailable, match="cannot be used"), plans.lock(key()):
        pass
    assert plans.state(key()).state == "refused"


PUTS = """
import sys
from pathlib import Path
from engines.runtime.vault import Vault
sys.stdin.readline()
Vault(Path(sys.argv[1])).put(sys.argv[2], sys.argv[2].encode(), {"kind": "plan"})
"""


def test_processes_that_begin_together_share_one_key(tmp_path: Path) -> None:
    writers = [child(PUTS, tmp_path / "plans", f"w{i}") for i in range(4)]
    for one in writers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    for one in writers:
        one.communicate(timeout=60)
    assert [one.returncode for one in writers] == [0, 0, 0, 0]
    there = Vault(tmp_path / "plans")
    assert there.names() == ("w0", "w1", "w2", "w3")
    for name in there.names():
        found = there.get(name)
        assert found is not None
        assert found[1] == name.encode()


HOLDS = """
import sys
from pathlib import Path
from engines.runtime.vault import Vault
with Vault(Path(sys.argv[1])).lock("one"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_process_builds_and_the_dead_let_go(tmp_path: Path) -> None:
    there = Vault(tmp_path)
    holder = child(HOLDS, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RuntimeUnavailable, match="another process has held one"), there.lock("one", 0.1):
        pass
    with there.lock("two", 0.1):
        holder.kill()
        holder.communicate(timeout=60)
    with there.lock("one", 30.0):
        pass
    assert list(tmp_path.iterdir()) == [], "locks leave nothing behind"


def test_a_lock_that_was_removed_while_it_was_waited_for_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, real, calls = Vault(tmp_path), fcntl.flock, []

    def flock(file: int, how: int) -> None:
        real(file, how)
        calls.append(how)
        if len(calls) == 1:  # what its holder before does on leaving, just then
            (tmp_path / ".one.lock").unlink()

    monkeypatch.setattr(vault.fcntl, "flock", flock)
    with there.lock("one", 30.0):
        assert len(calls) == 2
        with pytest.raises(RuntimeUnavailable, match="has held one"), there.lock("one", 0.0):
            pass


# what it is for -----------------------------------------------------------------------------------
OTHERS = {
    "onnx_sha256": "b" * 64,
    "flavour": "tensorrt_rtx",
    "version": "11.4.2",
    "gpu": "NVIDIA RTX 4090 MIG 1g",
    "capabilities": ("90",),
    "driver": "580.66",
    "profile": "q" * 64,
    "options": "",
}


@pytest.mark.parametrize("field", sorted(asdict(key())))
def test_a_plan_for_something_else_is_another_plan(plans: Plans, field: str) -> None:
    other = key(**{field: OTHERS[field]})
    plans.store(other, b"other")
    with pytest.raises(PlanMismatch) as refused:
        plans.load(key())
    assert refused.value.hint == f"python -m engines build --plans {plans.folder}"
    now = plans.state(key())
    assert now.state == ("missing" if field in ("onnx_sha256", "flavour") else "stale")
    if field == "version":
        assert "another version of TensorRT (11.4.2, here 11.4.1)" in now.words
    if field == "driver":
        assert "another driver (580.66, here 580.65)" in now.words


def test_states(plans: Plans) -> None:
    assert plans.state(key()).state == "missing"
    plans.store(key(), b"plan")
    assert plans.state(key()).state == "ready"
    assert plans.state(key()).words == "ready for NVIDIA RTX 4090 (8.9, driver 580.65)"
    whole = file(plans).read_bytes()
    file(plans).write_bytes(whole[:-1])
    assert plans.state(key()).state == "refused"
    with pytest.raises(PlanMismatch, match="cut off"):
        plans.load(key())


def test_what_to_do_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Plans(tmp_path / "a folder; of a site")
    wanted = f"python -m engines build --plans '{odd.folder}'"
    assert odd.state(key()).hint == wanted
    odd.store(key(), b"plan")
    file(odd).write_bytes(b"no plan")
    assert odd.state(key()).hint == f"build again: {wanted}"
    with pytest.raises(PlanMismatch, match="no sealed file") as refused:
        odd.load(key())
    assert refused.value.hint == f"build again: {wanted}"
    with pytest.raises(PlanMismatch, match="not ours") as refused, odd.telling():
        raise PlanMismatch("not ours", hint=BUILD)
    assert refused.value.hint == wanted
    # Into the user's cache the command builds by itself.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Plans().state(key()).hint == BUILD == "python -m engines build"


def test_rtx_finds_what_was_built_ahead_of_time(plans: Plans) -> None:
    sizes = ("a" * 64, "tensorrt_rtx", "1.7.1.116")
    mine = for_gpu(*sizes, CARD, "p")
    assert (mine.gpu, mine.driver) == ("", ""), "any GPU of its capability runs it, under any driver"
    ahead = ahead_of_time(*sizes, ["120", "89", "86", "89"], "p")
    assert ahead.capabilities == ("86", "89", "120")
    assert plans.find(*sizes, CARD, "p") == mine
    for other in (
        replace(ahead, version="1.6"),
        replace(ahead, profile="q"),
        replace(ahead, onnx_sha256="c"),
    ):
        plans.store(other, b"other")
    assert plans.find(*sizes, CARD, "p") == mine
    plans.store(ahead, b"ahead")
    assert plans.find(*sizes, CARD, "p") == ahead
    assert plans.find(*sizes, replace(CARD, compute_capability="80"), "p") != ahead
    plans.store(mine, b"mine")
    assert plans.find(*sizes, CARD, "p") == mine, "its own comes first"


def test_caches_are_of_one_gpu_and_driver_and_never_trusted_when_damaged(plans: Plans) -> None:
    plan = ahead_of_time("a" * 64, "tensorrt_rtx", "1.7.1", ["86", "89"], "p")
    plans.cache("kernels", plan, CARD, b"kernels")
    plans.cache("timing", plan, CARD, b"timings")
    assert plans.cached("kernels", plan, CARD) == b"kernels"
    assert plans.cached("kernels", plan, replace(CARD, driver="1")) is None
    assert plans.cached("kernels", plan, replace(CARD, name="other")) is None
    other = replace(plan, onnx_sha256="b" * 64)
    assert plans.cached("kernels", other, CARD) is None
    assert plans.cached("timing", other, CARD) == b"timings", "timings are of the GPU, not of one network"
    (path,) = plans.folder.glob("*.kernels")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert plans.cached("kernels", plan, CARD) is None


def test_what_is_not_wanted_is_purged_and_so_is_what_is_refused(plans: Plans) -> None:
    plans.store(key(), b"good")
    plans.store(key(driver="1"), b"old")
    (plans.folder / "stranger").write_bytes(b"?")
    (plans.folder / "link").symlink_to("/nowhere")
    assert plans.purge(lambda k: k.key == key()) == 3
    assert [k.key for k in plans.list()] == [key()]
    assert plans.load(key()) == b"good"


def test_where_plans_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "luminode" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path.home() / ".cache" / "luminode" / "plans"
    assert Plans().folder == default_folder()
