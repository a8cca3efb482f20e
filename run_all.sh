#!/usr/bin/env bash
# The whole experiment: score, choose subsets, pre-train, prune iteratively, draw.
#
#   bash run_all.sh                   the digits demonstration: minutes on a laptop, no GPU, no network
#   bash run_all.sh PRESET [FIGURE]   cifar10, cifar100 or cinic10; fig2 (default), fig3, fig5, fig6, fig7 or tstar
#
# Finished work is skipped, so after an interruption the same line goes on. From the environment:
#   SEEDS="0 1 2 3"  LEVELS=16  DATA_DIR=data  DATASET=folder  RUNS=runs/PRESET  FIGURES=figures/PRESET/FIGURE
#   FLAGS (for score_el2n.py and pretrain.py)  SCORE_FLAGS  IMP_FLAGS  PYTHON=python
#   T_STAR=400  SIZES="256 512": other pre-training steps and subset sizes than the preset's, for data of your own
#   JOBS: groups that the IMP runs are dealt to (default: one a GPU, else one a core; with Slurm one for 8 runs on
#     GPUs, else for each run)
#   LAUNCHER=slurm: submit three jobs and return. SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT (default: the
#     partition's), SBATCH_GRES=gpu:a100:1 (default: gpu:1 where the partition lists GPUs) and so on are sbatch's own;
#     WIDTH: IMP tasks at a time; SBATCH_FLAGS: more of its options, such as "--mem=16G --nice"
#   DRY_RUN=1: print the commands, or the job scripts, and the cost; with STEP_MS=1.0 (a step of one network) in hours
set -euo pipefail
fail() { echo "run_all.sh: error: $1" >&2; exit 2; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "needs bash 4.4"
[[ ${1-} != -h && ${1-} != --help ]] || { sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}"; exit; }
(($# < 3)) || fail "a preset and a figure, not $# arguments"
whole() { # NAME VALUE LEAST
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) || fail "$1 must be a whole number from $3 on, not '$2'"
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
preset=${1:-digits}
figure=${2:-fig2}
levels=16 total=62400 networks=10 el2n=7800 seeds="0 1 2 3" # the numbers as in common.py, to tell what is left
case $preset in
  digits)   t=20  rate=0.3 size=256   sizes="128 256 512" levels=15 total=320 networks=8 el2n=200 seeds="0 1 2" ;;
  cifar10)  t=400 rate=0.4 size=3200  sizes="256 512 1024 2048 3200 6400 12800 25600" ;;
  cifar100) t=800 rate=0.4 size=2048  sizes="256 512 1024 2048 3200 6400" ;;
  cinic10)  t=800 rate=0.1 size=51200 sizes="12800 25600 51200 102400" levels=12 total=31250 el2n=8000 ;;
  *) fail "no preset '$preset': digits, cifar10, cifar100 or cinic10" ;;
esac
seeds=${SEEDS:-$seeds} size=${SIZES:-$size} sizes=${SIZES:-$sizes}
for list in "SEEDS=$seeds" "SIZES=$sizes"; do
  [[ ${list#*=} =~ ^\ *[0-9]+(\ +[0-9]+)*\ *$ ]] || fail "${list%%=*} must be numbers with spaces between: $list"
done
t=${T_STAR:-$t}
whole T_STAR "$t" 2
((t % 2 == 0)) || fail "T_STAR must be even, subsets are seen for half as many steps: $t"
dry_run=${DRY_RUN-} && dry_run=${dry_run#0}
runs=${RUNS:-runs/$preset}
python=${PYTHON:-python}
launcher=${LAUNCHER:-local}
case $launcher in
  local) ;;
  slurm) python=$(type -P "$python") || fail "no ${PYTHON:-python} here" ;; # the jobs may see another PATH
  *) fail "LAUNCHER must be local or slurm, not '$launcher'" ;;
esac
data=(--data-dir "${DATA_DIR:-data}")
which_data=(--preset "$preset" ${DATASET:+--dataset "$DATASET"} "${data[@]}")

# ---------------------------------------------------------------- what to run: each wave needs the ones before it
scores=() subsets=() starts=() rewinds=()
declare -A known=() scored=() rewind_step=() pretraining=()

add() { # WAVE COMMAND...: put a command into a wave, once; it is in $line then
  local -n wave=$1
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
  local folder=$runs/$scheme${size:+-$size}-t$steps$tag${own_rate:+-lr$own_rate} rewind
  for seed in $seeds; do
    rewind=$folder/seed$seed/rewind.safetensors
    if [[ $scheme == random ]]; then
      subset=(--subset "$runs/subsets/random-$size$tag-seed$seed.npy")
      add subsets make_subset.py "${which_data[@]}" --select random --size "$size" --seed "$seed" \
        "${label[@]}" --out "${subset[1]}"
    elif [[ $scheme != all ]]; then
      subset=(--subset "$runs/subsets/$scheme-$size$tag.npy")
      add scores score_el2n.py "${which_data[@]}" ${FLAGS-} ${SCORE_FLAGS-} "${label[@]}" --out "$runs/el2n$tag.npy"
      scored[$runs/el2n$tag.npy]=1
      add subsets make_subset.py "${which_data[@]}" --select "$scheme" --size "$size" \
        --scores "$runs/el2n$tag.npy" --out "${subset[1]}"
    fi
    add starts pretrain.py "${which_data[@]}" ${FLAGS-} "${subset[@]}" "${label[@]}" --steps "$steps" --seed "$seed" \
      ${own_rate:+--pretrain-lr "$own_rate"} --out "$rewind"
    [[ ${rewind_step[$rewind]-} ]] || rewinds+=("$rewind")
    rewind_step[$rewind]=$steps pretraining[$rewind]=$line
  done
}

family() { # T SCHEMES SIZES [NOISE]: no pre-training, all data for T/2 and for T steps, subsets for T/2 steps
  local scheme size
  run all "" 0
  run all "" $(($1 / 2)) "${4-}"
  run all "" "$1" "${4-}" # its level 0 is the dense network
  for size in $3; do for scheme in $2; do run "$scheme" "$size" $(($1 / 2)) "${4-}"; done; done
}

schemes="random easy hard"
case $preset-$figure in
  digits-fig[367] | digits-tstar | cinic10-fig5 | cifar*-fig6) fail "no $figure for $preset" ;;
  *-fig2) family "$t" "$schemes" "$size" ;;
  *-fig5) family "$t" "$schemes" "$sizes" ;;
  *-fig6) # CINIC-10 in two families, rewinding to 200 and to 400
    family $((t / 2)) "$schemes" "${SIZES:-12800 25600 51200}"
    family "$t" "$schemes" "$sizes" ;;
  *-fig3 | *-fig7) # random labels during pre-training; figure 3 is the size 2048 of figure 7
    [[ $figure == fig3 ]] && sizes=2048 || sizes="512 1024 2048 3200"
    sizes=${SIZES:-$sizes}
    for noise in 0.1 0.5; do family "$t" "random easy" "$sizes" $noise; done ;;
  *-tstar) # how long, and at which rate, must pre-training on all data be?
    [[ ${FLAGS-} != *--pretrain-lr* ]] || fail "tstar tries pre-training rates of its own: no --pretrain-lr in FLAGS"
    run all "" 0
    for steps in 100 200 400 800 1600; do for r in 0.1 0.2 0.4; do run all "" $steps 0 $r; done; done ;;
  *) fail "no figure '$figure': fig2, fig3, fig5, fig6, fig7 or tstar" ;;
esac
draw=()
shown=() figures=figures/$preset # the demonstration and the search for t* draw every panel there is
if [[ $preset != digits && $figure != tstar ]]; then
  shown=(--paper "$here/paper_curves.json" --figure "${figure#fig}")
  [[ $figure != fig[56] ]] || shown+=(4)
  figures+=/$figure # a figure's tables do not take the place of another's
fi
add draw plot.py "$runs" "${shown[@]}" --out "${FIGURES:-$figures}"

# ---------------------------------------------------------------- what of it is left
number() { # FLAG LEAST DEFAULT WORD...: the whole number that the words give a flag last
  local words=" ${*:4}" value=$3
  while [[ $words =~ \ $1[=\ ]+([0-9]+)(.*) ]]; do value=${BASH_REMATCH[1]} words=${BASH_REMATCH[2]}; done
  whole "$1" "$value" "$2"
  echo "$value"
}
whole LEVELS "${LEVELS:-0}" 0
levels=$(number --levels 0 "${LEVELS:-$levels}" ${IMP_FLAGS-})
total=$(number --total-steps 1 $total ${FLAGS-})
networks=$(number --networks 1 $networks ${FLAGS-} ${SCORE_FLAGS-})
el2n=$(number --steps 0 $el2n ${FLAGS-} ${SCORE_FLAGS-})
at_once=$(number --at-once 1 8 ${IMP_FLAGS-})
whole WIDTH "${WIDTH:-1}" 1
[[ ${STEP_MS:-0} =~ ^[0-9]*\.?[0-9]+$ ]] || fail "STEP_MS must be a number of milliseconds, not '$STEP_MS'"

todo=() finished=() steps=0 left=0
for path in "${!scored[@]}"; do
  steps=$((steps + networks * el2n))
  [[ -e $path ]] || left=$((left + networks * el2n))
done
for rewind in "${rewinds[@]}"; do
  t_r=${rewind_step[$rewind]} missing=0
  ((t_r <= total)) || fail "pre-training takes $t_r steps, a whole training only $total"
  for ((level = 0; level <= levels; level++)); do
    printf -v path '%s/level%02d.safetensors' "${rewind%/*}" $level
    [[ -e $path ]] || missing=$((missing + 1))
  done
  if ((missing)); then todo+=("$rewind"); else finished+=("$rewind"); fi
  [[ -e $rewind ]] || left=$((left + t_r))
  left=$((left + missing * (total - t_r)))
  steps=$((steps + t_r + (levels + 1) * (total - t_r)))
done

# ---------------------------------------------------------------- who does it: one imp.py for each GPU, core or task
if [[ $launcher == local ]]; then
  devices=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)} || true
  mapfile -t gpus < <(tr -d ' ' <<<"$devices" | tr , '\n' | grep -E '^([0-9]+|(GPU|MIG)-.*)$')
  on_gpus=${#gpus[@]}
  workers=$((on_gpus ? on_gpus : $(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)))
else
  listed=$(sinfo -h -o '%P %G' ${SBATCH_PARTITION:+-p "$SBATCH_PARTITION"} 2>/dev/null) || true
  [[ ${SBATCH_PARTITION-} ]] || listed=$(grep -F '* ' <<<"$listed") || true # the default partition
  gres=${SBATCH_GRES-$([[ $listed != *gpu* ]] || echo gpu:1)}
  on_gpus=${gres:+1}
  each=$((on_gpus ? at_once : 1)) # runs that share a GPU
  workers=$(((${#todo[@]} + each - 1) / each + !${#todo[@]}))
fi
workers=${JOBS:-$workers}
whole JOBS "$workers" 1
((on_gpus)) || export OMP_NUM_THREADS=1 # numbers do not depend on how many cores the machine has

prune=() tasks=() # a task has the pre-trainings of its runs too
rewinds=("${todo[@]}" "${finished[@]}") # dealt round-robin, so that every worker has its share of what is left
for ((w = 0; w < workers && w < ${#rewinds[@]}; w++)); do
  mine=() task=""
  for ((i = w; i < ${#rewinds[@]}; i += workers)); do
    mine+=("${rewinds[i]}")
    task+=${pretraining[${rewinds[i]}]}$'\n'
  done
  add prune imp.py "${data[@]}" ${LEVELS:+--levels "$LEVELS"} ${IMP_FLAGS-} "${mine[@]}"
  tasks+=("$task$line")
done

list_logs() { # NAME COUNT
  for ((i = 0; i < $2; i++)); do echo "   $runs/logs/$1-$i.log"; done
}

plan() {
  echo "# ${#rewinds[@]} IMP runs of $((levels + 1)) trainings (${#finished[@]} finished) in ${#prune[@]} groups," \
    "${#starts[@]} pre-trainings, ${#scored[@]} x EL2N"
  awk -v steps=$steps -v left=$left -v ms="${STEP_MS-}" -v unit="$( ((on_gpus)) && echo GPU || echo CPU)" 'BEGIN {
    printf "# %d training steps, %d of them to do", steps, left
    if (ms != "") printf "; at %s ms each %.2f %s hours", ms, left * ms / 3.6e6, unit
    print ""
  }'
}

# ---------------------------------------------------------------- on a cluster: three jobs, each waits for the one before
job() { # NAME TASK...: the script of an array job; a task is some lines of commands
  local name=$1 i=0 task
  shift
  cat <<EOF
#!/bin/bash
#SBATCH --job-name=$name-$preset-$figure
#SBATCH --array=0-$(($# - 1))${WIDTH:+%$WIDTH}
#SBATCH --output="$runs/logs/$name-%a.log" --open-mode=append
#SBATCH --requeue --signal=B:USR1@120${SBATCH_TIMELIMIT:+ --time=$SBATCH_TIMELIMIT}
EOF
  if [[ $gres && $name != plot ]]; then
    printf '#SBATCH %s\n' "--gres=$gres" "--cpus-per-task=2"
  else
    printf '%s\n' "#SBATCH --cpus-per-task=1" "export OMP_NUM_THREADS=1"
  fi
  cat <<'EOF'

# USR1 comes 120 seconds before the time limit, TERM with scancel and preemption. Bash runs a trap only when no
# foreground command is running, so commands go to the background. On TERM a stage saves and ends with status 143.
order='' child=''
trap 'order=requeue; [[ ! $child ]] || kill "$child"' USR1
trap 'order=leave; [[ ! $child ]] || kill "$child"' TERM
run() {
  echo "\$ $*"
  "$@" &
  child=$!
  [[ ! $order ]] || kill "$child" # the order came between two commands
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a trap ends a wait early
  wait "$child" && return
  status=$?
  echo "status $status from $*"
  [[ $order != requeue || $status != 143 ]] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  exit $status
}
case $SLURM_ARRAY_TASK_ID in
EOF
  for task in "$@"; do
    printf '%s)\n%s\n  ;;\n' $((i++)) "$(sed 's/^/  run /' <<<"$task")"
  done
  echo "esac"
}

submit() { # NAME TASK...: after the job submitted before
  local options=(--parsable ${SBATCH_FLAGS-} ${after:+--dependency="$after" --kill-on-invalid-dep=yes}) id
  if [[ $dry_run ]]; then
    echo "# ---------------- sbatch ${options[*]}"
    job "$@"
    after=afterok:$1
    return
  fi
  id=$(job "$@" | sbatch "${options[@]}")
  after=afterok:${id%%;*} # other clusters: id;cluster
  jobs+=("${id%%;*}")
  echo "== $1: job ${id%%;*}, $(($# - 1)) tasks, logs:"
  list_logs "$1" $(($# - 1))
}

if [[ $launcher == slurm ]]; then
  unset SBATCH_GRES # it is in the scripts that need it; and these would take the place of what is in all of them:
  unset SBATCH_ARRAY_INX SBATCH_JOB_NAME SBATCH_NO_REQUEUE SBATCH_OPEN_MODE SBATCH_OUTPUT SBATCH_SIGNAL
  jobs=() before="" after=""
  [[ $PWD/$runs != *[%\"\\]* ]] || fail "Slurm takes no log path with %, \" or \\ in it: $PWD/$runs"
  if [[ ! $dry_run ]]; then
    type -P sbatch >/dev/null || fail "LAUNCHER=slurm needs sbatch"
    mkdir -p "$runs/logs"
    if [[ -s $runs/logs/jobs ]]; then
      before=$(squeue -h -o %F -j "$(<"$runs/logs/jobs")" 2>/dev/null | sort -u | paste -sd:) || true
      [[ ! $before ]] || { after=afterany:$before; echo "== waits for jobs $before, which work in the same folder"; }
    fi
    trap '[[ ! ${jobs[*]} ]] || scancel "${jobs[@]}"' EXIT # all or none
  fi
  ((${#subsets[@]} == 0)) || submit prepare "$(printf '%s\n' "${scores[@]}" "${subsets[@]}")"
  submit imp "${tasks[@]}"
  submit plot "${draw[@]}"
  plan
  trap - EXIT
  [[ ! $dry_run ]] || exit 0
  tr -s ': ' , <<<"$before ${jobs[*]}" | sed 's/^,//' >"$runs/logs/jobs"
  echo "== squeue --me shows them, scancel ${jobs[*]} stops them"
  exit
fi

# ---------------------------------------------------------------- on this machine: wave after wave
if [[ $dry_run ]]; then
  printf '%s\n' "${scores[@]}" "${subsets[@]}" "${starts[@]}" "${prune[@]}" "${draw[@]}"
  plan
  exit
fi

set -m # every worker is a process group of its own, so that stopping one leaves no orphan
finish() {
  trap '' INT TERM HUP USR1
  trap - EXIT
  running=($(jobs -p))
  # imp.py saves, then ends; again, as the first may have come before a worker listened
  while kill -TERM -- "${running[@]/#/-}" 2>/dev/null; do sleep 0.1; done
  [[ ! -s $runs/logs/failed ]] || { # status, command and log of the first failure
    mapfile -t failed <"$runs/logs/failed"
    printf 'run_all.sh: status %s from\n  %s\nThe end of %s:\n' "${failed[@]}"
    tail -n 5 "${failed[2]}" | sed 's/^/  /'
  } >&2
}
trap finish EXIT
again="run_all.sh: stopped; what is finished is kept, the same line goes on"
trap 'echo "$again" >&2; exit 130' INT
trap 'echo "$again" >&2; exit 143' TERM
trap 'exit 129' HUP
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
  local name=$1 w log pid pids=()
  shift
  (($#)) || return 0
  mkdir -p "$runs/logs"
  rm -f "$runs/logs/failed"
  for ((w = 0; w < workers && w < $#; w++)); do
    log=$runs/logs/$name-$w.log
    work "$w" "$log" "$@" > >(trap '' INT TERM; exec tee -a "$log") 2>&1 &
    pids+=($!)
  done
  echo "== $name: $# commands, $w at a time, logs:"
  list_logs "$name" $w
  for pid in "${pids[@]}"; do wait "$pid"; done # for all of them at once it would tell the status of the last
}

wave score "${scores[@]}"
wave subset "${subsets[@]}"
wave pretrain "${starts[@]}"
wave imp "${prune[@]}"
wave plot "${draw[@]}"
