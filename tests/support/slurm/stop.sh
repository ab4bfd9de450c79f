#!/usr/bin/env bash
# Ends what start.sh began in FOLDER: its jobs, its daemons, its links in /etc/slurm. Logs stay: stop.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?stop.sh FOLDER}")
unset SLURM_CONF

ours() { [ "$(readlink /etc/slurm/slurm.conf)" = "$folder/slurm.conf" ]; }

none_left() { [ -z "$(timeout 10 squeue -h)" ]; }

if ours && timeout 5 scontrol ping >/dev/null; then
  timeout 10 scancel --user="$(id -un)"
  for ((i = 0; i < 150; i++)); do none_left && break || sleep 0.1; done
fi
for name in slurmd slurmctld munged; do
  pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] || continue
  kill "$pid"
  for ((i = 0; i < 100; i++)); do [ -d "/proc/$pid" ] && sleep 0.1 || break; done
  [ ! -d "/proc/$pid" ] || kill -9 "$pid"
done
if ours; then rm /etc/slurm/{slurm,gres,cgroup}.conf /etc/slurm/started_by_test; fi
