#!/usr/bin/env bash
# The whole experiment: score, choose subsets, pre-train, prune iteratively, draw.
#
#   bash run_all.sh                   the digits demonstration: minutes on a laptop, no GPU, no network
#   bash run_all.sh PRESET [FIGURE]   cifar10, cifar100 or cinic10; fig2 (default), fig3, fig5, fig6, fig7 or tstar
#
# Finished work is skipped, so after an interruption the same line goes on. From the environment:
#   SEEDS="0 1 2 3"  LEVELS=16  DATA_DIR=data  DATASET=folder  RUNS=runs/PRESET  FIGURES=figures/PRESET
#   FLAGS (for score_el2n.py and pretrain.py)  SCORE_FLAGS  IMP_FLAGS  JOBS (processes; default GPUs, else cores)
#   PYTHON=python  DRY_RUN=1 (print the commands and stop)
set -euo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || { echo "run_all.sh: error: needs bash 4.4" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
preset=${1:-digits}
figure=${2:-fig2}
case $preset in
  digits)   t=20  rate=0.3 size=256   sizes="128 256 512" ;;
  cifar10)  t=400 rate=0.4 size=3200  sizes="256 512 1024 2048 3200 6400 12800 25600" ;;
  cifar100) t=800 rate=0.4 size=2048  sizes="256 512 1024 2048 3200 6400" ;;
  cinic10)  t=800 rate=0.1 size=51200 sizes="12800 25600 51200 102400" ;;
  *) echo "run_all.sh: error: no preset '$preset': digits, cifar10, cifar100 or cinic10" >&2; exit 2 ;;
esac
seeds=${SEEDS:-$([[ $preset == digits ]] && echo "0 1 2" || echo "0 1 2 3")}
runs=${RUNS:-runs/$preset}
figures=${FIGURES:-figures/$preset}
python=${PYTHON:-python}
data=(--data-dir "${DATA_DIR:-data}")
which_data=(--preset "$preset" ${DATASET:+--dataset "$DATASET"} "${data[@]}")

# ---------------------------------------------------------------- what to run: each wave needs the ones before it
scores=() subsets=() starts=() rewinds=()
declare -A known=()

add() { # WAVE COMMAND...: put a command into a wave, once
  local -n wave=$1
  local line
  printf -v line '%q ' "$python" "$here/$2" "${@:3}"
  [[ ${known[$line]-} ]] || wave+=("$line")
  known[$line]=1
}

run() { # SCHEME SIZE STEPS [NOISE [PRETRAINING RATE]]: one setting, all its replicates
  local scheme=$1 size=$2 steps=$3 noise=${4:-0} own_rate=${5:-$rate} seed tag="" label=() subset=()
  if [[ $noise != 0 ]]; then
    tag=-noise$(awk "BEGIN { print 100 * $noise }") label=(--label-noise "$noise")
  fi
  [[ $own_rate != "$rate" ]] || own_rate="" # the preset's: the runs of the other figures
  local folder=$runs/$scheme${size:+-$size}-t$steps$tag${own_rate:+-lr$own_rate}
  for seed in $seeds; do
    if [[ $scheme == random ]]; then
      subset=(--subset "$runs/subsets/random-$size$tag-seed$seed.npy")
      add subsets make_subset.py "${which_data[@]}" --select random --size "$size" --seed "$seed" \
        "${label[@]}" --out "${subset[1]}"
    elif [[ $scheme != all ]]; then
      subset=(--subset "$runs/subsets/$scheme-$size$tag.npy")
      add scores score_el2n.py "${which_data[@]}" "${label[@]}" ${FLAGS-} ${SCORE_FLAGS-} --out "$runs/el2n$tag.npy"
      add subsets make_subset.py "${which_data[@]}" --select "$scheme" --size "$size" \
        --scores "$runs/el2n$tag.npy" --out "${subset[1]}"
    fi
    add starts pretrain.py "${which_data[@]}" "${subset[@]}" "${label[@]}" --steps "$steps" --seed "$seed" \
      ${own_rate:+--pretrain-lr "$own_rate"} ${FLAGS-} --out "$folder/seed$seed/rewind.safetensors"
    rewinds+=("$folder/seed$seed/rewind.safetensors")
  done
}

baselines() { # T [NOISE]: no pre-training, all data for t/2 and for t steps; level 0 of the last is the dense network
  run all "" 0
  run all "" $(($1 / 2)) "${2-}"
  run all "" "$1" "${2-}"
}

case $figure in
  fig2) baselines $t; for scheme in random easy hard; do run $scheme $size $((t / 2)); done ;;
  fig5) baselines $t; for n in $sizes; do for scheme in random easy hard; do run $scheme "$n" $((t / 2)); done; done ;;
  fig6) # CINIC-10 in two families, rewinding to 200 and to 400
    baselines 400; for n in 12800 25600 51200; do for scheme in random easy hard; do run $scheme $n 200; done; done
    baselines 800; for n in $sizes; do for scheme in random easy hard; do run $scheme "$n" 400; done; done ;;
  fig3 | fig7) # random labels during pre-training; figure 3 is the size 2048 of figure 7
    [[ $figure == fig3 ]] && sizes=2048 || sizes="512 1024 2048 3200"
    for noise in 0.1 0.5; do
      baselines $t $noise
      for n in $sizes; do for scheme in random easy; do run $scheme "$n" $((t / 2)) $noise; done; done
    done ;;
  tstar) # how long, and at which rate, must pre-training on all data be?
    run all "" 0
    for steps in 100 200 400 800 1600; do for r in 0.1 0.2 0.4; do run all "" $steps 0 $r; done; done ;;
  *) echo "run_all.sh: error: no figure '$figure': fig2, fig3, fig5, fig6, fig7 or tstar" >&2; exit 2 ;;
esac
mapfile -t rewinds < <(printf '%s\n' "${rewinds[@]}" | awk '!seen[$0]++')

# ---------------------------------------------------------------- who runs it: a GPU, or a core, per worker
mapfile -t gpus < <(if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then tr , '\n' <<<"$CUDA_VISIBLE_DEVICES"; else
  nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true; fi | sed '/^$/d')
workers=${JOBS:-$((${#gpus[@]} ? ${#gpus[@]} : $(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)))}
[[ $workers =~ ^[1-9][0-9]*$ ]] || { echo "run_all.sh: error: JOBS must be 1 or more, not '$workers'" >&2; exit 2; }
((${#gpus[@]})) || export OMP_NUM_THREADS=1 # numbers do not depend on how many cores the machine has

prune=() # one imp.py for each worker, the runs dealt round-robin
for ((w = 0; w < workers && w < ${#rewinds[@]}; w++)); do
  mine=()
  for ((i = w; i < ${#rewinds[@]}; i += workers)); do mine+=("${rewinds[i]}"); done
  add prune imp.py "${data[@]}" ${LEVELS:+--levels "$LEVELS"} ${IMP_FLAGS-} "${mine[@]}"
done
draw=()
shown=() # the demonstration and the search for t* draw every panel there is
if [[ $preset != digits && $figure != tstar ]]; then
  shown=(--paper "$here/paper_curves.json" --figure "${figure#fig}")
  [[ $figure != fig[56] ]] || shown+=(4)
fi
add draw plot.py "$runs" "${shown[@]}" --out "$figures"

if [[ ${DRY_RUN-} ]]; then
  printf '%s\n' "${scores[@]}" "${subsets[@]}" "${starts[@]}" "${prune[@]}" "${draw[@]}" | sed '/^$/d'
  exit
fi

set -m # every worker is a process group of its own, so that stopping one leaves no orphan
pids=()
finish() {
  trap - EXIT
  for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done # imp.py saves, then ends
  for pid in "${pids[@]}"; do while kill -0 -- "-$pid" 2>/dev/null; do sleep 0.1; done; done
  [[ ! -s $runs/logs/failed ]] || { # status, command and log of the first failure
    mapfile -t failed <"$runs/logs/failed"
    printf 'run_all.sh: status %s from\n  %s\nThe end of %s:\n' "${failed[@]}"
    tail -n 5 "${failed[2]}" | sed 's/^/  /'
  } >&2
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 1' USR1 # a worker failed

work() { # WORKER LOG COMMAND...: run every workers-th command, one after another
  local w=$1 log=$2 i status
  shift 2
  trap "exit 143" TERM # bash waits for the running stage, which saves first
  ((${#gpus[@]})) && export CUDA_VISIBLE_DEVICES=${gpus[w % ${#gpus[@]}]}
  for ((i = w + 1; i <= $#; i += workers)); do
    echo "\$ ${!i}" >>"$log"
    eval "${!i}" && continue
    status=$?
    (set -C; printf '%s\n' $status "${!i}" "$log" >"$runs/logs/failed") 2>/dev/null || true # not the second one
    kill -USR1 $$ # end the wait for the others
    exit 1
  done
}

wave() { # NAME COMMAND...: deal the commands of a wave to the workers; stop all at the first failure
  local name=$1 w log
  shift
  (($#)) || return 0
  pids=()
  mkdir -p "$runs/logs"
  rm -f "$runs/logs/failed"
  for ((w = 0; w < workers && w < $#; w++)); do
    log=$runs/logs/$name-$w.log
    work "$w" "$log" "$@" > >(trap '' INT TERM; exec tee -a "$log") 2>&1 &
    pids+=($!)
  done
  echo "== $name: $# commands, $w at a time, logs in $runs/logs/$name-*.log"
  wait "${pids[@]}"
}

wave score "${scores[@]}"
wave subset "${subsets[@]}"
wave pretrain "${starts[@]}"
wave imp "${prune[@]}"
wave plot "${draw[@]}"
