"""A grid of runs: TOML files and flags become cells, each a script and its arguments."""

import importlib.util
import itertools
import json
import os
import shlex
import sys
import tomllib
from dataclasses import asdict, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from hesscale_run import identity
from hesscale_utils import check_args, fail

AGENTS = "ppo, a2c or the path of a script"
ABOUT = ("seed", "env_id", "total_timesteps", "optimizer", "learning_rate")


class Cell(NamedTuple):
    """A run of the grid: the script's path, its arguments with the step size that it will have, and its table's words.

    `selection` is the seed's role, and `name` what plots call its settings beside the optimizer. `differ` are the flags
    that have several values in its grid, for its words.
    """

    script: str
    args: Any
    selection: bool = False
    name: str = ""
    differ: tuple = ()

    @property
    def key(self):
        return identity(os.path.basename(self.script), vars(self.args))

    def flags(self):
        """The arguments as a command line: what the run is about, and what else is not the script's default."""
        for field in fields(self.args):
            value, flag = getattr(self.args, field.name), field.name.replace("_", "-")
            if value != field.default or field.name in ABOUT:
                if field.type is bool:
                    yield f"--{'' if value else 'no-'}{flag}"
                elif isinstance(value, str) and value.startswith("-"):  # or it would be read as a flag
                    yield f"--{flag}={value}"
                else:
                    yield from [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]

    def command(self):
        return shlex.join([os.path.relpath(self.script), *self.flags()])

    def __str__(self):
        a = self.args
        words = f"{agent_name(self.script)} {a.env_id} {a.optimizer} {a.learning_rate:g} seed {a.seed}"
        return words + "".join(f", {name} {getattr(a, name)!r}" for name in self.differ)


def agent_name(script):
    return Path(script).stem.removesuffix("_hesscale")


@cache
def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[path.stem] = sys.modules.get(path.stem), module  # where a dataclass looks for its types
    spec.loader.exec_module(module)
    if not hasattr(module, "Args") or not hasattr(module, "LEARNING_RATES"):
        sys.modules[path.stem] = before or module
        fail(f"--agent {path.name}: the script has no Args and LEARNING_RATES, as ppo_hesscale.py has")
    return module


def load_agent(name):
    """The module of an agent: `ppo`, `a2c`, or the path of a script that has Args and LEARNING_RATES as theirs do."""
    for path in Path(name), ROOT / name, ROOT / f"{name}_hesscale.py":
        if path.suffix == ".py" and path.exists():
            path = path.resolve()
            if path.parent != ROOT and (ROOT / path.name).exists():  # whose runs and archives its own would pass for
                fail(f"--agent {name}: {path.name} is the name of a script of this repository; give it another one")
            return load_script(path)
    fail(f"--agent {name}: choose {AGENTS}")


def known_grids():
    return ", ".join(sorted(path.stem for path in (ROOT / "scripts/grids").glob("*.toml")))


def grid_file(name):
    return ROOT / f"scripts/grids/{name}.toml"


def read_grid(name):
    """The [[grid]] tables of a TOML file, or of scripts/grids/{name}.toml, each {flag: list of values}."""
    path = Path(name) if Path(name).is_file() else grid_file(name)
    if not path.is_file():
        fail(f"{name or repr(name)}: there is no such grid file; name a TOML file or one of {known_grids()}")
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))  # editors of Windows begin a file with a mark
    except (OSError, ValueError) as error:
        fail(f"{name}: can't be read as TOML: {error}")
    tables = content.pop("grid", None)
    if content or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        fail(f"{name}: must consist of [[grid]] tables" + "".join(f", not of {key}" for key in content))
    for table in tables:
        if twice := [key for key in table if key.replace("-", "_") != key and key.replace("-", "_") in table]:
            fail(f"{name}: {twice[0]}: is there with _ too; name a flag once")
    return [{k.replace("-", "_"): v if isinstance(v, list) else [v] for k, v in t.items()} for t in tables]


def convert(flag, value, kind):
    """A flag's value as one of type `kind`: TOML has no tuples, and may write 1 for 1.0 and 1e6 for 1_000_000."""
    kinds = get_args(kind) or (kind,)
    wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
    if get_origin(kind) is tuple:
        wanted = kind
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return tuple(convert(flag, *pair) for pair in zip(value, kinds, strict=True))
    elif type(value) in kinds:
        return value
    elif type(value) is int and float in kinds:
        return float(value)
    elif type(value) is float and int in kinds and value.is_integer():
        return int(value)
    fail(f"{flag} {value!r}: must be of type {wanted}")


def typed(flag, values, kind):
    """The values of a flag, which has the type `kind`; ends the program with one line if they are no such values."""
    if get_origin(kind) is tuple and not isinstance(values[0], list | tuple):
        values = [values]  # betas = [0.9, 0.999] is one value
    values = [convert(flag, value, kind) for value in values]
    if len({*values}) < len(values):
        fail(f"{flag} {' '.join(map(str, values))}: names a value twice")
    return values


def expand(table):
    """The cells of one table {flag: values}; ends the program with one line where the table is invalid."""
    flag = lambda name: f"--{name.replace('_', '-')}"  # noqa: E731
    if empty := [name for name, values in table.items() if not values]:
        fail(f"{flag(empty[0])} has no values")
    about = []
    for word, value, kind in ("selection", False, bool), ("name", "", str):
        values = typed(word, table.get(word, [value]), kind)
        if len(values) > 1:
            fail(f"{word} {' '.join(map(str, values))}: must be one value; give each a table of its own")
        about += values
    agents = typed(flag("agent"), table.get("agent", []), str) or fail(f"{flag('agent')} is missing: name {AGENTS}")
    modules = [*map(load_agent, agents)]
    if len({Path(module.__file__).name for module in modules}) < len(modules):
        fail(f"{flag('agent')} {' '.join(agents)}: names a script twice, or two with one name; runs are known by it")
    for module in modules:
        types = {field.name: field.type for field in fields(module.Args) if field.name != "resume"}
        if unknown := [name for name in table if name not in (*types, "agent", "selection", "name")]:
            fail(f"{flag(unknown[0])}: is not a flag that a sweep of {Path(module.__file__).name} can have")
        values = {name: typed(flag(name), table[name], types[name]) for name in table if name in types}
        names = sorted(values, key=lambda name: name != "seed")  # a sweep that is stopped has all of its first seeds
        for combination in itertools.product(*(values[name] for name in names)):
            args = module.Args(**dict(zip(names, combination, strict=True)))
            check_args(args)
            getattr(module, "check_minibatches", lambda args: None)(args)
            args.learning_rate = args.learning_rate or module.LEARNING_RATES[args.optimizer]
            yield Cell(module.__file__, args, *about)


def read_tables(names, given=None):
    """The cells of each table of grid files, [{key: cell}, ...].

    Args:
        names: grid files.
        given: {flag: values} that replace those of every table; without a file, a table of their own.
    """
    tables, known = [], {}
    for name in names or [None]:
        for table in [{}] if name is None else read_grid(name):
            tables.append({})
            try:
                cells = [*expand(table | (given or {}))]
            except SystemExit as error:
                fail(f"{name}: " * bool(name) + error.code.removeprefix("error: "))
            for cell in cells:
                key = cell.key
                same = known.setdefault(key, cell)
                differ = [name for name, value in vars(cell.args).items() if value != getattr(same.args, name)]
                if differ and key in tables[-1]:
                    fail(f"{name or 'the grid'}: {cell} has two values of {differ[0]}, which do not make two runs")
                if same.name != cell.name:
                    fail(f"{name}: {cell} has two names, {same.name!r} and {cell.name!r}; give a run one")
                if same.selection != cell.selection:
                    fail(f"{name}: {cell} is for selection and for the report too; choose on seeds of their own")
                tables[-1][key] = same
    cells, differ = list(known.values()), {}
    for script in {cell.script for cell in cells}:
        of_script = [vars(cell.args) for cell in cells if cell.script == script]
        unsaid = of_script[0].keys() - {*ABOUT} | {"total_timesteps"}  # the rest is in all words
        differ[script] = tuple(n for n in sorted(unsaid) if len({args[n] for args in of_script}) > 1)
    return [{key: cell._replace(differ=differ[cell.script]) for key, cell in table.items()} for table in tables]


def read_cells(names, given=None):
    """All cells of grid files, {key: cell}, each once though two tables may have it."""
    return {key: cell for table in read_tables(names, given) for key, cell in table.items()}


def write_cells(path, cells):
    """Write cells as a grid file, a table each."""
    with open(path, "w", encoding="utf-8") as file:
        for cell in cells:
            differ = {f.name: v for f in fields(cell.args) if (v := getattr(cell.args, f.name)) != f.default}
            text = partial(json.dumps, ensure_ascii=False)  # TOML has no pairs of surrogates
            lines = [f"{name} = {text([value])}\n" for name, value in differ.items()]
            file.write("".join(["[[grid]]\n", f"agent = {text(cell.script)}\n", *lines]))


@cache
def defaults(script):
    """A script's arguments as they are now; None for a script that isn't of this repository."""
    return asdict(load_agent(script).Args()) if (ROOT / script).is_file() else None
