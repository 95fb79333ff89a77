"""The state of an environment as bytes, for checkpoints, and back into one that was made the same way.

Pickle keeps shared objects shared and cloudpickle adds functions with what they enclose. Environments, their spaces and
MuJoCo's simulators stay the objects that they are, since others refer to them, and get the saved contents; what draws
stays as it is. Restoring runs what a pickle asks for: resume only runs that you trust.
"""

import collections
import copyreg
import functools
import io
import logging
import types

import cloudpickle
import gymnasium as gym
import numpy as np
import torch

# modules of what draws; pygame's others have what games keep their positions in, as Rect and Vector2
DRAWING = (
    "pygame.surface.", "pygame.font.", "pygame.freetype.", "pygame.time.", "pygame.mixer.", "pygame.display.",
    "OpenGL.", "glfw.", "gymnasium.envs.mujoco.mujoco_rendering.", "gymnasium.envs.registration.",
)  # fmt: skip


class CannotSave(TypeError):
    """Something in an environment can't be saved; the message names it, as in "Hand.camera is a Lock"."""


def save(env):
    """Return the state of `env` and of all that it refers to.

    Raises:
        CannotSave: something can't be saved.
    """
    things = _fixed_things(env)
    contents = {path: _contents(thing) for path, thing in things.items() if _kind(thing) == "contents"}
    names = {id(thing): path for path, thing in things.items()}
    try:
        return _dump(contents, names)
    except Exception:
        for path, attributes in contents.items():
            for name, value in attributes.items():
                try:
                    _dump(value, names)
                except Exception as error:
                    where = f"{type(things[path]).__name__}.{name}"
                    raise CannotSave(f"{where} is a {type(value).__name__} ({error})") from None
        raise


def restore(saved, env):
    """Give `env`, which was made as the saved one was, the saved state, and return it.

    Raises:
        KeyError: it lacks an environment, a space or a simulator that the saved one has.
    """
    things = _fixed_things(env)
    unpickler = cloudpickle.pickle.Unpickler(io.BytesIO(saved))
    unpickler.persistent_load = things.__getitem__
    for path, attributes in unpickler.load().items():
        _fill(things[path], attributes)
    return env


# ---- what stays the object that it is ----------------------------------------------------------------------


def _kind(value):
    """Return "contents" for what stays the object that it is, "drawn" for what is left alone too, None for the rest."""
    if isinstance(value, (gym.Env, gym.Space)) or type(value).__name__ in ("MjData", "MjModel"):
        return "contents"
    if isinstance(value, np.ndarray):  # of a simulator's own memory
        return "contents" if type(_root(value).base).__name__ == "PyCapsule" else None
    drawn = isinstance(value, logging.Logger) or f"{type(value).__module__}.".startswith(DRAWING)
    return "drawn" if drawn else None


def _root(array):
    """Return the array that owns the memory of `array`."""
    while type(array.base) is np.ndarray:
        array = array.base
    return array


def _parts(value):
    """Return {name: part} of what an object, a container, or a function with what it encloses consists of."""
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple, collections.deque)):
        return dict(enumerate(value))
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return {name: getattr(value, name, None) for name in ("__self__", "__func__", "__closure__", "__defaults__")}
    if isinstance(value, types.CellType):
        return {"": value.cell_contents} if value != types.CellType() else {}
    return _attributes(value) if not isinstance(value, type) else {}


def _attributes(value):
    """Return {name: value} of what an object has in its __dict__ and in slots, its own and inherited ones."""
    # copyreg, pickle's own, knows the mangled names of private ones
    slots = {name: getattr(value, name) for name in copyreg._slotnames(type(value)) if hasattr(value, name)}
    return dict(getattr(value, "__dict__", {})) | slots


def _fixed_things(env):
    """Return what stays the object that it is, {path from `env`: object}, of all that `env` refers to."""
    found, seen, waiting = {}, {}, [("env", env)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, torch.Tensor, type(np), type(None))):
            continue
        seen[id(value)] = value  # kept, or another could get its id
        kind = _kind(value)
        if kind is not None:
            found[path] = value
        if kind != "drawn":
            waiting += [(f"{path}.{name}", part) for name, part in _parts(value).items()]
    return found


def _contents(thing):
    """Return what is saved of an object that stays what it is, {name: value}."""
    if isinstance(thing, np.ndarray):
        return {"array": thing.copy()}
    if type(thing).__name__ == "MjData":
        import mujoco

        everything = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(thing.model, everything))
        mujoco.mj_getState(thing.model, thing, state, everything)
        return {"state": state, "arrays": {name: array.copy() for name, array in _mujoco_arrays(thing).items()}}
    if type(thing).__name__ == "MjModel":
        options = {name: v for name in dir(thing.opt) if type(v := getattr(thing.opt, name)) in (int, float)}
        return {"arrays": {name: array.copy() for name, array in _mujoco_arrays(thing).items()}, "options": options}
    # the new environment renders in its own way, and loads its own images
    drawn = lambda value: _kind(value) == "drawn" or any(map(drawn, value if type(value) in (list, tuple) else ()))  # noqa: E731
    return {name: value for name, value in _attributes(thing).items() if name != "render_mode" and not drawn(value)}


def _fill(thing, contents):
    """Give an object that stays what it is the contents that _contents returned."""
    if isinstance(thing, np.ndarray):
        thing[...] = contents["array"]
    elif type(thing).__name__ in ("MjData", "MjModel"):
        import mujoco

        if "state" in contents:
            mujoco.mj_setState(thing.model, thing, contents["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
        arrays = _mujoco_arrays(thing)
        for name, array in contents["arrays"].items():
            if name in arrays and arrays[name].shape == array.shape:  # contacts vary, but each step computes them anew
                arrays[name][...] = array
        for name, value in contents.get("options", {}).items():
            setattr(thing.opt, name, value)
    elif contents:
        slots = contents.keys() & copyreg._slotnames(type(thing))
        vars(thing).update({name: value for name, value in contents.items() if name not in slots})
        for name in slots:
            object.__setattr__(thing, name, contents[name])


def _mujoco_arrays(value):
    """Return {name: array} of the numbers of MjData or MjModel; the arrays share memory with `value`.

    An observation may read what MuJoCo computed from its state (Humanoid observes centers of mass), and an environment
    may change its model (its friction, its terrain, which geoms collide), but hardly the meshes and textures.
    """
    names = [name for name in dir(value) if not name.startswith(("_", "efc_", "mesh_", "tex_", "skin_"))]
    arrays = {name: getattr(value, name) for name in names}
    if hasattr(value, "opt"):
        arrays |= {f"opt.{name}": getattr(value.opt, name) for name in dir(value.opt) if name[0] != "_"}
    kinds = "biuf" if type(value).__name__ == "MjModel" else "f"  # MjData's integers count what a step finds anew
    return {k: a for k, a in arrays.items() if isinstance(a, np.ndarray) and a.size and a.dtype.kind in kinds}


# ---- pickling ----------------------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):
    """Saves a reference for what stays the object that it is, and a view for an array that shares another's memory."""

    def __init__(self, file, names):
        super().__init__(file)
        self.names = names

    def persistent_id(self, value):
        path = self.names.get(id(value))
        if path is None and _kind(value) is not None:
            raise CannotSave(f"a {type(value).__name__} where it can't be found again")
        return path

    def reducer_override(self, value):
        if isinstance(value, torch.Generator):
            return _torch_generator, (value.get_state(),)
        if type(value) is np.ndarray and type(value.base) is np.ndarray:
            root = _root(value)
            if root.base is None and root.flags.forc and not root.dtype.hasobject:
                offset = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
                return _view, (root, value.dtype, offset, value.shape, value.strides)
        return super().reducer_override(value)


def _torch_generator(state):
    return torch.Generator().set_state(state)


def _view(root, dtype, offset, shape, strides):
    return np.ndarray(shape, dtype, root if root.flags.c_contiguous else root.T, offset, strides)


def _dump(value, names):
    file = io.BytesIO()
    _Pickler(file, names).dump(value)
    return file.getvalue()
