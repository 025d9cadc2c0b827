"""Stand-in for the CUDA package of this name: the ops of SGLang's CPU path, in plain PyTorch.

SGLang imports ``sgl_kernel`` (and parts of it) on every platform; names that are not supplied
import fine and raise ``NotImplementedError`` with their name when called.
"""

from sgl_kernel import _missing

from sglang_speckv.srt.cpu.kernels.attention import decode_attention_cpu, extend_attention_cpu
from sglang_speckv.srt.cpu.kernels.registry import register_ops
from sglang_speckv.srt.cpu.kernels.sampling import (
    murmur_hash32_cpu,
    top_k_renorm_prob,
    top_p_renorm_prob,
    tree_speculative_sampling_target_only,
)
from sglang_speckv.srt.cpu.kernels.slots import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    rotate_input_ids_cpu,
)
from sglang_speckv.srt.cpu.kernels.tree import (
    build_tree_kernel_efficient_cpu,
    verify_tree_greedy_cpu,
)

__version__ = "0+speckv"
__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "decode_attention_cpu",
    "extend_attention_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "murmur_hash32_cpu",
    "rotate_input_ids_cpu",
    "top_k_renorm_prob",
    "top_p_renorm_prob",
    "tree_speculative_sampling_target_only",
    "verify_tree_greedy_cpu",
]

register_ops(decode_attention_cpu, extend_attention_cpu, murmur_hash32_cpu)
_missing.install(__name__)
__getattr__ = _missing.attribute_of(__name__)
