"""Counting the places where the host waits for values of the device, on any device."""

import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
READS = {
    getattr(torch.Tensor, name): name
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")
"""Operators that end on the host, or whose output's size the host must learn."""
HOST_PARAMETERS = ("augment",)
"""Rooms whose random numbers are drawn on the host, so that their reads never touch the device."""


class HostReads(TorchFunctionMode):
    """Collects ``file:function name`` of this project for every read inside its ``with`` block.

    PyTorch's optimisers keep their step counts on the host and may read them; views are made from numbers drawn on the
    host, whose reads do not count either.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self._dispatch = _Operators(self)

    def __enter__(self):
        self._dispatch.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self._dispatch.__exit__(*raised)

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        name = READS.get(function)
        # A device in a variable is the step's own device, which is the CPU here; one written out is meant.
        if function is torch.Tensor.to and any(isinstance(value, str) for value in (*arguments[1:], *options.values())):
            name = "to('cpu')"
        if name is not None:
            self.note(name)
            with torch._C.DisableTorchFunction():
                self._dispatch.muted += 1
                try:
                    return function(*arguments, **options)
                finally:
                    self._dispatch.muted -= 1
        return function(*arguments, **options)

    def note(self, name):
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.parent.name == "optim" and "torch" in path.parts:
                return
            if path.is_relative_to(ROOT) and ".venv" not in path.parts and path.name != "host_reads.py":
                if path.parent.name not in HOST_PARAMETERS:
                    self.found.append(f"{path.name}:{frame.f_code.co_name} {name}")
                return
            frame = frame.f_back


class _Operators(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self._reads = reads
        self.muted = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if not self.muted and (masked or name in OPERATORS):
            self._reads.note("mask" if masked else name)
        return function(*arguments, **(options or {}))
