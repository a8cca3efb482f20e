#!/usr/bin/env bash
# A Slurm cluster of this one machine, for the tests (Debian: slurm-wlm and munge).
#
#   bash tests/slurm_cluster.sh start FOLDER [0, 1 or 2 GPUS] && export SLURM_CONF=FOLDER/slurm.conf
#   bash tests/slurm_cluster.sh stop FOLDER
#
# FOLDER gets the configuration, logs and state. Two CPUs, two partitions: `main`, and `urgent`, whose jobs preempt
# those of `main` by requeueing them; arrays of at most 16 tasks; no accounting. GPUS are GRES with nothing behind them.
set -euo pipefail
action=$1 dir=$(realpath -m "$2") gpus=${3:-0}
PATH=$PATH:/usr/sbin:/sbin

free_port() { # asks the kernel; the small race is a test's to take
  python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
}

case $action in
  start)
    mkdir -p "$dir"/{state,spool}
    chmod 755 "$dir" # munge wants no part of its path writable by others
    dd if=/dev/urandom of="$dir/munge.key" bs=1k count=1 status=none
    chmod 600 "$dir/munge.key"
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
      --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    host=$(hostname -s) user=$(id -un)
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=3600
MaxArraySize=16
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
$( ((gpus)) && echo GresTypes=gpu)
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN $( ((gpus)) && echo Gres=gpu:$gpus)
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
    devices=(/dev/null /dev/zero) # any do
    for ((i = 0; i < gpus; i++)); do echo "NodeName=$host Name=gpu File=${devices[i]}"; done >"$dir/gres.conf"
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N "$host"
    for ((i = 0; i < 300; i++)); do
      [[ $(sinfo -h -p main -o %T 2>/dev/null) == idle ]] && exit 0
      sleep 0.1
    done
    echo "slurm_cluster.sh: the node did not come up" >&2
    tail -n 20 "$dir"/*.log >&2
    exit 1
    ;;
  stop)
    for daemon in slurmd slurmctld munged; do
      [[ ! -s $dir/$daemon.pid ]] || kill "$(<"$dir/$daemon.pid")" 2>/dev/null || true
    done
    ;;
esac
