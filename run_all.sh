#!/usr/bin/env bash
# The whole experiment: score, choose subsets, pre-train, prune iteratively, draw. Needs bash 4.4, GNU's xargs and flock.
#
#   bash run_all.sh                   the digits demonstration: minutes on a laptop, no GPU, no network
#   bash run_all.sh PRESET [FIGURE]   cifar10-small, cifar10, cifar100 or cinic10; fig2 (default), fig3, fig5 (and 4),
#     fig6 (of cinic10, and 4), fig7; tstar: how long to pre-train; controls: other starts, and shuffles, under the
#     masks of two curves; stability: figure 2 in a second batch order
#
# Finished work is skipped, so after an interruption or a failure the same line goes on. From the environment, say:
#   SEEDS="0 1 2 3"  LEVELS=16  DATA_DIR=data  DATASET=folder  RUNS=runs/PRESET  FIGURES=figures/PRESET[/FIGURE]
#   FLAGS (for score_el2n.py and pretrain.py)  SCORE_FLAGS  IMP_FLAGS  PYTHON=python
#   T_STAR=400  SIZES="256 512": other pre-training steps and subset sizes than the preset's, for data of your own
#   NOISE="10 50": percent of random labels, of figures 3 and 7
#   JOBS: tasks at a time (one a GPU, else one a core); with Slurm, their number (one for 8 runs on GPUs, else for each)
#   LAUNCHER=slurm: submit array jobs and return. WIDTH: tasks at a time. SBATCH_PARTITION, SBATCH_TIMELIMIT and so on
#     are sbatch's own; SBATCH_GRES=gpu:a100:1 (default: gpu:1 if the partition lists GPUs); SBATCH_FLAGS: more options
#   DRY_RUN=1: print the commands, and what they cost in training steps
set -euo pipefail

# ---------------------------------------------------------------- one task: xargs and Slurm start this script for each
# Bash runs a trap only when no command is in the foreground, so a stage is a background job that is waited for. On TERM
# (Ctrl-C here; scancel and preemption) it saves and ends with status 143. USR1 comes from Slurm 120 seconds before the
# time limit: the same, then back into the queue, which Slurm's --requeue does not do then.
if [[ ${1-} == --task ]]; then # LIST [INDEX]: a task is a line, commands with tabs between
  set +e
  index=${3-$SLURM_ARRAY_TASK_ID} log=${2%.list}-${3-$SLURM_ARRAY_TASK_ID}.log order="" child="" lost=()
  IFS=$'\t' read -ra commands < <(sed -n "$((index + 1))p" "$2")
  if [[ ${3-} ]]; then # xargs
    exec 3>&1 >"$log" 2>&1
    [[ ! $gpus ]] || { read -ra devices <<<"$gpus"; export CUDA_VISIBLE_DEVICES=${devices[SLOT % ${#devices[@]}]}; }
  fi # without a GPU one thread: numbers do not depend on how many cores there are
  [[ ${CUDA_VISIBLE_DEVICES:--1} != -1 ]] || export OMP_NUM_THREADS=1
  trap 'order=leave; [[ ! $child ]] || kill "$child"' TERM
  trap 'order=requeue; [[ ! $child ]] || kill "$child"' USR1
  for command in "${commands[@]}"; do
    for rewind in "${lost[@]}"; do command=${command/ "$rewind"/}; done # goes on without what failed
    ((${#lost[@]} == 0 || ${#lost[@]} < ${#commands[@]} - 1)) || break # no starting point is left to prune
    echo "\$ $command"
    eval "exec $command" &
    child=$!
    [[ ! $order ]] || kill "$child" # the order came between two commands
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a trap ends a wait early
    wait "$child" && continue
    status=$?
    [[ $order != requeue || $status != 143 ]] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$index"
    [[ ! $order ]] || exit $status
    lost+=("${command##* --out }")
    printf 'status %s from %s\n%s\n%s\n\n' $status "$command" "$log:" "$(tail -n 5 "$log" | sed '/^\$ /d; s/^/  /')" \
      >>"${2%/*}/failed"
  done
  [[ ! ${3-} ]] || { # one after another, as tasks may end together
    flock 9 && echo >&9
    echo "== $(basename "$2" .list): $(wc -l <"$2.done") of $(wc -l <"$2") done after" \
      "$((($(date +%s) - started) / 60)) minutes${lost:+, failed: $log}" >&3
  } 9>>"$2.done"
  exit $((${#lost[@]} > 0)) # never 255, at which xargs stops
fi

fail() { echo "run_all.sh: error: $1" >&2; exit 2; }
check() { [[ $2 =~ ^($3)$ ]] || fail "$1 must be $4, not '$2'"; } # NAME VALUE PATTERN WHAT
[[ ${1-} != -h && ${1-} != --help ]] || { sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}"; exit; }
(($# < 3)) || fail "a preset and a figure, not: $*"
preset=${1:-digits} figure=${2:-fig2} runs=${RUNS:-runs/${1:-digits}} launcher=${LAUNCHER:-local} dry_run=${DRY_RUN-}
levels=16 total=62400 networks=10 el2n=7800 seeds="0 1 2 3" # as in common.py, to tell the cost
noisy=2048 search="100 200 400 800 1600" rates="0.1 0.2 0.4" # size under label noise; where tstar looks
case $preset in
  digits) t=20 rate=0.5 size=256 sizes="64 128 256 512" levels=5 total=320 networks=8 el2n=100 seeds="4 5 6 7"
    noisy=$size search="4 10 20 40" rates=$rate ;;
  cifar10-small) t=100 rate=0.3 size=3200 sizes=3200 levels=5 total=1500 networks=4 el2n=1500 seeds="0 1 2 3 4 5"
    noisy=$size search="50 100 200 400" rates=$rate ;;
  cifar10)  t=400 rate=0.4 size=3200  sizes="256 512 1024 2048 3200 6400 12800 25600" ;;
  cifar100) t=800 rate=0.4 size=2048  sizes="256 512 1024 2048 3200 6400" ;;
  cinic10)  t=800 rate=0.1 size=51200 sizes="12800 25600 51200 102400" levels=12 total=31250 el2n=8000 ;;
  *) fail "no preset '$preset': digits, cifar10-small, cifar10, cifar100 or cinic10" ;;
esac
seeds=${SEEDS:-$seeds} size=${SIZES:-$size} sizes=${SIZES:-$sizes} t=${T_STAR:-$t}
for name in seeds sizes; do check "${name^^}" "${!name}" ' *[0-9]+( +[0-9]+)* *' "numbers with spaces between"; done
for name in WIDTH JOBS; do check $name "${!name:-1}" '[1-9][0-9]{0,8}' "a whole number from 1 on"; done
check NOISE "${NOISE:-10}" ' *[1-9][0-9]?( +[1-9][0-9]?)* *' "whole percents with spaces between"
check LEVELS "${LEVELS:-0}" '0|[1-9][0-9]{0,8}' "a whole number"
check T_STAR "$t" '[1-9][0-9]{0,7}[02468]|[2468]' "even and above 0, as subsets are seen for half as many steps"
check LAUNCHER "$launcher" 'local|slurm' "local or slurm"
dry_run=${dry_run#0} here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(type -P "${PYTHON:-python}") || fail "PYTHON: no ${PYTHON:-python} here" # its path: a job may see another PATH

# ---------------------------------------------------------------- what to run: lines of "WAVE COMMAND"
add() { printf %s "$1"; printf ' %q' "$python" "$here/$2" "${@:3}"; echo; } # WAVE STAGE ARGUMENT...

setting() { # SCHEME SIZE STEPS [NOISE IN PERCENT [PRETRAINING RATE]]: one curve, all its replicates
  local scheme=$1 size=$2 tag="" label=() own=() how=() a=() b=() seed folder scored file="" first=""
  local data=(--preset "$preset" ${DATASET:+--dataset "$DATASET"} --data-dir "${DATA_DIR:-data}")
  ((${4:-0} == 0)) || { tag=-noise$4 label=(--label-noise "$(printf 0.%02d "$4")"); }
  folder=$runs/$scheme${size:+-$size}-t$3$tag scored=$runs/el2n$tag.npy
  [[ ! ${5-} ]] || { own=(--pretrain-lr "$5"); [[ $5 == "$rate" ]] || folder+=-lr$5; } # the preset's needs no name
  for seed in $seeds; do
    case $scheme in
      random) file=$runs/subsets/random-$size$tag-seed$seed.npy
        add subset make_subset.py "${data[@]}" "${label[@]}" --select random --size $size --seed $seed --out "$file" ;;
      easy* | hard) file=$runs/subsets/$scheme-$size$tag.npy
        [[ $scheme != *-balanced ]] || how=(--class-balanced)
        add score score_el2n.py "${data[@]}" ${FLAGS-} ${SCORE_FLAGS-} "${label[@]}" --out "$scored"
        add subset make_subset.py "${data[@]}" --select "${scheme%-*}" "${how[@]}" --size "$size" \
          --scores "$scored" --out "$file" ;;
    esac
    add start pretrain.py "${data[@]}" ${FLAGS-} "${own[@]}" ${file:+--subset "$file"} "${label[@]}" \
      --steps "$3" --seed "$seed" --out "$folder/seed$seed/rewind.safetensors"
    [[ $figure != controls ]] || first+="$(add "" pretrain.py "${data[@]}" ${FLAGS-} --steps 0 \
      --seed $((1000 + seed)) --out "$folder-reinit/seed$seed/rewind.safetensors")"$'\t'
  done
  case $figure in
    controls) FIRST=$first under "$folder-reinit" "$folder" "$folder-reinit" # another w_0 for every replicate
      under "$folder" "$folder" "$folder-shuffled" --shuffle-masks ;;
    stability) under "$folder" "$folder" "$folder-order1000" --order-seed 1000 # no replicate's own order
      for seed in $seeds; do a+=("$folder/seed$seed") b+=("$folder-order1000/seed$seed"); done
      add connect connectivity.py "${a[@]}" --with "${b[@]}" --data-dir "${DATA_DIR:-data}" --out "$out/${folder##*/}" ;;
  esac
}
under() { # START MASKS OUT [FLAG...]: the starting points in a folder under the masks of the finished runs in another
  local starts=() masks=() outs=() seed
  for seed in $seeds; do
    starts+=("$1/seed$seed/rewind.safetensors") masks+=("$2/seed$seed") outs+=("$3/seed$seed")
  done
  add "control${FIRST-}" imp.py "${imp[@]}" "${@:4}" "${starts[@]}" --masks "${masks[@]}" --out "${outs[@]}"
}
masks() { # FOLDER FOLDER: how alike masks are, of two settings of each seed and of two seeds of each setting
  local a=() b=() folder one two
  for one in $seeds; do a+=("$1/seed$one") b+=("$2/seed$one"); done
  for folder in "$@"; do for one in $seeds; do for two in $seeds; do
    ((10#$one >= 10#$two)) || { a+=("$folder/seed$one"); b+=("$folder/seed$two"); }
  done; done; done
  add connect connectivity.py "${a[@]}" --with "${b[@]}" --out "$out/${2##*/}"
}
family() { # T SCHEMES SIZES [NOISE]: no pre-training, all data for T/2 and for T steps, subsets for T/2 steps
  local scheme size steps
  setting all "" 0
  for steps in $(($1 / 2)) "$1"; do setting all "" "$steps" "${4-}"; done # level 0 of T is the dense network
  for size in $3; do for scheme in $2; do setting "$scheme" "$size" $(($1 / 2)) "${4-}"; done; done
}
plan() { # the figures
  local schemes="random easy" easy=easy half=$((t / 2)) shown=(--paper "$here/paper_curves.json" --figure "${figure#fig}")
  local out=${FIGURES:-figures/$preset/$figure} noise r steps
  [[ $preset != *-small && $preset != digits ]] || schemes+=" easy-balanced" easy=easy-balanced # few examples lack classes
  case $preset-$figure in
    digits-fig2) family "$t" "$schemes hard" "$size"; family "$t" "$schemes" "$size" 50 ;;
    *-fig2) family "$t" "$schemes hard" "$size" ;;
    digits-fig5 | cifar*-fig5) family "$t" "$schemes hard" "$sizes" ;;
    cinic10-fig6) family $((t / 2)) "$schemes hard" "${SIZES:-12800 25600 51200}"; family "$t" "$schemes hard" "$sizes" ;;
    *-fig3) for noise in ${NOISE:-10 50}; do family "$t" "$schemes" "${SIZES:-$noisy}" $noise; done ;; # of figure 7
    c*-fig7) for noise in ${NOISE:-10 50}; do family "$t" "$schemes" "${SIZES:-512 1024 2048 3200}" $noise; done ;;
    *-tstar) setting all "" 0 # how long, and at which rate, must pre-training on all data be?
      for steps in $search; do for r in $rates; do setting all "" $steps 0 $r; done; done ;;
    *-stability) family "$t" "$schemes hard" "$size"; shown=(--figure barrier) ;;
    *-controls) setting all "" "$t"; shown=(--figure controls masks)
      for size in $size; do setting $easy $size $half; masks "$runs/all-t$t" "$runs/$easy-$size-t$half"
        under "$runs/$easy-$size-t$half" "$runs/all-t$t" "$runs/$easy-$size-t$half-under-all-t$t"; done ;;
    *) fail "no figure '$figure' of $preset: fig2, fig3, fig5, fig6 (of cinic10), fig7, tstar, controls, stability" ;;
  esac
  [[ $figure != fig[56] ]] || shown+=(4)
  [[ $preset-$figure != digits-fig* && $figure != tstar ]] || shown=() # every panel there is
  [[ ${shown-} ]] || out=${FIGURES:-figures/$preset}
  add plot verdicts.py "$runs" "${shown[@]}" --out "$out"
  add plot plot.py "$out"
}
[[ $figure != stability ]] || LEVELS=${LEVELS:-0} # dense
imp=(--data-dir "${DATA_DIR:-data}" ${LEVELS:+--levels "$LEVELS"} ${IMP_FLAGS-})
plan=$(plan | awk '!seen[$0]++') # settings share scores, subsets and baselines
for name in score subset start control connect plot; do mapfile -t "${name}s" < <(sed -n "s/^$name //p" <<<"$plan"); done
plots=("$(printf '%s\t' "${plots[0]}" "${connects[@]}")${plots[1]}") # one task: tables, pairs of runs, pictures

# ---------------------------------------------------------------- where: GPUs or cores of this machine, or a cluster
gpus="" gres="" slots=1 each=1 steps=0 tasks=()
if [[ $launcher == local ]]; then
  gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
  gpus=$(tr , '\n' <<<"$gpus" | grep -E '^ *([0-9]|GPU-|MIG-)' | xargs) || true
  slots=${JOBS:-$(if [[ $gpus ]]; then wc -w <<<"$gpus"; else env -u OMP_NUM_THREADS nproc; fi)}
else
  gres=$(sinfo -h -o '%P %G' ${SBATCH_PARTITION:+-p "$SBATCH_PARTITION"} 2>/dev/null) || true
  [[ ${SBATCH_PARTITION-} ]] || gres=$(grep -F '* ' <<<"$gres") || true # of the default partition
  gres=${SBATCH_GRES-$([[ $gres != *gpu* ]] || echo gpu:1)}
fi
[[ $preset != digits ]] || each=$(wc -w <<<"$seeds") # a process spends seconds importing torch, and as many training
[[ ! $gpus$gres ]] || each=8 # side by side
count=$(((${#starts[@]} + each * slots - 1) / (each * slots) * slots)) # as many for every slot
[[ $launcher == local ]] || count=${JOBS:-$count}
each=$(((${#starts[@]} + count - 1) / count)) rewinds=("${starts[@]##* --out }")
prune=$(add "" imp.py "${imp[@]}")
for ((i = 0; i < ${#starts[@]}; i += each)); do
  tasks+=("$(printf '%s\t' "${starts[@]:i:each}")${prune# } ${rewinds[*]:i:each}")
done
flag() { if [[ $1 =~ .*\ $2[=\ ]([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo "$3"; fi; } # WORDS NAME DEFAULT
trainings=$((1 + $(flag "$prune" --levels $levels))) total=$(flag "${starts[0]}" --total-steps $total)
for x in "${scores[@]}"; do steps=$((steps + $(flag "$x" --networks $networks) * $(flag "$x" --steps $el2n))); done
for x in "${starts[@]}"; do t=$(flag "$x" --steps 0) steps=$((steps + t + trainings * (total - t))); done
again=$((${#controls[@]} * $(wc -w <<<"$seeds"))) steps=$((steps + again * trainings * total)) # at most
echo "# ${#scores[@]} x EL2N, $((${#starts[@]} + again)) runs of $trainings trainings in" \
  "$((${#tasks[@]} + ${#controls[@]})) tasks: $steps training steps"

# ---------------------------------------------------------------- waves: each waits for the one before
logs=$runs/logs/$(date +%Y%m%d-%H%M%S)-$$ jobs=() before="" after="" # a folder of this call alone
wave() { # NAME TASK...
  local name=$1 list=$logs/$1.list gpu="" options id
  shift
  (($#)) || return 0
  [[ $name-$figure != @(score|imp|control|plot-stability)* ]] || gpu=$gres
  options=(--job-name="$name-$preset-$figure" --array="0-$(($# - 1))${WIDTH:+%$WIDTH}" --output="$logs/$name-%a.log"
    --open-mode=append --requeue --signal=B:USR1@120 ${after:+--dependency="$after"}
    ${gpu:+--gres="$gpu" --cpus-per-task=2} ${SBATCH_FLAGS-}) # they win over SBATCH_* variables
  [[ $launcher == local ]] || echo "# sbatch ${options[*]}"
  [[ ! $dry_run ]] || { printf '%s\n' "${@//$'\t'/$'\n'}"; return; }
  echo "== $name: $# to do, logs: $logs/$name-*.log"
  printf '%s\n' "$@" >"$list"
  if [[ $launcher == slurm ]]; then # sbatch takes a copy of this script, and the list is nobody else's
    id=$(sbatch --parsable "${options[@]}" "$here/run_all.sh" --task "$list")
    jobs+=("${id%%;*}") after=afterany:${id%%;*} # other clusters: id;cluster. A task that fails ends alone
    return
  fi
  # xargs leaves its children when it is stopped; but cat ends after the last of them, as all hold its pipe
  seq 0 $(($# - 1)) | xargs -n 1 -P "$slots" --process-slot-var=SLOT bash "$here/run_all.sh" --task "$list" |
    (trap '' TERM; cat) &
  wait $! || touch "$logs/failed"
}
stop() { # STATUS: again and again TERM, as the first may come before a process listens; stages heed the first they see
  echo "run_all.sh: stopped; what is finished is kept, the same line goes on" >&2
  trap '' HUP INT TERM; exec 2>/dev/null # nothing about jobs
  while kill -TERM -- "-$(jobs -p)" && kill -0 $!; do sleep 0.1; done
  exit "$1"
}
trap 'stop 129' HUP; trap 'stop 130' INT; trap 'stop 143' TERM
export gpus started="$(date +%s)"
set -m # a wave is a process group of its own, which can be stopped as one
if [[ $launcher == slurm ]]; then
  [[ $PWD/$runs != *[%\\]* ]] || fail "RUNS: Slurm takes no log path with % or \\ in it: $PWD/$runs"
  [[ $dry_run ]] || type -P sbatch >/dev/null || fail "LAUNCHER=slurm needs sbatch"
  before=$({ squeue -h -o %F -j "$(cat "$runs/logs/jobs" || echo 0)" | sort -u | paste -sd:; } 2>/dev/null) || true
  [[ ! $before ]] || { after=afterany:$before; echo "== waits for jobs $before, which work in the same folder"; }
  unset SBATCH_GRES # it is an option of the waves that need it
  trap '(($? == 0)) || [[ ! ${jobs[*]} ]] || scancel "${jobs[@]}"' EXIT # all or none
fi
[[ $dry_run ]] || mkdir -p "$logs"
wave score "${scores[@]}"
wave subset "${subsets[@]}"
wave imp "${tasks[@]}"
wave control "${controls[@]}"
wave plot "${plots[@]}"
[[ ! $dry_run ]] || exit 0
if [[ $launcher == slurm ]]; then
  tr -s ': ' , <<<"$before ${jobs[*]}" | sed 's/^,//' >"$runs/logs/jobs"
  echo "== squeue --me shows them, scancel ${jobs[*]} stops them"
  exit
fi
sed '/^\$ /d' "$logs/plot-0.log"
[[ -e $logs/failed ]] || exit 0
{ head -n 60 "$logs/failed"; echo "run_all.sh: what failed is in $logs/failed; the same line tries it again"; } >&2
exit 1
