"""The scripts of launch/: what they would do, word for word, and what they do with stand-ins.

`python -m tests.whole.test_launch` writes the golden texts again; read the diff before you commit.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.helpers.binaries import ROOT

LAUNCH = ROOT / "launch"
GOLDEN = Path(__file__).parents[1] / "golden"
JOB = ("python", "-m", "unlearn_jax.train", "--config=configs/imagenet_mage.py:full",
       "--workdir=runs/mage/unlearned", "--config.data.augment.scale=(0.2,0.5)",
       "--config.name=it's \"$HOME\" \\ ü")  # fmt: skip
TPU = {"NAME": "mage", "PROJECT": "p-1", "ZONE": "us-west4-a", "TOPOLOGY": "v5e:4x4",
       "IMAGE": "us-docker.pkg.dev/p-1/images/unlearn_jax:tpu", "BUCKET": "b-1"}  # fmt: skip
NEEDS = {
    "tpu": TPU,
    "gke": TPU | {"CLUSTER": "c-1"},
    "xpk": TPU | {"CLUSTER": "c-1"},
    "slurm": {"NAME": "mage", "NODES": "2", "GPUS": "8", "TIME": "24:00:00"},
    "local": {"GPUS": "2"},
}
VERBS = {name: ("create", "run", "status", "logs", "stop", "delete") for name in NEEDS}
VERBS["slurm"] = ("create", "run", "status", "logs", "delete")
VERBS["local"] = ("create", "run")
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def shell(script, *words, path="", **variables):
    """A finished script of launch/, in an environment with these variables only."""
    return subprocess.run(
        [LAUNCH / f"{script}.sh", *words], cwd="/", text=True, timeout=60, env={
            "PATH": f"{path}:{os.environ['PATH']}", "HOME": "/nowhere", **variables
        }, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def transcript(script):
    """Dry runs of all that a script can do, also as several slices that can be preempted."""
    lines = []
    for verb in VERBS[script]:
        for more in ({}, {"SLICES": "2", "SPOT": "1", "CREATE_FLAGS": "--network=n --tags=t"}):
            if more and (script not in ("tpu", "gke", "xpk") or verb != "create"):
                continue
            words = [verb, *JOB] if verb == "run" else [verb]
            done = shell(script, *words, DRY_RUN="1", **NEEDS[script], **more)
            given = " ".join(f"{k}={shlex.quote(v)} " for k, v in more.items())
            lines += [f"$ {given}launch/{script}.sh {shlex.join(words)}", done.stdout]
            assert done.returncode == 0, done.stdout
    return "\n".join(lines)


@pytest.fixture
def stand_ins(tmp_path):
    """A folder of commands that note how they are called, and say what `answer` holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "xpk", "squeue", "sbatch", "scancel", "scontrol", "sudo",
                 "mountpoint", "gcsfuse", "docker"):  # fmt: skip
        (folder / name).write_text(
            "#!/usr/bin/env bash\n"
            f'cd {tmp_path}\nprintf "%s\\n" "${{0##*/}} $*" >>called\n'
            'case "$*" in\n'
            "  *describe* | *'get jobset'* | *--noheader* | *inspect* | *'get persistent'*)"
            " cat answer ;;\n"
            "  *--filename=-) cat >manifest ;;\nesac\n"
        )
        (folder / name).chmod(0o755)
    (tmp_path / "answer").write_text("")
    (tmp_path / "called").write_text("")
    return tmp_path


@pytest.mark.parametrize("script", NEEDS)
def test_dry_runs_print_what_they_always_printed(script):
    assert transcript(script) == (GOLDEN / f"launch_{script}.txt").read_text()


@pytest.mark.parametrize("script", NEEDS)
def test_dry_runs_execute_nothing_and_every_last_line_says_what_comes_next(script, stand_ins):
    for verb in VERBS[script]:
        done = shell(script, verb, *JOB, path=stand_ins / "bin", DRY_RUN="1", **NEEDS[script])
        last = done.stdout.splitlines()[-1]
        assert re.fullmatch(r"dry run, nothing was executed: .+\. Next: .+", last), last
    assert (stand_ins / "called").read_text() == ""


@pytest.mark.parametrize("script", NEEDS)
def test_missing_variables_are_named_in_one_message_with_examples(script):
    done = shell(script, "create")
    assert done.returncode == 1 and done.stdout.count("error:") == 1
    first, *examples = done.stdout.splitlines()
    named = re.fullmatch(
        rf"error: launch/{script}.sh needs these variables: (.*?)\. For example:", first
    )[1].split()
    assert sorted(named) == sorted(NEEDS[script])
    assert [re.match(r"  export (\w+)=\S+$", line)[1] for line in examples] == named
    some = dict(list(NEEDS[script].items())[:-1])
    (last,) = set(NEEDS[script]) - set(some)
    assert f"needs these variables: {last}. For example:\n  export {last}=" in (
        shell(script, "create", **some).stdout
    )


@pytest.mark.parametrize("script", NEEDS)
def test_other_mistakes_are_one_message_too(script):
    done = shell(script, "frobnicate", **NEEDS[script])
    assert done.returncode == 1 and "got 'frobnicate'" in done.stdout
    done = shell(script, "run", **NEEDS[script])
    assert done.returncode == 1 and "needs the command to run" in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TOPOLOGY", "v5litepod-16", "expected GENERATION:SHAPE"),
        ("TOPOLOGY", "v9:4x4", "expected v4, v5e, v5p or v6e"),
        ("TOPOLOGY", "v5e:1x2", "a multiple of 4 chips"),
        ("BUCKET", "gs://b", "without gs://"),
        ("NAME", "My_Run", "small letters"),
    ],
)
def test_values_that_cannot_be_are_refused(variable, value, said):
    done = shell("tpu", "create", DRY_RUN="1", **TPU | {variable: value})
    assert done.returncode == 1 and said in done.stdout and f"'{value}'" in done.stdout


@pytest.mark.parametrize(
    ("topology", "names"),
    [
        ("v4:2x2x4", "v4-32 tpu-ubuntu2204-base tpu-v4-podslice ct4p-hightpu-4t 4"),
        ("v5e:4x4", "v5litepod-16 v2-alpha-tpuv5-lite tpu-v5-lite-podslice ct5lp-hightpu-4t 4"),
        ("v5p:2x2x2", "v5p-16 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t 2"),
        ("v6e:16x16", "v6e-256 v2-alpha-tpuv6e tpu-v6e-slice ct6e-standard-4t 64"),
    ],
)
def test_a_topology_has_the_names_that_each_platform_gives_it(topology, names):
    kind, runtime, node, machine, hosts = names.split()
    given = TPU | {"TOPOLOGY": topology, "DRY_RUN": "1", "CLUSTER": "c"}
    assert f"--accelerator-type={kind} --runtime-version={runtime} " in (
        shell("tpu", "create", **given).stdout
    )
    assert (
        f"--machine-type={machine} --num-nodes={hosts} " in shell("gke", "create", **given).stdout
    )
    assert f"gke-tpu-accelerator: {node}\n" in shell("gke", "run", *JOB, **given).stdout
    assert f"--tpu-type={kind} " in shell("xpk", "create", **given).stdout


@pytest.mark.parametrize(
    ("script", "verb", "answer", "does", "does_not"),
    [
        ("tpu", "create", "", ["resources create"], ["resources delete"]),
        ("tpu", "create", "ACTIVE", [], ["resources create", "resources delete"]),
        ("tpu", "create", "WAITING_FOR_RESOURCES", [], ["resources create"]),
        ("tpu", "create", "SUSPENDED", ["resources delete", "resources create"], []),
        ("tpu", "delete", "", [], ["resources delete"]),
        ("tpu", "delete", "ACTIVE", ["resources delete"], []),
        ("tpu", "status", "", [], [" ssh "]),
        ("gke", "create", "", ["node-pools create mage-0"], []),
        ("gke", "create", "RUNNING", [], ["node-pools create"]),
        ("gke", "delete", "RUNNING", ["delete jobset", "node-pools delete mage-0"], []),
        ("gke", "delete", "", ["delete jobset"], ["node-pools delete"]),
        ("gke", "run", "", ["apply --filename=-"], ["delete"]),
        ("gke", "run", "mage:", [], ["apply", "delete"]),
        ("gke", "run", "mage:Failed", ["delete jobset mage", "apply --filename=-"], []),
        ("xpk", "create", "", ["cluster create", "storage attach"], []),
        ("xpk", "create", "persistentvolume/b-1-pv", ["cluster create"], ["storage attach"]),
        ("xpk", "run", "", ["workload create"], ["workload delete"]),
        ("xpk", "run", "mage:", [], ["workload create"]),
        ("xpk", "run", "mage:Completed", ["workload delete", "workload create"], []),
        ("slurm", "run", "", ["sbatch --job-name=mage"], []),
        ("slurm", "run", "17", [], ["sbatch"]),
        ("slurm", "delete", "17", ["scancel --batch --signal=USR2 17", "--state=PENDING 17"], []),
        ("slurm", "delete", "", [], ["scancel"]),
    ],
)
def test_given_again_nothing_is_made_or_removed_twice(
    script, verb, answer, does, does_not, stand_ins
):
    (stand_ins / "answer").write_text(answer)
    words = [verb, *JOB] if verb == "run" else [verb]
    done = shell(script, *words, path=stand_ins / "bin", **NEEDS[script])
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r".+\. Next: .+", done.stdout.splitlines()[-1])
    called = (stand_ins / "called").read_text()
    found = [called.find(words) for words in does]
    assert -1 not in found and found == sorted(found), called
    assert not any(words in called for words in does_not), called


def test_the_manifest_is_a_jobset_of_all_hosts_that_restarts_but_for_mistakes(stand_ins):
    done = shell("gke", "run", *JOB, path=stand_ins / "bin", SLICES="2", **NEEDS["gke"])
    manifest = yaml.safe_load((stand_ins / "manifest").read_text())
    assert yaml.safe_load(re.search(r"<<'END'\n(.*?)\nEND\n", done.stdout, re.S)[1]) == manifest
    assert "${" not in (stand_ins / "manifest").read_text().partition("\n")[2]
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    (rule,) = policy["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and rule["action"] == "FailJobSet"
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["completions"], job["parallelism"]) == (2, 4, 4)
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [1, 2, 3, 4]
    }  # fmt: skip
    assert "command" not in container  # the image's entry point has to stay
    # Kubernetes replaces $(…) in the words, and $$ by $.
    assert [word.replace("$$", "$") for word in container["args"]] == [*JOB, "--distributed"]
    assert not any("$" in word.replace("$$", "") for word in container["args"])
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["volumeMounts"][0]["mountPath"] == "/bucket"


def test_every_host_starts_one_container(stand_ins):
    def start():
        (stand_ins / "called").write_text("")
        words = ("mage", TPU["IMAGE"], "b-1", "7", *JOB)
        assert shell("tpu_host", *words, path=stand_ins / "bin").returncode == 0
        return (stand_ins / "called").read_text()

    called = start()
    assert "--restart=on-failure:7 --env=EXIT_ON_MISTAKE=0" in called
    assert called.rstrip().endswith(f"{TPU['IMAGE']} {' '.join(JOB)}")
    assert "configure-docker us-docker.pkg.dev" in called
    (stand_ins / "answer").write_text("true")
    assert "docker run" not in start()


def test_words_survive_the_way_to_the_hosts(stand_ins):
    shell("tpu", "run", *JOB, path=stand_ins / "bin", **TPU)
    sent = (stand_ins / "called").read_text().partition("--command=")[2]
    assert shlex.split(sent) == [
        "bash", "tpu_host.sh", "mage", TPU["IMAGE"], "b-1", "50", *JOB, "--distributed"
    ]  # fmt: skip


def test_the_entry_point_passes_exit_codes_on():
    for code in (0, 1, 7, 75):
        assert shell("entry", "bash", "-c", f"exit {code}").returncode == code
    for code, given in ((1, 0), (3, 0), (4, 0), (5, 5), (75, 75), (0, 0)):
        done = shell("entry", "bash", "-c", f"exit {code}", EXIT_ON_MISTAKE="0")
        assert done.returncode == given
    assert shell("entry", "bash", "-c", "kill -9 $$").returncode == 137


@pytest.mark.parametrize(("after_term", "expected"), [("exit 0", 0), ("exit 75", 75)])
def test_the_entry_point_passes_sigterm_on(after_term, expected):
    process = subprocess.Popen(
        [LAUNCH / "entry.sh", "bash", "-c",
         f"trap 'sleep 0.1; {after_term}' TERM; echo ready; while :; do sleep 0.05; done"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(timeout=20) == expected


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (3, 0, False),
        (4, 0, False),
        (75, 0, True),
        (134, 49, True),
        (143, 0, True),
        (75, 50, False),
    ],
)
def test_a_batch_job_that_failed_goes_back_into_the_queue(code, restarts, requeued, stand_ins):
    (stand_ins / "bin/srun").write_text(f"#!/bin/sh\nexit {code}\n")
    (stand_ins / "bin/srun").chmod(0o755)
    done = shell(
        "slurm_job", ".venv", "50", *JOB, path=stand_ins / "bin", SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT=str(restarts),
    )  # fmt: skip
    assert done.returncode == code
    assert ("scontrol requeue 17" in (stand_ins / "called").read_text()) == requeued


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGUSR2, False)])
def test_a_batch_job_whose_time_is_over_goes_back_into_the_queue(number, requeued, stand_ins):
    """srun's stand-in ends with 75 when scancel's sends it SIGTERM, as a program that has saved."""
    for name, script in (
        ("srun", f"echo $$ >{stand_ins}/pid; trap 'exit 75' TERM; while :; do sleep 0.05; done"),
        ("scancel", f'[ "$*" = "--signal=TERM 17" ] && kill -TERM "$(cat {stand_ins}/pid)"'),
    ):
        (stand_ins / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (stand_ins / "bin" / name).chmod(0o755)
    process = subprocess.Popen(
        [LAUNCH / "slurm_job.sh", ".venv", "50", *JOB],
        env={"PATH": f"{stand_ins}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "17",
             "SLURM_RESTART_COUNT": "50"},
    )  # fmt: skip
    until = time.monotonic() + 20
    while not (stand_ins / "pid").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == 75
    assert ("scontrol requeue 17" in (stand_ins / "called").read_text()) == requeued


def local(tmp_path, program, **variables):
    """launch/local.sh run, with a stand-in for python."""
    (tmp_path / "venv/bin").mkdir(parents=True, exist_ok=True)
    python = tmp_path / "venv/bin/python"
    python.write_text(f"#!/usr/bin/env bash\n{program}\n")
    python.chmod(0o755)
    return {"VENV": str(tmp_path / "venv"), "PATH": os.environ["PATH"], **variables}


def test_local_processes_know_each_other_and_have_a_gpu_each(tmp_path):
    note = f'echo "$CUDA_VISIBLE_DEVICES ${{@: -3}}" >{tmp_path}/$CUDA_VISIBLE_DEVICES'
    done = shell("local", "run", *JOB, **local(tmp_path, note, GPUS="2", PORT="5000"))
    assert done.returncode == 0, done.stdout
    for i in range(2):
        words = f"{i} --coordinator=localhost:5000 --num_processes=2 --process_id={i}\n"
        assert (tmp_path / str(i)).read_text() == words
    done = shell("local", "run", *JOB, **local(tmp_path, f"echo $# >{tmp_path}/one", GPUS="1"))
    assert (tmp_path / "one").read_text() == f"{len(JOB) - 1}\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [(1, "1 is a mistake"), (4, "4 damaged"), (75, "the same command resumes")],
)
def test_local_failures_have_the_exit_code_of_the_process(code, said, tmp_path):
    program = f"[[ $CUDA_VISIBLE_DEVICES == 0 ]] || exit {code}"
    done = shell("local", "run", *JOB, **local(tmp_path, program, GPUS="2"))
    assert done.returncode == code and f"exit code {code}." in done.stdout and said in done.stdout


def test_a_local_job_that_is_stopped_stops_all_its_processes(tmp_path):
    program = (
        f"trap 'exit 75' TERM; >{tmp_path}/$CUDA_VISIBLE_DEVICES; while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        [LAUNCH / "local.sh", "run", *JOB], env=local(tmp_path, program, GPUS="2"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 20
    while not all((tmp_path / i).exists() for i in "01") and time.monotonic() < until:
        time.sleep(0.02)
    process.terminate()
    out, _ = process.communicate(timeout=20)  # returns when no process holds the pipe any more
    assert process.returncode == 75 and "the same command resumes" in out


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    for script in SCRIPTS:
        assert (script.name == "common.sh") != os.access(script, os.X_OK), script


def test_the_image_holds_what_its_file_copies_and_installs_it_as_the_readme_does():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    allowed = [
        line[1:]
        for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [w for line in re.findall(r"^COPY (.*)", text, re.M) for w in line.split()[:-1]]
    assert copied == allowed and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"tpu", "cuda"} <= set(project["optional-dependencies"])
    assert {project["readme"], *project["license-files"]} <= set(copied)
    assert '--constraint constraints.txt --editable ".[$EXTRA]"' in text
    (entry,) = re.findall(r'^ENTRYPOINT \["/app/(.*?)"\]', text, re.M)
    assert os.access(ROOT / entry, os.X_OK)
    guard = re.search(r"^RUN (case .*)", text, re.M)[1]
    for extra, code in (("tpu", 0), ("cuda", 0), ("tpu,convert", 0), ("", 1), ("gpu", 1)):
        done = subprocess.run(["sh", "-c", guard], env={"EXTRA": extra}, capture_output=True)
        assert done.returncode == code, extra


if __name__ == "__main__":
    for name in NEEDS:
        (GOLDEN / f"launch_{name}.txt").write_text(transcript(name))
