#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
#
# Train under a real Slurm of one node, which lives in a temporary folder: to the end by srun, with
# --pty into a file, as two steps of one job, and by the batch script of docs/scaling.md, which is
# stopped before its time limit, requeued, resumed and cancelled. It takes eight to ten minutes on two busy
# cores, and .ci/run leaves it out. At a load of nine, two steps at once may lose a process.
#
#     tests/launchers/slurm.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$root/.venv/bin/python}

missing=
[ "$(id -u)" = 0 ] || missing=" root"
for name in munged slurmctld slurmd srun; do
  command -v $name >/dev/null || missing="$missing $name"
done
if [ -n "$missing" ]; then
  echo "tests/launchers/slurm.sh needs root and Debian's slurm-wlm and munge; absent:$missing" >&2
  exit 2
fi

folder=$(mktemp -d)
chmod 755 "$folder" # munged refuses others
running() { [ -n "$(squeue --noheader 2>/dev/null)" ]; }

clean_up() {
  local code=$?
  if [ $code != 0 ]; then tail -n 40 "$folder"/slurm*.log "$folder"/*.out "$folder"/*.err 2>/dev/null || true; fi
  scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 20); do running && sleep 0.5 || break; done
  for name in slurmd slurmctld munged; do
    if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" || true; fi
  done
  for _ in $(seq 20); do ls "$folder"/*.pid >/dev/null 2>&1 && sleep 0.5 || break; done
  rm -rf "$folder"
}
trap clean_up EXIT

# Ports that are free now. JAX's port follows from the number of a job, which begins at 1.
read -r controller node <<<"$("$python" - <<'PY'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PY
)"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$controller
SlurmdPort=$node
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
echo CgroupPlugin=autodetect >"$folder/cgroup.conf"
mkdir "$folder/state" "$folder/spool"
(umask 077 && head -c 64 /dev/urandom >"$folder/munge.key")
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -N localhost
for _ in $(seq 40); do sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break || sleep 0.5; done
echo "$(srun --version), $("$python" -c 'import jax; print("jax", jax.__version__)')"

cd "$root"
export PYTHONPATH=$root:$root/tests JAX_NUM_CPU_DEVICES=2 JAX_PLATFORMS=cpu PQT_JAX_WAIT=60
export JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_COMPILATION_CACHE_DIR=$folder/cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 PATH=$folder/bin:$PATH
mkdir "$folder/bin"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$(realpath --no-symlinks "$python")" >"$folder/bin/python"
chmod +x "$folder/bin/python"
"$python" -c "import pathlib; from support import tiny; tiny.write_text(pathlib.Path('$folder/text.txt'))"
given=(--config tests/support/tiny.py --config.data.files="$folder/text.txt" --config.mesh.data=0 --config.mesh.fsdp=2)

fail() {
  echo "failed: $*" >&2
  exit 1
}
has() { # FILE TEXT...: a file has these texts
  local text file=$1
  for text in "${@:2}"; do grep -q -- "$text" "$file" || fail "no '$text' in $file"; done
}
is_plain() { # a log of one process, without a progress bar
  ! grep -q $'\x1b' "$1" || fail "escape sequences in $1"
  [ "$(grep -c "^step=$2 loss" "$1")" = 1 ] || fail "not one line of step $2 in $1"
}
wait_for() { # SECONDS FILE TEXT
  local end=$((SECONDS + $1))
  until grep -q -- "$3" "$2" 2>/dev/null; do
    [ $SECONDS -lt $end ] || fail "no '$3' in $2 after $1 s"
    sleep 1
  done
}

train=(python -m pqt_jax.train "${given[@]}" --distributed)

echo "srun: a run to its end, and the same command again"
run=(srun --ntasks=2 "${train[@]}" --workdir="$folder/run" --config.steps=8)
"${run[@]}" >"$folder/first.out" 2>"$folder/first.err"
has "$folder/first.out" "^mesh: .*2 processes" "^learned mixed bits"
is_plain "$folder/first.out" 8
[ ! -s "$folder/first.err" ] || fail "$(cat "$folder/first.err")"
[ -d "$folder/run/checkpoints/8" ] || fail "no checkpoint"
"${run[@]}" >"$folder/again.out" 2>&1
has "$folder/again.out" "finished: all 8 steps are done"

echo "srun --pty into a file: lines, although each task has a terminal"
srun --pty --ntasks=2 "${train[@]}" --workdir="$folder/pty" --config.steps=8 >"$folder/pty.out" 2>&1 </dev/null
is_plain "$folder/pty.out" 8

echo "srun: a second step of a job beside the first"
cat >"$folder/steps.sh" <<'JOB'
#!/bin/bash
srun --overlap --ntasks=2 "$@" --config.steps=400 --workdir="$FOLDER/one" >"$FOLDER/one.out" 2>&1 &
until grep -qs "^step=2 loss" "$FOLDER/one.out"; do kill -0 $! || exit 1; sleep 1; done
srun --overlap --ntasks=2 "$@" --config.steps=8 --workdir="$FOLDER/two" >"$FOLDER/two.out" 2>&1 || exit 2
wait $! || exit 3
JOB
FOLDER=$folder sbatch --quiet --wait --ntasks=2 --output="$folder/steps.out" "$folder/steps.sh" "${train[@]}" \
  --config.log.validate_every=1000 --config.log.checkpoint_every=1000 || fail "two steps of a job, by code $?"
has "$folder/one.out" "^learned mixed bits"
has "$folder/two.out" "^learned mixed bits"

echo "sbatch: stopped a minute before its time limit, requeued, resumed, cancelled"
sed -n '/^#!\/bin\/bash$/,/^```$/p' docs/scaling.md | grep -v '^```$' >"$folder/train.sbatch"
job=$(sbatch --parsable --ntasks=2 --time=4 --signal=TERM@60 --output="$folder/batch.out" "$folder/train.sbatch" \
  "${given[@]}" --workdir="$folder/batch" --config.steps=100000 --config.log.every=100 \
  --config.log.validate_every=100000 --config.log.checkpoint_every=100000)
wait_for 300 "$folder/batch.out" "^stopped at step .* of 100000"
step=$(sed -n 's/^stopped at step \([0-9]*\) .*/\1/p' "$folder/batch.out")
wait_for 180 "$folder/batch.out" "^resumed from step $step of 100000"
wait_for 120 "$folder/batch.out" "^step=$(((step / 100 + 1) * 100)) loss"
scancel "$job"
for _ in $(seq 60); do running && sleep 0.5 || break; done
[ "$(grep -c '^stopped at step' "$folder/batch.out")" = 2 ] || fail "not stopped by scancel"
scontrol show job "$job" | grep -q "JobState=CANCELLED .*" || fail "requeued after scancel"
is_plain "$folder/batch.out" "$(((step / 100 + 1) * 100))"
echo "passed in $SECONDS s"
