"""Any object as plain data, and back: how a checkpoint holds environments.

Unpickling could run anything that a file asks for, so checkpoints hold numbers, strings, bytes, lists and tensors.
`save` makes such data of an environment and all that it refers to, and `restore` gives an equally made environment the
same state. Objects that were shared are shared again. Environments and their spaces stay the objects that they are,
because others refer to them; everything else is made anew, because a constant of the program may have been its first
value. Functions are not saved, but what they have enclosed is; what only draws is left as it is.
"""

import collections
import copyreg
import datetime
import enum
import functools
import io
import itertools
import logging
import pathlib
import random
import sys
import types

import gymnasium as gym
import numpy as np
import torch

ATOMS = (type(None), bool, int, float, str, bytes)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type(functools.cache(len)), np.ufunc, type)
# Python's own that may be made by name, besides what the environment's modules define
KNOWN = (
    bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset, range, slice, iter,
    collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter, types.SimpleNamespace,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta, itertools.count, itertools.cycle,
    pathlib.PosixPath, random.Random,
)  # fmt: skip
BITS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}


def save(value):
    """Return `value` and all that it refers to as plain data.

    Raises:
        CannotSave: something is of a kind that can't be saved. The message names it, as in "Hand.camera is a Lock".
    """
    return _Saver().save(value)


def restore(saved, value):
    """Return what `save` saved; `value` is its counterpart, an equally made object that gets the saved state.

    Raises:
        CannotRestore: the counterpart lacks something that could not be saved.
    """
    return _Restorer().restore(saved, value)


class CannotSave(TypeError):
    """Something can't be saved.

    Args:
        what: its kind, as in "a Lock".
        where: what holds it, as in "Hand.camera"; None while that isn't known.
    """

    def __init__(self, what, where=None):
        super().__init__(f"{where} is {what}" if where else what)
        self.where = where


class CannotRestore(ValueError):
    """The message is what can't be restored."""


def _name(thing):
    """Return where a class or function is defined; a lambda's line tells it from others."""
    name = f"{getattr(thing, '__module__', None)}:{getattr(thing, '__qualname__', thing)}"
    return f"{name} of line {thing.__code__.co_firstlineno}" if name.endswith("<lambda>") else name


def _named(name, counterpart=None):
    """Return the class or function with this name: the counterpart, or one that has been imported.

    It is none of Python's own but those in KNOWN, so that no file can ask for os.system.
    """
    if _name(counterpart) == name:
        return counterpart
    if name in map(_name, KNOWN):
        return _known(name)
    module, _, path = name.partition(":")
    found = sys.modules.get(module)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    if not isinstance(found, FUNCTIONS) or _name(found) != name or module.split(".")[0] in sys.stdlib_module_names:
        raise CannotRestore(f"{path} of {module}")
    return found


def _known(name):
    return next(known for known in KNOWN if _name(known) == name)


def _is_left(value):
    """Return whether `value` is left as it is in the environment that is restored: it draws, or never changes."""
    if isinstance(value, (gym.envs.registration.EnvSpec, logging.Logger)):
        return True
    if value is random._inst or value is np.random.mtrand._rand:  # the global generators
        return True
    return type(value).__module__.startswith(("pygame", "OpenGL", "glfw", "gymnasium.envs.mujoco.mujoco_rendering"))


def _is_in_place(value):
    """Return whether `value` stays the object that it is, and gets the saved attributes."""
    return isinstance(value, (gym.Env, gym.Space, gym.utils.EzPickle))


def _attributes(value):
    """Return {name: value} of what is saved of an environment or a space.

    Its spaces may be attributes of its class. How it renders is the new one's own affair.
    """
    attributes = {name: v for name, v in vars(value).items() if name != "render_mode"}
    if isinstance(value, gym.Env):
        for name in ("action_space", "observation_space"):
            attributes.setdefault(name, getattr(value, name, None))
    return attributes


def _parts(value):
    """Return how to make `value` again, as pickle would: (class or function, arguments, state, items, pairs).

    Raises:
        TypeError: it can't be made again from Python objects.
    """
    made, arguments, state, items, pairs = (*value.__reduce_ex__(2), None, None, None)[:5]
    if made is copyreg.__newobj__ and arguments[0] is type(value):
        arguments = arguments[1:]
    elif made not in KNOWN:
        raise TypeError
    return made, tuple(arguments), state, list(items or ()), list(pairs or ())


def _mujoco_arrays(value):
    """Return {name: array} of the numbers of MjData, MjModel or MjOption; the arrays share memory with `value`.

    An observation may read what MuJoCo computed from its state (Humanoid observes centers of mass), and an environment
    may change its model (its friction, say), but hardly the meshes and textures.
    """
    names = [name for name in dir(value) if not name.startswith(("_", "efc_", "mesh_", "tex_", "hfield_", "skin_"))]
    return {k: a for k in names if isinstance(a := getattr(value, k), np.ndarray) and a.size and a.dtype == np.float64}


def _to_bytes(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _from_bytes(content):
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return array.copy(order="A")


class _Saver:
    """Turns objects into plain data: atoms, and lists whose first entry names one of _Restorer's methods."""

    def __init__(self):
        self.seen = {}  # id: (number, object); an object that is met again is a reference to its number

    def save(self, value):
        if type(value) in ATOMS:
            return value
        if id(value) in self.seen:
            return ["seen", self.seen[id(value)][0]]
        if _is_left(value):
            return ["left"]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, np.generic):
            return ["number", _to_bytes(value)]
        if isinstance(value, np.dtype):
            return ["dtype", _to_bytes(np.empty(0, value))]
        if isinstance(value, enum.Enum):
            return ["enum", _name(type(value)), self.save(value.value)]
        if type(value) is tuple:
            return ["tuple", [self.save(item) for item in value]]
        number = len(self.seen)
        self.seen[id(value)] = number, value
        if type(value) is list:
            return ["list", number, [self.save(item) for item in value]]
        if type(value) is dict:
            return ["dict", number, [[self.save(k), self.save(v)] for k, v in value.items()]]
        return self._object(number, value)

    def _object(self, number, value):
        kind = type(value).__name__
        if _is_in_place(value):
            return ["in_place", number, _name(type(value)), self._named(value, _attributes(value))]
        if type(value) is np.ndarray:
            return self._array(number, value)
        if isinstance(value, torch.Tensor):
            return ["tensor", number, value.detach().clone()]
        if isinstance(value, torch.Generator):
            return ["torch_generator", number, value.get_state()]
        if isinstance(value, (np.random.Generator, np.random.RandomState)):
            return self._generator(number, value)
        if kind == "MjData":
            import mujoco

            everything = mujoco.mjtState.mjSTATE_INTEGRATION
            state = np.empty(mujoco.mj_stateSize(value.model, everything))
            mujoco.mj_getState(value.model, value, state, everything)
            return ["mujoco_data", number, torch.from_numpy(state), self.save(_copies(_mujoco_arrays(value)))]
        if kind == "MjModel":
            arrays = {**_mujoco_arrays(value), **{f"opt.{k}": a for k, a in _mujoco_arrays(value.opt).items()}}
            options = {k: v for k in dir(value.opt) if type(v := getattr(value.opt, k)) in (int, float)}
            return ["mujoco_model", number, self.save(_copies(arrays)), self.save(options)]
        if isinstance(value, FUNCTIONS):
            owner = getattr(value, "__self__", None)
            if isinstance(value, types.BuiltinFunctionType) and not isinstance(owner, (types.ModuleType, type(None))):
                return ["method", number, self.save(owner), value.__name__]  # of a generator, say
            cells = getattr(value, "__closure__", None) or ()
            return ["function", number, _name(value), [self._cell(value, cell) for cell in cells]]
        if isinstance(value, types.MethodType):
            return ["method", number, self.save(value.__self__), value.__name__]
        if isinstance(value, functools.partial):
            return ["partial", number, self.save(value.func), self.save(value.args), self.save(value.keywords)]
        try:
            if type(value) is object:  # what it is, is all that it says
                raise TypeError
            made, arguments, state, items, pairs = _parts(value)
        except Exception:
            raise CannotSave(f"a {kind}") from None
        # in this order, as they are restored: what is met again must have been made before
        arguments = self.save(arguments)
        state = ["state", self._named(value, state)] if isinstance(state, dict) else self.save(state)
        items = [self.save(item) for item in items]
        pairs = [[self.save(k), self.save(v)] for k, v in pairs]
        made = "" if made is copyreg.__newobj__ else _name(made)
        return ["made", number, _name(type(value)), made, arguments, state, items, pairs]

    def _named(self, owner, attributes):
        saved = {}
        for name, value in attributes.items():
            try:
                saved[name] = self.save(value)
            except CannotSave as error:
                if error.where is None:
                    raise CannotSave(error, f"{type(owner).__name__}.{name}") from None
                raise
        return saved

    def _cell(self, function, cell):
        try:
            return [self.save(cell.cell_contents)]
        except CannotSave as error:
            if error.where is None:
                raise CannotSave(error, f"what {function.__qualname__} encloses") from None
            raise
        except ValueError:  # an empty cell
            return []

    def _generator(self, number, value):
        old_kind = isinstance(value, np.random.RandomState)
        bits = value._bit_generator if old_kind else value.bit_generator
        # RandomState's state also holds half of a pair of Gaussians
        state = value.get_state(legacy=False) if old_kind else bits.state
        if type(bits) not in BITS.values():
            raise CannotSave(f"a generator with {type(bits).__name__}")
        s = bits.seed_seq
        source = [s.entropy, s.spawn_key, s.pool_size, s.n_children_spawned] if s is not None else None
        return ["generator", number, old_kind, type(bits).__name__, self.save(source), self.save(state)]

    def _array(self, number, value):
        if value.dtype.hasobject:
            if value.dtype != object:
                raise CannotSave("an array of structures with objects")
            return ["objects", number, value.shape, [self.save(item) for item in value.flat]]
        base = value
        while type(base.base) is np.ndarray:
            base = base.base
        if type(base.base).__name__ == "PyCapsule":  # the memory of MuJoCo, or of another simulator in C
            return ["memory", number, _to_bytes(value)]
        if base is value or base.base is not None or not base.flags.forc:
            return ["array", number, _to_bytes(value)]
        offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        dtype = _to_bytes(np.empty(0, value.dtype))
        return ["view", number, self.save(base), dtype, offset, value.shape, value.strides]


def _copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


class _Restorer:
    """Undoes what _Saver does: the method `_kind` takes the counterpart and the rest of a list ["kind", ...]."""

    def __init__(self):
        self.objects = {}  # by number
        self.taken = set()  # ids of those that stay what they are

    def restore(self, saved, old=None):
        if not isinstance(saved, list):
            return saved
        kind, *rest = saved
        return getattr(self, f"_{kind}")(old, *rest)

    def _keep(self, number, value):
        self.objects[number] = value
        return value

    def _stay(self, number, value):
        if id(value) in self.taken:
            raise CannotRestore(f"{type(value).__name__}, which stands for two")
        self.taken.add(id(value))
        return self._keep(number, value)

    def _all(self, saved, old):
        old = old if isinstance(old, (list, tuple)) else ()
        return [self.restore(s, o) for s, o in zip(saved, [*old, *[None] * len(saved)], strict=False)]

    def _left(self, old):
        return old

    def _module(self, old, name):
        if name not in sys.modules:
            raise CannotRestore(name)
        return old if getattr(old, "__name__", None) == name else sys.modules[name]

    def _seen(self, old, number):
        return self.objects[number]

    def _number(self, old, content):
        return _from_bytes(content)[()]

    def _dtype(self, old, content):
        return _from_bytes(content).dtype

    def _enum(self, old, name, value):
        return _named(name, type(old))(self.restore(value))

    def _tuple(self, old, items):
        return tuple(self._all(items, old))

    def _list(self, old, number, items):
        new = self._keep(number, [])
        new += self._all(items, old)
        return self._undrawn(old, number, new, items)

    def _dict(self, old, number, pairs):
        new = self._pairs(self._keep(number, {}), pairs, old)
        return self._undrawn(old, number, new, [value for _, value in pairs])

    def _undrawn(self, old, number, new, items):
        """Images, say, are left to an environment that has loaded none, for it takes None as the word to load them."""
        return self._keep(number, old if ["left"] in items and type(old) is not type(new) else new)

    def _pairs(self, new, pairs, old):
        old = old if isinstance(old, dict) else {}
        for saved_key, saved in pairs:
            key = self.restore(saved_key)
            new[key] = self.restore(saved, old.get(key))
        return new

    def _in_place(self, old, number, name, attributes):
        if _name(type(old)) != name:
            raise CannotRestore(name.partition(":")[2])
        own, olds = vars(self._stay(number, old)), _attributes(old)
        for key, saved in attributes.items():
            value = self.restore(saved, olds.get(key))
            if key not in olds or value is not olds[key]:
                own[key] = value
        return old

    def _array(self, old, number, content):
        return self._keep(number, _from_bytes(content))

    def _memory(self, old, number, content):
        new = _from_bytes(content)
        if isinstance(old, np.ndarray) and (old.shape, old.dtype) == (new.shape, new.dtype) and old.flags.writeable:
            old[...] = new
            new = old
        return self._keep(number, new)

    def _view(self, old, number, base, dtype, offset, shape, strides):
        base = self.restore(base)
        base = base if base.flags.c_contiguous else base.T
        return self._keep(number, np.ndarray(tuple(shape), _from_bytes(dtype).dtype, base, offset, tuple(strides)))

    def _objects(self, old, number, shape, items):
        new = self._keep(number, np.empty(tuple(shape), object))
        old = old.ravel().tolist() if isinstance(old, np.ndarray) else ()
        for i, item in enumerate(self._all(items, old)):
            new.flat[i] = item
        return new

    def _tensor(self, old, number, content):
        if isinstance(old, torch.nn.Parameter):
            with torch.no_grad():
                old.copy_(content)
            return self._keep(number, old)
        return self._keep(number, content.clone())

    def _torch_generator(self, old, number, state):
        return self._keep(number, torch.Generator().set_state(state))

    def _generator(self, old, number, old_kind, bits, source, state):
        source, state = self.restore(source), self.restore(state)
        if source is not None:
            entropy, key, size, spawned = source
            source = np.random.SeedSequence(entropy, spawn_key=key, pool_size=size, n_children_spawned=spawned)
        bits = BITS[bits](source)
        if old_kind:
            new = np.random.RandomState(bits)
            new.set_state(state)
        else:
            bits.state = state
            new = np.random.Generator(bits)
        return self._keep(number, new)

    def _mujoco_data(self, old, number, state, arrays):
        import mujoco

        if type(old).__name__ != "MjData":
            raise CannotRestore("MjData")
        self._stay(number, old)
        mujoco.mj_setState(old.model, old, state.numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        self._fill(_mujoco_arrays(old), self.restore(arrays))
        return old

    def _mujoco_model(self, old, number, arrays, options):
        if type(old).__name__ != "MjModel":
            raise CannotRestore("MjModel")
        self._stay(number, old)
        own = {**_mujoco_arrays(old), **{f"opt.{k}": a for k, a in _mujoco_arrays(old.opt).items()}}
        self._fill(own, self.restore(arrays))
        for name, value in self.restore(options).items():
            setattr(old.opt, name, value)
        return old

    def _fill(self, arrays, saved):
        for name, array in saved.items():
            if name in arrays and arrays[name].shape == array.shape:  # contacts vary, but every step computes them anew
                arrays[name][...] = array

    def _function(self, old, number, name, cells):
        new = (self._stay if cells else self._keep)(number, _named(name, old))
        for cell, saved in zip(getattr(new, "__closure__", None) or (), cells, strict=True):
            for content in saved:
                cell.cell_contents = self.restore(content, cell.cell_contents)
        return new

    def _method(self, old, number, owner, name):
        return self._keep(number, getattr(self.restore(owner, getattr(old, "__self__", None)), name))

    def _partial(self, old, number, *parts):
        olds = [getattr(old, name, None) for name in ("func", "args", "keywords")]
        function, arguments, keywords = self._all(parts, olds)
        return self._keep(number, functools.partial(function, *arguments, **keywords))

    def _made(self, old, number, class_name, function_name, arguments, state, items, pairs):
        olds = (None,) * 5
        if _name(type(old)) == class_name:
            olds = _parts(old)
        function = _known(function_name) if function_name else _named(class_name, type(old)).__new__
        arguments = self.restore(arguments, olds[1])
        if not function_name:
            arguments = (_named(class_name, type(old)), *arguments)
        new = self._keep(number, function(*arguments))
        if isinstance(state, list) and state[0] == "state":
            state = self._pairs({}, [[key, saved] for key, saved in state[1].items()], olds[2])
        else:
            state = self.restore(state, olds[2])
        items, pairs = self._all(items, olds[3]), self._pairs({}, pairs, dict(olds[4] or ()))
        # as pickle does: first what it contains, then its attributes
        if items:
            new.extend(items)
        for key, value in pairs.items():
            new[key] = value
        if hasattr(new, "__setstate__") and state is not None:
            new.__setstate__(state)
        elif state is not None:
            attributes, slots = state if isinstance(state, tuple) else (state, None)
            for key, value in {**(attributes or {}), **(slots or {})}.items():
                object.__setattr__(new, key, value)
        return new
