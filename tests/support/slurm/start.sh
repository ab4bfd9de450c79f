#!/usr/bin/env bash
# A real SLURM of one node in FOLDER, as root, without systemd, cgroups or slurmdbd: start.sh FOLDER
# Installs Debian's packages where they are missing (exit status 77: they cannot be). stop.sh FOLDER ends it.
set -euo pipefail
folder=$(realpath -m "${1:?start.sh FOLDER}")
cpus=16 gpus=2 memory=64000 # all pretended: jobs ask for what real models need
PATH=$PATH:/usr/sbin:/sbin

cannot() {
  echo "no SLURM here: $*" >&2
  exit 77
}

fail() {
  echo "start.sh: $*" >&2
  exit 1
}

until_true() { # until_true SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" &>/dev/null; do [ $SECONDS -lt $end ] && sleep 0.1 || return 1; done
}

installed() { for program in slurmctld slurmd sbatch munged; do command -v $program >/dev/null || return 1; done; }

[ "$(id -u)" = 0 ] || cannot "only root can install and start it"
if ! installed; then
  command -v apt-get >/dev/null || cannot "apt-get is missing, so Debian's slurm-wlm cannot be installed"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null ||
    cannot "apt-get could not install Debian's slurmctld, slurmd, slurm-client and munge"
fi

# Jobs drop SLURM_CONF, so the configuration has to stand where SLURM looks for it.
# The cluster of a test that was killed is ended first; that of a test that still runs is not.
if [ -e /etc/slurm/started_by_test ]; then
  read -r pid other </etc/slurm/started_by_test
  [ -d "/proc/$pid" ] && fail "process $pid uses the cluster in $other; end that one first"
  "$(dirname "$0")/stop.sh" "$other"
fi
if [ -e /etc/slurm/slurm.conf ] || [ -L /etc/slurm/slurm.conf ]; then
  fail "/etc/slurm/slurm.conf is there already, of $(readlink /etc/slurm/slurm.conf || echo a real cluster)"
fi
mkdir -p "$folder" /etc/slurm
host=$(hostname -s)

# slurmd sets CUDA_VISIBLE_DEVICES for character devices only: the pretended GPUs are copies of /dev/null.
for ((i = 0; i < gpus; i++)); do mknod -m 666 "$folder/gpu$i" c 1 3; done
cat >"$folder/gres.conf" <<CONF
AutoDetect=off
Name=gpu File=$folder/gpu[0-$((gpus - 1))]
CONF

# Read at every start of slurmd, even though nothing uses it; without it slurmd looks for a mounted cgroup.
echo CgroupPlugin=cgroup/v1 >"$folder/cgroup.conf"

# Run before every step, in its environment: the record of which job was given which GPU.
cat >"$folder/prolog" <<PROLOG
#!/bin/sh
echo "\$SLURM_JOB_ID \${CUDA_VISIBLE_DEVICES:-none}" >>"$folder/gpus.txt"
PROLOG
chmod +x "$folder/prolog"

cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$folder/prolog
# More CPUs and memory than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
# Without cgroups, memory is looked at every second; what takes more than it asked for is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
# Without slurmdbd, ended jobs are kept where squeue sees them.
AccountingStorageType=accounting_storage/none
MinJobAge=86400
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
JobRequeue=0
# What the node can never run is refused, instead of waiting for ever.
EnforcePartLimits=ALL
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MailProg=/bin/true
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus
# A node cannot be told not to give out its GPUs; which partition a job was sent to is what tests look at.
PartitionName=cpus Nodes=$host Default=YES DefMemPerCPU=500 MaxTime=INFINITE State=UP
PartitionName=gpus Nodes=$host DefMemPerCPU=500 MaxTime=INFINITE State=UP
CONF
mkdir -p "$folder/state" "$folder/spool"
echo "$PPID $folder" >/etc/slurm/started_by_test
for name in slurm gres cgroup; do ln -s "$folder/$name.conf" /etc/slurm/; done
unset SLURM_CONF

# munge of our own, so that one of the machine's is neither needed nor touched.
munge() { command munge -n --socket="$folder/munge.socket" | unmunge --socket="$folder/munge.socket"; }
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" || fail "$(tail -n 3 "$folder/munged.log")"
until_true 10 munge || fail "munge does not answer: $(tail -n 3 "$folder/munged.log")"
slurmctld && slurmd || fail "$(tail -n 5 "$folder"/slurm*.log)"
idle() { timeout 3 sinfo -h -o %T | grep -qx idle; }
until_true 30 idle || fail "the node is '$(timeout 3 sinfo -h -o '%T, %E')': $(tail -n 9 "$folder"/slurm*.log)"
sinfo -h -o "$(sinfo -V): partition %P, %c CPUs, %m MB, %G"
