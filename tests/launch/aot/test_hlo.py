"""What a compiled program moves: lines as libtpu 0.0.42 writes them, and programs for the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.aot import hlo

# 16 devices. A loop of 6 rounds gathers 4 shards; a gradient is summed and cut in a fusion; an
# asynchronous gather is written three times: where it starts, is overlapped and is done. S(1) is
# fast memory, the rest is HBM.
TPU = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}, num_partitions=16

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
  %y.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%x.1, %y.1)
}

%fused_computation.31 (param_0.67: bf16[256,16]) -> (bf16[256,16], bf16[1024,16], u32[]) {
  %param_0.67 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.34 = bf16[1024,16]{1,0:T(8,128)(2,1)} all-gather(%param_0.67), channel_id=10, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.5 = (bf16[256,16]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,16]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.34), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.48 (param_0.70: bf16[256,16], param_1.81: bf16[1024,16]) -> bf16[1024,16] {
  %param_0.70 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.81 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %all-gather.36 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.70), channel_id=10, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true
}

%fused_computation.33 (param_0.71: bf16[256,16], param_1.82: bf16[1024,16]) -> bf16[1024,16] {
  %param_0.71 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.82 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.38 = bf16[1024,16]{1,0:T(8,128)(2,1)} all-gather(%param_0.71), channel_id=10, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.7 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.71, %param_1.82, %all-gather.38), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (input.1: f32[1024,16]) -> f32[256,16] {
  %input.1 = f32[1024,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.10 = f32[1024,16]{1,0:T(8,128)} all-reduce(%input.1), channel_id=13, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, use_global_device_ids=true, to_apply=%add
  %constant.155 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.39 = f32[256,16]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.10, %constant.155, %constant.155), dynamic_slice_sizes={256,16}
}

%body (param.2: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %param.2 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  %get-tuple-element.2 = bf16[64,16]{1,0:T(8,128)(2,1)} get-tuple-element(%param.2), index=1
  %all-gather.41 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%get-tuple-element.2), channel_id=2, replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true
  %slice.9 = bf16[64,16]{1,0:T(8,128)(2,1)} slice(%all-gather.41), slice={[0:64], [0:16]}
  %add.2 = s32[]{:T(128)S(6)} add(%get-tuple-element.1, %get-tuple-element.1)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) tuple(%add.2, %slice.9)
}

%condition (param.1: (s32[], bf16[64,16])) -> pred[] {
  %constant.51 = s32[]{:T(128)} constant(7)
  %param.1 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.259 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt.11 = pred[]{:T(512)} compare(%get-tuple-element.259, %constant.51), direction=LT
}

ENTRY %main.3 (param.4: bf16[64,16], param.5: bf16[256,16], param.6: f32[1024,16]) -> bf16[64,16] {
  %param.4 = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  %param.5 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param.6 = f32[1024,16]{1,0:T(8,128)} parameter(2)
  %constant.56 = s32[]{:T(128)} constant(1)
  %copy.25 = s32[]{:T(128)S(6)} copy(%constant.56)
  %tuple.58 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) tuple(%copy.25, %param.4)
  %while.32 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) while(%tuple.58), condition=%condition, body=%body
  %slice-start.12 = ((f32[1024,16]{1,0:T(8,128)}), f32[256,16]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%param.6), slice={[0:256], [0:16]}
  %slice-done.12 = f32[256,16]{1,0:T(8,128)S(1)} slice-done(%slice-start.12)
  %async-collective-start = (bf16[256,16]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,16]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%param.5), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.31
  %get-tuple-element.405 = bf16[256,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=0
  %get-tuple-element.406 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %fusion.48 = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.405, %get-tuple-element.406), kind=kOutput, output_to_operand_aliasing={{}: (1, {})}, calls=%async_collective_fusion.48
  %async-collective-done = bf16[1024,16]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.405, %fusion.48), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.33
  %fusion.2 = f32[256,16]{1,0:T(8,128)S(1)} fusion(%param.6), kind=kCustom, calls=%all-reduce-scatter.1
  %collective-permute-start = (f32[256,16]{1,0:T(8,128)S(1)}, f32[256,16]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%fusion.2), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{4,5}}
  %collective-permute-done = f32[256,16]{1,0:T(8,128)S(1)} collective-permute-done(%collective-permute-start)
  %after-all = token[] after-all()
  %send = (f32[256,16]{1,0:T(8,128)S(1)}, u32[], token[]) send(%fusion.2, %after-all), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %get-tuple-element.171 = bf16[64,16]{1,0:T(8,128)(2,1)} get-tuple-element(%while.32), index=1
}
"""  # noqa: E501
KB = 1024


def test_collectives_of_a_tpu_program():
    found = hlo.moved(TPU).collectives
    assert found == {
        # six rounds of 8 KB, and 32 KB once; three quarters come from elsewhere
        "all-gather": {"count": 7, "bytes": 80 * KB, "wire_bytes": 60 * KB},
        "reduce-scatter": {"count": 1, "bytes": 64 * KB, "wire_bytes": 48 * KB},
        "collective-permute": {"count": 1, "bytes": 16 * KB, "wire_bytes": 16 * KB},
        "between slices": {"count": 1, "bytes": 16 * KB, "wire_bytes": 16 * KB},
    }
    assert (hlo.moved(TPU).wire_bytes, hlo.moved(TPU).slice_bytes) == (124 * KB, 16 * KB)
    assert hlo.moved(TPU).unknown_loops == 0


def test_memory_traffic_of_a_tpu_program_is_that_of_hbm():
    loop = 6 * (2 + 2 * 2)  # the gather's operand; a slice is read and written
    counters = 6 * 2 * 4 + 4
    assert hlo.moved(TPU).hbm_bytes == (loop + 16 + 64) * KB + counters


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 64),
        ("replica_groups=[2,32]<=[64]", 32),
        ("replica_groups=[16,4]<=[4,16]T(1,0)", 4),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=8] {'a','c'}", 32),
        ("replica_groups=mesh['a'=8,'b'=8] {'a':(2)4}", 4),
        ("replica_groups=mesh['a'=4,'b'=16], device_ids=([4,16]T(1,0)) {'b'}", 16),
    ],
)
def test_groups_are_read_in_every_form(groups, size):
    assert hlo.group_size(f"channel_id=1, {groups}, dimensions={{0}}", 64) == size


def test_a_loop_on_this_machine_counts_as_often_as_it_runs():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, P(None, "data"))

    def f(x, w):
        def body(x, _):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), split), None

        return jax.lax.scan(body, x, length=5)[0]

    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=split)
    w = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=split)
    moved = hlo.moved(jax.jit(f).lower(x, w).compile().as_text())
    gathered = moved.collectives["all-gather"]
    assert gathered["count"] == 5 and gathered["bytes"] == 5 * 64 * 128 * 4
    assert moved.wire_bytes == pytest.approx(gathered["bytes"] * 7 / 8)


def test_traffic_is_xlas_where_there_is_no_loop():
    def f(x, w):
        return jnp.tanh(x @ w) @ w.T + 1

    x, w = jnp.zeros((256, 512)), jnp.zeros((512, 512))
    compiled = jax.jit(f).lower(x, w).compile()
    said = compiled.cost_analysis()["bytes accessed"]
    assert hlo.moved(compiled.as_text()).hbm_bytes == pytest.approx(said, rel=0.1)


def test_a_ring_sends_what_is_summed_almost_twice():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
    summed = jax.jit(lambda x: x.T @ x, out_shardings=whole).lower(x).compile()
    moved = hlo.moved(summed.as_text())
    found = moved.collectives["all-reduce"]
    assert (found["count"], found["bytes"]) == (1, 32 * 32 * 4)
    assert moved.wire_bytes == pytest.approx(2 * 7 / 8 * 32 * 32 * 4)
