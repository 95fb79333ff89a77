"""The state of an environment as bytes, for checkpoints, and back into one that was made the same way.

Pickle keeps shared objects shared and cloudpickle adds functions with what they enclose. Environments, their spaces and
MuJoCo's simulators stay the objects that they are, since others refer to them, and get the saved contents; what draws
stays as it is. What modules, classes and default arguments hold is not saved. Restoring runs what a pickle asks for:
resume only runs that you trust.
"""

import bisect
import collections
import copyreg
import functools
import io
import logging
import random
import sys
import types
import weakref

import cloudpickle
import gymnasium as gym
import numpy as np
import torch

# modules of what draws; pygame's others have what games keep their positions in, as Rect and Vector2
DRAWING = (
    "pygame.surface.", "pygame.font.", "pygame.freetype.", "pygame.time.", "pygame.mixer.", "pygame.display.",
    "OpenGL.", "glfw.", "gymnasium.envs.mujoco.mujoco_rendering.", "gymnasium.envs.registration.",
)  # fmt: skip

PLAIN = (int, float, str, bytes, type(None), torch.Tensor, types.ModuleType)  # not looked into; there may be millions
KEPT = object()  # stands for an attribute that the new environment keeps as its own
# what a program has one of: the generators, which checkpoints hold already, and what `x is np.nan` asks for
SINGLE = {
    "random": random._inst, "numpy": np.random.mtrand._rand, "torch": torch.default_generator, "nan": np.nan,
    "kept": KEPT,
}  # fmt: skip


class CannotSave(TypeError):
    """Something in an environment can't be saved; the message names it, as in "Hand.camera is a Lock"."""


def save(env, on_trial=False):
    """Return the state of `env` and of all that it refers to; if `on_trial`, find out as well whether it loads.

    Raises:
        CannotSave: something can't be saved, or loaded.
    """
    things = _fixed_things(env)
    contents = {path: (_class(thing), _contents(thing)) for path, thing in things.items() if _kind(thing) == "contents"}
    try:
        saved = _dump(contents, things)
        if on_trial:
            _load_on_trial(saved, things)
        return saved
    except Exception:
        for path, (_, attributes) in contents.items():
            for name, value in attributes.items():
                if error := _problem(value, things):
                    where = f"{type(things[path]).__name__}.{name}"
                    raise CannotSave(f"{where} is a {type(value).__name__} ({error})") from None
        raise


def restore(saved, env):
    """Give `env`, which was made as the saved one was, the saved state, and return it.

    Raises:
        KeyError: it lacks an environment, a space or a simulator that the saved one has, or has another one there.
    """
    things = _fixed_things(env)
    contents = _load(saved, things)
    for path, (kind, _) in contents.items():  # all of them before any is filled
        if _class(things[path]) != kind:
            raise KeyError(f"{path} was a {kind} and is a {_class(things[path])}")
    for path, (_, attributes) in contents.items():
        _fill(things[path], attributes, things)
    return env


# ---- what stays the object that it is ----------------------------------------------------------------------


def _kind(value):
    """Return "contents" for what stays the object that it is, "drawn" for what is left alone too, None for the rest."""
    if isinstance(value, (gym.Env, gym.Space)):
        return "contents"
    if type(value).__name__ in ("MjData", "MjModel"):
        if type(value).__module__.split(".")[0] != "mujoco":  # dm_control wraps them
            raise CannotSave(f"the {type(value).__module__}.{type(value).__name__} is not MuJoCo's own")
        return "contents"
    if isinstance(value, np.ndarray):  # of a simulator's own memory
        return "contents" if type(_root(value).base).__name__ == "PyCapsule" else None
    module = getattr(type(value), "__module__", None)  # Box2D's types have none
    drawn = isinstance(value, logging.Logger) or f"{module}.".startswith(DRAWING)
    return "drawn" if drawn else None


def _root(array):
    """Return the array that owns the memory of `array`."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _class(value):
    """Return the class of what stays the object that it is, as text, and how large it is if it is a simulator."""
    size = f" of {value.nbuffer} bytes" if type(value).__name__ in ("MjData", "MjModel") else ""
    return f"{type(value).__module__}.{type(value).__qualname__}{size}"


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
        if id(value) in seen:
            continue
        seen[id(value)] = value  # kept, or another could get its id
        kind = _kind(value)
        if kind is not None:
            found[path] = value
        if kind != "drawn":
            parts = _parts(value).items()
            waiting += [(f"{path}.{name}", part) for name, part in parts if not isinstance(part, PLAIN)]
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
    return {name: KEPT if _is_drawn(value) else value for name, value in _attributes(thing).items()}


def _is_drawn(value):
    """Return whether a value is left alone, or a list or tuple of nothing but that: each loads its own images."""
    return all(map(_is_drawn, value)) if type(value) in (list, tuple) and value else _kind(value) == "drawn"


def _fill(thing, contents, things):
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
    else:
        mine, mode = _contents(thing), contents.pop("render_mode", None)
        if mine.pop("render_mode", None) == mode:  # for rendering, which is each one's own, adds attributes, too
            for name in mine.keys() - contents.keys():
                if mine[name] is not KEPT and not _problem(mine[name], things):
                    vars(thing).pop(name) if name in vars(thing) else object.__delattr__(thing, name)
        _set_attributes(thing, {name: value for name, value in contents.items() if value is not KEPT})


def _set_attributes(thing, attributes):
    slots = attributes.keys() & copyreg._slotnames(type(thing))
    if len(slots) < len(attributes):  # or it may have no __dict__
        vars(thing).update({name: value for name, value in attributes.items() if name not in slots})
    for name in slots:
        object.__setattr__(thing, name, attributes[name])


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
    """Saves a reference for what stays the object that it is, and what shares memory as views of one piece of it."""

    def __init__(self, file, things):
        super().__init__(file)
        self.names = {id(thing): path for path, thing in (things | SINGLE).items()}
        # addresses of memory in order, and (end, owner) of each, between two that are beyond all
        self.starts, self.pieces = [-1, 2**64], [(-1, None), (2**64, None)]

    def persistent_id(self, value):
        path = self.names.get(id(value))
        if path is None and not isinstance(value, PLAIN) and _kind(value) is not None:
            raise CannotSave(f"a {type(value).__name__} where it can't be found again")
        return path

    def reducer_override(self, value):
        if type(value) is io.TextIOWrapper and value not in (sys.stdout, sys.stderr):
            raise CannotSave("an open file")  # cloudpickle would save a copy of what it holds, which reaches no disk
        if isinstance(value, weakref.finalize):  # as tempfile.TemporaryDirectory has
            raise CannotSave("what is cleaned up with this process")
        if hasattr(type(value), "__del__") and not isinstance(value, io.IOBase):
            raise CannotSave("what cleans up when it goes, as a copy would at once")  # a pipe, or a physics client
        if isinstance(value, torch.Generator):
            return _torch_generator, (value.get_state(),)
        if isinstance(value, torch.storage.TypedStorage):  # each tensor has another one of the storage that they share
            return _typed_storage, (value._untyped_storage, value.dtype)
        if isinstance(value, memoryview):
            offset = _address(np.asarray(value)) - _address(np.frombuffer(value.obj, np.uint8))
            if not value.c_contiguous:
                raise CannotSave("a memoryview with gaps")
            return _memoryview, (value.obj, offset, value.nbytes, value.format, value.shape, value.readonly)
        if isinstance(value, torch.UntypedStorage) and value.device.type == "cpu":
            owner, offset = self._piece(value, value.data_ptr(), value.nbytes())
            if owner is value:  # a copy of it is read, for torch resizes none that numpy has looked into
                return _storage, (_bytes_of(value.clone()).copy(),)
            return _storage_in, (owner, np.ndarray, np.dtype(np.uint8), offset, (value.nbytes(),), (1,), True)
        if isinstance(value, (np.ndarray, np.void)) and value.nbytes:
            return self._reduce_array(value)
        # gymnasium's and PettingZoo's, which would save no more than the arguments that the constructor got
        if getattr(getattr(type(value), "__getstate__", None), "__qualname__", "") == "EzPickle.__getstate__":
            make, args, _, *items = value.__reduce_ex__(4)
            return make, args, _attributes(value), *items, _set_attributes
        return super().reducer_override(value)

    def _reduce_array(self, value):
        """Return how to make an array, or a row of a structured one, as a view of what owns its memory."""
        owner = root = value
        while isinstance(owner, (np.ndarray, np.void, memoryview)) or type(owner).__name__ == "DummyArray":
            root = owner if isinstance(owner, np.ndarray) else root
            base = owner.obj if isinstance(owner, memoryview) else owner.base
            if base is None:
                break
            owner = base  # of what as_strided returns, a DummyArray
        if owner is value and value.dtype.hasobject:
            return NotImplemented
        if isinstance(owner, torch.Tensor):
            owner = owner.untyped_storage()
            start, size = owner.data_ptr(), owner.nbytes()
        elif isinstance(owner, (bytes, bytearray)):
            start, size = _address(np.frombuffer(owner, np.uint8)), len(owner)
        elif isinstance(owner, (np.ndarray, np.void)):
            start, size = _address(owner), owner.nbytes
        elif not root.flags.writeable:  # and so a copy will do
            return NotImplemented
        else:
            raise CannotSave(f"numbers in the memory of a {type(owner).__name__}")
        owner, offset = self._piece(owner, start, size)
        if owner is value:
            return NotImplemented
        offset += _address(value) - start
        if isinstance(owner, (np.ndarray, np.void)) and not owner.flags.forc:
            raise CannotSave("a view of an array with gaps")
        if value.dtype.hasobject and (owner.dtype != value.dtype or isinstance(value, np.void)):
            raise CannotSave("a part of a structured array with objects")
        view = value.dtype, offset, value.shape, value.strides, value.flags.writeable
        if isinstance(value, np.void):
            return _row, (owner, np.ndarray, *view)
        return _view, (owner, type(value), *view), getattr(value, "__dict__", None), None, None, _set_attributes

    def _piece(self, owner, start, size):
        """Return what owns, of all that was saved so far, the memory at `start`, and where in its memory that is."""
        i = bisect.bisect(self.starts, start)
        end, before = self.pieces[i - 1]
        if start < end >= start + size:
            return before, start - self.starts[i - 1]
        if start < end or self.starts[i] < start + size:
            raise CannotSave(f"a {type(owner).__name__} whose memory is in part another's")
        self.starts.insert(i, start)
        self.pieces.insert(i, (start + size, owner))
        return owner, 0


def _address(value):
    """Return where the memory of an array begins, or that of a row of a structured one."""
    array = np.ndarray((), value.dtype, value) if isinstance(value, np.void) else value
    return array.__array_interface__["data"][0]


def _bytes_of(storage):
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _torch_generator(state):
    return torch.Generator().set_state(state)


def _typed_storage(storage, dtype):
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _storage(content):
    return torch.from_numpy(content).clone().untyped_storage()


def _storage_in(*view):
    return torch.from_numpy(_view(*view)).untyped_storage()


def _memoryview(owner, offset, size, kind, shape, readonly):
    view = memoryview(owner).cast("B")[offset : offset + size].cast(kind, shape)
    return view.toreadonly() if readonly else view


def _view(owner, kind, dtype, offset, shape, strides, writeable):
    if isinstance(owner, torch.UntypedStorage):
        owner = _bytes_of(owner)
    if isinstance(owner, np.ndarray) and not owner.flags.c_contiguous:
        owner = owner.T
    if dtype.hasobject:  # which numpy makes of no buffer
        flat = owner.reshape(-1)[offset // dtype.itemsize :]
        view = np.lib.stride_tricks.as_strided(flat, shape, strides).view(kind)
    else:
        view = np.ndarray.__new__(kind, shape, dtype, owner, offset, strides)
    if view.flags.writeable != writeable:
        view.flags.writeable = writeable
    return view


def _row(*view):
    return _view(*view)[()]


def _dump(value, things):
    file = io.BytesIO()
    _Pickler(file, things).dump(value)
    return file.getvalue()


def _load(saved, things):
    unpickler = cloudpickle.pickle.Unpickler(io.BytesIO(saved))
    unpickler.persistent_load = (things | SINGLE).__getitem__
    return unpickler.load()


def _load_on_trial(saved, things):
    """Load what this program saved; else cloudpickle would give the classes of functions their saved attributes."""
    tracked = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
    cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID = weakref.WeakValueDictionary()
    try:
        _load(saved, things)
    finally:
        cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID = tracked


def _problem(value, things):
    """Return the exception that a value raises when it is saved or loaded, or None."""
    try:
        _load_on_trial(_dump(value, things), things)
    except Exception as error:
        return error
