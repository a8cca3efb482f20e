"""An optimisation that a reader may skip: a training step is recorded as a CUDA graph.

Before a recording is used, it has to prove that it equals the plain step. If it does not, training
goes on with plain steps.
"""

import contextlib
import sys
from collections.abc import Callable

import torch

from common import OUT_OF_MEMORY, Stopped


def record(group, k: int) -> Callable[[], "torch.cuda.Stream"]:
    """Record the step of member k as a CUDA graph; returns what replays it on a stream of its own.

    A replay costs the host one launch instead of a thousand. It works on the very tensors that it
    was recorded with, so whoever changes them must copy into them. The member takes a few steps
    while it is recorded.
    """
    graph, stream, pool = (
        torch.cuda.CUDAGraph(),
        torch.cuda.Stream(),
        torch.cuda.graph_pool_handle(),
    )
    stream.wait_stream(torch.cuda.current_stream())
    failure = None
    try:
        # A capture that fails would leave its stream current, without this context.
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that cuDNN and cuBLAS set themselves up on this stream
                group.step_one(k)
            with torch.cuda.graph(graph, pool, stream):
                group.step_one(k)
    except RuntimeError as error:
        # What cuts a recording short (memory, a signal) makes its end fail, too, with an error of
        # its own; the first one is its context.
        cut = error.__context__
        failure = cut if isinstance(cut, RuntimeError | Stopped) else error
        failure.__traceback__ = None  # which would keep the graph, and that must go first
    if failure:
        del graph
        torch.cuda.current_stream().wait_stream(stream)
        # torch 2.11 would go on allocating from the pool; later versions raise here.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
        raise failure

    def replay() -> torch.cuda.Stream:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.replay()
        return stream

    return replay


def use_recording(group, k: int, record: Callable = record) -> None:
    """Record the step of member k, and use the recording if it does what a plain step does.

    Otherwise a note says why plain steps go on. State and masks are put back bit for bit.

    record  what records a step; tests pass recordings that are wrong
    """
    member = group.members[k]
    state, masks = member.copy(), {name: mask.clone() for name, mask in member.masks.items()}
    member.net.train()
    group.examples.copy_(group.tables[:, :, 0])
    group.rate.fill_(group.recipe["lr"])
    try:
        check_replay(group, k, record(group, k), state)
    except RuntimeError as error:
        group.replays[k] = None
        if OUT_OF_MEMORY.search(str(error)):
            raise
        note = f"note: {member.name}: plain steps, no recorded ones: {error}"
        print(note.splitlines()[0], file=sys.stderr)
    finally:
        member.restore(state)
        for name, mask in masks.items():
            member.masks[name].copy_(mask)


def check_replay(group, k: int, replay: Callable, state: dict[str, torch.Tensor]) -> None:
    """Raise RuntimeError unless a plain step and two replays change every tensor alike.

    They start from one state, with a batch, a rate and half-zero masks that the recording has not
    seen. The gap may be at most 5% of what the step moved; 0 is expected. Batch, rate and masks of
    the member are overwritten, and the group is left to use the replay.
    """
    member = group.members[k]
    group.examples[k, 0] = (group.examples[k, 0] + 1) % len(group.labels)
    group.rate.div_(2)
    for mask in member.masks.values():
        mask[::2] = 0
    member.restore(state)
    member.apply_masks()
    start = member.copy()
    results = []
    for way in (None, replay, replay):  # None is a plain step
        group.replays[k] = way
        member.restore(start)
        group.step_all([k])
        results.append(member.copy())
    plain, *replayed = results
    for name, t in plain.items():
        moved = (t - start[name]).abs().max()
        gaps = [(other[name] - t).abs().max() for other in replayed]
        if not all(gap <= 0.05 * moved for gap in gaps):
            raise RuntimeError(
                f"replayed, {name} is off by {max(gaps):.1e}, a step moves {moved:.1e}"
            )
