#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, to test the batch on: real daemons, two GPUs that are not real.
#
#   tests/slurm_cluster.sh start FOLDER    # as root, with Debian's slurm-wlm and munge
#   tests/slurm_cluster.sh stop FOLDER
#
# All files are in FOLDER but for the links to its configuration in /etc/slurm, where Slurm's commands look for it. No
# systemd, no cgroups (so that it works in a container), and only the loopback interface.
set -euo pipefail
export PATH="$PATH:/usr/sbin"
folder=$(realpath -m "$2")

start() {
  if scontrol ping 2> /dev/null | grep -q UP || { [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; }; then
    echo "this machine has a Slurm of its own (/etc/slurm/slurm.conf): leaving it alone" >&2
    exit 1
  fi
  mkdir -p "$folder"/{munge,state,spool}
  chmod 700 "$folder/munge"
  chmod 755 "$folder"
  head -c 128 /dev/urandom > "$folder/munge/key"
  chmod 600 "$folder/munge/key"
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

  node=$(slurmd -C | head -n 1)  # NodeName=<host> CPUs=... RealMemory=...
  name=$(hostname -s)
  cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$((16000 + RANDOM % 8000))
SlurmdPort=$((24000 + RANDOM % 8000))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MinJobAge=3600
ReturnToService=2
MpiDefault=none
GresTypes=gpu
$node NodeAddr=127.0.0.1 Gres=gpu:2
PartitionName=test Nodes=$name Default=YES MaxTime=60 DefMemPerCPU=100
CONF
  printf 'AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n' > "$folder/gres.conf"
  ln -sf "$folder/slurm.conf" "$folder/gres.conf" /etc/slurm/
  slurmctld
  slurmd
  for _ in $(seq 100); do
    if sinfo --noheader --format %T 2> /dev/null | grep -q idle; then return; fi
    sleep 0.1
  done
  echo "the node did not become idle; see $folder/slurmd.log and $folder/slurmctld.log" >&2
  exit 1
}

stop() {
  for daemon in slurmd slurmctld munged; do
    if [ -f "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true; fi
  done
  for link in /etc/slurm/{slurm,gres}.conf; do
    if [ "$(readlink "$link")" = "$folder/$(basename "$link")" ]; then rm "$link"; fi
  done
}

case "$1" in
  start) start ;;
  stop) stop ;;
  *) echo "start or stop, got '$1'" >&2; exit 2 ;;
esac
