"""What accelerators can do, and which topologies of them there are."""

import math
from typing import NamedTuple

from unlearn_jax.registry import UserError

GB, GIB, T = 10**9, 2**30, 10**12


class Chip(NamedTuple):
    """One chip, by its data sheet; the memory is what the compiler grants.

    Attributes:
      kind: jax's `device_kind`.
      peak_flops: bfloat16, per second.
      hbm_bytes: what a program may use: "available HBM" in the error of a program that is too
        large, of libtpu 0.0.42 (the data sheets' 32, 16, 95 and 32 GB less what is reserved); for
        GPUs the data sheet's, of which the driver keeps some.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second that a chip can send to its neighbours over all its links
        together; data sheets give both directions, that is twice as much.
      slice_bandwidth: bytes per second that a chip can send to other slices, through the network of
        the data centre; 0: not in the documents that we read.
      shapes: the slices that there are, up to 512 chips.
    """

    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    slice_bandwidth: float = 0.0
    shapes: tuple[str, ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

# v5e, v5p, v6e: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, read in November 2026 (links, in
# both directions: 400, 1200 and 800 GB/s; the data centre's network: 6.4 Tbit/s for a pod of 256
# v5e, 50 Gbit/s for a v5p). v4: cloud.google.com/tpu/docs/v4 for the peak and the memory; Jouppi et
# al., "TPU v4" (ISCA 2023) for its six links of 50 GB/s.
TPUS = {
    "v4": Chip("TPU v4", 275 * T, 30.75 * GIB, 1200 * GB, 300 * GB, 0, _CUBES),
    "v5e": Chip("TPU v5 lite", 197 * T, 15.75 * GIB, 819 * GB, 200 * GB, 3.125 * GB, _FLAT),
    "v5p": Chip("TPU v5", 459 * T, 95.74 * GIB, 2765 * GB, 600 * GB, 6.25 * GB, _CUBES),
    "v6e": Chip("TPU v6 lite", 918 * T, 31.25 * GIB, 1638 * GB, 400 * GB, 0, _FLAT),
}
# NVIDIA's data sheets of the SXM versions: dense bfloat16, NVLink in one direction.
GPUS = {
    "A100": Chip("NVIDIA A100-SXM4-80GB", 312 * T, 80 * GB, 2039 * GB, 300 * GB),
    "H100": Chip("NVIDIA H100 80GB HBM3", 989 * T, 80 * GB, 3350 * GB, 450 * GB),
    "H200": Chip("NVIDIA H200", 989 * T, 141 * GB, 4800 * GB, 450 * GB),
}


def by_kind(device_kind: str) -> Chip | None:
    """Find the chip by jax's name for it; None for a CPU or an unknown one."""
    return next((c for c in (*TPUS.values(), *GPUS.values()) if c.kind == device_kind), None)


class Topology(NamedTuple):
    """Slices of chips; "local" stands for the devices of this machine."""

    name: str
    slices: int = 1

    @property
    def chip(self) -> Chip | None:
        """Return what it is made of, None if that is known only to jax."""
        return TPUS.get(self.name.partition(":")[0])

    @property
    def chips(self) -> int:
        """Count the chips of all slices together."""
        shape = self.name.partition(":")[2]
        return self.slices * math.prod(int(n) for n in shape.split("x"))

    def options(self) -> dict:
        """List what libtpu must be told besides the name."""
        found = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.name.startswith("v4:"):
            found["chip_config_name"] = "megacore"  # else each of the chip's two cores is a device
        if self.name.endswith(":1x1"):
            found["chips_per_host_bounds"] = (1, 1, 1)
        return found


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Parse the topology of that name.

    It is compared with the known ones because libtpu ends the process at some others.

    Args:
      name: "v5e:16x16", or "local".
      slices: at least 1; several are connected by the data centre's network.

    Raises:
      UserError: there is no such topology.
    """
    chip, colon, shape = name.partition(":")
    if slices < 1 or (name == "local" and slices > 1):
        raise UserError(f"Expected --slices=1 or more of a TPU topology, got {slices} of {name}.")
    if name == "local":
        return Topology(name)
    if chip not in TPUS or not colon:
        known = ", ".join(f"{key}:{value.shapes[-1]}" for key, value in TPUS.items())
        raise UserError(f"Expected --topology=local or CHIP:SHAPE, such as {known}; got {name!r}.")
    if shape not in TPUS[chip].shapes:
        raise UserError(
            f"Expected the shape of a {chip} slice, one of {', '.join(TPUS[chip].shapes)}; got "
            f"{shape!r} in --topology={name}. For more chips: --slices."
        )
    return Topology(name, slices)


def parse_mesh(text: str, chips: int, slices: int = 1) -> dict[str, int]:
    """Parse "DATA:FSDP" to {"data": …, "fsdp": …}; one may be -1, "what is left".

    Raises:
      UserError: not two numbers; they do not multiply to the chips; data cannot be split over the
        slices.
    """
    try:
        data, fsdp = (int(n) for n in text.split(":"))
        ok = data != 0 and fsdp != 0 and min(data, fsdp) >= -1 and (data, fsdp) != (-1, -1)
    except ValueError:
        ok = False
    if not ok:
        raise UserError(f"Expected a mesh as DATA:FSDP, such as -1:1 or 16:16, got {text!r}.")
    data, fsdp = (chips // fsdp if data == -1 else data), (chips // data if fsdp == -1 else fsdp)
    if data * fsdp != chips:
        raise UserError(f"Expected a mesh that multiplies to the {chips} chips, got {text}.")
    if data % slices:
        raise UserError(
            f"Expected a data axis that is a multiple of the {slices} slices, got {data} in "
            f"{text}: parameters are sharded (fsdp) within a slice only."
        )
    return {"data": data, "fsdp": fsdp}
