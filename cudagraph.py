"""An optimisation that a reader may skip: a training step recorded as a CUDA graph.

A recording proves that it equals the plain step before it is used; else training goes on without.
"""

import contextlib
import sys
from collections.abc import Callable

import torch

from common import OUT_OF_MEMORY, Stopped


def record(group, k: int) -> Callable[[], "torch.cuda.Stream"]:
    """Record the step of member k as a CUDA graph; returns what starts it on a stream of its own.

    A replay costs the host one launch instead of a thousand, and works on the very tensors that it
    was recorded with: whoever changes them copies into them. The member takes a few steps here.
    """
    graph, stream, pool = (
        torch.cuda.CUDAGraph(),
        torch.cuda.Stream(),
        torch.cuda.graph_pool_handle(),
    )
    stream.wait_stream(torch.cuda.current_stream())
    failure = None
    try:
        with torch.cuda.stream(stream):  # a failing capture would leave its stream current
            for _ in range(3):  # cuDNN and cuBLAS set themselves up, stream by stream
                group.step_one(k)
            with torch.cuda.graph(graph, pool, stream):
                group.step_one(k)
    except RuntimeError as error:
        # what cut a recording short (memory, a signal) makes its end fail too
        cut = error.__context__
        failure = cut if isinstance(cut, RuntimeError | Stopped) else error
        failure.__traceback__ = None  # it holds the graph, which must go first
    if failure:
        del graph
        torch.cuda.current_stream().wait_stream(stream)
        # torch 2.11 goes on allocating there; later ones raise
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
    """Let member k of a group take recorded steps if these prove to be its plain ones; else say so.

    From one state, with a batch, a rate and half-zero masks that the recording has not seen, a
    plain step and two replays must change every tensor alike: the gap may be 5% of what the step
    moved at most (0 is expected).
    """
    m = group.members[k]
    kept, masks = m.copy(), {name: mask.clone() for name, mask in m.masks.items()}
    m.net.train()
    group.examples.copy_(group.tables[:, :, 0])
    group.rate.fill_(group.recipe["lr"])
    try:
        replay, found = record(group, k), []
        group.examples[k, 0] = (group.examples[k, 0] + 1) % len(group.labels)
        group.rate.div_(2)
        for mask in m.masks.values():
            mask[::2] = 0
        m.restore(kept)
        m.apply_masks()
        start = m.copy()
        for way in (None, replay, replay):
            group.replays[k] = way
            m.restore(start)
            group.step_all([k])
            found.append(m.copy())
        plain, *others = found
        for name, t in plain.items():
            moved, gaps = (t - start[name]).abs().max(), [(o[name] - t).abs().max() for o in others]
            if not all(gap <= 0.05 * moved for gap in gaps):
                raise RuntimeError(
                    f"replayed, {name} is off by {max(gaps):.1e}, a step moves {moved:.1e}"
                )
    except RuntimeError as error:
        group.replays[k] = None
        if OUT_OF_MEMORY.search(str(error)):
            raise
        print(
            f"note: {m.name}: plain steps, no recorded ones: {error}".splitlines()[0],
            file=sys.stderr,
        )
    finally:
        m.restore(kept)
        for name, mask in masks.items():
            m.masks[name].copy_(mask)
