#!/usr/bin/env bash
# Run a plan on the cores or GPUs of this machine, or as array jobs of Slurm. It does not know what
# the tasks are about. It needs bash 4.4, GNU's xargs, and flock.
#
#   bash launch.sh LOGS NAME <plan   LOGS is a folder for logs, NAME a word for the names of jobs
#   bash launch.sh --slots           prints "gpu 2" or "cpu 16": what there is to run tasks on
#
# A plan has one task a line, with tabs between: WAVE, gpu or cpu, training steps, and one or more
# commands, each a program and its arguments, quoted for the shell. They run in turn, also after
# one that failed. A line that begins with # is a comment. Waves run in the order in which they
# first appear, and each waits for the one before, whatever came of it. A wave called data always
# runs on this machine, as the compute nodes of a cluster often have no network. What failed is
# listed at the end (exit status 1).
#
# From the environment:
#   JOBS      tasks at a time (one for each GPU, else one for each core)
#   LAUNCHER  slurm submits an array job for each wave and returns; its jobs wait for those that
#             were submitted with the same LOGS before
#   WIDTH     tasks of an array that run at a time
#   SBATCH_PARTITION, SBATCH_TIMELIMIT and so on are sbatch's own. SBATCH_GRES=gpu:a100:1 is asked
#             for by waves with GPU tasks (default: gpu:1 if the partition lists GPUs)
#   SBATCH_FLAGS  more options of sbatch
#   SLOTS     an answer to --slots, which is then not looked for
#   DRY_RUN   1 prints the plan, the sum of its steps, and what would be submitted
#   PYTHON    a Python with torch, which is asked for the GPUs of this machine
set -euo pipefail

fail() { echo "launch.sh: error: $1" >&2; exit 2; }

# ------------------------------------------------------------ one task, started by xargs or Slurm
# Bash runs a trap only when no command is in the foreground. So a command is a background job that
# is waited for. On TERM (Ctrl-C here, scancel or preemption there) it saves and ends with status
# 143. USR1 comes from Slurm 120 seconds before the time limit: the same happens, and then the task
# goes back into the queue, which Slurm's --requeue does not do at the time limit.
run_task() { # LIST [INDEX]: LIST has a task a line, its commands with tabs between
  local list=$1 under_xargs=${2-} index=${2-${SLURM_ARRAY_TASK_ID-}} command commands devices status
  local log=${list%.list}-$index.log asked="" child="" failures=0 last_lines
  IFS=$'\t' read -ra commands < <(sed -n "$((index + 1))p" "$list")
  if [[ $under_xargs ]]; then # it says by SLOT which of its processes this is
    exec 3>&1 >"$log" 2>&1    # 3 is where progress is printed
    read -ra devices <<<"$gpus"
    [[ ! $gpus ]] || export CUDA_VISIBLE_DEVICES=${devices[SLOT % ${#devices[@]}]}
  fi
  # Without a GPU a task has one thread, so that numbers do not depend on how many cores there are.
  [[ ${CUDA_VISIBLE_DEVICES-} =~ ^\ *([0-9]|GPU-|MIG-) ]] || export OMP_NUM_THREADS=1
  trap 'asked=to-end; [[ ! $child ]] || kill "$child"' TERM
  trap 'asked=to-requeue; [[ ! $child ]] || kill "$child"' USR1
  for command in "${commands[@]}"; do
    echo "\$ $command"
    eval "exec $command" &
    child=$!
    [[ ! $asked ]] || kill "$child" # the signal came between two commands
    # A trap ends a wait early, so wait again until the command has ended, then for its status.
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    wait "$child" && continue
    status=$?
    if [[ $asked == to-requeue && $status == 143 ]]; then
      scontrol requeue "${SLURM_ARRAY_JOB_ID}_$index"
    fi
    [[ ! $asked ]] || exit $status
    failures=$((failures + 1))
    last_lines=$(tail -n 5 "$log" | sed '/^\$ /d; s/^/  /')
    # This is written in one piece, as other tasks write there, too.
    printf 'status %s from %s\n%s:\n%s\n\n' $status "$command" "$log" "$last_lines" \
      >>"${list%/*}/failed"
  done
  [[ ! $under_xargs ]] || say_progress "$list" "$log" $failures
  exit $((failures > 0)) # never 255, at which xargs stops
}

say_progress() { # LIST LOG FAILURES: one task after another, as several may end together
  {
    flock 9 2>/dev/null # where the file system has locks
    echo >&9
    local minutes=$((($(date +%s) - started) / 60)) lost=""
    (($3 == 0)) || lost=", failed: $2"
    echo "== $(basename "$1" .list): $(wc -l <"$1.done") of $(wc -l <"$1") done" \
      "after $minutes minutes$lost" >&3
  } 9>>"$1.done"
}

if [[ ${1-} == --task ]]; then
  set +e
  run_task "${@:2}"
fi

# ------------------------------------------------------------ what there is to run on
[[ ${1-} != -h && ${1-} != --help ]] || { sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}"; exit; }
launcher=${LAUNCHER:-local} dry_run=${DRY_RUN-} width=${WIDTH-}
dry_run=${dry_run#0}
[[ $launcher == local || $launcher == slurm ]] ||
  fail "LAUNCHER must be local or slurm, not '$launcher'"
for name in WIDTH JOBS; do
  [[ ${!name:-1} =~ ^[1-9][0-9]{0,8}$ ]] ||
    fail "$name must be a whole number from 1 on, not '${!name}'"
done
[[ ${SLOTS:-cpu 1} =~ ^(gpu|cpu)\ [1-9][0-9]{0,8}$ ]] ||
  fail "SLOTS must be gpu or cpu and a number, not '$SLOTS'"
python=$(type -P "${PYTHON:-python}") || fail "PYTHON: there is no ${PYTHON:-python}"

gres_of_partition() { # gpu:1 if the partition, or else the default one, lists GPUs
  local listed
  listed=$(sinfo -h -o '%P %G' ${SBATCH_PARTITION:+-p "$SBATCH_PARTITION"} 2>/dev/null) || true
  [[ ${SBATCH_PARTITION-} ]] || listed=$(grep -F '* ' <<<"$listed") || true
  [[ $listed != *gpu* ]] || echo gpu:1
}

slots_of_this_machine() { # torch decides what a GPU is, since torch has to use it
  local seen="torch.cuda.device_count() if torch.cuda.is_available() else 0" count listed
  count=$("$python" -c "import torch; print($seen)") || fail "$python has no torch that starts"
  ((count == 0)) || { echo "gpu $count"; return; }
  listed=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || true
  if ((listed)) && [[ ${CUDA_VISIBLE_DEVICES-0} =~ ^\ *([0-9]|GPU-|MIG-) ]]; then
    echo "launch.sh: note: nvidia-smi lists $listed GPUs, but torch sees none: see" \
      "python -c 'import torch; torch.zeros(1).cuda()'" >&2
  fi
  echo "cpu $(env -u OMP_NUM_THREADS nproc)"
}

gres=""
[[ $launcher == local ]] || gres=${SBATCH_GRES-$(gres_of_partition)}
if [[ ${SLOTS-} ]]; then
  slots=$SLOTS
elif [[ $launcher == slurm ]]; then
  slots="$([[ $gres ]] && echo gpu || echo cpu) 1"
elif [[ $dry_run ]]; then
  slots="cpu 1" # a dry run does not wait for torch
else
  slots=$(slots_of_this_machine)
fi
[[ ${1-} != --slots ]] || { echo "$slots"; exit; }

# ------------------------------------------------------------ the plan
(($# == 2)) || fail "a folder for logs and a name are needed, not: $*"
[[ ! -t 0 ]] || fail "the plan is read from standard input"
name=$2 here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
declare -A lines=() kinds=() # of every wave
waves=() tasks=0 steps=0
while IFS= read -r line; do
  [[ $line && $line != \#* ]] || continue
  IFS=$'\t' read -r wave kind cost command <<<"$line"
  [[ $wave =~ ^[a-z0-9-]+$ && $kind =~ ^[gc]pu$ && $cost =~ ^[0-9]+$ && $command ]] ||
    fail "no task of a plan: $line"
  [[ ${lines[$wave]-} ]] || waves+=("$wave")
  lines[$wave]+=$line$'\n'
  [[ $kind == cpu ]] || kinds[$wave]=gpu
  tasks=$((tasks + 1)) steps=$((steps + cost))
done
((tasks)) || fail "the plan is empty"

# ------------------------------------------------------------ waves
logs=$1/$(date +%Y%m%d-%H%M%S)-$$ # a folder of this call alone
jobs=() before="" after=""

write_list() { # WAVE: the commands of its tasks, for run_task
  list=$logs/$1.list
  printf %s "${lines[$1]}" | cut -f 4- >"$list"
  count=$(wc -l <"$list")
  echo "== $1: $count to do, logs: $logs/$1-*.log"
}

run_here() { # WAVE
  write_list "$1"
  # xargs leaves its children when it is stopped. But cat ends after the last of them, as all of
  # them hold its pipe. With pipefail, the pipe fails if a task has failed.
  seq 0 $((count - 1)) |
    xargs -n 1 -P "$at_once" --process-slot-var=SLOT bash "$here/launch.sh" --task "$list" |
    (trap '' TERM; cat) &
  wait $! || touch "$logs/failed"
}

sbatch_options() { # WAVE: what sbatch is given, which wins over SBATCH_* variables
  local count
  count=$(grep -c . <<<"${lines[$1]}")
  options=(
    --job-name="$1-$name" --array="0-$((count - 1))${width:+%$width}"
    --output="$logs/$1-%a.log" --open-mode=append --requeue --signal=B:USR1@120
    ${after:+--dependency="$after"}
  )
  [[ ! $gres || ! ${kinds[$1]-} ]] || options+=(--gres="$gres" --cpus-per-task=2)
  options+=(${SBATCH_FLAGS-})
  echo "# sbatch ${options[*]}"
}

submit() { # WAVE: an array job that begins when the one before has ended, whatever came of it
  local id
  sbatch_options "$1"
  write_list "$1"
  # sbatch takes a copy of this script, and the list is nobody else's
  id=$(sbatch --parsable "${options[@]}" "$here/launch.sh" --task "$list")
  jobs+=("${id%%;*}") after=afterany:${id%%;*} # with several clusters it is id;cluster
}

stop() { # STATUS
  echo "launch.sh: stopped; what is finished is kept, the same command goes on" >&2
  trap '' HUP INT TERM
  exec 2>/dev/null # no words about jobs
  # Again and again, as the first TERM may come before a process listens. Commands heed the first
  # that they see.
  while kill -TERM -- "-$(jobs -p)" && kill -0 $!; do sleep 0.1; done
  exit "$1"
}

report_failures() {
  [[ -e $logs/failed ]] || return 0
  head -n 60 "$logs/failed" >&2
  echo "launch.sh: what failed is in $logs/failed; the same command tries it again" >&2
  exit 1
}

if [[ $launcher == slurm ]]; then
  [[ $PWD/$1 != *[%\\]* ]] || fail "Slurm takes no path of logs with % or \\ in it: $PWD/$1"
  [[ $dry_run ]] || type -P sbatch >/dev/null || fail "LAUNCHER=slurm needs sbatch"
fi
echo "# $tasks tasks in ${#waves[@]} waves: $steps training steps"
if [[ $dry_run ]]; then
  echo "# a task a line: wave, gpu (if there is one) or cpu, training steps, commands"
  for wave in "${waves[@]}"; do
    [[ $launcher == local || $wave == data ]] || sbatch_options "$wave"
    printf %s "${lines[$wave]}"
  done
  exit
fi

read -r kind at_once <<<"$slots"
devices=()
if [[ $launcher == local && $kind == gpu ]]; then # those that torch counted
  gpus=${CUDA_VISIBLE_DEVICES-$(seq -s , 0 $((at_once - 1)))}
  read -ra devices <<<"${gpus//,/ }"
fi
export gpus="${devices[*]:0:at_once}"
at_once=${JOBS:-$at_once}
started=$(date +%s)
export started
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM
set -m # what runs here is a process group of its own, which can be stopped as one
mkdir -p "$logs"

if [[ $launcher == local ]]; then
  for wave in "${waves[@]}"; do run_here "$wave"; done
  sed '/^\$ /d' "$logs/$wave"-*.log # what the last wave has to say
  report_failures
  exit
fi

if [[ -e $1/jobs ]]; then # of an earlier submission; squeue fails where it no longer knows them
  before=$({ squeue -h -o %F -j "$(<"$1/jobs")" | sort -u | paste -sd:; } 2>/dev/null) || true
fi
if [[ $before ]]; then
  after=afterany:$before
  echo "== waits for jobs $before, which work in the same folder"
fi
unset SBATCH_GRES # it is an option of the waves that need it
trap '(($? == 0)) || [[ ! ${jobs[*]} ]] || scancel "${jobs[@]}"' EXIT # all or none
for wave in "${waves[@]}"; do
  if [[ $wave == data ]]; then
    run_here "$wave"
    report_failures
  else
    submit "$wave"
  fi
done
tr -s ': ' , <<<"$before ${jobs[*]}" | sed 's/^,//' >"$1/jobs"
echo "== squeue --me shows them, scancel ${jobs[*]} stops them"
