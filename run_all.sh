#!/usr/bin/env bash
# The whole experiment: score, choose subsets, pre-train, prune iteratively, draw.
#
#   bash run_all.sh                   the digits demonstration: minutes, no GPU, no network
#   bash run_all.sh PRESET [FIGURE]   cifar10-small, cifar10, cifar100 or cinic10, and one of
#     fig2 (default), fig3, fig5 (and 4), fig6 (and 4, of cinic10), fig7; tstar: how long to
#     pre-train; controls: other starts, and shuffles, under the masks of two curves; stability:
#     figure 2 in a second batch order
#
# This script makes the plan: which commands a figure needs. launch.sh runs it on the cores or GPUs
# of this machine, or on a Slurm cluster: bash launch.sh --help lists JOBS, LAUNCHER and so on.
# Finished work is skipped, so the same line goes on after an interruption or a failure.
#
# From the environment, say:
#   SEEDS="0 1 2 3"  LEVELS=16: replicates and prunings (default: those of the preset)
#   RUNS=runs/PRESET  FIGURES=figures/PRESET[/FIGURE]  PYTHON=python
#   DATA_DIR=data  DATASET=folder: the images
#   T_STAR=400  SIZES="256 512": other pre-training steps and subset sizes, for data of your own
#   NOISE="10 50": percent of random labels, in figures 3 and 7
#   DATA_FLAGS="--image-size 64 --labels labels.npy" for the stages up to pre-training, from which
#   imp.py and connectivity.py know it; FLAGS for score_el2n.py and pretrain.py, SCORE_FLAGS,
#   SUBSET_FLAGS and IMP_FLAGS for one stage
#   JOBS: tasks at a time; with LAUNCHER=slurm, the number of pruning tasks
#   DRY_RUN=1: print the plan, and what it costs in training steps
set -euo pipefail

fail() { echo "run_all.sh: error: $1" >&2; exit 2; }
check() { [[ $2 =~ ^($3)$ ]] || fail "$1 must be $4, not '$2'"; } # NAME VALUE PATTERN WHAT
[[ ${1-} != -h && ${1-} != --help ]] || { sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}"; exit; }
(($# < 3)) || fail "a preset and a figure, not: $*"
preset=${1:-digits} figure=${2:-fig2}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(type -P "${PYTHON:-python}") || fail "PYTHON: there is no ${PYTHON:-python}"
export PYTHON=$python # its path, as a job of Slurm may see another PATH
values=$("$python" "$here/common.py" "$preset") || exit
eval "$values" # t_star=400 subset_size=3200 and so on; what the environment says wins:
seeds=${SEEDS:-$seeds} levels=${LEVELS:-$levels} t_star=${T_STAR:-$t_star}
dataset=${DATASET:-$dataset} data_dir=${DATA_DIR:-data} runs=${RUNS:-runs/$preset}
figures=${FIGURES:-figures/$preset/$figure}
subset_size=${SIZES:-$subset_size} noisy_subset_size=${SIZES:-$noisy_subset_size}
sizes=${SIZES:-$sizes} noisy_sizes=${SIZES:-$noisy_sizes}
whole='(0|[1-9][0-9]{0,8})'
check SEEDS "$seeds" " *$whole( +$whole)* *" "whole numbers with spaces between, no leading zeros"
[[ ! $(printf '%s\n' $seeds | sort | uniq -d) ]] || fail "SEEDS names a seed twice: $seeds"
check SIZES "$sizes" " *$whole( +$whole)* *" "whole numbers with spaces between, no leading zeros"
check NOISE "${NOISE:-10}" ' *[1-9][0-9]?( +[1-9][0-9]?)* *' "whole percents with spaces between"
check LEVELS "$levels" "$whole" "a whole number"
check T_STAR "$t_star" '[1-9][0-9]{0,7}[02468]|[2468]' "even, as subsets are seen half as long"

given() { # FLAG DEFAULT WORD...: the value of a flag in words of the user's, to tell the cost
  local words=" ${*:3} " value=$2
  words=${words//"$1="/"$1 "}
  [[ $words =~ .*\ $1\ ([0-9]+)\  ]] && value=$((10#${BASH_REMATCH[1]})) # the last one counts
  echo "$value"
}
total_steps=$(given --total-steps "$total_steps" ${FLAGS-})
networks=$(given --networks "$networks" ${SCORE_FLAGS-})
el2n_steps=$(given --steps "$el2n_steps" ${FLAGS-} ${SCORE_FLAGS-})
[[ $figure != stability || ${LEVELS-} ]] || LEVELS=0 levels=0 # dense networks
trainings=$((1 + $(given --levels "$levels" ${IMP_FLAGS-})))

# ------------------------------------------------------------ the curves of every figure
plan_figure() {
  local easy=(easy) noise size steps rate folder
  if [[ $preset == *-small || $preset == digits ]]; then
    # The few easiest examples of a small experiment lack classes, so balanced ones are beside them.
    easy+=(easy-balanced)
  fi
  if [[ $dataset != digits ]]; then # the digits are embedded
    stage dataset.py "$dataset" --data-dir "$data_dir" ${DATA_FLAGS-}
    task data cpu 0 "$command"
  fi
  case $preset-$figure in
    digits-fig2)
      panel "$t_star" 0 "$subset_size" random "${easy[@]}" hard
      panel "$t_star" 50 "$noisy_subset_size" random "${easy[@]}" ;;
    *-fig2 | *-stability) panel "$t_star" 0 "$subset_size" random "${easy[@]}" hard ;;
    *-fig3)
      for noise in ${NOISE:-10 50}; do
        panel "$t_star" "$noise" "$noisy_subset_size" random "${easy[@]}"
      done ;;
    digits-fig5 | cifar*-fig5) panel "$t_star" 0 "$sizes" random "${easy[@]}" hard ;;
    cinic10-fig6)
      panel $((t_star / 2)) 0 "${SIZES:-12800 25600 51200}" random easy hard
      panel "$t_star" 0 "$sizes" random easy hard ;;
    c*-fig7) # the panels of figure 3 with more sizes
      for noise in ${NOISE:-10 50}; do
        panel "$t_star" "$noise" "$noisy_sizes" random "${easy[@]}"
      done ;;
    *-tstar) # how long, and at which rate, must pre-training on all data be?
      curve all "" 0
      for steps in $t_search; do
        for rate in $lr_search; do curve all "" "$steps" 0 "$rate"; done
      done ;;
    *-controls)
      curve all "" "$t_star"
      for size in $subset_size; do curve "${easy[-1]}" "$size" $((t_star / 2)); done ;;
    *)
      fail "no figure '$figure' of $preset: fig2, fig3, fig5, fig6 (of cinic10), fig7, tstar,\
 controls, stability" ;;
  esac
  prune_all
  case $figure in
    controls)
      for folder in "${curves[@]}"; do controls "$folder"; done
      for folder in "${curves[@]:1}"; do # an easy start under the masks of all data
        under "$folder" "${curves[0]}" "$folder-under-${curves[0]##*/}"
        task control gpu $cost "$command"
        compare_masks "${curves[0]}" "$folder"
      done ;;
    stability)
      for folder in "${curves[@]}"; do # in a second batch order, under its own masks
        under "$folder" "$folder" "$folder-order1000" --order-seed 1000
        task control gpu $cost "$command"
        compare_orders "$folder"
      done ;;
  esac
  draw
}

panel() { # T_STAR NOISE SIZES SCHEME...: no pre-training, all data, and subsets for half as long
  local size scheme
  curve all "" 0
  curve all "" $(($1 / 2)) "$2"
  curve all "" "$1" "$2"
  for size in $3; do
    for scheme in "${@:4}"; do curve "$scheme" "$size" $(($1 / 2)) "$2"; done
  done
}

compare_orders() { # CURVE: how far the loss rises between networks of two batch orders
  local a=() b=() seed
  for seed in $seeds; do
    a+=("$1/seed$seed") b+=("$1-order1000/seed$seed")
  done
  stage connectivity.py "${a[@]}" --with "${b[@]}" --data-dir "$data_dir" --out "$figures/${1##*/}"
  task connect gpu 0 "$command"
}
compare_masks() { # CURVE CURVE: how alike masks are, of both for each seed, and of their seeds
  local a=() b=() folder one two
  for one in $seeds; do a+=("$1/seed$one") b+=("$2/seed$one"); done
  for folder in "$@"; do
    for one in $seeds; do
      for two in $seeds; do
        if ((one < two)); then
          a+=("$folder/seed$one") b+=("$folder/seed$two")
        fi
      done
    done
  done
  stage connectivity.py "${a[@]}" --with "${b[@]}" --out "$figures/${2##*/}"
  task connect cpu 0 "$command"
}
draw() { # the tables and pictures
  local shown=(--paper "$here/paper_curves.json" --figure "${figure#fig}") first
  case $preset-$figure in
    digits-fig* | *-tstar) shown=() figures=${FIGURES:-figures/$preset} ;; # every panel there is
    *-fig[56]) shown+=(4) ;;
    *-controls) shown=(--figure controls masks) ;;
    *-stability) shown=(--figure barrier) ;;
  esac
  stage verdicts.py "$runs" "${shown[@]}" --out "$figures"
  first=$command
  stage plot.py "$figures"
  task plot cpu 0 "$first" "$command"
}

# ------------------------------------------------------------ from a curve to commands
# Bash functions return text through variables: stage sets command, task adds to tasks, curve and
# choose add to flags, costs, subsets, ids and outs, pretrain sets commands and cost, under sets
# command and cost.
data=(--preset "$preset" ${DATASET:+--dataset "$DATASET"} --data-dir "$data_dir" ${DATA_FLAGS-})
imp=(imp.py --data-dir "$data_dir" ${LEVELS:+--levels "$LEVELS"} ${IMP_FLAGS-})
declare -A tasks=() planned=() # the plan by wave, and which lines are in it
declare -A steps_of=()         # the pre-training steps of a curve, by its folder
curves=()                      # the folders of all curves
# Of every starting point of these curves: the command that makes it, but for subset, seed and
# output; the training steps of all its levels; its subset, seed and output.
flags=() costs=() subsets=() ids=() outs=()

stage() { # SCRIPT ARGUMENT...: a command, quoted for the shell
  printf -v command '%q ' "$python" "$here/$1" "${@:2}"
  command=${command% }
}
task() { # WAVE gpu|cpu STEPS COMMAND...: a line of the plan, only once, as curves share scores
  local line
  printf -v line '%s\t' "$@"
  if [[ ! ${planned[$line]-} ]]; then
    tasks[$1]+=${line%$'\t'}$'\n'
    planned[$line]=yes
  fi
}

curve() { # SCHEME SIZE STEPS [NOISE IN PERCENT [PRE-TRAINING RATE]]: all replicates of a curve
  local scheme=$1 size=$2 steps=$3 noise=${4:-0} rate=${5:-$pretrain_lr} folder seed
  local rate_flag=() noise_flag=() tag="" # choose uses the last two
  if ((noise)); then
    tag=-noise$noise
    noise_flag=(--label-noise "$(printf 0.%02d "$noise")")
  fi
  folder=$runs/$scheme${size:+-$size}-t$steps$tag
  [[ ! ${5-} ]] || rate_flag=(--pretrain-lr "$rate")
  [[ $rate == "$pretrain_lr" ]] || folder+=-lr$rate
  [[ ! ${steps_of[$folder]-} ]] || return 0 # another panel has it, too
  steps_of[$folder]=$steps
  curves+=("$folder")
  stage pretrain.py "${data[@]}" ${FLAGS-} "${rate_flag[@]}" "${noise_flag[@]}" --steps "$steps"
  for seed in $seeds; do
    flags+=("$command")
    costs+=($((steps + trainings * (total_steps - steps))))
    ids+=("$seed")
    outs+=("$folder/seed$seed/rewind.safetensors")
  done
  for seed in $seeds; do choose "$scheme" "$size" "$seed"; done
}
choose() { # SCHEME SIZE SEED: the subset of one starting point, under the noise of its curve
  local file=$runs/subsets/$1-$2$tag scores=$runs/el2n$tag.npy balanced=()
  case $1 in
    all) file="" ;; # no file stands for all examples
    random)
      file+=-seed$3.npy
      stage make_subset.py "${data[@]}" ${SUBSET_FLAGS-} "${noise_flag[@]}" --select random \
        --size "$2" --seed "$3" --out "$file"
      task subset cpu 0 "$command" ;;
    *) # easy and hard examples are the same for every seed
      file+=.npy
      [[ $1 != *-balanced ]] || balanced=(--class-balanced)
      stage score_el2n.py "${data[@]}" ${FLAGS-} ${SCORE_FLAGS-} "${noise_flag[@]}" --out "$scores"
      task score gpu $((networks * el2n_steps)) "$command"
      stage make_subset.py "${data[@]}" ${SUBSET_FLAGS-} --select "${1%-*}" "${balanced[@]}" \
        --size "$2" --scores "$scores" --out "$file"
      task subset cpu 0 "$command" ;;
  esac
  subsets+=("$file")
}

# A task makes starting points and prunes them. On a GPU it takes up to eight, which train side by
# side, and as many on every GPU. On a core it takes one, but all replicates of a curve of digits,
# where a process takes as long to start as to train.
prune_all() {
  local kind slots most=1 starts=${#outs[@]} rounds task_count each i end
  SLOTS=$(bash "$here/launch.sh" --slots) || exit
  export SLOTS # launch.sh need not look again
  read -r kind slots <<<"$SLOTS"
  slots=${JOBS:-$slots}
  [[ $preset != digits ]] || most=$(wc -w <<<"$seeds")
  [[ $kind == cpu ]] || most=8
  rounds=$(((starts + most * slots - 1) / (most * slots))) # how often every slot gets a task
  task_count=$((rounds * slots))
  [[ ${LAUNCHER-} != slurm ]] || task_count=${JOBS:-$task_count}
  each=$(((starts + task_count - 1) / task_count))
  for ((i = 0; i < starts; i += each)); do
    end=$((i + each < starts ? i + each : starts))
    pretrain $i $end
    stage "${imp[@]}" "${outs[@]:i:each}"
    task imp gpu $cost "${commands[@]}" "$command"
  done
}
pretrain() { # FIRST END: the commands and the cost of these starting points, a command for a curve
  local i from=$1 count files words
  commands=() cost=0
  for ((i = $1; i < $2; i++)); do
    cost=$((cost + costs[i]))
    if ((i + 1 < $2)) && [[ ${outs[i]%/*/*} == "${outs[i + 1]%/*/*}" ]]; then
      continue # the next starting point is of the same curve and joins this command
    fi
    count=$((i + 1 - from))
    files=("${subsets[@]:from:count}")
    if [[ ! ${files[0]} ]]; then
      files=() # all training examples
    elif [[ ${files[0]} == "${files[-1]}" ]]; then
      files=(--subset "${files[0]}") # one subset serves every seed
    else
      files=(--subset "${files[@]}")
    fi
    printf -v words ' %q' "${files[@]}" --seed "${ids[@]:from:count}" --out "${outs[@]:from:count}"
    commands+=("${flags[i]}$words")
    from=$((i + 1))
  done
}

under() { # START MASKS OUT [FLAG...]: a curve's starting points under the masks of another curve
  local seed start=() masks=() out=()
  for seed in $seeds; do
    start+=("$1/seed$seed/rewind.safetensors") masks+=("$2/seed$seed") out+=("$3/seed$seed")
  done
  stage "${imp[@]}" "${@:4}" "${start[@]}" --masks "${masks[@]}" --out "${out[@]}"
  cost=$((${#out[@]} * trainings * (total_steps - ${steps_of[$1]:-0})))
}
new_weights() { # FOLDER: new w_0 in it, of the first numbers from 1000 + seed on not in SEEDS
  local seed new used=" $seeds " new_seeds=() files=()
  for seed in $seeds; do
    new=$((1000 + seed))
    while [[ $used == *" $new "* ]]; do new=$((new + 1)); done
    used+="$new "
    new_seeds+=("$new")
    files+=("$1/seed$seed/rewind.safetensors")
  done
  stage pretrain.py "${data[@]}" ${FLAGS-} --steps 0 --seed "${new_seeds[@]}" --out "${files[@]}"
}
controls() { # CURVE: new weights under its masks, and its own under its masks shuffled
  new_weights "$1-reinit"
  local first=$command
  under "$1-reinit" "$1" "$1-reinit"
  task control gpu $cost "$first" "$command"
  under "$1" "$1" "$1-shuffled" --shuffle-masks
  task control gpu $cost "$command"
}

plan_figure
echo "# $preset $figure: ${#outs[@]} starting points of $trainings trainings; seeds $seeds"
plan=""
for wave in data score subset imp control connect plot; do plan+=${tasks[$wave]-}; done
exec bash "$here/launch.sh" "$runs/logs" "$preset-$figure" <<<"$plan"
