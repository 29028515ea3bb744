"""Whether what PyTorch calls compiled is compiled; and attention that it can fuse."""

from collections.abc import Callable
from types import MethodType
from typing import Any

from unlearn_jax.registry import UserError

CALL = "## Call CompiledFxGraph"  # how PyTorch's profiler calls a run of inductor's code


def reset() -> None:
    """Forget what was compiled before, and zero the counters."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()


def check(again: Callable[[], Any], least: int = 1) -> dict[str, Any]:
    """Check what was compiled since `reset`, and how often one more call runs generated code.

    Args:
      again: one more call.
      least: runs of generated code that are expected.

    Raises:
      UserError: nothing was compiled, or a part of it runs eagerly.
    """
    from torch._dynamo.utils import counters
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        again()
    runs = sum(event.name.startswith(CALL) for event in profiled.events())
    frames, autograd = counters["frames"], counters["aot_autograd"]
    graphs = counters["stats"]["unique_graphs"]
    if not graphs or runs < least:
        raise UserError(
            f"nothing was compiled: {graphs} graphs, and one step ran generated code {runs} times, "
            f"expected {least} or more"
        )
    failed = frames["total"] - frames["ok"] + autograd["not_ok"]
    if failed:
        reasons = "; ".join(text.splitlines()[0] for text in counters["unimplemented"])
        raise UserError(f"a part was not compiled: {failed} frames or graphs failed: {reasons}")
    breaks = sum(counters["graph_break"].values())
    return {"graphs": graphs, "graph_breaks": breaks, "generated_code_runs": runs}


def fuse_attention(net: Any) -> None:
    """Make MAGE's and Palette's attention use PyTorch's fused one, as that of MAE does."""
    from tests.reference import mage, palette

    fused = {mage.Attention: _mage, palette.Attention: _palette}
    for module in net.modules():
        if type(module) in fused:
            module.forward = MethodType(fused[type(module)], module)


def _mage(self, x):
    from torch.nn import functional as F

    b, n, d = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


def _palette(self, x):
    from torch.nn import functional as F

    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w)
    heads = self.qkv(self.norm(flat)).reshape(b, self.heads, 3, -1, h * w)
    q, k, v = heads.transpose(-1, -2).unbind(2)
    out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h * w)
    return (flat + self.proj_out(out)).reshape(b, c, h, w)
