"""Compile the kernels of the GPU without one, and print what became of them: one JSON object a kernel.

    python tests/nn/compile_kernels.py CAPABILITY

Run in a process of its own: in that of the tests Triton interprets.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pixlex.nn import fused_nearest as kernels

_TYPES = {
    "x_start": "*bf16", "y_start": "*bf16", "offset_start": "*fp32", "kept_start": "*i32", "score_start": "*fp32",
    "other_start": "*fp32", "z_start": "*fp32", "codebook_start": "*fp32", "norm_start": "*fp64",
    "codeword_norm_start": "*fp64", "radius_start": "*fp32", "code_start": "*i64", "lost_start": "*i1",
    "order_start": "*i64", "count_start": "*i64", "share": "fp32", "tiles": "i32", "each": "i32",
    "stretches": "i32", "size": "i32", "width": "i32",
}  # fmt: skip


def compiled(
    kernel: Any, settings: dict[str, Any], capability: int, ones: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Compile; arguments that are 1 are constants to Triton."""
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages") if name in settings}
    settings |= {name: 1 for name in ones if name in kernel.arg_names}
    types = {name: "constexpr" if name in settings else _TYPES[name] for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*")
    }
    source = ASTSource(kernel, types, constexprs=settings, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    units = [name for name in ("wgmma", "mma.sync") if name in result.asm["ptx"]]
    return {"kernel": result.metadata.name, "shared": result.metadata.shared, "units": units}


def main() -> None:
    capability = int(sys.argv[1])
    print(json.dumps(compiled(kernels.screen, kernels.screen_settings(768, 10), capability)))
    for cosine in (True, False):
        print(json.dumps(compiled(kernels.refine, kernels.refine_settings(cosine, 2, 768), capability)))
        print(json.dumps(compiled(kernels.search, kernels.search_settings(cosine), capability)))
    narrow = kernels.refine_settings(True, 1, 1)
    print(json.dumps(compiled(kernels.refine, narrow, capability, ("width", "stretches"))))
    print(json.dumps(compiled(kernels.search, kernels.search_settings(False), capability, ("width", "size"))))


if __name__ == "__main__":
    main()
