"""Nothing is lost: real processes killed at any moment and inside every write, two at once, damaged files.

Started as a script, this file is a server that has imported torch once and forks a process per command,
before any torch operation; each attempt then costs a fraction of a second instead of several.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

TINY = ["--depth=8", "--width=2", "--batch-size=64", "--milestones", "30", "40"]


# ------------------------------------------------------------ the server


def die_at(event: int, torn: bool) -> None:
    """SIGKILL this process at the event-th write: just before an fsync or a rename.

    torn: with only half of the file's content on disk, as a power loss may leave it.
    """
    fsync, replace, seen = os.fsync, os.replace, [0]

    def reached(fd: int | None) -> None:
        if seen[0] == event:
            if torn and fd is not None and not os.path.isdir(f"/proc/self/fd/{fd}"):
                os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    os.fsync = lambda fd: (reached(fd), fsync(fd))[1]
    os.replace = lambda a, b: (reached(None), replace(a, b))[1]


def serve() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import imp

    import torch

    import common
    import make_subset
    import pretrain
    import score_el2n

    stages = {"score": score_el2n, "subset": make_subset, "pretrain": pretrain, "imp": imp}
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for stage, *argv in request["commands"]:
            child = os.fork()
            if child == 0:
                log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                torch.set_num_threads(1)
                if "event" in request:
                    die_at(request["event"], request["torn"])
                status = common.cli(stages[stage].main, argv)
                sys.stdout.flush()
                os._exit(status)
            children.append(child)
        if "signal" in request:
            time.sleep(request["after"])
            for _ in range(request.get("times", 1)):
                os.kill(children[0], request["signal"])
                time.sleep(0.02)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    serve()
    sys.exit()

from test_imp import same_levels  # noqa: E402

import common  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(command, ..., signal=, after=, event=, torn=) -> exit statuses, negative: killed."""
    log = tmp_path_factory.mktemp("crash") / "log"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    server = subprocess.Popen([sys.executable, __file__], **pipes)

    def run(*commands, **how):
        log.unlink(missing_ok=True)
        request = {"commands": [[str(a) for a in command] for command in commands], "log": str(log), **how}
        print(json.dumps(request), file=server.stdin, flush=True)
        statuses = json.loads(server.stdout.readline())
        run.said = log.read_text() if log.exists() else ""
        assert "Traceback" not in run.said
        return statuses

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


def imp_command(run, folder, steps, levels, save_every):
    """A fresh starting point in folder; returns the command that prunes it."""
    total = ["--total-steps", str(steps)]
    assert run(["pretrain", *TINY, *total, "--steps", 2, "--out", folder / "rewind.safetensors"]) == [0]
    return ["imp", folder / "rewind.safetensors", "--levels", levels, "--save-every", save_every]


def score_command(folder, networks, steps):
    short = ["--total-steps=45", "--networks", networks, "--steps", steps]
    return ["score", *TINY, *short, "--out", folder / "s.npy"]


def same_scores(a, b):
    for name in ("s.npy", "s.networks.safetensors", "s.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


# ------------------------------------------------------------ killed at random moments


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_imp_killed_at_random_moments_ends_as_if_undisturbed(run, tmp_path, how, kills):
    whole = imp_command(run, tmp_path / "whole", 80, 2, 60)
    began = time.monotonic()
    assert run(whole) == [0]
    duration, draw, survived = time.monotonic() - began, random.Random(f"{how} {kills}"), 0
    killed = imp_command(run, tmp_path / "killed", 80, 2, 0.01)
    while survived < kills:
        if run(killed, signal=how, after=draw.uniform(0.05, duration)) == [0]:  # done before; once more
            for path in (tmp_path / "killed").glob("[ls]*.safetensors"):
                path.unlink()
            continue
        survived += 1
    assert run(killed) == [0]
    same_levels(tmp_path / "whole", tmp_path / "killed", 2)
    assert not (tmp_path / "killed" / "state.safetensors").exists()


def test_a_second_ctrl_c_leaves_at_once_and_loses_nothing(run, tmp_path):
    assert run(imp_command(run, tmp_path / "whole", 150, 2, 60)) == [0]
    command = imp_command(run, tmp_path / "killed", 150, 2, 60)
    draw, ended = random.Random(2), []
    while len(ended) < 3:
        (status,) = run(command, signal=signal.SIGINT, times=2, after=draw.uniform(0.1, 0.4))
        assert status in (130, -signal.SIGINT), run.said
        ended.append(status)
    assert run(command) == [0]
    same_levels(tmp_path / "whole", tmp_path / "killed", 2)


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_scoring_killed_at_random_moments_ends_as_if_undisturbed(run, tmp_path, kills):
    began = time.monotonic()
    assert run(score_command(tmp_path / "whole", 4, 20)) == [0]
    duration, draw, survived = time.monotonic() - began, random.Random(kills), 0
    while survived < kills:
        if run(score_command(tmp_path / "killed", 4, 20), signal=signal.SIGKILL,
               after=draw.uniform(0.05, duration)) == [0]:  # fmt: skip
            shutil.rmtree(tmp_path / "killed")
            continue
        survived += 1
    assert run(score_command(tmp_path / "killed", 4, 20)) == [0]
    same_scores(tmp_path / "whole", tmp_path / "killed")


# ------------------------------------------------------------ killed inside every write


def crash_everywhere(run, command, start, same, torn):
    """Kill the command before every fsync and rename, each time from a fresh start; returns how often."""
    event = 0
    while True:
        start()
        if run(command, event=event, torn=torn) == [0]:
            return event
        assert run(command) == [0], run.said
        same()
        event += 1


@pytest.mark.parametrize("torn", [False, True])
def test_imp_killed_inside_every_write(run, tmp_path, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(imp_command(run, whole, 4, 1, 60)) == [0]
    command = imp_command(run, killed, 4, 1, 1e-9)

    def start():
        for path in killed.iterdir():
            if path.name != "rewind.safetensors":
                path.unlink()

    # three events a write; written: 2 levels, results.csv twice, a state after each of 2 x 2 steps
    assert crash_everywhere(run, command, start, lambda: same_levels(whole, killed, 1), torn) == 3 * 8


@pytest.mark.parametrize("torn", [False, True])
def test_scoring_killed_inside_every_write(run, tmp_path, torn):
    assert run(score_command(tmp_path / "whole", 2, 2)) == [0]
    command, same = score_command(tmp_path / "killed", 2, 2), partial(same_scores, tmp_path / "whole")
    start = partial(shutil.rmtree, tmp_path / "killed", ignore_errors=True)
    events = crash_everywhere(run, command, start, partial(same, tmp_path / "killed"), torn)
    assert events == 3 * 4  # two networks, the sidecar and the array of their mean


def test_subsets_and_starting_points_killed_inside_every_write(run, tmp_path):
    commands = (["subset", "--select", "random", "--size", 64, "--out", "x.npy"],
                ["pretrain", *TINY, "--total-steps=45", "--steps", 2, "--out", "x.safetensors"])  # fmt: skip
    for *command, name in commands:
        assert run([*command, tmp_path / "whole" / name]) == [0]

        def same(name=name):
            for path in (tmp_path / "whole").glob("x.[jns]*"):
                assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()

        start = partial(shutil.rmtree, tmp_path / "killed", ignore_errors=True)
        events = crash_everywhere(run, [*command, tmp_path / "killed" / name], start, same, True)
        assert events == (6 if name == "x.npy" else 3)
        shutil.rmtree(tmp_path / "whole")


# ------------------------------------------------------------ two at once


@pytest.mark.parametrize("times", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_started_together(run, tmp_path, times):
    # long enough that the second looks for the lock while the first holds it, also on a busy machine
    assert run(imp_command(run, tmp_path / "whole", 200, 1, 60)) == [0]
    assert run(score_command(tmp_path / "whole", 4, 45)) == [0]
    for attempt in range(times):
        folder = tmp_path / str(attempt)
        command = imp_command(run, folder, 200, 1, 60)
        assert sorted(run(command, command)) == [0, 2]
        # "another process" in the instant before the holder has written its number
        assert re.search(f"{folder} is in use by (process \\d+|another process)", run.said)
        same_levels(tmp_path / "whole", folder, 1)
        command = score_command(folder, 4, 45)
        assert sorted(run(command, command)) == [0, 2]
        same_scores(tmp_path / "whole", folder)
        # one that prunes several runs takes all their locks or none
        imp_command(run, tmp_path / f"{attempt}b", 200, 1, 60)
        both = [folder / "rewind.safetensors", tmp_path / f"{attempt}b" / "rewind.safetensors"]
        assert sorted(run(["imp", *both, "--levels", 2], ["imp", *reversed(both), "--levels", 2])) == [0, 2]
        same_levels(tmp_path / f"{attempt}b", folder, 2)


# ------------------------------------------------------------ damaged files


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content cut somewhere, or with a digit or one to three bytes changed."""
    kind, changed = draw.random(), bytearray(content)
    if kind < 0.25:
        return content[: draw.randrange(len(content))]
    digits = [i for i, byte in enumerate(content[:2000]) if chr(byte).isdigit()]
    if kind < 0.5 and digits:  # still well-formed, but saying something else
        changed[draw.choice(digits)] = ord(draw.choice("0123456789"))
        return bytes(changed)
    for _ in range(draw.randint(1, 3)):
        # half of them in the head, where the structure is
        end = min(len(content), 400) if draw.random() < 0.5 else len(content)
        changed[draw.randrange(end)] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("tries", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_are_an_error_or_make_no_difference(ok, call, tmp_path, tries):
    """Never a traceback, never another result: each input of each stage, cut and with bytes changed.

    Only a sidecar may say something else and be believed: people edit them, so it has no checksum of its own.
    """
    small = [*TINY, "--total-steps=6"]
    scores, subset = tmp_path / "s.npy", tmp_path / "easy.npy"
    rewind = tmp_path / "run" / "rewind.safetensors"
    scoring = [*score_command(tmp_path, 2, 2), "--label-noise", 0.25, "--noise-seed", 7]
    ok(*scoring)
    easy = ["subset", "--select", "easy", "--size", 64, "--scores", scores]
    ok(*easy, "--out", subset)
    start = ["pretrain", *small, "--subset", subset, "--steps", 2]
    ok(*start, "--out", rewind)
    ok("imp", rewind, "--levels", 0)
    out = tmp_path / "out"
    first = out / "rewind.safetensors"
    cases = [  # damaged file, command that reads it, what it makes
        (scores, [*easy, "--out", out / "x.npy"]),
        (scores.with_suffix(".json"), [*easy, "--out", out / "x.npy"]),
        (tmp_path / "s.networks.safetensors", scoring),
        (subset, [*start, "--out", first]),
        (subset.with_suffix(".json"), [*start, "--out", first]),
        (rewind, ["imp", rewind, "--levels", 0]),
        (rewind.parent / "level00.safetensors", ["imp", rewind, "--levels", 1]),
        (rewind.parent / "results.csv", ["imp", rewind, "--levels", 0]),
    ]  # fmt: skip
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path, kept)

    def restore():
        shutil.rmtree(out, ignore_errors=True)
        for path in kept.rglob("*"):
            if path.is_file():
                shutil.copyfile(path, tmp_path / path.relative_to(kept))
        (rewind.parent / "level01.safetensors").unlink(missing_ok=True)

    def work(target, command):
        """What a command leaves: the content of its files, without what may differ."""
        if target.parent == tmp_path and "networks" in target.name:
            scores.unlink()  # so that the networks are read again
        status, _, err = call(*command)
        if status:
            assert status in (1, 2), err
            assert err.count("\n") == 1, err
            return None
        made = {path.relative_to(tmp_path): path for path in (*tmp_path.glob("*.*"), *out.rglob("*.*"),
                                                              *rewind.parent.glob("*.*"))}  # fmt: skip
        return {str(name): comparable(path) for name, path in made.items() if path != target}

    def comparable(path):
        if path.suffix == ".safetensors":
            tensors, info = common.load_tensors(path)
            info.get("row", {}).pop("seconds", None)
            return common.digest(tensors, info)
        text = path.read_bytes() if path.is_file() else b""
        seconds_aside = [line.rpartition(b",")[0] for line in text.splitlines()]
        return seconds_aside if path.suffix == ".csv" else text

    draw, refused, same = random.Random(tries), 0, 0
    for target, command in cases:
        restore()
        expected = work(target, command)
        assert expected
        for _ in range(tries):
            restore()
            target.write_bytes(damaged(target.read_bytes(), draw))
            found = work(target, command)
            refused, same = refused + (found is None), same + (found is not None)
            assert found in (None, expected) or target.suffix == ".json", (target, command)
    print(f"{refused} refused, {same} without effect")
    assert refused > 3 * tries
