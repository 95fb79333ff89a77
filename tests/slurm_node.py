"""A SLURM of one node, on this machine, for the length of a test."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"  # not everyone's PATH has the daemons' folder

# The addresses are given because the host's name may lead nowhere, or to another address than this machine has.
# A requeued job may start when its old credential has expired; five seconds is the least that slurmd accepts.
# The node has the CPUs and the memory that are written here, whatever the machine has (config_overrides). Memory is
# checked against RealMemory but not shared out (CR_Core): whether two jobs run at once depends on their CPUs alone.
CONF = """\
ClusterName=test{ctld_port}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
AuthInfo=socket={short}/munge,cred_expire=5
SlurmUser={uid}
SlurmdUser={uid}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={short}/spool
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MaxArraySize={max_array_size}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=65536
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def install():
    """Install SLURM and munge where they are missing and that is possible; return None, or why there is no SLURM."""
    if not missing():
        return None
    command = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
    if not shutil.which("apt-get"):
        return "SLURM is not installed, and there is no apt-get here: install slurmctld, slurmd, sbatch and munged"
    if os.geteuid() != 0:
        return "SLURM is not installed, and only root can install it: " + command
    # at this runlevel Debian's packages start no service
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True)
    for step in ["apt-get update", command]:
        try:
            subprocess.run(step.split(), env=env, timeout=300, check=True, **quiet)
        except subprocess.TimeoutExpired:
            return "SLURM is not installed, and this takes more than five minutes: " + step
        except subprocess.CalledProcessError as error:
            return f"SLURM is not installed, and this fails: {step} ({' '.join(error.stderr.split())[-300:]})"
    return f"{' and '.join(missing())} cannot be found, even after {command}" if missing() else None


def missing():
    return [name for name in ["munged", "slurmctld", "slurmd", "sbatch"] if not shutil.which(name, path=PATH)]


def kill_jobs(conf, names=()):
    """Kill what jobs have started, even what left its job's process tree, and the programs of those `names`."""
    found = False
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is someone else's
            env = (process / "environ").read_bytes().split(b"\0")
            job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in env)
            if f"SLURM_CONF={conf}".encode() in env and (job or (process / "comm").read_text().strip() in names):
                os.kill(int(process.name), signal.SIGKILL)
                found = True
    return found


@contextlib.contextmanager
def slurm(folder, cpus=2, max_array_size=1001):
    """Run SLURM with its files in `folder`; the value is the environment that sbatch, squeue and scontrol need."""
    if missing():
        raise RuntimeError(f"{' and '.join(missing())} cannot be found; install() may help")
    folder = Path(folder).resolve()
    (folder / "state").mkdir(parents=True)
    conf, key, daemons = folder / "slurm.conf", folder / "munge.key", {}
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    env = {"PATH": PATH, "SLURM_CONF": str(conf)}  # and nothing of a SLURM job that the test itself may run in

    def run(command):
        return subprocess.run(command.split(), env=env, capture_output=True, text=True, timeout=60).stdout.strip()

    def start(command, ready):
        name, end = command.split()[0], time.monotonic() + 60
        with (folder / f"{name}.log").open("w") as log:
            out = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            # a session of its own: control-C must reach only the test, which then stops the daemons in order
            daemons[name] = subprocess.Popen(command.split(), cwd="/", env=env, start_new_session=True, **out)
        while not ready():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in daemons.values()):
                tails = [line for each in daemons for line in (folder / f"{each}.log").read_text().splitlines()[-9:]]
                raise RuntimeError("\n".join([f"{name} does not start as it should", *tails]))
            time.sleep(0.05)

    def listens(port):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    # the path of a socket has at most 107 characters, and that of a test's folder can be long
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as short:
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0))
            b.bind(("127.0.0.1", 0))
            ports = dict(ctld_port=a.getsockname()[1], d_port=b.getsockname()[1])
        machine = dict(host=socket.gethostname().split(".")[0], uid=os.geteuid(), cpus=cpus)
        conf.write_text(CONF.format(folder=folder, short=short, max_array_size=max_array_size, **ports, **machine))
        # no cgroups are used, but what finds their version by itself fails where there are none, and may ask systemd
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        files = [f"--{name}-file={folder}/munged.{name}" for name in ["pid", "log", "seed"]]
        munged = ["munged --foreground --force", f"--socket={short}/munge", f"--key-file={key}", *files]
        try:
            start(" ".join(munged), Path(short, "munge").exists)
            start(f"slurmctld -D -f {conf}", lambda: listens(ports["ctld_port"]))
            start(f"slurmd -D -f {conf}", lambda: run("sinfo -h -o %T") == "idle")
            yield {"SLURM_CONF": str(conf)}
        finally:
            end = time.monotonic() + 20
            try:
                while len(daemons) == 3 and daemons["slurmctld"].poll() is None and time.monotonic() < end:
                    run("scancel --partition=main")
                    kill_jobs(conf)  # a cancelled job has KillWait seconds to end, and nobody needs it any more
                    if not run("squeue -h"):
                        break
                    time.sleep(0.05)
            finally:
                for daemon in reversed(daemons.values()):
                    daemon.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        daemon.wait(30)
                    daemon.kill()  # nothing happens to one that has ended
                    daemon.wait()
                while kill_jobs(conf, ["slurmstepd"]):
                    time.sleep(0.05)
