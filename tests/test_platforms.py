"""The pins suit every platform that is named in README.md, and the scripts run where POSIX is missing."""

import contextlib
import importlib.metadata
import itertools
import os
import re
import shlex
import subprocess
import sys
from unittest import mock

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_agents import AGENTS
from test_runs import ENVIRONMENT, args_of, line, only_run, run, status

import hesscale_run
import hesscale_utils
from hesscale_envs import make_env

# ---- pins --------------------------------------------------------------------------------------------------

PYTHONS = "3.11", "3.12", "3.13", "3.14"
PLATFORMS = {
    "linux x86_64": "manylinux_2_34_x86_64 manylinux_2_31_x86_64 manylinux_2_28_x86_64 manylinux_2_27_x86_64 "
    "manylinux_2_17_x86_64 manylinux2014_x86_64",
    "linux aarch64": "manylinux_2_34_aarch64 manylinux_2_31_aarch64 manylinux_2_28_aarch64 manylinux_2_27_aarch64 "
    "manylinux_2_17_aarch64 manylinux2014_aarch64",
    "darwin arm64": "macosx_14_0_arm64",
    "win32 AMD64": "win_amd64",
}
TRAIN, STUDY, EXTRAS, DEV = (f"requirements{part}.txt" for part in ("", "-study", "-extras", "-dev"))
WITH = {TRAIN: [], STUDY: [TRAIN], EXTRAS: [TRAIN], DEV: [TRAIN, STUDY, EXTRAS]}  # what a file is installed after


def read(file):
    """The requirements of a file, those chosen and those brought along."""
    chosen, brought = (
        [Requirement(text.split("#")[0]) for text in part.splitlines() if re.match(r"\w", text)]
        for part in (ROOT / file).read_text().split("# what these bring with them")
    )
    return chosen, brought


def environment(python, platform):
    """What markers ask of a platform."""
    system, machine = platform.split()
    names = {"linux": ("Linux", "posix"), "darwin": ("Darwin", "posix"), "win32": ("Windows", "nt")}[system]
    return {
        "python_version": python, "python_full_version": f"{python}.1", "sys_platform": system,
        "platform_system": names[0], "os_name": names[1], "platform_machine": machine,
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip


def pins(file, where):
    """The versions that a file pins on a platform, {name: version}."""
    there = [r for r in itertools.chain(*read(file)) if r.marker is None or r.marker.evaluate(where)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in there}
    assert len(versions) == len(there), f"{file} pins a package twice"
    return versions


def brought(requirement, where):
    """What a requirement brings along by its package's metadata, as far as it is installed here."""
    try:
        needed = importlib.metadata.requires(requirement.name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform
        return
    for needs in map(Requirement, needed):
        extras = ["", *requirement.extras]
        applies = needs.marker is None or any(needs.marker.evaluate(where | {"extra": extra}) for extra in extras)
        # a build of torch for GPUs brings libraries that no other build can use
        if applies and not (requirement.name == "torch" and re.match("cuda|nvidia|triton", needs.name)):
            yield needs


@pytest.mark.parametrize("file", WITH)
def test_all_that_a_pin_brings_along_is_pinned_in_its_file(file):
    for python, platform in itertools.product(PYTHONS, PLATFORMS):
        where = environment(python, platform)
        before = {name: version for other in WITH[file] for name, version in pins(other, where).items()}
        mine = pins(file, where)
        known, needed = before | mine, set()
        queue = [r for r in read(file)[0] if r.marker is None or r.marker.evaluate(where)]
        while queue:
            for needs in brought(queue.pop(), where):
                name = canonicalize_name(needs.name)
                assert name in known, f"{file} on {platform}: {needs} is not pinned"
                assert needs.specifier.contains(known[name], prereleases=True), f"{needs}, but {known[name]} is pinned"
                if (name, *needs.extras) not in needed:
                    needed.add((name, *needs.extras))
                    queue.append(needs)
        assert all(mine[name] == before[name] for name in mine.keys() & before.keys())
        useless = {canonicalize_name(r.name) for r in read(file)[1]} & mine.keys() - {name for name, *_ in needed}
        assert not useless, f"{file}: nothing in it brings {useless} on {platform}"


def test_every_requirement_is_an_exact_version():
    for requirement in itertools.chain.from_iterable(read(file)[i] for file in WITH for i in (0, 1)):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


def test_what_is_installed_here_is_what_is_pinned():
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for file in WITH:
        for requirement in itertools.chain(*read(file)):
            if requirement.marker is None or requirement.marker.evaluate():
                version = importlib.metadata.version(requirement.name).split("+")[0]
                assert requirement.specifier.contains(version, prereleases=True), f"{requirement} on Python {here}"


def is_pure(name):
    """Whether a package's wheel is the same for all platforms, as far as the package is installed here."""
    try:
        return "-none-any" in importlib.metadata.distribution(name).read_text("WHEEL")
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_has_a_wheel(python, platform):
    """Asks the package index, which must be in reach."""
    program = """if True:
        import contextlib, io, sys
        from pip._internal.cli.main import main
        flags, *names = sys.argv[1:]
        for name in names:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = main(["index", "versions", name, "--pre", *flags.split()])
            print(name, code, *out.getvalue().replace(",", "").split())
    """
    where = environment(python, platform)
    wanted = {name: version for file in WITH for name, version in pins(file, where).items() if not is_pure(name)}
    flags = f"--only-binary=:all: --python-version={python} --implementation=cp "
    flags += " ".join(f"--platform={tag}" for tag in PLATFORMS[platform].split())
    command = [sys.executable, "-c", program, flags, *wanted]
    found = subprocess.run(command, capture_output=True, text=True)
    listed = {words[0]: words[2:] for words in map(str.split, found.stdout.splitlines())}
    if not any(listed.values()):
        pytest.skip("the package index is out of reach")
    lack = [f"{name}=={version}" for name, version in wanted.items() if version not in listed.get(name, [])]
    assert not lack, found.stderr


@pytest.mark.parametrize("version, differs", [("3.2.7", False), ("3.4.0", False), ("3.5.0", True), ("4.0.0", True)])
def test_another_mujoco_is_told_at_the_start(monkeypatch, version, differs):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    hopper, cart_pole = (make_env(AGENTS["ppo"].Args(env_id=env_id)) for env_id in ("Hopper-v4", "CartPole-v1"))
    told = hesscale_run.other_mujoco(hopper)
    assert (version in told and "3.2.7" in told) if differs else told is None
    assert hesscale_run.other_mujoco(cart_pole) is None


# ---- packages that only some flags need --------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "a folder of that name"])
@pytest.mark.parametrize("flag, package", [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_a_flag_names_the_package_that_it_lacks_before_anything_is_made(tmp_path, monkeypatch, flag, package, left):
    found = mock.Mock(origin=None) if left == "a folder of that name" else None  # as W&B leaves one
    find = hesscale_utils.importlib.util.find_spec
    replaced = lambda name: found if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(hesscale_utils.importlib.util, "find_spec", replaced)
    code, out, err = run(tmp_path, "ppo", "--env-id", "Hopper-v4", flag)
    assert code == 1 and out == "" and os.listdir(tmp_path) == []
    command = shlex.join([sys.executable, "-m", "pip", "install", "-r", f"{ROOT}/requirements-extras.txt"])
    assert line(err) == f"error: {flag}: the package {package} is missing; install it by {command}"
    code, _, err = run(tmp_path, "ppo", "--env-id", "toy_envs:Drift-v0", "--num-steps", 64, "--total-timesteps", 64)
    assert code == 0, err


def test_training_needs_what_its_file_has_and_no_more(tmp_path):
    """In a process that lacks all other packages."""
    mine = {canonicalize_name(r.name) for r in itertools.chain(*read(TRAIN))}
    others = [
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if not mine & set(map(canonicalize_name, names))
    ]
    assert {"matplotlib", "scipy", "wandb", "moviepy", "pytest"} <= {*others}
    program = f"""if True:
        import runpy, sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, *more):
                return None if name.split(".")[0] in {others} else self.finder.find_spec(name, *more)

        sys.meta_path[:] = map(Without, sys.meta_path)
        sys.path[:0] = {str(ROOT)!r}, {str(ROOT / "scripts")!r}
        sys.argv[1:] = "--env-id Hopper-v4 --num-steps 64 --total-timesteps 64 --save-model".split()
        runpy.run_path({str(ROOT / "a2c_hesscale.py")!r}, run_name="__main__")
        sys.argv[1:] = ["runs", "--help"]
        for script in "evaluate", "sweep":
            try:
                runpy.run_path(f"{ROOT}/scripts/{{script}}.py", run_name="__main__")
            except SystemExit as end:
                assert end.code == 0
        sys.argv[1:] = ["--out", "x"]
        runpy.run_path({str(ROOT / "scripts/plot.py")!r}, run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert os.path.isdir(tmp_path / "runs"), done.stderr[-2000:]
    assert status(only_run(tmp_path))["state"] == "finished"
    assert done.stderr.splitlines()[-1].startswith("error: scripts/plot.py: the package matplotlib is missing; install")
    assert done.stderr.endswith(shlex.quote(f"{ROOT}/requirements-study.txt") + "\n"), done.stderr


def test_a_run_does_not_import_torchs_compiler(tmp_path):
    """Which takes nearly as long as all other imports together, and which torch.optim.Optimizer asks for."""
    program = f"""if True:
        import runpy, sys
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv[1:] = "--env-id CartPole-v1 --checkpoint-interval 64 --total-timesteps 640 --save-model".split()
        runpy.run_path({str(ROOT / "a2c_hesscale.py")!r}, run_name="__main__")
        from hesscale_core import TanhMLP, make_optimizer
        optimizer = make_optimizer("adahesscale", TanhMLP(1, (2,), 1).parameters(), lr=0.1)
        optimizer.load_state_dict(optimizer.state_dict())  # as a resumed run does
        print("torch._dynamo" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_every_script_finds_its_modules_from_any_folder(tmp_path):
    """Each with its own folder alone in the path, as the interpreter gives it, and nothing of ours imported before."""
    scripts = [ROOT / "ppo_hesscale.py", ROOT / "a2c_hesscale.py"]
    scripts += [path for name in ("scripts", "experiments", "benchmarks") for path in (ROOT / name).glob("*.py")]
    scripts = [str(path) for path in scripts if "__main__" in path.read_text()]
    scripts.remove(str(ROOT / "benchmarks/sb3_run.py"))  # which is for the peers' environment
    program = f"""if True:
        import runpy, sys
        scripts, path = {scripts!r}, sys.path[1:]
        ours = {{script.rpartition("/")[0] for script in scripts}}
        for script in scripts:
            sys.argv, sys.path = [script, "--help"], [script.rpartition("/")[0], *path]
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                print("ended:", end.code or 0)
            for name, module in list(sys.modules.items()):
                if (getattr(module, "__file__", None) or "").rpartition("/")[0] in ours:
                    del sys.modules[name]
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("ended: 0") == len(scripts) > 12


# ---- systems without POSIX ---------------------------------------------------------------------------------

# what Windows, and in part macOS, has not: modules, functions, signals, folders that can be opened, names with colons,
# and the replacement of a file that is being read
WINDOWS = """if True:
    import multiprocessing, os, signal, sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name in ("fcntl", "resource"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Missing())
    sys.modules.pop("fcntl", None)
    del os.sched_getaffinity, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP
    multiprocessing.set_start_method("spawn")
    here, refused = os.getcwd(), set()

    def hook(event, args):
        if event in ("open", "os.mkdir", "os.rename") and isinstance(args[0], str):
            for path in args[: 1 + (event == "os.rename")]:
                name = os.path.relpath(path, here)
                if not name.startswith("..") and set(name) & set('<>:"|?*'):
                    raise OSError(22, "Invalid name", path)
            if event == "open" and os.path.isdir(args[0]):
                raise PermissionError(13, "Permission denied", args[0])
            if event == "os.rename" and args[1] not in refused:
                refused.add(args[1])
                raise PermissionError(13, "Permission denied", args[1])

    sys.addaudithook(hook)
"""


def test_scripts_run_without_what_windows_and_macos_lack(tmp_path):
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows/sitecustomize.py").write_text(WINDOWS)
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "windows"), str(ROOT / "tests")])}

    def python(*command):
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = "--env-id toy_envs:Drift-v0 --num-steps 64 --total-timesteps 640 --checkpoint-interval 64".split()
    assert "model saved to" in python(ROOT / "a2c_hesscale.py", *flags, "--save-model", "--exp-name", "a:b")
    folder = only_run(tmp_path)
    assert status(folder)["state"] == "finished" and ":" not in folder
    assert "return" in python(ROOT / "scripts/evaluate.py", folder, "--episodes", 2)
    python(ROOT / "scripts/plot.py", "--what", "curves", "--out", "drawn")
    assert (tmp_path / "drawn_curves.png").stat().st_size > 0


def test_a_run_of_an_environment_with_forbidden_characters_is_found_again(tmp_path, monkeypatch):
    """Also where an earlier commit has left them in the folder's name."""
    monkeypatch.chdir(tmp_path)
    args = args_of("ppo", "--env-id", "toy_envs:Drift-v0", "--exp-name", "a[1]/b*?")
    name = "toy_envs{}Drift-v0__a[1]-b{}__scaled-adahesscale__1__1700000000"
    folders = [name.format("-", "--"), name.format(":", "*?"), name.replace("a[1]", "a1").format("-", "--")]
    for folder in folders:
        os.makedirs(f"runs/{folder}")
    assert sorted(hesscale_run.glob.glob(hesscale_run.folders_like(args))) == sorted(f"runs/{f}" for f in folders[:2])


@pytest.mark.parametrize("text", ["toy_envs:Drift-v0", 'a<b>c:d"e/f\\g|h?i*j\nk'])
def test_a_file_name_is_one_that_every_system_takes(text):
    assert re.fullmatch(r"[\w.-]+", hesscale_utils.file_name(text))
    assert hesscale_utils.file_name("Hopper-v4__ä [1]__0.5") == "Hopper-v4__ä [1]__0.5"


@pytest.mark.parametrize("refusals, raises", [(3, False), (99, True)])
def test_a_file_that_is_being_read_is_replaced_when_it_is_free(tmp_path, monkeypatch, refusals, raises):
    """Windows refuses meanwhile; the old content stays."""
    monkeypatch.setattr(hesscale_run.time, "sleep", lambda seconds: None)
    path, left, replace = tmp_path / "status.json", [refusals], os.replace
    path.write_text("old")

    def refuse(source, target):
        if left[0]:
            left[0] -= 1
            raise PermissionError(13, "in use", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError) if raises else contextlib.nullcontext():
        hesscale_run.write_atomically(str(path), b"new")
    assert path.read_text() == ("old" if raises else "new")
