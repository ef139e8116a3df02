"""Check the calls of varlen kernels against what each release of torch declares.

    python tests/varlen_signatures.py [folder]

Downloads wheels of torch (those for macOS are the smallest) into a folder, build/torch by default,
reads how they declare ``varlen_attn``, and compares that with `SIGNATURES`, which the unit tests
use. Each is then called as virnucpro calls it, with a stand-in that has this signature and computes
attention by definition. Nothing of these releases is installed or run.
"""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from zipfile import ZipFile

import torch
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parents[1]

BEFORE = "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k"
SCALED = f"{BEFORE}, *, return_aux=None, scale=None, window_size=(-1, -1)"
GROUPED = f"{SCALED}, enable_gqa=False, seqused_k=None, block_table=None, num_splits=None"

# The parameters of varlen_attn in each release; releases before 2.10 have none.
SIGNATURES = {
    "2.10.0": f"{BEFORE}, is_causal=False, return_aux=None",
    "2.11.0": SCALED,
    "2.12.1": GROUPED,
    "2.13.0": GROUPED,
    "2.14.1": GROUPED,
}
PLATFORMS = ("macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64")


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scale: float | None,
    causal: bool,
) -> torch.Tensor:
    """Attention over all tokens, those of other sequences masked; [tokens, heads, dimension]."""
    sequence = torch.bucketize(torch.arange(len(query)), bounds[1:].long(), right=True)
    mask = sequence[:, None] == sequence[None, :]
    if causal:
        mask = mask.tril()
    output = scaled_dot_product_attention(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    return output.transpose(0, 1)


def stand_in(parameters: str) -> Callable[..., torch.Tensor]:
    """Return a function with these parameters that does what a release's kernel does."""
    scope: dict[str, Any] = {"attend": attend}
    exec(f"def varlen_attn({parameters}): return attend(**locals())", scope)
    function: Callable[..., torch.Tensor] = scope["varlen_attn"]
    return function


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    **others: Any,
) -> torch.Tensor:
    """Attention by definition, of what a kernel takes; refuses what it would refuse."""
    assert not any(others.values())
    assert cu_seq_q.equal(cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert window_size in ((-1, -1), (-1, 0))
    causal = is_causal or window_size == (-1, 0)
    return by_definition(query, key, value, cu_seq_q, scale, causal)


def check(parameters: str) -> None:
    """Compare what virnucpro gets from a kernel with these parameters with attention."""
    from torch.nn.attention import varlen

    from virnucpro.model.kernels import attend_varlen

    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    query = torch.randn(7, 4, 8)
    cases = itertools.product((4, 2, 1), (None, 0.5, 1.0), (False, True))
    with (
        mock.patch.object(varlen, "varlen_attn", stand_in(parameters)),
        mock.patch.dict(sys.modules, {"flash_attn": None}),
    ):
        for heads, scale, causal in cases:
            key, value = torch.randn(2, 7, heads, 8)
            expected = by_definition(query, key, value, bounds, scale, causal)
            q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
            found = attend_varlen(q, k, v, (bounds, bounds), 4, 0.0, scale, causal)
            assert found is not None
            torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def download(release: str, folder: Path) -> Path:
    """Return the wheel of a release."""
    found = sorted(folder.glob(f"torch-{release}-*.whl"))
    if not found:
        options = [f"--platform={platform}" for platform in PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        where = ["--only-binary=:all:", "--python-version=3.12", f"--dest={folder}"]
        subprocess.run([*command, *where, *options, f"torch=={release}"], check=True)
        found = sorted(folder.glob(f"torch-{release}-*.whl"))
    return found[0]


def declared(wheel: Path) -> str | None:
    """Return the parameters that a wheel declares for varlen_attn, None where it has none."""
    with ZipFile(wheel) as files:
        if "torch/nn/attention/varlen.py" not in files.namelist():
            return None
        tree = ast.parse(files.read("torch/nn/attention/varlen.py"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "varlen_attn":
            for parameter in ast.walk(node.args):
                if isinstance(parameter, ast.arg):
                    parameter.annotation = None
            return ast.unparse(node.args)
    return None


def oldest() -> str:
    """Return the oldest release that pyproject.toml allows."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return f"{found[1]}.0"


def main() -> None:
    """Check all releases, and say which."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for release, recorded in SIGNATURES.items():
        parameters = declared(download(release, folder))
        if parameters is None or parameters.replace(" ", "") != recorded.replace(" ", ""):
            print(f"torch {release} declares varlen_attn({parameters}), not ({recorded})")
            wrong += 1
            continue
        check(parameters)
        print(f"torch {release}: varlen_attn is called as it is declared")
    first = oldest()
    wheel = download(first, folder)
    with ZipFile(wheel) as files:
        grouped = b"enable_gqa=False" in files.read("torch/nn/functional.py")
    if declared(wheel) is not None or not grouped:
        print(f"torch {first}, the oldest allowed: no enable_gqa in scaled_dot_product_attention")
        wrong += 1
    else:
        print(f"torch {first}, the oldest allowed: scaled_dot_product_attention has enable_gqa")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
