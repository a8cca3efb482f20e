#!/usr/bin/env bash
# A Python that only notes how it was called: devices, threads and command line.
echo "${CUDA_VISIBLE_DEVICES-none}|${OMP_NUM_THREADS-free}|$*" >>noted
[[ $* != *${BREAKS-nothing}* ]] || { echo "it broke" >&2; exit ${STATUS-1}; }
[[ $* != *imp.py* ]] || sleep ${SLEEP-0}
