#!/usr/bin/env bash
# A Python that only notes how it was called: devices, threads and command line. Presets it knows; of GPUs it sees GPUS.
[[ $1 != *common.py ]] || exec python3 "$@"
[[ $1 != -c ]] || { echo "${GPUS-0}"; exit; }
echo "${CUDA_VISIBLE_DEVICES-none}|${OMP_NUM_THREADS-free}|$*" >>noted
[[ $* != *${BREAKS-nothing}* ]] || { echo "it broke" >&2; exit ${STATUS-1}; }
[[ $* != *imp.py* ]] || sleep ${SLEEP-0}
