"""Multiply-accumulates of the operations torch really runs, one formula an operation.

The paper's convention: the multiplications of convolutions and matrix products, biases not counted, products with
padding zeros counted. Activations, pooling, normalisation, resizing, sums and copies are free. An operation with
neither a formula nor a place among the free ones is never taken for zero: the caller gets its name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[tuple[Any, ...], Any], int]


def convolution_macs(images: Tensor, weight: Tensor, output: Tensor, transposed: bool = False) -> int:
    """Multiplications of a convolution of any dimension: an output (transposed: input) value costs one kernel each.

    Plain: weight `[O, I/groups, *kernel]`, output `[B, O, *size]`. Transposed: weight `[I, O/groups, *kernel]`, input
    `[B, I, *size]`. Stride and groups are in those shapes already.
    """
    return (images if transposed else output).numel() * prod(weight.shape[1:])


def matmul_macs(left: Tensor, right: Tensor) -> int:
    """Multiplications of `[..., M, K] @ [..., K, N]` with equal leading sizes: ... * M * K * N."""
    return left.numel() * right.shape[-1]


def attention_macs(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Multiplications of softmax(q k^T) v for q `[..., L, E]`, k `[..., S, E]`, v `[..., S, F]`: ... * L * S * (E + F).

    Masked and causal positions are counted as well: dense kernels compute them.
    """
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _conv(args: tuple[Any, ...], output: Any) -> int:
    return convolution_macs(args[0], args[1], output, transposed=bool(args[6]))


def _plain_conv(args: tuple[Any, ...], output: Any) -> int:
    return convolution_macs(args[0], args[1], output)


def _product(args: tuple[Any, ...], output: Any) -> int:
    return matmul_macs(args[0], args[1])


def _added_product(args: tuple[Any, ...], output: Any) -> int:
    return matmul_macs(args[1], args[2])


def _attention(args: tuple[Any, ...], output: Any) -> int:
    return attention_macs(args[0], args[1], args[2])


FORMULAS: dict[str, Formula] = {
    "aten::convolution": _conv,
    "aten::_convolution": _conv,
    "aten::convolution_overrideable": _conv,
    "aten::cudnn_convolution": _plain_conv,
    "aten::mkldnn_convolution": _plain_conv,
    "aten::_slow_conv2d_forward": _plain_conv,
    "aten::slow_conv3d_forward": _plain_conv,
    "aten::_conv_depthwise2d": _plain_conv,
    "aten::conv_depthwise3d": _plain_conv,
    "aten::mm": _product,
    "aten::bmm": _product,
    "aten::_int_mm": _product,
    "aten::_scaled_mm": _product,
    "aten::addmm": _added_product,
    "aten::_addmm_activation": _added_product,
    "aten::baddbmm": _added_product,
    "aten::addbmm": _added_product,
    "aten::mv": lambda args, output: int(args[0].numel()),
    "aten::addmv": lambda args, output: int(args[1].numel()),
    "aten::dot": lambda args, output: int(args[0].numel()),
    "aten::vdot": lambda args, output: int(args[0].numel()),
    "aten::addr": lambda args, output: int(output.numel()),
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
}
"""Operation -> multiplications from (its positional arguments, its result)."""

FREE = frozenset(
    f"aten::{name}"
    for name in """
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d all
    amax amin aminmax any arange argmax argmin as_strided_ _assert_async _assert_scalar _assert_tensor_metadata
    avg_pool1d avg_pool2d avg_pool3d _batch_norm_no_update batch_norm_update_stats bernoulli bernoulli_ bincount
    bucketize cat channel_shuffle clone col2im complex constant_pad_nd contiguous copy copy_ count_nonzero
    cudnn_batch_norm cummax cummin cumprod cumsum detach_ diag_embed diagonal_scatter embedding _embedding_bag
    _embedding_bag_forward_only embedding_renorm empty empty_like empty_permuted empty_strided expand_copy eye
    fill fill_ flip fractional_max_pool2d fractional_max_pool3d full full_like _fused_rms_norm gather glu
    grid_sampler_2d grid_sampler_3d hardswish hardtanh histc im2col index index_add index_copy index_fill
    index_put index_select instance_norm is_same_size isin kthvalue lift_fresh lift_fresh_copy linalg_cross
    linalg_vector_norm linspace _local_scalar_dense log_sigmoid log_sigmoid_forward _log_softmax logcumsumexp
    logsumexp masked_fill masked_scatter masked_select max max_pool2d max_pool2d_with_indices
    max_pool3d_with_indices max_unpool2d mean median min mkldnn_max_pool2d mode multinomial nanmedian nansum
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_channel_shuffle
    native_dropout native_group_norm native_layer_norm new_empty new_empty_strided new_full new_ones new_zeros
    nonzero norm normal_ one_hot ones ones_like _pack_padded_sequence _pad_packed_sequence pixel_shuffle
    pixel_unshuffle polar pow prelu _prelu_kernel prod rand rand_like randint randn randn_like randperm
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d _reshape_copy resize_ roll rot90 rrelu_with_noise _safe_softmax
    scalar_tensor scatter scatter_add scatter_reduce searchsorted select_scatter set_ slice_scatter _softmax
    softplus sort squeeze_ stack std std_mean sum swapaxes_ swapdims_ t_ take _thnn_fused_gru_cell
    _thnn_fused_lstm_cell to _to_copy topk transpose_ tril tril_indices triu triu_indices unfold_copy uniform_
    _unique2 unique_dim unsafe_chunk unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze_
    upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d _upsample_bilinear2d_aa upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    upsample_trilinear3d var var_mean view_copy where _weight_norm_interface zero_ zeros zeros_like
    """.split()  # noqa: SIM905 - as a list it would be a hundred lines
)
"""Operations that cost nothing by the convention: pooling, normalisation, reductions, moves, resizing, factories.

Elementwise operations and views are free too; torch itself marks them (see `is_free`).
"""


def is_free(operation: Any) -> bool:
    """Whether the operation costs nothing by the convention: listed, elementwise by torch's own tag, or a view."""
    if torch.Tag.pointwise in operation.tags or getattr(operation, "is_view", False):
        return True
    name = operation_name(operation)
    return name in FREE or (name.endswith("_") and name[:-1] in FREE)


def operation_name(operation: Any) -> str:
    """`namespace::name` without the overload, as in "aten::convolution"."""
    return str(operation._schema.name)
